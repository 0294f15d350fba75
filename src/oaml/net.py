"""Networks: a backbone that turns a face into an embedding, and an occlusion head that says where the face shows.

Shapes: B images, E embedding size, C channels and h x w cells of a feature map.
F3 is the map after stage 3 (14x14 cells of 8 pixels), F4 the one after stage 4 (7x7 cells of 16 pixels); of a transformer both
have 12x12 cells of 9 pixels, and "14x14" and "7x7" stand for them too.
A network input x is float [B,3,112,112], already in the channel order, mean and deviation of the weights.

IR and IR-SE:  Deng et al., ArcFace, CVPR 2019 (https://arxiv.org/abs/1801.07698), with the parameter names of
               Kim et al., AdaFace, CVPR 2022 (https://arxiv.org/abs/2204.00964)
IResNet:       the same paper's block as InsightFace publishes it, with InsightFace's parameter names
SE:            Hu et al., Squeeze-and-Excitation Networks, CVPR 2018 (https://arxiv.org/abs/1709.01507)
MobileFaceNet: Chen et al., CCBR 2018 (https://arxiv.org/abs/1804.07573); wider ones as InsightFace publishes them
Transformers:  oaml.vit
OcclusionHead: OCCLUSION_LAYER_SPEC.md
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from oaml.backbone import Backbone, scale_and_shift, unit_and_norm
from oaml.kernels.prelu import PReLU
from oaml.support.files import FACE_SIZE
from oaml.visibility import CELLS, GRIDS, on_grid
from oaml.vit import SIZES, ViT

Architecture = Literal[
    "ir_18",
    "ir_34",
    "ir_50",
    "ir_101",
    "ir_se_50",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "iresnet200",
    "mobilefacenet",
    "mobilefacenet_relu6",
    "mbf",
    "mbf_large",
    "vit_t",
    "vit_s",
    "vit_b",
    "vit_l",
    "ir_mini",
]


MOST_NUMBERS = 8192
"""Of an embedding. Published ones have 512; more would take all memory before any weights are read."""


@dataclass
class NetConfig:
    """What a network is made of. Raises ValueError that names the field when a value is out of range."""

    architecture: Architecture = "ir_50"
    """Backbone. `ir_mini` is a small IR for demonstrations and tests."""
    embedding_size: int = 512
    """Numbers in an embedding."""
    stage: Literal[3, 4] = 4
    """Feature map that is matched and read by the occlusion head: 4 has 7x7 cells, 3 has 14x14."""
    dropout: float = 0.4
    """Dropout before the output layer's linear layer; MobileFaceNet has none and ignores it."""
    occlusion_stage: Literal[3, 4] | None = None
    """Feature map that the occlusion head reads; by default the one that is matched. With 3 and stage 4, its map is averaged
    to 7x7 for matching."""
    occlusion_context: bool = False
    """Let the occlusion head look further than the cells beside each one, by three dilated depthwise blocks: half the error of maps
    from stage 3, for a tenth of the network's cost. Off is the head of the specification."""
    branch: Literal["none", "output", "stage"] = "none"
    """Weights that matching has to itself. none: matching reads the backbone's own map and output layer. output: the joint (that
    is, visibility-masked) embedding has an output layer of its own. stage: it and QAConv have a last stage of their own as well,
    whose input is set to zero where the occlusion head sees an occluder (a transformer leaves those tokens out), so that the
    occluder doesn't leak into the cells beside it; needs occlusion_stage 3."""

    def __post_init__(self) -> None:
        if self.architecture not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise ValueError(f"architecture: {self.architecture!r} is not one of {known}")
        if not 1 <= self.embedding_size <= MOST_NUMBERS:
            raise ValueError(f"embedding_size: {self.embedding_size} is not between 1 and {MOST_NUMBERS:,}")
        if self.stage not in GRIDS:
            raise ValueError(f"stage: {self.stage!r} is neither 3 nor 4")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if self.occlusion_stage not in (None, *GRIDS):
            raise ValueError(f"occlusion_stage: {self.occlusion_stage!r} is neither 3 nor 4")
        if self.map_stage > self.stage:
            raise ValueError(
                "occlusion_stage: 4 is coarser than the cells of stage 3 that are matched; leave it out or say 3"
            )
        if self.branch not in ("none", "output", "stage"):
            raise ValueError(f"branch: {self.branch!r} is none of none, output, stage")
        if self.branch == "stage" and self.map_stage != 3:
            raise ValueError(
                "branch: stage hides occluders from the last stage and must know them before it; add occlusion_stage 3"
            )

    @property
    def map_stage(self) -> int:
        """Stage whose feature map the occlusion head reads."""
        return self.occlusion_stage or self.stage


class FaceOutput(NamedTuple):
    """What one pass says about B faces."""

    embedding: Tensor
    """[B,E] float32 of length 1."""
    norm: Tensor
    """[B,1] float32, length of the embedding before normalisation: AdaFace's measure of image quality."""
    visibility: Tensor
    """[B,1,h,w] float32 in [0,1], 1 where the face shows."""
    features: Tensor
    """[B,C,h,w] feature map of the configured stage."""
    stage4: Tensor
    """[B,C4,7,7] map that `Backbone.cells` turns into per-cell embeddings; the features themselves with stage 4."""
    fine: Tensor
    """[B,1,h,w] visibility on the cells that the occlusion head reads; the same as `visibility` unless they are finer."""


def _kaiming(weight: Tensor, mode: Literal["fan_in", "fan_out"]) -> None:
    """Kaiming-normal, but for weights that hold no numbers: to draw those, PyTorch would load its compiler, which takes as long as
    loading all the rest of it."""
    if not weight.is_meta:
        nn.init.kaiming_normal_(weight, mode=mode, nonlinearity="relu")


def _initialise(network: nn.Module) -> None:
    """Kaiming-normal for everything that multiplies. Norms and PReLUs start as PyTorch starts them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # fan out counts all output channels, but a channel of a depthwise convolution reaches only one
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            mode: Literal["fan_in", "fan_out"] = "fan_in" if depthwise else "fan_out"
            _kaiming(module.weight, mode)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _linear_cells(features: Tensor, norm: nn.Module, linear: nn.Linear, out_norm: nn.Module) -> Tensor:
    """F4 -> A for the output layer BN - Flatten - Linear - BN."""
    (scale, shift), (out_scale, out_shift) = scale_and_shift(norm), scale_and_shift(out_norm)
    # the linear layer reads the flattened map, channel by channel: [E,C*49] -> [49,C,E]
    weight = linear.weight.view(len(linear.weight), -1, CELLS).permute(2, 1, 0)
    cells = torch.bmm((features.flatten(2) * scale[:, None]).permute(2, 0, 1), weight)  # [49,B,E]
    constant = torch.einsum("rce,c->e", weight, shift) + linear.bias
    return (cells.transpose(0, 1) + constant / CELLS) * out_scale + out_shift / CELLS


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate in (0,1) computed from all channels' means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] -> [B,C,h,w]."""
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class IRBlock(nn.Module):
    """BN - conv3x3 - BN - PReLU - conv3x3 (strided) - BN [- SE], added to a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, se: bool) -> None:
        super().__init__()
        if inputs == outputs:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if se:
            self.res_layer.add_module("se_block", SqueezeExcitation(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,h,w] -> [B,outputs,h/stride,w/stride]."""
        return self.res_layer(x) + self.shortcut_layer(x)


class IR(Backbone):
    """The improved residual network of ArcFace with AdaFace's parameter names.

    Args:
        layers: blocks in each of the four stages; the first block of a stage halves the resolution.
        widths: channels of the four stages; the first is the input layer's too.
        embedding_size: E.
        dropout: before the linear layer.
        se: squeeze-and-excitation at the end of every block.
        early: halve the resolution in the input layer instead of in the first stage, a third of the cost.
    """

    layers: ClassVar[dict[str, list[int]]] = {
        "ir_18": [2, 2, 2, 2],
        "ir_34": [3, 4, 6, 3],
        "ir_50": [3, 4, 14, 3],
        "ir_101": [3, 13, 30, 3],
        "ir_se_50": [3, 4, 14, 3],
        "ir_mini": [1, 1, 1, 1],
    }

    def __init__(
        self,
        layers: list[int],
        widths: tuple[int, int, int, int],
        embedding_size: int,
        dropout: float,
        se: bool,
        early: bool = False,
    ) -> None:
        super().__init__()
        self.channels = {3: widths[2], 4: widths[3]}
        self.embedding_size = embedding_size
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2 if early else 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            PReLU(widths[0]),
        )
        blocks: list[nn.Module] = []
        inputs = widths[0]
        for stage, (depth, width) in enumerate(zip(layers, widths, strict=True)):
            for index in range(depth):
                halves = index == 0 and not (early and stage == 0)
                blocks.append(IRBlock(inputs, width, stride=2 if halves else 1, se=se))
                inputs = width
        self.body = nn.Sequential(*blocks)
        self.stage3_blocks = sum(layers[:3])
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(inputs * 7 * 7, embedding_size),
            nn.BatchNorm1d(embedding_size, affine=False),
        )
        _initialise(self)

    def forward_stage3(self, x: Tensor) -> Tensor:
        """x [B,3,112,112] -> F3 [B,256,14,14] (fewer channels in a narrow network)."""
        return self.body[: self.stage3_blocks](self.input_layer(x))

    def forward_stage4(self, stage3: Tensor) -> Tensor:
        """F3 [B,256,14,14] -> F4 [B,512,7,7] (fewer channels in a narrow network)."""
        return self.body[self.stage3_blocks :](stage3)

    def without_front(self, stage4: bool = True) -> IR:
        """Blocks of stage 4 (unless left out) and the output layer."""
        copy = deepcopy(self)
        del copy.input_layer
        copy.body, copy.stage3_blocks = copy.body[self.stage3_blocks if stage4 else len(self.body) :], 0
        return copy

    def forward_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """F4 [B,512,7,7] -> unit embedding [B,E], its norm before [B,1], both float32."""
        return unit_and_norm(self.output_layer(features))

    def _cells(self, features: Tensor) -> Tensor:
        norm, _, _, linear, out_norm = self.output_layer
        return _linear_cells(features, norm, cast(nn.Linear, linear), out_norm)


class IResNetBlock(nn.Module):
    """BN - conv3x3 - BN - PReLU - conv3x3 (strided) - BN, added to x or to its 1x1 projection."""

    folds = (("conv1", "bn2"), ("conv2", "bn3"))

    def __init__(self, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        stride = 2 if first else 1
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,h,w] -> [B,outputs,h/stride,w/stride]."""
        residual = self.bn2(self.conv1(self.bn1(x)))
        return self.bn3(self.conv2(self.prelu(residual))) + self.downsample(x)


class IResNet(Backbone):
    """InsightFace's iresnet. Unlike IR every stage starts with a projection and the last BN is affine.

    Args:
        layers: blocks in each of the four stages.
        embedding_size: E.
        dropout: before the linear layer.
    """

    layers: ClassVar[dict[str, list[int]]] = {
        "iresnet18": [2, 2, 2, 2],
        "iresnet34": [3, 4, 6, 3],
        "iresnet50": [3, 4, 14, 3],
        "iresnet100": [3, 13, 30, 3],
        "iresnet200": [6, 26, 60, 6],
    }
    folds = (("conv1", "bn1"),)

    def __init__(self, layers: list[int], embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.channels = {3: 256, 4: 512}
        self.embedding_size = embedding_size
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = PReLU(64)
        self.layer1 = self._stage(64, 64, layers[0])
        self.layer2 = self._stage(64, 128, layers[1])
        self.layer3 = self._stage(128, 256, layers[2])
        self.layer4 = self._stage(256, 512, layers[3])
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512 * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        _initialise(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
        first = IResNetBlock(inputs, outputs, first=True)
        return nn.Sequential(first, *(IResNetBlock(outputs, outputs, first=False) for _ in range(depth - 1)))

    def forward_stage3(self, x: Tensor) -> Tensor:
        """x [B,3,112,112] -> F3 [B,256,14,14]."""
        stem = self.prelu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(stem)))

    def forward_stage4(self, stage3: Tensor) -> Tensor:
        """F3 [B,256,14,14] -> F4 [B,512,7,7]."""
        return self.layer4(stage3)

    def without_front(self, stage4: bool = True) -> IResNet:
        """layer4 (unless left out) and the output layer."""
        copy = deepcopy(self)
        if not stage4:
            del copy.layer4
        del copy.conv1, copy.bn1, copy.prelu, copy.layer1, copy.layer2, copy.layer3
        return copy

    def forward_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """F4 [B,512,7,7] -> unit embedding [B,E], its norm before [B,1], both float32."""
        flat = self.dropout(self.bn2(features)).flatten(1)
        return unit_and_norm(self.features(self.fc(flat)))

    def _cells(self, features: Tensor) -> Tensor:
        return _linear_cells(features, self.bn2, self.fc, self.features)


def _conv_bn(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution - BN [- activation]; padded to keep the resolution, except that 7x7 takes in the map."""
    padding = 0 if size == 7 else size // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False),
        bn=nn.BatchNorm2d(outputs),
    )
    if act is not None:
        layers["act"] = act
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """1x1 expansion - depthwise 3x3 (strided) - linear 1x1 projection; plus x where shapes allow."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, prelu: bool) -> None:
        super().__init__()
        self.expand = _conv_bn(inputs, hidden, 1, act=_activation(hidden, prelu))
        self.depthwise = _conv_bn(hidden, hidden, 3, stride, groups=hidden, act=_activation(hidden, prelu))
        self.project = _conv_bn(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,h,w] -> [B,outputs,h/stride,w/stride]."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _activation(channels: int, prelu: bool) -> nn.Module:
    return PReLU(channels) if prelu else nn.ReLU6()


class MobileFaceNet(Backbone):
    """About a million parameters; the output layer is a depthwise 7x7 convolution and a 1x1 convolution.

    Args:
        embedding_size: E.
        activation: `prelu` as in the paper. `relu6` is a published variant: ReLU6 instead, but ReLU after the
            stem's first layer; one more 1x1 convolution in the stem; a bias in the last convolution.
        width: channels, as a multiple of the paper's, of all but the blocks' hidden layers and the last ones.
        depth: blocks, as a multiple of the paper's, of those that keep the resolution; from 2 on the stem's second layer is as many
            blocks. InsightFace's `mbf` is (width 2, depth 1), its `mbf_large` (4, 2).
    """

    never_folded = ("pool",)

    def __init__(
        self,
        embedding_size: int,
        activation: Literal["prelu", "relu6"] = "prelu",
        width: int = 1,
        depth: int = 1,
    ) -> None:
        super().__init__()
        prelu = activation == "prelu"
        narrow, wide = 64 * width, 128 * width
        self.channels = {3: wide, 4: 512}
        self.embedding_size = embedding_size
        self.stem = _conv_bn(3, narrow, 3, stride=2, act=_activation(narrow, prelu))
        if depth == 1:
            act = PReLU(narrow) if prelu else nn.ReLU()
            self.stem_depthwise = _conv_bn(narrow, narrow, 3, groups=64, act=act)
        else:
            self.stem_depthwise = nn.Sequential(
                *(InvertedResidual(narrow, 128, narrow, 1, prelu) for _ in range(depth))
            )
        self.stem_pointwise = nn.Identity() if prelu else _conv_bn(narrow, narrow, 1, act=nn.ReLU())
        blocks: list[nn.Module] = []
        inputs = narrow
        # hidden, output channels, stride, times
        for hidden, outputs, stride, times in (
            (128, narrow, 2, 1),
            (128, narrow, 1, 4 * depth),
            (256, wide, 2, 1),
            (256, wide, 1, 6 * depth),
            (512, wide, 2, 1),
            (256, wide, 1, 2 * depth),
        ):
            for _ in range(times):
                blocks.append(InvertedResidual(inputs, hidden, outputs, stride, prelu))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.stage3_blocks = 2 + 10 * depth
        self.last = _conv_bn(wide, 512, 1, act=_activation(512, prelu))
        self.pool = _conv_bn(512, 512, 7, groups=512)
        self.output = nn.Conv2d(512, embedding_size, 1, bias=not prelu)
        self.output_bn = nn.BatchNorm1d(embedding_size)
        _initialise(self)

    def forward_stage3(self, x: Tensor) -> Tensor:
        """x [B,3,112,112] -> F3 [B,128,14,14] (times the width)."""
        stem = self.stem_pointwise(self.stem_depthwise(self.stem(x)))
        return self.blocks[: self.stage3_blocks](stem)

    def forward_stage4(self, stage3: Tensor) -> Tensor:
        """F3 [B,128,14,14] (times the width) -> F4 [B,512,7,7], after the activation of `last`."""
        return self.last(self.blocks[self.stage3_blocks :](stage3))

    def without_front(self, stage4: bool = True) -> MobileFaceNet:
        """Blocks of stage 4 with `last` (unless left out) and the output layer."""
        copy = deepcopy(self)
        del copy.stem, copy.stem_depthwise, copy.stem_pointwise
        copy.blocks, copy.stage3_blocks = copy.blocks[self.stage3_blocks if stage4 else len(self.blocks) :], 0
        if not stage4:
            del copy.last
        return copy

    def forward_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """F4 [B,512,7,7] -> unit embedding [B,E], its norm before [B,1], both float32."""
        return unit_and_norm(self.output_bn(self.output(self.pool(features)).flatten(1)))

    def _cells(self, features: Tensor) -> Tensor:
        depthwise, norm = self.pool
        (scale, shift), (out_scale, out_shift) = scale_and_shift(norm), scale_and_shift(self.output_bn)
        cells = features.flatten(2) * (cast(Tensor, depthwise.weight).flatten(1) * scale[:, None])
        matrix = self.output.weight.flatten(1) * out_scale[:, None]  # [E,C]
        constant = matrix @ shift + out_shift
        if self.output.bias is not None:
            constant = constant + self.output.bias * out_scale
        return cells.transpose(1, 2) @ matrix.T + constant / CELLS


class OcclusionHead(nn.Module):
    """How much of every cell shows the face; 590,209 parameters at 512 channels.

    Args:
        channels: of the map it reads.
        context: residual blocks of dilated 5x5 depthwise and 1x1 convolutions before the output, so that a cell is judged by what
            surrounds it up to twelve cells away.
    """

    folds = (("conv1", "bn"),)

    def __init__(self, channels: int, context: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 128, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(128)
        self.context = nn.ModuleList(
            [_context_block(128, dilation) for dilation in (1, 2, 3)] if context else []
        )
        self.conv2 = nn.Conv2d(128, 1, 1)
        # Fan in: by fan out the single output channel would start with logits of +-11, where the sigmoid is flat and the
        # head learns nothing for hundreds of steps.
        for convolution in (self.conv1, self.conv2):
            _kaiming(convolution.weight, "fan_in")
        nn.init.zeros_(cast(Tensor, self.conv2.bias))

    @torch.no_grad()
    def see_everything(self) -> None:
        """Make visibility 1 everywhere: for a head that nothing has trained."""
        self.conv2.weight.zero_()
        cast(Tensor, self.conv2.bias).fill_(30.0)  # from 17 on the sigmoid is 1 in float32

    def forward(self, features: Tensor) -> Tensor:
        """F [B,C,h,w] -> visibility [B,1,h,w], float32 in [0,1] under autocast too.

        Bfloat16 has 8 bits: near 1, where most cells are, it would resolve visibility in steps of 1/256.
        """
        with torch.autocast(features.device.type, enabled=False):
            hidden = self.bn(self.conv1(features.float())).relu()
            for block in self.context:
                hidden = hidden + block(hidden)
            return self.conv2(hidden).sigmoid()


def _context_block(channels: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            channels, channels, 5, padding=2 * dilation, dilation=dilation, groups=channels, bias=False
        ),
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def _ir(config: NetConfig) -> IR:
    name, mini = config.architecture, config.architecture == "ir_mini"
    widths = (16, 32, 64, 128) if mini else (64, 128, 256, 512)
    return IR(
        IR.layers[name], widths, config.embedding_size, config.dropout, se=name == "ir_se_50", early=mini
    )


BACKBONES: dict[str, Callable[[NetConfig], Backbone]] = {
    **dict.fromkeys(IR.layers, _ir),
    **dict.fromkeys(
        IResNet.layers, lambda c: IResNet(IResNet.layers[c.architecture], c.embedding_size, c.dropout)
    ),
    "mobilefacenet": lambda c: MobileFaceNet(c.embedding_size, "prelu"),
    "mobilefacenet_relu6": lambda c: MobileFaceNet(c.embedding_size, "relu6"),
    "mbf": lambda c: MobileFaceNet(c.embedding_size, width=2),
    "mbf_large": lambda c: MobileFaceNet(c.embedding_size, width=4, depth=2),
    **dict.fromkeys(SIZES, lambda c: ViT(SIZES[c.architecture], c.embedding_size)),
}
"""Architecture -> what makes a freshly initialised backbone of it, in train mode."""


def build_backbone(config: NetConfig) -> Backbone:
    """A freshly initialised backbone of the configured architecture, in train mode."""
    return BACKBONES[config.architecture](config)


class Net(nn.Module):
    """Backbone, occlusion head, and with `branch` a second output layer or last stage for matching."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        self.occlusion_head = OcclusionHead(
            self.backbone.channels[config.map_stage], config.occlusion_context
        )
        self.branch = (
            None if config.branch == "none" else self.backbone.without_front(config.branch == "stage")
        )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the matched feature map."""
        return self.backbone.grids[self.config.stage]

    @property
    def channels(self) -> int:
        """C of the matched feature map."""
        return self.backbone.channels[self.config.stage]

    @property
    def output(self) -> Backbone:
        """Whose `cells` turn `FaceOutput.stage4` into per-cell embeddings: the branch, where there is one."""
        return self.backbone if self.branch is None else self.branch

    def forward(self, x: Tensor, detach_occlusion: bool = False) -> FaceOutput:
        """x [B,3,112,112] -> embedding [B,E], norm [B,1], visibility [B,1,h,w], features [B,C,h,w], stage4 [B,C4,7,7].

        Args:
            detach_occlusion: keep the visibility's gradient out of the backbone (`occlusion_gradient: head`).

        Raises:
            ValueError: another shape; the output layer has one weight per cell and takes no other size.
        """
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, FACE_SIZE, FACE_SIZE):
            raise ValueError(
                f"network input: shape {tuple(x.shape)}, expected [B, 3, {FACE_SIZE}, {FACE_SIZE}]"
            )
        return self.forward_from(self.backbone.forward_stage3(x), detach_occlusion)

    def forward_from(self, stage3: Tensor, detach_occlusion: bool = False) -> FaceOutput:
        """F3 [B,C3,14,14] -> what `forward` gives for the images that it came from."""
        stage4 = self.backbone.forward_stage4(stage3)
        embedding, norm = self.backbone.forward_head(stage4)
        seen = stage3 if self.config.map_stage == 3 else stage4
        fine = self.occlusion_head(seen.detach() if detach_occlusion else seen)
        if self.config.branch == "stage":
            stage4 = self.matched(stage3, fine)
        features = stage4 if self.config.stage == 4 else stage3
        visibility = on_grid(self.usable(fine), self.grid)
        return FaceOutput(embedding, norm, visibility, features, stage4, fine)

    def matched(self, stage3: Tensor, fine: Tensor) -> Tensor:
        """F3 [B,C3,14,14] and visibility [B,1,14,14] -> the map after stage 4 [B,C4,7,7] that is matched.

        With branch `stage`, what is occluded in F3 is kept from the branch's stage 4 (`Backbone.forward_occluded`); no gradient
        reaches the occlusion head from here.
        """
        if self.branch is None or self.config.branch == "output":
            return self.backbone.forward_stage4(stage3)
        return self.branch.forward_occluded(stage3, fine.detach())

    def usable(self, fine: Tensor) -> Tensor:
        """Visibility [B,1,h,w] as the head predicts it -> of what `matched` gives."""
        return self.backbone.usable(fine) if self.config.branch == "stage" else fine
