"""The transformers of the fused network: spatial, motion and temporal, and the Mamba block; see `fused_parts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from animx.model.attention import (
    Attention,
    FeedForward,
    KeyValue,
    MotionCross,
    MotionFold,
    MotionTransformer,
    SpatialTransformer,
    TransformerBlock,
)
from animx.model.fused_parts import Grid, Norm, Part, bias_of
from animx.model.linear8 import Linear8
from animx.model.temporal import MambaBlock, Temporal, scanned
from animx_kernels.add_layer_norm import add_layer_norm
from animx_kernels.attention8 import attention8
from animx_kernels.geglu import geglu_linear
from animx_kernels.layer_norm8 import add_layer_norm8
from animx_kernels.motion_attention import motion_attention
from animx_kernels.quantise8 import Rows8
from animx_kernels.temporal_attention import temporal_attention


def stacked(layers: Sequence[nn.Linear]) -> Tensor:
    """The weights of bias-free projections of one input as one matrix [sum of rows, C].

    The layers' own weights become views of it, so that memory is not spent twice; those in training are left alone.
    """
    whole = torch.cat([layer.weight.detach() for layer in layers])
    if not any(layer.weight.requires_grad for layer in layers):
        for layer, rows in zip(layers, torch.split(whole, [layer.out_features for layer in layers]), strict=True):
            layer.weight = nn.Parameter(rows, requires_grad=False)
    return whole


class Projection(Part):
    """A linear layer, or several without bias of one input side by side; exact or in 8 bits as they are."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.eight: Linear8 | None = None
        first = layers[0]
        if isinstance(first, Linear8):
            several = [one for one in layers if isinstance(one, Linear8)]
            self.eight = first if len(layers) == 1 else Linear8.stacked(several)
            return
        if len(layers) == 1:
            assert isinstance(first, nn.Linear | nn.Conv1d)
            self.hold(weight=first.weight.flatten(1))
            self.register_buffer("bias", None if first.bias is None else first.bias.detach(), persistent=False)
            return
        self.hold(weight=stacked([one for one in layers if isinstance(one, nn.Linear)]))
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor | Rows8, like: Tensor | None = None) -> Tensor:
        """x [..., K], or its rows in 8 bits where the layer is -> [..., N] of the type of `like` (x)."""
        if self.eight is not None:
            return self.eight.rows(x, dtype=None if like is None else like.dtype)
        assert isinstance(x, Tensor)
        return F.linear(x, self.weight, self.bias)


class Normed(Part):
    """A residual added and a LayerNorm taken, in 8 bits where the layers behind it are."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, *behind: nn.Module) -> None:
        super().__init__()
        self.hold(weight=norm.weight, bias=norm.bias)
        self.eps, self.eight = norm.eps, all(isinstance(layer, Linear8) for layer in behind)

    def forward(self, y: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor | Rows8]:
        """(y + branch, its norm)."""
        if self.eight:
            return add_layer_norm8(y, branch, self.weight, self.bias, self.eps)
        return add_layer_norm(y, branch, self.weight, self.bias, self.eps)


def ending(feed: FeedForward, proj_out: nn.Module, alpha: float = 1.0) -> Ending | Ending8:
    """The end of a transformer: `Ending` of exact layers, `Ending8` where its feed-forward is in 8 bits."""
    if isinstance(feed.proj, Linear8) and isinstance(feed.out, Linear8):
        return Ending8(feed, proj_out, alpha)
    assert isinstance(proj_out, nn.Linear | nn.Conv1d)
    return Ending(feed, proj_out, alpha)


class Ending8(Part):
    """As `Ending` with a feed-forward in 8 bits, one matrix after the other: `Ending` would need a third one.

    The feed-forward's inner activations exist in 8 bits only, and its residual is added where they are multiplied.
    """

    def __init__(self, feed: FeedForward, proj_out: nn.Module, alpha: float = 1.0) -> None:
        super().__init__()
        inner, outer = cast(nn.Module, feed.proj), cast(nn.Module, feed.out)
        assert isinstance(inner, Linear8)
        assert isinstance(outer, Linear8)
        self.inner, self.feed, self.alpha = inner, outer, alpha
        self.out = Projection(proj_out.times(alpha) if isinstance(proj_out, Linear8) else proj_out)

    def forward(self, normed: Tensor | Rows8, y: Tensor, x: Tensor) -> Tensor:
        """normed, y [I, N, D] (the norm of y, and y), x [I, N, C] -> [I, N, C]."""
        z = self.feed.rows(self.inner.geglu(normed), y)
        if self.out.eight is not None:
            return self.out.eight.rows(z, x)
        out: Tensor = self.out(z)
        return out.add_(x) if self.alpha == 1.0 else torch.add(x, out, alpha=self.alpha)


class Ending(Part):
    """Feed-forward, the block's residual, the projection out of the block, and the residual around it all.

    P (y + W g + b) + p = (P W) g + P y + (P b + p): the feed-forward's second matrix goes into the projection.
    """

    def __init__(self, feed: FeedForward, proj_out: nn.Linear | nn.Conv1d, alpha: float = 1.0) -> None:
        super().__init__()
        kind = torch.float64 if feed.out.weight.dtype == torch.float64 else torch.float32
        out = proj_out.weight.flatten(1)
        wide = out.to(kind) * alpha
        bias = wide @ feed.out.bias.to(kind) + bias_of(proj_out).to(kind) * alpha
        self.hold(
            inner=feed.proj.weight,
            inner_bias=feed.proj.bias,
            both=(wide @ feed.out.weight.to(kind)).to(out.dtype),
            out=out if alpha == 1.0 else wide.to(out.dtype),
            bias=bias.to(out.dtype),
        )

    inner: Tensor
    inner_bias: Tensor
    both: Tensor
    out: Tensor
    bias: Tensor

    def forward(self, normed: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """normed, y [I, N, D] (the norm of y, and y), x [I, N, C] -> [I, N, C]."""
        gated = geglu_linear(normed, self.inner, self.inner_bias)
        z = F.linear(gated, self.both, self.bias)
        z.flatten(0, 1).addmm_(y.flatten(0, 1), self.out.t())
        return z.add_(x)


class Beginning(Part):
    """GroupNorm over each instance, projection into the block, and its first LayerNorm."""

    def __init__(self, norm: nn.GroupNorm, proj_in: nn.Module) -> None:
        super().__init__()
        self.norm = Norm(norm, silu=False)
        self.into = Projection(proj_in)

    def forward(self, x: Tensor) -> Tensor:
        """[I, N, C] -> [I, N, D]."""
        out: Tensor = self.into(self.norm(x))
        return out


class SelfAttention(Part):
    """LayerNorm, one projection for queries, keys and values, attention within a slot or over slots, projection."""

    def __init__(self, norm: nn.LayerNorm, plain: Attention) -> None:
        super().__init__()
        self.heads, self.in_eight_bits = plain.heads, plain.in_eight_bits
        self.norm = Normed(norm, plain.to_q, plain.to_k, plain.to_v)
        self.qkv, self.out = Projection(plain.to_q, plain.to_k, plain.to_v), Projection(plain.to_out)

    def forward(self, branch: Tensor | None, y: Tensor, grid: Grid | None = None) -> tuple[Tensor, Tensor]:
        """(y + branch, what attention to itself adds to that), [I, N, D]; with `grid` over the slots of each token."""
        y, normed = self.norm(y, branch)
        qkv = self.qkv(normed, y)
        if grid is not None:
            q, k, v = grid.clip(qkv).chunk(3, dim=-1)
            attended = temporal_attention(q, k, v, self.heads).flatten(0, 1)
        else:
            q, k, v = torch.unflatten(qkv, 2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
            attend = attention8 if self.in_eight_bits else F.scaled_dot_product_attention
            attended = attend(q, k, v).transpose(1, 2).flatten(2)
        return y, self.out(attended)


class CrossAttention(Part):
    """LayerNorm and attention to keys and values that all slots of a clip share."""

    def __init__(self, norm: nn.LayerNorm, plain: Attention) -> None:
        super().__init__()
        self.heads = plain.heads
        self.norm = Normed(norm, plain.to_q)
        self.q, self.out = Projection(plain.to_q), Projection(plain.to_out)

    def forward(self, branch: Tensor, y: Tensor, context: KeyValue) -> tuple[Tensor, Tensor]:
        """(y + branch, what attention to the context adds to that), [I, N, D]; keys and values [B, heads, M, d]."""
        y, normed = self.norm(y, branch)
        k, v = context
        q = self.q(normed, y).view(k.shape[0], -1, self.heads, k.shape[3]).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return y, self.out(attended.reshape(y.shape[0], y.shape[1], -1))


class FusedSpatial(Part):
    """See `SpatialTransformer`."""

    def __init__(self, plain: SpatialTransformer) -> None:
        super().__init__()
        block = plain.block
        self.parallel = plain.parallel
        self.begin = Beginning(plain.norm, plain.proj_in)
        self.own = SelfAttention(block.norm1, block.self_attention)
        self.cross = CrossAttention(block.norm2, block.cross_attention)
        self.norm = Normed(block.norm3, block.feed_forward.proj)
        self.end = ending(block.feed_forward, plain.proj_out)
        self.motion: FusedMotion | FusedMotionCross | None = None
        if isinstance(plain.motion, MotionTransformer):
            self.motion = FusedMotion(plain.motion, plain.alpha)
        elif isinstance(plain.motion, MotionCross):
            self.motion = FusedMotionCross(plain.motion, plain.alpha)

    def forward(self, x: Tensor, context: KeyValue, fold: MotionFold | None) -> Tensor:
        """x [I, N, C]; keys and values of batch B; the folded motion attention of batch I."""
        y, branch = self.own(None, self.begin(x))
        y, branch = self.cross(branch, y, context)
        y, normed = self.norm(y, branch)
        out: Tensor = self.end(normed, y, x)
        if self.motion is None or fold is None:
            return out
        return self.motion(x if self.parallel else out, fold, out)


class FusedMotion(Part):
    """See `MotionTransformer`; alpha is multiplied into the last projection."""

    def __init__(self, plain: MotionTransformer, alpha: float) -> None:
        super().__init__()
        block = plain.block
        self.begin = Beginning(plain.norm, plain.proj_in)
        self.own = SelfAttention(block.norm1, block.self_attention)
        self.heads, self.motion_eps = block.cross_attention.heads, block.norm2.eps
        self.norm = Normed(block.norm3, block.feed_forward.proj)
        self.end = ending(block.feed_forward, plain.proj_out, alpha)

    def forward(self, x: Tensor, fold: MotionFold, onto: Tensor) -> Tensor:
        """`onto` plus the branch of x, all [I, N, C]."""
        y, branch = self.own(None, self.begin(x))
        y = motion_attention(y.add_(branch), *fold, self.heads, self.motion_eps)
        y, normed = self.norm(y, None)
        out: Tensor = self.end(normed, y, onto)
        return out


class FusedMotionCross(Part):
    """See `MotionCross`: one operator."""

    def __init__(self, plain: MotionCross, alpha: float) -> None:
        super().__init__()
        self.heads, self.eps, self.alpha = plain.attention.heads, plain.norm.eps, alpha

    def forward(self, x: Tensor, fold: MotionFold, onto: Tensor) -> Tensor:
        """`onto` plus the branch of x, all [I, N, C]."""
        if onto is x:
            return motion_attention(x, *fold, self.heads, self.eps, self.alpha)
        return motion_attention(x, *fold, self.heads, self.eps, self.alpha, False).add_(onto)


class FusedTemporal(Part):
    """See `Temporal`, with the transformer."""

    def __init__(self, plain: Temporal) -> None:
        super().__init__()
        block = plain.block
        assert isinstance(block, TransformerBlock)
        self.begin = Beginning(plain.norm, plain.proj_in)
        self.first = SelfAttention(block.norm1, block.self_attention)
        self.second = SelfAttention(block.norm2, block.cross_attention)
        self.norm = Normed(block.norm3, block.feed_forward.proj)
        self.end = ending(block.feed_forward, plain.proj_out)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[I, N, C] -> same shape."""
        y = self.begin(x.view(grid.batch, -1, x.shape[2])).view(*x.shape[:2], -1)  # statistics over the whole clip
        y, branch = self.first(None, y, grid)
        y, branch = self.second(branch, y, grid)
        y, normed = self.norm(y, branch)
        out: Tensor = self.end(normed, y, x)
        return out


class FusedMamba(Part):
    """See `Temporal`, with the Mamba block; the scan runs over the slots where they lie."""

    def __init__(self, plain: Temporal) -> None:
        super().__init__()
        block = plain.block
        assert isinstance(block, MambaBlock)
        self.begin = Beginning(plain.norm, plain.proj_in)
        self.directions, self.library = block.directions(), block.library
        self.hold(norm=block.norm.weight, shift=block.norm.bias)
        self.out = Projection(plain.proj_out)
        self.eps = block.norm.eps

    norm: Tensor
    shift: Tensor

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[I, N, C] -> same shape."""
        y = self.begin(x.view(grid.batch, -1, x.shape[2])).view(*x.shape[:2], -1)
        y, normed = add_layer_norm(y, None, self.norm, self.shift, self.eps)
        if self.library:  # wants a row of slots for each token
            rows = scanned(self.directions, grid.clip(normed).transpose(1, 2).flatten(0, 1), library=True)
            both = torch.unflatten(rows, 0, (grid.batch, -1)).transpose(1, 2)
        else:
            both = scanned(self.directions, grid.clip(normed))
        y.flatten(0, 1).addmm_(both.reshape(-1, both.shape[3]), self.directions.out.t())
        out: Tensor = self.out(y)
        return out.add_(x)
