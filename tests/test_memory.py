"""A long drive needs no more memory than a short one but for its poses: frames flow, only poses are held."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hall import FAKE_POSE, make_package

from animx.canvas import Canvas
from animx.drawing import template_dance
from animx.image import write_picture
from animx.pose.formats import write_poses
from animx.pose.sequence import PoseSequence

ROOT = Path(__file__).resolve().parents[1]
FPS = 12
SHORT_S, LONG_S = 10, 600
MEASURE = """
import sys
from animx.cli import run
code = run(sys.argv[1:])
# Not ru_maxrss: a child begins with that of the process it came from.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake backend, a small figure, and short and long drives: a looped clip, and poses as npz."""
    folder = tmp_path_factory.mktemp("memory")
    make_package(folder, "fakepose", FAKE_POSE, {"animx.pose_backends": {"fake": "fakepose:Fake"}})
    alpha = np.zeros((96, 64), np.uint8)
    alpha[8:90, 20:44] = 255
    write_picture(folder / "figure.png", np.dstack([np.full((96, 64, 3), 120, np.uint8), alpha]))
    dance = template_dance(FPS * 2)
    loop = [np.full((96, 64, 3), 60 + t, np.uint8) for t in range(FPS * 2)]
    for name, seconds in (("short", SHORT_S), ("long", LONG_S)):
        with av.open(str(folder / f"{name}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
            for t in range(seconds * FPS):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(loop[t % len(loop)], format="rgb24")))
            out.mux(stream.encode())
        repeats = seconds // 2
        keypoints = np.tile(dance.keypoints, (repeats, 1, 1, 1))
        scores = np.tile(dance.scores, (repeats, 1, 1))
        write_poses(PoseSequence(keypoints, scores, Canvas(512, 768), Fraction(FPS)), folder / f"{name}.npz")
    return folder


def peak_mb(folder: Path, *arguments: object) -> float:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", MEASURE, *map(str, arguments), "-q", "-y"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024


@pytest.mark.slow
@pytest.mark.parametrize("route", [pytest.param("video", marks=pytest.mark.long), "npz"])
def test_ten_minutes_need_little_more_memory_than_ten_seconds(bench: Path, route: str) -> None:
    def peak(name: str) -> float:
        if route == "video":
            return peak_mb(bench, "render", "figure.png", f"{name}.mp4", "--backend", "fake", "--ref-pose", "fit")
        return peak_mb(bench, "render", "figure.png", f"{name}.npz", "--ref-pose", "fit")

    frames = LONG_S * FPS
    poses_mb = frames * 134 * 3 * 4 / 1e6  # keypoints and scores of one person, float32
    peak("short")  # compiles what is compiled once
    short, long = peak("short"), peak("long")
    print(f"{route}: {short:.0f} MB for {SHORT_S} s, {long:.0f} MB for {LONG_S} s; poses {poses_mb:.0f} MB")
    assert long - short < 3 * poses_mb + 60
