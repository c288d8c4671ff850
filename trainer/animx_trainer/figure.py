"""A dance on a body: exact joints, and the parts a figure is drawn from.

Everything is seen straight from the front.  Space: x to the picture's right, y down with the floor at 0, z towards the
viewer, in units of the body (`animx_trainer.bodies`).  Left is the character's own left, on the picture's right.
Legs follow their feet by two-bone inverse kinematics, so that standing feet stand; hips come down where a foot would
be out of reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.pose import skeleton as sk
from animx_trainer.bodies import Character
from animx_trainer.motion import AT, Numbers

BODY_JOINTS = 24
"""Joints that are computed: OpenPose body and feet (0..23 of the layout)."""
FLOOR = 0.95
"""Where the floor lies [canvas heights]."""
ANKLE = 0.035
"""Height of the ankle above the floor."""
_SIDES = ((1.0, "left"), (-1.0, "right"))
_ARM = {"left": (sk.L_SHOULDER, sk.L_ELBOW, sk.L_WRIST), "right": (sk.R_SHOULDER, sk.R_ELBOW, sk.R_WRIST)}
_LEG = {"left": (sk.L_HIP, sk.L_KNEE, sk.L_ANKLE), "right": (sk.R_HIP, sk.R_KNEE, sk.R_ANKLE)}
_FOOT = {"left": (sk.L_BIG_TOE, sk.L_SMALL_TOE, sk.L_HEEL), "right": (sk.R_BIG_TOE, sk.R_SMALL_TOE, sk.R_HEEL)}


@dataclass(frozen=True)
class Figure:
    """Where a body is over T moments, in its own units."""

    joints: Numbers  # [T, 24, 3]
    head: Numbers  # [T, 3] middle of the head
    up: Numbers  # [T, 2] direction from the neck to the top of the head, of length 1
    right: Numbers  # [T, 2] direction to the picture's right of the head, across `up`
    turned: Numbers  # [T, 2] sine and cosine of how far the face is turned to the picture's right
    hips: Numbers  # [T, 3]


def present(who: Character) -> NDArray[np.bool_]:
    """Which of the 24 joints the character has."""
    have = np.ones(BODY_JOINTS, bool)
    if not who.has_arms:
        have[[sk.L_ELBOW, sk.L_WRIST, sk.R_ELBOW, sk.R_WRIST]] = False
    if not who.has_legs:
        have[[sk.L_KNEE, sk.L_ANKLE, sk.R_KNEE, sk.R_ANKLE, *sk.FEET]] = False
    return have


def pose(who: Character, rows: Numbers, jump: Numbers) -> Figure:
    """The body at channels `rows` [T, D] and jumps [T] of a dance."""
    count = len(rows)
    angle = np.radians(rows)
    channel = {name: angle[:, i] for name, i in AT.items()}
    joints = np.zeros((count, BODY_JOINTS, 3))
    leg = who.thigh + who.shin
    unit = leg if who.has_legs else 0.4 * who.torso
    lifted = jump * max(leg, 0.35 * who.torso)
    hips = np.zeros((count, 3))
    hips[:, 0] = rows[:, AT["x"]] * unit
    cos_yaw, sin_yaw, sway = np.cos(channel["yaw"]), np.sin(channel["yaw"]), channel["sway"]
    ankles = _ankles(who, rows, leg, lifted)
    offset = who.hips * np.stack([cos_yaw * np.cos(sway), -np.sin(sway), -sin_yaw], 1)  # of the left hip joint
    hips[:, 1] = -_hip_height(who, rows, hips[:, 0], ankles, offset) - lifted
    for sign, side in _SIDES:
        hip, knee, ankle = _LEG[side]
        joints[:, hip] = hips + sign * offset
        if who.has_legs:
            joints[:, ankle] = ankles[side]
            joints[:, knee] = _knee(joints[:, hip], joints[:, ankle], who.thigh, who.shin, sign)
            big, small, heel = _FOOT[side]
            for toe, outward, forward in ((big, 0.03, 0.5), (small, 0.07, 0.4), (heel, -0.01, -0.2)):
                joints[:, toe] = joints[:, ankle] + np.array([sign * outward, 0.9 * ANKLE, 0.12 * forward])
    lean = channel["lean"]
    spine = np.stack([np.sin(lean), -np.cos(lean), np.zeros(count)], 1)
    neck = joints[:, sk.NECK] = hips + who.torso * spine
    for sign, side in _SIDES:
        shoulder, elbow, wrist = _ARM[side]
        along = np.stack([np.cos(lean) * cos_yaw, np.sin(lean) * cos_yaw, -sin_yaw], 1)
        joints[:, shoulder] = neck + sign * who.shoulders * along
        upper, lower = _arm(channel, side, sign, lean)
        joints[:, elbow] = joints[:, shoulder] + who.upper_arm * upper
        joints[:, wrist] = joints[:, elbow] + who.forearm * lower
    tilt = lean + channel["tilt"]
    up = np.stack([np.sin(tilt), -np.cos(tilt)], 1)
    head = neck + (who.neck + who.head) * np.stack([up[:, 0], up[:, 1], np.zeros(count)], 1)
    turn = channel["yaw"] + channel["look"]
    right, turned = np.stack([-up[:, 1], up[:, 0]], 1), np.stack([np.sin(turn), np.cos(turn)], 1)
    figure = Figure(joints, head, up, right, turned, hips)
    wide = who.head * who.head_wide
    for joint, x, y in ((sk.NOSE, 0.0, -0.08), (sk.L_EYE, 0.42, 0.18), (sk.R_EYE, -0.42, 0.18),
                        (sk.L_EAR, 1.0, 0.05), (sk.R_EAR, -1.0, 0.05)):  # fmt: skip
        joints[:, joint, :2] = on_head(figure, wide, who.head, x, y)
    return figure


def on_head(figure: Figure, wide: float, high: float, x: float, y: float) -> Numbers:
    """A point of the head [T, 2]: `x` -1..1 from the character's right to its left, turning with it; `y` upwards."""
    depth = math.sqrt(max(1 - x * x, 0))
    across = wide * (x * figure.turned[:, 1:] + depth * figure.turned[:, :1])
    found: Numbers = figure.head[:, :2] + across * figure.right + high * y * figure.up
    return found


def _ankles(who: Character, rows: Numbers, leg: float, lifted: Numbers) -> dict[str, Numbers]:
    found = {}
    for sign, side in _SIDES:
        x = sign * (who.hips + rows[:, AT[f"{side}_x"]] * leg)
        y = -ANKLE - rows[:, AT[f"{side}_lift"]] * leg - lifted
        found[side] = np.stack([x, y, rows[:, AT[f"{side}_z"]] * leg], 1)
    return found


def _hip_height(who: Character, rows: Numbers, x: Numbers, ankles: dict[str, Numbers], offset: Numbers) -> Numbers:
    """Height of the hips over the floor [T] before a jump: as danced, lowered until both feet are in reach."""
    leg = who.thigh + who.shin
    if leg == 0:
        return np.asarray(ANKLE + (rows[:, AT["high"]] - 0.8) * 0.12 * who.torso)
    height = ANKLE + rows[:, AT["high"]] * leg
    for sign, side in _SIDES:
        aside = ankles[side][:, 0] - (x + sign * offset[:, 0])
        square = (0.995 * leg) ** 2 - aside**2 - (ankles[side][:, 2] - sign * offset[:, 2]) ** 2
        above = np.sqrt(np.maximum(square, (0.3 * leg) ** 2))
        height = np.minimum(height, ANKLE + rows[:, AT[f"{side}_lift"]] * leg + above + sign * offset[:, 1])
    return height


def _knee(hip: Numbers, ankle: Numbers, thigh: float, shin: float, sign: float) -> Numbers:
    """The knee [T, 3] of a leg from hip to ankle, bent outward and towards the viewer."""
    way = ankle - hip
    length = np.sqrt((way * way).sum(1, keepdims=True))
    axis = way / length
    along = (thigh**2 - shin**2 + length**2) / (2 * length)
    aside = np.sqrt(np.maximum(thigh**2 - along**2, 0))
    bend = np.array([sign * 0.75, 0.0, 0.66])
    bend = bend - (axis @ bend)[:, None] * axis
    bend /= np.sqrt((bend * bend).sum(1, keepdims=True))
    result: Numbers = hip + along * axis + aside * bend
    return result


def _arm(channel: dict[str, Numbers], side: str, sign: float, lean: Numbers) -> tuple[Numbers, Numbers]:
    """Directions of upper arm and forearm [T, 3], of length 1."""
    swing, forward, bend, roll = (channel[f"{side}_{name}"] for name in ("swing", "forward", "bend", "roll"))
    swing = swing - sign * lean
    sin, cos, sin_f, cos_f = np.sin(swing), np.cos(swing), np.sin(forward), np.cos(forward)
    upper = np.stack([sign * sin * cos_f, cos * cos_f, sin_f], 1)
    raising = np.stack([sign * cos, -sin, np.zeros_like(sin)], 1)
    front = np.stack([-sign * sin * sin_f, -cos * sin_f, cos_f], 1)
    turned = np.cos(roll)[:, None] * raising + np.sin(roll)[:, None] * front
    return upper, np.cos(bend)[:, None] * upper + np.sin(bend)[:, None] * turned


def height_of(who: Character) -> float:
    """Floor to top of the head when standing, without hats."""
    leg = who.thigh + who.shin
    return ANKLE + (0.985 * leg if leg else 0.02 * who.torso) + who.torso + who.neck + 2 * who.head


def camera(who: Character, canvas: Canvas) -> tuple[float, float, float]:
    """Pixels per unit, and where x = 0 and the floor lie [px]: constant for a character, so that whatever it dances
    stays in the picture."""
    leg = who.thigh + who.shin
    arm = who.upper_arm + who.forearm
    top = height_of(who)
    hat = {"top": 0.7, "cone": 1.0, "horn": 0.5, "cap": 0.25, "antenna": 0.6, "canopy": 0.7}.get(who.hat, 0.15)
    ears = {"long": 1.1, "pointed": 0.55, "round": 0.35}.get(who.ears, 0.0)
    tall = max(top + max(hat, ears) * who.head, ANKLE + leg + who.torso + 1.02 * arm)
    tall += 0.06 * max(leg, 0.35 * who.torso)
    room = 0.2 * (leg or 0.4 * who.torso)
    wide = max(room + who.shoulders + 0.95 * arm, 1.2 * who.head * who.head_wide + room, 1.3 * who.waist + room)
    scale = min(0.93 * canvas.height / tall, 0.5 * canvas.width / wide)
    return scale, canvas.width / 2, FLOOR * canvas.height


def keypoints(figure: Figure, view: tuple[float, float, float]) -> NDArray[np.float32]:
    """Joints [T, 24, 2] in px, x first."""
    scale, middle, floor = view
    return np.asarray(figure.joints[..., :2] * scale + np.array([middle, floor]), np.float32)
