"""A search in two steps: the faces near a probe by one vector, then their people by the fused score of their templates."""

from __future__ import annotations

import torch

from oaml.gallery.answers import Candidate
from oaml.gallery.rows import Packing, probe_vectors
from oaml.gallery.store import Store, quoted
from oaml.model import Model, pooled_share
from oaml.recognition.decision import LEAST_SHARED
from oaml.template import Templates
from oaml.visibility import shared_visibility


@torch.inference_mode()
def candidates(store: Store, packing: Packing, model: Model, probe: Templates, count: int) -> list[Candidate]:
    """The people most similar to one face, best first; those with too little in common to decide come last.

    Args:
        store: of a gallery.
        packing: of its templates.
        model: that made them, on any device.
        probe: one template, on the CPU.
        count: faces that the first step hands over, several of which may be one person's. Of their people all faces are compared,
            as one pooled template.
    """
    columns, vectors = probe_vectors(probe)
    near = store.nearest(columns[0], vectors[0].numpy(), count, ["person", "image"])
    nearest_image: dict[str, str] = {}
    for person, image in zip(near["person"].to_pylist(), near["image"].to_pylist(), strict=True):
        nearest_image.setdefault(person, image)
    if not nearest_image:
        return []
    rows = store.rows(["person", "template"], f"person in ({', '.join(map(quoted, nearest_image))})")
    if not len(rows):  # all have been deleted or renamed meanwhile
        return candidates(store, packing, model, probe, count)
    names, owner, people = packing.unpack_people(rows)
    probe, people = probe.to(model.device), people.to(model.device)
    scores = model.compare_all(probe, people)
    shown = shared_visibility(people.visibility, probe.visibility)
    images = owner.bincount()
    fused = scores["fused"][0].cpu() - model.config.pooling * pooled_share(images)
    columns_of = fused, scores["cosine"][0], shown, images
    ranked = [
        Candidate(person, *values, image=nearest_image[person])
        for person, *values in zip(names, *(x.tolist() for x in columns_of), strict=True)
    ]
    return sorted(ranked, key=lambda c: (c.visible_both < LEAST_SHARED, -c.score))
