"""Logs that the tests of the counter share, each counted once."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from animx.counting import costs, fakes, report
from animx.counting.stacks import TINY, Counted, Setting, count

Call = tuple[str, tuple[Any, ...]]
"""An operator's name and its arguments, tensors as (shape, strides, type)."""


@cache
def counted(stack: Any, **changes: Any) -> Counted:
    return heard(stack, **changes)[0]


@cache
def heard(stack: Any, **changes: Any) -> tuple[Counted, tuple[Call, ...]]:
    """The log, and each different call of our operators."""
    own, calls = costs._ours, {}

    def described(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.stride(), value.dtype
        return value

    def hear(name: str, args: Any, kwargs: Any) -> Any:
        assert not kwargs, f"{name}: arguments by name"
        call = (name, tuple(map(described, args)))
        calls[repr(call)] = call
        return own(name, args, kwargs)

    with fakes.replaced(costs, "_ours", hear):
        return count(Setting(stack, **changes)), tuple(calls.values())


def tiny(stack: Any) -> Counted:
    if stack == "animx":
        return looked_at()[0]
    return counted(stack, frames=4, width=64, height=64, config=TINY)


@cache
def looked_at() -> tuple[Counted, int, list[str]]:
    """The tiny fused network's log, the calls of our operators, and those that got channels which are not adjacent."""
    own, calls, strided = costs._ours, [], []

    def look(name: str, args: Any, kwargs: Any) -> Any:
        activations = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor) and one.ndim > 2]
        strided.extend(name for one in activations if one.shape[-1] > 3 and one.stride(-1) != 1)
        calls.append(name)
        return own(name, args, kwargs)

    with fakes.replaced(costs, "_ours", look):
        return count(Setting("animx", 4, 64, 64, config=TINY)), len(calls), strided


def rows(found: Counted) -> dict[str, report.Row]:
    return report.table(found.forward, found.setting)
