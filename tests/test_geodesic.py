"""Ways over pixels: as long as scikit-image's, one walk for all labels."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.graph import MCP_Geometric

from animx.puppet.geodesic import spread


def terrain(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((40, 55)) < 0.25, -1.0, 1.0 + 6 * rng.random((40, 55)))


@pytest.mark.parametrize("seed", range(4))
def test_ways_and_owners_are_those_of_one_walk_per_label(seed: int) -> None:
    cost = terrain(seed)
    labels = np.zeros(cost.shape, np.int8)
    labels[3:6, 4:8], labels[30, 40:50], labels[20, 2] = 1, 2, 3
    cost[labels > 0] = 1
    alone = np.stack([MCP_Geometric(cost).find_costs(np.argwhere(labels == k).tolist())[0] for k in (1, 2, 3)])
    owner, way = spread(cost, labels)
    reached = np.isfinite(alone.min(0)) & (cost >= 0)
    assert np.allclose(way[reached], alone.min(0)[reached], atol=1e-9)
    assert (owner[reached] == 1 + alone.argmin(0)[reached]).all()
    assert (owner[~reached] == 0).all()
    assert np.isinf(way[~reached]).all()


def test_walls_are_walked_round() -> None:
    cost = np.ones((9, 9))
    cost[:8, 4] = -1
    start = np.zeros(cost.shape, bool)
    start[0, 0] = True
    _, way = spread(cost, start)
    assert way[0, 8] > 14  # down, through the gap, up again: straight it would be 8
    assert np.isinf(way[:8, 4]).all()


def test_a_seed_on_closed_ground_does_not_start() -> None:
    cost = np.ones((5, 5))
    cost[2, 2] = -1
    start = np.zeros(cost.shape, bool)
    start[2, 2] = True
    owner, way = spread(cost, start)
    assert not owner.any()
    assert np.isinf(way).all()


def test_of_two_equal_ways_the_lower_label_wins() -> None:
    labels = np.zeros((1, 5), np.int8)
    labels[0, 0], labels[0, 4] = 2, 1
    owner, _ = spread(np.ones((1, 5)), labels)
    assert owner.tolist() == [[2, 2, 1, 1, 1]]
