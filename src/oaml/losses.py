"""The terms of the training loss, and the guard that stops on a non-finite one.

Shapes: P probes, G gallery faces, B images; visibility [B,1,h,w] with 1 = visible. Scores are logits, higher is more similar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.errors import OamlError
from oaml.visibility import mask_to_cells


@dataclass
class LossWeights:
    """Weights of the terms: total = ada * L_ada + qaconv * L_qa + occlusion * L_occ + joint * L_joint."""

    ada: float = 1.0
    """Classification of the embedding."""
    qaconv: float = 1.0
    """Matching of local cells."""
    occlusion: float = 1.0
    """Mean squared error of the visibility map."""
    joint: float = 1.0
    """Matching by the joint embedding."""

    def __post_init__(self) -> None:
        for name in ("ada", "qaconv", "occlusion", "joint"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"weights.{name}: {getattr(self, name)} is not a finite number of 0 or more")


def same_person(labels_p: Tensor, labels_g: Tensor) -> Tensor:
    """Labels [P], [G] -> [P,G] bool: True where probe and gallery face are the same person."""
    return labels_p[:, None] == labels_g[None]


def pairwise_matching_loss(scores: Tensor, same: Tensor) -> Tensor:
    """Binary cross-entropy of every pair, summed over a row: [P,G] -> [P] (QAConv, Liao & Shao 2020, section 3.4)."""
    return F.binary_cross_entropy_with_logits(scores.float(), same.float(), reduction="none").sum(1)


def hard_triplet_loss(scores: Tensor, same: Tensor, margin: float = 16.0) -> Tensor:
    """Hinge between the hardest negative and the hardest positive of each row (Hermans et al. 2017, batch hard).

    Args:
        scores: [B,B], one batch against itself; the diagonal (an image against itself) is no positive.
        margin: in logits; 16 as published for QAConv.

    Returns:
        [B]; 0 for a row without a positive or without a negative.
    """
    scores = scores.float()
    positive = same & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    hardest_positive = scores.masked_fill(~positive, math.inf).amin(1)
    hardest_negative = scores.masked_fill(same, -math.inf).amax(1)
    complete = positive.any(1) & (~same).any(1)
    # where() twice: an infinite value in the branch not taken would still give a NaN gradient
    gap = torch.where(complete, hardest_negative, 0) - torch.where(complete, hardest_positive, 0)
    return torch.where(complete, (gap + margin).clamp_min(0), 0)


def balanced_matching_loss(scores: Tensor, same: Tensor, hardest: float = 0.05) -> Tensor:
    """Binary cross-entropy, the mean over the genuine pairs + over all impostor pairs + over the hardest of these, plus
    cross-entropy over rows and over columns.

    In a batch there are a hundred impostor pairs for each genuine one: in a plain sum they only teach the matcher to say no.

    Args:
        scores: [P,G]; same: [P,G] bool with at least one genuine and one impostor pair.
        hardest: share of the impostor pairs that counts as the hardest.

    Returns:
        scalar.
    """
    scores = scores.float()
    impostors = scores[~same]
    count = max(1, round(hardest * len(impostors)))
    loss = F.softplus(-scores[same]).mean()
    loss = loss + F.softplus(impostors).mean() + F.softplus(impostors.topk(count).values).mean()
    for matrix, target in ((scores, same), (scores.T, same.T)):
        rows = target.any(1)
        every = matrix[rows].logsumexp(1)
        right = matrix[rows].masked_fill(~target[rows], -math.inf).logsumexp(1)
        loss = loss + (every - right).mean() / 2
    return loss


def occlusion_loss(visibility: Tensor, mask: Tensor, has_mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the predicted visibility against the area-averaged mask.

    Args:
        visibility: [B,1,h,w] in [0,1].
        mask: [B,1,H,W] in [0,1], any size; rows without a mask may hold anything finite.
        has_mask: [B] bool, None means every row.

    Returns:
        scalar, mean over labelled images and cells. Without any labelled image it is a zero that is connected to
        `visibility`, so that every process of a data-parallel run takes the same backward pass.
    """
    visibility = visibility.float()
    error = (
        (visibility - mask_to_cells(mask, (visibility.shape[2], visibility.shape[3])))
        .square()
        .flatten(1)
        .mean(1)
    )
    if has_mask is None:
        return error.mean()
    return (error * has_mask).sum() / has_mask.sum().clamp_min(1)


def distillation_loss(cell_embeddings: Tensor, target: Tensor, visibility: Tensor) -> Tensor:
    """How far the visible cells of occluded faces are from what the unchanged network gives for the unoccluded images.

    Args:
        cell_embeddings: [B,R,E] of the occluded faces; target: [B,R,E] of the unoccluded images, by the unchanged network;
            visibility: [B,R] in [0,1], of the occluded faces.

    Returns:
        scalar: squared error of the per-cell embeddings, weighted by visibility, relative to the squared length of the target.
    """
    error = (cell_embeddings.float() - target.float()).square().sum(-1)
    length = target.float().square().sum(-1)
    return (error * visibility).sum() / (length * visibility).sum().clamp_min(1e-6)


def combine(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of the terms. A term without a weight is a KeyError: nothing is left out silently."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


class NonFiniteLoss(OamlError):
    """A loss term is NaN or infinite; the message names the step, the term and the files of the batch."""


def check_finite(terms: Mapping[str, Tensor], step: int, files: Callable[[], Sequence[str]]) -> None:
    """Stop the training on a loss term that is not finite; never replace it by zero.

    Args:
        files: names those of the batch; asked only when something is wrong.

    Raises:
        NonFiniteLoss: names the step, the terms and every file of the batch.
    """
    values = torch.stack([term.detach().float() for term in terms.values()])
    if torch.isfinite(values).all():  # one read-back from the device for all terms
        return
    bad = ", ".join(
        f"{name} = {value.item()}" for name, value in zip(terms, values, strict=True) if not value.isfinite()
    )
    raise NonFiniteLoss(f"step {step}: loss term {bad}; files of the batch: {', '.join(files())}")
