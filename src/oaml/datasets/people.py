"""Recognition images: a folder per person, or drawn people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from oaml.errors import OamlError
from oaml.support.files import READABLE, read_image

Split = Literal["train", "calibrate", "report"]


def split_of(person: str) -> int:
    """The fixed split of people, 0 to 9: SHA-1 of the folder's name (UTF-8) modulo 10."""
    return int(hashlib.sha1(person.encode()).hexdigest(), 16) % 10


def split_name(person: str) -> Split:
    """What a person may be used for: train (0 to 6), calibrate thresholds (7) or report (8 and 9)."""
    number = split_of(person)
    return "train" if number < 7 else "calibrate" if number == 7 else "report"


def person_of(path: str) -> str:
    """Who an image shows: the name of its folder. An image outside any folder is its own person."""
    return PurePosixPath(path.replace("\\", "/")).parent.name or path


def group_of(path: str, groups: int) -> int:
    """Number of the shared occluder that the person of an image wears, 0 to groups - 1."""
    return int.from_bytes(hashlib.sha256(person_of(path).encode()).digest()[:8], "big") % groups


def hashed_names(people: Iterable[str]) -> list[str]:
    """Ten digits for the name of every person, as a model keeps them of those who took part in its training."""
    return sorted({hashlib.sha1(person.encode()).hexdigest()[:10] for person in people})


class PeopleFolder:
    """Images of people, `ROOT/PERSON/*.jpg`. A person with one image is a class and gives impostor pairs.

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
        if not root.is_dir():
            raise OamlError(f"{root}: no such folder; people are expected as {root}/PERSON/*.jpg")
        self.resize = resize
        self.people: list[str] = []
        self.paths: list[Path] = []
        labels: list[int] = []
        for person in sorted(p for p in root.iterdir() if p.is_dir()):
            if use is not None and not use(person.name):
                continue
            images = sorted(p for p in person.iterdir() if p.suffix.lower() in READABLE and p.is_file())
            if images:
                self.paths += images
                labels += [len(self.people)] * len(images)
                self.people.append(person.name)
        if not self.people:
            raise OamlError(
                f"{root}: no people in it; expected {root}/PERSON/*.jpg (folders without images do not count)"
            )
        self.labels = np.array(labels)
        self.names = [path.relative_to(root).as_posix() for path in self.paths]
        """Paths below the root: what chance depends on, so that it does not matter where the folder lies."""
        self.files = [str(path) for path in self.paths]
        """What messages call the images."""

    def __len__(self) -> int:
        return len(self.paths)

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


People = PeopleFolder | DrawnFolder
