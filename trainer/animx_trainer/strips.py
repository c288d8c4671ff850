"""Sample strips: what the network makes of one fixed sample, beside the truth.

Rows: pose pictures, frames of the clip, frames painted from noise by the averaged weights.  First column: reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from animx.model.schedule import guided
from animx_trainer.draws import noise
from animx_trainer.sample import Sample, generator
from animx_trainer.task import Diffusion

GUIDANCE = 2.5
COLUMNS = 6
"""Frames shown, evenly spread over the clip."""


def paint(
    task: Diffusion, denoiser: nn.Module, samples: Sequence[Sample], steps: int, seed: int | None = None
) -> Tensor:
    """Denoise the samples' clips from noise by DDIM with guidance: latents [B, C, F, h, w].

    The noise of each follows from `seed` (None: that of the run) and the sample's key.  Starts at the last step, where
    no signal is left, as the network was trained; `steps` are evenly spaced.
    """
    prepared = task.prepare(samples, 0)
    origin = task.config.seed if seed is None else seed
    shape = prepared.clean.shape[1:]
    streams = [generator(origin, 0, sample.key, "strip") for sample in samples]
    drawn = np.stack([noise(task.config.loss.offset_noise, stream, shape) for stream in streams])
    x = torch.from_numpy(drawn).to(task.device, task.dtype)
    times = np.linspace(999, 0, steps + 1).round().astype(int)
    bf16 = task.config.precision == "bf16"
    nothing = {name: x.new_zeros(len(x)) for name in ("image", "local_image", "dwpose", "motion")}
    was_training = denoiser.training
    denoiser.eval()
    try:
        with torch.no_grad(), torch.autocast(task.device.type, torch.bfloat16, enabled=bf16):
            for now, after in pairwise(times):
                t = torch.full((len(x),), int(now), device=task.device)
                v = guided(
                    denoiser(x, t, prepared.inputs, None), denoiser(x, t, prepared.inputs, nothing), GUIDANCE
                ).to(task.dtype)
                x = _ddim(task, x, v, int(now), int(after))
    finally:
        denoiser.train(was_training)
    return x


def _ddim(task: Diffusion, x: Tensor, v: Tensor, now: int, after: int) -> Tensor:
    """One deterministic step in velocity form, which also holds where no signal is left."""
    ac = task.schedule.alphas_cumprod
    signal, share = float(np.sqrt(ac[now])), float(np.sqrt(1 - ac[now]))
    clean, eps = signal * x - share * v, share * x + signal * v
    return float(np.sqrt(ac[after])) * clean + float(np.sqrt(1 - ac[after])) * eps


def strip(task: Diffusion, denoiser: nn.Module, sample: Sample, steps: int) -> NDArray[np.uint8]:
    """The strip as one RGB picture [H, W, 3].  With FSDP2 every process must call it."""
    made = task.encoders.pictures(paint(task, denoiser, [sample], steps)[0]).cpu()  # [F, 3, H, W]
    reference = torch.from_numpy(sample.reference) * 0.5 + 0.5
    chosen = np.unique(np.linspace(0, sample.frames - 1, min(COLUMNS, sample.frames)).round().astype(int))
    poses = torch.from_numpy(sample.pose_images)
    if sample.video is not None:
        truth = torch.from_numpy(sample.video) * 0.5 + 0.5
    else:
        assert sample.latents is not None
        truth = task.encoders.pictures(torch.from_numpy(sample.latents).transpose(0, 1)).cpu()
    blank = torch.zeros_like(reference)
    rows = [
        [poses[0], *(poses[i + 1] for i in chosen)],
        [reference, *(truth[i] for i in chosen)],
        [blank, *(made[i] for i in chosen)],
    ]
    whole = torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)
    return (whole.clamp(0, 1).permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
