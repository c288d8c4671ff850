"""Triton bodies of `add_layer_norm8` and `layer_norm8`: a program holds whole rows in registers."""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.add_layer_norm_triton import row_moments
from animx_kernels.dispatch import Build, card, interpreted, tuned
from animx_kernels.launch import Launch, as_rows, blocks, build, power, run
from animx_kernels.quantise8 import E4M3
from animx_kernels.quantise8_triton import to_e4m3


@triton.jit
def layer_norm8_kernel(
    x, residual, weight, bias, total, y, scale, rows, width, eps, x_row, residual_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADDED: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """total = x + residual (only with ADDED), y and scale = its LayerNorm in 8 bits; all [rows, width]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    tile = tl.load(x + row[:, None] * x_row + column[None, :], inside, 0).to(tl.float32)
    at = row[:, None] * width + column[None, :]
    if ADDED:
        tile += tl.load(residual + row[:, None] * residual_row + column[None, :], inside, 0).to(tl.float32)
        stored = tile.to(total.dtype.element_ty)
        tl.store(total + at, stored, inside)
        tile = stored.to(tl.float32)
    away, variance = row_moments(tile, inside, tl.cast(width, tl.float32))
    factor = tl.load(weight + column, column < width, 0).to(tl.float32)
    addend = tl.load(bias + column, column < width, 0).to(tl.float32)
    normed = away * (1.0 / tl.sqrt_rn(variance + eps)) * factor[None, :] + addend[None, :]
    values, size = to_e4m3(normed, ROUND)  # outside a row: 0 * rstd * 0 + 0
    tl.store(y + at, values.to(y.dtype.element_ty), inside)
    tl.store(scale + row, size, row < rows)


def plan(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, total: Tensor | None, y: Tensor, scale: Tensor,
    eps: float, capability: int, round_: bool,
) -> Launch:  # fmt: skip
    """x, residual [rows, C] -> total [rows, C], y e4m3 [rows, C], scale [rows]; residual and total together or none."""
    rows, width = y.shape
    config, columns = tuned("add_layer_norm", str(width), capability), power(width)
    values: dict[str, Any] = {"x": x, "residual": residual, "weight": weight, "bias": bias, "total": total, "y": y}
    values |= {"scale": scale, "rows": rows, "width": width, "eps": eps, "x_row": x.stride(0)}
    values |= {"residual_row": None if residual is None else residual.stride(0)}
    high = min(max(1, config["elements"] // columns), power(rows))
    constants = {"ROWS": high, "COLUMNS": columns, "ADDED": residual is not None, "ROUND": round_}
    return Launch(layer_norm8_kernel, (blocks(rows, high),), values, constants, config["num_warps"], 1)


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def add_layer_norm8_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x + residual, and its LayerNorm in 8 bits."""
    total, (y, scale) = x.new_empty(x.shape), _rows(x)
    if y.numel():
        rows, more = as_rows(x), as_rows(residual)
        to = total.view(rows.shape), y.view(rows.shape), scale.view(-1)
        given = weight.contiguous(), bias.contiguous()
        run(plan(rows, more, *given, *to, eps, card(x.device), interpreted()))
    return total, y, scale


def layer_norm8_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm over the last axis, in 8 bits."""
    y, scale = _rows(x)
    if y.numel():
        rows = as_rows(x)
        given, to = (weight.contiguous(), bias.contiguous()), (y.view(rows.shape), scale.view(-1))
        run(plan(rows, None, *given, None, *to, eps, card(x.device), interpreted()))
    return y, scale


def builds(which: str, capability: int) -> list[Build]:
    """Launches of `which` at the widest official level, in bfloat16."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    x, weight, y = empty(12672, 1280), empty(1280), empty(12672, 1280, dtype=E4M3)
    scale, added = empty(12672, dtype=torch.float32), which == "add_layer_norm8"
    more = x if added else None
    return [build(plan(x, more, weight, weight, more, y, scale, 1e-5, capability, False))]
