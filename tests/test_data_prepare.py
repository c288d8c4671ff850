"""Preparing data: cuts, person checks, what is dropped and why; killed and resumed it loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import write_clip
from prepared import block_frame, block_video, install_backend
from skeletons import dancing

from animx import atomic, plugins
from animx.canvas import Canvas
from animx.errors import BatchError, InputError, NoFigureError, OutputError, UsageError, WeightsError
from animx.pose.sequence import PoseSequence
from animx_trainer import one_video, prepare
from animx_trainer.one_video import Cutting
from animx_trainer.prepare import PrepareOptions
from animx_trainer.quality import Checks, Kept, divided, judge
from animx_trainer.shards import open_dataset
from animx_trainer.shots import CutFinder

ROOT = Path(__file__).resolve().parents[1]
CHECKS = Checks(min_frames=12, max_frames=40)
OPTIONS = PrepareOptions(Cutting(size=(48, 64), backend="blocks", checks=CHECKS), shard_mb=1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the pose backend `blocks`."""
    return install_backend(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(autouse=True)
def blocks(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend is installed: found through the plugin door, in worker processes too."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("ANIMX_PLUGINS", raising=False)
    plugins.find.cache_clear()
    one_video._backend.cache_clear()
    yield
    plugins.find.cache_clear()
    one_video._backend.cache_clear()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos: two shots, one long one, two persons for a while, nobody, and text with a video's name."""
    folder = tmp_path_factory.mktemp("videos")
    block_video(folder / "a two shots.mp4", [(30, {}), (24, {"ground": 130}), (6, {"ground": 20})])
    block_video(folder / "b.long.mp4", [(90, {})])
    block_video(folder / "c.mp4", [(20, {}), (10, {"second": 130}), (20, {})])
    block_video(folder / "d.mp4", [(20, {"height": 0})])
    (folder / "e.mp4").write_text("no video")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def expected(site: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("expected") / "set"
    sys.path.insert(0, str(site))
    try:
        plugins.find.cache_clear()
        prepare.prepare([videos], out, OPTIONS)
    finally:
        sys.path.remove(str(site))
    return files(out)


# ---- cuts ----------------------------------------------------------------------------------------------------------


def noise(seed: int, brightness: int = 0) -> np.ndarray:
    import cv2

    small = np.random.default_rng(seed).integers(0, 200, (6, 6, 3), np.uint8) + np.uint8(brightness)
    return np.asarray(cv2.resize(small, (96, 96), interpolation=cv2.INTER_CUBIC), np.uint8)


def cuts(frames: list[np.ndarray]) -> list[int]:
    finder = CutFinder()
    for frame in frames:
        finder.add(frame)
    return finder.cuts()


def test_cuts_are_found_to_the_frame() -> None:
    assert cuts([noise(0)] * 12 + [noise(1)] * 3 + [noise(2)] * 20 + [noise(3)]) == [12, 15, 35]


def test_a_flash_a_pan_and_a_fade_are_no_cuts() -> None:
    white = np.full((96, 96, 3), 255, np.uint8)
    assert cuts([noise(0)] * 10 + [white] + [noise(0)] * 10) == []
    wide = np.concatenate([noise(seed) for seed in range(6)], axis=1)
    assert cuts([wide[:, x : x + 96] for x in range(0, 480, 12)]) == []
    assert cuts([(noise(0) * (k / 30)).astype(np.uint8) for k in range(30, -1, -1)]) == []


def test_cuts_of_real_clips_spliced_together(shared: Path) -> None:
    from itertools import islice

    from animx.video import open_frames

    finder, true = CutFinder(), []
    for name, count in (("drive_pink", 24), ("drive_sea", 30), ("drive_room", 24), ("drive_kick", 20)):
        true.append(len(finder.changes))
        for frame in islice(open_frames(shared / "data" / f"{name}.mp4", max_side=320), count):
            finder.add(frame.pixels)
    assert finder.cuts() == true[1:]


# ---- judging frames ------------------------------------------------------------------------------------------------


def verdict(poses: PoseSequence, **checks: float) -> tuple[list[Kept], list[str]]:
    kept, dropped = judge(poses, Canvas(512, 768), Checks(**{"min_frames": 10, "max_frames": 100, **checks}))
    return kept, [one.why for one in dropped]


def test_a_whole_moving_figure_is_kept_entirely() -> None:
    kept, dropped = verdict(dancing(40))
    assert [(one.first, one.last) for one in kept] == [(0, 40)]
    assert not dropped


def test_each_reason_drops_what_it_names_and_nothing_else() -> None:
    good = dancing(40)
    points, scores = good.keypoints, good.scores
    gap = scores.copy()
    gap[15:18] = 0
    kept, why = verdict(PoseSequence(points, gap, good.canvas))
    assert [(one.first, one.last) for one in kept] == [(0, 15), (18, 40)]
    assert why == ["no whole figure is seen"]
    for changed, reason in (
        (points * 0.2 + 200, "too small"),
        (np.repeat(points[:1], 40, axis=0), "hardly anything moves"),
        (points * 2 - [256, 500], "does not fit"),
        (np.where((np.arange(40) % 4 == 0)[:, None, None, None], points + [0, 200], points), "jump"),
    ):
        kept, why = verdict(PoseSequence(changed, scores, good.canvas))
        assert not kept
        assert [reason in one for one in why] == [True], (reason, why)


def test_a_second_person_spoils_its_frames_only_when_it_is_large() -> None:
    one = dancing(40)
    for size, spoiled in ((0.9, True), (0.2, False)):
        points = np.concatenate([one.keypoints, one.keypoints * size], axis=1)
        scores = np.concatenate([one.scores, one.scores], axis=1)
        scores[:20, 1] = 0
        kept, why = verdict(PoseSequence(points, scores, one.canvas))
        assert [(clip.first, clip.last) for clip in kept] == ([(0, 20)] if spoiled else [(0, 40)])
        assert why == (["a second person is in the picture"] if spoiled else [])


def test_long_ranges_are_divided_into_equal_parts_and_nothing_is_lost() -> None:
    for length in range(10, 400):
        parts = divided(5, 5 + length, 50, 10)
        assert parts[0][0] == 5
        assert parts[-1][1] == 5 + length
        assert all(a[1] == b[0] for a, b in pairwise(parts))
        assert all(10 <= b - a <= 51 for a, b in parts)


def test_the_crop_follows_the_figure() -> None:
    poses = dancing(20)
    wide = Canvas(1600, 900)
    beside = PoseSequence(poses.keypoints + [900, 60], poses.scores, wide)
    (clip,), dropped = judge(beside, Canvas(512, 768), Checks(min_frames=10))
    assert not dropped
    body = clip.poses.keypoints[:, 0, :14]
    assert ((body >= 0) & (body <= [512, 768])).all()
    assert abs(body[..., 0].mean() - 256) < 60


# ---- the whole command ---------------------------------------------------------------------------------------------


def test_clips_are_where_the_videos_say_and_the_report_tells_the_rest(expected: dict[str, bytes]) -> None:
    report = json.loads(expected["report.json"])
    clips = {Path(row["video"]).name: [(c["from"], c["frames"]) for c in row["clips"]] for row in report["per_video"]}
    assert clips == {
        "a two shots.mp4": [(0, 30), (30, 24)], "b.long.mp4": [(0, 30), (30, 30), (60, 30)],
        "c.mp4": [(0, 20), (30, 20)], "d.mp4": [], "e.mp4": [],
    }  # fmt: skip
    assert report["dropped"] == {
        "shorter than 12 frames": 1, "a second person is in the picture": 1, "nobody is found": 1,
        "a video that cannot be used": 1,
    }  # fmt: skip
    assert report["frames"] + sum(report["frames_dropped"].values()) == report["frames_read"]
    assert not any(name.startswith(".prepare") for name in expected)


def test_the_pictures_of_a_clip_are_the_frames_of_its_poses(
    expected: dict[str, bytes], tmp_path: Path, videos: Path
) -> None:
    from animx_trainer.data import decode_picture, read_clip_poses

    for name, data in expected.items():
        (tmp_path / name).write_bytes(data)
    found = open_dataset(tmp_path)
    for number in range(len(found)):
        clip = found.clip(number)
        poses = read_clip_poses(clip, Canvas(48, 64))
        for t, name in enumerate(clip.pictures):
            middle = poses.keypoints[t, 0, 1, 0]  # the neck is over the middle of the white block
            columns = np.flatnonzero((decode_picture(clip, name).min(axis=2) > 150).any(axis=0))
            assert abs((columns.min() + columns.max() + 1) / 2 - middle) < 1.5, (str(clip), name)


def test_workers_and_the_folder_format_change_no_clip(expected: dict[str, bytes], videos: Path, tmp_path: Path) -> None:
    prepare.prepare([videos], tmp_path / "two", OPTIONS, workers=2)
    assert files(tmp_path / "two") == expected
    plain = PrepareOptions(OPTIONS.cutting, "folder")
    prepare.prepare([videos], tmp_path / "plain", plain)
    for name, data in expected.items():
        (tmp_path / name).write_bytes(data)
    tars, folders = open_dataset(tmp_path), open_dataset(tmp_path / "plain")
    assert [tars.clip(i).contents() for i in range(7)] == [folders.clip(i).contents() for i in range(7)]


class Stopped(BaseException):
    """The power goes off."""


@pytest.mark.parametrize("after", [1, 3, 7, 16, 19])
def test_stopped_at_any_write_and_resumed_the_bytes_are_the_same(
    after: int, expected: dict[str, bytes], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is written beside its name and renamed: stop at the n-th rename, then go on."""
    done = 0
    real_replace, real_rename = os.replace, Path.rename

    def count() -> None:
        nonlocal done
        done += 1
        if done == after:
            raise Stopped

    def replace(source, target):
        count()
        return real_replace(source, target)

    def rename(self, target):
        count()
        return real_rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", replace)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Stopped):
            prepare.prepare([videos], tmp_path / "set", OPTIONS)
    if after > 1:  # what kill -9 leaves of a tar
        (tmp_path / "set" / ".animx-0123456789ab.part.tar").write_bytes(b"half a tar")
    looked_at: list[str] = []
    real = prepare.prepare_video
    monkeypatch.setattr(
        prepare, "prepare_video", lambda path, *rest: (looked_at.append(path.name), real(path, *rest))[1]
    )
    prepare.prepare([videos], tmp_path / "set", OPTIONS)
    assert files(tmp_path / "set") == expected
    if after >= 7:
        assert "a two shots.mp4" not in looked_at  # what was done is not done again


def command(out: Path, *more: str) -> list[str]:
    sets = ["checks.min_frames=12", "checks.max_frames=40", "shard_mb=1"]
    return ["data", "prepare", "-o", str(out), "--backend", "blocks", "--size", "48x64",
            *(word for text in sets for word in ("--set", text)), *more]  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_on_the_command_line_nothing_is_lost(
    expected: dict[str, bytes], videos: Path, site: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    environment = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}:{ROOT / 'kernels'}:{ROOT / 'trainer'}"}
    call = [sys.executable, "-m", "animx", *command(out), str(videos)]
    running = subprocess.Popen(call, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob(".prepare/videos/*.json"))) < 2 and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() in (-signal.SIGKILL, 0)
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 or "finished dataset" in done.stderr, done.stderr
    assert files(out) == expected


def test_the_command_line_says_what_it_did(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from animx.cli import run

    out = tmp_path / "set"
    assert run([*command(out, "--json"), str(videos)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["clips"], told["videos"], told["unusable_videos"]) == (7, 5, 1)
    assert any("e.mp4" in one for one in told["warnings"])
    assert run([*command(out), str(videos)]) == 2  # finished
    assert run([*command(out, "-y"), str(videos / "c.mp4")]) == 0
    assert len(open_dataset(out)) == 2
    assert run([*command(tmp_path / "x", "--set", "checks.min_frame=3"), str(videos)]) == 2
    assert "Did you mean 'min_frames'" in capsys.readouterr().err


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_nothing_to_work_on_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no video in this folder"):
        prepare.prepare([tmp_path / "empty"], tmp_path / "set", OPTIONS)
    with pytest.raises(InputError, match="no such file"):
        prepare.prepare([tmp_path / "none"], tmp_path / "set", OPTIONS)
    assert not (tmp_path / "set").exists()


def test_a_model_that_is_not_there_is_told_before_any_video_is_read(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        prepare.prepare([videos], tmp_path / "set", PrepareOptions(OPTIONS.cutting, encode="nowhere"))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), ("terminated", 143)])
def test_a_stop_says_that_the_same_command_goes_on(
    stop: Any, code: int, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hall import animx

    from animx.cli import Terminated
    from animx_trainer import synth_files

    def stops(*_: object, **__: object) -> None:
        raise Terminated if stop == "terminated" else stop

    monkeypatch.setattr(prepare, "_cut_all", stops)
    monkeypatch.setattr(synth_files, "write_tar", stops)
    for call in (
        command(tmp_path / "set", str(videos)),
        ["data", "synth", "-o", tmp_path / "drawn", "--size", "16x16"],
    ):
        ran = animx(*call)
        assert ran.code == code
        assert "goes on there" in ran.err
        assert "nothing partial" not in ran.err


def test_no_clip_left_names_the_reasons_and_the_report(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(NoFigureError, match=r"1 x nobody is found.*report\.json"):
        prepare.prepare([videos / "d.mp4"], tmp_path / "set", OPTIONS)
    assert json.loads((tmp_path / "set" / "report.json").read_text())["clips"] == 0


def test_a_clip_cut_short_gets_a_mend_that_can_be_followed(tmp_path: Path) -> None:
    cut = block_video(tmp_path / "cut.mkv", [(60, {})])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(NoFigureError, match="cannot be used"):
        prepare.prepare([cut], tmp_path / "set", OPTIONS)
    (row,) = json.loads((tmp_path / "set" / "report.json").read_text())["per_video"]
    assert "ffmpeg -i IN -t " in row["error"]
    assert "--" not in row["error"]


def test_the_same_video_under_two_names_is_used_once(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(videos / "c.mp4", folder / "one.mp4")
    shutil.copy(videos / "c.mp4", folder / "two.mp4")
    report = prepare.prepare([folder], tmp_path / "set", OPTIONS)
    assert report["clips"] == 2
    assert report["dropped"]["the same video twice"] == 1


def test_two_at_once_in_one_folder_is_refused_and_leaves_the_first_alone(videos: Path, tmp_path: Path) -> None:
    from hall import animx, refused

    from animx.lock import holding

    with holding(tmp_path / "set"):
        (tmp_path / "set" / "initialise.json").touch()
        for call in (command(tmp_path / "set", str(videos)), ["data", "synth", "-o", tmp_path / "set", "-y"],
                     ["train", "smoke", "-o", tmp_path / "set", "--resume"]):  # fmt: skip
            refused(animx(*call), 2, "another animx process")
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["initialise.json"]


def test_a_tar_never_grows_beyond_what_was_asked_whatever_a_clip_holds(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents come after the pictures were counted: they count too, and a run that is stopped divides no other way."""
    from animx_trainer import encode
    from animx_trainer.shards import Contents, write_folder

    def fatten(folders: list[Path], *_: object) -> None:
        for folder in folders:
            clip = encode._stored(folder).contents()
            write_folder(folder.parent, Contents(clip.key, {**clip.files, "00000.npy": bytes(300_000)}))

    monkeypatch.setattr(encode, "encode_clips", fatten)
    monkeypatch.setattr(prepare, "find_model", lambda name: name)
    options = PrepareOptions(OPTIONS.cutting, shard_mb=1, encode="none")
    prepare.prepare([videos], tmp_path / "whole", options)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "whole").glob("*.tar"))]
    assert len(sizes) > 1
    assert max(sizes) <= 1_000_000
    assert sum(sizes[:2]) > 1_000_000, "they are filled, too"

    real, tars = prepare.write_tar, []

    def stops(path: Path, clips: object) -> None:
        if len(tars) == 2:
            raise Stopped
        tars.append(path)
        real(path, clips)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_tar", stops)
        with pytest.raises(Stopped):
            prepare.prepare([videos], tmp_path / "stopped", options)
    prepare.prepare([videos], tmp_path / "stopped", options)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_other_options_and_foreign_folders_are_refused(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_pack", stop)
        with pytest.raises(Stopped):
            prepare.prepare([videos / "c.mp4"], tmp_path / "set", OPTIONS)
    with pytest.raises(UsageError, match="other options"):
        prepare.prepare([videos / "c.mp4"], tmp_path / "set", PrepareOptions(OPTIONS.cutting, shard_mb=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds other things"):
        prepare.prepare([videos / "c.mp4"], tmp_path / "mine", OPTIONS, overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(
    videos: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    real, written = Path.write_bytes, 0

    def fills(self: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written > 40:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fills)
        with pytest.raises(OutputError, match="disk is full"):
            prepare.prepare([videos], tmp_path / "set", OPTIONS)
    prepare.prepare([videos], tmp_path / "set", OPTIONS)
    assert files(tmp_path / "set") == expected


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_what_was_done_stays(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(videos / "c.mp4", folder / "a.mp4")
    red = [np.full((160, 144, 3), [250, 0, 0], np.uint8)] * 14
    write_clip(folder / "b.mp4", red, options={"preset": "ultrafast", "threads": "1"})
    prepare.prepare([folder / "a.mp4"], tmp_path / "one", OPTIONS)
    with pytest.raises(BatchError, match=r"worker died .* b\.mp4.*same command again"):
        prepare.prepare([folder], tmp_path / "set", OPTIONS, workers=2)
    (folder / "b.mp4").unlink()
    assert prepare.prepare([folder], tmp_path / "set", OPTIONS)["clips"] == 2
    assert files(tmp_path / "set")["clips-00000.tar"] == files(tmp_path / "one")["clips-00000.tar"]


@pytest.mark.slow
def test_latents_and_vectors_made_beforehand_are_those_of_the_encoders(
    tiny_release: Path, videos: Path, tmp_path: Path
) -> None:
    import torch

    from animx.diffusion.components import load_components
    from animx.model.image_encoder import encode_images, normalise
    from animx.model.vae import SCALE
    from animx_trainer.data import clip_source

    torch.set_num_threads(1)
    options = PrepareOptions(OPTIONS.cutting, encode=str(tiny_release))
    prepare.prepare([videos / "c.mp4"], tmp_path / "set", options)
    encoder = load_components(tiny_release)
    size = int(encoder.image_encoder.config.image_size)
    given = {"epi": {"base": "epi", "without": ["epi"]}, "clip_size": size}
    made = clip_source(tmp_path / "set", 6, (48, 64), given).sample(0, 3)
    plain = clip_source(tmp_path / "set", 6, (48, 64), {**given, "encoded": "never"}).sample(0, 3)
    assert made.video is None
    assert made.latents is not None
    assert made.reference_latent is not None
    assert plain.video is not None
    with torch.no_grad():
        vectors = encode_images(encoder.image_encoder, normalise(torch.from_numpy(plain.clip))).numpy()
        posterior = encoder.vae.encode(torch.from_numpy(plain.video)).latent_dist
    assert made.clip == pytest.approx(vectors, abs=4e-3 * np.abs(vectors).max())
    mean, deviation = (part.numpy() * SCALE for part in (posterior.mean, posterior.std))
    away = np.abs(made.latents - mean) / deviation
    assert 0.5 < away.mean() < 1.1  # a draw from the posterior: the mean of |N(0, 1)| is 0.8
    again = clip_source(tmp_path / "set", 6, (48, 64), given).sample(0, 3)
    assert np.array_equal(again.latents, made.latents)
    with pytest.raises(InputError, match=r"latents were made at \[48, 64\]"):
        clip_source(tmp_path / "set", 6, (24, 32), given)


def test_the_block_is_what_the_backend_finds(site: Path) -> None:
    from blockpose import Blocks  # type: ignore[import-not-found]

    assert Blocks().detect(block_frame(60)).persons == 1
    assert Blocks().detect(block_frame(60, second=120)).persons == 2
    assert Blocks().detect(block_frame(60, height=0)).persons == 0
