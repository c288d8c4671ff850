"""Triton bodies of `linear8` and `geglu_linear8`: e4m3 products with float32 sums.

The 8-bit matrix units of an sm_90 add up with fewer bits than float32 has, so what they have summed over one step of
the inner axis is added to a float32 accumulator (`max_num_imprecise_acc`).  With several scales per row each step is
multiplied by its own before it is added.  Addresses are 64-bit from the row on.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.dispatch import Build, card, interpreted, tuned
from animx_kernels.geglu_triton import geglu_forward, gelu_parts
from animx_kernels.launch import Launch, as_rows, blocks, build, power, run
from animx_kernels.linear8 import STRETCH
from animx_kernels.quantise8 import E4M3
from animx_kernels.quantise8_triton import to_e4m3


@triton.jit
def tile_of(program, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Row and column block of a program: GROUP row blocks go through the columns together (second-level cache)."""
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS)
    first = program // (GROUP * column_blocks) * GROUP
    within = program % (GROUP * column_blocks)
    height = tl.minimum(row_blocks - first, GROUP)
    return first + within % height, within // height


@triton.jit
def step(a, b, total, size, SCALES: tl.constexpr, INNER: tl.constexpr, WIDEN: tl.constexpr):
    """total + a b, the product times `size` (of each row) where a row has several scales."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if SCALES:
        return total + tl.dot(a, b, input_precision="ieee") * size[:, None]
    return tl.dot(a, b, total, input_precision="ieee", max_num_imprecise_acc=INNER)


@triton.jit
def linear8_kernel(
    x, x_scale, weight, scale, bias, residual, y, rows, inner, width, x_row, weight_row, residual_row, scales, stretch,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, SCALES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """x [rows, inner], weight [width, inner] -> y [rows, width], a tile of ROWS x COLUMNS each.

    SCALES: x_scale [rows, scales], one for each `stretch` neighbours; else one per row.
    """
    block, column_block = tile_of(tl.program_id(0), rows, width, ROWS, COLUMNS, GROUP)
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, INNER)
    # What lies outside is computed from row and column 0 and not stored.
    safe_row = tl.where(row < rows, row, 0)
    from_x = x + safe_row[:, None] * x_row + k[None, :]
    from_weight = weight + tl.where(column < width, column, 0).to(tl.int64)[None, :] * weight_row + k[:, None]
    from_scale = x_scale + safe_row * scales
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    size = tl.load(from_scale)
    for start in range(0, inner, INNER):
        if EVEN:
            a, b = tl.load(from_x), tl.load(from_weight)
        else:
            left = inner - start
            a, b = tl.load(from_x, k[None, :] < left, 0.0), tl.load(from_weight, k[:, None] < left, 0.0)
        if SCALES:
            size = tl.load(from_scale + start // stretch)
        total = step(a, b, total, size, SCALES, INNER, WIDEN)
        from_x += INNER
        from_weight += INNER
    if not SCALES:
        total = total * size[:, None]
    total = total * tl.load(scale + column, column < width, 0)[None, :]
    if bias is not None:
        total += tl.load(bias + column, column < width, 0).to(tl.float32)[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    if residual is not None:
        total += tl.load(residual + row[:, None] * residual_row + column[None, :], inside, 0).to(tl.float32)
    tl.store(y + row[:, None] * width + column[None, :], total.to(y.dtype.element_ty), inside)


@triton.jit
def geglu_linear8_kernel(
    x, x_scale, weight, scale, bias, y, y_scale, rows, inner, width, x_row, weight_row, scales, stretch,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, SCALES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """x [rows, inner], weight [2 * width, inner] -> y [rows, width]: two accumulators, values and their gates.

    With y_scale [rows, width / COLUMNS] y is e4m3: each tile's rows are quantised as they are.
    """
    block, column_block = tile_of(tl.program_id(0), rows, width, ROWS, COLUMNS, GROUP)
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, INNER)
    safe_row = tl.where(row < rows, row, 0)
    from_x = x + safe_row[:, None] * x_row + k[None, :]
    from_value = weight + tl.where(column < width, column, 0).to(tl.int64)[None, :] * weight_row + k[:, None]
    from_gate = from_value + tl.cast(width, tl.int64) * weight_row
    from_scale = x_scale + safe_row * scales
    value = tl.zeros([ROWS, COLUMNS], tl.float32)
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    size = tl.load(from_scale)
    for start in range(0, inner, INNER):
        if EVEN:
            a, v, g = tl.load(from_x), tl.load(from_value), tl.load(from_gate)
        else:
            left = inner - start
            a = tl.load(from_x, k[None, :] < left, 0.0)
            v = tl.load(from_value, k[:, None] < left, 0.0)
            g = tl.load(from_gate, k[:, None] < left, 0.0)
        if SCALES:
            size = tl.load(from_scale + start // stretch)
        value = step(a, v, value, size, SCALES, INNER, WIDEN)
        gate = step(a, g, gate, size, SCALES, INNER, WIDEN)
        from_x += INNER
        from_value += INNER
        from_gate += INNER
    if not SCALES:
        value, gate = value * size[:, None], gate * size[:, None]
    known = column < width
    value = (
        value * tl.load(scale + column, known, 0)[None, :] + tl.load(bias + column, known, 0).to(tl.float32)[None, :]
    )
    gate = gate * tl.load(scale + width + column, known, 0)[None, :]
    gate += tl.load(bias + width + column, known, 0).to(tl.float32)[None, :]
    cdf, _ = gelu_parts(gate)
    made = value * gate * cdf
    if y_scale is not None:
        made, size = to_e4m3(made, WIDEN)
        tl.store(y_scale + row * (width // COLUMNS) + column_block, size, row < rows)
    to = y + row[:, None] * width + column[None, :]
    tl.store(to, made.to(y.dtype.element_ty), (row < rows)[:, None] & known[None, :])


def _tiles(
    name: str, x: Tensor, scales: int, width: int, capability: int, widen: bool, columns: int | None = None
) -> dict[str, Any]:
    """The constants of a launch, and under `config` its warps and stages; `columns`: if they are not the table's."""
    rows, inner = x.shape
    config = tuned(name, str(inner), capability)
    size = min(config["inner"], power(inner, 32))
    while (inner // scales) % size and scales > 1:  # a step has one scale
        size //= 2
    return {
        "ROWS": min(config["rows"], power(rows, 16)),
        "COLUMNS": columns or min(config["columns"], power(width, 16)),
        "INNER": size,
        "GROUP": config["group"],
        "EVEN": inner % size == 0,
        "SCALES": scales > 1,
        "WIDEN": widen,
        "config": config,
    }


def plan_linear8(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, y: Tensor,
    capability: int, widen: bool,
) -> Launch:  # fmt: skip
    """x e4m3 [rows, K], x_scale [rows, S], weight e4m3 [D, K], residual [rows, D] -> y [rows, D]."""
    (rows, inner), width, scales = x.shape, y.shape[1], x_scale.shape[1]
    constants = _tiles("linear8", x, scales, width, capability, widen)
    config = constants.pop("config")
    values: dict[str, Any] = {"x": x, "x_scale": x_scale, "weight": weight, "scale": scale, "bias": bias}
    values |= {"residual": residual, "y": y, "rows": rows, "inner": inner, "width": width}
    values |= {"x_row": x.stride(0), "weight_row": weight.stride(0)}
    values |= {"residual_row": 0 if residual is None else residual.stride(0)}
    values |= {"scales": scales, "stretch": inner // scales}
    grid = (blocks(rows, constants["ROWS"]) * blocks(width, constants["COLUMNS"]),)
    return Launch(linear8_kernel, grid, values, constants, config["num_warps"], config["num_stages"])


def plan_geglu_linear8(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, y: Tensor, y_scale: Tensor | None,
    capability: int, widen: bool,
) -> Launch:  # fmt: skip
    """x e4m3 [rows, K], x_scale [rows, S], weight e4m3 [2D, K] -> y [rows, D], e4m3 with y_scale [rows, D / 128]."""
    (rows, inner), width, scales = x.shape, y.shape[1], x_scale.shape[1]
    name, columns = ("geglu_linear8", None) if y_scale is None else ("geglu_rows8", STRETCH)
    constants = _tiles(name, x, scales, width, capability, widen, columns)
    config = constants.pop("config")
    values: dict[str, Any] = {"x": x, "x_scale": x_scale, "weight": weight, "scale": scale, "bias": bias, "y": y}
    values |= {
        "y_scale": y_scale,
        "rows": rows,
        "inner": inner,
        "width": width,
        "x_row": x.stride(0),
        "weight_row": weight.stride(0),
    }
    values |= {"scales": scales, "stretch": inner // scales}
    grid = (blocks(rows, constants["ROWS"]) * blocks(width, constants["COLUMNS"]),)
    return Launch(geglu_linear8_kernel, grid, values, constants, config["num_warps"], config["num_stages"])


def _by_library(name: str, x: Tensor, x_scale: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the table asks for the library's product and the library has one of this kind."""
    fits = x_scale.shape[1] == 1 and dtype in (torch.float16, torch.bfloat16)
    fits &= weight.shape[1] % 16 == 0 and weight.shape[0] % 16 == 0 and weight.is_contiguous()
    return fits and str(tuned(name, str(x.shape[1]), card(x.device))["route"]) == "library"


def _product(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(x.contiguous(), weight.t(), x_scale, scale[None], out_dtype=dtype)


def linear8_forward(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """See `linear8.linear8`."""
    y = x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)
    if not y.numel():
        return y
    rows, size, flat = as_rows(x), as_rows(x_scale).contiguous(), y.view(-1, y.shape[-1])
    if _by_library("linear8", rows, size, weight, dtype):
        product = _product(rows, size, weight, scale, dtype).view(y.shape)
        product = product if bias is None else product.add_(bias)
        return product if residual is None else product.add_(residual)
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    more = None if residual is None else as_rows(residual)
    run(plan_linear8(rows, size, weight, scale, bias, more, flat, card(x.device), interpreted()))
    return y


def geglu_linear8_forward(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """See `linear8.geglu_linear8`."""
    y = x.new_empty((*x.shape[:-1], weight.shape[0] // 2), dtype=dtype)
    if not y.numel():
        return y
    rows, size, flat = as_rows(x), as_rows(x_scale).contiguous(), y.view(-1, y.shape[-1])
    if _by_library("geglu_linear8", rows, size, weight, dtype):
        return geglu_forward(_product(rows, size, weight, scale, dtype).add_(bias)).view(y.shape)
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    run(plan_geglu_linear8(rows, size, weight, scale, bias, flat, None, card(x.device), interpreted()))
    return y


def geglu_rows8_forward(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """See `linear8.geglu_rows8`."""
    width = weight.shape[0] // 2
    y = x.new_empty((*x.shape[:-1], width), dtype=E4M3)
    y_scale = x_scale.new_empty((*x.shape[:-1], width // STRETCH))
    if y.numel():
        rows, size = as_rows(x), as_rows(x_scale).contiguous()
        flat, sizes = y.view(-1, width), y_scale.view(-1, width // STRETCH)
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        run(plan_geglu_linear8(rows, size, weight, scale, bias, flat, sizes, card(x.device), interpreted()))
    return y, y_scale


def builds(which: str, capability: int) -> list[Build]:
    """Launches of `which` as at the widest official level, in bfloat16: rows with one scale, and with several."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    rows, found = 12672, []
    if which != "linear8":
        quantised = which == "geglu_rows8"
        x, weight = empty(rows, 1280, dtype=E4M3), empty(10240, 1280, dtype=E4M3)
        size, scale = empty(rows, 1, dtype=torch.float32), empty(10240, dtype=torch.float32)
        out = empty(rows, 5120, dtype=E4M3 if quantised else torch.bfloat16)
        sizes = empty(rows, 5120 // STRETCH, dtype=torch.float32) if quantised else None
        return [build(plan_geglu_linear8(x, size, weight, scale, empty(10240), out, sizes, capability, False))]
    for inner, scales, extras in ((1280, 1, False), (5120, 1, True), (5120, 40, True)):
        x, weight, out = empty(rows, inner, dtype=E4M3), empty(1280, inner, dtype=E4M3), empty(rows, 1280)
        size, scale = empty(rows, scales, dtype=torch.float32), empty(1280, dtype=torch.float32)
        bias, residual = (empty(1280), empty(rows, 1280)) if extras else (None, None)
        found.append(build(plan_linear8(x, size, weight, scale, bias, residual, out, capability, False)))
    return found
