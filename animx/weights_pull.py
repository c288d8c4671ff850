"""Fetch a released model from a model hub or its mirror: resumed where it broke, checked against the hub's own hash.

Metadata, redirects, tokens and transfer are huggingface_hub's.  The unfinished file lies beside its target as
`.NAME.ETAG.part`, because the library's own temporary file does not outlive its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from animx.atomic import output_error
from animx.errors import MissingExtraError, UsageError, WeightsError, nearest
from animx.weights import RELEASES, ReleasedFile, check_hashes, file_hash, weights_folder, write_hashes

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""`on_progress(file, done, total)` in MB."""

MB = 1_000_000


def pull(
    release: str,
    folder: Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    mirror: str | None = None,
    repository: str | None = None,
    on_progress: Progress = lambda *_: None,
) -> Path:
    """Fetch what is missing of a release into `folder`, check it, and record its hashes; returns the folder.

    mirror: address of a hub ($HF_ENDPOINT, else the public one).  repository: another one on it that holds the same
    files.  token: access token ($HF_TOKEN).  A broken transfer
    goes on where it stopped when called again.  Errors: `WeightsError` when a file cannot be had or is not what the hub
    lists, `OutputError` when it cannot be written.
    """
    if release not in RELEASES:
        raise UsageError(f"unknown model '{release}'.{nearest(release, RELEASES)} Known: {', '.join(RELEASES)}")
    try:
        from huggingface_hub import utils as hub
    except ImportError as error:
        raise MissingExtraError("weights pull", "model") from error
    endpoint = (mirror or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise UsageError(f"mirror '{endpoint}': use the address of a hub, such as https://hub.example.org")
    if repository is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UsageError(f"repository '{repository}': use OWNER/NAME, such as {RELEASES[release][0].repository}")
    target = folder or weights_folder() / release
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(target, error) from error
    known = {}
    with _hushed(hub):
        for file in RELEASES[release]:
            if repository is not None:
                file = replace(file, repository=repository)
            path, digest = _fetch(file, target, endpoint, revision, token, on_progress)
            known[path.name] = digest
    write_hashes(target, known)
    return target


def _fetch(
    file: ReleasedFile, target: Path, endpoint: str, revision: str | None, token: str | None, on_progress: Progress
) -> tuple[Path, str]:
    """One file: its path and sha256."""
    path = next((target / name for name in (file.name, *file.others) if (target / name).is_file()), target / file.name)
    try:
        facts, headers = _ask_any(file, endpoint, revision, token)
    except Exception as error:  # the library's HTTP client changes between its versions, and so do its errors
        if _recorded(path):
            log.info("%s: kept; %s cannot be asked for a newer one (%s)", path.name, endpoint, _reason(error))
            return path, file_hash(path)
        raise _cannot(file, endpoint, target, error) from error
    wanted = facts.etag if len(facts.etag) == 64 else None
    if path.is_file() and (facts.size is None or path.stat().st_size == facts.size):
        digest = file_hash(path)
        if digest == wanted or (wanted is None and _recorded(path)):
            on_progress(path.name, 1, 1)
            return path, digest
    path = target / file.name
    part = target / f".{file.name}.{facts.etag[:16]}.part"
    for stale in set(target.glob(f".{file.name}.*.part")) - {part}:
        stale.unlink()  # of another version of the file
    try:
        with _locked(part) as sink:
            sink.report = lambda done: on_progress(file.name, done // MB, max(1, (facts.size or done) // MB))
            begun = sink.seek(0, os.SEEK_END)
            if facts.size is not None and begun > facts.size:
                begun = sink.seek(0)
                sink.truncate()
            if begun:
                log.info("%s: goes on at %d MB", file.name, begun // MB)
            _transfer(facts, headers, sink, begun)
            os.fsync(sink.fileno())
        digest = file_hash(part)
        if wanted is not None and digest != wanted:
            part.unlink()
            raise WeightsError(f"{file.name}: what {endpoint} sent has not the hash it lists. Run the command again")
        os.replace(part, path)
    except WeightsError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and type(error) is OSError and error.errno:
            raise output_error(path, error) from error
        if isinstance(error, PermissionError):
            raise output_error(path, error) from error
        raise _cannot(file, endpoint, target, error) from error
    return path, digest


def _ask_any(file: ReleasedFile, endpoint: str, revision: str | None, token: str | None) -> tuple[Any, dict[str, str]]:
    """What the hub says about a file under the first of its names that it knows."""
    from huggingface_hub.errors import EntryNotFoundError

    unknown: EntryNotFoundError | None = None
    for name in (file.name, *file.others):
        try:
            return _ask(replace(file, name=name), endpoint, revision, token)
        except EntryNotFoundError as error:
            unknown = unknown or error
    assert unknown is not None
    raise unknown


def _ask(file: ReleasedFile, endpoint: str, revision: str | None, token: str | None) -> tuple[Any, dict[str, str]]:
    """What the hub says about a file, and the headers to fetch it with."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode
    from huggingface_hub import utils as hub

    if is_offline_mode():
        raise OSError("HF_HUB_OFFLINE is set")
    url = hf_hub_url(file.repository, file.name, revision=revision, endpoint=endpoint)
    facts = get_hf_file_metadata(url, token=token)
    if not facts.etag:
        raise OSError("it names no version (ETag) of the file; is it a model hub?")
    headers = hub.build_hf_headers(token=token)
    if urlsplit(facts.location).netloc != urlsplit(url).netloc:
        headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}  # the store is somebody else's
    return facts, headers


def _transfer(facts: Any, headers: dict[str, str], sink: _Sink, begun: int) -> None:
    """Bytes from `begun` on into `sink`; the library resumes within a call and starts over where ranges are ignored."""
    from huggingface_hub.file_download import http_get

    http_get(facts.location, sink, resume_size=begun, headers=headers, expected_size=facts.size)


@contextlib.contextmanager
def _hushed(hub: Any) -> Iterator[None]:
    """Without the library's own progress bars and warnings: what matters comes back as an error."""
    logger, shown = logging.getLogger("huggingface_hub"), not hub.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    hub.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            hub.enable_progress_bars()


class _Sink(FileIO):
    """A file that tells how long it has become."""

    report: Callable[[int], None] = staticmethod(lambda _: None)

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            view = view[super().write(view) or 0 :]
        self.report(self.tell())
        return len(data)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[_Sink]:
    """The unfinished file, for one process at a time."""
    with _Sink(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as sink:
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WeightsError(f"{path}: another process is fetching it. Wait for it, or stop it") from error
        yield sink


def _recorded(path: Path) -> bool:
    """Whether the file is there and is what `hashes.json` beside it says."""
    try:
        return path.is_file() and check_hashes(path.parent, [path]).get(path.name) == "ok"
    except Exception:
        return False


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _cannot(file: ReleasedFile, endpoint: str, target: Path, error: BaseException) -> WeightsError:
    return WeightsError(
        f"{file.name}: cannot be fetched from {endpoint}/{file.repository} ({_reason(error)}). Run the same command "
        f"again to resume, name a mirror with --mirror, give $HF_TOKEN if it wants one, or put the file into {target}"
    )
