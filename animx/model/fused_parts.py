"""The parts of the fused network: residual block, transformers, resampling, on token-major activations x [I, N, C].

I = B*T slots, N = h*w tokens, channels adjacent: spatial, cross and temporal attention, norms and projections read the
same memory by strides, and a convolution sees it as a channels-last picture.  Every part is built from the plain module
it equals and shares its weights; sums change their order, nothing else.  Statistics and arithmetic inside the operators
of `animx_kernels` are float32, whatever the weights are stored in.  Inference only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from animx.model.layers import Downsample, ResBlock, TemporalConv, Upsample
from animx_kernels.group_norm_silu import group_norm_silu
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
    """A 3x3 convolution of stride 1 or 2 that adds its bias, another one, or none.

    On CUDA the library adds a bias in a pass of its own over the result, so it is left to others where it can be.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, bias: Tensor | None) -> None:
        super().__init__()
        self.hold(weight=laid_out(conv))
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
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
        self.norm1, self.conv1 = Norm(plain.norm1, silu=True), Conv(plain.conv1, None)
        self.hold(first_bias=bias_of(plain.conv1))
        self.norm2 = Norm(plain.norm2, silu=True)
        self.widens = isinstance(plain.skip, nn.Conv2d)
        self.conv2 = Conv(
            plain.conv2, bias_of(plain.conv2) + bias_of(plain.skip) if self.widens else bias_of(plain.conv2)
        )
        if isinstance(plain.skip, nn.Conv2d):
            self.hold(skip=plain.skip.weight[:, :, 0, 0])
        self.temporal = FusedTemporalConv(plain.temporal)

    skip: Tensor
    first_bias: Tensor

    def forward(self, x: Tensor, shift: Tensor, grid: Grid, other: Tensor | None = None) -> Tensor:
        """x [I, N, C], other [I, N, C2] behind its channels, shift [I, C'] -> [I, N, C'].

        `first_bias` is expected in the shift: both are added where the first convolution is normed.
        """
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


class Resampled(Part):
    """Downsample or Upsample: the convolution, after doubling where it is the latter."""

    def __init__(self, plain: Downsample | Upsample) -> None:
        super().__init__()
        self.doubles = isinstance(plain, Upsample)
        self.conv = Conv(plain.conv, bias_of(plain.conv))

    def forward(self, x: Tensor, grid: Grid, size: tuple[int, int] | None = None) -> tuple[Tensor, Grid]:
        """x [I, N, C] and where its tokens lie -> the same of half or twice the size, or of `size` (h, w)."""
        pictures = grid.picture(x)
        if self.doubles:
            pictures = F.interpolate(pictures, size or (2 * grid.height, 2 * grid.width), mode="nearest")
        pictures = self.conv(pictures)
        return tokens(pictures), grid._replace(height=pictures.shape[2], width=pictures.shape[3])
