"""The parts of the fused network: residual block, transformers, resampling, on token-major activations x [I, N, C].

I = B*T slots, N = h*w tokens, channels adjacent: spatial, cross and temporal attention, norms and projections read the
same memory by strides, and a convolution sees it as a channels-last picture.  Every part is built from the plain module
it equals and shares its weights; sums change their order, nothing else.  Statistics and arithmetic inside the operators
of `animx_kernels` are float32, whatever the weights are stored in.  Inference only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
from animx.model.layers import Downsample, ResBlock, TemporalConv, Upsample
from animx.model.temporal import MambaBlock, Temporal, through
from animx_kernels.add_layer_norm import add_layer_norm
from animx_kernels.geglu import geglu_linear
from animx_kernels.group_norm_silu import group_norm_silu
from animx_kernels.motion_attention import motion_attention
from animx_kernels.temporal_attention import temporal_attention
from animx_kernels.temporal_conv import channel_sums, norm_affine, temporal_conv


class Grid(NamedTuple):
    """Where the tokens of x [I, N, C] lie: I = batch * slots, N = height * width."""

    batch: int
    slots: int
    height: int
    width: int

    def clip(self, x: Tensor) -> Tensor:
        """[I, N, C] as [B, T, N, C]."""
        return x.view(self.batch, self.slots, *x.shape[1:])

    def picture(self, x: Tensor) -> Tensor:
        """[I, N, C] as channels-last pictures [I, C, h, w], no copy."""
        return x.view(x.shape[0], self.height, self.width, x.shape[2]).permute(0, 3, 1, 2)


def tokens(pictures: Tensor) -> Tensor:
    """Pictures [I, C, h, w] as [I, N, C]; no copy where they are channels-last."""
    return pictures.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


class Part(nn.Module):
    """A fused part.  It holds tensors, not parameters: they belong to the plain module, with which memory is shared."""

    def hold(self, **tensors: Tensor) -> None:
        """Keep weights under names."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach(), persistent=False)


def stacked(layers: Sequence[nn.Linear]) -> Tensor:
    """The weights of bias-free projections of one input as one matrix [sum of rows, C].

    The layers' own weights become views of it, so that memory is not spent twice; those in training are left alone.
    """
    whole = torch.cat([layer.weight.detach() for layer in layers])
    if not any(layer.weight.requires_grad for layer in layers):
        for layer, rows in zip(layers, torch.split(whole, [layer.out_features for layer in layers]), strict=True):
            layer.weight = nn.Parameter(rows, requires_grad=False)
    return whole


def laid_out(layer: nn.Conv2d | nn.Conv3d) -> Tensor:
    """A convolution's weights with the input channels adjacent; the layer's own are stored so from now on."""
    kind = torch.channels_last if layer.weight.ndim == 4 else torch.channels_last_3d
    weight = layer.weight.detach().contiguous(memory_format=kind)
    if not layer.weight.requires_grad:
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return weight


def bias_of(layer: nn.Module) -> Tensor:
    """The bias of a layer that has one."""
    assert isinstance(layer.bias, Tensor)
    return layer.bias


class Norm(Part):
    """GroupNorm of 32 groups, with or without SiLU, over each instance of what it is given."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm, *, silu: bool) -> None:
        super().__init__()
        self.hold(weight=norm.weight, bias=norm.bias)
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu

    def forward(self, x: Tensor, shift: Tensor | None = None, other: Tensor | None = None) -> Tensor:
        """x [I, N, C], shift [I, C + C2], other [I, N, C2] behind x's channels -> [I, N, C + C2]."""
        return group_norm_silu(x, self.weight, self.bias, self.groups, self.eps, self.silu, shift, other)


class Conv(Part):
    """A 3x3 convolution of stride 1 or 2 that adds its bias, and a second one if given."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, more: Tensor | None = None) -> None:
        super().__init__()
        self.hold(weight=laid_out(conv), bias=bias_of(conv) if more is None else bias_of(conv) + more)
        self.stride = conv.stride[0]

    def forward(self, pictures: Tensor) -> Tensor:
        """[I, C, h, w] -> [I, C', h, w], or half of each size at stride 2; channels-last as its input."""
        return F.conv2d(pictures, self.weight, self.bias, self.stride, 1)


class FusedTemporalConv(Part):
    """Four units of norm, SiLU and 3-tap convolution over slots; each convolution sums what the next norm needs."""

    def __init__(self, plain: TemporalConv) -> None:
        super().__init__()
        first = plain.get_submodule("norm1")
        assert isinstance(first, nn.GroupNorm)
        self.groups, self.eps = first.num_groups, first.eps
        for i in (1, 2, 3, 4):
            norm, conv = plain.get_submodule(f"norm{i}"), plain.get_submodule(f"conv{i}")
            assert isinstance(norm, nn.GroupNorm)
            assert isinstance(conv, nn.Conv3d)
            weight = laid_out(conv)[..., 0, 0]  # [C, C, 3], the input channels adjacent
            self.hold(
                **{f"norm{i}": norm.weight, f"shift{i}": norm.bias, f"conv{i}": weight, f"bias{i}": bias_of(conv)}
            )

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[I, N, C] -> same shape, the residual included."""
        clip = y = grid.clip(x)
        count = clip.shape[1] * clip.shape[2]
        sums = channel_sums(clip)
        for i in (1, 2, 3, 4):
            norm, shift, weight, bias = (getattr(self, f"{name}{i}") for name in ("norm", "shift", "conv", "bias"))
            scale, offset = norm_affine(sums, count, norm, shift, self.groups, self.eps)
            y, sums = temporal_conv(y, weight, bias, scale, offset, True, clip if i == 4 else None, i < 4)
        return y.flatten(0, 1)


class FusedResBlock(Part):
    """See `ResBlock`.  The skip connection from the way down is a second input, never concatenated."""

    def __init__(self, plain: ResBlock) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(plain.norm1, silu=True), Conv(plain.conv1)
        self.norm2 = Norm(plain.norm2, silu=True)
        self.widens = isinstance(plain.skip, nn.Conv2d)
        self.conv2 = Conv(plain.conv2, bias_of(plain.skip) if self.widens else None)
        if isinstance(plain.skip, nn.Conv2d):
            self.hold(skip=plain.skip.weight[:, :, 0, 0])
        self.temporal = FusedTemporalConv(plain.temporal)

    skip: Tensor

    def forward(self, x: Tensor, shift: Tensor, grid: Grid, other: Tensor | None = None) -> Tensor:
        """x [I, N, C], other [I, N, C2] behind its channels, shift [I, C'] -> [I, N, C']."""
        y = self.conv1(grid.picture(self.norm1(x, None, other)))
        y = tokens(self.conv2(grid.picture(self.norm2(tokens(y), shift))))
        if self.widens:
            rows = y.flatten(0, 1)
            rows.addmm_(x.flatten(0, 1), self.skip[:, : x.shape[2]].t())
            if other is not None:
                rows.addmm_(other.flatten(0, 1), self.skip[:, x.shape[2] :].t())
            y = rows.view(*x.shape[:2], -1)
        else:
            y = y.add_(x)
        return self.temporal(y, grid)


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
        self.sides, self.library = (block.forward_scan, block.backward_scan), block.library
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
            rows = through(self.sides, grid.clip(normed).transpose(1, 2).flatten(0, 1), library=True)
            scanned = torch.unflatten(rows, 0, (grid.batch, -1)).transpose(1, 2).flatten(0, 1)
        else:
            scanned = through(self.sides, grid.clip(normed)).flatten(0, 1)
        return F.linear(y.add_(scanned), self.out, self.bias).add_(x)


class Resampled(Part):
    """Downsample or Upsample: the convolution, after doubling where it is the latter."""

    def __init__(self, plain: Downsample | Upsample) -> None:
        super().__init__()
        self.doubles = isinstance(plain, Upsample)
        self.conv = Conv(plain.conv)

    def forward(self, x: Tensor, grid: Grid, size: tuple[int, int] | None = None) -> tuple[Tensor, Grid]:
        """x [I, N, C] and where its tokens lie -> the same of half or twice the size, or of `size` (h, w)."""
        pictures = grid.picture(x)
        if self.doubles:
            pictures = F.interpolate(pictures, size or (2 * grid.height, 2 * grid.width), mode="nearest")
        pictures = self.conv(pictures)
        return tokens(pictures), grid._replace(height=pictures.shape[2], width=pictures.shape[3])
