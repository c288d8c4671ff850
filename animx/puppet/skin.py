"""Deformation: where each vertex of a layer goes, from the bones' turns and stretches of one frame.

Rest vertices and weights in, positions [N, 2] px out.  Angles, not positions, are blended about the shared joint (2D
rotations commute), so a deep bend does not collapse.  A bone stretches only between its joints; what lies beyond its
ends is shifted, so hands and feet keep their size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with numba: one thread, strict floating point, kept on disk between runs."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


BONE = 9
"""Numbers per bone at rest: root x, y, axis x, y, length, then of this frame: turn, stretch, growth, tip growth."""
TRUNK = 13
"""Numbers of the trunk: mid-hip x, y, axis x, y, length, half widths at hip and shoulder, then of this frame: place x,
y, turn, stretch, factors of the widths at hip and shoulder."""


@compiled
def _along(a: float, length: float, stretch: float) -> float:
    """An axial coordinate after stretching the bone between its joints."""
    if a <= 0.0:
        return a
    if a >= length:
        return a - length + length * stretch
    return a * stretch


@compiled
def _trunk_local(x: float, y: float, trunk: Vector) -> tuple[float, float]:
    """A point relative to mid-hip after the trunk's stretch, before its turn."""
    rx, ry = x - trunk[0], y - trunk[1]
    ax, ay = trunk[2], trunk[3]
    a, b = rx * ax + ry * ay, ry * ax - rx * ay
    t = min(max(a / trunk[4], 0.0), 1.0)
    half = trunk[5] + (trunk[6] - trunk[5]) * t
    wide = trunk[11] + (trunk[12] - trunk[11]) * t
    edge = min(abs(b), half)
    rest = abs(b) - edge
    b = (edge * wide + rest) if b >= 0 else -(edge * wide + rest)
    a = _along(a, trunk[4], trunk[10])
    return a * ax - b * ay, a * ay + b * ax


@compiled
def _bone_local(rx: float, ry: float, bone: Vector) -> tuple[float, float]:
    """A point relative to the bone's root after its stretch and growth, before its turn."""
    ux, uy = bone[2], bone[3]
    a, b = rx * ux + ry * uy, ry * ux - rx * uy
    beyond = a - bone[4]
    a = _along(a, bone[4], bone[6])
    if beyond > 0 and bone[8] != 1.0:
        # the hand or foot: grows about the bone's end, its width easing in over a quarter of the bone
        ease = min(1.0, 4.0 * beyond / bone[4])
        a += beyond * (bone[8] - 1.0)
        b *= 1.0 + (bone[8] - 1.0) * ease
    a, b = a * bone[7], b * bone[7]
    return a * ux - b * uy, a * uy + b * ux


@compiled
def deform(
    rest: Vector,
    loose: Vector,
    share: Vector,
    near: Vector,
    far: Vector,
    trunk: Vector,
    upper: Vector,
    lower: Vector,
    out: Vector,
) -> None:
    """Write the positions of `rest` [N, 2] into `out` [N, 2] px.

    `share`, `near`, `far` are [C, N], `upper` and `lower` [C, BONE], `trunk` [TRUNK].
    """
    cos_t, sin_t = np.cos(trunk[9]), np.sin(trunk[9])
    for n in range(rest.shape[0]):
        x, y = rest[n, 0], rest[n, 1]
        tx, ty = _trunk_local(x, y, trunk)
        px, py, used = 0.0, 0.0, 0.0
        for c in range(share.shape[0]):
            w = share[c, n]
            if w <= 0.0:
                continue
            g, k = near[c, n], far[c, n]
            jx, jy = _trunk_local(upper[c, 0], upper[c, 1], trunk)
            root_x = trunk[7] + cos_t * jx - sin_t * jy
            root_y = trunk[8] + sin_t * jx + cos_t * jy
            turn = trunk[9] + g * (upper[c, 5] - trunk[9])
            qx, qy = _bone_local(x - upper[c, 0], y - upper[c, 1], upper[c])
            qx, qy = (1 - g) * (tx - jx) + g * qx, (1 - g) * (ty - jy) + g * qy
            co, si = np.cos(turn), np.sin(turn)
            vx, vy = root_x + co * qx - si * qy, root_y + si * qx + co * qy
            if k > 0.0 and lower[c, 4] > 0.0:
                full = upper[c, 5]
                length = upper[c, 4] * upper[c, 6]
                ex = root_x + length * (np.cos(full) * upper[c, 2] - np.sin(full) * upper[c, 3])
                ey = root_y + length * (np.sin(full) * upper[c, 2] + np.cos(full) * upper[c, 3])
                rx, ry = x - lower[c, 0], y - lower[c, 1]
                a = rx * upper[c, 2] + ry * upper[c, 3]
                b = ry * upper[c, 2] - rx * upper[c, 3]
                # the upper bone's own map, seen from the joint at its end
                a = _along(a + upper[c, 4], upper[c, 4], upper[c, 6]) - length
                sx, sy = a * upper[c, 2] - b * upper[c, 3], a * upper[c, 3] + b * upper[c, 2]
                lx, ly = _bone_local(rx, ry, lower[c])
                sx, sy = (1 - k) * sx + k * lx, (1 - k) * sy + k * ly
                turn = (1 - k) * turn + k * lower[c, 5]
                co, si = np.cos(turn), np.sin(turn)
                blend = min(1.0, 8.0 * k)
                vx += blend * (ex + co * sx - si * sy - vx)
                vy += blend * (ey + si * sx + co * sy - vy)
            px += w * vx
            py += w * vy
            used += w
        if used < 1.0:
            px += (1.0 - used) * (trunk[7] + cos_t * tx - sin_t * ty)
            py += (1.0 - used) * (trunk[8] + sin_t * tx + cos_t * ty)
        out[n, 0] = x + loose[n] * (px - x)
        out[n, 1] = y + loose[n] * (py - y)


@compiled
def sway(rest: Vector, frame: Vector, out: Vector) -> None:
    """Move a figure as a whole: `frame` holds base x, y, height, shift x, y, tilt, squash, bend (share of height)."""
    for n in range(rest.shape[0]):
        rx, ry = rest[n, 0] - frame[0], rest[n, 1] - frame[1]
        up = -ry / frame[2]
        # the top lags behind the base: a bend that grows with the square of the height
        rx = rx / np.sqrt(frame[6]) + frame[7] * frame[2] * up * abs(up)
        ry = ry * frame[6]
        turn = frame[5]
        out[n, 0] = frame[0] + frame[3] + np.cos(turn) * rx - np.sin(turn) * ry
        out[n, 1] = frame[1] + frame[4] + np.sin(turn) * rx + np.cos(turn) * ry
