"""Faces in a photograph: YuNet (Wu et al., 2023) at several sizes, through OpenCV.

The network finds occluded faces too, but with less confidence, at other sizes than unoccluded ones, and guesses their landmarks
anew each time. So a photograph is shown to it in several sizes and mirrored, every face that it finds is looked at again, upright
and in the sizes at which its landmarks are best, and all that is said of one face is averaged by confidence (as Solovyev et al.,
2021, do with boxes). `studies/alignment.py` measured what that is worth.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oaml.errors import OamlError
from oaml.photographs.align import similarity
from oaml.support.download import DOWNLOADS, home, place
from oaml.support.files import FACE_SIZE, write_file

LEAST = 0.4
"""Least confidence of a face, in [0,1]: what the surest face of a photograph must have."""
THRESHOLD = 0.5
"""Least confidence of every further face."""
SIDES = (320, 480, 640, 1280)
"""Long sides, in pixels, of the sizes in which a photograph is shown to the network."""
AGAIN = (64, 96, 128, 160)
"""Sizes in which a face is looked at again: pixels of the side of its aligned crop."""
MARGIN = 1.6
"""A face is looked at again in a square whose side is this many times that of its aligned crop."""
LARGEST = 2.0
"""A photograph is enlarged this many times at most: more shows nothing new."""
SAME_FACE_OVERLAP = 0.3
"""Boxes that share more than this (intersection over union) are one face."""
SURE = 0.9
"""Mean confidence of looking again from which on the photograph is upright. Otherwise it is tried in all four directions: a face is
found on its side and upside down too, with its landmarks in wrong places, and an occluded one is at times surer so than upright."""
TURNED, FURTHER = 0.5, 0.02
"""A photograph is turned if that mean is at least so high in another direction, and so much higher than upright."""
LEAST_EYES = 12.0
"""Pixels between the eyes below which a face is too small: down to 12 next to nothing is lost, below it more with every pixel."""


TRIAL_SECONDS = 20.0
TRIAL = (
    "import sys, cv2, numpy as np; "
    "network = cv2.FaceDetectorYN.create(sys.argv[1], '', (64, 64)); network.detect(np.zeros((64, 64, 3), np.uint8))"
)
"""What another process does with a detector that is not the known one."""


@dataclass(frozen=True)
class Face:
    """One face of a photograph, in pixels of the upright photograph; (0, 0) is the centre of the upper left pixel."""

    box: np.ndarray
    """float64 [4]: left, top, width, height. It may reach beyond the photograph."""
    landmarks: np.ndarray
    """float64 [5,2]: x and y of the eye on the left of an upright image, the other eye, nose, mouth corners left and right."""
    score: float
    """Confidence in [0,1]."""

    @property
    def eyes(self) -> float:
        """Pixels between the eyes."""
        return float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and lists, for JSON."""
        return {"box": self.box.tolist(), "landmarks": self.landmarks.tolist(), "score": self.score}

    @property
    def rank(self) -> float:
        """Area times confidence: the face that a photograph is of has the largest."""
        return float(self.box[2] * self.box[3] * self.score)


@dataclass(frozen=True)
class _Seen:
    """A photograph in one of four directions."""

    groups: list[list[Face]]
    """Detections of each face; the face with the surest one first."""
    again: list[Face]
    """The surest face looked at again."""

    @property
    def trust(self) -> float:
        """Mean confidence of looking again; a size or mirror image in which nothing is found counts as 0."""
        return sum(look.score for look in self.again) / (2 * len(AGAIN))


class Detector:
    """Finds faces; not to be shared between threads.

    Args:
        path: a YuNet file in ONNX format.
        least: confidence in [0,1] that the surest face of a photograph must have.
        sides: long sides of the sizes in which a photograph is shown.

    Raises:
        OamlError: the file is missing or is no network that OpenCV reads.
    """

    def __init__(self, path: str | Path, least: float = LEAST, sides: Sequence[int] = SIDES) -> None:
        import cv2

        if not Path(path).is_file():
            raise OamlError(f"{path}: no such detector; `oaml download yunet` gets one")
        self.sides = tuple(sides)
        _try_once(Path(path))
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(path), "", (320, 320), least, SAME_FACE_OVERLAP, 5000
            )
        except cv2.error as error:
            raise OamlError(
                f"{path}: is no YuNet network in ONNX format ({error.err}); `oaml download yunet` gets one"
            ) from error

    def find(self, photograph: np.ndarray) -> list[Face]:
        """All faces, the largest and surest first; none is an empty list.

        The photograph is turned by 90, 180 or 270 degrees where its surest face stands upright so, and where it shows none as it
        is.

        Args:
            photograph: uint8 RGB [H,W,3].
        """
        seen = self._seen(photograph, 0)
        if seen.trust < SURE:
            others = [self._seen(photograph, quarters) for quarters in (1, 2, 3)]
            if not seen.groups:
                seen = max(others, key=lambda other: _surest(other.groups[0]) if other.groups else 0.0)
            else:
                turned = max(others, key=lambda other: other.trust)
                seen = turned if turned.trust >= max(TURNED, seen.trust + FURTHER) else seen
        groups = [group for group in seen.groups if _surest(group) >= THRESHOLD] or seen.groups[:1]
        again = [seen.again, *(self.look_again(photograph, mean_face(group)) for group in groups[1:])]
        faces = [mean_face(group + looks) for group, looks in zip(groups, again, strict=False)]
        return sorted(faces, key=lambda face: -face.rank)

    def _seen(self, photograph: np.ndarray, quarters: int) -> _Seen:
        """What the photograph shows when it is turned to the left by quarters."""
        groups = group_looks(self.looks(photograph, quarters))
        return _Seen(groups, self.look_again(photograph, mean_face(groups[0])) if groups else [])

    def looks(self, photograph: np.ndarray, quarters: int) -> list[Face]:
        """What is seen in the photograph turned to the left by quarters, in pixels of the photograph as it is."""
        height, width = photograph.shape[:2]
        faces = self._in_sizes(np.ascontiguousarray(np.rot90(photograph, quarters)))
        return [turned_back(face, width, height, quarters) for face in faces]

    def _in_sizes(self, photograph: np.ndarray) -> list[Face]:
        import cv2

        height, width = photograph.shape[:2]
        scales = [side / max(height, width) for side in self.sides if side <= LARGEST * max(height, width)]
        faces: list[Face] = []
        for scale in scales or [LARGEST]:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            shown = cv2.resize(photograph, size, interpolation=smooth)[..., ::-1]  # the network expects BGR
            faces += self._once(shown, width, height)
            faces += [_mirrored(face, width) for face in self._once(shown[:, ::-1], width, height)]
        return faces

    def look_again(self, photograph: np.ndarray, face: Face) -> list[Face]:
        """What is seen of one face, upright and in the sizes of `AGAIN`."""
        import cv2

        again: list[Face] = []
        upright = similarity(face.landmarks)
        for size in AGAIN:
            scale, side = size / FACE_SIZE, round(size * MARGIN)
            place = upright * scale
            place[:, 2] += (side - size) / 2
            shown = cv2.warpAffine(photograph, place, (side, side), flags=cv2.INTER_LINEAR)[..., ::-1]
            looks = self._once(shown, side, side)
            looks += [_mirrored(look, side) for look in self._once(shown[:, ::-1], side, side)]
            back = cv2.invertAffineTransform(place)
            for look in looks:
                if np.abs(look.landmarks.mean(0) - side / 2).max() < size / 4:  # not a neighbour
                    landmarks = look.landmarks @ back[:, :2].T + back[:, 2]
                    again.append(Face(face.box, landmarks, look.score))
        return again

    def _once(self, shown: np.ndarray, width: int, height: int) -> list[Face]:
        """Faces of a BGR image as it is, in pixels of a photograph of width x height."""
        self._network.setInputSize(shown.shape[1::-1])
        _, rows = self._network.detect(np.ascontiguousarray(shown))
        scale = shown.shape[1] / width, shown.shape[0] / height
        return [] if rows is None else [_face(row, *scale) for row in rows.astype(np.float64)]


def _try_once(path: Path) -> None:
    """Raise OamlError for a file that crashes or hangs a process which runs it: found out in another one, once per content."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tried = home() / f"detector-{digest[:16]}.tried"
    if digest == DOWNLOADS["yunet"].sha256 or tried.exists():
        return
    try:
        command = [sys.executable, "-c", TRIAL, str(path)]
        trial = subprocess.run(command, capture_output=True, timeout=TRIAL_SECONDS, check=False)
        fault = f"a process that ran it ended with {trial.returncode}" if trial.returncode else None
    except subprocess.TimeoutExpired:
        fault = f"a process that ran it gave no answer in {TRIAL_SECONDS:g} seconds"
    if fault:
        raise OamlError(
            f"{path}: is no YuNet network in ONNX format ({fault}); `oaml download yunet` gets one"
        )
    with suppress(OamlError):  # a home that can't be written to: it is tried again next time
        write_file(tried, lambda temporary: temporary.write_text(digest))


def _face(row: np.ndarray, x: float, y: float) -> Face:
    """From a row of the network, whose image has x and y times the size of the photograph."""
    scale = np.array([x, y])
    corner = (row[:2] + 0.5) / scale - 0.5  # centres of pixels move when an image is scaled
    landmarks = (row[4:14].reshape(5, 2) + 0.5) / scale - 0.5
    return Face(np.concatenate([corner, row[2:4] / scale]), landmarks, float(np.clip(row[14], 0, 1)))


def _mirrored(face: Face, width: int) -> Face:
    """From the mirror image of a photograph to the photograph: left and right change places."""
    left, top, *size = face.box
    landmarks = face.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (width - 1, 0)
    return Face(np.array([width - 1 - left - size[0], top, *size]), landmarks, face.score)


def group_looks(faces: list[Face]) -> list[list[Face]]:
    """Detections of one face each: all that overlap the surest, then all of the rest that overlap the surest of the rest."""
    groups: list[list[Face]] = []
    rest = sorted(faces, key=lambda face: -face.score)
    while rest:
        groups.append([face for face in rest if shared_area(rest[0].box, face.box) > SAME_FACE_OVERLAP])
        rest = [face for face in rest if shared_area(rest[0].box, face.box) <= SAME_FACE_OVERLAP]
    return groups


def mean_face(looks: list[Face]) -> Face:
    """The mean of several detections of a face, weighted by confidence, with the confidence of the surest."""
    weights = np.array([look.score for look in looks])
    box = np.average([look.box for look in looks], 0, weights)
    landmarks = np.average([look.landmarks for look in looks], 0, weights)
    return Face(box, landmarks, _surest(looks))


def _surest(faces: list[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


def shared_area(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / max(float(np.prod(a[2:]) + np.prod(b[2:])) - common, 1e-9)


def turned_back(face: Face, width: int, height: int, quarters: int) -> Face:
    """From a photograph turned to the left by quarters to the photograph, which is width x height."""
    if quarters == 0:
        return face

    def back(points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0], points[:, 1]
        if quarters == 1:
            return np.stack([width - 1 - y, x], 1)
        if quarters == 2:
            return np.stack([width - 1 - x, height - 1 - y], 1)
        return np.stack([y, height - 1 - x], 1)

    corners = back(np.stack([face.box[:2], face.box[:2] + face.box[2:]]))
    low, high = corners.min(0), corners.max(0)
    return Face(np.concatenate([low, high - low]), back(face.landmarks), face.score)


def find_detector(file: Path | None = None) -> Path | None:
    """The detector's file: the one named, or the downloaded one; None where there is neither.

    Raises:
        OamlError: the one named is no file.
    """
    if file is not None:
        if not Path(file).is_file():
            raise OamlError(f"{file}: no such detector; give a YuNet file, or leave --detector out")
        return Path(file)
    downloaded = place("yunet")
    return downloaded if downloaded.is_file() else None
