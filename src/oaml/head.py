"""Margin heads, which train the embedding by classifying the people trained on: AdaFace, ArcFace, CosFace.

AdaFace: Kim, Jain & Liu, CVPR 2022. ArcFace: Deng et al., CVPR 2019. CosFace: Wang et al., CVPR 2018.
Shapes: B images, E embedding size, K identities. Everything computes in float32 under autocast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_NORM, MAX_NORM = 1e-3, 100.0
EPSILON = 1e-3  # keeps acos away from +-1, where its gradient is infinite


@dataclass
class HeadConfig:
    """The margin head."""

    kind: Literal["adaface", "arcface", "cosface"] = "adaface"
    """Which margin: adaface (which depends on image quality, as the embedding's norm tells it), arcface, cosface."""
    m: float = 0.4
    """Margin: radians for arcface, cosine for cosface, both parts of it for adaface."""
    h: float = 0.333
    """AdaFace: how far the margin moves with the norm (0 = not at all)."""
    s: float = 64.0
    """Scale of the logits."""
    t_alpha: float = 0.01
    """AdaFace: weight of a batch in the running statistics of the norm; with 1 each batch has its own (both are published)."""

    def __post_init__(self) -> None:
        if self.kind not in ("adaface", "arcface", "cosface"):
            raise ValueError(f"head.kind: {self.kind!r} is none of adaface, arcface, cosface")
        if not 0 < self.t_alpha <= 1:
            raise ValueError(f"head.t_alpha: {self.t_alpha} is not in (0, 1]")
        if self.s <= 0:
            raise ValueError(f"head.s: {self.s} is not positive")


class _Head(nn.Module):
    """What the three share: class centres and the cosine to them."""

    def __init__(self, embedding_size: int, classnum: int, m: float, s: float) -> None:
        super().__init__()
        self.m, self.s = m, s
        self.kernel = nn.Parameter(F.normalize(torch.empty(embedding_size, classnum).uniform_(-1, 1), dim=0))

    def cosine(self, embeddings: Tensor) -> Tensor:
        """Unit embeddings [B,E] -> cosine to every class centre [B,K], within (-1, 1)."""
        return (embeddings.float() @ F.normalize(self.kernel.float(), dim=0)).clamp(-1 + EPSILON, 1 - EPSILON)


class AdaFace(_Head):
    """Margin that grows with the image's quality, read from the embedding's norm."""

    batch_mean: Tensor
    batch_std: Tensor

    def __init__(
        self,
        embedding_size: int = 512,
        classnum: int = 10,
        m: float = 0.4,
        h: float = 0.333,
        s: float = 64.0,
        t_alpha: float = 1.0,
    ) -> None:
        super().__init__(embedding_size, classnum, m, s)
        self.h, self.t_alpha = h, t_alpha
        self.register_buffer("batch_mean", torch.full((1,), 20.0))
        self.register_buffer("batch_std", torch.full((1,), 100.0))

    def forward(self, embeddings: Tensor, norms: Tensor, label: Tensor) -> Tensor:
        """Unit embeddings [B,E], norms [B,1], identities [B] -> logits [B,K] for cross-entropy (section 3.3).

        In training mode the running mean and deviation of the norms take one step first, as published.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine = self.cosine(embeddings)
            norms = norms.detach().float().clamp(MIN_NORM, MAX_NORM)
            if self.training:
                self._update(norms)
            quality = ((norms - self.batch_mean) / (self.batch_std + EPSILON) * self.h).clamp(-1, 1)
            at_label = F.one_hot(label, cosine.shape[1]).to(cosine.dtype)
            theta = (cosine.acos() - at_label * self.m * quality).clamp(EPSILON, math.pi - EPSILON)
            return self.s * (theta.cos() - at_label * (self.m + self.m * quality))

    @torch.no_grad()
    def _update(self, norms: Tensor) -> None:
        self.batch_mean.lerp_(norms.mean(), self.t_alpha)
        if len(norms) > 1:  # the deviation of one image is undefined
            self.batch_std.lerp_(norms.std(), self.t_alpha)


class ArcFace(_Head):
    """Additive angular margin."""

    def __init__(
        self, embedding_size: int = 512, classnum: int = 10, m: float = 0.5, s: float = 64.0
    ) -> None:
        super().__init__(embedding_size, classnum, m, s)

    def forward(self, embeddings: Tensor, norms: Tensor, label: Tensor) -> Tensor:
        """Unit embeddings [B,E], norms [B,1] (unused), identities [B] -> logits [B,K]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine = self.cosine(embeddings)
            at_label = F.one_hot(label, cosine.shape[1]).to(cosine.dtype)
            return self.s * (cosine.acos() + at_label * self.m).clamp(EPSILON, math.pi - EPSILON).cos()


class CosFace(_Head):
    """Additive cosine margin."""

    def __init__(
        self, embedding_size: int = 512, classnum: int = 10, m: float = 0.4, s: float = 64.0
    ) -> None:
        super().__init__(embedding_size, classnum, m, s)

    def forward(self, embeddings: Tensor, norms: Tensor, label: Tensor) -> Tensor:
        """Unit embeddings [B,E], norms [B,1] (unused), identities [B] -> logits [B,K]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine = self.cosine(embeddings)
            return self.s * (cosine - self.m * F.one_hot(label, cosine.shape[1]).to(cosine.dtype))


def build_head(config: HeadConfig, embedding_size: int, classnum: int) -> AdaFace | ArcFace | CosFace:
    """The margin head that the configuration names."""
    if config.kind == "adaface":
        return AdaFace(embedding_size, classnum, config.m, config.h, config.s, config.t_alpha)
    if config.kind == "arcface":
        return ArcFace(embedding_size, classnum, config.m, config.s)
    return CosFace(embedding_size, classnum, config.m, config.s)
