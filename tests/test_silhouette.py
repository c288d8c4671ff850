"""A skeleton from the outline: right joints on drawn mascots, nothing invented, equal under mirror, shift and scale."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from mascots import BALL, CARTON, CHILD, LEFT_ARM, LEFT_LEG, MASCOTS, RIGHT_ARM, RIGHT_LEG, Mascot

from animx.pose.skeleton import mirror_index
from animx.puppet.silhouette import fit_skeleton


def pck(pose, truth, mask, within=0.1):
    """Share of the true joints that are found within 0.1 of the figure box's diagonal; a missing one is wrong."""
    rows, columns = np.nonzero(mask)
    diagonal = np.hypot(np.ptp(rows), np.ptp(columns))
    right = [
        pose is not None
        and pose.scores[0, 0, joint] > 0
        and np.linalg.norm(pose.keypoints[0, 0, joint] - point) <= within * diagonal
        for joint, point in truth.items()
    ]
    return float(np.mean(right))


def fit(mascot: Mascot):
    return fit_skeleton(mascot.mask.astype(np.float32))


@pytest.mark.parametrize("mascot", MASCOTS, ids=lambda m: m.name)
def test_every_joint_of_a_mascot_is_found(mascot):
    assert pck(fit(mascot), mascot.joints, mascot.mask) >= 0.93


@pytest.mark.parametrize("mascot", MASCOTS, ids=lambda m: m.name)
def test_the_right_arm_is_on_the_left_of_the_picture(mascot):
    points = fit(mascot).keypoints[0, 0]
    assert points[4, 0] < points[7, 0]
    assert points[10, 0] < points[13, 0]


@pytest.mark.parametrize(
    "shape",
    [
        lambda image: cv2.ellipse(image, (150, 200), (90, 120), 0, 0, 360, 255, -1),
        lambda image: cv2.rectangle(image, (60, 60), (240, 340), 255, -1),
        lambda image: cv2.fillPoly(image, [np.array([(150, 40), (260, 330), (40, 330)])], 255),
    ],
    ids=["blob", "box", "cone"],
)
def test_no_limb_is_invented(shape):
    image = np.zeros((400, 300), np.uint8)
    shape(image)
    assert fit_skeleton(image / 255.0) is None


def test_a_lobed_ghost_has_no_limbs():
    image = np.zeros((420, 320), np.uint8)
    cv2.ellipse(image, (160, 160), (95, 110), 0, 0, 360, 255, -1)
    cv2.rectangle(image, (65, 160), (255, 330), 255, -1)
    for x in (80, 120, 160, 200, 240):
        cv2.circle(image, (x, 330), 24, 255, -1)
    assert fit_skeleton(image / 255.0) is None


@pytest.mark.parametrize("lost", [RIGHT_ARM, LEFT_ARM, RIGHT_LEG, LEFT_LEG])
def test_a_missing_limb_stays_missing_and_the_others_are_found(lost):
    mascot = CARTON.without(*lost)
    pose = fit(mascot)
    assert not pose.scores[0, 0, list(lost)].any()
    others = {joint: point for joint, point in mascot.joints.items() if joint > 1}
    assert pck(pose, others, mascot.mask) >= 0.85


@pytest.mark.parametrize("mascot", MASCOTS, ids=lambda m: m.name)
def test_a_mirrored_outline_gives_the_mirrored_pose(mascot):
    mask = mascot.mask.astype(np.float32)
    pose, mirrored = fit_skeleton(mask), fit_skeleton(mask[:, ::-1])
    swap = list(mirror_index())
    back = mirrored.keypoints[0, 0][swap] * (-1, 1) + (mask.shape[1], 0)
    seen = pose.scores[0, 0] > 0
    assert (mirrored.scores[0, 0][swap][seen] > 0).all()
    assert np.abs(back[seen] - pose.keypoints[0, 0][seen]).max() < 0.03 * mask.shape[0]


def test_a_shifted_outline_gives_the_shifted_pose():
    a, b = fit(BALL), fit(BALL.moved(12, 9))
    seen = a.scores[0, 0] > 0
    assert np.abs(b.keypoints[0, 0][seen] - a.keypoints[0, 0][seen] - (12, 9)).max() < 0.5


def test_twice_the_size_gives_twice_the_pose():
    mask = CHILD.mask.astype(np.float32)
    a = fit_skeleton(mask)
    b = fit_skeleton(cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR))
    seen = a.scores[0, 0] > 0
    assert np.abs(b.keypoints[0, 0][seen] / 2 - a.keypoints[0, 0][seen]).max() < 0.02 * mask.shape[0]


def test_a_leg_cut_by_the_border_has_no_ankle():
    mask = CARTON.mask.astype(np.float32)[:520]
    pose = fit_skeleton(mask)
    assert pose.scores[0, 0, [8, 9, 11, 12]].all()
    assert not pose.scores[0, 0, [10, 13]].any()


def test_a_foot_that_stands_on_the_border_is_not_cut():
    mask = CARTON.mask.astype(np.float32)
    bottom = int(np.flatnonzero(mask.any(1))[-1])
    assert fit_skeleton(mask[: bottom - 4]).scores[0, 0, [10, 13]].all()


def test_an_empty_mask_has_no_skeleton():
    assert fit_skeleton(np.zeros((50, 40), np.float32)) is None


@pytest.mark.parametrize("name", ["drawing_char1", "drawing_char3"])
def test_drawings_reach_the_bar(shared, name):
    """PCK 0.1 of all annotated joints at least 0.85, from the outline alone."""
    data = shared / "data"
    mask = cv2.imread(str(data / name / "mask.png"), cv2.IMREAD_GRAYSCALE) > 127
    known = json.loads((data / "ref_keypoints.json").read_text())["images"][f"{name}/texture.png"]["keypoints"]
    truth = {joint: point for joint, point in enumerate(known) if point is not None}
    assert pck(fit_skeleton(mask.astype(np.float32)), truth, mask) >= 0.85
