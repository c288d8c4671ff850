"""Triangle meshes over layers: square cells with alternating diagonals on one grid, centred on the canvas.

The grid is symmetric about the middle of the canvas, so a mirrored picture gets the mirrored mesh.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.puppet.parts import Layer

CELLS_PER_HEIGHT = 72
"""Cells along the figure's height."""


@dataclass(frozen=True)
class Mesh:
    """Triangles over one layer, at rest."""

    vertices: NDArray[np.float64]  # [N, 2] canvas px
    triangles: NDArray[np.int32]  # [M, 3] counter-clockwise or clockwise alike
    opaque: NDArray[np.bool_]  # [M] every texel a triangle can touch is fully opaque


def cell_size(height: float) -> float:
    """Side of a grid cell for a figure of `height` px [px]."""
    return float(np.clip(round(height / CELLS_PER_HEIGHT), 4, 32))


def build(layer: Layer, cell: float, size: tuple[int, int]) -> Mesh:
    """Cover the non-transparent part of `layer`, grown by 2 px, on a canvas of `size` (width, height) px."""
    alpha = layer.texture[..., 3]
    reach = np.ones((5, 5), np.uint8)
    covered = cv2.dilate((alpha > 0).astype(np.uint8), reach)
    # one pixel beyond a cell is read by the bilinear filter
    clear = cv2.dilate((alpha < 255).astype(np.uint8), np.ones((5, 5), np.uint8))
    x0, y0 = layer.origin
    height, width = alpha.shape
    first_i = int(np.floor((x0 - size[0] / 2) / cell))
    first_j = int(np.floor((y0 - size[1] / 2) / cell))
    columns = int(np.ceil((x0 + width - size[0] / 2) / cell)) - first_i
    rows = int(np.ceil((y0 + height - size[1] / 2) / cell)) - first_j
    left = size[0] / 2 + (first_i + np.arange(columns + 1)) * cell
    top = size[1] / 2 + (first_j + np.arange(rows + 1)) * cell
    sums = [cv2.integral(flags).astype(np.int64) for flags in (covered, clear)]
    xa = np.clip(np.floor(left - x0).astype(int), 0, width)
    ya = np.clip(np.floor(top - y0).astype(int), 0, height)
    xb = np.clip(np.ceil(left - x0).astype(int), 0, width)
    yb = np.clip(np.ceil(top - y0).astype(int), 0, height)

    def count(t: NDArray[np.int64]) -> NDArray[np.int64]:
        lo_y, hi_y, lo_x, hi_x = ya[:-1, None], yb[1:, None], xa[None, :-1], xb[None, 1:]
        return np.asarray(t[hi_y, hi_x] - t[lo_y, hi_x] - t[hi_y, lo_x] + t[lo_y, lo_x], np.int64)

    used = count(sums[0]) > 0  # [rows, columns]
    full = used & (count(sums[1]) == 0)
    jj, ii = np.nonzero(used)
    inside = (left[ii] >= x0) & (left[ii + 1] <= x0 + width) & (top[jj] >= y0) & (top[jj + 1] <= y0 + height)
    stride = columns + 1
    a, b = jj * stride + ii, jj * stride + ii + 1
    c, d = a + stride, b + stride
    falling = ((ii + first_i + jj + first_j) % 2 == 0)[:, None]
    one = np.where(falling, np.stack([a, b, d], 1), np.stack([a, b, c], 1))
    two = np.where(falling, np.stack([a, d, c], 1), np.stack([b, d, c], 1))
    triangles = np.stack([one, two], 1).reshape(-1, 3)
    opaque = np.repeat(full[jj, ii] & inside, 2)
    keep, compact = np.unique(triangles, return_inverse=True)
    vertices = np.stack([left[keep % stride], top[keep // stride]], 1)
    return Mesh(vertices, compact.reshape(-1, 3).astype(np.int32), opaque)
