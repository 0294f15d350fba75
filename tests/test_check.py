"""Damage to a gallery is noticed whatever it hits, named, and repaired from an export."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oaml.errors import OamlError
from oaml.gallery import Gallery
from oaml.gallery.digests import DIGESTED
from oaml.gallery.folder import Entry
from oaml.gallery.gallery import GALLERY_FORMAT
from oaml.gallery.rows import Packing, column_names, schema, table
from oaml.gallery.store import Store
from oaml.main import main
from test_disk import contents, enrol, faces, names

CHANGES = 200 if os.environ.get("OAML_STRESS") else 25
"""Of each kind of damage to each kind of file."""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of A to J and its export; nothing is written here by the tests."""
    place = tmp_path_factory.mktemp("whole") / "g"
    enrol(place, "ABCDEFGHIJ")
    Gallery(place).export(place.with_name("e.safetensors"))
    return place


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "g")


def change(place: Path, piece: bytes) -> None:
    """Flip a bit in the middle of some bytes of a file of data."""
    for path in (place / "faces.lance" / "data").iterdir():
        data = path.read_bytes()
        if (at := data.find(piece)) >= 0:
            at += len(piece) // 2
            path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            return
    raise AssertionError("no such bytes")


def row(place: Path, person: str) -> dict[str, Any]:
    return next(row for row in contents(place) if row["person"] == person)


PIECES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "template": lambda row: row["template"],
    "vector": lambda row: np.array(row[column_names()[2]], np.float16).tobytes()[:3],
    "digest": lambda row: row["digest_template"],
}


@pytest.mark.parametrize("kind", PIECES)
def test_a_damaged_face_is_named_and_repaired(
    place: Path, whole: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(place)
    assert Gallery(place).check(label=None) == []
    change(place, PIECES[kind](row(place, "C")))
    assert Gallery(place).check(label=None) == ["C"]
    if kind != "vector":
        with pytest.raises(OamlError, match=r"is damaged \(faces: of C\).*--check"):
            Store(place).rows(["person", "template"])
        with pytest.raises(OamlError, match="is damaged"):
            Gallery(place).export(place.with_name("other.safetensors"))
        assert not place.with_name("other.safetensors").exists()
    assert main(["gallery", str(place), "--check"]) == 1
    said = capsys.readouterr()
    assert said.out.strip() == "C"
    assert "1 of 10 people are damaged" in said.err
    export = str(whole.with_name("e.safetensors"))
    Gallery(place).delete("J")  # is in the export, and nobody asked for it
    assert main(["gallery", str(place), "--check", "--restore", export]) == 0
    assert contents(place) == [row for row in before if row["person"] != "J"]
    assert main(["gallery", str(place), "--check"]) == 0


def test_a_damaged_face_is_dropped_by_its_name(place: Path) -> None:
    change(place, PIECES["template"](row(place, "C")))
    Gallery(place).delete("C")
    assert Gallery(place).check(label=None) == []
    assert names(place) == "ABDEFGHIJ"


def answer(place: Path) -> list[tuple[Any, ...]]:
    """All that a decision hangs on."""
    rows = Store(place).rows(["person", "template"])
    return sorted(zip(rows["person"].to_pylist(), rows["template"].to_pylist(), strict=True))


@pytest.mark.parametrize("folder", ["data", "_versions"])
@pytest.mark.parametrize("zeros", [0, 1, 512])
def test_damage_anywhere_changes_nothing_unnoticed(
    place: Path, tmp_path: Path, folder: str, zeros: int
) -> None:
    rng = random.Random(f"{folder} {zeros}")
    whole, noticed = answer(place), list[str]()
    (path,) = [p for p in (place / "faces.lance" / folder).iterdir() if p.suffix != ".json"]
    data = path.read_bytes()
    for _ in range(CHANGES):
        at = rng.randrange(len(data))
        changed = bytearray(data)
        if zeros:
            changed[at : at + zeros] = bytes(len(changed[at : at + zeros]))
        else:
            changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            assert answer(place) == whole
        except OamlError as error:
            noticed.append(str(error))
    assert noticed
    assert all(str(place) in line and "\n" not in line for line in noticed)
    path.write_bytes(data)
    assert answer(place) == whole


def test_nothing_is_removed_where_a_manifest_is_damaged(place: Path) -> None:
    (manifest,) = place.rglob("*.manifest")
    (data,) = (place / "faces.lance" / "data").iterdir()
    manifest.write_bytes(manifest.read_bytes().replace(data.name.encode(), b"x" * len(data.name)))
    with pytest.raises(OamlError, match=r"files of data|can't be"):
        enrol(place, "X", 50)
    assert data.exists()


def test_a_gallery_of_an_older_version_has_no_digests_and_is_used(tmp_path: Path) -> None:
    place, made = tmp_path / "g", faces(4)
    packing = Packing.of(made)
    older = Store(place)
    with older.writing():
        columns = schema(packing)
        for name in DIGESTED.values():
            columns = columns.remove(columns.get_field_index(name))
        facts = {"format": GALLERY_FORMAT, "model": "0123", "model_name": "m", "packing": packing.to_list()}
        older.create(columns, facts)
        entries = [Entry(name, name, "", "") for name in "ABCD"]
        older.add(table(entries, made, [None] * 4, packing))
    enrol(place, "X", 50)
    Gallery(place).rename("A", "Z")
    assert Gallery(place).delete("B") == 1
    assert names(place) == "CDXZ"
    assert Gallery(place).check(label=None) == []
    Gallery(place).export(tmp_path / "e.safetensors")
    assert Gallery(tmp_path / "new").import_(tmp_path / "e.safetensors").added == 4
    assert set(DIGESTED.values()) <= contents(tmp_path / "new")[0].keys()


def test_an_export_that_was_changed_is_refused(whole: Path, tmp_path: Path) -> None:
    for name in ("e.safetensors", "e.json"):
        shutil.copy(whole.with_name(name), tmp_path / name)
    text = (tmp_path / "e.json").read_text()
    (tmp_path / "e.json").write_text(text.replace('"folder": ""', '"folder": "x"', 1))
    with pytest.raises(OamlError, match=r"e\.json: is damaged"):
        Gallery(tmp_path / "g").import_(tmp_path / "e.safetensors")
    assert not (tmp_path / "g").exists()
