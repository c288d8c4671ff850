"""Characters drawn by code that dance: pictures with true joints and masks, without any recording of a person.

    character(kind, seed) + dance(name) -> Pose -> draw_character -> (rgb, mask, keypoints)

They feed tests, the shipped example and, later, training: any character dances any dance, so pairs of the same
motion on different bodies cost nothing.  Everything is a function of its arguments: the same call gives the
same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import UsageError, nearest
from animx.pose import skeleton as sk
from animx.pose.sequence import PoseSequence
from animx_trainer import bear, bottle, dancer, ghost, mushroom, scenery
from animx_trainer.brush import Colour, Painter
from animx_trainer.choreography import (
    DANCES,
    MOVES,
    Dance,
    Key,
    Pose,
    Proportions,
    dance,
    perform,
    random_dance,
    skeleton,
)

__all__ = [
    "DANCES",
    "KINDS",
    "MOVES",
    "Character",
    "Dance",
    "Key",
    "Pose",
    "Proportions",
    "character",
    "dance",
    "draw_character",
    "draw_clip",
    "perform",
    "random_dance",
    "rest_pose",
    "skeleton",
    "true_poses",
]

_DRAWN: Mapping[str, Any] = MappingProxyType(
    {"human": dancer, "bottle": bottle, "ghost": ghost, "bear": bear, "mushroom": mushroom}
)

KINDS: tuple[str, ...] = tuple(_DRAWN)
"""Kinds of characters: human, bottle (short legs), ghost (no arms, no legs), bear, mushroom (long limbs)."""

MISSING: Mapping[str, frozenset[int]] = MappingProxyType(
    {
        "ghost": frozenset(
            {sk.L_ELBOW, sk.L_WRIST, sk.R_ELBOW, sk.R_WRIST, sk.L_KNEE, sk.L_ANKLE, sk.R_KNEE, sk.R_ANKLE, *sk.FEET}
        ),
    }
)
"""Joints that a kind does not have."""

LIMBS = ("upper_arm", "forearm", "thigh", "shin")
"""Bones whose length varies with the seed."""

REST = Key(high=0.985, left=(34, 0, 24, 8), right=(34, 0, 24, 8), smile=0.55)
"""Standing with the arms a little away from the body: a good reference pose."""


@dataclass(frozen=True)
class Character:
    """Who dances: a kind, its bone lengths and its colours."""

    kind: str
    body: Proportions
    colours: Mapping[str, Colour]
    scene: str = "studio"
    """Background that suits it, a name of `animx_trainer.scenery.SCENES`."""
    shadow: float = 0.16
    """How dark its shadow on the floor is, 0..1."""

    @property
    def missing(self) -> frozenset[int]:
        """Joints of the layout's body and feet that it does not have."""
        return MISSING.get(self.kind, frozenset())


def character(kind: str, seed: int = 0) -> Character:
    """A character of the `kind` (see `KINDS`).

    Seeds 0, 1, 2 are its own colours; higher ones vary its proportions too.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown character '{kind}'.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}")
    drawn = _DRAWN[kind]
    body: Proportions = drawn.BODY
    if seed >= 3:
        rng = np.random.default_rng(seed)
        limbs = {name: getattr(body, name) * float(rng.uniform(0.85, 1.2)) for name in LIMBS}
        body = replace(body, **limbs)
    return Character(kind, body, drawn.PALETTES[seed % len(drawn.PALETTES)], drawn.SCENE, drawn.SHADOW)


def rest_pose(who: Character, canvas: Canvas) -> Pose:
    """The character standing, arms a little away from its body: the pose of a reference image."""
    return skeleton(who.body, REST, canvas)


def draw_character(
    who: Character, pose: Pose, canvas: Canvas, *, background: NDArray[np.float32] | str | None = None, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32], PoseSequence]:
    """Draw one picture.

    `background`: RGB float 0..1 [H, W, 3], the name of a scene, or None for the character's own scene.
    Returns RGB uint8 [H, W, 3], the true coverage float32 0..1 [H, W], and the true keypoints (one frame, one person;
    hands and face points are missing; scores 1, or 0 for what the character does not have).
    """
    painter = Painter(canvas)
    _DRAWN[who.kind].draw(painter, pose, who.colours)
    colour, mask = painter.finish()
    if not isinstance(background, np.ndarray):
        background = scenery.scene(background or who.scene, canvas, pose.floor, seed)
    if background.shape != (canvas.height, canvas.width, 3):
        raise UsageError(f"background: shape {list(background.shape)}, expected {[canvas.height, canvas.width, 3]}")
    behind = _shadow(pose, background, who.shadow) if who.shadow > 0 else background
    rgb = colour + behind * (1 - mask[..., None])
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8), mask, _keypoints([pose], who, canvas, Fraction(25))


def draw_clip(
    who: Character, moving: Dance, canvas: Canvas, frames: int, *, fps: Fraction = Fraction(24), seed: int = 0
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """The character dancing, frame by frame: RGB uint8 [H, W, 3] and coverage [H, W] (see `draw_character`)."""
    for pose in _poses(who, moving, canvas, frames, fps):
        behind = scenery.scene(who.scene, canvas, pose.floor, seed)
        yield draw_character(who, pose, canvas, background=behind)[:2]


def true_poses(
    who: Character, moving: Dance, canvas: Canvas, frames: int, *, fps: Fraction = Fraction(24)
) -> PoseSequence:
    """The true keypoints of `draw_clip` with the same arguments, depth included."""
    return _keypoints(list(_poses(who, moving, canvas, frames, fps)), who, canvas, fps)


def _poses(who: Character, moving: Dance, canvas: Canvas, frames: int, fps: Fraction) -> Iterator[Pose]:
    for i in range(frames):
        yield perform(who.body, moving, float(i / fps), canvas)


def _keypoints(poses: list[Pose], who: Character, canvas: Canvas, fps: Fraction) -> PoseSequence:
    keypoints = np.zeros((len(poses), 1, sk.JOINTS, 2))
    scores = np.zeros((len(poses), 1, sk.JOINTS))
    depth = np.zeros((len(poses), 1, sk.JOINTS))
    seen = [joint for joint in range(24) if joint not in who.missing]
    for t, pose in enumerate(poses):
        keypoints[t, 0, seen] = pose.joints[seen, :2]
        depth[t, 0, seen] = pose.joints[seen, 2]
        scores[t, 0, seen] = 1.0
    return PoseSequence(
        keypoints.astype(np.float32),
        scores.astype(np.float32),
        canvas,
        fps=fps,
        depth=depth.astype(np.float32),
        source={"name": f"synthetic {who.kind}"},
    )


def _shadow(pose: Pose, background: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """The background with the figure's shadow on the floor: smaller and fainter the higher the feet are."""
    feet = pose.joints[[sk.L_ANKLE, sk.R_ANKLE]]
    lift = max(0.0, (pose.floor - float(feet[:, 1].max())) / pose.height - 0.06)
    middle = float(pose.joints[[sk.L_HIP, sk.R_HIP], 0].mean())
    wide = pose.height * (0.24 + 0.15 * abs(float(feet[0, 0] - feet[1, 0])) / pose.height) * (1 - lift)
    return scenery.floor_shadow(background, middle, pose.floor, wide, strength * max(0.2, 1 - 2.2 * lift))
