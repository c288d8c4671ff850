"""Large frames through the picture codec in tiles: bounded memory, and no tile with a tone of its own.

A stack of convolutions can be cut in space, except for its norms, whose statistics run over the whole picture: tiles
normed on their own come out lighter or darker than their neighbours.  So the tiles go through twice: once to gather
every norm's statistics over all tiles, once with these.  What is left of the cut is the padding at edges inside the
picture, which fades away in the overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERLAP = 4
"""Two neighbouring tiles share at least a tile's side divided by this."""


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Equal stretches (first, last exclusive) of at most `tile` that cover `length` and overlap by tile / 4 or more."""
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - tile // OVERLAP) / (tile - tile // OVERLAP))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def in_tiles(network: nn.Module, x: Tensor, tile: int, *, grow: int = 1, shrink: int = 1) -> Tensor:
    """`network(x)` for x [B, C, H, W], computed on tiles of at most `tile` x `tile` and blended.

    grow, shrink: the result is [B, C', H * grow / shrink, W * grow / shrink]; H, W and `tile` are multiples of
    `shrink`.  Memory: one tile through the network, and the result.  Time: the tiles go through twice.
    """
    out = (x.shape[2] * grow // shrink, x.shape[3] * grow // shrink)
    rows, columns = (
        [(a * shrink, b * shrink) for a, b in spans(size // shrink, tile // shrink)] for size in x.shape[2:]
    )
    places = list(product(rows, columns))
    if len(places) == 1:
        return network(x)
    cores = list(product(_cores(rows, shrink), _cores(columns, shrink)))
    norms = _SharedNorms(network)
    try:
        norms.gather()
        for ((top, bottom), (left, right)), norms.core in zip(places, cores, strict=True):
            network(x[:, :, top:bottom, left:right])
        norms.settle()
        total: Tensor | None = None
        for (top, bottom), (left, right) in places:
            part = network(x[:, :, top:bottom, left:right])
            if total is None:
                kind = part.dtype if part.dtype == torch.float64 else torch.float32
                total = part.new_zeros(*part.shape[:2], *out, dtype=kind)
                weight = total.new_zeros(1, 1, *out)
            top, bottom, left, right = (at * grow // shrink for at in (top, bottom, left, right))
            share = _ramp(top, bottom, out[0], part)[:, None] * _ramp(left, right, out[1], part)
            total[:, :, top:bottom, left:right] += part * share
            weight[:, :, top:bottom, left:right] += share
    finally:
        norms.restore()
    assert total is not None
    return (total / weight).to(x.dtype)


def _cores(spans: list[tuple[int, int]], unit: int) -> list[tuple[float, float]]:
    """Where each span has no nearer neighbour, as shares of its length: together they cover all just once.

    unit: what the borders are multiples of, so that they fall between pixels on the coarsest grid too.
    """
    middles = [b[0] + (a[1] - b[0]) // 2 // unit * unit for a, b in pairwise(spans)]
    borders = [spans[0][0], *middles, spans[-1][1]]
    return [((a - first) / (last - first), (b - first) / (last - first))
            for (first, last), (a, b) in zip(spans, pairwise(borders), strict=True)]  # fmt: skip


def _ramp(first: int, last: int, length: int, like: Tensor) -> Tensor:
    """Weights [last - first] of a tile: 1 inside; towards an edge inside the picture falling over the overlap, to
    (nearly) nothing in the quarter of it that lies next to the padding."""
    n = last - first
    overlap = max(1.0, n / OVERLAP)
    at = torch.arange(n, dtype=torch.float32, device=like.device) + 0.5
    rising = (at / overlap - 0.25) * 2 if first > 0 else torch.ones_like(at)
    falling = ((n - at) / overlap - 0.25) * 2 if last < length else torch.ones_like(at)
    return torch.minimum(rising, falling).clamp(min=1e-6, max=1.0)


class _SharedNorms:
    """Takes the place of every group norm in a network: gathers statistics over several calls, then norms by them."""

    def __init__(self, network: nn.Module) -> None:
        self.norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        self.core = (0.0, 1.0), (0.0, 1.0)
        """The part of the pictures whose statistics count, as shares of the height and the width."""
        self.sums: dict[nn.GroupNorm, Tensor] = {}
        self.found: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}
        """Mean and variance, each [B, groups]."""

    def gather(self) -> None:
        """From here on count what the norms see; each call is normed by itself."""
        self._use(self._gathering)

    def settle(self) -> None:
        """From here on norm by what has been counted."""
        for norm, sums in self.sums.items():
            count, mean, square = sums
            mean = mean / count
            self.found[norm] = mean, (square / count - mean.square()).clamp(min=0)
        self._use(self._settled)

    def restore(self) -> None:
        """Give the network its own norms back."""
        for norm in self.norms:
            norm.__dict__.pop("forward", None)

    def _use(self, function: Callable[[nn.GroupNorm, Tensor], Tensor]) -> None:
        for norm in self.norms:
            norm.__dict__["forward"] = partial(function, norm)

    def _gathering(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = self.core
        h, w = x.shape[2:]
        core = x[:, :, round(top * h) : round(bottom * h), round(left * w) : round(right * w)]
        values = core.reshape(len(x), norm.num_groups, -1)  # [B, groups, values]
        variance, mean = torch.var_mean(values, dim=2, correction=0)
        mean, variance = mean.double(), variance.double()
        sums = torch.stack([torch.ones_like(mean), mean, variance + mean.square()]) * values.shape[2]
        self.sums[norm] = self.sums[norm] + sums if norm in self.sums else sums
        return nn.GroupNorm.forward(norm, x)

    def _settled(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        each = norm.num_channels // norm.num_groups
        mean, variance = (value.repeat_interleave(each, dim=1).flatten().to(kind) for value in self.found[norm])
        scale, shift = (value.to(kind).repeat(len(x)) for value in (norm.weight, norm.bias))
        # A batch norm at rest is this very function, in one kernel: [1, B * C, h, w] with given statistics.
        flat = x.reshape(1, -1, *x.shape[2:])
        return F.batch_norm(flat, mean, variance, scale, shift, training=False, eps=norm.eps).view_as(x)
