"""An occluder cut out of a photograph of somebody who wears it, and laid on somebody else's face.

Both faces are aligned to the same template, so that an occluder that stays where it was lies where it belongs.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from oaml.occluders.canvas import MID, Canvas, Occluded, X, Y, blurred
from oaml.support.files import FACE_SIZE

SOFT = 0.7
"""Pixels that the edge of a mask of two values is softened by (standard deviation): such a mask is a staircase."""
OWN = 0.98
"""Opacity from which a pixel's colour is taken to be the occluder's own; below, the face shines through and it is replaced."""
LEAST_SEEN = 60.0
"""Pixels of the face that light is measured on at least; with fewer the occluder keeps the light of its photograph."""
WHITE = 235.0
"""Brightness up to which an occluder is lit on the average: its folds shall not drown in white."""
FACE = np.exp(-((((X - MID) / 38) ** 2 + ((Y - 70) / 48) ** 2) ** 3)).astype(np.float32)
"""Weight of a pixel when light is measured: 1 on the face of the template and 0 on what surrounds it."""


class Light(NamedTuple):
    """How the visible part of a face is lit."""

    mean: tuple[float, float, float]
    """RGB, 0 to 255."""
    contrast: float
    """Standard deviation of the brightness, 0 to 128."""


class Cutout(NamedTuple):
    """An occluder without the face that it was worn on."""

    rgba: np.ndarray
    """uint8 [112,112,4]; opacity 255 where it hides the face. The colours go on where it is not opaque, so that no other
    colour comes in at the edge, wherever the occluder is moved."""
    light: Light | None
    """Of the face that it was worn on; None where too little of that showed."""

    @property
    def hidden(self) -> float:
        """The share of the crop that it hides."""
        return float(self.rgba[..., 3].mean() / 255)


def cut_out(image: np.ndarray, visibility: np.ndarray) -> Cutout:
    """Cut out what hides a face, softly along the mask.

    Args:
        image: aligned face, uint8 RGB [112,112,3].
        visibility: float32 [112,112], 1 where the face shows. One with values between is taken as it is, to 1/255; the edge of
            one of two values is softened by `SOFT`.
    """
    hidden = 1 - np.clip(visibility, 0, 1).astype(np.float32)
    if np.isin(hidden, (0, 1)).all():
        hidden = blurred(hidden, SOFT)
    alpha = np.rint(hidden * 255).astype(np.uint8)
    return Cutout(np.dstack([_continued(image, hidden), alpha]), light_of(image, 1 - hidden))


def _continued(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The image with the occluder's own colours where the face shows or shines through, uint8 RGB."""
    solid = hidden >= OWN
    # The outermost pixel of an occluder is mixed with what is beside it. What is too narrow to have an inside, such as the
    # frame of glasses, keeps its own.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inside = cv2.erode(solid.astype(np.uint8), cross, borderType=cv2.BORDER_REPLICATE)
    beside = cv2.dilate(inside, np.ones((5, 5), np.uint8))
    own = (inside == 1) | (solid & (beside == 0))
    if not own.any():
        own = hidden == hidden.max()
    other = (~own).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(other, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    labels = np.asarray(nearest, int)
    colour_of = np.zeros((labels.max() + 1, 3), np.float32)
    colour_of[labels[own]] = image[own]
    filled = colour_of[labels]
    # the nearest colour alone makes streaks
    smooth = cv2.GaussianBlur(filled, (0, 0), 1.5, borderType=cv2.BORDER_REPLICATE)
    return np.rint(np.where(own[..., None], filled, smooth)).astype(np.uint8)


def light_of(image: np.ndarray, visibility: np.ndarray) -> Light | None:
    """The light on the visible part of an aligned face; None where that is less than `LEAST_SEEN` pixels."""
    weight = visibility * FACE
    total = float(weight.sum())
    if total < LEAST_SEEN:
        return None
    weight = weight.ravel() / total
    pixels = image.reshape(-1, 3).astype(np.float32)
    grey = pixels.mean(1)
    red, green, blue = (float(value) for value in weight @ pixels)
    return Light((red, green, blue), float(np.sqrt(weight @ (grey - weight @ grey) ** 2)))


def lay(face: np.ndarray, cutout: Cutout, rng: np.random.Generator) -> Occluded:
    """Lay an occluder on a face: a little moved, turned and scaled, mirrored half of the time, in the light of the face.

    The mask depends on the occluder and on `rng` alone; the colours depend on the face as well.

    Args:
        face: uint8 RGB [112,112,3]; it is not modified.
    """
    rgba = cutout.rgba[:, ::-1] if rng.random() < 0.5 else cutout.rgba
    matrix = cv2.getRotationMatrix2D((MID, 64), rng.normal(0, 2), 1 + rng.normal(0, 0.03))
    matrix[:, 2] += rng.normal(0, 1.5, 2)
    # what reaches the edge of its photograph goes on beyond it
    moved = cv2.warpAffine(
        np.ascontiguousarray(rgba), matrix, (FACE_SIZE, FACE_SIZE), borderMode=cv2.BORDER_REPLICATE
    ).astype(np.float32)
    alpha = moved[..., 3] / 255
    colour = relit(moved[..., :3], alpha, cutout.light, light_of(face, 1 - alpha))
    canvas = Canvas()
    canvas.add(alpha, colour.transpose(2, 0, 1))
    return canvas.over(face)


def relit(colour: np.ndarray, alpha: np.ndarray, light: Light | None, wanted: Light | None) -> np.ndarray:
    """An occluder's colours in another light, float32 [112,112,3].

    Two faces differ in brightness and in tint by the light and by the skin, and nothing tells how much by which. So the occluder
    follows a part of the way: its brightness and its contrast change by the square root of the ratio of the faces', its tint by the
    fourth root, for a white mask that takes the colour of a skin looks wrong first.

    Args:
        colour: float32 [112,112,3], 0 to 255.
        alpha: its opacity, float32 [112,112].
        light, wanted: of the face that it was worn on, and of that which it is laid on; without both the colours stay.
    """
    if light is None or wanted is None:
        return colour
    ratio = (np.array(wanted.mean, np.float32) + 8) / (np.array(light.mean, np.float32) + 8)
    brightness = (sum(wanted.mean) + 24) / (sum(light.mean) + 24)
    gain = np.clip(brightness**0.5 * (ratio / brightness) ** 0.25, 0.5, 2)
    spread = float(np.clip(((wanted.contrast + 4) / (light.contrast + 4)) ** 0.5, 0.7, 1.4))
    mean = (colour * alpha[..., None]).sum((0, 1)) / max(float(alpha.sum()), 1e-3)
    gain = np.minimum(gain, max(1.0, WHITE / (float(mean.max()) + 1)))
    return ((colour - mean) * spread + mean) * gain
