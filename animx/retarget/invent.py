"""Joints that nobody saw: mirrored from the other side, or taken from a standing template body.

Arrays are float64, one person: T frames, K joints, D = 2 or 3 (with depth).  All template vectors are in units of the
standing height, seen from the front: x to the character's left, y down, relative to the joint's parent.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from animx.pose.skeleton import (
    BONES,
    FACE,
    JOINTS,
    L_HIP,
    L_SHOULDER,
    L_WRIST,
    LEFT_HAND,
    MID_HIP,
    NECK,
    PARENT,
    R_HIP,
    R_SHOULDER,
    R_WRIST,
    RIGHT_HAND,
    TEMPLATE,
    mirror_index,
)
from animx.retarget.groups import UNIT_OF
from animx.retarget.tree import HIP_UNKNOWN, Array, Bools, mid_hip

MAX_SCORE = 0.5
"""Highest score of an invented joint."""

HAND_LENGTH = 0.105
"""Wrist to the tip of the middle finger, in standing heights."""

_FOOT = ((0.012, 0.032), (0.034, 0.028), (-0.004, 0.018))  # big toe, small toe, heel of the left foot
_FINGER_BASE = ((0.22, 0.20), (0.48, 0.14), (0.50, 0.04), (0.47, -0.06), (0.42, -0.15))  # (forward, to the thumb)
_FINGER_TIP = ((0.58, 0.42), (0.92, 0.20), (1.00, 0.05), (0.93, -0.10), (0.76, -0.24))


def _arc(count: int, start: float, end: float, centre: tuple[float, float], radii: tuple[float, float]) -> Array:
    angles = np.radians(np.linspace(start, end, count))
    return np.stack([centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)], axis=1)


def _face() -> Array:
    """[68, 2] face points about the nose joint; angles run clockwise on the screen, 180 = the character's right."""
    eye = np.array([180.0, 240, 300, 0, 60, 120])

    def ring(angles: NDArray[np.float64], centre: tuple[float, float], radii: tuple[float, float]) -> Array:
        turn = np.radians(angles)
        return np.stack([centre[0] + radii[0] * np.cos(turn), centre[1] + radii[1] * np.sin(turn)], axis=1)

    return np.concatenate(
        [
            _arc(17, 180, 0, (0, -0.012), (0.043, 0.064)),  # jaw, over the chin
            _arc(5, 205, 320, (-0.021, -0.030), (0.015, 0.009)),  # right brow
            _arc(5, 220, 335, (0.021, -0.030), (0.015, 0.009)),  # left brow
            np.stack([np.zeros(4), np.linspace(-0.021, 0.0, 4)], axis=1),  # bridge of the nose
            _arc(5, 160, 20, (0, 0.003), (0.010, 0.004)),  # nostrils
            ring(eye, (-0.020, -0.020), (0.0075, 0.0035)),
            ring(eye, (0.020, -0.020), (0.0075, 0.0035)),
            ring(np.arange(180.0, 540, 30), (0, 0.026), (0.016, 0.007)),  # lips outside
            ring(np.arange(180.0, 540, 45), (0, 0.026), (0.011, 0.003)),  # lips inside
        ]
    )


@cache
def template() -> dict[int, tuple[float, float]]:
    """For every joint but those of the hands its vector from its parent (hands: see `hand_template`)."""
    vectors = {}
    for joint, (x, y) in TEMPLATE.items():
        px, py = (0.0, 0.0) if PARENT[joint] == MID_HIP else TEMPLATE[PARENT[joint]]
        vectors[joint] = (x - px, y - py)
    for k, (x, y) in enumerate(_FOOT):
        vectors[18 + k], vectors[21 + k] = (x, y), (-x, y)
    for k, (x, y) in enumerate(_face()):
        vectors[FACE[0] + k] = (float(x), float(y))
    return vectors


@cache
def hand_template() -> tuple[tuple[float, float], ...]:
    """For the 21 joints of a hand the vector from its parent as (along the forearm, towards the thumb)."""
    places = [(0.0, 0.0)]
    for base, tip in zip(_FINGER_BASE, _FINGER_TIP, strict=True):
        places += [tuple(np.add(base, np.subtract(tip, base) * k / 3)) for k in range(4)]
    vectors = [(0.0, 0.0)]
    for k in range(1, 21):
        before = places[0] if k % 4 == 1 else places[k - 1]
        vectors.append(((places[k][0] - before[0]) * HAND_LENGTH, (places[k][1] - before[1]) * HAND_LENGTH))
    return tuple(vectors)


@cache
def _outwards() -> tuple[int, ...]:
    def depth(joint: int) -> int:
        return 0 if joint == MID_HIP else 1 + depth(PARENT[joint])

    return tuple(sorted(range(JOINTS), key=depth))


def body_size(points: Array, visible: Bools, mid: Array, known: Bools, factors: Array) -> float:
    """The standing height [px] that fits the visible bones best: the median over bones of length / template length.

    Lengths are medians over frames, divided by the cumulative `factors` [U].  0 when no bone is visible.
    """
    sizes = []
    for bone in BONES[:14]:
        parent_seen = known if bone.parent == MID_HIP else visible[:, bone.parent]
        seen = parent_seen & visible[:, bone.child]
        if seen.any():
            start = mid[seen] if bone.parent == MID_HIP else points[seen, bone.parent]
            length = float(np.median(np.linalg.norm((points[seen, bone.child] - start)[:, :2], axis=1)))
            sizes.append(length / (math.hypot(*template()[bone.child]) * float(factors[UNIT_OF[bone.child]])))
    return float(np.median(sizes)) if sizes else 0.0


def _unit(vectors: Array, otherwise: Array) -> Array:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), otherwise)


def invent(
    points: Array, scores: NDArray[np.float32], wanted: Bools, factors: Array
) -> tuple[Array, NDArray[np.float32]]:
    """Places [T, K, D] and scores [T, K] with the `wanted` joints [T, K] invented where their parent has a place.

    `factors` [U] are the cumulative ones of the poses; template lengths are multiplied by them.
    """
    points, trust = points.copy(), scores.copy()
    seen = scores > 0
    mid, state = mid_hip(points, seen, factors)
    known = state != HIP_UNKNOWN
    size = body_size(points, seen, mid, known, factors)
    if size <= 0:
        return points, trust

    # the body's own axes per frame: up the torso, and to the character's left on the screen
    upright = np.tile([0.0, -1.0], (len(points), 1))
    torso = known & seen[:, NECK]
    up = np.where(torso[:, None], _unit((points[:, NECK] - mid)[:, :2], upright), upright)
    right_on_screen = np.stack([-up[:, 1], up[:, 0]], axis=1)
    facing = np.zeros(len(points))
    for a, b in ((R_SHOULDER, L_SHOULDER), (R_HIP, L_HIP)):
        width = ((points[:, b] - points[:, a])[:, :2] * right_on_screen).sum(axis=1)
        facing = np.where((facing == 0) & seen[:, a] & seen[:, b], np.sign(width), facing)
    to_left = right_on_screen * np.where(facing == 0, 1.0, facing)[:, None]

    # the root's trust, and its place below the neck where no hip was ever seen
    mid_trust = np.where(known, np.maximum(trust[:, R_HIP], trust[:, L_HIP]), 0).astype(np.float32)
    mid_trust = np.where(known & (mid_trust == 0), trust[:, NECK], mid_trust)
    below = ~known & seen[:, NECK]
    mid = mid.copy()
    mid[below] = points[below, NECK]
    mid[below, :2] -= up[below] * (size * factors[UNIT_OF[NECK]] * abs(template()[NECK][1]))
    mid_trust = np.where(below, trust[:, NECK], mid_trust)
    known = known | below

    mirror = mirror_index()
    for joint in _outwards():
        if not wanted[:, joint].any():
            continue
        parent, other = PARENT[joint], mirror[joint]
        start, start_trust = (mid, mid_trust) if parent == MID_HIP else (points[:, parent], trust[:, parent])
        here = wanted[:, joint] & (start_trust > 0)
        stretch = factors[UNIT_OF[joint]]
        vector = np.zeros_like(points[:, joint])
        vector[:, :2] = _from_template(joint, points, trust, up, to_left) * (size * stretch)
        if other != joint:
            other_parent = PARENT[other]
            origin = mid if other_parent == MID_HIP else points[:, other_parent]
            both = seen[:, other] & (known if other_parent == MID_HIP else seen[:, other_parent])
            copied = (points[:, other] - origin) * (stretch / factors[UNIT_OF[other]])
            copied[:, :2] -= 2 * (copied[:, :2] * to_left).sum(axis=1, keepdims=True) * to_left
            vector = np.where(both[:, None], copied, vector)
        points[here, joint] = (start + vector)[here]
        trust[here, joint] = np.minimum(start_trust[here], MAX_SCORE)
    return points, trust


def _from_template(joint: int, points: Array, trust: NDArray[np.float32], up: Array, to_left: Array) -> Array:
    """[T, 2] the template's vector of `joint` from its parent in the body's axes, in standing heights."""
    for hand, wrist, side in ((LEFT_HAND, L_WRIST, 1.0), (RIGHT_HAND, R_WRIST, -1.0)):
        if joint in hand:
            arm = (trust[:, wrist] > 0) & (trust[:, wrist - 1] > 0)
            along = np.where(arm[:, None], _unit((points[:, wrist] - points[:, wrist - 1])[:, :2], -up), -up)
            across = np.stack([-along[:, 1], along[:, 0]], axis=1)
            across *= np.where((across * to_left).sum(axis=1, keepdims=True) * side > 0, -1.0, 1.0)
            forward, thumb = hand_template()[joint - hand[0]]
            reach: Array = along * forward + across * thumb
            return reach
    x, y = template()[joint]
    vector: Array = to_left * x - up * y
    return vector
