"""Small geometry of pixel regions that the cutting steps share: nearest pixels, distances, the bones' lines."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.puppet.anatomy import ARM, LEG, Anatomy

Grey = NDArray[np.float32]
Flags = NDArray[np.bool_]


def nearest_true(known: Flags) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of the nearest True pixel, for every pixel.  `known` must hold one."""
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, columns = np.nonzero(known)
    order = np.zeros((int(labels.max()) + 1, 2), np.intp)
    order[labels[rows, columns]] = np.stack([rows, columns], 1)
    return order[labels, 0], order[labels, 1]


def near(region: Flags, reach: int) -> Flags:
    """The region grown by `reach` px (square brush)."""
    size = 2 * reach + 1
    return cv2.dilate(region.astype(np.uint8), np.ones((size, size), np.uint8)) > 0


def distance_to(shape: tuple[int, ...], points: list[NDArray[np.float64]]) -> Grey:
    """Distance of every pixel centre to a polyline [px]."""
    rows, columns = np.indices(shape[:2], np.float32)
    best = np.full(shape[:2], np.inf, np.float32)
    for a, b in itertools.pairwise(points):
        d = b - a
        px, py = columns + 0.5 - np.float32(a[0]), rows + 0.5 - np.float32(a[1])
        t = np.clip((px * np.float32(d[0]) + py * np.float32(d[1])) / np.float32(max(float(d @ d), 1e-6)), 0, 1)
        best = np.minimum(best, np.hypot(px - t * np.float32(d[0]), py - t * np.float32(d[1])))
    return best


def arm_line(body: Anatomy, side: str, start: float = 0.0, hand: float = 0.0) -> list[NDArray[np.float64]]:
    """The arm's bones as a polyline from `start` of the upper arm to `hand` forearm lengths beyond the wrist."""
    shoulder, elbow, wrist = ARM[side]
    line = [body.joints[shoulder] + start * (body.joints[elbow] - body.joints[shoulder]), body.joints[elbow]]
    if body.seen[wrist]:
        line.append(body.joints[wrist] + hand * (body.joints[wrist] - body.joints[elbow]))
    return line


def leg_line(body: Anatomy, side: str, start: float = 0.0) -> list[NDArray[np.float64]]:
    """The leg's bones as a polyline from `start` of the thigh to the ankle (or the knee)."""
    hip, knee, ankle = LEG[side]
    line = [body.joints[hip] + start * (body.joints[knee] - body.joints[hip]), body.joints[knee]]
    if body.seen[ankle]:
        line.append(body.joints[ankle])
    return line
