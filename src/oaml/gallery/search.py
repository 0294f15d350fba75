"""The two stages of a search: faces near a probe by one vector, then their people by the fused score of their templates."""

from __future__ import annotations

import torch

from oaml.decision import LEAST_SHARED
from oaml.gallery.answers import Candidate
from oaml.gallery.rows import Packing, probe_vectors
from oaml.gallery.store import Store, quoted
from oaml.model import Model
from oaml.template import Templates, pooled
from oaml.visibility import shared_visibility


@torch.inference_mode()
def candidates(store: Store, packing: Packing, model: Model, probe: Templates, count: int) -> list[Candidate]:
    """The people most like one face, best first; those with too little in common to decide come last.

    Args:
        store: of a gallery.
        packing: of its templates.
        model: that made them, on any device.
        probe: one template, on the CPU.
        count: faces that the first stage hands over, several of which may be one person's. Of their people all faces are compared,
            as one pooled template.
    """
    columns, vectors = probe_vectors(probe)
    near = store.nearest(columns[0], vectors[0].numpy(), count, ["person", "image"])
    alike: dict[str, str] = {}
    for person, image in zip(near["person"].to_pylist(), near["image"].to_pylist(), strict=True):
        alike.setdefault(person, image)
    if not alike:
        return []
    found = store.rows(["person", "template"], f"person in ({', '.join(map(quoted, alike))})")
    if not len(found):  # all have been deleted or renamed meanwhile
        return candidates(store, packing, model, probe, count)
    names = list(dict.fromkeys(found["person"].to_pylist()))
    number = {name: i for i, name in enumerate(names)}
    owner = torch.tensor([number[name] for name in found["person"].to_pylist()])
    people = pooled(packing.unpack_column(found["template"]).dequantised(), owner)
    probe, people = probe.to(model.device), people.to(model.device)
    scores = model.compare_all(probe, people)
    shown = shared_visibility(people.visibility, probe.visibility)
    columns_of = scores["fused"][0], scores["cosine"][0], shown, owner.bincount()
    ranked = [
        Candidate(person, *values, image=alike[person])
        for person, *values in zip(names, *(x.tolist() for x in columns_of), strict=True)
    ]
    return sorted(ranked, key=lambda c: (c.visible_both < LEAST_SHARED, -c.score))
