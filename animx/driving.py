"""The driving side: what the user names becomes poses, read from a pose file or extracted from frames."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from animx import plugins
from animx.canvas import place
from animx.engine import Progress
from animx.errors import InputError, MissingExtraError, UsageError
from animx.overlap import prefetch
from animx.pose.select import select_person, select_time
from animx.pose.sequence import PoseSequence
from animx.prepare import MAX_LONG_SIDE
from animx.request import RenderOptions
from animx.times import time_range

if TYPE_CHECKING:
    from animx.pose.backend import PoseBackend
    from animx.video import FrameStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Driving:
    """Where the motion comes from: either poses, or a clip that frames can be read from."""

    name: str
    poses: PoseSequence | None = None
    path: Path | None = None
    """The video, picture animation or folder of frames; None for poses."""
    sha256: str = ""

    @property
    def record(self) -> dict[str, str]:
        """Name and content hash, as pose files and recipes keep them."""
        return {"name": self.name, "hash": self.sha256}


def open_driving(driving: str | Path | PoseSequence) -> Driving:
    """Tell by content what `driving` is: poses (a sequence, `-` = stdin, a pose file) or frames (a video, a folder)."""
    from animx.image import IMAGE_SUFFIXES, file_sha256
    from animx.pose.formats import is_pose_file, read_poses

    if isinstance(driving, PoseSequence):
        return Driving(str(driving.source.get("name", "poses")), driving, None, poses_hash(driving))
    if str(driving) == "-":
        poses = read_poses("-")
        return Driving("-", poses, None, poses_hash(poses))
    path = Path(driving)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        if any(one.suffix.lower() in IMAGE_SUFFIXES for one in path.iterdir()):
            return Driving(path.name, None, path, folder_hash(path))
        return Driving(path.name, read_poses(path), None, folder_hash(path))
    if is_pose_file(path):
        return Driving(path.name, read_poses(path), None, file_sha256(path))
    return Driving(path.name, None, path, file_sha256(path))


def poses_hash(poses: PoseSequence) -> str:
    """SHA-256 over keypoints, scores and times: the identity of poses that come from no file."""
    digest = hashlib.sha256(f"{poses.canvas} {poses.fps}".encode())
    for array in (poses.keypoints, poses.scores, poses.times):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def folder_hash(path: Path) -> str:
    """SHA-256 over names and contents of a folder's files, in order of name."""
    from animx.image import file_sha256

    digest = hashlib.sha256()
    for one in sorted(path.iterdir()):
        if one.is_file() and not one.name.startswith("."):
            digest.update(f"{one.name}\0{file_sha256(one)}\n".encode())
    return digest.hexdigest()


def stem(path: str | Path) -> str:
    """The name without folder and endings: `dance` for `clips/dance.pose.json` and `clips/dance.mp4`."""
    name = Path(path).name.rstrip("/")
    for ending in (".pose.json", ".pose.npz", ".joints.yaml"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return Path(name).stem


def is_picture(path: str | Path) -> bool:
    """Whether the name is that of a still picture (an animated GIF or WebP is a clip for `open_frames`)."""
    from animx.image import IMAGE_SUFFIXES

    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def check_apart(out: str | Path, inputs: dict[str, Any]) -> None:
    """Refuse an output that is one of the inputs; `inputs` holds paths by what they are (`reference`)."""
    target = Path(out).resolve()
    for what, path in inputs.items():
        if path is None or isinstance(path, PoseSequence) or str(path) == "-":
            continue
        if Path(path).resolve() == target:
            raise UsageError(f"{out}: the output would replace the {what}. Choose another name with -o")


# ---- poses ----


def backend_for(stack: ExitStack, options: RenderOptions, drive: Driving, hands: bool) -> PoseBackend | None:
    """The backend for driving frames, or for the reference alone when the driving side brings poses."""
    from animx.pose.backend import choose_backend

    if drive.poses is not None and options.ref_pose != "auto":
        return None
    try:
        backend = choose_backend(options.backend, hands=hands)
    except MissingExtraError:
        if drive.poses is None or options.backend is not None:
            raise
        log.info("no pose backend is installed: the reference's skeleton is fitted to its outline (see: animx doctor)")
        return None
    stack.callback(backend.close)
    return backend


def second_backend(
    stack: ExitStack, options: RenderOptions, drive: Driving, first: PoseBackend | None
) -> PoseBackend | None:
    """What looks at the reference: one more object of the same backend, so that it can while the clip is tracked."""
    if first is None or options.ref_pose != "auto":
        return None
    if drive.path is None:
        return first
    second = cast("PoseBackend", plugins.load("pose_backends", first.name)())
    stack.callback(second.close)
    return second


def driving_poses(
    drive: Driving,
    options: RenderOptions,
    backend: PoseBackend | None,
    hands: bool,
    on_progress: Progress,
) -> PoseSequence:
    """The poses of the person that `options` name, in their range and rate."""
    if drive.poses is not None:
        span = time_range(options.start, options.end, options.duration, drive.poses.fps)
        poses = select_person(drive.poses, options.person)
        return select_time(poses, *span, options.fps)
    assert backend is not None
    return extract(drive, options, backend, hands, on_progress)


def extract(
    drive: Driving, options: RenderOptions, backend: PoseBackend, hands: bool, on_progress: Progress
) -> PoseSequence:
    """Extract poses from the clip of `drive`, decoding ahead in a thread; on the clip's own canvas."""
    from animx.pose.extract import extract_poses

    assert drive.path is not None
    stream = _open(drive.path, options)
    poses = extract_poses(
        cast("FrameStream", Ahead(stream)),
        backend,
        person=options.person,
        smooth=options.smooth,
        hands=hands,
        on_progress=on_progress,
        source={**drive.record, "backend": f"{backend.name} {backend.version}"},
    )
    return poses.on(stream.info.canvas, place(poses.canvas, stream.info.canvas))


def _open(path: Path, options: RenderOptions) -> FrameStream:
    from animx.video import open_frames, probe

    info = probe(path)
    start, end = time_range(options.start, options.end, options.duration, info.fps)
    if start is not None and info.frames and start >= info.duration + 1.0:
        raise UsageError(f"--start {start:g} s lies behind the end of {path} ({info.duration:.3f} s)")
    return open_frames(path, start=start, end=end, fps=options.fps, max_side=MAX_LONG_SIDE)


class Ahead:
    """A frame stream whose frames are decoded ahead, in a thread; all else is the stream's own."""

    def __init__(self, stream: FrameStream, depth: int = 4) -> None:
        self._stream = stream
        self._depth = depth

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[Any]:
        return prefetch(self._stream, self._depth)


def unseen_poses(drive: Driving, options: RenderOptions) -> PoseSequence:
    """As many empty poses as the clip has frames, for a dry run; reads the first frame, so a broken clip is noticed."""
    assert drive.path is not None
    stream = _open(drive.path, options)
    frames = iter(stream)
    next(frames, None)
    close = getattr(frames, "close", None)
    if close is not None:
        close()
    count = max(1, stream.frames or stream.info.frames)
    return PoseSequence(
        np.zeros((count, 1, 134, 2), np.float32), np.zeros((count, 1, 134), np.float32), stream.info.canvas, stream.fps
    )


def find_audio(drive: Driving, options: RenderOptions, target: Path) -> Any:
    """Where the sound comes from: the driving clip, or `--driving-video` for a pose file; None without one."""
    from animx.video import AudioSource, probe

    path = drive.path or options.driving_video
    if not options.audio or path is None or path.is_dir():
        return None
    info = probe(path)
    if not info.has_audio:
        return None
    if target.suffix.lower() not in (".mp4", ".mov", ".webm"):
        log.info("%s holds no sound; the driving clip's is left out", target.suffix or "a folder of frames")
        return None
    start, end = time_range(options.start, options.end, options.duration, info.fps)
    begin = start or 0.0
    return AudioSource(path, begin, None if end is None else end - begin)


def moves(path: str | Path) -> bool:
    """Whether a picture file is an animation."""
    if Path(path).suffix.lower() not in (".gif", ".webp", ".png", ".apng"):
        return False
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return bool(getattr(picture, "is_animated", False))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return False  # the reader says what is wrong with it
