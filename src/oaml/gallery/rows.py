"""A face as a row of a gallery: its int8 template in one piece of bytes, and the vectors that find it.

The whole embedding of an occluded face is a poor query, since the occluder is part of it. So a row holds a unit vector for each of
a few patterns of visibility: the sum of the per-cell embeddings of that pattern. The vector of a probe is the sum of the cells that
it shows, and it is compared with the vectors of the pattern that is nearest to its own visibility.

Shapes: N faces, E embedding size, K patterns, R cells: 49, of a transformer 144.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.gallery.digests import DIGESTED, SIZE, digest
from oaml.gallery.folder import Entry
from oaml.recognition.quality import Quality
from oaml.template import Templates, pooled
from oaml.templates.quantised import QuantisedTemplates
from oaml.visibility import CELLS, GRID, TOKENS, cell_visibility

if TYPE_CHECKING:
    import pyarrow as pa


def _patterns() -> dict[str, Tensor]:
    eyes, upper = torch.zeros(GRID), torch.zeros(GRID)
    eyes[2:4, 1:6] = 1
    upper[:4] = 1
    upper[4:, [0, 6]] = 1
    shown = {"all": torch.ones(GRID), "upper": upper, "eyes": eyes, "around": 1 - eyes}
    return {name: cells.flatten() for name, cells in shown.items()}


PATTERNS = _patterns()
"""What shows of a face, [49] in [0,1] each: without an occluder, over a medical mask, in a niqab, around sunglasses."""


def _patterns_on(cells: int) -> Tensor:
    """The patterns on so many cells, [K,R]."""
    patterns = torch.stack(list(PATTERNS.values()))
    return patterns if cells == CELLS else F.interpolate(patterns.view(-1, 1, *GRID), TOKENS).flatten(1)


def column_names() -> list[str]:
    """The columns of vectors, one a pattern."""
    return [f"vector_{name}" for name in PATTERNS]


def pattern_vectors(faces: Templates) -> dict[str, Tensor]:
    """Name of a pattern -> [N,E], unit vectors of what the faces show of it."""
    weight = cell_visibility(faces.visibility)
    return {
        name: F.normalize(torch.einsum("nr,nre->ne", weight * pattern, faces.cell_embeddings), dim=1)
        for name, pattern in zip(PATTERNS, _patterns_on(weight.shape[1]), strict=True)
    }


def probe_vectors(faces: Templates) -> tuple[list[str], Tensor]:
    """The column of the pattern most like what each face shows, and [N,E], unit vectors of all that it shows."""
    weight = cell_visibility(faces.visibility)
    nearest = torch.cdist(weight, _patterns_on(weight.shape[1])).argmin(1)
    shown = F.normalize(torch.einsum("nr,nre->ne", weight, faces.cell_embeddings), dim=1)
    columns = column_names()
    return [columns[i] for i in nearest.tolist()], shown


@dataclass(frozen=True)
class Packing:
    """How the fields of a template follow each other in its bytes."""

    fields: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, numpy dtype and shape of each, of one face."""

    @staticmethod
    def of(faces: QuantisedTemplates) -> Packing:
        """That of templates of this size."""
        named = faces.stored().items()
        return Packing(tuple((name, x.numpy().dtype.str, tuple(x.shape[1:])) for name, x in named))

    @staticmethod
    def from_list(listed: list[Any]) -> Packing:
        """What `to_list` gave."""
        return Packing(tuple((name, kind, tuple(shape)) for name, kind, shape in listed))

    def to_list(self) -> list[Any]:
        """The same for JSON."""
        return [[name, kind, list(shape)] for name, kind, shape in self.fields]

    @property
    def size(self) -> int:
        """Bytes of a face."""
        return sum(np.dtype(kind).itemsize * prod(shape) for _, kind, shape in self.fields)

    def pack(self, faces: QuantisedTemplates) -> np.ndarray:
        """uint8 [N,size]."""
        stored = faces.stored()
        parts = [stored[name].cpu().contiguous().numpy() for name, _, _ in self.fields]
        return np.concatenate([np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in parts], 1)

    def unpack(self, packed: np.ndarray) -> QuantisedTemplates:
        """What `pack` gave, bit for bit."""
        stored: dict[str, Tensor] = {}
        start = 0
        for name, kind, shape in self.fields:
            end = start + np.dtype(kind).itemsize * prod(shape)
            # a copy, since one row counts as contiguous whatever its stride
            stored[name] = torch.from_numpy(
                packed[:, start:end].copy().view(kind).reshape(len(packed), *shape)
            )
            start = end
        return QuantisedTemplates.from_stored(stored)

    def unpack_column(self, column: pa.ChunkedArray) -> QuantisedTemplates:
        """The templates of a column of rows."""
        packed = np.frombuffer(b"".join(column.to_pylist()), np.uint8)
        return self.unpack(packed.reshape(len(column), self.size))

    def unpack_people(self, rows: pa.Table) -> tuple[list[str], Tensor, Templates]:
        """Rows of some people, all faces of each: their P names, int64 [N] whose each row is, and a pooled template each."""
        persons = rows["person"].to_pylist()
        number = {person: i for i, person in enumerate(dict.fromkeys(persons))}
        owner = torch.tensor([number[person] for person in persons])
        return list(number), owner, pooled(self.unpack_column(rows["template"]).dequantised(), owner)


def schema(packing: Packing) -> pa.Schema:
    """The columns of a gallery."""
    import pyarrow as pa

    # int8 of a network's output doesn't compress, and what is written as it is can be looked for after a deletion
    plain = {"lance-encoding:compression": "none"}
    size = next(shape[0] for name, _, shape in packing.fields if name == "embedding")
    return pa.schema(
        [
            *(pa.field(name, pa.string(), False) for name in Entry._fields),
            *(pa.field(name, pa.list_(pa.float16(), size), False, plain) for name in column_names()),
            pa.field("template", pa.binary(packing.size), False, plain),
            pa.field("thumbnail", pa.binary(), True, plain),
            pa.field("quality", pa.float32(), True, plain),
            pa.field("reasons", pa.string(), True, plain),
            *(pa.field(name, pa.binary(SIZE), False) for name in DIGESTED.values()),
        ]
    )


def table(
    entries: Sequence[Entry],
    faces: QuantisedTemplates,
    thumbnails: Sequence[bytes | None],
    packing: Packing,
    qualities: Sequence[Quality | None] = (),
) -> pa.Table:
    """Rows of faces; the vectors follow from the int8 templates, so that an import gives the very same."""
    import pyarrow as pa

    vectors = pattern_vectors(faces.dequantised())
    templates = [face.tobytes() for face in packing.pack(faces)]
    checked = [entry.person for entry in entries], templates, thumbnails
    known = qualities or [None] * len(entries)
    return pa.table(
        [
            *(pa.array(values, pa.string()) for values in zip(*entries, strict=True)),
            *(
                pa.FixedSizeListArray.from_arrays(pa.array(x.half().numpy().ravel()), x.shape[1])
                for x in vectors.values()
            ),
            pa.array(templates, pa.binary(packing.size)),
            pa.array(thumbnails, pa.binary()),
            pa.array([None if q is None else q.value for q in known], pa.float32()),
            pa.array([None if q is None else ", ".join(q.reasons) for q in known], pa.string()),
            *(pa.array(map(digest, values), pa.binary(SIZE)) for values in checked),
        ],
        schema=schema(packing),
    )
