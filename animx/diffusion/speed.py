"""`--speed`: sampling options by one word, from bit-close to fast.  No torch here.

    exact    the released schedule: 31 steps of DDIM, both guidance branches in each
    fast     12 steps of UniPC; guidance in the first three quarters, its difference taken anew in every third step
    fastest  8 steps of UniPC with the same guidance; large linears and attentions in 8 bits where the device has them

Options given by name win over the word.  What each costs is counted (`passes`), what it changes is measured
(`animx bench drift`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SPEEDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "exact": {},
        "fast": {"scheduler": "unipc", "steps": 12, "guidance_end": 0.75, "guidance_every": 3},
        "fastest": {
            "scheduler": "unipc",
            "steps": 8,
            "guidance_end": 0.75,
            "guidance_every": 3,
            "linears": "auto",
            "attention": "auto",
        },
    }
)
"""Options of the engine by speed; what is not named keeps its default."""


def with_speed(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` options of the engine with those of their `speed` filled in; an unknown word is left for the check."""
    asked = given.get("speed")
    filled = SPEEDS.get(asked, {}) if isinstance(asked, str) else {}
    named = {name: value for name, value in given.items() if value is not None}
    return {**filled, **named}
