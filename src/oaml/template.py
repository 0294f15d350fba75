"""What is kept of a face, and the three roles that work with it: extractor, pairwise matcher, re-ranker.

The joint embedding of two faces is their embedding masked by visibility: the sum of their per-cell embeddings over the cells that
both show (`oaml.joint`).

Shapes: N faces, P probes, G gallery faces; E embedding size; 49 cells of per-cell embeddings; C channels on h x w cells of QAConv.
Visibility is 1 where the face shows. Scores: higher is more similar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Scores = dict[str, "Tensor"]
"""Name of a score -> its values."""
TITLES = {
    "cosine": "cosine",
    "qaconv": "QAConv",
    "qaconv_visibility": "QAConv + visibility",
    "joint": "joint embedding",
    "fused": "fused",
}
"""All scores in the order of tables, with their names for people."""
COLUMNS = tuple(TITLES)
LEAST_SHARED = 0.05
"""Share of the face that both must show for a decision; a twentieth is about half an eye region, 2.5 of 49 cells.

Below it a score says little more than that little shows; thresholds are fitted on pairs down to it.
"""


@dataclass(frozen=True)
class Templates:
    """What a network says about N faces; float32, on any device. Large fields may be memory-mapped files."""

    embedding: Tensor
    """[N,E], unit length."""
    norm: Tensor
    """[N], length of the embedding before normalisation."""
    visibility: Tensor
    """[N,1,h,w] in [0,1], 1 where the face shows."""
    local: Tensor
    """[N,C,h,w], unit length in every cell: what QAConv compares."""
    cell_embeddings: Tensor
    """[N,49,E]: what each cell adds to the embedding, or to the joint embedding of a pair."""

    def __len__(self) -> int:
        return len(self.embedding)

    def __getitem__(self, rows: slice | Tensor) -> Templates:
        """Some of the faces, in the order of `rows`."""
        return self._each(lambda x: x[rows])

    def to(self, device: torch.device | str) -> Templates:
        """The same on another device."""
        return self._each(lambda x: x.to(device))

    def visible(self) -> Tensor:
        """Mean visibility of each face, float64 [N] in [0,1]."""
        return self.visibility.double().flatten(1).mean(1)

    def agreement(self) -> Tensor:
        """How far the per-cell embeddings of each face point the same way, [N] in [0,1]: of noise they cancel out."""
        lengths = self.cell_embeddings.norm(dim=2).sum(1)
        return self.cell_embeddings.sum(1).norm(dim=1) / lengths.clamp_min(1e-6)

    def with_mirrored(self, mirrored: Templates) -> Templates:
        """The mean of these faces and their mirror images, cell by cell: maps of the latter are mirrored back.

        The embedding is the sum of both raw embeddings, as is usual, so that per-cell embeddings still add up to it. What QAConv
        compares stays that of the face itself: the mean of two cells is similar to neither, and matched worse.
        """
        import torch.nn.functional as F

        raw = self.embedding * self.norm[:, None] + mirrored.embedding * mirrored.norm[:, None]
        count, cells, size = self.cell_embeddings.shape
        side = round(cells**0.5)
        back = mirrored.cell_embeddings.view(count, side, side, size).flip(2).reshape(count, cells, size)
        return Templates(
            embedding=F.normalize(raw, dim=1),
            norm=raw.norm(dim=1) / 2,
            visibility=(self.visibility + mirrored.visibility.flip(3)) / 2,
            local=self.local,
            cell_embeddings=(self.cell_embeddings + back) / 2,
        )

    @staticmethod
    def join(parts: Sequence[Templates]) -> Templates:
        """Several sets as one, in their order."""
        import torch

        return Templates(
            **{field.name: torch.cat([getattr(p, field.name) for p in parts]) for field in fields(Templates)}
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Templates:
        return Templates(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


def pooled(faces: Templates, owner: Tensor | None = None) -> Templates:
    """One template of several faces of one person, which shows every part of the face that one of them shows.

    It recognises better than the largest or the mean score of the faces one by one, most of all where faces are occluded
    (`studies/pooling.py`).

    Args:
        faces: one or more; their order doesn't matter.
        owner: int64 [N], the number of each face's person. All of 0..P-1 have a face. By default all faces are of one person.

    Returns:
        P templates. Per-cell embeddings: the mean over the faces, each weighted by how much of the cell it shows. Embedding: the
        mean of the raw embeddings, each weighted by the share of the face that shows. Visibility: of every cell, the most that a
        face shows of it; what QAConv compares in the cell is taken from that face alone, since a mean of two maps is similar to
        neither.

    Raises:
        ValueError: no faces.
    """
    import torch
    import torch.nn.functional as F

    from oaml.visibility import cell_visibility

    if not len(faces):
        raise ValueError("no faces to pool")
    if owner is None:
        owner = torch.zeros(len(faces), dtype=torch.long)
    owner = owner.to(faces.norm.device)
    people = int(owner.max()) + 1
    # of equals the first is taken: that must be the face that shows more, whatever the order they came in
    order = faces.norm.argsort(descending=True, stable=True)
    order = order[faces.visible()[order].argsort(descending=True, stable=True)]
    order = order[owner[order].argsort(stable=True)]
    faces, owner = faces[order], owner[order]
    if people == len(faces):
        return faces

    def added(values: Tensor) -> Tensor:
        """[N,...] -> [P,...], the sum over the faces of each."""
        return values.new_zeros(people, *values.shape[1:]).index_add(0, owner, values)

    def shares(values: Tensor) -> Tensor:
        """Each value's share of the sum over its person's faces; equal shares where that is 0, as no face shows the cell."""
        total = added(values)[owner]
        return torch.where(total > 0, values / total, 1 / added(torch.ones_like(values))[owner])

    shown = cell_visibility(faces.visibility)
    raw = added(faces.embedding * (faces.norm * shares(shown.mean(1)))[:, None])
    row = owner.view(-1, 1, 1, 1).expand_as(faces.visibility)
    most = torch.zeros_like(faces.visibility[:people]).scatter_reduce(0, row, faces.visibility, "amax")
    number = torch.arange(len(faces), device=owner.device).view(-1, 1, 1, 1)
    number = torch.where(faces.visibility == most[owner], number, len(faces))
    best = torch.full_like(number[:people], len(faces)).scatter_reduce(0, row, number, "amin")
    return Templates(
        embedding=F.normalize(raw, dim=1),
        norm=raw.norm(dim=1),
        visibility=most,
        local=faces.local.gather(0, best.expand(-1, *faces.local.shape[1:])),
        cell_embeddings=added(faces.cell_embeddings * shares(shown)[..., None]),
    )


class Extractor(Protocol):
    """Faces to templates; `oaml.model.Model` is one."""

    def extract(self, images: Tensor) -> Templates:
        """RGB [N,3,112,112] in [0,1] -> N templates."""
        ...


class PairwiseMatcher(Protocol):
    """Templates to scores; `oaml.model.Model` is one."""

    def compare(self, a: Templates, b: Templates) -> Scores:
        """Row by row -> [N] each."""
        ...

    def compare_all(self, probes: Templates, gallery: Templates) -> Scores:
        """Every probe with every gallery face -> [P,G] each."""
        ...


class Reranker(Protocol):
    """Puts the best candidates of a cheaper search into a better order."""

    def rerank(self, probes: Templates, gallery: Templates, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """candidates int64 [P,k], rows of the gallery -> the same rows best first [P,k], and their scores [P,k]."""
        ...


@dataclass(frozen=True)
class ScoreReranker:
    """Orders candidates by one score of a pairwise matcher."""

    matcher: PairwiseMatcher
    score: str = "fused"

    def rerank(self, probes: Templates, gallery: Templates, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """See `Reranker`. Candidates of equal scores stay in their order."""
        import torch

        rows = []
        for i, chosen in enumerate(candidates):
            rows.append(self.matcher.compare_all(probes[i : i + 1], gallery[chosen])[self.score][0])
        scores = torch.stack(rows) if rows else probes.norm.new_zeros(candidates.shape)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return candidates.gather(1, order), scores
