"""Cross-attention on the few motion tokens of a slot, folded: two thin products around a softmax, one write.

out = x + alpha * (softmax over the m tokens of each head (LN(x) a + a_bias) b + b_bias).  What does not change during a
render, the norm's affine, the query projection and the keys, lies in `a`; values and output projection in `b`.  Exact:
only the order of products changes.  Letters: I slots, N tokens of a slot, C channels, h heads, m motion tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register, use_triton, wide
from animx_kernels.launch import MOST_PROGRAMS, power

NAME = "motion_attention"

MOST_COLUMNS = 256
"""Columns h * m (both rounded up to powers of two) that the Triton body keeps in registers."""

CPU_ROWS = 256
"""Tokens the CPU takes at once: their norm and scores stay in its cache."""


def fold_motion(
    norm_weight: Tensor,
    norm_bias: Tensor,
    to_q: Tensor,
    to_out_weight: Tensor,
    to_out_bias: Tensor,
    k: Tensor,
    v: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a [I, C, h*m], a_bias [I, h*m], b [I, h*m, C], b_bias [C]) from LN affine, projections, keys and values.

    to_q [h*d, C] and to_out [C, h*d] as `nn.Linear` holds them, k and v [I, h, m, d]; the scale d^-0.5 is in `a`.
    Computed in float32 (float64 for float64) and returned in the type of `k`.
    """
    slots, heads, tokens, d = k.shape
    kind = wide(k)
    q, out = to_q.to(kind).unflatten(0, (heads, d)), to_out_weight.to(kind).unflatten(1, (heads, d))
    raw = torch.einsum("hdc,ihmd->ichm", q, k.to(kind)).reshape(slots, -1, heads * tokens) * d**-0.5
    a = norm_weight.to(kind)[:, None] * raw
    a_bias = torch.einsum("c,ich->ih", norm_bias.to(kind), raw)
    b = torch.einsum("ihmd,chd->ihmc", v.to(kind), out).reshape(slots, heads * tokens, -1)
    return a.to(k.dtype), a_bias.to(k.dtype), b.to(k.dtype), to_out_bias.to(k.dtype)


def reference(
    x: Tensor,
    a: Tensor,
    a_bias: Tensor,
    b: Tensor,
    b_bias: Tensor,
    heads: int,
    eps: float,
    alpha: float = 1.0,
    residual: bool = True,
) -> Tensor:
    """The truth: see `motion_attention`."""
    kind, (slots, tokens, channels) = wide(x), x.shape
    a, a_bias = a.to(kind).expand(slots, -1, -1), a_bias.to(kind).expand(slots, -1)
    # Each head's softmax sums to 1, so a share of the bias in every row of b adds up to the bias.
    b = (b.to(kind) + b_bias.to(kind) / heads).expand(slots, -1, -1)
    # On the CPU few rows at a time: twice as fast, because nothing between the two products leaves the cache.
    rows = CPU_ROWS if x.device.type == "cpu" else tokens
    blocks = [slice(n, n + rows) for n in range(0, tokens, rows)]
    groups = [slice(i, i + 1) for i in range(slots)] if len(blocks) > 1 else [slice(None)]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for group in groups:
        for block in blocks:
            part = x[group, block].to(kind)
            score = torch.baddbmm(a_bias[group, None], F.layer_norm(part, (channels,), eps=eps), a[group])
            share = score.unflatten(-1, (heads, -1)).softmax(-1).flatten(-2)
            y = torch.baddbmm(part, share, b[group], beta=1 if residual else 0, alpha=alpha)
            out[group, block] = y.to(x.dtype)
    return out


def refusal(x: Tensor, a: Tensor, heads: int) -> str | None:
    """Why the Triton body does not take these shapes, or None."""
    columns = power(heads) * power(a.shape[-1] // heads)
    if columns > MOST_COLUMNS:
        return f"{heads} heads of {a.shape[-1] // heads} motion tokens: more than {MOST_COLUMNS} columns"
    return f"{x.shape[0]} slots: more than {MOST_PROGRAMS}" if x.shape[0] > MOST_PROGRAMS else None


@torch.library.custom_op("animx::motion_attention", mutates_args=())
def motion_attention(
    x: Tensor,
    a: Tensor,
    a_bias: Tensor,
    b: Tensor,
    b_bias: Tensor,
    heads: int,
    eps: float,
    alpha: float = 1.0,
    residual: bool = True,
) -> Tensor:
    """x [I, N, C] + alpha * folded attention to the motion tokens; without `residual` the second summand alone.

    a [I or 1, C, h*m], a_bias [I or 1, h*m], b [I or 1, h*m, C], b_bias [C] from `fold_motion`.  For inference: no
    gradient is registered, and asking for one is an error.
    """
    if not use_triton(NAME, x, a, a_bias, b, b_bias, refusal=refusal(x, a, heads)):
        return reference(x, a, a_bias, b, b_bias, heads, eps, alpha, residual)
    from animx_kernels import motion_attention_triton as body

    return body.forward(x, a, a_bias, b, b_bias, heads, eps, alpha, residual)


@motion_attention.register_fake
def _(x: Tensor, a: Tensor, a_bias: Tensor, b: Tensor, b_bias: Tensor, heads: int, eps: float,
      alpha: float = 1.0, residual: bool = True) -> Tensor:  # fmt: skip
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def cost(
    x: Tensor,
    a: Tensor,
    a_bias: Tensor,
    b: Tensor,
    b_bias: Tensor,
    heads: int,
    eps: float,
    alpha: float = 1.0,
    residual: bool = True,
) -> Cost:
    """One launch.  A program reads its rows of x twice; the second time they come from a cache, so they count once."""
    flops = 4 * x.numel() * a.shape[-1]
    return Cost(1, flops, nbytes(x, a, a_bias, b, b_bias), nbytes(x))


def _case(
    slots: int, tokens: int, channels: int, heads: int, motion: int, *, shared: bool = False, official: bool = False
) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        def some(i: int, scale: float, *shape: int) -> Tensor:
            return draw(shape, device, dtype, seed + i, scale)

        rows, columns = 1 if shared else slots, heads * motion
        x = some(0, 1.0, slots, tokens, channels)
        a, a_bias = some(1, channels**-0.5, rows, channels, columns), some(2, 0.5, rows, columns)
        b, b_bias = some(3, heads**-0.5, rows, columns, channels), some(4, 0.5, channels)
        return Inputs((x, a, a_bias, b, b_bias, heads, 1e-5), {})

    return Case(make, official)


def _cases() -> dict[str, Case]:
    return {
        "L0 33x6144x320": _case(33, 6144, 320, 5, 4, official=True),
        "L1 33x1536x640": _case(33, 1536, 640, 10, 4, official=True),
        "L2 33x384x1280": _case(33, 384, 1280, 20, 4, official=True),
        "small 2x40x64": _case(2, 40, 64, 2, 4),
        "odd 3x17x40": _case(3, 17, 40, 3, 3),
        "one token of motion 2x5x32": _case(2, 5, 32, 1, 1),
        "shared 2x33x32": _case(2, 33, 32, 2, 4, shared=True),
    }


def _aot(capability: int) -> list[Build]:
    from animx_kernels import motion_attention_triton as body

    return body.builds(capability)


OP = register(
    Op(
        NAME,
        motion_attention,
        reference,
        _cases,
        cost,
        _aot,
        "bytes: x is read (the second time from a cache) and written once",
    )
)
