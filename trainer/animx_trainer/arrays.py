"""Where the arrays of samples lie, and pictures turned into them.

A source asks `empty` for every array of a sample.  As a rule that is memory of its own, which goes back to a store when
nobody uses it any more: new pages cost several times what is written into them.  Inside `placed_in(block)` the arrays
are laid into the block one after the other, as far as it reaches: the loader's workers write samples straight into the
memory that the first process reads.  So what `empty` gave is part of one sample and is never kept for the next.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])

LARGE = 1 << 14
"""Arrays from this many numbers on are taken from the store."""
STORE_BYTES = 512 << 20
"""Most unused memory that is kept in the store."""


@dataclass
class Place:
    """A block of memory and how many of its numbers are taken."""

    block: Floats
    taken: int = 0

    def take(self, count: int) -> Floats | None:
        """The next `count` numbers of the block; None when it does not reach."""
        if self.taken + count > len(self.block):
            return None
        start, self.taken = self.taken, self.taken + count
        return self.block[start : self.taken]

    def offset_of(self, array: Floats) -> int | None:
        """Where in the block `array` lies, in numbers; what lies elsewhere is copied into it.  None: no room."""
        first = (_address(array) - _address(self.block)) // 4
        if 0 <= first <= len(self.block) - array.size and array.flags.c_contiguous:
            return first
        start, place = self.taken, self.take(array.size)
        if place is None:
            return None
        place[:] = array.reshape(-1)
        return start


def _address(array: Floats) -> int:
    return int(array.__array_interface__["data"][0])


_place: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def placed_in(block: Floats) -> Iterator[Place]:
    """Within, `empty` lays arrays into `block` (one-dimensional)."""
    place = Place(block)
    before = _place.set(place)
    try:
        yield place
    finally:
        _place.reset(before)


def empty(shape: tuple[int, ...]) -> Floats:
    """A C-contiguous float32 array whose numbers are not set."""
    count = int(np.prod(shape))
    place = _place.get()
    found = None if place is None else place.take(count)
    if found is None:
        found = np.empty(count, np.float32) if count < LARGE else _stored(count)
    return found.reshape(shape)


_store: dict[int, list[mmap.mmap]] = {}


def _stored(count: int) -> Floats:
    """Memory out of the store, which has it back when the last view of it is gone."""
    shelf = _store.get(4 * count)
    memory = shelf.pop() if shelf else mmap.mmap(-1, 4 * count)
    return lent(memory, _put_back, memory)


def lent(memory: mmap.mmap, give_back: Callable[..., Any], *arguments: Any) -> Floats:
    """The numbers of `memory` [N]; `give_back(*arguments)` is called when no view of them is left."""
    # views of views refer to the first array over a buffer, so this one lives as long as any of them
    array = np.frombuffer(memory, np.float32)
    weakref.finalize(array, give_back, *arguments).atexit = False
    return array


def _put_back(memory: mmap.mmap) -> None:
    if sum(size * len(shelf) for size, shelf in _store.items()) + len(memory) <= STORE_BYTES:
        _store.setdefault(len(memory), []).append(memory)


def scaled(pictures: Sequence[NDArray[np.uint8]], factor: float, add: float = 0.0) -> Floats:
    """RGB [H, W, 3] each, all of one size -> [N, 3, H, W] float32, times `factor` plus `add`."""
    height, width = pictures[0].shape[:2]
    result = empty((len(pictures), 3, height, width))
    for planes, picture in zip(result.reshape(len(pictures), 3, -1), pictures, strict=True):
        _planes(picture.reshape(-1), np.float32(factor), np.float32(add), planes[0], planes[1], planes[2])
    return result


def _compiled(function: F) -> F:
    return cast(F, numba.njit(cache=True, nogil=True)(function))


@_compiled
def _planes(
    pixels: NDArray[np.uint8], factor: np.float32, add: np.float32, red: Floats, green: Floats, blue: Floats
) -> None:
    """Interleaved bytes [3 * P] to three planes [P], times `factor` plus `add`, each step rounded to float32."""
    for i in range(len(red)):
        red[i] = np.float32(pixels[3 * i]) * factor + add
        green[i] = np.float32(pixels[3 * i + 1]) * factor + add
        blue[i] = np.float32(pixels[3 * i + 2]) * factor + add
