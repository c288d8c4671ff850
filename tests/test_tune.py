"""`animx bench ops --tune`: the fastest right configuration wins, and the table it is written to is what runs."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hall import animx, refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.bench import CheckError  # noqa: E402
from animx.errors import AnimxError, InputError  # noqa: E402
from animx.measuring import tune  # noqa: E402
from animx.measuring.timing import Spread  # noqa: E402
from animx_kernels import dispatch, tuning  # noqa: E402
from animx_kernels.dispatch import OPS, Case, Inputs, LookUp, load_ops, tuned  # noqa: E402


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's table of each test: a file that is not there yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ANIMX_TUNING", raising=False)
    tuning.reread()
    yield tmp_path / ".config/animx/tuning.json"
    tuning.reread()


def wrote(file: Path, ops: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"ops": ops}), encoding="utf-8")
    tuning.reread()


# ---- the user's table ---------------------------------------------------------------------------------------------


def test_the_users_table_goes_over_the_shipped_one_and_the_special_over_the_general(table: Path) -> None:
    shipped = tuned("geglu_linear", "320", 90)
    entries = {"any": {"default": {"rows": 32, "columns": 32, "inner": 16}}, "sm_90": {"320": {"rows": 64}}}
    wrote(table, {"geglu_linear": entries})
    assert tuned("geglu_linear", "320", 90) == {**shipped, "rows": 64, "columns": 32, "inner": 16}
    assert tuned("geglu_linear", "640", 90)["rows"] == 32
    with dispatch.configured("geglu_linear", rows=128):
        assert tuned("geglu_linear", "320", 90)["rows"] == 128


def test_the_variable_names_another_table(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote(table, {"geglu": {"any": {"default": {"num_warps": 2}}}})
    wrote(tmp_path / "other.json", {"geglu": {"any": {"default": {"num_warps": 8}}}})
    assert tuned("geglu", "320")["num_warps"] == 2
    monkeypatch.setenv("ANIMX_TUNING", str(tmp_path / "other.json"))
    assert tuned("geglu", "320")["num_warps"] == 8
    monkeypatch.setenv("ANIMX_TUNING", "off")
    assert tuned("geglu", "320") == tuning.shipped()["geglu"]["any"]["default"]
    with pytest.raises(AnimxError, match="ANIMX_TUNING=off names no table"):
        tune.bench_tune(["geglu"], device="cpu", staged=on_the_cpu)


DAMAGED = {
    "cut off": '{"ops": {"geglu"',
    "not text": b"\xff\xfe\x00",
    "a list": "[]",
    "ops is a list": '{"ops": []}',
    "unknown operator": '{"ops": {"gegl": {}}}',
    "no object": '{"ops": {"geglu": {"any": 3}}}',
    "unknown entry": '{"ops": {"geglu": {"any": {"default": {"num_warps": 8, "warp": 4}}}}}',
    "no power of two": '{"ops": {"geglu": {"any": {"default": {"num_warps": 8, "columns": 100}}}}}',
    "negative": '{"ops": {"geglu": {"any": {"default": {"num_warps": -4}}}}}',
    "true": '{"ops": {"geglu": {"any": {"default": {"num_warps": true}}}}}',
    "no route": '{"ops": {"geglu_linear": {"any": {"default": {"route": "fast"}}}}}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_table_is_said_once_and_ignored_and_never_written_over(
    text: str | bytes, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = {op: tuned(op, "320") for op in ("geglu", "geglu_linear")}
    table.parent.mkdir(parents=True)
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    tuning.reread()
    with caplog.at_level(logging.WARNING, "animx.kernels"):
        for _ in range(2):
            assert {op: tuned(op, "320") for op in shipped} == shipped
    assert [str(table) in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(InputError, match="Mend or remove it"):
        tune.opened(table, shared=True)


def test_a_table_that_is_named_and_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tuned("geglu", "320")
    assert not caplog.records
    monkeypatch.setenv("ANIMX_TUNING", str(tmp_path / "none.json"))
    tuned("geglu", "320")
    assert "no such file" in caplog.text


def test_every_candidate_is_a_configuration_the_table_may_hold(table: Path) -> None:
    assert set(tuning.SEARCH) == set(tuning.shipped()) - {"selective_scan_backward"}
    for op in tuning.SEARCH:
        found = list(tuning.candidates(op))
        assert 2 <= len(found) <= 100
        wrote(table, {op: {"any": {str(at): one for at, one in enumerate(found)}}})
        assert tuning.read_table(table)


# ---- the search ---------------------------------------------------------------------------------------------------


class Drawn:
    """A stage whose times and faults are drawn by chance, the same for the same seed."""

    def __init__(self, seed: int, share_right: float) -> None:
        self.seed, self.share = seed, share_right

    def _of(self, config: tuning.Config, what: str) -> float:
        return random.Random(f"{self.seed} {what} {sorted(config.items())}").random()

    def why_not(self, config: tuning.Config) -> str | None:
        return None if self._of(config, "right") < self.share else "wrong in float32"

    def seconds(self, configs: Sequence[tuning.Config], brief: bool) -> list[float]:
        return [0.001 + self._of(one, "time") for one in configs]


@pytest.mark.parametrize("op", tuning.SEARCH)
@pytest.mark.parametrize("seed", range(4))
def test_the_fastest_right_configuration_wins(op: str, seed: int) -> None:
    stage, job = Drawn(seed, 0.5), tune.Job(LookUp(op, "320", 90))
    found = tune.search(job, stage)
    present = {name: value for name, value in tuned(op, "320", 90).items() if name != "origin"}
    everything = [present]
    everything += [new for one in tuning.candidates(op) if (new := {**present, **one}) != present]
    right = [one for one in everything if stage.why_not(one) is None]
    assert found.config in right
    assert [found.seconds] == [min(stage.seconds(right, True))] == stage.seconds([found.config], True)
    assert found.before == (stage.seconds([present], True)[0] if present in right else None)
    assert found.tried == len(everything) == len(right) + sum(found.dropped.values())


def test_where_nothing_is_right_nothing_is_chosen() -> None:
    with pytest.raises(CheckError, match="geglu/sm_90/320: none of"):
        tune.search(tune.Job(LookUp("geglu", "320", 90)), Drawn(0, -1.0))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuning.Config]:
    """`geglu` with a body that asks the table, and faults and times that depend on the answer; its last answer."""
    load_ops()
    real, last = OPS["geglu"], {}

    def body(x: Any) -> Any:
        last.clear()
        last.update(tuned("geglu", str(x.shape[-1]), 90))
        if last["num_warps"] == 2:
            raise RuntimeError("out of resources: shared memory")
        out = real.reference(x)
        if last["columns"] == 1024 and x.dtype == torch.bfloat16:
            return out * 1.1
        if last["columns"] == 256 and x.dtype == torch.float32:
            return torch.full_like(out, float("nan"))
        return out

    def clock(calls: Mapping[str, Callable[[], object]], *_: Any) -> dict[str, Spread]:
        found = {}
        for name, call in calls.items():
            call()
            found[name] = Spread.of([last["columns"] * 1e-3 + last["elements"] * 1e-6 + last["num_warps"] * 1e-7])
        return found

    def made(device: Any, dtype: torch.dtype, seed: int) -> Inputs:
        return Inputs((dispatch.draw((6, 64), device, dtype, seed),), {})

    monkeypatch.setitem(OPS, "geglu", replace(real, function=body, cases=lambda: {"six": Case(made, official=True)}))
    monkeypatch.setattr(tune, "in_turns", clock)
    return lambda: dict(last)


def on_the_cpu(job: tune.Job) -> tune.Card:
    return tune.Card(job, torch.device("cpu"), torch.bfloat16, 0.1)


def test_a_fast_configuration_that_is_wrong_or_does_not_run_never_wins_and_the_table_is_what_runs(
    stand_in: Callable[[], tuning.Config], table: Path
) -> None:
    found = tune.bench_tune(["geglu"], device="cpu", staged=on_the_cpu)
    (row,) = found["rows"]
    best = {"columns": 512, "elements": 1024, "num_warps": 4}
    assert (row["op"], row["card"], row["key"], row["config"]) == ("geglu", "sm_90", "64", best)
    # of 3 x 3 x 3: 9 do not run, and of the other 18 a third is wrong in each type
    assert row["dropped"] == {"does not run: RuntimeError": 9, "wrong in bfloat16": 6, "wrong in float32": 6}
    assert row["tried"] == 27
    assert row["before_ms"] > row["ms"]
    assert (found["file"], found["read"]) == (str(table), True)

    entries = tuned("geglu", "64", 90)
    assert {name: entries[name] for name in best} == best
    assert tuned("geglu", "128", 90) == tuning.shipped()["geglu"]["any"]["default"]
    assert entries["origin"] == "measured"
    assert set(entries["measured"]) == {"card", "date", "commit", "dtype", "ms", "before_ms"}
    OPS["geglu"].function(torch.ones(2, 64))
    assert {name: stand_in()[name] for name in best} == best


def test_a_second_search_keeps_what_others_wrote(stand_in: Callable[[], tuning.Config], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    other = {"guided_step": {"sm_80": {"default": {"num_warps": 8}}}, "geglu": {"sm_90": {"64": {"num_warps": 8}}}}
    wrote(file, other)
    found = tune.bench_tune(["geglu"], device="cpu", out=file, staged=on_the_cpu)
    after = tuning.read_table(file)
    assert not found["read"]
    assert after["guided_step"] == other["guided_step"]
    assert after["geglu"]["sm_90"]["64"]["num_warps"] == 4


def test_an_operator_that_asks_no_table_has_nothing_to_tune() -> None:
    with pytest.raises(AnimxError, match="no Triton body") as caught:
        tune.bench_tune(["geglu"], ["small"], device="cpu", staged=on_the_cpu)
    assert caught.value.exit_code == 2


def test_real_bodies_are_searched_in_the_interpreter(monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    monkeypatch.setenv("ANIMX_KERNELS", "interpret")
    few = {"columns": (512,), "elements": (1024,)}
    monkeypatch.setattr(tuning, "SEARCH", {"geglu": (few,), "geglu_backward": (few,)})
    table.parent.mkdir(parents=True)
    place = torch.device("cpu")
    found = tune.bench_tune(
        ["geglu", "geglu_backward"], ["small"], device="cpu", dtype="float32", seconds=0.01, out=table,
        staged=lambda job: tune.Card(job, place, torch.float32, 0.01),
    )  # fmt: skip
    assert {row["op"] for row in found["rows"]} == {"geglu", "geglu_backward"}
    assert all((row["tried"], row["dropped"]) == (2, {}) for row in found["rows"])
    assert all(row["ms"] <= row["before_ms"] for row in found["rows"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_search_on_a_gpu_finds_nothing_slower_than_before(table: Path) -> None:
    found = tune.bench_tune(["guided_step"], device="cuda", seconds=0.05)
    assert all(row["ms"] <= row["before_ms"] for row in found["rows"])
    assert tuning.read_table(table)


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--tune",), ("needs a CUDA device",)),
        (("--tune", "--check"), ("--tune", "--check")),
        (("--tune", "--providers", "torch"), ("--tune", "--providers")),
        (("--out", "t.json"), ("--out", "--tune")),
    ],
    ids=str,
)
def test_a_search_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, table: Path, asked: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(animx("bench", "ops", *asked), 2, *words)
    assert not table.parent.exists()


def test_the_command_shows_what_won_and_how_to_use_a_table_elsewhere(
    stand_in: Callable[[], tuning.Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tune, "bench_tune", partial(tune.bench_tune, staged=on_the_cpu))
    asked = ("bench", "ops", "--tune", "--op", "geglu", "--device", "cpu", "--dtype", "bfloat16")
    ran = animx(*asked, "--out", tmp_path / "mine.json")
    assert ran.code == 0, ran.err
    assert "geglu sm_90 64" in ran.out
    assert "columns 512, elements 1024, num_warps 4" in ran.out
    assert f"to use it: export ANIMX_TUNING={tmp_path / 'mine.json'}" in ran.out
    found = animx(*asked, "--json").json
    assert found["read"]
    assert found["ratios"] == {"geglu sm_90 64/before_over_tuned": pytest.approx(0.5140484 / 0.5130244, abs=1e-3)}

    (tmp_path / "mine.json").write_text("{", encoding="utf-8")
    refused(animx(*asked, "--out", tmp_path / "mine.json"), 3, "mine.json", "no JSON")
