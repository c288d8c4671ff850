"""The full model on a card: same pictures as on the CPU, every tier, several cards, and its memory at full size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wet import Stage, good, pictures

torch = pytest.importorskip("torch", reason="needs the 'model' extra")

from animx.diffusion import memory  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def worst(a: Path, b: Path) -> float:
    """Mean grey levels between the frames that differ most."""
    return float(np.abs(pictures(a).astype(float) - pictures(b)).mean((1, 2, 3)).max())


@pytest.fixture(scope="module")
def on_cpu(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "cpu.mp4"
    good(stage.render(out))
    return out


@pytest.mark.parametrize("stack", ["plain", "fused"])
def test_a_card_draws_what_the_cpu_draws(stage: Stage, on_cpu: Path, tmp_path: Path, stack: str) -> None:
    out = tmp_path / "cuda.mp4"
    good(stage.render(out, "--device", "cuda", "--dtype", "float32", "--set", f"animate-x.stack={stack}"))
    assert worst(out, on_cpu) < 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(stage: Stage, on_cpu: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "half.mp4"
    good(stage.render(out, "--device", "cuda", "--dtype", dtype))
    assert worst(out, on_cpu) < 8


@pytest.mark.parametrize(
    "option", ["stream=true", "stream=false", "graph=true"], ids=["side-stream", "one-stream", "graph"]
)
def test_how_the_card_is_kept_busy_changes_no_byte(stage: Stage, tmp_path: Path, option: str) -> None:
    outs = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    good(stage.render(outs[0], "--device", "cuda"))
    good(stage.render(outs[1], "--device", "cuda", "--set", f"animate-x.{option}"))
    assert np.array_equal(*map(pictures, outs))


def test_offloading_changes_no_picture(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outs = [tmp_path / "all.mp4", tmp_path / "one.mp4"]
    good(stage.render(outs[0], "--device", "cuda"))
    monkeypatch.setattr(memory, "TIERS", tuple(tier for tier in memory.TIERS if tier.offload))
    good(stage.render(outs[1], "--device", "cuda"))
    assert worst(*outs) < 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cards_equal_one_exactly(stage: Stage, tmp_path: Path) -> None:
    outs = [tmp_path / "one.mp4", tmp_path / "two.mp4"]
    for count, out in zip((1, 2), outs, strict=True):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "-m", "animx"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        subprocess.run([*command, *stage.arguments(out, "--device", "cuda")], env=env, check=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_pass_of_the_full_size_stays_within_its_prediction(rows: int) -> None:
    from animx.diffusion.memory import pass_bytes
    from animx.model.conditions import Conditions, Inputs
    from animx.model.config import UNetConfig
    from animx.model.fused import FusedUNet
    from animx.model.unet import AnimateXUNet

    if torch.cuda.mem_get_info()[0] < 30 * 1024**3:
        pytest.skip("needs 30 GiB free on the card")
    with torch.device("cuda"):
        unet = AnimateXUNet.build(UNetConfig()).to(torch.bfloat16).eval().requires_grad_(False)

    def given(*shape: int) -> Any:
        return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")

    inputs = Inputs(given(1, 1, 1024), given(1, 3, 1, 768, 512), given(1, 3, 33, 768, 512), None,
                    given(1, 33, 2, 18), given(1, 33, 1024))  # fmt: skip
    with torch.no_grad():
        conditions = Conditions.stack([unet.encode(inputs, frames=32, latent=(96, 64))] * rows)
        for network in (unet, FusedUNet(unet)):
            x, t, times = given(rows, 4, 32, 96, 64), torch.full((rows,), 991, device="cuda"), unet.times([991])
            network(x, t, conditions, times)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            network(x, t, conditions, times)
            peak = torch.cuda.max_memory_allocated() - before
            assert peak <= pass_bytes((96, 64), 32, rows, "bfloat16")
