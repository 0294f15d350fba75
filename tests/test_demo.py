"""Drawn people are hard enough that a wrong loss shows: each fault must cost a stated TAR. And the demo itself, in small."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from oaml import demo as program
from oaml.data import DataConfig
from oaml.datasets.drawn import DrawnPeople
from oaml.datasets.people import DrawnFolder
from oaml.demo import PEOPLE, demo, demo_config
from oaml.errors import OamlError
from oaml.evaluation.results import (
    DrawnOccluders,
    Estimate,
    Measures,
    OperatingPoint,
    Report,
    Verification,
)
from oaml.evaluation.tables import headline
from oaml.inference import extract
from oaml.losses import balanced_matching_loss, same_person
from oaml.main import main
from oaml.model import Model, ModelConfig
from oaml.net import FaceOutput, NetConfig
from oaml.occluders import Occluded, occlude
from oaml.qaconv import QAConv, QAConvConfig
from oaml.support.metrics import tar_at_far
from oaml.template import COLUMNS
from oaml.train_val import train
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


def trained(out: Path) -> Model:
    """A small network from nothing: what it knows it learned by these losses."""
    config = replace(
        demo_config(out, steps=STEPS),
        backbone=None,
        freeze_front=False,
        net=NetConfig(architecture="ir_mini", embedding_size=128, dropout=0.0),
        qaconv=QAConvConfig(method="normalized", adapter=64),
        picture_every=0,
        gradient_every=0,
    )
    config.data.workers, config.data.cover_probability = 0, 0.4
    config.optimiser.lr, config.optimiser.warmup = 4e-3, 20
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


def test_the_demo_trains_evaluates_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 24 people with 3 images are 1,104 impostor pairs, enough for FAR 1e-2; 50 held out are 1,225, enough for a threshold there
    monkeypatch.setattr(program, "write_unseen", partial(program.write_unseen, people=24, shots=3))
    monkeypatch.setattr(program, "add_thresholds", partial(program.add_thresholds, people=50))
    demo(out=tmp_path / "demo", steps=2)
    shown = capsys.readouterr().out
    last_lines = "".join(shown.rpartition("Drawn people are a test pattern")[1:])
    report = json.loads((tmp_path / "demo" / "report" / "report.json").read_text())
    conditions = report["verification"]["conditions"]
    assert set(conditions) >= {"unoccluded", *KINDS}
    assert tuple(conditions["niqab"]) == COLUMNS
    assert all(0 <= conditions["niqab"][score]["auc"]["value"] <= 1 for score in COLUMNS)
    fused, cosine = (
        round(100 * conditions["niqab"][score]["tar_at_far"]["0.01"]["tar"]["value"])
        for score in ("fused", "cosine")
    )
    first = shown.split("evaluating it on them")[1].splitlines()[1]
    assert first.startswith("Of genuine pairs are accepted at FAR 1e-2")
    assert f"; niqab {fused} % ({cosine} %); mask " in first
    for name in ("report.html", "robustness.png", "roc.png", "scores.png", "pairs.png", "maps.png"):
        assert (tmp_path / "demo" / "report" / name).stat().st_size > 5000
        assert name in last_lines
    assert str(tmp_path / "demo" / "report" / "report.html") in last_lines
    model = tmp_path / "demo" / "training" / "last"
    assert (model / "config.json").is_file()
    assert str(model) in last_lines
    pair = [str(tmp_path / "demo" / "people" / "Ann" / f"{shot}.png") for shot in range(2)]
    assert main(["verify", *pair, "--model", str(model), "--far", "0.01", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "1,225 impostor pairs of unoccluded faces of 50 drawn people" in json.dumps(answer)
    with pytest.raises(OamlError, match="not empty"):
        demo(out=tmp_path / "demo", steps=2)


def test_the_headline_compares_fused_and_cosine() -> None:
    def measures(tar: float) -> Measures:
        rate = Estimate(0.5, None)
        return Measures(100, 10_000, {1e-2: OperatingPoint(Estimate(tar, None), 0.0), 1e-3: None}, rate, rate)

    conditions = {
        "unoccluded": {"cosine": measures(0.92), "joint": measures(0.1), "fused": measures(0.934)},
        "niqab": {"cosine": measures(0.5), "joint": measures(0.2), "fused": measures(0.666)},
        "all": {"cosine": measures(0.0), "joint": measures(0.3), "fused": measures(1.0)},
    }
    section = Verification(100, 10_000, 10, 10, conditions)
    report = Report(
        oaml="0",
        model="m",
        config=ModelConfig(),
        arguments={},
        occluders=DrawnOccluders(["niqab"], "b", "b", 0),
        maps={},
        verification=section,
    )
    assert (headline(report) or "").endswith(
        "same network: unoccluded 93 % (92 %); niqab 67 % (50 %); all, one threshold 100 % (0 %)."
    )
    conditions["niqab"]["cosine"].tar_at_far[1e-2] = None  # too few pairs
    assert headline(report) is None
    assert headline(replace(report, verification=None)) is None
