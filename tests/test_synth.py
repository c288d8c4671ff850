"""Drawn clips for training: a source without files, and `animx data synth`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hall import animx

from animx.errors import UsageError
from animx.pose.formats import read_poses
from animx.video import open_frames
from animx_trainer import synth_files
from animx_trainer.batch import collate
from animx_trainer.config import DataConfig
from animx_trainer.data import clip_source, read_clip_poses
from animx_trainer.sample import Sample
from animx_trainer.shards import open_dataset
from animx_trainer.sources import open_source, serial_batches
from animx_trainer.synth import SynthSource, recipe
from animx_trainer.synth_files import SynthFiles, draw_files, key_of

torch.set_num_threads(1)
RAW: dict[str, Any] = {"epi": {"without": ["epi"]}, "clip_size": 32}


def _source(seed: int = 0, frames: int = 3, **options: Any) -> SynthSource:
    found = open_source(DataConfig("synth", frames=frames, size=(64, 64), options={**RAW, **options}), seed)
    assert isinstance(found, SynthSource)
    return found


def _same(one: Sample, other: Sample) -> bool:
    names = ("reference", "pose_images", "keypoints", "clip", "video")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_a_sample_is_a_pure_function_of_index_and_seeds() -> None:
    first = _source().sample(5, 11)
    assert _same(first, _source().sample(5, 11))
    for other in (_source().sample(6, 11), _source().sample(5, 12), _source(seed=1).sample(5, 11)):
        assert not np.array_equal(first.video, other.video)  # type: ignore[arg-type]


def test_samples_fit_the_batch_of_training() -> None:
    batch = next(serial_batches(_source(), seed=3, batch=2))
    made = collate(batch)
    assert made.video is not None
    assert made.video.shape == (2, 3, 3, 64, 64)
    assert made.pose_images.shape == (2, 4, 3, 64, 64)
    assert made.clip.shape == (2, 4, 3, 32, 32)
    assert -1 <= made.video.min() < -0.2 < 0.2 < made.video.max() <= 1
    assert made.pose_images.amax(dim=(2, 3, 4)).min() > 0.3, "a pose is drawn in every slot"


def test_an_epoch_is_as_long_as_asked_and_never_in_memory() -> None:
    assert len(_source()) == 1_000_000
    assert len(_source(clips=17)) == 17


def test_keypoints_without_augmentation_are_the_true_joints_and_the_reference_is_slot_0() -> None:
    source = _source(families=["robot"])
    sample = source.sample(2, 4)
    staged, shot = source.draw(2, 4)
    true = staged.poses.keypoints[:, 0, :18].transpose(0, 2, 1) / 64
    seen = sample.keypoints[:, 0] >= 0
    np.testing.assert_allclose(sample.keypoints[:, 0][seen], true[:, 0][seen], atol=1e-6)
    assert seen.mean() > 0.6
    np.testing.assert_allclose(sample.reference.transpose(1, 2, 0), shot.rgb[0] / 127.5 - 1, atol=1e-5)
    np.testing.assert_allclose(sample.video[0].transpose(1, 2, 0), shot.rgb[1] / 127.5 - 1, atol=1e-5)  # type: ignore[index]


def test_the_pose_indicator_changes_driving_poses_only() -> None:
    plain = _source(families=["person"]).sample(1, 2)
    moved = _source(families=["person"], epi={"base": "epi-misaligned"}).sample(1, 2)
    assert np.array_equal(plain.video, moved.video)  # type: ignore[arg-type]
    assert np.array_equal(plain.pose_images[0], moved.pose_images[0])
    assert not np.array_equal(plain.pose_images[1:], moved.pose_images[1:])


def test_crossed_samples_show_one_body_and_the_poses_of_another_in_the_same_dance() -> None:
    own, crossed = _source(families=["person", "child"]), _source(families=["person", "child"], cross=1.0)
    one, other = own.sample(3, 9), crossed.sample(3, 9)
    assert np.array_equal(one.video, other.video)  # type: ignore[arg-type]
    assert np.array_equal(one.keypoints[0], other.keypoints[0])
    assert np.abs(one.keypoints[1:] - other.keypoints[1:]).max() > 0.01
    forearm = [crossed_.keypoints[1:, :, 7] - crossed_.keypoints[1:, :, 6] for crossed_ in (one, other)]
    ways = [way / np.linalg.norm(way, axis=1, keepdims=True) for way in forearm]
    np.testing.assert_allclose(ways[0], ways[1], atol=1e-4)


def test_what_a_source_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match="familes"):
        _source(familes=["person"])
    with pytest.raises(UsageError, match=r"'persn'.*person"):
        _source(families=["persn"])


def test_the_config_of_the_documentation_opens() -> None:
    import re

    import yaml

    from animx.config import build
    from animx_trainer.config import TrainConfig

    text = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text()
    (block,) = [one for one in re.findall(r"```yaml\n(.*?)```", text, re.S) if "source: synth" in one]
    config = build(TrainConfig, yaml.safe_load(block), "data.md")
    source = open_source(config.data, 0)
    assert isinstance(source, SynthSource)
    assert source.options.cross == 0.5
    assert source.epi.config.keypoints == "transformed"


# ---- files ---------------------------------------------------------------------------------------------------------

SMALL = SynthFiles(clips=5, size=(48, 64), frames=4, seed=3)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_drawn_shards_are_clips_that_training_reads(tmp_path: Path) -> None:
    draw_files(tmp_path / "d", SMALL)
    dataset = open_dataset(tmp_path / "d")
    assert len(dataset) == 5
    clip = dataset.clip(1)
    made = recipe(3, 1)
    assert (clip.meta["character"], clip.meta["dance"], clip.meta["scene"]) == (made.character, made.dance, made.scene)
    poses = read_clip_poses(clip, SMALL.canvas)
    mask, labels = (
        cv2.imdecode(np.frombuffer(clip.read(f"{name}.png"), np.uint8), cv2.IMREAD_GRAYSCALE).reshape(4, 64, 48)
        for name in ("mask", "labels")
    )
    assert ((labels > 0) <= (mask >= 127)).all()
    for t in range(4):
        for joint in np.flatnonzero(poses.scores[t, 0] > 0):
            x, y = poses.keypoints[t, 0, joint].astype(int)
            if joint in (4, 7, 10, 13) and 0 <= x < 48 and 0 <= y < 64:
                assert mask[t, y, x] >= 127
    sample = clip_source(tmp_path / "d", 4, (48, 64), {"epi": {"without": ["epi"]}, "clip_size": 32}).sample(1, 0)
    assert sample.video is not None
    assert sample.video.shape == (4, 3, 64, 48)


def test_drawing_goes_on_after_any_stop_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synth_files, "TAR_CLIPS", 2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    draw_files(whole, SMALL)
    monkeypatch.setattr(synth_files, "BATCH_PIXELS", 1)

    def stop(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_files(stopped, SMALL, on_progress=stop)
    first = (stopped / "clips-00000.tar").stat().st_mtime_ns
    with pytest.raises(UsageError, match="other options"):
        draw_files(stopped, replace(SMALL, seed=4))
    draw_files(stopped, SMALL)
    assert _bytes(stopped) == _bytes(whole)
    assert (stopped / "clips-00000.tar").stat().st_mtime_ns == first
    with pytest.raises(UsageError, match="finished"):
        draw_files(stopped, SMALL)


def test_folders_hold_what_tars_hold_and_more_clips_begin_with_the_same(tmp_path: Path) -> None:
    draw_files(tmp_path / "tar", SMALL)
    draw_files(tmp_path / "folder", replace(SMALL, format="folder", clips=3))
    tars, folders = open_dataset(tmp_path / "tar"), open_dataset(tmp_path / "folder")
    for number in range(3):
        assert tars.clip(number).contents() == folders.clip(number).contents()
        assert tars.clip(number).key == key_of(number)
    assert tars.clip(0).read("00000.png") != tars.clip(1).read("00000.png")


def test_overwriting_leaves_what_others_put_there(tmp_path: Path) -> None:
    one = replace(SMALL, clips=1)
    draw_files(tmp_path / "d", one)
    (tmp_path / "d" / "notes.txt").write_text("mine")
    draw_files(tmp_path / "d", replace(one, seed=9), overwrite=True)
    assert (tmp_path / "d" / "notes.txt").read_text() == "mine"
    assert open_dataset(tmp_path / "d").clip(0).meta["character"] == recipe(9, 0).character
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other things"):
        draw_files(tmp_path / "other", one)


def test_the_command_draws_videos_with_poses(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from animx_trainer.data_command import data

    args = ["synth", "-o", str(tmp_path / "d"), "-N", "2", "--size", "64x64", "--frames", "5", "--format", "mp4",
            "--families", "animal,robot"]  # fmt: skip
    result = CliRunner().invoke(data, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "d" / "clips.json").read_text())
    assert about["shards"] == ["drawn-00000000.mp4", "drawn-00000001.mp4"]
    assert len(list(open_frames(tmp_path / "d" / "drawn-00000001.mp4"))) == 5
    assert read_poses(tmp_path / "d" / "drawn-00000001.pose.npz").frames == 5
    assert CliRunner().invoke(data, args).exit_code != 0, "a finished folder is not drawn over"


def test_videos_of_odd_sides_are_refused_because_their_masks_would_not_fit(tmp_path: Path) -> None:
    ran = animx("data", "synth", "-o", str(tmp_path / "d"), "-N", "1", "--size", "63x64", "--format", "mp4")
    assert ran.code == 2
    assert "even sides" in ran.error
    assert not (tmp_path / "d").exists()


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device nonsense"):
        draw_files(tmp_path / "d", SMALL, device="nonsense")
    assert not (tmp_path / "d").exists()
