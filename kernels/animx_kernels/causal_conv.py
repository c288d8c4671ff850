"""Depthwise convolution over time and SiLU on token-major activations, forwards and backwards in time at once.

u [B, L, N, E] -> silu(conv(u)) of the same shape: what Mamba's step sizes and state matrices are projected from, and
what its scan runs over.  Each channel is convolved by itself, causally: slot t sees t, t-1, ... t-K+1, zeros before
the clip.  With `bidirectional` the second half of the channels sees t, t+1, ... t+K-1 instead.  Nothing is flipped or
padded in memory: one read, one write.  Letters as in `selective_scan`; K taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, card, draw, nbytes, register, tuned, use_triton, wide
from animx_kernels.launch import MOST_PROGRAMS, blocks, power

NAME = "causal_conv_silu"

MOST_TAPS = 4
"""Taps that the Triton bodies keep in registers."""


def convolved(u: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool = False) -> Tensor:
    """Depthwise convolution over L, causal or (`reverse`) anti-causal: u [B, L, ..., E], weight [E, K], bias [E]."""
    taps, length = weight.shape[1], u.shape[1]
    edge = (0, taps - 1) if reverse else (taps - 1, 0)
    padded = F.pad(u, (0, 0) * (u.ndim - 2) + edge)
    starts = range(taps - 1, -1, -1) if reverse else range(taps)
    out = sum(weight[:, k] * padded[:, start : start + length] for k, start in enumerate(starts))
    return out if bias is None else out + bias  # type: ignore[return-value]


def _sides(channels: int, bidirectional: bool) -> list[slice]:
    half = channels // 2
    return [slice(0, half), slice(half, channels)] if bidirectional else [slice(0, channels)]


def reference(u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False) -> Tensor:
    """The truth: see `causal_conv_silu`."""
    kind = wide(u)
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    for reverse, own in enumerate(_sides(u.shape[-1], bidirectional)):
        shift = None if bias is None else bias[own].to(kind)
        out[..., own] = F.silu(convolved(u[..., own].to(kind), weight[own].to(kind), shift, bool(reverse)))
    return out


def reference_backward(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, of the weight and of the bias (empty without one)."""
    kind, taps = wide(u), weight.shape[1]
    du = torch.empty_like(u, memory_format=torch.contiguous_format)
    dweight = torch.empty_like(weight, dtype=kind, memory_format=torch.contiguous_format)
    dbias = u.new_empty(0 if bias is None else u.shape[-1], dtype=kind)
    for reverse, own in enumerate(_sides(u.shape[-1], bidirectional)):
        raw, w = u[..., own].to(kind), weight[own].to(kind)
        pre = convolved(raw, w, None if bias is None else bias[own].to(kind), bool(reverse))
        share = torch.sigmoid(pre)
        slope = grad[..., own].to(kind) * share * (1 + pre * (1 - share))
        # What flows back runs against the direction of the convolution.
        du[..., own] = convolved(slope, w, None, not reverse)
        for lag in range(taps):
            later, earlier = slice(lag, None), slice(0, max(u.shape[1] - lag, 0))
            to, of = (earlier, later) if reverse else (later, earlier)
            dweight[own, taps - 1 - lag] = (slope[:, to] * raw[:, of]).sum((0, 1, 2))
        if bias is not None:
            dbias[own] = slope.sum((0, 1, 2))
    return du, dweight.to(weight.dtype), dbias.to(dbias.dtype if bias is None else bias.dtype)


def refusal(u: Tensor, weight: Tensor) -> str | None:
    """Why the Triton bodies do not take these shapes, or None."""
    if weight.shape[1] > MOST_TAPS:
        return f"{weight.shape[1]} taps: more than {MOST_TAPS}"
    return f"batch of {u.shape[0]}: more than {MOST_PROGRAMS}" if u.shape[0] > MOST_PROGRAMS else None


@torch.library.custom_op("animx::causal_conv_silu", mutates_args=())
def causal_conv_silu(u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False) -> Tensor:
    """silu(convolution over L + bias): u [B, L, N, E], weight [E, K], the newest slot last, bias [E] -> [B, L, N, E].

    With `bidirectional` the second half of the channels runs backwards in time.  u may have any strides with the
    channels adjacent; the result is contiguous.
    """
    if use_triton(NAME, u, weight, bias, refusal=refusal(u, weight)):
        from animx_kernels import causal_conv_triton as body

        return body.forward(u, weight, bias, bidirectional)
    return reference(u, weight, bias, bidirectional)


@causal_conv_silu.register_fake
def _(u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False) -> Tensor:
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.custom_op("animx::causal_conv_silu_backward", mutates_args=())
def causal_conv_silu_backward(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, weight and bias (empty without one); the convolution is computed anew."""
    if use_triton(NAME, grad, u, weight, bias, refusal=refusal(u, weight)):
        from animx_kernels import causal_conv_triton as body

        return body.backward(grad, u, weight, bias, bidirectional)
    return reference_backward(grad, u, weight, bias, bidirectional)


@causal_conv_silu_backward.register_fake
def _(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    plain = torch.contiguous_format
    dbias = u.new_empty(0, dtype=wide(u)) if bias is None else torch.empty_like(bias, memory_format=plain)
    return torch.empty_like(u, memory_format=plain), torch.empty_like(weight, memory_format=plain), dbias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, weight, bias, ctx.bidirectional = inputs
    ctx.save_for_backward(u, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    u, weight, bias = ctx.saved_tensors
    du, dweight, dbias = causal_conv_silu_backward(grad, u, weight, bias, ctx.bidirectional)
    return du, dweight, None if bias is None else dbias, None


causal_conv_silu.register_autograd(_backward, setup_context=_keep)


def cost(u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False) -> Cost:
    """One launch: u and the parameters read once, the result written once."""
    return Cost(1, 0, nbytes(u, weight, bias), nbytes(u))


def partial_shape(u: Tensor, bidirectional: bool, capability: int) -> tuple[int, int, int]:
    """Sums of the backward launch: [programs, taps and bias, E]."""
    config = tuned(f"{NAME}_backward", f"E{u.shape[-1] // (1 + bidirectional)}", capability)
    rows = u.shape[0] * blocks(u.shape[2], min(config["PIXELS"], power(u.shape[2])))
    return min(config["programs"], rows), MOST_TAPS + 1, u.shape[-1]


def launch_backward(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False
) -> tuple[Cost, int]:
    """What the Triton launch of the backward pass reads and writes, and how much of it are partial sums."""
    programs, rows, channels = partial_shape(u, bidirectional, card(u.device))
    sums = 4 * programs * rows * channels
    return Cost(1, 0, nbytes(grad, u, weight, bias), nbytes(u) + sums), sums


def cost_backward(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None = None, bidirectional: bool = False
) -> Cost:
    """The launch, the sum of its partial sums, and a copy of that for the weight and for the bias."""
    launch, sums = launch_backward(grad, u, weight, bias, bidirectional)
    added = 4 * (MOST_TAPS + 1) * u.shape[-1]
    small = [weight] if bias is None else [weight, bias]
    copied = 4 * sum(x.numel() for x in small)
    return Cost(
        launch.launches + 1 + len(small), 0, launch.bytes_read + sums + copied,
        launch.bytes_written + added + nbytes(*small),
    )  # fmt: skip


def _case(
    length: int,
    pixels: int,
    channels: int,
    *,
    batch: int = 1,
    taps: int = 4,
    both: bool = True,
    biased: bool = True,
    view: bool = False,
    official: bool = False,
) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        u = draw((batch, length, pixels, (1 + view) * channels), device, dtype, seed)[..., :channels]
        weight, bias = draw((channels, taps), device, dtype, seed + 1, 0.5), draw((channels,), device, dtype, seed + 2)
        return Inputs((u, weight, bias if biased else None, both), {})

    return Case(make, official)


def _cases() -> dict[str, Case]:
    return {
        "L0 33x6144x1280": _case(33, 6144, 1280, view=True, official=True),
        "L2 33x384x5120": _case(33, 384, 5120, view=True, official=True),
        "a view, both directions": _case(5, 3, 2 * 9, batch=2, view=True),
        **{f"L={n}": _case(n, 2, 16) for n in (1, 2, 31, 33, 64)},
        "odd, one direction, three taps": _case(4, 5, 19, taps=3, both=False),
        "one tap, no bias": _case(3, 1, 8, taps=1, biased=False),
        "five taps, by the reference": _case(6, 1, 8, taps=5),
    }


def _backward_cases() -> dict[str, Case]:
    def with_gradient(case: Case) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            args, _ = case.make(device, dtype, seed)
            return Inputs((draw(tuple(args[0].shape), device, dtype, seed + 9), *args), {})

        return Case(make, case.official)

    return {name: with_gradient(case) for name, case in _cases().items()}


def _aot(capability: int) -> list[Build]:
    from animx_kernels import causal_conv_triton as body

    return body.builds(capability)


def _aot_backward(capability: int) -> list[Build]:
    from animx_kernels import causal_conv_triton as body

    return body.builds_backward(capability)


NOTE = "memory: one read, one write"

register(Op(NAME, causal_conv_silu, reference, _cases, cost, _aot, NOTE, gradients=(0, 1, 2)))
register(
    Op(
        f"{NAME}_backward",
        causal_conv_silu_backward,
        reference_backward,
        _backward_cases,
        cost_backward,
        _aot_backward,
        "memory: two reads, one write; sums of weight and bias in parts",
    )
)
