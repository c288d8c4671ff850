"""A job list: one JSON object a line, read whole and refused with the line's number before any work is done.

    {"reference": "a.png", "driving": "b.mp4", "output": "c.mp4", "presets": ["chibi"], "start": 2, "steps": 20}

The keys beside the first three are render options by their Python name; an engine's own options (`steps`, `model`) may
stand beside them or in `engine_options`.  Paths are relative to the list's folder.  Lines that are empty or begin with
`#` are passed over.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from animx import plugins
from animx.errors import AnimxError, InputError, UsageError, nearest
from animx.request import RenderOptions, check_retargeting, load_presets
from animx.times import time_range

MAX_JOBS = 1_000_000
MAX_LINE = 1_000_000
"""Longest job line [characters]."""
FILES = ("reference", "driving", "output")
ENGINE_KEYS = ("steps", "guidance", "scheduler", "window", "overlap", "model", "device", "dtype", "vram", "speed")
"""Engine options that may stand beside the render options; which of them an engine knows is its own affair."""


@dataclass(frozen=True)
class Job:
    """One line of a job list."""

    number: int
    """Line number in the list, from 1."""
    reference: str
    driving: str
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `RenderOptions` by name."""


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and _nameable(value)


def _nameable(text: str) -> bool:
    """Whether a file system can take the text: no zero character, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _texts(value: object) -> bool:
    return _text(value) or (isinstance(value, list) and all(map(_text, value)))


def _time(value: object) -> bool:
    return value is None or _number(value) or _text(value)


def _size(value: object) -> bool:
    sides = isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) and side > 1 for side in value)
    return value is None or _text(value) or sides


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _table(value: object) -> bool:
    return isinstance(value, dict)


Check = tuple[str, Callable[[Any], bool]]

_TEXT: Check = ("a text", _text)
_PATH: Check = ("the path of a file", lambda value: value is None or _text(value))
_TEXTS: Check = ("a text or a list of texts", _texts)
_TIME: Check = ("seconds, or a text such as '00:01:02.5' or '120f'", _time)
_FLAG: Check = ("true or false", _flag)

KINDS: dict[str, Check] = {
    "engine": _TEXT, "presets": _TEXTS, "drop": _TEXTS, "add": _TEXTS, "align": _TEXT, "ref_pose": _TEXT,
    "mask": _PATH, "driving_video": _PATH, "person": _TEXT, "fit": _TEXT, "background": _TEXT,
    "rescale": ("a table of numbers by bone group", lambda v: _table(v) and all(map(_number, v.values()))),
    "backend": ("a text or null", lambda value: value is None or _text(value)),
    "smooth": _FLAG, "audio": _FLAG, "side_by_side": _FLAG,
    "hands": ("true, false or null", lambda value: value is None or _flag(value)),
    "start": _TIME, "end": _TIME, "duration": _TIME,
    "fps": ("a number or a text such as '30000/1001'", _time),
    "size": ("a text such as '768x1024', or two whole numbers", _size),
    "seed": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "engine_options": ("a table", _table),
}  # fmt: skip
"""What each key of a job must be: JSON gives any type, and `"audio": "no"` must not mean yes."""


def read_jobs(source: str | Path) -> list[Job]:
    """Read a job list (`-`: stdin).  A bad line is an `InputError` with its number and the key's name.

    Checked: JSON, keys, types, values, preset and engine names, outputs named twice.  Not looked at: whether the files
    are there, because an earlier job may make them.
    """
    stdin = str(source) == "-"
    where = "stdin" if stdin else str(source)
    folder = Path() if stdin else Path(source).parent
    try:
        data = sys.stdin.buffer.read() if stdin else Path(source).read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{where}: cannot be read ({reason})") from error
    seen: dict[str, Any] = {}
    jobs = [
        _job(line, number, where, folder, seen)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not jobs:
        raise InputError(f"{where}: holds no jobs")
    if len(jobs) > MAX_JOBS:
        raise InputError(f"{where}: {len(jobs)} jobs, at most {MAX_JOBS}")
    taken: dict[str, int] = {}
    for job in jobs:
        target = os.path.realpath(job.output)
        if target in taken:
            raise InputError(f"{where}:{job.number}: output: {job.output} is also that of line {taken[target]}")
        taken[target] = job.number
    return jobs


def _job(line: str, number: int, where: str, folder: Path, seen: dict[str, Any]) -> Job:
    at = f"{where}:{number}"
    content = _object(line, at)
    given = {}
    for name in FILES:
        value = content.pop(name, None)
        if not _text(value) or value == "-":
            raise InputError(f"{at}: {name}: expected the path of a file")
        given[name] = str(folder / value)
    extra = {name: content.pop(name) for name in ENGINE_KEYS if name in content}
    for name, value in content.items():
        if name not in KINDS:
            raise InputError(f"{at}: unknown key {name!r}.{nearest(name, [*KINDS, *FILES, *ENGINE_KEYS])}")
        if not KINDS[name][1](value):
            raise InputError(f"{at}: {name}: expected {KINDS[name][0]}")
    if extra:
        content["engine_options"] = {**content.get("engine_options", {}), **extra}
    if isinstance(content.get("size"), list):
        content["size"] = "x".join(map(str, content["size"]))
    _place(content, folder)
    try:
        options = RenderOptions.of(**content)
        check_retargeting(options)
        time_range(options.start, options.end, options.duration, options.fps or Fraction(25))
        _check_names(options, seen)
    except (AnimxError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{at}: {' '.join(str(error).split())}") from error
    return Job(number, given["reference"], given["driving"], given["output"], content)


def _object(line: str, at: str) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise InputError(f"{at}: longer than {MAX_LINE} characters")
    try:
        content = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = f" ({error})" if isinstance(error, _Refused) else ""
        raise InputError(f"{at}: not a JSON object{why}") from error
    if not isinstance(content, dict):
        raise InputError(f"{at}: not a JSON object")
    return content


class _Refused(ValueError):
    """What plain JSON would let pass."""


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Refused(f"key '{key}' stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise _Refused(f"{name} is no JSON number")


def _place(content: dict[str, Any], folder: Path) -> None:
    """Make the paths that options hold relative to the list's folder, as those of the files are."""
    for name in ("mask", "driving_video"):
        if content.get(name) is not None:
            content[name] = str(folder / content[name])
    for name, words in (("ref_pose", ("auto", "fit", "none")), ("background", ("keep", "blur", "transparent"))):
        value = content.get(name)
        if value is not None and value not in words and not value.startswith("#"):
            content[name] = str(folder / value)
    presets = content.get("presets", [])
    presets = [presets] if isinstance(presets, str) else presets
    if presets:
        content["presets"] = [str(folder / one) if Path(one).suffix or "/" in one else one for one in presets]
    model = content.get("engine_options", {}).get("model")
    if isinstance(model, str) and (folder / model).is_dir():
        content["engine_options"]["model"] = str(folder / model)


def _check_names(options: RenderOptions, seen: dict[str, Any]) -> None:
    """Presets must load and the engine must be known; each name is looked up once a list."""
    if options.engine != "auto" and options.engine not in seen:
        known = plugins.names("engines")
        if options.engine not in known:
            raise UsageError(f"engine: unknown '{options.engine}'.{nearest(options.engine, known)}")
        seen[options.engine] = True
    for preset in options.presets:
        if f"preset {preset}" not in seen:
            load_presets([preset])
            seen[f"preset {preset}"] = True


def parse_shard(text: str) -> tuple[int, int]:
    """`2/4` -> (2, 4): the second of four shards, counted from 1."""
    first, slash, second = text.partition("/")
    plain = all(part.isascii() and part.isdigit() and len(part) < 10 for part in (first, second))
    if not (slash and plain and 1 <= int(first) <= int(second)):
        raise UsageError(f"--shard {text}: use I/N with I from 1 to N, such as 2/4")
    return int(first), int(second)


def option_names() -> set[str]:
    """Names of all render options."""
    return {one.name for one in fields(RenderOptions)}
