"""A complete kernel plugin: GEGLU written into one new tensor, by two of PyTorch's own operators.

Install: pip install ./examples/kernel-plugin      Check: animx bench ops --op geglu --providers quick-geglu,animx
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class QuickGeglu:
    """value * gelu(gate) for x [..., 2D], the value first."""

    operator = "geglu"

    def supports(self, device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, ...] | None, ...]) -> bool:
        """Everywhere in float32: in halves the product would be rounded twice."""
        return dtype == torch.float32

    def call(self, x: Tensor) -> Tensor:
        """x [..., 2D] -> [..., D], new and contiguous."""
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)


quick_geglu = QuickGeglu()
