"""Poses alone: extract them from a clip or a picture, and retarget them.  The hall's side doors."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animx.canvas import Canvas, place
from animx.driving import extract, is_still, open_driving, open_stream
from animx.errors import InputError, MissingExtraError, NoFigureError
from animx.pose.sequence import PoseSequence
from animx.prepare import prepare_reference, read_single, template_pose
from animx.request import Align, RenderOptions, Stage, check_retargeting, load_presets, no_stages
from animx.times import Time

if TYPE_CHECKING:
    from animx.pose.backend import PoseBackend
    from animx.retarget.preset import Preset

log = logging.getLogger(__name__)


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

    if is_still(path):
        return still_pose(path, backend=backend)
    options = RenderOptions.of(
        backend=backend, person=person, smooth=smooth, start=start, end=end, duration=duration, fps=fps
    )
    drive = open_driving(path)
    if drive.path is None:
        raise InputError(f"{path}: already holds poses. To change them: animx pose retarget, animx pose convert")
    with ExitStack() as stack:
        stream = open_stream(drive.path, options)
        chosen = choose_backend(backend, hands=hands)
        stack.callback(chosen.close)
        return extract(drive, stream, options, chosen, hands, lambda done, total: on_progress("pose", done, total))


def still_pose(path: str | Path, *, backend: str | None = None, blank: bool = False) -> PoseSequence:
    """The pose of a picture's figure on the picture's own canvas, found as `render` finds it (one frame).

    `source["origin"]` tells how: detected, fitted or, with `blank` and nothing found, template (a standing body laid
    over the figure, to be corrected by hand).  Without `blank` nothing found is a `NoFigureError`.
    """
    from animx.image import read_picture

    picture = read_picture(path)
    with ExitStack() as stack:
        found = prepare_reference(picture, backend=_any_backend(stack, backend), advise=False)
    pose, origin = found.pose, found.origin
    if pose is None:
        if not blank:
            raise NoFigureError(f"{path}: no pose was found on the figure. Use --edit to get joints to place by hand")
        pose, origin = template_pose(found), "template"
        log.warning("%s: no pose was found; the joints are those of a standing body laid over the figure", path)
    source = {"name": picture.name, "hash": picture.sha256, "origin": origin}
    own = picture.canvas
    return replace(
        pose.on(own, place(found.canvas, own)),
        source={**source, **({"backend": found.backend} if found.backend else {})},
    )


def _any_backend(stack: ExitStack, name: str | None) -> PoseBackend | None:
    """The backend `name`, or the best one; None when none is installed and none was asked for."""
    from animx.pose.backend import choose_backend

    try:
        chosen = choose_backend(name)
    except MissingExtraError:
        if name is not None:
            raise
        log.info("no pose backend is installed: skeletons are fitted to outlines (see: animx doctor)")
        return None
    stack.callback(chosen.close)
    return chosen


def retarget(
    poses: str | Path | PoseSequence,
    preset: str | Path | Preset | Sequence[str | Path | Preset] = (),
    reference: str | Path | PoseSequence | Canvas | None = None,
    *,
    align: Align = "robust",
    rescale: Mapping[str, float] | None = None,
    drop: Sequence[str] = (),
    add: Sequence[str] = (),
    ops: Iterable[tuple[str, Mapping[str, Any]]] = (),
    backend: str | None = None,
) -> PoseSequence:
    """Align `poses` to `reference`, then apply presets in order, then `rescale`, then `drop` and `add`, then `ops`.

    `poses` and `reference` may be files; `reference` also a picture, whose figure's pose is found, or a canvas that is
    only fitted to.  Without a reference nothing is aligned.  `ops`: (name, parameters) of retarget operations.
    """
    from animx.pose.formats import read_poses
    from animx.retarget.chain import retarget as chain

    options = RenderOptions.of(presets=preset, rescale=rescale or {}, drop=drop, add=add, align=align)
    presets = load_presets(options.presets)
    check_retargeting(options)
    driving = poses if isinstance(poses, PoseSequence) else read_poses(poses)
    goal: PoseSequence | Canvas | None
    if reference is None or isinstance(reference, (PoseSequence, Canvas)):
        goal = reference
    else:
        goal = _goal(reference, align, backend)
    return chain(driving, presets, goal, options.align, options.rescale, options.drop, options.add, ops=ops)


def _goal(reference: str | Path, align: str, backend: str | None) -> PoseSequence | Canvas:
    from animx.image import read_picture

    if not is_still(reference):
        return read_single(Path(reference))
    if align == "none":
        return read_picture(reference).canvas
    return still_pose(reference, backend=backend)
