"""A gallery: what is enrolled is found, what is deleted is gone from every file, and an interruption harms nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TwoFaces, group, small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.gallery import Gallery, disk, store
from oaml.gallery.answers import Candidate, judge
from oaml.gallery.duplicates import duplicates
from oaml.gallery.folder import Entry, changes
from oaml.gallery.rows import PATTERNS, Packing, column_names, probe_vectors
from oaml.gallery.store import Store
from oaml.main import main
from oaml.model import Model
from oaml.photographs.subjects import Subject
from oaml.photographs.usable import LEAST_USABLE
from oaml.recognition.decision import Threshold
from oaml.recognition.recognise import Recogniser
from oaml.template import Templates, pooled
from oaml.templates.quantised import QuantisedTemplates

lancedb_table = pytest.importorskip("lancedb.table")
pytestmark = pytest.mark.usefixtures("one_thread")


def made(bias: float = 1.0, seed: int = 0, **config: Any) -> Model:
    """As `small_model`, with thresholds."""
    return small_model(bias, seed, thresholds={"0.001": 9.5, "0.01": 5.0}, **config)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser(made(training={"thresholds_fitted_on": "12 drawn pairs"}), TwoFaces(), "runs/m")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people with two images each; nothing is written here by the tests."""
    root = tmp_path_factory.mktemp("people")
    for person in range(6):
        for shot in range(2):
            path = root / f"P{person}" / f"{shot}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(draw_face(person, shot)).save(path)
    return root


@pytest.fixture(scope="module")
def enrolled(recogniser: Recogniser, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of these people; nothing is written here by the tests."""
    path = tmp_path_factory.mktemp("enrolled") / "gallery"
    Gallery(path, recogniser).enroll_folder(photographs, thumbnails=True, label=None)
    return path


@pytest.fixture
def gallery(recogniser: Recogniser, enrolled: Path, tmp_path: Path) -> Gallery:
    """A copy to change."""
    shutil.copytree(enrolled, tmp_path / "gallery")
    return Gallery(tmp_path / "gallery", recogniser)


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    """A copy of three people's photographs to change."""
    for person in ("P0", "P1", "P2"):
        shutil.copytree(photographs / person, tmp_path / "db" / person)
    return tmp_path / "db"


def names(gallery: Gallery) -> dict[str, int]:
    return {person.name: person.faces for person in gallery.people()}


def contents(gallery: Gallery) -> list[dict[str, Any]]:
    """Every row, in an order of its own."""
    columns = [*Entry._fields, *column_names(), "template", "thumbnail"]
    rows = gallery._store.rows(columns).to_pylist()
    return sorted(rows, key=lambda row: (row["person"], row["image"]))


# --- searching


def test_an_enrolled_face_is_known(gallery: Gallery, photographs: Path) -> None:
    (answer,) = gallery.search(photographs / "P3" / "0.png", far=0.01)
    assert (answer.decision, answer.person) == ("known person", "P3")
    assert answer.candidates[0].person == "P3"
    assert answer.candidates[0].faces == 2
    assert [c.score for c in answer.candidates] == sorted((c.score for c in answer.candidates), reverse=True)
    assert (answer.threshold, answer.far, answer.threshold_from) == (5.0, 0.01, "model")
    assert answer.fitted_on == "12 drawn pairs"
    assert (answer.people, answer.strangers_expected) == (6, pytest.approx(0.06))
    assert len(gallery.search(photographs / "P3" / "0.png", top=2)[0].candidates) == 2
    json.dumps(answer.to_dict(), allow_nan=False)


def test_every_face_of_a_photograph_has_an_answer(gallery: Gallery) -> None:
    answers = gallery.search(group(4, 1), threshold=-1e9)
    assert [answer.person for answer in answers] == ["P4", "P1"]
    places = [answer.face.box[0] for answer in answers if answer.face is not None]
    assert places == [10, 160]
    assert all((a.threshold_from, a.far, a.strangers_expected) == ("user", None, None) for a in answers)
    json.dumps([answer.to_dict() for answer in answers], allow_nan=False)


def test_one_face_is_a_gallery(recogniser: Recogniser, tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "g", recogniser)
    gallery.enroll("Ann", draw_face(1, 0))
    (answer,) = gallery.search(draw_face(1, 0))
    assert [candidate.person for candidate in answer.candidates] == ["Ann"]


def test_a_stranger_is_unknown(gallery: Gallery, photographs: Path) -> None:
    (answer,) = gallery.search(draw_face(77, 0), threshold=1e9)
    assert (answer.decision, answer.person) == ("unknown person", None)
    assert "stays below the threshold" in answer.reason
    assert len(answer.candidates) == 5


def test_an_occluded_face_is_not_decided(
    gallery: Gallery, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gallery.recogniser is not None
    hide(monkeypatch, gallery.recogniser)
    (answer,) = gallery.search(photographs / "P3" / "0.png", threshold=-1e9)
    assert (answer.decision, answer.person) == ("too little visible to decide", None)
    assert answer.remedy is not None
    assert "more of the face" in answer.remedy


def candidate(person: str, score: float, both: float) -> Candidate:
    return Candidate(person, score, 0.5, both, 1, "")


@pytest.mark.parametrize(
    ("candidates", "threshold", "verdict", "person"),
    [
        ([candidate("A", 3, 0.5)], 2.0, "known person", "A"),
        ([candidate("A", 3, 0.5)], 3.0, "known person", "A"),
        ([candidate("A", 3, 0.5)], 3.1, "unknown person", None),
        ([candidate("A", 1, 0.5), candidate("B", 9, 0.01)], 2.0, "unknown person", None),
        ([candidate("B", 9, 0.01)], 2.0, "too little visible to decide", None),
        ([candidate("A", 3, 0.5)], None, "no threshold", None),
        ([], 2.0, "unknown person", None),
    ],
)
def test_judge(
    candidates: list[Candidate], threshold: float | None, verdict: str, person: str | None
) -> None:
    limit = None if threshold is None else Threshold(threshold, 0.001)
    answer = judge(candidates, limit, 10, 0.8, None, 5)
    assert (answer.decision, answer.person) == (verdict, person)


def test_too_little_in_common_is_said_with_the_most_that_is() -> None:
    veiled = [candidate("A", 3, 0.01), candidate("B", 9, 0.03), candidate("C", 1, 0.02)]
    assert "no more than 3.0 % of the face" in judge(veiled, Threshold(2.0, 0.001), 10, 0.8, None, 5).reason
    assert "no more than 4.0 % of the face" in judge([], Threshold(2.0, 0.001), 10, 0.04, None, 5).reason


def test_a_face_that_is_just_usable_is_judged() -> None:
    found, limit = [candidate("A", 3, 0.5)], Threshold(2.0, 0.001)
    assert judge(found, limit, 10, 0.8, None, 5, usable=LEAST_USABLE).decision == "known person"
    below = float(np.nextafter(LEAST_USABLE, 0))
    assert judge(found, limit, 10, 0.8, None, 5, usable=below).decision == "no usable face"


def test_search_ranks_as_comparing_with_everybody_does(
    gallery: Gallery, recogniser: Recogniser, photographs: Path
) -> None:
    probe = recogniser.templates([draw_face(2, 5)])
    rows = gallery._store.rows(["person", "template"])
    faces = gallery._packing.unpack_column(rows["template"]).dequantised()
    owner = np.array(rows["person"].to_pylist())
    people = sorted(set(owner))
    one_each = [pooled(faces[torch.from_numpy(np.flatnonzero(owner == person))]) for person in people]
    scores = recogniser.model.compare_all(probe, Templates.join(one_each))["fused"][0]
    order = [people[i] for i in scores.argsort(descending=True).tolist()]
    ranked = gallery.candidates(probe)
    assert [c.person for c in ranked] == order
    assert ranked[0].score == pytest.approx(scores.max().item(), abs=1e-5)


def test_who_shows_too_little_comes_last_however_similar(
    gallery: Gallery, recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = recogniser.templates([draw_face(2, 5)])
    with monkeypatch.context() as patch:
        hide(patch, recogniser)
        gallery.enroll("Veiled", draw_face(2, 5))
    compare_all = recogniser.model.compare_all

    def sure_of_the_veiled(probes: Templates, people: Templates) -> dict[str, torch.Tensor]:
        scores = compare_all(probes, people)
        return {**scores, "fused": scores["fused"].masked_fill(people.visible() == 0, 1e6)}

    monkeypatch.setattr(recogniser.model, "compare_all", sure_of_the_veiled)
    ranked = gallery.candidates(probe)
    assert len(ranked) == 7
    assert (ranked[-1].person, ranked[-1].score, ranked[-1].visible_both) == ("Veiled", 1e6, 0)
    scores = [c.score for c in ranked[:-1]]
    assert scores == sorted(scores, reverse=True)
    # a share of just the least is enough
    most = max(ranked, key=lambda c: c.visible_both)
    with monkeypatch.context() as patch:
        patch.setattr("oaml.gallery.search.LEAST_SHARED", most.visible_both)
        assert gallery.candidates(probe)[0] == most
    (answer,) = gallery.search(draw_face(2, 5), threshold=1e5)
    assert (answer.decision, answer.candidates[0].person) == ("unknown person", ranked[0].person)


def test_the_first_stage_finds_the_nearest_vectors_of_the_pattern(
    gallery: Gallery, recogniser: Recogniser
) -> None:
    faces = recogniser.templates([draw_face(person, 3) for person in range(8)])
    shapes = torch.stack(list(PATTERNS.values())).view(-1, 1, 7, 7)
    for shape, column in zip(shapes, column_names(), strict=True):
        probes = Templates(**{**vars(faces), "visibility": shape.expand(len(faces), 1, 7, 7)})
        columns, vectors = probe_vectors(probes)
        assert set(columns) == {column}
        kept = gallery._store.rows([column, "image"])
        matrix = np.array(kept[column].to_pylist(), np.float32)
        for vector in vectors.numpy():
            wanted = ((matrix - vector) ** 2).sum(1).argsort()[:4]
            nearest_images = gallery._store.nearest(column, vector, 4, ["image"])["image"].to_pylist()
            assert nearest_images == [kept["image"][i].as_py() for i in wanted]


# --- people enrolled twice


def hide(monkeypatch: pytest.MonkeyPatch, recogniser: Recogniser) -> None:
    """Let no face that is enrolled from now on show anything."""
    extract = recogniser.templates

    def hidden(crops: Sequence[np.ndarray]) -> Templates:
        faces = extract(crops)
        return Templates(**{**vars(faces), "visibility": torch.zeros_like(faces.visibility)})

    monkeypatch.setattr(recogniser, "templates", hidden)


def test_duplicates_are_those_that_comparing_everybody_plainly_finds(
    gallery: Gallery, recogniser: Recogniser, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.enroll("Twin", [draw_face(3, 0), draw_face(3, 5)])
    gallery.enroll("O'Neil", draw_face(77, 0))
    rows = gallery._store.rows(["person", "template"])
    names, _, people = gallery._packing.unpack_people(rows)
    assert len(names) == 8
    fused = recogniser.model.compare_all(people, people)["fused"]
    plain = {frozenset((names[i], names[j])): fused[i, j].item() for i in range(8) for j in range(i)}
    threshold = float(np.median(list(plain.values())))
    monkeypatch.setattr("oaml.gallery.duplicates.READ", 3)
    monkeypatch.setattr("oaml.gallery.duplicates.BLOCK", 3)
    hide(monkeypatch, recogniser)
    gallery.enroll("Veiled", draw_face(3, 0))  # shows nothing: is compared, and never listed
    before = contents(gallery)
    count, pairs = duplicates(gallery._store, gallery._packing, recogniser.model, threshold, None)
    assert count == 9
    assert contents(gallery) == before
    scores = {frozenset((pair.person_a, pair.person_b)): pair.score for pair in pairs}
    assert len(scores) == len(pairs)
    expected = {pair: score for pair, score in plain.items() if score >= threshold}
    assert 0 < len(expected) < len(plain)
    assert scores == pytest.approx(expected, abs=1e-4)
    assert [pair.score for pair in pairs] == sorted((pair.score for pair in pairs), reverse=True)
    assert all(0.05 <= pair.visible_both <= 1 for pair in pairs)
    assert len(duplicates(gallery._store, gallery._packing, recogniser.model, -1e9, None)[1]) == len(plain)


def test_duplicates_of_nobody_and_of_one(recogniser: Recogniser, tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "g", recogniser)
    with pytest.raises(OamlError, match="no such gallery"):
        gallery.duplicates(0.01)
    gallery.enroll("Ann", [draw_face(1, 0), draw_face(1, 1)])
    named = gallery.duplicates(0.01, label=None)
    assert (named.people, named.pairs, named.impostors_expected) == (1, [], 0)
    gallery.delete("Ann")
    named = gallery.duplicates(0.01, label=None)
    assert (named.people, named.pairs, named.limit.value) == (0, [], 5.0)


def test_duplicates_need_a_threshold(gallery: Gallery, recogniser: Recogniser) -> None:
    with pytest.raises(OamlError, match=r"no threshold at FAR 0.0001; it has 0.01, 0.001"):
        gallery.duplicates()
    with pytest.raises(OamlError, match="this needs a model"):
        Gallery(gallery.path).duplicates(0.01)
    unfitted = made()
    unfitted.config.thresholds = {}
    with pytest.raises(OamlError, match="has no thresholds"):
        Gallery(gallery.path, Recogniser(unfitted)).duplicates(0.01)


# --- enrolling


def test_enrolling_again_picks_up_only_what_changed(
    recogniser: Recogniser, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery(tmp_path / "g", recogniser)
    assert gallery.enroll_folder(folder, label=None).added == 6
    first = contents(gallery)
    embedded: list[int] = []
    extract = recogniser.templates
    monkeypatch.setattr(recogniser, "templates", lambda crops: embedded.append(len(crops)) or extract(crops))
    assert gallery.enroll_folder(folder, label=None).kept == 6
    assert (contents(gallery), embedded) == (first, [])

    (folder / "P0" / "0.png").rename(folder / "P0" / "renamed.png")
    (folder / "P1").rename(folder / "Ann O'Neil")
    (folder / "P2" / "1.png").unlink()
    Image.fromarray(draw_face(2, 7)).save(folder / "P2" / "new.png")
    changed = gallery.enroll_folder(folder, label=None)
    assert (changed.added, changed.removed, changed.moved, changed.kept) == (1, 1, 3, 2)
    assert embedded == [1]
    assert names(gallery) == {"Ann O'Neil": 2, "P0": 2, "P2": 2}
    assert {row["source"] for row in contents(gallery)} == {str(p) for p in folder.rglob("*.png")}
    kept = {row["image"]: row["template"] for row in first}
    assert all(kept.get(row["image"], row["template"]) == row["template"] for row in contents(gallery))

    # what came another way is no business of this folder
    gallery.enroll("Bob", draw_face(9, 0))
    assert gallery.enroll_folder(folder, label=None).removed == 0
    assert names(gallery)["Bob"] == 1


def test_changes_move_one_image_to_one_place() -> None:
    old = [Entry("A", "x", "f/A/1", "f"), Entry("B", "y", "g/B/1", "g")]
    new = [Entry("C", "x", "f/C/1", "f"), Entry("D", "x", "f/D/1", "f")]
    todo = changes(new, old, "f")
    assert (todo.moved, todo.new, todo.gone) == ([(old[0], new[0])], [new[1]], [])


def test_an_interrupted_enrolment_is_continued(
    recogniser: Recogniser, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oaml.gallery.gallery.BATCH", 2)
    extract = recogniser.templates
    left = [2]

    def twice(crops: Sequence[np.ndarray]) -> Templates:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return extract(crops)

    monkeypatch.setattr(recogniser, "templates", twice)
    with pytest.raises(KeyboardInterrupt):
        Gallery(tmp_path / "g", recogniser).enroll_folder(folder, label=None)
    monkeypatch.setattr(recogniser, "templates", extract)
    again = Gallery(tmp_path / "g", recogniser)
    assert sum(names(again).values()) == 4
    assert again.search(folder / "P0" / "0.png")[0].candidates[0].person == "P0"
    assert again.enroll_folder(folder, label=None).added == 2
    whole = Gallery(tmp_path / "h", recogniser)
    whole.enroll_folder(folder, label=None)
    assert contents(again) == contents(whole)


def test_images_that_cannot_be_enrolled(recogniser: Recogniser, folder: Path, tmp_path: Path) -> None:
    (folder / "P0" / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (200, 90)).save(folder / "P1" / "nobody.png")
    Image.fromarray(group(1, 2)).save(folder / "P2" / "two.png")
    Image.fromarray(draw_face(1, 0)).save(folder / "loose.png")
    gallery = Gallery(tmp_path / "g", recogniser)
    changed = gallery.enroll_folder(folder, label=None)
    assert changed.added == 6
    said = " ".join(changed.left_out)
    assert len(changed.left_out) == 4
    for part in (
        "broken.jpg: is not a readable",
        "nobody.png: no face",
        "two.png: shows 2 faces",
        "loose.png",
    ):
        assert part in said
    before = contents(gallery)
    for image, part in ((folder / "P2" / "two.png", "2 faces"), (tmp_path / "none.png", "none.png")):
        with pytest.raises(OamlError, match=part):
            gallery.enroll("Ann", [draw_face(5, 0), image])
    for name in ("", " ", "a\nb"):
        with pytest.raises(OamlError, match="name"):
            gallery.enroll(name, draw_face(5, 0))
    with pytest.raises(OamlError, match="no images"):
        gallery.enroll("Ann", [])
    assert contents(gallery) == before


def test_bad_folders_leave_no_gallery(recogniser: Recogniser, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "A").mkdir(parents=True)
    (tmp_path / "bad" / "A" / "x.png").write_bytes(b"")
    (tmp_path / "flat").mkdir()
    Image.fromarray(draw_face(1, 0)).save(tmp_path / "flat" / "a.png")
    gallery = Gallery(tmp_path / "g", recogniser)
    for name, part in (
        ("none", "no such folder"),
        ("empty", "no images"),
        ("bad", "x.png"),
        ("flat", "NAME"),
    ):
        with pytest.raises(OamlError, match=part):
            gallery.enroll_folder(tmp_path / name, label=None)
    assert not (tmp_path / "g").exists()
    with pytest.raises(OamlError, match="is no gallery"):
        Gallery(tmp_path / "bad", recogniser)
    for call in (gallery.people, lambda: gallery.search(draw_face(1, 0)), lambda: gallery.delete("A")):
        with pytest.raises(OamlError, match="oaml enroll"):
            call()


def test_the_same_image_again_is_kept(gallery: Gallery, photographs: Path) -> None:
    path = photographs / "P0" / "0.png"
    changed = gallery.enroll("P0", [path, path.read_bytes(), draw_face(0, 4)])
    assert (changed.added, changed.kept) == (1, 1)
    assert names(gallery)["P0"] == 3


# --- people


def test_rename(gallery: Gallery, photographs: Path) -> None:
    gallery.rename("P1", "Ann O'Neil")
    assert names(gallery)["Ann O'Neil"] == 2
    assert gallery.search(photographs / "P1" / "0.png")[0].candidates[0].person == "Ann O'Neil"
    with pytest.raises(OamlError, match="already"):
        gallery.rename("P2", "P3")
    with pytest.raises(OamlError, match="did you mean"):
        gallery.rename("Ann ONeil", "Bob")


def test_another_model_is_refused_with_the_command_that_enrols_again(
    enrolled: Path, photographs: Path
) -> None:
    other = Recogniser(made(seed=1), None, "runs/other")
    with pytest.raises(OamlError) as caught:
        Gallery(enrolled, other)
    said = str(caught.value)
    assert f"oaml enroll {photographs} --gallery {enrolled}-" in said
    assert "runs/m" in said
    assert said.endswith("--model runs/other")


def test_export_and_import_restore_everything(
    gallery: Gallery, recogniser: Recogniser, tmp_path: Path
) -> None:
    gallery.enroll("Bob", draw_face(9, 0))
    file = gallery.export(tmp_path / "out" / "all.safetensors")
    assert sorted(p.name for p in file.parent.iterdir()) == ["all.json", "all.safetensors"]
    restored = Gallery(tmp_path / "restored")
    assert restored.import_(file).to_dict() == {
        **{"added": 13, "removed": 0, "moved": 0, "kept": 0},
        **{"left_out": [], "notes": [], "poor": [], "without": []},
    }
    assert contents(restored) == contents(gallery)
    assert restored.import_(file).kept == 13
    opened = Gallery(tmp_path / "restored", recogniser)
    assert opened.search(draw_face(9, 0))[0] == gallery.search(draw_face(9, 0))[0]

    other = Gallery(tmp_path / "other", Recogniser(made(seed=1), None, "runs/other"))
    other.enroll("Ann", draw_face(1, 0))
    before = contents(other)
    with pytest.raises(OamlError, match=r"all\.safetensors: holds faces of another model \(runs/m"):
        other.import_(file)
    assert contents(other) == before

    said = json.loads((tmp_path / "out" / "all.json").read_text())
    said["faces"].pop()
    (tmp_path / "out" / "all.json").write_text(json.dumps(said))
    with pytest.raises(OamlError, match="does not belong"):
        restored.import_(file)
    (tmp_path / "out" / "all.json").write_text("{")
    with pytest.raises(OamlError, match="damaged"):
        restored.import_(file)
    (tmp_path / "out" / "all.json").unlink()
    with pytest.raises(OamlError, match=r"all\.json: no such file"):
        restored.import_(file)
    with pytest.raises(OamlError, match="ends so"):
        gallery.export(tmp_path / "all.json")


# --- deleting


def traces(gallery: Gallery, person: str) -> list[bytes]:
    """Pieces of bytes that only this person's rows hold: templates, vectors of every pattern, thumbnails."""
    rows = [row for row in contents(gallery) if row["person"] == person]
    pieces = [row["template"][start : start + 48] for row in rows for start in (0, 200, 700)]
    pieces += [np.array(row[c], np.float16).tobytes() for row in rows for c in column_names()]
    pieces += [row["thumbnail"][-400:-340] for row in rows if row["thumbnail"]]  # tables come first in a JPEG
    others = b"".join(row["template"] for row in contents(gallery) if row["person"] != person)
    return [piece for piece in pieces if piece not in others]


def holding(place: Path, pieces: list[bytes]) -> list[set[str]]:
    """For every piece the folders of the store with a file that holds it."""
    files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    return [{path.relative_to(place).parts[1] for path, data in files.items() if p in data} for p in pieces]


def in_index(place: Path, vectors: np.ndarray, rows: np.ndarray) -> bool:
    """Whether any file of an index holds the bytes that it keeps for one of some vectors of a column.

    Args:
        vectors: [N,E], all of the column: their least and largest number are 0 and 255.
        rows: [R,E], those to look for.
    """
    low, high = vectors.min(), vectors.max()
    wanted = (rows - low) / (high - low) * 255
    for path in (p for p in place.rglob("*") if p.is_file() and "_indices" in p.parts):
        data = np.frombuffer(path.read_bytes(), np.uint8)
        if len(data) < rows.shape[1]:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(data, rows.shape[1])
        near = np.flatnonzero(np.abs(windows[:, 0] - wanted[:, :1]).min(0) <= 1.01)
        if any((np.abs(windows[near] - row) <= 1.01).all(1).any() for row in wanted):
            return True
    return False


def column_of(gallery: Gallery, column: str, person: str | None = None) -> np.ndarray:
    rows = [row for row in contents(gallery) if person in (None, row["person"])]
    return np.array([row[column] for row in rows], np.float64)


@pytest.fixture(scope="module")
def indexed(enrolled: Path, recogniser: Recogniser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with indices in which one person is far less than the tenth that lance rewrites by itself."""
    path = tmp_path_factory.mktemp("indexed") / "gallery"
    shutil.copytree(enrolled, path)
    gallery = Gallery(path, recogniser)
    people = range(10, 30)
    entries = [Entry(f"P{person}", f"image {person}", "", "") for person in people]
    gallery._add(entries, [Subject(draw_face(person, 0), None) for person in people], thumbnails=False)
    gallery._store.tidy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "INDEXED_FROM", 10)
        gallery._store.tidy()
    return path


@pytest.fixture
def large(indexed: Path, recogniser: Recogniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gallery:
    """A copy to change."""
    monkeypatch.setattr(store, "INDEXED_FROM", 10)
    shutil.copytree(indexed, tmp_path / "large")
    return Gallery(tmp_path / "large", recogniser)


def test_lance_alone_leaves_the_bytes_of_deleted_rows(large: Gallery) -> None:
    """Why `Store.change` does what it does; where this fails, it may do less."""
    pieces = traces(large, "P1")
    large._store.table.delete("person = 'P1'")
    large._store.tidy()
    assert any(holding(Path(large.path), pieces))


def test_nothing_of_a_deleted_person_stays(large: Gallery) -> None:
    place = Path(large.path)
    pieces, others = traces(large, "P1"), traces(large, "P2")
    holders = holding(place, pieces)
    assert all("data" in folders for folders in holders)
    column = column_names()[0]
    vectors, theirs = column_of(large, column), column_of(large, column, "P1")
    assert in_index(place, vectors, theirs)  # the search sees into indices as well
    assert large.delete("P1") == 2
    assert not any(holding(place, pieces))
    assert not in_index(place, vectors, theirs)
    left = column_of(large, column)
    assert in_index(place, left, column_of(large, column, "P2"))
    assert not in_index(place, left, theirs)
    assert all(holding(place, others))
    assert "P1" not in names(large)
    assert len(names(large)) == 25
    assert large._store.table.list_indices()
    assert large.search(draw_face(15, 0))[0].candidates[0].person == "P15"


def test_nothing_stays_after_a_rename_either(large: Gallery) -> None:
    pieces = traces(large, "P3")
    large.rename("P3", "Ann")
    large.delete("Ann", "P4")
    assert not any(holding(Path(large.path), pieces))


@pytest.mark.parametrize("step", ["delete", "update", "drop_index", "create_index", "settle"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_deletion_is_finished_by_the_next_opening(
    large: Gallery, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    pieces = traces(large, "P1")
    owner = disk if step == "settle" else lancedb_table.LanceTable
    real: Callable[..., Any] = getattr(owner, step)

    def interrupted(*args: Any, **named: Any) -> None:
        begun = (Path(large.path) / "unfinished.lance").exists()
        if after or not begun:
            real(*args, **named)
        if begun:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            large.delete("P1")
    again = Gallery(large.path, large.recogniser)
    assert not any(holding(Path(large.path), pieces))
    assert len(names(again)) == 25
    assert {path.name for path in Path(large.path).iterdir()} == {".lock", "faces.lance"}


def test_a_list_of_things_to_do_that_is_half_written_counts_for_nothing(large: Gallery) -> None:
    before = contents(large)
    (Path(large.path) / "unfinished.lance" / "data").mkdir(parents=True)
    (Path(large.path) / "unfinished.lance" / "data" / "0.lance").write_bytes(b"half")
    again = Gallery(large.path, large.recogniser)
    assert contents(again) == before
    assert {path.name for path in Path(large.path).iterdir()} == {".lock", "faces.lance"}
    assert again.delete("P1") == 2


# --- several processes


def test_one_process_writes_at_a_time(
    large: Gallery, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WAIT_SECONDS", 0.05)
    before = contents(large)
    with Store(large.path).writing():
        for write in (
            lambda: large.enroll("Ann", draw_face(1, 5)),
            lambda: large.enroll_folder(photographs, label=None),
            lambda: large.rename("P1", "Ann"),
            lambda: large.delete("P1"),
            lambda: large.export(Path(large.path).with_name("all.safetensors")),
        ):
            with pytest.raises(OamlError, match="another process writes to it"):
                write()
        assert contents(large) == before  # reading goes on
    assert large.delete("P1") == 2


def test_two_processes_do_not_make_one_gallery(recogniser: Recogniser, tmp_path: Path) -> None:
    first, second = (Gallery(tmp_path / "g", recogniser) for _ in range(2))
    first.enroll("Ann", draw_face(1, 0))
    with pytest.raises(OamlError, match="has just made it; run this again"):
        second.enroll("Bob", draw_face(2, 0))
    assert names(first) == {"Ann": 1}


def test_who_reads_leaves_a_deletion_to_its_process(large: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.tidy

    def tidy_while_another_one_opens(self: Store) -> None:
        other = Gallery(large.path, large.recogniser)
        assert names(other).get("P1", 0) == 0
        assert "unfinished.lance" in {path.name for path in Path(large.path).iterdir()}
        real(self)

    monkeypatch.setattr(Store, "tidy", tidy_while_another_one_opens)
    assert large.delete("P1") == 2
    assert "unfinished.lance" not in {path.name for path in Path(large.path).iterdir()}


def test_files_that_a_writer_takes_away_are_looked_for_anew(gallery: Gallery) -> None:
    answers = iter([RuntimeError("lance error: Not found: data/0.lance"), None])

    def ask() -> str:
        if error := next(answers):
            raise error
        return "answer"

    assert gallery._store._read(ask) == "answer"
    for data in Path(gallery.path).rglob("data/*.lance"):
        data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(OamlError, match=r"can't be read .* restore it from an export"):
        gallery.people()


def test_a_gallery_has_an_address_or_a_path(recogniser: Recogniser, tmp_path: Path) -> None:
    gallery = Gallery(f"file://{tmp_path}/g", recogniser)
    with pytest.raises(OamlError, match="oaml enroll"):
        gallery.people()
    gallery.enroll("Ann", draw_face(1, 0))
    gallery.enroll("Bob", draw_face(2, 0))
    assert gallery.delete("Ann") == 1
    assert names(Gallery(tmp_path / "g", recogniser)) == {"Bob": 1}


def test_a_removed_file_is_gone_too(recogniser: Recogniser, folder: Path, tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "g", recogniser)
    gallery.enroll_folder(folder, thumbnails=True, label=None)
    pieces = traces(gallery, "P1")
    assert all(holding(tmp_path / "g", pieces))
    shutil.rmtree(folder / "P1")
    assert gallery.enroll_folder(folder, label=None).removed == 2
    assert not any(holding(tmp_path / "g", pieces))


# --- templates


def random_faces(count: int, seed: int = 0) -> Templates:
    """Faces whose cell_embeddings sum to their raw embedding, some cells hidden, some shown equally."""
    generator = torch.Generator().manual_seed(seed)
    cell_embeddings = torch.randn(count, 49, 16, generator=generator)
    raw = cell_embeddings.sum(1)
    return Templates(
        embedding=torch.nn.functional.normalize(raw, dim=1),
        norm=raw.norm(dim=1),
        visibility=(torch.rand(count, 1, 7, 7, generator=generator) * 4 - 1).clamp(0, 1),
        local=torch.nn.functional.normalize(torch.randn(count, 8, 7, 7, generator=generator), dim=1),
        cell_embeddings=cell_embeddings,
    )


def close(a: Templates, b: Templates) -> None:
    for name, values in vars(a).items():
        torch.testing.assert_close(values, getattr(b, name), msg=name)


def test_pooling_one_face_gives_it_back() -> None:
    face = random_faces(1)
    close(pooled(face), face)
    twice = Templates.join([face, face])
    close(pooled(twice), Templates(**{**vars(face), "cell_embeddings": pooled(twice).cell_embeddings}))
    shown = face.visibility.flatten() > 0
    torch.testing.assert_close(pooled(twice).cell_embeddings[0, shown], face.cell_embeddings[0, shown])
    with pytest.raises(ValueError, match="no faces"):
        pooled(random_faces(2)[:0])


def test_pooling_does_not_depend_on_the_order() -> None:
    faces = random_faces(5)
    for seed in range(4):
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        close(pooled(faces[order]), pooled(faces))


def test_pooling_several_people_at_once_is_pooling_each() -> None:
    faces = random_faces(9)
    owner = torch.tensor([2, 0, 1, 2, 3, 0, 2, 2, 3])
    each = Templates.join([pooled(faces[(owner == person).nonzero()[:, 0]]) for person in range(4)])
    close(pooled(faces, owner), each)
    alone = torch.tensor([3, 1, 0, 2])
    close(pooled(faces[:4], alone), faces[alone.argsort()])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_of_two_that_show_a_cell_the_one_that_shows_more_is_compared(order: list[int]) -> None:
    faces = random_faces(2)
    visibility = torch.ones(2, 1, 7, 7)
    visibility[1, 0, 3:] = 0
    faces = Templates(**{**vars(faces), "visibility": visibility, "norm": torch.tensor([1.0, 9.0])})
    assert torch.equal(pooled(faces[torch.tensor(order)]).local, faces.local[:1])


@pytest.mark.parametrize("sharpest", [True, False])
def test_of_many_that_show_as_much_the_sharpest_or_first_is_compared(sharpest: bool) -> None:
    """Many: a sort that isn't stable may still keep the order of a few."""
    faces = random_faces(600)
    norm = torch.randperm(600, generator=torch.Generator().manual_seed(1)).float() + 1
    equal = {"visibility": torch.ones_like(faces.visibility), "norm": norm if sharpest else torch.ones(600)}
    faces = Templates(**{**vars(faces), **equal})
    owner = torch.arange(600) % 2
    one_each = pooled(faces, owner)
    for person in (0, 1):
        own = (owner == person).nonzero()[:, 0]
        chosen = own[norm[own].argmax()] if sharpest else own[0]
        assert torch.equal(one_each.local[person], faces.local[chosen])


def test_pooled_per_cell_embeddings_sum_to_the_pooled_embedding_of_bare_faces() -> None:
    faces = random_faces(3)
    unoccluded = Templates(**{**vars(faces), "visibility": torch.ones_like(faces.visibility)})
    one = pooled(unoccluded)
    torch.testing.assert_close(one.cell_embeddings.sum(1), one.embedding * one.norm[:, None])
    torch.testing.assert_close(one.cell_embeddings, unoccluded.cell_embeddings.mean(0, keepdim=True))


def test_each_cell_is_of_the_faces_that_show_it() -> None:
    faces = random_faces(2)
    upper = torch.zeros(1, 7, 7)
    upper[:, :3] = 1
    halves = Templates(**{**vars(faces), "visibility": torch.stack([upper, 1 - upper])})
    one = pooled(halves)
    assert one.visibility.min() == 1
    for rows, face in ((slice(0, 3), 0), (slice(3, 7), 1)):
        cells = one.cell_embeddings.view(7, 7, -1)[rows]
        torch.testing.assert_close(cells, faces.cell_embeddings[face].view(7, 7, -1)[rows])
        assert torch.equal(one.local[0, :, rows], faces.local[face, :, rows])
    hidden = Templates(**{**vars(faces), "visibility": torch.zeros_like(faces.visibility)})
    assert all(values.isfinite().all() for values in vars(pooled(hidden)).values())


@pytest.mark.parametrize("count", [1, 3])
def test_packing_gives_back_every_bit(count: int) -> None:
    faces = QuantisedTemplates.of(random_faces(count))
    packing = Packing.of(faces)
    packed = packing.pack(faces)
    assert packed.shape == (count, faces.bytes_per_face) == (count, packing.size)
    unpacked = Packing.from_list(json.loads(json.dumps(packing.to_list()))).unpack(packed)
    assert all(torch.equal(values, getattr(faces, name)) for name, values in vars(unpacked).items())


# --- the command line


@pytest.fixture
def here(recogniser: Recogniser, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with a model, photographs and a gallery of them."""
    monkeypatch.chdir(tmp_path)
    recogniser.model.save(tmp_path / "m")
    assert main(["enroll", "db", "--gallery", "g", "--model", "m", "--json"]) == 0
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command says with --json: one object on stdout."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a wrong input."""
    capsys.readouterr()
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    return captured.err


def test_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = asked(capsys, "enroll", "db", "--gallery", "g", "--model", "m")
    assert (again["added"], again["kept"], len(again["people"])) == (0, 6, 3)
    search = ("search", "db/P1/0.png", "--gallery", "g", "--model", "m", "--far", "0.01")
    answer = asked(capsys, *search, "--top", "2", "--draw", "why.png")
    assert answer["faces"][0]["person"] == "P1"
    assert len(answer["faces"][0]["candidates"]) == 2
    assert (answer["picture"], answer["no_picture"]) == ("why.png", None)
    assert Image.open("why.png").size[0] > 500
    assert main(list(search)) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "P1",
        "reaches the threshold",
        "12 drawn pairs",
        "3 % of strangers would be taken for somebody here, among 3 people",
    ):
        assert part in text

    shutil.move("db", "elsewhere")
    answer = asked(capsys, "search", "elsewhere/P1/0.png", *search[2:], "--draw", "other.png")
    assert answer["picture"] is None
    assert "--thumbnails" in answer["no_picture"]
    assert not Path("other.png").exists()

    assert asked(capsys, "gallery", "g", "--rename", "P1", "Ann Lee")["renamed"] == ["P1", "Ann Lee"]
    assert asked(capsys, "gallery", "g", "--delete", "P0", "P2")["deleted"] == 4
    asked(capsys, "gallery", "g", "--export", "all.safetensors")
    assert asked(capsys, "gallery", "new", "--restore", "all.safetensors")["restored"] == 2
    (ann,) = asked(capsys, "gallery", "new")["people"]
    assert {**ann, "best": None, "worst": None} == {
        **{"name": "Ann Lee", "faces": 2, "thumbnails": 0},
        **{"best": None, "worst": None},
    }
    assert 0 <= ann["worst"]["value"] <= ann["best"] <= 1
    assert main(["gallery", "new"]) == 0
    assert "Ann Lee" in capsys.readouterr().out


def test_the_command_that_names_duplicates(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("gallery", "g", "--duplicates", "--model", "m")
    before = asked(capsys, "gallery", "g")
    named = asked(capsys, *command, "--far", "0.001")
    assert (named["gallery"], named["people"], named["threshold"], named["far"]) == ("g", 3, 9.5, 0.001)
    shutil.copytree("db/P1", "db/Ann")
    asked(capsys, "enroll", "db", "--gallery", "g", "--model", "m")
    named = asked(capsys, *command, "--far", "0.001")
    assert named["people"] == 4
    assert named["impostors_expected"] == pytest.approx(0.006)
    best = named["pairs"][0]
    assert {best["person_a"], best["person_b"]} == {"Ann", "P1"}
    assert best["score"] >= named["threshold"]
    assert main([*command, "--far", "0.001"]) == 0
    captured = capsys.readouterr()
    text = " ".join(captured.out.split())
    for part in (
        "Ann",
        "P1",
        f"{best['score']:.3f}",
        "threshold 9.500",
        "12 drawn pairs",
        "0.006 impostor pairs",
    ):
        assert part in text
    assert "comparing pairs" in captured.err
    asked(capsys, "gallery", "g", "--delete", "Ann", "P1", "P2")
    assert main([*command, "--far", "0.001"]) == 0
    assert "g: nobody among 1 people is probably enrolled twice" in capsys.readouterr().out
    assert asked(capsys, "gallery", "g")["people"] == before["people"][:1]
    assert "it has 0.01, 0.001: choose one with --far" in refused(capsys, *command)
    assert "one thing at a time" in refused(capsys, *command, "--delete", "P1")
    assert "another model" in refused(capsys, "gallery", "g", "--duplicates")


def test_wrong_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "oaml enroll FOLDER --gallery none" in refused(
        capsys, "search", "db/P1/0.png", "--gallery", "none", "--model", "m"
    )
    assert not Path("none").exists()
    assert "oaml enroll" in refused(capsys, "gallery", "none")
    assert "did you mean" in refused(capsys, "gallery", "g", "--delete", "P11")
    assert "one thing at a time" in refused(
        capsys, "gallery", "g", "--delete", "P1", "--export", "x.safetensors"
    )
    assert "--rename" in refused(capsys, "gallery", "g", "--rename", "P1")
    assert "top" in refused(capsys, "search", "db/P1/0.png", "--gallery", "g", "--model", "m", "--top", "0")
    assert "no such image" in refused(capsys, "search", "x.png", "--gallery", "g", "--model", "m")
    assert "PNG" in refused(
        capsys, "search", "db/P1/0.png", "--gallery", "g", "--model", "m", "--draw", "why.jpg"
    )
    version = next(Path("g/faces.lance/_versions").glob("*.manifest"))
    version.write_bytes(b"damaged")
    assert "can't be opened" in refused(capsys, "gallery", "g")


def test_without_lancedb_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['lancedb'] = None; sys.modules['pyarrow'] = None\n"
        "import oaml.gallery, oaml.gallery.commands, oaml.gallery.export, oaml.gallery.rows\n"
        f"oaml.gallery.Gallery({str(tmp_path)!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'oaml[gallery]'" in result.stderr


def test_a_video_has_one_answer_for_every_face_in_it(
    here: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("video").mkdir()
    for number, source in enumerate(("P1/0", "P1/0", "P1/0", "P5/1", "P5/1")):
        shutil.copy(photographs / f"{source}.png", f"video/{number}.png")
    search = ("search", "video", "--gallery", "g", "--model", "m")
    tracked = asked(capsys, *search, "--draw", "why.png")["faces"]
    best = [face["candidates"][0] for face in tracked]
    assert [face["person"] for face in tracked] == ["P1", None], best
    assert [(f["track"]["first_frame"], f["track"]["last_frame"]) for f in tracked] == [(0, 2), (3, 4)]
    assert Path("why.png").exists()
    assert [f["track"]["frames"] for f in asked(capsys, *search, "--every", "2")["faces"]] == [2, 1]
    assert main(list(search)) == 0
    assert "seen in 3 frames from 0 to 2" in " ".join(capsys.readouterr().out.split())
    Path("empty").mkdir()
    assert "no images" in refused(capsys, "search", "empty", *search[2:])
    assert "no such gallery" in refused(capsys, "search", "video", "--gallery", "none", "--model", "m")
