"""People found in the JSON of another tool, gathered frame by frame, become a `PoseSequence`.

Shared by `openpose.py`, `coco.py` and `pickles.py`.  Where a file holds no time, the frame rate is 25 unless the caller
says; where it holds no canvas, the farthest joint tells, with a warning.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose import extras, native
from animx.pose.sequence import MAX_FRAMES, MAX_PERSONS, PoseSequence
from animx.pose.skeleton import JOINTS

log = logging.getLogger(__name__)


@dataclass
class Person:
    """One person of one frame: points [134, 3] (x, y, score), and extras by name."""

    points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((JOINTS, 3), np.float32))
    extras: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    id: int | None = None


@dataclass
class Clip:
    """What a reader gathers before it is a `PoseSequence`."""

    where: str
    kind: str
    canvas: Canvas | None = None
    fps: Fraction | None = None
    frames: list[list[Person]] = field(default_factory=list)
    numbers: list[int] | None = None
    may_be_normalised: bool = False

    def add(self, people: list[Person]) -> None:
        """Append a frame."""
        if len(self.frames) >= MAX_FRAMES:
            raise InputError(f"{self.where}: more than {MAX_FRAMES} frames. Cut the clip")
        if len(people) > MAX_PERSONS:
            raise InputError(f"{self.where}: {len(people)} people in frame {len(self.frames)}, at most {MAX_PERSONS}")
        self.frames.append(people)

    def poses(self) -> PoseSequence:
        """The sequence.  People with ids keep them; else the n-th person of a frame is person n."""
        if not self.frames:
            raise InputError(f"{self.where}: no frames")
        slots = self._slots()
        native.check_shape(f"{self.where}: people", (len(self.frames), len(slots), JOINTS))
        points = np.zeros((len(self.frames), len(slots), JOINTS, 3), np.float32)
        extra: dict[str, NDArray[np.float32]] = {}
        for t, people in enumerate(self.frames):
            for n, person in enumerate(people):
                p = n if person.id is None else slots.index(person.id)
                points[t, p] = person.points
                for name, point in person.extras.items():
                    extra.setdefault(name, np.zeros((len(self.frames), len(slots), 3), np.float32))[t, p] = point
        if self.may_be_normalised:
            self._to_px(points, extra)
        canvas = self.canvas or self._guess_canvas(points)
        fps = self.fps or Fraction(25)
        times = np.arange(len(self.frames)) if self.numbers is None else np.array(self.numbers) - self.numbers[0]
        poses = PoseSequence(
            keypoints=points[..., :2],
            scores=points[..., 2],
            canvas=canvas,
            fps=fps,
            times=times * float(1 / fps),
            person_ids=tuple(slots),
            source={"format": self.kind},
        )
        packed = extras.pack(extra, poses)
        return replace(poses, source={**poses.source, extras.KEY: packed}) if packed else poses

    def _slots(self) -> list[int]:
        ids = [[person.id for person in people] for people in self.frames]
        named = all(i is not None for row in ids for i in row) and all(len(set(row)) == len(row) for row in ids)
        if named and any(ids):
            return sorted({i for row in ids for i in row if i is not None})
        for people in self.frames:
            for person in people:
                person.id = None
        return list(range(max(1, max(len(row) for row in ids))))

    def _to_px(self, points: NDArray[np.float32], extra: dict[str, NDArray[np.float32]]) -> None:
        seen = points[points[..., 2] > 0][:, :2]
        # A pose of a few px does not exist; coordinates up to 2 are fractions of the canvas, some beyond its border.
        if self.canvas is not None and len(seen) and np.abs(seen).max() <= 2 and self.canvas.long_side > 8:
            for array in (points, *extra.values()):
                array[..., :2] *= np.array(self.canvas.size, np.float32)

    def _guess_canvas(self, points: NDArray[np.float32]) -> Canvas:
        seen = points[points[..., 2] > 0][:, :2]
        if not len(seen):
            raise InputError(f"{self.where}: no canvas size, and no joint to tell it from. Give the canvas")
        size = [max(1, math.ceil(side)) for side in seen.max(axis=0).clip(1, 1e9)]
        try:
            canvas = native.read_canvas(size)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error
        log.warning(
            "%s: holds no canvas size; %s is taken from the farthest joints. Better give it", self.where, canvas
        )
        return canvas


def person_id(value: Any) -> int | None:
    """A tracking id from a file, None for "not tracked" (OpenPose writes -1, alone in a list)."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62 else None


def triples(value: Any, where: str, counts: tuple[int, ...], highest: float = 1.0) -> NDArray[np.float32] | None:
    """A flat list x, y, score, x, y, score ... of one of `counts` joints as [n, 3]; None for an absent or empty one.

    Scores above 1 become 1, or are refused above `highest` when that is more.  A joint with score 0 becomes all 0.
    """
    if value is None or value == []:
        return None
    array = native.numbers(where, value).reshape(-1)
    if array.size not in [3 * count for count in counts]:
        expected = " or ".join(str(3 * count) for count in counts)
        raise InputError(f"{where}: {array.size} numbers, expected {expected} (x, y, score of each joint)")
    with np.errstate(over="ignore"):
        points: NDArray[np.float32] = array.reshape(-1, 3).astype(np.float32)
    if not np.isfinite(points).all():
        raise InputError(f"{where}: NaN or infinite values")
    scores = points[:, 2]
    if (scores < 0).any() or (highest > 1 and (scores > highest).any()):
        raise InputError(f"{where}: a score outside 0..{highest:g}")
    scores.clip(0, highest, out=scores)
    points[scores == 0] = 0
    return points
