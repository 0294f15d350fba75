"""`oaml import`, and published weights in the place of a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from oaml.datasets.drawn import draw_face
from oaml.main import main
from oaml.model import Model
from oaml.net import Backbone, NetConfig, OcclusionHead, build_backbone

pytestmark = pytest.mark.usefixtures("one_thread")


def backbone(architecture: str = "ir_mini") -> Backbone:
    torch.manual_seed(0)
    made = build_backbone(NetConfig(architecture, 32))  # type: ignore[arg-type]
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return made.eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = {f"module.{name}": value for name, value in backbone().state_dict().items()}
    torch.save({"state_dict": {**state, "head.kernel": torch.zeros(32, 7)}, "epoch": 1}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def faces(folder: Path, people: int = 2, shots: int = 2) -> Path:
    for person in range(people):
        made = folder / f"p{person:02d}"
        made.mkdir(parents=True)
        for shot in range(shots):
            Image.fromarray(draw_face(person, shot)).save(made / f"{shot}.png")
    return folder


def test_a_model_folder_is_written_and_described(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "imported"
    assert main(["import", str(checkpoint), "--out", str(out), "--licence", "research only"]) == 0
    printed = capsys.readouterr().out
    assert "a.ckpt (AdaFace IR): ir_mini, 32 numbers a face; BGR, mean 0.5/0.5/0.5" in printed
    assert "set aside: state_dict.head (1 tensor)" in printed
    assert "not trained yet: occlusion head, matchers" in printed
    assert f"oaml adapt --backbone {out}" in printed
    config = json.loads((out / "config.json").read_text())
    assert config["licence"] == "research only"
    assert config["preprocessing"]["channels"] == "BGR"
    assert config["training"]["backbone"] == "a.ckpt (AdaFace IR)"
    for name, value in backbone().state_dict().items():
        assert torch.equal(Model.load(out).net.backbone.state_dict()[name], value)


def test_it_compares_by_the_cosine_until_something_is_trained(checkpoint: Path) -> None:
    model = Model.from_published(checkpoint)
    images = torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    templates = model.extract(images)
    assert torch.equal(templates.visibility, torch.ones_like(templates.visibility))
    with torch.no_grad():
        embedding = backbone()(model.preprocess(images))[0]
    torch.testing.assert_close(templates.embedding, embedding)
    scores = model.compare_all(templates, templates)
    others = ~torch.eye(4, dtype=torch.bool)
    assert torch.equal(scores["fused"][others].argsort(), scores["cosine"][others].argsort())
    again = Model.from_published(checkpoint)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())


def test_files_stand_in_for_model_folders(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people, out = faces(tmp_path / "people"), tmp_path / "imported"
    assert main(["import", str(checkpoint), "--out", str(out)]) == 0
    a, b = (str(people / "p00" / f"{shot}.png") for shot in range(2))
    answers = []
    for model in (checkpoint, out, out / "model.safetensors"):
        capsys.readouterr()
        assert main(["verify", a, b, "--model", str(model), "--threshold", "0", "--json"]) == 0
        written = capsys.readouterr()
        answers.append(json.loads(written.out))
        assert ("set aside: state_dict.head (1 tensor)" in written.err) == (model == checkpoint)
    assert len({answer["score"] for answer in answers}) == 1
    assert answers[0]["visible_both"] == 1
    assert (
        main(["embed", str(checkpoint), "--images", str(people), "--out", str(tmp_path / "f.safetensors")])
        == 0
    )


def test_a_branch_is_not_left_out_of_a_file_that_belongs_to_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from oaml.model import ModelConfig

    net = NetConfig("ir_mini", 16, occlusion_stage=3, branch="output")
    folder = Model(ModelConfig(net=net)).eval().save(tmp_path / "adapted")
    assert Model.open(folder / "model.safetensors").net.branch is not None


def test_an_occlusion_head_beside_the_backbone_is_used(tmp_path: Path) -> None:
    torch.manual_seed(3)
    head = OcclusionHead(512)
    state = {f"model.{name}": value for name, value in backbone("ir_18").state_dict().items()}
    state |= {f"model.occlusion_head.{name}": value for name, value in head.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "occlusion.ckpt")
    model = Model.from_published(tmp_path / "occlusion.ckpt")
    assert model.config.training["untrained"] == ["matchers"]
    x = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        features = model.net.backbone.forward_features(model.preprocess(x))
        torch.testing.assert_close(model(x).visibility, head.eval()(features))


def test_training_starts_from_a_file_with_a_head_that_can_learn(checkpoint: Path) -> None:
    from oaml.data import DataConfig
    from oaml.train_val import TrainConfig, build_model

    config = TrainConfig(out=Path("unused"), data=DataConfig(drawn_people=10), backbone=checkpoint)
    model = build_model(config)
    assert model.net.occlusion_head.conv2.weight.any()
    assert model.fusion.qaconv_weight.item() == 1
    assert "untrained" not in model.config.training
    assert model.net.backbone.state_dict().keys() == backbone().state_dict().keys()
    assert torch.equal(
        model.net.backbone.state_dict()["output_layer.3.weight"],
        backbone().state_dict()["output_layer.3.weight"],
    )


@pytest.mark.parametrize("command", ["import", "adapt"])
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    people = faces(tmp_path / "people", 40)
    bad = {
        "absent.pt": None,
        "text.pt": b"<html>404</html>",
        "half.pt": checkpoint.read_bytes()[:5000],
    }
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        asked = [command, *([] if command == "import" else ["--backbone"]), str(tmp_path / name)]
        asked += ["--people", str(people)] if command == "adapt" else []
        assert main([*asked, "--out", str(tmp_path / "out")]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith(f"oaml {command}: ")
        assert name in lines[-1]
        assert not [line for line in lines[:-1] if not line.startswith("checking images")]
        assert not (tmp_path / "out").exists()


def test_a_model_folder_is_not_imported(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Model.from_published(checkpoint).save(tmp_path / "m")
    for path in (folder, folder / "model.safetensors"):
        assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 1
        assert "is a model folder, or part of one, already" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    assert main(["import", str(checkpoint), "--out", str(tmp_path / "taken")]) == 1
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_the_recipe_of_the_specification_is_rehearsed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """IR-50, QAConv and the occlusion head as published, in small batches; the first step is done and nothing written."""
    recipe = Path(__file__).parents[1] / "configs" / "specification.yaml"
    small = [
        "--data.identities",
        "2",
        "--data.images",
        "2",
        "--data.occlusion_batch",
        "2",
        "--accelerator",
        "cpu",
        "--dry_run",
    ]
    people, out = faces(tmp_path / "people", people=12), tmp_path / "out"
    asked = ["train", "--config", str(recipe), "--data.people", str(people), "--out", str(out)]
    assert main([*asked, "--data.use", "all", *small]) == 0
    printed = capsys.readouterr().out
    assert "first step of 100,000: ada " in printed
    assert all(term in printed for term in ("qaconv ", "occlusion ", "joint "))
    assert not out.exists()
