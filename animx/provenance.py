"""Provenance: the recipe of an output, so that anybody can tell how it was made and make it again.

The recipe goes into the container's `comment` field and into a side-car `OUT.mp4.json`.  It holds no output path, time,
progress, device or thread count: the same job gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import animx

SCHEMA = 1
NOTE = "made by a generative tool (animx): the motion is synthetic, no such recording exists"
REPORT_AT = "the project's issue tracker"


def side_car_path(out: str | Path) -> Path:
    """Where the recipe of `out` lies: `OUT.mp4.json`; beside a folder, not in it."""
    path = Path(out)
    return path.with_name(path.name + ".json")


def input_record(role: str, name: str, sha256: str) -> dict[str, str]:
    """An input by role, name (never a folder) and content hash."""
    return {"role": role, "name": Path(name).name, "sha256": sha256}


def content_hash(value: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def recipe(
    *,
    command: str,
    engine: str | None,
    options: Mapping[str, Any],
    seed: int,
    presets: Sequence[Mapping[str, Any]],
    inputs: Sequence[Mapping[str, str]],
    backend: str | None,
    **facts: Any,
) -> dict[str, Any]:
    """All that determines the output, ready for JSON; `facts` are what was found on the way (mask, reference pose).

    `backend`: name and version of what extracted the driving poses.
    """
    return {
        "schema": SCHEMA,
        "tool": "animx",
        "version": animx.__version__,
        "command": command,
        "engine": engine,
        "options": dict(options),
        "seed": seed,
        "presets": [dict(preset) for preset in presets],
        "inputs": [dict(record) for record in inputs],
        "backend": backend,
        **facts,
        "note": NOTE,
    }


def as_comment(whole: Mapping[str, Any]) -> str:
    """The recipe as the one-line `comment` of a container."""
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), default=str)


def as_text(whole: Mapping[str, Any]) -> str:
    """The recipe as the text of the side-car file."""
    return json.dumps(whole, indent=2, sort_keys=True, default=str) + "\n"


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        with self._guard:
            if message not in self.messages:
                self.messages.append(message)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what the `animx` loggers warn of inside the block, each text once, in order."""
    collector = _Collector()
    logger = logging.getLogger("animx")
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)


def bug_report(error: BaseException) -> str:
    """The one line for an error that is our fault: what happened, in what, and how to report it."""
    what = " ".join(str(error).split()) or "no message"
    return (
        f"internal error ({type(error).__name__}: {what[:300]}). This is a bug in animx {animx.__version__} "
        f"(Python {platform.python_version()}, {platform.system()}). Please report this line and the command at "
        f"{REPORT_AT}."
    )
