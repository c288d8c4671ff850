"""Many poses drawn at once, bit for bit as `draw.draw_pose` draws them one at a time; what training calls.

In: keypoints [T, K, 2] px and scores [T, K].  Out: RGB pictures [T, H, W, 3].

OpenCV fills a limb, a finger or a joint the same way wherever it lies, as long as it lies inside the picture (a limb
depends on whether its centre is even or odd: OpenCV rounds halves to even).  So each shape is drawn once by OpenCV on a
plate, kept as runs of pixels, and from then on copied by one compiled loop.  What touches the border or is too large
for the table is drawn by OpenCV in its place.

Letters: T frames, K joints, N shapes of a frame in the order in which they are painted.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose.draw import (
    HAND_COLOURS,
    HAND_EDGES,
    HAND_JOINT,
    LIMB_COLOURS,
    RADIUS,
    fill_limb,
    near,
    person_dictionaries,
)
from animx.pose.layouts import MIN_SCORE
from animx.pose.skeleton import COLOURS, LIMBS

F = TypeVar("F", bound=Callable[..., Any])
Image = NDArray[np.uint8]
Ints = NDArray[np.int32]

LIMB, FINGER, DOT = 0, 1, 2
"""Kinds of shapes: an ellipse (half length, angle), a line of 2 px (dx, dy), a disc."""
HALVES = 128
"""Limbs of up to this half length are kept [px]."""
REACH = 48
"""Fingers of up to this extent in x and y are kept [px]."""
MAX_RUNS = 1 << 18
"""Runs that are kept; when they are full everything is forgotten and begun anew (3 MB)."""


def _compiled(function: F) -> F:
    return cast(F, numba.njit(cache=True, error_model="numpy")(function))


@_compiled
def _shapes(
    body: NDArray[np.float64],
    drawn: NDArray[np.bool_],
    hands: Ints,
    limbs: Ints,
    edges: Ints,
    found: Ints,
) -> int:
    """The shapes of one frame, as rows (kind, colour, a, b, x, y) of `found` in painting order; returns their number.

    `body` [20, 2] px, `hands` [h, 21, 2] whole px.  A limb has (half, angle) and its centre, a finger (dx, dy) and its
    first end, a disc nothing and its centre.  Colours are numbers of the table: limbs, joints, fingers, hand joints.
    """
    n = 0
    for i in range(len(limbs)):
        a, b = limbs[i]
        if drawn[a] and drawn[b]:
            ax, ay, bx, by = body[a, 0], body[a, 1], body[b, 0], body[b, 1]
            found[n, 0], found[n, 1] = 0, i
            found[n, 2] = int(math.sqrt((ax - bx) ** 2 + (ay - by) ** 2) / 2)
            found[n, 3] = int(math.atan2(ay - by, ax - bx) * (180.0 / math.pi))
            found[n, 4], found[n, 5] = int((ax + bx) / 2), int((ay + by) / 2)
            n += 1
    for i in range(len(drawn)):
        if drawn[i]:
            found[n, 0], found[n, 1], found[n, 2], found[n, 3] = 2, 20 + i, 0, 0
            found[n, 4], found[n, 5] = int(body[i, 0]), int(body[i, 1])
            n += 1
    for h in range(len(hands)):
        for k in range(len(edges)):
            ax, ay = hands[h, edges[k, 0], 0], hands[h, edges[k, 0], 1]
            bx, by = hands[h, edges[k, 1], 0], hands[h, edges[k, 1], 1]
            if min(ax, ay, bx, by) > 0:
                found[n, 0], found[n, 1] = 1, 40 + k
                found[n, 2], found[n, 3], found[n, 4], found[n, 5] = bx - ax, by - ay, ax, ay
                n += 1
        for k in range(hands.shape[1]):
            if hands[h, k, 0] > 0 and hands[h, k, 1] > 0:
                found[n, 0], found[n, 1], found[n, 2], found[n, 3] = 2, 60, 0, 0
                found[n, 4], found[n, 5] = hands[h, k, 0], hands[h, k, 1]
                n += 1
    return n


@_compiled
def _paint(
    image: Image,
    shapes: Ints,
    first: int,
    count: int,
    limbs: Ints,
    fingers: Ints,
    dots: Ints,
    runs: NDArray[np.int16],
    colours: Image,
) -> int:
    """Paint shapes `first` to `count`; returns the number of the first one that is not known or not inside."""
    height, width = image.shape[:2]
    for n in range(first, count):
        kind, colour, a, b, x, y = shapes[n]
        if kind == 0:
            if a >= len(limbs):
                return n
            entry = limbs[a, b + 180, x & 1, y & 1]
        elif kind == 1:
            reach = len(fingers) // 2
            if abs(a) > reach or abs(b) > reach:
                return n
            entry = fingers[a + reach, b + reach]
        else:
            entry = dots
        begin, end = entry[0], entry[1]
        if begin < 0:
            return n
        if y + entry[4] < -1 or x + entry[5] < -1 or y - entry[2] > height or x - entry[3] > width:
            continue  # outside
        # a disc is cut off at the border as it is; lines and polygons are clipped before they are filled
        if kind != 2 and (y < entry[2] or x < entry[3] or y + entry[4] >= height or x + entry[5] >= width):
            return n
        red, green, blue = colours[colour]
        for r in range(begin, end):
            row = y + runs[r, 0]
            if 0 <= row < height:
                for column in range(max(0, x + runs[r, 1]), min(width, x + runs[r, 2])):
                    image[row, column, 0], image[row, column, 1], image[row, column, 2] = red, green, blue
    return count


@_compiled
def _runs_of(plate: Image, x: int, y: int, runs: NDArray[np.int16], begin: int) -> int:
    """Write the runs of `plate` [h, w] that are not 0, relative to (x, y), from row `begin` on; returns their end."""
    n = begin
    for row in range(plate.shape[0]):
        column = 0
        while column < plate.shape[1]:
            if plate[row, column] == 0:
                column += 1
                continue
            start = column
            while column < plate.shape[1] and plate[row, column] != 0:
                column += 1
            runs[n, 0], runs[n, 1], runs[n, 2] = row - y, start - x, column - x
            n += 1
    return n


class _Shapes:
    """The shapes known so far in this process."""

    def __init__(self) -> None:
        self.limbs = np.full((HALVES, 361, 2, 2, 6), -1, np.int32)
        """By half length, angle + 180 and the centre's parity in x and y: first run, last one (exclusive), and the px
        needed above, left, below and right of the shape's point."""
        self.fingers = np.full((2 * REACH + 1, 2 * REACH + 1, 6), -1, np.int32)
        self.dots = np.full(6, -1, np.int32)
        self.runs = np.zeros((MAX_RUNS, 3), np.int16)
        """(row, first column, last column exclusive), relative to the shape's point."""
        self.used = 0
        self._lock = threading.Lock()

    def wants(self, kind: int, a: int, b: int, x: int, y: int) -> bool:
        """Whether this shape is not known, and small enough to be kept."""
        if kind == LIMB:
            return a < HALVES and bool(self.limbs[a, b + 180, x & 1, y & 1, 0] < 0)
        if kind == FINGER:
            return max(abs(a), abs(b)) <= REACH and bool(self.fingers[a + REACH, b + REACH, 0] < 0)
        return bool(self.dots[0] < 0)

    def add(self, kind: int, a: int, b: int, x: int, y: int) -> None:
        """Learn a shape by having OpenCV draw it on a plate."""
        extent = (a if kind == LIMB else max(abs(a), abs(b))) + 12
        at = extent + (extent & 1)  # even, so that the parity is the shape's
        px, py = at + (x & 1), at + (y & 1)
        plate = np.zeros((2 * at + 2, 2 * at + 2), np.uint8)
        _draw(plate, kind, a, b, px, py, (1,))
        with self._lock:
            if self.used + 4 * len(plate) > MAX_RUNS:
                for table in (self.limbs, self.fingers, self.dots):
                    table.fill(-1)
                self.used = 0
            end = _runs_of(plate, px, py, self.runs, self.used)
            rows, first, last = self.runs[self.used : end].T.astype(np.int32)
            place = (self.used, end, 1 - rows.min(), 1 - first.min(), 1 + rows.max(), last.max())
            if kind == LIMB:
                self.limbs[a, b + 180, x & 1, y & 1] = place
            elif kind == FINGER:
                self.fingers[a + REACH, b + REACH] = place
            else:
                self.dots[:] = place
            self.used = end


@cache
def _known() -> _Shapes:
    return _Shapes()


def _draw(image: Image, kind: int, a: int, b: int, x: int, y: int, colour: tuple[float, ...]) -> None:
    """One shape by OpenCV."""
    if kind == LIMB:
        fill_limb(image, (x, y), a, b, colour)
    elif kind == FINGER:
        cv2.line(image, (x, y), (x + a, y + b), colour, thickness=2)
    else:
        cv2.circle(image, (x, y), RADIUS, colour, thickness=-1)


@cache
def _colours() -> Image:
    """The bytes of all colours [61, 3]: 20 limbs (one is spare), 20 joints, 20 fingers, hand joints."""
    wanted = [*LIMB_COLOURS, *[(0, 0, 0)] * (20 - len(LIMB_COLOURS)), *COLOURS[:20], *HAND_COLOURS, HAND_JOINT]
    found = np.zeros((len(wanted), 1, 3), np.uint8)
    for row, colour in zip(found, wanted, strict=True):
        cv2.circle(row[None], (0, 0), 0, colour, thickness=-1)  # fractions are rounded as OpenCV rounds them
    return found[:, 0]


def draw_poses(
    points: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    canvas: Canvas,
    target: Canvas | None = None,
    *,
    hands: bool = True,
    min_score: float = MIN_SCORE,
) -> Image:
    """One person's poses [T, K, 2] px on `canvas` and scores [T, K] in the style `animate-x`, RGB [T, H, W, 3].

    The same bytes as `draw_pose` of each frame.  `target`, when given, is another pixel grid that the poses are
    stretched to; lines keep their width.
    """
    if not np.isfinite(points).all():
        raise InputError("keypoints: NaN or infinite values")
    target = target or canvas
    people = person_dictionaries(points, scores, canvas, min_score)
    body = near(people["candidate"]) * target.size
    drawn = people["subset"] != -1
    fingers = (
        (near(people["hands"]) * target.size).astype(np.int32) if hands else np.zeros((len(points), 0, 21, 2), np.int32)
    )
    images = np.zeros((len(points), target.height, target.width, 3), np.uint8)
    known, colours = _known(), _colours()
    limbs, edges = np.array(LIMBS[:19], np.int32), np.array(HAND_EDGES, np.int32)
    shapes = np.empty((len(limbs) + 20 + 2 * (len(edges) + 21), 6), np.int32)
    for t, image in enumerate(images):
        count = _shapes(body[t], drawn[t], fingers[t], limbs, edges, shapes)
        at = 0
        while True:
            at = _paint(image, shapes, at, count, known.limbs, known.fingers, known.dots, known.runs, colours)
            if at == count:
                break
            kind, colour, a, b, x, y = shapes[at].tolist()
            if known.wants(kind, a, b, x, y):
                known.add(kind, a, b, x, y)
            else:
                _draw(image, kind, a, b, x, y, tuple(map(int, colours[colour])))
                at += 1
    return images
