"""A small network with random weights and random conditions for it, shared by the tests of the network."""

from __future__ import annotations

from typing import Any

import torch

from animx.model.conditions import Inputs
from animx.model.config import UNetConfig
from animx.model.unet import AnimateXUNet

TINY = UNetConfig(
    width=32, multipliers=(1, 2, 2, 2), head_dim=16, stem_heads=4, context_dim=64,
    keypoint_heads=8, keypoint_ff=96, resampler_heads=4, resampler_head_dim=16,
)  # fmt: skip
LATENT = (16, 8)


def randomised(unet: AnimateXUNet, seed: int = 0) -> AnimateXUNet:
    """Every parameter random, so that zero-initialised branches count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in unet.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.1) + (p.ndim == 1) * 0.5)
    return unet.eval()


def random_inputs(
    frames: int, dtype: Any, seed: int = 1, *, latent: tuple[int, int] = LATENT, size: tuple[int, int] = (40, 24)
) -> Inputs:
    """Every condition of a clip, random; `size` (H, W) of the pictures."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.rand(*shape, generator=g, dtype=torch.float64).to(dtype)

    return Inputs(
        image=draw(1, 1, 64),
        local_image=draw(1, 3, 1, *size),
        dwpose=draw(1, 3, frames + 1, *size),
        randomref=draw(1, 4, 1, *latent),
        keypoints=draw(1, frames + 1, 2, 18),
        clip=draw(1, frames + 1, 64),
    )
