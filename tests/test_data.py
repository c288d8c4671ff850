"""Prepared clips: what is written is read again, damage is named, and samples are what they say."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from prepared import dataset, picture, poses_of, stored
from skeletons import dancing

from animx.canvas import Canvas
from animx.errors import InputError, UsageError
from animx.pose.sequence import PoseSequence
from animx_trainer.data import ClipData, clip_source, fitted
from animx_trainer.sample import ClipSource, Sample
from animx_trainer.shards import index_of, open_dataset, read_index, write_dataset, write_folder, write_tar

SIZE = (48, 64)
PLAIN = {"epi": {"base": "epi", "without": ["epi"]}, "clip_size": 32, "pose_jpeg": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips in three tars.  Do not write into it."""
    return dataset(tmp_path_factory.mktemp("data") / "set", [20, 12, 30, 9, 25, 16, 8])


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "set"))


def source(folder: Path, frames: int = 8, **options: object) -> ClipData:
    return clip_source(folder, frames, SIZE, {**PLAIN, **options})


# ---- shards --------------------------------------------------------------------------------------------------------


def test_a_tar_gives_back_every_file_and_is_the_same_each_time(tmp_path: Path) -> None:
    clips = [stored(0, 5), stored(1, 3)]
    write_tar(tmp_path / "a.tar", clips)
    write_tar(tmp_path / "b.tar", clips)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    shard = read_index(index_of(tmp_path / "a.tar"), tmp_path / "a.tar")
    assert [shard.clip(i).contents() for i in (0, 1)] == clips


def test_tar_and_folder_hold_the_same_clips(tmp_path: Path, folder: Path) -> None:
    plain = tmp_path / "plain"
    for number, frames in enumerate([20, 12]):
        write_folder(plain / "clips", stored(number, frames))
    write_dataset(plain, {"canvas": list(SIZE), "clips": 2, "shards": ["clips/clip-000", "clips/clip-001"]})
    one, two = source(plain), source(folder)
    for index in (0, 1):
        assert same(one.sample(index, 3), two.sample(index, 3))


def test_webdataset_reads_the_tars(folder: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="needs the 'train' extra")
    samples = list(wds.WebDataset(str(folder / "clips-00000.tar"), shardshuffle=False))
    assert [one["__key__"] for one in samples] == ["clip-000", "clip-001", "clip-002"]
    assert json.loads(samples[1]["meta.json"])["frames"] == 12
    assert samples[1]["00011.png"] == open_dataset(folder).clip(1).read("00011.png")


def test_any_tar_program_reads_the_tars(folder: Path) -> None:
    with tarfile.open(folder / "clips-00002.tar") as tar:
        names = tar.getnames()
    assert names[:3] == ["clip-006.meta.json", "clip-006.pose.npz", "clip-006.00000.png"]


# ---- samples -------------------------------------------------------------------------------------------------------


def numbers(sample: Sample) -> tuple[list[int], list[int], int]:
    """(clip, frame) of each picture of a sample, and the frame of the reference."""
    assert sample.video is not None
    red, green = (np.rint((sample.video[:, c].mean(axis=(1, 2)) + 1) * 127.5) for c in (0, 1))
    reference = np.rint((sample.reference[1].mean() + 1) * 127.5 / 3)
    return (red / 8).astype(int).tolist(), np.rint(green / 3).astype(int).tolist(), int(reference)


def same(a: Sample, b: Sample) -> bool:
    arrays = ("reference", "pose_images", "keypoints", "clip", "video", "latents")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays if getattr(a, name) is not None)


def test_a_sample_has_the_shapes_and_ranges_of_the_contract(folder: Path) -> None:
    made = source(folder)
    assert isinstance(made, ClipSource)
    sample = made.sample(0, 5)
    assert sample.video is not None
    assert sample.video.shape == (8, 3, 64, 48)
    assert sample.reference.shape == (3, 64, 48)
    assert sample.pose_images.shape == (9, 3, 64, 48)
    assert sample.keypoints.shape == (9, 2, 18)
    assert sample.clip.shape == (9, 3, 32, 32)
    for array, low, high in ((sample.video, -1, 1), (sample.pose_images, 0, 1), (sample.clip, 0, 1)):
        assert array.dtype == np.float32
        assert low <= array.min() < array.max() <= high


def test_segments_are_evenly_spaced_and_every_stride_and_start_comes(folder: Path) -> None:
    made = source(folder, stride=3)
    seen, references = set(), set()
    for seed in range(120):
        clips, frames, reference = numbers(made.sample(2, seed))  # clip 2 has 30 frames
        steps = set(np.diff(frames).tolist())
        assert set(clips) == {2}
        assert len(steps) == 1
        seen.add((steps.pop(), frames[0] == 0, frames[-1] == 29))
        references.add(reference)
    assert {stride for stride, _, _ in seen} == {1, 2, 3}
    assert len(references) > 25
    assert any(first for _, first, _ in seen)
    assert any(last for _, _, last in seen)


def test_a_short_clip_takes_the_strides_that_fit(folder: Path) -> None:
    made = source(folder, stride=4)
    for seed in range(20):
        _, frames, _ = numbers(made.sample(3, seed))  # 9 frames
        assert set(np.diff(frames).tolist()) == {1}


def test_one_frame_serves_reference_picture_image_vector_and_reference_pose(folder: Path) -> None:
    for option in ("raw", "transformed"):
        epi = {"base": "epi-misaligned", "keypoints": option}
        made, poses = source(folder, epi=epi), poses_of(2, 30)
        for seed in range(5):
            sample = made.sample(2, seed)
            _, _, reference = numbers(sample)
            shown = picture(2, reference)
            assert np.abs((sample.reference.transpose(1, 2, 0) + 1) * 127.5 - shown).max() < 0.01
            small = fitted(shown, Canvas(32, 32)).transpose(2, 0, 1) / 255
            assert np.abs(sample.clip[0] - small).max() < 1e-6
            expected = poses.keypoints[reference, 0, :18].T / np.array([[48], [64]])
            assert np.abs(sample.keypoints[0] - expected).max() < 1e-6
            plain = source(folder).sample(2, seed)
            assert np.array_equal(sample.pose_images[0], plain.pose_images[0])  # never changed by EPI


def test_epi_changes_drawn_poses_and_the_keypoints_only_when_told(folder: Path) -> None:
    made = {
        option: source(folder, epi={"base": "epi-misaligned", "keypoints": option}).sample(2, 1)
        for option in ("raw", "transformed")
    }
    plain = source(folder).sample(2, 1)
    assert np.array_equal(made["raw"].keypoints, plain.keypoints)
    assert not np.array_equal(made["transformed"].keypoints[1:], plain.keypoints[1:])
    for sample in made.values():
        assert np.array_equal(sample.video, plain.video)
        assert (sample.pose_images[1:] != plain.pose_images[1:]).mean() > 0.02


def test_samples_are_pure_functions_of_index_and_seed(folder: Path) -> None:
    options = {"epi": "epi"}
    one, two = source(folder, **options), source(folder, **options)
    first = one.sample(1, 9)
    two.sample(4, 2)
    assert same(first, two.sample(1, 9))
    assert not same(first, two.sample(1, 10))


def test_poses_are_drawn_where_the_keypoints_are(folder: Path) -> None:
    sample = source(folder, pose_scale=4).sample(0, 0)
    for t in range(9):
        for x, y in sample.keypoints[t].T:
            column, row = int(x * 48), int(y * 64)
            if 0 <= column < 48 and 0 <= row < 64:
                near = sample.pose_images[t][:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                assert near.max() > 0.1


def test_short_clips_are_left_out_and_counted(folder: Path) -> None:
    made = source(folder, frames=13)
    assert (len(made), made.short) == (4, 3)
    with pytest.raises(InputError, match=r"shorter than 31 frames; the longest has 30"):
        source(folder, frames=31)


def test_another_size_than_prepared_is_resized(folder: Path) -> None:
    sample = clip_source(folder, 8, (24, 32), PLAIN).sample(0, 0)
    assert sample.video is not None
    assert sample.video.shape == (8, 3, 32, 24)
    assert np.allclose(sample.keypoints, source(folder).sample(0, 0).keypoints, atol=1e-6)


def test_the_trainer_opens_prepared_clips_by_config(folder: Path) -> None:
    from animx_trainer.config import DataConfig
    from animx_trainer.sources import open_source

    opened = open_source(DataConfig("shards", str(folder), 8, SIZE, options=PLAIN), seed=0)
    assert same(opened.sample(0, 1), source(folder).sample(0, 1))
    with pytest.raises(UsageError, match="animx data prepare"):
        open_source(DataConfig("shards"), seed=0)
    with pytest.raises(UsageError, match="Did you mean 'stride'"):
        DataConfig("shards", str(folder), options={"strides": 2})


def test_the_config_of_the_documentation_is_one() -> None:
    import re

    import yaml

    from animx.config import build
    from animx_trainer.config import TrainConfig
    from animx_trainer.data import data_options
    from animx_trainer.pose_augment import load_epi

    text = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text()
    block, *_ = re.findall(r"```yaml\n(.*?)```", text, re.S)
    config = build(TrainConfig, yaml.safe_load(block), "data.md")
    options = data_options(config.data.options)
    assert load_epi(options.epi).without == ("drop",)
    assert options.pool == "pool.npz"


# ---- bad data ------------------------------------------------------------------------------------------------------


def test_missing_empty_and_unfinished_folders_are_told_apart(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        source(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no prepared data"):
        source(tmp_path / "empty")
    (copy / "dataset.json").unlink()
    (copy / ".prepare").mkdir()
    with pytest.raises(InputError, match="run the same command again"):
        source(copy)


@pytest.mark.parametrize("damage", ["cut", "gone", "index cut", "index gone", "table", "count"])
def test_a_corrupt_shard_is_named_before_training_begins(copy: Path, damage: str) -> None:
    tar = copy / "clips-00001.tar"
    index, table = index_of(tar), copy / "dataset.json"
    if damage == "cut":
        tar.write_bytes(tar.read_bytes()[:-1000])
    elif damage == "index cut":
        index.write_bytes(index.read_bytes()[:300])
    elif damage == "table":
        table.write_text("{")
    elif damage == "count":
        table.write_text(table.read_text().replace('"clips": 7', '"clips": 8'))
    else:
        (tar if damage == "gone" else index).unlink()
    with pytest.raises(InputError, match=r"again") as refused:
        source(copy)
    assert ("dataset.json" if damage in ("table", "count") else "clips-00001") in str(refused.value)


@pytest.mark.parametrize(
    ("lengths", "says"),
    [([20, 12], "2 entries for 7"), (7, "no list"), (["a"] * 7, "no list"), ([20.5] * 7, "no list"),
     ([True] * 7, "no list"), ([20, 12, 30, 9, 25, 16, 0], "no list"), ([20, 12, 30, 9, 25, 16, 800], "more frames"),
     ([20, 12, 30, 9, 25, 16, 7], "adds up to 119, but frames says 120"), (None, "no list")],
)  # fmt: skip
def test_a_table_of_lengths_that_cannot_be_is_refused(copy: Path, lengths: object, says: str) -> None:
    table = copy / "dataset.json"
    about = json.loads(table.read_text())
    table.write_text(json.dumps({**about, "frames": 120, "frames_of_clips": lengths}))
    with pytest.raises(InputError, match=rf"dataset\.json: frames_of_clips .*{says}.*again"):
        source(copy)


def test_a_clip_shorter_than_the_table_says_is_named_when_it_is_met(copy: Path) -> None:
    table = copy / "dataset.json"
    about = json.loads(table.read_text())
    table.write_text(json.dumps({**about, "frames_of_clips": [20, 12, 30, 9, 25, 16, 9]}))
    with pytest.raises(InputError, match=r"clip-006: 8 frames, but dataset\.json says more"):
        source(copy, 9).sample(6, 0)


def test_one_flipped_bit_is_found_where_it_is(copy: Path) -> None:
    tar = copy / "clips-00000.tar"
    data = bytearray(tar.read_bytes())
    where = open_dataset(copy).clip(1).files["00005.png"]
    data[where.offset + where.size // 2] ^= 1
    tar.write_bytes(data)
    clip = open_dataset(copy).clip(1)
    clip.read("00004.png")
    with pytest.raises(InputError, match=r"clips-00000\.tar, clip clip-001: 00005\.png is damaged"):
        clip.read("00005.png")


def test_poses_that_do_not_fit_and_nan_are_refused_by_name(tmp_path: Path) -> None:
    two = PoseSequence(*(np.concatenate([a, a], 1) for a in (dancing(9).keypoints, dancing(9).scores)), Canvas(48, 64))
    short = poses_of(0, 8)
    for poses, says in ((two, "2 persons"), (short, "9 frames, but 8 poses")):
        folder = tmp_path / says[:1]
        folder.mkdir()
        write_tar(folder / "a.tar", [stored(0, 9, poses=poses)])
        write_dataset(folder, {"clips": 1, "canvas": list(SIZE), "shards": ["a.tar"]})
        with pytest.raises(InputError, match=says):
            clip_source(folder, 8, SIZE, PLAIN).sample(0, 0)
    good = stored(0, 9)
    with np.load(io.BytesIO(good.files["pose.npz"])) as found:
        arrays = {name: found[name].copy() for name in found.files}
    arrays["keypoints"][3, 0, 5] = np.nan
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    folder = tmp_path / "nan"
    write_folder(folder / "clips", type(good)(good.key, {**good.files, "pose.npz": sink.getvalue()}))
    write_dataset(folder, {"clips": 1, "canvas": list(SIZE), "shards": [f"clips/{good.key}"]})
    with pytest.raises(InputError, match=r"clip-000.*pose\.npz"):
        clip_source(folder, 8, SIZE, PLAIN).sample(0, 0)


def test_keys_are_plain_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="letters"):
        type(stored(0, 1))("../a", {})
