"""The families of published weights: how each calls its parameters, and how it wants its input.

- AdaFace's IR networks (https://github.com/mk-minchul/AdaFace), as CVLface has them too (https://github.com/mk-minchul/CVLface)
- InsightFace's iresnets, MobileFaceNets and transformers (https://github.com/deepinsight/insightface, recognition/arcface_torch);
  LVFace's are these transformers (https://github.com/bytedance/LVFace)
- MobileFaceNet with PReLU (https://github.com/bubbliiiing/arcface-pytorch)
- MobileFaceNet with ReLU6 (https://github.com/foamliu/MobileFaceNet)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from torch import Tensor

from oaml.net import IR, IResNet
from oaml.vit import SIZES


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


class Size(NamedTuple):
    """What tells the architectures of a family apart."""

    blocks: int
    """Residual blocks."""
    width: int
    """The length of one dimension of the parameter `Family.sign`."""
    squeezes: bool = False
    """Whether there is squeeze-and-excitation."""


@dataclass(frozen=True)
class Family:
    """Published networks of one structure."""

    title: str
    sign: str
    """A parameter that every network of the family has, and no other family."""
    embedding: str
    """The parameter whose first dimension is the embedding size."""
    sizes: Mapping[str, Size]
    """Architecture -> its size."""
    block: str
    """Pattern of the names of a residual block's parameters."""
    preprocessing: Preprocessing
    names: Callable[[str], dict[str, str]] = lambda architecture: {}
    """Architecture -> our modules -> theirs, of those that are called differently."""
    dropout: float = 0.0
    """Before the last layer, that the weights were trained with."""
    dimension: int = 0
    """Which one of the sign's `Size.width` is."""

    def published(self, architecture: str, parameters: Mapping[str, Tensor]) -> dict[str, str]:
        """Our parameter names -> the published ones."""
        names = self.names(architecture)
        theirs: dict[str, str] = {}
        for key in parameters:
            module, _, leaf = key.rpartition(".")
            theirs[key] = f"{names.get(module, module)}.{leaf}" if module else leaf
        return theirs

    def nearest(self, weights: Mapping[str, Tensor]) -> str:
        """The architecture whose size is most like that of some weights under published names."""
        blocks = {match[1] for key in weights if (match := re.match(self.block, key))}
        shape = weights[self.sign].shape
        width = shape[self.dimension] if self.dimension < len(shape) else 0
        squeezes = any(".se_block." in key for key in weights)

        def distance(architecture: str) -> tuple[bool, int, int]:
            size = self.sizes[architecture]
            return size.squeezes != squeezes, abs(size.blocks - len(blocks)), abs(size.width - width)

        return min(self.sizes, key=distance)


def _prelu_names(_: str) -> dict[str, str]:
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


def _relu6_names(_: str) -> dict[str, str]:
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


def _mbf_names(architecture: str) -> dict[str, str]:
    """Our modules -> InsightFace's: eight groups in a row, `layers.N`, of units, groups of units, or one unit."""
    depth = 2 if architecture == "mbf_large" else 1
    blocks: list[str] = []
    for group, times in (2, 1), (3, 4 * depth), (4, 1), (5, 6 * depth), (6, 1), (7, 2 * depth):
        blocks += [f"layers.{group}" if times == 1 else f"layers.{group}.layers.{i}" for i in range(times)]
    units = {"stem": "layers.0", "last": "conv_sep", "pool": "features.layers.0"}
    inverted = {f"blocks.{index}": block for index, block in enumerate(blocks)}
    if depth == 1:
        units["stem_depthwise"] = "layers.1"
    else:
        inverted |= {f"stem_depthwise.{i}": f"layers.1.layers.{i}" for i in range(depth)}
    for ours, theirs in inverted.items():
        units |= {f"{ours}.{part}": f"{theirs}.layers.{i}" for i, part in enumerate(PARTS)}
    names = {"output": "features.layers.2", "output_bn": "features.layers.3"}
    for ours, theirs in units.items():
        names |= {f"{ours}.{layer}": f"{theirs}.layers.{i}" for i, layer in enumerate(("conv", "bn", "act"))}
    return names


PARTS = "expand", "depthwise", "project"
"""Of an inverted residual, in their order."""


def _sizes(layers: Mapping[str, list[int]], width: int = 64) -> dict[str, Size]:
    return {
        name: Size(sum(counts), 16 if "mini" in name else width, "_se_" in name)
        for name, counts in layers.items()
    }


FAMILIES = (
    Family(
        "AdaFace IR",
        "input_layer.0.weight",
        "output_layer.3.weight",
        _sizes(IR.layers),
        r"(body\.\d+)\.",
        Preprocessing("BGR"),
        dropout=0.4,
    ),
    Family(
        "InsightFace iresnet",
        "layer1.0.bn1.weight",
        "fc.weight",
        _sizes(IResNet.layers),
        r"(layer\d\.\d+)\.",
        Preprocessing("RGB"),
    ),
    Family(
        "InsightFace MobileFaceNet",
        "conv_sep.layers.0.weight",
        "features.layers.2.weight",
        {"mbf": Size(12, 256), "mbf_large": Size(26, 512)},
        r"(layers\.\d+\.layers\.\d+)\.layers\.0\.layers\.0\.",
        Preprocessing("RGB"),
        _mbf_names,
        dimension=1,
    ),
    Family(
        "InsightFace transformer",
        "patch_embed.proj.weight",
        "feature.2.weight",
        {name: Size(size.blocks, size.width) for name, size in SIZES.items()},
        r"(blocks\.\d+)\.",
        Preprocessing("RGB"),
    ),
    Family(
        "MobileFaceNet with PReLU",
        "conv_23.conv.conv.weight",
        "features.weight",
        {"mobilefacenet": Size(0, 0)},
        "(?!)",
        Preprocessing("RGB"),
        _prelu_names,
    ),
    Family(
        "MobileFaceNet with ReLU6",
        "gdconv.depthwise.weight",
        "conv3.weight",
        {"mobilefacenet_relu6": Size(0, 0)},
        "(?!)",
        Preprocessing("RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        _relu6_names,
    ),
)
