"""GroupNorm (+ SiLU) on token-major activations: two launches, two reads, one write.

x [I, N, C]: I instances (frames, or whole clips: view [B, T, N, C] as [B, T*N, C]), N tokens.  Statistics of an
instance run over all its tokens and the channels of a group.  `other` [I, N, C2] is a second tensor behind x's channels
(a skip connection, never concatenated), `shift` [I, C + C2] is added first (the time embedding).  float32 arithmetic;
means and sums of squares are taken about the mean of each part, so a large mean costs no digits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register, use_triton, wide


def _joined(x: Tensor, shift: Tensor | None, other: Tensor | None) -> Tensor:
    whole = x.to(wide(x)) if other is None else torch.cat([x, other], -1).to(wide(x))
    return whole if shift is None else whole + shift.to(whole.dtype)[:, None]


def group_norm_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """GroupNorm of cat([x, other], -1) + shift over (N, channels of a group), then SiLU if `silu`: [I, N, C + C2]."""
    whole = _joined(x, shift, other).transpose(1, 2)  # [I, C, N]
    y = F.group_norm(whole, groups, weight.to(whole.dtype), bias.to(whole.dtype), eps).transpose(1, 2)
    return (F.silu(y) if silu else y).to(x.dtype).contiguous()


@torch.library.custom_op("animx::group_norm_silu", mutates_args=())
def _group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    if use_triton("group_norm_silu", x, weight, bias, shift, other, refusal=_refusal(x, other)):
        from animx_kernels.group_norm_silu_triton import group_norm_silu_forward

        return group_norm_silu_forward(x, weight, bias, groups, eps, silu, shift, other)
    return group_norm_silu_reference(x, weight, bias, groups, eps, silu, shift, other)


def _refusal(x: Tensor, other: Tensor | None) -> str | None:
    if other is not None and other.dtype != x.dtype:
        return f"two inputs of types {x.dtype} and {other.dtype}"
    return f"{x.shape[0]} instances" if x.shape[0] > MOST_INSTANCES else None


@_group_norm_silu.register_fake
def _group_norm_silu_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:2], weight.shape[0]))


def _statistics(whole: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each channel's group [I, 1, C]."""
    instances, tokens, channels = whole.shape
    parts = whole.view(instances, tokens, groups, channels // groups)
    variance, mean = torch.var_mean(parts, (1, 3), correction=0, keepdim=True)
    wide_as = (instances, 1, groups, channels // groups)
    return (
        mean.expand(wide_as).reshape(instances, 1, channels),
        (variance + eps).rsqrt().expand(wide_as).reshape(instances, 1, channels),
    )


@torch.library.custom_op("animx::group_norm_silu_backward", mutates_args=())
def _group_norm_silu_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    given = gradient, x, weight, bias, shift, other
    if use_triton("group_norm_silu_backward", *given, refusal=_refusal(x, other)):
        from animx_kernels.group_norm_silu_backward_triton import group_norm_silu_gradient

        return group_norm_silu_gradient(gradient, x, weight, bias, groups, eps, silu, shift, other)
    return group_norm_silu_backward_reference(gradient, x, weight, bias, groups, eps, silu, shift, other)


@_group_norm_silu_backward.register_fake
def _group_norm_silu_backward_fake(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = weight.shape[0]
    return x.new_empty((*x.shape[:2], channels)), weight.new_empty(channels), bias.new_empty(channels)


def group_norm_silu_backward_reference(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the joined input [I, N, C + C2] (in x's type), of weight and of bias; statistics taken anew."""
    whole = _joined(x, shift, other)
    mean, scale = _statistics(whole, groups, eps)
    unit = (whole - mean) * scale
    g = gradient.to(whole.dtype)
    if silu:
        z = unit * weight.to(whole.dtype) + bias.to(whole.dtype)
        s = torch.sigmoid(z)
        g = g * s * (1 + z * (1 - s))
    for_weight, for_bias = (g * unit).sum((0, 1)), g.sum((0, 1))
    g = g * weight.to(whole.dtype)
    parts = (x.shape[0], x.shape[1], groups, -1)
    first = g.view(parts).mean((1, 3), keepdim=True).expand(g.view(parts).shape).reshape(g.shape)
    second = (g * unit).view(parts).mean((1, 3), keepdim=True).expand(g.view(parts).shape).reshape(g.shape)
    for_x = scale * (g - first - unit * second)
    return for_x.to(x.dtype), for_weight.to(weight.dtype), for_bias.to(bias.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, groups, eps, silu, shift, other = inputs
    ctx.save_for_backward(x, weight, bias, shift, other)
    ctx.options = (groups, eps, silu)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, shift, other = ctx.saved_tensors
    whole, for_weight, for_bias = _group_norm_silu_backward(gradient, x, weight, bias, *ctx.options, shift, other)
    split = x.shape[-1]
    for_shift = None if shift is None else whole.sum(1, dtype=wide(whole)).to(shift.dtype)
    for_other = None if other is None else whole[..., split:].to(other.dtype)
    return whole[..., :split], for_weight, for_bias, None, None, None, for_shift, for_other


_group_norm_silu.register_autograd(_gradient, setup_context=_keep)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """GroupNorm over (tokens, channels of a group) of cat([x, other], -1) + shift, then SiLU unless `silu` is False.

    x [I, N, C], other [I, N, C2] or None, shift [I, C + C2] or None, weight and bias [C + C2] -> [I, N, C + C2], new
    and contiguous.  Inputs may have any strides with the channels adjacent.
    """
    channels = x.shape[-1] + (0 if other is None else other.shape[-1])
    if x.ndim != 3 or weight.shape != (channels,) or bias.shape != (channels,) or channels % groups:
        raise ValueError(
            f"group_norm_silu: x {tuple(x.shape)}, other {None if other is None else tuple(other.shape)}, "
            f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)} and {groups} groups do not fit"
        )
    if (other is not None and other.shape[:2] != x.shape[:2]) or (
        shift is not None and shift.shape != (x.shape[0], channels)
    ):
        raise ValueError(f"group_norm_silu: x {tuple(x.shape)} does not fit the shape of other or shift")
    return _group_norm_silu(x, weight, bias, groups, eps, silu, shift, other)


def _cost(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> Cost:
    channels = weight.shape[0]
    activations = nbytes(x, other)
    partials = 8 * x.shape[0] * parts(x.shape[0], x.shape[1], channels) * channels
    return Cost(
        2,
        0,
        2 * activations + nbytes(shift) + nbytes(weight, bias) + partials,
        x.shape[0] * x.shape[1] * channels * x.element_size() + partials,
    )


MOST_INSTANCES = 65535
"""Programs along the third axis of a grid."""

CHANNELS_PER_PROGRAM = 64
"""Channels of one program: whole lines of 128 bytes in 16-bit storage."""

PROGRAMS = 528
"""Programs aimed at by splitting the tokens of an instance: four for each of 132 multiprocessors."""

LEAST_TOKENS = 128
"""Tokens below which a part is not split further."""


def parts(instances: int, tokens: int, channels: int) -> int:
    """Into how many parts the tokens of an instance are split for the statistics, the same on every card."""
    columns = -(-channels // CHANNELS_PER_PROGRAM)
    wanted = -(-PROGRAMS // (instances * columns))
    return max(1, min(wanted, tokens // LEAST_TOKENS, 128))


def _backward_cost(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Tensor | None = None,
    other: Tensor | None = None,
) -> Cost:
    """Four launches: moments, sums of slopes, the result, sums of the parts' sums."""
    instances, tokens, channels = gradient.shape
    activations, affine = nbytes(x, other), nbytes(weight, bias)
    sums = 8 * instances * parts(instances, tokens, channels) * channels  # as many bytes as the moments
    statistics = 8 * instances * channels
    read = activations  # moments
    read += activations + nbytes(gradient, shift) + affine + sums
    read += activations + nbytes(gradient) + affine + statistics + sums
    read += sums
    written = sums + (sums + statistics) + nbytes(gradient) + affine
    return Cost(4, 0, read, written)


def _cases() -> dict[str, Case]:
    def case(
        instances: int,
        tokens: int,
        channels: int,
        groups: int,
        second: int = 0,
        shifted: bool = False,
        silu: bool = True,
        official: bool = False,
    ) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            whole = channels + second
            x = draw((instances, tokens, channels), device, dtype, seed) + 1
            other = draw((instances, tokens, second), device, dtype, seed + 1) if second else None
            shift = draw((instances, whole), device, dtype, seed + 2) if shifted else None
            weight, bias = draw((whole,), device, dtype, seed + 3), draw((whole,), device, dtype, seed + 4)
            return Inputs((x, weight, bias, groups, 1e-5, silu, shift, other), {})

        return Case(make, official)

    return {
        "small": case(2, 70, 48, 4),
        "shifted": case(2, 33, 72, 4, shifted=True),
        "two tensors, groups across the seam": case(2, 31, 40, 6, second=20),
        "without silu, one token": case(1, 1, 24, 3, silu=False),
        "split": case(1, 300, 24, 4, second=8, shifted=True),
        "L0 frames": case(33, 6144, 320, 32, shifted=True, official=True),
        "L0 skip": case(33, 6144, 640, 32, second=320, official=True),
        "L0 clip": case(1, 33 * 6144, 320, 32, official=True),
        "L2 skip": case(33, 384, 1280, 32, second=1280, official=True),
        "L3 frames": case(33, 96, 1280, 32, shifted=True, official=True),
    }


def _backward_cases() -> dict[str, Case]:
    def case(name: str) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            args, _ = _cases()[name].make(device, dtype, seed)
            channels = args[1].shape[0]
            return Inputs((draw((*args[0].shape[:2], channels), device, dtype, seed + 5), *args), {})

        return Case(make)

    names = ("small", "two tensors, groups across the seam", "split", "without silu, one token")
    return {name: case(name) for name in names}


def _builds(capability: int) -> list[Build]:
    from animx_kernels import group_norm_silu_triton

    return group_norm_silu_triton.builds(capability)


def _builds_backward(capability: int) -> list[Build]:
    from animx_kernels import group_norm_silu_backward_triton

    return group_norm_silu_backward_triton.builds(capability)


register(
    Op(
        "group_norm_silu",
        group_norm_silu,
        group_norm_silu_reference,
        _cases,
        _cost,
        _builds,
        "memory: x twice, the result once",
        gradients=(0, 1, 2, 6, 7),
    )
)
register(
    Op(
        "group_norm_silu_backward",
        _group_norm_silu_backward,
        group_norm_silu_backward_reference,
        _backward_cases,
        _backward_cost,
        _builds_backward,
        "memory: x three times and its gradient twice, the result once",
    )
)
