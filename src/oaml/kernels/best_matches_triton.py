"""The best matches of `oaml.kernels.best_matches` and their gradients on a GPU, without the similarities [P,G,R,S] in memory.

**Unmeasured: no card has run these kernels.** They give the right numbers in Triton's interpreter, and compile for compute
capability 8.0 and 9.0 without register spills. Nothing is claimed about their speed until `oaml benchmark cuda` has measured it.

The plain formulation writes R*S similarities a pair and reads them several times to keep R+S of them. Here a program makes
the similarities of one pair in registers, takes both maxima there and writes R+S values and partners: 490 bytes a pair
instead of 9.6 kB at 7x7. The idea is that of fused attention (Dao et al., FlashAttention, NeurIPS 2022); here the
backward pass does not even make the similarities again, because the partners say all of their gradient.

Shapes: P probes with S cells, G gallery faces with R cells, C channels; no side has more than 256 cells.

How the blocks were chosen:
- The forward pass costs 2*R*S*C operations a pair (0.6 million at 7x7 with 128 channels) for 50 kB of maps that other pairs
  read too. Float32 products run on the ordinary units, not on tensor cores, so as long as the maps come from the cache
  the arithmetic is the limit. Hence pairs run in groups of 16 probes: at any moment the programs share a few maps.
- A program has 4096 similarities at once, 32 a thread: fewer would load more for each product, more would leave
  registers for only one program at a time. They are all R cells of a gallery face (49 padded to 64, 196 to 256) by 64 or
  16 probe cells. All R at once makes the choice of a probe cell final, and that of a gallery cell is carried over the
  tiles in registers: no program needs the result of another.
- 16 channels or partners a step, the least that `tl.dot` takes: ordinary units hold the step's operands in registers.
- The backward pass has a program for 32 channels by 64 cells of a face's gradient: 384 programs for 96 faces of 7x7 with
  128 channels, and each entry of the incoming gradient, a few comparisons to make, serves 32 products.
- At 7x7 the compiler needs 112 to 128 registers a thread forward and about 168 backward, and at most 17 kB of shared
  memory: 16 and 12 warps at once on a multiprocessor of compute capability 8.0 or 9.0. At 14x14: up to 246 and 128, so
  8 to 12 and 16 warps.

Sums run in a fixed order and nothing is added atomically: the same input gives the same bits.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

MAX_CELLS = 256  # partners are uint8, and a tile holds all cells of one face
GROUP = 16  # probes whose pairs run together
TILE = 4096  # similarities of a program at once
STEP = 16  # channels of a step forward, partners of a step backward
GRADIENT_CHANNELS, GRADIENT_CELLS = 32, 64  # of a map's gradient in one program
PARTS = 64  # partial sums of the gradient of the bias
WARPS = 4

DotPrecision = Literal["ieee", "tf32x3", "tf32"]  # `input_precision` of tl.dot


def forward(
    prob: Tensor,
    gal: Tensor,
    log_p: Tensor | None,
    log_g: Tensor | None,
    bias: Tensor | None,
    precision: DotPrecision = "ieee",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best partner of every cell of every pair.

    Args:
        prob, gal: float32 [P,C,S], [G,C,R], unit length in every cell.
        log_p, log_g: [P,S], [G,R], added to a cell where it is chosen, not to its value; None: nothing.
        bias: [R,S], part of the value; None: nothing.
        precision: of the products; `tf32x3` uses tensor cores with about the error of float32, `tf32` errs by 1e-3.

    Returns:
        value_s [P,G,S], partner_s [P,G,S], value_r [P,G,R], partner_r [P,G,R]; values float32, partners uint8. Of
        equals the one of the lowest index is taken, and a NaN before all numbers, as by `torch.argmax`.
    """
    (p, c, s), (g, _, r) = prob.shape, gal.shape
    if max(r, s) > MAX_CELLS:
        raise ValueError(f"maps of {s} and {r} cells; at most {MAX_CELLS} can be compared on a GPU")
    value_s, value_r = prob.new_empty(p, g, s), prob.new_empty(p, g, r)
    partner_s, partner_r = (torch.empty_like(x, dtype=torch.uint8) for x in (value_s, value_r))
    rows = max(16, triton.next_power_of_2(r))
    columns = min(max(16, triton.next_power_of_2(s)), 64, TILE // rows)
    _launch(
        _choose,
        (p * g,),
        prob.contiguous(),
        gal.contiguous(),
        *(None if x is None else x.contiguous() for x in (log_p, log_g, bias)),
        *(value_s, partner_s, value_r, partner_r, p, g),
        C=c,
        R=r,
        S=s,
        ROWS=rows,
        COLUMNS=columns,
        STEP=STEP,
        GROUP=GROUP,
        PRECISION=precision,
    )
    return value_s, partner_s, value_r, partner_r


def backward(
    prob: Tensor,
    gal: Tensor,
    partner_s: Tensor,
    partner_r: Tensor,
    grad_value_s: Tensor,
    grad_value_r: Tensor,
    need_bias: bool,
    precision: DotPrecision = "ieee",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the maps and of the bias from those of the values.

    Args:
        prob, gal, precision: as for `forward`; partner_s, partner_r: what it returned.
        grad_value_s, grad_value_r: [P,G,S], [P,G,R].

    Returns:
        grad_prob [P,C,S], grad_gal [G,C,R], grad_bias [R,S] or None.
    """
    prob, gal = prob.contiguous(), gal.contiguous()
    of_s = partner_s.contiguous(), grad_value_s.contiguous()
    of_r = partner_r.contiguous(), grad_value_r.contiguous()
    return (
        _gradient(prob, gal, of_s, of_r, (len(gal), 1), precision),
        _gradient(gal, prob, of_r, of_s, (1, len(gal)), precision),
        _gradient_of_bias(of_s, of_r) if need_bias else None,
    )


Choices = tuple[Tensor, Tensor]  # the partners and the gradients of the values of one side's cells


def _gradient(
    own: Tensor,
    other: Tensor,
    of_own: Choices,
    of_other: Choices,
    strides: tuple[int, int],
    precision: DotPrecision,
) -> Tensor:
    """The gradient of the maps `own`; the pair of faces i and j is number i * strides[0] + j * strides[1]."""
    faces, channels, cells = own.shape
    gradient = torch.empty_like(own)
    _launch(
        _gather,
        (faces, triton.cdiv(channels, GRADIENT_CHANNELS), triton.cdiv(cells, GRADIENT_CELLS)),
        other,
        *of_own,
        *of_other,
        *(gradient, len(other), *strides),
        C=channels,
        OWN=cells,
        OTHER=other.shape[2],
        CHANNELS=GRADIENT_CHANNELS,
        CELLS=GRADIENT_CELLS,
        STEP=STEP,
        PRECISION=precision,
    )
    return gradient


def _gradient_of_bias(of_s: Choices, of_r: Choices) -> Tensor:
    """The sum of the pairs' gradients [R,S], in PARTS sums over every PARTS-th pair and then over those."""
    pairs, s, r = of_s[0].shape[:2].numel(), of_s[0].shape[2], of_r[0].shape[2]
    parts = of_s[1].new_empty(min(PARTS, pairs), r, s)
    _launch(
        _sum_pairs,
        (len(parts), triton.cdiv(r, STEP), triton.cdiv(s, GRADIENT_CELLS)),
        *of_s,
        *of_r,
        *(parts, pairs, len(parts)),
        R=r,
        S=s,
        ROWS=STEP,
        COLUMNS=GRADIENT_CELLS,
    )
    return parts.sum(0)


def _launch(kernel: Any, grid: tuple[Any, ...], first: Tensor, *others: object, **constants: object) -> None:
    """Start a kernel on the card that holds its first argument."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *others, **constants, num_warps=WARPS, num_stages=2)


@triton.jit
def _choose(
    prob,
    gal,
    log_p,
    log_g,
    bias,
    value_s,
    partner_s,
    value_r,
    partner_r,
    P,
    G,
    C: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One pair: S' in tiles [ROWS,COLUMNS], all r by COLUMNS of the s."""
    pid = tl.program_id(0)
    p, g = tl.swizzle2d(pid // G, pid % G, P, G, GROUP)  # pyright: ignore[reportGeneralTypeIssues]
    p, g = p.to(tl.int64), g.to(tl.int64)  # a million pairs of large maps have more than 2^31 values
    pair = p * G + g
    r = tl.arange(0, ROWS)
    is_r = r < R
    # What is added for the choice alone; padding is never chosen.
    for_s = tl.where(is_r, 0.0, float("-inf"))
    if log_g is not None:
        for_s += tl.load(log_g + g * R + r, mask=is_r, other=0.0)
    best_r = tl.full([ROWS], float("-inf"), tl.float32)
    best_value_r = tl.zeros([ROWS], tl.float32)
    best_partner_r = tl.zeros([ROWS], tl.int32)
    for start in range(0, S, COLUMNS):
        s = start + tl.arange(0, COLUMNS)
        is_s = s < S
        value = tl.zeros([ROWS, COLUMNS], tl.float32)
        if bias is not None:
            value += tl.load(
                bias + r[:, None] * S + s[None, :], mask=is_r[:, None] & is_s[None, :], other=0.0
            )
        for first in range(0, C, STEP):
            c = first + tl.arange(0, STEP)[:, None]
            a = tl.load(gal + (g * C + c) * R + r[None, :], mask=(c < C) & is_r[None, :], other=0.0)
            b = tl.load(prob + (p * C + c) * S + s[None, :], mask=(c < C) & is_s[None, :], other=0.0)
            value = tl.dot(tl.trans(a), b, value, input_precision=PRECISION)
        # A NaN is chosen and so reaches the score, where it is noticed. Not infinity: that would survive in the padding.
        judged = tl.where(value == value, value, 3e38)

        _, partner = tl.max(judged + for_s[:, None], 0, return_indices=True)
        chosen = tl.sum(tl.where(r[:, None] == partner[None, :], value, 0.0), 0)
        tl.store(value_s + pair * S + s, chosen, mask=is_s)
        tl.store(partner_s + pair * S + s, partner.to(tl.uint8), mask=is_s)

        for_r = tl.where(is_s, 0.0, float("-inf"))
        if log_p is not None:
            for_r += tl.load(log_p + p * S + s, mask=is_s, other=0.0)
        best, partner = tl.max(judged + for_r[None, :], 1, return_indices=True)
        chosen = tl.sum(tl.where(start + partner[:, None] == s[None, :], value, 0.0), 1)
        better = best > best_r  # among equals the earlier tile, whose cells come first
        best_r = tl.where(better, best, best_r)
        best_value_r = tl.where(better, chosen, best_value_r)
        best_partner_r = tl.where(better, start + partner, best_partner_r)
    tl.store(value_r + pair * R + r, best_value_r, mask=is_r)
    tl.store(partner_r + pair * R + r, best_partner_r.to(tl.uint8), mask=is_r)


@triton.jit
def _incoming(
    pair,
    row,
    column,
    partner_of_column,
    grad_of_column,
    partner_of_row,
    grad_of_row,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of a pair's S' at the cells `row` of one face and `column` of the other, from both choices."""
    is_row, is_column = row < ROWS, column < COLUMNS
    row_of = tl.load(partner_of_column + pair * COLUMNS + column, mask=is_column, other=0).to(tl.int32)
    of_column = tl.load(grad_of_column + pair * COLUMNS + column, mask=is_column, other=0.0)
    column_of = tl.load(partner_of_row + pair * ROWS + row, mask=is_row, other=0).to(tl.int32)
    of_row = tl.load(grad_of_row + pair * ROWS + row, mask=is_row, other=0.0)
    return tl.where(row[:, None] == row_of[None, :], of_column[None, :], 0.0) + tl.where(
        column_of[:, None] == column[None, :], of_row[:, None], 0.0
    )


@triton.jit
def _gather(
    other,
    partner_of_own,
    grad_of_own,
    partner_of_other,
    grad_of_other,
    gradient,
    others,
    own_stride,
    other_stride,
    C: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    CHANNELS: tl.constexpr,
    CELLS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block [CHANNELS,CELLS] of one map's gradient, over all faces it was compared with."""
    own = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    cell = tl.program_id(2) * CELLS + tl.arange(0, CELLS)
    total = tl.zeros([CHANNELS, CELLS], tl.float32)
    for i in range(others):
        face = tl.full([], i, tl.int64)
        pair = own * own_stride + face * other_stride
        for start in range(0, OTHER, STEP):
            partner = start + tl.arange(0, STEP)
            incoming = _incoming(
                pair, partner, cell, partner_of_own, grad_of_own, partner_of_other, grad_of_other, OTHER, OWN
            )
            inside = (c < C) & (partner < OTHER)[None, :]
            features = tl.load(other + (face * C + c) * OTHER + partner[None, :], mask=inside, other=0.0)
            total = tl.dot(features, incoming, total, input_precision=PRECISION)
    tl.store(gradient + (own * C + c) * OWN + cell[None, :], total, mask=(c < C) & (cell < OWN)[None, :])


@triton.jit
def _sum_pairs(
    partner_s,
    grad_s,
    partner_r,
    grad_r,
    parts,
    pairs,
    stride,
    R: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A block [ROWS,COLUMNS] of the sum over every `stride`-th pair."""
    part = tl.program_id(0)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    s = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in range(part, pairs, stride):
        total += _incoming(tl.full([], i, tl.int64), r, s, partner_s, grad_s, partner_r, grad_r, R, S)
    inside = (r < R)[:, None] & (s < S)[None, :]
    tl.store(parts + (part * R + r[:, None]) * S + s[None, :], total, mask=inside)
