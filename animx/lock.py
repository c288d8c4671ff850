"""One process at a time in a folder that is worked on for long, so that two runs of a command never mix their files.

The lock is the system's own on the open folder: there is no lock file, and it ends with its process, however that
ends, so a killed run blocks nobody.  Children of a fork give it up: a worker that outlives its parent blocks nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from animx.atomic import output_error
from animx.errors import UsageError

_held: set[int] = set()


def _forget() -> None:
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def holding(folder: str | Path) -> Iterator[None]:
    """While inside, no other process that asks for `folder` gets it: it is refused with a `UsageError`.

    A folder that does not exist is made, and removed again (with parents made for it) when nothing was written there.
    A path that is no folder is left to the caller, as is a file system without locks: nothing is held then.
    """
    home = Path(folder)
    if home.exists() and not home.is_dir():
        yield
        return
    made = [one for one in (home, *home.parents) if not one.exists()]
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = os.open(home, os.O_RDONLY)
    except OSError as error:
        _remove(made)
        raise output_error(folder, error) from error
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another animx process is at work there. Wait until it has ended, or choose another "
                "folder with -o"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        if handle in _held:
            _held.discard(handle)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # for a child of a fork, too, that has not yet run
            os.close(handle)
        _remove(made)


def _remove(folders: list[Path]) -> None:
    """Remove those that are empty, innermost first."""
    for one in folders:
        with contextlib.suppress(OSError):
            one.rmdir()
