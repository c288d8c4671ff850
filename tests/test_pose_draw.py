"""Pose images: bit-exact with the released drawing (fixtures beside the checkout), and laws that need no fixture."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from animx.canvas import Canvas, Placement
from animx.errors import InputError, UsageError
from animx.pose.draw import draw_over, draw_person, draw_pose, person_dictionary, to_openpose134
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import COLOURS, FACE, JOINTS, LEFT_HAND, LIMBS, NECK, RIGHT_HAND, TEMPLATE

CANVAS = Canvas(512, 768)


@pytest.fixture(scope="module")
def drawn(shared: Path) -> Any:
    return np.load(shared / "reference/fixtures/pose_draw.npz", allow_pickle=False)


def body(canvas: Canvas = CANVAS, **extra: Any) -> PoseSequence:
    """The template figure, standing in the middle; hands, face and feet missing."""
    points = np.zeros((1, 1, JOINTS, 2), np.float32)
    scores = np.zeros((1, 1, JOINTS), np.float32)
    for joint, (x, y) in TEMPLATE.items():
        points[0, 0, joint] = x * 600 + 256, y * 600 + 400
        scores[0, 0, joint] = 0.9
    return PoseSequence(points * [canvas.width / 512, canvas.height / 768], scores, canvas, **extra)


def whole(seed: int = 0) -> PoseSequence:
    """All 134 joints, at random places."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(20, 490, (2, 2, JOINTS, 2))
    return PoseSequence(points, rng.uniform(0.4, 1, (2, 2, JOINTS)), CANVAS)


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_detector_points_become_the_released_person_dictionary(drawn: Any, case: str) -> None:
    height, width = drawn[f"{case}/img_noface"].shape[:2]
    points, scores = to_openpose134(drawn[f"{case}/kps133"], drawn[f"{case}/scores133"])
    assert np.array_equal(points, drawn[f"{case}/kps134"])
    assert np.array_equal(scores, drawn[f"{case}/scores134"])
    person = person_dictionary(points[0], scores[0], Canvas(width, height))
    assert np.array_equal(person["candidate"], drawn[f"{case}/candidate"])
    assert np.array_equal(person["subset"], drawn[f"{case}/subset"][0])
    assert np.array_equal(person["hands"], drawn[f"{case}/hands"])
    assert np.array_equal(person["faces"], drawn[f"{case}/faces"])


@pytest.mark.parametrize("case", ["0", "1", "2"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("img_noface", {}),
        ("img_face", {"face": True}),
        ("img_body_only", {"hands": False}),
        ("img_body18", {"hands": False, "toes": False}),
    ],
)
def test_drawing_is_bit_exact_with_the_released_one(drawn: Any, case: str, name: str, options: dict[str, bool]) -> None:
    expected = drawn[f"{case}/{name}"]
    canvas = Canvas(expected.shape[1], expected.shape[0])
    points, scores = drawn[f"{case}/kps134"], drawn[f"{case}/scores134"]
    person = person_dictionary(points[0], scores[0], canvas)
    assert np.array_equal(draw_person(person, canvas, **options), expected)
    # The same from a pose sequence, whose numbers are float32.
    assert np.array_equal(draw_pose(PoseSequence(points[:1, None], scores[:1, None], canvas), 0, **options), expected)


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_released_files_are_the_drawing_with_red_and_blue_swapped(drawn: Any, shared: Path, case: str) -> None:
    points, scores = drawn[f"{case}/kps134"], drawn[f"{case}/scores134"]
    height, width = drawn[f"{case}/img_noface"].shape[:2]
    poses = PoseSequence(points[:1, None], scores[:1, None], Canvas(width, height))
    ours = draw_pose(poses, 0, released_channel_order=True).astype(int)
    read = np.asarray(drawn[f"{case}/jpg_roundtrip_rgb"], int)
    # JPEG halves the colour resolution of 8 px limbs, so compare means over what is drawn, channel by channel.
    lit = ours.any(axis=2)
    right, wrong = (np.abs(image[lit] - read[lit]).mean() for image in (ours, ours[..., ::-1]))
    assert right < 25
    assert wrong > 3 * right
    found = next((shared / "reference/fixtures/pose_png").glob(f"*_{case}_noface.png"))
    picture = np.asarray(Image.open(found).convert("RGB"))
    table = draw_pose(poses, 0)
    assert any(np.array_equal(picture, image) for image in (table, table[..., ::-1]))


def test_aligned_poses_of_the_other_tool_are_drawn_exactly(shared: Path) -> None:
    fixture = np.load(shared / "reference/fixtures/pose_align.npz", allow_pickle=False)
    for case in "01":
        for t, name in ((0, "img_first"), (-1, "img_last")):
            person = {
                key: fixture[f"{case}/out/{source}"][t]
                for key, source in (
                    ("candidate", "candidate"),
                    ("subset", "subset"),
                    ("hands", "hands"),
                    ("faces", "faces"),
                )
            }
            assert np.array_equal(draw_person(person, CANVAS), fixture[f"{case}/{name}"])


def test_limbs_are_dimmed_and_joints_are_not() -> None:
    image = draw_pose(body(), 0)
    points = body().keypoints[0, 0]
    for joint in (3, 4, 9, 12):
        x, y = points[joint].astype(int)
        assert tuple(image[y, x]) == COLOURS[joint]
    a, b = LIMBS[2]
    x, y = points[[a, b]].mean(axis=0).astype(int)
    assert tuple(image[y, x]) == tuple(int(c * 0.6) for c in COLOURS[2])


def test_the_score_limit_is_exclusive_as_released() -> None:
    for score, is_drawn in ((0.3, False), (0.31, True), (0.0, False)):
        scores = body().scores.copy()
        scores[..., 4] = score
        image = draw_pose(PoseSequence(body().keypoints, scores, CANVAS), 0)
        x, y = body().keypoints[0, 0, 4].astype(int)
        assert (tuple(image[y, x]) == COLOURS[4]) is is_drawn, score


def test_toes_need_both_points() -> None:
    points, scores = body().keypoints.copy(), body().scores.copy()
    points[0, 0, 18:24] = [[300, 700], [320, 710], [290, 690], [200, 700], [190, 710], [210, 690]]
    scores[0, 0, 18:24] = [0.9, 0.9, 0.9, 0.9, 0.2, 0.9]
    person = person_dictionary(points[0, 0], scores[0, 0], CANVAS)
    assert np.allclose(person["candidate"][18] * CANVAS.size, (310, 705))
    assert (person["candidate"][19] == -1).all()
    assert person["subset"][18:].tolist() == [18, -1]


def test_nobody_is_a_black_picture_in_both_styles() -> None:
    empty = PoseSequence(np.zeros((1, 1, JOINTS, 2)), np.zeros((1, 1, JOINTS)), CANVAS)
    for style in ("animate-x", "plain"):
        assert not draw_pose(empty, 0, style=style, face=True).any()


def test_a_stretched_canvas_stretches_the_pose_and_not_the_lines() -> None:
    wide = Canvas(1024, 768)
    stretched = body().on(wide, Placement(2, 1, 0, 0))
    assert np.array_equal(draw_pose(body(), 0, canvas=wide), draw_pose(stretched, 0))


def test_hands_and_face_can_be_left_out() -> None:
    poses = whole()
    for style in ("animate-x", "plain"):
        full = draw_pose(poses, 0, style=style, hands=True, face=True)
        no_hands = draw_pose(poses, 0, style=style, hands=False, face=True)
        no_face = draw_pose(poses, 0, style=style, hands=True, face=False)
        assert (full != no_hands).any()
        assert (full != no_face).any()


def test_draw_over_leaves_the_frame_and_marks_every_visible_part() -> None:
    poses = whole()
    frame = np.full((768, 512, 3), 90, np.uint8)
    image = draw_over(frame, poses, 0)
    assert (frame == 90).all()
    for joint in (0, 4, 10, LEFT_HAND[8], RIGHT_HAND[20], FACE[30]):
        x, y = poses.keypoints[0, 1, joint].astype(int)
        assert (image[y - 2 : y + 3, x - 2 : x + 3] != 90).any(), joint
    alone = draw_over(frame, poses, 0, 0)
    assert (alone != image).any(), "person=None draws everybody"


def test_draw_over_a_frame_of_another_size_puts_joints_where_they_belong() -> None:
    frame = np.zeros((384, 1024, 3), np.uint8)
    image = draw_over(frame, body(), 0)
    x, y = (body().keypoints[0, 0, 4] * [2, 0.5]).astype(int)
    assert (image[y, x] == 255).all()


def test_left_and_right_have_their_own_colours() -> None:
    image = draw_pose(body(), 0, style="plain").astype(int)
    points = body().keypoints[0, 0]
    right = image[tuple(points[[3, 4]].mean(axis=0).astype(int)[::-1])]
    left = image[tuple(points[[6, 7]].mean(axis=0).astype(int)[::-1])]
    assert right[0] > right[2]
    assert left[2] > left[0]


@pytest.mark.parametrize("far", [1e6, -1e6, 3e38])
def test_far_away_joints_do_not_break_the_drawing(far: float) -> None:
    points = whole().keypoints.copy()
    points[:, :, 4] = far
    points[:, :, LEFT_HAND[3]] = -far / 2
    points[:, :, FACE[3]] = far
    poses = PoseSequence(points, whole().scores, CANVAS)
    for style in ("animate-x", "plain"):
        assert draw_pose(poses, 0, style=style, face=True).any()


def test_wrong_calls_are_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'plain'"):
        draw_pose(body(), 0, style="plane")
    with pytest.raises(InputError, match="frame 1"):
        draw_pose(body(), 1)
    with pytest.raises(InputError, match="person 1"):
        draw_pose(body(), 0, 1)
    with pytest.raises(InputError, match="frame"):
        draw_over(np.zeros((4, 4), np.uint8), body(), 0)
    with pytest.raises(InputError, match="133"):
        to_openpose134(np.zeros((1, 134, 2)), np.zeros((1, 134)))


def test_neck_is_the_middle_of_visible_shoulders_only() -> None:
    points, scores = np.random.default_rng(1).uniform(0, 99, (1, 133, 2)), np.full((1, 133), 0.8)
    made, marks = to_openpose134(points, scores)
    assert np.array_equal(made[0, NECK], points[0, 5:7].mean(axis=0))
    assert marks[0, NECK] == 1
    scores[0, 6] = 0.3
    assert to_openpose134(points, scores)[1][0, NECK] == 0


def test_a_body_is_drawn_faster_than_a_frame_is_remapped() -> None:
    poses = body()
    image = np.zeros((768, 512, 4), np.float32)
    x, y = np.meshgrid(np.arange(512, dtype=np.float32) + 0.3, np.arange(768, dtype=np.float32) + 0.3)
    remap = min(_seconds(lambda: cv2.remap(image, x, y, cv2.INTER_LINEAR)) for _ in range(20))
    draw = min(_seconds(lambda: draw_pose(poses, 0, hands=False)) for _ in range(20))
    assert draw < remap


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
