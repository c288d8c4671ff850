"""`animx bench unet`: one forward pass of the network in its several forms, on random weights.

Forms: `released` (the released operator sequence, constants anew in every pass), `plain` (ours, constants prepared),
`fused` (token-major, on the fused operators), `fp8` (that with its large linears and attentions in 8 bits; emulated
where the device has no such units), `compile` (the plain one's parts through torch.compile).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from animx.bench import CheckError
from animx.counting.released import released_velocity
from animx.counting.stacks import SIZES
from animx.diffusion.precision import obstacles
from animx.diffusion.tiny import fill
from animx.errors import UsageError, nearest
from animx.measuring.timing import SCHEMA, error_of, in_turns, surroundings
from animx.model.conditions import Inputs
from animx.model.eight_bit import EightBit, eight_bit
from animx.model.unet import AnimateXUNet

FORMS = ("released", "plain", "fused", "fp8", "compile")
TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Allowed error of a pass relative to float64 (tiny), or to float32 (official)."""
TOLERANCE8 = 0.15
"""The same for `fp8`, whose numbers are others by intent: six times what it is off on random weights is an error."""


def random_unet(size: str, seed: int = 0) -> AnimateXUNet:
    """The network of a size (`tiny`, `official`) with random weights, in evaluation mode."""
    unet = AnimateXUNet.build(SIZES[size][0])
    fill(unet, torch.Generator().manual_seed(seed))
    return unet.eval().requires_grad_(False)


def random_inputs(unet: AnimateXUNet, frames: int, latent: tuple[int, int], seed: int = 1) -> Inputs:
    """Random conditions of a clip, for one window."""
    g, slots, width = torch.Generator().manual_seed(seed), frames + 1, unet.shape.context_dim
    size = (8 * latent[0], 8 * latent[1])

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    return Inputs(
        image=some(1, 1, width),
        local_image=some(1, 3, 1, *size),
        dwpose=some(1, 3, slots, *size),
        keypoints=some(1, slots, 2, 18),
        clip=some(1, slots, width),
    )


def bench_unet(
    size: str = "tiny",
    forms: Sequence[str] = ("released", "plain", "fused"),
    *,
    frames: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Check, then time, passes of one window.  Ratios are named `form_over_plain`.

    frames: of the window; 0 = 32 for the official size, 4 for the tiny one.  Errors: `UsageError`; `CheckError` where a
    form's result is off.
    """
    for form in forms:
        if form not in FORMS:
            raise UsageError(f"--providers {form}: unknown.{nearest(form, FORMS)} Known: {', '.join(FORMS)}")
    place, kind = torch.device(device), getattr(torch, dtype)
    if size == "official" and place.type == "cpu":
        raise UsageError("bench unet --size official: takes hours on a CPU. Use --size tiny, or --device cuda")
    width, height = SIZES[size][1]
    latent, frames = (height // 8, width // 8), frames or (32 if size == "official" else 4)
    with torch.no_grad():
        unet = random_unet(size)
        inputs = random_inputs(unet, frames, latent)
        x = torch.randn(1, 4, frames, *latent, generator=torch.Generator().manual_seed(2))
        wide = torch.float32 if size == "official" else torch.float64
        truth = _truth(unet, x, inputs, latent, place, wide)
        nn.Module.to(unet, device=place, dtype=kind)  # the library's own `to` talks to stderr
        calls, missing = _calls(unet, x.to(place, kind), inputs.to(place, kind), latent, forms)
        errors = {name: error_of(call(), truth) for name, call in calls.items()}
        allowed = TOLERANCE[kind]
        wrong = [
            f"{name} is off by {error:.2g}, allowed is {most:g}"
            for name, error in errors.items()
            if not error <= (most := max(allowed, TOLERANCE8) if name == "fp8" else allowed)
        ]
        if wrong:
            raise CheckError(f"bench unet: {'; '.join(wrong)}; no speed is shown")
        spreads = in_turns(calls, place, seconds, 200)
    base = spreads.get("plain")
    ratios = {f"{n}_over_plain": round(s.median / base.median, 3) for n, s in spreads.items() if n != "plain"} if (
        base) else {}  # fmt: skip
    return {
        "bench": "unet",
        "schema": SCHEMA,
        "ratios": ratios,
        "times": {name: spread.as_json() for name, spread in spreads.items()},
        "errors": {name: float(f"{error:.3g}") for name, error in errors.items()},
        "unavailable": missing,
        "emulated": [why for why in obstacles(place, unet.shape).values() if why] if "fp8" in forms else [],
        "setting": {"size": size, "frames": frames, "canvas": f"{width}x{height}", "dtype": dtype,
                    "weights": "random weights"},
        **surroundings(place),
    }  # fmt: skip


def _truth(
    unet: AnimateXUNet, x: Tensor, inputs: Inputs, latent: tuple[int, int], device: torch.device, kind: torch.dtype
) -> Tensor:
    nn.Module.to(unet, device=device, dtype=kind)
    conditions = unet.encode(inputs.to(device, kind), frames=x.shape[2], latent=latent, fold=False)
    out: Tensor = unet(x.to(device, kind), torch.tensor([500], device=device), conditions)
    return out


def _calls(
    unet: AnimateXUNet, x: Tensor, inputs: Inputs, latent: tuple[int, int], forms: Sequence[str]
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    t = torch.tensor([500], device=x.device)
    conditions, times = unet.encode(inputs, frames=x.shape[2], latent=latent), unet.times([500])
    calls: dict[str, Callable[[], Tensor]] = {}
    missing: dict[str, str] = {}
    for form in forms:
        if form == "released":
            assert inputs.local_image is not None
            picture = inputs.local_image.expand(-1, -1, x.shape[2], -1, -1)  # as the released loader repeats it
            given = replace(inputs, local_image=picture)
            calls[form] = lambda given=given: released_velocity(unet, x, t, given)  # type: ignore[misc]
        elif form == "plain":
            calls[form] = lambda: unet(x, t, conditions, times)
        elif form == "fused":
            from animx.model.fused import FusedUNet

            fused = FusedUNet(unet)
            calls[form] = lambda fused=fused: fused(x, t, conditions, times)  # type: ignore[misc]
        elif form == "fp8":
            from animx.model.fused import FusedUNet

            eight = FusedUNet(eight_bit(unet, EightBit(linears=True, attention=True), share=True))
            calls[form] = lambda eight=eight: eight(x, t, conditions, times)  # type: ignore[misc]
        else:
            from animx.model.compiled import compile_parts

            try:
                compiled = compile_parts(unet)
                compiled(x, t, conditions, times)
            except Exception as problem:  # a compiler that is not there, or fails
                missing[form] = f"{type(problem).__name__}: {str(problem).splitlines()[0][:120]}"
                continue
            calls[form] = lambda compiled=compiled: compiled(x, t, conditions, times)  # type: ignore[misc]
    return calls, missing
