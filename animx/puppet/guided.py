"""Guided filter: smooth a map along the edges of a colour picture (He, Sun and Tang 2010, equation 19).

In: guide RGB [H, W, 3] and a map [H, W].  Out: a map [H, W] that is locally linear in the guide's colours.
OpenCV has one in its contrib build only, and rtmlib brings the plain build, which lies in the same folder.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]


def guided_filter(guide: NDArray[np.uint8], values: Map, radius: int, eps: float) -> Map:
    """Smooth `values` over squares of side 2 radius + 1 [px], keeping the edges of `guide`.

    `eps` [colour levels squared] is how much colour variance counts as flat.
    """

    def mean(x: NDArray[np.float32]) -> NDArray[np.float32]:
        side = 2 * radius + 1
        return np.asarray(cv2.blur(x, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)

    colour = guide.astype(np.float32)
    colour -= colour.mean(axis=(0, 1))  # covariances of small numbers: float32 is enough
    values = values.astype(np.float32)
    centre, level = mean(colour), mean(values)
    shared = mean(colour * values[..., None]) - centre * level[..., None]  # [H, W, 3]
    rr, rg, rb, gg, gb, bb = (
        mean(colour[..., i] * colour[..., j]) - centre[..., i] * centre[..., j] + (eps if i == j else 0.0)
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    )
    # The inverse of a symmetric 3x3 matrix, written out.
    a, b, c = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    d, e, f = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    determinant = rr * a + rg * b + rb * c
    r, g, u = shared[..., 0], shared[..., 1], shared[..., 2]
    slope = np.stack([a * r + b * g + c * u, b * r + d * g + e * u, c * r + e * g + f * u], axis=-1)
    slope /= determinant[..., None]
    offset = level - (slope * centre).sum(axis=-1)
    filtered: Map = (mean(slope) * colour).sum(axis=-1) + mean(offset)
    return filtered
