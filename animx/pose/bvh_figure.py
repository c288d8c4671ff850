"""A BVH motion as a pose sequence: rig joints found by name, projected from the front.

In: BVH text of a human rig (Mixamo, CMU, AnimatedDrawings, Biped, SMPL and their kin).  Out: a `PoseSequence` of one
person, all scores 1, with depth [px towards the viewer, about mid-hip].

The projection is orthographic.  The camera stands where the figure looks on average over the clip, so that a turn is
seen as a turn; up is the axis along which the figure stands.  Size: all frames together fill 90 % of the canvas.  The
neck is the middle of the shoulders; nose, eyes and ears lie on a sphere about the head; the 68 face points are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose.bvh import Array, Motion, parse, positions
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import (
    JOINTS,
    L_ANKLE,
    L_BIG_TOE,
    L_EAR,
    L_ELBOW,
    L_EYE,
    L_HIP,
    L_KNEE,
    L_SHOULDER,
    L_SMALL_TOE,
    L_WRIST,
    LEFT_HAND,
    NECK,
    NOSE,
    R_ANKLE,
    R_BIG_TOE,
    R_EAR,
    R_ELBOW,
    R_EYE,
    R_HIP,
    R_KNEE,
    R_SHOULDER,
    R_SMALL_TOE,
    R_WRIST,
    RIGHT_HAND,
)

CANVAS = Canvas(640, 960)
"""The canvas a motion is projected to [px]."""
FILL = 0.9
"""Part of the canvas that the motion fills, in the direction that is fuller."""

_NAMES: dict[str, tuple[str, ...]] = {
    "shoulder": ("arm", "uparm", "upperarm", "shoulder"),
    "elbow": ("elbow", "forearm", "lowarm", "lowerarm"),
    "wrist": ("wrist", "hand"),
    "hip": ("upleg", "thigh", "upperleg", "hip"),
    "knee": ("knee", "shin", "calf", "lowleg", "lowerleg", "leg"),
    "ankle": ("ankle", "foot"),
    "toe": ("toebase", "toe", "toes", "toe0", "ball", "foot"),
}
"""Names of a joint in the rigs of the world, without side, the surer first (`shoulder` is often the collar bone)."""
_BODY = {
    "shoulder": (L_SHOULDER, R_SHOULDER),
    "elbow": (L_ELBOW, R_ELBOW),
    "wrist": (L_WRIST, R_WRIST),
    "hip": (L_HIP, R_HIP),
    "knee": (L_KNEE, R_KNEE),
    "ankle": (L_ANKLE, R_ANKLE),
}
_FINGERS = ("thumb", "index", "middle", "ring", "pinky")


def read(text: str, where: str, canvas: Canvas | None = None) -> PoseSequence:
    """A BVH text as a pose sequence on `canvas` (640x960).  `InputError` names joints that the rig lacks."""
    motion = parse(text, where)
    found = _find(motion, where)
    place, turn = positions(motion)
    points = np.zeros((len(place), JOINTS, 3))
    seen = np.zeros(JOINTS, np.bool_)
    for ours, theirs in found.items():
        if isinstance(ours, int):
            points[:, ours] = place[:, theirs]
            seen[ours] = True
    points[:, NECK] = points[:, [L_SHOULDER, R_SHOULDER]].mean(axis=1)
    seen[NECK] = True
    up = _up(points)
    view = _view(points, up, where)
    _head(points, seen, place, turn, motion, found, up)
    flat = points @ view.T  # [T, K, 3]: right in the picture, down, towards the viewer
    canvas = canvas or CANVAS
    low, high = (limit(flat[:, seen, :2], axis=(0, 1)) for limit in (np.min, np.max))
    extent = high - low
    if not extent.max() > 1e-9:
        raise InputError(f"{where}: all joints lie in one point")
    scale = FILL * float(np.min(np.array(canvas.size) / np.maximum(extent, 1e-9)))
    depth = (flat[..., 2] - flat[:, [L_HIP, R_HIP], 2].mean(axis=1, keepdims=True)) * scale
    shown = (flat[..., :2] - (low + high) / 2) * scale + np.array(canvas.size) / 2
    return PoseSequence(
        keypoints=np.where(seen[:, None], shown, 0).astype(np.float32)[:, None],
        scores=np.broadcast_to(seen.astype(np.float32), (len(place), JOINTS))[:, None],
        canvas=canvas,
        fps=_rate(motion.frame_time),
        depth=np.where(seen, depth, 0).astype(np.float32)[:, None],
        source={"format": "bvh"},
    )


def _rate(frame_time: float) -> Fraction:
    """The rate that a rounded frame time means: a whole one, or NTSC's thousand in 1001."""
    rate = 1 / frame_time
    for guess, tolerance in ((Fraction(round(rate * 1.001) * 1000, 1001), 3e-5), (Fraction(round(rate)), 1.2e-3)):
        if guess > 0 and abs(float(guess) - rate) <= tolerance * rate:
            return guess
    return Fraction(rate).limit_denominator(1000)


# ---- joint names -------------------------------------------------------------------------------------------------


def _key(name: str) -> str:
    """A joint's name without prefix, its side first: `mixamorig:LeftForeArm`, `Bip01 L Forearm`, `l_forearm` ->
    `l forearm`.
    """
    name = re.sub(r"^[a-z0-9]+:|^(mixamorig|bip)\d*[\s_]+", "", name, flags=re.IGNORECASE)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = [word for word in re.split(r"[\s_.:\-]+", name.lower()) if word]
    for word in ("left", "l", "right", "r"):
        if word in words:
            words.remove(word)
            return f"{word[0]} {''.join(words)}"
    joined = "".join(words)
    for word in ("left", "right"):
        if joined.startswith(word):
            return f"{word[0]} {joined[len(word) :]}"
    return joined


def _find(motion: Motion, where: str) -> dict[int | str, int]:
    """Our joints (and `head`) -> joints of the rig.  `InputError` names those that are not found."""
    keys: dict[str, int] = {}
    for j, joint in enumerate(motion.joints):
        if not joint.is_end:
            keys.setdefault(_key(joint.name), j)
    found: dict[int | str, int] = {}
    missing = []
    for part, sides in _BODY.items():
        for side, ours in zip("lr", sides, strict=True):
            hit = next((keys[name] for name in (f"{side} {n}" for n in _NAMES[part]) if name in keys), None)
            if hit is None:
                missing.append(f"{'left' if side == 'l' else 'right'} {part}")
            else:
                found[ours] = hit
    head = next((keys[name] for name in ("head", "head1", "neck1", "neck") if name in keys), None)
    if head is None:
        missing.append("head")
    else:
        found["head"] = head
    if missing:
        rig = ", ".join(joint.name for joint in motion.joints if not joint.is_end)[:300]
        raise InputError(f"{where}: no joint found for {', '.join(missing)}. The rig's joints: {rig}")
    _find_toes(motion, keys, found)
    _find_fingers(motion, keys, found)
    return found


def _find_toes(motion: Motion, keys: Mapping[str, int], found: dict[int | str, int]) -> None:
    for side, big, small, ankle in (("l", L_BIG_TOE, L_SMALL_TOE, L_ANKLE), ("r", R_BIG_TOE, R_SMALL_TOE, R_ANKLE)):
        hits = (keys.get(f"{side} {name}") for name in _NAMES["toe"])
        toe = next((hit for hit in hits if hit is not None and hit != found[ankle]), None)
        tip = _end(motion, found[ankle] if toe is None else toe)
        point = toe if tip is None else tip
        if point is not None:
            found[big] = found[small] = point


def _find_fingers(motion: Motion, keys: Mapping[str, int], found: dict[int | str, int]) -> None:
    for side, hand, wrist in (("l", LEFT_HAND, L_WRIST), ("r", RIGHT_HAND, R_WRIST)):
        for f, finger in enumerate(_FINGERS):
            for k in range(1, 5):
                hit = keys.get(f"{side} hand{finger}{k}", keys.get(f"{side} {finger}{k}"))
                if hit is None and k == 4 and hand[4 * f + 3] in found:
                    hit = _end(motion, found[hand[4 * f + 3]])
                if hit is not None:
                    found[hand[4 * f + k]] = hit
                    found[hand[0]] = found[wrist]


def _end(motion: Motion, joint: int) -> int | None:
    """The end site right under a joint, where it lies off the joint."""
    for j, other in enumerate(motion.joints):
        if other.parent == joint and other.is_end and np.abs(other.offset).max() > 1e-9:
            return j
    return None


# ---- projection --------------------------------------------------------------------------------------------------


def _up(points: Array) -> Array:
    """The coordinate axis along which the figure stands, from ankles over hips to neck, over all frames."""
    spine = (points[:, NECK] - points[:, [L_ANKLE, R_ANKLE]].mean(axis=1)).mean(axis=0)
    axis = int(np.abs(spine).argmax())
    up: Array = np.eye(3)[axis] * (1.0 if spine[axis] >= 0 else -1.0)
    return up


def _across(points: Array, up: Array) -> Array:
    """[T, 3]: from the character's right to its left, level."""
    across = points[:, L_SHOULDER] - points[:, R_SHOULDER] + points[:, L_HIP] - points[:, R_HIP]
    level: Array = across - (across @ up)[:, None] * up
    return level


def _view(points: Array, up: Array, where: str) -> Array:
    """Rows: picture right, picture down, towards the viewer, for a camera before the figure's average front."""
    across = _across(points, up)
    length = np.linalg.norm(across, axis=1)
    if not length.max() > 1e-9:
        raise InputError(f"{where}: shoulders and hips have no width, so the front is unknown")
    # The character's left is on the viewer's right.
    right = (across / np.maximum(length, 1e-12)[:, None]).mean(axis=0)
    if np.linalg.norm(right) < 0.2:  # it turns round and round: begin in front of it
        right = across[int((length > 1e-9).argmax())]
    right = right / np.linalg.norm(right)
    return np.stack([right, -up, np.cross(right, up)])


def _head(
    points: Array,
    seen: NDArray[np.bool_],
    place: Array,
    turn: Array,
    motion: Motion,
    found: Mapping[int | str, int],
    up: Array,
) -> None:
    """Put nose, eyes and ears on a sphere about the head that turns with the head joint."""
    head = found["head"]
    size = float(np.median(np.linalg.norm(points[:, L_SHOULDER] - points[:, R_SHOULDER], axis=1)))
    tip = _end(motion, head)
    if tip is not None:
        # Some rigs end the head in a short stub or far away: keep to human size.
        size = float(np.clip(np.linalg.norm(motion.joints[tip].offset), 0.4 * size, 1.2 * size))
    across = _across(points, up)
    norm = np.linalg.norm(across, axis=1)
    level = norm > 0.1 * norm.max()  # a figure lying on its side has no front in that frame
    left = across[level] / norm[level, None]
    # The head's own axes: where the body's left, up and front lie in its frame, by the median over the clip.
    axes = np.stack(
        [
            np.median(np.einsum("tji,tj->ti", turn[level, head], axis), axis=0)
            for axis in (left, np.broadcast_to(up, left.shape), np.cross(left, up))
        ],
        axis=1,
    )
    u, _, vt = np.linalg.svd(axes)
    mirror = np.diag([1.0, 1.0, 1.0 if np.linalg.det(u @ vt) > 0 else -1.0])
    world = turn[:, head] @ (u @ mirror @ vt)  # [T, 3, 3], columns: left, up, front
    radius = size * 0.5
    centre = place[:, head] + world[:, :, 1] * radius
    for joint, direction in {
        NOSE: (0.0, -0.1, 1.0),
        L_EYE: (0.38, 0.2, 0.9),
        R_EYE: (-0.38, 0.2, 0.9),
        L_EAR: (0.95, 0.05, 0.0),
        R_EAR: (-0.95, 0.05, 0.0),
    }.items():
        points[:, joint] = centre + radius * (world @ np.array(direction))
        seen[joint] = True
