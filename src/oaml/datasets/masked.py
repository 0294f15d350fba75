"""Occluded faces with ground-truth visibility masks: the published niqab layout and the generic one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from oaml.errors import OamlError
from oaml.support.files import FACE_SIZE, read_image, read_mask
from oaml.support.folders import list_images

Unlabelled = Literal["fail", "skip"]
REMEDY = "add it, or use the others with --unlabelled skip (oaml train: --data.unlabelled skip)"


class MaskedFolder:
    """Images with masks, white (1) where the face shows; masks may be binary or continuous, 8 or 16 bit, of any size.

    Two layouts: `ROOT/images/NAME.EXT` with `ROOT/masks/NAME.EXT`, or `ROOT/kept_faces/NAME.EXT` with
    `ROOT/masks/NAME_mask.png` (as niqab data is published). Subfolders are kept apart by their relative path.

    Args:
        root: the folder.
        resize: scale images that are not 112x112 instead of refusing them.
        unlabelled: an image without a mask, or a mask without an image, is refused (fail) or left out (skip).

    Raises:
        OamlError: neither layout, an image without a mask or a mask without an image (named), a folder without any pair.
    """

    def __init__(self, root: str | Path, resize: bool = False, unlabelled: Unlabelled = "fail") -> None:
        root = Path(root)
        published = (root / "kept_faces").is_dir()
        images_folder, masks_folder = root / ("kept_faces" if published else "images"), root / "masks"
        for folder in (images_folder, masks_folder):
            if not folder.is_dir():
                raise OamlError(
                    f"{folder}: no such folder; masks come as images/ + masks/ or kept_faces/ + masks/"
                )
        self.resize = resize
        images = _by_name(images_folder, "")
        masks = _by_name(masks_folder, "_mask" if published else "")
        lonely_images, lonely_masks = (
            sorted(images.keys() - masks.keys()),
            sorted(masks.keys() - images.keys()),
        )
        if lonely_images and unlabelled == "fail":
            raise OamlError(
                f"{images[lonely_images[0]]}: image without a mask in {masks_folder}{_more(lonely_images)}; {REMEDY}"
            )
        if lonely_masks and unlabelled == "fail":
            raise OamlError(
                f"{masks[lonely_masks[0]]}: mask without an image in {images_folder}{_more(lonely_masks)}; {REMEDY}"
            )
        names = sorted(images.keys() & masks.keys())
        if not names:
            raise OamlError(
                f"{root}: no image has a mask; that of {images_folder}/NAME.EXT is "
                f"{masks_folder}/NAME{'_mask.png' if published else '.EXT'}"
            )
        counts = (_counted(lonely_images, "image", "a mask"), _counted(lonely_masks, "mask", "an image"))
        self.left_out = f"{root}: {' and '.join(filter(None, counts))} left out" if any(counts) else ""
        """What is left out, as `niqab: 3 images without a mask left out`; empty where nothing is."""
        self.paths = [images[name] for name in names]
        self.mask_paths = [masks[name] for name in names]
        self.files = [str(path) for path in self.paths]
        """What messages call the images."""

    def __len__(self) -> int:
        return len(self.paths)

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """RGB uint8 [112,112,3] and its visibility float32 [112,112] in [0,1].

        Raises:
            OamlError: a file is unreadable, or the mask has other proportions than its image (it belongs to another crop).
        """
        image, mask = read_image(self.paths[index], resize=self.resize), read_mask(self.mask_paths[index])
        if mask.shape[0] != mask.shape[1]:
            raise OamlError(
                f"{self.mask_paths[index]}: is {mask.shape[1]}x{mask.shape[0]}, the proportions differ from its square image "
                f"{self.paths[index]}; make the mask of the same crop"
            )
        return image, fit_mask(mask, FACE_SIZE)


def fit_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Square mask -> [size,size], keeping the share of every region that shows (area average down, repetition up)."""
    if mask.shape[0] == size:
        return mask
    interpolation = cv2.INTER_AREA if mask.shape[0] > size else cv2.INTER_NEAREST
    return cv2.resize(mask, (size, size), interpolation=interpolation)


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Relative name without suffix and without `ending` -> path; a file without that ending keeps its own name."""
    paths: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        name = name.removesuffix(ending) if ending else name
        if name in paths:
            raise OamlError(f"{path}: has the same name as {paths[name]}; rename one")
        paths[name] = path
    return paths


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _counted(names: list[str], what: str, missing: str) -> str:
    return f"{len(names):,} {what}{'s' if len(names) > 1 else ''} without {missing}" if names else ""
