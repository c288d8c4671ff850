"""Where training clips come from: the table of sources, and the plain loader for those that live in memory.

A source is a function `open(data: DataConfig, seed: int) -> ClipSource`; `data.options` holds what only it knows.  To
add one, write the function and name it here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from animx.errors import InputError, UsageError, nearest
from animx_trainer.config import DataConfig
from animx_trainer.sample import Batches, ClipSource, Sample, clip_of, sample_seed

SOURCES: dict[str, str] = {
    "drawn": "animx_trainer.drawn:open_drawn",
    "shards": "animx_trainer.data:open_clips",
    "synth": "animx_trainer.synth:open_synth",
}
"""Source -> `module:function`, imported when it is used."""


def open_source(data: DataConfig, seed: int) -> ClipSource:
    """The clips of `data`.  An unknown source is a `UsageError`; an empty or damaged one an `InputError`."""
    if data.source not in SOURCES:
        raise UsageError(
            f"data.source: unknown source '{data.source}'.{nearest(data.source, SOURCES)} Known: {', '.join(SOURCES)}"
        )
    module, _, function = SOURCES[data.source].partition(":")
    opened: Any = getattr(importlib.import_module(module), function)(data, seed)
    assert isinstance(opened, ClipSource)
    if len(opened) == 0:
        raise InputError(f"data: source '{data.source}' {data.path}: holds no clip")
    return opened


def loader_of(data: DataConfig) -> Batches:
    """The loader for a source of `data`: worker processes where they are asked for."""
    if data.workers == 0:
        return serial_batches
    from animx_trainer.loader import batches

    return batches


def keys_of(step: int, batch: int, ranks: int = 1, rank: int = 0) -> range:
    """Global samples of `step` that `rank` works on."""
    share = batch // ranks
    first = step * batch + rank * share
    return range(first, first + share)


def make_sample(source: ClipSource, seed: int, batch: int, key: int) -> Sample:
    """The global sample `key`: which clip, and its own seed, follow from the run's seed alone."""
    index = clip_of(seed, key, len(source))
    return replace(source.sample(index, sample_seed(seed, key // batch, key)), key=key)


def serial_batches(
    source: ClipSource,
    *,
    seed: int,
    batch: int,
    start_step: int = 0,
    ranks: int = 1,
    rank: int = 0,
    workers: int = 0,
) -> Iterator[list[Sample]]:
    """A `Batches` loader without workers: each sample is made when its step comes."""
    step = start_step
    while True:
        yield [make_sample(source, seed, batch, key) for key in keys_of(step, batch, ranks, rank)]
        step += 1
