"""The metrics that say whether a model has learned: each is perfect for the truth and low for who cheats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from animx.canvas import Canvas
from animx.errors import InputError
from animx_trainer.config import DataConfig, LogConfig, TrainConfig
from animx_trainer.proof import (
    LIMBS,
    Truth,
    colour_correlation,
    limb_colours,
    mask_iou,
    mean_colour_figure,
    moving_scores,
    paired,
    pose_swap,
    psnr,
    reference_swap,
    repeated,
)
from animx_trainer.sample import Sample
from animx_trainer.stage import Staged, film, stage

torch.set_num_threads(1)
CANVAS = Canvas(64, 64)
TIMES = np.array([0.2, 3.1, 3.4, 3.7, 4.0])
LIMBED = ("person", "child", "animal")


def _truth(character: int, dance: int, scene: int = 1) -> tuple[Truth, Staged]:
    staged = stage(character, dance, scene, CANVAS, TIMES, LIMBED)
    shot = film([staged])[0]
    frames = shot.rgb.astype(np.float64) / 255
    return Truth(frames[1:], shot.coverage[1:], shot.labels[1:], frames[0], shot.coverage[0]), staged


def test_psnr_is_that_of_its_definition_and_only_the_weighted_pixels_count() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, (3, 8, 8, 3))
    weight = np.zeros((3, 8, 8))
    weight[:, :4] = 1
    made = truth + 0.1
    assert psnr(made, truth) == pytest.approx(20)
    made[:, 4:] = 7
    assert psnr(made, truth, weight) == pytest.approx(20)
    made[:, :2] = truth[:, :2]
    assert psnr(made, truth, weight) == pytest.approx(20 + 10 * np.log10(2))
    assert psnr(truth, truth) == float("inf")
    with pytest.raises(InputError):
        psnr(made, truth, 0 * weight)


def test_repeating_scores_below_a_flat_figure_and_that_below_what_is_nearly_true() -> None:
    repeats, flats = [], []
    for seed in range(12):
        truth, _ = _truth(seed, seed + 40, seed)
        scores = moving_scores(mean_colour_figure(truth), truth)
        assert scores["over_mean"] == pytest.approx(0)
        repeats.append(scores["repeat"])
        flats.append(scores["mean_colour"])
        near = truth.frames + 0.02
        assert moving_scores(near, truth)["psnr"] > scores["mean_colour"] + 4
    assert np.mean(flats) > np.mean(repeats) + 0.3
    assert 6 < np.mean(repeats) < 18


def test_the_moving_region_leaves_the_background_out() -> None:
    truth, _ = _truth(3, 4)
    spoiled = np.where((truth.moving > 0)[..., None], truth.frames, 0.5)
    assert moving_scores(spoiled, truth)["psnr"] == float("inf")
    assert psnr(spoiled, truth.frames) < 40
    assert psnr(repeated(truth), truth.frames) > moving_scores(truth.frames, truth)["repeat"]


def test_limb_colours_follow_the_character_not_the_dance() -> None:
    one, _ = _truth(5, 1)
    same, _ = _truth(5, 2)
    colours = limb_colours(one.frames, one.labels)
    assert set(colours) <= set(LIMBS)
    assert len(colours) >= 6
    assert colour_correlation(colours, limb_colours(same.frames, same.labels)) > 0.9
    others = [limb_colours(*(lambda t: (t.frames, t.labels))(_truth(seed, 1)[0])) for seed in range(20, 50)]
    assert abs(np.nanmean([colour_correlation(colours, other) for other in others])) < 0.25


def test_a_swapped_reference_is_seen_in_the_colours_and_a_flat_figure_proves_nothing() -> None:
    old, _ = _truth(5, 1)
    new, _ = _truth(9, 1)
    followed = reference_swap(new.frames, new.labels, old, new)
    assert followed["new"] > 0.99
    assert followed["old"] < 0.6
    flat = reference_swap(np.full_like(new.frames, 0.5), new.labels, old, new)
    assert np.isnan(flat["new"])


def test_a_swapped_pose_is_seen_in_the_mask() -> None:
    wanted, other = [], []
    for seed in range(6):
        truth, staged = _truth(seed, seed + 7, seed)
        moved, _ = _truth(seed, seed + 70, seed)
        scores = pose_swap(truth.frames, staged.background, truth.coverage, moved.coverage)
        wanted.append(scores["wanted"])
        other.append(scores["shuffled"])
    assert np.mean(wanted) > 0.7
    assert np.mean(other) < np.mean(wanted) - 0.15


def test_iou_is_one_for_the_same_zero_for_apart_and_half_for_half() -> None:
    a = np.zeros((2, 4, 4))
    a[:, :2] = 1
    assert mask_iou(a, a) == 1
    assert mask_iou(a, 1 - a) == 0
    b = np.zeros((2, 4, 4))
    b[:, :1] = 1
    assert mask_iou(a, b) == mask_iou(b, a) == 0.5
    assert mask_iou(0 * a, 0 * a) == 1
    with pytest.raises(InputError):
        mask_iou(a, a[:1])


def test_paired_intervals_cover_the_mean_and_shrink_with_more_characters() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.normal(1, 1, 20), rng.normal(1, 1, 2000)
    mean, low, high = paired(many)
    assert low < mean < high
    assert low < 1.1
    assert high - low < (paired(few)[2] - paired(few)[1]) / 4
    with pytest.raises(InputError):
        paired(np.ones(1))


class Painter:
    """Stands in for a trained model: paints each sample by a rule."""

    checkpoint, step = Path("nowhere"), 0

    def __init__(self, rule: Callable[[Sample], np.ndarray]) -> None:
        self.rule = rule
        log = LogConfig(strip_steps=1)
        self.config = TrainConfig(data=DataConfig("synth", frames=3, size=(64, 64)), log=log)

    def frames(self, samples: Sequence[Sample], steps: int) -> list[np.ndarray]:
        return [self.rule(sample) for sample in samples]

    def through_codec(self, sample: Sample) -> np.ndarray:
        return true_frames(sample)


def true_frames(sample: Sample) -> np.ndarray:
    assert sample.video is not None
    return np.asarray(sample.video.transpose(0, 2, 3, 1), np.float64) * 0.5 + 0.5


def copied(sample: Sample) -> np.ndarray:
    reference = sample.reference.transpose(1, 2, 0).astype(np.float64) * 0.5 + 0.5
    return np.repeat(reference[None], sample.frames, 0)


def _rows(report: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["met"] for row in report["rows"]}


def test_who_paints_the_truth_passes_every_row_and_who_copies_the_reference_does_not() -> None:
    from animx_trainer.examine import examine, lines_of

    perfect, copying = Painter(true_frames), Painter(copied)
    report = examine(perfect, 16, against=copying)  # type: ignore[arg-type]
    rows = _rows(report)
    assert rows.pop("mask_elsewhere") == "out of reach", "who dances on the spot covers much of it in every pose"
    assert set(rows.values()) == {"yes"}, rows
    painters = {one["painter"]: one["psnr"]["mean"] for one in report["painters"]}
    assert painters["model"] == painters["codec alone"] == 100
    assert 8 < painters["reference repeated"] == painters["other model"] < painters["puppet"] + 6 < 40
    assert sum(one["n"] for one in report["families"].values()) == 16
    assert any("bone lengths" in what for what in report["not_measured"])
    assert len(lines_of(report)) > len(report["rows"]) + len(report["painters"])
    json.dumps(report, allow_nan=False)

    report = examine(copying, 4)  # type: ignore[arg-type]
    rows = _rows(report)
    assert rows["over_repeat"] == "no"
    assert rows["colours_of_new"] != "no", "it shows the colours of whatever it copies"
    assert "over_other_model" not in rows
    assert {row["name"]: row["mean"] for row in report["rows"]}["over_repeat"] == 0


def test_held_out_cases_are_the_same_for_every_model_and_show_what_they_say() -> None:
    from animx_trainer.held_out import draw_case

    one, again, other = (draw_case(number, Painter(copied).config.data) for number in (0, 0, 1))
    assert np.array_equal(one.clean.pose_images, again.clean.pose_images)
    assert not np.array_equal(one.clean.reference, other.clean.reference)
    assert np.allclose(true_frames(one.clean), one.truth.frames, atol=1e-6)
    assert np.allclose(true_frames(one.swapped), one.other.frames, atol=1e-6)
    assert np.array_equal(one.clean.clip[0], one.leaking.clip[0]), "the reference is seen by both"
    assert not np.array_equal(one.clean.clip[1:], one.leaking.clip[1:]), "but the answer by one only"
    assert np.array_equal(one.clean.pose_images[1:], one.swapped.pose_images[1:])


def test_a_truth_of_mixed_shapes_is_refused() -> None:
    truth, _ = _truth(0, 0)
    with pytest.raises(InputError, match="labels"):
        Truth(truth.frames, truth.coverage, truth.labels[1:], truth.reference, truth.reference_coverage)
