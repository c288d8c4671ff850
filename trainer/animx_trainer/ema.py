"""Averaged weights (EMA): what is exported and what sample strips are drawn with.

Each process averages the share it holds, so that it costs no communication.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The numbers this process holds of a tensor that may be spread over several."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Ema:
    """The running average of named parameters: average += (1 - decay) * (parameter - average).

    The decay grows with the step as (1 + step) / (10 + step) up to its limit, so that early weights are forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = dict(parameters)
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, step: int) -> None:
        """Take in the parameters as they are after `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            averages = [local(value) for value in self.average.values()]
            weights = [local(parameter.detach()) for parameter in self.parameters.values()]
            torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module computes with the averages; afterwards with its own weights, bit for bit."""
        own = {name: local(p.detach()).clone() for name, p in self.parameters.items()}
        try:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    local(parameter.detach()).copy_(local(self.average[name]))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    local(parameter.detach()).copy_(own[name])
