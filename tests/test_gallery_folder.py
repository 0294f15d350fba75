"""Enrolling a folder again: what is gone is removed, what merely isn't seen stays, and a folder that moved is the same folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import TwoFaces, small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.gallery import Gallery, disk
from oaml.gallery import gallery as gallery_module
from oaml.gallery.answers import Enrolled
from oaml.gallery.folder import Entry, changes
from oaml.main import main
from oaml.recognition.recognise import Recogniser
from oaml.support.folders import LeftOut

pytest.importorskip("lancedb")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser(small_model(1.0, thresholds={"0.001": 9.5}), TwoFaces(), "runs/m")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def once(recogniser: Recogniser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people with two images each, enrolled; to be copied."""
    root = tmp_path_factory.mktemp("once")
    for number, person in enumerate(("Ann", "Bob", "Cy", "Dora")):
        for shot in range(2):
            put(root / "db" / person / f"{shot}.png", number, shot)
    Gallery(root / "g", recogniser).enroll_folder(root / "db", label=None)
    return root


def put(path: Path, person: int, shot: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_face(person, shot)).save(path)


class Enrolling:
    """A copy of people and gallery, in which nothing has moved."""

    def __init__(self, root: Path, once: Path, recogniser: Recogniser) -> None:
        self.db, self.other = root / "db", root / "other place"
        shutil.copytree(once / "db", self.db)
        self.gallery = Gallery(root / "g", recogniser)
        self.again(self.db)

    def again(self, folder: Path, confirm: Callable[[str], bool] | None = None) -> Enrolled:
        return self.gallery.enroll_folder(folder, label=None, confirm=confirm)

    def names(self) -> dict[str, int]:
        return {person.name: person.faces for person in self.gallery.people()}

    def rows(self) -> list[dict[str, Any]]:
        return self.gallery._store.rows(Entry._fields).to_pylist()


@pytest.fixture
def enrolling(tmp_path: Path, once: Path, recogniser: Recogniser) -> Enrolling:
    return Enrolling(tmp_path, once, recogniser)


ALL = {"Ann": 2, "Bob": 2, "Cy": 2, "Dora": 2}


def test_a_folder_that_moved_is_the_same_folder(enrolling: Enrolling) -> None:
    enrolling.db.rename(enrolling.other)
    changed = enrolling.again(enrolling.other)
    assert (changed.added, changed.removed, changed.moved, changed.kept) == (0, 0, 8, 0)
    assert {row["folder"] for row in enrolling.rows()} == {str(enrolling.other)}
    assert {row["source"] for row in enrolling.rows()} == {
        str(path) for path in enrolling.other.rglob("*.png")
    }
    shutil.rmtree(enrolling.other / "Ann")
    (enrolling.other / "Bob").rename(enrolling.other / "Robert")
    assert enrolling.again(enrolling.other).removed == 2
    assert enrolling.names() == {"Cy": 2, "Dora": 2, "Robert": 2}


def test_moved_renamed_and_removed_at_once(enrolling: Enrolling) -> None:
    shutil.copytree(enrolling.db, enrolling.other)  # to another disk: another inode
    shutil.rmtree(enrolling.db)
    shutil.rmtree(enrolling.other / "Ann")
    (enrolling.other / "Bob").rename(enrolling.other / "Robert")
    (enrolling.other / "Cy" / "0.png").rename(enrolling.other / "Cy" / "it's new.png")
    changed = enrolling.again(enrolling.other)
    assert (changed.added, changed.removed, changed.moved) == (0, 2, 6)
    assert enrolling.gallery.check(label=None) == []
    assert enrolling.names() == {"Cy": 2, "Dora": 2, "Robert": 2}
    assert {row["source"] for row in enrolling.rows()} == {
        str(path) for path in enrolling.other.rglob("*.png")
    }


def test_a_copy_is_another_folder(enrolling: Enrolling) -> None:
    shutil.copytree(enrolling.db, enrolling.other)
    shutil.rmtree(enrolling.other / "Ann")
    changed = enrolling.again(enrolling.other)
    assert (changed.removed, changed.moved, changed.kept) == (0, 0, 6)
    assert enrolling.names() == ALL


def test_what_a_small_part_of_a_lost_folder_holds_removes_nobody(enrolling: Enrolling) -> None:
    (enrolling.db / "Ann").rename(enrolling.db.with_name("Ann"))
    enrolling.db.rename(enrolling.db.with_name("unmounted"))
    (enrolling.other).mkdir()
    enrolling.db.with_name("Ann").rename(enrolling.other / "Ann")
    changed = enrolling.again(enrolling.other)
    assert (changed.removed, changed.moved) == (0, 2)
    assert enrolling.names() == ALL
    assert "6 images of Bob, Cy, Dora were enrolled from" in changed.notes[0]
    assert [row["folder"] for row in enrolling.rows() if row["person"] == "Ann"] == [str(enrolling.other)] * 2
    put(enrolling.other / "Zoe" / "0.png", 9, 0)
    shutil.rmtree(enrolling.other / "Ann")
    assert enrolling.again(enrolling.other).removed == 2


def test_what_cannot_be_seen_now_stays(enrolling: Enrolling) -> None:
    bob, cy, dora = (enrolling.db / name for name in ("Bob", "Cy", "Dora"))
    bob.rename(enrolling.db.with_name("bob"))
    bob.symlink_to("../bob")
    assert (enrolling.again(enrolling.db).kept, enrolling.names()) == (8, ALL)  # a link in place of a folder
    enrolling.db.with_name("bob").rename(enrolling.db.with_name("unmounted"))
    (cy / "0.png").unlink()
    (cy / "0.png").symlink_to("gone.png")
    (dora / "0.png").write_bytes(b"half a picture")  # being written
    shutil.rmtree(enrolling.db / "Ann")
    (enrolling.db / "Ann").mkdir()  # an empty place to mount something
    changed = enrolling.again(enrolling.db)
    assert (changed.added, changed.removed) == (0, 0)
    assert enrolling.names() == ALL
    said = "\n".join(changed.left_out)
    for part in (
        "Bob: is a link to nothing",
        "Cy/0.png: is a link to nothing",
        "Ann: is an empty folder",
        "Dora/0.png: ",
    ):
        assert part in said
    assert "6 enrolled images of Ann, Bob, Cy, Dora can't be seen now" in changed.notes[0]
    # what is removed there is removed
    bob.unlink()
    (cy / "0.png").unlink()
    shutil.rmtree(enrolling.db / "Ann")
    assert enrolling.again(enrolling.db).removed == 5
    assert enrolling.names() == {"Cy": 1, "Dora": 2}


def test_an_unreadable_picture_stays(enrolling: Enrolling, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.parent.name == "Bob":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    changed = enrolling.again(enrolling.db)
    assert changed.removed == 0
    assert enrolling.names() == ALL
    assert "Bob/0.png: can't be read (Permission denied)" in "\n".join(changed.left_out)


@pytest.mark.parametrize("how", ["empty", "gone", "system", "links"])
def test_a_folder_without_anything_removes_nobody(enrolling: Enrolling, how: str) -> None:
    enrolling.db.rename(enrolling.db.with_name("unmounted"))
    if how != "gone":
        enrolling.db.mkdir()
    if how == "system":
        (enrolling.db / "lost+found").mkdir()
    if how == "links":
        (enrolling.db / "Ann").symlink_to("nowhere")
    with pytest.raises(OamlError, match=r"no people|no such folder"):
        enrolling.again(enrolling.db)
    assert enrolling.names() == ALL


def test_much_to_remove_is_asked_first(enrolling: Enrolling) -> None:
    asked: list[str] = []
    shutil.rmtree(enrolling.db / "Ann")
    put(enrolling.db / "Eve" / "0.png", 9, 0)
    before = enrolling.rows()
    with pytest.raises(OamlError, match="nothing was changed"):
        enrolling.again(enrolling.db, lambda line: bool(asked.append(line)))
    assert enrolling.rows() == before
    assert "1 of 4 people (Ann) and 2 of 8 images" in asked[0]
    assert enrolling.again(enrolling.db, lambda line: True).removed == 2
    assert enrolling.again(enrolling.db, lambda line: pytest.fail(line)).removed == 0


def test_a_tenth_may_go_without_a_question() -> None:
    def entries(count: int, person: Callable[[int], str]) -> list[Entry]:
        return [Entry(person(n), str(n), f"f/{person(n)}/{n}", "f") for n in range(count)]

    few = entries(100, lambda n: str(n // 5))
    assert changes(few[:90], few, "f").warning() is None  # 10 images, 2 of 20 people
    warning = changes(few[:89], few, "f").warning()
    assert warning is not None
    assert "2 of 20 people (18, 19) and 11 of 100 images" in warning
    one_each = [*entries(90, lambda n: "A"), *entries(100, str)[90:]]  # of 11 people two with one image each
    warning = changes(one_each[:-2], one_each, "f").warning()
    assert warning is not None
    assert "2 of 11 people (98, 99) and 2 of 100 images" in warning
    renamed = [entry._replace(person="B", source=f"f/B/{entry.image}") for entry in few[90:]]
    assert changes(few[:90] + renamed, few, "f").warning() is None  # nobody is gone


def test_left_out_protects_what_lies_below_it() -> None:
    old = [Entry("A", "x", "f/A/deep/1", "f"), Entry("AB", "y", "f/AB/1", "f")]
    todo = changes([], old, "f", [LeftOut(Path("f/A"), "can't be read")])
    assert (todo.gone, todo.unseen) == ([old[1]], [old[0]])


def test_many_moves_are_a_few_statements(enrolling: Enrolling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "CHANGED", 3)
    statements: list[str] = []
    change = enrolling.gallery._store.change

    def counted(where: str, values: dict[str, str] | None = None) -> int:
        statements.append(where)
        return change(where, values)

    monkeypatch.setattr(enrolling.gallery._store, "change", counted)
    for path in sorted(enrolling.db.rglob("*.png")):
        (path.parent / "deep").mkdir(exist_ok=True)
        path.rename(path.parent / "deep" / path.name)
    assert enrolling.again(enrolling.db).moved == 8
    assert len(statements) == 3
    assert {row["source"] for row in enrolling.rows()} == {str(path) for path in enrolling.db.rglob("*.png")}


def test_names_of_any_bytes_are_enrolled(recogniser: Recogniser, tmp_path: Path) -> None:
    latin = os.fsdecode(b"J\xfcrgen")
    decomposed = unicodedata.normalize("NFD", "Jürgen")
    folder = tmp_path / os.fsdecode(b"f\xe4ces")
    for number, name in enumerate((latin, decomposed, "Jürgen", "a\nb", "\x1b[31mred")):
        put(folder / name / f"{number}.png", number, 0)
    gallery = Gallery(tmp_path / "g", recogniser)
    changed = gallery.enroll_folder(folder, thumbnails=False, label=None)
    assert changed.added == 5
    assert {p.name: p.faces for p in gallery.people()} == {
        "J\\udcfcrgen": 1,
        "Jürgen": 2,
        "a\nb": 1,
        "\x1b[31mred": 1,
    }
    assert "Jürgen: has 2 folders" in changed.notes[0]
    assert gallery.enroll_folder(folder, label=None).kept == 5
    (answer,) = gallery.search(folder / latin / "0.png", threshold=-1e9)
    assert gallery.picture(answer.candidates[0]) is not None  # found where it lies
    file = gallery.export(tmp_path / "all.safetensors")
    assert Gallery(tmp_path / "restored").import_(file).added == 5
    folder.rename(tmp_path / "faces")
    assert gallery.enroll_folder(tmp_path / "faces", label=None).moved == 5
    gallery.rename("a\\nb", decomposed.replace("J", "S"))  # by what is printed
    assert gallery.delete(decomposed, latin) == 3
    assert [person.name for person in gallery.people()] == ["\x1b[31mred", "Sürgen"]
    with pytest.raises(OamlError, match="300 bytes long"):
        gallery.rename("Sürgen", "x" * 300)


def test_decomposed_names_of_an_older_gallery_are_renamed(enrolling: Enrolling) -> None:
    decomposed = unicodedata.normalize("NFD", "Zoë")
    enrolling.gallery._store.change("person = 'Ann'", enrolling.gallery._named(decomposed))
    (enrolling.db / "Ann").rename(enrolling.db / decomposed)
    assert enrolling.gallery._known("Zoë") == decomposed
    changed = enrolling.again(enrolling.db)
    assert (changed.moved, changed.removed, changed.added) == (2, 0, 0)
    assert enrolling.names() == {"Bob": 2, "Cy": 2, "Dora": 2, "Zoë": 2}


def test_one_file_of_two_people_is_said(enrolling: Enrolling) -> None:
    shutil.copy(enrolling.db / "Ann" / "0.png", enrolling.db / "Bob" / "copy.png")
    (note,) = enrolling.again(enrolling.db).notes
    assert f"{enrolling.db}/Ann/0.png: is the same file as {enrolling.db}/Bob/copy.png" in note


def test_files_that_a_system_puts_into_a_gallery_harm_nothing(enrolling: Enrolling) -> None:
    table = Path(enrolling.gallery.path) / "faces.lance"
    manifest = disk.versions(table)[0]
    for path in (manifest, *(table / "data").glob("*.lance")):
        path.with_name(f"._{path.name}").write_bytes(b"x")
    (table / ".DS_Store").touch()
    assert disk.versions(table) == [manifest]
    opened = Gallery(enrolling.gallery.path, enrolling.gallery.recogniser)
    assert opened.delete("Ann") == 2
    assert len(opened.people()) == 3


# --- the command line


def test_the_command_asks_before_it_removes_much(
    enrolling: Enrolling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert enrolling.gallery.recogniser is not None
    enrolling.gallery.recogniser.model.save(tmp_path / "my model")
    shutil.rmtree(enrolling.db / "Ann")
    call = ["enroll", "db", "--gallery", "g", "--model", "my model"]
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # no terminal
    assert main(call) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "1 of 4 people (Ann) and 2 of 8 images" in said
    assert said.endswith("oaml enroll db --gallery g --model 'my model' --yes\n")
    assert enrolling.names() == ALL

    terminal = io.StringIO("n\ny\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(call) == 1
    assert "nothing was changed" in capsys.readouterr().err
    assert enrolling.names() == ALL
    assert main(call) == 0
    assert enrolling.names() == {"Bob": 2, "Cy": 2, "Dora": 2}

    shutil.rmtree(enrolling.db / "Bob")
    (enrolling.db / "Cy" / "notes.txt").touch()
    capsys.readouterr()
    assert main([*call, "--yes", "--json"]) == 0
    captured = capsys.readouterr()
    assert "1 of 3 people (Bob)" in captured.err
    said_json = json.loads(captured.out)
    assert (said_json["removed"], len(said_json["left_out"]), said_json["notes"]) == (2, 1, [])


def test_options_of_duplicates_are_refused_elsewhere(
    enrolling: Enrolling, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--far", "0.01"], ["--model", "m"], ["--device", "cpu"]):
        capsys.readouterr()
        assert main(["gallery", enrolling.gallery.path, *option]) == 1
        assert f"{option[0]}: is for --duplicates alone" in capsys.readouterr().err


def test_arrays_and_folders_do_not_mix(recogniser: Recogniser, enrolling: Enrolling) -> None:
    """Who came alone is nobody's folder, and stays whatever a folder holds."""
    enrolling.gallery.enroll("Alone", np.asarray(draw_face(11, 0)))
    shutil.rmtree(enrolling.db / "Ann")
    enrolling.again(enrolling.db)
    assert enrolling.names() == {"Alone": 1, "Bob": 2, "Cy": 2, "Dora": 2}
