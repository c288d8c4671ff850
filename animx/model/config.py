"""What network to build: `UNetConfig` with the named variants `release` and `paper` and every ablation as a field."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from animx.errors import UsageError, nearest

Condition = Literal["image", "local_image", "dwpose", "randomref", "pose_embeddings"]

POSITIVE = ("in_channels", "concat_channels", "width", "head_dim", "stem_heads", "context_dim", "image_tokens", "slots",
            "keypoint_heads", "keypoint_ff", "resampler_heads", "resampler_head_dim", "motion_tokens", "mamba_state",
            "mamba_conv", "mamba_expand")  # fmt: skip
"""Sizes that no network is without."""
CONDITIONS: tuple[Condition, ...] = ("image", "local_image", "dwpose", "randomref", "pose_embeddings")
"""Condition names as in the released configuration's `partial_keys`."""


@dataclass(frozen=True)
class UNetConfig:
    """Shape and variant of the UNet.  Defaults are the released network at full size."""

    in_channels: int = 4
    """Latent channels."""
    concat_channels: int = 8
    """Channels of the dense condition feature (appearance + pose image) stacked on the latent."""
    width: int = 320
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level in units of `width`."""
    res_blocks: int = 2
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_levels: tuple[int, ...] = (0, 1, 2)
    """Levels that carry spatial and temporal blocks."""
    head_dim: int = 64
    """Width of an attention head; heads = channels / head_dim."""
    stem_heads: int = 8
    """Heads of the stem's temporal block, whose inner width is stem_heads * head_dim."""
    context_dim: int = 1024
    """Width of text, image and motion tokens, and of the CLIP vector."""
    image_tokens: int = 4
    """Tokens made from the reference's CLIP vector."""
    dropout: float = 0.1
    """Dropout inside residual blocks and temporal convolutions."""
    slots: int = 33
    """Length of the keypoint encoder's position table (frames + 1)."""
    keypoint_heads: int = 8
    """Attention heads of the keypoint encoder."""
    keypoint_ff: int = 1024
    """Hidden width of the keypoint encoder's feed-forward."""
    keypoint_layers: int = 3
    """Layers of the keypoint encoder."""
    resampler_depth: int = 8
    """Layers of the resampler that turns CLIP vectors into motion tokens."""
    resampler_heads: int = 16
    """Heads of the resampler."""
    resampler_head_dim: int = 64
    """Width of a resampler head."""
    motion_tokens: int = 4
    """Motion tokens per slot."""
    temporal: Literal["transformer", "mamba"] = "transformer"
    """Temporal block: as released, or as in the paper."""
    motion: Literal["transformer", "cross", "none"] = "transformer"
    """Motion attention: the released nested transformer, the paper's single cross-attention, or none (w/o IPI)."""
    motion_order: Literal["serial", "parallel"] = "serial"
    """Motion attention after the spatial transformer, or beside it (ablation PA)."""
    motion_query: Literal["pose", "clip"] = "pose"
    """What queries the resampler: pose tokens (CLIP as key and value), or CLIP (ablation KV_Q)."""
    learned_query: bool = True
    """Keep the learned latents in the resampler's query (off: ablation w/o LQ)."""
    keypoint_query: bool = True
    """Keep the keypoint tokens in the resampler's query (off: ablation w/o DQ)."""
    alpha: float = 1.0
    """Weight of the motion attention (figure 13), 0..1."""
    conditions: tuple[Condition, ...] = ("image", "local_image", "dwpose", "pose_embeddings")
    """Active conditions."""
    mamba_state: int = 16
    """State size of the Mamba block (paper variant)."""
    mamba_conv: int = 4
    """Convolution taps of the Mamba block."""
    mamba_expand: int = 2
    """Inner width of the Mamba block in units of its model width."""
    scan: Literal["animx", "mamba-ssm"] = "animx"
    """Whose selective scan the Mamba block runs: our operator, or the package mamba-ssm (CUDA, extra 'mamba')."""

    def __post_init__(self) -> None:
        for name in self.conditions:
            if name not in CONDITIONS:
                raise UsageError(f"conditions: unknown condition '{name}'.{nearest(name, CONDITIONS)}")
        if "randomref" in self.conditions and "dwpose" not in self.conditions:
            raise UsageError("conditions: 'randomref' needs 'dwpose' (the reference's pose image travels with it)")
        if not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"alpha: {self.alpha} is outside 0..1")
        if self.scan not in ("animx", "mamba-ssm"):
            raise UsageError(f"scan: unknown '{self.scan}'. Known: animx, mamba-ssm")
        for size in POSITIVE:
            if getattr(self, size) < 1:
                raise UsageError(f"{size}: {getattr(self, size)} is less than 1")
        if self.context_dim % self.keypoint_heads:
            raise UsageError(f"keypoint_heads: {self.keypoint_heads} do not divide context_dim {self.context_dim}")
        if not self.multipliers:
            raise UsageError("multipliers: a network has at least one level")
        if min(self.multipliers) < 1:
            raise UsageError(f"multipliers: {min(self.multipliers)} is less than 1")
        if self.attention_levels and not set(self.attention_levels) & set(range(len(self.multipliers))):
            raise UsageError(
                f"attention_levels: {list(self.attention_levels)} names no level of {len(self.multipliers)}, counted "
                "from 0. Use [] for none"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout: {self.dropout} is outside 0..1 (1 excluded)")
        if self.width % 32:
            raise UsageError(f"width: {self.width} is not a multiple of 32 (the group count of every norm)")


def variant(name: str, **changes: Any) -> UNetConfig:
    """The named variant `release` or `paper`, with fields changed.  Unknown names are a `UsageError`."""
    base = UNetConfig()
    if name == "paper":
        base = replace(
            base,
            temporal="mamba",
            motion="cross",
            conditions=("image", "dwpose", "randomref", "pose_embeddings"),
        )
    elif name != "release":
        raise UsageError(f"unknown variant '{name}'.{nearest(name, ('release', 'paper'))} Known: release, paper")
    return replace(base, **changes)
