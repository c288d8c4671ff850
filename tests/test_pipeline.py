"""The hall end to end on tiny inputs: what is written, what the recipe says, what is refused, what is left behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hall import FAKE_POSE, Ran, animx, installed, make_package, refused

import animx as package
from animx.canvas import Canvas
from animx.errors import UsageError
from animx.image import read_picture, write_picture
from animx.pose.formats import write_poses
from animx.pose.sequence import PoseSequence
from animx.video import open_frames, open_writer, probe, read_alpha_frames

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pose backend that needs no net."""
    folder = tmp_path_factory.mktemp("site")
    make_package(folder, "fakepose", FAKE_POSE, {"animx.pose_backends": {"fake": "fakepose:Fake"}})
    return folder


@pytest.fixture(autouse=True)
def here(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, with the fake backend installed."""
    monkeypatch.delenv("ANIMX_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    with installed(site):
        yield


@pytest.fixture(scope="session")
def figure(tmp_path_factory: pytest.TempPathFactory, tiny_character: Path) -> Path:
    """The tiny character cut out, so that no net is asked for its mask: 128x192 px with alpha."""
    from animx_trainer import synthetic

    canvas = Canvas(128, 192)
    who = synthetic.character("bear")
    rgb, mask, _ = synthetic.draw_character(who, synthetic.rest_pose(who, canvas), canvas, background="plain")
    alpha = (np.clip(np.asarray(mask, np.float32), 0, 1) * 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("figure") / "bear.png"
    write_picture(path, np.dstack([rgb, alpha]))
    return path


@pytest.fixture(scope="session")
def poses_file(tmp_path_factory: pytest.TempPathFactory, tiny_poses: PoseSequence) -> Path:
    path = tmp_path_factory.mktemp("poses") / "dance.pose.json"
    write_poses(tiny_poses, path)
    return path


FAST = ("--ref-pose", "fit", "-q")


def done(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def frames_of(path: str | Path) -> list[np.ndarray[Any, Any]]:
    return [frame.pixels for frame in open_frames(path)]


# ---- the main job ----


def test_the_two_words_of_the_main_job(figure: Path, tiny_clip: Path) -> None:
    ran = done(animx("render", figure, tiny_clip, "--backend", "fake"))
    assert files() == ["bear_dance.mp4", "bear_dance.mp4.json"]
    assert ran.out == "bear_dance.mp4\n"
    info = probe("bear_dance.mp4")
    assert (info.canvas, info.fps, info.frames) == (Canvas(128, 192), Fraction(12), 12)
    frames = frames_of("bear_dance.mp4")
    moved = np.abs(frames[0].astype(int) - frames[6].astype(int)).max(2) > 40
    assert moved.mean() > 0.01  # it dances
    for word in ("engine: puppet", "auto", "pose backend: fake", "wrote bear_dance.mp4"):
        assert word in ran.err


def test_the_same_job_gives_the_same_bytes_under_any_name(figure: Path, tiny_clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    done(animx("render", figure, tiny_clip, "--backend", "fake", "-o", "a.mp4", "-q"))
    time.sleep(1.1)  # a clock in the file would show
    done(animx("render", figure, tiny_clip, "--backend", "fake", "-o", other / "b.mp4", "--progress", "json"))
    assert Path("a.mp4").read_bytes() == (other / "b.mp4").read_bytes()
    assert Path("a.mp4.json").read_bytes() == (other / "b.mp4.json").read_bytes()


def test_json_and_side_car_and_comment_tell_the_same_recipe(figure: Path, poses_file: Path) -> None:
    said = ["--preset", "short-legs", "--set", "head=1.2", "--drop", "hands", "--seed", "7", "--background", "#102030"]
    found = done(animx("render", figure, poses_file, "-o", "o.mp4", "--json", *FAST, *said)).json
    recipe = json.loads(Path("o.mp4.json").read_text())
    assert found["recipe"] == recipe
    with av.open("o.mp4") as container:
        comment = json.loads(container.metadata["comment"])
    assert comment == {key: value for key, value in recipe.items() if key != "warnings"}
    assert recipe["engine"] == "puppet"
    assert recipe["seed"] == 7
    assert recipe["version"] == package.__version__
    assert [one["name"] for one in recipe["presets"]] == ["short-legs"]
    assert recipe["options"]["rescale"] == {"head": 1.2}
    assert recipe["options"]["drop"] == ["hands"]
    assert {one["role"]: one["name"] for one in recipe["inputs"]} == {
        "reference": "bear.png",
        "driving": poses_file.name,
    }
    assert all(len(one["sha256"]) == 64 for one in recipe["inputs"])
    assert "generative" in recipe["note"]
    text = Path("o.mp4.json").read_text()
    assert str(Path.cwd()) not in text
    assert str(figure.parent) not in text


def test_what_the_recipe_says_changes_with_the_content_of_a_preset(figure: Path, poses_file: Path) -> None:
    hashes = []
    for factor in (0.5, 0.6):
        Path("mine.yaml").write_text(f"name: mine\nrescale:\n  legs: {factor}\n")
        ran = animx("render", figure, poses_file, "-o", "o.mp4", "-y", "--json", "--preset", "mine.yaml", *FAST)
        hashes.append(done(ran).json["recipe"]["presets"][0]["sha256"])
    assert hashes[0] != hashes[1]


def test_presets_change_the_picture(figure: Path, poses_file: Path) -> None:
    done(animx("render", figure, poses_file, "-o", "plain.mp4", *FAST))
    done(animx("render", figure, poses_file, "-o", "short.mp4", "--preset", "short-legs", *FAST))
    assert any((a != b).any() for a, b in zip(frames_of("plain.mp4"), frames_of("short.mp4"), strict=True))


@pytest.mark.parametrize(
    ("arguments", "frames", "fps"),
    [
        ((), 12, Fraction(12)),
        (("--start", "0.5"), 6, Fraction(12)),
        (("--start", "3f", "--end", "9f"), 6, Fraction(12)),
        (("--start", "00:00:00.25", "--duration", "0.5"), 6, Fraction(12)),
        (("--duration", "4f"), 4, Fraction(12)),
        (("--fps", "24"), 24, Fraction(24)),
        (("--fps", "30000/1001", "--end", "0.5"), 15, Fraction(30000, 1001)),
    ],
)
@pytest.mark.parametrize("kind", ["video", "poses"])
def test_ranges_and_rates(
    figure: Path, tiny_clip: Path, poses_file: Path, kind: str, arguments: tuple[str, ...], frames: int, fps: Fraction
) -> None:
    driving = [tiny_clip, "--backend", "fake"] if kind == "video" else [poses_file]
    found = done(animx("render", figure, *driving, "-o", "o.mp4", "--json", *FAST, *arguments)).json
    assert found["frames"] == pytest.approx(frames, abs=0 if fps.denominator == 1 else 1)
    assert Fraction(*found["fps"]) == probe("o.mp4").fps == fps
    assert probe("o.mp4").frames == found["frames"]


def test_a_range_behind_the_end_is_refused(figure: Path, tiny_clip: Path, poses_file: Path) -> None:
    refused(animx("render", figure, tiny_clip, "--backend", "fake", "--start", "9", *FAST), 2, "--start 9")
    refused(animx("render", figure, poses_file, "--start", "9", *FAST), 2, "--start 9")
    assert files() == []


@pytest.mark.parametrize(
    ("size", "fit", "canvas"),
    [
        ("64x64", "cover", Canvas(64, 64)),
        ("64x64", "contain", Canvas(64, 64)),
        ("90x61", "stretch", Canvas(90, 60)),
        ("64x", "cover", Canvas(64, 96)),
        ("x384", "cover", Canvas(256, 384)),
    ],
)
def test_size_and_fit(figure: Path, poses_file: Path, size: str, fit: str, canvas: Canvas) -> None:
    done(animx("render", figure, poses_file, "-o", "o.mp4", "--size", size, "--fit", fit, "--end", "2f", *FAST))
    assert probe("o.mp4").canvas == canvas


def test_a_large_reference_is_reduced_and_that_is_said(figure: Path, poses_file: Path) -> None:
    tall = np.pad(read_picture(figure).pixels, ((1200, 0), (0, 0), (0, 0)))  # 128x1392
    write_picture("tall.png", tall)
    ran = done(animx("render", "tall.png", poses_file, "-o", "o.mp4", "--ref-pose", "fit", "--end", "1f"))
    assert probe("o.mp4").canvas == Canvas(118, 1280)
    assert "128x1392" in ran.err
    done(animx("render", "tall.png", poses_file, "-o", "own.mp4", "--size", "128x1392", "--end", "1f", *FAST))
    assert probe("own.mp4").canvas == Canvas(128, 1392)


# ---- backgrounds and containers ----


@pytest.mark.parametrize("name", ["o.webm", "o.mov", "o.gif", "o.webp", "o_%03d.png", "folder"])
def test_transparent_output_keeps_the_ground_transparent(figure: Path, poses_file: Path, name: str) -> None:
    done(animx("render", figure, poses_file, "-o", name, "--background", "transparent", "--end", "3f", *FAST))
    frames = list(read_alpha_frames(name))
    assert len(frames) == 3
    assert (frames[0][..., 3] < 20).mean() > 0.2
    assert (frames[0][..., 3] > 235).mean() > 0.1


def test_a_transparent_picture_lies_on_white_in_mp4_and_stays_transparent_in_webm(
    figure: Path, poses_file: Path
) -> None:
    ran = done(animx("render", figure, poses_file, "-o", "o.mp4", "--end", "1f", "--ref-pose", "fit"))
    assert "white" in ran.err
    assert frames_of("o.mp4")[0][2, 2].min() > 245
    done(animx("render", figure, poses_file, "-o", "o.webm", "--end", "1f", *FAST))
    assert next(iter(read_alpha_frames("o.webm")))[2, 2, 3] < 10


def test_transparent_into_mp4_is_refused_with_the_mend(figure: Path, poses_file: Path) -> None:
    ran = animx("render", figure, poses_file, "-o", "o.mp4", "--background", "transparent", *FAST)
    refused(ran, 2, "--background transparent", ".mp4", ".webm")
    assert files() == []


def test_colour_and_picture_behind(figure: Path, poses_file: Path) -> None:
    done(animx("render", figure, poses_file, "-o", "o.mp4", "--background", "#2060c0", "--end", "1f", *FAST))
    assert np.abs(frames_of("o.mp4")[0][2, 2].astype(int) - (0x20, 0x60, 0xC0)).max() < 8
    write_picture("sea.png", np.full((40, 40, 3), (200, 30, 30), np.uint8))
    done(animx("render", figure, poses_file, "-o", "p.mp4", "--background", "sea.png", "--end", "1f", *FAST))
    assert np.abs(frames_of("p.mp4")[0][2, 2].astype(int) - (200, 30, 30)).max() < 8
    recipe = json.loads(Path("p.mp4.json").read_text())
    assert recipe["options"]["background"] == "sea.png"
    assert "background" in {one["role"] for one in recipe["inputs"]}
    refused(animx("render", figure, poses_file, "--background", "transparnt", *FAST), 2, "Did you mean 'transparent'?")


def test_side_by_side_shows_reference_pose_and_result(figure: Path, poses_file: Path) -> None:
    done(animx("render", figure, poses_file, "-o", "o.mp4", "--side-by-side", "--end", "2f", *FAST))
    done(animx("render", figure, poses_file, "-o", "alone.mp4", "--end", "2f", *FAST))
    frame, alone = frames_of("o.mp4")[1].astype(int), frames_of("alone.mp4")[1].astype(int)
    assert frame.shape == (192, 3 * 128, 3)
    picture = read_picture(figure).pixels
    solid = picture[..., 3] == 255
    assert np.abs(frame[:, :128][solid] - picture[..., :3][solid]).mean() < 6
    assert np.abs(frame[:, 256:] - alone).mean() < 4
    assert (frame[:, 128:256].max(2) > 100).mean() > 0.01
    assert np.median(frame[:, 128:256]) < 10


# ---- reference pose and mask ----


def test_reference_pose_from_a_file_and_from_edited_joints(figure: Path, poses_file: Path) -> None:
    done(animx("pose", "extract", figure, "--backend", "fake", "--edit", "-q"))
    assert files() == ["bear.joints.yaml", "bear.pose.json"]
    for file in ("bear.joints.yaml", "bear.pose.json"):
        ran = animx("render", figure, poses_file, "-o", "o.mp4", "-y", "--end", "2f", "--json", "--ref-pose", file)
        found = done(ran).json
        assert found["reference_pose"] == "file"
        assert found["recipe"]["options"]["ref_pose"] == file
    ran = animx("render", figure, poses_file, "--ref-pose", poses_file, *FAST[2:])
    refused(ran, 3, poses_file.name, "12 frames")


def test_ref_pose_none_moves_the_figure_as_a_whole(figure: Path, poses_file: Path) -> None:
    found = done(animx("render", figure, poses_file, "-o", "o.mp4", "--json", "--ref-pose", "none")).json
    assert found["reference_pose"] == "none"
    first, later = (frames_of("o.mp4")[t].astype(int) for t in (0, 6))
    assert (np.abs(first - later).max(2) > 40).mean() > 0.005


def test_a_mask_file_decides_what_moves(figure: Path, poses_file: Path) -> None:
    opaque = read_picture(figure).pixels[..., :3]
    write_picture("photo.png", opaque)
    write_picture("mask.png", read_picture(figure).pixels[..., 3])
    found = done(animx("render", "photo.png", poses_file, "-o", "o.mp4", "--mask", "mask.png", "--json", *FAST)).json
    assert found["recipe"]["mask"] == "file"
    write_picture("empty.png", np.zeros((192, 128), np.uint8))
    refused(animx("render", "photo.png", poses_file, "--mask", "empty.png", *FAST), 4, "photo.png")
    write_picture("wide.png", np.full((50, 300), 255, np.uint8))
    refused(animx("render", "photo.png", poses_file, "--mask", "wide.png", *FAST), 3, "wide.png", "128x192")


def test_a_joints_file_of_another_picture_is_refused(figure: Path, poses_file: Path, tiny_poses: PoseSequence) -> None:
    from dataclasses import replace

    other = replace(tiny_poses.cut(0, 1), canvas=Canvas(300, 100))
    write_poses(other, Path("other.pose.json"))
    ran = animx("render", figure, poses_file, "--ref-pose", "other.pose.json", "-q")
    refused(ran, 3, "other.pose.json", "300x100", "128x192")


# ---- sound ----


def with_sound(path: Path, clip: Path) -> Path:
    """The clip with a second of 440 Hz."""
    rate = 44100
    wave = (0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", rate=rate, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                out.mux(packet)
        for start in range(0, rate, 1024):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
            out.mux(sound.encode(block))
        out.mux(sound.encode())
    return path


def test_sound_is_carried_over_unless_told_not_to_or_impossible(figure: Path, tiny_clip: Path) -> None:
    clip = with_sound(Path("loud.mp4"), tiny_clip)
    for arguments, heard in ((("-o", "a.mp4"), True), (("-o", "b.mp4", "--no-audio"), False), (("-o", "c.gif"), False)):
        done(animx("render", figure, clip, "--backend", "fake", *FAST, *arguments))
        assert probe(arguments[1]).has_audio is heard


def test_a_pose_file_gets_its_sound_from_the_driving_video(figure: Path, tiny_clip: Path, poses_file: Path) -> None:
    clip = with_sound(Path("loud.mp4"), tiny_clip)
    done(animx("render", figure, poses_file, "-o", "a.mp4", "--driving-video", clip, *FAST))
    assert probe("a.mp4").has_audio
    assert "driving_video" in Path("a.mp4.json").read_text()


# ---- pipes ----


def test_the_pipe_of_the_contract(figure: Path, tiny_clip: Path) -> None:
    one = done(animx("pose", "extract", tiny_clip, "--backend", "fake", "-o", "-", "-q"))
    two = done(animx("pose", "retarget", "-", "--preset", "no-arms", "-o", "-", "-q", stdin=one.out.encode()))
    three = done(animx("render", figure, "-", "-o", "out.mp4", *FAST, stdin=two.out.encode()))
    assert three.out == ""
    assert probe("out.mp4").frames == 12
    assert json.loads(one.out)["schema"] == 1
    assert files() == ["out.mp4", "out.mp4.json"]


def test_an_empty_pipe_is_one_clear_line(figure: Path) -> None:
    refused(animx("pose", "retarget", "-", "--preset", "no-arms"), 3, "stdin")
    refused(animx("render", figure, "-", "-o", "out.mp4"), 3, "stdin")
    assert files() == []


def test_binary_npz_goes_through_stdin_too(figure: Path, tiny_poses: PoseSequence) -> None:
    write_poses(tiny_poses, Path("p.npz"))
    done(animx("render", figure, "-", "-o", "out.mp4", *FAST, stdin=Path("p.npz").read_bytes()))


# ---- driving by other things ----


def test_a_folder_of_frames_and_an_animation_drive(figure: Path, tiny_clip: Path) -> None:
    Path("frames").mkdir()
    for t, pixels in enumerate(frames_of(tiny_clip)[:5]):
        write_picture(Path("frames") / f"f{t}.png", pixels)
    found = done(animx("render", figure, "frames", "-o", "a.mp4", "--backend", "fake", "--json", *FAST)).json
    assert (found["frames"], found["fps"]) == (5, [25, 1])
    found = done(
        animx("render", figure, "frames", "-o", "b.mp4", "--fps", "10", "--backend", "fake", "--json", *FAST)
    ).json
    assert (found["frames"], found["fps"]) == (5, [10, 1])
    with open_writer(Path("dance.gif"), Canvas(128, 192), Fraction(10)) as writer:
        for pixels in frames_of(tiny_clip)[:5]:
            writer.write(pixels)
    assert (
        done(animx("render", figure, "dance.gif", "-o", "c.mp4", "--backend", "fake", "--json", *FAST)).json["frames"]
        == 5
    )


def test_python_gives_the_same_as_the_command(figure: Path, poses_file: Path) -> None:
    done(animx("render", figure, poses_file, "-o", "a.mp4", "--preset", "chibi", *FAST))
    result = package.render(figure, poses_file, "b.mp4", presets="chibi", ref_pose="fit")
    assert (result.frames, result.canvas, result.engine) == (12, Canvas(128, 192), "puppet")
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    with pytest.raises(UsageError, match="Did you mean 'presets'"):
        package.render(figure, poses_file, "c.mp4", preset="chibi")


def test_python_extracts_retargets_and_renders_without_a_file(figure: Path, tiny_clip: Path) -> None:
    poses = package.extract_pose(tiny_clip, backend="fake", hands=False)
    assert isinstance(poses, package.PoseSequence)
    short = package.retarget(poses, preset="short-legs")
    assert short.history[-1]["op"] == "rescale"
    assert package.render(figure, short, "o.mp4", ref_pose="fit").frames == 12


# ---- refusals ----


def test_nothing_is_overwritten_unless_asked(figure: Path, poses_file: Path) -> None:
    Path("o.mp4").write_text("precious")
    refused(animx("render", figure, poses_file, "-o", "o.mp4", *FAST), 2, "o.mp4", "-y")
    refused(animx("render", figure, poses_file, "-o", "o.mp4", "-n", *FAST), 2, "o.mp4")
    assert Path("o.mp4").read_text() == "precious"
    Path("p.mp4.json").write_text("precious")
    refused(animx("render", figure, poses_file, "-o", "p.mp4", *FAST), 2, "p.mp4.json")
    done(animx("render", figure, poses_file, "-o", "o.mp4", "-y", *FAST))
    assert Path("o.mp4").stat().st_size > 1000


def test_an_output_never_replaces_an_input(figure: Path, tiny_clip: Path) -> None:
    shutil.copy(figure, "ref.png")
    shutil.copy(tiny_clip, "dance.mp4")
    refused(animx("render", "ref.png", "dance.mp4", "-o", "dance.mp4", "-y", "-q"), 2, "dance.mp4", "driving")
    refused(animx("render", "ref.png", "dance.mp4", "-o", "./ref.png", "-y", "-q"), 2, "ref.png")
    shutil.copy(figure, "same.pose.json")
    refused(animx("pose", "retarget", "same.pose.json", "-o", "same.pose.json", "-y"), 2, "same.pose.json")
    assert Path("dance.mp4").read_bytes() == tiny_clip.read_bytes()


def test_a_folder_that_is_missing_or_closed_is_exit_3(figure: Path, poses_file: Path) -> None:
    refused(animx("render", figure, poses_file, "-o", "nowhere/o.mp4", *FAST), 3, "nowhere")
    Path("file").write_text("")
    refused(animx("render", figure, poses_file, "-o", "file/o.mp4", *FAST), 3, "file")
    if os.geteuid() != 0:
        Path("closed").mkdir(mode=0o500)
        refused(animx("render", figure, poses_file, "-o", "closed/o.mp4", *FAST), 3, "closed")


@pytest.mark.parametrize("what", ["reference", "driving", "mask", "ref-pose", "driving-video"])
def test_a_missing_input_is_named(figure: Path, poses_file: Path, what: str) -> None:
    given: list[Any] = [figure, poses_file]
    if what in ("reference", "driving"):
        given[what == "driving"] = "gone.mp4"
    extra = [] if what in ("reference", "driving") else [f"--{what}", "gone.png"]
    ran = animx("render", *given, "-o", "o.mp4", "-q", *extra)
    refused(ran, 3, "gone.")
    assert files() == []


def test_nobody_in_the_clip_and_no_figure_in_the_picture_are_exit_4(figure: Path, poses_file: Path) -> None:
    with open_writer(Path("black.mp4"), Canvas(64, 64), Fraction(12)) as writer:
        for _ in range(6):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    refused(animx("render", figure, "black.mp4", "--backend", "fake", "-o", "o.mp4", *FAST), 4, "black.mp4")
    refused(animx("pose", "extract", "black.mp4", "--backend", "fake", "-q"), 4, "black.mp4")
    write_picture("white.png", np.full((96, 64, 3), 255, np.uint8))
    refused(animx("render", "white.png", poses_file, "-o", "o.mp4", *FAST), 4, "white.png")
    assert files() == ["black.mp4", "white.png"]


def test_the_reference_fails_before_a_long_clip_is_done(tiny_clip: Path) -> None:
    write_picture("white.png", np.full((96, 64, 3), 255, np.uint8))
    refused(animx("render", "white.png", tiny_clip, "--backend", "fake", "-o", "o.mp4", *FAST), 4, "white.png")


def test_a_missing_extra_is_exit_2_with_the_line_that_gets_it(
    figure: Path, tiny_clip: Path, poses_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANIMX_PLUGINS", "off")
    package_plugins = __import__("animx.plugins", fromlist=["find"])
    package_plugins.find.cache_clear()
    line = "pip install -c constraints.txt 'animx[offline]'"
    monkeypatch.setattr("animx.pose.mediapipe.MediapipeBackend.available", classmethod(lambda cls: f"missing. {line}"))
    monkeypatch.setattr("animx.pose.rtm.RtmBackend.available", classmethod(lambda cls: "missing"))
    refused(animx("render", figure, tiny_clip, "-o", "o.mp4", "-q"), 2, line)
    refused(animx("pose", "extract", tiny_clip, "-q"), 2, line)
    # Poses that are there already need no backend: the reference's skeleton is fitted to its outline.
    ran = done(animx("render", figure, poses_file, "-o", "o.mp4", "--json"))
    assert ran.json["reference_pose"] in ("fitted", "none")
    assert "no pose backend" in ran.err


def test_an_unknown_backend_and_a_person_it_cannot_follow(figure: Path, tiny_clip: Path) -> None:
    refused(animx("render", figure, tiny_clip, "--backend", "fke", "-q"), 2, "'fke'", "Did you mean 'fake'?")
    ran = animx("render", figure, tiny_clip, "--backend", "fake", "--person", "track:1", "-q")
    refused(ran, 2, "--person track:1", "fake")


# ---- dry run ----


def test_a_dry_run_plans_and_writes_nothing(figure: Path, tiny_clip: Path, poses_file: Path) -> None:
    for driving in ([tiny_clip, "--backend", "fake"], [poses_file]):
        found = done(animx("render", figure, *driving, "--dry-run", "--json", "-q")).json
        assert found["dry_run"]
        assert found["plan"]["engine"] == "puppet"
        assert found["plan"]["frames"] == found["frames"] == 12
        assert found["plan"]["memory_mb"] > 0
        assert found["plan"]["seconds"] > 0
    text = done(animx("render", figure, poses_file, "--dry-run", "-q")).out
    assert "would write  bear_dance.mp4" in text
    assert files() == []


def test_a_dry_run_finds_what_a_run_would_refuse(figure: Path, poses_file: Path) -> None:
    Path("text.mp4").write_text("no video")
    refused(animx("render", figure, "text.mp4", "--dry-run", "-q"), 3, "text.mp4")
    Path("bear_dance.mp4").write_text("precious")
    refused(animx("render", figure, poses_file, "--dry-run", "-q"), 2, "bear_dance.mp4")
    write_picture("white.png", np.full((96, 64, 3), 255, np.uint8))
    refused(animx("render", "white.png", poses_file, "--dry-run", "-q"), 4, "white.png")


# ---- interrupted, full ----


def start(site: Path, *arguments: object, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "animx", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def long_poses(tiny_poses: PoseSequence, seconds: int) -> Path:
    repeats = seconds
    keypoints = np.concatenate([tiny_poses.keypoints] * repeats)
    scores = np.concatenate([tiny_poses.scores] * repeats)
    path = Path("long.npz")
    write_poses(PoseSequence(keypoints, scores, tiny_poses.canvas, tiny_poses.fps), path)
    return path


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_while_rendering_leaves_nothing(
    site: Path, figure: Path, tiny_poses: PoseSequence, number: signal.Signals, code: int
) -> None:
    driving = long_poses(tiny_poses, 300)
    process = start(site, "render", figure, driving, "-o", "o.mp4", "--ref-pose", "fit", "--progress", "json")
    assert process.stderr is not None
    for line in process.stderr:
        if '"stage": "render"' in line:
            break
    time.sleep(0.3)
    assert any("part" in name for name in files())  # it was at it
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert files() == ["long.npz"]


def limited(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.parametrize("name", ["o.mp4", pytest.param("o.gif", marks=pytest.mark.slow)])
def test_a_full_disk_is_exit_3_in_one_line_and_leaves_nothing(
    site: Path, figure: Path, tiny_poses: PoseSequence, name: str
) -> None:
    driving = long_poses(tiny_poses, 5)
    process = start(site, "render", figure, driving, "-o", name, "--ref-pose", "fit", "-q", preexec_fn=limited(20_000))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("animx: error: ")
    assert name in err
    assert files() == ["long.npz"]


def test_a_full_disk_while_poses_are_written_is_exit_3(site: Path, tiny_poses: PoseSequence) -> None:
    driving = long_poses(tiny_poses, 5)
    process = start(site, "pose", "convert", driving, "big.pose.json", "-q", preexec_fn=limited(20_000))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert len(err.splitlines()) == 1
    assert files() == ["long.npz"]
