"""Windows and segments: every frame covered, weights sum to one, nothing denoised twice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from animx.diffusion.windows import blend_weights, cut_segments, cut_windows
from animx.errors import UsageError


def triples(n: int = 200) -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(0)
    windows = rng.integers(1, 48, n)
    return [(int(rng.integers(1, 400)), int(w), int(rng.integers(0, w))) for w in windows]


def test_window_weights_sum_to_one_at_every_frame() -> None:
    for frames, window, overlap in triples():
        windows = cut_windows(frames, window, overlap)
        weights = blend_weights(frames, windows)
        assert np.abs(weights.sum(axis=0) - 1).max() <= 1e-12
        for (first, last), row in zip(windows, weights, strict=True):
            assert (row[first:last] > 0).all()
            assert row[:first].sum() + row[last:].sum() == 0
            assert last - first == min(window, frames)


def test_segments_cover_every_frame_and_know_their_overlap() -> None:
    for frames, window, overlap in triples():
        for count in (1, 3):
            segments = cut_segments(frames, window, overlap, count)
            assert segments[0].first == 0
            assert segments[0].known == 0
            assert segments[-1].last == frames
            for before, after in itertools.pairwise(segments):
                assert after.first == before.last - overlap
                assert after.known == overlap
                assert after.last > before.last


def test_one_window_is_the_whole_clip() -> None:
    assert cut_windows(32, 32, 0) == [(0, 32)]
    assert cut_windows(5, 32, 8) == [(0, 5)]
    assert blend_weights(5, [(0, 5)]).tolist() == [[1.0] * 5]


def test_impossible_windows_are_refused_in_the_users_words() -> None:
    with pytest.raises(UsageError, match="--overlap 40 leaves no new frames in a window of 32"):
        cut_windows(100, 32, 40)
    with pytest.raises(UsageError, match="--window 0"):
        cut_windows(100, 0, 0)
