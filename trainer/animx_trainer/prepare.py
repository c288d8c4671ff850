"""`animx data prepare`: videos in, clips fit for training out, with a report of what was dropped and why.

Each video by itself, in worker processes: find the cuts, extract the poses of each shot, judge its frames, write the
good ones as clips into `DIR/.prepare/clips` and then a record of the video, in this order.  When all videos have a
record, the clips are encoded (if asked for), packed into tars (or moved to `DIR/clips`) in the order of the videos, and
`dataset.json` ends the work.  A video with a record, a clip with vectors, a tar with an index is never made again, so a
killed run goes on where it was, and the bytes do not depend on interruptions or on the number of workers.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from animx.atomic import output_error, writing
from animx.config import Range, as_mapping
from animx.errors import AnimxError, BatchError, InputError, NoFigureError, UsageError
from animx.lock import holding
from animx.weights import find_model
from animx_trainer.one_video import Cutting, prepare_video
from animx_trainer.shards import (
    CLIPS,
    DATASET,
    INDEX,
    Contents,
    index_of,
    read_index,
    write_dataset,
    write_tar,
)

log = logging.getLogger("animx.data")

WORK = ".prepare"
REPORT = "report.json"
VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"})

Stage = Callable[[str, int, int], None]


def no_stages(stage: str, done: int, total: int) -> None:
    """Takes progress and shows none."""


@dataclass(frozen=True)
class PrepareOptions:
    """How data are prepared; what decides about the bytes."""

    cutting: Cutting = field(default_factory=Cutting)
    """Canvas, pictures, pose backend and checks."""
    format: Literal["shards", "folder"] = "shards"
    """Webdataset tars, or one folder a clip."""
    shard_mb: Annotated[int, Range(1, 100_000)] = 512
    """A tar is closed before it would hold more than this [MB]: pictures, poses, latents and vectors together; a larger
    clip has one of its own."""
    encode: str = ""
    """Model (name or folder) whose VAE and image encoder encode the frames beforehand; empty = not."""


def find_videos(paths: Sequence[str | Path]) -> list[Path]:
    """The videos among `paths` and below folders of them, sorted by path, each once.

    A path that does not exist, and a folder without any video, is an `InputError`.
    """
    found: dict[Path, None] = {}
    for one in map(Path, paths):
        if one.is_dir():
            inside = sorted(p for p in one.rglob("*") if p.suffix.lower() in VIDEOS and p.is_file())
            if not inside:
                known = ", ".join(sorted(suffix[1:] for suffix in VIDEOS))
                raise InputError(f"{one}: no video in this folder (looked for {known})")
            found.update(dict.fromkeys(inside))
        elif one.exists():
            found[one] = None
        else:
            raise InputError(f"{one}: no such file or folder")
    return list(found)


def prepare(
    videos: Sequence[str | Path],
    out: str | Path,
    options: PrepareOptions | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
    device: str = "auto",
    on_progress: Stage = no_stages,
) -> dict[str, Any]:
    """Prepare `videos` (files and folders) into the folder `out`, or go on with it; returns the report.

    Errors: `UsageError` for a finished folder without `overwrite`, other options than the run that is taken up, or a
    folder in which another process is at work, `InputError` for no videos, `NoFigureError` when no clip is left,
    `WeightsError` for a model that is not there, `OutputError` for a full disk, `BatchError` when a worker dies.
    Whatever stops it, the same call goes on.
    """
    chosen, files, home = options or PrepareOptions(), find_videos(videos), Path(out)
    if chosen.encode:
        find_model(chosen.encode)  # poses take hours: better told now
    with holding(home):
        _begin(home, chosen, overwrite)
        return _prepare(files, home, chosen, workers, device, on_progress)


def _prepare(
    files: list[Path], home: Path, chosen: PrepareOptions, workers: int, device: str, on_progress: Stage
) -> dict[str, Any]:
    records = _cut_all(files, home, chosen, workers, on_progress)
    report = _report(records, chosen)
    clips = [clip for record in records for clip in record["clips"]]
    if not clips:
        why = "; ".join(f"{count} x {reason}" for reason, count in report["dropped"].items())
        raise NoFigureError(f"no clip is left of {len(files)} videos: {why}. The report: {_save(home, report)}")
    if chosen.encode:
        from animx_trainer.encode import encode_clips

        encode_clips([home / WORK / CLIPS / c["key"] for c in clips if not _is_packed(home, c["key"])], chosen.encode,
                     device, on_progress)  # fmt: skip
    shards = (_pack if chosen.format == "shards" else _move)(home, clips, chosen, on_progress)
    _save(home, report)
    width, height = chosen.cutting.size
    write_dataset(
        home,
        {
            "format": chosen.format,
            "canvas": [width, height],
            "image": chosen.cutting.image,
            "encoded": chosen.encode or None,
            "clips": len(clips),
            "frames": sum(clip["frames"] for clip in clips),
            "frames_of_clips": [clip["frames"] for clip in clips],
            "shards": shards,
        },
    )
    shutil.rmtree(home / WORK, ignore_errors=True)
    return report


# ---- beginning and going on ----------------------------------------------------------------------------------------


def _begin(home: Path, options: PrepareOptions, overwrite: bool) -> None:
    """Make the work folder, or take up the one that is there if it was begun with the same options."""
    if home.exists() and not home.is_dir():
        raise UsageError(f"{home} is a file. Name a folder with -o")
    plan = json.dumps(as_mapping(options), sort_keys=True, indent=2) + "\n"
    known = home / WORK / "plan.json"
    if (home / DATASET).exists() and not overwrite:
        raise UsageError(f"{home} is a finished dataset. Replace it with -y/--overwrite, or choose another folder")
    if (home / DATASET).exists() or (overwrite and home.exists()):
        _clear(home)
    if known.exists():
        if known.read_text() != plan:
            raise UsageError(
                f"{home}: was begun with other options. Give the same ones to go on, or -y/--overwrite to begin anew"
            )
        log.info("%s: goes on with what was prepared before", home)
        for left in home.glob(".animx-*.part*"):  # of a killed run
            left.unlink(missing_ok=True)
        return
    if home.exists() and any(entry.name != WORK for entry in home.iterdir()):
        raise UsageError(f"{home} holds other things. Choose a new folder")
    try:
        (home / WORK / CLIPS).mkdir(parents=True, exist_ok=True)
        (home / WORK / "videos").mkdir(exist_ok=True)
        with writing(known) as part:
            part.write_text(plan)
    except OSError as error:
        raise output_error(home, error) from error


def _clear(home: Path) -> None:
    """Remove what this command made, and nothing else."""
    (home / DATASET).unlink(missing_ok=True)
    for path in [*home.glob("clips-*.tar"), *home.glob(f"clips-*.{INDEX}"), home / REPORT]:
        path.unlink(missing_ok=True)
    shutil.rmtree(home / CLIPS, ignore_errors=True)
    shutil.rmtree(home / WORK, ignore_errors=True)


# ---- videos --------------------------------------------------------------------------------------------------------


def _identity(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"path": str(path), "bytes": found.st_size, "changed": found.st_mtime_ns}


def _record_of(home: Path, path: Path) -> Path:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:40]
    return home / WORK / "videos" / f"{name}-{zlib.crc32(str(path).encode()):08x}.json"


def _known(home: Path, path: Path) -> dict[str, Any] | None:
    """The record of a video that is done and has not changed since."""
    try:
        record: dict[str, Any] = json.loads(_record_of(home, path).read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("video") == _identity(path) else None


def _cut_all(
    files: list[Path], home: Path, options: PrepareOptions, workers: int, on_progress: Stage
) -> list[dict[str, Any]]:
    todo = [path for path in files if _known(home, path) is None]
    done = len(files) - len(todo)
    on_progress("videos", done, len(files))
    for record in _worked(todo, home, options, workers):
        with writing(_record_of(home, Path(record["video"]["path"])), overwrite=True) as part:
            part.write_text(json.dumps(record, sort_keys=True) + "\n")
        done += 1
        on_progress("videos", done, len(files))
    records: list[dict[str, Any]] = []
    seen: dict[str, Path] = {}
    for path in files:
        found = _known(home, path)
        if found is None:
            raise InputError(f"{path}: changed while it was prepared. Run the same command again")
        twin = seen.setdefault(found["hash"], path) if found["hash"] else path
        if twin != path:
            found = {**found, "clips": [], "error": f"the same content as {twin.name}"}
        if found["error"]:
            log.warning("%s: not used: %s", path.name, found["error"])
        records.append(found)
    return records


def _one(path: Path, home: Path, cutting: Cutting) -> dict[str, Any]:
    """Work on one video; runs in a worker.  What is wrong with the video goes into the record."""
    identity = _identity(path)
    try:
        found = prepare_video(path, home / WORK / CLIPS, cutting)
        return {"video": identity, "error": "", **found}
    except (InputError, NoFigureError) as error:
        return {"video": identity, "error": _mended(str(error)), "hash": "", "frames": 0, "clips": [], "dropped": []}


def _mended(error: str) -> str:
    """A refusal of a video with mends that can be followed here: this command takes videos whole."""
    error = re.sub(r"Use --end ([\d.]+) to stop there, or", r"Cut it there (ffmpeg -i IN -t \1 OUT), or", error)
    error = error.replace("Choose another range, or download", "Download")
    return error.replace("Choose a range with --start and --end, or a lower --fps", "Cut it up, or give a lower --fps")


def _worked(todo: list[Path], home: Path, options: PrepareOptions, workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1 or len(todo) <= 1:
        for path in todo:
            yield _one(path, home, options.cutting)
        return
    # spawn: pose nets hold threads and handles that a fork would tear apart
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=_quiet)
    waiting = iter(todo)
    running: dict[Future[dict[str, Any]], Path] = {}
    others = set(multiprocessing.active_children())
    try:
        while True:
            while len(running) < 2 * workers and (new := next(waiting, None)) is not None:
                running[pool.submit(_one, new, home, options.cutting)] = new
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                path = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool as error:
                    names = ", ".join(sorted(p.name for p in [path, *running.values()])[:4])
                    raise BatchError(
                        f"a worker died (killed, perhaps out of memory) while working on {names}. "
                        "Run the same command again to go on, with fewer --workers"
                    ) from error
    except BaseException:  # Ctrl-C and full disks do not wait for the videos at work; they are begun anew
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _quiet() -> None:
    """Workers leave Ctrl-C to the first process and use one thread each."""
    import signal

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


# ---- packing -------------------------------------------------------------------------------------------------------


def _is_packed(home: Path, key: str) -> bool:
    return not (home / WORK / CLIPS / key / INDEX).exists()


def _stored(home: Path, key: str) -> Contents:
    place = home / WORK / CLIPS / key
    return read_index(place / INDEX, place).clip(0).contents()


def _tar_bytes(home: Path, key: str) -> int:
    """What a clip takes in a tar: of each of its files a header, and its bytes in whole blocks."""
    place = home / WORK / CLIPS / key
    block = tarfile.BLOCKSIZE
    return sum(block + -(-int(size) // block) * block for size in read_index(place / INDEX, place).sizes)


def _pack(home: Path, clips: list[dict[str, Any]], options: PrepareOptions, on_progress: Stage) -> list[str]:
    """Tars of at most `shard_mb` (or one clip), in order; the parts of a finished tar are removed."""
    groups = _groups(home, [clip["key"] for clip in clips], options.shard_mb * 1_000_000)
    names = []
    for number, keys in enumerate(groups):
        tar = home / f"clips-{number:05d}.tar"
        names.append(tar.name)
        if not _is_whole(tar, keys):
            write_tar(tar, (_stored(home, key) for key in keys))
        for key in keys:
            shutil.rmtree(home / WORK / CLIPS / key, ignore_errors=True)
        on_progress("shards", number + 1, len(groups))
    return names


def _groups(home: Path, keys: list[str], most: int) -> list[list[str]]:
    """The keys of each tar, decided once: a run that goes on has lost the sizes of clips that are packed already."""
    known = home / WORK / "tars.json"
    with suppress(OSError, ValueError):
        found: list[list[str]] = json.loads(known.read_text())
        if [key for group in found for key in group] == keys:
            return found
    groups: list[list[str]] = [[]]
    size = tarfile.RECORDSIZE
    for key in keys:
        here = _tar_bytes(home, key)
        if groups[-1] and size + here > most:
            groups.append([])
            size = tarfile.RECORDSIZE
        groups[-1].append(key)
        size += here
    with writing(known, overwrite=True) as part:
        part.write_text(json.dumps(groups) + "\n")
    return groups


def _is_whole(tar: Path, keys: list[str]) -> bool:
    with suppress(AnimxError):
        return list(read_index(index_of(tar), tar).keys) == keys
    return False


def _move(home: Path, clips: list[dict[str, Any]], options: PrepareOptions, on_progress: Stage) -> list[str]:
    (home / CLIPS).mkdir(exist_ok=True)
    for number, clip in enumerate(clips):
        place, target = home / WORK / CLIPS / clip["key"], home / CLIPS / clip["key"]
        if place.exists():
            place.replace(target)
        on_progress("clips", number + 1, len(clips))
    return [f"{CLIPS}/{clip['key']}" for clip in clips]


# ---- the report ----------------------------------------------------------------------------------------------------


def _report(records: list[dict[str, Any]], options: PrepareOptions) -> dict[str, Any]:
    """What was kept, what was dropped and why: totals, and per video."""
    reasons: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    videos = []
    for record in records:
        if record["error"]:
            reasons[_kind(record["error"], record)] += 1
        for part in record["dropped"]:
            kind = part["why"].partition(" (")[0]
            reasons[kind] += 1
            frames[kind] += part["frames"][1] - part["frames"][0]
        videos.append(
            {
                "video": record["video"]["path"],
                "hash": record["hash"],
                "error": record["error"] or None,
                "frames": record["frames"],
                "clips": record["clips"],
                "dropped": record["dropped"],
            }
        )
    kept = [clip for record in records for clip in record["clips"]]
    return {
        "videos": len(records),
        "unusable_videos": sum(bool(record["error"]) for record in records),
        "clips": len(kept),
        "frames": sum(clip["frames"] for clip in kept),
        "frames_read": sum(record["frames"] for record in records),
        "dropped": dict(reasons.most_common()),
        "frames_dropped": dict(frames.most_common()),
        "options": as_mapping(options),
        "per_video": videos,
    }


def _kind(error: str, record: dict[str, Any]) -> str:
    return "the same video twice" if error.startswith("the same content") else "a video that cannot be used"


def _save(home: Path, report: dict[str, Any]) -> Path:
    with writing(home / REPORT, overwrite=True) as part:
        part.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return home / REPORT
