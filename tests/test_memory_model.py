"""Memory of the full model: predictions order the tiers, and a long clip needs no more than a short one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from animx.diffusion.memory import (  # noqa: E402
    CLIP_PARAMETERS,
    TIERS,
    TILES,
    UNET_PARAMETERS,
    VAE_PARAMETERS,
    choose_tier,
    condition_bytes,
    config_of,
    decode_bytes,
    pass_bytes,
    predicted_bytes,
    tier_lines,
    tier_table,
)
from animx.diffusion.windows import cut_segments, cut_windows  # noqa: E402

LATENT = (96, 64)
slow = pytest.mark.slow


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
    for tier, need in tier_table(LATENT, dtype=dtype):
        free = int(need / 0.9) + 1
        assert choose_tier(free, LATENT, dtype=dtype).name == tier.name
    assert choose_tier(0, LATENT).name == TIERS[-1].name
    assert choose_tier(1 << 62, LATENT).name == TIERS[0].name


def test_the_table_has_a_line_per_tier_with_the_windows_at_once() -> None:
    lines = tier_lines(LATENT)
    assert [line.split()[0] for line in lines] == [tier.name for tier in TIERS]
    assert ["windows of 32, 1 at once" in line for line in lines] == [True, True, False, False]
    small = tier_lines((32, 32))
    assert "windows of 32, 4 at once" in small[0]
    assert "windows of 32, 2 at once" in small[1]
    assert "windows of 8, 1 at once" in small[3]


def test_windows_share_a_pass_only_where_memory_and_the_device_have_room() -> None:
    small = (32, 32)
    roomy = choose_tier(1 << 62, small)
    assert roomy.batch == 4
    need = predicted_bytes(roomy, small)
    assert predicted_bytes(replace(roomy, batch=2), small) < need
    short = choose_tier(int(need / 0.9) - 1000, small)
    assert (short.name, short.batch) == ("full", 2)
    assert choose_tier(1 << 62, small, windows=3).batch == 3
    assert choose_tier(1 << 62, LATENT).batch == 1  # such a pass fills the device


def test_a_frame_that_does_not_fit_is_decoded_in_tiles() -> None:
    huge = (384, 512)
    last = TIERS[-1]
    whole = predicted_bytes(last, huge)
    assert choose_tier(int(whole / 0.9) + 1, huge).tile == 0
    assert choose_tier(0, huge).tile == min(TILES)
    sizes = [decode_bytes(huge, 1, tile, "bfloat16") for tile in (0, *TILES)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 10
    assert decode_bytes(LATENT, 3, 96, "bfloat16") == decode_bytes(LATENT, 3, 0, "bfloat16")


def test_decoding_beside_denoising_and_both_branches_at_once_count() -> None:
    full = replace(TIERS[0], batch=1, decode_batch=2)
    plain = predicted_bytes(full, LATENT)
    assert predicted_bytes(full, LATENT, stream=True) == pytest.approx(
        plain + decode_bytes(LATENT, full.decode_batch, 0, "bfloat16"), rel=0.02)  # fmt: skip
    assert predicted_bytes(full, LATENT, branches=2) > plain + 0.9 * pass_bytes(LATENT, full.window, 1, "bfloat16")


def test_the_shape_of_the_network_is_read_from_the_models_small_files(tiny_release: Path, tmp_path: Path) -> None:
    from animx.diffusion.tiny import TINY
    from animx.model.config import UNetConfig, variant

    assert config_of(tiny_release) == TINY.unet
    assert config_of(tmp_path) == UNetConfig()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"shape": asdict(variant("paper"))}))
    assert config_of(tmp_path) == variant("paper")
    (tmp_path / "unet" / "config.json").write_text("{")
    assert config_of(tmp_path) == UNetConfig()


# ---- predictions against what is counted ----


class Live(TorchDispatchMode):
    """The greatest sum of bytes in live tensors while it is on; `known` ones (weights, inputs) are not counted."""

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__()
        self.known = {StorageWeakRef(one.untyped_storage()).cdata for one in known}
        self.live: dict[int, tuple[Any, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        found = False
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.known and reference.cdata not in self.live:
                    self.live[reference.cdata] = reference, storage.nbytes()
                    found = True
        if found:
            self.live = {key: value for key, value in self.live.items() if not value[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as a device's fused one allocates: its result and no table of weights."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, *_, **__: torch.empty_like(q))


def half(build: Callable[[], Any]) -> Any:
    """A network of the full size in 16 bit, without memory."""
    with torch.device("meta"):
        return torch.nn.Module.to(build(), torch.bfloat16).eval().requires_grad_(False)


def within(predicted: int, counted: int) -> bool:
    """Never too little, and at most 15 % too much."""
    return counted <= predicted <= 1.15 * counted


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(
    ("name", "latent", "frames", "rows"),
    [("release", LATENT, 32, 1), ("release", (32, 32), 8, 2), pytest.param("paper", LATENT, 32, 1, marks=slow),
     pytest.param("paper", LATENT, 4, 1, marks=slow)],
)  # fmt: skip
def test_a_pass_of_the_full_size_takes_what_is_predicted(
    name: str, latent: tuple[int, int], frames: int, rows: int
) -> None:
    from animx.model.conditions import Conditions, Inputs
    from animx.model.config import variant
    from animx.model.unet import AnimateXUNet

    config = variant(name)
    unet = half(lambda: AnimateXUNet.build(config))

    def given(*shape: int) -> Any:
        return torch.zeros(*shape, dtype=torch.bfloat16, device="meta")

    h, w = latent
    inputs = Inputs(
        given(1, 1, 1024), given(1, 3, 1, h * 8, w * 8), given(1, 3, frames + 1, h * 8, w * 8), given(1, 4, 1, h, w),
        given(1, frames + 1, 2, 18), given(1, frames + 1, 1024))  # fmt: skip
    weights = [*unet.parameters(), *unet.buffers()]
    with torch.no_grad():
        with Live(weights) as encoding:
            one = unet.encode(inputs, frames=frames, latent=latent)
        tensors = tree_leaves([getattr(one, f.name) for f in fields(one)])
        held = sum(
            {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t is not None}.values()
        )
        conditions = Conditions.stack([one] * rows)
        with Live(weights) as running:
            unet(given(rows, 4, frames, h, w), torch.zeros(rows, dtype=torch.int64, device="meta"), conditions)
    assert within(pass_bytes(latent, frames, rows, "bfloat16", config), running.peak)
    assert encoding.peak <= running.peak
    assert within(condition_bytes(latent, frames, "bfloat16", config), held)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(("latent", "frames", "tile"), [(LATENT, 2, 0), ((104, 152), 1, 0), ((104, 152), 1, 96)])
def test_decoding_takes_what_is_predicted(latent: tuple[int, int], frames: int, tile: int) -> None:
    from animx.model.vae import build_vae, decode

    vae = half(build_vae)
    latents = torch.zeros(frames, 4, *latent, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), Live([*vae.parameters(), latents]) as running:
        decode(vae, latents, tile)
    predicted = decode_bytes(latent, frames, tile, "bfloat16")
    assert within(predicted, running.peak)


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


@pytest.mark.long
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
