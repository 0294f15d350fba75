"""People who are probably enrolled twice: everybody compared with everybody, by one pooled template each.

Shapes: P people.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from oaml.gallery.answers import Duplicate
from oaml.gallery.rows import Packing
from oaml.gallery.store import Store, quoted
from oaml.inference import gathered
from oaml.model import Model, pooled_share
from oaml.recognition.decision import LEAST_SHARED
from oaml.support.progress import progress
from oaml.template import Templates
from oaml.visibility import shared_visibility

READ = 200
"""People whose faces are read at a time."""
BLOCK = 1000
"""People compared with as many others at a time: 50 MB of templates on either side for embeddings of 128 numbers."""


@torch.inference_mode()
def duplicates(
    store: Store, packing: Packing, model: Model, threshold: float, label: str | None
) -> tuple[int, list[Duplicate]]:
    """How many people there are, and all pairs of them who reach a threshold and show enough in common, the most similar first.

    Templates that take more than a gigabyte lie in a temporary file meanwhile, 51 kB a person for embeddings of 128 numbers.

    Args:
        store: of a gallery.
        packing: of its templates.
        model: that made them, on any device.
        threshold: of the fused score.
        label: of the progress bar on stderr; None shows none.

    Raises:
        OamlError: no room for the file, or the gallery can't be read.
    """
    wanted = sorted(set(store.rows(["person"])["person"].to_pylist()))
    if not wanted:
        return 0, []
    names: list[str] = []
    images: list[int] = []

    def parts() -> Iterator[Templates]:
        for start in range(0, len(wanted), READ):
            listed = ", ".join(map(quoted, wanted[start : start + READ]))
            rows = store.rows(["person", "template"], f"person in ({listed})")
            if len(rows):  # else they have all been deleted meanwhile
                read, owner, people = packing.unpack_people(rows)
                names.extend(read)
                images.extend(owner.bincount().tolist())
                yield people

    people = gathered(parts(), len(wanted))
    lost = (model.config.pooling * pooled_share(torch.tensor(images))).float().to(model.device)
    pairs: list[Duplicate] = []
    with progress(label, len(names) * (len(names) - 1) // 2) as advance:
        for start_a in range(0, len(names), BLOCK):
            a = people[start_a : start_a + BLOCK].to(model.device)
            for start_b in range(start_a, len(names), BLOCK):
                same = start_a == start_b
                b = a if same else people[start_b : start_b + BLOCK].to(model.device)
                fused = model.fused_above(a, b, threshold)
                fused -= lost[start_a : start_a + BLOCK, None] + lost[start_b : start_b + BLOCK]
                reached = (fused >= threshold).triu(1) if same else fused >= threshold
                i, j = reached.nonzero(as_tuple=True)
                shared = shared_visibility(a.visibility[i], b.visibility[j])
                rows = zip(*(x.tolist() for x in (i, j, fused[i, j], shared)), strict=True)
                pairs += [
                    Duplicate(names[start_a + p], names[start_b + q], score, both)
                    for p, q, score, both in rows
                    if both >= LEAST_SHARED
                ]
                advance(len(a) * (len(a) - 1) // 2 if same else len(a) * len(b))
    return len(names), sorted(pairs, key=lambda pair: -pair.score)
