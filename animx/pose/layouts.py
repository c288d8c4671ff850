"""Index tables between `openpose-134` and the layouts of other tools, without any import but numpy.

A table `X[i]` is the index in the other layout of our joint, or the other way round, as its name says.  Left and right
are the character's own everywhere.  `EXTRAS` are points that another layout holds and ours does not.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError
from animx.pose.skeleton import FACE, FEET, L_HIP, LEFT_HAND, NECK, R_HIP, RIGHT_HAND

MIN_SCORE = 0.3
"""Scores above it count as seen (released value)."""

OURS_FROM_COCO133: tuple[int, ...] = (
    0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3,
    *range(17, 133),
)  # fmt: skip
"""For each of our 134 joints its index in COCO-WholeBody (133); -1 for the neck, which it does not hold."""

OURS_FROM_BODY25: tuple[int, ...] = (
    0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18,
    19, 20, 21, 22, 23, 24,
)  # fmt: skip
"""For each of our 24 body and foot joints its index in OpenPose BODY_25; its joint 8, the middle of the hips, is an
extra here.  OpenPose COCO-18 equals our joints 0-17."""
BODY25_MID_HIP = 8

FACE70_PUPILS = 68, 69
"""OpenPose's 70-point face = our 68 points and two pupils: right, left."""

MID_HIP_EXTRA, RIGHT_PUPIL, LEFT_PUPIL = "mid_hip", "right_pupil", "left_pupil"
EXTRAS: MappingProxyType[str, tuple[int, ...]] = MappingProxyType(
    {
        MID_HIP_EXTRA: (R_HIP, L_HIP),
        RIGHT_PUPIL: tuple(FACE[i] for i in range(36, 42)),
        LEFT_PUPIL: tuple(FACE[i] for i in range(42, 48)),
    }
)
"""Extra point -> the joints it hangs on: while those keep their place, so does the extra."""

COCO_PARTS: MappingProxyType[str, tuple[int, ...]] = MappingProxyType(
    {
        "keypoints": (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10),
        "foot_kpts": tuple(FEET),
        "face_kpts": tuple(FACE),
        "lefthand_kpts": tuple(LEFT_HAND),
        "righthand_kpts": tuple(RIGHT_HAND),
    }
)
"""Field of a COCO-WholeBody annotation -> our joints in its order."""


def to_openpose134(
    keypoints: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]], min_score: float = MIN_SCORE
) -> tuple[NDArray[Any], NDArray[Any]]:
    """COCO-WholeBody points of a detector as `openpose-134` (reference facts 9.3).

    Takes keypoints [..., 133, 2] px and scores [..., 133]; returns [..., 134, 2] and [..., 134] of the same float type.
    The neck is the middle of the shoulders, its score 1 where both shoulders are above `min_score`, else 0.
    Coordinates are kept whatever the score.
    """
    if keypoints.shape[-2:] != (133, 2) or scores.shape != keypoints.shape[:-1]:
        raise InputError(
            f"keypoints: shapes {list(keypoints.shape)} and {list(scores.shape)}, expected [..., 133, 2] and [..., 133]"
        )
    points, marks = keypoints[..., OURS_FROM_COCO133, :], scores[..., OURS_FROM_COCO133]
    points[..., NECK, :] = keypoints[..., 5:7, :].mean(axis=-2)
    marks[..., NECK] = (scores[..., 5:7] > min_score).all(axis=-1)
    return points, marks
