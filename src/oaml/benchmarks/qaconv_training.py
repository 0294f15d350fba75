"""A training step of QAConv, forward and backward, against the plain formulation: time and peak memory.

Maps of 128 channels, as behind the adapter; all images of a batch against as many others. Each case runs in a process of its
own. The plain formulation holds several tensors [pairs,cells,cells]; it is measured where one of them is below 1 GB.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.benchmarks.qaconv import alone, matcher_and_faces, peak, plain_scores

CASES = (64, 7), (128, 7), (256, 7), (64, 14), (128, 14), (256, 14)
"""Images a batch and cells along a side."""
PLAIN_BYTES = 10**9


def run(cases: tuple[tuple[int, int], ...] = CASES) -> dict[str, object]:
    """A step of every case.

    Returns:
        For every `64_images_7x7` and the like: `milliseconds` and `megabytes` (peak beyond maps and matcher, null where the
        system doesn't report it), the same of the plain formulation (null where not measured), `times_plain` (it takes so many
        times as long), and `megabytes_of_all_correlations`, the size of one of its tensors.
    """
    values: dict[str, object] = {"threads": torch.get_num_threads()}
    for images, side in cases:
        tensor = 4 * images**2 * side**4
        milliseconds, megabytes = alone(measure, images, side, False)
        plain = alone(measure, images, side, True) if tensor < PLAIN_BYTES else (None, None)
        values[f"{images}_images_{side}x{side}"] = {
            "milliseconds": milliseconds,
            "plain_milliseconds": plain[0],
            "times_plain": plain[0] and plain[0] / milliseconds,
            "megabytes": megabytes,
            "plain_megabytes": plain[1],
            "megabytes_of_all_correlations": tensor / 1e6,
        }
    return values


def measure(images: int, side: int, plain: bool) -> tuple[float, float | None]:
    """Milliseconds of the faster of two steps, and megabytes of the first."""
    one_step(2, side, plain)()  # what is loaded once
    step = one_step(images, side, plain)
    seconds = []

    def timed() -> None:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)

    megabytes = peak(timed)
    timed()
    return 1000 * min(seconds), megabytes


def one_step(images: int, side: int, plain: bool) -> Callable[[], object]:
    """Forward and backward, with gradients to both maps and to everything that the matcher learns."""
    matcher, (p, v_p), (g, v_g) = matcher_and_faces(128, side, images)
    matcher.train()
    learned: list[Tensor] = [p.requires_grad_(), g.requires_grad_(), *matcher.parameters()]

    def step() -> object:
        if plain:
            scores = plain_scores(matcher, matcher.prepare(p), matcher.prepare(g), v_p, v_g)
        else:
            scores = matcher(p, g, v_p, v_g)
        return torch.autograd.grad(F.softplus(scores).mean(), learned)

    return step
