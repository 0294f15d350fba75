"""Thresholds and the offset of the fused score, on scores whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from oaml.adaptation.calibration import (
    SLACK,
    UNSEEN_MARGIN,
    WELL_SEEN,
    WINDOW,
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
from oaml.joint import KNOTS, TRACES

KNOT = np.linspace(0, 1, KNOTS)


def impostors(n: int = 1_500_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that rise by 3 and spread by half as less is shared."""
    rng = np.random.default_rng(seed)
    unseen = rng.uniform(0, 0.9, n)
    return rng.normal(3 * unseen, 1 + 0.5 * unseen), unseen


def test_offset_holds_the_rate_at_every_share() -> None:
    scores, unseen = impostors()
    offset = fit_offset(scores, unseen)
    assert offset[0] == 0
    margin = UNSEEN_MARGIN * (np.quantile(scores, 1 - 1e-3) - np.quantile(scores, 1 - 1e-2)) * KNOT
    scores, unseen = impostors(seed=1)  # others than it was fitted on
    level = 3.09  # that a share of 1e-3 of the pairs that show all exceeds
    for low in np.arange(0, 0.9, 0.1):
        near = (unseen >= low) & (unseen < low + 0.1)
        held = scores[near] - np.interp(unseen[near], KNOT, offset - margin)
        assert 0.5e-3 < (held >= level).mean() < 1.3e-3
        fused = scores[near] - np.interp(unseen[near], KNOT, offset)
        assert (fused >= level).mean() < 1.2e-3
    raw = scores >= np.quantile(scores[unseen < 0.05], 1 - 1e-3)
    assert raw[unseen > 0.8].mean() > 0.1  # what it would be without


def test_little_shared_area_lowers_confidence() -> None:
    rng = np.random.default_rng(2)
    unseen = rng.uniform(0, 0.7, 1_000_000)
    offset = fit_offset(rng.normal(0, 1, len(unseen)), unseen)  # the law doesn't depend on the share
    assert offset[13] == pytest.approx(UNSEEN_MARGIN * 0.65 * (3.09 - 2.33), abs=0.15)
    assert offset[-1] > 1  # and where nothing was ever seen in common, nothing is accepted
    assert (np.diff(offset[14:]) > 0).all()


def test_offset_of_one_share_alone() -> None:
    scores = np.random.default_rng(5).normal(0, 1, 50_000)
    offset = fit_offset(scores, np.full(len(scores), 0.5))
    assert np.isfinite(offset).all()
    assert offset[0] == 0
    assert (offset[-1] - offset[10]) > 0.5


def test_offset_rises_evenly_beyond_the_shares_that_occur() -> None:
    """From where they end on, by the distance from the quantile to the highest score."""
    rng = np.random.default_rng(6)
    unseen = np.append(rng.uniform(0, 0.5, 99_999), 0.5)
    scores = rng.normal(4 * unseen, 1)
    offset = fit_offset(scores, unseen)
    assert offset[10] == pytest.approx(4 * 0.5 + UNSEEN_MARGIN * 0.5 * 1.0, abs=0.5)
    steps = np.diff(offset[10:])
    np.testing.assert_allclose(steps, steps[0], atol=1e-5)
    assert offset[-1] - offset[10] == pytest.approx(scores.max() - 3.09, abs=0.3)


def test_offset_needs_enough_pairs() -> None:
    with pytest.raises(ValueError, match=r"19,999 impostor pairs, .* 20,000 are needed"):
        fit_offset(np.zeros(19_999), np.zeros(19_999))


def test_overlap_holds_the_rate_under_shared_occluders() -> None:
    rng = np.random.default_rng(4)

    def pairs(n: int = 400_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        overlap, cosine = rng.uniform(0, 1, n), rng.normal(0.3, 0.2, n)
        return rng.normal(0, 1, n) - 3.5 + 6 * overlap * np.maximum(cosine, 0), overlap, cosine

    excess, overlap, cosine = pairs()
    factor = fit_overlap(excess, overlap, cosine, np.ones(len(excess)))
    assert (excess > 0).mean() > 0.02
    excess, overlap, cosine = pairs()  # others than it was fitted on
    rate = (excess - factor * overlap * np.maximum(cosine, 0) > 0).mean()
    assert 0.8e-3 < rate < 1.25e-3
    # no less does
    assert (excess - (factor - 0.5) * overlap * np.maximum(cosine, 0) > 0).mean() > rate


def test_overlap_by_hand() -> None:
    excess, overlap, cosine = np.array([4, 3, 2, -1.0]), np.array([1, 0.5, 1, 1]), np.array([0.5, 1, 1, 1])
    even, odd = np.ones(4), np.array([1, 1, 3, 5.0])  # what each takes to be pushed below: 8, 6, 2, 0
    assert fit_overlap(excess, overlap, cosine, even, far=0.3) == 6
    assert fit_overlap(excess, overlap, cosine, even, far=0.6) == 2
    assert fit_overlap(excess, overlap, cosine, odd, far=0.3) == 2
    assert fit_overlap(-excess, overlap, cosine, even, far=0.3) == 0
    assert fit_overlap(excess, np.zeros(4), cosine, even, far=0.3) == 0  # it would not help
    assert fit_overlap(excess, overlap, -cosine, even, far=0.3) == 0


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def treated_faces(way: int, n: int, seed: int, strength: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of strangers [n,32] that a way moved along an axis of its own, and the people's own parts."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 1, (n, 32)) * np.linspace(1.5, 0.5, 32)
    moved = own.copy()
    moved[:, 20 + way] += strength * np.linalg.norm(own, axis=1) / 2
    return unit(moved).astype(np.float32), unit(own).astype(np.float32)


def treated_pairs(way: int | None, people: int, seed: int) -> Treated:
    """All pairs of strangers that were treated in one way, or not at all; the score is 20 times the cosine."""
    moved, own = treated_faces(way or 0, people, seed)
    faces = own if way is None else moved
    a, b = np.triu_indices(people, 1)
    return Treated(20 * (faces @ faces.T)[a, b], faces, a, b)


def lost(pairs: Treated, traces: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """What each pair loses, one at a time."""
    found = []
    for a, b in zip(pairs.a, pairs.b, strict=True):
        found.append(
            sum(
                max(0.0, float(pairs.embeddings[a] @ t) - f) * max(0.0, float(pairs.embeddings[b] @ t) - f)
                for t, f in zip(traces, floor, strict=True)
            )
        )
    return np.array(found)


def test_traces_keep_the_rates_where_both_pictures_were_treated_alike() -> None:
    seen = np.concatenate([treated_faces(way, 1000, way)[1] for way in range(4)])
    classes = [treated_pairs(way, 400, 50 + way) for way in range(4)]
    traces, floor = fit_traces(classes, treated_pairs(None, 600, 60), seen)
    assert traces.shape == (TRACES, 32)
    assert floor.shape == (TRACES,)
    assert (floor >= 0).all()
    # each way was moved along an axis of its own
    assert {int(np.abs(t).argmax()) for t in traces if t.any()} == {20, 21, 22, 23}

    def less(pairs: Treated) -> np.ndarray:
        beyond = np.maximum(pairs.embeddings @ traces.T - floor, 0)
        return (beyond[pairs.a] * beyond[pairs.b]).sum(1)

    plain = treated_pairs(None, 600, 70)  # other people
    np.testing.assert_allclose(less(plain)[:300], lost(plain, traces, floor)[:300], rtol=1e-4, atol=1e-5)
    for far in (1e-2, 1e-3):
        limit = np.quantile(plain.scores - less(plain), 1 - far)
        raw = np.quantile(plain.scores, 1 - far)
        assert abs(limit - raw) < 0.3  # who is well seen hardly loses anything
        for way in range(4):
            pairs = treated_pairs(way, 450, 80 + way)
            assert (pairs.scores - less(pairs) >= limit).mean() <= 1.8 * far
            assert (pairs.scores >= raw).mean() > 4 * far  # what it would be without


def test_well_seen_faces_lie_below_the_floor() -> None:
    seen = np.concatenate([treated_faces(way, 1000, way)[1] for way in range(2)])
    traces, floor = fit_traces([treated_pairs(0, 300, 5)], treated_pairs(None, 600, 6), seen)
    used = traces.any(1)
    assert 1 <= used.sum() < TRACES
    assert (seen @ traces[used].T < floor[used]).mean(0) == pytest.approx(WELL_SEEN[0], abs=2e-3)
    assert not floor[~used].any()


def test_the_floor_is_lower_where_treated_faces_are_not_far_out() -> None:
    seen = np.concatenate([treated_faces(way, 1000, way)[1] for way in range(2)])
    near = treated_faces(0, 300, 5, strength=0.75)[0]
    a, b = np.triu_indices(300, 1)
    pairs = Treated(40 * (near @ near.T)[a, b], near, a, b)
    plain = treated_pairs(None, 600, 6)
    traces, floor = fit_traces([pairs], plain._replace(scores=2 * plain.scores), seen)
    assert traces[0].any()
    assert (seen @ traces[0] < floor[0]).mean() < WELL_SEEN[0] - 0.02
    left = pairs.scores - lost(pairs, traces[:1], floor[:1])
    assert (left > np.quantile(2 * plain.scores, 0.99)).mean() <= 0.0101


def test_no_traces_where_the_rates_hold_already() -> None:
    seen = treated_faces(0, 1000, 0)[1]
    low = treated_pairs(0, 200, 1)._replace(scores=np.full(200 * 199 // 2, -30.0))
    traces, floor = fit_traces([low], treated_pairs(None, 200, 2), seen)
    assert not traces.any()
    assert not floor.any()


def test_raised_offset_holds_the_rate_at_every_share() -> None:
    """Of each class and range of unseen shares at most twice the rate is accepted, and of all together at most the rate."""

    def classes(seed: int) -> list[Class]:
        rng = np.random.default_rng(seed)
        made = []
        for rise, spread in ((0, 1), (3, 0.5), (-4, 1.5)):
            unseen = rng.uniform(0, 0.95, 250_000)
            made.append(Class(rng.normal(rise * unseen**2, 1 + spread * unseen), unseen))
        return made

    raised = raise_offset(classes(0), 3.09)
    assert raised[0] == 0
    assert (raised >= 0).all()
    asked = 3 * 0.95**2 + 2.88 * 1.475 - 3.09  # of the second class, for twice the rate
    assert raised[-2] == pytest.approx(asked, abs=0.4)
    others = classes(1)  # than it was fitted on
    for low in np.arange(0.05, 0.95, 0.05):
        rates = []
        for scores, unseen in others:
            near = (unseen >= low) & (unseen < low + 0.05)
            rates.append((scores[near] - np.interp(unseen[near], KNOT, raised) >= 3.09).mean())
        assert max(rates) < SLACK * 1.7e-3
        assert np.mean(rates) < 1.6e-3


def test_offset_is_left_alone_where_too_few_pairs_speak() -> None:
    few, enough = (
        Class(np.full(count, 9.0), np.full(count, 0.5)) for count in (499, 500)
    )  # 10 false accepts at .02
    assert not raise_offset([few], 1.0, far=0.01).any()
    raised = raise_offset([enough], 1.0, far=0.01)
    touched = np.abs(KNOT - 0.5) <= WINDOW + 1e-6
    np.testing.assert_allclose(raised, np.where(touched, 8, 0), atol=1e-3)
    # classes too small by themselves speak together
    assert raise_offset([few, few, few], 1.0, far=0.01).max() == pytest.approx(8, abs=1e-3)


def test_thresholds_are_raised_to_the_class_that_needs_most() -> None:
    rng = np.random.default_rng(12)
    classes = [rng.normal(0, 1, 20_000), rng.normal(1, 0.2, 20_000), np.full(400, -50.0)]
    raised = raise_thresholds({"0.01": 1.0, "0.001": 2.5, "0.0001": 2.6}, classes)
    assert list(raised) == ["0.01", "0.001", "0.0001"]
    together = np.concatenate(classes)
    for far in ("0.01", "0.001"):
        assert all((scores >= raised[far]).mean() <= SLACK * float(far) for scores in classes)
        assert (together >= raised[far]).mean() <= float(far)
    assert raised["0.01"] == pytest.approx(np.sort(classes[0])[-400], abs=0.02)  # twice its rate
    assert raised["0.0001"] >= raised["0.001"] >= 2.5
    assert raise_thresholds({"0.01": 9.0}, classes) == {"0.01": 9.0}
    assert raise_thresholds({"0.01": 9.0}, []) == {"0.01": 9.0}
    assert raise_thresholds({}, classes) == {}


def test_lift_is_what_accepted_pairs_needed() -> None:
    scores, local = np.array([3, 2.5, 1, 4.0]), np.array([1, 2, 5, -1.0])  # the rest is 2, .5, -4 and 5
    assert fit_lift(scores, local, [2]) == 1.5
    assert fit_lift(scores, local, [2, 0.5]) == 4.5
    assert fit_lift(scores, local, [3.5]) == 0
    assert fit_lift(scores, local, []) == 0


def test_thresholds_accept_the_stated_share() -> None:
    scores = np.random.default_rng(3).permutation(20_000).astype(float)
    thresholds = fit_thresholds(scores)
    assert set(thresholds) == {"0.01", "0.001"}  # 1e-4 would be two errors
    for far, threshold in thresholds.items():
        assert sum(score >= threshold for score in scores) == round(float(far) * len(scores))
    assert fit_thresholds(np.zeros(0)) == {}
