"""Odd names and values: outputs that name nothing or an input, loops of links, numbers that would fill the memory."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hall import animx, refused
from PIL import Image

from animx.canvas import Canvas, Placement
from animx.errors import UsageError
from animx.image import write_picture
from animx.pose import smooth
from animx.pose.formats import write_poses
from animx.pose.sequence import PoseSequence
from animx.retarget import ops
from animx.times import parse_fps, parse_size, parse_time
from animx.video import open_frames, open_writer, read_alpha_frames

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_character: Path, tiny_poses: PoseSequence) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_character, "ref.png")
    write_poses(tiny_poses, "dance.pose.json")


def clip(path: str, frames: int = 3) -> str:
    """A short clip or folder of frames at `path`, which is returned."""
    with open_writer(path, Canvas(64, 64), parse_fps("25")) as writer:
        for _ in range(frames):
            writer.write(np.full((64, 64, 3), 90, np.uint8))
    return path


def everything() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


# ---- names ----


@pytest.mark.parametrize("name", ["", ".", "..", "/", "./", "//", "sub/.."])
@pytest.mark.parametrize("command", [("render", "ref.png", "dance.pose.json"), ("pose", "draw", "dance.pose.json")])
def test_an_output_that_names_nothing_is_refused(command: tuple[str, ...], name: str) -> None:
    Path("sub").mkdir()
    refused(animx(*command, "-o", name, "-y"), 2, "names nothing")


@pytest.mark.parametrize("option", ["--mask", "--ref-pose", "--background", "--driving-video"])
def test_an_option_that_names_an_empty_file_is_refused(option: str) -> None:
    refused(animx("render", "ref.png", "dance.pose.json", option, "", "-o", "out.mp4"), 2, option)


def test_a_loop_of_links_is_refused_as_output_and_as_input() -> None:
    Path("loop.mp4").symlink_to("loop.mp4")
    refused(animx("render", "ref.png", "dance.pose.json", "-o", "loop.mp4"), 3, "loop.mp4")
    refused(animx("render", "ref.png", "loop.mp4", "-o", "out.mp4"), 3, "loop.mp4")
    refused(animx("render", "loop.mp4", "dance.pose.json", "-o", "out.mp4"), 3, "loop.mp4")


def test_an_output_folder_never_swallows_an_input() -> None:
    clip("frames/")
    before = everything()
    for call in (
        ("frames/00001.png", "dance.pose.json", "-o", "frames"),
        ("frames/00001.png", "dance.pose.json", "-o", "frames/%05d.png"),
        ("ref.png", "frames", "-o", "frames/%05d.png"),
        ("ref.png", "frames/%05d.png", "-o", "frames"),
        ("ref.png", "dance.pose.json", "--background", "frames/00002.png", "-o", "frames"),
        ("ref.png", "dance.pose.json", "--mask", "frames/00002.png", "-o", "frames/%05d.png"),
        ("ref.png", "dance.pose.json", "--ref-pose", "dance.pose.json", "-o", "dance.pose.json"),
    ):
        refused(animx("render", *call, "-y"), 2, "would replace")
    assert everything() == before


def test_a_drawing_never_replaces_what_it_is_drawn_over(tiny_poses: PoseSequence) -> None:
    clip("clip.mp4", tiny_poses.frames)
    before = everything()
    refused(animx("pose", "draw", "dance.pose.json", "--over", "clip.mp4", "-o", "clip.mp4", "-y"), 2, "would replace")
    refused(
        animx("pose", "draw", "dance.pose.json", "--over", "ref.png", "--frame", "0", "-o", "ref.png", "-y"),
        2,
        "would replace",
    )
    assert everything() == before


def test_frames_are_read_whatever_digits_their_names_hold() -> None:
    Path("frames").mkdir()
    for name in ("a1²2.png", "a1²10.png", "٣.png"):
        write_picture(Path("frames") / name, np.zeros((8, 8, 3), np.uint8))
    assert open_frames("frames").frames == 3


def test_a_file_whose_name_looks_like_a_numbered_pattern_is_that_file() -> None:
    Path("dance.pose.json").rename("50%d.pose.json")
    assert animx("render", "ref.png", "50%d.pose.json", "-o", "out.mp4", "--ref-pose", "fit").code == 0


def test_a_gif_that_ends_behind_its_first_frame_is_read_or_refused_never_a_bug() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save("cut.gif", save_all=True, append_images=frames[1:], duration=40)
    whole = Path("cut.gif").read_bytes()
    for length in range(12, len(whole)):
        Path("cut.gif").write_bytes(whole[:length])
        assert animx("pose", "draw", "dance.pose.json", "--over", "cut.gif", "-o", "out.mp4", "-y").code in (0, 3)


def test_a_picture_with_an_impossible_size_gives_one_line_and_no_warning_of_a_library() -> None:
    Image.new("L", (8, 8)).save("bomb.png")
    data = bytearray(Path("bomb.png").read_bytes())
    data[16:24] = struct.pack(">II", 8_000_000, 20)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    Path("bomb.png").write_bytes(data)
    code, _, err = shell("$A pose draw dance.pose.json --over bomb.png --frame 0 -o out.png")
    assert code == 3
    assert len(err.splitlines()) == 1, err


# ---- stdin, pipes, streams that are missing or full ----


@pytest.mark.parametrize("name", ["", "-"])
def test_a_picture_never_comes_from_stdin(name: str) -> None:
    refused(animx("render", name, "dance.pose.json", "-o", "out.mp4"), 2, "REF")
    refused(animx("render", "ref.png", "dance.pose.json", "--mask", name, "-o", "out.mp4"), 2, "--mask")


def test_a_driving_side_that_names_nothing_is_refused() -> None:
    refused(animx("render", "ref.png", "", "-o", "out.mp4"), 2, "DRIVING")


def test_the_references_pose_may_come_from_stdin_once(tiny_poses: PoseSequence) -> None:
    one = write_still(tiny_poses)
    call = ("render", "ref.png", "dance.pose.json", "--ref-pose")
    assert animx(*call, "one.pose.json", "-o", "file.mp4").code == 0
    assert animx(*call, "-", "-o", "piped.mp4", stdin=one).code == 0
    file, piped = (list(read_alpha_frames(name)) for name in ("file.mp4", "piped.mp4"))
    np.testing.assert_array_equal(file, piped)
    inputs = json.loads(Path("piped.mp4.json").read_text())["inputs"]
    assert inputs[-1]["role"] == "ref_pose"
    assert len(inputs[-1]["sha256"]) == 64
    refused(animx("render", "ref.png", "-", "--ref-pose", "-", "-o", "no.mp4", stdin=one), 2, "at most once")


def write_still(poses: PoseSequence) -> bytes:
    write_poses(poses.on(Canvas(512, 768), Placement(1.0, 1.0, 0.0, 0.0)).cut(0, 1), Path("one.pose.json"))
    return Path("one.pose.json").read_bytes()


def shell(command: str, **more: str) -> tuple[int, str, str]:
    """Run a bash command line in which `$A` is animx; exit code, stdout, stderr.  Ten seconds must do."""
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "A": f"{sys.executable} -m animx", **more},
    )
    return done.returncode, done.stdout, done.stderr


def test_poses_come_through_a_named_pipe_and_pictures_do_not() -> None:
    code, out, err = shell("$A pose info <(cat dance.pose.json)")
    assert (code, err) == (0, "")
    assert "openpose-134" in out
    assert shell("$A render ref.png <(cat dance.pose.json) -o out.mp4 --ref-pose fit -q")[0] == 0
    code, _, err = shell("mkfifo pipe; timeout 20 $A render pipe dance.pose.json -o no.mp4")
    assert (code, "is a pipe" in err, "Traceback" in err) == (3, True, False)


@pytest.mark.parametrize("lost", [">&-", ">/dev/full"])
@pytest.mark.parametrize("command", ["presets list --json", "pose convert dance.pose.json -"])
def test_a_result_that_cannot_be_printed_is_exit_3_in_one_line(command: str, lost: str) -> None:
    code, _, err = shell(f"$A {command} {lost}")
    assert code == 3
    assert len(err.splitlines()) == 1, err
    assert "stdout" in err


@pytest.mark.parametrize("lost", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_a_missing_or_full_stderr_does_not_hide_the_result(lost: str) -> None:
    code, out, _ = shell(f"$A pose convert dance.pose.json out.npz {lost}")
    assert (code, out) == (0, "out.npz\n")
    code, out, _ = shell(f"$A nonsense --json {lost}")
    assert (code, json.loads(out)["error"]["exit_code"]) == (2, 2)


def test_a_working_folder_that_is_gone_is_said() -> None:
    code, _, err = shell("mkdir gone; cd gone; rmdir ../gone; $A presets preview -o x.png", PYTHONPATH=str(ROOT))
    assert code == 3
    assert "working folder" in err


# ---- operations, names of formats, scores ----


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("smooth:seconds=nan", ("seconds", "a number")),
        ("smooth:seconds=x", ("seconds", "a number")),
        ("smooth:order=2.5", ("order", "a whole number")),
        ("smooth:second=1", ("unknown parameter 'second'", "seconds")),
        ("fill:gap=1", ("unknown parameter 'gap'",)),
        ("rescale:factors=2", ("factors",)),
        ("rescale", ("needs factors=",)),
        ("drop", ("needs groups=",)),
    ],
)
def test_an_operation_refuses_parameters_it_cannot_take(operation: str, words: tuple[str, ...]) -> None:
    ran = animx("pose", "retarget", "dance.pose.json", "--op", operation, "-o", "out.pose.json")
    refused(ran, 2, *words)


def test_operations_take_the_parameters_of_what_they_stand_for() -> None:
    for name in ("fill", "smooth"):
        shown, real = (inspect.signature(getattr(room, name)).parameters for room in (ops, smooth))
        for key in list(shown)[1:]:
            assert shown[key].default == real[key].default
    assert animx("pose", "retarget", "dance.pose.json", "--op", "smooth:seconds=1,order=2", "-o", "a.npz").code == 0
    assert animx("pose", "retarget", "dance.pose.json", "--op", "drop:groups=arms", "-o", "b.npz").code == 0


@pytest.mark.parametrize("command", ["extract", "retarget"])
def test_a_pose_file_of_unknown_kind_is_refused_before_the_work(command: str) -> None:
    source = "no-such-clip.mp4" if command == "extract" else "no-such.pose.json"
    refused(animx("pose", command, source, "-o", "out.mp4"), 2, "poses are written as")


@pytest.mark.parametrize("score", ["nan", "-0.1", "5"])
def test_a_score_outside_0_to_1_is_refused(score: str) -> None:
    refused(animx("pose", "draw", "dance.pose.json", "--min-score", score, "-o", "out.mp4"), 2, "--min-score")


@pytest.mark.parametrize(
    "call",
    [
        ("pose", "extract", ""),
        ("pose", "info", ""),
        ("pose", "draw", "dance.pose.json", "--over", ""),
        ("pose", "retarget", "dance.pose.json", "--reference", ""),
        ("presets", "show", ""),
        ("render", "ref.png", "dance.pose.json", "--engine", ""),
    ],
)
def test_an_empty_name_is_refused_by_every_command(call: tuple[str, ...]) -> None:
    refused(animx(*call), 2, "names nothing")


def test_poses_too_far_apart_in_time_are_a_bad_input(tiny_poses: PoseSequence) -> None:
    far = replace(
        tiny_poses, times=np.where(np.arange(tiny_poses.frames) < 2, tiny_poses.times, 1e7 + tiny_poses.times)
    )
    write_poses(far, Path("far.pose.json"))
    refused(animx("render", "ref.png", "far.pose.json", "-o", "out.mp4"), 3, "times")


# ---- numbers ----


@pytest.mark.parametrize("text", ["9" * 5000, "1e999999999", "1e-999999999", "1/" + "9" * 5000])
def test_a_rate_that_would_fill_the_memory_is_refused_at_once(text: str) -> None:
    with pytest.raises(UsageError, match="--fps"):
        parse_fps(text)


@pytest.mark.parametrize("text", ["9" * 400 + "f", "9" * 5000 + "f", "9" * 5000 + ":00:00"])
def test_a_time_of_thousands_of_digits_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--start"):
        parse_time(text, "--start")


def test_a_size_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(UsageError, match="--size"):
        parse_size("9" * 5000 + "x2")


# ---- refused before the work ----


@pytest.mark.parametrize(
    "call",
    [
        ("--start", "0.3", "--end", "0.1"),
        ("--start", "8f", "--end", "8f"),
        ("--duration", "0"),
        ("--duration", "0f"),
        ("--start", "50"),
        ("--person", "nobody"),
        ("--person", "track:7"),
    ],
)
def test_a_wrong_range_or_person_is_refused_before_the_figure_is_looked_for(
    call: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []
    monkeypatch.setattr("animx.pipeline.prepare_reference", lambda *values, **named: looked.append(values))
    refused(animx("render", "ref.png", "dance.pose.json", "-o", "out.mp4", *call), 2, call[-2])
    assert not looked
