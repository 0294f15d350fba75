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
from oaml.inference import extract
from oaml.losses import balanced_matching_loss, same_person
from oaml.model import Model
from oaml.net import FaceOutput
from oaml.occluders import Occluded, occlude
from oaml.qaconv import QAConv
from oaml.support.metrics import tar_at_far
from oaml.template import COLUMNS
from oaml.train_val import TrainConfig, train
from oaml.visibility import mask_to_cells

KINDS = ("niqab", "mask", "sunglasses", "patch")
STEPS = 120
WHOLE = np.ones((112, 112), np.float32)


@torch.inference_mode()
def see(model: Model, images: list[np.ndarray]) -> FaceOutput:
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return FaceOutput(
        *(torch.cat(parts) for parts in zip(*(model(part) for part in x.split(50)), strict=True))
    )


def accepted(scores: torch.Tensor, same: np.ndarray) -> float:
    """TAR at FAR 0.1 of scores [P,G]."""
    return tar_at_far(scores.detach().numpy().ravel(), same.ravel(), 0.1).tar


def unseen(people: int = 50, shots: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images of people not trained on, labels, places of the gallery (first shots) and of the probes (the others)."""
    drawn = DrawnPeople(people, shots, first_person=PEOPLE)
    place = np.arange(len(drawn))
    return drawn.render(), drawn.labels, place[place % shots == 0], place[place % shots != 0]


def unoccluded_tar(model: Model) -> dict[str, float]:
    images, labels, gallery, probes = unseen()
    same = labels[probes][:, None] == labels[gallery][None]
    p, g = (extract(model, (images[i] for i in places), len(places)) for places in (probes, gallery))
    return {name: accepted(scores, same) for name, scores in model.compare_all(p, g).items()}


def trained(out: Path, change: Callable[[TrainConfig], None] = lambda config: None) -> Model:
    config = demo_config(out, steps=STEPS)
    config.data.workers = 0
    config.picture_every = config.gradient_every = 0
    change(config)
    return Model.load(train(config))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return trained(tmp_path_factory.mktemp("right") / "run")


def test_shuffled_labels_cost_tar(right: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = DataConfig.load_people

    def shuffled(self: DataConfig, split: str) -> DrawnFolder:
        people = load(self, split)  # type: ignore[arg-type]
        assert isinstance(people, DrawnFolder)
        people.labels = np.random.default_rng(0).permutation(people.labels)
        return people

    monkeypatch.setattr(DataConfig, "load_people", shuffled)
    expected, wrong = unoccluded_tar(right), unoccluded_tar(trained(tmp_path / "run"))
    for score in ("cosine", "qaconv_visibility", "joint", "fused"):
        assert expected[score] - wrong[score] >= 0.1, (score, expected, wrong)


def matcher_on_true_maps(model: Model, weights: bool, steps: int = 100) -> QAConv:
    """Train a matcher on the frozen maps of occluded people, with the exact visibility or without any."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    people, shots = 100, 6
    images = [
        occlude(image, KINDS[int(rng.integers(4))], rng) if rng.random() < 0.7 else Occluded(image, WHOLE)
        for image in DrawnPeople(people, shots).render()
    ]
    features = see(model, [x.image for x in images]).features.clone()
    visibility = true_maps(images)
    _, channels, height, width = features.shape
    matcher = QAConv(channels, height, width, "normalized", adapter=32, position_bias=True)
    optimiser = torch.optim.AdamW(matcher.parameters(), 3e-3)
    itself = torch.eye(32, dtype=torch.bool)
    for _ in range(steps):
        chosen = rng.choice(people, 16, replace=False)
        index = torch.tensor(
            [int(p * shots + k) for p in chosen for k in rng.choice(shots, 2, replace=False)]
        )
        seen = visibility[index] if weights else None
        scores = matcher(features[index], features[index], seen, seen)
        same = same_person(index // shots, index // shots)
        loss = balanced_matching_loss(scores.masked_fill(itself, -torch.inf), same & ~itself)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return matcher.eval()


def true_maps(images: list[Occluded]) -> torch.Tensor:
    return mask_to_cells(torch.from_numpy(np.stack([x.mask for x in images]))[:, None], (7, 7))


def shared_occluder_tar(model: Model, matcher: QAConv, weights: bool) -> float:
    """Masks that match masks: genuine pairs never wear the same occluder, half of the impostor pairs do."""
    images, labels, gallery, probes = unseen()
    same = labels[probes][:, None] == labels[gallery][None]
    results = []
    for kind in ("mask", "scarf"):

        def worn(places: np.ndarray, other: int, kind: str = kind) -> list[Occluded]:
            return [
                occlude(images[i], kind, np.random.default_rng([7, (int(labels[i]) + other) % 2]), style="b")
                for i in places
            ]

        p, g = worn(probes, 1), worn(gallery, 0)
        map_p, map_g = (true_maps(p), true_maps(g)) if weights else (None, None)
        left, right = (see(model, [x.image for x in side]).features for side in (p, g))
        results.append(accepted(matcher.match(left, right, map_p, map_g), same))
    return float(np.mean(results))


def test_training_without_occlusion_weights_costs_tar(right: Model) -> None:
    rates = {
        weights: shared_occluder_tar(right, matcher_on_true_maps(right, weights), weights)
        for weights in (True, False)
    }
    assert rates[True] - rates[False] >= 0.08, rates


def test_the_demo_trains_evaluates_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(out=tmp_path / "demo", steps=2)
    last_lines = "".join(capsys.readouterr().out.rpartition("Drawn people are a test pattern")[1:])
    report = json.loads((tmp_path / "demo" / "report" / "report.json").read_text())
    conditions = report["verification"]["conditions"]
    assert set(conditions) >= {"unoccluded", *KINDS}
    assert tuple(conditions["niqab"]) == COLUMNS
    assert all(0 <= conditions["niqab"][score]["auc"]["value"] <= 1 for score in COLUMNS)
    for name in ("report.html", "robustness.png", "roc.png", "scores.png", "pairs.png", "maps.png"):
        assert (tmp_path / "demo" / "report" / name).stat().st_size > 5000
        assert name in last_lines
    assert str(tmp_path / "demo" / "report" / "report.html") in last_lines
    assert (tmp_path / "demo" / "training" / "last" / "config.json").is_file()
    assert str(tmp_path / "demo" / "training" / "last") in last_lines
    with pytest.raises(OamlError, match="not empty"):
        demo(out=tmp_path / "demo", steps=2)
