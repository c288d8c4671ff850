"""Temporal blocks: what mixes the slots of one pixel.  Released: a transformer; paper: bidirectional Mamba (4.3).

One interface: [B*T, C, h, w] and the number of slots in, the same shape out; GroupNorm over slots and space, proj_in,
basic block, zero-initialised proj_out, residual.  No positions, no mask; the reference slot takes part.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from animx.model.attention import TransformerBlock
from animx.model.config import UNetConfig


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
        length = x.shape[1]
        u, z = rearrange(self.in_proj(x), "b l e -> b e l").chunk(2, dim=1)
        u = F.silu(self.conv1d(u)[..., :length])
        delta, b, c = self.x_proj(rearrange(u, "b e l -> b l e")).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(rearrange(self.dt_proj(delta), "b l e -> b e l"))
        a = -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log)
        y = selective_scan(u, delta, a, b.transpose(1, 2), c.transpose(1, 2), self.D, z)
        return self.out_proj(rearrange(y, "b e l -> b l e"))


class MambaBlock(nn.Module):
    """x + forward(LN x) + backward(LN x): two Mamba blocks, the second over the flipped slots; no feed-forward."""

    def __init__(self, width: int, config: UNetConfig) -> None:
        super().__init__()
        shape = (config.mamba_state, config.mamba_conv, config.mamba_expand)
        self.norm = nn.LayerNorm(width)
        self.forward_scan = Mamba(width, *shape)
        self.backward_scan = Mamba(width, *shape)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> same shape."""
        y = self.norm(x)
        return x + self.forward_scan(y) + self.backward_scan(y.flip(1)).flip(1)


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
