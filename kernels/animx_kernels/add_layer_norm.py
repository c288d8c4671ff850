"""Residual addition and LayerNorm in one pass: x and residual are read once, their sum and its norm written once.

`add_layer_norm(x, residual, weight, bias, eps) -> (sum, normed)` on [..., C]; statistics over C about the row's mean,
float32 arithmetic.  The norm is taken of the sum as it is stored, so that it equals a LayerNorm of `sum`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register, use_triton, wide

WIDEST = 8192
"""Channels above which a row no longer fits a program."""


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    wider = wide(x)
    return F.layer_norm(x.to(wider), x.shape[-1:], weight.to(wider), bias.to(wider), eps).to(x.dtype)


def add_layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x + residual, and its LayerNorm."""
    total = (x.to(wide(x)) + residual.to(wide(x))).to(x.dtype)
    return total, layer_norm_reference(total, weight, bias, eps)


def _refusal(x: Tensor) -> str | None:
    return f"rows of {x.shape[-1]} channels" if x.shape[-1] > WIDEST else None


@torch.library.custom_op("animx::add_layer_norm", mutates_args=())
def _add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if use_triton("add_layer_norm", x, residual, weight, bias, refusal=_refusal(x)):
        from animx_kernels.add_layer_norm_triton import add_layer_norm_forward

        return add_layer_norm_forward(x, residual, weight, bias, eps)
    return add_layer_norm_reference(x, residual, weight, bias, eps)


@_add_layer_norm.register_fake
def _add_layer_norm_fake(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("animx::layer_norm", mutates_args=())
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if use_triton("layer_norm", x, weight, bias, refusal=_refusal(x)):
        from animx_kernels.add_layer_norm_triton import layer_norm_forward

        return layer_norm_forward(x, weight, bias, eps)
    return layer_norm_reference(x, weight, bias, eps)


@_layer_norm.register_fake
def _layer_norm_fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def layer_norm_backward_reference(
    gradient: Tensor, x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (plus `added`, the gradient that reaches x beside the norm), of weight and of bias."""
    wider = wide(x)
    rows, g = x.to(wider), gradient.to(wider)
    variance, mean = torch.var_mean(rows, -1, correction=0, keepdim=True)
    scale = (variance + eps).rsqrt()
    unit = (rows - mean) * scale
    leading = tuple(range(x.ndim - 1))
    for_weight, for_bias = (g * unit).sum(leading), g.sum(leading)
    g = g * weight.to(wider)
    for_x = scale * (g - g.mean(-1, keepdim=True) - unit * (g * unit).mean(-1, keepdim=True))
    if added is not None:
        for_x = for_x + added.to(wider)
    return for_x.to(x.dtype), for_weight.to(weight.dtype), for_bias.to(weight.dtype)


@torch.library.custom_op("animx::layer_norm_backward", mutates_args=())
def _layer_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    if use_triton("layer_norm_backward", gradient, x, weight, added, refusal=_refusal(x)):
        from animx_kernels.add_layer_norm_triton import layer_norm_gradient

        return layer_norm_gradient(gradient, x, weight, eps, added)
    return layer_norm_backward_reference(gradient, x, weight, eps, added)


@_layer_norm_backward.register_fake
def _layer_norm_backward_fake(
    gradient: Tensor, x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0] if len(inputs) == 4 else output[0], inputs[-3])
    ctx.eps = inputs[-1]


def _norm_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_layer_norm_backward(gradient, *ctx.saved_tensors, ctx.eps), None


def _add_gradient(ctx: Any, for_sum: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
    for_x, for_weight, for_bias = _layer_norm_backward(gradient, *ctx.saved_tensors, ctx.eps, for_sum)
    return for_x, for_x, for_weight, for_bias, None


_layer_norm.register_autograd(_norm_gradient, setup_context=_keep)
_add_layer_norm.register_autograd(_add_gradient, setup_context=_keep)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + residual, LayerNorm of it), both [..., C]; without a residual x itself is the first of the two."""
    if weight.shape != x.shape[-1:] or bias.shape != weight.shape:
        raise ValueError(f"add_layer_norm: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if residual is None:
        return x, _layer_norm(x, weight, bias, eps)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"add_layer_norm: x {tuple(x.shape)} {x.dtype} and residual {tuple(residual.shape)} {residual.dtype} differ"
        )
    total, normed = _add_layer_norm(x, residual, weight, bias, eps)
    return total, normed


def _add_cost(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Cost:
    return Cost(1, 0, nbytes(x, residual, weight, bias), 2 * nbytes(x))


def _norm_cost(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Cost:
    return Cost(1, 0, nbytes(x, weight, bias), nbytes(x))


ROWS_PER_PART = 256
"""Rows whose gradients of weight and bias are summed before they are written."""


def _backward_cost(gradient: Tensor, x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None) -> Cost:
    channels = x.shape[-1]
    partials = 8 * channels * -(-(x.numel() // channels) // ROWS_PER_PART)
    return Cost(2, 0, nbytes(gradient, x, weight, added) + partials, nbytes(x) + partials + 2 * nbytes(weight))


def _sizes() -> dict[str, tuple[tuple[int, ...], bool]]:
    return {
        "small": ((3, 7, 48), False),
        "odd": ((5, 37), False),
        "one row": ((1, 130), False),
        "L0": ((33, 6144, 320), True),
        "L1": ((33, 1536, 640), True),
        "L2": ((33, 384, 1280), True),
    }


def _case(shape: tuple[int, ...], official: bool, tensors: int) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        rows = tuple(draw(shape, device, dtype, seed + i) + 1 for i in range(tensors))
        weight, bias = (draw(shape[-1:], device, dtype, seed + 8 + i) for i in range(2))
        return Inputs((*rows, weight, bias, 1e-5), {})

    return Case(make, official)


def _backward_case(shape: tuple[int, ...], added: bool) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        gradient, x, more = (draw(shape, device, dtype, seed + i) for i in range(3))
        return Inputs((gradient, x, draw(shape[-1:], device, dtype, seed + 3), 1e-5, more if added else None), {})

    return Case(make)


def _backward_cases() -> dict[str, Case]:
    return {
        "small": _backward_case((3, 7, 48), True),
        "odd": _backward_case((5, 37), False),
        "parts": _backward_case((300, 16), True),
    }


def _builds(which: str, capability: int) -> list[Build]:
    from animx_kernels import add_layer_norm_triton

    return add_layer_norm_triton.builds(which, capability)


register(
    Op(
        "add_layer_norm",
        add_layer_norm,
        add_layer_norm_reference,
        lambda: {name: _case(shape, official, 2) for name, (shape, official) in _sizes().items()},
        _add_cost,
        lambda capability: _builds("add_layer_norm", capability),
        "memory: two reads, two writes",
        gradients=(0, 1, 2, 3),
    )
)
register(
    Op(
        "layer_norm",
        _layer_norm,
        layer_norm_reference,
        lambda: {name: _case(shape, official, 1) for name, (shape, official) in _sizes().items()},
        _norm_cost,
        lambda capability: _builds("layer_norm", capability),
        "memory: one read, one write",
        gradients=(0, 1, 2),
    )
)
register(
    Op(
        "layer_norm_backward",
        _layer_norm_backward,
        layer_norm_backward_reference,
        _backward_cases,
        _backward_cost,
        lambda capability: _builds("layer_norm_backward", capability),
        "memory: gradient and x once, x's gradient once; sums of weight and bias in parts",
    )
)
