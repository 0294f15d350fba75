"""Writes lists as MATLAB does (level 5): a cell of strings, and numbers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np


def element(kind: int, data: bytes) -> bytes:
    if len(data) <= 4:  # the small form
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def array(flags: int, shape: tuple[int, int], name: str, content: bytes) -> bytes:
    beginning = element(6, struct.pack("<II", flags, 0)) + element(5, struct.pack("<ii", *shape))
    data = beginning + element(1, name.encode()) + content
    return struct.pack("<II", 14, len(data)) + data


def cell(name: str, texts: list[str]) -> bytes:
    strings = (array(4, (1, len(text)), "", element(4, text.encode("utf-16-le"))) for text in texts)
    return array(1, (len(texts), 1), name, b"".join(strings))


def numbers(name: str, values: list[int]) -> bytes:
    """As MATLAB writes small whole numbers of class double."""
    return array(6, (len(values), 1), name, element(4, np.array(values, "<u2").tobytes()))


def write_arrays(path: Path, *arrays: bytes, compressed: bool = True) -> None:
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    if compressed:
        arrays = tuple(struct.pack("<II", 15, len(z)) + z for z in map(zlib.compress, arrays))
    path.write_bytes(header + b"".join(arrays))
