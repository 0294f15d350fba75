"""Does a crop show a face that can be compared? The refiner has learned where faces lie; where it sees none, there is none.

A picture without a face has an embedding too, and so has a face of which nothing is left: two black squares are as similar as can
be. So before anything is decided the last map of the refiner, a crop's and its mirror image's averaged, is weighed by a logistic
function. `studies/usable.py` fits its weights and measures what is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from oaml.photographs.refine import Refiner

USABLE_WEIGHTS = Path(__file__).parent / "refiner" / "usable.safetensors"
LEAST_USABLE = 0.5
"""Of `usable`: below it nothing is decided about a crop, and it is not enrolled."""
BATCH = 64
USABLE_REMEDY = "take a sharp, well-lit photograph of a face that is not hidden altogether"


def usable(crop: np.ndarray) -> float:
    """How sure it is that an aligned crop, uint8 RGB [112,112,3], shows a face that can be compared: 0 to 1."""
    return usable_each([crop])[0]


def usable_each(crops: Sequence[np.ndarray]) -> list[float]:
    """`usable` of many crops, in batches."""
    import torch
    import torch.nn.functional as F

    from oaml.inference import as_input
    from oaml.photographs.refine import load_refiner

    network, (weight, bias), sure = load_refiner(), _weights(), []
    with torch.inference_mode():
        for start in range(0, len(crops), BATCH):
            found = refiner_map(network, as_input(crops[start : start + BATCH]))
            sure += F.linear(found, weight, bias).sigmoid()[:, 0].tolist()
    return sure


def refiner_map(network: Refiner, crops: Tensor) -> Tensor:
    """RGB [N,3,112,112] in [0,1] -> [N,24*49], the refiner's last map of each crop and, mirrored back, of its mirror image."""
    import torch

    own, mirrored = network.features(torch.cat([crops, crops.flip(3)]) * 2 - 1).chunk(2)
    return ((own + mirrored.flip(3)) / 2).flatten(1)


def no_usable_face(sure: float) -> str:
    """Why a crop with this value of `usable`, below `LEAST_USABLE`, is refused."""
    return f"shows no usable face: {sure:.3f} on a scale from 0 to 1, a face has {LEAST_USABLE:g} or more"


@lru_cache(1)
def _weights() -> tuple[Tensor, Tensor]:
    from safetensors.torch import load_file

    stored = load_file(USABLE_WEIGHTS)
    return stored["weight"], stored["bias"]
