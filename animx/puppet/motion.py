"""From retargeted poses to what the puppet does: where each joint is aimed, and the turn and stretch of each bone.

In: a `RenderJob` (poses aligned to the reference) and the figure's `Anatomy`.  Out: a `Motion`.  Limits, on purpose:
limb directions are taken as they are; a bone is as long as in the picture times its rescale factor (from `history`)
times its foreshortening, clipped; trunk and head turn relative to the clip's median; the lower foot stands on the
figure's floor; what was dropped or never seen keeps its rest pose.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from animx.engine import RenderJob
from animx.errors import InputError
from animx.pose.skeleton import L_HIP, L_SHOULDER, MID_HIP, NECK, NOSE, R_HIP, R_SHOULDER
from animx.puppet.anatomy import ARM, BODY_JOINTS, EARS, EYES, FLESH, LEG, SIDES, Anatomy, study
from animx.puppet.series import (
    bounded,
    circular_median,
    directions,
    filled,
    hysteresis,
    running_percentile,
    soft_threshold,
    standing_level,
    upper_percentile,
    wrapped,
)
from animx.retarget.groups import UNITS
from animx.retarget.history import cumulative_factors

Series = NDArray[np.float64]
Flags = NDArray[np.bool_]

FORESHORTENING = {"arm": (0.45, 1.1), "leg": (0.6, 1.1), "trunk": (0.8, 1.05)}
"""Shortest and longest a bone is drawn, over its length in the picture."""
HEAD_TILT = 0.7
"""Share of the driver's head tilt that the head follows."""
MAX_HEAD_TURN = 0.6
"""Largest turn of the head against the trunk [rad]."""
LIFT = 0.04
"""A foot lower than this over the floor stands on it (share of the figure's height)."""
SMALLEST_ZOOM = 0.8
"""A figure is made no smaller than this to keep its head in the picture."""
TURNED = 0.1
"""Share of frames with swapped shoulders from which the back view is worth a warning."""


@dataclass(frozen=True)
class Limb:
    """Two bones of one chain over the clip."""

    turn: Series  # [2, T] rad against the picture
    stretch: Series  # [2, T] length over the picture's
    grow: float = 1.0
    """Uniform growth about the root (the head)."""
    tip: float = 1.0
    """Growth of what lies beyond the last joint (hand, foot)."""


@dataclass(frozen=True)
class Motion:
    """What the puppet does over T frames."""

    joints: Series  # [T, 18, 2] px, where each joint is aimed; meaningless where not `aimed`
    aimed: Flags  # [18] the picture has this joint and the skeleton carries it
    root: Series  # [T, 2] mid-hip [px]
    turn: Series  # [T] the trunk's turn against the picture [rad]
    stretch: Series  # [T] the trunk's length over the picture's
    widths: tuple[float, float] = (1.0, 1.0)
    """Factors of the trunk's width at hips and shoulders."""
    limbs: dict[str, Limb] = field(default_factory=dict)
    """`right_arm`, `left_leg`, `head`, ..."""
    behind: dict[str, Flags] = field(default_factory=dict)
    """Arm side -> [T] the arm is behind the body."""
    left_leg_in_front: Flags = field(default_factory=lambda: np.zeros(0, bool))  # [T]
    zoom: tuple[float, float, float] = (1.0, 0.0, 0.0)
    """Factor of the whole figure's size, and the point x, y [px] about which; `joints` have it, the rest has not."""
    whole: Series | None = None  # [T, 5] shift x, y [px], tilt [rad], squash, bend: when the figure moves as a whole
    notes: tuple[str, ...] = ()


def plan(job: RenderJob, body: Anatomy | None = None) -> Motion:
    """Plan the motion of `job` (its mask must be given unless `body` is).  Float64, deterministic, no smoothing."""
    if body is None:
        if job.mask is None:
            raise InputError("the motion of a figure needs its mask or its anatomy")
        body = study(job.mask, job.reference_pose)
    driver = _Driver(job)
    if not body.has_torso:
        return _whole(body, driver)
    return _skeletal(body, driver)


class _Driver:
    """The poses of the clip, gaps bridged, with the facts that several steps need."""

    def __init__(self, job: RenderJob) -> None:
        poses = job.poses
        self.times = poses.times
        self.frames = poses.frames
        self.seen = poses.scores[:, 0, :BODY_JOINTS] > 0
        raw = poses.keypoints[:, 0, :BODY_JOINTS].astype(np.float64)
        if not self.seen[:, NECK].any():
            self.seen[:, NECK] = self.seen[:, R_SHOULDER] & self.seen[:, L_SHOULDER]
            raw[:, NECK] = (raw[:, R_SHOULDER] + raw[:, L_SHOULDER]) / 2
        self.ever = self.seen.any(0)
        self.points = np.stack([filled(raw[:, j], self.seen[:, j], self.times) for j in range(BODY_JOINTS)], 1)
        self.depth = None if poses.depth is None else poses.depth[:, 0, :BODY_JOINTS].astype(np.float64)
        self.factors = dict(zip((u.name for u in UNITS), cumulative_factors(poses.history).tolist(), strict=True))
        hips = [j for j in (R_HIP, L_HIP) if self.ever[j]]
        self.has_hips = bool(hips)
        self.mid_hip = self.points[:, hips].mean(1) if hips else np.zeros((self.frames, 2))

    def bone(self, parent: int, child: int) -> Series | None:
        """Vectors [T, 2] of a bone, or None when one end is never seen."""
        if parent == MID_HIP:
            return self.points[:, child] - self.mid_hip if self.has_hips and self.ever[child] else None
        return self.points[:, child] - self.points[:, parent] if self.ever[parent] and self.ever[child] else None


def _rotate(turn: Series, vector: NDArray[np.float64]) -> Series:
    """`vector` [2] or [T, 2] turned by [T] angles."""
    c, s = np.cos(turn), np.sin(turn)
    x, y = vector[..., 0], vector[..., 1]
    return np.stack([c * x - s * y, s * x + c * y], -1)


def _skeletal(body: Anatomy, driver: _Driver) -> Motion:
    frames, factors = driver.frames, driver.factors
    notes = list(body.notes)
    trunk = driver.bone(MID_HIP, NECK)
    turn, stretch = np.zeros(frames), np.full(frames, factors["torso"])
    if trunk is not None:
        length = np.linalg.norm(trunk, axis=1)
        full = _full_length(length, body.torso_length * factors["torso"])
        angle = directions(trunk, full, driver.times)
        turn = bounded(angle - circular_median(angle), 0.0)
        stretch = stretch * np.clip(length / full, *FORESHORTENING["trunk"])
    elif driver.ever[R_SHOULDER] and driver.ever[L_SHOULDER]:
        line = driver.points[:, L_SHOULDER] - driver.points[:, R_SHOULDER]
        full = upper_percentile(np.linalg.norm(line, axis=1), 90)
        angle = directions(line, full, driver.times)
        turn = bounded(angle - circular_median(angle), 0.0) * 0.5
    widths = (
        float(np.sqrt(factors["right_hip"] * factors["left_hip"])),
        float(np.sqrt(factors["right_shoulder"] * factors["left_shoulder"])),
    )
    local = np.zeros((frames, BODY_JOINTS, 2))  # relative to the root
    aimed = body.seen.copy()
    for joint in (NECK, R_SHOULDER, L_SHOULDER, R_HIP, L_HIP):
        if body.seen[joint]:
            local[:, joint] = _rotate(turn, _trunk_point(body, body.joints[joint], stretch, widths))
    limbs: dict[str, Limb] = {}
    head = _head(body, driver, turn)
    limbs["head"] = head
    for joint in (NOSE, *EYES, *EARS):
        if body.seen[joint]:
            bone = body.joints[NOSE] - body.neck if body.seen[NOSE] else np.zeros(2)
            shifted = body.joints[joint] - body.neck + bone * (head.stretch[0, 0] - 1)
            if body.head:
                local[:, joint] = local[:, NECK] + _rotate(head.turn[0], shifted * head.grow)
            else:
                point = _trunk_point(body, body.joints[joint], stretch, widths)
                local[:, joint] = _rotate(turn, point)
    for kind, table in (("arm", ARM), ("leg", LEG)):
        for side in SIDES:
            chain = table[side]
            moves = side in (body.arms if kind == "arm" else body.legs)
            limb = _limb(body, driver, chain, kind, side, turn) if moves else None
            if limb is None:
                # rests on the trunk as in the picture
                for joint in chain[1:]:
                    point = _trunk_point(body, body.joints[joint], stretch, widths)
                    local[:, joint] = _rotate(turn, point)
                continue
            limbs[f"{side}_{kind}"] = limb
            for i in (0, 1):
                if body.seen[chain[i + 1]]:
                    rest = body.joints[chain[i + 1]] - body.joints[chain[i]]
                    bone = _rotate(limb.turn[i], rest) * limb.stretch[i][:, None]
                    local[:, chain[i + 1]] = local[:, chain[i]] + bone
    root = _root(body, driver, local)
    notes += _turned_away(body, driver)
    joints = local + root[:, None]
    zoom = _zoom(body, joints, limbs["head"])
    joints = np.array(zoom[1:]) + zoom[0] * (joints - np.array(zoom[1:]))
    if not np.isfinite(joints).all():
        raise InputError("poses: the motion of the figure is not finite")
    return Motion(
        joints, aimed, root, turn, stretch, widths, limbs, _behind(body, driver), _leg_order(body, driver),
        zoom=zoom, notes=tuple(notes),
    )  # fmt: skip


def _full_length(lengths: Series, own: float) -> float:
    """The length [px] that counts as not foreshortened: the figure's own when the poses are aligned to it (their median
    is near it), else the 90th percentile over the clip."""
    aligned = 0.8 < float(np.median(lengths)) / max(own, 1e-9) < 1.25
    return max(own if aligned else upper_percentile(lengths, 90), 1e-9)


def _trunk_point(body: Anatomy, point: NDArray[np.float64], stretch: Series, widths: tuple[float, float]) -> Series:
    """A picture point relative to mid-hip [T, 2] after the trunk's stretch and widths, before its turn."""
    axis = (body.neck - body.mid_hip) / body.torso_length
    relative = point - body.mid_hip
    a, b = float(relative @ axis), float(relative[1] * axis[0] - relative[0] * axis[1])
    t = min(max(a / body.torso_length, 0.0), 1.0)
    hip, shoulder = half_widths(body)
    half = hip + (shoulder - hip) * t
    edge = min(abs(b), FLESH * half)
    across = np.sign(b) * (edge * (widths[0] + (widths[1] - widths[0]) * t) + abs(b) - edge)
    along = a + min(max(a, 0.0), body.torso_length) * (stretch - 1)
    return np.stack([along * axis[0] - across * axis[1], along * axis[1] + across * axis[0]], -1)


def half_widths(body: Anatomy) -> tuple[float, float]:
    """Half the width of the trunk at hips and shoulders [px]: what the width factors stretch."""
    quad = body.polygon()
    return float(np.linalg.norm(quad[3] - quad[2]) / 2), float(np.linalg.norm(quad[0] - quad[1]) / 2)


def _head(body: Anatomy, driver: _Driver, trunk_turn: Series) -> Limb:
    """The head: the tilt of the eye line (or ears, or neck) about its median, damped, and limited against the trunk."""
    grow = driver.factors["face"]
    stretch = driver.factors["neck"] / max(grow, 1e-9)
    turn = trunk_turn.copy()
    if not body.nods:
        return Limb(np.stack([turn, turn]), np.full((2, driver.frames), stretch), grow=grow)
    pair = next(((r, left) for r, left in (EYES, EARS) if driver.ever[r] and driver.ever[left]), None)
    if pair is not None:
        line = driver.points[:, pair[1]] - driver.points[:, pair[0]]
        length = np.linalg.norm(line, axis=1)
        full = max(upper_percentile(length, 90), 1e-9)
        # seen from behind or from the side the line flips or shrinks: take it modulo half a turn, trust it by length
        angle = np.arctan(line[:, 1] / np.where(np.abs(line[:, 0]) < 1e-6 * full, 1e-6 * full, line[:, 0]))
        trust = np.clip((np.abs(line[:, 0]) / full - 0.2) / 0.3, 0.0, 1.0)
        sure = trust > 0.5
        middle = float(np.median(angle[sure])) if sure.any() else 0.0
        turn = HEAD_TILT * trust * (angle - middle) + (1 - trust) * trunk_turn
    elif (neck := driver.bone(NECK, NOSE)) is not None:
        full = upper_percentile(np.linalg.norm(neck, axis=1), 90)
        angle = directions(neck, full, driver.times)
        turn = 0.5 * bounded(angle - circular_median(angle), 0.0)
    turn = trunk_turn + np.clip(turn - trunk_turn, -MAX_HEAD_TURN, MAX_HEAD_TURN)
    return Limb(np.stack([turn, turn]), np.full((2, driver.frames), stretch), grow=grow)


def _limb(
    body: Anatomy, driver: _Driver, chain: tuple[int, int, int], kind: str, side: str, trunk_turn: Series
) -> Limb | None:
    """Turn and stretch of an arm or leg; None when the driver never shows it."""
    names = ("upper_arm", "forearm") if kind == "arm" else ("thigh", "shin")
    low, high = FORESHORTENING[kind]
    turns: list[Series] = []
    stretches: list[Series] = []
    base = trunk_turn
    for i in (0, 1):
        bone = driver.bone(chain[i], chain[i + 1])
        there = body.seen[chain[i]] and body.seen[chain[i + 1]]
        if bone is None or not there:
            if i == 0:
                return None
            # a dropped or unknown end goes along with the bone above it
            turns.append(turns[0])
            stretches.append(np.ones(driver.frames))
            continue
        rest = body.joints[chain[i + 1]] - body.joints[chain[i]]
        length = np.linalg.norm(bone, axis=1)
        factor = driver.factors[f"{side}_{names[i]}"]
        full = _full_length(length, float(np.linalg.norm(rest)) * factor)
        angle = directions(bone, full, driver.times) - float(np.arctan2(rest[1], rest[0]))
        centre = base if i else trunk_turn + _middle_of_swing(body, chain, rest, kind)
        turns.append(bounded(angle, centre))
        base = turns[0]
        stretches.append(np.clip(length / full, low, high) * factor)
    tip = driver.factors[f"{side}_{'hand' if kind == 'arm' else 'foot'}"]
    return Limb(np.stack(turns), np.stack(stretches), tip=tip)


def _middle_of_swing(body: Anatomy, chain: tuple[int, int, int], rest: NDArray[np.float64], kind: str) -> float:
    """Turn from the rest direction to the middle of the limb's natural range (arms 70, legs 30 degrees outward)."""
    down = body.mid_hip - body.neck
    side = body.joints[chain[0]] - (body.neck if kind == "arm" else body.mid_hip)
    outward = float(np.sign(down[0] * side[1] - down[1] * side[0]))
    middle = np.arctan2(down[1], down[0]) + outward * np.deg2rad(70.0 if kind == "arm" else 30.0)
    return float(wrapped(np.asarray(middle - np.arctan2(rest[1], rest[0]))))


def _root(body: Anatomy, driver: _Driver, local: Series) -> Series:
    """Where mid-hip goes [T, 2] px: the driver's path, with the lower foot on the figure's floor."""
    rest = np.tile(body.mid_hip, (driver.frames, 1))
    if not driver.has_hips:
        if driver.ever[NECK]:
            neck = driver.points[:, NECK]
            return np.asarray(rest + 0.5 * (neck - np.median(neck, 0)) * (1.0, 0.25), np.float64)
        return rest
    path = driver.mid_hip
    if body.cropped:
        return np.asarray(rest + (path - np.median(path, 0)) * (0.5, 0.25), np.float64)
    root = path.copy()
    feet = [LEG[s][2] for s in body.legs if body.seen[LEG[s][2]] and driver.ever[LEG[s][2]]]
    shown = [LEG[s][2] for s in SIDES if body.seen[LEG[s][2]]]
    height = body.height
    if not feet or body.floor is None:
        # no foot to stand on: a crouch would sink stiff legs into the ground, a jump is welcome
        ground = running_percentile(path[:, 1], driver.times, 0.75, 90)
        root[:, 1] = rest[:, 1] + np.minimum(path[:, 1] - ground, 0.0)
        return root
    low = driver.points[:, feet, 1].max(1)
    ground = standing_level(low, driver.times)
    lift = soft_threshold(np.maximum(ground - low, 0.0), LIFT * height)
    offset = float(soft_threshold(np.array([np.median(ground) - body.floor]), LIFT * height)[0])
    root[:, 1] = body.floor + offset - lift - local[:, shown, 1].max(1)
    # the foot that stands is where the driver's stands: less skating
    gap = driver.points[:, feet, 0] - (path[:, :1] + local[:, feet, 0])
    weight = np.exp((driver.points[:, feet, 1] - low[:, None]) / (0.03 * height))
    root[:, 0] += np.clip((gap * weight).sum(1) / weight.sum(1), -0.1 * height, 0.1 * height)
    return root


def _zoom(body: Anatomy, joints: Series, head: Limb) -> tuple[float, float, float]:
    """Make a figure whose head would leave the top of the picture a little smaller, for the whole clip.

    A driver who stands straighter than the picture's figure makes it taller than it is there.
    """
    if body.crown is None or body.floor is None or body.cropped:
        return 1.0, 0.0, 0.0
    bone = body.joints[NOSE] - body.neck if body.seen[NOSE] else np.zeros(2)
    crown = np.array([body.joints[NOSE, 0], body.crown]) - body.neck + bone * (head.stretch[0, 0] - 1)
    top = float((joints[:, NECK] + _rotate(head.turn[0], crown * head.grow))[:, 1].min())
    margin = min(max(body.crown, 0.0), 0.01 * body.height)
    if top >= margin - 1.0 or body.floor <= margin:
        return 1.0, 0.0, 0.0
    factor = (body.floor - margin) / max(body.floor - top, 1e-9)
    return max(factor, SMALLEST_ZOOM), float(body.mid_hip[0]), body.floor


def _behind(body: Anatomy, driver: _Driver) -> dict[str, Flags]:
    """When each arm is behind the body: deeper than the shoulders by .55 torso lengths, until within .25."""
    result = {side: np.zeros(driver.frames, bool) for side in body.arms}
    trunk = driver.bone(MID_HIP, NECK)
    if driver.depth is None or trunk is None:
        return result
    length = max(float(np.median(np.linalg.norm(trunk, axis=1))), 1e-9)
    for side in body.arms:
        shoulder, elbow, wrist = ARM[side]
        ends = [j for j in (elbow, wrist) if driver.ever[j]]
        if not ends or not driver.ever[shoulder]:
            continue
        depth = [filled(driver.depth[:, j], driver.seen[:, j], driver.times) for j in (shoulder, *ends)]
        result[side] = hysteresis((depth[0] - np.mean(depth[1:], 0)) / length, 0.55, 0.25)
    return result


def _leg_order(body: Anatomy, driver: _Driver) -> Flags:
    """When the left leg is drawn over the right: by depth where known, else by which stands lower in the picture."""
    ends = [[j for j in LEG[s][1:] if driver.ever[j]] for s in SIDES]
    trunk = driver.bone(MID_HIP, NECK)
    if driver.depth is not None and trunk is not None and all(ends):
        length = max(float(np.median(np.linalg.norm(trunk, axis=1))), 1e-9)
        depth = [
            np.mean([filled(driver.depth[:, j], driver.seen[:, j], driver.times) for j in joints], 0) for joints in ends
        ]
        return hysteresis((depth[1] - depth[0]) / length, 0.15, -0.15, start=bool(depth[1][0] > depth[0][0]))
    ankles = [LEG[s][2] for s in SIDES]
    lower = bool(body.seen[ankles].all() and body.joints[ankles[1], 1] > body.joints[ankles[0], 1])
    return np.full(driver.frames, lower)


def _turned_away(body: Anatomy, driver: _Driver) -> list[str]:
    if not (driver.ever[R_SHOULDER] and driver.ever[L_SHOULDER]):
        return []
    both = driver.seen[:, R_SHOULDER] & driver.seen[:, L_SHOULDER]
    across = driver.points[both, L_SHOULDER, 0] - driver.points[both, R_SHOULDER, 0]
    own = 1.0
    if body.seen[R_SHOULDER] and body.seen[L_SHOULDER]:
        own = float(np.sign(body.joints[L_SHOULDER, 0] - body.joints[R_SHOULDER, 0]))
    away = float((across * own < 0).mean()) if both.any() else 0.0
    return [f"figure turns its back for {100 * away:.0f} % of the frames"] if away > TURNED else []


def _whole(body: Anatomy, driver: _Driver) -> Motion:
    """Sway, tilt and bounce of a figure without a skeleton, from the driver's trunk and hands."""
    frames, height = driver.frames, body.height
    moves = np.zeros((frames, 5))
    moves[:, 3] = 1.0
    trunk = driver.bone(MID_HIP, NECK)
    if trunk is not None:
        full = max(upper_percentile(np.linalg.norm(trunk, axis=1), 90), 1e-9)
        tall = 3.4 * full  # a person is about 3.4 trunks tall
        middle = (driver.mid_hip + driver.points[:, NECK]) / 2
        path = (middle - np.median(middle, 0)) * (height / tall)
        x0, y0, x1, y1 = body.box
        room = np.array([[min(x0, 0.3 * height), min(y0, 0.3 * height)],
                         [min(body.size[0] - x1, 0.3 * height), min(body.size[1] - y1, 0.15 * height)]])  # fmt: skip
        moves[:, 0] = _within(path[:, 0] * 0.6, room[0, 0], room[1, 0])
        moves[:, 1] = _within(path[:, 1] * 0.6, room[0, 1], room[1, 1])
        angle = directions(trunk, full, driver.times)
        moves[:, 2] = 0.35 * np.tanh(0.8 * bounded(angle - circular_median(angle), 0.0) / 0.35)
        hips = running_percentile(driver.mid_hip[:, 1], driver.times, 0.75, 50)
        crouch = (driver.mid_hip[:, 1] - hips) / tall
        moves[:, 3] = 1.0 - 0.12 * np.tanh(crouch / 0.06)
        hands = [ARM[s][2] for s in SIDES if driver.ever[ARM[s][2]]]
        if hands:
            reach = (driver.points[:, hands, 0].mean(1) - driver.mid_hip[:, 0]) / tall
            moves[:, 4] = 0.12 * np.tanh((reach - np.median(reach)) / 0.2)
    joints = np.zeros((frames, BODY_JOINTS, 2))
    return Motion(
        joints, np.zeros(BODY_JOINTS, bool), np.zeros((frames, 2)), np.zeros(frames), np.ones(frames),
        whole=moves, notes=body.notes,
    )  # fmt: skip


def _within(path: Series, before: float, after: float) -> Series:
    """A path softly held within `before` to the negative and `after` to the positive side [px]."""
    low, high = max(before, 1.0), max(after, 1.0)
    return np.where(path < 0, -low * np.tanh(-path / low), high * np.tanh(path / high))
