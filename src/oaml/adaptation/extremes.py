"""Faces of which little can be seen: hidden nearly altogether, dark, coarse, blurred, noisy, compressed to pieces.

Two such faces of strangers are similar for what was done to them. What is fitted on people held out (`adaptation.thresholds`) is
therefore also fitted on pairs in which both faces were treated in one of these ways. Crops that `photographs.usable` refuses are
left out: nothing is decided about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from oaml.photographs.usable import LEAST_USABLE, usable_each
from oaml.support.files import FACE_SIZE

Way = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""uint8 RGB [112,112,3] -> the same of what is left of it."""
FACES = 160
"""Different people that each way is tried on: 12,720 impostor pairs."""
LEAST_FACES = 20
"""Usable faces that a way must leave; with fewer it is left out."""


def spoiled(faces: list[np.ndarray], seed: int) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Every way in turn: the numbers of the faces that stay usable, and what is left of these.

    Args:
        faces: uint8 RGB [112,112,3], of different people.
        seed: of noise.
    """
    for way in WAYS.values():
        left = [way(face, np.random.default_rng([seed, i])) for i, face in enumerate(faces)]
        kept = [i for i, sure in enumerate(usable_each(left)) if sure >= LEAST_USABLE]
        if len(kept) >= LEAST_FACES:
            yield kept, [left[i] for i in kept]


def _shown(rows: slice, columns: slice) -> Way:
    def way(face: np.ndarray, _: np.random.Generator) -> np.ndarray:
        left = np.zeros_like(face)
        left[rows, columns] = face[rows, columns]
        return left

    return way


def _square(side: int) -> Way:
    def way(face: np.ndarray, _: np.random.Generator) -> np.ndarray:
        left, start = face.copy(), (FACE_SIZE - side) // 2
        left[start : start + side, start : start + side] = 0
        return left

    return way


def _levels(factor: float, middle: float = 0.0) -> Way:
    """Values brought nearer to a middle one, or further away from it."""

    def way(face: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return np.rint((face - middle) * factor + middle).clip(0, 255).astype(np.uint8)

    return way


def _reduced(side: int, smooth: int) -> Way:
    def way(face: np.ndarray, _: np.random.Generator) -> np.ndarray:
        small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (FACE_SIZE, FACE_SIZE), interpolation=smooth), np.uint8)

    return way


def _blurred(sigma: float) -> Way:
    return lambda face, _: np.asarray(cv2.GaussianBlur(face, (0, 0), sigma), np.uint8)


def _moved(wide: int, high: int) -> Way:
    return lambda face, _: np.asarray(cv2.blur(face, (wide, high)), np.uint8)


def _noisy(deviation: float) -> Way:
    def way(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (face + rng.normal(0, deviation, face.shape)).clip(0, 255).astype(np.uint8)

    return way


def _compressed(quality: int) -> Way:
    def way(face: np.ndarray, _: np.random.Generator) -> np.ndarray:
        coded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)

    return way


def _all(name: str, make: Callable[..., Way], *arguments: tuple[float, ...]) -> dict[str, Way]:
    return {f"{name} {' '.join(map(str, given))}": make(*given) for given in arguments}


WAYS: dict[str, Way] = {
    **_all("black square", _square, (50,), (65,), (75,), (85,), (93,)),
    "upper rows": _shown(slice(0, 50), slice(None)),
    "lower rows": _shown(slice(60, None), slice(None)),
    "one side": _shown(slice(None), slice(0, 50)),
    **_all("brightness", _levels, (0.11,), (0.16,), (0.22,), (0.32,)),
    **_all("contrast", _levels, (0.14, 128), (0.22, 128)),
    **_all("glare", _levels, (3.5,)),
    **_all("negative", _levels, (-1, 127.5)),
    **_all("pixels", lambda side: _reduced(side, cv2.INTER_LINEAR), (9,), (11,), (14,), (17,), (22,)),
    **_all("mosaic", lambda side: _reduced(side, cv2.INTER_NEAREST), (9,), (13,), (18,), (26,)),
    **_all("blur", _blurred, (2.2,), (3,), (3.8,)),
    **_all("motion", _moved, (17, 1), (1, 17), (25, 1)),
    **_all("noise", _noisy, (20,), (30,), (42,)),
    **_all("JPEG quality", _compressed, (2,), (4,), (8,)),
    "upside down": lambda face, _: face[::-1].copy(),
    "on its side": lambda face, _: np.rot90(face).copy(),
}
"""What is done to both faces of a pair. Classes of pictures that nobody thought of are held back by likeness to these: the
directions in which they move an embedding are few."""
