"""One probe against a gallery by the joint (visibility-masked) embedding, against the plain formulation."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from oaml.joint import Joint
from oaml.template import Templates
from oaml.visibility import CELLS, GRID, cell_visibility

GALLERY_FACES, EMBEDDING_SIZE = 1000, 128
ROUNDS = 100


def run() -> dict[str, object]:
    """Milliseconds of both, their ratio, and how far the cosines differ."""
    joint, probe, faces = Joint(), _templates(1, 1), _templates(GALLERY_FACES, 0)

    def plain() -> torch.Tensor:
        """Weights and sums written down as they are defined."""
        weight = cell_visibility(probe.visibility) * cell_visibility(faces.visibility)
        left = (weight[..., None] * probe.cell_embeddings).sum(1)
        right = (weight[..., None] * faces.cell_embeddings).sum(1)
        return torch.nn.functional.cosine_similarity(left, right)

    def blocks() -> torch.Tensor:
        return joint.match(
            probe.cell_embeddings, faces.cell_embeddings, probe.visibility, faces.visibility
        ).cosine[0]

    with torch.inference_mode():
        difference = (plain() - blocks()).abs().max()
        seconds = fastest({"plain": plain, "blocks": blocks}, ROUNDS)
    return {
        "gallery_faces": GALLERY_FACES,
        "embedding_size": EMBEDDING_SIZE,
        "threads": torch.get_num_threads(),
        "plain_ms": 1e3 * seconds["plain"],
        "blocks_ms": 1e3 * seconds["blocks"],
        "speedup_over_plain": seconds["plain"] / seconds["blocks"],
        "largest_cosine_difference": float(difference),
    }


def fastest(
    cases: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of the fastest call of each, called in turns, so that other work on the machine slows all of them."""
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, call in cases.items():
            start = clock()
            call()
            best[name] = min(best[name], clock() - start)
    return best


def _templates(count: int, seed: int) -> Templates:
    """Numbers like those of faces, half of which are occluded from a random row down."""
    generator = torch.Generator().manual_seed(seed)
    cell_embeddings = torch.randn(count, CELLS, EMBEDDING_SIZE, generator=generator)
    raw = cell_embeddings.sum(1)
    rows = torch.arange(GRID[0]).view(1, 1, -1, 1)
    occluded_from = torch.randint(1, 2 * GRID[0], (count, 1, 1, 1), generator=generator)
    visibility = (occluded_from - rows).clamp(0, 1).float().expand(count, 1, *GRID)
    return Templates(
        embedding=torch.nn.functional.normalize(raw, dim=1),
        norm=raw.norm(dim=1),
        visibility=visibility,
        local=torch.nn.functional.normalize(torch.randn(count, 128, *GRID, generator=generator), dim=1),
        cell_embeddings=cell_embeddings,
    )
