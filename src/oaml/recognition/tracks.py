"""Faces followed through the frames of a video: one template for every face that moves through it.

A face of one frame belongs to a track of the frames before when it lies where that track was last seen and looks like any of its
frames: the place alone would join two people across a cut, the looks alone two similar people. A face that lies elsewhere,
or was gone for a while, has to look like the last frame or like all of them together. All that a track shows of a face is pooled by
visibility, so that an occluder that moves, or a head that turns, in the end shows more than any one frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oaml.photographs.looks import Face, shared_area
from oaml.recognition.decision import LEAST_SHARED
from oaml.recognition.quality import Quality
from oaml.support.files import FACE_SIZE
from oaml.template import Templates, pooled

if TYPE_CHECKING:
    from oaml.model import Model

SAME_TRACK_OVERLAP = 0.2
"""Least intersection over union of a face with the last place of its track."""
FRAMES_AWAY = 10
"""Frames that a face may be gone before its track ends."""
LOOKED_FOR_EVERY = 5
"""Frames after which all faces are looked for again; in between those that are known are followed."""
FACES_POOLED = 24
"""Faces of a track that are pooled, those of the best quality: enough for every turn of a head, and a bound on memory."""
SAME_TRACK_FAR = 1e-3
"""False-accept rate of the threshold that says whether a face looks like a track."""


class FacesOfFrame(NamedTuple):
    """The faces of one frame that are large enough to be compared, one or more."""

    places: list[Face | None]
    """Where each is; None in a frame that is an aligned face."""
    crops: list[np.ndarray]
    """uint8 RGB [112,112,3] each."""
    templates: Templates
    """One of each, on the CPU."""
    qualities: list[Quality]


@dataclass
class Track:
    """One face through the frames that show it."""

    frames: list[int] = field(default_factory=list)
    """Numbers of these frames, ascending."""
    faces: list[Face | None] = field(default_factory=list)
    """Where the face is in each; None in a frame that is an aligned face."""
    crop: np.ndarray = field(default_factory=lambda: np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8))
    """The aligned face of the best quality, uint8 RGB [112,112,3]."""
    quality: Quality = Quality(0.0)  # noqa: RUF009  (it never changes)
    """Of that face."""
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

    def add(
        self, number: int, face: Face | None, crop: np.ndarray, template: Templates, quality: Quality
    ) -> None:
        """The face in one more frame."""
        self.frames.append(number)
        self.faces.append(face)
        self._latest = template
        if not self._kept or quality.value > self.quality.value:
            self.crop, self.quality = crop, quality
        kept = [*self._kept, (quality.value, template)]
        self._kept = sorted(kept, key=lambda pair: -pair[0])[:FACES_POOLED]

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
            "quality": self.quality.to_dict(),
        }


def find_tracks(
    model: Model, threshold: float, frames: Iterable[tuple[int, FacesOfFrame | None]]
) -> list[Track]:
    """All faces of a video, one track each, in the order in which they appear.

    Args:
        model: made the templates; in eval mode, on any device.
        threshold: fused score from which on a face looks like a track.
        frames: ascending numbers, and the faces of each frame that is looked at; None for a frame without any.
    """
    tracks: list[Track] = []
    last_seen: dict[int, int] = {}
    for count, (number, faces) in enumerate(frames):
        if faces is None:
            continue
        live = [i for i in range(len(tracks)) if count - last_seen[i] <= FRAMES_AWAY]
        chosen = _assign(model, threshold, [tracks[i] for i in live], faces)
        for row, place in enumerate(faces.places):
            index = live[chosen[row]] if row in chosen else len(tracks)
            if index == len(tracks):
                tracks.append(Track())
            template = faces.templates[row : row + 1]
            tracks[index].add(number, place, faces.crops[row], template, faces.qualities[row])
            last_seen[index] = count
    return tracks


def _assign(model: Model, threshold: float, tracks: list[Track], faces: FacesOfFrame) -> dict[int, int]:
    """Row of a face -> number of its track; faces of new tracks are left out. No two faces get one track."""
    if not tracks:
        return {}
    import torch

    from oaml.visibility import shared_visibility

    templates = faces.templates
    # those in their old place first, the surest first; then those that are elsewhere
    ranked = []
    for number, track in enumerate(tracks):
        known = Templates.join([track.latest, track.template, *(template for _, template in track._kept)])
        scores = model.compare_all(templates.to(model.device), known.to(model.device))["fused"].cpu()
        both = torch.stack([shared_visibility(face[None], known.visibility) for face in templates.visibility])
        scores = torch.where(both < LEAST_SHARED, -math.inf, scores)  # where too little shows to say
        for row, place in enumerate(faces.places):
            overlap = _overlap(place, track.faces[-1])
            here, elsewhere = float(scores[row].max()), float(scores[row, :2].max())
            if overlap >= SAME_TRACK_OVERLAP and (here >= threshold or here == -math.inf):
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
