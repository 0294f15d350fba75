"""Measures of verification and identification, as pure functions of scores.

Notation: a pair has a score (larger = more similar) and is *genuine* (two images of one person, `same` is
True) or *impostor* (of two people). It is accepted when `score >= threshold`. FAR is the share of impostor
pairs accepted, TAR the share of genuine pairs accepted, FRR = 1 - TAR.

All functions raise ValueError for arrays of unequal length, scores that are not finite, and where a class of
pairs that a measure needs is empty.

Sources:
- ROC, EER: ISO/IEC 19795-1; Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27
  (2006).
- AUC as the Mann-Whitney statistic: Hanley & McNeil, Radiology 143 (1982).
- 10-fold accuracy: Huang et al., "Labeled Faces in the Wild", UMass technical report 07-49 (2007), with the
  thresholds that face recognition papers use for unit embeddings.
- Intervals by person: Bolle, Ratha & Pankanti, "Error analysis of pattern recognition systems - the subsets
  bootstrap", CVIU 93 (2004); product weights: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics
  1 (2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FARS: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
"""The false accept rates that a report states."""

MIN_FALSE_ACCEPTS = 10
"""A FAR is reported only where the impostor pairs let at least this many through at it.

With k false accepts the true rate at the threshold has a relative standard error of about 1/sqrt(k): a third
at 10. With one, the threshold is a single pair's score, and "FAR 1e-4" would be a name and not a measurement.
"""

OCCLUDED_SHARES: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
"""Edges of the bins of occluded share: a bin holds its lower edge, the last also its upper one."""

VISIBLE_SHARES: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Edges of the bins of the area that two faces both show."""

MIN_GENUINE_PAIRS = 30
"""With fewer genuine pairs in a bin, one pair moves the TAR by more than .03: such a bin is marked."""

MIN_EXPECTED = 30
"""A FAR at a frozen threshold is stated only where at least this many false accepts are expected.

With 30, chance alone gives between 20 and 42 in 95 of 100 lists: a third more or less, and a doubled rate shows.
"""


class Roc(NamedTuple):
    """Operating points from "accept nothing" (threshold inf) to "accept all", one a distinct score."""

    far: np.ndarray
    """float64 [T], not decreasing, 0 to 1."""
    tar: np.ndarray
    """float64 [T], not decreasing, 0 to 1."""
    threshold: np.ndarray
    """float64 [T], decreasing; pairs with score >= threshold are accepted."""


class TarAtFar(NamedTuple):
    """What is accepted at a stated FAR."""

    tar: float
    """Share of genuine pairs accepted, 0 to 1."""
    threshold: float
    """Smallest observed score whose FAR does not exceed the stated one; inf where there is none."""


class Interval(NamedTuple):
    """Two-sided interval of a measure."""

    low: float
    high: float


class Folds(NamedTuple):
    """Result of the k-fold protocol."""

    accuracy: np.ndarray
    """float64 [folds], share of correct decisions in each held-out fold."""
    threshold: np.ndarray
    """float64 [folds], distance below which a pair was called same, chosen on the other folds."""


class Rates(NamedTuple):
    """What a threshold that was fixed beforehand accepts; None for a class without pairs."""

    genuine_pairs: int
    impostor_pairs: int
    tar: float | None
    far: float | None
    tar_interval: Interval | None
    """95 %, by resampling people; None without resamples too."""
    far_interval: Interval | None


class Summary(NamedTuple):
    """All verification measures of one score on one set of pairs, with 95 % intervals by person."""

    genuine_pairs: int
    impostor_pairs: int
    people: int
    auc: float
    eer: float
    tar: dict[float, TarAtFar | None]
    """Stated FAR -> operating point, None where there are too few impostor pairs."""
    auc_interval: Interval | None
    eer_interval: Interval | None
    tar_interval: dict[float, Interval | None]


def roc(scores: np.ndarray, same: np.ndarray) -> Roc:
    """Receiver operating characteristic; pairs with equal scores are accepted together.

    Args:
        scores: [N], larger = more similar.
        same: bool [N].
    """
    ranked = _Ranked(scores, same)
    far, tar = ranked.curve()
    return Roc(far, tar, np.concatenate([[np.inf], ranked.distinct]))


def tar_at_far(scores: np.ndarray, same: np.ndarray, far: float) -> TarAtFar:
    """TAR at the smallest observed score whose share of accepted impostor pairs is at most `far`.

    Conservative: no interpolation between operating points, and a group of equal scores that would exceed
    `far` is rejected as a whole.

    Args:
        scores: [N], larger = more similar.
        same: bool [N].
        far: 0 to 1.
    """
    return tars_at_fars(scores, same, [far])[0]


def tars_at_fars(scores: np.ndarray, same: np.ndarray, fars: Sequence[float]) -> list[TarAtFar]:
    """`tar_at_far` at several rates; millions of scores are sorted once."""
    if wrong := [far for far in fars if not 0 <= far <= 1]:
        raise ValueError(f"far: {wrong[0]} is not in [0, 1]")
    curve = roc(scores, same)
    places = [_last_at_most(curve.far, far) for far in fars]
    return [TarAtFar(float(curve.tar[place]), float(curve.threshold[place])) for place in places]


def enough_negatives(negatives: int, far: float) -> bool:
    """Whether so many impostor pairs can measure `far`: negatives * far >= MIN_FALSE_ACCEPTS."""
    return negatives * far >= MIN_FALSE_ACCEPTS - 1e-9


def auc(scores: np.ndarray, same: np.ndarray) -> float:
    """Probability that a genuine pair scores above an impostor pair, ties counted half. 0 to 1."""
    return _auc(*_Ranked(scores, same).curve())


def eer(scores: np.ndarray, same: np.ndarray) -> float:
    """Equal error rate: FAR where it equals FRR, on straight lines between operating points. 0 to 1."""
    return _eer(*_Ranked(scores, same).curve())


def rank1_hits(scores: np.ndarray, probe_labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """Which probes have their person at rank 1: the best image of that person scores above all images of other people.

    A tie is a miss, so that a score that is the same for all pairs has no hits.

    Args:
        scores: [P,G], larger = more similar.
        probe_labels: [P], who each probe is.
        gallery_labels: [G], who each gallery image is.

    Returns:
        bool [P].

    Raises:
        ValueError: also for a probe whose person is not in the gallery (the measure is for closed sets).
    """
    scores, probe_labels, gallery_labels = map(np.asarray, (scores, probe_labels, gallery_labels))
    if scores.shape != (len(probe_labels), len(gallery_labels)):
        raise ValueError(f"scores {scores.shape}: expected [{len(probe_labels)}, {len(gallery_labels)}]")
    if not np.isfinite(scores).all():
        raise ValueError("scores: some are not finite")
    own = probe_labels[:, None] == gallery_labels[None]
    if not own.any(1).all():
        raise ValueError(f"probe {int(np.argmin(own.any(1)))}: its person is not in the gallery")
    best_own = np.where(own, scores, -np.inf).max(1)
    best_other = np.where(own, -np.inf, scores).max(1)
    return best_own > best_other


def retrieval(scores: np.ndarray, probe_labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """What looking up each probe gives: P@1, R-precision and MAP@R, float64 [P,3].

    Of a probe whose person has R gallery images the first R by score are judged: R-precision is the share of them that is of the
    person, MAP@R the mean over these places of the precision up to a place, where that place is right (Musgrave et al., A Metric
    Learning Reality Check, ECCV 2020, section 3.2). Equal scores count against the probe.

    Args:
        scores: [P,G].
        probe_labels, gallery_labels: [P] and [G], see `rank1_hits`, which P@1 is of each probe.
    """
    first = rank1_hits(scores, probe_labels, gallery_labels)
    right = np.asarray(probe_labels)[:, None] == np.asarray(gallery_labels)
    values = np.empty((len(scores), 3))
    for row, (score, same) in enumerate(zip(scores, right, strict=True)):
        most = same.sum()
        best = same[np.lexsort((same, -score))[:most]]
        precision = np.cumsum(best) / np.arange(1, most + 1)
        values[row] = first[row], best.mean(), (precision * best).sum() / most
    return values


def own_ranks(scores: np.ndarray, probe_labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """Where the person of each probe ranks: 1 + the images of other people that score at least as high as the best of their own.

    Args:
        scores: [P,G].
        probe_labels, gallery_labels: [P] and [G]; a probe whose person isn't in the gallery ranks behind all of it.

    Returns:
        int [P], from 1 on.
    """
    own = np.asarray(probe_labels)[:, None] == np.asarray(gallery_labels)
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    return 1 + ((scores >= best) & ~own).sum(1)


def mean_iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean over both classes, shown and hidden, of intersection / union over all cells of all images.

    Args:
        predicted, true: bool, of one shape; a class that neither holds doesn't count.

    Returns:
        0 to 1.
    """
    shares = []
    for a, b in ((predicted, true), (~predicted, ~true)):
        if union := int((a | b).sum()):
            shares.append(int((a & b).sum()) / union)
    return float(np.mean(shares))


def tpir_at_fpir(best: np.ndarray, first: np.ndarray, strangers: np.ndarray, fpir: float) -> float | None:
    """Open-set identification: the share of probes that are found, at the threshold that a share of strangers reaches.

    A probe is found when its person ranks first with at least the threshold (Grother and Ngan, Face Recognition Vendor Test,
    NIST Interagency Report 8271). The threshold is the smallest score that no more than `fpir` of the strangers reach.

    Args:
        best: [P], the highest score of each probe whose person is in the gallery.
        first: bool [P], whether that is a score of its person.
        strangers: [S], the highest score of each probe whose person isn't.
        fpir: 0 to 1.

    Returns:
        0 to 1; None where the strangers are too few to measure `fpir`, or there are no probes.
    """
    if not len(best) or not enough_negatives(len(strangers), fpir):
        return None
    allowed = int(fpir * len(strangers) + 1e-9)
    ordered = np.sort(strangers)[::-1]
    above = ordered[allowed] if allowed < len(ordered) else -np.inf
    return float((first & (best > above)).mean())


def squared_distance(embedding_a: np.ndarray, embedding_b: np.ndarray) -> np.ndarray:
    """Squared L2 distance of row i to row i, [N,E] x [N,E] -> [N], 0 to 4 for unit vectors."""
    return np.square(embedding_a - embedding_b).sum(1)


def kfold_accuracy(
    distances: np.ndarray, same: np.ndarray, folds: int = 10, thresholds: np.ndarray | None = None
) -> Folds:
    """Accuracy of "same when distance < threshold", the threshold chosen on the other folds (LFW View 2).

    Folds are consecutive and not shuffled: the order of the published list is part of the protocol. The first
    `N % folds` folds have one pair more. Of several best thresholds the smallest is taken.

    Args:
        distances: [N], smaller = more similar; squared L2 of unit embeddings for the default thresholds.
        same: bool [N].
        folds: number of folds, 2 to N.
        thresholds: ascending candidates. By default 0 to 4 (exclusive) by 0.01.
    """
    distances, same = _pairs(distances, same)
    if not 2 <= folds <= len(same):
        raise ValueError(f"folds: {folds} is not between 2 and the number of pairs, {len(same)}")
    candidates = np.arange(0, 4, 0.01) if thresholds is None else np.asarray(thresholds, np.float64)
    accuracy, chosen = np.empty(folds), np.empty(folds)
    for fold, test in enumerate(np.array_split(np.arange(len(same)), folds)):
        train = np.ones(len(same), bool)
        train[test] = False
        below_same = np.searchsorted(np.sort(distances[train & same]), candidates, side="left")
        below_different = np.searchsorted(np.sort(distances[train & ~same]), candidates, side="left")
        # right decisions but for a constant, the number of impostor pairs
        chosen[fold] = candidates[np.argmax(below_same - below_different)]
        accuracy[fold] = ((distances[test] < chosen[fold]) == same[test]).mean()
    return Folds(accuracy, chosen)


def summarise(
    scores: np.ndarray,
    same: np.ndarray,
    person_a: np.ndarray,
    person_b: np.ndarray,
    *,
    fars: tuple[float, ...] = FARS,
    resamples: int = 200,
    seed: int = 0,
    repeats: int = 1,
) -> Summary:
    """All measures of one score, each with the 95 % interval that resampling people gives.

    Pairs share people, so they are no independent sample, and resampling pairs would give intervals that are
    far too narrow. Instead as many people as there are are drawn with replacement. With m[i] copies of person
    i drawn, an impostor pair counts m[i] * m[j] times, since every copy of one meets every copy of the
    other. A genuine pair counts m[i] times: each copy brings its own pairs, while images of two
    copies of one person are not compared, as that would invent pairs that the list doesn't have. Every
    resample finds its own threshold for a FAR. Resamples without any pair of one class are left out.

    Args:
        scores: [N], larger = more similar.
        same: bool [N].
        person_a, person_b: [N], who is in each image (any values that can be sorted).
        fars: stated false accept rates.
        resamples: 0 leaves the intervals out (None).
        seed: of the resampling.
        repeats: how often the list holds each pair (under several occluders, say). Repetitions add no
            information about a small FAR, so they don't count for `enough_negatives`.
    """
    ranked = _Ranked(scores, same)
    far, tar = ranked.curve()
    names, codes = np.unique(np.concatenate([person_a, person_b]), return_inverse=True)
    stated = [value for value in fars if enough_negatives(ranked.impostor_pairs // repeats, value)]
    points: dict[float, TarAtFar | None] = dict.fromkeys(fars)
    for value in stated:
        index = _last_at_most(far, value)
        points[value] = TarAtFar(
            float(tar[index]), float(ranked.distinct[index - 1]) if index else float("inf")
        )

    drawn: list[list[float]] = []
    generator = np.random.default_rng(seed)
    a, b = codes.reshape(2, -1)[:, ranked.order]
    within = a == b
    for _ in range(resamples):
        copies = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        copies = copies.astype(np.float64)
        weight = copies[a]
        weight[~within] *= copies[b[~within]]
        curve = ranked.curve(weight)
        if np.isfinite(curve[0][-1]) and np.isfinite(curve[1][-1]):
            tars = [float(curve[1][_last_at_most(curve[0], value)]) for value in stated]
            drawn.append([_auc(*curve), _eer(*curve), *tars])
    intervals = _intervals(np.array(drawn)) if drawn else [None] * (2 + len(stated))
    return Summary(
        ranked.genuine_pairs,
        ranked.impostor_pairs,
        len(names),
        _auc(far, tar),
        _eer(far, tar),
        points,
        intervals[0],
        intervals[1],
        {**dict.fromkeys(fars), **dict(zip(stated, intervals[2:], strict=True))},
    )


def rates(
    scores: np.ndarray,
    same: np.ndarray,
    threshold: float,
    person_a: np.ndarray,
    person_b: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Rates:
    """TAR and FAR at a threshold that stays as it is, with intervals by person as in `summarise`.

    Args:
        scores: [N], larger = more similar; N may be 0.
        same: bool [N]; one class may be empty.
        threshold: a pair is accepted when its score is at least this.
        person_a, person_b: [N], who is in each image.
        resamples: 0 leaves the intervals out.
        seed: of the resampling.
    """
    if not len(scores) == len(same) == len(person_a) == len(person_b):
        raise ValueError(
            f"{len(scores)} scores, {len(same)} same, {len(person_a)} and {len(person_b)} people: as many of each"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores: some are not finite")
    scores, same = np.asarray(scores), np.asarray(same, bool)
    names, codes = np.unique(np.concatenate([person_a, person_b]), return_inverse=True)
    a, b = codes.reshape(2, -1)
    # All pairs of images of the same two people are drawn together, so they are counted once and for all.
    meetings, place = np.unique(a * len(names) + b, return_inverse=True)
    first, second = np.divmod(meetings, max(len(names), 1))
    accepted = scores >= threshold
    counts = np.stack(
        [
            np.bincount(place[chosen], minlength=len(meetings))
            for chosen in (same & accepted, same, ~same & accepted, ~same)
        ]
    ).astype(np.float64)
    totals = counts.sum(1)
    drawn = []
    generator = np.random.default_rng(seed)
    for _ in range(resamples if len(scores) else 0):
        copies = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        drawn.append(counts @ (copies[first] * np.where(first == second, 1, copies[second])))

    def share(which: int) -> tuple[float | None, Interval | None]:
        if not totals[which + 1]:
            return None, None
        chosen = np.array([d[which] / d[which + 1] for d in drawn if d[which + 1]])
        interval = _intervals(chosen[:, None])[0] if len(chosen) else None
        return float(totals[which] / totals[which + 1]), interval

    (tar, tar_interval), (far, far_interval) = share(0), share(2)
    return Rates(int(totals[1]), int(totals[3]), tar, far, tar_interval, far_interval)


def enough_expected(trials: int, far: float) -> bool:
    """Whether so many impostor trials can check a stated FAR: trials * far >= MIN_EXPECTED."""
    return trials * far >= MIN_EXPECTED - 1e-9


def share_bins(shares: np.ndarray, edges: tuple[float, ...] = OCCLUDED_SHARES) -> np.ndarray:
    """Bin of each share, int [N] from 0 to len(edges) - 2; see `OCCLUDED_SHARES`.

    Args:
        shares: [N] in [edges[0], edges[-1]].
        edges: ascending.
    """
    shares = np.asarray(shares, np.float64)
    if len(shares) and not (edges[0] <= shares.min() and shares.max() <= edges[-1]):
        raise ValueError(f"shares: some are not in [{edges[0]:g}, {edges[-1]:g}]")
    return np.searchsorted(np.array(edges[1:-1]), shares, side="right")


def bootstrap_mean(
    values: np.ndarray, person: np.ndarray, resamples: int = 200, seed: int = 0
) -> Interval | None:
    """95 % interval of a mean of per-image values (rank-1 hits) when whole people are resampled.

    Args:
        values: [N].
        person: [N], who each value belongs to.
        resamples: 0 gives None.
        seed: of the resampling.
    """
    values = np.asarray(values, np.float64)
    names, codes = np.unique(person, return_inverse=True)
    if len(values) != len(codes) or not len(values):
        raise ValueError(f"{len(values)} values for {len(codes)} people's images")
    total, count = np.bincount(codes, values), np.bincount(codes)
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        people = generator.integers(len(names), size=len(names))
        means.append([total[people].sum() / count[people].sum()])
    return _intervals(np.array(means))[0] if means else None


def _intervals(values: np.ndarray) -> list[Interval | None]:
    """Percentile intervals of the columns of [resamples, measures]."""
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _pairs(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, same = np.asarray(scores), np.asarray(same)
    if scores.ndim != 1 or scores.shape != same.shape or not len(scores):
        raise ValueError(f"scores {scores.shape} and same {same.shape}: expected [N] and [N], N > 0")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores: {int((~np.isfinite(scores)).sum())} of {len(scores)} are not finite")
    return scores, same.astype(bool)


class _Ranked:
    """Pairs sorted once by falling score, for as many weightings as wanted."""

    def __init__(self, scores: np.ndarray, same: np.ndarray) -> None:
        scores, same = _pairs(scores, same)
        self.genuine_pairs, self.impostor_pairs = int(same.sum()), int((~same).sum())
        if not self.genuine_pairs or not self.impostor_pairs:
            missing = "genuine" if not self.genuine_pairs else "impostor"
            raise ValueError(f"same: no {missing} pairs")
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order].astype(np.float64)
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self.distinct = ordered[self.ends]
        self.same = same[self.order]

    def curve(self, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """FAR and TAR at threshold inf and at every distinct score; `weight` is in falling order of scores.

        A class without any weight gives NaN.
        """
        weight = np.ones(len(self.same)) if weight is None else weight
        rates = []
        for chosen in (~self.same, self.same):
            # Weights are whole numbers, so the sums and with them equality at the ends are exact.
            accepted = np.cumsum(np.where(chosen, weight, 0.0))[self.ends]
            with np.errstate(invalid="ignore"):
                rates.append(np.concatenate([[0.0], accepted]) / accepted[-1])
        return rates[0], rates[1]


def _last_at_most(far: np.ndarray, value: float) -> int:
    # The slack keeps 3 of 300 within a FAR of 0.01, which binary fractions may not.
    return int(np.searchsorted(far, value + 1e-12, side="right")) - 1


def _auc(far: np.ndarray, tar: np.ndarray) -> float:
    # Trapezoids are the Mann-Whitney statistic: a tie group's diagonal counts its mixed pairs half.
    return float((np.diff(far) * (tar[1:] + tar[:-1])).sum() / 2)


def _eer(far: np.ndarray, tar: np.ndarray) -> float:
    excess = far + tar - 1  # FAR - FRR: rises from -1 to 1
    after = int(np.argmax(excess >= 0))
    before = after - 1
    share = -excess[before] / (excess[after] - excess[before])
    return float(far[before] + share * (far[after] - far[before]))
