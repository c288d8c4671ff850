"""Triton bodies of `temporal_conv`, `channel_sums` and `norm_affine`.

A program of the convolution owns a block of pixels and a block of output channels and walks through the frames of its
segment.  Frame t is read once, normalised and activated once, and goes into three accumulators: the output of t-1
(third tap, then complete and written), of t and of t+1.  So an activation is computed once per block of output channels
and not three times, and no padded or gathered copy exists.  Addresses: a 64-bit base for each tile, 32-bit steps in it
(64-bit tiles of pointers would take the registers of an accumulator); tensors whose pixels lie so far apart that a tile
spans 2^31 elements are copied first.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels import asked
from animx_kernels.dispatch import Build, card, interpreted, tuned
from animx_kernels.launch import Launch, adjacent, blocks, build, power, run
from animx_kernels.temporal_conv import PART, TOKENS_PER_PART, channel_sums_shape, sums_shape

WIDEST_TILE = 256
"""More pixels than any tile has."""


@triton.jit
def write_frame(
    y, residual, bias, tile, frame, wanted, lane, y_frame, y_pixel, residual_frame, residual_pixel, inside,
    first, second, COLUMNS: tl.constexpr, ADDED: tl.constexpr, STATS: tl.constexpr,
):  # fmt: skip
    """Bias, residual and rounding; stores frame `frame` where `wanted` and adds what is stored to the sums."""
    here = inside & wanted
    tile += bias[None, :]
    column = tl.arange(0, COLUMNS)[None, :]
    if ADDED:
        at = residual + tl.cast(frame, tl.int64) * residual_frame + (lane[:, None] * residual_pixel + column)
        tile += tl.load(at, here, 0).to(tl.float32)
    stored = tile.to(y.dtype.element_ty)
    tl.store(y + tl.cast(frame, tl.int64) * y_frame + (lane[:, None] * y_pixel + column), stored, here)
    if STATS:
        again = tl.where(here, stored.to(tl.float32), 0.0)
        first += tl.sum(again, axis=0)
        second += tl.sum(again * again, axis=0)
    return first, second


@triton.jit
def temporal_conv_kernel(
    x, weight, bias, scale, offset, residual, y, sums, frames, tokens, inner, width, segment_frames, parts,
    x_clip, x_frame, x_pixel, weight_out, weight_in, weight_tap, affine_clip,
    residual_clip, residual_frame, residual_pixel,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, SCALED: tl.constexpr, OFFSET: tl.constexpr, SILU: tl.constexpr, ADDED: tl.constexpr,
    BIASED: tl.constexpr, STATS: tl.constexpr, SLOTS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """x [B, T, N, inner] -> y [B, T, N, width] and sums [B, parts, width, 2]."""
    program, segment, clip = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    # GROUP pixel blocks go through the output channels together: their frames stay in the second-level cache.
    pixel_blocks, column_blocks = tl.cdiv(tokens, PIXELS), tl.cdiv(width, COLUMNS)
    first_block = program // (GROUP * column_blocks) * GROUP
    within = program % (GROUP * column_blocks)
    height = tl.minimum(pixel_blocks - first_block, GROUP)
    block = first_block + within % height
    lane = tl.arange(0, PIXELS)
    pixels_left = tokens - block * PIXELS
    first_pixel = (block * PIXELS).to(tl.int64)
    first_column = (within // height * COLUMNS).to(tl.int64)
    columns_left = width - within // height * COLUMNS
    column = tl.arange(0, COLUMNS)
    inside = (lane < pixels_left)[:, None] & (column < columns_left)[None, :]
    k = tl.arange(0, INNER)
    # What lies outside is computed from the block's first pixel and column and not stored.
    x += clip * x_clip + first_pixel * x_pixel
    from_x = tl.where(lane < pixels_left, lane, 0)[:, None] * x_pixel + k[None, :]
    weight += first_column * weight_out
    from_weight = tl.where(column < columns_left, column, 0)[None, :] * weight_out + k[:, None] * weight_in
    y += clip * frames * tokens * width + first_pixel * width + first_column
    if ADDED:
        residual += clip * residual_clip + first_pixel * residual_pixel + first_column
    if SCALED:
        scale += clip * affine_clip
    if OFFSET:
        offset += clip * affine_clip
    addend = tl.zeros([COLUMNS], tl.float32)
    if BIASED:
        addend = tl.load(bias + first_column + column, column < columns_left, 0).to(tl.float32)
    y_frame = tl.cast(tokens, tl.int64) * width

    start = segment * segment_frames
    end = tl.minimum(start + segment_frames, frames)  # outputs of this program: [start, end)
    last = tl.minimum(end, frames - 1)  # inputs: [start - 1, end] within the clip
    before = tl.zeros([PIXELS, COLUMNS], tl.float32)  # output of the frame before the one that is read
    now = tl.zeros([PIXELS, COLUMNS], tl.float32)
    first = tl.zeros([COLUMNS], tl.float32)
    second = tl.zeros([COLUMNS], tl.float32)
    # disable_licm: addresses and masks of the epilogue, hoisted out of this loop, would spill registers.
    for frame in tl.range(tl.maximum(start - 1, 0), last + 1, disable_licm=True):
        after = tl.zeros([PIXELS, COLUMNS], tl.float32)
        x_here = x + tl.cast(frame, tl.int64) * x_frame
        for c in range(0, inner, INNER):
            channel = c + k
            w = weight + c * weight_in
            if EVEN:
                a = tl.load(x_here + c + from_x)
                w0 = tl.load(w + from_weight)
                w1 = tl.load(w + weight_tap + from_weight)
                w2 = tl.load(w + 2 * weight_tap + from_weight)
            else:
                a = tl.load(x_here + c + from_x, (channel < inner)[None, :], 0)
                here = (channel < inner)[:, None]
                w0 = tl.load(w + from_weight, here, 0)
                w1 = tl.load(w + weight_tap + from_weight, here, 0)
                w2 = tl.load(w + 2 * weight_tap + from_weight, here, 0)
            if SCALED or OFFSET or SILU:
                active = a.to(tl.float32)
                if SCALED:
                    active *= tl.load(scale + channel, channel < inner, 0)[None, :]
                if OFFSET:
                    active += tl.load(offset + channel, channel < inner, 0)[None, :]
                if SILU:
                    active = active * tl.sigmoid(active)
                a = active.to(x.dtype.element_ty)
            if WIDEN:
                a, w0, w1, w2 = a.to(tl.float32), w0.to(tl.float32), w1.to(tl.float32), w2.to(tl.float32)
            before = tl.dot(a, w2, before, input_precision="ieee")
            now = tl.dot(a, w1, now, input_precision="ieee")
            after = tl.dot(a, w0, after, input_precision="ieee")
        first, second = write_frame(
            y, residual, addend, before, frame - 1, frame - 1 >= start, lane, y_frame, width,
            residual_frame, residual_pixel, inside, first, second, COLUMNS, ADDED, STATS,
        )  # fmt: skip
        before = now
        now = after
    # The clip's last frame has no frame after it that would complete it.
    first, second = write_frame(
        y, residual, addend, before, last, last < end, lane, y_frame, width,
        residual_frame, residual_pixel, inside, first, second, COLUMNS, ADDED, STATS,
    )  # fmt: skip
    if STATS:
        # This pixel block owns SLOTS parts, each segment every (number of segments)th of them: one holds its sums.
        slot = tl.arange(0, SLOTS)[:, None]
        mine = (slot % tl.num_programs(1) == segment) & (block * SLOTS + slot < parts)
        mine &= (column < columns_left)[None, :]
        to = sums + ((clip * parts + block * SLOTS + slot) * width + first_column + column[None, :]) * 2
        tl.store(to, tl.where(slot == segment, first[None, :], 0.0), mine)
        tl.store(to + 1, tl.where(slot == segment, second[None, :], 0.0), mine)


@triton.jit
def channel_sums_kernel(
    x, sums, frames, tokens, channels, x_clip, x_frame, x_pixel,
    PART_TOKENS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """x [B, T, N, channels] -> sums [B, parts, channels, 2]."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part, clip = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = tl.zeros([TOKENS, CHANNELS], tl.float32)
    second = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for at in range(0, PART_TOKENS, TOKENS):
        token = part.to(tl.int64) * PART_TOKENS + at + tl.arange(0, TOKENS)[:, None]
        inside = (token < tl.cast(frames, tl.int64) * tokens) & (channel < channels)[None, :]
        from_x = x + clip * x_clip + token // tokens * x_frame + token % tokens * x_pixel + channel[None, :]
        tile = tl.load(from_x, inside, 0).to(tl.float32)
        first += tile
        second += tile * tile
    to = sums + ((clip * tl.num_programs(1) + part) * channels + channel) * 2
    tl.store(to, tl.sum(first, axis=0), channel < channels)
    tl.store(to + 1, tl.sum(second, axis=0), channel < channels)


@triton.jit
def norm_affine_kernel(
    sums, weight, bias, scale, offset, parts, channels, group, number, eps,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """sums [B, parts, channels, 2] -> scale, offset [B, channels]; `number`: elements of a group."""
    clip = tl.program_id(1).to(tl.int64)
    own = tl.arange(0, CHANNELS)
    channel = tl.program_id(0) * group + own
    lane = tl.arange(0, PARTS)[:, None]
    first = tl.zeros([PARTS, CHANNELS], tl.float64)
    second = tl.zeros([PARTS, CHANNELS], tl.float64)
    for at in range(0, parts, PARTS):
        inside = (at + lane < parts) & (own < group)[None, :]
        place = sums + ((clip * parts + at + lane) * channels + channel[None, :]) * 2
        first += tl.load(place, inside, 0).to(tl.float64)
        second += tl.load(place + 1, inside, 0).to(tl.float64)
    mean = tl.sum(tl.sum(first, axis=0), axis=0) / tl.cast(number, tl.float64)
    square = tl.sum(tl.sum(second, axis=0), axis=0) / tl.cast(number, tl.float64)
    # The difference in float64, where nothing is lost; what remains fits float32.
    variance = tl.maximum(square - mean * mean, 0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(variance + eps)
    factor = tl.load(weight + channel, own < group, 0).to(tl.float32) * inverse
    addend = tl.load(bias + channel, own < group, 0).to(tl.float32)
    tl.store(scale + clip * channels + channel, factor, own < group)
    tl.store(offset + clip * channels + channel, addend - mean.to(tl.float32) * factor, own < group)


def plan_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    silu: bool,
    residual: Tensor | None,
    y: Tensor,
    sums: Tensor | None,
    capability: int,
    widen: bool,
) -> Launch:
    """As `temporal_conv`, into y and (unless None) sums."""
    batch, frames, tokens, inner = x.shape
    width = y.shape[3]
    config = tuned("temporal_conv", f"C{width} N{tokens}", capability)
    divisor = 2 if x.dtype == torch.float32 else 1
    tile = {
        "PIXELS": min(config["pixels"], power(tokens, PART)),
        "COLUMNS": max(16, min(config["columns"] // divisor, power(width))),
        "INNER": max(16, min(config["inner"] // divisor, power(inner))),
    }
    pixel_blocks, parts = blocks(tokens, tile["PIXELS"]), blocks(tokens, PART)
    slots = tile["PIXELS"] // PART
    segments = min(config["segments"], frames)
    if sums is not None:  # each segment of the last pixel block needs a part of its own
        segments = min(segments, parts - (pixel_blocks - 1) * slots)
    segment_frames = blocks(frames, segments)
    segments = blocks(frames, segment_frames)
    # Sums without a residual: the bias stands in its place, the same at every frame and pixel.  Where nothing is loaded
    # between products and sums, the compiler keeps both in the layout of the products and spills.
    stands_in = sums is not None and residual is None
    if stands_in:
        residual = bias.expand(batch, frames, tokens, width)
    values: dict[str, Any] = {
        "x": x, "weight": weight, "bias": None if stands_in else bias, "scale": scale, "offset": offset,
        "residual": residual, "y": y,
        "sums": sums, "frames": frames, "tokens": tokens, "inner": inner, "width": width,
        "segment_frames": segment_frames, "parts": parts,
        "x_clip": x.stride(0), "x_frame": x.stride(1), "x_pixel": x.stride(2),
        "weight_out": weight.stride(0), "weight_in": weight.stride(1), "weight_tap": weight.stride(2),
        "affine_clip": inner,
    }  # fmt: skip
    for number, name in enumerate(("residual_clip", "residual_frame", "residual_pixel")):
        values[name] = None if residual is None else residual.stride(number)
    constants = {
        **tile, "GROUP": config["group"], "EVEN": inner % tile["INNER"] == 0, "SCALED": scale is not None,
        "OFFSET": offset is not None, "SILU": silu, "ADDED": residual is not None, "BIASED": not stands_in,
        "STATS": sums is not None, "SLOTS": slots, "WIDEN": widen,
    }  # fmt: skip
    grid = (pixel_blocks * blocks(width, tile["COLUMNS"]), segments, batch)
    stages = min(config["num_stages"], 2) if x.dtype == torch.float32 else config["num_stages"]  # a third one spills
    return Launch(temporal_conv_kernel, grid, values, constants, config["num_warps"], stages)


def plan_sums(x: Tensor, sums: Tensor, capability: int) -> Launch:
    """x [B, T, N, C] -> sums [B, parts, C, 2]."""
    batch, frames, tokens, channels = x.shape
    config = tuned("channel_sums", str(channels), capability)
    values: dict[str, Any] = {"x": x, "sums": sums, "frames": frames, "tokens": tokens, "channels": channels}
    values |= {"x_clip": x.stride(0), "x_frame": x.stride(1), "x_pixel": x.stride(2)}
    constants = {"PART_TOKENS": TOKENS_PER_PART, "TOKENS": config["tokens"], "CHANNELS": 64}
    grid = (blocks(channels, 64), sums.shape[1], batch)
    return Launch(channel_sums_kernel, grid, values, constants, config["num_warps"], 1)


def plan_affine(
    sums: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, offset: Tensor, groups: int, count: int, eps: float
) -> Launch:
    """sums [B, parts, C, 2] -> scale, offset [B, C]."""
    batch, parts, channels, _ = sums.shape
    group = channels // groups
    values: dict[str, Any] = {
        "sums": sums,
        "weight": weight,
        "bias": bias,
        "scale": scale,
        "offset": offset,
        "parts": parts,
    }
    values |= {"channels": channels, "group": group, "number": count * group, "eps": eps}
    constants = {"PARTS": min(32, power(parts)), "CHANNELS": power(group)}
    return Launch(norm_affine_kernel, (groups, batch), values, constants, 4, 1)


def _near(x: Tensor) -> Tensor:
    """x, or a contiguous copy where 32 bits do not reach across a tile of it."""
    return adjacent(x) if abs(x.stride(2)) * WIDEST_TILE < 2**31 else x.contiguous()


def temporal_conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    silu: bool,
    residual: Tensor | None,
    stats: bool,
) -> tuple[Tensor, Tensor]:
    """As `temporal_conv`."""
    y = x.new_empty((*x.shape[:3], weight.shape[0]))
    sums = x.new_empty(sums_shape(x, weight, stats), dtype=torch.float32)
    if not y.numel():
        return y, sums.zero_()
    scale, offset = (None if one is None else one.to(torch.float32).contiguous() for one in (scale, offset))
    to = sums if stats else None
    x, added = _near(x), None if residual is None else _near(residual)
    run(plan_conv(x, weight, bias.contiguous(), scale, offset, silu, added, y, to, card(x.device), interpreted()))
    return y, sums


def channel_sums_forward(x: Tensor) -> Tensor:
    """As `channel_sums`."""
    sums = x.new_empty(channel_sums_shape(x), dtype=torch.float32)
    if sums.numel():
        run(plan_sums(adjacent(x), sums, card(x.device)))
    return sums


def norm_affine_forward(
    sums: Tensor, count: int, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """As `norm_affine`."""
    parts = (sums if sums.ndim == 4 else sums[:, None]).contiguous()
    scale, offset = (parts.new_empty((parts.shape[0], parts.shape[2])) for _ in range(2))
    run(plan_affine(parts, weight.contiguous(), bias.contiguous(), scale, offset, groups, count, eps))
    return scale, offset


def builds(which: str, capability: int) -> list[Build]:
    """Launches of `which` as in the official model, in bfloat16."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    if which == "channel_sums":
        x = empty(1, 33, 6144, 320)
        return [build(plan_sums(x, empty(*channel_sums_shape(x), dtype=torch.float32), capability))]
    if which == "norm_affine":
        channels = 320
        sums, to = empty(1, 384, channels, 2, dtype=torch.float32), empty(1, channels, dtype=torch.float32)
        return [build(plan_affine(sums, empty(channels), empty(channels), to, to, 32, 33 * 6144, 1e-5))]
    return list(asked.builds("temporal_conv", capability))[:2]
