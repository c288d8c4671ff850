"""Self-attention over the slots of one pixel, read and written where the tensors lie: no transposes, no copies.

Sequences are short (frames + 1, at most 64 in the Triton body) and many (pixels * heads), so a sequence's whole score
matrix lives in registers and the backward pass computes it anew instead of keeping statistics.
Letters: B batch, T slots, N pixels, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register, use_triton, wide
from animx_kernels.launch import MOST_PROGRAMS, power

NAME = "temporal_attention"

MOST_SLOTS = 64
"""Slots whose scores fit a program's registers; more go to the reference."""

MOST_WIDTH = 128
"""Head width, likewise."""

MOST_BYTES = 16384
"""Bytes of one head's slots, both axes rounded up: four such tiles and the scores fit the 99 KiB of an sm_89."""


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4)  # [B, N, h, T, d], a view


def _join(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2, 4).flatten(-2)  # [B, T, N, h*d]


def reference(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The truth: see `temporal_attention`."""
    qs, ks, vs = (_split(x.to(wide(q)), heads) for x in (q, k, v))
    return _join(F.scaled_dot_product_attention(qs, ks, vs)).to(q.dtype).contiguous()


def reference_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v by the formulas the Triton body uses."""
    g, qs, ks, vs = (_split(x.to(wide(q)), heads) for x in (grad, q, k, v))
    scale = qs.shape[-1] ** -0.5
    share = (qs @ ks.transpose(-1, -2) * scale).softmax(-1)  # [B, N, h, T, T]
    toward = g @ vs.transpose(-1, -2)
    score = share * (toward - (toward * share).sum(-1, keepdim=True)) * scale
    found = (score @ ks, score.transpose(-1, -2) @ qs, share.transpose(-1, -2) @ g)
    return tuple(_join(x).to(q.dtype).contiguous() for x in found)  # type: ignore[return-value]


def refusal(q: Tensor, heads: int) -> str | None:
    """Why the Triton body does not take these shapes, or None."""
    if q.shape[1] > MOST_SLOTS:
        return f"{q.shape[1]} slots: more than {MOST_SLOTS}"
    if q.shape[-1] // heads > MOST_WIDTH:
        return f"head width {q.shape[-1] // heads}: more than {MOST_WIDTH}"
    tile = power(q.shape[1], 16) * power(q.shape[-1] // heads, 16) * q.element_size()
    if tile > MOST_BYTES:
        return f"{q.shape[1]} slots of width {q.shape[-1] // heads} in {q.dtype}: too much shared memory"
    return f"batch of {q.shape[0]}: more than {MOST_PROGRAMS}" if q.shape[0] > MOST_PROGRAMS else None


@torch.library.custom_op("animx::temporal_attention", mutates_args=())
def temporal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax(q k^T d^-0.5) v over T for each pixel and head; q, k, v [B, T, N, h*d] -> [B, T, N, h*d], contiguous.

    Any strides, the last dimension contiguous: the three may be views of one projection.
    """
    if not use_triton(NAME, q, k, v, refusal=refusal(q, heads)):
        return reference(q, k, v, heads)
    from animx_kernels import temporal_attention_triton as body

    return body.forward(q, k, v, heads)


@temporal_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.custom_op("animx::temporal_attention_backward", mutates_args=())
def temporal_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous, from the gradient of the result."""
    if not use_triton(NAME, grad, q, k, v, refusal=refusal(q, heads)):
        return reference_backward(grad, q, k, v, heads)
    from animx_kernels import temporal_attention_triton as body

    return body.backward(grad, q, k, v, heads)


@temporal_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.heads = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*temporal_attention_backward(grad, *ctx.saved_tensors, ctx.heads), None)


temporal_attention.register_autograd(_backward, setup_context=_keep)


def cost(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Cost:
    """One launch: q, k, v read once, the result written once."""
    batch, slots, pixels, width = q.shape
    return Cost(1, 4 * batch * pixels * slots * slots * width, nbytes(q, k, v), nbytes(q))


def cost_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Cost:
    """One launch: four tensors read once, three written; the shares are computed anew."""
    batch, slots, pixels, width = q.shape
    return Cost(1, 10 * batch * pixels * slots * slots * width, nbytes(grad, q, k, v), nbytes(q, k, v))


def _case(
    batch: int, slots: int, pixels: int, heads: int, d: int, *, fused: bool = False, official: bool = False
) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        width = heads * d
        if fused:  # views of one projection, and of a tensor that is not contiguous
            qkv = draw((batch, pixels, slots, 3 * width), device, dtype, seed).transpose(1, 2)
            return Inputs((*qkv.split(width, dim=-1), heads), {})
        return Inputs((*(draw((batch, slots, pixels, width), device, dtype, seed + i) for i in range(3)), heads), {})

    return Case(make, official)


def _cases() -> dict[str, Case]:
    short = {f"T={t}": _case(1, t, 2, 1, 16) for t in (1, 2, 31, 33, 64)}
    return {
        "L0 33x6144x320": _case(1, 33, 6144, 5, 64, official=True),
        "L1 33x1536x640": _case(1, 33, 1536, 10, 64, official=True),
        "L2 33x384x1280": _case(1, 33, 384, 20, 64, official=True),
        **short,
        "odd 2x5x3, 3 heads of 24": _case(2, 5, 3, 3, 24),
        "fused views": _case(2, 9, 5, 2, 16, fused=True),
        "long, by the reference": _case(1, 70, 2, 1, 16),
    }


def _backward_cases() -> dict[str, Case]:
    def with_gradient(case: Case) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            (q, *rest), _ = case.make(device, dtype, seed)
            return Inputs((draw(tuple(q.shape), device, dtype, seed + 9), q, *rest), {})

        return Case(make, case.official)

    return {name: with_gradient(case) for name, case in _cases().items()}


def _builds(which: str) -> Callable[[int], list[Build]]:
    def make(capability: int) -> list[Build]:
        from animx_kernels import temporal_attention_triton as body

        return body.builds(which, capability)

    return make


NOTE = "bytes: rows of one head (2 d bytes each) at the stride of a slot"

register(Op(NAME, temporal_attention, reference, _cases, cost, _builds(""), NOTE, gradients=(0, 1, 2)))
register(
    Op(
        f"{NAME}_backward",
        temporal_attention_backward,
        reference_backward,
        _backward_cases,
        cost_backward,
        _builds("_backward"),
        NOTE,
    )
)
