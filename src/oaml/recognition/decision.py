"""What is said of two faces: scores against a threshold whose origin is known, and only where enough of both faces shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oaml.errors import OamlError
from oaml.photographs.looks import Face
from oaml.photographs.usable import LEAST_USABLE, USABLE_REMEDY, no_usable_face, usable
from oaml.recognition.quality import Quality, quality_of
from oaml.template import LEAST_SHARED as LEAST_SHARED

if TYPE_CHECKING:
    from oaml.model import Evidence, Model, ModelConfig

Decision = Literal[
    "same person", "different people", "known person", "unknown person",
    "too little visible to decide", "no usable face", "no threshold",
]  # fmt: skip

REMEDY = "fit thresholds with `oaml calibrate MODEL --people FACES --out NEW`, or give one of your own with --threshold"


@dataclass(frozen=True)
class Threshold:
    """Where the line is drawn between the same person and different people."""

    value: float
    """A pair counts as the same person from this fused score on."""
    far: float | None = None
    """Share of impostor pairs (two people) that reach it; None for a threshold of the user's own."""
    fitted_on: str | None = None
    """What it was fitted on, in words; None where nobody states it."""
    evidence: Evidence | None = None
    """How many pairs of how many people stand behind it, with an interval of its rate; None where nobody states it."""

    @staticmethod
    def of_user(value: float) -> Threshold:
        """A threshold of the user's own. Raises OamlError when it is no finite number."""
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise OamlError(f"threshold: {value} is no score; give a finite number")
        return Threshold(value)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What `verify` and `search` both say: a decision, and the threshold that it was made by."""

    decision: Decision
    reason: str
    """One clause that gives the numbers behind the decision."""
    limit: Threshold | None
    least_visible_both: float = LEAST_SHARED
    """Below this share of the face that both show nothing is decided."""

    @property
    def threshold(self) -> float | None:
        """The fused score from which on two faces are one person's; None where there is no threshold."""
        return None if self.limit is None else self.limit.value

    @property
    def threshold_from(self) -> Literal["model", "user"] | None:
        """Whose threshold it is."""
        return None if self.limit is None else "user" if self.limit.far is None else "model"

    @property
    def far(self) -> float | None:
        """See `Threshold`."""
        return None if self.limit is None else self.limit.far

    @property
    def fitted_on(self) -> str | None:
        """See `Threshold`."""
        return None if self.limit is None else self.limit.fitted_on

    @property
    def evidence(self) -> dict[str, Any] | None:
        """See `oaml.model.Evidence`."""
        return None if self.limit is None or self.limit.evidence is None else asdict(self.limit.evidence)

    @property
    def remedy(self) -> str | None:
        """What to do about an answer that is no decision."""
        if self.decision == "no threshold":
            return REMEDY
        if self.decision == "too little visible to decide":
            return "take a photograph on which more of the face shows"
        if self.decision == "no usable face":
            return USABLE_REMEDY
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with `remedy`; aligned faces, which don't count in comparisons of answers, are left out."""
        facts = {field.name: getattr(self, field.name) for field in fields(self) if field.compare}
        del facts["limit"]
        for name in ("threshold", "threshold_from", "far", "fitted_on", "evidence", "remedy"):
            facts[name] = getattr(self, name)
        return {name: _plain(value) for name, value in facts.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


@dataclass(frozen=True, kw_only=True)
class VerifyAnswer(Answer):
    """What is said of two faces. Scores are larger for more similar faces; shares of a face are in [0,1]."""

    score: float
    """The fused score, which decides."""
    joint: float
    qaconv: float
    cosine: float
    """Of the whole embeddings, as if nothing were occluded: the network's plain score, to compare."""
    visible_a: float
    visible_b: float
    visible_both: float
    """Share of the face that both show in the same places."""
    quality_a: Quality
    quality_b: Quality
    """How good each picture is, with reasons."""
    face_a: Face | None
    face_b: Face | None
    """Where the faces are in their photographs; None for an image that is an aligned face."""
    crops: tuple[np.ndarray, np.ndarray] = field(repr=False, compare=False)
    """The aligned faces that were compared, uint8 RGB [112,112,3]; not part of `to_dict`."""

    @property
    def sentence(self) -> str:
        """Decision, reason and what both show, for a title."""
        clause = f"{self.decision[0].upper()}{self.decision[1:]}: {self.reason}"
        if self.decision in ("too little visible to decide", "no usable face"):  # the reason says it already
            return clause
        return f"{clause}; both show {100 * self.visible_both:.0f} % of the face"


def fitted_threshold(config: ModelConfig, far: float, source: str = "config.json") -> Threshold | None:
    """The threshold of the fused score that a model has for a false-accept rate; None for a model without any.

    Args:
        far: share of impostor pairs that may pass, above 0 and below 1.
        source: the model's name in errors.

    Raises:
        OamlError: no rate; a model with thresholds, but not for this one; thresholds that are no numbers.
    """
    if not isinstance(far, int | float) or not 0 < far < 1:
        raise OamlError(f"far: {far} is no share of pairs; give a number above 0 and below 1, such as 0.001")
    try:
        stored = {float(key): float(value) for key, value in config.thresholds.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise OamlError(
            f"{source}: thresholds in config.json are damaged ({error}); copy the model again"
        ) from error
    if not stored:
        return None
    ordered = [stored[rate] for rate in sorted(stored, reverse=True)]
    if any(low > high for low, high in pairwise(ordered)):
        raise OamlError(
            f"{source}: thresholds in config.json are damaged: a smaller false-accept rate has a lower one; copy the model again"
        )
    for known, value in stored.items():
        if math.isclose(known, far, rel_tol=1e-6):
            if not math.isfinite(value):
                raise OamlError(
                    f"{source}: its threshold at FAR {far:g} is {value}: too few pairs when it was fitted; choose another --far"
                )
            fitted_on = config.training.get("thresholds_fitted_on")
            behind = next((x for rate, x in config.evidence.items() if float(rate) == known), None)
            return Threshold(value, far, None if fitted_on is None else str(fitted_on), behind)
    known = ", ".join(f"{rate:g}" for rate in sorted(stored, reverse=True))
    raise OamlError(f"{source}: no threshold at FAR {far:g}; it has {known}: choose one with --far")


def decide(score: float, visible_both: float, threshold: float | None) -> tuple[Decision, str]:
    """Decision and the reason for it. Too little in common comes before any threshold, a user's own included."""
    if visible_both < LEAST_SHARED:
        return (
            "too little visible to decide",
            f"both show {100 * visible_both:.1f} % of the face, a decision needs {100 * LEAST_SHARED:g} %",
        )
    if threshold is None:
        return "no threshold", f"score {score:.3f}, and the model has none to judge it by"
    shown, limit = told_apart(score, threshold)
    if score >= threshold:
        return "same person", f"score {shown} reaches the threshold {limit}"
    return "different people", f"score {shown} stays below the threshold {limit}"


def decide_pairs(
    model: Model,
    crops: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    threshold: Threshold | None,
    faces: Sequence[Face | None],
) -> list[VerifyAnswer]:
    """Score pairs of aligned faces and decide each.

    Args:
        model: in eval mode, on any device.
        crops: uint8 RGB [112,112,3].
        pairs: numbers of two crops, one pair at least.
        threshold: None where there is none.
        faces: where each crop was found; None for one that came aligned.

    Returns:
        An answer a pair. The scores are those of `oaml score` for the pair, bit for bit, on a CPU.

    Raises:
        OamlError: a score is not finite.
    """
    from oaml.inference import extract, score_pairs
    from oaml.visibility import shared_visibility

    a, b = np.array(pairs).T
    templates = extract(model, crops, len(crops))
    scores = score_pairs(model, templates, a, templates, b, plain=False, name=lambda _: "the two faces")
    visible = templates.visible().tolist()
    shared = shared_visibility(templates.visibility[a], templates.visibility[b]).tolist()
    sure = [usable(crop) for crop in crops]
    qualities = [
        quality_of(crop, templates[i : i + 1], faces[i], model.config.typical) for i, crop in enumerate(crops)
    ]
    answers = []
    for row, (i, j) in enumerate(pairs):
        one = {name: float(values[row]) for name, values in scores.items()}
        worse = min(sure[i], sure[j])
        if worse < LEAST_USABLE:
            decision: Decision = "no usable face"
            reason = f"the {'first' if sure[i] == worse else 'second'} image {no_usable_face(worse)}"
        else:
            decision, reason = decide(
                one["fused"], shared[row], None if threshold is None else threshold.value
            )
        answers.append(
            VerifyAnswer(
                decision=decision,
                reason=reason,
                limit=threshold,
                score=one["fused"],
                joint=one["joint"],
                qaconv=one["qaconv_visibility"],
                cosine=one["cosine"],
                visible_a=visible[i],
                visible_b=visible[j],
                visible_both=shared[row],
                quality_a=qualities[i],
                quality_b=qualities[j],
                face_a=faces[i],
                face_b=faces[j],
                crops=(crops[i], crops[j]),
            )
        )
    return answers


def told_apart(score: float, threshold: float) -> tuple[str, str]:
    """Both with as many digits as it takes to see which is larger, three at least."""
    digits = 3
    while score != threshold and digits < 17 and f"{score:.{digits}f}" == f"{threshold:.{digits}f}":
        digits += 1
    return f"{score:.{digits}f}", f"{threshold:.{digits}f}"
