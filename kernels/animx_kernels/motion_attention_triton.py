"""Triton body of `motion_attention`: a program owns BN tokens of one slot and goes over the channels twice."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.dispatch import Build, card, interpreted, tuned
from animx_kernels.launch import Launch, adjacent, blocks, build, power, run


@triton.jit
def motion_attention_kernel(  # type: ignore[no-untyped-def]
    x, a, a_bias, b, b_bias, out,
    tokens, channels, heads, motion,
    x_slot, x_token, a_slot, a_bias_slot, b_slot,
    eps, alpha,
    RESIDUAL: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, HP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """x [slots, tokens, channels] -> out of the same shape; the columns of a and rows of b are (head, motion token)."""
    slot = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inside = row < tokens
    column = tl.arange(0, HP * MP)
    known = (column // MP < heads) & (column % MP < motion)
    column = (column // MP) * motion + column % MP
    columns = heads * motion
    lane = tl.arange(0, BC)
    x_row = x + slot * x_slot + row * x_token
    a_at = a + slot * a_slot
    b_at = b + slot * b_slot

    # Sums are taken about the row's first value: an offset common to all channels does not cancel badly.
    shift = tl.load(x_row, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BN], tl.float32)
    squares = tl.zeros([BN], tl.float32)
    slope = tl.zeros([HP * MP], tl.float32)
    score = tl.zeros([BN, HP * MP], tl.float32)
    for start in range(0, channels, BC):
        c = start + lane
        tile = tl.load(x_row[:, None] + c[None, :], mask=inside[:, None] & (c < channels)[None, :], other=0.0)
        away = tl.where((c < channels)[None, :], tile.to(tl.float32) - shift[:, None], 0.0)
        total += tl.sum(away, 1)
        squares += tl.sum(away * away, 1)
        weight = tl.load(a_at + c[:, None] * columns + column[None, :],
                         mask=(c < channels)[:, None] & known[None, :], other=0.0)  # fmt: skip
        slope += tl.sum(weight.to(tl.float32), 0)
        if WIDE:
            score += tl.dot(away, weight.to(tl.float32), input_precision="ieee")
        else:  # as stored: the difference to the first value would be rounded to 16 bits, or overflow them
            score += tl.dot(tile.to(weight.dtype), weight)
    mean = total / channels
    scale = 1.0 / tl.sqrt(tl.maximum(squares / channels - mean * mean, 0.0) + eps)
    bias = tl.load(a_bias + slot * a_bias_slot + column, mask=known, other=0.0).to(tl.float32)
    if not WIDE:
        mean += shift
    score = (score - mean[:, None] * slope[None, :]) * scale[:, None] + bias[None, :]

    # Softmax within each head; the columns that fill a head up to a power of two take no part.
    token = tl.arange(0, HP * MP) % MP
    score = tl.where((token < motion)[None, :], score, float("-inf"))
    score = tl.reshape(score, [BN, HP, MP])
    share = tl.exp(score - tl.max(score, 2)[:, :, None])
    share = share / tl.sum(share, 2)[:, :, None]
    share = tl.where(known[None, :], tl.reshape(share, [BN, HP * MP]), 0.0)

    for start in range(0, channels, BC):
        c = start + lane
        mask = inside[:, None] & (c < channels)[None, :]
        weight = tl.load(b_at + column[:, None] * channels + c[None, :],
                         mask=known[:, None] & (c < channels)[None, :], other=0.0)  # fmt: skip
        if WIDE:
            y = tl.dot(share, weight.to(tl.float32), input_precision="ieee")
        else:
            y = tl.dot(share.to(weight.dtype), weight)
        y = alpha * (y + tl.load(b_bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :])
        if RESIDUAL:
            y += tl.load(x_row[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        to = out + (slot * tokens + row[:, None]) * channels + c[None, :]
        tl.store(to, y.to(out.dtype.element_ty), mask=mask)


def plan(
    x: Tensor, a: Tensor, a_bias: Tensor, b: Tensor, b_bias: Tensor, out: Tensor, heads: int, eps: float,
    alpha: float = 1.0, residual: bool = True, interpret: bool = False, capability: int | None = None,
) -> Launch:  # fmt: skip
    """x [I, N, C] with adjacent channels, the folded tensors contiguous -> out [I, N, C], contiguous."""
    slots, tokens, channels = x.shape
    motion = a.shape[-1] // heads
    config = tuned("motion_attention", f"C{channels}", capability or card(x.device))
    least = 16  # rows, columns and channels of tl.dot
    constants = {
        "RESIDUAL": residual,
        "WIDE": torch.float32 in (x.dtype, a.dtype) or (interpret and torch.bfloat16 in (x.dtype, a.dtype)),
        "BN": config["BN"],
        "BC": min(config["BC"], power(channels, least)),
        "HP": max(power(heads), least // power(motion)),
        "MP": power(motion),
    }
    values: dict[str, Any] = {"x": x, "a": a, "a_bias": a_bias, "b": b, "b_bias": b_bias, "out": out}
    values |= {"tokens": tokens, "channels": channels, "heads": heads, "motion": motion}
    values |= {"x_slot": x.stride(0), "x_token": x.stride(1)}
    values |= {
        f"{name}_slot": 0 if len(t) == 1 else t.stride(0) for name, t in (("a", a), ("a_bias", a_bias), ("b", b))
    }
    values |= {"eps": eps, "alpha": alpha}
    grid = (blocks(tokens, config["BN"]), slots)
    return Launch(motion_attention_kernel, grid, values, constants, config["num_warps"], config["num_stages"])


def forward(
    x: Tensor, a: Tensor, a_bias: Tensor, b: Tensor, b_bias: Tensor, heads: int, eps: float, alpha: float,
    residual: bool,
) -> Tensor:  # fmt: skip
    """See `motion_attention.motion_attention`; x may be strided in slots and tokens."""
    out = x.new_empty(x.shape)
    if out.numel():
        folded = (a.contiguous(), a_bias.contiguous(), b.contiguous(), b_bias.contiguous())
        run(plan(adjacent(x), *folded, out, heads, eps, alpha, residual, interpreted()))
    return out


def builds(capability: int) -> list[Build]:
    """The launches of the levels with motion attention, in bfloat16."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    found = []
    for tokens, channels in ((6144, 320), (384, 1280)):
        columns = channels // 16
        x, a, b = empty(33, tokens, channels), empty(33, channels, columns), empty(33, columns, channels)
        found.append(
            build(plan(x, a, empty(33, columns), b, empty(channels), x, channels // 64, 1e-5, capability=capability))
        )
    return found
