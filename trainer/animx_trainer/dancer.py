"""The human dancer: skin, hair, a face, a shirt, trousers and shoes, drawn from joints with the brush.

A flat-coloured person with these parts is found by pose detectors, so a clip of it has true keypoints and can be
shown to anybody: no recording of a real person is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from animx.pose import skeleton as sk
from animx_trainer.brush import Colour, Painter, Points, Shape, Stencil, blob, ellipse, mix, shadow_of, tube
from animx_trainer.choreography import Pose, Proportions
from animx_trainer.features import palettes

FacePoint = Callable[[float, float], Points]

BODY = Proportions(
    head=0.222,
    shoulders=0.100,
    torso=0.275,
    upper_arm=0.152,
    forearm=0.135,
    hips=0.058,
    thigh=0.235,
    shin=0.225,
    sole=0.048,
    foot=0.085,
    face=0.43,
    eyes=0.030,
    ears=0.064,
)

PALETTES = palettes(
    "skin=eab48f hair=4a2b23 shirt=f2b134 trim=fff4dc trousers=34507f shoes=e4572e sole=fff7ee",
    "skin=8d5a3c hair=1f1a1c shirt=3fb8a9 trim=f4f1de trousers=3d3d56 shoes=f2cc8f sole=f7f4ea",
    "skin=f3c9a8 hair=b5532a shirt=d9577a trim=ffe9e0 trousers=46506a shoes=4fa3c7 sole=fdf7f2",
    "skin=c68a63 hair=2d2430 shirt=6a8ee0 trim=f6f3ff trousers=5b4a3f shoes=f5c84c sole=fffaf0",
)

SCENE = "studio"
SHADOW = 0.42


def draw(painter: Painter, pose: Pose, colours: Mapping[str, Colour]) -> None:
    """Paint the dancer.  `colours`: skin, hair, shirt, trim, trousers, shoes, sole."""
    h, j = pose.height, pose.joints
    line = 0.0035 * h
    far_leg, near_leg = ("left", "right") if j[sk.L_KNEE, 2] < j[sk.R_KNEE, 2] else ("right", "left")
    behind = [side for side in ("left", "right") if _is_behind(pose, side)]

    _hair_behind(painter, pose, colours["hair"], line)
    for side in ("left", "right"):
        _arm(painter, pose, side, colours, line)
    _leg(painter, pose, far_leg, colours, line)
    _leg(painter, pose, near_leg, colours, line, with_hips=True)
    _shirt(painter, pose, behind, colours, line)
    neck = j[sk.NECK, :2]
    chin = neck + (j[sk.NOSE, :2] - neck) * 0.45
    painter.paint(
        tube([neck - _down(pose) * 0.012 * h, chin], [0.029 * h, 0.027 * h]),
        shadow_of(colours["skin"], 0.45),
        outline=shadow_of(colours["skin"], 1.3),
        width=line * 0.6,
    )
    _collar(painter, pose, colours, line)
    _head(painter, pose, colours, line)
    for side in ("left", "right"):
        if side not in behind:
            _forearm(painter, pose, side, colours, line)


def _is_behind(pose: Pose, side: str) -> bool:
    j = pose.joints
    shoulder, elbow, wrist = _arm_joints(side)
    return float(j[elbow, 2] + j[wrist, 2]) / 2 - float(j[shoulder, 2]) < -0.03 * pose.height


def _arm_joints(side: str) -> tuple[int, int, int]:
    return (sk.L_SHOULDER, sk.L_ELBOW, sk.L_WRIST) if side == "left" else (sk.R_SHOULDER, sk.R_ELBOW, sk.R_WRIST)


def _down(pose: Pose) -> Points:
    """Unit vector from neck to mid-hip in the picture."""
    j = pose.joints[:, :2]
    spine = (j[sk.R_HIP] + j[sk.L_HIP]) / 2 - j[sk.NECK]
    return np.asarray(spine / max(float(np.linalg.norm(spine)), 1e-9))


def _shirt(painter: Painter, pose: Pose, behind: Sequence[str], colours: Mapping[str, Colour], line: float) -> None:
    """Torso and sleeves in one piece; the sleeve of an arm behind the back is painted before it."""
    h, j = pose.height, pose.joints[:, :2]
    down = _down(pose)
    side = np.array([-down[1], down[0]])  # towards the character's right for an upright body
    side = side if side @ (j[sk.R_SHOULDER] - j[sk.L_SHOULDER]) > 0 else -side
    rs, ls, neck = j[sk.R_SHOULDER], j[sk.L_SHOULDER], j[sk.NECK]
    hip = (j[sk.R_HIP] + j[sk.L_HIP]) / 2
    waist = hip - down * 0.085 * h
    top = neck - down * 0.012 * h
    width = max(0.55, float(np.linalg.norm(rs - ls)) / (2 * BODY.unit().shoulders * h))
    outline = [
        top + side * 0.036 * h,
        rs - down * 0.018 * h + side * 0.012 * h,
        rs + down * 0.075 * h - side * 0.008 * h,
        waist + side * 0.088 * h * width,
        hip + side * 0.112 * h + down * 0.018 * h,
        hip + side * 0.06 * h + down * 0.034 * h,
        hip - side * 0.06 * h + down * 0.034 * h,
        hip - side * 0.112 * h + down * 0.018 * h,
        waist - side * 0.088 * h * width,
        ls + down * 0.075 * h + side * 0.008 * h,
        ls - down * 0.018 * h - side * 0.012 * h,
        top - side * 0.036 * h,
    ]
    cloth, edge = colours["shirt"], shadow_of(colours["shirt"], 1.5)
    sleeves = {name: _sleeve(pose, name) for name in ("left", "right")}
    for name in behind:
        painter.paint(sleeves[name], cloth, outline=edge, width=line, shade=0.5)
    front = [sleeves[name] for name in ("left", "right") if name not in behind]
    painter.paint([blob(outline), *front], cloth, outline=edge, width=line, shade=0.75, softness=0.12, shadow=0.25)
    for name in ("left", "right"):
        if name not in behind:
            s, e = (pose.joints[i, :2] for i in _arm_joints(name)[:2])
            along = (e - s) / max(float(np.linalg.norm(e - s)), 1.0)
            at = s + (e - s) * 0.38 + along * 0.03 * h
            wide = np.array([-along[1], along[0]]) * 0.06 * h
            cuff = painter.paint(sleeves[name], cloth, opacity=0.0)
            painter.paint(tube([at + wide, at - wide], [0.009 * h] * 2), colours["trim"], clip=cuff)
    body = painter.paint(blob(outline), cloth, opacity=0.0)
    turn = np.sin(np.radians(pose.key.yaw)) * 0.05 * h
    for low, share in ((0.135, 1.0), (0.158, 0.55)):
        middle = neck + down * low * h - side * turn
        painter.paint(
            tube(
                [middle + side * 0.15 * h, middle + down * 0.008 * h, middle - side * 0.15 * h], [0.009 * h * share] * 3
            ),
            colours["trim"],
            clip=body,
            opacity=0.9,
        )


def _collar(painter: Painter, pose: Pose, colours: Mapping[str, Colour], line: float) -> None:
    h, neck, down = pose.height, pose.joints[sk.NECK, :2], _down(pose)
    side = np.array([-down[1], down[0]])
    shift = np.sin(np.radians(pose.key.yaw)) * 0.016 * h * np.array([1.0, 0.0])
    a, b, c = (
        neck + side * 0.037 * h - down * 0.012 * h,
        neck + down * 0.022 * h + shift,
        neck - side * 0.037 * h - down * 0.012 * h,
    )
    painter.paint(
        tube([a, b, c], [0.009 * h] * 3), colours["trim"], outline=shadow_of(colours["shirt"], 1.5), width=line * 0.7
    )


def _sleeve(pose: Pose, side: str) -> Shape:
    h = pose.height
    s, e = (pose.joints[i, :2] for i in _arm_joints(side)[:2])
    return tube([s, s + (e - s) * 0.2, s + (e - s) * 0.38], [0.036 * h, 0.041 * h, 0.044 * h])


def _hand(pose: Pose, side: str) -> list[Shape]:
    h = pose.height
    _, e, w = (pose.joints[i, :2] for i in _arm_joints(side))
    fore = (w - e) / max(float(np.linalg.norm(w - e)), 0.02 * h)
    across = np.array([-fore[1], fore[0]]) * (1 if side == "left" else -1)
    palm = w + fore * 0.024 * h
    shapes: list[Shape] = [tube([w, palm], [0.019 * h, 0.0235 * h])]
    for k, length in ((-0.9, 0.042), (-0.3, 0.052), (0.3, 0.050), (0.9, 0.040)):
        root = palm + across * k * 0.0155 * h
        tip = root + (fore + across * 0.22 * k) * length * h
        shapes.append(tube([root, tip], [0.0092 * h, 0.0078 * h]))
    bend = [w + fore * 0.006 * h, w + fore * 0.022 * h - across * 0.024 * h, w + fore * 0.042 * h - across * 0.031 * h]
    shapes.append(tube(bend, [0.009 * h, 0.0088 * h, 0.007 * h]))
    return shapes


def _arm(painter: Painter, pose: Pose, side: str, colours: Mapping[str, Colour], line: float) -> None:
    h = pose.height
    s, e, w = (pose.joints[i, :2] for i in _arm_joints(side))
    skin, edge = colours["skin"], shadow_of(colours["skin"], 1.3)
    hand = _hand(pose, side)
    bare = tube([s + (e - s) * 0.3, e, e + (w - e) * 0.45, w], [0.031 * h, 0.0265 * h, 0.0265 * h, 0.019 * h], steps=10)
    painter.paint([bare, *hand], skin, outline=edge, width=line * 0.8, shade=0.6, softness=0.08, shadow=0.3)


def _forearm(painter: Painter, pose: Pose, side: str, colours: Mapping[str, Colour], line: float) -> None:
    """The forearm and hand once more, over shirt and head: outline below the elbow only, so that no seam shows."""
    h = pose.height
    s, e, w = (pose.joints[i, :2] for i in _arm_joints(side))
    skin, edge = colours["skin"], shadow_of(colours["skin"], 1.3)
    hand = _hand(pose, side)
    middle = e + (w - e) * 0.45
    below = tube([e + (w - e) * 0.25, middle, w], [0.0265 * h, 0.0265 * h, 0.019 * h])
    painter.paint([below, *hand], skin, outline=edge, width=line * 0.8, shadow=0.22)
    whole = tube([e + (s - e) * 0.16, e, middle, w], [0.0275 * h, 0.0265 * h, 0.0265 * h, 0.019 * h], steps=10)
    painter.paint([whole, *hand], skin, shade=0.6, softness=0.08)


def _leg(
    painter: Painter, pose: Pose, side: str, colours: Mapping[str, Colour], line: float, *, with_hips: bool = False
) -> None:
    h, j = pose.height, pose.joints[:, :2]
    ids = (
        (sk.L_HIP, sk.L_KNEE, sk.L_ANKLE, sk.L_BIG_TOE, sk.L_HEEL)
        if side == "left"
        else (sk.R_HIP, sk.R_KNEE, sk.R_ANKLE, sk.R_BIG_TOE, sk.R_HEEL)
    )
    hip, knee, ankle, toe, heel = (j[i] for i in ids)
    _shoe(painter, h, ankle, toe, heel, colours, line)
    shapes = [
        tube([hip, hip + (knee - hip) * 0.5, knee, knee + (ankle - knee) * 0.45, ankle - (ankle - knee) * 0.02],
             [0.057 * h, 0.055 * h, 0.045 * h, 0.040 * h, 0.035 * h], steps=10)
    ]  # fmt: skip
    if with_hips:
        other = j[sk.R_HIP] if side == "left" else j[sk.L_HIP]
        shapes.append(tube([hip, other], [0.055 * h, 0.055 * h]))
    cloth = colours["trousers"]
    trousers = painter.paint(
        shapes, cloth, outline=shadow_of(cloth, 1.5), width=line, shade=0.7, softness=0.12, shadow=0.3
    )
    end, along = ankle - (ankle - knee) * 0.02, (ankle - knee) / max(float(np.linalg.norm(ankle - knee)), 1.0)
    wide = np.array([-along[1], along[0]]) * 0.05 * h
    cuff = end + along * 0.022 * h
    painter.paint(tube([cuff + wide, cuff - wide], [0.014 * h] * 2), mix(cloth, (1, 1, 1), 0.35), clip=trousers)


def _shoe(
    painter: Painter, h: float, ankle: Points, toe: Points, heel: Points, colours: Mapping[str, Colour], line: float
) -> None:
    edge = shadow_of(colours["shoes"], 1.5)
    painter.paint(tube([ankle, ankle + (toe - ankle) * 0.2], [0.024 * h, 0.026 * h]), shadow_of(colours["skin"], 0.4))
    upper = [
        tube([ankle + (heel - ankle) * 0.3, ankle + (toe - ankle) * 0.25], [0.029 * h, 0.032 * h]),
        tube([heel, heel + (toe - heel) * 0.5, toe], [0.022 * h, 0.029 * h, 0.027 * h]),
    ]
    shoe = painter.paint(upper, colours["shoes"], outline=edge, width=line, shade=0.6, softness=0.3)
    down = np.array([0.0, 1.0]) if abs(toe[1] - heel[1]) < 0.05 * h else np.array([0.0, 0.6])
    sole = [tube([heel + down * 0.020 * h, toe + down * 0.022 * h], [0.011 * h, 0.011 * h])]
    painter.paint(sole, colours["sole"], clip=shoe)
    lace = ankle + (toe - ankle) * 0.45
    across = np.array([-(toe - ankle)[1], (toe - ankle)[0]])
    across = across / max(float(np.linalg.norm(across)), 1e-9) * 0.018 * h
    painter.paint(tube([lace - across, lace + across], [0.004 * h] * 2), colours["sole"], clip=shoe)


def _skull(pose: Pose) -> tuple[Points, Points, Points, float]:
    """Centre of the head, its up and right (picture) unit vectors, and how far it is turned (-1..1)."""
    neck, top = pose.joints[sk.NECK, :2], pose.head_top[:2]
    up = (top - neck) / max(float(np.linalg.norm(top - neck)), 1e-9)
    right = np.array([-up[1], up[0]])
    centre = neck + (top - neck) * 0.54
    turn = np.sin(np.radians(0.75 * pose.key.yaw + pose.key.look))
    return centre, up, right, float(turn)


def _hair_behind(painter: Painter, pose: Pose, hair: Colour, line: float) -> None:
    h = pose.height
    centre, up, right, turn = _skull(pose)
    dx, dy = np.clip(np.array(pose.drag), -1.2, 1.2)
    knot = centre + up * 0.062 * h - right * (0.050 + 0.03 * turn) * h
    swing = -right * (0.035 + 0.05 * turn) * h - np.array([dx, dy]) * 0.075 * h
    tail = [
        knot,
        knot + swing * 0.7 - up * 0.035 * h,
        knot + swing * 1.25 - up * 0.11 * h,
        knot + swing * 1.2 - up * 0.175 * h,
    ]
    edge = shadow_of(hair, 1.2)
    painter.paint(
        tube(tail, [0.022 * h, 0.033 * h, 0.027 * h, 0.004 * h], steps=10),
        hair,
        outline=edge,
        width=line,
        shade=0.7,
        softness=0.3,
    )
    painter.paint(ellipse(centre + up * 0.012 * h, 0.081 * h, 0.091 * h, 0.0), hair, outline=edge, width=line)


def _head(painter: Painter, pose: Pose, colours: Mapping[str, Colour], line: float) -> None:
    h = pose.height
    centre, up, right, turn = _skull(pose)
    skin, edge = colours["skin"], shadow_of(colours["skin"], 1.3)

    def at(x: float, y: float) -> Points:
        """A point of the face: x to the picture's right, y up, in hundredths of the height; turns with the head."""
        depth = np.sqrt(max(0.0, 1 - min(1.0, abs(x) / 8.5) ** 2))
        return np.asarray(
            centre + right * (x * np.sqrt(1 - turn**2) + turn * 5.0 * depth) * 0.01 * h + up * y * 0.01 * h
        )

    flat = float(np.sqrt(1 - turn**2))
    for x in (-1.0, 1.0):
        ear = centre + right * x * (7.0 * 0.01 * h) * flat - up * 0.012 * h - right * turn * 0.012 * h
        painter.paint(ellipse(ear, 0.013 * h, 0.020 * h), skin, outline=edge, width=line * 0.8, shade=0.4)
    face = [
        centre + right * a * 0.01 * h + up * b * 0.01 * h
        for a, b in ((0, 8.6), (5.2, 7.0), (7.1, 2.2), (6.7, -2.6), (4.2, -6.8), (0, -8.6), (-4.2, -6.8), (-6.7, -2.6),
                     (-7.1, 2.2), (-5.2, 7.0))
    ]  # fmt: skip
    head = painter.paint(blob(face), skin, outline=edge, width=line * 0.8, shade=0.55, softness=0.25)
    cheek = mix(skin, (0.93, 0.35, 0.3), 0.45)
    for x in (-4.3, 4.3):
        painter.paint(ellipse(at(x, -3.0), 0.016 * h * flat, 0.011 * h), cheek, opacity=0.55, clip=head)
    _eyes(painter, pose, at, flat, colours, head)
    painter.paint(
        tube([at(0.1, -0.6), at(0.75, -1.9), at(-0.2, -2.2)], [0.0016 * h, 0.0028 * h, 0.002 * h]), edge, opacity=0.8
    )
    _mouth(painter, pose, at, flat, edge)
    fringe = [
        at(-8.2, 1.4), at(-8.0, 6.0), centre + right * -0.045 * h + up * 0.093 * h, centre + up * 0.103 * h,
        centre + right * 0.05 * h + up * 0.092 * h, at(8.0, 6.0), at(8.3, 1.2), at(7.0, 3.4), at(5.2, 5.4),
        at(2.2, 6.4), at(-0.8, 5.2), at(-3.6, 5.8), at(-6.4, 4.0),
    ]  # fmt: skip
    painter.paint(
        blob(fringe), colours["hair"], outline=shadow_of(colours["hair"], 1.2), width=line, shade=0.9, softness=0.35
    )


def _eyes(
    painter: Painter, pose: Pose, at: FacePoint, flat: float, colours: Mapping[str, Colour], head: Stencil
) -> None:
    h = pose.height
    dark = (0.13, 0.10, 0.14)
    for x in (-3.0, 3.0):
        eye = at(x, 0.5)
        openness = max(0.06, 1 - pose.blink)
        white = painter.paint(
            ellipse(eye, 0.0155 * h * flat, 0.0145 * h * openness),
            (1.0, 0.99, 0.97),
            outline=dark,
            width=0.0022 * h,
            clip=head,
        )
        if pose.blink < 0.7:
            iris = eye + (at(x + 0.25, 0.3) - eye)
            painter.paint(ellipse(iris, 0.0112 * h * flat, 0.0122 * h), mix(colours["hair"], dark, 0.35), clip=white)
            painter.paint(ellipse(iris, 0.0062 * h * flat, 0.0072 * h), dark, clip=white)
            painter.paint(ellipse(iris + np.array([-0.003, -0.004]) * h, 0.0035 * h, 0.0035 * h), (1, 1, 1), clip=white)
        painter.paint(
            tube([at(x - 1.7, 3.2), at(x, 3.9), at(x + 1.7, 3.3)], [0.0018 * h, 0.0030 * h, 0.0018 * h]),
            shadow_of(colours["hair"], 0.6),
            clip=head,
        )


def _mouth(painter: Painter, pose: Pose, at: FacePoint, flat: float, edge: Colour) -> None:
    h, wide = pose.height, pose.key.smile
    x, drop = 2.0 + 0.7 * wide, 0.6 + 2.2 * wide
    if wide < 0.25:
        painter.paint(tube([at(-x, -4.5), at(0, -5.3), at(x, -4.5)], [0.0016 * h, 0.003 * h, 0.0016 * h]), edge)
        return
    lips = blob(
        [
            at(-x, -4.4),
            at(0, -4.75),
            at(x, -4.4),
            at(x * 0.62, -4.6 - drop * 0.75),
            at(0, -4.6 - drop),
            at(-x * 0.62, -4.6 - drop * 0.75),
        ]
    )
    inside = painter.paint(lips, (0.48, 0.13, 0.16), outline=edge, width=0.0022 * h)
    painter.paint(tube([at(-x, -4.5), at(0, -4.9), at(x, -4.5)], [0.0055 * h] * 3), (1, 1, 1), clip=inside)
    painter.paint(ellipse(at(0.2, -4.9 - drop), 0.015 * h * flat, 0.009 * h), (0.9, 0.42, 0.42), clip=inside)
