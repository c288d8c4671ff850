"""A small anti-aliased brush: smooth shapes with outline, soft shading and contact shadow, drawn with OpenCV.

In: closed curves and tubes in float px of the canvas.  Out: premultiplied colour and coverage.  Everything is painted
on a grid `scale` times finer than the canvas (with OpenCV's own anti-aliasing on top) and averaged down at the end, so
edges move smoothly by fractions of a pixel.  Colours are RGB 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas

Colour = tuple[float, float, float]
Points = NDArray[np.float64]

_SHIFT = 4
_ONE = 1 << _SHIFT
LIGHT = (-0.55, -0.83)
"""Direction towards the light in the picture (unit vector): from the upper left."""


def hexcolour(code: str) -> Colour:
    """RGB 0..1 of `#rrggbb`."""
    return int(code[1:3], 16) / 255, int(code[3:5], 16) / 255, int(code[5:7], 16) / 255


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` (0..1) of `b` in it."""
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def shadow_of(colour: Colour, depth: float = 1.0) -> Colour:
    """The same colour in the shade: darker and a little cooler; `depth` 0 = unchanged, 1 = full shade."""
    r, g, b = colour
    return mix(colour, (r * 0.62, g * 0.56, b * 0.66), depth)


def curve(points: Sequence[Any] | Points, closed: bool, steps: int = 8) -> Points:
    """A smooth curve through the points [N, D] (centripetal enough: uniform Catmull-Rom), `steps` samples a span."""
    p = np.asarray(points, np.float64)
    if closed:
        before, after, ahead = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    else:
        ends = np.concatenate((2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]))
        before, p, after, ahead = ends[:-3], ends[1:-2], ends[2:-1], ends[3:]
    u = (np.arange(steps) / steps)[None, :, None]  # [1, steps, 1]
    a, b, c, d = (q[:, None] for q in (before, p, after, ahead))  # [N, 1, D]
    spans = 0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2 + (3 * b - a - 3 * c + d) * u**3)
    line = spans.reshape(-1, p.shape[1])
    return line if closed else np.concatenate((line, np.asarray(points, np.float64)[-1:]))


@dataclass(frozen=True)
class Blob:
    """A filled closed outline [N, 2] px (already as fine as it should be)."""

    outline: Points

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom [px]."""
        (x0, y0), (x1, y1) = self.outline.min(0), self.outline.max(0)
        return x0, y0, x1, y1

    def fill(self, mask: NDArray[np.uint8], origin: tuple[int, int], scale: int, grow: float) -> None:
        """Draw into `mask`, a window of the fine grid that starts at `origin`; `grow` widens by so many px."""
        at = _fixed(self.outline, origin, scale)
        cv2.fillPoly(mask, [at], (255,), cv2.LINE_AA, _SHIFT)
        if grow > 0:
            cv2.polylines(mask, [at], True, (255,), max(1, round(2 * grow * scale)), cv2.LINE_AA, _SHIFT)


@dataclass(frozen=True)
class Tube:
    """A line [N, 2] px with a radius [N] px at each point: limbs, strands, mouths."""

    line: Points
    radii: NDArray[np.float64]

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom [px]."""
        low, high = (self.line - self.radii[:, None]).min(0), (self.line + self.radii[:, None]).max(0)
        return low[0], low[1], high[0], high[1]

    def fill(self, mask: NDArray[np.uint8], origin: tuple[int, int], scale: int, grow: float) -> None:
        """Draw into `mask`, a window of the fine grid that starts at `origin`; `grow` widens by so many px."""
        at = _fixed(self.line, origin, scale)
        radii = (self.radii + grow) * scale
        for centre, radius in zip(at, radii, strict=True):
            cv2.circle(mask, (int(centre[0]), int(centre[1])), round(radius * _ONE), (255,), -1, cv2.LINE_AA, _SHIFT)
        step = np.diff(self.line, axis=0)
        length = np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)
        normal = np.stack((-step[:, 1], step[:, 0]), 1) / length
        r0, r1 = (self.radii[:-1] + grow)[:, None], (self.radii[1:] + grow)[:, None]
        a, b = self.line[:-1], self.line[1:]
        for quad in np.stack((a + normal * r0, b + normal * r1, b - normal * r1, a - normal * r0), 1):
            cv2.fillConvexPoly(mask, _fixed(quad, origin, scale), (255,), cv2.LINE_AA, _SHIFT)


Shape = Blob | Tube


def blob(points: Sequence[Any] | Points, steps: int = 8) -> Blob:
    """A smooth closed shape through the points [N, 2] px."""
    return Blob(curve(points, closed=True, steps=steps))


def polygon(points: Sequence[Any] | Points) -> Blob:
    """A closed shape with straight edges."""
    return Blob(np.asarray(points, np.float64))


def ellipse(centre: Sequence[float] | NDArray[np.floating[Any]], rx: float, ry: float, angle: float = 0.0) -> Blob:
    """An ellipse with half axes `rx`, `ry` [px], turned clockwise by `angle` [rad]."""
    a = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x, y = rx * np.cos(a), ry * np.sin(a)
    c, s = np.cos(angle), np.sin(angle)
    return Blob(np.asarray(centre, np.float64)[:2] + np.stack((x * c - y * s, x * s + y * c), 1))


def tube(points: Sequence[Any] | Points, radii: Sequence[float], steps: int = 6) -> Tube:
    """A smooth tube through the points [N, 2] px with a radius [px] at each of them."""
    p = np.asarray(points, np.float64)[:, :2]
    fine = curve(np.column_stack((p, np.asarray(radii, np.float64))), closed=False, steps=steps)
    return Tube(fine[:, :2], np.maximum(fine[:, 2], 0.05))


@dataclass(frozen=True)
class Stencil:
    """Where something was painted: coverage 0..1 on a window of the fine grid; later paint can be clipped to it."""

    window: tuple[slice, slice]
    coverage: NDArray[np.float32]


class Painter:
    """Paints shapes over each other; `finish` gives colour and coverage on the canvas."""

    def __init__(self, canvas: Canvas, scale: int = 2) -> None:
        """Start transparent on a grid `scale` times finer than `canvas`."""
        self.scale = scale
        self.canvas = canvas
        shape = canvas.height * scale, canvas.width * scale
        self._colour = np.zeros((*shape, 3), np.float32)  # premultiplied
        self._alpha = np.zeros(shape, np.float32)

    def paint(
        self,
        shapes: Shape | Sequence[Shape],
        colour: Colour,
        *,
        bottom: Colour | None = None,
        outline: Colour | None = None,
        width: float = 1.5,
        shade: float = 0.0,
        softness: float = 0.25,
        shadow: float = 0.0,
        opacity: float = 1.0,
        clip: Stencil | None = None,
    ) -> Stencil:
        """Paint the union of `shapes`.

        `bottom`: colour at the lower end (a vertical gradient); `outline` and its `width` [px]; `shade` 0..1: strength
        of the soft light from the upper left, rounded over `softness` of the shape's smaller side; `shadow` 0..1: how
        much it darkens what lies under and beside it; `clip`: paint only there.
        """
        shapes = [shapes] if isinstance(shapes, Blob | Tube) else list(shapes)
        window, reach = self._window(shapes, width, softness)
        if window is None:
            return Stencil((slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.float32))
        cover: NDArray[np.float32] = self._cover(shapes, window, 0.0)
        if clip is not None:
            cover *= _clip(clip, window)
        if shadow > 0:
            self._darken(window, cover, shadow)
        if outline is not None:
            rim = self._cover(shapes, window, width)
            if clip is not None:
                rim *= _clip(clip, window)
            self._over(window, np.asarray(outline, np.float32), rim * np.float32(opacity))
        fill: NDArray[np.float32] = np.asarray(colour, np.float32)
        if bottom is not None:
            rows = np.flatnonzero(cover.any(1))
            low, high = (int(rows[0]), int(rows[-1])) if len(rows) else (0, 1)
            t = np.clip((np.arange(cover.shape[0]) - low) / max(1, high - low), 0, 1)[:, None, None]
            t = np.asarray(t, np.float32)
            fill = fill * (1 - t) + np.asarray(bottom, np.float32) * t
        if shade > 0:
            fill = _lit(fill, cover, shade, reach * self.scale)
        self._over(window, fill, cover * np.float32(opacity))
        return Stencil(window, cover)

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Premultiplied RGB [H, W, 3] and coverage [H, W], float32 0..1."""
        size = self.canvas.size
        colour = cv2.resize(self._colour, size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(self._alpha, size, interpolation=cv2.INTER_AREA)
        return np.asarray(colour, np.float32), np.clip(alpha, 0, 1, dtype=np.float32)

    def _window(
        self, shapes: Sequence[Shape], width: float, softness: float
    ) -> tuple[tuple[slice, slice] | None, float]:
        boxes = np.array([shape.bounds() for shape in shapes])
        (x0, y0), (x1, y1) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        reach = max(1.0, softness * min(x1 - x0, y1 - y0))
        pad = width + reach + 4
        h, w = self._alpha.shape
        left, right = (int(np.clip(v * self.scale, 0, w)) for v in (x0 - pad, x1 + pad))
        top, bottom = (int(np.clip(v * self.scale, 0, h)) for v in (y0 - pad, y1 + pad))
        if right <= left or bottom <= top:
            return None, reach
        return (slice(top, bottom), slice(left, right)), reach

    def _cover(self, shapes: Sequence[Shape], window: tuple[slice, slice], grow: float) -> NDArray[np.float32]:
        rows, columns = window
        mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        for shape in shapes:
            shape.fill(mask, (columns.start, rows.start), self.scale, grow)
        return mask.astype(np.float32) / np.float32(255)

    def _over(self, window: tuple[slice, slice], fill: NDArray[np.float32], cover: NDArray[np.float32]) -> None:
        a = cover[..., None]
        self._colour[window] += (
            (fill - self._colour[window]) * a if fill.ndim == 3 else a * (fill - self._colour[window])
        )
        self._alpha[window] += (1 - self._alpha[window]) * cover

    def _darken(self, window: tuple[slice, slice], cover: NDArray[np.float32], strength: float) -> None:
        soft = _blur(cover, 5.0 * self.scale)
        dx, dy = (round(-component * 3 * self.scale) for component in LIGHT)
        soft = np.roll(soft, (dy, dx), (0, 1))
        self._colour[window] *= (1 - np.float32(strength) * soft)[..., None]


def _clip(clip: Stencil, window: tuple[slice, slice]) -> NDArray[np.float32]:
    rows, columns = window
    out = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    top, bottom = max(rows.start, clip.window[0].start), min(rows.stop, clip.window[0].stop)
    left, right = max(columns.start, clip.window[1].start), min(columns.stop, clip.window[1].stop)
    if bottom > top and right > left:
        oy, ox = clip.window[0].start, clip.window[1].start
        out[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = clip.coverage[
            top - oy : bottom - oy, left - ox : right - ox
        ]
    return out


def _lit(fill: NDArray[np.float32], cover: NDArray[np.float32], strength: float, reach: float) -> NDArray[np.float32]:
    """`fill` lit from the upper left: the blurred coverage is a height, its slope towards the light is light."""
    height = _blur(cover, reach * 0.5)
    matrix = np.array([[1.0, 0.0, LIGHT[0] * reach * 0.5], [0.0, 1.0, LIGHT[1] * reach * 0.5]])
    size = height.shape[1], height.shape[0]
    # Light side: the height falls towards the light, so the copy pushed towards the light is higher than the opposite.
    towards = cv2.warpAffine(height, matrix * [[1, 1, -1], [1, 1, -1]], size)
    away = cv2.warpAffine(height, matrix, size)
    slope = np.clip((away - towards) * np.float32(1.6 * strength), -strength, strength)
    bright, dim = np.maximum(slope, 0) * np.float32(0.45), np.minimum(slope, 0)
    out = np.empty((*cover.shape, 3), np.float32)
    for k, kept in enumerate((0.62, 0.56, 0.66)):  # the shade is darker and a little cooler
        base = fill[..., k]
        out[..., k] = base + bright * (1 - base) + dim * (base * np.float32(1 - kept))
    return out


def _blur(mask: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur; wide ones on a coarser grid, which is as smooth and much quicker."""
    step = int(max(1, sigma // 3))
    if step == 1:
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), max(sigma, 0.3)), np.float32)
    h, w = mask.shape
    small = cv2.resize(mask, (max(1, w // step), max(1, h // step)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / step)
    return np.asarray(cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)


def _fixed(points: NDArray[np.floating[Any]], origin: tuple[int, int], scale: int) -> NDArray[np.int32]:
    """Points in canvas px as OpenCV's fixed-point coordinates on a window of the fine grid (pixel centres whole)."""
    fine: NDArray[np.int32] = np.round((points * scale - np.asarray(origin) - 0.5) * _ONE).astype(np.int32)
    return fine
