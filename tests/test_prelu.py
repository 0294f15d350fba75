"""PReLU against torch's, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from oaml.kernels.prelu import PReLU
from oaml.net import Architecture, NetConfig, build_backbone


def gradients(module: nn.PReLU, x: Tensor, autocast: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = module(x)
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y, *torch.autograd.grad(y, (x, module.weight), pull)]


@pytest.mark.parametrize("shape", [(2, 5), (3, 5, 4), (2, 5, 7, 3)])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float64, False), (torch.bfloat16, False), (torch.float32, True)],
)
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_same_as_torch(
    shape: tuple[int, ...], dtype: torch.dtype, autocast: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oaml.kernels.prelu.CHUNK_BYTES", chunk)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0], x[0, 1] = 0, -0.0  # on neither side
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    ours, theirs = PReLU(5).to(dtype), nn.PReLU(5).to(dtype)
    for module in (ours, theirs):
        nn.init.uniform_(module.weight, generator=torch.Generator().manual_seed(2))
    tolerance = 3e-2 if autocast or dtype == torch.bfloat16 else 1e-5
    for mine, expected in zip(gradients(ours, x, autocast), gradients(theirs, x, autocast), strict=True):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("architecture", ["ir_mini", "iresnet18", "mobilefacenet"])
def test_every_network_uses_it(architecture: Architecture) -> None:
    prelus = [m for m in build_backbone(NetConfig(architecture)).modules() if isinstance(m, nn.PReLU)]
    assert prelus
    assert all(isinstance(m, PReLU) for m in prelus)
