"""Clips: what one is (`probe`), its frames evenly spaced in time (`open_frames`), and writing one (`open_writer`).

In: a video file, an animated GIF or WebP, a folder of frames or a pattern `NAME_%05d.png`.
Out: RGB [H, W, 3] one at a time, at a constant rational rate; no clip ever lies whole in memory.
Time 0 is the start of the first frame.  At output frame k the source frame nearest to `start + k / fps` is shown (of
two equally near the earlier), so a variable rate becomes its average without drift and an even one stays as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError, UsageError, nearest
from animx.image import check_no_pipe
from animx.video_audio import AudioSource
from animx.video_damage import Damage
from animx.video_frames import PATTERN, FolderSource, WebpSource, frames_of, read_webp_alpha
from animx.video_read import FileSource, VideoInfo, read_alpha
from animx.video_write import VideoWriter, check_output, has_alpha_container, open_writer

__all__ = [
    "AudioSource",
    "Frame",
    "FrameStream",
    "VideoInfo",
    "VideoWriter",
    "check_output",
    "has_alpha_container",
    "open_frames",
    "open_writer",
    "probe",
    "read_alpha_frames",
]

log = logging.getLogger(__name__)

MAX_FRAMES = 1_000_000
"""Most frames a stream yields; more is refused before the first."""


@dataclass(frozen=True)
class Frame:
    """One frame of a stream."""

    pixels: NDArray[np.uint8]
    """RGB [H, W, 3]."""
    time: float
    """From the start of the selected range [s]."""
    index: int


class _Source(Protocol):
    """A clip as timed frames."""

    info: VideoInfo
    times: NDArray[np.float64]  # [N] s from the first frame, increasing
    cut: bool  # the file ends before its frames do

    def read(self, wanted: NDArray[np.int64], canvas: Canvas) -> Iterator[NDArray[np.uint8]]: ...


class FrameStream:
    """The frames of a selected range, evenly spaced.  Each `iter()` reads the source anew."""

    def __init__(
        self, source: _Source, start: float | None, end: float | None, fps: Fraction | None, max_side: int | None
    ) -> None:
        self._source = source
        self.info = info = source.info
        self.fps: Fraction = fps or info.fps
        self.start = start or 0.0
        stop = info.duration if end is None else min(end, info.duration)
        _check_range(self.start, end, info)
        self.duration = stop - self.start
        """Length of the range [s]."""
        self.frames: int = max(1, round(round(self.duration * float(self.fps), 6)))
        """How many frames the stream yields."""
        if self.frames > MAX_FRAMES:
            raise UsageError(
                f"{info.name} has {self.frames} frames at {float(self.fps):g} a second, more than {MAX_FRAMES}. "
                "Choose a range with --start and --end, or a lower --fps"
            )
        self.canvas = info.canvas if max_side is None else info.canvas.limited(max_side)
        """Size of the frames."""
        if self.canvas != info.canvas:
            log.info("%s is read at %s instead of %s", info.name, self.canvas, info.canvas)
        step = 1 / float(info.fps)
        self._meets_cut = source.cut and (end is None or end > float(source.times[-1]) + step + 0.001)
        self._picks = _nearest(source.times, self.start + np.arange(self.frames) / float(self.fps), stop, source.cut)

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order.  Damage in the range is an `InputError` that names the last good time."""
        wanted, counts = np.unique(self._picks, return_counts=True)
        index = 0
        pictures = self._source.read(wanted, self.canvas)
        try:
            for count in counts.tolist():
                pixels = next(pictures)
                for repeat in range(count):
                    yield Frame(pixels.copy() if repeat else pixels, float(index / self.fps), index)
                    index += 1
            if self._meets_cut:
                raise Damage(len(self._source.times), "the file ends early")
        except Damage as damage:
            raise self._damaged(damage) from damage
        finally:
            close = getattr(pictures, "close", None)
            if close is not None:
                close()

    def _damaged(self, damage: Damage) -> InputError:
        times, number = self._source.times, min(damage.index, len(self._source.times))
        good = float(times[number - 1]) if number > 0 else None
        if good is None or good < self.start:
            return InputError(
                f"{self.info.path} is damaged from {self.start:.3f} s on ({damage}): no good frame in the range. "
                "Choose another range, or download or convert the clip again"
            )
        # Rounded down, and after the last good frame: with this --end nothing behind it is shown.
        after = good + 1 / float(self.info.fps)
        if number < len(times) and self.info.variable:
            after = float(times[number])
        end = max(math.floor(after * 1000 + 1e-6) / 1000, math.ceil(good * 1000 + 1) / 1000)
        return InputError(
            f"{self.info.path} is damaged or cut short ({damage}): the last good frame is at {good:.3f} s. "
            f"Use --end {end:.3f} to stop there, or download or convert the clip again"
        )


def probe(path: str | Path) -> VideoInfo:
    """What a clip is.  Reads packet headers and decodes one frame; a file that is no clip is an `InputError`."""
    return _source(Path(path), None).info


def open_frames(
    path: str | Path,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: Fraction | None = None,
    max_side: int | None = None,
) -> FrameStream:
    """Open a clip for reading the range [start, end) in seconds; frames at or after `end` are never shown.

    `fps` resamples a video by time and states the rate of a folder of frames (25 otherwise).  A long side above
    `max_side` [px] is reduced to it.  A range outside the clip is a `UsageError`; a file that cannot be opened is an
    `InputError`, as is damage when iteration reaches it: one that lies behind `end` is never met.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise UsageError(f"--fps {fps}: choose a rate above 0 and at most 1000 frames a second")
    path = Path(path)
    source = _source(path, fps)
    return FrameStream(source, start, end, fps, max_side)


def read_alpha_frames(path: str | Path) -> Iterator[NDArray[np.uint8]]:
    """Yield every frame of a clip as RGBA [H, W, 4], not premultiplied, in order and as stored (no resampling).

    Transparency is kept for VP9 WebM, ProRes 4444, GIF, WebP and pictures.
    """
    path = Path(path)
    if path.is_dir() or PATTERN.search(path.name):
        from animx.image import read_picture

        return (read_picture(file).pixels for file in frames_of(path))
    return read_webp_alpha(path) if path.suffix.lower() == ".webp" else read_alpha(path)


def _source(path: Path, fps: Fraction | None) -> _Source:
    try:
        if path.is_dir() or (PATTERN.search(path.name) and not path.exists()):
            return FolderSource(path, fps)
        check_no_pipe(path)
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file.{nearest(path.name, siblings)}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes). Download or convert it again")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebpSource(path)
    return FileSource(path)


def _check_range(start: float, end: float | None, info: VideoInfo) -> None:
    if not math.isfinite(start) or start < 0 or (end is not None and not math.isfinite(end)):
        raise UsageError("--start and --end are times from 0 on, in seconds")
    if start >= info.duration:
        raise UsageError(f"--start {start:g} s is behind the end of {info.name} ({info.duration:.3f} s)")
    if end is not None and end <= start:
        raise UsageError(f"--end {end:g} s is not after --start {start:g} s")
    if end is not None and end > info.duration + 1 / float(info.fps):
        log.info("%s ends at %.3f s, before --end %g", info.name, info.duration, end)


def _nearest(times: NDArray[np.float64], moments: NDArray[np.float64], stop: float, cut: bool) -> NDArray[np.int64]:
    """The number of the frame nearest to each moment [s], of those before `stop`; ties go to the earlier one.

    In a file that is cut short, a moment behind its last frame asks for the frame that is missing.
    """
    inside = max(1, int(np.searchsorted(times, stop - 1e-6)))
    after = np.clip(np.searchsorted(times[:inside], moments), 0, inside - 1)
    before = np.maximum(after - 1, 0)
    # A nanosecond, so that rounding of the clock cannot break a tie.
    picks = np.where(moments - times[before] <= times[after] - moments + 1e-9, before, after)
    if cut:
        step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        picks = np.where(moments > times[-1] + step / 2 + 1e-9, len(times), picks)
    return np.asarray(picks, np.int64)
