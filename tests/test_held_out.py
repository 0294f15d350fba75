"""People held out by `oaml adapt`: their occluders, and what is fitted on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oaml.adaptation import held_out
from oaml.adaptation.held_out import SHARED_OCCLUDER, HeldOut
from oaml.datasets.people import DrawnFolder, group_of
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig

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
    monkeypatch.setattr(held_out, "PAIRS_NEEDED", 20)
    monkeypatch.setattr("oaml.adaptation.calibration.PAIRS_NEEDED", 20)
    factors = iter([0.5, 2.0, 1.0])
    seen = []

    def record(excess: np.ndarray, overlap: np.ndarray, cosine: np.ndarray, weight: np.ndarray) -> float:
        assert len(excess) == len(overlap) == len(cosine) == len(weight)
        seen.append((overlap, weight))
        return next(factors)

    monkeypatch.setattr(held_out, "fit_overlap", record)
    held_out.calibrate(model, faces)
    assert model.fusion.overlap == 2  # the most of the three
    assert len(seen) == 3
    for _, weight in seen:  # each kind of occluder weighs the same
        assert weight.sum() == pytest.approx(2)


def test_too_few_people_leave_the_score_as_it_is(faces: HeldOut) -> None:
    model = small()
    model.fusion.offset.fill_(1)
    model.fusion.overlap.fill_(1)
    with pytest.warns(UserWarning, match=r"20,000 are needed.* give more people"):
        held_out.calibrate(model, faces)
    assert not model.fusion.offset.any()
    assert not model.fusion.overlap
    assert model.config.thresholds == {}
