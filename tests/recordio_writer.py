"""RecordIO files for tests, written as MXNet writes them (`tests/golden/recordio` holds one of MXNet's own)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

MAGIC = struct.pack("<I", 0xCED7230A)


def part(data: bytes, kind: int) -> bytes:
    return MAGIC + struct.pack("<I", kind << 29 | len(data)) + data + bytes(-len(data) % 4)


def record(data: bytes) -> bytes:
    """The data, cut at every magic that lies at a multiple of 4."""
    cuts = [i for i in range(0, len(data) // 4 * 4, 4) if data[i : i + 4] == MAGIC]
    if not cuts:
        return part(data, 0)
    begins, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(data)]
    kinds = [1, *[2] * (len(cuts) - 1), 3]
    return b"".join(part(data[begin:end], kind) for begin, end, kind in zip(begins, ends, kinds, strict=True))


def payload(key: int, label: float | Sequence[float], image: bytes, second: int = 0) -> bytes:
    """The data of a picture's record; `second` is its second id, which says nothing."""
    if isinstance(label, Sequence):
        return struct.pack("<IfQQ", len(label), 0, key, second) + np.array(label, "<f4").tobytes() + image
    return struct.pack("<IfQQ", 0, label, key, second) + image


def write_records(path: Path, rows: Iterable[tuple[int, float | Sequence[float], bytes]]) -> Path:
    """(key, label, image) each -> PATH and its index, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    index, content = [], b""
    for key, label, image in rows:
        index.append(f"{key}\t{len(content)}\n")
        content += record(payload(key, label, image))
    path.write_bytes(content)
    path.with_suffix(".idx").write_text("".join(index))
    return path


def insightface(
    people: Sequence[tuple[float, Sequence[bytes]]], start: int = 1
) -> list[tuple[int, float | list[float], bytes]]:
    """Rows in InsightFace's layout.

    Args:
        people: label and images of each.
        start: key of the first picture.
    """
    rows: list[tuple[int, float | list[float], bytes]] = []
    ranges, key = [], start
    for label, images in people:
        ranges.append([float(key), float(key + len(images))])
        for image in images:
            rows.append((key, label, image))
            key += 1
    header = (0, [float(key), float(key + len(ranges))], b"")
    return [header, *rows, *((key + i, bounds, b"") for i, bounds in enumerate(ranges))]
