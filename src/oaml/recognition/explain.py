"""Why a pair of faces scored as it did: how much of each shows, what each part added to the score, which parts were matched.

Two of the scores can be taken apart exactly. The joint embedding compares the same 7x7 cells of both faces, and its cosine is
a sum over them (`oaml.joint.Joint.explain`). QAConv matches every cell of one face with the most similar cell of the other
(`oaml.qaconv.QAConv.explain`), on 7x7 or 14x14 cells. A cell stands for its place in the image, though a network sees
something of the surroundings too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from oaml.model import Model
    from oaml.qaconv import CellMatches

LINES = 12
"""Matches that a picture shows; more could not be followed by eye."""


class Match(NamedTuple):
    """One part of a face and the part of the other face that is most similar to it."""

    cell_a: tuple[int, int]
    """Row and column on the h x w cells of QAConv."""
    cell_b: tuple[int, int]
    weight: float
    """How much it counts in QAConv's score; see `CellMatches`."""
    strength: float
    """Weight times correlation: what it adds to that score."""


@dataclass(frozen=True)
class Explanation:
    """What the scores of one pair are made of. Visibility is 1 where the face shows."""

    visible_a: np.ndarray
    """float64 [h,w] in [0,1] on the finest cells that the network has."""
    visible_b: np.ndarray
    both: np.ndarray
    """float64 [7,7] in [0,1]: how much of each cell of the joint embedding both faces show."""
    share: np.ndarray
    """float64 [7,7]: what each of these cells adds to the joint cosine; the sum is the cosine."""
    cosine: float
    """Joint cosine in [-1,1]: 1 for the same image twice, about 0 for faces that have nothing to do with each other."""
    slope: float
    """How much the fused score gains for each 1 of joint cosine, with as much showing as does."""
    grid: tuple[int, int]
    """Cells h x w of QAConv."""
    matches: list[Match]
    """All matches, the one that adds most first. Those of both directions are put together where they agree."""

    def needed(self, score: float, threshold: float) -> float | None:
        """Joint cosine with which the pair would just have reached a threshold, all else as it is.

        Args:
            score: the fused score of the pair.

        Returns:
            A cosine, possibly above 1 (nothing would have done) or below -1; None where the cosine doesn't count.
        """
        return self.cosine + (threshold - score) / self.slope if self.slope > 0 else None


def explain_pair(model: Model, image_a: np.ndarray, image_b: np.ndarray) -> Explanation:
    """Take the scores of two aligned faces apart.

    Args:
        model: in eval mode, on any device.
        image_a, image_b: uint8 RGB [112,112,3].
    """
    import torch

    from oaml.inference import as_input

    templates, fine = [], []
    with torch.inference_mode():
        for image in (image_a, image_b):
            # one pass a face, as the scores are computed: a batch of two could differ in the last digits
            x = as_input([image], model.device)
            templates.append(model.extract(x))
            seen = model(x).fine
            if model.config.flip:
                seen = (seen + model(x.flip(3)).fine.flip(3)) / 2
            fine.append(seen[0, 0].double().cpu().numpy())
        a, b = templates
        shares = model.joint.explain(
            a.cell_embeddings[0], b.cell_embeddings[0], a.visibility[0], b.visibility[0]
        )
        matched = model.matcher.explain(
            a.local[0], b.local[0], a.visibility[0], b.visibility[0], prepared=True
        )
    return Explanation(
        visible_a=fine[0],
        visible_b=fine[1],
        both=shares.weight.double().cpu().numpy(),
        share=shares.share.double().cpu().numpy(),
        cosine=shares.cosine,
        slope=_slope(model, 1 - float(shares.weight.mean())),
        grid=model.net.grid,
        matches=_together(matched, model.net.grid),
    )


def _slope(model: Model, unseen: float) -> float:
    """What the joint logit, and with it the fused score, gains for each 1 of cosine."""
    import torch

    with torch.inference_mode():
        device = model.joint.log_scale.device
        cosine, share = torch.tensor([0.0, 1.0], device=device), torch.full((2,), unseen, device=device)
        low, high = model.joint.logit(cosine, share).tolist()
    return high - low


def _together(matched: CellMatches, grid: tuple[int, int]) -> list[Match]:
    """Matches of both directions as one list, strongest first; equal ones in the order of the cells."""
    import torch

    size = grid[0] * grid[1]
    of_a, of_b = matched.partner_probe.flatten().tolist(), matched.partner_gallery.flatten().tolist()
    pairs = [(cell, of_a[cell]) for cell in range(size)] + [(of_b[cell], cell) for cell in range(size)]
    weights = torch.cat([matched.weight_probe.flatten(), matched.weight_gallery.flatten()])
    similarities = torch.cat([matched.similarity_probe.flatten(), matched.similarity_gallery.flatten()])
    summed: dict[tuple[int, int], tuple[float, float]] = {}
    for pair, weight, similarity in zip(pairs, weights.tolist(), similarities.tolist(), strict=True):
        before = summed.get(pair, (0.0, 0.0))
        summed[pair] = before[0] + weight, before[1] + weight * similarity
    columns = grid[1]
    together = [
        Match(divmod(a, columns), divmod(b, columns), weight, strength)
        for (a, b), (weight, strength) in sorted(summed.items())
    ]
    return sorted(together, key=lambda match: -match.strength)


def strongest(explanation: Explanation, count: int = LINES) -> list[Match]:
    """The matches that add most, best first; none that speaks against, and none of next to nothing where little shows."""
    # both faces have h*w matches, whose weights sum to 1 where enough shows
    least = 0.05 / (2 * explanation.grid[0] * explanation.grid[1])
    return [match for match in explanation.matches[:count] if match.strength > least]
