"""Thresholds and the offset of the fused score, on scores whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from oaml.evaluation.calibration import LEAST, fit_offset, fit_thresholds
from oaml.joint import KNOTS

KNOT = np.linspace(0, 1, KNOTS)


def impostors(n: int = 1_500_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that rise by 3 and spread by half as less is shared."""
    rng = np.random.default_rng(seed)
    unseen = rng.uniform(0, 0.9, n)
    return rng.normal(3 * unseen, 1 + 0.5 * unseen), unseen


def test_offset_holds_the_rate_at_every_share() -> None:
    offset = fit_offset(*impostors())
    assert offset[0] == 0
    scores, unseen = impostors(seed=1)  # others than it was fitted on
    fused = scores - np.interp(unseen, KNOT, offset)
    threshold = np.quantile(fused[unseen < 0.05], 1 - 1e-3)
    for low in np.arange(0, 0.9, 0.1):
        rate = (fused[(unseen >= low) & (unseen < low + 0.1)] >= threshold).mean()
        assert 0.5e-3 < rate < 2e-3
    raw = scores >= np.quantile(scores[unseen < 0.05], 1 - 1e-3)
    assert raw[unseen > 0.8].mean() > 0.1  # what it would be without


def test_little_shared_area_lowers_confidence() -> None:
    rng = np.random.default_rng(2)
    unseen = rng.uniform(0, 0.7, 1_000_000)
    offset = fit_offset(rng.normal(0, 1, len(unseen)), unseen)  # the law doesn't depend on the share
    assert offset[14] == pytest.approx(0.1 * 0.7 * (3.09 - 2.33), abs=0.15)
    assert offset[-1] > 1  # and where nothing was ever seen in common, nothing is accepted
    assert (np.diff(offset[14:]) > 0).all()


def test_offset_needs_enough_pairs() -> None:
    with pytest.raises(ValueError, match=r"19,999 pairs .* 20,000 are needed"):
        fit_offset(np.zeros(19_999), np.zeros(19_999))
    assert LEAST == 20


def test_thresholds_accept_the_stated_share() -> None:
    scores = np.random.default_rng(3).permutation(20_000).astype(float)
    found = fit_thresholds(scores)
    assert set(found) == {"0.01", "0.001"}  # 1e-4 would be two errors
    for far, threshold in found.items():
        assert sum(score >= threshold for score in scores) == round(float(far) * len(scores))
    assert fit_thresholds(np.zeros(0)) == {}
