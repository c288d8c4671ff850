"""Which joints a user has dropped, read from a sequence's `history`, so that gap filling never revives them.

A `drop` step is `{"op": "drop", "groups": [names], "joints": [indices]}`; an `add` step of the same form takes its
joints off the list again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from animx.errors import InputError
from animx.pose.skeleton import JOINTS


def dropped_joints(history: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    """Indices of the joints that were dropped and not added again.  A malformed step is an `InputError`."""
    dropped: set[int] = set()
    for step in history:
        op = step.get("op")
        if op not in ("drop", "add"):
            continue
        joints = step.get("joints", [])
        if not isinstance(joints, list | tuple) or not all(type(j) is int and 0 <= j < JOINTS for j in joints):
            raise InputError(f"history: the joints of '{op}' are not a list of joint numbers 0 to {JOINTS - 1}")
        dropped = dropped | set(joints) if op == "drop" else dropped - set(joints)
    return frozenset(dropped)
