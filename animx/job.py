"""The job folder of a long render: what is planned, and each finished chunk with its hash, so that a kill loses little.

`OUT.mp4.animx/` holds `plan.json` and, per chunk, `chunk_00007.npz` beside `chunk_00007.json` (sha256 and shape).  A
record is written after its data and both are renamed into place, so what has a record is whole.  `found.json` keeps
what the plan could not know (a window that had to be halved).  Nothing here knows what a chunk means: arrays in, the
same arrays out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.atomic import writing
from animx.errors import InputError, UsageError

SCHEMA = 1
SUFFIX = ".animx"
PLAN, FOUND = "plan.json", "found.json"


def job_folder(out: str | Path) -> Path:
    """The job folder that belongs to an output."""
    return Path(f"{out}{SUFFIX}")


def is_unfinished(folder: Path) -> bool:
    """Whether a job folder lies here, so that `--resume` has something to go on with."""
    return (folder / PLAN).exists()


def has_chunks(folder: Path) -> bool:
    """Whether a chunk of the job is finished."""
    return any(folder.glob("chunk_*.json"))


def forget(folder: Path) -> None:
    """Delete a job folder, if it is one: the output is in place.  The plan goes last, so that a kill leaves a job."""
    if not is_unfinished(folder):
        return
    for path in folder.iterdir():
        if path.name != PLAN:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def plan_hash(plan: Mapping[str, Any]) -> str:
    """sha256 of a plan: key order does not matter, every value does."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()


class ChunkStore:
    """Chunks of one job on disk.  Open it with the plan; a folder with another plan is refused, never mixed."""

    def __init__(self, folder: Path, plan: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = folder
        self.plan = dict(plan)
        path = folder / PLAN
        if path.exists() and resume:
            self._check(path)
            self._sweep()
            return
        if path.exists():
            raise UsageError(
                f"{folder}: an unfinished render of this output. Continue it with --resume, or delete the folder"
            )
        if folder.exists():
            shutil.rmtree(folder)  # killed before the plan was written: nothing of worth is in it
        folder.mkdir(parents=True)
        with writing(path, overwrite=True) as temporary:
            Path(temporary).write_text(json.dumps({"schema": SCHEMA, "plan": self.plan}, indent=2, default=str) + "\n")

    def _check(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            found = content["plan"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a readable plan. Delete {self.folder} and start again") from error
        wanted = json.loads(json.dumps(self.plan, default=str))
        if found != wanted:
            different = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
            raise UsageError(
                f"{self.folder}: was planned with another {', '.join(different[:4])}. "
                "Give the same options, or delete the folder"
            )

    def _sweep(self) -> None:
        """Remove what a kill left: data without a record, and temporary files."""
        for path in self.folder.iterdir():
            known = path.name in (PLAN, FOUND) or (
                path.suffix in (".json", ".npz")
                and path.with_suffix(".json").exists()
                and path.stem.startswith("chunk_")
            )
            if not known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _paths(self, index: int) -> tuple[Path, Path]:
        stem = self.folder / f"chunk_{index:05d}"
        return stem.with_suffix(".npz"), stem.with_suffix(".json")

    def save(self, index: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a chunk; it counts as finished once its record is in place."""
        data, record = self._paths(index)
        with writing(data, overwrite=True) as temporary, Path(temporary).open("wb") as file:
            np.savez(file, **dict(arrays))
            file.flush()
            os.fsync(file.fileno())
        entry = {"sha256": _sha256(data), "shapes": {k: list(v.shape) for k, v in arrays.items()}}
        with writing(record, overwrite=True) as temporary:
            Path(temporary).write_text(json.dumps(entry) + "\n")

    def load(self, index: int) -> dict[str, NDArray[Any]] | None:
        """A finished chunk, or None when there is none or it is damaged (then it has to be made again)."""
        data, record = self._paths(index)
        try:
            expected = json.loads(record.read_text())["sha256"]
            if _sha256(data) != expected:
                return None
            with np.load(data, allow_pickle=False) as content:
                return {k: content[k] for k in content.files}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, found: Mapping[str, Any]) -> None:
        """Keep what was found out on the way and decides about the rest; it replaces what was kept before."""
        with writing(self.folder / FOUND, overwrite=True) as temporary:
            Path(temporary).write_text(json.dumps(dict(found)) + "\n")

    def remembered(self) -> dict[str, Any]:
        """What `remember` kept; empty when nothing was.  A damaged file is an `InputError`."""
        path = self.folder / FOUND
        if not path.exists():
            return {}
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not readable. Delete {self.folder} and start again") from error
        return dict(found) if isinstance(found, dict) else {}

    def finished(self) -> list[int]:
        """Numbers of the chunks that have a record, ascending."""
        return sorted(int(path.stem.removeprefix("chunk_")) for path in self.folder.glob("chunk_*.json"))

    def remove(self) -> None:
        """Delete the folder: the output is in place."""
        forget(self.folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
