"""Bone groups: what `legs`, `left_forearms` or `head` mean, for factors and for joints.

The smallest things that can have a factor of their own are the 19 units: the 14 bones of the body, the face, two hands
and two feet.  A group is a set of units; a factor of a group is a factor of each of its units, and the factors of all
groups that hold a unit multiply, so the order of the keys does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from animx.errors import AnimxError, UsageError, nearest
from animx.pose.skeleton import BONES, FACE, GROUP_NAMES, JOINT_NAMES, LEFT_HAND, NECK, RIGHT_HAND, SIDED

MAX_FACTOR = 100.0
"""Largest factor of a bone group; anything above is a slip of the finger."""


@dataclass(frozen=True)
class Unit:
    """Bones that always share one factor: its name in `history`, and the joints at the far ends of its bones."""

    name: str
    joints: tuple[int, ...]


_HEAD_BONES = ("right_eye", "left_eye", "right_ear", "left_ear")

UNITS: tuple[Unit, ...] = (
    *(Unit(bone.name, (bone.child,)) for bone in BONES if bone.name not in _HEAD_BONES),
    Unit("face", (14, 15, 16, 17, *FACE)),
    Unit("left_hand", tuple(LEFT_HAND)),
    Unit("right_hand", tuple(RIGHT_HAND)),
    Unit("left_foot", (18, 19, 20)),
    Unit("right_foot", (21, 22, 23)),
)
"""All units; every joint is the far end of exactly one bone, so it belongs to exactly one unit."""

UNIT_INDEX: MappingProxyType[str, int] = MappingProxyType({unit.name: i for i, unit in enumerate(UNITS)})

UNIT_OF: NDArray[np.intp] = np.array(
    [next(i for i, unit in enumerate(UNITS) if joint in unit.joints) for joint in range(len(JOINT_NAMES))]
)
"""[K] The unit of the bone that ends at each joint."""


def _groups() -> dict[str, tuple[str, ...]]:
    one_side = {
        "shoulders": ("shoulder",),
        "arms": ("upper_arm", "forearm"),
        "upper_arms": ("upper_arm",),
        "forearms": ("forearm",),
        "hands": ("hand",),
        "hips": ("hip",),
        "legs": ("thigh", "shin"),
        "thighs": ("thigh",),
        "shins": ("shin",),
        "feet": ("foot",),
    }
    middle = {"head": ("neck", "face"), "face": ("face",), "neck": ("neck",), "torso": ("torso",)}
    groups: dict[str, tuple[str, ...]] = {}
    for name in GROUP_NAMES:
        if name in SIDED:
            groups[name] = tuple(f"{side}_{unit}" for side in ("right", "left") for unit in one_side[name])
        else:
            groups[name] = middle[name]
    for name in GROUP_NAMES:
        if name in SIDED:
            for side in ("right", "left"):
                groups[f"{side}_{name}"] = tuple(f"{side}_{unit}" for unit in one_side[name])
    return groups


GROUPS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(_groups())
"""Group name -> the names of its units."""


def group_joints(name: str) -> tuple[int, ...]:
    """The joints that `drop` and `add` mean by a group or joint name, in layout order.

    `arms` means elbows and wrists: the shoulders stay, and hands are a group of their own.  `neck` and `torso` mean
    the neck joint.  An unknown name is a `UsageError`.
    """
    if name in ("neck", "torso"):
        return (NECK,)
    if name in GROUPS:
        return tuple(sorted(j for unit in GROUPS[name] for j in UNITS[UNIT_INDEX[unit]].joints))
    if name in JOINT_NAMES:
        return (JOINT_NAMES.index(name),)
    raise UsageError(f"unknown bone group or joint '{name}'.{nearest(name, (*GROUPS, *JOINT_NAMES))}")


def joints_of(names: Iterable[str]) -> tuple[int, ...]:
    """The joints of several groups or joint names, sorted, each once.  An unknown name is a `UsageError`."""
    if isinstance(names, str):
        raise UsageError(f"'{names}': expected a list of bone groups or joints, for example ['{names}']")
    return tuple(sorted({joint for name in names for joint in group_joints(name)}))


def check_group(name: str, error: type[AnimxError] = UsageError, where: str = "") -> None:
    """Refuse a name that is no bone group with `error`, naming the nearest known one."""
    if name not in GROUPS:
        raise error(f"{where}unknown bone group '{name}'.{nearest(name, GROUPS)}")


def check_factor(name: str, factor: object, error: type[AnimxError] = UsageError, where: str = "") -> float:
    """A factor as a float; not a number, not above 0 or above `MAX_FACTOR` is refused with `error`."""
    if isinstance(factor, bool) or not isinstance(factor, int | float | np.floating | np.integer):
        raise error(f"{where}{name}: {factor!r} is not a number")
    value = float(factor)
    if not math.isfinite(value) or not 0 < value <= MAX_FACTOR:
        raise error(f"{where}{name}: a factor of {factor} is not above 0 and at most {MAX_FACTOR:g}")
    return value


def unit_factors(factors: Mapping[str, float]) -> NDArray[np.float64]:
    """[19] The factor of each unit: the product over all groups that hold it.

    Multiplied in the order of the group table, so the order of the keys changes no bit.
    """
    for name, factor in factors.items():
        check_group(name)
        check_factor(name, factor)
    result = np.ones(len(UNITS))
    for name in (name for name in GROUPS if name in factors):
        for unit in GROUPS[name]:
            result[UNIT_INDEX[unit]] *= float(factors[name])
    return result
