"""The kinematic tree at work: the middle of the hips, and bones made longer or shorter with all that hangs on them.

Arrays are float64.  Letters: N frames of one person, K joints (all 134, or the first few), D = 2 (x, y) or 3 (with
depth), U the 19 units of `groups`.  The tree is the one of `animx.pose.skeleton`, with the fingers hung on the root of
their hand: they share one factor, so it comes to the same.

A joint whose parent is missing hangs on its nearest visible ancestor.  The bone between them stands for several, and
gets the geometric mean of their factors weighted with the template's lengths, so that two rescales still compose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from animx.pose.skeleton import (
    JOINTS,
    L_EYE,
    L_HIP,
    LEFT_HAND,
    MID_HIP,
    NECK,
    PARENT,
    R_EYE,
    R_HIP,
    RIGHT_HAND,
    TEMPLATE,
)
from animx.retarget.groups import UNIT_OF

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

CHUNK = 512
"""Frames worked on at once, so that a long clip needs little memory beside its own arrays."""

HIP_BOTH, HIP_GUESSED, HIP_UNKNOWN = 2, 1, 0

_INTERNAL: tuple[int, ...] = (*range(R_EYE), R_EYE, L_EYE, LEFT_HAND[0], RIGHT_HAND[0], MID_HIP)
_BITS = 1 << np.arange(len(_INTERNAL))


def _flat_parent() -> tuple[int, ...]:
    parent = [*PARENT, -1]
    for hand in (LEFT_HAND, RIGHT_HAND):
        for joint in hand[1:]:
            parent[joint] = hand[0]
    return tuple(parent)


FLAT_PARENT = _flat_parent()


def _template_length(joint: int) -> float:
    if joint in TEMPLATE:
        parent = (0.0, 0.0) if PARENT[joint] == MID_HIP else TEMPLATE[PARENT[joint]]
        return float(np.hypot(TEMPLATE[joint][0] - parent[0], TEMPLATE[joint][1] - parent[1]))
    return 1e-3 if joint in (LEFT_HAND[0], RIGHT_HAND[0]) else 0.04


@dataclass(frozen=True)
class Plan:
    """How the joints hang together under one pattern of visible inner joints."""

    anchor: NDArray[np.intp]  # [K] the node each joint hangs on, itself for one that hangs on nothing
    roots: NDArray[np.intp]
    levels: tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]  # (joints, their anchors), outwards
    compound: tuple[tuple[int, NDArray[np.intp], Array], ...]  # (joint, units on its way, their weights)
    order: NDArray[np.intp]  # [K] all joints, each behind the one it hangs on

    def stretches(self, factors: Array) -> Array:
        """[K] How many times as long the bone that ends at each joint becomes, by the factors [U] of its units."""
        stretch: Array = factors[UNIT_OF[: len(self.anchor)]]
        for joint, units, weights in self.compound:
            stretch[joint] = np.exp(weights @ np.log(factors[units]))
        return stretch


@lru_cache(maxsize=4096)
def _plan(pattern: int, joints: int) -> Plan:
    visible = {node for bit, node in enumerate(_INTERNAL) if pattern >> bit & 1}
    anchor, depth = list(range(joints)), [0] * joints
    compound = []

    def place(joint: int) -> int:
        skipped, node = [joint], FLAT_PARENT[joint]
        while node >= 0 and node not in visible:
            skipped.append(node)
            node = FLAT_PARENT[node]
        if node < 0:
            return 0
        anchor[joint] = node
        if len(skipped) > 1:
            weights = np.array([_template_length(j) for j in skipped if j != MID_HIP])
            compound.append((joint, UNIT_OF[[j for j in skipped if j != MID_HIP]], weights / weights.sum()))
        return 1 if node == MID_HIP else 1 + max(depth[node], 0)

    # parents first: the body's joint numbers do not run outwards, so go by their depth in the full tree
    def full_depth(joint: int) -> int:
        return 0 if FLAT_PARENT[joint] < 0 else 1 + full_depth(FLAT_PARENT[joint])

    for joint in sorted(range(joints), key=full_depth):
        depth[joint] = place(joint)
    levels = []
    for level in range(1, max(depth) + 1):
        members = np.array([j for j in range(joints) if depth[j] == level], np.intp)
        levels.append((members, np.array([anchor[j] for j in members], np.intp)))
    roots = np.array([j for j in range(joints) if depth[j] == 0], np.intp)
    order = np.concatenate([roots, *(members for members, _ in levels)])
    return Plan(np.array(anchor, np.intp), roots, tuple(levels), tuple(compound), order)


@lru_cache
def _inner(joints: int) -> tuple[NDArray[np.intp], NDArray[np.int_]]:
    """The inner nodes among the first `joints` (without the root) and their bits in a pattern."""
    inner = [node for node in _INTERNAL if node < joints]
    return np.array(inner, np.intp), _BITS[[_INTERNAL.index(node) for node in inner]]


def mid_hip(points: Array, visible: Bools, factors: Array) -> tuple[Array, NDArray[np.int8]]:
    """The root of the tree in every frame: [N, D] and how it is known [N] (`HIP_BOTH`, `_GUESSED`, `_UNKNOWN`).

    Both hips visible: the point between them, nearer to the hip whose bone is the shorter by `factors` [U] (the
    cumulative ones), so that rescaling one hip does not move the root.  One hip: at its median distance from there.
    None: at the median distance from the neck.  A median over no frame gives the joint itself; no neck: unknown.
    """
    right, left = points[:, R_HIP], points[:, L_HIP]
    see_right, see_left = visible[:, R_HIP], visible[:, L_HIP]
    f_right, f_left = factors[UNIT_OF[R_HIP]], factors[UNIT_OF[L_HIP]]
    mid = (right * f_left + left * f_right) / (f_left + f_right) if f_left != f_right else (right + left) / 2
    both = see_right & see_left
    state = np.full(len(points), HIP_BOTH, np.int8)
    if both.all():
        return mid, state
    state[~both] = HIP_UNKNOWN
    for joint, seen in ((R_HIP, see_right & ~both), (L_HIP, see_left & ~both)):
        if seen.any():
            offset = median(mid[both] - points[both, joint]) if both.any() else 0.0
            mid[seen] = points[seen, joint] + offset
            state[seen] = HIP_GUESSED
    lost, known = state == HIP_UNKNOWN, (state != HIP_UNKNOWN) & visible[:, NECK]
    lost_with_neck = lost & visible[:, NECK]
    if lost_with_neck.any() and known.any():
        mid[lost_with_neck] = points[lost_with_neck, NECK] + median(mid[known] - points[known, NECK])
        state[lost_with_neck] = HIP_GUESSED
    return mid, state


def scale(points: Array, visible: Bools, mid: Array, known: Bools, factors: Array, root: float = 1.0) -> Array:
    """How far every joint moves [N, K, D] when each unit's bones are `factors` [U] times as long.

    `mid` [N, D] and `known` [N] are the root.  Joints that hang on nothing, the root among them, move to `root` times
    their coordinates.  A factor of 1 (and `root` 1) moves nothing by not even a rounding error.
    """
    frames, joints, dims = points.shape
    nodes = np.empty((JOINTS + 1, frames, dims))  # node-major: a gather of nodes is a copy of rows
    nodes[:joints] = points.transpose(1, 0, 2)
    nodes[MID_HIP] = mid
    moved = np.empty((joints, frames, dims))
    for pick, plan in patterns(visible, known, joints):
        if pick is None:
            moved = _scale(nodes, plan, factors, root)
        else:
            moved[:, pick] = _scale(nodes[:, pick], plan, factors, root)
    return moved.transpose(1, 0, 2)


def patterns(visible: Bools, known: Bools, joints: int) -> Iterator[tuple[NDArray[np.intp] | None, Plan]]:
    """The frames (None: all of them) that share a pattern of visible inner joints, with its plan.

    visible [N, >= joints]; `known` [N] says where the middle of the hips is.
    """
    inner, bits = _inner(joints)
    keys = visible[:, inner] @ bits + known * int(_BITS[-1])
    if (keys == keys[0]).all():
        yield None, _plan(int(keys[0]), joints)
        return
    for key in np.unique(keys):
        yield np.flatnonzero(keys == key), _plan(int(key), joints)


def _scale(nodes: Array, plan: Plan, factors: Array, root: float) -> Array:
    joints = len(plan.anchor)
    stretch = plan.stretches(factors) - 1
    moved = np.zeros_like(nodes)
    moved[:joints] = nodes[:joints]
    moved[:joints] -= nodes[plan.anchor]
    moved[:joints] *= stretch[:, None, None]
    if root != 1:
        moved[plan.roots] = nodes[plan.roots] * (root - 1)
        moved[MID_HIP] = nodes[MID_HIP] * (root - 1)
    else:
        moved[plan.roots] = 0
    for members, anchors in plan.levels:
        moved[members] += moved[anchors]
    return moved[:joints]


def median(values: Array) -> Array:
    """The median of each column of [N, D], N at least 1; several times as fast as numpy's on short clips."""
    ordered = np.sort(values, axis=0)
    middle: Array = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
    return middle


def lowest(y: Array, visible: Bools) -> tuple[Array, Bools]:
    """The largest y of some joints [N, J] in each frame [N], and where any of them is visible [N]."""
    if visible.all():
        reached: Array = y.max(axis=1)
        return reached, np.ones(len(y), bool)
    seen = visible.any(axis=1)
    found: Array = np.where(visible, y, -np.inf).max(axis=1)
    return np.where(seen, found, 0.0), seen


def over_gaps(values: Array, known: Bools, times: Array) -> Array:
    """Values [N, ...] with the unknown ones interpolated over time [s], held at the ends, 0 when none is known."""
    if known.all():
        return values
    if not known.any():
        return np.zeros_like(values)
    flat = values.reshape(len(values), -1).copy()
    for column in flat.T:
        column[~known] = np.interp(times[~known], times[known], column[known])
    return flat.reshape(values.shape)
