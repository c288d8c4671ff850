"""The transformers of the fused network: spatial, motion and temporal, and the Mamba block; see `fused_parts`."""

from __future__ import annotations

from collections.abc import Sequence

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
from animx.model.temporal import MambaBlock, Temporal, through
from animx_kernels.add_layer_norm import add_layer_norm
from animx_kernels.geglu import geglu_linear
from animx_kernels.motion_attention import motion_attention
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

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm, proj_in: nn.Linear | nn.Conv1d) -> None:
        super().__init__()
        self.norm = Norm(norm, silu=False)
        self.hold(weight=proj_in.weight.flatten(1), bias=bias_of(proj_in))

    def forward(self, x: Tensor) -> Tensor:
        """[I, N, C] -> [I, N, D]."""
        return F.linear(self.norm(x), self.weight, self.bias)


class SelfAttention(Part):
    """LayerNorm, one projection for queries, keys and values, attention within a slot or over slots, projection."""

    def __init__(self, norm: nn.LayerNorm, plain: Attention) -> None:
        super().__init__()
        self.heads, self.eps = plain.heads, norm.eps
        self.hold(
            norm=norm.weight,
            shift=norm.bias,
            qkv=stacked([plain.to_q, plain.to_k, plain.to_v]),
            out=plain.to_out.weight,
            bias=plain.to_out.bias,
        )

    norm: Tensor
    shift: Tensor
    qkv: Tensor
    out: Tensor
    bias: Tensor

    def forward(self, branch: Tensor | None, y: Tensor, grid: Grid | None = None) -> tuple[Tensor, Tensor]:
        """(y + branch, what attention to itself adds to that), [I, N, D]; with `grid` over the slots of each token."""
        y, normed = add_layer_norm(y, branch, self.norm, self.shift, self.eps)
        qkv = F.linear(normed, self.qkv)
        if grid is not None:
            q, k, v = grid.clip(qkv).chunk(3, dim=-1)
            attended = temporal_attention(q, k, v, self.heads).flatten(0, 1)
        else:
            q, k, v = torch.unflatten(qkv, 2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return y, F.linear(attended, self.out, self.bias)


class CrossAttention(Part):
    """LayerNorm and attention to keys and values that all slots of a clip share."""

    def __init__(self, norm: nn.LayerNorm, plain: Attention) -> None:
        super().__init__()
        self.heads, self.eps = plain.heads, norm.eps
        self.hold(
            norm=norm.weight, shift=norm.bias, q=plain.to_q.weight, out=plain.to_out.weight, bias=plain.to_out.bias
        )

    norm: Tensor
    shift: Tensor
    q: Tensor
    out: Tensor
    bias: Tensor

    def forward(self, branch: Tensor, y: Tensor, context: KeyValue) -> tuple[Tensor, Tensor]:
        """(y + branch, what attention to the context adds to that), [I, N, D]; keys and values [B, heads, M, d]."""
        y, normed = add_layer_norm(y, branch, self.norm, self.shift, self.eps)
        k, v = context
        q = F.linear(normed, self.q).view(k.shape[0], -1, self.heads, k.shape[3]).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return y, F.linear(attended.reshape(y.shape[0], y.shape[1], -1), self.out, self.bias)


class FusedSpatial(Part):
    """See `SpatialTransformer`."""

    def __init__(self, plain: SpatialTransformer) -> None:
        super().__init__()
        block = plain.block
        self.parallel = plain.parallel
        self.begin = Beginning(plain.norm, plain.proj_in)
        self.own = SelfAttention(block.norm1, block.self_attention)
        self.cross = CrossAttention(block.norm2, block.cross_attention)
        self.hold(norm=block.norm3.weight, shift=block.norm3.bias)
        self.eps = block.norm3.eps
        self.end = Ending(block.feed_forward, plain.proj_out)
        self.motion: FusedMotion | FusedMotionCross | None = None
        if isinstance(plain.motion, MotionTransformer):
            self.motion = FusedMotion(plain.motion, plain.alpha)
        elif isinstance(plain.motion, MotionCross):
            self.motion = FusedMotionCross(plain.motion, plain.alpha)

    norm: Tensor
    shift: Tensor

    def forward(self, x: Tensor, context: KeyValue, fold: MotionFold | None) -> Tensor:
        """x [I, N, C]; keys and values of batch B; the folded motion attention of batch I."""
        y, branch = self.own(None, self.begin(x))
        y, branch = self.cross(branch, y, context)
        y, normed = add_layer_norm(y, branch, self.norm, self.shift, self.eps)
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
        self.hold(norm=block.norm3.weight, shift=block.norm3.bias)
        self.eps = block.norm3.eps
        self.end = Ending(block.feed_forward, plain.proj_out, alpha)

    norm: Tensor
    shift: Tensor

    def forward(self, x: Tensor, fold: MotionFold, onto: Tensor) -> Tensor:
        """`onto` plus the branch of x, all [I, N, C]."""
        y, branch = self.own(None, self.begin(x))
        y = motion_attention(y.add_(branch), *fold, self.heads, self.motion_eps)
        y, normed = add_layer_norm(y, None, self.norm, self.shift, self.eps)
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
        self.hold(norm=block.norm3.weight, shift=block.norm3.bias)
        self.eps = block.norm3.eps
        self.end = Ending(block.feed_forward, plain.proj_out)

    norm: Tensor
    shift: Tensor

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[I, N, C] -> same shape."""
        y = self.begin(x.view(grid.batch, -1, x.shape[2])).view(*x.shape[:2], -1)  # statistics over the whole clip
        y, branch = self.first(None, y, grid)
        y, branch = self.second(branch, y, grid)
        y, normed = add_layer_norm(y, branch, self.norm, self.shift, self.eps)
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
        self.hold(out=plain.proj_out.weight.flatten(1), bias=bias_of(plain.proj_out))
        self.eps = block.norm.eps

    norm: Tensor
    shift: Tensor
    out: Tensor
    bias: Tensor

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[I, N, C] -> same shape."""
        y = self.begin(x.view(grid.batch, -1, x.shape[2])).view(*x.shape[:2], -1)
        y, normed = add_layer_norm(y, None, self.norm, self.shift, self.eps)
        if self.library:  # wants a row of slots for each token
            rows = through(self.directions, grid.clip(normed).transpose(1, 2).flatten(0, 1), library=True)
            scanned = torch.unflatten(rows, 0, (grid.batch, -1)).transpose(1, 2).flatten(0, 1)
        else:
            scanned = through(self.directions, grid.clip(normed)).flatten(0, 1)
        return F.linear(y.add_(scanned), self.out, self.bias).add_(x)
