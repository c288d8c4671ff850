"""Detected joints are put onto the middle of limbs that stand clear, and left alone elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from animx.pose.skeleton import L_ANKLE, L_ELBOW, L_WRIST, R_ANKLE, R_ELBOW, R_KNEE, R_SHOULDER, R_WRIST
from animx.puppet.settle import settle
from tests import puppet_jobs as jobs

SPREAD = {**jobs.STANDING, 3: (56, 110), 4: (24, 124), 6: (164, 110), 7: (196, 124)}
CLEAR = (R_ELBOW, R_WRIST, L_ELBOW, L_WRIST)


def settled(joints: jobs.Joints, picture: jobs.Joints) -> np.ndarray:
    _, mask = jobs.draw(picture)
    return settle(jobs.pose([joints]), mask > 0.5).keypoints[0, 0]


def moved_across(joints: jobs.Joints, which: tuple[int, ...], by: float) -> jobs.Joints:
    """The joints shifted up or down: across a spread arm."""
    return {**joints, **{j: (joints[j][0], joints[j][1] + by) for j in which}}


@pytest.mark.parametrize("by", [-9.0, -5.0, 5.0, 9.0])
def test_joints_beside_the_middle_of_a_clear_limb_are_centred(by: float) -> None:
    found = settled(moved_across(SPREAD, CLEAR, by), SPREAD)
    gaps = [abs(found[j][1] - SPREAD[j][1]) for j in CLEAR]
    assert max(gaps) < 0.5 * abs(by) + 0.6
    assert max(gaps) < 4


def test_a_knee_beside_the_figure_comes_back_to_the_leg() -> None:
    off = {**SPREAD, R_KNEE: (84.0, 200.0)}  # the leg ends at 89
    found = settled(off, SPREAD)
    assert found[R_KNEE][0] == pytest.approx(SPREAD[R_KNEE][0], abs=2)


def test_a_shoulder_is_put_on_the_line_of_its_arm() -> None:
    off = {**SPREAD, R_SHOULDER: (92.0, 108.0)}
    found = settled(off, SPREAD)
    assert np.linalg.norm(found[R_SHOULDER] - SPREAD[R_SHOULDER]) < 0.6 * np.linalg.norm(
        np.subtract(off[R_SHOULDER], SPREAD[R_SHOULDER])
    )


def test_good_joints_hardly_move_and_settling_twice_changes_nothing() -> None:
    found = settled(SPREAD, SPREAD)
    for joint in (*CLEAR, R_ANKLE, L_ANKLE):
        assert np.linalg.norm(found[joint] - SPREAD[joint]) < 3.5
    _, mask = jobs.draw(SPREAD)
    once = settle(jobs.pose([SPREAD]), mask > 0.5)
    twice = settle(once, mask > 0.5)
    assert np.abs(twice.keypoints - once.keypoints).max() < 1.5


def test_arms_on_the_trunk_stay() -> None:
    found = settled(jobs.CLASPED, jobs.CLASPED)
    for joint in CLEAR:
        assert np.allclose(found[joint], jobs.CLASPED[joint])


def test_an_empty_figure_changes_nothing() -> None:
    pose = jobs.pose([SPREAD])
    assert settle(pose, np.zeros((280, 220), bool)) is pose
