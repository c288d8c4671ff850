"""Soft shadows on the floor are not cut out with the figure; a figure the net does not know is guessed, not refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from animx.canvas import Canvas
from animx.puppet import segment
from animx.puppet.mask import find_mask
from animx.puppet.shadow import floor_shadow
from animx_trainer import synthetic

CANVAS = Canvas(384, 576)


def drawn(kind: str, scene: str, shadow: float) -> tuple[np.ndarray, np.ndarray]:
    """A character on a scene with a shadow at its feet: RGB and true coverage."""
    who = replace(synthetic.character(kind), shadow=shadow)
    rgb, mask, _ = synthetic.draw_character(who, synthetic.rest_pose(who, CANVAS), CANVAS, background=scene)
    return rgb, mask > 0.5


def agreement(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / (found | true).sum())


@pytest.mark.parametrize("kind", ["human", "bottle", "ghost", "bear", "mushroom"])
@pytest.mark.parametrize("scene", ["plain", "mint"])
def test_a_shadow_on_the_floor_is_left_on_the_floor(kind: str, scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, true = drawn(kind, scene, 0.35)
    found = find_mask(rgb, net=lambda _: None)
    assert found.method == "flat ground"
    with_it = agreement(found.alpha > 0.5, true)
    monkeypatch.setattr(segment, "floor_shadow", lambda rgb, region, *_: np.zeros_like(region))
    without = agreement(find_mask(rgb, net=lambda _: None).alpha > 0.5, true)
    assert with_it >= 0.94
    assert with_it >= without + 0.02


def test_a_figure_without_a_shadow_loses_nothing() -> None:
    rgb, true = drawn("bear", "plain", 0.0)
    ground = segment.ground_of(rgb)
    assert floor_shadow(rgb, true, ground.surface, ground.noise).sum() < 0.005 * true.sum()


def test_grey_legs_on_a_grey_floor_are_held_by_their_outline() -> None:
    rgb = np.full((300, 200, 3), 200, np.uint8)
    true = np.zeros((300, 200), bool)
    true[60:280, 70:130] = True
    rgb[true] = (120, 120, 120)  # the ground's colour, only darker, as a shadow would be
    ground = segment.ground_of(rgb)
    assert not floor_shadow(rgb, true, ground.surface, ground.noise).any()


def test_a_figure_that_the_net_does_not_see_is_guessed_and_that_is_said() -> None:
    rgb, true = drawn("ghost", "meadow", 0.2)
    found = find_mask(rgb, net=lambda view: np.zeros(view.shape[:2], np.float32))
    assert found.method == "grabcut"
    assert any("guessed" in note for note in found.notes)
    assert agreement(found.alpha > 0.5, true) >= 0.9
