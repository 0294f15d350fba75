"""Thresholds that can be traced, and a fused score whose threshold does not move with what is covered.

Both are fitted on different people's faces, none of which was trained on.

Shapes: N pairs. Scores are logits: higher is more alike. `unseen` is the share of the face that a pair doesn't both show.
"""

from __future__ import annotations

import numpy as np

from oaml.evaluation.metrics import MIN_FALSE_ACCEPTS
from oaml.joint import KNOTS

FARS = (1e-2, 1e-3, 1e-4)
ANCHOR_FAR = 1e-3
"""False-accept rate at which the offset holds the threshold still."""
LEAST = 20
"""False accepts that a window must hold for its quantile to count."""
PAIRS_NEEDED = round(LEAST / ANCHOR_FAR)
"""Different-person pairs that an offset can be fitted on."""
MARGIN = 0.1
"""Of the distance between the thresholds of FAR 1e-2 and 1e-3, added at a share of 1: little shared area lowers confidence."""


def fit_offset(scores: np.ndarray, unseen: np.ndarray, far: float = ANCHOR_FAR) -> np.ndarray:
    """Offset of every knot, so that the score that a share `far` of different people exceeds is the same at every share.

    Args:
        scores: of different people, before any offset, [N].
        unseen: [N] in [0,1].

    Returns:
        float32 [KNOTS], 0 at a share of 0. A quantile is taken in a window around each knot, wide enough to hold `LEAST` scores
        above it; beyond the shares that occur the last quantile is kept, raised towards a share of 1 by the highest
        score seen: with nothing in common nothing is accepted.

    Raises:
        ValueError: fewer pairs than one window needs.
    """
    need = round(LEAST / far)
    if len(scores) < need:
        raise ValueError(f"{len(scores):,} pairs of different people, at least {need:,} are needed")
    order = np.argsort(unseen, kind="stable")
    scores, unseen = scores[order], unseen[order]
    knots = np.linspace(0, 1, KNOTS)
    found = np.empty(KNOTS)
    for i, knot in enumerate(knots):
        low, high = np.searchsorted(unseen, [knot - 0.5 / (KNOTS - 1), knot + 0.5 / (KNOTS - 1)])
        if high - low < need:  # the nearest pairs on either side
            middle = int(np.searchsorted(unseen, knot))
            low = int(np.clip(middle - need // 2, 0, len(scores) - need))
            high = low + need
        found[i] = np.quantile(scores[low:high], 1 - far)
    spread = np.quantile(scores, 1 - far) - np.quantile(scores, 1 - 10 * far)
    offset = found - found[0] + MARGIN * spread * knots
    beyond = knots > unseen[-1]
    if beyond.any():
        last = knots[~beyond][-1]
        offset[beyond] = offset[~beyond][-1] + (scores.max() - found[0]) * (knots[beyond] - last) / (1 - last)
    return offset.astype(np.float32)


def fit_thresholds(scores: np.ndarray) -> dict[str, float]:
    """Scores of different people [N] -> false-accept rate, as written in config.json, -> threshold of it.

    A rate is left out where the pairs are too few for it: it needs `MIN_FALSE_ACCEPTS` false accepts. A pair is accepted when its
    score is at least the threshold.
    """
    ordered = np.sort(scores)[::-1]
    return {
        f"{far:g}": float(ordered[int(far * len(ordered) + 1e-9) - 1])
        for far in FARS
        if far * len(ordered) >= MIN_FALSE_ACCEPTS
    }
