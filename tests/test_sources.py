"""The same pictures in a folder, a list, records and shards: the same people, names, labels, pixels and numbers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oaml.datasets.drawn import draw_face
from oaml.datasets.manifest import ManifestPictures
from oaml.datasets.people import PeopleFolder, person_of, split_name
from oaml.datasets.shards import ShardPictures
from oaml.datasets.sources import ByName, people_from, pictures_from, pictures_in
from oaml.errors import OamlError
from recordio_writer import insightface, write_records

PEOPLE = ["10", "2", "33", "4"]
"""Numbers, which records can hold."""
SHOTS = 3


def encoded(person: int, shot: int) -> bytes:
    """The file of a drawn face; some are JPEG, some PNG, whatever they are called."""
    file = io.BytesIO()
    Image.fromarray(draw_face(person, shot)).save(file, "JPEG" if shot else "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per person, numbered through, as records are unpacked."""
    root = tmp_path_factory.mktemp("sources") / "faces"
    for person, name in enumerate(PEOPLE):
        (root / name).mkdir(parents=True)
        for shot in range(SHOTS):
            (root / name / f"{1 + person * SHOTS + shot}.jpg").write_bytes(encoded(person, shot))
    return root


def as_folder(faces: Path, out: Path) -> Path:
    shutil.copytree(faces, out / "faces")
    return out / "faces"


def as_csv(faces: Path, out: Path) -> Path:
    shutil.copytree(faces, out, dirs_exist_ok=True)
    rows = [(path.relative_to(faces).as_posix(), path.parent.name) for path in sorted(faces.rglob("*.jpg"))]
    with (out / "faces.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("person", "note", "path"), *((b, "a, b", a) for a, b in reversed(rows))])
    return out / "faces.csv"


def as_records(faces: Path, out: Path) -> Path:
    files = {int(path.stem): path for path in faces.rglob("*.jpg")}
    people = [
        (float(name), [files[1 + p * SHOTS + s].read_bytes() for s in range(SHOTS)])
        for p, name in enumerate(PEOPLE)
    ]
    write_records(out / "train.rec", insightface(people))
    return out


def as_plain_records(faces: Path, out: Path) -> Path:
    rows = [
        (int(path.stem), float(path.parent.name), path.read_bytes()) for path in sorted(faces.rglob("*.jpg"))
    ]
    return write_records(out / "plain.rec", rows)


def as_list_and_records(faces: Path, out: Path) -> Path:
    paths = sorted(faces.rglob("*.jpg"), reverse=True)
    rows = [(key, float(path.parent.name), path.read_bytes()) for key, path in enumerate(paths)]
    lines = [
        f"{key}\t{path.relative_to(faces).as_posix()}\t{path.parent.name}\n" for key, path in enumerate(paths)
    ]
    write_records(out / "train.rec", rows).with_suffix(".tsv").write_text("".join(lines))
    return out


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def as_shards(faces: Path, out: Path) -> str:
    pytest.importorskip("webdataset")
    paths = sorted(faces.rglob("*.jpg"))
    for number in range(2):
        members = []
        for path in paths[number::2]:
            key = path.relative_to(faces).with_suffix("").as_posix()
            members.append((f"{key}.jpg", path.read_bytes()))
            if number:
                members.append((f"{key}.cls", path.parent.name.encode()))
            else:
                members.append((f"{key}.json", json.dumps({"person": int(path.parent.name)}).encode()))
        write_shard(out / f"faces-{number:03d}.tar", members)
    return f"{out}/faces-{{000..001}}.tar"


def as_folder_of_shards(faces: Path, out: Path) -> Path:
    as_shards(faces, out)
    return out


FORMATS: dict[str, Callable[[Path, Path], Path | str]] = {
    "folder": as_folder,
    "csv": as_csv,
    "records": as_records,
    "plain records": as_plain_records,
    "records with a list": as_list_and_records,
    "shards": as_shards,
    "folder of shards": as_folder_of_shards,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("skip_damaged", [False, True])
def test_the_same_people(name: str, skip_damaged: bool, faces: Path, tmp_path: Path) -> None:
    expected = PeopleFolder(faces)
    found = people_from(FORMATS[name](faces, tmp_path), skip_damaged=skip_damaged)
    assert found.people == expected.people == sorted(PEOPLE)
    assert found.labels.tolist() == expected.labels.tolist()
    assert list(found.names) == expected.names
    assert len(found) == len(found.files) == len(set(found.files)) == len(PEOPLE) * SHOTS
    for i in range(len(found)):
        assert np.array_equal(found.image(i), expected.image(i))
    part = people_from(FORMATS[name](faces, tmp_path / "again"), use=lambda person: person in ("2", "4"))
    assert part.people == ["2", "4"]
    assert part.labels.tolist() == [0] * SHOTS + [1] * SHOTS
    assert np.array_equal(part.image(SHOTS), expected.image(list(expected.names).index("4/10.jpg")))
    copy = pickle.loads(pickle.dumps(part))  # as a worker that is not forked gets it
    assert np.array_equal(copy.image(1), part.image(1))
    with pytest.raises(OamlError, match="no people"):
        people_from(FORMATS[name](faces, tmp_path / "third"), use=lambda person: False)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_errors(name: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One picture that is none, one of another size: named when it is read; left out, or scaled, where that is asked for."""
    copied = tmp_path / "spoilt"
    shutil.copytree(faces, copied)
    (copied / "2" / "5.jpg").write_bytes(b"no picture")
    small = io.BytesIO()
    Image.fromarray(draw_face(0, 0)[:100, :100]).save(small, "PNG")
    (copied / "10" / "1.jpg").write_bytes(small.getvalue())
    source = FORMATS[name](copied, tmp_path / "out")
    people = people_from(source)
    place = {name: i for i, name in enumerate(people.names)}
    for file, what in (("2/5.jpg", "is not a readable image"), ("10/1.jpg", "is 100x100")):
        with pytest.raises(OamlError, match=what) as caught:
            people.image(place[file])
        assert str(caught.value).startswith(people.files[place[file]])
        assert "\n" not in str(caught.value)
    capsys.readouterr()
    whole = people_from(source, resize=True, skip_damaged=True)
    shown = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(shown) == 1
    assert (
        f"{source}: a damaged picture or part is left out: {people.files[place['2/5.jpg']]}: is not a"
        in shown[0]
    )
    assert sorted(set(people.names) - set(whole.names)) == ["2/5.jpg"]
    assert whole.image(list(whole.names).index("10/1.jpg")).shape == (112, 112, 3)


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(OamlError, match=r"x\.zip: is no source of pictures"):
        people_from(tmp_path / "x.zip")
    for name in ("gone", "gone.csv", "gone.rec", "gone.bin"):
        with pytest.raises(OamlError, match=f"{name}: no such f"):
            people_from(tmp_path / name)
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(([encoded(0, 0)] * 2, [True])))
    with pytest.raises(OamlError, match="verification set"):
        people_from(tmp_path / "lfw.bin")
    assert pictures_in(tmp_path) is None


# --- lists


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "is empty"),
        ("path,person\n", "no pictures"),
        ("path\n10/1.jpg\n", "lacks the column person"),
        ("path,person,path\n", "names the column path twice"),
        ("path,person\n10/1.jpg\n", "line 2: has 1 values"),
        ("path,person\n10/1.jpg,\n", "line 2: person is empty"),
        ("path,person\n,10\n", "line 2: path is empty"),
        ('path,person\n"10/1.jpg,10\n', "not valid CSV"),
        ("path,person\n10/1.jpg,10\n10/1.jpg,10\n", "a picture is listed twice: 10/1.jpg"),
        ("path,person\n10/1.jpg,10\n./10/1.jpg,2\n", "a picture is listed twice: ./10/1.jpg"),
        ("path,person\n10,10\n", "a picture is missing: 10;"),
        ("path,person\n10/1\x00.jpg,10\n", "csv"),
    ],
)
def test_lists_that_are_refused(text: str, named: str, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path, dirs_exist_ok=True)
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(OamlError) as caught:
        people_from(tmp_path / "faces.csv")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_pictures_are_counted_and_ten_are_named(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text("path,person\n" + "".join(f"{i:02d}.jpg,a\n" for i in range(13)))
    with pytest.raises(OamlError) as caught:
        people_from(tmp_path / "faces.csv")
    named = ", ".join(f"{i:02d}.jpg" for i in range(10))
    assert f"13 pictures are missing: {named} and 3 more; " in str(caught.value)


def test_a_list_names_people_as_it_likes(faces: Path, tmp_path: Path) -> None:
    """Quotes, commas and capitals; paths from the root; a person whose pictures lie in two folders."""
    shutil.copytree(faces, tmp_path, dirs_exist_ok=True)
    rows = [(f"{tmp_path}/10/1.jpg", "Ann, B."), ("2/4.jpg", "Ann, B."), ("33/7.jpg", "Zoë")]
    with (tmp_path / "faces.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "person"), *rows])
    found = ManifestPictures(tmp_path / "faces.csv")
    assert found.people == ["Ann, B.", "Zoë"]
    assert (found.names, found.labels.tolist()) == ([path for path, _ in rows], [0, 0, 1])
    assert np.array_equal(found.image(0), PeopleFolder(faces).image(0))
    people = people_from(tmp_path / "faces.csv")
    assert [person_of(name) for name in people.names] == ["Ann, B.", "Ann, B.", "Zoë"]
    by_name = ByName(tmp_path / "faces.csv")
    assert [person_of(by_name.below_person(path)) for path, _ in rows] == [person for _, person in rows]
    assert np.array_equal(by_name.image("33/7.jpg"), found.image(2))


# --- shards


def test_shards_hold_what_the_library_reads(faces: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pattern = as_shards(faces, tmp_path)
    found = ShardPictures(pattern)
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(pattern, shardshuffle=False)}
    assert len(samples) == len(found) == len(PEOPLE) * SHOTS
    for i, name in enumerate(found.names):
        sample = samples[name.rpartition(".")[0]]
        person = sample["cls"].decode() if "cls" in sample else str(json.loads(sample["json"])["person"])
        assert found.people[found.labels[i]] == person
        decoded = np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))
        assert np.array_equal(found.image(i), decoded)


def test_forms_of_samples(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    face = encoded(0, 0)
    members = [
        ("__meta__.json", b"{}"), ("0001.cls", b"7\n"), ("0001.png", face), ("0002.WEBP", face),
        ("0002.json", b'{"label": "b"}'),
        ("0003.jpeg", face), ("0003.txt", b" c "), ("0003.seg.png", face), ("notes", b"x"),
        ("d/0004.jpg", face), ("0005.cls", b"1"),
    ]  # fmt: skip
    found = ShardPictures(write_shard(tmp_path / "x.tar", members))
    assert list(zip(found.names, [found.people[i] for i in found.labels], strict=True)) == [
        ("7/0001.png", "7"), ("b/0002.WEBP", "b"), ("c/0003.jpeg", "c"), ("d/0004.jpg", "d"),
    ]  # fmt: skip


def test_keys_that_count_in_every_shard_anew(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    for shard, person in (("a", b"1"), ("b", b"2")):
        write_shard(tmp_path / f"{shard}.tar", [("0.jpg", encoded(int(person), 0)), ("0.cls", person)])
    found = ShardPictures(tmp_path)
    assert (found.names, found.people) == (["1/a.tar%2F0.jpg", "2/b.tar%2F0.jpg"], ["1", "2"])
    assert np.array_equal(found.image(1), draw_face(2, 0))


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([], "holds no pictures"),
        ([("0.jpg", b"x")], "x.tar, 0.jpg: says not who"),
        ([("0.jpg", b"x"), ("0.json", b"{")], "0.jpg: its .json is no JSON"),
        ([("0.jpg", b"x"), ("0.json", b"[" * 99_999)], "0.jpg: its .json is no JSON"),
        ([("0.jpg", b"x"), ("0.json", b'{"person": [1]}')], "0.jpg: says not who"),
        ([("0.jpg", b"x"), ("0.json", b'{"person": true}')], "0.jpg: says not who"),
        ([("0.jpg", b"x"), ("0.cls", b"\xff")], "0.cls: is no UTF-8"),
        ([("0.jpg", b"x"), ("0.cls", b"1" * (1 << 21))], "0.cls: has 2,097,152 bytes"),
        ([("a/0.jpg", b"x"), ("a/0.jpg", b"x")], "0.jpg is there twice"),
        (
            [("a/0.jpg", b"x"), ("a/1.jpg", b"x"), ("a/0.jpg", b"x")],
            "0.jpg: is there twice as a picture of a",
        ),
    ],
)
def test_shards_that_are_refused(members: list[tuple[str, bytes]], named: str, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    shard = write_shard(tmp_path / "x.tar", members)
    with pytest.raises(OamlError) as caught:
        ShardPictures(shard)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", ["cut in a picture", "cut between", "cut in a head", "a head", "another file", "nothing", "gz"]
)
def test_damaged_shards(damage: str, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    face = encoded(0, 0)
    shard = write_shard(tmp_path / "x.tar", [(f"a/{i}.jpg", face) for i in range(4)])
    content = bytearray(shard.read_bytes())
    block = 512 + len(face) + -len(face) % 512
    if damage == "cut in a picture":
        content = content[: 2 * block + 700]
    elif damage == "cut between":
        content = content[: 2 * block]
    elif damage == "cut in a head":
        content = content[: 2 * block + 100]
    elif damage == "a head":
        content[2 * block + 5] ^= 1
    elif damage == "another file":
        content = bytearray(face)
    elif damage == "nothing":
        content = bytearray()
    shard.write_bytes(content)
    if damage == "gz":
        with tarfile.open(shard, "w:gz") as tar:
            tar.add(__file__, "0.jpg")
    with pytest.raises(OamlError) as caught:
        ShardPictures(shard)
    assert str(caught.value).startswith(f"{shard}: ")
    assert "\n" not in str(caught.value)
    if damage.startswith(("cut", "a head")):
        assert ShardPictures(shard, skip_damaged=True).names == ["a/0.jpg", "a/1.jpg"]
        assert "a/1.jpg" in str(caught.value) or "a/0.jpg" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "pipe:touch /tmp/oaml-was-run/x.tar",
        "http://127.0.0.1:9/{0..1}.tar",
        "s3://x/y.tar",
        "{0..1.tar",
        "${HOME}/x.tar",
    ],
)
def test_nothing_but_files_is_opened(source: str) -> None:
    pytest.importorskip("webdataset")
    with pytest.raises(OamlError) as caught:
        people_from(source)
    assert "\n" not in str(caught.value)


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with pytest.raises(OamlError, match=r"12 shards are missing: .*000\.tar, .* and 2 more"):
        people_from(f"{tmp_path}/{{000..011}}.tar")


def test_splits_do_not_depend_on_the_format(faces: Path, tmp_path: Path) -> None:
    trained = [person for person in sorted(PEOPLE) if split_name(person) == "train"]
    for name in ("csv", "records"):
        found = people_from(FORMATS[name](faces, tmp_path / name), use=lambda p: split_name(p) == "train")
        assert found.people == trained


def test_lists_of_records_and_compressed_shards_are_answered_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "train.lst").write_text("0\t1\ta.jpg\n")
    (tmp_path / "shards").mkdir()
    for file in (tmp_path / "faces.tar.gz", tmp_path / "faces.tgz", tmp_path / "shards" / "000.tar.gz"):
        file.write_bytes(gzip.compress(b"shard"))
    for source, what in (
        (
            tmp_path / "train.lst",
            r"train\.lst: is the list that a \.rec file was made from; give train\.rec, or",
        ),
        (tmp_path / "faces.tar.gz", r"faces\.tar\.gz: is compressed, .*unpack it once with gzip -d"),
        (tmp_path / "faces.tgz", r"faces\.tgz: is compressed"),
        (tmp_path / "shards", r"000\.tar\.gz: is compressed"),
        (f"{tmp_path}/{{000..009}}.tar.gz", r"\.tar\.gz: is compressed"),
    ):
        with pytest.raises(OamlError, match=what):
            pictures_from(source)
