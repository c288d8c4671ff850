"""Shortest ways over a picture's pixels: which seed a pixel is nearest to, and how far, when some ground costs more.

A step to one of the eight neighbours costs its length times the mean cost of the two pixels.  All seeds grow at once,
so a Voronoi cut of several labels costs one walk.  Deterministic: of equal ways the lower label wins.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.puppet.skin import compiled

ROOT2 = float(np.sqrt(2.0))


def spread(cost: NDArray[np.float64], labels: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """The label of the nearest seed [H, W] and the way to it, over pixels of `cost` >= 0 (negative: no way).

    `labels` [H, W]: 0 (or False) = no seed, 1.. (or True) = seeds of that label; a seed on closed ground does not
    start.  Pixels that no seed reaches get label 0 and an infinite way.
    """
    height, width = cost.shape
    closed = np.full((height + 2, width + 2), -1.0)  # a rim saves asking for the border at each step
    closed[1:-1, 1:-1] = cost
    seeds = np.pad(np.asarray(labels, np.int8), 1)
    owner, way = _walk(closed.ravel(), seeds.ravel(), width + 2)
    inner = np.s_[1:-1, 1:-1]
    return owner.reshape(closed.shape)[inner], way.reshape(closed.shape)[inner]


@compiled
def _walk(cost: NDArray[np.float64], seeds: NDArray[np.int8], stride: int) -> Any:
    owner = np.zeros(cost.size, np.int8)
    way = np.full(cost.size, np.inf)
    steps = np.array([-1, 1, -stride, stride, -stride - 1, -stride + 1, stride - 1, stride + 1])
    heap = [(0.0, np.int8(0), 0)]
    heap.pop()
    for at in range(cost.size):
        if seeds[at] > 0 and cost[at] >= 0:
            owner[at], way[at] = seeds[at], 0.0
            heap.append((0.0, seeds[at], at))
    heapq.heapify(heap)
    while len(heap) > 0:
        far, label, at = heapq.heappop(heap)
        if far > way[at] or label != owner[at]:
            continue
        for k in range(8):
            there = at + steps[k]
            if cost[there] < 0:
                continue
            length = 0.5 * (cost[at] + cost[there]) * (1.0 if k < 4 else ROOT2)
            if far + length < way[there] or (far + length == way[there] and label < owner[there]):
                way[there], owner[there] = far + length, label
                heapq.heappush(heap, (way[there], label, there))
    return owner, way
