"""Thresholds and the offset of the fused score, on scores whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from oaml.adaptation.calibration import UNSEEN_MARGIN, fit_lift, fit_offset, fit_overlap, fit_thresholds
from oaml.joint import KNOTS

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
