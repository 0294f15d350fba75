"""Published ONNX files of InsightFace's iresnets and MobileFaceNets, such as `w600k_r50` and `w600k_mbf`, read back into networks.

A file of this kind keeps few names. So its layers are matched by the order in which the graph computes them with those that ours
computes, among layers of one kind and shape. A normalisation that was folded into the convolution before it comes back as one that
only adds the bias. Afterwards both are run on the same input, and nothing is returned unless their embeddings are equal.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from oaml.errors import OamlError, few, missing_package
from oaml.net import MOST_NUMBERS, Architecture, Backbone, NetConfig, build_backbone
from oaml.support.files import FACE_SIZE

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ARCHITECTURES = ("iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200", "mbf", "mbf_large")
OPERATIONS = {
    "Add", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "Div", "Dropout", "Expand",
    "Flatten", "Gather", "Gemm", "Identity", "MatMul", "Max", "Mul", "Pow", "PRelu", "ReduceL2", "ReduceSum", "Reshape", "Shape",
    "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip
"""What the graphs of these networks are made of, with what may normalise the embedding; no loops, and nothing that isn't ONNX."""
PASSING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast")
"""Operations that only change the shape of what they take."""
TOLERANCE = 1e-4
"""Between the numbers of the two embeddings, of length 1."""
MOST_BYTES = 2 << 30
"""Of a file; protocol buffers end there."""


@dataclass
class Layer:
    """What multiplies or normalises, of either network."""

    kind: str
    """conv (a linear layer too, as a 1x1 one), norm or prelu."""
    shape: tuple[int, ...]
    """Of the weight of a convolution [out,in,h,w]; the channels of the others."""
    values: dict[str, Any]
    """Of the file: weight, bias, running_mean, running_var, eps; those that there are. Of ours: the name of the module."""
    norm: Layer | None = None
    """The normalisation of a convolution's output, where nothing else reads that."""

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """Layers that may be matched have the same."""
        return self.kind, self.shape


def read_onnx(path: Path) -> tuple[Backbone, NetConfig]:
    """The network of an ONNX file, in eval mode.

    Raises:
        OamlError: damaged, not one of these networks, or its embedding differs from that of the network read from it.
    """
    model = _load(path)
    theirs = _layers(path, model)
    sizes = [layer.shape[0] for layer in theirs if layer.kind == "conv"]
    size = (
        min(max(1, sizes[-1]), MOST_NUMBERS) if sizes else 1
    )  # of another network it is compared, and refused
    wanted = Counter(layer.key for layer in theirs if layer.kind == "conv")
    for architecture in ARCHITECTURES:
        config = NetConfig(cast(Architecture, architecture), size, dropout=0.0)
        with torch.device("meta"):  # shapes alone, until one fits
            ours = _modules(build_backbone(config).eval())
        if Counter(layer.key for layer in ours if layer.kind == "conv") == wanted:
            break
    else:
        shapes = few([f"{count} of {list(key[1])}" for key, count in wanted.most_common()], 3)
        raise OamlError(
            f"{path}: is an ONNX graph of {wanted.total()} convolutions ({shapes}), which is none of {', '.join(ARCHITECTURES)}; "
            "give the PyTorch weights of other networks"
        )
    backbone = build_backbone(config).eval()
    state = _matched(path, architecture, theirs, ours, backbone)
    for name, values in state.items():
        if not values.isfinite().all():
            raise OamlError(f"{path}: {name} holds numbers that are not finite; download the file again")
    backbone.load_state_dict(state)
    _compare(path, model, backbone)
    return backbone, config


def _load(path: Path) -> ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise missing_package("onnx") from error
    if path.stat().st_size > MOST_BYTES:
        raise OamlError(f"{path}: is larger than any ONNX file; use the published one")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise OamlError(f"{path}: is not a readable ONNX file; download it again") from error
    if not model.graph.node:
        raise OamlError(f"{path}: is an ONNX file without a graph; download it again")
    strange = sorted({node.op_type for node in model.graph.node} - OPERATIONS)
    if strange:
        raise OamlError(
            f"{path}: its graph computes {few(strange)}, which neither iresnets nor MobileFaceNets do; give PyTorch weights"
        )
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise OamlError(
                f"{path}: keeps its weights in other files; use the published file, which has them in it"
            )
    return model


class _Constants:
    """Tensors of a graph that don't depend on its input."""

    def __init__(self, path: Path, model: ModelProto) -> None:
        self.path = path
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made = {name: node for node in model.graph.node for name in node.output}

    def find(self, name: str) -> np.ndarray | None:
        """A constant by its name, whose shape is that before `PASSING`; None where it is computed from the input."""
        from onnx import numpy_helper

        if name in self.stored:
            try:
                return numpy_helper.to_array(self.stored[name])
            except (ValueError, TypeError) as error:
                raise OamlError(f"{self.path}: {name} can't be read ({error}); download it again") from error
        node = self.made.get(name)
        if node is None or node.op_type not in ("Constant", "Transpose", *PASSING):
            return None
        facts = _attributes(node)
        if node.op_type == "Constant":
            return numpy_helper.to_array(facts["value"]) if "value" in facts else None
        inner = self.find(node.input[0])
        return inner if inner is None or node.op_type != "Transpose" else inner.transpose(facts.get("perm"))


def _attributes(node: NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _layers(path: Path, model: ModelProto) -> list[Layer]:
    """The layers of a graph in its order."""
    constants = _Constants(path, model)
    source: dict[str, tuple[Layer, str]] = {}
    """Name of a tensor -> the convolution whose output it is, and the name of that output."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    layers: list[Layer] = []
    for node in model.graph.node:
        values = [constants.find(name) if name else None for name in node.input]
        if node.op_type in PASSING and node.input[0] in source and readers[node.input[0]] == 1:
            source[node.output[0]] = source[node.input[0]]
        if values and values[0] is not None:
            continue  # of constants, as those of shapes are
        made = _layer(node, values)
        if made is None:
            continue
        if made.kind == "norm" and node.input[0] in source and readers[node.input[0]] == 1:
            source[node.input[0]][0].norm = made
            continue
        layers.append(made)
        if made.kind == "conv":
            source[node.output[0]] = made, node.output[0]
    return layers


def _layer(node: NodeProto, values: list[np.ndarray | None]) -> Layer | None:
    """The layer that a node is; None for what has no weights."""
    facts = _attributes(node)
    given = [None if x is None else torch.from_numpy(np.array(x, np.float32)) for x in values]
    weight = given[1] if len(given) > 1 else None
    if weight is None:
        return None
    if node.op_type == "Conv":
        bias = given[2] if len(given) > 2 else None
        return Layer("conv", tuple(weight.shape), {"weight": weight, "bias": bias})
    if node.op_type in ("Gemm", "MatMul") and weight.dim() == 2:
        if not (node.op_type == "Gemm" and facts.get("transB", 0)):
            weight = weight.T.contiguous()
        bias = given[2] if len(given) > 2 else None
        return Layer("conv", (*weight.shape, 1, 1), {"weight": weight, "bias": bias})
    if node.op_type == "BatchNormalization":
        names = "weight", "bias", "running_mean", "running_var"
        statistics = {name: x for name, x in zip(names, given[1:], strict=False) if x is not None}
        return Layer("norm", tuple(weight.shape), statistics | {"eps": float(facts.get("epsilon", 1e-5))})
    if node.op_type == "PRelu":
        return Layer("prelu", (weight.numel(),), {"weight": weight.flatten()})
    return None


def _modules(backbone: Backbone) -> list[Layer]:
    """The layers of one of our networks in the order in which it computes them. On the meta device nothing is computed."""
    layers: list[Layer] = []
    outputs: dict[
        int, Layer
    ] = {}  # of convolutions, by the memory that they share with their flattened views
    kept: list[Tensor] = []  # so that no other tensor gets the same number

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.Conv2d | nn.Linear):
                shape = tuple(module.weight.shape)
                made = Layer("conv", shape if len(shape) == 4 else (*shape, 1, 1), {"name": name})
                kept.append(output)
                outputs[id(output._base if output._base is not None else output)] = made
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                made = Layer("norm", (module.num_features,), {"name": name})
                base = inputs[0]._base if inputs[0]._base is not None else inputs[0]
                if (before := outputs.get(id(base))) is not None:
                    before.norm = made
                    return
            elif isinstance(module, nn.PReLU):
                made = Layer("prelu", tuple(module.weight.shape), {"name": name})
            else:
                return
            layers.append(made)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in backbone.named_modules()]
    with torch.no_grad(), torch.device("meta"):
        backbone(torch.empty(1, 3, FACE_SIZE, FACE_SIZE))
    for hook in hooks:
        hook.remove()
    return layers


def _matched(
    path: Path, architecture: str, theirs: list[Layer], ours: list[Layer], backbone: Backbone
) -> dict[str, Tensor]:
    """State of our network with the weights of theirs."""
    waiting: dict[tuple[str, tuple[int, ...]], deque[Layer]] = {}
    for layer in theirs:
        waiting.setdefault(layer.key, deque()).append(layer)
    state = backbone.state_dict()
    for layer in ours:
        queue = waiting.get(layer.key)
        if not queue:
            raise OamlError(
                f"{path}: has the convolutions of {architecture} and lacks its {layer.values['name']}; use the published file"
            )
        given = queue.popleft()
        if layer.kind == "conv":
            _fill_convolution(state, layer, given)
        else:
            _fill_norm(state, layer.values["name"], given.values)
    left = [f"{len(queue)} of {list(key[1])}" for key, queue in waiting.items() if queue]
    if left:
        raise OamlError(f"{path}: has more layers than {architecture}: {few(left)}; use the published file")
    return state


def _fill_convolution(state: dict[str, Tensor], ours: Layer, theirs: Layer) -> None:
    name, bias = ours.values["name"], theirs.values["bias"]
    state[f"{name}.weight"] = theirs.values["weight"].view(state[f"{name}.weight"].shape)
    own_bias = f"{name}.bias" in state
    if own_bias:
        state[f"{name}.bias"] = torch.zeros_like(state[f"{name}.bias"]) if bias is None else bias
    if ours.norm is None:
        return
    values = dict(theirs.norm.values) if theirs.norm is not None else {"eps": 0.0}
    _fill_norm(state, ours.norm.values["name"], values)
    if bias is not None and not own_bias:  # the convolution adds it before the normalisation
        mean = f"{ours.norm.values['name']}.running_mean"
        state[mean] = state[mean] - bias


def _fill_norm(state: dict[str, Tensor], name: str, values: dict[str, Any]) -> None:
    """Weights and statistics of a normalisation or a PReLU; what isn't given leaves its input as it is."""
    eps = values.get("eps", 0.0)
    for leaf, absent in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        key = f"{name}.{leaf}"
        if key not in state:
            continue
        given = values.get(leaf)
        state[key] = torch.full_like(state[key], absent) if given is None else given
        if leaf == "running_var":
            state[key] = state[key] + (eps - 1e-5)  # ours adds 1e-5 to it


def _compare(path: Path, model: ModelProto, backbone: Backbone) -> None:
    """Run both on seeded input.

    Raises:
        OamlError: ONNX Runtime can't, or the embeddings differ.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, FACE_SIZE, FACE_SIZE)).astype(np.float32)
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        theirs = np.stack([np.ravel(np.asarray(session.run(None, {name: one[None]})[0])) for one in x])
    except Exception as error:  # it raises errors of a kind of its own for each fault, and plain ones too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise OamlError(f"{path}: ONNX Runtime can't run it ({reason}); download it again") from error
    with torch.no_grad():
        ours = backbone(torch.from_numpy(x))[0].numpy()
    theirs = theirs / np.maximum(np.linalg.norm(theirs, axis=1, keepdims=True), 1e-12)
    if theirs.shape != ours.shape or not np.abs(theirs - ours).max() <= TOLERANCE:
        raise OamlError(
            f"{path}: has the layers of {type(backbone).__name__} and computes something else; use the published file"
        )
