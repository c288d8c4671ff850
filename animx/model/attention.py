"""Attention, the transformer block, and the spatial transformer with its nested motion attention (released 4.2).

`RELEASED` on a module maps its attribute names to those of the released state dict; what is not listed keeps its name.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from animx.model.linear8 import Linear8
from animx_kernels.attention8 import attention8
from animx_kernels.motion_attention import fold_motion, motion_attention

KeyValue = tuple[Tensor, Tensor]
"""Keys and values, each [B, heads, N, head_dim]."""


class MotionFold(NamedTuple):
    """A pre-LN attention to few fixed tokens with norm, projections, keys and values multiplied out (inference only).

    m tokens, h heads: `animx_kernels.motion_attention` has the formula.
    """

    a: Tensor  # [B*T, C, h*m]
    a_bias: Tensor  # [B*T, h*m]
    b: Tensor  # [B*T, h*m, C]
    b_bias: Tensor  # [C]

    @classmethod
    def of(cls, norm: nn.LayerNorm, attention: Attention, key_value: KeyValue) -> MotionFold:
        """Fold what does not change over a render; exact but for the order of the products."""
        return cls(
            *fold_motion(
                norm.weight,
                norm.bias,
                attention.to_q.weight,
                attention.to_out.weight,
                attention.to_out.bias,
                *key_value,
            )
        )


MOST_ROWS = 65535
"""Batch of one attention: the kernels of CUDA put it on a grid axis that ends there (PyTorch issue 146704)."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention from q [B, heads, N, d] to k, v [B, heads, M, d], any B: over the slots of each pixel B is B*h*w."""
    if q.shape[0] <= MOST_ROWS:
        return F.scaled_dot_product_attention(q, k, v)
    parts = zip(*(torch.split(x, MOST_ROWS) for x in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])


class Attention(nn.Module):
    """Multi-head attention with bias-free q, k, v and a biased output projection; scale head_dim^-0.5."""

    RELEASED: ClassVar = {"to_out": "to_out.0"}

    def __init__(self, width: int, heads: int, head_dim: int, context_width: int | None = None) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context_width or width, inner, bias=False)
        self.to_v = nn.Linear(context_width or width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)
        self.in_eight_bits = False
        """Scores of attention to itself from queries and keys in 8 bits (`animx.model.eight_bit` decides)."""

    def key_value(self, context: Tensor) -> KeyValue:
        """Project a context [B, N, D] once; hand the result to `forward` as often as wanted."""
        split = "b n (h d) -> b h n d"
        return rearrange(self.to_k(context), split, h=self.heads), rearrange(self.to_v(context), split, h=self.heads)

    def forward(self, x: Tensor, key_value: KeyValue | None = None) -> Tensor:
        """Attend from x [B, N, D] to `key_value`, or to itself.

        A context of fewer rows serves B / rows neighbours each: their queries are lined up as one row, so that keys
        and values are neither copied nor read again per slot.
        """
        k, v = self.key_value(x) if key_value is None else key_value
        sharing = x.shape[0] // k.shape[0]
        q = rearrange(self.to_q(x), "(b s) n (h d) -> b h (s n) d", s=sharing, h=self.heads)
        eight = self.in_eight_bits and key_value is None
        out = attention8(q, k, v) if eight else attend(q, k, v)
        return self.to_out(rearrange(out, "b h (s n) d -> (b s) n (h d)", s=sharing))


class FeedForward(nn.Module):
    """GEGLU with exact GELU: D -> 8D, value * gelu(gate), 4D -> D."""

    RELEASED: ClassVar = {"proj": "net.0.proj", "out": "net.2"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width * 8)
        self.out = nn.Linear(width * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if isinstance(self.proj, Linear8) and isinstance(self.out, Linear8):
            return self.out.rows(self.proj.geglu(x))
        value, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, attention to a context (or itself once more), feed-forward; each pre-LN with residual."""

    RELEASED: ClassVar = {"self_attention": "attn1", "cross_attention": "attn2", "feed_forward": "ff"}

    def __init__(self, width: int, heads: int, head_dim: int, context_width: int | None) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, head_dim)
        self.feed_forward = FeedForward(width)
        self.cross_attention = Attention(width, heads, head_dim, context_width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: KeyValue | MotionFold | None = None) -> Tensor:
        """x [B, N, D]; without `context` both attentions attend to x."""
        x = x + self.self_attention(self.norm1(x))
        if isinstance(context, MotionFold):
            x = motion_attention(x, *context, self.cross_attention.heads, self.norm2.eps)
        else:
            x = x + self.cross_attention(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


class MotionTransformer(nn.Module):
    """The released motion attention: a whole second transformer whose context is the motion tokens.

    Returns the branch alone (without its residual); the caller adds it, weighted by alpha.
    """

    RELEASED: ClassVar = {
        "norm": "norm_p",
        "proj_in": "proj_in_p",
        "block": "transformer_blocks_p.0",
        "proj_out": "proj_out_p",
    }

    def __init__(self, channels: int, heads: int, head_dim: int, context_width: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.block = TransformerBlock(inner, heads, head_dim, context_width)
        self.proj_out = nn.Linear(inner, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    @property
    def attention(self) -> Attention:
        """The attention that reads the motion tokens."""
        return self.block.cross_attention

    @property
    def attention_norm(self) -> nn.LayerNorm:
        """The norm before that attention."""
        return self.block.norm2

    def forward(self, x: Tensor, tokens: KeyValue | MotionFold) -> Tensor:
        """x [B*T, C, h, w], motion keys and values [B*T, heads, 4, d] or their fold -> branch [B*T, C, h, w]."""
        h, w = x.shape[-2:]
        y = rearrange(self.norm(x), "b c h w -> b (h w) c")  # [B*T, N, C]
        y = self.proj_out(self.block(self.proj_in(y), tokens))
        return rearrange(y, "b (h w) c -> b c h w", h=h, w=w)


class MotionCross(nn.Module):
    """The paper's motion attention: one pre-LN cross-attention on the motion tokens, zero-initialised output."""

    def __init__(self, channels: int, heads: int, head_dim: int, context_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads, head_dim, context_width)
        nn.init.zeros_(self.attention.to_out.weight)
        nn.init.zeros_(self.attention.to_out.bias)

    @property
    def attention_norm(self) -> nn.LayerNorm:
        """The norm before the attention."""
        return self.norm

    def forward(self, x: Tensor, tokens: KeyValue | MotionFold) -> Tensor:
        """x [B*T, C, h, w], motion keys and values [B*T, heads, 4, d] or their fold -> branch [B*T, C, h, w]."""
        h, w = x.shape[-2:]
        y = rearrange(x, "b c h w -> b (h w) c")
        if isinstance(tokens, MotionFold):
            y = motion_attention(y, *tokens, self.attention.heads, self.norm.eps, 1.0, False)
        else:
            y = self.attention(self.norm(y), tokens)
        return rearrange(y, "b (h w) c -> b c h w", h=h, w=w)


class SpatialTransformer(nn.Module):
    """Tokens of one slot attend to each other and to text and image tokens; then the motion attention.

    Serial: y = Spatial(x), out = y + alpha * Motion(y).  Parallel (ablation PA): out = Spatial(x) + alpha * Motion(x).
    """

    RELEASED: ClassVar = {"block": "transformer_blocks.0", "motion": "pose_attention"}

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        context_width: int,
        motion: MotionTransformer | MotionCross | None,
        *,
        alpha: float = 1.0,
        parallel: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.alpha, self.parallel = alpha, parallel
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.block = TransformerBlock(inner, heads, head_dim, context_width)
        self.proj_out = nn.Linear(inner, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.motion = motion

    def motion_constants(self, tokens: Tensor | None, fold: bool) -> KeyValue | MotionFold | None:
        """What the motion attention needs of the motion tokens [B*T, m, D] at every step; None where there is none."""
        if self.motion is None or tokens is None:
            return None
        key_value = self.motion.attention.key_value(tokens)
        return MotionFold.of(self.motion.attention_norm, self.motion.attention, key_value) if fold else key_value

    def forward(self, x: Tensor, context: KeyValue, motion: KeyValue | MotionFold | None) -> Tensor:
        """x [B*T, C, h, w]; context keys and values of batch B (shared by the slots); motion ones of batch B*T."""
        h, w = x.shape[-2:]
        y = rearrange(self.norm(x), "b c h w -> b (h w) c")
        y = self.proj_out(self.block(self.proj_in(y), context))
        y = x + rearrange(y, "b (h w) c -> b c h w", h=h, w=w)
        if self.motion is None or motion is None:
            return y
        return y + self.alpha * self.motion(x if self.parallel else y, motion)
