"""What a pair loses for pooled images: pooled templates of strangers are more similar than those of single images.

Several images of a person in one template (`oaml.template.pooled`) take chance out of it, and what shows of a face grows. Both
raise scores, of strangers a little too. What is taken off grows with the images of either side as chance shrinks, with
1 - 1/images.
"""

from __future__ import annotations

import numpy as np
import torch

from oaml.adaptation.held_out import UNOCCLUDED, HeldOut
from oaml.model import Model, pooled_share
from oaml.support.metrics import enough_negatives
from oaml.template import Templates, pooled

IMAGES = 4
"""Images of a person that are pooled at most."""


@torch.inference_mode()
def fit_pooling(model: Model, faces: HeldOut, far: float) -> float:
    """The factor of `oaml.model.pooled_share` with which pooled templates keep a false-accept rate; of few pairs the one at hand.

    Everybody with two images or more is pooled, the first image unoccluded and the others in each of the conditions in turn, and
    compared with the images of all others in every condition. The factor is the least with which no more than the rate pass.

    Args:
        model: with corrections, lift and a threshold for the rate.
        faces: all images occluded.
        far: the rate.
    """
    threshold = model.config.thresholds[f"{far:g}"]
    seen = {kind: faces.templates(model, kind) for kind in (UNOCCLUDED, *faces.kinds)}
    person = faces.person.numpy()
    images = [np.flatnonzero(person == who)[:IMAGES] for who in np.unique(person)]
    several = [rows for rows in images if len(rows) > 1]
    owner = person[[rows[0] for rows in several]]
    # an image in several conditions is the same person, and says little more
    if not enough_negatives(int((person[:, None] != owner).sum()), far):
        return model.config.pooling
    share = pooled_share(torch.tensor([len(rows) for rows in several])).numpy()
    needed: list[np.ndarray] = []
    for others in seen.values():
        templates = Templates.join(
            [
                pooled(Templates.join([seen[UNOCCLUDED][rows[:1]], others[rows[1:]]]))
                for rows in map(torch.from_numpy, several)
            ]
        )
        for probes in seen.values():
            scores = (
                model.fused_above(probes.to(model.device), templates.to(model.device), threshold)
                .cpu()
                .numpy()
            )
            needed.append((np.maximum(scores - threshold, 0) / share)[person[:, None] != owner])
    return least_factor(np.concatenate(needed), far)


def least_factor(needed: np.ndarray, far: float) -> float:
    """The least factor with which at most a share `far` of pairs stays above the threshold.

    Args:
        needed: of each pair, the factor with which it falls to the threshold, [N].
    """
    return float(np.sort(needed)[::-1][int(far * len(needed) + 1e-9)])
