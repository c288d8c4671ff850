"""The network with its large linear layers and its large attentions in 8 bits: other numbers, half the bytes.

    eight_bit(unet, EightBit(linears=True, attention=True))          # in place: the wide weights are let go
    other = eight_bit(unet, EightBit(linears=True), share=True)      # beside it: `unet` stays as it is

Linears (`Linear8`): queries, keys and values of the spatial, motion and temporal blocks, queries of the attention to
the context, and feed-forwards.  Attention: among the pixels of a slot, on the first two levels, where nearly all of its
work is.  Not: what would cost most (`KEPT_EXACT`), convolutions, embeddings, encoders of conditions, keys and values of
contexts (computed once per window), the folded motion attention, Mamba's inner projections.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from animx.model.attention import Attention, MotionTransformer, SpatialTransformer, TransformerBlock
from animx.model.layers import Downsample, Upsample
from animx.model.linear8 import Linear8
from animx.model.temporal import Temporal
from animx.model.unet import AnimateXUNet, Block

GRAIN = 16
"""Both sides of a layer's matrix are multiples of this, or it stays exact: the 8-bit units take no others."""
ATTENDING_LEVELS = 2
"""Levels from the largest on whose attention among pixels is in 8 bits."""
KINDS = ("proj_in", "qkv", "query", "out", "feed", "proj_out")
"""Kinds of layers that can be in 8 bits: `query` is that of the attention to a context, `out` belongs to any."""
STATE = "eight_bit_state"
"""Where a network keeps what was done to it."""
KEPT_EXACT: frozenset[str] = frozenset({"proj_in", "proj_out", "out"})
"""Kinds that stay exact: a fifth of the work, most of the drift (docs/benchmarks/README.md has the measurements)."""


@dataclass(frozen=True)
class EightBit:
    """What is in 8 bits."""

    linears: bool = False
    attention: bool = False

    def __bool__(self) -> bool:
        return self.linears or self.attention


class Place(NamedTuple):
    """A layer in the module that holds it."""

    owner: nn.Module
    name: str
    kind: str


def large_linears(unet: AnimateXUNet) -> Iterator[Place]:
    """The layers that are large enough, in running order, of all `KINDS`; those in 8 bits already too."""
    for part in unet.modules():
        if not isinstance(part, SpatialTransformer | MotionTransformer | Temporal):
            continue
        yield Place(part, "proj_in", "proj_in")
        block = part.block
        if isinstance(block, TransformerBlock):
            yield from _of_attention(block.self_attention, True)
            if not isinstance(part, MotionTransformer):  # whose second attention is folded
                yield from _of_attention(block.cross_attention, isinstance(part, Temporal))
            yield Place(block.feed_forward, "proj", "feed")
            yield Place(block.feed_forward, "out", "feed")
        yield Place(part, "proj_out", "proj_out")


def _of_attention(attention: Attention, to_itself: bool) -> Iterator[Place]:
    names = ("to_q", "to_k", "to_v") if to_itself else ("to_q",)
    yield from (Place(attention, name, "qkv" if to_itself else "query") for name in names)
    yield Place(attention, "to_out", "out")


def large_attentions(unet: AnimateXUNet) -> Iterator[Attention]:
    """Attentions among the pixels of a slot on the first levels, those of the motion blocks included."""
    level = 0
    for module in (*unet.down, unet.middle, *unet.up):
        parts = list(module) if isinstance(module, Block) else [module]
        for part in parts:
            if isinstance(part, SpatialTransformer) and level < ATTENDING_LEVELS:
                yield part.block.self_attention
                if isinstance(part.motion, MotionTransformer):
                    yield part.motion.block.self_attention
            level += isinstance(part, Downsample) - isinstance(part, Upsample)


T = TypeVar("T", bound=nn.Module)


def eight_bit(
    unet: AnimateXUNet,
    how: EightBit,
    *,
    on: torch.device | None = None,
    share: bool = False,
    kept: frozenset[str] = KEPT_EXACT,
) -> AnimateXUNet:
    """The network in 8 bits.  Calling it again changes nothing.

    on: device that works the weights out (they stay where they lie).  share: leave `unet` alone and return another that
    shares with it what is not in 8 bits.  kept: kinds (`KINDS`) of layers that stay exact; others than `KEPT_EXACT` are
    for measurements on the plain network.
    """
    network = _beside(unet) if share else unet
    with torch.no_grad():
        if how.linears:
            for place in list(large_linears(network)):
                layer = getattr(place.owner, place.name)
                if place.kind not in kept and isinstance(layer, nn.Linear | nn.Conv1d) and _fits(layer):
                    setattr(place.owner, place.name, Linear8.of(layer, on))
        for attention in large_attentions(network):
            attention.in_eight_bits = how.attention
    network.__dict__[STATE] = EightBit(how.linears or state_of(network).linears, how.attention)
    return network


def state_of(unet: nn.Module) -> EightBit:
    """What of a network is in 8 bits."""
    found: EightBit = unet.__dict__.get(STATE, EightBit())
    return found


def _fits(layer: nn.Linear | nn.Conv1d) -> bool:
    rows, columns = layer.weight.shape[:2]
    return rows % GRAIN == 0 and columns % GRAIN == 0


def _beside(module: T) -> T:
    """A module tree of its own on the same tensors."""
    made = copy.copy(module)
    # Parameters of its own on the same memory: a move gives a parameter other memory in place.
    made._parameters = {
        name: None if one is None else nn.Parameter(one.detach(), one.requires_grad)
        for name, one in module._parameters.items()
    }
    made._buffers = dict(module._buffers)
    made._modules = {name: None if one is None else _beside(one) for name, one in module._modules.items()}
    made._compiled_call_impl = None  # compiled code belongs to the module it was made from
    return made
