"""A RecordIO file (`.rec`) and its index (`.idx`), as MXNet writes them, read without MXNet.

A record is `u32 magic, u32 (part << 29 | length), data, zeros to a multiple of 4`, little-endian. Part 0 is a whole record. Where
the data of a record hold an aligned magic, the writer cuts there and drops it, and the parts are marked 1 (first), 2 (middle) and
3 (last), so that the reader puts it back between them. An index has a line `key TAB offset` for every record, in any order.

The data of a picture's record are `<IfQQ` (flag, label, id, id2), then `flag` float32 labels where flag > 0, then the image's file.

Source: dmlc-core `recordio.h` and `recordio.cc`, MXNet `python/mxnet/recordio.py`.
"""

from __future__ import annotations

import os
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oaml.errors import OamlError

MAGIC = b"\x0a\x23\xd7\xce"
HEAD = struct.Struct("<II")
LABELS = struct.Struct("<IfQQ")
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH_BITS = 29
REMEDY = "copy the file anew, or leave such pictures out with --skip_damaged"
INDEX_REMEDY = "give the index of this file, or remove it to have one made by a scan"
SCAN_BLOCK = 1 << 20


class Record(NamedTuple):
    """The data of one record, taken apart."""

    labels: np.ndarray
    """float32 [n], n >= 1."""
    image: bytes
    """The image's file; empty in the records that only say something of others."""


class Damage(ValueError):
    """What is wrong with one record, without its place."""


class RecordFile:
    """The records of a file by their place, 0 to N - 1, in the order of their keys.

    Reading holds no state, and every process opens the file by itself: workers of a loader and threads may read at once.

    Args:
        path: the `.rec` file. Its index is the file of the same name ending in `.idx`; where there is none, one is made in memory
            by a scan, which prints a line.
        skip_damaged: leave out, in `damaged`, what a scan can't read and what lies beyond the end of a file that was cut off.

    Raises:
        OamlError: no such file, no records in it, or an index that belongs to another one.
    """

    def __init__(self, path: str | Path, skip_damaged: bool = False) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        if not self.path.is_file():
            raise OamlError(f"{self.path}: no such file; records are expected as NAME.rec with NAME.idx")
        self.size = self.path.stat().st_size
        first = self._bytes(0, 4)
        if first != MAGIC and not (skip_damaged and self.size):
            what = "is empty" if not self.size else "does not begin with a record"
            raise OamlError(f"{self.path}: {what}; a RecordIO file is expected")
        index = self.path.with_suffix(".idx")
        self.damaged: list[str] = []
        """What was left out, where that is allowed."""
        read = self._read_index if index.exists() else self._scan
        keys, offsets = read(index, skip_damaged)
        order = np.argsort(keys, kind="stable")
        self.keys, self.offsets = keys[order], offsets[order]
        """int64 [N] each, by rising key."""
        starts = np.append(np.sort(offsets), self.size)
        self.ends = starts[np.searchsorted(starts, self.offsets, side="right")]
        """int64 [N]: where the next record of the index begins."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]

    def name(self, place: int) -> str:
        """What messages call a record."""
        return f"{self.path}, key {self.keys[place]} at byte {self.offsets[place]}"

    def data(self, place: int) -> bytes:
        """The data of a record, its parts joined.

        Raises:
            OamlError: it is damaged; names key and offset.
        """
        start = int(self.offsets[place])
        try:
            return joined(self._bytes(start, int(self.ends[place]) - start))
        except Damage as damage:
            raise self._damaged(place, damage) from None

    def record(self, place: int) -> Record:
        """The labels and the image of a record.

        Raises:
            OamlError: it is damaged, or holds no picture's record; names key and offset.
        """
        data = self.data(place)
        try:
            return taken_apart(data)
        except Damage as damage:
            raise self._damaged(place, damage) from None

    def head(self, place: int) -> tuple[np.ndarray, bool]:
        """The labels of a record and whether an image follows, read without the image.

        Raises:
            OamlError: as `record`, as far as the first hundred bytes tell.
        """
        start = int(self.offsets[place])
        beginning = self._bytes(start, min(int(self.ends[place]) - start, 128))
        part = HEAD.unpack_from(beginning)[1] >> LENGTH_BITS if len(beginning) >= HEAD.size else None
        if part == WHOLE and beginning[:4] == MAGIC:
            length = HEAD.unpack_from(beginning)[1]
            data = beginning[HEAD.size : HEAD.size + length]
            flag = LABELS.unpack_from(data)[0] if len(data) >= LABELS.size else len(data)
            labelled = LABELS.size + 4 * flag
            if labelled <= len(data) and HEAD.size + length <= int(self.ends[place]) - start:
                return taken_apart(data[:labelled]).labels, length > labelled
        record = self.record(place)
        return record.labels, bool(record.image)

    def shard(self, number: int, count: int) -> Iterator[int]:
        """Places of one of `count` neighbouring parts of the file, in the order in which they lie there: what one of several
        workers reads so that the disk need not jump."""
        order = np.argsort(self.offsets, kind="stable")
        yield from np.array_split(order, count)[number].tolist()

    def _damaged(self, place: int, damage: Damage) -> OamlError:
        return OamlError(f"{self.name(place)}: the record is damaged ({damage}); {REMEDY}")

    def _bytes(self, start: int, count: int) -> bytes:
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            return os.pread(self._descriptor, count, start)
        except OSError as error:
            raise OamlError(f"{self.path}: can't be read ({error.strerror or error})") from None

    def _read_index(self, index: Path, skip_damaged: bool) -> tuple[np.ndarray, np.ndarray]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an empty file, which is an error here
                rows = np.loadtxt(index, np.int64, comments=None, ndmin=2, encoding="utf-8")
        except (ValueError, OverflowError) as error:
            what = str(error).partition("\n")[0]
            raise OamlError(
                f"{index}: is no index of records, lines of KEY, tab, OFFSET ({what}); {INDEX_REMEDY}"
            ) from None
        except OSError as error:
            raise OamlError(f"{index}: can't be read ({error.strerror or error})") from None
        if not rows.size or rows.shape[1] != 2:
            what = "is empty" if not rows.size else f"has {rows.shape[1]} columns, not KEY and OFFSET"
            raise OamlError(f"{index}: {what}; {INDEX_REMEDY}")
        keys, offsets = rows[:, 0], rows[:, 1]
        between = (keys < 0) | (offsets < 0) | (offsets % 4 != 0)
        beyond = offsets + HEAD.size > self.size
        if skip_damaged and beyond.any() and not beyond.all():
            self.damaged.append(f"{self.path}: {beyond.sum():,} records beyond its end, byte {self.size}")
            keys, offsets, between = keys[~beyond], offsets[~beyond], between[~beyond]
            beyond = np.zeros(len(keys), bool)
        if len(wrong := np.flatnonzero(between | beyond)):
            key, offset = keys[wrong[0]], offsets[wrong[0]]
            where = f"beyond its end, byte {self.size}" if beyond[wrong[0]] else "where no record can begin"
            raise OamlError(
                f"{index}: does not match {self.path}: key {key} is at byte {offset}, {where} ({len(wrong):,} of {len(keys):,} "
                f"keys are wrong); if the file was cut off, copy it anew, otherwise {INDEX_REMEDY}"
            )
        for values, what in ((keys, "key"), (offsets, "offset")):
            ordered = np.sort(values)
            if len(twice := ordered[1:][ordered[1:] == ordered[:-1]]):
                raise OamlError(f"{index}: has the {what} {twice[0]} twice; {INDEX_REMEDY}")
        self._check_ends(index, keys, offsets, skip_damaged)
        return keys, offsets

    def _check_ends(self, index: Path, keys: np.ndarray, offsets: np.ndarray, skip_damaged: bool) -> None:
        """The first and the last record are where the index has them, and reach from the file's beginning to its end."""
        first, last = int(offsets.argmin()), int(offsets.argmax())
        wrong = []
        for place in (first, last):
            try:
                part_of(self._bytes(int(offsets[place]), HEAD.size), (WHOLE, FIRST))
            except Damage as damage:
                wrong.append(f"key {keys[place]} is at byte {offsets[place]}, and {damage}")
        if wrong and (len(wrong) == 2 or first == last or not skip_damaged):
            raise OamlError(f"{index}: does not match {self.path}: {wrong[0]}; {INDEX_REMEDY}")
        if offsets[first] > 0:
            raise OamlError(
                f"{index}: does not match {self.path}: it lacks the {offsets[first]} bytes of records before key {keys[first]}; "
                f"{INDEX_REMEDY}"
            )
        try:
            *_, (_, end) = parts(self._bytes, int(offsets[last]), self.size)
        except Damage as damage:
            if skip_damaged:
                return  # it is left out when it is read
            raise OamlError(
                f"{self.path}, key {keys[last]} at byte {offsets[last]}: the last record is damaged ({damage}); {REMEDY}"
            ) from None
        behind = self.size - (end + -end % 4)
        if behind:
            raise OamlError(
                f"{index}: does not match {self.path}: it lacks the {behind} bytes of records after key {keys[last]}; "
                f"{INDEX_REMEDY}"
            )

    def _scan(self, index: Path, skip_damaged: bool) -> tuple[np.ndarray, np.ndarray]:
        """Keys and offsets of all records, from their heads; the key is the id that a record holds where these differ."""
        offsets, ids, offset = list[int](), list[int](), 0
        while offset < self.size:
            try:
                end, number = self._pass(offset)
            except Damage as damage:
                message = (
                    f"{self.path}, record {len(offsets)} at byte {offset}: the record is damaged ({damage})"
                )
                if not skip_damaged:
                    raise OamlError(f"{message}; {REMEDY}") from None
                self.damaged.append(message)
                offset = self._next_record(offset + 4)
                continue
            offsets.append(offset)
            ids.append(number)
            offset = end
        if not offsets:
            raise OamlError(f"{self.path}: holds no whole record; a RecordIO file is expected")
        distinct = len(set(ids)) == len(ids)
        print(
            f"{index}: there is none; made by a scan of {len(offsets):,} records, whose keys are "
            f"{'the ids that they hold' if distinct else 'counted'}",
            file=sys.stderr,
        )
        return np.array(ids if distinct else range(len(ids)), np.int64), np.array(offsets, np.int64)

    def _pass(self, offset: int) -> tuple[int, int]:
        """Where the record at `offset` ends, and the id that it holds."""
        data, end = b"", offset
        for start, end in parts(self._bytes, offset, self.size):
            if len(data) < LABELS.size:  # a cut may lie within the labels
                data += (MAGIC if start > offset + HEAD.size else b"") + self._bytes(
                    start, min(end - start, LABELS.size)
                )
        if len(data) < LABELS.size:
            raise Damage(f"it holds {len(data)} bytes, a picture's record at least {LABELS.size}")
        end += -end % 4
        if end < self.size and self._bytes(end, 4) != MAGIC and self._next_record(offset + 4) < end:
            raise Damage("another record begins within it")
        number = LABELS.unpack_from(data)[2]
        return end, number if number < 1 << 63 else -1

    def _next_record(self, offset: int) -> int:
        """Where the next aligned beginning of a record is; an aligned magic never lies within data."""
        while offset < self.size:
            block = self._bytes(offset, SCAN_BLOCK)
            words = np.frombuffer(block[: len(block) // 4 * 4], "<u4")
            for word in np.flatnonzero(words[:-1] == int.from_bytes(MAGIC, "little")):
                if words[word + 1] >> LENGTH_BITS in (WHOLE, FIRST):
                    return offset + 4 * int(word)
            if len(block) < SCAN_BLOCK:
                break
            offset += SCAN_BLOCK - 4
        return self.size


def part_of(head: bytes, expected: tuple[int, int]) -> tuple[int, int]:
    """Kind and length of the part whose first bytes are given.

    Raises:
        Damage: no part of an expected kind.
    """
    if len(head) < HEAD.size:
        raise Damage("it ends within a part's head")
    if head[:4] != MAGIC:
        raise Damage("no record begins there")
    word = HEAD.unpack_from(head)[1]
    part, length = word >> LENGTH_BITS, word & ((1 << LENGTH_BITS) - 1)
    if part not in expected:
        raise Damage(
            "it is the middle of another record"
            if expected[0] == WHOLE and part in (MIDDLE, LAST)
            else f"a part of kind {part} where {expected[0]} or {expected[1]} is expected"
        )
    return part, length


def parts(read: Callable[[int, int], bytes], offset: int, limit: int) -> Iterator[tuple[int, int]]:
    """Beginning and end of the data of each part of the record that begins at `offset`.

    Args:
        read: (place, count) -> bytes.
        limit: where the record ends at the latest.

    Raises:
        Damage: it is not whole.
    """
    expected = (WHOLE, FIRST)
    while True:
        part, length = part_of(read(offset, HEAD.size), expected)
        start = offset + HEAD.size
        offset = start + length + -length % 4
        if offset > limit:
            raise Damage(f"it goes {offset - limit} bytes beyond the next record or the end of the file")
        yield start, start + length
        if part in (WHOLE, LAST):
            return
        expected = (MIDDLE, LAST)


def joined(place: bytes) -> bytes:
    """The data of the record that begins at byte 0 and ends where another one, or nothing, follows.

    Raises:
        Damage: it is not whole.
    """
    ranges = list(parts(lambda start, count: place[start : start + count], 0, len(place)))
    end = ranges[-1][1] + -ranges[-1][1] % 4
    if end < len(place) and place[end : end + 4] != MAGIC:
        raise Damage(f"no record follows after its {end} bytes")
    return MAGIC.join(place[a:b] for a, b in ranges)


def taken_apart(data: bytes) -> Record:
    """The labels and the image in the data of a record."""
    if len(data) < LABELS.size:
        raise Damage(f"it holds {len(data)} bytes, a picture's record at least {LABELS.size}")
    flag, label = LABELS.unpack_from(data)[:2]
    image = LABELS.size + 4 * flag
    if image > len(data):
        raise Damage(f"it states {flag} labels and holds {len(data)} bytes")
    labels = np.frombuffer(data, "<f4", flag, LABELS.size) if flag else np.array([label], np.float32)
    return Record(labels, data[image:])
