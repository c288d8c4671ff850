"""Checks of the puppet's frames that need no reference video: markers, holes, area, flips, rest pose, background.

Each takes a prepared `Stage` (see `engine.prepare`) and returns plain numbers; H is the height of the figure's box.
The tests hold them against the bars, `animx bench puppet` prints them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.engine import RenderJob
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import L_HIP, L_SHOULDER, NECK, NOSE, R_HIP, R_SHOULDER
from animx.puppet.anatomy import ARM, BODY_JOINTS, LEG
from animx.puppet.engine import Stage, prepare

SMALL_HOLE = 400
"""Enclosed areas below this are holes of the puppet; larger ones are gaps between limbs [px]."""


@dataclass(frozen=True)
class Markers:
    """How well the drawn joints meet the joints that were aimed at."""

    mean: float
    """Mean distance of visible markers [H]."""
    p95: float
    """95th percentile of the distance [H]."""
    visible: float
    """Share of markers that were drawn at least to 40 % inside the picture and not hidden."""
    count: int


def markers(stage: Stage, frames: Iterable[int]) -> Markers:
    """Draw a disc at each joint on its own layer, find its centroid, compare with the planned joint.

    Proves weights, deformation and drawing together; it cannot see a wrongly cut arm.
    """
    puppet, motion = stage.puppet, stage.motion
    radius = max(3.0, 0.006 * puppet.body.height)
    owners = _owners(stage)
    errors, shown, total = [], 0, 0
    black = [_recoloured(sheet.layer.texture) for sheet in puppet.sheets]
    height, width = stage.background.shape[:2]
    prepared = []
    for joint, sheet in owners.items():
        textures = list(black)
        textures[sheet] = _disc(puppet.sheets[sheet].layer, puppet.body.joints[joint], radius)
        prepared.append((joint, puppet.with_textures(textures)))
    for t in frames:
        for joint, marked in prepared:
            frame = np.zeros((height, width, 4), np.uint8)
            marked.draw(motion, t, frame)
            weight = frame[..., 0].astype(np.float64)
            total += 1
            mass = float(weight.sum())
            if mass < 0.4 * 255 * np.pi * radius**2:
                continue
            shown += 1
            x = float((weight.sum(0) * (np.arange(width) + 0.5)).sum()) / mass
            y = float((weight.sum(1) * (np.arange(height) + 0.5)).sum()) / mass
            errors.append(float(np.hypot(*(motion.joints[t, joint] - (x, y)))) / puppet.body.height)
    if not errors:
        return Markers(float("inf"), float("inf"), 0.0, total)
    return Markers(float(np.mean(errors)), float(np.percentile(errors, 95)), shown / total, total)


def _owners(stage: Stage) -> dict[int, int]:
    """Joint -> index of the sheet that carries it, for the joints of moving parts inside the figure."""
    puppet, body = stage.puppet, stage.puppet.body
    index = {sheet.layer.name: i for i, sheet in enumerate(puppet.sheets)}
    owners: dict[int, int] = {}
    if not body.has_torso or "body" not in index:
        return owners
    trunk = [NECK, R_SHOULDER, L_SHOULDER, R_HIP, L_HIP, *([NOSE] if body.head else [])]
    for joint in trunk:
        owners[joint] = index["body"]
    for side in body.arms:
        for joint in ARM[side]:
            owners[joint] = index[f"{side}_arm"]
    for side in body.legs:
        for joint in LEG[side][1:]:
            x, y = np.clip(body.joints[joint].astype(int), 0, np.array(body.size) - 1)
            own = puppet.parts.leg_side[y, x] > 0 and f"{side}_leg" in index
            owners[joint] = index[f"{side}_leg" if own else "body"]
    found = {}
    for joint, sheet in owners.items():
        layer = puppet.sheets[sheet].layer
        x, y = (body.joints[joint] - layer.origin).astype(int)
        inside = 0 <= x < layer.texture.shape[1] and 0 <= y < layer.texture.shape[0]
        if body.seen[joint] and inside and layer.texture[y, x, 3] > 127:
            found[joint] = sheet
    return found


def _recoloured(texture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    black = texture.copy()
    black[..., :3] = 0
    return black


def _disc(layer: object, centre: NDArray[np.float64], radius: float) -> NDArray[np.uint8]:
    from animx.puppet.parts import Layer

    assert isinstance(layer, Layer)
    rows, columns = np.indices(layer.texture.shape[:2])
    gap = np.hypot(columns + 0.5 + layer.origin[0] - centre[0], rows + 0.5 + layer.origin[1] - centre[1])
    level = np.clip(radius - gap + 0.5, 0, 1) * 255
    return np.repeat(np.rint(level).astype(np.uint8)[..., None], 4, axis=2)


def coverage(stage: Stage, t: int) -> NDArray[np.uint8]:
    """The figure's alpha at frame t, 0..255 [H, W]."""
    frame = np.zeros_like(stage.background)
    stage.puppet.draw(stage.motion, t, frame)
    return np.ascontiguousarray(frame[..., 3])


def holes(alpha: NDArray[np.uint8]) -> int:
    """Area of small enclosed gaps in a silhouette [px]."""
    gaps = (alpha < 128).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(np.pad(gaps, 1, constant_values=1), connectivity=4)
    del labels
    areas = stats[1:count, cv2.CC_STAT_AREA]
    return int(areas[areas < SMALL_HOLE].sum())


def hole_share(stage: Stage, frames: Iterable[int]) -> float:
    """Worst enclosed small-hole area over the frames, less the rest pose's, over H squared."""
    rest = holes((_rest_mask(stage) * 255).astype(np.uint8))
    worst = max(holes(coverage(stage, t)) for t in frames)
    return max(worst - rest, 0) / stage.puppet.body.height**2


def area_ratio(stage: Stage, frames: Iterable[int]) -> tuple[float, float]:
    """Smallest and largest silhouette area over the frames, over the area at rest."""
    rest = float((_rest_mask(stage) > 0.5).sum())
    areas = [float((coverage(stage, t) > 127).sum()) / rest for t in frames]
    return min(areas), max(areas)


def _rest_mask(stage: Stage) -> NDArray[np.float32]:
    height, width = stage.background.shape[:2]
    mask = np.zeros((height, width), np.float32)
    for sheet in stage.puppet.sheets:
        alpha = sheet.layer.texture[..., 3] / np.float32(255)
        x0, y0 = sheet.layer.origin
        top, left = max(y0, 0), max(x0, 0)
        bottom, right = min(y0 + alpha.shape[0], height), min(x0 + alpha.shape[1], width)
        part = alpha[top - y0 : bottom - y0, left - x0 : right - x0]
        mask[top:bottom, left:right] = np.maximum(mask[top:bottom, left:right], part)
    return mask


def flipped(stage: Stage, frames: Iterable[int]) -> float:
    """Share of opaque triangles that are turned over, mean over the frames."""
    shares = []
    for t in frames:
        wrong = total = 0
        for sheet, moved in zip(stage.puppet.sheets, stage.puppet.positions(stage.motion, t), strict=True):
            solid = sheet.mesh.triangles[sheet.mesh.opaque]
            before, after = _areas(sheet.mesh.vertices[solid]), _areas(moved[solid])
            wrong += int((before * after <= 0).sum())
            total += len(solid)
        shares.append(wrong / max(total, 1))
    return float(np.mean(shares))


def _areas(triangles: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    cross: NDArray[np.float64] = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    return cross


def rest_difference(job: RenderJob) -> tuple[float, int]:
    """Feed the reference's own pose: (share of inner figure pixels off by > 16, largest difference of the background
    beyond the mask grown by 3 % of the picture).  Needs `job.mask`."""
    assert job.mask is not None
    still = replace(job, poses=_still(job), driving_poses=None)
    frame = prepare(still).frame(0).astype(np.int16)[..., :3]
    gap = np.abs(frame - job.picture[..., :3].astype(np.int16)).max(-1)
    inner = cv2.erode((job.mask > 0.99).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    reach = 2 * round(0.03 * max(job.mask.shape)) + 1
    outside = cv2.dilate((job.mask > 0).astype(np.uint8), np.ones((reach, reach), np.uint8)) == 0
    return float((gap[inner] > 16).mean()), int(gap[outside].max(initial=0))


def _still(job: RenderJob) -> PoseSequence:
    if job.reference_pose is None:
        points = np.zeros((1, 1, job.poses.keypoints.shape[2], 2), np.float32)
        return PoseSequence(points, points[..., 0], job.canvas, job.poses.fps)
    return replace(job.reference_pose, fps=job.poses.fps)


def background_difference(stage: Stage, frames: Iterable[int]) -> int:
    """Largest difference to the background where the figure is not drawn, over the frames; 0 = untouched."""
    worst = 0
    for t in frames:
        frame = stage.frame(t)
        away = cv2.dilate(coverage(stage, t), np.ones((3, 3), np.uint8)) == 0
        gap = np.abs(frame.astype(np.int16) - stage.background.astype(np.int16)).max(-1)
        worst = max(worst, int(gap[away].max(initial=0)))
    return worst


def departure(job: RenderJob, stage: Stage) -> tuple[float, float]:
    """Mean and 95th percentile distance of the planned limb joints to the job's poses [H]: what the limits cost."""
    body = stage.puppet.body
    joints = [j for side in body.arms for j in ARM[side][1:]] + [j for side in body.legs for j in LEG[side][1:]]
    seen = job.poses.scores[:, 0, :BODY_JOINTS] > 0
    gaps = [
        np.linalg.norm(stage.motion.joints[seen[:, j], j] - job.poses.keypoints[seen[:, j], 0, j], axis=1)
        for j in joints
        if body.seen[j] and seen[:, j].any()
    ]
    if not gaps:
        return 0.0, 0.0
    found = np.concatenate(gaps) / body.height
    return float(found.mean()), float(np.percentile(found, 95))


def limb_angles(job: RenderJob, stage: Stage) -> NDArray[np.float64]:
    """Angle errors of the planned limb bones against the job's poses [degrees], bones shorter than 25 % of their 90th
    percentile left out."""
    body, errors = stage.puppet.body, []
    chains = [ARM[s] for s in body.arms] + [LEG[s] for s in body.legs]
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            if not (body.seen[a] and body.seen[b]):
                continue
            both = (job.poses.scores[:, 0, a] > 0) & (job.poses.scores[:, 0, b] > 0)
            wanted = (job.poses.keypoints[both, 0, b] - job.poses.keypoints[both, 0, a]).astype(np.float64)
            length = np.linalg.norm(wanted, axis=1)
            if not len(length):
                continue
            got = stage.motion.joints[both, b] - stage.motion.joints[both, a]
            turn = np.angle((got[:, 0] + 1j * got[:, 1]) * np.conj(wanted[:, 0] + 1j * wanted[:, 1]), deg=True)
            errors.append(np.abs(turn[length >= 0.25 * np.percentile(length, 90)]))
    return np.concatenate(errors) if errors else np.zeros(0)
