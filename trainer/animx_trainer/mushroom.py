"""A mushroom on long limbs, its face under a wide hat."""

from __future__ import annotations

import numpy as np

from animx_trainer.brush import Painter, Points, ellipse, shadow_of, tube
from animx_trainer.choreography import Pose, Proportions
from animx_trainer.features import (
    WHITE,
    At,
    Colours,
    both_sides,
    dragged,
    paint_arms,
    paint_face,
    paint_legs,
    palettes,
    patch,
    spine,
    strip,
    trace,
    turned,
)

BODY = Proportions(
    head=0.36, shoulders=0.105, torso=0.19, upper_arm=0.16, forearm=0.15, hips=0.06, thigh=0.185, shin=0.175,
    sole=0.05, foot=0.085, face=0.05, eyes=0.042, ears=0.10,
)  # fmt: skip

PALETTES = palettes(
    "cap=e0413a dot=fff5ec stem=fbe9cf gill=e9cda6 limb=fbe9cf shoe=7a4a2c glove=fff5ec",
    "cap=7a58c9 dot=f3ecff stem=efe3f7 gill=cdb9e2 limb=efe3f7 shoe=3f3a63 glove=ffffff",
    "cap=e59a2f dot=fff7dd stem=fdf1da gill=e8cf9f limb=fdf1da shoe=5f7a3a glove=ffffff",
)

SCENE = "meadow"
SHADOW = 0.16

_DOTS = (
    (-0.13, 0.43, 0.043, 0.036), (0.03, 0.50, 0.050, 0.036), (0.155, 0.41, 0.036, 0.034), (0.02, 0.382, 0.032, 0.025),
    (-0.225, 0.36, 0.025, 0.030), (0.245, 0.345, 0.024, 0.028), (-0.1, 0.535, 0.030, 0.017),
    (0.145, 0.525, 0.026, 0.019),
)  # fmt: skip


def draw(painter: Painter, pose: Pose, c: Colours) -> None:
    """Paint it in the pose.  Colours: see `PALETTES`."""
    line, at = 0.004 * pose.height, spine(pose, below=0.05)
    radii = (0.026, 0.023, 0.020)
    paint_arms(painter, pose, c["limb"], radii, c["glove"], 0.034, behind=True)
    paint_legs(painter, pose, c["limb"], (0.032, 0.028, 0.025), c["shoe"], 0.036)
    edge = shadow_of(c["stem"], 1.4)
    trunk = both_sides(at, (0.06, 0.0), (0.105, 0.015), (0.13, 0.07), (0.122, 0.16), (0.112, 0.26), (0.112, 0.36))
    stem = painter.paint(trunk, c["stem"], outline=edge, width=line, shade=0.6, softness=0.25, shadow=0.15)
    cheek = (1.0, 0.55, 0.5)
    paint_face(painter, pose, at, stem, v=0.245, eye=(0.021, 0.030), apart=0.05, cheek=cheek, mouth=0.042)
    _hat(painter, pose, at, c)
    paint_arms(painter, pose, c["limb"], radii, c["glove"], 0.034, behind=False)


def _hat(painter: Painter, pose: Pose, at: At, c: Colours) -> None:
    h, line, drag = pose.height, 0.004 * pose.height, dragged(pose) * (0.06, 0.105)

    def soft(u: float, v: float) -> Points:
        """A place of the hat, which nods after the body."""
        return at(u, v) - drag * (v - 0.3) * h

    brim = patch(
        soft, (-0.25, 0.335), (-0.12, 0.300), (0.0, 0.292), (0.12, 0.300), (0.25, 0.335), (0.12, 0.36), (-0.12, 0.36)
    )
    under = painter.paint(brim, c["gill"], outline=shadow_of(c["gill"], 1.3), width=line, shadow=0.3)
    for u in np.linspace(-0.2, 0.2, 11):
        gill = strip(soft, 0.0022 * h, (u, 0.36), (u * 0.75, 0.29))
        painter.paint(gill, shadow_of(c["gill"], 0.7), clip=under, opacity=0.6)
    dome = patch(
        soft, (-0.262, 0.335), (-0.27, 0.37), (-0.235, 0.465), (-0.15, 0.55), (0.0, 0.592), (0.15, 0.55),
        (0.235, 0.465), (0.27, 0.37), (0.262, 0.335), (0.13, 0.326), (0.0, 0.322), (-0.13, 0.326),
    )  # fmt: skip
    cap = painter.paint(dome, c["cap"], outline=shadow_of(c["cap"], 1.4), width=line, shade=0.8, softness=0.25)
    for u, v, rx, ry in _DOTS:
        painter.paint(ellipse(soft(u + turned(pose) * 0.05, v), rx * h, ry * h), c["dot"], clip=cap, shade=0.35)
    shine = tube(trace(soft, (-0.20, 0.47), (-0.14, 0.525)), [0.006 * h, 0.009 * h])
    painter.paint(shine, WHITE, opacity=0.5, clip=cap)
