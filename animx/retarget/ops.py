"""Retarget operations: `op(poses, **params) -> PoseSequence`, composable; built-ins of the group `retarget_ops`.

All keep the shape, canvas, times and number of persons, leave their input alone, and append one step to `history`.
Missing joints stay missing (only `add` and `fill` make joints), float32 in and out, float64 inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from animx.errors import UsageError, nearest
from animx.pose.dropped import dropped_joints
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import FEET, L_ANKLE, L_HIP, R_ANKLE, R_HIP
from animx.retarget.groups import joints_of, unit_factors
from animx.retarget.history import cumulative_factors, factor_table
from animx.retarget.invent import invent
from animx.retarget.tree import (
    CHUNK,
    HIP_UNKNOWN,
    Array,
    Bools,
    lowest,
    mid_hip,
    over_gaps,
    scale,
)

Keep = Literal["ground", "root", "none"]
KEEPS: tuple[Keep, ...] = ("ground", "root", "none")

FOOT_JOINTS: tuple[int, ...] = (R_ANKLE, L_ANKLE, *FEET)
"""The joints that may touch the ground."""


def rescale(
    poses: PoseSequence, factors: Mapping[str, float], keep: Keep = "ground", *, preset: str | None = None
) -> PoseSequence:
    """Make the bones of groups longer or shorter, about each group's root joint; children move along.

    `factors` maps bone groups to factors above 0; all groups that hold a bone multiply, whatever the order of the keys.
    `keep` says what stays where it was in each frame: `ground` the y of the lowest visible foot (frames without feet
    take the shift of their neighbours in time), `root` the middle between the hips, `none` nothing is shifted.  Depth
    is scaled along.  `preset` is a name for the history.  An unknown group or a bad factor is a `UsageError`.
    """
    if not isinstance(factors, Mapping):
        raise UsageError(f"rescale: '{factors}' is no table of factors by bone group. Use --set, as in --set legs=0.5")
    if keep not in KEEPS:
        raise UsageError(f"keep '{keep}': use ground, root or none.{nearest(str(keep), KEEPS)}")
    stretch = unit_factors(factors)
    before = cumulative_factors(poses.history)
    keypoints = np.empty_like(poses.keypoints)
    depth = None if poses.depth is None else np.empty_like(poses.depth)
    for p in range(poses.persons):
        points = person_points(poses, p)
        moved = keypoints[:, p] if depth is None else np.empty_like(points)
        rescale_points(points, poses.scores[:, p] > 0, poses.times, stretch, before, keep, moved)
        if depth is not None:
            keypoints[:, p], depth[:, p] = moved[..., :2], moved[..., 2]
    keypoints.setflags(write=False)  # a read-only array is shared, not copied
    step: dict[str, Any] = {"op": "rescale", "factors": {name: float(factors[name]) for name in sorted(factors)}}
    if preset is not None:
        step["preset"] = preset
    step |= {"keep": keep, "bones": factor_table(before * stretch)}
    return replace(poses, keypoints=keypoints, depth=depth, history=(*poses.history, step))


def person_points(poses: PoseSequence, person: int) -> NDArray[np.float32]:
    """[T, K, 2] or, with depth, [T, K, 3] of one person, float32."""
    if poses.depth is None:
        return poses.keypoints[:, person]
    return np.concatenate([poses.keypoints[:, person], poses.depth[:, person, :, None]], axis=-1)


def rescale_points(
    points: NDArray[np.floating[Any]],
    visible: Bools,
    times: Array,
    stretch: Array,
    before: Array,
    keep: Keep,
    out: NDArray[np.floating[Any]],
) -> None:
    """The core of `rescale` for one person: points [T, K, D] -> `out` of the same shape, computed in float64.

    `stretch` [U] are the factors to apply, `before` [U] the cumulative ones of the points so far.  Coordinates of
    joints that are not visible are neither read nor meaningful in `out`.
    """
    mid, state = mid_hip(points[:, :18].astype(np.float64), visible, before)
    known = state != HIP_UNKNOWN
    chunks = [slice(start, start + CHUNK) for start in range(0, len(points), CHUNK)]

    def moved(rows: slice, joints: int) -> tuple[Array, Array]:
        part = points[rows, :joints].astype(np.float64)
        return part, scale(part, visible[rows, :joints], mid[rows], known[rows], stretch)

    if len(chunks) == 1:
        part, move = moved(chunks[0], points.shape[1])
        move[..., :2] += keep_shift(part, move, visible, times, before, keep)[:, None]
        out[...] = part + move
        return
    lower = [moved(rows, FEET.stop) for rows in chunks]
    shift = keep_shift(
        np.concatenate([part for part, _ in lower]),
        np.concatenate([move for _, move in lower]),
        visible,
        times,
        before,
        keep,
    )
    for rows in chunks:
        part, move = moved(rows, points.shape[1])
        move[..., :2] += shift[rows, None]
        out[rows] = part + move


def keep_shift(points: Array, move: Array, visible: Bools, times: Array, before: Array, keep: Keep) -> Array:
    """The shift [T, 2] that puts back what `keep` names, after `points` [T, K, D] have moved by `move`."""
    shift = np.zeros((len(points), 2))
    if keep == "ground":
        feet = list(FOOT_JOINTS)
        was, seen = lowest(points[:, feet, 1], visible[:, feet])
        now, _ = lowest(points[:, feet, 1] + move[:, feet, 1], visible[:, feet])
        shift[:, 1] = over_gaps(was - now, seen, times)
    elif keep == "root":
        both = visible[:, R_HIP] & visible[:, L_HIP]
        shift = over_gaps(-(move[:, R_HIP, :2] + move[:, L_HIP, :2]) / 2, both, times)
    return shift


def drop(poses: PoseSequence, groups: Iterable[str]) -> PoseSequence:
    """Make the joints of groups (or single joints, by name) missing: their scores become 0, in every frame.

    `arms` means elbows and wrists, without the shoulders and without the hands.  The step in `history` lists the
    joints, so that `fill` does not revive them.  An unknown name is a `UsageError`.
    """
    names = list(groups) if not isinstance(groups, str) else [groups]
    joints = list(joints_of(names))
    scores = poses.scores.copy()
    scores[..., joints] = 0
    return poses.with_poses(poses.keypoints, scores, op="drop", groups=names, joints=joints)


def add(poses: PoseSequence, groups: Iterable[str]) -> PoseSequence:
    """Invent the missing joints of groups (or single joints, by name); visible ones are never touched.

    An invented joint mirrors the bone of the other side where that is visible, else it takes the proportions of the
    standing template (times the factors in `history`) at the size and tilt of the body.  Its score is
    min(parent score, 0.5).  A joint whose parent is missing too stays missing.  Unknown name: `UsageError`.
    """
    names = list(groups) if not isinstance(groups, str) else [groups]
    joints = list(joints_of(names))
    factors = cumulative_factors(poses.history)
    keypoints, scores = poses.keypoints.copy(), poses.scores.copy()
    depth = None if poses.depth is None else poses.depth.copy()
    for p in range(poses.persons):
        wanted = (poses.scores[:, p] == 0) & np.isin(np.arange(poses.scores.shape[2]), joints)
        if not wanted.any() or not (poses.scores[:, p] > 0).any():
            continue
        points, trust = invent(person_points(poses, p).astype(np.float64), scores[:, p], wanted, factors)
        made = wanted & (trust > 0)
        keypoints[:, p][made] = points[..., :2][made]
        scores[:, p][made] = trust[made]
        if depth is not None:
            depth[:, p][made] = points[..., 2][made]
    step = {"op": "add", "groups": names, "joints": joints}
    return replace(poses, keypoints=keypoints, scores=scores, depth=depth, history=(*poses.history, step))


def fill(poses: PoseSequence, max_gap_s: float = 0.5) -> PoseSequence:
    """Bridge gaps of joints that are seen elsewhere in the clip (see `animx.pose.smooth`); a dropped joint stays so."""
    from animx.pose.smooth import fill as bridge

    filled = bridge(poses, max_gap_s)
    dropped = sorted(dropped_joints(poses.history))
    if not filled.scores[..., dropped].any():
        return filled
    scores = filled.scores.copy()
    scores[..., dropped] = 0
    return replace(filled, scores=scores)


def smooth(poses: PoseSequence, seconds: float = 0.28, order: int = 2) -> PoseSequence:
    """Take jitter out of the motion without lag and without flattening fast motion.  See `animx.pose.smooth`."""
    from animx.pose.smooth import smooth as take_jitter

    return take_jitter(poses, seconds, order)
