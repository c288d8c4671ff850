"""One step of a segment after the network: guidance, blend of its windows, and the step, in one operator.

Only the released stepper tells its numbers (`coefficients`); others step by themselves, in `sampler.denoise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from animx.diffusion.steppers import ReleasedStepper, Stepper
from animx_kernels.guided_step import guided_step


@dataclass(frozen=True)
class Stepping:
    """What stays the same over the steps of a segment, on the device of its latents."""

    stepper: ReleasedStepper
    starts: Tensor
    """First frame of each window, int64 [W]."""
    weights: Tensor
    """Of each window at its own frames, [W, F]."""

    @staticmethod
    def of(stepper: Stepper, windows: Sequence[tuple[int, int]], weights: Tensor, like: Tensor) -> Stepping | None:
        """For windows (first, last) and their weights [W, frames of the segment], or None where it does not apply.

        It applies to the released stepper and windows of one length.
        """
        lengths = {last - first for first, last in windows}
        if not isinstance(stepper, ReleasedStepper) or len(lengths) != 1:
            return None
        own = torch.stack([row[first:last] for row, (first, last) in zip(weights, windows, strict=True)])
        starts = torch.tensor([first for first, _ in windows], dtype=torch.int64, device=like.device)
        return Stepping(stepper, starts, own.to(like.device, like.dtype))

    def advance(
        self, x: Tensor, conditional: Sequence[Tensor], unconditional: Sequence[Tensor] | None, scale: float, index: int
    ) -> tuple[Tensor, Tensor]:
        """Latents after step `index`, and the clean latents it points to, both like x [1, 4, F, h, w].

        Velocities of the windows [1, 4, F, h, w] in their order; `unconditional` None: the step is not guided.
        """
        given, other = torch.cat(list(conditional)), None if unconditional is None else torch.cat(list(unconditional))
        after, clean = guided_step(
            x, given, other, torch.tensor(scale, dtype=x.dtype, device=x.device),
            self.stepper.coefficients(index, x), self.starts, self.weights,
        )  # fmt: skip
        return after, clean
