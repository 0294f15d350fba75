"""`oaml verify`: the scores of `oaml score`, a decision that follows from them, and one line for what can't be judged."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.evaluation.scoring import score
from oaml.main import main, parser_of
from oaml.model import Model, ModelConfig
from oaml.recognition import terminal
from oaml.recognition import verify as module
from oaml.recognition.decision import LEAST_SHARED, decide, fitted_threshold, told_apart

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and faces; nothing is written here by the tests."""
    root = tmp_path_factory.mktemp("verify")
    small_model(
        1.0,
        thresholds={"0.01": 5.0, "0.001": 9.5},  # a and b, one person, score 6.7; a and a 12.3
        training={"thresholds_fitted_on": "12 pairs of drawn people"},
    ).save(root / "model")
    small_model(1.0).save(root / "unfitted")
    small_model(-30.0, thresholds={"0.001": -99.0}).save(root / "blind")
    for name, person, shot in (("a", 1, 0), ("b", 1, 1), ("c", 2, 0)):
        Image.fromarray(draw_face(person, shot)).save(root / f"{name}.png")
    return root


@pytest.fixture
def here(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with links to models and faces."""
    monkeypatch.chdir(tmp_path)
    for path in work.iterdir():
        os.symlink(path, tmp_path / path.name)
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `oaml verify ... --json` says: one object on stdout and nothing else anywhere."""
    assert main(["verify", *arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return json.loads(shown.out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a person reads, without the line breaks."""
    assert main(["verify", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return " ".join(captured.out.split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a wrong input; nothing is said on stdout and nothing written."""
    before = sorted(os.listdir())
    assert main(["verify", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("oaml verify: ")
    assert captured.err.count("\n") == 1
    assert sorted(os.listdir()) == before
    return captured.err


# --- the answer


def test_the_numbers_are_those_of_score(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "pairs.csv").write_text("path_a,path_b\nb.png,c.png\na.png,b.png\n")
    score("model", images=here, pairs=here / "pairs.csv", out=here / "out.csv")
    capsys.readouterr()
    with (here / "out.csv").open() as opened:
        row = list(csv.DictReader(opened))[1]
    answer = asked(capsys, "a.png", "b.png", "--model", "model")
    for column, name in (
        ("fused", "score"),
        ("cosine", "cosine"),
        ("joint", "joint"),
        ("qaconv", "qaconv"),
        ("visible_a", "visible_a"),
        ("visible_b", "visible_b"),
    ):
        assert f"{answer[name]:.8f}" == row[column]
    assert 0 < answer["visible_both"] < min(answer["visible_a"], answer["visible_b"])


def test_facts_of_the_answer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = asked(capsys, "a.png", "b.png", "--model", "model")
    assert (answer["a"], answer["b"], answer["model"]) == ("a.png", "b.png", "model")
    assert (answer["threshold"], answer["far"], answer["threshold_from"]) == (9.5, 0.001, "model")
    assert answer["fitted_on"] == "12 pairs of drawn people"
    assert answer["least_visible_both"] == LEAST_SHARED == 0.05
    assert answer["decision"] == "different people"
    assert answer["remedy"] is None
    assert answer["picture"] is None
    lenient = asked(capsys, "a.png", "b.png", "--model", "model", "--far", "0.01")
    assert (lenient["threshold"], lenient["far"], lenient["decision"]) == (5.0, 0.01, "same person")
    unchanged = ("decision", "reason", "threshold", "far")
    assert {k: v for k, v in lenient.items() if k not in unchanged} == {
        k: v for k, v in answer.items() if k not in unchanged
    }


def test_both_orders_agree(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forth = asked(capsys, "a.png", "b.png", "--model", "model")
    back = asked(capsys, "b.png", "a.png", "--model", "model")
    for name in ("score", "joint", "qaconv", "cosine", "visible_both"):
        assert forth[name] == pytest.approx(back[name], abs=1e-5)
    assert (forth["visible_a"], forth["visible_b"]) == (back["visible_b"], back["visible_a"])


def test_an_image_with_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = asked(capsys, "a.png", "a.png", "--model", "model")
    assert answer["cosine"] == pytest.approx(1, abs=1e-6)
    assert answer["decision"] == "same person"


def test_the_users_threshold_is_obeyed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = asked(capsys, "a.png", "b.png", "--model", "model")["score"]
    assert 0 < value < 9.5
    for threshold, decision in (
        (value, "same person"),  # reached
        (math.nextafter(value, math.inf), "different people"),
        (0, "same person"),  # where the model's own says that they differ
        (-0.0, "same person"),
        (-1e9, "same person"),
        (1e9, "different people"),
    ):
        answer = asked(capsys, "a.png", "b.png", "--model", "model", f"--threshold={threshold!r}")
        assert answer["decision"] == decision
        assert answer["threshold"] == threshold
        assert (answer["threshold_from"], answer["far"], answer["fitted_on"]) == ("user", None, None)
    # even where the model has none, or none for the rate
    assert (
        asked(capsys, "a.png", "b.png", "--model", "unfitted", "--threshold", "0")["decision"]
        != "no threshold"
    )
    asked(capsys, "a.png", "b.png", "--model", "model", "--threshold", "0", "--far", "0.5")


def test_a_model_without_thresholds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = asked(capsys, "a.png", "b.png", "--model", "unfitted")
    assert answer["decision"] == "no threshold"
    assert (answer["threshold"], answer["threshold_from"], answer["far"], answer["fitted_on"]) == (None,) * 4
    for part in ("oaml calibrate", "--threshold"):
        assert part in answer["remedy"]
    assert all(math.isfinite(answer[name]) for name in ("score", "joint", "qaconv", "cosine"))
    text = shown(capsys, "a.png", "b.png", "--model", "unfitted")
    assert "no threshold" in text
    assert "oaml calibrate" in text
    assert f"{answer['score']:.3f}" in text


def test_too_little_in_common_is_never_decided(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--threshold=-1000"]):
        answer = asked(capsys, "a.png", "b.png", "--model", "blind", *more)
        assert answer["decision"] == "too little visible to decide"
        assert answer["visible_both"] < LEAST_SHARED
        assert "more of the face" in answer["remedy"]
        assert answer["threshold"] is not None
    assert "too little visible" in shown(capsys, "a.png", "b.png", "--model", "blind", "--draw", "why.png")


@pytest.mark.parametrize(
    ("value", "both", "threshold", "decision"),
    [
        (1.0, 0.5, 1.0, "same person"),
        (0.999999, 0.5, 1.0, "different people"),
        (0.0, 0.5, 0.0, "same person"),
        (-1.0, 0.5, None, "no threshold"),
        (9.0, 0.05, 1.0, "same person"),
        (9.0, 0.0499, 1.0, "too little visible to decide"),
        (9.0, 0.0, None, "too little visible to decide"),
    ],
)
def test_decide(value: float, both: float, threshold: float | None, decision: str) -> None:
    assert decide(value, both, threshold)[0] == decision


def test_numbers_that_round_to_the_same_are_told_apart() -> None:
    assert decide(1.00002, 1, 1.00003)[1] == "score 1.00002 stays below the threshold 1.00003"
    assert decide(2, 1, 2)[1] == "score 2.000 reaches the threshold 2.000"
    assert decide(1.0, 1, math.nextafter(1.0, 2))[0] == "different people"
    assert told_apart(1e-30, 2e-30) == ("0." + 17 * "0",) * 2  # no float near 1 needs more digits


# --- thresholds of a model


@pytest.mark.parametrize("key", ["0.001", "1e-3", "0.0010"])
def test_a_rate_is_a_number_and_no_spelling(key: str) -> None:
    threshold = fitted_threshold(ModelConfig(thresholds={key: 0.0, "0.01": -1.0}), 0.001)
    assert threshold is not None
    assert (threshold.value, threshold.far, threshold.fitted_on) == (0.0, 0.001, None)


def test_no_thresholds_at_all() -> None:
    assert fitted_threshold(ModelConfig(), 0.001) is None


@pytest.mark.parametrize("far", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_what_is_no_rate(far: float) -> None:
    with pytest.raises(OamlError, match=r"^far: .* above 0 and below 1"):
        fitted_threshold(ModelConfig(), far)


def test_a_rate_without_threshold_names_those_there_are() -> None:
    config = ModelConfig(thresholds={"0.001": 2.0, "0.01": 1.0})
    with pytest.raises(OamlError, match=r"model: no threshold at FAR 0.0001; it has 0.01, 0.001.*--far"):
        fitted_threshold(config, 0.0001, "model")


@pytest.mark.parametrize("thresholds", [{"often": 1.0}, {"0.001": "high"}, {"0.001": None}, [0.001], "0.001"])
def test_damaged_thresholds(thresholds: Any) -> None:
    with pytest.raises(OamlError, match=r"model: thresholds in config.json are damaged"):
        fitted_threshold(ModelConfig(thresholds=thresholds), 0.001, "model")


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_threshold_that_nothing_can_reach(value: float) -> None:
    with pytest.raises(OamlError, match="too few pairs"):
        fitted_threshold(ModelConfig(thresholds={"0.001": value}), 0.001, "model")


# --- for people


def test_what_a_person_reads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = asked(capsys, "a.png", "b.png", "--model", "model")
    text = shown(capsys, "a.png", "b.png", "--model", "model")
    assert text.startswith("different people")
    for part in (
        f"{answer['score']:.3f}",
        "9.500",
        "1 in 1,000 impostor pairs",
        "FAR 0.001",
        "12 pairs of drawn people",
        f"{answer['cosine']:.3f}",
        f"{100 * answer['visible_a']:.0f} %",
        f"{100 * answer['visible_both']:.0f} %",
    ):
        assert part in text
    text = shown(capsys, "a.png", "b.png", "--model", "model", "--threshold", "0")
    assert "your own" in text
    assert "1 in" not in text


@pytest.mark.parametrize(
    ("far", "words"), [(0.01, "1 in 100"), (1e-4, "1 in 10,000"), (0.003, "0.3 % of"), (0.5, "1 in 2")]
)
def test_a_rate_in_words(far: float, words: str) -> None:
    assert terminal._odds(far) == words


@pytest.mark.parametrize("name", ["[bold]a.png", "\u5f20.png", "$a$ b.png"])
def test_file_names_are_shown_as_they_are(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / name).symlink_to(here / "a.png")
    text = shown(capsys, name, "b.png", "--model", "model", "--draw", "why.png")
    assert name in text
    assert asked(capsys, name, "b.png", "--model", "model")["a"] == name


def test_a_name_of_no_known_letters_is_escaped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a\udcff.png").symlink_to(here / "a.png")
    for as_json in (False, True):
        module.verify(Path("a\udcff.png"), Path("b.png"), model="model", draw=Path("why.png"), json=as_json)
        assert "a\\udcff.png" in capsys.readouterr().out


# --- the picture


def test_draw(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = asked(capsys, "a.png", "b.png", "--model", "model", "--draw", "deep/why.png")
    assert answer["picture"] == "deep/why.png"
    with Image.open("deep/why.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 1000
    assert os.listdir("deep") == ["why.png"]
    without = asked(capsys, "a.png", "b.png", "--model", "model")
    assert {**answer, "picture": None} == without


def test_the_picture_gets_decision_and_what_it_takes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "draw_pair", lambda *positional, **named: calls.append(named))
    answer = asked(capsys, "a.png", "b.png", "--model", "model", "--draw", "why.png")
    assert calls[0]["names"] == ("a.png", "b.png")
    title = calls[0]["title"]
    assert title.startswith("Different people: score ")
    assert title.endswith(f"both show {100 * answer['visible_both']:.0f} % of the face")
    assert "threshold 9.500" in title
    needed = [calls[0]["needed"]]
    for more in (["--threshold", str(answer["score"])], ["--threshold=-1e9"]):
        asked(capsys, "a.png", "b.png", "--model", "model", "--draw", "why.png", *more)
        needed.append(calls[-1]["needed"])
    assert needed[0] > needed[1] > needed[2]
    for other in ("unfitted", "blind"):  # no decision: nothing to reach
        asked(capsys, "a.png", "b.png", "--model", other, "--draw", "why.png")
        assert calls[-1]["needed"] is None


# --- bad input


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["missing", "small", "text", "cut", "transparent", "folder", "empty"])
def test_bad_faces(kind: str, place: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = here / "bad.png"
    whole = (here / "a.png").read_bytes()
    if kind == "small":
        Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(bad)
    elif kind == "transparent":
        Image.fromarray(np.zeros((112, 112, 4), np.uint8)).save(bad)
    elif kind == "folder":
        bad.mkdir()
    elif kind != "missing":
        bad.write_bytes({"text": b"no image", "cut": whole[: len(whole) // 2], "empty": b""}[kind])
    faces = ["a.png", "a.png"]
    faces[place] = "bad.png"
    for more in ([], ["--json"], ["--draw", "why.png"]):
        assert "bad.png" in refused(capsys, *faces, "--model", "model", *more)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "gone"], "gone"),
        (["--model", "a.png"], "a.png"),
        (["--model", "model", "--far", "0.1"], "--far"),
        (["--model", "model", "--far", "0"], "far: 0"),
        (["--model", "model", "--threshold", ".nan"], "threshold: nan"),
        (["--model", "model", "--threshold", ".inf"], "threshold: inf"),
        (["--model", "model", "--draw", "why.jpg"], "why.jpg"),
        (["--model", "model", "--draw", "why"], ".png"),
        (["--model", "model", "--draw", "a.png"], "one of the two faces"),
        (["--model", "model", "--draw", "./b.png"], "one of the two faces"),
        (["--model", "model", "--draw", "folder.png"], "is a folder"),
        (["--model", "model", "--draw", "a.png/why.png"], "could not be written"),
        (["--model", "model", "--device", "abacus"], "abacus"),
    ],
)
def test_bad_options(
    arguments: list[str], named: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder.png").mkdir()
    face = (here / "a.png").read_bytes()
    assert named in refused(capsys, "a.png", "b.png", *arguments)
    assert (here / "a.png").read_bytes() == face


def test_damaged_weights_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model.load(here / "model")
    with torch.no_grad():
        model.joint.log_scale.fill_(math.nan)
    model.save(here / "broken")
    assert "not finite" in refused(capsys, "a.png", "b.png", "--model", "broken", "--draw", "why.png")


def test_other_sizes_need_resize(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.asarray(Image.open("a.png")).repeat(2, 0).repeat(2, 1)).save("large.png")
    assert "--resize" in refused(capsys, "large.png", "b.png", "--model", "model")
    large = asked(capsys, "--resize", "large.png", "b.png", "--model", "model")
    assert large["score"] == asked(capsys, "a.png", "b.png", "--model", "model")["score"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a.png", "--model", "model"], "b"),
        (["a.png", "b.png", "--model", "model", "--far", "seldom"], "far"),
        (["a.png", "b.png", "c.png", "--model", "model"], "c.png"),
        (["a.png", "b.png", "--model", "model", "--jason"], "jason"),
    ],
)
def test_wrong_calls(
    arguments: list[str], named: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err.rpartition("error:")[2]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (["--json"], True),
        (["--json", "true"], True),
        (["--json=true"], True),
        (["--json", "False"], False),
        (["--json=false"], False),
        ([], False),
    ],
)
def test_a_switch_stands_alone_or_with_a_value(said: list[str], meant: bool) -> None:
    parser = parser_of("verify")[0]
    for arguments in (["a", "b", "--model", "m", *said], [*said, "a", "b", "--model", "m"]):
        parsed = parser.parse_args(arguments)
        assert parsed.json is meant
        assert (str(parsed.a), str(parsed.b), parsed.resize) == ("a", "b", False)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, oaml.recognition.verify; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert not {"torch", "matplotlib", "rich", "cv2", "lightning"} & set(result.stdout.split())


def test_thresholds_that_fall_with_the_rate_are_damaged() -> None:
    config = ModelConfig(thresholds={"0.01": 2.0, "0.001": 1.0})
    with pytest.raises(OamlError, match=r"a smaller false-accept rate has a lower one; copy the model again"):
        fitted_threshold(config, 0.01)
