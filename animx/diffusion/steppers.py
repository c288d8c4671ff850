"""Schedulers behind one small interface: the released DDIM, and diffusers' by name with trailing spacing.

A stepper owns the timesteps of one run and moves latents from one noise level to the next.  Steppers with history
(dpm++2m, unipc) serve one segment; make a new one for the next.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from animx.errors import UsageError, nearest
from animx.model.schedule import TRAIN_STEPS, ddim_step, ddim_steps, zero_snr_schedule

SCHEDULERS = ("released", "ddim", "dpm++2m", "unipc")


class Stepper(Protocol):
    """From noise to latents in `len(timesteps)` steps."""

    timesteps: list[int]
    """Training timesteps, descending."""

    def step(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        """Latents after step `index`, from the latents x [B, 4, F, h, w] before it."""

    def noised(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """Clean latents as they look before step `index`; at `index` = number of steps, after the last."""


class ReleasedStepper:
    """The released DDIM: eta 0, spacing 1 + arange(0, 1000, 1000 // n), last step onto index 0."""

    def __init__(self, steps: int) -> None:
        self.schedule = zero_snr_schedule()
        self.timesteps = ddim_steps(steps)
        self.stride = TRAIN_STEPS // steps

    def step(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        """See `Stepper`."""
        return ddim_step(self.schedule, x, velocity, self.timesteps[index], self.stride)

    def noised(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """See `Stepper`."""
        if index == len(self.timesteps):
            return latents
        return self.schedule.add_noise(latents, noise, torch.tensor([self.timesteps[index]]))


class DiffusersStepper:
    """A diffusers scheduler with the released betas (zero terminal SNR), velocity prediction, trailing spacing."""

    def __init__(self, name: str, steps: int, eta: float = 0.0, generator: torch.Generator | None = None) -> None:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

        common: dict[str, Any] = {
            "num_train_timesteps": TRAIN_STEPS,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        }
        self.extra: dict[str, Any] = {}
        if name == "ddim":
            self.scheduler: Any = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
            self.extra = {"eta": eta, "generator": generator}
        elif name == "dpm++2m":
            self.scheduler = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
        else:
            self.scheduler = UniPCMultistepScheduler(**common, solver_order=2)
        self.scheduler.set_timesteps(steps)
        self.timesteps = [int(t) for t in self.scheduler.timesteps]

    def step(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        """See `Stepper`."""
        out: Tensor = self.scheduler.step(velocity, self.scheduler.timesteps[index], x, **self.extra).prev_sample
        return out

    def noised(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """See `Stepper`."""
        if index == len(self.timesteps):
            return latents
        t = self.timesteps[index]
        ac = zero_snr_schedule().alphas_cumprod[t]
        return latents * float(ac**0.5) + noise * float((1 - ac) ** 0.5)


def make_stepper(name: str, steps: int, *, eta: float = 0.0, generator: torch.Generator | None = None) -> Stepper:
    """The scheduler called `name` with `steps` steps; unknown names are a `UsageError`."""
    if name not in SCHEDULERS:
        raise UsageError(f"unknown scheduler '{name}'.{nearest(name, SCHEDULERS)} Known: {', '.join(SCHEDULERS)}")
    if steps < 1:
        raise UsageError(f"--steps {steps}: at least 1")
    if name == "released":
        return ReleasedStepper(steps)
    return DiffusersStepper(name, steps, eta, generator)
