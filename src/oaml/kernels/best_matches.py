"""The part of QAConv that takes time: every cell's best match on the other face, without holding all correlations.

All cells of P probes against all cells of G gallery faces are P*G*R*S correlations, of which QAConv uses the P*G*(R+S) best. So
they are computed in blocks that stay in a processor's own cache, where the best are picked before the next block takes
their place. Training keeps which cells matched, and nothing else: its gradients are the matrix products of the maps with the few
gradients of the best matches, block by block again. (The idea is that of Dao et al., FlashAttention, 2022, with a maximum in the
place of the softmax.)

Shapes: P probes with S cells, G gallery faces with R cells, C channels, N pairs; at most 256 cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from oaml.kernels import native
from oaml.kernels.threads import one_thread_each

Task = TypeVar("Task")
Result = TypeVar("Result")
BLOCK_CELLS = 392
"""Cells on each side of a block: those of 8 faces of 7x7 cells, or of 2 of 14x14. Its correlations take 0.6 MB in float32. In
bfloat16 blocks have twice as many cells a side: products are so fast there that preparing their operands, once a block, takes
a share of the time worth saving (5 % at 512 channels, 8 % at 128)."""


class BestMatches(NamedTuple):
    """The best match of every cell. For pairs of faces row by row P is N and G is 1."""

    value_s: Tensor
    """[P,G,S]: similarity of probe cell s with its partner, position bias included, visibility not; float32 (float64)."""
    partner_s: Tensor
    """[P,G,S]: which gallery cell r that is; uint8."""
    value_r: Tensor
    """[P,G,R]: the same for gallery cell r."""
    partner_r: Tensor
    """[P,G,R]: its probe cell s."""


def best_matches(
    prob: Tensor,
    gal: Tensor,
    log_p: Tensor | None = None,
    log_g: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> BestMatches:
    """Every probe against every gallery face.

    With S'[p,g,r,s] = <gal[g,:,r], prob[p,:,s]> + bias[r,s], partner_s = argmax_r S' + log_g[g,r] and
    partner_r = argmax_s S' + log_p[p,s]; among equals the first.

    Args:
        prob, gal: [P,C,S] and [G,C,R], float32 or float64.
        log_p, log_g: [P,S] and [G,R], how much a cell is preferred as a partner. They get no gradient: which partner is
            chosen is no smooth function of them.
        bias: [R,S].
        dtype: what maps and correlations are rounded to: torch.bfloat16, or None for that of the maps. Values are float32
            (float64) all the same.

    Returns:
        values with gradients to prob, gal and bias; partners. Memory is O(P*G*(R+S)), in the backward pass too.
    """
    return BestMatches(*_BestMatches.apply(prob, gal, log_p, log_g, bias, dtype))


@torch.no_grad()
def paired_best_matches(
    prob: Tensor,
    gal: Tensor,
    log_p: Tensor | None = None,
    log_g: Tensor | None = None,
    bias: Tensor | None = None,
) -> BestMatches:
    """Probe i against gallery face i, without gradients: arguments as in `best_matches` with P = G = N, results with P = N, G = 1.

    Each pair is a matrix product of its own, so its numbers are the same whatever else is compared.
    """
    matches = _empty_matches(prob, gal, len(prob), 1)
    a, b = gal.transpose(1, 2), prob
    pick = _picker(a, log_p, log_g, bias, matches, paired=True)
    size = max(1, BLOCK_CELLS**2 // (a.shape[1] * b.shape[2]))

    def one_block(start: int) -> None:
        rows = slice(start, start + size)
        pick(torch.bmm(a[rows], b[rows])[:, :, None], start, 0)

    spread(one_block, range(0, len(prob), size), prob.device)
    return matches


@torch.no_grad()
def listed_best_matches(
    prob: Tensor,
    gal: Tensor,
    log_p: Tensor | None = None,
    log_g: Tensor | None = None,
    bias: Tensor | None = None,
) -> Callable[[Tensor, Tensor], BestMatches]:
    """For listed pairs, without gradients: arguments as in `best_matches`.

    Returns:
        a function of int64 [N] twice, the probe and the gallery face of each pair, that returns what `paired_best_matches` does. It
        is fastest where the pairs of one probe follow each other.
    """
    if not native.multiplies(prob):

        def gathered(first: Tensor, second: Tensor) -> BestMatches:
            first_log = None if log_p is None else log_p[first]
            second_log = None if log_g is None else log_g[second]
            return paired_best_matches(prob[first], gal[second], first_log, second_log, bias)

        return gathered
    pick = native.listed_picker(prob.mT, gal.mT, log_p, log_g, bias)

    def in_place(first: Tensor, second: Tensor) -> BestMatches:
        matches = _empty_matches(prob, gal, len(first), 1)
        pick(first, second, matches)
        return matches

    return in_place


class _BestMatches(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        prob: Tensor,
        gal: Tensor,
        log_p: Tensor | None,
        log_g: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, ...]:
        if _on_gpu(prob, dtype):
            from oaml.kernels import best_matches_triton

            matches = BestMatches(*best_matches_triton.forward(prob, gal, log_p, log_g, bias))
        else:
            matches = _BestMatches._on_cpu(prob, gal, log_p, log_g, bias, dtype)
        ctx.save_for_backward(prob, gal, matches.partner_s, matches.partner_r)
        ctx.mark_non_differentiable(matches.partner_s, matches.partner_r)
        return tuple(matches)

    @staticmethod
    def _on_cpu(
        prob: Tensor,
        gal: Tensor,
        log_p: Tensor | None,
        log_g: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype | None,
    ) -> BestMatches:
        matches = _empty_matches(prob, gal, len(prob), len(gal))
        a, b = _cells(gal, dtype), _cells(prob, dtype)

        pick = _picker(a, log_p, log_g, bias, matches, paired=False)
        probes = [(p.start, b[p].flatten(0, 1).T) for p in _face_blocks(b)]
        gallery = [(g.start, a[g].flatten(0, 1)) for g in _face_blocks(a)]

        def one_block(block: tuple[tuple[int, Tensor], tuple[int, Tensor]]) -> None:
            (first_p, columns), (first_g, rows) = block
            similarity = (rows @ columns).view(-1, a.shape[1], columns.shape[1] // b.shape[1], b.shape[1])
            pick(similarity, first_p, first_g)

        spread(one_block, [(p, g) for p in probes for g in gallery], prob.device)
        return matches

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_s: Tensor, _s: None, grad_r: Tensor, _r: None
    ) -> tuple[Tensor | None, ...]:
        prob, gal, partner_s, partner_r = ctx.saved_tensors
        if _on_gpu(prob, None):
            from oaml.kernels import best_matches_triton

            to_prob, to_gal, to_bias = best_matches_triton.backward(
                prob, gal, partner_s, partner_r, grad_s, grad_r, ctx.needs_input_grad[4]
            )
            return to_prob, to_gal, None, None, to_bias, None
        grads = BestMatches(grad_s.contiguous(), partner_s, grad_r.contiguous(), partner_r)
        gradients = _gradients_native if native.picks(prob.device, prob.dtype) else _gradients_torch
        to_a, to_b, to_bias = gradients(_cells(gal), _cells(prob), grads)
        to_bias = to_bias if ctx.needs_input_grad[4] else None
        return to_b.transpose(1, 2), to_a.transpose(1, 2), None, None, to_bias, None


def _on_gpu(maps: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether the Triton kernels do it: float32 on a GPU. Triton comes with torch's builds for GPUs, where it exists."""
    single = maps.dtype == torch.float32 and dtype in (None, torch.float32)
    return maps.is_cuda and single and find_spec("triton") is not None


def _gradients_torch(a: Tensor, b: Tensor, grads: BestMatches) -> tuple[Tensor, Tensor, Tensor]:
    """Gallery cells a [G,R,C], probe cells b [P,S,C] and gradients of the values -> gradients of a, of b and of the bias."""
    blocks = [(p, g) for p in _face_blocks(b) for g in _face_blocks(a)]
    threads = max(1, min(torch.get_num_threads(), len(blocks)))

    def share_of(thread: int) -> tuple[Tensor, Tensor, Tensor]:
        to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
        to_bias = a.new_zeros(a.shape[1], b.shape[1])
        for p, g in blocks[thread::threads]:
            part = BestMatches(*(x[p, g] for x in grads))
            # S' has a gradient where there is a best match and nowhere else: [g,R,p,S], nearly all zero
            grad = a.new_zeros(len(a[g]), a.shape[1], len(b[p]), b.shape[1])
            rows, columns = (x.transpose(0, 1)[:, None].long() for x in (part.partner_s, part.partner_r))
            grad.scatter_(1, rows, part.value_s.transpose(0, 1)[:, None])
            grad.scatter_add_(3, columns.permute(0, 3, 2, 1), part.value_r.permute(1, 2, 0)[..., None])
            to_bias += grad.sum((0, 2))
            grad = grad.flatten(2).flatten(0, 1)
            to_a[g].flatten(0, 1).addmm_(grad, b[p].flatten(0, 1))
            to_b[p].flatten(0, 1).addmm_(grad.T, a[g].flatten(0, 1))
        return to_a, to_b, to_bias

    # each thread adds up a share of its own, the same every time, so that no gradient depends on who was faster
    shares = zip(*spread(share_of, range(threads), a.device), strict=True)
    to_a, to_b, to_bias = (torch.stack(share).sum(0) for share in shares)
    return to_a, to_b, to_bias


def _gradients_native(a: Tensor, b: Tensor, grads: BestMatches) -> tuple[Tensor, Tensor, Tensor]:
    """As `_gradients_torch`, but each best match adds one cell of a face, times its gradient, to one of the other, and back."""
    to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
    to_bias = a.new_zeros(len(_face_blocks(b)), b.shape[1], a.shape[1])

    def to_probes(place: tuple[int, slice]) -> None:
        i, p = place
        of_s, by_s, of_r, by_r = (x[p] for x in grads)
        native.pull(to_b[p], a, of_s, by_s, of_r, by_r, to_bias[i])

    def to_gallery(g: slice) -> None:
        of_s, by_s, of_r, by_r = (x[:, g].transpose(0, 1) for x in grads)
        native.pull(to_a[g], b, of_r, by_r, of_s, by_s, None)

    spread(to_probes, enumerate(_face_blocks(b)), a.device)
    spread(to_gallery, _face_blocks(a), a.device)
    return to_a, to_b, to_bias.sum(0).T


def _picker(
    cells: Tensor,
    log_p: Tensor | None,
    log_g: Tensor | None,
    bias: Tensor | None,
    into: BestMatches,
    paired: bool,
) -> native.Picker:
    """A function that picks the best matches of a block of pairs; see `torch_picker`. Threads may call it at the same time."""
    fast = native.picks(cells.device, cells.dtype)
    make = native.picker if fast else torch_picker
    return make(cells.dtype, log_p, log_g, bias, into, paired)


def torch_picker(
    dtype: torch.dtype,
    log_p: Tensor | None,
    log_g: Tensor | None,
    bias: Tensor | None,
    into: native.Output,
    paired: bool,
) -> native.Picker:
    """A function that picks the best matches of a block of pairs. It is made once for all blocks.

    Args:
        dtype: of the similarities; the rest as in `best_matches` or `paired_best_matches`.
        into: the best matches of all blocks, to be filled.
        paired: pairs are compared row by row.

    Returns:
        a function of a block's similarities [g,R,p,S], which it may change, of its first probe and its first gallery face.
        If `paired`, p is 1, dimension 0 counts pairs, the second argument is the first pair and the third one 0.
    """

    def one_block(similarity: Tensor, first_p: int, first_g: int) -> None:
        many_g, _, many_p, _ = similarity.shape
        p = slice(first_p, first_p + (many_g if paired else many_p))
        g = p if paired else slice(first_g, first_g + many_g)
        similarity = similarity.to(into[0].dtype)
        if bias is not None:
            similarity += bias[:, None]
        to_r = None if log_g is None else log_g[g, :, None, None]
        to_s = None if log_p is None else (log_p[p, None] if paired else log_p[None, p]).mT[..., None]
        turned = similarity.permute(0, 3, 2, 1).contiguous()  # [g,S,p,R]
        matches = *_best(similarity, to_r), *_best(turned, to_s)  # [g,p,S] twice, [g,p,R] twice
        for to, x in zip(into, matches, strict=True):
            if paired:
                to[p] = x
            else:
                to[p, g] = x.transpose(0, 1)

    return one_block


def _best(x: Tensor, log: Tensor | None) -> tuple[Tensor, Tensor]:
    """Along dimension 1 the value with the largest x + log, and the first place that has it: [a,k,b,m] -> [a,b,m] twice.

    As `max` and `argmax`, in a sixth of their time: they compare number by number, `amax` whole vectors. The score less its
    maximum, times 2**120, is 0 in the places of the maximum and hugely negative elsewhere. Less the place, its maximum is minus
    the first of these places.
    """
    score = x.clone() if log is None else x + log
    score -= score.amax(1, keepdim=True)
    score *= 2.0**120
    score -= torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None, None]
    place = score.amax(1, keepdim=True).neg_().nan_to_num_(0).long()
    return x.gather(1, place).squeeze(1), place.squeeze(1)


def spread(function: Callable[[Task], Result], tasks: Iterable[Task], device: torch.device) -> list[Result]:
    """Results of a function of many tasks, in their order, without gradients.

    On a CPU the tasks are spread over as many threads as torch would use, and torch uses one thread in each. Small tasks are
    done faster that way than by threads that wait for each other in every operation.
    """

    def call(task: Task) -> Result:
        with torch.inference_mode():  # holds for one thread only
            return function(task)

    tasks = list(tasks)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or len(tasks) < 2:
        return [call(task) for task in tasks]
    with one_thread_each(threads) as pool:
        return list(pool.map(call, tasks))


def _empty_matches(prob: Tensor, gal: Tensor, p: int, g: int) -> BestMatches:
    """Uninitialised, [p,g,cells] each."""
    cells_s, cells_r = prob.shape[2], gal.shape[2]
    if max(cells_s, cells_r) > 256:
        raise ValueError(f"faces of {cells_s} and {cells_r} cells; at most 256 can be compared")
    dtype = torch.float64 if prob.dtype == torch.float64 else torch.float32
    new = prob.new_empty
    return BestMatches(
        new(p, g, cells_s, dtype=dtype),
        new(p, g, cells_s, dtype=torch.uint8),
        new(p, g, cells_r, dtype=dtype),
        new(p, g, cells_r, dtype=torch.uint8),
    )


def _cells(maps: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[B,C,S] -> [B,S,C], cell after cell in memory; no copy of maps that are laid out channels last."""
    return maps.to(dtype or maps.dtype).transpose(1, 2).contiguous()


def _face_blocks(cells: Tensor) -> list[slice]:
    """The faces of [B,cells,C] in blocks of about `BLOCK_CELLS` cells."""
    size = max(1, BLOCK_CELLS * (2 if cells.dtype == torch.bfloat16 else 1) // cells.shape[1])
    return [slice(i, i + size) for i in range(0, len(cells), size)]
