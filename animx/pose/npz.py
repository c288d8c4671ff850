"""Arrays in zip files (`.npz`) read without trust: no pickle, every size checked before memory is taken.

Holds the second spelling of the native pose file; `legacy.py` reads another layout with it.  Texts are JSON in 0-d
unicode arrays.  `numpy.load(path, allow_pickle=False)` reads what is written here.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from animx.errors import InputError
from animx.pose import jsontext, native
from animx.pose.sequence import MAX_FRAMES, MAX_PERSONS, PoseSequence

MAX_BYTES = 4 << 30
"""Largest unpacked size of one file that is read [bytes]."""
MAX_TEXT = 256 << 20
"""Largest text array that is read [bytes]."""
_MAX_ENTRIES = 256
_DEFLATE_LIMIT = 1040  # deflate packs at most 1032 : 1; an entry that claims more lies about its size
_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<dtype>[<>|=][a-zA-Z]\d+)',\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[\d, ]*)\),?\s*\}\s*"
)
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error, ValueError, NotImplementedError, RuntimeError,
    KeyError, OverflowError,
)  # fmt: skip


class Archive:
    """The arrays of an `.npz`.  `array` checks kind and shape from the entry's header, then reads it in one copy."""

    def __init__(self, source: IO[bytes], where: str) -> None:
        self.where = where
        try:
            self._zip = zipfile.ZipFile(source)
            infos = self._zip.infolist()
        except _DAMAGE as error:
            raise InputError(f"{where}: damaged or no npz file ({error})") from error
        if len(infos) > _MAX_ENTRIES:
            raise InputError(f"{where}: {len(infos)} entries are too many for a pose file")
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name in self._infos:
                raise InputError(f"{where}: {name}: stands twice in the file")
            self._infos[name] = info
        if sum(info.file_size for info in infos) > MAX_BYTES:
            raise InputError(f"{where}: unpacks to more than {MAX_BYTES >> 20} MB. It is no pose file")

    @property
    def names(self) -> list[str]:
        """Names of the arrays, in file order."""
        return list(self._infos)

    def array(
        self, name: str, kinds: str, check: Callable[[tuple[int, ...]], None], dtype: type | None = None
    ) -> NDArray[Any]:
        """The array `name`, read-only.  Its dtype kind must be in `kinds`; `check` refuses its shape by raising."""
        field = f"{self.where}: {name}"
        info = self._infos.get(name)
        if info is None:
            raise InputError(f"{field}: missing")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{field}: encrypted or packed in a way that npz does not use")
        if info.file_size > info.compress_size * _DEFLATE_LIMIT + 1024:
            raise InputError(f"{field}: claims a size that its {info.compress_size} packed bytes cannot hold")
        try:
            with self._zip.open(info) as stream:
                kind, shape, fortran, size = _header(stream, field)
                if kind.kind not in kinds:
                    raise InputError(f"{field}: type {kind}, expected {_KINDS[kinds[0]]}")
                check(shape)
                count = _count(shape)
                if kind.itemsize * count + size != info.file_size:
                    raise InputError(f"{field}: shape {list(shape)} does not fit its {info.file_size} bytes")
                array = np.empty(shape, kind, order="F" if fortran else "C")
                if count:
                    _fill(stream, array, field)
                if stream.read(1):
                    raise InputError(f"{field}: longer than its header says")
        except InputError:
            raise
        except (*_DAMAGE, MemoryError) as error:
            raise InputError(f"{field}: damaged ({error or type(error).__name__})") from error
        if dtype is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                array = array.astype(dtype, order="C", copy=False)
        array.flags.writeable = False
        return array

    def text(self, name: str) -> Any:
        """The JSON value of a 0-d unicode array."""
        if name in self._infos and self._infos[name].file_size > MAX_TEXT:
            raise InputError(f"{self.where}: {name}: too long")
        array = self.array(name, "U", exactly(f"{self.where}: {name}", ()))
        try:
            value = str(array[()])
        except (UnicodeDecodeError, ValueError, SystemError) as error:
            raise InputError(f"{self.where}: {name}: not a text") from error
        return jsontext.parse(value, f"{self.where}: {name}")


_KINDS = {"f": "an array of numbers", "i": "whole numbers", "U": "a text"}


def _header(stream: IO[bytes], field: str) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """dtype, shape, Fortran order and length of the npy header at `stream`; a plain pattern, nothing is evaluated."""
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise InputError(f"{field}: not a numpy array")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > 4096:
        raise InputError(f"{field}: a numpy header of {length} bytes is no header of a pose array")
    found = _HEADER.fullmatch(stream.read(length).decode("latin-1"))
    if found is None:
        raise InputError(f"{field}: not a plain array of numbers or a text")
    shape = tuple(int(part) for part in found["shape"].replace(" ", "").split(",") if part)
    if len(shape) > 8 or any(side > 1 << 40 for side in shape):
        raise InputError(f"{field}: shape {list(shape)} is no shape of a pose array")
    try:
        kind = np.dtype(found["dtype"])
    except TypeError as error:
        raise InputError(f"{field}: unknown type '{found['dtype']}'") from error
    if kind.itemsize == 0:
        raise InputError(f"{field}: elements without bytes")
    return kind, shape, found["fortran"] == "True", 8 + width + length


def _fill(stream: IO[bytes], array: NDArray[Any], field: str) -> None:
    """Read an array's bytes straight into it."""
    flat = array.reshape(-1, order="A") if array.ndim else array.reshape(1)
    view = flat.view(np.uint8).data
    at = 0
    while at < len(view):
        part = stream.read(min(1 << 20, len(view) - at))
        if not part:
            raise InputError(f"{field}: ends after {at} of {len(view)} bytes")
        view[at : at + len(part)] = part
        at += len(part)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def exactly(name: str, expected: tuple[int, ...]) -> Callable[[tuple[int, ...]], None]:
    """A check for `Archive.array` that admits one shape.  `name` is `FILE: FIELD`."""

    def check(shape: tuple[int, ...]) -> None:
        if shape != expected:
            raise InputError(f"{name}: shape {list(shape)}, expected {list(expected)}")

    return check


def _at_most(name: str, count: int) -> Callable[[tuple[int, ...]], None]:
    def check(shape: tuple[int, ...]) -> None:
        if len(shape) > 1 or _count(shape) > count:
            raise InputError(f"{name}: shape {list(shape)}, expected one list")

    return check


def _header_bytes(array: NDArray[Any]) -> bytes:
    """The npy header (version 1.0) of a C-contiguous array."""
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape!r}, }}"
    pad = -(10 + len(text) + 1) % 64
    text += " " * pad + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin-1")


# ---- the native pose file ----------------------------------------------------------------------------------------


def load(archive: Archive) -> PoseSequence:
    """A native pose file (npz spelling)."""
    where = archive.where
    fields: dict[str, Any] = {}
    for name in archive.names:
        if name in native.ARRAYS:
            check = _named_check(f"{where}: {name}")
            fields[name] = archive.array(name, "fiu", check, np.float32)
        elif name == "times":
            fields[name] = archive.array(name, "fiu", _at_most(f"{where}: {name}", MAX_FRAMES), np.float64)
        elif name in ("schema", "canvas", "fps", "person_ids"):
            array = archive.array(name, "iu", _at_most(f"{where}: {name}", MAX_PERSONS))
            fields[name] = array.tolist()
        elif name in ("layout", "source", "history"):
            fields[name] = archive.text(name)
        else:
            fields[name] = None
    return native.build(fields, where)


def _named_check(name: str) -> Callable[[tuple[int, ...]], None]:
    return lambda shape: native.check_shape(name, shape)


def save(poses: PoseSequence, sink: IO[bytes]) -> None:
    """Write the npz spelling to a binary file.  Same poses, same bytes (with the same zlib); arrays are not copied."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in native.header(poses).items():
        if name in ("layout", "source", "history"):
            arrays[name] = np.array(native.to_json(name, value))
        else:
            arrays[name] = np.array(value, np.int64)
    arrays |= {"times": poses.times, "keypoints": poses.keypoints, "scores": poses.scores}
    if poses.depth is not None:
        arrays["depth"] = poses.depth
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, array in arrays.items():
            # A fixed date: the same poses give the same bytes at any time of day.
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as stream:
                contiguous = np.ascontiguousarray(array).reshape(array.shape)
                stream.write(_header_bytes(contiguous))
                view = contiguous.reshape(-1).view(np.uint8).data
                for first in range(0, len(view), 1 << 20):
                    stream.write(view[first : first + (1 << 20)])


def open_archive(path: Path) -> Archive:
    """The archive in a file; `InputError` when it cannot be read."""
    try:
        return Archive(path.open("rb"), path.name)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
