"""Schedulers behind one small interface: the released DDIM, and diffusers' by name or object.

A stepper owns the timesteps of one run and moves latents from one noise level to the next.  Steppers with history
(dpm++2m, unipc) serve one segment; make a new one for the next.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from animx.errors import UsageError, nearest
from animx.model.schedule import TRAIN_STEPS, ddim_coefficients, ddim_step, ddim_steps, zero_snr_schedule

SCHEDULERS = ("released", "ddim", "dpm++2m", "unipc")


class Stepper(Protocol):
    """From noise to latents in `len(timesteps)` steps."""

    timesteps: list[int]
    """Training timesteps, descending."""

    def step(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        """Latents after step `index`, from the latents x [B, 4, F, h, w] before it."""

    def noised(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """Clean latents as they look before step `index`; at `index` = number of steps, after the last."""

    def clean(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        """The clean latents that the velocity at step `index` points to."""


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

    def clean(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        """See `Stepper`."""
        signal, share = self.schedule.signal_noise(self.timesteps[index], x)
        return signal * x - share * velocity

    def coefficients(self, index: int, like: Tensor) -> Tensor:
        """[6] in the type and on the device of `like`: what `animx_kernels.guided_step` needs to make step `index`."""
        return ddim_coefficients(self.schedule, like, self.timesteps[index], self.stride)


class DiffusersStepper:
    """A diffusers scheduler object; its configuration is copied, so that every segment starts without history.

    Its betas, prediction type (velocity) and spacing are its own.  `eta` is for DDIM, with noise from `generator`.
    """

    def __init__(self, scheduler: Any, steps: int, eta: float = 0.0, generator: torch.Generator | None = None) -> None:
        kind = type(scheduler).__name__
        if scheduler.config.get("prediction_type") != "v_prediction":
            raise UsageError(f"scheduler {kind}: the network predicts velocities. Set prediction_type='v_prediction'")
        self.scheduler = type(scheduler).from_config(scheduler.config)
        self.scheduler.set_timesteps(steps)
        if float(self.scheduler.init_noise_sigma) != 1.0:
            raise UsageError(
                f"scheduler {kind}: scales its start noise, which this sampler does not. Use DDIM or UniPC"
            )
        self.extra: dict[str, Any] = {"eta": eta, "generator": generator} if kind == "DDIMScheduler" else {}
        self.timesteps = [int(t) for t in self.scheduler.timesteps]

    def step(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        """See `Stepper`."""
        out: Tensor = self.scheduler.step(velocity, self.scheduler.timesteps[index], x, **self.extra).prev_sample
        return out

    def noised(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """See `Stepper`."""
        if index == len(self.timesteps):
            return latents
        signal, share = self._levels(index)
        return latents * signal + noise * share

    def clean(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        """See `Stepper`."""
        signal, share = self._levels(index)
        return x * signal - velocity * share

    def _levels(self, index: int) -> tuple[float, float]:
        ac = float(self.scheduler.alphas_cumprod[self.timesteps[index]])
        return ac**0.5, (1 - ac) ** 0.5


def scheduler_named(name: str) -> Any:
    """A diffusers scheduler with the released betas (zero terminal SNR), velocity prediction, trailing spacing."""
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
    if name == "ddim":
        return DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    if name == "dpm++2m":
        return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    return UniPCMultistepScheduler(**common, solver_order=2)


def make_stepper(
    scheduler: str | Any, steps: int, *, eta: float = 0.0, generator: torch.Generator | None = None
) -> Stepper:
    """A stepper of `steps` steps for a scheduler by name (`SCHEDULERS`) or a diffusers scheduler object.

    `eta` 0..1 is the share of fresh noise in each DDIM step, drawn from `generator`; other schedulers refuse it.
    Errors: `UsageError`.
    """
    if steps < 1:
        raise UsageError(f"--steps {steps}: at least 1")
    if not isinstance(scheduler, str):
        if eta and type(scheduler).__name__ != "DDIMScheduler":
            raise UsageError(f"eta {eta:g}: only DDIM takes fresh noise. Leave it out")
        return DiffusersStepper(scheduler, steps, eta, generator)
    check_scheduler(scheduler, steps, eta)
    if scheduler == "released":
        return ReleasedStepper(steps)
    return DiffusersStepper(scheduler_named(scheduler), steps, eta, generator)


def check_scheduler(name: str, steps: int, eta: float = 0.0) -> None:
    """Refuse (`UsageError`) an unknown scheduler and step counts or an eta that it cannot take."""
    if name not in SCHEDULERS:
        raise UsageError(f"unknown scheduler '{name}'.{nearest(name, SCHEDULERS)} Known: {', '.join(SCHEDULERS)}")
    if not 0 <= eta <= 1:
        raise UsageError(f"eta {eta:g}: use 0 to 1")
    if eta and name != "ddim":
        raise UsageError(f"eta {eta:g}: scheduler '{name}' takes no fresh noise. Use --scheduler ddim")
    if name == "released":
        ddim_steps(steps)
    elif not 1 <= steps <= TRAIN_STEPS:
        raise UsageError(f"--steps {steps}: use 1 to {TRAIN_STEPS}")
