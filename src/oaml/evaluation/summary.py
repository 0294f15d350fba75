"""The numbers of a report: what is computed from measured scores, one method or function a section."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np

from oaml.evaluation import results
from oaml.evaluation.conditions import IMPOSTOR_LIMIT, Measured, Pool, Trials
from oaml.evaluation.protocols import Identification, Pairs, labels
from oaml.evaluation.results import (
    ALL_CONDITIONS,
    BOTH_OCCLUDED,
    NONE_OCCLUDED,
    ONE_OCCLUDED,
    SAME_OCCLUDER,
    UNOCCLUDED,
    Estimate,
    Measures,
    OperatingPoint,
)
from oaml.support import metrics
from oaml.template import COLUMNS

CURVE_FAR = 1e-2
"""FAR of the robustness curves and of the thresholds drawn into the histograms."""
FROZEN_FAR = 1e-3
FPIRS = (1e-1, 1e-2)
RANKS = (5, 10, 20)
TAIL = 0.999
"""Quantile of the scores of impostor pairs that is compared between areas: what a FAR of 1e-3 is decided by."""


_Occluders = Literal["photographed", "drawn"]


class PairStatistics:
    """The numbers of a list of pairs, each method one section of the report."""

    def __init__(self, pairs: Pairs, measured: Measured, resamples: int, seed: int) -> None:
        self.same, self.measured, self.resamples, self.seed = labels(pairs), measured, resamples, seed
        self.occluded = np.array(pairs.occluded)
        people = [pairs.person_of(path) for path in (*pairs.path_a, *pairs.path_b)]
        names, codes = np.unique(people, return_inverse=True)
        self.people = len(names)
        self.a, self.b = codes.reshape(2, -1)
        self.unoccluded = self.pool([measured.asked[UNOCCLUDED]])

    def pool(self, trials: Iterable[Trials]) -> Pool:
        """Several conditions as one list."""
        return Pool.of(list(trials), self.same, self.a, self.b)

    def measures(self, values: np.ndarray, pool: Pool, repeats: int) -> Measures:
        """All measures of one score."""
        summary = metrics.summarise(
            values, pool.same, pool.a, pool.b, resamples=self.resamples, seed=self.seed, repeats=repeats
        )
        return Measures(
            summary.genuine_pairs,
            summary.impostor_pairs,
            {
                far: point and OperatingPoint(Estimate(point.tar, summary.tar_interval[far]), point.threshold)
                for far, point in summary.tar.items()
            },
            Estimate(summary.auc, summary.auc_interval),
            Estimate(summary.eer, summary.eer_interval),
        )

    def rates(self, score: str, pool: Pool, threshold: float) -> metrics.Rates:
        """What one score accepts at a fixed threshold."""
        resampling = {"resamples": self.resamples, "seed": self.seed}
        return metrics.rates(pool.scores[score], pool.same, threshold, pool.a, pool.b, **resampling)

    def baselines(self) -> dict[str, dict[str, Measures]]:
        """All measures of the published baselines by condition, as `verification`."""
        found: dict[str, dict[str, Measures]] = {}
        for condition, chosen in with_all(self.measured.asked).items():
            pool = self.pool(chosen)
            kinds = list(self.measured.asked) if condition == ALL_CONDITIONS else [condition]
            scores = self.measured.baseline_pairs
            found[condition] = {
                name: self.measures(np.concatenate([scores[kind][name] for kind in kinds]), pool, len(chosen))
                for name in self.measured.baseline_pairs[UNOCCLUDED]
            }
        return found

    def groups(self, group: list[str]) -> dict[str, dict[str, Measures]]:
        """All measures of the pairs as photographed, by a set's own labels; only of groups with pairs of both classes."""
        names, by_group = np.array(group), {}
        for name in dict.fromkeys(group):
            pool = self.unoccluded.part(names == name)
            if pool.same.any() and not pool.same.all():
                by_group[name] = {s: self.measures(values, pool, 1) for s, values in pool.scores.items()}
        return by_group

    def verification(self, folds: bool) -> results.Verification:
        """All measures by condition; `all` is every condition, unoccluded included, as one list under one threshold."""
        conditions: dict[str, dict[str, Measures]] = {}
        for condition, chosen in with_all(self.measured.asked).items():
            pool = self.pool(chosen)
            conditions[condition] = by_score = {
                score: self.measures(values, pool, len(chosen)) for score, values in pool.scores.items()
            }
            if folds and condition != ALL_CONDITIONS:
                for score, values in pool.scores.items():
                    by_score[score] = replace(by_score[score], kfold=_kfold(score, values, self.same))
        return results.Verification(
            int(self.same.sum()),
            int((~self.same).sum()),
            self.people,
            metrics.MIN_FALSE_ACCEPTS,
            conditions,
        )

    def pair_classes(self, verification: results.Verification) -> results.ClassMeasures:
        """All measures by class of pairs and kind of occluder; every condition has its own threshold."""
        classes: dict[str, dict[str, dict[str, Measures]]] = {}
        for name, by_kind in self.measured.classes.items():
            classes[name] = {}
            for kind, chosen in with_all(by_kind).items():
                if len(chosen) == 1 and chosen[0] is self.measured.asked.get(kind):
                    known = verification.conditions[kind]  # these pairs are measured already
                    classes[name][kind] = {score: replace(m, kfold=None) for score, m in known.items()}
                    continue
                pool = self.pool(chosen)
                if pool.same.any() and not pool.same.all():
                    classes[name][kind] = {
                        score: self.measures(values, pool, len(chosen))
                        for score, values in pool.scores.items()
                    }
        return results.ClassMeasures(IMPOSTOR_LIMIT, self.measured.shared_occluders, classes)

    def robustness(self) -> results.Robustness:
        """TAR by occluded share, each score at the threshold that unoccluded pairs give it."""
        thresholds = self.thresholds(CURVE_FAR)
        asked = {kind: trials for kind, trials in self.measured.asked.items() if kind != UNOCCLUDED}
        kinds: dict[str, list[results.RobustnessPoint]] = {}
        for kind, chosen in with_all(asked).items() if thresholds else ():
            pool = self.pool(chosen)
            bins = metrics.share_bins(pool.occluded_share)
            kinds[kind] = []
            for number, edges in enumerate(pairwise(metrics.OCCLUDED_SHARES)):
                part = pool.part((bins == number) & pool.same)
                if len(part.same):
                    kinds[kind].append(self._point(edges, part, thresholds))
        return results.Robustness(
            CURVE_FAR,
            thresholds,
            metrics.MIN_GENUINE_PAIRS,
            round(metrics.MIN_FALSE_ACCEPTS / CURVE_FAR),
            list(metrics.OCCLUDED_SHARES),
            self._point(None, self.unoccluded.part(self.same), thresholds) if thresholds else None,
            kinds,
        )

    def _point(
        self, edges: results.Edges | None, genuine: Pool, thresholds: dict[str, float]
    ) -> results.RobustnessPoint:
        count, tar = len(genuine.same), {}
        for score, threshold in thresholds.items():
            rates = self.rates(score, genuine, threshold)
            assert rates.tar is not None  # there are genuine pairs
            tar[score] = Estimate(rates.tar, rates.tar_interval)
        share = float(genuine.occluded_share.mean())
        return results.RobustnessPoint(edges, share, count, count >= metrics.MIN_GENUINE_PAIRS, tar)

    def thresholds(self, far: float) -> dict[str, float]:
        """Threshold of every score on the unoccluded pairs of the list; none where they are too few for this FAR."""
        if not metrics.enough_negatives(int((~self.same).sum()), far):
            return {}
        scores = self.unoccluded.scores
        return {score: metrics.tar_at_far(scores[score], self.same, far).threshold for score in COLUMNS}

    def frozen(self, stored: dict[str, float]) -> results.FrozenThreshold:
        """FAR and TAR by class and occluded share at one threshold that stays as it is.

        Args:
            stored: FAR -> threshold of the fused score, from the model's config.
        """
        fitted = self.thresholds(FROZEN_FAR)
        own = stored.get(f"{FROZEN_FAR:g}")
        scores = {}
        for score, model in (("fused", own), ("cosine", None)):
            threshold = fitted.get(score) if model is None else float(model)
            scores[score] = results.FrozenScore(
                threshold,
                "unoccluded pairs of this list" if model is None else "model",
                [] if threshold is None else [*self._rows(score, threshold)],
            )
        return results.FrozenThreshold(
            FROZEN_FAR,
            metrics.MIN_EXPECTED,
            metrics.MIN_GENUINE_PAIRS,
            round(metrics.MIN_FALSE_ACCEPTS / FROZEN_FAR),
            scores,
        )

    def _rows(self, score: str, threshold: float) -> Iterable[results.FrozenRow]:
        for name, by_kind in self.measured.classes.items():
            if not by_kind:
                continue
            pool = self.pool(by_kind.values())
            yield self._row(name, None, score, pool, threshold)
            if name == ONE_OCCLUDED:
                bins = metrics.share_bins(pool.occluded_share)
                for number in np.unique(bins):
                    low, high = metrics.OCCLUDED_SHARES[number : number + 2]
                    yield self._row(name, (low, high), score, pool.part(bins == number), threshold)

    def _row(
        self, name: str, edges: results.Edges | None, score: str, pool: Pool, threshold: float
    ) -> results.FrozenRow:
        rates = self.rates(score, pool, threshold)
        far = rates.far if metrics.enough_expected(rates.impostor_pairs, FROZEN_FAR) else None
        return results.FrozenRow(
            pair_class=name,
            bin=edges,
            impostor_pairs=rates.impostor_pairs,
            expected_false_accepts=rates.impostor_pairs * FROZEN_FAR,
            far=None if far is None else Estimate(far, rates.far_interval),
            ratio=None if far is None else far / FROZEN_FAR,
            genuine_pairs=rates.genuine_pairs,
            tar=None if rates.tar is None else Estimate(rates.tar, rates.tar_interval),
        )

    def stored(self, thresholds: dict[str, float]) -> list[results.StoredThreshold]:
        """What each of the model's own thresholds accepts, with counts, by what is occluded.

        Args:
            thresholds: FAR -> threshold of the fused score, from the model's config.
        """
        sets: list[tuple[_Occluders, str | None, Pool]] = [("photographed", None, self.unoccluded)]
        if len(self.occluded):
            for count, name in enumerate((NONE_OCCLUDED, ONE_OCCLUDED, BOTH_OCCLUDED)):
                sets.append(("photographed", name, self.unoccluded.part(self.occluded == count)))
        for name, by_kind in self.measured.classes.items():
            if name != NONE_OCCLUDED and by_kind:
                sets.append(("drawn", name, self.pool(by_kind.values())))
        ordered = sorted(((float(far), float(value)) for far, value in thresholds.items()), reverse=True)
        return [
            results.StoredThreshold(far, value, [self._stored_row(*one, value) for one in sets])
            for far, value in ordered
        ]

    def _stored_row(
        self, occluders: _Occluders, name: str | None, pool: Pool, threshold: float
    ) -> results.StoredRow:
        rates, far = self.rates("fused", pool, threshold), None
        if rates.far is not None:
            interval = rates.far_interval
            if interval and not rates.far:  # every resample of nothing is nothing
                interval = metrics.Interval(0.0, min(1.0, 3 / rates.impostor_pairs))
            far = Estimate(rates.far, interval)
        accepted = pool.scores["fused"] >= threshold
        return results.StoredRow(
            occluders=occluders,
            pair_class=name,
            impostor_pairs=rates.impostor_pairs,
            false_accepts=int((accepted & ~pool.same).sum()),
            far=far,
            genuine_pairs=rates.genuine_pairs,
            genuine_accepts=int((accepted & pool.same).sum()),
            tar=None if rates.tar is None else Estimate(rates.tar, rates.tar_interval),
        )

    def shortcuts(self) -> results.Shortcuts:
        """Whether occluders alone, or how little is visible, say who somebody is."""
        controls = {}
        for kind, chosen in with_all(self.measured.classes[BOTH_OCCLUDED]).items():
            pool = self.pool(chosen)
            controls[kind] = results.Controls(
                *(
                    self._control(np.concatenate([getattr(t, name) for t in chosen]), pool, len(chosen))
                    for name in ("map_similarity", "occluder_similarity")
                )
            )
        same_occluder = list(self.measured.classes[SAME_OCCLUDER].values())
        others = [
            trials
            for name, by_kind in self.measured.classes.items()
            for trials in by_kind.values()
            if name != SAME_OCCLUDER
        ]
        tails = {
            name: self._tail(self.pool(chosen))
            for name, chosen in (("own occluders", others), ("same occluder", same_occluder))
            if chosen
        }
        return results.Shortcuts(controls, TAIL, "fused", tails)

    def _control(self, values: np.ndarray, pool: Pool, repeats: int) -> results.Control:
        auc = self.measures(values, pool, repeats).auc
        return results.Control(auc, auc.interval and auc.interval.low <= 0.5 <= auc.interval.high)

    def _tail(self, pool: Pool) -> results.Tail:
        """High scores of impostor pairs by the area that both show."""
        edges = metrics.VISIBLE_SHARES
        bins = metrics.share_bins(pool.visible_both, edges)
        rows = []
        for number, (low, high) in enumerate(pairwise(edges)):
            values = pool.scores["fused"][(bins == number) & ~pool.same]
            enough = metrics.enough_negatives(len(values), 1 - TAIL)
            score = float(np.quantile(values, TAIL)) if enough else None
            rows.append(results.TailRow((low, high), len(values), score))
        known = [row.score for row in rows if row.score is not None]
        return results.Tail(rows, known[0] > known[-1] if len(known) > 1 else None)

    def examples(self, verification: results.Verification) -> dict[str, dict[str, list[results.ExamplePair]]]:
        """The best and worst pairs, unoccluded and under the kind with the lowest AUC of the fused score."""
        kinds = [kind for kind in self.measured.asked if kind != UNOCCLUDED]
        hardest = min(kinds, key=lambda kind: verification.conditions[kind]["fused"].auc.value, default=None)
        return {
            condition: {
                group: [example.pair for example in examples]
                for group, examples in self.measured.asked[condition].examples.items()
            }
            for condition in (UNOCCLUDED, *([hardest] if hardest else []))
        }


def with_all(by_kind: dict[str, Trials]) -> dict[str, list[Trials]]:
    """Adds all conditions as one list where there are several."""
    each = {kind: [trials] for kind, trials in by_kind.items()}
    return each if len(each) < 2 else {**each, ALL_CONDITIONS: list(by_kind.values())}


def _kfold(score: str, values: np.ndarray, same: np.ndarray) -> results.FoldAccuracy:
    if score == "cosine":
        folds = metrics.kfold_accuracy(2 - 2 * values, same)  # squared distance of unit embeddings
    else:
        # A logit has no agreed grid of thresholds: every value that occurs is one.
        distances = -values
        folds = metrics.kfold_accuracy(distances, same, thresholds=np.append(np.unique(distances), np.inf))
    return results.FoldAccuracy(
        float(folds.accuracy.mean()),
        float(folds.accuracy.std()),
        folds.accuracy.tolist(),
        (folds.threshold if score == "cosine" else -folds.threshold).tolist(),
    )


def identification_result(
    measured: Measured, listed: Identification, bootstrap: int, seed: int, stored: dict[str, float]
) -> results.IdentificationResult:
    """Rank-1, R-precision and MAP@R of every score by condition, and what strangers reach.

    Args:
        stored: FAR -> threshold of the fused score, from the model's config.
    """
    people = np.array(listed.probe_person)

    def estimate(values: np.ndarray) -> Estimate:
        return Estimate(float(values.mean()), metrics.bootstrap_mean(values, people, bootstrap, seed))

    def mean(measure: int) -> dict[str, dict[str, Estimate]]:
        return {
            condition: {score: estimate(found.measures[:, measure]) for score, found in by_score.items()}
            for condition, by_score in measured.retrieved.items()
        }

    opened = measured.retrieved if listed.strangers else {}
    return results.IdentificationResult(
        gallery=len(listed.gallery),
        probes=len(listed.probes),
        people=len(set(listed.gallery_person)),
        rank1=mean(0),
        rank={
            condition: {
                score: {k: float((found.rank <= k).mean()) for k in RANKS}
                for score, found in by_score.items()
            }
            for condition, by_score in measured.retrieved.items()
        },
        r_precision=mean(1),
        map_at_r=mean(2),
        strangers=len(listed.strangers),
        tpir_at_fpir={
            condition: {
                score: {
                    fpir: metrics.tpir_at_fpir(found.best, found.measures[:, 0] == 1, found.strangers, fpir)
                    for fpir in FPIRS
                }
                for score, found in by_score.items()
            }
            for condition, by_score in opened.items()
        },
        stored={
            condition: [
                results.OpenSetPoint(
                    float(far),
                    value,
                    int(((fused.measures[:, 0] == 1) & (fused.best >= value)).sum()),
                    int((fused.strangers >= value).sum()),
                )
                for far, value in sorted(stored.items(), key=lambda item: -float(item[0]))
            ]
            for condition, by_score in opened.items()
            for fused in [by_score["fused"]]
        },
        baselines={
            condition: {
                name: results.BaselineSearch(*(estimate(values[:, measure]) for measure in range(3)))
                for name, values in by_name.items()
            }
            for condition, by_name in measured.baseline_searches.items()
        },
    )
