"""Shared by the tests of training: a tiny network, and clips of random numbers already encoded."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from animx_trainer.config import DataConfig, LogConfig, ModelConfig, OptimizerConfig, TrainConfig
from animx_trainer.encoders import Encoders
from animx_trainer.loop import Run, make_run
from animx_trainer.sample import Sample, generator
from animx_trainer.sources import serial_batches

# torch's checkpoints log two lines a tensor, which pytest would all keep.
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)

UNET: dict[str, Any] = {
    "width": 32, "multipliers": (1,), "res_blocks": 1, "attention_levels": (0,), "head_dim": 16, "stem_heads": 2,
    "context_dim": 16, "keypoint_heads": 2, "keypoint_ff": 16, "keypoint_layers": 1, "resampler_depth": 1,
    "resampler_heads": 2, "resampler_head_dim": 8,
}  # fmt: skip
LEAN: dict[str, Any] = {**UNET, "attention_levels": (), "motion": "cross"}
"""Attention in the middle block only: half the tensors, where their number is what a test waits for."""
FRAMES = 2
LATENT = 4


class RandomClips:
    """A `ClipSource` of encoded clips of random numbers; clip i is always the same, but for its reference frame."""

    def __init__(self, clips: int = 4, frames: int = FRAMES, seed: int = 0) -> None:
        self.clips, self.frames, self.seed = clips, frames, seed

    def __len__(self) -> int:
        return self.clips

    def sample(self, index: int, seed: int) -> Sample:
        rng = generator(self.seed, 0, index, "clip")
        latents = rng.standard_normal((self.frames, 4, LATENT, LATENT), dtype=np.float32)
        reference = int(generator(seed, 0, 0, "reference").integers(self.frames))
        slots = [reference, *range(self.frames)]
        side = 4 * LATENT
        return Sample(
            -1,
            rng.uniform(-1, 1, (3, side, side)).astype(np.float32),
            rng.uniform(0, 1, (self.frames, 3, side, side)).astype(np.float32)[slots],
            rng.uniform(0, 1, (self.frames, 2, 18)).astype(np.float32)[slots],
            rng.standard_normal((self.frames, UNET["context_dim"]), dtype=np.float32)[slots],
            latents=latents,
            reference_latent=latents[reference],
            origin=f"clip {index}",
        )


def tiny_config(**changes: Any) -> TrainConfig:
    """A run of the tiny network on random clips, float32; `changes` are fields of `TrainConfig`."""
    base = TrainConfig(
        model=ModelConfig(unet=UNET, encoders="none"),
        data=DataConfig(source="", frames=FRAMES, size=(16, 16), workers=0),
        optimizer=OptimizerConfig(lr=1e-3, lr_ipi=5e-4, warmup=2, ema=0.9),
        log=LogConfig(strips_every=0, checkpoint_every=100, tensorboard=False),
        steps=4,
        batch=2,
        precision="float32",
    )
    return replace(base, **changes)


def no_encoders() -> Encoders:
    """What stands in for encoders where samples are encoded already."""
    prompt = torch.randn(1, 5, UNET["context_dim"], generator=torch.Generator().manual_seed(0))
    return Encoders(None, prompt)


def tiny_run(config: TrainConfig | None = None, clips: int = 4, **how: Any) -> Run:
    """A run of `config` in memory."""
    chosen = config or tiny_config()
    return make_run(chosen, RandomClips(clips, chosen.data.frames), serial_batches, encoders=no_encoders(), **how)


def samples(run: Run, step: int = 0) -> list[Sample]:
    """What the run is shown in a step."""
    return next(serial_batches(run.source, seed=run.config.seed, batch=run.config.batch, start_step=step))


def awake(run: Run, seed: int = 1) -> Run:
    """Fill zero-initialised layers too, so that every parameter gets a gradient worth comparing."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in run.denoiser.parameters():
            if not p.any():
                p.copy_(torch.randn(p.shape, generator=stream) * (0.1 if p.ndim == 1 else p[0].numel() ** -0.5))
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    """All state of a run as bytes can be compared: weights, moments, averages."""
    return {name: value.detach().clone() for name, value in run.trained.tensors().items()}
