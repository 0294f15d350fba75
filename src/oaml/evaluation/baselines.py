"""Two published ways to recognise occluded faces with the same network and without training, to compare with.

- `upper half`: the cosine of embeddings of the upper half of either face, the lower one painted grey. Masks cover the other half.
- `EMD 4x4`, `EMD 8x8`: the first 100 by cosine in another order, by the earth mover's distance between the patches of two faces
  (Phan and Nguyen, DeepFace-EMD: Re-ranking Using Patch-wise Earth Mover's Distance Improves Out-Of-Distribution Face
  Identification, CVPR 2022). A patch weighs what it has in common with the whole of the other face (average pooling correlation),
  and the distance counts .7 beside .3 of the cosine's. 4x4 patches are of the map after stage 4, 8x8 of that after stage 3.

Shapes: N faces, P probes, G gallery faces, C channels, S patches. Scores: higher is more similar.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.inference import as_input

if TYPE_CHECKING:
    from oaml.model import Model

UPPER_HALF = "upper half"
SIDES = (4, 8)
"""Patches along a side: of the map after stage 4, and of that after stage 3."""
FIRST, WEIGHT = 100, 0.7
SMOOTHING, STEPS = 0.05, 100
"""Of Sinkhorn's iteration (Cuturi, Sinkhorn Distances, NeurIPS 2013): the entropy's weight, and steps."""
GREY = 0.5


@dataclass(frozen=True)
class BaselineFaces:
    """What the baselines compare of N faces."""

    embedding: Tensor
    """[N,E], unit length."""
    upper: Tensor
    """[N,E], of the upper half alone."""
    patches: dict[int, Tensor]
    """Patches along a side -> [N,S,C], unit length each."""

    def __getitem__(self, rows: np.ndarray) -> BaselineFaces:
        chosen = torch.from_numpy(rows)
        patches = {side: values[chosen] for side, values in self.patches.items()}
        return BaselineFaces(self.embedding[chosen], self.upper[chosen], patches)


@torch.inference_mode()
def read_faces(model: Model, images: Iterable[np.ndarray], batch: int = 32) -> BaselineFaces:
    """Aligned faces, uint8 RGB [112,112,3] each -> what is compared, by the model's own backbone, on the CPU."""
    model.need_eval()
    parts: list[BaselineFaces] = []
    source = iter(images)
    while group := list(islice(source, batch)):
        faces = as_input(group, model.device)
        stage3 = model.net.backbone.forward_stage3(model.preprocess(faces))
        stage4 = model.net.backbone.forward_stage4(stage3)
        upper = faces.clone()
        upper[:, :, upper.shape[2] // 2 :] = GREY
        maps = dict(zip(SIDES, (stage4, stage3), strict=True))
        parts.append(
            BaselineFaces(
                model.net.backbone.forward_head(stage4)[0].cpu(),
                model.net.backbone(model.preprocess(upper))[0].cpu(),
                {side: _patches(values, side).cpu() for side, values in maps.items()},
            )
        )
    return BaselineFaces(
        torch.cat([part.embedding for part in parts]),
        torch.cat([part.upper for part in parts]),
        {side: torch.cat([part.patches[side] for part in parts]) for side in SIDES},
    )


def upper_half(face: np.ndarray) -> np.ndarray:
    """uint8 [112,112,3] -> the same with its lower half painted grey, for templates of many images."""
    painted = face.copy()
    painted[len(face) // 2 :] = round(255 * GREY)
    return painted


def _patches(maps: Tensor, side: int) -> Tensor:
    """[N,C,h,w] -> [N,side*side,C], unit length each."""
    return F.normalize(F.adaptive_avg_pool2d(maps.float(), side).flatten(2).transpose(1, 2), dim=2)


@torch.inference_mode()
def emd_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Patches of N pairs [N,S,C] twice -> [N]: the mean similarity of what the cheapest transport brings together, in [-1,1].

    One minus it is the earth mover's distance, at a cost of one minus the cosine of two patches.
    """
    similarity = a @ b.transpose(1, 2)
    weight_a, weight_b = _weights(a, b), _weights(b, a)
    kernel = ((similarity - 1) / SMOOTHING).exp()
    right = torch.ones_like(weight_b)
    left = weight_a
    for _ in range(STEPS):
        left = weight_a / (kernel @ right[..., None])[..., 0].clamp_min(1e-30)
        right = weight_b / (kernel.transpose(1, 2) @ left[..., None])[..., 0].clamp_min(1e-30)
    return (left[..., None] * kernel * right[:, None] * similarity).sum((1, 2))


def _weights(a: Tensor, b: Tensor) -> Tensor:
    """Share of each patch of a, [N,S]: how much it has in common with the mean patch of b; a little for each, none below 0."""
    common = (a * b.mean(1, keepdim=True)).sum(2).clamp_min(0) + 1e-3
    return common / common.sum(1, keepdim=True)


@torch.inference_mode()
def search_scores(probes: BaselineFaces, gallery: BaselineFaces) -> dict[str, np.ndarray]:
    """Scores of every probe with every gallery face by each baseline, [P,G]; of a re-ranking only their order means something."""
    cosine = probes.embedding @ gallery.embedding.T
    scores = {UPPER_HALF: (probes.upper @ gallery.upper.T).numpy()}
    first = min(FIRST, cosine.shape[1])
    best, rows = cosine.topk(first, dim=1)
    for side in SIDES:
        ranked = cosine.clone()
        for i in range(len(cosine)):
            patches = gallery.patches[side][rows[i]]
            emd = emd_similarity(probes.patches[side][i].expand_as(patches), patches)
            # 3 lifts them above all that are not looked at again
            ranked[i, rows[i]] = 3 + WEIGHT * emd + (1 - WEIGHT) * best[i]
        scores[f"EMD {side}x{side}"] = ranked.numpy()
    return scores


def pair_scores(a: BaselineFaces, b: BaselineFaces) -> dict[str, np.ndarray]:
    """Row by row -> [N], of the baseline that scores pairs."""
    return {UPPER_HALF: (a.upper * b.upper).sum(1).numpy()}
