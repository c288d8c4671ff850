"""Launches of Triton kernels as data: run them, or compile them ahead of time exactly as they would run.

A body file plans its launches with `Launch`; `run` makes them; `build` turns one, planned on meta tensors, into what
`triton.compile` needs.  So what is compiled for a card in a test is what the operator launches there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS

from animx_kernels.dispatch import Build, planned_into, planning

NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int8: "i8",
    torch.float8_e4m3fn: "fp8e4nv",
}


MOST_PROGRAMS = 65535
"""Programs along the second and the third axis of a CUDA grid."""


class Launch(NamedTuple):
    """One launch: `values` are the kernel's run-time arguments by name (None: left out), the rest is compiled in."""

    kernel: Any
    grid: tuple[int, ...]
    values: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


def run(launch: Launch) -> None:
    """Launch on the device of its tensors; within `dispatch.planning` only note what would be launched."""
    noted = planned_into()
    if noted is not None:
        noted.append(launch)
        return
    device = next(value.device for value in launch.values.values() if isinstance(value, Tensor))
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        launch.kernel[launch.grid](
            **launch.values, **launch.constants, num_warps=launch.num_warps, num_stages=launch.num_stages
        )


def planned(name: str, arguments: Iterable[Any], capability: int) -> list[Launch]:
    """The launches of one call of `torch.ops.animx.<name>` on a card, as its body plans them.

    Tensors are looked at for shape, strides and type only; none of their memory is touched.  Empty: the body does not
    take such a call.
    """

    def bare(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

    with planning(capability) as found:
        OPDEFS[f"animx::{name}"]._init_fn(*map(bare, arguments))
    return found


def build(launch: Launch) -> Build:
    """The same launch for `triton.compile`: types, constants, and which numbers are known to be multiples of 16."""
    signature: dict[str, str] = {}
    constants = dict(launch.constants)
    multiples = []
    for name, value in launch.values.items():
        if value is None or (isinstance(value, int) and value == 1):  # the launcher compiles a 1 in, too
            signature[name] = "constexpr"
            constants[name] = value
            continue
        if isinstance(value, Tensor):
            signature[name] = f"*{NAMES[value.dtype]}"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        else:
            signature[name] = "fp32"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            multiples.append(name)
    signature |= dict.fromkeys(launch.constants, "constexpr")
    return Build(launch.kernel, signature, constants, launch.num_warps, launch.num_stages, tuple(multiples))


def as_rows(x: Tensor) -> Tensor:
    """x [..., C] as [rows, C] with the last axis adjacent: a view wherever the strides allow it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def adjacent(x: Tensor) -> Tensor:
    """x itself, or a contiguous copy where its last axis is not adjacent."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def power(number: int, least: int = 1) -> int:
    """The smallest power of two that is not below `number` (and `least`)."""
    return max(least, 1 << (max(number, 1) - 1).bit_length())


def blocks(number: int, size: int) -> int:
    """How many blocks of `size` cover `number`."""
    return -(-number // size)
