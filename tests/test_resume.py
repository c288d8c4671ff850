"""A render that is killed and resumed gives the bytes of one that was not; a job folder is never mixed or left over."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hall import refused

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from wet import Stage, good  # noqa: E402

from animx.model.unet import AnimateXUNet  # noqa: E402

JOB = ("--set", "animate-x.windows=1", "-q")
"""Two segments, so that there is something to resume."""

SERVER = """
import json, os, sys
import cv2, torch
torch.set_num_threads(1)
cv2.setNumThreads(1)
from animx.cli import run
run(json.loads(sys.argv[1]))  # every library is loaded now, and a child starts in no time
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        with open("child.log", "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = 1
        try:
            code = run(json.loads(line))
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Server:
    """Runs `animx` in processes that can be killed, without their loading the libraries each time."""

    def __init__(self, folder: Path, warm_up: list[str]) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(warm_up)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        while (line := self._line()) != "ready":
            assert line, "the server ended"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, arguments: list[str], kill_after: float | None = None) -> int:
        """The exit code; -9 when it was killed `kill_after` seconds after its start, before its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        pid = int(self._line())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was done before
                os.kill(pid, signal.SIGKILL)
        return int(self._line())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    made = Server(folder, stage.arguments(folder / "whole.mp4", *JOB))
    yield made
    made.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def kill_and_resume(server: Server, stage: Stage, out: Path, rng: random.Random, length: float) -> int:
    """Start a render, kill it at a random time, resume it (killing it once more) until it is done; counts the kills."""
    kills = 0
    arguments = stage.arguments(out, *JOB, "--resume")
    while not out.exists() or out.with_name(f"{out.name}.animx").exists():
        code = server.run(arguments, rng.uniform(0, length) if kills < 2 else None)
        assert code in (0, -9), (server.folder / "child.log").read_text()
        kills += code == -9
        assert kills <= 2
    return kills


def check_kills(server: Server, stage: Stage, folder: Path, wanted: int, seed: int) -> None:
    whole = server.folder / "whole.mp4"
    rng = random.Random(seed)
    began = time.monotonic()
    assert server.run(stage.arguments(folder / "timed.mp4", *JOB)) == 0
    length = time.monotonic() - began
    done = count = 0
    while done < wanted:
        out = folder / f"{count}.mp4"
        done += kill_and_resume(server, stage, out, rng, length)
        for name in ("{}", "{}.json"):
            ours, theirs = (Path(name.format(path)).read_bytes() for path in (out, whole))
            assert ours == theirs, name.format(out)
        assert not Path(f"{out}.animx").exists()
        count += 1
        assert count <= 4 * wanted, "the renders end before they are killed"


def test_a_killed_render_resumed_gives_the_same_bytes(server: Server, stage: Stage, tmp_path: Path) -> None:
    check_kills(server, stage, tmp_path, 3, seed=1)


@pytest.mark.long
def test_25_random_kills_change_no_byte(server: Server, stage: Stage, tmp_path: Path) -> None:
    check_kills(server, stage, tmp_path, 25, seed=2)


def passes(monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> list[int]:
    """Counts the network's passes; the one numbered `stop_at` is interrupted as by Ctrl-C."""
    real, count = AnimateXUNet.forward, [0]

    def forward(self: Any, *given: Any) -> Any:
        count[0] += 1
        if count[0] == stop_at:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(AnimateXUNet, "forward", forward)
    return count


@pytest.mark.usefixtures("here")
def test_a_resume_does_only_what_was_not_done(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        whole = passes(patch)
        good(stage.render("whole.mp4", *JOB))
    with monkeypatch.context() as patch:
        passes(patch, stop_at=whole[0])
        assert stage.render("out.mp4", *JOB).code == 130
    assert sorted(path.name for path in Path().iterdir() if not path.name.startswith("whole")) == ["out.mp4.animx"]
    with monkeypatch.context() as patch:
        rest = passes(patch)
        good(stage.render("out.mp4", *JOB, "--resume"))
    assert 0 < rest[0] < whole[0]
    assert Path("out.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert Path("out.mp4.json").read_bytes() == Path("whole.mp4.json").read_bytes()
    assert not Path("out.mp4.animx").exists()


@pytest.mark.usefixtures("here")
def test_another_job_in_the_folder_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        passes(patch, stop_at=4)
        assert stage.render("out.mp4", *JOB).code == 130
    monkeypatch.setattr(AnimateXUNet, "forward", lambda *_: pytest.fail("the network ran"))
    refused(stage.render("out.mp4", *JOB), 2, "--resume")
    refused(stage.render("out.mp4", *JOB, "-y"), 2, "--resume")
    for more, word in (
        (("--seed", 9), "seed"),
        (("--steps", 5), "steps"),
        (("--dtype", "bfloat16"), "dtype"),
        (("--drop", "arms"), "poses"),
        (("--size", "64x64"), "canvas"),
    ):
        refused(stage.render("out.mp4", *JOB, "--resume", *more), 2, "another", word)
    assert list(Path("out.mp4.animx").glob("chunk_*.npz"))


@pytest.mark.usefixtures("here")
def test_a_kill_between_the_output_and_the_end_of_the_folder_is_mended(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("animx.pipeline.forget", lambda folder: None)
        good(stage.render("out.mp4", *JOB))
    before = Path("out.mp4").read_bytes()
    assert Path("out.mp4.animx").exists()
    good(stage.render("out.mp4", *JOB, "--resume"))
    assert Path("out.mp4").read_bytes() == before
    assert not Path("out.mp4.animx").exists()
    refused(stage.render("out.mp4", *JOB, "--resume"), 2, "exists")


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_window_that_was_halved_stays_halved_after_a_resume(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = ("--set", "animate-x.guidance_batched=false")  # what memory forbids first
    good(stage.render("asked.mp4", *JOB, "--window", 3, "--overlap", 0, *alone))
    real, count = AnimateXUNet.forward, [0]

    def forward(self: Any, x: Any, *given: Any) -> Any:
        count[0] += 1
        if x.shape[2] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if count[0] > 8:
            raise KeyboardInterrupt
        return real(self, x, *given)

    with monkeypatch.context() as patch:
        patch.setattr(AnimateXUNet, "forward", forward)
        assert stage.render("out.mp4", *JOB).code == 130
    good(stage.render("out.mp4", *JOB, "--resume"))
    assert Path("out.mp4").read_bytes() == Path("asked.mp4").read_bytes()
