"""The command line: light, strict, and one line for bad input."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import oaml
from oaml import train_val
from oaml.errors import OamlError, command
from oaml.main import COMMANDS, RENAMED, main, parser_of

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("**/*.y*ml"))
WITHOUT_OUTPUT = {
    "verify",
    "enroll",
    "search",
    "gallery",
    "benchmark",
}  # answer on the terminal, or fill a gallery
HEAVY = ("torch", "numpy", "lightning", "kornia", "cv2", "jsonargparse", "matplotlib", "PIL")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_a_config_that_is_no_utf8_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"licence: caf\xe9\n")
    assert main(["train", "--config", str(tmp_path / "latin.yaml"), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "latin.yaml: is no UTF-8 text" in error
    assert "Traceback" not in error


def imported(*arguments: str) -> set[str]:
    """Top-level packages that Python imports on the way."""
    lines = python("-X", "importtime", *arguments).stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "oaml" in modules
    return {module.partition(".")[0] for module in modules}


def one_line(capsys: pytest.CaptureFixture[str], *parts: str | Path) -> None:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert "Traceback" not in error
    for part in parts:
        assert str(part) in error


def trained_with(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, Any]:
    """Exit code and configuration of `oaml train`, without training."""
    seen: list[Any] = []
    monkeypatch.setattr(train_val, "train", seen.append)
    return main(["train", *arguments]), seen[0] if seen else None


# --- light


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = python("-m", "oaml.main", "--help")
        times.append(time.perf_counter() - start)
        assert result.returncode == 0
        assert all(name in result.stdout for name in COMMANDS)
    assert min(times) < 2  # half a second is promised; this machine may be busy


@pytest.mark.parametrize("arguments", [("-m", "oaml.main", "--help"), ("-c", "import oaml")])
def test_nothing_heavy_is_imported(arguments: tuple[str, ...]) -> None:
    assert not imported(*arguments) & set(HEAVY)


PRINT_POLICY = """
import os, sys
import oaml.main
before = os.environ.get("OMP_WAIT_POLICY")
sys.argv = ["oaml", "--version"]
oaml.main.main({arguments})
assert "torch" not in sys.modules
print(before, os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("arguments", "setting", "printed"),
    [
        ("", None, "None passive"),  # the command line: sys.argv
        ("", "active", "active active"),  # the user's own choice stays
        ("['--version']", None, "None None"),  # a program that calls a command keeps its environment
    ],
)
def test_waiting_threads_rest_on_the_command_line(
    arguments: str, setting: str | None, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if setting is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", setting)
    result = python("-c", PRINT_POLICY.format(arguments=arguments))
    assert result.stdout.splitlines()[1:] == [printed], result.stderr


# --- calls


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_overview(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(command.summary in shown for command in COMMANDS.values())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"oaml {oaml.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"usage: oaml {name}" in shown
    assert ("--out PATH" in shown) == (name not in WITHOUT_OUTPUT)
    assert shown.endswith(f"example: {COMMANDS[name].example}")
    for python in ("<class", "Optional", "null", "Literal", "type:", "{true", "None", "PosixPath", "CONFIG"):
        assert python not in shown
    parser = parser_of(name)[0]
    assert parser.types
    for action in parser._actions:  # every argument says what it is, and its default once
        assert action.help
        assert action.help.lower().count("default") <= 1 + ("by default" in action.help), action.help


@pytest.mark.parametrize("name", COMMANDS)
def test_example_of_every_command_is_its_own(name: str) -> None:
    assert COMMANDS[name].example.startswith(f"oaml {name} ")


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["fly"]) == 2
    shown = capsys.readouterr()
    assert "usage" in shown.out
    assert "'fly'" in shown.err
    assert all(name in shown.err for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["occlude", "faces", "--kind", "niqab", "--out", "x", "--colour", "red"], "colour"),
        (["occlude", "faces", "--kind", "niqab", "--out", "x", "--seed", "many"], "seed"),
        (["occlude", "faces", "--kind", "niqab"], "out"),
        (["occlude", "--kind", "niqab", "--out", "x"], "folder"),
        (["train", "--out", "x", "--data.drawn_people", "4", "--learning_rate", "1"], "learning_rate"),
        (["train", "--out", "x", "--data.drawn_people", "4", "--head.kind", "softmax"], "head.kind"),
        (["train", "--out", "x", "--data.drawn_people", "4", "--steps", "0"], "steps"),
        (["train", "--out", "x", "--data.drawn_people", "4", "--weights.joint", "-1"], "weights.joint"),
        (["train", "--out", "x", "--data.drawn_people", "4", "--data.identities", "1"], "data.identities"),
        (["train", "--out", "x"], "data.people"),
        (["train", "--data.drawn_people", "4"], "out"),
        (["train", "--config", "gone.yaml"], "gone.yaml"),
    ],
)
def test_wrong_calls(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert named in error.rpartition("error:")[2]
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("colour: red", "colour"),
        ("data: {drawn_people: 4, shoes: 2}", "shoes"),
        ("optimiser: {kind: sgd, momentum: 0.9}", "momentum"),
    ],
)
def test_unknown_keys_of_a_configuration(
    text: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(text + "\n")
    code, config = trained_with(
        monkeypatch,
        "--config",
        str(tmp_path / "a.yaml"),
        "--data.drawn_people",
        "4",
        "--out",
        str(tmp_path / "o"),
    )
    assert (code, config) == (2, None)
    assert key in capsys.readouterr().err.rpartition("error:")[2]


def test_options_go_over_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(
        "data: {people: faces, images: 3, kinds: [niqab, mask]}\nsteps: 7\nseed: 3\n"
        "qaconv: {method: scaling}\n"
    )
    code, config = trained_with(
        monkeypatch,
        "--config",
        str(tmp_path / "a.yaml"),
        "--out",
        "runs/x",
        "--steps",
        "9",
        "--data.identities=5",
    )
    assert code == 0
    assert isinstance(config, train_val.TrainConfig)
    assert (config.steps, config.seed, config.out, config.qaconv.method) == (9, 3, Path("runs/x"), "scaling")
    assert (config.data.people, config.data.images, config.data.identities) == (Path("faces"), 3, 5)
    assert config.data.kinds == ["niqab", "mask"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_that_come_along(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--config", str(path), "--out", "runs/x"]
    if "drawn_people" not in path.read_text():
        arguments += ["--data.people", "faces"]
    code, config = trained_with(monkeypatch, *arguments)
    assert code == 0
    assert isinstance(config, train_val.TrainConfig)


# --- lists


ADAPT = ["--backbone", "weights.pth", "--out", "runs/adapted"]


def adapted_with(*arguments: str) -> Any:
    """The options of `oaml adapt`, without adapting."""
    return parser_of("adapt")[0].parse_args([*ADAPT, *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--occluders", "niqab", "mask", "--people", "faces"],
        ["--people", "faces", "--occluders", "niqab", "mask"],
        ["--occluders=niqab", "mask", "--people", "faces"],
        ["--occluders", '["niqab", "mask"]', "--people", "faces"],
        ["--occluders=[niqab, mask]", "--people", "faces"],
        ["--occluders", "hand", "--people", "faces", "--occluders", "niqab", "mask"],  # the last one counts
        ["--people", "faces", "--occluders", "niqab", "--occluders+", "mask"],
    ],
)
def test_a_list_is_all_words_up_to_the_next_flag(arguments: list[str]) -> None:
    parsed = adapted_with(*arguments)
    assert parsed.occluders == ["niqab", "mask"]
    assert parsed.people == Path("faces")
    assert parsed.masks == []


def test_words_of_a_list_stay_words() -> None:
    parsed = adapted_with("--people", "faces", "--masks", "my masks", "2024", "null", "a,b", "--resize")
    assert parsed.masks == [Path("my masks"), Path("2024"), Path("null"), Path("a,b")]
    assert parsed.resize is True
    assert adapted_with("--people", "faces", "--masks", "niqab/").masks == [Path("niqab")]
    assert adapted_with("--people", "faces", "--masks", "[]").masks == []


def test_lists_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("data: {masks: [of/the/file], kinds: [hand]}\n")
    code, config = trained_with(
        monkeypatch,
        *("--config", str(tmp_path / "a.yaml"), "--data.people", "faces", "--out", "runs/x"),
        *("--data.masks", "niqab", "hats", "--optimiser.milestones", "0.25", "0.5", "--steps", "7"),
    )
    assert code == 0
    assert config.data.masks == [Path("niqab"), Path("hats")]
    assert config.data.kinds == ["hand"]
    assert config.optimiser.milestones == [0.25, 0.5]
    assert config.steps == 7


def test_the_help_shows_that_a_list_takes_several_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--masks PATH ... " in shown
    assert "--occluders TEXT ... " in shown


@pytest.mark.parametrize("arguments", [["--occluders"], ["--occluders", "--seed", "1"], ["--occluders="]])
def test_a_list_flag_without_a_word_is_a_wrong_call(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", *ADAPT, "--people", "faces", *arguments]) == 2
    assert "--occluders: names nothing" in capsys.readouterr().err.rpartition("error:")[2]


@pytest.mark.parametrize(
    ("words", "named"), [(["niqab", "wig"], "'wig'"), (["niqab mask"], "'niqab mask'"), (["[]"], "no kind")]
)
def test_occluders_that_are_none(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapted"
    paths = ["--backbone", str(tmp_path / "w.pth"), "--people", str(tmp_path / "faces"), "--out", str(out)]
    assert main(["adapt", *paths, "--occluders", *words]) == 1
    one_line(capsys, "oaml adapt: --occluders", named, "niqab, mask, sunglasses, scarf, hand, patch")
    assert list(tmp_path.iterdir()) == []


# --- switches


@pytest.mark.parametrize(
    ("said", "flip", "resize"),
    [
        ([], True, False),
        (["--no-flip", "--resize"], False, True),
        (["--no_flip", "--no-resize"], False, False),
        (["--flip", "false", "--resize", "true"], False, True),
        (["--flip=false", "--resize=True"], False, True),
        (["--no-flip", "--flip"], True, False),  # the last one counts
    ],
)
def test_a_switch_takes_no_value_but_may(said: list[str], flip: bool, resize: bool) -> None:
    for arguments in (["--people", "faces", *said], [*said, "--people", "faces"]):
        parsed = adapted_with(*arguments)
        assert (parsed.flip, parsed.resize) == (flip, resize)


def test_a_switch_stands_before_file_names() -> None:
    parsed = parser_of("verify")[0].parse_args(["--json", "--resize", "a b.jpg", "--no-json", "c.jpg"])
    assert (parsed.json, parsed.resize) == (False, True)
    assert (parsed.a, parsed.b) == (Path("a b.jpg"), Path("c.jpg"))


def test_switches_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("data: {drawn_people: 4, resize: true}\nresume: true\naugment: false\n")
    call = ["--config", str(tmp_path / "a.yaml"), "--out", "x"]
    config = trained_with(monkeypatch, *call)[1]
    assert (config.data.resize, config.resume, config.augment) == (True, True, False)
    config = trained_with(
        monkeypatch, *call, "--no-data.resize", "--no-resume", "--augment", "--no-qaconv.position_bias"
    )[1]
    assert (config.data.resize, config.resume, config.augment) == (False, False, True)
    assert config.qaconv.position_bias is False


def test_the_help_shows_how_a_switch_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--flip, --no-flip average" in shown
    assert "--resize scale" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adapt", "--out"], "--out: takes PATH"),
        (["adapt", "--occluders_per_view", "many"], "--occluders_per_view: takes INT, not many"),
        (["adapt", "--use", "some"], "--use: takes {all,train}, not some"),
        (["adapt", "--use", "all"], "missing: --backbone, --people, --out"),
        (["verify", "a"], "missing: b"),
        (["verify", "a", "b", "--threshold", "x"], "--threshold: takes FLOAT, not x"),
        (["verify", "a", "b", "--json=maybe"], "--json: takes true or false, not maybe"),
        (["verify", "a", "b", "--no-json=true"], "unrecognized arguments: --no-json=true"),
        (["verify", "a", "b", "--no-far"], "unrecognized arguments: --no-far"),
        (["verify", "a", "b", "--thres", "1"], "unrecognized arguments: --thres 1"),
        (["download", "everything"], "name: takes {yunet,"),
        (["train", "--config"], "--config: takes PATH"),
        (["train", "--out", "x", "--data.kinds", "hand", "--preprocessing.mean", "3"], "[FLOAT,FLOAT,FLOAT]"),
    ],
)
def test_a_wrong_call_is_told_what_is_taken(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    usage, error, end = capsys.readouterr().err.split("\n")
    assert usage.startswith(f"usage: oaml {arguments[0]} ")
    assert said in error
    assert error.endswith(f"(oaml {arguments[0]} --help says more)")
    assert end == ""


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("data: [")
    assert main(["train", "--config", str(tmp_path / "a.yaml"), "--out", "x"]) == 2
    assert "a.yaml: is no YAML" in capsys.readouterr().err


# --- renamed


GONE = "the old name goes with the next release\n"


@pytest.mark.parametrize("said", [["--head_steps", "3"], ["--head_steps=3"]])
def test_an_old_flag_works_and_says_the_new_one(said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert adapted_with("--people", "faces", *said).occlusion_steps == 3
    assert capsys.readouterr().err == f"oaml adapt: --head_steps is now --occlusion_steps; {GONE}"
    assert adapted_with("--people", "faces", "--occlusion_steps", "3").occlusion_steps == 3
    assert capsys.readouterr().err == ""


def test_an_old_key_of_a_file_works_and_says_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RENAMED, "train", {"--data.shots": "--data.drawn_shots", "--pause": "--log_every"})
    file = tmp_path / "a.yaml"
    file.write_text("pause: 7\ndata: {drawn_people: 4, shots: 5, cover_probability: 1e-3}\n")
    config = trained_with(monkeypatch, "--config", str(file), "--out", "x")[1]
    assert (config.data.drawn_shots, config.log_every, config.data.cover_probability) == (5, 7, 0.001)
    shown = capsys.readouterr().err
    assert shown == "".join(
        f"oaml train: {old} is now {new}; {GONE}"
        for old, new in (("data.shots", "data.drawn_shots"), ("pause", "log_every"))
    )
    config = trained_with(monkeypatch, "--config", str(file), "--out", "x", "--data.drawn_shots", "9")[1]
    assert config.data.drawn_shots == 9
    capsys.readouterr()
    file.write_text("data: {drawn_people: 4, shots: 5, drawn_shots: 6}\n")
    assert main(["train", "--config", str(file), "--out", "x"]) == 2
    assert "data.shots is the old name of data.drawn_shots" in capsys.readouterr().err


def test_an_old_and_a_new_flag_together_are_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    for said in (
        ["--head_steps", "3", "--occlusion_steps=4"],
        ["--occlusion_steps", "4", "--head_steps", "3"],
    ):
        assert main(["adapt", *ADAPT, "--people", "faces", *said]) == 2
        assert "--head_steps is the old name of --occlusion_steps" in capsys.readouterr().err


@pytest.mark.parametrize("name", RENAMED)
def test_one_of_two_names_exists(name: str) -> None:
    types = parser_of(name)[0].types
    for old, new in RENAMED[name].items():
        assert (old[2:] in types) != (new[2:] in types)


# --- bad input


def test_an_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(config: object) -> None:
        raise OamlError("faces/a.jpg: is 5x5; align it")

    monkeypatch.setattr(train_val, "train", fails)
    assert main(["train", "--out", "x", "--data.drawn_people", "4"]) == 1
    one_line(capsys, "oaml train: faces/a.jpg: is 5x5; align it")


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(config: object) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard.compat")

    monkeypatch.setattr(train_val, "train", fails)
    assert main(["train", "--out", "x", "--data.drawn_people", "4"]) == 1
    one_line(capsys, "needs the package tensorboard", "pip install 'oaml[train]'")


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("lancedb", "'oaml[gallery]'"),
        ("pyarrow", "'oaml[gallery]'"),
        ("filelock", "oaml"),
        ("kornia", "oaml"),
    ],
)
def test_a_missing_package_names_its_own_extra(
    module: str, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(config: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(train_val, "train", fails)
    assert main(["train", "--out", "x", "--data.drawn_people", "4"]) == 1
    one_line(capsys, f"needs the package {module}, which is not installed; pip install {remedy}\n")


def test_commands_to_copy_are_quoted() -> None:
    assert command("enroll", "FOLDER", "--gallery", "staff") == "oaml enroll FOLDER --gallery staff"
    words = ["enroll", Path("it's here/my people"), "--gallery", "s3://b/$x"]
    assert shlex.split(command(*words)) == ["oaml", *map(str, words)]


def test_defects_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(config: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(train_val, "train", fails)
    with pytest.raises(ValueError, match="a defect"):
        main(["train", "--out", "x", "--data.drawn_people", "4"])


@pytest.mark.parametrize("kind", ["missing", "empty", "broken", "small", "unknown kind"])
def test_bad_input_of_occlude(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = tmp_path / "faces"
    if kind != "missing":
        faces.mkdir()
    if kind == "broken":
        (faces / "a.png").write_text("no image")
    if kind == "small":
        Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(faces / "a.png")
    occluder = "wig" if kind == "unknown kind" else "niqab"
    assert main(["occlude", str(faces), "--kind", occluder, "--out", str(tmp_path / "out")]) == 1
    named = {"broken": faces / "a.png", "small": faces / "a.png", "unknown kind": "wig"}.get(kind, faces)
    one_line(capsys, "oaml occlude: ", named)
    assert not (tmp_path / "out").exists()


def test_bad_input_in_a_process(tmp_path: Path) -> None:
    result = python(
        "-m", "oaml.main", "occlude", str(tmp_path / "gone"), "--kind", "mask", "--out", str(tmp_path / "o")
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_occlude(tmp_path: Path) -> None:
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    Image.fromarray(np.full((112, 112, 3), 128, np.uint8)).save(tmp_path / "faces" / "ann" / "1.png")
    assert main(["occlude", str(tmp_path / "faces"), "--kind", "mask", "--out", str(tmp_path / "out")]) == 0
    for part in ("images", "masks"):
        assert (tmp_path / "out" / part / "ann" / "1.png").is_file()


def test_a_command_without_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from oaml import demo

    called: list[dict[str, Any]] = []

    def recorded(out: Path = Path("out/demo"), seed: int = 0) -> None:
        called.append({"out": out, "seed": seed})

    monkeypatch.setattr(demo, "demo", recorded)
    assert main(["demo"]) == 0
    assert called == [{"out": Path("out/demo"), "seed": 0}]
