"""A crop that shows no usable face is refused, and drawn people are not, whatever occludes them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.main import main
from oaml.occluders import KINDS, occlude
from oaml.photographs.usable import LEAST_USABLE, usable, usable_each
from oaml.recognition import decision
from oaml.recognition.recognise import Recogniser

pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(0)
BLACK = np.zeros((112, 112, 3), np.uint8)


def rows_left(face: np.ndarray) -> np.ndarray:
    """All but 12 rows at the bottom black."""
    left = face.copy()
    left[:-12] = 0
    return left


def reduced(face: np.ndarray, side: int = 4) -> np.ndarray:
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR)


def letters() -> np.ndarray:
    page = np.full((112, 112, 3), 230, np.uint8)
    for y in range(20, 112, 24):
        cv2.putText(page, "Sphinx of quartz", (-4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (20, 20, 20), 2)
    return page


NOTHING = {
    "black": BLACK,
    "white": np.full_like(BLACK, 255),
    "red": BLACK + np.array((200, 30, 20), np.uint8),
    "noise": RNG.integers(0, 256, BLACK.shape).astype(np.uint8),
    "wall": (np.linspace(90, 180, 112)[None, :, None] + RNG.normal(0, 2, BLACK.shape)).astype(np.uint8),
    "text": letters(),
    "4 % of the brightness": np.rint(draw_face(1, 0) * 0.04).astype(np.uint8),
    "4x4 pixels": reduced(draw_face(1, 0)),
    "all but 12 rows hidden": rows_left(draw_face(1, 0)),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_shows_no_face_is_refused(name: str) -> None:
    assert usable(NOTHING[name]) < LEAST_USABLE


def test_drawn_people_are_accepted_unoccluded_and_occluded() -> None:
    faces = [draw_face(person, shot) for person in range(1, 13) for shot in range(2)]
    assert all(usable(face) >= LEAST_USABLE for face in faces)
    rng = np.random.default_rng(1)
    occluded = [occlude(face, kind, rng).image for face in faces[::4] for kind in KINDS]
    assert np.mean([usable(face) < LEAST_USABLE for face in occluded]) <= 0.03
    assert all(usable(reduced(face, 38)) >= LEAST_USABLE for face in faces)  # 12 pixels between the eyes


def test_a_crop_and_its_mirror_image_are_judged_alike() -> None:
    face = draw_face(3, 1)
    assert usable(face) == pytest.approx(usable(face[:, ::-1].copy()), abs=1e-5)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser(small_model(1.0, thresholds={"0.001": -99.0}))


def test_nothing_of_a_face_is_nobody(recogniser: Recogniser) -> None:
    """Two black squares have all in common, and so has a face with itself."""
    face = draw_face(1, 0)
    usual = recogniser.verify(face, face)
    assert usual.decision == "same person"
    for a, b, which in ((BLACK, BLACK, "first"), (face, BLACK, "second"), (BLACK, face, "first")):
        for threshold in (None, -1e9):
            answer = recogniser.verify(a, b, threshold=threshold)
            assert answer.decision == "no usable face"
            assert answer.reason.startswith(f"the {which} image shows no usable face: 0.")
            assert "a face has 0.5 or more" in answer.reason
            assert answer.remedy is not None
            assert "well-lit" in answer.remedy
            assert answer.sentence == f"No usable face: {answer.reason}"
            assert answer.to_dict().keys() == usual.to_dict().keys()


def test_a_face_that_is_just_usable_is_compared(
    recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = draw_face(1, 0)
    monkeypatch.setattr(decision, "usable", lambda crop: LEAST_USABLE)
    assert recogniser.verify(face, face).decision == "same person"
    below = float(np.nextafter(LEAST_USABLE, 0))
    monkeypatch.setattr(decision, "usable", lambda crop: below)
    assert recogniser.verify(face, face).decision == "no usable face"


def test_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(BLACK).save("cap.png")
    Image.fromarray(draw_face(1, 0)).save("a.png")
    assert main(["verify", "a.png", "cap.png", "--draw", "why.png"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("no usable face the second image shows no usable face")
    assert "take a sharp, well-lit photograph" in said
    assert main(["verify", "cap.png", "cap.png", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["decision"], answer["far"]) == ("no usable face", 0.001)


def test_frames_without_a_usable_face_do_not_count(recogniser: Recogniser, tmp_path: Path) -> None:
    face = draw_face(1, 0)
    for number, frame in enumerate((BLACK, face, reduced(face), face, NOTHING["noise"])):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    (track,) = recogniser.tracks(tmp_path)
    assert track.frames == [1, 3]
    assert recogniser.faces_of_frame(BLACK) is None


def test_a_lens_cap_is_nobody(
    recogniser: Recogniser,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lancedb.table")
    from oaml.gallery.gallery import Gallery

    gallery = Gallery(tmp_path / "g", recogniser)
    gallery.enroll("Ann", draw_face(1, 0))
    with pytest.raises(
        OamlError, match=r"shows no usable face: 0\.\d+ .*; take a sharp, well-lit photograph"
    ):
        gallery.enroll("Lens cap", [draw_face(2, 0), BLACK])
    assert [person.name for person in gallery.people()] == ["Ann"]
    (answer,) = gallery.search(BLACK, threshold=-1e9)
    assert (answer.decision, answer.person, answer.candidates) == ("no usable face", None, [])
    assert answer.remedy is not None
    (usual,) = gallery.search(draw_face(1, 0))
    assert (usual.decision, usual.person) == ("known person", "Ann")
    assert answer.to_dict().keys() == usual.to_dict().keys()

    for name, image in (("Ann/a", draw_face(1, 1)), ("Lens cap/b", BLACK), ("Wall/c", NOTHING["wall"])):
        (tmp_path / "people" / name).parent.mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "people" / f"{name}.png")
    changed = gallery.enroll_folder(tmp_path / "people", label=None)
    assert (changed.added, len(changed.left_out)) == (1, 2)
    assert all("shows no usable face" in line for line in changed.left_out)
    assert [person.name for person in gallery.people()] == ["Ann"]

    recogniser.model.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    asked = ["search", "people/Lens cap/b.png", "--gallery", "g", "--model", "model", "--draw", "why.png"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert said.startswith("no usable face\nthe image shows no usable face")
    assert "no picture: no usable face" in said


def test_many_crops_at_once_are_judged_as_one_by_one() -> None:
    crops = [draw_face(1, shot) for shot in range(3)] + [NOTHING[name] for name in list(NOTHING)[:2]]
    each = usable_each(crops * 14)  # more than one batch
    assert each[:5] == pytest.approx([usable(crop) for crop in crops], abs=1e-5)
    assert each[65:] == pytest.approx(each[:5], abs=1e-5)
    assert usable_each([]) == []
