"""The faces of a photograph that are large enough to be compared, and whether a picture of 112x112 is a face or a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from oaml.errors import OamlError
from oaml.photographs.align import STANDARD_LANDMARKS, similarity, warp
from oaml.photographs.detect import CERTAIN, LEAST_EYES, SURE, THRESHOLD, Detector, find_detector, ranked
from oaml.photographs.looks import Face
from oaml.support.files import FACE_SIZE, Image, name_of, read_photograph

ELSEWHERE, UNUSABLE_ELSEWHERE = 25.0, 15.0
"""Pixels, of 112, by which the landmarks of an aligned face are off at most; and where the crop as it is shows no usable face."""
EDGE, ENLARGED = 34, 1.43
"""A picture of 112x112 is looked at with its edge drawn out by so many pixels, so many times as large."""


def align(photograph: np.ndarray, face: Face) -> np.ndarray:
    """Cut one face out of a photograph: by its landmarks, then moved to where the face lies by what the crop shows (`refine.py`).

    Args:
        photograph: uint8 RGB [H,W,3].
        face: as `oaml.photographs.detect.Detector.find` gives it.

    Returns:
        uint8 RGB [112,112,3].
    """
    from oaml.photographs.refine import refined

    return warp(photograph, refined(photograph, similarity(face.landmarks)))


@dataclass
class Subject:
    """Who a photograph is of."""

    photograph: np.ndarray
    """uint8 RGB [H,W,3], upright."""
    face: Face | None
    """None for a face that is aligned already: the photograph is the face."""
    faces: int = 1
    """Faces in the photograph, this one included."""

    @cached_property
    def crop(self) -> np.ndarray:
        """The aligned face, uint8 RGB [112,112,3]; see `align`."""
        return self.photograph if self.face is None else align(self.photograph, self.face)

    @property
    def certain(self) -> bool:
        """Whether it is a face without much doubt: others neither come first nor stand in its way."""
        from oaml.photographs.usable import LEAST_USABLE

        if self.face is None or self.face.score >= SURE:
            return True
        return self.face.score >= CERTAIN and self.usable >= LEAST_USABLE

    @cached_property
    def usable(self) -> float:
        """How sure it is that the crop shows a face that can be compared; see `oaml.photographs.usable`."""
        from oaml.photographs.usable import usable

        return usable(self.crop)


def find_subjects(image: Image, detector: Detector | None, aligned: bool | None = None) -> list[Subject]:
    """The faces of one photograph that are large enough to be compared, the largest and surest first; one at least.

    Args:
        image: a photograph, or an aligned face of 112x112.
        detector: finds the faces of photographs; aligned faces need none.
        aligned: whether the image is an aligned face; None looks at one of 112x112: where a detector finds the face in another
            place than an aligned one has it, it is a photograph.

    Raises:
        OamlError: an unreadable file, no detector, no face, or too small a face; with `aligned`, an image that isn't 112x112.
    """
    photograph, path = read_photograph(image), name_of(image)
    height, width = photograph.shape[:2]
    if aligned and not has_aligned_size(photograph):
        raise OamlError(
            f"{path}: is {width}x{height}, an aligned face is {FACE_SIZE}x{FACE_SIZE}; align it, or leave out that it is aligned"
        )
    if aligned or (aligned is None and is_aligned(photograph, detector)):
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


def has_aligned_size(photograph: np.ndarray) -> bool:
    """Whether an image may be an aligned face, by its size."""
    return photograph.shape[:2] == (FACE_SIZE, FACE_SIZE)


def is_aligned(photograph: np.ndarray, detector: Detector | None) -> bool:
    """Whether an image is an aligned face: one of that size in which no face is seen in another place.

    An occluded one often isn't seen at all. `studies/alignment.py` measured how far off landmarks are.
    """
    if not has_aligned_size(photograph):
        return False
    if detector is None:
        return True
    import cv2

    room = cv2.copyMakeBorder(photograph, EDGE, EDGE, EDGE, EDGE, cv2.BORDER_REPLICATE)
    picture = cv2.resize(room, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_LINEAR)
    faces = ranked([face for face in detector.look(picture) if face.score >= THRESHOLD])
    if not faces:
        return True
    landmarks = faces[0].scaled(1 / ENLARGED, 1 / ENLARGED).landmarks - EDGE
    off = float(np.linalg.norm(landmarks - STANDARD_LANDMARKS, axis=1).mean())
    if off <= UNUSABLE_ELSEWHERE:
        return True
    from oaml.photographs.usable import LEAST_USABLE

    is_usable = Subject(photograph, None).usable >= LEAST_USABLE
    return is_usable and (off <= ELSEWHERE or faces[0].score < CERTAIN)


def large_enough(photograph: np.ndarray, faces: Sequence[Face]) -> list[Subject]:
    """Those of all faces found in a photograph that can be compared, those without much doubt first and else in their order.

    Below `CERTAIN` a box whose crop shows no usable face is dropped, unless there is nothing else.
    """
    from oaml.photographs.usable import LEAST_USABLE

    large = [Subject(photograph, face) for face in faces if face.eyes >= LEAST_EYES]
    kept = large
    if len(large) > 1:
        real = [s for s in large if s.face and (s.face.score >= CERTAIN or s.usable >= LEAST_USABLE)]
        kept = sorted(real or large[:1], key=lambda subject: not subject.certain)
    for subject in kept:
        subject.faces = len(faces) - len(large) + len(kept)
    return kept


def load_detector(file: Path | None = None) -> Detector | None:
    """The detector of a file, or the downloaded one; None where there is neither.

    Raises:
        OamlError: the file is missing or is no detector.
    """
    path = find_detector(file)
    return None if path is None else Detector(path)
