"""Crops without a usable face: squares, walls, noise, text, pieces of pictures without people, faces of which nothing is left.

Everything is drawn from a generator of the caller's; uint8 RGB [112,112,3].
"""

from __future__ import annotations

import cv2
import numpy as np

from oaml.occluders import Occluded, retexture
from oaml.support.files import FACE_SIZE

FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
)
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-    "))
ROWS = 12
"""Rows that are left of a face of which next to nothing is left."""


def colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 255, 3)


def _as_picture(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(np.broadcast_to(values, (FACE_SIZE, FACE_SIZE, 3)), 0, 255)).astype(np.uint8)


def square(rng: np.random.Generator) -> np.ndarray:
    """Black, white, grey or of one colour; half of them with the noise of a sensor."""
    level = [np.zeros(3), np.full(3, 255.0), np.full(3, rng.uniform(0, 255)), colour(rng)][
        int(rng.integers(4))
    ]
    noise = rng.normal(0, rng.uniform(1, 8), (FACE_SIZE, FACE_SIZE, 3)) if rng.random() < 0.5 else 0
    return _as_picture(level + noise)


def wall(rng: np.random.Generator) -> np.ndarray:
    """Light that falls on a plain wall, with the noise of a sensor; some with plaster, tiles or boards."""
    y, x = np.mgrid[:FACE_SIZE, :FACE_SIZE] / FACE_SIZE
    turn = rng.uniform(0, 2 * np.pi)
    light = np.cos(turn) * x + np.sin(turn) * y
    if rng.random() < 0.4:
        light = -np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1))
    picture = colour(rng) + light[..., None] * rng.uniform(-120, 120) * rng.uniform(0.7, 1.3, 3)
    kind = rng.integers(4)
    if kind == 1:
        plaster = cv2.GaussianBlur(rng.normal(0, 1, (FACE_SIZE, FACE_SIZE)), (0, 0), rng.uniform(0.7, 3))
        picture = picture + plaster[..., None] / plaster.std() * rng.uniform(3, 20)
    elif kind > 1:
        high, wide, gap = int(rng.integers(6, 50)), int(rng.integers(10, 90)), int(rng.integers(1, 4))
        rows = np.arange(FACE_SIZE)[:, None] + np.zeros(FACE_SIZE, int)
        columns = np.arange(FACE_SIZE) + (rows // high % 2) * (wide // 2) * (kind == 2)
        seam = (rows % high < gap) | ((columns % wide < gap) & (kind == 2))
        picture = np.where(seam[..., None], colour(rng), picture)
    return _as_picture(picture + rng.normal(0, rng.uniform(0.5, 6), (FACE_SIZE, FACE_SIZE, 3)))


def noise(rng: np.random.Generator) -> np.ndarray:
    """White, coloured or smooth noise of any grain."""
    channels = 1 if rng.random() < 0.4 else 3
    side = FACE_SIZE if rng.random() < 0.4 else int(rng.integers(3, FACE_SIZE))
    values = (
        rng.uniform(0, 1, (side, side, channels))
        if rng.random() < 0.5
        else 0.5 + 0.25 * rng.normal(0, 1, (side, side, channels))
    )
    smooth = cv2.INTER_CUBIC if rng.random() < 0.6 else cv2.INTER_NEAREST
    values = cv2.resize(values, (FACE_SIZE, FACE_SIZE), interpolation=smooth).reshape(
        FACE_SIZE, FACE_SIZE, -1
    )
    low, high = (colour(rng), colour(rng)) if rng.random() < 0.5 else (np.zeros(3), np.full(3, 255.0))
    return _as_picture(low + values * (high - low))


def text(rng: np.random.Generator) -> np.ndarray:
    """A few lines of letters on paper or a sign."""
    picture = _as_picture(colour(rng) * rng.uniform(0, 0.3) + rng.choice([0, 190])).copy()
    ink = 255 - picture[0, 0].astype(float) if rng.random() < 0.7 else colour(rng)
    size, y = rng.uniform(0.3, 2.5), 0.0
    font = FONTS[int(rng.integers(len(FONTS)))]
    while y < FACE_SIZE + 20:
        y += 34 * size * rng.uniform(0.8, 1.2)
        line = "".join(rng.choice(LETTERS, 30))
        place = (int(rng.integers(-20, 20)), int(y))
        cv2.putText(picture, line, place, font, size, ink.tolist(), max(1, round(size * 2)), cv2.LINE_AA)
    return picture


def piece(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of a picture, uint8 RGB or RGBA [H,W,...], from all of its smaller side down to a third; RGBA on any ground."""
    height, width = picture.shape[:2]
    side = max(8, int(min(height, width) * rng.uniform(0.35, 1)))
    y, x = (int(rng.integers(0, length - side + 1)) for length in (height, width))
    part = picture[y : y + side, x : x + side].astype(np.float32)
    if part.shape[2] == 4:
        alpha = part[..., 3:] / 255
        part = part[..., :3] * alpha + colour(rng) * (1 - alpha)
    smooth = cv2.INTER_AREA if side > FACE_SIZE else cv2.INTER_LINEAR
    return _as_picture(cv2.resize(part, (FACE_SIZE, FACE_SIZE), interpolation=smooth))


def squared(picture: np.ndarray) -> np.ndarray:
    """In the middle of a square; transparent or black around it."""
    height, width = picture.shape[:2]
    side = max(height, width)
    whole = np.zeros((side, side, picture.shape[2]), np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    whole[y : y + height, x : x + width] = picture
    return whole


# --- faces of which nothing is left


def hiding(face: np.ndarray, hidden: np.ndarray, rng: np.random.Generator, black: bool) -> np.ndarray:
    """A face behind something opaque, black or of any colour and material, where `hidden` [112,112] is True."""
    picture = np.where(hidden[..., None], 0 if black else colour(rng), face).astype(np.uint8)
    if black or rng.random() < 0.3:
        return picture
    return retexture(face, Occluded(picture, (~hidden).astype(np.float32)), rng).image


def all_hidden(face: np.ndarray, rng: np.random.Generator, black: bool = False) -> np.ndarray:
    return hiding(face, np.ones((FACE_SIZE, FACE_SIZE), bool), rng, black)


def all_but_rows(face: np.ndarray, rng: np.random.Generator, black: bool = False) -> np.ndarray:
    """All but 12 rows at the bottom hidden."""
    hidden = np.ones((FACE_SIZE, FACE_SIZE), bool)
    hidden[-ROWS:] = False
    return hiding(face, hidden, rng, black)


def dim(face: np.ndarray, rng: np.random.Generator, share: float | None = None) -> np.ndarray:
    """At 4 % of its brightness, or at 2 to 10."""
    share = float(np.exp(rng.uniform(np.log(0.02), np.log(0.1)))) if share is None else share
    return np.rint(face * share).astype(np.uint8)


def coarse(face: np.ndarray, rng: np.random.Generator, side: int | None = None) -> np.ndarray:
    """Reduced to 4x4 pixels, or to 3 to 9, and enlarged again."""
    side = int(rng.integers(3, 10)) if side is None else side
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    smooth = (
        cv2.INTER_LINEAR if rng.random() < 0.7 else [cv2.INTER_NEAREST, cv2.INTER_CUBIC][int(rng.integers(2))]
    )
    return cv2.resize(small, (FACE_SIZE, FACE_SIZE), interpolation=smooth)
