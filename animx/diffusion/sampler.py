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

from animx.diffusion.caching import GuidanceCache
from animx.diffusion.steppers import Stepper
from animx.diffusion.stepping import Stepping
from animx.model.schedule import released_noise

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
    every: int = 1
    """The unconditional branch runs in the first guided step and every so many after it; between, the difference of
    the branches is reused (see `GuidanceCache`)."""

    def acts(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps` is guided."""
        return self.scale != 1.0 and self.start <= index / steps < self.end

    def runs(self, index: int, steps: int) -> bool:
        """Whether step `index` of `steps` runs the unconditional branch."""
        guided_before = sum(self.acts(i, steps) for i in range(index))
        return self.acts(index, steps) and guided_before % self.every == 0

    def passes(self, steps: int) -> int:
        """Passes of the network that `steps` steps take for one window."""
        return sum(2 if self.runs(index, steps) else 1 for index in range(steps))


def segment_noise(seed: int, segment: int, shape: tuple[int, int, int, int, int]) -> Tensor:
    """Start noise of a segment on the CPU.  Segment 0 draws as the released code does, so a short clip equals it."""
    if segment:
        seed = segment_seed(seed, segment)
    return released_noise(shape, torch.Generator().manual_seed(seed))


Row = tuple[int, bool]
"""One network pass: (number of the window, whether it sees the conditions)."""


@dataclass(frozen=True)
class Batching:
    """How many rows share a pass of the network; it decides about the last bits, so it is part of a job."""

    windows: int = 1
    """Windows at once."""
    branches: bool = False
    """Both guidance branches of a window in the same pass."""

    def groups(self, windows: Sequence[tuple[int, int]], *, guided: bool) -> list[list[Row]]:
        """The rows of every pass of a step, in a fixed order: windows as they come, the conditional branch first.

        Windows of unequal length never share a pass; the last pass may hold fewer rows.
        """
        lots: list[list[int]] = []
        for number, (first, last) in enumerate(windows):
            lot = lots[-1] if lots else []
            a, b = windows[lot[0]] if lot else (0, 0)
            if lot and len(lot) < self.windows and b - a == last - first:
                lot.append(number)
            else:
                lots.append([number])
        branches = (True, False) if guided else (True,)
        if self.branches:
            return [[(number, sees) for number in lot for sees in branches] for lot in lots]
        return [[(number, sees) for number in lot] for lot in lots for sees in branches]


Together = Callable[[Tensor, Tensor, Sequence[Row]], Tensor]
"""(latents of several rows [R, 4, F, h, w], timestep [R], the rows) -> velocities of the same shape."""


@dataclass(frozen=True)
class Watch:
    """Who looks on while a segment is denoised."""

    on_step: Callable[[int, int, Tensor], Tensor | None] | None = None
    """(index of the step, its timestep, latents after it) -> None, or changed latents to go on with."""
    on_clean: Callable[[int, Tensor], None] | None = None
    """(index of the step, the clean latents it points to)."""
    clean_every: int = 0
    """Every how many steps `on_clean` is called; 0 = never."""


def segment_seed(seed: int, segment: int, purpose: int = 0) -> int:
    """A seed of its own for each segment and purpose (0 = start noise, 1 = fresh noise of the steps)."""
    words = np.random.SeedSequence([seed, segment, purpose] if purpose else [seed, segment])
    return int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))


def denoise(
    stepper: Stepper,
    noise: Tensor,
    windows: Sequence[tuple[int, int]],
    weights: NDArray[np.float64],
    conditional: Velocity,
    unconditional: Velocity,
    guidance: Guidance,
    known: Tensor | None = None,
    watch: Watch | None = None,
    evaluate: Callable[[Sequence[Callable[[], Tensor]], Tensor], list[Tensor]] | None = None,
    together: Together | None = None,
    batching: Batching | None = None,
) -> Tensor:
    """Latents of a segment from its noise.

    `evaluate(tasks, like)` runs the network calls of one step and returns their results in order (see `Ranks`).
    Rows that share a pass by `batching` go through `together`; without it, every row has a pass of its own.

    `known` [1, 4, K, h, w] are the finished latents of the first K frames: before every step they are put at that
    step's noise level with the segment's own noise, and come out unchanged.
    """
    watch = watch or Watch()
    batching = batching if batching is not None and together is not None else Batching()
    count = 0 if known is None else known.shape[2]
    steps = len(stepper.timesteps)
    cache = GuidanceCache()
    stepping = Stepping.of(stepper, windows, torch.from_numpy(weights), noise)
    x = noise

    def passes(rows: Sequence[Row], x: Tensor, time: Tensor) -> Tensor:
        cut = [x[:, :, slice(*windows[number])] for number, _ in rows]
        if len(rows) > 1 and together is not None:
            return together(torch.cat(cut), time.expand(len(rows)), rows)
        ((number, sees),) = rows
        return (conditional if sees else unconditional)(cut[0], time, number)

    for index, t in enumerate(stepper.timesteps):
        if known is not None:
            x = torch.cat([stepper.noised(known, noise[:, :, :count], index), x[:, :, count:]], dim=2)
        time = torch.full((1,), t, dtype=torch.int64, device=x.device)
        is_guided, runs_both = guidance.acts(index, steps), guidance.runs(index, steps)
        groups = batching.groups(windows, guided=runs_both)
        tasks = [partial(passes, group, x, time) for group in groups]
        done = evaluate(tasks, x) if evaluate is not None else [task() for task in tasks]
        results = {
            row: part[i : i + 1] for group, part in zip(groups, done, strict=True) for i, row in enumerate(group)
        }
        looks = watch.on_clean is not None and watch.clean_every and (index + 1) % watch.clean_every == 0
        if stepping is not None and guidance.every == 1 and done[0].dtype == x.dtype:
            order = range(len(windows))
            unconditioned = [results[n, False] for n in order] if runs_both else None
            x, clean = stepping.advance(x, [results[n, True] for n in order], unconditioned, guidance.scale, index)
        else:
            velocity = torch.zeros_like(x)
            for number, (first, last) in enumerate(windows):
                v = results[number, True]
                if runs_both:
                    v = cache.fresh(number, v, results[number, False], guidance.scale, keep=guidance.every > 1)
                elif is_guided:
                    v = cache.reused(number, v, guidance.scale)
                if len(windows) == 1:
                    velocity = v
                else:
                    share = torch.from_numpy(weights[number, first:last]).to(v.device, v.dtype).view(1, 1, -1, 1, 1)
                    velocity[:, :, first:last] += share * v
            velocity = velocity.to(x.dtype)
            clean = stepper.clean(x, velocity, index) if looks else x
            x = stepper.step(x, velocity, index)
        if looks and watch.on_clean is not None:
            watch.on_clean(index, clean)
        if watch.on_step is not None:
            changed = watch.on_step(index, t, x)
            x = x if changed is None else changed
    if known is not None:
        x = torch.cat([known, x[:, :, count:]], dim=2)
    return x
