"""Drawing a deformed layer: triangles to pixels, bilinear from a premultiplied texture, composited in the same pass.

Four channels travel in one 64-bit word (16 bits each), in 8-bit fixed point, on one thread and in a fixed order, so the
same input gives the same bytes everywhere.
Every pixel centre inside a sheet is drawn exactly once: two triangles that share an edge see the same crossing points.
"""

from __future__ import annotations

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
    lanes = texture.astype(np.uint64) << np.array([0, 16, 32, 48], np.uint64)
    return np.asarray(lanes[..., 0] | lanes[..., 1] | lanes[..., 2] | lanes[..., 3], np.uint64)


@compiled
def _crossing(xa: float, ya: float, xb: float, yb: float, y: float) -> float:
    """x where an edge crosses the row at y; the same number whichever triangle asks."""
    if ya > yb or (ya == yb and xa > xb):
        xa, ya, xb, yb = xb, yb, xa, ya
    return xa + (xb - xa) * ((y - ya) / (yb - ya))


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
    """
    height, width = frame.shape[0], frame.shape[1]
    rows, columns = texture.shape[0], texture.shape[1]
    byte, mask = np.uint64(8), np.uint64(255)
    for m in range(triangles.shape[0]):
        a, b, c = triangles[m, 0], triangles[m, 1], triangles[m, 2]
        ax, ay, bx, by, cx, cy = moved[a, 0], moved[a, 1], moved[b, 0], moved[b, 1], moved[c, 0], moved[c, 1]
        low_y, high_y = min(ay, min(by, cy)), max(ay, max(by, cy))
        y0, y1 = int(np.ceil(max(low_y, 0.0) - 0.5)), int(np.ceil(min(high_y, height + 1.0) - 0.5))
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
        solid = opaque[m]
        for y in range(y0, y1):
            centre = y + 0.5
            left, right = np.inf, -np.inf
            if (ay <= centre) != (by <= centre):
                x = _crossing(ax, ay, bx, by, centre)
                left, right = min(left, x), max(right, x)
            if (by <= centre) != (cy <= centre):
                x = _crossing(bx, by, cx, cy, centre)
                left, right = min(left, x), max(right, x)
            if (cy <= centre) != (ay <= centre):
                x = _crossing(cx, cy, ax, ay, centre)
                left, right = min(left, x), max(right, x)
            if not left < right:
                continue
            x0 = int(np.ceil(max(left, 0.0) - 0.5))
            x1 = int(np.ceil(min(right, width + 1.0) - 0.5))
            x0, x1 = max(x0, 0), min(x1, width)
            if x0 >= x1:
                continue
            dx, dy = x0 + 0.5 - ax, centre - ay
            u = np.int64(np.rint((ua + u_x * dx + u_y * dy - 0.5) * 65536.0)) + 128
            v = np.int64(np.rint((va + v_x * dx + v_y * dy - 0.5) * 65536.0)) + 128
            if x0 < dirty[0]:
                dirty[0] = x0
            if x1 > dirty[2]:
                dirty[2] = x1
            for x in range(x0, x1):
                iu, iv = u >> 16, v >> 16
                fu, fv = (u >> 8) & 255, (v >> 8) & 255
                u += step_u
                v += step_v
                if iu < 0 or iv < 0 or iu >= columns - 1 or iv >= rows - 1:
                    continue
                w11 = (fu * fv) >> 8
                colour = texture[iv, iu] * np.uint64(256 - fu - fv + w11)
                colour += texture[iv, iu + 1] * np.uint64(fu - w11)
                colour += texture[iv + 1, iu] * np.uint64(fv - w11)
                colour += texture[iv + 1, iu + 1] * np.uint64(w11)
                colour = ((colour + HALF) >> byte) & LOW
                if not solid:
                    alpha = colour >> np.uint64(48)
                    if alpha == np.uint64(0):
                        continue
                    if alpha < mask:
                        below = np.uint64(frame[y, x, 0]) | np.uint64(frame[y, x, 1]) << np.uint64(16)
                        below |= np.uint64(frame[y, x, 2]) << np.uint64(32)
                        below |= np.uint64(frame[y, x, 3]) << np.uint64(48)
                        below = below * (mask - alpha) + HALF
                        # x / 255, rounded, is (x + x / 256) / 256
                        colour += ((below + ((below >> byte) & LOW)) >> byte) & LOW
                frame[y, x, 0] = colour & mask
                frame[y, x, 1] = (colour >> np.uint64(16)) & mask
                frame[y, x, 2] = (colour >> np.uint64(32)) & mask
                frame[y, x, 3] = colour >> np.uint64(48)
        if y0 < dirty[1]:
            dirty[1] = y0
        if y1 > dirty[3]:
            dirty[3] = y1


@compiled
def straighten(frame: Image, dirty: NDArray[np.int64]) -> None:
    """Turn premultiplied colours of the dirty rectangle into straight ones, in place."""
    for y in range(max(dirty[1], 0), min(dirty[3], frame.shape[0])):
        for x in range(max(dirty[0], 0), min(dirty[2], frame.shape[1])):
            alpha = np.int64(frame[y, x, 3])
            if 0 < alpha < 255:
                for k in range(3):
                    frame[y, x, k] = min((np.int64(frame[y, x, k]) * 255 + alpha // 2) // alpha, 255)
