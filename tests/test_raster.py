"""Drawing: every pixel once, exact at rest, close to OpenCV's warp, safe at the borders."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from animx.puppet import raster
from animx.puppet.mesh import build, cell_size
from animx.puppet.parts import MARGIN, Layer

CANVAS = (120, 100)


def layer(alpha: int = 255, seed: int = 1) -> Layer:
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (60, 80, 3)).astype(np.float32), (0, 0), 2)
    texture = np.zeros((60 + 2 * MARGIN, 80 + 2 * MARGIN, 4), np.uint8)
    inside = texture[MARGIN:-MARGIN, MARGIN:-MARGIN]
    inside[..., :3] = np.rint(smooth * alpha / 255)
    inside[..., 3] = alpha
    return Layer("body", texture, (17, 21))


def drawn(sheet: Layer, move: object, size: tuple[int, int] = CANVAS, opaque: bool = True) -> NDArray[np.uint8]:
    mesh = build(sheet, 10.0, size)
    moved = np.ascontiguousarray(move(mesh.vertices))  # type: ignore[operator]
    frame = np.zeros((size[1], size[0], 4), np.uint8)
    solid = mesh.opaque if opaque else np.zeros_like(mesh.opaque)
    dirty = np.array([size[0], size[1], 0, 0], np.int64)
    raster.draw(frame, raster.pack(sheet.texture), *sheet.origin, mesh.vertices, moved, mesh.triangles, solid, dirty)
    touched = np.argwhere(frame[..., 3] > 0)
    if len(touched):
        assert dirty[0] <= touched[:, 1].min()
        assert touched[:, 1].max() < dirty[2]
        assert dirty[1] <= touched[:, 0].min()
        assert touched[:, 0].max() < dirty[3]
    return frame


def at_rest(sheet: Layer) -> NDArray[np.uint8]:
    frame = np.zeros((CANVAS[1], CANVAS[0], 4), np.uint8)
    x, y = sheet.origin
    h, w = sheet.texture.shape[:2]
    frame[y : y + h, x : x + w] = sheet.texture
    return frame


def wobble(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth deformation without folds."""
    x, y = points[:, 0], points[:, 1]
    return np.stack([x + 6 * np.sin(y / 17) + 0.31, 1.07 * y + 5 * np.cos(x / 23) - 4], 1)


@pytest.mark.parametrize("alpha", [255, 128])
def test_a_layer_at_rest_is_its_texture_bit_for_bit(alpha: int) -> None:
    sheet = layer(alpha)
    assert np.array_equal(drawn(sheet, lambda p: p), at_rest(sheet))


def test_moving_by_whole_pixels_moves_the_bits() -> None:
    sheet = layer()
    moved = drawn(sheet, lambda p: p + np.array([5, -3]))
    assert np.array_equal(moved[:-3, 5:], at_rest(sheet)[3:, :-5])


def test_every_pixel_is_drawn_exactly_once() -> None:
    # half-covered texels drawn twice would reach an alpha of 192, a gap would leave 0
    alpha = drawn(layer(128), wobble)[..., 3]
    solid = cv2.erode((cv2.GaussianBlur(alpha, (0, 0), 3) > 100).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert solid.sum() > 2500
    assert set(np.unique(alpha[solid])) == {128}


def test_a_turn_is_close_to_opencvs_warp() -> None:
    sheet = layer()
    matrix = cv2.getRotationMatrix2D((60, 50), 33, 0.9)
    got = drawn(sheet, lambda p: p @ matrix[:, :2].T + matrix[:, 2])
    shift = matrix.copy()
    shift[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    want = cv2.warpAffine(at_rest(sheet), shift, CANVAS, flags=cv2.INTER_LINEAR)
    inner = cv2.erode((want[..., 3] == 255).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    gap = np.abs(got.astype(int) - want.astype(int))[inner]
    assert inner.sum() > 3000
    # cv2 rounds positions to 1/32 px: that alone costs a few levels on this texture
    assert np.percentile(gap, 99) <= 4


def test_the_opaque_short_cut_changes_nothing() -> None:
    assert np.array_equal(drawn(layer(), wobble), drawn(layer(), wobble, opaque=False))


@pytest.mark.parametrize("shift", [(-500, 0), (0, 500), (-40.5, -33.3), (70.2, 55.7), (1e9, -1e9)])
def test_nothing_is_written_outside_the_picture(shift: tuple[float, float]) -> None:
    frame = drawn(layer(), lambda p: p + shift)
    assert frame.shape == (100, 120, 4)
    if abs(shift[0]) >= 500 or abs(shift[1]) >= 500:
        assert not frame.any()


def test_flat_and_folded_triangles_do_no_harm() -> None:
    assert not drawn(layer(), lambda p: p * [1, 0] + [0, 50.2]).any()
    folded = drawn(layer(), lambda p: np.stack([np.abs(p[:, 0] - 60) + 20, p[:, 1]], 1))
    assert (folded[30:70, 25:50, 3] == 255).all()


def test_compositing_is_premultiplied_over() -> None:
    sheet = layer(128)
    mesh = build(sheet, 10.0, CANVAS)
    frame = np.full((100, 120, 4), 255, np.uint8)
    frame[..., :3] = (200, 100, 0)
    below = frame.astype(np.float64).copy()
    dirty = np.array([120, 100, 0, 0], np.int64)
    raster.draw(
        frame, raster.pack(sheet.texture), *sheet.origin, mesh.vertices, mesh.vertices, mesh.triangles, mesh.opaque,
        dirty,
    )  # fmt: skip
    above = at_rest(sheet).astype(np.float64)
    want = above + below * (1 - above[..., 3:] / 255)
    assert np.abs(frame - want).max() <= 0.5 + 1e-9


def test_straight_colours_come_back() -> None:
    straight = np.zeros((1, 255, 4), np.uint8)
    straight[0, :, 3] = np.arange(1, 256)
    straight[..., :3] = (250, 120, 3)
    premultiplied = straight.copy()
    premultiplied[..., :3] = np.rint(straight[..., :3] * (straight[..., 3:] / 255.0))
    raster.straighten(premultiplied, np.array([0, 0, 255, 1], np.int64))
    solid = straight[0, :, 3] > 60
    assert np.abs(premultiplied[0, solid].astype(int) - straight[0, solid].astype(int)).max() <= 3
    assert np.array_equal(premultiplied[..., 3], straight[..., 3])


def test_a_mirrored_layer_gets_the_mirrored_mesh() -> None:
    sheet = layer()
    x = CANVAS[0] - sheet.origin[0] - sheet.texture.shape[1]
    other = Layer("body", np.ascontiguousarray(sheet.texture[:, ::-1]), (x, sheet.origin[1]))
    one, two = build(sheet, 7.0, CANVAS), build(other, 7.0, CANVAS)

    def triangles(vertices: NDArray[np.float64], indices: NDArray[np.int32]) -> set[frozenset[tuple[float, ...]]]:
        return {frozenset(map(tuple, vertices[t].tolist())) for t in indices}

    assert triangles(one.vertices * [-1, 1] + [CANVAS[0], 0], one.triangles) == triangles(two.vertices, two.triangles)


def test_cells_grow_with_the_figure() -> None:
    assert cell_size(100) < cell_size(768) < cell_size(2000)
