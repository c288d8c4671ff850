"""Atomic output: written under a temporary name beside the target, renamed when whole, removed when anything fails.

In: the final path and whether it may replace what is there.  Out: a temporary path to write to.
So nobody ever sees half a file under the final name, whatever stops the command (error, Ctrl-C, full disk).  A command
that is killed outright cannot clean up; what it left beside a target goes when that target is written the next time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from animx.errors import OutputError, UsageError

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
_WHY = {
    errno.ENOSPC: "the disk is full. Free some space, or choose another place with -o",
    errno.EDQUOT: "the disk quota is used up. Free some space, or choose another place with -o",
    errno.EFBIG: "the file would be larger than this system allows (ulimit -f, or the file system's own limit)",
    errno.EROFS: "the file system is read-only. Choose another place with -o",
    errno.EACCES: "no permission. Choose another place with -o",
    errno.EPERM: "no permission. Choose another place with -o",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another place with -o",
    errno.ENOENT: "the folder does not exist. Create it, or choose another place with -o",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one with -o",
}


def output_error(path: str | Path, error: OSError) -> OutputError:
    """The `OutputError` that tells a user why `path` could not be written and what to do."""
    why = _WHY.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    return OutputError(f"cannot write {path}: {why}")


def check_name(path: str | Path) -> None:
    """Refuse (`UsageError`) an output that names nothing: an empty text, `.`, `..` or `/`."""
    if os.path.basename(os.fspath(path).rstrip(os.sep)) in ("", ".", ".."):
        raise UsageError(f"the output '{path}' names nothing. Name a new file or folder with -o")


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Refuse early what `writing(path, overwrite)` would refuse, before any work is done; writes nothing.

    A file that exists and may not be replaced, and a folder in the file's place, are a `UsageError`; a parent folder
    that is missing or not writable is an `OutputError`.
    """
    try:
        target = _resolved(path)
        found = _stat(target)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{path} is a folder. Name a file in it, for example {Path(path) / 'out'}{target.suffix}")
        if found is not None and stat.S_ISREG(found.st_mode) and not overwrite:
            raise UsageError(f"{path} exists. Replace it with -y/--overwrite, or choose another name with -o")
        if found is None or stat.S_ISREG(found.st_mode):
            check_parent(path)
    except OSError as error:
        raise output_error(path, error) from error


def check_parent(path: str | Path) -> None:
    """Refuse (`OutputError`) a target whose folder is missing, is no folder, or cannot be written to."""
    try:
        parent = _resolved(path).parent
        found = _stat(parent)
    except OSError as error:
        raise output_error(path, error) from error
    if found is None:
        raise OutputError(f"cannot write {path}: folder {parent} does not exist. Create it, or choose another with -o")
    if not stat.S_ISDIR(found.st_mode):
        raise OutputError(f"cannot write {path}: {parent} is a file, not a folder. Choose another place with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission in {parent}. Choose another place with -o")


@contextlib.contextmanager
def writing(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new, empty temporary file beside `path` (same suffix); rename it to `path` when the block ends well.

    Any exception, `KeyboardInterrupt` too, removes it and leaves `path` as it was.  A link keeps being a link: its
    target is replaced.  A device or pipe (`/dev/null`) gets the finished bytes.  Raises what `check_target` raises, and
    `OutputError` for a full disk or a refused write inside the block.
    """
    check_target(path, overwrite)
    target = _resolved(path)
    special = target.exists() and not target.is_file()
    try:
        temporary, lock = _begin(Path(tempfile.gettempdir()) / target.name if special else target)
    except OSError as error:
        raise output_error(path, error) from error
    try:
        with _as_output_error(path, temporary):
            yield temporary
            if special:
                with temporary.open("rb") as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            else:
                # It may have appeared while the block ran.
                check_target(path, overwrite)
                os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(lock)


def check_folder_target(
    path: str | Path, overwrite: bool = False, own: str = "*", own_folders: Sequence[str] = ()
) -> None:
    """Refuse early what `writing_folder` would refuse; writes nothing.

    A missing or empty folder is free.  One that holds something needs `overwrite`, and then every entry must be a file
    whose name matches the pattern `own`, or a folder named in `own_folders` without folders in it, because the whole
    folder is replaced (`UsageError`).
    """
    try:
        target = _resolved(path)
        found = _stat(target)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{path} is a file, not a folder. Choose another name with -o")
        check_parent(target)
        for entry in sorted(target.iterdir()) if found is not None else []:
            if not overwrite:
                raise UsageError(f"{path} exists. Replace it with -y/--overwrite, or choose another name with -o")
            ours = fnmatch.fnmatchcase(entry.name, own) and entry.is_file()
            if entry.name in own_folders and entry.is_dir():
                ours = all(inner.is_file() for inner in entry.iterdir())
            if not ours:
                raise UsageError(f"{path} also holds '{entry.name}' and would be replaced whole. Name a new folder")
    except OSError as error:
        raise output_error(path, error) from error


@contextlib.contextmanager
def writing_folder(
    path: str | Path, overwrite: bool = False, own: str = "*", own_folders: Sequence[str] = ()
) -> Iterator[Path]:
    """Yield a new, empty temporary folder beside `path`; rename it to `path` when the block ends well.

    Replaces a whole folder under the conditions of `check_folder_target`.  Any exception removes the temporary folder
    and leaves `path` as it was.
    """
    check_folder_target(path, overwrite, own, own_folders)
    target = _resolved(path)
    try:
        temporary, lock = _begin(target, folder=True)
    except OSError as error:
        raise output_error(path, error) from error
    old = temporary.with_suffix(".old")
    try:
        with _as_output_error(path, temporary):
            yield temporary
            check_folder_target(path, overwrite, own, own_folders)
            if target.exists():
                target.rename(old)
            try:
                temporary.rename(target)
            except BaseException:
                if old.exists():
                    old.rename(target)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def _as_output_error(path: str | Path, temporary: Path) -> Iterator[None]:
    """Turn an `OSError` of writing to `temporary` into an `OutputError` about `path`; others pass (a missing input)."""
    try:
        yield
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        ours = any(name.startswith(str(temporary)) for name in names)
        if ours or (not names and error.errno in _DISK):
            raise output_error(path, error) from error
        raise


def _resolved(path: str | Path) -> Path:
    """The absolute path with links followed, so that the temporary name lies on the target's own file system."""
    return Path(os.path.realpath(path))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _marks(target: Path) -> str:
    """How the hidden names of a target begin; short, so that a long target name does not make them too long."""
    return f".animx-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:10]}-"


def _begin(target: Path, folder: bool = False) -> tuple[Path, int]:
    """A new hidden file or folder beside `target`, and the lock that its writer holds; `os.close` releases it.

    The lock ends with its process, so a part whose lock is free has no writer any more: it is removed here.
    """
    _sweep(target)
    while True:
        part = target.with_name(f"{_marks(target)}{secrets.token_hex(6)}.part{'' if folder else target.suffix[:16]}")
        if folder:
            part.mkdir()
            try:
                lock = os.open(part, os.O_RDONLY)
            except FileNotFoundError:  # another process took it for a left-over
                continue
        else:
            lock = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: parts stay after a kill
            fcntl.flock(lock, fcntl.LOCK_EX)
        if part.exists():  # else the same mistake, a moment later
            return part, lock
        os.close(lock)


def _sweep(target: Path) -> None:
    """Remove the parts of `target` that a killed process left; where locks do not work, nothing."""
    with contextlib.suppress(OSError):
        for part in target.parent.glob(f"{_marks(target)}*.*"):
            if part.suffix == ".old" and not target.exists():
                continue  # the only copy of what was replaced
            with contextlib.suppress(OSError):
                lock = os.open(part, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if part.is_dir():
                        shutil.rmtree(part)
                    else:
                        part.unlink()
                finally:
                    os.close(lock)
