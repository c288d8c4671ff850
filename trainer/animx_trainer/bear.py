"""A teddy bear with a scarf: a big head and short thick limbs."""

from __future__ import annotations

import numpy as np

from animx_trainer.brush import Painter, Stencil, ellipse, mix, shadow_of, tube
from animx_trainer.choreography import Pose, Proportions
from animx_trainer.features import (
    WHITE,
    At,
    Colours,
    both_sides,
    dragged,
    paint_arms,
    paint_eyes,
    paint_legs,
    palettes,
    patch,
    spine,
    strip,
    trace,
    turned,
)

BODY = Proportions(
    head=0.40, shoulders=0.135, torso=0.27, upper_arm=0.12, forearm=0.11, hips=0.085, thigh=0.115, shin=0.105,
    sole=0.05, foot=0.075, face=0.40, eyes=0.062, ears=0.15,
)  # fmt: skip

PALETTES = palettes(
    "fur=b9763f pale=f2d6a8 paw=8a5230 nose=3b2420 scarf=d8433b stripe=fff1dd",
    "fur=8f9bb3 pale=e9edf5 paw=667089 nose=2a2d3a scarf=f0a830 stripe=fff6e0",
    "fur=f3efe6 pale=ffffff paw=cfc6b6 nose=37313a scarf=3c7fc4 stripe=f6f9ff",
)

SCENE = "meadow"
SHADOW = 0.16


def draw(painter: Painter, pose: Pose, c: Colours) -> None:
    """Paint it in the pose.  Colours: see `PALETTES`."""
    line, at = 0.004 * pose.height, spine(pose, below=0.06)
    edge, radii = shadow_of(c["fur"], 1.4), (0.052, 0.048, 0.042)
    paint_arms(painter, pose, c["fur"], radii, c["paw"], 0.042, behind=True)
    paint_legs(painter, pose, c["fur"], (0.072, 0.062, 0.052), c["paw"], 0.048)
    trunk = both_sides(
        at, (0.07, 0.0), (0.135, 0.03), (0.168, 0.10), (0.165, 0.19), (0.14, 0.27), (0.11, 0.33), (0.07, 0.36)
    )
    body = painter.paint(trunk, c["fur"], outline=edge, width=line, shade=0.7, softness=0.22, shadow=0.15)
    belly = patch(
        at, (0.0, 0.03), (0.085, 0.06), (0.11, 0.13), (0.085, 0.21), (0.0, 0.245), (-0.085, 0.21), (-0.11, 0.13),
        (-0.085, 0.06), shift=turned(pose) * 0.04,
    )  # fmt: skip
    painter.paint(belly, c["pale"], shade=0.3, clip=body)
    _scarf_end(painter, pose, at, c)
    _head(painter, pose, at, c)
    _collar(painter, pose, at, c)
    paint_arms(painter, pose, c["fur"], radii, c["paw"], 0.042, behind=False)


def _head(painter: Painter, pose: Pose, at: At, c: Colours) -> None:
    h, line, turn = pose.height, 0.004 * pose.height, turned(pose)
    edge = shadow_of(c["fur"], 1.4)
    for side in (-1, 1):
        ear = at(side * 0.145 - turn * 0.03, 0.655) - dragged(pose) * 0.012 * h
        outer = painter.paint(ellipse(ear, 0.062 * h, 0.062 * h), c["fur"], outline=edge, width=line, shade=0.6)
        inner = ellipse(ear + (at(0, 0.55) - ear) * 0.12, 0.036 * h, 0.036 * h)
        painter.paint(inner, mix(c["pale"], (0.9, 0.5, 0.45), 0.3), clip=outer)
    skull = patch(
        at, (0.0, 0.325), (0.11, 0.34), (0.19, 0.40), (0.205, 0.49), (0.17, 0.61), (0.10, 0.685), (0.0, 0.708),
        (-0.10, 0.685), (-0.17, 0.61), (-0.205, 0.49), (-0.19, 0.40), (-0.11, 0.34),
    )  # fmt: skip
    head = painter.paint(skull, c["fur"], outline=edge, width=line, shade=0.75, softness=0.22, shadow=0.25)
    slide, flat = turn * 0.075, float(np.sqrt(1 - turn**2))
    painter.paint(ellipse(at(slide, 0.415), 0.098 * h, 0.070 * h), c["pale"], shade=0.35, clip=head)
    _mouth(painter, pose, at, slide, c)
    nose = at(slide * 1.15, 0.452)
    snout = painter.paint(ellipse(nose, 0.034 * h, 0.024 * h), c["nose"])
    light = nose + np.array([-0.01, -0.009]) * h
    painter.paint(ellipse(light, 0.010 * h, 0.006 * h), WHITE, opacity=0.75, clip=snout)
    paint_eyes(painter, pose, at, head, 0.522, 0.092, (0.022, 0.028), c["nose"], slide)
    for x in (-0.092 * flat, 0.092 * flat):
        brow = trace(at, (x - 0.02 * flat, 0.572), (x, 0.582), (x + 0.02 * flat, 0.572), shift=slide)
        painter.paint(tube(brow, [0.003 * h, 0.0055 * h, 0.003 * h]), edge, clip=head)
        cheek = ellipse(at(1.5 * x + slide, 0.455), 0.03 * h * flat, 0.02 * h)
        painter.paint(cheek, (0.95, 0.45, 0.38), opacity=0.5, clip=head)


def _mouth(painter: Painter, pose: Pose, at: At, slide: float, c: Colours) -> None:
    h, smile = pose.height, pose.key.smile
    painter.paint(strip(at, 0.0032 * h, (slide, 0.43), (slide, 0.405)), c["nose"])
    if smile > 0.3:
        drop = 0.02 + 0.03 * smile
        low, deep = 0.404 - 0.8 * drop, 0.404 - drop
        lips = patch(
            at, (-0.036, 0.406), (0, 0.404), (0.036, 0.406), (0.022, low), (0, deep), (-0.022, low), shift=slide
        )
        inside = painter.paint(lips, (0.42, 0.12, 0.14), outline=c["nose"], width=0.003 * h)
        painter.paint(ellipse(at(slide, deep), 0.02 * h, 0.5 * drop * h), (0.93, 0.47, 0.45), clip=inside)
    for side in (-1, 1):
        lip = ((0, 0.405), (side * 0.024, 0.394), (side * 0.046, 0.410))
        painter.paint(strip(at, 0.0032 * h, *lip, shift=slide), c["nose"])


def _scarf_end(painter: Painter, pose: Pose, at: At, c: Colours) -> None:
    h, swing = pose.height, dragged(pose) * (-0.05, 0.0) * pose.height
    end = [at(0.055, 0.29), at(0.068, 0.22) + swing * 0.5, at(0.075, 0.155) + swing]
    edge = shadow_of(c["scarf"], 1.4)
    cloth = tube(end, [0.026 * h, 0.030 * h, 0.033 * h])
    scarf = painter.paint(cloth, c["scarf"], outline=edge, width=0.004 * h, shade=0.6, shadow=0.15)
    _stripes(
        painter,
        h,
        c,
        scarf,
        [(at(0.02, v) + swing * 0.6, at(0.12, v - 0.008) + swing * 0.6) for v in (0.245, 0.195, 0.15)],
    )


def _collar(painter: Painter, pose: Pose, at: At, c: Colours) -> None:
    h = pose.height
    line = trace(at, (-0.118, 0.318), (-0.06, 0.292), (0.0, 0.284), (0.06, 0.292), (0.118, 0.318))
    around = tube(line, [0.028 * h, 0.031 * h, 0.032 * h, 0.031 * h, 0.028 * h])
    edge = shadow_of(c["scarf"], 1.4)
    collar = painter.paint(around, c["scarf"], outline=edge, width=0.004 * h, shade=0.7, softness=0.3, shadow=0.15)
    places = (-0.09, -0.04, 0.01, 0.06, 0.105)
    _stripes(painter, h, c, collar, [(at(u - 0.008, 0.25), at(u + 0.008, 0.35)) for u in places])


def _stripes(painter: Painter, h: float, c: Colours, clip: Stencil, lines: list[tuple[object, object]]) -> None:
    for ends in lines:
        painter.paint(tube(list(ends), [0.006 * h] * 2), c["stripe"], clip=clip)
