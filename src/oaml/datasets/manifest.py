"""A list of pictures and their people: CSV with the columns `path,person`, paths relative to the file itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from oaml.datasets.pictures import Lazily, by_person
from oaml.errors import OamlError, few
from oaml.support.files import read_image
from oaml.support.rows import rows

NAMED = 10
"""Pictures that a message names; it counts all of them."""


class ManifestPictures:
    """The pictures of a CSV manifest; a source as `oaml.datasets.pictures.Pictures` describes it. Further columns are ignored.

    Raises:
        OamlError: as `rows`; an empty value; pictures that are listed twice or missing, all counted and the first ten named.
    """

    def __init__(self, source: str | Path) -> None:
        self.source, file = str(source), Path(source)
        listed: dict[str, str] = {}
        places, twice = set[str](), dict[str, int]()
        for line, row in rows(file, ("path", "person"), ("path", "person")):
            for column, value in row.items():
                if not value:
                    raise OamlError(f"{file}, line {line}: {column} is empty; fill it in or remove the line")
            if (place := os.path.normpath(row["path"])) in places:
                twice.setdefault(row["path"], line)
            places.add(place)
            listed.setdefault(row["path"], row["person"])
        if not listed:
            raise OamlError(f"{file}: holds no pictures below its header; write one line for each")
        _refuse(file, list(twice), "listed twice", "list each once")
        missing = [path for path in listed if not (file.parent / path).is_file()]
        _refuse(
            file, missing, "missing", "add them, remove their lines, or check what the paths are relative to"
        )
        self._root = file.parent
        self.names, self.people, self.labels = by_person(list(listed.items()))
        self.files = Lazily(len(self.names), self._file)
        self.damaged: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    def content(self, index: int) -> Path:
        """The file of a picture."""
        return Path(self.files[index])

    def image(self, index: int, resize: bool = False) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names the file."""
        return read_image(self.files[index], resize=resize)

    def _file(self, index: int) -> str:
        return str(self._root / self.names[index])

    def stamp(self) -> str:
        """Sizes and dates of the pictures."""
        facts = [(name, (self._root / name).stat()) for name in self.names]
        return repr([(name, fact.st_size, fact.st_mtime_ns) for name, fact in facts])


def _refuse(file: Path, paths: list[str], what: str, remedy: str) -> None:
    if paths:
        number = f"{len(paths):,} pictures are" if len(paths) > 1 else "a picture is"
        raise OamlError(f"{file}: {number} {what}: {few(paths, NAMED)}; {remedy}")
