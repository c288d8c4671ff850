"""Who is who: persons followed from frame to frame with stable ids, and the choice of the wanted one.

In: one `Detection` a frame.  Out: tracks, each the poses of one person, in order of first appearance.
A person is matched to a track by the distance of the seen body joints from where the track's motion leads, measured in
figure sizes, and by the overlap of the boxes; nearest pairs first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from animx.errors import UsageError
from animx.pose.detection import MIN_JOINT_SCORE, MIN_SEEN_JOINTS, Detection
from animx.pose.skeleton import BODY, JOINTS

GATE = 0.5
"""Farthest that a person moves away from the predicted place between two frames [figure sizes]."""
MEMORY = 48
"""A track that was lost for more frames than this is not continued when several persons can be told apart."""
MIN_TRACK = 3
"""A track seen in fewer frames is noise, unless the clip itself is shorter than twice as much; it is soon forgotten."""

_TRUNK = list(BODY)


@dataclass(frozen=True)
class PersonChoice:
    """`--person`: `largest`, `first`, `all`, or `track:N` (N in order of first appearance)."""

    kind: Literal["largest", "first", "all", "track"]
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> PersonChoice:
        """Read an option's text; anything else is a `UsageError`."""
        if text in ("largest", "first", "all"):
            return cls(text)  # type: ignore[arg-type]
        kind, _, number = text.partition(":")
        if kind == "track" and number.isdecimal() and len(number) < 7:
            return cls("track", int(number))
        raise UsageError(f"--person {text}: use largest, first, all or track:N (N counts persons from 0)")


@dataclass
class Track:
    """The poses of one person so far."""

    frames: list[int] = field(default_factory=list)
    poses: list[NDArray[np.float32]] = field(default_factory=list)  # each [K, 4]: x, y, score, depth
    size_sum: float = 0.0
    """Sum of the figure's size over its frames [px]: how large and how long it was seen."""
    shot: int = 0
    """Number of its poses before the last cut: no motion leads across it."""

    def expected(self, frame: int) -> NDArray[np.float32]:
        """The last pose carried on by the body's own motion to `frame`, for at most 3 frames."""
        last = self.poses[-1]
        if len(self.frames) - self.shot < 2 or self.frames[-1] - self.frames[-2] > 2:
            return last
        before = self.poses[-2]
        both = (last[_TRUNK, 2] >= MIN_JOINT_SCORE) & (before[_TRUNK, 2] >= MIN_JOINT_SCORE)
        if not both.any():
            return last
        speed = np.median((last[_TRUNK, :2] - before[_TRUNK, :2])[both], axis=0)
        speed = speed / (self.frames[-1] - self.frames[-2])
        moved = last.copy()
        moved[:, :2] += speed * min(3, frame - self.frames[-1])
        return moved


class Tracker:
    """Gives every detected person a track.  `alone`: the backend returns one person at most; of each pose
    the first `joints` are kept.

    With such a backend somebody who was lost for a while and found elsewhere is taken for the same person; a leap from
    one frame to the next is a switch to somebody else.
    """

    def __init__(self, *, alone: bool = False, joints: int = JOINTS) -> None:
        self._alone = alone
        self._joints = joints
        self.tracks: list[Track] = []
        self._fresh = False  # the picture has just been cut: places mean nothing

    def cut(self) -> None:
        """The next frame starts a new shot: persons are matched by size instead of place."""
        self._fresh = True
        for track in self.tracks:
            track.shot = len(track.frames)

    def add(self, frame: int, found: Detection) -> None:
        """Assign the persons of a frame; one with fewer than 5 seen body joints is left out."""
        people = [
            pose[: self._joints].copy()
            for pose in _poses(found)
            if (pose[_TRUNK, 2] >= MIN_JOINT_SCORE).sum() >= MIN_SEEN_JOINTS
        ]
        open_tracks = [one for one in self.tracks if self._alone or frame - one.frames[-1] <= _memory(one)]
        pairs = []
        for i, track in enumerate(open_tracks):
            for j, pose in enumerate(people):
                cost = self._cost(track, pose, frame, j)
                if cost is not None:
                    pairs.append((cost, i, j))
        taken_tracks: set[int] = set()
        owners: dict[int, Track] = {}
        for _, i, j in sorted(pairs):
            if i not in taken_tracks and j not in owners:
                taken_tracks.add(i)
                owners[j] = open_tracks[i]
        for j, pose in enumerate(people):
            owner = owners.get(j)
            if owner is None:
                owner = Track()
                self.tracks.append(owner)
            owner.frames.append(frame)
            owner.poses.append(pose)
            owner.size_sum += figure_size(pose)
        self._fresh = False

    def match(self, track: Track, found: Detection, frame: int) -> NDArray[np.float32] | None:
        """The person of another detection of the same `frame` that is `track`, [K, 4], or None."""
        if not track.frames or track.frames[-1] < frame:
            return None
        now = track.poses[_index(track.frames, frame)]
        best = None
        for pose in _poses(found):
            distance = pose_distance(now, pose)
            if distance is not None and distance < GATE and (best is None or distance < best[0]):
                best = (distance, pose[: self._joints].copy())
        return None if best is None else best[1]

    def _cost(self, track: Track, pose: NDArray[np.float32], frame: int, rank: int) -> float | None:
        if self._fresh:
            return abs(figure_size(track.poses[-1]) / max(1.0, figure_size(pose)) - 1) + 0.01 * rank
        lost = frame - track.frames[-1] - 1
        place = track.expected(frame)
        distance = pose_distance(place, pose)
        if distance is None:
            distance = 0.0 if box_overlap(place, pose) > 0.3 else np.inf
        gate = np.inf if self._alone and lost else GATE * (1 + 0.1 * lost)
        if distance > gate:
            return None
        return float(distance + 0.25 * (1 - box_overlap(place, pose)))

    def persons(self, frames: int) -> list[Track]:
        """The tracks that are no noise, in order of first appearance (of two at once the more prominent first)."""
        least = MIN_TRACK if frames >= 2 * MIN_TRACK else 1
        return [one for one in self.tracks if len(one.frames) >= least]

    def chosen(self, choice: PersonChoice, frames: int) -> list[tuple[int, Track]]:
        """The wanted tracks with their ids; empty when nobody was seen.  `UsageError` for an unknown number."""
        persons = list(enumerate(self.persons(frames)))
        if not persons or choice.kind == "all":
            return persons
        if choice.kind == "first":
            return persons[:1]
        if choice.kind == "largest":
            return [max(persons, key=lambda one: one[1].size_sum)]
        if choice.number >= len(persons):
            known = "one person, track:0" if len(persons) == 1 else f"persons track:0 to track:{len(persons) - 1}"
            raise UsageError(f"--person track:{choice.number}: the clip has {known}")
        return [persons[choice.number]]


def _memory(track: Track) -> int:
    return MEMORY if len(track.frames) >= MIN_TRACK else MIN_TRACK


def figure_size(pose: NDArray[np.float32]) -> float:
    """Diagonal of the box of the seen body joints [px]; pose [134, >= 3]."""
    box = _box(pose)
    return 0.0 if box is None else float(np.hypot(box[2] - box[0], box[3] - box[1]))


def pose_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float | None:
    """Mean distance of the body joints seen in both, in sizes of the larger figure; None without three such joints."""
    both = (a[_TRUNK, 2] >= MIN_JOINT_SCORE) & (b[_TRUNK, 2] >= MIN_JOINT_SCORE)
    if both.sum() < 3:
        return None
    distance = np.linalg.norm(a[_TRUNK, :2] - b[_TRUNK, :2], axis=-1)[both].mean()
    return float(distance / max(1.0, figure_size(a), figure_size(b)))


def box_overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Intersection over union of the boxes of the seen body joints."""
    first, second = _box(a), _box(b)
    if first is None or second is None:
        return 0.0
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.maximum(0, sides)))
    return shared / max(1e-9, float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - shared)


def _box(pose: NDArray[np.float32]) -> NDArray[np.float32] | None:
    seen = pose[_TRUNK][pose[_TRUNK, 2] >= MIN_JOINT_SCORE, :2]
    return np.concatenate([seen.min(0), seen.max(0)]) if len(seen) else None


def _poses(found: Detection) -> list[NDArray[np.float32]]:
    depth = np.zeros_like(found.scores) if found.depth is None else found.depth
    return list(np.concatenate([found.keypoints, found.scores[..., None], depth[..., None]], -1).astype(np.float32))


def _index(frames: list[int], frame: int) -> int:
    place = len(frames) - 1
    while place > 0 and frames[place] != frame:
        place -= 1
    return place
