"""Quality of a picture: what it lacks, on pictures that are spoiled in one way; and where it is stored, said and warned of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.gallery import gallery as module
from oaml.gallery.gallery import Gallery
from oaml.main import main
from oaml.photographs.align import STANDARD_LANDMARKS
from oaml.photographs.looks import Face
from oaml.recognition.quality import BASE, PARTS, Quality, halvings, lacks, quality_of, turn
from oaml.recognition.recognise import Recogniser
from oaml.template import Templates

pytestmark = pytest.mark.usefixtures("one_thread")
TYPICAL = {"norm": 8.0, "agreement": 1.0}


def template(shows: float = 1.0, norm: float = 8.0, agreement: float = 1.0) -> Templates:
    """All cells point one way, but for a share of pairs that cancel out."""
    cells = torch.zeros(1, 49, 4)
    cells[..., 0] = 1
    opposed = round(49 * (1 - agreement) / 2)
    cells[:, :opposed, 0] = -1
    return Templates(
        embedding=torch.tensor([[1.0, 0, 0, 0]]),
        norm=torch.tensor([norm]),
        visibility=torch.full((1, 1, 7, 7), shows),
        local=torch.zeros(1, 2, 7, 7),
        cell_embeddings=cells,
    )


def only_eyes_hidden() -> Templates:
    made = template()
    made.visibility[:, :, 2:4] = 0
    return made


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Sharp, bright and rich in contrast: noise of two levels."""
    rng = np.random.default_rng(0)
    return np.repeat(rng.choice([60, 200], (112, 112, 1)), 3, 2).astype(np.uint8)


def face(eyes: float = 35.0, turned: float = 0.0) -> Face:
    landmarks = STANDARD_LANDMARKS.copy()
    across = landmarks[1] - landmarks[0]
    landmarks[2] = (landmarks[:2].mean(0) + landmarks[3:].mean(0)) / 2 + turned * across
    landmarks *= eyes / float(np.linalg.norm(across))
    return Face(np.array([0, 0, 112, 112.0]), landmarks, 0.9)


def test_a_good_picture_lacks_nothing(picture: np.ndarray) -> None:
    missing = lacks(picture, template(), face(), TYPICAL)
    assert missing == pytest.approx(dict.fromkeys(PARTS, 0.0), abs=1e-6)
    good = quality_of(picture, template(), face(), TYPICAL)
    assert (good.value, good.reasons) == (pytest.approx(1 / (1 + math.exp(-BASE))), ())
    assert quality_of(picture, template(), None, {}) == good  # size and network unknown


@pytest.mark.parametrize(
    ("reason", "lack", "made"),
    [
        ("occluded", 0.5, lambda picture: (picture, template(shows=0.5), face())),
        ("eyes hidden", 1.0, lambda picture: (picture, only_eyes_hidden(), face())),
        ("small", 1.0, lambda picture: (picture, template(), face(eyes=17.5))),
        ("turned", 0.5, lambda picture: (picture, template(), face(turned=0.5))),
        ("dark", math.log2(90 / 32.5), lambda picture: (picture // 4, template(), face())),
        ("unclear", 1.0, lambda picture: (picture, template(norm=4.0), face())),
        ("incoherent", math.log2(49 / 25), lambda picture: (picture, template(agreement=25 / 49), face())),
    ],
)
def test_each_lack_by_hand(picture: np.ndarray, reason: str, lack: float, made) -> None:
    crop, faces, place = made(picture)
    missing = lacks(crop, faces, place, TYPICAL)
    assert missing[reason] == pytest.approx(lack, abs=0.02)
    found = quality_of(crop, faces, place, TYPICAL)
    assert reason in found.reasons
    logit = BASE - sum(PARTS[name].weight * value for name, value in missing.items())
    assert found.value == pytest.approx(1 / (1 + math.exp(-logit)))


def test_blur_and_grey_are_seen(picture: np.ndarray) -> None:
    face_of = draw_face(1, 0)
    sharp, blurred = (
        lacks(x, template(), None, {})["blurred"] for x in (face_of, cv2.GaussianBlur(face_of, (0, 0), 2.5))
    )
    assert blurred > sharp + 1
    dull = (picture.astype(float) * 0.05 + 120).astype(np.uint8)  # deviation 70 -> 3.5
    missing = lacks(dull, template(), None, {})
    assert missing["of little contrast"] == pytest.approx(math.log2(40 / 3.5), abs=0.1)
    assert missing["blurred"] == 0  # edges are weak with the contrast


def test_the_network_is_named_only_where_the_picture_says_nothing(picture: np.ndarray) -> None:
    found = quality_of(picture, template(shows=0.3, norm=2.0), face(), TYPICAL)
    assert found.reasons == ("occluded", "eyes hidden")
    assert found.value < quality_of(picture, template(shows=0.3), face(), TYPICAL).value


def test_brightness_is_that_of_what_shows(picture: np.ndarray) -> None:
    half = picture.copy()
    half[56:] = 0  # a black cloth
    seen = template()
    seen.visibility[:, :, 4:] = 0
    missing = lacks(half, seen, None, {})
    assert missing["dark"] == pytest.approx(0, abs=0.15)
    assert lacks(half, template(), None, {})["dark"] > 0.4


def test_a_turned_head_by_hand() -> None:
    front = np.array([[0, 0], [10, 0], [5, 5], [1, 10], [9, 10.0]])
    assert turn(front) == 0
    front[2, 0] = 8
    assert turn(front) == pytest.approx(0.3)
    quarter = front @ np.array([[0, 1], [-1, 0]])  # the head tilted, not turned more
    assert turn(quarter) == pytest.approx(0.3)
    assert halvings(8, 2) == 2
    assert halvings(8, 9) == 0
    assert halvings(8, 0) == 10


def test_words() -> None:
    assert str(Quality(0.316, ("blurred", "dark"))) == "0.32 of 1: blurred, dark"
    assert str(Quality(0.9)) == "0.90 of 1"
    assert Quality(0.5, ("dark",)).to_dict() == {"value": 0.5, "reasons": ["dark"]}
    assert Quality.stored(0.5, "of little contrast, dark") == Quality(0.5, ("of little contrast", "dark"))
    assert Quality.stored(0.5, "") == Quality(0.5)
    assert Quality.stored(None, None) is None


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Ann sharp and blurred, Bela sharp."""
    for name in ("Ann", "Bela"):
        (tmp_path / "people" / name).mkdir(parents=True)
    Image.fromarray(draw_face(1, 0)).save(tmp_path / "people" / "Ann" / "good.png")
    poor = cv2.GaussianBlur(draw_face(1, 1), (0, 0), 4)
    Image.fromarray(poor).save(tmp_path / "people" / "Ann" / "poor.png")
    Image.fromarray(draw_face(2, 0)).save(tmp_path / "people" / "Bela" / "good.png")
    return tmp_path / "people"


def test_a_gallery_keeps_and_lists_quality(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb")
    monkeypatch.setattr("oaml.photographs.usable.LEAST_USABLE", 0.0)
    small_model(thresholds={"0.001": 5.0}).save(tmp_path / "m")
    monkeypatch.setattr("oaml.recognition.quality.POOR", 0.99)  # the gallery reads it when it adds
    path = str(tmp_path / "g")
    assert main(["enroll", str(people), "--gallery", path, "--model", str(tmp_path / "m")]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(warned) == 3  # one line a picture, and enrolled all the same
    (line,) = (line for line in warned if "poor.png" in line)
    assert "blurred" in line
    assert "enrolled, though its quality is 0." in line

    opened = Gallery(path)
    images = {Path(image.source).name: image for image in opened.images() if image.person == "Ann"}
    good, poor = images["good.png"].quality, images["poor.png"].quality
    assert good is not None
    assert poor is not None
    assert poor.value < good.value
    assert "blurred" in poor.reasons
    ann, _ = opened.people()
    assert (ann.best, ann.worst) == (good.value, poor)

    assert main(["gallery", path, "--list"]) == 0
    listed = capsys.readouterr().out
    assert f"{poor.value:.2f} to {good.value:.2f}" in listed
    assert "pictures" in listed
    assert main(["gallery", path, "--list", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["people"][0]["worst"] == poor.to_dict()
    assert {Path(i["source"]).name for i in said["images"]} == {"good.png", "poor.png"}

    probe = str(people / "Ann" / "poor.png")
    ask = ["search", probe, "--gallery", path, "--model", str(tmp_path / "m")]
    assert main([*ask, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["faces"][0]["quality"]
    assert found == {"value": pytest.approx(poor.value), "reasons": list(poor.reasons)}
    assert main(ask) == 0
    assert f"quality of the picture: {poor}" in capsys.readouterr().out

    opened.export(tmp_path / "copy.safetensors")
    again = Gallery(tmp_path / "again")
    again.import_(tmp_path / "copy.safetensors")
    assert again.images() == opened.images()


def test_older_galleries_and_exports_list_a_dash(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a gallery whose table and whose export have no such columns."""
    pytest.importorskip("lancedb")
    monkeypatch.setattr("oaml.photographs.usable.LEAST_USABLE", 0.0)
    from oaml.gallery import rows

    whole = rows.schema

    def before(packing):
        schema = whole(packing)
        return schema.remove(schema.get_field_index("quality")).remove(
            schema.remove(schema.get_field_index("quality")).get_field_index("reasons")
        )

    with monkeypatch.context() as patch:
        patch.setattr(module, "create", _create_with(before))
        old = Gallery(tmp_path / "old", Recogniser(small_model(thresholds={"0.001": 5.0})))
        old.enroll_folder(people, label=None)
    assert [image.quality for image in old.images()] == [None] * 3
    assert old.people()[0].worst is None
    old.enroll("Cleo", draw_face(3, 0))  # more can be added
    assert main(["gallery", str(tmp_path / "old"), "--list"]) == 0
    assert " - " in capsys.readouterr().out
    old.export(tmp_path / "old.safetensors")
    new = Gallery(tmp_path / "new")
    new.import_(tmp_path / "old.safetensors")
    assert [image.quality for image in new.images()] == [None] * 4


def _create_with(schema):
    def create(store, packing, model, model_name) -> None:
        facts = {"model": model, "model_name": model_name, "packing": packing.to_list()}
        store.create(schema(packing), {"format": module.GALLERY_FORMAT, **facts})

    return create


def test_verify_says_the_quality_of_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_model(thresholds={"0.001": 5.0}).save(tmp_path / "m")
    Image.fromarray(draw_face(1, 0)).save(tmp_path / "a.png")
    Image.fromarray(cv2.GaussianBlur(draw_face(1, 1), (0, 0), 3)).save(tmp_path / "b.png")
    ask = ["verify", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(tmp_path / "m")]
    assert main([*ask, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["quality_b"]["value"] < said["quality_a"]["value"]
    assert "blurred" in said["quality_b"]["reasons"]
    assert main(ask) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"quality {said['quality_b']['value']:.2f} of 1: " in shown
