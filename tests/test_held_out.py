"""People held out by `oaml adapt`: their occluders, and what is fitted on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from oaml.adaptation import extremes, held_out, thresholds
from oaml.adaptation.calibration import Class, Treated
from oaml.adaptation.held_out import SHARED_OCCLUDER, UNOCCLUDED, HeldOut
from oaml.datasets.people import DrawnFolder, group_of
from oaml.inference import as_input
from oaml.joint import KNOTS, TRACES
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import Style, occlude, occluder_rng
from oaml.occluders.material import retexture

pytestmark = pytest.mark.usefixtures("one_thread")


def small() -> Model:
    torch.manual_seed(0)
    return Model(
        ModelConfig(
            net=NetConfig(architecture="ir_mini", embedding_size=16, occlusion_stage=3, branch="stage")
        )
    ).eval()


@pytest.fixture(scope="module")
def faces() -> HeldOut:
    return HeldOut(small(), DrawnFolder(6, 2), ["niqab", "patch"], 0, "a", everybody=True, groups=2)


def test_one_occluder_for_each_group(faces: HeldOut) -> None:
    group = np.array([group_of(name, 2) for name in faces.people.names])
    assert set(group) == {0, 1}
    for kind in ("niqab", "patch"):
        own, shared = faces.true[kind], faces.true[SHARED_OCCLUDER.format(kind)]
        assert all((shared[group == number] == shared[group == number][0]).all() for number in (0, 1))
        assert (shared[group == 0][0] != shared[group == 1][0]).any()
        assert len(np.unique(own.reshape(len(own), -1), axis=0)) > 2


def test_the_largest_of_three_factors_is_taken(faces: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    monkeypatch.setattr(thresholds, "PAIRS_NEEDED", 20)
    monkeypatch.setattr("oaml.adaptation.calibration.PAIRS_NEEDED", 20)
    factors = iter([0.5, 2.0, 1.0])
    seen = []

    def record(excess: np.ndarray, overlap: np.ndarray, cosine: np.ndarray, weight: np.ndarray) -> float:
        assert len(excess) == len(overlap) == len(cosine) == len(weight)
        seen.append((overlap, weight))
        return next(factors)

    monkeypatch.setattr(thresholds, "fit_overlap", record)
    thresholds.calibrate(model, faces)
    assert model.fusion.overlap == 2  # the most of the three
    assert (
        len(seen) == 3
    )  # once: with so few people nothing is treated, and there are no traces to fit it again with
    for _, weight in seen:  # each kind of occluder weighs the same
        assert weight.sum() == pytest.approx(2)


def test_offset_and_thresholds_are_fitted_on_impostors_alone(
    faces: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    fitted: dict[str, np.ndarray] = {}

    def offset(scores: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        fitted["offset"] = scores
        return np.zeros(KNOTS, np.float32)

    def fitted_thresholds(scores: np.ndarray) -> dict[str, float]:
        fitted["thresholds"] = scores
        return {}

    monkeypatch.setattr(thresholds, "PAIRS_NEEDED", 20)
    monkeypatch.setattr(thresholds, "fit_offset", offset)
    monkeypatch.setattr(thresholds, "fit_overlap", lambda *_: 0.0)
    monkeypatch.setattr(thresholds, "fit_thresholds", fitted_thresholds)
    thresholds.calibrate(model, faces)
    unoccluded, person = faces.templates(model, UNOCCLUDED), faces.person.tolist()
    first = [person.index(number) for number in range(6)]
    fused = model.compare_all(unoccluded, unoccluded)["fused"]
    pairs = [fused[i, j] for i in range(12) for j in range(i) if person[i] != person[j]]
    assert len(pairs) == 12 * 10 / 2
    np.testing.assert_allclose(np.sort(fitted["thresholds"]), np.sort(pairs), rtol=1e-4, atol=1e-4)
    # every face, unoccluded and under both kinds, against the first image of everybody else
    expected: list[Tensor] = []
    for probes in (unoccluded, *(faces.templates(model, kind) for kind in faces.kinds)):
        fused = model.compare_all(probes, unoccluded[torch.tensor(first)])["fused"]
        expected += [fused[i, j] for i in range(12) for j in range(6) if person[i] != j]
    np.testing.assert_allclose(np.sort(fitted["offset"]), np.sort(expected), rtol=1e-4, atol=1e-4)


def test_pairs_treated_alike_are_fitted_on_too_and_scored_as_the_model_will(
    faces: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fitted = small(), {}
    ways = {name: extremes.WAYS[name] for name in ("blur 2.2", "brightness 0.32", "pixels 22")}
    hidden = {
        "all hidden": lambda face, _: np.zeros_like(face)
    }  # no usable face: nothing is decided about it

    def traces(
        classes: list[Treated], unoccluded: Treated, seen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        assert len(classes) == 3
        assert all(1 < len(pairs.embeddings) <= 6 for pairs in classes)
        assert len(classes[0].scores) == 15  # blurred so, all six show enough
        assert len(unoccluded.scores) == 60
        assert len(seen) == 12 * 3  # unoccluded and under two kinds
        # along the first two ways, so that nearly every face here has something of both
        found = np.zeros((TRACES, 16), np.float32)
        found[:2] = 3 * np.stack([pairs.embeddings.mean(0) for pairs in classes[:2]])
        fitted["traces"] = found, np.linspace(0.1, 0.2, TRACES, dtype=np.float32)
        return fitted["traces"]

    def raised(classes: list[Class], threshold: float) -> np.ndarray:
        assert np.isfinite(threshold)
        fitted["classes"] = classes
        return np.linspace(0, 1, KNOTS, dtype=np.float32)

    def raised_thresholds(limits: dict[str, float], classes: list[np.ndarray]) -> dict[str, float]:
        fitted["scores"] = classes
        return {"0.01": limits["0.01"] + 1}

    monkeypatch.setattr(thresholds, "PAIRS_NEEDED", 20)
    monkeypatch.setattr("oaml.adaptation.calibration.PAIRS_NEEDED", 20)
    monkeypatch.setattr(extremes, "LEAST_FACES", 2)
    monkeypatch.setattr(extremes, "WAYS", {**ways, **hidden})
    monkeypatch.setattr(thresholds, "fit_traces", traces)
    monkeypatch.setattr(thresholds, "fit_thresholds", lambda _: {"0.01": 1.5})
    monkeypatch.setattr(thresholds, "raise_offset", raised)
    monkeypatch.setattr(thresholds, "raise_thresholds", raised_thresholds)
    thresholds.calibrate(model, faces)
    assert model.config.thresholds == {"0.01": 2.5}
    # two kinds, one kind, one occluder, by two kinds each; and the ways
    assert len(fitted["classes"]) == len(fitted["scores"]) == 9
    torch.testing.assert_close(model.fusion.traces, torch.from_numpy(fitted["traces"][0]))
    torch.testing.assert_close(model.fusion.trace_floor, torch.from_numpy(fitted["traces"][1]))
    shown = [faces.people.image(int(i)) for i in faces.gallery]
    spoiled = list(extremes.spoiled(shown, 0))
    assert len(spoiled[0][0]) == 6  # nobody becomes unusable by this blur
    for (_, left), scores in zip(spoiled, fitted["scores"][6:], strict=True):
        templates = model.extract(as_input(left))
        expected = model.compare_all(templates, templates)["fused"].numpy()[np.triu_indices(len(left), 1)]
        np.testing.assert_allclose(np.sort(scores), np.sort(expected), rtol=1e-3, atol=2e-3)
    assert "9 classes" in model.config.training["thresholds_fitted_on"]


@pytest.mark.parametrize("style", ["a", "b"])
def test_faces_are_occluded_in_the_style_asked_for(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []

    def recorded(model: Model, images: list[np.ndarray]) -> np.ndarray:
        shown.extend(images)
        return np.zeros((len(images), 14, 14, 1), np.float32)

    monkeypatch.setattr(held_out, "stage3", recorded)
    people = DrawnFolder(2, 2)
    HeldOut(small(), people, ["niqab"], 3, style)
    assert len(shown) == 6
    for face, i in zip(shown[4:], (1, 3), strict=True):  # the probes: all but everybody's first image
        rng = occluder_rng(3, "held out niqab", people.names[i])
        drawn = occlude(people.image(i), "niqab", rng, style=style)
        if style == "a" and rng.random() < 0.5:
            drawn = retexture(people.image(i), drawn, rng)
        assert np.array_equal(face, drawn.image)


def test_too_few_people_leave_the_score_as_it_is(faces: HeldOut) -> None:
    model = small()
    model.fusion.offset.fill_(1)
    model.fusion.overlap.fill_(1)
    with pytest.warns(UserWarning, match=r"20,000 are needed.* give more people"):
        thresholds.calibrate(model, faces)
    assert not model.fusion.offset.any()
    assert not model.fusion.overlap
    assert model.config.thresholds == {}
