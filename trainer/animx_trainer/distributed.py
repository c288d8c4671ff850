"""Several processes: who they are, how the module is spread over them (DDP; FSDP2: `sharded`), and what they agree on.

Started by torchrun (or accelerate); without it everything here is a plain single process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from animx.errors import UsageError
from animx.processes import rank_of_environment
from animx_trainer.denoiser import Denoiser


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - an immutable value

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; the same answer in all."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` -> the device; asking for a card that is not there is a `UsageError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: training runs on cpu and cuda only. Use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {name}: torch sees no CUDA device. Use --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
        if device.index is None:
            device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the other processes of torchrun, and leave them at the end.  Alone: a world of one."""
    rank, size = rank_of_environment()
    place = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(device=place)
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        if ours:
            dist.destroy_process_group()


def spread(denoiser: Denoiser, world: World) -> nn.Module:
    """The module to call in training: itself, or behind DDP where there are several processes.

    Gradients are means over processes.  FSDP2 spreads a network while it is built (`animx_trainer.sharded`).
    """
    if world.size == 1:
        return denoiser
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(denoiser, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def sync_gradients(module: nn.Module, now: bool) -> Any:
    """Whether the coming backward exchanges gradients; a context manager.  Off in all rounds but the last of a step."""
    if isinstance(module, FSDPModule):
        return _fsdp_sync(module, now)
    if isinstance(module, DistributedDataParallel) and not now:
        return module.no_sync()
    return _nothing()


@contextmanager
def _fsdp_sync(module: FSDPModule, now: bool) -> Iterator[None]:
    module.set_requires_gradient_sync(now)
    yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their joint norm is at most `limit` (0 = measure only); returns the norm before.

    The norm is that of the whole gradient, over all processes' shares.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"), foreach=False)
    return float((norm.full_tensor() if isinstance(norm, DTensor) else norm).item())
