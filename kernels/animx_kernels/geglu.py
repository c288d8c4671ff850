"""GEGLU: value * gelu(gate), stand-alone and in the epilogue of the projection before it.

`geglu`: x [..., 2D] -> [..., D], the first half is the value, the second the gate; gelu is the exact one (erf), as in
the released network.  `geglu_linear`: x [..., K], weight [2D, K], bias [2D] -> [..., D], the [..., 2D] product of the
projection is never written.  Storage float32, float16 or bfloat16, arithmetic float32; float64 in float64.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register, use_triton, wide


def geglu_reference(x: Tensor) -> Tensor:
    """x [..., 2D] -> first half * gelu(second half) [..., D]."""
    value, gate = x.to(wide(x)).chunk(2, -1)
    return (value * F.gelu(gate)).to(x.dtype)


@torch.library.custom_op("animx::geglu", mutates_args=())
def _geglu(x: Tensor) -> Tensor:
    if use_triton("geglu", x):
        from animx_kernels.geglu_triton import geglu_forward

        return geglu_forward(x)
    return geglu_reference(x)


@_geglu.register_fake
def _geglu_fake(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def geglu_backward_reference(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient [..., 2D] of `geglu` at x [..., 2D] for the gradient [..., D] of its output."""
    value, gate = x.to(wide(x)).chunk(2, -1)
    g = gradient.to(wide(x))
    cdf = 0.5 * (1 + torch.erf(gate * 0.5**0.5))
    density = torch.exp(-0.5 * gate * gate) * (2 * torch.pi) ** -0.5
    return torch.cat([g * gate * cdf, g * value * (cdf + gate * density)], -1).to(x.dtype)


@torch.library.custom_op("animx::geglu_backward", mutates_args=())
def _geglu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    if use_triton("geglu_backward", gradient, x):
        from animx_kernels.geglu_triton import geglu_gradient

        return geglu_gradient(gradient, x)
    return geglu_backward_reference(gradient, x)


@_geglu_backward.register_fake
def _geglu_backward_fake(gradient: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, gradient: Tensor) -> Tensor:
    return _geglu_backward(gradient, *ctx.saved_tensors)


_geglu.register_autograd(_gradient, setup_context=_keep)


def geglu(x: Tensor) -> Tensor:
    """x [..., 2D] -> [..., D]: the first half times gelu (erf) of the second; a new contiguous tensor of x's type."""
    if x.shape[-1] % 2:
        raise ValueError(f"geglu: the last axis of {tuple(x.shape)} does not split in halves")
    return _geglu(x)


def geglu_linear_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """geglu(x @ weight^T + bias), nothing rounded before the end."""
    wider = wide(x)
    return geglu_reference(F.linear(x.to(wider), weight.to(wider), bias.to(wider))).to(x.dtype)


@torch.library.custom_op("animx::geglu_linear", mutates_args=())
def _geglu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mixed = None if x.dtype == weight.dtype else f"weights of type {weight.dtype} with activations of {x.dtype}"
    if use_triton("geglu_linear", x, weight, bias, refusal=mixed):
        from animx_kernels.geglu_triton import geglu_linear_forward

        return geglu_linear_forward(x, weight, bias)
    return geglu_linear_reference(x, weight, bias)


@_geglu_linear.register_fake
def _geglu_linear_fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2))


def geglu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [..., K], weight [2D, K], bias [2D] -> geglu of the projection [..., D].  For inference: no gradient.

    Value and gate rows of `weight` are read as they lie; no packing is needed.
    """
    if weight.shape[0] % 2 or weight.shape[1:] != x.shape[-1:] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"geglu_linear: x {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)} do not fit"
        )
    return _geglu_linear(x, weight, bias)


def _geglu_cost(x: Tensor) -> Cost:
    return Cost(1, 0, nbytes(x), nbytes(x) // 2)


def _geglu_backward_cost(gradient: Tensor, x: Tensor) -> Cost:
    return Cost(1, 0, nbytes(gradient, x), nbytes(x))


def _linear_cost(x: Tensor, weight: Tensor, bias: Tensor) -> Cost:
    rows = x.numel() // x.shape[-1]
    out = rows * weight.shape[0] // 2
    return Cost(1, 2 * rows * weight.numel(), nbytes(x, weight, bias), out * x.element_size())


SIZES = {"L0": (33 * 6144, 320), "L1": (33 * 1536, 640), "L2": (33 * 384, 1280), "L3": (33 * 96, 1280)}
"""Rows and width of the official activations by level (768x512, 32 frames and the reference slot)."""


def _geglu_cases() -> dict[str, Case]:
    def case(rows: int, width: int, official: bool = False) -> Case:
        return Case(lambda device, dtype, seed: Inputs((draw((rows, 2 * width), device, dtype, seed),), {}), official)

    small = {"small": case(37, 48), "odd": case(5, 7), "one row": case(1, 130)}
    return small | {name: case(rows, 4 * width, True) for name, (rows, width) in SIZES.items()}


def _geglu_backward_cases() -> dict[str, Case]:
    def case(rows: int, width: int, official: bool = False) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            shape = (rows, width)
            return Inputs((draw(shape, device, dtype, seed), draw((rows, 2 * width), device, dtype, seed + 1)), {})

        return Case(make, official)

    return {"small": case(37, 48), "odd": case(5, 7), "L0": case(SIZES["L0"][0], 1280, True)}


def _linear_cases() -> dict[str, Case]:
    def case(rows: int, inner: int, width: int, official: bool = False) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            x, weight = draw((rows, inner), device, dtype, seed), draw((2 * width, inner), device, dtype, seed + 1)
            return Inputs((x, weight * inner**-0.5, draw((2 * width,), device, dtype, seed + 2)), {})

        return Case(make, official)

    small = {"small": case(37, 64, 48), "odd": case(5, 19, 7), "one row": case(1, 33, 130)}
    return small | {name: case(rows, width, 4 * width, True) for name, (rows, width) in SIZES.items()}


def _builds(which: str, capability: int) -> list[Build]:
    from animx_kernels import geglu_triton

    return geglu_triton.builds(which, capability)


register(
    Op(
        "geglu",
        geglu,
        geglu_reference,
        _geglu_cases,
        _geglu_cost,
        lambda capability: _builds("geglu", capability),
        "memory: one read of x, one write of half of it",
        gradients=(0,),
    )
)
register(
    Op(
        "geglu_backward",
        _geglu_backward,
        geglu_backward_reference,
        _geglu_backward_cases,
        _geglu_backward_cost,
        lambda capability: _builds("geglu_backward", capability),
        "memory: reads gradient and x, writes x's gradient",
    )
)
register(
    Op(
        "geglu_linear",
        geglu_linear,
        geglu_linear_reference,
        _linear_cases,
        _linear_cost,
        lambda capability: _builds("geglu_linear", capability),
        "matrix units: 2 * rows * K * 2D FLOP",
    )
)
