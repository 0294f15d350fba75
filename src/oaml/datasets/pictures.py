"""What every source of pictures gives, be it a folder, a list, records or shards; and the people in it.

A source is a class with the members of `Pictures`. Its pictures come by person and name, both in the order of their characters, as
those of a folder per person do, so that the same pictures give the same numbers whatever they lie in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from oaml.datasets.people import person_of
from oaml.errors import OamlError
from oaml.support.names import person_name


class Lazily(Sequence[str]):
    """Texts that are made when they are asked for: a set may have tens of millions.

    Args:
        count: how many.
        text: place -> text.
    """

    def __init__(self, count: int, text: Callable[[int], str]) -> None:
        self._count, self._text = count, text

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._text(i) for i in range(self._count)[index]]
        return self._text(range(self._count)[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Pictures(Protocol):
    """The pictures of a source."""

    @property
    def source(self) -> str:
        """As it was given, for messages."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Unique; paths below the root where there is one. What lists call a picture, and what chance depends on."""
        ...

    @property
    def files(self) -> Sequence[str]:
        """What messages call the pictures."""
        ...

    @property
    def people(self) -> list[str]:
        """Sorted."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: number of the person in each picture."""
        ...

    @property
    def damaged(self) -> list[str]:
        """What was left out when the source was opened, where that is allowed."""
        ...

    def content(self, index: int) -> Path | bytes:
        """The file of a picture: where it is or, within another file, what it holds."""
        ...

    def image(self, index: int, resize: bool = False) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names what can't be read."""
        ...

    def stamp(self) -> str:
        """Another one when anything in the source is written to."""
        ...


class ListedPeople:
    """People of a source, or of some of its pictures, with the interface of `PeopleFolder`.

    Args:
        pictures: of which source.
        use: which people, by name; None takes all.
        resize: scale images that are not 112x112 instead of refusing them.
        left_out: places of pictures that do not count.

    Raises:
        OamlError: no person is left.
    """

    def __init__(
        self,
        pictures: Pictures,
        use: Callable[[str], bool] | None = None,
        resize: bool = False,
        left_out: Sequence[int] = (),
    ) -> None:
        self.pictures, self.resize, self._left_out = pictures, resize, left_out
        used = np.array([use is None or use(person) for person in pictures.people], bool)[pictures.labels]
        used[list(left_out)] = False
        self.places = np.flatnonzero(used)
        if not len(self.places):
            raise OamlError(f"{pictures.source}: no people in it, or none in this split; add some")
        chosen, self.labels = np.unique(pictures.labels[self.places], return_inverse=True)
        self.people = [pictures.people[person] for person in chosen.tolist()]
        self.names = Lazily(len(self), self._name)
        self.files = Lazily(len(self), self._file)

    def __len__(self) -> int:
        return len(self.places)

    def part(self, use: Callable[[str], bool]) -> ListedPeople:
        """Some of the people, by name."""
        mine = set(self.people)
        return ListedPeople(
            self.pictures, lambda name: name in mine and use(name), self.resize, self._left_out
        )

    def content(self, index: int) -> Path | bytes:
        """The file of a picture: where it is or, within another file, what it holds."""
        return self.pictures.content(int(self.places[index]))

    def image(self, index: int) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names what can't be read."""
        return self.pictures.image(int(self.places[index]), self.resize)

    def _name(self, index: int) -> str:
        return below_person(self.pictures.names[int(self.places[index])], self.people[self.labels[index]])

    def _file(self, index: int) -> str:
        return self.pictures.files[int(self.places[index])]


def below_person(name: str, person: str) -> str:
    """The name of a picture as if it lay in the folder of its person, from which `person_of` tells who it is."""
    if person_of(name) == person:
        return name
    return f"{person.replace('/', '_')}/{name.replace('/', '%2F')}"


def by_person(pictures: list[tuple[str, str]]) -> tuple[list[str], list[str], np.ndarray]:
    """(name, person) of every picture, in any order -> names by person and name, the people, and the label of every name."""
    named = [(name, person_name(person)) for name, person in pictures]
    ordered = sorted(named, key=lambda picture: (picture[1], picture[0]))
    people, labels = np.unique(np.array([person for _, person in ordered], object), return_inverse=True)
    return [name for name, _ in ordered], people.tolist(), labels
