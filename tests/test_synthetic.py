"""The characters drawn by code: their joints are where the picture shows them, and dances are smooth and periodic."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from animx.canvas import Canvas
from animx.errors import UsageError
from animx.pose import skeleton as sk
from animx.pose.sequence import PoseSequence
from animx_trainer import synthetic
from animx_trainer.choreography import DANCES, Key, Proportions, perform, skeleton

SMALL = Canvas(128, 192)


def _length(poses: np.ndarray, a: int, b: int) -> np.ndarray:
    return np.linalg.norm(poses[..., a, :] - poses[..., b, :], axis=-1)


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_a_character_is_drawn_where_its_joints_are(kind: str) -> None:
    who = synthetic.character(kind)
    moving = synthetic.dance("show")
    inside = []
    for beat in range(0, 12, 3):
        pose = perform(who.body, moving, beat * 60 / moving.bpm, SMALL)
        rgb, mask, keypoints = synthetic.draw_character(who, pose, SMALL)
        assert rgb.shape == (192, 128, 3)
        assert rgb.dtype == np.uint8
        assert mask.shape == (192, 128)
        assert mask.min() >= 0
        assert mask.max() == 1
        assert 0.05 < mask.mean() < 0.6
        seen = [j for j in sk.BODY if keypoints.scores[0, 0, j] > 0]
        at = keypoints.keypoints[0, 0, seen]
        within = (at >= 0).all(1) & (at < SMALL.size).all(1)
        x, y = at[within].astype(int).T
        inside.append(mask[y, x] > 0.5)
    assert np.concatenate(inside).mean() > 0.9


def test_a_character_without_arms_has_no_arm_joints() -> None:
    who = synthetic.character("ghost")
    _, _, keypoints = synthetic.draw_character(who, synthetic.rest_pose(who, SMALL), SMALL)
    arms_and_legs = [sk.L_ELBOW, sk.R_ELBOW, sk.L_WRIST, sk.R_WRIST, sk.L_KNEE, sk.R_ANKLE]
    assert (keypoints.scores[0, 0, arms_and_legs] == 0).all()
    assert keypoints.scores[0, 0, sk.NOSE] == 1


def test_the_bottle_has_short_legs_and_the_mushroom_long_ones() -> None:
    leg = {}
    for kind in ("bottle", "human", "mushroom"):
        body = synthetic.character(kind).body.unit()
        leg[kind] = body.thigh + body.shin
    assert leg["bottle"] < 0.25
    assert leg["human"] > 0.4
    assert leg["mushroom"] > 0.35


def test_the_same_call_gives_the_same_pixels_and_another_seed_other_colours() -> None:
    def drawn(seed: int) -> np.ndarray:
        who = synthetic.character("bear", seed)
        return synthetic.draw_character(who, synthetic.rest_pose(who, SMALL), SMALL)[0]

    np.testing.assert_array_equal(drawn(0), drawn(0))
    assert np.abs(drawn(0).astype(int) - drawn(1)).max() > 30
    assert synthetic.character("bear", 7).body != synthetic.character("bear", 8).body


@pytest.mark.parametrize("name", sorted(DANCES))
def test_a_dance_is_periodic_and_smooth(name: str) -> None:
    moving = synthetic.dance(name)
    body = synthetic.character("human").body
    fine = 480
    times = np.arange(fine + 1) * moving.period / fine
    joints = np.stack([perform(body, moving, float(t), SMALL).joints for t in times])
    np.testing.assert_allclose(joints[0], joints[-1], atol=1e-6)
    velocity = np.diff(joints, axis=0) / (times[1] * 192)  # heights of the canvas per second
    assert np.abs(velocity).max() < 6
    assert np.abs(np.diff(velocity, axis=0)).max() < 0.6  # no jump of the speed: C1
    assert np.ptp(joints[:, sk.L_WRIST], axis=0).max() > 0.08 * 192  # and it does dance


def test_bones_keep_their_length_in_space() -> None:
    body = synthetic.character("human").body
    moving = synthetic.dance("show")
    wide = Canvas(512, 768)
    joints = np.stack([perform(body, moving, 0.1 * i, wide).joints for i in range(50)])
    joints[..., 1] -= 0.10 * joints[..., 2]  # the camera looks down a little
    unit, height = body.unit(), 0.7 * 768
    for bone, length in (
        ((sk.L_SHOULDER, sk.L_ELBOW), unit.upper_arm),
        ((sk.R_ELBOW, sk.R_WRIST), unit.forearm),
        ((sk.L_HIP, sk.L_KNEE), unit.thigh),
        ((sk.R_KNEE, sk.R_ANKLE), unit.shin),
    ):
        np.testing.assert_allclose(_length(joints, *bone), length * height, rtol=1e-6)


def test_feet_that_stand_do_not_slide() -> None:
    body = Proportions()
    ankles = [
        skeleton(body, Key(x=x, high=high, lean=lean), SMALL).joints[[sk.L_ANKLE, sk.R_ANKLE]]
        for x, high, lean in ((0, 0.95, 0), (0.03, 0.9, 6), (-0.03, 0.85, -10))
    ]
    np.testing.assert_allclose(ankles[1], ankles[0], atol=1e-6)
    np.testing.assert_allclose(ankles[2], ankles[0], atol=1e-6)


def test_a_mirrored_key_gives_the_mirrored_skeleton() -> None:
    body = Proportions()
    for key in (synthetic.dance("show").at(1.3), synthetic.dance("kicks").at(0.7)):
        pose, mirrored = skeleton(body, key, SMALL), skeleton(body, key.flipped(), SMALL)
        swap = list(sk.mirror_index())[:24]
        expected = pose.joints[swap].copy()
        expected[:, 0] = SMALL.width - expected[:, 0]
        np.testing.assert_allclose(mirrored.joints, expected, atol=1e-9)


def test_the_same_dance_moves_different_bodies_alike() -> None:
    moving = synthetic.dance("wave")
    angles = []
    for kind in ("human", "bear"):
        poses = synthetic.true_poses(synthetic.character(kind), moving, SMALL, 12, fps=Fraction(12))
        arm = poses.keypoints[:, 0, sk.L_WRIST] - poses.keypoints[:, 0, sk.L_ELBOW]
        angles.append(np.unwrap(np.arctan2(arm[:, 1], arm[:, 0])))
    assert np.degrees(np.abs(angles[0] - angles[1])).max() < 3


def test_the_clip_and_its_true_poses_are_the_same_frames() -> None:
    who, moving = synthetic.character("human"), synthetic.dance("wave")
    poses = synthetic.true_poses(who, moving, SMALL, 5, fps=Fraction(5))
    assert isinstance(poses, PoseSequence)
    for t, (rgb, mask) in enumerate(synthetic.draw_clip(who, moving, SMALL, 5, fps=Fraction(5))):
        pose = perform(who.body, moving, t / 5, SMALL)
        drawn, cover, keypoints = synthetic.draw_character(who, pose, SMALL)
        np.testing.assert_array_equal(drawn, rgb)
        np.testing.assert_array_equal(cover, mask)
        np.testing.assert_array_equal(keypoints.keypoints[0], poses.keypoints[t])


def test_random_dances_follow_their_generator() -> None:
    a, b, other = (synthetic.random_dance(np.random.default_rng(seed), 5) for seed in (4, 4, 5))
    assert a == b
    assert a != other
    assert a.period > 1


def test_unknown_names_are_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match="Did you mean 'bottle'"):
        synthetic.character("botle")
    with pytest.raises(UsageError, match="Did you mean 'kicks'"):
        synthetic.dance("kick")
    who = synthetic.character("human")
    with pytest.raises(UsageError, match="Did you mean 'meadow'"):
        synthetic.draw_character(who, synthetic.rest_pose(who, SMALL), SMALL, background="medow")
    with pytest.raises(UsageError, match="expected 2 or more"):
        replace(synthetic.dance("wave"), keys=(Key(),))
