"""What stays loaded between jobs: inside `kept()` a value that is costly to make is made once a process.

One value at a time, because a model fills a device: another key lets go of the old value before the new one is made.
Outside `kept()` nothing is held.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class _Shelf:
    def __init__(self) -> None:
        self.depth = 0
        self.key: Hashable = None
        self.value: Any = None
        self.made = 0


_shelf = _Shelf()


@contextmanager
def kept() -> Iterator[None]:
    """Keep what `once` makes until the outermost block ends."""
    _shelf.depth += 1
    try:
        yield
    finally:
        _shelf.depth -= 1
        if _shelf.depth == 0:
            _shelf.key = _shelf.value = None


def once(key: Hashable, make: Callable[[], T]) -> T:
    """The value for `key`, made when it is not the one held.  `key` holds all that `make` depends on."""
    if _shelf.depth and _shelf.key == key and _shelf.value is not None:
        value: T = _shelf.value
        return value
    _shelf.key = _shelf.value = None
    _shelf.made += 1
    value = make()
    if _shelf.depth:
        _shelf.key, _shelf.value = key, value
    return value


def made() -> int:
    """How many values this process has made: the number of model loads."""
    return _shelf.made
