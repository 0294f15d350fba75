"""Reading published weights into the networks of `oaml.net`, strictly and without running what a pickle says.

Four kinds of file are recognised by their parameter names, inside a training checkpoint too:

- AdaFace's IR networks (https://github.com/mk-minchul/AdaFace)
- InsightFace's iresnets (https://github.com/deepinsight/insightface, recognition/arcface_torch)
- MobileFaceNet with PReLU (https://github.com/bubbliiiing/arcface-pytorch)
- MobileFaceNet with ReLU6 (https://github.com/foamliu/MobileFaceNet)
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

import torch
import torch._utils as torch_utils
from torch import Tensor

from oaml.errors import OamlError, few
from oaml.net import (
    IR,
    MOST_NUMBERS,
    Architecture,
    Backbone,
    IResNet,
    MobileFaceNet,
    NetConfig,
    build_backbone,
)


@dataclass
class Preprocessing:
    """How RGB pixels in [0,1] become a network input: reorder the channels, subtract `mean`, divide by `std`.

    It belongs to the weights: a network trained on BGR takes RGB without an error, and recognises worse.
    Raises ValueError that names the field.
    """

    channels: Literal["RGB", "BGR"] = "RGB"
    """Order of the input channels; `mean` and `std` are in this order too."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from pixels in [0,1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divisor after that."""

    def __post_init__(self) -> None:
        if self.channels not in ("RGB", "BGR"):
            raise ValueError(f"channels: {self.channels!r} is neither RGB nor BGR")
        # JSON gives lists, which would compare unequal to tuples
        self.mean = cast(tuple[float, float, float], tuple(float(value) for value in self.mean))
        self.std = cast(tuple[float, float, float], tuple(float(value) for value in self.std))
        if len(self.mean) != 3:
            raise ValueError(f"mean: {self.mean} has not one value for each of 3 channels")
        if len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"std: {self.std} has not one positive value for each of 3 channels")


@dataclass
class LoadedBackbone:
    """A backbone in eval mode with published weights, and what has to be known to use it."""

    backbone: Backbone
    config: NetConfig
    preprocessing: Preprocessing
    source: str
    """File name and kind of weights, for the description of a model."""


def _prelu_names() -> dict[str, str]:
    """Our modules -> bubbliiiing's: a strided block before each of three groups of residual blocks."""
    blocks = ["conv_23", *(f"conv_3.model.{i}" for i in range(4))]
    blocks += ["conv_34", *(f"conv_4.model.{i}" for i in range(6))]
    blocks += ["conv_45", *(f"conv_5.model.{i}" for i in range(2))]
    units = {"stem": "conv1", "stem_depthwise": "conv2_dw"}
    for index, block in enumerate(blocks):
        units[f"blocks.{index}.expand"] = f"{block}.conv"
        units[f"blocks.{index}.depthwise"] = f"{block}.conv_dw"
        units[f"blocks.{index}.project"] = f"{block}.project"
    names = {"last.conv": "sep", "last.bn": "sep_bn", "last.act": "prelu"}
    names |= {"pool.conv": "GDC_dw", "pool.bn": "GDC_bn", "output": "features", "output_bn": "last_bn"}
    for ours, theirs in units.items():
        for layer, published in (("conv", "conv"), ("bn", "bn"), ("act", "prelu")):
            names[f"{ours}.{layer}"] = f"{theirs}.{published}"
    return names


def _relu6_names() -> dict[str, str]:
    """Our modules -> foamliu's: fifteen inverted residuals in a row with numbered layers."""
    names = {"stem.conv": "conv1.0", "stem.bn": "conv1.1"}
    names |= {"stem_depthwise.conv": "dw_conv.depthwise", "stem_depthwise.bn": "dw_conv.bn1"}
    names |= {"stem_pointwise.conv": "dw_conv.pointwise", "stem_pointwise.bn": "dw_conv.bn2"}
    names |= {"last.conv": "conv2.0", "last.bn": "conv2.1"}
    names |= {"pool.conv": "gdconv.depthwise", "pool.bn": "gdconv.bn", "output": "conv3", "output_bn": "bn"}
    for index in range(15):
        for ours, conv, bn in (("expand", "0.0", "0.1"), ("depthwise", "1.0", "1.1"), ("project", "2", "3")):
            names[f"blocks.{index}.{ours}.conv"] = f"features.{index}.conv.{conv}"
            names[f"blocks.{index}.{ours}.bn"] = f"features.{index}.conv.{bn}"
    return names


@dataclass(frozen=True)
class _Kind:
    """One kind of published file."""

    title: str
    sign: str
    """A parameter that only this kind has."""
    backbone: type[Backbone]
    architectures: Collection[str]
    preprocessing: Preprocessing
    names: dict[str, str] = field(default_factory=dict)
    """Our modules -> theirs; empty where they are the same."""


PUBLISHED = (
    _Kind("AdaFace IR", "input_layer.0.weight", IR, IR.layers, Preprocessing("BGR")),
    _Kind("InsightFace iresnet", "layer1.0.bn1.weight", IResNet, IResNet.layers, Preprocessing("RGB")),
    _Kind(
        "MobileFaceNet with PReLU",
        "conv_23.conv.conv.weight",
        MobileFaceNet,
        ("mobilefacenet",),
        Preprocessing("RGB"),
        _prelu_names(),
    ),
    _Kind(
        "MobileFaceNet with ReLU6",
        "gdconv.depthwise.weight",
        MobileFaceNet,
        ("mobilefacenet_relu6",),
        Preprocessing("RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        _relu6_names(),
    ),
)
# What trainers put before the names: nothing, AdaFace's, data parallel ones, bubbliiiing's.
PREFIXES = ("", "model.", "module.", "arcface.")


def load_backbone(
    path: str | Path, architecture: str | None = None, preprocessing: Preprocessing | None = None
) -> LoadedBackbone:
    """Read a published file of weights into a backbone.

    Args:
        path: `.pt`, `.pth`, `.ckpt` or `.safetensors`; a state dict, or a checkpoint that has one as
            `state_dict`. A margin head (`head.*`) beside a prefixed backbone is set aside.
        architecture: what the file has to hold; by default whatever the parameter names say.
        preprocessing: replaces the one that the published weights of this kind were trained with.

    Raises:
        OamlError: no such file, unreadable, not weights of a known kind, or a missing, unknown or misshapen
            parameter.
    """
    state = read_state_dict(path)
    kind, prefix = _recognise(path, state)
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    unknown = [key for key in state if not key.startswith((prefix, "head."))]
    network = architecture or _architecture(path, kind, weights)
    if network not in kind.architectures:
        raise OamlError(
            f"{path}: holds {kind.title} weights, not {network}; name another file or architecture"
        )
    embedding = _published(kind.backbone.embedding_weight, kind.names)
    incomplete = f"{path}: is not a complete {network} ({kind.title})"
    size = weights[embedding].shape[:1] if embedding in weights else ()
    if not size or size[0] < 1:
        raise OamlError(f"{incomplete}; missing: {prefix}{embedding}; use the published file")
    if size[0] > MOST_NUMBERS:
        raise OamlError(f"{incomplete}; an embedding of {size[0]:,} numbers; use the published file")
    config = NetConfig(cast(Architecture, network), size[0], dropout=kind.backbone.published_dropout)

    with torch.device(
        "meta"
    ):  # shapes alone: a file must not have memory allocated by what it says of itself
        ours = build_backbone(config).state_dict()
    theirs = {key: _published(key, kind.names) for key in ours}
    missing = [prefix + name for name in theirs.values() if name not in weights]
    expected = set(theirs.values())
    unknown += [prefix + name for name in weights if name not in expected]
    misshapen = [
        f"{prefix}{name} {list(weights[name].shape)} instead of {list(ours[key].shape)}"
        for key, name in theirs.items()
        if name in weights and weights[name].shape != ours[key].shape
    ]
    faults = [("missing", missing), ("unknown", unknown), ("of another shape", misshapen)]
    if any(keys for _, keys in faults):
        listed = "; ".join(f"{what}: {few(keys)}" for what, keys in faults if keys)
        raise OamlError(f"{incomplete}; {listed}; use the published file")
    chosen = {key: weights[name] for key, name in theirs.items()}
    need_numbers(path, chosen)
    backbone = build_backbone(config).eval()
    backbone.load_state_dict(chosen)
    source = f"{Path(path).name} ({kind.title})"
    return LoadedBackbone(backbone, config, preprocessing or kind.preprocessing, source)


def need_numbers(path: str | Path, state: Mapping[str, Tensor], infinite: Collection[str] = ()) -> None:
    """Raise OamlError for weights that are no real numbers, or not finite.

    Args:
        infinite: names that may hold infinity.
    """
    for name, values in state.items():
        counter = name.endswith("num_batches_tracked")
        if not (values.is_floating_point() or counter):
            raise OamlError(
                f"{path}: {name} holds {values.dtype}, weights are floating-point numbers; save the network unquantised"
            )
        bad = values.isnan() if name in infinite else ~values.isfinite()
        if bad.any():
            raise OamlError(
                f"{path}: {name} holds {int(bad.sum())} numbers that are not finite; its training diverged or the file is damaged, "
                "use another one"
            )


def _published(key: str, names: dict[str, str]) -> str:
    """Our parameter name -> the published one."""
    module, _, leaf = key.rpartition(".")
    return f"{names.get(module, module)}.{leaf}"


def _recognise(path: str | Path, state: dict[str, Tensor]) -> tuple[_Kind, str]:
    for kind in PUBLISHED:
        for prefix in PREFIXES:
            if prefix + kind.sign in state:
                return kind, prefix
    known = ", ".join(kind.title for kind in PUBLISHED)
    raise OamlError(f"{path}: holds no known backbone (it has {few(list(state))}); recognised are {known}")


def _architecture(path: str | Path, kind: _Kind, weights: dict[str, Tensor]) -> str:
    """Which network of its kind a file holds, by the number of residual blocks."""
    if len(kind.architectures) == 1:
        return next(iter(kind.architectures))
    layers = kind.backbone.layers
    blocks = {match[1] for key in weights if (match := re.match(kind.backbone.block_name, key))}
    se = any(".se_block." in key for key in weights)
    for name, counts in layers.items():
        if sum(counts) == len(blocks) and ("_se_" in name) == se:
            return name
    what = f"{len(blocks)} blocks{' with squeeze-and-excitation' if se else ''}"
    raise OamlError(f"{path}: an {kind.title} of {what} is none of {', '.join(layers)}; use one of these")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of what `torch.save` wrote, on the CPU, by name.

    Of a training checkpoint, the entry `state_dict`. Pickled objects other than tensors are never created: an
    inert stand-in takes the place of whatever the pickle names, so hyper-parameters of any class do no harm.

    Raises:
        OamlError: no such file, unreadable, or no state dict in it.
    """
    path = Path(path)
    if not path.is_file():
        raise OamlError(f"{path}: no such file of weights")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    remedy = "save the network's state_dict() with torch.save or as .safetensors"
    if not isinstance(content, dict) or not content:
        raise OamlError(f"{path}: is not a state dict of tensors by name; {remedy}")
    for key, value in content.items():
        if not isinstance(key, str) or not key.isprintable() or not _is_plain(value):
            raise OamlError(f"{path}: entry {str(key)[:80]!r} is not a tensor by name; {remedy}")
    return {key: value.detach() for key, value in content.items()}


def _is_plain(value: object) -> bool:
    """A dense tensor with content; a pickle can hold sparse, quantised and meta ones as well, and a number shown as many."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Hyper-parameters of an unknown class, most likely. What PyTorch reads by other means than the unpickler
        # below (TorchScript and tar archives) never gets here: it was refused with another error.
        pass
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise _unreadable(path, error) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> OamlError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return OamlError(f"{path}: is not a readable file of weights ({reason}); download or save it again")


class _StandIn:
    """Takes the place of whatever class or function a pickle names: accepts everything, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...

    def update(self, *items: object) -> None: ...


class _Rebuild(str):
    """A function of `torch._utils` by name. A pickle can set attributes of what it names; this has none."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Tensor:
        return getattr(torch_utils, self)(*args)


# The only names in a pickle that are looked up: what tensors are made of. PyTorch's reader makes storage types itself.
ALLOWED: dict[tuple[str, str], Any] = {("collections", "OrderedDict"): OrderedDict}
for _name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
    ALLOWED["torch._utils", _name] = _Rebuild(_name)


class _InertUnpickler(pickle.Unpickler):
    """Looks names up in `ALLOWED` and nowhere else: nothing else that a file names is imported or called."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return ALLOWED.get((module_name, global_name), _StandIn)


class _InertPickle:
    """The part of the module `pickle` that `torch.load` uses of its `pickle_module`."""

    Unpickler = _InertUnpickler

    @staticmethod
    def load(file: IO[bytes], **options: Any) -> Any:
        return _InertUnpickler(file, **options).load()
