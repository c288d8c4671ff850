"""Retargeting: `PoseSequence -> PoseSequence`, aligned to a reference and rescaled by presets.

The room can be called: `animx.retarget(poses, preset, reference)` is `animx.poses.retarget`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A package and a public function share one name, as the Python interface promises; so the package is callable."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from importlib import import_module

        # By name: this floor imports nothing above it; the call comes from above.
        return import_module("animx.poses").retarget(*arguments, **options)


sys.modules[__name__].__class__ = _Room
