"""Clips that are pictures: a folder or numbered pattern of frames, and animated WebP, which FFmpeg cannot read.

Both offer what `video_read.FileSource` offers: `info`, `times`, `cut`, `read`.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from animx.canvas import Canvas
from animx.container import is_cut_short
from animx.errors import InputError
from animx.image import IMAGE_SUFFIXES, check_size, read_picture, resize
from animx.video_colour import on_white
from animx.video_damage import Damage
from animx.video_index import timing
from animx.video_read import VideoInfo

log = logging.getLogger(__name__)

FOLDER_FPS = Fraction(25)
"""Rate of a folder of frames unless another is given [1/s]."""
PATTERN = re.compile(r"%0?(\d*)d")
"""The number in a name like `OUT_%05d.png`."""


class FolderSource:
    """The pictures of a folder in natural order (`frame2` before `frame10`), or those that match a numbered pattern."""

    cut = False

    def __init__(self, path: Path, fps: Fraction | None = None) -> None:
        self.path = path
        self._files = frames_of(path)
        if not self._files:
            raise InputError(
                f"{path} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}). Name the folder that holds the frames"
            )
        first = read_picture(self._files[0])
        rate = fps or FOLDER_FPS
        self.times: NDArray[np.float64] = np.arange(len(self._files)) / float(rate)
        self.info = VideoInfo(
            path=path,
            name=path.name,
            canvas=first.canvas,
            fps=rate,
            frames=len(self._files),
            duration=float(len(self._files) / rate),
            variable=False,
            has_audio=False,
            codec="pictures",
            bit_depth=8,
            rotation=0,
        )

    def read(self, wanted: NDArray[np.int64], canvas: Canvas) -> Iterator[NDArray[np.uint8]]:
        """Yield RGB on `canvas` for each of the `wanted` frame numbers.  Raises `Damage`; unequal sizes: InputError."""
        for number in wanted.tolist():
            try:
                picture = read_picture(self._files[number])
            except InputError as error:
                raise Damage(number, str(error)) from error
            if picture.canvas != self.info.canvas:
                raise InputError(
                    f"{self._files[number]} is {picture.canvas} px, but {self._files[0].name} is "
                    f"{self.info.canvas} px. All frames of a folder must be of one size"
                )
            yield resize(on_white(picture.pixels) if picture.has_alpha else picture.pixels[..., :3], canvas)


class WebpSource:
    """An animated (or still) WebP.  Pillow decodes it frame by frame; times come from the headers of the frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        steps = _webp_steps(path)
        self.cut = is_cut_short(path)
        with _webp(path) as picture:
            check_size(*picture.size, str(path))
            self._count = getattr(picture, "n_frames", 1)
            canvas = Canvas(*picture.size)
        steps = (steps or [0.1])[: self._count] if not self.cut else steps or [0.1]
        self.times: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(steps)[:-1]])
        fps, duration, variable = timing(self.times, steps[-1], Fraction(0), 0.001)
        self.info = VideoInfo(path, path.name, canvas, fps, len(steps), duration, variable, False, "webp", 8, 0)

    def read(self, wanted: NDArray[np.int64], canvas: Canvas) -> Iterator[NDArray[np.uint8]]:
        """Yield RGB on `canvas` for each of the `wanted` frame numbers, transparency on white.  Raises `Damage`."""
        with _webp(self.path) as picture:
            for number in wanted.tolist():
                try:
                    picture.seek(number)
                    pixels = np.asarray(picture.convert("RGBA"))
                except Exception as error:
                    raise Damage(number, str(error)) from error
                yield resize(on_white(pixels), canvas)


def read_webp_alpha(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield every frame of a WebP as RGBA [H, W, 4].  Damage is an `InputError`."""
    with _webp(path) as picture:
        check_size(*picture.size, str(path))
        for number in range(getattr(picture, "n_frames", 1)):
            try:
                picture.seek(number)
                yield np.array(picture.convert("RGBA"))
            except Exception as error:
                raise InputError(f"{path} is damaged ({error})") from error


def frames_of(path: Path) -> list[Path]:
    """The picture files of a folder in natural order, or of a pattern `NAME_%05d.png` by number."""
    found = PATTERN.search(path.name)
    if found and not path.is_dir():
        before, after = path.name[: found.start()], path.name[found.end() :]
        name = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        numbered = ((name.fullmatch(entry.name), entry) for entry in path.parent.iterdir())
        return [entry for _, entry in sorted((int(match[1]), entry) for match, entry in numbered if match)]
    entries = (entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file())
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=_natural)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts], path.name


def _webp(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(path, formats=["WEBP"])
    except Exception as error:
        why = "is cut short and cannot be read" if is_cut_short(path) else "is damaged or no WebP"
        raise InputError(f"{path} {why}. Download or convert it again") from error


def _webp_steps(path: Path) -> list[float]:
    """Seconds each frame of an animated WebP is shown, from its ANMF headers; 0 counts as 0.1 s, as in browsers."""
    steps = []
    size = path.stat().st_size
    with path.open("rb") as file:
        at = 12
        while at + 8 <= size:
            file.seek(at)
            head = file.read(8 + 16)
            if head[:4] == b"ANMF" and len(head) == 24:
                steps.append((int.from_bytes(head[20:23], "little") or 100) / 1000)
            at += 8 + int.from_bytes(head[4:8], "little")
            at += at % 2
    return steps
