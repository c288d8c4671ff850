"""The loader: which samples each step holds, made ahead of time by worker processes (torch's DataLoader underneath).

In: a `ClipSource`.  Out: for each step the samples of this rank, in the order of their keys.  Which clip and which seed
a global sample has follows from (seed, step, global sample) alone (`animx_trainer.sample`), so neither workers nor
ranks nor a restart change any byte, and resuming in the middle of an epoch is `start_step=N`: nothing is skipped over.
"""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import fields, replace
from queue import SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from animx.errors import AnimxError, BatchError, UsageError
from animx_trainer.arrays import Place, lent, placed_in
from animx_trainer.sample import ClipSource, Sample, clip_of, sample_seed

AHEAD = 2
"""Steps that each worker prepares ahead."""
STOP_S = 5.0
"""Seconds that closing waits for the step that is being fetched."""
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
    """The block itself, or its number in the ring."""
    samples: list[dict[str, Any]]
    """Per sample its fields; an array is (offset in the block, shape)."""


class Ring:
    """Blocks of memory that workers and the first process share, each large enough for the samples of a step.

    The first process hands out a free block with every step it asks for; a worker writes the samples into it; the
    samples are views of it, and when the last of them is gone the block is free again.  Nothing is copied.
    Anonymous memory, inherited by fork: it needs no /dev/shm, and warm pages are many times as fast as new ones.
    """

    def __init__(self, blocks: int, numbers: int) -> None:
        self._blocks = [mmap.mmap(-1, 4 * numbers) for _ in range(blocks)]
        self._free = deque(range(blocks))

    def take(self) -> int:
        """The number of a block that nobody uses; -1 when the consumer holds them all."""
        return self._free.popleft() if self._free else -1

    def block(self, number: int) -> NDArray[np.float32]:
        """A block, to be written."""
        return np.frombuffer(self._blocks[number], np.float32)

    def lend(self, number: int) -> NDArray[np.float32]:
        """A block, to be read; it is free again when no view of this array is left."""
        return lent(self._blocks[number], self._free.append, number)


def described(samples: list[Sample], offset_of: Callable[[NDArray[np.float32]], int | None]) -> list[dict[str, Any]]:
    """The fields of samples with arrays replaced by (offset, shape)."""
    rows: list[dict[str, Any]] = []
    for sample in samples:
        values = {one.name: getattr(sample, one.name) for one in fields(sample)}
        rows.append(
            {
                name: (offset_of(value), value.shape) if isinstance(value, np.ndarray) else value
                for name, value in values.items()
            }
        )
    return rows


def numbers_of(samples: list[Sample]) -> int:
    """How many numbers the arrays of samples hold."""
    values = [getattr(sample, one.name) for sample in samples for one in fields(sample)]
    return sum(value.size for value in values if isinstance(value, np.ndarray))


def pack(samples: list[Sample], number: int = -1, place: Place | None = None) -> Packed:
    """The samples as they travel: in the ring's block `number`, where `place` says what of it is taken already.

    Arrays that lie in the block stay where they are, others are copied into it; where they do not fit, all of them go
    into a block of their own.
    """
    if place is not None:
        rows = described(samples, place.offset_of)
        if all(value[0] is not None for row in rows for value in row.values() if isinstance(value, tuple)):
            return Packed(number, rows)
    own = Place(np.empty(numbers_of(samples), np.float32))
    return Packed(own.block, described(samples, own.offset_of))


def unpack(packed: Packed, ring: Ring | None = None) -> list[Sample]:
    """The samples of a block; their arrays are views of it."""
    if isinstance(packed.block, int):
        assert ring is not None
        whole = ring.lend(packed.block)
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

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, asked: tuple[int, int]) -> Packed | AnimxError:
        step, number = asked
        if self.ring is None or number < 0:
            found = self.load(step)
            return found if isinstance(found, AnimxError) else pack(found)
        with placed_in(self.ring.block(number)) as place:
            found = self.load(step)
            return found if isinstance(found, AnimxError) else pack(found, number, place)

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
    # per worker those it prepares ahead; one is asked for before the one before it is let go, one taken over, one used
    steps.ring = Ring(AHEAD * workers + 4, max(1, numbers_of(first))) if FORK else None
    del first
    step, made = start + 1, _taken_over(_started(_loaded(steps, start + 1, workers)))
    with closing(made):
        while True:
            try:
                item = next(made)
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                raise _died(error, step) from error
            samples = unpack(_checked(item), steps.ring)
            yield samples
            del item, samples
            step += 1


def _taken_over(made: Iterator[Any]) -> Generator[Any, None, None]:
    """What `made` gives, each item fetched by a thread while the consumer is busy with the one before.

    Fetching costs little work but several changes between processes, which on busy cores take milliseconds.
    """
    wanted, stop = threading.Semaphore(1), threading.Event()
    found: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def fetch() -> None:
        while wanted.acquire() and not stop.is_set():
            try:
                found.put((next(made), None))
            except BaseException as error:  # whatever it is, it belongs to the consumer
                found.put((None, error))

    thread = threading.Thread(target=fetch, name="animx-loader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = found.get()
            if error is not None:
                raise error
            wanted.release()
            yield item
            del item
    finally:
        stop.set()
        wanted.release()
        thread.join(STOP_S)
        _end(made)  # now, not when the collector comes across it: by then workers can no longer be told to end


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
        sampler=_Asked(start, steps.ring),
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
    if not _running:  # after the handlers of multiprocessing, so it is called before them
        atexit.unregister(_end_all)
        atexit.register(_end_all)
    _running.add(made)
    return made


_running: WeakSet[Any] = WeakSet()
"""Iterators that have workers."""


def _end_all() -> None:
    """End the workers of iterators that nobody closed: deaf to SIGTERM, they would keep this process from its end."""
    for made in list(_running):
        _end(made)


def _end(made: Any) -> None:
    """Stop the workers of a DataLoader's iterator, and kill those that do not heed it."""
    made._shutdown_workers()
    for worker in made._workers:
        if worker.is_alive():
            worker.kill()


class _Asked:
    """What the workers are asked for: each step with a block to write it into."""

    def __init__(self, start: int, ring: Ring | None) -> None:
        self.start, self.ring = start, ring

    def __len__(self) -> int:
        return ENDLESS - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, -1 if self.ring is None else self.ring.take()) for step in range(self.start, ENDLESS))


def _as_it_is(item: Any) -> Any:
    return item


def _begin(worker: int) -> None:
    """One thread each: the processes are the parallelism.  Whoever stops the run stops its workers: they are deaf."""
    import cv2
    import torch

    for number in (signal.SIGINT, signal.SIGTERM):  # schedulers and terminals signal all processes of a run at once
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
