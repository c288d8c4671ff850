"""`animx bench ops --base REF`: the operators of another commit, measured in turns with today's.

The commit's `kernels/` is written out into a temporary folder outside the checkout, which is left as it is, and run in
a process of its own, since one process holds an operator of a name once.  Folder and process are gone when the
measuring ends, however it ends.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import torch
from torch import Tensor

import animx
from animx.errors import UsageError
from animx.measuring.subjects import Subject, digest
from animx_kernels.providers import asked

PACKAGE = "kernels/animx_kernels"


class Base:
    """The operators of the other commit.  One subject is taken at a time."""

    def __init__(self, ref: str, commit: str, worker: subprocess.Popen[str], errors: IO[bytes], folder: Path) -> None:
        self.ref, self.commit, self.folder = ref, commit, folder
        self._worker, self._errors = worker, errors
        told = self._ask(do="hello")
        if "error" in told:
            raise UsageError(f"--base {ref}: its operators cannot be loaded here ({told['error']})")
        self.operators: list[str] = told["ops"]
        if not told["file"].startswith(str(folder)):
            raise UsageError(f"--base {ref}: another animx_kernels came first ({told['file']}). Unset PYTHONPATH")

    def take(self, subject: Subject) -> str | None:
        """Draw the subject's inputs there; why that cannot be compared, or None."""
        if subject.op.name not in self.operators:
            return f"{self.ref} has no such operator"
        told = self._ask(do="take", operator=subject.op.name, shape=subject.shape)
        if "digest" not in told:
            return str(told.get("none") or told["error"])
        return None if told["digest"] == digest(subject.inputs) else f"{self.ref} has other inputs of this name"

    def results(self) -> list[Tensor] | str:
        """What it makes of the inputs, on the CPU, or why it fails."""
        file = self.folder / "results.pt"
        told = self._ask(do="run", file=str(file))
        if "error" in told:
            return str(told["error"])
        try:
            found: list[Tensor] = torch.load(file, weights_only=True)
        finally:
            file.unlink(missing_ok=True)
        return found

    def seconds(self) -> float:
        """One call, measured there as one is here."""
        told = self._ask(do="time")
        if "error" in told:
            raise UsageError(f"--base {self.ref}: {told['error']}")
        return float(told["seconds"])

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        with suppress(BrokenPipeError):
            self._worker.stdin.write(json.dumps(request) + "\n")
            self._worker.stdin.flush()
        line = self._worker.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise UsageError(f"--base {self.ref}: its process ended ({said[-1][:200] if said else 'no reason given'})")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def other_commit(ref: str, device: torch.device, dtype: torch.dtype) -> Iterator[Base]:
    """The operators of commit, branch or tag `ref`.  Errors: `UsageError` without git, a checkout, REF or operators."""
    today = Path(animx.__file__).resolve().parents[1]
    commit = _commit(ref, checkout())
    with TemporaryDirectory(prefix="animx-base-") as name, TemporaryFile() as errors:
        folder = Path(name).resolve()
        _write_out(checkout(), commit, folder)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(folder / "kernels"), str(today))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ANIMX_KERNELS": asked().mode,  # an older commit may know no plugins
        }
        kind = str(dtype).removeprefix("torch.")
        worker = subprocess.Popen(
            [sys.executable, "-m", "animx.measuring.base_worker", str(device), kind, str(torch.get_num_threads())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends that one
        )  # fmt: skip
        try:
            yield Base(ref, commit, worker, errors, folder)
        finally:
            worker.kill()
            worker.communicate()


def checkout() -> Path:
    """Where animx runs from."""
    return Path(animx.__file__).resolve().parents[1]


def _commit(ref: str, root: Path) -> str:
    """The commit that `ref` names, with operators in it."""
    if shutil.which("git") is None:
        raise UsageError(f"--base {ref}: needs git, which is not installed")
    if not (root / ".git").exists():
        raise UsageError(f"--base {ref}: animx runs from {root}, which is no git checkout. Run it in a clone of animx")
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found.returncode:
        raise UsageError(f"--base {ref}: no such commit, branch or tag in {root}")
    commit = found.stdout.decode().strip()
    if _git(root, "cat-file", "-e", f"{commit}:{PACKAGE}/dispatch.py").returncode:
        raise UsageError(f"--base {ref}: commit {commit[:7]} has no operators yet ({PACKAGE})")
    return commit


def _write_out(root: Path, commit: str, folder: Path) -> None:
    packed = _git(root, "archive", "--format=tar", commit, PACKAGE)
    if packed.returncode:
        raise UsageError(f"--base: git cannot read {commit[:7]} ({packed.stderr.decode(errors='replace').strip()})")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
