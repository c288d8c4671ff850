"""Denoising by windows, guidance and known frames, on velocities simple enough to know the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from animx.diffusion.sampler import Batching, Guidance, Watch, denoise, segment_noise  # noqa: E402
from animx.diffusion.steppers import SCHEDULERS, make_stepper  # noqa: E402
from animx.diffusion.windows import blend_weights, cut_windows  # noqa: E402
from animx.errors import UsageError  # noqa: E402
from animx.model.schedule import released_noise, sample, zero_snr_schedule  # noqa: E402


def velocity_of(x: Any, t: Any, *_: Any) -> Any:
    """A smooth per-frame velocity: windows cannot matter to it."""
    return 0.6 * x + 0.3 * torch.sin(2 * x) - t.view(-1, 1, 1, 1, 1) / 5000


def run(frames: int, window: int, overlap: int, velocity: Any = velocity_of, **kwargs: Any) -> Any:
    noise = kwargs.pop("noise", None)
    noise = segment_noise(3, 0, (1, 4, frames, 4, 4)).double() if noise is None else noise
    windows = cut_windows(frames, window, overlap)
    guidance = kwargs.pop("guidance", Guidance(1.0))
    stepper = kwargs.pop("stepper", None) or make_stepper("released", 5)
    return denoise(
        stepper,
        noise,
        windows,
        blend_weights(frames, windows),
        velocity,
        kwargs.pop("free", velocity),
        guidance,
        **kwargs,
    )


def test_one_window_without_overlap_equals_no_windows_exactly() -> None:
    noise = segment_noise(3, 0, (1, 4, 6, 4, 4)).double()
    plain = sample(lambda x, t: velocity_of(x, t), noise, zero_snr_schedule(), 5)
    assert torch.equal(run(6, 6, 0), plain)


def test_windows_change_nothing_for_a_velocity_that_sees_single_frames() -> None:
    assert (run(23, 8, 3) - run(23, 23, 0)).abs().max() <= 1e-12


def test_windows_blend_what_neighbouring_windows_disagree_about() -> None:
    out = run(13, 8, 3, velocity=lambda x, t, n: torch.full_like(x, float(n)))
    still = run(13, 13, 0, velocity=lambda x, t, n: torch.zeros_like(x))
    jump = (out - still).mean(dim=(0, 1, 3, 4))
    assert jump[0] == pytest.approx(0.0, abs=1e-12)
    inside = jump[5:8]
    assert (inside.diff().abs() > 0).all()
    assert (inside.sign() == inside[-1].sign()).all()


def test_known_frames_come_out_unchanged_and_steer_nothing_else_by_themselves() -> None:
    known = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = run(9, 9, 0, known=known)
    assert torch.equal(out[:, :, :3], known)
    assert torch.equal(out[:, :, 3:], run(9, 9, 0)[:, :, 3:])


def test_known_frames_are_seen_at_the_noise_level_of_each_step() -> None:
    seen: list[Any] = []

    def spy(x: Any, t: Any, n: int) -> Any:
        seen.append((int(t), x[:, :, 0].clone()))
        return velocity_of(x, t)

    known = torch.ones(1, 4, 1, 4, 4, dtype=torch.float64)
    noise = segment_noise(3, 0, (1, 4, 5, 4, 4)).double()
    run(5, 5, 0, velocity=spy, known=known, noise=noise)
    ac = zero_snr_schedule().alphas_cumprod
    for t, frame in seen:
        assert torch.allclose(frame, ac[t] ** 0.5 * known[:, :, 0] + (1 - ac[t]) ** 0.5 * noise[:, :, 0])


def test_guidance_of_one_never_runs_the_unconditional_branch() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the unconditional branch ran")

    assert torch.equal(run(4, 4, 0, free=never), run(4, 4, 0))


def test_a_guidance_interval_is_felt_and_the_whole_interval_is_the_default() -> None:
    free = {"free": lambda x, t, n: 0.5 * velocity_of(x, t)}
    whole = run(4, 4, 0, guidance=Guidance(2.5), **free)
    assert torch.equal(whole, run(4, 4, 0, guidance=Guidance(2.5, 0.0, 1.0), **free))
    assert not torch.equal(whole, run(4, 4, 0, guidance=Guidance(2.5, 0.0, 0.5), **free))


def test_segment_zero_draws_the_released_noise_and_others_differ() -> None:
    shape = (1, 4, 6, 4, 4)
    assert torch.equal(segment_noise(13, 0, shape), released_noise(shape, torch.Generator().manual_seed(13)))
    assert torch.equal(segment_noise(13, 2, shape), segment_noise(13, 2, shape))
    assert not torch.equal(segment_noise(13, 1, shape), segment_noise(13, 2, shape))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_brings_the_clean_latent_back_from_a_perfect_velocity(name: str) -> None:
    x0, noise = (
        torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)
    )
    stepper = make_stepper(name, 20)
    ac = zero_snr_schedule().alphas_cumprod

    def perfect(x: Any, t: Any, n: int) -> Any:
        signal, share = ac[int(t)] ** 0.5, (1 - ac[int(t)]) ** 0.5
        eps = (x - signal * x0) / share
        return signal * eps - share * x0

    start = stepper.noised(x0, noise, 0)
    out = run(2, 2, 0, velocity=perfect, noise=start, stepper=stepper)
    assert (out - x0).abs().max() <= (0.2 if name == "released" else 2e-2)


@pytest.mark.parametrize(("name", "first"), [("ddim", 999), ("dpm++2m", 999), ("unipc", 999), ("released", 951)])
def test_trailing_spacing_starts_at_pure_noise(name: str, first: int) -> None:
    stepper = make_stepper(name, 20)
    assert stepper.timesteps[0] == first
    assert len(stepper.timesteps) == 20


def test_the_released_spacing_refuses_what_it_cannot_step_from_and_names_a_neighbour() -> None:
    for steps, near in ((27, 26), (9, 8), (500, 250)):
        with pytest.raises(UsageError, match=rf"--steps {steps}: .* Use {near}, or --scheduler ddim"):
            make_stepper("released", steps)
    x = torch.ones(1, 4, 1, 2, 2, dtype=torch.float64)
    for steps in range(1, 501):
        try:
            stepper = make_stepper("released", steps)
        except UsageError:
            continue
        assert torch.isfinite(stepper.step(x, x, 0)).all()


def test_the_clean_latents_of_a_step_are_those_of_a_perfect_velocity() -> None:
    x0, noise = (
        torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)
    )
    for name in SCHEDULERS:
        stepper = make_stepper(name, 10)
        for index, t in enumerate(stepper.timesteps):
            velocity = zero_snr_schedule().velocity(x0, noise, torch.tensor([t]))
            clean = stepper.clean(stepper.noised(x0, noise, index), velocity, index)
            assert (clean - x0).abs().max() <= 2e-3  # diffusers keeps float32 tables, and a trace of signal at t = 999


def test_changed_latents_of_a_watcher_are_gone_on_with() -> None:
    from animx.diffusion.sampler import Watch

    zero = Watch(on_step=lambda index, t, x: torch.zeros_like(x) if index == 4 else None)
    assert run(4, 4, 0, watch=zero).abs().max() == 0
    assert torch.equal(run(4, 4, 0, watch=Watch(on_step=lambda *_: None)), run(4, 4, 0))


def test_rows_go_through_the_network_in_a_fixed_order() -> None:
    windows = [(0, 6), (4, 10), (8, 14)]
    assert Batching().groups(windows, guided=True) == [[(n, sees)] for n in range(3) for sees in (True, False)]
    assert Batching(1, branches=True).groups(windows, guided=True) == [[(n, True), (n, False)] for n in range(3)]
    assert Batching(2).groups(windows, guided=True) == [
        [(0, True), (1, True)], [(0, False), (1, False)], [(2, True)], [(2, False)]]  # fmt: skip
    assert Batching(2, branches=True).groups(windows, guided=True) == [
        [(0, True), (0, False), (1, True), (1, False)], [(2, True), (2, False)]]  # fmt: skip
    assert Batching(9).groups(windows, guided=False) == [[(0, True), (1, True), (2, True)]]


def test_windows_of_unequal_length_never_share_a_pass() -> None:
    windows = [(0, 6), (4, 10), (8, 12), (9, 13), (11, 17)]
    lots = [[n for n, _ in group] for group in Batching(4).groups(windows, guided=False)]
    assert lots == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("branches", [False, True])
def test_batched_windows_equal_windows_one_after_the_other(branches: bool) -> None:
    asked: list[Any] = []

    def together(x: Any, t: Any, rows: Any) -> Any:
        assert len(x) == len(t) == len(rows)
        asked.append(list(rows))
        return torch.cat([velocity_of(x[i : i + 1], t[:1]) * (1.0 if rows[i][1] else 0.5) for i in range(len(x))])

    free = {"free": lambda x, t, n: 0.5 * velocity_of(x, t)}
    out = run(18, 6, 2, together=together, batching=Batching(3, branches=branches), guidance=Guidance(2.5), **free)
    assert {len(rows) for rows in asked} == ({2, 6} if branches else {3})  # four windows: three and one
    assert (out - run(18, 6, 2, guidance=Guidance(2.5), **free)).abs().max() <= 1e-12


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_fresh_noise_of_a_step_has_the_variance_of_its_eta(eta: float) -> None:
    # Song et al. 2020, eq. 16: eta^2 (1 - a') / (1 - a) (1 - a / a') of a step from a to a'.
    def make(seed: int) -> Any:
        return torch.Generator().manual_seed(seed)

    stepper = make_stepper("ddim", 10, eta=eta, generator=make(7))
    still = make_stepper("ddim", 10)
    index = 4
    x, v = torch.randn(2, 1, 4, 40, 50, 50, generator=make(1), dtype=torch.float64)
    after = stepper.step(x, v, index)
    a, b = (float(zero_snr_schedule().alphas_cumprod[stepper.timesteps[i]]) for i in (index, index + 1))
    spread = eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
    clean = stepper.clean(x, v, index)
    noise = (x - a**0.5 * clean) / (1 - a) ** 0.5
    fresh = after - b**0.5 * clean - (1 - b - spread**2) ** 0.5 * noise
    assert float(fresh.std()) == pytest.approx(spread, rel=0.01)
    assert abs(float((fresh * noise).mean())) < 0.01 * spread
    again = make_stepper("ddim", 10, eta=eta, generator=make(7)).step(x, v, index)
    other = make_stepper("ddim", 10, eta=eta, generator=make(8)).step(x, v, index)
    assert torch.equal(after, again)
    assert not torch.equal(after, other)
    assert not torch.equal(after, still.step(x, v, index))


def test_unknown_scheduler_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unipc"):
        make_stepper("unipcc", 10)


def test_guided_unet_sampling_ends_where_the_released_code_ends(shared: Path) -> None:
    from test_model import LATENT, Fixture, fixture_inputs, released_unet

    from animx.model.conditions import Inputs

    fixtures = shared / "reference" / "fixtures"
    f, expected = Fixture(fixtures / "unet.npz"), Fixture(fixtures / "unet_ddim.npz")
    unet = released_unet(f, "release")
    after: list[tuple[int, Any]] = []
    with torch.no_grad():
        conditions = unet.encode(fixture_inputs(f), frames=4, latent=LATENT)
        free = unet.encode(Inputs(), frames=4, latent=LATENT)
        out = denoise(
            make_stepper("released", 4),
            expected["noise"],
            [(0, 4)],
            np.ones((1, 4)),
            lambda x, t, n: unet(x, t, conditions),
            lambda x, t, n: unet(x, t, free),
            Guidance(2.5),
            watch=Watch(lambda _index, t, x: after.append((t, x))),
        )
    assert (out - expected["final"]).abs().max() <= 1e-4
    assert [t for t, _ in after] == expected["t"].tolist()
    assert (torch.stack([x for _, x in after]) - expected["xs"]).abs().max() <= 1e-4
