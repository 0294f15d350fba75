"""The faces of a photograph: one look at it, a closer look at each face, and more where that leaves a doubt.

The network finds occluded faces too, but with less confidence, at other sizes than unoccluded ones, and guesses their landmarks
anew each time. So a face that isn't sure at once is looked at in several sizes, mirrored and from other sides, and all that is said
of it is averaged by confidence (as Solovyev et al., 2021, do with boxes). Where no face is sure enough after that, the whole
photograph is shown in every size, mirrored and turned. `studies/alignment.py` measured what it finds, `oaml benchmark photograph`
what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np

from oaml.errors import OamlError
from oaml.photographs.align import as_matrix, similarity, warp
from oaml.photographs.looks import Face, Network, group_looks, mean_face
from oaml.support.download import place
from oaml.support.files import FACE_SIZE

HINT = 0.3
"""Confidence, in [0,1], of what is worth a closer look."""
LEAST = 0.4
"""Least confidence of a face: what the surest face of a photograph must have."""
THRESHOLD = 0.5
"""Least confidence of every further face."""
CERTAIN = 0.7
"""Confidence below which a face may be none: of such boxes in photographs one in ten is a face."""
FIRST = 416
"""How large a photograph is at the first look: the side, in pixels, of a square with as many."""
SECOND = (277, 554)
"""And at the second, as it is and mirrored, where no face is sure."""
SIDES = (277, 416, 554, 1108)
"""And where none is found."""
LONGEST = 16_384
"""Pixels of the longest side that is shown."""
LARGEST = 2.0
"""A photograph is enlarged this many times at most: more shows nothing new."""
CLOSER = 128
"""Size of the closer look at a face: pixels of the side of its aligned crop."""
AGAIN = (64, 96, 128, 160)
"""Sizes in which a doubtful face is looked at again."""
MARGIN = 1.6
"""A face is looked at closely in a square whose side is this many times that of its aligned crop."""
AROUND = 1.5
"""A face is looked at from another side in a square whose side is this many times that of its box."""
SURE = 0.9
"""Confidence of the closer look from which on a face is what it seems and upright."""
NEARLY, SURER = 0.8, 0.02
"""Confidence from which on it is, if it is surer than in any other direction by so much. Where it is surer in another direction by
twice as much, the photograph is turned."""
WEAKER = 0.1
"""A face is followed from frame to frame while its confidence falls by no more than this."""
UPRIGHT = 0.9
"""Mean confidence of looking again from which on a photograph is upright. Otherwise it is tried in all four directions: a face is
found on its side and upside down too, with its landmarks in wrong places, and an occluded one is at times surer so than upright."""
RIVAL = 0.15
"""A doubtful face is judged by every look where it is less surer than in another direction."""
TURNED, FURTHER = 0.5, 0.02
"""A photograph is turned if that mean is at least so high in another direction, and so much higher than upright."""
SMALL = 20
"""Pixels of a box at the first look below which there may be smaller faces, to be seen in a larger size."""
LEAST_EYES = 12.0
"""Pixels between the eyes below which a face is too small: down to 12 next to nothing is lost, below it more with every pixel."""


class _Shown:
    """A photograph, a large one reduced once, to be shown in several sizes: faces come back in its own pixels."""

    def __init__(self, photograph: np.ndarray) -> None:
        self.photograph = photograph
        most = self.scale(SIDES[-1])
        self.reduced = _resized(photograph, most) if most < 0.5 else photograph

    def scale(self, side: float) -> float:
        """What a photograph is scaled by to have as many pixels as a square of that side."""
        height, width = self.photograph.shape[:2]
        return min(side / sqrt(height * width), LONGEST / max(height, width), LARGEST)

    def differing(self, sides: Sequence[int]) -> list[int]:
        """Those of the sizes that differ: one larger than the photograph times `LARGEST` is the same again."""
        most = LARGEST * sqrt(self.photograph.shape[0] * self.photograph.shape[1])
        return [side for side in sides if side <= most] or [sides[0]]

    def look(self, network: Network, side: float, mirrored: bool = False, quarters: int = 0) -> list[Face]:
        """What is seen at one size, mirrored or turned to the left by quarters."""
        picture = _resized(self.reduced, self.scale(side) * self.photograph.shape[1] / self.reduced.shape[1])
        height, width = picture.shape[:2]
        turned = np.rot90(picture, quarters)
        faces = network(turned[:, ::-1] if mirrored else turned)
        if mirrored:
            faces = [face.mirrored(turned.shape[1]) for face in faces]
        rows, columns = self.photograph.shape[:2]
        return [
            face.turned_back(width, height, quarters).scaled(columns / width, rows / height) for face in faces
        ]


def _resized(photograph: np.ndarray, scale: float) -> np.ndarray:
    import cv2

    height, width = photograph.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return photograph if size == (width, height) else cv2.resize(photograph, size, interpolation=smooth)


@dataclass(frozen=True)
class _Seen:
    """What a photograph shows in one of four directions."""

    groups: list[list[Face]]
    """Detections of each face; the face with the surest one first."""
    again: list[Face]
    """The surest face looked at again."""

    @property
    def surest(self) -> float:
        """Confidence in [0,1]; 0 where there is no face."""
        return self.groups[0][0].score if self.groups else 0.0

    @property
    def trust(self) -> float:
        """Mean confidence of looking again; a size or mirror image in which nothing is found counts as 0."""
        return sum(look.score for look in self.again) / (2 * len(AGAIN))


class Detector:
    """Finds faces. Threads may share it.

    Args:
        path: a YuNet file in ONNX format.

    Raises:
        OamlError: the file is missing or is no network that OpenCV reads.
    """

    def __init__(self, path: str | Path) -> None:
        self._network = Network(path, HINT)

    def find(self, photograph: np.ndarray) -> list[Face]:
        """All faces, certain ones before doubtful ones and the largest and surest first; none is an empty list.

        The photograph is turned by 90, 180 or 270 degrees where its surest face stands upright so, and where it shows none as it
        is. Beside faces that are sure at once, others that are too small for the first look aren't looked for.

        Args:
            photograph: uint8 RGB [H,W,3].
        """
        return ranked(self._quickly(photograph) or self.thorough(photograph, SIDES[:-1]))

    def _quickly(self, photograph: np.ndarray, turned: bool = False) -> list[Face]:
        """The faces of a photograph by a few looks; nothing where these leave a doubt.

        Args:
            turned: the photograph was turned already.
        """
        shown = _Shown(photograph)
        first = shown.look(self._network, FIRST)
        if any(min(face.box[2:]) * shown.scale(FIRST) < SMALL for face in first):
            first = [group[0] for group in group_looks(first + shown.look(self._network, SIDES[-1]))]
        closer = [self._near(photograph, face, CLOSER, similarity(face.landmarks)) for face in first]
        scores = [0.0 if look is None else look.score for look in closer]
        best = max(scores, default=0.0)
        if best < SURE:
            sides = {} if not first else self._sides(photograph, first[scores.index(best)])
            quarters = max(sides, key=lambda q: sides[q].score, default=0)
            other = self._surer(photograph, sides[quarters]) if quarters else 0.0
            if not turned and other >= max(NEARLY, best + 2 * SURER):
                height, width = photograph.shape[:2]
                faces = self._quickly(np.ascontiguousarray(np.rot90(photograph, quarters)), turned=True)
                return [face.turned_back(width, height, quarters) for face in faces]
            if best < max(NEARLY, other + SURER):
                return self._second(shown, first)
        seen = [look or face for face, look in zip(first, closer, strict=True)]
        sure = [face for face, score in zip(seen, scores, strict=True) if score >= NEARLY]
        doubtful = [face for face, score in zip(seen, scores, strict=True) if score < NEARLY]
        again = [mean_face([face, *self.look_again(photograph, face)]) for face in doubtful]
        return sure + [face for face in again if face.score >= THRESHOLD]

    def look(self, picture: np.ndarray) -> list[Face]:
        """What is seen in a picture, uint8 RGB [H,W,3], as large as it is: a single look, which finds occluded faces at times."""
        return [face for face in self._network(picture) if face.score >= LEAST]

    def follow(self, photograph: np.ndarray, faces: Sequence[Face]) -> list[Face] | None:
        """Faces of a frame before, where they lie in this one; None where one of them isn't seen there any more: `find` is needed.

        Args:
            photograph: uint8 RGB [H,W,3], of the same size as the frame before.
        """
        moved = []
        for face in faces:
            look = self._near(photograph, face, CLOSER, similarity(face.landmarks))
            if look is None or look.score < max(THRESHOLD, face.score - WEAKER):
                return None
            size = face.box[2:] * look.eyes / max(face.eyes, 1e-9)
            middle = face.box[:2] + face.box[2:] / 2 + (look.landmarks - face.landmarks).mean(0)
            moved.append(replace(look, box=np.concatenate([middle - size / 2, size])))
        return moved

    def thorough(self, photograph: np.ndarray, turned_sides: Sequence[int] = SIDES) -> list[Face]:
        """As `find`, by every look there is; those of the photograph turned in these sizes alone."""
        shown = _Shown(photograph)
        seen = self._seen(shown, 0, SIDES)
        if seen.trust < UPRIGHT:
            others = [self._seen(shown, quarters, turned_sides) for quarters in (1, 2, 3)]
            if not seen.groups:
                seen = max(others, key=lambda other: other.surest)
            else:
                turned = max(others, key=lambda other: other.trust)
                seen = turned if turned.trust >= max(TURNED, seen.trust + FURTHER) else seen
        return self._together(photograph, seen)

    def _second(self, shown: _Shown, first: list[Face]) -> list[Face]:
        """The faces of a photograph none of which is sure at the first look; nothing where more than a few looks are needed."""
        looks = first + shown.look(self._network, FIRST, mirrored=True)
        for side in SECOND:
            looks += shown.look(self._network, side) + shown.look(self._network, side, mirrored=True)
        seen = self._judged(shown.photograph, looks)
        if seen.surest < THRESHOLD:
            return []
        if seen.trust < UPRIGHT:
            turned = [look for q in (1, 2, 3) for look in shown.look(self._network, FIRST, quarters=q)]
            if any(look.score > seen.surest - RIVAL for look in turned):
                return []
        return self._together(shown.photograph, seen)

    def _seen(self, shown: _Shown, quarters: int, sides: Sequence[int]) -> _Seen:
        """What a photograph shows in those sizes when it is turned to the left by quarters."""
        looks: list[Face] = []
        for side in shown.differing(sides):
            looks += shown.look(self._network, side, False, quarters)
            looks += shown.look(self._network, side, True, quarters)
        return self._judged(shown.photograph, looks)

    def _judged(self, photograph: np.ndarray, looks: list[Face]) -> _Seen:
        groups = group_looks([look for look in looks if look.score >= LEAST])
        return _Seen(groups, self.look_again(photograph, mean_face(groups[0])) if groups else [])

    def _together(self, photograph: np.ndarray, seen: _Seen) -> list[Face]:
        """One face of all looks at it, for every face that is sure enough."""
        groups = [group for group in seen.groups if group[0].score >= THRESHOLD] or seen.groups[:1]
        again = [seen.again, *(self.look_again(photograph, mean_face(group)) for group in groups[1:])]
        return ranked([mean_face(group + looks) for group, looks in zip(groups, again, strict=False)])

    def _sides(self, photograph: np.ndarray, face: Face) -> dict[int, Face]:
        """How a face looks in the photograph turned to the left by quarters, where it is seen so."""
        left, top, width, height = face.box
        sides = {}
        for quarters in (1, 2, 3):
            # y points down: what is on the right comes to the top
            a = FACE_SIZE / (AROUND * max(width, height)) * (-1j) ** quarters
            b = FACE_SIZE / 2 * (1 + 1j) - a * complex(left + width / 2, top + height / 2)
            if look := self._near(photograph, face, CLOSER, as_matrix(a, b)):
                sides[quarters] = look
        return sides

    def _surer(self, photograph: np.ndarray, side: Face) -> float:
        """Confidence of a face seen from a side, or of looking again by its landmarks: the head may be tilted besides."""
        again = self._near(photograph, side, CLOSER, similarity(side.landmarks))
        return side.score if again is None else max(side.score, again.score)

    def look_again(self, photograph: np.ndarray, face: Face) -> list[Face]:
        """What is seen of one face, upright, mirrored and in the sizes of `AGAIN`."""
        place = similarity(face.landmarks)
        looks = [self._near(photograph, face, size, place, m) for size in AGAIN for m in (False, True)]
        return [look for look in looks if look is not None]

    def _near(
        self, photograph: np.ndarray, face: Face, size: int, place: np.ndarray, mirrored: bool = False
    ) -> Face | None:
        """The face seen from near; None where nothing is seen in the middle.

        Args:
            size: side of the aligned face, in pixels, as it is shown.
            place: [2,3], from pixels of the photograph to those of the aligned face, of 112x112.
        """
        side = round(size * MARGIN)
        place = place * (size / FACE_SIZE)
        place[:, 2] += (side - size) / 2
        picture = warp(photograph, place, side)
        looks = self._network(picture[:, ::-1] if mirrored else picture)
        if mirrored:
            looks = [look.mirrored(side) for look in looks]
        looks = [look for look in looks if np.abs(look.landmarks.mean(0) - side / 2).max() < size / 4]
        if not looks:  # nothing, or a neighbour
            return None
        back = np.linalg.inv(place[:, :2])
        return Face(face.box, (looks[0].landmarks - place[:, 2]) @ back.T, looks[0].score)


def ranked(faces: list[Face]) -> list[Face]:
    """Faces in the order of what a photograph is of: certain before doubtful ones, then by area times confidence."""
    return sorted(faces, key=lambda face: (face.score < CERTAIN, -face.box[2] * face.box[3] * face.score))


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
