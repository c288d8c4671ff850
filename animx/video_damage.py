"""Finding damage in coded video while it is decoded, and holding back what may lean on it.

Zeroed or flipped bytes in H.264 usually decode without an exception, so four signs count: an error of the
decoder, a frame or packet marked corrupt, a run of zeros that the coding forbids inside a NAL unit or unit lengths that
do not add up, and a file shorter than its own boxes say.  A frame is handed on only when every packet decoded before it
came out clean, so frames that lean on a damaged one are not handed on either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from av.video.frame import VideoFrame
from av.video.stream import VideoStream

_HELD = 48
"""Most decoded frames that wait for their references to come out clean; deeper than any real reordering."""


class Damage(Exception):
    """Raised by a source when frame `index` (and perhaps later ones) cannot be trusted."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class Gate:
    """Holds decoded frames back until every packet they may lean on has come out clean.

    A frame leans only on packets that were decoded before it.  Damage often begins in the tail of one packet and is
    noticed in the next, so the packet before a bad one is not trusted either.
    """

    def __init__(self) -> None:
        self.order, self.count, self.reason = -1, 0, ""
        self.bad: int | None = None  # decoding order of the first packet that is not trusted
        self._out: dict[int, int] = {}  # time stamp -> decoding order of packets whose frame has not come out
        self._held: deque[tuple[int, int, VideoFrame]] = deque()  # (number, decoding order, frame)
        self._done = -1

    def feed(self, pts: int | None, hidden: bool) -> None:
        """Note the packet that is decoded next; `hidden` ones give no frame."""
        self.order += 1
        if not hidden:
            self._out[self.order if pts is None else pts] = self.order

    def take(self, number: int, pts: int, frame: VideoFrame) -> None:
        """Take a frame that came out of the decoder."""
        order = self._out.pop(pts, self.order)
        for late in [stamp for stamp in self._out if stamp < pts]:
            del self._out[late]
        if frame.is_corrupt:
            self.distrust(order, "damaged picture data")
        self._held.append((number, order, frame))

    def distrust(self, order: int, reason: str) -> None:
        """Packet number `order` is damaged, so the one before it is doubtful."""
        if self.bad is None or order - 1 < self.bad:
            self.bad, self.reason = order - 1, reason

    def vetted(self, last: bool = False) -> Iterator[tuple[int, VideoFrame]]:
        """Hand on the frames that nothing can taint any more; `last`: all that are left and sound."""
        while self._held:
            number, order, frame = self._held[0]
            if self.bad is not None:
                if not last or order >= self.bad or (self._done >= 0 and number > self._done + 1):
                    return
            elif not last and len(self._held) <= _HELD and order + 1 >= min(self._out.values(), default=self.order + 1):
                return
            self._held.popleft()
            self._done = number
            yield number, frame

    def next_number(self) -> int:
        """The number of the first frame that was not handed on."""
        if self._done >= 0:
            return self._done + 1
        return self._held[0][0] if self._held else 0


def unit_length_size(stream: VideoStream) -> int:
    """Bytes of a NAL unit's length prefix in H.264 and HEVC streams that have one, else 0."""
    extra = stream.codec_context.extradata or b""
    if stream.codec_context.name == "h264" and len(extra) > 6 and extra[0] == 1:
        return (extra[4] & 3) + 1
    if stream.codec_context.name == "hevc" and len(extra) > 22 and extra[0] == 1:
        return (extra[21] & 3) + 1
    return 0


def units_are_sound(packet: bytes, size: int) -> bool:
    """Do the NAL units fill the packet, and is none holed by zeros (coding allows two in a row inside a unit)?"""
    at = 0
    while at < len(packet):
        length = int.from_bytes(packet[at : at + size], "big")
        at += size
        if at + length > len(packet):
            return False
        end = at + length
        while end > at and packet[end - 1] == 0:
            end -= 1
        if packet.find(b"\0\0\0\0", at, end) >= 0:
            return False
        at += length
    return True
