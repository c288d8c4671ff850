"""Residual addition and LayerNorm whose result comes out in 8 bits, for the linear layer behind it.

`add_layer_norm8(x, residual, weight, bias, eps) -> (sum, Rows8)` on [..., C]: `add_layer_norm`, then `quantise_rows`,
without the norm ever being written in 16 bits.  Inference only.
"""

from typing import Any

import torch
from torch import Tensor

from animx_kernels.add_layer_norm import WIDEST, add_layer_norm_reference
from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register, wide
from animx_kernels.dispatch import use_triton as use_triton
from animx_kernels.quantise8 import E4M3, LEAST_CAPABILITY, ROUNDED, Rows8, body_refusal, compared, rows_reference


def layer_norm8_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm over the last axis in float32 (float64 for float64), then its rows in 8 bits."""
    wider = wide(x)
    normed = torch.nn.functional.layer_norm(x.to(wider), x.shape[-1:], weight.to(wider), bias.to(wider), eps)
    return rows_reference(normed)


def add_layer_norm8_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x + residual, and its LayerNorm in 8 bits: values and scales."""
    total = add_layer_norm_reference(x, residual, weight, bias, eps)[0]
    return total, *layer_norm8_reference(total, weight, bias, eps)


def _refusal(x: Tensor) -> str | None:
    return body_refusal(x) or (f"rows of {x.shape[-1]} channels" if x.shape[-1] > WIDEST else None)


@torch.library.custom_op("animx::layer_norm8", mutates_args=())
def _layer_norm8(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if use_triton("layer_norm8", x, weight, bias, refusal=_refusal(x)):
        from animx_kernels.layer_norm8_triton import layer_norm8_forward

        return layer_norm8_forward(x, weight, bias, eps)
    return layer_norm8_reference(x, weight, bias, eps)


def _fake_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@_layer_norm8.register_fake
def _layer_norm8_fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _fake_rows(x)


@torch.library.custom_op("animx::add_layer_norm8", mutates_args=())
def _add_layer_norm8(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if use_triton("add_layer_norm8", x, residual, weight, bias, refusal=_refusal(x)):
        from animx_kernels.layer_norm8_triton import add_layer_norm8_forward

        return add_layer_norm8_forward(x, residual, weight, bias, eps)
    return add_layer_norm8_reference(x, residual, weight, bias, eps)


@_add_layer_norm8.register_fake
def _add_layer_norm8_fake(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), *_fake_rows(x)


def add_layer_norm8(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Rows8]:
    """(x + residual [..., C], its LayerNorm in 8 bits); without a residual x itself is the first of the two.

    The norm is taken of the sum as it is stored.  No gradient.
    """
    if weight.shape != x.shape[-1:] or bias.shape != weight.shape:
        raise ValueError(f"add_layer_norm8: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if residual is None:
        return x, Rows8(*_layer_norm8(x, weight, bias, eps))
    if residual.shape != x.shape or residual.dtype != x.dtype:
        shapes = f"x {tuple(x.shape)} {x.dtype} and residual {tuple(residual.shape)} {residual.dtype}"
        raise ValueError(f"add_layer_norm8: {shapes} differ")
    total, *rows = _add_layer_norm8(x, residual, weight, bias, eps)
    return total, Rows8(*rows)


def _bytes_of_rows(x: Tensor) -> int:
    return x.numel() + x.numel() // x.shape[-1] * 4


def _add_cost(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Cost:
    return Cost(1, 0, nbytes(x, residual, weight, bias), nbytes(x) + _bytes_of_rows(x))


def _norm_cost(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Cost:
    return Cost(1, 0, nbytes(x, weight, bias), _bytes_of_rows(x))


def _case(shape: tuple[int, ...], official: bool, tensors: int) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        rows = tuple(draw(shape, device, dtype, seed + i) + 1 for i in range(tensors))
        weight, bias = (draw(shape[-1:], device, dtype, seed + 8 + i) for i in range(2))
        return Inputs((*rows, weight, bias, 1e-5), {})

    return Case(make, official)


def _cases(tensors: int) -> dict[str, Case]:
    small = {"small": (3, 7, 48), "odd": (5, 37), "one row": (1, 130)}
    official = {"L0": (33, 6144, 320), "L1": (33, 1536, 640), "L2": (33, 384, 1280)}
    found = {name: _case(shape, False, tensors) for name, shape in small.items()}
    return found | {name: _case(shape, True, tensors) for name, shape in official.items()}


def _builds(which: str, capability: int) -> list[Build]:
    if capability < LEAST_CAPABILITY:
        return []
    from animx_kernels import layer_norm8_triton

    return layer_norm8_triton.builds(which, capability)


def _flat(function: Any) -> Any:
    """The operator with its rows as two tensors, as those who compare results take them."""

    def call(*args: Any) -> tuple[Tensor, ...]:
        total, rows = function(*args)
        return (total, *rows)

    return call


register(
    Op(
        "add_layer_norm8",
        _flat(add_layer_norm8),
        add_layer_norm8_reference,
        lambda: _cases(2),
        _add_cost,
        lambda capability: _builds("add_layer_norm8", capability),
        "memory: two reads, one write of 16 bits and one of 8",
        compared=compared,
        tolerance=ROUNDED,
    )
)
register(
    Op(
        "layer_norm8",
        _layer_norm8,
        layer_norm8_reference,
        lambda: _cases(1),
        _norm_cost,
        lambda capability: _builds("layer_norm8", capability),
        "memory: one read, one write of 8 bits",
        compared=compared,
        tolerance=ROUNDED,
    )
)
