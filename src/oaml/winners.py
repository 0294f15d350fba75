"""Winning partners: which cell of one face resembles a cell of the other most. Nearly all of QAConv's work is here.

The plain formulation holds the similarity of every two cells of every pair, [P,G,R,S]: 2.5 GB for 128 against 128 faces on 14x14.
Only the best of each row and column is ever used, so similarities are made in blocks that stay in the cache, and what is
kept of a pair is a number and an index for each cell, in training as well: the backward pass rebuilds the gradient of a
block, which is zero but for the winners, from the indices.

Shapes: P probes, G gallery faces, N pairs; C channels; S cells of a probe, R of a gallery face; at most 255 cells.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 21
"""Similarities held at once: with the copies of them that a step needs they fit into a core's own cache."""
GALLERY_BLOCK = 32
"""Gallery faces of a block: the fastest running index of the similarities, so a few vectors of the CPU."""


class Winners(NamedTuple):
    """Of every cell the partner that resembles it most, visibility counted, and how much it does, visibility not counted."""

    value_s: Tensor
    """Similarity, position bias included, of probe cell s with its partner, [P,G,S]."""
    partner_s: Tensor
    """Gallery cell r that is the partner, uint8 [P,G,S]; of equals any."""
    value_r: Tensor
    """[P,G,R], the same for gallery cells."""
    partner_r: Tensor
    """Probe cell s, uint8 [P,G,R]."""


def winners(
    prob: Tensor,
    gal: Tensor,
    log_p: Tensor | None = None,
    log_g: Tensor | None = None,
    bias: Tensor | None = None,
) -> Winners:
    """Every probe against every gallery face.

    Args:
        prob, gal: [P,C,S] and [G,C,R], float32 or float64; bfloat16 without gradients.
        log_p, log_g: what a cell's visibility adds to the choice, [P,S] and [G,R], of the same precision; never to the similarity,
            and no gradient goes there. None: nothing.
        bias: bonus of gallery cell r for probe cell s, [R,S], or None.

    Returns:
        With gradients of both values to prob, gal and bias. Values are float32 for bfloat16.
    """
    return Winners(*_AllPairs.apply(prob, gal, log_p, log_g, bias))


def winners_of_pairs(
    prob: Tensor,
    gal: Tensor,
    log_p: Tensor | None = None,
    log_g: Tensor | None = None,
    bias: Tensor | None = None,
) -> Winners:
    """Row i against row i, without gradients: [N,C,S] and [N,C,R], logs [N,S] and [N,R] -> fields [N,S] and [N,R]."""
    cells_s, cells_r = prob.shape[2], gal.shape[2]
    block = max(1, BLOCK_BYTES // (4 * cells_s * cells_r))
    found = _room(prob, (len(prob),), cells_s, cells_r)
    for n in _blocks(len(prob), block):
        similarity = _with_bias(torch.bmm(prob[n].transpose(1, 2), gal[n]), None if bias is None else bias.T)
        found[0][n], found[1][n] = _best(similarity, 2, None if log_g is None else log_g[n, None])
        found[2][n], found[3][n] = _best(similarity, 1, None if log_p is None else log_p[n, :, None])
    return found


class _AllPairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, prob: Tensor, gal: Tensor, log_p: Tensor | None, log_g: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        found = _forward(prob, gal, log_p, log_g, bias)
        ctx.save_for_backward(prob, gal, found.partner_s, found.partner_r)
        ctx.mark_non_differentiable(found.partner_s, found.partner_r)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        prob, gal, partner_s, partner_r = ctx.saved_tensors
        grad_prob, grad_gal, grad_bias = _backward(prob, gal, partner_s, partner_r, grads[0], grads[2])
        return grad_prob, grad_gal, None, None, grad_bias if ctx.needs_input_grad[4] else None


def _forward(
    prob: Tensor, gal: Tensor, log_p: Tensor | None, log_g: Tensor | None, bias: Tensor | None
) -> Winners:
    cells_s, cells_r = prob.shape[2], gal.shape[2]
    found = _room(prob, (len(prob), len(gal)), cells_s, cells_r)
    blocks = [
        (g, _cells_first(gal[g]).flatten(0, 1), None if log_g is None else log_g[g].T.contiguous())
        for g in _blocks(len(gal), GALLERY_BLOCK)
    ]
    for p in _blocks(len(prob), _probe_block(cells_s, cells_r)):
        rows = _cells_first(prob[p]).flatten(0, 1)
        own = None if log_p is None else log_p[p].T[:, :, None, None]
        for g, columns, log in blocks:
            similarity = (rows @ columns.T).view(cells_s, -1, cells_r, g.stop - g.start)
            similarity = _with_bias(similarity, None if bias is None else bias.T[:, None, :, None])
            value, partner = _best(similarity, 2, log)  # [S,p,g]
            found.value_s[p, g], found.partner_s[p, g] = value.permute(1, 2, 0), partner.permute(1, 2, 0)
            value, partner = _best(similarity, 0, own)  # [p,R,g]
            found.value_r[p, g], found.partner_r[p, g] = value.transpose(1, 2), partner.transpose(1, 2)
    return found


def _backward(
    prob: Tensor, gal: Tensor, partner_s: Tensor, partner_r: Tensor, grad_s: Tensor, grad_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    cells_s, cells_r = prob.shape[2], gal.shape[2]
    grad_prob, grad_gal = torch.zeros_like(prob), torch.zeros_like(gal)
    grad_bias = prob.new_zeros(cells_s, cells_r)
    blocks = [(g, _cells_first(gal[g])) for g in _blocks(len(gal), GALLERY_BLOCK)]
    for p in _blocks(len(prob), _probe_block(cells_s, cells_r)):
        rows = _cells_first(prob[p])
        grad_rows = torch.zeros_like(rows)
        for g, block in blocks:
            grad = prob.new_zeros(*rows.shape[:2], *block.shape[:2])  # of the similarities [S,p,R,g]
            grad.scatter_(2, _cells_third(partner_s[p, g]).long(), _cells_third(grad_s[p, g]))
            grad.scatter_add_(
                0, partner_r[p, g].permute(0, 2, 1)[None].long(), grad_r[p, g].permute(0, 2, 1)[None]
            )
            grad_bias += grad.sum((1, 3))
            flat = grad.flatten(2).flatten(0, 1)
            grad_rows += (flat @ block.flatten(0, 1)).view_as(rows)
            grad_gal[g] += (flat.T @ rows.flatten(0, 1)).view_as(block).permute(1, 2, 0)
        grad_prob[p] = grad_rows.permute(1, 2, 0)
    return grad_prob, grad_gal, grad_bias.T


def _room(like: Tensor, pairs: tuple[int, ...], cells_s: int, cells_r: int) -> Winners:
    kind = torch.float32 if like.dtype == torch.bfloat16 else like.dtype
    return Winners(
        like.new_empty(*pairs, cells_s, dtype=kind),
        like.new_empty(*pairs, cells_s, dtype=torch.uint8),
        like.new_empty(*pairs, cells_r, dtype=kind),
        like.new_empty(*pairs, cells_r, dtype=torch.uint8),
    )


def _cells_first(maps: Tensor) -> Tensor:
    """[B,C,cells] -> [cells,B,C]: reductions over cells then run along vectors of faces."""
    return maps.permute(2, 0, 1).contiguous()


def _cells_third(values: Tensor) -> Tensor:
    """[p,g,S] -> [S,p,1,g]."""
    return values.permute(2, 0, 1)[:, :, None]


def _with_bias(similarity: Tensor, bias: Tensor | None) -> Tensor:
    similarity = similarity.float() if similarity.dtype == torch.bfloat16 else similarity
    return similarity if bias is None else similarity.add_(bias)


def _best(similarity: Tensor, dim: int, log: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where `similarity + log` is largest along a dimension: the similarity there, and its index; the dimension is dropped.

    The lowest bits of the sum are replaced by the index, so that one maximum finds both: `max` with indices isn't made for vectors
    of the CPU and is ten times slower. Numbers that agree in all other bits (17 at 49 cells) count as equal.
    """
    cells = similarity.shape[dim]
    mask = (1 << (cells - 1).bit_length()) - 1
    whole = torch.int64 if similarity.dtype == torch.float64 else torch.int32
    shape = [cells if d == dim else 1 for d in range(similarity.ndim)]
    index = torch.arange(cells, dtype=whole, device=similarity.device).view(shape)
    chosen = similarity.clone() if log is None else similarity + log
    packed = chosen.view(whole).bitwise_and_(~mask).bitwise_or_(index).view(similarity.dtype)
    # a NaN has any index
    partner = packed.amax(dim, keepdim=True).view(whole).bitwise_and_(mask).clamp_max_(cells - 1)
    value = similarity.gather(dim, partner.long())
    return value.squeeze(dim), partner.squeeze(dim).to(torch.uint8)


def _probe_block(cells_s: int, cells_r: int) -> int:
    return max(1, BLOCK_BYTES // (4 * cells_s * cells_r * GALLERY_BLOCK))


def _blocks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
