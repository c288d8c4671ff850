"""Denoising a segment: windows blended at every step, guidance, known frames re-noised.

Free functions over a velocity callable; no network class is known here.  Latents are [1, 4, F, h, w].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.diffusion.steppers import Stepper
from animx.model.schedule import guided, released_noise

Velocity = Callable[[Tensor, Tensor, int], Tensor]
"""(latents of a window [1, 4, F, h, w], timestep [1], number of the window) -> velocity of the same shape."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: its scale and the share of the steps in which it acts."""

    scale: float = 2.5
    """1 = off: the unconditional branch is not run."""
    start: float = 0.0
    """First step that is guided, as a share of all steps, 0..1."""
    end: float = 1.0
    """Steps from this share on are not guided."""

    def acts(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps` is guided."""
        return self.scale != 1.0 and self.start <= index / steps < self.end


def segment_noise(seed: int, segment: int, shape: tuple[int, int, int, int, int]) -> Tensor:
    """Start noise of a segment on the CPU.  Segment 0 draws as the released code does, so a short clip equals it."""
    if segment:
        seed = int(np.random.SeedSequence([seed, segment]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return released_noise(shape, torch.Generator().manual_seed(seed))


def denoise(
    stepper: Stepper,
    noise: Tensor,
    windows: Sequence[tuple[int, int]],
    weights: NDArray[np.float64],
    conditional: Velocity,
    unconditional: Velocity,
    guidance: Guidance,
    known: Tensor | None = None,
    on_step: Callable[[int, int, Tensor], None] | None = None,
    evaluate: Callable[[Sequence[Callable[[], Tensor]], Tensor], list[Tensor]] | None = None,
) -> Tensor:
    """Latents of a segment from its noise.

    `evaluate(tasks, like)` runs the network calls of one step and returns their results in order (see `Ranks`).

    `known` [1, 4, K, h, w] are the finished latents of the first K frames: before every step they are put at that
    step's noise level with the segment's own noise, and come out unchanged.
    """
    count = 0 if known is None else known.shape[2]
    steps = len(stepper.timesteps)
    x = noise
    for index, t in enumerate(stepper.timesteps):
        if known is not None:
            x = torch.cat([stepper.noised(known, noise[:, :, :count], index), x[:, :, count:]], dim=2)
        time = torch.full((1,), t, dtype=torch.int64, device=x.device)
        velocity = torch.zeros_like(x)
        is_guided = guidance.acts(index, steps)
        branches = (conditional, unconditional) if is_guided else (conditional,)
        tasks = [
            partial(branch, x[:, :, first:last], time, number)
            for number, (first, last) in enumerate(windows)
            for branch in branches
        ]
        results = iter(evaluate(tasks, x) if evaluate is not None else (task() for task in tasks))
        for number, (first, last) in enumerate(windows):
            v = next(results)
            if is_guided:
                v = guided(v, next(results), guidance.scale)
            if len(windows) == 1:
                velocity = v
            else:
                share = torch.from_numpy(weights[number, first:last]).to(v.device, v.dtype).view(1, 1, -1, 1, 1)
                velocity[:, :, first:last] += share * v
        x = stepper.step(x, velocity.to(x.dtype), index)
        if on_step is not None:
            on_step(index + 1, steps, x)
    if known is not None:
        x = torch.cat([known, x[:, :, count:]], dim=2)
    return x
