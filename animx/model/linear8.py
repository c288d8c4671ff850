"""A linear layer with its weights in 8 bits (e4m3, one scale per output channel), for inference.

Its input is quantised row by row where it is used, sums are float32; the operators are those of
`animx_kernels.linear8`.  Weights are buffers of a fixed type: moving or casting the network they are in moves them and
casts nothing but the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from animx_kernels.linear8 import geglu_rows8, linear8
from animx_kernels.quantise8 import Rows8, quantise_weight


class Linear8(nn.Module):
    """x [..., K] -> [..., N], or (as the pointwise convolution it replaces) x [B, K, L] -> [B, N, L]."""

    q: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, q: Tensor, scale: Tensor, bias: Tensor | None, channels_first: bool = False) -> None:
        """q e4m3 [N, K], scale float32 [N], bias [N] or None."""
        super().__init__()
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.channels_first = channels_first

    @classmethod
    def of(cls, layer: nn.Linear | nn.Conv1d, on: torch.device | None = None) -> Linear8:
        """The layer (a convolution: of one tap) in 8 bits, where its weights lie; worked out on the device `on`."""
        weight = layer.weight.detach().flatten(1)
        q, scale = quantise_weight(weight if on is None else weight.to(on))
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(q.to(weight.device), scale.to(weight.device), bias, isinstance(layer, nn.Conv1d))

    @classmethod
    def stacked(cls, layers: Sequence[Linear8]) -> Linear8:
        """Layers without bias of one input as one; their weights become views of its own."""
        q, scale = torch.cat([one.q.view(torch.uint8) for one in layers]), torch.cat([one.scale for one in layers])
        rows = [one.q.shape[0] for one in layers]
        q = q.view(layers[0].q.dtype)
        for one, own, scales in zip(layers, torch.split(q, rows), torch.split(scale, rows), strict=True):
            one.q, one.scale = own, scales
        return cls(q, scale, None)

    def times(self, factor: float) -> Linear8:
        """The layer with its output multiplied by `factor`; shares the weights."""
        if factor == 1.0:
            return self
        bias = None if self.bias is None else self.bias * factor
        return Linear8(self.q, self.scale * factor, bias, self.channels_first)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it stands for."""
        if self.channels_first:
            return self.rows(x.transpose(1, 2)).transpose(1, 2)
        return self.rows(x)

    def rows(self, x: Tensor | Rows8, residual: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """x [..., K], or its rows in 8 bits already -> [..., N] of type `dtype`, plus `residual` of that shape."""
        return linear8(x, self.q, self.scale, self.bias, residual, dtype)

    def geglu(self, x: Tensor | Rows8) -> Rows8:
        """x [..., K] -> [..., N / 2] in 8 bits: the first half of the result times gelu of the second."""
        assert self.bias is not None
        return geglu_rows8(x, self.q, self.scale, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Casts leave the 8-bit weights and their scales as they are; moves take them along."""
        device = fn(self.scale.new_empty(0)).device
        held = {name: getattr(self, name).to(device) for name in ("q", "scale")}
        for name in held:
            self._buffers[name] = None
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:  # memory may run out on the way
            self._buffers.update(held)
        return self
