"""Made-up skeletons for the tests of retargeting: a standing body, a walking one, and random ones with holes."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from animx.canvas import Canvas
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS, PARENT, TEMPLATE, mirror_index
from animx.retarget.invent import hand_template, template

MIRROR = list(mirror_index())
TALL, SMALL = Canvas(640, 900), Canvas(512, 768)


def template_vectors() -> np.ndarray:
    """[K, 2] of every joint from its parent, in standing heights; hands hang down."""
    vectors = np.zeros((JOINTS, 2))
    for joint, vector in template().items():
        vectors[joint] = vector
    for k, (along, across) in enumerate(hand_template()):
        vectors[92 + k], vectors[113 + k] = (-across, along), (across, along)
    return vectors


def posed(angles: np.ndarray, lengths: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """[T, K, 2] points of a body whose bones are the template's, turned by angles [T, K] and scaled by lengths."""
    vectors = template_vectors()
    cos, sin = np.cos(angles), np.sin(angles)
    turned = np.stack([vectors[:, 0] * cos - vectors[:, 1] * sin, vectors[:, 0] * sin + vectors[:, 1] * cos], axis=-1)
    turned *= lengths[..., None]
    points = np.zeros((len(angles), JOINTS, 2))
    done: set[int] = set()

    def place(joint: int) -> None:
        if joint in done:
            return
        if PARENT[joint] == JOINTS:
            points[:, joint] = roots + turned[:, joint]
        else:
            place(PARENT[joint])
            points[:, joint] = points[:, PARENT[joint]] + turned[:, joint]
        done.add(joint)

    for joint in range(JOINTS):
        place(joint)
    return points


def standing(frames: int = 1, height: float = 600.0, canvas: Canvas = TALL) -> PoseSequence:
    """All 134 joints of the template, upright, visible, the feet near the lower border."""
    still = np.zeros((frames, JOINTS))
    root = np.tile([canvas.width / 2, canvas.height * 0.5], (frames, 1))
    points = posed(still, np.full((frames, JOINTS), height), root)
    return PoseSequence(points[:, None], np.ones((frames, 1, JOINTS)), canvas)


def dancing(frames: int = 24, height: float = 500.0, canvas: Canvas = SMALL, seed: int = 0) -> PoseSequence:
    """A smooth dance with foreshortening and a path, all joints visible."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 2 * np.pi, frames)[:, None]
    amplitude = np.zeros(JOINTS)
    amplitude[list(TEMPLATE)] = 0.5
    amplitude[[8, 11]] = 0.0
    angles = (
        amplitude * rng.uniform(-1, 1, JOINTS) * np.sin(time * rng.integers(1, 3, JOINTS) + rng.uniform(0, 6, JOINTS))
    )
    angles[:, 11] = angles[:, 8]  # the hips stay opposite each other: their middle is the root
    short = 1 - 0.25 * rng.uniform(0, 1, JOINTS) * (1 + np.sin(time + rng.uniform(0, 6, JOINTS))) / 2
    short[:, 11] = short[:, 8]
    roots = np.stack(
        [canvas.width / 2 + 60 * np.sin(time[:, 0]), canvas.height / 2 + 15 * np.cos(2 * time[:, 0])], axis=1
    )
    points = posed(angles, height * short, roots)
    return PoseSequence(points[:, None], np.full((frames, 1, JOINTS), 0.9), canvas)


def mirrored(poses: PoseSequence) -> PoseSequence:
    """The same poses in a mirrored picture: x' = W - x, sides swapped."""
    keypoints = poses.keypoints[:, :, MIRROR].copy()
    keypoints[..., 0] = poses.canvas.width - keypoints[..., 0]
    return PoseSequence(
        keypoints, poses.scores[:, :, MIRROR], poses.canvas, poses.fps, poses.times, history=poses.history
    )


def arrays(seed: int, frames: int, hole: float, gone: float) -> tuple[np.ndarray, np.ndarray]:
    """float64 points [T, K, 2] and visibility [T, K] of a random body; `hole`: missing now and then, `gone`: always."""
    rng = np.random.default_rng(seed)
    angles = rng.normal(0, 0.6, (1, JOINTS)) + rng.normal(0, 0.4, (frames, JOINTS))
    lengths = rng.uniform(80, 400) * rng.uniform(0.6, 1.4, (1, JOINTS)) * rng.uniform(0.4, 1.0, (frames, JOINTS))
    angles[:, 11], lengths[:, 11] = angles[:, 8], lengths[:, 8]
    roots = rng.uniform(-100, 800, 2) + rng.normal(0, 40, (frames, 2))
    visible = (rng.random((frames, JOINTS)) >= hole) & (rng.random(JOINTS) >= gone)
    points = posed(angles, lengths, roots)
    return np.where(visible[..., None], points, 0.0), visible


@st.composite
def random_arrays(draw, max_frames: int = 6):
    """`arrays` drawn by hypothesis: from whole bodies to ones with hardly a joint."""
    seed = draw(st.integers(0, 2**32 - 1))
    frames = draw(st.integers(1, max_frames))
    hole, gone = draw(st.sampled_from([(0.0, 0.0), (0.1, 0.0), (0.0, 0.2), (0.2, 0.2), (0.6, 0.3), (0.0, 0.9)]))
    return arrays(seed, frames, hole, gone)


@st.composite
def random_poses(draw, max_frames: int = 5):
    """A `PoseSequence` of one or two random bodies with holes, sometimes with depth."""
    points, visible = draw(random_arrays(max_frames))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = len(points)
    keypoints, seen = points[:, None], visible[:, None]
    if draw(st.booleans()):
        again = arrays(int(rng.integers(2**31)), frames, 0.1, 0.1)
        keypoints, seen = (
            np.concatenate([keypoints, again[0][:, None]], 1),
            np.concatenate([seen, again[1][:, None]], 1),
        )
    depth = rng.normal(0, 30, seen.shape) if draw(st.booleans()) else None
    scores = np.where(seen, rng.uniform(0.05, 1, seen.shape), 0)
    return PoseSequence(keypoints, scores, Canvas(700, 900), depth=depth)
