"""Canvas: the pixel grid a pose or frame lives on, and the maps between two of them.

Origin at the top-left corner; pixel i covers [i, i+1), so a change of canvas is a plain factor and a mirror is
x' = W - x.
Only the boundary to `cv2.remap` and `cv2.warpAffine`, which put pixel centres on integers, shifts by 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError, UsageError

Fit = Literal["cover", "contain", "stretch"]

MAX_SIDE = 16384
"""Largest side of any picture or clip that is read [px]; larger is refused from the header."""
MAX_PIXELS = 100_000_000
"""Largest picture area that is read [px]; larger is refused from the header."""


@dataclass(frozen=True)
class Canvas:
    """A pixel grid: width and height [px], both positive."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InputError(f"a canvas of {self.width}x{self.height} px has no pixels")

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) [px], the order of OpenCV and Pillow calls."""
        return self.width, self.height

    @property
    def long_side(self) -> int:
        """The larger of width and height [px]."""
        return max(self.width, self.height)

    def even(self) -> Canvas:
        """This canvas without an odd last row or column, as 4:2:0 codecs need; 1 px stays 2 px at least."""
        return Canvas(max(2, self.width - self.width % 2), max(2, self.height - self.height % 2))

    def limited(self, long_side: int) -> Canvas:
        """This canvas scaled down so that its long side is at most `long_side` [px]; never scaled up."""
        if self.long_side <= long_side:
            return self
        factor = long_side / self.long_side
        return Canvas(max(1, round(self.width * factor)), max(1, round(self.height * factor)))


@dataclass(frozen=True)
class Placement:
    """An axis-aligned map of points from one canvas to another: p' = p * (sx, sy) + (dx, dy) [px]."""

    sx: float
    sy: float
    dx: float
    dy: float

    def points(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Map points [..., 2] (x, y) in px.  Returns float64 of the same shape."""
        return np.asarray(points, np.float64) * (self.sx, self.sy) + (self.dx, self.dy)

    def warp_matrix(self) -> NDArray[np.float64]:
        """The 2x3 matrix for `cv2.warpAffine` (forward map), with its half-pixel centres taken into account."""
        return np.array([[self.sx, 0.0, self.dx + 0.5 * self.sx - 0.5], [0.0, self.sy, self.dy + 0.5 * self.sy - 0.5]])


def place(source: Canvas, target: Canvas, fit: Fit = "stretch") -> Placement:
    """How `source` lies on `target`: `stretch` fills it, `cover` fills and crops, `contain` fits inside; centred."""
    sx, sy = target.width / source.width, target.height / source.height
    if fit == "stretch":
        return Placement(sx, sy, 0.0, 0.0)
    if fit not in ("cover", "contain"):
        raise UsageError(f"--fit {fit}: use cover, contain or stretch")
    s = max(sx, sy) if fit == "cover" else min(sx, sy)
    return Placement(s, s, (target.width - source.width * s) / 2, (target.height - source.height * s) / 2)
