"""A step of the network as one recorded graph: no launch costs host time, the shapes stay as they are.

A CUDA graph replays the kernels it was recorded with on the memory it was recorded with.  So everything a pass reads
lies in buffers of its own: latents and timesteps are copied into them at every step, conditions when they are others
than the last ones.  One recording serves all windows of one shape.  What a device records is behind `Record`, so that
the buffers are tested without one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from animx.model.attention import KeyValue, MotionFold
from animx.model.conditions import Conditions
from animx.model.layers import Times

log = logging.getLogger(__name__)

Network = Callable[[Tensor, Tensor, Conditions, Times], Tensor]
"""(latents [B, 4, F, h, w], timesteps [B], conditions, times) -> velocity of the latents' shape."""

Replay = Callable[[], None]

Record = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Runs the work once and returns what repeats it on the same memory, and the tensor its result appears in."""

WARM_UP = 3
"""Passes before a recording: kernels are compiled and libraries choose their algorithms in them."""


class RecordCuda:
    """Records CUDA graphs on the current device, each on a stream of its own.

    All recordings of one object share the memory of a pass: one is replayed at a time, and reads nothing that another
    has left there (results excepted, which are never given back while a recording lives).
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """See `Record`."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Named: the default stream of all recordings lies on the device that recorded first.  thread_local: other
        # threads (a decoder, the watchdog of NCCL) allocate memory and ask for events, which must not end a recording.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            out = work()
        if self._pool is None:
            self._pool = graph.pool()
        return graph.replay, out


@dataclass
class _Recording:
    x: Tensor
    t: Tensor
    conditions: Conditions
    times: Times
    replay: Replay
    out: Tensor
    held: tuple[Conditions, Times]
    """Whose values lie in the buffers; kept, so that no other object can take their identity."""


class Recorded:
    """A network that is recorded at the first pass of each shape and replayed afterwards.

    A recording keeps the memory of a pass and refers to the weights where they lie: make a new one when they move.
    """

    def __init__(self, network: Network, record: Record | None = None) -> None:
        self.network, self.record = network, record or RecordCuda()
        self._recordings: dict[tuple[object, ...], _Recording] = {}

    def __call__(self, x: Tensor, t: Tensor, conditions: Conditions, times: Times) -> Tensor:
        """The network's velocity, in memory that stays the caller's.  A failed recording is said once and raised."""
        key = tuple((part.shape, part.dtype, part.device) for part in _tensors(x, t, conditions, times))
        found = self._recordings.get(key)
        if found is None:
            found = self._recordings[key] = self._recorded(x, t, conditions, times)
            return found.out.clone()
        found.x.copy_(x)
        found.t.copy_(t)
        if found.held[0] is not conditions or found.held[1] is not times:
            old, new = (list(_tensors(x, t, *pair)) for pair in ((found.conditions, found.times), (conditions, times)))
            for buffer, value in zip(old[2:], new[2:], strict=True):
                buffer.copy_(value)
            found.held = (conditions, times)
        found.replay()
        return found.out.clone()

    def _recorded(self, x: Tensor, t: Tensor, conditions: Conditions, times: Times) -> _Recording:
        own_x, own_t = x.clone(), t.clone()
        own_conditions, own_times = _copied(conditions), replace(
            times, shifts=times.shifts.clone(), position=times.position.clone()
        )  # fmt: skip
        with torch.cuda.device_of(own_x):  # type: ignore[no-untyped-call]  # streams belong to the current device
            replay, out = self.record(lambda: self.network(own_x, own_t, own_conditions, own_times))
        replay()  # recording alone computes nothing
        log.info("a step of %d windows of %d frames is recorded", x.shape[0], x.shape[2])
        return _Recording(own_x, own_t, own_conditions, own_times, replay, out, (conditions, times))


def _copied(conditions: Conditions) -> Conditions:
    def pair(one: KeyValue) -> KeyValue:
        return one[0].clone(), one[1].clone()

    def motion(one: KeyValue | MotionFold | None) -> KeyValue | MotionFold | None:
        if one is None:
            return None
        return MotionFold(*(part.clone() for part in one)) if isinstance(one, MotionFold) else pair(one)

    return Conditions(
        conditions.dense.clone(),
        conditions.reference.clone(),
        tuple(pair(one) for one in conditions.context),
        tuple(motion(one) for one in conditions.motion),
    )


def _tensors(x: Tensor, t: Tensor, conditions: Conditions, times: Times) -> Iterator[Tensor]:
    """All tensors of a pass in a fixed order, latents and timesteps first."""
    yield from (x, t, times.shifts, times.position, conditions.dense, conditions.reference)
    for part in (*conditions.context, *conditions.motion):
        yield from part or ()
