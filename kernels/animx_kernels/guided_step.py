"""What happens to the latents after the network: guidance, blend of the windows, one DDIM step (eta 0), in one pass.

Everything that changes from step to step is a tensor, so that a captured CUDA graph takes new values.
Letters: W windows, F frames of a window, T frames of the segment, C channels, h w latent pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from animx_kernels.dispatch import Build, Case, Cost, Inputs, Op, draw, nbytes, register, use_triton, wide

NAME = "guided_step"

COEFFICIENTS = 6
"""sqrt(ac), sqrt(1 - ac), sqrt(1 / ac), sqrt(1 / ac - 1) before the step; sqrt(ac), sqrt(1 - ac) after it."""


def reference(
    x: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    scale: Tensor,
    coefficients: Tensor,
    starts: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The truth: see `guided_step`.  Its order of operations is that of the released sampler."""
    kind = x.dtype
    x, conditional, scale, coefficients, weights = (
        value.to(wide(x)) for value in (x, conditional, scale, coefficients, weights)
    )
    velocity = torch.zeros_like(x)
    frames = torch.arange(conditional.shape[2], device=x.device)
    for number in range(len(conditional)):
        v = conditional[number : number + 1]
        if unconditional is not None:
            u = unconditional[number : number + 1].to(x.dtype)
            v = u + scale * (v - u)
        share = weights[number].view(1, 1, -1, 1, 1)
        velocity.index_add_(2, starts[number] + frames, share * v)
    signal, noise, inverse, ratio, signal_after, noise_after = coefficients
    clean = signal * x - noise * velocity
    eps = (inverse * x - clean) / ratio
    return (signal_after * clean + noise_after * eps).to(kind), clean.to(kind)


@torch.library.custom_op("animx::guided_step", mutates_args=())
def guided_step(
    x: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    scale: Tensor,
    coefficients: Tensor,
    starts: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Latents after one step, and the clean latents the velocity points to; both [1, C, T, h, w].

    x [1, C, T, h, w]; velocities of the windows, conditional and unconditional (None: no guidance) [W, C, F, h, w];
    guidance scale []; coefficients [6] (`COEFFICIENTS`); starts [W] int64: first frame of each window, 0..T-F; weights
    [W, F] of the blend.  All floats of one type.  v = sum over windows of weights * (u + scale * (c - u)), at its
    frames; clean = signal x - noise v; eps = (inverse x - clean) / ratio; then signal' clean + noise' eps.
    """
    if not use_triton(NAME, x, conditional, unconditional, scale, coefficients, weights):
        return reference(x, conditional, unconditional, scale, coefficients, starts, weights)
    from animx_kernels import guided_step_triton as body

    return body.forward(x, conditional, unconditional, scale, coefficients, starts, weights)


@guided_step.register_fake
def _(x: Tensor, conditional: Tensor, unconditional: Tensor | None, scale: Tensor, coefficients: Tensor,
      starts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(
        x, memory_format=torch.contiguous_format
    )


def cost(
    x: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    scale: Tensor,
    coefficients: Tensor,
    starts: Tensor,
    weights: Tensor,
) -> Cost:
    """One launch: latents and velocities read once, latents and clean latents written."""
    small = nbytes(scale, coefficients, starts, weights)
    flops = 9 * x.numel() + conditional.numel() * (2 if unconditional is None else 5)
    return Cost(1, flops, nbytes(x, conditional, unconditional) + small, 2 * nbytes(x))


def _case(
    windows: tuple[int, ...], frames: int, clip: int, h: int, w: int, *, guided: bool = True, official: bool = False
) -> Case:
    def make(device: torch.device | str, dtype: torch.dtype, seed: int) -> Inputs:
        shape = (len(windows), 4, frames, h, w)
        x, c = draw((1, 4, clip, h, w), device, dtype, seed), draw(shape, device, dtype, seed + 1)
        u = draw(shape, device, dtype, seed + 2) if guided else None
        coefficients = torch.tensor([0.6, 0.8, 1 / 0.6, 0.8 / 0.6, 0.8, 0.6], dtype=dtype, device=device)
        starts = torch.tensor(windows, dtype=torch.int64, device=device)
        weights = draw((len(windows), frames), device, dtype, seed + 3).abs()
        return Inputs((x, c, u, torch.tensor(2.5, dtype=dtype, device=device), coefficients, starts, weights), {})

    return Case(make, official)


def _cases() -> dict[str, Case]:
    return {
        "a window of 32": _case((0,), 32, 32, 96, 64, official=True),
        "four windows of 32": _case((0, 24, 48, 72), 32, 104, 96, 64, official=True),
        "one window": _case((0,), 3, 3, 4, 5),
        "three windows, one moved back": _case((0, 3, 4), 4, 8, 3, 5),
        "unguided": _case((0, 2), 3, 5, 2, 7, guided=False),
        "one frame": _case((0,), 1, 1, 1, 1),
    }


def _aot(capability: int) -> list[Build]:
    from animx_kernels import guided_step_triton as body

    return body.builds(capability)


register(Op(NAME, guided_step, reference, _cases, cost, _aot, "launches: a step's tensors are a few megabytes"))
