"""Implicit pose indicator (IPI): driving motion as tokens (Animate-X, arXiv 2410.10306, section 3.3).

In: keypoints [B, T, 2, 18] normalised to the picture, -1 where invisible; CLIP vectors [B, T, D]; slot 0 = reference.
Out: motion tokens [B, T, 4, D].
Released code: IPI_module.py at e41d3f0 (facts 3.4).  Differs: the encoder's output is transposed back before it is
reshaped, so a batch above 1 keeps slots and samples apart; identical at batch 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from animx.model.config import UNetConfig


def position_table(slots: int, width: int) -> Tensor:
    """Fixed sinusoid [1, slots, width]: even channels sin, odd cos, exponent 2 * (j // 2) / width; from float64."""
    exponent = 2 * (torch.arange(width, dtype=torch.float64) // 2) / width
    angle = torch.arange(slots, dtype=torch.float64)[:, None] / 10000.0**exponent  # [slots, width]
    table = torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())
    return table[None].float()


class KeypointEncoder(nn.Module):
    """Keypoints of all slots to pose tokens: embedding, positions, a post-norm transformer over slots, a token MLP."""

    RELEASED: ClassVar = {
        "embed1": "increase_embed_dim.0",
        "embed2": "increase_embed_dim.1",
        "positions": "pos_embed.pos_table",
        "layers": "encoder.layers",
        "token1": "pre_image_condition_p.0",
        "token2": "pre_image_condition_p.2",
    }

    def __init__(self, config: UNetConfig, keypoints: int = 18) -> None:
        super().__init__()
        width = config.context_dim
        self.tokens = config.motion_tokens
        self.embed1 = nn.Linear(keypoints * 2, width // 2)
        self.embed2 = nn.Linear(width // 2, width)
        self.register_buffer("positions", position_table(config.slots, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.keypoint_heads, config.keypoint_ff, 0.1, batch_first=True)
            for _ in range(config.keypoint_layers)
        )
        self.token1 = nn.Linear(width, width)
        self.token2 = nn.Linear(width, width * self.tokens)
        nn.init.zeros_(self.token2.weight)
        nn.init.zeros_(self.token2.bias)

    positions: Tensor

    def forward(self, keypoints: Tensor) -> Tensor:
        """[B, T, 2, K] -> pose tokens [B, T, tokens, D].  Raises when T exceeds the position table."""
        slots = keypoints.shape[1]
        if slots > self.positions.shape[1]:
            raise ValueError(f"{slots} slots, but the position table holds {self.positions.shape[1]}")
        x = self.embed2(self.embed1(keypoints.flatten(2))) + self.positions[:, :slots]  # [B, T, D]
        for layer in self.layers:
            x = layer(x)
        x = self.token2(F.silu(self.token1(x)))
        return rearrange(x, "b t (n d) -> b t n d", n=self.tokens)


class ResamplerAttention(nn.Module):
    """Queries from the latents; keys and values from [x, latents], one fused projection; softmax in float32."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.scale = heads, head_dim**-0.25
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x [B, N, D], latents [B, M, D] -> [B, M, D]."""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=self.heads) for y in (self.to_q(latents), k, v))
        weight = (q * self.scale) @ (k * self.scale).transpose(-2, -1)
        weight = weight.float().softmax(dim=-1).to(weight.dtype)
        return self.to_out(rearrange(weight @ v, "b h n d -> b n (h d)"))


class ResamplerLayer(nn.Module):
    """Attention and a bias-free GELU feed-forward, each with residual on the latents."""

    RELEASED: ClassVar = {"attention": "0", "norm": "1.0", "hidden": "1.1", "out": "1.3"}

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.attention = ResamplerAttention(width, heads, head_dim)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Returns the new latents [B, M, D]."""
        latents = latents + self.attention(x, latents)
        return latents + self.out(F.gelu(self.hidden(self.norm(latents))))


class Resampler(nn.Module):
    """CLIP vectors, asked by learned queries plus pose tokens, become motion tokens.

    Ablations: `learned_query` and `keypoint_query` drop one addend; `motion_query="clip"` (KV_Q) swaps the roles: the
    CLIP vector, widened to 4 tokens, plus the learned query asks, and the pose tokens are key and value.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.context_dim
        self.learned, self.keypoint = config.learned_query, config.keypoint_query
        self.query = config.motion_query
        self.latents = nn.Parameter(torch.randn(1, config.motion_tokens, width) / width**0.5)
        self.proj_in = nn.Linear(width, width)
        if self.query == "clip":
            self.clip_tokens = nn.Linear(width, width * config.motion_tokens)
        self.layers = nn.ModuleList(
            ResamplerLayer(width, config.resampler_heads, config.resampler_head_dim)
            for _ in range(config.resampler_depth)
        )
        self.proj_out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, pose_tokens: Tensor, clip: Tensor) -> Tensor:
        """pose tokens [B, T, M, D], CLIP vectors [B, T, D] -> motion tokens [B, T, M, D]."""
        batch, slots = clip.shape[:2]
        pose = rearrange(pose_tokens, "b t m d -> (b t) m d")
        vector = rearrange(clip, "b t d -> (b t) 1 d")
        if self.query == "clip":
            addend, x = rearrange(self.clip_tokens(vector), "b 1 (m d) -> b m d", m=pose.shape[1]), self.proj_in(pose)
        else:
            addend, x = pose, self.proj_in(vector)
        latents = repeat(self.latents, "1 m d -> b m d", b=batch * slots)
        latents = latents * float(self.learned) + addend * float(self.keypoint)
        for layer in self.layers:
            latents = layer(x, latents)
        return rearrange(self.norm_out(self.proj_out(latents)), "(b t) m d -> b t m d", b=batch)
