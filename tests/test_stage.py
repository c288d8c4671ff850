"""Characters drawn by torch: exact joints and masks, dances that fit any body, the same bytes in any batch."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from animx.canvas import Canvas
from animx.errors import UsageError
from animx.pose import skeleton as sk
from animx_trainer import sdf
from animx_trainer.bodies import FAMILIES, GROUPS, random_character
from animx_trainer.dress import LABELS
from animx_trainer.figure import ANKLE, pose, present
from animx_trainer.motion import AT, CHANNELS, LIMITS, mirrored, random_dance
from animx_trainer.stage import GIRTH, Staged, background, cast, film, stage

torch.set_num_threads(1)
CANVAS = Canvas(64, 64)
TIMES = np.arange(5) * 0.31
CHAINS = (("upper_arm", "forearm", sk.L_SHOULDER, sk.L_ELBOW, sk.L_WRIST),
          ("upper_arm", "forearm", sk.R_SHOULDER, sk.R_ELBOW, sk.R_WRIST),
          ("thigh", "shin", sk.L_HIP, sk.L_KNEE, sk.L_ANKLE),
          ("thigh", "shin", sk.R_HIP, sk.R_KNEE, sk.R_ANKLE))  # fmt: skip


def _clip(character: int, dance: int = 0, canvas: Canvas = CANVAS, scene: int = 0, **more: object) -> Staged:
    return stage(character, dance, scene, canvas, TIMES, **more)  # type: ignore[arg-type]


def test_a_clip_has_the_same_bytes_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [_clip(seed, seed + 50, scene=seed) for seed in range(5)]
    alone = [film([clip])[0] for clip in clips]
    together = film(clips[::-1])[::-1]
    monkeypatch.setattr(sdf, "_CHUNK", 1)
    frame_by_frame = film(clips)
    for others in (together, frame_by_frame):
        for one, other in zip(alone, others, strict=True):
            assert all(
                np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rgb", "coverage", "labels")
            )


def test_a_seed_gives_the_same_clip_again_and_another_seed_another() -> None:
    def bytes_of(character: int, dance: int, scene: int) -> bytes:
        cast.cache_clear()
        return film([stage(character, dance, scene, CANVAS, TIMES)])[0].rgb.tobytes()

    first = bytes_of(1, 2, 3)
    assert first == bytes_of(1, 2, 3)
    assert len({first, bytes_of(9, 2, 3), bytes_of(1, 9, 3), bytes_of(1, 2, 9)}) == 4


def test_frames_of_a_clip_do_not_depend_on_which_others_are_asked_for() -> None:
    whole, part = stage(3, 4, 5, CANVAS, TIMES), stage(3, 4, 5, CANVAS, TIMES[2:4])
    assert np.array_equal(film([whole])[0].rgb[2:4], film([part])[0].rgb)


@pytest.mark.parametrize("family", FAMILIES)
def test_bones_keep_their_length_in_every_dance(family: str) -> None:
    times = np.linspace(0, 12, 150)
    for seed in range(12):
        who = random_character(seed, (family,))
        joints = pose(who, *random_dance(seed).at(times)).joints
        have = present(who)
        for first, second, a, b, c in CHAINS:
            if have[b]:
                for length, near, far in ((getattr(who, first), a, b), (getattr(who, second), b, c)):
                    found = np.linalg.norm(joints[:, far] - joints[:, near], axis=1)
                    np.testing.assert_allclose(found, length, rtol=1e-9)


def test_dances_stay_within_the_limits_of_joints_and_are_smooth() -> None:
    low, high = (np.array([LIMITS[name][i] for name in CHANNELS]) for i in (0, 1))
    times = np.arange(0, 10, 0.01)
    for seed in range(40):
        moving = random_dance(seed)
        rows, jump = moving.at(times)
        lifts = np.array([name.endswith("lift") for name in CHANNELS])
        assert ((rows >= low - 1e-9) & ((rows <= high + 1e-9) | lifts)).all()
        assert (jump >= 0).all()
        angles = [AT[name] for name in CHANNELS if LIMITS[name][1] > 5]
        assert np.abs(np.diff(rows[:, angles], axis=0)).max() < 25  # degrees in a hundredth of a second
        np.testing.assert_allclose(moving.at(times + moving.period)[0], rows, atol=1e-6)


def test_standing_feet_stand_and_none_goes_through_the_floor() -> None:
    times = np.arange(0, 8, 0.02)
    stood = 0
    for seed in range(25):
        who = random_character(seed, ("person", "animal", "robot"))
        rows, jump = random_dance(seed + 100).at(times)
        joints = pose(who, rows, jump).joints
        for side, ankle in (("left", sk.L_ANKLE), ("right", sk.R_ANKLE)):
            assert joints[:, ankle, 1].max() <= -ANKLE + 1e-9
            down = (rows[:, AT[f"{side}_lift"]] == 0) & (jump == 0)
            standing = down[1:] & down[:-1]
            assert np.abs(np.diff(joints[:, ankle], axis=0))[standing].max(initial=0) < 1e-9
            stood += int(standing.sum())
    assert stood > 0.25 * 25 * 2 * len(times)


def test_the_same_dance_on_two_bodies_has_the_same_directions_of_arms() -> None:
    rows, jump = random_dance(7).at(TIMES)
    bodies = [random_character(seed, ("person", "child", "mushroom", "robot")) for seed in range(6)]
    found = []
    for who in (one for one in bodies if one.has_arms):
        joints = pose(who, rows, jump).joints
        way = joints[:, sk.L_WRIST] - joints[:, sk.L_ELBOW]
        found.append(way / np.linalg.norm(way, axis=1, keepdims=True))
    assert len(found) >= 2
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], atol=1e-9)


def test_a_mirrored_dance_gives_mirrored_joints() -> None:
    who = random_character(3, ("person",))
    rows, jump = random_dance(4).at(TIMES)
    straight = pose(who, rows, jump).joints[..., :2]
    turned = pose(who, mirrored(rows), jump).joints[..., :2]
    np.testing.assert_allclose(turned[:, list(sk.mirror_index()[:24])] * (-1, 1), straight, atol=1e-9)


def test_a_character_looks_the_same_in_every_dance() -> None:
    one, other = _clip(11, 1), _clip(11, 2)
    assert np.array_equal(one.paint, other.paint)
    assert np.array_equal(one.geometry[0, :, 4:7].max(0), other.geometry[0, :, 4:7].max(0))
    assert not np.array_equal(one.geometry, other.geometry)


@pytest.mark.parametrize("family", FAMILIES)
def test_joints_lie_in_the_figure_and_limbs_where_their_labels_say(family: str) -> None:
    canvas = Canvas(160, 160)
    covered = {sk.L_ELBOW, sk.R_ELBOW, sk.L_WRIST, sk.R_WRIST, sk.L_KNEE, sk.R_KNEE, sk.L_ANKLE, sk.R_ANKLE, sk.NOSE}
    own = hits = 0
    for seed in range(6):
        clip = stage(seed, seed, seed, canvas, TIMES[:3], (family,))
        shot = film([clip])[0]
        have = present(clip.cast.who)
        for t in range(3):
            xy = clip.poses.keypoints[t, 0]
            assert (clip.poses.scores[t, 0, :24] == have).all()
            for joint in covered & set(np.flatnonzero(have).tolist()):
                x, y = (int(value) for value in xy[joint])
                if 0 <= x < 160 and 0 <= y < 160:
                    assert shot.coverage[t, y, x] >= 0.5, (seed, t, joint)
            if have[sk.L_ELBOW]:
                for a, b, label in ((sk.L_SHOULDER, sk.L_ELBOW, "left_upper_arm"), (sk.R_ELBOW, sk.R_WRIST,
                                                                                  "right_forearm")):  # fmt: skip
                    x, y = ((xy[a] + xy[b]) / 2).clip(0, 159).astype(int)
                    own += 1
                    hits += LABELS[shot.labels[t, y, x]] == label
    if own:
        assert hits > 0.5 * own  # the others are behind the torso or another limb


def test_coverage_is_the_share_of_each_pixel_that_a_finer_drawing_covers() -> None:
    for seed in range(6):
        clip = _clip(seed, seed)
        fine = clip.geometry.copy()
        fine[..., :7] *= 8
        blank = torch.zeros(len(fine), 512, 512, 3)
        looks = torch.from_numpy(clip.paint).expand(len(fine), -1, -1)
        drawn = sdf.draw(torch.from_numpy(fine), looks, blank, Canvas(512, 512))
        share = torch.nn.functional.avg_pool2d(drawn.coverage[:, None], 8)[:, 0].numpy()
        coverage = film([clip])[0].coverage
        assert np.abs(coverage - share).mean() < 0.004
        assert abs(coverage.sum() / share.sum() - 1) < 0.02


def test_labels_and_coverage_agree_and_only_the_figure_and_its_shadow_change_the_scene() -> None:
    for seed in range(8):
        clip = _clip(seed, seed, scene=seed)
        shot = film([clip])[0]
        assert ((shot.labels > 0) <= (shot.coverage >= 0.5)).all()
        assert ((shot.coverage >= 0.75) <= (shot.labels > 0)).mean() > 0.999
        behind = (np.clip(clip.background * 255 + 0.5, 0, 255)).astype(np.uint8)
        away = (shot.coverage == 0) & (np.arange(64)[None, :, None] < 56)  # the shadow lies lower
        assert (shot.rgb == behind)[away].all()
        assert away.mean() > 0.3


@pytest.mark.parametrize("canvas", [Canvas(64, 64), Canvas(64, 96)])
def test_figures_fill_their_share_of_the_canvas_and_stay_on_it(canvas: Canvas) -> None:
    clips = [stage(seed, seed + 9, 0, canvas, TIMES[:2]) for seed in range(70)]
    shares = np.array([shot.coverage.mean() for shot in film(clips)])
    wanted = (0.15, 0.35)
    assert ((shares > wanted[0]) & (shares < wanted[1])).mean() >= (0.9 if canvas.height == 64 else 0.75)
    inside = [
        ((clip.poses.keypoints >= 0) & (clip.poses.keypoints < canvas.size))[clip.poses.scores > 0].mean()
        for clip in clips
    ]
    assert np.mean(inside) > 0.99
    assert all(GIRTH[0] <= clip.cast.girth <= GIRTH[1] for clip in clips)


def test_limbs_of_a_character_have_colours_far_apart() -> None:
    limbs = [GROUPS.index(name) for name in ("torso", "right_arm", "left_arm", "right_leg", "left_leg")]
    for seed in range(60):
        colours = random_character(seed).colours[limbs]
        assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 0.2


def test_characters_scenes_and_dances_are_many() -> None:
    characters = [random_character(seed) for seed in range(300)]
    assert {who.family for who in characters} == set(FAMILIES)
    assert len({who.colours.tobytes() for who in characters}) == 300
    assert {who.has_arms for who in characters} == {who.has_legs for who in characters} == {True, False}
    assert len({who.hat for who in characters}) >= 8
    assert len({who.ears for who in characters}) >= 5
    assert len({background(seed, Canvas(16, 16)).tobytes() for seed in range(60)}) == 60
    assert len({random_dance(seed).keys.tobytes() for seed in range(60)}) == 60


def test_an_unknown_family_is_named_with_its_neighbour() -> None:
    with pytest.raises(UsageError, match=r"'animl'.*animal"):
        random_character(0, ("animl",))


def test_an_empty_batch_and_a_figure_far_off_the_canvas_are_drawn_as_nothing() -> None:
    assert film([]) == []
    clip = _clip(0)
    away = Staged(clip.cast, clip.canvas, clip.geometry + np.float32(1e4) * np.eye(8, dtype=np.float32)[[0, 2]].sum(0),
                  clip.paint, clip.background, clip.poses)  # fmt: skip
    assert film([away])[0].coverage.max() == 0
