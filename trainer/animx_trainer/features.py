"""What the characters that are no people share: a bending body, tube arms with gloves, legs with shoes, a face.

A body bends along its spine (hips, neck, top of the head); all that is on it - face, label, belly - is placed in the
body's own units, heights sideways and up, and bends along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from animx.pose import skeleton as sk
from animx_trainer.brush import (
    Blob,
    Colour,
    Painter,
    Points,
    Shape,
    Stencil,
    Tube,
    blob,
    curve,
    ellipse,
    hexcolour,
    mix,
    shadow_of,
    tube,
)
from animx_trainer.choreography import Pose

Colours = Mapping[str, Colour]
At = Callable[[float, float], Points]
"""From a place on the body (sideways, up; in heights) to the picture [px]."""

INK: Colour = (0.16, 0.12, 0.17)
WHITE: Colour = (1.0, 1.0, 1.0)

_ARM = {
    "left": (sk.L_SHOULDER, sk.L_ELBOW, sk.L_WRIST),
    "right": (sk.R_SHOULDER, sk.R_ELBOW, sk.R_WRIST),
}
_LEG = {
    "left": (sk.L_HIP, sk.L_KNEE, sk.L_ANKLE, sk.L_BIG_TOE, sk.L_HEEL),
    "right": (sk.R_HIP, sk.R_KNEE, sk.R_ANKLE, sk.R_BIG_TOE, sk.R_HEEL),
}


def palettes(*rows: str) -> tuple[Colours, ...]:
    """Colours by name from rows of `name=rrggbb` words."""
    return tuple({k: hexcolour("#" + code) for k, code in (word.split("=") for word in row.split())} for row in rows)


def turned(pose: Pose) -> float:
    """How far the face is turned, -1 (to the picture's left) to 1."""
    return float(np.sin(np.radians(0.75 * pose.key.yaw + pose.key.look)))


def dragged(pose: Pose) -> Points:
    """The speed of the head, limited, (x, y) [heights/s]: what hangs loose lags behind by it."""
    return np.clip(np.array(pose.drag), -1.2, 1.2)


def spine(pose: Pose, below: float) -> At:
    """The places of a body: (sideways, up) in heights, up 0 at `below` under the hips."""
    j, h = pose.joints[:, :2], pose.height
    hip, neck, top = (j[sk.L_HIP] + j[sk.R_HIP]) / 2, j[sk.NECK], pose.head_top[:2]
    down = (hip - neck) / max(float(np.linalg.norm(hip - neck)), 1e-9)
    line = curve([hip + down * below * h, hip + (neck - hip) * 0.3, neck, top], closed=False, steps=16)
    along = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))) / h
    step = np.gradient(line, axis=0)
    right = np.stack((-step[:, 1], step[:, 0]), 1)
    right /= np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-9)

    def at(u: float, v: float) -> Points:
        x, y = (float(np.interp(v, along, line[:, k])) for k in (0, 1))
        rx, ry = (float(np.interp(v, along, right[:, k])) for k in (0, 1))
        beyond = v - min(max(v, 0.0), float(along[-1]))  # above the top and below the base it goes on straight
        return np.array([x + (rx * u + ry * beyond) * h, y + (ry * u - rx * beyond) * h])

    return at


def trace(at: At, *places: tuple[float, float], shift: float = 0.0) -> list[Points]:
    """The picture points of places on the body, all moved sideways by `shift` heights."""
    return [at(u + shift, v) for u, v in places]


def patch(at: At, *places: tuple[float, float], shift: float = 0.0) -> Blob:
    """A smooth closed shape through places on the body."""
    return blob(trace(at, *places, shift=shift))


def strip(at: At, radius: float, *places: tuple[float, float], shift: float = 0.0) -> Tube:
    """A line of `radius` px through places on the body."""
    return tube(trace(at, *places, shift=shift), [radius] * len(places))


def both_sides(at: At, *profile: tuple[float, float]) -> Blob:
    """A closed body from half widths: (half width, up), from the base to the top."""
    return blob([at(w, v) for w, v in profile] + [at(-w, v) for w, v in reversed(profile)])


def paint_arms(
    painter: Painter,
    pose: Pose,
    colour: Colour,
    radii: tuple[float, float, float],
    hand: Colour,
    size: float,
    *,
    behind: bool,
) -> None:
    """The arms behind the body, or the others; `radii` at shoulder, elbow, wrist and the hand's `size` in heights."""
    for side, (shoulder, *others) in _ARM.items():
        depth = pose.joints[:, 2]
        if (float(depth[others].mean() - depth[shoulder]) < -0.03 * pose.height) == behind:
            _arm(painter, pose, side, colour, radii, hand, size)


def _arm(
    painter: Painter,
    pose: Pose,
    side: str,
    colour: Colour,
    radii: tuple[float, float, float],
    hand: Colour,
    size: float,
) -> None:
    h = pose.height
    s, e, w = (pose.joints[i, :2] for i in _ARM[side])
    bend = [s, s + (e - s) * 0.62 + (w - s) * 0.03, e + (w - s) * 0.02, e + (w - e) * 0.4 + (w - s) * 0.02, w]
    arm = tube(bend, list(np.interp([0, 0.35, 0.5, 0.7, 1], [0, 0.5, 1], radii) * h))
    painter.paint(arm, colour, outline=shadow_of(colour, 1.4), width=0.0035 * h, shade=0.6, softness=0.12, shadow=0.25)
    fore = (w - e) / max(float(np.linalg.norm(w - e)), 0.02 * h)
    across = np.array([-fore[1], fore[0]]) * (1 if side == "left" else -1)
    unit = size * h
    palm = w + fore * 0.55 * unit
    shapes: list[Shape] = [ellipse(palm, 0.72 * unit, 0.66 * unit, float(np.arctan2(fore[1], fore[0])))]
    for k, length in ((-0.62, 0.97), (0.0, 1.13), (0.62, 1.01)):
        root = palm + across * k * 0.5 * unit
        shapes.append(tube([root, root + (fore + across * 0.35 * k) * length * unit], [0.3 * unit, 0.27 * unit]))
    shapes.append(tube([palm, palm + (fore * 0.2 - across * 0.95) * unit], [0.3 * unit, 0.26 * unit]))
    edge = (0.34, 0.30, 0.38) if hand == WHITE else shadow_of(hand, 1.5)
    painter.paint(shapes, hand, outline=edge, width=0.0035 * h, shade=0.55, softness=0.25, shadow=0.2)


def paint_legs(
    painter: Painter, pose: Pose, colour: Colour, radii: tuple[float, float, float], shoe: Colour, size: float
) -> None:
    """Both legs with shoes; `radii` at hip, knee and ankle and the shoe's `size` in heights."""
    h, j, unit = pose.height, pose.joints[:, :2], size * pose.height
    for ids in _LEG.values():
        hip, knee, ankle, toe, heel = (j[i] for i in ids)
        leg = tube(
            [hip, knee, knee + (ankle - knee) * 0.5, ankle], list(np.interp([0, 0.5, 0.75, 1], [0, 0.5, 1], radii) * h)
        )
        painter.paint(
            leg, colour, outline=shadow_of(colour, 1.4), width=0.0035 * h, shade=0.6, softness=0.12, shadow=0.2
        )
        upper = [
            tube([ankle + (heel - ankle) * 0.2, ankle + (toe - ankle) * 0.3], [0.9 * unit, unit]),
            tube([heel, heel + (toe - heel) * 0.55, toe], [0.72 * unit, 0.95 * unit, unit]),
        ]
        painted = painter.paint(upper, shoe, outline=shadow_of(shoe, 1.4), width=0.0035 * h, shade=0.65, softness=0.3)
        drop = np.array([0.0, 0.75 * unit])
        painter.paint(tube([heel + drop, toe + drop], [0.34 * unit] * 2), mix(shoe, WHITE, 0.8), clip=painted)


def paint_eyes(
    painter: Painter,
    pose: Pose,
    at: At,
    clip: Stencil,
    v: float,
    apart: float,
    eye: tuple[float, float],
    ink: Colour,
    slide: float,
) -> None:
    """Two big dark eyes with lights at height `v`, `apart` from the middle; they blink, and slide with the head."""
    h, flat = pose.height, float(np.sqrt(1 - turned(pose) ** 2))
    for side in (-1, 1):
        x = side * apart * flat + slide
        if pose.blink > 0.6:
            lid = ((x - eye[0] * flat, v), (x, v - 0.4 * eye[1]), (x + eye[0] * flat, v))
            painter.paint(strip(at, 0.0045 * h, *lid), ink)
            continue
        spot = at(x, v)
        ball = painter.paint(ellipse(spot, eye[0] * h * flat, eye[1] * h * (1 - pose.blink)), ink, clip=clip)
        light = spot + np.array([-0.3 * eye[0], -0.38 * eye[1]]) * h
        painter.paint(ellipse(light, 0.36 * eye[0] * h, 0.34 * eye[1] * h), WHITE, clip=ball)
        light = spot + np.array([0.32 * eye[0], 0.42 * eye[1]]) * h
        painter.paint(ellipse(light, 0.2 * eye[0] * h, 0.18 * eye[1] * h), WHITE, clip=ball, opacity=0.75)


def paint_face(
    painter: Painter, pose: Pose, at: At, clip: Stencil, *, v: float, eye: tuple[float, float], apart: float,
    cheek: Colour, mouth: float, ink: Colour = INK,
) -> None:  # fmt: skip
    """Eyes, cheeks and a mouth on the body itself; `mouth`: its half width.  All in heights."""
    h, turn = pose.height, turned(pose)
    flat, slide = float(np.sqrt(1 - turn**2)), turn * apart * 0.9
    paint_eyes(painter, pose, at, clip, v, apart, eye, ink, slide)
    for side in (-1, 1):
        spot = at(1.45 * side * apart * flat + slide, v - 1.45 * eye[1])
        painter.paint(ellipse(spot, 0.85 * eye[0] * h * flat, 0.5 * eye[0] * h), cheek, opacity=0.65, clip=clip)
    wide, low = mouth * (0.75 + 0.35 * pose.key.smile), v - 1.25 * eye[1]
    if pose.key.smile < 0.25:
        line = ((-wide * 0.7, low), (0, low - 0.25 * mouth), (wide * 0.7, low))
        painter.paint(strip(at, 0.004 * h, *line, shift=slide), ink)
        return
    drop = mouth * (0.35 + 0.85 * pose.key.smile)
    lips = patch(
        at, (-wide, low), (0, low - 0.12 * mouth), (wide, low), (0.6 * wide, low - 0.8 * drop), (0, low - drop),
        (-0.6 * wide, low - 0.8 * drop), shift=slide,
    )  # fmt: skip
    inside = painter.paint(lips, (0.45, 0.11, 0.15), outline=ink, width=0.003 * h)
    painter.paint(ellipse(at(slide, low - drop), 0.62 * wide * h, 0.45 * drop * h), (0.95, 0.45, 0.45), clip=inside)
