"""`PoseSequence`: the keypoints of a clip, the noun that pose, retarget and the engines hand on.

Letters: T frames, P persons, K joints (134).  Missing = score 0, coordinates written as 0 and never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas, Placement
from animx.errors import InputError
from animx.pose.skeleton import JOINTS, LAYOUT

SCHEMA = 1
MAX_FRAMES = 1_000_000
"""Longest pose file that is read [frames]."""
MAX_PERSONS = 64


@dataclass(frozen=True)
class PoseSequence:
    """Poses of a clip on one canvas.  Arrays are read-only; a bad shape, NaN or range is an `InputError` by field name.

    A single pose (a reference) is a sequence of one frame and one person.
    """

    keypoints: NDArray[np.float32]  # [T, P, K, 2] px on `canvas`
    scores: NDArray[np.float32]  # [T, P, K] in 0..1, 0 = missing
    canvas: Canvas
    fps: Fraction = Fraction(25)
    """Nominal rate [1/s]; `times` rules."""
    times: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # [T] s, strictly increasing
    person_ids: tuple[int, ...] = ()
    layout: str = LAYOUT
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the poses come from: `name`, `hash` (sha256 of the file), `backend`."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Operations applied, oldest first: `{"op": name, ...parameters}`."""
    depth: NDArray[np.float32] | None = None  # [T, P, K] px towards the viewer, relative to mid-hip; optional

    def __post_init__(self) -> None:
        keypoints = _array("keypoints", self.keypoints, np.float32, 4)
        frames, persons = keypoints.shape[:2]
        if keypoints.shape[2:] != (JOINTS, 2):
            raise InputError(f"keypoints: shape {list(keypoints.shape)}, expected [T, P, {JOINTS}, 2]")
        if not 1 <= frames <= MAX_FRAMES:
            raise InputError(f"keypoints: {frames} frames, expected 1 to {MAX_FRAMES}")
        if not 1 <= persons <= MAX_PERSONS:
            raise InputError(f"keypoints: {persons} persons, expected 1 to {MAX_PERSONS}")
        scores = _array("scores", self.scores, np.float32, 3)
        if scores.shape != keypoints.shape[:3]:
            raise InputError(f"scores: shape {list(scores.shape)}, expected {list(keypoints.shape[:3])}")
        if scores.min() < 0 or scores.max() > 1:
            raise InputError("scores: values outside 0..1")
        if self.fps <= 0:
            raise InputError(f"fps: {self.fps} is not positive")
        times = self.times if len(self.times) else np.arange(frames) / float(self.fps)
        times = _array("times", times, np.float64, 1)
        if times.shape != (frames,):
            raise InputError(f"times: {len(times)} entries for {frames} frames")
        if frames > 1 and not (np.diff(times) > 0).all():
            raise InputError("times: not strictly increasing")
        if self.layout != LAYOUT:
            raise InputError(f"layout: '{self.layout}' is not known here, expected '{LAYOUT}'")
        person_ids = self.person_ids or tuple(range(persons))
        if len(person_ids) != persons:
            raise InputError(f"person_ids: {len(person_ids)} entries for {persons} persons")
        if self.depth is not None:
            depth = _array("depth", self.depth, np.float32, 3)
            if depth.shape != scores.shape:
                raise InputError(f"depth: shape {list(depth.shape)}, expected {list(scores.shape)}")
            object.__setattr__(self, "depth", _frozen(depth))
        missing = scores == 0
        if keypoints[missing].any():
            keypoints = np.where(missing[..., None], np.float32(0), keypoints)
        object.__setattr__(self, "keypoints", _frozen(keypoints))
        object.__setattr__(self, "scores", _frozen(scores))
        object.__setattr__(self, "times", _frozen(times))
        object.__setattr__(self, "person_ids", person_ids)

    @property
    def frames(self) -> int:
        """T, the number of frames."""
        return self.keypoints.shape[0]

    @property
    def persons(self) -> int:
        """P, the number of persons; constant over the clip, an absent person has all scores 0."""
        return self.keypoints.shape[1]

    @property
    def duration(self) -> float:
        """Length of the clip [s], the last frame's own duration included."""
        step = float(1 / self.fps) if self.frames == 1 else float(np.median(np.diff(self.times)))
        return float(self.times[-1] - self.times[0]) + step

    def person(self, index: int) -> PoseSequence:
        """The sequence with person `index` alone (position, not id)."""
        if not 0 <= index < self.persons:
            raise InputError(f"person {index}: the poses hold {self.persons}")
        keep = slice(index, index + 1)
        return replace(
            self,
            keypoints=self.keypoints[:, keep],
            scores=self.scores[:, keep],
            person_ids=(self.person_ids[index],),
            depth=None if self.depth is None else self.depth[:, keep],
        )

    def cut(self, first: int, last: int) -> PoseSequence:
        """Frames `first` to `last` (exclusive); times keep their values."""
        keep = slice(first, last)
        return replace(
            self,
            keypoints=self.keypoints[keep],
            scores=self.scores[keep],
            times=self.times[keep],
            depth=None if self.depth is None else self.depth[keep],
        )

    def on(self, canvas: Canvas, placement: Placement) -> PoseSequence:
        """The same poses on another canvas, mapped by `placement` (see `animx.canvas.place`)."""
        scale = float(np.sqrt(abs(placement.sx * placement.sy)))
        return replace(
            self,
            keypoints=placement.points(self.keypoints).astype(np.float32),
            canvas=canvas,
            depth=None if self.depth is None else (self.depth * scale).astype(np.float32),
        )

    def with_poses(
        self, keypoints: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]] | None = None, **step: Any
    ) -> PoseSequence:
        """New keypoints (and scores) of the same shape; `step`, when given, is appended to `history`."""
        return replace(
            self,
            keypoints=np.asarray(keypoints, np.float32),
            scores=self.scores if scores is None else np.asarray(scores, np.float32),
            history=(*self.history, step) if step else self.history,
        )


def _array(name: str, value: object, dtype: type, ndim: int) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise TypeError
        # A read-only array of the right type is shared, not copied: readers and `replace` need no second copy.
        with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, which is refused below
            array = array.astype(dtype, copy=array.flags.writeable)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: not an array of numbers") from error
    if array.ndim != ndim:
        raise InputError(f"{name}: {array.ndim} dimensions, expected {ndim}")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: NaN or infinite values")
    return array


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
