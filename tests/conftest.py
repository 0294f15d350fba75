"""What several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from oaml.datasets.drawn import draw_face
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.photographs.align import STANDARD_LANDMARKS
from oaml.photographs.detect import Face
from oaml.qaconv import QAConvConfig


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small work: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_model(bias: float = 0.0, seed: int = 0, **config: Any) -> Model:
    """A model with random weights, in eval mode.

    Args:
        bias: added to the logits of visibility.
        config: of `ModelConfig`, as `thresholds`.
    """
    torch.manual_seed(seed)
    net = NetConfig("ir_mini", 16, occlusion_stage=3)
    model = Model(ModelConfig(net, QAConvConfig(adapter=8), **config)).eval()
    with torch.no_grad():
        assert model.net.occlusion_head.conv2.bias is not None
        model.net.occlusion_head.conv2.bias.add_(bias)
    return model


def group(*people: int) -> np.ndarray:
    """An image of two drawn people, 300x150."""
    image = np.full((150, 300, 3), 128, np.uint8)
    for x, person in zip((10, 160), people, strict=True):
        image[10:122, x : x + 112] = draw_face(person, 0)
    return image


class TwoFaces:
    """A detector that finds the faces of `group`, and none in an image of another size."""

    def find(self, photograph: np.ndarray) -> list[Face]:
        """See above."""
        places = [(10, 0.9), (160, 0.8)] if photograph.shape[:2] == (150, 300) else []
        return [
            Face(np.array([x, 10.0, 112, 112]), STANDARD_LANDMARKS + np.array((x, 10)), score)
            for x, score in places
        ]
