"""Verification sets as InsightFace publishes them, `lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`: pairs of images in one file.

A file is a pickle of two lists, the images' files, two for each pair, and whether the pair is one person; some have a third list
between them, the angles of the heads. It is read by `oaml.support.inert`, which runs nothing.

The file names nobody. Images of the same bytes are one image, and people are what the genuine pairs connect, so that intervals are
not those of thousands of people who are hundreds.

Source: InsightFace, `recognition/arcface_torch/eval/verification.py` (`load_bin`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oaml.datasets.pictures import Lazily
from oaml.errors import OamlError
from oaml.support.files import read_image
from oaml.support.inert import Array, Machine, Refused


class BinPairs:
    """The images of a `.bin` file, a source as `oaml.datasets.pictures.Pictures` describes it, and its pairs.

    Raises:
        OamlError: no such file, another kind of file, or one that holds anything else than bytes, lists and booleans.
    """

    def __init__(self, source: str | Path) -> None:
        self.source, path = str(source), Path(source)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise OamlError(f"{path}: no such file") from None
        except OSError as error:
            raise OamlError(f"{path}: can't be read ({error.strerror or error})") from None
        facts = path.stat()
        self._stamp = repr((facts.st_size, facts.st_mtime_ns))
        try:
            images, same = _lists(Machine(content).run())
        except Refused as error:
            raise OamlError(
                f"{path}: is no verification set: {error}; a pickle of a list of images and a list of booleans is expected"
            ) from None
        place = {image: i for i, image in reversed(list(enumerate(images)))}
        first = np.array([place[image] for image in images])  # of the images with the same bytes
        self.same = same
        owner = _connected(first, same)
        kept, self._name_of = np.unique(first, return_inverse=True)
        people, labels = np.unique(owner[kept], return_inverse=True)
        self.people = [f"person_{owner:05d}" for owner in people.tolist()]
        order = np.lexsort((kept, labels))
        self.labels, self._first = labels[order], kept[order]
        self._images = [images[i] for i in self._first.tolist()]
        self._place = np.empty(len(order), np.int64)
        self._place[order] = np.arange(len(order))
        self.names = [self._name(i) for i in range(len(order))]
        self.files = Lazily(len(order), self._file)
        self.damaged: list[str] = []

    def __len__(self) -> int:
        return len(self._images)

    def content(self, index: int) -> bytes:
        """The bytes of a picture's file."""
        return self._images[index]

    def image(self, index: int, resize: bool = False) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names the image by its place in the file."""
        return read_image(self.files[index], resize=resize, data=self._images[index])

    def stamp(self) -> str:
        """Size and date of the file."""
        return self._stamp

    def pairs(self) -> tuple[list[str], list[str], list[bool]]:
        """Names of the first and of the second images, and whether they show one person; in the order of the file."""
        names = [self.names[i] for i in self._place[self._name_of].tolist()]
        return names[::2], names[1::2], self.same

    def _file(self, index: int) -> str:
        return f"{self.source}, image {self._first[index]}"

    def _name(self, index: int) -> str:
        pair, side = divmod(int(self._first[index]), 2)
        return f"{self.people[self.labels[index]]}/pair_{pair + 1:05d}_{'ab'[side]}.jpg"


def _lists(value: object) -> tuple[list[bytes], list[bool]]:
    """The two lists in the value that a file holds."""
    if not isinstance(value, tuple | list) or len(value) not in (2, 3):
        raise Refused("it is no pair of lists")
    images, same = value[0], value[-1]
    if not isinstance(images, list | tuple) or not isinstance(same, list | tuple):
        raise Refused("it is no pair of lists")
    files = [image.content if isinstance(image, Array) else image for image in images]
    for i, image in enumerate(files):
        if not isinstance(image, bytes):
            raise Refused(f"image {i} is no bytes")
    for i, label in enumerate(same):
        if not isinstance(label, bool):
            raise Refused(f"label {i} is no boolean")
    if len(images) != 2 * len(same) or not same:
        raise Refused(f"it holds {len(images)} images and {len(same)} labels, two images a label are needed")
    return files, list(same)  # type: ignore[arg-type]


def _connected(first: np.ndarray, same: list[bool]) -> np.ndarray:
    """The number of the person in every image: the smallest of the images that genuine pairs connect it with."""
    owner = np.arange(len(first))

    def root(image: int) -> int:
        while owner[image] != image:
            owner[image] = owner[owner[image]]
            image = int(owner[image])
        return image

    for pair in np.flatnonzero(same).tolist():
        a, b = root(int(first[2 * pair])), root(int(first[2 * pair + 1]))
        owner[max(a, b)] = min(a, b)
    return np.array([root(int(image)) for image in first])
