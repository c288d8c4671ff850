"""The program `animx` (and `python -m animx`): the command line plus what concerns the whole process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
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
    _open_standard_streams()
    _hush_libraries()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    _complete()
    code = run(sys.argv[1:])
    for stream, failed in ((sys.stdout, EXIT_CLOSED_PIPE), (sys.stderr, 0)):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or failed
            with contextlib.suppress(OSError, ValueError):  # or the interpreter complains when it closes it
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _hush_libraries() -> None:
    """Keep the libraries' warnings, log lines and bars out of our stderr; errors come as exceptions, and are told.

    Programmers ask for them with `python -W`, or by setting these variables themselves.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "critical")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")


def _open_standard_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr (`>&-`) empty ones.

    Otherwise the next file that is opened gets their number, and what native code writes to descriptor 2 goes into it.
    Writing to a stdout that was closed fails, as it should: the result would be lost.
    """
    ways = ((os.O_RDONLY, "r"), (os.O_RDONLY, "w"), (os.O_WRONLY, "w"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            how, mode = ways[number]
            opened = os.open(os.devnull, how)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


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
