"""The explicit pose indicator: which clips are transformed, what stays of them, and how far bodies change."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from skeletons import arrays, dancing, standing

from animx.canvas import Canvas
from animx.errors import InputError, NoFigureError, UsageError
from animx.pose.formats import read_poses, write_poses
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import BONES, L_HIP, MID_HIP, PARENT, R_HIP
from animx.retarget.groups import GROUPS, UNIT_INDEX, UNITS, group_joints
from animx_trainer.config import presets_folder
from animx_trainer.pool import PosePool, build_pool, load_pool, pool_of, usable_anchors
from animx_trainer.pose_augment import Choice, Epi, load_epi
from animx_trainer.preview import augmentation_sheet

CANVAS = Canvas(512, 768)
PRESETS = sorted(file.stem for file in presets_folder().glob("epi*.yaml"))
GATES = 10_000


@cache
def anchors() -> PosePool:
    """Ten bodies of different proportions."""
    points, visible = zip(*(arrays(seed, 1, 0.0, 0.0) for seed in range(10)), strict=True)
    return PosePool(PoseSequence(np.stack(points), np.stack(visible).astype(np.float32), CANVAS))


def epi_of(name: str = "epi", *sets: str) -> Epi:
    return Epi(load_epi(name, sets), anchors(), CANVAS)


def dance(frames: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    poses = dancing(frames)
    return poses.keypoints[:, 0], poses.scores[:, 0], poses.times


# ---- the gate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sets", "share"),
    [("epi", (), 0.98), ("epi-misaligned", (), 1.0), ("epi-aligned", (), 0.9),
     ("epi", ("probability=0.95",), 0.95), ("epi", ("probability=0.8",), 0.8), ("epi", ("without=[epi]",), 0.0)],
)  # fmt: skip
def test_the_share_of_transformed_clips_is_lambda(name: str, sets: tuple[str, ...], share: float) -> None:
    epi, rng = epi_of(name, *sets, "operations=[0, 0]"), np.random.default_rng(5)
    gated = sum(epi.draw(rng).gated for _ in range(GATES)) / GATES
    assert abs(gated - share) <= 0.01
    assert gated == share or 0 < share < 1  # all and none are exact


def test_a_transformed_clip_is_always_realigned_and_gets_one_to_three_operations() -> None:
    epi, rng = epi_of(), np.random.default_rng(1)
    choices = [choice for choice in (epi.draw(rng) for _ in range(2000)) if choice.gated]
    assert all(choice.anchor is not None for choice in choices)
    assert {len(choice.operations) for choice in choices} == {1, 2, 3}
    assert {choice.anchor for choice in choices} == set(range(len(anchors())))
    for choice in choices:
        names = [one.name for one in choice.operations]
        assert len(names) == len(set(names))


def test_operations_are_drawn_as_often_as_they_say() -> None:
    epi, rng = epi_of("epi", "operations=[1, 1]", "probability=1"), np.random.default_rng(2)
    names = [epi.draw(rng).operations[0].name for _ in range(12_000)]
    total = sum(one.probability for one in epi.config.pool)
    for one in epi.config.pool:
        expected = one.probability / total
        assert abs(names.count(one.name) / 12_000 - expected) < 4 * np.sqrt(expected / 12_000)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_body() -> None:
    points, scores, times = dance()

    def made(seed: int) -> bytes:
        moved, trust = (epi := epi_of()).apply(points, scores, times, epi.draw(np.random.default_rng(seed)))
        return moved.tobytes() + trust.tobytes()

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_an_untouched_clip_is_the_very_same() -> None:
    points, scores, times = dance()
    moved, trust = epi_of().apply(points, scores, times, Choice())
    assert moved is points
    assert trust is scores


# ---- the motion stays ----------------------------------------------------------------------------------------------


def directions(points: np.ndarray) -> np.ndarray:
    """[T, bones, 2] unit vectors of all bones between real joints, and of the line between the hips."""
    points = points.astype(np.float64)
    bones = [(PARENT[j], j) for j in range(134) if PARENT[j] != MID_HIP and j not in (92, 113)] + [(R_HIP, L_HIP)]
    vectors = np.stack([points[:, b] - points[:, a] for a, b in bones], axis=1)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)  # one face point lies on the nose


def test_realignment_keeps_every_joint_angle() -> None:
    from animx.retarget.fused import align_and_rescale

    points, scores, times = dance()
    ones = np.ones(len(UNITS))
    for number in range(len(anchors())):
        target = anchors().measured(number)
        moved = align_and_rescale(points, scores > 0, times, target, ones, "none", before=ones)
        before, after = directions(points), directions(moved)
        turn = np.cross(before, after)  # the sine of the angle between them
        assert np.abs(turn).max() < 1e-9
        assert (before * after).sum(axis=-1).min() >= 0


def test_realigned_bones_are_as_long_as_the_anchor_s() -> None:
    epi = epi_of()
    body = standing()
    moved, _ = epi.apply(body.keypoints[:, 0], body.scores[:, 0], body.times, Choice(True, 4))
    goal = anchors().poses.keypoints[4, 0]
    for bone in BONES:
        if bone.parent != MID_HIP and not bone.name.endswith(("eye", "ear")):  # the face is measured as a whole
            wanted = np.linalg.norm(goal[bone.child] - goal[bone.parent])
            assert np.linalg.norm(moved[0, bone.child] - moved[0, bone.parent]) == pytest.approx(wanted, rel=1e-5)


def one_operation(name: str) -> Epi:
    only = next(one for one in load_epi().rescales if one.name == name)
    fields = {"name": name, "rescale": {g: list(f) for g, f in only.rescale.items()}, "keep": only.keep}
    return Epi(load_epi({"probability": 1.0, "operations": [1, 1], "rescales": [fields]}), anchors(), CANVAS)


@pytest.mark.parametrize("name", [one.name for one in load_epi().rescales if one.rescale])
def test_bone_lengths_cover_the_range_of_each_operation_and_no_more(name: str) -> None:
    epi = one_operation(name)
    (operation,) = epi.config.rescales
    body, rng = standing(), np.random.default_rng(7)
    points, scores, times = body.keypoints[:, 0], body.scores[:, 0], body.times
    units = {unit: [] for group in operation.rescale for unit in GROUPS[group]}
    expected = {unit: np.ones(2) for unit in units}
    for group, factor in operation.rescale.items():
        for unit in GROUPS[group]:
            expected[unit] = expected[unit] * factor
    bones = {bone.name: bone for bone in BONES}
    for _ in range(250):
        choice = epi.draw(rng)
        aligned, _ = epi.apply(points, scores, times, Choice(True, choice.anchor))
        moved, _ = epi.apply(points, scores, times, choice)
        for unit in units:
            # units of many bones: any bone of theirs tells the factor
            child = bones[unit].child if unit in bones else UNITS[UNIT_INDEX[unit]].joints[-1]
            units[unit].append(length(moved, child) / length(aligned, child))
    for unit, found in units.items():
        low, high = expected[unit]
        assert low * (1 - 1e-3) <= min(found) < low + 0.1 * (high - low), unit
        assert high - 0.1 * (high - low) < max(found) <= high * (1 + 1e-3), unit


def length(points: np.ndarray, child: int) -> float:
    parent = PARENT[child]
    start = (points[0, R_HIP] + points[0, L_HIP]) / 2 if parent == MID_HIP else points[0, parent]
    return float(np.linalg.norm(points[0, child].astype(np.float64) - start))


def test_a_choice_holds_for_the_whole_clip() -> None:
    points, scores, times = dance()
    epi = one_operation("legs")
    choice = epi.draw(np.random.default_rng(0))
    moved, _ = epi.apply(points, scores, times, choice)
    before = np.linalg.norm(points[:, 9] - points[:, 8], axis=-1)
    after = np.linalg.norm(moved[:, 9] - moved[:, 8], axis=-1)
    assert np.ptp(after / before) < 1e-4 * (after / before).mean()


@pytest.mark.slow
def test_augmentation_costs_no_more_than_the_two_operations_alone() -> None:
    """Drawing, realigning and rescaling against `align` and `rescale`, in turns, least CPU time of each.

    Found 1600 clips a second and core on quiet cores, 1100 on shared ones, where the two operations alone make 900.
    """
    from animx.retarget import ops
    from animx.retarget.align import align_points
    from animx.retarget.groups import unit_factors

    points, scores, times = dance()
    epi, visible, ones = epi_of("epi-misaligned"), scores > 0, np.ones(len(UNITS))
    factors, target = unit_factors({"legs": 0.5}), anchors().measured(0)

    def plainly(number: int) -> None:
        moved, out = np.empty_like(points), np.empty_like(points)
        align_points(points, visible, times, target, ones, 1.0, moved)
        ops.rescale_points(moved, visible, times, factors, ones, "ground", out)

    def augmented(number: int) -> None:
        epi.apply(points, scores, times, epi.draw(np.random.default_rng([3, number])))

    least = {plainly: np.inf, augmented: np.inf}
    for _ in range(12):
        for made in least:
            begun = time.process_time()
            for number in range(60):
                made(number)
            least[made] = min(least[made], (time.process_time() - begun) / 60)
    print(f"{1 / least[augmented]:.0f} clips a second and core; align and rescale alone {1 / least[plainly]:.0f}")
    assert least[augmented] < 1.1 * least[plainly]


# ---- parts that come and go ----------------------------------------------------------------------------------------


def test_dropped_parts_stay_away_even_when_another_operation_adds_them() -> None:
    points, scores, times = dance()
    scores = scores.copy()
    scores[:, list(group_joints("right_arms"))] = 0
    rescales = {one.name: one for one in load_epi().rescales}
    both = Choice(True, None, (rescales["add-arms"], rescales["drop-left-arm"]))
    moved, trust = epi_of().apply(points, scores, times, both)
    assert (trust[:, list(group_joints("right_arms"))] > 0).all()  # added
    assert (trust[:, list(group_joints("left_arms"))] == 0).all()  # dropped
    assert (moved[trust == 0] == 0).all()


def test_a_clip_without_any_joint_stays_as_it_is() -> None:
    points, scores, times = dance()
    moved, trust = epi_of().apply(points, np.zeros_like(scores), times, Choice(True, 0))
    assert moved is points
    assert not trust.any()


# ---- ablations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "groups"),
    [("body_shoulders", {"torso", "shoulders", "hips"}), ("neck_face", {"neck", "face", "head"}),
     ("arms_legs", {"arms", "forearms", "hands", "legs", "shins", "feet", "left_arms", "right_arms"})],
)  # fmt: skip
def test_an_ablation_takes_its_bone_groups_out_of_every_operation(part: str, groups: set[str]) -> None:
    whole, left = load_epi(), load_epi("epi", [f"without=[{part}]"])
    used = {group for one in whole.pool for group in one.rescale}
    assert groups <= used
    assert {group for one in left.pool for group in one.rescale} == used - groups
    assert any(one.drop for one in left.pool)


def test_without_add_drop_rescalings_and_realign() -> None:
    assert not any(one.add for one in load_epi("epi", ["without=[add]"]).pool)
    assert not any(one.drop for one in load_epi("epi", ["without=[drop]"]).pool)
    rng = np.random.default_rng(0)
    plain = epi_of("epi", "without=[rescalings]")
    assert all(not plain.draw(rng).operations for _ in range(50))
    still = Epi(load_epi("epi", ["without=[realign]"]), None, CANVAS)  # and needs no pool
    assert all(still.draw(rng).anchor is None for _ in range(50))


# ---- config --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_shipped_preset_is_parsed_and_drawn_from(name: str) -> None:
    epi = epi_of(name)
    points, scores, times = dance(4)
    for seed in range(30):
        moved, _ = epi.apply(points, scores, times, epi.draw(np.random.default_rng(seed)))
        assert np.isfinite(moved).all()
    assert {"epi", "epi-aligned", "epi-misaligned"} <= set(PRESETS)


@pytest.mark.parametrize(
    ("sets", "says"),
    [(["probability=1.2"], "probability: 1.2 is larger than 1"), (["propability=1"], "Did you mean 'probability'"),
     (["operations=[3, 1]"], "runs downwards"), (["without=[arms]"], "arms_legs"),
     (["rescales=[{name: a, rescale: {leg: 2}}]"], "Did you mean 'legs'"),
     (["rescales=[]"], "no operation is left"), (["rescales=[{drop: [arms]}]"], "Name each operation")],
)  # fmt: skip
def test_a_wrong_field_is_named_with_the_nearest(sets: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=f"^--set {re.escape(sets[0])}: ") as refused:
        load_epi("epi", sets)
    assert says in str(refused.value)


def test_an_unknown_preset_and_a_missing_pool_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean 'epi-aligned'"):
        load_epi("epi-alligned")
    with pytest.raises(UsageError, match="pose pool"):
        Epi(load_epi(), None, CANVAS)


# ---- the pool ------------------------------------------------------------------------------------------------------


def test_a_pool_is_drawn_by_the_seed_alone_and_reads_back_as_a_pose_file(tmp_path: Path) -> None:
    for seed in range(3):
        write_poses(dancing(20, seed=seed), tmp_path / f"{seed}.npz")
    (tmp_path / "other.json").write_text('{"nothing": 1}')
    one, report = build_pool([tmp_path], 12, seed=4, canvas=CANVAS)
    two, _ = build_pool([tmp_path], 12, seed=4, canvas=CANVAS)
    other, _ = build_pool([tmp_path], 12, seed=5, canvas=CANVAS)
    assert one.poses.keypoints.tobytes() == two.poses.keypoints.tobytes() != other.poses.keypoints.tobytes()
    assert len(one) == 12
    assert [row["taken"] for row in report] == [4, 4, 4]  # files take turns
    write_poses(one.poses, tmp_path / "pool.npz")
    assert load_pool(tmp_path / "pool.npz").poses.keypoints.tobytes() == one.poses.keypoints.tobytes()


def test_an_anchor_is_an_upright_whole_figure_on_the_canvas() -> None:
    poses = dancing(6)
    scores = poses.scores.copy()
    scores[1, 0, [8, 11]] = 0  # no hips
    scores[2, 0, 2:8] = 0.1  # too few joints
    points = poses.keypoints.copy()
    points[3] = [0, 768] - points[3] * [-1, 1]  # upside down
    points[4, ..., 0] += 600  # beside the canvas
    points[5] = points[5] * 0.1 + 200  # tiny
    assert usable_anchors(PoseSequence(points, scores, poses.canvas)).tolist() == [0]


def test_no_anchor_no_file_and_nan_are_clear(tmp_path: Path, shared: Path) -> None:
    small = PoseSequence(dancing(3).keypoints * 0.01, dancing(3).scores, CANVAS)
    write_poses(small, tmp_path / "a.npz")
    with pytest.raises(NoFigureError, match="upright"):
        build_pool([tmp_path / "a.npz"])
    with pytest.raises(NoFigureError, match="--pool"):
        pool_of(small)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pose file"):
        build_pool([tmp_path / "empty"])
    with pytest.raises(InputError, match=r"nan\.pose\.npz.*NaN"):
        build_pool([shared / "data" / "bad" / "nan.pose.npz"])
    with pytest.raises(InputError, match="no such file"):
        build_pool([tmp_path / "nowhere"])


# ---- the contact sheet and the command line ------------------------------------------------------------------------


def test_the_contact_sheet_shows_what_training_gets() -> None:
    epi, poses = epi_of("epi-misaligned"), dancing(8)
    sheet, choices = augmentation_sheet(poses, epi, 5, seed=3, frames=2, cell_height=96)
    again, _ = augmentation_sheet(poses, epi, 5, seed=3, frames=2, cell_height=96)
    assert sheet.tobytes() == again.tobytes()
    assert len({choice.name for choice in choices}) == 5
    plain, _ = augmentation_sheet(poses, epi_of("epi", "without=[epi]"), 5, seed=3, frames=2, cell_height=96)
    assert (plain != sheet).mean() > 0.005


def test_the_history_of_augmented_poses_knows_the_lengths() -> None:
    from animx.retarget.history import cumulative_factors

    epi = one_operation("legs")
    poses, choice = epi.augment(dancing(4), np.random.default_rng(0))
    (operation,) = choice.operations
    factors = cumulative_factors(poses.history)
    assert factors[UNIT_INDEX["left_shin"]] == pytest.approx(operation.factors["legs"])
    assert poses.canvas == CANVAS


def test_fields_alone_are_laid_over_the_papers_augmentation() -> None:
    assert load_epi({"probability": 0.9}) == replace(load_epi(), probability=0.9)
    assert load_epi({"without": ["drop"]}) == replace(load_epi(), without=("drop",))


def test_pool_and_preview_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from animx.cli import run

    write_poses(dancing(10), tmp_path / "a.npz")
    assert run(["data", "pool", str(tmp_path / "a.npz"), "-o", str(tmp_path / "pool.npz"), "--count", "5"]) == 0
    assert read_poses(tmp_path / "pool.npz").frames == 5
    sheet = tmp_path / "sheet.png"
    pool = str(tmp_path / "pool.npz")
    call = ["data", "preview", str(tmp_path / "a.npz"), "--pool", pool, "-o", str(sheet), "-N", "2",
            "--set", "probability=1"]  # fmt: skip
    assert run(call) == 0
    assert sheet.stat().st_size > 1000
    assert run(call) == 2  # it exists
    assert run([*call[:-1], "probability=2", "-y"]) == 2
    assert run(["data", "pool", str(tmp_path), "-o", str(tmp_path / "a.npz"), "-y"]) == 2  # its own input
    said = capsys.readouterr().err
    assert "--set probability=2: probability: 2 is larger than 1" in said
    assert "would replace the pose file." in said


def test_a_bad_pose_file_is_named_and_skipped_as_if_it_were_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from animx.cli import run

    poses = tmp_path / "poses"
    poses.mkdir()
    for name in ("a", "c"):
        write_poses(dancing(8, seed=len(name)), poses / f"{name}.npz")
    without, _ = build_pool([poses], 6, seed=2)
    (poses / "b.npz").write_bytes((poses / "a.npz").read_bytes()[:200])
    call = ["data", "pool", str(poses), "-o", str(tmp_path / "pool.npz"), "--count", "6", "--seed", "2"]
    assert run([*call, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["anchors"], told["skipped"]) == (6, 1)
    assert [row["error"] for row in told["files"]] == [False, True, False]
    assert any("b.npz" in one and "skipped" in one for one in told["warnings"])
    assert load_pool(tmp_path / "pool.npz").poses.keypoints.tobytes() == without.poses.keypoints.tobytes()
    for name in ("a", "c"):
        (poses / f"{name}.npz").unlink()
    assert run([*call, "-y"]) == 3
    assert "b.npz" in capsys.readouterr().err
