"""What is measured of an operator: its inputs by name, and the same by PyTorch's own modules.

`subjects` gives the operator's own cases and the shapes of the claims about CPUs.  This file is also run beside the
operators of an older commit (`base_worker`), so it takes little from `animx_kernels`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Inputs, Op, draw

SHAPES = ("small", "claims", "official")
SCAN = "1x33x512x640, 16 states"
"""The shape of the claim about the scan."""


@dataclass
class Subject:
    """An operator at one shape."""

    op: Op
    shape: str
    inputs: Inputs
    eager: Callable[[], Any] | None = None
    """The same by PyTorch's own modules."""


def subjects(op: Op, shapes: Sequence[str], device: torch.device, dtype: torch.dtype) -> Iterator[Subject]:
    """The operator at the shapes of these kinds: `small` and odd ones, `official` ones, CPU `claims`."""
    yield from (make() for make in makers(op, shapes, device, dtype).values())


def makers(op: Op, shapes: Sequence[str], device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Subject]]:
    """The same by name, each made when it is called for."""
    found: dict[str, Callable[[], Subject]] = {}

    def drawn(name: str) -> Subject:
        inputs = op.cases()[name].make(device, dtype, 0)
        return Subject(op, name, inputs, _eager(op.name, inputs))

    for name, case in op.cases().items():
        if ("official" if case.official else "small") in shapes:
            found[name] = partial(drawn, name)
    if "claims" in shapes and op.name == "motion_attention":
        for channels in (320, 640, 1280):
            found[f"4x1536x{channels}"] = partial(_motion, op, channels, device, dtype)
    if "claims" in shapes and op.name == "selective_scan":
        found[SCAN] = partial(_scan, op, device, dtype)
    return found


def _motion(op: Op, channels: int, device: torch.device, dtype: torch.dtype) -> Subject:
    """4 slots of 1536 tokens; eager: layer norm, query projection, attention to 4 tokens, projection, residual."""
    heads, slots = channels // 64, 4

    def some(seed: int, scale: float, *shape: int) -> Tensor:
        return draw(shape, device, dtype, seed, scale)

    x, shift, bias = some(0, 1, slots, 1536, channels), some(2, 0.2, channels), some(5, 1, channels)
    norm = 1 + some(1, 0.2, channels)
    to_q, to_out = (some(seed, channels**-0.5, channels, channels) for seed in (3, 4))
    k, v = some(6, 1, slots, heads, 4, 64), some(7, 1, slots, heads, 4, 64)
    from animx_kernels.motion_attention import fold_motion

    folded = fold_motion(norm, shift, to_q, to_out, bias, k, v)

    def eager() -> Tensor:
        q = torch.unflatten(F.linear(F.layer_norm(x, (channels,), norm, shift), to_q), -1, (heads, -1)).transpose(1, 2)
        return x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2), to_out, bias)

    return Subject(op, f"4x1536x{channels}", Inputs((x, *folded, heads, 1e-5), {}), eager)


def _scan(op: Op, device: torch.device, dtype: torch.dtype) -> Subject:
    """512 pixels of 33 slots, 640 channels, 16 states, one direction; the reference is the loop over time."""

    def some(seed: int, *shape: int) -> Tensor:
        return draw(shape, device, dtype, seed)

    u, z = some(0, 1, 33, 512, 640), some(1, 1, 33, 512, 640)
    delta = (some(2, 1, 33, 512, 640).float().abs() * 0.1).to(dtype)
    a = -torch.arange(1, 17, device=device, dtype=torch.float32).expand(640, -1).contiguous()
    b, c = some(3, 1, 33, 512, 16), some(4, 1, 33, 512, 16)
    arguments = (u, delta, a, b, c, some(5, 640), z, None, None, None, False, False)
    return Subject(op, SCAN, Inputs(arguments, {}))


def _eager(name: str, inputs: Inputs) -> Callable[[], Any] | None:
    """The operator by PyTorch's own modules, in the layout they like; None where they have nothing of the kind."""
    given = (*inputs.args, *inputs.kwargs.values())
    if name == "geglu":
        (x,) = given
        return lambda: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1])
    if name == "geglu_linear":
        x, weight, bias = given

        def gated() -> Tensor:
            value, gate = F.linear(x, weight, bias).chunk(2, -1)
            return value * F.gelu(gate)

        return gated
    if name == "layer_norm":
        x, weight, bias, eps = given
        return lambda: F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if name == "add_layer_norm":
        x, residual, weight, bias, eps = given

        def added() -> tuple[Tensor, Tensor]:
            total = x + residual
            return total, F.layer_norm(total, x.shape[-1:], weight, bias, eps)

        return added
    if name == "temporal_attention":
        q, k, v, heads = given

        def attended() -> Tensor:
            rows = [t.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4).contiguous() for t in (q, k, v)]
            return F.scaled_dot_product_attention(*rows).permute(0, 3, 1, 2, 4).flatten(-2).contiguous()

        return attended
    return None


def widened(inputs: Inputs) -> Inputs:
    """The same arguments with every floating-point tensor in float64."""

    def widen(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return Inputs(tuple(map(widen, inputs.args)), {name: widen(value) for name, value in inputs.kwargs.items()})


def several(found: Any) -> tuple[Tensor, ...]:
    """One result or several, as several."""
    return tuple(found) if isinstance(found, tuple | list) else (found,)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within, memory of new tensors is full of NaN until it is written."""
    memory: Any = torch.utils.deterministic
    fill, strict = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    memory.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(strict, warn_only=warn)


def digest(inputs: Inputs) -> str:
    """Short text that is another one for other arguments: shapes, strides, types, and a sample of the numbers."""
    told: list[str] = []
    for value in (*inputs.args, *inputs.kwargs.values()):
        if not isinstance(value, Tensor):
            told.append(repr(value))
            continue
        step = max(1, value.numel() // 256)
        few = value.flatten()[::step] if value.is_contiguous() else value[..., :1].flatten()[:256]
        told.append(f"{value.dtype} {tuple(value.shape)} {value.stride()} {few.double().cpu().tolist()}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
