"""A backbone is found in a file whatever a trainer wrote around it; what lies beside it is named; the rest is refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oaml.errors import OamlError
from oaml.net import Backbone, NetConfig, OcclusionHead, build_backbone
from oaml.weights import Preprocessing, load_backbone

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.usefixtures("one_thread")


def backbone(architecture: str = "ir_mini", seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    made = build_backbone(NetConfig(architecture, 32))  # type: ignore[arg-type]
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return made.eval()


def put(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def prefixed(prefix: str, made: Backbone | None = None) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in (made or backbone()).state_dict().items()}


def assert_same(loaded: Backbone, original: Backbone) -> None:
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


PREFIXES = [
    "", "module.", "model.", "backbone.", "net.", "_orig_mod.", "encoder.",
    "module._orig_mod.", "_orig_mod.module.", "model.net.", "module.module.model.backbone.net._orig_mod.",
]  # fmt: skip
NESTS = [
    "state_dict", "model", "net", "backbone", "model_state_dict", "state_dict_backbone", "weights", "module",
    "checkpoint/state_dict", "a/model/b",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_whatever_precedes_the_names(tmp_path: Path, prefix: str) -> None:
    loaded = load_backbone(put(tmp_path / "a.pt", prefixed(prefix)))
    assert_same(loaded.backbone, backbone())
    assert loaded.set_aside == []


@pytest.mark.parametrize("nest", NESTS)
def test_whatever_a_state_dict_lies_in(tmp_path: Path, nest: str) -> None:
    content: Any = prefixed("module.")
    for name in reversed(nest.split("/")):
        content = {"epoch": 3, name: content, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    loaded = load_backbone(put(tmp_path / "a.pt", content))
    assert_same(loaded.backbone, backbone())
    assert any("optimizer" in group for group in loaded.set_aside)


def test_a_file_is_told_by_its_content(tmp_path: Path) -> None:
    """Neither suffix nor name says anything."""
    assert_same(load_backbone(put(tmp_path / "resnet.onnx", prefixed(""))).backbone, backbone())
    save_file(prefixed(""), tmp_path / "weights.pt")
    assert_same(load_backbone(tmp_path / "weights.pt").backbone, backbone())


def test_counters_may_be_missing(tmp_path: Path) -> None:
    state = {name: x for name, x in prefixed("").items() if not name.endswith("num_batches_tracked")}
    assert_same(load_backbone(put(tmp_path / "a.pt", state)).backbone, backbone())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: x.to(dtype) if x.is_floating_point() else x for name, x in prefixed("").items()}
    loaded = load_backbone(put(tmp_path / "a.pt", state)).backbone.state_dict()
    for name, value in loaded.items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(value, state[name].to(value.dtype))


def test_numbers_that_float32_cannot_hold(tmp_path: Path) -> None:
    state = prefixed("")
    state["body.0.res_layer.1.weight"] = state["body.0.res_layer.1.weight"].double() * 1e300
    with pytest.raises(OamlError, match=r"body\.0\.res_layer\.1\.weight holds .* not finite"):
        load_backbone(put(tmp_path / "a.pt", state))
    state = prefixed("")
    state["body.0.res_layer.1.weight"].view(-1)[0] = 1e-40  # below the normal range
    assert (
        load_backbone(put(tmp_path / "b.pt", state))
        .backbone.state_dict()["body.0.res_layer.1.weight"]
        .view(-1)[0]
        == 0
    )


def test_a_head_beside_the_backbone_is_named(tmp_path: Path) -> None:
    state = {**prefixed(""), "head.kernel": torch.zeros(32, 9), "head.t": torch.ones(1)}
    state["classifier.weight"] = torch.zeros(9, 32)
    loaded = load_backbone(put(tmp_path / "a.pt", state))
    assert_same(loaded.backbone, backbone())
    assert loaded.set_aside == ["head (2 tensors)", "classifier (1 tensor)"]

    checkpoint = {
        "state_dict_backbone": prefixed("module."),
        "state_dict_softmax_fc": {"weight": torch.zeros(9, 32)},
    }
    assert load_backbone(put(tmp_path / "b.pt", checkpoint)).set_aside == ["state_dict_softmax_fc (1 tensor)"]


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [
        ("model.", "model_ema."),
        ("", "ema."),
        ("net.", "ema_model.module."),
        ("module.", "module_ema.module."),
    ],
)
def test_averaged_weights_are_chosen_by_a_flag(tmp_path: Path, plain: str, averaged: str) -> None:
    first, second = backbone(seed=1), backbone(seed=2)
    path = put(tmp_path / "a.pt", {**prefixed(plain, first), **prefixed(averaged, second)})
    assert_same(load_backbone(path).backbone, first)
    assert load_backbone(path).set_aside == [f"{averaged.split('.')[0]} ({len(second.state_dict())} tensors)"]
    assert_same(load_backbone(path, ema=True).backbone, second)


def test_averaged_weights_in_a_dictionary_of_their_own(tmp_path: Path) -> None:
    first, second = backbone(seed=1), backbone(seed=2)
    path = put(tmp_path / "a.pt", {"state_dict": prefixed("", first), "state_dict_ema": prefixed("", second)})
    assert_same(load_backbone(path).backbone, first)
    assert_same(load_backbone(path, ema=True).backbone, second)
    alone = put(tmp_path / "b.pt", {"state_dict_ema": prefixed("", second)})
    assert_same(load_backbone(alone).backbone, second)
    with pytest.raises(OamlError, match="holds no averaged weights"):
        load_backbone(put(tmp_path / "c.pt", prefixed("")), ema=True)


def test_two_backbones_are_not_guessed_between(tmp_path: Path) -> None:
    path = put(tmp_path / "a.pt", {**prefixed("student."), **prefixed("teacher.")})
    with pytest.raises(OamlError, match=r"holds 2 backbones, .*'student\.', 'teacher\.'; save the one"):
        load_backbone(path)


class Squared(nn.Module):
    """A network that is pickled as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.net = backbone()


def test_a_network_pickled_as_a_whole_is_not_created(tmp_path: Path) -> None:
    loaded = load_backbone(put(tmp_path / "whole.pt", {"model": Squared(), "epoch": 3}))
    assert_same(loaded.backbone, backbone())


def test_a_checkpoint_of_the_published_occlusion_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = build_backbone(NetConfig("ir_18", 16)).eval()
    head = OcclusionHead(512)
    state = prefixed("model.", published)
    renamed = {name.replace("bn.", "bn1."): value for name, value in head.state_dict().items()}
    state |= {f"model.occlusion_head.{name}": value for name, value in renamed.items()}
    state |= {"model.qaconv.bn.weight": torch.ones(1), "model.qaconv.fc.weight": torch.ones(1, 49)}
    state["head.kernel"] = torch.zeros(16, 5)
    loaded = load_backbone(put(tmp_path / "occlusion.ckpt", {"state_dict": state}))
    assert_same(loaded.backbone, published)
    assert loaded.occlusion_head is not None
    assert loaded.occlusion_head.keys() == head.state_dict().keys()
    assert all(torch.equal(x, loaded.occlusion_head[name]) for name, x in head.state_dict().items())
    assert loaded.set_aside == ["state_dict.model.qaconv (2 tensors)", "state_dict.head (1 tensor)"]

    state["model.occlusion_head.conv1.weight"] = torch.zeros(128, 64, 3, 3)  # reads another map
    other = load_backbone(put(tmp_path / "other.ckpt", {"state_dict": state}))
    assert other.occlusion_head is None
    assert other.set_aside[0].startswith("state_dict.model.occlusion_head (")


def test_what_fits_nothing_is_told_its_nearest_architecture(tmp_path: Path) -> None:
    state = {name.replace("input_layer", "stem"): x for name, x in backbone("ir_18").state_dict().items()}
    with pytest.raises(OamlError) as caught:
        load_backbone(put(tmp_path / "a.pt", {"state_dict": {f"module.{k}": x for k, x in state.items()}}))
    message = str(caught.value)
    assert "nearest is ir_18 (AdaFace IR); missing: input_layer.0.weight, " in message
    assert "unexpected: state_dict.module.stem.0.weight, " in message
    assert message.count("\n") == 0


# Folders of CVLface


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """A folder as CVLface's hub repositories are, with code that must not run."""

    def make(colours: str) -> Path:
        made = tmp_path / f"cvlface_{colours}"
        (made / "pretrained_model").mkdir(parents=True)
        torch.save(prefixed("net."), made / "pretrained_model" / "model.pt")
        (made / "pretrained_model" / "model.yaml").write_text(f"name: ir18\ncolor_space: {colours}\n")
        (made / "wrapper.py").write_text("raise RuntimeError('this must not run')\n")
        return made

    return make


def test_the_colour_order_is_that_of_model_yaml(folder: Callable[[str], Path]) -> None:
    for colours in ("RGB", "BGR"):
        made = folder(colours)
        for path in (made, made / "pretrained_model" / "model.pt"):
            loaded = load_backbone(path)
            assert_same(loaded.backbone, backbone())
            assert loaded.preprocessing == Preprocessing(colours)  # type: ignore[arg-type]


def test_a_file_of_ones_own_states_the_colour_order(tmp_path: Path) -> None:
    """As `oaml download` writes it; it says nothing of the other weights in its folder."""
    for name in ("a.pt", "b.pt"):
        put(tmp_path / name, prefixed("net."))
    (tmp_path / "a.pt.yaml").write_text("color_space: RGB\n")
    assert load_backbone(tmp_path / "a.pt").preprocessing.channels == "RGB"
    assert load_backbone(tmp_path / "b.pt").preprocessing.channels == "BGR"


def test_a_copy_of_a_hub_repository(tmp_path: Path) -> None:
    save_file(prefixed("model.net."), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"conf": {"color_space": "RGB"}, "auto_map": {}}))
    loaded = load_backbone(tmp_path)
    assert loaded.preprocessing.channels == "RGB"
    assert loaded.source == f"{tmp_path.name} (AdaFace IR)"
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {}}))
    assert load_backbone(tmp_path).preprocessing.channels == "BGR"


@pytest.mark.parametrize(
    ("content", "message"),
    [("color_space: GRAY", "neither RGB nor BGR"), ("a: [", "can't be read"), ("\x00", "can't be read")],
)
def test_a_colour_order_that_cannot_be_read(
    folder: Callable[[str], Path], content: str, message: str
) -> None:
    made = folder("RGB")
    (made / "pretrained_model" / "model.yaml").write_text(content)
    with pytest.raises(OamlError, match=rf"model\.yaml: .*{message}"):
        load_backbone(made)


# Golden vectors


def golden_file(folder: Path, family: str, architecture: str) -> Path:
    """The weights of a golden vector under their published names, as the vectors' README makes them."""
    shapes = json.loads((GOLDEN / f"{family}_state_dict_keys.json").read_text())[architecture]
    state = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if leaf == "num_batches_tracked":
            x = 0 * x
        elif leaf == "running_mean":
            x = 0.1 * x
        elif leaf == "running_var":
            x = 1 + 0.1 * np.abs(x)
        elif len(shape) >= 2:
            x = x * np.sqrt(1 / np.prod(shape[1:]))
        elif leaf == "bias":
            x = 0.1 * x
        else:
            x = (1 if f"{module}.bias" in shapes else 0.25) + 0.1 * x  # a PReLU has no bias
        state[name] = torch.tensor(x, dtype=torch.int64 if leaf == "num_batches_tracked" else torch.float32)
    return put(folder / f"{architecture}.pt", state)


@pytest.mark.parametrize("architecture", ["mbf", "mbf_large"])
def test_golden_mobilefacenets_of_insightface(tmp_path: Path, architecture: str) -> None:
    golden = np.load(GOLDEN / "mbf.npz")
    loaded = load_backbone(golden_file(tmp_path, "mbf", architecture))
    assert loaded.config.architecture == architecture
    assert loaded.preprocessing == Preprocessing("RGB")
    x = np.random.RandomState(int(golden["input_seed"])).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32)
    with torch.no_grad():
        features = loaded.backbone.forward_features(torch.from_numpy(x))
        embedding, norm = loaded.backbone.forward_head(features)
        cells = loaded.backbone.cells(features).sum(1)
    for ours, name in (
        (embedding, "embedding"),
        (norm, "norm"),
        (features.mean((2, 3)), "feature_mean"),
        (features.std((2, 3)), "feature_std"),
    ):
        theirs = golden[f"{architecture}.{name}"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
    torch.testing.assert_close(cells, embedding * norm, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["vit_t", "vit_s"])
def test_golden_transformers(tmp_path: Path, architecture: str) -> None:
    golden = np.load(GOLDEN / "vit.npz")
    loaded = load_backbone(golden_file(tmp_path, "vit", architecture))
    assert loaded.config.architecture == architecture
    assert loaded.preprocessing == Preprocessing("RGB")
    x = np.random.RandomState(int(golden["input_seed"])).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32)
    with torch.no_grad():
        stage3, features = loaded.backbone.forward_stages(torch.from_numpy(x))
        embedding, norm = loaded.backbone.forward_head(features)
        unoccluded = loaded.backbone.forward_occluded(stage3, torch.ones(2, 1, 12, 12))
        cells = loaded.backbone.cells(unoccluded).sum(1)
    tokens = features.flatten(2)
    for ours, name in (
        (embedding, "embedding"),
        (norm, "norm"),
        (tokens.mean(1), "token_mean"),
        (tokens.std(1), "token_std"),
        (cells / cells.norm(dim=1, keepdim=True), "embedding"),
        (cells.norm(dim=1, keepdim=True), "norm"),
    ):
        theirs = golden[f"{architecture}.{name}"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
