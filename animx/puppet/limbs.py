"""Pieces that stick out of a trunk: which are limbs, where their middle lines run, whether the border cuts them.

In: the figure and its trunk as flags [h, w] at working size.  Out: `Limb`s.  A middle line runs through the centres of
the level sets of the geodesic distance from the place where the piece hangs on the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.puppet.segment import Flags, disc

Point = NDArray[np.float64]

LEAST_LIMB = 0.09
"""A piece shorter than this part of the figure's height is no limb."""


@dataclass(frozen=True)
class Limb:
    """A piece that sticks out of the trunk: its middle line from the contact to the tip."""

    line: NDArray[np.float64]  # [n, 2] px
    width: float
    """Mean width [px]."""
    region: Flags
    cut: bool
    """Whether it ends at the picture's border."""

    @property
    def length(self) -> float:
        """Length of the middle line [px]."""
        return float(np.linalg.norm(np.diff(self.line, axis=0), axis=1).sum())

    @property
    def root(self) -> Point:
        """Where it leaves the trunk."""
        return np.asarray(self.line[0])

    @property
    def tip(self) -> Point:
        """Its far end."""
        return np.asarray(self.line[-1])

    def at(self, share: float) -> Point:
        """The point after `share` (0..1) of its length."""
        steps = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(self.line, axis=0), axis=1))])
        where = share * steps[-1]
        return np.array([np.interp(where, steps, self.line[:, k]) for k in (0, 1)])


def find_limbs(figure: Flags, core: Flags, open_sides: tuple[bool, bool, bool, bool]) -> list[Limb]:
    """Long pieces outside the core that touch it.

    `open_sides`: whether the figure's box lies on the picture's top, bottom, left, right border.
    """
    height = len(figure)
    rest = (figure & ~core).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(_thick(rest, 2), connectivity=8)
    touch = cv2.dilate(core.astype(np.uint8), disc(4)) > 0
    centre = float(np.argwhere(core)[:, 1].mean()) if core.any() else 0.5 * figure.shape[1]
    limbs = []
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] < 0.0006 * height * height:
            continue
        region = labels == label
        contact = region & touch
        if not contact.any():
            continue
        line = _middle_line(region, contact, centre)
        if line is None:
            continue
        length = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
        thickness = float(region.sum()) / max(1.0, length)
        root_width = float(np.ptp(np.argwhere(contact), axis=0).max()) + 1.0
        if length < LEAST_LIMB * height or length < 1.35 * thickness or length < 0.9 * root_width:
            continue
        limbs.append(Limb(line, thickness, region, _is_cut(region, line, thickness, open_sides)))
    return limbs


def _is_cut(
    region: Flags, line: NDArray[np.float64], thickness: float, open_sides: tuple[bool, bool, bool, bool]
) -> bool:
    """Whether a limb runs out of the picture: its tip is at an open border and about its whole width touches it."""
    height, width = region.shape
    tip, middle, near = line[-1], line[len(line) // 2], 4.0 + 0.5 * thickness
    sides = (
        (tip[1] < near, region), (tip[1] > height - 1 - near, region[::-1]),
        (tip[0] < near, region.T), (tip[0] > width - 1 - near, region.T[::-1]),
    )  # fmt: skip
    deeper = max(3, round(0.35 * thickness))
    away = cv2.distanceTransform(np.pad(region, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    end = np.hypot(*(np.indices(region.shape)[::-1] - tip[:, None, None])) < 1.5 * thickness
    half = away[np.hypot(*(np.indices(region.shape)[::-1] - middle[:, None, None])) < 0.75 * thickness].max(initial=0)
    if away[end & region].max(initial=0) > 1.3 * half:  # a foot stands on the border, it is not cut by it
        return False
    # A hand that only touches the border is much wider a little farther in.
    return any(
        is_open and at_border and rows[:2].any(0).sum() > max(0.5 * thickness, 0.8 * rows[deeper].sum())
        for is_open, (at_border, rows) in zip(open_sides, sides, strict=True)
    )


def _middle_line(region: Flags, contact: Flags, centre: float) -> NDArray[np.float64] | None:
    """Centres of the level sets of the geodesic distance from the contact, towards the farthest pixel.

    Among ends about equally far (toe and heel) the one farther from the figure's middle `centre` [px] is taken.
    """
    from skimage.graph import MCP_Geometric

    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    y0, x0 = int(rows[0]), int(columns[0])
    region = region[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    contact = contact[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    cost = np.where(region, 1.0, np.inf)
    solver = MCP_Geometric(cost)
    reached, _ = solver.find_costs([tuple(p) for p in np.argwhere(contact)])
    reached = np.where(region & np.isfinite(reached), reached, -1.0)
    ends = np.argwhere(reached >= 0.96 * reached.max())
    tip = tuple(ends[int(np.argmax(np.abs(ends[:, 1] + x0 - centre)))])
    total = float(reached[tip])
    if total < 4:
        return None
    path = np.array(solver.traceback(tip), np.float64)[:, ::-1]  # contact -> tip, hugging one side
    along = reached[path[:, 1].astype(int), path[:, 0].astype(int)]
    steps = max(5, int(total / 4))
    line = [np.argwhere(contact).mean(0)[::-1]]
    for k in range(1, steps):
        level = k * total / steps
        here = path[int(np.argmin(np.abs(along - level)))]
        ring = np.argwhere(np.abs(reached - level) < 2.0)[:, ::-1].astype(np.float64)
        near = ring[np.linalg.norm(ring - here, axis=1) < max(6.0, 1.2 * np.sqrt(region.sum() / 3))]
        line.append(near.mean(0) if len(near) else here)
    line.append(path[-1])
    smooth = np.array(line)
    smooth[1:-1] = (smooth[:-2] + 2 * smooth[1:-1] + smooth[2:]) / 4
    return np.asarray(smooth + np.array([x0, y0]), np.float64)


def _thick(flags: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """Opening that drops slivers along the core but keeps thin limbs: a piece survives when part of it is thick."""
    opened = cv2.morphologyEx(np.pad(flags, radius), cv2.MORPH_OPEN, disc(radius))[radius:-radius, radius:-radius]
    keep = opened.copy()
    # Thin limbs vanish in the opening: keep long leftovers whole.
    left = (flags > 0) & (opened == 0)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(left.astype(np.uint8), connectivity=8)
    for label in range(1, count):
        extent = max(stats[label, cv2.CC_STAT_WIDTH], stats[label, cv2.CC_STAT_HEIGHT])
        if extent > 0.1 * len(flags) and stats[label, cv2.CC_STAT_AREA] > 2.2 * extent:
            keep[labels == label] = 1
    return np.asarray(keep, np.uint8)
