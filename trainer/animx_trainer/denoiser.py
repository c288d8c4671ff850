"""The network as training sees it: one module whose forward encodes the conditions, drops some, and denoises.

In: noisy latents, timesteps, `Inputs`, what each sample keeps.  Out: velocity.  One forward, because DDP and FSDP hang
their work on it.  The state dict holds the UNet's names behind `unet.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from animx.model.attention import SpatialTransformer
from animx.model.conditions import Inputs
from animx.model.layers import ResBlock
from animx.model.temporal import Temporal
from animx.model.unet import AnimateXUNet
from animx_trainer.keyed_dropout import recomputing

CHECKPOINTED = (ResBlock, SpatialTransformer, Temporal)
"""Blocks whose activations are computed twice with activation checkpointing (released facts 4.4)."""

FEATURES: dict[str, tuple[str, ...]] = {
    "image": ("image_tokens",),
    "local_image": ("local_image_frames",),
    "dwpose": ("dwpose_frames",),
    "motion": ("reference_latent_frames", "reference_pose_frames"),
}
"""Where a dropped condition's feature becomes 0: behind its encoder, as in the released code, so that a sample without
it is computed exactly as if the condition were absent."""


class Denoiser(nn.Module):
    """A UNet to be trained.  Parts that the active conditions never use are frozen."""

    def __init__(self, unet: AnimateXUNet, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.unet = unet
        unused = set(unused_parts(unet))
        for name, part in unet.named_children():
            part.requires_grad_(name not in unused)
        if checkpointing:
            for module in unet.modules():
                if isinstance(module, CHECKPOINTED):
                    _recompute(module)

    def forward(self, x: Tensor, t: Tensor, inputs: Inputs, keep: Mapping[str, Tensor] | None = None) -> Tensor:
        """x [B, C, F, h, w] at t [B] -> velocity of the same shape.

        keep: condition (or `motion`) -> [B], 1 where the sample keeps it and 0 where it is dropped; None keeps all.
        """
        kept = dict(keep or {})
        if "motion" in kept:
            inputs = _without_motion(inputs, kept["motion"])
        with ExitStack() as hooks:
            for condition, factor in kept.items():
                for name in FEATURES[condition]:
                    hooks.enter_context(_scaling(getattr(self.unet, name), factor))
            h, w = x.shape[-2:]
            conditions = self.unet.encode(inputs, frames=x.shape[2], latent=(h, w), batch=x.shape[0])
        velocity: Tensor = self.unet(x, t, conditions)
        return velocity


def unused_parts(unet: AnimateXUNet) -> list[str]:
    """Children of the UNet that its active conditions never reach: they get no gradient, so they are not trained."""
    active = unet.shape.conditions
    parts = {
        "image": ("image_tokens",),
        "local_image": ("local_image", "local_image_frames"),
        "dwpose": ("dwpose", "dwpose_frames"),
        "randomref": ("reference_pose", "reference_pose_frames", "reference_latent", "reference_latent_frames"),
    }
    return [name for condition, names in parts.items() if condition not in active for name in names]


def _without_motion(inputs: Inputs, keep: Tensor) -> Inputs:
    """Keypoints and CLIP vectors of all slots as zeros where `keep` [B] is 0: what absent ones count as."""
    factor = keep[:, None, None]
    return replace(
        inputs,
        keypoints=None if inputs.keypoints is None else inputs.keypoints * factor[..., None],
        clip=None if inputs.clip is None else inputs.clip * factor,
    )


def _scaling(module: nn.Module, factor: Tensor) -> Any:
    """A hook that multiplies the module's output [B, ...] by `factor` [B]; a handle that removes itself."""

    def scale(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out * factor.to(out.dtype).view(-1, *[1] * (out.ndim - 1))

    return module.register_forward_hook(scale)


def _recompute(module: nn.Module) -> None:
    """Make the module's forward forget its activations and compute them again when the gradient needs them."""
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        # No random state to keep: dropout is keyed, and repeats its masks through `recomputing`.
        return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, context_fn=recomputing, **kwargs)

    module.forward = forward
