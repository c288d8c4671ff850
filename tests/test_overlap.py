"""Overlap: order is kept, memory is bounded, errors come through, leaving early stops the thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from animx.overlap import Drain, prefetch


def threads() -> int:
    return sum(thread.name.startswith("animx-") for thread in threading.enumerate())


def feed(sink: Callable[[int], None], count: int, error: BaseException | None = None) -> None:
    """Put `count` numbers into a drain, then leave it by `error`."""
    with Drain(sink, 8) as drain:
        for i in range(count):
            drain.put(i)
        if error is not None:
            raise error


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_prefetch_keeps_order_and_count(depth: int, count: int) -> None:
    assert list(prefetch(range(count), depth)) == list(range(count))
    assert threads() == 0


def test_prefetch_reads_ahead_but_not_further_than_its_depth() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    ahead = prefetch(items(), 4)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert 4 <= len(made) <= 6  # one taken, four queued, one in the hand
    ahead.close()
    assert threads() == 0


def test_prefetch_raises_the_error_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("frame 3 is damaged")

    ahead = prefetch(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="frame 3"):
        next(ahead)


def test_leaving_prefetch_early_closes_what_it_reads() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    ahead = prefetch(items())
    next(ahead)
    ahead.close()
    assert closed == [True]
    assert threads() == 0


def test_drain_eats_everything_in_order_before_it_ends() -> None:
    eaten: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.002)
        eaten.append(item)

    with Drain(slow, 2) as drain:
        for i in range(40):
            drain.put(i)
    assert eaten == list(range(40))
    assert threads() == 0


def test_drain_holds_no_more_than_its_depth() -> None:
    gate = threading.Event()
    with Drain(lambda item: gate.wait(), 3) as drain:
        for i in range(4):  # one in the sink's hand, three queued
            drain.put(i)
        began = time.perf_counter()
        threading.Timer(0.3, gate.set).start()
        drain.put(4)
        assert time.perf_counter() - began > 0.2


def test_drain_raises_the_error_of_its_sink() -> None:
    def full(item: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        feed(full, 100)
    assert threads() == 0


def test_drain_raises_an_error_of_the_last_item_too() -> None:
    def full(item: int) -> None:
        time.sleep(0.05)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), Drain(full, 4) as drain:
        drain.put(1)


def test_an_exception_in_the_block_drops_what_is_queued_and_wins() -> None:
    eaten: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.05)
        eaten.append(item)

    with pytest.raises(KeyboardInterrupt):
        feed(slow, 8, KeyboardInterrupt())
    assert len(eaten) < 8
    assert threads() == 0
