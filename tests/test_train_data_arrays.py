"""Arrays of samples: pictures become the same numbers as by plain numpy, and memory is used again, never too early."""

from __future__ import annotations

import numpy as np
import pytest

from animx_trainer import arrays
from animx_trainer.arrays import empty, placed_in, scaled

LARGE = (arrays.LARGE,)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A store of its own for each test."""
    found: dict = {}
    monkeypatch.setattr(arrays, "_store", found)
    return found


def test_pictures_become_the_numbers_of_plain_float32_arithmetic() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (17, 31, 3), dtype=np.uint8) for _ in range(4)]
    planes = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32)
    for factor, add in ((1 / 255, 0.0), (2 / 255, -1.0)):
        expected = planes * np.float32(factor) + np.float32(add)
        assert scaled(pictures, factor, add).tobytes() == np.ascontiguousarray(expected).tobytes()
    flipped = [picture[::-1, :, ::-1] for picture in pictures]  # whose bytes do not lie in order
    assert np.array_equal(scaled(flipped, 1.0), planes[:, ::-1, ::-1])


def test_memory_is_used_again_when_its_last_view_is_gone(store: dict) -> None:
    first = empty(LARGE)
    first[:] = 1
    part = first.reshape(2, -1)[1][3:5]
    del first
    second = empty(LARGE)
    second[:] = 2
    assert part.tolist() == [1, 1], "a view still holds it"
    assert not any(store.values())
    del part
    assert [len(shelf) for shelf in store.values()] == [1]
    assert empty(LARGE)[0] == 1, "the memory of the first one, as it was left"


def test_the_store_keeps_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch, store: dict) -> None:
    monkeypatch.setattr(arrays, "STORE_BYTES", 3 * 4 * arrays.LARGE)
    held = [empty(LARGE) for _ in range(5)]
    del held
    assert [len(shelf) for shelf in store.values()] == [3]


def test_within_a_block_arrays_lie_in_it_as_far_as_it_reaches() -> None:
    block = np.zeros(10, np.float32)
    with placed_in(block) as place:
        one, two, three = empty((2, 2)), empty((4,)), empty((3,))
        one[:], two[:], three[:] = 1, 2, 3
        assert block.tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 0, 0]
        assert [place.offset_of(one), place.offset_of(two[1:3])] == [0, 5]
        assert place.offset_of(np.array([7, 8], np.float32)) == 8, "what lies elsewhere is copied"
        assert place.offset_of(three) is None, "no room"
    assert block[8:].tolist() == [7, 8]
    assert not np.shares_memory(empty((2,)), block)


def test_a_view_out_of_order_is_copied_in_order() -> None:
    block = np.zeros(8, np.float32)
    with placed_in(block) as place:
        made = empty((2, 2))
        made[:] = [[1, 2], [3, 4]]
        assert place.offset_of(made.T) == 4
    assert block[4:].tolist() == [1, 3, 2, 4]
