"""People under two names and training people in the measured set: what is found, said and left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import write_drawn_pairs
from oaml.datasets.people import PeopleFolder, hashed_names
from oaml.errors import OamlError
from oaml.evaluation import overlap
from oaml.evaluation.overlap import Faces, find_overlap, threshold_at
from oaml.evaluation.report import evaluate
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.qaconv import QAConvConfig


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without thresholds; drawn people, of whom one is there under two names with one photograph."""
    folder = tmp_path_factory.mktemp("overlap")
    torch.manual_seed(0)
    config = ModelConfig(
        net=NetConfig(architecture="ir_mini", embedding_size=32), qaconv=QAConvConfig(adapter=16)
    )
    Model(config).eval().save(folder / "model")
    write_drawn_pairs(folder, 5, 2)
    faces = folder / "faces"
    for name in ("Joseph_Blatter", "Sepp_Blatter", "Ann Lee", "Bo", "Cy"):
        shutil.move(faces / f"drawn_{len([*faces.glob('[!d]*')]):04d}", faces / name)
    joseph, sepp = (sorted((faces / name).iterdir()) for name in ("Joseph_Blatter", "Sepp_Blatter"))
    shutil.copy(joseph[0], sepp[1])
    paths = sorted(p.relative_to(faces).as_posix() for p in faces.rglob("*.png"))
    lines = [
        f"{a},{b},{int(Path(a).parent == Path(b).parent)}" for i, a in enumerate(paths) for b in paths[:i]
    ]
    (folder / "pairs.csv").write_text("\n".join(["path_a,path_b,same", *lines]))
    return folder


def measured(work: Path, out: Path, **given: Any) -> Any:
    options = {"images": work / "faces", "pairs": work / "pairs.csv", "bootstrap": 0}
    return evaluate(str(given.pop("model", work / "model")), out=out, **{**options, **given})


def test_one_photograph_under_two_names_is_named(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = measured(work, tmp_path)
    (found,) = report.overlap.within
    assert (found.person_a, found.person_b) == ("Joseph_Blatter", "Sepp_Blatter")
    assert found.path_a.startswith("Joseph_Blatter/")
    assert found.path_b.startswith("Sepp_Blatter/")
    assert found.same_photograph
    assert not found.same_spelling
    assert report.overlap.threshold is None  # the model has none
    assert report.overlap.training is None
    words = " ".join(capsys.readouterr().out.split())
    assert "note: probably one person under two names: Joseph_Blatter and Sepp_Blatter; look at them" in words
    read = json.loads((tmp_path / "report.json").read_text())["overlap"]
    assert [(one["person_a"], one["person_b"]) for one in read["within"]] == [
        ("Joseph_Blatter", "Sepp_Blatter")
    ]
    page = (tmp_path / "report.html").read_text()
    assert "Probably one person under two names; the figures count them all the same" in page

    # a warning changes no figure: the pair still counts as an impostor pair
    assert report.verification.impostor_pairs == 40
    known = tmp_path / "known.csv"
    rows = [line.split(",") for line in (work / "pairs.csv").read_text().splitlines()]
    for row in rows:
        if {Path(path).parent.name for path in row[:2]} == {"Joseph_Blatter", "Sepp_Blatter"}:
            row[2] = "1"
    known.write_text("\n".join(",".join(row) for row in rows))
    assert measured(work, tmp_path / "known", pairs=known).overlap.within == []  # the list says it itself


def test_training_people_are_found_by_face_and_by_name(work: Path, tmp_path: Path) -> None:
    training = tmp_path / "training"
    (training / "0001").mkdir(parents=True)
    (training / "annlee").mkdir()
    (training / "Bo").mkdir()
    photograph = sorted((work / "faces" / "Cy").iterdir())[1]
    shutil.copy(photograph, training / "0001" / "x.png")  # Cy under a number
    write_drawn_pairs(tmp_path / "others", 12, 1)
    others = sorted((tmp_path / "others" / "faces").rglob("*.png"))[10:]
    for name, path in zip(("annlee", "Bo"), others, strict=True):  # the names of two, another face
        shutil.copy(path, training / name / "y.png")
    report = measured(work, tmp_path / "out", trained_on=training)
    found = {(pair.person_a, pair.person_b): pair for pair in report.overlap.training}
    assert found.keys() == {("Cy", "0001"), ("Ann Lee", "annlee"), ("Bo", "Bo")}
    cy = found["Cy", "0001"]
    assert cy.same_photograph
    assert (cy.path_a, cy.path_b) == (f"Cy/{photograph.name}", "0001/x.png")
    assert all(found[names].same_spelling for names in (("Ann Lee", "annlee"), ("Bo", "Bo")))
    assert report.overlap.training_images == 3
    assert any(
        note.startswith("probably training people too: Cy and 0001, Ann Lee and annlee, Bo and Bo")
        for note in report.notes
    )

    # a model that keeps the names of its people: the others of the folder took no part
    model = Model.load(work / "model")
    model.config.training["people_hashed"] = hashed_names(["Bo", "Zoe"])
    model.save(tmp_path / "model")
    report = measured(work, tmp_path / "out", model=tmp_path / "model", trained_on=training)
    assert [(pair.person_a, pair.person_b) for pair in report.overlap.training] == [("Bo", "Bo")]
    assert report.overlap.training_images == 1
    model.config.training["people_hashed"] = hashed_names(["Zoe"])
    model.save(tmp_path / "model")
    with pytest.raises(OamlError, match="training: none of its people took part in the model's training"):
        measured(work, tmp_path / "new", model=tmp_path / "model", trained_on=training)
    assert not (tmp_path / "new").exists()


def drawn_faces(work: Path) -> tuple[Model, Faces]:
    from oaml.inference import extract

    model, people = Model.load(work / "model"), PeopleFolder(work / "faces")
    templates = extract(model, map(people.image, range(len(people))), len(people))
    return model, Faces(templates, [people.people[i] for i in people.labels], people.names)


def test_a_threshold_names_all_pairs_that_reach_it_and_no_other(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against all pairs, when every image under another name is near enough to be compared."""
    from oaml.inference import score_pairs

    monkeypatch.setattr(overlap, "NEAREST", 100)
    monkeypatch.setattr(overlap, "BLOCK", 3)
    model, faces = drawn_faces(work)
    a, b = np.triu_indices(len(faces.paths), 1)
    fused = score_pairs(model, faces.templates, a, faces.templates, b)["fused"]
    best: dict[tuple[str, str], float] = {}
    for i, j, score in zip(a, b, fused, strict=True):
        names = (faces.people[i], faces.people[j])
        if names[0] != names[1]:
            best[names] = max(best.get(names, -np.inf), score)
    middle = float(np.median([*best.values()]))
    model.config.thresholds = {"1e-06": middle}
    found = find_overlap(model, faces)
    assert (found.threshold, found.threshold_stored) == (middle, True)
    expected = {names: score for names, score in best.items() if score >= middle}
    assert {(p.person_a, p.person_b): p.score for p in found.within} == pytest.approx(expected)
    assert 1 < len(expected) < len(best)
    scores = [pair.score or 0.0 for pair in found.within]
    assert scores == sorted(scores, reverse=True)


def test_of_a_large_set_a_part_is_looked_at_and_that_is_said(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "LIMIT", 4)
    model, faces = drawn_faces(work)
    found = find_overlap(model, faces, trained_on=PeopleFolder(work / "faces"), seed=1)
    assert (found.images, found.images_left_out) == (4, 6)
    assert (found.training_images, found.training_images_left_out) == (4, 6)
    assert find_overlap(model, faces, trained_on=PeopleFolder(work / "faces"), seed=1) == found
    said = overlap.notes(found)
    assert any("looked for among 4 images, by chance; 6 were left out" in note for note in said)
    assert any("looked for among 4 training images, by chance; 6 were left out" in note for note in said)


def test_the_threshold_of_a_small_rate() -> None:
    stored = {"0.01": 1.0, "0.001": 4.0, "0.0001": 6.0}
    assert threshold_at(stored, 1e-4) == (6.0, True)
    value, known = threshold_at(stored, 1e-6)
    assert value == pytest.approx(10.0)  # two a decade, as between the last two
    assert not known
    assert threshold_at({"0.001": 4.0}, 1e-6) == (None, False)
    assert threshold_at({**stored, "1e-06": 9.0}, 1e-6) == (9.0, True)
    value, _ = threshold_at({**stored, "1e-05": float("inf")}, 1e-6)  # fitted on too few pairs
    assert value == pytest.approx(10.0)


def test_names_by_another_spelling(work: Path) -> None:
    model, faces = drawn_faces(work)
    names = {
        "Ann Lee": "ImranKhan",
        "Bo": "imran_khan",
        "Cy": "Renée",
        "Joseph_Blatter": "Renee.",
        "Sepp_Blatter": "7",
    }
    renamed = Faces(faces.templates, [names[name] for name in faces.people], faces.paths)
    found = {(p.person_a, p.person_b): p for p in find_overlap(model, renamed).within}
    assert {key for key, pair in found.items() if pair.same_spelling} == {
        ("ImranKhan", "imran_khan"),
        ("Renee.", "Renée"),
    }
