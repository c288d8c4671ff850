"""Prepared clips on disk: webdataset tars or plain folders, read at random, byte for byte checked.

A clip of T frames is a set of small files; in a tar their names share the clip's key up to the first dot, as webdataset
expects, in a folder they lie in `KEY/`:

    meta.json          where it comes from, fps, canvas, quality in numbers
    pose.npz           the poses, an animx pose file on the clip's canvas
    clip.npy           float16 [T, D] image vectors            (only when encoded beforehand)
    00000.jpg ...      the frames                              (or .png)
    00000.npy ...      float16 [2, C, h, w] mean and deviation of the scaled latents   (only when encoded beforehand)

Beside each tar (in each folder) an `index.npz` holds offset, size and CRC-32 of every file, so that one frame is one
read, and damage is found where it is.  It is written last: what has no index is not finished.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animx.atomic import output_error, writing, writing_folder
from animx.errors import InputError

SCHEMA = 1
DATASET = "dataset.json"
INDEX = "index.npz"
CLIPS = "clips"
"""Sub-folder of a dataset in the format `folder`."""
IMAGES = ("jpg", "png")
KEY = re.compile(r"[A-Za-z0-9_-]{1,120}")


@dataclass(frozen=True)
class Contents:
    """The files of one clip, ready to be written: names (without key) to bytes, in the order of the format."""

    key: str
    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.key):
            raise InputError(f"clip '{self.key}': a key holds letters, digits, - and _ only")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))


def contents(
    key: str,
    meta: Mapping[str, Any],
    pose: bytes,
    frames: Sequence[bytes],
    image: str = "jpg",
    vectors: NDArray[np.float16] | None = None,
    latents: Sequence[NDArray[np.float16]] | None = None,
) -> Contents:
    """Put a clip's files together.  `frames` are encoded pictures, `pose` an animx pose file (.npz)."""
    files = {"meta.json": (json.dumps({**meta, "frames": len(frames)}, sort_keys=True) + "\n").encode()}
    files["pose.npz"] = pose
    if vectors is not None:
        files["clip.npy"] = _npy(vectors)
    files |= {f"{t:05d}.{image}": frame for t, frame in enumerate(frames)}
    if latents is not None:
        files |= {f"{t:05d}.npy": _npy(latent) for t, latent in enumerate(latents)}
    return Contents(key, files)


def _npy(array: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array), allow_pickle=False)
    return sink.getvalue()


def write_folder(folder: Path, clip: Contents) -> None:
    """Write a clip to `folder/KEY`, whole or not at all; an unfinished or older one of that name is replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    with writing_folder(folder / clip.key, overwrite=True) as place:
        rows = []
        for name, data in clip.files.items():
            (place / name).write_bytes(data)
            rows.append((clip.key, name, 0, len(data), zlib.crc32(data)))
        _write_index(place / INDEX, rows)


def write_tar(path: Path, clips: Iterable[Contents]) -> None:
    """Write clips to the tar `path` and its index beside it; same clips, same bytes."""
    rows = []
    with writing(path, overwrite=True) as part, part.open("wb") as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for clip in clips:
                for name, data in clip.files.items():
                    member = tarfile.TarInfo(f"{clip.key}.{name}")  # no time, no owner: nothing of this machine
                    member.size, member.mode = len(data), 0o644
                    rows.append((clip.key, name, raw.tell() + tarfile.BLOCKSIZE, len(data), zlib.crc32(data)))
                    tar.addfile(member, io.BytesIO(data))
        raw.flush()
        os.fsync(raw.fileno())
    _write_index(index_of(path), rows, path.stat().st_size)


def index_of(tar: Path) -> Path:
    """Where a tar's index lies."""
    return tar.with_suffix(f".{INDEX}")


def _write_index(path: Path, rows: Sequence[tuple[str, str, int, int, int]], total: int = 0) -> None:
    keys = list(dict.fromkeys(row[0] for row in rows))
    per_clip = Counter(row[0] for row in rows)
    counts = [per_clip[key] for key in keys]
    with writing(path, overwrite=True) as part, part.open("wb") as sink:
        np.savez(
            sink,
            schema=np.int64(SCHEMA),
            total=np.int64(total),
            keys=np.array(keys),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            names=np.array([row[1] for row in rows]),
            offsets=np.array([row[2] for row in rows], np.int64),
            sizes=np.array([row[3] for row in rows], np.int64),
            crcs=np.array([row[4] for row in rows], np.uint32),
        )


@dataclass(frozen=True)
class Where:
    """One file of a clip."""

    offset: int
    size: int
    crc: int


@dataclass(frozen=True)
class StoredClip:
    """A clip that can be read at random: single files by name, each checked against its checksum."""

    key: str
    home: Path
    """The tar, or the clip's folder."""
    files: Mapping[str, Where]

    def __str__(self) -> str:
        return f"{self.home}, clip {self.key}" if self.home.suffix == ".tar" else str(self.home)

    def read(self, name: str) -> bytes:
        """The bytes of one file; missing or damaged is an `InputError` that names tar, clip and file."""
        if name not in self.files:
            raise InputError(f"{self}: {name} is missing. Prepare the clip again")
        where = self.files[name]
        try:
            if self.home.suffix == ".tar":
                self._tar.seek(where.offset)
                data = self._tar.read(where.size)
            else:
                data = (self.home / name).read_bytes()
        except OSError as error:
            raise InputError(f"{self}: {name} cannot be read ({error.strerror or error})") from error
        if len(data) != where.size or zlib.crc32(data) != where.crc:
            raise InputError(f"{self}: {name} is damaged (checksum differs). Copy the data again, or prepare it again")
        return data

    def contents(self) -> Contents:
        """All files, checked."""
        return Contents(self.key, {name: self.read(name) for name in self.files})

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What `meta.json` says."""
        try:
            found: dict[str, Any] = json.loads(self.read("meta.json"))
            int(found["frames"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self}: meta.json is no table with the number of frames") from error
        return found

    @cached_property
    def _tar(self) -> io.FileIO:
        """The tar, opened once for all files of this clip and closed with it."""
        stream = io.FileIO(self.home)
        weakref.finalize(self, stream.close)
        return stream

    @property
    def pictures(self) -> list[str]:
        """Names of the frames, in order."""
        return sorted(name for name in self.files if name[:5].isdigit() and name.rpartition(".")[2] in IMAGES)

    @property
    def encoded(self) -> tuple[bool, bool]:
        """Whether latents and image vectors are there."""
        return "00000.npy" in self.files, "clip.npy" in self.files

    def array(self, name: str) -> NDArray[Any]:
        """One `.npy` file."""
        try:
            found: NDArray[Any] = np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{self}: {name} holds no array ({error})") from error
        return found


@dataclass(frozen=True)
class Shard:
    """The index of one tar or clip folder, as arrays: millions of frames need no million objects."""

    home: Path
    keys: tuple[str, ...]
    starts: NDArray[np.int64]  # [clips + 1] first row of each clip in the arrays below
    names: NDArray[np.str_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crcs: NDArray[np.uint32]

    def clip(self, number: int) -> StoredClip:
        """Clip `number` of this shard."""
        rows = slice(int(self.starts[number]), int(self.starts[number + 1]))
        table = zip(self.offsets[rows].tolist(), self.sizes[rows].tolist(), self.crcs[rows].tolist(), strict=True)
        files = {name: Where(*row) for name, row in zip(self.names[rows].tolist(), table, strict=True)}
        return StoredClip(self.keys[number], self.home, files)


def read_index(path: Path, home: Path) -> Shard:
    """The clips of one tar or clip folder; a damaged index, or a tar of another size, is an `InputError`."""
    try:
        with np.load(path, allow_pickle=False) as found:
            schema, total = int(found["schema"]), int(found["total"])
            keys, starts = tuple(found["keys"].tolist()), found["starts"]
            columns = [found[name] for name in ("names", "offsets", "sizes", "crcs")]
            if len(starts) != len(keys) + 1 or {len(one) for one in columns} != {int(starts[-1])}:
                raise ValueError("columns of different lengths")
    except FileNotFoundError as error:
        raise InputError(f"{home}: has no index {path.name}: it was not finished. Prepare it again") from error
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged index of a shard ({error}). Prepare the data again") from error
    if schema != SCHEMA:
        raise InputError(f"{path}: schema {schema}, this version of animx reads {SCHEMA}")
    if home.suffix == ".tar":
        try:
            size = home.stat().st_size
        except OSError as error:
            raise InputError(f"{home}: no such shard, but its index is there. Copy the data again") from error
        if size != total:
            raise InputError(f"{home}: {size} bytes, expected {total}: cut short or changed. Copy the data again")
    return Shard(home, keys, starts, *columns)


@dataclass(frozen=True)
class Dataset:
    """All clips of a prepared folder, in the order in which they were written."""

    folder: Path
    about: Mapping[str, Any]
    """What `dataset.json` says: format, canvas, encoders."""
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(shard.keys) for shard in self.shards])

    def clip(self, number: int) -> StoredClip:
        """Clip `number`, 0..len-1."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return self.shards[shard].clip(number - first)


def write_dataset(folder: Path, about: Mapping[str, Any]) -> None:
    """Write `dataset.json`: the folder is complete from now on."""
    with writing(folder / DATASET, overwrite=True) as part:
        part.write_text(json.dumps({"schema": SCHEMA, **about}, indent=2, sort_keys=True) + "\n")


def open_dataset(folder: str | Path) -> Dataset:
    """The clips of a prepared folder.

    Missing, empty, unfinished, damaged, or shards that are not those of `dataset.json`: an `InputError` with the mend.
    """
    home = Path(folder)
    if not home.is_dir():
        raise InputError(f"{folder}: no such folder. Make one with: animx data prepare VIDEOS -o {folder}")
    if not (home / DATASET).exists():
        unfinished = (home / ".prepare").is_dir()
        what = "preparation was not finished; run the same command again" if unfinished else "no prepared data in it"
        raise InputError(f"{folder}: {what}. See: animx data prepare --help")
    try:
        about = json.loads((home / DATASET).read_text())
        schema, shards, count = about["schema"], about["shards"], int(about["clips"])
        names = [str(one) for one in shards]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{home / DATASET}: not the table of a dataset ({error}). Prepare the data again") from error
    if schema != SCHEMA:
        raise InputError(f"{home / DATASET}: schema {schema}, this version of animx reads {SCHEMA}")
    found = []
    for name in names:
        place = home / name
        found.append(read_index(index_of(place) if name.endswith(".tar") else place / INDEX, place))
    clips = sum(len(shard.keys) for shard in found)
    if clips != count or not clips:
        raise InputError(f"{folder}: {clips} clips, but {DATASET} says {count}. Prepare the data again")
    return Dataset(home, about, tuple(found))


def clip_lengths(dataset: Dataset) -> Sequence[int]:
    """Frames of each clip, from `dataset.json`, or from the clips themselves where it is silent.

    A list of another length, of other things than whole numbers from 1 on, of more frames than the shards have files,
    or of another sum than `frames`, is an `InputError`.
    """
    about = dataset.about
    if "frames_of_clips" not in about:
        return [int(dataset.clip(i).meta["frames"]) for i in range(len(dataset))]
    found, wrong = about["frames_of_clips"], ""
    if not isinstance(found, list) or not all(type(n) is int and n > 0 for n in found):
        wrong = "is no list of whole numbers from 1 on"
    elif len(found) != len(dataset):
        wrong = f"has {len(found)} entries for {len(dataset)} clips"
    elif any(n >= files for n, files in zip(found, _files_of_clips(dataset), strict=True)):
        wrong = "counts more frames than a clip has files"
    elif about.get("frames", sum(found)) != sum(found):
        wrong = f"adds up to {sum(found)}, but frames says {about['frames']}"
    if wrong:
        raise InputError(f"{dataset.folder / DATASET}: frames_of_clips {wrong}. Prepare the data again")
    return [int(n) for n in found]


def _files_of_clips(dataset: Dataset) -> list[int]:
    return [int(n) for shard in dataset.shards for n in np.diff(shard.starts)]
