"""Linear layers on 8-bit numbers: e4m3 times e4m3, sums in float32, scales, bias and residual in the epilogue.

`linear8` and `geglu_linear8` take activations as they are, or as `Rows8` that an operator before them (or
`quantise_rows`, once for several layers) has made.  On a CPU they emulate: the same 8-bit numbers, multiplied in
float32.  Against the exact layer the result is off by about 3.7 % of its norm on normally distributed numbers: 2.6 %
from the weight and as much from the activations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register
from animx_kernels.dispatch import use_triton as use_triton
from animx_kernels.quantise8 import (
    E4M3,
    LEAST_CAPABILITY,
    ROUNDED,
    SIZES,
    Rows8,
    body_refusal,
    compared,
    dequantised,
    quantise_rows,
    quantise_weight,
    rows_reference,
)

LEAST_STEP = 32
"""The fewest channels that the 8-bit matrix units multiply at a time."""


def _product(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The layer in float32, or in float64 where the 8-bit numbers are handed over as such."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = F.linear(dequantised(Rows8(x, x_scale), kind), weight.to(kind)) * scale.to(kind)
    return y if bias is None else y + bias.to(kind)


def linear8_reference(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Dequantise, multiply, add: nothing is rounded before the end."""
    y = _product(x, x_scale, weight, scale, bias)
    y = y if residual is None else y + residual.to(y.dtype)
    return y if y.dtype == torch.float64 else y.to(dtype)


def _refusal(x: Tensor, x_scale: Tensor) -> str | None:
    """Why the Triton bodies do not take such rows, or None."""
    stretch = x.shape[-1] // x_scale.shape[-1]
    if x_scale.shape[-1] > 1 and stretch % LEAST_STEP:
        return f"a scale for {stretch} channels: no multiple of {LEAST_STEP}"
    return body_refusal(x)


@torch.library.custom_op("animx::linear8", mutates_args=())
def _linear8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    if use_triton("linear8", x_scale, scale, bias, residual, refusal=_refusal(x, x_scale)):
        from animx_kernels.linear8_triton import linear8_forward

        return linear8_forward(x, x_scale, weight, scale, bias, residual, dtype)
    return linear8_reference(x, x_scale, weight, scale, bias, residual, dtype)


@_linear8.register_fake
def _linear8_fake(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def linear8(
    x: Tensor | Rows8,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x [..., K], weight e4m3 [D, K] and scale [D] of `quantise_weight`, bias [D], residual [..., D] -> [..., D].

    The result is of type `dtype`; where none is given, of the type of x, and for `Rows8` of residual or bias.
    For inference: no gradient.
    """
    rows, kind = _rows(x, dtype, residual, bias)
    _refuse("linear8", rows, weight, scale, bias)
    if residual is not None and residual.shape != (*rows.values.shape[:-1], weight.shape[0]):
        raise ValueError(f"linear8: residual {tuple(residual.shape)} does not fit x {tuple(rows.values.shape)}")
    return _linear8(*rows, weight, scale, bias, residual, kind)


def geglu_linear8_reference(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """geglu of the projection, nothing rounded before the end."""
    value, gate = _product(x, x_scale, weight, scale, bias).chunk(2, -1)
    y = value * F.gelu(gate)
    return y if y.dtype == torch.float64 else y.to(dtype)


@torch.library.custom_op("animx::geglu_linear8", mutates_args=())
def _geglu_linear8(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    if use_triton("geglu_linear8", x_scale, scale, bias, refusal=_refusal(x, x_scale)):
        from animx_kernels.linear8_triton import geglu_linear8_forward

        return geglu_linear8_forward(x, x_scale, weight, scale, bias, dtype)
    return geglu_linear8_reference(x, x_scale, weight, scale, bias, dtype)


@_geglu_linear8.register_fake
def _geglu_linear8_fake(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2), dtype=dtype)


def geglu_linear8(
    x: Tensor | Rows8, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """x [..., K], weight e4m3 [2D, K] and scale [2D], bias [2D] -> geglu of the projection [..., D], as `geglu_linear`.

    `dtype` as in `linear8`.  For inference: no gradient.
    """
    rows, kind = _rows(x, dtype, None, bias)
    _refuse("geglu_linear8", rows, weight, scale, bias)
    if weight.shape[0] % 2:
        raise ValueError(f"geglu_linear8: weight {tuple(weight.shape)} does not split in halves")
    return _geglu_linear8(*rows, weight, scale, bias, kind)


STRETCH = 128
"""Neighbouring channels that share a scale in `geglu_rows8`."""


def geglu_rows8_reference(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """geglu of the projection, not rounded before it is quantised in stretches."""
    value, gate = _product(x, x_scale, weight, scale, bias).chunk(2, -1)
    values, sizes = rows_reference((value * F.gelu(gate)).unflatten(-1, (-1, STRETCH)))
    return values.flatten(-2), sizes[..., 0]


@torch.library.custom_op("animx::geglu_rows8", mutates_args=())
def _geglu_rows8(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    if use_triton("geglu_rows8", x_scale, scale, bias, refusal=_refusal(x, x_scale)):
        from animx_kernels.linear8_triton import geglu_rows8_forward

        return geglu_rows8_forward(x, x_scale, weight, scale, bias)
    return geglu_rows8_reference(x, x_scale, weight, scale, bias)


@_geglu_rows8.register_fake
def _geglu_rows8_fake(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    width = weight.shape[0] // 2
    return x.new_empty((*x.shape[:-1], width), dtype=E4M3), x_scale.new_empty((*x.shape[:-1], width // STRETCH))


def geglu_rows8(x: Tensor | Rows8, weight: Tensor, scale: Tensor, bias: Tensor) -> Rows8:
    """`geglu_linear8` whose result is quantised where it is computed, for the `linear8` after it.

    One scale for each 128 neighbouring channels.  Where 128 does not divide D, the rows are quantised afterwards, with
    one scale each.
    """
    if weight.shape[0] % (2 * STRETCH):
        kind = x.dtype if isinstance(x, Tensor) else bias.dtype
        return quantise_rows(geglu_linear8(x, weight, scale, bias, kind))
    rows = quantise_rows(x) if isinstance(x, Tensor) else x
    _refuse("geglu_rows8", rows, weight, scale, bias)
    return Rows8(*_geglu_rows8(*rows, weight, scale, bias))


def _rows(
    x: Tensor | Rows8, dtype: torch.dtype | None, residual: Tensor | None, bias: Tensor | None
) -> tuple[Rows8, torch.dtype]:
    if isinstance(x, Tensor):
        return quantise_rows(x), dtype or x.dtype
    given = next((one.dtype for one in (residual, bias) if one is not None), None)
    if dtype is None and given is None:
        raise ValueError("linear8: rows of 8 bits without bias and residual leave the result's type open: give dtype")
    return x, dtype or given or torch.float32


def _refuse(name: str, rows: Rows8, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    x, x_scale = rows
    fits = weight.ndim == 2 and weight.shape[1] == x.shape[-1] and scale.shape == weight.shape[:1]
    fits &= bias is None or bias.shape == scale.shape
    fits &= x_scale.shape[:-1] == x.shape[:-1] and x.shape[-1] % max(1, x_scale.shape[-1]) == 0
    if not fits:
        shapes = {"x": x, "its scale": x_scale, "weight": weight, "scale": scale, "bias": bias}
        told = ", ".join(f"{name} {tuple(one.shape)}" for name, one in shapes.items() if one is not None)
        raise ValueError(f"{name}: {told} do not fit")


def _linear_cost(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Cost:
    rows = x.numel() // x.shape[-1]
    read = nbytes(x, x_scale, weight, scale, bias, residual)
    return Cost(1, 2 * rows * weight.numel(), read, rows * weight.shape[0] * dtype.itemsize)


def _geglu_cost(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> Cost:
    rows = x.numel() // x.shape[-1]
    read = nbytes(x, x_scale, weight, scale, bias)
    return Cost(1, 2 * rows * weight.numel(), read, rows * weight.shape[0] // 2 * dtype.itemsize)


def _geglu_rows_cost(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Cost:
    made = x.numel() // x.shape[-1] * (weight.shape[0] // 2)
    flops = 2 * x.numel() // x.shape[-1] * weight.numel()
    return Cost(1, flops, nbytes(x, x_scale, weight, scale, bias), made + made // STRETCH * 4)


def _layer(
    rows: int, inner: int, out: int, device: torch.device | str, dtype: torch.dtype, seed: int, scales: int = 1
) -> list[Tensor]:
    """x, its scales, weight, its scale, bias: quantised from numbers of type `dtype`."""
    values, sizes = quantise_rows(draw((rows * scales, inner // scales), device, dtype, seed))
    x = (values.view(rows, inner), sizes.view(rows, scales))
    weight = quantise_weight(draw((out, inner), device, dtype, seed + 1, inner**-0.5))
    return [*x, *weight, draw((out,), device, dtype, seed + 2)]


def _linear_cases() -> dict[str, Case]:
    def case(rows: int, inner: int, out: int, extras: bool = True, official: bool = False, scales: int = 1) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            *layer, bias = _layer(rows, inner, out, device, dtype, seed, scales)
            residual = draw((rows, out), device, dtype, seed + 3) if extras else None
            return Inputs((*layer, bias if extras else None, residual, dtype), {})

        return Case(make, official)

    small = {"small": case(37, 64, 48), "odd": case(5, 19, 7), "bare": case(3, 144, 33, False)}
    small |= {"stretches": case(9, 256, 20, scales=4), "stretches of 96": case(3, 288, 16, scales=3)}
    official = {f"{name} to q, k, v": case(*size, 3 * size[1], False, True) for name, size in SIZES.items()}
    official |= {
        f"{name} out of the feed-forward": case(rows, 4 * width, width, True, True, width // 32)
        for name, (rows, width) in SIZES.items()
    }
    return small | official


def _geglu_cases() -> dict[str, Case]:
    def case(rows: int, inner: int, width: int, official: bool = False) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            return Inputs((*_layer(rows, inner, 2 * width, device, dtype, seed), dtype), {})

        return Case(make, official)

    small = {"small": case(37, 64, 48), "odd": case(5, 19, 7), "one row": case(1, 144, 33)}
    return small | {name: case(rows, width, 4 * width, True) for name, (rows, width) in SIZES.items()}


def _geglu_rows_cases() -> dict[str, Case]:
    def case(rows: int, inner: int, width: int, official: bool = False) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            return Inputs((*_layer(rows, inner, 2 * width, device, dtype, seed),), {})

        return Case(make, official)

    small = {"small": case(5, 64, 256), "odd": case(17, 19, 128)}
    return small | {name: case(rows, width, 4 * width, True) for name, (rows, width) in SIZES.items()}


def _builds(which: str, capability: int) -> list[Build]:
    if capability < LEAST_CAPABILITY:
        return []
    from animx_kernels import linear8_triton

    return linear8_triton.builds(which, capability)


register(
    Op(
        "linear8",
        _linear8,
        linear8_reference,
        _linear_cases,
        _linear_cost,
        lambda capability: _builds("linear8", capability),
        "8-bit matrix units: 2 * rows * K * D FLOP, twice the rate of 16 bits",
    )
)
register(
    Op(
        "geglu_rows8",
        _geglu_rows8,
        geglu_rows8_reference,
        _geglu_rows_cases,
        _geglu_rows_cost,
        lambda capability: _builds("geglu_rows8", capability),
        "8-bit matrix units: 2 * rows * K * 2D FLOP, twice the rate of 16 bits",
        compared=compared,
        tolerance=ROUNDED,
    )
)
register(
    Op(
        "geglu_linear8",
        _geglu_linear8,
        geglu_linear8_reference,
        _geglu_cases,
        _geglu_cost,
        lambda capability: _builds("geglu_linear8", capability),
        "8-bit matrix units: 2 * rows * K * 2D FLOP, twice the rate of 16 bits",
    )
)
