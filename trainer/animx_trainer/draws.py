"""Every random number of a training step, keyed by (seed, step, global sample): t, noise, condition drop, dropout.

Numbers come from numpy's `Generator` on the CPU, so that a sample meets the same ones on every device and rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from animx.model.schedule import TRAIN_STEPS
from animx_trainer.config import LossConfig
from animx_trainer.sample import generator

DROPPED = ("image", "local_image", "dwpose")
"""Conditions that are dropped one by one (released facts 4.4)."""


@dataclass(frozen=True)
class Draws:
    """What chance decided for the B samples of a batch."""

    t: Tensor  # [B] int64, 0..999
    noise: Tensor  # [B, C, F, h, w] float32, offset noise included
    keep: dict[str, Tensor]  # condition or `motion` -> [B] 1 kept, 0 dropped
    dropout: tuple[int, ...]  # [B] seeds of the dropout inside the network

    def to(self, device: torch.device, dtype: torch.dtype) -> Draws:
        """Tensors moved, floating ones cast."""
        return replace(
            self,
            t=self.t.to(device),
            noise=self.noise.to(device, dtype),
            keep={name: kept.to(device, dtype) for name, kept in self.keep.items()},
        )


def draw(config: LossConfig, seed: int, step: int, keys: Sequence[int], shape: Sequence[int]) -> Draws:
    """The draws of the samples `keys` in step `step`, for latents of `shape` (C, F, h, w)."""
    times, noises, keeps, dropouts = [], [], [], []
    for key in keys:
        times.append(int(generator(seed, step, key, "timestep").integers(TRAIN_STEPS)))
        noises.append(noise(config.offset_noise, generator(seed, step, key, "noise"), shape))
        keeps.append(kept(config, generator(seed, step, key, "drop")))
        dropouts.append(int(generator(seed, step, key, "dropout").integers(2**62)))
    return Draws(
        torch.tensor(times),
        torch.from_numpy(np.stack(noises)),
        {name: torch.tensor([one[name] for one in keeps], dtype=torch.float32) for name in keeps[0]},
        tuple(dropouts),
    )


def noise(offset: float, rng: np.random.Generator, shape: Sequence[int]) -> NDArray[np.float32]:
    """Normal noise of `shape` (C, F, h, w) plus `offset` times one number per channel and frame, float32."""
    drawn = rng.standard_normal(tuple(shape), dtype=np.float32)
    return drawn + np.float32(offset) * rng.standard_normal((*shape[:2], 1, 1), dtype=np.float32)


def kept(config: LossConfig, rng: np.random.Generator) -> dict[str, float]:
    """Which conditions one sample keeps (1) or loses (0).

    A share loses everything, a share keeps everything, in the others each of `DROPPED` goes by its own coin.  `motion`
    (keypoints, CLIP vectors of all frames, the reference slot) goes only with everything, and only if asked for.
    """
    fate, *coins = rng.random(1 + len(DROPPED))
    if fate < config.drop_all:
        return {**dict.fromkeys(DROPPED, 0.0), "motion": 0.0 if config.drop_motion else 1.0}
    if fate < config.drop_all + config.drop_none:
        return dict.fromkeys((*DROPPED, "motion"), 1.0)
    return {**{name: float(coin >= config.drop_each) for name, coin in zip(DROPPED, coins, strict=True)}, "motion": 1.0}
