"""Writing clips: H.264 mp4, ProRes 4444 mov, VP9 webm, GIF, WebP, numbered pictures.  Whole under its name, or nothing.

In: RGB or RGBA frames of one size.  Out: the file or folder.  The first frame decides whether the clip is transparent.
Encoding runs in a thread of its own behind a short queue.  The same frames give the same bytes: encoder threads are
fixed numbers, whatever the machine has, and no date, random id or program version is written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from animx.atomic import (
    check_folder_target,
    check_name,
    check_parent,
    check_target,
    output_error,
    writing,
    writing_folder,
)
from animx.canvas import Canvas
from animx.errors import OutputError, UsageError, nearest
from animx.overlap import Drain
from animx.video_animation import GifEncoder, WebpEncoder
from animx.video_audio import AudioSource, AudioTrack
from animx.video_colour import to_video
from animx.video_frames import PATTERN, frames_of

log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".mov", ".webm", ".gif", ".webp")
FRAME_NAME = "%05d.png"
"""Name of a picture in an output folder."""
QUEUE = 4
"""Frames that may wait for the encoder."""
THREADS = 2
"""Encoder threads.  x264's result depends on their number, so it is fixed."""
_X264 = {"crf": "18", "preset": "veryfast"}
_VP9 = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "auto-alt-ref": "0", "row-mt": "0"}
_PRORES = {"profile": "4444", "vendor": "apl0", "alpha_bits": "16"}


class _Encoder(Protocol):
    def write(self, pixels: NDArray[np.uint8]) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class VideoWriter:
    """An output clip.  A context manager: it is renamed to its name on a normal exit, and nothing is left otherwise."""

    def __init__(
        self, path: Path, canvas: Canvas, fps: Fraction, overwrite: bool, audio: AudioSource | None, comment: str
    ) -> None:
        self.path = path
        """The final name."""
        self.canvas = canvas
        self.fps = fps
        self.frames = 0
        """Frames written so far."""
        self._audio, self._comment, self._suffix = audio, comment, path.suffix.lower()
        self._encoder: _Encoder | None = None
        self._alpha = False
        self._files = contextlib.ExitStack()
        self._temporary = self._files.enter_context(_target(path, overwrite))
        self._drain: Drain[NDArray[np.uint8]] | None = Drain(self._encode, QUEUE)
        self._drain.__enter__()

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Hand over one frame, RGB or RGBA [H, W, C] uint8 of the writer's size; it is copied.

        Raises `OutputError` when this or an earlier frame could not be written, and `UsageError` for transparency in
        mp4.
        """
        if self._drain is None:
            raise ValueError("the writer is closed")
        expected = (self.canvas.height, self.canvas.width)
        if pixels.dtype != np.uint8 or pixels.shape not in ((*expected, 3), (*expected, 4)):
            raise ValueError(f"frame of {pixels.dtype} {pixels.shape}, expected uint8 {expected} with 3 or 4 channels")
        with self._as_output_error():
            self._drain.put(pixels.copy())
        self.frames += 1

    def close(self) -> None:
        """Wait for the encoder, finish the file and give it its name.  On failure nothing is left."""
        drain, self._drain = self._drain, None
        if drain is None:
            return
        try:
            with self._as_output_error():
                drain.__exit__(None, None, None)
                if self._encoder is None:
                    raise OutputError(f"{self.path} is not written: there was no frame to write")
                self._encoder.finish()
                # From here on an error leaves a closed encoder: closing twice is harmless, writing is not.
                self._encoder = None
        except BaseException as error:
            self._drop(error)
            raise
        self._files.close()

    def abort(self, error: BaseException | None = None) -> None:
        """Stop and leave nothing."""
        drain, self._drain = self._drain, None
        if drain is not None:
            error = error or OutputError(f"{self.path} was given up")
            drain.__exit__(type(error), error, None)
            self._drop(error)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort(error)

    def _drop(self, error: BaseException) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            with contextlib.suppress(av.FFmpegError, OSError):
                encoder.abort()
        with contextlib.suppress(type(error)):
            self._files.__exit__(type(error), error, error.__traceback__)

    def _encode(self, pixels: NDArray[np.uint8]) -> None:
        if self._encoder is None:
            self._alpha = pixels.shape[2] == 4
            self._encoder = self._start()
        if self._alpha and pixels.shape[2] == 3:
            pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        elif not self._alpha and pixels.shape[2] == 4:
            raise ValueError("the first frame was opaque (RGB), a later one is RGBA")
        if self._suffix == ".mp4" and self._alpha:
            if pixels[..., 3].min() < 250:
                raise UsageError(f"{self.path}: mp4 cannot be transparent. Use .webm, .mov, .webp, .gif or a folder")
            pixels = pixels[..., :3]
        self._encoder.write(pixels)

    def _start(self) -> _Encoder:
        if self._suffix not in (".mp4", ".mov", ".webm"):
            if self._audio is not None:
                log.info("%s holds no sound; it is left out", self._suffix or "a folder of frames")
            if self._suffix == ".gif":
                return GifEncoder(self._temporary, self.canvas, self.fps)
            if self._suffix == ".webp":
                return WebpEncoder(self._temporary, self.canvas, self.fps, self._alpha)
            return _PictureEncoder(self._temporary, self.path.name if PATTERN.search(self.path.name) else FRAME_NAME)
        return _ContainerEncoder(
            self._temporary, self._suffix, self.canvas, self.fps, self._alpha, self._audio, self._comment
        )

    @contextlib.contextmanager
    def _as_output_error(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            if isinstance(error, OSError):
                raise output_error(self.path, error) from error
            raise OutputError(f"cannot write {self.path}: the encoder failed ({error})") from error


class _ContainerEncoder:
    """mp4, mov or webm with PyAV."""

    def __init__(
        self,
        path: Path,
        suffix: str,
        canvas: Canvas,
        fps: Fraction,
        alpha: bool,
        audio: AudioSource | None,
        comment: str,
    ) -> None:
        options = {"fflags": "+bitexact"}
        if suffix != ".webm":
            options["movflags"] = "+faststart"
        self._container = av.open(str(path), "w", format=suffix[1:], options=options)
        try:
            if comment:
                self._container.metadata["comment"] = comment
            codec, pixel_format, settings = {
                ".mp4": ("libx264", "yuv420p", _X264),
                ".mov": ("prores_ks", "yuva444p10le" if alpha else "yuv444p10le", _PRORES),
                ".webm": ("libvpx-vp9", "yuva420p" if alpha else "yuv420p", _VP9),
            }[suffix]
            self._canvas = canvas if suffix == ".mov" else canvas.even()
            stream = self._container.add_stream(codec, rate=fps, options=dict(settings))
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = *self._canvas.size, pixel_format
            context = stream.codec_context
            context.time_base = 1 / fps
            context.thread_count, context.thread_type = THREADS, "AUTO" if suffix == ".webm" else "FRAME"
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
            self._stream, self._fps, self._format = stream, fps, pixel_format
            self._reformatter = VideoReformatter()
            self._count = 0
            self._audio = AudioTrack.open(self._container, audio, suffix) if audio is not None else None
        except BaseException:
            self.abort()
            raise

    def write(self, pixels: NDArray[np.uint8]) -> None:
        frame = to_video(pixels, self._format, self._canvas, self._reformatter)
        frame.pts, frame.time_base = self._count, 1 / self._fps
        self._count += 1
        self._container.mux(self._stream.encode(frame))
        if self._audio is not None:
            self._audio.advance(float(self._count / self._fps))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            self._audio.close()
        self._container.close()

    def abort(self) -> None:
        if getattr(self, "_audio", None) is not None:
            self._audio.close()  # type: ignore[union-attr]
        self._container.close()


class _PictureEncoder:
    """RGBA PNG files in a folder, numbered from 0."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name, self._count = folder, name, 0

    def write(self, pixels: NDArray[np.uint8]) -> None:
        code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGRA
        done, coded = cv2.imencode(".png", cv2.cvtColor(pixels, code), [cv2.IMWRITE_PNG_COMPRESSION, 3])
        if not done:
            raise OutputError("PNG encoding failed")
        (self._folder / _numbered(self._name, self._count)).write_bytes(coded.tobytes())
        self._count += 1

    def finish(self) -> None:
        """Nothing is left to write."""

    def abort(self) -> None:
        """Nothing is open."""


def open_writer(
    path: str | Path,
    canvas: Canvas,
    fps: Fraction,
    *,
    overwrite: bool = False,
    audio: AudioSource | None = None,
    comment: str = "",
) -> VideoWriter:
    """Open `path` for writing frames of `canvas` size at `fps`, by suffix: .mp4 .mov .webm .gif .webp.

    A name with a number (`OUT_%05d.png`) and a name without suffix (or with a trailing slash) become RGBA pictures.
    mp4 and webm drop an odd last row or column.  `audio` is copied, or re-encoded where the container refuses it;
    `comment` goes into the container's field of that name (mp4, mov, webm).  Raises what `check_output` raises.
    """
    check_output(path, overwrite)
    if fps <= 0:
        raise UsageError(f"--fps {fps}: choose a rate above 0")
    kept = _kind(path)
    return VideoWriter(kept, canvas, Fraction(fps), overwrite, audio, comment)


def has_alpha_container(path: str | Path) -> bool:
    """Can this output be transparent?  All but mp4."""
    return _kind(path).suffix.lower() != ".mp4"


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Refuse an output early: a kind that is not written or that exists (`UsageError`), a place that cannot be written
    to (`OutputError`).  Writes nothing.
    """
    kept = _kind(path)
    if kept.suffix.lower() in SUFFIXES:
        check_target(kept, overwrite)
    elif PATTERN.search(kept.name):
        _check_pattern(kept, overwrite)
    else:
        check_folder_target(kept, overwrite, own="*.png")


def _kind(path: str | Path) -> Path:
    """The path, when its name says what to write; else a `UsageError`."""
    check_name(path)
    text, kept = os.fspath(path), Path(path)
    if PATTERN.search(kept.name):
        if kept.suffix.lower() != ".png":
            raise UsageError(f"{path}: numbered frames are PNG. Name them as in OUT_%05d.png")
        return kept
    if kept.suffix.lower() in SUFFIXES:
        return kept
    if not kept.suffix or text.endswith(("/", os.sep)) or kept.is_dir():
        return kept
    known = (*SUFFIXES, ".png")
    hint = nearest(kept.suffix.lower(), known)
    if kept.suffix.lower() == ".png":
        hint = f" For pictures name them as in {kept.stem}_%05d.png"
    raise UsageError(
        f"{path}: cannot write '{kept.suffix}'. Use {', '.join(SUFFIXES)}, OUT_%05d.png or a folder.{hint}"
    )


def _check_pattern(path: Path, overwrite: bool) -> None:
    check_parent(path)
    found = frames_of(path)
    if found and not overwrite:
        raise UsageError(f"{found[0]} exists. Replace the frames with -y/--overwrite, or choose another name with -o")


@contextlib.contextmanager
def _writing_numbered(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder whose files take their places beside `path` when the block ends well.

    With `overwrite` the frames that are there are replaced as a whole: a shorter clip leaves no old tail.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".animx-", suffix=".part", dir=path.parent))
    except OSError as error:
        raise output_error(path, error) from error
    made, aside = folder / "new", folder / "old"
    try:
        try:
            made.mkdir()
            aside.mkdir()
        except OSError as error:
            raise output_error(path, error) from error
        yield made
        _check_pattern(path, overwrite)
        _exchange(frames_of(path), sorted(made.iterdir()), path.parent, aside)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exchange(old: list[Path], new: list[Path], place: Path, aside: Path) -> None:
    """Move the files `new` to `place`, where they stand for the files `old`; all of them, or all is as it was."""
    moved: list[Path] = []
    try:
        for file in old:
            os.replace(file, aside / file.name)
        for file in new:
            moved.append(place / file.name)
            os.replace(file, moved[-1])
    except BaseException:
        for file in moved:
            file.unlink(missing_ok=True)
        for file in old:
            with contextlib.suppress(FileNotFoundError):
                os.replace(aside / file.name, file)
        raise


@contextlib.contextmanager
def _target(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary file or folder that becomes `path` when the block ends well."""
    if path.suffix.lower() in SUFFIXES:
        with writing(path, overwrite) as temporary:
            yield temporary
    elif not PATTERN.search(path.name):
        with writing_folder(path, overwrite, own="*.png") as folder:
            yield folder
    else:
        with _writing_numbered(path, overwrite) as folder:
            yield folder


def _numbered(name: str, number: int) -> str:
    return PATTERN.sub(lambda found: f"{number:0{found[1] or 1}d}", name, count=1)
