"""Choose from poses: a range of time, a frame rate, one person.  `PoseSequence -> PoseSequence`, nothing is invented.

A pose file's `times` rule; its `fps` is nominal.  Frames taken out at a new rate lie on an even grid of time.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError, NoFigureError, UsageError
from animx.pose.sequence import MAX_FRAMES, PoseSequence

MIN_SCORE = 0.3
"""From this score on a joint counts as seen."""


def select_time(
    poses: PoseSequence, start: float | None = None, end: float | None = None, fps: Fraction | None = None
) -> PoseSequence:
    """The poses from `start` to `end` (not included) [s after the first frame] on an even grid of `fps` [1/s].

    None: from the beginning, to the end, at the clip's own rate.  On a grid that is not the clip's own, joints seen in
    both neighbours are interpolated, others are taken from the nearer one.  Times begin at 0.  A range without frames
    is a `UsageError`, times too far apart an `InputError`.
    """
    rate = fps or poses.fps
    times = poses.times - poses.times[0]
    own = np.arange(poses.frames) / float(poses.fps)
    even = bool(np.abs(times - own).max() <= 0.25 / float(poses.fps))
    first, last = start or 0.0, poses.duration if end is None else min(end, poses.duration)
    if first >= poses.duration:
        raise UsageError(f"--start {first:g} s lies behind the end of the poses ({poses.duration:.3f} s)")
    if even and rate == poses.fps:
        # Half a frame's slack: 3.0 s at 24 fps is frame 72, also when a float says 71.9999.
        a, b = (int(np.ceil(t * float(rate) - 0.01)) for t in (first, last))
        a, b = min(a, poses.frames - 1), min(max(b, a + 1), poses.frames)
        cut = poses if (a, b) == (0, poses.frames) else poses.cut(a, b)
        return replace(cut, times=np.arange(cut.frames) / float(rate))
    count = max(1, int(np.ceil((last - first) * float(rate) - 0.01)))
    if count > MAX_FRAMES and fps is None:
        raise InputError(
            f"times: {last - first:g} s at {rate} frames a second are {count} frames; at most {MAX_FRAMES} are "
            "possible. Take a part with --duration, or a lower --fps"
        )
    if count > MAX_FRAMES:
        raise UsageError(f"--fps {rate}: {count} frames; at most {MAX_FRAMES} are possible")
    return _resample(poses, times, first + np.arange(count) / float(rate), rate)


def _resample(poses: PoseSequence, times: NDArray[Any], wanted: NDArray[Any], rate: Fraction) -> PoseSequence:
    last = poses.frames - 1
    after = np.clip(np.searchsorted(times, wanted, side="right"), 1, max(1, last))  # [T']
    before = np.clip(after - 1, 0, last)
    after = np.minimum(after, last)
    gap = np.where(after > before, times[after] - times[before], 1.0)
    part = np.clip((wanted - times[before]) / gap, 0.0, 1.0).astype(np.float32)  # [T'] 0 = before, 1 = after
    near = np.where(part < 0.5, before, after)
    both = (poses.scores[before] > 0) & (poses.scores[after] > 0)  # [T', P, K]
    weight = part[:, None, None]

    def mixed(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        w = weight.reshape(shape)
        return np.where(both.reshape(*both.shape, *([1] * (values.ndim - 3))),
                        values[before] * (1 - w) + values[after] * w, values[near])  # fmt: skip

    return replace(
        poses,
        keypoints=mixed(poses.keypoints, (-1, 1, 1, 1)).astype(np.float32),
        scores=mixed(poses.scores, (-1, 1, 1)).astype(np.float32),
        depth=None if poses.depth is None else mixed(poses.depth, (-1, 1, 1)).astype(np.float32),
        times=np.arange(len(wanted)) / float(rate),
        fps=rate,
        history=(*poses.history, {"op": "resample", "fps": [rate.numerator, rate.denominator]}),
    )


def select_person(poses: PoseSequence, who: str = "largest") -> PoseSequence:
    """One person of the poses: `largest` (median box over the clip times presence), `first`, or `track:N` (its id)."""
    if who.startswith("track:"):
        wanted = who.removeprefix("track:")
        ids = [str(one) for one in poses.person_ids]
        if wanted not in ids:
            raise UsageError(f"--person {who}: the poses hold {', '.join('track:' + one for one in ids)}")
        return _present(poses.person(ids.index(wanted)), who)
    if who == "first":
        here = (poses.scores > 0).any(2)  # [T, P]
        order = [int(np.argmax(here[:, p])) if here[:, p].any() else poses.frames for p in range(poses.persons)]
        return _present(poses.person(int(np.argmin(order))), who)
    if who != "largest":
        raise UsageError(f"--person '{who}': use largest, first or track:N")
    return _present(poses if poses.persons == 1 else poses.person(int(np.argmax(_areas(poses)))), who)


def _present(poses: PoseSequence, who: str) -> PoseSequence:
    if not (poses.scores > 0).any():
        name = poses.source.get("name", "the poses")
        raise NoFigureError(f"{name}: no joint of the person ({who}) is visible in any frame. Try another clip")
    return poses


def _areas(poses: PoseSequence) -> list[float]:
    found = []
    for p in range(poses.persons):
        seen = poses.scores[:, p] >= MIN_SCORE  # [T, K]
        here = seen.sum(1) >= 2
        sizes = [np.ptp(poses.keypoints[t, p][seen[t]], axis=0).prod() for t in np.flatnonzero(here)]
        found.append(float(np.median(sizes)) * float(here.mean()) if sizes else 0.0)
    return found


def single(poses: PoseSequence, where: str) -> PoseSequence:
    """The one pose of a reference: one frame, its largest person.  A clip is an `InputError`."""
    if poses.frames != 1:
        raise InputError(
            f"{where}: holds {poses.frames} frames; a reference pose has one. Cut one out, or leave it out"
        )
    return select_person(poses)
