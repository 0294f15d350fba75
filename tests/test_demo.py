"""Drawn people are hard enough that a wrong loss shows: each fault must cost a stated TAR. And the demo itself, in small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from oaml.data import DataConfig
from oaml.datasets.drawn import DrawnPeople
from oaml.datasets.people import DrawnFolder
from oaml.demo import PEOPLE, demo, demo_config
from oaml.errors import OamlError
from oaml.evaluation.metrics import tar_at_far
from oaml.model import Model
from oaml.occluders import occlude
from oaml.qaconv import QAConvConfig
from oaml.train_val import TrainConfig, train

KINDS = ("niqab", "mask", "sunglasses", "patch")
STEPS = 120


def covered_tar(model: Model, people: int = 50, shots: int = 4) -> dict[str, float]:
    """TAR at FAR 0.1 of covered probes (cover styles not trained on) against one bare face a person, people not trained on."""
    drawn = DrawnPeople(people, shots, first_person=PEOPLE)
    images = drawn.render()
    probes = np.flatnonzero(np.arange(len(images)) % shots)
    covers = [occlude(images[i], KINDS[i % 4], np.random.default_rng(int(i)), style="b").image for i in probes]

    @torch.inference_mode()
    def see(pictures: np.ndarray) -> list[torch.Tensor]:
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        return [torch.cat(parts) for parts in zip(*(model(part) for part in x.split(50)), strict=True)]

    embedding_g, _, visible_g, features_g = see(images[::shots].copy())
    embedding_p, _, visible_p, features_p = see(np.stack(covers))
    same = (drawn.labels[probes][:, None] == drawn.labels[::shots][None]).ravel()
    scores = {
        "cosine": embedding_p @ embedding_g.T,
        "without": model.matcher.match(features_p, features_g),
        "with": model.matcher.match(features_p, features_g, visible_p, visible_g),
    }
    return {name: tar_at_far(matrix.numpy().ravel(), same, 0.1).tar for name, matrix in scores.items()}


def trained(out: Path, change: Callable[[TrainConfig], None] = lambda config: None) -> Model:
    config = demo_config(out, steps=STEPS)
    config.data.workers = 0
    config.picture_every = config.gradient_every = 0
    change(config)
    return Model.load(train(config))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return covered_tar(trained(tmp_path_factory.mktemp("right") / "run"))


def test_shuffled_labels_cost_tar(
    right: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = DataConfig.load_people

    def shuffled(self: DataConfig, split: str) -> DrawnFolder:
        people = load(self, split)  # type: ignore[arg-type]
        assert isinstance(people, DrawnFolder)
        people.labels = np.random.default_rng(0).permutation(people.labels)
        return people

    monkeypatch.setattr(DataConfig, "load_people", shuffled)
    wrong = covered_tar(trained(tmp_path / "run"))
    print(right, wrong)
    assert right["cosine"] - wrong["cosine"] >= 0.1
    assert right["with"] - wrong["with"] >= 0.1


def test_training_without_occlusion_weights_costs_tar(right: dict[str, float], tmp_path: Path) -> None:
    def without(config: TrainConfig) -> None:
        config.qaconv = QAConvConfig(method="none", adapter=config.qaconv.adapter, position_bias=False)

    none = covered_tar(trained(tmp_path / "run", without))
    print(right, none)
    assert right["with"] - none["without"] >= 0.05


def test_the_demo_trains_evaluates_and_draws(tmp_path: Path) -> None:
    demo(out=tmp_path / "demo", steps=2)
    report = json.loads((tmp_path / "demo" / "report" / "report.json").read_text())
    conditions = report["verification"]["conditions"]
    assert set(conditions) >= {"bare", *KINDS}
    assert set(conditions["niqab"]) == {"cosine", "qaconv", "qaconv_visibility"}
    assert 0 <= conditions["niqab"]["cosine"]["auc"] <= 1
    for name in ("roc.png", "scores.png", "maps.png"):
        assert (tmp_path / "demo" / "report" / name).stat().st_size > 5000
    with pytest.raises(OamlError, match="not empty"):
        demo(out=tmp_path / "demo", steps=2)
