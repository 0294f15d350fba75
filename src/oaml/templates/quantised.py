"""Templates quantised to int8: what a gallery keeps of a face, in a quarter of the bytes of `oaml.template.Templates`.

Vectors are rounded to int8 with a scale each: one for the embedding and one for every cell, so that a faint cell keeps as many
digits as a strong one. Shapes as in `oaml.template`: N faces, E embedding size, C channels on h x w matched cells. For E = C = 128
on 7x7 cells a face takes 13,121 bytes (50,888 in float32); for E = 512, 32,321 bytes, most of it per-cell embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from oaml.template import Templates

STORED = {"cell_embeddings": "contributions", "cell_embeddings_scale": "contributions_scale"}
"""Field -> its name in files and galleries, where that is another."""


@dataclass(frozen=True)
class QuantisedTemplates:
    """N faces. A number is its int8 times the scale of its vector."""

    embedding: Tensor
    """int8 [N,E]."""
    embedding_scale: Tensor
    """float32 [N]; so chosen that the embedding has unit length."""
    norm: Tensor
    """float32 [N], length of the embedding before normalisation."""
    visibility: Tensor
    """uint8 [N,1,h,w], 255 where the face shows."""
    local: Tensor
    """int8 [N,C,h,w]."""
    local_scale: Tensor
    """float32 [N,h,w]; so chosen that every cell has unit length."""
    cell_embeddings: Tensor
    """int8 [N,49,E]."""
    cell_embeddings_scale: Tensor
    """float32 [N,49]."""

    def __len__(self) -> int:
        return len(self.embedding)

    def __getitem__(self, rows: slice | Tensor) -> QuantisedTemplates:
        """Some of the faces, in the order of `rows`."""
        return QuantisedTemplates(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @property
    def bytes_per_face(self) -> int:
        """What one face takes, in memory and in a file."""
        tensors = [getattr(self, field.name) for field in fields(self)]
        return sum(x.element_size() * x[:1].numel() for x in tensors) if len(self) else 0

    def stored(self) -> dict[str, Tensor]:
        """The fields by their names in files and galleries."""
        return {STORED.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_stored(tensors: dict[str, Tensor]) -> QuantisedTemplates:
        """The reverse of `stored`. Raises ValueError where a field is missing or unknown."""
        named = {field.name: STORED.get(field.name, field.name) for field in fields(QuantisedTemplates)}
        if set(named.values()) != tensors.keys():
            raise ValueError(f"fields {sorted(tensors)} instead of {sorted(named.values())}")
        return QuantisedTemplates(**{name: tensors[stored] for name, stored in named.items()})

    @staticmethod
    def join(parts: Sequence[QuantisedTemplates]) -> QuantisedTemplates:
        """Several sets as one, in their order."""
        return QuantisedTemplates(
            **{
                field.name: torch.cat([getattr(part, field.name) for part in parts])
                for field in fields(QuantisedTemplates)
            }
        )

    @staticmethod
    def of(templates: Templates) -> QuantisedTemplates:
        """Round templates of any device.

        A number moves by at most half a step, 1/254 of the largest one of its vector; visibility by 1/510. Embedding and local
        cells get scales that make them unit vectors again (zeros stay zeros). The rounding error of a per-cell embedding is carried
        over to a neighbouring cell, because only sums over cells are ever compared: a number there moves by up to half a step of
        either cell, and the sum over all cells by half a step of the last one.
        """
        embedding, _ = _rounded(templates.embedding, 1)
        local, _ = _rounded(templates.local, 1)
        cell_embeddings, cell_embeddings_scale = _rounded_in_sum(templates.cell_embeddings)
        return QuantisedTemplates(
            embedding=embedding,
            embedding_scale=_to_unit(embedding),
            norm=templates.norm.float(),
            visibility=(templates.visibility * 255).round().clamp(0, 255).byte(),
            local=local,
            local_scale=_to_unit(local),
            cell_embeddings=cell_embeddings,
            cell_embeddings_scale=cell_embeddings_scale,
        )

    def dequantised(self) -> Templates:
        """The same as float32, which matchers take."""
        return Templates(
            embedding=self.embedding * self.embedding_scale[:, None],
            norm=self.norm,
            visibility=self.visibility.float() / 255,
            local=self.local * self.local_scale[:, None],
            cell_embeddings=self.cell_embeddings * self.cell_embeddings_scale[..., None],
        )


def _rounded(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """int8 of the same shape, and float32 scales without `dim`; a vector of zeros has the scale 0."""
    scale = x.float().abs().amax(dim, keepdim=True) / 127
    steps = x / scale.clamp_min(torch.finfo(torch.float32).tiny)
    return steps.round().clamp(-127, 127).to(torch.int8), scale.squeeze(dim)


def _rounded_in_sum(cells: Tensor) -> tuple[Tensor, Tensor]:
    """[N,R,E] -> int8 of the same shape, scales [N,R]; the rounding error of each cell is added to the next one."""
    side = round(cells.shape[1] ** 0.5)
    rounded, scales = (
        torch.empty_like(cells, dtype=torch.int8),
        torch.empty_like(cells[..., 0], dtype=torch.float32),
    )
    lost = torch.zeros_like(cells[:, 0], dtype=torch.float32)
    for y in range(side):
        # back and forth: the next cell is a neighbour
        for x in range(side) if y % 2 == 0 else reversed(range(side)):
            cell = y * side + x
            exact = cells[:, cell] + lost
            rounded[:, cell], scales[:, cell] = _rounded(exact, 1)
            lost = exact - rounded[:, cell] * scales[:, cell, None]
    return rounded, scales


def _to_unit(x: Tensor) -> Tensor:
    """Scale of each vector along dimension 1 that makes it a unit vector; 0 for zeros."""
    length = x.float().norm(dim=1)
    return torch.where(length > 0, 1 / length.clamp_min(1), length)
