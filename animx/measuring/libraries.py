"""Who else has one of our operators: other people's kernels as `animx bench ops --providers library` runs them.

Each is called through the interface its project documents, on inputs laid out as it wants them before the clock starts
and with its result turned back after: it is measured at its best.  One that is not there is named with the line that
gets it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from animx_kernels.dispatch import Inputs
from animx_kernels.providers import arguments_of


class Way(NamedTuple):
    """A library's way, ready to be timed."""

    call: Callable[[], Any]
    back: Callable[[Any], Any]
    """What `call` returned, in the operator's layout."""


@dataclass(frozen=True)
class Library:
    """Somebody else's kernel for one of our operators."""

    name: str
    """The project."""
    module: str | None
    """What must be importable; None = it comes with PyTorch."""
    get: str
    """The line that installs it."""
    cuda_only: bool
    prepare: Callable[..., Way | str] | None
    """Takes the operator's arguments, all of them; returns why not where it does not take these.  None where it is no
    way to compute the same."""
    but: str = ""
    """Why not, where it is none."""

    def missing(self, device: torch.device) -> str | None:
        """Why it does not run here, or None."""
        if self.prepare is None:
            return f"{self.name}: {self.but}"
        if self.cuda_only and device.type != "cuda":
            return f"{self.name} runs on CUDA only"
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return f"{self.name} is not installed. Run: {self.get}"
        return None


def way(operator: str, inputs: Inputs, device: torch.device) -> Way | str:
    """The library's way to compute the operator on these inputs, or why there is none."""
    library = LIBRARIES.get(operator)
    if library is None:
        return "no library that we know has this operator"
    reason = library.missing(device)
    if reason is not None:
        return reason
    assert library.prepare is not None
    return library.prepare(*arguments_of(operator, inputs.args, inputs.kwargs))


def _mamba(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor | None, delta_bias: Tensor | None,
    conv_weight: Tensor | None, conv_bias: Tensor | None, softplus: bool, bidirectional: bool,
) -> Way | str:  # fmt: skip
    """`selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)`: u, delta, z (batch, E, L), A (E, N),
    B, C (batch, N, L); A, D and the bias in float32.  One call for each direction of time.

    The convolution: `causal_conv1d_fn(x, weight, bias, activation="silu")` where that package is, else PyTorch's.
    """
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    fused = importlib.util.find_spec("causal_conv1d") is not None
    convolve: Callable[..., Tensor] = importlib.import_module("causal_conv1d").causal_conv1d_fn if fused else _convolved
    sides, batch, pixels = 1 + bidirectional, u.shape[0], u.shape[2]

    def laid(x: Tensor | None, side: int) -> Tensor | None:
        """[B, L, N, sides * E] as (B * N, E, L), in the direction's own order of time."""
        if x is None:
            return None
        part = x.chunk(sides, -1)[side].permute(0, 2, 3, 1).flatten(0, 1)
        return (part.flip(2) if side else part).contiguous()

    def own(x: Tensor | None, side: int) -> Tensor | None:
        return None if x is None else x.chunk(sides, 0)[side].contiguous()

    def single(x: Tensor | None, side: int) -> Tensor | None:
        part = own(x, side)
        return None if part is None else part.float()

    ready = [
        (laid(u, i), laid(delta, i), single(a, i), laid(b, i), laid(c, i), single(d, i), laid(z, i),
         single(delta_bias, i), own(conv_weight, i), own(conv_bias, i))
        for i in range(sides)
    ]  # fmt: skip

    def call() -> list[Tensor]:
        found = []
        for x, step, rates, bs, cs, skip, gate, bias, weight, shift in ready:
            active = x if weight is None else convolve(x, weight, shift, activation="silu")
            found.append(scan(active, step, rates, bs, cs, skip, z=gate, delta_bias=bias, delta_softplus=softplus))
        return found

    def back(found: list[Tensor]) -> Tensor:
        turned = [y.flip(2) if i else y for i, y in enumerate(found)]
        return torch.cat([torch.unflatten(y, 0, (batch, pixels)).permute(0, 3, 1, 2) for y in turned], -1).contiguous()

    return Way(call, back)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Causal depthwise convolution of x (batch, E, L) and SiLU, by PyTorch."""
    taps = weight.shape[1]
    return F.silu(F.conv1d(F.pad(x, (taps - 1, 0)), weight[:, None], bias, groups=len(weight)))


def _convolution(u: Tensor, weight: Tensor, bias: Tensor | None, bidirectional: bool) -> Way | str:
    """`causal_conv1d_fn(x, weight, bias, activation="silu")`: x (batch, E, L), 2 to 4 taps; once for each direction."""
    if not 2 <= weight.shape[1] <= 4:
        return f"causal-conv1d has no {weight.shape[1]} taps"
    convolve = importlib.import_module("causal_conv1d").causal_conv1d_fn
    sides, batch, pixels = 1 + bidirectional, u.shape[0], u.shape[2]
    ready = []
    for i in range(sides):
        part = u.chunk(sides, -1)[i].permute(0, 2, 3, 1).flatten(0, 1)
        shift = None if bias is None else bias.chunk(sides, 0)[i].contiguous()
        taps = weight.chunk(sides, 0)[i].contiguous()
        ready.append(((part.flip(2) if i else part).contiguous(), taps, shift))

    def back(found: list[Tensor]) -> Tensor:
        turned = [y.flip(2) if i else y for i, y in enumerate(found)]
        return torch.cat([torch.unflatten(y, 0, (batch, pixels)).permute(0, 3, 1, 2) for y in turned], -1).contiguous()

    return Way(lambda: [convolve(x, taps, shift, activation="silu") for x, taps, shift in ready], back)


def _scaled(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None,
    dtype: torch.dtype,
) -> Way | str:  # fmt: skip
    """`torch._scaled_mm` by rows, then bias and residual: x e4m3 (M, K), weight (K, D) by columns, 16-bit results."""
    if x_scale.shape[-1] != 1 or dtype not in (torch.float16, torch.bfloat16):
        return "PyTorch's 8-bit product takes one scale a row, and gives 16 bits"
    rows, scales = x.flatten(0, -2).contiguous(), x_scale.reshape(-1, 1).contiguous()

    def call() -> Tensor:
        y = torch._scaled_mm(rows, weight.t(), scales, scale[None], out_dtype=dtype)
        y = y if bias is None else y + bias
        return y if residual is None else y + residual.flatten(0, -2)

    return Way(call, lambda found: torch.unflatten(found, 0, x.shape[:-1]))


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Way | str:
    """`scaled_dot_product_attention` on (batch * pixels, heads, T, d), its own layout."""
    batch, slots, pixels, _ = q.shape

    def laid(x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()

    own_q, own_k, own_v = laid(q), laid(k), laid(v)

    def back(found: Tensor) -> Tensor:
        whole = torch.unflatten(found, 0, (batch, pixels)).permute(0, 3, 1, 2, 4)  # [B, T, N, heads, d]
        return whole.reshape(batch, slots, pixels, -1).contiguous()

    return Way(lambda: F.scaled_dot_product_attention(own_q, own_k, own_v), back)


def _none(name: str, get: str, but: str) -> Library:
    return Library(name, None, get, False, None, but)


LIBRARIES: Mapping[str, Library] = {
    "selective_scan": Library(
        "mamba-ssm", "mamba_ssm", "pip install --no-build-isolation 'animx[mamba]'", True, _mamba
    ),
    "temporal_attention": Library("PyTorch's attention", None, "", False, _attention),
    "causal_conv_silu": Library(
        "causal-conv1d", "causal_conv1d", "pip install --no-build-isolation causal-conv1d", True, _convolution
    ),
    "linear8": Library("PyTorch's 8-bit product", None, "", False, _scaled),
    "attention8": _none(
        "SageAttention", "pip install sageattention", "rounds with scales of its own: no equal result to time"
    ),
    "geglu": _none(
        "liger-kernel", "pip install liger-kernel", "its GEGLU takes the tanh approximation: another function"
    ),
    "group_norm_silu": _none(
        "apex", "", "its channels-last norm knows no shift and no second input: part of the operator"
    ),
    "motion_attention": _none(
        "PyTorch's attention", "", "needs the weights unfolded; '--shapes claims' measures it as torch"
    ),
}
"""By operator."""
