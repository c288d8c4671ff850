"""Drawing a deformed layer: triangles to pixels, bilinear from a premultiplied texture, composited in the same pass.

Four channels travel in one 64-bit word (16 bits each), in 8-bit fixed point, on one thread and in a fixed order, so the
same input gives the same bytes everywhere.
Every pixel centre inside a sheet is drawn exactly once: two triangles that share an edge see the same crossing points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.puppet.skin import compiled

Image = NDArray[np.uint8]
Packed = NDArray[np.uint64]

LOW = np.uint64(0x00FF00FF00FF00FF)
"""The low byte of each lane."""
HALF = np.uint64(0x0080008000800080)
"""One half in each lane, for rounding."""


def pack(texture: Image) -> Packed:
    """RGBA [h, w, 4] as one word a texel [h, w]: red in the lowest 16 bits, alpha in the highest."""
    word = np.ascontiguousarray(texture).view("<u4")[..., 0].astype(np.uint64)
    word = (word | word << np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    return np.asarray((word | word << np.uint64(8)) & LOW, np.uint64)


@compiled
def _above(ay: float, ax: float, by: float, bx: float) -> Any:
    """Whether a comes before b from top to bottom, then from left to right."""
    return ay < by or (ay == by and ax < bx)


@compiled
def _narrow(colour: Any) -> Any:
    """Four channels of 16 bits, each below 256, as one word of 32 bits."""
    colour = (colour | (colour >> np.uint64(8))) & np.uint64(0x0000FFFF0000FFFF)
    return (colour | (colour >> np.uint64(16))) & np.uint64(0xFFFFFFFF)


@compiled
def _over(colour: Any, below: Any) -> Any:
    """A premultiplied colour (four lanes of 16 bits) over a pixel (four bytes), as lanes."""
    spread = (below | (below << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    spread = (spread | (spread << np.uint64(8))) & LOW
    spread = spread * (np.uint64(255) - (colour >> np.uint64(48))) + HALF
    # x / 255, rounded, is (x + x / 256) / 256
    return colour + (((spread + ((spread >> np.uint64(8)) & LOW)) >> np.uint64(8)) & LOW)


@compiled
def draw(
    frame: Image,
    texture: Packed,
    origin_x: int,
    origin_y: int,
    rest: NDArray[np.float64],
    moved: NDArray[np.float64],
    triangles: NDArray[np.int32],
    opaque: NDArray[np.bool_],
    dirty: NDArray[np.int64],
) -> None:
    """Draw the triangles of one layer over `frame` (premultiplied RGBA [H, W, 4]) and grow `dirty` x0, y0, x1, y1 [px].

    `rest` are the vertices on the texture's canvas, `moved` where they go [N, 2]; `opaque` skips blending for triangles
    whose texels are all solid.  `texture` is packed [h, w]; its texel (0, 0) lies at `origin` on the canvas.
    `frame` and `texture` are contiguous.
    """
    height, width = frame.shape[0], frame.shape[1]
    rows, columns = texture.shape[0], texture.shape[1]
    pixels, texels = frame.reshape(-1).view(np.uint32), texture.reshape(-1)
    zero, solid_alpha = np.uint64(0), np.uint64(255)
    x_low, y_low, x_high, y_high = dirty[0], dirty[1], dirty[2], dirty[3]
    for m in range(triangles.shape[0]):
        a, b, c = triangles[m, 0], triangles[m, 1], triangles[m, 2]
        # sorted from top to bottom, so that an edge is the same line whichever triangle asks
        if _above(moved[b, 1], moved[b, 0], moved[a, 1], moved[a, 0]):
            a, b = b, a
        if _above(moved[c, 1], moved[c, 0], moved[b, 1], moved[b, 0]):
            b, c = c, b
        if _above(moved[b, 1], moved[b, 0], moved[a, 1], moved[a, 0]):
            a, b = b, a
        ax, ay, bx, by, cx, cy = moved[a, 0], moved[a, 1], moved[b, 0], moved[b, 1], moved[c, 0], moved[c, 1]
        y0, y1 = int(np.ceil(max(ay, 0.0) - 0.5)), int(np.ceil(min(cy, height + 1.0) - 0.5))
        y0, y1 = max(y0, 0), min(y1, height)
        if y0 >= y1:
            continue
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area == 0.0:
            continue
        # texture coordinates as an affine function of the pixel, in 1/65536 texel
        ua, va = rest[a, 0] - origin_x, rest[a, 1] - origin_y
        ub, vb = rest[b, 0] - rest[a, 0], rest[b, 1] - rest[a, 1]
        uc, vc = rest[c, 0] - rest[a, 0], rest[c, 1] - rest[a, 1]
        u_x = (ub * (cy - ay) - uc * (by - ay)) / area
        u_y = (uc * (bx - ax) - ub * (cx - ax)) / area
        v_x = (vb * (cy - ay) - vc * (by - ay)) / area
        v_y = (vc * (bx - ax) - vb * (cx - ax)) / area
        if not (abs(u_x) < 4096.0 and abs(u_y) < 4096.0 and abs(v_x) < 4096.0 and abs(v_y) < 4096.0):
            continue
        step_u, step_v = np.int64(np.rint(u_x * 65536.0)), np.int64(np.rint(v_x * 65536.0))
        long, first, second = (cx - ax) / (cy - ay), (bx - ax) / (by - ay), (cx - bx) / (cy - by)
        solid = opaque[m]
        for y in range(y0, y1):
            centre = y + 0.5
            left = ax + (centre - ay) * long
            right = ax + (centre - ay) * first if centre < by else bx + (centre - by) * second
            if left > right:
                left, right = right, left
            x0 = max(int(np.ceil(max(left, 0.0) - 0.5)), 0)
            x1 = min(int(np.ceil(min(right, width + 1.0) - 0.5)), width)
            if x0 >= x1:
                continue
            dx, dy = x0 + 0.5 - ax, centre - ay
            u = np.int64(np.rint((ua + u_x * dx + u_y * dy - 0.5) * 65536.0)) + 128
            v = np.int64(np.rint((va + v_x * dx + v_y * dy - 0.5) * 65536.0)) + 128
            x_low, x_high = min(x_low, x0), max(x_high, x1)
            line = y * width
            for x in range(x0, x1):
                iu, iv = u >> 16, v >> 16
                fu, fv = np.uint64((u >> 8) & 255), np.uint64((v >> 8) & 255)
                u += step_u
                v += step_v
                if iu < 0 or iv < 0 or iu >= columns - 1 or iv >= rows - 1:
                    continue
                w11 = (fu * fv) >> np.uint64(8)
                # unsigned, or numba would look for negative indices
                at, under = np.uint64(iv * columns + iu), np.uint64(iv * columns + iu + columns)
                colour = texels[at] * (np.uint64(256) - fu - fv + w11)
                colour += texels[at + np.uint64(1)] * (fu - w11)
                colour += texels[under] * (fv - w11)
                colour += texels[under + np.uint64(1)] * w11
                colour = ((colour + HALF) >> np.uint64(8)) & LOW
                here = np.uint64(line + x)
                if not solid:
                    alpha = colour >> np.uint64(48)
                    if alpha == zero:
                        continue
                    if alpha < solid_alpha:
                        colour = _over(colour, np.uint64(pixels[here]))
                pixels[here] = np.uint32(_narrow(colour))
        y_low, y_high = min(y_low, y0), max(y_high, y1)
    dirty[0], dirty[1], dirty[2], dirty[3] = x_low, y_low, x_high, y_high


@compiled
def straighten(frame: Image, dirty: NDArray[np.int64]) -> None:
    """Turn premultiplied colours of the dirty rectangle into straight ones, in place."""
    for y in range(max(dirty[1], 0), min(dirty[3], frame.shape[0])):
        for x in range(max(dirty[0], 0), min(dirty[2], frame.shape[1])):
            alpha = np.int64(frame[y, x, 3])
            if 0 < alpha < 255:
                for k in range(3):
                    frame[y, x, k] = min((np.int64(frame[y, x, k]) * 255 + alpha // 2) // alpha, 255)
