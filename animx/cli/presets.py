"""`animx presets`: list, show, check and preview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from animx.cli import Group
from animx.cli import options as o
from animx.cli.output import Output
from animx.errors import InputError


@click.group("presets", cls=Group, context_settings=o.CONTEXT)
def presets() -> None:
    """List, show, check and preview rescale presets.

    A preset is a small YAML file. Besides the shipped ones, those in ~/.config/animx/presets, in $ANIMX_PRESETS and in
    packages that expose animx.presets are found by name; a path works everywhere a name does.
    """


@o.command("list", examples=("animx presets list", "animx presets list --json"))
def list_all(out: Output) -> None:
    """List all presets and where they come from."""
    from animx.retarget.preset import list_presets

    found = list_presets()
    for one in found:
        if one.preset is None:
            out.warn(f"preset '{one.name}' cannot be used: {one.problem}")
    width = max((len(one.name) for one in found), default=0)
    usable = [one for one in found if one.preset is not None]
    lines = [
        f"{one.name:<{width}}  {one.preset.description if one.preset else ''}"
        + ("" if one.origin == "shipped" else f"  ({one.origin})")
        for one in usable
    ]
    listed = [
        {
            "name": one.name,
            "description": one.preset.description if one.preset else None,
            "origin": one.origin,
            "path": one.path,
            "problem": one.problem or None,
        }
        for one in found
    ]
    out.result({"presets": listed}, lines)


def _as_mapping(preset: Any) -> dict[str, Any]:
    rescale = {key: list(value) if isinstance(value, tuple) else value for key, value in preset.rescale.items()}
    return {
        "name": preset.name,
        "description": preset.description,
        "rescale": rescale,
        "drop": list(preset.drop),
        "add": list(preset.add),
        "keep": preset.keep,
        "probability": preset.probability,
    }


@o.command("show", examples=("animx presets show chibi", "animx presets show chibi > mine.yaml"))
@click.argument("name", metavar="NAME|FILE")
def show(out: Output, name: str) -> None:
    """Print a preset as YAML, all fields."""
    from animx.retarget.preset import load_preset

    mapping = _as_mapping(load_preset(name))
    if out.as_json:
        out.result({"preset": mapping})
        return
    import yaml

    text = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    out.result({}, text.rstrip().splitlines())


@o.command("check", examples=("animx presets check mine.yaml",))
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
def check(out: Output, files: tuple[str, ...]) -> None:
    """Check preset files; exit 3 with the file, the key and the nearest known one."""
    from animx.retarget.preset import load_preset

    for file in files:
        if not Path(file).exists() and ("/" in file or file.endswith((".yaml", ".yml"))):
            raise InputError(f"{file}: no such file")
        load_preset(file)
    out.result({"files": list(files), "valid": True}, [f"{file}: valid" for file in files])


@o.command(
    "preview",
    writes=True,
    examples=(
        "animx presets preview",
        "animx presets preview dance.pose.json --preset chibi --preset mine.yaml -o sheet.png",
    ),
)
@click.argument("source", metavar="[POSE]", required=False)
@click.option("-o", "--output", metavar="PNG", default="presets.png", help="Contact sheet.  [presets.png]")
@click.option("--preset", "chosen", multiple=True, metavar="NAME|FILE", help="Preset to show; repeatable.  [all]")
@click.option("--frames", type=click.IntRange(1, 24), default=6, metavar="N", help="Moments to show, 1 to 24.  [6]")
def preview(
    out: Output, source: str | None, output: str, overwrite: bool, chosen: tuple[str, ...], frames: int
) -> None:
    """Draw the same frames under several presets, one row each, into a contact sheet.

    Without POSE a template body dances.
    """
    from animx.atomic import check_target
    from animx.drawing import template_dance
    from animx.driving import check_apart
    from animx.image import write_picture
    from animx.pose.select import select_person
    from animx.retarget.preset import list_presets
    from animx.retarget.preview import contact_sheet

    check_apart(output, {"poses": source})
    check_target(output, overwrite)
    if not chosen:
        usable = [one.name for one in list_presets() if one.preset is not None]
        chosen = tuple(sorted(usable, key=lambda name: (name != "identity", name)))
    if source is None:
        poses = template_dance()
    else:
        from animx.pose.formats import read_poses

        poses = select_person(read_poses(source))
    sheet = contact_sheet(poses, chosen, frames)
    write_picture(output, sheet, overwrite=overwrite)
    rows = "1 preset" if len(chosen) == 1 else f"{len(chosen)} presets"
    out.say(f"animx: wrote {output}: {rows}, {sheet.shape[1]}x{sheet.shape[0]} px")
    out.wrote({"output": output, "presets": list(chosen), "size": [sheet.shape[1], sheet.shape[0]]}, [output])


for one in (list_all, show, check, preview):
    presets.add_command(one)
