"""The pictures of a training set looked at before the first step: all that can't be used are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Literal

from oaml.datasets.masked import MaskedFolder
from oaml.datasets.people import DrawnFolder, People
from oaml.datasets.pictures import ListedPeople
from oaml.errors import OamlError
from oaml.support.files import FACE_SIZE, read_image
from oaml.support.images import stated_size
from oaml.support.progress import progress

Check = Literal["fast", "full", "off"]
NAMED = 10  # of the pictures that can't be used
BLOCK = 512  # pictures that the threads get at a time


def check_pictures(
    people: Sequence[People],
    clean: Sequence[Path],
    masked: Sequence[MaskedFolder],
    how: Check,
    resize: bool = False,
    show: bool = True,
) -> None:
    """Look at all pictures of a training set.

    Args:
        people: who trains and who validates; drawn people are no pictures.
        clean: more aligned faces.
        masked: images with masks.
        how: fast reads the beginning of every file, and decodes it only where that tells of a fault or nothing at all; full decodes
            every picture; off does nothing.
        resize: pictures may have any size.
        show: a progress bar.

    Raises:
        OamlError: the picture that can't be used, with the reason; of several the number, and the first ten with their reasons.
    """
    people = [source for source in people if not isinstance(source, DrawnFolder)]
    count = sum(map(len, [*people, clean, *masked]))
    if how == "off" or not count:
        return

    def looks() -> Iterator[Callable[[], object]]:
        """What to do with every picture."""
        read = partial(read_image, resize=resize)
        for source in people:
            for i, file in enumerate(source.files):
                if isinstance(source, ListedPeople):
                    yield partial(_look_within, source, i, how, resize)
                else:
                    yield partial(_look, partial(source.image, i), how, [(file, resize)])
        for path in clean:
            yield partial(_look, partial(read, path), how, [(path, resize)])
        for folder in masked:
            for i, (image, mask) in enumerate(zip(folder.paths, folder.mask_paths, strict=True)):
                yield partial(_look, partial(folder.pair, i), how, [(image, resize), (mask, None)])

    bad, first = 0, list[OamlError]()
    waiting = looks()
    with progress("checking images" if show else None, count) as advance, ThreadPoolExecutor() as threads:
        while block := list(islice(waiting, BLOCK)):
            faults = [error for error in threads.map(_fault, block) if error is not None]
            bad += len(faults)
            first += faults[: NAMED - len(first)]
            advance(len(block))
    if bad == 1:
        raise first[0]
    if bad:
        named = ", ".join(str(error).rsplit("; ", 1)[0] for error in first)
        more = f" and {bad - len(first):,} more" if bad > len(first) else ""
        raise OamlError(f"{bad:,} of {count:,} images can't be used: {named}{more}; mend or remove them")


def _fault(look: Callable[[], object]) -> OamlError | None:
    try:
        look()
    except OamlError as error:
        return error
    return None


def _look_within(source: ListedPeople, index: int, how: Check, resize: bool) -> None:
    """As `_look`, of a picture that may lie within another file."""
    if how == "full" or not _seems_right(source.content(index), resize):
        source.image(index)


def _look(read: Callable[[], object], how: Check, files: Sequence[tuple[str | Path, bool | None]]) -> None:
    """Read a picture, unless its files need only a look and it finds nothing.

    Args:
        read: reads the picture, and raises OamlError where it can't be used.
        how: fast or full.
        files: each with whether it may have another size than a face; None wants a square.
    """
    if how == "full" or not all(_seems_right(path, resize) for path, resize in files):
        read()


def _seems_right(path: str | Path | bytes, resize: bool | None) -> bool:
    """Whether a file says of itself that it is an image of the size that is wanted; what can't be told isn't."""
    size = stated_size(BytesIO(path) if isinstance(path, bytes) else path)
    if size is None:
        return False
    return size[0] == size[1] if resize is None else resize or size == (FACE_SIZE, FACE_SIZE)
