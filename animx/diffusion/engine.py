"""The `animate-x` engine: the full model behind the plugin door.

Takes a `RenderJob` whose `driving_frames` give the driving video's pictures; yields RGBA frames on the job's canvas.
The model runs on a canvas near its trained area (sides multiples of 64) unless the user fixed the size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, place
from animx.engine import Plan, Progress, RenderJob, no_progress
from animx.errors import MissingExtraError, OutOfMemoryError, UsageError, WeightsError
from animx.job import ChunkStore

if TYPE_CHECKING:
    from animx.diffusion.memory import Tier
    from animx.diffusion.render import Settings

log = logging.getLogger(__name__)

DEFAULT_MODEL = "animate-x"
LARGEST_AREA = 512 * 768
"""The area the released network was trained on [px]."""
SECONDS_PER_TFLOP = {"cuda": 1 / 300, "cpu": 1 / 0.15}
"""Rough cost of the network's arithmetic for `--dry-run`, replaced by measurements once a benchmark has run."""


@dataclass(frozen=True)
class _Run:
    """The resolved options of one render."""

    model: str
    device: str
    dtype: str
    settings: Settings
    tier: Tier


class AnimateXEngine:
    """The full latent diffusion model (`--engine animate-x`)."""

    name = "animate-x"
    options: frozenset[str] = frozenset(
        {"steps", "guidance", "scheduler", "window", "overlap", "windows", "device", "dtype", "vram", "model", "resume"}
    )
    needs_hands = True
    needs_driving_frames = True
    keeps_chunks = True

    def available(self) -> str | None:
        """None where torch, its libraries, the weights and CUDA are there; else what is missing and the mend."""
        try:
            self.require({})
        except (UsageError, WeightsError) as error:
            return str(error)
        import torch

        return None if torch.cuda.is_available() else "no CUDA device; it runs without one when named (slow)"

    def require(self, options: Mapping[str, Any]) -> None:
        """Refuse early what `render` would refuse: `MissingExtraError` (exit 2), `WeightsError` (exit 6)."""
        from importlib.util import find_spec

        for module in ("torch", "diffusers", "transformers"):
            if find_spec(module) is None:
                raise MissingExtraError("the full model", "model")
        from animx.weights import find_model

        find_model(str(options.get("model") or DEFAULT_MODEL))

    def plan(self, job: RenderJob) -> Plan:
        """Windows, memory per tier and time, without loading weights."""
        from animx.diffusion.memory import GIB, predicted_bytes, tier_table
        from animx.diffusion.steppers import make_stepper
        from animx.diffusion.windows import cut_segments, cut_windows

        run = self._resolve(job)
        canvas = model_canvas(job.canvas)
        latent = (canvas.height // 8, canvas.width // 8)
        s = run.settings
        segments = cut_segments(job.poses.frames, s.window, s.overlap, s.windows)
        windows = [w for segment in segments for w in cut_windows(segment.frames, s.window, s.overlap)]
        steps = len(make_stepper(s.scheduler, s.steps).timesteps)
        slots = sum(b - a + 1 for a, b in windows)
        # 89.4 TFLOP for 33 slots of 96 x 64, counted; attention makes larger grids cost a little more than linear.
        tflop = 89.4 * slots / 33 * (latent[0] * latent[1] / 6144) * steps * (2 if s.guidance.scale != 1 else 1)
        table = ", ".join(f"{name} {gib:.1f} GiB" for name, gib in tier_table(latent))
        notes = (
            f"{len(segments)} segment(s), {len(windows)} window(s) of {s.window} frames, {steps} steps at {canvas} px",
            f"memory tier {run.tier.name} on {run.device} ({run.dtype}); predicted: {table}",
        )
        kind = "cuda" if run.device.startswith("cuda") else "cpu"
        memory = predicted_bytes(run.tier, latent) / GIB * 1024
        return Plan(self.name, job.poses.frames, len(windows), memory, tflop * SECONDS_PER_TFLOP[kind], notes)

    def render(self, job: RenderJob, on_progress: Progress = no_progress) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames in order; finished segments are kept in `job.folder` and taken up again with `resume`.

        Errors: `UsageError` without driving frames, `WeightsError`, `OutOfMemoryError`.
        """
        import torch

        from animx.diffusion.pipeline import AnimateXPipeline
        from animx.weights import find_model, model_hash

        run = self._resolve(job)
        folder = find_model(run.model)
        pipeline = AnimateXPipeline.from_pretrained(folder)
        dtype = getattr(torch, run.dtype)
        try:
            if run.tier.offload and run.device != "cpu":
                pipeline.components.to(torch.device("cpu"), dtype)
                pipeline.enable_model_cpu_offload(run.device)
            else:
                pipeline.to(run.device, dtype)
            yield from self._frames(pipeline, job, run, model_hash(folder), on_progress)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"out of memory on {run.device} with windows of {run.settings.window} frames at {job.canvas} px. "
                "Use --vram with less than the card has, a smaller --size, or a smaller --window"
            ) from error

    def _frames(
        self, pipeline: Any, job: RenderJob, run: _Run, weights: str, on_progress: Progress
    ) -> Iterator[NDArray[np.uint8]]:
        from animx.diffusion.ranks import join
        from animx.diffusion.render import Drift
        from animx.image import resize

        if job.driving_frames is None:
            raise UsageError(
                f"engine '{self.name}' needs the driving pictures besides the poses. Give the clip with --driving-video"
            )
        canvas = model_canvas(job.canvas)
        where = place(job.canvas, canvas)
        ranks = join(run.device)
        store = None
        if job.folder is not None and ranks.is_first:
            plan = {**_plain(run.settings), "weights": weights, "dtype": run.dtype, "canvas": list(canvas.size),
                    "frames": job.poses.frames, **job.identity}  # fmt: skip
            store = ChunkStore(job.folder, plan, resume=bool(job.options.get("resume")))
        drift = Drift()
        frames = pipeline.stream(
            np.ascontiguousarray(job.picture[..., :3]),
            job.poses.on(canvas, where),
            job.driving_frames(),
            settings=run.settings,
            keypoints=job.driving_poses,
            reference_pose=None if job.reference_pose is None else job.reference_pose.on(canvas, where),
            store=store,
            drift=drift,
            on_step=on_progress,
            ranks=ranks,
        )
        opaque = np.full((canvas.height, canvas.width, 1), 255, np.uint8)
        for frame in frames:
            whole = np.concatenate([frame, opaque], axis=2)
            yield whole if canvas == job.canvas else resize(whole, job.canvas)
        ranks.close()
        if drift.largest > 0.5:
            log.warning(
                "colours strayed by %.2f deviations between segments (%.2f left after the correction)",
                drift.largest,
                drift.corrected,
            )

    def _resolve(self, job: RenderJob) -> _Run:
        """Options with their defaults; everything that decides about bytes is fixed here."""
        import torch

        from animx.diffusion.memory import choose_tier, tier_table
        from animx.diffusion.render import Settings
        from animx.diffusion.sampler import Guidance
        from animx.diffusion.windows import cut_windows

        o = job.options
        device = str(o.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(f"--device {device}: no CUDA device here. Use --device cpu")
        canvas = model_canvas(job.canvas)
        latent = (canvas.height // 8, canvas.width // 8)
        if o.get("vram") is not None:
            free = int(float(o["vram"]) * 1e9)
        else:
            free = torch.cuda.mem_get_info()[0] if device.startswith("cuda") else 1 << 62
        tier = choose_tier(free, latent)
        dtype = str(o.get("dtype") or (tier.dtype if device.startswith("cuda") else "float32"))
        if dtype not in ("float32", "float16", "bfloat16"):
            raise UsageError(f"--dtype {dtype}: use float32, bfloat16 or float16")
        window = int(o.get("window") or tier.window)
        overlap = int(o["overlap"]) if o.get("overlap") is not None else min(8, window // 4)
        cut_windows(job.poses.frames, window, overlap)  # refuses impossible pairs in the user's words
        settings = Settings(
            seed=job.seed,
            steps=int(o.get("steps") or 30),
            scheduler=str(o.get("scheduler") or "released"),
            guidance=Guidance(float(o["guidance"]) if o.get("guidance") is not None else 2.5),
            window=window,
            overlap=overlap,
            windows=int(o.get("windows") or 4),
            decode_batch=tier.decode_batch,
        )
        log.debug("memory: %s", tier_table(latent))
        return _Run(str(o.get("model") or DEFAULT_MODEL), device, dtype, settings, replace(tier, dtype=dtype))


def model_canvas(canvas: Canvas) -> Canvas:
    """The canvas the network runs on: the job's own down to multiples of 8, or less where that is over its area."""
    factor = min(1.0, (LARGEST_AREA * 1.05 / (canvas.width * canvas.height)) ** 0.5)
    return Canvas(*(max(64, int(side * factor) // 8 * 8) for side in canvas.size))


def _plain(settings: Settings) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(settings)
