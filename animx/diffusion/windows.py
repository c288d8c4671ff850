"""Long clips as windows and segments: which frames are denoised together, and how their results are blended.

A window is what the network sees at once (F frames).  The windows of a segment are blended at every step; the next
segment takes the last frames of the one before as known.  All indices are frame numbers of the clip, 0-based.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from animx.errors import UsageError


@dataclass(frozen=True)
class Segment:
    """A stretch of frames denoised as one: `first` to `last` (exclusive), of which the first `known` are given."""

    first: int
    last: int
    known: int
    """Frames at the start that the segment before has finished; they are re-noised, not denoised anew."""

    @property
    def frames(self) -> int:
        """Length of the segment, known frames included."""
        return self.last - self.first


def cut_windows(frames: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """Windows (first, last exclusive) that cover `frames` frames; the last one is moved back to end with the clip.

    A clip shorter than a window is one window of its own length.
    """
    _check(window, overlap)
    if frames <= window:
        return [(0, frames)]
    stride = window - overlap
    starts = [*range(0, frames - window, stride), frames - window]
    return [(start, start + window) for start in starts]


def cut_segments(frames: int, window: int, overlap: int, windows: int) -> list[Segment]:
    """Segments of at most `windows` windows each; every segment after the first knows `overlap` frames."""
    _check(window, overlap)
    if windows < 1:
        raise UsageError(f"a segment of {windows} windows holds no frames")
    length = window + (windows - 1) * (window - overlap)
    if frames <= length:
        return [Segment(0, frames, 0)]
    segments = [Segment(0, length, 0)]
    while segments[-1].last < frames:
        first = segments[-1].last - overlap
        segments.append(Segment(first, min(first + length, frames), overlap))
    return segments


def blend_weights(frames: int, windows: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Weight of each window at each frame, [windows, frames]; at every frame they sum to 1.

    A weight falls linearly towards a window's edge, but never to 0, so that a frame seen by one window keeps it whole.
    """
    weights = np.zeros((len(windows), frames))
    for i, (first, last) in enumerate(windows):
        n = last - first
        ramp = np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float64)
        weights[i, first:last] = ramp
    total = weights.sum(axis=0)
    if (total == 0).any():
        raise ValueError(f"frame {int(np.flatnonzero(total == 0)[0])} lies in no window")
    blended: NDArray[np.float64] = weights / total
    return blended


def _check(window: int, overlap: int) -> None:
    if window < 1:
        raise UsageError(f"--window {window}: at least 1 frame")
    if not 0 <= overlap < window:
        raise UsageError(f"--overlap {overlap} leaves no new frames in a window of {window}")
