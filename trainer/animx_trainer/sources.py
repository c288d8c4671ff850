"""Where training clips come from: the table of sources, and the plain loader for those that live in memory.

A source is a function `open(data: DataConfig, seed: int) -> ClipSource` and a dataclass of its own options, which
`data.options` holds.  To add one, write both and name them here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from animx.config import FieldError, build
from animx.errors import AnimxError, InputError, UsageError, nearest
from animx_trainer.config import DataConfig
from animx_trainer.pose_augment import load_epi
from animx_trainer.sample import Batches, ClipSource, Sample, clip_of, sample_seed

SOURCES: dict[str, tuple[str, str]] = {
    "shards": ("animx_trainer.data:open_clips", "animx_trainer.data:DataOptions"),
    "synth": ("animx_trainer.synth:open_synth", "animx_trainer.synth:SynthOptions"),
}
"""Source -> `module:function` that opens it and `module:class` of its options, imported when they are used."""


def check_source(data: DataConfig) -> None:
    """Refuse (`FieldError`) a source that is not known and options it does not have, before anything is opened."""
    if data.source == "":
        return  # the clips are handed over in Python
    if data.source not in SOURCES:
        known = f"{nearest(data.source, SOURCES)} Known: {', '.join(SOURCES)}"
        raise FieldError(f"source: unknown source '{data.source}'.{known}", ("source",))
    try:
        options = build(_found(SOURCES[data.source][1]), dict(data.options), "options", error=UsageError)
        load_epi(options.epi)
    except AnimxError as error:
        raise FieldError(str(error), ("options",)) from error


def _found(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def open_source(data: DataConfig, seed: int) -> ClipSource:
    """The clips of `data`.  An empty or damaged source is an `InputError`."""
    if data.source not in SOURCES:
        raise UsageError("data.source: names none. Set it, or hand over the clips in Python")
    opened: Any = _found(SOURCES[data.source][0])(data, seed)
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
