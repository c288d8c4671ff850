"""Rendering a clip segment by segment: conditions, denoising, decoding; frames come out as they are done.

Bounded memory: one segment's latents and conditions, and a few decoded frames, whatever the length of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.diffusion.clip import Clip
from animx.diffusion.components import Components
from animx.diffusion.ranks import Ranks
from animx.diffusion.sampler import Guidance, denoise, segment_noise
from animx.diffusion.steppers import make_stepper
from animx.diffusion.windows import Segment, blend_weights, cut_segments, cut_windows
from animx.job import ChunkStore
from animx.model.conditions import Conditions, Inputs
from animx.model.vae import decode


@dataclass(frozen=True)
class Settings:
    """How to sample.  Defaults are the released ones."""

    seed: int = 13
    steps: int = 30
    """Asked steps; the released spacing makes 31 of 30."""
    scheduler: str = "released"
    guidance: Guidance = field(default_factory=Guidance)
    window: int = 32
    """Frames the network sees at once."""
    overlap: int = 8
    """Frames two windows share."""
    windows: int = 4
    """Windows blended per segment."""
    decode_batch: int = 2
    """Frames decoded at once."""
    colour: bool = True
    """Pull the colours of later segments back to the first one's."""


@dataclass
class Drift:
    """How far later segments strayed from the first in colour: latent channel means, in its standard deviations."""

    largest: float = 0.0
    corrected: float = 0.0
    """What was left after the correction."""


StepProgress = Callable[[int, int], None]


def render_clip(
    components: Components,
    clip: Clip,
    settings: Settings,
    *,
    store: ChunkStore | None = None,
    drift: Drift | None = None,
    on_step: StepProgress | None = None,
    on_latents: Callable[[int, int, Tensor], Any] | None = None,
    ranks: Ranks | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield RGB frames [H, W, 3] of the whole clip, in order.  The same settings and weights give the same frames.

    `store` keeps each finished segment's latents, and finished ones are taken from it.  `on_step(done, total)` counts
    denoising steps over all segments.  With several `ranks` only the first decodes and yields.
    """
    ranks = ranks or Ranks()
    segments = cut_segments(clip.frames, settings.window, settings.overlap, settings.windows)
    steps = len(make_stepper(settings.scheduler, settings.steps).timesteps)
    total = steps * len(segments)
    known: Tensor | None = None
    anchor: tuple[Tensor, Tensor] | None = None
    for number, segment in enumerate(segments):
        saved = store.load(number) if store is not None else None
        ready = ranks.from_first(None if saved is None else torch.from_numpy(saved["latents"]))
        if ready is not None:
            latents = ready
        else:
            latents = _segment(
                components, clip, settings, segment, number, known, on_latents, on_step, steps, total, ranks
            )
            if number and settings.colour and anchor is not None:
                latents = _recolour(latents, segment, anchor, drift)
            if store is not None:
                store.save(number, {"latents": latents.numpy()})
        if on_step is not None:
            on_step(steps * (number + 1), total)
        if anchor is None:
            anchor = _statistics(latents)
        if ranks.is_first:
            yield from _decoded(components, latents[:, :, segment.known :], settings.decode_batch)
        known = latents[:, :, latents.shape[2] - settings.overlap :] if settings.overlap else None


def _segment(
    components: Components,
    clip: Clip,
    settings: Settings,
    segment: Segment,
    number: int,
    known: Tensor | None,
    on_latents: Callable[[int, int, Tensor], Any] | None,
    on_step: StepProgress | None,
    steps: int,
    total: int,
    ranks: Ranks,
) -> Tensor:
    """Latents [1, 4, F, h, w] of one segment, float32 on the CPU."""
    unet = components.unet
    like = next(unet.parameters())
    windows = cut_windows(segment.frames, settings.window, settings.overlap)
    conditional = [_encode(components, clip, segment.first + a, segment.first + b) for a, b in windows]
    empty: dict[int, Conditions] = {}
    for a, b in windows:
        if b - a not in empty:
            with torch.no_grad():
                empty[b - a] = unet.encode(Inputs(), frames=b - a, latent=clip.latent)
    noise = segment_noise(settings.seed, number, (1, 4, segment.frames, *clip.latent)).to(like.device)

    def step(done: int, _total: int, latents: Tensor) -> None:
        if on_latents is not None:
            on_latents(number, done, latents)
        if on_step is not None:
            on_step(number * steps + done, total)

    # Latents stay float32 between steps, as released; only the network runs in its own precision.
    with torch.no_grad():
        out = denoise(
            make_stepper(settings.scheduler, settings.steps),
            noise,
            windows,
            blend_weights(segment.frames, windows),
            lambda x, t, n: unet(x.to(like.dtype), t, conditional[n]).float(),
            lambda x, t, n: unet(x.to(like.dtype), t, empty[x.shape[2]]).float(),
            settings.guidance,
            known.to(noise) if known is not None and segment.known else None,
            step,
            ranks.evaluate,
        )
    return out.cpu()


def _encode(components: Components, clip: Clip, first: int, last: int) -> Conditions:
    with torch.no_grad():
        return components.unet.encode(clip.window(first, last), frames=last - first, latent=clip.latent)


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per latent channel, each [1, 4, 1, 1, 1]."""
    return latents.mean(dim=(2, 3, 4), keepdim=True), latents.std(dim=(2, 3, 4), keepdim=True).clamp(min=1e-6)


def _recolour(latents: Tensor, segment: Segment, anchor: tuple[Tensor, Tensor], drift: Drift | None) -> Tensor:
    """Shift the new frames so that their channel means meet the first segment's; it fades in after the overlap."""
    fresh = latents[:, :, segment.known :]
    off = anchor[0] - fresh.mean(dim=(2, 3, 4), keepdim=True)
    count = fresh.shape[2]
    ramp = torch.linspace(0, 1, min(count, 9))[1:] if count > 1 else torch.ones(1)
    share = torch.ones(count)
    share[: len(ramp)] = ramp[:count]
    moved = fresh + off * share.view(1, 1, -1, 1, 1)
    if drift is not None:
        left = anchor[0] - moved.mean(dim=(2, 3, 4), keepdim=True)
        drift.largest = max(drift.largest, float((off / anchor[1]).abs().max()))
        drift.corrected = max(drift.corrected, float((left / anchor[1]).abs().max()))
    return torch.cat([latents[:, :, : segment.known], moved], dim=2)


def _decoded(components: Components, latents: Tensor, batch: int) -> Iterator[NDArray[np.uint8]]:
    """RGB frames of latents [1, 4, F, h, w], truncated to uint8 as released."""
    like = next(components.vae.parameters())
    for start in range(0, latents.shape[2], batch):
        part = latents[0, :, start : start + batch].transpose(0, 1).to(like)
        with torch.no_grad():
            pictures = decode(components.vae, part).float()
        for picture in (pictures * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
            yield np.ascontiguousarray(picture)
