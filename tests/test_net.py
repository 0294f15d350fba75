"""Networks against published numbers and names; gradients, stages, autocast."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oaml.net import Net, NetConfig, OcclusionHead, build_backbone

GOLDEN = Path(__file__).parent / "golden"
IR = ("ir_18", "ir_34", "ir_50", "ir_101", "ir_se_50")
IRESNET = ("iresnet18", "iresnet50", "iresnet100")
SMALL = ("ir_mini", "mobilefacenet", "mobilefacenet_relu6")


def config(architecture: str, **settings: Any) -> NetConfig:
    return NetConfig(architecture, **settings)  # type: ignore[arg-type]


def golden_keys(architecture: str) -> dict[str, list[int]]:
    name = "ir" if architecture in IR else "iresnet"
    return json.loads((GOLDEN / f"{name}_state_dict_keys.json").read_text())[architecture]


def golden_weights(shapes: Mapping[str, list[int]], prelus: set[str]) -> dict[str, Tensor]:
    """Weights by the rule of the golden vectors: a function of name and shape."""
    weights = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            weights[name] = torch.zeros((), dtype=torch.int64)
            continue
        x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        if leaf == "running_mean":
            x = 0.1 * x
        elif leaf == "running_var":
            x = 1 + 0.1 * np.abs(x)
        elif len(shape) >= 2:
            x = x * np.float32(np.sqrt(1 / np.prod(shape[1:])))
        elif leaf == "bias":
            x = 0.1 * x
        else:
            x = (0.25 if module in prelus else 1) + 0.1 * x
        weights[name] = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    return weights


def assert_golden(ours: Tensor, golden: np.ndarray) -> None:
    np.testing.assert_allclose(ours.numpy(), golden, rtol=1e-4, atol=1e-5 * np.abs(golden).max())


@pytest.mark.parametrize("architecture", IR + IRESNET)
def test_golden_embedding_and_map(architecture: str) -> None:
    golden = np.load(GOLDEN / ("ir_nets.npz" if architecture in IR else "iresnet.npz"))
    shapes = golden_keys(architecture)
    with torch.device("meta"):  # the weights are replaced anyway
        backbone = build_backbone(config(architecture))
    assert {name: list(value.shape) for name, value in backbone.state_dict().items()} == shapes
    prelus = {name for name, module in backbone.named_modules() if isinstance(module, nn.PReLU)}
    backbone.load_state_dict(golden_weights(shapes, prelus), assign=True)
    backbone.eval()
    x = np.random.RandomState(int(golden["input_seed"])).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32)

    with torch.no_grad():
        features = backbone.forward_features(torch.from_numpy(x))
        embedding, norm = backbone.forward_head(features)
    assert_golden(features.mean((2, 3)), golden[f"{architecture}_feature_mean"])
    assert_golden(features.std((2, 3)), golden[f"{architecture}_feature_std"])
    if architecture in IR:
        assert_golden(embedding, golden[f"{architecture}_embedding"])
        assert_golden(norm, golden[f"{architecture}_norm"])
    else:
        assert_golden(embedding * norm, golden[f"{architecture}_embedding"])


@pytest.mark.parametrize("architecture", [*SMALL, "ir_18", "ir_se_50", "iresnet18", "iresnet34"])
def test_shapes_and_a_gradient_for_every_parameter(architecture: str) -> None:
    torch.manual_seed(0)
    net = Net(config(architecture, embedding_size=64, stage=3))
    stage3, stage4 = net.backbone.forward_stages(torch.randn(2, 3, 112, 112))
    assert stage3.shape[1:] == (net.backbone.channels[3], 14, 14)
    assert stage4.shape[1:] == (net.backbone.channels[4], 7, 7)
    out = net(torch.randn(3, 3, 112, 112))
    assert out.embedding.shape == (3, 64)
    assert out.norm.shape == (3, 1)
    assert out.visibility.shape == (3, 1, *net.grid) == (3, 1, 14, 14)
    assert out.features.shape == (3, net.channels, *net.grid)
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.ones(3))
    assert 0 <= out.visibility.min() <= out.visibility.max() <= 1

    weights = torch.randn(3, 64)
    ((out.embedding * weights).sum() + out.norm.sum() + out.visibility.square().sum()).backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_documented_channels_and_grids() -> None:
    for architecture, stage, expected in (
        ("ir_18", 4, (512, (7, 7))),
        ("ir_18", 3, (256, (14, 14))),
        ("iresnet18", 3, (256, (14, 14))),
        ("mobilefacenet", 4, (512, (7, 7))),
        ("mobilefacenet", 3, (128, (14, 14))),
        ("ir_mini", 4, (128, (7, 7))),
        ("ir_mini", 3, (64, (14, 14))),
    ):
        with torch.device("meta"):
            net = Net(config(architecture, stage=stage))
        assert (net.channels, net.grid) == expected


@pytest.mark.parametrize("architecture", SMALL)
def test_the_stage_leaves_the_embedding_alone(architecture: str) -> None:
    outputs, parameters = [], []
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    for stage in (3, 4):
        torch.manual_seed(0)
        net = Net(config(architecture, embedding_size=32, stage=stage)).eval()
        parameters.append(net.backbone.state_dict())
        with torch.no_grad():
            outputs.append(net(x))
    assert all(torch.equal(a, b) for a, b in zip(parameters[0].values(), parameters[1].values(), strict=True))
    assert torch.equal(outputs[0].embedding, outputs[1].embedding)
    assert torch.equal(outputs[0].norm, outputs[1].norm)


@pytest.mark.parametrize("stage", [3, 4])
def test_detach_occlusion_keeps_its_gradient_out_of_the_backbone(stage: int) -> None:
    torch.manual_seed(0)
    net = Net(config("ir_mini", embedding_size=32, stage=stage))
    x = torch.randn(2, 3, 112, 112)
    first = next(net.backbone.parameters())
    seen: dict[bool, Tensor] = {}
    for detach in (True, False):
        net.zero_grad()
        seen[detach] = (visibility := net(x, detach_occlusion=detach).visibility).detach()
        visibility.mean().backward()
        assert all(parameter.grad is not None for parameter in net.occlusion_head.parameters())
        assert (first.grad is None) == detach
    torch.testing.assert_close(seen[True], seen[False])

    net.zero_grad()
    net(x, detach_occlusion=True).embedding[:, 0].sum().backward()
    assert first.grad is not None


@pytest.mark.parametrize("architecture", ["ir_mini", "iresnet18", "mobilefacenet"])
def test_bfloat16_autocast_gives_float32_outputs(architecture: str) -> None:
    torch.manual_seed(0)
    net = Net(config(architecture, embedding_size=32)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(torch.randn(2, 3, 112, 112))
        alone = net.occlusion_head(out.features.float())
    assert out.features.dtype == torch.bfloat16
    assert out.embedding.dtype == out.norm.dtype == out.visibility.dtype == torch.float32
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.ones(2))
    assert torch.equal(out.visibility, alone)


def test_occlusion_head() -> None:
    head = OcclusionHead(512)
    assert sum(parameter.numel() for parameter in head.parameters()) == 590_209
    assert head.conv2.bias is not None
    assert head.conv2.bias.item() == 0
    assert head.conv1.weight.std().item() == pytest.approx(
        (2 / (512 * 9)) ** 0.5, rel=0.01
    )  # Kaiming, fan in: logits start unsaturated

    torch.manual_seed(0)
    head = OcclusionHead(8).eval()
    x = torch.randn(2, 8, 5, 6)
    hidden = nn.functional.conv2d(x, head.conv1.weight, padding=1) / (1 + head.bn.eps) ** 0.5
    logit = (hidden.relu() * head.conv2.weight[0, :, 0, 0].view(1, -1, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(head(x), logit.sigmoid())


@pytest.mark.parametrize("architecture", [*SMALL, "iresnet18"])
def test_the_output_layer_is_affine_in_the_map(architecture: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(config(architecture, embedding_size=16)).eval()

    def raw(features: Tensor) -> Tensor:
        embedding, norm = backbone.forward_head(features)
        return embedding * norm

    a, b = torch.randn(2, 1, backbone.channels[4], 7, 7)
    with torch.no_grad():
        middle = raw(0.5 * (a + b))
        torch.testing.assert_close(
            middle, 0.5 * (raw(a) + raw(b)), rtol=1e-4, atol=1e-5 * middle.abs().max().item()
        )


def test_squeeze_and_excitation_changes_only_what_it_should() -> None:
    assert golden_keys("ir_50").items() <= golden_keys("ir_se_50").items()
    torch.manual_seed(0)
    plain = build_backbone(config("ir_50", embedding_size=8)).eval()
    gated = build_backbone(config("ir_se_50", embedding_size=8)).eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if ".se_block.fc2" in name:
                parameter.zero_()  # every gate becomes sigmoid(0) = 1/2
        doubled = copy.deepcopy(gated)
        for name, buffer in doubled.named_parameters():
            if ".res_layer.5." in name:
                buffer.mul_(2)
        torch.testing.assert_close(doubled(x)[0], plain(x)[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 112, 112), (1, 1, 112, 112), (1, 3, 96, 112), (1, 112, 112, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    net = Net(config("ir_mini", embedding_size=16)).eval()
    with pytest.raises(ValueError, match="network input: shape"):
        net(torch.zeros(shape))


@pytest.mark.parametrize(
    ("field", "value"), [("architecture", "ir_19"), ("embedding_size", 0), ("stage", 2), ("dropout", 1.0)]
)
def test_config_errors_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        NetConfig(**{field: value})  # type: ignore[arg-type]


def test_dropout_reaches_the_output_layer() -> None:
    for architecture in ("ir_mini", "iresnet18"):
        with torch.device("meta"):
            backbone = build_backbone(config(architecture, dropout=0.25))
        assert [m.p for m in backbone.modules() if isinstance(m, nn.Dropout)] == [0.25]
