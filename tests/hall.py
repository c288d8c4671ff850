"""Shared by the tests of the command line: an in-process runner and a third-party plugin package made on the spot."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from animx import plugins
from animx.cli import run


@dataclass(frozen=True)
class Ran:
    """What a command said and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout as the one JSON object it must be."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> str:
        """The one error line, without its prefix."""
        lines = [line for line in self.err.splitlines() if line.startswith("animx: error:")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("animx: error: ")


def animx(*arguments: object, stdin: bytes = b"") -> Ran:
    """Run `animx` in this process."""
    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(err, encoding="utf-8", write_through=True)
    try:
        code = run([str(one) for one in arguments])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        texts = out.getvalue().decode(), err.getvalue().decode()
        sys.stdin, sys.stdout, sys.stderr = streams
    return Ran(code, *texts)


def refused(ran: Ran, code: int, *words: str) -> str:
    """Assert a documented failure: its code, one line, no traceback, nothing on stdout, all `words` in the line."""
    assert ran.code == code, (ran.code, ran.err)
    assert "Traceback" not in ran.err
    assert ran.out == ""
    line = ran.error
    for word in words:
        assert word in line, (word, line)
    return line


FAKE_POSE = '''
"""A pose backend that needs no net: a template body that waves, at the place it has in every frame."""
import numpy as np
from animx.pose.backend import Detection, nobody
from animx.pose.skeleton import JOINTS, TEMPLATE


class Fake:
    name, version, max_persons = "fake", "1", 1

    def __init__(self, *, hands=False):
        self.frame = 0

    @classmethod
    def available(cls):
        return None

    def reset(self):
        self.frame = 0

    def close(self):
        pass

    def detect(self, frame, *, still=False):
        height, width = frame.shape[:2]
        if frame.max() < 20:  # a black frame shows nobody
            return nobody()
        t = 0 if still else self.frame
        self.frame += not still
        points, scores = np.zeros((1, JOINTS, 2), np.float32), np.zeros((1, JOINTS), np.float32)
        for joint, (x, y) in TEMPLATE.items():
            points[0, joint] = (0.5 + 0.8 * x) * width, (0.5 + 0.8 * y) * height
            scores[0, joint] = 1.0
        points[0, 4] += (-0.1 * width * np.sin(t / 4), -0.2 * height * (1 - np.cos(t / 4)))
        return Detection(points, scores)
'''


def make_package(folder: Path, name: str, code: str, entries: dict[str, dict[str, str]]) -> None:
    """Install a one-module distribution into `folder` (to be put on sys.path): its code and entry points by group."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, points in entries.items():
        lines.append(f"[{group}]")
        lines.extend(f"{key} = {value}" for key, value in points.items())
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Put the packages of `folder` on the path of this process; plugins are looked for anew."""
    sys.path.insert(0, str(folder))
    plugins.find.cache_clear()
    before = set(sys.modules)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if (folder / f"{name}.py").exists():
                del sys.modules[name]
        plugins.find.cache_clear()
