"""Thresholds at stated false-accept rates, and corrections of the fused score so that one threshold holds whatever is occluded.

All is fitted on impostor pairs of people whom no training saw. The score that a small share of them exceeds (a quantile) depends on
how much of the face both show. That dependence is fitted by quantile regression (Koenker and Bassett, Regression Quantiles,
Econometrica 1978) and subtracted.

What is done to a picture (darkness, blur, few pixels, a large occluder) moves the embeddings of all faces into a few directions,
and two pictures treated alike are similar for it. What both have in such a direction is subtracted too, as channels are in speaker
recognition (Solomonoff et al., Channel Compensation for SVM Speaker Recognition, Odyssey 2004: nuisance attribute projection), but
only beyond where faces that are well seen end: their own differences, by which people are told apart, are left alone. Each
direction is that which separates one way of treating pictures from such faces (Fisher, The Use of Multiple Measurements in
Taxonomic Problems, Annals of Eugenics 1936).

Shapes: N pairs; E embedding size. Scores are logits: higher is more similar. `unseen` is the share of the face that the two don't
both show, `overlap` how much of that both hide (`oaml.joint.Compared`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from oaml.joint import KNOTS, TRACES
from oaml.support.metrics import MIN_FALSE_ACCEPTS

FARS = (1e-2, 1e-3, 1e-4)
ANCHOR_FAR = 1e-3
"""False-accept rate whose threshold the corrections make the same for all pairs."""
PAIRS_NEEDED = 20_000
"""Impostor pairs that an offset can be fitted on: at `ANCHOR_FAR` 20 of them exceed the quantile."""
UNSEEN_MARGIN = 0.3
"""What a pair loses beyond the fit, as a score says less the less of the face both show: at an unseen share of 1 this much of the
distance between the thresholds of FAR 1e-2 and 1e-3, at a smaller share in proportion."""
RIDGE = 0.1
"""Added to the second moments of well seen faces, as a factor on their mean."""
WELL_SEEN = (0.99, 0.95, 0.9, 0.75, 0.5)
"""Shares of well seen faces that lie below the floor of a direction, and lose nothing by it: the first is taken with which the
rates can be made to hold. With .95 many a person lies beyond the floor of some direction in all photographs, and genuine pairs of
theirs lose; but a network may leave treated faces not much further out than the last of the others."""
STRENGTHS = np.geomspace(1, 400, 40)
"""What traces may count for, in scores a unit of the product of two pictures' projections; a way's mean projects to 1."""
TRACE_FARS = (1e-2, 1e-3)
"""False-accept rates that pictures treated alike are held to."""
SLACK = 2.0
"""What a class may let through, as a factor on the stated rate; all classes together keep the rate. Each of dozens kept to it by
itself costs more genuine pairs, and by chance a class of ten false accepts is a third off."""
WINDOW = 0.05
"""A knot of the offset is raised for pairs whose unseen share is so near to its own."""
STEPS = 250
"""Steps of gradient descent in the quantile regression; more change nothing."""


def fit_offset(scores: np.ndarray, unseen: np.ndarray, far: float = ANCHOR_FAR) -> np.ndarray:
    """What to subtract from the fused score at each unseen share so that at all of them a share `far` of impostor pairs exceeds the
    same score.

    Args:
        scores: of impostor pairs with one unoccluded face, before any correction, [N].
        unseen: [N] in [0,1].

    Returns:
        float32 [KNOTS], at unseen shares evenly from 0 to 1; 0 at a share of 0. A parabola, plus `UNSEEN_MARGIN`: a quantile for
        each small range of shares would follow the few kinds of occluder that hide just so much, and held worse for occluders of
        other people. Above the largest share that occurs it rises linearly, at a share of 1 by the distance from the fitted
        quantile to the highest score: a pair with nothing in common is not accepted.

    Raises:
        ValueError: too few pairs.
    """
    if len(scores) < PAIRS_NEEDED:
        raise ValueError(f"{len(scores):,} impostor pairs, at least {PAIRS_NEEDED:,} are needed")
    share = torch.from_numpy(np.asarray(unseen)).double()
    place = (share * (KNOTS - 1)).long()
    # each range of shares counts by the square root of its pairs: rare ones for more than their number
    weight = torch.bincount(place, minlength=KNOTS)[place].double().rsqrt()
    level, slope, bend = _quantile(
        scores, torch.stack([torch.ones_like(share), share, share**2]), weight, far
    )
    knots = np.linspace(0, 1, KNOTS)
    spread = np.quantile(scores, 1 - far) - np.quantile(scores, 1 - 10 * far)
    offset = (slope + UNSEEN_MARGIN * spread) * knots + bend * knots**2
    beyond = knots > unseen.max()
    if beyond.any():
        last = knots[~beyond][-1]
        offset[beyond] = offset[~beyond][-1] + (scores.max() - level) * (knots[beyond] - last) / (1 - last)
    return offset.astype(np.float32)


def fit_overlap(
    excess: np.ndarray, overlap: np.ndarray, cosine: np.ndarray, weight: np.ndarray, far: float = ANCHOR_FAR
) -> float:
    """The factor of a correction for two faces occluded in the same places: the pair loses factor * overlap * cosine.

    Similar occluders make the plain embeddings of two people similar and, through cells at their edges, the fused score too high.

    Args:
        excess: how far the scores of impostor pairs, both faces occluded, lie above the threshold of `far` (negative: below), once
            the offset is subtracted, [N].
        overlap: [N] in [0,1].
        cosine: of the plain embeddings, [N]; below 0 it counts as 0.
        weight: of each pair, [N].

    Returns:
        The least factor, at least 0, with which no more than the weighted share `far` of the pairs stays above the threshold.
        Pairs whose overlap * cosine is below 0.05 are above it for another reason and are not counted.
    """
    agreement = overlap * np.maximum(cosine, 0)
    # the factor that each pair would take to fall to the threshold
    needed = np.where(agreement < 0.05, 0, np.maximum(excess, 0) / np.maximum(agreement, 0.05))
    order = np.argsort(-needed)
    share = np.cumsum(weight[order]) / weight.sum()
    return float(needed[order][np.searchsorted(share, far, side="right")])


class Class(NamedTuple):
    """Impostor pairs of one kind, [N] each."""

    scores: np.ndarray
    unseen: np.ndarray


class Treated(NamedTuple):
    """Impostor pairs of faces that were treated alike: pair n is of faces a[n] and b[n]."""

    scores: np.ndarray
    """[N]"""
    embeddings: np.ndarray
    """Plain, of unit length, [M,E]."""
    a: np.ndarray
    b: np.ndarray


def fit_traces(
    classes: Sequence[Treated], unoccluded: Treated, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Directions in which embeddings show what was done to a picture, and from where on.

    One direction after the other is added for the class of pairs that exceeds the rates of `TRACE_FARS` most, with the highest
    floor and the least of `STRENGTHS` that make it hold, or come nearest; until all do, or there are `TRACES`.

    Args:
        classes: for each way to treat both pictures.
        unoccluded: pairs of unoccluded faces, on which the thresholds of the rates are fitted.
        seen: embeddings of faces, unoccluded and occluded, of unit length [N,E].

    Returns:
        float32 [TRACES,E] and [TRACES], of strength: `oaml.joint.Fusion.traces` and `trace_floor`.
    """
    size = seen.shape[1]
    moments = seen.T.astype(np.float64) @ seen / len(seen)
    inverse = np.linalg.inv(moments + RIDGE * np.trace(moments) / size * np.eye(size))
    sets = [*classes, unoccluded]
    lost = [np.zeros(len(pairs.scores)) for pairs in sets]
    traces, floor = np.zeros((TRACES, size), np.float32), np.zeros(TRACES, np.float32)
    for number in range(TRACES):
        limits = [np.quantile(unoccluded.scores - lost[-1], 1 - far) for far in TRACE_FARS]

        def exceeds(scores: np.ndarray, limits: Sequence[float] = limits) -> float:
            rates = ((scores > limit).mean() / far for limit, far in zip(limits, TRACE_FARS, strict=True))
            return max(rates)

        leaks = [exceeds(pairs.scores - less) for pairs, less in zip(classes, lost, strict=False)]
        worst = int(np.argmax(leaks))
        if leaks[worst] <= 1:
            break
        mean = classes[worst].embeddings.mean(0)
        direction = inverse @ mean
        direction /= direction @ mean
        scores, best = classes[worst].scores - lost[worst], (np.inf, 0.0, 0.0)
        for share in WELL_SEEN:
            beyond = max(0.0, float(np.quantile(seen @ direction, share)))
            both = _common(classes[worst], direction, beyond)
            left = [exceeds(scores - strength * both) for strength in STRENGTHS]
            least = int(np.argmax(np.array(left) <= max(1.0, min(left))))
            best = min(best, (max(1.0, left[least]), STRENGTHS[least], beyond), key=lambda found: found[0])
            if best[0] <= 1:
                break
        _, strength, beyond = best
        common = [_common(pairs, direction, beyond) for pairs in sets]
        lost = [less + strength * both for less, both in zip(lost, common, strict=True)]
        traces[number], floor[number] = strength**0.5 * direction, strength**0.5 * beyond
    return traces, floor


def _common(pairs: Treated, direction: np.ndarray, floor: float) -> np.ndarray:
    """Product of what both faces of a pair have in a direction beyond its floor, [N]."""
    beyond = np.maximum(pairs.embeddings @ direction - floor, 0)
    return beyond[pairs.a] * beyond[pairs.b]


def raise_offset(classes: Sequence[Class], threshold: float, far: float = ANCHOR_FAR) -> np.ndarray:
    """By how much the offset is too small where both faces are occluded or treated: [KNOTS], at least 0, and 0 at a share of 0.

    At every knot it is the least with which, of the pairs with about that unseen share, no class lets through more than `SLACK`
    times the rate, and all classes together no more than the rate. Where too few pairs say anything about it it is left alone.

    Args:
        classes: impostor pairs, scores with all corrections so far.
        threshold: of the false-accept rate `far`.
    """
    raised = np.zeros(KNOTS, np.float32)
    for knot in range(1, KNOTS):
        share = knot / (KNOTS - 1)
        near = [x.scores[np.abs(x.unseen - share) < WINDOW + 1e-6] for x in classes]
        for scores, rate in ((np.concatenate(near), far), *((scores, SLACK * far) for scores in near)):
            if len(scores) * rate >= MIN_FALSE_ACCEPTS:
                raised[knot] = max(raised[knot], _exceeded_by(scores, rate) - threshold)
    return raised


def raise_thresholds(thresholds: Mapping[str, float], classes: Sequence[np.ndarray]) -> dict[str, float]:
    """Thresholds with which no class of impostor pairs lets through more than `SLACK` times the rate, all together no more than it.

    None is lowered, and none lies below that of a larger rate. A class of too few pairs for a rate says nothing about it.

    Args:
        thresholds: {rate as text: threshold}.
        classes: scores with all corrections.
    """
    raised: dict[str, float] = {}
    every = [(scores, SLACK) for scores in classes] + [(np.concatenate([*classes, np.zeros(0)]), 1.0)]
    for far, threshold in sorted(thresholds.items(), key=lambda item: -float(item[0])):
        rates = [(scores, factor * float(far)) for scores, factor in every]
        needed = [_exceeded_by(x, rate) for x, rate in rates if len(x) * rate >= MIN_FALSE_ACCEPTS]
        raised[far] = max([threshold, *needed, *raised.values()])
    return raised


def _exceeded_by(scores: np.ndarray, far: float) -> float:
    """The least threshold that accepts at most a share `far` of the scores."""
    ordered = np.sort(scores)[::-1]
    return float(np.nextafter(ordered[int(far * len(ordered) + 1e-9)], np.float32(np.inf)))


def fit_lift(scores: np.ndarray, local: np.ndarray, thresholds: Iterable[float]) -> float:
    """How far below a threshold pairs lie without QAConv that it lifts to the threshold: the most of all pairs, at least 0.

    A pair that lies further below needs no comparison of cells: it is rejected with QAConv too.

    Args:
        scores: fused scores with all corrections, [N].
        local: what QAConv adds to them, [N].
    """
    needed = [0.0]
    for threshold in thresholds:
        accepted = scores >= threshold
        needed.append(float((threshold - (scores - local)[accepted]).max(initial=0)))
    return max(needed)


def _quantile(scores: np.ndarray, features: Tensor, weight: Tensor, far: float) -> list[float]:
    """Quantile regression: coefficients [K] such that a weighted share `far` of the scores [N] exceeds coefficients @ features.

    Args:
        features: [K,N]; the first row is constant.
    """
    target = torch.from_numpy(np.asarray(scores)).double()
    unit = target.std().clamp_min(1e-6)
    target, weight = target / unit, weight / weight.sum()
    # a share and its square go together; the descent needs directions that don't, each of length 1
    ridge = 1e-6 * torch.eye(len(features), dtype=torch.float64)  # where all pairs show the same share
    triangle = torch.linalg.cholesky((features * weight) @ features.T + ridge)
    direction = torch.linalg.solve_triangular(triangle, features, upper=False)
    coefficients = torch.zeros(len(features), dtype=torch.float64)
    coefficients[0] = torch.from_numpy(np.quantile(target.numpy(), [1 - far]))[0]
    coefficients.requires_grad_()
    optimiser = torch.optim.Adam([coefficients], lr=0.1)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / STEPS) + 1e-3
        above = target - coefficients @ direction
        loss = (weight * torch.maximum((1 - far) * above, -far * above)).sum() / far
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fitted = torch.linalg.solve_triangular(triangle.T, coefficients.detach()[:, None], upper=True)
    return (fitted[:, 0] * unit).tolist()


def fit_thresholds(scores: np.ndarray) -> dict[str, float]:
    """Scores of impostor pairs [N] -> {false-accept rate, as written in config.json: its threshold}.

    A rate is left out where the pairs are too few for it: it needs `MIN_FALSE_ACCEPTS` false accepts. A pair is accepted when its
    score is at least the threshold.
    """
    ordered = np.sort(scores)[::-1]
    return {
        f"{far:g}": float(ordered[int(far * len(ordered) + 1e-9) - 1])
        for far in FARS
        if far * len(ordered) >= MIN_FALSE_ACCEPTS
    }
