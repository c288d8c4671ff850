"""Reading video files with PyAV: what is in a file, and its frames as RGB, with damage found and placed in time.

In: a path.  Out: `VideoInfo`, the time of every frame, and RGB [H, W, 3] of the frames asked for, upright, with square
pixels, converted with the matrix and range the file states.
Damage is found by `video_damage.Gate` and placed in time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError
from animx.video_colour import to_rgb, turned
from animx.video_damage import Damage, Gate, unit_length_size, units_are_sound
from animx.video_index import opened, plain, scan, square, timing

log = logging.getLogger(__name__)

_HDR = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class VideoInfo:
    """What a clip is, after rotation and pixel aspect are applied."""

    path: Path
    name: str
    """File or folder name without its parents."""
    canvas: Canvas
    fps: Fraction
    """Frame rate [1/s]; the average for a variable one."""
    frames: int
    """Frames in the file; an estimate where the file is cut short."""
    duration: float
    """From the start of the first frame to the end of the last [s]."""
    variable: bool
    """True when the frames are not evenly spaced."""
    has_audio: bool
    codec: str
    bit_depth: int
    rotation: int
    """Clockwise turn that the file asks for and that is applied: 0, 90, 180 or 270."""


class FileSource:
    """A video file as timed frames.  Opens the file anew for each pass, so it can be read any number of times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as (container, stream):
            self._index = index = scan(container, stream, path)
            self._base = stream.time_base or Fraction(1, 25)
            context = stream.codec_context
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            stated = float(stream.duration * self._base) if stream.duration else 0.0
            if not stated and container.duration:
                stated = container.duration / av.time_base
            if index.by_order:
                times = np.arange(len(index.pts)) / float(rate)
            else:
                times = (index.pts - index.pts[0]) * float(self._base)
            self.times: NDArray[np.float64] = times
            fps, duration, variable = timing(times, float(index.last * self._base), rate, float(self._base))
            frames = len(times)
            alone = not container.streams.audio
            if not stream.duration and not alone:
                stated = 0.0  # the length of a file without one of its own for the stream may be that of the sound
            self.cut = index.cut or duration + max(0.5, 3 / float(fps)) < stated
            if self.cut:
                duration = max(duration, stated)
                frames = max(frames, stream.frames, round(duration * fps))
            _say_gaps(path.name, times, 0.0 if variable else 1 / float(fps))
            size, aspect = (context.width, context.height), stream.sample_aspect_ratio
            codec, depth = context.name, _bit_depth(context.format)
            has_audio = bool(container.streams.audio)
        self.turn = self._display_matrix()
        self._stored = square(Canvas(*size), aspect, path.name)
        canvas = Canvas(self._stored.height, self._stored.width) if self.turn[0] == 0 else self._stored
        degrees = round(math.degrees(math.atan2(self.turn[1], self.turn[0]))) % 360
        self.info = VideoInfo(
            path, path.name, canvas, fps, frames, duration, variable, has_audio, codec, depth, degrees
        )

    def read(self, wanted: NDArray[np.int64], canvas: Canvas) -> Iterator[NDArray[np.uint8]]:
        """Yield RGB on `canvas` for each of the `wanted` frame numbers (increasing).  Raises `Damage`.

        Starts at the last key frame before the first wanted one.  A frame that the decoder leaves out without an error
        is replaced by the one before it.
        """
        stored = Canvas(canvas.height, canvas.width) if self.turn[0] == 0 else canvas
        reformatter = VideoReformatter()
        position, last = 0, None
        for number, frame in self._from(int(wanted[0])):
            while position < len(wanted) and wanted[position] < number:
                last = self._rgb(frame, stored, reformatter) if last is None else last
                yield last
                position += 1
            if position == len(wanted):
                return
            if wanted[position] == number:
                last = self._rgb(frame, stored, reformatter)
                yield last
                position += 1
                if position == len(wanted):
                    return
        if last is None or self.cut or position < len(wanted) - 2:
            raise Damage(int(wanted[position]), "frames are missing at the end")
        for _ in wanted[position:]:
            yield last

    def _from(self, first: int) -> Iterator[tuple[int, VideoFrame]]:
        """Clean frames from number `first` or a little before it; by a seek, or from the start where that fails."""
        keys = self._index.keys
        if not self._index.by_order and first > 0:
            target = self._index.pts[first]
            earlier = keys[keys <= target]
            if len(earlier) and earlier[-1] > self._index.pts[0]:
                begun = False
                try:
                    for number, frame in self._decode(int(earlier[-1])):
                        if not begun and number > first:
                            break
                        if number >= first or self._index.pts[number] >= earlier[-1]:
                            begun = begun or number >= first
                            yield number, frame
                    if begun:
                        return
                except Damage:
                    if begun:
                        raise
                log.debug("%s: seek to frame %d failed, reading from the start", self.path.name, first)
        yield from self._decode(None)

    def _decode(self, seek: int | None) -> Iterator[tuple[int, VideoFrame]]:
        """Frames in order of presentation, each once all it may lean on is known to be clean."""
        gate = Gate()
        with opened(self.path) as (container, stream):
            lengths = unit_length_size(stream)
            if seek is not None:
                try:
                    container.seek(seek, stream=stream, backward=True)
                except av.FFmpegError as error:
                    raise Damage(0, str(error)) from error
            started = False
            packets = container.demux(stream)
            while gate.bad is None:
                try:
                    packet = next(packets)
                except StopIteration:
                    break
                except av.FFmpegError as error:
                    gate.distrust(gate.order + 1, plain(error))
                    break
                started = started or packet.is_keyframe
                if not packet.size or not started:
                    continue
                gate.feed(None if self._index.by_order else packet.pts, packet.is_discard)
                if packet.is_corrupt or (lengths and not units_are_sound(bytes(packet), lengths)):
                    gate.distrust(gate.order, "damaged or missing data")
                    break
                try:
                    self._take(gate, packet.decode())
                except av.FFmpegError as error:
                    gate.distrust(gate.order, plain(error))
                    break
                yield from gate.vetted()
            with contextlib.suppress(av.FFmpegError):
                self._take(gate, stream.codec_context.decode(None))
            yield from gate.vetted(last=True)
            if gate.bad is not None:
                raise Damage(gate.next_number(), gate.reason)

    def _take(self, gate: Gate, frames: list[VideoFrame]) -> None:
        for frame in frames:
            pts = gate.count if self._index.by_order else frame.pts
            gate.count += 1
            number = len(self.times) if pts is None else int(np.searchsorted(self._index.pts, pts))
            if pts is not None and number < len(self.times):
                gate.take(number, pts, frame)

    def _rgb(self, frame: VideoFrame, stored: Canvas, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        return turned(to_rgb(frame, stored, reformatter), self.turn)

    def _display_matrix(self) -> tuple[int, int, int, int]:
        """The signs (a, b, c, d) of the display matrix x' = a x + c y, y' = b x + d y, from the first sound frame."""
        with opened(self.path) as (container, stream):
            for key in [None, *self._index.keys[1:9].tolist()]:
                with contextlib.suppress(av.FFmpegError, StopIteration):
                    if key is not None:
                        container.seek(key, stream=stream)
                    frame = next(container.decode(stream))
                    if frame.color_trc in _HDR:
                        log.warning(
                            "%s is HDR (%s); colours are read without tone mapping and look flat",
                            self.path.name,
                            _HDR[frame.color_trc],
                        )
                    found = _matrix_of(frame)
                    if found is None:
                        return (1, 0, 0, 1)
                    a, b, _, c, d = struct.unpack("<5i", found[:20])
                    if abs(a) >= abs(b):
                        return (1 if a > 0 else -1, 0, 0, 1 if d > 0 else -1)
                    return (0, 1 if b > 0 else -1, 1 if c > 0 else -1, 0)
        raise InputError(f"{self.path} is damaged: no picture in it can be decoded. Download or convert it again")


def _bit_depth(pixel_format: Any) -> int:
    return max((component.bits for component in pixel_format.components), default=8) if pixel_format else 8


def _say_gaps(name: str, times: NDArray[np.float64], step: float) -> None:
    """Warn about a hole in an evenly spaced clip: the frame before it is shown meanwhile."""
    gaps = np.diff(times)
    if step and len(gaps) and gaps.max() > max(0.25, 3.5 * step):
        at = int(gaps.argmax())
        log.warning("%s: no frames from %.3f to %.3f s; the last one before is held", name, times[at], times[at + 1])


def _matrix_of(frame: VideoFrame) -> bytes | None:
    try:
        return bytes(cast(Any, frame.side_data)["DISPLAYMATRIX"])
    except KeyError:
        return None


def read_alpha(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield every frame as RGBA [H, W, 4] in order, upright; VP9 alpha is kept.  Damage is an `InputError`."""
    source = FileSource(path)
    with opened(path) as (container, stream):
        context = stream.codec_context
        if context.name == "vp9":  # FFmpeg's own decoder drops the alpha channel
            context = VideoCodecContext.create("libvpx-vp9", "r")
        reformatter = VideoReformatter()
        try:
            for packet in container.demux(stream):
                for frame in context.decode(packet if packet.size else None):
                    yield turned(to_rgb(frame, Canvas(frame.width, frame.height), reformatter, alpha=True), source.turn)
        except av.FFmpegError as error:
            raise InputError(f"{path} is damaged ({plain(error)})") from error
