"""Who dances: random bodies of several families, with their colours, clothes and ornaments, from one seed.

Lengths are in units of the figure's own build (a grown person is about 1 tall); `animx_trainer.figure` gives them a
size in pixels.  A seed and a list of families give one character, whatever it dances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from animx.errors import UsageError, nearest
from animx_trainer.sample import generator

Range = tuple[float, float]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Family:
    """Ranges of one family; a character draws each uniformly."""

    leg: Range
    """Hip to ankle; 0 = no legs."""
    torso: Range
    """Mid-hip to neck."""
    neck: Range
    """Neck to the lower edge of the head."""
    head: Range
    """Half the height of the head."""
    head_wide: Range
    """Width of the head over its height."""
    arm: Range
    """Shoulder to wrist; 0 = no arms."""
    shoulders: Range
    """Neck to shoulder."""
    hips: Range
    """Mid-hip to hip."""
    chest: Range
    """Half the width of the torso at the shoulders."""
    waist: Range
    """Half the width at the hips."""
    limbs: Range
    """Half the width of a limb at its root."""
    round: Range
    """1 = round parts, towards 0 = boxes."""
    ears: tuple[str, ...] = ("none",)
    hats: tuple[str, ...] = ("none",)
    armless: float = 0.0
    """Share without arms."""
    legless: float = 0.0
    """Share without legs."""
    snout: float = 0.0
    tail: float = 0.0
    skirt: float = 0.0
    belly: float = 0.2
    """Share with a light patch on the front."""


_HATS = ("none", "none", "cap", "top", "cone", "hair", "hair")

FAMILIES: MappingProxyType[str, Family] = MappingProxyType({
    "person": Family(
        (0.35, 0.497), (0.26, 0.34), (0.015, 0.04), (0.098, 0.149), (0.75, 1.0), (0.306, 0.414),
        (0.09, 0.14), (0.05, 0.075), (0.119, 0.163), (0.084, 0.144), (0.05, 0.073), (1.0, 1.0),
        hats=_HATS, skirt=0.3,
    ),
    "child": Family(
        (0.184, 0.313), (0.22, 0.28), (0.0, 0.015), (0.184, 0.276), (0.9, 1.15), (0.198, 0.306),
        (0.08, 0.11), (0.05, 0.07), (0.112, 0.138), (0.096, 0.144), (0.053, 0.073), (1.0, 1.0),
        hats=_HATS, skirt=0.3,
    ),
    "animal": Family(
        (0.147, 0.294), (0.28, 0.38), (-0.01, 0.01), (0.149, 0.218), (1.0, 1.3), (0.18, 0.306),
        (0.09, 0.13), (0.06, 0.09), (0.125, 0.163), (0.132, 0.204), (0.059, 0.087), (1.0, 1.0),
        ears=("round", "long", "pointed"), hats=("none", "none", "cap"), snout=0.8, tail=0.7, belly=0.6,
    ),
    "blob": Family(
        (0.055, 0.184), (0.36, 0.5), (-0.1, -0.06), (0.149, 0.207), (1.1, 1.4), (0.126, 0.27),
        (0.12, 0.17), (0.07, 0.11), (0.175, 0.237), (0.204, 0.3), (0.048, 0.07), (1.0, 1.0),
        ears=("none", "pointed"), hats=("none", "none", "cone", "horn"), armless=0.3, legless=0.45, belly=0.4,
    ),
    "bottle": Family(
        (0.074, 0.221), (0.44, 0.6), (0.0, 0.03), (0.069, 0.115), (0.7, 1.1), (0.162, 0.306),
        (0.1, 0.15), (0.06, 0.09), (0.125, 0.175), (0.156, 0.216), (0.031, 0.048), (0.12, 0.4),
        hats=("none", "cap"), armless=0.2, belly=0.7,
    ),
    "robot": Family(
        (0.221, 0.423), (0.24, 0.36), (0.02, 0.04), (0.103, 0.184), (0.9, 1.4), (0.234, 0.396),
        (0.11, 0.17), (0.06, 0.1), (0.138, 0.2), (0.096, 0.18), (0.042, 0.064), (0.1, 0.35),
        hats=("none", "antenna"), ears=("none", "bolt"), armless=0.05, belly=0.5,
    ),
    "mushroom": Family(
        (0.276, 0.46), (0.2, 0.34), (-0.02, 0.0), (0.103, 0.161), (0.9, 1.1), (0.27, 0.45),
        (0.06, 0.09), (0.04, 0.06), (0.088, 0.125), (0.096, 0.156), (0.031, 0.05), (1.0, 1.0),
        hats=("canopy",), armless=0.1,
    ),
})  # fmt: skip
"""Families of bodies by name."""


@dataclass(frozen=True, eq=False)
class Character:
    """One character.  Lengths as in `Family`, before `animx_trainer.figure` chooses girth and scale."""

    seed: int
    family: str
    thigh: float
    shin: float
    torso: float
    neck: float
    head: float
    head_wide: float
    upper_arm: float
    forearm: float
    shoulders: float
    hips: float
    chest: float
    waist: float
    arms_wide: float
    legs_wide: float
    taper: float
    """Width of a limb's end over that of its root."""
    round: float
    ears: str
    hat: str
    snout: bool
    tail: bool
    skirt: bool
    belly: bool
    sleeves: bool
    """Forearms and shins have a colour of their own."""
    eyes: float
    """Radius of an eye over half the head's height."""
    outline: float
    """Width of the outline, 0 = none."""
    shade: float
    """Strength of the shading, 0..1."""
    light: tuple[float, float]
    """Direction to the light in the picture, of length 1."""
    fill: float
    """Share of the canvas that the standing figure is to cover."""
    colours: Floats  # [GROUPS, 3] RGB 0..1, far apart from each other
    second: Floats  # [GROUPS, 3] colours of patterns
    patterns: NDArray[np.int64]  # [GROUPS] 0 plain, 1 rings, 2 stripes, 3 checks
    scale: Floats  # [GROUPS] repeats of a pattern over one unit of length

    @property
    def has_arms(self) -> bool:
        """Whether elbows and wrists exist."""
        return self.upper_arm > 0

    @property
    def has_legs(self) -> bool:
        """Whether knees, ankles and feet exist."""
        return self.thigh > 0


GROUPS: tuple[str, ...] = (
    "head", "torso", "right_arm", "left_arm", "right_leg", "left_leg", "right_forearm", "left_forearm", "right_shin",
    "left_shin", "ornament",
)  # fmt: skip
"""Groups that have a colour."""


def check_families(families: Sequence[str]) -> tuple[str, ...]:
    """The families, or all where none is named; an unknown one is a `UsageError`."""
    for name in families:
        if name not in FAMILIES:
            raise UsageError(f"unknown family '{name}'.{nearest(name, FAMILIES)} Known: {', '.join(FAMILIES)}")
    return tuple(families) or tuple(FAMILIES)


def random_character(seed: int, families: Sequence[str] = ()) -> Character:
    """The character of `seed` out of `families` (empty = all)."""
    names = check_families(families)
    rng = generator(seed, 0, 0, "character")
    name = names[int(rng.integers(len(names)))]
    family = FAMILIES[name]

    def draw(bounds: Range) -> float:
        return float(rng.uniform(*bounds))

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    leg = 0.0 if chance(family.legless) else draw(family.leg)
    arm = 0.0 if chance(family.armless) else draw(family.arm)
    thigh, upper = draw((0.46, 0.56)), draw((0.46, 0.56))
    limbs = draw(family.limbs)
    angle = draw((-2.6, -0.5))
    colours, second = _colours(rng)
    sleeves = chance(0.55)
    if not sleeves:
        for part, whole in (("right_forearm", "right_arm"), ("left_forearm", "left_arm"), ("right_shin", "right_leg"),
                            ("left_shin", "left_leg")):  # fmt: skip
            colours[GROUPS.index(part)] = colours[GROUPS.index(whole)]
    return Character(
        seed, name, leg * thigh, leg * (1 - thigh), draw(family.torso), draw(family.neck), draw(family.head),
        draw(family.head_wide), arm * upper, arm * (1 - upper), draw(family.shoulders), draw(family.hips),
        draw(family.chest), draw(family.waist), limbs * draw((0.8, 1.05)), limbs * draw((1.0, 1.35)),
        draw((0.6, 1.0)), draw(family.round), family.ears[int(rng.integers(len(family.ears)))],
        family.hats[int(rng.integers(len(family.hats)))], chance(family.snout), chance(family.tail),
        chance(family.skirt), chance(family.belly), sleeves, draw((0.12, 0.22)),
        draw((0.008, 0.018)) if chance(0.5) else 0.0, draw((0.1, 0.5)) if chance(0.8) else 0.0,
        (float(np.cos(angle)), float(np.sin(angle))), draw((0.17, 0.27)), colours, second,
        rng.choice(4, len(GROUPS), p=(0.55, 0.2, 0.15, 0.1)), rng.uniform(5, 13, len(GROUPS)).astype(np.float32),
    )  # fmt: skip


def _colours(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Colours of the groups, each as far from the ones before as 40 candidates allow, and their pattern colours."""
    pool = _rgb(rng.uniform(0, 1, 40), rng.uniform(0.25, 1, 40), rng.uniform(0.3, 1, 40))
    chosen = [0]
    far = np.square(pool - pool[0]).sum(axis=1)
    for _ in range(len(GROUPS) - 1):
        chosen.append(int(far.argmax()))
        far = np.minimum(far, np.square(pool - pool[chosen[-1]]).sum(axis=1))
    colours = pool[chosen]
    towards = np.where(colours.mean(axis=1, keepdims=True) > 0.5, 0.0, 1.0)
    second = colours + rng.uniform(0.2, 0.45, (len(GROUPS), 1)) * (towards - colours)
    return colours.astype(np.float32), second.astype(np.float32)


def _rgb(hue: NDArray[np.float64], saturation: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """HSV [N] each, 0..1 -> RGB [N, 3]."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    found: NDArray[np.float64] = value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    return found
