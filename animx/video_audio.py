"""Sound of the driving clip in the output: packets copied as they are, or re-encoded where the container refuses them.

In: `AudioSource`, a file and the range whose sound is wanted.  Out: packets muxed beside the video, in step with it, so
that nothing piles up.  Time 0 of a range is the start of the file's first video frame, as in `video.py`.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

log = logging.getLogger(__name__)

_ENCODERS = {".mp4": ("aac", "fltp"), ".mov": ("aac", "fltp"), ".webm": ("libopus", "flt")}
_RATES = {"libopus": 48000}
_BIT_RATE = 192_000

_Timed = tuple[float, "Packet[Any]"]
"""A packet and its time in the output [s]."""


@dataclass(frozen=True)
class AudioSource:
    """Whose sound the output carries: the file, and the range that the output's frames were taken from."""

    path: str | Path
    start: float = 0.0
    """From the start of the file's first video frame [s]."""
    duration: float | None = None
    """Length [s]; None = as long as the output's video."""


class AudioTrack:
    """One audio stream of an output, fed from an `AudioSource` step by step."""

    @classmethod
    def open(cls, container: OutputContainer, source: AudioSource, suffix: str) -> AudioTrack | None:
        """Add the source's first audio stream to `container`; None (said by a warning) when it has none that works."""
        path = Path(source.path)
        try:
            file = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            log.warning("%s: its sound cannot be read (%s); the output is silent", path.name, error)
            return None
        stream = file.streams.best("audio")
        if not isinstance(stream, AudioStream) or stream.codec_context is None:
            file.close()
            return None
        try:
            return cls(container, file, stream, source, suffix)
        except (av.FFmpegError, ValueError) as error:
            file.close()
            log.warning("%s: its sound cannot be used (%s); the output is silent", path.name, error)
            return None

    def __init__(
        self, container: OutputContainer, file: InputContainer, stream: AudioStream, source: AudioSource, suffix: str
    ) -> None:
        self._container, self._file, self._stream = container, file, stream
        self._base = stream.time_base or Fraction(1, stream.rate)
        self._origin = _video_start(file) + Fraction(source.start).limit_denominator(1_000_000)
        self._edits = suffix != ".webm" or source.start <= 0
        self._duration = math.inf if source.duration is None else source.duration
        self._limit = 0.0
        if source.start > 0:
            # A second early: packets before the range are dropped, and a decoder needs a few to settle.
            file.seek(int((self._origin - 1) / self._base), stream=stream, backward=True)
        if _takes(suffix, stream):
            self._out = container.add_stream_from_template(stream)
            packets = self._copied()
        else:
            codec, layout = _ENCODERS[suffix][0], "mono" if stream.channels == 1 else "stereo"
            rate = _RATES.get(codec, stream.rate)
            log.info("sound is re-encoded from %s to %s, which %s takes", stream.codec_context.name, codec, suffix)
            self._out = cast(AudioStream, container.add_stream(codec, rate=rate, layout=layout))
            self._out.bit_rate = _BIT_RATE if layout == "stereo" else _BIT_RATE // 2
            packets = self._encoded(self._out.codec_context, _ENCODERS[suffix][1], layout, rate)
        self._packets = packets
        self._ahead: _Timed | None = None

    def advance(self, time: float) -> None:
        """Mux the sound up to `time` of the output [s]."""
        self._limit = max(self._limit, time)
        while True:
            if self._ahead is None:
                self._ahead = next(self._packets, None)
            if self._ahead is None or self._ahead[0] >= min(self._limit, self._duration) - 1e-9:
                return
            packet, self._ahead = self._ahead[1], None
            packet.stream = self._out
            self._container.mux(packet)

    def close(self) -> None:
        """Close the source file."""
        self._packets.close()
        self._file.close()

    def _demuxed(self) -> Iterator[Packet[Any]]:
        try:
            yield from self._file.demux(self._stream)
        except av.FFmpegError as error:
            log.warning("sound ends early: %s", error)

    def _copied(self) -> Generator[_Timed, None, None]:
        """Packets from the start of the range on, their time counted from there [s]."""
        shift = round(self._origin / self._base)
        for packet in self._demuxed():
            if not packet.size or packet.pts is None:
                continue
            # The packet across the start and one more, which the decoder needs to settle, are kept where an edit list
            # can hide them (mp4, mov).
            wanted = packet.pts + 2 * (packet.duration or 0) >= shift if self._edits else packet.pts >= shift
            if not wanted:
                continue
            packet.pts -= shift
            packet.dts = packet.pts
            yield float(packet.pts * self._base), packet

    def _encoded(
        self, context: AudioCodecContext, sample_format: str, layout: str, rate: int
    ) -> Generator[_Timed, None, None]:
        """The range's samples, exact to the sample, encoded; silence where the sound begins later than the range."""
        resampler = AudioResampler(sample_format, layout, rate)
        fifo = AudioFifo()
        size = context.frame_size or 1024
        written = 0

        def encode(last: bool) -> Iterator[_Timed]:
            nonlocal written
            while (chunk := fifo.read(size, partial=last)) is not None:
                chunk.pts, chunk.time_base, chunk.sample_rate = written, Fraction(1, rate), rate
                written += chunk.samples
                for packet in context.encode(chunk):
                    yield float((packet.pts or 0) * packet.time_base), packet

        fed = 0
        for frame in self._decoded():
            for piece in resampler.resample(frame):
                if piece.pts is None or piece.time_base is None:
                    continue
                # Sample number in the output of this piece's first sample; before the range it is negative.
                at = round((piece.pts * piece.time_base - self._origin) * rate)
                if fed == 0 and at > 0 and not written:
                    fifo.write(_silence(at, sample_format, layout, rate))
                    fed = at
                skip = max(0, -at) if fed == 0 else 0
                if skip < piece.samples:
                    part = _part(piece, skip)
                    fed += part.samples
                    fifo.write(part)
            yield from encode(last=False)
        for piece in resampler.resample(None):
            if fed:
                fifo.write(_part(piece, 0))
        yield from encode(last=True)
        for packet in context.encode(None):
            yield float((packet.pts or 0) * packet.time_base), packet

    def _decoded(self) -> Iterator[AudioFrame]:
        warned = False
        for packet in self._demuxed():
            try:
                for frame in packet.decode():
                    if isinstance(frame, AudioFrame):
                        yield frame
            except av.FFmpegError as error:
                if not warned:
                    log.warning("sound is damaged in places: %s", error)
                warned = True


def _video_start(file: InputContainer) -> Fraction:
    """Start of the first video frame on the file's clock [s]; 0 for a file of sound only."""
    stream = file.streams.best("video")
    if stream is None or stream.start_time is None or stream.time_base is None:
        return Fraction(0)
    return stream.start_time * stream.time_base


def _takes(suffix: str, stream: AudioStream) -> bool:
    """Does the container take these packets as they are?  Asked of the muxer itself, in memory."""
    try:
        with av.open(io.BytesIO(), "w", format=suffix[1:]) as trial:
            if stream.codec_context.name not in trial.supported_codecs:
                return False
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError, OSError):
        return False
    return True


def _part(frame: AudioFrame, skip: int) -> AudioFrame:
    """The frame without its first `skip` samples and without a time stamp, as a fifo wants it."""
    planar = frame.format.is_planar
    samples = frame.to_ndarray()
    channels = len(frame.layout.channels)
    samples = samples[:, skip:] if planar else samples[:, skip * channels :]
    part = AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), frame.format.name, frame.layout.name)
    part.sample_rate, part.pts = frame.sample_rate, None
    return part


def _silence(count: int, sample_format: str, layout: str, rate: int) -> AudioFrame:
    channels = 1 if layout == "mono" else 2
    shape = (channels, count) if sample_format.endswith("p") else (1, count * channels)
    frame = AudioFrame.from_ndarray(np.zeros(shape, np.float32), sample_format, layout)
    frame.sample_rate, frame.pts = rate, None
    return frame
