"""The noise schedule and the released DDIM, against released numbers and by law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")

from animx.errors import UsageError  # noqa: E402
from animx.model.schedule import (  # noqa: E402
    ddim_steps,
    guided,
    released_noise,
    sample,
    zero_snr_schedule,
)


@pytest.fixture(scope="module")
def released(shared: Path) -> Any:
    return np.load(shared / "reference" / "fixtures" / "diffusion.npz", allow_pickle=False)


def toy(x: Any, t: Any, c: Any) -> Any:
    """The fixture's stand-in for the network."""
    share = t.view(-1, 1, 1, 1, 1).float() / 1000
    return 0.6 * x + 0.3 * torch.sin(2 * x) - 0.2 * share + (0 if c is None else c * (0.5 + share))


def test_tables_equal_the_released_ones(released: Any) -> None:
    schedule = zero_snr_schedule()
    assert np.abs(schedule.alphas_cumprod - released["f64/alphas_cumprod"]).max() <= 1e-9
    assert np.abs(schedule.betas - released["f64/betas"]).max() <= 1e-9


def test_the_last_step_holds_no_signal_and_the_first_nearly_all() -> None:
    ac = zero_snr_schedule().alphas_cumprod
    assert ac[-1] == 0.0
    assert ac[0] == pytest.approx(0.99915, abs=1e-5)
    assert (np.diff(ac) < 0).all()


@pytest.mark.parametrize("steps", [4, 10, 30, 50])
def test_guided_sampling_ends_where_the_released_code_ends(released: Any, steps: int) -> None:
    noise, c = torch.from_numpy(released["noise"]), torch.from_numpy(released["cond"])
    assert ddim_steps(steps) == list(released[f"ddim{steps}/t"])
    out = sample(lambda x, t: guided(toy(x, t, c), toy(x, t, None)), noise, zero_snr_schedule(), steps)
    assert (out - torch.from_numpy(released[f"ddim{steps}/final"])).abs().max() <= 1e-4


def test_the_same_seed_draws_the_released_noise(released: Any) -> None:
    noise = released_noise((1, 4, 3, 6, 5), torch.Generator().manual_seed(5))
    assert torch.equal(noise, torch.from_numpy(released["rng/noise"]))


def test_noising_and_velocity_equal_the_released_ones(released: Any) -> None:
    schedule = zero_snr_schedule()
    x0, noise, t = (torch.from_numpy(released[f"q/{name}"]) for name in ("x0", "noise", "t"))
    assert (schedule.add_noise(x0, noise, t) - torch.from_numpy(released["q/xt"])).abs().max() <= 1e-6
    assert (schedule.velocity(x0, noise, t) - torch.from_numpy(released["q/v_target"])).abs().max() <= 1e-6


def test_a_perfect_velocity_brings_the_clean_latent_back() -> None:
    schedule = zero_snr_schedule()
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 4, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([ddim_steps(20)[0]])
    out = sample(lambda _x, t: schedule.velocity(x0, noise, t), schedule.add_noise(x0, noise, t), schedule, 20)
    ac0 = float(schedule.alphas_cumprod[0])
    # The released last step lands on index 0, which still holds a trace of noise.
    assert (out - (ac0**0.5 * x0 + (1 - ac0) ** 0.5 * noise)).abs().max() <= 1e-9


def test_steps_out_of_range_are_refused() -> None:
    for steps in (0, 501):
        with pytest.raises(UsageError, match="--steps"):
            ddim_steps(steps)
