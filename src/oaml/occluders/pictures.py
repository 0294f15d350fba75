"""Pictures of masks with a transparent surround, worn in place of drawn masks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from oaml.errors import OamlError
from oaml.occluders.canvas import MID, TWICE, Canvas, X, pose
from oaml.support.files import FACE_SIZE
from oaml.support.folders import list_images
from oaml.support.images import read_cutout


def load_mask_pictures(folder: str | Path) -> list[np.ndarray]:
    """Pictures of masks with a transparent surround, for `occlude(..., mask_pictures=...)`.

    Returns:
        One uint8 RGBA [H,W,4] per picture, in the order of their names, cut to the opaque part.

    Raises:
        OamlError: no folder, no picture in it, an unreadable one, or one not partly transparent.
    """
    pictures = []
    for path in list_images(folder):
        picture = read_cutout(path)
        if picture[..., 3].min() == 255:
            raise OamlError(
                f"{path}: has no transparent pixels; cut the mask out and save it as PNG with alpha"
            )
        if picture[..., 3].max() < 128:
            raise OamlError(f"{path}: is transparent everywhere; remove it")
        pictures.append(cropped(picture))
    return pictures


def fit_picture(rng: np.random.Generator, canvas: Canvas, picture: np.ndarray) -> None:
    """Warp the opaque box of a mask picture onto the lower face."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 4 or picture[..., 3].max() < 128:
        raise OamlError(
            f"a picture of a mask is uint8 RGBA [H,W,4] with opaque pixels, this is {picture.dtype} {list(picture.shape)}"
        )
    # Colours weighted by opacity, so that what a picture holds under its transparent pixels can't bleed in.
    rgba = cropped(picture).astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    shrink = 2.0 * FACE_SIZE / max(rgba.shape[:2])
    if shrink < 1:
        rgba = cv2.resize(rgba, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        rgba = np.ascontiguousarray(rgba[:, ::-1])
    height, width = rgba.shape[:2]
    place = pose(rng, turn=3.0)
    left, right = MID - rng.uniform(38, 46), MID + rng.uniform(38, 46)
    top, bottom = rng.uniform(57, 66), rng.uniform(109, 119)
    corners = place(
        [(left, top), (right, top), (right - rng.uniform(0, 3), bottom), (left + rng.uniform(0, 3), bottom)]
    )
    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - 0.5
    matrix = cv2.getPerspectiveTransform(source, (corners * TWICE + 0.5).astype(np.float32))
    drawn = cv2.warpPerspective(rgba, matrix, (FACE_SIZE * TWICE,) * 2)
    drawn = cv2.resize(drawn, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
    light = 1 + rng.uniform(-0.15, 0.1) + rng.uniform(-0.15, 0.15) * (X / MID - 1)
    alpha = drawn[..., 3] / 255
    canvas.add(alpha, drawn[..., :3].transpose(2, 0, 1) / np.maximum(alpha, 1e-3) * light)


def cropped(picture: np.ndarray) -> np.ndarray:
    """The box of what is more than faintly opaque."""
    x, y, width, height = cv2.boundingRect((picture[..., 3] > 8).astype(np.uint8))
    return picture[y : y + height, x : x + width]
