"""The benchmarks of the matcher run, compare equals with equals, and measure memory."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from oaml.benchmarks import qaconv, qaconv_training

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_baseline_scores_the_same() -> None:
    matcher, (p, v_p), (g, v_g) = qaconv.matcher_and_faces(16, 7, 5)
    with torch.no_grad():
        plain = qaconv.plain_scores(matcher, p, g, v_p, v_g)
    torch.testing.assert_close(plain, matcher.match(p, g, v_p, v_g, prepared=True))
    ours, theirs = (qaconv_training.one_step(4, 7, plain)() for plain in (False, True))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def fifty_megabytes() -> float | None:
    return qaconv.peak(lambda: torch.ones(50, 2**18))


def test_memory_is_what_a_call_takes() -> None:
    taken = qaconv.alone(fifty_megabytes)  # here, memory that tests before this one left would be used again
    assert taken is None or 45 < taken < 60


def test_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qaconv, "MEMORY_CASES", ((2, 3),))
    values: dict[str, Any] = qaconv.run((16,), 8, 1)
    json.dumps(values, allow_nan=False)
    assert {"megabytes_6_pairs", "c16_float32", "c16_bfloat16", "native", "threads"} == set(values)
    for precision in ("float32", "bfloat16"):
        for value in values[f"c16_{precision}"].values():
            assert 0 < value < math.inf


def test_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qaconv_training, "PLAIN_BYTES", 4 * 3**2 * 7**4 + 1)
    values: dict[str, Any] = qaconv_training.run(((3, 7), (4, 7)))
    json.dumps(values, allow_nan=False)
    small, large = values["3_images_7x7"], values["4_images_7x7"]
    assert 0 < small["times_plain"] < math.inf
    assert large["times_plain"] is None
    assert large["milliseconds"] > 0
