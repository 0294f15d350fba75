"""What stands behind a threshold: impostor pairs, their people, and how sure its false-accept rate is by them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from oaml.model import Evidence
from oaml.support.metrics import rates


def evidence_of(scores: np.ndarray, a: np.ndarray, b: np.ndarray, threshold: float) -> Evidence:
    """What a threshold accepts of some impostor pairs, with a 95 % interval by resampling people (`oaml.support.metrics.rates`).

    Of no false accepts the interval ends at 3 divided by the pairs (Hanley and Lippman-Hand, If Nothing Goes Wrong, Is Everything
    All Right?, JAMA 1983), 1 at most.

    Args:
        scores: fused, one pair at least, [N].
        a, b: int [N], who is in either image.
    """
    found = rates(scores, np.zeros(len(scores), bool), threshold, a, b)
    assert found.far is not None
    assert found.far_interval is not None
    # of many false accepts of a few people a resample may hold so much less that the interval leaves out the rate itself
    low, high = min(found.far_interval.low, found.far), max(found.far_interval.high, found.far)
    people = len(np.union1d(a, b))
    return Evidence(len(scores), people, found.far, low, high if found.far else min(1.0, 3 / len(scores)))


def evidence(
    scores: np.ndarray, a: np.ndarray, b: np.ndarray, thresholds: Mapping[str, float]
) -> dict[str, Evidence]:
    """`evidence_of` each threshold, by its rate as text."""
    return {far: evidence_of(scores, a, b, value) for far, value in thresholds.items()}
