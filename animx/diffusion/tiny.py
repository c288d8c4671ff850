"""A tiny random model in the released file formats: three files that load, run and mean nothing.

The base of every end-to-end test of the full model, and of a dry run on a machine without weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from animx.diffusion.components import VAE_PREFIX, Sizes, write_sizes
from animx.model.checkpoint import to_released
from animx.model.config import UNetConfig
from animx.model.unet import AnimateXUNet
from animx.model.vae import build_vae, released_vae_name
from animx.weights import RELEASES, write_hashes

TINY = Sizes(
    unet=UNetConfig(
        width=32,
        multipliers=(1, 1, 2, 2),
        res_blocks=1,
        head_dim=16,
        stem_heads=2,
        context_dim=32,
        keypoint_heads=4,
        keypoint_ff=32,
        keypoint_layers=1,
        resampler_depth=1,
        resampler_heads=2,
        resampler_head_dim=16,
    ),
    vae={"width": 32, "multipliers": (1, 1, 1, 1), "res_blocks": 1},
    vision={"width": 32, "layers": 2, "heads": 2, "out": 32, "image": 224, "patch": 56},
    text={"width": 32, "layers": 2, "heads": 2, "vocabulary": 49408},
)


def fill(module: nn.Module, generator: torch.Generator) -> None:
    """Random weights everywhere, zero-initialised layers included, small enough that activations stay finite."""
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.05) + (p.ndim == 1) * 0.5)


def write_tiny_release(folder: Path, seed: int = 0, sizes: Sizes = TINY) -> Path:
    """Write a tiny model as the three released files plus `animx.json` and `hashes.json`; returns the folder."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    unet = AnimateXUNet.build(sizes.unet)
    fill(unet, generator)
    vae = build_vae(**sizes.vae)
    fill(vae, generator)
    levels = len(vae.config["block_out_channels"])
    vae_file = {VAE_PREFIX + released_vae_name(k, levels): v for k, v in vae.state_dict().items()}
    # The release keeps the attention's projections as 1x1 convolutions.
    vae_file = {k: v[:, :, None, None] if ".attn_1." in k and v.ndim == 2 else v for k, v in vae_file.items()}
    names = {file.part: file.name for file in RELEASES["animate-x"]}
    torch.save(to_released(unet), folder / names["unet"])
    torch.save({"state_dict": vae_file, "global_step": 0}, folder / names["vae"])
    torch.save(_open_clip(sizes, generator), folder / names["clip"])
    write_sizes(folder, sizes)
    write_hashes(folder)
    return folder


def _open_clip(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    """A random state dict under OpenCLIP names, text and vision."""
    v, t = sizes.vision, sizes.text

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.05)

    def layers(prefix: str, width: int, count: int) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for i in range(count):
            at = f"{prefix}transformer.resblocks.{i}."
            for norm in ("ln_1", "ln_2"):
                made |= {f"{at}{norm}.weight": draw(width) + 1, f"{at}{norm}.bias": draw(width)}
            shapes = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
                      "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
                      "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
                      "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,)}  # fmt: skip
            made |= {at + name: draw(*shape) for name, shape in shapes.items()}
        return made

    width, wide = int(v["width"]), int(t["width"])
    tokens = (int(v["image"]) // int(v["patch"])) ** 2 + 1
    state = {
        "visual.class_embedding": draw(width),
        "visual.positional_embedding": draw(tokens, width),
        "visual.proj": draw(width, int(v["out"])),
        "visual.conv1.weight": draw(width, 3, int(v["patch"]), int(v["patch"])),
        "visual.ln_pre.weight": draw(width) + 1, "visual.ln_pre.bias": draw(width),
        "visual.ln_post.weight": draw(width) + 1, "visual.ln_post.bias": draw(width),
        **layers("visual.", width, int(v["layers"])),
        "token_embedding.weight": draw(int(t["vocabulary"]), wide),
        "positional_embedding": draw(77, wide),
        "text_projection": draw(wide, wide),
        "logit_scale": torch.tensor(2.65),
        "ln_final.weight": draw(wide) + 1,
        "ln_final.bias": draw(wide),
        **layers("", wide, int(t["layers"])),
    }  # fmt: skip
    return state
