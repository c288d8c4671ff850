"""Poses drawn many at once: the same bytes as one at a time, wherever they lie; known shapes are not drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prepared import poses_of

from animx.canvas import Canvas
from animx.errors import InputError
from animx.pose import paint
from animx.pose.draw import draw_pose
from animx.pose.paint import draw_poses
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS

Floats = NDArray[np.float32]


def one_by_one(points: Floats, scores: Floats, canvas: Canvas, target: Canvas, **options: bool) -> NDArray[np.uint8]:
    poses = PoseSequence(points[:, None], scores[:, None], canvas)
    return np.stack([draw_pose(poses, t, canvas=target, **options) for t in range(len(points))])


def scattered(rng: np.random.Generator, frames: int, canvas: Canvas, whole: bool) -> tuple[Floats, Floats]:
    """Joints anywhere on the canvas and beyond its border, some of them missing or exactly at the limit."""
    points = rng.uniform(-0.3, 1.3, (frames, JOINTS, 2)) * canvas.size
    scores = np.where(rng.random((frames, JOINTS)) < 0.1, 0.3, rng.uniform(0.2, 1, (frames, JOINTS)))
    return (np.round(points) if whole else points).astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("size", [(128, 128), (47, 33), (512, 768)])
def test_many_at_once_are_the_same_bytes_as_one_at_a_time(size: tuple[int, int]) -> None:
    canvas = Canvas(*size)
    twice = Canvas(2 * size[0], 2 * size[1])
    rng = np.random.default_rng(size[0])
    for case in range(12):
        target = twice if case % 3 == 2 else canvas
        if case % 2:
            points, scores = scattered(rng, 8, canvas, whole=case % 4 == 1)
        else:  # figures, small and large, some of them partly outside
            poses = poses_of(case, 8, canvas)
            moved = poses.keypoints[:, 0] * rng.uniform(0.4, 1.8) + rng.normal(0, 0.2, 2) * size
            points, scores = moved.astype(np.float32), poses.scores[:, 0]
        for hands in (True, False):
            expected = one_by_one(points, scores, canvas, target, hands=hands)
            assert np.array_equal(draw_poses(points, scores, canvas, target, hands=hands), expected), case
            assert expected.any()


def test_a_figure_that_walks_over_the_border_is_cut_off_as_one_at_a_time() -> None:
    canvas = Canvas(96, 80)
    start = poses_of(1, 1, canvas)
    steps = np.arange(-70, 70, dtype=np.float32)
    for direction in ((1, 0), (0, 1), (1, -1)):
        points = start.keypoints[:, 0] + steps[:, None, None] * np.array(direction, np.float32)
        scores = np.repeat(start.scores[:, 0], len(steps), axis=0)
        assert np.array_equal(draw_poses(points, scores, canvas), one_by_one(points, scores, canvas, canvas))


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_they_are_the_released_drawing(shared: Path, case: str) -> None:
    drawn: Any = np.load(shared / "reference/fixtures/pose_draw.npz", allow_pickle=False)
    expected = drawn[f"{case}/img_noface"]
    canvas = Canvas(expected.shape[1], expected.shape[0])
    points, scores = drawn[f"{case}/kps134"][:1], drawn[f"{case}/scores134"][:1]
    assert np.array_equal(draw_poses(points, scores, canvas)[0], expected)


def test_shapes_that_are_known_are_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it fast, told without a clock: the second time, OpenCV draws what touches the border and no more."""
    known, drawn = paint._Shapes(), []
    monkeypatch.setattr(paint, "_known", lambda: known)
    real = paint._draw
    monkeypatch.setattr(paint, "_draw", lambda *shape: (drawn.append(shape), real(*shape)))
    canvas = Canvas(128, 128)
    poses = poses_of(3, 6, canvas)
    points, scores = poses.keypoints[:, 0] * np.float32(0.5) + 32, poses.scores[:, 0]
    first = draw_poses(points, scores, canvas)
    assert len(drawn) > 50
    drawn.clear()
    assert np.array_equal(draw_poses(points + 8, scores, canvas)[:, 8:, 8:], first[:, :-8, :-8])
    assert not drawn


def test_a_full_table_is_emptied_and_the_drawing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paint, "MAX_RUNS", 1200)
    known = paint._Shapes()
    monkeypatch.setattr(paint, "_known", lambda: known)
    canvas = Canvas(128, 128)
    emptied = 0
    for seed in range(4):
        poses = poses_of(seed, 6, canvas)
        points, scores = poses.keypoints[:, 0], poses.scores[:, 0]
        before = known.used
        assert np.array_equal(draw_poses(points, scores, canvas), one_by_one(points, scores, canvas, canvas))
        emptied += known.used < before
    assert emptied


def test_poses_that_are_no_numbers_are_refused() -> None:
    points, scores = np.zeros((1, JOINTS, 2), np.float32), np.ones((1, JOINTS), np.float32)
    points[0, 4] = np.nan
    with pytest.raises(InputError, match="keypoints: NaN"):
        draw_poses(points, scores, Canvas(32, 32))
