"""Checks of the puppet's frames that need no reference video: markers, holes, area, flips, rest pose, background, feet.

Each takes a prepared `Stage` (see `engine.prepare`) and returns plain numbers; H is the height of the figure's box.
The tests hold them against the bars, `animx bench puppet` prints them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.engine import RenderJob
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import L_HIP, L_SHOULDER, NECK, NOSE, R_HIP, R_SHOULDER
from animx.puppet.anatomy import ARM, BODY_JOINTS, LEG
from animx.puppet.engine import Stage, prepare

if TYPE_CHECKING:
    from animx.pose.backend import PoseBackend

SMALL_HOLE = 0.0008
"""Enclosed areas below this are holes of the puppet; larger ones are gaps between limbs [H squared; 400 px at 700]."""


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


def holes(alpha: NDArray[np.uint8], height: float) -> int:
    """Area of small enclosed gaps in the silhouette of a figure of `height` px [px]."""
    gaps = (alpha < 128).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(np.pad(gaps, 1, constant_values=1), connectivity=4)
    del labels
    areas = stats[1:count, cv2.CC_STAT_AREA]
    return int(areas[areas < SMALL_HOLE * height**2].sum())


def hole_share(stage: Stage, frames: Iterable[int]) -> float:
    """Worst enclosed small-hole area over the frames, less the rest pose's, over H squared."""
    height = stage.puppet.body.height
    rest = holes((_rest_mask(stage) * 255).astype(np.uint8), height)
    worst = max(holes(coverage(stage, t), height) for t in frames)
    return max(worst - rest, 0) / height**2


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


def skating(job: RenderJob, stage: Stage, still: float = 0.06) -> tuple[float, float]:
    """How fast a foot slides while the driver's stands: mean speed [H/s], and the share of foot frames that stand.

    A driver's foot stands when it moves slower than `still` of the driver's height per second and is not the lifted
    one.  Needs `job.driving_poses`; (0, 0) without feet.
    """
    body, poses = stage.puppet.body, job.driving_poses or job.poses
    points, seen = poses.keypoints[:, 0].astype(np.float64), poses.scores[:, 0] > 0
    feet = [LEG[side][2] for side in body.legs if body.seen[LEG[side][2]] and seen[:, LEG[side][2]].any()]
    if not feet or poses.frames < 2:
        return 0.0, 0.0
    steps = np.diff(poses.times)
    tall = 1.12 * float(np.median(points[:, feet, 1].max(1) - points[:, NOSE, 1]))
    low = points[:-1, feet, 1].max(1)
    speeds, count = [], 0
    for foot in feet:
        both = seen[:-1, foot] & seen[1:, foot]
        slow = np.linalg.norm(np.diff(points[:, foot], axis=0), axis=1) / steps < still * tall
        stands = both & slow & (low - points[:-1, foot, 1] < 0.04 * tall)
        moved = np.linalg.norm(np.diff(stage.motion.joints[:, foot], axis=0), axis=1) / steps / body.height
        speeds.append(moved[stands])
        count += int(both.sum())
    found = np.concatenate(speeds)
    return (float(found.mean()) if len(found) else 0.0), len(found) / max(count, 1)


@dataclass(frozen=True)
class Redetection:
    """What a pose detector sees in the frames, beside what it would see if nothing moved."""

    found: float
    """Share of the frames in which it finds anybody; the others are left out of the rest."""
    near: float
    """Share of elbows and wrists found within .05 H of where they are aimed (PCK.05)."""
    near_still: float
    """The same for the picture's own joints."""
    angle: float
    """Median error of the directions of upper arms and forearms [degrees]."""
    angle_still: float
    """The same for the picture's own joints."""


def redetected(job: RenderJob, stage: Stage, backend: PoseBackend, every: int = 5) -> Redetection:
    """Track a person through the frames and hold the arms against the planned joints in each `every`-th frame.

    The picture's own pose is the null: a figure that is not animated scores well on any check that is too coarse.
    Nothing is cropped or smoothed.  Says nothing about figures that the detector does not take for a person.
    """
    assert job.reference_pose is not None
    body, own = stage.puppet.body, job.reference_pose.keypoints[0, 0].astype(np.float64)
    gaps: list[list[float]] = [[], []]
    turns: list[list[float]] = [[], []]
    shown, total = 0, 0
    backend.reset()
    for t in range(job.poses.frames):
        seen = backend.detect(np.ascontiguousarray(stage.frame(t)[..., :3]))
        if t % every:
            continue
        total += 1
        if not seen.persons or (seen.scores[0, :BODY_JOINTS] >= 0.3).sum() < 5:
            continue
        shown += 1
        goal = stage.motion.joints[t]
        for k, joints in enumerate((seen.keypoints[0].astype(np.float64), own)):
            for side in body.arms:
                for a, b in itertools.pairwise(ARM[side]):
                    gaps[k].append(float(np.linalg.norm(joints[b] - goal[b])) / body.height)
                    found, wanted = joints[b] - joints[a], goal[b] - goal[a]
                    turn = np.angle((found[0] + 1j * found[1]) * (wanted[0] - 1j * wanted[1]), deg=True)
                    turns[k].append(abs(float(turn)))
    if not shown or not gaps[0]:
        return Redetection(shown / max(total, 1), 0.0, 0.0, float("inf"), float("inf"))
    near, near_still = (float((np.array(g) < 0.05).mean()) for g in gaps)
    return Redetection(shown / total, near, near_still, float(np.median(turns[0])), float(np.median(turns[1])))
