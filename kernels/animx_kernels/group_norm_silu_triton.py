"""Triton bodies of `group_norm_silu`: moments of each channel in parts, then the groups' statistics and the result.

First launch: the tokens of an instance are split into parts; each program keeps a running mean and sum of squared
deviations per lane and channel (Welford) and writes them per part.  Second launch: each program puts the parts and
channels of its groups together (Chan's formula, means before squares), then normalises its part of the tokens.  No
atomic additions: the same bytes on every run.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.dispatch import Build, card, tuned
from animx_kernels.group_norm_silu import CHANNELS_PER_PROGRAM, parts
from animx_kernels.launch import Launch, adjacent, blocks, build, run


@triton.jit
def load_channels(x, other, token, channel, inside, first, x_token, other_token, JOINED: tl.constexpr):
    """Tile [tokens, channels] of cat([x, other], -1) in float32, zeros outside; x has the first `first` channels."""
    tile = tl.load(x + token * x_token + channel, inside & (channel < first), 0).to(tl.float32)
    if JOINED:
        second = tl.load(other + token * other_token + (channel - first), inside & (channel >= first), 0)
        tile += second.to(tl.float32)
    return tile


@triton.jit
def moments_kernel(
    x, other, partial, tokens, first, channels, part_tokens, x_instance, x_token, other_instance, other_token,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, JOINED: tl.constexpr,
):  # fmt: skip
    """partial [I, parts, 2, channels]: mean, and sum of squared deviations from it, over the tokens of a part."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    part, instance = tl.program_id(1), tl.program_id(2).to(tl.int64)
    x += instance * x_instance
    if JOINED:
        other += instance * other_instance
    start = part * part_tokens
    end = tl.minimum(start + part_tokens, tokens)
    lane = tl.arange(0, TOKENS)[:, None]
    mean = tl.zeros([TOKENS, CHANNELS], tl.float32)
    squares = tl.zeros([TOKENS, CHANNELS], tl.float32)
    seen = 0.0
    for at in range(start, end, TOKENS):
        token = (at + lane).to(tl.int64)
        inside = (token < end) & (channel < channels)
        tile = load_channels(x, other, token, channel, inside, first, x_token, other_token, JOINED)
        seen += 1.0
        away = tl.where(inside, tile - mean, 0.0)
        mean += away / seen
        squares += away * tl.where(inside, tile - mean, 0.0)
    # Lanes beyond the last token of the last tile saw one tile less.
    full = (end - start) // TOKENS
    count = (full + tl.where(lane < (end - start) - full * TOKENS, 1, 0)).to(tl.float32)  # [TOKENS, 1]
    total = (end - start).to(tl.float32)
    middle = tl.sum(mean * count, axis=0) / total
    apart = mean - middle[None, :]
    spread = tl.sum(squares + count * apart * apart, axis=0)
    to = partial + (instance * tl.num_programs(1) + part) * 2 * channels
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(to + column, middle, column < channels)
    tl.store(to + channels + column, spread, column < channels)


@triton.jit
def channel_moments(
    partial, shift, column, inside, tokens, channels, part_tokens, parts, PARTS: tl.constexpr, SHIFTED: tl.constexpr
):
    """Mean (with the shift) and sum of squared deviations of some channels of one instance over all its parts."""
    lane = tl.arange(0, PARTS)[:, None]
    mean = tl.zeros_like(column).to(tl.float32)
    for at in range(0, parts, PARTS):
        count = tl.maximum(tl.minimum(tokens - (at + lane) * part_tokens, part_tokens), 0).to(tl.float32)
        here = (at + lane < parts) & inside[None, :]
        means = tl.load(partial + (at + lane) * 2 * channels + column[None, :], here, 0)
        mean += tl.sum(tl.where(here, means * count, 0.0), axis=0)
    mean /= tl.cast(tokens, tl.float32)
    squares = tl.zeros_like(mean)
    for at in range(0, parts, PARTS):
        count = tl.maximum(tl.minimum(tokens - (at + lane) * part_tokens, part_tokens), 0).to(tl.float32)
        here = (at + lane < parts) & inside[None, :]
        means = tl.load(partial + (at + lane) * 2 * channels + column[None, :], here, 0)
        spread = tl.load(partial + (at + lane) * 2 * channels + channels + column[None, :], here, 0)
        away = means - mean[None, :]
        squares += tl.sum(tl.where(here, spread + count * away * away, 0.0), axis=0)
    if SHIFTED:
        mean += tl.load(shift + column, inside, 0).to(tl.float32)
    return mean, squares


@triton.jit
def group_statistics(
    partial, shift, mine, first, tokens, channels, group, part_tokens, parts, eps,
    CHANNELS: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """Mean (to be taken from x before the shift) and 1 / sqrt(variance + eps) of the groups of the channels `mine`.

    `mine`: CHANNELS channels from `first` on, some of them perhaps beyond the last.
    """
    # The channels of all groups that have a channel here: whole groups, some of them begun in a neighbour's block.
    begin = first // group * group
    stop = tl.minimum((first + CHANNELS + group - 1) // group * group, channels)
    mean = tl.zeros([CHANNELS], tl.float32)
    for at in range(begin, stop, SPAN):
        column = at + tl.arange(0, SPAN)
        one, _ = channel_moments(
            partial, shift, column, column < stop, tokens, channels, part_tokens, parts, PARTS, SHIFTED
        )
        same = (mine[:, None] // group == column[None, :] // group) & (column < stop)[None, :]
        mean += tl.sum(tl.where(same, one[None, :], 0.0), axis=1)
    mean /= tl.cast(group, tl.float32)
    spread = tl.zeros([CHANNELS], tl.float32)
    for at in range(begin, stop, SPAN):
        column = at + tl.arange(0, SPAN)
        one, squares = channel_moments(
            partial, shift, column, column < stop, tokens, channels, part_tokens, parts, PARTS, SHIFTED
        )
        same = (mine[:, None] // group == column[None, :] // group) & (column < stop)[None, :]
        away = one[None, :] - mean[:, None]
        spread += tl.sum(tl.where(same, squares[None, :] + tl.cast(tokens, tl.float32) * away * away, 0.0), axis=1)
    variance = spread / (tl.cast(group, tl.float32) * tl.cast(tokens, tl.float32))
    if SHIFTED:
        mean -= tl.load(shift + mine, mine < channels, 0).to(tl.float32)
    return mean, 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def normalise_kernel(
    x, other, shift, weight, bias, partial, y, tokens, first, channels, group, part_tokens, eps,
    x_instance, x_token, other_instance, other_token, shift_instance,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr,
    JOINED: tl.constexpr, SHIFTED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y [I, tokens, channels] from the moments of the first launch; `group`: channels of a group."""
    part, parts, instance = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
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
    factor = tl.load(weight + mine, inside, 0).to(tl.float32) * inverse
    addend = tl.load(bias + mine, inside, 0).to(tl.float32)
    y += instance * tokens * channels
    start = part * part_tokens
    end = tl.minimum(start + part_tokens, tokens)
    for at in range(start, end, TOKENS):
        token = (at + tl.arange(0, TOKENS)[:, None]).to(tl.int64)
        here = (token < end) & inside[None, :]
        tile = load_channels(x, other, token, mine[None, :], here, first, x_token, other_token, JOINED)
        # About the mean first: a large mean would take the digits of x * factor + addend.
        tile = (tile - mean[None, :]) * factor[None, :] + addend[None, :]
        if SILU:
            tile = tile * tl.sigmoid(tile)
        tl.store(y + token * channels + mine[None, :], tile.to(y.dtype.element_ty), here)


def shared_values(x: Tensor, other: Tensor | None, partial: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes, and strides of the inputs, as all launches take them; partial [I, parts, 2, C + C2]."""
    channels, tokens = partial.shape[3], x.shape[1]
    size = {"tokens": tokens, "first": x.shape[2], "channels": channels}
    size |= {"part_tokens": blocks(tokens, partial.shape[1])}
    strides = {
        "x_instance": x.stride(0),
        "x_token": x.stride(1),
        "other_instance": None if other is None else other.stride(0),
        "other_token": None if other is None else other.stride(1),
    }
    return size, strides


def plan_moments(x: Tensor, other: Tensor | None, partial: Tensor, config: dict[str, Any]) -> Launch:
    """The first launch: x [I, N, C], other [I, N, C2] -> partial [I, parts, 2, C + C2]."""
    size, strides = shared_values(x, other, partial)
    constants = {"TOKENS": config["tokens"], "CHANNELS": CHANNELS_PER_PROGRAM, "JOINED": other is not None}
    grid = (blocks(partial.shape[3], CHANNELS_PER_PROGRAM), partial.shape[1], x.shape[0])
    moments: dict[str, Any] = {"x": x, "other": other, "partial": partial, **size, **strides}
    return Launch(moments_kernel, grid, moments, constants, config["num_warps"], 1)


def plan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    other: Tensor | None,
    partial: Tensor,
    y: Tensor,
    capability: int,
) -> list[Launch]:
    """The two launches: x [I, N, C], other [I, N, C2] -> partial [I, parts, 2, C + C2] -> y [I, N, C + C2]."""
    instances, _, channels = y.shape
    split = partial.shape[1]
    config = tuned("group_norm_silu", str(channels), capability)
    size, strides = shared_values(x, other, partial)
    constants = {"TOKENS": config["tokens"], "CHANNELS": CHANNELS_PER_PROGRAM, "JOINED": other is not None}
    grid = (blocks(channels, CHANNELS_PER_PROGRAM), split, instances)
    result: dict[str, Any] = {
        "x": x,
        "other": other,
        "shift": shift,
        "weight": weight,
        "bias": bias,
        "partial": partial,
        "y": y,
    }
    result |= {**size, "group": channels // groups, "eps": eps, **strides}
    result["shift_instance"] = None if shift is None else shift.stride(0)
    more = {"SPAN": 32, "PARTS": 1 if split == 1 else 16, "SHIFTED": shift is not None, "SILU": silu}
    return [
        plan_moments(x, other, partial, config),
        Launch(normalise_kernel, grid, result, {**constants, **more}, config["num_warps"], 1),
    ]


def group_norm_silu_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    other: Tensor | None,
) -> Tensor:
    """As `group_norm_silu`."""
    instances, tokens, _ = x.shape
    channels = weight.shape[0]
    y = x.new_empty((instances, tokens, channels))
    if not y.numel():
        return y
    partial = x.new_empty((instances, parts(instances, tokens, channels), 2, channels), dtype=torch.float32)
    shift, other = (None if one is None else adjacent(one) for one in (shift, other))
    for launch in plan(
        adjacent(x), weight.contiguous(), bias.contiguous(), groups, eps, silu, shift, other, partial, y, card(x.device)
    ):
        run(launch)
    return y


def builds(capability: int) -> list[Build]:
    """Both launches for a skip connection with a shift, all that the bodies can do, in bfloat16."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    instances, tokens, first, second = 33, 6144, 640, 320
    channels = first + second
    partial = torch.empty((instances, parts(instances, tokens, channels), 2, channels), device="meta")
    x, other, y = (empty(instances, tokens, width) for width in (first, second, channels))
    shift, weight = empty(instances, channels), empty(channels)
    planned = plan(x, weight, weight, 32, 1e-5, True, shift, other, partial, y, capability)
    return [build(launch) for launch in planned]
