"""Checkpoints: everything a run needs to go on with the same numbers, whole or not there at all.

A folder `step-00001000/` holds torch's distributed checkpoint (each process writes its share; any number of processes
reads it) and `state.json`, which has size and CRC-32 of every other file.  It is written beside and renamed when
complete, so the last good one is never in danger.

Saved per parameter: weight, first and second moment, average (EMA).  Random states need no saving: every draw is keyed.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read_shares
from torch.distributed.checkpoint.state_dict_saver import save as write_shares

from animx.atomic import output_error
from animx.errors import InputError, OutputError
from animx_trainer.distributed import World
from animx_trainer.ema import Ema, local

SCHEMA = 1
STATE = "state.json"
_NAME = re.compile(r"step-(\d{8})")
MOMENTS = ("exp_avg", "exp_avg_sq")
BLOCK = 1 << 24
"""Bytes read at once for a checksum."""
UNREADABLE = (CheckpointException, RuntimeError, ValueError, KeyError, OSError, EOFError, pickle.UnpicklingError)
"""What torch's reader raises for files that are no checkpoint."""


@dataclass
class Trained:
    """What changes while training: parameters by name, their optimiser, their average, and the steps done."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    step: int = 0
    """Steps that are done; the next one has this number."""

    def tensors(self) -> dict[str, Tensor]:
        """All state as named tensors, to be written or read into."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            found[f"weight.{name}"] = parameter.detach()
            state = self.optimizer.state[parameter]
            if not state:  # not stepped yet
                state |= {moment: torch.zeros_like(parameter.detach()) for moment in MOMENTS}
                state["step"] = torch.tensor(0.0)
            found |= {f"{moment}.{name}": state[moment] for moment in MOMENTS}
        if self.ema is not None:
            found |= {f"ema.{name}": value for name, value in self.ema.average.items()}
        return found

    def arrived(self, step: int) -> None:
        """Note that `step` steps are done: the optimiser counts them for its bias correction."""
        self.step = step
        for state in self.optimizer.state.values():
            state["step"] = torch.tensor(float(step))


def folder_of(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return checkpoints / f"step-{step:08d}"


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name) and (path / STATE).is_file())


def save(trained: Trained, checkpoints: Path, config: Mapping[str, Any], world: World, keep: int = 2) -> Path:
    """Write the checkpoint of the steps done so far and drop all but the newest `keep` up to it.

    One of more steps stays: it could not be read when this run was taken up, and must not push out those that can.
    Every process calls it.  A full disk or refused write is an `OutputError` in all of them, and leaves the earlier
    checkpoints as they are.
    """
    target = folder_of(checkpoints, trained.step)
    temporary = checkpoints / f".{target.name}.part"
    problem: OSError | None = None
    if world.is_first:
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        except OSError as error:
            problem = error
    if world.any(problem is not None):
        raise output_error(target, problem or OSError(errno.EIO, "another process could not write"))
    try:
        _write(trained.tensors(), temporary, world)
        if world.is_first:
            try:
                state = {"schema": SCHEMA, "step": trained.step, "config": dict(config), "files": _checksums(temporary)}
                _finish(temporary, target, state)
            except OSError as error:
                problem = error
        if world.any(problem is not None):
            raise output_error(target, problem or OSError(errno.EIO, "another process could not write"))
    except OutputError:
        if world.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if world.is_first:
        for old in [path for path in list_checkpoints(checkpoints) if path.name <= target.name][:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    world.barrier()
    return target


def _write(tensors: dict[str, Tensor], folder: Path, world: World) -> None:
    writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
    try:
        write_shares(tensors, storage_writer=writer, no_dist=world.size == 1)
    except CheckpointException as error:
        raise output_error(folder.with_name(folder.name[1:-5]), _os_error(error)) from error
    except OSError as error:
        raise output_error(folder.with_name(folder.name[1:-5]), error) from error
    except RuntimeError as error:  # torch's own file writer turns a full disk into this
        target = folder.with_name(folder.name[1:-5])
        if shutil.disk_usage(folder).free < sum(local(tensor).nbytes for tensor in tensors.values()):
            raise output_error(target, OSError(errno.ENOSPC, "")) from error
        raise OutputError(f"cannot write {target}: {_first_line(error)}") from error


def _os_error(error: CheckpointException) -> OSError:
    """The failure of a process inside torch's collected one; its own text where it is no `OSError`."""
    for inner in error.failures.values():
        found = inner[0] if isinstance(inner, tuple) else inner
        if isinstance(found, OSError):
            return found
    first = next(iter(error.failures.values()), (error,))
    return OSError(errno.EIO, _first_line(first[0] if isinstance(first, tuple) else first))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Name -> [bytes, CRC-32] of all files of a checkpoint but `state.json`."""
    return {path.name: [path.stat().st_size, _crc(path)] for path in sorted(folder.iterdir()) if path.name != STATE}


def _crc(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while part := file.read(BLOCK):
            found = zlib.crc32(part, found)
    return found


def _damage(folder: Path) -> str:
    """What differs from the files that were written, or `` when all are as they were."""
    for name, (size, crc) in read_state(folder)["files"].items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if _crc(path) != crc:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name}: {error.strerror or error}"
    return ""


def _finish(temporary: Path, target: Path, state: Mapping[str, Any]) -> None:
    with (temporary / STATE).open("w", encoding="utf-8") as file:
        json.dump(state, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    handle = os.open(target.parent, os.O_RDONLY)  # the new name must reach the disk too
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_state(folder: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint; damaged or of a newer schema: `InputError`."""
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise InputError(
                f"{folder}: checkpoint schema {content['schema']}, this animx reads {SCHEMA}. Update animx"
            )
        files = {str(name): (int(size), int(crc)) for name, (size, crc) in dict(content["files"]).items()}
        return {"step": int(content["step"]), "config": dict(content["config"]), "files": files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / STATE}: not the state of a checkpoint ({_first_line(error)})") from error


def load(trained: Trained, folder: Path, world: World) -> int:
    """Read a checkpoint into `trained`, whatever number of processes wrote it; returns the steps it holds.

    Names or shapes that differ, and damaged files, are an `InputError`.
    """
    state = read_state(folder)
    problem = _damage(folder) if world.is_first else ""
    if world.any(bool(problem)):
        what = problem or "see the first process"
        raise InputError(f"{folder}: cannot be read ({what}). Delete this folder to go on from the one before")
    tensors = trained.tensors()
    try:
        read_shares(cast("dict[str, Any]", tensors), checkpoint_id=folder, no_dist=world.size == 1)
    except UNREADABLE as error:
        first = _first_line(_os_error(error)) if isinstance(error, CheckpointException) else _first_line(error)
        raise InputError(
            f"{folder}: cannot be read into this run ({first}). Delete it to go on from the one before"
        ) from error
    trained.arrived(state["step"])
    return int(state["step"])


def read_weights(folder: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of one `kind` (`weight` or `ema`) of a checkpoint, whole, on the CPU, by parameter name.

    A damaged checkpoint is an `InputError`.
    """
    problem = _damage(folder)
    if problem:
        raise InputError(f"{folder}: {problem}. Delete this folder to take the one before")
    reader = FileSystemReader(folder)
    try:
        table = reader.read_metadata().state_dict_metadata
        wanted = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in table.items()
            if name.startswith(f"{kind}.") and isinstance(entry, TensorStorageMetadata)
        }
        read_shares(cast("dict[str, Any]", wanted), storage_reader=reader, no_dist=True)
    except UNREADABLE as error:
        raise InputError(f"{folder}: not a readable checkpoint ({_first_line(error)})") from error
    return {name.partition(".")[2]: value for name, value in wanted.items()}
