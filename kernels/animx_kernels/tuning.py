"""The tables of launch configurations: the shipped one, the user's over it, and what a search tries.

Both are JSON: `ops` -> operator -> card (`any`, `sm_80` ...) -> shape key (or `default`) -> entries.  The user's table
is the file `$ANIMX_TUNING` (`off`: none), else `~/.config/animx/tuning.json`; `animx bench ops --tune` writes it.  A
damaged one is said once on the logger `animx.kernels` and ignored as a whole: half a table would launch what nobody
measured.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, cast

log = logging.getLogger("animx.kernels")

Config = dict[str, Any]
"""Entries by name; `origin` and `measured` say where they come from."""

Table = dict[str, dict[str, dict[str, Config]]]
"""Operator -> card -> shape key -> entries."""

MARKS = ("origin", "measured")
"""Entries that no launch reads."""

ROUTES = ("fused", "library")

LARGEST = 1 << 16
"""No entry is larger."""

SEARCH: Mapping[str, tuple[Mapping[str, tuple[Any, ...]], ...]] = {
    "add_layer_norm": ({"elements": (1024, 2048, 4096, 8192), "num_warps": (2, 4, 8)},),
    "attention8": ({"BM": (64, 128), "BN": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4)},),
    "causal_conv_silu": ({"PIXELS": (2, 4, 8, 16), "CHANNELS": (64, 128, 256), "num_warps": (2, 4, 8)},),
    "causal_conv_silu_backward": ({"PIXELS": (2, 4, 8), "CHANNELS": (64, 128, 256), "num_warps": (2, 4, 8)},),
    "channel_sums": ({"tokens": (16, 32, 64), "num_warps": (2, 4, 8)},),
    "geglu": ({"columns": (256, 512, 1024), "elements": (1024, 2048, 4096), "num_warps": (2, 4, 8)},),
    "geglu_backward": ({"columns": (256, 512, 1024), "elements": (1024, 2048, 4096), "num_warps": (2, 4, 8)},),
    "geglu_linear": (
        {
            "route": ("fused",), "rows": (64, 128), "columns": (64, 128), "inner": (32, 64), "num_warps": (4, 8),
            "num_stages": (2, 3, 4),
        },
        {"route": ("library",)},
    ),
    "geglu_linear8": (
        {
            "route": ("fused",), "rows": (64, 128), "columns": (64, 128), "inner": (64, 128), "num_warps": (4, 8),
            "num_stages": (2, 3, 4),
        },
        {"route": ("library",)},
    ),
    "geglu_rows8": ({"rows": (32, 64, 128), "inner": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4)},),
    "group_norm_silu": ({"tokens": (16, 32, 64, 128), "num_warps": (2, 4, 8)},),
    "group_norm_silu_backward": ({"tokens": (8, 16, 32, 64), "num_warps": (2, 4, 8)},),
    "guided_step": ({"elements": (512, 1024, 2048, 4096), "num_warps": (2, 4, 8)},),
    "linear8": (
        {
            "route": ("fused",), "rows": (64, 128), "columns": (64, 128), "inner": (64, 128), "num_warps": (4, 8),
            "num_stages": (2, 3, 4),
        },
        {"route": ("library",)},
    ),
    "layer_norm_backward": ({"elements": (1024, 2048, 4096, 8192), "num_warps": (2, 4, 8)},),
    "motion_attention": (
        {"BN": (16, 32, 64, 128), "BC": (32, 64), "num_warps": (4, 8), "num_stages": (1, 2, 3)},
    ),
    "quantise_keys": ({"elements": (2048, 4096, 8192), "num_warps": (2, 4, 8), "num_stages": (1, 2, 3)},),
    "quantise_rows": ({"elements": (2048, 4096, 8192), "num_warps": (2, 4, 8)},),
    "selective_scan": ({"CHANNELS": (32, 64, 128), "ROWS": (1, 2, 4), "num_warps": (1, 2, 4), "num_stages": (1, 2)},),
    "temporal_attention": ({"PIXELS": (1, 2, 4, 8), "num_warps": (2, 4, 8), "num_stages": (1, 2)},),
    "temporal_attention_backward": ({"PIXELS": (1, 2, 4, 8), "num_warps": (2, 4, 8), "num_stages": (1, 2)},),
    "temporal_conv": (
        {
            "pixels": (32, 64, 128), "columns": (64, 128), "inner": (32, 64), "segments": (1, 2), "num_warps": (4, 8),
            "num_stages": (2, 3),
        },
    ),
}  # fmt: skip
"""What a search tries beside the present configuration: every combination of each block, by operator of the table.

The gradient of `selective_scan` has no search: it is no operator of its own, so no call measures it alone.
"""


def candidates(op: str) -> Iterator[Config]:
    """Every combination that a search tries for `op`; nothing for one that is not in `SEARCH`."""
    for block in SEARCH.get(op, ()):
        for values in product(*block.values()):
            yield dict(zip(block, values, strict=True))


@cache
def shipped() -> Table:
    """The table that comes with the package."""
    text = files("animx_kernels").joinpath("tuning.json").read_text(encoding="utf-8")
    return cast(Table, json.loads(text)["ops"])


def user_file() -> Path:
    """Where the user's table is, whether it exists or not."""
    named = os.environ.get("ANIMX_TUNING", "").strip()
    return Path(named) if named else Path("~/.config/animx/tuning.json").expanduser()


def read_table(file: Path) -> Table:
    """The table in a file.  Errors: `OSError`; `ValueError` naming the first place that is wrong."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:  # UnicodeDecodeError and JSONDecodeError are such
        raise ValueError(f"no JSON ({problem})") from None
    ops = found.get("ops") if isinstance(found, dict) else None
    if not isinstance(ops, dict):
        raise ValueError("no table: it needs an object 'ops'")
    for op, cards in ops.items():
        if op not in shipped():
            raise ValueError(f"unknown operator '{op}'")
        for row, columns in _object(cards, op).items():
            for column, entries in _object(columns, f"{op}/{row}").items():
                _check(op, _object(entries, f"{op}/{row}/{column}"), f"{op}/{row}/{column}")
    return cast(Table, ops)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no object")
    return value


def _check(op: str, entries: dict[str, Any], where: str) -> None:
    known = shipped()[op]["any"]["default"]
    for name, value in entries.items():
        if name in MARKS:
            continue
        if name not in known:
            raise ValueError(f"{where}: unknown entry '{name}'")
        if name == "route":
            right = value in ROUTES
        else:
            whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST
            right = whole and (name == "num_stages" or value & (value - 1) == 0)
        if not right:
            raise ValueError(f"{where}: {name} cannot be {value!r}")


@cache
def _users(file: Path, named: bool) -> Table:
    try:
        return read_table(file)
    except FileNotFoundError:
        if named:
            log.warning("ANIMX_TUNING=%s: no such file; the shipped launch configurations are used", file)
    except (OSError, ValueError) as problem:
        log.warning("%s: %s; the shipped launch configurations are used", file, problem)
    return {}


def users() -> Table:
    """The user's table, read once per file; empty where there is none, it is `off`, or it is damaged (said once)."""
    if os.environ.get("ANIMX_TUNING", "").strip() == "off":
        return {}
    return _users(user_file(), bool(os.environ.get("ANIMX_TUNING", "").strip()))


def reread() -> None:
    """Read the user's table anew at the next call: it was written."""
    _users.cache_clear()


def looked_up(op: str, key: str, capability: int) -> Config:
    """The entries of `op` for shape `key` on a card, later ones winning: shipped `any`, shipped `sm_<card>`, then the
    user's `any` and `sm_<card>`, each `default` before `key`."""
    found: Config = {}
    for table in (shipped(), users()):
        rows = table.get(op, {})
        for row in ("any", f"sm_{capability}"):
            for column in ("default", key):
                found.update(rows.get(row, {}).get(column, {}))
    return found
