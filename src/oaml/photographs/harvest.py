"""Photographs of occluded people to occluders that others can wear."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from oaml.datasets.masked import MaskedFolder, Unlabelled
from oaml.errors import OamlError
from oaml.inference import as_input
from oaml.occluders.cutout import cut_out
from oaml.occluders.harvested import Found
from oaml.occluders.outline import outline
from oaml.photographs.usable import LEAST_USABLE, no_usable_face, usable
from oaml.support.files import png_names, read_image
from oaml.support.folders import LeftOut, need_images, read_folder
from oaml.support.names import readable
from oaml.support.progress import progress

if TYPE_CHECKING:
    from oaml.model import Model

LEAST_HIDDEN, MOST_HIDDEN = 0.03, 0.9
"""Share of the crop that an occluder hides. A strand of hair is too little to learn from; a niqab leaves the eyes, a tenth."""
LEAST_AGREEMENT = 0.65
"""Of `outline` with the predicted map: below it the two tell of different things, or of nothing clear."""

DETAILS = 28
SAME_PHOTOGRAPH = 0.8
"""Correlation of the details of two crops from which on they are one photograph. Of 378 faces from the web 119 pairs are above,
copies and retouched copies, down to .858; the next pair, of two people, has .728."""
COPY = "is a copy of a photograph that counts already"

Harvest = tuple[list[Found], list[LeftOut]]


def from_masks(folder: Path, resize: bool = False, unlabelled: Unlabelled = "fail") -> Harvest:
    """Occluders of photographs whose visibility is known.

    Args:
        folder: in a layout of `datasets.masked.MaskedFolder`.
        resize: scale images that are not 112x112 instead of refusing them.
        unlabelled: as of MaskedFolder.

    Returns:
        the occluders, and which images gave none, with the reason.

    Raises:
        OamlError: the layout, an unreadable file, or a mask of other proportions than its image.
    """
    masked = MaskedFolder(folder, resize, unlabelled)
    images = folder / ("kept_faces" if (folder / "kept_faces").is_dir() else "images")

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray | str]]:
        return (masked.pair(i) for i in range(len(masked)))

    found, left_out = _cut_out(images, masked.paths, pairs(), "mask")
    lines = [LeftOut(folder, masked.left_out.partition(": ")[2])] if masked.left_out else []
    return found, lines + left_out


def from_predictions(folder: Path, model: Model, resize: bool = False) -> Harvest:
    """Occluders of photographs of which a model has to say what is hidden.

    Args:
        folder: aligned faces, in any depth of folders.
        model: in eval mode; its map at the finest resolution that it has, averaged with that of the mirror image.
        resize: scale images of another size instead of refusing them.

    Returns, Raises: as of `from_masks`. Left out are also crops without a usable face, and those whose colours do not bear out the
    predicted map (`occluders.outline`).
    """
    reading = need_images(folder, read_folder(folder))
    png_names(folder, reading.images)  # raises where two have one name

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray | str]]:
        for path in reading.images:
            image = read_image(path, resize=resize)
            sure = usable(image)
            if sure < LEAST_USABLE:
                yield image, no_usable_face(sure)
                continue
            mask, agreement = outline(image, predicted(model, image))
            unclear = mask.min() < 1 and agreement < LEAST_AGREEMENT
            yield image, "the outline of its occluder is not clear" if unclear else mask

    found, left_out = _cut_out(folder, reading.images, pairs(), "predicted")
    return found, reading.left_out + left_out


def predicted(model: Model, image: np.ndarray) -> np.ndarray:
    """Visibility of an aligned face, uint8 RGB [112,112,3], as a model predicts it, float32 [h,w] in [0,1]."""
    import torch

    face = as_input([image], model.device)
    with torch.inference_mode():
        own, mirrored = model(torch.cat([face, face.flip(3)])).fine[:, 0].cpu()
    return ((own + mirrored.flip(1)) / 2).numpy()


def need_occluders(folder: Path, harvest: Harvest) -> None:
    """Raise OamlError where a folder gave no occluder."""
    found, left_out = harvest
    if not found:
        reason = f"; {left_out[0].path.name}: {left_out[0].reason}" if left_out else ""
        raise OamlError(f"{folder}: gives no occluder{reason}; add photographs of occluded faces")


def _cut_out(
    folder: Path,
    paths: Sequence[Path],
    pairs: Iterator[tuple[np.ndarray, np.ndarray | str]],
    visibility: Literal["mask", "predicted"],
) -> Harvest:
    """Cut the occluders out of images, each given with its mask or with the reason why it has none.

    Of a photograph that is there several times the first counts: under other names its copies could be both trained and judged on.
    """
    found: list[Found] = []
    left_out: list[LeftOut] = []
    photograph = _photographs(folder, paths)
    known = np.zeros((len(paths), DETAILS**2), np.float32)
    with progress("cutting out", len(paths)) as advance:
        for path, (image, mask) in zip(paths, pairs, strict=True):
            advance(1)
            if isinstance(mask, str):
                left_out.append(LeftOut(path, mask))
                continue
            cutout = cut_out(image, mask)
            if not LEAST_HIDDEN <= cutout.hidden <= MOST_HIDDEN:
                much = "little" if cutout.hidden < LEAST_HIDDEN else "much"
                left_out.append(LeftOut(path, f"too {much} of it is hidden"))
                continue
            own, mirrored = _details(image), _details(image[:, ::-1])
            alike = np.maximum(known[: len(found)] @ own, known[: len(found)] @ mirrored)
            if alike.max(initial=0) > SAME_PHOTOGRAPH:
                left_out.append(LeftOut(path, COPY))
                continue
            known[len(found)] = own
            inside = path.relative_to(folder)
            kind = readable(inside.parts[0]) if len(inside.parts) > 1 else ""
            found.append(Found(cutout, readable(inside.as_posix()), photograph(path), kind, visibility))
    return found, left_out


def _details(image: np.ndarray) -> np.ndarray:
    """What tells a photograph from others, whatever its light: its details at 28x28, float32 [784] of length 1."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (DETAILS, DETAILS), interpolation=cv2.INTER_AREA)
    fine = (small - cv2.GaussianBlur(small, (0, 0), 2)).ravel()
    return fine / max(float(np.linalg.norm(fine)), 1e-6)


def _photographs(folder: Path, paths: Sequence[Path]) -> Callable[[Path], str]:
    """What the photograph of an image is called: its path below the folder without its suffix.

    `NAME_2.png` beside `NAME.png` is the second face of the photograph NAME, as `oaml align --all` writes it.
    """
    names = {path.with_suffix("") for path in paths}

    def photograph(path: Path) -> str:
        name = path.with_suffix("")
        first = name.with_name(re.sub(r"_[0-9]+$", "", name.name) or name.name)
        return readable((first if first in names else name).relative_to(folder).as_posix())

    return photograph
