"""Eight-bit rows: floating point numbers of 8 bits (e4m3), with a scale that makes the largest of a row 448.

`quantise_weight` does it to a weight, once; `quantise_rows` to activations, row by row as they come.  A scale belongs
to a whole row, or to each of S equal stretches of it.  Rounding is done in float32 whatever the storage, so every
device and every type that holds the same numbers gives the same bytes.  A row with an infinity or a NaN gets a NaN for
its scale: it stays visible in what is computed from it, where a conversion alone would turn it into 448.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, card, draw, has_triton, mode, nbytes, register
from animx_kernels.dispatch import use_triton as use_triton

E4M3 = torch.float8_e4m3fn

LARGEST = 448.0
"""The largest e4m3 number."""

TINY = 1e-30
"""What the largest of a row counts at least: zeros stay zeros, and nothing divides by zero."""

LEAST_CAPABILITY = 89
"""Compute capability from which a card multiplies e4m3 numbers."""


class Rows8(NamedTuple):
    """Rows of 8-bit numbers: `values` [..., K] e4m3, `scale` [..., S] float32, each for K / S neighbours."""

    values: Tensor
    scale: Tensor


def refusal8(device: torch.device | str, inner: int, out: int) -> str | None:
    """Why a linear layer [out, inner] gains nothing from 8 bits on a device, or None.  Ask before quantising weights.

    `linear8` works everywhere; where this has a reason it computes the same numbers slowly.
    """
    place = torch.device(device)
    if place.type != "cuda":
        return f"8-bit products are emulated on {place.type}"
    if mode() == "reference":
        return "ANIMX_KERNELS=reference"
    if not has_triton():
        return "triton is not installed (pip install 'animx[kernels]')"
    if card(place) < LEAST_CAPABILITY:
        return f"compute capability {card(place)} has no 8-bit floating point products (from {LEAST_CAPABILITY} on)"
    if inner % 16 or out % 16:
        return f"a layer of {out} x {inner}: both have to be multiples of 16"
    return None


def body_refusal(x: Tensor) -> str | None:
    """Why the Triton bodies that handle e4m3 numbers do not take the device of x, or None."""
    if x.device.type != "cpu" and card(x.device) < LEAST_CAPABILITY:
        return f"compute capability {card(x.device)} is below {LEAST_CAPABILITY}"
    return None


MOST_CHANNELS = 16384
"""A row has to fit one program's registers."""


def _rows_refusal(x: Tensor) -> str | None:
    return f"rows of {x.shape[-1]} channels" if x.shape[-1] > MOST_CHANNELS else body_refusal(x)


def rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] -> e4m3 [..., K] and scale [..., 1] float32: x is about values * scale."""
    y = x.float()
    top = y.abs().amax(-1, keepdim=True).clamp_min(TINY)  # NaN where there is one
    finite = top.isfinite()
    values = (y * (torch.full_like(top, LARGEST) / top)).clamp(-LARGEST, LARGEST)
    return torch.where(finite, values, 0).to(E4M3), torch.where(finite, top * (1 / LARGEST), torch.nan)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [out, in] -> e4m3 [out, in] and scale [out] float32, one per output channel.

    A row of zeros stays one.  Half a step of rounding is 1/16 of a number: about 2.5 % of the weight's norm (rms).
    """
    if weight.ndim != 2:
        raise ValueError(f"quantise_weight: a weight [out, in] is wanted, not {tuple(weight.shape)}")
    values, scale = rows_reference(weight.detach())
    return values, scale[:, 0]


@torch.library.custom_op("animx::quantise_rows", mutates_args=())
def _quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    if use_triton("quantise_rows", x, refusal=_rows_refusal(x)):
        from animx_kernels.quantise8_triton import rows_forward

        return rows_forward(x)
    return rows_reference(x)


@_quantise_rows.register_fake
def _quantise_rows_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def quantise_rows(x: Tensor) -> Rows8:
    """x [..., K] -> its rows in 8 bits, one scale each; contiguous.  For inference: no gradient."""
    return Rows8(*_quantise_rows(x))


def dequantised(rows: Rows8, kind: torch.dtype = torch.float32) -> Tensor:
    """What the rows stand for, [..., K] of type `kind`."""
    values, scale = rows.values.to(kind), rows.scale.to(kind)
    if scale.shape[-1] == 1:
        return values * scale
    return (values.unflatten(-1, (scale.shape[-1], -1)) * scale[..., None]).flatten(-2)


def _rows_cost(x: Tensor) -> Cost:
    return Cost(1, 0, nbytes(x), x.numel() + x.numel() // x.shape[-1] * 4)


SIZES = {"L0": (33 * 6144, 320), "L1": (33 * 1536, 640), "L2": (33 * 384, 1280), "L3": (33 * 96, 1280)}
"""Rows and width of the official activations by level (768x512, 32 frames and the reference slot)."""


def _rows_cases() -> dict[str, Case]:
    def case(rows: int, width: int, official: bool = False) -> Case:
        return Case(lambda device, dtype, seed: Inputs((draw((rows, width), device, dtype, seed),), {}), official)

    small = {"small": case(37, 64), "odd": case(5, 19), "one row": case(1, 640)}
    official = {name: case(rows, width, True) for name, (rows, width) in SIZES.items()}
    return small | official | {"L0 gated": case(SIZES["L0"][0], 1280, True)}


def _builds(which: str, capability: int) -> list[Build]:
    if capability < LEAST_CAPABILITY:
        return []
    from animx_kernels import quantise8_triton

    return quantise8_triton.builds(which, capability)


ROUNDED: Mapping[torch.dtype, float] = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 1 / 14)
"""Tolerance of results in e4m3 whose exact value is computed: what lies half-way may be rounded to either side."""


def compared(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of results that end with rows of 8 bits: what they stand for."""
    return *found[:-2], dequantised(Rows8(*found[-2:]), torch.float64)


register(
    Op(
        "quantise_rows",
        quantise_rows,
        rows_reference,
        _rows_cases,
        _rows_cost,
        lambda capability: _builds("quantise_rows", capability),
        "memory: one read of x, one byte written per number",
    )
)
