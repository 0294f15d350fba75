"""Where a face lies beneath its occluder: a small network looks at the crop that landmarks gave, and moves it.

Landmarks of an occluded face are guesses, and they err together, so no weights on them put the crop right. What a face does show
says where it lies; so the correction is learned from pixels and taken in steps (Dollar et al., 2010, "Cascaded pose regression"; by
a network Jaderberg et al., 2015, "Spatial transformer networks").
`studies/refiner.py` trains the network and `studies/alignment.py` measures what it is worth. Its weights are part of the package.

Shapes: N crops.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from oaml.inference import as_input
from oaml.photographs.align import warp
from oaml.support.files import FACE_SIZE

WEIGHTS = Path(__file__).parent / "refiner" / "model.safetensors"
TIMES = 2
"""Corrections one after the other: the second sees nearly the whole face. A third brought nothing."""
_CENTRE = (FACE_SIZE - 1) / 2


class Refiner(nn.Module):
    """How far a crop is from where the face should lie. Inverted residuals (Sandler et al., 2018), 230,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, 16, 3, stride=2),
            _Block(16, 32, stride=2),
            _Block(32, 32),
            _Block(32, 64, stride=2),
            _Block(64, 64),
            _Block(64, 64),
            _Block(64, 96, stride=2),
            _Block(96, 96),
            _convolution(96, 24, 1),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(24 * 49, 96), nn.ReLU(), nn.Linear(96, 4))
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # at first the crop is right as it is
        nn.init.zeros_(last.bias)

    def forward(self, crops: Tensor) -> Tensor:
        """RGB [N,3,112,112] in [0,1] -> [N,4]: scale times cosine and sine of the turn, less 1 and 0; shift in halves of a face."""
        return self.head(self.features(crops * 2 - 1))


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        inside = 2 * channels
        self.residual = channels == out
        self.body = nn.Sequential(
            _convolution(channels, inside, 1),
            _convolution(inside, inside, 3, stride, groups=inside),
            nn.Conv2d(inside, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,h,w] -> [N,out,h/stride,w/stride]."""
        return x + self.body(x) if self.residual else self.body(x)


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


def matrices(correction: Tensor) -> Tensor:
    """What `Refiner` says, [N,4] -> [N,2,3]: from pixels of the crop to pixels of the aligned face."""
    a, b, x, y = (correction + correction.new_tensor([1, 0, 0, 0])).unbind(1)
    rotation = torch.stack([torch.stack([a, -b], 1), torch.stack([b, a], 1)], 1)
    shift = torch.stack([x, y], 1) * FACE_SIZE / 2 + _CENTRE - _CENTRE * rotation.sum(2)
    return torch.cat([rotation, shift[..., None]], 2)


@lru_cache(1)
def load_refiner() -> Refiner:
    """The network of the package, on the CPU, in eval mode."""
    from safetensors.torch import load_file

    with torch.inference_mode(False):  # it is kept for callers that want gradients too
        network = Refiner()
        network.load_state_dict({name: x.float() for name, x in load_file(WEIGHTS).items()})
    return network.eval()


@torch.no_grad()
def refined(photograph: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A better place for the crop of a face.

    Args:
        photograph: uint8 RGB [H,W,3].
        matrix: float64 [2,3] from pixels of the photograph to pixels of the aligned face, as `align.similarity` gives it.

    Returns:
        The same kind of matrix. A crop and its mirror image are asked and their answers averaged: mirrored faces move the same way.
    """
    network = load_refiner()
    for _ in range(TIMES):
        crop = as_input([warp(photograph, matrix)])
        own, mirrored = network(torch.cat([crop, crop.flip(3)]))
        correction = (own + mirrored * mirrored.new_tensor([1, -1, -1, 1])) / 2
        step = matrices(correction[None].double())[0].numpy()
        matrix = np.column_stack([step[:, :2] @ matrix[:, :2], step[:, :2] @ matrix[:, 2] + step[:, 2]])
    return matrix


def refined_crop(crop: np.ndarray) -> np.ndarray:
    """A face that somebody aligned by landmarks beneath its occluder, aligned better: uint8 RGB [112,112,3] both.

    Its edge is drawn out where the better crop reaches beyond it: there was more of the photograph, and not black.
    """
    import cv2

    matrix = refined(crop, np.eye(2, 3))
    return cv2.warpAffine(
        crop, matrix, crop.shape[:2], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
