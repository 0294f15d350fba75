"""`calibrate`: corrections of the fused score and thresholds from the impostor pairs of people held out.

Every set of pairs is scored once, without corrections; what `calibration` fits is then taken off these scores.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from oaml.adaptation.cache import stage3
from oaml.adaptation.calibration import (
    ANCHOR_FAR,
    PAIRS_NEEDED,
    Class,
    Treated,
    fit_lift,
    fit_offset,
    fit_overlap,
    fit_thresholds,
    fit_traces,
    raise_offset,
    raise_thresholds,
)
from oaml.adaptation.evidence import evidence
from oaml.adaptation.extremes import FACES, spoiled
from oaml.adaptation.held_out import SHARED_OCCLUDER, UNOCCLUDED, HeldOut, templates_of
from oaml.adaptation.pooling import fit_pooling
from oaml.inference import score_all
from oaml.model import Model
from oaml.template import LEAST_SHARED, Templates


class Pairs(NamedTuple):
    """Impostor pairs, [N] each."""

    fused: np.ndarray
    """Without corrections."""
    cosine: np.ndarray
    unseen: np.ndarray
    overlap: np.ndarray
    local: np.ndarray
    """What QAConv adds to the fused score."""
    a: np.ndarray
    """The two faces, as rows of the plain embeddings in `Corrections`."""
    b: np.ndarray


@dataclass
class Corrections:
    """What is taken off the fused score; see `oaml.joint.Fusion`."""

    offset: np.ndarray
    overlap: float = 0.0
    embeddings: list[np.ndarray] = field(default_factory=list)
    """Of all faces in pairs, [M,E] each: `Pairs.a` and `b` count through all of them."""
    traces: np.ndarray | None = None
    """What all these embeddings have of what was done to the pictures, [rows,TRACES]."""

    def rows(self, faces: Templates) -> int:
        """The first row of these faces, which are added."""
        first = sum(map(len, self.embeddings))
        self.embeddings.append(faces.embedding.numpy())
        return first

    def of(self, pairs: Pairs) -> np.ndarray:
        """What each pair loses, [N]."""
        offset = np.interp(pairs.unseen, np.linspace(0, 1, len(self.offset)), self.offset)
        less = offset + self.overlap * pairs.overlap * np.maximum(pairs.cosine, 0)
        if self.traces is not None:
            less = less + np.einsum("nt,nt->n", self.traces[pairs.a], self.traces[pairs.b])
        return less.astype(np.float32)

    def score(self, pairs: Pairs) -> np.ndarray:
        """Corrected fused scores [N]."""
        return pairs.fused - self.of(pairs)


def calibrate(model: Model, faces: HeldOut) -> None:
    """Fit the corrections of the fused score and its thresholds on impostor pairs of people held out; all go into the model.

    1. The offset by unseen share: on unoccluded faces against unoccluded and occluded ones.
    2. The factor for overlapping occluders: on pairs of two occluded faces, under different kinds, under one kind, and under the
       very same occluder. Each of the three asks for a factor, and the largest is taken.
    3. The traces of what was done to both pictures alike: on pairs in which both were treated in one of the ways of
       `extremes.WAYS`. With them the first two are fitted once more.
    4. The thresholds: on pairs of two unoccluded faces.
    5. Where pairs of the second and third step still exceed a rate, the offset is raised at their unseen share, and then the
       thresholds. So the rates hold down to the least share that both must show: for all these pairs together, and within twice
       the rate for each class of them.
    6. How far below a threshold QAConv still matters (`fit_lift`): on the pairs of the first step.

    With fewer pairs than the offset needs there is a warning, and all corrections stay zero.

    Args:
        faces: all images occluded in style a, with groups.
    """
    model.fusion.uncorrected()
    unoccluded, first, person = faces.templates(model, UNOCCLUDED), faces.gallery, faces.person
    gallery, owner = unoccluded[first], person[faces.probes]
    occluded = [faces.templates(model, kind) for kind in faces.kinds]
    count = sum(int((x[:, None] != person[first]).sum()) for x in (person, *[owner] * len(occluded)))
    corrections = Corrections(np.zeros(len(model.fusion.offset), np.float32))

    def impostors(
        a: Templates, person_a: Tensor, b: Templates, person_b: Tensor, once: bool = False
    ) -> Pairs:
        return impostor_pairs(model, corrections, a, person_a, b, person_b, once)

    both_unoccluded = impostors(unoccluded, person, unoccluded, person, once=True)
    pairs_unoccluded = impostors(unoccluded, person, gallery, person[first])
    one_side = joined(
        [pairs_unoccluded, *(impostors(probes, owner, gallery, person[first]) for probes in occluded)]
    )
    stated = f"{len(both_unoccluded.fused):,} impostor pairs of unoccluded faces of {len(faces.people.people)} people held out"
    if count >= PAIRS_NEEDED:
        both_sides = _both_sides(model, corrections, faces, occluded)
        alike = [_decided(impostors(x, whose, x, whose, once=True)) for x, whose in _treated(model, faces)]
        alike = [pairs for pairs in alike if len(pairs.fused)]
        _fit(corrections, one_side, pairs_unoccluded, both_sides)
        if alike:
            seen = torch.cat([x.embedding for x in (unoccluded, *occluded)]).numpy()
            everybody = np.concatenate(corrections.embeddings)
            traces, floor = fit_traces(
                [_as_treated(corrections.score(pairs), pairs, everybody) for pairs in alike],
                _as_treated(corrections.score(both_unoccluded), both_unoccluded, everybody),
                seen,
            )
            corrections.traces = np.maximum(everybody @ traces.T - floor, 0)
            model.fusion.traces.copy_(torch.from_numpy(traces))
            model.fusion.trace_floor.copy_(torch.from_numpy(floor))
            _fit(corrections, one_side, pairs_unoccluded, both_sides)
        thresholds = fit_thresholds(corrections.score(both_unoccluded))
        classes = [_decided(pairs) for group in both_sides for pairs in group] + alike
        corrections.offset = corrections.offset + raise_offset(
            [Class(corrections.score(pairs), pairs.unseen) for pairs in classes],
            float(np.quantile(corrections.score(both_unoccluded), 1 - ANCHOR_FAR)),
        )
        thresholds = raise_thresholds(thresholds, [corrections.score(pairs) for pairs in classes])
        more = sum(len(pairs.fused) for pairs in classes)
        stated += (
            f"; held to, within twice the rate in each of {len(classes)} classes, on {more:,} in which both are occluded, "
            "or dark, blurred, coarse, noisy or nearly all hidden"
        )
    else:
        thresholds = fit_thresholds(corrections.score(both_unoccluded))
        warnings.warn(
            f"{count:,} impostor pairs are held out and {PAIRS_NEEDED:,} are needed: the fused score is not "
            "calibrated over the occluded share; give more people",
            stacklevel=2,
        )
    model.config.thresholds = thresholds
    model.config.typical = typical(unoccluded)
    a, b = impostors_among(person).numpy()
    model.config.evidence = evidence(corrections.score(both_unoccluded), a, b, thresholds)
    model.config.training["thresholds_fitted_on"] = stated
    model.fusion.offset.copy_(torch.from_numpy(corrections.offset))
    model.fusion.overlap.fill_(corrections.overlap)
    if thresholds:
        model.fusion.lift.fill_(fit_lift(corrections.score(one_side), one_side.local, thresholds.values()))
    if f"{ANCHOR_FAR:g}" in thresholds:
        model.config.pooling = fit_pooling(model, faces, ANCHOR_FAR)


@torch.inference_mode()
def thresholds_alone(model: Model, faces: HeldOut) -> None:
    """Fit the thresholds that the pairs are enough for; the model's corrections stay, and so do its other thresholds.

    As `calibrate` does: on pairs of unoccluded faces, and raised where pairs of one class or of all classes still exceed a rate.
    A threshold that stays is brought between those of larger and of smaller rates.

    Args:
        faces: as for `calibrate`.
    """
    nothing = Corrections(np.zeros(len(model.fusion.offset), np.float32))  # beyond those of the model
    unoccluded, person = faces.templates(model, UNOCCLUDED), faces.person
    owner = person[faces.probes]
    occluded = [faces.templates(model, kind) for kind in faces.kinds]
    plain = impostor_pairs(model, nothing, unoccluded, person, unoccluded, person, once=True)
    one_side = joined([impostor_pairs(model, nothing, x, owner, unoccluded, person) for x in occluded])
    treated = [impostor_pairs(model, nothing, x, who, x, who, once=True) for x, who in _treated(model, faces)]
    both_sides = [pairs for group in _both_sides(model, nothing, faces, occluded) for pairs in group]
    classes = [_decided(pairs).fused for pairs in [one_side, *both_sides, *treated]]
    fitted = raise_thresholds(fit_thresholds(plain.fused), classes)
    stated = (
        f"{len(plain.fused):,} impostor pairs of unoccluded faces of {len(faces.people.people)} people, thresholds alone, at FAR "
        f"{', '.join(fitted)}"
    )
    stored = {far: value for far, value in model.config.thresholds.items() if far not in fitted}
    kept = {far: between(float(far), value, fitted) for far, value in stored.items()}
    if kept:
        before = model.config.training.get("thresholds_fitted_on", "data that the model doesn't state")
        stated += f" (at FAR {', '.join(kept)} as before, on {before})"
    behind = {far: x for far, x in model.config.evidence.items() if far in kept and kept[far] == stored[far]}
    a, b = impostors_among(person).numpy()
    model.config.evidence = evidence(plain.fused, a, b, fitted) | behind
    model.config.thresholds = fitted | kept
    model.config.typical = model.config.typical or typical(unoccluded)
    model.config.training["thresholds_fitted_on"] = stated
    seen = joined([plain, one_side])
    lift = fit_lift(seen.fused, seen.local, model.config.thresholds.values())
    model.fusion.lift.clamp_min_(lift)  # that of more people stays, where it is larger
    if f"{ANCHOR_FAR:g}" in fitted:
        model.config.pooling = fit_pooling(model, faces, ANCHOR_FAR)


def typical(faces: Templates) -> dict[str, float]:
    """Medians over faces of what the network says of their quality; see `ModelConfig.typical`."""
    return {"norm": float(faces.norm.median()), "agreement": float(faces.agreement().median())}


def between(far: float, value: float, fitted: dict[str, float]) -> float:
    """A threshold made no lower than those of larger rates, and no higher than those of smaller ones."""
    low = max((x for rate, x in fitted.items() if float(rate) > far), default=-np.inf)
    high = min((x for rate, x in fitted.items() if float(rate) < far), default=np.inf)
    return float(min(max(value, low), high))


@torch.inference_mode()
def unoccluded_scores(model: Model, faces: HeldOut) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fused scores of the impostor pairs of unoccluded faces, as the model gives them, and whose either image is; [N] each."""
    templates, rows = faces.templates(model, UNOCCLUDED), np.arange(len(faces.person))
    scores = score_all(model, templates, rows, templates, rows, plain=False)["fused"]
    different = (faces.person[:, None] != faces.person).triu(1).numpy()
    a, b = impostors_among(faces.person).numpy()
    return scores[different], a, b


def _fit(corrections: Corrections, one_side: Pairs, unoccluded: Pairs, both_sides: list[list[Pairs]]) -> None:
    """Offset and overlap, with the traces that the corrections have already.

    Args:
        one_side: one face unoccluded, the other not or in any way.
        unoccluded: those of `one_side` without any occluder.
        both_sides: three ways to occlude both faces, each by kinds of occluder.
    """
    corrections.offset, corrections.overlap = np.zeros_like(corrections.offset), 0.0
    corrections.offset = fit_offset(corrections.score(one_side), one_side.unseen)
    threshold = np.quantile(corrections.score(unoccluded), 1 - ANCHOR_FAR)
    factors = [0.0]
    for by_kind in both_sides:  # within each of the three all kinds weigh the same
        weight = [np.full(len(pairs.fused), 1 / len(pairs.fused)) for pairs in by_kind if len(pairs.fused)]
        if weight:
            pairs = joined(by_kind)
            excess = corrections.score(pairs) - threshold
            factors.append(fit_overlap(excess, pairs.overlap, pairs.cosine, np.concatenate(weight)))
    corrections.overlap = max(factors)


def _both_sides(
    model: Model, corrections: Corrections, faces: HeldOut, occluded: list[Templates]
) -> list[list[Pairs]]:
    """Pairs of two occluded faces: under two kinds of occluder, under one kind, under one occluder; by kinds each."""
    half = torch.arange(0, len(faces.probes), 2)
    owner = faces.person[faces.probes][half]
    halves = [probes[half] for probes in occluded]
    shifted = halves[1:] + halves[:1]
    two_kinds = [
        impostor_pairs(model, corrections, a, owner, b, owner) for a, b in zip(halves, shifted, strict=True)
    ]
    one_kind = [impostor_pairs(model, corrections, a, owner, a, owner, once=True) for a in halves]
    one_occluder = []
    if faces.group is not None:
        group = torch.from_numpy(faces.group)[faces.probes]
        for kind in faces.kinds:
            same, parts = faces.templates(model, SHARED_OCCLUDER.format(kind)), []
            for number in group.unique():
                rows = (group == number).nonzero()[:, 0]
                owner = faces.person[faces.probes][rows]
                parts.append(
                    impostor_pairs(model, corrections, same[rows], owner, same[rows], owner, once=True)
                )
            one_occluder.append(joined(parts))
    return [two_kinds, one_kind, one_occluder]


def _treated(model: Model, faces: HeldOut) -> list[tuple[Templates, Tensor]]:
    """For each way of `extremes.WAYS` templates of faces treated so, one a person, and whose they are."""
    chosen = faces.gallery[torch.linspace(0, len(faces.gallery) - 1, min(FACES, len(faces.gallery))).long()]
    images, treated = [faces.people.image(i) for i in chosen.tolist()], []
    for kept, left in spoiled(images, faces.occluder.seed):
        maps = [stage3(model, left)]
        if model.config.flip:
            maps.append(stage3(model, [face[:, ::-1] for face in left]))
        treated.append((templates_of(model, maps), faces.person[chosen[kept]]))
    return treated


def joined(parts: list[Pairs]) -> Pairs:
    """Several sets of pairs as one."""
    return Pairs(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def impostor_pairs(
    model: Model,
    corrections: Corrections,
    a: Templates,
    person_a: Tensor,
    b: Templates,
    person_b: Tensor,
    once: bool = False,
) -> Pairs:
    """All impostor pairs of a face of a and one of b.

    Args:
        model: without corrections.
        corrections: take both into their rows.
        once: a and b are the same faces, and (i, j) makes (j, i) needless.
    """
    different = person_a[:, None] != person_b
    different = (different.triu(1) if once else different).numpy()
    by_score = score_all(model, a, np.arange(len(a)), b, np.arange(len(b)), plain=False)
    hidden = model.joint.hidden(a.visibility, b.visibility)
    local = by_score["qaconv_visibility"] * model.fusion.qaconv_weight.item()
    values = (by_score["fused"], by_score["cosine"], *(x.numpy() for x in hidden), local)
    rows = corrections.rows(a)
    columns = rows if once else corrections.rows(b)
    pairs = (first + index for first, index in zip((rows, columns), different.nonzero(), strict=True))
    return Pairs(*(x[different].astype(np.float32) for x in values), *pairs)


def _as_treated(scores: np.ndarray, pairs: Pairs, embeddings: np.ndarray) -> Treated:
    """Pairs with these scores, and the embeddings of their faces alone."""
    rows, places = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
    return Treated(scores, embeddings[rows], *np.split(places, 2))


def impostors_among(person: Tensor) -> Tensor:
    """Whose the images of each pair are, int64 [2,N], in the order of `impostor_pairs` of some faces among themselves.

    Args:
        person: of each face.
    """
    return person[(person[:, None] != person).triu(1).nonzero()].T


def _decided(pairs: Pairs) -> Pairs:
    """Those that show enough in common for a decision."""
    return Pairs(*(values[1 - pairs.unseen >= LEAST_SHARED] for values in pairs))
