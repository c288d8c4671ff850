"""Triton body of `guided_step`: one pass over the latents, each element through the windows of its frame."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from animx_kernels.dispatch import Build, card, tuned
from animx_kernels.launch import Launch, blocks, build, run


@triton.jit
def guided_step_kernel(  # type: ignore[no-untyped-def]
    x, conditional, unconditional, scale, coefficients, starts, weights, out, clean,
    count, clip, frames, area, channels, windows,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, out, clean [channels, clip, area]; velocities [windows, channels, frames, area]; all contiguous."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    pixel = at % area
    frame = at // area % clip
    channel = at // area // clip
    factor = tl.load(scale).to(tl.float32)
    velocity = tl.zeros([BLOCK], tl.float32)
    for number in range(windows):
        own = frame - tl.load(starts + number)
        here = inside & (own >= 0) & (own < frames)
        place = ((number * channels + channel) * frames + own) * area + pixel
        v = tl.load(conditional + place, here, 0).to(tl.float32)
        if GUIDED:
            u = tl.load(unconditional + place, here, 0).to(tl.float32)
            v = u + factor * (v - u)
        velocity += tl.load(weights + number * frames + own, here, 0).to(tl.float32) * v
    before = tl.load(x + at, inside, 0).to(tl.float32)
    pointed = tl.load(coefficients).to(tl.float32) * before - tl.load(coefficients + 1).to(tl.float32) * velocity
    eps = (tl.load(coefficients + 2).to(tl.float32) * before - pointed) / tl.load(coefficients + 3).to(tl.float32)
    after = tl.load(coefficients + 4).to(tl.float32) * pointed + tl.load(coefficients + 5).to(tl.float32) * eps
    tl.store(out + at, after.to(out.dtype.element_ty), inside)
    tl.store(clean + at, pointed.to(clean.dtype.element_ty), inside)


def plan(
    x: Tensor, conditional: Tensor, unconditional: Tensor | None, scale: Tensor, coefficients: Tensor, starts: Tensor,
    weights: Tensor, out: Tensor, clean: Tensor, capability: int,
) -> Launch:  # fmt: skip
    """All contiguous."""
    windows, channels, frames, *_ = conditional.shape
    config = tuned("guided_step", "default", capability)
    values: dict[str, Any] = {"x": x, "conditional": conditional, "unconditional": unconditional, "scale": scale}
    values |= {"coefficients": coefficients, "starts": starts, "weights": weights, "out": out, "clean": clean}
    values |= {"count": x.numel(), "clip": x.shape[2], "frames": frames, "area": x.shape[3] * x.shape[4]}
    values |= {"channels": channels, "windows": windows}
    constants = {"GUIDED": unconditional is not None, "BLOCK": config["elements"]}
    grid = (blocks(x.numel(), config["elements"]),)
    return Launch(guided_step_kernel, grid, values, constants, config["num_warps"], 1)


def forward(
    x: Tensor, conditional: Tensor, unconditional: Tensor | None, scale: Tensor, coefficients: Tensor, starts: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `guided_step.guided_step`."""
    out, clean = x.new_empty(x.shape), x.new_empty(x.shape)
    if out.numel():
        u = None if unconditional is None else unconditional.contiguous()
        rest = (scale.contiguous(), coefficients.contiguous(), starts.contiguous(), weights.contiguous())
        run(plan(x.contiguous(), conditional.contiguous(), u, *rest, out, clean, card(x.device)))
    return out, clean


def builds(capability: int) -> list[Build]:
    """The launch at full size, four windows, float32 as the sampler keeps its latents."""
    x, v = (torch.empty(n, 4, f, 96, 64, device="meta") for n, f in ((1, 104), (4, 32)))
    scale, coefficients, weights = (torch.empty(shape, device="meta") for shape in ((), (6,), (4, 32)))
    starts = torch.empty(4, dtype=torch.int64, device="meta")
    return [build(plan(x, v, v, scale, coefficients, starts, weights, x, x, capability))]
