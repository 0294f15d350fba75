"""Lists of names and numbers in MATLAB's files (level 5, `.mat`), as published sets bring them; read without SciPy.

After a header of 128 bytes come elements: type, size, and so many bytes, filled up to a multiple of 8. An array is an element of
elements: flags, dimensions, name and numbers, or a cell's arrays; it may be compressed as a whole. (The MathWorks, MAT-File Format,
R2014b.) Objects, structures and sparse arrays are passed over; nothing in the file is run.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oaml.errors import OamlError

HEADER, MATRIX, COMPRESSED, CELL, CHARACTERS = 128, 14, 15, 1, 4
NUMBERS = {
    **{1: np.int8, 2: np.uint8, 3: np.int16, 4: np.uint16, 5: np.int32, 6: np.uint32, 7: np.float32},
    **{9: np.float64, 12: np.int64, 13: np.uint64, 16: np.uint8, 17: np.uint16, 18: np.uint32},
}
"""Type of an element -> what its bytes are; the last three are characters."""
LARGEST = 1 << 28
"""Bytes of a decompressed array; a list of a million names takes a quarter of it."""
Value = list[str] | np.ndarray


def read_arrays(file: Path) -> dict[str, Value]:
    """Name -> the strings of a cell array, or the numbers of an array, in MATLAB's order (columns first) as a flat list.

    Raises:
        OamlError: missing, damaged, or of another format.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise OamlError(f"{file}: can't be read ({error.strerror or error})") from None
    if content[:10] == b"MATLAB 7.3" or content[:4] == b"\x89HDF":
        raise OamlError(
            f"{file}: is of MATLAB's format 7.3, which is not read here; save it with `save -v7` in MATLAB"
        )
    if content[126:128] != b"IM":
        raise OamlError(f"{file}: is no MATLAB file of level 5, or of a big-endian machine")
    try:
        found: dict[str, Value] = {}
        for kind, data in _elements(content[HEADER:]):
            if kind == COMPRESSED:
                opened = zlib.decompressobj()
                data = opened.decompress(data, LARGEST)
                if opened.unconsumed_tail:
                    raise ValueError(f"an array of more than {LARGEST:,} bytes")
                kind, data = next(_elements(data))
            if kind == MATRIX:
                name, value = _array(data)
                if value is not None:
                    found[name] = value
        return found
    except (ValueError, struct.error, zlib.error, StopIteration, IndexError) as error:
        raise OamlError(f"{file}: is damaged ({error or 'it ends too early'}); copy it again") from None


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of one element after the other."""
    place = 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, place)
        if kind >> 16:  # at most four bytes, in the place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
        else:
            start = place + 8
            place = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > len(content):
            raise ValueError("it ends too early")
        yield kind, content[start : start + size]


def _array(content: bytes) -> tuple[str, Value | None]:
    """Name and value of an array; None of one that is no list."""
    elements = _elements(content)
    kind = next(elements)[1][0]
    next(elements)  # dimensions
    name = next(elements)[1].decode("ascii", "replace")
    if kind == CELL:
        texts = [_text(data) for _, data in elements]
        return name, [text for text in texts if text is not None] if None not in texts else None
    if not 6 <= kind <= 15:  # double to uint64
        return name, None
    return name, _numbers(*next(elements))


def _text(content: bytes) -> str | None:
    """The string of a cell; None where it holds something else."""
    elements = _elements(content)
    kind = next(elements)[1][0]
    next(elements)  # dimensions
    next(elements)  # an empty name
    if kind != CHARACTERS:
        return None
    kind, data = next(elements, (1, b""))
    return data.decode("utf-8") if kind == 16 else "".join(map(chr, _numbers(kind, data).tolist()))


def _numbers(kind: int, data: bytes) -> np.ndarray:
    if kind not in NUMBERS:
        raise ValueError(f"elements of type {kind}")
    return np.frombuffer(data, np.dtype(NUMBERS[kind]).newbyteorder("<"))
