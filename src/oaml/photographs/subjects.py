"""The faces of a photograph that are large enough to be compared, and each cut out by the landmarks that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.errors import OamlError
from oaml.photographs.align import similarity, warp
from oaml.photographs.detect import LEAST_EYES, Detector, Face, find_detector
from oaml.support.files import FACE_SIZE, Image, name_of, read_photograph

if TYPE_CHECKING:
    from oaml.model import Model

LEAST_WEIGHT = 0.1
"""Of a landmark that is occluded, against 1 of one that shows."""


def trust(crop: np.ndarray, matrix: np.ndarray, landmarks: np.ndarray, model: Model) -> np.ndarray:
    """How much of each landmark shows, by the model's visibility map of the aligned face: [5], from `LEAST_WEIGHT` to 1.

    Beneath an occluder a landmark is a guess, under a niqab the worst; `studies/alignment.py` measured what weights are worth.

    Args:
        crop: uint8 RGB [112,112,3], as `warp` cut it with `matrix`.
        landmarks: [5,2], pixels of the photograph.
    """
    import cv2

    from oaml.inference import as_input

    cells = model.extract(as_input([crop], model.device)).visibility[0, 0].float().cpu().numpy()
    shown = cv2.resize(cells, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR)
    placed = np.rint(landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(int).clip(0, FACE_SIZE - 1)
    return shown[placed[:, 1], placed[:, 0]].astype(np.float64).clip(LEAST_WEIGHT, 1)


def align(photograph: np.ndarray, face: Face, model: Model | None = None) -> np.ndarray:
    """Cut one face out of a photograph: by its landmarks, then moved to where the face lies by what the crop shows (`refine.py`).

    Args:
        photograph: uint8 RGB [H,W,3].
        face: as `oaml.photographs.detect.Detector.find` gives it.
        model: weighs landmarks by what it says is visible; None takes all five the same.

    Returns:
        uint8 RGB [112,112,3].
    """
    from oaml.photographs.refine import refined

    matrix = similarity(face.landmarks)
    if model is not None:
        matrix = similarity(face.landmarks, trust(warp(photograph, matrix), matrix, face.landmarks, model))
    return warp(photograph, refined(photograph, matrix))


@dataclass(frozen=True)
class Subject:
    """Who a photograph is of."""

    photograph: np.ndarray
    """uint8 RGB [H,W,3], upright."""
    face: Face | None
    """None for a face that is aligned already: the photograph is the face."""
    faces: int = 1
    """Faces in the photograph, this one included."""

    def crop(self, model: Model | None = None) -> np.ndarray:
        """The aligned face, uint8 RGB [112,112,3]; see `align`."""
        return self.photograph if self.face is None else align(self.photograph, self.face, model)


def find_subjects(image: Image, detector: Detector | None) -> list[Subject]:
    """The faces of one photograph that are large enough to be compared, the largest and surest first; one at least.

    An image of 112x112 pixels is an aligned face and needs no detector.

    Raises:
        OamlError: an unreadable file, no detector, no face, or too small a face.
    """
    photograph, path = read_photograph(image), name_of(image)
    height, width = photograph.shape[:2]
    if is_aligned(photograph):
        return [Subject(photograph, None)]
    if detector is None:
        raise OamlError(
            f"{path}: is {width}x{height}, an aligned face is {FACE_SIZE}x{FACE_SIZE}; to find the face in a photograph, get a "
            "detector with `oaml download yunet` or name its file with --detector"
        )
    faces = detector.find(photograph)
    if not faces:
        raise OamlError(
            f"{path}: no face found; use a sharper or closer photograph, or a face aligned to {FACE_SIZE}x{FACE_SIZE}"
        )
    subjects = large_enough(photograph, faces)
    if not subjects:
        raise OamlError(
            f"{path}: the face is too small, {faces[0].eyes:.0f} pixels between the eyes; a comparison needs {LEAST_EYES:g}: use a "
            "larger or closer photograph"
        )
    return subjects


def is_aligned(photograph: np.ndarray) -> bool:
    """Whether an image is an aligned face, by its size."""
    return photograph.shape[:2] == (FACE_SIZE, FACE_SIZE)


def large_enough(photograph: np.ndarray, faces: Sequence[Face]) -> list[Subject]:
    """Those of all faces found in a photograph that can be compared, in their order."""
    return [Subject(photograph, face, len(faces)) for face in faces if face.eyes >= LEAST_EYES]


def load_detector(file: Path | None = None) -> Detector | None:
    """The detector of a file, or the downloaded one; None where there is neither.

    Raises:
        OamlError: the file is missing or is no detector.
    """
    path = find_detector(file)
    return None if path is None else Detector(path)
