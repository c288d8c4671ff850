"""Alignment: the released one against recorded numbers, the robust one against its laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skeletons import MIRROR, arrays, dancing, mirrored, random_arrays, standing

from animx.canvas import Canvas
from animx.errors import InputError, NoFigureError, UsageError
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BONES, JOINTS, MID_HIP
from animx.retarget import align as align_module
from animx.retarget import groups, ops
from animx.retarget.align import align, align_points, measure
from animx.retarget.chain import retarget
from animx.retarget.released import align_released_points

ONES = np.ones(len(groups.UNITS))
laws = settings(max_examples=40, deadline=None)
factor_sets = st.dictionaries(st.sampled_from(sorted(groups.GROUPS)), st.floats(0.3, 2.5), max_size=3)


def aligned(points, visible, target, factors=ONES, fallback=1.0):
    out = np.empty_like(points)
    align_points(points, visible, np.arange(len(points)) / 25, target, factors, fallback, out)
    return np.where(visible[..., None], out, 0.0)


def target_of(reference):
    points, visible = reference
    return measure(points, visible, ONES)


def bone_vectors(points, bone):
    start = (points[:, 8] + points[:, 11]) / 2 if bone.parent == MID_HIP else points[:, bone.parent]
    return points[:, bone.child] - start


def median_length(points, bone):
    return float(np.median(np.linalg.norm(bone_vectors(points, bone), axis=1)))


def angles_between(a, b):
    a, b = a[:, 0] + 1j * a[:, 1], b[:, 0] + 1j * b[:, 1]
    return np.degrees(np.abs(np.angle(a * b.conj())))


# ---- released ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["0", "1"])
def test_released_alignment_matches_the_recorded_one(shared, case):
    data = np.load(shared / "reference" / "fixtures" / "pose_align.npz")

    def rows(kind, lead):
        parts = [data[f"{case}/{kind}/{name}"] for name in ("candidate", "hands", "faces")]
        return np.concatenate([part.reshape(*lead, -1, 2) for part in parts], axis=-2)

    done = align_released_points(rows("in", (4,)), rows("ref", ()))
    assert np.abs(done - rows("out", (4,))).max() < 1e-9


def test_released_wrapper_is_the_core_on_normalised_coordinates():
    poses, reference = dancing(), standing()
    done = align(poses, reference, "released")
    assert done.canvas == reference.canvas

    def rows(p):
        x = p.keypoints[:, 0].astype(float) / p.canvas.size
        toes = [(x[:, a] + x[:, b]) / 2 for a, b in ((18, 19), (21, 22))]
        return np.concatenate([x[:, :18], np.stack(toes, 1), x[:, 92:], x[:, 24:92]], axis=1)

    core = align_released_points(rows(poses), rows(reference)[0])
    assert np.allclose(rows(done), core, atol=1e-6)
    # frame 0 takes the reference's bone lengths and neck
    assert np.allclose(core[0, 1], rows(reference)[0, 1], atol=1e-9)
    for a, b in ((2, 3), (3, 4), (9, 10), (12, 13), (1, 0)):
        assert np.linalg.norm(core[0, a] - core[0, b]) == pytest.approx(
            np.linalg.norm(*np.diff(rows(reference)[0, [a, b]], axis=0))
        )


def test_released_division_by_zero_is_said_not_written():
    poses = dancing(3)
    keypoints = poses.keypoints.copy()
    keypoints[0, 0, 4] = keypoints[0, 0, 3]
    with pytest.raises(InputError, match="--align robust"):
        align(poses.with_poses(keypoints), standing(), "released")


def test_released_ignores_weak_joints_as_the_released_code_does():
    poses = dancing(3)
    scores = poses.scores.copy()
    scores[1, 0, 4] = 0.2
    done = align(poses.with_poses(poses.keypoints, scores), standing(), "released")
    assert done.scores[1, 0, 4] == 0
    assert np.isfinite(done.keypoints).all()


# ---- robust: laws --------------------------------------------------------------------------------------------------


@laws
@given(random_arrays(), random_arrays(2), factor_sets)
def test_robust_twice_is_robust_once(driver, reference, factors):
    points, visible = driver
    target, f = target_of(reference), groups.unit_factors(factors)
    once = aligned(points, visible, target, f)
    twice = aligned(once, visible, target, f)
    assert np.isfinite(once).all()
    assert np.allclose(twice, once, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(once).max()))


@laws
@given(random_arrays())
def test_aligning_a_clip_to_itself_changes_nothing(driver):
    points, visible = driver
    assert np.allclose(aligned(points, visible, target_of(driver)), points, atol=1e-8)


@laws
@given(random_arrays(), random_arrays(1), st.floats(0.05, 20), st.floats(-2000, 2000))
def test_robust_does_not_care_where_and_how_large_the_driver_is(driver, reference, size, shift):
    points, visible = driver
    target = target_of(reference)
    there = np.where(visible[..., None], points * size + (shift, -shift), 0.0)
    bones = align_module._BONES
    shared = (measure(points, visible, ONES).lengths[:bones] > 0) & (target.lengths[:bones] > 0)
    if shared.any():  # with no bone in common the canvases decide
        a, b = aligned(points, visible, target), aligned(there, visible, target)
        if set(target.places) & set(measure(points, visible, ONES).places):
            assert np.allclose(a, b, rtol=1e-6, atol=1e-5)


@laws
@given(random_arrays(), random_arrays(1))
def test_robust_commutes_with_a_mirror(driver, reference):
    def flip(pair):
        points, visible = pair
        flipped = points[:, MIRROR] * (-1, 1)
        return np.where(visible[:, MIRROR, None], flipped, 0.0), visible[:, MIRROR]

    a = flip((aligned(*driver, target_of(reference)), driver[1]))[0]
    b = aligned(*flip(driver), target_of(flip(reference)))
    assert np.allclose(a, b, rtol=1e-9, atol=1e-6)


@laws
@given(random_arrays(), random_arrays(1))
def test_every_bone_keeps_its_angle(driver, reference):
    points, visible = driver
    done = aligned(points, visible, target_of(reference))
    both_hips = visible[:, 8] & visible[:, 11]
    for bone in BONES:
        seen = visible[:, bone.child] & (both_hips if bone.parent == MID_HIP else visible[:, bone.parent])
        if seen.any():
            before, after = bone_vectors(points, bone)[seen], bone_vectors(done, bone)[seen]
            long = np.linalg.norm(before, axis=1) > 1
            assert angles_between(before[long], after[long]).max(initial=0) < 1e-5, bone.name


@laws
@given(random_arrays(), random_arrays(1), st.sampled_from(["torso", "neck", "right_thigh", "left_forearm"]))
def test_every_bone_keeps_its_foreshortening(driver, reference, name):
    points, visible = driver
    bone = next(bone for bone in BONES if bone.name == name)
    seen = visible[:, bone.child] & (visible[:, [8, 11]].all(1) if bone.parent == MID_HIP else visible[:, bone.parent])
    if seen.any():
        done = aligned(points, visible, target_of(reference))
        ratio = np.linalg.norm(bone_vectors(done, bone)[seen], axis=1) / np.linalg.norm(
            bone_vectors(points, bone)[seen], axis=1
        )
        assert np.ptp(ratio) < 1e-6 * ratio.max()


@laws
@given(random_arrays(), st.integers(0, 10**6), factor_sets)
def test_a_preset_survives_a_later_align(driver, seed, factors):
    # shapes are compared, each about its own neck: where the figure stands is another law
    points, visible = driver
    target, f = target_of(arrays(seed, 1, 0.0, 0.1)), groups.unit_factors(factors)
    times, first, last = np.arange(len(points)) / 25, np.empty_like(points), np.empty_like(points)
    ops.rescale_points(points, visible, times, f, ONES, "none", first)
    first = aligned(np.where(visible[..., None], first, 0.0), visible, target, f)
    ops.rescale_points(aligned(points, visible, target), visible, times, f, ONES, "none", last)
    for t in range(len(points)):
        seen = np.flatnonzero(visible[t])
        if visible[t, 1] and visible[t, [8, 11]].all():
            assert np.allclose(first[t, seen] - first[t, 1], last[t, seen] - last[t, 1], atol=1e-6)


# ---- robust: what it means -----------------------------------------------------------------------------------------


def test_median_bone_lengths_become_those_of_the_reference():
    poses, reference = dancing(), standing()
    done = align(poses, reference)
    for bone in BONES[:14]:
        expected = median_length(reference.keypoints[:, 0].astype(float), bone)
        assert median_length(done.keypoints[:, 0].astype(float), bone) == pytest.approx(expected, rel=1e-4), bone.name


def test_a_retargeted_file_keeps_its_short_legs_when_it_is_aligned():
    poses, reference = dancing(), standing()
    done = align(ops.rescale(poses, {"legs": 0.45, "head": 1.5}), reference)
    other = ops.rescale(align(poses, reference), {"legs": 0.45, "head": 1.5})
    for bone in BONES:
        a, b = (median_length(p.keypoints[:, 0].astype(float), bone) for p in (done, other))
        assert a == pytest.approx(b, rel=1e-4), bone.name
    assert np.abs(done.keypoints - other.keypoints).max() < 0.02 * 600
    again = align(done, reference)
    assert np.allclose(again.keypoints, done.keypoints, atol=2e-3)


def test_one_bad_frame_does_not_change_the_lengths():
    poses, reference = dancing(), standing()
    keypoints = poses.keypoints.copy()
    keypoints[0, 0, [3, 4, 9, 10]] = ((5, 5), (500, 5), (0, 0), (511, 767))
    done, clean = align(poses.with_poses(keypoints), reference), align(poses, reference)
    assert np.abs(done.keypoints[1:] - clean.keypoints[1:]).max() < 0.05 * 600
    spoiled = align(poses.with_poses(keypoints), reference, "released")
    assert np.abs(spoiled.keypoints[1:] - align(poses, reference, "released").keypoints[1:]).max() > 100


def test_feet_on_the_ground_stay_on_the_ground_and_jumps_are_scaled():
    reference = standing(height=300.0)
    poses = standing(20, height=600.0)
    keypoints = poses.keypoints.copy()
    keypoints[8:12, ..., 1] -= 90  # a jump of 90 px of a figure of 600 px
    done = align(poses.with_poses(keypoints), reference).keypoints[:, 0]
    floor = reference.keypoints[0, 0, [10, 13], 1].max()
    low = done[:, [10, 13], 1].max(1)
    assert np.allclose(np.delete(low, range(8, 12)), floor, atol=1e-3)
    assert np.allclose(low[8:12], floor - 45, atol=1e-3)


def test_short_legs_of_the_reference_do_not_lift_or_sink_the_feet():
    poses, reference = dancing(), ops.rescale(standing(), {"legs": 0.3})
    done = align(poses, reference).keypoints[:, 0].astype(float)
    scale = align(poses, reference).history[-1]["scale"][0]
    low_before = poses.keypoints[:, 0, [10, 13], 1].max(1)
    low_after = done[:, [10, 13], 1].max(1)
    assert np.allclose(np.diff(low_after), scale * np.diff(low_before), atol=1e-3)


def test_the_path_is_scaled_to_the_height_and_stands_on_the_reference():
    reference = standing(height=300.0)
    poses = standing(11, height=600.0)
    keypoints = poses.keypoints + np.linspace(-100, 100, 11)[:, None, None, None] * np.array([1, 0])
    done = align(poses.with_poses(keypoints), reference).keypoints[:, 0]
    assert np.allclose(np.diff(done[:, 1, 0]), 10, atol=1e-3)
    assert done[5, 1] == pytest.approx(reference.keypoints[0, 0, 1], abs=1e-2)


def without(poses, joints):
    scores = poses.scores.copy()
    scores[..., list(joints)] = 0
    return poses.with_poses(poses.keypoints, scores)


@pytest.mark.parametrize(
    "gone",
    [
        range(9, 24),
        range(2, 8),
        (8, 11),
        (1,),
        range(18, JOINTS),
        (0, 14, 15, 16, 17),
        set(range(JOINTS)) - {2, 3},
        (8,),
    ],
    ids=["legs", "arms", "hips", "neck", "hands and face", "head", "all but an upper arm", "one hip"],
)
@pytest.mark.parametrize("side", ["driver", "reference"])
def test_missing_bones_are_safe_and_take_the_ratio_of_the_whole(gone, side):
    poses, reference = dancing(), standing(height=250.0)
    if side == "driver":
        poses = without(poses, gone)
    else:
        reference = without(reference, gone)
    done = align(poses, reference)
    assert np.isfinite(done.keypoints).all()
    assert done.scores.tobytes() == poses.scores.tobytes()
    for joint in range(JOINTS):
        if done.scores[0, 0, joint]:  # half the size: nothing flies away
            assert np.abs(done.keypoints[:, 0, joint] - (320, 450)).max() < 400


def test_a_cropped_reference_scales_the_legs_like_the_rest():
    poses, whole = dancing(), standing(height=250.0)
    done = align(poses, without(whole, range(9, 24))).keypoints[:, 0].astype(float)
    scale = align(poses, without(whole, range(9, 24))).history[-1]["scale"][0]
    for bone in BONES:
        if bone.child in (9, 10, 12, 13):
            before = median_length(poses.keypoints[:, 0].astype(float), bone)
            assert median_length(done, bone) == pytest.approx(scale * before, rel=1e-4)


def test_face_and_hands_take_the_size_of_the_reference_where_it_is_known():
    poses = dancing()
    reference = ops.rescale(standing(), {"face": 2.0, "hands": 1.5}, "none")
    done = align(poses, reference).keypoints[:, 0].astype(float)
    scale = align(poses, reference).history[-1]["scale"][0]

    def spread(points, joints):
        return float(np.median(np.linalg.norm(points[:, joints] - points[:, [joints[0]]], axis=-1)))

    plain = align(poses, standing()).keypoints[:, 0].astype(float)
    assert spread(done, list(range(24, 92))) == pytest.approx(2 * spread(plain, list(range(24, 92))), rel=0.02)
    assert spread(done, list(range(92, 113))) == pytest.approx(1.5 * spread(plain, list(range(92, 113))), rel=0.02)
    bare = align(poses, without(standing(), range(14, JOINTS))).keypoints[:, 0].astype(float)
    hand = list(range(113, 134))
    assert spread(bare, hand) == pytest.approx(scale * spread(poses.keypoints[:, 0].astype(float), hand), rel=1e-3)


def test_a_shoulder_line_seen_only_from_the_side_is_not_blown_up():
    poses = dancing()
    keypoints = poses.keypoints.copy().astype(float)
    for shoulder, arm in ((2, [2, 3, 4, *range(113, 134)]), (5, [5, 6, 7, *range(92, 113)])):
        keypoints[:, 0, arm] -= 0.999 * (keypoints[:, 0, [shoulder]] - keypoints[:, 0, [1]])
    done = align(poses.with_poses(keypoints), standing()).keypoints[:, 0]
    assert np.linalg.norm(done[:, 2] - done[:, 1], axis=1).max() < 2


def test_depth_is_scaled_with_the_bones():
    poses = dancing()
    depth = np.zeros_like(poses.scores)
    depth[:, 0, 4] = 40.0
    deep = PoseSequence(poses.keypoints, poses.scores, poses.canvas, depth=depth)
    reference = standing()
    done = align(deep, reference)
    bone = BONES[4]
    ratio = median_length(done.keypoints[:, 0].astype(float), bone) / median_length(
        poses.keypoints[:, 0].astype(float), bone
    )
    assert done.depth is not None
    assert np.allclose(done.depth[:, 0, 4], 40 * ratio, rtol=1e-4)


def test_every_person_is_aligned_and_an_absent_one_stays_absent():
    one = dancing()
    keypoints = np.concatenate([one.keypoints, one.keypoints + 30, one.keypoints], axis=1)
    scores = np.concatenate([one.scores, one.scores, np.zeros_like(one.scores)], axis=1)
    done = align(PoseSequence(keypoints, scores, one.canvas), standing())
    assert np.allclose(done.keypoints[:, 0], done.keypoints[:, 1], atol=2e-3)
    assert not done.scores[:, 2].any()


def test_files_are_aligned_once_and_for_all():
    reference = standing()
    once = align(dancing(), reference)
    assert np.abs(align(once, reference).keypoints - once.keypoints).max() < 2e-3
    assert once.canvas == reference.canvas


def test_a_mirrored_file_gives_the_mirrored_file():
    poses, reference = dancing(), dancing(1, height=400, seed=3)
    assert np.allclose(
        mirrored(align(poses, reference)).keypoints, align(mirrored(poses), mirrored(reference)).keypoints, atol=2e-3
    )


def test_long_clips_go_in_chunks_and_give_the_same_bits(monkeypatch):
    poses = dancing(60)
    scores = poses.scores.copy()
    scores[10:20, 0, [8, 10, 13, 20]] = 0
    poses, reference = poses.with_poses(poses.keypoints, scores), standing()
    whole = align(poses, reference)
    monkeypatch.setattr(align_module, "CHUNK", 7)
    assert align(poses, reference).keypoints.tobytes() == whole.keypoints.tobytes()


def test_none_only_fits_to_the_canvas_of_the_reference():
    poses = dancing()
    done = retarget(poses, reference=standing(canvas=Canvas(1024, 1536)), align="none")
    assert np.allclose(done.keypoints, 2 * poses.keypoints, atol=1e-3)
    assert done.canvas == Canvas(1024, 1536)


def test_refusals_say_the_mend():
    with pytest.raises(UsageError, match="robust, released or none"):
        align(dancing(), standing(), "robus")
    with pytest.raises(NoFigureError, match="--ref-pose"):
        align(dancing(), without(standing(), range(JOINTS)))


@pytest.mark.parametrize("name", ["drive_bvh_jumping", "drive_bvh_wave_hello", "drive_pink", "drive_sea", "drive_kick"])
def test_real_clips_keep_their_angles(shared, name):
    data = np.load(shared / "data" / f"{name}.pose.npz")
    keypoints, scores = np.zeros((len(data["body"]), 1, JOINTS, 2)), np.zeros((len(data["body"]), 1, JOINTS))
    keypoints[:, 0, :18], scores[:, 0, :18] = data["body"][..., :2], np.clip(data["body"][..., 2], 0, 1)
    poses = PoseSequence(keypoints, scores, Canvas(*map(int, data["size"])))
    done = align(poses, standing())
    for bone in BONES:
        before, after = (
            bone_vectors(poses.keypoints[:, 0].astype(float), bone),
            bone_vectors(done.keypoints[:, 0].astype(float), bone),
        )
        long = np.linalg.norm(before, axis=1) > 5
        assert angles_between(before[long], after[long]).max(initial=0) < 0.01, bone.name
