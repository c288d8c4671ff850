"""Bone factors change the size of the part in the picture by that factor, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from animx.puppet import checks
from animx.puppet.anatomy import study
from animx.puppet.engine import prepare
from animx.retarget.ops import rescale
from animx.retarget.preset import list_presets, load_preset
from tests import puppet_jobs as jobs

Flags = NDArray[np.bool_]


def frame(factors: dict[str, float]) -> NDArray[np.uint8]:
    job = jobs.job(poses=jobs.still())
    return prepare(replace(job, poses=rescale(job.poses, factors))).frame(0)


def like(shown: NDArray[np.uint8], *colours: tuple[int, int, int], within: int = 25) -> Flags:
    return np.any([np.abs(shown[..., :3].astype(int) - c).max(-1) < within for c in colours], 0)


def extent(flags: Flags, axis: int) -> float:
    return float(np.ptp(np.flatnonzero(flags.any(axis)))) + 1


def head_width(shown: NDArray[np.uint8]) -> float:
    skin = like(shown, jobs.SKIN)
    top = int(np.flatnonzero(skin.any(1))[0])
    return float(skin[top : top + 60].sum(1).max())


def hand_width(shown: NDArray[np.uint8]) -> float:
    skin = like(shown, jobs.SKIN)
    skin[:140] = False
    return float(np.sqrt(skin[:, :110].sum()))


def shoe_width(shown: NDArray[np.uint8]) -> float:
    return float(np.sqrt(like(shown, jobs.SHOE).sum()))


def shirt_length(shown: NDArray[np.uint8]) -> float:
    return extent(like(shown, jobs.SHIRT)[:, 104:116], 1)


def shirt_row(shown: NDArray[np.uint8], share: float) -> float:
    shirt = like(shown, jobs.SHIRT, jobs.SLEEVE)
    rows = np.flatnonzero(like(shown, jobs.SHIRT)[:, 110])
    row = shirt[int(rows[0] + share * (rows[-1] - rows[0]))]
    left = right = 110
    while row[left - 1]:
        left -= 1
    while row[right + 1]:
        right += 1
    return float(right - left + 1)


PARTS = {
    "head": (head_width, {"head": 1.5, "neck": 1 / 1.5}, 1.5),
    "small head": (head_width, {"head": 0.6}, 0.6),
    "face": (head_width, {"face": 1.4}, 1.4),
    "hands": (hand_width, {"hands": 1.5}, 1.5),
    "feet": (shoe_width, {"feet": 1.4}, 1.4),
    "torso": (shirt_length, {"torso": 0.7}, 0.7),
    # measured a quarter of the way up, where the trunk is a quarter shoulders
    "hips": (lambda shown: shirt_row(shown, 0.75), {"hips": 1.6}, 1.47),
    "shoulders": (lambda shown: shirt_row(shown, 0.25), {"shoulders": 1.4}, 1.3),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_rescaled_part_has_that_size_in_the_picture(name: str) -> None:
    measure, factors, wanted = PARTS[name]
    assert measure(frame(factors)) / measure(frame({})) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(("unit", "joints"), [("shoulders", (2, 5)), ("hips", (8, 11))])
def test_a_wider_trunk_moves_its_joints_apart(unit: str, joints: tuple[int, int]) -> None:
    job = jobs.job(poses=jobs.still())
    plain, wide = (prepare(replace(job, poses=rescale(job.poses, f))) for f in ({}, {unit: 1.4}))
    gaps = [float(np.ptp(stage.motion.joints[0, list(joints), 0])) for stage in (plain, wide)]
    assert gaps[1] / gaps[0] == pytest.approx(1.4, rel=0.05)
    assert checks.markers(wide, [0]).mean < 0.005


@pytest.mark.parametrize(("group", "chain"), [("forearms", (3, 4)), ("upper_arms", (2, 3)), ("shins", (9, 10))])
def test_a_longer_bone_is_drawn_longer(group: str, chain: tuple[int, int]) -> None:
    job = jobs.job(poses=jobs.still())
    plain, long = (prepare(replace(job, poses=rescale(job.poses, f))) for f in ({}, {group: 1.4}))
    lengths = [float(np.linalg.norm(np.diff(stage.motion.joints[0, list(chain)], axis=0))) for stage in (plain, long)]
    assert lengths[1] / lengths[0] == pytest.approx(1.4, rel=0.02)
    assert checks.markers(long, [0]).mean < 0.005


def test_factors_of_one_change_no_pixel() -> None:
    assert np.array_equal(frame({"head": 1.0, "hands": 1.0, "hips": 1.0}), frame({}))


def test_every_preset_that_rescales_changes_the_picture() -> None:
    names = [preset.name for preset in map(load_preset, (one.name for one in list_presets())) if preset.rescale]
    assert "big-head" in names
    plain = frame({})
    for name in names:
        preset = load_preset(name)
        middle = {k: float(np.mean(v)) for k, v in preset.rescale.items()}
        changed = np.abs(frame(middle).astype(int) - plain).max(-1) > 40
        assert changed.mean() > 0.01, name


def test_a_face_that_sits_on_the_trunk_grows_but_does_not_nod() -> None:
    job = jobs.job(poses=jobs.clip(jobs.STANDING))
    assert job.mask is not None
    # a wide block round head and neck: no waist between face and chest
    picture, mask = job.picture.copy(), job.mask.copy()
    picture[40:150, 80:140, :3], mask[40:150, 80:140] = jobs.SHIRT, 1
    block = replace(job, picture=picture, mask=mask)
    body = study(mask, job.reference_pose)
    assert body.head
    assert not body.nods
    stage = prepare(block)
    assert np.allclose(stage.motion.limbs["head"].turn, stage.motion.turn)
    heights = []
    for factor in (1.0, 1.5):
        shown = prepare(replace(block, poses=rescale(jobs.still(), {"head": factor})))
        heights.append(extent(checks.coverage(shown, 0)[:80] > 127, 0))
    assert heights[1] / heights[0] == pytest.approx(1.5, rel=0.15)
