"""The loader: which samples each step holds, made ahead of time by worker processes (torch's DataLoader underneath).

In: a `ClipSource`.  Out: for each step the samples of this rank, in the order of their keys.  Which clip and which seed
a global sample has follows from (seed, step, global sample) alone (`animx_trainer.sample`), so neither workers nor
ranks nor a restart change any byte, and resuming in the middle of an epoch is `start_step=N`: nothing is skipped over.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from animx.errors import AnimxError, BatchError, UsageError
from animx_trainer.sample import ClipSource, Sample, clip_of, sample_seed

AHEAD = 2
"""Steps that each worker prepares ahead."""
ENDLESS = 2**40


def samples_of(source: ClipSource, seed: int, step: int, keys: range) -> list[Sample]:
    """The samples of one step whose global indices are `keys`."""
    clips = len(source)
    if clips < 1:
        raise UsageError("the source of training clips is empty")
    return [replace(source.sample(clip_of(seed, key, clips), sample_seed(seed, step, key)), key=key) for key in keys]


class Packed(NamedTuple):
    """Samples on their way between processes: all arrays in one block of shared memory, one copy and one handle."""

    block: Any
    """A torch tensor of bytes."""
    samples: list[dict[str, Any]]
    """Per sample its fields; an array is (offset in the block, shape)."""


def pack(samples: list[Sample]) -> Packed:
    """Put the arrays of samples into one block of shared memory."""
    import torch

    described: list[dict[str, Any]] = []
    arrays: list[tuple[int, NDArray[np.float32]]] = []
    end = 0
    for sample in samples:
        row: dict[str, Any] = {}
        for one in fields(sample):
            value = getattr(sample, one.name)
            if isinstance(value, np.ndarray):
                arrays.append((end, value))
                row[one.name] = (end, value.shape)
                end += value.size
            else:
                row[one.name] = value
        described.append(row)
    storage = torch.UntypedStorage._new_shared(max(1, end) * 4, device="cpu")  # type: ignore[no-untyped-call]
    block = torch.empty(0, dtype=torch.float32).set_(storage)
    view = block.numpy()
    for start, value in arrays:
        view[start : start + value.size] = value.reshape(-1)
    return Packed(block, described)


def unpack(packed: Packed) -> list[Sample]:
    """The samples of a block; their arrays are views of it."""
    view = packed.block.numpy()

    def of(value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        start, shape = value
        return view[start : start + int(np.prod(shape))].reshape(shape)

    return [Sample(**{name: of(value) for name, value in row.items()}) for row in packed.samples]


class _Steps:
    """The steps of a run as a map-style data set: item s is the list of this rank's samples, or the error."""

    def __init__(self, source: ClipSource, seed: int, batch: int, ranks: int, rank: int) -> None:
        self.source, self.seed, self.batch = source, seed, batch
        self.share = batch // ranks
        self.first = rank * self.share

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> Packed | AnimxError:
        found = self.load(step)
        return found if isinstance(found, AnimxError) else pack(found)

    def load(self, step: int) -> list[Sample] | AnimxError:
        """The samples of a step, or what is wrong with them."""
        start = step * self.batch + self.first
        try:
            return samples_of(self.source, self.seed, step, range(start, start + self.share))
        except AnimxError as error:  # handed over as it is: a worker's traceback would hide its one line
            return error


def batches(
    source: ClipSource,
    *,
    seed: int,
    batch: int,
    start_step: int = 0,
    ranks: int = 1,
    rank: int = 0,
    workers: int = 0,
) -> Iterator[list[Sample]]:
    """This rank's samples of each step from `start_step` on, without end; see `animx_trainer.sample.Batches`.

    `batch` is the global one and a multiple of `ranks`.  `workers` processes prepare steps ahead; 0 prepares here.
    Bad data is the source's `InputError`; a worker that dies is a `BatchError` that says so.  Closing the iterator
    stops the workers.
    """
    if batch < 1 or ranks < 1 or batch % ranks or not 0 <= rank < ranks:
        raise UsageError(f"a batch of {batch} cannot be shared by {ranks} processes (this is {rank}). Use a multiple")
    if start_step < 0 or workers < 0:
        raise UsageError(f"start step {start_step} and {workers} workers: neither can be below 0")
    return _stream(_Steps(source, seed, batch, ranks, rank), start_step, workers)


def _stream(steps: _Steps, start: int, workers: int) -> Iterator[list[Sample]]:
    made: Iterator[Any] = iter(_loaded(steps, start, workers)) if workers else map(steps.load, range(start, ENDLESS))
    step = start
    while True:
        try:
            item = next(made)
        except RuntimeError as error:
            if workers == 0 or "worker" not in str(error):
                raise
            raise _died(error, step) from error
        if isinstance(item, AnimxError):
            raise item
        yield unpack(item) if workers else item
        step += 1


def _died(error: RuntimeError, step: int) -> BatchError:
    what = " ".join(str(error).split()).partition(". It is possible")[0]
    return BatchError(
        f"a loader worker died at step {step} ({what}): out of memory, or too little shared memory (/dev/shm). "
        "Use fewer data.workers, and resume"
    )


def _loaded(steps: _Steps, start: int, workers: int) -> Any:
    from torch.utils.data import DataLoader

    # fork where it exists: workers start at once and share the index of the data with this process
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    return DataLoader(
        steps,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, ENDLESS),
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        multiprocessing_context=method,
    )


def _as_it_is(item: Any) -> Any:
    return item


def _begin(worker: int) -> None:
    """One thread each: the processes are the parallelism."""
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
