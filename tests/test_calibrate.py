"""`oaml calibrate`: thresholds on a user's own faces, what stands behind them, and a copy that galleries still work with."""

from __future__ import annotations

import json
import math
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_model, with_statistics
from oaml.adaptation import command
from oaml.adaptation.command import fits_corrections, impostor_count, spread
from oaml.adaptation.evidence import evidence_of
from oaml.adaptation.thresholds import between, impostors_among
from oaml.card import card_text
from oaml.datasets.drawn import draw_face
from oaml.datasets.people import DrawnFolder, PeopleFolder
from oaml.main import main
from oaml.model import Evidence, Model
from oaml.recognition.decision import Threshold, fitted_threshold
from oaml.recognition.terminal import origin
from oaml.templates.file import model_id

pytestmark = pytest.mark.usefixtures("one_thread")
PEOPLE, SHOTS = 46, 2


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 drawn people, two images each: 92 * 90 / 2 = 4,140 impostor pairs, enough for FAR 0.01 alone."""
    folder = tmp_path_factory.mktemp("faces")
    for i in range(PEOPLE):
        (folder / f"p{i:02d}").mkdir()
        for shot in range(SHOTS):
            Image.fromarray(draw_face(i, shot)).save(folder / f"p{i:02d}" / f"{shot}.png")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = with_statistics(small_model(thresholds={"0.01": -90.0, "0.001": 50.0, "0.0001": 60.0}))
    model.config.evidence = {"0.001": Evidence(5000, 80, 9e-4, 2e-4, 2e-3)}
    return model.save(tmp_path_factory.mktemp("models") / "old")


@pytest.fixture(scope="module")
def fitted(faces: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The calibrated copy, and what was printed."""
    out = tmp_path_factory.mktemp("fitted") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "KINDS", ("niqab", "mask"))
        patch.setattr("oaml.adaptation.extremes.WAYS", {})
        said = StringIO()
        patch.setattr("sys.stdout", said)
        assert main(["calibrate", str(source), "--people", str(faces), "--out", str(out)]) == 0
    return out, " ".join(said.getvalue().split())


def test_thresholds_hold_on_the_users_faces(fitted: tuple[Path, str], faces: Path) -> None:
    """Counted pair by pair: one of 100 reaches the threshold, unless pairs of occluded faces raised it."""
    model, people = Model.load(fitted[0]), PeopleFolder(faces)
    templates = model.extract(torch.stack([_input(people.image(i)) for i in range(len(people))]))
    scores = model.compare_all(templates, templates)["fused"].numpy()
    passed = pairs = 0
    for i in range(len(people)):
        for j in range(i):
            if people.labels[i] != people.labels[j]:
                pairs += 1
                passed += scores[i, j] >= model.config.thresholds["0.01"] - 1e-3
    assert pairs == 4140
    assert passed <= 45
    behind = model.config.evidence["0.01"]
    assert (behind.pairs, behind.people) == (4140, PEOPLE)
    assert behind.far == pytest.approx(passed / pairs, abs=5e-4)
    assert behind.far_low < behind.far < behind.far_high or not behind.far


def test_it_says_what_there_is_and_how_far_the_stored_ones_were_off(fitted: tuple[Path, str]) -> None:
    out, said = fitted
    assert "46 people with 92 images: 4,140 impostor pairs, 46 genuine ones" in said
    assert (
        "to be fitted: thresholds alone, at FAR 0.01; too few for 0.001 (10,000 pairs), 0.0001 (100,000 pairs)"
        in said
    )
    assert "-90.000" in said  # accepted everybody: a hundred times the rate
    assert " 1e+02 " in said
    config = json.loads((out / "config.json").read_text())
    assert config["training"]["calibrated"] == f"thresholds alone, on 46 people with 92 images of {'faces0'}"
    assert config["training"]["thresholds_fitted_on"].startswith(
        "4,140 impostor pairs of unoccluded faces of 46 people"
    )


def test_too_few_pairs_keep_a_threshold_and_its_evidence(fitted: tuple[Path, str]) -> None:
    config = Model.load(fitted[0]).config
    assert config.thresholds["0.001"] == 50
    assert config.evidence["0.001"] == Evidence(5000, 80, 9e-4, 2e-4, 2e-3)
    assert "0.0001" not in config.evidence


def test_the_source_stays_and_templates_stay_of_use(fitted: tuple[Path, str], source: Path) -> None:
    old, new = Model.load(source), Model.load(fitted[0])
    assert old.config.thresholds["0.01"] == -90
    assert model_id(old) == model_id(new)


def test_a_gallery_of_the_old_model_works_with_the_copy(
    fitted: tuple[Path, str], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lancedb")
    for name, person in (("Ann", 1), ("Bela", 2)):
        (tmp_path / "people" / name).mkdir(parents=True)
        Image.fromarray(draw_face(person, 0)).save(tmp_path / "people" / name / "0.png")
    Image.fromarray(draw_face(1, 1)).save(tmp_path / "probe.png")
    gallery, probe = str(tmp_path / "g"), str(tmp_path / "probe.png")
    assert main(["enroll", str(tmp_path / "people"), "--gallery", gallery, "--model", str(source)]) == 0
    capsys.readouterr()
    ask = ["search", probe, "--gallery", gallery, "--model", str(fitted[0]), "--far", "0.01"]
    assert main([*ask, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["faces"][0]
    evidence = answer["evidence"]
    assert (evidence["pairs"], evidence["people"]) == (4140, 46)
    assert answer["strangers_taken"] == pytest.approx(1 - 0.99**2)
    assert main(ask) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 % of strangers would be taken for somebody here, among 2 people (" in said
    assert "on 4,140 pairs of 46 people" in said


def test_enough_people_get_corrections(
    faces: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "PEOPLE_NEEDED", 40)
    monkeypatch.setattr(command, "MIN_FALSE_ACCEPTS", 1)
    monkeypatch.setattr(command, "enough_negatives", lambda pairs, far: pairs * far >= 1)
    monkeypatch.setattr(command, "KINDS", ("niqab", "mask"))
    monkeypatch.setattr("oaml.adaptation.thresholds.PAIRS_NEEDED", 1000)
    monkeypatch.setattr("oaml.adaptation.calibration.PAIRS_NEEDED", 1000)
    monkeypatch.setattr("oaml.adaptation.extremes.WAYS", {})
    assert main(["calibrate", str(source), "--people", str(faces), "--out", str(tmp_path / "m")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "to be fitted: thresholds and corrections, at FAR 0.01, 0.001" in said
    assert "no thresholds there, as those before were for other corrections" in said
    model = Model.load(tmp_path / "m")
    assert model.fusion.offset.any()
    assert model.config.thresholds.keys() == model.config.evidence.keys() == {"0.01"}


def test_bad_input_is_one_line_and_nothing_is_written(
    faces: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    for i in range(4):
        shutil.copytree(faces / f"p{i:02d}", few / f"p{i:02d}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for people, out, part in (
        (few, tmp_path / "new", "its people give 24 impostor pairs, and 1,000 are needed"),
        (tmp_path / "none", tmp_path / "new", "none"),
        (faces, tmp_path / "full", "is no model folder"),
    ):
        assert main(["calibrate", str(source), "--people", str(people), "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_images_are_spread_over_people() -> None:
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 3])
    assert spread(labels, 8).tolist() == list(range(8))
    assert spread(labels, 5).tolist() == [0, 1, 4, 5, 7]  # everybody's first, then a second
    assert spread(labels, 4).tolist() == [0, 4, 5, 7]
    assert spread(np.arange(9), 3).tolist() == [0, 4, 8]
    assert spread(labels[[7, 0, 4, 1]], 3).tolist() == [0, 1, 2]  # not sorted by person


def test_pairs_are_counted_as_by_hand() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    listed = [(labels[i], labels[j]) for i in range(6) for j in range(i + 1, 6) if labels[i] != labels[j]]
    assert impostor_count(labels) == len(listed) == 11
    assert impostors_among(torch.from_numpy(labels)).T.tolist() == [list(pair) for pair in listed]
    assert not fits_corrections(DrawnFolder(99, 2))  # too few people
    assert not fits_corrections(DrawnFolder(120, 1))  # 7,140 pairs, 10,000 are needed at 1e-3
    assert fits_corrections(DrawnFolder(142, 1))  # 10,011


def test_a_threshold_that_stays_keeps_its_order() -> None:
    fitted = {"0.01": 2.0, "0.0001": 6.0}
    assert between(0.001, 3.0, fitted) == 3
    assert between(0.001, 1.0, fitted) == 2
    assert between(0.001, 9.0, fitted) == 6
    assert between(0.05, 9.0, fitted) == 2
    assert between(1e-5, 9.0, fitted) == 9


def test_evidence_by_hand() -> None:
    """Four people, all six pairs, one of which passes: no resample holds a share of more than the interval says."""
    a, b = np.triu_indices(4, 1)
    scores = np.array([5, 1, 1, 1, 1, 1.0])
    found = evidence_of(scores, a, b, 5.0)
    assert (found.pairs, found.people, found.far) == (6, 4, pytest.approx(1 / 6))
    assert found.far_low == 0
    assert found.far_high == 1  # people 0 and 1 drawn twice each: all pairs are theirs
    none = evidence_of(np.zeros(600), np.arange(600) % 20, 20 + np.arange(600) % 30, 1.0)
    assert (none.far, none.far_low, none.far_high) == (0, 0, 3 / 600)
    every = evidence_of(np.ones(6), a, b, 1.0)
    assert (every.far, every.far_low, every.far_high) == (1, 1, 1)


def test_an_interval_by_person_is_wider_than_one_by_pair() -> None:
    """Where one of 60 people passes for many, the rate hangs on whether that one is there."""
    a, b = np.triu_indices(60, 1)
    scores = np.where((a == 0) & (b < 20), 1.0, 0.0)
    found = evidence_of(scores, a, b, 1.0)
    by_pair = 1.96 * math.sqrt(found.far * (1 - found.far) / found.pairs)
    assert found.far == pytest.approx(19 / 1770)
    assert found.far_high - found.far_low > 2.5 * 2 * by_pair


def test_evidence_is_said_and_damage_refused(tmp_path: Path) -> None:
    model = small_model(thresholds={"0.01": 1.0, "0.001": 2.0})
    model.config.evidence = {"0.001": Evidence(5000, 80, 9e-4, 2e-4, 2e-3)}
    model.save(tmp_path / "m")
    config = Model.load(tmp_path / "m").config
    threshold = fitted_threshold(config, 1e-3)
    assert threshold == Threshold(2.0, 1e-3, None, Evidence(5000, 80, 9e-4, 2e-4, 2e-3))
    assert threshold is not None
    assert "measured 0.0009, 95 % by person 0.0002 to 0.002, on 5,000 pairs of 80 people" in origin(threshold)
    assert fitted_threshold(config, 1e-2) == Threshold(1.0, 1e-2)
    card = card_text(json.loads((tmp_path / "m" / "config.json").read_text()))
    assert "| 0.001 | 2.000 | 0.0009 (0.0002 to 0.002): 5,000 pairs of 80 people |" in card
    assert "| 0.01 | 1.000 | unstated |" in card
    for wrong in ({"far": 3.0}, {"far": "much"}, {"people": 0}, {"other": 1}):
        raw = json.loads((tmp_path / "m" / "config.json").read_text())
        raw["evidence"]["0.001"].update(wrong)
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "config.json").write_text(json.dumps(raw))
        shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "bad")
        with pytest.raises(Exception, match="is no model description"):
            Model.load(tmp_path / "bad")


def test_a_model_without_evidence_loads(tmp_path: Path) -> None:
    small_model(thresholds={"0.01": 1.0}).save(tmp_path / "m")
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    del raw["evidence"]  # as older versions wrote it
    (tmp_path / "m" / "config.json").write_text(json.dumps(raw))
    assert Model.load(tmp_path / "m").config.evidence == {}


def _input(face: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(face).permute(2, 0, 1).float() / 255
