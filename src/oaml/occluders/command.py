"""A folder of faces to the same faces occluded, with their masks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from oaml.errors import OamlError
from oaml.occluders.api import Occluder, check_kind
from oaml.occluders.canvas import Style
from oaml.occluders.harvested import HARVESTED, load_harvested
from oaml.occluders.pictures import load_mask_pictures
from oaml.support.files import check_empty, png_names, read_image, write_file
from oaml.support.folders import need_images, read_folder, say_left_out
from oaml.support.names import readable
from oaml.support.progress import progress


def occlude_folder(
    folder: Path,
    *,
    kind: str,
    out: Path,
    seed: int = 0,
    style: Style = "a",
    mask_pictures: Path | None = None,
    occluders_from: Path | None = None,
    resize: bool = False,
) -> None:
    """Cover every image below a folder and write the occluded images with their exact masks.

    `OUT/images/NAME.png` is the occluded face, `OUT/masks/NAME.png` its mask (grey, 255 where the face shows);
    NAME is the path below `folder` without its suffix. An occluder depends on the seed, the kind and the
    image's path below `folder`, not on the other images. All images are read before the first is written, and a
    mask is written before its image, so an image always has its mask.

    Args:
        folder: aligned faces, 112x112, in any depth of folders.
        kind: niqab, mask, sunglasses, scarf, hand or patch; or harvested.
        out: a new or an empty folder.
        seed: another seed, other occluders.
        style: a or b, two disjoint families of occluders: tune on one, judge on the other.
        mask_pictures: folder of mask pictures with alpha, for kind mask.
        occluders_from: folder of occluders, for kind harvested (`occluders.harvested`).
        resize: scale images of another size instead of refusing them.

    Raises:
        OamlError: a wrong option, an `out` that holds files, an unreadable image (named), or two images that
            would be written under one name.
    """
    folder, out = Path(folder), Path(out)
    if occluders_from is not None and kind != HARVESTED:
        raise OamlError(
            f"--occluders_from: only kind {HARVESTED} takes them and kind is {kind!r}; leave them out or choose {HARVESTED}"
        )
    harvested = None if occluders_from is None else load_harvested(occluders_from)
    check_kind(kind, style, harvested)
    if mask_pictures is not None and kind != "mask":
        raise OamlError(
            f"--mask_pictures: only kind mask takes them and kind is {kind!r}; leave them out or choose mask"
        )
    check_empty(out)
    pictures = load_mask_pictures(mask_pictures) if mask_pictures is not None else []
    occluder = Occluder(seed, style, pictures, harvested=harvested)
    found = need_images(folder, read_folder(folder))
    names = png_names(folder, found.images)
    say_left_out(found.left_out)
    for path in names.values():
        read_image(path, resize=resize)
    with progress("occluding", len(names)) as advance:
        for name, path in names.items():
            occluded = occluder(
                read_image(path, resize=resize), kind, readable(str(path.relative_to(folder)))
            )
            _write_png(out / "masks" / name, np.rint(occluded.mask * 255).astype(np.uint8))
            _write_png(out / "images" / name, occluded.image[..., ::-1])
            advance(1)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Write grey or BGR uint8 as PNG."""
    written, data = cv2.imencode(".png", pixels)
    if not written:
        raise OamlError(f"{path}: could not be encoded as PNG")
    write_file(path, lambda temporary: temporary.write_bytes(data.tobytes()))
