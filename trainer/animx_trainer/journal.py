"""What a run writes down: `log.jsonl` (one object a step), TensorBoard scalars, and sample strips as PNG.

Only the first process writes.  A run that is taken up again drops the lines from its first new step on, so that the log
reads like that of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.atomic import output_error, writing
from animx.errors import MissingExtraError
from animx.image import write_picture

LOG = "log.jsonl"
BOARD = "tensorboard"
STRIPS = "samples"


class Journal:
    """The log of a run in its folder; a context manager."""

    def __init__(self, folder: Path, *, step: int = 0, tensorboard: bool = True, silent: bool = False) -> None:
        """step: first step of this start; later lines of an earlier start are dropped.  silent: writes nothing."""
        self.folder, self.silent = folder, silent
        self._board: Any = None
        self._log: Any = None
        if silent:
            return
        try:
            _forget_from(folder / LOG, step)
            self._log = (folder / LOG).open("a", encoding="utf-8")
        except OSError as error:
            raise output_error(folder / LOG, error) from error
        if tensorboard:
            self._board = _writer(folder / BOARD, step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            self._log.close()
        if self._board is not None:
            self._board.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line and one point of each value.  `step` counts the steps that are done.  NaN becomes null."""
        if self.silent:
            return
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._log.write(json.dumps({"step": step, **plain}) + "\n")
            self._log.flush()
        except OSError as error:
            raise output_error(self.folder / LOG, error) from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def strip(self, step: int, picture: NDArray[np.uint8]) -> None:
        """Keep a sample strip, RGB [H, W, 3]."""
        if self.silent:
            return
        folder = self.folder / STRIPS
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error
        with writing(folder / f"step-{step:08d}.png", overwrite=True) as temporary:
            write_picture(temporary, picture)
        if self._board is not None:
            self._board.add_image("samples", picture, step, dataformats="HWC")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's log, in order; what is none (cut short by a crash, damaged) is left out."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                found.append(row)
    return found


def _forget_from(path: Path, step: int) -> None:
    """Keep the lines of the first `step` steps."""
    if not path.exists():
        return
    kept = [line for line in read_log(path.parent) if line["step"] <= step] if step else []
    with writing(path, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def _writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("log.tensorboard", "train") from error
    made: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
    return made
