"""Several processes on one render: windows and guidance branches are dealt out, results are shared, all stay equal.

Started with `torchrun --nproc-per-node N -m animx render ...`; without it there is one rank and nothing is sent.
Every rank holds the same latents; rank 0 alone reads and writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from animx.processes import rank_of_environment


class Ranks:
    """This process among its peers."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def evaluate(self, tasks: Sequence[Callable[[], Tensor]], like: Tensor) -> list[Tensor]:
        """Results of all tasks, in order.  Task i runs on rank i mod size; every result has the shape of its window.

        A task's result reaches the others bit by bit, so the sum of all is the same as in one process.
        """
        if self.size == 1:
            return [task() for task in tasks]
        import torch.distributed as dist

        own = {i: task() for i, task in enumerate(tasks) if i % self.size == self.rank}
        results = []
        for i in range(len(tasks)):
            owner = i % self.size
            shape = [list(own[i].shape)] if owner == self.rank else [[]]
            dist.broadcast_object_list(shape, src=owner)
            value = own[i].contiguous() if owner == self.rank else like.new_empty(shape[0])
            dist.broadcast(value, src=owner)
            results.append(value)
        return results

    def from_first(self, value: Tensor | None) -> Tensor | None:
        """What rank 0 holds (None included), on every rank; CPU tensors."""
        found: Tensor | None = self.from_first_object(value)
        return found

    def from_first_object(self, value: Any) -> Any:
        """What rank 0 holds, on every rank; any picklable object."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()
            dist.destroy_process_group()


def join(device: str) -> Ranks:
    """Join the group that torchrun has made, if it has; `device` decides between gloo and nccl."""
    rank, size = rank_of_environment()
    if size == 1:
        return Ranks()
    import torch.distributed as dist

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # The others wait while the first decodes and writes: however long that takes, it is no failure.
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=1))
    return Ranks(rank, size)


def device_of_rank(device: str) -> str:
    """The device of this process: under torchrun each takes the CUDA device of its local number."""
    if device != "cuda" or rank_of_environment()[1] == 1:
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
