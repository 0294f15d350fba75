"""The fused best matches of QAConv on a GPU, against the plain formulation and against what the card can do at best.

Two limits, both measured on the same card: every byte of the inputs and outputs moved once, at the rate of a copy, and the
products, at the rate of a large float32 matrix product. Forward those are 2*R*S*C operations a pair. Backward the least is
4*(R+S)*C: each choice adds one column of one face to the gradient of the other, both ways. The kernel does it by products
with a tile of zeros and ones, 4*R*S*C, so it cannot come near that limit; the limit is what a better one could reach.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from oaml.errors import OamlError


class Case(NamedTuple):
    """`faces` probes against as many gallery faces, with maps of `channels` on `cells` cells."""

    faces: int
    channels: int
    cells: int


CASES = Case(256, 128, 49), Case(64, 128, 196)  # 630 MB of similarities each
Rates = tuple[float, float]  # bytes and operations a second


def run() -> dict[str, object]:
    """Time in milliseconds, peak memory beyond the inputs in MB and share of the limit, for every case; the card's name."""
    if not torch.cuda.is_available():
        raise OamlError(
            "the benchmark 'cuda' needs a CUDA device; none was found; "
            "run it on a machine with an NVIDIA card and a CUDA build of torch"
        )
    import triton  # pyright: ignore[reportMissingImports]

    device = torch.device("cuda")
    rates = best_rates(device)
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_gb_per_s": rates[0] / 1e9,
        "matmul_tflop_per_s": rates[1] / 1e12,
        "cases": [measure(case, rates, device) for case in CASES],
    }


def best_rates(device: torch.device, copied: int = 2**28, side: int = 8192) -> Rates:
    """Measured on `copied` floats and a product of two matrices [side,side]."""
    source = torch.rand(copied, device=device)
    target = torch.empty_like(source)
    copy = 2 * 4 * copied / _seconds(lambda: target.copy_(source))
    a = torch.rand(side, side, device=device)
    return copy, 2 * side**3 / _seconds(lambda: a @ a)


def measure(case: Case, rates: Rates, device: torch.device) -> dict[str, object]:
    """One case: plain and fused, forward and forward with backward."""
    from oaml.kernels import best_matches_triton

    faces, channels, cells = case
    generator = torch.Generator().manual_seed(0)
    prob, gal = (
        F.normalize(torch.randn(faces, channels, cells, generator=generator), dim=1).to(device)
        for _ in range(2)
    )
    log_p, log_g = (
        0.3 * torch.rand(faces, cells, generator=generator).clamp_min(1e-3).log().to(device) for _ in range(2)
    )
    bias = 0.1 * torch.randn(cells, cells, generator=generator).to(device)
    arguments = prob, gal, log_p, log_g, bias
    learned = [x.clone().requires_grad_() for x in (prob, gal, bias)]
    grad_s, grad_r = (torch.randn(faces, faces, cells, generator=generator).to(device) for _ in range(2))

    @torch.no_grad()
    def plain() -> tuple[Tensor, Tensor]:
        return _plain(*arguments)

    def plain_both() -> tuple[Tensor, ...]:
        values = _plain(learned[0], learned[1], log_p, log_g, learned[2])
        return torch.autograd.grad(values, learned, [grad_s, grad_r])

    def fused() -> tuple[Tensor, Tensor]:
        value_s, _, value_r, _ = best_matches_triton.forward(*arguments)
        return value_s, value_r

    def fused_both() -> tuple[Tensor | None, ...]:
        _, partner_s, _, partner_r = best_matches_triton.forward(*arguments)
        return best_matches_triton.backward(prob, gal, partner_s, partner_r, grad_s, grad_r, True)

    pairs = faces * faces
    inputs = 4 * sum(x.numel() for x in arguments)
    outputs = pairs * 2 * cells * (4 + 1)  # a value and a partner a cell
    products = pairs * 2 * cells * cells * channels
    learned_bytes = 4 * sum(x.numel() for x in learned)
    both_bytes = inputs + outputs + (4 * (prob.numel() + gal.numel()) + outputs + learned_bytes)
    return {
        **case._asdict(),
        "forward": _compare(plain, fused, inputs + outputs, products, rates),
        "forward_backward": _compare(
            plain_both, fused_both, both_bytes, products + pairs * 4 * 2 * cells * channels, rates
        ),
    }


def _plain(prob: Tensor, gal: Tensor, log_p: Tensor, log_g: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The values [P,G,S] and [P,G,R], by way of all similarities."""
    similarity = torch.einsum("pcs,gcr->pgrs", prob, gal) + bias
    judged = similarity.detach() + log_g[None, :, :, None] + log_p[:, None, None]
    value_s = similarity.gather(2, judged.argmax(2)[:, :, None]).squeeze(2)
    return value_s, similarity.gather(3, judged.argmax(3)[..., None]).squeeze(3)


def _compare(
    plain: Callable[[], tuple[Tensor, ...]],
    fused: Callable[[], tuple[Tensor | None, ...]],
    moved: int,
    operations: int,
    rates: Rates,
) -> dict[str, float]:
    """Both ways to do the same, against the least time to move the bytes and to do the operations."""
    # Partners whose similarities are equal to rounding may differ, and with them a few entries of a gradient: no maximum.
    difference = max(
        float((x - y).norm() / y.norm()) for y, x in zip(plain(), fused(), strict=True) if x is not None
    )
    plain_s, fused_s = _seconds(plain), _seconds(fused)
    memory, compute = moved / rates[0], operations / rates[1]
    return {
        "relative_difference": difference,
        "plain_ms": 1e3 * plain_s,
        "fused_ms": 1e3 * fused_s,
        "times_faster": plain_s / fused_s,
        "plain_peak_mb": _peak(plain) / 1e6,
        "fused_peak_mb": _peak(fused) / 1e6,
        "memory_limit_ms": 1e3 * memory,
        "compute_limit_ms": 1e3 * compute,
        "share_of_limit": max(memory, compute) / fused_s,
    }


def _seconds(work: Callable[[], object]) -> float:
    """Median time of one call; the timer waits for the card."""
    return Timer("work()", globals={"work": work}).blocked_autorange(min_run_time=0.5).median


def _peak(work: Callable[[], object]) -> int:
    """Bytes that a call holds at most, beyond what was there before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before
