"""The README is true: every command in it runs, its tables are the program's, its plugin works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from animx.canvas import Canvas
from animx.cli import COMMANDS
from animx.engine import Engine, RenderJob
from animx.pose.sequence import PoseSequence

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
ELSEWHERE = re.compile(r"^(make (demo|test|lint)|source |pytest )")
"""Commands that are not run here: they make an environment, or run these tests."""


def blocks(language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(README.read_text(encoding="utf-8")) if name == language]


def commands() -> list[str]:
    return [line for body in blocks("bash") for line in body.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def newcomer(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a fresh clone, with the examples under their own names but small and short."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "examples" / "characters").mkdir(parents=True)
    for path in (root / "examples" / "characters").iterdir():
        small = cv2.resize(cv2.imread(str(path)), (256, 384), interpolation=cv2.INTER_AREA)
        assert cv2.imwrite(str(folder / "examples" / "characters" / path.name), small)
    _shorten(root / "examples" / "dance.mp4", folder / "examples" / "dance.mp4", frames=16)
    return folder


def _shorten(source: Path, target: Path, frames: int) -> None:
    with av.open(str(source)) as clip, av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(24), options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 256, 384, "yuv420p"
        for _, frame in zip(range(frames), clip.decode(video=0), strict=False):
            out.mux(stream.encode(frame.reformat(256, 384, format="yuv420p")))
        out.mux(stream.encode())


def _run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    bin_folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(README.parent)}
    if not (bin_folder / "animx").exists():
        command = re.sub(r"\banimx (?=[a-z])", f"{sys.executable} -m animx ", command)
    shell = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(shell, cwd=folder, env=env, capture_output=True, text=True, check=False)


def _needs(command: str) -> None:
    if "dance.mp4" in command or "pose extract" in command:
        pytest.importorskip("mediapipe", reason="needs the 'offline' extra")


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order_in_a_fresh_folder(newcomer: Path) -> None:
    run = [command for command in commands() if not ELSEWHERE.match(command)]
    assert len(run) >= 10
    for command in run:
        _needs(command)
        done = _run(newcomer, command)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    for name in (
        "bottle_dance.mp4",
        "presets.png",
        "short.mp4",
        "ghost.webm",
        "check.mp4",
        "no_arms.mp4",
        "corrected.mp4",
    ):
        assert (newcomer / name).stat().st_size > 1000, name
    assert len(list((newcomer / "frames").glob("*.png"))) == 12


@pytest.mark.slow
def test_the_python_of_the_readme_runs(newcomer: Path) -> None:
    pytest.importorskip("mediapipe", reason="needs the 'offline' extra")
    (snippet,) = [body for body in blocks("python") if "import animx\n" in body]
    script = newcomer / "snippet.py"
    script.write_text(snippet)
    done = _run(newcomer, f"{sys.executable} snippet.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["16", "chibi.mp4"]


def test_the_plugin_of_the_readme_is_an_engine_in_20_lines(tiny_poses: PoseSequence) -> None:
    (snippet,) = [body for body in blocks("python") if "class " in body]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 20
    namespace: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), namespace)
    engine = namespace["SlideEngine"]()
    assert isinstance(engine, Engine)
    picture = np.zeros((192, 128, 4), np.uint8)
    picture[:, 64] = 255
    job = RenderJob(picture=picture, canvas=Canvas(128, 192), poses=tiny_poses)
    frames = list(engine.render(job))
    assert len(frames) == tiny_poses.frames
    hips = tiny_poses.keypoints[:, 0, [8, 11], 0].mean(1)
    assert [int(frame[0, :, 3].argmax()) for frame in frames] == [round(float(x) - 64) + 64 for x in hips]
    (toml,) = blocks("toml")
    assert toml.split('"')[1] == "animx.engines"


def test_the_table_of_commands_is_the_program_s() -> None:
    section = README.read_text(encoding="utf-8").split("## Commands")[1].split("\n## ")[0]
    assert re.findall(r"^\| `animx (\S+)` \|", section, re.M) == list(COMMANDS)
    for group in ("pose", "presets"):
        from importlib import import_module

        (row,) = [line for line in section.splitlines() if line.startswith(f"| `animx {group}`")]
        module, _, name = COMMANDS[group][0].partition(":")
        known = getattr(import_module(module), name).commands
        assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == set(known)


def test_there_are_five_recipes_and_each_has_a_command() -> None:
    recipes = README.read_text(encoding="utf-8").split("## Recipes")[1].split("\n## ")[0]
    parts = re.split(r"^\*\*\d\. ", recipes, flags=re.M)[1:]
    assert len(parts) == 5
    assert all("```bash" in part for part in parts)


def test_the_files_that_the_readme_names_exist(root: Path) -> None:
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = [*links, *re.findall(r"\bexamples/[\w/.]+\w", text)]
    assert len(links) > 8
    for name in named:
        assert (root / name).exists(), name


@pytest.mark.slow
def test_make_says_what_it_can_do(root: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    done = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "lint", "clean"):
        assert f"make {target}" in done.stdout


@pytest.mark.slow
def test_make_demo_animates_an_example_and_says_where_it_is(root: Path, tmp_path: Path) -> None:
    """With an environment that holds everything, so nothing is installed; a new one is made by hand."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, module in (("python", ""), ("animx", "-m animx")):
        (programs / name).write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} {module} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "venv" / ".base").touch()
    video = tmp_path / "out" / "demo.mp4"
    video.parent.mkdir()
    video.write_text("of an earlier run")
    done = subprocess.run(
        ["make", "demo", f"VENV={tmp_path / 'venv'}", f"DEMO_VIDEO={video}"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"The video: {video}" in done.stdout
    assert "installing" not in done.stdout
    with av.open(str(video)) as clip:
        assert clip.streams.video[0].frames == 120
