"""What the file of a video says of its own length, which tells a copy that broke off from a recording that paused.

The number of frames doesn't: Matroska, WebM, FLV and MPEG state none, what OpenCV gives for it is duration times frame rate, and a
recorder that paused, or a screen that didn't change, has fewer.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from oaml.support.formats import HEAD

_ASF_PROPERTIES = bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365")
_MOST_BOXES = 10_000


def stated_end(file: BinaryIO) -> int | None:
    """Where the file should end, in bytes; None where it doesn't say, as live recordings and MPEG streams don't.

    Known are MP4 and QuickTime (ISO 14496-12), Matroska and WebM (RFC 8794), AVI (RIFF), WMV (ASF) and FLV.
    """
    file.seek(0)
    head = file.read(HEAD)
    if head.startswith(b"RIFF"):
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if size else None
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _matroska_end(head)
    if (found := head.find(_ASF_PROPERTIES)) >= 0 and len(head) >= found + 48:
        return int.from_bytes(head[found + 40 : found + 48], "little") or None
    if head.startswith(b"FLV") and 0 < (found := head.find(b"\0\x08filesize\0")) < len(head) - 19:
        return int(struct.unpack(">d", head[found + 11 : found + 19])[0]) or None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return max((end for _, _, end in _boxes(file)), default=None)
    return None


def mp4_duration(file: BinaryIO) -> float | None:
    """Seconds that an MP4 or QuickTime file shows, which is less than it holds where it was trimmed; None without an index."""
    for name, start, end in _boxes(file):
        if name == b"moov":
            file.seek(start)
            found = (index := file.read(min(end - start, 1 << 16))).find(b"mvhd")
            if found < 0 or len(index) < found + 36:
                return None
            wide = index[found + 4] == 1  # version 1 has numbers of 64 bits
            place, kind = (found + 24, ">IQ") if wide else (found + 16, ">II")
            scale, duration = struct.unpack_from(kind, index, place)
            return duration / scale if scale else None
    return None


def is_mp4(file: BinaryIO) -> bool:
    """Whether a file is made of the boxes of MP4."""
    file.seek(0)
    return file.read(8)[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def _boxes(file: BinaryIO) -> list[tuple[bytes, int, int]]:
    """The outermost boxes of MP4 as far as the file goes: name, begin of the content, and where it should end."""
    size = file.seek(0, 2)
    boxes: list[tuple[bytes, int, int]] = []
    place = 0
    while place + 8 <= size and len(boxes) < _MOST_BOXES:
        file.seek(place)
        head = file.read(16)
        length, begin = int.from_bytes(head[:4], "big"), place + 8
        if length == 1:
            length, begin = int.from_bytes(head[8:16], "big"), place + 16
        end = place + length if length else size  # 0: to the end of the file
        if end < begin:
            break
        boxes.append((head[4:8], begin, end))
        place = end
    return boxes


def _matroska_end(head: bytes) -> int | None:
    """The end of the segment, which is all of the file but its header."""
    place = 4
    size, place = _number(head, place)
    if size is None:
        return None
    place += size
    if head[place : place + 4] != b"\x18\x53\x80\x67":
        return None
    size, place = _number(head, place + 4)
    return None if size is None else place + size


def _number(head: bytes, place: int) -> tuple[int | None, int]:
    """A number of EBML and the place after it: a zero bit for every further byte, a one, the number; all ones is unknown."""
    if place >= len(head) or not head[place]:
        return None, place
    length = 9 - head[place].bit_length()
    value = int.from_bytes(head[place : place + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), place + length
