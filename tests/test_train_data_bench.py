"""`animx data bench`: figures behind their checks, of one's own clips or of drawn ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hall import animx, refused
from prepared import dataset

from animx.canvas import Canvas

pytest.importorskip("torch", reason="needs the 'model' extra")

from animx_trainer import data_bench, loader
from animx_trainer.data import clip_source, read_clip_poses

SMALL = ["--size", "48x64", "--frames", "4", "--batch", "2", "--workers", "1", "--steps", "4"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prepared clips."""
    return dataset(tmp_path_factory.mktemp("bench") / "clips", [9, 9, 9])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_bench, "ROUNDS", 1)


def bench(*arguments: str) -> dict:
    ran = animx("data", "bench", *SMALL, *arguments, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["machine"]["cores"] >= 1
    return found


def test_a_slow_consumer_waits_less_than_a_greedy_one(clips: Path) -> None:
    slow, greedy = bench(str(clips), "--step-ms", "150"), bench(str(clips), "--step-ms", "0")
    assert greedy["ratios"]["waiting"] == 1
    assert slow["ratios"]["waiting"] < 0.8
    for found in (slow, greedy):
        assert min(found["speeds"].values()) > 0
        assert found["checks"] == {"poses_drawn_as_one_by_one": 9, "steps_of_workers_as_here": 2}
        assert found["settings"]["size"] == [48, 64]


def test_without_clips_people_are_drawn(tmp_path: Path) -> None:
    found = bench("--step-ms", "1")
    assert found["checks"]["poses_drawn_as_one_by_one"] == 40
    canvas = Canvas(48, 64)
    made = data_bench.make_clips(tmp_path / "drawn", canvas, 5, clips=2)
    source = clip_source(made, 4, canvas.size)
    assert source.sample(1, 0).video.shape == (4, 3, 64, 48)
    poses = read_clip_poses(source.dataset.clip(0), canvas)
    seen = poses.scores[:, 0] > 0
    assert seen[:, 92:134].any(axis=1).all(), "hands are part of what is drawn"
    reach = np.linalg.norm(poses.keypoints[:, 0, 92:113] - poses.keypoints[:, 0, 7:8], axis=-1)
    assert (reach <= canvas.height / 4).all(), "fingers stay near their wrist"


def test_no_speed_is_shown_when_poses_are_drawn_wrongly(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = data_bench.draw_poses
    monkeypatch.setattr(data_bench, "draw_poses", lambda *a, **k: real(*a, **k) ^ 1)
    refused(animx("data", "bench", *SMALL, clips), 1, "differ from poses drawn one by one")


def test_no_speed_is_shown_when_workers_make_other_samples(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loader.unpack

    def spoiled(packed: loader.Packed, ring: loader.Ring | None = None) -> list:
        samples = real(packed, ring)
        samples[0].reference[:] = 0
        return samples

    monkeypatch.setattr(loader, "unpack", spoiled)
    with pytest.raises(data_bench.CheckError, match="workers make other samples"):
        data_bench.measure(clip_source(clips, 4, (48, 64)), data_bench.Feed(batch=2, workers=1, steps=4))


def test_a_folder_without_clips_is_named(tmp_path: Path) -> None:
    refused(animx("data", "bench", tmp_path / "none"), 3, "no such folder")
