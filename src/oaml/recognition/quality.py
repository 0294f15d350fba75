"""How good a picture of a face is: a number in [0,1] and, in words, what is wrong with it.

The number is the chance that another, ordinary picture of the person is accepted at a false-accept rate of 1 in 1,000, for a
network as good as the starter: a logistic function of what a picture lacks. Two things the network says: the length of the
embedding, which AdaFace and MagFace take for quality (Kim et al., CVPR 2022, section 3.2; Meng et al., CVPR 2021), and how far the
embeddings of its cells agree. The others are read off the picture. `studies/quality.py` fits the weights, and judges them by error
against discarded pictures (Grother and Tabassi, Performance of Biometric Quality Measures, PAMI 2007).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oaml.photographs.looks import Face
from oaml.support.files import FACE_SIZE

if TYPE_CHECKING:
    from oaml.template import Templates

POOR = 0.3
"""Quality below which an enrolment warns."""
BASE = 1.63
"""Logit of a picture that lacks nothing."""
SHARP, BRIGHT, CONTRAST, EYES = 0.25, 90.0, 40.0, 35.0
"""Of a good picture: how strong its finest edges are beside its contrast; mean and deviation of its grey values, of 255; pixels
between the eyes in the photograph, as an aligned face has them."""


class Part(NamedTuple):
    """One thing that a picture may lack."""

    weight: float
    """By how much the logit falls for each unit that is lacking."""
    said: float
    """From how much on it is a reason."""


PARTS = {
    "occluded": Part(1.39, 0.15),
    "eyes hidden": Part(1.2, 0.5),
    "blurred": Part(0.59, 1.0),
    "small": Part(0.25, 0.6),
    "dark": Part(0.0, 0.8),
    "of little contrast": Part(0.41, 0.8),
    "turned": Part(0.0, 0.3),
    "unclear": Part(1.48, 0.4),
    "incoherent": Part(1.4, 0.3),
}
"""Reason -> its part. The first two are shares of the face and of its eyes; `turned` is in distances between the eyes; the others
are halvings: 1 is half as sharp, large, bright, rich in contrast, half as long an embedding, half as much agreement. Darkness
costs what it takes of the contrast, and turned heads are too few in what the weights were fitted on: both are reasons alone."""
EYES_AT = slice(2, 4), slice(1, 6)
"""Rows and columns of 7x7 cells in which the eyes lie."""
OF_NETWORK = {"unclear": "norm", "incoherent": "agreement"}


@dataclass(frozen=True)
class Quality:
    """Of one picture of a face."""

    value: float
    """In [0,1]."""
    reasons: tuple[str, ...] = ()
    """What is wrong with it, the worst first."""

    def __str__(self) -> str:
        return f"{self.value:.2f} of 1" + (f": {', '.join(self.reasons)}" if self.reasons else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"value": self.value, "reasons": list(self.reasons)}

    @staticmethod
    def stored(value: float | None, reasons: str | None) -> Quality | None:
        """What a gallery keeps of it: number and reasons with commas; None where it keeps none."""
        return None if value is None else Quality(value, tuple(filter(None, (reasons or "").split(", "))))


def quality_of(
    crop: np.ndarray, template: Templates, face: Face | None, typical: Mapping[str, float]
) -> Quality:
    """How good a picture is.

    Args:
        crop: the aligned face, uint8 RGB [112,112,3].
        template: of it, one.
        face: where it is in its photograph; None for an aligned face, whose size and turn are not known and count as good.
        typical: `ModelConfig.typical`; without it what the network says doesn't count.
    """
    missing = lacks(crop, template, face, typical)
    value = 1 / (1 + math.exp(sum(PARTS[name].weight * lack for name, lack in missing.items()) - BASE))
    said = {name: lack / PARTS[name].said for name, lack in missing.items() if lack >= PARTS[name].said}
    if said.keys() - OF_NETWORK.keys():  # it is unclear to the network for one of the others
        said = {name: lack for name, lack in said.items() if name not in OF_NETWORK}
    reasons = sorted(said, key=lambda name: -said[name])
    return Quality(value, tuple(reasons))


def lacks(
    crop: np.ndarray, template: Templates, face: Face | None, typical: Mapping[str, float]
) -> dict[str, float]:
    """What a picture lacks, by name of the part; what the network says may be below 0, all else is 0 where nothing is lacking.

    Brightness, contrast and sharpness are those of what shows of the face.
    """
    import cv2

    from oaml.visibility import GRID

    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    shown = template.visibility[0, 0].cpu().numpy()
    weight = cv2.resize(shown, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR) + 1e-3
    weight /= weight.sum()
    mean = float((weight * grey).sum())
    contrast = math.sqrt(float((weight * (grey - mean) ** 2).sum()))
    edges = math.sqrt(float((weight * cv2.Laplacian(grey, cv2.CV_32F) ** 2).sum()))
    at = cv2.resize(shown, GRID[::-1], interpolation=cv2.INTER_AREA)[EYES_AT]
    missing = {
        "occluded": 1 - float(shown.mean()),
        "eyes hidden": 1 - float(at.mean()),
        "blurred": halvings(SHARP, edges / max(contrast, 1)),
        "small": 0.0 if face is None else halvings(EYES, face.eyes),
        "dark": halvings(BRIGHT, mean),
        "of little contrast": halvings(CONTRAST, contrast),
        "turned": 0.0 if face is None else turn(face.landmarks),
    }
    told = {"norm": float(template.norm[0]), "agreement": float(template.agreement()[0])}
    return missing | {
        name: math.log2(typical[what] / max(told[what], 1e-6))
        for name, what in OF_NETWORK.items()
        if what in typical
    }


def halvings(good: float, found: float) -> float:
    """How often a good value must be halved to give the one found: 0 for one as good or better, 10 at most."""
    return min(max(math.log2(good / max(found, 1e-6)), 0.0), 10.0)


def turn(landmarks: np.ndarray) -> float:
    """How far a head is turned to a side: the nose's distance from the middle of eyes and mouth, in distances between the eyes.

    0 from the front, about .5 in half profile.

    Args:
        landmarks: as `oaml.photographs.looks.Face` has them, [5,2].
    """
    across = landmarks[1] - landmarks[0]
    middle = (landmarks[:2].mean(0) + landmarks[3:].mean(0)) / 2
    return abs(float((landmarks[2] - middle) @ across / max(float(across @ across), 1e-6)))
