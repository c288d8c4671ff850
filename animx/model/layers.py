"""Residual block with its temporal convolutions, resampling, and the time embedding (released 3.1, 4, 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Timesteps [B] -> [B, width] in float32: first half cos, second half sin, frequency 10000^(-i / half)."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t[:, None].float() * frequency  # [B, half]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


@dataclass(frozen=True)
class Times:
    """What the residual blocks add at each step of one schedule, computed for all steps at once."""

    shifts: Tensor  # [steps, sum of widths]
    position: Tensor  # [1000 or more], row of each timestep, -1 where the schedule has none
    widths: tuple[int, ...]
    """Channels of each residual block, in running order."""

    def at(self, t: Tensor) -> tuple[Tensor, ...]:
        """The blocks' shifts [B, C'] at timesteps t [B]; see `row`."""
        return torch.split(self.row(t), list(self.widths), dim=1)

    def row(self, t: Tensor) -> Tensor:
        """All blocks' shifts side by side [B, sum of widths]; no value of t is looked at on the host.

        A timestep that is not in the schedule is an `IndexError`.
        """
        return self.shifts.index_select(0, self.position.index_select(0, t))


class TimeEmbedding(nn.Sequential):
    """Linear, SiLU, Linear on the sinusoid of the timestep."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))


class TemporalConv(nn.Module):
    """Four units of GroupNorm, SiLU, (dropout,) 3-tap convolution over slots; the chain is added to its input.

    The norms take their statistics over slots and space together; the last convolution starts at zero.
    """

    RELEASED: ClassVar = {
        f"{kind}{i}": f"conv{i}.{0 if kind == 'norm' else 2 if i == 1 else 3}"
        for i in (1, 2, 3, 4)
        for kind in ("norm", "conv")
    }

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        for i in (1, 2, 3, 4):
            setattr(self, f"norm{i}", nn.GroupNorm(32, channels))
            setattr(self, f"conv{i}", nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)))
        nn.init.zeros_(self.conv4.weight)
        assert self.conv4.bias is not None
        nn.init.zeros_(self.conv4.bias)

    conv4: nn.Conv3d

    def forward(self, x: Tensor, slots: int) -> Tensor:
        """x [B*T, C, h, w] -> same shape."""
        h, w = x.shape[-2:]
        y = rearrange(x, "(b t) c h w -> b c t (h w)", t=slots)
        for i in (1, 2, 3, 4):
            y = F.silu(getattr(self, f"norm{i}")(y))
            if i > 1:
                y = F.dropout(y, self.dropout, self.training)
            conv = getattr(self, f"conv{i}")
            # Pixels on one axis make the 3-D convolution a 2-D one over (slots, pixels): the same sums, no copy.
            y = F.conv2d(y, conv.weight[..., 0], conv.bias, padding=(1, 0))
        return x + rearrange(y, "b c t (h w) -> (b t) c h w", h=h, w=w)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the time embedding added between, a skip, then the temporal convolutions."""

    RELEASED: ClassVar = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
        "temporal": "temopral_conv",
    }

    def __init__(self, channels: int, time_width: int, out: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = nn.GroupNorm(32, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(time_width, out)
        self.norm2 = nn.GroupNorm(32, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)
        self.skip: nn.Module = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        self.temporal = TemporalConv(out, dropout)

    def forward(self, x: Tensor, shift: Tensor, slots: int) -> Tensor:
        """x [B*T, C, h, w], shift [B, C'] = `time(silu(time embedding))` -> [B*T, C', h, w]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + shift.repeat_interleave(slots, 0)[:, :, None, None]
        y = self.conv2(F.dropout(F.silu(self.norm2(y)), self.dropout, self.training))
        return self.temporal(self.skip(x) + y, slots)


class Downsample(nn.Module):
    """3x3 convolution with stride 2."""

    RELEASED: ClassVar = {"conv": "op"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B*T, C, h, w] -> [B*T, C, ceil(h/2), ceil(w/2)]."""
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """[B*T, C, h, w] -> [B*T, C, 2h, 2w], or `size` where an odd level was halved on the way down."""
        x = F.interpolate(x, scale_factor=2, mode="nearest") if size is None else F.interpolate(x, size, mode="nearest")
        return self.conv(x)
