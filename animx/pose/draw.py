"""Pose images: keypoints drawn as the released pipeline draws them, or as a thin skeleton for people to look at.

In: a `PoseSequence`, or the released "person dictionary" (candidate, subset, hands, faces; all divided by width and
height, -1 = missing).  Out: RGB pictures [H, W, 3].
The `animate-x` style follows reference facts 9.3, 9.4 and 10 (DWPose as released with Animate-X) bit for bit.

Channel order: the canvas is in the order of the released colour table (`skeleton.COLOURS`), so its first limb is red.
The released pipeline wrote that canvas with `cv2.imwrite`, which takes it for BGR: whoever reads those files as RGB,
the model included, sees red and blue swapped.  `released_channel_order=True` gives that second order.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError, UsageError, nearest
from animx.pose.layouts import MIN_SCORE, to_openpose134
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import (
    BONES,
    COLOURS,
    FACE,
    JOINTS,
    L_ANKLE,
    L_BIG_TOE,
    L_HEEL,
    L_HIP,
    L_SMALL_TOE,
    LEFT_HAND,
    LIMBS,
    R_ANKLE,
    R_BIG_TOE,
    R_HEEL,
    R_HIP,
    R_SMALL_TOE,
    RIGHT_HAND,
)

__all__ = ["STYLES", "draw_over", "draw_person", "draw_pose", "person_dictionary", "to_openpose134"]

Style = Literal["animate-x", "plain"]
STYLES: tuple[str, ...] = ("animate-x", "plain")

RADIUS = 4
"""Joint radius and half the limb width of the released drawing [px], whatever the canvas."""

HAND_EDGES: tuple[tuple[int, int], ...] = tuple(
    (0 if k % 4 == 1 else k - 1, k) for finger in range(5) for k in range(4 * finger + 1, 4 * finger + 5)
)
HAND_COLOURS = tuple(tuple(255.0 * c for c in colorsys.hsv_to_rgb(k / 20.0, 1.0, 1.0)) for k in range(20))
# The released code dims the whole canvas after the limbs; limbs are opaque, so dimmed colours give the same bytes.
LIMB_COLOURS = tuple(tuple(int(c * 0.6) for c in colour) for colour in COLOURS)
HAND_JOINT = (0, 0, 255)

_FACE_CHAINS: tuple[tuple[int, int, bool], ...] = (
    (0, 17, False), (17, 22, False), (22, 27, False), (27, 31, False), (31, 36, False),
    (36, 42, True), (42, 48, True), (48, 60, True), (60, 68, True),
)  # fmt: skip
_FEET_EDGES = (
    (L_ANKLE, L_HEEL), (L_ANKLE, L_BIG_TOE), (L_ANKLE, L_SMALL_TOE),
    (R_ANKLE, R_HEEL), (R_ANKLE, R_BIG_TOE), (R_ANKLE, R_SMALL_TOE),
)  # fmt: skip

PersonDictionary = Mapping[str, NDArray[np.float64]]


def person_dictionary(
    keypoints: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    canvas: Canvas,
    min_score: float = MIN_SCORE,
) -> dict[str, NDArray[np.float64]]:
    """One person's [134, 2] px and [134] as the released person dictionary (facts 9.4), float64.

    `candidate` [20, 2] and `subset` [20]: 18 body joints, then left and right toes, the mean of big and small toe where
    both are above `min_score`.  `hands` [2, 21, 2], left first, and `faces` [1, 68, 2].  Coordinates are divided by
    width and height; below `min_score` they are -1.  `subset` holds the index where the score is above, else -1: a
    score of exactly `min_score` keeps its coordinates and is not drawn, as released.
    """
    if keypoints.shape != (JOINTS, 2) or scores.shape != (JOINTS,):
        raise InputError(f"keypoints: shape {list(keypoints.shape)}, expected [{JOINTS}, 2]")
    found = person_dictionaries(keypoints[None], scores[None], canvas, min_score)
    return {"candidate": found["candidate"][0], "subset": found["subset"][0], "hands": found["hands"][0],
            "faces": found["faces"]}  # fmt: skip


def person_dictionaries(
    keypoints: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    canvas: Canvas,
    min_score: float = MIN_SCORE,
) -> dict[str, NDArray[np.float64]]:
    """The person dictionaries of T frames from [T, 134, 2] px and [T, 134], each value with T in front.

    `faces` is [T, 68, 2]: one face a frame.
    """
    points = np.asarray(keypoints, np.float64) / canvas.size
    # float32 scores are compared in float32, so that 0.3 read from a file is not above 0.3.
    limit = scores.dtype.type(min_score)
    points[scores < limit] = -1.0
    seen = scores > limit
    candidate = np.full((len(points), 20, 2), -1.0)
    subset = np.full((len(points), 20), -1.0)
    candidate[:, :18] = points[:, :18]
    subset[:, :18] = np.where(seen[:, :18], np.arange(18.0), -1.0)
    for row, big, small in ((18, L_BIG_TOE, L_SMALL_TOE), (19, R_BIG_TOE, R_SMALL_TOE)):
        both = seen[:, big] & seen[:, small]
        candidate[both, row] = (points[both, big] + points[both, small]) / 2
        subset[both, row] = row
    hands = [points[:, hand.start : hand.stop] for hand in (LEFT_HAND, RIGHT_HAND)]
    return {"candidate": candidate, "subset": subset, "hands": np.stack(hands, axis=1),
            "faces": points[:, FACE.start : FACE.stop]}  # fmt: skip


def draw_person(
    person: PersonDictionary, canvas: Canvas, *, hands: bool = True, face: bool = False, toes: bool = True
) -> NDArray[np.uint8]:
    """Draw a person dictionary exactly as released (facts 10).  Returns uint8 [H, W, 3] in colour-table order.

    The released files have hands and no face; `toes=False` draws the 18 OpenPose joints alone.
    """
    image = np.zeros((canvas.height, canvas.width, 3), np.uint8)
    scaled = near(person["candidate"]) * canvas.size
    drawn = np.asarray(person["subset"], np.float64).reshape(-1) != -1
    count = 20 if toes else 18
    xy, seen = scaled.tolist(), drawn.tolist()
    for i, (a, b) in enumerate(LIMBS[: 19 if toes else 17]):
        if seen[a] and seen[b]:
            (ax, ay), (bx, by) = xy[a], xy[b]
            half = int(math.sqrt((ax - bx) ** 2 + (ay - by) ** 2) / 2)
            angle = int(math.degrees(math.atan2(ay - by, ax - bx)))
            centre = int((ax + bx) / 2), int((ay + by) / 2)
            fill_limb(image, centre, half, angle, LIMB_COLOURS[i])
    for i in range(count):
        if seen[i]:
            cv2.circle(image, (int(xy[i][0]), int(xy[i][1])), RADIUS, COLOURS[i], thickness=-1)
    if hands:
        for hand in near(person["hands"]):
            _draw_hand(image, hand, canvas)
    if face:
        for points in near(person["faces"]):
            for x, y in _pixels(points, canvas):
                if x > 0 and y > 0:
                    cv2.circle(image, (x, y), 3, (255, 255, 255), thickness=-1)
    return image


def fill_limb(
    image: NDArray[np.uint8], centre: tuple[int, int], half: int, angle: int, colour: tuple[float, ...]
) -> None:
    """One limb: a filled ellipse of half length `half` [px] and half width `RADIUS`, turned by `angle` [degrees]."""
    outline = np.asarray(cv2.ellipse2Poly(centre, (half, RADIUS), angle, 0, 360, 1), np.int32)
    cv2.fillConvexPoly(image, outline, colour)


def near(points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Points kept within 50 canvases of the picture: beyond that OpenCV's integers would overflow."""
    return np.clip(np.asarray(points, np.float64), -50.0, 50.0)


def _pixels(points: NDArray[np.float64], canvas: Canvas) -> list[tuple[int, int]]:
    return [(int(x * canvas.width), int(y * canvas.height)) for x, y in points.tolist()]


def _draw_hand(image: NDArray[np.uint8], hand: NDArray[np.float64], canvas: Canvas) -> None:
    xy = _pixels(hand, canvas)
    for k, (a, b) in enumerate(HAND_EDGES):
        if min(*xy[a], *xy[b]) > 0:
            cv2.line(image, xy[a], xy[b], HAND_COLOURS[k], thickness=2)
    for x, y in xy:
        if x > 0 and y > 0:
            cv2.circle(image, (x, y), RADIUS, HAND_JOINT, thickness=-1)


def draw_pose(
    poses: PoseSequence,
    t: int,
    person: int = 0,
    *,
    style: Style = "animate-x",
    canvas: Canvas | None = None,
    hands: bool = True,
    face: bool = False,
    toes: bool = True,
    min_score: float = MIN_SCORE,
    released_channel_order: bool = False,
) -> NDArray[np.uint8]:
    """Frame `t` of one person on black, RGB [H, W, 3].

    `canvas`, when given, is another pixel grid that the poses are stretched to; lines keep their width.
    `released_channel_order` swaps red and blue, which is what an RGB reader of the released files sees.
    """
    _check(poses, t, person, style)
    target = canvas or poses.canvas
    if style == "plain":
        image = np.zeros((target.height, target.width, 3), np.uint8)
        image = draw_over(image, poses, t, person, hands=hands, face=face, min_score=min_score)
    else:
        points, scores = poses.keypoints[t, person], poses.scores[t, person]
        found = person_dictionary(points, scores, poses.canvas, min_score)
        image = draw_person(found, target, hands=hands, face=face, toes=toes)
    return np.ascontiguousarray(image[..., ::-1]) if released_channel_order else image


def draw_over(
    frame: NDArray[np.uint8],
    poses: PoseSequence,
    t: int,
    person: int | None = None,
    *,
    hands: bool = True,
    face: bool = True,
    min_score: float = MIN_SCORE,
) -> NDArray[np.uint8]:
    """A copy of `frame` (RGB [H, W, 3], any size) with a thin antialiased skeleton over it, joints coloured by side.

    The poses are stretched to the frame.  `person=None` draws everybody.  The line width follows the frame's size.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise InputError(f"frame: {frame.dtype} of shape {list(frame.shape)}, expected uint8 [H, W, 3]")
    _check(poses, t, person or 0, "plain")
    image = np.ascontiguousarray(frame).copy()
    height, width = image.shape[:2]
    thick = max(1, round(max(height, width) / 360))
    for p in range(poses.persons) if person is None else (person,):
        points = np.asarray(poses.keypoints[t, p], np.float64) * (
            width / poses.canvas.width,
            height / poses.canvas.height,
        )
        _Plain(image, points, poses.scores[t, p] > np.float32(min_score), thick).draw(hands, face)
    return image


_SHIFT = 4  # sub-pixel bits of the antialiased drawing


class _Plain:
    """One person drawn thin: right side warm, left side cool, middle white (the character's own sides)."""

    def __init__(self, image: NDArray[np.uint8], points: NDArray[np.float64], seen: NDArray[np.bool_], thick: int):
        self.image, self.thick = image, thick
        hips = points[[R_HIP, L_HIP]].mean(axis=0, keepdims=True)
        # One more row: the virtual middle of the hips.
        self.seen = np.append(seen, seen[R_HIP] and seen[L_HIP])
        far = 8 * max(image.shape)
        # Pixel centres lie on integers in OpenCV; far-away guesses would overflow its fixed-point coordinates.
        fixed = np.clip(np.vstack([points, hips]) - 0.5, -far, far) * (1 << _SHIFT)
        self.xy: list[list[int]] = np.rint(fixed).astype(int).tolist()

    def draw(self, hands: bool, face: bool) -> None:
        for bone in BONES:
            self._line(bone.parent, bone.child, self.thick + 1, _side_colour(bone.name))
        for a, b in _FEET_EDGES:
            self._line(a, b, self.thick, _side_colour("left" if a == L_ANKLE else "right"))
        for i in (*range(18), R_HEEL, L_HEEL):
            if self.seen[i]:
                cv2.circle(
                    self.image, self._at(i), (self.thick + 1) << _SHIFT, (255, 255, 255), -1, cv2.LINE_AA, _SHIFT
                )
        if hands:
            for hand, side in ((LEFT_HAND, "left"), (RIGHT_HAND, "right")):
                for a, b in HAND_EDGES:
                    self._line(hand[a], hand[b], max(1, self.thick - 1), _side_colour(side))
        if face:
            for first, last, closed in _FACE_CHAINS:
                chain = [*range(first, last), *([first] if closed else [])]
                for a, b in pairwise(chain):
                    self._line(FACE[a], FACE[b], 1, (230, 230, 230))

    def _at(self, i: int) -> tuple[int, int]:
        return self.xy[i][0], self.xy[i][1]

    def _line(self, a: int, b: int, thick: int, colour: tuple[int, int, int]) -> None:
        if self.seen[a] and self.seen[b]:
            cv2.line(self.image, self._at(a), self._at(b), colour, thick, cv2.LINE_AA, _SHIFT)


def _side_colour(name: str) -> tuple[int, int, int]:
    if name.startswith("left"):
        return 70, 170, 255
    return (255, 130, 50) if name.startswith("right") else (240, 240, 120)


def _check(poses: PoseSequence, t: int, person: int, style: str) -> None:
    if style not in STYLES:
        raise UsageError(f"unknown drawing style '{style}'.{nearest(style, STYLES)} Known: {', '.join(STYLES)}")
    if not 0 <= t < poses.frames:
        raise InputError(f"frame {t}: the poses hold {poses.frames}")
    if not 0 <= person < poses.persons:
        raise InputError(f"person {person}: the poses hold {poses.persons}")
