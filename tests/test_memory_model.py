"""Memory of the full model: predictions order the tiers, and a long clip needs no more than a short one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from animx.diffusion.memory import (  # noqa: E402
    CLIP_PARAMETERS,
    GIB,
    TIERS,
    UNET_PARAMETERS,
    VAE_PARAMETERS,
    choose_tier,
    predicted_bytes,
    tier_lines,
    tier_table,
)
from animx.diffusion.windows import cut_segments, cut_windows  # noqa: E402

LATENT = (96, 64)


def test_every_tier_needs_less_than_the_one_before() -> None:
    sizes = [predicted_bytes(tier, LATENT) for tier in TIERS]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_a_prediction_holds_at_least_the_weights_and_grows_with_everything() -> None:
    full = TIERS[0]
    size = predicted_bytes(full, LATENT)
    assert size > 2 * (UNET_PARAMETERS + CLIP_PARAMETERS + VAE_PARAMETERS)
    assert predicted_bytes(replace(full, dtype="float32"), LATENT) == pytest.approx(2 * size, rel=0.01)
    assert predicted_bytes(full, (104, 152)) > size
    assert predicted_bytes(replace(full, window=64), LATENT) > size


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_chosen_tier_fits_with_a_tenth_to_spare(dtype: str) -> None:
    for tier, gib in tier_table(LATENT, dtype=dtype):
        free = int(gib * GIB / 0.9) + 1
        assert choose_tier(free, LATENT, dtype=dtype).name == tier.name
    assert choose_tier(0, LATENT).name == TIERS[-1].name
    assert choose_tier(1 << 62, LATENT).name == TIERS[0].name


def test_the_table_has_a_line_per_tier() -> None:
    assert [line.split()[0] for line in tier_lines(LATENT)] == [tier.name for tier in TIERS]


def test_parameter_counts_are_those_of_the_released_size() -> None:
    from animx.model.config import UNetConfig
    from animx.model.unet import AnimateXUNet

    with torch.device("meta"):
        unet = AnimateXUNet.build(UNetConfig())
    assert sum(p.numel() for p in unet.parameters()) == UNET_PARAMETERS


def test_segments_of_a_long_clip_are_no_longer_than_those_of_a_short_one() -> None:
    short, long = (max(s.frames for s in cut_segments(n, 32, 8, 4)) for n in (150, 15_000))
    assert short == long == 32 + 3 * 24
    assert len(cut_windows(long, 32, 8)) == 4


RUN = """
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from animx.canvas import Canvas
from animx.diffusion.pipeline import AnimateXPipeline
from animx.diffusion.render import Settings
from animx.job import ChunkStore
from animx.pose.sequence import PoseSequence

frames, canvas = int(sys.argv[2]), Canvas(64, 64)
rng = np.random.default_rng(0)
points = rng.uniform(0, 64, (frames, 1, 134, 2)).astype(np.float32)
poses = PoseSequence(points, np.ones(points.shape[:3], np.float32), canvas, 24)
pipeline = AnimateXPipeline.from_pretrained(sys.argv[1])
def driving():
    for _ in range(frames):
        yield rng.integers(0, 256, (480, 640, 3), np.uint8)
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
loaded = memory("VmRSS")
settings = Settings(steps=1, window=4, overlap=1, windows=2)
store = ChunkStore(Path(sys.argv[3]), {"frames": frames}, resume=False)
clip = pipeline.prepare(np.zeros((64, 64, 3), np.uint8), poses, driving())
count = sum(1 for _ in pipeline.frames(clip, settings, store=store))
print(count, loaded, memory("VmHWM"), poses.keypoints.nbytes + poses.scores.nbytes + poses.times.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_ten_times_longer_clip_needs_no_more_memory(tiny_release: Path, tmp_path: Path) -> None:
    def run(frames: int) -> tuple[int, int, int]:
        ran = subprocess.run(
            [sys.executable, "-c", RUN, str(tiny_release), str(frames), str(tmp_path / str(frames))],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        count, loaded, peak, poses = (int(word) for word in ran.stdout.split())
        assert count == frames
        return loaded, peak, poses

    _, short, _ = run(28)
    loaded, long, poses = run(280)
    assert long - poses <= 1.1 * short
    # The bound above counts the libraries too; this one does not.  28 MB are three times the clip's CLIP batch.
    assert long - loaded - poses <= (short - loaded) * 1.1 + 28e6
