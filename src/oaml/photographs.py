"""From photographs to aligned faces, by the landmarks that can be trusted; `oaml align`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.align import similarity, warp
from oaml.detect import LEAST_EYES, Detector, Face, find_detector
from oaml.errors import OamlError
from oaml.files import (
    FACE_SIZE,
    Image,
    check_empty,
    list_images,
    name_of,
    png_names,
    read_photograph,
    write_file,
)

if TYPE_CHECKING:
    from oaml.model import Model

LEAST_WEIGHT = 0.1
"""Of a landmark that is covered, against 1 of one that shows."""


def trust(crop: np.ndarray, matrix: np.ndarray, landmarks: np.ndarray, model: Model) -> np.ndarray:
    """How much of each landmark shows, by the model's visibility map of the aligned face: [5], from `LEAST_WEIGHT` to 1.

    Under a cover a landmark is a guess, under a niqab the worst; `studies/alignment.py` measured what weights are worth.

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
    """Cut one face out of a photograph: by its landmarks, then moved to where the face lies by what the crop shows (`oaml.refine`).

    Args:
        photograph: uint8 RGB [H,W,3].
        face: as `oaml.detect.Detector.find` gives it.
        model: weighs landmarks by what it says is visible; None takes all five alike.

    Returns:
        uint8 RGB [112,112,3].
    """
    from oaml.refine import refined

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

    A picture of 112x112 pixels is an aligned face and needs no detector.

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
    found = detector.find(photograph)
    if not found:
        raise OamlError(
            f"{path}: no face found; use a sharper or closer photograph, or a face aligned to {FACE_SIZE}x{FACE_SIZE}"
        )
    subjects = large_enough(photograph, found)
    if not subjects:
        raise OamlError(
            f"{path}: the face is too small, {found[0].eyes:.0f} pixels between the eyes; a comparison needs {LEAST_EYES:g}: use a "
            "larger or closer photograph"
        )
    return subjects


def is_aligned(photograph: np.ndarray) -> bool:
    """Whether a picture is an aligned face, by its size."""
    return photograph.shape[:2] == (FACE_SIZE, FACE_SIZE)


def large_enough(photograph: np.ndarray, faces: Sequence[Face]) -> list[Subject]:
    """Those of all faces found in a photograph that can be compared, in their order."""
    return [Subject(photograph, face, len(faces)) for face in faces if face.eyes >= LEAST_EYES]


def load_detector(given: Path | None = None) -> Detector | None:
    """The given detector, or the downloaded one; None where there is neither.

    Raises:
        OamlError: the file is missing or is no detector.
    """
    path = find_detector(given)
    return None if path is None else Detector(path)


def align_folder(
    folder: Path,
    *,
    out: Path,
    detector: Path | None = None,
    model: str | None = None,
    all: bool = False,
    refine: bool = False,
    device: str = "auto",
) -> None:
    """Cut the faces out of a folder of photographs, aligned to 112x112.

    `FOLDER/PERSON/NAME.jpg` becomes `OUT/PERSON/NAME.png`: the largest face, or with `all` every face, the second as
    `NAME_2.png`. Pictures of 112x112 are aligned already and are taken as they are, but for `refine`. Files without a face that
    can be used are listed at the end.

    Example:
        oaml align photographs --out faces

    Args:
        folder: photographs in any depth of folders.
        out: a new or an empty folder.
        detector: a YuNet file; by default the one of `oaml download yunet`.
        model: a model folder; landmarks that it says are covered count less.
        all: write every face of a photograph.
        refine: move pictures of 112x112 too. Whoever aligned them guessed the landmarks beneath masks and veils.
        device: for the model: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        OamlError: an `out` that holds files, a bad detector or model, two photographs that would be written under one name, or
            not a single face.
    """
    from rich.console import Console
    from rich.progress import track

    folder, out = Path(folder), Path(out)
    check_empty(out)
    paths = list_images(folder)
    names = png_names(folder, paths)
    finder = load_detector(detector)
    if finder is None:
        for path in paths:  # before anything is written
            find_subjects(path, None)

    from oaml.refine import refined_crop  # torch, once all has been checked

    weigher = None
    if model is not None:
        from oaml.inference import load_model

        weigher = load_model(model, device)
    written, left_out = 0, []
    for name, path in track(names.items(), "aligning", console=Console(stderr=True), total=len(names)):
        try:
            subjects = find_subjects(path, finder)
        except OamlError as error:
            left_out.append(str(error))
            continue
        for number, subject in enumerate(subjects if all else subjects[:1], 1):
            target = name if number == 1 else name.with_name(f"{name.stem}_{number}.png")
            if number > 1 and target in names:
                raise OamlError(
                    f"{path}: its face {number} would be written under the name of {names[target]}; rename one of them"
                )
            crop = subject.crop(weigher)
            _write(out / target, refined_crop(crop) if refine and subject.face is None else crop)
            written += 1
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not written:
        raise OamlError(
            f"{folder}: no face in any of {len(paths)} photographs; choose sharper or closer ones"
        )
    print(f"{out}: {written} faces of {len(paths) - len(left_out)} photographs, {len(left_out)} left out")


def _write(path: Path, crop: np.ndarray) -> None:
    from PIL import Image

    write_file(path, Image.fromarray(crop).save)
