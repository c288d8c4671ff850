"""`animx bench drift`: how far faster ways to sample stray from the first one, and each from many steps.

What a way computes in 8 bits is compared with itself in exact arithmetic too, beside what one more step would change:
that is the measure of what 8 bits may cost.  Where the device has no 8-bit units they are emulated, and the result says
so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.canvas import Canvas
from animx.diffusion.clip import Clip
from animx.diffusion.pipeline import AnimateXPipeline
from animx.diffusion.precision import obstacles
from animx.diffusion.render import Hooks, Settings
from animx.diffusion.steppers import make_stepper
from animx.errors import UsageError
from animx.measuring.stage import Setup, drawn_clip, loaded, model_folder, weights_named
from animx.measuring.timing import SCHEMA, surroundings

REFERENCE_STEPS = 250
"""Steps of the released schedule that stand for the exact solution."""


@dataclass(frozen=True)
class Sampled:
    """One clip, sampled."""

    reached: tuple[int, ...]
    """Timestep that each step leads to."""
    latents: tuple[Tensor, ...]
    """Latents [1, 4, F, h, w] of the first segment after each step."""
    frames: NDArray[np.uint8]
    """[N, H, W, 3]."""


def sampled(pipeline: AnimateXPipeline, clip: Clip, setup: Setup) -> Sampled:
    """Render `clip` and keep what passed by."""
    kept: list[Tensor] = []

    def keep(segment: int, index: int, timestep: int, latents: Tensor) -> None:
        if segment == 0:
            kept.append(latents.float().cpu())

    frames = np.stack(list(pipeline.frames(clip, setup.settings, hooks=Hooks(on_latents=keep))))
    s = setup.settings
    timesteps = make_stepper(s.scheduler, s.steps, eta=s.eta).timesteps
    return Sampled((*timesteps[1:], 0), tuple(kept), frames)


def apart(one: Sampled, other: Sampled) -> dict[str, Any]:
    """How far `one` is from `other`: final latents (relative), frames (PSNR in dB, SSIM), and the way there.

    The way: latents after each step of `one` against those of `other` at the nearest timestep it reached.
    """
    from skimage import metrics

    similarity: Any = metrics.structural_similarity

    def relative(a: Tensor, b: Tensor) -> float:
        return float(f"{float((a - b).norm() / b.norm()):.4g}")

    steps = []
    for t, latents in zip(one.reached, one.latents, strict=True):
        near = min(range(len(other.reached)), key=lambda i: abs(other.reached[i] - t))
        steps.append({"t": t, "against_t": other.reached[near], "latents": relative(latents, other.latents[near])})
    error = float(np.mean((one.frames.astype(np.float64) - other.frames) ** 2))
    side = min(7, *one.frames.shape[1:3]) | 1
    ssim = np.mean(
        [similarity(a, b, channel_axis=2, win_size=side) for a, b in zip(one.frames, other.frames, strict=True)]
    )
    return {
        "latents": relative(one.latents[-1], other.latents[-1]),
        "psnr_db": round(float(10 * np.log10(255**2 / error)), 2) if error else None,
        "ssim": round(float(ssim), 4),
        "steps": steps,
    }


def with_one_more_step(way: Setup) -> Setup:
    """The way with one step more, or as few more as its spacing allows."""
    for steps in range(way.settings.steps + 1, way.settings.steps + 10):
        try:
            make_stepper(way.settings.scheduler, steps, eta=way.settings.eta)
        except UsageError:
            continue
        return Setup(
            f"{way.name},steps={steps}", replace(way.settings, steps=steps, linears="exact", attention="exact")
        )
    raise UsageError(f"bench drift: {way.name} has no spacing with a step more")


def arithmetic_of(way: Setup, sample: Callable[[Setup], Sampled]) -> dict[str, Any]:
    """What 8 bits change at equal steps, and what one more step changes in exact arithmetic."""
    exact = sample(Setup(way.name, replace(way.settings, linears="exact", attention="exact")))
    more = with_one_more_step(way)
    changed = {
        "added_by_8_bits": apart(sample(way), exact),
        "one_more_step": {"steps_asked": more.settings.steps, **apart(sample(more), exact)},
    }
    for one in changed.values():
        one.pop("steps")
    ratio = changed["added_by_8_bits"]["latents"] / changed["one_more_step"]["latents"]
    return {"linears": way.settings.linears, "attention": way.settings.attention, **changed,
            "share_of_one_more_step": float(f"{ratio:.3g}")}  # fmt: skip


def bench_drift(
    setups: Sequence[str] = ("exact", "fast", "fastest"),
    *,
    model: str | None = None,
    frames: int = 8,
    size: Canvas | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    reference_steps: int = REFERENCE_STEPS,
) -> dict[str, Any]:
    """Drift of each setup against the first, and of all against `reference_steps` of the released schedule.

    `ratios`: passes of the network per pass of the first (`fast_per_exact`).  `eight_bit`: of each way in 8 bits, what
    that alone changes.  PSNR None: the frames are equal.
    """
    if len(setups) < 2:
        raise UsageError("bench drift: name two ways to sample or more, such as exact fast")
    ways = [Setup.of(text, device, emulated=True) for text in setups]
    many = Setup.of(f"exact,steps={reference_steps}", device)
    with model_folder(model) as folder:
        pipeline = loaded(folder, device, dtype)
        clip = drawn_clip(pipeline, frames, size or Canvas(64, 96))
        kept: dict[Settings, Sampled] = {}

        def sample(way: Setup) -> Sampled:
            if way.settings not in kept:
                kept[way.settings] = sampled(pipeline, clip, way)
            return kept[way.settings]

        found = [sample(way) for way in ways]
        truth = sample(many)
        in_eight = [way for way in ways if (way.settings.linears, way.settings.attention) != ("exact", "exact")]
        eight_bit = {way.name: arithmetic_of(way, sample) for way in in_eight}
        missing = obstacles(device, pipeline.components.unet.shape)
        weights = weights_named(model, folder)
    first = ways[0].name
    return {
        "bench": "drift",
        "schema": SCHEMA,
        "weights": weights,
        "ratios": {f"passes_{way.name}_per_{first}": round(way.passes / ways[0].passes, 4) for way in ways[1:]},
        "against_first": {w.name: apart(f, found[0]) for w, f in zip(ways[1:], found[1:], strict=True)},
        "against_many_steps": {w.name: apart(f, truth) for w, f in zip(ways, found, strict=True)},
        "eight_bit": eight_bit,
        "emulated": [why for why in missing.values() if why] if eight_bit else [],
        "passes": {way.name: way.passes for way in (*ways, many)},
        "setting": {"frames": frames, "canvas": str(clip.canvas), "dtype": dtype, "many_steps": reference_steps},
        **surroundings(torch.device(device)),
    }
