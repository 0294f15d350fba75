"""What comparing faces costs, and that doing less of it loses nothing: pairs a second and TAR on covered people.

`python studies/speed.py MODEL --data ../shared/data`

The report people of LFW, one bare gallery face each, against their other images bare and covered (style b), as in `occlusion.py`.
Baseline: the plain published formulation on the backbone's own channels: einsum to [P,G,R,S], two maxima, in one piece for each
64 by 64 faces. Every row is timed in the same process, each after the other, and judged by the TAR of its own scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from oaml.datasets.people import PeopleFolder, split_name
from oaml.evaluation.heldout import BARE, HeldOut
from oaml.evaluation.metrics import tar_at_far
from oaml.main import keep_freed_memory
from oaml.model import Model
from oaml.occluders import load_templates
from oaml.quantised import QuantisedTemplates
from oaml.template import Templates

KINDS = ["niqab", "mask", "sunglasses", "patch"]
BLOCK = 64


def plain(probes: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Maps [P,C,cells], [G,C,cells] -> mean of all maxima [P,G]: the least that any scoring of them has to do."""
    similarity = torch.einsum("pcs,gcr->pgrs", probes, gallery)
    return (similarity.amax(2).mean(2) + similarity.amax(3).mean(2)) / 2


def blocks(
    probes: int, gallery: int, score: Callable[[slice, slice], torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """Scores [P,G] in blocks, and seconds."""
    found = torch.empty(probes, gallery)
    start = time.perf_counter()
    for i in range(0, probes, BLOCK):
        for j in range(0, gallery, 8 * BLOCK):
            p, g = slice(i, i + BLOCK), slice(j, j + 8 * BLOCK)
            found[p, g] = score(p, g)
    return found, time.perf_counter() - start


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
    faces = HeldOut(model, people, KINDS, 0, "b", load_templates(given.data / "mask_templates"))
    bare = faces.templates(model, BARE)
    gallery = bare[faces.gallery]
    probes = Templates.join([bare[faces.probes], *(faces.templates(model, kind) for kind in KINDS)])
    same = (faces.person[faces.probes, None] == faces.person[faces.gallery]).repeat(1 + len(KINDS), 1).numpy()

    channels = model.net.channels
    wide = [
        torch.nn.functional.normalize(torch.randn(len(x), channels, 49), dim=1) for x in (probes, gallery)
    ]
    some = slice(0, 4 * BLOCK)  # of the slow one, enough to time it
    _, seconds = blocks(4 * BLOCK, len(gallery), lambda p, g: torch.cat(
        [plain(wide[0][some][p], part) for part in wide[1][g].split(BLOCK)], 1))  # fmt: skip
    baseline = 4 * BLOCK * len(gallery) / seconds
    print(
        f"{len(probes):,} probes x {len(gallery):,} gallery faces; "
        f"plain einsum, {channels} channels: {baseline:,.0f} pairs a second"
    )
    print(
        "| scores | pairs a second | times the plain formulation | TAR at FAR 1e-2 | at 1e-3 |\n| --- | --- | --- | --- | --- |"
    )

    def row(name: str, score: Callable[[slice, slice], torch.Tensor]) -> None:
        found, seconds = blocks(len(probes), len(gallery), score)
        rate = found.numel() / seconds
        tars = [
            tar_at_far(found.numpy().ravel().astype(np.float64), same.ravel(), far).tar
            for far in (1e-2, 1e-3)
        ]
        print(f"| {name} | {rate:,.0f} | {rate / baseline:.1f} | {tars[0]:.4f} | {tars[1]:.4f} |", flush=True)

    row("fused, everything compared", lambda p, g: model.compare_all(probes[p], gallery[g])["fused"])
    row("joint embedding alone", lambda p, g: model.joint.logit(*model.joint.match(
        probes[p].contributions, gallery[g].contributions, probes[p].visibility, gallery[g].visibility)[:2]))  # fmt: skip
    kept = [QuantisedTemplates.of(x) for x in (probes, gallery)]
    small = [x.dequantised() for x in kept]
    row(f"fused, everything compared, int8 templates of {kept[0].bytes_per_face:,} bytes a face", lambda p, g: (
        model.compare_all(small[0][p], small[1][g])["fused"]))  # fmt: skip
    for far, threshold in model.config.thresholds.items():
        row(
            f"fused_above the threshold of {far}",
            lambda p, g, t=threshold: model.fused_above(probes[p], gallery[g], t),
        )


if __name__ == "__main__":
    main()
