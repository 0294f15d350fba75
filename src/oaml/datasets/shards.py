"""WebDataset shards: tar files whose members are grouped into samples by the name before the first point.

A sample is a picture (`NAME.jpg`, or another ending of an image) with its person: `NAME.json` with the key `person` (or `label` or
`cls`), or `NAME.cls` or `NAME.txt` with nothing else in it, or the folder that `NAME` lies in. The `webdataset` package says which
files a pattern means and which members belong together, so that this reads what its own loaders read. It would read one sample
after the other; training asks for any picture at any time, so the members' places are noted once and read from there. Neither
addresses nor pipes, which that package would open, are opened here.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from oaml.datasets.pictures import Lazily, below_person, by_person
from oaml.errors import OamlError, few
from oaml.support.files import read_image
from oaml.support.formats import READABLE

PERSON_KEYS = ("person", "label", "cls")
MOST_TEXT = 1 << 20
"""Bytes of a member that says who a picture shows."""


class Member(NamedTuple):
    """A picture in a shard."""

    shard: int
    place: int
    """Byte where it begins."""
    size: int
    name: str
    """Of the member, within its shard."""


class ShardPictures:
    """The pictures of shards; a source as `oaml.datasets.pictures.Pictures` describes it.

    Args:
        source: a tar file, a folder of tar files, or a pattern as `shards/{000..009}.tar`, several with `::` between them.
        skip_damaged: leave out what lies behind a damage in a shard.

    Raises:
        OamlError: missing or damaged shards, an address, a picture whose person is not stated.
    """

    def __init__(self, source: str | Path, skip_damaged: bool = False) -> None:
        self.source = str(source)
        self.damaged: list[str] = []
        self._shards = _expanded(self.source)
        missing = [str(shard) for shard in self._shards if not shard.is_file()]
        if missing:
            number = f"{len(missing):,} shards are" if len(missing) > 1 else "a shard is"
            raise OamlError(
                f"{self.source}: {number} missing: {few(missing, 10)}; add them or correct the pattern"
            )
        members: list[tuple[Member, str]] = []
        for number, shard in enumerate(self._shards):
            try:
                members += _members(number, shard)
            except Broken as broken:
                if not skip_damaged:
                    raise OamlError(
                        f"{broken}; copy it anew, or leave what follows out with --skip_damaged"
                    ) from None
                members += broken.before
                self.damaged.append(f"{broken} and what follows")
        if not members:
            raise OamlError(
                f"{self.source}: holds no pictures; samples such as 000001.jpg with 000001.cls are expected"
            )
        several = (
            max(Counter(member.name for member, _ in members).values()) > 1
        )  # names that count in every shard anew
        place: dict[str, Member] = {}
        for member, person in members:
            shard = self._shards[member.shard]
            name = below_person(f"{shard.name}/{member.name}" if several else member.name, person)
            if name in place:
                raise OamlError(
                    f"{shard}, {member.name}: is there twice as a picture of {person}; rename one"
                )
            place[name] = member
        persons = [person for _, person in members]
        self.names, self.people, self.labels = by_person(list(zip(place, persons, strict=True)))
        """PERSON/NAME; the member's own name where it lies in a folder of its person."""
        self._members = [place[name] for name in self.names]
        self.files: Sequence[str] = Lazily(len(self.names), self._file)
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def image(self, index: int, resize: bool = False) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names the shard and the member."""
        return read_image(self.files[index], resize=resize, data=self.content(index))

    def content(self, index: int) -> bytes:
        """The bytes of a picture's file."""
        member = self._members[index]
        shard = self._shards[member.shard]
        try:
            if member.shard not in self._descriptors:
                self._descriptors[member.shard] = os.open(shard, os.O_RDONLY)
            return os.pread(self._descriptors[member.shard], member.size, member.place)
        except OSError as error:
            raise OamlError(f"{shard}: can't be read ({error.strerror or error})") from None

    def stamp(self) -> str:
        """Sizes and dates of the shards."""
        facts = [(str(shard), shard.stat()) for shard in self._shards]
        return repr([(name, fact.st_size, fact.st_mtime_ns) for name, fact in facts])

    def _file(self, index: int) -> str:
        member = self._members[index]
        return f"{self._shards[member.shard]}, {member.name}"


class Broken(Exception):
    """What is wrong with a shard, and where.

    Args:
        what: one line.
        before: the samples before it.
    """

    def __init__(self, what: str, before: list[tuple[Member, str]]) -> None:
        super().__init__(what)
        self.before = before


def _expanded(source: str) -> list[Path]:
    """The files that a pattern means."""
    if Path(source).is_dir():
        return sorted(Path(source).glob("*.tar"))
    if Path(source).is_file():
        return [Path(source)]
    from webdataset.shardlists import expand_urls  # pyright: ignore[reportMissingImports]

    try:
        shards = expand_urls(source)
    except (AssertionError, ValueError) as error:
        raise OamlError(
            f"{source}: is no pattern of shards ({error}); write as shards/{{000..009}}.tar"
        ) from None
    for shard in shards:
        if ":" in shard.partition("/")[0]:
            raise OamlError(f"{shard}: is an address, and only files are read; download it and name the file")
    return [Path(shard) for shard in shards]


def _members(number: int, shard: Path) -> list[tuple[Member, str]]:
    """Pictures and their people, in the order of the shard.

    Raises:
        Broken: it is no tar file, or damaged.
        OamlError: no person is stated, or two are.
    """
    found: list[tuple[Member, str]] = []
    size = shard.stat().st_size
    if not size:
        raise Broken(f"{shard}: is empty; a tar file is expected", found)
    try:
        with tarfile.open(shard, "r:") as tar:
            for key, fields in _samples(tar):
                picture = next((name for name in READABLE if name[1:] in fields), None)
                if picture is None:
                    continue
                info = fields[picture[1:]]
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                texts = {
                    name: _text(tar, fields[name], shard) for name in ("json", "cls", "txt") if name in fields
                }
                person = _person(f"{shard}, {info.name}", key, texts)
                name = info.name.removeprefix("./")
                found.append((Member(number, info.offset_data, info.size, name), person))
            _check_end(tar, shard)
    except tarfile.TarError as error:
        after = f" after {found[-1][0].name}" if found else ""
        raise Broken(f"{shard}: is damaged{after}, or no uncompressed tar file ({error})", found) from None
    except OSError as error:
        raise OamlError(f"{shard}: can't be read ({error.strerror or error})") from None
    return found


def _check_end(tar: tarfile.TarFile, shard: Path) -> None:
    """Raise where zeros don't follow the last member: `tarfile` takes a damaged head, or no head at all, for the end."""
    with shard.open("rb") as file:
        file.seek(tar.offset)
        head = file.read(tarfile.BLOCKSIZE)
    if len(head) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
    if any(head):
        raise tarfile.ReadError(f"no member begins at byte {tar.offset}")


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring members of one name before the first point, by what follows it in lower case."""
    from webdataset.tariterators import base_plus_ext  # pyright: ignore[reportMissingImports]

    key, fields = "", dict[str, tarfile.TarInfo]()
    for info in tar:
        name, ending = base_plus_ext(info.name)
        if (
            name is None
            or ending is None
            or not info.isreg()
            or PurePosixPath(info.name).name.startswith("__")
        ):
            continue
        if name != key and fields:
            yield key, fields
            fields = {}
        key = name
        if (ending := ending.lower()) in fields:
            raise tarfile.ReadError(f"{info.name} is there twice")
        fields[ending] = info
    if fields:
        yield key, fields


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo, shard: Path) -> str:
    if info.size > MOST_TEXT:
        raise OamlError(
            f"{shard}, {info.name}: has {info.size:,} bytes and should name a person; remake the shard"
        )
    opened = tar.extractfile(info)
    assert opened is not None  # a regular file
    try:
        return opened.read().decode("utf-8").strip()
    except UnicodeDecodeError:
        raise OamlError(f"{shard}, {info.name}: is no UTF-8 text; remake the shard") from None


def _person(file: str, key: str, texts: dict[str, str]) -> str:
    """Who a picture shows."""
    person: object = None
    if "json" in texts:
        try:
            content = json.loads(texts["json"])
        except (ValueError, RecursionError):
            raise OamlError(f"{file}: its .json is no JSON; remake the shard") from None
        if isinstance(content, dict):
            person = next((content[name] for name in PERSON_KEYS if name in content), None)
    if person is None:
        person = texts.get("cls") or texts.get("txt")
    if person is None:
        person = PurePosixPath(key).parent.name or None
    if not isinstance(person, str | int) or isinstance(person, bool) or not str(person).strip():
        raise OamlError(
            f"{file}: says not who it shows; add NAME.cls with the person, or NAME.json with the key person"
        )
    return str(person).strip()
