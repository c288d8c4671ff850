"""Triton bodies of `causal_conv_silu`: a program owns a block of pixels and channels and walks through time.

The last slots stay in registers, so each is read once.  Backwards it walks against the direction of the convolution,
with the slots before the current one and the slopes after it in registers; sums for weight and bias stay in them until
the end and are written per program, to be added by torch: no atomic additions, the same bytes on every run.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels import asked
from animx_kernels.causal_conv import NAME, partial_shape
from animx_kernels.dispatch import Build, card, tuned
from animx_kernels.launch import MOST_PROGRAMS, Launch, adjacent, blocks, build, power, run


@triton.jit
def tap(weight, e, known, LAG: tl.constexpr, TAPS: tl.constexpr):
    """Weight of the slot LAG before; 0 for a tap that there is not."""
    return tl.load(weight + e * TAPS + (TAPS - 1 - LAG), known & (LAG < TAPS), 0).to(tl.float32)[None, :]


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def causal_conv_kernel(
    u, weight, bias, out, length, pixels, half, u_b, u_t, u_n, out_b, out_t, out_n,
    TAPS: tl.constexpr, BIAS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Program (channel block, pixel block, batch); `half`: channels of one direction, the second runs backwards."""
    per = tl.cdiv(half, CHANNELS)
    side = tl.program_id(0) // per
    e = tl.program_id(0) % per * CHANNELS + tl.arange(0, CHANNELS)
    known = e < half
    e = side * half + e
    batch = tl.program_id(2).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    live = (n < pixels)[:, None] & known[None, :]
    w0 = tap(weight, e, known, 0, TAPS)
    w1 = tap(weight, e, known, 1, TAPS)
    w2 = tap(weight, e, known, 2, TAPS)
    w3 = tap(weight, e, known, 3, TAPS)
    base = tl.zeros([1, CHANNELS], tl.float32)
    if BIAS:
        base = tl.load(bias + e, known, 0).to(tl.float32)[None, :]
    at = u + batch * u_b + n[:, None] * u_n + e[None, :]
    to = out + batch * out_b + n[:, None] * out_n + e[None, :]
    u1 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    u2 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    u3 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for i in range(length):
        t = (side * (length - 1) + (1 - 2 * side) * i).to(tl.int64)
        u0 = tl.load(at + t * u_t, live, 0).to(tl.float32)
        pre = w0 * u0 + w1 * u1 + w2 * u2 + w3 * u3 + base
        tl.store(to + t * out_t, (pre * sigmoid(pre)).to(out.dtype.element_ty), live)
        u3 = u2
        u2 = u1
        u1 = u0


@triton.jit
def causal_conv_backward_kernel(
    grad, u, weight, bias, du, sums, batches, length, pixels, half,
    grad_b, grad_t, grad_n, u_b, u_t, u_n, du_b, du_t, du_n,
    TAPS: tl.constexpr, BIAS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Program (channel block, p) takes pixel blocks p, p + P, ...; sums [P, 5, E]: weight by lag, then bias."""
    per = tl.cdiv(half, CHANNELS)
    side = tl.program_id(0) // per
    e = tl.program_id(0) % per * CHANNELS + tl.arange(0, CHANNELS)
    known = e < half
    e = side * half + e
    channels = tl.num_programs(0) // per * half
    w0 = tap(weight, e, known, 0, TAPS)
    w1 = tap(weight, e, known, 1, TAPS)
    w2 = tap(weight, e, known, 2, TAPS)
    w3 = tap(weight, e, known, 3, TAPS)
    base = tl.zeros([1, CHANNELS], tl.float32)
    if BIAS:
        base = tl.load(bias + e, known, 0).to(tl.float32)[None, :]
    sum0 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    sum1 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    sum2 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    sum3 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    rows = tl.cdiv(pixels, PIXELS)
    first = side * (length - 1)
    step = 1 - 2 * side
    for row in range(tl.program_id(1), batches * rows, tl.num_programs(1)):
        batch = (row // rows).to(tl.int64)
        n = (row % rows).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
        live = (n < pixels)[:, None] & known[None, :]
        at = u + batch * u_b + n[:, None] * u_n + e[None, :]
        toward = grad + batch * grad_b + n[:, None] * grad_n + e[None, :]
        to = du + batch * du_b + n[:, None] * du_n + e[None, :]
        # The direction's last slot and those before it; zeros before the clip.
        u0 = tl.load(at + (first + step * (length - 1)).to(tl.int64) * u_t, live, 0).to(tl.float32)
        u1 = tl.load(at + (first + step * (length - 2)).to(tl.int64) * u_t, live & (length > 1), 0).to(tl.float32)
        u2 = tl.load(at + (first + step * (length - 3)).to(tl.int64) * u_t, live & (length > 2), 0).to(tl.float32)
        p1 = tl.zeros([PIXELS, CHANNELS], tl.float32)
        p2 = tl.zeros([PIXELS, CHANNELS], tl.float32)
        p3 = tl.zeros([PIXELS, CHANNELS], tl.float32)
        for j in range(length):
            i = length - 1 - j
            t = (first + step * i).to(tl.int64)
            before = (first + step * (i - 3)).to(tl.int64)
            u3 = tl.load(at + before * u_t, live & (i > 2), 0).to(tl.float32)
            pre = w0 * u0 + w1 * u1 + w2 * u2 + w3 * u3 + base
            share = sigmoid(pre)
            p0 = tl.load(toward + t * grad_t, live, 0).to(tl.float32) * share * (1.0 + pre * (1.0 - share))
            sum0 += p0 * u0
            sum1 += p0 * u1
            sum2 += p0 * u2
            sum3 += p0 * u3
            total += p0
            found = w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3
            tl.store(to + t * du_t, found.to(du.dtype.element_ty), live)
            p3 = p2
            p2 = p1
            p1 = p0
            u0 = u1
            u1 = u2
            u2 = u3
    left = sums + tl.program_id(1).to(tl.int64) * 5 * channels + e
    tl.store(left, tl.sum(sum0, 0), known)
    tl.store(left + channels, tl.sum(sum1, 0), known)
    tl.store(left + 2 * channels, tl.sum(sum2, 0), known)
    tl.store(left + 3 * channels, tl.sum(sum3, 0), known)
    tl.store(left + 4 * channels, tl.sum(total, 0), known)


def _planned(
    u: Tensor, weight: Tensor, bias: Tensor | None, bidirectional: bool, config: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Arguments and constants that both launches share, and the blocks of channels."""
    half = u.shape[3] // (1 + bidirectional)
    values: dict[str, Any] = {"u": u, "weight": weight, "bias": bias, "length": u.shape[1], "pixels": u.shape[2]}
    values |= {"half": half, "u_b": u.stride(0), "u_t": u.stride(1), "u_n": u.stride(2)}
    channels = min(config["CHANNELS"], power(half))
    constants = {
        "TAPS": weight.shape[1], "BIAS": bias is not None, "PIXELS": min(config["PIXELS"], power(u.shape[2])),
        "CHANNELS": channels,
    }  # fmt: skip
    return values, constants, (1 + bidirectional) * blocks(half, channels)


def plan(u: Tensor, weight: Tensor, bias: Tensor | None, bidirectional: bool, out: Tensor, capability: int) -> Launch:
    """u [B, L, N, E] with adjacent channels, the rest contiguous -> out [B, L, N, E], contiguous."""
    config = tuned(NAME, f"E{u.shape[3] // (1 + bidirectional)}", capability)
    values, constants, columns = _planned(u, weight, bias, bidirectional, config)
    values |= {"out": out, "out_b": out.stride(0), "out_t": out.stride(1), "out_n": out.stride(2)}
    constants["PIXELS"] = max(constants["PIXELS"], power(blocks(u.shape[2], MOST_PROGRAMS)))
    grid = (columns, blocks(u.shape[2], constants["PIXELS"]), u.shape[0])
    return Launch(causal_conv_kernel, grid, values, constants, config["num_warps"], 1)


def plan_backward(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None, bidirectional: bool, du: Tensor, sums: Tensor,
    capability: int,
) -> Launch:  # fmt: skip
    """As `plan`, and the gradient [B, L, N, E] -> du, contiguous, and sums [programs, 5, E]."""
    config = tuned(f"{NAME}_backward", f"E{u.shape[3] // (1 + bidirectional)}", capability)
    values, constants, columns = _planned(u, weight, bias, bidirectional, config)
    values |= {"grad": grad, "du": du, "sums": sums, "batches": u.shape[0]}
    for name, x in (("grad", grad), ("du", du)):
        values |= {f"{name}_{axis}": x.stride(i) for i, axis in enumerate("btn")}
    grid = (columns, sums.shape[0])
    return Launch(causal_conv_backward_kernel, grid, values, constants, config["num_warps"], 1)


def forward(u: Tensor, weight: Tensor, bias: Tensor | None, bidirectional: bool) -> Tensor:
    """See `causal_conv.causal_conv_silu`."""
    out = u.new_empty(u.shape)
    if out.numel():
        shift = None if bias is None else bias.contiguous()
        run(plan(adjacent(u), weight.contiguous(), shift, bidirectional, out, card(u.device)))
    return out


def backward(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None, bidirectional: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `causal_conv.causal_conv_silu_backward`."""
    du, dweight = u.new_empty(u.shape), weight.new_empty(weight.shape)
    dbias = u.new_empty(0, dtype=torch.float32) if bias is None else bias.new_empty(bias.shape)
    if not u.numel():
        return du, dweight.zero_(), dbias.zero_()
    sums = u.new_empty(partial_shape(u, bidirectional, card(u.device)), dtype=torch.float32)
    shift = None if bias is None else bias.contiguous()
    run(plan_backward(adjacent(grad), adjacent(u), weight.contiguous(), shift, bidirectional, du, sums, card(u.device)))
    total, taps = sums.sum(0), weight.shape[1]  # [5, E], by lag
    dweight.copy_(total[:taps].flip(0).t() if taps > 1 else total[:1].t())
    if bias is not None:
        dbias.copy_(total[4])
    return du, dweight, dbias


def builds(capability: int) -> list[Build]:
    """The forward launch as the network makes it, in bfloat16."""
    return list(asked.builds(NAME, capability))[:1]


def builds_backward(capability: int) -> list[Build]:
    """The backward launch at the first level, both directions, in bfloat16."""

    def empty(*shape: int, kind: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device="meta", dtype=kind)

    u = empty(1, 33, 6144, 2560)[..., :1280]
    du, sums = empty(1, 33, 6144, 1280), empty(512, 5, 1280, kind=torch.float32)
    return [build(plan_backward(du, u, empty(1280, 4), empty(1280), True, du, sums, capability))]
