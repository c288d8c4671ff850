"""Released state-dict names to ours and back.  Each module says in `RELEASED` how the released file calls its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


def released_names(model: nn.Module) -> dict[str, str]:
    """Our key -> released key, for every entry of `model.state_dict()`."""
    found = {}
    for key in model.state_dict():
        module: Any = model
        parts = []
        for part in key.split("."):
            table = getattr(module, "RELEASED", {})
            parts.append(table.get(part, part))
            module = getattr(module, part, None) if not part.isdigit() else module[int(part)]
        found[key] = ".".join(parts)
    return found


@dataclass(frozen=True)
class Report:
    """What a checkpoint and a model have in common."""

    missing: tuple[str, ...]
    """Released names the model needs and the file lacks."""
    unexpected: tuple[str, ...]
    """Names in the file the model does not know."""
    shapes: tuple[str, ...]
    """`name: file shape, model shape` where they differ."""

    @property
    def is_exact(self) -> bool:
        """Nothing missing, nothing unexpected, every shape equal."""
        return not (self.missing or self.unexpected or self.shapes)


def compare(model: nn.Module, released: Mapping[str, Tensor]) -> Report:
    """Hold a released state dict against a model, without loading it."""
    names = released_names(model)
    own = model.state_dict()
    wanted = {name: own[key] for key, name in names.items()}
    return Report(
        tuple(sorted(wanted.keys() - released.keys())),
        tuple(sorted(released.keys() - wanted.keys())),
        tuple(
            f"{name}: file {list(released[name].shape)}, model {list(value.shape)}"
            for name, value in sorted(wanted.items())
            if name in released and released[name].shape != value.shape
        ),
    )


def to_ours(model: nn.Module, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under our names; names the model does not know are left out (see `compare`)."""
    return {key: released[name] for key, name in released_names(model).items() if name in released}


def to_released(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict under the released names."""
    names = released_names(model)
    return {names[key]: value for key, value in model.state_dict().items()}
