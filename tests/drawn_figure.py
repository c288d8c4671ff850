"""A dancing human figure drawn by code: pictures whose joints are known, for tests of everything that detects."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SKIN, SHIRT, TROUSERS, HAIR, SHOE = (224, 178, 150), (60, 90, 160), (50, 50, 60), (70, 45, 30), (120, 30, 30)


def dance(frames: int, fps: float = 24.0, *, width: int = 384, height: int = 576, swing_hz: float = 1.0) -> NDArray:
    """Body joints [T, 18, 2] px (OpenPose order) of a figure that swings its arms, steps and sways."""
    t, unit = np.arange(frames) / fps, height * 0.22
    joints = np.zeros((frames, 18, 2))
    hip = np.stack([width / 2 + 0.08 * unit * np.sin(4.4 * t), height * 0.52 + 0.03 * unit * np.sin(8.8 * t)], -1)
    neck = hip + np.stack([0.04 * unit * np.sin(4.4 * t + 1), np.full(frames, -unit)], -1)
    joints[:, 1] = neck
    for joint, x, y in ((0, 0, -0.42), (14, -0.08, -0.48), (15, 0.08, -0.48), (16, -0.18, -0.45), (17, 0.18, -0.45)):
        joints[:, joint] = neck + unit * np.array([x, y])
    phase = 2 * np.pi * swing_hz * t
    for side, (shoulder, elbow, wrist, hips, knee, ankle) in ((-1, (2, 3, 4, 8, 9, 10)), (1, (5, 6, 7, 11, 12, 13))):
        upper = np.deg2rad(50 + 35 * np.sin(phase + (side > 0)))
        lower = upper + np.deg2rad(35 + 40 * np.sin(phase + 2 * (side > 0)))
        leg = np.deg2rad(8 + 6 * np.sin(4.4 * t + side))
        joints[:, shoulder] = neck + unit * np.array([side * 0.4, 0.03])
        joints[:, hips] = hip + unit * np.array([side * 0.2, 0])
        for start, end, angle, length in (
            (shoulder, elbow, upper, 0.58),
            (elbow, wrist, lower, 0.52),
            (hips, knee, leg, 0.85),
            (knee, ankle, leg * 0.6, 0.82),
        ):  # fmt: skip
            way = np.stack([side * np.sin(angle), np.cos(angle)], -1)
            joints[:, end] = joints[:, start] + length * unit * way
    return joints


def draw(joints: NDArray, width: int = 384, height: int = 576, *, picture: NDArray | None = None) -> NDArray:
    """Paint a clothed figure with these joints [18, 2] as RGB [H, W, 3], or onto `picture`."""
    if picture is None:
        picture = np.full((height, width, 3), (205, 214, 222), np.uint8)
        picture[int(height * 0.9) :] = (150, 140, 130)
    big = cv2.resize(picture, None, fx=2, fy=2)
    unit = float(np.linalg.norm(joints[1] - (joints[8] + joints[11]) / 2))

    def at(point: NDArray) -> tuple[int, int]:
        return round(float(point[0]) * 2), round(float(point[1]) * 2)

    def limb(a: NDArray, b: NDArray, wide: float, narrow: float, colour: tuple[int, int, int]) -> None:
        a, b = np.asarray(a, float), np.asarray(b, float)
        normal = np.array([a[1] - b[1], b[0] - a[0]]) / (np.linalg.norm(b - a) + 1e-6)
        corners = [a + normal * wide, b + normal * narrow, b - normal * narrow, a - normal * wide]
        cv2.fillConvexPoly(big, np.array([at(corner) for corner in corners]), colour, cv2.LINE_AA)
        cv2.circle(big, at(a), int(wide * 2), colour, -1, cv2.LINE_AA)
        cv2.circle(big, at(b), int(narrow * 2), colour, -1, cv2.LINE_AA)

    def oval(centre: NDArray, x: float, y: float, colour: tuple[int, int, int]) -> None:
        cv2.ellipse(
            big, at(centre), (max(1, int(x * unit * 2)), max(1, int(y * unit * 2))), 0, 0, 360, colour, -1, cv2.LINE_AA
        )

    for side, hip, knee, ankle in ((1, 11, 12, 13), (-1, 8, 9, 10)):
        limb(joints[hip], joints[knee], 0.16 * unit, 0.12 * unit, TROUSERS)
        limb(joints[knee], joints[ankle], 0.12 * unit, 0.07 * unit, TROUSERS)
        limb(
            joints[ankle] + (0, 0.03 * unit),
            joints[ankle] + (side * 0.08 * unit, 0.1 * unit),
            0.07 * unit,
            0.06 * unit,
            SHOE,
        )
    trunk = [joints[2] - (0, 0.04 * unit), joints[5] - (0, 0.04 * unit)]
    trunk += [joints[11] + (0.07 * unit, 0.05 * unit), joints[8] + (-0.07 * unit, 0.05 * unit)]
    cv2.fillConvexPoly(big, np.array([at(corner) for corner in trunk]), SHIRT, cv2.LINE_AA)
    limb(joints[1], (joints[1] + joints[0]) / 2, 0.1 * unit, 0.09 * unit, SKIN)
    head = joints[0] - (0, 0.1 * unit)
    oval(head - (0, 0.05 * unit), 0.22, 0.29, HAIR)
    oval(head + unit * np.array([0, 0.02]), 0.18, 0.24, SKIN)
    for side in (-1, 1):
        eye = head + unit * np.array([side * 0.08, -0.02])
        oval(eye, 0.035, 0.02, (255, 255, 255))
        oval(eye, 0.018, 0.018, (40, 30, 20))
        oval(eye - (0, 0.05 * unit), 0.04, 0.008, HAIR)
    oval(head + unit * np.array([0, 0.07]), 0.015, 0.03, (190, 140, 115))
    oval(head + unit * np.array([0, 0.15]), 0.06, 0.02, (170, 70, 70))
    for shoulder, elbow, wrist in ((2, 3, 4), (5, 6, 7)):
        limb(joints[shoulder], joints[elbow], 0.11 * unit, 0.085 * unit, SHIRT)
        limb(joints[elbow], joints[wrist], 0.085 * unit, 0.06 * unit, SKIN)
        way = (joints[wrist] - joints[elbow]) / (np.linalg.norm(joints[wrist] - joints[elbow]) + 1e-6)
        limb(joints[wrist], joints[wrist] + way * 0.12 * unit, 0.055 * unit, 0.05 * unit, SKIN)
    small = cv2.resize(big, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (3, 3), 0.7)
