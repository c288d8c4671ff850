"""Triton body of `quantise_rows`: a program owns whole rows, reads them once and writes a byte a number."""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.dispatch import Build, card, interpreted, tuned
from animx_kernels.launch import Launch, as_rows, blocks, build, power, run
from animx_kernels.quantise8 import E4M3


@triton.jit
def on_grid(x):
    """x float32 rounded to the nearest e4m3 number, ties to even: the interpreter's conversion forgets to carry."""
    exponent = tl.maximum(x.to(tl.int32, bitcast=True) & 0x7F800000, (127 - 6) << 23)
    anchor = 1.5 * (exponent + (20 << 23)).to(tl.float32, bitcast=True)
    return (x + anchor) - anchor


@triton.jit
def to_e4m3(x, ROUND: tl.constexpr):
    """Rows x [R, C] float32 -> what of each row goes into e4m3 [R, C], and its scale [R]; see `rows_reference`.

    ROUND: round here what a card rounds when it converts.
    """
    top = tl.maximum(tl.max(tl.abs(x), 1), 1e-30)
    finite = tl.sum(x * 0.0, 1) == 0  # an infinity or a NaN times 0 is a NaN
    factor = tl.div_rn(tl.full(top.shape, 448.0, tl.float32), top)
    values = tl.minimum(tl.maximum(x * factor[:, None], -448.0), 448.0)
    if ROUND:
        values = on_grid(values)
    return tl.where(finite[:, None], values, 0.0), tl.where(finite, top * 0.002232142857142857, float("nan"))


@triton.jit
def quantise_rows_kernel(x, y, scale, rows, width, x_row, ROWS: tl.constexpr, WIDTH: tl.constexpr, ROUND: tl.constexpr):
    """x [rows, width] -> y e4m3 [rows, width], scale [rows];"""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows)[:, None] & (column < width)
    values, size = to_e4m3(tl.load(x + row[:, None] * x_row + column, inside, 0).to(tl.float32), ROUND)
    tl.store(y + row[:, None] * width + column, values.to(y.dtype.element_ty), inside)
    tl.store(scale + row, size, row < rows)


def plan_rows(x: Tensor, y: Tensor, scale: Tensor, capability: int, round_: bool) -> Launch:
    """x [rows, K] -> y e4m3 [rows, K], scale [rows]."""
    rows, width = x.shape
    config = tuned("quantise_rows", str(width), capability)
    wide = power(width)
    high = min(max(1, config["elements"] // wide), power(rows))
    values: dict[str, Any] = {"x": x, "y": y, "scale": scale, "rows": rows, "width": width, "x_row": x.stride(0)}
    constants = {"ROWS": high, "WIDTH": wide, "ROUND": round_}
    return Launch(quantise_rows_kernel, (blocks(rows, high),), values, constants, config["num_warps"], 1)


def rows_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `quantise8.quantise_rows`."""
    y = x.new_empty(x.shape, dtype=E4M3)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    if y.numel():
        run(plan_rows(as_rows(x), y.view(-1, x.shape[-1]), scale.view(-1), card(x.device), interpreted()))
    return y, scale


def builds(which: str, capability: int) -> list[Build]:
    """Launches of `which` as in the official network, in bfloat16: the narrowest and the widest rows."""
    found = []
    for rows, width in ((33 * 6144, 320), (33 * 384, 5120)):
        x = torch.empty(rows, width, device="meta", dtype=torch.bfloat16)
        y, scale = torch.empty(x.shape, device="meta", dtype=E4M3), torch.empty(rows, device="meta")
        found.append(build(plan_rows(x, y, scale, capability, False)))
    return found
