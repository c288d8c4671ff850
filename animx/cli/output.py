"""What a command says: progress, logs and errors on stderr; the result, as text or one JSON object, on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

import animx
from animx.errors import UsageError
from animx.processes import is_first

BAR_EVERY_S = 0.1
JSON_EVERY_S = 0.2
LINE_EVERY_S = 5.0
"""How often `--progress bar` writes a line where there is no terminal [s]."""
UNITS = {"training": "steps", "denoise": "steps", "encode": "pictures", "load": "models"}
"""What a stage counts, where it is not frames."""


class Output:
    """The voice of one command; a context manager that listens to the `animx` loggers while the command runs."""

    def __init__(self) -> None:
        self.as_json = False
        self.quiet = False
        self.verbose = False
        self.progress_mode = "auto"
        self.command = "animx"
        self.warnings: list[str] = []
        self.stdout_taken = False
        self._seen: set[str] = set()
        self._bars: _Bars | None = None
        self._handler: logging.Handler | None = None

    # ---- life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Output:
        self._handler = _Listener(self)
        logger = logging.getLogger("animx")
        logger.addHandler(self._handler)
        self._level = logger.level
        logger.setLevel(logging.DEBUG if self.verbose else logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear_bar()
        logger = logging.getLogger("animx")
        if self._handler is not None:
            logger.removeHandler(self._handler)
            logger.setLevel(self._level)

    def begin(self, command: str) -> None:
        """Called once the options are known, before the command's own work."""
        self.command = command
        logging.getLogger("animx").setLevel(logging.DEBUG if self.verbose else logging.INFO)

    def take_stdout(self, why: str) -> None:
        """Say that stdout carries data (`-o -`); `--json` is refused then."""
        if self.as_json:
            raise UsageError(f"{why} and --json cannot be given together: both write to stdout. Leave one out")
        self.stdout_taken = True

    # ---- stderr --------------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """One line for the person at the terminal; silent with `--quiet`."""
        if not self.quiet and is_first():
            self._line(line)

    def warn(self, message: str) -> None:
        """A warning: on stderr and in the JSON result, each text once."""
        if message in self._seen:
            return
        self._seen.add(message)
        self.warnings.append(message)
        if not self.quiet and is_first():
            self._line(f"{self._paint('animx: warning:', '33')} {message}")

    def error(
        self,
        message: str,
        kind: str = "",
        exit_code: int = 1,
        as_json: bool | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """The one line that says what went wrong; with `--json` also an object on stdout: `data` and `error`."""
        line = " ".join(message.split())
        self._line(f"{self._paint('animx: error:', '1;31')} {line}")
        if (self.as_json if as_json is None else as_json) and not self.stdout_taken:
            with contextlib.suppress(OSError):  # the error may be that stdout cannot be written
                self._print_json({**(data or {}), "error": {"kind": kind, "message": line, "exit_code": exit_code}})

    def _line(self, line: str) -> None:
        if self._bars is not None:
            self._bars.line(line)
        else:
            _write(sys.stderr, line + "\n")

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if _colours(sys.stderr) else text

    # ---- stdout --------------------------------------------------------------------------------------------------

    def result(self, data: Mapping[str, Any], text: str | Sequence[str] = ()) -> None:
        """The result: `data` as one JSON object with `--json`, else the lines of `text`."""
        if not is_first():
            return  # under torchrun one process speaks for all
        if self.as_json:
            self._print_json(data)
        elif not self.stdout_taken:
            lines = [text] if isinstance(text, str) else text
            self._clear_bar()
            for line in lines:
                sys.stdout.write(line + "\n")

    def wrote(self, data: Mapping[str, Any], paths: Sequence[object]) -> None:
        """The result of a command that writes files: their paths, one a line, for a program to read.

        A terminal gets none, because `say` has named them there; `--quiet` neither.
        """
        silent = self.quiet or _is_terminal(sys.stdout)
        self.result(data, [] if silent else [str(path) for path in paths])

    def _print_json(self, data: Mapping[str, Any]) -> None:
        self._clear_bar()
        head = {"schema": 1, "command": self.command, "version": animx.__version__}
        whole = {**head, **data, "warnings": self.warnings}
        sys.stdout.write(json.dumps(whole, indent=2 if _is_terminal(sys.stdout) else None, default=_plain) + "\n")

    # ---- progress ------------------------------------------------------------------------------------------------

    def progress(self) -> Stages:
        """A callback `(stage, done, total)` that shows progress the way `--progress` asks for."""
        mode = self.progress_mode
        if mode == "auto":
            usable = _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
            mode = "bar" if usable and not self.quiet else "none"
        if not is_first():
            mode = "none"
        return Stages(self, mode)

    def bars(self) -> _Bars:
        """The bars of this command, begun on the first call."""
        if self._bars is None:
            self._bars = _Bars()
        return self._bars

    def _clear_bar(self) -> None:
        if self._bars is not None:
            self._bars.close()
            self._bars = None


class Stages:
    """Shows the progress of stages that may run side by side: bars (rich) on a terminal, lines or JSON elsewhere."""

    def __init__(self, output: Output, mode: str) -> None:
        self._output = output
        self._mode = mode
        self._began: dict[str, tuple[float, int]] = {}
        self._shown: dict[str, float] = {}
        self._terminal = _is_terminal(sys.stderr)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Stage `stage` has done `done` of `total` (0 = unknown)."""
        if self._mode == "none":
            return
        now = time.monotonic()
        began, first = self._began.setdefault(stage, (now, done))
        every = JSON_EVERY_S if self._mode == "json" else BAR_EVERY_S if self._terminal else LINE_EVERY_S
        finished = total > 0 and done >= total
        if not finished and stage in self._shown and now - self._shown[stage] < every:
            return
        self._shown[stage] = now
        # What was done at the first call took its time before it.
        eta = 0.0 if finished else (now - began) / (done - first) * (total - done) if total > done > first else None
        if self._mode == "json":
            shown = {
                "stage": stage,
                "done": done,
                "total": total or None,
                "eta_s": None if eta is None else round(eta, 2),
            }
            _write(sys.stderr, json.dumps(shown) + "\n")
        elif self._terminal:
            self._output.bars().show(stage, done, total)
        else:
            left = f", {eta:.0f} s left" if eta is not None and done < total else ""
            unit = "MB" if "." in stage else UNITS.get(stage, "frames")  # a file that is fetched
            _write(sys.stderr, f"{stage}: {done}{f' of {total}' if total else ''} {unit}{left}\n")


class _Bars:
    """The bars at the foot of a terminal; lines written meanwhile go above them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._progress.start()

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)

    def line(self, text: str) -> None:
        """Write one line above the bars; `text` may hold colours."""
        from rich.text import Text

        self._progress.console.print(Text.from_ansi(text), soft_wrap=True)

    def close(self) -> None:
        """Take the bars away and give the terminal back."""
        self._progress.stop()


class _Listener(logging.Handler):
    """Hands log records of `animx` to the output: warnings and errors, information, and details with `--verbose`."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.DEBUG)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if record.levelno >= logging.WARNING:
            self._output.warn(message)
        elif message not in self._output._seen:
            self._output._seen.add(message)
            self._output.say(f"animx: {message}")


def _write(stream: TextIO, text: str) -> None:
    """Write and flush; a closed stderr must not hide what the command does."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        if stream is sys.stdout:
            raise


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def _colours(stream: TextIO) -> bool:
    return _is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _plain(value: object) -> object:
    """JSON for what `json` does not know: arrays and numpy numbers as lists and numbers, all else as text."""
    as_list = getattr(value, "tolist", None)
    return as_list() if callable(as_list) else str(value)
