"""From images to scores to a report, with a small untrained model on drawn people."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from conftest import write_drawn_pairs
from oaml import inference
from oaml.datasets.people import hashed_names
from oaml.errors import OamlError
from oaml.evaluation import conditions, scoring
from oaml.evaluation.conditions import MeasuredFaces
from oaml.evaluation.protocols import labels, read_identification, read_pairs
from oaml.evaluation.report import evaluate
from oaml.evaluation.results import Side
from oaml.main import main
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import Occluder
from oaml.occluders.command import occlude_folder
from oaml.qaconv import QAConvConfig
from oaml.support import metrics
from oaml.support.files import read_image
from oaml.support.folders import list_images
from oaml.template import COLUMNS, Templates
from oaml.templates import file as template_file
from oaml.templates.embed import embed

PEOPLE, SHOTS = 8, 3


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, drawn faces, a list of all pairs and a gallery."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.manual_seed(0)
    config = ModelConfig(
        net=NetConfig(architecture="ir_mini", embedding_size=32),
        qaconv=QAConvConfig(adapter=16),
        training={"people": "none"},
    )
    Model(config).eval().save(folder / "model")
    names = write_drawn_pairs(folder, PEOPLE, SHOTS)
    roles = [(n, n.split("/")[0], "probe" if n.endswith("002.png") else "gallery") for n in names]
    _write_csv(folder / "roles.csv", ["path", "person", "role"], roles)
    return folder


def _write_csv(path: Path, header: list[str], rows: list) -> Path:
    with path.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def _read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened))


@pytest.fixture(scope="module")
def faces(work: Path) -> Templates:
    paths = list_images(work / "faces")
    return inference.extract(Model.load(work / "model"), map(read_image, paths), len(paths))


# --- faces ---


def test_a_face_is_what_the_model_says(work: Path, faces: Templates) -> None:
    model = Model.load(work / "model")
    paths = list_images(work / "faces")
    x = torch.from_numpy(np.stack([read_image(p) for p in paths])).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = model(x)
        local = model.matcher.prepare(expected.features)  # what is kept is what the matcher compares
        cell_embeddings = model.cell_embeddings(expected)
    assert len(faces) == PEOPLE * SHOTS
    assert {getattr(faces, f.name).dtype for f in fields(faces)} == {torch.float32}
    for name, values in {
        "local": local,
        "embedding": expected.embedding,
        "norm": expected.norm[:, 0],
        "visibility": expected.visibility,
        "cell_embeddings": cell_embeddings,
    }.items():
        close = 1e-5 * float(values.abs().max())
        np.testing.assert_allclose(getattr(faces, name).numpy(), values.numpy(), 1e-4, close)
    np.testing.assert_allclose(faces.visible(), expected.visibility.mean((1, 2, 3)).numpy(), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_a_face_does_not_depend_on_its_company(work: Path, faces: Templates, batch_size: int) -> None:
    some = np.random.default_rng(0).permutation(len(faces))[:11]
    images = [read_image(list_images(work / "faces")[i]) for i in some]
    threads = torch.get_num_threads()
    again = inference.extract(Model.load(work / "model"), images, 11, batch_size=batch_size)
    assert torch.get_num_threads() == threads
    for field in fields(again):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(faces, field.name)[some])


def test_large_maps_go_to_a_file(work: Path, faces: Templates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MEMORY_BYTES", 10_000)
    rooms: list[np.ndarray] = []
    room = inference._empty

    def noted(shape: tuple[int, ...]) -> np.ndarray:
        rooms.append(room(shape))
        return rooms[-1]

    monkeypatch.setattr(inference, "_empty", noted)
    model, paths = Model.load(work / "model"), list_images(work / "faces")
    held = inference.extract(model, map(read_image, paths), len(paths))
    in_files = {r.shape for r in rooms if isinstance(r, np.memmap)}
    assert in_files == {tuple(held.local.shape), tuple(held.cell_embeddings.shape)}
    index = np.arange(len(paths))
    back = index[::-1].copy()
    one = inference.score_pairs(model, faces, index, faces, back)
    two = inference.score_pairs(model, held, index, held, back)
    for score in one:
        np.testing.assert_array_equal(one[score], two[score])


def test_a_full_disk_is_noticed_beforehand(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MEMORY_BYTES", 100)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OamlError, match=r"no room for 0\.0 GB of feature maps"):
        inference.extract(Model.load(work / "model"), [np.zeros((112, 112, 3), np.uint8)] * 2, 2)


def test_the_number_of_images_must_be_right(work: Path) -> None:
    model = Model.load(work / "model")
    with pytest.raises(ValueError, match="2 images, expected 3"):
        inference.extract(model, [np.zeros((112, 112, 3), np.uint8)] * 2, 3)
    with pytest.raises(ValueError, match="at least 1"):
        inference.extract(model, [], 0)


# --- pairs ---


def test_pair_scores_against_one_pair_at_a_time(work: Path, faces: Templates) -> None:
    model = Model.load(work / "model")
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, len(faces), (2, 70))  # more than a block
    scores = inference.score_pairs(model, faces, a, faces, b)
    assert list(scores) == list(COLUMNS)
    features, visible, cells = faces.local, faces.visibility, faces.cell_embeddings
    for i in (0, 17, 63, 64, 69):
        p, g = slice(a[i], a[i] + 1), slice(b[i], b[i] + 1)
        plain = model.matcher.match(features[p], features[g], prepared=True)
        ones = torch.ones_like(visible[p])
        weighted = model.matcher.match(features[p], features[g], visible[p], visible[g], prepared=True)
        assert scores["qaconv"][i] == pytest.approx(float(plain), rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(
            plain.numpy(),
            model.matcher.match(features[p], features[g], ones, ones, prepared=True).numpy(),
            rtol=1e-5,
        )
        assert scores["qaconv_visibility"][i] == pytest.approx(float(weighted), rel=1e-4, abs=1e-5)
        cosine = float(faces.embedding[a[i]].double() @ faces.embedding[b[i]].double())
        assert scores["cosine"][i] == pytest.approx(cosine, abs=1e-9)
        compared = model.joint.compare(cells[p], cells[g], visible[p], visible[g])
        joint = model.joint.logit(compared.cosine, compared.unseen)
        assert scores["joint"][i] == pytest.approx(float(joint.detach()), rel=1e-4, abs=1e-5)
        with torch.inference_mode():
            one, other = (model.fusion.traces_of(faces.embedding[[i]]) for i in (int(a[i]), int(b[i])))
            fused = model.fusion(joint, weighted, torch.tensor([[cosine]]), compared, one @ other.T)
        assert scores["fused"][i] == pytest.approx(float(fused), rel=1e-4, abs=1e-5)
    assert np.abs(scores["qaconv"] - scores["qaconv_visibility"]).max() > 1e-3


def test_a_model_in_training_mode_is_refused(work: Path, faces: Templates) -> None:
    model, one = Model.load(work / "model").train(), np.array([0])
    for run in (
        lambda: inference.extract(model, [np.zeros((112, 112, 3), np.uint8)], 1),
        lambda: inference.score_pairs(model, faces, one, faces, one),
        lambda: inference.score_all(model, faces, one, faces, one),
    ):
        with pytest.raises(RuntimeError, match=r"training mode; call .eval\(\) first"):
            run()


def test_all_against_all_equals_pairs(work: Path, faces: Templates) -> None:
    model = Model.load(work / "model")
    p, g = np.array([3, 1, 7]), np.array([0, 5, 9, 2, 20])
    whole = inference.score_all(model, faces, p, faces, g, chunk=2)
    pairs = inference.score_pairs(model, faces, np.repeat(p, 5), faces, np.tile(g, 3))
    for score, values in whole.items():
        np.testing.assert_allclose(values.reshape(-1), pairs[score], rtol=1e-4, atol=1e-5)


def test_a_score_that_is_no_number_names_its_pair(work: Path, faces: Templates) -> None:
    model = Model.load(work / "model")
    features = faces.local.clone()
    features[4] = np.nan
    broken = replace(faces, local=features)
    with pytest.raises(OamlError, match="pair 2: the score qaconv is not finite"):
        inference.score_pairs(model, broken, np.array([0, 1, 4]), broken, np.array([1, 2, 3]))
    with pytest.raises(OamlError, match="probe 1: the score qaconv is not finite"):
        inference.score_all(model, broken, np.array([0, 4]), broken, np.array([1, 2]))


# --- oaml score ---


def _score(work: Path, pairs: Path, out: Path) -> list[str]:
    scoring.score(str(work / "model"), images=work / "faces", pairs=pairs, out=out)
    return out.read_text(encoding="utf-8").splitlines()


def test_a_line_depends_on_nothing_but_its_pair(work: Path, tmp_path: Path) -> None:
    header, *rows = _read_csv(work / "pairs.csv")
    whole = _score(work, work / "pairs.csv", tmp_path / "whole.csv")
    assert whole[0] == "path_a,path_b,same,cosine,qaconv,joint,fused,visible_a,visible_b"
    assert [line.split(",")[:3] for line in whole[1:]] == rows
    for line in whole[1:]:
        numbers = [float(value) for value in line.split(",")[3:]]
        assert np.isfinite(numbers).all()
        assert abs(numbers[0]) <= 1 + 1e-6
        assert 0 <= min(numbers[4:]) <= max(numbers[4:]) <= 1

    rng = np.random.default_rng(7)
    for count in (len(rows), 77, 1):
        chosen = rng.permutation(len(rows))[:count]
        file = _write_csv(tmp_path / "some.csv", header, [rows[i] for i in chosen])
        assert _score(work, file, tmp_path / "some_scores.csv")[1:] == [whole[1 + i] for i in chosen]

    other = [(a, b, 1 - int(same)) for a, b, same in rows[:40]]
    flipped = _score(work, _write_csv(tmp_path / "flip.csv", header, other), tmp_path / "flip_scores.csv")
    without = _score(
        work,
        _write_csv(tmp_path / "none.csv", header[:2], [r[:2] for r in rows[:40]]),
        tmp_path / "none_scores.csv",
    )
    for original, flip, none in zip(whole[1:], flipped[1:], without[1:], strict=False):
        a, b, same, *numbers = original.split(",")
        assert flip.split(",") == [a, b, str(1 - int(same)), *numbers]
        assert none.split(",") == [a, b, "", *numbers]


def test_nothing_is_written_when_something_is_wrong(work: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    (tmp_path / "small").mkdir()
    cv2.imwrite(str(tmp_path / "small" / "1.png"), np.zeros((50, 50, 3), np.uint8))
    good = str(work / "faces" / "drawn_0000" / "shot_000.png")
    header = ["path_a", "path_b", "same"]
    for path, message in (
        ("bad.png", "not a readable image"),
        ("nowhere.png", "no such image"),
        ("small/1.png", "pass --resize"),
    ):
        pairs = _write_csv(tmp_path / "pairs.csv", header, [(good, path, 1), (good, path, 0)])
        with pytest.raises(OamlError, match=message):
            scoring.score(str(work / "model"), images=tmp_path, pairs=pairs, out=tmp_path / "out.csv")
        with pytest.raises(OamlError, match=message):
            evaluate(str(work / "model"), images=tmp_path, pairs=pairs, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.csv").exists()
    # the small image is taken when asked for
    scoring.score(str(work / "model"), images=tmp_path, pairs=pairs, out=tmp_path / "out.csv", resize=True)
    assert len(_read_csv(tmp_path / "out.csv")) == 3


def test_wrong_calls_are_refused_before_the_network_runs(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "forward", lambda *_: pytest.fail("the network was run"))
    one_class = _write_csv(
        tmp_path / "one.csv", ["path_a", "path_b", "same"], _read_csv(work / "pairs.csv")[1:3]
    )
    file = tmp_path / "file"
    file.touch()
    wrong: list[tuple[dict, str]] = [
        ({"pairs": None}, "nothing to measure"),
        ({"occlude": "niqab,hat"}, "no occluder is called 'hat'"),
        ({"mask_pictures": tmp_path}, "mask pictures are for the kind mask"),
        ({"seed": -1}, "start at 0"),
        ({"bootstrap": -1}, "start at 0"),
        ({"batch_size": 0}, "not at least 1"),
        ({"out": file}, "is a file"),
        ({"pairs": one_class}, "holds no impostor pair"),
        ({"pairs": None, "identification": work / "roles.csv", "protocol": "lfw"}, "give --pairs"),
        ({"device": "abacus"}, "choose cpu or auto"),
    ]
    for options, message in wrong:
        given = {
            "images": work / "faces",
            "pairs": work / "pairs.csv",
            "out": tmp_path / "report",
            **options,
        }
        with pytest.raises(OamlError, match=message):
            evaluate(str(work / "model"), **given)
    assert not (tmp_path / "report").exists()
    with pytest.raises(OamlError, match="is a folder"):
        scoring.score(str(work / "model"), images=work / "faces", pairs=work / "pairs.csv", out=tmp_path)


def test_bfloat16_moves_what_is_matched_a_little(work: Path, faces: Templates) -> None:
    model, everybody = Model.load(work / "model"), np.arange(len(faces))
    exact = inference.score_all(model, faces, everybody, faces, everybody)
    rough = inference.score_all(model, faces, everybody, faces, everybody, precision="bfloat16")
    for score in ("qaconv", "qaconv_visibility", "fused"):
        moved, spread = np.abs(rough[score] - exact[score]), exact[score].std()
        assert 0 < moved.max() < 0.2 * spread
        assert moved.mean() < 0.02 * spread
    for score in ("cosine", "joint"):
        np.testing.assert_array_equal(rough[score], exact[score])


# --- oaml evaluate ---


@pytest.fixture(scope="module")
def report(work: Path) -> Path:
    out = work / "report"
    evaluate(
        str(work / "model"),
        images=work / "faces",
        pairs=work / "pairs.csv",
        identification=work / "roles.csv",
        out=out,
        occlude="niqab, patch",
        seed=3,
        protocol="lfw",
        bootstrap=30,
    )
    return out


def test_identification_in_bfloat16(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    compare = Model.compare_all

    def noted(model: Model, *faces: Any, **options: Any) -> Any:
        asked.append(faces[3])
        return compare(model, *faces, **options)

    monkeypatch.setattr(Model, "compare_all", noted)
    evaluate(
        str(work / "model"),
        images=work / "faces",
        identification=work / "roles.csv",
        out=tmp_path,
        bootstrap=0,
        precision="bfloat16",
    )
    assert set(asked) == {"bfloat16"}


def _finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or bool(np.isfinite(value))


def test_a_report_is_complete(report: Path) -> None:
    assert sorted(path.name for path in report.iterdir()) == [
        "maps.png",
        "pairs.png",
        "report.html",
        "report.json",
        "roc.png",
        "scores.png",
        "table.md",
    ]
    for name in ("maps.png", "pairs.png", "roc.png", "scores.png"):
        picture = cv2.imread(str(report / name))
        assert picture is not None
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 20
    found = json.loads(
        (report / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON")
    )
    assert _finite(found)
    assert found["arguments"]["occlude"] == "niqab, patch"
    assert found["config"]["training"] == {"people": "none"}
    assert list(found["verification"]["conditions"]) == ["unoccluded", "niqab", "patch", "all"]
    assert list(found["identification"]["rank1"]) == ["unoccluded", "niqab", "patch"]
    assert found["maps"]["unoccluded"]["error"] is None
    assert 0 < found["maps"]["niqab"]["error"] < 1
    assert found["maps"]["niqab"]["true_visible"] < 0.7
    table = (report / "table.md").read_text(encoding="utf-8")
    for word in (
        "niqab",
        "QAConv + visibility",
        "all, one threshold",
        "insufficient data",
        "rank-1",
        "10-fold",
    ):
        assert word in table


# --- templates in place of images ---


@pytest.fixture(scope="module")
def embedded(work: Path) -> Path:
    """The faces as one file of `oaml embed`."""
    embed(str(work / "model"), images=work / "faces", out=work / "faces.safetensors")
    return work / "faces.safetensors"


def test_scores_from_templates_are_those_from_images_but_for_the_rounding(
    work: Path, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _score(work, work / "pairs.csv", tmp_path / "images.csv")
    monkeypatch.setattr("oaml.templates.file.FACES_A_READ", 5)
    monkeypatch.setattr(Model, "extract", lambda *_: pytest.fail("the network was run"))
    command = ["score", str(work / "model"), "--images", str(embedded), "--pairs", str(work / "pairs.csv")]
    assert main([*command, "--out", str(tmp_path / "templates.csv")]) == 0
    (header, *expected), (same_header, *rows) = (
        _read_csv(tmp_path / name) for name in ("images.csv", "templates.csv")
    )
    assert header == same_header
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    scores, exact = (np.array([row[3:] for row in table], float) for table in (rows, expected))
    assert np.abs(scores - exact).max() > 0
    for column in range(scores.shape[1]):
        spread = exact[:, column].std()
        assert np.abs(scores - exact)[:, column].max() < max(0.1 * spread, 0.002), header[3 + column]


def test_a_report_from_templates(
    work: Path, embedded: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "extract", lambda *_: pytest.fail("the network was run"))
    out = tmp_path / "report"
    out.mkdir()
    (out / "maps.png").write_bytes(b"of an earlier run")
    given = evaluate(
        str(work / "model"),
        images=embedded,
        pairs=work / "pairs.csv",
        identification=work / "roles.csv",
        out=out,
        bootstrap=0,
    )
    files = ["report.html", "report.json", "roc.png", "scores.png", "table.md"]
    assert sorted(path.name for path in out.iterdir()) == files
    expected = json.loads((report / "report.json").read_text())
    assert given.verification is not None
    for score, measures in given.verification.conditions["unoccluded"].items():
        wanted = expected["verification"]["conditions"]["unoccluded"][score]["auc"]["value"]
        assert measures.auc.value == pytest.approx(wanted, abs=0.02)
    assert given.maps["unoccluded"].visible == pytest.approx(
        expected["maps"]["unoccluded"]["visible"], abs=2e-3
    )


def test_what_templates_cannot_be_asked(
    work: Path, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(command: str, **changed: object) -> str:
        options = {"images": embedded, "pairs": work / "pairs.csv", "out": tmp_path / "out", **changed}
        model = options.pop("model", work / "model")
        flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        capsys.readouterr()
        assert main([command, str(model), *flags]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    torch.manual_seed(1)
    other = Model(ModelConfig(net=NetConfig("ir_mini", 32), qaconv=QAConvConfig(adapter=16))).save(
        tmp_path / "other"
    )
    header, first, *_ = _read_csv(work / "pairs.csv")
    missing = _write_csv(tmp_path / "missing.csv", header, [first, ["gone/1.png", first[1], "0"]])
    pixels = work / "faces" / first[0]
    for command in ("score", "evaluate"):
        error = refused(command, model=other)
        assert f"{embedded}: holds templates of another model ({work / 'model'}" in error
        assert "oaml embed" in error
        error = refused(command, pairs=missing)
        assert f"gone/1.png: not in {embedded}, named in {missing}, line 3" in error
        assert f"{pixels}: is damaged" in refused(command, images=pixels)
    error = refused("evaluate", occlude="niqab")
    assert f"{embedded}: holds templates" in error
    assert "leave --occlude out" in error
    assert not (tmp_path / "out").exists()


def test_the_layout_of_the_file_is_the_one_that_is_documented(embedded: Path) -> None:
    from safetensors import safe_open

    with safe_open(embedded, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    text = (Path(__file__).parents[1] / "docs" / "templates.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(\w+)` \| (\w+) \[(.*?)\]", text, re.MULTILINE)
    count, size, channels = PEOPLE * SHOTS, 32, 16
    sizes = {"N": count, "E": size, "C": channels, "h": 7, "w": 7, "49": 49, "1": 1}
    sizes["bytes"] = len(tensors["paths"])
    documented = {
        name: (dtype, tuple(sizes[part] for part in shape.split(","))) for name, dtype, shape in lines
    }
    assert documented == {
        name: (str(x.dtype).removeprefix("torch."), tuple(x.shape)) for name, x in tensors.items()
    }
    assert facts is not None
    assert all(f"`{name}`" in text for name in facts)
    assert all(f"`{name}` {dtype} [" in (template_file.__doc__ or "") for name, dtype, _ in lines[:-1])
    assert facts["format"] == "oaml templates 1"
    assert len(json.loads(bytes(tensors["paths"].numpy()))) == count


def test_a_report_agrees_with_the_measures(work: Path, report: Path, tmp_path: Path) -> None:
    """The occluders of `oaml occlude`, scored by `oaml score`, measured by hand."""
    found = json.loads((report / "report.json").read_text())["verification"]
    occlude_folder(work / "faces", kind="niqab", out=tmp_path / "niqab", seed=3, style="b")
    (tmp_path / "unoccluded").symlink_to(work / "faces")
    header, *rows = _read_csv(work / "pairs.csv")
    same = labels(read_pairs(work / "pairs.csv", work / "faces"))
    for condition, prefix in (("unoccluded", "unoccluded"), ("niqab", "niqab/images")):
        file = _write_csv(
            tmp_path / "pairs.csv", header, [(f"unoccluded/{a}", f"{prefix}/{b}", s) for a, b, s in rows]
        )
        scoring.score(str(work / "model"), images=tmp_path, pairs=file, out=tmp_path / "scores.csv")
        numbers = np.array(_read_csv(tmp_path / "scores.csv")[1:])[:, 3:].astype(float)
        for column, score in enumerate(("cosine", "qaconv_visibility", "joint", "fused")):
            values, reported = numbers[:, column], found["conditions"][condition][score]
            auc, (low, high) = reported["auc"].values()
            assert auc == pytest.approx(metrics.auc(values, same), abs=1e-4)
            assert reported["eer"]["value"] == pytest.approx(metrics.eer(values, same), abs=1e-3)
            assert low <= auc <= high
            # 252 impostor pairs measure no FAR of 1e-2
            assert reported["tar_at_far"] == {"0.01": None, "0.001": None, "0.0001": None}
    assert found["genuine_pairs"] == same.sum() == PEOPLE * SHOTS * (SHOTS - 1) // 2
    assert found["people"] == PEOPLE
    folds = found["conditions"]["unoccluded"]["cosine"]["kfold"]
    assert folds["mean"] == pytest.approx(np.mean(folds["accuracy"]))
    everything = found["conditions"]["all"]["cosine"]
    assert everything["genuine_pairs"] == 3 * found["genuine_pairs"]
    assert everything["kfold"] is None


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(path: Path, *_: object, **__: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr("oaml.support.maps.draw_map_sheet", empty)
    for name in ("draw_roc", "draw_histograms", "draw_pair_sheet", "draw_robustness"):
        monkeypatch.setattr(f"oaml.evaluation.plots.{name}", empty)


@pytest.mark.usefixtures("no_pictures")
def test_the_occluded_side_is_the_one_asked_for(work: Path, tmp_path: Path) -> None:
    aucs = {}
    for side in ("a", "b", "both"):
        found = evaluate(
            str(work / "model"),
            images=work / "faces",
            pairs=work / "pairs.csv",
            out=tmp_path / side,
            occlude="mask",
            side=side,
            bootstrap=0,
        )
        assert found.verification is not None
        auc = found.verification.conditions["mask"]["cosine"].auc
        aucs[side] = auc.value
        assert auc.interval is None
        # whatever side is asked for, pairs with both occluded are measured too
        assert found.maps["mask"].images == PEOPLE * SHOTS
    assert len(set(aucs.values())) == 3


@pytest.mark.parametrize("side", ["a", "b", "both"])
def test_identification_occludes_the_side_asked_for(
    side: Side, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a is the gallery and b the probe."""
    faces = MeasuredFaces(Model.load(work / "model"), work / "faces", False, 32, Occluder(0, "b"))
    compared: list[tuple[bool, bool]] = []
    score_all = inference.score_all

    def recorded(
        model: Model, probes: Templates, rows: Any, gallery: Templates, *more: Any, **options: Any
    ) -> Any:
        assert faces.unoccluded is not None
        plain = faces.unoccluded.templates
        compared.append((gallery is not plain, probes is not plain))
        return score_all(model, probes, rows, gallery, *more, **options)

    monkeypatch.setattr(conditions, "score_all", recorded)
    known = read_identification(work / "roles.csv", work / "faces")
    conditions.measure(faces, None, known, ["mask"], side, 0)
    assert compared == [(False, False), (side in ("a", "both"), side in ("b", "both"))]


@pytest.mark.usefixtures("no_pictures")
def test_folders_that_are_no_people_are_noted(work: Path, tmp_path: Path) -> None:
    header, *rows = _read_csv(work / "pairs.csv")
    wrong = [(a, b, 1 - int(s)) if i == 0 else (a, b, s) for i, (a, b, s) in enumerate(rows)]
    found = evaluate(
        str(work / "model"),
        images=work / "faces",
        pairs=_write_csv(tmp_path / "pairs.csv", header, wrong),
        out=tmp_path / "report",
        bootstrap=5,
    )
    assert "1 of 276 pairs disagree with the folders" in found.notes[0]
    assert found.verification is not None
    assert list(found.verification.conditions) == ["unoccluded"]


def test_people_that_a_model_was_trained_on_are_warned_of(work: Path, tmp_path: Path) -> None:
    model = Model.load(work / "model")
    people = sorted(path.name for path in (work / "faces").iterdir())
    model.config.training["people_hashed"] = hashed_names([*people[:2], "somebody else"])
    folder = str(model.save(tmp_path / "model"))
    options: dict[str, Any] = {"images": work / "faces", "pairs": work / "pairs.csv", "bootstrap": 0}
    warned = evaluate(folder, out=tmp_path / "out", **options)
    assert f"2 of {len(people)} people took part in the model's training or calibration" in warned.notes[0]
    assert "people_hashed" not in (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    assert not evaluate(str(work / "model"), out=tmp_path / "other", **options).notes


def test_open_set_by_hand(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores put in: two probes, one of them found first above the threshold; of two strangers one reaches it."""
    names = sorted(p.relative_to(work / "faces").as_posix() for p in (work / "faces").rglob("*.png"))
    by_person: dict[str, list[str]] = {}
    for name in names:
        by_person.setdefault(name.split("/")[0], []).append(name)
    (ann, bela, *others) = by_person
    rows = [(by_person[who][0], who, "gallery") for who in (ann, bela)]
    rows += [(by_person[who][1], who, "probe") for who in (ann, bela)]
    rows += [(by_person[who][0], who, "stranger") for who in others[:2]]
    _write_csv(tmp_path / "roles.csv", ["path", "person", "role"], rows)
    scores = np.array([[3.0, 1.0], [2.0, 1.5], [0.0, 2.5], [1.0, 0.5]])
    monkeypatch.setattr(
        "oaml.evaluation.conditions.score_all", lambda *_, **__: dict.fromkeys(COLUMNS, scores)
    )
    model = Model.load(work / "model")
    model.config.thresholds = {"0.01": 2.2, "0.1": 0.9}
    model.save(tmp_path / "model")
    report = evaluate(
        str(tmp_path / "model"),
        images=work / "faces",
        identification=tmp_path / "roles.csv",
        out=tmp_path / "out",
        bootstrap=0,
    )
    result = report.identification
    assert result is not None
    assert (result.probes, result.strangers) == (2, 2)
    assert result.rank1["unoccluded"]["fused"].value == 0.5
    loose, strict = result.stored["unoccluded"]
    assert (loose.far, loose.found, loose.false_alarms) == (0.1, 1, 2)
    assert (strict.far, strict.found, strict.false_alarms) == (0.01, 1, 1)
    assert result.tpir_at_fpir["unoccluded"]["fused"] == {
        0.1: None,
        0.01: None,
    }  # two strangers measure neither
    assert "strangers named" in (tmp_path / "out" / "table.md").read_text()
