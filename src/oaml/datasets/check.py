"""The pictures of a training set looked at before the first step: all that can't be used are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from oaml.datasets.masked import MaskedFolder
from oaml.errors import OamlError
from oaml.support.files import check_face, read_image
from oaml.support.progress import progress

Check = Literal["fast", "full", "off"]
NAMED = 10  # of the pictures that can't be used
BLOCK = 512  # pictures that the threads get at a time
Picture = Path | tuple[MaskedFolder, int]


def check_pictures(
    faces: Sequence[Path], masked: Sequence[MaskedFolder], how: Check, resize: bool = False, show: bool = True
) -> None:
    """Look at all pictures of a training set.

    Args:
        faces: aligned faces.
        masked: images with masks.
        how: fast reads the beginning of every file, which tells its size; full decodes every picture; off does nothing.
        resize: pictures may have any size.
        show: a progress bar.

    Raises:
        OamlError: the picture that can't be used, with the reason; of several the number, and the first ten with their reasons.
    """
    if how == "off":
        return

    def fault(picture: Picture) -> OamlError | None:
        try:
            if isinstance(picture, Path):
                (read_image if how == "full" else check_face)(picture, resize=resize)
            else:
                folder, index = picture
                (folder.pair if how == "full" else folder.check)(index)
        except OamlError as error:
            return error
        return None

    count, bad, first = len(faces) + sum(map(len, masked)), 0, list[OamlError]()
    pictures: Iterator[Picture] = chain(faces, ((folder, i) for folder in masked for i in range(len(folder))))
    with progress("checking images" if show else None, count) as advance, ThreadPoolExecutor() as threads:
        while block := list(islice(pictures, BLOCK)):
            faults = [error for error in threads.map(fault, block) if error is not None]
            bad += len(faults)
            first += faults[: NAMED - len(first)]
            advance(len(block))
    if bad == 1:
        raise first[0]
    if bad:
        named = ", ".join(str(error).rsplit("; ", 1)[0] for error in first)
        more = f" and {bad - len(first):,} more" if bad > len(first) else ""
        raise OamlError(f"{bad:,} of {count:,} images can't be used: {named}{more}; mend or remove them")
