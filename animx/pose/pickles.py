"""Pose pickles of DWPose, Animate-X and UniAnimate, import only (reference facts 9.4 and 9.5).

Three kinds, told apart by their content:
- one per video (Animate-X): `bodies` [N, 18, 2], `body_indices` [N, 18], `faces` [N, 68, 2], `hands` [N, 2, 21, 2],
  `size` (H, W, channels), `fps`;
- one person (`..._ref_pose.pkl`): `bodies` = {`candidate` [20 or 18, 2], `subset` [1, 20]}, `hands` [2, 21, 2],
  `faces` [1, 68, 2];
- a list of those, or a dictionary by frame (UniAnimate, DWPose).
Coordinates are divided by width and height, -1 = missing.  They hold no scores: a joint is there (1) or not (0).  Rows
18 and 19 of a candidate are the left and right toes; one point fills big and small toe.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose import native
from animx.pose.sequence import MAX_FRAMES, PoseSequence
from animx.pose.skeleton import (
    FACE,
    JOINTS,
    L_BIG_TOE,
    L_SMALL_TOE,
    LEFT_HAND,
    R_BIG_TOE,
    R_SMALL_TOE,
    RIGHT_HAND,
)  # fmt: skip
from animx.pose.unpickle import array_of, read_pickle

log = logging.getLogger(__name__)

RELEASED_CANVAS = Canvas(512, 768)
"""Canvas of a pickle that holds none and for which the caller gives none [px]: that of the released model."""


def read(data: bytes, where: str, canvas: Canvas | None = None, fps: Fraction | None = None) -> PoseSequence:
    """The poses in a pickle.  `canvas` and `fps` stand in for what it does not hold."""
    value = read_pickle(data, where)
    try:
        points, held_canvas, held_fps = _clip(value)
        canvas = held_canvas or canvas
        if canvas is None:
            canvas = RELEASED_CANVAS
            log.warning("%s: holds no picture size; %s is assumed, as the released model has it", where, canvas)
        with np.errstate(over="ignore"):
            xy = (points[:, None, :, :2] * canvas.size).astype(np.float32)
        return PoseSequence(
            keypoints=xy,
            scores=points[:, None, :, 2].astype(np.float32),
            canvas=canvas,
            fps=held_fps or fps or Fraction(25),
            source={"format": "pickle"},
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _clip(value: Any) -> tuple[NDArray[np.float64], Canvas | None, Fraction | None]:
    """Points [T, 134, 3] (normalised x, y, score), and canvas and rate where the pickle holds them."""
    if isinstance(value, dict) and "bodies" in value and not isinstance(value["bodies"], dict):
        return _video(value)
    if isinstance(value, dict) and "bodies" in value:
        return _person(value, "")[None], None, None
    if isinstance(value, dict) and value and all(isinstance(entry, dict) for entry in value.values()):
        keys = list(value)
        if not (all(isinstance(key, int) for key in keys) or all(isinstance(key, str) for key in keys)):
            raise InputError("frames: keys that are neither numbers nor names")
        frames = [(f"[{key!r}].", value[key]) for key in sorted(keys)]
    elif isinstance(value, list | tuple) and value and all(isinstance(entry, dict) for entry in value):
        frames = [(f"[{i}].", entry) for i, entry in enumerate(value)]
    else:
        raise InputError("bodies: missing. It is no pose pickle of DWPose, Animate-X or UniAnimate")
    if len(frames) > MAX_FRAMES:
        raise InputError(f"frames: {len(frames)}, at most {MAX_FRAMES}")
    return np.stack([_person(entry, name) for name, entry in frames]), None, None


def _video(value: dict[Any, Any]) -> tuple[NDArray[np.float64], Canvas | None, Fraction | None]:
    bodies = _numbers(value, "bodies")
    if bodies.ndim == 2:  # one frame: 18 or 20 joints
        bodies = bodies[None]
    if bodies.ndim != 3 or bodies.shape[1] not in (18, 20) or bodies.shape[2] != 2 or not len(bodies):
        raise InputError(f"bodies: shape {list(bodies.shape)}, expected [N, 18, 2]")
    native.check_shape("bodies", (len(bodies), 1, JOINTS))
    points = np.zeros((len(bodies), JOINTS, 3))
    indices = value.get("body_indices")
    _put_body(points, bodies, None if indices is None else _numbers(value, "body_indices"))
    if value.get("hands") is not None:
        hands = _shaped(_numbers(value, "hands"), "hands", (len(bodies), 2, 21, 2))
        _put(points, LEFT_HAND, hands[:, 0])
        _put(points, RIGHT_HAND, hands[:, 1])
    if value.get("faces") is not None:
        _put(points, FACE, _shaped(_numbers(value, "faces"), "faces", (len(bodies), 68, 2)))
    canvas = None
    if value.get("size") is not None:
        size = _numbers(value, "size").reshape(-1)
        if len(size) < 2:
            raise InputError("size: expected height, width")
        canvas = native.read_canvas([int(size[1]), int(size[0])])
    rate = None
    if value.get("fps") is not None:
        fps = _numbers(value, "fps")
        if fps.size != 1 or not 1e-3 <= float(fps.reshape(-1)[0]) <= 10000:
            raise InputError("fps: expected a frame rate")
        rate = Fraction(float(fps.reshape(-1)[0])).limit_denominator(1001)
    return points, canvas, rate


def _person(value: dict[Any, Any], where: str) -> NDArray[np.float64]:
    """A person dictionary as [134, 3]."""
    points = np.zeros((1, JOINTS, 3))
    body = value.get("bodies")
    if not isinstance(body, dict):
        raise InputError(f"{where}bodies: missing, or without a candidate")
    candidate = _numbers(body, "candidate", where)
    if candidate.ndim != 2 or candidate.shape[1] != 2 or len(candidate) < 18:
        raise InputError(f"{where}candidate: shape {list(candidate.shape)}, expected [20, 2] or [18, 2]")
    subset = None
    if body.get("subset") is not None:
        subset = _numbers(body, "subset", where)
        # One row for each person found: the first is the released choice.
        subset = subset.reshape(1, -1) if subset.ndim == 1 else subset[:1]
    # Several people stand below each other, 18 or 20 rows each; 20 columns for 18 joints hold two totals.
    count = 20 if len(candidate) % 20 == 0 and (subset is None or subset.shape[-1] == 20) else 18
    _put_body(points, candidate[None, :count], subset)
    if value.get("hands") is not None:
        hands = _numbers(value, "hands", where)
        if hands.ndim != 3 or len(hands) < 2:
            raise InputError(f"{where}hands: shape {list(hands.shape)}, expected [2, 21, 2]")
        _put(points, LEFT_HAND, _shaped(hands[:1], f"{where}hands", (1, 21, 2)))
        _put(points, RIGHT_HAND, _shaped(hands[1:2], f"{where}hands", (1, 21, 2)))
    if value.get("faces") is not None:
        _put(points, FACE, _shaped(_numbers(value, "faces", where)[:1], f"{where}faces", (1, 68, 2)))
    person: NDArray[np.float64] = points[0]
    return person


def _numbers(value: dict[Any, Any], name: str, where: str = "") -> NDArray[np.float64]:
    array = array_of(value.get(name), where + name)
    if array is None:
        raise InputError(f"{where}{name}: missing")
    if not np.isfinite(array).all():
        raise InputError(f"{where}{name}: NaN or infinite values")
    return array.astype(np.float64)


def _shaped(array: NDArray[np.float64], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """`array`, which may have an axis of length 1 more (one person a frame), in `shape`."""
    if array.size == int(np.prod(shape)) and tuple(n for n in array.shape if n != 1) == tuple(
        n for n in shape if n != 1
    ):
        return array.reshape(shape)
    raise InputError(f"{name}: shape {list(array.shape)}, expected {list(shape)}")


def _put(points: NDArray[np.float64], joints: range, xy: NDArray[np.float64]) -> None:
    seen = (xy != -1).any(axis=-1)
    points[:, joints.start : joints.stop, :2] = np.where(seen[..., None], xy, 0)
    points[:, joints.start : joints.stop, 2] = seen


def _put_body(points: NDArray[np.float64], xy: NDArray[np.float64], indices: NDArray[np.float64] | None) -> None:
    count = xy.shape[1]
    seen = (xy != -1).any(axis=-1)  # [N, 18 or 20]
    if indices is not None:
        if indices.ndim == 3 and indices.shape[1] == 1:
            indices = indices[:, 0]
        if indices.ndim != 2 or len(indices) != len(xy) or indices.shape[1] < 18:
            raise InputError(f"body_indices: shape {list(indices.shape)}, expected {[len(xy), count]}")
        # Columns beyond the joints hold the total score and the number of parts.
        drawn = indices[:, : min(count, indices.shape[1])] != -1
        seen[:, : drawn.shape[1]] &= drawn
    for joint in range(count):
        ours = (joint,) if joint < 18 else ((L_BIG_TOE, L_SMALL_TOE), (R_BIG_TOE, R_SMALL_TOE))[joint - 18]
        for k in ours:
            points[:, k, :2] = np.where(seen[:, joint, None], xy[:, joint], 0)
            points[:, k, 2] = seen[:, joint]
