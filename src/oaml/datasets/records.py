"""Whose pictures the records of a `.rec` file hold.

Two layouts. InsightFace's has a header at key 0, whose two labels say where the records of the identities begin and end; pictures
are all keys before them, and the record of an identity has its range of keys, [first, end). In any other file (im2rec, CVLface)
every record is a picture. Beside the file may lie CVLface's list, `NAME.tsv` with lines `key TAB path TAB label`.

The first label of a picture is its person. Labels are float32, as the numbers in header and ranges are, which above 2^24 holds no
odd numbers. So none of these count anything here: the keys of the index count the pictures, and where the end of a range is not
exact, the labels of the pictures around it say where one person ends and the next one begins. People whose labels are not exact
are told apart by the ranges, or by the list, whose labels are text.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oaml.datasets.pictures import Lazily
from oaml.datasets.recordio import REMEDY, RecordFile
from oaml.errors import OamlError, few
from oaml.support.files import read_image
from oaml.support.progress import progress

EXACT = 1 << 24
"""Whole numbers below it are exact in float32, and no other whole number is rounded to them."""
UNKNOWN = int(np.iinfo(np.int64).min)
MANY = 200_000
"""Records whose labels take a second or more to read."""
TSV_REMEDY = "give the list of this file, or remove it to have the labels in the records"


class RecordPictures:
    """The pictures of a `.rec` file; a source as `oaml.datasets.pictures.Pictures` describes it.

    Args:
        source: the file, or a folder that holds train.rec.
        skip_damaged: leave out records whose labels can't be read.

    Raises:
        OamlError: as `RecordFile`; a record that can't be read; labels that are no whole numbers or can't be told apart; a list
            that does not match.
    """

    def __init__(self, source: str | Path, skip_damaged: bool = False) -> None:
        path = Path(source) / "train.rec" if Path(source).is_dir() else Path(source)
        self.source, self._skip = str(source), skip_damaged
        self.file = RecordFile(path, skip_damaged)
        self.damaged = self.file.damaged
        first = self._first_identity()
        begin = int(first is not None)  # behind the header
        places = np.arange(begin, len(self.file) if first is None else first)
        listed = path.with_suffix(".tsv")
        if listed.is_file():
            persons, names = self._listed(listed, places)
        else:
            places, persons = self._labelled(places, first)
            names = None
        if not len(places):
            raise OamlError(f"{path}: holds no pictures; a RecordIO file of pictures is expected")
        distinct, numbers = np.unique(persons, return_inverse=True)
        texts = [_person(person) for person in distinct.tolist()]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        labels = rank[numbers]
        self.people = [texts[i] for i in order]
        if names is None:
            by_name = np.lexsort((*_digits(self.file.keys[places]), labels))
            self.names: Sequence[str] = Lazily(len(places), self._name)
        else:
            by_name = np.lexsort((np.argsort(np.argsort(np.array(names), kind="stable")), labels))
            self.names = [names[i] for i in by_name.tolist()]
        self.places, self.labels = places[by_name], labels[by_name]
        self.files: Sequence[str] = Lazily(len(places), self._file)

    def __len__(self) -> int:
        return len(self.places)

    def content(self, index: int) -> bytes:
        """The bytes of a picture's file."""
        return self.file.record(int(self.places[index])).image

    def image(self, index: int, resize: bool = False) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names the record."""
        place = int(self.places[index])
        return read_image(self.file.name(place), resize=resize, data=self.file.record(place).image)

    def stamp(self) -> str:
        """Sizes and dates of the file, its index and its list."""
        paths = (self.file.path.with_suffix(suffix) for suffix in (".rec", ".idx", ".tsv"))
        facts = [path.stat() for path in paths if path.exists()]
        return repr([(fact.st_size, fact.st_mtime_ns) for fact in facts])

    def _name(self, index: int) -> str:
        """As the tools that unpack such files write them, and CVLface in its lists."""
        return f"{self.people[self.labels[index]]}/{self.file.keys[self.places[index]]}.jpg"

    def _file(self, index: int) -> str:
        return self.file.name(int(self.places[index]))

    # --- whose

    def _first_identity(self) -> int | None:
        """Place of the first record behind the pictures; None in a file without a header."""
        if self.file.keys[0] != 0:
            return None
        try:
            labels, pictured = self.file.head(0)
        except OamlError:
            if not self._skip:
                raise
            return None
        if pictured or len(labels) < 2:
            return None
        if not (np.isfinite(labels[:2]).all() and 1 <= labels[0] <= labels[1]):
            raise OamlError(
                f"{self.file.name(0)}: is no header, its labels are {labels.tolist()}; copy the file anew"
            )
        stated, slack = int(labels[0]), _slack(labels[0])
        place, end = np.searchsorted(self.file.keys, (stated - slack, stated + slack)).tolist()
        while place < end and self._pictured(place, stated):
            place += 1
        if place < len(self.file) and self._pictured(place, stated):
            raise OamlError(
                f"{self.file.name(place)}: is a picture, and by the header at key 0 pictures end before it; file and index do "
                "not match, remove the index to have one made by a scan"
            )
        return place

    def _pictured(self, place: int, stated: int) -> bool:
        try:
            return self.file.head(place)[1]
        except OamlError:
            if not self._skip:
                raise
            return bool(self.file.keys[place] < stated)

    def _labelled(self, places: np.ndarray, first: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Places of the pictures and the person of each: its label, or `UNKNOWN + 1 +` the key of its identity."""
        persons = np.full(len(places), UNKNOWN)
        if first is not None:
            for identity in range(first, len(self.file)):
                self._fill(persons, identity)
        unknown = np.flatnonzero(persons == UNKNOWN).tolist()
        with progress("labels of records" if len(unknown) > MANY else None, len(unknown)) as advance:
            for i in unknown:
                persons[i] = self._own_label(int(places[i]))
                advance(1)
        known = persons != UNKNOWN
        return places[known], persons[known]

    def _own_label(self, place: int) -> int:
        """The label in the record of a picture; UNKNOWN where it is damaged and may be left out."""
        try:
            label = self._label(place, pictured=True)
        except OamlError as error:
            if not self._skip:
                raise
            self.damaged.append(str(error).rpartition("; ")[0])
            return UNKNOWN
        if label >= EXACT:
            raise OamlError(
                f"{self.file.name(place)}: has the label {label}, and float32 can't tell it from its neighbours (from {EXACT:,} "
                f"on); list the pictures in {self.file.path.with_suffix('.tsv')}, lines of key, path and label"
            )
        return label

    def _fill(self, persons: np.ndarray, identity: int) -> None:
        """Put down the person of the pictures that are surely in the range of an identity; its first and last one are looked at."""
        keys = self.file.keys
        try:
            labels, pictured = self.file.head(identity)
            if (
                pictured
                or len(labels) < 2
                or not (np.isfinite(labels[:2]).all() and 1 <= labels[0] <= labels[1])
            ):
                raise OamlError(f"{self.file.name(identity)}: is no range of an identity; {REMEDY}")
            begin, end = (int(label) for label in labels[:2])
            low, high = np.searchsorted(keys, (begin + _slack(labels[0]), end - _slack(labels[1]))).tolist()

            if low < high:
                label = self._label(low)
                if label == self._label(high - 1):
                    person = label if label < EXACT else UNKNOWN + 1 + int(keys[identity])
                    persons[low - 1 : high - 1] = person  # the header is not among them
        except OamlError as error:
            if not self._skip:
                raise
            self.damaged.append(str(error).rpartition("; ")[0])

    def _label(self, place: int, pictured: bool = False) -> int:
        labels, has_image = self.file.head(place)
        if pictured and not has_image:
            raise OamlError(f"{self.file.name(place)}: holds no image; {REMEDY}")
        if not (np.isfinite(labels[0]) and labels[0] == np.rint(labels[0])):
            raise OamlError(
                f"{self.file.name(place)}: has the label {labels[0]}; the number of a person is expected"
            )
        return int(labels[0])

    def _listed(self, path: Path, places: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Person and name of every picture by CVLface's list."""
        wrong = f"is no list of the pictures in {self.file.path}"
        rows: dict[int, tuple[str, str]] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as opened:
                for line, row in enumerate(csv.reader(opened, delimiter="\t"), 1):
                    if len(row) != 3 or not row[0].isdigit() or not row[1] or not row[2]:
                        raise OamlError(
                            f"{path}, line {line}: is not KEY, tab, PATH, tab, LABEL; {TSV_REMEDY}"
                        )
                    if int(row[0]) in rows:
                        raise OamlError(f"{path}, line {line}: lists key {row[0]} twice; {TSV_REMEDY}")
                    rows[int(row[0])] = (row[1], row[2])
        except (UnicodeDecodeError, csv.Error) as error:
            raise OamlError(f"{path}: {wrong} ({error}); {TSV_REMEDY}") from None
        except OSError as error:
            raise OamlError(f"{path}: can't be read ({error.strerror or error})") from None
        keys = self.file.keys[places].tolist()
        lacking = [str(key) for key in keys if key not in rows]
        if lacking or len(rows) != len(keys):
            foreign = [str(key) for key in rows.keys() - set(keys)]
            what = (
                f"lacks {len(lacking)} keys ({few(lacking, 10)})"
                if lacking
                else (f"lists {len(foreign)} keys that are not in it ({few(foreign, 10)})")
            )
            raise OamlError(f"{path}: {wrong}: it {what}; {TSV_REMEDY}")
        names = [rows[key][0] for key in keys]
        if len(set(names)) < len(names):
            twice = [name for name, count in Counter(names).items() if count > 1]
            raise OamlError(f"{path}: lists {len(twice)} paths twice ({few(twice, 10)}); {TSV_REMEDY}")
        persons = np.array([rows[key][1] for key in keys])
        for i in np.unique(persons, return_index=True)[1].tolist():
            label = self.file.head(int(places[i]))[0][0]
            text = str(persons[i])
            if text.lstrip("-").isdigit() and np.float32(int(text)) != label:
                raise OamlError(
                    f"{path}: {wrong}: key {keys[i]} is labelled {persons[i]}, and {label:g} in its record; {TSV_REMEDY}"
                )
        return persons, names


def _person(person: int | str) -> str:
    """What a person is called."""
    if isinstance(person, int) and person < UNKNOWN + (1 << 62):
        return f"identity {person - UNKNOWN - 1}"
    return str(person)


def _slack(number: np.float32) -> int:
    """How far the whole number that was rounded to this float32 may lie from it."""
    return int(np.spacing(number) / 2) if number >= EXACT else 0


def _digits(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys for `numpy.lexsort` that put numbers into the order of their texts: 1, 10, 2."""
    length = np.maximum(1, np.floor(np.log10(np.maximum(numbers, 1))).astype(np.int64) + 1)
    length += (10**length <= numbers).astype(np.int64) - (10 ** (length - 1) > np.maximum(numbers, 1))
    return length, numbers * 10 ** (length.max() - length)
