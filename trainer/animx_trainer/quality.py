"""Which frames of a shot are worth training on, in numbers, and why the others are not.

In: the poses of one shot (everybody who was found).  Out: ranges of frames to keep, each one person's, and ranges that
were dropped with a reason a person can act on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, Placement
from animx.config import Range
from animx.pose.detection import MIN_JOINT_SCORE
from animx.pose.select import select_person
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import L_HIP, NECK, R_HIP

BODY = slice(0, 14)


@dataclass(frozen=True)
class Checks:
    """What a clip has to be."""

    min_frames: Annotated[int, Range(1, 10_000)] = 32
    """Shortest clip [frames]."""
    max_frames: Annotated[int, Range(2, 10_000)] = 256
    """Longest clip [frames]; longer ones are divided."""
    joints: Annotated[int, Range(1, 14)] = 8
    """Joints of the 14 from nose to ankles that each frame shows at least."""
    height: Annotated[float, Range(0, 1)] = 0.25
    """Part of the canvas's height that the figure takes at least (median over the clip)."""
    inside: Annotated[float, Range(0, 1)] = 0.8
    """Share of the visible body joints that lie on the canvas after cropping."""
    second_person: Annotated[float, Range(0, 1)] = 0.4
    """A second person of at least this part of the first one's size spoils a frame."""
    motion: Annotated[float, Range(0)] = 0.05
    """Least motion: mean speed of elbows, wrists, knees and ankles [figure heights a second]."""
    jumps: Annotated[float, Range(0, 1)] = 0.1
    """Largest share of frames in which a joint leaves its way and comes back: the detection fails there."""


@dataclass(frozen=True)
class Kept:
    """Frames `first` to `last` (exclusive) of the shot, with the poses of the one person, and how they lie."""

    first: int
    last: int
    poses: PoseSequence
    placement: Placement
    quality: dict[str, float]


@dataclass(frozen=True)
class Dropped:
    """Frames `first` to `last` (exclusive) of the shot, and why."""

    first: int
    last: int
    why: str


def judge(poses: PoseSequence, canvas: Canvas, checks: Checks) -> tuple[list[Kept], list[Dropped]]:
    """Divide a shot's frames into clips to keep and ranges to drop."""
    crowd = _crowded(poses, checks.second_person)
    one = select_person(poses, "largest")
    seen = one.scores[:, 0, BODY] >= MIN_JOINT_SCORE
    torso = seen[:, NECK] & (seen[:, R_HIP] | seen[:, L_HIP])
    whole = torso & (seen.sum(axis=1) >= checks.joints)
    labels = np.where(crowd, 2, np.where(whole, 0, 1))
    reasons = {1: "no whole figure is seen", 2: "a second person is in the picture"}
    kept: list[Kept] = []
    dropped: list[Dropped] = []
    for first, last in runs(labels):
        label = int(labels[first])
        if label:
            dropped.append(Dropped(first, last, reasons[label]))
        elif last - first < checks.min_frames:
            dropped.append(Dropped(first, last, f"shorter than {checks.min_frames} frames"))
        else:
            for a, b in divided(first, last, checks.max_frames, checks.min_frames):
                found = _judge_clip(one.cut(a, b), a, canvas, checks)
                (kept if isinstance(found, Kept) else dropped).append(found)  # type: ignore[arg-type]
    return kept, dropped


def runs(labels: NDArray[np.int_]) -> list[tuple[int, int]]:
    """(first, last) of each run of equal labels, last exclusive."""
    edges = np.flatnonzero(np.diff(labels)) + 1
    bounds = [0, *edges.tolist(), len(labels)]
    return list(pairwise(bounds))


def divided(first: int, last: int, longest: int, shortest: int) -> list[tuple[int, int]]:
    """The range in as few equal pieces as fit; one piece where halves would be too short."""
    pieces = max(1, min(-(-(last - first) // longest), (last - first) // shortest))
    bounds = np.linspace(first, last, pieces + 1).round().astype(int).tolist()
    return list(pairwise(bounds))


def _crowded(poses: PoseSequence, share: float) -> NDArray[np.bool_]:
    """[T] frames in which somebody else is nearly as large as the largest person."""
    if poses.persons < 2:
        return np.zeros(poses.frames, bool)
    sizes = np.stack([_heights(poses, p) for p in range(poses.persons)], axis=1)
    ordered = np.sort(sizes, axis=1)
    return (ordered[:, -2] > 0) & (ordered[:, -2] >= share * ordered[:, -1])


def _heights(poses: PoseSequence, person: int = 0) -> NDArray[np.float64]:
    """[T] px from the highest to the lowest seen body joint; 0 where fewer than two are seen."""
    seen = poses.scores[:, person, BODY] >= MIN_JOINT_SCORE
    y = np.asarray(poses.keypoints[:, person, BODY, 1], np.float64)
    high, low = np.where(seen, y, np.inf).min(axis=1), np.where(seen, y, -np.inf).max(axis=1)
    return np.where(seen.sum(axis=1) > 1, low - high, 0.0)


def _judge_clip(poses: PoseSequence, first: int, canvas: Canvas, checks: Checks) -> Kept | Dropped:
    last = first + poses.frames
    placement = around(poses, canvas)
    on = poses.on(canvas, placement)
    seen = on.scores[:, 0, BODY] >= MIN_JOINT_SCORE
    points = np.asarray(on.keypoints[:, 0, BODY], np.float64)
    inside = ((points >= 0) & (points <= canvas.size)).all(axis=-1)
    height = float(np.median(_heights(on))) / canvas.height
    quality = {
        "inside": float((inside & seen).sum() / max(1, seen.sum())),
        "height": height,
        "motion": _motion(points, seen, on.times, height * canvas.height),
        "jumps": _jumps(points, seen, height * canvas.height),
        "seen": float(seen.mean()),
    }
    quality = {name: round(value, 5) for name, value in quality.items()}
    for name, bad, why in (
        ("height", quality["height"] < checks.height, "the figure is too small ({:.2f} of the canvas's height)"),
        ("inside", quality["inside"] < checks.inside, "the figure does not fit the canvas ({:.2f} of it inside)"),
        ("motion", quality["motion"] < checks.motion, "hardly anything moves ({:.3f} figure heights a second)"),
        ("jumps", quality["jumps"] > checks.jumps, "the poses jump ({:.2f} of the frames)"),
    ):
        if bad:
            return Dropped(first, last, why.format(quality[name]))
    return Kept(first, last, on, placement, quality)


def around(poses: PoseSequence, canvas: Canvas) -> Placement:
    """The frames fill `canvas` (`cover`), cropped about the middle of the figure's way, constant over the clip."""
    scale = max(canvas.width / poses.canvas.width, canvas.height / poses.canvas.height)
    seen = poses.scores[:, 0, BODY] >= MIN_JOINT_SCORE
    points = np.asarray(poses.keypoints[:, 0, BODY], np.float64)[seen]
    centre = (points.min(axis=0) + points.max(axis=0)) / 2 if len(points) else np.array(poses.canvas.size) / 2
    shifts = []
    for middle, here, there in zip(centre.tolist(), poses.canvas.size, canvas.size, strict=True):
        shifts.append(min(0.0, max(there - scale * here, there / 2 - scale * middle)))
    return Placement(scale, scale, shifts[0], shifts[1])


_LIMBS = [3, 4, 6, 7, 9, 10, 12, 13]


def _motion(points: NDArray[np.float64], seen: NDArray[np.bool_], times: NDArray[np.float64], height: float) -> float:
    """Mean speed of the limbs' joints [heights a second] over the pairs of frames that show them."""
    if len(points) < 2 or height <= 0:
        return 0.0
    both = (seen[1:] & seen[:-1])[:, _LIMBS]
    speed = np.linalg.norm(np.diff(points[:, _LIMBS], axis=0), axis=-1) / np.diff(times)[:, None]
    return float(speed[both].mean() / height) if both.any() else 0.0


def _jumps(points: NDArray[np.float64], seen: NDArray[np.bool_], height: float) -> float:
    """Share of the frames in which a joint leaves its way and comes back."""
    if len(points) < 3 or height <= 0:
        return 0.0
    off = np.linalg.norm(points[1:-1] - (points[:-2] + points[2:]) / 2, axis=-1)
    across = np.linalg.norm(points[2:] - points[:-2], axis=-1)
    jump = seen[1:-1] & seen[:-2] & seen[2:] & (off > 0.12 * height) & (off > 1.5 * across)
    return float(jump.any(axis=1).mean())
