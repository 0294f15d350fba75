"""RecordIO without MXNet: MXNet's own file to the byte, damage by key and offset, whose picture a record is."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oaml.datasets.recordio import RecordFile
from oaml.datasets.records import RecordPictures, _digits
from oaml.errors import OamlError
from recordio_writer import MAGIC, insightface, payload, record, write_records

GOLD = Path(__file__).parent / "golden" / "recordio" / "gold.rec"
BIG = 1 << 24


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((112, 112, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def saved(folder: Path, *people: tuple[float, int]) -> Path:
    """InsightFace's layout; label and number of pictures each, whose grey levels are 1, 2, 3 ... by key."""
    levels = iter(range(1, 250))
    rows = insightface([(label, [png(next(levels)) for _ in range(count)]) for label, count in people])
    return write_records(folder / "train.rec", rows)


def refused(call: Callable[[], object], *named: str) -> str:
    with pytest.raises(OamlError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(text in message for text in named), message
    return message


# --- the file


def test_the_file_that_mxnet_wrote() -> None:
    """Every record of it, and the writer of these tests writes the same bytes."""
    file = RecordFile(GOLD)
    assert file.keys.tolist() == [0, 1, 2, 3, 4, 5]
    assert file.offsets.tolist() == [0, 40, 76, 132, 184, 224]
    images = [b"", b"abc", MAGIC + b"xy" + MAGIC + b"zzz1234", b"jpegbytes!!!" + MAGIC, b"", b""]
    labels = [[4, 6], [7], [7], [8], [1, 3], [3, 4]]
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        found = file.record(place)
        assert (found.image, found.labels.tolist()) == (image, label)
        assert [x.tolist() if isinstance(x, np.ndarray) else x for x in file.head(place)] == [
            label,
            bool(image),
        ]
    rows = [
        payload(key, label if len(label) > 1 else label[0], image, second=int(key == 0))
        for key, (label, image) in enumerate(zip(labels, images, strict=True))
    ]
    assert b"".join(map(record, rows)) == GOLD.read_bytes()
    assert [file.data(place) for place in range(6)] == rows


def test_whose_pictures_are_in_it() -> None:
    pictures = RecordPictures(GOLD)
    assert pictures.people == ["7", "8"]
    assert pictures.labels.tolist() == [0, 0, 1]
    assert list(pictures.names) == ["7/1.jpg", "7/2.jpg", "8/3.jpg"]
    assert pictures.files[2] == f"{GOLD}, key 3 at byte 132"
    refused(lambda: pictures.image(2), "gold.rec, key 3 at byte 132", "not a readable image")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([MAGIC, b"", b"a", b"bc", MAGIC[:3], b"1234"]), max_size=8).map(b"".join),
        min_size=1,
    )
)
def test_any_data_come_back(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> None:
    path = write_records(
        tmp_path_factory.mktemp("any") / "x.rec", [(key, 1.0, image) for key, image in enumerate(images)]
    )
    file = RecordFile(path)
    assert [file.record(place).image for place in range(len(file))] == images
    path.with_suffix(".idx").unlink()
    scanned = RecordFile(path)
    assert (scanned.keys.tolist(), scanned.offsets.tolist()) == (file.keys.tolist(), file.offsets.tolist())


def test_an_index_in_any_order(tmp_path: Path) -> None:
    path = write_records(tmp_path / "x.rec", [(key, 1.0, b"%d" % key) for key in (7, 0, 3, 12)])
    lines = path.with_suffix(".idx").read_text().splitlines(keepends=True)
    path.with_suffix(".idx").write_text("".join(reversed(lines)))
    file = RecordFile(path)
    assert file.keys.tolist() == [0, 3, 7, 12]
    assert [file.record(place).image for place in range(4)] == [b"0", b"3", b"7", b"12"]
    parts = [list(file.shard(i, 3)) for i in range(3)]
    assert [place for part in parts for place in part] == [2, 0, 1, 3]  # as they lie in the file
    assert [len(part) for part in parts] == [2, 1, 1]


def test_without_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, (5, 2), (6, 1))
    expected = RecordFile(path)
    path.with_suffix(".idx").unlink()
    found = RecordFile(path)
    assert (found.keys.tolist(), found.offsets.tolist()) == (
        expected.keys.tolist(),
        expected.offsets.tolist(),
    )
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "train.idx: there is none; made by a scan of 6 records, whose keys are the ids" in shown
    assert not path.with_suffix(".idx").exists()
    same = write_records(tmp_path / "same.rec", [(0, 1.0, b"a"), (0, 2.0, b"b")])  # ids that say nothing
    same.with_suffix(".idx").unlink()
    assert RecordFile(same).keys.tolist() == [0, 1]
    assert "counted" in capsys.readouterr().err


def test_threads_and_other_processes_read_at_once(tmp_path: Path) -> None:
    file = RecordFile(saved(tmp_path, (1, 20), (2, 20)))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(file.data, range(len(file)))) == [file.data(i) for i in range(len(file))]
    copy = pickle.loads(pickle.dumps(file))  # as a worker that is not forked gets it
    assert copy.data(3) == file.data(3)


# --- damage


def spoilt(name: str, content: bytearray, at: int) -> None:
    """Damage the record that begins at byte `at`."""
    (word,) = struct.unpack_from("<I", content, at + 4)
    if name == "magic":
        content[at] ^= 1
    elif name == "longer":
        struct.pack_into("<I", content, at + 4, word + 8)
    elif name == "endless":
        struct.pack_into("<I", content, at + 4, (1 << 29) - 1)
    elif name == "shorter":
        struct.pack_into("<I", content, at + 4, word - 8)
    elif name == "first part alone":
        struct.pack_into("<I", content, at + 4, word | 1 << 29)
    elif name == "unknown part":
        struct.pack_into("<I", content, at + 4, word | 5 << 29)
    elif name == "last part":
        struct.pack_into("<I", content, at + 4, word | 3 << 29)
    elif name == "labels":
        struct.pack_into("<I", content, at + 8, 1 << 30)
    elif name == "no payload":
        struct.pack_into("<I", content, at + 4, 4)
    else:
        content[at + 60 : at + 90] = bytes(30)


KINDS = [
    "magic",
    "longer",
    "endless",
    "shorter",
    "first part alone",
    "unknown part",
    "last part",
    "labels",
    "no payload",
    "pixels",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["insightface", "im2rec"])
def test_a_damaged_record_is_named_and_can_be_left_out(kind: str, layout: str, tmp_path: Path) -> None:
    if layout == "insightface":
        path = saved(tmp_path, (5, 3), (6, 2))
    else:
        path = write_records(tmp_path / "train.rec", [(i, 5.0 + i // 3, png(i + 1)) for i in range(5)])
    key = 2
    offset = dict(line.split("\t") for line in path.with_suffix(".idx").read_text().splitlines())[str(key)]
    content = bytearray(path.read_bytes())
    spoilt(kind, content, int(offset))
    path.write_bytes(content)

    def everything() -> None:
        pictures = RecordPictures(path)
        for i in range(len(pictures)):
            pictures.image(i)

    refused(everything, f"train.rec, key {key} at byte {offset}")
    pictures = RecordPictures(path, skip_damaged=True)
    whole = {}
    for i, name in enumerate(pictures.names):
        try:
            whole[name] = int(pictures.image(i)[0, 0, 0])
        except OamlError:
            assert name.endswith(f"/{key}.jpg")
    kept = range(1, 6) if layout == "insightface" else range(5)
    base = 1 if layout == "insightface" else 0
    assert whole == {f"{5 + (k - base) // 3}/{k}.jpg": k + 1 - base for k in kept if k != key}


@pytest.mark.parametrize("kind", ["magic", "longer", "endless", "first part alone"])
def test_a_scan_goes_on_behind_damage(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, (5, 3), (6, 2))
    offset = int(path.with_suffix(".idx").read_text().splitlines()[2].split("\t")[1])
    path.with_suffix(".idx").unlink()
    content = bytearray(path.read_bytes())
    spoilt(kind, content, offset)
    path.write_bytes(content)
    refused(lambda: RecordFile(path), f"record 2 at byte {offset}", "--skip_damaged")
    file = RecordFile(path, skip_damaged=True)
    assert set(range(8)) - set(file.keys.tolist()) <= {2, 3}
    assert file.damaged
    assert f"at byte {offset}" in file.damaged[0]


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = saved(tmp_path, (5, 3), (6, 2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    refused(lambda: RecordPictures(path), "key 7 at byte", "the last record is damaged")
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: RecordPictures(path), "train.idx: does not match", "cut off")
    assert len(RecordPictures(path, skip_damaged=True)) < 5
    path.with_suffix(".idx").unlink()
    refused(lambda: RecordPictures(path), "at byte", "damaged")
    assert len(RecordPictures(path, skip_damaged=True)) < 5


@pytest.mark.parametrize(
    "content", [b"", b"x", b"not a record, but some text that goes on", bytes(100), png(3)]
)
def test_foreign_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    path.write_bytes(content)
    refused(lambda: RecordPictures(path), "train.rec", "RecordIO")
    refused(lambda: RecordPictures(path, skip_damaged=True), "train.rec")
    path.with_suffix(".idx").write_text("0\t0\n")
    refused(lambda: RecordPictures(path), "train.rec")
    refused(lambda: RecordPictures(tmp_path / "gone.rec"), "gone.rec: no such file")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda lines: [*lines, "9\t99999999"], "key 9 is at byte 99999999, beyond its end"),
        (lambda lines: [*lines, "9\t42"], "key 9 is at byte 42, where no record can begin"),
        (lambda lines: [*lines, "9\t-4"], "key 9 is at byte -4"),
        (lambda lines: [*lines, "-9\t40"], "key -9"),
        (lambda lines: lines[:-2], "bytes of records after key 5"),
        (lambda lines: lines[1:], "bytes of records before key 1"),
        (lambda lines: [*lines, lines[0].replace("0", "9", 1)], "offset 0 twice"),
        (lambda lines: [*lines, "1\t48"], "key 1 twice"),
        (lambda lines: ["a\t0"], "no index of records"),
        (lambda lines: ["0"], "1 columns"),
        (lambda lines: ["0\t0\t0"], "3 columns"),
        (lambda lines: ["0\t0", "1"], "no index of records"),
        (lambda lines: ["99999999999999999999\t0"], "no index of records"),
        (lambda lines: [], "is empty"),
        (lambda lines: ["\x89PNG\r\n\x1a\n\0\0"], "no index of records"),
        (lambda lines: [f"{i}\t{12 + 4 * i}" for i in range(8)], "does not match"),
    ],
)
def test_an_index_that_does_not_match(
    change: Callable[[list[str]], list[str]], named: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, (5, 3), (6, 2))
    index = path.with_suffix(".idx")
    index.write_text("\n".join(change(index.read_text().splitlines())), encoding="latin-1")
    refused(lambda: RecordPictures(path), "train.idx", named)


def test_the_index_of_another_file(tmp_path: Path) -> None:
    path, other = saved(tmp_path / "a", (5, 3), (6, 2)), saved(tmp_path / "b", (5, 4), (6, 2))
    path.with_suffix(".idx").write_bytes(other.with_suffix(".idx").read_bytes())
    refused(lambda: RecordPictures(path), "train.idx", "does not match")
    other.with_suffix(".idx").write_bytes(
        saved(tmp_path / "a", (5, 3), (6, 2)).with_suffix(".idx").read_bytes()
    )
    refused(lambda: RecordPictures(other), "train.idx", "does not match")


# --- whose pictures


def test_insightfaces_layout(tmp_path: Path) -> None:
    """Labels as they are and as arrays; the folder that holds train.rec stands for it."""
    saved(tmp_path, (12, 2), (3, 3), (7, 1))
    pictures = RecordPictures(tmp_path)
    assert pictures.people == ["12", "3", "7"]  # as folders of these names would be sorted
    assert list(pictures.names) == ["12/1.jpg", "12/2.jpg", "3/3.jpg", "3/4.jpg", "3/5.jpg", "7/6.jpg"]
    assert [int(pictures.image(i)[0, 0, 0]) for i in range(6)] == [1, 2, 3, 4, 5, 6]
    rows = insightface([(3, [png(1), png(2)]), (4, [png(3)])])
    labelled = [(key, [label, 1.0] if image else label, image) for key, label, image in rows]
    array = RecordPictures(write_records(tmp_path / "array" / "train.rec", labelled))  # type: ignore[arg-type]
    assert list(array.names) == ["3/1.jpg", "3/2.jpg", "4/3.jpg"]


def test_a_file_without_a_header(tmp_path: Path) -> None:
    """Plain labels from key 0, and labels that are arrays; a person's pictures needn't lie together."""
    plain = [(key, float(label), png(key)) for key, label in enumerate([4, 2, 4, 10, 2])]
    for name, rows in (
        ("plain", plain),
        ("array", [(key, [label, 0.5, 0.25], image) for key, label, image in plain]),
    ):
        pictures = RecordPictures(write_records(tmp_path / name / "train.rec", rows))
        assert pictures.people == ["10", "2", "4"]
        assert list(pictures.names) == ["10/3.jpg", "2/1.jpg", "2/4.jpg", "4/0.jpg", "4/2.jpg"]
        assert [int(pictures.image(i)[0, 0, 0]) for i in range(5)] == [3, 1, 4, 0, 2]


def test_keys_count_where_float32_does_not(tmp_path: Path) -> None:
    """Ranges and header beyond 2^24 are rounded by the writer; every boundary falls on an odd key here."""
    people = [(5.0, 2), (6.0, 1), (7.0, 3), (8.0, 2), (9.0, 1)]
    rows = insightface([(label, [png(int(label))] * count) for label, count in people], start=BIG - 3)
    bounds = [BIG - 3]
    for _, count in people:
        bounds.append(bounds[-1] + count)
    assert any(int(np.float32(bound)) != bound for bound in bounds)
    pictures = RecordPictures(write_records(tmp_path / "train.rec", rows))
    assert pictures.people == ["5", "6", "7", "8", "9"]
    assert np.bincount(pictures.labels).tolist() == [count for _, count in people]
    assert list(pictures.names) == [
        f"{label:g}/{bounds[i] + n}.jpg" for i, (label, count) in enumerate(people) for n in range(count)
    ]
    for start in range(BIG - 12, BIG + 6):  # the header's number on either side of what is exact
        rows = insightface([(1.0, [b"a"] * 4), (2.0, [b"b"]), (3.0, [b"c"] * 3)], start)
        found = RecordPictures(write_records(tmp_path / "moved.rec", rows))
        assert np.bincount(found.labels).tolist() == [4, 1, 3]


def test_labels_that_float32_rounds(tmp_path: Path) -> None:
    """Three people whose labels become one number: told apart by ranges and by a list, refused without either."""
    people = [(BIG + 0.0, 2), (BIG + 1.0, 1), (BIG + 2.0, 2)]
    pictures = RecordPictures(saved(tmp_path / "ranges", *people))
    assert np.bincount(pictures.labels).tolist() == [2, 1, 2]
    assert len(set(pictures.people)) == 3
    rows = [(key, label, png(key)) for key, label in enumerate([BIG + 0.0, BIG + 1.0, BIG + 2.0])]
    path = write_records(tmp_path / "train.rec", rows)
    refused(lambda: RecordPictures(path), "key 0 at byte 0", "16777216", "train.tsv")
    path.with_suffix(".tsv").write_text(f"0\ta/0.jpg\t{BIG}\n1\tb/0.jpg\t{BIG + 1}\n2\tc/0.jpg\t{BIG + 2}\n")
    assert RecordPictures(path).people == [str(BIG), str(BIG + 1), str(BIG + 2)]


@pytest.mark.parametrize("label", [0.5, float("nan"), float("inf")])
def test_labels_that_are_no_person(label: float, tmp_path: Path) -> None:
    path = write_records(tmp_path / "train.rec", [(0, 1.0, png(0)), (1, label, png(1))])
    refused(lambda: RecordPictures(path), "key 1 at byte", "label")


def test_cvlfaces_list(tmp_path: Path) -> None:
    rows = [(key, float(label), png(key)) for key, label in enumerate([1, 1, 0])]
    path = write_records(tmp_path / "train.rec", rows)
    path.with_suffix(".tsv").write_text("0\t1/x.jpg\t1\n1\t1/a.jpg\t1\n2\t0/z.png\t0\n")
    pictures = RecordPictures(tmp_path)
    assert pictures.people == ["0", "1"]
    assert list(pictures.names) == ["0/z.png", "1/a.jpg", "1/x.jpg"]
    assert [int(pictures.image(i)[0, 0, 0]) for i in range(3)] == [2, 1, 0]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("0\t1/x.jpg\t1\n1\t1/a.jpg\t1\n", "lacks 1 keys (2)"),
        (
            "0\t1/x.jpg\t1\n1\t1/a.jpg\t1\n2\t0/z.jpg\t0\n5\t0/y.jpg\t0\n",
            "lists 1 keys that are not in it (5)",
        ),
        ("0\t1/x.jpg\t1\n1\t1/x.jpg\t1\n2\t0/z.jpg\t0\n", "1 paths twice (1/x.jpg)"),
        ("0\t1/x.jpg\t1\n0\t1/a.jpg\t1\n2\t0/z.jpg\t0\n", "line 2: lists key 0 twice"),
        ("0\t1/x.jpg\t1\n1\t1/a.jpg\t1\n2\t0/z.jpg\t4\n", "key 2 is labelled 4, and 0 in its record"),
        ("idx\tpath\tlabel\n", "line 1: is not KEY"),
        ("0,1/x.jpg,1\n", "line 1: is not KEY"),
        ("0\t1/x\xff.jpg\t1\n", "train.tsv"),
    ],
)
def test_a_list_that_does_not_match(lines: str, named: str, tmp_path: Path) -> None:
    path = write_records(tmp_path / "train.rec", [(k, float(v), png(k)) for k, v in enumerate([1, 1, 0])])
    path.with_suffix(".tsv").write_text(lines, encoding="latin-1")
    refused(lambda: RecordPictures(path), "train.tsv", named)


def test_a_header_that_does_not_match(tmp_path: Path) -> None:
    rows = insightface([(1.0, [png(1)] * 3), (2.0, [png(2)] * 2)])
    early = [(0, [3.0, 5.0], b""), *rows[1:]]
    refused(lambda: RecordPictures(write_records(tmp_path / "train.rec", early)), "key 3 at byte", "header")
    for labels in ([float("nan"), 5.0], [9.0, 2.0], [0.0, 0.0]):
        wrong = [(0, labels, b""), *rows[1:]]
        refused(
            lambda wrong=wrong: RecordPictures(write_records(tmp_path / "train.rec", wrong)),
            "key 0 at byte 0",
        )


@given(st.lists(st.integers(0, 10**9), min_size=1))
def test_numbers_in_the_order_of_their_texts(numbers: list[int]) -> None:
    order = np.lexsort(_digits(np.array(numbers)))
    assert [str(numbers[i]) for i in order] == sorted(map(str, numbers))
