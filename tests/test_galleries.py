"""TinyFace and DeepFace-EMD's lists in miniature: what is looked up where, ranks by hand, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import says, small_model
from matlab_writer import array, cell, numbers, write_arrays
from oaml.datasets.drawn import draw_face
from oaml.evaluation import report
from oaml.evaluation.official import read_set
from oaml.evaluation.protocols import Identification, Listed
from oaml.support import metrics
from oaml.support.matlab import read_arrays
from oaml.template import COLUMNS

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(data: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_face(number, number)).save(data / name)


def write_tinyface(data: Path, images: str = "Testing_Set", suffix: str = ".jpg") -> None:
    """Two people in the gallery, three probes, two distractors."""
    folder = data / images
    draw(folder, *(f"Gallery_Match/{name}{suffix}" for name in ("7_1", "7_2", "9_1")))
    draw(folder, *(f"Probe/{name}{suffix}" for name in ("7_3", "9_2", "9_3")))
    draw(folder, *(f"Gallery_Distractor/{name}{suffix}" for name in ("d1", "d2")))
    (folder / "Gallery_Distractor" / "._d1.jpg").write_bytes(b"of a system")
    lists = data / "Testing_Set"
    lists.mkdir(exist_ok=True)
    write_arrays(
        lists / "gallery_match_img_ID_pairs.mat",
        cell("gallery_set", ["7_1.jpg", "7_2.jpg", "9_1.jpg"]),
        numbers("gallery_ids", [7, 7, 9]),
    )
    write_arrays(
        lists / "probe_img_ID_pairs.mat",
        numbers("probe_ids", [7, 9, 9]),
        cell("probe_set", ["7_3.jpg", "9_2.jpg", "9_3.jpg"]),
        compressed=False,
    )


def write_deepface_emd(data: Path) -> None:
    """The lists beside the folders of images; all photographs of two people are in the gallery, one of each is looked up."""
    names = ["Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bela/Bela_0001.jpg"]
    draw(data, *(f"lfw-align-128/{name}" for name in names))
    draw(data, *(f"lfw-align-128-masked/{name}" for name in names[1:]))
    gallery = [f"lfw-align-128/{name},{person}\n" for name, person in zip(names, (0, 0, 1), strict=True)]
    (data / "lfw_128.txt").write_text("".join(gallery))
    probes = [
        f"lfw-align-128-masked/{name},{person}\n" for name, person in zip(names[1:], (0, 1), strict=True)
    ]
    (data / "lfw_128_mask.txt").write_text("".join(probes))


def known(listed: Listed | None) -> Identification:
    assert listed is not None
    assert listed.identification is not None
    return listed.identification


@pytest.mark.parametrize(
    ("images", "suffix"), [("Testing_Set", ".jpg"), ("aligned_pad_0.1_pad_high", ".png")]
)
def test_tinyface_by_its_lists(images: str, suffix: str, tmp_path: Path) -> None:
    write_tinyface(tmp_path, images, suffix)
    listed = read_set("tinyface", tmp_path)
    assert listed is not None
    assert listed.pairs is None
    assert listed.images == tmp_path / images
    looked_up = known(listed)
    names = [
        "Gallery_Match/7_1",
        "Gallery_Match/7_2",
        "Gallery_Match/9_1",
        "Gallery_Distractor/d1",
        "Gallery_Distractor/d2",
    ]
    assert looked_up.gallery == [name + suffix for name in names]
    assert looked_up.gallery_person == ["7", "7", "9", "distractor", "distractor"]
    assert looked_up.probes == [f"Probe/{name}{suffix}" for name in ("7_3", "9_2", "9_3")]
    assert looked_up.probe_person == ["7", "9", "9"]
    assert not looked_up.strangers


def test_ranks_by_hand() -> None:
    """Best image of one's own person: .8 below one other, .2 below all three others, and .5 with an equal one before it."""
    scores = np.array([[0.1, 0.8, 0.3, 0.9], [0.3, 0.4, 0.2, 0.6], [0.0, 0.5, 0.5, 0.4]])
    gallery = np.array(["7", "7", "9", "distractor"])
    assert metrics.own_ranks(scores, np.array(["7", "9", "9"]), gallery).tolist() == [2, 4, 2]
    assert metrics.own_ranks(scores[:1], np.array(["nobody"]), gallery).tolist() == [5]


def test_tinyface_numbers_worked_out_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are put in: the three probes find their person at ranks 1, 2 and 4."""
    write_tinyface(tmp_path / "tinyface")
    small_model().save(tmp_path / "model")
    value = np.array([[0.1, 0.9, 0.3, 0.2, 0.0], [0.3, 0.1, 0.4, 0.2, 0.6], [0.5, 0.6, 0.2, 0.4, 0.1]])
    monkeypatch.setattr(
        "oaml.evaluation.conditions.score_all", lambda *_, **__: dict.fromkeys(COLUMNS, value)
    )
    monkeypatch.setattr("oaml.evaluation.summary.RANKS", (1, 2, 3, 4))
    result = report.evaluate(
        str(tmp_path / "model"),
        protocol="tinyface",
        data=tmp_path / "tinyface",
        out=tmp_path / "out",
        bootstrap=0,
    ).identification
    assert result is not None
    assert (result.gallery, result.probes) == (5, 3)
    assert result.rank1["unoccluded"]["fused"].value == pytest.approx(1 / 3)
    assert result.rank["unoccluded"]["cosine"] == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 2 / 3, 4: 1})


def test_deepface_emd_numbers_worked_out_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ann has two images: found first and third, so that of her first two one is right, at the first place. Bela is second."""
    write_deepface_emd(tmp_path / "lists")
    small_model().save(tmp_path / "model")
    value = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.4]])
    monkeypatch.setattr(
        "oaml.evaluation.conditions.score_all", lambda *_, **__: dict.fromkeys(COLUMNS, value)
    )
    for data in (tmp_path / "lists", tmp_path / "lists" / "lfw_128_mask.txt"):
        result = report.evaluate(
            str(tmp_path / "model"), protocol="deepface-emd", data=data, out=tmp_path / "out", bootstrap=0
        ).identification
        assert result is not None
        values = (result.rank1, result.r_precision, result.map_at_r)
        got = [measure["unoccluded"]["fused"].value for measure in values]
        assert got == pytest.approx([0.5, (0.5 + 0) / 2, (0.5 + 0) / 2])


def test_what_is_missing_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    write_tinyface(tmp_path / "t")
    (tmp_path / "t/Testing_Set/Probe/9_2.jpg").unlink()
    says(lambda: read_set("tinyface", tmp_path / "t"), "1 images that it names are missing", ": 9_2.jpg;")
    (tmp_path / "t/Testing_Set/Gallery_Distractor").rename(tmp_path / "elsewhere")
    says(
        lambda: read_set("tinyface", tmp_path / "t"),
        "no folder in it holds Gallery_Match, Gallery_Distractor, Probe",
    )
    write_tinyface(tmp_path / "u")
    file = tmp_path / "u/Testing_Set/probe_img_ID_pairs.mat"
    for arrays, what in (
        (
            [cell("probe_set", ["7_3.jpg"]), numbers("probe_ids", [8])],
            "1 probes show nobody in Gallery_Match",
        ),
        ([cell("probe_set", ["7_3.jpg"]), numbers("probe_ids", [7, 7])], "and probe_ids of as many numbers"),
        ([numbers("probe_ids", [7])], "holds no probe_set of names"),
    ):
        write_arrays(file, *arrays)
        says(lambda: read_set("tinyface", tmp_path / "u"), what)
    file.unlink()
    says(lambda: read_set("tinyface", tmp_path / "u"), "no probe_img_ID_pairs.mat in it")

    write_deepface_emd(tmp_path / "d")
    lists = tmp_path / "d" / "lfw_128_mask.txt"
    (tmp_path / "d/lfw_128_glass.txt").write_text(lists.read_text())
    says(
        lambda: read_set("deepface-emd", tmp_path / "d"),
        "holds 2 lists of probes",
        "name one of them with --data",
    )
    good = lists.read_text()
    for text, what in (
        (good.replace(",1", ",5"), "the people 5 are not in lfw_128.txt"),
        (good + "lfw-align-128-masked/x.jpg\n", "line 3: 'lfw-align-128-masked/x.jpg' is no `IMAGE,NUMBER"),
        (good + "lfw-align-128-masked/x.jpg,0\n", "1 images that it names are missing"),
        ("nowhere/x.jpg,0\n", "is in no folder beside or above it"),
        ("", "is empty"),
    ):
        lists.write_text(text)
        says(lambda: read_set("deepface-emd", lists), what)
    (tmp_path / "d/lfw_128.txt").unlink()
    says(lambda: read_set("deepface-emd", lists), "no list of its gallery beside it")


def test_matlab_files(tmp_path: Path) -> None:
    file = tmp_path / "x.mat"
    names = ["a.jpg", "été_0001.png", "b"]
    write_arrays(
        file, cell("names", names), numbers("ids", [3, 70000 % 65536, 1]), array(2, (1, 1), "s", b"")
    )
    found = read_arrays(file)
    assert found["names"] == names
    assert list(found["ids"]) == [3, 4464, 1]
    assert set(found) == {"names", "ids"}  # a structure is passed over
    whole = file.read_bytes()
    bomb = zlib.compress(b"\0" * (1 << 29), 1)
    for content, what in (
        (whole[:-9], "is damaged"),
        (whole[:60], "is no MATLAB file of level 5"),
        (b"MATLAB 7.3 MAT-file".ljust(200), "format 7.3, which is not read here"),
        (whole[:128] + struct.pack("<II", 15, len(bomb)) + bomb, "an array of more than 268,435,456 bytes"),
        (whole[:128] + struct.pack("<II", 14, 4) + b"\0\0\0\0", "is damaged"),
    ):
        file.write_bytes(content)
        says(lambda: read_arrays(file), str(file), what)
    says(lambda: read_arrays(tmp_path / "none.mat"), "none.mat: can't be read")
