"""Rendering a clip segment by segment: conditions, denoising, decoding; frames come out as they are done.

Bounded memory: one segment's latents and conditions, and a few decoded frames, whatever the length of the clip.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.diffusion.clip import Clip
from animx.diffusion.placing import Placing
from animx.diffusion.ranks import DECODING, Ranks
from animx.diffusion.running import Form, Running
from animx.diffusion.sampler import Batching, Guidance, Row, Watch, denoise, segment_noise, segment_seed
from animx.diffusion.steppers import Stepper, make_stepper
from animx.diffusion.windows import Segment, blend_weights, cut_segments, cut_windows
from animx.job import ChunkStore
from animx.model.conditions import Conditions, Inputs
from animx.model.eight_bit import EightBit
from animx.model.schedule import released_noise
from animx.model.vae import decode
from animx.overlap import prefetch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to sample: all that decides about the frames.  Defaults are the released ones."""

    seed: int = 13
    steps: int = 30
    """Asked steps; the released spacing makes 31 of 30."""
    scheduler: str = "released"
    eta: float = 0.0
    """Share of fresh noise in each step, 0..1; ddim only."""
    guidance: Guidance = field(default_factory=Guidance)
    guidance_batched: bool = False
    """Run both guidance branches as one batch; equal to one after the other up to rounding."""
    window: int = 32
    """Frames the network sees at once."""
    overlap: int = 8
    """Frames two windows share."""
    windows: int = 4
    """Windows blended per segment."""
    window_batch: int = 1
    """Windows that go through the network at once; equal to one after the other up to rounding."""
    decode_batch: int = 2
    """Frames decoded at once."""
    tile: int = 0
    """Largest side of what is decoded at once [latent cells]; 0 = whole frames."""
    colour: bool = True
    """Pull the colours of later segments back to the first one's."""
    stack: str = "auto"
    """plain, fused, or auto: fused on CUDA; equal up to rounding."""
    compiled: bool = False
    """Compile the plain network's parts; equal up to rounding."""
    linears: str = "exact"
    """exact, or fp8: the network's large linear layers in 8 bits, emulated where the device has none."""
    attention: str = "exact"
    """exact, or int8: its large attentions with queries and keys in 8 bits, emulated likewise."""


@dataclass
class Drift:
    """How far later segments strayed from the first in colour: latent channel means, in its standard deviations."""

    largest: float = 0.0
    corrected: float = 0.0
    """What was left after the correction."""

    def add(self, largest: float, corrected: float) -> None:
        """Take in one segment's numbers."""
        self.largest, self.corrected = max(self.largest, largest), max(self.corrected, corrected)


StepProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Hooks:
    """Who looks on, and how the work is spread; none of it changes a frame, unless `on_latents` returns others."""

    on_step: StepProgress | None = None
    """(done, total) denoising steps that are left to do at the start, over all segments."""
    on_latents: Callable[[int, int, int, Tensor], Tensor | None] | None = None
    """(segment, index of the step, timestep, latents [1, 4, F, h, w]) -> None, or changed latents."""
    on_preview: Callable[[NDArray[np.uint8]], None] | None = None
    """Gets the middle frame of the segment, RGB [H, W, 3], as the network expects it to end."""
    preview_every: int = 0
    """Every how many steps; 0 = never."""
    stream: bool = False
    """Denoise the next segment in a thread while frames are decoded and taken.  Not with several ranks: what they
    tell one another must keep its order."""
    graph: bool = False
    """Record a step as a CUDA graph and replay it (CUDA, weights that stay on the device)."""


def render_clip(
    placing: Placing,
    clip: Clip,
    settings: Settings,
    *,
    store: ChunkStore | None = None,
    drift: Drift | None = None,
    hooks: Hooks | None = None,
    ranks: Ranks | None = None,
    scheduler: Any = None,
    generator: torch.Generator | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield RGB frames [H, W, 3] of the whole clip, in order.  The same settings and weights give the same frames.

    `store` keeps each finished segment's latents, and finished ones are taken from it.  With several `ranks` only the
    first decodes and yields.  `scheduler`: a diffusers object in place of the name in `settings`.  `generator`: draws
    the start noise in place of `settings.seed`.

    When memory runs out on one rank, `torch.OutOfMemoryError` is raised on all of them, so that they may start again
    together; it carries the note `DECODING` when it was while decoding.
    """
    placing = placing.computing(EightBit(settings.linears == "fp8", settings.attention == "int8"))
    work = _Work(placing, clip, settings, hooks or Hooks(), ranks or Ranks(), scheduler, generator)
    segments = work.segments(store, drift if drift is not None else Drift())
    stream = work.hooks.stream and work.ranks.size == 1
    try:
        # One segment waits while the next is made: no more than that lies in memory.
        with closing(prefetch(segments, 1) if stream else segments) as ready:
            for fresh in ready:
                if work.ranks.is_first:
                    yield from decoded(placing, fresh, settings.decode_batch, settings.tile, own_stream=stream)
    except torch.OutOfMemoryError as error:
        placing.kept = None  # recordings hold the memory of a pass, which whoever tries again needs
        shared = work.ranks.failed(error)
        if shared is error:
            raise
        raise shared from error


@dataclass(frozen=True)
class _Work:
    """One render, taken apart into steps."""

    placing: Placing
    clip: Clip
    settings: Settings
    hooks: Hooks
    ranks: Ranks
    scheduler: Any
    generator: torch.Generator | None

    def stepper(self, segment: int) -> Stepper:
        """A new stepper for a segment; its fresh noise, if any, is drawn on the CPU from a seed of its own."""
        s = self.settings
        own = torch.Generator().manual_seed(segment_seed(s.seed, segment, 1))
        return make_stepper(self.scheduler or s.scheduler, s.steps, eta=s.eta, generator=own)

    def segments(self, store: ChunkStore | None, drift: Drift) -> Generator[Tensor, None, None]:
        """The new latents [1, 4, F, h, w] of each segment, float32 on the CPU, without the frames it took over."""
        s, ranks = self.settings, self.ranks
        segments = cut_segments(self.clip.frames, s.window, s.overlap, s.windows)
        steps = len(self.stepper(0).timesteps)
        finished = set(store.finished()) if store is not None else set()
        left = [n for n in range(len(segments)) if n not in finished]
        done, total = 0, steps * len(left)
        known: Tensor | None = None
        anchor: tuple[Tensor, Tensor] | None = None
        if self.hooks.on_step is not None and left:
            self.hooks.on_step(0, total)
        for number, segment in enumerate(segments):
            saved = store.load(number) if store is not None else None
            ready = ranks.from_first(None if saved is None else torch.from_numpy(saved["latents"]))
            if ready is not None:
                latents = ready
                if saved is not None:
                    drift.add(*(float(value) for value in saved["drift"]))
            else:
                total = max(total, done + steps)  # a saved segment was damaged
                latents = self.denoised(segment, number, known, done, total)
                strayed = (0.0, 0.0)
                if number and anchor is not None:
                    latents, strayed = _recolour(latents, segment, anchor, change=s.colour)
                drift.add(*strayed)
                if store is not None:
                    store.save(number, {"latents": latents.numpy(), "drift": np.array(strayed)})
                done += steps
            if anchor is None:
                anchor = _statistics(latents)
            known = latents[:, :, latents.shape[2] - s.overlap :] if s.overlap else None
            yield latents[:, :, segment.known :]
        ranks.meet()  # the first has decoded the last segment, or tells that it could not

    def denoised(self, segment: Segment, number: int, known: Tensor | None, done: int, total: int) -> Tensor:
        """Latents [1, 4, F, h, w] of one segment, float32 on the CPU; `known` are those of its first frames."""
        s, clip, unet, hooks = self.settings, self.clip, self.placing.components.unet, self.hooks
        like = self.placing.use("unet")
        network = Running(self.placing, Form(s.stack, s.compiled, hooks.graph))
        windows = cut_windows(segment.frames, s.window, s.overlap)
        stepper = self.stepper(number)
        with torch.no_grad():
            times = unet.times(stepper.timesteps)
            rows: dict[Row, Conditions] = {}
            empty: dict[int, Conditions] = {}
            for n, (a, b) in enumerate(windows):
                inputs = clip.window(segment.first + a, segment.first + b)
                rows[n, True] = unet.encode(inputs, frames=b - a, latent=clip.latent)
                if b - a not in empty:
                    empty[b - a] = unet.encode(Inputs(), frames=b - a, latent=clip.latent)
                rows[n, False] = empty[b - a]
        stacked: dict[tuple[Row, ...], Conditions] = {}

        def together(x: Tensor, t: Tensor, asked: Sequence[Row]) -> Tensor:
            key = tuple(asked)
            if key not in stacked:
                stacked[key] = Conditions.stack([rows[row] for row in key])
            return velocity(x, t, stacked[key])

        def velocity(x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
            # Latents stay float32 between steps, as released; only the network runs in its own precision.
            return network(x.to(like.dtype), t, conditions, times).float()

        def on_step(index: int, t: int, latents: Tensor) -> Tensor | None:
            changed = hooks.on_latents(number, index, t, latents) if hooks.on_latents is not None else None
            if hooks.on_step is not None:
                hooks.on_step(done + index + 1, total)
            return changed

        def on_clean(index: int, latents: Tensor) -> None:
            if hooks.on_preview is not None and self.ranks.is_first:
                middle = latents.shape[2] // 2
                network.clear()
                try:
                    hooks.on_preview(next(decoded(self.placing, latents[:, :, middle : middle + 1], 1, s.tile)))
                except torch.OutOfMemoryError:
                    log.warning("no memory for the preview of step %d: it is left out", index + 1)
                self.placing.use("unet")

        with torch.no_grad():
            out = denoise(
                stepper,
                self.noise(number, segment.frames).to(like.device),
                windows,
                blend_weights(segment.frames, windows),
                lambda x, t, n: velocity(x, t, rows[n, True]),
                lambda x, t, n: velocity(x, t, rows[n, False]),
                s.guidance,
                known.to(like.device) if known is not None and segment.known else None,
                Watch(on_step, on_clean, hooks.preview_every),
                self.ranks.evaluate,
                together,
                Batching(s.window_batch, s.guidance_batched),
            )
        return out.cpu()

    def noise(self, number: int, frames: int) -> Tensor:
        """Start noise [1, 4, F, h, w] of a segment, on the CPU."""
        shape = (1, 4, frames, *self.clip.latent)
        if self.generator is None:
            return segment_noise(self.settings.seed, number, shape)
        return released_noise(shape, self.generator)


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per latent channel, each [1, 4, 1, 1, 1]."""
    return latents.mean(dim=(2, 3, 4), keepdim=True), latents.std(dim=(2, 3, 4), keepdim=True).clamp(min=1e-6)


def _recolour(
    latents: Tensor, segment: Segment, anchor: tuple[Tensor, Tensor], *, change: bool
) -> tuple[Tensor, tuple[float, float]]:
    """Shift the new frames so that their channel means meet the first segment's; it fades in after the overlap.

    Returns the latents and how far they strayed before and after, in the first segment's deviations.
    """
    fresh = latents[:, :, segment.known :]
    off = anchor[0] - fresh.mean(dim=(2, 3, 4), keepdim=True)
    strayed = float((off / anchor[1]).abs().max())
    if not change:
        return latents, (strayed, strayed)
    count = fresh.shape[2]
    ramp = torch.linspace(0, 1, min(count, 9))[1:] if count > 1 else torch.ones(1)
    share = torch.ones(count)
    share[: len(ramp)] = ramp[:count]
    moved = fresh + off * share.view(1, 1, -1, 1, 1)
    left = anchor[0] - moved.mean(dim=(2, 3, 4), keepdim=True)
    return torch.cat([latents[:, :, : segment.known], moved], dim=2), (strayed, float((left / anchor[1]).abs().max()))


def decoded(
    placing: Placing, latents: Tensor, batch: int, tile: int = 0, *, own_stream: bool = False
) -> Iterator[NDArray[np.uint8]]:
    """RGB frames of latents [1, 4, F, h, w], truncated to uint8 as released, `batch` of them at once.

    tile: see `Settings.tile`.  own_stream: on CUDA, beside what the device is doing for another thread.
    """
    beside = None
    for start in range(0, latents.shape[2], batch):
        try:
            like = placing.use("vae")
            # A stream of its own, so that the device may work for both threads.
            if own_stream and beside is None and like.device.type == "cuda":
                beside = torch.cuda.Stream(like.device)  # type: ignore[no-untyped-call]
            with torch.no_grad(), torch.cuda.stream(beside):
                part = latents[0, :, start : start + batch].transpose(0, 1).to(like)
                pictures = (decode(placing.components.vae, part, tile).float() * 255).to(torch.uint8)
                frames = pictures.permute(0, 2, 3, 1).cpu().numpy()
        except torch.OutOfMemoryError as error:
            error.add_note(DECODING)
            raise
        for frame in frames:
            yield np.ascontiguousarray(frame)
