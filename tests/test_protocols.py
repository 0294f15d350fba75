"""Pairs and identification files: what is read, and one clear line for everything that can't be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from oaml.datasets import people
from oaml.datasets.people import person_of
from oaml.errors import OamlError
from oaml.evaluation import protocols


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Empty files are enough: the readers look for them and don't open them."""
    folder = tmp_path / "faces"
    for name in ("ann/1.png", "ann/2.png", "bob/1.png", "bob, jr/1.png", "zoë/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_pairs_are_read_in_order(images: Path, tmp_path: Path) -> None:
    text = (
        "path_a,note,path_b,same\nzoë/1.png,x,bob/1.png,0\n\n"
        'ann/1.png,,ann/2.png, 1\n"bob, jr/1.png",,bob/1.png,0\n'
    )
    for variant in (text, "\ufeff" + text, text.replace("\n", "\r\n")):
        pairs = protocols.read_pairs(_write(tmp_path, variant), images)
        assert pairs.path_a == ["zoë/1.png", "ann/1.png", "bob, jr/1.png"]
        assert pairs.path_b == ["bob/1.png", "ann/2.png", "bob/1.png"]
        assert pairs.same == [False, True, False]
        assert protocols.labels(pairs).tolist() == [False, True, False]


def test_a_list_may_say_what_is_occluded(images: Path, tmp_path: Path) -> None:
    text = (
        "occluded_b,path_a,path_b,same,occluded_a\n"
        "0,ann/1.png,ann/2.png,1,0\n1,ann/1.png,bob/1.png,0,0\n0,ann/1.png,bob/1.png,0,1\n1,ann/1.png,bob/1.png,0,1\n"
    )
    assert protocols.read_pairs(_write(tmp_path, text), images).occluded == [0, 1, 1, 2]
    assert protocols.read_pairs(_write(tmp_path, text.replace("occluded", "x")), images).occluded == []


def test_same_is_optional_where_nothing_is_judged(images: Path, tmp_path: Path) -> None:
    file = _write(tmp_path, "path_a,path_b\nann/1.png,bob/1.png\n")
    assert protocols.read_pairs(file, images, need_same=False).same == [None]
    with pytest.raises(OamlError, match="lacks the column same"):
        protocols.read_pairs(file, images)
    file = _write(tmp_path, "path_a,path_b,same\nann/1.png,bob/1.png,\nann/1.png,ann/2.png,1\n")
    assert protocols.read_pairs(file, images, need_same=False).same == [None, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first line names the columns path_a,path_b,same"),
        ("path_a,path_b,same\n", "holds no pairs"),
        ("path_a,path,same\nann/1.png,ann/2.png,1\n", "line 1: lacks the column path_b"),
        ("path_a,path_b,same,same\nann/1.png,ann/2.png,1,1\n", "line 1: names the column same twice"),
        ("path_a,path_b,same\nann/1.png,ann/2.png,1\nann/1.png,bob/1.png,no\n", "line 3: same is 'no'"),
        ("path_a,path_b,same\n\n\nann/1.png,ann/2.png,\n", "line 4: same is ''"),
        ("path_a,path_b,same\n,ann/2.png,1\n", "line 2: path_a is empty"),
        ("path_a,path_b,same\nbob, jr/1.png,bob/1.png,0\n", "line 2: has 4 values for 3 columns"),
        ("path_a,path_b,same\nann/1.png,ann/2.png\n", "line 2: has 2 values for 3 columns"),
        (
            "path_a,path_b,same,occluded_a\nann/1.png,ann/2.png,1,1\n",
            "line 2: occluded_a and occluded_b are '1'",
        ),
        (
            "path_a,path_b,same,occluded_a,occluded_b\nann/1.png,ann/2.png,1,1,yes\n",
            "line 2: occluded_a and occluded_b are '1', 'yes'; write both as 1",
        ),
        ('path_a,path_b,same\n"ann/1.png,ann/2.png,1\n', "after line 1: is not valid CSV"),
        ("path_a,path_b,same\nzoë/1.png,ann/2.png,0\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_a_bad_pairs_file_is_named_with_line_and_remedy(
    images: Path, tmp_path: Path, text: str | bytes, message: str
) -> None:
    file = _write(tmp_path, text)
    with pytest.raises(OamlError) as caught:
        protocols.read_pairs(file, images)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_image_file_or_folder_is_named(images: Path, tmp_path: Path) -> None:
    file = _write(
        tmp_path, "path_a,path_b,same\nann/1.png,ann/2.png,1\nann/1.png,eve/1.png,0\nann/9.png,ann/1.png,1\n"
    )
    with pytest.raises(
        OamlError, match=r"eve/1\.png: no such image, named in .*line 3 \(1 more are missing: .*ann/9\.png\);"
    ):
        protocols.read_pairs(file, images)
    with pytest.raises(OamlError, match="nowhere: no such folder"):
        protocols.read_pairs(file, tmp_path / "nowhere")
    with pytest.raises(OamlError, match=r"none\.csv: no such file"):
        protocols.read_pairs(tmp_path / "none.csv", images)
    with pytest.raises(OamlError, match="can't be read"):
        protocols.read_pairs(tmp_path, images)


def test_identification_is_read(images: Path, tmp_path: Path) -> None:
    file = _write(
        tmp_path, "role,path,person\ngallery,ann/1.png,Ann\nprobe,ann/2.png,Ann\ngallery,bob/1.png,Bob\n"
    )
    found = protocols.read_identification(file, images)
    assert found == protocols.Identification(
        ["ann/1.png", "bob/1.png"], ["Ann", "Bob"], ["ann/2.png"], ["Ann"]
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ann/1.png,Ann,galery"], "line 2: role is 'galery'; write gallery, probe or stranger"),
        (
            ["ann/1.png,Ann,gallery", "ann/2.png,Ann,probe", "bob/1.png,Ann,stranger"],
            "line 4: Ann is in the gallery and no stranger",
        ),
        (["ann/1.png,,gallery"], "line 2: person is empty"),
        (["ann/1.png,Ann,gallery", "ann/1.png,Ann,probe"], "line 3: ann/1.png is already listed in line 2"),
        (["ann/1.png,Ann,gallery"], "holds no image with role probe"),
        (["ann/1.png,Ann,probe"], "holds no image with role gallery"),
        (["ann/1.png,Ann,gallery", "bob/1.png,Bob,probe"], "line 3: Bob has no image with role gallery"),
        (["ann/1.png,Ann,gallery", "ann/7.png,Ann,probe"], "ann/7.png: no such image"),
    ],
)
def test_a_bad_identification_file_is_refused(
    images: Path, tmp_path: Path, lines: list[str], message: str
) -> None:
    file = _write(tmp_path, "\n".join(["path,person,role", *lines]))
    with pytest.raises(OamlError) as caught:
        protocols.read_identification(file, images)
    assert message in str(caught.value)


def test_people_and_their_fixed_split() -> None:
    assert person_of("lfw/Ann_Lee/1.png") == "Ann_Lee"
    assert person_of("Ann_Lee\\1.png") == "Ann_Lee"
    assert person_of("1.png") == "1.png"
    names = [f"person_{k}" for k in range(500)]
    for name in names:
        number = int(hashlib.sha1(name.encode("utf-8")).hexdigest(), 16) % 10
        assert people.split_of(name) == number
        assert people.split_name(name) == (
            "train" if number <= 6 else "calibrate" if number == 7 else "report"
        )
    # pinned, so that a person can never change sides
    assert [people.split_of(n) for n in ("Aaron_Eckhart", "zoë", "person_0")] == [1, 9, 9]
