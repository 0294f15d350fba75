"""Every row of the README's table of formats: its command on a miniature, with the numbers that a folder gives."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.datasets.people import split_name
from oaml.main import main
from oaml.templates.file import load
from recordio_writer import insightface, write_records
from test_sources import write_shard

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*impostor pairs are held out"),
]
SHOTS = 2
NUMBERS = [str(i) for i in range(100)]
PEOPLE = sorted(
    [n for n in NUMBERS if split_name(n) == "train"][:3]
    + [n for n in NUMBERS if split_name(n) == "calibrate"][:2]
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in every format, and a model."""
    root = tmp_path_factory.mktemp("formats")
    rows, members = [], []
    people: list[tuple[float, list[bytes]]] = []
    key = 1
    for person, name in enumerate(PEOPLE):
        images = []
        for shot in range(SHOTS):
            file = io.BytesIO()
            Image.fromarray(draw_face(person, shot)).save(file, "PNG")
            path = root / "faces" / name / f"{key}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.getvalue())
            rows.append((f"faces/{name}/{key}.jpg", name))
            members += [(f"{name}/{key}.jpg", file.getvalue()), (f"{name}/{key}.cls", name.encode())]
            images.append(file.getvalue())
            key += 1
        people.append((float(name), images))
    with (root / "faces.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([("path", "person"), *rows])
    write_records(root / "ms1m" / "train.rec", insightface(people))
    for number in range(2):
        write_shard(
            root / f"shards/{number:03d}.tar", members[number * 2 * SHOTS * 3 : (number + 1) * 2 * SHOTS * 3]
        )
    same = [(images[0], images[1], True) for _, images in people]
    other = [(a[1][0], b[1][1], False) for a, b in zip(people, people[1:] + people[:1], strict=True)]
    images = [image for a, b, _ in same + other for image in (a, b)]
    (root / "lfw.bin").write_bytes(pickle.dumps((images, [pair[2] for pair in same + other]), 2))
    names = [row[0].removeprefix("faces/") for row in rows]
    pairs = [(names[SHOTS * i], names[SHOTS * i + 1], 1) for i in range(len(people))]
    pairs += [(names[SHOTS * i], names[(SHOTS * i + SHOTS + 1) % len(names)], 0) for i in range(len(people))]
    with (root / "pairs.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([("path_a", "path_b", "same"), *pairs])
    small_model().save(root / "model")
    return root


SOURCES = ["faces", "faces.csv", "ms1m/train.rec", "ms1m", "shards/{000..001}.tar", "shards"]


def needs(source: str) -> None:
    if source.startswith("shards"):
        pytest.importorskip("webdataset")


@pytest.mark.parametrize("source", SOURCES[1:])
def test_embed_gives_the_numbers_of_a_folder(source: str, work: Path, tmp_path: Path) -> None:
    needs(source)
    found = []
    for i, images in enumerate(("faces", source)):
        out = tmp_path / f"{i}.safetensors"
        assert main(["embed", str(work / "model"), "--images", f"{work}/{images}", "--out", str(out)]) == 0
        found.append(load(out))
    names = [name.removeprefix("faces/") for name in found[1].paths]
    assert sorted(names) == sorted(found[0].paths)
    order = [names.index(name) for name in found[0].paths]
    for field in ("embedding", "visibility", "cell_embeddings"):
        a, b = (getattr(one.templates.dequantised(), field).numpy() for one in found)
        np.testing.assert_array_equal(a, b[order])


@pytest.mark.parametrize("source", SOURCES)
def test_adapt(source: str, work: Path, tmp_path: Path) -> None:
    """Equal weights from every format: people, their split and all that is drawn by chance are the same."""
    needs(source)
    words = ["adapt", "--backbone", str(work / "model"), "--people", f"{work}/{source}", "--skip_damaged"]
    words += ["--out", str(tmp_path / "out"), "--no-last_stage", "--occluders_per_view", "1"]
    assert main([*words, "--occlusion_steps", "1", "--steps", "1", "--device", "cpu"]) == 0
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    if source == "faces.csv":  # whose names begin with faces/, and chance depends on names
        return
    first = work / "adapted.safetensors"
    if not first.exists():
        first.write_bytes(weights)
    assert weights == first.read_bytes()


@pytest.mark.parametrize("source", SOURCES)
def test_train(source: str, work: Path, tmp_path: Path) -> None:
    needs(source)
    words = ["train", "--data.people", f"{work}/{source}", "--out", str(tmp_path / "run"), "--steps", "1"]
    words += ["--net.architecture", "ir_mini", "--net.embedding_size", "16", "--qaconv.adapter", "8"]
    words += [
        "--data.identities",
        "2",
        "--data.images",
        "2",
        "--data.occlusion_batch",
        "2",
        "--data.workers",
        "1",
    ]
    assert main([*words, "--validate_every", "0", "--picture_every", "0", "--accelerator", "cpu"]) == 0
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert len(config["training"]["people_hashed"]) == len(PEOPLE)


def scores(work: Path, tmp_path: Path, source: str, *more: str) -> list[str]:
    out = tmp_path / "scores.csv"
    assert main(["score", str(work / "model"), "--images", f"{work}/{source}", "--out", str(out), *more]) == 0
    with out.open() as file:
        return [row["fused"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("source", ["ms1m", "shards/{000..001}.tar"])
def test_score_and_evaluate_by_name(source: str, work: Path, tmp_path: Path) -> None:
    needs(source)
    pairs = ["--pairs", str(work / "pairs.csv")]
    assert scores(work, tmp_path, source, *pairs) == scores(work, tmp_path, "faces", *pairs)
    reports = []
    for images in ("faces", source):
        words = ["evaluate", str(work / "model"), "--images", f"{work}/{images}", *pairs, "--bootstrap", "0"]
        assert main([*words, "--out", str(tmp_path / "report"), "--occlude", "mask"]) == 0
        reports.append(json.loads((tmp_path / "report" / "report.json").read_text()))
    assert reports[0]["verification"] == reports[1]["verification"]


def test_a_verification_set_brings_its_pairs(work: Path, tmp_path: Path) -> None:
    expected = scores(work, tmp_path, "faces", "--pairs", str(work / "pairs.csv"))
    assert scores(work, tmp_path, "lfw.bin") == expected
    reports = []
    for words in (["--images", f"{work}/lfw.bin"], ["--data", f"{work}/lfw.bin"]):
        call = ["evaluate", str(work / "model"), *words, "--protocol", "lfw", "--bootstrap", "0"]
        assert main([*call, "--out", str(tmp_path / "report")]) == 0
        reports.append(json.loads((tmp_path / "report" / "report.json").read_text()))
    for report in reports:
        assert (
            report["verification"]["genuine_pairs"] == report["verification"]["impostor_pairs"] == len(PEOPLE)
        )
        assert report["verification"]["people"] == len(PEOPLE)
        assert report["verification"]["conditions"]["unoccluded"]["cosine"]["kfold"] is not None


def test_damaged_images_are_left_out_of_an_evaluation(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(work / "faces", tmp_path / "faces")
    (tmp_path / "faces" / PEOPLE[0] / "1.jpg").write_bytes(b"no picture")
    words = ["evaluate", str(work / "model"), "--images", str(tmp_path / "faces"), "--bootstrap", "0"]
    words += ["--pairs", str(work / "pairs.csv"), "--out", str(tmp_path / "report")]
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert "1.jpg: is not a readable image" in shown
    assert not (tmp_path / "report").exists()
    assert main([*words, "--skip_damaged"]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["verification"]["genuine_pairs"] == len(PEOPLE) - 1
    assert any("2 of 10 pairs are left out, since 1 images are damaged" in note for note in report["notes"])


def test_bad_input_is_one_line(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(work / "ms1m", tmp_path / "ms1m")
    record = tmp_path / "ms1m" / "train.rec"
    record.write_bytes(record.read_bytes()[:-8])
    evil = tmp_path / "evil.bin"
    evil.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    out = ["--out", str(tmp_path / "out")]
    model = str(work / "model")
    for call in (
        ["embed", model, "--images", str(record), *out],
        ["adapt", "--backbone", model, "--people", str(record), *out],
        ["train", "--data.people", str(record), *out],
        ["score", model, "--images", str(evil), *out],
        ["evaluate", model, "--images", str(evil), *out],
        ["score", model, "--images", str(work / "faces"), *out],
        ["adapt", "--backbone", model, "--people", str(work / "lfw.bin"), *out],
    ):
        assert main(call) == 1
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1, shown
        assert not (tmp_path / "out").exists()
