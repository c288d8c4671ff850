"""Filling in behind the figure: untouched outside, seamless on smooth grounds, never undefined."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mascots import BALL, CARTON, busy_ground

from animx.errors import InputError
from animx.puppet.background import fill_background, hole_of


def disc_mask(width, height, x, y, radius):
    return cv2.circle(np.zeros((height, width), np.float32), (x, y), radius, 1.0, -1)


def gradient(width, height):
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return np.dstack([180 + 30 * x + 10 * y * y, 170 - 20 * y, 150 + 15 * x * y]).round().astype(np.uint8)


@pytest.mark.parametrize("ground", [busy_ground(400, 480), gradient(400, 480)], ids=["busy", "smooth"])
def test_outside_the_hole_every_bit_stays(ground):
    mask = BALL.mask.astype(np.float32)
    picture = BALL.picture(ground)
    out = fill_background(picture, mask)
    hole = hole_of(mask)
    assert (out[~hole] == picture[~hole]).all()
    assert (out[hole] != picture[hole]).any()


def test_the_figure_is_gone():
    mask = CARTON.mask.astype(np.float32)
    out = fill_background(CARTON.picture(busy_ground(*CARTON.size)), mask).astype(int)
    orange = (np.abs(out - (235, 150, 70)).max(2) < 30) & (mask > 0)
    assert orange.mean() < 0.001


def test_a_smooth_ground_is_filled_without_a_seam():
    ground = gradient(400, 480)
    out = fill_background(BALL.picture(ground), BALL.mask.astype(np.float32))
    assert np.abs(out.astype(int) - ground).max() <= 3


def test_paper_keeps_its_grain():
    rng = np.random.default_rng(1)
    ground = np.clip(gradient(400, 480) + rng.normal(0, 2, (480, 400, 1)), 0, 255).astype(np.uint8)
    mask = disc_mask(400, 480, 200, 240, 110)
    picture = ground.copy()
    picture[mask > 0] = (20, 20, 90)
    out = fill_background(picture, mask).astype(np.float32)
    hole = hole_of(mask)
    fine = out - cv2.GaussianBlur(out, (0, 0), 2)
    assert 0.6 < fine[hole].std() / fine[~hole].std() < 1.4


def test_rows_continue_what_lies_beside_the_figure():
    """Horizontal stripes run on behind the figure."""
    stripes = np.repeat(np.where(np.arange(480) // 40 % 2 == 0, 60, 190)[:, None], 400, 1).astype(np.uint8)
    ground = np.dstack([stripes, 255 - stripes, stripes // 2])
    mask = disc_mask(400, 480, 200, 240, 80)
    picture = ground.copy()
    picture[mask > 0] = (250, 20, 20)
    out = fill_background(picture, mask)
    middle = np.zeros_like(stripes, bool)
    middle[15::40] = middle[20::40] = middle[25::40] = True  # away from the stripes' borders
    middle &= hole_of(mask)
    assert np.abs(out[middle].astype(int) - ground[middle]).mean() < 12


@pytest.mark.parametrize(
    "box", [(0, 100, 120, 300), (280, 0, 400, 200), (0, 200, 400, 320), (100, 0, 300, 480), (0, 0, 400, 400)],
    ids=["left border", "corner", "whole rows", "whole columns", "all but a strip"],
)  # fmt: skip
def test_a_hole_at_the_border_is_filled_from_what_is_left(box):
    x0, y0, x1, y1 = box
    mask = np.zeros((480, 400), np.float32)
    mask[y0:y1, x0:x1] = 1
    picture = busy_ground(400, 480)
    known = picture[~hole_of(mask)]
    picture[mask > 0] = (255, 0, 255)
    out = fill_background(picture, mask)
    filled = out[hole_of(mask)].astype(int)
    assert (filled <= known.max(0).astype(int) + 12).all()
    assert (filled >= known.min(0).astype(int) - 12).all()


def test_colours_join_over_a_head():
    """Rows just under the top of the hole know nothing of the sky above it: the step there is taken out."""
    sky = np.full((480, 400, 3), (90, 150, 230), np.uint8)
    sky[:, :130], sky[:, 270:] = (60, 110, 40), (60, 110, 40)  # trees left and right
    mask = np.zeros((480, 400), np.float32)
    mask[200:420, 120:280] = 1
    out = fill_background(sky, mask).astype(int)
    top = int(np.flatnonzero(hole_of(mask).any(1))[0])
    step = np.abs(out[top, 180:220] - out[top - 1, 180:220]).mean()
    deep = np.abs(out[top + 60, 180:220] - out[top - 1, 180:220]).mean()
    assert step < 0.5 * deep


def test_blur_grows_with_depth():
    rng = np.random.default_rng(3)
    ground = rng.integers(0, 256, (480, 400, 3), dtype=np.uint8)
    mask = disc_mask(400, 480, 200, 240, 120)
    out = fill_background(ground, mask).astype(np.float32)
    depth = cv2.distanceTransform(hole_of(mask).astype(np.uint8), cv2.DIST_L2, 5)
    assert out[depth > 60].std() < 0.6 * out[(depth > 2) & (depth < 8)].std()


def test_nothing_covered_changes_nothing():
    picture = busy_ground(90, 60)
    assert (fill_background(picture, np.zeros((60, 90), np.float32)) == picture).all()


def test_a_figure_that_covers_all_leaves_grey():
    assert (fill_background(busy_ground(90, 60), np.ones((60, 90), np.float32)) == 128).all()


def test_a_mirrored_picture_gives_the_mirrored_filling():
    mask = disc_mask(400, 480, 160, 240, 80)
    picture = busy_ground(400, 480)
    a = fill_background(picture, mask)
    b = fill_background(picture[:, ::-1].copy(), mask[:, ::-1].copy())[:, ::-1]
    assert np.abs(a.astype(int) - b).max() <= 1


def test_the_same_picture_gives_the_same_bytes():
    mask = BALL.mask.astype(np.float32)
    picture = BALL.picture(busy_ground(400, 480))
    assert fill_background(picture, mask).tobytes() == fill_background(picture, mask).tobytes()


def test_another_shape_is_refused():
    with pytest.raises(InputError, match="mask of shape"):
        fill_background(busy_ground(90, 60), np.zeros((50, 90), np.float32))
