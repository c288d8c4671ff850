"""AdamW in four groups: the implicit pose indicator and the rest, each with and without weight decay.

In: a module whose names end like the UNet's.  The paper's rates (appendix D.4) are for fine-tuning from a video model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from animx_trainer.config import OptimizerConfig

IPI = ("keypoint_encoder", "resampler")
"""Children of the UNet that make the implicit pose indicator; its motion attention belongs to the rest."""
TABLES = ("latents", "A_log", "D")
"""Parameters that are tables rather than weights: learned queries, Mamba's state constants."""
NORMS = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and a weight decay."""

    name: str
    """`rest`, `rest, no decay`, `ipi` or `ipi, no decay`."""
    lr: float
    weight_decay: float
    parameters: dict[str, nn.Parameter]
    """By their full names."""

    @property
    def count(self) -> int:
        """Numbers in the group."""
        return sum(p.numel() for p in self.parameters.values())


def groups(module: nn.Module, config: OptimizerConfig) -> list[Group]:
    """All trainable parameters of `module`, each in exactly one group; empty groups are left out."""
    plain = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name, _ in part.named_parameters(recurse=False)
        if isinstance(part, NORMS) or name.endswith("bias") or name in TABLES
    }
    found: dict[str, Group] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        ipi = any(part in IPI for part in name.split("."))
        lr = config.lr if not ipi or config.lr_ipi is None else config.lr_ipi
        decay = 0.0 if name in plain else config.weight_decay
        title = ("ipi" if ipi else "rest") + (", no decay" if name in plain else "")
        found.setdefault(title, Group(title, lr, decay, {})).parameters[name] = parameter
    return [found[title] for title in sorted(found)]


def make_optimizer(parts: list[Group], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the groups; each remembers its full rate as `base_lr`."""
    settings = [
        {
            "params": list(part.parameters.values()),
            "lr": part.lr,
            "base_lr": part.lr,
            "weight_decay": part.weight_decay,
            "name": part.name,
        }
        for part in parts
    ]
    return torch.optim.AdamW(settings, betas=config.betas, eps=config.eps, foreach=True)


def rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Share of the full learning rate in `step` (0-based) of `steps`: linear warm-up, then constant or cosine to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    left = max(steps - config.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(step - config.warmup, left) / left))


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group `share` of its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share


def named(parts: list[Group]) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters of the groups by name, in a fixed order."""
    for part in parts:
        yield from part.parameters.items()
