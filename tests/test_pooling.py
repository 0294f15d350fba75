"""What a pair loses for pooled images: the least that keeps the rate, on made-up scores; and where it is taken off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_model
from oaml.adaptation import pooling
from oaml.adaptation.held_out import HeldOut
from oaml.adaptation.pooling import fit_pooling, least_factor
from oaml.datasets.drawn import draw_face
from oaml.datasets.people import DrawnFolder
from oaml.gallery.gallery import Gallery
from oaml.model import Model, pooled_share
from oaml.recognition.recognise import Recogniser
from oaml.template import Templates, pooled

pytestmark = pytest.mark.usefixtures("one_thread")


def test_share_by_hand() -> None:
    assert pooled_share(torch.tensor([1, 2, 4, 10])).tolist() == pytest.approx([0, 0.5, 0.75, 0.9])


def test_least_factor_by_hand() -> None:
    needed = np.array([9, 7, 5, *[0.0] * 997])
    assert least_factor(needed, 1e-2) == 0  # ten may pass, and three do
    many = np.repeat([3.0, 2.0, 1.0, 0.0], [5, 5, 5, 9985])
    assert least_factor(many, 1e-3) == 1  # the ten hardest pass; of the others one takes more than 0
    assert (many > 1).sum() <= 10


def test_the_rate_holds_for_other_pairs() -> None:
    """Scores of strangers that rise by 0.8 of the share of chance that pooling took."""
    rng = np.random.default_rng(0)

    def pairs() -> tuple[np.ndarray, np.ndarray]:
        share = pooled_share(torch.from_numpy(rng.integers(2, 5, 200_000))).numpy()
        return rng.normal(0.8 * share, 1), share

    scores, share = pairs()
    factor = least_factor(np.maximum(scores - 3.09, 0) / share, 1e-3)
    scores, share = pairs()
    assert (scores >= 3.09).mean() > 3e-3
    assert 0.7e-3 < (scores - factor * share >= 3.09).mean() < 1.3e-3


def test_pooled_pairs_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pooled templates of others with all images, in the conditions in turn, one by one."""
    model, people = small_model(), DrawnFolder(4, 2)
    faces = HeldOut(model, people, ["niqab"], 0, "a", everybody=True)
    seen = [faces.templates(model, "unoccluded"), faces.templates(model, "niqab")]
    model.config.thresholds = {"0.001": 0.0}
    expected = []
    for others in seen:
        for probes in seen:
            for who in range(4):
                a, b = 2 * who, 2 * who + 1
                both = pooled(Templates.join([seen[0][a : a + 1], others[b : b + 1]]))
                for i in range(8):
                    if i // 2 != who:
                        score = model.compare(probes[i : i + 1], both)["fused"].item()
                        expected.append(max(score, 0) / 0.5)
    model.config.pooling = 0.1
    assert fit_pooling(model, faces, 1e-3) == 0.1  # of 24 pairs
    monkeypatch.setattr(pooling, "enough_negatives", lambda pairs, far: pairs == 24)
    given: list[np.ndarray] = []
    monkeypatch.setattr(pooling, "least_factor", lambda needed, far: given.append(needed) or 0.25)
    assert fit_pooling(model, faces, 1e-3) == 0.25
    np.testing.assert_allclose(np.sort(given[0]), np.sort(expected), rtol=1e-4, atol=1e-3)
    single = HeldOut(model, DrawnFolder(3, 1), ["niqab"], 0, "a", everybody=True)
    assert fit_pooling(model, single, 1e-3) == 0.1  # nobody to pool


def test_a_gallery_takes_it_off_by_the_number_of_images(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    model = small_model(thresholds={"0.0001": -1e4})
    gallery = Gallery(tmp_path / "g", Recogniser(model))
    gallery.enroll("Ann", [draw_face(1, shot) for shot in range(4)])
    gallery.enroll("Bela", draw_face(2, 0))

    def scores() -> tuple[dict[str, float], float]:
        (answer,) = gallery.search(draw_face(1, 5), threshold=0.0)
        (pair,) = gallery.duplicates(1e-4, label=None).pairs
        return {c.person: c.score for c in answer.candidates}, pair.score

    before, both = scores()
    model.config.pooling = 2.0
    after, less = scores()
    assert before["Ann"] - after["Ann"] == pytest.approx(2 * 3 / 4)
    assert before["Bela"] == after["Bela"]  # a single image
    assert both - less == pytest.approx(2 * 3 / 4, abs=1e-4)


def test_it_is_kept_with_the_model(tmp_path: Path) -> None:
    model = small_model()
    assert model.config.pooling == 0
    model.config.pooling = 0.3
    model.save(tmp_path / "m")
    assert Model.load(tmp_path / "m").config.pooling == 0.3
