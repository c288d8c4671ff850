"""What the exact rewrites save: a reduced render with them against the operator sequence of the released code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hall import animx, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from animx.errors import UsageError  # noqa: E402
from animx.measuring import rewrites  # noqa: E402
from animx.measuring.rewrites import Rewrites, one_thread  # noqa: E402


@pytest.fixture(autouse=True)
def _on_one_thread() -> Iterator[None]:
    with one_thread(), torch.no_grad():
        yield


def test_eight_steps_cost_at_most_two_thirds_of_the_released_sequence() -> None:
    """CPU time of one thread; steps of both renders take turns, and each is charged eight median steps."""
    work = Rewrites(("released", "exact"))
    work.render()
    if work.seconds("released") < 1.5 * work.seconds("exact"):
        work.render()  # a machine at work on something else: twice as many steps to take the median of
    ratio = work.seconds("released") / work.seconds("exact")
    assert ratio >= 1.5, f"{ratio:.2f}: {work.spent}"


def test_the_same_sequence_on_both_sides_gives_a_ratio_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Rewrites(("released", "exact"), steps=4)
    real = work._prepared
    monkeypatch.setattr(work, "_prepared", lambda way, stepper: real("released", stepper))
    work.render()
    assert 0.75 < work.seconds("released") / work.seconds("exact") < 1.33


def test_a_user_can_measure_it_and_each_rewrite_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rewrites.bench_rewrites
    monkeypatch.setattr(rewrites, "bench_rewrites", lambda **given: real(**{**given, "steps": 1, "rounds": 1}))
    found = animx("bench", "render", "--rewrites", "--frames", 2, "--json").json
    assert found["bench"] == "rewrites"
    assert list(found["ratios"]) == [f"{way}_over_exact" for way in ("released", "no batch", "no fold", "no cache")]
    assert all(value > 0 for value in found["ratios"].values())
    assert found["setting"]["canvas"] == "64x64"
    assert found["setting"]["frames"] == 2
    for more, word in (
        (("--size", "72x64"), "multiples of 64"),
        (("--speed", "fast"), "--speed"),
        (("--model", "x"), "--model"),
        (("--device", "cuda"), "--device"),
    ):
        refused(animx("bench", "render", "--rewrites", *more), 2, word)


def test_no_speed_is_shown_where_a_way_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Rewrites(("released", "exact"), steps=2, frames=1)
    real: Any = work._prepared

    def wrong(way: str, stepper: Any) -> Any:
        velocity = real(way, stepper)
        return velocity if way == "released" else lambda x, t: 1.01 * velocity(x, t)

    monkeypatch.setattr(work, "_prepared", wrong)
    with pytest.raises(rewrites.CheckError, match=r"'exact' is off by .* no speed is shown"):
        work.render()
    with pytest.raises(UsageError, match="unknown way 'fast'"):
        Rewrites(("fast",))
