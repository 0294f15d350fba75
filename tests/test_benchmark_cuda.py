"""The benchmark of the GPU kernels: refused without a card; its arithmetic is tested on the CPU, with the kernels interpreted."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from oaml.benchmarks import cuda
from oaml.errors import OamlError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card() -> None:
    with pytest.raises(OamlError, match="needs a CUDA device; none was found; run it on"):
        cuda.run()


def measured() -> dict[str, object]:
    """Without the peak, which only a card counts, and without repetition."""
    cuda._peak = lambda work: 0
    cuda._seconds = lambda work: 2e-3
    return cuda.measure(cuda.Case(3, 8, 9), (1e9, 1e9), torch.device("cpu"))


def test_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: the GPU kernels are not tested")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        case = json.loads(json.dumps(pool.submit(measured).result()))
    assert (case["faces"], case["channels"], case["cells"]) == (3, 8, 9)
    forward, both = case["forward"], case["forward_backward"]
    assert forward["relative_difference"] < 1e-5
    assert both["relative_difference"] < 1e-5
    maps, logs, bias, values = 2 * 3 * 8 * 9 * 4, 2 * 3 * 9 * 4, 9 * 9 * 4, 9 * 2 * 9 * 5
    assert forward["memory_limit_ms"] == pytest.approx((maps + logs + bias + values) / 1e6)
    assert forward["compute_limit_ms"] == pytest.approx(9 * 2 * 9 * 9 * 8 / 1e6)
    assert both["memory_limit_ms"] == pytest.approx((3 * maps + logs + 2 * bias + 2 * values) / 1e6)
    assert both["compute_limit_ms"] == pytest.approx(9 * (2 * 9 * 9 + 4 * 18) * 8 / 1e6)
    assert forward["share_of_limit"] == pytest.approx(forward["compute_limit_ms"] / 2)


def test_rates_are_positive() -> None:
    assert all(rate > 0 for rate in cuda.best_rates(torch.device("cpu"), 2**10, 16))
