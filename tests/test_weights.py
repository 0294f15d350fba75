"""Published files: recognised, read strictly, and nothing in them executed."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import pickle
import re
import sys
import tarfile
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from oaml.checkpoint import read_tensors
from oaml.errors import OamlError
from oaml.net import Backbone, NetConfig, build_backbone
from oaml.support.files import read_image
from oaml.weights import Preprocessing, load_backbone

GOLDEN = Path(__file__).parent / "golden"
DATA = Path(__file__).parents[2] / "shared" / "data"
PUBLISHED_MOBILEFACENETS = json.loads((GOLDEN / "mobilefacenet_keys.json").read_text())
needs_data = pytest.mark.skipif(not (DATA / "weights").is_dir(), reason="published weights are not at hand")


def backbone(architecture: str = "ir_mini", embedding_size: int = 32) -> Backbone:
    torch.manual_seed(0)
    made = build_backbone(NetConfig(architecture, embedding_size))  # type: ignore[arg-type]
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return made.eval()


def assert_same(loaded: Backbone, original: Backbone) -> None:
    assert not loaded.training
    ours, theirs = loaded.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def published_mobilefacenet(kind: str) -> OrderedDict[str, Tensor]:
    """Seeded weights under the published names."""
    generator = torch.Generator().manual_seed(0)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, shape in PUBLISHED_MOBILEFACENETS[kind].items():
        x = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            state[name] = 1 + 0.1 * x.abs()
        elif len(shape) == 4:
            state[name] = x * (2 / float(np.prod(shape[1:]))) ** 0.5
        elif name.endswith(("bias", "running_mean")):
            state[name] = 0.1 * x
        else:
            state[name] = (0.25 if "prelu" in name else 1) + 0.1 * x
    return state


def normalised(w: dict[str, Tensor], bn: str, x: Tensor) -> Tensor:
    mean, var = w[f"{bn}.running_mean"], w[f"{bn}.running_var"]
    return F.batch_norm(x, mean, var, w[f"{bn}.weight"], w[f"{bn}.bias"])


def mobilefacenet_prelu(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network, written out over its published names."""
    w = {name.removeprefix("arcface."): value for name, value in w.items()}

    def unit(x: Tensor, name: str, stride: int = 1, act: bool = True) -> Tensor:
        weight = w[f"{name}.conv.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        x = normalised(w, f"{name}.bn", x)
        return F.prelu(x, w[f"{name}.prelu.weight"]) if act else x

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        y = unit(unit(unit(x, f"{name}.conv"), f"{name}.conv_dw", stride), f"{name}.project", act=False)
        return y if stride == 2 else x + y

    x = unit(unit(x, "conv1", 2), "conv2_dw")
    for strided, residual, times in (("23", 3, 4), ("34", 4, 6), ("45", 5, 2)):
        x = block(x, f"conv_{strided}", 2)
        for index in range(times):
            x = block(x, f"conv_{residual}.model.{index}", 1)
    x = F.prelu(normalised(w, "sep_bn", F.conv2d(x, w["sep.weight"])), w["prelu.weight"])
    x = normalised(w, "GDC_bn", F.conv2d(x, w["GDC_dw.weight"], groups=512))
    return normalised(w, "last_bn", F.conv2d(x, w["features.weight"])).flatten(1)


def mobilefacenet_relu6(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network, written out over its published names."""

    def unit(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = w[f"{conv}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        return normalised(w, bn, x)

    x = F.relu6(unit(x, "conv1.0", "conv1.1", 2))
    x = F.relu(unit(x, "dw_conv.depthwise", "dw_conv.bn1"))
    x = F.relu(unit(x, "dw_conv.pointwise", "dw_conv.bn2"))
    for index in range(15):
        part, stride = f"features.{index}.conv", 2 if index in (0, 5, 12) else 1
        y = F.relu6(unit(x, f"{part}.0.0", f"{part}.0.1"))
        y = F.relu6(unit(y, f"{part}.1.0", f"{part}.1.1", stride))
        y = unit(y, f"{part}.2", f"{part}.3")
        x = y if stride == 2 else x + y
    x = F.relu6(unit(x, "conv2.0", "conv2.1"))
    x = normalised(w, "gdconv.bn", F.conv2d(x, w["gdconv.depthwise.weight"], groups=512))
    return normalised(w, "bn", F.conv2d(x, w["conv3.weight"], w["conv3.bias"])).flatten(1)


@pytest.mark.parametrize(
    ("kind", "reference"), [("prelu", mobilefacenet_prelu), ("relu6", mobilefacenet_relu6)]
)
def test_mobilefacenet_computes_what_was_published(
    tmp_path: Path, kind: str, reference: Callable[[dict[str, Tensor], Tensor], Tensor]
) -> None:
    state = published_mobilefacenet(kind)
    torch.save(state, tmp_path / "weights.pth")
    loaded = load_backbone(tmp_path / "weights.pth")
    assert loaded.config.architecture == ("mobilefacenet" if kind == "prelu" else "mobilefacenet_relu6")
    assert loaded.config.embedding_size == 128
    assert loaded.source.startswith("weights.pth")
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embedding, norm = loaded.backbone(x)
        torch.testing.assert_close(embedding * norm, reference(state, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "architecture", ["ir_18", "ir_34", "ir_50", "ir_se_50", "ir_101", "ir_mini", "iresnet18", "iresnet50"]
)
def test_architecture_is_told_from_the_names(tmp_path: Path, architecture: str) -> None:
    original = backbone(architecture, embedding_size=16)
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    loaded = load_backbone(tmp_path / "weights.pt")
    assert loaded.config.architecture == architecture
    assert loaded.config.embedding_size == loaded.backbone.embedding_size == 16
    assert loaded.preprocessing == Preprocessing("BGR" if architecture.startswith("ir_") else "RGB")
    assert_same(loaded.backbone, original)


def test_preprocessing_of_mobilefacenets_and_the_callers_own(tmp_path: Path) -> None:
    for kind, expected in (
        ("prelu", Preprocessing("RGB", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        ("relu6", Preprocessing("RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    ):
        torch.save(published_mobilefacenet(kind), tmp_path / "weights.pth")
        assert load_backbone(tmp_path / "weights.pth").preprocessing == expected
    own = Preprocessing("BGR", (0, 0, 0), (1, 1, 1))
    assert load_backbone(tmp_path / "weights.pth", preprocessing=own).preprocessing == own


def test_preprocessing_survives_json_and_names_a_wrong_field() -> None:
    assert Preprocessing(mean=[0.5, 0.5, 0.5]) == Preprocessing()  # type: ignore[arg-type]
    for field, value in (("channels", "GRAY"), ("mean", (0.5,)), ("std", (0.5, 0.5, 0.0)), ("std", (1, 1))):
        with pytest.raises(ValueError, match=f"^{field}: "):
            Preprocessing(**{field: value})  # type: ignore[arg-type]


def test_safetensors(tmp_path: Path) -> None:
    original = backbone()
    save_file(original.state_dict(), tmp_path / "weights.safetensors")
    assert_same(load_backbone(tmp_path / "weights.safetensors").backbone, original)


@pytest.mark.parametrize("prefix", ["module.", "model.", "arcface."])
def test_prefix_and_classification_head(tmp_path: Path, prefix: str) -> None:
    original = backbone()
    state = {prefix + name: value for name, value in original.state_dict().items()}
    torch.save({**state, "head.weight": torch.zeros(3)}, tmp_path / "weights.pt")
    assert_same(load_backbone(tmp_path / "weights.pt").backbone, original)


# Checkpoints that hold more than tensors


class AttributeDict(dict[str, object]):
    """Stands for Lightning's class of that name, which is not importable where the file is read."""


def checkpoint(original: Backbone, **more: object) -> dict[str, object]:
    state = OrderedDict((f"model.{name}", value) for name, value in original.state_dict().items())
    state["head.kernel"] = torch.zeros(32, 10)
    state["head.batch_mean"] = torch.ones(1) * 20
    return {"epoch": 3, "state_dict": state, **more}


@pytest.fixture
def attribute_dict(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes `AttributeDict` picklable as a class of a module that the returned function takes away again."""
    module = types.ModuleType("trainer_that_is_not_installed")
    module.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    monkeypatch.setattr(AttributeDict, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return lambda: monkeypatch.delitem(sys.modules, module.__name__)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_checkpoint_with_pickled_hyper_parameters(
    tmp_path: Path, attribute_dict: Callable[[], None], zipped: bool
) -> None:
    original = backbone()
    hyper_parameters = AttributeDict(arch="ir_mini", args=argparse.Namespace(lr=0.1, path=Path("data")))
    more = {"hyper_parameters": hyper_parameters, "callbacks": {AttributeDict: {"best": np.float64(0.5)}}}
    path = tmp_path / "adaface.ckpt"
    torch.save(checkpoint(original, **more), path, _use_new_zipfile_serialization=zipped)
    attribute_dict()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)

    loaded = load_backbone(path)
    assert_same(loaded.backbone, original)
    assert loaded.preprocessing.channels == "BGR"
    assert "trainer_that_is_not_installed" not in sys.modules


class Attack:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def attacks(target: Path) -> dict[str, Attack]:
    command = f"touch {target}"
    code = f"open({str(target)!r}, 'w')"
    inner = io.BytesIO()
    torch.save(Attack(os.system, command), inner)
    return {
        "os.system": Attack(os.system, command),
        "eval": Attack(eval, code),
        "exec": Attack(exec, code),
        "getattr": Attack(getattr, Attack(__import__, "os"), "system"),
        "open": Attack(open, str(target), "w"),
        "import": Attack(__import__, "antigravity"),
        "partial": Attack(__import__("functools").partial, os.system, command),
        "nested": Attack(torch.storage._load_from_bytes, inner.getvalue()),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", list(attacks(Path())))
def test_nothing_in_a_file_is_executed(tmp_path: Path, name: str, zipped: bool) -> None:
    target = tmp_path / "executed"
    original = backbone()
    path = tmp_path / "malicious.ckpt"
    attack = attacks(target)[name]
    torch.save(checkpoint(original, hyper_parameters=attack), path, _use_new_zipfile_serialization=zipped)

    assert_same(load_backbone(path).backbone, original)
    assert not target.exists()
    assert "antigravity" not in sys.modules

    torch.save(attack, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(OamlError, match="is not a state dict"):
        load_backbone(path)
    state = {**original.state_dict(), "output_layer.3.bias": attack}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(OamlError, match=r"'output_layer\.3\.bias' is not a tensor"):
        load_backbone(path)
    assert not target.exists()
    assert "antigravity" not in sys.modules


def test_the_attacks_would_work(tmp_path: Path) -> None:
    """Without this the test above could pass because its files are harmless."""
    for name in ("os.system", "eval", "exec", "open", "nested"):
        target = tmp_path / name
        torch.save({"hyper_parameters": attacks(target)[name]}, tmp_path / "malicious.ckpt")
        torch.load(tmp_path / "malicious.ckpt", weights_only=False)
        assert target.exists(), name


def test_a_pickle_cannot_change_what_it_is_allowed_to_name(tmp_path: Path) -> None:
    """BUILD sets attributes of any object; of a function of PyTorch it would for the whole process."""
    body = b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00dump_patchesI01\ns\x86b."
    header = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    path = tmp_path / "build.pt"
    path.write_bytes(header + b"\x80\x02" + body)
    with pytest.raises(OamlError, match="is not a readable file of weights"):
        load_backbone(path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "dump_patches")  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")
def test_archives_that_bypass_the_unpickler_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with tarfile.open(tmp_path / "archive.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Attack(os.system, f"touch {tmp_path / 'executed'}"), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for name, message in (
        ("script.pt", "is a TorchScript archive, which holds code"),
        ("archive.pt", "is not a readable"),
    ):
        with pytest.raises(OamlError, match=message):
            load_backbone(tmp_path / name)
    assert not (tmp_path / "executed").exists()


# Wrong files


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(OamlError) as caught:
        load_backbone(path, **settings)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_missing_unknown_and_misshapen_parameters_are_listed(tmp_path: Path) -> None:
    state = dict(backbone().state_dict())
    lost = {key: value for key, value in state.items() if key != "body.2.res_layer.3.weight"}
    assert "missing: body.2.res_layer.3.weight;" in refusal(save(tmp_path / "lost.pt", lost))

    added = {**state, "body.4.weight": torch.zeros(2), "output_layer.extra": torch.zeros(2)}
    message = refusal(save(tmp_path / "added.pt", added))
    assert "unknown: body.4.weight, output_layer.extra;" in message

    misshapen = {**state, "input_layer.0.weight": torch.zeros(16, 1, 3, 3)}
    message = refusal(save(tmp_path / "misshapen.pt", misshapen))
    assert "input_layer.0.weight [16, 1, 3, 3] instead of [16, 3, 3, 3]" in message

    few = {key: value for key, value in state.items() if not key.startswith("body.1.res_layer.")}
    few["body.1.res_layer.1.weight"] = state["body.1.res_layer.1.weight"]
    block = [k for k in state if k.startswith("body.1.res_layer.") and not k.endswith("num_batches_tracked")]
    lacking = len(block) - 1
    message = refusal(save(tmp_path / "few.pt", few))
    assert f"and {lacking - 5} more" in message
    assert message.count("body.1.res_layer.") == 5

    del state["output_layer.3.weight"]
    assert "missing: output_layer.3.weight;" in refusal(save(tmp_path / "headless.pt", state))


@pytest.mark.parametrize("kind", ["prelu", "relu6"])
def test_mobilefacenet_is_strict_in_published_names(tmp_path: Path, kind: str) -> None:
    state = published_mobilefacenet(kind)
    key = next(
        name for name in state if name.endswith("features.weight" if kind == "prelu" else "conv3.bias")
    )
    other = next(name for name in state if name.endswith("running_mean"))
    renamed = {name + ("_old" if name == other else ""): value for name, value in state.items()}
    message = refusal(save(tmp_path / "renamed.pt", renamed))
    assert f"missing: {other}; unknown: {other}_old;" in message
    del state[key]
    assert f"missing: {key};" in refusal(save(tmp_path / "lost.pt", state))
    own_names = {**published_mobilefacenet(kind), "stem.conv.weight": torch.zeros(64, 3, 3, 3)}
    assert load_backbone(save(tmp_path / "own.pt", own_names)).set_aside == ["stem (1 tensor)"]


def test_architecture_that_the_file_does_not_hold(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pt", backbone("ir_18", 8).state_dict())
    assert load_backbone(path, architecture="ir_18").config.architecture == "ir_18"
    assert "AdaFace IR weights, not iresnet18" in refusal(path, architecture="iresnet18")
    message = refusal(path, architecture="ir_34")
    assert "is not a complete ir_34" in message
    assert "missing: body." in message
    assert "not resnet" in refusal(path, architecture="resnet")
    deeper = {**backbone("ir_18", 8).state_dict(), "body.8.res_layer.0.weight": torch.ones(512)}
    message = refusal(save(tmp_path / "deeper.pt", deeper))
    assert "is not a complete ir_18 (AdaFace IR); unknown: body.8.res_layer.0.weight;" in message


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.pt")
    assert "is a folder without pretrained_model/model.pt" in refusal(tmp_path)
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("<html>404</html>")
        assert "is not a readable file of weights" in refusal(tmp_path / name)
    (tmp_path / "empty.pt").touch()
    assert "is not a readable file of weights" in refusal(tmp_path / "empty.pt")
    whole = save(tmp_path / "whole.pt", backbone().state_dict()).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    assert "download or save it again" in refusal(tmp_path / "half.pt")

    assert "is not a state dict" in refusal(save(tmp_path / "list.pt", [torch.zeros(2)]))
    assert "is not a state dict" in refusal(save(tmp_path / "nothing.pt", {}))
    assert "'lr' is not a tensor" in refusal(save(tmp_path / "values.pt", {"lr": 0.1}))
    assert "is not a state dict" in refusal(save(tmp_path / "numbers.pt", {3: torch.zeros(2)}))
    assert "not a tensor" in refusal(save(tmp_path / "lines.pt", {"a\nb": torch.zeros(2)}))
    message = refusal(save(tmp_path / "other.pt", {"foreign.weight": torch.zeros(2)}))
    assert "unexpected: foreign.weight;" in message
    assert "InsightFace iresnet" in message


def test_tensors_are_read_under_their_whole_path(tmp_path: Path) -> None:
    state = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.arange(3)}
    looped: dict[str, Any] = {"state_dict": state, "args": argparse.Namespace(), "epoch": 3}
    looped["again"] = looped
    read = read_tensors(save(tmp_path / "state.pt", looped))
    assert {"state_dict.a", "state_dict.b"} <= set(read.by_name)
    assert {"epoch", "args"} <= read.others
    assert not read.by_name["state_dict.a"].requires_grad
    assert torch.equal(read.by_name["state_dict.a"], torch.ones(2))
    assert torch.equal(read.by_name["state_dict.b"], torch.arange(3))


# The published files themselves


@needs_data
@pytest.mark.parametrize(
    ("name", "architecture", "least"),
    [
        ("mobilefacenet_casia_bubbliiiing.pth", "mobilefacenet", 0.96),
        ("mobilefacenet_ms1m_foamliu.pt", "mobilefacenet_relu6", 0.98),
    ],
)
def test_published_mobilefacenet_recognises_people(name: str, architecture: str, least: float) -> None:
    loaded = load_backbone(DATA / "weights" / name)
    assert loaded.config.architecture == architecture
    with (DATA / "lfw_pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    same = [row for row in rows if row["same"] == "1"][::35]
    different = [row for row in rows if row["same"] == "0"][::20]
    paths = [row[side] for side in ("path_a", "path_b") for row in same + different]
    x = torch.from_numpy(np.stack([read_image(DATA / "lfw" / path) for path in paths]))
    mean, std = torch.tensor(loaded.preprocessing.mean), torch.tensor(loaded.preprocessing.std)
    x = ((x / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        embeddings = torch.cat([loaded.backbone(part)[0] for part in x.split(64)])
    a, b = embeddings.chunk(2)
    cosine = (a * b).sum(1)
    truth = torch.arange(len(cosine)) < len(same)
    accuracy = max(((cosine > t) == truth).float().mean().item() for t in cosine.tolist())
    assert accuracy >= least


def changed(change: str) -> dict[str, Tensor]:
    """A small network with one fault."""
    state = build_backbone(NetConfig("ir_18", 16)).state_dict()
    name = "output_layer.3.weight"
    if change == "a number shown as many":
        state[name] = torch.zeros(1).expand(16, 25088)
    elif change == "an embedding of a million numbers":
        state[name] = torch.zeros(10**6, 1)
    elif change == "no number":
        state[name] = state[name].clone()
        state[name][0, 0] = torch.nan
    elif change == "int8":
        state["output_layer.3.bias"] = torch.zeros(16, dtype=torch.int8)
    else:
        state["output_layer.3.bias"] = torch.zeros(16, dtype=torch.complex64)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a number shown as many", "'output_layer.3.weight' is not a tensor by name"),
        ("an embedding of a million numbers", "an embedding of 1,000,000 numbers"),
        ("no number", "output_layer.3.weight holds 1 numbers that are not finite"),
        ("int8", "output_layer.3.bias holds torch.int8, weights are floating-point numbers"),
        ("complex", "output_layer.3.bias holds torch.complex64, weights are floating-point numbers"),
    ],
)
def test_weights_that_are_none_are_refused_before_anything_is_built(
    tmp_path: Path, change: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(changed(change), tmp_path / "weights.pth")
    made: list[str] = []

    def note(config: NetConfig) -> Any:
        made.append(str(torch.get_default_device()))
        return build_backbone(config)

    monkeypatch.setattr("oaml.weights.build_backbone", note)
    with pytest.raises(OamlError, match=re.escape(message)):
        load_backbone(tmp_path / "weights.pth")
    assert set(made) <= {"meta"}
