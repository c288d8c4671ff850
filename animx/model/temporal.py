"""Temporal blocks: what mixes the slots of one pixel.  Released: a transformer; paper: bidirectional Mamba (4.3).

The scan of Mamba is `animx_kernels.selective_scan`; `selective_scan` here is the same, spelled out, for comparison.

One interface: [B*T, C, h, w] and the number of slots in, the same shape out; GroupNorm over slots and space, proj_in,
basic block, zero-initialised proj_out, residual.  No positions, no mask; the reference slot takes part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from animx.errors import MissingExtraError
from animx.model.attention import TransformerBlock
from animx.model.config import UNetConfig
from animx_kernels import selective_scan as kernel
from animx_kernels.causal_conv import causal_conv_silu


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor) -> Tensor:
    """The Mamba recurrence, one step at a time in float32: h = exp(delta a) h + delta b u, y = (c h + d u) silu(z).

    u, delta, z [B, E, L]; a [E, N]; b, c [B, N, L]; d [E] -> [B, E, L].  Source: Gu and Dao 2023, algorithm 2.
    """
    dtype = u.dtype
    u, delta, b, c = (x.float() if dtype != torch.float64 else x for x in (u, delta, b, c))
    state = u.new_zeros(u.shape[0], u.shape[1], a.shape[1])  # [B, E, N]
    steps = []
    for i in range(u.shape[2]):
        decay = torch.exp(delta[:, :, i, None] * a)
        state = decay * state + (delta[:, :, i] * u[:, :, i])[..., None] * b[:, None, :, i]
        steps.append((state * c[:, None, :, i]).sum(-1))
    y = torch.stack(steps, dim=2) + d[:, None] * u
    return (y * F.silu(z.to(y.dtype))).to(dtype)


class Mamba(nn.Module):
    """One direction of a Mamba block, with the parameter layout of `mamba_ssm.Mamba` so that its weights load here."""

    def __init__(self, width: int, state: int = 16, conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.rank, self.state = rank, state
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1, dtype=torch.float32).repeat(inner, 1)))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        # Steps start between 1e-3 and 1e-1, log-uniformly (Gu and Dao 2023, section 3.6); bias = softplus^-1(step).
        step = torch.exp(torch.rand(inner) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> [B, L, D], causal."""
        return through(Directions.of((self,)), x)


class Directions(NamedTuple):
    """The weights of one or two Mamba blocks side by side, as one pass over both directions of time wants them.

    What each direction projects for itself is one matrix for both, zero where it would mix them: it costs products with
    zero, a few percent of the block's, and saves a copy of everything that it makes.
    """

    project: Tensor  # [2 * sides * E, D], u of all directions, then z of all
    taps: Tensor  # [sides * E, K]
    taps_bias: Tensor  # [sides * E]
    select: Tensor  # [sides * (rank + 2 S), sides * E]: steps of all directions, then b of all, then c of all
    widen: Tensor  # [sides * E, sides * rank]
    rates: Tensor  # [sides * E, S]
    skip: Tensor  # [sides * E]
    bias: Tensor  # [sides * E], of the steps
    out: Tensor  # [D, sides * E]: the sum of both in one projection
    sides: int

    @classmethod
    def of(cls, sides: Sequence[Mamba]) -> Directions:
        """Put the weights together."""
        inner, rank, states = sides[0].D.numel(), sides[0].rank, sides[0].state
        weights = [side.in_proj.weight for side in sides]
        logs = torch.cat([side.A_log for side in sides])
        selects = [torch.split(side.x_proj.weight, [rank, states, states]) for side in sides]
        return cls(
            torch.cat([w[:inner] for w in weights] + [w[inner:] for w in weights]),
            torch.cat([side.conv1d.weight[:, 0] for side in sides]),
            torch.cat([_bias(side.conv1d) for side in sides]),
            torch.cat([_diagonal(*part) for part in zip(*selects, strict=True)]),
            _diagonal(*(side.dt_proj.weight for side in sides)),
            -torch.exp(logs if logs.dtype == torch.float64 else logs.float()),
            torch.cat([side.D for side in sides]),
            torch.cat([_bias(side.dt_proj) for side in sides]),
            torch.cat([side.out_proj.weight for side in sides], dim=1),
            len(sides),
        )


def scanned(w: Directions, x: Tensor, library: bool = False) -> Tensor:
    """What one or two Mamba blocks make of x [B, L, D], or of [B, L, N, D] over L, before their output projection.

    Both directions share every operator; the second sees time backwards, and no tensor is flipped.  Returns x's shape
    with the channels of both; `w.out` projects them.  `library`: the scan is mamba_ssm's (CUDA; 3-D x).
    """
    states = w.rates.shape[1]
    u, z = F.linear(x, w.project).chunk(2, dim=-1)  # [B, L, sides * E], views
    rows = x.ndim == 3
    if rows:
        u, z = u.transpose(0, 1)[None], z.transpose(0, 1)[None]  # [1, L, B, ...]
    active = causal_conv_silu(u, w.taps, w.taps_bias, w.sides == 2)
    low, b, c = torch.split(F.linear(active, w.select), [w.widen.shape[1], w.sides * states, w.sides * states], dim=-1)
    given = (active, F.linear(low, w.widen), w.rates, b, c, w.skip, z)
    if library:
        return _library_scan(*given, w.bias, w.sides)
    y = kernel.selective_scan(*given, w.bias, None, None, True, w.sides == 2)
    return y[0].transpose(0, 1) if rows else y


def through(w: Directions, x: Tensor, library: bool = False) -> Tensor:
    """The sum of one or two Mamba blocks of x; see `scanned`."""
    return F.linear(scanned(w, x, library), w.out)


def _diagonal(*blocks: Tensor) -> Tensor:
    """The blocks along the diagonal of a matrix of zeros."""
    whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return whole


def _bias(layer: nn.Linear | nn.Conv1d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _library_scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, bias: Tensor, sides: int
) -> Tensor:
    """The same by `mamba_ssm` (each direction by itself, in its layout [B, E, L]): for comparison, or where it wins.

    u, delta, z [1, L, B, sides * E], b and c [1, L, B, sides * S] -> [B, L, sides * E].
    """
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as problem:
        raise MissingExtraError("scan 'mamba-ssm'", "mamba") from problem
    found = []
    for i in range(sides):
        own, few = (
            slice(i * (len(d) // sides), (i + 1) * (len(d) // sides)),
            slice(i * a.shape[1], (i + 1) * a.shape[1]),
        )

        def lay(t: Tensor, part: slice, i: int = i) -> Tensor:
            t = t[0, ..., part].permute(1, 2, 0)
            return (t.flip(2) if i else t).contiguous()

        y = selective_scan_fn(
            lay(u, own), lay(delta, own), a[own], lay(b, few), lay(c, few), d[own].float(), lay(z, own),
            delta_bias=bias[own].float(), delta_softplus=True,
        )  # fmt: skip
        found.append((y.flip(2) if i else y).transpose(1, 2))
    return torch.cat(found, dim=-1)


class MambaBlock(nn.Module):
    """x + forward(LN x) + backward(LN x): two Mamba blocks, the second over the flipped slots; no feed-forward."""

    def __init__(self, width: int, config: UNetConfig) -> None:
        super().__init__()
        shape = (config.mamba_state, config.mamba_conv, config.mamba_expand)
        self.norm = nn.LayerNorm(width)
        self.forward_scan = Mamba(width, *shape)
        self.backward_scan = Mamba(width, *shape)
        self.library = config.scan == "mamba-ssm"

    def directions(self) -> Directions:
        """The weights of both directions of time."""
        return Directions.of((self.forward_scan, self.backward_scan))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> same shape."""
        return x + through(self.directions(), self.norm(x), self.library)


class Temporal(nn.Module):
    """A temporal place of the UNet with the basic block the variant asks for."""

    RELEASED: ClassVar = {"block": "transformer_blocks.0"}

    def __init__(self, channels: int, heads: int, config: UNetConfig) -> None:
        super().__init__()
        inner = heads * config.head_dim
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv1d(channels, inner, 1)
        self.block: nn.Module = (
            MambaBlock(inner, config)
            if config.temporal == "mamba"
            else TransformerBlock(inner, heads, config.head_dim, None)
        )
        self.proj_out = nn.Conv1d(inner, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        assert self.proj_out.bias is not None
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, slots: int) -> Tensor:
        """x [B*T, C, h, w] -> same shape."""
        h, w = x.shape[-2:]
        y = self.norm(rearrange(x, "(b t) c h w -> b c t h w", t=slots))
        y = self.proj_in(rearrange(y, "b c t h w -> (b h w) c t"))
        y = rearrange(self.block(rearrange(y, "n c t -> n t c")), "n t c -> n c t")
        y = rearrange(self.proj_out(y), "(b h w) c t -> (b t) c h w", h=h, w=w)
        return x + y
