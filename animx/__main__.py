"""The program `animx` (and `python -m animx`): the command line plus what concerns the whole process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line on `sys.argv` and exit with its code."""
    from animx.cli import Terminated, run
    from animx.errors import EXIT_CLOSED_PIPE

    def terminate(number: int, frame: FrameType | None) -> None:
        _ignore()  # the second one must not cut the cleaning up short
        raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> None:
        _ignore()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a background job of a shell stays deaf to Ctrl-C
        signal.signal(signal.SIGINT, interrupt)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    _complete()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        code = code or EXIT_CLOSED_PIPE
    if code == EXIT_CLOSED_PIPE:
        with contextlib.suppress(OSError, ValueError):  # or the interpreter complains when it closes stdout
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _ignore() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _complete() -> None:
    """Shell completion: `eval "$(_ANIMX_COMPLETE=bash_source animx)"`."""
    instruction = os.environ.get("_ANIMX_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        from animx.cli import cli

        sys.exit(shell_complete(cli, {}, "animx", "_ANIMX_COMPLETE", instruction))


if __name__ == "__main__":
    main()
