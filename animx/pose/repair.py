"""Repair of gross errors: joints that leave their neighbours in time, or stretch their bone.

Two ways: a second, independent estimate of the frame is taken where it explains the neighbours and the bone length
better; what is still out of place after that is put between its neighbours in time.  Lengths are in figure heights H.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BONES, LEFT_HAND, MID_HIP, RIGHT_HAND, TEMPLATE

DIFFERENT = 0.05
"""Two estimates of a joint farther apart than this contradict each other [H]."""
STRETCHED = 1.3
"""A bone longer than this times its usual greatest length is an error."""
DEPARTED = 0.08
"""A joint that leaves the middle of its neighbours by more than this, and comes back, is an error [H at 24 fps]."""
LOOSE_HAND = 0.12
"""A hand whose root lies farther than this from the wrist belongs to somebody or something else [H]."""

UNSURE = 0.3
"""A joint with a lower score is a guess."""

LIMB_PARENTS = {3: 2, 4: 3, 6: 5, 7: 6, 9: 8, 10: 9, 12: 11, 13: 12}
"""Limb joint -> its parent, parents first: the joints in which detectors err grossly."""

_FEET = {10: (21, 22, 23), 13: (18, 19, 20)}


def figure_height(keypoints: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """The standing height [px] that one person's bones speak of; 0 when no bone is seen.

    In: keypoints [T, K, 2], scores [T, K].  Per bone the 90th percentile of its length over the clip (foreshortening
    only shortens) over its share of a template body; then the median over the bones, so crouching or cropping does not
    matter.
    """
    heights = []
    for bone in BONES[:14]:
        if bone.parent == MID_HIP:
            continue
        seen = (scores[:, bone.parent] > 0) & (scores[:, bone.child] > 0)
        if seen.any():
            length = np.linalg.norm(keypoints[seen, bone.parent] - keypoints[seen, bone.child], axis=-1)
            share = np.hypot(*np.subtract(TEMPLATE[bone.parent], TEMPLATE[bone.child]))
            heights.append(float(np.percentile(length, 90)) / float(share))
    return float(np.median(heights)) if heights else 0.0


def is_suspect(
    before: NDArray[np.float32] | None,
    now: NDArray[np.float32],
    after: NDArray[np.float32] | None,
    height: float,
    reach: NDArray[np.float64],
    fps: float,
) -> bool:
    """Whether a frame's limbs call for a second look: a jump against the neighbours, or a stretched or shrunk bone.

    In: poses [K, 3] (x, y, score) of three frames in a row (None at the ends), figure height [px], greatest usual
    length per limb joint [K] (0 = not known yet), frame rate.
    """
    if height <= 0:
        return False
    slack = max(1.0, 24.0 / fps)
    length, allowed = _lengths(now), DEPARTED * (0.7 + 0.6 * now[_LIMBS, 2])  # of an unsure joint less is enough
    seen = (now[_LIMBS, 2] > 0) & (now[_ROOTS, 2] > 0)
    usual = np.where(reach[_LIMBS] > 0, reach[_LIMBS], np.inf)
    if (seen & (length > STRETCHED * usual)).any():
        return True
    near = [one for one in (before, after) if one is not None]
    if not near:
        return False
    for one in near:
        seen &= (one[_LIMBS, 2] > 0) & (one[_ROOTS, 2] > 0)
    middle = sum(one[_LIMBS, :2] for one in near) / len(near)
    jump = np.hypot(*(now[_LIMBS, :2] - middle).T) * len(near) / 2  # with one neighbour half of a step is usual
    shrunk = np.abs(length - sum(_lengths(one) for one in near) / len(near)) > 0.4 * usual * slack
    return bool((seen & ((jump > allowed * height * slack) | shrunk)).any())


def is_unsure(pose: NDArray[np.float32]) -> bool:
    """Whether a limb joint is only guessed: a score under 0.3; pose [K, >= 3]."""
    return bool((pose[_LIMBS, 2] < UNSURE).any())


def is_surer(pose: NDArray[np.float32], than: NDArray[np.float32]) -> bool:
    """Whether `pose` is sure of a limb joint that `than` only guesses; both [K, >= 3]."""
    return bool(((than[_LIMBS, 2] < UNSURE) & (pose[_LIMBS, 2] >= 0.5)).any())


def limb_reach(points: NDArray[np.float32], scores: NDArray[np.float32], height: float) -> NDArray[np.float64]:
    """The greatest usual length of each limb joint's bone [K] px, from poses [T, K, 2], [T, K] and the figure's height.

    At least what a template body of that height has: arms that only ever came foreshortened are not short.
    """
    reach = np.zeros(points.shape[1])
    for joint, parent in LIMB_PARENTS.items():
        reach[joint] = height * np.hypot(*np.subtract(TEMPLATE[joint], TEMPLATE[parent]))
        seen = (scores[:, joint] > 0) & (scores[:, parent] > 0)
        if seen.sum() >= 5:
            length = np.linalg.norm(points[seen, joint] - points[seen, parent], axis=-1)
            reach[joint] = max(reach[joint], float(np.percentile(length, 90)))
    return reach


_LIMBS, _ROOTS = list(LIMB_PARENTS), list(LIMB_PARENTS.values())


def _lengths(pose: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.hypot(*(pose[_LIMBS, :2] - pose[_ROOTS, :2]).T)
    return lengths


def repair(poses: PoseSequence, second: PoseSequence | None = None, *, breaks: Sequence[int] = ()) -> PoseSequence:
    """Replace gross limb errors; everything that is not clearly wrong stays as it is, bit by bit.

    `second` is an independent estimate of the same frames and persons (score 0 where there is none).  A replaced joint
    takes its score from where it comes from, halved when it was put between its neighbours.  Joints that are clearly
    wrong and have no good neighbours within 0.2 s lose their score.  Hands and feet follow or are dropped.
    """
    looks = {}
    if second is not None:
        for frame, person in np.argwhere(second.scores.any(-1)):
            one = second.keypoints[frame, person], second.scores[frame, person, :, None]
            looks[int(frame), int(person)] = np.concatenate(one, -1)
    return repair_with(poses, looks, breaks=breaks)


def repair_with(
    poses: PoseSequence, looks: Mapping[tuple[int, int], NDArray[np.float32]], *, breaks: Sequence[int] = ()
) -> PoseSequence:
    """`repair` with the second estimates by frame and person: [K, >= 3] (x, y, score)."""
    keypoints, scores = poses.keypoints.copy(), poses.scores.copy()
    step_s = float(np.median(np.diff(poses.times))) if poses.frames > 1 else 1.0
    taken = moved = dropped = 0
    for person in range(poses.persons):
        points, seen = keypoints[:, person], scores[:, person]
        height = figure_height(poses.keypoints[:, person], poses.scores[:, person])
        if height <= 0:
            continue
        mine = {frame: look for (frame, whose), look in looks.items() if whose == person}
        if mine:
            taken += _take_better(points, seen, mine, height, step_s, breaks)
        for joint, parent in LIMB_PARENTS.items():
            bad = _stretched(points, seen, joint, parent, height, step_s)
            bad |= _spikes(points, seen, joint, height, step_s, breaks)
            put, lost = _between(points, seen, joint, bad, step_s, breaks)
            moved, dropped = moved + put, dropped + lost
        _drop_loose_hands(points, seen, height)
    keypoints.flags.writeable = scores.flags.writeable = False  # shared with the result, not copied
    return poses.with_poses(keypoints, scores, op="repair", from_second=taken, interpolated=moved, dropped=dropped)


def _take_better(
    points: NDArray[np.float32],
    seen: NDArray[np.float32],
    looks: Mapping[int, NDArray[np.float32]],
    height: float,
    step_s: float,
    breaks: Sequence[int],
) -> int:
    """Take the second estimate of a limb joint where it is nearer to the neighbours and to the bone length."""
    taken = 0
    for joint, parent in LIMB_PARENTS.items():
        first = points[:, joint].copy(), seen[:, joint].copy()
        reach = _reach(points, seen, joint, parent, height, step_s)
        for frame, look in sorted(looks.items()):
            both = seen[frame, joint] > 0 and look[joint, 2] > 0
            if not both or np.linalg.norm(points[frame, joint] - look[joint, :2]) <= DIFFERENT * height:
                continue
            near = [t for t in (frame - 1, frame + 1) if _linked(frame, t, len(points), breaks) and first[1][t] > 0]
            if not near:
                continue
            middle = np.mean([first[0][t] for t in near], axis=0)
            costs = [
                np.linalg.norm(point - middle)
                + 2 * max(0.0, float(np.linalg.norm(point - points[frame, parent])) - 1.1 * reach[frame])
                + 0.1 * height * (1 - score)
                for point, score in ((points[frame, joint], seen[frame, joint]), (look[joint, :2], look[joint, 2]))
            ]
            if costs[1] < costs[0] - 0.01 * height:
                for one in (joint, *_FEET.get(joint, ())):
                    points[frame, one], seen[frame, one] = look[one, :2], look[one, 2]
                taken += 1
    return taken


def _linked(a: int, b: int, frames: int, breaks: Sequence[int]) -> bool:
    """Whether frame b exists and no cut lies between a and b."""
    return 0 <= b < frames and not any(min(a, b) < cut <= max(a, b) for cut in breaks)


def _reach(
    points: NDArray[np.float32], seen: NDArray[np.float32], joint: int, parent: int, height: float, step_s: float
) -> NDArray[np.float64]:
    """The usual greatest length of a bone about each frame [T] (90th percentile over 4 s); infinite where unknown.

    At most half as much again as its median or as the template's, whichever is more: errors may be many.
    """
    usual = 1.5 * height * float(np.hypot(*np.subtract(TEMPLATE[joint], TEMPLATE[parent])))
    both = (seen[:, joint] > 0) & (seen[:, parent] > 0)
    length = np.where(both, np.linalg.norm(points[:, joint] - points[:, parent], axis=-1), np.nan)
    reach = np.full(len(points), np.inf)
    half = max(4, round(2.0 / step_s))
    for start in range(0, len(points), half):  # one value per half window: the figure's size changes slowly
        around = length[max(0, start - half) : start + 2 * half]
        if np.isfinite(around).sum() >= 5:
            most = max(usual, 1.5 * float(np.nanmedian(around)))
            reach[start : start + half] = min(most, float(np.nanpercentile(around, 90)))
    return reach


def _stretched(
    points: NDArray[np.float32], seen: NDArray[np.float32], joint: int, parent: int, height: float, step_s: float
) -> NDArray[np.bool_]:
    both = (seen[:, joint] > 0) & (seen[:, parent] > 0)
    length = np.linalg.norm(points[:, joint] - points[:, parent], axis=-1)
    stretched: NDArray[np.bool_] = both & (length > STRETCHED * _reach(points, seen, joint, parent, height, step_s))
    return stretched


def _spikes(
    points: NDArray[np.float32],
    seen: NDArray[np.float32],
    joint: int,
    height: float,
    step_s: float,
    breaks: Sequence[int],
) -> NDArray[np.bool_]:
    """Frames in which a joint leaves and comes straight back: far off a neighbourhood that agrees with itself."""
    bad = np.zeros(len(points), bool)
    limit = DEPARTED * height * max(1.0, step_s * 24)
    track, there = points[:, joint], seen[:, joint] > 0
    for frame in range(2, len(points) - 2):
        if not there[frame - 2 : frame + 3].all() or not _linked(frame - 2, frame + 2, len(points), breaks):
            continue
        off = np.linalg.norm(track[frame] - (track[frame - 1] + track[frame + 1]) / 2)
        if off <= limit:
            continue
        # without this frame the motion is smooth: the neighbours' own line does not bend like that
        bend = np.linalg.norm(track[[frame - 2, frame + 2]].mean(0) - track[[frame - 1, frame + 1]].mean(0))
        bad[frame] = bend < off / 3 and np.linalg.norm(track[frame + 1] - track[frame - 1]) < off
    return bad


def _between(
    points: NDArray[np.float32],
    seen: NDArray[np.float32],
    joint: int,
    bad: NDArray[np.bool_],
    step_s: float,
    breaks: Sequence[int],
) -> tuple[int, int]:
    """Put bad frames of a joint between its good neighbours within 0.2 s; without both, the joint is missing there."""
    good = np.nonzero((seen[:, joint] > 0) & ~bad)[0]
    put = lost = 0
    new = points[:, joint].copy(), seen[:, joint].copy()
    for frame in np.nonzero(bad)[0]:
        place = np.searchsorted(good, frame)
        near = [int(good[i]) for i in (place - 1, place) if 0 <= i < len(good)]
        near = [t for t in near if abs(t - frame) * step_s <= 0.2 + 1e-9 and _linked(frame, t, len(points), breaks)]
        if len(near) == 2:
            share = (frame - near[0]) / (near[1] - near[0])
            target = points[near[0], joint] * (1 - share) + points[near[1], joint] * share
            for child in _FEET.get(joint, ()):
                points[frame, child] += target - points[frame, joint]
            new[0][frame], new[1][frame] = target, 0.5 * min(seen[near[0], joint], seen[near[1], joint])
            put += 1
        else:
            new[1][frame] = 0
            for child in _FEET.get(joint, ()):
                seen[frame, child] = 0
            lost += 1
    points[:, joint], seen[:, joint] = new
    return put, lost


def _drop_loose_hands(points: NDArray[np.float32], seen: NDArray[np.float32], height: float) -> None:
    for hand, wrist in ((LEFT_HAND, 7), (RIGHT_HAND, 4)):
        loose = np.linalg.norm(points[:, hand[0]] - points[:, wrist], axis=-1) > LOOSE_HAND * height
        rows = np.nonzero(loose & (seen[:, hand[0]] > 0) & (seen[:, wrist] > 0))[0]
        seen[rows[:, None], list(hand)] = 0
