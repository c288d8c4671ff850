"""The picture without its figure: what lies behind, guessed once, seen only where the figure moves away.

In: RGB [H, W, 3] and the mask 0..1 [H, W].  Out: RGB, equal to the picture outside the hole (the mask and a ring).
On busy grounds each row is mirrored in from both sides and cross-faded; blur grows with depth, and near the outline the
colours are drawn to those beyond it (over a head the rows know nothing of the sky).  Columns serve only where a whole
row is hidden: mixed in elsewhere they draw streaks.  Where the ring round the figure is smooth (paper, studio, sky) a
smooth surface goes through it and only its grain is mirrored in.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError
from animx.puppet.segment import Flags

RING = 0.018
"""Width of the ring round the mask that is filled too, as part of the long side: soft edges and shadows lie in it."""
SMOOTH = 5.0
"""Levels: a ground whose ring lies nearer to a quadratic surface than this (80th percentile) is smooth."""
SOFTNESS = 0.06
"""Blur sigma [px] per px of depth in the hole."""

BAND = 64
"""Rows that are mirrored at once: few enough to stay in the processor's cache."""

Colour = NDArray[np.float32]


def hole_of(mask: NDArray[np.floating[Any]], ring: float = RING) -> Flags:
    """What is filled: all pixels of any coverage and a ring of `ring` x the long side round them [H, W]."""
    covered = np.asarray(mask) > 0.02
    return _grown(covered, max(1, round(ring * max(covered.shape))))


def _grown(region: Flags, reach: int) -> Flags:
    """The region and all within `reach` px of it; by distance, which a wide brush takes ten times as long for."""
    if not region.any():
        return region
    away = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(away <= reach, bool)


def fill_background(
    rgb: NDArray[np.uint8], mask: NDArray[np.floating[Any]], *, ring: float = RING
) -> NDArray[np.uint8]:
    """Fill the figure's place.  Bit-identical to `rgb` outside `hole_of(mask, ring)`; a full hole becomes mid-grey."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.shape[:2] != np.shape(mask):
        raise InputError(f"a picture of shape {list(rgb.shape)} with a mask of shape {list(np.shape(mask))}")
    hole = hole_of(mask, ring)
    if not hole.any():
        return rgb.copy()
    if hole.all():
        return np.full_like(rgb, 128)
    picture = rgb.astype(np.float32)
    surface = _smooth_ground(rgb, hole)
    if surface is None:
        filled = _joined(picture, _softened(_mirrored(picture, hole), hole), hole)
    else:
        rest = picture - surface
        level = _spread(rest, hole)
        grain = _mirrored(rest - level, hole)
        filled = surface + level + np.clip(grain, -SMOOTH, SMOOTH)
    out = rgb.copy()
    out[hole] = np.clip(np.rint(filled[hole]), 0, 255).astype(np.uint8)
    return out


def _smooth_ground(rgb: NDArray[np.uint8], hole: Flags) -> Colour | None:
    """The quadratic surface [H, W, 3] through the ring round the hole, or None when the ring is not smooth."""
    width = max(3, round(0.03 * max(hole.shape)))
    rows, columns = np.nonzero(_grown(hole, width) & ~hole)
    if len(rows) < 50:
        return None
    step = max(1, len(rows) // 8000)
    rows, columns = rows[::step], columns[::step]
    terms = _terms(rows, columns, hole.shape)
    x, y = np.stack(np.broadcast_arrays(*terms), -1), rgb[rows, columns].astype(np.float64)
    keep = np.ones(len(x), bool)
    error, fit = np.zeros(len(x)), np.zeros((6, 3))
    for _ in range(4):
        fit = np.linalg.lstsq(x[keep], y[keep], rcond=None)[0]
        error = np.abs(y - x @ fit).max(1)
        keep = error <= max(2.5 * float(np.median(error)), 2.0)
    if np.percentile(error, 80) > SMOOTH or np.percentile(error, 95) > 4 * SMOOTH:
        return None
    grid = _terms(np.arange(hole.shape[0])[:, None], np.arange(hole.shape[1])[None], hole.shape)
    planes = [sum(term * factor for term, factor in zip(grid, fit[:, k], strict=True)) for k in range(3)]
    return np.asarray(cv2.merge([np.asarray(plane, np.float32) for plane in planes]), np.float32)


def _terms(rows: NDArray[np.int_], columns: NDArray[np.int_], shape: tuple[int, ...]) -> tuple[NDArray[Any], ...]:
    """The six terms of a quadratic surface over a picture of `shape`, coordinates in -1..1, at these pixels."""
    y, x = 2 * (rows + 0.5) / shape[0] - 1, 2 * (columns + 0.5) / shape[1] - 1
    return np.ones(1), x, y, x * x, x * y, y * y


def _spread(rest: Colour, hole: Flags) -> Colour:
    """A smooth field: the local mean outside the hole, its continuation inside (known pixels averaged ever wider)."""
    known = np.where(hole, 0.0, 1.0).astype(np.float32)
    held = np.clip(rest, -3 * SMOOTH, 3 * SMOOTH) * known[..., None]
    half = max(2, (hole.shape[1] + 1) // 2), max(2, (hole.shape[0] + 1) // 2)
    stack = cv2.resize(np.dstack([held, known]), half, interpolation=cv2.INTER_AREA)
    level, done = np.zeros((half[1], half[0], 3), np.float32), np.zeros((half[1], half[0]), np.float32)
    sigma = 2.0
    while sigma < 2 * max(half):
        scale = min(1.0, 3.0 / sigma)
        size = max(2, round(half[0] * scale)), max(2, round(half[1] * scale))
        small = cv2.resize(stack, size, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma * scale, borderType=cv2.BORDER_REPLICATE)
        wide = cv2.resize(small, half, interpolation=cv2.INTER_LINEAR)
        share = np.clip(wide[..., 3] * 4, 0, 1) * (1 - done)
        level += (wide[..., :3] / np.maximum(wide[..., 3:], 1e-6)) * share[..., None]
        done += share
        sigma *= 2
    level /= np.maximum(done, 1e-6)[..., None]
    return np.asarray(cv2.resize(level, hole.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _mirrored(picture: Colour, hole: Flags) -> Colour:
    """Rows mirrored in from both sides; columns from above and below where a whole row is hidden."""
    filled = _mirror_rows(picture, hole)
    hidden = hole.all(1)
    if hidden.any():
        turned = np.ascontiguousarray(filled.transpose(1, 0, 2))
        lost = np.zeros(turned.shape[:2], bool)
        lost[:, hidden] = True
        filled = _mirror_rows(turned, lost).transpose(1, 0, 2)
    return np.ascontiguousarray(filled)


def _mirror_rows(picture: Colour, hole: Flags) -> Colour:
    """Each row's holes filled from its own known pixels; a row without any stays as it is."""
    filled = picture.copy()
    rows = np.flatnonzero(hole.any(1) & ~hole.all(1))
    for band in np.split(rows, range(BAND, len(rows), BAND)):
        if len(band):
            top, bottom = int(band[0]), int(band[-1]) + 1
            _mirror_band(picture[top:bottom], hole[top:bottom], filled[top:bottom])
    return filled


def _mirror_band(picture: Colour, hole: Flags, filled: Colour) -> None:
    """`_mirror_rows` for a few rows, all their hole pixels at once; writes into `filled`."""
    ys, xs = np.nonzero(hole & ~hole.all(1)[:, None])
    known = np.flatnonzero(~hole)
    per_row = (~hole).sum(1)
    row_start = np.cumsum(per_row) - per_row  # where the row's known pixels begin in `known`
    # runs of hole pixels
    first = np.flatnonzero(np.concatenate([[True], (np.diff(ys) != 0) | (np.diff(xs) != 1)]))
    sizes = np.diff(np.append(first, len(ys)))
    row = ys[first]
    before = np.searchsorted(known, row * hole.shape[1] + xs[first]) - row_start[row]  # known pixels left of the run
    after = per_row[row] - before

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(values, sizes)

    offset = np.arange(len(ys)) - spread(first)
    start = spread(row_start[row] + before)
    to_left = _bounce(offset, np.maximum(spread(before), 1))
    to_right = _bounce(spread(sizes) - 1 - offset, np.maximum(spread(after), 1))
    colours = picture.reshape(-1, 3)
    # a side without known pixels gives some colour, with a share of 0
    left = colours[known[np.maximum(start - 1 - to_left, 0)]]
    right = colours[known[np.minimum(start + to_right, len(known) - 1)]]
    # the side that has to repeat itself soonest gives way
    middle = np.clip(before / (before + after), 0.2, 0.8) * sizes
    slope = np.maximum(1.0, 0.10 * sizes)
    low, high = 1 / (1 + np.exp(-(0.5 - middle) / slope)), 1 / (1 + np.exp(-(sizes - 0.5 - middle) / slope))
    fade = 1 / (1 + np.exp(-(offset + 0.5 - spread(middle)) / spread(slope)))
    fade = (fade - spread(low)) / spread(np.maximum(1e-6, high - low))
    fade = np.where(spread(sizes) == 1, 0.5, fade)
    fade = np.where(spread(before) == 0, 1.0, np.where(spread(after) == 0, 0.0, fade))
    filled[ys, xs] = left + (right - left) * fade.astype(np.float32)[:, None]


def _bounce(offset: NDArray[np.int_], count: NDArray[np.int_]) -> NDArray[np.int_]:
    """0, 1, ..., count-1, count-1, ..., 0, 0, 1, ...: walking to and fro over `count` known pixels."""
    phase = offset % (2 * count)
    return np.asarray(np.where(phase < count, phase, 2 * count - 1 - phase))


def _window(hole: Flags, margin: int) -> tuple[slice, slice]:
    """The box of the hole, wider by `margin` [px]."""
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + 1 + margin),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + 1 + margin),
    )


def _depth(hole: Flags) -> NDArray[np.float32]:
    """Distance to the nearest pixel outside the hole [px]; a hole at the border goes on beyond it."""
    padded = np.pad(hole, 1, mode="edge").astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


def _joined(picture: Colour, filled: Colour, hole: Flags) -> Colour:
    """The filling with its colours near the outline moved to the local mean beyond it, fading with depth."""
    reach = 0.012 * max(hole.shape)
    sigma = 0.6 * reach
    window = _window(hole, int(4 * sigma) + 2)
    out, hole = filled.copy(), hole[window]
    depth = _depth(hole)
    # means over several pixels need no finer grid than this
    scale = 0.5 ** max(0, int(np.log2(sigma / 3)))
    size = max(2, round(hole.shape[1] * scale)), max(2, round(hole.shape[0] * scale))
    means = []
    for own, colours in ((~hole, picture[window]), (hole, filled[window])):
        weight = own.astype(np.float32)
        stack = cv2.merge([*(plane * weight for plane in cv2.split(colours)), weight])
        stack = cv2.resize(stack, size, interpolation=cv2.INTER_AREA)
        stack = cv2.GaussianBlur(stack, (0, 0), sigma * scale)
        means.append((stack[..., :3], stack[..., 3:]))
    (outer, outer_weight), (inner, inner_weight) = means
    gap = outer / np.maximum(outer_weight, 1e-4) - inner / np.maximum(inner_weight, 1e-4)
    gap = cv2.resize(gap * np.clip(outer_weight / 0.05, 0, 1), hole.shape[::-1], interpolation=cv2.INTER_LINEAR)
    trust = np.where(hole, np.exp(-depth / reach), 0.0).astype(np.float32)
    out[window] += cv2.multiply(gap, cv2.merge([trust] * 3))
    return out


def _softened(filled: Colour, hole: Flags) -> Colour:
    """Blur that grows with depth, from levels of doubling sigma."""
    most = 0.025 * max(hole.shape)
    # no blur reaches beyond the hole: it grows slower than the depth
    window = _window(hole, 2)
    out, hole = filled.copy(), hole[window]
    wanted = np.minimum(SOFTNESS * np.maximum(_depth(hole) - 2.0, 0.0), most)
    first = last = np.ascontiguousarray(filled[window])
    soft = first.copy()
    below, sigma = 0.0, 1.0
    while below < wanted.max():
        scale = min(1.0, 3.0 / sigma)
        size = max(2, round(hole.shape[1] * scale)), max(2, round(hole.shape[0] * scale))
        small = cv2.GaussianBlur(cv2.resize(first, size, interpolation=cv2.INTER_AREA), (0, 0), sigma * scale)
        level = cv2.resize(small, hole.shape[::-1], interpolation=cv2.INTER_LINEAR)
        share = np.clip((wanted - below) / (sigma - below), 0.0, 1.0).astype(np.float32)
        soft += cv2.multiply(cv2.subtract(level, last), cv2.merge([share] * 3))
        last, below, sigma = np.asarray(level, np.float32), sigma, 2 * sigma
    out[window] = soft
    return out
