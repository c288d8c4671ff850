"""Several processes on one render: windows and guidance branches are dealt out, results are shared, all stay equal.

Started with `torchrun --nproc-per-node N -m animx render ...`; without it there is one rank and nothing is sent.
Every rank holds the same latents; rank 0 alone reads and writes files.

All that is said between ranks, tensors apart, goes through one kind of meeting.  A rank that runs out of memory sends
its failure to the meeting the others are at or come to next, whichever that is; so all of them fail there together,
and none waits for what will not come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from animx.processes import rank_of_environment

DECODING = "while decoding"
"""Note on an out-of-memory error that a smaller `decode_batch` may mend."""


@dataclass(frozen=True)
class _Failure:
    """What a rank brings to a meeting when its memory has run out."""

    rank: int
    decoding: bool


class SharedOutOfMemoryError(torch.OutOfMemoryError):
    """Memory ran out on some rank, and all ranks know."""


class Ranks:
    """This process among its peers."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def meet(self, value: Any = None) -> list[Any]:
        """What every rank has brought, in order of the ranks; any picklable objects.

        Raises `SharedOutOfMemoryError` on every rank when one of them brought a failure (see `failed`).
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        brought: list[Any] = [None] * self.size
        dist.all_gather_object(brought, value)
        failures = [one for one in brought if isinstance(one, _Failure)]
        if failures:
            names = ", ".join(str(one.rank) for one in failures)
            error = SharedOutOfMemoryError(f"out of memory on rank {names} of {self.size}")
            if all(one.decoding for one in failures):
                error.add_note(DECODING)
            raise error
        return brought

    def failed(self, error: torch.OutOfMemoryError) -> torch.OutOfMemoryError:
        """Tell the others, unless they know, that memory ran out here; returns the error that all of them get."""
        if self.size == 1 or isinstance(error, SharedOutOfMemoryError):
            return error
        try:
            self.meet(_Failure(self.rank, DECODING in getattr(error, "__notes__", ())))
        except SharedOutOfMemoryError as shared:
            return shared
        raise AssertionError("a meeting with a failure ended well")

    def evaluate(self, tasks: Sequence[Callable[[], Tensor]], like: Tensor) -> list[Tensor]:
        """Results of all tasks, in order.  Task i runs on rank i mod size.

        A task's result reaches the others bit by bit, so the sum of all is the same as in one process.
        """
        if self.size == 1:
            return [task() for task in tasks]
        import torch.distributed as dist

        own = {i: task().contiguous() for i, task in enumerate(tasks) if i % self.size == self.rank}
        shapes: dict[int, Sequence[int]] = {}
        for brought in self.meet({i: tuple(value.shape) for i, value in own.items()}):
            shapes |= brought
        results = [own[i] if i in own else like.new_empty(shapes[i]) for i in range(len(tasks))]
        self.meet()  # from here on nothing is allocated: whoever comes this far can go through with it
        for i, value in enumerate(results):
            dist.broadcast(value, src=i % self.size)
        return results

    def from_first(self, value: Tensor | None) -> Tensor | None:
        """What rank 0 holds (None included), on every rank; CPU tensors."""
        found: Tensor | None = self.from_first_object(value)
        return found

    def from_first_object(self, value: Any) -> Any:
        """What rank 0 holds, on every rank; any picklable object."""
        return self.meet(value if self.is_first else None)[0]

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            import torch.distributed as dist

            self.meet()
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
        # Tensors travel between cards; words between processes, so that a full card does not silence its rank.
        kind = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(kind, timeout=timedelta(days=1))
    return Ranks(rank, size)


def device_of_rank(device: str) -> str:
    """The device of this process: under torchrun each takes the CUDA device of its local number."""
    if device != "cuda" or rank_of_environment()[1] == 1:
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
