"""Drawn clips as files: a dataset as `animx data prepare` makes it, or plain videos with their poses.

Clip i depends on (seed, i) and the options alone.  Stopped in any way, the same call goes on; the bytes are those of an
uninterrupted run.  Beside frames and poses each clip holds its truth, one grey picture of all frames below each other:
`mask.png` (255 = wholly the figure) and `labels.png` (index into `animx_trainer.dress.LABELS`).
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from animx.atomic import output_error, writing
from animx.canvas import Canvas
from animx.config import FieldError, Range, as_mapping
from animx.errors import AnimxError, UsageError
from animx.lock import holding
from animx_trainer.bodies import check_families
from animx_trainer.dress import LABELS
from animx_trainer.shards import (
    CLIPS,
    DATASET,
    INDEX,
    Contents,
    contents,
    index_of,
    read_index,
    write_dataset,
    write_folder,
    write_tar,
)
from animx_trainer.stage import Shot, Staged, film, stage
from animx_trainer.synth import recipe

WORK = ".prepare"
"""Where an unfinished run keeps what it was asked for."""
TAR_CLIPS = 1000
TAR_BYTES = 256_000_000
"""A tar holds at most so many clips, and so many bytes of pictures before compression."""
BATCH_PIXELS = 4_000_000
"""Pixels that are drawn at once."""


@dataclass(frozen=True)
class SynthFiles:
    """What is drawn."""

    clips: Annotated[int, Range(1, 10_000_000)] = 100
    """How many clips."""
    size: tuple[Annotated[int, Range(16, 4096)], Annotated[int, Range(16, 4096)]] = (512, 768)
    """Width and height [px]."""
    frames: Annotated[int, Range(1, 100_000)] = 48
    """Frames of each clip."""
    fps: Annotated[float, Range(1, 120)] = 12.0
    """Frames a second."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Everything random follows from it and the number of the clip."""
    families: tuple[str, ...] = ()
    """Families of bodies; empty = all."""
    format: Literal["shards", "folder", "mp4"] = "shards"
    """Webdataset tars, one folder a clip, or videos with pose files."""

    def __post_init__(self) -> None:
        check_families(self.families)
        if self.format == "mp4" and any(side % 2 for side in self.size):
            width, height = self.size
            raise FieldError(f"size: mp4 takes even sides only, and {width}x{height} has an odd one", ("size",))

    @property
    def canvas(self) -> Canvas:
        """The canvas of all clips."""
        return Canvas(*self.size)


def draw_files(
    out: str | Path,
    options: SynthFiles,
    *,
    overwrite: bool = False,
    device: str = "cpu",
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Draw the clips into the folder `out`, or go on with it; returns what was written.

    Errors: `UsageError` for a finished folder without `overwrite`, one begun with other options, or a device that is
    not there, or a folder in which another process is at work; `OutputError` for a full disk.
    """
    home = Path(out)
    _check_device(device)
    with holding(home):
        _begin(home, options, overwrite)
        return _draw(home, options, device, on_progress)


def _draw(home: Path, options: SynthFiles, device: str, on_progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    on_progress("clips", 0, options.clips)

    def tell(done: int) -> None:
        on_progress("clips", done, options.clips)

    write = {"shards": _shards, "folder": _folders, "mp4": _videos}[options.format]
    names = write(home, options, device, tell)
    total = options.clips * options.frames
    about = {
        "format": options.format,
        "canvas": list(options.size),
        "image": "png",
        "encoded": None,
        "clips": options.clips,
        "frames": total,
        "frames_of_clips": [options.frames] * options.clips,
        "shards": names,
        "labels": list(LABELS),
        "drawn": as_mapping(options),
    }
    if options.format == "mp4":
        with writing(home / "clips.json", overwrite=True) as part:
            part.write_text(json.dumps({k: v for k, v in about.items() if k != "frames_of_clips"}, indent=2) + "\n")
    else:
        write_dataset(home, about)
    shutil.rmtree(home / WORK, ignore_errors=True)
    return {"clips": options.clips, "frames": total, "files": names}


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the second
        raise UsageError(f"--device {device}: not usable here ({str(error).splitlines()[0]}). Use cpu") from error


def key_of(number: int) -> str:
    """Name of clip `number`."""
    return f"drawn-{number:08d}"


def _begin(home: Path, options: SynthFiles, overwrite: bool) -> None:
    if home.exists() and not home.is_dir():
        raise UsageError(f"{home} is a file. Name a folder with -o")
    done = [home / name for name in (DATASET, "clips.json") if (home / name).exists()]
    if done and not overwrite:
        raise UsageError(f"{home} is finished. Replace it with -y/--overwrite, or choose another folder")
    plan = json.dumps(as_mapping(options), sort_keys=True) + "\n"
    known = home / WORK / "plan.json"
    ours = bool(done) or known.exists()
    try:
        if overwrite and ours:
            _clear(home)
        if known.exists() and known.read_text() == plan:
            return
        if known.exists():
            raise UsageError(f"{home}: was begun with other options. Give the same ones, or -y/--overwrite")
        if not ours and home.exists() and any(home.iterdir()):
            raise UsageError(f"{home} holds other things. Choose a new folder")
        (home / WORK).mkdir(parents=True, exist_ok=True)
        with writing(known) as part:
            part.write_text(plan)
    except OSError as error:
        raise output_error(home, error) from error


def _clear(home: Path) -> None:
    """Remove what this command made, and nothing else."""
    patterns = ("clips-*.tar", f"clips-*.{INDEX}", "drawn-*.mp4", "drawn-*.npz", "drawn-*.png", DATASET, "clips.json")
    for path in [found for pattern in patterns for found in home.glob(pattern)]:
        path.unlink(missing_ok=True)
    for name in (CLIPS, WORK):
        shutil.rmtree(home / name, ignore_errors=True)


# ---- drawing -------------------------------------------------------------------------------------------------------


def _drawn(numbers: list[int], options: SynthFiles, device: str) -> Iterator[tuple[int, Staged, Shot]]:
    """The clips of these numbers, drawn some at a time."""
    size = max(1, BATCH_PIXELS // (options.frames * options.size[0] * options.size[1]))
    times = np.arange(options.frames) / options.fps
    for first in range(0, len(numbers), size):
        some = numbers[first : first + size]
        staged = []
        for number in some:
            made = recipe(options.seed, number)
            fps = Fraction(options.fps).limit_denominator(1001)
            staged.append(stage(made.character, made.dance, made.scene, options.canvas, times, options.families, fps))
        yield from zip(some, staged, film(staged, device), strict=True)


def _png(picture: NDArray[np.uint8]) -> bytes:
    """RGB [H, W, 3] or grey [H, W] as PNG."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    return bytes(cv2.imencode(".png", bgr)[1].tobytes())


def _truth(shot: Shot) -> dict[str, bytes]:
    mask = (shot.coverage * 255 + 0.5).astype(np.uint8)
    return {"mask.png": _png(mask.reshape(-1, mask.shape[2])),
            "labels.png": _png(shot.labels.reshape(-1, mask.shape[2]))}  # fmt: skip


def _contents(number: int, staged: Staged, shot: Shot, options: SynthFiles) -> Contents:
    from animx.pose.npz import save

    made = recipe(options.seed, number)
    meta = {
        "canvas": list(options.size),
        "fps": str(staged.poses.fps),
        "family": staged.cast.who.family,
        "character": made.character,
        "dance": made.dance,
        "scene": made.scene,
    }
    sink = io.BytesIO()
    save(staged.poses, sink)
    clip = contents(key_of(number), meta, sink.getvalue(), [_png(picture) for picture in shot.rgb], "png")
    return Contents(clip.key, {**clip.files, **_truth(shot)})


def _shards(home: Path, options: SynthFiles, device: str, tell: Callable[[int], None]) -> list[str]:
    bytes_of_clip = options.frames * options.size[0] * options.size[1] * 3
    share = max(1, min(TAR_CLIPS, TAR_BYTES // bytes_of_clip))
    names = []
    for first in range(0, options.clips, share):
        numbers = list(range(first, min(first + share, options.clips)))
        tar = home / f"clips-{first // share:05d}.tar"
        if not _is_whole(tar, [key_of(number) for number in numbers]):
            write_tar(tar, _counted(numbers, options, device, tell))
        names.append(tar.name)
        tell(numbers[-1] + 1)
    return names


def _counted(numbers: list[int], options: SynthFiles, device: str, tell: Callable[[int], None]) -> Iterator[Contents]:
    for number, staged, shot in _drawn(numbers, options, device):
        yield _contents(number, staged, shot, options)
        tell(number + 1)


def _is_whole(tar: Path, keys: list[str]) -> bool:
    with suppress(AnimxError):
        return list(read_index(index_of(tar), tar).keys) == keys
    return False


def _folders(home: Path, options: SynthFiles, device: str, tell: Callable[[int], None]) -> list[str]:
    missing = [n for n in range(options.clips) if not (home / CLIPS / key_of(n) / INDEX).exists()]
    for clip in _counted(missing, options, device, tell):
        write_folder(home / CLIPS, clip)
    return [f"{CLIPS}/{key_of(number)}" for number in range(options.clips)]


def _videos(home: Path, options: SynthFiles, device: str, tell: Callable[[int], None]) -> list[str]:
    from animx.pose.formats import write_poses
    from animx.video import open_writer

    # the pose file is written last: a clip that has one is whole
    missing = [n for n in range(options.clips) if not (home / f"{key_of(n)}.pose.npz").exists()]
    for number, staged, shot in _drawn(missing, options, device):
        name = key_of(number)
        with open_writer(home / f"{name}.mp4", options.canvas, staged.poses.fps, overwrite=True) as writer:
            for picture in shot.rgb:
                writer.write(picture)
        for suffix, data in _truth(shot).items():
            with writing(home / f"{name}.{suffix}", overwrite=True) as part:
                part.write_bytes(data)
        write_poses(staged.poses, home / f"{name}.pose.npz", overwrite=True)
        tell(number + 1)
    return [f"{key_of(number)}.mp4" for number in range(options.clips)]
