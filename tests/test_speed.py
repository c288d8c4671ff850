"""`--speed`: what the words stand for, what they cost, how far they stray, and that they change nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hall import animx

from animx.job import ChunkStore

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from wet import Stage, good, side_car  # noqa: E402

from animx.diffusion.caching import GuidanceCache  # noqa: E402
from animx.diffusion.options import EngineOptions  # noqa: E402
from animx.diffusion.sampler import Guidance, denoise  # noqa: E402
from animx.diffusion.speed import SPEEDS  # noqa: E402
from animx.diffusion.steppers import make_stepper  # noqa: E402
from animx.errors import UsageError  # noqa: E402
from animx.model.schedule import zero_snr_schedule  # noqa: E402

SHAPE = (1, 4, 3, 8, 6)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def guidance_of(options: EngineOptions) -> Guidance:
    return Guidance(options.guidance, options.guidance_start, options.guidance_end, options.guidance_every)


def steps_of(options: EngineOptions) -> int:
    return len(make_stepper(options.scheduler, options.steps).timesteps)


def denoised(options: EngineOptions, branches: tuple[Any, Any], noise: Any, scale: float = 2.5) -> Any:
    """Latents of one window under these options."""
    stepper = make_stepper(options.scheduler, options.steps)
    guidance = Guidance(scale, options.guidance_start, options.guidance_end, options.guidance_every)
    frames = noise.shape[2]
    return denoise(stepper, noise, [(0, frames)], np.ones((1, frames)), *branches, guidance)


def test_a_word_fills_in_what_is_not_named() -> None:
    fast = EngineOptions.of({"speed": "fast", "steps": 20, "scheduler": None})
    assert (fast.scheduler, fast.steps, fast.guidance_every) == ("unipc", 20, SPEEDS["fast"]["guidance_every"])
    assert EngineOptions.of({"speed": "exact"}) == EngineOptions()


def test_an_unknown_word_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"--speed 'fastes': use exact, fast, fastest\. Did you mean 'fastest'"):
        EngineOptions.of({"speed": "fastes"})


def test_the_puppet_refuses_it_naming_both(tmp_path: Path) -> None:
    ran = animx("render", "ref.png", "dance.mp4", "--engine", "puppet", "--speed", "fast")
    assert ran.code == 2
    assert "--speed cannot be used with engine 'puppet'" in ran.error


@cache
def counted_flops(conditional: bool) -> float:
    from animx.counting.report import figures
    from animx.counting.stacks import TINY, Setting, count

    small = Setting("animx", frames=4, width=64, height=64, conditional=conditional, config=TINY)
    return figures(count(small))["teraflops"]


def cost(speed: str) -> float:
    """TFLOP of one window: counted passes of each branch (their size cancels in the shares)."""
    options = EngineOptions.of({"speed": speed})
    steps, guidance = steps_of(options), guidance_of(options)
    both = sum(guidance.runs(i, steps) for i in range(steps))
    return steps * counted_flops(True) + both * counted_flops(False)


def test_fast_costs_a_quarter_of_exact_by_count_and_fastest_less() -> None:
    exact, fast, fastest = (cost(speed) for speed in ("exact", "fast", "fastest"))
    assert exact == pytest.approx(62 * counted_flops(True), rel=0.01)
    assert fast <= 0.25 * exact
    assert fastest <= 0.7 * fast


def test_the_steps_run_as_many_passes_as_they_are_charged_for() -> None:
    for speed in SPEEDS:
        options = EngineOptions.of({"speed": speed})
        calls: list[bool] = []

        def branch(sees: bool, calls: list[bool] = calls) -> Callable[..., Any]:
            def velocity(x: Any, t: Any, number: int) -> Any:
                calls.append(sees)
                return torch.zeros_like(x)

            return velocity

        denoised(options, (branch(True), branch(False)), torch.zeros(SHAPE))
        assert len(calls) == guidance_of(options).passes(steps_of(options))
        assert calls.count(True) == steps_of(options)


def test_reusing_a_difference_that_does_not_change_changes_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    apart = torch.randn(SHAPE, generator=g, dtype=torch.float64)
    noise = torch.randn(SHAPE, generator=g, dtype=torch.float64)

    def run(every: int, grows: float) -> Any:
        def one(x: Any, t: Any, number: int) -> Any:
            return 0.3 * x

        def other(x: Any, t: Any, number: int) -> Any:
            return 0.3 * x + (1 + grows * float(t) / 1000) * apart

        options = EngineOptions.of({"speed": "fast", "guidance_every": every})
        return denoised(options, (one, other), noise)

    assert torch.allclose(run(1, 0), run(3, 0), rtol=0, atol=1e-12)
    assert not torch.allclose(run(1, 1), run(3, 1), rtol=0, atol=1e-3)  # and one that changes is really reused


def test_windows_keep_their_own_differences_until_reset() -> None:
    cache = GuidanceCache()
    a, b, zero = torch.ones(1), torch.full((1,), 5.0), torch.zeros(1)
    cache.fresh(0, a, zero, 2.5, keep=True)
    cache.fresh(1, b, zero, 2.5, keep=True)
    assert float(cache.reused(0, zero, 2.5)) == 1.5
    assert float(cache.reused(1, zero, 2.5)) == 7.5
    cache.reset()
    with pytest.raises(KeyError):
        cache.reused(0, zero, 2.5)


def mixture(seed: int) -> tuple[Any, Any]:
    """Exact velocities of two known distributions of latents, one narrower (conditional) than the other."""
    schedule, size = zero_snr_schedule(), int(np.prod(SHAPE))
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(12, 4, 1, 3, 3, generator=g, dtype=torch.float64)
    means = torch.nn.functional.interpolate(coarse, size=SHAPE[2:], mode="trilinear").reshape(12, size)

    def branch(means: Any, width: float) -> Callable[..., Any]:
        def velocity(x: Any, t: Any, number: int) -> Any:
            level = float(schedule.alphas_cumprod[int(t)])
            signal, share = level**0.5, (1 - level) ** 0.5
            flat, spread = x.reshape(1, size), level * width**2 + share**2
            odds = torch.softmax(-((flat - signal * means) ** 2).sum(1) / (2 * spread), 0)
            clean = means + signal * width**2 / spread * (flat - signal * means)
            clean = (odds[:, None] * clean).sum(0, keepdim=True)
            return (signal * (flat - signal * clean) / share - share * clean).reshape(SHAPE)

        return velocity

    return branch(means[:4], 0.3), branch(means, 0.35)


def test_fast_is_nearer_to_many_steps_than_the_released_schedule_at_its_cost() -> None:
    """On distributions whose velocities are known; the released schedule gets 7 steps, 16 passes against 15."""
    fast = EngineOptions.of({"speed": "fast"})
    assert guidance_of(fast).passes(steps_of(fast)) <= 2 * steps_of(EngineOptions(steps=7))
    nearer = []
    for seed in range(4):
        branches = mixture(seed)
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64)
        many = denoised(EngineOptions(steps=250), branches, noise)

        def off(given: dict[str, Any], branches: Any = branches, noise: Any = noise, many: Any = many) -> float:
            return float((denoised(EngineOptions.of(given), branches, noise) - many).norm() / many.norm())

        nearer.append(off({"speed": "fast"}) < off({"steps": 7}))
        assert off({"speed": "fast"}) < 0.15
    assert sum(nearer) >= 3


def test_a_fast_render_tells_its_speed_and_is_taken_up_again_to_the_same_bytes(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two segments; the second run breaks after the first one was kept."""
    monkeypatch.chdir(tmp_path)
    speed = ("--speed", "fast", "--steps", 4, "--set", "animate-x.windows=1", "-q")
    good(stage.render("whole.mp4", *speed))
    options = side_car("whole.mp4")["options"]
    named = ("speed", "scheduler", "steps", "guidance_end", "guidance_every")
    assert [options[f"animate-x.{name}"] for name in named] == ["fast", "unipc", 4, 0.75, 3]

    def broken(self: ChunkStore, number: int, arrays: Any) -> None:
        real(self, number, arrays)
        raise KeyboardInterrupt

    real = ChunkStore.save
    monkeypatch.setattr(ChunkStore, "save", broken)
    assert stage.render("again.mp4", *speed).code == 130
    monkeypatch.setattr(ChunkStore, "save", real)
    good(stage.render("again.mp4", *speed, "--resume"))
    assert Path("again.mp4").read_bytes() == Path("whole.mp4").read_bytes()
