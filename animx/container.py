"""Is a media file as long as its own outermost boxes say?  Found from a few headers, nothing is decoded.

In: a path.  Out: True when the file ends early.  Known: ISO base media (mp4, mov), Matroska and WebM, RIFF (avi,
webp), GIF.
Sources: ISO/IEC 14496-12 section 4.2, RFC 8794 section 4, the RIFF chunk layout, GIF89a.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_MOST_BOXES = 100_000


def is_cut_short(path: str | Path) -> bool:
    """True when the last box, segment or chunk reaches beyond the end of the file; False for kinds not known here."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _boxes_end(file, size) > size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _segment_end(file) > size
        if head[:4] == b"GIF8":
            return not _gif_ends(file)
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little") > size
    return False


def _boxes_end(file: BinaryIO, size: int) -> int:
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > size:
            break
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # reaches to the end of the file by definition
            return size
        if length < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in head[4:8]):
            break  # trailing padding or foreign data is not a missing end
        at += length
    return at


def _segment_end(file: BinaryIO) -> int:
    file.seek(4)
    length = _vint(file)
    if length is None:
        return 0
    file.seek(length, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    length = _vint(file)
    return 0 if length is None else file.tell() + length


def _gif_ends(file: BinaryIO) -> bool:
    """Does the chain of blocks reach the trailer?  A broken chain counts as an end too early."""

    def skip_colours(flags: int) -> None:
        if flags & 0x80:
            file.seek(3 << ((flags & 7) + 1), os.SEEK_CUR)

    file.seek(10)
    skip_colours((file.read(3) or b"\0")[0])
    while True:
        kind = file.read(1)
        if kind == b"\x3b":
            return True
        if kind == b"\x2c":
            skip_colours((file.read(9)[8:] or b"\0")[0])
            file.seek(1, os.SEEK_CUR)
        elif kind == b"\x21":
            file.seek(1, os.SEEK_CUR)
        else:
            return False
        while True:
            length = file.read(1)
            if not length:
                return False
            if length == b"\0":
                break
            file.seek(length[0], os.SEEK_CUR)


def _vint(file: BinaryIO) -> int | None:
    """An EBML length; None for `unknown` (a live recording) and for damage."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    size = 9 - first[0].bit_length()
    rest = file.read(size - 1)
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - size)) - 1)]) + rest, "big")
    return None if value == (1 << (7 * size)) - 1 else value
