"""Shots: where a video cuts.

In: RGB frames one by one.  Out: the first frames of all shots but the first.  A cut is a frame whose colours change at
nearly every place at once: much against what is usual around it (so fast motion and camera moves are none), and not
undone by the next frame (so a flash is none).  Dissolves and fades are not found; the person checks see those.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 24
"""Pictures are compared at this many samples a side."""
LEAST = 14.0
"""Mean change of a sample that a cut has at least [grey levels]."""
TIMES = 3.0
"""How many times the usual change around it a cut's change is."""
AROUND = 8
"""Frames on either side that tell what is usual."""
FLASH = 0.5
"""A change of which less than this part is left one frame later is a flash."""


class CutFinder:
    """Takes the frames of a video one by one; holds two small pictures and two numbers a frame."""

    def __init__(self) -> None:
        self._last: list[NDArray[np.float32]] = []
        self.changes: list[float] = []
        """Mean change of each frame against the one before [grey levels]."""
        self._lasting: list[float] = []

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """The next frame, RGB [H, W, 3]."""
        small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        here = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb), np.float32)
        before = self._last[-1] if self._last else here
        change = _difference(here, before)
        # what is left of the last frame's change, seen from here
        self._lasting.append(_difference(here, self._last[-2]) if len(self._last) > 1 else change)
        self.changes.append(change)
        self._last = [before, here]

    def cuts(self) -> list[int]:
        """Numbers of the frames that begin a new shot, 0 left out."""
        changes = np.array(self.changes)
        found: list[int] = []
        for t in np.flatnonzero(changes >= LEAST):
            low, high = max(1, t - AROUND), min(len(changes), t + AROUND + 1)
            others = np.delete(changes[low:high], t - low)
            usual = float(np.median(others)) if len(others) else 0.0
            lasting = self._lasting[t + 1] if t + 1 < len(changes) else changes[t]
            back_from_flash = t - 1 > 0 and changes[t - 1] >= LEAST and self._lasting[t] < FLASH * changes[t]
            if t > 0 and changes[t] > TIMES * usual and lasting >= FLASH * changes[t] and not back_from_flash:
                found.append(int(t))
        return found


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Mean over places of the largest change of brightness or colour [grey levels]."""
    return float(np.abs(a - b).max(axis=2).mean())
