"""Selective scan (Mamba) over short sequences of many pixels, in both directions of time at once.

Fused: causal depthwise convolution + SiLU, softplus of the steps, the recurrence, skip and gate.  Parameters mean what
they mean in `mamba_ssm` (Gu and Dao 2023, algorithm 2):
    x = silu(conv(u)), dt = softplus(delta + delta_bias), h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t,
    y_t = (c_t h_t + d x_t) silu(z_t).
Letters: B batch, L slots, N pixels, E channels (of both directions), S states, K taps of the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels import selective_scan_blocks
from animx_kernels.causal_conv import convolved
from animx_kernels.dispatch import (
    Build,
    Case,
    Cost,
    Inputs,
    Op,
    card,
    draw,
    mode,
    nbytes,
    register,
    tuned,
    use_triton,
    wide,
)
from animx_kernels.launch import blocks, power

NAME = "selective_scan"

MOST_TAPS = 4
"""Taps of the convolution that the Triton bodies keep in registers."""

MOST_STATES = 32
"""States a channel may have there."""


def reference(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    softplus: bool = True,
    bidirectional: bool = False,
) -> Tensor:
    """The truth, one step at a time: see `selective_scan`."""
    kind, channels, states = wide(u), u.shape[-1], a.shape[1]
    half = channels // 2 if bidirectional else channels
    found = []
    for side in range(1 + bidirectional):

        def own(x: Tensor, side: int = side) -> Tensor:
            return x[side * half : (side + 1) * half].to(kind)

        def in_time(x: Tensor, width: int, side: int = side) -> Tensor:
            x = x[..., side * width : (side + 1) * width].to(kind)
            return x.flip(1) if side else x

        x = in_time(u, half)
        if conv_weight is not None:
            x = F.silu(convolved(x, own(conv_weight), None if conv_bias is None else own(conv_bias)))
        dt = in_time(delta, half)
        dt = dt if delta_bias is None else dt + own(delta_bias)
        dt = F.softplus(dt) if softplus else dt
        bs, cs, decay = in_time(b, states), in_time(c, states), own(a)
        h = x.new_zeros(*x[:, 0].shape, states)  # [B, N, E, S]
        steps = []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t, ..., None] * decay) * h + (dt[:, t] * x[:, t])[..., None] * bs[:, t, ..., None, :]
            steps.append((h * cs[:, t, ..., None, :]).sum(-1))
        y = torch.stack(steps, dim=1) + own(d) * x
        y = y if z is None else y * F.silu(in_time(z, half))
        found.append(y.flip(1) if side else y)
    return torch.cat(found, dim=-1).to(u.dtype)


def reference_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    softplus: bool = True,
    bidirectional: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients by autograd through `reference`; it keeps every state, so for small inputs."""
    given = [u, delta, a, b, c, d, z, delta_bias, conv_weight, conv_bias]
    with torch.enable_grad():
        leaves: list[Any] = [None if x is None else x.detach().requires_grad_() for x in given]
        y = reference(*[*leaves, softplus, bidirectional])
        asked = [x for x in leaves if x is not None]
        slopes = iter(torch.autograd.grad(y, asked, grad.to(y.dtype)))
    return tuple(u.new_empty(0) if x is None else next(slopes).contiguous() for x in given)


def refusal(a: Tensor, conv_weight: Tensor | None) -> str | None:
    """Why the Triton bodies do not take these shapes, or None."""
    if a.shape[1] > MOST_STATES:
        return f"{a.shape[1]} states: more than {MOST_STATES}"
    if conv_weight is not None and conv_weight.shape[1] > MOST_TAPS:
        return f"{conv_weight.shape[1]} taps: more than {MOST_TAPS}"
    return None


@torch.library.custom_op("animx::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    softplus: bool = True,
    bidirectional: bool = False,
) -> Tensor:
    """u, delta, z [B, L, N, E]; a [E, S]; b, c [B, L, N, S]; d, biases [E]; conv_weight [E, K] -> y [B, L, N, E].

    With `bidirectional` the second half of the channels runs from the last slot to the first, with parameters of its
    own; b and c are then [B, L, N, 2 S], a half for each direction.  Nothing is flipped in memory.  Any strides, the
    last axis adjacent.  Without conv_weight `u` is used as it is; without z there is no gate.
    """
    given = (u, delta, a, b, c, d, z, delta_bias, conv_weight, conv_bias)
    if use_triton(NAME, *given, refusal=refusal(a, conv_weight)):
        from animx_kernels import selective_scan_triton as body

        return body.forward(*given, softplus, bidirectional)
    if mode() == "reference":
        return reference(*given, softplus, bidirectional).contiguous()
    return selective_scan_blocks.forward(*given, softplus, bidirectional)


@selective_scan.register_fake
def _(u: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.custom_op("animx::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    softplus: bool = True,
    bidirectional: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the ten tensors, contiguous and in their types (absent ones: empty).  States are computed anew."""
    given = (u, delta, a, b, c, d, z, delta_bias, conv_weight, conv_bias)
    if use_triton(NAME, grad, *given, refusal=refusal(a, conv_weight)):
        from animx_kernels import selective_scan_triton as body

        return body.backward(grad, *given, softplus, bidirectional)  # type: ignore[return-value]
    # In every mode: an operator's body runs below autograd, so the reference cannot be differentiated here.
    return selective_scan_blocks.backward(grad, *given, softplus, bidirectional)  # type: ignore[return-value]


@selective_scan_backward.register_fake
def _(grad: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, *rest: Any) -> Any:
    optional = [*rest, *[None] * 4][:4]
    given = [u, delta, a, b, c, d, *optional]
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if isinstance(x, Tensor) else u.new_empty(0)
        for x in given
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.softplus, ctx.bidirectional = inputs
    ctx.given = [x is not None for x in tensors]
    ctx.save_for_backward(*(x for x in tensors if x is not None))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = iter(ctx.saved_tensors)
    tensors = [next(saved) if there else None for there in ctx.given]
    slopes = selective_scan_backward(grad, *tensors, ctx.softplus, ctx.bidirectional)
    return (*(slope if there else None for slope, there in zip(slopes, ctx.given, strict=True)), None, None)


selective_scan.register_autograd(_backward, setup_context=_keep)


def cost(u: Tensor, delta: Tensor, a: Tensor, *rest: Any) -> Cost:
    """One launch: every sequence and every parameter read once, y written once."""
    conv = rest[5] if len(rest) > 5 else None
    tensors = [x for x in rest if isinstance(x, Tensor)]
    # Per channel, slot and state: the decay's product, two products and two sums; the rest per channel and slot.
    flops = u.numel() * (6 * a.shape[1] + 12 + (0 if conv is None else 2 * conv.shape[1]))
    return Cost(1, flops, nbytes(u, delta, a, *tensors), nbytes(u))


def _case(
    length: int,
    pixels: int,
    channels: int,
    states: int = 16,
    *,
    batch: int = 1,
    taps: int = 4,
    both: bool = True,
    gate: bool = True,
    softplus: bool = True,
    official: bool = False,
) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        def some(i: int, *shape: int, scale: float = 1.0) -> Tensor:
            return draw(shape, device, dtype, seed + i, scale)

        row = (batch, length, pixels)
        u, delta = some(0, *row, channels), some(1, *row, channels)
        if not softplus:
            delta = delta.abs() * 0.3
        a = -(some(2, channels, states).abs() + 0.5)
        b, c = (some(i, *row, (1 + both) * states, scale=0.5) for i in (3, 4))
        z = some(5, *row, channels) if gate else None
        bias = some(6, channels) if softplus else None
        conv = some(7, channels, taps, scale=0.5) if taps else None
        conv_bias = some(8, channels, scale=0.5) if taps else None
        return Inputs((u, delta, a, b, c, some(9, channels), z, bias, conv, conv_bias, softplus, both), {})

    return Case(make, official)


def _cases() -> dict[str, Case]:
    return {
        "L0 33x6144x1280": _case(33, 6144, 1280, official=True),
        "L1 33x1536x2560": _case(33, 1536, 2560, official=True),
        "L2 33x384x5120": _case(33, 384, 5120, official=True),
        **{f"L={n}": _case(n, 1, 16, 4, both=n in (2, 33)) for n in (1, 2, 31, 33, 64)},
        "odd, batch of 2": _case(5, 2, 2 * 9, 5, batch=2, taps=3),
        "one direction": _case(6, 2, 19, 16, both=False),
        "bare": _case(4, 2, 8, 3, taps=0, both=False, gate=False, softplus=False),
        "40 states, by the reference": _case(3, 2, 8, 40),
    }


def _backward_cases() -> dict[str, Case]:
    def with_gradient(case: Case) -> Case:
        def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
            args, _ = case.make(device, dtype, seed)
            return Inputs((draw(tuple(args[0].shape), device, dtype, seed + 19), *args), {})

        return Case(make, case.official)

    return {name: with_gradient(case) for name, case in _cases().items()}


def _aot(capability: int) -> list[Build]:
    from animx_kernels import selective_scan_triton as body

    return body.builds(capability)


def _aot_backward(capability: int) -> list[Build]:
    from animx_kernels import selective_scan_triton as body

    return body.builds_backward(capability)


def launch_backward(grad: Tensor, *given: Any) -> tuple[Cost, int]:
    """What the Triton launch of the backward pass reads and writes, and how much of it are partial sums."""
    u, delta, a, b, _, _, z, *_ = (*given, *[None] * 8)[:10]
    batch, length, pixels, channels = u.shape
    half, states = channels // (b.shape[3] // a.shape[1]), a.shape[1]
    config = tuned(f"{NAME}_backward", f"E{half} S{states}", card(u.device))
    block = min(config["CHANNELS"], power(half))
    programs, per = min(config["programs"], batch * pixels), blocks(half, block)
    # A state every CHUNK slots is left and read again by the program that owns it.
    left = 4 * channels // half * per * programs * blocks(length, config["CHUNK"]) * power(states) * block
    sums = 4 * (programs * (states + 7) * channels + per * 2 * b.numel())
    tensors = [x for x in given if isinstance(x, Tensor)]
    flops = 4 * cost(*given).flops
    return Cost(1, flops, nbytes(grad, *tensors) + left, nbytes(u, delta, z) + left + sums), sums


def cost_backward(grad: Tensor, *given: Any) -> Cost:
    """The launch, two sums of its partial sums, and a copy for each tensor these belong to."""
    launch, sums = launch_backward(grad, *given)
    a, b = given[2], given[3]
    small = [x for i, x in enumerate(given) if isinstance(x, Tensor) and i not in (0, 1, 6)]
    added = 4 * ((a.shape[1] + 7) * a.shape[0] + 2 * b.numel())
    copied = 4 * sum(x.numel() for x in small)
    return Cost(
        launch.launches + 2 + len(small),
        launch.flops + sums // 4,
        launch.bytes_read + sums + copied,
        launch.bytes_written + added + nbytes(*small),
    )


NOTE = "exponentials: E * S a slot and pixel (on the special-function units), about as long as its bytes"

register(Op(NAME, selective_scan, reference, _cases, cost, _aot, NOTE, gradients=tuple(range(10))))
register(
    Op(
        f"{NAME}_backward",
        selective_scan_backward,
        reference_backward,
        _backward_cases,
        cost_backward,
        _aot_backward,
        NOTE,
    )
)
