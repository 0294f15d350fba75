"""The numbers of a report: what is computed from measured scores, one method or function a section of report.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from oaml.evaluation import metrics
from oaml.evaluation.conditions import BARE, DIFFERENT_LIMIT, Measured, Pool, Trials
from oaml.evaluation.protocols import Identification, Pairs, labels, person_of
from oaml.template import COLUMNS

ALL = "all"
CURVE_FAR = 1e-2
"""FAR of the robustness curves and of the thresholds drawn into the histograms."""
FROZEN_FAR = 1e-3
TAIL = 0.999
"""Quantile of the scores of two people that is compared between areas: what a FAR of 1e-3 is decided by."""


class Numbers:
    """The numbers of a list of pairs, each method one section of the report."""

    def __init__(self, pairs: Pairs, measured: Measured, resamples: int, seed: int) -> None:
        self.same, self.measured, self.resamples, self.seed = labels(pairs), measured, resamples, seed
        people = [person_of(path) for path in (*pairs.path_a, *pairs.path_b)]
        names, codes = np.unique(people, return_inverse=True)
        self.people = len(names)
        self.a, self.b = codes.reshape(2, -1)
        self.bare = self.pool([measured.asked[BARE]])

    def pool(self, trials: Iterable[Trials]) -> Pool:
        """Several conditions as one list."""
        return Pool.of(list(trials), self.same, self.a, self.b)

    def summary(self, values: np.ndarray, pool: Pool, repeats: int) -> dict[str, Any]:
        """All measures of one score."""
        return _numbers(
            metrics.summarise(
                values,
                pool.same,
                pool.a,
                pool.b,
                resamples=self.resamples,
                seed=self.seed,
                repeats=repeats,
            )
        )

    def rates(self, score: str, pool: Pool, threshold: float) -> metrics.Rates:
        """What one score accepts at a fixed threshold."""
        return metrics.rates(
            pool.scores[score],
            pool.same,
            threshold,
            pool.a,
            pool.b,
            resamples=self.resamples,
            seed=self.seed,
        )

    def verification(self, protocol: str) -> dict[str, Any]:
        """All measures by condition; `all` is every condition, bare included, as one list under one threshold."""
        found: dict[str, Any] = {}
        asked = self.measured.asked
        for condition, chosen in with_all(asked).items():
            pool = self.pool(chosen)
            found[condition] = {}
            for score, values in pool.scores.items():
                found[condition][score] = self.summary(values, pool, len(chosen))
                if protocol == "lfw" and condition != ALL:
                    found[condition][score]["kfold"] = _kfold(score, values, self.same)
        return {
            "same_pairs": int(self.same.sum()),
            "different_pairs": int((~self.same).sum()),
            "people": self.people,
            "false_accepts_needed": metrics.MIN_FALSE_ACCEPTS,
            "conditions": found,
        }

    def pair_classes(self, verification: dict[str, Any]) -> dict[str, Any]:
        """All measures by class of pairs and kind of cover; every condition has its own threshold."""
        found: dict[str, Any] = {}
        for name, by_kind in self.measured.classes.items():
            found[name] = {}
            for kind, chosen in with_all(by_kind).items():
                if len(chosen) == 1 and chosen[0] is self.measured.asked.get(kind):
                    known = verification["conditions"][kind]  # these pairs are measured already
                    found[name][kind] = {
                        score: {key: value for key, value in numbers.items() if key != "kfold"}
                        for score, numbers in known.items()
                    }
                    continue
                pool = self.pool(chosen)
                if pool.same.any() and not pool.same.all():
                    found[name][kind] = {
                        score: self.summary(values, pool, len(chosen))
                        for score, values in pool.scores.items()
                    }
        return {
            "different_pairs_at_most": DIFFERENT_LIMIT,
            "shared_covers": self.measured.groups,
            "classes": found,
        }

    def robustness(self) -> dict[str, Any]:
        """TAR by covered share, each score at the threshold that bare pairs give it."""
        thresholds = {score: self.threshold(score, CURVE_FAR) for score in COLUMNS}
        asked = {kind: trials for kind, trials in self.measured.asked.items() if kind != BARE}
        found: dict[str, Any] = {
            "far": CURVE_FAR,
            "thresholds": thresholds,
            "same_pairs_needed": metrics.MIN_SAME_PAIRS,
            "different_pairs_needed": round(metrics.MIN_FALSE_ACCEPTS / CURVE_FAR),
            "edges": list(metrics.COVERED_SHARES),
            "bare": None,
            "kinds": {},
        }
        if any(threshold is None for threshold in thresholds.values()):
            return found
        found["bare"] = self._point(self.bare, thresholds)
        for kind, chosen in with_all(asked).items():
            pool = self.pool(chosen)
            bins = metrics.share_bins(pool.share)
            found["kinds"][kind] = []
            for number in range(len(metrics.COVERED_SHARES) - 1):
                part = pool.part((bins == number) & pool.same)
                if len(part.same):
                    edges = list(metrics.COVERED_SHARES[number : number + 2])
                    found["kinds"][kind].append({"covered": edges, **self._point(part, thresholds)})
        return found

    def _point(self, pool: Pool, thresholds: dict[str, Any]) -> dict[str, Any]:
        pool = pool.part(pool.same)
        tar: dict[str, Any] = {}
        for score, threshold in thresholds.items():
            rates = self.rates(score, pool, threshold)
            tar[score] = {"tar": rates.tar, "interval": rates.tar_interval and list(rates.tar_interval)}
        return {
            "share": float(pool.share.mean()),
            "same_pairs": len(pool.same),
            "sufficient": len(pool.same) >= metrics.MIN_SAME_PAIRS,
            "scores": tar,
        }

    def threshold(self, score: str, far: float) -> float | None:
        """Threshold on the bare pairs of the list; None where they are too few for this FAR."""
        if not metrics.enough_negatives(int((~self.same).sum()), far):
            return None
        return metrics.tar_at_far(self.bare.scores[score], self.same, far).threshold

    def frozen(self, stored: dict[str, float]) -> dict[str, Any]:
        """FAR and TAR by class and covered share at one threshold that stays as it is.

        Args:
            stored: FAR -> threshold of the fused score, from the model's config.
        """
        own = stored.get(f"{FROZEN_FAR:g}")
        scores: dict[str, Any] = {}
        for score, model in (("fused", own), ("cosine", None)):
            threshold = self.threshold(score, FROZEN_FAR) if model is None else float(model)
            scores[score] = {
                "threshold": threshold,
                "source": "bare pairs of this list" if model is None else "model",
                "rows": [] if threshold is None else [*self._rows(score, threshold)],
            }
        return {
            "far": FROZEN_FAR,
            "expected_needed": metrics.MIN_EXPECTED,
            "same_pairs_needed": metrics.MIN_SAME_PAIRS,
            "different_pairs_needed": round(metrics.MIN_FALSE_ACCEPTS / FROZEN_FAR),
            "scores": scores,
        }

    def _rows(self, score: str, threshold: float) -> Iterable[dict[str, Any]]:
        for name, by_kind in self.measured.classes.items():
            if not by_kind:
                continue
            pool = self.pool(by_kind.values())
            yield self._row(name, None, score, pool, threshold)
            if name == "bare-covered":
                bins = metrics.share_bins(pool.share)
                for number in np.unique(bins):
                    edges = list(metrics.COVERED_SHARES[number : number + 2])
                    yield self._row(name, edges, score, pool.part(bins == number), threshold)

    def _row(
        self, name: str, covered: list[float] | None, score: str, pool: Pool, threshold: float
    ) -> dict[str, Any]:
        rates = self.rates(score, pool, threshold)
        enough = metrics.enough_expected(rates.different_pairs, FROZEN_FAR)
        far, interval = (rates.far, rates.far_interval) if enough else (None, None)
        return {
            "class": name,
            "covered": covered,
            "different_pairs": rates.different_pairs,
            "expected_false_accepts": rates.different_pairs * FROZEN_FAR,
            "far": far,
            "far_interval": interval and list(interval),
            "ratio": None if far is None else far / FROZEN_FAR,
            "same_pairs": rates.same_pairs,
            "tar": rates.tar,
            "tar_interval": rates.tar_interval and list(rates.tar_interval),
        }

    def shortcuts(self) -> dict[str, Any]:
        """Whether covers alone, or how little is visible, say who somebody is."""
        own = self.measured.classes["covered-covered"]
        controls: dict[str, Any] = {}
        for kind, chosen in with_all(own).items():
            pool = self.pool(chosen)
            controls[kind] = {}
            for name in ("maps_alike", "covers_alike"):
                values = np.concatenate([getattr(trials, name) for trials in chosen])
                summary = self.summary(values, pool, len(chosen))
                interval = summary["auc_interval"]
                controls[kind][name] = {
                    "auc": summary["auc"],
                    "interval": interval,
                    "at_chance": None if interval is None else bool(interval[0] <= 0.5 <= interval[1]),
                }
        tails = {}
        classes = self.measured.classes
        for name, chosen in (
            ("own covers", [t for c in list(classes)[:3] for t in classes[c].values()]),
            ("same cover", list(classes["same-cover"].values())),
        ):
            if chosen:
                tails[name] = self._tail(self.pool(chosen))
        return {"controls": controls, "tail": {"quantile": TAIL, "score": "fused", "areas": tails}}

    def _tail(self, pool: Pool) -> dict[str, Any]:
        """High scores of two people by the area that both show."""
        bins = metrics.share_bins(pool.visible, metrics.VISIBLE_SHARES)
        rows = []
        for number in range(len(metrics.VISIBLE_SHARES) - 1):
            values = pool.scores["fused"][(bins == number) & ~pool.same]
            enough = metrics.enough_negatives(len(values), 1 - TAIL)
            rows.append(
                {
                    "visible": list(metrics.VISIBLE_SHARES[number : number + 2]),
                    "different_pairs": len(values),
                    "score": float(np.quantile(values, TAIL)) if enough else None,
                }
            )
        known = [row["score"] for row in rows if row["score"] is not None]
        rises = known[0] > known[-1] if len(known) > 1 else None
        return {"rows": rows, "rises_as_the_area_shrinks": rises}

    def examples(self, verification: dict[str, Any]) -> dict[str, Any]:
        """Paths and scores of the best and worst pairs, bare and under the kind with the lowest AUC of the fused score."""
        kinds = [kind for kind in self.measured.asked if kind != BARE]
        hardest = min(kinds, key=lambda kind: verification["conditions"][kind]["fused"]["auc"], default=None)
        shown = [BARE, *([hardest] if hardest else [])]
        return {
            condition: {
                group: [
                    {
                        key: getattr(pair, key)
                        for key in ("path_a", "path_b", "condition_a", "condition_b", "score")
                    }
                    for pair in found
                ]
                for group, found in self.measured.asked[condition].examples.items()
            }
            for condition in shown
        }


def with_all(by_kind: dict[str, Trials]) -> dict[str, list[Trials]]:
    """Adds all conditions as one list where there are several."""
    found = {kind: [trials] for kind, trials in by_kind.items()}
    return found if len(found) < 2 else {**found, ALL: list(by_kind.values())}


def _numbers(summary: metrics.Summary) -> dict[str, Any]:
    tar: dict[str, Any] = {}
    for far, point in summary.tar.items():
        interval = summary.tar_interval[far]
        tar[f"{far:g}"] = point and {
            "tar": point.tar,
            "threshold": point.threshold,
            "interval": interval and list(interval),
        }
    return {
        "same_pairs": summary.same_pairs,
        "different_pairs": summary.different_pairs,
        "tar_at_far": tar,
        "auc": summary.auc,
        "auc_interval": summary.auc_interval and list(summary.auc_interval),
        "eer": summary.eer,
        "eer_interval": summary.eer_interval and list(summary.eer_interval),
    }


def _kfold(score: str, values: np.ndarray, same: np.ndarray) -> dict[str, Any]:
    if score == "cosine":
        folds = metrics.kfold_accuracy(2 - 2 * values, same)  # squared distance of unit embeddings
    else:
        # A logit has no agreed grid of thresholds: every value that occurs is one.
        distances = -values
        folds = metrics.kfold_accuracy(distances, same, thresholds=np.append(np.unique(distances), np.inf))
    return {
        "mean": float(folds.accuracy.mean()),
        "std": float(folds.accuracy.std()),
        "accuracy": folds.accuracy.tolist(),
        "threshold": (folds.threshold if score == "cosine" else -folds.threshold).tolist(),
    }


def identification_numbers(
    measured: Measured, known: Identification, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Rank-1 of every score by condition."""
    people = np.array(known.probe_person)
    found: dict[str, Any] = {}
    for condition, by_score in measured.hits.items():
        found[condition] = {}
        for score, hits in by_score.items():
            interval = metrics.bootstrap_mean(hits, people, bootstrap, seed)
            found[condition][score] = {"rank1": float(hits.mean()), "interval": interval and list(interval)}
    return {
        "gallery": len(known.gallery),
        "probes": len(known.probes),
        "people": len(set(known.gallery_person)),
        "conditions": found,
    }
