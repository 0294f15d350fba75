"""What a gallery says: who a face is, who is enrolled, what an enrolment changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from oaml.photographs.looks import Face
from oaml.photographs.usable import LEAST_USABLE, no_usable_face
from oaml.recognition.decision import LEAST_SHARED, Answer, Decision, Threshold, decide, told_apart
from oaml.recognition.quality import Quality


@dataclass(frozen=True)
class Candidate:
    """An enrolled person beside a face. Scores are larger for more similar faces; shares of a face are in [0,1]."""

    person: str
    score: float
    """The fused score, which decides."""
    cosine: float
    """Of the whole embeddings, as if nothing were occluded: the network's plain score, to compare."""
    visible_both: float
    """Share of the face that both show in the same places."""
    faces: int
    """Enrolled images of the person that were compared."""
    image: str
    """SHA-256 of the most similar enrolled image."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SearchAnswer(Answer):
    """Who one face of a photograph is."""

    person: str | None
    """The known person, and only then."""
    candidates: list[Candidate]
    """The most similar people, best first."""
    people: int
    """In the gallery."""
    strangers_expected: float | None
    """How many of the people enrolled a stranger's face passes for, on average: people x FAR. None: not known."""
    strangers_taken: float | None
    """Share of strangers who are taken for somebody enrolled, see `strangers_taken`. None: not known."""
    visible: float
    """Share of the face that shows."""
    quality: Quality | None
    """Of the picture, or of the best one of a video."""
    face: Face | None
    """Where it is in the photograph; None for an image that is an aligned face."""
    crop: np.ndarray | None = field(repr=False, compare=False)
    """The aligned face that was asked about, uint8 RGB [112,112,3]; not part of `to_dict`."""

    @property
    def sentence(self) -> str:
        """Decision and reason, for a title."""
        return f"{(self.person or self.decision[0].upper() + self.decision[1:])}: {self.reason}"


@dataclass(frozen=True)
class Person:
    """Who is enrolled."""

    name: str
    faces: int
    thumbnails: int
    best: float | None = None
    """Quality of the best picture, in [0,1]; None where none is known, in galleries of older versions."""
    worst: Quality | None = None
    """Of the worst picture."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Duplicate:
    """Two people of a gallery who are probably one."""

    person_a: str
    person_b: str
    score: float
    """The fused score of what all their images show."""
    visible_both: float
    """Share of the face that both show in the same places, in [0,1]."""


@dataclass(frozen=True)
class Duplicates:
    """People who are probably enrolled twice."""

    pairs: list[Duplicate]
    """The most similar first; all reach the threshold, and show at least `least_visible_both` in common."""
    limit: Threshold
    people: int
    """In the gallery; everybody was compared with everybody."""
    impostors_expected: float
    """How many impostor pairs (of two people) reach the threshold on average: pairs x FAR."""
    least_visible_both: float = LEAST_SHARED

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        facts = asdict(self)
        limit = facts.pop("limit")
        return {**facts, "threshold": limit.pop("value"), **limit}


@dataclass(frozen=True)
class EnrolledImage:
    """One picture of a person."""

    person: str
    source: str
    """Path; empty where it has none."""
    image: str
    """SHA-256 of the image."""
    quality: Quality | None
    """None in galleries of older versions."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Enrolled:
    """What an enrolment changed, in images."""

    added: int = 0
    removed: int = 0
    moved: int = 0
    """Under another name or in another place, and the same in content."""
    kept: int = 0
    left_out: list[str] = field(default_factory=list)
    """What was not enrolled and why, a line each."""
    notes: list[str] = field(default_factory=list)
    """What may be a mistake, or is no longer there and stays, a line each."""
    poor: list[str] = field(default_factory=list)
    """Pictures that were added though they are poor, and why, a line each."""
    without: list[str] = field(default_factory=list)
    """People of the folder of whom nothing is enrolled, for none of their pictures could be used."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def strangers_taken(people: int, far: float) -> float:
    """Share of strangers who reach the threshold of a false-accept rate with somebody among so many people.

    As if the pairs of a stranger were independent (Wayman, Error Rate Equations for the General Biometric System, IEEE Robotics &
    Automation Magazine 1999). In truth some strangers pass for several people, and fewer for anybody.
    """
    return 1 - (1 - far) ** people


def judge(
    candidates: Sequence[Candidate],
    threshold: Threshold | None,
    people: int,
    visible: float,
    face: Face | None,
    top: int,
    crop: np.ndarray | None = None,
    usable: float = 1.0,
    quality: Quality | None = None,
) -> SearchAnswer:
    """Decide who a face is.

    The best of the candidates that have enough in common with the face decides; where none has, nothing can be decided.

    Args:
        candidates: of any number, best first.
        threshold: None where there is none.
        people: in the gallery.
        visible: share of the face that shows.
        face: where it is.
        top: candidates to name.
        crop: the aligned face.
        usable: how sure it is that it shows one (`oaml.photographs.usable`).
        quality: of the picture.
    """
    limit = None if threshold is None else threshold.value
    judged = [c for c in candidates if c.visible_both >= LEAST_SHARED]
    best = judged[0] if judged else None
    if usable < LEAST_USABLE:
        verdict: Decision = "no usable face"
        reason = f"the image {no_usable_face(usable)}"
    elif best is not None and limit is not None and best.score >= limit:
        verdict = "known person"
        reason = decide(best.score, best.visible_both, limit)[1]
    elif visible < LEAST_SHARED or (candidates and best is None):
        verdict = "too little visible to decide"
        shared = max((c.visible_both for c in candidates), default=visible)
        reason = f"no more than {100 * shared:.1f} % of the face shows here and there, a decision needs {100 * LEAST_SHARED:g} %"
    elif best is None:
        verdict, reason = "unknown person", "nobody is enrolled"
    elif limit is None:
        verdict = "no threshold"
        reason = f"{best.person} is the most similar, with a score of {best.score:.3f}; the model has no threshold to judge it by"
    else:
        score, wanted = told_apart(best.score, limit)
        verdict = "unknown person"
        reason = f"{best.person} is the most similar; the score {score} stays below the threshold {wanted}"
    far = None if threshold is None else threshold.far
    return SearchAnswer(
        decision=verdict,
        reason=reason,
        limit=threshold,
        person=best.person if best is not None and verdict == "known person" else None,
        candidates=list(candidates[:top]),
        people=people,
        strangers_expected=None if far is None else people * far,
        strangers_taken=None if far is None else strangers_taken(people, far),
        visible=visible,
        quality=quality,
        face=face,
        crop=crop,
    )
