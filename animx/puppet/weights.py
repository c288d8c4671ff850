"""How much each vertex follows each bone.

A layer's vertices hang on chains: trunk -> upper bone -> lower bone (arm or leg), or trunk -> head.  `near` says how
far a vertex has left the trunk for the upper bone, `far` how far it has left the upper for the lower, `share` how the
chains of one layer mix.  All are 0..1; the deformation blends *angles* about the shared joint (see `skin.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.pose.skeleton import NECK, NOSE
from animx.puppet.anatomy import ARM, LEG, SIDES, Anatomy
from animx.puppet.geodesic import spread
from animx.puppet.parts import Parts
from animx.puppet.regions import leg_line, nearest_true

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """Weights of N vertices on C chains, named `right_arm`, `left_leg`, `head`, ...  Shares sum to at most 1; the rest
    follows the trunk alone."""

    chains: tuple[str, ...]
    share: Vector  # [C, N]
    near: Vector  # [C, N]
    far: Vector  # [C, N]
    loose: Vector  # [N] 1 = free, 0 = does not move (towards a border that cuts the figure)


def smooth_step(x: Vector) -> Vector:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(x, 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t), np.float64)


def weigh(layer: str, vertices: Vector, body: Anatomy, parts: Parts, field: LegField | None) -> Weights:
    """Weights of `vertices` [N, 2] px of the layer with that name."""
    count = len(vertices)
    if layer.endswith("_arm"):
        loose = np.ones(count)
        side = layer.removesuffix("_arm")
        near = _leave_trunk(vertices, body, side, parts.arm_radius[side])
        far = _leave_upper(vertices, body, ARM[side], parts.arm_radius[side])
        return Weights((layer,), np.ones((1, count)), near[None], far[None], loose)
    loose = _loose(vertices, body)
    if layer == "figure":
        return Weights((), np.zeros((0, count)), np.zeros((0, count)), np.zeros((0, count)), loose)
    names, share, near_all, far_all = [], [], [], []
    head = _head(vertices, body) if body.head else np.zeros(count)
    if field is not None:
        leave, mix = field.at(vertices)
        if layer.endswith("_leg") and parts.leg_cut is not None:
            # a leg's own sheet follows that leg alone, from a little below the cut on
            own = np.array([[layer == f"{side}_leg"] for side in body.legs], np.float64)
            apart = smooth_step((vertices[:, 1] - parts.leg_cut) / (0.02 * body.height))
            mix = mix + (own - mix) * apart
            leave = leave + (1 - leave) * apart * (leave > 0.5)
        for i, side in enumerate(body.legs):
            names.append(f"{side}_leg")
            share.append(mix[i] * (1 - (head > 0)))
            near_all.append(leave)
            far_all.append(_leave_upper(vertices, body, LEG[side], parts.leg_radius))
    if body.head:
        names.append("head")
        share.append((head > 0).astype(np.float64))
        near_all.append(head)
        far_all.append(np.zeros(count))
    shape = (len(names), count)
    return Weights(
        tuple(names),
        np.array(share).reshape(shape),
        np.array(near_all).reshape(shape),
        np.array(far_all).reshape(shape),
        loose,
    )


def _loose(vertices: Vector, body: Anatomy) -> Vector:
    if not body.cropped:
        return np.ones(len(vertices))
    bottom = body.size[1]
    start = float(np.clip(body.mid_hip[1], body.box[1], bottom - 0.12 * body.height))
    return np.asarray(1.0 - smooth_step((vertices[:, 1] - start) / (bottom - start)), np.float64)


def _leave_trunk(vertices: Vector, body: Anatomy, side: str, radius: float) -> Vector:
    """From the trunk to the upper arm: along the bone, round the shoulder."""
    shoulder, elbow, _ = ARM[side]
    bone = body.joints[elbow] - body.joints[shoulder]
    length = max(float(np.linalg.norm(bone)), 1e-6)
    along = (vertices - body.joints[shoulder]) @ (bone / length)
    reach = min(0.9 * radius, 0.45 * length)
    return smooth_step((along + 0.5 * reach) / (1.3 * reach))


def _leave_upper(vertices: Vector, body: Anatomy, chain: tuple[int, int, int], radius: float) -> Vector:
    """From the upper to the lower bone: across the bisector of the joint, over two radii."""
    root, joint, end = chain
    if not body.seen[end]:
        return np.zeros(len(vertices))
    upper, lower = body.joints[joint] - body.joints[root], body.joints[end] - body.joints[joint]
    long_u, long_l = max(float(np.linalg.norm(upper)), 1e-6), max(float(np.linalg.norm(lower)), 1e-6)
    upper, lower = upper / long_u, lower / long_l
    relative = vertices - body.joints[joint]
    band = max(min(radius, 0.45 * long_u, 0.45 * long_l), 1e-6)
    if float(upper @ lower) > -0.3:
        normal = (upper + lower) / np.linalg.norm(upper + lower)
        across = relative @ normal
    else:
        across = _to_segment(relative, -long_u * upper) - _to_segment(relative, long_l * lower)
    return smooth_step(0.5 + 0.5 * across / band)


def _to_segment(points: Vector, end: Vector) -> Vector:
    """Distance of points to the segment from the origin to `end`."""
    t = np.clip(points @ end / max(float(end @ end), 1e-9), 0, 1)
    return np.asarray(np.linalg.norm(points - t[:, None] * end, axis=1), np.float64)


def _head(vertices: Vector, body: Anatomy) -> Vector:
    """From the neck (0) to the nose (1), between 15 and 65 % of the way."""
    bone = body.joints[NOSE] - body.joints[NECK]
    length = max(float(np.linalg.norm(bone)), 1e-6)
    along = (vertices - body.joints[NECK]) @ bone / length**2
    return smooth_step((along - 0.15) / 0.5)


@dataclass(frozen=True)
class LegField:
    """Geodesic leg weights on a coarse grid, looked up at the nearest pixel of the figure."""

    leave: NDArray[np.float32]  # [h, w] from the trunk (0) to the legs (1)
    mix: NDArray[np.float32]  # [legs, h, w] share of each leg, sums to 1
    scale: float
    """Grid cells per canvas pixel."""

    def at(self, vertices: Vector) -> tuple[Vector, Vector]:
        """(leave [N], mix [legs, N]) at canvas positions [px], bilinear."""
        x = (vertices[:, 0] * self.scale - 0.5).astype(np.float32)[None]
        y = (vertices[:, 1] * self.scale - 0.5).astype(np.float32)[None]

        def sample(grid: NDArray[np.float32]) -> Vector:
            found = cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            return np.asarray(found[0], np.float64)

        mix = np.stack([sample(m) for m in self.mix])
        return sample(self.leave), np.asarray(mix / np.maximum(mix.sum(0), 1e-9), np.float64)


def leg_field(body: Anatomy, parts: Parts) -> LegField | None:
    """Compute the leg weights; None when no leg moves.

    Distances run inside the figure and never across the line between two separate legs, so touching shoes stay apart.
    """
    if not body.legs:
        return None
    region, side_of = parts.region, parts.leg_side
    scale = min(1.0, 320.0 / max(region.shape))
    shape = (max(2, round(region.shape[0] * scale)), max(2, round(region.shape[1] * scale)))
    scale_xy = np.array([shape[1] / region.shape[1], shape[0] / region.shape[0]])
    inside = cv2.resize(region.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_AREA) > 0
    side = cv2.resize(side_of, shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int8)
    quad = body.polygon(1.0, 1.0)
    hips = quad[2:].mean(0)
    trunk = np.zeros(shape, np.uint8)
    # the trunk ends a little above the hip joints, the thigh begins a little below them
    raised = quad.copy()
    raised[2:] += 0.18 * (body.neck - hips)
    cv2.fillPoly(trunk, [np.rint(raised * scale_xy).astype(np.int32)], (1,))
    cv2.polylines(trunk, [np.rint(raised * scale_xy).astype(np.int32)], True, (1,), 1)
    distance = [_geodesic(inside, side, trunk > 0, 0)]
    for leg in body.legs:
        seed = np.zeros(shape, np.uint8)
        line = np.rint(np.array(leg_line(body, leg, 0.12)) * scale_xy).astype(np.int32)
        cv2.polylines(seed, [line.reshape(-1, 1, 2)], False, (1,), 1)
        distance.append(_geodesic(inside, side, seed > 0, 1 + SIDES.index(leg)))
    power = np.stack([1.0 / np.maximum(d, 0.5) ** 3 for d in distance])
    total = power.sum(0)
    legs = power[1:].sum(0)
    leave = smooth_step((legs / np.maximum(total, 1e-30) - 0.1) / 0.8)
    # softly between the legs: a skirt must not fold along its middle (separate legs are far apart by the cut)
    soft = np.stack([1.0 / np.maximum(d, 0.5) ** 1.5 for d in distance[1:]])
    mix = soft / soft.sum(0)
    if len(body.legs) == 2:
        first = np.clip((mix[0] - 0.01) / 0.98, 0, 1)
        mix = np.stack([first, 1 - first])
    known = inside & (total > 1e-20)
    if not known.any():
        return None
    rows, columns = nearest_true(known)
    return LegField(leave[rows, columns].astype(np.float32), mix[:, rows, columns].astype(np.float32), float(scale))


def _geodesic(inside: NDArray[np.bool_], side: NDArray[np.int8], seed: NDArray[np.bool_], own: int) -> Vector:
    """Distance within the figure [grid px]; a leg's walk may not enter the other leg below the cut."""
    other = (side > 0) & (side != own) if own else np.zeros(side.shape, bool)
    start = seed & (inside | (side == own)) & ~other
    far = float(sum(inside.shape))
    if not start.any():
        return np.full(inside.shape, far)
    cost = np.where(inside & ~other, 1.0, -1.0)
    cost[seed] = 1.0
    _, found = spread(cost, start)
    return np.where(np.isfinite(found), found, far)
