"""IJB-B and IJB-C: a miniature in their layout, numbers worked out by hand, a killed run that goes on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.evaluation import ijb
from oaml.evaluation.results import TemplateSet
from oaml.evaluation.template_lists import read_lists
from oaml.main import main
from oaml.model import Model
from oaml.occluders import Occluder
from oaml.photographs.align import STANDARD_LANDMARKS
from oaml.support import metrics
from oaml.template import COLUMNS, pooled

pytestmark = pytest.mark.usefixtures("one_thread")
FACES = [  # image, template, medium, person
    ("1.jpg", 7, 100, 0), ("2.jpg", 7, 100, 0), ("3.jpg", 7, 101, 0), ("4.jpg", 9, 102, 0), ("5.jpg", 12, 103, 1),
    ("6.jpg", 12, 104, 1), ("7.jpg", 15, 105, 1), ("8.jpg", 20, 106, 2), ("9.jpg", 21, 107, 2), ("3.jpg", 22, 108, 0),
]  # fmt: skip
PAIRS = [(7, 9, 1), (12, 15, 1), (20, 21, 1), (7, 12, 0), (9, 20, 0), (15, 21, 0), (7, 22, 1)]


def shifted(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The face in a larger picture, and its landmarks there: only by these it is found again."""
    larger = np.zeros((160, 150, 3), np.uint8)
    larger[30:142, 20:132] = image
    return larger, STANDARD_LANDMARKS + np.array([20, 30])


def write_set(data: Path, name: str = "ijbc") -> None:
    (data / "meta").mkdir(parents=True)
    (data / "loose_crop").mkdir()
    points = []
    for i, (image, _, _, person) in enumerate(FACES[:9]):
        picture, landmarks = shifted(draw_face(person, i))
        Image.fromarray(picture).save(data / "loose_crop" / image, quality=100, subsampling=0)
        points.append(f"{image} {' '.join(f'{x:.3f}' for x in landmarks.ravel())} {0.9 - 0.05 * i:.3f}")
    meta = data / "meta"
    (meta / f"{name}_name_5pts_score.txt").write_text("\n".join(points) + "\n")
    (meta / f"{name}_face_tid_mid.txt").write_text("".join(f"{i} {t} {m}\n" for i, t, m, _ in FACES))
    (meta / f"{name}_template_pair_label.txt").write_text("".join(f"{a} {b} {s}\n" for a, b, s in PAIRS))
    for gallery, rows in (("gallery_G1", [(7, 0), (12, 1)]), ("gallery_G2", [(20, 2)])):
        lines = [f"{t},{p},loose_crop/x.jpg" for t, p in rows for _ in range(2)]
        (meta / f"{name}_1N_{gallery}.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + "\n".join(lines))
    probes = [(9, 0), (15, 1), (21, 2)]
    (meta / f"{name}_1N_probe_mixed.csv").write_text(
        "TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + "\n".join(f"{t},{p},x" for t, p in probes)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ijbc")
    write_set(folder)
    return folder


def measure(model: Model, name: str, data: Path, out: Path) -> TemplateSet:
    return ijb.Measured(model, read_lists(name, data), name, out).all([], "b", Occluder())["unoccluded"]


def test_plain_pooling_written_out_by_hand() -> None:
    """Two faces of one medium count as one."""
    embedding = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32)
    norm, detector = np.array([2.0, 4.0, 1.0, 3.0], np.float32), np.array([1.0, 0.5, 1.0, 1.0], np.float32)
    got = ijb.plain_pooling(embedding, norm, detector, np.array([0, 0, 0, 1]), np.array([5, 5, 6, 5]))
    by_hand = [[0.5, 0.5 + 1], [1, 2 + 1], [0.5, 0.25 + 1], [1, 1 + 1]]
    for values, wanted in zip(got, by_hand, strict=True):
        np.testing.assert_allclose(values[0], np.array(wanted) / np.linalg.norm(wanted), rtol=1e-6)
        np.testing.assert_allclose(values[1], [1, 0])


def test_scores_are_those_of_templates_pooled_the_slow_way(data: Path, tmp_path: Path) -> None:
    model = small_model()
    measured = measure(model, "ijbc", data, tmp_path)
    lists = read_lists("ijbc", data)
    crops = []
    for image, *_ in FACES:
        crops.append(np.array(Image.open(data / "loose_crop" / image))[30:142, 20:132])
    faces = model.extract(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255)
    owner = np.array([t for _, t, _, _ in FACES])
    templates = {
        number: pooled(faces[torch.from_numpy(np.flatnonzero(owner == number))]) for number in lists.ids
    }
    names = (*ijb.PLAIN, *COLUMNS)
    stored = np.memmap(tmp_path / "ijbc.scores", np.float32, "r", 32, (len(PAIRS), len(names)))
    for row, (a, b, _) in zip(stored, sorted(PAIRS), strict=True):
        wanted = model.compare(templates[a], templates[b], plain=True)
        for score in COLUMNS:  # templates are kept in a byte a number
            assert row[names.index(score)] == pytest.approx(float(wanted[score]), abs=0.15)
    assert (measured.images, measured.templates) == (10, 7)
    assert (measured.genuine_pairs, measured.impostor_pairs) == (4, 3)
    assert measured.verification["fused"] == dict.fromkeys(ijb.FARS)  # three impostor pairs measure no FAR
    assert set(measured.identification) == {"G1", "G2"}
    assert (
        measured.identification["G1"]["fused"].probes,
        measured.identification["G1"]["fused"].strangers,
    ) == (2, 1)
    assert (
        measured.identification["G2"]["fused"].probes,
        measured.identification["G2"]["fused"].strangers,
    ) == (1, 2)


def test_galleries_are_measured_apart_and_averaged(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores put in: in G1 one of two probes is found first, in G2 the only one; joined it would be two of three."""
    lists = read_lists("ijbc", data)
    value = {(9, 7): 5.0, (9, 12): 1.0, (15, 7): 3.0, (15, 12): 2.0, (21, 7): 2.5, (21, 12): 0.0}
    value |= {(9, 20): 1.0, (15, 20): 4.0, (21, 20): 4.5}

    def scored(
        _: object, __: object, probes: np.ndarray, ___: object, gallery: np.ndarray, **____: object
    ) -> dict[str, np.ndarray]:
        ids = lists.ids
        return dict.fromkeys(
            COLUMNS, np.array([[value[int(ids[p]), int(ids[g])] for g in gallery] for p in probes])
        )

    monkeypatch.setattr("oaml.inference.score_all", scored)
    monkeypatch.setattr(metrics, "MIN_FALSE_ACCEPTS", 0)
    monkeypatch.setattr(ijb, "FPIRS", (0.5,))
    measured = measure(small_model(), "ijbc", data, tmp_path)
    first, second = (measured.identification[gallery]["fused"] for gallery in ("G1", "G2"))
    assert first.rank == {1: 0.5, 5: 1, 10: 1}
    assert second.rank == {1: 1, 5: 1, 10: 1}
    assert measured.identification_mean["fused"].rank == {1: 0.75, 5: 1, 10: 1}
    assert first.tpir_at_fpir == {0.5: 0.5}  # of the one stranger, at 2.5, none may pass
    assert second.tpir_at_fpir == {0.5: 1}  # strangers at 1 and 4: one may pass
    assert measured.identification_mean["fused"].tpir_at_fpir == {0.5: 0.75}


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ijb, "PAIRS_A_WRITE", 3)
    whole = measure(small_model(), "ijbc", data, tmp_path / "whole")
    calls: list[int] = []

    compare_listed = Model.compare_listed

    def stops(*words: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compare_listed(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "compare_listed", stops)
    with pytest.raises(KeyboardInterrupt):
        measure(small_model(), "ijbc", data, tmp_path / "killed")
    scores = tmp_path / "killed" / "ijbc.scores"
    with scores.open("ab") as file:
        file.write(b"torn")  # half of a row
    assert measure(small_model(), "ijbc", data, tmp_path / "killed") == whole
    assert len(calls) == 2 + 2  # three pairs were kept
    assert scores.read_bytes() == (tmp_path / "whole" / "ijbc.scores").read_bytes()
    other = small_model(seed=1)
    with pytest.raises(OamlError, match="holds templates of another model"):
        measure(other, "ijbc", data, tmp_path / "whole")


def test_the_command_writes_a_report(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model().save(tmp_path / "model")
    words = [
        "evaluate",
        str(tmp_path / "model"),
        "--protocol",
        "ijbc",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--refine"]) == 0
    out = capsys.readouterr().out
    assert "plain, norm" in out
    assert "mean over the galleries" in out
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["template_set"]["images"] == 10
    assert "gallery G2" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_occluded_templates_on_the_side_that_is_asked_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faces occluded by hand and pooled the slow way give the scores in the file; what is unoccluded stays as it is."""
    model = small_model()
    model.save(tmp_path / "model")
    words = [
        "evaluate",
        str(tmp_path / "model"),
        "--protocol",
        "ijbc",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--occlude", "mask", "--side", "a", "--seed", "3", "--baselines"]) == 0
    assert "mask on side a (1:N: the gallery): 1:1" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["template_set_occluded"]) == {"mask"}
    assert "upper half" in report["template_set_occluded"]["mask"]["verification"]
    occluder = Occluder(seed=3, style="b")
    owner = np.array([t for _, t, _, _ in FACES])
    sides = []
    for occluded in (True, False):
        crops = [np.array(Image.open(data / "loose_crop" / image))[30:142, 20:132] for image, *_ in FACES]
        if occluded:
            crops = [occluder(crop, "mask", face[0]).image for crop, face in zip(crops, FACES, strict=True)]
        faces = model.extract(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255)
        sides.append({t: pooled(faces[torch.from_numpy(np.flatnonzero(owner == t))]) for t in set(owner)})
    (kept,) = (tmp_path / "out").glob("ijbc-mask-*-a.scores")
    names = (*ijb.PLAIN, "upper half", *COLUMNS)
    stored = np.fromfile(kept, np.float32, offset=32).reshape(len(PAIRS), len(names))
    for row, (a, b, _) in zip(stored, sorted(PAIRS), strict=True):
        wanted = model.compare(sides[0][a], sides[1][b], plain=True)
        for score in ("cosine", "fused"):
            assert row[names.index(score)] == pytest.approx(float(wanted[score]), abs=0.15)


def test_listed_pairs_score_as_pairs_row_by_row() -> None:
    model = small_model()
    faces = model.extract(torch.rand(5, 3, 112, 112))
    first, second = torch.tensor([0, 0, 3, 4, 1]), torch.tensor([1, 2, 0, 4, 0])
    wanted = model.compare(faces[first], faces[second], plain=True)
    got = model.compare_listed(faces, faces, (first, second), plain=True)
    assert list(got) == list(wanted) == list(COLUMNS)
    for score in COLUMNS:
        torch.testing.assert_close(got[score], wanted[score], rtol=1e-5, atol=1e-5)


def write_surveillance(data: Path) -> None:
    """Three people: 1 and 2 enrolled in G1 by a video each, 3 in G2; videos 20 and 21 are looked up, of all three."""
    seen = {(1, 10): 2, (2, 11): 1, (3, 12): 2, (1, 20): 2, (2, 20): 1, (3, 21): 1}
    (data / "galleries").mkdir(parents=True)
    rows = ["SUBJECT_ID,FILE"]
    for (subject, video), frames in seen.items():
        for frame in range(frames):
            crop = data / "crops" / str(subject) / f"videos_{video}_{frame}.jpg"
            crop.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_face(subject, video + frame)).save(crop)
            rows.append(f"{subject},videos/{video}.mp4,{frame}")
    (data / "cs6_metadata.csv").write_text("\n".join([*rows, "1,img/5.png,0"]) + "\n")
    stem = "cs6_surveillance_to_surveillance"
    (data / f"{stem}_probe.csv").write_text("FILE\nvideos/20.mp4\nvideos/21.mp4\n")
    for name, videos in (("g1", [(1, 10), (2, 11)]), ("g2", [(3, 12)])):
        lines = [f"{i},{subject},videos/{video}.mp4" for i, (subject, video) in enumerate(videos)]
        (data / "galleries" / f"{stem}_{name}.csv").write_text(
            "ID,SUBJECT_ID,FILE\n" + "\n".join(lines) + "\n"
        )


def test_surveillance_templates_are_a_subject_in_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_surveillance(tmp_path)
    lists = read_lists("ijbs", tmp_path)
    videos = [f"{s} videos/{v}.mp4" for s, v in ((1, 10), (1, 20), (2, 11), (2, 20), (3, 12), (3, 21))]
    assert lists.ids.tolist() == videos
    assert lists.template.tolist() == [0, 0, 1, 1, 2, 3, 4, 4, 5]
    assert [side.tolist() for side in lists.galleries["G1"]] == [[0, 2], [1, 2]]
    assert [side.tolist() for side in lists.galleries["G2"]] == [[4], [3]]
    assert lists.probes is not None
    assert [side.tolist() for side in lists.probes] == [[1, 3, 5], [1, 2, 3]]
    # probes 1, 3, 5 by gallery templates 0, 2, 4: 1's person is first in G1, 2's not; 3's is first in G2, but not of both
    value = np.array([[3.0, 1.0, 0.5], [4.0, 2.0, 1.0], [0.1, 5.0, 2.5]])

    def scored(
        _: object, __: object, probes: np.ndarray, ___: object, gallery: np.ndarray, **____: object
    ) -> dict[str, np.ndarray]:
        return dict.fromkeys(COLUMNS, value[np.ix_((probes - 1) // 2, gallery // 2)])

    monkeypatch.setattr("oaml.inference.score_all", scored)
    monkeypatch.setattr(metrics, "MIN_FALSE_ACCEPTS", 0)
    monkeypatch.setattr(ijb, "FPIRS", (0.5,))
    found = measure(small_model(), "ijbs", tmp_path, tmp_path / "out")
    assert found.verification == {}
    rates = {gallery: by_score["fused"] for gallery, by_score in found.identification.items()}
    assert {gallery: rate.rank[1] for gallery, rate in rates.items()} == {
        "G1": 0.5,
        "G2": 1,
        "G1 and G2": 1 / 3,
    }
    assert (rates["G1"].probes, rates["G1"].strangers, rates["G1 and G2"].strangers) == (2, 1, 0)
    assert rates["G1"].tpir_at_fpir == {0.5: 0}  # the stranger of G1 reaches 5, the probes 3 and 4
    assert rates["G2"].tpir_at_fpir == {0.5: 1}  # its strangers reach .5 and 1: one may pass
    assert found.identification_mean["fused"].rank[1] == 0.75
    for crop in (tmp_path / "crops" / "3").glob("videos_21_*"):
        crop.unlink()
    with pytest.raises(OamlError, match=r"1 images that it names are missing in .*: 3/videos_21_\*"):
        read_lists("ijbs", tmp_path)


def test_what_is_missing_is_counted_before_anything_is_computed(data: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "set", "ijbb")
    data = tmp_path / "set"
    meta = data / "meta"

    with pytest.raises(OamlError, match=r"ijbc_face_tid_mid\.txt: no such file"):
        read_lists("ijbc", data)
    (data / "loose_crop" / "4.jpg").rename(data / "kept")
    with pytest.raises(
        OamlError, match=r"1 images that it names are missing in .*loose_crop: 4\.jpg; complete the set"
    ):
        read_lists("ijbb", data)
    (data / "kept").rename(data / "loose_crop" / "4.jpg")
    pairs = meta / "ijbb_template_pair_label.txt"
    good = pairs.read_text()
    for text, what in (
        (good + "7 99 0\n", "names 1 templates that have no image: 99"),
        (good + "7 x 0\n", "line 8: '7 x 0' is not 3 numbers"),
        ("", "is empty"),
    ):
        pairs.write_text(text)
        with pytest.raises(OamlError, match=what):
            read_lists("ijbb", data)
    pairs.write_text(good)
    (meta / "ijbb_1N_probe_mixed.csv").unlink()
    with pytest.raises(OamlError, match="1:N needs the probes"):
        read_lists("ijbb", data)


def test_tpir_at_fpir_by_hand() -> None:
    best, first = np.array([5.0, 4.0, 3.0, 2.0]), np.array([True, False, True, True])
    strangers = np.linspace(0, 2.9, 1000)
    assert metrics.tpir_at_fpir(best, first, strangers, 0.01) == 0.5
    assert metrics.tpir_at_fpir(best, first, strangers, 0.5) == 0.75
    assert metrics.tpir_at_fpir(best, first, strangers[:10], 0.01) is None
    assert (
        metrics.tpir_at_fpir(best, first, np.full(1000, 5.0), 0.01) == 0
    )  # all equal: none of them may pass
