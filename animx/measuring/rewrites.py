"""What the exact rewrites save: a few steps of a reduced network with them against the released operator sequence.

Off: conditions, context keys, motion tokens and time embeddings anew in every pass, the motion attention unfolded,
guidance in two passes, as released.  On: all of that once (and counted), one pass for both branches.  Each rewrite is
also taken away alone, so that what it contributes shows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from animx.bench import CheckError
from animx.counting.released import released_velocity
from animx.diffusion.steppers import ReleasedStepper
from animx.diffusion.tiny import fill
from animx.errors import UsageError
from animx.measuring.timing import SCHEMA, surroundings
from animx.model.conditions import Conditions, Inputs
from animx.model.config import UNetConfig
from animx.model.schedule import guided
from animx.model.unet import AnimateXUNet

REDUCED = UNetConfig(
    width=64, multipliers=(1, 2, 2, 2), res_blocks=1, head_dim=16, stem_heads=4, context_dim=64, keypoint_heads=4,
    keypoint_ff=64, resampler_heads=4, resampler_head_dim=16,
)  # fmt: skip
"""Dim 64, and the widths of image and motion tokens as small, so that preparing them once is not flattered."""

WAYS = ("released", "exact", "no batch", "no fold", "no cache")
"""All off; all on; guidance in two passes; the motion attention unfolded; conditions and times anew in every step."""

TOLERANCE = 1e-4
"""Allowed difference of the latents after all steps, relative to their largest value [float32]."""

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Spent:
    """Seconds of one way."""

    once: list[float] = field(default_factory=list)
    """Preparing, once per render."""
    steps: list[float] = field(default_factory=list)

    def render(self, steps: int) -> float:
        """Seconds of a render of so many median steps."""
        return (statistics.median(self.once) if self.once else 0.0) + steps * statistics.median(self.steps)


class Rewrites:
    """A reduced network, its inputs, and the latents of every way, step by step and in turns."""

    def __init__(
        self, ways: Sequence[str] = WAYS, *, steps: int = 8, frames: int = 4, latent: tuple[int, int] = (8, 8)
    ):
        for way in ways:
            if way not in WAYS:
                raise UsageError(f"unknown way '{way}'. Known: {', '.join(WAYS)}")
        self.ways, self.steps, self.frames, self.latent = tuple(ways), steps, frames, latent
        self.unet = AnimateXUNet.build(REDUCED)
        fill(self.unet, torch.Generator().manual_seed(0))
        self.unet.eval().requires_grad_(False)
        g, (h, w), wide = torch.Generator().manual_seed(1), latent, REDUCED.context_dim
        self.inputs = Inputs(
            image=torch.rand(1, 1, wide, generator=g),
            local_image=torch.rand(1, 3, 1, 8 * h, 8 * w, generator=g),
            dwpose=torch.rand(1, 3, frames + 1, 8 * h, 8 * w, generator=g),
            keypoints=torch.rand(1, frames + 1, 2, 18, generator=g),
            clip=torch.rand(1, frames + 1, wide, generator=g),
        )
        self.noise = torch.randn(1, 4, frames, *latent, generator=torch.Generator().manual_seed(2))
        self.spent = {way: Spent() for way in ways}

    def render(self) -> None:
        """All ways once, taking turns at every step; `CheckError` where their latents differ."""
        stepper = ReleasedStepper(self.steps)
        velocities = {way: self._prepared(way, stepper) for way in self.ways}
        latents = dict.fromkeys(self.ways, self.noise)
        for index, step in enumerate(stepper.timesteps[: self.steps]):
            t = torch.tensor([step])
            for way, velocity in velocities.items():
                begun = time.process_time()
                v = velocity(latents[way], t)
                self.spent[way].steps.append(time.process_time() - begun)
                latents[way] = stepper.step(latents[way], v, index)
        first = latents[self.ways[0]]
        for way, found in latents.items():
            off = float((found - first).abs().max() / first.abs().max())
            if not off <= TOLERANCE:
                raise CheckError(f"bench render: '{way}' is off by {off:.2g}; no speed is shown")

    def seconds(self, way: str) -> float:
        """Median CPU seconds of a render in one way."""
        return self.spent[way].render(self.steps)

    def _encoded(self, inputs: Inputs, fold: bool = True) -> Conditions:
        return self.unet.encode(inputs, frames=self.frames, latent=self.latent, fold=fold)

    def _prepared(self, way: str, stepper: ReleasedStepper) -> Velocity:
        """The velocity of a way; what it computes once is measured here."""
        if way == "released":
            assert self.inputs.local_image is not None
            picture = self.inputs.local_image.repeat(1, 1, self.frames, 1, 1)  # as the released loader
            repeated = replace(self.inputs, local_image=picture)
            return lambda x, t: guided(
                released_velocity(self.unet, x, t, repeated), released_velocity(self.unet, x, t, Inputs())
            )
        if way == "no cache":

            def anew(x: Tensor, t: Tensor) -> Tensor:
                both = Conditions.stack([self._encoded(one) for one in (self.inputs, Inputs())])
                return self._both(x, t, both, None)

            return anew
        begun = time.process_time()
        rows = [self._encoded(one, fold=way != "no fold") for one in (self.inputs, Inputs())]
        both = None if way == "no batch" else Conditions.stack(rows)
        times = self.unet.times(stepper.timesteps)
        self.spent[way].once.append(time.process_time() - begun)
        if both is not None:
            return lambda x, t: self._both(x, t, both, times)
        return lambda x, t: guided(self.unet(x, t, rows[0], times), self.unet(x, t, rows[1], times))

    def _both(self, x: Tensor, t: Tensor, conditions: Conditions, times: Any) -> Tensor:
        found = self.unet(x.expand(2, -1, -1, -1, -1), t.expand(2), conditions, times)
        return guided(found[:1], found[1:])


def bench_rewrites(
    steps: int = 8, frames: int = 4, size: tuple[int, int] = (64, 64), rounds: int = 2
) -> dict[str, Any]:
    """Check, then time on the CPU, `steps` steps on frames of `size` (w, h) px.  CPU time of one thread, medians.

    Ratios: `released_over_exact`, and for each rewrite what leaving it out costs: `no fold_over_exact`.
    """
    if any(side % 64 for side in size):
        raise UsageError(f"--size {size[0]}x{size[1]}: the reduced network takes multiples of 64")
    work = Rewrites(steps=steps, frames=frames, latent=(size[1] // 8, size[0] // 8))
    with torch.no_grad(), one_thread():
        work.render()  # first use
        work.spent = {way: Spent() for way in work.ways}
        for _ in range(rounds):
            work.render()
    whole = work.seconds("exact")
    return {
        "bench": "rewrites",
        "schema": SCHEMA,
        "ratios": {f"{way}_over_exact": round(work.seconds(way) / whole, 3) for way in WAYS if way != "exact"},
        "seconds": {way: float(f"{work.seconds(way):.4g}") for way in WAYS},
        "setting": {"steps": steps, "frames": frames, "canvas": f"{size[0]}x{size[1]}", "width": REDUCED.width,
                    "weights": "random weights"},
        **surroundings(torch.device("cpu")),
    }  # fmt: skip


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, PyTorch computes on one thread: CPU time is then no more than wall time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
