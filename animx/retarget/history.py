"""What `history` says about bone lengths: the product of all factors since the poses had their natural proportions.

A `rescale` step records it as `bones`: unit name -> factor, units at 1 left out.  `align` reads it, so that an already
retargeted pose file keeps its short legs when it is aligned to a character afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError, nearest
from animx.retarget.groups import UNIT_INDEX, UNITS


def cumulative_factors(history: Iterable[Mapping[str, Any]]) -> NDArray[np.float64]:
    """[19] The factor of each unit (see `groups.UNITS`) over its natural length; 1 where nothing was rescaled.

    The released alignment sets bone lengths anew, so it starts from 1 again.  A malformed step is an `InputError`.
    """
    result = np.ones(len(UNITS))
    for step in history:
        if step.get("op") == "align" and step.get("mode") == "released":
            result[:] = 1
        if step.get("op") != "rescale" or "bones" not in step:
            continue
        if not isinstance(step["bones"], Mapping):
            raise InputError("history: the bones of 'rescale' are not a mapping from bone to factor")
        result[:] = 1
        for name, factor in step["bones"].items():
            if name not in UNIT_INDEX:
                raise InputError(f"history: unknown bone '{name}' in 'rescale'.{nearest(str(name), UNIT_INDEX)}")
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not number or not 0 < factor < math.inf:
                raise InputError(f"history: the factor of '{name}' in 'rescale' is not a number above 0")
            result[UNIT_INDEX[name]] = float(factor)
    return result


def factor_table(factors: NDArray[np.float64]) -> dict[str, float]:
    """The `bones` entry of a `rescale` step: unit name -> factor, units at 1 left out."""
    return {unit.name: float(factor) for unit, factor in zip(UNITS, factors, strict=True) if factor != 1}
