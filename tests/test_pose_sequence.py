"""PoseSequence: what it admits, what it refuses by name, and what its small operations keep."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from animx.canvas import Canvas, place
from animx.errors import InputError
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BONES, JOINT_NAMES, JOINTS, MID_HIP, PARENT, mirror_index

CANVAS = Canvas(200, 300)


def poses(frames: int = 4, persons: int = 2, **extra: Any) -> PoseSequence:
    rng = np.random.default_rng(frames * 10 + persons)
    keypoints = rng.uniform(0, 200, (frames, persons, JOINTS, 2)).astype(np.float32)
    scores = rng.uniform(0.1, 1, (frames, persons, JOINTS)).astype(np.float32)
    return PoseSequence(keypoints, scores, CANVAS, **extra)


def test_a_missing_joint_has_coordinates_zero() -> None:
    scores = poses().scores.copy()
    scores[1, 0, 7] = 0
    made = replace(poses(), scores=scores)
    assert (made.keypoints[1, 0, 7] == 0).all()
    assert (made.keypoints[0, 0, 7] == poses().keypoints[0, 0, 7]).all()


def test_the_callers_arrays_stay_the_callers() -> None:
    keypoints = poses().keypoints.copy()
    made = PoseSequence(keypoints, poses().scores, CANVAS)
    keypoints[:] = -1
    assert (made.keypoints == poses().keypoints).all()
    with pytest.raises(ValueError, match="read-only"):
        made.keypoints[0] = 1


def test_replacing_a_field_copies_no_array() -> None:
    made = poses()
    assert np.shares_memory(replace(made, source={"name": "x"}).keypoints, made.keypoints)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("keypoints", np.zeros((4, 2, 133, 2)), r"keypoints: shape \[4, 2, 133, 2\]"),
        ("keypoints", np.zeros((4, 2, 134)), "keypoints: 3 dimensions"),
        ("keypoints", np.zeros((0, 2, 134, 2)), "keypoints: 0 frames"),
        ("keypoints", np.zeros((4, 65, 134, 2)), "keypoints: 65 persons"),
        ("keypoints", np.full((4, 2, 134, 2), np.nan), "keypoints: NaN"),
        ("keypoints", "text", "keypoints: not an array"),
        ("keypoints", np.array([None]), "keypoints: not an array"),
        ("scores", np.zeros((4, 1, 134)), "scores: shape"),
        ("scores", np.full((4, 2, 134), 1.01), "scores: values outside"),
        ("scores", np.full((4, 2, 134), -0.01), "scores: values outside"),
        ("scores", np.full((4, 2, 134), np.inf), "scores: NaN"),
        ("times", np.array([0, 1, 1, 2.0]), "times: not strictly"),
        ("times", np.array([0, 1.0]), "times: 2 entries"),
        ("times", np.array([0, 1, np.nan, 3]), "times: NaN"),
        ("fps", Fraction(0), "fps"),
        ("fps", Fraction(-25), "fps"),
        ("layout", "openpose-18", "layout: 'openpose-18'"),
        ("person_ids", (1,), "person_ids: 1 entries"),
        ("depth", np.zeros((4, 2, 133)), "depth: shape"),
        ("depth", np.full((4, 2, 134), np.nan), "depth: NaN"),
    ],
)
def test_a_bad_field_is_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(poses(), **{field: value})


def test_times_follow_the_rate_unless_given() -> None:
    assert np.allclose(poses(fps=Fraction(10)).times, [0, 0.1, 0.2, 0.3])
    given = poses(times=np.array([0, 1, 5, 6.0]))
    assert given.times.tolist() == [0, 1, 5, 6]
    assert given.duration == pytest.approx(7)


def test_one_person_and_a_cut_keep_the_rest() -> None:
    both = poses(depth=np.ones((4, 2, JOINTS)), person_ids=(3, 9), source={"name": "a"})
    second = both.person(1)
    assert second.person_ids == (9,)
    assert (second.keypoints[:, 0] == both.keypoints[:, 1]).all()
    part = second.cut(1, 3)
    assert (part.keypoints == second.keypoints[1:3]).all()
    assert part.times.tolist() == second.times[1:3].tolist()
    assert part.source == both.source
    assert part.depth is not None
    assert part.depth.shape == (2, 1, JOINTS)
    with pytest.raises(InputError, match="person 2"):
        both.person(2)


def test_a_canvas_and_back_is_the_identity() -> None:
    other = Canvas(400, 900)
    there = poses(depth=np.ones((4, 2, JOINTS))).on(other, place(CANVAS, other))
    back = there.on(CANVAS, place(other, CANVAS))
    assert there.canvas == other
    assert np.allclose(there.keypoints, poses().keypoints * [2, 3])
    assert np.allclose(back.keypoints, poses().keypoints, atol=1e-4)
    assert back.depth is not None
    assert np.allclose(back.depth, 1)


def test_history_grows_by_the_step_given() -> None:
    made = poses().with_poses(poses().keypoints, op="smooth", seconds=0.3).with_poses(poses().keypoints)
    assert made.history == ({"op": "smooth", "seconds": 0.3},)


def test_the_skeleton_is_a_tree_with_mirrored_sides() -> None:
    assert len(set(JOINT_NAMES)) == JOINTS
    for joint in range(JOINTS):
        steps, at = 0, joint
        while at != MID_HIP:
            at, steps = PARENT[at], steps + 1
            assert steps < 10
    swap = mirror_index()
    assert [swap[swap[i]] for i in range(JOINTS)] == list(range(JOINTS))
    for i, name in enumerate(JOINT_NAMES):
        if not name.startswith("face"):
            twin = name.replace("left", "L").replace("right", "left").replace("L", "right")
            assert JOINT_NAMES[swap[i]] == twin
    seen = {MID_HIP}
    for bone in BONES:
        assert bone.parent in seen
        seen.add(bone.child)
