"""A small model hub on loopback: the `resolve` addresses of the public one, its redirect to a store, ranges, tokens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it holds, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    """Content by `owner/name/file`."""
    cut_at: int | None = None
    """Send this many bytes of an answer, then break the line and answer 503 from then on."""
    ranges: bool = True
    """Whether ranges are honoured."""
    token: str | None = None
    lfs: bool = True
    """Name a file's sha256 as its version, as the public hub does for large files."""
    lies: bool = False
    """Send other bytes than the ones listed."""
    down: bool = False
    url: str = ""
    store_url: str = ""
    heads: list[str] = field(default_factory=list)
    gets: list[tuple[str, int, int]] = field(default_factory=list)
    """(file, first byte, bytes sent)"""
    tokens_at_store: list[str | None] = field(default_factory=list)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def refuse(self, code: int, reason: str = "") -> None:
            self.send_response(code)
            if reason:
                self.send_header("X-Error-Code", reason)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            hub.heads.append(self.path)
            if hub.down:
                return self.refuse(503)
            repository, _, rest = unquote(self.path).lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            content = hub.files.get(f"{repository}/{name}")
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.refuse(401, "GatedRepo")
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            if content is None:
                return self.refuse(404, "EntryNotFound")
            version = hashlib.sha256(content).hexdigest() if hub.lfs else hashlib.sha1(content).hexdigest()
            self.send_response(302)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-ETag" if hub.lfs else "ETag", f'"{version}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Location", f"{hub.store_url}/store/{repository}/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            if hub.down or not self.path.startswith("/store/"):
                return self.refuse(503)
            hub.tokens_at_store.append(self.headers.get("Authorization"))
            name = unquote(self.path).removeprefix("/store/")
            content = hub.files[name]
            if hub.lies:
                content = bytes(len(content))
            asked = self.headers.get("Range") if hub.ranges else None
            first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            part = content[first:]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(part)))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            cut = hub.cut_at is not None and first + len(part) > hub.cut_at
            if cut:
                part = part[: max(0, (hub.cut_at or 0) - first)]
                hub.down = True
            self.wfile.write(part)
            self.wfile.flush()
            hub.gets.append((name.rsplit("/", 1)[1], first, len(part)))
            self.close_connection = cut

    return Handler


@contextmanager
def serving(files: dict[str, bytes], **how: Any) -> Iterator[Hub]:
    """A hub and its store, on two ports, until the block ends."""
    hub = Hub(files, **how)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    hub.url, hub.store_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
