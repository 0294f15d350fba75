"""The first step of a search: which one vector of a face finds occluded people again, against the fused score of everybody.

`python studies/searching.py MODEL --data ../shared/data`

The report people of LFW, one unoccluded gallery face each, against their other images, as they are and under occluders. Of the
person whom the fused score names first (and of the true one), the share that is among the first 10, 20 and 50 by a single vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from report_people import asked_for

from oaml.adaptation.held_out import UNOCCLUDED
from oaml.gallery.rows import column_names, pattern_vectors, probe_vectors
from oaml.visibility import cell_visibility

KINDS = ["niqab", "mask", "sunglasses"]
FIRST = (10, 20, 50)


@torch.inference_mode()
def main() -> None:
    model, held = asked_for(__doc__, KINDS)
    unoccluded = held.templates(model, UNOCCLUDED)
    gallery = unoccluded[held.gallery]
    person = held.person[held.probes, None] == held.person[held.gallery]
    columns = dict(zip(column_names(), pattern_vectors(gallery).values(), strict=True))

    print(
        f"{len(held.probes)} probes of each kind, {len(gallery)} people; share within the first {FIRST}\n"
        "| probes | vector | whom the fused score names first | the true person |\n| --- | --- | --- | --- |"
    )
    for kind in (UNOCCLUDED, *KINDS):
        probes = unoccluded[held.probes] if kind == UNOCCLUDED else held.templates(model, kind)
        fused = model.compare_all(probes, gallery)["fused"]
        chosen, shown = probe_vectors(probes)
        ways = {
            "plain embedding": probes.embedding @ gallery.embedding.T,
            "all cells of the joint embedding": F.normalize(probes.cell_embeddings.sum(1), dim=1)
            @ F.normalize(gallery.cell_embeddings.sum(1), dim=1).T,
            "what the probe shows against all cells": shown @ columns["vector_all"].T,
            "what the probe shows against the nearest pattern": torch.stack(
                [columns[name] @ vector for name, vector in zip(chosen, shown, strict=True)]
            ),
            "what both show (no single vector)": model.joint.match(
                probes.cell_embeddings, gallery.cell_embeddings, probes.visibility, gallery.visibility
            ).cosine,
        }
        named = F.one_hot(fused.argmax(1), len(gallery)).bool()
        for way, scores in ways.items():
            print(f"| {kind} | {way} | {_within(scores, named)} | {_within(scores, person)} |", flush=True)
        used = {name.removeprefix("vector_"): chosen.count(name) for name in dict.fromkeys(chosen)}
        print(f"{kind}: {cell_visibility(probes.visibility).mean():.2f} visible, patterns {used}")


def _within(scores: torch.Tensor, wanted: torch.Tensor) -> str:
    rank = (scores > scores[wanted][:, None]).sum(1)
    return " / ".join(f"{(rank < first).float().mean():.3f}" for first in FIRST)


if __name__ == "__main__":
    main()
