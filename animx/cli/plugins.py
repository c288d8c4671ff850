"""`animx plugins`: what is loaded and from where."""

from __future__ import annotations

from animx.cli import COMMANDS
from animx.cli import options as o
from animx.cli.output import Output


@o.command("plugins", examples=("animx plugins", "ANIMX_PLUGINS=off animx plugins", "animx plugins --json"))
def plugins(out: Output) -> None:
    """List pose backends, retarget operations, engines, kernels, commands and preset packages, and try each.

    A plugin that cannot be loaded is named with the reason; the others work on. ANIMX_PLUGINS=off loads none but the
    built-in ones.
    """
    from collections import Counter

    from animx import plugins as door
    from animx.kernel_plugins import broken as odd
    from animx.retarget.preset import list_presets

    listed, lines = [], []
    for group in door.GROUPS:
        lines.append(f"{group.replace('_', ' ')}:")
        found, ignored = list(door.find(group).values()), door.shadowed(group)
        if group == "commands":
            built_in = [door.Plugin(group, name, target, "animx") for name, (target, _) in COMMANDS.items()]
            ignored = [one for one in found if one.name in COMMANDS]
            found = [*built_in, *(one for one in found if one not in ignored)]
        for one in found:
            problem = one.problem()
            if group == "kernels" and problem is None:
                problem = odd(one.load())
            listed.append(_entry(one, problem))
            lines.append(f"  {one.name:<12} {one.origin:<24} {one.target}")
            if problem is not None:
                lines.append(f"    broken: {problem}")
                out.warn(f"plugin '{one.name}' of {one.origin} is broken: {problem}")
        for one in ignored:
            listed.append(_entry(one, "its name is taken"))
            lines.append(f"  {one.name:<12} {one.origin:<24} {one.target}\n    ignored: the name is taken")
        if not found:
            lines.append("  none")
    lines.append("presets:")
    counts = Counter((one.origin, one.preset is None) for one in list_presets())
    for (origin, broken), count in sorted(counts.items()):
        lines.append(f"  {origin:<12} {count} {'broken' if broken else 'usable'}")
    presets = [{"origin": origin, "count": count, "loaded": not broken} for (origin, broken), count in counts.items()]
    out.result({"plugins": listed, "presets": presets}, lines)


def _entry(one: object, problem: str | None) -> dict[str, object]:
    names = ("group", "name", "origin", "target")
    return {**{name: getattr(one, name) for name in names}, "loaded": problem is None, "problem": problem}
