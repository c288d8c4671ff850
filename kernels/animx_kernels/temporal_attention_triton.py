"""Triton bodies of `temporal_attention`: a program owns one head of PIXELS pixels, one pixel after the other."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels import asked
from animx_kernels.dispatch import Build, card, interpreted, tuned
from animx_kernels.launch import Launch, adjacent, blocks, build, power, run


@triton.jit
def _dot(a, b, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """a b with float32 sums: of float32 operands (WIDE), or of `a` rounded to the storage type of `b`."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a.to(b.dtype), b)


@triton.jit
def _softmax(score, slots, BT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Shares of the known slots, row by row."""
    score = tl.where((tl.arange(0, BT) < slots)[None, :], score, float("-inf"))
    share = tl.exp(score - tl.max(score, 1)[:, None])
    return share / tl.sum(share, 1)[:, None]


@triton.jit
def temporal_attention_kernel(  # type: ignore[no-untyped-def]
    q, k, v, out,
    slots, pixels, d, scale,
    q_b, q_t, q_n, k_b, k_t, k_n, v_b, v_t, v_n, out_b, out_t, out_n,
    WIDE: tl.constexpr, PIXELS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """q, k, v, out [batch, slots, pixels, heads * d]; program (pixel block, head, batch)."""
    batch = tl.program_id(2).to(tl.int64)
    t = tl.arange(0, BT)
    lane = tl.arange(0, BD)
    cells = (t < slots)[:, None] & (lane < d)[None, :]
    t = t.to(tl.int64)[:, None]
    column = (tl.program_id(1) * d + lane)[None, :]
    for i in range(PIXELS):
        n = tl.program_id(0).to(tl.int64) * PIXELS + i
        mask = cells & (n < pixels)
        qs = tl.load(q + (batch * q_b + n * q_n) + t * q_t + column, mask, 0)
        ks = tl.load(k + (batch * k_b + n * k_n) + t * k_t + column, mask, 0)
        vs = tl.load(v + (batch * v_b + n * v_n) + t * v_t + column, mask, 0)
        share = _softmax(_dot(qs, tl.trans(ks), WIDE) * scale, slots, BT)
        result = _dot(share, vs, WIDE).to(out.dtype.element_ty)
        tl.store(out + (batch * out_b + n * out_n) + t * out_t + column, result, mask)


@triton.jit
def temporal_attention_backward_kernel(  # type: ignore[no-untyped-def]
    grad, q, k, v, dq, dk, dv,
    slots, pixels, d, scale,
    grad_b, grad_t, grad_n, q_b, q_t, q_n, k_b, k_t, k_n, v_b, v_t, v_n, out_b, out_t, out_n,
    WIDE: tl.constexpr, PIXELS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The same, gradients out; dq, dk, dv share their strides.  Nothing was kept: the shares are computed anew."""
    batch = tl.program_id(2).to(tl.int64)
    t = tl.arange(0, BT)
    lane = tl.arange(0, BD)
    cells = (t < slots)[:, None] & (lane < d)[None, :]
    t = t.to(tl.int64)[:, None]
    column = (tl.program_id(1) * d + lane)[None, :]
    for i in range(PIXELS):
        n = tl.program_id(0).to(tl.int64) * PIXELS + i
        mask = cells & (n < pixels)
        to = (batch * out_b + n * out_n) + t * out_t + column
        qs = tl.load(q + (batch * q_b + n * q_n) + t * q_t + column, mask, 0)
        ks = tl.load(k + (batch * k_b + n * k_n) + t * k_t + column, mask, 0)
        share = _softmax(_dot(qs, tl.trans(ks), WIDE) * scale, slots, BT)
        gs = tl.load(grad + (batch * grad_b + n * grad_n) + t * grad_t + column, mask, 0)
        tl.store(dv + to, _dot(tl.trans(share), gs, WIDE).to(dv.dtype.element_ty), mask)
        vs = tl.load(v + (batch * v_b + n * v_n) + t * v_t + column, mask, 0)
        slope = _dot(gs, tl.trans(vs), WIDE)
        slope = share * (slope - tl.sum(slope * share, 1)[:, None]) * scale
        tl.store(dq + to, _dot(slope, ks, WIDE).to(dq.dtype.element_ty), mask)
        tl.store(dk + to, _dot(tl.trans(slope), qs, WIDE).to(dk.dtype.element_ty), mask)


def plan(
    kernel: Any, given: dict[str, Tensor], made: dict[str, Tensor], heads: int, config: dict[str, Any], interpret: bool
) -> Launch:
    """`given` [B, T, N, h*d] with adjacent last axes, `made` contiguous, all of one type; names are the kernel's."""
    batch, slots, pixels, width = given["q"].shape
    d, kind = width // heads, given["q"].dtype
    strides = {**given, "out": next(iter(made.values()))}
    values: dict[str, Any] = {**given, **made, "slots": slots, "pixels": pixels, "d": d, "scale": d**-0.5}
    values |= {f"{name}_{axis}": x.stride(i) for name, x in strides.items() for i, axis in enumerate("btn")}
    constants = {
        # The interpreter's products of bfloat16 are wrong.
        "WIDE": kind == torch.float32 or (interpret and kind == torch.bfloat16),
        "PIXELS": config["PIXELS"],
        "BT": power(slots, 16),
        "BD": power(d, 16),
    }
    grid = (blocks(pixels, config["PIXELS"]), heads, batch)
    warps = config["num_warps"]
    if constants["WIDE"] and kernel is temporal_attention_kernel:
        warps = min(16, 4 * warps)  # products of float32 hold four times the registers
    return Launch(kernel, grid, values, constants, warps, config["num_stages"])


def _config(q: Tensor, heads: int, suffix: str, capability: int) -> dict[str, Any]:
    return tuned("temporal_attention" + suffix, f"T{q.shape[1]} d{q.shape[-1] // heads}", capability)


def forward(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """See `temporal_attention.temporal_attention`."""
    given = {"q": adjacent(q), "k": adjacent(k), "v": adjacent(v)}
    out = q.new_empty(q.shape)
    if out.numel():
        config = _config(q, heads, "", card(q.device))
        run(plan(temporal_attention_kernel, given, {"out": out}, heads, config, interpreted()))
    return out


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `temporal_attention.temporal_attention_backward`."""
    given = {"grad": adjacent(grad), "q": adjacent(q), "k": adjacent(k), "v": adjacent(v)}
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    if q.numel():
        made, config = {"dq": dq, "dk": dk, "dv": dv}, _config(q, heads, "_backward", card(q.device))
        run(plan(temporal_attention_backward_kernel, given, made, heads, config, interpreted()))
    return dq, dk, dv


def builds(which: str, capability: int) -> list[Build]:
    """The launch at full size, in bfloat16: 33 slots, heads of 64, views of one projection."""
    qkv = torch.empty(1, 33, 6144, 3 * 320, device="meta", dtype=torch.bfloat16)
    given = dict(zip("qkv", qkv.split(320, dim=-1), strict=True))
    out = torch.empty(1, 33, 6144, 320, device="meta", dtype=torch.bfloat16)
    if not which:
        return list(asked.builds("temporal_attention", capability))
    config = _config(out, 5, which, capability)
    made = {"dq": out, "dk": out, "dv": out}
    return [build(plan(temporal_attention_backward_kernel, {"grad": out, **given}, made, 5, config, False))]
