"""Large frames through the picture codec in tiles: bounded memory, and no tile with a tone of its own.

A network of convolutions can be cut in space, except for its norms, whose statistics run over the whole picture: tiles
normed on their own come out lighter or darker than their neighbours.  So the tiles go through twice: once to gather
every norm's statistics over all tiles, once with these.  What is left of the cut: the attention in the middle sees its
tile alone, and an edge inside the picture is padded with zeros; both fade away in the overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

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


def in_tiles(network: nn.Module, x: Tensor, tile: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """`network(x)` for x [B, C, H, W], computed on tiles of at most `tile` (height, width) and blended.

    out: (height, width) of the result, the same multiple or fraction of x in both; tiles begin at multiples of 8 where
    it is a fraction.  Memory: one tile through the network, and the result.  Time: twice that of the tiles.
    """
    shrink = max(1, x.shape[2] // out[0])
    grow = max(1, out[0] // x.shape[2])
    rows, columns = (
        [(a * shrink, b * shrink) for a, b in spans(size // shrink, side // shrink)]
        for size, side in zip(x.shape[2:], tile, strict=True)
    )
    places = list(product(rows, columns))
    if len(places) == 1:
        return network(x)  # type: ignore[no-any-return]
    with _shared_norms(network) as settle:
        for (top, bottom), (left, right) in places:
            network(x[:, :, top:bottom, left:right])
        settle()
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
    assert total is not None
    return (total / weight).to(x.dtype)


def _ramp(first: int, last: int, length: int, like: Tensor) -> Tensor:
    """Weights [last - first] of a tile: 1 inside, falling over the overlap towards an edge inside the picture."""
    n = last - first
    fade = max(1, n // OVERLAP)
    at = torch.arange(n, dtype=torch.float32, device=like.device)
    rising = ((at + 0.5) / fade).clamp(max=1) if first > 0 else torch.ones_like(at)
    falling = ((n - at - 0.5) / fade).clamp(max=1) if last < length else torch.ones_like(at)
    return torch.minimum(rising, falling)


@contextmanager
def _shared_norms(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Gather the statistics of every group norm until the yielded function is called; from then on use their sum."""
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    sums: dict[nn.GroupNorm, list[Tensor]] = {}

    def gather(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        groups = x.flatten(2).unflatten(1, (norm.num_groups, -1)).flatten(2)  # [B, groups, values]
        variance, mean = torch.var_mean(groups, dim=2, correction=0)
        mean, variance = mean.double(), variance.double()
        found = [torch.full_like(mean, groups.shape[2]), mean, variance + mean.square()]
        found[1:] = [value * found[0] for value in found[1:]]
        sums[norm] = [a + b for a, b in zip(sums[norm], found, strict=True)] if norm in sums else found
        return nn.GroupNorm.forward(norm, x)

    def settled(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        count, mean, square = sums[norm]
        mean = mean / count
        variance = square / count - mean.square()
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        each = norm.num_channels // norm.num_groups
        # A batch norm at rest is this very function, in one kernel: [1, B * C, values] with given statistics.
        out = F.batch_norm(
            x.reshape(1, -1, *x.shape[2:]),
            mean.repeat_interleave(each, dim=1).flatten().to(kind),
            variance.clamp(min=0).repeat_interleave(each, dim=1).flatten().to(kind),
            norm.weight.to(kind).repeat(len(x)),
            norm.bias.to(kind).repeat(len(x)),
            training=False,
            eps=norm.eps,
        )
        return out.view_as(x)

    def use(function: Callable[[nn.GroupNorm, Tensor], Tensor]) -> None:
        for norm in norms:
            norm.__dict__["forward"] = partial(function, norm)

    try:
        use(gather)
        yield partial(use, settled)
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)
