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
    flat, labels = _nearest(known)
    return np.divmod(flat[labels], known.shape[1])


def nearest_to(known: Flags, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> tuple[NDArray[np.intp], ...]:
    """`nearest_true` for these pixels alone."""
    flat, labels = _nearest(known)
    return np.divmod(flat[labels[rows, columns]], known.shape[1])


def take_nearest(values: Flags, known: Flags) -> Flags:
    """At every pixel the value at the nearest True pixel of `known`."""
    flat, labels = _nearest(known)
    return np.asarray(values.ravel()[flat][labels], bool)


def _nearest(known: Flags) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Labels of the nearest True pixels [H, W] and the flat index of each label's pixel."""
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    found = np.flatnonzero(known)
    flat = np.zeros(len(found) + 1, np.intp)
    flat[labels.ravel()[found]] = found
    return flat, np.asarray(labels, np.int32)


def near(region: Flags, reach: int) -> Flags:
    """The region grown by `reach` px (square brush)."""
    size = 2 * reach + 1
    return cv2.dilate(region.astype(np.uint8), np.ones((size, size), np.uint8)) > 0


def distance_to(shape: tuple[int, ...], points: list[NDArray[np.float64]]) -> Grey:
    """Distance of every pixel centre to a polyline [px]."""
    x = np.arange(shape[1], dtype=np.float32)[None] + np.float32(0.5)
    y = np.arange(shape[0], dtype=np.float32)[:, None] + np.float32(0.5)
    best: Grey | None = None
    for a, b in itertools.pairwise(points):
        d = (b - a).astype(np.float32)
        px, py = x - np.float32(a[0]), y - np.float32(a[1])
        along = np.float32(1.0 / max(float(d @ d), 1e-6))
        t = px * (d[0] * along) + py * (d[1] * along)
        np.clip(t, 0, 1, out=t)
        square = t * -d[0]
        square += px
        square *= square
        t *= -d[1]
        t += py
        t *= t
        square += t
        best = square if best is None else np.minimum(best, square, out=best)
    return np.full(shape[:2], np.inf, np.float32) if best is None else np.sqrt(best, out=best)


def closed(region: Flags, reach: float) -> Flags:
    """The region closed by a disc of radius `reach` [px]: what no disc outside of it can enter.

    By two distances, which take as long for a wide disc as for a narrow one.
    """
    if not region.any():
        return region
    pad = int(reach) + 2
    padded = np.pad(region, pad)
    grown = cv2.distanceTransform((~padded).astype(np.uint8), cv2.DIST_L2, 5) <= reach
    inner = cv2.distanceTransform(grown.astype(np.uint8), cv2.DIST_L2, 5) > reach
    return np.asarray(inner[pad:-pad, pad:-pad] | region, bool)


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
