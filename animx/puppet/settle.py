"""Moves detected limb joints onto the middle of their limbs, where the limb stands clear of the trunk.

In: the figure's pixels and its pose (one frame, one person).  Out: the pose with elbows, wrists, knees and ankles
centred between the rims beside them, and shoulders and hips put on the middle line of the limb that hangs on them.  A
limb that lies on the trunk has no such rims and stays as it is.  Left and right mirror; idempotent to a pixel.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.pose.sequence import PoseSequence
from animx.puppet.anatomy import ARM, LEG, SIDES

Point = NDArray[np.float64]
Flags = NDArray[np.bool_]

FARTHEST = 0.1
"""Farthest a joint is moved (share of the figure's height); one that is farther off is another kind of error."""
SLENDER = 0.5
"""A limb is thinner than this part of its length; anything thicker is trunk, skirt or coat."""


def settle(pose: PoseSequence, figure: Flags) -> PoseSequence:
    """The pose with its limb joints centred in the limbs of `figure` [H, W].  Scores stay."""
    rows = np.flatnonzero(figure.any(1))
    if not len(rows):
        return pose
    points = pose.keypoints[0, 0].astype(np.float64)
    scores = pose.scores[0, 0]
    height = float(rows[-1] - rows[0] + 1)
    # thin inner holes and a ragged rim do not end a chord
    solid = cv2.morphologyEx(np.pad(figure, 8).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    solid = solid[8:-8, 8:-8]
    for chain in [*(ARM[s] for s in SIDES), *(LEG[s] for s in SIDES)]:
        if (scores[list(chain)] > 0).all():
            moved = _settle_limb(points[list(chain)], solid > 0, height)
            points[list(chain)] = moved
    return pose.with_poses(points[None, None].astype(np.float32))


def _settle_limb(limb: NDArray[np.float64], solid: Flags, height: float) -> NDArray[np.float64]:
    root, joint, end = limb
    length = float(np.linalg.norm(joint - root) + np.linalg.norm(end - joint))
    if length < 0.03 * height:
        return limb
    widest = SLENDER * length
    for _ in range(2):
        lower = _centres(joint, end, np.linspace(0.0, 1.0, 11), solid, widest, 0.05 * height)
        if len(lower) < 6:
            return limb
        # under a skirt or a wide sleeve the chords are wide; the limb itself is where they are narrow
        width = float(np.percentile([w for _, _, w in lower], 25))
        clear = [(t, c) for t, c, w in lower if w < 1.5 * width]
        if len(clear) < 6:
            return limb
        joint, end = _at(clear, 0.0, joint, limb[1], height), _at(clear, 1.0, end, limb[2], height)
    onward = (joint - end) / max(float(np.linalg.norm(joint - end)), 1e-6)
    towards = (root - joint) / max(float(np.linalg.norm(root - joint)), 1e-6)
    tracks = [_track(joint, towards, length, solid, 1.5 * width)]
    if float(onward @ towards) > 0.5:
        tracks.append(_track(joint, onward, length, solid, 1.5 * width))
    line = max(tracks, key=len)
    if len(line) >= 4:
        middle = line.mean(0)
        _, _, axes = np.linalg.svd(line - middle)
        root = _near(middle + axes[0] * float((root - middle) @ axes[0]), root, height)
    return np.stack([root, joint, end])


def _track(start: Point, direction: Point, length: float, solid: Flags, widest: float) -> NDArray[np.float64]:
    """Walk up the middle of a limb from `start` until it meets the trunk: the centres passed [N, 2] px."""
    step = max(widest / 6, 2.0)
    points, ahead = [start], direction
    for _ in range(20):
        found = _centres(points[-1], points[-1] + step * ahead, np.ones(1), solid, widest, 0.0)
        if not found:
            break
        points.append(found[0][1])
        back = points[max(len(points) - 4, 0)]
        ahead = (points[-1] - back) / max(float(np.linalg.norm(points[-1] - back)), 1e-6)
    return np.array(points)


def _at(clear: list[tuple[float, Point]], t: float, was: Point, first: Point, height: float) -> Point:
    """The centre found at `t`, or where it was."""
    found = [c for share, c in clear if share == t]
    return _near(found[0], first, height) if found else was


def _near(point: Point, was: Point, height: float) -> Point:
    return point if float(np.linalg.norm(point - was)) <= FARTHEST * height else was


def _centres(
    a: Point, b: Point, shares: NDArray[np.float64], solid: Flags, widest: float, search: float
) -> list[tuple[float, Point, float]]:
    """Middles and widths of the chords across a bone at `shares` of it, those not wider than `widest` [px].

    Where the bone runs beside the figure the nearest chord within `search` px counts.
    """
    bone = b - a
    across = np.array([-bone[1], bone[0]]) / max(float(np.linalg.norm(bone)), 1e-6)
    reach = int(widest + search) + 2
    steps = np.arange(-reach, reach + 1)
    found = []
    for t in shares:
        line = a + t * bone + steps[:, None] * across
        x, y = np.floor(line).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < solid.shape[1]) & (y < solid.shape[0])
        on = np.zeros(len(steps), bool)
        on[inside] = solid[y[inside], x[inside]]
        if not on.any():
            continue
        start = int(np.argmin(np.where(on, np.abs(steps), 10 * reach)))
        if abs(int(steps[start])) > search and start != reach:
            continue
        low = high = start
        while low > 0 and on[low - 1]:
            low -= 1
        while high < len(on) - 1 and on[high + 1]:
            high += 1
        if low == 0 or high == len(on) - 1 or high - low + 1 > widest:
            continue
        middle = a + t * bone + 0.5 * float(steps[low] + steps[high]) * across
        found.append((float(t), np.asarray(middle), float(high - low + 1)))
    return found
