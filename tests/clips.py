"""Small clips made in code, with any codec, size, rate and time stamps, for the tests of video reading and writing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


def numbered(index: int, width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """A frame that says its number: 8 grey bars, the bits of `index`, over a moving gradient."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.dstack([(x * 2 + index * 3) % 256, (y * 3) % 256, np.full_like(x, 90)]).astype(np.uint8)
    for bit in range(8):
        frame[: height // 2, bit * width // 8 : (bit + 1) * width // 8] = 215 if index >> bit & 1 else 40
    return frame


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number a frame of `numbered` says, after any lossy coding and scaling."""
    height, width = frame.shape[:2]
    bars = frame[height // 8 : height // 3, ..., :3].mean((0, 2))
    return sum(int(bars[int((bit + 0.5) * width / 8)] > 128) << bit for bit in range(8))


def write_clip(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: Fraction = Fraction(24),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    times: Sequence[Fraction] | None = None,
    rotate: int | None = None,
    aspect: Fraction | None = None,
    movflags: str = "+faststart",
    colours: tuple[int, int] | None = None,
) -> Path:
    """Encode RGB frames.  `times` [s] makes a variable rate; `rotate` degrees and pixel `aspect` go into the header."""
    import av.video.reformatter as reformat

    muxing = {"movflags": movflags} if path.suffix in (".mp4", ".mov") else {}
    clock = Fraction(1, 12000) if times is not None else 1 / fps
    with av.open(str(path), "w", options=muxing) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=dict(options or {}))
        for index, pixels in enumerate(frames):
            if index == 0:
                stream.width, stream.height, stream.pix_fmt = pixels.shape[1], pixels.shape[0], pixel_format
                stream.codec_context.time_base = clock
                if aspect is not None:
                    stream.codec_context.sample_aspect_ratio = aspect
                if rotate is not None:
                    stream.set_display_rotation(rotate)
                if colours is not None:
                    stream.codec_context.colorspace, stream.codec_context.color_range = colours
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            if colours is not None:
                frame = frame.reformat(
                    format=pixel_format,
                    src_color_range=reformat.ColorRange.JPEG,
                    dst_color_range=colours[1],
                    dst_colorspace=reformat.Colorspace.ITU709 if colours[0] == 1 else reformat.Colorspace.ITU601,
                )
                frame.colorspace, frame.color_range = colours
            frame.time_base = clock
            frame.pts = index if times is None else round(times[index] / clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_clicks(path: Path, codec: str = "aac", video: str = "libx264", seconds: int = 4) -> Path:
    """25 frames/s, 64x48, white for two frames every half second, and a click of 5 ms in the sound at each onset."""
    rate = 48000 if codec == "libopus" else 44100
    sound = np.zeros((2, rate * seconds), np.float32)
    for half in range(seconds * 2):
        at = half * rate // 2
        sound[:, at : at + rate // 200] = 0.9 * np.sign(np.sin(np.arange(rate // 200) * 0.3))
    with av.open(str(path), "w") as container:
        picture: Any = container.add_stream(video, rate=25, options={"g": "25"})
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        track: Any = container.add_stream(codec, rate=rate, layout="stereo")
        for index in range(25 * seconds):
            flash = index * 2 % 25 < 2
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255 if flash else 0, np.uint8), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        context = track.codec_context
        whole: Any = av.AudioFrame.from_ndarray(sound, "fltp", "stereo")
        whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
        fifo: Any = av.AudioFifo()
        for piece in av.AudioResampler(context.format.name if context.format else "fltp", "stereo", rate).resample(
            whole
        ):
            fifo.write(piece)
        done = 0
        while (chunk := fifo.read(context.frame_size or 1024, partial=True)) is not None:
            chunk.pts, chunk.time_base = done, Fraction(1, rate)
            done += chunk.samples
            container.mux(track.encode(chunk))
        container.mux(track.encode(None))
    return path


def clicks_of(path: Path) -> tuple[str, list[float]]:
    """(audio codec, onsets of the clicks [s] on the clock of the first video frame)."""
    onsets: list[float] = []
    last = -1.0
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        begin = float((video.start_time or 0) * (video.time_base or Fraction(0)))
        for frame in container.decode(audio):
            samples = frame.to_ndarray().astype(float)
            samples = samples[0] if frame.format.is_planar else samples[0, :: len(frame.layout.channels)]
            loud = np.abs(samples) > (0.3 if np.abs(samples).max(initial=0) < 2 else 9830)
            for moment in (
                float((frame.pts or 0) * (frame.time_base or Fraction(0)))
                - begin
                + np.flatnonzero(loud) / frame.sample_rate
            ):
                if moment - last > 0.1:
                    onsets.append(float(moment))
                last = moment
        return audio.codec_context.name, onsets
