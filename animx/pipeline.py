"""The hall: joins reading, poses, retargeting, an engine and writing; computes nothing itself.

`render` = (decode || pose extraction) beside the preparation of the reference, then retargeting, then (engine ||
encoder).  Order is kept and memory is bounded: frames flow, only poses are held.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import chain as chained
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from animx import provenance
from animx.canvas import Canvas, place
from animx.driving import (
    Driving,
    backend_for,
    check_apart,
    driving_pictures,
    extract,
    find_audio,
    open_driving,
    open_stream,
    poses_hash,
    poses_of_file,
    second_backend,
    stem,
    unseen_poses,
)
from animx.engine import Background, Engine, Plan, RenderJob, no_progress
from animx.errors import OutOfMemoryError, UsageError
from animx.job import forget, has_chunks, is_unfinished, job_folder
from animx.pose.sequence import PoseSequence
from animx.prepare import (
    Reference,
    find_background,
    on_canvas,
    place_reference,
    prepare_reference,
    seated,
)
from animx.preview import Previews
from animx.processes import is_first
from animx.request import (
    RenderOptions,
    Stage,
    check_retargeting,
    choose_engine,
    engine_options,
    load_presets,
    no_stages,
    preset_record,
)
from animx.retarget.chain import retarget as chain

if TYPE_CHECKING:
    from animx.retarget.preset import Preset
    from animx.video import AudioSource, FrameStream

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RenderResult:
    """What `render` made, or with `dry_run` what it would make."""

    path: Path
    side_car: Path
    frames: int
    canvas: Canvas
    fps: Fraction
    engine: str
    engine_reason: str
    backend: str | None
    reference_pose: str
    """Where the reference's pose comes from: detected, fitted, file or none."""
    recipe: Mapping[str, Any]
    warnings: tuple[str, ...]
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Numbers that the engine found while it rendered, such as the colour drift."""
    previews: tuple[Path, ...] = ()
    """Files written beside the output with `preview`."""
    plan: Plan | None = None
    """The estimate of a dry run; None when the output was written."""

    @property
    def duration(self) -> float:
        """Length of the output [s]."""
        return float(self.frames / self.fps)


def render(
    reference: str | Path,
    driving: str | Path | PoseSequence,
    out: str | Path | None = None,
    *,
    options: RenderOptions | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: Stage = no_stages,
    **values: Any,
) -> RenderResult:
    """Make the character of the picture `reference` move like `driving` and write it to `out` (with its side-car).

    `driving`: a video, a folder of frames, a pose file, `-` (a pose file on stdin) or a `PoseSequence`.  `out` None:
    `REF_DRIVING.mp4` in the working folder.  `values` are fields of `RenderOptions`.  `dry_run` checks the inputs,
    finds the figure and estimates; nothing is written.  Errors: the tree of `animx.errors`.
    """
    options = replace(options, **values) if options is not None else RenderOptions.of(**values)
    if options.person == "all":
        raise UsageError("--person all: one person drives a figure. Use largest, first or track:N")
    if str(reference) in ("", "-"):
        raise UsageError(f"REF '{reference}': names no picture. Name a file; only poses come from stdin")
    if not isinstance(driving, PoseSequence) and not str(driving):
        raise UsageError("DRIVING '': names nothing. Name a video, a pose file or a folder of frames")
    if options.ref_pose == "-" and str(driving) == "-":
        raise UsageError("'-' is stdin at most once. Name a file for DRIVING or --ref-pose")
    engine, reason = choose_engine(options.engine)
    extra = engine_options(engine, options.engine_options)
    if hasattr(engine, "require"):
        engine.require(extra)
    target = Path(out) if out is not None else Path(f"{stem(reference)}_{_driving_stem(driving)}.mp4")
    folder = job_folder(target) if getattr(engine, "keeps_chunks", False) else None
    if folder is not None and is_unfinished(folder):
        if not extra.get("resume"):
            raise UsageError(
                f"{folder}: an unfinished render of this output. Continue it with --resume, or delete the folder"
            )
        overwrite = True  # what lies there is this job's own: killed after the output, before the folder was gone
    _check_outputs(out if out is not None else target, overwrite, options, reference, driving)
    previews = Previews.of(target, overwrite) if extra.get("preview") else None
    presets = load_presets(options.presets)
    check_retargeting(options)
    options.check_files()
    log.info("engine: %s (%s)", engine.name, reason)
    with provenance.collected_warnings() as warned, ExitStack() as stack:
        ready = _gather(stack, engine, options, target, reference, driving, dry_run, on_progress)
        job = _job(ready, engine, options, presets, extra, folder, dry_run)
        recipe = _recipe(ready, job, engine, options, presets, extra)
        if previews is not None:
            job = replace(job, on_preview=previews.show)
        result = RenderResult(
            path=target,
            side_car=provenance.side_car_path(target),
            frames=job.poses.frames,
            canvas=job.canvas,
            fps=job.poses.fps,
            engine=engine.name,
            engine_reason=reason,
            backend=recipe["backend"],
            reference_pose=ready.reference.origin,
            recipe=recipe,
            warnings=(),
        )
        if dry_run:
            plan = _whole_plan(engine.plan(job), extracts=ready.stream is not None)
            recipe = _with_report(recipe, engine, job)
            return replace(result, plan=plan, recipe=recipe, warnings=tuple(warned))
        if not is_first():
            for _ in engine.render(job):  # helps the first process, which alone writes
                pass
            return result
        audio = find_audio(ready.stream, options)
        if previews is not None:
            previews.dance(job, on_progress)
        begun = job.folder is not None and is_unfinished(job.folder)
        try:
            recipe = _write(engine, job, result, options, audio, overwrite, warned, on_progress)
        except Exception as error:
            keeps = isinstance(error, (UsageError, OutOfMemoryError)) or begun
            if job.folder is not None and not keeps and not has_chunks(job.folder):
                forget(job.folder)  # it failed before a part was done: nothing to go on with
            raise
        if job.folder is not None:
            forget(job.folder)
        return replace(
            result,
            recipe={**recipe, "warnings": sorted(warned)},
            warnings=tuple(warned),
            measured=job.report.get("measured", {}),
            previews=() if previews is None else previews.written(),
        )


def _check_outputs(
    out: str | Path, overwrite: bool, options: RenderOptions, reference: str | Path, driving: str | Path | PoseSequence
) -> None:
    """Refuse an output that cannot or may not be written before any work is done."""
    from animx.atomic import check_name, check_target
    from animx.video import check_output

    if str(out) == "-":
        raise UsageError("render -o -: a video does not go to stdout. Name a file, as in -o out.mp4")
    check_name(out)
    side_car = provenance.side_car_path(out)
    inputs = {"reference": reference, "driving": driving, **options.files()}
    for path in (out, side_car):
        check_apart(path, inputs)
    check_output(out, overwrite)
    check_target(side_car, overwrite)


def _driving_stem(driving: str | Path | PoseSequence) -> str:
    if isinstance(driving, PoseSequence) or str(driving) == "-":
        return "poses"
    return stem(driving)


@dataclass(frozen=True)
class _Inputs:
    """Both sides of a render, ready to be joined."""

    reference: Reference
    background: Background
    drive: Driving
    stream: FrameStream | None
    """The clip that the poses were extracted from; None when they came as poses."""
    poses: PoseSequence
    """Driving poses of one person on the driving side's canvas, before alignment."""
    backend: str | None
    """Name and version of what extracted the driving poses."""


def _gather(
    stack: ExitStack,
    engine: Engine,
    options: RenderOptions,
    target: Path,
    reference: str | Path,
    driving: str | Path | PoseSequence,
    dry_run: bool,
    on_progress: Stage,
) -> _Inputs:
    """Read both sides; the reference is prepared in a thread of its own while poses are extracted."""
    from animx.image import read_picture
    from animx.video import has_alpha_container

    picture = read_picture(reference)
    filler = engine.name if getattr(engine, "fills_frame", False) else None
    background = find_background(options.background, picture.has_alpha, has_alpha_container(target), target, filler)
    drive = open_driving(driving)
    stream = None if drive.path is None else open_stream(drive.path, options)
    hands = options.hands if options.hands is not None else bool(getattr(engine, "needs_hands", False))
    backend = backend_for(stack, options, drive, hands)
    looker = second_backend(stack, options, drive, backend)
    given = None if drive.poses is None else poses_of_file(drive.poses, options)
    with _beside(
        lambda: prepare_reference(picture, ref_pose=options.ref_pose, mask_file=options.mask, backend=looker)
    ) as ready:

        def progress(done: int, total: int) -> None:
            if ready.done():
                ready.result()  # the picture is no good: stop at once
            on_progress("pose", done, total)

        if given is not None:
            poses = given
        elif dry_run:
            poses = unseen_poses(_given(stream))
        else:
            poses = extract(drive, _given(stream), options, _given(backend), hands, progress)
    return _Inputs(ready.result(), background, drive, stream, poses, str(poses.source.get("backend") or "") or None)


def _given(value: T | None) -> T:
    assert value is not None  # a clip always comes with its stream and a backend
    return value


@contextmanager
def _beside(work: Callable[[], Reference]) -> Iterator[Future[Reference]]:
    """Run `work` in a thread beside the block; its error ends the block."""
    with ThreadPoolExecutor(1, "animx-reference") as pool:
        future = pool.submit(work)
        yield future
        future.result()


def _job(
    ready: _Inputs,
    engine: Engine,
    options: RenderOptions,
    presets: Sequence[Preset],
    extra: Mapping[str, Any],
    folder: Path | None,
    dry_run: bool,
) -> RenderJob:
    """Join both sides on the output's canvas."""
    placed, canvas = place_reference(ready.reference, options.size, options.fit)
    if dry_run and ready.stream is not None:
        moved = ready.poses.on(canvas, place(ready.poses.canvas, canvas))  # empty: nobody was looked for
    else:
        goal = placed.pose if placed.pose is not None else canvas
        moved = chain(ready.poses, presets, goal, options.align, options.rescale, options.drop, options.add)
    background = on_canvas(ready.background, canvas)
    fills = getattr(engine, "fills_frame", False)
    return RenderJob(
        picture=seated(placed.pixels, placed.mask, background) if fills else placed.pixels,
        canvas=canvas,
        poses=moved,
        reference_pose=placed.pose,
        driving_poses=ready.poses,
        mask=placed.mask,
        background=background,
        seed=options.seed,
        options=extra,
        driving_frames=_pictures(ready, engine, options),
        folder=folder,
        fixed_size=options.size is not None,
        identity={
            "reference": ready.reference.picture.sha256,
            "driving": ready.drive.sha256,
            "files": {one["role"]: one["sha256"] for one in options.file_records()},
            "poses": [poses_hash(one) for one in (moved, ready.poses, placed.pose) if one is not None],
            "retargeting": provenance.content_hash(
                {**options.resolved(), "presets": [preset_record(one) for one in presets]}
            ),
        },
    )


def _pictures(
    ready: _Inputs, engine: Engine, options: RenderOptions
) -> Callable[[], Iterator[NDArray[np.uint8]]] | None:
    """The driving pictures for an engine that needs them (`needs_driving_frames`)."""
    if not getattr(engine, "needs_driving_frames", False):
        return None
    folder = ready.drive.folder
    found = driving_pictures(ready.drive, ready.stream, ready.poses, options, folder)
    if found is None:
        raise UsageError(
            f"engine '{engine.name}' looks at the driving pictures, and {ready.drive.name} holds poses alone. "
            "Give the clip they were made from with --driving-video"
        )
    return found


def _recipe(
    ready: _Inputs,
    job: RenderJob,
    engine: Engine,
    options: RenderOptions,
    presets: Sequence[Preset],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    picture, drive = ready.reference.picture, ready.drive
    return provenance.recipe(
        command="render",
        engine=engine.name,
        options={
            **options.resolved(),
            **_named(engine, extra),
            "size": list(job.canvas.size),
            "fps": [job.poses.fps.numerator, job.poses.fps.denominator],
        },
        seed=options.seed,
        presets=[preset_record(one) for one in presets],
        inputs=[
            provenance.input_record("reference", picture.name, picture.sha256),
            provenance.input_record("driving", drive.name, drive.sha256),
            *options.file_records(),
            *_piped_record(ready.reference, options),
        ],
        backend=ready.backend,
        reference_pose={"origin": ready.reference.origin, "backend": ready.reference.backend},
        mask=ready.reference.mask_method,
    )


def _piped_record(reference: Reference, options: RenderOptions) -> list[dict[str, str]]:
    """The reference's pose as an input, when it came through stdin and no file can be named."""
    if options.ref_pose != "-" or reference.pose is None:
        return []
    return [provenance.input_record("ref_pose", "-", poses_hash(reference.pose))]


def _write(
    engine: Engine,
    job: RenderJob,
    result: RenderResult,
    options: RenderOptions,
    audio: AudioSource | None,
    overwrite: bool,
    warned: list[str],
    on_progress: Stage,
) -> dict[str, Any]:
    """Render and encode side by side; output and side-car appear whole, or neither does.  Returns the whole recipe."""
    import cv2

    from animx.atomic import writing
    from animx.video import has_alpha_container, open_writer

    alpha = job.background.mode == "transparent" and has_alpha_container(result.path)
    canvas = Canvas(3 * job.canvas.width, job.canvas.height) if options.side_by_side else job.canvas
    panels = _Panels(job) if options.side_by_side else None
    job = replace(job, on_stage=on_progress)
    total = job.poses.frames
    inner, outer = getattr(engine, "stages", (None, "render"))
    progress = partial(on_progress, inner) if inner is not None else no_progress
    with (
        writing(result.side_car, overwrite) as note,
        closing(cast("Generator[NDArray[np.uint8], None, None]", engine.render(job, progress))) as frames,
    ):
        first = next(frames)  # an engine may have to change its plan until here: the recipe tells what it came to
        recipe = _with_report(result.recipe, engine, job)
        with open_writer(
            result.path,
            canvas,
            job.poses.fps,
            overwrite=overwrite,
            audio=audio,
            comment=provenance.as_comment(recipe),
        ) as writer:
            for done, frame in enumerate(chained([first], frames)):
                shown = frame if panels is None else panels.beside(frame, done)
                # encodes in a thread of its own; a copy of `shown[..., :3]` by numpy would cost more than drawing
                writer.write(shown if alpha else np.asarray(cv2.cvtColor(shown, cv2.COLOR_RGBA2RGB), np.uint8))
                on_progress(outer, done + 1, total)
            measured = {"measured": job.report["measured"]} if "measured" in job.report else {}
            whole = {**recipe, **measured, "warnings": sorted(warned)}
            note.write_text(provenance.as_text(whole), encoding="utf-8")
    return recipe


def _named(engine: Engine, options: Mapping[str, Any]) -> dict[str, Any]:
    """Engine options by their full name, without those that change no byte."""
    skip: frozenset[str] = getattr(engine, "unrecorded", frozenset())
    return {f"{engine.name}.{key}": value for key, value in options.items() if key not in skip}


def _with_report(recipe: Mapping[str, Any], engine: Engine, job: RenderJob) -> dict[str, Any]:
    """The recipe with what the engine made of its options, and its other facts."""
    facts = {key: value for key, value in job.report.items() if key not in ("options", "measured")}
    options = {**recipe["options"], **_named(engine, job.report.get("options", {}))}
    return {**recipe, "options": options, **facts}


class _Panels:
    """Reference, pose and result side by side."""

    def __init__(self, job: RenderJob) -> None:
        self._job = job
        self._reference = job.picture

    def beside(self, frame: NDArray[np.uint8], t: int) -> NDArray[np.uint8]:
        """RGBA [H, 3W, 4]: the reference, the pose of frame `t`, the frame."""
        from animx.pose.draw import draw_pose

        drawn = draw_pose(self._job.poses, t, canvas=self._job.canvas)
        pose = np.dstack([drawn, np.full(drawn.shape[:2], 255, np.uint8)])
        return np.concatenate([self._reference, pose, frame], axis=1)


def _whole_plan(plan: Plan, *, extracts: bool) -> Plan:
    """The engine's estimate plus that of pose extraction, which runs before it."""
    if not extracts:
        return plan
    return replace(plan, seconds=plan.seconds + plan.frames / 30, notes=(*plan.notes, "pose extraction at 30 frames/s"))
