"""Small characters drawn in code with their mask, joints and a dance: jobs for the puppet tests."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.engine import Background, RenderJob
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS

SIZE = (220, 280)
SHIRT, SKIN, TROUSERS, SHOE, HAIR, PAPER = (
    (40, 90, 200), (240, 190, 150), (60, 60, 70), (150, 40, 40), (230, 90, 160), (225, 235, 215),
)  # fmt: skip

STANDING: dict[int, tuple[float, float]] = {
    0: (110, 62), 1: (110, 92), 2: (88, 96), 3: (70, 128), 4: (58, 160), 5: (132, 96), 6: (150, 128), 7: (162, 160),
    8: (99, 160), 9: (96, 200), 10: (94, 238), 11: (121, 160), 12: (124, 200), 13: (126, 238), 14: (102, 56),
    15: (118, 56), 16: (92, 58), 17: (128, 58),
}  # fmt: skip
CLASPED = {**STANDING, 3: (84, 130), 4: (106, 138), 6: (136, 130), 7: (114, 138)}

SLEEVE = (25, 75, 185)

Joints = dict[int, tuple[float, float]]


def _stroke(
    rgb: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    joints: Joints,
    chain: tuple[int, ...],
    colour: tuple[int, int, int],
    width: int,
) -> None:
    points = [[round(16 * v) for v in joints[j]] for j in chain if j in joints]
    for a, b in itertools.pairwise(points):
        for image, value in ((rgb, colour), (mask, (255,))):
            cv2.line(image, a, b, value, width, cv2.LINE_8, 4)


def _disc(
    rgb: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    centre: tuple[float, float],
    radius: int,
    colour: tuple[int, int, int],
) -> None:
    for image, value in ((rgb, colour), (mask, (255,))):
        cv2.circle(image, (round(centre[0]), round(centre[1])), radius, value, -1)


def draw(
    joints: Joints, *, hair: bool = False, cape: bool = False, skirt: bool = False, size: tuple[int, int] = SIZE
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(RGB, mask 0..1) of a person in flat colours with the given joints; missing limbs are not drawn."""
    rgb = np.empty((size[1], size[0], 3), np.uint8)
    rgb[:] = PAPER
    mask = np.zeros((size[1], size[0]), np.uint8)
    if hair or cape:  # hangs behind the arms on both sides
        for side in (-1, 1):
            box = np.array([[110, 45], [110 + side * 60, 70], [110 + side * 64, 140], [110 + side * 20, 140]])
            cv2.fillPoly(rgb, [box], HAIR if hair else SLEEVE)
            cv2.fillPoly(mask, [box], 255)
    for chain in ((8, 9, 10), (11, 12, 13)):
        _stroke(rgb, mask, joints, chain, TROUSERS, 14)
        if chain[2] in joints:
            x, y = joints[chain[2]]
            _disc(rgb, mask, (x, y + 6), 9, SHOE)
    middle = np.subtract(joints[1], STANDING[1]) if 1 in joints else np.zeros(2)
    spread = np.array([[-8, -4], [8, -4], [8, 4], [-8, 4]])
    joined = np.array([joints.get(j, STANDING[j] + middle) for j in (2, 5, 11, 8)])
    corners = joined + spread
    trunk = np.rint(corners).astype(np.int32)
    if skirt:
        trunk = np.rint([corners[0], corners[1], corners[2], (150, 222), (70, 222), corners[3]]).astype(np.int32)
    cv2.fillPoly(rgb, [trunk], SHIRT)
    cv2.fillPoly(mask, [trunk], 255)
    if 0 in joints:
        if 1 in joints:
            _stroke(rgb, mask, joints, (1, 0), SKIN, 12)
        _disc(rgb, mask, joints[0], 24, SKIN)
        for eye in {14, 15} & set(joints):
            cv2.circle(rgb, (round(joints[eye][0]), round(joints[eye][1])), 3, (20, 20, 20), -1)
    for chain in ((2, 3, 4), (5, 6, 7)):
        _stroke(rgb, mask, joints, chain, SLEEVE, 13)
        if chain[2] in joints:
            a, b = np.array(joints[chain[1]]), np.array(joints[chain[2]])
            _disc(rgb, mask, tuple(b + 7 * (b - a) / np.linalg.norm(b - a)), 8, SKIN)
    return rgb, (mask > 0).astype(np.float32)


def pose(frames: list[Joints], fps: Fraction = Fraction(12), size: tuple[int, int] = SIZE) -> PoseSequence:
    """A sequence of one person; joints that a frame lacks are missing."""
    points, scores = np.zeros((len(frames), 1, JOINTS, 2)), np.zeros((len(frames), 1, JOINTS))
    for t, joints in enumerate(frames):
        for j, place in joints.items():
            points[t, 0, j], scores[t, 0, j] = place, 1.0
    return PoseSequence(points.astype(np.float32), scores.astype(np.float32), Canvas(*size), fps)


def dance(joints: Joints, time: float) -> Joints:
    """The figure at `time` s of a dance, by turning its own bones: lengths stay, so it is aligned to itself."""
    swing = np.sin(2 * np.pi * time)
    out = {j: np.array(p, float) for j, p in joints.items()}
    turns = {
        (2, 3, 4): (0.9 + 0.9 * swing, 1.2 + 1.0 * np.cos(5 * time)), (5, 6, 7): (-1.1 + 0.8 * swing, -0.4 * swing),
        (8, 9, 10): (0.25 * swing, 0.1), (11, 12, 13): (-0.2 * swing, -0.15 * swing),
    }  # fmt: skip
    for chain, (first, second) in turns.items():
        for i, angle in ((0, first), (1, first + second)):
            if chain[i] in joints and chain[i + 1] in joints:
                bone = np.subtract(joints[chain[i + 1]], joints[chain[i]])
                c, s = np.cos(angle), np.sin(angle)
                turned = np.array([c * bone[0] - s * bone[1], s * bone[0] + c * bone[1]])
                out[chain[i + 1]] = out[chain[i]] + turned
    return {j: (float(p[0] + 6 * swing), float(p[1])) for j, p in out.items()}


def clip(joints: Joints = STANDING, frames: int = 12, fps: Fraction = Fraction(12)) -> PoseSequence:
    """`frames` of the dance at `fps`."""
    return pose([dance(joints, t / float(fps)) for t in range(frames)], fps)


def leaning(joints: Joints = STANDING, frames: int = 8) -> PoseSequence:
    """The figure as a whole tilting to and fro about its feet."""
    foot = np.array([110.0, 238.0])
    clips = []
    for t in range(frames):
        angle = 0.25 * np.sin(2 * np.pi * t / frames)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        clips.append({j: tuple((turn @ (np.array(p) - foot) + foot).tolist()) for j, p in joints.items()})
    return pose(clips)  # type: ignore[arg-type]


def still(joints: Joints = STANDING, frames: int = 1) -> PoseSequence:
    """The figure's own pose, held."""
    return pose([joints] * frames)


def job(
    joints: Joints = STANDING,
    poses: PoseSequence | None = None,
    *,
    background: Background | None = None,
    reference: bool = True,
    **look: bool,
) -> RenderJob:
    """A job for the drawn figure with these joints; mask given, poses default to the dance."""
    rgb, mask = draw(joints, **look)
    rgba = np.dstack([rgb, np.full(mask.shape, 255, np.uint8)])
    return RenderJob(
        rgba, Canvas(*SIZE), poses or clip(joints), pose([joints]) if reference else None, None, mask,
        background or Background(mode="colour", colour=PAPER),
    )  # fmt: skip


def without(poses: PoseSequence, *joints: int) -> PoseSequence:
    """The poses with some joints missing in every frame."""
    scores = poses.scores.copy()
    scores[:, :, list(joints)] = 0
    return replace(poses, scores=scores)


def mirrored(poses: PoseSequence) -> PoseSequence:
    """The poses in a mirrored picture: x' = W - x, sides swapped."""
    from animx.pose.skeleton import mirror_index

    swap = list(mirror_index())
    points = poses.keypoints[:, :, swap].copy()
    points[..., 0] = poses.canvas.width - points[..., 0]
    return replace(poses, keypoints=points, scores=poses.scores[:, :, swap])
