"""How fast QAConv scores, against the plain formulation and against the matrix products in it, and how much memory it takes.

All in one process, faces of 7x7 cells, visibility and position bias as in an adapted model. The matrix products alone, 2*49*49*C
operations a pair, are the limit of the machine; their rate is the best that `torch.mm` reaches in the same precision for
matrices of different sizes. All times are the best of several rounds in which everything takes its turn, so that
other work on the machine meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.benchmarks.joint import fastest
from oaml.kernels import Precision, native
from oaml.kernels.best_matches import BestMatches
from oaml.qaconv import QAConv, apply_occlusion_weight

Result = TypeVar("Result")
SIDE = 7  # cells
FACES_A_SIDE = 192
ROUNDS = 3
MEMORY_CASES = (2, 5), (25, 40), (250, 400)
"""Probes and gallery faces for the peak memory: 10, 1,000 and 100,000 pairs."""


def run(
    channels: tuple[int, ...] = (512, 128), faces: int = FACES_A_SIDE, rounds: int = ROUNDS
) -> dict[str, object]:
    """Ratios for maps of several numbers of channels.

    Returns:
        For every `c512_float32` and the like: `pairs_per_second`, `times_plain` (the plain formulation in float32 takes that many
        times as long), `share_of_gemm` (of the rate of matrix products, 1 is the limit) and `share_on_one_thread`, the same by
        processor time, which other work on the machine hardly changes. `megabytes_*`: peak memory beyond the maps for 10 to
        100,000 pairs, null where the system doesn't report it; `native`: whether the compiled loops were used.
    """
    values: dict[str, object] = {"threads": torch.get_num_threads(), "native": native.library() is not None}
    for count in channels:
        values |= measure(count, faces, rounds)
    for p, g in MEMORY_CASES:
        values[f"megabytes_{p * g}_pairs"] = alone(peak_of_scoring, p, g)
    return values


def measure(channels: int, faces: int, rounds: int) -> dict[str, object]:
    """The part of `run` for one number of channels."""
    matcher, (p, v_p), (g, v_g) = matcher_and_faces(channels, SIDE, faces)
    few = slice(max(1, faces // 6))  # the plain formulation is slow

    def ours(precision: Precision) -> Callable[[], object]:
        return lambda: matcher.match(p, g, v_p, v_g, prepared=True, precision=precision)

    def product(rows: int, dtype: torch.dtype) -> Callable[[], object]:
        a = torch.randn(rows, channels).to(dtype)
        return lambda: [a @ a.T for _ in range(max(1, (faces * SIDE**2 // rows) ** 2))]

    def plain() -> object:
        with torch.inference_mode():
            return plain_scores(matcher, p[few], g[few], v_p[few], v_g[few])

    whole = faces * SIDE**2
    sizes = [rows for rows in (392, 1568, whole) if rows <= whole]
    todo: dict[str, Callable[[], object]] = {"plain": plain}
    for precision in ("float32", "bfloat16"):
        todo[precision] = ours(precision)
        todo |= {f"{precision}_{rows}": product(rows, getattr(torch, precision)) for rows in sizes}
    fastest(todo, 1)  # what is loaded and allocated once
    seconds = fastest(todo, rounds)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    worked = fastest(todo, rounds, time.process_time)
    torch.set_num_threads(before)
    flops = 2 * SIDE**4 * channels
    values: dict[str, object] = {}
    for precision in ("float32", "bfloat16"):

        def rate(seconds: dict[str, float], precision: str = precision) -> float:
            each = (max(1, (whole // rows) ** 2) * rows**2 / seconds[f"{precision}_{rows}"] for rows in sizes)
            return 2 * channels * max(each)

        a_second = faces**2 / seconds[precision]
        values[f"c{channels}_{precision}"] = {
            "pairs_per_second": a_second,
            "times_plain": a_second / (len(p[few]) ** 2 / seconds["plain"]),
            "share_of_gemm": a_second * flops / rate(seconds),
            "share_on_one_thread": faces**2 / worked[precision] * flops / rate(worked),
            "gemm_gflop_per_second": rate(seconds) / 1e9,
        }
    return values


def matcher_and_faces(
    channels: int, side: int, faces: int
) -> tuple[QAConv, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A matcher as `adapt` makes it, without the adapter; and prepared maps and visibility of `faces` probes and gallery faces."""
    generator = torch.Generator().manual_seed(0)
    matcher = QAConv(channels, side, side, "normalized", position_bias=True).eval()

    def random_faces() -> tuple[Tensor, Tensor]:
        maps = torch.randn((faces, channels, side, side), generator=generator)
        return F.normalize(maps, dim=1), torch.rand((faces, 1, side, side), generator=generator)

    return matcher, random_faces(), random_faces()


def plain_scores(matcher: QAConv, p: Tensor, g: Tensor, v_p: Tensor, v_g: Tensor) -> Tensor:
    """The baseline: all correlations in one tensor and two maxima over it; gradients are those of autograd."""
    similarity = torch.einsum("pcs,gcr->pgrs", p.flatten(2), g.flatten(2))
    bias = matcher.bias()
    if bias is not None:
        similarity = similarity + bias
    selection = apply_occlusion_weight(similarity.detach(), v_p, v_g, "normalized")
    of_s, of_r = selection.argmax(2), selection.argmax(3)
    value_s = similarity.gather(2, of_s[:, :, None]).squeeze(2)
    value_r = similarity.gather(3, of_r[..., None]).squeeze(3)
    return matcher.logits(
        BestMatches(value_s, of_s, value_r, of_r), v_p.flatten(1)[:, None], v_g.flatten(1)[None]
    )


def alone(function: Callable[..., Result], *arguments: int) -> Result:
    """A measurement in a process of its own, whose memory was not used before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def peak_of_scoring(probes: int, gallery: int) -> float | None:
    """Megabytes beyond the maps; see `peak`."""
    matcher, (p, v_p), (g, v_g) = matcher_and_faces(128, SIDE, max(probes, gallery))
    p, g, v_p, v_g = p[:probes], g[:gallery], v_p[:probes], v_g[:gallery]
    matcher.match(p[:2], g[:2], v_p[:2], v_g[:2], prepared=True)  # what is loaded once
    return peak(lambda: matcher.match(p, g, v_p, v_g, prepared=True))


def peak(call: Callable[[], object]) -> float | None:
    """By how many megabytes the resident set grows at most during a call, on Linux; elsewhere None."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark
        before = resident("VmRSS")
    except OSError:
        return None
    call()
    return (resident("VmHWM") - before) / 1024
