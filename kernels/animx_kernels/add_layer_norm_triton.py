"""Triton bodies of `add_layer_norm`, `layer_norm` and their gradient: a program holds whole rows in registers."""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.add_layer_norm import ROWS_PER_PART
from animx_kernels.dispatch import Build, card, tuned
from animx_kernels.launch import Launch, as_rows, blocks, build, power, run


@triton.jit
def row_moments(tile, inside, width):
    """Deviations from each row's mean (0 outside) and the variance of each row [ROWS, 1]."""
    mean = tl.sum(tile, axis=1) / width
    away = tl.where(inside, tile - mean[:, None], 0.0)
    return away, (tl.sum(away * away, axis=1) / width)[:, None]


@triton.jit
def layer_norm_kernel(
    x, residual, weight, bias, total, y, rows, width, eps, x_row, residual_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """total = x + residual (only with ADDED), y = its LayerNorm; all [rows, width]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)
    inside = (row < rows) & (column < width)[None, :]
    tile = tl.load(x + row * x_row + column[None, :], inside, 0).to(tl.float32)
    at = row * width + column[None, :]
    if ADDED:
        tile += tl.load(residual + row * residual_row + column[None, :], inside, 0).to(tl.float32)
        stored = tile.to(total.dtype.element_ty)
        tl.store(total + at, stored, inside)
        tile = stored.to(tl.float32)
    away, variance = row_moments(tile, inside, tl.cast(width, tl.float32))
    factor = tl.load(weight + column, column < width, 0).to(tl.float32)
    addend = tl.load(bias + column, column < width, 0).to(tl.float32)
    normed = away * (1.0 / tl.sqrt_rn(variance + eps)) * factor[None, :] + addend[None, :]
    tl.store(y + at, normed.to(y.dtype.element_ty), inside)


@triton.jit
def layer_norm_backward_kernel(
    gradient, x, weight, added, y, partial, rows, width, eps, gradient_row, x_row, added_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """y = gradient of x (+ added), partial [parts, 2, width] = gradients of weight and bias over PART rows."""
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    factor = tl.load(weight + column, column < width, 0).to(tl.float32)[None, :]
    size = tl.cast(width, tl.float32)
    for_weight = tl.zeros([ROWS, COLUMNS], tl.float32)
    for_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    for at in range(0, PART, ROWS):
        row = part * PART + at + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < width)[None, :]
        tile = tl.load(x + row * x_row + column[None, :], inside, 0).to(tl.float32)
        g = tl.load(gradient + row * gradient_row + column[None, :], inside, 0).to(tl.float32)
        away, variance = row_moments(tile, inside, size)
        scale = 1.0 / tl.sqrt_rn(variance + eps)
        unit = away * scale
        for_weight += g * unit
        for_bias += g
        g *= factor
        first = tl.sum(g, axis=1)[:, None] / size
        second = tl.sum(g * unit, axis=1)[:, None] / size
        found = scale * (g - first - unit * second)
        if ADDED:
            found += tl.load(added + row * added_row + column[None, :], inside, 0).to(tl.float32)
        tl.store(y + row * width + column[None, :], found.to(y.dtype.element_ty), inside)
    to = partial + part * 2 * width + column
    tl.store(to, tl.sum(for_weight, axis=0), column < width)
    tl.store(to + width, tl.sum(for_bias, axis=0), column < width)


@triton.jit
def sum_parts_kernel(partial, for_weight, for_bias, parts, width, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """partial [parts, 2, width] -> its two rows of sums, each [width]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    lane = tl.arange(0, PARTS)[:, None]
    first = tl.zeros([PARTS, COLUMNS], tl.float32)
    second = tl.zeros([PARTS, COLUMNS], tl.float32)
    for at in range(0, parts, PARTS):
        here = (at + lane < parts) & (column < width)
        place = partial + (at + lane).to(tl.int64) * 2 * width + column
        first += tl.load(place, here, 0)
        second += tl.load(place + width, here, 0)
    to = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(for_weight + to, tl.sum(first, axis=0).to(for_weight.dtype.element_ty), to < width)
    tl.store(for_bias + to, tl.sum(second, axis=0).to(for_bias.dtype.element_ty), to < width)


def _tile(width: int, config: dict[str, int]) -> dict[str, int]:
    columns = power(width)
    return {"ROWS": max(1, config["elements"] // columns), "COLUMNS": columns}


def plan(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    total: Tensor | None,
    y: Tensor,
    eps: float,
    capability: int,
) -> Launch:
    """x, residual [rows, C] -> total, y [rows, C]; residual and total together or not at all."""
    rows, width = y.shape
    config = tuned("add_layer_norm", str(width), capability)
    tile = _tile(width, config)
    values: dict[str, Any] = {"x": x, "residual": residual, "weight": weight, "bias": bias, "total": total, "y": y}
    values |= {"rows": rows, "width": width, "eps": eps, "x_row": x.stride(0)}
    values |= {"residual_row": None if residual is None else residual.stride(0)}
    constants = {**tile, "ADDED": residual is not None}
    return Launch(layer_norm_kernel, (blocks(rows, tile["ROWS"]),), values, constants, config["num_warps"], 1)


def plan_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    added: Tensor | None,
    y: Tensor,
    partial: Tensor,
    sums: tuple[Tensor, Tensor],
    eps: float,
    capability: int,
) -> list[Launch]:
    """The gradient of the rows with partial sums, then the sums over parts."""
    rows, width = x.shape
    config = tuned("layer_norm_backward", str(width), capability)
    values: dict[str, Any] = {
        "gradient": gradient,
        "x": x,
        "weight": weight,
        "added": added,
        "y": y,
        "partial": partial,
    }
    values |= {"rows": rows, "width": width, "eps": eps, "gradient_row": gradient.stride(0), "x_row": x.stride(0)}
    values |= {"added_row": None if added is None else added.stride(0)}
    constants = {**_tile(width, config), "PART": ROWS_PER_PART, "ADDED": added is not None}
    parts = partial.shape[0]
    second: dict[str, Any] = {
        "partial": partial,
        "for_weight": sums[0],
        "for_bias": sums[1],
        "parts": parts,
        "width": width,
    }
    return [
        Launch(layer_norm_backward_kernel, (parts,), values, constants, config["num_warps"], 1),
        Launch(sum_parts_kernel, (blocks(width, 64),), second, {"PARTS": 32, "COLUMNS": 64}, 4, 1),
    ]


def add_layer_norm_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + residual, its LayerNorm)."""
    total, y = x.new_empty(x.shape), x.new_empty(x.shape)
    if y.numel():
        rows, more = as_rows(x), as_rows(residual)
        to = total.view(rows.shape), y.view(rows.shape)
        run(plan(rows, more, weight.contiguous(), bias.contiguous(), *to, eps, card(x.device)))
    return total, y


def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    y = x.new_empty(x.shape)
    if y.numel():
        rows = as_rows(x)
        run(plan(rows, None, weight.contiguous(), bias.contiguous(), None, y.view(rows.shape), eps, card(x.device)))
    return y


def layer_norm_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, eps: float, added: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (plus `added`), weight and bias."""
    rows = as_rows(x)
    y, sums = x.new_empty(x.shape), (weight.new_empty(weight.shape), weight.new_empty(weight.shape))
    if not y.numel():
        return y, sums[0].zero_(), sums[1].zero_()
    parts = blocks(rows.shape[0], ROWS_PER_PART)
    partial = x.new_empty((parts, 2, rows.shape[1]), dtype=torch.float32)
    more = None if added is None else as_rows(added)
    for launch in plan_backward(
        as_rows(gradient), rows, weight.contiguous(), more, y.view(rows.shape), partial, sums, eps, card(x.device)
    ):
        run(launch)
    return y, *sums


def builds(which: str, capability: int) -> list[Build]:
    """Launches of `which` at the widest official level, in bfloat16."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    x, weight = empty(12672, 1280), empty(1280)
    if which == "layer_norm_backward":
        partial = torch.empty((blocks(x.shape[0], ROWS_PER_PART), 2, 1280), device="meta")
        return [
            build(launch) for launch in plan_backward(x, x, weight, x, x, partial, (weight, weight), 1e-5, capability)
        ]
    if which == "layer_norm":
        return [build(plan(x, None, weight, weight, None, x, 1e-5, capability))]
    return [build(plan(x, x, weight, weight, x, x, 1e-5, capability))]
