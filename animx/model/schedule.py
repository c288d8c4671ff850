"""The released noise schedule and its DDIM step: zero terminal SNR, velocity prediction, 31-step spacing (facts 6).

Tables are float64 numpy; a value is cast to the latent's dtype where it is used, as released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.errors import UsageError

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """Cumulative signal share of each training step, float64 [1000]; ac[999] = 0 exactly."""

    alphas_cumprod: NDArray[np.float64]

    @property
    def betas(self) -> NDArray[np.float64]:
        """Per-step noise shares recovered from the cumulative ones; betas[999] = 1."""
        ratio = self.alphas_cumprod[1:] / self.alphas_cumprod[:-1]
        return 1 - np.concatenate([self.alphas_cumprod[:1], ratio])

    def signal_noise(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(ac) and sqrt(1 - ac) at t (an int, or [B]), shaped to multiply `like` [B, ...]."""
        ac = torch.from_numpy(self.alphas_cumprod)[torch.as_tensor(t).reshape(-1).cpu()]
        shape = (-1,) + (1,) * (like.ndim - 1)
        return tuple(x.to(like.device, like.dtype).view(shape) for x in (ac.sqrt(), (1 - ac).sqrt()))  # type: ignore[return-value]

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(ac) x0 + sqrt(1 - ac) noise."""
        signal, share = self.signal_noise(t, x0)
        return signal * x0 + share * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The training target v = sqrt(ac) noise - sqrt(1 - ac) x0."""
        signal, share = self.signal_noise(t, x0)
        return signal * noise - share * x0


def zero_snr_schedule(start: float = 0.00085, end: float = 0.012) -> Schedule:
    """Squared-linear betas, rescaled so that the last step holds no signal (Lin et al. 2023, algorithm 1)."""
    betas = np.linspace(start**0.5, end**0.5, TRAIN_STEPS, dtype=np.float64) ** 2
    a = np.sqrt(np.cumprod(1 - betas))
    first, last = a[0], a[-1]
    a = (a - last) * (first / (first - last))
    return Schedule(a**2)


def ddim_steps(steps: int) -> list[int]:
    """Timesteps of the released spacing, descending: 1 + arange(0, 1000, 1000 // n).  30 gives 31, 50 gives 50."""
    if not 1 <= steps <= 500:
        raise UsageError(f"--steps {steps}: use 1 to 500")
    if not _can_step(steps):
        near = min((n for n in range(1, 501) if _can_step(n)), key=lambda n: abs(n - steps))
        raise UsageError(
            f"--steps {steps}: the released spacing then starts at t = 999, where its step divides by zero. "
            f"Use {near}, or --scheduler ddim"
        )
    return list(range(1, TRAIN_STEPS + 1, TRAIN_STEPS // steps))[::-1]


def _can_step(steps: int) -> bool:
    """Whether the released spacing stays below t = 999, where no signal is left."""
    return range(1, TRAIN_STEPS + 1, TRAIN_STEPS // steps)[-1] < TRAIN_STEPS - 1


def ddim_coefficients(schedule: Schedule, like: Tensor, t: int, stride: int) -> Tensor:
    """[6] for the step from t to max(t - stride, 0), in the type and on the device of `like`.

    sqrt(ac), sqrt(1 - ac), sqrt(1 / ac), sqrt(1 / ac - 1) at t; sqrt(ac), sqrt(1 - ac) after it, rounded as released.
    """
    ac = schedule.alphas_cumprod
    before = [np.sqrt(ac[t]), np.sqrt(1 - ac[t]), np.sqrt(1 / ac[t]), np.sqrt(1 / ac[t] - 1)]
    after = torch.tensor(ac[max(t - stride, 0)], dtype=torch.float64).to(like.dtype)
    found = torch.stack([*torch.tensor(before, dtype=torch.float64).to(like.dtype), after.sqrt(), (1 - after).sqrt()])
    return found.to(like.device)


def ddim_step(schedule: Schedule, x: Tensor, v: Tensor, t: int, stride: int) -> Tensor:
    """One deterministic DDIM step (eta 0) from t to max(t - stride, 0); x, v any shape [B, ...]."""
    signal, noise, inverse, ratio, signal_after, noise_after = ddim_coefficients(schedule, x, t, stride)
    x0 = signal * x - noise * v
    eps = (inverse * x - x0) / ratio
    return signal_after * x0 + noise_after * eps


def sample(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: Schedule,
    steps: int,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Denoise `noise` [B, 4, F, h, w] by the released DDIM; `velocity(x, t [B])` is guided already."""
    timesteps = ddim_steps(steps)
    stride = TRAIN_STEPS // steps
    x = noise
    for i, t in enumerate(timesteps):
        v = velocity(x, torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device))
        x = ddim_step(schedule, x, v, t, stride)
        if on_step is not None:
            on_step(i + 1, len(timesteps), x)
    return x


def guided(conditional: Tensor, unconditional: Tensor, scale: float = 2.5) -> Tensor:
    """Classifier-free guidance as released: u + scale * (c - u); no rescale, no clamp."""
    return unconditional + scale * (conditional - unconditional)


def released_noise(shape: tuple[int, int, int, int, int], generator: torch.Generator, offset: float = 0.1) -> Tensor:
    """The released start noise: the (unused) posterior draw [1, 4, h, w], then noise, then per-frame offset noise."""
    _, channels, frames, h, w = shape
    torch.randn(1, channels, h, w, generator=generator)
    noise = torch.randn(*shape, generator=generator)
    return noise + offset * torch.randn(1, channels, frames, 1, 1, generator=generator)
