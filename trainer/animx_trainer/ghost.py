"""A ghost: no arms and no legs, so it can only sway, tilt and float."""

from __future__ import annotations

from animx_trainer.brush import Painter, Points, blob, mix, shadow_of, tube
from animx_trainer.choreography import Pose, Proportions
from animx_trainer.features import WHITE, Colours, dragged, paint_face, palettes, spine, trace

BODY = Proportions(
    head=0.46, shoulders=0.2, torso=0.34, upper_arm=0.1, forearm=0.1, hips=0.12, thigh=0.09, shin=0.09, sole=0.02,
    foot=0.05, face=0.36, eyes=0.075, ears=0.16,
)  # fmt: skip

PALETTES = palettes(
    "sheet=f7f5ff low=c9c2f2 eye=2b2350 cheek=ff9fb6",
    "sheet=eafff6 low=a9e2d0 eye=17403f cheek=ffb59c",
    "sheet=fff3e2 low=ffc9a3 eye=4a2436 cheek=ff8e8e",
)

SCENE = "night"
SHADOW = 0.0

_LEFT = ((-0.232, 0.2), (-0.228, 0.4), (-0.218, 0.58), (-0.18, 0.74), (-0.1, 0.845))
_HEM = (
    (0.235, 0.02), (0.185, -0.012), (0.145, 0.045), (0.10, 0.05), (0.065, -0.02), (0.01, -0.018), (-0.035, 0.05),
    (-0.085, 0.052), (-0.12, -0.012), (-0.18, -0.03), (-0.24, 0.03),
)  # fmt: skip


def draw(painter: Painter, pose: Pose, c: Colours) -> None:
    """Paint it in the pose.  Colours: see `PALETTES`."""
    h, at = pose.height, spine(pose, below=0.13)
    drag = dragged(pose) * (0.30, 0.12)
    edge = mix(shadow_of(c["low"], 1.0), c["eye"], 0.35)

    def loose(u: float, v: float) -> Points:
        """A place that follows the body later, the more the lower it lies."""
        lag: Points = drag * (max(0.0, 0.42 - v) ** 1.5 * h)
        return at(u, v) - lag

    right = tuple((-u, v) for u, v in reversed(_LEFT))
    sheet = painter.paint(
        blob(trace(loose, *_LEFT, (0.0, 0.875), *right, *_HEM)),
        c["sheet"],
        bottom=c["low"],
        outline=edge,
        width=0.004 * h,
        shade=0.65,
        softness=0.2,
    )
    for u, v in ((-0.14, 0.16), (0.02, 0.14), (0.15, 0.17)):
        fold = tube(trace(loose, (u, v), (u * 1.05, v * 0.5), (u * 1.1, 0.04)), [0.001 * h, 0.0055 * h, 0.006 * h])
        painter.paint(fold, mix(c["low"], edge, 0.35), opacity=0.55, clip=sheet)
    paint_face(
        painter, pose, at, sheet, v=0.60, eye=(0.036, 0.056), apart=0.083, cheek=c["cheek"], ink=c["eye"], mouth=0.062
    )
    shine = tube(trace(at, (-0.15, 0.70), (-0.115, 0.765), (-0.06, 0.81)), [0.006 * h, 0.011 * h, 0.005 * h])
    painter.paint(shine, WHITE, opacity=0.9, clip=sheet)
