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
from animx.puppet.segment import Flags, disc, quadratic

RING = 0.018
"""Width of the ring round the mask that is filled too, as part of the long side: soft edges and shadows lie in it."""
SMOOTH = 5.0
"""Levels: a ground whose ring lies nearer to a quadratic surface than this (80th percentile) is smooth."""
SOFTNESS = 0.06
"""Blur sigma [px] per px of depth in the hole."""

Colour = NDArray[np.float32]


def hole_of(mask: NDArray[np.floating[Any]], ring: float = RING) -> Flags:
    """What is filled: all pixels of any coverage and a ring of `ring` x the long side round them [H, W]."""
    covered = (np.asarray(mask) > 0.02).astype(np.uint8)
    return np.asarray(cv2.dilate(covered, disc(max(1, round(ring * max(covered.shape))))) > 0)


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
    surface = _smooth_ground(picture, hole)
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


def _smooth_ground(picture: Colour, hole: Flags) -> Colour | None:
    """The quadratic surface through the ring round the hole, or None when the ring is not smooth."""
    width = max(3, round(0.03 * max(hole.shape)))
    ring = (cv2.dilate(hole.astype(np.uint8), disc(width)) > 0) & ~hole
    if ring.sum() < 50:
        return None
    terms = quadratic(*hole.shape)
    step = max(1, int(ring.sum()) // 8000)
    x, y = terms[ring][::step], picture[ring][::step].astype(np.float64)
    keep = np.ones(len(x), bool)
    error, fit = np.zeros(len(x)), np.zeros((6, 3))
    for _ in range(4):
        fit = np.linalg.lstsq(x[keep], y[keep], rcond=None)[0]
        error = np.abs(y - x @ fit).max(1)
        keep = error <= max(2.5 * float(np.median(error)), 2.0)
    if np.percentile(error, 80) > SMOOTH or np.percentile(error, 95) > 4 * SMOOTH:
        return None
    return np.asarray(terms @ fit, np.float32)


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
    for y in np.flatnonzero(hole.any(1)):
        row = hole[y]
        known = np.flatnonzero(~row)
        if not len(known):
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        for a, b in edges.reshape(-1, 2):
            size = b - a
            offset = np.arange(size)
            before = int(np.searchsorted(known, a))  # known pixels left of the hole
            after = len(known) - before
            sides = []
            if before:
                sides.append(picture[y, known[before - 1 - _bounce(offset, before)]])
            if after:
                sides.append(picture[y, known[before + _bounce(offset, after)]][::-1])
            if len(sides) == 2:
                # The side that has to repeat itself soonest gives way.
                middle = np.clip(before / (before + after), 0.2, 0.8) * size
                fade = 1.0 / (1.0 + np.exp(-(offset + 0.5 - middle) / max(1.0, 0.10 * size)))
                fade = (fade - fade[0]) / max(1e-6, fade[-1] - fade[0]) if size > 1 else np.array([0.5])
                filled[y, a:b] = sides[0] + (sides[1] - sides[0]) * fade[:, None].astype(np.float32)
            else:
                filled[y, a:b] = sides[0]
    return filled


def _bounce(offset: NDArray[np.int_], count: int) -> NDArray[np.int_]:
    """0, 1, ..., count-1, count-1, ..., 0, 0, 1, ...: walking to and fro over `count` known pixels."""
    phase = offset % (2 * count)
    return np.asarray(np.where(phase < count, phase, 2 * count - 1 - phase))


def _joined(picture: Colour, filled: Colour, hole: Flags) -> Colour:
    """The filling with its colours near the outline moved to the local mean beyond it, fading with depth."""
    reach = 0.012 * max(hole.shape)
    depth = cv2.distanceTransform(np.pad(hole, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    means = []
    for own, colours in ((~hole, picture), (hole, filled)):
        weight = own.astype(np.float32)
        stack = cv2.GaussianBlur(np.dstack([colours * weight[..., None], weight]), (0, 0), 0.6 * reach)
        means.append((stack[..., :3], stack[..., 3:]))
    (outer, outer_weight), (inner, inner_weight) = means
    gap = outer / np.maximum(outer_weight, 1e-4) - inner / np.maximum(inner_weight, 1e-4)
    trust = np.clip(outer_weight / 0.05, 0, 1) * np.exp(-depth / reach)[..., None]
    return np.asarray(filled + np.where(hole[..., None], gap * trust, 0.0), np.float32)


def _softened(filled: Colour, hole: Flags) -> Colour:
    """Blur that grows with depth, from levels of doubling sigma."""
    depth = cv2.distanceTransform(np.pad(hole, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    wanted = np.minimum(SOFTNESS * np.maximum(depth - 2.0, 0.0), 0.025 * max(hole.shape))
    out, last, sigma = filled.copy(), filled, 1.0
    below = 0.0
    while below < wanted.max():
        scale = min(1.0, 3.0 / sigma)
        size = max(2, round(hole.shape[1] * scale)), max(2, round(hole.shape[0] * scale))
        small = cv2.GaussianBlur(cv2.resize(filled, size, interpolation=cv2.INTER_AREA), (0, 0), sigma * scale)
        level = cv2.resize(small, (hole.shape[1], hole.shape[0]), interpolation=cv2.INTER_LINEAR)
        share = np.clip((wanted - below) / (sigma - below), 0.0, 1.0)[..., None]
        inside = wanted > below
        out[inside] = (last + (level - last) * share)[inside]
        last, below, sigma = np.asarray(level, np.float32), sigma, 2 * sigma
    return np.asarray(out, np.float32)
