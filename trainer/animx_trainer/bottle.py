"""A juice bottle with a face, thin arms and short legs: the case for which legs are rescaled."""

from __future__ import annotations

import numpy as np

from animx_trainer.brush import Painter, Points, Stencil, ellipse, mix, polygon, shadow_of
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
    turned,
)

BODY = Proportions(
    head=0.42, shoulders=0.148, torso=0.26, upper_arm=0.125, forearm=0.115, hips=0.092, thigh=0.075, shin=0.075,
    sole=0.045, foot=0.07, face=0.12, eyes=0.055, ears=0.13,
)  # fmt: skip

PALETTES = palettes(
    "glass=ffd59a juice=ff9a2e deep=f26a1b label=fff6e0 mark=f2762e cap=2fa36b limb=3a3140 glove=ffffff shoe=2fa36b",
    "glass=f9b9cb juice=e8527a deep=b92b58 label=fff3f6 mark=d43d6a cap=4b5fd1 limb=2e2a44 glove=ffffff shoe=4b5fd1",
    "glass=d9efa6 juice=a6cf3b deep=6fa126 label=fbffe9 mark=79a92a cap=e2572f limb=34402c glove=ffffff shoe=e2572f",
)

SCENE = "mint"
SHADOW = 0.0


def draw(painter: Painter, pose: Pose, c: Colours) -> None:
    """Paint it in the pose.  Colours: see `PALETTES`."""
    h, line, at = pose.height, 0.004 * pose.height, spine(pose, below=0.045)
    radii = (0.021, 0.019, 0.018)
    paint_arms(painter, pose, c["limb"], radii, c["glove"], 0.044, behind=True)
    paint_legs(painter, pose, c["limb"], (0.024, 0.022, 0.021), c["shoe"], 0.033)
    edge = shadow_of(c["juice"], 1.35)
    body = both_sides(
        at, (0.11, 0.0), (0.148, 0.02), (0.152, 0.06), (0.152, 0.40), (0.146, 0.46), (0.118, 0.52), (0.078, 0.565),
        (0.064, 0.60), (0.062, 0.655),
    )  # fmt: skip
    glass = painter.paint(body, c["glass"], outline=edge, width=line, shade=0.4, softness=0.2)
    _juice(painter, pose, at, c, glass)
    _label(painter, pose, at, c, glass)
    cheek = (1.0, 0.45, 0.42)
    paint_face(painter, pose, at, glass, v=0.335, eye=(0.024, 0.033), apart=0.062, cheek=cheek, mouth=0.05)
    for u, low, high, radius, strength in (
        (-0.128, 0.08, 0.42, 0.0085, 0.65),
        (-0.106, 0.33, 0.43, 0.005, 0.5),
        (0.134, 0.06, 0.2, 0.005, 0.35),
    ):
        shine = strip(at, radius * h, (u, low), (u, (low + high) / 2), (u * 0.97, high))
        painter.paint(shine, WHITE, opacity=strength, clip=glass)
    painter.paint(strip(at, 0.005 * h, (-0.082, 0.5), (-0.056, 0.545)), WHITE, opacity=0.7, clip=glass)
    ring = patch(at, (-0.07, 0.628), (-0.072, 0.65), (0.072, 0.65), (0.07, 0.628))
    painter.paint(ring, c["glass"], outline=edge, width=line * 0.8)
    lid = both_sides(at, (0.04, 0.641), (0.079, 0.648), (0.08, 0.70), (0.066, 0.727), (0.03, 0.732))
    cap = painter.paint(lid, c["cap"], outline=shadow_of(c["cap"], 1.5), width=line, shade=0.8, softness=0.35)
    for u in np.linspace(-0.066, 0.066, 7):
        groove = strip(at, 0.0028 * h, (u, 0.655), (u, 0.695))
        painter.paint(groove, shadow_of(c["cap"], 0.9), opacity=0.6, clip=cap)
    paint_arms(painter, pose, c["limb"], radii, c["glove"], 0.044, behind=False)


def _juice(painter: Painter, pose: Pose, at: At, c: Colours, glass: Stencil) -> None:
    """The juice stays level a little longer than the bottle, and carries bubbles."""
    h, slosh = pose.height, float(dragged(pose)[0]) * 0.02
    fill = patch(
        at, (0.17, -0.03), (0.17, 0.2), (0.17, 0.505 + slosh), (0.08, 0.512 + slosh * 0.4), (0.0, 0.51),
        (-0.08, 0.512 - slosh * 0.4), (-0.17, 0.505 - slosh), (-0.17, 0.2), (-0.17, -0.03),
    )  # fmt: skip
    inside = painter.paint(fill, c["juice"], bottom=c["deep"], clip=glass, shade=0.55, softness=0.3)
    pale = mix(c["juice"], WHITE, 0.6)
    for u, v, radius in (
        (-0.08, 0.475, 0.008),
        (-0.05, 0.49, 0.005),
        (0.085, 0.46, 0.006),
        (0.075, 0.485, 0.009),
        (0.04, 0.492, 0.004),
    ):
        painter.paint(ellipse(at(u, v), radius * h, radius * h), pale, opacity=0.8, clip=inside)


def _label(painter: Painter, pose: Pose, at: At, c: Colours, glass: Stencil) -> None:
    """A paper label with a slice of fruit."""
    h = pose.height
    band = patch(
        at, (-0.2, 0.03), (-0.2, 0.10), (-0.2, 0.17), (0.0, 0.158), (0.2, 0.17), (0.2, 0.10), (0.2, 0.03), (0.0, 0.018)
    )
    label = painter.paint(band, c["label"], clip=glass)
    for v in (0.028, 0.160):
        stripe = strip(at, 0.0045 * h, (-0.16, v + 0.009), (0, v - 0.002), (0.16, v + 0.009))
        painter.paint(stripe, c["mark"], clip=label)
    centre = at(turned(pose) * 0.03, 0.094)
    painter.paint(ellipse(centre, 0.046 * h, 0.046 * h), c["mark"], clip=label)
    painter.paint(ellipse(centre, 0.038 * h, 0.038 * h), mix(c["juice"], WHITE, 0.75), clip=label)
    for angle in np.arange(6) * np.pi / 3 + 0.26:
        wedge = [
            centre + _ray(angle) * 0.006 * h,
            centre + _ray(angle - 0.4) * 0.031 * h,
            centre + _ray(angle + 0.4) * 0.031 * h,
        ]
        painter.paint(polygon(wedge), c["juice"], clip=label)


def _ray(angle: float) -> Points:
    return np.array([np.cos(angle), np.sin(angle)])
