"""Several processes on one render: the same bytes as one process, and only the first one writes and talks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hall import animx

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")
pytest.importorskip("transformers", reason="needs the 'model' extra")

from wet import Stage, good, side_car  # noqa: E402

from animx.diffusion.ranks import Ranks, device_of_rank  # noqa: E402

RUNNER = """
import sys
import torch
torch.set_num_threads(1)
from animx.model.unet import AnimateXUNet
real, count = AnimateXUNet.forward, [0]
def forward(self, *given):
    count[0] += 1
    return real(self, *given)
AnimateXUNet.forward = forward
from animx.cli import run
code = run(sys.argv[1:])
import os
with open(f"passes_{os.environ['RANK']}", "w") as file:
    file.write(str(count[0]))
sys.exit(code)
"""


def torchrun(program: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Two processes that run `program` in this folder."""
    Path("runner.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
         "--rdzv-endpoint", "127.0.0.1:0", "runner.py", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def test_two_ranks_equal_one_rank_exactly(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--set", "animate-x.windows=2", "--set", "animate-x.guidance_batched=false", "--json")
    good(stage.render("one.mp4", *more))
    ran = torchrun(RUNNER, stage.arguments("two.mp4", *more))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["frames"] == len(stage.poses.times)
    assert Path("two.mp4").read_bytes() == Path("one.mp4").read_bytes()
    assert Path("two.mp4.json").read_bytes() == Path("one.mp4.json").read_bytes()
    counts = [int(Path(f"passes_{rank}").read_text()) for rank in (0, 1)]
    assert counts == [4, 4]  # two windows, two branches, two steps: none is run twice
    assert not Path("two.mp4.animx").exists()


SHORT = """
import os
import sys
import torch
torch.set_num_threads(1)
from animx.diffusion import render
from animx.model.unet import AnimateXUNet
real, decode = AnimateXUNet.forward, render.decode
def forward(self, x, *given):
    if os.environ["RANK"] == "1" and x.shape[2] > 4:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return real(self, x, *given)
def short(vae, latents, tile):
    if len(latents) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return decode(vae, latents, tile)
AnimateXUNet.forward, render.decode = forward, short
from animx.cli import run
sys.exit(run(sys.argv[1:]))
"""


def test_when_one_rank_runs_out_of_memory_all_go_on_with_less(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = ("--set", "animate-x.guidance_batched=false")  # so that there is work for both
    less = ("--window", 3, "--overlap", 0, "--set", "animate-x.decode_batch=2", "--duration", "6f", "-q")
    good(stage.render("asked.mp4", *less, *alone))
    # The second rank cannot take the asked window, and then the first cannot decode what it is told to.
    ran = torchrun(SHORT, stage.arguments("out.mp4", "--duration", "6f", "--set", "animate-x.decode_batch=8", *alone))
    assert ran.returncode == 0, ran.stderr
    assert "out of memory on rank 1 of 2" in ran.stderr
    assert "out of memory on rank 0 of 2" in ran.stderr
    assert Path("out.mp4").read_bytes() == Path("asked.mp4").read_bytes()
    sizes = ("window", "overlap", "window_batch", "decode_batch", "tile")
    ours, theirs = (side_car(name)["options"] for name in ("out.mp4", "asked.mp4"))
    assert [ours[f"animate-x.{key}"] for key in sizes] == [3, 0, 1, 2, 0]
    assert ours == theirs
    assert not Path("out.mp4.animx").exists()


def test_one_rank_runs_every_task_in_order() -> None:
    order: list[int] = []

    def task(number: int) -> Any:
        order.append(number)
        return torch.full((1,), float(number))

    results = Ranks().evaluate([lambda n=n: task(n) for n in range(4)], torch.zeros(1))
    assert [int(one) for one in results] == order == [0, 1, 2, 3]
    assert Ranks().from_first(None) is None


def test_each_rank_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of_rank("cuda") == "cuda"
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert device_of_rank("cuda") == "cuda:1"
    assert device_of_rank("cuda:0") == "cuda:0"
    assert device_of_rank("cpu") == "cpu"


def test_a_rank_that_is_not_the_first_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = animx("presets", "list")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
