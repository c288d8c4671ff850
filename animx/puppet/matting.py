"""Sharp soft edges: alpha in a band of a few pixels, and the figure's own colours under it.

In: an RGB picture [H, W, 3] and a score or alpha [H, W].  Colours just inside and just outside of the outline are
averaged; a band pixel's alpha is its place on the line between the two, where they differ enough to tell.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

_CLEAR = 18.0
"""Colour difference [levels] of figure and ground at which colour and shape count the same for alpha."""


def soften(rgb: NDArray[np.uint8], score: Map) -> Map:
    """Alpha 0..1 [H, W] from a score [H, W] that is positive on the figure; soft in a band of 1-3 px each side."""
    inside = score > 0
    if not inside.any() or inside.all():
        return inside.astype(np.float32)
    reach = edge_reach(rgb.shape)
    distance = signed_distance(inside)
    alpha = inside.astype(np.float32)
    rows, columns = np.nonzero(np.abs(distance) < reach)
    band = rows, columns
    away = distance[band]
    shape = np.clip(0.5 + away / 2.0, 0.0, 1.0)
    figure, ground = _sides(rgb, distance, reach, band)
    off_ground = rgb[band].astype(np.float32) - ground
    line = figure - ground
    length = (line * line).sum(1)
    place = np.clip((off_ground * line).sum(1) / np.maximum(length, 1.0), 0.0, 1.0)
    off_line = np.linalg.norm(off_ground - place[:, None] * line, axis=1)
    trust = length / (length + _CLEAR**2) * np.exp(-((off_line / 40.0) ** 2))
    mixed = trust * place + (1 - trust) * shape
    # Farther from the outline colour has less say: the text behind an ear may look like the ear.
    mixed = mixed + (shape - mixed) * np.clip(np.abs(away) / reach, 0, 1) ** 2
    alpha[band] = np.clip(0.5 + 1.25 * (mixed - 0.5), 0.0, 1.0)
    return _without_specks(alpha)


def cut_out(picture: NDArray[np.uint8], alpha: Map) -> Map:
    """The figure as premultiplied RGBA float32 0..1 [H, W, 4], its edge free of the background's colour.

    Where alpha is 1 the colours are the picture's own; below it they are unmixed from the background beside the edge
    and drawn towards the figure's colour just inside, the more the thinner the coverage.  `picture` is RGB or RGBA.
    """
    alpha = np.clip(alpha, 0.0, 1.0).astype(np.float32)
    colour = np.ascontiguousarray(picture[..., :3]).astype(np.float32)
    edge, own = edge_colours(np.ascontiguousarray(picture[..., :3]), alpha)
    colour[edge] = own
    return np.asarray(cv2.merge([*(plane * (alpha / 255.0) for plane in cv2.split(colour)), alpha]), np.float32)


Pixels = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Rows and columns of n pixels."""


def edge_colours(rgb: NDArray[np.uint8], alpha: Map) -> tuple[Pixels, Map]:
    """The partly covered pixels and their colours as `cut_out` finds them, levels 0..255 [n, 3], not premultiplied."""
    rows, columns = np.nonzero((alpha > 0) & (alpha < 1))
    edge, inside = (rows, columns), alpha > 0.5
    colour = rgb[edge].astype(np.float32)
    if len(rows) and inside.any() and not inside.all():
        figure, ground = _sides(rgb, signed_distance(inside), edge_reach(rgb.shape), edge)
        a = alpha[edge][:, None]
        unmixed = np.clip((colour - (1 - a) * ground) / np.maximum(a, 0.05), 0.0, 255.0)
        colour = figure + (unmixed - figure) * a
    return edge, colour


def edge_reach(shape: tuple[int, ...]) -> float:
    """Half width of the soft band [px] for a picture of this shape: 2-4."""
    return float(np.clip(0.003 * max(shape[:2]), 2.0, 4.0))


def signed_distance(inside: NDArray[np.bool_]) -> Map:
    """Distance to the outline [px], positive inside; the outline runs between pixels."""
    flags = inside.astype(np.uint8)
    within = cv2.distanceTransform(flags, cv2.DIST_L2, 3) - 0.5 if inside.any() else np.zeros(inside.shape, np.float32)
    beyond = cv2.distanceTransform(1 - flags, cv2.DIST_L2, 3) - 0.5
    return np.where(inside, within, -beyond).astype(np.float32)


def _sides(rgb: NDArray[np.uint8], distance: Map, reach: float, where: Pixels) -> tuple[Map, Map]:
    """Colour of the figure and of the ground beside the pixels `where` [n, 3].

    Means over a few pixels, the outline's own left out.
    """
    if not len(where[0]):
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)
    sigma = 1.2 * reach
    margin = int(4 * sigma) + 2
    top, left = (max(0, int(ends.min()) - margin) for ends in where)
    box = np.s_[top : int(where[0].max()) + margin + 1, left : int(where[1].max()) + margin + 1]
    planes = [plane.astype(np.float32) for plane in cv2.split(rgb[box])]
    sides = []
    for depth in (distance[box], -distance[box]):
        # A thin limb has no pixel deeper than `reach`: its middle then counts, with little weight elsewhere.
        weight = np.where(depth > 0, np.clip((depth - 0.5) / reach, 0.01, 1.0) ** 2, 0.0)
        weight = np.where(depth < 3.0 * reach, weight, 0.25 * weight).astype(np.float32)
        stack = cv2.merge([*(plane * weight for plane in planes), weight])
        stack = cv2.GaussianBlur(stack, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        found = stack[where[0] - top, where[1] - left]
        sides.append(found[:, :3] / np.maximum(found[:, 3:], 1e-6))
    return sides[0], sides[1]


def _without_specks(alpha: Map) -> Map:
    """Alpha without faint islands that touch nothing solid."""
    count, labels = cv2.connectedComponents((alpha > 0.02).astype(np.uint8), connectivity=8)
    solid = np.zeros(count, bool)
    solid[np.unique(labels[alpha > 0.9])] = True
    solid[0] = False
    return np.where(solid[labels], alpha, 0.0).astype(np.float32)
