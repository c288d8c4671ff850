"""Animated GIF and WebP, written frame by frame in bounded memory.

In: RGB or RGBA frames.  Out: a GIF of 255 colours (a palette is kept while it fits, ordered dither, 1-bit
transparency), or a WebP whose frames hold only the rectangle that changed.  Both loop for ever.
"""

from __future__ import annotations

import io
import logging
import math
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from animx.canvas import Canvas

log = logging.getLogger(__name__)

GIF_FASTEST = 50
"""Highest frame rate that browsers play in a GIF [1/s]; of a faster clip only that many frames are kept."""
WEBP_QUALITY = 90
_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.int16) - 8


class GifEncoder:
    """Frames to a GIF.  Times are rounded to its clock of 1/100 s without drift."""

    def __init__(self, path: Path, canvas: Canvas, fps: Fraction) -> None:
        self._container = av.open(str(path), "w", format="gif", options={"loop": "0", "fflags": "+bitexact"})
        self._stream = self._container.add_stream("gif", rate=100)
        self._stream.width, self._stream.height, self._stream.pix_fmt = *canvas.size, "pal8"
        self._stream.codec_context.time_base = Fraction(1, 100)
        self._stream.codec_context.thread_count = 1
        self._fps, self._count, self._last = fps, 0, -1
        self._palette = _Palette()
        height, width = canvas.height, canvas.width
        self._dither = np.tile(_BAYER, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
        if fps > GIF_FASTEST:
            log.info("a GIF plays at most %d frames a second; frames between are left out", GIF_FASTEST)

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Encode one RGB or RGBA frame."""
        clock = GIF_FASTEST if self._fps > GIF_FASTEST else 100
        slot = math.floor(self._count * clock / self._fps + Fraction(1, 2))
        self._count += 1
        if slot == self._last:
            return
        self._last = slot
        at = slot * (100 // clock)
        indices, colours = self._palette.map(pixels, self._dither)
        frame = VideoFrame.from_ndarray((indices, colours), format="pal8")  # type: ignore[arg-type]
        frame.pts, frame.time_base = at, Fraction(1, 100)
        frame.duration = max(2, round(100 / self._fps))
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what is left and the trailer."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Close without care for the result."""
        self._container.close()


class _Palette:
    """255 colours and one transparent entry, renewed when a frame no longer fits them."""

    def __init__(self) -> None:
        self._colours: NDArray[np.uint8] | None = None
        self._table: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._fit = 0.0

    def map(self, pixels: NDArray[np.uint8], dither: NDArray[np.int16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Indices [H, W] and ARGB palette [256, 4] of a frame."""
        rgb = pixels[..., :3]
        clear = pixels[..., 3] < 128 if pixels.shape[2] == 4 else None
        if self._colours is None or self._misfit(rgb, clear) > 1.3 * self._fit + 1.5:
            self._choose(rgb, clear)
        assert self._colours is not None
        shaken = np.clip(rgb.astype(np.int16) + dither, 0, 255).astype(np.uint16) >> 3
        indices = self._table[(shaken[..., 0] << 10) | (shaken[..., 1] << 5) | shaken[..., 2]]
        if clear is not None:
            indices[clear] = 255
        palette = np.zeros((256, 4), np.uint8)
        palette[:255, 0] = 255
        palette[:255, 1:] = self._colours
        return indices, palette

    def _choose(self, rgb: NDArray[np.uint8], clear: NDArray[np.bool_] | None) -> None:
        seen = _sample(rgb, clear)
        chosen = Image.fromarray(seen[None]).quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        colours = np.array(chosen.getpalette(), np.uint8).reshape(-1, 3)[:255]
        self._colours = np.concatenate([colours, np.repeat(colours[-1:], 255 - len(colours), 0)])
        grid = (np.indices((32, 32, 32)).reshape(3, -1).T * 8 + 4).astype(np.float32)
        colours_f = self._colours.astype(np.float32)
        distance = (colours_f**2).sum(1) - 2 * grid @ colours_f.T
        self._table = distance.argmin(1).astype(np.uint8)
        self._fit = self._misfit(rgb, clear)

    def _misfit(self, rgb: NDArray[np.uint8], clear: NDArray[np.bool_] | None) -> float:
        """Mean distance of the frame's colours from the palette, in levels."""
        assert self._colours is not None
        seen = _sample(rgb, clear)
        at = seen.astype(np.uint16) >> 3
        found = self._colours[self._table[(at[:, 0] << 10) | (at[:, 1] << 5) | at[:, 2]]]
        return float(cv2.norm(found, seen, cv2.NORM_L1)) / seen.size


def _sample(rgb: NDArray[np.uint8], clear: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """Every third pixel each way that is seen [N, 3]; at least one."""
    pixels = rgb[::3, ::3].reshape(-1, 3)
    if clear is not None:
        pixels = pixels[~clear[::3, ::3].reshape(-1)]
    return np.ascontiguousarray(pixels) if len(pixels) else np.zeros((1, 3), np.uint8)


class WebpEncoder:
    """Frames to an animated WebP, chunk by chunk (WebP container specification, extended format)."""

    def __init__(self, path: Path, canvas: Canvas, fps: Fraction, alpha: bool) -> None:
        self._file: BinaryIO = path.open("wb")
        self._canvas, self._fps, self._count = canvas, fps, 0
        self._shown: NDArray[np.uint8] | None = None
        size = (canvas.width - 1).to_bytes(3, "little") + (canvas.height - 1).to_bytes(3, "little")
        head = _chunk(b"VP8X", bytes([0x12 if alpha else 0x02, 0, 0, 0]) + size) + _chunk(b"ANIM", bytes(6))
        self._file.write(b"RIFF" + bytes(4) + b"WEBP" + head)

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Encode the rectangle of an RGB or RGBA frame that differs from the frame before."""
        left, top, right, bottom = _changed(self._shown, pixels)
        self._shown = pixels
        patch = np.ascontiguousarray(pixels[top:bottom, left:right])
        buffer = io.BytesIO()
        Image.fromarray(patch).save(buffer, "WEBP", quality=WEBP_QUALITY, method=3)
        shown_ms = round((self._count + 1) * 1000 / self._fps) - round(self._count * 1000 / self._fps)
        self._count += 1
        numbers = (left // 2, top // 2, right - left - 1, bottom - top - 1, max(1, shown_ms))
        head = b"".join(number.to_bytes(3, "little") for number in numbers) + b"\x02"  # overwrite, keep
        self._file.write(_chunk(b"ANMF", head + _image_chunks(buffer.getvalue())))

    def finish(self) -> None:
        """Write the size of the file into its head."""
        size = self._file.tell() - 8
        self._file.seek(4)
        self._file.write(size.to_bytes(4, "little"))
        self._file.close()

    def abort(self) -> None:
        """Close without care for the result."""
        self._file.close()


def _changed(before: NDArray[np.uint8] | None, now: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """The smallest rectangle (left, top, right, bottom) with even left and top that holds every changed pixel."""
    if before is None:
        return 0, 0, now.shape[1], now.shape[0]
    differs = (before != now).any(2)
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if not len(rows):
        return 0, 0, 1, 1
    return int(columns[0]) // 2 * 2, int(rows[0]) // 2 * 2, int(columns[-1]) + 1, int(rows[-1]) + 1


def _image_chunks(webp: bytes) -> bytes:
    """The ALPH, VP8 and VP8L chunks of a still WebP."""
    at, kept = 12, b""
    while at + 8 <= len(webp):
        length = int.from_bytes(webp[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if webp[at : at + 4] in (b"ALPH", b"VP8 ", b"VP8L"):
            kept += webp[at:end]
        at = end
    return kept


def _chunk(name: bytes, payload: bytes) -> bytes:
    return name + len(payload).to_bytes(4, "little") + payload + bytes(len(payload) % 2)
