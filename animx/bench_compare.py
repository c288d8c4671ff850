"""`animx bench compare`: two results of the same measurement, ratio by ratio.

Ratios are named so that their direction is in the name: `A_over_B` is better when it is higher (how many times A's time
B saves), `A_per_B` when it is lower (A's cost in units of B).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from animx.errors import AnimxError, InputError, UsageError


class BelowBarError(AnimxError):
    """A measurement came out worse than the one it is compared with, by more than was allowed."""

    exit_code = 8


def compare(old: Path, new: Path, least: float | None = None) -> dict[str, Any]:
    """What every common ratio kept of its old value: 1 = as good, below 1 = worse.

    least: `BelowBarError` (exit 8) when any kept less.  Errors: `InputError` for a file that is no result, `UsageError`
    where the two are of different measurements or have no ratio in common.
    """
    before, after = _read(old), _read(new)
    if before["bench"] != after["bench"] or before.get("schema") != after.get("schema"):
        raise UsageError(
            f"{new}: a result of bench {after['bench']} (schema {after.get('schema')}) cannot be compared with "
            f"bench {before['bench']} (schema {before.get('schema')}) in {old}"
        )
    kept = {}
    for name, value in before["ratios"].items():
        other = after["ratios"].get(name)
        if other is not None:
            kept[name] = value / other if lower_is_better(name) else other / value
    if not kept:
        raise UsageError(f"{old} and {new}: no ratio in common")
    found = {
        "bench": "compare",
        "of": before["bench"],
        "kept": {name: round(value, 4) for name, value in sorted(kept.items(), key=lambda one: one[1])},
        "only_old": sorted(set(before["ratios"]) - set(after["ratios"])),
        "only_new": sorted(set(after["ratios"]) - set(before["ratios"])),
        "same_machine": before.get("machine", {}).get("processor") == after.get("machine", {}).get("processor"),
    }
    worse = [f"{name} kept {value:.3f}" for name, value in kept.items() if least is not None and not value >= least]
    if worse:
        more = f" and {len(worse) - 3} more" if len(worse) > 3 else ""
        raise BelowBarError(f"bench compare: {'; '.join(worse[:3])}{more}; {least:g} was asked for (--fail-below)")
    return found


def lower_is_better(name: str) -> bool:
    """Whether the ratio is a cost (`A_per_B`)."""
    return "_per_" in name.rsplit("/", 1)[-1]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON. Write one with: animx bench ... --json") from error
    ratios = found.get("ratios") if isinstance(found, Mapping) else None
    if not isinstance(ratios, Mapping) or not isinstance(found.get("bench"), str):
        raise InputError(f"{path}: no result of animx bench (no 'bench' or 'ratios')")
    for name, value in ratios.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise InputError(f"{path}: ratio '{name}' is no number above 0")
    return dict(found)
