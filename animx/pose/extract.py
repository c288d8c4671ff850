"""From frames to poses: detect, follow, choose, repair, smooth.

In: a stream of frames (only two of them are held at a time) and a `PoseBackend`.  Out: a `PoseSequence` on the frames'
canvas.  Frames whose limbs jump or stretch are looked at a second time, alone; `repair` weighs both estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError, NoFigureError, UsageError
from animx.pose import repair as mending
from animx.pose.detection import PoseBackend
from animx.pose.sequence import MAX_PERSONS, PoseSequence
from animx.pose.skeleton import FACE, JOINTS
from animx.pose.smooth import smooth as smoothed
from animx.pose.track import PersonChoice, Track, Tracker

CUT = 40.0
"""A mean change of the coarse grey picture above this is a cut [0..255]."""


BODY_AND_FEET = FACE[0]
"""The joints before this one are body and feet."""


class TimedFrame(Protocol):
    """What is read of a frame: RGB pixels [H, W, 3] and its time [s]."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """RGB [H, W, 3]."""

    @property
    def time(self) -> float:
        """Seconds from the start."""


def extract_poses(
    frames: Iterable[TimedFrame],
    backend: PoseBackend,
    *,
    person: str = "largest",
    smooth: bool = True,
    repair: bool = True,
    hands: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    source: Mapping[str, Any] | None = None,
) -> PoseSequence:
    """The poses of a clip: one person by `person`, or with `all` every person seen.

    `person`: `largest` (size summed over the clip), `first`, `track:N`, `all`.  `hands=False`: no hands, no face.
    Frames in which the person is not found have all scores 0.  `fps` is the stream's (else from the times).  `source`
    (`name`, `hash`) is kept and gets `backend`.  Errors: `NoFigureError` when nobody is found in any frame,
    `UsageError` for a choice the backend cannot make, `InputError` for no frames or changing sizes.
    """
    choice = PersonChoice.parse(person)
    if choice.kind == "track" and backend.max_persons == 1:
        raise UsageError(
            f"--person {person}: pose backend '{backend.name}' returns one person. "
            "Use --backend rtm, or --person largest"
        )
    total = int(getattr(frames, "frames", None) or 0)
    reader = _Reader(backend, _nominal_fps(frames), second_look=repair, joints=JOINTS if hands else BODY_AND_FEET)
    backend.reset()
    for frame in frames:
        reader.add(frame)
        on_progress(len(reader.times), total)
    reader.finish()
    count, name = len(reader.times), dict(source or {}).get("name", "the clip")
    if count == 0 or reader.canvas is None:
        raise InputError(f"{name}: no frames to look for a person in")
    tracks = reader.tracker.chosen(choice, count)[:MAX_PERSONS]
    if not tracks:
        raise NoFigureError(
            f"{name}: no person found in any of {count} frames ({backend.name}). Use a clip that shows a whole person"
        )
    second, cuts = reader.second_looks(tracks), reader.cuts
    poses = reader.sequence(tracks, {**(source or {}), "backend": f"{backend.name} {backend.version}"})
    del reader, tracks
    if repair:
        poses = mending.repair_with(poses, second, breaks=cuts)
    return smoothed(poses, breaks=cuts) if smooth else poses


def _nominal_fps(frames: Iterable[TimedFrame]) -> Fraction | None:
    fps = getattr(frames, "fps", None)
    return Fraction(fps) if fps else None


class _Reader:
    """Takes frames one by one; holds the last two and every pose."""

    def __init__(self, backend: PoseBackend, fps: Fraction | None, *, second_look: bool, joints: int) -> None:
        self._backend = backend
        self._fps = fps
        self._second_look = second_look
        self.canvas: Canvas | None = None
        self.times: list[float] = []
        self.cuts: list[int] = []
        self.tracker = Tracker(alone=backend.max_persons == 1, joints=joints)
        self._thumbnail: NDArray[np.int16] | None = None
        self._last: NDArray[np.uint8] | None = None
        self._reaches: dict[int, _Reach] = {}
        self.second: dict[tuple[int, int], NDArray[np.float32]] = {}  # (frame, track) -> [134, 4]

    def add(self, frame: TimedFrame) -> None:
        pixels, index = frame.pixels, len(self.times)
        canvas = Canvas(pixels.shape[1], pixels.shape[0])
        if self.canvas not in (None, canvas):
            raise InputError(f"frame {index} is {canvas} px, the frames before it {self.canvas}")
        self.canvas = canvas
        thumbnail = _coarse(pixels)
        if self._thumbnail is not None and np.abs(thumbnail - self._thumbnail).mean() > CUT:
            self.cuts.append(index)
            self._backend.reset()
            self.tracker.cut()
        self._thumbnail = thumbnail
        self.tracker.add(index, self._backend.detect(pixels))
        self.times.append(float(frame.time))
        if self._second_look:
            if self._last is not None:
                self._look_again(index - 1, self._last)
            self._last = pixels

    def finish(self) -> None:
        if self._last is not None:
            self._look_again(len(self.times) - 1, self._last)
            self._last = None

    @property
    def fps(self) -> Fraction:
        if self._fps is not None:
            return self._fps
        if len(self.times) < 2:
            return Fraction(25)
        return Fraction(1 / float(np.median(np.diff(self.times)))).limit_denominator(1001)

    def _look_again(self, frame: int, pixels: NDArray[np.uint8]) -> None:
        """Detect `frame` alone when one of its persons moves like no person."""
        suspects = []
        for number, track in enumerate(self.tracker.tracks):
            poses = {track.frames[i]: track.poses[i] for i in range(max(0, len(track.frames) - 4), len(track.frames))}
            if frame not in poses:
                continue
            reach = self._reaches.setdefault(number, _Reach())
            before = None if frame in self.cuts else poses.get(frame - 1)
            after = None if frame + 1 in self.cuts else poses.get(frame + 1)
            fps = float(self.fps)
            now = poses[frame]
            if mending.is_suspect(before, now, after, reach.height, reach.lengths, fps) or reach.doubts(frame, now):
                suspects.append((number, track, now))
            reach.learn(now)
        if suspects:
            found = self._backend.detect(pixels, still=True)
            for number, track, now in suspects:
                pose = self.tracker.match(track, found, frame)
                if pose is not None:
                    self.second[frame, number] = pose
                self._reaches[number].looked(frame, helped=pose is not None and mending.is_surer(pose, now))

    def sequence(self, tracks: list[tuple[int, Track]], source: Mapping[str, Any]) -> PoseSequence:
        """The poses of the chosen tracks.  The tracks give their poses away: a long clip is not held twice."""
        assert self.canvas is not None
        shape = (len(self.times), len(tracks), JOINTS)
        keypoints, scores = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
        depth: NDArray[np.float32] | None = None
        for place, (_, track) in enumerate(tracks):
            for frame in reversed(track.frames):
                pose = track.poses.pop()
                keypoints[frame, place, : len(pose)] = pose[:, :2]
                scores[frame, place, : len(pose)] = pose[:, 2]
                if pose[:, 3].any():
                    if depth is None:
                        depth = np.zeros(shape, np.float32)
                    depth[frame, place, : len(pose)] = np.where(pose[:, 2] > 0, pose[:, 3], 0)
        for array in (keypoints, scores, depth):
            if array is not None:
                array.flags.writeable = False  # shared, not copied
        return PoseSequence(
            keypoints,
            scores,
            self.canvas,
            self.fps,
            np.array(self.times),
            tuple(number for number, _ in tracks),
            source=source,
            depth=depth,
        )

    def second_looks(self, tracks: list[tuple[int, Track]]) -> dict[tuple[int, int], NDArray[np.float32]]:
        """The second estimates of the chosen tracks, by frame and place among them: [K, >= 3]."""
        places = {id(track): place for place, (_, track) in enumerate(tracks)}
        numbers = {number: places.get(id(track)) for number, track in enumerate(self.tracker.tracks)}
        found = {}
        for (frame, number), pose in self.second.items():
            place = numbers[number]
            if place is not None:
                found[frame, place] = pose
        return found


class _Reach:
    """What is known of a track: figure height and greatest limb lengths of the last 48 poses [px], and doubts."""

    def __init__(self) -> None:
        self.height = 0.0
        self.lengths = np.zeros(JOINTS)
        self._recent: list[NDArray[np.float32]] = []
        self._next = 3
        self._pause, self._not_before = 1, 0

    def doubts(self, frame: int, pose: NDArray[np.float32]) -> bool:
        """Whether a guessed limb joint is worth a second look: less and less often while that does not help."""
        if not mending.is_unsure(pose):
            self._pause = 1
            return False
        return frame >= self._not_before

    def looked(self, frame: int, *, helped: bool) -> None:
        """Remember whether a second look was surer."""
        self._pause = 1 if helped else min(2 * self._pause, 24)
        self._not_before = frame + self._pause

    def learn(self, pose: NDArray[np.float32]) -> None:
        """Take a pose [134, >= 3] in; the values are renewed at growing intervals."""
        self._recent.append(pose[:24, :3])
        if len(self._recent) < self._next:
            return
        recent = np.stack(self._recent[-48:])
        self._recent = self._recent[-47:]
        self._next = min(2 * len(recent), 48) if len(recent) < 48 else len(self._recent) + 24
        self.height = mending.figure_height(recent[..., :2], recent[..., 2])
        self.lengths = mending.limb_reach(recent[..., :2], recent[..., 2], self.height)


def _coarse(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """About 24x24 grey samples of a picture."""
    height, width = pixels.shape[:2]
    sample = pixels[:: max(1, height // 24), :: max(1, width // 24)].astype(np.int16)
    grey: NDArray[np.int16] = (sample.sum(-1) // 3).astype(np.int16)
    return grey
