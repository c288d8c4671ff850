"""The guided filter: smooth where the picture is flat, sharp where it has an edge, equal to the contrib build's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from animx.puppet.guided import guided_filter


def noisy_step() -> tuple[np.ndarray, np.ndarray]:
    """A picture of two colours and a noisy map that steps with it, [60, 80]."""
    rng = np.random.default_rng(0)
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:, :40], picture[:, 40:] = (200, 60, 40), (30, 90, 220)
    values = np.where(np.arange(80) < 40, -2.0, 2.0)[None] + rng.normal(0, 0.5, (60, 80))
    return picture, values.astype(np.float32)


def test_noise_goes_and_the_edge_of_the_picture_stays() -> None:
    picture, values = noisy_step()
    out = guided_filter(picture, values, 4, 36.0)
    assert out[:, 5:35].std() < 0.3 * values[:, 5:35].std()
    assert out[:, 39].mean() < -1.8
    assert out[:, 40].mean() > 1.8


def test_a_flat_picture_gives_a_plain_blur_of_blurs() -> None:
    _, values = noisy_step()
    flat = np.full((60, 80, 3), 127, np.uint8)
    once = cv2.blur(values, (9, 9), borderType=cv2.BORDER_REFLECT)
    twice = cv2.blur(once, (9, 9), borderType=cv2.BORDER_REFLECT)
    assert np.abs(guided_filter(flat, values, 4, 36.0) - twice).max() < 1e-4


def test_a_map_that_is_linear_in_the_colours_passes_unchanged() -> None:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)
    values = (picture.astype(np.float32) @ np.array([0.01, -0.02, 0.03], np.float32)).astype(np.float32)
    assert np.abs(guided_filter(picture, values, 4, 1e-3) - values).max() < 1e-2


@pytest.mark.skipif(
    not hasattr(getattr(cv2, "ximgproc", None), "guidedFilter"), reason="needs OpenCV's contrib build to compare with"
)
def test_the_numbers_are_those_of_the_contrib_build() -> None:
    picture, values = noisy_step()
    picture = cv2.add(picture, np.random.default_rng(2).integers(0, 30, picture.shape, dtype=np.uint8))
    expected = cv2.ximgproc.guidedFilter(picture, values, 4, 36.0)
    assert np.abs(guided_filter(picture, values, 4, 36.0) - expected).max() < 1e-3
