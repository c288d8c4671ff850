"""Which backend turns pictures into keypoints, and the pose of a single picture.

In: a backend's name or nothing, RGB pictures [H, W, 3].  Out: a `PoseBackend` (see `detection.py`), a `PoseSequence`.
Backends are plugins of the group `animx.pose_backends`; the built-in ones are `mediapipe` (offline, one person) and
`rtm` (ONNX files, several persons).  The choice is made once, is logged, and never changes silently afterwards.
"""

from __future__ import annotations

import inspect
import logging
import sys
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from animx import plugins
from animx.canvas import Canvas
from animx.errors import AnimxError, MissingExtraError, UsageError, nearest
from animx.pose.detection import MIN_JOINT_SCORE, MIN_SEEN_JOINTS, Detection, PoseBackend, nobody
from animx.pose.extract import extract_poses
from animx.pose.sequence import PoseSequence

log = logging.getLogger(__name__)

PREFERENCE = ("rtm", "mediapipe")
"""Backends in the order in which the default is looked for; third-party ones come last."""


def available_backends() -> dict[str, str | None]:
    """Every known backend by name: None when usable here, else the line that tells what is missing."""
    found: dict[str, str | None] = {}
    for name in sorted(plugins.names("pose_backends"), key=_rank):
        try:
            found[name] = plugins.load("pose_backends", name).available()
        except AnimxError as error:
            found[name] = str(error)
    return found


def choose_backend(name: str | None = None, **options: Any) -> PoseBackend:
    """Make the backend `name`, or the best one that is installed and has its weights; `logging.info` says which.

    `options` go to the backend's constructor (`hands`, and for `rtm` also `det`, `pose`, `detect_every`, ...); None
    means "not given".  Without a name only backends that know all given options are tried.  Errors: `UsageError`
    (unknown name or option), `MissingExtraError` (not installed), `WeightsError` (no weights).
    """
    given = {key: value for key, value in options.items() if value is not None}
    if name is not None:
        return _make(name, given, "asked for")
    candidates = [one for one in sorted(plugins.names("pose_backends"), key=_rank) if _usable(one, given)]
    for one in candidates:
        return _make(one, given, "the best one that is installed and has its weights")
    raise MissingExtraError("pose extraction", "offline" if sys.version_info < (3, 13) else "pose")


def _rank(name: str) -> int:
    return PREFERENCE.index(name) if name in PREFERENCE else len(PREFERENCE)


def _usable(name: str, options: dict[str, Any]) -> bool:
    try:
        kind = plugins.load("pose_backends", name)
        known = _option_names(kind)
        complete = {"det", "pose"} <= options.keys() & known  # the weights are given: nothing to look for
        return options.keys() - {"hands"} <= known and (complete or kind.available() is None)
    except AnimxError as error:
        log.warning("%s", error)
        return False


def _make(name: str, options: dict[str, Any], why: str) -> PoseBackend:
    kind = plugins.load("pose_backends", name)
    known = _option_names(kind)
    if "hands" not in known:  # `extract_poses` leaves hands and face out itself where they are not wanted
        options = {key: value for key, value in options.items() if key != "hands"}
    for key in options:
        if key not in known:
            raise UsageError(f"pose backend '{name}' has no option '{key}'.{nearest(key, known)}")
    backend = cast("PoseBackend", kind(**options))
    log.info("pose backend: %s (%s), %s", backend.name, backend.version, why)
    return backend


def _option_names(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters)


def detect_still(
    picture: NDArray[np.uint8], backend: PoseBackend, mask: NDArray[np.float32] | None = None
) -> PoseSequence | None:
    """The pose of a single RGB picture [H, W, 3] as a sequence of one frame and one person; None when none is found.

    With `mask` (coverage 0..1 [H, W]) the person with the most seen joints on it is taken, else the most prominent one.
    This is the plain detection: guards against wrong ones stand where the reference's pose is decided.
    """
    height, width = picture.shape[:2]
    found = backend.detect(picture, still=True)
    seen = (found.scores[:, :18] >= MIN_JOINT_SCORE).sum(1) if found.persons else np.zeros(0, int)
    if not len(seen) or seen.max() < MIN_SEEN_JOINTS:
        return None
    best = int(np.argmax(seen >= MIN_SEEN_JOINTS))
    if mask is not None:
        columns = np.clip(found.keypoints[..., 0], 0, width - 1).astype(int)  # [P, K]
        rows = np.clip(found.keypoints[..., 1], 0, height - 1).astype(int)
        on_mask = (mask[rows, columns] > 0.5) & (found.scores >= MIN_JOINT_SCORE)
        best = int(np.argmax(on_mask[:, :18].sum(1)))
    return PoseSequence(
        keypoints=found.keypoints[None, best : best + 1],
        scores=found.scores[None, best : best + 1],
        canvas=Canvas(width, height),
        source={"backend": f"{backend.name} {backend.version}"},
        depth=None if found.depth is None else found.depth[None, best : best + 1],
    )


def mask_hint(picture: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Where a person probably is in an RGB picture, as coverage 0..1 [H, W]; None when no net for it is installed."""
    from animx.pose import mediapipe

    if mediapipe.MediapipeBackend.available() is not None:
        return None
    return mediapipe.selfie_mask(picture)


__all__ = [
    "PREFERENCE",
    "Detection",
    "PoseBackend",
    "available_backends",
    "choose_backend",
    "detect_still",
    "extract_poses",
    "mask_hint",
    "nobody",
]
