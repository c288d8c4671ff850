"""The task: a batch becomes a loss.  v-prediction on 1000 DDPM steps with zero terminal SNR (released facts 4.4, 6).

`Diffusion.prepare` runs the frozen encoders, `Diffusion.loss` is what is differentiated; `velocity_loss` is its last
line, also used on the released code's own numbers by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from animx.model.conditions import Inputs
from animx.model.config import UNetConfig
from animx.model.schedule import Schedule, zero_snr_schedule
from animx_trainer.batch import Batch, collate
from animx_trainer.config import TrainConfig
from animx_trainer.draws import Draws, draw
from animx_trainer.encoders import Encoders
from animx_trainer.keyed_dropout import KeyedDropout
from animx_trainer.sample import Sample


@dataclass(frozen=True)
class Prepared:
    """A batch behind the frozen encoders, on the device."""

    keys: tuple[int, ...]
    clean: Tensor  # [B, C, F, h, w] scaled latents
    inputs: Inputs


@dataclass(frozen=True)
class Diffusion:
    """The Animate-X training task."""

    config: TrainConfig
    unet: UNetConfig
    encoders: Encoders
    device: torch.device
    dtype: torch.dtype = torch.float32
    """Precision of inputs and loss; the network may compute in bf16 within."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return _SCHEDULE

    def prepare(self, samples: Sequence[Sample], step: int) -> Prepared:
        """Collate, encode and move the samples of `step`.  Bad samples are an `InputError` that names them."""
        batch = collate(samples)
        self.encoders.check(batch, self.unet.context_dim, self.unet.in_channels)
        latents, reference = self.encoders.latents(batch, self.config.seed, step)
        vectors = self.encoders.vectors(batch)
        inputs = inputs_of(batch, vectors, reference).to(self.device, self.dtype)
        return Prepared(batch.keys, latents.to(self.device, self.dtype), inputs)

    def draws(self, prepared: Prepared, step: int) -> Draws:
        """The keyed random numbers of these samples in `step`."""
        shape = prepared.clean.shape[1:]
        return draw(self.config.loss, self.config.seed, step, prepared.keys, shape).to(self.device, self.dtype)

    def loss(self, denoiser: nn.Module, prepared: Prepared, draws: Draws) -> Tensor:
        """The loss of each sample [B], weighted by its noise level."""
        x = self.schedule.add_noise(prepared.clean, draws.noise, draws.t)
        target = self.schedule.velocity(prepared.clean, draws.noise, draws.t)
        bf16 = self.config.precision == "bf16"
        with KeyedDropout(draws.dropout), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            velocity = denoiser(x, draws.t, prepared.inputs, draws.keep)
        weight = min_snr_weight(self.schedule, draws.t, self.config.loss.min_snr)
        return velocity_loss(velocity.to(self.dtype), target) * weight.to(self.device, self.dtype)


_SCHEDULE = zero_snr_schedule()


def inputs_of(batch: Batch, vectors: Tensor, reference_latent: Tensor | None) -> Inputs:
    """The network's conditions of a batch; `vectors` [B, T, D], slot 0 the reference's."""
    return Inputs(
        image=vectors[:, :1],
        local_image=(batch.reference * 0.5 + 0.5)[:, :, None],
        dwpose=batch.pose_images.transpose(1, 2),
        randomref=None if reference_latent is None else reference_latent[:, :, None],
        keypoints=batch.keypoints,
        clip=vectors,
    )


def velocity_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample: [B, ...] -> [B]."""
    return ((velocity - target) ** 2).flatten(1).mean(1)


def min_snr_weight(schedule: Schedule, t: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / (SNR + 1) at t [B], float64; 1 for gamma 0 (Hang et al. 2023, for v-prediction).

    The last step holds no signal and so has weight 0.
    """
    if gamma == 0:
        return torch.ones(t.shape, dtype=torch.float64)
    ac = schedule.alphas_cumprod[t.cpu().numpy()]
    with np.errstate(divide="ignore"):
        snr = ac / (1 - ac)
    return torch.from_numpy(np.minimum(snr, gamma) / (snr + 1))
