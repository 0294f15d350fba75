"""What several test files share."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oaml.datasets.drawn import DrawnPeople, draw_face
from oaml.errors import OamlError
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.photographs.align import STANDARD_LANDMARKS
from oaml.photographs.looks import Face
from oaml.qaconv import QAConvConfig

# read by OpenCV once, when the first video is opened, which tests do before the product
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small work: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def says(call: Callable[[], object], *parts: str | Path) -> str:
    """The one line that bad input is answered with; all of `parts` are in it."""
    with pytest.raises(OamlError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


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


def with_statistics(model: Model) -> Model:
    """The model in eval mode, with other weights and statistics than a new one has."""
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.dtype.is_floating_point:
            value.add_(torch.randn_like(value) * 0.05)
    return model.eval()


def write_drawn_pairs(folder: Path, people: int, shots: int, directory: str = "") -> list[str]:
    """Drawn people as FOLDER/faces and all their pairs as FOLDER/pairs.csv; returns the images' names.

    Args:
        directory: put before the name of every person's folder.
    """
    drawn = DrawnPeople(people, shots, seed=5)
    names = [f"{directory}{name}.png" for name in drawn.names]
    for i, name in enumerate(names):
        path = folder / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn[i][0]).save(path)
    rows = [(a, b, int(Path(a).parent == Path(b).parent)) for a, b in combinations(names, 2)]
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("path_a", "path_b", "same"), *rows])
    return names


class TwoFaces:
    """A detector that finds the faces of `group`, and none in an image of another size."""

    def find(self, photograph: np.ndarray) -> list[Face]:
        """See above."""
        places = [(10, 0.9), (160, 0.8)] if photograph.shape[:2] == (150, 300) else []
        return [
            Face(np.array([x, 10.0, 112, 112]), STANDARD_LANDMARKS + np.array((x, 10)), score)
            for x, score in places
        ]

    def look(self, picture: np.ndarray) -> list[Face]:
        """None: what is 112x112 is an aligned face."""
        return []

    def follow(self, photograph: np.ndarray, faces: Sequence[Face]) -> None:
        """Nothing is followed."""
