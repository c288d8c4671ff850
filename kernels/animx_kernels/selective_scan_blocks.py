"""`selective_scan` in plain PyTorch for real sizes: a few rows at a time, their states in the cache, in place.

States are [rows, S, E]: exponentials and products run along the channels, whatever L and S.  The backward pass keeps
the states of one block of rows only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import wide

ROWS = {"cpu": 16}
"""Rows whose states (rows * S * E numbers) are worked on at once, forward; other devices `MANY_ROWS`."""

ROWS_BACKWARD = {"cpu": 8}
"""Rows whose states of all slots are kept at once, backward."""

MANY_ROWS = 1024

LOG2E = 1 / math.log(2)


class Side(NamedTuple):
    """One direction of time: its channels, its half of b and c, and whether it runs backwards."""

    channels: slice
    states: slice
    reverse: bool


class Block(NamedTuple):
    """What one direction computes for a block of rows before the recurrence, time first: [L, rows, E or S]."""

    raw: Tensor
    """u."""
    pre: Tensor
    """The convolution's result (u itself without one)."""
    x: Tensor
    """What is scanned."""
    shifted: Tensor
    """delta + bias."""
    dt: Tensor
    b: Tensor
    c: Tensor
    z: Tensor | None


def _sides(u: Tensor, a: Tensor, bidirectional: bool) -> list[Side]:
    channels, states = u.shape[-1], a.shape[1]
    if not bidirectional:
        return [Side(slice(0, channels), slice(0, states), False)]
    half = channels // 2
    return [
        Side(slice(0, half), slice(0, states), False),
        Side(slice(half, channels), slice(states, 2 * states), True),
    ]


def _parts(u: Tensor, rows: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of about `rows` rows: (slice of the batch, slice of the pixels)."""
    batch, _, pixels, _ = u.shape
    high = max(1, rows // max(pixels, 1))
    for i in range(0, batch, high):
        for n in range(0, pixels, rows):
            yield slice(i, i + high), slice(n, n + rows)


def _take(x: Tensor, part: tuple[slice, slice], columns: slice, side: Side, kind: torch.dtype) -> Tensor:
    """Rows of a block, time first, in the direction's own order: [L, rows, columns]."""
    found = x[part[0], :, part[1], columns].permute(1, 0, 2, 3).flatten(1, 2).to(kind)
    return found.flip(0) if side.reverse else found.contiguous()


def _put(out: Tensor, part: tuple[slice, slice], columns: slice, side: Side, value: Tensor) -> None:
    target = out[part[0], :, part[1], columns]
    value = value.flip(0) if side.reverse else value
    target.copy_(value.view(value.shape[0], target.shape[0], target.shape[2], -1).permute(1, 0, 2, 3))


def _own(x: Tensor | None, side: Side, kind: torch.dtype) -> Tensor | None:
    return None if x is None else x[side.channels].to(kind)


def _prepare(
    part: tuple[slice, slice],
    side: Side,
    u: Tensor,
    delta: Tensor,
    b: Tensor,
    c: Tensor,
    z: Tensor | None,
    own: tuple[Tensor | None, ...],
    softplus: bool,
) -> Block:
    """`own`: delta_bias, conv_weight, conv_bias of the direction."""
    kind, (delta_bias, conv_weight, conv_bias) = wide(u), own
    raw = pre = x = _take(u, part, side.channels, side, kind)
    if conv_weight is not None:
        taps = conv_weight.shape[1]
        pre = raw * conv_weight[:, -1]
        for k in range(1, min(taps, len(raw))):
            pre[k:].addcmul_(raw[:-k], conv_weight[:, taps - 1 - k])
        pre = pre if conv_bias is None else pre.add_(conv_bias)
        x = F.silu(pre)
    shifted = _take(delta, part, side.channels, side, kind)
    shifted = shifted if delta_bias is None else shifted + delta_bias
    dt = F.softplus(shifted) if softplus else shifted
    bs, cs = (_take(t, part, side.states, side, kind) for t in (b, c))
    return Block(raw, pre, x, shifted, dt, bs, cs, None if z is None else _take(z, part, side.channels, side, kind))


def forward(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None,
    delta_bias: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    softplus: bool,
    bidirectional: bool,
) -> Tensor:
    """See `selective_scan.selective_scan`."""
    kind = wide(u)
    out = u.new_empty(u.shape)
    for side in _sides(u, a, bidirectional):
        # exp2 costs half of exp; the factor goes into the constant rates.
        rates = (a[side.channels].to(kind) * LOG2E).t().contiguous()  # [S, E]
        skip = d[side.channels].to(kind)
        own = tuple(_own(x, side, kind) for x in (delta_bias, conv_weight, conv_bias))
        for part in _parts(u, ROWS.get(u.device.type, MANY_ROWS)):
            block = _prepare(part, side, u, delta, b, c, z, own, softplus)
            drive = block.dt * block.x
            h = drive.new_zeros(drive.shape[1], *rates.shape)
            decay = torch.empty_like(h)
            y = drive.new_empty(drive.shape[0], drive.shape[1], 1, drive.shape[2])
            for t in range(len(drive)):
                torch.mul(block.dt[t, :, None], rates, out=decay).exp2_()
                h.mul_(decay).addcmul_(block.b[t, :, :, None], drive[t, :, None])
                torch.bmm(block.c[t, :, None], h, out=y[t])
            found = y[:, :, 0].addcmul_(block.x, skip)
            _put(out, part, side.channels, side, found if block.z is None else found.mul_(F.silu(block.z)))
    return out


def backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None,
    delta_bias: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    softplus: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """See `selective_scan.selective_scan_backward`."""
    kind = wide(u)
    du, ddelta, db, dc = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, b, c))
    dz = u.new_empty(0) if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    sums = [
        None if x is None else torch.zeros(x.shape, dtype=kind, device=x.device)
        for x in (a, d, delta_bias, conv_weight, conv_bias)
    ]
    da, dd, dbias, dweight, dconv_bias = sums
    assert da is not None
    assert dd is not None
    for side in _sides(u, a, bidirectional):
        rates = a[side.channels].to(kind).t().contiguous()
        skip = d[side.channels].to(kind)
        own = tuple(_own(x, side, kind) for x in (delta_bias, conv_weight, conv_bias))
        for part in _parts(u, ROWS_BACKWARD.get(u.device.type, MANY_ROWS)):
            block = _prepare(part, side, u, delta, b, c, z, own, softplus)
            toward = _take(grad, part, side.channels, side, kind)
            drive = block.dt * block.x
            states = _states(block, drive, rates)
            if block.z is not None:
                share = torch.sigmoid(block.z)
                y = torch.einsum("lrse,lrs->lre", states[1:], block.c).addcmul_(block.x, skip)
                slope = share * (1 + block.z * (1 - share))
                _put(dz, part, side.channels, side, toward * y * slope)
                toward = toward * block.z * share
            dx, ddt, dbs, dcs, da_part = _reverse(block, drive, states, toward, rates)
            dx.addcmul_(toward, skip)
            dd[side.channels] += (toward * block.x).sum((0, 1))
            da[side.channels] += da_part.t()
            if softplus:
                ddt = ddt * torch.sigmoid(block.shifted)
            if dbias is not None:
                dbias[side.channels] += ddt.sum((0, 1))
            weight = own[1]
            if weight is not None:
                share = torch.sigmoid(block.pre)
                dpre = dx * share * (1 + block.pre * (1 - share))
                if dconv_bias is not None:
                    dconv_bias[side.channels] += dpre.sum((0, 1))
                assert dweight is not None
                taps = weight.shape[1]
                dx = dpre * weight[:, -1]
                dweight[side.channels, -1] += (dpre * block.raw).sum((0, 1))
                for k in range(1, min(taps, len(dpre))):
                    dx[:-k].addcmul_(dpre[k:], weight[:, taps - 1 - k])
                    dweight[side.channels, taps - 1 - k] += (dpre[k:] * block.raw[:-k]).sum((0, 1))
            _put(du, part, side.channels, side, dx)
            _put(ddelta, part, side.channels, side, ddt)
            _put(db, part, side.states, side, dbs)
            _put(dc, part, side.states, side, dcs)
    small = [
        u.new_empty(0) if x is None or s is None else s.to(x.dtype)
        for x, s in zip((a, d, delta_bias, conv_weight, conv_bias), sums, strict=True)
    ]
    return du, ddelta, small[0], db, dc, small[1], dz, *small[2:]


def _states(block: Block, drive: Tensor, rates: Tensor) -> Tensor:
    """States before the first slot and after each: [L + 1, rows, S, E]."""
    states = drive.new_empty(len(drive) + 1, drive.shape[1], *rates.shape)
    states[0] = 0
    rates = rates * LOG2E
    for t in range(len(drive)):
        torch.mul(block.dt[t, :, None], rates, out=states[t + 1]).exp2_()
        states[t + 1].mul_(states[t]).addcmul_(block.b[t, :, :, None], drive[t, :, None])
    return states


def _reverse(
    block: Block, drive: Tensor, states: Tensor, toward: Tensor, rates: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (through the states), dt, b, c and a [S, E], from that of c h, `toward` [L, rows, E]."""
    g = torch.zeros_like(states[0])
    decay, work = torch.empty_like(g), torch.empty_like(g)
    through = drive.new_empty(len(drive), drive.shape[1], 1, drive.shape[2])
    ddt = torch.empty_like(drive)
    db = torch.empty_like(block.b)
    da = torch.zeros_like(rates)
    scaled = rates * LOG2E
    dc = torch.einsum("lrse,lre->lrs", states[1:], toward)
    for t in range(len(drive) - 1, -1, -1):
        g.addcmul_(block.c[t, :, :, None], toward[t, :, None])
        torch.bmm(block.b[t, :, None], g, out=through[t])
        torch.bmm(g, drive[t, :, :, None], out=db[t, :, :, None])
        torch.mul(block.dt[t, :, None], scaled, out=decay).exp2_()
        g.mul_(decay)
        torch.mul(g, states[t], out=work)
        torch.sum(torch.mul(work, rates, out=decay), 1, out=ddt[t])
        da += work.mul_(block.dt[t, :, None]).sum(0)
    flow = through[:, :, 0]
    return flow * block.dt, ddt.addcmul_(flow, block.x), db, dc, da
