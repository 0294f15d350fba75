"""One look for faces: the network YuNet (Wu et al., 2023), through OpenCV, at a picture of any size and from any thread.

Points are in pixels, (0, 0) is the centre of the upper left one.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oaml.errors import OamlError
from oaml.support.download import DOWNLOADS, home
from oaml.support.files import write_file

SAME_FACE_OVERLAP = 0.3
"""Boxes that share more than this (intersection over union) are one face."""
LEAST_SIDE = 64
"""Pixels that a picture is padded to: of 32 or fewer the network makes boxes that are infinite, and sure."""
NEAR = 320
"""Longest side of the pictures that show one face from near."""
TRIAL_SECONDS = 20.0
TRIAL = (
    "import sys, cv2, numpy as np; "
    "network = cv2.FaceDetectorYN.create(sys.argv[1], '', (64, 64)); network.detect(np.zeros((64, 64, 3), np.uint8))"
)
"""What another process does with a detector that is not the known one."""


@dataclass(frozen=True)
class Face:
    """One face of a photograph, in pixels of the upright photograph."""

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

    def scaled(self, x: float, y: float) -> Face:
        """The face in a picture of x and y times the size."""
        scale = np.array([x, y])
        corner = (self.box[:2] + 0.5) * scale - 0.5  # centres of pixels move when an image is scaled
        landmarks = (self.landmarks + 0.5) * scale - 0.5
        return Face(np.concatenate([corner, self.box[2:] * scale]), landmarks, self.score)

    def mirrored(self, width: int) -> Face:
        """The face in the mirror image of a picture of that width: left and right change places."""
        left, top, *size = self.box
        landmarks = self.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (width - 1, 0)
        return Face(np.array([width - 1 - left - size[0], top, *size]), landmarks, self.score)

    def turned_back(self, width: int, height: int, quarters: int) -> Face:
        """From a picture turned to the left by quarters to the picture, which is width x height."""
        if quarters == 0:
            return self

        def back(points: np.ndarray) -> np.ndarray:
            x, y = points[:, 0], points[:, 1]
            if quarters == 1:
                return np.stack([width - 1 - y, x], 1)
            if quarters == 2:
                return np.stack([width - 1 - x, height - 1 - y], 1)
            return np.stack([y, height - 1 - x], 1)

        corners = back(np.stack([self.box[:2], self.box[:2] + self.box[2:]]))
        low, high = corners.min(0), corners.max(0)
        return Face(np.concatenate([low, high - low]), back(self.landmarks), self.score)


class Network:
    """YuNet. Every thread that asks has a network of its own: OpenCV's can't be shared, and a lock would make threads wait.

    Args:
        path: a YuNet file in ONNX format.
        least: confidence in [0,1] of the faces that are named.

    Raises:
        OamlError: the file is missing or is no network that OpenCV reads.
    """

    def __init__(self, path: str | Path, least: float) -> None:
        if not Path(path).is_file():
            raise OamlError(f"{path}: no such detector; `oaml download yunet` gets one")
        _try_once(Path(path))
        self._path, self._least = str(path), least
        self._own = threading.local()
        self._of_this_thread(near=True)

    def _of_this_thread(self, near: bool):
        """One for pictures of one face and one for whole photographs: the network is laid out anew for every other size."""
        import cv2

        name = "near" if near else "far"
        if not hasattr(self._own, name):
            try:
                made = cv2.FaceDetectorYN.create(
                    self._path, "", (320, 320), self._least, SAME_FACE_OVERLAP, 5000
                )
            except cv2.error as error:
                raise OamlError(
                    f"{self._path}: is no YuNet network in ONNX format ({error.err}); `oaml download yunet` gets one"
                ) from error
            setattr(self._own, name, made)
        return getattr(self._own, name)

    def __call__(self, picture: np.ndarray) -> list[Face]:
        """The faces of a picture, uint8 RGB [H,W,3], the surest first, in its pixels; each has an area."""
        height, width = picture.shape[:2]
        shown = np.zeros((max(height, LEAST_SIDE), max(width, LEAST_SIDE), 3), np.uint8)
        shown[:height, :width] = picture[..., ::-1]  # the network expects BGR
        network = self._of_this_thread(max(shown.shape) <= NEAR)
        network.setInputSize(shown.shape[1::-1])
        _, rows = network.detect(shown)
        if rows is None:
            return []
        rows = rows[np.isfinite(rows).all(1) & (rows[:, 2:4] > 0).all(1)].astype(np.float64)
        return [Face(row[:4], row[4:14].reshape(5, 2), float(np.clip(row[14], 0, 1))) for row in rows]


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


def group_looks(faces: list[Face]) -> list[list[Face]]:
    """Detections of one face each: the surest and all that overlap it, then the surest of the rest and so on."""
    groups: list[list[Face]] = []
    rest = sorted(faces, key=lambda face: -face.score)
    while rest:
        same = [shared_area(rest[0].box, face.box) > SAME_FACE_OVERLAP for face in rest]
        same[0] = True  # whatever its box
        groups.append([face for face, joins in zip(rest, same, strict=True) if joins])
        rest = [face for face, joins in zip(rest, same, strict=True) if not joins]
    return groups


def mean_face(looks: list[Face]) -> Face:
    """The mean of several detections of a face, weighted by confidence, with the confidence of the surest."""
    weights = np.array([look.score for look in looks])
    box = np.average([look.box for look in looks], 0, weights)
    landmarks = np.average([look.landmarks for look in looks], 0, weights)
    return Face(box, landmarks, float(weights.max()))


def shared_area(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / max(float(np.prod(a[2:]) + np.prod(b[2:])) - common, 1e-9)
