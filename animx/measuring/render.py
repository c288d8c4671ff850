"""`animx bench render`: a whole render by stages, in several ways to sample, and what overlapping the stages saves."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from animx.bench import CheckError
from animx.canvas import Canvas
from animx.diffusion import clip as clip_module
from animx.diffusion import render as render_module
from animx.diffusion.engine import model_canvas
from animx.diffusion.memory import pays_batched
from animx.diffusion.pipeline import AnimateXPipeline
from animx.diffusion.render import Hooks
from animx.measuring.drift import Sampled, apart
from animx.measuring.stage import Setup, drawn_clip, loaded, model_folder, weights_named
from animx.measuring.timing import SCHEMA, surroundings
from animx.measuring.unet import bench_unet

STAGES = ("load", "clip", "vae_enc", "cond", "denoise", "vae_dec", "encode")
"""Loading the model, image encoder, encoding the reference, conditions of the windows, steps, decoding, the video."""


class Stopwatch:
    """Seconds by stage: wall time on CUDA, which is waited for at both ends; CPU time of all threads elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def _now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs within counts to the stage."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - start

    @contextmanager
    def watching(self, owner: Any, attribute: str, name: str) -> Iterator[None]:
        """Within, calls of `owner.attribute` count to the stage."""
        real: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return real(*args, **kwargs)

        own = attribute in vars(owner)
        setattr(owner, attribute, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, attribute, real)
            else:
                delattr(owner, attribute)


def bench_render(
    speeds: Sequence[str] = ("exact", "fast"),
    *,
    model: str | None = None,
    frames: int = 16,
    size: Canvas | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Render a drawn clip to an mp4 in each way, stage by stage, and once more with the stages overlapping.

    Checked: the overlapping render gives the same frames, bit by bit.  Ratios: `FIRST_over_OTHER` (denoising seconds),
    `serial_over_overlapped` (whole renders, wall time), and `released_over_plain` (a pass of the released operator
    sequence against one with the exact rewrites, on the tiny network).
    """
    place = torch.device(device)
    canvas, window = model_canvas(size or Canvas(64, 96), fixed=True), max(2, frames // 2)
    both = pays_batched((canvas.height // 8, canvas.width // 8), window, device)  # as a render of that size would
    usual: dict[str, Any] = {"window": window, "windows": 1, "guidance_batched": both}
    ways = [Setup.of(text, device, **{k: v for k, v in usual.items() if f"{k}=" not in text}) for text in speeds]
    watch = Stopwatch(place)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    with model_folder(model) as folder, TemporaryDirectory(prefix="animx-bench-") as target:
        with watch.stage("load"):
            pipeline = loaded(folder, device, dtype)
        weights = weights_named(model, folder)
        with ExitStack() as stack:
            stack.enter_context(watch.watching(clip_module, "encode_images", "clip"))
            stack.enter_context(watch.watching(clip_module, "encode", "vae_enc"))
            clip = drawn_clip(pipeline, frames, size or Canvas(64, 96))
        rows: dict[str, Any] = {}
        found: dict[str, Sampled] = {}
        for way in ways:
            rows[way.name], found[way.name] = _rendered(pipeline, clip, way, place, Path(target) / "out.mp4")
        serial = rows[ways[0].name]["wall_s"]
        overlapped = _overlapped(pipeline, clip, ways[0], found[ways[0].name].frames, Path(target) / "out.mp4")
    first = ways[0].name
    ratios = {
        f"{first}_over_{way.name}": round(
            rows[first]["seconds"]["denoise"] / rows[way.name]["seconds"]["denoise"], 3
        )
        for way in ways[1:]
    }  # fmt: skip
    rewrites = bench_unet("tiny", ("released", "plain"), device=device, dtype="float32", seconds=1.0)
    return {
        "bench": "render",
        "schema": SCHEMA,
        "weights": weights,
        "ratios": {**ratios, "serial_over_overlapped": round(serial / overlapped, 3), **rewrites["ratios"]},
        "prepared_s": {name: round(watch.seconds[name], 4) for name in ("load", "clip", "vae_enc")},
        "renders": rows,
        "overlapped_s": round(overlapped, 3),
        "drift": {way.name: _brief(apart(found[way.name], found[first])) for way in ways[1:]},
        "peak_memory_mb": round(_peak(place) / 2**20, 1),
        "checks": {"overlapped_frames_are_equal": True, "frames": frames},
        "setting": {
            "frames": frames,
            "canvas": str(clip.canvas),
            "dtype": dtype,
            "window": ways[0].settings.window,
            "guidance_batched": ways[0].settings.guidance_batched,
        },
        **surroundings(place),
    }


def _rendered(
    pipeline: AnimateXPipeline, clip: Any, way: Setup, device: torch.device, out: Path
) -> tuple[dict[str, Any], Sampled]:
    """Seconds by stage of one render, one stage after the other, and what it gave."""
    from animx.measuring.drift import sampled

    watch, begun = Stopwatch(device), time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(watch.watching(pipeline.components.unet, "encode", "cond"))
        stack.enter_context(watch.watching(render_module, "decode", "vae_dec"))
        start = watch._now()
        got = sampled(pipeline, clip, way)
        whole = watch._now() - start
    watch.seconds["denoise"] = whole - watch.seconds["cond"] - watch.seconds["vae_dec"]
    with watch.stage("encode"):
        _write(got.frames, out)
    seconds = {name: round(watch.seconds[name], 4) for name in STAGES[3:]}
    whole += watch.seconds["encode"]
    return {
        "seconds": {**seconds, "whole": round(whole, 4)},
        "fps": round(len(got.frames) / whole, 3),
        "wall_s": round(time.perf_counter() - begun, 4),
        "passes_per_window": way.passes,
        "linears": way.settings.linears,
        "attention": way.settings.attention,
    }, got


def _overlapped(pipeline: AnimateXPipeline, clip: Any, way: Setup, wanted: NDArray[np.uint8], out: Path) -> float:
    """Seconds of the same render and video with decoding and writing beside the denoising; the frames are compared."""
    start = time.perf_counter()
    frames = []
    with _writer(wanted, out) as writer:
        for frame in pipeline.frames(clip, way.settings, hooks=Hooks(stream=True)):
            writer.write(frame)
            frames.append(frame)
    took = time.perf_counter() - start
    if len(frames) != len(wanted) or not np.array_equal(np.stack(frames), wanted):
        raise CheckError("bench render: frames decoded beside the denoising differ from those decoded after it")
    return took


def _writer(frames: NDArray[np.uint8], out: Path) -> Any:
    from animx.video import open_writer

    return open_writer(out, Canvas(frames.shape[2], frames.shape[1]), Fraction(24), overwrite=True)


def _write(frames: NDArray[np.uint8], out: Path) -> None:
    with _writer(frames, out) as writer:
        for frame in frames:
            writer.write(frame)


def _brief(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("latents", "psnr_db", "ssim")}


def _peak(device: torch.device) -> float:
    """Most memory so far [B]: of the device, or of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
