"""Whether a job's output is there already and is what the job would make, told by the recipe in its side-car.

Compared is what the job names: the contents of its inputs, its options, presets, engine, seed, and the model's hash.
Not compared is what a job does not decide: the version of animx, the pose backend that was best on the machine, the
device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from animx.batch_jobs import Job
from animx.driving import Driving, open_driving, open_stream, poses_of_file
from animx.engine import Engine
from animx.errors import AnimxError
from animx.image import file_sha256, read_picture
from animx.plugins import load
from animx.prepare import MAX_LONG_SIDE
from animx.provenance import side_car_path
from animx.request import RenderOptions, engine_options, load_presets, preset_record
from animx.times import resolve_size


def is_there(output: str) -> bool:
    """Whether anything lies at an output: a file with content, a folder that holds something, frames of a pattern."""
    path = Path(output)
    if "%" in path.name:
        head, _, tail = path.name.partition("%")
        ending = tail.lstrip("0123456789")[1:]
        return path.parent.is_dir() and any(
            one.name.startswith(head) and one.name.endswith(ending) and one.is_file() for one in path.parent.iterdir()
        )
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0


def difference(job: Job) -> str | None:
    """What sets the output apart from what the job would make, in a few words; None when it is that.

    Errors: those of unreadable inputs.
    """
    recipe = recorded(job.output)
    if recipe is None:
        return "no recipe beside it"
    options = RenderOptions.of(**dict(job.options))
    if options.engine not in ("auto", recipe.get("engine")):
        return f"engine {recipe.get('engine')}"
    try:
        engine: Engine = load("engines", str(recipe.get("engine")))()
    except AnimxError:
        return f"engine {recipe.get('engine')}"
    for name, found, wanted in _pairs(job, options, engine, recipe):
        if _plain(found) != _plain(wanted):
            return f"another {name}"
    return None


def recorded(output: str) -> Mapping[str, Any] | None:
    """The recipe in the side-car of an output; None when there is none that `render` wrote."""
    try:
        content = json.loads(side_car_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    usable = isinstance(content, dict) and content.get("command") == "render"
    return content if usable and isinstance(content.get("options"), dict) else None


def _pairs(job: Job, options: RenderOptions, engine: Engine, recipe: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(what, recorded, wanted) for everything the job decides."""
    inputs = {str(one.get("role")): one.get("sha256") for one in recipe.get("inputs", ()) if isinstance(one, dict)}
    drive = open_driving(job.driving)
    wanted = {
        "reference": file_sha256(job.reference),
        "driving": drive.sha256,
        **{one["role"]: one["sha256"] for one in options.file_records()},
    }
    before = dict(recipe["options"])
    size, fps = before.pop("size", None), before.pop("fps", None)
    given = options.resolved()
    del given["size"], given["fps"]
    pairs: list[tuple[str, Any, Any]] = [
        (f"{role} (the file changed)", inputs.get(role), wanted.get(role)) for role in sorted({*wanted, *inputs})
    ]
    pairs += [("seed", recipe.get("seed"), options.seed)]
    pairs += [("presets", recipe.get("presets"), [preset_record(one) for one in load_presets(options.presets)])]
    pairs += [(f"option '{name}'", before.get(name), value) for name, value in given.items()]
    rate, own = _rate(drive, options), read_picture(job.reference).canvas
    canvas = own.limited(MAX_LONG_SIDE).even() if options.size is None else resolve_size(options.size, own)
    pairs += [("option 'fps'", fps, [rate.numerator, rate.denominator]), ("option 'size'", size, list(canvas.size))]
    prefix = f"{engine.name}."
    before = {key.removeprefix(prefix): value for key, value in before.items() if key.startswith(prefix)}
    asked = engine_options(engine, options.engine_options)
    if hasattr(engine, "expected"):
        expected = engine.expected(asked)
        now = expected.pop("options")
        pairs += [(name, recipe.get(name), value) for name, value in expected.items()]
    else:
        without: frozenset[str] = getattr(engine, "unrecorded", frozenset())
        now = {**dict.fromkeys(before), **{name: value for name, value in asked.items() if name not in without}}
    pairs += [(f"option '{name}'", before.get(name), value) for name, value in now.items()]
    return pairs


def _rate(drive: Driving, options: RenderOptions) -> Fraction:
    """The frame rate of the output."""
    if drive.path is not None:
        return open_stream(drive.path, options).fps
    assert drive.poses is not None
    return poses_of_file(drive.poses, options).fps


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value, default=str, sort_keys=True))
