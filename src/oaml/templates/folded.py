"""A model for inference alone: every batch normalisation that follows a convolution becomes part of it.

In eval mode normalising is a scale and a shift of each channel, which the convolution's weight and bias can take in. The outputs
are the same but for the last digits, and the network reads and writes its maps once less at every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from oaml.model import Model


def folded(model: Model) -> Model:
    """A copy of a model in eval mode that extracts the same templates faster; it can't be trained or saved.

    The normalisation in the output layer stays where `Backbone.cells` reads it.
    """
    model.need_eval()
    copy = deepcopy(model)
    kept = {id(getattr(part, name)) for part in copy.modules() for name in getattr(part, "never_folded", ())}
    for part in list(copy.modules()):
        if id(part) not in kept:
            for convolution, norm in _pairs(part):
                layer, statistics = getattr(part, convolution), getattr(part, norm)
                if isinstance(layer, nn.Conv2d) and isinstance(statistics, nn.BatchNorm2d):
                    setattr(part, convolution, fuse_conv_bn_eval(layer, statistics))
                    setattr(part, norm, nn.Identity())
    return copy


def _pairs(part: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(part, nn.Sequential):
        names = [name for name, _ in part.named_children()]
        yield from pairwise(names)
    # a branch has no first layer
    yield from (pair for pair in getattr(part, "folds", ()) if hasattr(part, pair[0]))
