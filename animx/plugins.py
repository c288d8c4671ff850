"""The plugin door: pose backends, retarget operations, engines, kernels and commands, built-in or third-party.

Built-ins come from the table below, so a bare checkout works; third-party plugins are entry points of the same groups.
Nothing is imported until it is asked for.  `ANIMX_PLUGINS=off` loads no third-party plugin.
"""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from animx.errors import UsageError, nearest

log = logging.getLogger(__name__)

GROUPS = ("pose_backends", "retarget_ops", "engines", "kernels", "commands")

BUILT_IN: MappingProxyType[str, MappingProxyType[str, str]] = MappingProxyType(
    {
        "pose_backends": MappingProxyType(
            {
                "mediapipe": "animx.pose.mediapipe:MediapipeBackend",
                "rtm": "animx.pose.rtm:RtmBackend",
            }
        ),
        "retarget_ops": MappingProxyType(
            {
                "rescale": "animx.retarget.ops:rescale",
                "drop": "animx.retarget.ops:drop",
                "add": "animx.retarget.ops:add",
                "fill": "animx.retarget.ops:fill",
                "smooth": "animx.retarget.ops:smooth",
            }
        ),
        "engines": MappingProxyType(
            {
                "puppet": "animx.puppet.engine:PuppetEngine",
                "animate-x": "animx.diffusion.engine:AnimateXEngine",
            }
        ),
        "kernels": MappingProxyType({}),
        "commands": MappingProxyType({}),
    }
)


@dataclass(frozen=True)
class Plugin:
    """One plugin of a group: its name, where it comes from, and how it is loaded."""

    group: str
    name: str
    target: str
    """`module:attribute`."""
    origin: str
    """`animx` for a built-in, else the distribution and version that brings it."""

    def problem(self) -> str | None:
        """Why it cannot be loaded, as one line, or None when it can (then it has been imported)."""
        try:
            self.load()
        except Exception as error:  # a built-in may lack an optional dependency
            return " ".join(str(error).split()) or type(error).__name__
        return None

    def load(self) -> Any:
        """Import and return the object.  A third-party failure is a `UsageError` that names the plugin."""
        module, _, attribute = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in filter(None, attribute.split(".")):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:  # a third-party module may fail in any way, sys.exit() too
            if self.origin == "animx":
                raise
            raise UsageError(
                f"plugin '{self.name}' of {self.origin} cannot be loaded ({type(error).__name__}: {error}). "
                "Update or uninstall it, or set ANIMX_PLUGINS=off"
            ) from error
        return found


def _third_party(group: str) -> list[Plugin]:
    if os.environ.get("ANIMX_PLUGINS", "").lower() == "off":
        return []

    def origin(point: EntryPoint) -> str:
        return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown"

    points = sorted(entry_points(group=f"animx.{group}"), key=lambda point: (point.name, point.value))
    return [
        Plugin(group, point.name, point.value, origin(point))
        for point in points
        if point.dist is None or point.dist.name != "animx"
    ]


@cache
def find(group: str) -> dict[str, Plugin]:
    """All plugins of a group by name, built-ins first.  A third-party plugin never replaces a built-in."""
    if group not in GROUPS:
        raise UsageError(f"unknown plugin group '{group}'.{nearest(group, GROUPS)}")
    found = {name: Plugin(group, name, target, "animx") for name, target in BUILT_IN[group].items()}
    for plugin in _third_party(group):
        if plugin.name in found:
            log.warning(
                "plugin '%s' of %s is ignored: the name is taken by %s",
                plugin.name,
                plugin.origin,
                found[plugin.name].origin,
            )
            continue
        found[plugin.name] = plugin
    return found


def shadowed(group: str) -> list[Plugin]:
    """Third-party plugins that are ignored because their name is taken."""
    taken = find(group)
    return [plugin for plugin in _third_party(group) if taken[plugin.name] != plugin]


def names(group: str) -> list[str]:
    """The names of a group's plugins, built-ins first."""
    return list(find(group))


def load(group: str, name: str) -> Any:
    """Import the plugin `name` of `group`.  An unknown name is a `UsageError` with the nearest known one."""
    known = find(group)
    if name not in known:
        kind = group.rstrip("s").replace("_", " ")
        raise UsageError(f"unknown {kind} '{name}'.{nearest(name, known)} Known: {', '.join(known) or 'none'}")
    return known[name].load()
