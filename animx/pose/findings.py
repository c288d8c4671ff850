"""What a pose file holds and what is odd about it, in numbers and in sentences (`animx pose info`, `animx pose check`).

In: a `PoseSequence`.  Out: `describe_poses`, a JSON-able summary; `check_sequence`, findings for a person, worst first.
A finding is no error: the poses can be used; somebody should look at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import (
    BODY,
    BONES,
    FACE,
    FEET,
    JOINT_NAMES,
    L_ANKLE,
    L_HIP,
    L_SHOULDER,
    LEFT_HAND,
    MID_HIP,
    NECK,
    R_ANKLE,
    R_HIP,
    R_SHOULDER,
    RIGHT_HAND,
)

_GROUPS = {"body": BODY, "feet": FEET, "face": FACE, "left_hand": LEFT_HAND, "right_hand": RIGHT_HAND}
_LIMB_BONES = ("upper_arm", "forearm", "thigh", "shin")


def describe_poses(poses: PoseSequence) -> dict[str, Any]:
    """A summary as plain JSON values: times in s, lengths in px, shares in 0..1.

    `visible` is the share of joints with a score above 0, by group, over the frames where the person is there;
    `bone_lengths` are medians over the frames where both joints are seen, None for a bone never seen.
    """
    people = []
    for p, number in enumerate(poses.person_ids):
        seen = poses.scores[:, p] > 0
        there = seen.any(axis=1)
        people.append(
            {
                "id": int(number),
                "frames": int(there.sum()),
                "visible": {
                    name: round(float(seen[there][:, joints].mean()), 4) if there.any() else 0.0
                    for name, joints in _GROUPS.items()
                },
                "bone_lengths": {
                    bone.name: _rounded(_median(_length(poses, p, bone.parent, bone.child))) for bone in BONES
                },
            }
        )
    return {
        "layout": poses.layout,
        "frames": poses.frames,
        "duration": round(poses.duration, 6),
        "fps": [poses.fps.numerator, poses.fps.denominator],
        "canvas": [poses.canvas.width, poses.canvas.height],
        "persons": people,
        "depth": poses.depth is not None,
        "source": {name: value for name, value in poses.source.items() if name != "extras"},
        "extras": sorted(poses.source["extras"]) if isinstance(poses.source.get("extras"), dict) else [],
        "history": [dict(step) for step in poses.history],
    }


def check_sequence(poses: PoseSequence) -> list[str]:
    """Findings about one sequence, each a sentence with frames counted from 0; empty when nothing is odd."""
    found: list[str] = []
    if poses.frames > 1:
        steps = np.diff(poses.times)
        rate = 1 / float(np.median(steps))
        if abs(rate - float(poses.fps)) > 0.01 * float(poses.fps):
            found.append(f"times: {rate:.3f} frames a second, but fps says {float(poses.fps):.3f}; times rules")
        if steps.max() > 2.5 * np.median(steps):
            t = int(steps.argmax())
            found.append(f"times: a gap of {steps[t]:.2f} s after frame {t}")
    for p in range(poses.persons):
        name = "" if poses.persons == 1 else f"person {poses.person_ids[p]}: "
        found += [name + finding for finding in _check_person(poses, p)]
    return found


def _check_person(poses: PoseSequence, p: int) -> list[str]:
    seen = poses.scores[:, p] > 0
    there = seen[:, BODY.start : BODY.stop].any(axis=1)
    if not there.any():
        return ["no body joint in any frame: nothing can be driven by it"]
    found = []
    if not there.all():
        found.append(f"nobody in {_frames(~there)}")
    never = [JOINT_NAMES[j] for j in BODY if not seen[:, j].any()]
    if never:
        found.append(f"never seen: {', '.join(never)}")
    rare = [JOINT_NAMES[j] for j in BODY if 0 < seen[there, j].mean() < 0.5]
    if rare:
        found.append(f"seen in less than half of the frames: {', '.join(rare)}")
    found += _check_places(poses, p, seen)
    found += _check_bones(poses, p)
    found += _check_jumps(poses, p, seen)
    across = poses.keypoints[:, p, [L_SHOULDER, L_HIP], 0] - poses.keypoints[:, p, [R_SHOULDER, R_HIP], 0]
    whole = seen[:, [L_SHOULDER, L_HIP, R_SHOULDER, R_HIP]].all(axis=1)
    back = whole & (across < 0).all(axis=1)
    if back.any():
        found.append(f"shows its back, or left and right are swapped, in {_frames(back)}")
    upside = seen[:, [NECK, L_ANKLE, R_ANKLE]].all(axis=1) & (
        poses.keypoints[:, p, NECK, 1] > poses.keypoints[:, p, [L_ANKLE, R_ANKLE], 1].max(axis=1)
    )
    if upside.any():
        found.append(f"upside down in {_frames(upside)}")
    return found


def _check_places(poses: PoseSequence, p: int, seen: NDArray[np.bool_]) -> list[str]:
    x, y = poses.keypoints[:, p, BODY.start : BODY.stop].transpose(2, 0, 1)
    outside = (x < 0) | (y < 0) | (x > poses.canvas.width) | (y > poses.canvas.height)
    outside &= seen[:, BODY.start : BODY.stop]
    found = []
    if outside.any():
        share = outside.any(axis=1).mean()
        worst = ", ".join(JOINT_NAMES[j] for j in outside.sum(axis=0).argsort()[::-1][:3] if outside[:, j].any())
        found.append(f"body joints outside the canvas in {share:.0%} of the frames, most often {worst}")
    far = (
        np.maximum(np.abs(x - poses.canvas.width / 2), np.abs(y - poses.canvas.height / 2)) > 4 * poses.canvas.long_side
    )
    far &= seen[:, BODY.start : BODY.stop]
    if far.any():
        found.insert(0, f"body joints many canvases away in {_frames(far.any(axis=1))}: is the canvas size right?")
    spread = np.ptp(poses.keypoints[:, p][seen], axis=0).max() if seen.any() else 0.0
    if spread < 0.02 * poses.canvas.long_side:
        found.insert(0, f"the whole figure measures {spread:.1f} px: are the coordinates in px of the canvas?")
    return found


def _check_bones(poses: PoseSequence, p: int) -> list[str]:
    found = []
    lengths = {bone.name: _length(poses, p, bone.parent, bone.child) for bone in BONES}
    for bone in BONES:
        values = lengths[bone.name]
        reach = np.nanpercentile(values, 90) if np.isfinite(values).any() else 0.0
        # Foreshortening makes a bone shorter, never longer.
        with np.errstate(invalid="ignore"):
            long = values > 1.6 * reach
        if reach > 0 and bone.name.partition("_")[2] in _LIMB_BONES and long.any():
            found.append(f"{bone.name} is more than 1.6 times its usual length in {_frames(long)}")
    for part in _LIMB_BONES:
        left, right = (_median(lengths[f"{side}_{part}"]) for side in ("left", "right"))
        if left and right and max(left, right) > 1.5 * min(left, right):
            found.append(f"left and right {part} differ: {left:.0f} and {right:.0f} px")
    return found


def _check_jumps(poses: PoseSequence, p: int, seen: NDArray[np.bool_]) -> list[str]:
    """Single frames where a joint leaves its way and comes back: a wrong detection, not motion."""
    if poses.frames < 3:
        return []
    points = np.asarray(poses.keypoints[:, p, BODY.start : BODY.stop], np.float64)
    mask = seen[:, BODY.start : BODY.stop]
    off = np.linalg.norm(points[1:-1] - (points[:-2] + points[2:]) / 2, axis=-1)
    across = np.linalg.norm(points[2:] - points[:-2], axis=-1)
    torso = _median(_length(poses, p, MID_HIP, NECK)) or poses.canvas.long_side / 4
    jump = mask[1:-1] & mask[:-2] & mask[2:] & (off > 0.35 * torso) & (off > 1.5 * across)
    found = []
    for j in np.flatnonzero(jump.any(axis=0)):
        found.append(f"{JOINT_NAMES[j]} jumps away and back in {_frames(np.pad(jump[:, j], 1))}")
    return found


def _length(poses: PoseSequence, p: int, parent: int, child: int) -> NDArray[np.float64]:
    """[T] px, NaN where one of the two joints is missing; `MID_HIP` is the middle of the hips."""
    points = np.asarray(poses.keypoints[:, p], np.float64)
    parents = [R_HIP, L_HIP] if parent == MID_HIP else [parent]
    length = np.linalg.norm(points[:, child] - points[:, parents].mean(axis=1), axis=1)
    seen = (poses.scores[:, p, [*parents, child]] > 0).all(axis=1)
    return np.where(seen, length, np.nan)


def _median(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _frames(mask: Sequence[bool] | NDArray[np.bool_]) -> str:
    """`frame 3`, `frames 3-5 and 9`, or `31 % of the frames (first 3)` when there are many runs."""
    marked = np.flatnonzero(np.asarray(mask))
    runs = np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(runs) > 4:
        return f"{len(marked) / len(np.asarray(mask)):.0%} of the frames (first {marked[0]})"
    if len(texts) == 1:
        return f"frame{'s' if len(marked) > 1 else ''} {texts[0]}"
    return f"frames {', '.join(texts[:-1])} and {texts[-1]}"
