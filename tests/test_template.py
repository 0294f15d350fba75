"""Templates as a table of faces, and the roles that work with them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.qaconv import QAConvConfig
from oaml.template import (
    COLUMNS,
    Extractor,
    PairwiseMatcher,
    Reranker,
    ScoreReranker,
    Scores,
    Templates,
)


def random_faces(count: int, seed: int = 0) -> Templates:
    generator = torch.Generator().manual_seed(seed)
    return Templates(
        embedding=torch.randn(count, 8, generator=generator),
        norm=torch.rand(count, generator=generator),
        visibility=torch.rand(count, 1, 7, 7, generator=generator),
        local=torch.randn(count, 4, 7, 7, generator=generator),
        cell_embeddings=torch.randn(count, 49, 8, generator=generator),
    )


def same(a: Templates, b: Templates) -> bool:
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(Templates))


class Numbers:
    """A matcher that needs no network: faces are similar by the first number of their embedding, rounded."""

    def compare(self, a: Templates, b: Templates) -> Scores:
        return {"fused": (-(a.embedding[:, 0] - b.embedding[:, 0]).abs()).round()}

    def compare_all(self, probes: Templates, gallery: Templates) -> Scores:
        fused = -(probes.embedding[:, None, 0] - gallery.embedding[None, :, 0]).abs()
        return {"fused": fused.round(), "backwards": -fused.round()}


# --- templates


def test_rows() -> None:
    faces = random_faces(5)
    assert len(faces) == 5
    for rows, expected in (
        (slice(1, 3), [1, 2]),
        (slice(3, 99), [3, 4]),
        (slice(0, 0), []),
        (torch.tensor([4, 0, 4]), [4, 0, 4]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
        (torch.tensor([], dtype=torch.int64), []),
    ):
        chosen = faces[rows]
        assert len(chosen) == len(expected)
        for field in fields(Templates):
            values = getattr(faces, field.name)
            assert torch.equal(getattr(chosen, field.name), values[expected] if expected else values[:0])


def test_rows_of_a_memory_mapped_file(tmp_path: object) -> None:
    faces = random_faces(4)
    local = np.memmap(f"{tmp_path}/local", np.float32, "w+", shape=tuple(faces.local.shape))
    local[:] = faces.local.numpy()
    mapped = Templates(
        faces.embedding, faces.norm, faces.visibility, torch.from_numpy(local), faces.cell_embeddings
    )
    assert same(mapped[torch.tensor([2, 0])], faces[torch.tensor([2, 0])])


def test_another_device() -> None:
    faces = random_faces(2)
    assert same(faces.to("cpu"), faces)
    assert all(getattr(faces.to("meta"), field.name).device.type == "meta" for field in fields(Templates))


def test_visible() -> None:
    faces = random_faces(3)
    shares = faces.visible()
    assert shares.dtype == torch.float64
    np.testing.assert_allclose(shares.numpy(), faces.visibility.double().numpy().mean((1, 2, 3)), rtol=1e-12)


# --- re-ranking


def brute_force(scores: np.ndarray, candidates: np.ndarray) -> list[list[int]]:
    """Candidates best first; `sorted` keeps the order of equal ones."""
    return [
        sorted(chosen.tolist(), key=lambda g: -row[g]) for row, chosen in zip(scores, candidates, strict=True)
    ]


@pytest.mark.parametrize("score", ["fused", "backwards"])
def test_reranker_against_sorting(score: str) -> None:
    probes, gallery = random_faces(6, 0), random_faces(20, 1)
    generator = torch.Generator().manual_seed(2)
    candidates = torch.stack([torch.randperm(20, generator=generator)[:9] for _ in range(6)])
    order, scores = ScoreReranker(Numbers(), score).rerank(probes, gallery, candidates)
    everything = Numbers().compare_all(probes, gallery)[score]
    assert order.tolist() == brute_force(everything.numpy(), candidates.numpy())
    assert torch.equal(scores, everything.gather(1, order))
    assert bool((scores.diff(dim=1) <= 0).all())
    assert bool((scores.diff(dim=1) == 0).any()), "no ties: the rounding hid nothing"


def test_equal_scores_keep_the_order_of_the_first_stage() -> None:
    probes, gallery = random_faces(2), random_faces(300)
    gallery.embedding[:, 0] = 0
    # many: a sort that isn't stable may still keep the order of a few
    candidates = torch.stack([torch.arange(300), torch.randperm(300)])
    order, _ = ScoreReranker(Numbers()).rerank(probes, gallery, candidates)
    assert torch.equal(order, candidates)


def test_reranker_without_probes_or_candidates() -> None:
    for probes, k in ((0, 3), (2, 0)):
        candidates = torch.zeros(probes, k, dtype=torch.int64)
        order, scores = ScoreReranker(Numbers()).rerank(random_faces(probes), random_faces(4), candidates)
        assert order.shape == scores.shape == (probes, k)


# --- the model in its roles


@torch.inference_mode()
def test_a_model_is_extractor_and_matcher() -> None:
    torch.manual_seed(0)
    model = Model(ModelConfig(NetConfig("ir_mini", 16), QAConvConfig(adapter=8))).eval()
    extractor: Extractor = model  # what the type checker is asked to confirm
    matcher: PairwiseMatcher = model
    reranker: Reranker = ScoreReranker(matcher)
    faces = extractor.extract(torch.rand(5, 3, 112, 112))
    probes, gallery = faces[:2], faces[2:]
    scores: dict[str, Tensor] = matcher.compare_all(probes, gallery)
    assert tuple(scores) == tuple(name for name in COLUMNS if name != "qaconv")
    assert all(values.shape == (2, 3) for values in scores.values())
    assert all(values.shape == (2,) for values in matcher.compare(probes, gallery[:2]).values())
    candidates = torch.tensor([[0, 1, 2], [2, 1, 0]])
    order, reranked = reranker.rerank(probes, gallery, candidates)
    assert order.tolist() == brute_force(scores["fused"].numpy(), candidates.numpy())
    torch.testing.assert_close(reranked, scores["fused"].gather(1, order), rtol=1e-5, atol=1e-5)
