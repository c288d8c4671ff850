"""What a video file holds, packet by packet, without decoding: times, key frames, rate, and whether it ends early.

In: a path.  Out: an open container set up for one thread, and the `Index` of its video stream.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from animx.canvas import MAX_PIXELS, MAX_SIDE, Canvas
from animx.container import is_cut_short
from animx.errors import InputError
from animx.image import check_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Index:
    """The packets of a video stream in order of presentation, found without decoding."""

    pts: NDArray[np.int64]  # [N] ticks, strictly increasing
    keys: NDArray[np.int64]  # [M] ticks of key frames
    last: int  # duration of the last frame in ticks, 0 = not stated
    by_order: bool  # True where the file states no time stamps: the n-th frame is frame n
    cut: bool  # True when the file ends before it should


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream, set up for one thread; a file without video is an `InputError`."""
    try:
        # `file:` and the white list: a name like `concat:...` or a play list never opens anything else.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a video: it is {_why(path)} ({plain(error)}). Download or convert it again"
        ) from error
    try:
        stream = container.streams.best("video")
        if stream is None or not isinstance(stream, VideoStream) or stream.codec_context is None:
            raise InputError(f"{path} holds no video. Name a video, an animated picture or a folder of frames")
        context = stream.codec_context
        check_size(context.width, context.height, str(path))
        context.options = {"max_pixels": str(MAX_PIXELS)}
        if (
            context.name != "h264"
        ):  # H.264 marks damaged frames by itself, and strictness would refuse harmless oddities
            context.options |= {"err_detect": "explode"}
        # One thread: errors belong to the packet just fed, and two cores are busy with other stages anyway.
        context.thread_type = "NONE"
        context.thread_count = 1
        yield container, stream
    finally:
        container.close()


def scan(container: InputContainer, stream: VideoStream, path: Path) -> Index:
    """Read all packets of the stream without decoding."""
    stamps: list[tuple[int | None, int | None, bool, int]] = []
    broken = False
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                stamps.append((packet.pts, packet.dts, packet.is_keyframe, packet.duration or 0))
    except av.FFmpegError:
        broken = True
    first_key = next((n for n, stamp in enumerate(stamps) if stamp[2]), 0)
    count = len(stamps)
    stamps = stamps[first_key:]
    if not stamps:
        raise InputError(f"{path} holds no frame: it is damaged or was cut short. Download or convert it again")
    entries = stream.index_entries
    cut = broken or is_cut_short(path) or (entries is not None and count < len(entries))
    pts = [stamp[0] for stamp in stamps]
    # AVI numbers its packets in decoding order and says no more.
    if container.format.name == "avi" or any(value is None for value in pts):
        numbers = np.arange(len(stamps))
        return Index(numbers, numbers[:1], 0, True, cut)
    times = np.array(pts, np.int64)
    if cut:
        # Frames of lost packets may belong between the last ones: all of them lie after the last decoding time.
        until = max((stamp[1] for stamp in stamps if stamp[1] is not None), default=int(times.max()))
        times = times[times <= max(until, int(times.min()))]
        stamps = [stamp for stamp in stamps if stamp[0] is not None and stamp[0] <= times.max()]
    keys = np.unique(times[[stamp[2] for stamp in stamps]])
    return Index(np.unique(times), keys, stamps[int(times.argmax())][3], False, cut)


def timing(times: NDArray[np.float64], last: float, rate: Fraction, tick: float) -> tuple[Fraction, float, bool]:
    """(frames per second, duration [s], variable?) of frame times [s] on a clock of `tick` [s].

    Evenly spaced frames (to the rounding of the clock, few gaps allowed) keep the rational rate the file states; others
    get frames / duration.
    """
    if len(times) == 1:
        fps = rate if 0 < rate <= 1000 else Fraction(25)
        return fps, float(last or 1 / fps), False
    steps = np.diff(times)
    step = float(np.median(steps))
    even = np.abs(steps - step) <= max(0.1 * step, 1.1 * tick)
    if even.mean() >= 0.98:
        mean = float(steps[even].mean())
        # Both ends are rounded to the clock, which is all the doubt there is about a mean over many steps.
        doubt = max(2e-5, 1.2 * tick / (mean * int(even.sum())))
        if not 0 < rate <= 1000 or abs(float(rate) * mean - 1) > doubt:
            rate = _rational(1 / mean, doubt)
        return rate, float(times[-1] + 1 / rate), False
    duration = float(times[-1] + (last if 0 < last < 10 * step else step))
    return _rational(len(times) / duration, 0.0), duration, True


def _rational(value: float, doubt: float) -> Fraction:
    """A usual frame rate (whole, or whole x 1000/1001) within the relative `doubt`, else a near simple fraction."""
    whole, ntsc = Fraction(round(value)), Fraction(round(value * 1.001)) * Fraction(1000, 1001)
    for usual in (whole, ntsc):
        if usual > 0 and abs(float(usual) / value - 1) <= doubt:
            return usual
    return Fraction(value).limit_denominator(1001) or Fraction(1, 1001)


def square(canvas: Canvas, aspect: Fraction | None, name: str) -> Canvas:
    """The canvas with square pixels: the width is scaled, as players do."""
    if not aspect or aspect == 1:
        return canvas
    width = round(canvas.width * aspect)
    if not Fraction(1, 4) <= aspect <= 4 or not 1 <= width <= MAX_SIDE or width * canvas.height > MAX_PIXELS:
        log.warning("%s: pixel aspect %s is not plausible and is ignored", name, aspect)
        return canvas
    return Canvas(width, canvas.height)


def plain(error: BaseException) -> str:
    """FFmpeg's own words, without the numbers and the path."""
    return str(getattr(error, "strerror", None) or error).strip().rstrip(".") or type(error).__name__


def _why(path: Path) -> str:
    with contextlib.suppress(OSError):
        if is_cut_short(path):
            return "cut short, and what is left cannot be read"
    return "damaged or no video"
