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
    shape = np.clip(0.5 + distance / 2.0, 0.0, 1.0)
    band = np.abs(distance) < reach
    figure, ground = _sides(rgb, distance, reach)
    colour = rgb.astype(np.float32)
    line = figure - ground
    length = (line * line).sum(2)
    place = ((colour - ground) * line).sum(2) / np.maximum(length, 1.0)
    off_line = np.linalg.norm(colour - ground - np.clip(place, 0, 1)[..., None] * line, axis=2)
    trust = length / (length + _CLEAR**2) * np.exp(-((off_line / 40.0) ** 2))
    mixed = trust * np.clip(place, 0.0, 1.0) + (1 - trust) * shape
    # Farther from the outline colour has less say: the text behind an ear may look like the ear.
    mixed = mixed + (shape - mixed) * np.clip(np.abs(distance) / reach, 0, 1) ** 2
    mixed = np.clip(0.5 + 1.25 * (mixed - 0.5), 0.0, 1.0)
    alpha = np.where(band, mixed, inside.astype(np.float32))
    return _without_specks(alpha.astype(np.float32))


def cut_out(picture: NDArray[np.uint8], alpha: Map) -> Map:
    """The figure as premultiplied RGBA float32 0..1 [H, W, 4], its edge free of the background's colour.

    Where alpha is 1 the colours are the picture's own; below it they are unmixed from the background beside the edge
    and drawn towards the figure's colour just inside, the more the thinner the coverage.  `picture` is RGB or RGBA.
    """
    rgb = np.ascontiguousarray(picture[..., :3])
    alpha = np.clip(alpha, 0.0, 1.0).astype(np.float32)
    colour = rgb.astype(np.float32)
    edge = (alpha > 0) & (alpha < 1)
    if edge.any():
        inside = alpha > 0.5
        if inside.any() and not inside.all():
            figure, ground = _sides(rgb, signed_distance(inside), edge_reach(rgb.shape))
            a = alpha[..., None]
            unmixed = np.clip((colour - (1 - a) * ground) / np.maximum(a, 0.05), 0.0, 255.0)
            colour = np.where(edge[..., None], figure + (unmixed - figure) * a, colour)
    out = np.empty((*alpha.shape, 4), np.float32)
    out[..., :3] = colour * (alpha / 255.0)[..., None]
    out[..., 3] = alpha
    return out


def edge_reach(shape: tuple[int, ...]) -> float:
    """Half width of the soft band [px] for a picture of this shape: 2-4."""
    return float(np.clip(0.003 * max(shape[:2]), 2.0, 4.0))


def signed_distance(inside: NDArray[np.bool_]) -> Map:
    """Distance to the outline [px], positive inside; the outline runs between pixels."""
    flags = inside.astype(np.uint8)
    within = cv2.distanceTransform(flags, cv2.DIST_L2, 3) - 0.5 if inside.any() else np.zeros(inside.shape, np.float32)
    beyond = cv2.distanceTransform(1 - flags, cv2.DIST_L2, 3) - 0.5
    return np.where(inside, within, -beyond).astype(np.float32)


def _sides(rgb: NDArray[np.uint8], distance: Map, reach: float) -> tuple[Map, Map]:
    """Colour of the figure and of the ground beside each pixel: means over a few pixels, the outline's own left out."""
    sides = []
    for depth in (distance, -distance):
        # A thin limb has no pixel deeper than `reach`: its middle then counts, with little weight elsewhere.
        weight = np.where(depth > 0, np.clip((depth - 0.5) / reach, 0.01, 1.0) ** 2, 0.0)
        weight = np.where(depth < 3.0 * reach, weight, 0.25 * weight).astype(np.float32)
        stack = np.dstack([rgb.astype(np.float32) * weight[..., None], weight])
        stack = cv2.GaussianBlur(stack, (0, 0), 1.2 * reach, borderType=cv2.BORDER_REPLICATE)
        sides.append(stack[..., :3] / np.maximum(stack[..., 3:], 1e-6))
    return sides[0].astype(np.float32), sides[1].astype(np.float32)


def _without_specks(alpha: Map) -> Map:
    """Alpha without faint islands that touch nothing solid."""
    count, labels = cv2.connectedComponents((alpha > 0.02).astype(np.uint8), connectivity=8)
    solid = np.zeros(count, bool)
    solid[np.unique(labels[alpha > 0.9])] = True
    solid[0] = False
    return np.where(solid[labels], alpha, 0.0).astype(np.float32)
