"""Pictures and poses become the network's tensors exactly as in the released loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from animx.canvas import Canvas  # noqa: E402
from animx.diffusion.preprocess import clip_tensor, keypoint_tensor, picture_tensor, pose_picture  # noqa: E402
from animx.pose.sequence import PoseSequence  # noqa: E402
from animx.pose.skeleton import BODY, JOINTS  # noqa: E402

CANVAS = Canvas(64, 96)


@pytest.fixture(scope="module")
def loader(shared: Path) -> Any:
    return np.load(shared / "reference" / "fixtures" / "loader.npz", allow_pickle=False)


def same(ours: Any, released: Any) -> bool:
    return bool(torch.equal(ours, torch.from_numpy(released)))


def body(points: np.ndarray) -> PoseSequence:
    """Body points [T, 18, 2] as shares of the canvas, -1 = missing, as a sequence (whose canvas divides exactly)."""
    canvas = Canvas(1024, 512)
    keypoints = np.zeros((len(points), 1, JOINTS, 2), np.float32)
    scores = np.zeros((len(points), 1, JOINTS), np.float32)
    seen = (points != -1).all(axis=-1)
    keypoints[:, 0, list(BODY)] = np.where(seen[..., None], points.astype(np.float32), 0) * canvas.size
    scores[:, 0, list(BODY)] = seen
    return PoseSequence(keypoints, scores, canvas, 25)


USED = (0, 2, 4, 6)
"""Frames that the released loader takes of the nine: four, every second."""


def test_pictures_are_the_released_ones_exactly(loader: Any) -> None:
    reference = picture_tensor(loader["ref_rgb"], CANVAS)
    assert same(reference[None], loader["misc_data"])
    assert same(clip_tensor(loader["ref_rgb"]), loader["vit_frame"])
    for row, frame in enumerate((USED[0], USED[3])):
        assert same(clip_tensor(loader["frames_rgb"][frame]), loader["driving_vit"][row])


def test_pose_pictures_are_the_released_ones_exactly(loader: Any) -> None:
    for row, frame in enumerate(USED):
        assert same(picture_tensor(loader["pose_rgb"][frame], CANVAS), loader["dwpose_data"][row])


def test_keypoints_are_the_released_ones_exactly(loader: Any) -> None:
    tensor = keypoint_tensor(body(loader["bodies"]))
    assert same(tensor[list(USED)], loader["pose_embedding"])
    assert same(tensor[:1], loader["ref_pose_embedding"])


def test_a_joint_below_the_released_score_counts_as_missing() -> None:
    poses = body(np.full((2, 18, 2), 0.5))
    scores = poses.scores.copy()
    scores[0, 0, BODY[3]], scores[1, 0, BODY[3]] = 0.29, 0.3
    tensor = keypoint_tensor(PoseSequence(poses.keypoints, scores, poses.canvas, poses.fps))
    assert (tensor[0, :, 3] == -1).all()
    assert (tensor[1, :, 3] == 0.5).all()
    assert (tensor[:, :, :3] == 0.5).all()


def test_pose_pictures_are_shown_with_their_channels_reversed_and_through_a_jpeg() -> None:
    drawn = np.zeros((64, 64, 3), np.uint8)
    drawn[16:48, 16:48] = (250, 10, 60)
    seen = pose_picture(drawn).astype(int)
    assert np.abs(seen[32, 32] - (60, 10, 250)).max() <= 6
    assert seen[2, 2].max() <= 6
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not np.array_equal(pose_picture(noise), noise[..., ::-1])  # a JPEG loses something
