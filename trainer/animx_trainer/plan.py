"""What a run will train and need, found on the meta device: no weight is allocated, so the full size fits anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from animx.model.unet import AnimateXUNet
from animx_trainer.config import TrainConfig
from animx_trainer.denoiser import Denoiser
from animx_trainer.optimizer import groups

FLOAT32 = 4
STATES = 4
"""Float32 numbers kept per trained one: weight, gradient, and AdamW's two moments."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a run.  Memory is that of weights and optimiser; activations come on top."""

    groups: Mapping[str, tuple[int, float, float]]
    """Group -> (trained numbers, learning rate, weight decay)."""
    frozen: int
    """Numbers of the UNet that the active conditions never use."""
    training_bytes: int
    """Weights, gradients and moments over all processes together."""
    ema_bytes: int
    """Averaged weights over all processes together."""

    @property
    def trained(self) -> int:
        """Trained numbers."""
        return sum(count for count, _, _ in self.groups.values())

    def per_process(self, processes: int, parallel: str) -> float:
        """Gigabytes of one process: everything with ddp, its share with fsdp."""
        whole = (self.training_bytes + self.ema_bytes) / 1e9
        return whole / processes if parallel == "fsdp" else whole

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "trained": self.trained,
            "frozen": self.frozen,
            "groups": {
                name: {"parameters": count, "lr": lr, "weight_decay": decay}
                for name, (count, lr, decay) in self.groups.items()
            },
            "training_gb": round(self.training_bytes / 1e9, 3),
            "ema_gb": round(self.ema_bytes / 1e9, 3),
        }


def plan(config: TrainConfig) -> Plan:
    """Count the parameters of `config` by group.  Allocates nothing."""
    with torch.device("meta"):
        unet = AnimateXUNet.build(config.unet())
    denoiser = Denoiser(unet)
    parts = groups(denoiser, config.optimizer)
    trained = sum(part.count for part in parts)
    every = sum(p.numel() for p in denoiser.parameters())
    return Plan(
        {part.name: (part.count, part.lr, part.weight_decay) for part in parts},
        every - trained,
        trained * FLOAT32 * STATES,
        trained * FLOAT32 * (config.optimizer.ema > 0),
    )
