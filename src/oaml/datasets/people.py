"""Recognition images: a folder per person, or drawn people."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Protocol

import numpy as np

from oaml.errors import OamlError, few
from oaml.support.files import read_image
from oaml.support.folders import LeftOut, read_folder, summarised
from oaml.support.names import person_name

Split = Literal["train", "calibrate", "report"]


def split_of(person: str) -> int:
    """The fixed split of people, 0 to 9: SHA-1 of the folder's name (`person_name`, UTF-8) modulo 10."""
    return int(hashlib.sha1(person_name(person).encode()).hexdigest(), 16) % 10


def split_name(person: str) -> Split:
    """What a person may be used for: train (0 to 6), calibrate thresholds (7) or report (8 and 9)."""
    number = split_of(person)
    return "train" if number < 7 else "calibrate" if number == 7 else "report"


def person_of(path: str) -> str:
    """Who an image shows: the name of its folder. An image outside any folder is its own person."""
    return person_name(PurePosixPath(path.replace("\\", "/")).parent.name) or path


def group_of(path: str, groups: int) -> int:
    """Number of the shared occluder that the person of an image wears, 0 to groups - 1."""
    return int.from_bytes(hashlib.sha256(person_of(path).encode()).digest()[:8], "big") % groups


def hashed_names(people: Iterable[str]) -> list[str]:
    """Ten digits for the name of every person, as a model keeps them of those who took part in its training."""
    return sorted({hashlib.sha1(person_name(person).encode()).hexdigest()[:10] for person in people})


class PeopleReading(NamedTuple):
    """What a folder of people holds."""

    images: list[tuple[str, Path]]
    """Person (the folder's name, see `person_name`) and image, sorted; in any depth below the person's folder."""
    left_out: list[LeftOut]
    notes: list[str]
    """What may be a mistake and is taken as it is, a line each."""


def read_people(root: str | Path) -> PeopleReading:
    """Read a folder that holds a folder of images for every person, as `oaml.support.folders.read_folder` reads any.

    Raises:
        OamlError: no such folder, it can't be read, or there are no people in it.
    """
    root = Path(root)
    found = read_folder(root)
    images: list[tuple[str, Path]] = []
    left_out = list(found.left_out)
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for path in found.images:
        folder, *inside = path.relative_to(root).parts
        person = person_name(folder)
        if not inside or not person:
            remedy = f"move it to {root}/NAME/{path.name}" if person else "give the folder a name"
            left_out.append(LeftOut(path, f"lies in no person's folder; {remedy}"))
            continue
        images.append((person, path))
        folders[person].add(folder)
    if not images:
        raise OamlError(
            f"{root}: no people in it; expected {root}/NAME/*.jpg, a folder for every person (one with no images doesn't count)"
            + (f"; left out: {summarised(left_out)[0]}" if left_out else "")
        )
    notes = [
        f"{person}: has {len(names)} folders, whose names differ in how letters are stored or in spaces; taken for one person"
        for person, names in folders.items()
        if len(names) > 1
    ]
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for person in folders:
        alike[person.casefold()].append(person)
    notes += [
        f"{', '.join(people)}: differ only in capital letters and count as {len(people)} people; if they are one, use one folder"
        for people in alike.values()
        if len(people) > 1
    ]
    return PeopleReading(sorted(images), left_out, notes)


def same_files(images: Iterable[tuple[str, str, str]]) -> list[str]:
    """A line for every file that several people have.

    Args:
        images: person, path and a digest of the file.
    """
    by_digest: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for person, path, digest in images:
        by_digest[digest].setdefault(person, path)
    return [
        f"{first}: is the same file as {few(others, 3)}, of {'another person' if len(others) == 1 else 'other people'}; "
        "whose it is can't be told, so remove what is wrong"
        for first, *others in (list(paths.values()) for paths in by_digest.values())
        if others
    ]


def digested(images: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, str, str]]:
    """Person, path and SHA-256 of the files that could be of several people: of a size that files of two people have.

    Raises:
        OamlError: one can't be read.
    """
    try:
        by_size: defaultdict[int, list[tuple[str, Path]]] = defaultdict(list)
        for person, path in images:
            by_size[path.stat().st_size].append((person, path))
        for same in by_size.values():
            if len({person for person, _ in same}) > 1:
                for person, path in same:
                    yield person, str(path), hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise OamlError(f"{error.filename}: can't be read ({error.strerror}); check the path") from error


class PeopleFolder:
    """Images of people, `ROOT/PERSON/*.jpg`. A person with one image is a class and gives impostor pairs.

    Read as `read_people` does, but for images deeper than that, which are left out.

    Args:
        root: folder that holds a folder per person.
        use: which people, by folder name; None takes all.
        resize: scale images that are not 112x112 instead of refusing them.

    Raises:
        OamlError: no such folder, or no person left in it.
    """

    def __init__(
        self, root: str | Path, use: Callable[[str], bool] | None = None, resize: bool = False
    ) -> None:
        root = Path(root)
        found = read_people(root)
        deeper = [path for _, path in found.images if len(path.relative_to(root).parts) > 2]
        self.left_out = found.left_out + [
            LeftOut(path, f"lies deeper than {root}/NAME/; move it up") for path in deeper
        ]
        """Of everybody, whoever is used."""
        self.notes = found.notes
        """What may be a mistake, a line each."""
        used = [
            (person, path)
            for person, path in found.images
            if len(path.relative_to(root).parts) == 2 and (use is None or use(person))
        ]
        if not used:
            raise OamlError(
                f"{root}: no people in it that are asked for; expected {root}/NAME/*.jpg, and more people where they are split"
            )
        self.resize, self._root = resize, root
        self.people = list(dict.fromkeys(person for person, _ in used))
        self.paths = [path for _, path in used]
        number = {person: label for label, person in enumerate(self.people)}
        self.labels = np.array([number[person] for person, _ in used])
        self.names = [person_name(path.relative_to(root).as_posix()) for path in self.paths]
        """Paths below the root: what chance depends on, so that it does not matter where the folder lies."""
        self.files = [str(path) for path in self.paths]
        """What messages call the images."""

    def __len__(self) -> int:
        return len(self.paths)

    def same_files(self) -> list[str]:
        """A line for every file that several people have. Files of the same size are read.

        Raises:
            OamlError: one can't be read.
        """
        return same_files(
            digested([(self.people[n], p) for n, p in zip(self.labels, self.paths, strict=True)])
        )

    def part(self, use: Callable[[str], bool]) -> PeopleFolder:
        """Some of the people, by name."""
        mine = set(self.people)
        return PeopleFolder(self._root, lambda name: name in mine and use(name), self.resize)

    def image(self, index: int) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names an unreadable file."""
        return read_image(self.paths[index], resize=self.resize)


class DrawnFolder:
    """Drawn people with the interface of PeopleFolder, rendered once and held in memory (37 kB an image)."""

    def __init__(
        self, people: int, shots: int, seed: int = 0, use: Callable[[str], bool] | None = None
    ) -> None:
        self.people = [n for n in (f"drawn_{i:04d}" for i in range(people)) if use is None or use(n)]
        if not self.people:
            raise OamlError(f"{people} drawn people leave none in this split; draw more")
        chosen = [int(name.removeprefix("drawn_")) for name in self.people]
        self.labels = np.repeat(np.arange(len(chosen)), shots)
        self.names = [f"{name}/shot_{shot:03d}" for name in self.people for shot in range(shots)]
        self.files = self.names
        self._chosen, self._shots, self._seed = chosen, shots, seed
        self._images: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        """RGB uint8 [112,112,3]."""
        if index not in self._images:
            from oaml.datasets.drawn import draw_face

            person, shot = divmod(index, self._shots)
            self._images[index] = draw_face(self._chosen[person], shot, self._seed)
        return self._images[index]


class People(Protocol):
    """People with their images, wherever they come from."""

    @property
    def people(self) -> list[str]:
        """Names, sorted."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: number of the person in each image."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Of the images; what chance depends on. `person_of` tells from each who it is."""
        ...

    @property
    def files(self) -> Sequence[str]:
        """What messages call the images."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names what can't be read."""
        ...
