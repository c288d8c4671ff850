"""The released alignment, number for number (reference facts 13), quirks included: `--align released`.

Coordinates are normalised by their own picture's width and height.  Frame 0 is the anchor: it gives the two scales and
every bone's ratio; a missing joint in frame 0 or in the reference therefore spoils the ratios, and coinciding joints
divide by zero.  Use `robust` unless the released behaviour itself is wanted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import FACE, FEET, JOINTS, LEFT_HAND, RIGHT_HAND

Array = NDArray[np.float64]

MIN_SCORE = 0.3
"""Below this score the released code takes a point for invisible and writes (-1, -1)."""

# rows of the point array: 20 body points (18, 19 the toes), the two hands, the face, and what hangs on them
BODY_ROWS = slice(0, 20)
LEFT_ROWS, RIGHT_ROWS = slice(20, 41), slice(41, 62)
FACE_ROWS = slice(62, 130)
LEFT_FOOT_ROWS, RIGHT_FOOT_ROWS = slice(130, 133), slice(133, 136)


def _rows(*parts: int | slice) -> NDArray[np.intp]:
    every = np.arange(136)
    return np.concatenate([every[part] if isinstance(part, slice) else every[part : part + 1] for part in parts])


# (parent, child, moved rows), in the released order; a foot's own points follow its toes, which the released body lacks
_CHAIN: tuple[tuple[int, int, NDArray[np.intp]], ...] = (
    (1, 0, _rows(0, 14, 15, 16, 17)),
    (1, 2, _rows(2, 3, 4, RIGHT_ROWS)),
    (1, 5, _rows(5, 6, 7, LEFT_ROWS)),
    (2, 3, _rows(3, 4, RIGHT_ROWS)),
    (3, 4, _rows(4, RIGHT_ROWS)),
    (5, 6, _rows(6, 7, LEFT_ROWS)),
    (6, 7, _rows(7, LEFT_ROWS)),
    (0, 14, _rows(14, 16)),
    (0, 15, _rows(15, 17)),
    (14, 16, _rows(16)),
    (15, 17, _rows(17)),
    (8, 9, _rows(9, 10, 19, RIGHT_FOOT_ROWS)),
    (9, 10, _rows(10, 19, RIGHT_FOOT_ROWS)),
    (11, 12, _rows(12, 13, 18, LEFT_FOOT_ROWS)),
    (12, 13, _rows(13, 18, LEFT_FOOT_ROWS)),
)


def align_released_points(points: Array, reference: Array) -> Array:
    """The alignment on bare arrays: points [F, M, 2] and a reference [20 or more, 2], normalised, -1 where invisible.

    Rows: 20 body points, left hand 21, right hand 21, face 68, then optionally left foot 3 and right foot 3 (they
    follow the toes).  Returns float64 of the same shape; division by zero gives inf or NaN, as released.
    """
    points = np.array(points, np.float64)
    with np.errstate(all="ignore"):
        first = points[0]
        rx = (reference[5, 0] - reference[2, 0]) / (first[5, 0] - first[2, 0])
        reference_torso = (reference[8, 1] + reference[11, 1]) / 2 - (reference[2, 1] + reference[5, 1]) / 2
        torso = (first[8, 1] + first[11, 1]) / 2 - (first[2, 1] + first[5, 1]) / 2
        points *= (rx, reference_torso / torso)
        for parent, child, rows in _CHAIN:
            rows = rows[rows < points.shape[1]]
            ratio = _length(reference, parent, child) / _length(points[0], parent, child)
            points[:, rows] += ((points[:, parent] - points[:, child]) * (1 - ratio))[:, None]
        points += reference[1] - points[0, 1]
    return points


def _length(points: Array, parent: int, child: int) -> np.float64:
    step = points[parent] - points[child]
    return np.float64(np.hypot(step[0], step[1]))  # numpy's own number: a division by zero gives inf, as released


def align_released(poses: PoseSequence, reference: PoseSequence) -> PoseSequence:
    """The released alignment of every person of `poses` to the first person of `reference`, on its canvas.

    Joints below `MIN_SCORE` become missing, as they are for the released code, and what is missing stays missing, so
    its stray points of unseen hands do not appear.  Where it would divide by zero, it is an `InputError`.
    """
    target = _points(reference, 0)[0]
    size = np.array(reference.canvas.size, np.float64)
    keypoints = np.zeros_like(poses.keypoints)
    scores = np.where(poses.scores < MIN_SCORE, np.float32(0), poses.scores)
    for p in range(poses.persons):
        seen = scores[:, p] > 0
        if not seen.any():
            continue
        moved = _sequence(align_released_points(_points(poses, p), target)) * size
        if not np.isfinite(moved[seen]).all() or np.abs(moved[seen]).max() > 1e9:
            raise InputError(
                "--align released: joints that lie on each other in the first frame or in the reference make it divide "
                "by zero. Use --align robust"
            )
        keypoints[:, p][seen] = moved[seen]
    step: dict[str, Any] = {"op": "align", "mode": "released"}
    scale = reference.canvas.height / poses.canvas.height
    return replace(
        poses,
        keypoints=keypoints,
        scores=scores,
        canvas=reference.canvas,
        depth=None if poses.depth is None else (poses.depth * scale).astype(np.float32),
        history=(*poses.history, step),
    )


def _points(poses: PoseSequence, person: int) -> Array:
    """One person as the rows above [F, 136, 2], normalised by the canvas, -1 where the released code sees nothing."""
    keypoints = poses.keypoints[:, person].astype(np.float64) / poses.canvas.size
    visible = poses.scores[:, person] >= MIN_SCORE
    feet = keypoints[:, FEET]
    keypoints = np.where(visible[..., None], keypoints, -1.0)
    toes = []
    for big, small in ((18, 19), (21, 22)):
        both = visible[:, big] & visible[:, small]
        toes.append(np.where(both[:, None], (keypoints[:, big] + keypoints[:, small]) / 2, -1.0))
    return np.concatenate(
        [
            keypoints[:, :18],
            np.stack(toes, axis=1),
            keypoints[:, LEFT_HAND],
            keypoints[:, RIGHT_HAND],
            keypoints[:, FACE],
            feet,
        ],
        axis=1,
    )


def _sequence(points: Array) -> Array:
    """The rows above back in the order of the layout [F, 134, 2]."""
    keypoints = np.empty((len(points), JOINTS, 2))
    keypoints[:, :18] = points[:, :18]
    keypoints[:, LEFT_HAND] = points[:, LEFT_ROWS]
    keypoints[:, RIGHT_HAND] = points[:, RIGHT_ROWS]
    keypoints[:, FACE] = points[:, FACE_ROWS]
    keypoints[:, FEET] = points[:, 130:136]
    return keypoints
