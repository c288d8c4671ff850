"""Triton bodies of `geglu`, its gradient and `geglu_linear`.

The projection GEMM keeps two accumulators, one of value columns and one of the gate columns that belong to them, so the
activation runs on registers and only [rows, D] is written.  Addresses are 64-bit from the row on.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, card, interpreted, tuned
from animx_kernels.launch import Launch, as_rows, blocks, build, power, run


@triton.jit
def gelu_parts(gate):
    """The normal distribution function and density at `gate`: gelu = gate * cdf, its slope cdf + gate * density."""
    cdf = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    return cdf, tl.exp(-0.5 * gate * gate) * 0.3989422804014327


@triton.jit
def geglu_kernel(x, y, rows, width, x_row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x [rows, 2 * width] -> y [rows, width], a tile of ROWS x COLUMNS each."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    value = tl.load(x + row * x_row + column, inside, 0).to(tl.float32)
    gate = tl.load(x + row * x_row + column + width, inside, 0).to(tl.float32)
    cdf, _ = gelu_parts(gate)
    tl.store(y + row * width + column, (value * gate * cdf).to(y.dtype.element_ty), inside)


@triton.jit
def geglu_backward_kernel(gradient, x, y, rows, width, gradient_row, x_row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """gradient [rows, width], x [rows, 2 * width] -> y [rows, 2 * width]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    g = tl.load(gradient + row * gradient_row + column, inside, 0).to(tl.float32)
    value = tl.load(x + row * x_row + column, inside, 0).to(tl.float32)
    gate = tl.load(x + row * x_row + column + width, inside, 0).to(tl.float32)
    cdf, density = gelu_parts(gate)
    to = y + row * (2 * width) + column
    tl.store(to, (g * gate * cdf).to(y.dtype.element_ty), inside)
    tl.store(to + width, (g * value * (cdf + gate * density)).to(y.dtype.element_ty), inside)


@triton.jit
def geglu_linear_kernel(
    x, weight, bias, y, rows, inner, width, x_row, weight_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """x [rows, inner], weight [2 * width, inner] -> y [rows, width], a tile of ROWS x COLUMNS each.

    Programs of GROUP row blocks go through the columns together, so that weights stay in the second-level cache.
    """
    program = tl.program_id(0)
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS)
    first = program // (GROUP * column_blocks) * GROUP
    within = program % (GROUP * column_blocks)
    height = tl.minimum(row_blocks - first, GROUP)
    row = (first + within % height).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (within // height) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, INNER)
    # What lies outside is computed from row and column 0 and not stored.
    from_x = x + tl.where(row < rows, row, 0)[:, None] * x_row + k[None, :]
    safe = tl.where(column < width, column, 0).to(tl.int64)
    from_value = weight + safe[None, :] * weight_row + k[:, None]
    from_gate = from_value + tl.cast(width, tl.int64) * weight_row
    value = tl.zeros([ROWS, COLUMNS], tl.float32)
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inner, INNER):
        if EVEN:
            a, v, g = tl.load(from_x), tl.load(from_value), tl.load(from_gate)
        else:
            left = inner - start
            a = tl.load(from_x, k[None, :] < left, 0)
            v = tl.load(from_value, k[:, None] < left, 0)
            g = tl.load(from_gate, k[:, None] < left, 0)
        if WIDEN:
            a, v, g = a.to(tl.float32), v.to(tl.float32), g.to(tl.float32)
        value = tl.dot(a, v, value, input_precision="ieee")
        gate = tl.dot(a, g, gate, input_precision="ieee")
        from_x += INNER
        from_value += INNER
        from_gate += INNER
    value += tl.load(bias + column, column < width, 0).to(tl.float32)[None, :]
    gate += tl.load(bias + width + column, column < width, 0).to(tl.float32)[None, :]
    cdf, _ = gelu_parts(gate)
    to = y + row[:, None] * width + column[None, :]
    tl.store(to, (value * gate * cdf).to(y.dtype.element_ty), (row < rows)[:, None] & (column < width)[None, :])


def _tile(width: int, config: dict[str, int]) -> tuple[int, int]:
    columns = min(config["columns"], power(width))
    return max(1, config["elements"] // columns), columns


def plan_geglu(x: Tensor, y: Tensor, capability: int) -> Launch:
    """x [rows, 2D] -> y [rows, D]."""
    rows, width = y.shape
    config = tuned("geglu", str(width), capability)
    high, wide = _tile(width, config)
    values: dict[str, Any] = {"x": x, "y": y, "rows": rows, "width": width, "x_row": x.stride(0)}
    grid = (blocks(rows, high), blocks(width, wide))
    return Launch(geglu_kernel, grid, values, {"ROWS": high, "COLUMNS": wide}, config["num_warps"], 1)


def plan_geglu_backward(gradient: Tensor, x: Tensor, y: Tensor, capability: int) -> Launch:
    """gradient [rows, D], x [rows, 2D] -> y [rows, 2D]."""
    rows, width = gradient.shape
    config = tuned("geglu_backward", str(width), capability)
    high, wide = _tile(width, config)
    values: dict[str, Any] = {"gradient": gradient, "x": x, "y": y, "rows": rows, "width": width}
    values |= {"gradient_row": gradient.stride(0), "x_row": x.stride(0)}
    grid = (blocks(rows, high), blocks(width, wide))
    return Launch(geglu_backward_kernel, grid, values, {"ROWS": high, "COLUMNS": wide}, config["num_warps"], 1)


def plan_geglu_linear(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, capability: int, widen: bool) -> Launch:
    """x [rows, K], weight [2D, K] -> y [rows, D]."""
    (rows, inner), width = x.shape, y.shape[1]
    config = tuned("geglu_linear", str(inner), capability)
    wide = x.dtype == torch.float32
    tile = {
        # Two accumulators of float32; float32 storage needs twice the shared memory for its tiles.
        "ROWS": min(config["rows"] // (2 if wide else 1), power(rows, 16)),
        "COLUMNS": min(config["columns"], power(width, 16)),
        "INNER": min(config["inner"] // (2 if wide else 1), power(inner, 16)),
    }
    values: dict[str, Any] = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "y": y,
        "rows": rows,
        "inner": inner,
        "width": width,
    }
    values |= {"x_row": x.stride(0), "weight_row": weight.stride(0)}
    constants = {**tile, "GROUP": config["group"], "EVEN": inner % tile["INNER"] == 0, "WIDEN": widen}
    grid = (blocks(rows, tile["ROWS"]) * blocks(width, tile["COLUMNS"]),)
    return Launch(geglu_linear_kernel, grid, values, constants, config["num_warps"], config["num_stages"])


def geglu_forward(x: Tensor) -> Tensor:
    """x [..., 2D] -> [..., D]."""
    y = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    if y.numel():
        run(plan_geglu(as_rows(x), y.view(-1, y.shape[-1]), card(x.device)))
    return y


def geglu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of x [..., 2D] for the gradient [..., D] of its geglu."""
    y = x.new_empty(x.shape)
    if y.numel():
        run(plan_geglu_backward(as_rows(gradient), as_rows(x), y.view(-1, y.shape[-1]), card(x.device)))
    return y


def geglu_linear_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [..., K], weight [2D, K], bias [2D] -> [..., D]."""
    y = x.new_empty((*x.shape[:-1], weight.shape[0] // 2))
    if not y.numel():
        return y
    capability = card(x.device)
    if tuned("geglu_linear", str(x.shape[-1]), capability)["route"] == "library":
        return geglu_forward(F.linear(x, weight, bias))
    run(
        plan_geglu_linear(
            as_rows(x), as_rows(weight), bias.contiguous(), y.view(-1, y.shape[-1]), capability, interpreted()
        )
    )
    return y


def builds(which: str, capability: int) -> list[Build]:
    """One launch of `which` as at the widest official level, in bfloat16."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    rows, inner = 12672, 1280
    if which == "geglu":
        return [build(plan_geglu(empty(rows, 8 * inner), empty(rows, 4 * inner), capability))]
    if which == "geglu_backward":
        double, single = empty(rows, 8 * inner), empty(rows, 4 * inner)
        return [build(plan_geglu_backward(single, double, double, capability))]
    x, weight, bias = empty(rows, inner), empty(8 * inner, inner), empty(8 * inner)
    return [build(plan_geglu_linear(x, weight, bias, empty(rows, 4 * inner), capability, widen=False))]
