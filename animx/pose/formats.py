"""The door to pose files: reading every format we know by its content, writing those that others read.

| kind | read | written | what it is |
| --- | --- | --- | --- |
| json, npz | yes | yes | the native pose file (`native.py`, `npz.py`) |
| openpose-25, openpose-18 | yes | yes | a folder of OpenPose JSON files (`openpose.py`) |
| pose-keypoint | yes | yes | ComfyUI's POSE_KEYPOINT JSON (`openpose.py`) |
| coco-wholebody | yes | yes | COCO-WholeBody JSON (`coco.py`) |
| legacy-openpose18 | yes | no | npz of 18 joints (`legacy.py`) |
| pickle | yes | no | DWPose, Animate-X, UniAnimate (`pickles.py`) |
| bvh | yes | no | motion capture, projected (`bvh_figure.py`) |
| joints | yes | no | joints YAML of one picture (`joints.py`, which also writes it) |

Whatever a file holds, reading it gives a `PoseSequence` or an `InputError` that names the file and the field.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from animx.atomic import writing, writing_folder
from animx.canvas import Canvas
from animx.errors import InputError, OutputError, UsageError, nearest
from animx.pose import coco, extras, jsontext, legacy, native, npz, openpose, pickles, unpickle
from animx.pose.findings import check_sequence, describe_poses
from animx.pose.jsontext import Walker
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import FEET, JOINT_NAMES, NECK

__all__ = ["KINDS", "WRITABLE", "check_poses", "describe_poses", "is_pose_file", "read_poses", "write_poses"]

WRITABLE = ("json", "npz", "openpose-25", "openpose-18", "pose-keypoint", "coco-wholebody")
KINDS = (*WRITABLE, "legacy-openpose18", "pickle", "bvh", "joints")
_ALIASES = {
    "openpose": "openpose-25",
    "coco": "coco-wholebody",
    "legacy": "legacy-openpose18",
    "comfyui": "pose-keypoint",
}
MAX_TEXT_BYTES = 1 << 30
"""Largest JSON or BVH file that is read [bytes]."""
_HEAD = 1 << 16
_POSE_KEYS = re.compile(rb'"(keypoints|pose_keypoints_2d|foot_kpts|canvas_width)"\s*:')


# ---- reading -----------------------------------------------------------------------------------------------------


def read_poses(
    source: str | Path | Literal["-"],
    *,
    kind: str | None = None,
    canvas: Canvas | None = None,
    fps: Fraction | None = None,
) -> PoseSequence:
    """Read a pose file of any kind, or from stdin (`-`: JSON or npz).  The kind is told by content, or given as `kind`.

    `canvas` and `fps` stand in for what the file does not hold.  `InputError` with file and field for anything that is
    no pose file, damaged, too large or NaN; `UsageError` for an unknown `kind`.
    """
    kind = None if kind is None else _known_kind(kind)
    if str(source) == "-":
        data = _stdin()
        return _signed(_read_stream(io.BytesIO(data), "stdin", kind, canvas, fps), "-", lambda: _digest([data]))
    path = Path(source)
    try:
        if path.is_dir():
            if kind is not None and not kind.startswith("openpose"):
                raise InputError(f"{path} is a folder; {kind} is a file")
            return openpose.read_openpose_folder(path, canvas, fps)
        if kind == "joints" or (kind is None and path.suffix.lower() in (".yaml", ".yml")):
            from animx.pose.joints import read_joints

            return read_joints(path)
        if path.is_fifo():  # as `<(animx pose retarget ... -o -)` of a shell
            with path.open("rb") as pipe:
                data = _bytes(pipe, str(path), MAX_TEXT_BYTES)
            return _signed(_read_stream(io.BytesIO(data), str(path), kind, canvas, fps), "-", lambda: _digest([data]))
        with path.open("rb") as stream:
            poses = _read_stream(stream, str(path), kind, canvas, fps)
            return _signed(poses, path.name, lambda: _digest(_blocks(stream)))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_stream(
    stream: IO[bytes], where: str, kind: str | None, canvas: Canvas | None, fps: Fraction | None
) -> PoseSequence:
    head = stream.read(_HEAD)
    stream.seek(0)
    kind = kind or _sniff(head, where)
    if kind in ("npz", "legacy-openpose18"):
        archive = npz.Archive(stream, where)
        if kind == "npz" and "keypoints" not in archive.names and "body" in archive.names:
            kind = "legacy-openpose18"
        return legacy.load(archive) if kind == "legacy-openpose18" else npz.load(archive)
    if kind == "pickle":
        return pickles.read(_bytes(stream, where, unpickle.MAX_BYTES), where, canvas, fps)
    data = _bytes(stream, where, MAX_TEXT_BYTES)
    if kind == "joints":
        raise InputError(f"{where}: joints YAML comes from a file, not from a pipe")
    if kind == "bvh":
        from animx.pose import bvh_figure

        # Joint names in other alphabets do no harm.
        return bvh_figure.read(data.decode("utf-8", "replace"), where, canvas)
    text = jsontext.decode(data, where)
    del data
    return _read_json(Walker(text, where), kind, canvas, fps)


def _read_json(walker: Walker, kind: str, canvas: Canvas | None, fps: Fraction | None) -> PoseSequence:
    where = walker.where
    if walker.peek() == "[":
        first = walker.text[walker.at : walker.at + _HEAD]
        if kind == "coco-wholebody" or ((kind is None or kind == "json") and '"people"' not in first):
            value = walker.value()
            walker.end()
            if not value:
                raise InputError(f"{where}: an empty list holds no poses")
            return coco.read(value, where, canvas, fps)
        return openpose.read_pose_keypoint(_elements(walker), where, canvas, fps)
    if walker.peek() != "{":
        walker.fail("expected an object or a list")
    fields = native.read_json_fields(walker)
    if kind == "coco-wholebody" or (kind == "json" and "annotations" in fields):
        return coco.read(fields, where, canvas, fps)
    if kind == "pose-keypoint" or (kind == "json" and "people" in fields):
        return openpose.read_pose_keypoint([fields], where, canvas, fps)
    return native.build(fields, where)


def _elements(walker: Walker) -> Iterator[Any]:
    for _ in walker.items():
        yield walker.value()
    walker.end()


def _sniff(head: bytes, where: str) -> str:
    if not head:
        raise InputError(f"{where}: empty")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > 1:
        return "pickle"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"{", b"[")):
        return "json"
    if text[:9].upper() == b"HIERARCHY":
        return "bvh"
    suffix = Path(where).suffix.lower()
    if suffix in (".pkl", ".pickle"):
        return "pickle"
    raise InputError(f"{where}: no pose file (neither JSON, npz, BVH, a pose pickle nor a joints YAML)")


def _known_kind(kind: str) -> str:
    known = _ALIASES.get(kind, kind)
    if known not in KINDS:
        raise UsageError(f"unknown pose format '{kind}'.{nearest(kind, [*KINDS, *_ALIASES])} Known: {', '.join(KINDS)}")
    return known


def _stdin() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or sys.stdin.isatty():
        raise UsageError("'-' reads a pose file from stdin, but nothing is piped into it")
    data = _bytes(stream, "stdin", MAX_TEXT_BYTES)
    if not data:
        raise InputError("stdin is empty: the command before the pipe wrote no poses. Its own error says why")
    return data


def _bytes(stream: IO[bytes], where: str, limit: int) -> bytes:
    """The rest of a stream; `read(limit)` would take memory for the limit at once."""
    data = bytearray()
    while block := stream.read(1 << 20):
        data += block
        if len(data) > limit:
            raise InputError(f"{where}: larger than {limit >> 20} MB. Write the poses as npz, or cut the clip")
    return bytes(data)


def _signed(poses: PoseSequence, name: str, digest: Any) -> PoseSequence:
    """Name and hash of a foreign file as `source`; a native file keeps the source it names."""
    if "format" not in poses.source or "name" in poses.source:
        return poses
    return replace(poses, source={"name": name, "hash": digest(), **poses.source})


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    stream.seek(0)
    while block := stream.read(1 << 20):
        yield block


def _digest(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def is_pose_file(path: str | Path) -> bool:
    """Whether `path` looks like a pose file or an OpenPose folder, by name and its first 64 KiB; never raises."""
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            files = openpose.openpose_files(path)
            return bool(files) and _is_pose_text(_head(files[0]))
        if suffix in (".npz", ".bvh", ".pkl", ".pickle") or path.name.lower().endswith(".pose.json"):
            return True
        if not path.is_file():
            return False
        head = _head(path)
    except (OSError, InputError):
        return False
    if suffix in (".yaml", ".yml"):
        return b"joints:" in head or b"skeleton:" in head
    if head.startswith(b"PK\x03\x04"):
        return b"keypoints.npy" in head or b"body.npy" in head
    return _is_pose_text(head) or head.lstrip()[:9].upper() == b"HIERARCHY"


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD)


def _is_pose_text(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") and bool(
        _POSE_KEYS.search(head) or re.search(rb'"people"\s*:', head)
    )


def check_poses(source: PoseSequence | str | Path) -> list[str]:
    """Findings about a pose file for a person, each one sentence; empty when nothing is odd.

    A file that cannot be used raises `InputError`, as `read_poses` does; findings are advice about usable poses.
    """
    return check_sequence(source if isinstance(source, PoseSequence) else read_poses(source))


# ---- writing -----------------------------------------------------------------------------------------------------


def write_poses(
    poses: PoseSequence, target: str | Path | Literal["-"], *, kind: str | None = None, overwrite: bool = False
) -> list[str]:
    """Write a pose file whole or not at all; returns the names of what the format cannot hold.

    The kind is told by the name (`.json`, `.npz`; a folder is OpenPose's), or given: one of `WRITABLE`.  `-` is stdout,
    JSON.  An existing target without `overwrite`, and a kind that is import only, are a `UsageError`.
    """
    kind = "openpose-18" if _keeps_18(poses, target, kind) else writable_kind(target, kind)
    if str(target) == "-":
        if kind not in ("json", "pose-keypoint", "coco-wholebody"):
            raise UsageError(f"-o - writes JSON, not {kind}. Name a file")
        lost, pieces = _text(poses, kind)
        _to_stdout(pieces)
        return lost
    path = Path(target)
    if kind.startswith("openpose"):
        body = int(kind[-2:])
        with writing_folder(path, overwrite, own="*_keypoints.json") as folder:
            left_out = openpose.write_folder(poses, folder, path.name, body)
        return [*_lost(poses, kind), *left_out]
    with writing(path, overwrite) as temporary:
        if kind == "npz":
            with temporary.open("wb") as sink:
                npz.save(poses, sink)
            return []
        lost, pieces = _text(poses, kind)
        with temporary.open("w", encoding="utf-8", newline="\n") as text:
            for piece in pieces:
                text.write(piece)
    return lost


def _keeps_18(poses: PoseSequence, target: str | Path, kind: str | None) -> bool:
    """Whether poses that came from OpenPose's 18 joints go back into an OpenPose folder whose kind is not said."""
    unsaid = kind == "openpose" or (kind is None and writable_kind(target) == _known_kind("openpose"))
    return unsaid and poses.source.get("format") == "openpose-18"


def writable_kind(target: str | Path, kind: str | None = None) -> str:
    """The format that `target` (a name, `-`) is written in, or `kind` where given; `UsageError` when there is none."""
    if kind is not None:
        known = _known_kind(kind)
        if known not in WRITABLE:
            raise UsageError(f"{known} is read, not written. Write one of {', '.join(WRITABLE)}")
        return known
    if str(target) == "-":
        return "json"
    path = Path(target)
    suffix = path.suffix.lower()
    if suffix in (".json", ".npz"):
        return suffix[1:]
    if not suffix or path.is_dir() or str(target).endswith(("/", "\\")):
        return _known_kind("openpose")
    raise UsageError(f"{path}: poses are written as .pose.json, .npz or a folder of OpenPose JSON, not '{suffix}'")


def _text(poses: PoseSequence, kind: str) -> tuple[list[str], Iterator[str]]:
    if kind == "json":
        return [], native.json_lines(poses)
    lost = _lost(poses, kind)
    if kind == "pose-keypoint":
        left_out: list[str] = []
        pieces = openpose.pose_keypoint_lines(poses, left_out)
        first = next(pieces)  # the extras that are left out are known from here on
        return [*lost, *left_out], _again(first, pieces)
    return lost, coco.lines(poses)


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _lost(poses: PoseSequence, kind: str) -> list[str]:
    """What a foreign format cannot hold of these poses: joints, then fields."""
    seen = (poses.scores > 0).any(axis=(0, 1))
    lost = []
    if kind == "openpose-18":
        lost += [JOINT_NAMES[joint] for joint in FEET if seen[joint]]
    if kind == "coco-wholebody":
        if seen[NECK] and not coco.neck_is_derived(poses):
            lost.append(JOINT_NAMES[NECK])
        lost += extras.names(poses)
    if kind == "pose-keypoint" and poses.person_ids != tuple(range(poses.persons)):
        lost.append("person_ids")
    if poses.fps != 25:
        lost.append("fps")
    regular = np.arange(poses.frames) / float(poses.fps)
    off = np.abs(poses.times - poses.times[0] - regular).max()
    if poses.times[0] != 0 or (off > 0.01 / float(poses.fps) and not kind.startswith("openpose")):
        lost.append("times")
    if poses.depth is not None:
        lost.append("depth")
    if poses.history:
        lost.append("history")
    return lost


def _to_stdout(pieces: Iterator[str]) -> None:
    stream = getattr(sys.stdout, "buffer", None)
    try:
        for piece in pieces:
            if stream is None:
                sys.stdout.write(piece)
            else:
                stream.write(piece.encode())
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # the reader has gone: the command line ends quietly
    except OSError as error:
        raise OutputError(f"stdout: cannot be written ({error.strerror or error})") from error
