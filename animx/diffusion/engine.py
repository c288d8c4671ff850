"""The `animate-x` engine: the full model behind the plugin door.

Takes a `RenderJob` whose `driving_frames` give the driving video's pictures; yields RGBA frames on the job's canvas.
The model runs on a canvas within its trained area (sides multiples of 8) unless the user fixed the size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from animx import kernel_plugins, resident
from animx.canvas import Canvas, place
from animx.diffusion.options import NAMES, UNRECORDED, EngineOptions
from animx.diffusion.records import facts, job_plan, record, say_drift, stand_ins
from animx.engine import Plan, Progress, RenderJob, no_progress
from animx.errors import MissingExtraError, OutOfMemoryError, UsageError, WeightsError
from animx.job import ChunkStore

if TYPE_CHECKING:
    from animx.diffusion.clip import Clip
    from animx.diffusion.memory import Tier
    from animx.diffusion.pipeline import AnimateXPipeline
    from animx.diffusion.precision import Arithmetic
    from animx.diffusion.ranks import Ranks
    from animx.diffusion.render import Settings

log = logging.getLogger(__name__)

LARGEST_AREA = 512 * 768
"""The area the released network was trained on [px]."""
SECONDS_PER_TFLOP = {"cuda": 1 / 300, "cpu": 1 / 0.15}
"""Rough cost of the network's arithmetic for `--dry-run`, replaced by measurements once a benchmark has run."""


@dataclass(frozen=True)
class _Run:
    """The resolved options of one render."""

    options: EngineOptions
    device: str
    dtype: str
    settings: Settings
    tier: Tier
    arithmetic: Arithmetic


class AnimateXEngine:
    """The full latent diffusion model (`--engine animate-x`)."""

    name = "animate-x"
    options: frozenset[str] = NAMES
    unrecorded: frozenset[str] = UNRECORDED
    needs_hands = True
    needs_driving_frames = True
    fills_frame = True
    keeps_chunks = True
    stages = ("denoise", "decode")
    reason = "its weights and a CUDA device are there"

    def available(self) -> str | None:
        """None where torch, its libraries, the weights and CUDA are there; else what is missing and the mend."""
        try:
            self.require({})
        except (UsageError, WeightsError) as error:
            return str(error)
        import torch

        return None if torch.cuda.is_available() else "no CUDA device; it runs without one when named (slow)"

    def require(self, options: Mapping[str, Any]) -> None:
        """Refuse early what `render` would refuse: `UsageError` and `MissingExtraError` (2), `WeightsError` (6)."""
        from importlib.util import find_spec

        given = EngineOptions.of(options)
        for module in ("torch", "diffusers", "transformers"):
            if find_spec(module) is None:
                raise MissingExtraError("the full model", "model")
        if given.image_encoder == "open_clip" and find_spec("open_clip") is None:
            raise MissingExtraError("--set animate-x.image_encoder=open_clip", "openclip")
        from animx.weights import find_model

        kernel_plugins.taken()  # refuses what ANIMX_KERNELS says wrong
        if options:
            from animx.diffusion.steppers import check_scheduler

            check_scheduler(given.scheduler, given.steps, given.eta)
            _device(given)
        find_model(given.model)

    def expected(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the recipe of a render with these options holds, as far as it is known without rendering."""
        from animx.weights import find_model, model_hash

        given = EngineOptions.of(options)
        known = {name: value for name, value in asdict(given).items() if value is not None and name not in UNRECORDED}
        known["model"] = Path(given.model).name
        for name in ("stack", "linears", "attention"):
            if known[name] == "auto":
                del known[name]  # the recipe holds what the device made of it
        return {"options": known | stand_ins(), "weights": model_hash(find_model(given.model))}

    def plan(self, job: RenderJob) -> Plan:
        """Windows, memory per tier and time, without loading weights."""
        from animx.diffusion.halving import sizes
        from animx.diffusion.memory import GIB, config_of, predicted_bytes, tier_lines
        from animx.diffusion.steppers import make_stepper
        from animx.diffusion.windows import cut_segments, cut_windows
        from animx.weights import find_model

        run = _resolve(job)
        config = config_of(find_model(run.options.model))
        canvas = model_canvas(job.canvas, fixed=job.fixed_size)
        latent = (canvas.height // 8, canvas.width // 8)
        s = run.settings
        segments = cut_segments(job.poses.frames, s.window, s.overlap, s.windows)
        windows = [w for segment in segments for w in cut_windows(segment.frames, s.window, s.overlap)]
        steps = len(make_stepper(s.scheduler, s.steps, eta=s.eta).timesteps)
        branches = s.guidance.passes(steps)
        slots = sum(b - a + 1 for a, b in windows)
        # 89.4 TFLOP for 33 slots of 96 x 64, counted; attention makes larger grids cost a little more than linear.
        tflop = 89.4 * slots / 33 * (latent[0] * latent[1] / 6144) * branches
        notes = (
            f"{len(segments)} segment(s), {len(windows)} window(s) of {s.window} frames, {steps} steps at {canvas} px",
            f"memory tier '{run.tier.name}' on {run.device} in {run.dtype}: {sizes(s)}; predicted for each tier:",
            *tier_lines(latent, run.dtype, config, **_demands(run)),
            *run.arithmetic.told,
        )
        kind = "cuda" if run.device.startswith("cuda") else "cpu"
        used = replace(run.tier, window=s.window, batch=s.window_batch, decode_batch=s.decode_batch, tile=s.tile)
        memory = predicted_bytes(used, latent, config, **_demands(run)) / GIB * 1024
        job.report["options"] = record(run.settings, run.options, run.dtype)
        return Plan(self.name, job.poses.frames, len(windows), memory, tflop * SECONDS_PER_TFLOP[kind], notes)

    def render(self, job: RenderJob, on_progress: Progress = no_progress) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames in order; finished segments are kept in `job.folder` and taken up again with `resume`.

        When memory runs out before the first frame, the decoded batch or the window is halved, which is said and put
        into the recipe and the job folder.  Errors: `UsageError` without driving frames, `WeightsError`,
        `OutOfMemoryError`.
        """
        import torch

        from animx.diffusion.halving import changeable
        from animx.diffusion.precision import say
        from animx.diffusion.ranks import device_of_rank, join
        from animx.weights import find_model, model_hash

        if job.driving_frames is None:
            raise UsageError(
                f"engine '{self.name}' needs the driving pictures besides the poses. Give the clip with --driving-video"
            )
        options = EngineOptions.of(job.options)
        ranks = join(device_of_rank(_device(options)))
        run = _resolve(job, ranks)
        if ranks.is_first:
            say(run.arithmetic)
        folder = find_model(options.model)
        weights = model_hash(folder)
        store = None
        if job.folder is not None and ranks.is_first:
            canvas = model_canvas(job.canvas, fixed=job.fixed_size)
            planned = job_plan(job, run.settings, options, weights, run.dtype, run.device, canvas)
            store = ChunkStore(job.folder, planned, resume=options.resume)
            if not store.remembered():
                store.remember(changeable(run.settings))
        run = _reduced(run, ranks.from_first_object(store.remembered() if store is not None else {}))
        try:
            bits = (run.arithmetic.linears, run.arithmetic.attention)
            key = (weights, run.device, run.dtype, run.tier.offload, run.options.image_encoder, bits)
            pipeline = resident.once(key, lambda: _load(folder, run, partial(job.on_stage, "load")))
            clip = _clip(pipeline, job, run)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"out of memory on {run.device}: the model itself does not fit. Free the device, or use --vram "
                "with less than it has"
            ) from error
        yield from self._frames(pipeline, clip, job, run, weights, store, ranks, on_progress)
        ranks.close()

    def _frames(
        self,
        pipeline: AnimateXPipeline,
        clip: Clip,
        job: RenderJob,
        run: _Run,
        weights: str,
        store: ChunkStore | None,
        ranks: Ranks,
        on_progress: Progress,
    ) -> Iterator[NDArray[np.uint8]]:
        """Frames on the job's canvas; halves what does not fit until the first one is there."""
        import torch

        from animx.diffusion.halving import changeable, sizes
        from animx.diffusion.render import Drift, Hooks

        hooks = Hooks(
            on_step=on_progress,
            on_preview=job.on_preview,
            preview_every=run.options.preview or 0,
            stream=_streams(run.options, run.device, run.tier.offload),
            graph=run.options.graph,
        )
        yielded = False
        while True:
            drift = Drift()
            try:
                for frame in pipeline.frames(clip, run.settings, store=store, drift=drift, hooks=hooks, ranks=ranks):
                    if not yielded:
                        resolved = record(run.settings, run.options, run.dtype)
                        job.report.update(options=resolved, weights=weights, **facts(job))
                        yielded = True
                    yield _on_canvas(frame, job.canvas)
                break
            except torch.OutOfMemoryError as error:
                # Every rank is here, with an error of the same kind; only the first knows what was yielded and kept.
                kept = store is not None and bool(store.finished())
                smaller = ranks.from_first_object(None if yielded else _smaller(run, clip, error, kept))
                if smaller is None:
                    raise _out_of_memory(run, job, yielded or kept) from error
                log.warning("%s with %s; trying %s", _where(run, error), sizes(run.settings), sizes(smaller))
                run = replace(run, settings=smaller)
            if store is not None:
                store.remember(changeable(run.settings))
            if run.device.startswith("cuda"):
                torch.cuda.empty_cache()
        say_drift(job, drift)


def model_canvas(canvas: Canvas, *, fixed: bool = False) -> Canvas:
    """The canvas the network runs on: the job's own down to multiples of 8; when not `fixed`, within its area."""
    factor = 1.0 if fixed else min(1.0, (LARGEST_AREA * 1.05 / (canvas.width * canvas.height)) ** 0.5)
    return Canvas(*(max(64, int(side * factor) // 8 * 8) for side in canvas.size))


def _load(folder: Path, run: _Run, on_progress: Progress) -> AnimateXPipeline:
    import torch

    from animx.diffusion.pipeline import AnimateXPipeline

    on_progress(0, 1)
    pipeline = AnimateXPipeline.from_pretrained(folder, image_encoder=run.options.image_encoder)
    # Before the weights go to the device: those that are replaced never lie there all at once.
    pipeline.to_eight_bits(
        linears=run.arithmetic.linears == "fp8", attention=run.arithmetic.attention == "int8", on=run.device
    )
    dtype = getattr(torch, run.dtype)
    if run.tier.offload and run.device != "cpu":
        pipeline.to("cpu", dtype).enable_model_cpu_offload(run.device)
    else:
        pipeline.to(run.device, dtype)
    on_progress(1, 1)
    return pipeline


def _clip(pipeline: AnimateXPipeline, job: RenderJob, run: _Run) -> Clip:
    import torch

    assert job.driving_frames is not None
    canvas = model_canvas(job.canvas, fixed=job.fixed_size)
    where = place(job.canvas, canvas)
    if job.reference_pose is None:
        log.info("the reference has no pose: the first driving pose stands in for it, as in the released code")
    return pipeline.prepare(
        np.ascontiguousarray(job.picture[..., :3]),
        job.poses.on(canvas, where),
        job.driving_frames(),
        keypoints=job.driving_poses,
        reference_pose=None if job.reference_pose is None else job.reference_pose.on(canvas, where),
        generator=torch.Generator().manual_seed(run.settings.seed),
        on_progress=partial(job.on_stage, "encode"),
    )


def _on_canvas(frame: NDArray[np.uint8], canvas: Canvas) -> NDArray[np.uint8]:
    """A model frame RGB [h, w, 3] as RGBA on `canvas`."""
    from animx.image import resize

    whole = np.concatenate([frame, np.full((*frame.shape[:2], 1), 255, np.uint8)], axis=2)
    return whole if frame.shape[1::-1] == canvas.size else resize(whole, canvas)


def _device(options: EngineOptions) -> str:
    """The device to use; a `UsageError` for one that is not there."""
    import torch

    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: no such device. Use cpu, cuda or cuda:N") from error
    if kind.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: use cpu, cuda or cuda:N")
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device here. Use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return name


def _resolve(job: RenderJob, ranks: Ranks | None = None) -> _Run:
    """Options with their defaults; everything that decides about bytes is fixed here, alike on all ranks."""
    import torch

    from animx.diffusion.memory import choose_tier, config_of, pays_batched
    from animx.diffusion.precision import anywhere, obstacles, taken
    from animx.diffusion.ranks import device_of_rank
    from animx.diffusion.render import Settings
    from animx.diffusion.running import resolved
    from animx.diffusion.sampler import Guidance
    from animx.diffusion.windows import cut_windows
    from animx.weights import find_model

    o = EngineOptions.of(job.options)
    device = device_of_rank(_device(o))
    canvas = model_canvas(job.canvas, fixed=job.fixed_size)
    config = config_of(find_model(o.model))
    found = obstacles(device, config)
    arithmetic = taken(o, anywhere(ranks.meet(found)) if ranks is not None else found)
    free = 1 << 62
    if o.vram is not None:
        free = int(o.vram * 1e9)
    elif device.startswith("cuda"):
        free = torch.cuda.mem_get_info(device)[0]
    if ranks is not None:
        free = min(ranks.meet(free))
    on_cuda = device.startswith("cuda")
    dtype = o.dtype or ("bfloat16" if on_cuda else "float32")
    latent = (canvas.height // 8, canvas.width // 8)
    choose = partial(
        choose_tier, free, latent, config, dtype, windows=o.windows, stream=_streams(o, device, offload=False),
        linears=arithmetic.linears,
    )  # fmt: skip
    tier = choose(branches=2 if o.guidance_batched else 1)
    most = config.slots - 1  # the table of positions is as long as the clips of the training
    if o.window is not None and min(o.window, job.poses.frames) > most and config.motion != "none":
        raise UsageError(
            f"--window {o.window}: model '{o.model}' takes at most {most} frames at once. Use --window {most}"
        )
    window = o.window or min(tier.window, most)
    batched = o.guidance_batched
    if batched is None:
        # Where it pays, unless memory would force a smaller tier for it.
        pays = o.guidance != 1 and pays_batched(latent, min(window, job.poses.frames), device)
        batched = pays and choose(branches=2) == tier
    overlap = o.overlap if o.overlap is not None else min(8, window // 4)
    cut_windows(job.poses.frames, window, overlap)  # refuses impossible pairs in the user's words
    settings = Settings(
        seed=job.seed,
        steps=o.steps,
        scheduler=o.scheduler,
        eta=o.eta,
        guidance=Guidance(o.guidance, o.guidance_start, o.guidance_end, o.guidance_every),
        guidance_batched=batched,
        window=window,
        overlap=overlap,
        windows=o.windows,
        # A processor gains nothing from several windows at once.
        window_batch=o.window_batch or (tier.batch if on_cuda else 1),
        decode_batch=o.decode_batch or tier.decode_batch,
        tile=o.tile if o.tile is not None else tier.tile,
        colour=o.colour,
        stack="plain" if o.compiled and o.stack == "auto" else resolved(o.stack, device),
        compiled=o.compiled,
        linears=arithmetic.linears,
        attention=arithmetic.attention,
    )
    return _Run(o, device, dtype, settings, replace(tier, dtype=dtype), arithmetic)


def _streams(options: EngineOptions, device: str, offload: bool) -> bool:
    """Whether frames are decoded beside the denoising of the next segment."""
    return options.stream if options.stream is not None else device.startswith("cuda") and not offload


def _demands(run: _Run) -> dict[str, Any]:
    """What besides the tier decides about memory, as `predicted_bytes` takes it."""
    o = run.options
    stream = _streams(o, run.device, run.tier.offload)
    branches = 2 if run.settings.guidance_batched else 1
    return {"branches": branches, "windows": o.windows, "stream": stream, "linears": run.arithmetic.linears}


# ---- when memory runs out ----


def _reduced(run: _Run, found: Mapping[str, Any]) -> _Run:
    """`run` with the sizes that an earlier start of the same job had to come down to."""
    return replace(run, settings=replace(run.settings, **found)) if found else run


def _smaller(run: _Run, clip: Clip, error: BaseException, kept: bool) -> Settings | None:
    """Settings with half of what did not fit, or None when there is nothing left to halve.

    kept: segments have been finished with these windows; then only the decoding may change.
    """
    from animx.diffusion.halving import decoding_halved, halved
    from animx.diffusion.ranks import DECODING

    if DECODING in getattr(error, "__notes__", ()):
        return decoding_halved(run.settings, clip.latent)
    return None if kept else halved(run.settings, clip.frames)


def _where(run: _Run, error: BaseException) -> str:
    """Which device ran out: this one, or that of another rank."""
    from animx.diffusion.ranks import SharedOutOfMemoryError

    return str(error) if isinstance(error, SharedOutOfMemoryError) else f"out of memory on {run.device}"


def _out_of_memory(run: _Run, job: RenderJob, begun: bool) -> OutOfMemoryError:
    from animx.diffusion.halving import sizes

    where = f"out of memory on {run.device} with {sizes(run.settings)} at {job.canvas} px"
    if begun and job.folder is not None:
        return OutOfMemoryError(f"{where}, after a part was done. Free the device and go on with --resume")
    return OutOfMemoryError(f"{where}, the smallest tried. Use a smaller --size, or another device")
