"""Occluders in materials that neither style draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from oaml.occluders.canvas import Occluded, X, Y, along
from oaml.occluders.texture import smooth_noise
from oaml.support.files import FACE_SIZE


def retexture(
    face: np.ndarray,
    occluded: Occluded,
    rng: np.random.Generator,
    photographs: Sequence[np.ndarray] = (),
) -> Occluded:
    """Give the occluder of a face another material, so that a network can't learn the drawn ones by heart.

    Real cloth, printed masks and mirrored lenses have more patterns than the two styles draw. In training a share of the occluders
    therefore gets new pixels: noise at several scales, a gradient of three colours, patches of colour, another tint of what was
    drawn, or a piece of a photograph. Most keep the light and shadow that were drawn. The mask stays as it is.

    Args:
        face: the face that was occluded, uint8 RGB [112,112,3].
        occluded: the same face with its occluder.
        rng: the only source of chance.
        photographs: uint8 RGB [112,112,3] to take pieces of; without any there are four families.
    """
    alpha = 1 - occluded.mask
    if not (alpha > 0.5).any():
        return occluded
    families = ["noise", "gradient", "cells", "tint", *(["piece"] * 2 if len(photographs) else [])]
    family = families[int(rng.integers(len(families)))]
    one, two, three = (rng.uniform(0, 255, 3) * rng.uniform(0.3, 1) for _ in range(3))
    drawn = (occluded.image - face * occluded.mask[..., None]) / np.maximum(alpha, 0.1)[..., None]
    grey = drawn.mean(2)
    level = max(float(grey[alpha > 0.5].mean()), 8.0)
    shade = np.clip(grey / level, 0.4, 1.8)[..., None]
    if family == "noise":
        field = np.zeros((FACE_SIZE, FACE_SIZE), np.float32)
        for cells in (3, 7, 15, 31, 60):
            weight = rng.uniform(0, 1)
            field += weight * smooth_noise(rng, cells, max(2, int(cells * rng.uniform(0.4, 1))))
        t = 1 / (1 + np.exp(-field * rng.uniform(1, 6)))[..., None]
        texture = one * t + two * (1 - t)
    elif family == "gradient":
        t = along(rng.uniform(0, 2 * math.pi))[..., None]
        t = (t - t.min()) / (t.max() - t.min())
        texture = np.where(t < 0.5, one + (two - one) * 2 * t, two + (three - two) * (2 * t - 1))
    elif family == "cells":
        count = int(rng.integers(6, 60))
        seeds = rng.uniform(0, FACE_SIZE, (count, 2))
        nearest = ((X[..., None] - seeds[:, 0]) ** 2 + (Y[..., None] - seeds[:, 1]) ** 2).argmin(2)
        texture = np.clip(one + rng.normal(0, rng.uniform(10, 90), (count, 3)), 0, 255)[nearest]
    elif family == "tint":
        texture = (drawn - level) * rng.uniform(0.3, 2.0) + one
        shade = np.ones_like(shade)
    else:
        photograph = photographs[int(rng.integers(len(photographs)))]
        zoom, turn = rng.uniform(0.8, 4), rng.uniform(40, 320)  # never an upright face
        matrix = cv2.getRotationMatrix2D(tuple(rng.uniform(25, 87, 2)), turn, zoom)
        texture = cv2.warpAffine(
            photograph, matrix, (FACE_SIZE, FACE_SIZE), borderMode=cv2.BORDER_REFLECT_101
        ).astype(np.float32)
        if rng.random() < 0.5:
            texture = texture[..., rng.permutation(3)] * rng.uniform(0.4, 1.1, 3)
    if rng.random() < 0.6:
        texture = texture * shade
    texture = np.clip(texture, 0, 255)
    image = np.rint(face * occluded.mask[..., None] + texture * alpha[..., None]).astype(np.uint8)
    return Occluded(image, occluded.mask)
