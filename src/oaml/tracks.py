"""A film, or a folder of frames: one template for every face that moves through it.

A face of one frame belongs to a track of the frames before when it lies where that track was last seen and looks like any of its
frames: the place alone would join two people across a cut, the looks alone two people who look alike. A face that lies elsewhere,
or was gone for a while, has to look like the last frame or like all of them together. All that a track shows of a face is pooled by
visibility, so that a cover that moves, or a head that turns, in the end shows more than any one frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oaml.decision import LEAST_SHARED
from oaml.detect import Face, shared_area
from oaml.errors import OamlError
from oaml.files import FACE_SIZE, list_images, read_photograph
from oaml.template import Templates, pooled

if TYPE_CHECKING:
    from oaml.recognise import Recogniser

FILMS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
OVERLAP = 0.2
"""Least intersection over union of a face with the last place of its track."""
PATIENCE = 10
"""Frames that a face may be gone before its track ends."""
KEPT = 24
"""Faces of a track that are pooled, those that show most: enough for every turn of a head, and a bound on memory."""
FAR = 1e-3
"""False-accept rate of the threshold that says whether a face looks like a track."""

Frame = tuple[int, np.ndarray]
"""Number, and uint8 RGB [H,W,3]."""


@dataclass
class Track:
    """One face through the frames that show it."""

    frames: list[int] = field(default_factory=list)
    """Numbers of these frames, ascending."""
    faces: list[Face | None] = field(default_factory=list)
    """Where the face is in each; None in a frame that is an aligned face."""
    crop: np.ndarray = field(default_factory=lambda: np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8))
    """The aligned face that shows most, uint8 RGB [112,112,3]."""
    _kept: list[tuple[float, Templates]] = field(default_factory=list)
    _latest: Templates | None = None

    @property
    def template(self) -> Templates:
        """What all frames together show, one template."""
        return pooled(Templates.join([template for _, template in self._kept]))

    @property
    def latest(self) -> Templates:
        """Of the last frame."""
        assert self._latest is not None
        return self._latest

    def add(self, number: int, face: Face | None, crop: np.ndarray, template: Templates) -> None:
        """The face in one more frame."""
        self.frames.append(number)
        self.faces.append(face)
        self._latest = template
        # a sharp face has a long embedding (AdaFace, section 3.2), a covered one shows little
        worth = float(template.visible()[0] * template.norm[0])
        if not self._kept or worth > max(kept for kept, _ in self._kept):
            self.crop = crop
        self._kept = sorted([*self._kept, (worth, template)], key=lambda pair: -pair[0])[:KEPT]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: first and last frame, how many show the face, where it was first and last."""
        first, last = self.faces[0], self.faces[-1]
        return {
            "first_frame": self.frames[0],
            "last_frame": self.frames[-1],
            "frames": len(self.frames),
            "first_face": None if first is None else first.to_dict(),
            "last_face": None if last is None else last.to_dict(),
            "visible": float(self.template.visible()[0]),
        }


def is_film(path: str | Path) -> bool:
    """Whether a path is a folder of frames or a film, by its name."""
    return Path(path).is_dir() or Path(path).suffix.lower() in FILMS


def read_frames(path: str | Path, every: int = 1) -> Iterator[Frame]:
    """Every n-th frame of a film, or of a folder of pictures in the order of their names.

    Raises:
        OamlError: no such file or folder, none that can be read, or a film that breaks off before its end.
    """
    path = Path(path)
    if every < 1:
        raise OamlError(f"every: {every} is not at least 1")
    if path.is_dir():
        for number, file in list(enumerate(list_images(path)))[::every]:
            yield number, read_photograph(file)
        return
    if not path.is_file():
        raise OamlError(f"{path}: no such film")
    import cv2

    film = cv2.VideoCapture(str(path))
    try:
        number = 0
        while film.grab():
            if number % every == 0:
                read, frame = film.retrieve()
                if not read:
                    break
                yield number, np.ascontiguousarray(frame[..., ::-1])
            number += 1
        if number == 0:
            raise OamlError(
                f"{path}: is no film that OpenCV reads; convert it to MP4 or to a folder of frames"
            )
        promised = film.get(cv2.CAP_PROP_FRAME_COUNT)
        if number < 0.9 * promised:
            raise OamlError(
                f"{path}: is damaged: {number} of {promised:.0f} frames could be read; copy it again"
            )
    finally:
        film.release()


def find_tracks(recogniser: Recogniser, frames: Iterable[Frame]) -> list[Track]:
    """All faces of a film, one track each, in the order in which they appear.

    Args:
        recogniser: its model must have thresholds.
        frames: with ascending numbers, as `read_frames` gives them.

    Raises:
        OamlError: a frame that can't be read; no detector, or no threshold.
    """
    threshold = recogniser.threshold(FAR)
    if threshold is None:
        raise OamlError(
            f"{recogniser.name}: has no thresholds, without which faces can't be followed; fit them with `oaml adapt`"
        )
    tracks: list[Track] = []
    last_seen: dict[int, int] = {}
    for count, (number, frame) in enumerate(frames):
        subjects = recogniser.usable(frame)
        if not subjects:
            continue
        crops = [recogniser.crop(subject) for subject in subjects]
        found = recogniser.templates(crops)
        live = [i for i in range(len(tracks)) if count - last_seen[i] <= PATIENCE]
        places = [subject.face for subject in subjects]
        chosen = _assign(recogniser, [tracks[i] for i in live], places, found, threshold.value)
        for row, place in enumerate(places):
            index = live[chosen[row]] if row in chosen else len(tracks)
            if index == len(tracks):
                tracks.append(Track())
            tracks[index].add(number, place, crops[row], found[row : row + 1])
            last_seen[index] = count
    return tracks


def _assign(
    recogniser: Recogniser, tracks: list[Track], places: list[Face | None], found: Templates, threshold: float
) -> dict[int, int]:
    """Row of a face -> number of its track; faces of new tracks are left out. Nothing is given twice."""
    if not tracks:
        return {}
    import torch

    from oaml.visibility import shared_visibility

    model = recogniser.model
    # those in their old place first, the surest first; then those that are elsewhere
    ranked = []
    for number, track in enumerate(tracks):
        known = Templates.join([track.latest, track.template, *(template for _, template in track._kept)])
        scores = model.compare_all(found.to(model.device), known.to(model.device))["fused"].cpu()
        both = torch.stack([shared_visibility(face[None], known.visibility) for face in found.visibility])
        scores = torch.where(both < LEAST_SHARED, -math.inf, scores)  # where too little shows to say
        for row, place in enumerate(places):
            overlap = _overlap(place, track.faces[-1])
            here, elsewhere = float(scores[row].max()), float(scores[row, :2].max())
            if overlap >= OVERLAP and (here >= threshold or here == -math.inf):
                ranked.append((1 + overlap, row, number))
            elif elsewhere >= threshold:
                ranked.append((math.tanh(elsewhere - threshold), row, number))
    chosen: dict[int, int] = {}
    for _, row, number in sorted(ranked, reverse=True):
        if row not in chosen and number not in chosen.values():
            chosen[row] = number
    return chosen


def _overlap(a: Face | None, b: Face | None) -> float:
    """Intersection over union of two boxes; frames that are aligned faces have the same place."""
    if a is None or b is None:
        return float(a is b)
    return shared_area(a.box, b.box)
