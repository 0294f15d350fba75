"""What occluders are drawn with: a canvas, and outlines and lines on it.

All positions are pixels of the 112x112 five-point template: eyes (38.3, 51.7) and (73.5, 51.5),
nose (56, 71.7), mouth corners (41.5, 92.4) and (70.7, 92.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import cv2
import numpy as np

from oaml.support.files import FACE_SIZE

Style = Literal["a", "b"]
STYLES: tuple[Style, ...] = ("a", "b")

TWICE = 2  # outlines are drawn at twice the size and averaged down: two pixels of anti-aliasing
MID = 56.0
X, Y = np.meshgrid(np.arange(FACE_SIZE, dtype=np.float32), np.arange(FACE_SIZE, dtype=np.float32))


class Occluded(NamedTuple):
    """An occluded face.

    Attributes:
        image: uint8 RGB [112,112,3], equal to `face * mask + occluder * (1 - mask)` rounded; where the mask is
            1 the face's own pixels, bit for bit.
        mask: float32 [112,112], 1 where the face shows and 0 where the occluder hides it, in steps of 1/255,
            so that an 8-bit file holds it exactly.
    """

    image: np.ndarray
    mask: np.ndarray


class Canvas:
    """An occluder in the making: opacity [112,112] in [0,1] and colour [3,112,112] (0..255) times it.

    Colours are planar throughout, a single one is [3,1,1]: so they broadcast against maps, and fast.
    """

    def __init__(self) -> None:
        self.alpha = np.zeros((FACE_SIZE, FACE_SIZE), np.float32)
        self.colour = np.zeros((3, FACE_SIZE, FACE_SIZE), np.float32)

    def add(self, alpha: np.ndarray, colour: np.ndarray | float) -> None:
        """Lay another piece on top."""
        keep = 1 - alpha
        self.colour = self.colour * keep + colour * alpha
        self.alpha = self.alpha * keep + alpha

    def paint(self, alpha: np.ndarray, colour: np.ndarray | float) -> None:
        """Colour what is there already, without covering more: hems, pleats, reflections."""
        self.colour = self.colour * (1 - alpha) + colour * (alpha * self.alpha)

    def over(self, face: np.ndarray) -> Occluded:
        """The face, uint8 RGB [112,112,3], with what was drawn on top."""
        # Opacity in steps of 1/255 first, and the colour to match it: the mask that is returned, or saved
        # with 8 bits, is then the one that was used.
        steps = np.rint(np.clip(self.alpha, 0, 1) * 255)
        alpha = (steps / 255).astype(np.float32)
        colour = self.colour / np.maximum(self.alpha, 1e-6)
        colour = np.clip(colour, 0, 255) * alpha
        mask = ((255 - steps) / 255).astype(np.float32)
        image = np.rint(face * mask[..., None] + colour.transpose(1, 2, 0)).astype(np.uint8)
        return Occluded(image, mask)


def filled(outlines: Iterable[np.ndarray], holes: Iterable[np.ndarray] = ()) -> np.ndarray:
    """Opacity [112,112] of outlines (each filled on its own) less the holes."""
    sheet = np.zeros((FACE_SIZE * TWICE,) * 2, np.uint8)
    for value, shapes in ((255, outlines), (0, holes)):
        for shape in shapes:
            cv2.fillPoly(sheet, [fixed_point(shape)], value, cv2.LINE_AA, 4)
    return averaged_down(sheet)


def stroked(lines: Iterable[np.ndarray], width: float, *, closed: bool = False) -> np.ndarray:
    """Opacity [112,112] of lines, `width` in pixels of the face."""
    sheet = np.zeros((FACE_SIZE * TWICE,) * 2, np.uint8)
    for line in lines:
        cv2.polylines(sheet, [fixed_point(line)], closed, 255, max(1, round(width * TWICE)), cv2.LINE_AA, 4)
    return averaged_down(sheet)


def fixed_point(points: np.ndarray) -> np.ndarray:
    """Face pixels -> the doubled sheet, in sixteenths of a pixel as OpenCV's `shift=4` wants them."""
    return np.rint((points * TWICE + 0.5) * 16).astype(np.int32)


def averaged_down(sheet: np.ndarray) -> np.ndarray:
    """The doubled sheet, uint8 -> [112,112] in [0,1]."""
    small = cv2.resize(sheet, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """A map [112,112], softened by `sigma` pixels."""
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def pose(rng: np.random.Generator, amount: float = 1.0, turn: float = 2.5) -> Callable[..., np.ndarray]:
    """How this occluder sits: a little roll, scale and shift; a turn of the head moves the middle sideways."""
    angle, scale = np.radians(rng.normal(0, 3 * amount)), 1 + rng.normal(0, 0.03 * amount)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    shift = rng.normal(0, 1.5 * amount, 2)
    sideways = rng.normal(0, turn)

    def place(points: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
        p = np.asarray(points, np.float64) - (MID, 64.0)
        p = p + np.stack([sideways * (1 - np.minimum((p[:, 0] / 56) ** 2, 1)), np.zeros(len(p))], axis=1)
        return p @ matrix + (MID, 64.0) + shift

    return place


def moved(points: np.ndarray | Sequence[Sequence[float]], x: float, y: float) -> np.ndarray:
    """Points [N,2], all shifted by (x, y)."""
    return np.asarray(points, np.float64) + np.array([x, y])


def mirrored(right: Sequence[Sequence[float]]) -> np.ndarray:
    """Half an outline as (distance from the middle, y), top to bottom -> the whole outline, clockwise."""
    half = np.asarray(right, np.float64)
    left = half[::-1] * (-1, 1)
    return moved(np.concatenate([half, left]), MID, 0)


def along(angle: float) -> np.ndarray:
    """Distance in pixels along a direction, [112,112]."""
    return math.cos(angle) * X + math.sin(angle) * Y


def curve(
    points: np.ndarray | Sequence[Sequence[float]], *, closed: bool = True, steps: int = 6
) -> np.ndarray:
    """A smooth line through points: Catmull-Rom, float64 [steps * N, 2] (open: [steps * (N - 1) + 1, 2])."""
    p = np.asarray(points, np.float64)
    if closed:
        around = np.concatenate([p[-1:], p, p[:2]])
    else:
        around = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    count = len(around) - 3
    line = np.matmul(_basis(steps), around[_fours(count)]).reshape(-1, 2)
    return line if closed else np.concatenate([line, p[-1:]])


@lru_cache
def _fours(count: int) -> np.ndarray:
    return np.arange(count)[:, None] + np.arange(4)


@lru_cache
def _basis(steps: int) -> np.ndarray:
    t = np.arange(steps)[:, None] / steps
    powers = np.concatenate([np.ones_like(t), t, t**2, t**3], axis=1)
    return powers @ (np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2)


@lru_cache
def circle(count: int = 24) -> np.ndarray:
    """Points of the unit circle, [count,2]."""
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)
