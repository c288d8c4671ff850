"""Triton bodies of `quantise_keys` (two launches: means, then differences in 8 bits) and of `attention8`.

Sums of int8 products become float32 by their bits: they start at the integer whose bits are those of 1.5 * 2^23
and are below 2^22, so what comes out, seen as a float32, is that number plus the sum.  A subtraction is all the
conversion takes.  Addresses are 64-bit; heads and batch share the grid's first axis, which has 2^31 places.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.dispatch import Build, card, interpreted, tuned
from animx_kernels.launch import Launch, adjacent, blocks, build, power, run

LOG2E = 1.4426950408889634


@triton.jit
def to_int8(x):
    """Rows x [R, D] float32 -> int8 [R, D] and scale [R]; see `rows_to_int8`."""
    top = tl.maximum(tl.max(tl.abs(x), 1), 1e-30)
    finite = tl.sum(x * 0.0, 1) == 0  # an infinity or a NaN times 0 is a NaN
    factor = tl.div_rn(tl.full(top.shape, 127.0, tl.float32), top)
    values = (x * factor[:, None] + 12582912.0) - 12582912.0  # to the nearest whole number, ties to even
    values = tl.where(finite[:, None], values, 0.0).to(tl.int8)
    return values, tl.where(finite, top * 0.007874015748031496, float("nan"))


@triton.jit
def common_part_kernel(k, mean, heads, keys, d, k_b, k_h, k_n, BN: tl.constexpr, BD: tl.constexpr):
    """k [batch, heads, keys, d] -> mean [batch * heads, d] float32, rounded; a program has one head."""
    head = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BN).to(tl.int64)
    lane = tl.arange(0, BD)
    at = k + head // heads * k_b + head % heads * k_h + n[:, None] * k_n + lane[None, :]
    total = tl.zeros([BN, BD], tl.float32)
    for start in range(0, keys, BN):
        inside = (start + n < keys)[:, None] & (lane < d)[None, :]
        total += tl.load(at + start * tl.cast(k_n, tl.int64), inside, 0.0).to(tl.float32)
    found = tl.sum(total, 0) / keys
    found = ((found.to(tl.int32, bitcast=True) + 0x800) & -0x1000).to(tl.float32, bitcast=True)
    tl.store(mean + head * d + lane, found, lane < d)


@triton.jit
def keys_kernel(k, mean, k8, scale, heads, keys, d, k_b, k_h, k_n, BN: tl.constexpr, BD: tl.constexpr):
    """k [batch, heads, keys, d] -> k8 int8 of the same shape, contiguous, scale [batch, heads, keys]."""
    head = (tl.program_id(0) // tl.cdiv(keys, BN)).to(tl.int64)
    n = (tl.program_id(0) % tl.cdiv(keys, BN)).to(tl.int64) * BN + tl.arange(0, BN)
    lane = tl.arange(0, BD)
    inside = (n < keys)[:, None] & (lane < d)[None, :]
    at = k + head // heads * k_b + head % heads * k_h + n[:, None] * k_n + lane[None, :]
    common = tl.load(mean + head * d + lane, lane < d, 0.0)
    x = tl.load(at, inside, 0.0).to(tl.float32) - common[None, :]
    values, size = to_int8(tl.where(inside, x, 0.0))
    tl.store(k8 + (head * keys + n)[:, None] * d + lane[None, :], values, inside)
    tl.store(scale + head * keys + n, size, n < keys)


@triton.jit
def attention8_kernel(
    q, k8, k_scale, v, out, heads, tokens, keys, d, factor,
    q_b, q_h, q_n, s_b, s_h, k8_b, k8_h, k8_n, v_b, v_h, v_n, out_b, out_h, out_n,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """q, out [batch, heads, tokens, d]; k8, v [batch, heads, keys, d], k_scale [batch, heads, keys].

    A program has BM queries of one head and goes through the keys, BN at a time.  EVEN: BN divides the keys; FULL: BD
    is d; WIDE: shares times values in float32.
    """
    head = (tl.program_id(0) // tl.cdiv(tokens, BM)).to(tl.int64)
    batch, head = head // heads, head % heads
    m = (tl.program_id(0) % tl.cdiv(tokens, BM)).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.arange(0, BN)
    lane = tl.arange(0, BD)
    # Queries outside are those of token 0: computed, not stored.
    safe = tl.where(m < tokens, m, 0)
    at = q + batch * q_b + head * q_h + safe[:, None] * q_n + lane[None, :]
    rows, row_scale = to_int8(tl.load(at, (lane < d)[None, :], 0.0).to(tl.float32))
    row_scale = row_scale * factor
    from_k = k8 + batch * k8_b + head * k8_h + n.to(tl.int64)[:, None] * k8_n + lane[None, :]
    from_v = v + batch * v_b + head * v_h + n.to(tl.int64)[:, None] * v_n + lane[None, :]
    from_scale = k_scale + batch * s_b + head * s_h + n
    top = tl.full([BM], float("-inf"), tl.float32)
    sums = tl.zeros([BM], tl.float32)
    total = tl.zeros([BM, BD], tl.float32)
    for start in range(0, keys, BN):
        known = start + n < keys
        if EVEN and FULL:
            ks, vs, size = tl.load(from_k), tl.load(from_v), tl.load(from_scale)
        else:
            inside = known[:, None] & (lane < d)[None, :]
            ks, vs = tl.load(from_k, inside, 0), tl.load(from_v, inside, 0.0)
            size = tl.load(from_scale, known, 0.0)
        score = tl.dot(rows, tl.trans(ks), tl.full([BM, BN], 0x4B400000, tl.int32), out_dtype=tl.int32)
        score = (score.to(tl.float32, bitcast=True) - 12582912.0) * row_scale[:, None] * size[None, :]
        if not EVEN:
            score = tl.where(known[None, :], score, float("-inf"))
        new = tl.maximum(top, tl.max(score, 1))
        share = tl.exp2(score - new[:, None])
        shrink = tl.exp2(top - new)
        sums = sums * shrink + tl.sum(share, 1)
        total = total * shrink[:, None]
        if WIDE:
            total = tl.dot(share, vs.to(tl.float32), total, input_precision="ieee")
        else:
            total = tl.dot(share.to(vs.dtype), vs, total)
        top = new
        from_k += BN * tl.cast(k8_n, tl.int64)
        from_v += BN * tl.cast(v_n, tl.int64)
        from_scale += BN
    to = out + batch * out_b + head * out_h + m[:, None] * out_n + lane[None, :]
    tl.store(to, (total / sums[:, None]).to(out.dtype.element_ty), (m < tokens)[:, None] & (lane < d)[None, :])


def _strides(name: str, x: Tensor) -> dict[str, int]:
    return {f"{name}_{axis}": x.stride(i) for i, axis in enumerate("bhn")}


def plan_keys(k: Tensor, mean: Tensor, k8: Tensor, scale: Tensor, capability: int) -> list[Launch]:
    """k [B, h, M, d] -> mean [B * h, d], then k8 int8 and scale [B, h, M], contiguous."""
    batch, heads, keys, d = k.shape
    config = tuned("quantise_keys", f"M{keys} d{d}", capability)
    wide = power(d, 16)
    high = min(max(1, config["elements"] // wide), power(keys))
    sizes: dict[str, Any] = {"heads": heads, "keys": keys, "d": d, **_strides("k", k)}
    constants = {"BN": high, "BD": wide}
    many, warps = batch * heads, config["num_warps"]
    return [
        Launch(common_part_kernel, (many,), {"k": k, "mean": mean, **sizes}, constants, warps, config["num_stages"]),
        Launch(
            keys_kernel,
            (many * blocks(keys, high),),
            {"k": k, "mean": mean, "k8": k8, "scale": scale, **sizes},
            constants,
            warps,
            1,
        ),
    ]


def plan_attention(
    q: Tensor, k8: Tensor, k_scale: Tensor, v: Tensor, out: Tensor, capability: int, widen: bool
) -> Launch:
    """q [B, h, N, d], k8 and v [B, h, M, d], k_scale [B, h, M] -> out [B, h, N, d]; last axes adjacent."""
    batch, heads, tokens, d = q.shape
    keys = k8.shape[2]
    config = tuned("attention8", f"d{d}", capability)
    wide = q.dtype == torch.float32
    # float32 shares and values take twice the memory; widths above 64, or that fill no block, more registers.
    across = power(d, 32)
    columns = max(16, config["BN"] // (2 if wide else 1) // (2 if across > 64 or across != d else 1))
    constants = {
        "BM": min(config["BM"] // (2 if wide else 1), power(tokens, 16)),
        "BN": min(columns, power(keys, 32)),
        "BD": across,
    }
    constants |= {"EVEN": keys % constants["BN"] == 0, "FULL": d == constants["BD"], "WIDE": wide or widen}
    values: dict[str, Any] = {"q": q, "k8": k8, "k_scale": k_scale, "v": v, "out": out}
    values |= {"heads": heads, "tokens": tokens, "keys": keys, "d": d, "factor": d**-0.5 * LOG2E}
    values |= _strides("q", q) | _strides("k8", k8) | _strides("v", v) | _strides("out", out)
    values |= {"s_b": k_scale.stride(0), "s_h": k_scale.stride(1)}
    grid = (blocks(tokens, constants["BM"]) * heads * batch,)
    return Launch(attention8_kernel, grid, values, constants, config["num_warps"], config["num_stages"])


def keys_forward(k: Tensor) -> tuple[Tensor, Tensor]:
    """See `attention8.quantise_keys`."""
    batch, heads, _, d = k.shape
    mean = k.new_empty((batch * heads, d), dtype=torch.float32)
    k8, scale = k.new_empty(k.shape, dtype=torch.int8), k.new_empty(k.shape[:-1], dtype=torch.float32)
    if k8.numel():
        for launch in plan_keys(adjacent(k), mean, k8, scale, card(k.device)):
            run(launch)
    return k8, scale


def attention_forward(q: Tensor, k8: Tensor, k_scale: Tensor, v: Tensor) -> Tensor:
    """See `attention8.attention8_keys`."""
    batch, heads, tokens, d = q.shape
    out = q.new_empty((batch, tokens, heads, d)).transpose(1, 2)
    if out.numel():
        scale = adjacent(k_scale)
        # The interpreter's products of bfloat16 are wrong.
        widen = interpreted() and q.dtype == torch.bfloat16
        run(plan_attention(adjacent(q), adjacent(k8), scale, adjacent(v), out, card(q.device), widen))
    return out


def builds(which: str, capability: int) -> list[Build]:
    """Launches of `which` in the official network: views of one projection at the top level, and 81 keys."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    found = []
    for keys, kind in ((6144, torch.bfloat16), (81, torch.bfloat16), (6144, torch.float32)):
        q, k, v = empty(33, 6144, 3, 5, 64, dtype=kind).permute(2, 0, 3, 1, 4).unbind()
        k, v = k[:, :, :keys], v[:, :, :keys]
        k8, scale = empty(*k.shape, dtype=torch.int8), empty(*k.shape[:-1], dtype=torch.float32)
        if which == "attention8":
            out = empty(33, 6144, 5, 64, dtype=kind).transpose(1, 2)
            found.append(build(plan_attention(q, k8, scale, v, out, capability, False)))
        elif not found:
            mean = empty(33 * 5, 64, dtype=torch.float32)
            found += [build(one) for one in plan_keys(k, mean, k8, scale, capability)]
    return found
