"""What all backbones share: feature maps and embedding, each alone or in one pass.

Shapes: B images, E embedding size, C channels and h x w cells of a feature map. F3 is the map after stage 3, F4 that after stage 4.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from oaml.visibility import GRIDS


def unit_and_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B,E] -> unit vectors [B,E], lengths [B,1], in float32: a squared length overflows float16 early."""
    x = x.float()
    norm = x.norm(dim=1, keepdim=True)
    return x / norm.clamp_min(1e-12), norm


class Backbone(nn.Module):
    """What all backbones share: feature maps and embedding, each alone or in one pass.

    A new one is a class that defines the five methods below that raise NotImplementedError, and a line in `BACKBONES`.
    """

    grids: ClassVar[dict[int, tuple[int, int]]] = GRIDS
    """Cells h x w of the maps of stages 3 and 4."""
    channels: dict[int, int]
    """Channels of the maps of stages 3 and 4."""
    embedding_size: int
    layers: ClassVar[dict[str, list[int]]] = {}
    """Architecture -> residual blocks in each of the four stages, where a class serves several architectures."""
    folds: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Names of convolutions and of the normalisations that `oaml.templates.folded` makes part of them, where they aren't neighbours
    in a sequence. Residual blocks have these too."""
    never_folded: ClassVar[tuple[str, ...]] = ()
    """Names of sequences that stay as they are, since `cells` reads their normalisation."""

    def forward_stage3(self, x: Tensor) -> Tensor:
        """x [B,3,112,112] -> F3 [B,channels[3],14,14]."""
        raise NotImplementedError

    def forward_stage4(self, stage3: Tensor) -> Tensor:
        """F3 [B,channels[3],14,14] -> F4 [B,channels[4],7,7]."""
        raise NotImplementedError

    def forward_stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B,3,112,112] -> F3 [B,channels[3],14,14], F4 [B,channels[4],7,7]."""
        stage3 = self.forward_stage3(x)
        return stage3, self.forward_stage4(stage3)

    def forward_features(self, x: Tensor) -> Tensor:
        """x [B,3,112,112] -> F4 [B,channels[4],7,7]."""
        return self.forward_stages(x)[1]

    def forward_occluded(self, stage3: Tensor, visibility: Tensor) -> Tensor:
        """`forward_stage4` of a map after stage 3 whose occluded cells are set to zero: [B,C3,h,w], [B,1,h,w] in [0,1] -> F4."""
        return self.forward_stage4(stage3 * visibility.to(stage3.dtype))

    def usable(self, visibility: Tensor) -> Tensor:
        """[B,1,h,w] -> how much of the cells of `forward_occluded` can be compared."""
        return visibility

    def without_front(self, stage4: bool = True) -> Backbone:
        """A copy of stage 4 and the output layer alone: `forward_stage4` and `forward_head` work, the rest is gone.

        Args:
            stage4: False leaves the output layer only.
        """
        raise NotImplementedError

    def front_parameters(self) -> list[nn.Parameter]:
        """Those that lead to F3. Every backbone defines its layers in the order of their use, so that they come first."""
        behind = len(list(self.without_front().parameters()))
        return list(self.parameters())[:-behind]

    def forward_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """F4 [B,channels[4],7,7] -> unit embedding [B,E], its norm before [B,1], both float32.

        Their product is the raw output of the network. In eval mode that output is affine in F4.
        """
        raise NotImplementedError

    def cells(self, features: Tensor) -> Tensor:
        """Per-cell embeddings: what every cell adds to the embedding. Running statistics and no dropout, in training mode too.

        Args:
            features: F4 [B,channels[4],7,7].

        Returns:
            A [B,49,E], float32 (float64 for float64); the sum over cells is `embedding * norm` of `forward_head` in eval mode. The
            constant of the affine map is spread evenly over the cells.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self._cells(features if features.dtype == torch.float64 else features.float())

    def _cells(self, features: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: its output layer has no known split into cells")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B,3,112,112] -> unit embedding [B,E], its norm before [B,1], both float32."""
        return self.forward_head(self.forward_features(x))


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Batch normalisation with running statistics, both [channels]."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift + norm.bias if norm.affine else shift
