"""Drawn people: reproducible, different from each other, and not to be told apart by pixels or colours."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oaml.datasets.drawn import DrawnPeople, draw_face, write
from oaml.errors import OamlError
from oaml.support.files import read_image
from oaml.support.folders import list_images


@pytest.fixture(scope="module")
def crowd() -> DrawnPeople:
    drawn = DrawnPeople(36, 5, seed=2)
    drawn.render()
    return drawn


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a pair of one person scores above a pair of two, ties counted half."""
    pair = np.triu(np.ones_like(scores, bool), 1)
    same = labels[:, None] == labels[None]
    positive, negative = scores[pair & same], np.sort(scores[pair & ~same])
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / 2 / len(negative))


@settings(max_examples=40, deadline=None)
@given(person=st.integers(0, 10**6), shot=st.integers(0, 10**6), seed=st.integers(0, 2**32))
def test_any_face_is_a_picture(person: int, shot: int, seed: int) -> None:
    image = draw_face(person, shot, seed)
    assert image.shape == (112, 112, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.std() > 1
    assert (draw_face(person, shot, seed) == image).all()


def test_same_numbers_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib\n"
        "from oaml.datasets.drawn import DrawnPeople\n"
        "print(hashlib.sha256(DrawnPeople(4, 4, 7).render().tobytes()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert hashlib.sha256(DrawnPeople(4, 4, 7).render().tobytes()).hexdigest() == other


def test_person_shot_and_seed_all_matter(crowd: DrawnPeople) -> None:
    assert len({image.tobytes() for image in crowd.render()}) == len(crowd)
    faces = [
        draw_face(*numbers) for numbers in ((1, 2, 3), (2, 1, 3), (1, 3, 2), (3, 2, 1), (0, 0, 0), (0, 0, 1))
    ]
    assert len({image.tobytes() for image in faces}) == len(faces)


def test_faces_lie_on_the_template(crowd: DrawnPeople) -> None:
    # Eyes are what is darkest along the rows of the eyes, on average over many people.
    grey = crowd.render().astype(np.float32).mean(axis=(0, 3))
    eyes = grey[48:55].mean(axis=0)
    assert abs(int(eyes[28:50].argmin()) + 28 - 38.3) < 5
    assert abs(int(eyes[62:84].argmin()) + 62 - 73.5) < 5
    assert 88 <= int(grey[82:100, 48:64].mean(axis=1).argmin()) + 82 <= 97


def test_pixels_and_colours_do_not_tell_people_apart(crowd: DrawnPeople) -> None:
    images, labels = crowd.render(), crowd.labels
    pixels = images[:, ::2, ::2].reshape(len(images), -1).astype(np.float32)
    for vectors in (pixels, pixels - pixels.mean(axis=1, keepdims=True), pixels - pixels.mean(axis=0)):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert 0.5 < auc(unit @ unit.T, labels) < 0.72
    colours = np.stack([cv2.calcHist([i], [0, 1, 2], None, [6] * 3, [0, 256] * 3).ravel() for i in images])
    roots = np.sqrt(colours / colours.sum(axis=1, keepdims=True))
    assert auc(roots @ roots.T, labels) < 0.68
    skin = images[:, 60:80, 35:77].reshape(len(images), -1, 3).mean(axis=1)
    assert auc(-np.linalg.norm(skin[:, None] - skin[None], axis=2), labels) < 0.72


@pytest.mark.parametrize("rows", [slice(28, 60), slice(64, 108)], ids=["eyes", "lower face"])
def test_both_halves_tell_something(crowd: DrawnPeople, rows: slice) -> None:
    # Fine detail, free of light and colour, beats chance in the upper and in the lower half alone.
    grey = crowd.render().astype(np.float32).mean(axis=3)
    detail = np.stack([cv2.GaussianBlur(g, (0, 0), 1.0) - cv2.GaussianBlur(g, (0, 0), 4.0) for g in grey])
    part = (detail - detail.mean(axis=0))[:, rows, 20:92].reshape(len(grey), -1)
    unit = part / np.linalg.norm(part, axis=1, keepdims=True)
    assert 0.55 < auc(unit @ unit.T, crowd.labels) < 0.85


def test_set_of_people() -> None:
    drawn = DrawnPeople(3, 2, seed=1, first_person=10)
    assert len(drawn) == 6
    assert drawn.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert drawn.names[3] == "drawn_0011/shot_001"
    before = [drawn[index] for index in range(6)]
    rendered = drawn.render()
    assert rendered is drawn.render()
    for index, (image, label) in enumerate(before):
        assert label == drawn.labels[index]
        assert (image == rendered[index]).all()
        assert (drawn[index][0] == image).all()
    assert (before[3][0] == draw_face(11, 1, 1)).all()
    assert (drawn[-1][0] == rendered[5]).all()
    drawn[0][0][:] = 0  # a caller's copy is its own
    assert (drawn[0][0] == before[0][0]).all()
    with pytest.raises(IndexError):
        drawn[6]


def test_wrong_numbers_are_refused() -> None:
    for wrong in ((-1, 0, 0), (0, -1, 0), (0, 0, -1)):
        with pytest.raises(OamlError, match="start at 0"):
            draw_face(*wrong)
    with pytest.raises(OamlError, match="at least 1"):
        DrawnPeople(0, 3)
    with pytest.raises(OamlError, match="at least 1"):
        DrawnPeople(3, 0)
    with pytest.raises(OamlError, match="start at 0"):
        DrawnPeople(1, 1, first_person=-1)


def test_written_folder(tmp_path: Path) -> None:
    write(tmp_path / "people", 2, 3, seed=4)
    found = [p.relative_to(tmp_path / "people").as_posix() for p in list_images(tmp_path / "people")]
    assert found == [f"drawn_{person:04d}/shot_{shot:03d}.png" for person in range(2) for shot in range(3)]
    assert (read_image(tmp_path / "people" / found[4]) == draw_face(1, 1, 4)).all()
    with pytest.raises(OamlError, match="not an empty folder"):
        write(tmp_path / "people", 2, 3)
