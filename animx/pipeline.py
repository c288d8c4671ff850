"""The hall: joins reading, poses, retargeting, an engine and writing; computes nothing itself.

`render` = (decode || pose extraction) beside the preparation of the reference, then retargeting, then (engine ||
encoder).  Order is kept and memory is bounded: frames flow, only poses are held.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from animx import provenance
from animx.canvas import Canvas, place
from animx.driving import (
    Driving,
    backend_for,
    check_apart,
    driving_poses,
    extract,
    find_audio,
    is_picture,
    moves,
    open_driving,
    second_backend,
    stem,
    unseen_poses,
)
from animx.engine import Engine, Plan, RenderJob
from animx.errors import MissingExtraError, NoFigureError, UsageError
from animx.overlap import Drain
from animx.pose.sequence import PoseSequence
from animx.prepare import Reference, find_background, on_canvas, place_reference, prepare_reference
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
from animx.times import Time

if TYPE_CHECKING:
    from animx.retarget.preset import Preset

log = logging.getLogger(__name__)

__all__ = ["RenderOptions", "RenderResult", "extract_pose", "render", "still_pose"]


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
    from animx.image import read_picture
    from animx.video import has_alpha_container

    options = replace(options, **values) if options is not None else RenderOptions.of(**values)
    engine, reason = choose_engine(options.engine)
    extra = engine_options(engine, options.engine_options)
    target = Path(out) if out is not None else Path(f"{stem(reference)}_{_driving_stem(driving)}.mp4")
    side_car = provenance.side_car_path(target)
    _check_outputs(out if out is not None else target, side_car, overwrite)
    given = {"reference": reference, "driving": driving, "mask": options.mask, "driving video": options.driving_video}
    check_apart(target, given)
    check_apart(side_car, given)
    presets = load_presets(options.presets)
    check_retargeting(options)
    with provenance.collected_warnings() as warned, ExitStack() as stack:
        log.info("engine: %s (%s)", engine.name, reason)
        picture = read_picture(reference)
        background = find_background(options.background, picture.has_alpha, has_alpha_container(target), target)
        drive = open_driving(driving)
        hands = options.hands if options.hands is not None else bool(getattr(engine, "needs_hands", False))
        backend = backend_for(stack, options, drive, hands)
        looker = second_backend(stack, options, drive, backend)
        unseen = dry_run and drive.path is not None
        with _beside(
            lambda: prepare_reference(picture, ref_pose=options.ref_pose, mask_file=options.mask, backend=looker)
        ) as ready:

            def progress(done: int, total: int) -> None:
                if ready.done():
                    ready.result()  # the picture is no good: stop at once
                on_progress("pose", done, total)

            poses = unseen_poses(drive, options) if unseen else driving_poses(drive, options, backend, hands, progress)
        found = ready.result()
        placed, canvas = place_reference(found, options.size, options.fit)
        job = RenderJob(
            picture=placed.pixels,
            canvas=canvas,
            poses=poses if unseen else _retarget(poses, placed, canvas, presets, options),
            reference_pose=placed.pose,
            driving_poses=poses,
            mask=placed.mask,
            background=on_canvas(background, canvas),
            seed=options.seed,
            options=extra,
        )
        used = f"{backend.name} {backend.version}" if backend is not None and drive.path is not None else None
        used = used or (str(poses.source["backend"]) if poses.source.get("backend") else None)
        recipe = provenance.recipe(
            command="render",
            engine=engine.name,
            options={
                **options.resolved(),
                **{f"{engine.name}.{key}": value for key, value in extra.items()},
                "size": list(canvas.size),
                "fps": [job.poses.fps.numerator, job.poses.fps.denominator],
            },
            seed=options.seed,
            presets=[preset_record(one) for one in presets],
            inputs=[
                provenance.input_record("reference", picture.name, picture.sha256),
                provenance.input_record("driving", drive.name, drive.sha256),
                *options.file_records(),
            ],
            backend=used,
            reference_pose={"origin": found.origin, "backend": found.backend},
            mask=found.mask_method,
        )
        result = RenderResult(
            path=target,
            side_car=side_car,
            frames=job.poses.frames,
            canvas=canvas,
            fps=job.poses.fps,
            engine=engine.name,
            engine_reason=reason,
            backend=used,
            reference_pose=found.origin,
            recipe=recipe,
            warnings=(),
        )
        if dry_run:
            return replace(result, plan=_whole_plan(engine.plan(job), drive), warnings=tuple(warned))
        _write(engine, job, result, options, find_audio(drive, options, target), overwrite, warned, on_progress)
        return replace(result, recipe={**recipe, "warnings": sorted(warned)}, warnings=tuple(warned))


def _check_outputs(out: str | Path, side_car: Path, overwrite: bool) -> None:
    from animx.atomic import check_target
    from animx.video import check_output

    if str(out) == "-":
        raise UsageError("render -o -: a video does not go to stdout. Name a file, as in -o out.mp4")
    check_output(out, overwrite)
    check_target(side_car, overwrite)


def _driving_stem(driving: str | Path | PoseSequence) -> str:
    if isinstance(driving, PoseSequence) or str(driving) == "-":
        return "poses"
    return stem(driving)


@contextmanager
def _beside(work: Callable[[], Reference]) -> Iterator[Future[Reference]]:
    """Run `work` in a thread beside the block; its error ends the block."""
    with ThreadPoolExecutor(1, "animx-reference") as pool:
        future = pool.submit(work)
        yield future
        future.result()


def _retarget(
    poses: PoseSequence, placed: Reference, canvas: Canvas, presets: Sequence[Preset], options: RenderOptions
) -> PoseSequence:
    from animx.retarget.chain import retarget as chain

    return chain(
        poses,
        presets,
        reference=placed.pose if placed.pose is not None else canvas,
        align=options.align,  # type: ignore[arg-type]
        rescale=options.rescale,
        drop=options.drop,
        add=options.add,
    )


def _write(
    engine: Engine,
    job: RenderJob,
    result: RenderResult,
    options: RenderOptions,
    audio: Any,
    overwrite: bool,
    warned: list[str],
    on_progress: Stage,
) -> None:
    """Render and encode side by side; output and side-car appear whole, or neither does."""
    from animx.atomic import writing
    from animx.video import has_alpha_container, open_writer

    alpha = job.background.mode == "transparent" and has_alpha_container(result.path)
    canvas = Canvas(3 * job.canvas.width, job.canvas.height) if options.side_by_side else job.canvas
    panels = _Panels(job) if options.side_by_side else None
    total = job.poses.frames
    with (
        writing(result.side_car, overwrite) as note,
        open_writer(
            result.path,
            canvas,
            job.poses.fps,
            overwrite=overwrite,
            audio=audio,
            comment=provenance.as_comment(result.recipe),
        ) as writer,
        Drain(writer.write) as encoder,
    ):
        frames = engine.render(job)
        try:
            for done, frame in enumerate(frames):
                shown = frame if panels is None else panels.beside(frame, done)
                encoder.put(shown.copy() if alpha else np.ascontiguousarray(shown[..., :3]))
                on_progress("render", done + 1, total)
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()
        note.write_text(provenance.as_text({**result.recipe, "warnings": sorted(warned)}), encoding="utf-8")


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


def _whole_plan(plan: Plan, drive: Driving) -> Plan:
    """The engine's estimate plus that of pose extraction, which runs before it."""
    if drive.path is None:
        return plan
    return replace(plan, seconds=plan.seconds + plan.frames / 30, notes=(*plan.notes, "pose extraction at 30 frames/s"))


def extract_pose(
    path: str | Path,
    *,
    backend: str | None = None,
    person: str = "largest",
    smooth: bool = True,
    hands: bool = True,
    start: Time | str | float | None = None,
    end: Time | str | float | None = None,
    duration: Time | str | float | None = None,
    fps: Fraction | str | float | None = None,
    on_progress: Stage = no_stages,
) -> PoseSequence:
    """The poses of a video or folder of frames, on its canvas; of a picture its figure's pose (one frame).

    `person`: largest, first, track:N or all.  Errors: `NoFigureError` when nobody is found, `InputError` for what
    cannot be read, `MissingExtraError` without a pose backend (a picture is then fitted by its outline).
    """
    from animx.pose.backend import choose_backend

    options = RenderOptions.of(
        backend=backend, person=person, smooth=smooth, start=start, end=end, duration=duration, fps=fps
    )
    if not Path(path).is_dir() and is_picture(path) and not moves(path):
        return still_pose(path, backend=backend)[0]
    drive = open_driving(path)
    if drive.poses is not None:
        raise UsageError(f"{path}: already holds poses. To change them: animx pose retarget, animx pose convert")
    with ExitStack() as stack:
        chosen = choose_backend(backend, hands=hands)
        stack.callback(chosen.close)
        return extract(drive, options, chosen, hands, lambda done, total: on_progress("pose", done, total))


def still_pose(path: str | Path, *, backend: str | None = None) -> tuple[PoseSequence, Reference]:
    """The pose of a picture's figure on the picture's own canvas, found as `render` finds it, and how it was found."""
    from animx.image import read_picture
    from animx.pose.backend import choose_backend

    picture = read_picture(path)
    with ExitStack() as stack:
        try:
            chosen = choose_backend(backend)
            stack.callback(chosen.close)
        except MissingExtraError:
            if backend is not None:
                raise
            chosen = None
        found = prepare_reference(picture, backend=chosen)
    if found.pose is None:
        raise NoFigureError(
            f"{path}: no pose was found on the figure. Use --edit to get a skeleton file to place by hand"
        )
    own = picture.canvas
    pose = found.pose.on(own, place(found.canvas, own))
    source = {"name": picture.name, "hash": picture.sha256, "origin": found.origin}
    return replace(pose, source={**source, **({"backend": found.backend} if found.backend else {})}), found
