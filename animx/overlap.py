"""Overlap: run a producer or a consumer in a thread of its own, in order and with bounded memory.

`prefetch` lets decoding run ahead of what eats the frames; `Drain` lets encoding run behind what makes them.  OpenCV,
PyAV and the pose nets release the interpreter lock, so both cores work.  The order of items never changes, an error of
the thread is raised in the caller, and leaving early (an exception, a signal) stops the thread before it returns.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

_END = object()
_POLL_S = 0.1
"""How often a blocked thread looks whether it shall stop [s]."""


def prefetch(items: Iterable[Item], depth: int = 4) -> Generator[Item, None, None]:
    """Yield `items` in order while a thread reads up to `depth` of them ahead.

    An exception of the iteration is raised here, after the items before it.  Closing the generator stops the thread
    and closes the underlying iterator.
    """
    ahead: queue.Queue[tuple[object, BaseException | None]] = queue.Queue(maxsize=max(1, depth))
    stop = threading.Event()

    def put(entry: tuple[object, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                ahead.put(entry, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put((item, None)):
                    break
            put((_END, None))
        except BaseException as error:
            put((_END, error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=read, name="animx-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ahead.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


class Drain(Generic[Item]):
    """Feed items to `sink` in a thread of its own, at most `depth` behind.

    A context manager: a normal exit waits until all items are eaten; an exit by exception drops what is still queued.
    An error of the sink is raised by the next `put` or by the exit.
    """

    def __init__(self, sink: Callable[[Item], None], depth: int = 4) -> None:
        self._sink = sink
        self._queue: queue.Queue[object] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._eat, name="animx-drain", daemon=True)

    def _eat(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                if self._stop.is_set():
                    return
                continue
            if item is _END or self._stop.is_set():
                return
            try:
                self._sink(item)  # type: ignore[arg-type]
            except BaseException as error:
                self._error = error
                return

    def put(self, item: Item) -> None:
        """Hand over one item; waits while `depth` items are queued.  Raises the sink's error, if any."""
        self._offer(item)

    def _offer(self, item: object) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                return self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue

    def __enter__(self) -> Drain[Item]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._offer(_END)
                self._thread.join()
        finally:
            self._stop.set()
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error
