"""`legacy-openpose18`: an 18-joint body, hands and face of one person, as the `drive_*.pose.npz` files hold them.

In: an npz with `body` [T, 18, 3] (x, y px, score), `fps`, `size` (width, height) and optional `hands` [T, 2, 21, 3],
`face` [T, 68, 3], `depth` [T, 18] (px about the neck, larger = nearer) and `mp33` [T, 33, 4] (mediapipe: x, y, z about
the hip centre, smaller = nearer, score).  Out: a `PoseSequence`; feet, and depth when there is no `depth`, come from
`mp33`.  Other arrays (`body_raw`, `world33`) are not read.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError
from animx.pose import native
from animx.pose.npz import Archive, exactly
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import (
    BODY,
    FACE,
    FEET,
    JOINTS,
    L_HIP,
    LEFT_HAND,
    NECK,
    PARENT,
    R_HIP,
    RIGHT_HAND,
)

LAYOUT = "legacy-openpose18"
_MEDIAPIPE = (
    0, 11, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7,
    31, 31, 29, 32, 32, 30,
)  # fmt: skip
"""For our body and foot joints the mediapipe point; its one toe point fills big and small toe."""


def load(archive: Archive) -> PoseSequence:
    """The poses of a `legacy-openpose18` archive; `InputError` with the field's name for anything else."""
    body = _read(archive, "body", (18, 3), None)
    frames = len(body)
    points = np.zeros((frames, JOINTS, 3), np.float32)
    points[:, BODY.start : BODY.stop] = body
    if "hands" in archive.names:
        hands = _read(archive, "hands", (2, 21, 3), frames)
        points[:, LEFT_HAND.start : LEFT_HAND.stop] = hands[:, 0]
        points[:, RIGHT_HAND.start : RIGHT_HAND.stop] = hands[:, 1]
    if "face" in archive.names:
        points[:, FACE.start : FACE.stop] = _read(archive, "face", (68, 3), frames)
    depth = None
    if "mp33" in archive.names:
        mediapipe = _read(archive, "mp33", (33, 4), frames)
        picked = mediapipe[:, _MEDIAPIPE]  # [T, 24, 4]
        points[:, FEET.start : FEET.stop] = picked[:, FEET.start :, [0, 1, 3]]
        towards = -picked[..., 2]
        towards[:, NECK] = -mediapipe[:, 11:13, 2].mean(axis=1)
        depth = _about_hips(towards)
    if "depth" in archive.names:
        depth = _about_hips(_read(archive, "depth", (18,), frames))
    where = archive.where
    size = archive.array("size", "iu", exactly(f"{where}: size", (2,))).tolist()
    rate = archive.array("fps", "fiu", exactly(f"{where}: fps", ()), np.float64)
    fps = float(rate)
    if not 1e-3 <= fps <= 10000:
        raise InputError(f"{where}: fps: {fps} is no frame rate")
    try:
        return PoseSequence(
            keypoints=points[:, None, :, :2],
            scores=points[:, None, :, 2],
            canvas=native.read_canvas(size),
            fps=Fraction(fps).limit_denominator(1001),
            depth=depth,
            source={"format": LAYOUT},
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _read(archive: Archive, name: str, tail: tuple[int, ...], frames: int | None) -> NDArray[np.float32]:
    field = f"{archive.where}: {name}"

    def check(shape: tuple[int, ...]) -> None:
        if shape[1:] != tail or not shape or (frames is not None and shape[0] != frames):
            expected = ["T" if frames is None else frames, *tail]
            raise InputError(f"{field}: shape {list(shape)}, expected {expected}".replace("'", ""))
        native.check_shape(f"{archive.where}: scores", (shape[0], 1, JOINTS))

    array = archive.array(name, "fiu", check, np.float32)
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        raise InputError(f"{field}: NaN or infinite values in frame {bad[0]} ({len(bad)} frames in all)")
    return array


def _about_hips(towards: NDArray[np.float32]) -> NDArray[np.float32]:
    """[T, 18 or 24] px towards the viewer as [T, 1, K] about mid-hip; every other joint takes the depth of the joint it
    hangs on.
    """
    held = towards.shape[1]
    carrier = list(range(JOINTS))
    for joint in range(held, JOINTS):
        while carrier[joint] >= held:
            carrier[joint] = PARENT[carrier[joint]]
    depth = towards - towards[:, [R_HIP, L_HIP]].mean(axis=1, keepdims=True)
    return np.ascontiguousarray(depth[:, None, carrier])
