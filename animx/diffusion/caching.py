"""What one denoising step leaves for the next, so that not every step pays for both guidance branches.

Guidance adds a multiple of the difference between the conditional and the unconditional velocity.  That difference
changes slowly from step to step, so it can be taken anew in every so many steps and reused in between: a step then
costs one pass of the network in place of two.  The cache belongs to one segment, is made with it, and holds the same on
every rank; so it changes nothing about resuming or about the number of processes.
"""

from __future__ import annotations

from torch import Tensor

from animx.model.schedule import guided


class GuidanceCache:
    """The last difference of the branches, by number of the window."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def fresh(self, number: int, conditional: Tensor, unconditional: Tensor, scale: float, *, keep: bool) -> Tensor:
        """The guided velocity [1, 4, F, h, w] from both branches; `keep`: their difference is needed again."""
        if keep:
            self._kept[number] = conditional - unconditional
        return guided(conditional, unconditional, scale)

    def reused(self, number: int, conditional: Tensor, scale: float) -> Tensor:
        """The guided velocity from the conditional branch and the difference kept last for this window.

        Without one (`reset`, or never kept): `KeyError`, a bug of the caller.
        """
        return conditional + (scale - 1) * self._kept[number]

    def reset(self) -> None:
        """Forget all windows."""
        self._kept.clear()
