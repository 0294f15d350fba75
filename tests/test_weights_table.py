"""Every line of the README's table of weights is a command, run here on a miniature of the file that it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from oaml.families import FAMILIES
from oaml.main import main
from oaml.model import Model
from oaml.net import NetConfig, OcclusionHead, build_backbone

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TABLE = README.partition("| weights | import |\n")[2].partition("\n\n")[0]
COMMANDS = re.findall(r"`(oaml [^`]+)`", TABLE)


def published(architecture: str, prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    """Seeded weights of an architecture under the names of its family; the smallest of each serves for all."""
    torch.manual_seed(seed)
    state = build_backbone(NetConfig(architecture, 32)).state_dict()  # type: ignore[arg-type]
    family = next(family for family in FAMILIES if architecture in family.sizes)
    return {prefix + theirs: state[ours] for ours, theirs in family.published(architecture, state).items()}


def adaface(path: Path) -> None:
    torch.save({"state_dict": published("ir_18", "model.") | {"head.kernel": torch.zeros(32, 5)}}, path)


def cvlface(path: Path) -> None:
    path.mkdir()
    save_file(published("ir_18", "model.net."), path / "model.safetensors")
    (path / "config.json").write_text('{"conf": {"color_space": "RGB"}}')
    (path / "wrapper.py").write_text("raise RuntimeError\n")


def training(path: Path) -> None:
    softmax = {"weight": torch.zeros(9, 32)}
    torch.save(
        {
            "epoch": 1,
            "state_dict_backbone": published("iresnet18", "module."),
            "state_dict_softmax_fc": softmax,
        },
        path,
    )


def occlusion(path: Path) -> None:
    state = published("ir_18", "model.") | {"model.qaconv.fc.weight": torch.zeros(1, 49)}
    head = {name.replace("bn.", "bn1."): x for name, x in OcclusionHead(512).state_dict().items()}
    torch.save({"state_dict": state | {f"model.occlusion_head.{name}": x for name, x in head.items()}}, path)


def averaged(path: Path) -> None:
    torch.save(published("ir_mini", "model.") | published("ir_mini", "model_ema.module.", seed=1), path)


def onnx(path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    backbone = build_backbone(NetConfig("mbf", 32)).eval()
    torch.onnx.export(backbone, (torch.zeros(1, 3, 112, 112),), str(path), dynamo=False)


def plain(architecture: str) -> Callable[[Path], None]:
    return lambda path: torch.save(published(architecture), path)


MAKERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "adaface_ir18.ckpt": (adaface, "ir_18", "BGR"),
    "cvlface_adaface_ir18/": (cvlface, "ir_18", "RGB"),
    "iresnet18_backbone.pth": (plain("iresnet18"), "iresnet18", "RGB"),
    "checkpoint_gpu_0.pt": (training, "iresnet18", "RGB"),
    "mbf.pt": (plain("mbf"), "mbf", "RGB"),
    "LVFace-T_Glint360K.pt": (plain("vit_t"), "vit_t", "RGB"),
    "w600k_mbf.onnx": (onnx, "mbf", "RGB"),
    "mobilefacenet.pt": (plain("mobilefacenet_relu6"), "mobilefacenet_relu6", "RGB"),
    "occlusion.ckpt": (occlusion, "ir_18", "BGR"),
    "averaged.pt": (averaged, "ir_mini", "BGR"),
}
"""File of the table -> what makes a miniature of it, the architecture, the order of its colours."""


def test_the_table_has_a_miniature_for_every_line() -> None:
    assert [shlex.split(command)[2] for command in COMMANDS] == list(MAKERS)
    assert len(COMMANDS) == TABLE.count(
        "\n"
    )  # the line below the heading is one more, and the last has no end


@pytest.mark.parametrize("command", COMMANDS, ids=list(MAKERS))
def test_a_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    file = shlex.split(command)[2]
    make, architecture, colours = MAKERS[file]
    make(Path(file))
    assert main(shlex.split(command)[1:]) == 0
    model = Model.load("runs/imported")
    assert model.config.net.architecture == architecture
    assert model.config.preprocessing.channels == colours
    images = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    assert bool(model.extract(images).embedding.isfinite().all())
    if file == "averaged.pt":
        expected = published("ir_mini", seed=1)
        assert all(torch.equal(x, expected[name]) for name, x in model.net.backbone.state_dict().items())
