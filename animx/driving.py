"""The driving side: what the user names becomes poses, read from a pose file or extracted from frames."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from animx import plugins
from animx.canvas import place
from animx.engine import Progress, no_progress
from animx.errors import MissingExtraError, UsageError
from animx.overlap import prefetch
from animx.pose.select import select_person, select_time
from animx.pose.sequence import PoseSequence
from animx.pose.skeleton import JOINTS
from animx.prepare import MAX_LONG_SIDE
from animx.request import RenderOptions
from animx.times import time_range

if TYPE_CHECKING:
    from animx.pose.backend import PoseBackend
    from animx.video import AudioSource, FrameStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Driving:
    """Where the motion comes from: either poses, or a clip that frames can be read from."""

    name: str
    poses: PoseSequence | None = None
    path: Path | None = None
    """The video, picture animation or folder of frames; None for poses."""
    sha256: str = ""
    folder: Path = Path()
    """Where a pose file lies: the clip it was made from is looked for there."""

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
    if path.is_fifo():
        poses = read_poses(path)
        return Driving("-", poses, None, poses_hash(poses))
    if not path.exists():
        from animx.video import probe

        probe(path)  # a numbered pattern of frames; else it says what is missing
        return Driving(path.name, None, path, folder_hash(path.parent))
    if path.is_dir():
        if any(one.suffix.lower() in IMAGE_SUFFIXES for one in path.iterdir()):
            return Driving(path.name, None, path, folder_hash(path))
        return Driving(path.name, read_poses(path), None, folder_hash(path))
    if is_pose_file(path):
        return Driving(path.name, read_poses(path), None, file_sha256(path), path.parent)
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


def is_still(path: str | Path) -> bool:
    """Whether `path` is named like a picture and is no animation (an animated GIF or WebP is a clip)."""
    from animx.image import IMAGE_SUFFIXES

    path = Path(path)
    return path.suffix.lower() in IMAGE_SUFFIXES and "%" not in path.name and not path.is_dir() and not _moves(path)


def check_apart(out: str | Path, inputs: dict[str, Any]) -> None:
    """Refuse an output that is one of the inputs; `inputs` holds paths by what they are (`reference`)."""
    target = Path(os.path.realpath(out))
    replaced = {target, *_frames_of(target)}
    for what, path in inputs.items():
        if path is None or isinstance(path, PoseSequence) or str(path) in ("-", ""):
            continue
        source = Path(os.path.realpath(path))
        # An output folder is replaced whole; a numbered output replaces the frames that are there.
        inside = target.is_dir() and target in source.parents
        if source in replaced or inside or not replaced.isdisjoint(_frames_of(source)):
            raise UsageError(
                f"{out}: the output would replace the {what.replace('_', ' ')}. Choose another name with -o"
            )


def _frames_of(path: Path) -> list[Path]:
    """The frames of a folder or a numbered pattern; of anything else none."""
    if not path.is_dir() and "%" not in path.name:
        return []
    from animx.video_frames import PATTERN, frames_of

    try:
        return frames_of(path) if path.is_dir() or PATTERN.search(path.name) else []
    except OSError:
        return []  # whoever reads or writes it says what is wrong


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


def poses_of_file(poses: PoseSequence, options: RenderOptions) -> PoseSequence:
    """The poses of the person that `options` name, in their range and rate."""
    span = time_range(options.start, options.end, options.duration, poses.fps)
    return select_time(select_person(poses, options.person), *span, options.fps)


def extract(
    drive: Driving,
    stream: FrameStream,
    options: RenderOptions,
    backend: PoseBackend,
    hands: bool,
    on_progress: Progress = no_progress,
) -> PoseSequence:
    """Extract the poses of a clip, decoding ahead in a thread; on the clip's own canvas."""
    from animx.pose.extract import extract_poses

    poses = extract_poses(
        cast("FrameStream", Ahead(stream)),
        backend,
        person=options.person,
        smooth=options.smooth,
        hands=hands,
        on_progress=on_progress,
        source=drive.record,
    )
    return poses.on(stream.info.canvas, place(poses.canvas, stream.info.canvas))


def open_stream(path: Path, options: RenderOptions) -> FrameStream:
    """Open the clip in the range and at the rate of `options`, its long side at most 1280 px."""
    from animx.video import open_frames, probe

    counted = any(one is not None and one.frames is not None for one in (options.start, options.end, options.duration))
    rate = probe(path).fps if counted else Fraction(1)
    start, end = time_range(options.start, options.end, options.duration, rate)
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


def driving_pictures(
    drive: Driving, stream: FrameStream | None, poses: PoseSequence, options: RenderOptions, folder: Path
) -> Callable[[], Iterator[NDArray[np.uint8]]] | None:
    """The pictures that belong to the driving poses, for engines that look at them; None when there are none.

    From the driving clip; for poses from `--driving-video`, else from the file that their `source` names, when it lies
    in `folder` or here and its hash matches.
    """
    if stream is not None:
        return lambda: (frame.pixels for frame in prefetch(stream, 4))
    from animx.video import open_frames

    path = options.driving_video or _source_of(poses, folder)
    if path is None:
        return None
    first = float(poses.times[0])
    return lambda: (
        frame.pixels for frame in prefetch(open_frames(path, start=first, fps=poses.fps, max_side=MAX_LONG_SIDE), 4)
    )


def _source_of(poses: PoseSequence, folder: Path) -> Path | None:
    """The clip that poses were extracted from, by name and hash; a pose file they were read from is none."""
    from animx.image import file_sha256
    from animx.pose.formats import is_pose_file

    name, wanted = str(poses.source.get("name", "")), poses.source.get("hash")
    if not name or not wanted:
        return None
    for path in (folder / Path(name).name, Path(name)):
        if path.is_file() and file_sha256(path) == wanted:
            return None if is_pose_file(path) else path
    return None


def unseen_poses(stream: FrameStream) -> PoseSequence:
    """As many empty poses as the clip has frames, for a dry run; reads the first frame, so a broken clip is noticed."""
    with closing(prefetch(stream, 1)) as frames:
        next(frames, None)
    count = stream.frames
    return PoseSequence(
        np.zeros((count, 1, JOINTS, 2), np.float32),
        np.zeros((count, 1, JOINTS), np.float32),
        stream.info.canvas,
        stream.fps,
    )


def find_audio(stream: FrameStream | None, options: RenderOptions) -> AudioSource | None:
    """Where the sound comes from: the driving clip, or `--driving-video` for a pose file; None without one."""
    from animx.video import AudioSource, probe

    if not options.audio or (stream is None and options.driving_video is None):
        return None
    info = stream.info if stream is not None else probe(cast(Path, options.driving_video))
    if not info.has_audio:
        return None
    start, end = time_range(options.start, options.end, options.duration, info.fps)
    begin = start or 0.0
    return AudioSource(info.path, begin, None if end is None else end - begin)


def _moves(path: Path) -> bool:
    """Whether a picture file is an animation."""
    if path.suffix.lower() not in (".gif", ".webp", ".png"):
        return False
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(path)
        with picture:
            return bool(getattr(picture, "is_animated", False))
    except Exception:  # Pillow's plugins raise anything; the reader says what is wrong with it
        return False
