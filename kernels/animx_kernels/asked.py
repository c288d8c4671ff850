"""The calls that the full model makes at its official size, by operator: what is compiled ahead of time for every card.

A forward pass of the released network, also in 8 bits, and of the paper's (768x512, 32 frames and the reference slot),
and one step of the sampler.  Tensors are on the meta device: shapes, strides and types, no memory.  A test holds this
list against the operator log of these networks, so that no variant of a body can be launched that was never compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from animx_kernels.dispatch import Build
from animx_kernels.launch import build, planned

SLOTS = 33
"""Frames of the window and the reference slot."""

LEVELS = ((6144, 320), (1536, 640), (384, 1280), (96, 1280))
"""Latent pixels and channels of the network's levels."""

STEM = (6144, 512)
"""The width inside the first temporal transformer."""

JOINED = ((6144, 320, 320), (6144, 640, 320), (1536, 640, 320), (1536, 640, 640), (1536, 1280, 640), (384, 1280, 640),
          (384, 1280, 1280), (96, 1280, 1280))  # fmt: skip
"""Pixels, channels, and channels of the skip connection, on the way up."""

ENTERED = ((1536, 320), (384, 640))
"""Pixels and channels where a level is entered, before the channels double."""

TYPES = (torch.bfloat16, torch.float16, torch.float32)

HEAD = 64
"""Width of an attention head."""

MOTION = 4
"""Motion tokens of a slot."""

STATES, TAPS, EXPAND = 16, 4, 2
"""Of a Mamba block."""

Call = tuple[str, tuple[Any, ...]]
"""An operator's name and its arguments."""


def calls(kind: torch.dtype) -> Iterator[Call]:
    """Every call that differs from the others in shapes or options, with activations and weights of type `kind`."""

    def some(*shape: int, dtype: torch.dtype = kind) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    for tokens, channels in LEVELS:
        yield from _residual_block(some, tokens, channels)
        yield from _transformers(some, tokens, channels, channels // HEAD)
        yield from _in_eight_bits(some, tokens, channels, channels // HEAD)
        yield from _mamba(some, tokens, channels)
    yield from _transformers(some, *STEM, STEM[1] // HEAD)
    yield from _in_eight_bits(some, *STEM, STEM[1] // HEAD)
    yield from _mamba(some, *STEM)
    for tokens, first, second in JOINED:
        whole = some(first + second)
        given = some(SLOTS, tokens, first), whole, whole, 32, 1e-5, True, None, some(SLOTS, tokens, second)
        yield "group_norm_silu", given
    for tokens, channels in ENTERED:
        yield "group_norm_silu", (some(SLOTS, tokens, channels), some(channels), some(channels), 32, 1e-5)


def _residual_block(some: Any, tokens: int, channels: int) -> Iterator[Call]:
    frames, clip, weight = some(SLOTS, tokens, channels), some(1, SLOTS, tokens, channels), some(channels)
    shift = some(1, channels).expand(SLOTS, -1)
    yield "group_norm_silu", (frames, weight, weight, 32, 1e-5)
    yield "group_norm_silu", (frames, weight, weight, 32, 1e-5, True, shift)
    yield "group_norm_silu", (frames, weight, weight, 32, 1e-6, False)
    yield "group_norm_silu", (some(1, SLOTS * tokens, channels), weight, weight, 32, 1e-6, False)
    yield "channel_sums", (clip,)
    affine, taps = some(1, channels, dtype=torch.float32), some(channels, 3, channels).transpose(1, 2)
    for parts in (-(-tokens // 16), -(-SLOTS * tokens // 512)):
        sums = some(1, parts, channels, 2, dtype=torch.float32)
        yield "norm_affine", (sums, SLOTS * tokens, weight, weight, 32, 1e-5)
    yield "temporal_conv", (clip, taps, weight, affine, affine, True, None, True)
    yield "temporal_conv", (clip, taps, weight, affine, affine, True, clip, False)


def _transformers(some: Any, tokens: int, width: int, heads: int) -> Iterator[Call]:
    x, weight = some(SLOTS, tokens, width), some(width)
    yield "add_layer_norm", (x, x, weight, weight, 1e-5)
    yield "layer_norm", (x, weight, weight, 1e-5)
    yield "geglu_linear", (x, some(8 * width, width), some(8 * width))
    qkv = some(1, SLOTS, tokens, 3 * width).split(width, dim=-1)
    yield "temporal_attention", (*qkv, heads)
    if (tokens, width) in LEVELS:
        columns = heads * MOTION
        folded = some(SLOTS, width, columns), some(SLOTS, columns), some(SLOTS, columns, width), weight
        yield "motion_attention", (x, *folded, heads, 1e-5)
        yield "motion_attention", (x, *folded, heads, 1e-5, 1.0, False)


def _in_eight_bits(some: Any, tokens: int, width: int, heads: int) -> Iterator[Call]:
    x, weight, e4m3, wide = some(SLOTS, tokens, width), some(width), torch.float8_e4m3fn, torch.float32
    yield "add_layer_norm8", (x, x, weight, weight, 1e-5)
    yield "layer_norm8", (x, weight, weight, 1e-5)

    def layer(inner: int, out: int, scales: int = 1) -> tuple[Tensor, ...]:
        rows = some(SLOTS, tokens, inner, dtype=e4m3), some(SLOTS, tokens, scales, dtype=wide)
        return *rows, some(out, inner, dtype=e4m3), some(out, dtype=wide)

    for out in (width, 3 * width):
        yield "linear8", (*layer(width, out), None, None, x.dtype)
    yield "geglu_rows8", (*layer(width, 8 * width), some(8 * width))
    yield "linear8", (*layer(4 * width, width, 4 * width // 128), weight, x, x.dtype)
    if (tokens, width) in LEVELS:
        q, k, v = some(SLOTS, tokens, 3, heads, HEAD).permute(2, 0, 3, 1, 4).unbind()
        yield "quantise_keys", (k,)
        yield "attention8", (q, some(*k.shape, dtype=torch.int8), some(*k.shape[:-1], dtype=wide), v)


def _mamba(some: Any, tokens: int, width: int) -> Iterator[Call]:
    inner, rank = 2 * EXPAND * width, -(-width // 16)  # of both directions; of one
    row = (1, SLOTS, tokens)
    u, z = some(*row, 2 * inner).chunk(2, dim=-1)
    one, rates = some(inner), some(inner, STATES, dtype=torch.float32)
    _, b, c = some(*row, 2 * (rank + 2 * STATES)).split([2 * rank, 2 * STATES, 2 * STATES], dim=-1)
    x = some(*row, inner)
    yield "causal_conv_silu", (u, some(inner, TAPS), one, True)
    yield "selective_scan", (x, x, rates, b, c, one, z, one, None, None, True, True)


def key(build: Build) -> str:
    """Says all that the compiler is told: two builds of one key compile to the same."""
    told = (build.signature, build.constexprs, build.num_warps, build.num_stages, build.multiples)
    return f"{build.kernel.fn.__name__} {told}"


@cache
def builds(name: str, capability: int) -> tuple[Build, ...]:
    """What the calls of an operator compile to on a card, each once; of the first type first."""
    found: dict[str, Build] = {}
    for kind in TYPES:
        for operator, arguments in calls(kind):
            if operator == name:
                for launch in planned(name, arguments, capability):
                    one = build(launch)
                    found.setdefault(key(one), one)
    return tuple(found.values())
