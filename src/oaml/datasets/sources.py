"""Where pictures of people come from: a folder, a list, records, shards or a verification set, told apart by what is there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from oaml.datasets.bin_pairs import BinPairs
from oaml.datasets.manifest import ManifestPictures
from oaml.datasets.people import PeopleFolder, person_of
from oaml.datasets.pictures import ListedPeople, Pictures, below_person
from oaml.datasets.recordio import MAGIC
from oaml.datasets.records import RecordPictures
from oaml.datasets.shards import ShardPictures
from oaml.errors import OamlError, few
from oaml.support.files import read_image
from oaml.support.folders import find, list_images
from oaml.support.names import person_name
from oaml.support.progress import progress

NAMED = 10
CHECKED_AT_ONCE = 64
COMPRESSED = (".gz", ".tgz")
GZIP = b"\x1f\x8b"
TAR = slice(257, 262)
"""Where a tar file says `ustar`."""


def people_from(
    source: str | Path,
    use: Callable[[str], bool] | None = None,
    resize: bool = False,
    skip_damaged: bool = False,
) -> PeopleFolder | ListedPeople:
    """The people of a source, for training and adapting.

    Args:
        source: a folder per person; a CSV manifest; a `.rec` file or a folder with train.rec; a tar file, a folder of tar files or
            a pattern of such.
        use: which people, by name; None takes all.
        resize: scale images that are not 112x112 instead of refusing them.
        skip_damaged: read every picture once, leave out those that can't be read, and name them on stderr.

    Raises:
        OamlError: what is wrong with the source, or no people are left.
    """
    pictures = pictures_in(source, skip_damaged)
    if isinstance(pictures, BinPairs):
        raise OamlError(
            f"{source}: is a verification set, which names nobody; give it to evaluate or score as --images"
        )
    if pictures is None and not skip_damaged:
        return PeopleFolder(source, use, resize)
    if pictures is None:
        pictures = FolderPictures(source, PeopleFolder(source).paths)
    return ListedPeople(pictures, use, resize, left_out_of(pictures) if skip_damaged else ())


def pictures_from(source: str | Path, skip_damaged: bool = False) -> Pictures:
    """The pictures of any source; of a folder all images below it.

    Raises:
        OamlError: what is wrong with the source.
    """
    pictures = pictures_in(source, skip_damaged)
    return FolderPictures(source, list_images(source)) if pictures is None else pictures


def pictures_in(source: str | Path, skip_damaged: bool = False) -> Pictures | None:
    """The pictures of any source but a folder of images, which gives None."""
    path = Path(source)
    if path.is_dir():
        if (path / "train.rec").is_file():
            return RecordPictures(path, skip_damaged)
        if _holds_shards(path):
            return ShardPictures(path, skip_damaged)
        inside = [file for file in path.iterdir() if not file.name.startswith(".")]
        archives = [file for file in sorted(inside) if file.suffix.lower() in COMPRESSED]
        if archives and not any(file.is_dir() for file in inside):
            raise _compressed(archives[0])
        return None
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(512)
        if beginning[:4] == MAGIC or path.suffix == ".rec":
            return RecordPictures(path, skip_damaged)
        if beginning[TAR] == b"ustar" or path.suffix == ".tar":
            return ShardPictures(path, skip_damaged)
        if path.suffix == ".bin":
            return BinPairs(path)
        if path.suffix.lower() == ".csv":
            return ManifestPictures(path)
        if path.suffix.lower() == ".lst":
            raise OamlError(
                f"{path}: is the list that a .rec file was made from; give {path.with_suffix('.rec').name}, or without it a .csv "
                "with the columns path and person"
            )
        if beginning[:2] == GZIP or path.suffix.lower() in COMPRESSED:
            raise _compressed(path)
        raise OamlError(
            f"{path}: is no source of pictures; give a folder, a .csv with path and person, a .rec, .tar shards or a .bin"
        )
    text = str(source)
    if path.suffix == ".rec":
        return RecordPictures(path, skip_damaged)
    if path.suffix in (".csv", ".bin"):
        raise OamlError(f"{path}: no such file")
    if path.suffix in COMPRESSED:
        raise _compressed(path)
    if path.suffix == ".tar" or "{" in text or "::" in text:
        return ShardPictures(text, skip_damaged)
    return None


def left_out_of(pictures: Pictures) -> list[int]:
    """Read every picture; places of those that can't be read. All of what is left out is counted and named on stderr."""
    failed = _failures(lambda i: pictures.image(i, resize=True), len(pictures.names))
    reasons = [*pictures.damaged, *failed.values()]
    if reasons:
        number = (
            f"{len(reasons):,} damaged pictures or parts are"
            if len(reasons) > 1
            else "a damaged picture or part is"
        )
        print(f"{pictures.source}: {number} left out: {few(reasons, NAMED)}", file=sys.stderr)
    return list(failed)


def _failures(read: Callable[[int], object], count: int) -> dict[int, str]:
    """Place -> why the picture can't be read. Threads share the work."""

    def failure(place: int) -> tuple[int, str] | None:
        try:
            read(place)
        except OamlError as error:
            return place, str(error)
        return None

    failed = {}
    with progress("checking pictures", count) as advance, ThreadPoolExecutor() as pool:
        for start in range(0, count, CHECKED_AT_ONCE):
            block = range(start, min(start + CHECKED_AT_ONCE, count))
            failed |= dict(filter(None, pool.map(failure, block)))
            advance(len(block))
    return failed


class FolderPictures:
    """Images below a folder, a source as `oaml.datasets.pictures.Pictures` describes it.

    Args:
        root: the folder, which names are relative to.
        paths: the images.
    """

    def __init__(self, root: str | Path, paths: Sequence[Path]) -> None:
        self.source, self._paths = str(root), paths
        self.names = [path.relative_to(root).as_posix() for path in paths]
        self.files = [str(path) for path in paths]
        people, self.labels = np.unique([person_of(name) for name in self.names], return_inverse=True)
        self.people: list[str] = people.tolist()
        self.damaged: list[str] = []

    def content(self, index: int) -> Path:
        """The file of a picture."""
        return self._paths[index]

    def image(self, index: int, resize: bool = False) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names the file."""
        return read_image(self._paths[index], resize=resize)

    def stamp(self) -> str:
        """Sizes and dates of the pictures."""
        facts = [(name, path.stat()) for name, path in zip(self.names, self._paths, strict=True)]
        return "".join(f"{name}\0{fact.st_size}\0{fact.st_mtime_ns}\n" for name, fact in facts)


class ByName:
    """The pictures of a source by their names, for lists that compare some of them.

    Of a folder nothing is read but what is asked for; names are paths below it.

    Raises:
        OamlError: what is wrong with the source.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        self.pictures = pictures_in(source)
        if self.pictures is None and not self.source.is_dir():
            raise OamlError(f"{source}: no such folder")
        names = [] if self.pictures is None else self.pictures.names
        self._places = {name: i for i, name in enumerate(names)}
        for i, name in enumerate(names):
            self._places.setdefault(self.below_person(name), i)
            self._places.setdefault(person_name(name), i)

    def __contains__(self, name: str) -> bool:
        """Whether a source other than a folder holds the picture."""
        return name in self._places or person_name(name) in self._places

    def _place(self, name: str) -> int:
        return self._places[name if name in self._places else person_name(name)]

    def image(self, name: str, resize: bool = False) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names what can't be read.

        Args:
            name: of the picture, as it is or as `below_person` gives it.
            resize: scale an image that is not 112x112 instead of refusing it.
        """
        if self.pictures is None:
            return read_image(find(self.source, name), resize=resize)
        return self.pictures.image(self._place(name), resize)

    def below_person(self, name: str) -> str:
        """The name as if the picture lay in the folder of its person, whom `person_of` then tells."""
        if self.pictures is None:
            return name
        return below_person(name, self.pictures.people[self.pictures.labels[self._place(name)]])

    def pairs(self) -> tuple[list[str], list[str], list[bool]] | None:
        """The pairs that a verification set brings, as `BinPairs.pairs` gives them."""
        return self.pictures.pairs() if isinstance(self.pictures, BinPairs) else None

    def damaged(self, names: Iterable[str]) -> dict[str, str]:
        """Which pictures can't be read, and why."""
        asked = sorted(set(names))
        failed = _failures(lambda i: self.image(asked[i], resize=True), len(asked))
        return {asked[i]: reason for i, reason in failed.items()}


def is_source(path: str | Path) -> bool:
    """Whether a path is a folder or another source of pictures, and no file of templates."""
    path = Path(path)
    if not path.is_file() or path.suffix.lower() in (".csv", ".rec", ".tar", ".bin", ".lst", *COMPRESSED):
        return True
    with path.open("rb") as file:
        beginning = file.read(512)
    return beginning[:4] == MAGIC or beginning[TAR] == b"ustar"


def _compressed(path: Path) -> OamlError:
    return OamlError(
        f"{path}: is compressed, so that no picture in it can be found without reading all before it; unpack it once with "
        "gzip -d, and give the .tar"
    )


def _holds_shards(folder: Path) -> bool:
    """Whether a folder has tar files and no folders in it."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return any(path.suffix == ".tar" for path in inside) and not any(path.is_dir() for path in inside)
