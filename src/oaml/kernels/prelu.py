"""PReLU whose backward pass works on whole vectors of numbers.

On a CPU torch takes the numbers one by one, which was a third of a training step. Here the same takes a sixth of that time: four
passes of vector instructions, over as many images at a time as stay in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 2 << 20


class PReLU(nn.PReLU):
    """As torch's, with its parameter and its numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """[B,C,...] -> the same shape."""
        if input.device.type == "cpu" and torch.is_grad_enabled():
            return _PReLU.apply(input, self.weight)
        return super().forward(input)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.prelu(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        slope = weight.to(grad.dtype).view(1, -1, *[1] * (x.dim() - 2))
        others = [dim for dim in range(x.dim()) if dim != 1]
        to_x, to_weight = torch.empty_like(x, dtype=grad.dtype), torch.zeros_like(weight)
        size = max(1, CHUNK_BYTES // max(1, x[:1].numel() * grad.element_size()))
        parts = (t.split(size) for t in (grad, x.to(grad.dtype), to_x))
        for grad_part, x_part, into in zip(*parts, strict=True):
            above = torch.ops.aten.threshold_backward(grad_part, x_part, 0)  # where x is above 0
            below = grad_part - above
            torch.addcmul(above, below, slope, out=into)
            to_weight += below.mul_(x_part).sum(others, dtype=weight.dtype)
        return to_x.to(x.dtype), to_weight
