"""Rescale, drop, add: laws on random skeletons with holes, and what the contract says about groups and keeping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skeletons import MIRROR, dancing, mirrored, random_arrays, random_poses, standing, template_vectors

from animx import plugins
from animx.canvas import Canvas
from animx.errors import InputError, UsageError
from animx.pose.dropped import dropped_joints
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BONES, GROUP_NAMES, JOINT_NAMES, JOINTS, MID_HIP, PARENT, SIDED
from animx.retarget import groups, ops, tree
from animx.retarget.chain import apply_preset, retarget
from animx.retarget.history import cumulative_factors
from animx.retarget.preset import Preset

ONES = np.ones(len(groups.UNITS))
some_groups = st.dictionaries(st.sampled_from(sorted(groups.GROUPS)), st.floats(0.2, 3.0), min_size=1, max_size=5)
keeps = st.sampled_from(["ground", "root", "none"])
laws = settings(max_examples=40, deadline=None)


def rescaled(points, visible, factors, keep, before=ONES):
    out = np.empty_like(points)
    times = np.arange(len(points)) / 25
    ops.rescale_points(points, visible, times, groups.unit_factors(factors), before, keep, out)
    return np.where(visible[..., None], out, 0.0)


def descendants(joints):
    found = set(joints)
    for _ in range(8):
        found |= {j for j in range(JOINTS) if PARENT[j] in found}
    return found


def mid(points, t=0):
    return (points[t, 8] + points[t, 11]) / 2


def length(points, bone, t=0):
    start = mid(points, t) if bone.parent == MID_HIP else points[t, bone.parent]
    return float(np.linalg.norm(points[t, bone.child] - start))


# ---- laws ----------------------------------------------------------------------------------------------------------


@laws
@given(random_poses(), keeps)
def test_factors_of_one_change_no_bit(poses, keep):
    same = ops.rescale(poses, {"legs": 1.0, "head": 1}, keep)
    assert same.keypoints.tobytes() == poses.keypoints.tobytes()
    assert same.scores.tobytes() == poses.scores.tobytes()


@laws
@given(random_arrays(), some_groups, st.floats(0.2, 3.0), keeps)
def test_factors_a_then_b_are_ab(arrays, factors, b, keep):
    points, visible = arrays
    once = rescaled(points, visible, {name: a * b for name, a in factors.items()}, keep)
    half = rescaled(points, visible, factors, keep)
    twice = rescaled(half, visible, dict.fromkeys(factors, b), keep, groups.unit_factors(factors))
    # a bone in n of the groups gets b^n both ways
    assert np.allclose(twice, once, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(once).max()))


@laws
@given(random_arrays(), some_groups, keeps)
def test_outside_its_subtree_an_operation_shifts_everything_alike(arrays, factors, keep):
    points, visible = arrays
    moved = rescaled(points, visible, factors, keep) - points
    inside = descendants(
        j for name in factors for unit in groups.GROUPS[name] for j in groups.UNITS[groups.UNIT_INDEX[unit]].joints
    )
    outside = [j for j in range(JOINTS) if j not in inside]
    for t in range(len(points)):
        seen = [j for j in outside if visible[t, j]]
        if seen:
            assert np.abs(moved[t, seen] - moved[t, seen[0]]).max() < 1e-9
            assert keep != "none" or np.abs(moved[t, seen]).max() == 0


@laws
@given(random_poses(), some_groups, keeps)
def test_missing_joints_stay_missing_and_nothing_is_nan(poses, factors, keep):
    done = ops.rescale(poses, factors, keep)
    assert np.isfinite(done.keypoints).all()
    assert done.scores.tobytes() == poses.scores.tobytes()
    assert not done.keypoints[done.scores == 0].any()


@laws
@given(random_poses(), some_groups, keeps)
def test_the_order_of_the_keys_changes_no_bit(poses, factors, keep):
    backwards = dict(reversed(factors.items()))
    assert (
        ops.rescale(poses, factors, keep).keypoints.tobytes() == ops.rescale(poses, backwards, keep).keypoints.tobytes()
    )


@laws
@given(random_arrays(), some_groups, keeps)
def test_a_mirrored_picture_with_swapped_sides_gives_the_mirrored_result(arrays, factors, keep):
    points, visible = arrays

    def flip(x, seen):
        flipped = x[:, MIRROR].copy()
        flipped[..., 0] *= -1
        return np.where(seen[:, MIRROR, None], flipped, 0.0)

    def other(name):
        return name.replace("left_", "#").replace("right_", "left_").replace("#", "right_")

    straight = flip(rescaled(points, visible, factors, keep), visible)
    swapped = rescaled(flip(points, visible), visible[:, MIRROR], {other(n): f for n, f in factors.items()}, keep)
    assert np.allclose(straight, swapped, atol=1e-8)


@laws
@given(random_arrays(), some_groups, st.floats(0.1, 10), keeps)
def test_rescaling_does_not_care_where_and_how_large_the_figure_is(arrays, factors, size, keep):
    points, visible = arrays
    grown = np.where(visible[..., None], points * size + (30, -70), 0.0)
    expected = np.where(visible[..., None], rescaled(points, visible, factors, keep) * size + (30, -70), 0.0)
    assert np.allclose(rescaled(grown, visible, factors, keep), expected, atol=1e-7 * size)


@laws
@given(random_poses(), st.lists(st.sampled_from([*groups.GROUPS, "nose", "left_hand_3"]), min_size=1, max_size=3))
def test_dropping_twice_is_dropping_once(poses, names):
    once = ops.drop(poses, names)
    twice = ops.drop(once, names)
    assert once.scores.tobytes() == twice.scores.tobytes()
    assert once.keypoints.tobytes() == twice.keypoints.tobytes()
    assert not once.scores[..., list(groups.joints_of(names))].any()


@laws
@given(random_poses(), st.lists(st.sampled_from(sorted(groups.GROUPS)), min_size=1, max_size=4))
def test_add_never_touches_a_visible_joint(poses, names):
    more = ops.add(poses, names)
    seen = poses.scores > 0
    assert np.array_equal(more.keypoints[seen], poses.keypoints[seen])
    assert np.array_equal(more.scores[seen], poses.scores[seen])
    asked = np.isin(np.arange(JOINTS), groups.joints_of(names))
    assert not more.scores[~seen & ~asked].any()
    assert np.isfinite(more.keypoints).all()
    assert more.scores[~seen].max(initial=0) <= 0.5


def test_add_on_a_whole_body_is_the_identity():
    poses = dancing()
    assert ops.add(poses, GROUP_NAMES).keypoints.tobytes() == poses.keypoints.tobytes()


# ---- what is where -------------------------------------------------------------------------------------------------


def test_every_joint_hangs_on_exactly_one_unit():
    assert sorted(j for unit in groups.UNITS for j in unit.joints) == list(range(JOINTS))
    assert {bone.name for bone in BONES[:14]} == {unit.name for unit in groups.UNITS[:14]}


def test_all_groups_exist_with_their_sides():
    sided = {f"{side}_{name}" for side in ("left", "right") for name in SIDED}
    assert set(groups.GROUPS) == set(GROUP_NAMES) | sided


def test_groups_multiply_over_a_bone():
    table = groups.unit_factors(
        {"arms": 2.0, "left_arms": 3.0, "left_forearms": 5.0, "head": 1.5, "neck": 0.5, "face": 3}
    )
    by_name = {unit.name: factor for unit, factor in zip(groups.UNITS, table, strict=True)}
    assert by_name["left_forearm"] == 30
    assert by_name["left_upper_arm"] == 6
    assert by_name["right_forearm"] == 2
    assert by_name["neck"] == 0.75
    assert by_name["face"] == 4.5
    assert by_name["left_hand"] == 1


@pytest.mark.parametrize("name", [name for name in GROUP_NAMES if name not in ("head", "face", "hands", "feet")])
def test_a_group_changes_the_length_of_its_own_bones_only(name):
    poses = dancing()
    done = ops.rescale(poses, {name: 0.6}, "none").keypoints[:, 0].astype(float)
    before = poses.keypoints[:, 0].astype(float)
    for bone in BONES:
        factor = 0.6 if bone.name in groups.GROUPS[name] else 1.0
        for t in (0, 7):
            assert length(done, bone, t) == pytest.approx(factor * length(before, bone, t), rel=1e-4), bone.name


def test_hands_and_feet_move_along_and_keep_their_size():
    poses = dancing()
    done = ops.rescale(poses, {"arms": 0.5, "legs": 0.5}, "none")
    for joints, root in ((range(92, 113), 7), (range(113, 134), 4), (range(18, 21), 13), (range(21, 24), 10)):
        was = poses.keypoints[:, 0, joints] - poses.keypoints[:, 0, [root]]
        now = done.keypoints[:, 0, joints] - done.keypoints[:, 0, [root]]
        assert np.allclose(was, now, atol=2e-4)
        assert np.abs(done.keypoints[:, 0, root] - poses.keypoints[:, 0, root]).max() > 10
    hands = ops.rescale(poses, {"hands": 2.0}, "none")
    assert np.allclose(
        hands.keypoints[:, 0, 92:113] - hands.keypoints[:, 0, [7]],
        2 * (poses.keypoints[:, 0, 92:113] - poses.keypoints[:, 0, [7]]),
        atol=1e-3,
    )


def test_head_scales_about_the_neck_face_about_the_nose_and_neck_moves_the_head_whole():
    poses = dancing()
    was = poses.keypoints[:, 0].astype(float)
    parts = [0, 14, 15, 16, 17, *range(24, 92)]
    head = ops.rescale(poses, {"head": 1.8}, "none").keypoints[:, 0]
    assert np.allclose(head[:, parts] - was[:, [1]], 1.8 * (was[:, parts] - was[:, [1]]), atol=1e-3)
    face = ops.rescale(poses, {"face": 1.8}, "none").keypoints[:, 0]
    assert np.allclose(face[:, parts] - was[:, [0]], 1.8 * (was[:, parts] - was[:, [0]]), atol=1e-3)
    neck = ops.rescale(poses, {"neck": 1.8}, "none").keypoints[:, 0]
    assert np.allclose(neck[:, parts] - was[:, parts], 0.8 * (was[:, [0]] - was[:, [1]]), atol=1e-3)


def test_ground_keeps_the_lowest_foot_where_it_was():
    poses = dancing()
    feet = [10, 13, *range(18, 24)]
    done = ops.rescale(poses, {"legs": 0.45, "left_shins": 2.0}, "ground")
    assert np.allclose(done.keypoints[:, 0, feet, 1].max(1), poses.keypoints[:, 0, feet, 1].max(1), atol=1e-4)
    assert np.allclose(done.keypoints[:, 0, [8, 11], 0], poses.keypoints[:, 0, [8, 11], 0], atol=1e-4)
    hung = ops.rescale(poses, {"legs": 0.45}, "root")
    assert np.allclose(mid(hung.keypoints[:, 0]), mid(poses.keypoints[:, 0]), atol=1e-4)
    assert hung.keypoints[0, 0, feet, 1].max() < poses.keypoints[0, 0, feet, 1].max() - 50


def test_a_frame_without_feet_takes_the_shift_of_its_neighbours():
    poses = standing(5)
    scores = poses.scores.copy()
    scores[2, 0, [10, 13, *range(18, 24)]] = 0
    done = ops.rescale(poses.with_poses(poses.keypoints, scores), {"legs": 0.5})
    assert np.allclose(done.keypoints[2, 0, :8], done.keypoints[1, 0, :8], atol=1e-3)
    assert done.keypoints[2, 0, 0, 1] > poses.keypoints[2, 0, 0, 1] + 50


def test_the_upper_body_stays_calm_while_a_hip_flickers():
    poses = standing(6)
    scores = poses.scores.copy()
    scores[1, 0, 8] = scores[2, 0, 11] = 0
    scores[3, 0, [8, 11]] = 0
    done = ops.rescale(poses.with_poses(poses.keypoints, scores), {"torso": 0.6}, "none")
    assert np.ptp(done.keypoints[:, 0, 1], axis=0).max() < 1e-3


def test_a_hidden_elbow_does_not_leave_the_hand_behind():
    poses = standing(2)
    scores = poses.scores.copy()
    scores[1, 0, 3] = 0
    done = ops.rescale(poses.with_poses(poses.keypoints, scores), {"arms": 0.5}, "none").keypoints[:, 0]
    assert np.allclose(done[1, 4], done[0, 4], atol=1e-3)
    assert np.allclose(done[1, 113:], done[0, 113:], atol=1e-3)


def test_rescaling_one_hip_twice_composes_although_the_middle_moves():
    poses = dancing()
    once = ops.rescale(poses, {"left_hips": 3.0}, "none")
    twice = ops.rescale(ops.rescale(poses, {"left_hips": 2.0}, "none"), {"left_hips": 1.5}, "none")
    assert np.allclose(once.keypoints, twice.keypoints, atol=1e-3)


def test_root_holds_the_middle_of_the_hips_where_none_lets_it_go():
    poses = dancing()
    was = mid(poses.keypoints[:, 0])
    held = ops.rescale(poses, {"left_hips": 3.0}, "root").keypoints[:, 0]
    free = ops.rescale(poses, {"left_hips": 3.0}, "none").keypoints[:, 0]
    assert np.allclose(mid(held), was, atol=1e-3)
    assert np.linalg.norm(mid(free) - was) > 10
    assert np.allclose(np.diff(held, axis=1), np.diff(free, axis=1), atol=1e-3)


def test_a_bone_over_a_hidden_joint_takes_a_mean_of_the_factors():
    poses = ops.drop(standing(), ["left_elbow"])
    done = ops.rescale(poses, {"upper_arms": 0.5, "forearms": 1.5}, "none").keypoints[0, 0]
    was = poses.keypoints[0, 0]
    assert 0.7 < np.linalg.norm(done[7] - done[5]) / np.linalg.norm(was[7] - was[5]) < 1.1


def test_depth_is_scaled_along():
    poses = dancing()
    depth = np.zeros_like(poses.scores)
    depth[:, 0, 4] = 40.0
    deep = PoseSequence(poses.keypoints, poses.scores, poses.canvas, depth=depth)
    done = ops.rescale(deep, {"forearms": 0.5})
    assert done.depth is not None
    assert np.allclose(done.depth[:, 0, 4], 20.0)


def test_long_clips_go_in_chunks_and_give_the_same_bits(monkeypatch):
    poses = dancing(60)
    scores = poses.scores.copy()
    scores[10:20, 0, [8, 10, 13, 20]] = 0
    poses = poses.with_poses(poses.keypoints, scores)
    whole = ops.rescale(poses, {"legs": 0.5, "head": 1.5})
    monkeypatch.setattr(ops, "CHUNK", 7)
    assert ops.rescale(poses, {"legs": 0.5, "head": 1.5}).keypoints.tobytes() == whole.keypoints.tobytes()


def test_history_holds_the_cumulative_factor_of_each_bone():
    poses = ops.rescale(ops.rescale(dancing(), {"legs": 0.5}), {"left_thighs": 3.0, "head": 2.0})
    table = {unit.name: f for unit, f in zip(groups.UNITS, cumulative_factors(poses.history), strict=True)}
    assert table["left_thigh"] == 1.5
    assert table["right_thigh"] == 0.5
    assert table["face"] == table["neck"] == 2.0
    assert table["torso"] == 1.0


@pytest.mark.parametrize(
    "bones",
    [{"left_thigh": "x"}, {"left_thigh": -1}, {"left_thigh": float("nan")}, {"wing": 2}, [1, 2], {"face": True}],
)
def test_a_damaged_history_is_a_bad_input(bones):
    poses = dancing(1).with_poses(dancing(1).keypoints, op="rescale", bones=bones)
    with pytest.raises(InputError, match="history"):
        ops.rescale(poses, {"legs": 0.5})


@pytest.mark.parametrize("joints", ["x", [1.5], [134], [-1], [True]])
def test_a_damaged_drop_list_is_a_bad_input(joints):
    with pytest.raises(InputError, match="history"):
        dropped_joints([{"op": "drop", "joints": joints}])


# ---- drop and add --------------------------------------------------------------------------------------------------


def test_drop_arms_leaves_shoulders_and_hands():
    done = ops.drop(standing(), ["arms"])
    assert not done.scores[0, 0, [3, 4, 6, 7]].any()
    assert done.scores[0, 0, [2, 5, 92, 113]].all()
    assert dropped_joints(done.history) == {3, 4, 6, 7}
    assert dropped_joints(ops.add(done, ["left_arms"]).history) == {3, 4}


def test_fill_never_revives_a_dropped_joint():
    poses = dancing()
    scores = poses.scores.copy()
    scores[8:11, 0, [4, 7]] = 0
    holes = poses.with_poses(poses.keypoints, scores)
    assert ops.fill(holes).scores[8:11, 0, [4, 7]].all()
    done = ops.fill(ops.drop(holes, ["right_arms"]))
    assert not done.scores[:, 0, [3, 4]].any()
    assert done.scores[8:11, 0, 7].all()


def test_not_even_a_careless_fill_revives_a_dropped_joint(monkeypatch):
    def careless(poses, *rest):
        return poses.with_poses(poses.keypoints, np.ones_like(poses.scores))

    monkeypatch.setattr("animx.pose.smooth.fill", careless)
    done = ops.fill(ops.drop(dancing(), ["right_arms"]))
    assert not done.scores[:, 0, [3, 4]].any()
    assert done.scores[:, 0, 7].all()


@pytest.mark.parametrize(
    "names", [["arms", "hands"], ["legs", "feet"], ["hips", "legs", "feet"], ["head"], ["shoulders", "arms"]]
)
def test_add_after_drop_gives_template_proportions(names):
    poses = standing(3)
    done = ops.add(ops.drop(poses, names), names)
    # the body is the template itself; hands follow the direction of their forearm, so only their size is compared
    assert np.allclose(done.keypoints[..., :92, :], poses.keypoints[..., :92, :], atol=0.01)
    for joint in range(92, JOINTS):
        sizes = [np.linalg.norm(p.keypoints[0, 0, joint] - p.keypoints[0, 0, PARENT[joint]]) for p in (done, poses)]
        assert sizes[0] == pytest.approx(sizes[1], abs=0.01)
    made = list(groups.joints_of(names))
    assert (done.scores[..., made] == 0.5).all()


def test_an_added_arm_has_template_length_on_a_moving_body():
    poses = dancing()
    done = ops.add(ops.drop(poses, ["arms", "hands"]), ["arms"]).keypoints[:, 0].astype(float)
    upper = np.linalg.norm(done[:, 3] - done[:, 2], axis=1)
    lower = np.linalg.norm(done[:, 4] - done[:, 3], axis=1)
    vectors = np.linalg.norm(template_vectors(), axis=1)
    assert np.allclose(lower / upper, vectors[4] / vectors[3], rtol=1e-4)
    assert np.ptp(upper) < 1e-2


def test_a_missing_arm_mirrors_the_other_one():
    poses = dancing()
    done = (
        ops.add(ops.drop(poses, ["left_arms", "left_hands"]), ["left_arms", "left_hands"]).keypoints[:, 0].astype(float)
    )
    for a, b, c, d in ((5, 6, 2, 3), (6, 7, 3, 4), (7, 97, 4, 118)):
        assert np.allclose(
            np.linalg.norm(done[:, b] - done[:, a], axis=1), np.linalg.norm(done[:, d] - done[:, c], axis=1), rtol=1e-4
        )
    up = done[:, 1] - (done[:, 8] + done[:, 11]) / 2
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    aside = np.stack([-up[:, 1], up[:, 0]], axis=1)
    assert np.allclose(
        ((done[:, 6] - done[:, 5]) * aside).sum(1), -((done[:, 3] - done[:, 2]) * aside).sum(1), atol=0.01
    )
    assert np.allclose(((done[:, 6] - done[:, 5]) * up).sum(1), ((done[:, 3] - done[:, 2]) * up).sum(1), atol=1)


def test_an_invented_joint_is_trusted_no_more_than_its_parent():
    poses = standing()
    scores = poses.scores.copy()
    scores[0, 0, 2] = 0.2
    done = ops.add(ops.drop(poses.with_poses(poses.keypoints, scores), ["arms"]), ["arms"])
    assert done.scores[0, 0, [3, 4]] == pytest.approx([0.2, 0.2])
    assert done.scores[0, 0, [6, 7]] == pytest.approx([0.5, 0.5])


def test_a_joint_without_a_parent_is_not_invented():
    done = ops.add(ops.drop(standing(), ["shoulders", "arms"]), ["arms"])
    assert not done.scores[0, 0, [3, 4, 6, 7]].any()


def test_legs_can_be_added_to_half_a_body():
    half = ops.drop(standing(), ["hips", "legs", "feet"])
    assert ops.add(half, ["hips", "legs", "feet"]).scores[0, 0, 8:14].all()


# ---- messages and the chain ----------------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_nearest_known_one():
    poses = standing()
    with pytest.raises(UsageError, match=r"unknown bone group 'thigh'\. Did you mean 'thighs'"):
        ops.rescale(poses, {"thigh": 0.5})
    with pytest.raises(UsageError, match=r"unknown bone group or joint 'left_elbo'\. Did you mean 'left_elbow'"):
        ops.drop(poses, ["left_elbo"])
    with pytest.raises(UsageError, match="unknown bone group or joint"):
        ops.add(poses, ["wings"])
    with pytest.raises(UsageError, match=r"keep 'grund'.*Did you mean 'ground'"):
        ops.rescale(poses, {"legs": 0.5}, "grund")


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), 1000, "2", None, True])
def test_a_bad_factor_is_refused_by_group(factor):
    with pytest.raises(UsageError, match="legs"):
        ops.rescale(standing(), {"legs": factor})


def test_single_joints_can_be_dropped_by_name():
    done = ops.drop(standing(), ["left_wrist", "face_30"])
    assert [JOINT_NAMES[j] for j in np.flatnonzero(done.scores[0, 0] == 0)] == ["left_wrist", "face_30"]


def test_the_chain_is_presets_in_order_then_single_factors_then_drop_then_add():
    poses = dancing()
    a, b = Preset("a", rescale={"legs": 0.5}), Preset("b", rescale={"head": 2.0}, drop=("left_arms",), keep="root")
    by_hand = ops.rescale(poses, {"legs": 0.5}, preset="a")
    by_hand = ops.rescale(by_hand, {"head": 2.0}, "root", preset="b")
    by_hand = ops.drop(by_hand, ["left_arms"])
    by_hand = ops.rescale(by_hand, {"legs": 1.5})
    by_hand = ops.add(ops.drop(by_hand, ["hands"]), ["left_arms"])
    chained = retarget(poses, [a, b], rescale={"legs": 1.5}, drop=["hands"], add=["left_arms"])
    assert chained.keypoints.tobytes() == by_hand.keypoints.tobytes()
    assert chained.history == by_hand.history
    assert [step["op"] for step in chained.history] == ["rescale", "rescale", "drop", "rescale", "drop", "add"]


def test_each_preset_keeps_against_its_own_input():
    poses = dancing()
    sunk = Preset("sunk", rescale={"legs": 0.5}, keep="none")
    grounded = Preset("grounded", rescale={"legs": 0.5}, keep="ground")
    feet = [10, 13, *range(18, 24)]
    between = apply_preset(poses, sunk)
    done = retarget(poses, [sunk, grounded])
    assert np.allclose(done.keypoints[:, 0, feet, 1].max(1), between.keypoints[:, 0, feet, 1].max(1), atol=1e-3)
    assert np.abs(done.keypoints[:, 0, feet, 1].max(1) - poses.keypoints[:, 0, feet, 1].max(1)).min() > 20


def test_nothing_asked_for_gives_the_poses_back():
    poses = dancing()
    assert retarget(poses) is poses
    assert retarget(poses, "identity").keypoints.tobytes() == poses.keypoints.tobytes()


def test_built_in_operations_come_through_the_plugin_door():
    poses = dancing()
    for name, parameters in (
        ("rescale", {"factors": {"legs": 0.5}}),
        ("drop", {"groups": ["arms"]}),
        ("fill", {}),
        ("smooth", {}),
    ):
        done = plugins.load("retarget_ops", name)(poses, **parameters)
        assert done.keypoints.shape == poses.keypoints.shape
        assert retarget(poses, ops=[(name, parameters)]).keypoints.tobytes() == done.keypoints.tobytes()
    with pytest.raises(UsageError, match=r"unknown retarget op 'rescal'. Did you mean 'rescale'"):
        retarget(poses, ops=[("rescal", {})])


def test_a_canvas_only_fits():
    poses = dancing()
    done = retarget(poses, reference=Canvas(1024, 1536))
    assert done.canvas == Canvas(1024, 1536)
    assert np.allclose(done.keypoints, poses.keypoints * 2, atol=1e-3)


def test_the_tree_hangs_fingers_on_their_hand_without_a_change():
    # the flattened tree and the full one agree, because all bones of a hand share one factor
    poses = dancing(3)
    stretch = groups.unit_factors({"hands": 1.7, "forearms": 0.5})
    points = poses.keypoints[:, 0].astype(float)
    root, state = tree.mid_hip(points, poses.scores[:, 0] > 0, ONES)
    flat = points + tree.scale(points, poses.scores[:, 0] > 0, root, state > 0, stretch)
    full = points.copy()

    def place(joint):
        parent = PARENT[joint]
        start, origin = (root, root) if parent == MID_HIP else (place(parent), points[:, parent])
        return start + stretch[groups.UNIT_OF[joint]] * (points[:, joint] - origin)

    for joint in range(JOINTS):
        full[:, joint] = place(joint)
    assert np.allclose(flat, full, atol=1e-9)


def test_mirroring_poses_is_its_own_inverse():
    poses = dancing()
    assert np.allclose(mirrored(mirrored(poses)).keypoints, poses.keypoints, atol=1e-4)
