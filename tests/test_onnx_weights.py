"""Published ONNX files come back as the network that they were exported from, or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oaml.errors import OamlError
from oaml.main import main
from oaml.net import IResNet, MobileFaceNet, NetConfig, build_backbone
from oaml.weights import Preprocessing, load_backbone

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


class Published(nn.Module):
    """The raw embedding, as the published networks give it: InsightFace's MobileFaceNet ends in a linear layer."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(backbone, MobileFaceNet):
            self.linear = nn.Linear(512, backbone.embedding_size, bias=False)
            self.linear.weight.data = backbone.output.weight.data.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        net = self.backbone
        features = net.forward_features(x)
        if isinstance(net, IResNet):
            return net.features(net.fc(net.bn2(features).flatten(1)))
        return net.output_bn(self.linear(net.pool(features).flatten(1)))


class Unit(nn.Module):
    """With the normalisation of the embedding in the graph."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)[0]


def seeded(architecture: str) -> Any:
    torch.manual_seed(0)
    backbone = build_backbone(NetConfig(architecture, 32))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for name, value in backbone.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.2, generator=generator)
        elif value.ndim == 1:
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return backbone.eval()


def export(path: Path, module: nn.Module, fold: bool = True) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(
        module.eval(), (torch.zeros(1, 3, 112, 112),), str(path), dynamo=False, opset_version=11,
        do_constant_folding=fold, training=mode,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("architecture", "kind", "fold"),
    [
        ("iresnet18", Published, True),
        ("iresnet18", Unit, False),
        ("mbf", Published, True),
        ("mbf", Published, False),
        ("mbf_large", Unit, True),
    ],
)
def test_an_exported_network_comes_back(
    tmp_path: Path, architecture: str, kind: type[nn.Module], fold: bool
) -> None:
    backbone = seeded(architecture)
    path = export(tmp_path / "w600k", kind(backbone), fold)  # told by its content
    loaded = load_backbone(path)
    assert loaded.config.architecture == architecture
    assert loaded.config.embedding_size == 32
    assert loaded.preprocessing == Preprocessing("RGB")
    assert loaded.source.endswith(", ONNX)")
    x = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        stages, expected = loaded.backbone.forward_stages(x), backbone.forward_stages(x)
        for ours, theirs in zip(stages, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
        (ours, norm), (theirs, length) = loaded.backbone(x), backbone(x)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        torch.testing.assert_close(norm, length, rtol=1e-4, atol=1e-4)
        cells = loaded.backbone.cells(stages[1]).sum(1)
        torch.testing.assert_close(cells, ours * norm, rtol=0, atol=1e-4 * float(cells.abs().max()))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export(tmp_path / "w600k_mbf.onnx", Published(seeded("mbf")))
    assert main(["import", str(path), "--out", str(tmp_path / "m")]) == 0
    assert "w600k_mbf.onnx (InsightFace MobileFaceNet, ONNX): mbf, 32 numbers" in capsys.readouterr().out


def refused(path: Path) -> str:
    with pytest.raises(OamlError) as caught:
        load_backbone(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_such_network(tmp_path: Path) -> None:
    path = export(tmp_path / "a.onnx", nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8)))
    assert "is an ONNX graph of 1 convolutions (1 of [8, 3, 3, 3]), which is none of iresnet18, " in refused(
        path
    )
    path = export(tmp_path / "b.onnx", nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid()))
    assert "its graph computes Sigmoid" in refused(path)
    (tmp_path / "c.onnx").write_bytes(b"\x08\x07" + bytes(range(100)))
    assert "ONNX file" in refused(tmp_path / "c.onnx")
    whole = path.read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    assert "ONNX file" in refused(tmp_path / "half.onnx")


def test_another_function_of_the_same_layers(tmp_path: Path) -> None:
    """The order of the layers alone proves nothing."""
    import onnx

    path = export(tmp_path / "a.onnx", Published(seeded("iresnet18")))
    model = onnx.load(path)
    added = [node for node in model.graph.node if node.op_type == "Add"]
    added[3].input[1] = added[3].input[0]  # a block that forgets its shortcut
    onnx.save(model, path)
    assert "has the layers of IResNet and computes something else" in refused(path)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = export(tmp_path / "a.onnx", Published(seeded("iresnet18")))
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(largest).copy()
    values.flat[0] = np.nan
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    onnx.save(model, path)
    assert "not finite" in refused(path)


def test_the_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "a.onnx").write_bytes(b"\x08\x07" + bytes(100))
    assert main(["import", str(tmp_path / "a.onnx"), "--out", str(tmp_path / "m")]) == 1
    assert "pip install 'oaml[onnx]'" in capsys.readouterr().err
