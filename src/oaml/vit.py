"""Transformers for faces, and how they leave out what an occluder hides.

An image is 12x12 tokens of 9x9 pixels (the last 4 rows and columns of 112 are seen by none). Blocks of attention and a perceptron
refine them, and an output layer, linear - BN - linear - BN over all tokens, makes the embedding. Structure and parameter names are
those of InsightFace (recognition/arcface_torch, `vit_t` to `vit_l`), whose transformers LVFace's are too: You et al., LVFace,
ICCV 2025 (https://arxiv.org/abs/2501.13420).

These networks were trained with a share of the tokens removed: the blocks see the others alone, and before the output layer a
learned mask token stands in the place of what was removed. What an occluder hides can therefore be left out of the attention
altogether, and nothing of it reaches the tokens beside it: `ViT.forward_occluded`.

The map after stage 3 is here the tokens after the first blocks, which see the whole face; the map after stage 4 the tokens that go
into the output layer. Shapes: B images, D numbers in a token, E embedding size.
"""

from __future__ import annotations

from copy import deepcopy
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oaml.backbone import Backbone, scale_and_shift, unit_and_norm
from oaml.visibility import TOKENS

COUNT = TOKENS[0] * TOKENS[1]
PATCH = 9
"""Pixels a side of a token."""
SHOWN_FROM = 0.5
"""Visibility from which on a token takes part in attention: at least half of its pixels show the face."""
KEPT_IN_TRAINING = 129
"""Tokens that the later blocks see of a face in training: nine of ten, as published."""
FIRST = 6
"""One of so many blocks comes before the occlusion head: what an occluder looks like is known early, and what comes before it is
all that an occluder can still leak through."""


class ViTSize(NamedTuple):
    """What tells the published transformers apart."""

    width: int
    """Numbers in a token."""
    blocks: int


SIZES = {
    "vit_t": ViTSize(256, 12),
    "vit_s": ViTSize(512, 12),
    "vit_b": ViTSize(512, 24),
    "vit_l": ViTSize(768, 24),
}
"""Architecture -> its size; each has 8 heads and perceptrons of four times the width."""


class Attention(nn.Module):
    """Every token is a weighted mean over all tokens, by 8 heads."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """x [B,N,D] -> [B,N,D]; `seen` bool [B,1,1,N]: the tokens that others may look at, by default all."""
        batch, count, width = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, seen)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class Perceptron(nn.Module):
    """Linear - ReLU6 - linear, on each token alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,D] -> [B,N,D]."""
        return self.fc2(F.relu6(self.fc1(x)))


class Block(nn.Module):
    """Attention and perceptron, each after a normalisation of every token and added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width), Perceptron(width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """See `Attention`."""
        x = x + self.attn(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    """An image as tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,112,112] -> [B,144,D]."""
        return as_tokens(self.proj(x))


class ViT(Backbone):
    """A transformer.

    Args:
        size: its width and depth.
        embedding_size: E.
    """

    grids: ClassVar[dict[int, tuple[int, int]]] = {3: TOKENS, 4: TOKENS}
    never_folded = ("feature",)

    def __init__(self, size: ViTSize, embedding_size: int) -> None:
        super().__init__()
        width = size.width
        self.channels = {3: width, 4: width}
        self.embedding_size = embedding_size
        self.pos_embed = nn.Parameter(torch.empty(1, COUNT, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(size.blocks))
        self.first = size.blocks // FIRST
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(COUNT * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_stage3(self, x: Tensor) -> Tensor:
        """x [B,3,112,112] -> tokens after the first blocks, as a map [B,D,12,12]."""
        tokens = self.patch_embed(x) + self.pos_embed
        for block in self.blocks[: self.first]:
            tokens = block(tokens)
        return as_map(tokens)

    def forward_stage4(self, stage3: Tensor) -> Tensor:
        """Tokens after the first blocks [B,D,12,12] -> tokens before the output layer [B,D,12,12].

        In training a tenth of each face's tokens, at random, is left out as in `forward_occluded`.
        """
        tokens, kept = as_tokens(stage3), None
        if self.training:
            order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(1)
            kept = order < KEPT_IN_TRAINING
        return as_map(self._later(tokens, kept))

    def forward_occluded(self, stage3: Tensor, visibility: Tensor) -> Tensor:
        """`forward_stage4` of the tokens that show the face alone; the mask token stands for the others.

        What is in those has no influence on any number. A face's numbers do not depend on the others of its batch.

        Args:
            stage3: tokens after the first blocks [B,D,12,12].
            visibility: [B,1,12,12]; a token takes part from `SHOWN_FROM` on.
        """
        return as_map(self._later(as_tokens(stage3), visibility.flatten(1) >= SHOWN_FROM))

    def usable(self, visibility: Tensor) -> Tensor:
        """Visibility with 0 for the tokens that are left out: two mask tokens are equal, whoever they belong to."""
        return torch.where(visibility >= SHOWN_FROM, visibility, 0)

    def _later(self, tokens: Tensor, kept: Tensor | None) -> Tensor:
        """The blocks after the first ones and the last normalisation: [B,144,D] and bool [B,144], or None for all -> [B,144,D]."""
        if kept is None:
            for block in self.blocks[self.first :]:
                tokens = block(tokens)
            return self.norm(tokens)
        # The tokens to keep come first, and so many columns as the face with most of them needs are computed; a graph that is
        # recorded can't choose their number.
        recorded = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
        most = COUNT if recorded else max(1, int(kept.sum(1).max()))
        order = kept.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        seen = kept.gather(1, order)
        # a face without any looks at everything, for a mean over nothing is no number; all of it is replaced below
        seen = (seen | ~seen.any(1, keepdim=True))[:, None, None]
        place = order[..., None].expand(-1, -1, tokens.shape[2])
        x = tokens.gather(1, place)
        for block in self.blocks[self.first :]:
            x = block(x, seen)
        x = self.norm(x)
        whole = torch.zeros(tokens.shape, dtype=x.dtype, device=x.device).scatter(1, place, x)
        return torch.where(kept[..., None], whole, self.mask_token.to(x.dtype))

    def without_front(self, stage4: bool = True) -> ViT:
        """The later blocks and the last normalisation (unless left out) and the output layer."""
        copy = deepcopy(self)
        del copy.patch_embed, copy.pos_embed
        copy.blocks, copy.first = copy.blocks[self.first if stage4 else len(self.blocks) :], 0
        if not stage4:
            del copy.norm, copy.mask_token
        return copy

    def forward_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens before the output layer [B,D,12,12] -> unit embedding [B,E], its norm before [B,1], both float32."""
        return unit_and_norm(self.feature(as_tokens(features).flatten(1)))

    def _cells(self, features: Tensor) -> Tensor:
        first, norm, second, out_norm = self.feature
        (scale, shift), (out_scale, out_shift) = scale_and_shift(norm), scale_and_shift(out_norm)
        # the first layer reads token after token: [D,144*D] -> [144,D,D]
        weight = cast(Tensor, first.weight).view(len(scale), COUNT, -1).permute(1, 2, 0)
        hidden = torch.bmm(as_tokens(features).transpose(0, 1), weight).transpose(0, 1)  # [B,144,D]
        matrix = cast(Tensor, second.weight) * out_scale[:, None]  # [E,D]
        constant = matrix @ shift + out_shift
        return (hidden * scale) @ matrix.T + constant / COUNT


def as_tokens(features: Tensor) -> Tensor:
    """[B,D,12,12] -> [B,144,D]."""
    return features.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor) -> Tensor:
    """[B,144,D] -> [B,D,12,12]."""
    return tokens.transpose(1, 2).unflatten(2, TOKENS)
