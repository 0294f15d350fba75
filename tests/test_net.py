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

from oaml import net as nets
from oaml.net import Backbone, Net, NetConfig, OcclusionHead, build_backbone

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


@pytest.mark.parametrize(
    "architecture", [*SMALL, "ir_18", "ir_se_50", "iresnet18", "iresnet34", "mbf", "mbf_large"]
)
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
    assert out.stage4.shape == (3, net.backbone.channels[4], 7, 7)
    assert out.fine is out.visibility
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
    assert torch.equal(outputs[0].stage4, outputs[1].features)
    assert outputs[1].stage4 is outputs[1].features


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
    ("field", "settings"),
    [
        ("architecture", {"architecture": "ir_19"}),
        ("embedding_size", {"embedding_size": 0}),
        ("stage", {"stage": 2}),
        ("dropout", {"dropout": 1.0}),
        ("occlusion_stage", {"occlusion_stage": 2}),
        ("occlusion_stage", {"stage": 3, "occlusion_stage": 4}),  # no cells of 7 for a map of 14
        ("branch", {"branch": "stage"}),
        ("branch", {"branch": "stage", "occlusion_stage": 4}),
    ],
)
def test_config_errors_name_the_field(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        NetConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        ({}, 4),
        ({"stage": 3}, 3),
        ({"occlusion_stage": 3}, 3),
        ({"occlusion_stage": 4}, 4),
        ({"stage": 3, "occlusion_stage": 3, "branch": "stage"}, 3),
        ({"stage": 3, "branch": "stage"}, 3),
    ],
)
def test_stage_of_the_occlusion_head(settings: dict[str, Any], stage: int) -> None:
    assert NetConfig(**settings).map_stage == stage


def test_dropout_reaches_the_output_layer() -> None:
    for architecture in ("ir_mini", "iresnet18"):
        with torch.device("meta"):
            backbone = build_backbone(config(architecture, dropout=0.25))
        assert [m.p for m in backbone.modules() if isinstance(m, nn.Dropout)] == [0.25]


# --- a finer map, and a second last stage


def with_statistics(module: nn.Module, seed: int = 0) -> Any:
    """Eval mode, with statistics and weights of the norms that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            if part.affine:
                part.weight.data.uniform_(0.5, 1.5, generator=generator)
                part.bias.data.normal_(0, 0.2, generator=generator)
    return module.eval()


def branched(**settings: Any) -> Net:
    torch.manual_seed(0)
    made = config("ir_mini", embedding_size=16, occlusion_stage=3, branch="stage", **settings)
    return with_statistics(Net(made))


def fresh(architecture: str) -> Backbone:
    torch.manual_seed(0)
    if architecture == "ir_se_mini":  # ir_se_50 in small
        return nets.IR([1, 2, 1, 2], (16, 16, 32, 32), 16, 0.0, se=True, early=True)
    return build_backbone(config(architecture, embedding_size=16))


@pytest.mark.parametrize(
    "architecture", ["ir_mini", "ir_se_mini", "iresnet18", "mobilefacenet", "mobilefacenet_relu6", "mbf"]
)
def test_a_copy_without_the_front_is_the_same_last_stage(architecture: str) -> None:
    whole = with_statistics(fresh(architecture))
    back = whole.without_front()
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stage3, stage4 = whole.forward_stages(x)
        assert torch.equal(back.forward_stage4(stage3), stage4)
        for ours, theirs in zip(back.forward_head(stage4), whole.forward_head(stage4), strict=True):
            assert torch.equal(ours, theirs)
        with pytest.raises((AttributeError, RuntimeError)):  # the front is gone
            back.forward_stage3(x)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (whole, back)]
    assert sizes[1] < sizes[0]
    front = whole.front_parameters()
    whole.forward_stage3(x).square().sum().backward()
    reached = {id(p) for p in whole.parameters() if p.grad is not None}
    assert reached == {id(p) for p in front}
    # a copy, and not the same weights under another name
    before = stage4.clone()
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.add_(1)
        assert torch.equal(whole.forward_stage4(stage3), before)


def test_a_finer_map_is_averaged_for_matching() -> None:
    torch.manual_seed(0)
    net = with_statistics(Net(config("ir_mini", embedding_size=16, occlusion_stage=3)))
    with torch.no_grad():
        out = net(torch.randn(2, 3, 112, 112))
        stage3 = net.backbone.forward_stage3(torch.randn(2, 3, 112, 112))
    assert out.fine.shape == (2, 1, 14, 14)
    assert out.visibility.shape == (2, 1, 7, 7)
    torch.testing.assert_close(out.visibility, nn.functional.avg_pool2d(out.fine, 2))
    assert out.features.shape[2:] == (7, 7)
    assert net.output is net.backbone
    assert torch.equal(net.matched(stage3, out.fine), net.backbone.forward_stage4(stage3))


def test_a_fresh_branch_that_sees_no_cover_is_the_backbone() -> None:
    torch.manual_seed(0)
    net = Net(config("ir_mini", embedding_size=16, occlusion_stage=3, branch="stage")).eval()
    stage3 = torch.randn(2, 64, 14, 14)
    with torch.no_grad():
        stage4 = net.matched(stage3, torch.ones(2, 1, 14, 14))
        assert torch.equal(stage4, net.backbone.forward_stage4(stage3))
    assert net.output is net.branch


def test_the_branch_does_not_see_what_is_under_a_cover() -> None:
    net = branched()
    generator = torch.Generator().manual_seed(0)
    stage3 = torch.randn(2, 64, 14, 14, generator=generator)
    fine = torch.rand(2, 1, 14, 14, generator=generator)
    fine[:, :, 6:] = 0
    other = stage3.clone()
    other[:, :, 6:] = torch.randn(2, 64, 8, 14, generator=generator) * 9
    with torch.no_grad():
        stage4 = net.matched(stage3, fine)
        assert torch.equal(net.matched(other, fine), stage4)
        assert not torch.equal(net.matched(other, torch.ones_like(fine)), stage4)
        assert not torch.equal(net.backbone.forward_stage4(other), net.backbone.forward_stage4(stage3))


@pytest.mark.parametrize("stage", [3, 4])
def test_the_branch_leaves_the_embedding_alone(stage: int) -> None:
    net = branched(stage=stage)
    assert net.branch is not None
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        out = net(x)
        embedding, norm = net.backbone(x)
        stage3 = net.backbone.forward_stage3(x)
        assert torch.equal(out.embedding, embedding)
        assert torch.equal(out.norm, norm)
        assert torch.equal(out.stage4, net.branch.forward_stage4(stage3 * out.fine))
        assert torch.equal(out.features, out.stage4 if stage == 4 else stage3)
        assert out.visibility.shape[2:] == out.features.shape[2:] == net.grid


def test_gradients_of_the_branch() -> None:
    net = branched().train()
    out = net(torch.randn(2, 3, 112, 112))
    (out.features * torch.randn_like(out.features)).sum().backward()
    assert net.branch is not None
    assert all(p.grad is None for p in net.occlusion_head.parameters())
    reached = {name for name, p in net.named_parameters() if p.grad is not None and bool(p.grad.any())}
    # stage 4 of the branch and the front that both share; neither output layer, nor the backbone's own stage 4
    assert any(name.startswith("branch.body.3.") for name in reached)
    assert any(name.startswith("backbone.input_layer.") for name in reached)
    assert not any(name.startswith(("backbone.body.3.", "backbone.output_layer.")) for name in reached)
    assert not any(name.startswith("branch.output_layer.") for name in reached)

    net.zero_grad()
    net(torch.randn(2, 3, 112, 112)).fine.mean().backward()
    assert all(p.grad is not None for p in net.occlusion_head.parameters())


def test_the_branch_under_bfloat16_autocast() -> None:
    net = branched()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(torch.randn(2, 3, 112, 112))
    assert out.features.dtype == torch.bfloat16
    assert out.visibility.dtype == out.fine.dtype == torch.float32
    assert bool(out.features.isfinite().all())
