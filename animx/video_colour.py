"""Between coded pictures and RGB: colour matrix and range, scaling, transparency, quarter turns.

In: a decoded frame, or RGB(A) bytes.  Out: RGB [H, W, 3], or a frame to encode, tagged and converted as bt709 video.
"""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from animx.canvas import Canvas

_UNSPECIFIED = 2


def to_rgb(frame: VideoFrame, canvas: Canvas, reformatter: VideoReformatter, alpha: bool = False) -> NDArray[np.uint8]:
    """A decoded frame as RGB [H, W, 3] scaled to `canvas`; what is transparent lies on white.  `alpha`: RGBA instead.

    Where the file names no matrix, 601 is taken up to 576 lines and 709 above, as players do.
    """
    shrinks = canvas.width < frame.width or canvas.height < frame.height
    matrix: int | None = None
    if frame.colorspace == _UNSPECIFIED:
        matrix = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
    has_alpha = any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8"
    picture = reformatter.reformat(
        frame,
        canvas.width,
        canvas.height,
        "rgba" if has_alpha or alpha else "rgb24",
        src_colorspace=matrix,
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.AREA if shrinks else Interpolation.BICUBIC,
        threads=1,
    ).to_ndarray()
    if has_alpha and not alpha:
        return on_white(np.asarray(picture, np.uint8))
    return np.asarray(picture, np.uint8)


def on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA [H, W, 4] laid on white: RGB [H, W, 3]."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def turned(pixels: NDArray[np.uint8], turn: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Apply the signs of a display matrix (quarter turns and mirrors) to [H, W, C]."""
    a, b, c, d = turn
    if turn == (1, 0, 0, 1):
        return pixels
    if a == 0:
        pixels, down, across = pixels.transpose(1, 0, 2), b, c
    else:
        down, across = d, a
    return np.ascontiguousarray(pixels[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])


def to_video(pixels: NDArray[np.uint8], pixel_format: str, canvas: Canvas, reformatter: VideoReformatter) -> VideoFrame:
    """RGB or RGBA [H, W, C] as a frame to encode: bt709 matrix, limited range, and tagged so.

    `canvas` may be smaller by a last row or column, which is dropped, or larger by one, which is repeated.
    """
    height, width = pixels.shape[:2]
    if (width, height) != canvas.size:
        pixels = pixels[: canvas.height, : canvas.width]
        missing = (canvas.height - pixels.shape[0], canvas.width - pixels.shape[1])
        if any(missing):
            pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), "edge")
    source = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgba" if pixels.shape[2] == 4 else "rgb24")
    frame = reformatter.reformat(
        source,
        format=pixel_format,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        dst_colorspace=Colorspace.ITU709,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP,
        threads=1,
    )
    frame.color_range = ColorRange.MPEG
    frame.colorspace = frame.color_primaries = frame.color_trc = 1
    return frame
