"""`oaml enroll` with one picture of a named person, and people of whom no picture could be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.main import main

pytest.importorskip("lancedb")
pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = ("--gallery", "g", "--model", "m")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_model(1.0, thresholds={"0.001": 9.5}).save(tmp_path / "m")
    for number, person in enumerate(("Ann", "Bob")):
        (tmp_path / "db" / person).mkdir(parents=True)
        Image.fromarray(draw_face(number, 0)).save(tmp_path / "db" / person / "0.png")
    Image.fromarray(draw_face(2, 0)).save("cy.png")
    return tmp_path


def people(capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    capsys.readouterr()
    assert main(["gallery", "g", "--json"]) == 0
    return {person["name"]: person["faces"] for person in json.loads(capsys.readouterr().out)["people"]}


def test_one_picture_is_added_to_a_named_person(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enroll", "cy.png", "--name", "Cy", *OPTIONS]) == 0
    assert "1 images added" in capsys.readouterr().out
    assert main(["enroll", "db", *OPTIONS]) == 0  # takes nobody away whom it did not bring
    assert people(capsys) == {"Ann": 1, "Bob": 1, "Cy": 1}


def test_a_picture_needs_a_name_and_a_folder_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enroll", "cy.png", *OPTIONS]) == 1
    assert "cy.png: is one picture; say who it is with --name" in capsys.readouterr().err
    assert main(["enroll", "db", "--name", "Cy", *OPTIONS]) == 1
    assert "db: is a folder, and --name is for one picture" in capsys.readouterr().err
    assert not Path("g").exists()


def test_people_without_a_usable_picture_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "db" / "Eve").mkdir()
    Image.fromarray(np.zeros((112, 112, 3), np.uint8)).save(here / "db" / "Eve" / "0.png")
    (here / "db" / "Ann" / "broken.png").write_bytes(b"no image")  # Ann has another
    assert main(["enroll", "db", *OPTIONS, "--aligned"]) == 0
    assert "no usable picture of 1 person, who can't be known: Eve" in capsys.readouterr().err
    assert main(["enroll", "db", *OPTIONS, "--aligned", "--strict"]) == 1
    assert "no usable picture of 1 person, who can't be known: Eve" in capsys.readouterr().err
    assert people(capsys) == {"Ann": 1, "Bob": 1}


def test_deleting_and_renaming_say_what_the_folder_will_undo(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enroll", "db", *OPTIONS]) == 0
    assert main(["enroll", "cy.png", "--name", "Cy", *OPTIONS]) == 0
    capsys.readouterr()
    assert main(["gallery", "g", "--rename", "Ann", "Anna"]) == 0
    note = f"note: {here / 'db'}: enrolled again, this folder will bring the old name back; rename their folder to Anna"
    assert note in capsys.readouterr().err
    assert main(["gallery", "g", "--delete", "Bob"]) == 0
    assert f"note: {here / 'db'}: enrolled again, this folder will bring them back" in capsys.readouterr().err
    assert main(["gallery", "g", "--delete", "Cy"]) == 0  # came alone
    assert "bring" not in capsys.readouterr().err
    (here / "db" / "Ann" / "0.png").unlink()
    assert main(["gallery", "g", "--delete", "Anna"]) == 0  # its file is gone
    assert "bring" not in capsys.readouterr().err
