"""Smoothing and gap filling of poses: `PoseSequence` to `PoseSequence`, with the step in its history.

The filter is a symmetric Savitzky-Golay: offline the future is known, so it has no lag (a one-euro filter does, and
was worse than none).  Where a joint moves faster than the window's parabola can follow, its own residual says so
against its own noise, and the next even order takes over: fast wrists keep their amplitude, still ones are steadied.
Both work per joint and per unbroken run of frames: a missing joint is never revived and never smears its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from animx.errors import UsageError
from animx.pose.repair import figure_height, repair
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BODY, BONES, JOINTS, MID_HIP, PARENT

MIN_NOISE = 0.002
"""Noise that a joint is taken to have at least [figure heights]; see `figure_height`."""
NOISE_RANGE = 3.0
"""Noise that a joint is taken to have at most, in medians of the body's joints: more is fast, uneven motion."""


def smooth(poses: PoseSequence, seconds: float = 0.28, order: int = 2, *, breaks: Sequence[int] = ()) -> PoseSequence:
    """Steady the joints with a symmetric Savitzky-Golay window of `seconds` and polynomial `order` (even).

    The window is the nearest odd number of frames; where it holds no more than order + 1 frames nothing changes (8 fps
    at the default).  No frame at or after a frame of `breaks` (cuts) is mixed with one before it.  Scores stay.
    """
    if not 0 < seconds <= 60:
        raise UsageError(f"smoothing over {seconds} s: use more than 0 and at most 60")
    if order < 0 or order % 2:
        raise UsageError(f"smoothing of order {order}: use 0, 2 or 4")
    window = window_length(poses, seconds)
    keypoints = poses.keypoints.copy()
    depth = None if poses.depth is None else poses.depth.copy()
    if window > order + 1:
        for person in range(poses.persons):
            noise = _noise_bounds(poses.keypoints[:, person], poses.scores[:, person], breaks)
            for joint in np.nonzero((poses.scores[:, person] > 0).any(0))[0]:
                for run in runs(poses.scores[:, person, joint] > 0, breaks):
                    one = (run, person, joint)
                    keypoints[one] = _steady(poses.keypoints[one].astype(np.float64), window, order, noise)
                    if depth is not None and poses.depth is not None:
                        depth[one] = _plainly(poses.depth[one].astype(np.float64), window, order)
    for array in (keypoints, depth):
        if array is not None:
            array.flags.writeable = False  # shared with the result, not copied
    step = {"op": "smooth", "seconds": seconds, "order": order}
    return replace(poses, keypoints=keypoints, depth=depth, history=(*poses.history, step))


def window_length(poses: PoseSequence, seconds: float) -> int:
    """The odd number of frames nearest to `seconds`, at least 1."""
    step = float(1 / poses.fps) if poses.frames == 1 else float(np.median(np.diff(poses.times)))
    return max(1, 2 * round((seconds / step - 1) / 2) + 1)


def runs(seen: NDArray[np.bool_], breaks: Sequence[int] = ()) -> Iterator[slice]:
    """The unbroken runs of True in `seen` [T], in order, also cut at each frame of `breaks`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], seen, [False])).astype(np.int8)))
    for first, last in edges.reshape(-1, 2):
        inner = [first, *(cut for cut in sorted(set(breaks)) if first < cut < last), last]
        for a, b in pairwise(inner):
            yield slice(int(a), int(b))


def _noise_bounds(
    keypoints: NDArray[np.float32], scores: NDArray[np.float32], breaks: Sequence[int]
) -> tuple[float, float]:
    """Least and most noise [px] that a joint of this person is taken to have, from what its body joints have."""
    levels = []
    for joint in BODY:
        longest = max(runs(scores[:, joint] > 0, breaks), key=lambda run: run.stop - run.start, default=slice(0, 0))
        level = _noise(keypoints[longest, joint].astype(np.float64))
        if level > 0:
            levels.append(level)
    least = MIN_NOISE * figure_height(keypoints, scores)
    return least, max(least, NOISE_RANGE * float(np.median(levels))) if levels else np.inf


def _plainly(track: NDArray[np.float64], window: int, order: int) -> NDArray[np.float64]:
    """Savitzky-Golay of one unbroken run [n], in the largest odd window that fits; too short a run stays."""
    window = min(window, len(track) - 1 + len(track) % 2)
    return filtered(track[:, None], window, order)[:, 0] if window > order + 1 else track


def _steady(track: NDArray[np.float64], window: int, order: int, noise: tuple[float, float]) -> NDArray[np.float64]:
    """Smooth one unbroken run [n, 2]: `order` where the motion allows it, `order + 2` where it is faster."""
    window = min(window, len(track) - 1 + len(track) % 2)  # the largest odd window that fits
    if window <= order + 1:
        return track
    calm = filtered(track, window, order)
    # an order that the window has just enough samples for passes everything through
    lively = track if window <= order + 3 else filtered(track, window, order + 2)
    # White noise of sd s leaves a residual of s * sqrt(1 - c0) behind; a fourth difference amplifies it by sqrt(70) and
    # motion hardly at all.
    expected = max(min(max(_noise(track), noise[0]), noise[1]), 1e-9) * np.sqrt(
        1 - _weights(window, order)[window // 2, window // 2]
    )
    residual = np.sqrt(_windowed_mean(((track - calm) ** 2).mean(1), window))
    share = np.clip((residual / expected - 1.4) / 0.6, 0.0, 1.0)
    share = share * share * (3 - 2 * share)
    steadied: NDArray[np.float64] = calm + (lively - calm) * share[:, None]
    return steadied


def _noise(track: NDArray[np.float64]) -> float:
    """Standard deviation of the white noise on one coordinate of a track [n, 2]; 0 when it is too short to tell."""
    if len(track) < 9:
        return 0.0
    return float(np.median(np.abs(np.diff(track, 4, axis=0))) / 0.6745 / np.sqrt(70))


def filtered(track: NDArray[np.float64], window: int, order: int) -> NDArray[np.float64]:
    """Savitzky-Golay of a track [n, C], n >= window; the ends take the polynomial of the first and last window."""
    weights = _weights(window, order)
    half = window // 2
    result = np.empty_like(track)
    result[half : len(track) - half] = np.apply_along_axis(np.convolve, 0, track, weights[half][::-1], "valid")
    result[:half] = weights[:half] @ track[:window]
    result[len(track) - half :] = weights[half + 1 :] @ track[-window:]
    return result


@cache
def _weights(window: int, order: int) -> NDArray[np.float64]:
    """Row i: weights of the window's samples for the value of the fitted polynomial at sample i, [window, window]."""
    places = np.arange(window) - window // 2
    basis = np.vander(places / max(1, window // 2), order + 1)
    hat: NDArray[np.float64] = basis @ np.linalg.pinv(basis)
    return hat


def _windowed_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    half = window // 2
    padded = np.pad(values, half, mode="edge")
    return np.convolve(padded, np.full(window, 1 / window), "valid")


def fill(poses: PoseSequence, max_gap_s: float = 0.5) -> PoseSequence:
    """Bridge gaps of at most `max_gap_s` in joints that are seen elsewhere in the clip.

    Between two sightings a joint turns about its parent (angle and length change evenly); before the first and after
    the last it keeps its last angle and length.  Where the parent is missing it moves in a straight line.  The score is
    at most 0.5.  A joint without any sighting stays missing.
    """
    keypoints, scores = poses.keypoints.astype(np.float64), poses.scores.copy()
    for person in range(poses.persons):
        for joint in _parents_first():
            seen = poses.scores[:, person, joint] > 0
            if seen.any() and not seen.all():
                root, anchored = _parent_track(keypoints[:, person], scores[:, person], joint)
                for run in runs(~seen):
                    _bridge(
                        keypoints[:, person, joint], scores[:, person, joint], run, poses, max_gap_s, root, anchored
                    )
    return poses.with_poses(keypoints, scores, op="fill", max_gap_s=max_gap_s)


def _parents_first() -> list[int]:
    body = [bone.child for bone in BONES]
    return body + [joint for joint in range(JOINTS) if joint not in body]


def _parent_track(
    keypoints: NDArray[np.float64], scores: NDArray[np.float32], joint: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    parent = PARENT[joint]
    if parent == MID_HIP:
        return np.zeros_like(keypoints[:, 0]), np.zeros(len(keypoints), bool)
    return keypoints[:, parent], scores[:, parent] > 0


def _bridge(
    track: NDArray[np.float64],
    scores: NDArray[np.float32],
    gap: slice,
    poses: PoseSequence,
    max_gap_s: float,
    root: NDArray[np.float64],
    anchored: NDArray[np.bool_],
) -> None:
    """Fill one gap of one joint in place."""
    before, after = gap.start - 1, gap.stop
    ends = [frame for frame in (before, after) if 0 <= frame < len(track)]
    frames = np.arange(gap.start, gap.stop)
    first, last = (ends[0], ends[-1])
    missing_s = float(poses.times[min(after, len(track) - 1)] - poses.times[max(before, 0)])
    if missing_s - (poses.duration / poses.frames if len(ends) == 2 else 0) > max_gap_s + 1e-9:
        return
    span = poses.times[last] - poses.times[first]
    share = (poses.times[frames] - poses.times[first]) / span if span > 0 else np.zeros(len(frames))
    if all(anchored[frame] for frame in (*ends, *frames)):
        arms = [track[end] - root[end] for end in (first, last)]
        angles = [np.arctan2(arm[1], arm[0]) for arm in arms]
        turn = (angles[1] - angles[0] + np.pi) % (2 * np.pi) - np.pi
        angle, length = angles[0] + share * turn, np.hypot(*arms[0]) * (1 - share) + np.hypot(*arms[1]) * share
        track[frames] = root[frames] + np.stack([np.cos(angle), np.sin(angle)], -1) * length[:, None]
    else:
        track[frames] = track[first] + (track[last] - track[first]) * share[:, None]
    scores[frames] = min(0.5, *(float(scores[end]) for end in ends))


__all__ = ["figure_height", "fill", "filtered", "repair", "runs", "smooth", "window_length"]
