"""The example at the end of every command's help runs as it stands, on drawn people; `MORE` only makes it short."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

import oaml
from oaml import demo
from oaml.datasets.drawn import draw_face
from oaml.datasets.people import split_name
from oaml.main import COMMANDS, main, parser_of
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig, build_backbone
from oaml.support import download

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*impostor pairs are held out"),
]
MORE = {
    "demo": "--steps 1",
    "train": "--net.architecture ir_mini --net.embedding_size 16 --qaconv.adapter 8 --steps 1 --data.identities 2 --data.images 2 "
    "--data.occlusion_batch 2 --data.workers 0 --precision 32-true --validate_every 0 --picture_every 0 --accelerator cpu",
    "adapt": "--no-last_stage --occluders_per_view 1 --occlusion_steps 1 --steps 1",
    "evaluate": "--bootstrap 0",
}
LEFT = {
    "demo": "out/demo/report/report.html",
    "train": "runs/first/last/config.json",
    "adapt": "runs/adapted/config.json",
    "calibrate": "runs/calibrated/config.json",
    "evaluate": "report/report.html",
    "score": "scores.csv",
    "verify": "why.png",
    "enroll": "staff/faces.lance",
    "search": "why.png",
    "embed": "faces.safetensors",
    "import": "runs/imported/config.json",
    "export": "model.onnx",
    "align": "faces/Ann/0.png",
    "occlude": "occluded/masks/Ann/0.png",
}
"""What the example leaves behind."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples name."""
    pytest.importorskip("lancedb")
    here = tmp_path_factory.mktemp("drawn")
    calibrate = [name for name in (f"p{i}" for i in range(99)) if split_name(name) == "calibrate"][:2]
    train = [name for name in (f"p{i}" for i in range(99)) if split_name(name) == "train"][:3]
    for number, name in enumerate(["Ann", "Bela", *calibrate, *train]):
        for shot in range(2):
            (here / "faces" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_face(number, shot)).save(here / "faces" / name / f"{shot}.png")
    for name, person, shot in (("a", 0, 0), ("b", 0, 1), ("visitor", 0, 2)):
        Image.fromarray(draw_face(person, shot)).save(here / f"{name}.jpg")
    for name in ("people", "photographs"):
        shutil.copytree(here / "faces", here / name)
    with (here / "pairs.csv").open("w", newline="") as file:
        pairs = [
            (f"Ann/{i}.png", f"{b}/1.png", int(b == "Ann")) for i in (0, 1) for b in ("Ann", "Bela", *train)
        ]
        csv.writer(file).writerows([("path_a", "path_b", "same"), *pairs])
    shutil.copytree(Path(__file__).parents[1] / "configs", here / "configs")
    for name in ("runs/first/best", "runs/adapted"):
        shutil.copytree(Path(oaml.__file__).parent / "starter", here / name)
    torch.manual_seed(0)
    Model(ModelConfig(net=NetConfig(architecture="ir_mini", embedding_size=16))).save(here / "weights.pth")
    torch.save(build_backbone(NetConfig("ir_mini", 16)).state_dict(), here / "checkpoint.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert main(shlex.split(COMMANDS["enroll"].example)[1:]) == 0
    return here


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "download"])
def test_example(name: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if name in ("train", "adapt", "align", "enroll"):  # these begin what the others find there
        for path in {"train": ["runs"], "adapt": ["runs"], "align": ["faces"], "enroll": ["staff"]}[name]:
            shutil.rmtree(path)
    monkeypatch.setattr(demo, "write_unseen", partial(demo.write_unseen, people=4, shots=2))
    monkeypatch.setattr(demo, "add_thresholds", partial(demo.add_thresholds, people=4))
    if name == "calibrate":  # the others need fewer people
        monkeypatch.setattr("oaml.adaptation.extremes.WAYS", {})
        for number in range(40):
            (tmp_path / "faces" / f"more{number}").mkdir()
            Image.fromarray(draw_face(10 + number, 0)).save(tmp_path / "faces" / f"more{number}" / "0.png")
    assert main(shlex.split(f"{COMMANDS[name].example} {MORE.get(name, '')}")[1:]) == 0
    if name in LEFT:
        assert Path(LEFT[name]).exists()


def test_commands_that_messages_propose_can_be_copied(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, name in (("staff", "my staff"), ("weights.pth", "it's another"), ("people", "my people")):
        shutil.copytree(drawn / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for call in (
        ["gallery", "no gallery"],
        ["gallery", "my staff", "--delete", "Zoe"],
        ["enroll", "my people", "--gallery", "my staff", "--model", "it's another"],
    ):
        assert main(call) == 1
    with monkeypatch.context() as patch:
        patch.setattr(demo, "main", lambda call: 0)
        demo.meet(Path("my out"), Console())
    shown = capsys.readouterr()
    proposed = re.findall(
        r"oaml [a-z]+ (?:'|/|[A-Z]).*?(?=$| &&| lists)", shown.err + shown.out, re.MULTILINE
    )
    words = [shlex.split(line)[1:] for line in proposed]
    for name, *arguments in words:
        parser_of(name)[0].parse_args(arguments)
    assert words[:2] == [["enroll", "FOLDER", "--gallery", "no gallery"], ["gallery", "my staff"]]
    assert [words[2][0], words[2][-2:]] == ["enroll", ["--model", "it's another"]]
    assert words[2][3].startswith("my staff-")
    assert [line[:2] for line in words[3:]] == [
        ["verify", "my out/people/Cleo/0.png"],
        ["enroll", "my out/people"],
        ["search", "my out/visitor.png"],
    ]


def test_example_of_download_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OAML_HOME", str(tmp_path))
    nowhere = replace(download.DOWNLOADS["yunet"], address="http://127.0.0.1:9/x.onnx")
    monkeypatch.setitem(download.DOWNLOADS, "yunet", nowhere)
    assert main(shlex.split(COMMANDS["download"].example)[1:]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "no complete answer" in shown
