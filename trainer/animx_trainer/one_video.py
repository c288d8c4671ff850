"""One video for training: its shots, the poses of each, the frames worth keeping, and the clips made of them.

In: a video file.  Out: clips written to a folder (see `shards`), and a record of what was kept and dropped.  Frames are
read three times (cuts, poses, pictures) and never lie in memory as a whole; reading is a small part of the time.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.config import Range
from animx.errors import InputError, NoFigureError
from animx.image import file_sha256, resize
from animx.pose.detection import PoseBackend
from animx.pose.extract import extract_poses
from animx.pose.npz import save
from animx.pose.sequence import PoseSequence
from animx.video import Frame, FrameStream, open_frames
from animx_trainer.quality import Checks, Dropped, Kept, judge
from animx_trainer.shards import contents, write_folder
from animx_trainer.shots import CutFinder

Side = Annotated[int, Range(16, 4096)]

READ_SIDE = 1280
"""Larger frames are reduced to this long side before poses are looked for [px]."""


@dataclass(frozen=True)
class Cutting:
    """How a video becomes clips."""

    size: tuple[Side, Side] = (512, 768)
    """Width and height of the clips [px]; frames fill it and are cropped about the figure."""
    fps: Annotated[float, Range(0, 240)] = 0.0
    """Frames a second of the clips; 0 = the video's own."""
    image: Literal["jpg", "png"] = "jpg"
    """How frames are stored: JPEG without colour subsampling, or without any loss."""
    quality: Annotated[int, Range(1, 100)] = 95
    """Quality of JPEG pictures."""
    backend: str | None = None
    """Pose backend; null = the best one installed."""
    checks: Checks = field(default_factory=Checks)
    """What a clip has to be."""


@functools.cache
def _backend(name: str | None) -> PoseBackend:
    """One backend a process: making it takes seconds."""
    from animx.pose.backend import choose_backend

    return choose_backend(name, hands=True)


def prepare_video(
    path: Path,
    folder: Path,
    cutting: Cutting,
    backend: PoseBackend | None = None,
) -> dict[str, Any]:
    """Write the clips of a video to `folder`; returns `hash`, `frames`, `cuts`, `clips` and `dropped` as plain values.

    `backend` None: the one that `cutting` names, made once a process.

    A video that cannot be read to its end is an `InputError`, and none of its clips is used.
    """
    canvas, digest = Canvas(*cutting.size), file_sha256(path)
    rate = Fraction(cutting.fps).limit_denominator(1001) if cutting.fps else None
    stream = open_frames(path, fps=rate, max_side=READ_SIDE)
    finder = CutFinder()
    for frame in stream:
        finder.add(frame.pixels)
    total = len(finder.changes)
    shots = _shots(finder.cuts(), total)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-")[:40] or "video"
    prefix = f"{stem}-{digest[:8]}"
    kept: list[tuple[int, Kept]] = []
    dropped: list[dict[str, Any]] = []
    backend = backend or _backend(cutting.backend)
    for first, here, poses in _poses(stream, shots, backend, cutting.checks.min_frames, path.name):
        if poses is None:
            dropped.append({"frames": [first, first + here.frames], "why": here.why})
            continue
        good, bad = judge(poses, canvas, cutting.checks)
        kept += [(first, one) for one in good]
        dropped += [{"frames": [first + one.first, first + one.last], "why": one.why} for one in bad]
    clips = [
        _write(stream_clip, folder, prefix, cutting, {"name": path.name, "hash": digest})
        for stream_clip in _pictures(stream, kept, canvas, cutting)
    ]
    return {"hash": digest, "frames": total, "cuts": [a for a, _ in shots[1:]], "clips": clips, "dropped": dropped}


def _shots(cuts: list[int], total: int) -> list[tuple[int, int]]:
    bounds = [0, *cuts, total]
    return [(a, b) for a, b in pairwise(bounds) if b > a]


@dataclass
class _Shot:
    """The frames of one shot as a stream of their own, taken from the video's."""

    source: Iterator[Frame]
    frames: int
    fps: Fraction
    taken: int = 0
    why: str = ""

    def __iter__(self) -> Iterator[Frame]:
        while self.taken < self.frames:
            frame = next(self.source)
            self.taken += 1
            yield Frame(frame.pixels, float((self.taken - 1) / self.fps), self.taken - 1)

    def skip(self) -> None:
        """Leave the video where the shot ends."""
        for _ in self:
            pass


def _poses(
    stream: FrameStream, shots: list[tuple[int, int]], backend: PoseBackend, shortest: int, name: str
) -> Iterator[tuple[int, _Shot, PoseSequence | None]]:
    """For each shot its first frame, itself, and everybody's poses, or None with `why` in the shot."""
    frames = iter(stream)
    for first, last in shots:
        shot = _Shot(frames, last - first, stream.fps)
        poses: PoseSequence | None = None
        if shot.frames < shortest:
            shot.why = f"shorter than {shortest} frames"
        else:
            try:
                who = "all" if backend.max_persons > 1 else "largest"
                poses = extract_poses(shot, backend, person=who, source={"name": name})
            except NoFigureError:
                shot.why = "nobody is found"
        shot.skip()
        yield first, shot, poses


@dataclass
class _ClipFrames:
    """A clip with its encoded pictures."""

    first: int
    kept: Kept
    pictures: list[bytes]


def _pictures(
    stream: FrameStream, kept: list[tuple[int, Kept]], canvas: Canvas, cutting: Cutting
) -> Iterator[_ClipFrames]:
    """The pictures of the kept ranges, read in one go; ranges are in order and do not overlap."""
    if not kept:
        return
    ordered = sorted(kept, key=lambda one: one[0] + one[1].first)
    frames = enumerate(stream)
    for shot, one in ordered:
        first, last = shot + one.first, shot + one.last
        pictures: list[bytes] = []
        for number, frame in frames:
            if number >= first:
                pictures.append(encode_picture(resize(frame.pixels, canvas, one.placement), cutting))
            if number == last - 1:
                break
        if len(pictures) != last - first:
            raise InputError(f"frames {first} to {last} were there before and are not now: the video changes")
        yield _ClipFrames(first, one, pictures)


def encode_picture(pixels: NDArray[np.uint8], cutting: Cutting) -> bytes:
    """RGB [H, W, 3] as the bytes of a JPEG (4:4:4) or PNG; the same pixels give the same bytes."""
    settings = (
        [cv2.IMWRITE_JPEG_QUALITY, cutting.quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
         cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        if cutting.image == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    )  # fmt: skip
    made, data = cv2.imencode(f".{cutting.image}", np.ascontiguousarray(pixels[..., ::-1]), settings)
    assert made
    return data.tobytes()


def _write(clip: _ClipFrames, folder: Path, prefix: str, cutting: Cutting, source: dict[str, Any]) -> dict[str, Any]:
    one, last = clip.kept, clip.first + len(clip.pictures)
    poses = replace(one.poses, times=one.poses.times - one.poses.times[0], depth=None)
    sink = io.BytesIO()
    save(poses, sink)
    meta = {
        "source": source,
        "frames_of_source": [clip.first, last],
        "fps": [poses.fps.numerator, poses.fps.denominator],
        "canvas": list(poses.canvas.size),
        "quality": one.quality,
    }
    made = contents(f"{prefix}-{clip.first:06d}", meta, sink.getvalue(), clip.pictures, cutting.image)
    write_folder(folder, made)
    return {"key": made.key, "frames": len(clip.pictures), "from": clip.first, "bytes": made.size, **one.quality}


__all__ = ["Checks", "Cutting", "Dropped", "encode_picture", "prepare_video"]
