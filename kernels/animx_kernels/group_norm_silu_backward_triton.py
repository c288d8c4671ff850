"""Triton bodies of the gradient of `group_norm_silu`: moments as forwards, sums per channel, the result, sums of parts.

Four launches, the fourth a few thousand numbers.  Nothing was kept forwards, so the moments are taken anew: x is read
three times, its gradient twice.  With s the slope of the result before SiLU, u the normalised input, w the weight and
means over a group: dx = (s w - mean(s w) - u mean(s w u)) / sqrt(variance + eps), dweight = sum(s u), dbias = sum(s).
Sums are float32, of a part of the tokens each; no atomic additions: the same bytes on every run.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.add_layer_norm_triton import sum_parts_kernel
from animx_kernels.dispatch import Build, card, tuned
from animx_kernels.group_norm_silu import CHANNELS_PER_PROGRAM, parts
from animx_kernels.group_norm_silu_triton import group_statistics, load_channels, plan_moments, shared_values
from animx_kernels.launch import Launch, adjacent, blocks, build, planned, run


@triton.jit
def slopes(gradient, unit, weight, bias, SILU: tl.constexpr):
    """Gradient before SiLU, tiles [tokens, channels], weight and bias [channels]."""
    if SILU:
        z = unit * weight[None, :] + bias[None, :]
        share = tl.sigmoid(z)
        gradient = gradient * share * (1.0 + z * (1.0 - share))
    return gradient


@triton.jit
def slope_sums_kernel(
    gradient, x, other, shift, weight, bias, partial, statistics, sums,
    tokens, first, channels, group, part_tokens, eps,
    gradient_instance, gradient_token, x_instance, x_token, other_instance, other_token, shift_instance,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr,
    JOINED: tl.constexpr, SHIFTED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """sums [I, parts, 2, channels]: of slope times normalised input, and of slope; statistics [I, 2, channels]."""
    part, parts, instance = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    gradient += instance * gradient_instance
    x += instance * x_instance
    if JOINED:
        other += instance * other_instance
    if SHIFTED:
        shift += instance * shift_instance
    partial += instance * parts * 2 * channels
    mine = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = mine < channels
    mean, inverse = group_statistics(
        partial, shift, mine, tl.program_id(0) * CHANNELS, tokens, channels, group, part_tokens, parts, eps,
        CHANNELS, SPAN, PARTS, SHIFTED,
    )  # fmt: skip
    # Each part has them; one writes them for the next launch.
    statistics += instance * 2 * channels
    tl.store(statistics + mine, mean, inside & (part == 0))
    tl.store(statistics + channels + mine, inverse, inside & (part == 0))
    factor = tl.load(weight + mine, inside, 0).to(tl.float32)
    addend = tl.load(bias + mine, inside, 0).to(tl.float32)
    along = tl.zeros([TOKENS, CHANNELS], tl.float32)
    total = tl.zeros([TOKENS, CHANNELS], tl.float32)
    start = part * part_tokens
    end = tl.minimum(start + part_tokens, tokens)
    for at in range(start, end, TOKENS):
        token = (at + tl.arange(0, TOKENS)[:, None]).to(tl.int64)
        here = (token < end) & inside[None, :]
        tile = load_channels(x, other, token, mine[None, :], here, first, x_token, other_token, JOINED)
        unit = (tile - mean[None, :]) * inverse[None, :]
        g = tl.load(gradient + token * gradient_token + mine[None, :], here, 0).to(tl.float32)
        g = tl.where(here, slopes(g, unit, factor, addend, SILU), 0.0)
        along += tl.where(here, g * unit, 0.0)
        total += g
    to = sums + (instance * parts + part) * 2 * channels + mine
    tl.store(to, tl.sum(along, axis=0), inside)
    tl.store(to + channels, tl.sum(total, axis=0), inside)


@triton.jit
def group_slope_kernel(
    gradient, x, other, weight, bias, statistics, sums, y, tokens, first, channels, group, part_tokens,
    gradient_instance, gradient_token, x_instance, x_token, other_instance, other_token,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr,
    JOINED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y [I, tokens, channels]: the gradient of cat([x, other], -1)."""
    part, parts, instance = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    gradient += instance * gradient_instance
    x += instance * x_instance
    if JOINED:
        other += instance * other_instance
    statistics += instance * 2 * channels
    sums += instance * parts * 2 * channels
    mine = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = mine < channels
    begin = tl.program_id(0) * CHANNELS // group * group
    stop = tl.minimum(((tl.program_id(0) + 1) * CHANNELS + group - 1) // group * group, channels)
    lane = tl.arange(0, PARTS)[:, None]
    of_unit = tl.zeros([CHANNELS], tl.float32)
    of_slope = tl.zeros([CHANNELS], tl.float32)
    for at in range(begin, stop, SPAN):
        column = at + tl.arange(0, SPAN)
        own = column < stop
        along = tl.zeros([SPAN], tl.float32)
        total = tl.zeros([SPAN], tl.float32)
        for p in range(0, parts, PARTS):
            there = (p + lane < parts) & own[None, :]
            place = sums + (p + lane) * 2 * channels + column[None, :]
            along += tl.sum(tl.load(place, there, 0), axis=0)
            total += tl.sum(tl.load(place + channels, there, 0), axis=0)
        scale = tl.load(weight + column, own, 0).to(tl.float32)
        same = (mine[:, None] // group == column[None, :] // group) & own[None, :]
        of_unit += tl.sum(tl.where(same, (along * scale)[None, :], 0.0), axis=1)
        of_slope += tl.sum(tl.where(same, (total * scale)[None, :], 0.0), axis=1)
    number = tl.cast(group, tl.float32) * tl.cast(tokens, tl.float32)
    of_unit /= number
    of_slope /= number
    mean = tl.load(statistics + mine, inside, 0)
    inverse = tl.load(statistics + channels + mine, inside, 0)
    factor = tl.load(weight + mine, inside, 0).to(tl.float32)
    addend = tl.load(bias + mine, inside, 0).to(tl.float32)
    y += instance * tokens * channels
    start = part * part_tokens
    end = tl.minimum(start + part_tokens, tokens)
    for at in range(start, end, TOKENS):
        token = (at + tl.arange(0, TOKENS)[:, None]).to(tl.int64)
        here = (token < end) & inside[None, :]
        tile = load_channels(x, other, token, mine[None, :], here, first, x_token, other_token, JOINED)
        unit = (tile - mean[None, :]) * inverse[None, :]
        g = tl.load(gradient + token * gradient_token + mine[None, :], here, 0).to(tl.float32)
        g = slopes(g, unit, factor, addend, SILU) * factor[None, :]
        found = inverse[None, :] * (g - of_slope[None, :] - unit * of_unit[None, :])
        tl.store(y + token * channels + mine[None, :], found.to(y.dtype.element_ty), here)


def plan(
    gradient: Tensor,
    given: tuple[Tensor, Tensor | None, Tensor | None],
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    made: tuple[Tensor, Tensor, Tensor],
    capability: int,
) -> list[Launch]:
    """gradient [I, N, C + C2], given: x [I, N, C], other [I, N, C2], shift [I, C + C2] -> made: the gradients of the
    joined input [I, N, C + C2], of weight and of bias.  Channels adjacent; weight, bias and made contiguous."""
    x, other, shift = given
    instances, tokens, channels = gradient.shape
    split = parts(instances, tokens, channels)

    def buffer(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    partial, sums = buffer(instances, split, 2, channels), buffer(instances, split, 2, channels)
    statistics = buffer(instances, 2, channels)
    config = tuned("group_norm_silu_backward", str(channels), capability)
    size, strides = shared_values(x, other, partial)
    strides |= {"gradient_instance": gradient.stride(0), "gradient_token": gradient.stride(1)}
    both: dict[str, Any] = {"gradient": gradient, "x": x, "other": other, "weight": weight, "bias": bias}
    both |= {"statistics": statistics, "sums": sums, **size, "group": channels // groups, **strides}
    constants = {
        "TOKENS": config["tokens"], "CHANNELS": CHANNELS_PER_PROGRAM, "SPAN": 32, "PARTS": 1 if split == 1 else 16,
        "JOINED": other is not None, "SILU": silu,
    }  # fmt: skip
    inward = {**both, "shift": shift, "partial": partial, "eps": eps}
    inward["shift_instance"] = None if shift is None else shift.stride(0)
    grid = (blocks(channels, CHANNELS_PER_PROGRAM), split, instances)
    last: dict[str, Any] = {"partial": sums, "for_weight": made[1], "for_bias": made[2]}
    last |= {"parts": instances * split, "width": channels}
    warps = config["num_warps"]
    return [
        plan_moments(x, other, partial, config),
        Launch(slope_sums_kernel, grid, inward, {**constants, "SHIFTED": shift is not None}, warps, 1),
        Launch(group_slope_kernel, grid, {**both, "y": made[0]}, constants, warps, 1),
        Launch(sum_parts_kernel, (blocks(channels, 64),), last, {"PARTS": 32, "COLUMNS": 64}, 4, 1),
    ]


def group_norm_silu_gradient(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    other: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `group_norm_silu_backward_reference`."""
    made = x.new_empty(gradient.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    if not gradient.numel():
        return made[0], made[1].zero_(), made[2].zero_()
    shift, other = (None if one is None else adjacent(one) for one in (shift, other))
    given = adjacent(x), other, shift
    for launch in plan(
        adjacent(gradient), given, weight.contiguous(), bias.contiguous(), groups, eps, silu, made, card(x.device)
    ):
        run(launch)
    return made


def builds(capability: int) -> list[Build]:
    """All launches for a skip connection with a shift, all that the bodies can do, in bfloat16."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    instances, tokens, first, second = 33, 6144, 640, 320
    channels = first + second
    x, other, gradient = (empty(instances, tokens, width) for width in (first, second, channels))
    weight, shift = empty(channels), empty(instances, channels)
    arguments = (gradient, x, weight, weight, 32, 1e-5, True, shift, other)
    return [build(launch) for launch in planned("group_norm_silu_backward", arguments, capability)]
