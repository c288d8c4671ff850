"""What a character looks like: its parts in drawing order, with shapes, colours and labels, for `animx_trainer.sdf`.

A part is an axis between two points that move with the joints.  Parts that change their place in depth (arms before or
behind the torso) stand twice in the list and are absent at one of the two places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from animx.pose import skeleton as sk
from animx_trainer.bodies import GROUPS, Character
from animx_trainer.figure import ANKLE, Figure, on_head
from animx_trainer.motion import Numbers
from animx_trainer.sdf import SHARP

LABELS: tuple[str, ...] = (
    "background", "head", "torso", "right_upper_arm", "right_forearm", "left_upper_arm", "left_forearm", "right_thigh",
    "right_shin", "left_thigh", "left_shin", "ornament",
)  # fmt: skip
"""Meaning of a label: hands belong to forearms, feet to shins, the neck to the torso, face, ears and hair to the head;
ornaments are hats, tails and antennas."""
_LABEL = {name: number for number, name in enumerate(LABELS)}
_WHITE, _DARK = (0.97, 0.97, 0.95), (0.08, 0.07, 0.1)
Colour = tuple[float, ...]
_At = Callable[[float, float], Numbers]
"""Finds a point of the head [T, 2]."""


@dataclass
class Parts:
    """The parts of one character over T moments, in its units, while they are put together."""

    who: Character
    scale: float
    """Pixels per unit."""
    count: int
    girth: float | Numbers
    """One, or [T]."""
    axes: list[Numbers] = field(default_factory=list)  # each [T, 2], a and b in turn
    shapes: list[tuple[float | Numbers, ...]] = field(default_factory=list)  # half-widths at a and b, bulge: 1 or [T]
    rounds: list[float] = field(default_factory=list)
    hidden: list[tuple[int, NDArray[np.bool_]]] = field(default_factory=list)  # part and [T]
    paint: list[list[float]] = field(default_factory=list)  # each [21]

    def add(
        self,
        a: Numbers,
        b: Numbers,
        widths: tuple[float | Numbers, float | Numbers],
        look: str | Colour,
        label: str,
        *,
        bulge: float | Numbers = 0.0,
        round: float = 1.0,
        there: NDArray[np.bool_] | None = None,
        opacity: float = 1.0,
        line: bool = True,
    ) -> None:
        """A part from a to b [T, 2+] with half-widths at both ends, all in units; `look`: a group or a plain colour."""
        if there is not None:
            self.hidden.append((len(self.paint), ~there))
        self.axes += [a[:, :2], b[:, :2]]
        self.shapes.append((*widths, bulge))
        self.rounds.append(round)
        self.paint.append(self._paint(look, label, opacity, line))

    def geometry(self, middle: float, floor: float) -> NDArray[np.float32]:
        """All parts in px [T, P, 8] (see `animx_trainer.sdf`)."""
        result = np.empty((len(self.paint), self.count, 8))
        result[:, :, :4] = (
            np.stack(self.axes).reshape(-1, 2, self.count, 2).transpose(0, 2, 1, 3).reshape(-1, self.count, 4)
        )
        for row, widths in zip(result, self.shapes, strict=True):
            row[:, 4], row[:, 5], row[:, 6] = widths
        result[:, :, :7] *= self.scale
        result[:, :, 0:4] += (middle, floor, middle, floor)
        result[:, :, 7] = np.array(self.rounds)[:, None]
        for part, absent in self.hidden:
            result[part, absent, 4:7] = 0
        return np.ascontiguousarray(result.transpose(1, 0, 2), np.float32)

    def _paint(self, look: str | Colour, label: str, opacity: float, line: bool) -> list[float]:
        who = self.who
        pattern = _PLAIN
        if isinstance(look, str):
            group = GROUPS.index(look)
            first, second = who.colours[group].tolist(), who.second[group].tolist()
            pattern = _pattern(int(who.patterns[group]), float(who.scale[group]) / self.scale)
        else:
            first = second = [*look]
        edge = [0.25 * value for value in first]
        outline = max(0.6, who.outline * self.scale) if who.outline and line else -1e4
        shade = who.shade if label != "background" else 0.0
        return [*first, *second, *pattern, shade, *who.light, outline, *edge, float(_LABEL[label]), opacity]


_PLAIN = [0.0, 0.0, 100.0, 0.0, 0.0, 0.0]


def _pattern(kind: int, repeats: float) -> list[float]:
    """Wave along and across: repeats per px, phase, edge.  A wave without repeats is a constant."""
    sharp = 0.5 - 1 / (SHARP * repeats)
    if kind == 1:
        return [repeats, 0.25, 0.25, 0.0, 0.0, sharp]
    if kind == 2:
        return [0.0, 0.0, sharp, repeats, 0.25, 0.25]
    if kind == 3:
        return [repeats, 0.25, 0.25, repeats, 0.25, 0.25]
    return _PLAIN


def dress(
    who: Character, figure: Figure, view: tuple[float, float, float], girth: float | Numbers
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Geometry [T, P, 8] and paint [P, 21] of the character (see `animx_trainer.sdf`); P follows from the character.

    `girth` thickens trunk and limbs: one number, or one a moment [T].
    """
    joints = figure.joints
    parts = Parts(who, view[0], len(joints), girth)
    _shadow(parts, figure)
    if who.tail:
        root = figure.hips + np.array([0, -0.05, 0])
        tip = root + np.array([0.24, -0.1, 0]) - 0.6 * (figure.hips * np.array([1, 0, 0]))
        parts.add(root, tip, (0.04 * girth, 0.03 * girth), "ornament", "ornament")
    front = {side: _in_front(joints, side) for side in ("right", "left")}
    for side in ("right", "left"):
        _arm(parts, joints, side, ~front[side])
    for side in ("right", "left"):
        _leg(parts, joints, side)
    _torso(parts, figure)
    _head(parts, figure)
    for side in ("right", "left"):
        _arm(parts, joints, side, front[side])
    return parts.geometry(view[1], view[2]), np.array(parts.paint, np.float32)


def _in_front(joints: Numbers, side: str) -> NDArray[np.bool_]:
    shoulder, elbow, wrist = (
        (sk.L_SHOULDER, sk.L_ELBOW, sk.L_WRIST) if side == "left" else (sk.R_SHOULDER, sk.R_ELBOW, sk.R_WRIST)
    )
    z = joints[..., 2]
    found: NDArray[np.bool_] = z[:, elbow] + z[:, wrist] >= 2 * z[:, shoulder] - 0.02
    return found


def _shadow(parts: Parts, figure: Figure) -> None:
    who = parts.who
    if who.shade == 0:
        return
    middle = np.stack([figure.hips[:, 0], np.full(parts.count, 0.0)], 1)
    reach = np.array([who.hips + 0.12, 0])
    parts.add(
        middle - reach, middle + reach, (0.022, 0.022), (0.05, 0.05, 0.06), "background", opacity=0.35, line=False
    )


def _arm(parts: Parts, joints: Numbers, side: str, there: NDArray[np.bool_]) -> None:
    who = parts.who
    if not who.has_arms:
        return
    shoulder, elbow, wrist = (
        (sk.L_SHOULDER, sk.L_ELBOW, sk.L_WRIST) if side == "left" else (sk.R_SHOULDER, sk.R_ELBOW, sk.R_WRIST)
    )
    wide = who.arms_wide * parts.girth
    end = wide * who.taper
    elbow_wide = (wide + end) / 2
    hand = joints[:, wrist] + 0.25 * (joints[:, wrist] - joints[:, elbow])
    parts.add(joints[:, shoulder], joints[:, elbow], (wide, elbow_wide), f"{side}_arm", f"{side}_upper_arm",
              round=who.round, there=there)  # fmt: skip
    parts.add(joints[:, elbow], joints[:, wrist], (elbow_wide, end), f"{side}_forearm", f"{side}_forearm",
              round=who.round, there=there)  # fmt: skip
    parts.add(joints[:, wrist], hand, (1.25 * end, 1.1 * end), f"{side}_forearm", f"{side}_forearm", there=there)


def _leg(parts: Parts, joints: Numbers, side: str) -> None:
    who = parts.who
    if not who.has_legs:
        return
    sign = 1.0 if side == "left" else -1.0
    hip, knee, ankle = (sk.L_HIP, sk.L_KNEE, sk.L_ANKLE) if side == "left" else (sk.R_HIP, sk.R_KNEE, sk.R_ANKLE)
    wide = who.legs_wide * parts.girth
    end = wide * who.taper
    knee_wide = (wide + end) / 2
    parts.add(joints[:, hip], joints[:, knee], (wide, knee_wide), f"{side}_leg", f"{side}_thigh", round=who.round)
    parts.add(joints[:, knee], joints[:, ankle], (knee_wide, end), f"{side}_shin", f"{side}_shin", round=who.round)
    sole = joints[:, ankle] + np.array([0, 0.3 * ANKLE, 0])
    toe = sole + np.array([sign * (0.045 + 0.5 * who.legs_wide * who.taper), 0.2 * ANKLE, 0])
    parts.add(sole, toe, (np.maximum(0.028, 0.9 * end), np.maximum(0.024, 0.7 * end)), f"{side}_shin", f"{side}_shin")


def _torso(parts: Parts, figure: Figure) -> None:
    who, girth, joints = parts.who, parts.girth, figure.joints
    neck, hips = joints[:, sk.NECK], figure.hips
    up = (neck - hips) / who.torso
    chest, waist = who.chest * girth, who.waist * girth
    chest = np.maximum(chest, 0.7 * who.shoulders)
    inset = np.minimum(0.45 * who.torso, 0.75 * chest) if who.round == 1 else 0.4 * who.round * chest
    chest_at, waist_at = (np.broadcast_to(wide, parts.count)[:, None] for wide in (inset, waist))
    low = hips + 0.25 * waist_at * up
    if not who.has_legs:
        low = hips + 0.8 * waist_at * up  # stands on the floor by its own roundness
    parts.add(neck, figure.head, (0.7 * who.arms_wide * girth + 0.012,) * 2, "head", "torso")
    if who.skirt and who.has_legs:
        hem = hips - (0.45 * who.thigh + 0.4 * waist_at) * up
        parts.add(low, hem, (0.9 * waist, 1.5 * waist), "ornament", "torso", round=0.25)
    parts.add(neck - chest_at * up, low, (chest, waist), "torso", "torso", round=who.round)
    if who.belly:
        at = 0.45 * (neck - chest_at * up) + 0.55 * low
        light = tuple(0.45 * c + 0.5 for c in who.colours[GROUPS.index("torso")].tolist())
        parts.add(at + 0.1 * who.torso * up, at - 0.1 * who.torso * up, (0.5 * chest, 0.55 * waist), light, "torso",
                  round=max(who.round, 0.3), line=False)  # fmt: skip


def _head(parts: Parts, figure: Figure) -> None:
    who = parts.who
    high, wide = who.head, who.head * who.head_wide
    right = np.stack([-figure.up[:, 1], figure.up[:, 0]], 1)

    def at(x: float, y: float) -> Numbers:
        return on_head(figure, wide, high, x, y)

    middle = figure.head[:, :2]
    if who.hat == "hair":
        parts.add(middle + 0.2 * high * figure.up, middle - 0.35 * high * figure.up, (1.12 * wide, 0.95 * wide),
                  "ornament", "head")  # fmt: skip
    for x in (-1.0, 1.0):
        _ear(parts, at, x, high, wide)
    corner = max(who.round, 0.3)
    axis = figure.up if high >= wide else right
    small = min(high, wide)
    tall = max(high, wide) - small * corner
    parts.add(middle - tall * axis, middle + tall * axis, (small, small), "head", "head", round=corner)
    _face(parts, at, high, wide)
    _hat(parts, figure, right, high, wide)


def _ear(parts: Parts, at: _At, x: float, high: float, wide: float) -> None:
    kind = parts.who.ears
    if kind == "round":
        parts.add(at(0.7 * x, 0.75), at(0.72 * x, 0.85), (0.34 * wide, 0.34 * wide), "head", "head")
    elif kind == "long":
        parts.add(at(0.45 * x, 0.8), at(0.6 * x, 1.9), (0.22 * wide, 0.16 * wide), "head", "head", bulge=0.12 * wide)
    elif kind == "pointed":
        parts.add(at(0.6 * x, 0.55), at(0.8 * x, 1.45), (0.36 * wide, 0.03 * wide), "head", "head")
    elif kind == "bolt":
        parts.add(at(0.95 * x, 0.0), at(0.95 * x, 0.0) + np.array([0.18 * wide * x, 0]), (0.16 * wide, 0.16 * wide),
                  "ornament", "head", round=0.2)  # fmt: skip


def _face(parts: Parts, at: _At, high: float, wide: float) -> None:
    who = parts.who
    radius = who.eyes * min(high, wide)
    for x in (-0.42, 0.42):
        eye = at(x, 0.18)
        parts.add(eye, eye, (radius, radius), _WHITE, "head", line=False)
        pupil = at(0.95 * x, 0.15)
        parts.add(pupil, pupil, (0.55 * radius, 0.55 * radius), _DARK, "head", line=False)
    if who.snout:
        light = tuple(0.4 * c + 0.55 for c in who.colours[0].tolist())
        parts.add(at(-0.12, -0.3), at(0.12, -0.3), (0.3 * wide, 0.3 * wide), light, "head", line=False)
        parts.add(at(-0.06, -0.1), at(0.06, -0.1), (0.1 * wide, 0.1 * wide), _DARK, "head", line=False)
    parts.add(at(-0.25, -0.5), at(0.25, -0.5), (0.06 * wide, 0.06 * wide), (0.45, 0.1, 0.12), "head", line=False)


def _hat(parts: Parts, figure: Figure, right: Numbers, high: float, wide: float) -> None:
    hat, up = parts.who.hat, figure.up
    top = figure.head[:, :2] + high * up

    def put(low: float, peak: float, widths: tuple[float, float], round: float = 1.0) -> None:
        first, last = top + low * high * up, top + peak * high * up
        parts.add(first, last, (widths[0] * wide, widths[1] * wide), "ornament", "ornament", round=round)

    if hat == "cap":
        put(-0.4, -0.2, (0.9, 0.55), 0.5)
        side = np.where(figure.turned[:, :1] < 0, -1.0, 1.0)
        brim = top - 0.45 * high * up
        parts.add(brim, brim + 0.95 * wide * side * right, (0.12 * wide, 0.1 * wide), "ornament", "ornament")
    elif hat == "top":
        put(-0.2, 0.55, (0.62, 0.62), 0.1)
        brim = top - 0.25 * high * up
        parts.add(brim - wide * right, brim + wide * right, (0.1 * wide, 0.1 * wide), "ornament", "ornament")
    elif hat == "cone":
        put(0.2, 1.0, (0.6, 0.05))
    elif hat == "horn":
        put(-0.05, 0.5, (0.2, 0.05))
    elif hat == "antenna":
        put(0.0, 0.4, (0.07, 0.07))
        put(0.45, 0.46, (0.17, 0.17))
    elif hat == "hair":
        put(-0.35, -0.25, (0.95, 0.6))
    elif hat == "canopy":
        low = top + 0.15 * high * up
        parts.add(low - 1.1 * wide * right, low + 1.1 * wide * right, (0.5 * wide, 0.5 * wide), "ornament", "ornament",
                  bulge=1.6 * wide)  # fmt: skip
