"""The first stage of a search: which one vector of a face finds covered people again, against the fused score of everybody.

`python studies/searching.py MODEL --data ../shared/data`

The report people of LFW, one bare gallery face each, against their other images bare and under covers of style b. Of the person
whom the fused score names first (and of the true one), the share that is among the first 10, 20 and 50 by a single vector.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from oaml.datasets.people import PeopleFolder, split_name
from oaml.evaluation.heldout import BARE, HeldOut
from oaml.gallery.rows import column_names, pattern_vectors, probe_vectors
from oaml.joint import cell_visibility
from oaml.main import keep_freed_memory
from oaml.model import Model
from oaml.occluders import load_templates

KINDS = ["niqab", "mask", "sunglasses"]
FIRST = (10, 20, 50)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    keep_freed_memory()
    model = Model.load(given.model)
    people = PeopleFolder(given.data / "lfw", lambda name: split_name(name) == "report")
    held = HeldOut(model, people, KINDS, 0, "b", load_templates(given.data / "mask_templates"))
    bare = held.templates(model, BARE)
    gallery = bare[held.gallery]
    person = held.person[held.probes, None] == held.person[held.gallery]
    columns = dict(zip(column_names(), pattern_vectors(gallery).values(), strict=True))

    print(
        f"{len(held.probes)} probes of each kind, {len(gallery)} people; share within the first {FIRST}\n"
        "| probes | vector | whom the fused score names first | the true person |\n| --- | --- | --- | --- |"
    )
    for kind in (BARE, *KINDS):
        probes = bare[held.probes] if kind == BARE else held.templates(model, kind)
        fused = model.compare_all(probes, gallery)["fused"]
        chosen, shown = probe_vectors(probes)
        ways = {
            "plain embedding": probes.embedding @ gallery.embedding.T,
            "all cells of the joint embedding": F.normalize(probes.contributions.sum(1), dim=1)
            @ F.normalize(gallery.contributions.sum(1), dim=1).T,
            "what the probe shows against all cells": shown @ columns["vector_all"].T,
            "what the probe shows against the nearest pattern": torch.stack(
                [columns[name] @ vector for name, vector in zip(chosen, shown, strict=True)]
            ),
            "what both show (no single vector)": model.joint.match(
                probes.contributions, gallery.contributions, probes.visibility, gallery.visibility
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
