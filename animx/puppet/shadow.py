"""The soft shadow that a figure throws on a flat floor: the ground's own colour, only darker, without an edge.

Works on flags [h, w] at working size.  A shadow scales the ground's colour (in gamma-coded values too, because a power
of a product is the product of powers); it is reached from outside the figure without crossing an edge.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]

LOWEST_PART = 0.3
"""Share of the figure's height, from below, in which a shadow is looked for."""
DARKEST, LIGHTEST = 0.3, 0.985
"""A shadow lets this share of the ground's brightness through."""
STEEPEST = 0.03
"""Largest change of that share per pixel at 512 px; an outline is steeper."""


def floor_shadow(rgb: NDArray[np.uint8], region: Flags, surface: NDArray[np.float32], noise: float) -> Flags:
    """The part of `region` that is shadow.  `surface`: the ground's colour everywhere, RGB 0..255 [h, w, 3].

    `noise` is the ground's own [Lab distance].  Nothing is found where it would be most of the figure.
    """
    rows = np.flatnonzero(region.any(1))
    none = np.zeros_like(region)
    if len(rows) == 0:
        return none
    colour = cv2.GaussianBlur(rgb, (0, 0), 0.8).astype(np.float32)
    through = (colour * surface).sum(2) / np.maximum((surface * surface).sum(2), 1.0)
    off = np.abs(colour - through[..., None] * surface).max(2)
    close = off < max(5.0, 3.0 * noise)
    alike = close & (through > DARKEST) & (through < LIGHTEST)
    bare = close & (np.abs(through - 1) < 0.03)  # the ground itself, shut in between legs by their shadow
    dx, dy = cv2.Sobel(through, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(through, cv2.CV_32F, 0, 1, scale=0.125)
    steepest = STEEPEST * 512 / max(region.shape)
    alike[: int(rows[-1] - LOWEST_PART * (rows[-1] - rows[0]))] = False
    open_ground = ~region | ((alike | bare) & (np.hypot(dx, dy) < steepest))
    # Flooded from outside: an outline, however thin, holds.
    _, labels = cv2.connectedComponents(open_ground.astype(np.uint8), connectivity=4)
    outside = np.unique(labels[~region])
    shadow = region & np.isin(labels, outside[outside > 0])
    # The strip along the figure's own outline is steep, but still shadow.
    strip = cv2.dilate(shadow.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2) > 0
    shadow |= strip & (alike | bare) & region
    if not (shadow & alike).any() or shadow.sum() > 0.45 * region.sum():
        return none
    return shadow
