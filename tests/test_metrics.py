"""Measures against naive loops, known cases, published numbers and properties."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oaml.support import metrics

GOLDEN = Path(__file__).parent / "golden" / "verification.npz"


def test_ten_folds_of_the_published_protocol() -> None:
    with np.load(GOLDEN) as golden:
        distances = metrics.squared_distance(golden["embedding_a"], golden["embedding_b"])
        folds = metrics.kfold_accuracy(distances, golden["same"])
        np.testing.assert_allclose(folds.accuracy, golden["kfold_accuracy"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(folds.threshold, golden["kfold_threshold_sq_l2"], rtol=0, atol=1e-12)
        assert folds.accuracy.mean() == pytest.approx(float(golden["accuracy_mean"]), abs=1e-12)


@pytest.mark.parametrize("count", [10, 37, 101])
def test_folds_against_a_loop_when_they_do_not_divide_evenly(count: int) -> None:
    rng = np.random.default_rng(count)
    distances, same = rng.uniform(0, 4, count).round(2), rng.random(count) < 0.5
    folds = metrics.kfold_accuracy(distances, same)
    start = 0
    for fold in range(10):
        size = count // 10 + (fold < count % 10)
        test = np.arange(count)[start : start + size]
        train = np.delete(np.arange(count), test)
        start += size
        right = [int(((distances[train] < t) == same[train]).sum()) for t in np.arange(0, 4, 0.01)]
        threshold = np.arange(0, 4, 0.01)[int(np.argmax(right))]
        assert folds.threshold[fold] == threshold
        assert folds.accuracy[fold] == ((distances[test] < threshold) == same[test]).mean()


def test_known_case_with_ties() -> None:
    scores = np.array([0.9, 0.8, 0.8, 0.5, 0.5, 0.1])
    same = np.array([True, True, False, True, False, False])
    curve = metrics.roc(scores, same)
    np.testing.assert_allclose(curve.threshold, [np.inf, 0.9, 0.8, 0.5, 0.1])
    np.testing.assert_allclose(curve.far, [0, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.tar, [0, 1 / 3, 2 / 3, 1, 1])
    # the tie at 0.8 would let a third through, so 0.3 rejects all of it
    assert metrics.tar_at_far(scores, same, 0.3) == (pytest.approx(1 / 3), 0.9)
    assert metrics.tar_at_far(scores, same, 1 / 3) == (pytest.approx(2 / 3), 0.8)
    assert metrics.tar_at_far(scores, same, 1) == (1, 0.1)
    assert metrics.eer(scores, same) == pytest.approx(1 / 3)


def test_nothing_can_be_accepted() -> None:
    point = metrics.tar_at_far(np.array([0.2, 0.2, 0.9]), np.array([True, True, False]), 0.1)
    assert point == (0, np.inf)


@pytest.mark.parametrize(("negatives", "far"), [(300, 0.01), (3000, 0.001), (100, 0.07), (100, 0.29)])
def test_a_far_that_is_met_exactly_counts_as_met(negatives: int, far: float) -> None:
    scores = np.append(np.arange(negatives, dtype=float), -1.0)
    same = np.append(np.zeros(negatives, bool), True)
    threshold = metrics.tar_at_far(scores, same, far).threshold
    assert (scores[~same] >= threshold).sum() == round(negatives * far)


@pytest.mark.parametrize(
    ("scores", "labels", "value"),
    [([1, 2, 3, 4], [0, 0, 1, 1], 1.0), ([1, 2, 3, 4], [1, 1, 0, 0], 0.0), ([1, 1, 1, 1], [0, 1, 0, 1], 0.5)],
)
def test_auc_and_eer_of_perfect_worst_and_useless_scores(scores: list, labels: list, value: float) -> None:
    assert metrics.auc(np.array(scores), np.array(labels, bool)) == value
    assert metrics.eer(np.array(scores), np.array(labels, bool)) == 1 - value


def cases(least: int = 2) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Scores with many ties, at least one pair of either class."""
    pair = st.tuples(st.integers(-6, 6), st.booleans())
    rows = st.lists(pair, min_size=least, max_size=40).filter(lambda r: len({same for _, same in r}) == 2)
    return rows.map(lambda r: (np.array([s for s, _ in r], float), np.array([same for _, same in r])))


@given(cases(), st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.5, 1.0]))
def test_measures_against_loops(case: tuple[np.ndarray, np.ndarray], far: float) -> None:
    scores, same = case
    positives, negatives = scores[same], scores[~same]
    wins = sum(float(p > n) + 0.5 * float(p == n) for p in positives for n in negatives)
    assert metrics.auc(scores, same) == pytest.approx(wins / len(positives) / len(negatives))

    thresholds = [t for t in scores if (negatives >= t).mean() <= far + 1e-12]
    threshold = min(thresholds, default=np.inf)
    assert metrics.tar_at_far(scores, same, far) == (
        pytest.approx((positives >= threshold).mean()),
        threshold,
    )

    curve = metrics.roc(scores, same)
    for f, t, limit in zip(*curve, strict=True):
        assert f == pytest.approx((negatives >= limit).mean())
        assert t == pytest.approx((positives >= limit).mean())


@given(cases())
def test_only_the_order_of_scores_matters(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, same = case
    for changed in (scores**3, np.exp(scores), 5 * scores - 2):
        assert metrics.auc(changed, same) == metrics.auc(scores, same)
        assert metrics.eer(changed, same) == metrics.eer(scores, same)
        assert metrics.tar_at_far(changed, same, 0.1).tar == metrics.tar_at_far(scores, same, 0.1).tar
    shuffled = np.random.default_rng(0).permutation(len(scores))
    assert metrics.auc(scores[shuffled], same[shuffled]) == metrics.auc(scores, same)


@given(cases())
def test_exchanging_the_classes_mirrors_the_curve(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, same = case
    assert metrics.auc(-scores, ~same) == pytest.approx(metrics.auc(scores, same))
    assert metrics.auc(-scores, same) == pytest.approx(1 - metrics.auc(scores, same))
    assert metrics.eer(-scores, ~same) == pytest.approx(metrics.eer(scores, same))
    assert metrics.eer(-scores, same) == pytest.approx(1 - metrics.eer(scores, same))


def test_few_impostor_pairs_measure_no_small_far() -> None:
    assert metrics.enough_negatives(1000, 1e-2)
    assert not metrics.enough_negatives(999, 1e-2)
    rng = np.random.default_rng(0)
    same = np.arange(1200) < 200
    people = rng.integers(0, 40, (2, 1200)).astype(str)
    summary = metrics.summarise(rng.normal(size=1200) + same, same, people[0], people[1], resamples=10)
    assert summary.tar[1e-2] is not None
    assert summary.tar[1e-3] is None
    assert summary.tar_interval[1e-3] is None
    assert (summary.genuine_pairs, summary.impostor_pairs, summary.people) == (200, 1000, 40)
    repeated = metrics.summarise(
        rng.normal(size=1200) + same, same, people[0], people[1], resamples=0, repeats=2
    )
    assert repeated.tar[1e-2] is None
    assert repeated.auc_interval is None


def test_rank1_against_a_loop() -> None:
    rng = np.random.default_rng(3)
    probes, gallery = rng.integers(0, 8, 60), np.concatenate([np.arange(8), rng.integers(0, 8, 12)])
    scores = rng.normal(size=(60, 20)).round(1) + (probes[:, None] == gallery)
    hits = []
    for row, label in zip(scores, probes, strict=True):
        best = [gallery[k] for k in range(20) if row[k] == row.max()]
        hits.append(set(best) == {label})
    np.testing.assert_array_equal(metrics.rank1_hits(scores, probes, gallery), hits)
    assert not metrics.rank1_hits(np.zeros((60, 20)), probes, gallery).any()
    with pytest.raises(ValueError, match="not in the gallery"):
        metrics.rank1_hits(np.zeros((1, 2)), np.array([3]), np.array([1, 2]))


def _population(people: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, ...]:
    """All pairs of two images a person; some people score high with everybody, as real ones do."""
    rng = np.random.default_rng(seed)
    easy = rng.normal(0, spread, people)
    person = np.repeat(np.arange(people), 2)
    a, b = np.triu_indices(len(person), 1)
    same = person[a] == person[b]
    scores = 2.0 * same + rng.normal(0, 0.7, len(a)) + easy[person[a]] + easy[person[b]]
    return scores, same, person[a], person[b]


def test_resampling_equals_building_the_resampled_list() -> None:
    scores, same, a, b = _population(12, 0)
    resamples, seed = 25, 5
    summary = metrics.summarise(scores, same, a, b, fars=(0.05,), resamples=resamples, seed=seed)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        copies = np.bincount(generator.integers(12, size=12), minlength=12)
        times = [copies[i] if i == j else copies[i] * copies[j] for i, j in zip(a, b, strict=True)]
        s, t = np.repeat(scores, times), np.repeat(same, times)
        values.append([metrics.auc(s, t), metrics.eer(s, t), metrics.tar_at_far(s, t, 0.05).tar])
    expected = np.percentile(values, [2.5, 97.5], axis=0).T
    assert summary.tar[0.05] is not None
    intervals = (summary.auc_interval, summary.eer_interval, summary.tar_interval[0.05])
    np.testing.assert_allclose(np.array(intervals, float), expected, rtol=1e-12)


def test_a_distance_at_the_threshold_is_not_the_same_person() -> None:
    distances, same = np.array([0.5, 0.6, 0.4, 0.6]), np.array([True, False, True, False])
    folds = metrics.kfold_accuracy(distances, same, folds=2, thresholds=np.array([0.5]))
    assert folds.accuracy.tolist() == [0.5, 1.0]


def test_bins_of_shares() -> None:
    shares = np.array([0.0, 0.09, 0.1, 0.15, 0.29, 0.3, 0.5, 0.7, 1.0])
    assert metrics.share_bins(shares).tolist() == [0, 0, 1, 1, 1, 2, 3, 4, 4]
    shares = np.array([0.0, 0.1, 0.15, 0.3, 0.5, 0.7, 0.9, 1.0])
    assert metrics.share_bins(shares, metrics.VISIBLE_SHARES).tolist() == [0, 1, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("disagreeing", [0, 9])
def test_rates_at_a_fixed_threshold_against_loops(disagreeing: int) -> None:
    """Also where the list disagrees with the people: pairs of one that count as impostor pairs, and of two as genuine ones."""
    scores, same, a, b = _population(14, 2)
    same = same.copy()
    for rows in (np.flatnonzero(a == b), np.flatnonzero(a != b)):
        same[rows[:disagreeing]] ^= True
    at_threshold = metrics.rates(scores, same, 1.0, a, b, resamples=30, seed=5)
    assert (at_threshold.genuine_pairs, at_threshold.impostor_pairs) == (same.sum(), (~same).sum())
    assert at_threshold.tar == pytest.approx(np.mean([s >= 1.0 for s in scores[same]]))
    assert at_threshold.far == pytest.approx(np.mean([s >= 1.0 for s in scores[~same]]))
    generator = np.random.default_rng(5)
    values = []
    for _ in range(30):
        copies = np.bincount(generator.integers(14, size=14), minlength=14)
        times = [copies[i] if i == j else copies[i] * copies[j] for i, j in zip(a, b, strict=True)]
        s, t = np.repeat(scores, times), np.repeat(same, times)
        values.append([(s[t] >= 1.0).mean(), (s[~t] >= 1.0).mean()])
    expected = np.percentile(values, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(
        np.array([at_threshold.tar_interval, at_threshold.far_interval], float), expected
    )
    # names or numbers, in any order
    shuffled = np.random.default_rng(0).permutation(len(scores))
    named = metrics.rates(
        scores[shuffled],
        same[shuffled],
        1.0,
        np.char.add("p", np.char.zfill(a[shuffled].astype(str), 3)),
        np.char.add("p", np.char.zfill(b[shuffled].astype(str), 3)),
        resamples=30,
        seed=5,
    )
    np.testing.assert_allclose(np.array(named.far_interval), expected[1])


def test_rates_of_a_class_without_pairs_are_unknown() -> None:
    scores, same, a, b = _population(8, 3)
    only = metrics.rates(scores[same], same[same], 1.0, a[same], b[same], resamples=5)
    assert only.tar is not None
    assert only.tar_interval is not None
    assert only.far is only.far_interval is None
    assert metrics.rates(scores, same, 1.0, a, b, resamples=0).tar_interval is None
    nothing = np.zeros(0)
    empty = metrics.rates(nothing, nothing.astype(bool), 1.0, nothing, nothing)
    assert empty == (0, 0, None, None, None, None)
    accepted = metrics.rates(scores, same, -np.inf, a, b, resamples=0)
    assert (accepted.tar, accepted.far) == (1, 1)
    assert metrics.rates(scores, same, np.inf, a, b, resamples=0).far == 0
    with pytest.raises(ValueError, match="as many of each"):
        metrics.rates(scores, same[1:], 1.0, a, b)
    with pytest.raises(ValueError, match="not finite"):
        metrics.rates(np.full(2, np.nan), np.ones(2, bool), 1.0, np.arange(2), np.arange(2))


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])), max_size=20))
def test_bins_hold_their_lower_edge(shares: list[float]) -> None:
    expected = [sum(share >= edge for edge in (0.1, 0.3, 0.5, 0.7)) for share in shares]
    assert metrics.share_bins(np.array(shares)).tolist() == expected
    assert metrics.share_bins(np.array(shares), (0.0, 1.0)).tolist() == [0] * len(shares)


def test_a_share_outside_the_bins_is_refused() -> None:
    for share in (-0.01, 1.01, np.nan):
        with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
            metrics.share_bins(np.array([0.5, share]))


def test_a_frozen_far_needs_thirty_expected_accepts() -> None:
    assert metrics.enough_expected(30_000, 1e-3)
    assert not metrics.enough_expected(29_999, 1e-3)


def test_intervals_by_person_cover_the_truth() -> None:
    truth = metrics.auc(*_population(700, 999)[:2])
    covered = 0
    for seed in range(60):
        interval = metrics.summarise(*_population(30, seed), fars=(), resamples=100).auc_interval
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert covered >= 50  # 57 expected


def test_the_seed_decides_the_intervals() -> None:
    data = _population(20, 1)
    one = metrics.summarise(*data, resamples=50, seed=1)
    assert one == metrics.summarise(*data, resamples=50, seed=1)
    assert one != metrics.summarise(*data, resamples=50, seed=2)


def test_interval_of_a_mean_resamples_people() -> None:
    person = np.repeat(np.arange(20), 30)
    hits = person % 2 == 0
    interval = metrics.bootstrap_mean(hits, person, 500)
    assert interval is not None
    # 20 independent people: 0.5 +- 2 * 0.11; 600 independent images would give +- 0.04
    assert 0.2 < interval.low < 0.36 < 0.64 < interval.high < 0.8
    assert metrics.bootstrap_mean(hits, person, 0) is None


def test_two_hundred_resamples_of_fourteen_thousand_pairs_are_quick() -> None:
    scores, same, a, b = _population(84, 0)
    assert len(scores) > 14_000 - 100
    start = time.process_time()
    metrics.summarise(scores, same, a, b, resamples=200)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([1.0, np.nan], [True, False], "not finite"),
        ([1.0, 2.0], [True, True], "no impostor pairs"),
        ([1.0, 2.0], [False, False], "no genuine pairs"),
        ([1.0, 2.0, 3.0], [True, False], "expected"),
        ([], [], "expected"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores: list, same: list, message: str) -> None:
    for measure in (metrics.auc, metrics.eer, metrics.roc):
        with pytest.raises(ValueError, match=message):
            measure(np.array(scores), np.array(same, bool))


@settings(max_examples=30)
@given(cases(4))
def test_folds_prefer_the_smallest_of_equal_thresholds(case: tuple[np.ndarray, np.ndarray]) -> None:
    distances, same = np.abs(case[0]) / 2, case[1]
    folds = metrics.kfold_accuracy(distances, same, folds=2, thresholds=np.array([0.0, 1.0, 2.0, 4.0]))
    assert set(folds.threshold) <= {0.0, 1.0, 2.0, 4.0}


def test_retrieval_of_a_ranking_written_out_by_hand() -> None:
    """Ann has three gallery images; the ranking of her probe is right, wrong, right, right: R = 3 looks at the first three."""
    scores = np.array([[0.9, 0.7, 0.6, 0.8, 0.1]])
    gallery = np.array(["ann", "ann", "ann", "bela", "cem"])
    p1, r_precision, map_at_r = metrics.retrieval(scores, np.array(["ann"]), gallery)[0]
    assert p1 == 1
    assert r_precision == pytest.approx(2 / 3)
    assert map_at_r == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert metrics.retrieval(scores, np.array(["cem"]), gallery).tolist() == [[0, 0, 0]]
    assert metrics.retrieval(np.zeros((1, 5)), np.array(["ann"]), gallery)[0, 1] == pytest.approx(1 / 3)


def test_retrieval_with_one_image_a_person_is_rank_1() -> None:
    rng = np.random.default_rng(0)
    values = metrics.retrieval(rng.random((40, 10)), rng.integers(0, 10, 40), np.arange(10))
    np.testing.assert_array_equal(values, values[:, :1].repeat(3, 1))


def test_mean_iou_by_hand() -> None:
    predicted = np.array([[True, True, False, False]])
    true = np.array([[True, False, False, False]])
    assert metrics.mean_iou(predicted, true) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.mean_iou(true, true) == 1
    shown = np.ones((2, 3), bool)
    assert metrics.mean_iou(shown, shown) == 1  # nothing is hidden: one class alone
    assert metrics.mean_iou(shown, ~shown) == 0
