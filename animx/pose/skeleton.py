"""The skeleton: joints of the `openpose-134` layout, the kinematic tree, bone groups, limbs and colours.

Order and drawing tables follow the released pose extraction (reference facts 9.3 and 10).  Left and right are the
character's own.  0-17 body (OpenPose), 18-23 feet, 24-91 face (iBUG 68), 92-112 left hand, 113-133 right hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

LAYOUT = "openpose-134"
JOINTS = 134

BODY_NAMES: tuple[str, ...] = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
FOOT_NAMES: tuple[str, ...] = (
    "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel",
)  # fmt: skip

NOSE, NECK = 0, 1
R_SHOULDER, R_ELBOW, R_WRIST, L_SHOULDER, L_ELBOW, L_WRIST = 2, 3, 4, 5, 6, 7
R_HIP, R_KNEE, R_ANKLE, L_HIP, L_KNEE, L_ANKLE = 8, 9, 10, 11, 12, 13
R_EYE, L_EYE, R_EAR, L_EAR = 14, 15, 16, 17
L_BIG_TOE, L_SMALL_TOE, L_HEEL, R_BIG_TOE, R_SMALL_TOE, R_HEEL = 18, 19, 20, 21, 22, 23

BODY = range(18)
FEET = range(18, 24)
FACE = range(24, 92)
LEFT_HAND = range(92, 113)
RIGHT_HAND = range(113, 134)

JOINT_NAMES: tuple[str, ...] = (
    *BODY_NAMES,
    *FOOT_NAMES,
    *(f"face_{i}" for i in range(68)),
    *(f"left_hand_{i}" for i in range(21)),
    *(f"right_hand_{i}" for i in range(21)),
)

MID_HIP = JOINTS
"""Index of the virtual root (middle of the hips) in parent tables; it is no joint of the layout."""


def _parents() -> tuple[int, ...]:
    parent = [NECK] * JOINTS
    parent[NECK] = MID_HIP
    parent[R_HIP] = parent[L_HIP] = MID_HIP
    for chain in ((R_SHOULDER, R_ELBOW, R_WRIST), (L_SHOULDER, L_ELBOW, L_WRIST)):
        parent[chain[1]], parent[chain[2]] = chain[0], chain[1]
    for chain in ((R_HIP, R_KNEE, R_ANKLE), (L_HIP, L_KNEE, L_ANKLE)):
        parent[chain[1]], parent[chain[2]] = chain[0], chain[1]
    for i in (R_EYE, L_EYE, *FACE):
        parent[i] = NOSE
    parent[R_EAR], parent[L_EAR] = R_EYE, L_EYE
    for i in (L_BIG_TOE, L_SMALL_TOE, L_HEEL):
        parent[i] = L_ANKLE
    for i in (R_BIG_TOE, R_SMALL_TOE, R_HEEL):
        parent[i] = R_ANKLE
    for hand, wrist in ((LEFT_HAND, L_WRIST), (RIGHT_HAND, R_WRIST)):
        parent[hand[0]] = wrist
        for k in range(1, 21):
            parent[hand[k]] = hand[0] if k % 4 == 1 else hand[k - 1]
    return tuple(parent)


PARENT: tuple[int, ...] = _parents()
"""Parent of each joint in the kinematic tree; `MID_HIP` is the root."""


def mirror_index() -> tuple[int, ...]:
    """For each joint the joint that takes its place in a mirrored picture (sides swapped)."""
    swap = list(range(JOINTS))
    for a, b in ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (14, 15), (16, 17), (18, 21), (19, 22), (20, 23)):
        swap[a], swap[b] = b, a
    for left, right in zip(LEFT_HAND, RIGHT_HAND, strict=True):
        swap[left], swap[right] = right, left
    face = (
        *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,
        45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
        54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
    )  # fmt: skip
    for i, j in enumerate(face):
        swap[FACE[0] + i] = FACE[0] + j
    return tuple(swap)


@dataclass(frozen=True)
class Bone:
    """A bone: from `parent` to `child` (`MID_HIP` allowed as parent)."""

    name: str
    parent: int
    child: int


BONES: tuple[Bone, ...] = (
    Bone("torso", MID_HIP, NECK),
    Bone("neck", NECK, NOSE),
    Bone("right_shoulder", NECK, R_SHOULDER),
    Bone("right_upper_arm", R_SHOULDER, R_ELBOW),
    Bone("right_forearm", R_ELBOW, R_WRIST),
    Bone("left_shoulder", NECK, L_SHOULDER),
    Bone("left_upper_arm", L_SHOULDER, L_ELBOW),
    Bone("left_forearm", L_ELBOW, L_WRIST),
    Bone("right_hip", MID_HIP, R_HIP),
    Bone("right_thigh", R_HIP, R_KNEE),
    Bone("right_shin", R_KNEE, R_ANKLE),
    Bone("left_hip", MID_HIP, L_HIP),
    Bone("left_thigh", L_HIP, L_KNEE),
    Bone("left_shin", L_KNEE, L_ANKLE),
    Bone("right_eye", NOSE, R_EYE),
    Bone("left_eye", NOSE, L_EYE),
    Bone("right_ear", R_EYE, R_EAR),
    Bone("left_ear", L_EYE, L_EAR),
)
"""The body's bones, root first: a parent bone stands before its children."""

GROUP_NAMES: tuple[str, ...] = (
    "head", "face", "neck", "shoulders", "torso", "arms", "upper_arms", "forearms", "hands",
    "hips", "legs", "thighs", "shins", "feet",
)  # fmt: skip
"""Bone groups a preset may name; all but head, face, neck and torso also exist as `left_...` and `right_...`."""

SIDED: frozenset[str] = frozenset(GROUP_NAMES) - {"head", "face", "neck", "torso"}

LIMBS: tuple[tuple[int, int], ...] = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (13, 18), (10, 19),
)  # fmt: skip
"""Limbs of the released drawing in drawing order, indices into its 20-point body (18 = left toes, 19 = right toes)."""

COLOURS: tuple[tuple[int, int, int], ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
    (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
    (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85), (170, 255, 255), (255, 255, 0),
)  # fmt: skip
"""Colours of the released drawing by limb and joint index, in its own channel order."""

TEMPLATE: MappingProxyType[int, tuple[float, float]] = MappingProxyType({
    0: (0.0, -0.46), 1: (0.0, -0.29), 2: (-0.115, -0.29), 3: (-0.15, -0.12), 4: (-0.16, 0.03),
    5: (0.115, -0.29), 6: (0.15, -0.12), 7: (0.16, 0.03), 8: (-0.065, 0.0), 9: (-0.07, 0.235), 10: (-0.075, 0.46),
    11: (0.065, 0.0), 12: (0.07, 0.235), 13: (0.075, 0.46), 14: (-0.02, -0.48), 15: (0.02, -0.48),
    16: (-0.045, -0.47), 17: (0.045, -0.47),
})  # fmt: skip
"""A standing template body seen from the front: joint -> (x, y) about mid-hip, in units of the standing height."""
