"""Triton bodies of `selective_scan`: a program owns a block of channels, the states of one row in registers.

States are [S, channels], channels along the threads, so the sum over states stays within a thread.  Rows (pixels) come
one after the other; forward goes once over the slots.  Backward goes forward first, leaves a state every CHUNK slots in
a scratch of its own, then goes back and computes the states between anew.  Sums over rows and channels are written as
partial sums and added by torch, so that results do not depend on the order in which programs run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.dispatch import Build, card, tuned
from animx_kernels.launch import MOST_PROGRAMS, Launch, adjacent, blocks, build, power, run

SEQUENCES = ("u", "delta", "b", "c", "z")
"""Inputs with an entry for each slot and pixel: their strides are arguments."""

SLOPES = 7
"""Rows of the partial sums that belong to a channel, after its states: d, bias, conv bias, four taps."""


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), exact where exp(x) is far below 1."""
    v = tl.exp(-tl.abs(x))
    one = 1.0 + v
    small = tl.where(one == 1.0, v, tl.log(one) * (v / tl.where(one == 1.0, 1.0, one - 1.0)))
    return tl.maximum(x, 0.0) + small


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _apart(s, e, s_stride, e_stride):  # type: ignore[no-untyped-def]
    """Offsets of cells [s, e], told to be scattered.

    Otherwise the compiler gives a thread 4 neighbouring channels, for wider loads, and spreads the states over threads.
    """
    return tl.max_contiguous(s[:, None] * s_stride + e[None, :] * e_stride, [1, 1])


@triton.jit
def _taps(conv_weight, e, known, TAPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights of u at t, t-1, t-2, t-3; missing taps are 0."""
    w0 = tl.load(conv_weight + e * TAPS + (TAPS - 1), known, 0).to(tl.float32)
    w1 = tl.load(conv_weight + e * TAPS + (TAPS - 2), known & (TAPS > 1), 0).to(tl.float32)
    w2 = tl.load(conv_weight + e * TAPS + (TAPS - 3), known & (TAPS > 2), 0).to(tl.float32)
    w3 = tl.load(conv_weight + e * TAPS + (TAPS - 4), known & (TAPS > 3), 0).to(tl.float32)
    return w0, w1, w2, w3


@triton.jit
def selective_scan_kernel(  # type: ignore[no-untyped-def]
    u, delta, a, b, c, d, z, delta_bias, conv_weight, conv_bias, out,
    length, pixels, half, a_s, a_e,
    u_b, u_t, u_n, delta_b, delta_t, delta_n, b_b, b_t, b_n, c_b, c_t, c_n, z_b, z_t, z_n, out_b, out_t, out_n,
    TAPS: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, CONV_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Program (channel block, pixel block, batch); `half`: channels of one direction, the second runs backwards."""
    per = tl.cdiv(half, CHANNELS)
    side = tl.program_id(0) // per
    e = tl.program_id(0) % per * CHANNELS + tl.arange(0, CHANNELS)
    known = e < half
    e = side * half + e
    s = tl.arange(0, PADDED)
    batch = tl.program_id(2).to(tl.int64)
    # exp2 is the hardware's exponential.
    cells = known[None, :] & (s < STATES)[:, None]
    rates = tl.load(a + _apart(s, e, a_s, a_e), cells, 0).to(tl.float32)
    rates = rates * 1.4426950408889634
    skip = tl.load(d + e, known, 0).to(tl.float32)
    bias = tl.zeros([CHANNELS], tl.float32)
    if BIAS:
        bias = tl.load(delta_bias + e, known, 0).to(tl.float32)
    conv_base = tl.zeros([CHANNELS], tl.float32)
    if CONV_BIAS:
        conv_base = tl.load(conv_bias + e, known, 0).to(tl.float32)
    if TAPS > 0:
        w0, w1, w2, w3 = _taps(conv_weight, e, known, TAPS)
    for r in range(ROWS):
        n = tl.program_id(1).to(tl.int64) * ROWS + r
        live = known & (n < pixels)
        live_s = (s < STATES) & (n < pixels)
        h = tl.zeros([PADDED, CHANNELS], tl.float32)
        u1 = tl.zeros([CHANNELS], tl.float32)
        u2 = tl.zeros([CHANNELS], tl.float32)
        u3 = tl.zeros([CHANNELS], tl.float32)
        for i in range(length):
            t = (side * (length - 1) + (1 - 2 * side) * i).to(tl.int64)
            x = tl.load(u + (batch * u_b + n * u_n + t * u_t) + e, live, 0).to(tl.float32)
            if TAPS > 0:
                pre = w0 * x + w1 * u1 + w2 * u2 + w3 * u3 + conv_base
                u3 = u2
                u2 = u1
                u1 = x
                x = pre * _sigmoid(pre)
            dt = tl.load(delta + (batch * delta_b + n * delta_n + t * delta_t) + e, live, 0).to(tl.float32) + bias
            if SOFTPLUS:
                dt = _softplus(dt)
            bt = tl.load(b + (batch * b_b + n * b_n + t * b_t) + side * STATES + s, live_s, 0).to(tl.float32)
            ct = tl.load(c + (batch * c_b + n * c_n + t * c_t) + side * STATES + s, live_s, 0).to(tl.float32)
            h = tl.exp2(rates * dt[None, :]) * h + bt[:, None] * (dt * x)[None, :]
            y = tl.sum(h * ct[:, None], 0) + skip * x
            if GATE:
                gate = tl.load(z + (batch * z_b + n * z_n + t * z_t) + e, live, 0).to(tl.float32)
                y = y * gate * _sigmoid(gate)
            tl.store(out + (batch * out_b + n * out_n + t * out_t) + e, y.to(out.dtype.element_ty), live)


@triton.jit
def _at(  # type: ignore[no-untyped-def]
    i, u, u_t, delta, delta_t, b, b_t, e, live, s, live_s, length, side, bias, conv_base, w0, w1, w2, w3,
    TAPS: tl.constexpr, SOFTPLUS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Step i of a direction (slot length-1-i of the second): u at i, i-1, i-2, i-3, conv, x, delta + bias, dt, b."""
    sign = (1 - 2 * side) * u_t
    at = u + (side * (length - 1) + (1 - 2 * side) * i).to(tl.int64) * u_t + e
    u0 = tl.load(at, live, 0).to(tl.float32)
    u1 = u0
    u2 = u0
    u3 = u0
    pre = u0
    x = u0
    if TAPS > 0:
        u1 = tl.load(at - sign, live & (i > 0) & (TAPS > 1), 0).to(tl.float32)
        u2 = tl.load(at - 2 * sign, live & (i > 1) & (TAPS > 2), 0).to(tl.float32)
        u3 = tl.load(at - 3 * sign, live & (i > 2) & (TAPS > 3), 0).to(tl.float32)
        pre = w0 * u0 + w1 * u1 + w2 * u2 + w3 * u3 + conv_base
        x = pre * _sigmoid(pre)
    t = (side * (length - 1) + (1 - 2 * side) * i).to(tl.int64)
    raw = tl.load(delta + t * delta_t + e, live, 0).to(tl.float32) + bias
    dt = raw
    if SOFTPLUS:
        dt = _softplus(raw)
    bt = tl.load(b + t * b_t + side * STATES + s, live_s, 0).to(tl.float32)
    return u0, u1, u2, u3, pre, x, raw, dt, bt


@triton.jit
def selective_scan_backward_kernel(  # type: ignore[no-untyped-def]
    grad, u, delta, a, b, c, d, z, delta_bias, conv_weight, conv_bias,
    du, ddelta, dz, channel_sums, state_sums, scratch,
    batches, plane, length, pixels, half, a_s, a_e,
    grad_b, grad_t, grad_n,
    u_b, u_t, u_n, delta_b, delta_t, delta_n, b_b, b_t, b_n, c_b, c_t, c_n, z_b, z_t, z_n, out_b, out_t, out_n,
    TAPS: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, CONV_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Program (channel block, p) takes rows p, p + P, ...

    channel_sums [P, STATES + 7, E] float32; state_sums [channel blocks of a direction, 2 (b, c), B, L, N, directions *
    STATES] float32; scratch [channel blocks, P, chunks, PADDED, CHANNELS] float32; du, ddelta, dz share their strides.
    """
    per = tl.cdiv(half, CHANNELS)
    side = tl.program_id(0) // per
    lane = tl.arange(0, CHANNELS)
    e = tl.program_id(0) % per * CHANNELS + lane
    known = e < half
    e = side * half + e
    s = tl.arange(0, PADDED)
    cells = known[None, :] & (s < STATES)[:, None]
    channels = tl.num_programs(0) // per * half
    rates = tl.load(a + _apart(s, e, a_s, a_e), cells, 0).to(tl.float32)
    skip = tl.load(d + e, known, 0).to(tl.float32)
    zero = tl.zeros([CHANNELS], tl.float32)
    bias = zero
    if BIAS:
        bias = tl.load(delta_bias + e, known, 0).to(tl.float32)
    conv_base = zero
    if CONV_BIAS:
        conv_base = tl.load(conv_bias + e, known, 0).to(tl.float32)
    w0 = zero
    w1 = zero
    w2 = zero
    w3 = zero
    if TAPS > 0:
        w0, w1, w2, w3 = _taps(conv_weight, e, known, TAPS)
    sum_a = tl.zeros([PADDED, CHANNELS], tl.float32)
    sum_d = zero
    sum_bias = zero
    sum_conv = zero
    sum0 = zero
    sum1 = zero
    sum2 = zero
    sum3 = zero
    programs = tl.num_programs(1)
    chunks = tl.cdiv(length, CHUNK)
    cell = _apart(s, lane, CHANNELS, 1)
    kept = scratch + (tl.program_id(0).to(tl.int64) * programs + tl.program_id(1)) * chunks * (PADDED * CHANNELS) + cell
    width = tl.num_programs(0) // per * STATES  # entries of b and c at a slot and pixel
    for row in range(tl.program_id(1), batches * pixels, programs):
        batch = (row // pixels).to(tl.int64)
        n = (row % pixels).to(tl.int64)
        own_u = u + batch * u_b + n * u_n
        own_delta = delta + batch * delta_b + n * delta_n
        own_b = b + batch * b_b + n * b_n
        own_c = c + batch * c_b + n * c_n + side * STATES
        live_s = s < STATES
        h = tl.zeros([PADDED, CHANNELS], tl.float32)
        for i in range(length):
            if i % CHUNK == 0:
                tl.store(kept + (i // CHUNK) * (PADDED * CHANNELS), h)
            _, _, _, _, _, x, _, dt, bt = _at(
                i, own_u, u_t, own_delta, delta_t, own_b, b_t, e, known, s, live_s, length, side,
                bias, conv_base, w0, w1, w2, w3, TAPS, SOFTPLUS, STATES,
            )  # fmt: skip
            h = tl.exp2(rates * (dt * 1.4426950408889634)[None, :]) * h + bt[:, None] * (dt * x)[None, :]
        tl.debug_barrier()  # what other threads of this program left in the scratch is read below
        g = tl.zeros([PADDED, CHANNELS], tl.float32)
        p1 = zero
        p2 = zero
        p3 = zero
        for j in range(length):
            i = length - 1 - j
            h = tl.load(kept + (i // CHUNK) * (PADDED * CHANNELS))
            for k in range(i // CHUNK * CHUNK, i):
                _, _, _, _, _, x, _, dt, bt = _at(
                    k, own_u, u_t, own_delta, delta_t, own_b, b_t, e, known, s, live_s, length, side,
                    bias, conv_base, w0, w1, w2, w3, TAPS, SOFTPLUS, STATES,
                )  # fmt: skip
                h = tl.exp2(rates * (dt * 1.4426950408889634)[None, :]) * h + bt[:, None] * (dt * x)[None, :]
            u0, u1, u2, u3, pre, x, raw, dt, bt = _at(
                i, own_u, u_t, own_delta, delta_t, own_b, b_t, e, known, s, live_s, length, side,
                bias, conv_base, w0, w1, w2, w3, TAPS, SOFTPLUS, STATES,
            )  # fmt: skip
            t = (side * (length - 1) + (1 - 2 * side) * i).to(tl.int64)
            to = batch * out_b + n * out_n + t * out_t + e
            ct = tl.load(own_c + t * c_t + s, live_s, 0).to(tl.float32)
            toward = tl.load(grad + batch * grad_b + n * grad_n + t * grad_t + e, known, 0).to(tl.float32)
            decay = tl.exp2(rates * (dt * 1.4426950408889634)[None, :])
            h = decay * h
            after = h + bt[:, None] * (dt * x)[None, :]
            if GATE:
                gate = tl.load(z + batch * z_b + n * z_n + t * z_t + e, known, 0).to(tl.float32)
                share = _sigmoid(gate)
                y = tl.sum(after * ct[:, None], 0) + skip * x
                tl.store(dz + to, (toward * y * share * (1.0 + gate * (1.0 - share))).to(dz.dtype.element_ty), known)
                toward = toward * gate * share
            sum_d += toward * x
            sums = state_sums + (((tl.program_id(0) % per * 2 * batches + batch) * length + t) * pixels + n) * width
            sums += side * STATES + s
            tl.store(
                sums + tl.cast(batches, tl.int64) * length * pixels * width, tl.sum(after * toward[None, :], 1), live_s
            )
            g += ct[:, None] * toward[None, :]
            tl.store(sums, tl.sum(g * (dt * x)[None, :], 1), live_s)
            flow = tl.sum(g * bt[:, None], 0)
            slope = g * h
            g = g * decay
            sum_a += slope * dt[None, :]
            ddt = tl.sum(slope * rates, 0) + flow * x
            dx = flow * dt + toward * skip
            if SOFTPLUS:
                ddt = ddt * _sigmoid(raw)
            tl.store(ddelta + to, ddt.to(ddelta.dtype.element_ty), known)
            sum_bias += ddt
            if TAPS > 0:
                share = _sigmoid(pre)
                dpre = dx * share * (1.0 + pre * (1.0 - share))
                sum_conv += dpre
                sum0 += dpre * u0
                sum1 += dpre * u1
                sum2 += dpre * u2
                sum3 += dpre * u3
                dx = w0 * dpre + w1 * p1 + w2 * p2 + w3 * p3
                p3 = p2
                p2 = p1
                p1 = dpre
            tl.store(du + to, dx.to(du.dtype.element_ty), known)
        tl.debug_barrier()  # the next row uses the same scratch
    sums = channel_sums + tl.program_id(1).to(tl.int64) * (STATES + 7) * channels
    tl.store(sums + _apart(s, e, channels, 1), sum_a, cells)
    sums += STATES * channels + e
    tl.store(sums, sum_d, known)
    tl.store(sums + channels, sum_bias, known)
    tl.store(sums + 2 * channels, sum_conv, known)
    # The oldest tap first, as in the weight.
    tl.store(sums + (3 + (TAPS + 3) % 4) * channels, sum0, known)
    tl.store(sums + (3 + (TAPS + 2) % 4) * channels, sum1, known)
    tl.store(sums + (3 + (TAPS + 1) % 4) * channels, sum2, known)
    tl.store(sums + (3 + TAPS % 4) * channels, sum3, known)


class _Given:
    """The ten tensors as the kernels take them."""

    small: dict[str, Any]

    def __init__(self, tensors: tuple[Tensor | None, ...], softplus: bool, bidirectional: bool) -> None:
        u, delta, a, b, c, d, z, bias, weight, conv_bias = tensors
        assert u is not None
        assert a is not None
        rows = {"u": u, "delta": delta, "b": b, "c": c, "z": z}
        self.rows = {name: None if x is None else adjacent(x) for name, x in rows.items()}
        small = {"d": d, "delta_bias": bias, "conv_weight": weight, "conv_bias": conv_bias}
        self.small = {"a": a} | {name: None if x is None else x.contiguous() for name, x in small.items()}
        self.batch, self.length, self.pixels, self.channels = u.shape
        self.half, self.states = self.channels // (1 + bidirectional), a.shape[1]
        self.sides = 1 + bidirectional
        self.flags = {
            "TAPS": 0 if weight is None else weight.shape[1],
            "GATE": z is not None,
            "BIAS": bias is not None,
            "CONV_BIAS": conv_bias is not None,
            "SOFTPLUS": softplus,
            "STATES": self.states,
            "PADDED": power(self.states),
        }

    def numbers(self, extra: dict[str, Tensor]) -> dict[str, int]:
        """Sizes and strides."""
        found = {"length": self.length, "pixels": self.pixels, "half": self.half}
        found |= {"a_e": self.small["a"].stride(0), "a_s": self.small["a"].stride(1)}
        for name, x in {**self.rows, **extra}.items():
            strides = (0, 0, 0) if x is None else x.stride()
            found |= {f"{name}_{axis}": strides[i] for i, axis in enumerate("btn")}
        return found


def plan(given: _Given, out: Tensor, capability: int) -> Launch:
    """The forward launch."""
    config = tuned("selective_scan", f"E{given.half} S{given.states}", capability)
    channels = min(config["CHANNELS"], power(given.half))
    values: dict[str, Any] = {**given.rows, **given.small, "out": out, **given.numbers({"out": out})}
    rows = max(min(config["ROWS"], power(given.pixels)), power(blocks(given.pixels, MOST_PROGRAMS)))
    constants = {**given.flags, "ROWS": rows, "CHANNELS": channels}
    grid = (given.sides * blocks(given.half, channels), blocks(given.pixels, rows), given.batch)
    return Launch(selective_scan_kernel, grid, values, constants, config["num_warps"], config["num_stages"])


def forward(*arguments: Any) -> Tensor:
    """See `selective_scan.selective_scan`."""
    *tensors, softplus, bidirectional = arguments
    u: Tensor = tensors[0]
    out = u.new_empty(u.shape)
    if out.numel():
        run(plan(_Given(tuple(tensors), softplus, bidirectional), out, card(u.device)))
    return out


def plan_backward(
    given: _Given, grad: Tensor, made: dict[str, Tensor | None], capability: int
) -> tuple[Launch, Tensor, Tensor]:
    """The backward launch, and its partial sums: of channels [P, S + 7, E], of b and c [blocks, 2, B, L, N, width]."""
    config = tuned("selective_scan_backward", f"E{given.half} S{given.states}", capability)
    channels = min(config["CHANNELS"], power(given.half))
    per = blocks(given.half, channels)
    programs = min(config["programs"], given.batch * given.pixels)
    chunks = blocks(given.length, config["CHUNK"])

    def buffer(*shape: int) -> Tensor:
        return grad.new_empty(shape, dtype=torch.float32)

    channel_sums = buffer(programs, given.states + SLOPES, given.channels)
    state_sums = buffer(per, 2, given.batch, given.length, given.pixels, given.sides * given.states)
    scratch = buffer(given.sides * per, programs, chunks, given.flags["PADDED"], channels)
    out = made["du"]
    assert out is not None
    values: dict[str, Any] = {"grad": grad, **given.rows, **given.small, **made}
    values |= {"channel_sums": channel_sums, "state_sums": state_sums, "scratch": scratch}
    values |= {"batches": given.batch, "plane": state_sums[0, 0].numel()}
    values |= given.numbers({"grad": grad, "out": out})
    constants = {**given.flags, "CHUNK": config["CHUNK"], "CHANNELS": channels}
    launch = Launch(
        selective_scan_backward_kernel, (given.sides * per, programs), values, constants, config["num_warps"], 1
    )
    return launch, channel_sums, state_sums


def backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """See `selective_scan.selective_scan_backward`."""
    *tensors, softplus, bidirectional = arguments
    u, delta, a, b, c, d, z, bias, weight, conv_bias = tensors
    made: dict[str, Any] = {
        name: None if x is None else x.new_empty(x.shape) for name, x in (("du", u), ("ddelta", delta), ("dz", z))
    }
    if not u.numel():
        return tuple(u.new_empty(0) if x is None else x.new_zeros(x.shape) for x in tensors)
    given = _Given(tuple(tensors), softplus, bidirectional)
    launch, channel_sums, state_sums = plan_backward(given, adjacent(grad), made, card(u.device))
    run(launch)
    sums, (db, dc), s = channel_sums.sum(0), state_sums.sum(0), given.states  # [S + 7, E]

    def fresh(like: Tensor | None, value: Tensor) -> Tensor:
        return u.new_empty(0) if like is None else like.new_empty(like.shape).copy_(value)

    taps = 0 if weight is None else weight.shape[1]
    return (
        made["du"],
        made["ddelta"],
        fresh(a, sums[:s].t()),
        fresh(b, db),
        fresh(c, dc),
        fresh(d, sums[s]),
        u.new_empty(0) if z is None else made["dz"],
        fresh(bias, sums[s + 1]),
        fresh(weight, sums[s + 3 : s + 3 + taps].t()),
        fresh(conv_bias, sums[s + 2]),
    )


def _full_size() -> tuple[_Given, Tensor]:
    def empty(*shape: int, kind: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device="meta", dtype=kind)

    row, e = (1, 33, 6144), 1280
    x, few, one = empty(*row, e), empty(*row, 32), empty(e)
    tensors = (x, x, empty(e, 16, kind=torch.float32), few, few, one, x, one, empty(e, 4), one)
    return _Given(tensors, True, True), x


def builds(capability: int) -> list[Build]:
    """The forward launch at the first level, both directions, in bfloat16 with float32 rates."""
    given, x = _full_size()
    return [build(plan(given, x, capability))]


def builds_backward(capability: int) -> list[Build]:
    """The backward launch at the first level."""
    given, x = _full_size()
    return [build(plan_backward(given, x, {"du": x, "ddelta": x, "dz": x}, capability)[0])]
