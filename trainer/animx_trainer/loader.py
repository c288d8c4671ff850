"""The loader: which samples each step holds, made ahead of time by worker processes (torch's DataLoader underneath).

In: a `ClipSource`.  Out: for each step the samples of this rank, in the order of their keys.  Which clip and which seed
a global sample has follows from (seed, step, global sample) alone (`animx_trainer.sample`), so neither workers nor
ranks nor a restart change any byte, and resuming in the middle of an epoch is `start_step=N`: nothing is skipped over.
"""

from __future__ import annotations

import mmap
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from animx.errors import AnimxError, BatchError, UsageError
from animx_trainer.sample import ClipSource, Sample, clip_of, sample_seed

AHEAD = 2
"""Steps that each worker prepares ahead."""
ENDLESS = 2**40
FORK = "fork" in multiprocessing.get_all_start_methods()
"""Where fork exists workers start at once and share the index of the data and the ring with this process."""


def samples_of(source: ClipSource, seed: int, step: int, keys: range) -> list[Sample]:
    """The samples of one step whose global indices are `keys`."""
    clips = len(source)
    if clips < 1:
        raise UsageError("the source of training clips is empty")
    return [replace(source.sample(clip_of(seed, key, clips), sample_seed(seed, step, key)), key=key) for key in keys]


class Packed(NamedTuple):
    """Samples on their way between processes: their arrays lie in one block, everything else beside it."""

    block: NDArray[np.float32] | int
    """The block itself, or the number of the ring's block of that worker."""
    worker: int
    size: int
    """Numbers in the block."""
    samples: list[dict[str, Any]]
    """Per sample its fields; an array is (offset in the block, shape)."""


class Ring:
    """Memory that workers and the first process share: `AHEAD + 1` blocks a worker, written again and again.

    A worker is asked for its item k when item k - AHEAD has been taken, so block k modulo AHEAD + 1 is free by then.
    Anonymous memory, inherited by fork: it needs no /dev/shm, and warm pages are many times as fast as new ones.
    """

    def __init__(self, workers: int, numbers: int) -> None:
        self.numbers = numbers
        self._blocks = [[mmap.mmap(-1, 4 * numbers) for _ in range(AHEAD + 1)] for _ in range(workers)]

    def block(self, worker: int, number: int) -> NDArray[np.float32]:
        """Block `number` (any item's number) of a worker."""
        return np.frombuffer(self._blocks[worker][number % (AHEAD + 1)], np.float32)


def described(samples: list[Sample]) -> tuple[list[dict[str, Any]], list[tuple[int, NDArray[np.float32]]], int]:
    """The fields of samples with arrays replaced by (offset, shape), the arrays with their offsets, and the total."""
    rows: list[dict[str, Any]] = []
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
        rows.append(row)
    return rows, arrays, end


def pack(samples: list[Sample], ring: Ring | None = None, worker: int = 0, number: int = 0) -> Packed:
    """Put the arrays of samples into a block of the ring; into one of their own where they do not fit."""
    rows, arrays, end = described(samples)
    fits = ring is not None and end <= ring.numbers
    block = ring.block(worker, number) if ring is not None and fits else np.empty(end, np.float32)
    for start, value in arrays:
        block[start : start + value.size] = value.reshape(-1)
    return Packed(number if fits else block, worker, end, rows)


def unpack(packed: Packed, ring: Ring | None = None) -> list[Sample]:
    """The samples of a block; their arrays are views of one copy that belongs to nobody else."""
    if isinstance(packed.block, int):
        assert ring is not None
        whole = ring.block(packed.worker, packed.block)[: packed.size].copy()
    else:
        whole = packed.block

    def of(value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        start, shape = value
        return whole[start : start + int(np.prod(shape))].reshape(shape)

    return [Sample(**{name: of(value) for name, value in row.items()}) for row in packed.samples]


class _Steps:
    """The steps of a run as a map-style data set: item s is the list of this rank's samples, or the error."""

    def __init__(self, source: ClipSource, seed: int, batch: int, ranks: int, rank: int) -> None:
        self.source, self.seed, self.batch = source, seed, batch
        self.share = batch // ranks
        self.first = rank * self.share
        self.ring: Ring | None = None
        self.worker = self.made = 0

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> Packed | AnimxError:
        found = self.load(step)
        if isinstance(found, AnimxError):
            return found
        self.made += 1
        return pack(found, self.ring, self.worker, self.made - 1)

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
    if workers == 0:
        for step in range(start, ENDLESS):
            yield _checked(steps.load(step))
        return
    first = _checked(steps.load(start))  # made here: tells how large a step is, and the first one needs no waiting
    yield first
    steps.ring = Ring(workers, max(1, described(first)[2])) if FORK else None
    del first
    step, made = start + 1, _started(_loaded(steps, start + 1, workers))
    while True:
        try:
            item = next(made)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise _died(error, step) from error
        yield unpack(_checked(item), steps.ring)
        step += 1


def _checked(item: Any) -> Any:
    if isinstance(item, AnimxError):
        raise item
    return item


def _died(error: RuntimeError, step: int) -> BatchError:
    what = " ".join(str(error).split()).partition(". It is possible")[0]
    return BatchError(
        f"a loader worker died at step {step} ({what}): probably out of memory. Use fewer data.workers, and resume"
    )


def _loaded(steps: _Steps, start: int, workers: int) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(
        steps,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, ENDLESS),
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        multiprocessing_context="fork" if FORK else "spawn",
    )


def _started(loader: Any) -> Iterator[Any]:
    """Start the workers, but not torch's handler that raises wherever this process happens to be when one dies.

    In the middle of an optimiser's step or of a checkpoint nobody expects it; asking for the next item tells it too.
    """
    before = signal.getsignal(signal.SIGCHLD)
    made: Iterator[Any] = iter(loader)
    with suppress(ValueError):  # not the main thread, where torch set none either
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    return made


def _as_it_is(item: Any) -> Any:
    return item


def _begin(worker: int) -> None:
    """One thread each: the processes are the parallelism.  Whoever stops the run stops its workers: they are deaf."""
    import cv2
    import torch
    from torch.utils.data import get_worker_info

    here: Any = get_worker_info()
    here.dataset.worker = worker

    for number in (signal.SIGINT, signal.SIGTERM):  # schedulers and terminals signal all processes of a run at once
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
