"""Mascots drawn by code, with their joints known: the ground truth of mask, silhouette and pose tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

INK = (60, 40, 90)
SKIN = (235, 150, 70)
PAPER = (236, 232, 222)

RIGHT_ARM, LEFT_ARM, RIGHT_LEG, LEFT_LEG = (2, 3, 4), (5, 6, 7), (8, 9, 10), (11, 12, 13)


@dataclass(frozen=True)
class Mascot:
    """A body shape and the joints of its limbs [px] on a canvas of `size` (width, height)."""

    name: str
    size: tuple[int, int]
    trunk: tuple[tuple[str, tuple[float, ...]], ...]  # ("ellipse", cx, cy, rx, ry) or ("box", x0, y0, x1, y1)
    joints: dict[int, tuple[float, float]]
    arm: float = 16.0
    leg: float = 20.0
    feet: float = 0.0

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the mascot is [H, W]."""
        big = np.zeros((self.size[1] * 4, self.size[0] * 4), np.uint8)
        for kind, numbers in self.trunk:
            n = [round(4 * v) for v in numbers]
            if kind == "ellipse":
                cv2.ellipse(big, (n[0], n[1]), (n[2], n[3]), 0, 0, 360, 255, -1)
            else:
                cv2.rectangle(big, (n[0], n[1]), (n[2], n[3]), 255, -1)
        for chain, width in ((RIGHT_ARM, self.arm), (LEFT_ARM, self.arm), (RIGHT_LEG, self.leg), (LEFT_LEG, self.leg)):
            points = [np.array(self.joints[j]) for j in chain if j in self.joints]
            if len(points) < 2:
                continue
            if len(points) == 3:  # a hand or foot beyond the last joint
                points.append(points[2] + 0.3 * (points[2] - points[1]))
                if chain in (RIGHT_LEG, LEFT_LEG) and self.feet:
                    centre = [round(4 * v) for v in points[3]]
                    cv2.ellipse(big, tuple(centre), (round(4 * self.feet), round(2.2 * self.feet)), 0, 0, 360, 255, -1)
            for a, b in pairwise(points):
                cv2.line(big, [round(4 * v) for v in a], [round(4 * v) for v in b], 255, round(4 * width))
        return cv2.resize(big, self.size, interpolation=cv2.INTER_AREA) > 127

    def picture(self, ground: NDArray[np.uint8] | tuple[int, int, int] = PAPER) -> NDArray[np.uint8]:
        """Filled with colour, outlined in ink, on `ground`; RGB."""
        rgb = np.empty((self.size[1], self.size[0], 3), np.uint8)
        rgb[:] = ground
        mask = self.mask
        rgb[mask] = SKIN
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        rgb[mask & ~inner] = INK
        return rgb

    def moved(self, dx: float, dy: float) -> Mascot:
        """The same mascot elsewhere on its canvas."""
        trunk = tuple(
            (kind, (n[0] + dx, n[1] + dy, *((n[2], n[3]) if kind == "ellipse" else (n[2] + dx, n[3] + dy))))
            for kind, n in self.trunk
        )
        return replace(self, trunk=trunk, joints={k: (x + dx, y + dy) for k, (x, y) in self.joints.items()})

    def without(self, *joints: int) -> Mascot:
        """The mascot without some limbs."""
        return replace(self, joints={k: v for k, v in self.joints.items() if k not in joints})


BALL = Mascot(
    "ball with stick limbs",
    (400, 480),
    (("ellipse", (200, 200, 95, 100)),),
    {
        0: (200, 165), 1: (200, 205), 2: (108, 205), 3: (65, 180), 4: (35, 130), 5: (292, 205), 6: (335, 230),
        7: (370, 270), 8: (165, 290), 9: (160, 350), 10: (155, 410), 11: (235, 290), 12: (240, 350), 13: (245, 410),
    },
    arm=12, leg=14, feet=22,
)  # fmt: skip
CARTON = Mascot(
    "tall box with tube limbs",
    (420, 640),
    (("box", (130, 60, 290, 410)),),
    {
        0: (210, 170), 1: (210, 240), 2: (135, 240), 3: (90, 285), 4: (60, 340), 5: (285, 240), 6: (335, 205),
        7: (370, 150), 8: (170, 405), 9: (165, 475), 10: (160, 550), 11: (250, 405), 12: (262, 475), 13: (270, 550),
    },
    arm=24, leg=30, feet=34,
)  # fmt: skip
CHILD = Mascot(
    "head, body and limbs",
    (480, 640),
    (("ellipse", (240, 120, 80, 85)), ("box", (222, 190, 258, 240)), ("ellipse", (240, 320, 75, 110))),
    {
        0: (240, 125), 1: (240, 255), 2: (180, 258), 3: (115, 300), 4: (60, 340), 5: (300, 258), 6: (365, 300),
        7: (420, 340), 8: (205, 415), 9: (190, 490), 10: (180, 560), 11: (275, 415), 12: (290, 490), 13: (300, 560),
    },
    arm=28, leg=34,
)  # fmt: skip
PEAR = Mascot(
    "pear with arms up and short legs",
    (480, 560),
    (("ellipse", (240, 170, 85, 100)), ("ellipse", (240, 310, 130, 130))),
    {
        0: (240, 190), 1: (240, 270), 2: (125, 270), 3: (70, 220), 4: (40, 150), 5: (355, 270), 6: (410, 220),
        7: (440, 150), 8: (185, 425), 9: (180, 465), 10: (175, 500), 11: (295, 425), 12: (300, 465), 13: (305, 500),
    },
    arm=22, leg=36,
)  # fmt: skip
MASCOTS = (BALL, CARTON, CHILD, PEAR)


def busy_ground(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """A shaded, blotchy ground, nothing flat about it; RGB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 200, (8, 6, 3), dtype=np.uint8)
    coarse[..., 0] //= 2  # bluish and greenish: not the mascots' orange
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-12, 13, (height, width, 1)), 0, 255).astype(np.uint8)
