"""Recognition images: a folder per person, drawn people, and the split by person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oaml.datasets.people import DrawnFolder, PeopleFolder, split_name
from oaml.errors import OamlError


def saved(path: Path, level: int = 0, size: int = 112) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(path)
    return path


def test_a_folder_per_person(tmp_path: Path) -> None:
    for number, name in enumerate(("bob/2.png", "bob/1.png", "ann/x.jpg", "cy/a.bmp")):
        saved(tmp_path / name, 40 * number)
    (tmp_path / "nobody").mkdir()
    (tmp_path / "text_only").mkdir()
    (tmp_path / "text_only" / "notes.txt").touch()
    saved(tmp_path / "loose.png")  # belongs to no person
    saved(tmp_path / "ann" / "deeper" / "y.png")  # one level only
    people = PeopleFolder(tmp_path)
    assert people.people == ["ann", "bob", "cy"]
    assert people.labels.tolist() == [0, 1, 1, 2]
    assert people.names == ["ann/x.jpg", "bob/1.png", "bob/2.png", "cy/a.bmp"]
    assert people.files == [str(tmp_path / name) for name in people.names]
    assert len(people) == 4
    assert [int(people.image(i)[0, 0, 0]) for i in range(4)] == [80, 40, 0, 120]


def test_labels_count_the_chosen_people_only(tmp_path: Path) -> None:
    for name in "abcd":
        saved(tmp_path / name / "1.png")
    people = PeopleFolder(tmp_path, use=lambda name: name in "bd")
    assert (people.people, people.labels.tolist()) == (["b", "d"], [0, 1])


def test_folders_without_people(tmp_path: Path) -> None:
    saved(tmp_path / "loose.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OamlError, match="no people") as caught:
        PeopleFolder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(OamlError, match="no such folder"):
        PeopleFolder(tmp_path / "gone")
    saved(tmp_path / "ann" / "1.png")
    with pytest.raises(OamlError, match="no people"):
        PeopleFolder(tmp_path, use=lambda name: False)


def test_images_are_read_when_asked_for(tmp_path: Path) -> None:
    saved(tmp_path / "ann" / "1.png", size=100)
    (tmp_path / "ann" / "2.png").write_text("no image")
    people = PeopleFolder(tmp_path)
    with pytest.raises(OamlError, match=r"1\.png: is 100x100"):
        people.image(0)
    with pytest.raises(OamlError, match=r"2\.png"):
        people.image(1)
    assert PeopleFolder(tmp_path, resize=True).image(0).shape == (112, 112, 3)


def test_split_never_changes() -> None:
    """Last digits of the sha1 of each name, computed apart: Alice 3, drawn_0000 6, Carol 7, y 8, a person may
    never change sides."""
    pinned = {
        "Alice": 3,
        "Bob": 2,
        "a b": 3,
        "drawn_0000": 6,
        "drawn_0001": 0,
        "Jürgen": 6,
        "Carol": 7,
        "y": 8,
    }
    for name, digit in pinned.items():
        assert split_name(name) == ("train" if digit < 7 else "calibrate" if digit == 7 else "report")


def test_split_shares() -> None:
    names = [split_name(f"person {i}") for i in range(5000)]
    for split, share in (("train", 0.7), ("calibrate", 0.1), ("report", 0.2)):
        assert names.count(split) / 5000 == pytest.approx(share, abs=0.025)


def test_drawn_people() -> None:
    people = DrawnFolder(3, 2, seed=5)
    assert people.people == ["drawn_0000", "drawn_0001", "drawn_0002"]
    assert people.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(people) == len(people.names) == len(set(people.names)) == 6
    images = [people.image(i) for i in range(6)]
    assert all(image.shape == (112, 112, 3) and image.dtype == np.uint8 for image in images)
    assert all(not np.array_equal(images[i], images[j]) for i in range(6) for j in range(i))
    again = DrawnFolder(3, 2, seed=5)
    assert np.array_equal(again.image(4), images[4])  # in any order
    assert not np.array_equal(DrawnFolder(3, 2, seed=6).image(4), images[4])


def test_drawn_person_is_the_same_in_a_split() -> None:
    everybody = DrawnFolder(4, 2)
    some = DrawnFolder(4, 2, use=lambda name: name.endswith(("1", "3")))
    assert some.people == ["drawn_0001", "drawn_0003"]
    assert some.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(some.image(3), everybody.image(7))
    assert some.names[3] == some.files[3] == everybody.names[7]
    with pytest.raises(OamlError, match="draw more"):
        DrawnFolder(2, 2, use=lambda name: False)
