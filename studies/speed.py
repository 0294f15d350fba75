"""What comparing faces costs, and that doing less of it loses nothing: pairs a second and TAR on occluded people.

`python studies/speed.py MODEL --data ../shared/data`

The report people of LFW, one unoccluded gallery face each, against their other images, as they are and under occluders of
style b, as in `occlusion.py`.
Baseline: the plain published formulation on the backbone's own channels: einsum to [P,G,R,S], two maxima, in one piece for each
64 by 64 faces. All ways take turns in one process and the best of each is printed, judged by the TAR of its own scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from report_people import asked_for

from oaml.adaptation.held_out import UNOCCLUDED
from oaml.model import Model
from oaml.support.metrics import tar_at_far
from oaml.template import Templates
from oaml.templates.quantised import QuantisedTemplates

KINDS = ["niqab", "mask", "sunglasses", "patch"]
PIECE = 64  # faces a side of the plain formulation
BLOCK = 256  # probes at a time of all others
ROUNDS = 3

Score = Callable[[Templates, Templates], torch.Tensor]


def plain(probes: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Maps [P,C,cells], [G,C,cells] -> mean of all maxima [P,G]: the least that any scoring of them has to do."""
    similarity = torch.einsum("pcs,gcr->pgrs", probes, gallery)
    return (similarity.amax(2).mean(2) + similarity.amax(3).mean(2)) / 2


def timed(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, np.ndarray]:
    """Scores, and seconds by the clock and of the processor for each."""
    before = np.array([time.perf_counter(), time.process_time()])
    found = call()
    return found, (np.array([time.perf_counter(), time.process_time()]) - before) / found.numel()


@torch.inference_mode()
def table(model: Model, probes: Templates, gallery: Templates, same: np.ndarray) -> None:
    """Print the rate and the TAR of every way to score, and how many pairs it decides otherwise.

    Args:
        same: bool [P,G].
    """

    def einsum(channels: int) -> Callable[[], torch.Tensor]:
        p, g = (F.normalize(torch.randn(n, channels, 49), dim=1) for n in (PIECE, 8 * PIECE))
        return lambda: torch.cat([plain(p, piece) for piece in g.split(PIECE)], 1)

    def blocks(score: Score, p: Templates, g: Templates) -> Callable[[], torch.Tensor]:
        return lambda: torch.cat([score(p[i : i + BLOCK], g) for i in range(0, len(p), BLOCK)])

    def joint(p: Templates, g: Templates) -> torch.Tensor:
        found = model.joint.match(p.cell_embeddings, g.cell_embeddings, p.visibility, g.visibility)
        return model.joint.logit(found.cosine, found.unseen)

    def fused(p: Templates, g: Templates) -> torch.Tensor:
        return model.compare_all(p, g)["fused"]

    kept = [QuantisedTemplates.of(x) for x in (probes, gallery)]
    small_probes, small_gallery = (x.dequantised() for x in kept)
    plains = [f"plain einsum, {count} channels" for count in (model.net.channels, probes.local.shape[1])]
    ways = {
        plains[0]: einsum(model.net.channels),
        plains[1]: einsum(probes.local.shape[1]),
        "fused, everything compared": blocks(fused, probes, gallery),
        f"the same from int8 templates, {kept[0].bytes_per_face:,} bytes a face": blocks(
            fused, small_probes, small_gallery
        ),
        "joint embedding alone": blocks(joint, probes, gallery),
    }
    for far, threshold in model.config.thresholds.items():
        ways[f"`fused_above` the threshold of {far}"] = blocks(
            lambda p, g, t=threshold: model.fused_above(p, g, t), probes, gallery
        )
    found: dict[str, torch.Tensor] = {}
    seconds = {name: np.full(2, np.inf) for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            found[name], taken = timed(way)
            seconds[name] = np.minimum(seconds[name], taken)

    everything = found["fused, everything compared"]
    print(f"{len(probes):,} probes x {len(gallery):,} gallery faces, {torch.get_num_threads()} threads")
    print(
        "| scores | pairs a second | times the first row | by processor time | TAR at FAR 1e-2 | at 1e-3 | decided otherwise |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, scores in found.items():
        times = seconds[plains[0]] / seconds[name]
        cells = [f"{1 / seconds[name][0]:,.0f}", *(f"{x:.1f}" for x in times)]
        if name not in plains:
            flat = scores.numpy().ravel().astype(np.float64)
            cells += [f"{tar_at_far(flat, same.ravel(), far).tar:.4f}" for far in (1e-2, 1e-3)]
        threshold = model.config.thresholds.get(name.split()[-1])
        if threshold is not None:
            cells.append(str(int(((scores >= threshold) != (everything >= threshold)).sum())))
        print(f"| {name} | {' | '.join(cells + [''] * (6 - len(cells)))} |", flush=True)


@torch.inference_mode()
def main() -> None:
    model, faces = asked_for(__doc__, KINDS)
    unoccluded = faces.templates(model, UNOCCLUDED)
    gallery = unoccluded[faces.gallery]
    probes = Templates.join([unoccluded[faces.probes], *(faces.templates(model, kind) for kind in KINDS)])
    same = (faces.person[faces.probes, None] == faces.person[faces.gallery]).repeat(1 + len(KINDS), 1)
    table(model, probes, gallery, same.numpy())


if __name__ == "__main__":
    main()
