"""The fused network is the plain one: same function, other layout and other operators."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from animx.model.conditions import Conditions, Inputs  # noqa: E402
from animx.model.config import UNetConfig  # noqa: E402
from animx.model.fused import FusedUNet  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from tests.small_unet import LATENT, random_inputs, randomised  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

SMALL = UNetConfig(
    width=32, multipliers=(1, 1, 2, 2), res_blocks=1, head_dim=16, stem_heads=4, context_dim=64, keypoint_heads=4,
    keypoint_ff=32, keypoint_layers=1, resampler_depth=1, resampler_heads=2, resampler_head_dim=16,
)  # fmt: skip
"""All kinds of parts, as few of each as there can be."""

VARIANTS: dict[str, dict[str, Any]] = {
    "release": {},
    "paper": {"temporal": "mamba", "motion": "cross"},
    "no motion": {"motion": "none"},
    "parallel": {"motion_order": "parallel", "alpha": 0.3},
    "parallel cross": {"motion_order": "parallel", "motion": "cross", "alpha": 0.3},
    "all conditions": {"conditions": ("image", "local_image", "dwpose", "randomref", "pose_embeddings")},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def relative(found: Any, wanted: Any) -> float:
    """Largest error in units of the largest value."""
    return (found - wanted).abs().max().item() / wanted.abs().max().item()


def network(dtype: Any = torch.float64, **changes: Any) -> AnimateXUNet:
    unet = randomised(AnimateXUNet.build(replace(SMALL, **changes), text_length=7)).to(dtype)
    unet.requires_grad_(False)
    return unet


def latents(batch: int, frames: int, dtype: Any, size: tuple[int, int] = LATENT) -> Any:
    g = torch.Generator().manual_seed(3)
    return torch.randn(batch, 4, frames, *size, generator=g, dtype=torch.float64).to(dtype)


def run(unet: AnimateXUNet, dtype: Any, frames: int = 3, size: tuple[int, int] = LATENT) -> tuple[Any, Any]:
    """(plain, fused) velocities of one random window."""
    x, t = latents(1, frames, dtype, size), torch.tensor([496])
    with torch.no_grad():
        inputs = random_inputs(frames, dtype, latent=size)
        conditions = unet.encode(inputs, frames=frames, latent=size, fold=False)
        plain = unet(x, t, conditions)
        folded = unet.encode(inputs, frames=frames, latent=size)
        return plain, FusedUNet(unet)(x, t, folded, unet.times([991, 496, 1]))


@pytest.mark.parametrize("name", VARIANTS)
def test_fused_equals_plain_in_float64(name: str) -> None:
    plain, fused = run(network(**VARIANTS[name]), torch.float64)
    assert relative(fused, plain) <= 1e-12


@pytest.mark.parametrize("name", ["release", "paper"])
def test_fused_equals_plain_in_float32(name: str) -> None:
    plain, fused = run(network(torch.float32, **VARIANTS[name]), torch.float32)
    assert relative(fused, plain) <= 1e-5


@pytest.mark.parametrize("size", [(13, 9), (8, 8)])
@pytest.mark.parametrize("frames", [1, 4])
def test_any_size_and_length(size: tuple[int, int], frames: int) -> None:
    plain, fused = run(network(), torch.float64, frames, size)
    assert relative(fused, plain) <= 1e-12


def test_bfloat16_weights_stay_close_to_the_float32_network() -> None:
    plain, _ = run(network(torch.float32), torch.float32)
    unet = network(torch.bfloat16)
    _, fused = run(unet, torch.bfloat16)
    assert fused.dtype == torch.bfloat16
    assert relative(fused.float(), plain) <= 0.05


def test_two_windows_at_once_equal_two_runs() -> None:
    unet = network()
    fused = FusedUNet(unet)
    x, t = latents(2, 3, torch.float64), torch.tensor([496, 1])
    times = unet.times([991, 496, 1])
    with torch.no_grad():
        rows = [unet.encode(one, frames=3, latent=LATENT) for one in (random_inputs(3, torch.float64), Inputs())]
    together = fused(x, t, Conditions.stack(rows), times)
    apart = [fused(x[i : i + 1], t[i : i + 1], rows[i], times) for i in (0, 1)]
    assert relative(together, torch.cat(apart)) <= 1e-12
    assert relative(apart[0], apart[1]) > 1e-3


def test_unfolded_conditions_and_unprepared_times_are_taken_too() -> None:
    unet = network()
    fused = FusedUNet(unet)
    x, t = latents(1, 3, torch.float64), torch.tensor([496])
    with torch.no_grad():
        conditions = [
            unet.encode(random_inputs(3, torch.float64), frames=3, latent=LATENT, fold=f) for f in (True, False)
        ]
    assert relative(fused(x, t, conditions[1]), fused(x, t, conditions[0], unet.times([496]))) <= 1e-12


def test_weights_are_shared_and_the_plain_network_goes_on_working() -> None:
    unet = network()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    own = sum(p.numel() for p in unet.parameters())
    fused = FusedUNet(unet)
    theirs = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    more = sum(b.numel() for b in fused.buffers() if b.untyped_storage().data_ptr() not in theirs)
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert fused.state_dict() == {}
    # What is multiplied out (the feed-forward's second matrix with the projection) is all that is new.
    assert more <= 0.2 * own


def test_a_network_in_training_is_refused() -> None:
    unet = network().train()
    with pytest.raises(ValueError, match="training mode"):
        FusedUNet(unet)


LEAST = replace(SMALL, multipliers=(1,), attention_levels=(0,))
"""One level: the Triton interpreter takes milliseconds for every program of every launch."""


@pytest.mark.slow
def test_the_whole_network_agrees_in_the_triton_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs the 'kernels' extra")
    monkeypatch.setenv("ANIMX_KERNELS", "reference")
    code = f"from tests.test_fused import save_a_step; save_a_step({str(tmp_path / 'step.pt')!r})"
    environment = {**os.environ, "ANIMX_KERNELS": "interpret", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, timeout=300)
    found = torch.load(tmp_path / "step.pt", weights_only=True)
    assert len(found["bodies"]) >= 6  # every operator of the network ran as Triton
    assert relative(found["velocity"], a_step()) <= 1e-5


def a_step() -> Any:
    """One step of the least network."""
    unet = randomised(AnimateXUNet.build(LEAST, text_length=7)).requires_grad_(False)
    with torch.no_grad():
        conditions = unet.encode(random_inputs(2, torch.float32, latent=(4, 4), size=(32, 32)), frames=2, latent=(4, 4))
        return FusedUNet(unet)(latents(1, 2, torch.float32, (4, 4)), torch.tensor([496]), conditions)


def save_a_step(path: str) -> None:
    """For a process of its own: save a step, and which Triton bodies were loaded for it."""
    torch.set_num_threads(1)
    velocity = a_step()
    bodies = sorted(name for name in sys.modules if name.startswith("animx_kernels.") and name.endswith("_triton"))
    torch.save({"velocity": velocity, "bodies": bodies}, path)
