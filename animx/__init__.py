"""animx animates a character: one picture and one driving video in, the character moving like the person out.

    poses = animx.extract_pose("dance.mp4")
    poses = animx.retarget(poses, preset="short-legs", reference="ref.png")
    animx.render("ref.png", poses, "out.mp4")

`import animx` loads nothing heavy; each function loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from animx.pipeline import RenderResult, render
    from animx.pose.sequence import PoseSequence
    from animx.poses import extract_pose
    from animx.request import RenderOptions

__version__ = "0.1.0"

_HOMES = {
    "extract_pose": "animx.poses",
    "render": "animx.pipeline",
    "RenderOptions": "animx.request",
    "RenderResult": "animx.pipeline",
    "PoseSequence": "animx.pose.sequence",
    "retarget": "animx.retarget",
}
"""Where each public name lives.  `animx.retarget` is the room itself, which can be called."""

__all__ = ["PoseSequence", "RenderOptions", "RenderResult", "__version__", "extract_pose", "render", "retarget"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'animx' has no attribute '{name}'")
    module = importlib.import_module(home)
    return module if home == f"animx.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
