"""The network for a GPU: the same function as `AnimateXUNet`, on token-major activations and fused operators.

fused = FusedUNet(unet)                                       # shares the weights of `unet`
conditions = unet.encode(inputs, frames=F, latent=(h, w))     # once per window, under `no_grad`
times = unet.times(timesteps)                                 # once per schedule
velocity = fused(x, t, conditions, times)                     # every step

Differs from the plain network by the order of sums only: 1e-12 relative in float64.  It runs on a CPU too (for tests),
where its layout is the slower one.  No autocast, no casts: weights and activations of one type.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from animx.model.attention import KeyValue, MotionFold, SpatialTransformer, TransformerBlock
from animx.model.conditions import Conditions
from animx.model.fused_parts import Conv, FusedResBlock, Grid, Norm, Part, Resampled, bias_of, tokens
from animx.model.fused_transformers import FusedMamba, FusedSpatial, FusedTemporal
from animx.model.layers import Downsample, ResBlock, Times, Upsample
from animx.model.temporal import Temporal
from animx.model.unet import AnimateXUNet


def obstacle(unet: AnimateXUNet) -> str | None:
    """Why the fused network cannot stand for this one, or None."""
    if unet.training:
        return "the network is in training mode"
    kinds = {p.dtype for p in unet.parameters()}
    if len(kinds) > 1:
        return "weights of several types"
    return None


class FusedUNet(nn.Module):
    """See the module's text.  Built in a moment: only attention projections are packed, and what is folded is small.

    The plain network goes on working; the layout of its weights in memory changes, their values do not.
    """

    def __init__(self, unet: AnimateXUNet) -> None:
        super().__init__()
        reason = obstacle(unet)
        if reason:
            raise ValueError(f"no fused network: {reason}")
        self._plain = (unet,)  # not a submodule: its weights are counted once
        with torch.no_grad():
            self.down = nn.ModuleList(_fused_block(block) for block in unet.down)
            self.middle = _fused_block(unet.middle)
            self.up = nn.ModuleList(_fused_block(block) for block in unet.up)
            self.out_norm = Norm(unet.out_norm, silu=True)
            self.out_conv = Conv(unet.out_conv, bias_of(unet.out_conv))
            blocks = [part for part in self.modules() if isinstance(part, FusedResBlock)]
            self.widths = [block.first_bias.shape[0] for block in blocks]
            self.register_buffer("biases", torch.cat([block.first_bias for block in blocks]), persistent=False)
        self.eval()

    biases: Tensor

    @property
    def plain(self) -> AnimateXUNet:
        """The network it was built from."""
        return self._plain[0]

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, conditions: Conditions, times: Times | None = None) -> Tensor:
        """Noisy latents x [B, 4, F, h, w] at timesteps t [B] -> velocity of the same shape; see `AnimateXUNet`."""
        batch, slots = x.shape[0], x.shape[2] + 1
        grid = Grid(batch, slots, x.shape[3], x.shape[4])
        row = torch.cat(self.plain.shifts(t), dim=1) if times is None else times.row(t)
        shifts = iter(self._per_slot(row + self.biases, slots))
        keys = iter([(context, self._fold(i, one)) for i, (context, one) in enumerate(
            zip(conditions.context, conditions.motion, strict=True))])  # fmt: skip
        noisy = torch.cat([x, conditions.dense], dim=1)
        y = torch.cat([conditions.reference, noisy], dim=2)  # [B, 12, T, h, w]
        y = y.permute(0, 2, 3, 4, 1).reshape(batch * slots, grid.height * grid.width, -1).contiguous()
        skips: list[tuple[Tensor, Grid]] = []

        def run(block: nn.Module, y: Tensor, grid: Grid, other: Tensor | None = None) -> tuple[Tensor, Grid]:
            for part in block.children():
                if isinstance(part, FusedResBlock):
                    y, other = part(y, next(shifts), grid, other), None
                elif isinstance(part, FusedSpatial):
                    y = part(y, *next(keys))
                elif isinstance(part, FusedTemporal | FusedMamba):
                    y = part(y, grid)
                elif isinstance(part, Resampled):
                    size = (skips[-1][1].height, skips[-1][1].width) if part.doubles and skips else None
                    y, grid = part(y, grid, size)
                else:
                    y = tokens(part(grid.picture(y)))
            return y, grid

        for block in self.down:
            y, grid = run(block, y, grid)
            skips.append((y, grid))
        y, grid = run(self.middle, y, grid)
        for block in self.up:
            y, grid = run(block, y, grid, skips.pop()[0])
        pictures = self.out_conv(grid.picture(self.out_norm(y)))
        out = torch.unflatten(pictures, 0, (batch, slots)).transpose(1, 2)[:, :, 1:]  # [B, 4, F, h, w]
        return out

    def _per_slot(self, row: Tensor, slots: int) -> tuple[Tensor, ...]:
        """All blocks' shifts [B, sum] as [B*T, C'] each; one window needs no copy."""
        row = row.expand(slots, -1) if row.shape[0] == 1 else row.repeat_interleave(slots, 0)
        return torch.split(row, self.widths, dim=1)

    def _fold(self, index: int, motion: KeyValue | MotionFold | None) -> MotionFold | None:
        """The folded motion attention; conditions that were not folded are folded here, at every step."""
        if motion is None or isinstance(motion, MotionFold):
            return motion
        layer = list(self.plain.spatial_transformers())[index].motion
        assert layer is not None
        return MotionFold.of(layer.attention_norm, layer.attention, motion)


def _fused_block(block: nn.Module) -> nn.ModuleList:
    """The fused parts of a numbered block of the trunk, or of a lone resampling."""
    return nn.ModuleList(_fused_part(part) for part in (block if isinstance(block, nn.ModuleList) else [block]))


def _fused_part(part: nn.Module) -> Part:
    if isinstance(part, ResBlock):
        return FusedResBlock(part)
    if isinstance(part, SpatialTransformer):
        return FusedSpatial(part)
    if isinstance(part, Temporal):
        return FusedTemporal(part) if isinstance(part.block, TransformerBlock) else FusedMamba(part)
    if isinstance(part, Downsample | Upsample):
        return Resampled(part)
    if isinstance(part, nn.Conv2d):
        return Conv(part, bias_of(part))
    raise TypeError(f"no fused form of {type(part).__name__}")
