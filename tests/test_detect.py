"""From a photograph to an aligned face: what is found, where it lies, and what is said when nothing is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import drawn_detector
from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.gallery import Gallery
from oaml.main import main
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import KINDS, occlude
from oaml.photographs import detect
from oaml.photographs.align import STANDARD_LANDMARKS, similarity, warp
from oaml.photographs.detect import LEAST_EYES, Detector, find_detector, ranked
from oaml.photographs.looks import Face
from oaml.photographs.subjects import align, find_subjects
from oaml.recognition.recognise import Recogniser
from oaml.support.files import read_photograph

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = Path(os.environ.get("OAML_SHARED") or Path(__file__).parents[2] / "shared")
YUNET = SHARED / "data" / "weights" / "yunet_n_320_320.onnx"
needs_yunet = pytest.mark.skipif(not YUNET.is_file(), reason=f"no detector: {YUNET} is not there")


@pytest.fixture(autouse=True)
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAML_HOME", str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    torch.manual_seed(0)
    config = ModelConfig(NetConfig("ir_mini", 16, occlusion_stage=3), thresholds={"0.001": 0.0})
    return Model(config).eval().save(tmp_path_factory.mktemp("detect") / "model")


def placed(scale: float, turn: float = 0, x: float = 0, y: float = 0) -> np.ndarray:
    """A similarity [2,3]: larger by `scale`, turned by `turn` degrees, moved."""
    a = scale * np.exp(1j * np.deg2rad(turn))
    return np.array([[a.real, -a.imag, x], [a.imag, a.real, y]])


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def photograph(
    *faces: tuple[int, np.ndarray], draw: Callable[[int, int], np.ndarray] = draw_face
) -> np.ndarray:
    """Drawn people, each laid by a similarity on grey, 360x240."""
    scene = np.full((240, 360, 3), 127, np.uint8)
    for person, place in faces:
        laid = cv2.warpAffine(draw(person, 0), place, (360, 240))
        there = cv2.warpAffine(np.full((112, 112), 255, np.uint8), place, (360, 240)) == 255
        scene[there] = laid[there]
    return scene


# --- alignment


@pytest.mark.parametrize("weights", [None, np.array([1.0, 1, 0.05, 0.05, 0.05])])
@pytest.mark.parametrize("turn", [0, 30, 180, -90])
def test_similarity_finds_the_place(turn: float, weights: np.ndarray | None) -> None:
    place = placed(2.5, turn, 40, 70)
    matrix = similarity(moved(place, STANDARD_LANDMARKS), weights)
    points = np.array([(0.0, 0), (111, 0), (50, 90)])
    np.testing.assert_allclose(moved(matrix, moved(place, points)), points, atol=1e-9)


def test_similarity_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    points, weights = STANDARD_LANDMARKS * 1.7 + rng.normal(0, 4, (5, 2)), rng.uniform(0.1, 1, 5)

    def error(matrix: np.ndarray) -> float:
        return float((weights * ((moved(matrix, points) - STANDARD_LANDMARKS) ** 2).sum(1)).sum())

    best = similarity(points, weights)
    for change in rng.normal(0, 1e-3, (50, 4)):
        a, b = complex(best[0, 0], best[1, 0]) + complex(*change[:2]), best[:, 2] + change[2:]
        assert error(best) < error(np.array([[a.real, -a.imag, b[0]], [a.imag, a.real, b[1]]]))


def test_a_landmark_without_weight_changes_nothing() -> None:
    points = STANDARD_LANDMARKS.copy()
    points[4] += 30
    np.testing.assert_allclose(
        moved(similarity(points, np.array([1, 1, 1, 1, 0])), STANDARD_LANDMARKS),
        STANDARD_LANDMARKS,
        atol=1e-9,
    )


@pytest.mark.parametrize("scale", [1, 2, 3, 5])
def test_warp_gives_the_face_back(scale: int) -> None:
    face = cv2.GaussianBlur(draw_face(1, 0), (0, 0), 2)
    large = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    points = (STANDARD_LANDMARKS + 0.5) * scale - 0.5
    back = warp(large, similarity(points))
    assert back.dtype == np.uint8
    assert back.shape == (112, 112, 3)
    assert np.abs(back.astype(float) - face).mean() < 1


def test_warp_is_black_beyond_the_photograph() -> None:
    crop = warp(np.full((60, 60, 3), 200, np.uint8), np.array([[1.0, 0, 26], [0, 1, 26]]))
    assert crop[56, 56].tolist() == [200] * 3
    assert crop[5, 5].tolist() == [0] * 3


def test_a_part_of_a_photograph_is_enough() -> None:
    """What `warp` gives doesn't depend on what lies far away, nor on how large the photograph is."""
    scene = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    far = np.zeros((900, 40_000, 3), np.uint8)  # OpenCV refuses more than 32,767 pixels a side
    far[300:600, 4200:4600] = scene
    for scale in (0.45, 0.9, 2.1):
        matrix = similarity(moved(placed(1 / scale, 20, 150, 100), STANDARD_LANDMARKS))
        shifted = np.column_stack([matrix[:, :2], matrix[:, 2] - matrix[:, :2] @ (4200, 300)])
        shrink = max(1, int(1 / scale))
        assert 4200 % shrink == 300 % shrink == 0
        inside = warp(np.full_like(scene, 255), matrix) == 255
        same = np.abs(warp(scene, matrix).astype(int) - warp(far, shifted))[inside]
        assert inside.mean() > 0.5
        assert np.percentile(same, 99.5) <= 1


def test_a_larger_square_shows_more() -> None:
    scene = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    matrix = similarity(STANDARD_LANDMARKS + np.array((120, 90)))
    around = np.column_stack([matrix[:, :2], matrix[:, 2] + 30])
    np.testing.assert_array_equal(warp(scene, around, 172)[30:142, 30:142], warp(scene, matrix))


# --- photographs


def test_exif_turns_a_photograph_upright(tmp_path: Path) -> None:
    upright = photograph((1, placed(1.5, 0, 90, 30)))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: turn it to the right
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png"), upright)


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    Image.new("L", (30, 20), 9).save(tmp_path / "a.png")
    assert read_photograph(tmp_path / "a.png").shape == (20, 30, 3)


def test_an_aligned_face_needs_no_detector(tmp_path: Path) -> None:
    Image.fromarray(draw_face(1, 0)).save(tmp_path / "a.png")
    (subject,) = find_subjects(tmp_path / "a.png", None)
    assert (subject.face, subject.faces) == (None, 1)
    np.testing.assert_array_equal(subject.crop, draw_face(1, 0))


def test_without_a_detector_the_next_command_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    with pytest.raises(OamlError, match=r"a.png: is 300x200.*oaml download yunet.*--detector"):
        find_subjects(tmp_path / "a.png", None)


def test_which_detector(tmp_path: Path) -> None:
    assert find_detector() is None
    downloaded = detect.place("yunet")
    downloaded.parent.mkdir()
    downloaded.write_bytes(b"")
    assert find_detector() == downloaded
    (tmp_path / "own.onnx").write_bytes(b"")
    assert find_detector(tmp_path / "own.onnx") == tmp_path / "own.onnx"
    with pytest.raises(OamlError, match=r"gone.onnx: no such detector"):
        find_detector(tmp_path / "gone.onnx")


# --- with a network


@dataclass(frozen=True)
class Network:
    """A detector's file and the faces that it finds."""

    file: Path
    draw: Callable[[int, int], np.ndarray]
    """Person, shot -> uint8 RGB [112,112,3]."""
    error: float
    """Pixels of the aligned face by which landmarks may be wrong."""

    def photograph(self, *faces: tuple[int, np.ndarray]) -> np.ndarray:
        return photograph(*faces, draw=self.draw)


@pytest.fixture(scope="module", params=["drawn", pytest.param("yunet", marks=needs_yunet)])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """One of the tests' own making, and YuNet where it is at hand."""
    if request.param == "yunet":
        return Network(YUNET, draw_face, 7)  # drawn faces are aligned but for a little
    file = drawn_detector.write(tmp_path_factory.mktemp("detector") / "drawn.onnx")
    return Network(file, lambda person, shot: drawn_detector.mark(draw_face(person, shot)), 0.5)


@pytest.fixture(scope="module")
def detector(network: Network) -> Detector:
    return Detector(network.file)


@pytest.mark.parametrize(("scale", "turn"), [(0.6, 0), (1.5, 10), (1.8, -15)])
def test_a_face_is_found_where_it_is(scale: float, turn: float, network: Network, detector: Detector) -> None:
    place = placed(scale, turn, 90, 60 if turn < 0 else 20)
    (face,) = detector.find(network.photograph((3, place)))
    assert face.score > 0.5
    wrong = np.linalg.norm(face.landmarks - moved(place, STANDARD_LANDMARKS), axis=1).mean()
    assert wrong < network.error * scale
    assert face.eyes == pytest.approx(35.2 * scale, rel=0.25)


def test_the_largest_face_comes_first(network: Network, detector: Detector) -> None:
    scene = network.photograph(
        (1, placed(0.6, 0, 10, 20)), (2, placed(1.4, 0, 180, 40)), (3, placed(0.8, 0, 70, 120))
    )
    faces = detector.find(scene)
    assert len(faces) == 3
    assert faces[0].box[0] > 170
    assert [face.eyes for face in faces] == sorted((face.eyes for face in faces), reverse=True)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_photograph_on_its_side(quarters: int, network: Network, detector: Detector) -> None:
    upright = network.photograph((1, placed(1.5, 0, 90, 30)))
    (expected,) = detector.find(upright)
    faces = detector.find(np.ascontiguousarray(np.rot90(upright, quarters)))
    same = align(np.ascontiguousarray(np.rot90(upright, quarters)), faces[0])
    assert np.abs(same.astype(int) - align(upright, expected)).mean() < 8


@pytest.mark.parametrize(
    ("first", "again", "chosen"),
    [
        ([0.95, 0.99, 0, 0], [0.93, 0.99, 0, 0], 0),  # sure as it is: nothing else is tried
        ([0.89, 0.91, 0, 0.9], [0.86, 0.85, 0, 0.87], 0),  # surer on its side at first sight alone
        ([0.6, 0.9, 0.7, 0], [0.5, 0.8, 0.7, 0], 1),
        ([0.6, 0.9, 0, 0], [0.3, 0.49, 0, 0], 0),  # a guess is no reason to turn
        ([0, 0.5, 0.6, 0], [0, 0.2, 0.1, 0], 2),
        ([0, 0, 0, 0], [0, 0, 0, 0], None),
    ],
)
def test_which_way_up(
    first: list[float], again: list[float], chosen: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(_: Detector, __: object, quarters: int, ___: object) -> detect._Seen:
        def look(score: float) -> Face:
            return Face(np.array([quarters, 0, 100, 100.0]), STANDARD_LANDMARKS, score)

        looks = [look(again[quarters])] * 2 * len(detect.AGAIN)
        return detect._Seen([[look(first[quarters])]], looks) if first[quarters] else detect._Seen([], [])

    monkeypatch.setattr(Detector, "_seen", seen)
    faces = object.__new__(Detector).thorough(np.zeros((10, 10, 3), np.uint8))
    assert [round(face.box[0]) for face in faces] == ([] if chosen is None else [chosen])


def test_nothing_and_too_little(network: Network, detector: Detector, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), (90, 120, 40)).save(tmp_path / "a.png")
    with pytest.raises(OamlError, match=r"a.png: no face found; use"):
        find_subjects(tmp_path / "a.png", detector)
    Image.fromarray(network.photograph((1, placed(0.3, 0, 90, 30)))).save(tmp_path / "b.png")
    with pytest.raises(OamlError, match=rf"b.png: the face is too small, \d+ pixels.*needs {LEAST_EYES:g}"):
        find_subjects(tmp_path / "b.png", detector)


def test_align_a_folder(
    network: Network, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    for name, scene in {
        "ann/1.jpg": network.photograph((1, placed(1.5, 0, 90, 30))),
        "bob/2.png": network.photograph((2, placed(0.8, 0, 20, 30)), (3, placed(1.4, 0, 150, 40))),
        "bob/3.png": draw_face(2, 1),
        "eve/4.png": np.full((100, 100, 3), 80, np.uint8),
    }.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene).save(source / name)
    arguments = ["align", str(source), "--detector", str(network.file), "--out"]
    assert main([*arguments, str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "3 faces of 3 photographs, 1 left out" in captured.out
    assert "4.png: no face found" in captured.err
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert names == ["ann/1.png", "bob/2.png", "bob/3.png"]
    np.testing.assert_array_equal(Image.open(tmp_path / "out/bob/3.png"), draw_face(2, 1))
    assert main([*arguments, str(tmp_path / "all"), "--all"]) == 0
    assert (tmp_path / "all/bob/2_2.png").is_file()
    assert {Image.open(path).size for path in (tmp_path / "all").rglob("*.png")} == {(112, 112)}


def test_verify_photographs(
    network: Network, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(network.photograph((1, placed(0.8, 0, 20, 30)), (2, placed(1.4, 0, 150, 40)))).save(a)
    Image.fromarray(network.draw(2, 0)).save(b)
    arguments = ["verify", str(a), str(b), "--model", str(model), "--detector", str(network.file)]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["faces_a"], facts["faces_b"], len(facts["others"])) == (2, 1, 1)
    assert facts["face_a"]["box"] != facts["others"][0]["face_a"]["box"]
    assert facts["cosine"] > 0.5
    assert main([*arguments, "--draw", str(tmp_path / "why.png")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the largest of 2 faces" in said
    assert "all faces, the largest first" in said
    assert main(arguments[:-2]) == 1
    assert "oaml download yunet" in capsys.readouterr().err


# --- folders without a detector


def test_folders_that_can_not_be_aligned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    Image.fromarray(draw_face(1, 0)).save(tmp_path / "source" / "a.png")  # is aligned already
    Image.new("RGB", (300, 200)).save(tmp_path / "source" / "b.png")
    arguments = ["align", str(tmp_path / "source"), "--out"]
    assert main([*arguments, str(tmp_path / "out")]) == 1
    assert "oaml download yunet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, str(tmp_path / "source")]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_two_faces_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    for name in ("a.png", "a.bmp"):
        Image.fromarray(draw_face(1, 0)).save(tmp_path / "source" / name)
    assert main(["align", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 1
    assert "same name" in capsys.readouterr().err


# --- pictures of any size


@pytest.mark.parametrize("shape", [(20, 2000), (2000, 20), (1, 1000), (1, 1)])
def test_narrow_pictures_are_answered(shape: tuple[int, int], network: Network, detector: Detector) -> None:
    """YuNet, shown a side of 32 pixels or fewer, is sure of infinite boxes."""
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for face in detector.find(noise):
        assert face.score < 0.5
        assert np.isfinite(face.landmarks).all()
        assert 0 < face.box[2:].min() <= face.box[2:].max() < 3 * max(32, min(shape))


def test_a_face_in_a_narrow_picture_is_found(network: Network, detector: Detector) -> None:
    """120x3600, and one side beyond what OpenCV takes."""
    face = network.draw(3, 0)
    for width in (3600, 33_000):
        banner = np.full((120, width, 3), 127, np.uint8)
        banner[4:116, 2000:2112] = face
        (found,) = detector.find(banner)
        off = np.linalg.norm(found.landmarks - STANDARD_LANDMARKS - (2000, 4), axis=1).mean()
        assert off < 2 * network.error
        assert np.abs(align(banner, found)[30:80, 30:80].astype(int) - face[30:80, 30:80]).mean() < 30


def test_one_narrow_picture_does_not_end_a_folder(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    Image.fromarray(network.photograph((1, placed(1.5, 0, 90, 30)))).save(source / "face.png")
    for width, height in ((2000, 20), (30, 33_000)):
        Image.effect_noise((width, height), 60).convert("RGB").save(source / f"{width}x{height}.png")
    command = ["align", str(source), "--detector", str(network.file), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "1 faces of 1 photographs, 2 left out" in said.out
    assert said.err.count("no face found") == 2


# --- what is no face


def box(x: float, side: float, score: float) -> Face:
    """A square face of so many pixels."""
    landmarks = STANDARD_LANDMARKS * side / 112 + (x, 0)
    return Face(np.array([x, 0.0, side, side]), landmarks, score)


class Boxes:
    """A detector that finds the same faces in every photograph."""

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)

    def find(self, photograph: np.ndarray) -> list[Face]:
        """See above."""
        return ranked(self.faces)

    def look(self, picture: np.ndarray) -> list[Face]:
        """See above."""
        return self.faces


@pytest.mark.parametrize(
    ("faces", "order"),
    [
        ([(200, 0.54), (60, 0.96)], [60, 200]),  # a dress, and the face
        ([(200, 0.67), (60, 0.72)], [60, 200]),
        ([(60, 0.95), (90, 0.9)], [90, 60]),  # the larger of two
        ([(90, 0.69), (60, 0.5)], [90, 60]),  # nothing better
    ],
)
def test_a_doubtful_box_does_not_lead(faces: list[tuple[int, float]], order: list[int]) -> None:
    assert [round(face.box[2]) for face in ranked([box(0, *face) for face in faces])] == order


def test_a_box_that_shows_no_face_is_none() -> None:
    """One of little confidence, by what its crop shows: it is dropped, unless there is nothing else."""
    scene = photograph((1, placed(1, 0, 0, 0)))
    face, nothing = box(0, 112, 0.6), box(200, 112, 0.65)
    (subject,) = find_subjects(scene, cast("Detector", Boxes(face, nothing)))
    assert (subject.face, subject.faces) == (face, 1)
    (alone,) = find_subjects(scene, cast("Detector", Boxes(nothing)))
    assert alone.face is nothing
    assert alone.usable < 0.5
    both = find_subjects(scene, cast("Detector", Boxes(face, box(200, 112, 0.9))))
    assert [s.faces for s in both] == [2, 2]  # one that is sure stays, whatever the crop


def test_a_doubtful_box_does_not_block_an_enrolment(tmp_path: Path) -> None:
    """A second person does."""
    scene = photograph((1, placed(1, 0, 0, 0)), (2, placed(1, 0, 200, 0)))
    recogniser = Recogniser(small_model(), cast("Detector", Boxes(box(0, 112, 0.95), box(200, 112, 0.65))))
    gallery = Gallery(str(tmp_path / "gallery"), recogniser)
    assert gallery.enroll("Ann", scene).added == 1
    recogniser.detector = cast("Detector", Boxes(box(0, 112, 0.95), box(200, 112, 0.95)))
    with pytest.raises(OamlError, match="shows 2 faces"):
        gallery.enroll("Ann", np.ascontiguousarray(scene[:, ::-1]))


# --- from frame to frame


def test_a_face_is_followed_while_it_is_seen(network: Network, detector: Detector) -> None:
    before = detector.find(network.photograph((1, placed(1.2, 0, 60, 30))))
    place = placed(1.25, 3, 68, 24)
    (moved_face,) = detector.follow(network.photograph((1, place)), before) or []
    off = np.linalg.norm(moved_face.landmarks - moved(place, STANDARD_LANDMARKS), axis=1).mean()
    assert off < 1.5 * network.error
    middle = before[0].box[:2] + before[0].box[2:] / 2 + (11, -3)
    np.testing.assert_allclose(moved_face.box[:2] + moved_face.box[2:] / 2, middle, atol=6)
    assert detector.follow(network.photograph((1, placed(1.2, 0, 200, 30))), before) is None
    assert detector.follow(np.full((240, 360, 3), 127, np.uint8), before) is None


# --- a picture of 112x112


def test_a_photograph_of_the_size_of_an_aligned_face(
    network: Network, detector: Detector, tmp_path: Path
) -> None:
    """A head of which the face is a part; and two faces that are aligned, one by hand and not too well."""
    scene = np.full((112, 112, 3), 127, np.uint8)
    scene[30:95, 40:105] = cv2.resize(network.draw(1, 0), (65, 65), interpolation=cv2.INTER_AREA)
    (subject,) = find_subjects(scene, detector)
    assert subject.face is not None
    assert np.abs(subject.face.landmarks.mean(0) - STANDARD_LANDMARKS.mean(0) * 65 / 112 - (40, 30)).max() < 5
    (by_hand,) = find_subjects(scene, detector, aligned=True)
    assert by_hand.face is None
    shifted = np.roll(network.draw(1, 0), (5, -6), (0, 1))
    for aligned in (network.draw(1, 0), shifted):
        (subject,) = find_subjects(aligned, detector)
        assert subject.face is None
        (by_hand,) = find_subjects(aligned, detector, aligned=False)
        assert by_hand.face is not None


def test_occluded_faces_and_other_crops_stay_aligned(network: Network, detector: Detector) -> None:
    """Whether the detector sees them or not; a crop that shows nothing is answered by the gate."""
    faces = [
        occlude(draw_face(person, 0), kind, np.random.default_rng(person)).image
        for person, kind in enumerate(KINDS)
    ]
    for crop in (
        *faces,
        np.zeros((112, 112, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8),
    ):
        (subject,) = find_subjects(crop, detector)
        assert subject.face is None


def test_what_is_aligned_by_hand_must_be_112x112(detector: Detector) -> None:
    with pytest.raises(OamlError, match=r"the image: is 300x200, an aligned face is 112x112; align it, or"):
        find_subjects(np.zeros((200, 300, 3), np.uint8), detector, aligned=True)
    with pytest.raises(OamlError, match="oaml download yunet"):
        find_subjects(draw_face(1, 0), None, aligned=False)


def test_commands_take_aligned_by_hand(
    network: Network, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = np.full((112, 112, 3), 127, np.uint8)
    scene[30:95, 40:105] = cv2.resize(network.draw(1, 0), (65, 65), interpolation=cv2.INTER_AREA)
    face = network.draw(2, 0)
    for name, image in (("scene", scene), ("face", face)):
        (tmp_path / "people" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "people" / name / "a.png")
    common = ["--model", str(model), "--detector", str(network.file), "--json"]

    def verify(*flags: str) -> tuple[bool, bool]:
        paths = [str(tmp_path / "people" / name / "a.png") for name in ("scene", "face")]
        assert main(["verify", *paths, *common, *flags]) == 0
        said = json.loads(capsys.readouterr().out)
        return said["face_a"] is None, said["face_b"] is None

    assert verify() == (False, True)
    assert verify("--aligned") == (True, True)
    assert verify("--not-aligned") == (False, False)
    gallery = str(tmp_path / "gallery")
    assert main(["enroll", str(tmp_path / "people"), "--gallery", gallery, "--aligned", *common]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["added"] == 1
    assert "no usable face" in said["left_out"][0]  # the scene as it is
    photo = str(tmp_path / "people" / "scene" / "a.png")
    for flags, aligned in (((), False), (("--aligned",), True)):
        assert main(["search", photo, "--gallery", gallery, *common, *flags]) == 0
        (found,) = json.loads(capsys.readouterr().out)["faces"]
        assert (found["face"] is None) == aligned
