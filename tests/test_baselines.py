"""The published baselines: transport against all permutations, and what each of them ignores."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import small_model, write_drawn_pairs
from oaml.datasets.drawn import draw_face
from oaml.evaluation import baselines
from oaml.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def patches(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_transport_is_the_best_assignment_where_all_weigh_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal weights the cheapest transport of four patches is a permutation."""
    monkeypatch.setattr(baselines, "_weights", lambda a, b: a.new_full(a.shape[:2], 1 / a.shape[1]))
    monkeypatch.setattr(baselines, "SMOOTHING", 0.01)
    monkeypatch.setattr(baselines, "STEPS", 2000)
    a, b = patches(5, 4, 6).double(), patches(5, 4, 6, seed=1).double()
    for one, other, got in zip(a, b, baselines.emd_similarity(a, b), strict=True):
        similarity = one @ other.T
        best = max(float(similarity[range(4), order].mean()) for order in permutations(range(4)))
        assert float(got) == pytest.approx(best, abs=0.01)


def test_a_face_moved_by_a_patch_is_still_the_same() -> None:
    a = patches(1, 16, 32)
    moved = a.roll(3, dims=1)
    assert float(baselines.emd_similarity(a, moved)) == pytest.approx(1, abs=0.02)
    assert float((a * moved).sum(2).mean()) < 0.5
    other = patches(1, 16, 32, seed=1)
    assert float(baselines.emd_similarity(a, other)) < 0.5
    assert float(baselines.emd_similarity(a, other)) == pytest.approx(
        float(baselines.emd_similarity(other, a)), abs=1e-3
    )


def test_a_patch_that_the_other_face_lacks_weighs_less() -> None:
    common = patches(1, 1, 32).expand(1, 4, 32) + 0.1 * patches(1, 4, 32, seed=2)
    a = F.normalize(common, dim=2)
    occluded = a.clone()
    occluded[:, 0] = -a[:, 0]
    weights = baselines._weights(occluded, a)[0]
    assert weights[0] < 0.01 < weights[1:].min()


def test_the_upper_half_ignores_the_lower() -> None:
    model = small_model()
    face = draw_face(1, 0)
    painted = face.copy()
    painted[56:] = 255
    faces = baselines.read_faces(model, [face, painted, draw_face(2, 0)])
    upper = baselines.pair_scores(faces[np.array([0, 0])], faces[np.array([1, 2])])["upper half"]
    assert upper[0] == pytest.approx(1, abs=1e-6)
    assert float(faces.embedding[0] @ faces.embedding[1]) < 0.9999
    torch.testing.assert_close(faces.embedding[:1], model.extract(_input(face)).embedding)


def test_only_the_first_hundred_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "FIRST", 2)
    faces = baselines.read_faces(
        small_model(), [draw_face(person, shot) for person in range(4) for shot in (0, 1)]
    )
    gallery, probes = faces[np.arange(0, 8, 2)], faces[np.arange(1, 8, 2)]
    cosine = (probes.embedding @ gallery.embedding.T).numpy()
    for name, scores in baselines.search_scores(probes, gallery).items():
        if name.startswith("EMD"):
            looked = np.argsort(-cosine, axis=1)[:, :2]
            for row, kept, best in zip(scores, cosine, looked, strict=True):
                rest = np.setdiff1d(np.arange(4), best)
                np.testing.assert_allclose(row[rest], kept[rest])
                assert row[best].min() > row[rest].max()


def _input(face: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(face).permute(2, 0, 1)[None].float() / 255


def test_evaluate_states_them_beside_cosine_and_fused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_drawn_pairs(tmp_path, 4, 3)
    small_model().save(tmp_path / "model")
    rows = [f"{n},{n.split('/')[0]},{'probe' if n.endswith('002.png') else 'gallery'}" for n in names]
    (tmp_path / "roles.csv").write_text("\n".join(["path,person,role", *rows]))
    words = [
        "--images",
        tmp_path / "faces",
        "--pairs",
        tmp_path / "pairs.csv",
        "--identification",
        tmp_path / "roles.csv",
    ]
    words += ["--out", tmp_path / "out", "--occlude", "mask", "--bootstrap", "0", "--baselines"]
    assert main(["evaluate", str(tmp_path / "model"), *map(str, words)]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["baselines"]) == {"unoccluded", "mask", "all"}
    assert set(report["identification"]["baselines"]["mask"]) == {"upper half", "EMD 4x4", "EMD 8x8"}
    upper, cosine = (
        report["baselines"]["mask"]["upper half"],
        report["verification"]["conditions"]["mask"]["cosine"],
    )
    assert upper["impostor_pairs"] == cosine["impostor_pairs"]
    assert upper["auc"]["value"] != cosine["auc"]["value"]
    assert "EMD 4x4" in capsys.readouterr().out
