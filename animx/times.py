"""Values that users type for time, rate, size and colour, and what they mean.

Times are seconds (`1.5`), clock times (`mm:ss`, `hh:mm:ss.fff`) or frames of the driving clip (`120f`); rates are exact
(`30000/1001`); sizes are `WxH`, where one side may be left out to keep the aspect.  A bad value is a `UsageError` that
names it, its option and the spellings that work.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from animx.canvas import MAX_PIXELS, MAX_SIDE, Canvas
from animx.errors import UsageError

TIME_HELP = "seconds (1.5), hh:mm:ss.fff, or frames (120f)"
MAX_FPS = 1000
MAX_SECONDS = 1e6

_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")
_SECONDS = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_FRAMES = re.compile(r"(\d+)f")
_SIZE = re.compile(r"(-1|\d*)[xX](-1|\d*)")


@dataclass(frozen=True)
class Time:
    """A point in, or a length of, the driving clip: exactly one of the two is set."""

    seconds: float | None = None
    frames: int | None = None
    """Counted in the clip's own (average) rate."""

    def at(self, fps: Fraction) -> float:
        """The time in seconds, at the clip's rate `fps`."""
        if self.frames is not None:
            return float(Fraction(self.frames) / fps)
        return float(self.seconds or 0.0)

    def __str__(self) -> str:
        return f"{self.frames}f" if self.frames is not None else f"{self.seconds:g}"


def parse_time(value: str | float | Time, option: str = "time") -> Time:
    """Read a time: a number of seconds, `hh:mm:ss.fff`, `mm:ss` or `120f`.  Never negative."""
    if isinstance(value, Time):
        return value
    text = str(value).strip()
    if found := _FRAMES.fullmatch(text):
        return Time(frames=int(found[1]))
    seconds: float | None = None
    if found := _CLOCK.fullmatch(text):
        hours, minutes, rest = int(found[1] or 0), int(found[2]), float(found[3])
        if minutes < 60 and rest < 60:
            seconds = hours * 3600 + minutes * 60 + rest
    elif _SECONDS.fullmatch(text):
        seconds = float(text)
    if seconds is None or not math.isfinite(seconds) or seconds > MAX_SECONDS:
        raise UsageError(f"{option} '{value}': not a time. Use {TIME_HELP}")
    return Time(seconds=seconds)


def parse_fps(value: str | float | Fraction, option: str = "--fps") -> Fraction:
    """Read a frame rate [1/s]: `25`, `29.97` (taken as 30000/1001) or an exact ratio `30000/1001`."""
    try:
        rate = value if isinstance(value, Fraction) else Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{option} '{value}': not a frame rate. Use a number (25) or a ratio (30000/1001)") from None
    for whole in (24, 30, 48, 60, 120):  # what people call 23.976, 29.97, 59.94 ...
        ntsc = Fraction(whole * 1000, 1001)
        if rate.denominator != 1001 and rate != whole and abs(rate - ntsc) < Fraction(1, 150):
            rate = ntsc
    if not 0 < rate <= MAX_FPS:
        raise UsageError(f"{option} '{value}': a frame rate is above 0 and at most {MAX_FPS}")
    return rate


def parse_size(value: str, option: str = "--size") -> tuple[int | None, int | None]:
    """Read `WxH` [px]; a side left out (`768x`, `x768`) or -1 keeps the aspect.  Returns (width, height)."""
    found = _SIZE.fullmatch(value.strip())
    sides = [None if side in ("", "-1") else int(side) for side in found.groups()] if found else [None, None]
    if sides == [None, None]:
        raise UsageError(f"{option} '{value}': not a size. Use WxH, as in 768x1024, or 768x to keep the aspect")
    if any(side is not None and not 2 <= side <= MAX_SIDE for side in sides):
        raise UsageError(f"{option} '{value}': each side is 2 to {MAX_SIDE} px")
    width, height = sides
    if width and height and width * height > MAX_PIXELS:
        raise UsageError(f"{option} '{value}': more than {MAX_PIXELS // 1_000_000} million pixels")
    return width, height


def resolve_size(size: tuple[int | None, int | None], aspect: Canvas, option: str = "--size") -> Canvas:
    """The canvas that `size` asks for; a missing side follows `aspect`.  Even sides, as video codecs need."""
    width, height = size
    if width is None and height is None:
        return aspect.even()
    if width is None:
        width = round((height or 2) * aspect.width / aspect.height)
    if height is None:
        height = round(width * aspect.height / aspect.width)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise UsageError(f"{option}: {width}x{height} px is too large")
    return Canvas(max(2, width), max(2, height)).even()


def parse_colour(value: str, option: str = "--background") -> tuple[int, int, int]:
    """Read `#rrggbb` or `#rgb`.  Returns (red, green, blue) 0..255."""
    text = value.strip().removeprefix("#")
    if len(text) == 3:
        text = "".join(2 * digit for digit in text)
    if not re.fullmatch(r"[0-9a-fA-F]{6}", text):
        raise UsageError(f"{option} '{value}': not a colour. Use #rrggbb, as in #20a0ff")
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)


def time_range(
    start: Time | None, end: Time | None, duration: Time | None, fps: Fraction
) -> tuple[float | None, float | None]:
    """The range (start, end) [s] that `--start`, `--end` and `--duration` ask for; None = the clip's own."""
    if end is not None and duration is not None:
        raise UsageError("--end and --duration cannot be given together. Leave one out")
    first = start.at(fps) if start is not None else None
    last = end.at(fps) if end is not None else None
    if duration is not None:
        if duration.at(fps) <= 0:
            raise UsageError(f"--duration {duration}: no time. Use {TIME_HELP}")
        last = (first or 0.0) + duration.at(fps)
    if last is not None and last <= (first or 0.0):
        raise UsageError(f"--end {last:g} s is not after --start {first or 0:g} s")
    return first, last
