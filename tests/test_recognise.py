"""The Python API: every kind of image says the same, several faces give an answer each, `import oaml` is light."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import drawn_detector
import oaml
from conftest import TwoFaces, group, small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.photographs.detect import Detector
from oaml.recognition.recognise import Recogniser

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made() -> Recogniser:
    training = {"thresholds_fitted_on": "12 pairs of drawn people"}
    return Recogniser(small_model(thresholds={"0.001": 7.0}, training=training), TwoFaces())  # type: ignore[arg-type]


def test_every_kind_of_image_says_the_same(made: Recogniser, tmp_path: Path) -> None:
    face = Image.fromarray(draw_face(1, 0))
    face.save(tmp_path / "a.png")
    kinds = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        (tmp_path / "a.png").read_bytes(),
        draw_face(1, 0),
        face,
    ]
    first = made.represent(kinds[0])  # type: ignore[arg-type]
    together = made.represent(kinds)  # type: ignore[arg-type]
    for row in range(len(kinds)):
        assert torch.equal(together.cell_embeddings[row], first.cell_embeddings[0])
        assert torch.equal(together.embedding[row], first.embedding[0])


def test_colours_are_rgb_and_images_are_not_changed(made: Recogniser) -> None:
    rgb = draw_face(1, 0)
    before = rgb.copy()
    swapped = made.represent([rgb, np.ascontiguousarray(rgb[..., ::-1])])
    assert not torch.allclose(swapped.embedding[0], swapped.embedding[1])
    picture = Image.fromarray(rgb)
    picture.getexif()[0x0112] = 6  # to be turned
    turned = made.align(picture)[0]
    assert not np.array_equal(turned, before)
    assert np.array_equal(np.asarray(picture), before)
    assert np.array_equal(rgb, before)


def test_several_faces_get_an_answer_each(made: Recogniser) -> None:
    both, alone = group(1, 2), draw_face(2, 0)
    assert [face.box[0] for face in made.detect(both)] == [10, 160]
    crops = made.align(both)
    off = [np.abs(crops[0].astype(int) - draw_face(person, 0))[20:-20, 20:-20].mean() for person in (1, 2)]
    assert off[0] < 0.6 * off[1]  # moved a little: a drawn face is none of those that the refiner knows
    answers = made.verify_all(both, alone)
    assert len(answers) == 2
    assert answers[0].to_dict() == made.verify(both, alone).to_dict()
    assert answers[1].score == pytest.approx(made.verify(crops[1], alone).score, abs=1e-4)
    assert answers[1].score > answers[0].score  # it is the same image
    assert answers[0].face_a is not None
    assert answers[0].face_b is None


def test_answers_are_plain_data_and_name_their_threshold(made: Recogniser) -> None:
    said = json.loads(json.dumps(made.verify(group(1, 2), draw_face(1, 0)).to_dict(), allow_nan=False))
    assert said["face_a"]["box"] == [10.0, 10.0, 112.0, 112.0]
    assert said["face_b"] is None
    assert (said["threshold"], said["threshold_from"], said["far"]) == (7.0, "model", 0.001)
    assert said["fitted_on"] == "12 pairs of drawn people"
    own = made.verify(draw_face(1, 0), draw_face(2, 0), threshold=0)
    assert (own.threshold, own.threshold_from, own.far) == (0, "user", None)
    assert own.decision == ("same person" if own.score >= 0 else "different people")


def test_scores_are_symmetric(made: Recogniser) -> None:
    a, b = draw_face(1, 0), draw_face(2, 1)
    assert made.verify(a, b).score == pytest.approx(made.verify(b, a).score, abs=1e-4)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((112, 112), np.uint8), "uint8"),
        (np.zeros((112, 112, 3), np.float32), "float32"),
        (np.zeros((112, 112, 4), np.uint8), "112, 4"),
        (np.zeros((0, 112, 3), np.uint8), "0, 112"),
        (b"no image", "the image"),
        ("nowhere.png", "nowhere.png: no such image"),
        (np.zeros((90, 90, 3), np.uint8), "no face found"),
    ],
)
def test_bad_images_are_named(image: object, named: str, made: Recogniser) -> None:
    for ask in (made.represent, made.align, lambda x: made.verify(draw_face(1, 0), x)):
        with pytest.raises(OamlError, match=named):
            ask(image)  # type: ignore[arg-type]


def test_what_is_missing_is_said(made: Recogniser) -> None:
    blind = Recogniser(made.model)
    with pytest.raises(OamlError, match="oaml download yunet"):
        blind.detect(draw_face(1, 0))
    with pytest.raises(OamlError, match="oaml download yunet"):
        blind.represent(group(1, 2))
    with pytest.raises(OamlError, match="no images"):
        made.represent([])
    with pytest.raises(OamlError, match=r"no threshold at FAR 0\.01; it has 0\.001"):
        made.verify(draw_face(1, 0), draw_face(2, 0), far=0.01)
    for bad in (math.nan, math.inf):
        with pytest.raises(OamlError, match="finite"):
            made.verify(draw_face(1, 0), draw_face(2, 0), threshold=bad)
    with pytest.raises(OamlError, match="nowhere"):
        oaml.load("nowhere")


def test_importing_oaml_is_light() -> None:
    code = "import sys, oaml; oaml.load; print('torch' in sys.modules, hasattr(oaml, 'nothing'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]


def test_bytes_of_a_file_are_turned_upright(made: Recogniser) -> None:
    stored = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(draw_face(1, 0)[::-1, ::-1].copy()).save(stored, "PNG", exif=exif)
    assert np.array_equal(made.align(stored.getvalue())[0], draw_face(1, 0))


@pytest.mark.parametrize("wrong", ["x", None, True, 0, 1, float("nan")])
def test_a_rate_that_is_none_is_named(wrong: Any) -> None:
    with pytest.raises(OamlError, match=r"far: .* is no share of pairs; give a number above 0 and below 1"):
        oaml.load().verify(draw_face(1, 0), draw_face(1, 1), far=wrong)


@pytest.mark.parametrize("wrong", ["y", float("inf")])
def test_a_threshold_that_is_none_is_named(wrong: Any) -> None:
    with pytest.raises(OamlError, match=r"threshold: .* is no score; give a finite number"):
        oaml.load().verify(draw_face(1, 0), draw_face(1, 1), threshold=wrong)


def test_threads_share_a_recogniser(made: Recogniser, tmp_path: Path) -> None:
    """Eight at a time, whole photographs to templates and scores, say what one thread says."""
    file = drawn_detector.write(tmp_path / "drawn.onnx")
    shared = Recogniser(made.model, Detector(file))
    photographs = []
    for person in range(8):
        scene = np.full((160 + 10 * person, 300 - 20 * person, 3), 127, np.uint8)
        scene[20:132, 15:127] = drawn_detector.mark(draw_face(person, 0))
        photographs.append(scene)

    def answer(person: int) -> tuple[list[float], float]:
        (face,) = shared.detect(photographs[person])
        other = photographs[(person + 1) % 8]
        return face.landmarks.ravel().tolist(), shared.verify(photographs[person], other).score

    alone = [answer(person) for person in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, [*range(8)] * 3))
    for (landmarks, score), (expected, single) in zip(together, alone * 3, strict=True):
        assert landmarks == expected
        assert score == pytest.approx(single, abs=1e-4)


def test_loading_a_model_leaves_the_compiler_alone() -> None:
    """PyTorch loads it where weights without numbers are initialised: that takes as long as loading all the rest."""
    code = "import sys, oaml; oaml.load(device='cpu'); print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "False"]


def test_known_faces_of_a_video_are_followed_and_new_ones_found(
    made: Recogniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(12):
        scene = np.full((200, 420, 3), 127, np.uint8)
        for person, (x, first) in enumerate(((10 + 3 * number, 0), (280, 6))):
            if number >= first:
                scene[40:152, x : x + 112] = drawn_detector.mark(draw_face(person, 0))
        Image.fromarray(scene).save(frames / f"{number:02d}.png")
    detector = Detector(drawn_detector.write(tmp_path / "drawn.onnx"))
    asked = []
    find = detector.find
    monkeypatch.setattr(detector, "find", lambda frame: asked.append(1) or find(frame))
    tracks = Recogniser(made.model, detector).tracks(frames)
    assert len(asked) == 3  # of frames 0, 5 and 10
    seen = sorted(
        (number, face.box[0])
        for track in tracks
        for number, face in zip(track.frames, track.faces, strict=True)
        if face
    )
    assert [number for number, x in seen if x < 150] == list(range(12))
    assert [number for number, x in seen if x > 150] == [
        10,
        11,
    ]  # a new one is found when all are looked for again
    left = [x for _, x in seen if x < 150]
    np.testing.assert_allclose(np.diff(left), 3, atol=1)
