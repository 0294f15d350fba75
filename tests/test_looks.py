"""One look of the network: at a picture of any size, from any thread; and faces moved between pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import drawn_detector
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.photographs import looks
from oaml.photographs.align import STANDARD_LANDMARKS
from oaml.photographs.looks import Face, Network, group_looks


@pytest.fixture(autouse=True)
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAML_HOME", str(tmp_path / "nothing"))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turned_back(quarters: int) -> None:
    scene = np.zeros((40, 60, 3), np.uint8)
    scene[7, 11] = 255
    y, x = np.argwhere(np.rot90(scene, quarters)[..., 0])[0]
    seen = Face(np.array([x - 2.0, y - 1, 4, 2]), np.tile((float(x), y), (5, 1)), 0.5)
    face = seen.turned_back(60, 40, quarters)
    assert face.landmarks.tolist() == [[11, 7]] * 5
    assert face.box.tolist() == ([9, 6, 4, 2] if quarters % 2 == 0 else [10, 5, 2, 4])


def test_centres_of_pixels_stay_where_they_are() -> None:
    """An image twice as wide and three times as high has two times three pixels where the photograph has one."""
    marks = np.array([(20.5, 61), (60.5, 91), (0.5, 1), (2.5, 4), (20.5, 61)])
    face = Face(np.array([20.5, 61, 40, 30]), marks, 0.75).scaled(1 / 2, 1 / 3)
    assert face.box.tolist() == [10, 20, 20, 10]
    assert face.landmarks.tolist() == [[10, 20], [30, 30], [0, 0], [1, 1], [10, 20]]
    assert face.score == 0.75


def test_the_mirror_image_of_a_face_is_mirrored_back() -> None:
    """In pixels whose centres are numbers from 0 to width - 1; a box from one centre to another stays one."""
    scene = np.zeros((40, 60, 3), np.uint8)
    scene[7, 11] = scene[9, 31] = 255  # the corners of a box
    (y, right), (bottom, left) = np.argwhere(scene[:, ::-1, 0])
    marks = np.array([[x, y] for x in (right, left, 30, 31, 32)], float)
    seen = Face(np.array([left, y, right - left, bottom - y], float), marks, 0.5)
    face = seen.mirrored(60)
    assert face.box.tolist() == [11, 7, 20, 2]
    assert face.landmarks[:, 0].tolist() == [31, 11, 29, 27, 28]
    assert face.landmarks[:, 1].tolist() == [7] * 5
    assert face.score == 0.5


def test_a_file_that_is_no_detector(tmp_path: Path) -> None:
    (tmp_path / "own.onnx").write_bytes(b"no network")
    with pytest.raises(OamlError, match=r"own.onnx: is no YuNet network.*oaml download yunet"):
        Network(tmp_path / "own.onnx", 0.5)


@pytest.mark.parametrize(
    ("does", "fault"),
    [
        ("import os; os.abort()", "a process that ran it ended with -6"),
        ("import time; time.sleep(60)", "a process that ran it gave no answer in 0.5 seconds"),
    ],
)
def test_a_file_that_crashes_or_hangs_harms_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, fault: str
) -> None:
    monkeypatch.setattr(looks, "TRIAL", does)
    monkeypatch.setattr(looks, "TRIAL_SECONDS", 0.5 if "sleep" in does else 20)
    monkeypatch.setenv("OAML_HOME", str(tmp_path / "home"))
    (tmp_path / "bad.onnx").write_bytes(b"0" * 100)
    with pytest.raises(OamlError, match=rf"bad.onnx: is no YuNet network in ONNX format \({fault}\)"):
        Network(tmp_path / "bad.onnx", 0.5)
    assert not (tmp_path / "home").exists()


def test_a_file_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "TRIAL", f"open({str(tmp_path / 'trials')!r}, 'a').write('x')")
    monkeypatch.setenv("OAML_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cv2.FaceDetectorYN.create", lambda *_: None)
    (tmp_path / "a.onnx").write_bytes(b"0" * 100)
    for _ in range(3):
        Network(tmp_path / "a.onnx", 0.5)
    assert (tmp_path / "trials").read_text() == "x"
    (tmp_path / "a.onnx").write_bytes(b"1" * 100)
    Network(tmp_path / "a.onnx", 0.5)
    assert (tmp_path / "trials").read_text() == "xx"


# --- pictures of any size


class Rows:
    """OpenCV's network, which says the same of every picture."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = np.array(rows, np.float32)

    def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802
        """As OpenCV's."""
        assert min(size) > 32

    def detect(self, picture: np.ndarray) -> tuple[int, np.ndarray]:
        """As OpenCV's."""
        return 1, self.rows


def test_boxes_that_are_none_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What YuNet says of a picture of 20x2000: sure of boxes that are infinite or have no area."""
    marks = STANDARD_LANDMARKS.ravel().tolist()
    rows = [
        [-np.inf, 0, np.inf, np.inf, *marks, 1.0],
        [3, 4, 0, 20, *marks, 0.9],
        [3, 4, 20, 0, *marks, 0.9],
        [3, 4, 20, 30, *marks[:-1], np.nan, 0.9],
        [3, 4, 20, 30, *marks, 0.8],
    ]
    monkeypatch.setattr("cv2.FaceDetectorYN.create", lambda *_: Rows(rows))
    monkeypatch.setattr(looks, "_try_once", lambda _: None)
    (tmp_path / "a.onnx").write_bytes(b"0")
    (face,) = Network(tmp_path / "a.onnx", 0.5)(np.zeros((20, 2000, 3), np.uint8))
    assert face.box.tolist() == [3, 4, 20, 30]
    assert face.score == pytest.approx(0.8)


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [-np.inf, 0, np.inf, 5], [5, 5, -3, 4]])
def test_grouping_ends_whatever_the_boxes(box: list[float]) -> None:
    faces = [Face(np.array(box, float), STANDARD_LANDMARKS, score) for score in (0.5, 0.9, 0.7)]
    with np.errstate(invalid="ignore"):
        groups = group_looks(faces)
    assert sorted(face.score for group in groups for face in group) == [0.5, 0.7, 0.9]
    assert groups[0][0].score == 0.9


def test_looks_of_one_face_are_grouped() -> None:
    left, right = np.array([0, 0, 10, 10.0]), np.array([40, 0, 10, 10.0])
    faces = [
        Face(box + shift, STANDARD_LANDMARKS, score)
        for box, shift, score in ((left, 1, 0.5), (right, 0, 0.7), (left, 0, 0.9), (right, 2, 0.6))
    ]
    assert [[face.score for face in group] for group in group_looks(faces)] == [[0.9, 0.5], [0.7, 0.6]]


# --- threads


def test_threads_share_a_network(tmp_path: Path) -> None:
    """Eight threads at a time, each with pictures of its own size, see what one thread sees."""
    network = Network(drawn_detector.write(tmp_path / "drawn.onnx"), 0.5)
    pictures = []
    for i in range(8):
        picture = np.full((130 + 30 * i, 150 + 20 * i, 3), 120, np.uint8)
        picture[5:117, 10 + i : 122 + i] = drawn_detector.mark(draw_face(i, 0))
        pictures.append(picture)
    alone = [network(picture) for picture in pictures]
    assert all(len(faces) == 1 for faces in alone)

    def ask(i: int) -> list[list[Face]]:
        return [network(pictures[(i + k) % 8]) for k in range(12)]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    for i, answers in enumerate(together):
        for k, faces in enumerate(answers):
            (expected,), (face,) = alone[(i + k) % 8], faces
            np.testing.assert_array_equal(face.landmarks, expected.landmarks)
            np.testing.assert_array_equal(face.box, expected.box)
