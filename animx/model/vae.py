"""The picture codec: diffusers' `AutoencoderKL` under the released SD-2.1 names (released facts 7.1).

In: RGB [B, 3, H, W] in 0..1.  Out: latents [B, 4, H/8, W/8] times 0.18215.  248 keys, none left over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from animx.model.tiles import in_tiles

SCALE = 0.18215
"""Latents are multiplied by this after encoding and divided before decoding."""
CELL = 8
"""Side of a latent cell [px]."""


def build_vae(width: int = 128, multipliers: tuple[int, ...] = (1, 2, 4, 4), res_blocks: int = 2) -> AutoencoderKL:
    """An SD-2.1 autoencoder; the defaults are the released size (83.7 M parameters)."""
    levels = len(multipliers)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(width * m for m in multipliers),
        layers_per_block=res_blocks,
        latent_channels=4,
        norm_num_groups=32,
        scaling_factor=SCALE,
    )


def released_vae_name(key: str, levels: int = 4) -> str:
    """The released name (without `first_stage_model.`) of a diffusers VAE key."""
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        key = key.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
    return key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def vae_state(vae: AutoencoderKL, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released VAE state dict (module names) for `vae`: renamed, the 1x1 convolutions of the attention flattened."""
    levels = len(vae.config["block_out_channels"])
    found = {}
    for key, own in vae.state_dict().items():
        name = released_vae_name(key, levels)
        if name in released:
            value = released[name]
            found[key] = value.flatten(1) if own.ndim == 2 and value.ndim == 4 else value
    return found


def encode(vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator | None = None, tile: int = 0) -> Tensor:
    """RGB [B, 3, H, W] in 0..1 -> scaled latents, sampled from the posterior with CPU noise as released.

    tile: largest side of a part that is encoded at once [latent cells]; 0 = whole pictures.
    """
    x = pictures * 2 - 1
    posterior = _encoded_in_tiles(vae, x, tile) if _is_cut(x, tile * CELL) else vae.encode(x).latent_dist
    eps = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    return (posterior.mean + posterior.std * eps) * SCALE


def decode(vae: AutoencoderKL, latents: Tensor, tile: int = 0) -> Tensor:
    """Scaled latents [B, 4, h, w] -> RGB [B, 3, 8h, 8w] in 0..1, clamped.

    tile: largest side of a part that is decoded at once [latent cells]; 0 = whole frames.
    """
    z = latents / SCALE
    out: Tensor = _decoded_in_tiles(vae, z, tile) if _is_cut(z, tile) else vae.decode(z).sample
    return (out * 0.5 + 0.5).clamp(0, 1)


def _is_cut(x: Tensor, tile: int) -> bool:
    return 0 < tile < max(x.shape[2:])


def _decoded_in_tiles(vae: AutoencoderKL, z: Tensor, tile: int) -> Tensor:
    """The decoder whole up to its attention, which sees the whole frame and is small; then in tiles."""
    d = vae.decoder
    x = vae.post_quant_conv(z) if vae.post_quant_conv is not None else z
    x = d.mid_block(d.conv_in(x), None)
    widening = nn.Sequential(*d.up_blocks, d.conv_norm_out, d.conv_act, d.conv_out)
    return in_tiles(widening, x, tile, grow=CELL)


def _encoded_in_tiles(vae: AutoencoderKL, x: Tensor, tile: int) -> DiagonalGaussianDistribution:
    """The encoder in tiles down to the latent grid; from its attention on whole."""
    e = vae.encoder
    x = in_tiles(nn.Sequential(e.conv_in, *e.down_blocks), x, tile * CELL, shrink=CELL)
    x = e.conv_out(e.conv_act(e.conv_norm_out(e.mid_block(x))))
    return DiagonalGaussianDistribution(vae.quant_conv(x) if vae.quant_conv is not None else x)
