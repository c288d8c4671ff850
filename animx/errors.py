"""The error tree: every failure a user can meet, with its exit code, on one page.

A message says what, where, and the mend, in one line:  `legs.yaml: unknown bone group 'thigh'. Did you mean 'thighs'?`
`cli/` turns an `AnimxError` into that one line on stderr and `exit_code`; anything else is a bug (exit 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class AnimxError(Exception):
    """Base of all expected failures.  `exit_code` is what the command line returns."""

    exit_code: int = 1


class UsageError(AnimxError):
    """The call itself is wrong: an option, a value, a combination, an existing output."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional dependency is not installed.  The message ends with the exact `pip install` line."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs the '{extra}' extra. Run: pip install -c constraints.txt 'animx[{extra}]'")

    @classmethod
    def saying(cls, line: str, extra: str) -> MissingExtraError:
        """The same error with a whole line of its own."""
        made = cls("", extra)
        made.args = (line,)
        return made


class InputError(AnimxError):
    """An input cannot be used: missing, damaged, of the wrong kind or too large."""

    exit_code = 3


class OutputError(AnimxError):
    """An output cannot be written: full disk, no permission, no such folder."""

    exit_code = 3


class NoFigureError(AnimxError):
    """There is no figure in the picture, or no usable pose in the clip."""

    exit_code = 4


class OutOfMemoryError(AnimxError):
    """Memory ran out although smaller windows were tried."""

    exit_code = 5


class WeightsError(AnimxError):
    """Weights are missing, wrong, or do not match their hash."""

    exit_code = 6


class BatchError(AnimxError):
    """Some jobs of a batch failed.  `data` is what became of all of them, for `--json`."""

    exit_code = 7

    def __init__(self, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.data = dict(data or {})


EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_CLOSED_PIPE = 141


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known word nearest to `word`, or `` when none is near.  Append it to a message."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""
