"""Thresholds that can be traced, and a fused score whose threshold does not move with what is covered.

All is fitted on different people's faces, none of which was trained on. What is held still is the score that a small share of
such pairs exceeds: its course is fitted by quantile regression (Koenker and Bassett, Regression Quantiles, Econometrica 1978).

Shapes: N pairs. Scores are logits: higher is more alike. `unseen` is the share of the face that a pair doesn't both show,
`overlap` how much of that both hide (`oaml.joint.Compared`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from oaml.joint import KNOTS
from oaml.support.metrics import MIN_FALSE_ACCEPTS

FARS = (1e-2, 1e-3, 1e-4)
ANCHOR_FAR = 1e-3
"""False-accept rate at which the offset holds the threshold still."""
PAIRS_NEEDED = 20_000
"""Different-person pairs that an offset can be fitted on: 20 of them exceed the quantile."""
MARGIN = 0.3
"""Of the distance between the thresholds of FAR 1e-2 and 1e-3, added at a share of 1: little shared area lowers confidence."""
STEPS = 250
"""Of the descent; more change nothing."""


def fit_offset(scores: np.ndarray, unseen: np.ndarray, far: float = ANCHOR_FAR) -> np.ndarray:
    """Offset of every knot, so that the score that a share `far` of different people exceeds is the same at every share.

    Args:
        scores: of different people, one of them bare, before any offset, [N].
        unseen: [N] in [0,1].

    Returns:
        float32 [KNOTS], 0 at a share of 0. A parabola: quantiles in windows follow the kinds of cover that happen to hide so
        much, and held worse on other people's covers. Beyond the shares that occur it rises towards a share of 1 by the
        highest score seen: with nothing in common nothing is accepted.

    Raises:
        ValueError: too few pairs.
    """
    if len(scores) < PAIRS_NEEDED:
        raise ValueError(f"{len(scores):,} pairs of different people, at least {PAIRS_NEEDED:,} are needed")
    share = torch.from_numpy(np.asarray(unseen)).double()
    place = (share * (KNOTS - 1)).long()
    # shares that few pairs have count for more than their number, but not as much as all others
    weight = torch.bincount(place, minlength=KNOTS)[place].double().rsqrt()
    level, slope, bend = _quantile(
        scores, torch.stack([torch.ones_like(share), share, share**2]), weight, far
    )
    knots = np.linspace(0, 1, KNOTS)
    spread = np.quantile(scores, 1 - far) - np.quantile(scores, 1 - 10 * far)
    offset = (slope + MARGIN * spread) * knots + bend * knots**2
    beyond = knots > unseen.max()
    if beyond.any():
        last = knots[~beyond][-1]
        offset[beyond] = offset[~beyond][-1] + (scores.max() - level) * (knots[beyond] - last) / (1 - last)
    return offset.astype(np.float32)


def fit_overlap(
    excess: np.ndarray, overlap: np.ndarray, cosine: np.ndarray, weight: np.ndarray, far: float = ANCHOR_FAR
) -> float:
    """What to take off a pair of two covered faces for a whole overlap and a cosine of 1.

    Args:
        excess: scores of different people, both covered, less the offset and less the threshold of `far`, [N].
        overlap: [N] in [0,1].
        cosine: of the plain embeddings, [N]; below 0 it counts as 0.
        weight: of each pair, [N].

    Returns:
        The least number, at least 0, with which no more than the weighted share `far` of the pairs exceeds the threshold.
        Pairs with hardly any overlap or cosine exceed it for another reason and are not counted.
    """
    # a pair exceeds the threshold as long as the number is below its excess for each 1 of overlap times cosine
    agreeing = overlap * np.maximum(cosine, 0)
    reach = np.where(agreeing < 0.05, 0, np.maximum(excess, 0) / np.maximum(agreeing, 0.05))
    order = np.argsort(-reach)
    share = np.cumsum(weight[order]) / weight.sum()
    return float(reach[order][np.searchsorted(share, far, side="right")])


def fit_lift(scores: np.ndarray, local: np.ndarray, thresholds: Iterable[float]) -> float:
    """How far below a threshold the rest of a score may be for QAConv to lift it there, at least 0.

    Args:
        scores: as they are decided by, [N].
        local: what QAConv adds to them, [N].
    """
    needed = [0.0]
    for threshold in thresholds:
        accepted = scores >= threshold
        needed.append(float((threshold - (scores - local)[accepted]).max(initial=0)))
    return max(needed)


def _quantile(scores: np.ndarray, features: Tensor, weight: Tensor, far: float) -> list[float]:
    """Coefficients [K] of features [K,N] whose sum a weighted share `far` of the scores [N] exceeds; the first is constant."""
    target = torch.from_numpy(np.asarray(scores)).double()
    unit = target.std().clamp_min(1e-6)
    target, weight = target / unit, weight / weight.sum()
    # a share and its square go together; the descent needs directions that don't, each of length 1
    ridge = 1e-6 * torch.eye(len(features), dtype=torch.float64)  # where all pairs show alike
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
    found = torch.linalg.solve_triangular(triangle.T, coefficients.detach()[:, None], upper=True)
    return (found[:, 0] * unit).tolist()


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
