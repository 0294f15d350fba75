"""The best matches against loops over every pair of cells, their gradients against those of the plain formulation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.kernels import native
from oaml.kernels.best_matches import BestMatches, best_matches, listed_best_matches, paired_best_matches
from oaml.qaconv import METHODS, Method, QAConv

GRIDS = [
    (1, 1, 1, 1),
    (1, 2, 1, 5),
    (3, 1, 7, 1),
    (5, 4, 15, 15),
    (18, 9, 49, 49),
    (3, 4, 196, 196),
    (2, 3, 12, 35),
]
"""P, G, S, R; 18 and 9 faces are no whole number of blocks of 8 or 16."""


@pytest.fixture(params=["torch", "native", "torch, 2 threads", "native, 2 threads"], autouse=True)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything holds for both implementations, alone and spread over threads."""
    if "torch" in request.param:
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no compiler here")
    before = torch.get_num_threads()
    torch.set_num_threads(2 if "2 threads" in request.param else 1)
    yield
    torch.set_num_threads(before)


class Case(NamedTuple):
    """Arguments of `best_matches`."""

    prob: Tensor
    gal: Tensor
    log_p: Tensor | None
    log_g: Tensor | None
    bias: Tensor | None


def case(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    visible: str = "some",
    bias: bool = True,
    channels: int = 6,
) -> Case:
    P, G, S, R = shape
    generator = torch.Generator().manual_seed(P + 10 * G + 100 * S + 1000 * R)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def log(count: int, cells: int) -> Tensor | None:
        share = torch.rand((count, cells), generator=generator, dtype=torch.float64)
        share = {"some": share, "all": torch.ones_like(share), "nothing": 0 * share, "no maps": share}[
            visible
        ]
        return None if visible == "no maps" else (0.3 * share.clamp_min(1e-3).log()).to(dtype)

    return Case(
        F.normalize(random(P, channels, S), dim=1).to(dtype),
        F.normalize(random(G, channels, R), dim=1).to(dtype),
        log(P, S),
        log(G, R),
        (0.2 * random(R, S)).to(dtype) if bias else None,
    )


def similarities(problem: Case) -> Tensor:
    """[P,G,R,S]."""
    similarity = torch.einsum("pcs,gcr->pgrs", problem.prob, problem.gal)
    return similarity if problem.bias is None else similarity + problem.bias


def loops(problem: Case) -> BestMatches:
    """The definition, cell by cell, on float64."""
    double = Case(*(None if x is None else x.double() for x in problem))  # type: ignore[arg-type]
    S = similarities(double)
    values_s, values_r = S.new_zeros(*S.shape[:2], S.shape[3]), S.new_zeros(S.shape[:3])
    partners_s, partners_r = values_s.to(torch.uint8), values_r.to(torch.uint8)
    for p in range(S.shape[0]):
        for g in range(S.shape[1]):
            table = S[p, g].tolist()
            log_p = [0.0] * S.shape[3] if double.log_p is None else double.log_p[p].tolist()
            log_g = [0.0] * S.shape[2] if double.log_g is None else double.log_g[g].tolist()
            for s in range(S.shape[3]):
                judged = [row[s] + log for row, log in zip(table, log_g, strict=True)]
                r = judged.index(max(judged))
                values_s[p, g, s], partners_s[p, g, s] = table[r][s], r
            for r, row in enumerate(table):
                judged = [x + log for x, log in zip(row, log_p, strict=True)]
                s = judged.index(max(judged))
                values_r[p, g, r], partners_r[p, g, r] = row[s], s
    return BestMatches(values_s, partners_s, values_r, partners_r)


def plain(problem: Case) -> BestMatches:
    """One large tensor and two maxima; what training and scoring did before."""
    S = similarities(problem)
    judged_s = S if problem.log_g is None else S + problem.log_g[None, :, :, None]
    judged_r = S if problem.log_p is None else S + problem.log_p[:, None, None]
    of_s, of_r = judged_s.argmax(2), judged_r.argmax(3)
    return BestMatches(
        S.gather(2, of_s[:, :, None]).squeeze(2), of_s, S.gather(3, of_r[..., None]).squeeze(3), of_r
    )


def assert_same(matches: BestMatches, expected: BestMatches, tolerance: float) -> None:
    for value, wanted in ((matches.value_s, expected.value_s), (matches.value_r, expected.value_r)):
        torch.testing.assert_close(value.double(), wanted.double(), rtol=0, atol=tolerance)
    for partner, wanted in ((matches.partner_s, expected.partner_s), (matches.partner_r, expected.partner_r)):
        assert partner.dtype == torch.uint8
        assert torch.equal(partner.long(), wanted.long())


def row_by_row(problem: Case) -> tuple[Case, int]:
    n = min(len(problem.prob), len(problem.gal))
    return Case(*(x if x is None or i == 4 else x[:n] for i, x in enumerate(problem))), n  # type: ignore[arg-type]


# --- values and partners


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("visible", ["some", "all", "nothing", "no maps"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_loops_over_cells(
    shape: tuple[int, int, int, int], visible: str, bias: bool, dtype: torch.dtype
) -> None:
    problem = case(shape, dtype, visible=visible, bias=bias)
    expected, tolerance = loops(problem), 1e-6 if dtype == torch.float32 else 1e-14
    matches = best_matches(*problem)
    assert matches.value_s.dtype == dtype
    assert_same(matches, expected, tolerance)
    pairs, n = row_by_row(problem)
    diagonal = BestMatches(*(torch.stack([x[i, i] for i in range(n)])[:, None] for x in expected))
    assert_same(paired_best_matches(*pairs), diagonal, tolerance)
    first, second = (torch.arange(3) % len(faces) for faces in (problem.prob, problem.gal))
    listed = BestMatches(*(x[first, second][:, None] for x in expected))
    for order in (slice(None), torch.tensor([2, 0, 0, 1])):
        matches = listed_best_matches(*problem)(first[order], second[order])
        assert_same(matches, BestMatches(*(x[order] for x in listed)), tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_keeps_three_digits(bias: bool) -> None:
    """Values within 2^-7 of the exact ones (maps and result round to 8 bits each), partners that are as good within that."""
    problem = case((9, 5, 49, 49), bias=bias, channels=128)
    matches, exact, S = best_matches(*problem, torch.bfloat16), best_matches(*problem), similarities(problem)
    assert matches.value_s.dtype == matches.value_r.dtype == torch.float32
    assert problem.log_g is not None
    assert problem.log_p is not None
    for judged, value, partner, best, dim in (
        (S + problem.log_g[None, :, :, None], matches.value_s, matches.partner_s, exact.partner_s, 2),
        (S + problem.log_p[:, None, None], matches.value_r, matches.partner_r, exact.partner_r, 3),
    ):
        place, best = partner.long().unsqueeze(dim), best.long().unsqueeze(dim)
        torch.testing.assert_close(value, S.gather(dim, place).squeeze(dim), rtol=0, atol=2**-7)
        torch.testing.assert_close(judged.gather(dim, place), judged.gather(dim, best), rtol=0, atol=2**-6)


@pytest.mark.parametrize("cells", [1, 49, 196])
def test_of_equals_the_first_wins(cells: int) -> None:
    ones = torch.ones(3, 1, cells)
    matches = best_matches(ones, ones)
    assert not matches.partner_s.any()
    assert not matches.partner_r.any()
    late = torch.zeros(3, cells)
    late[:, cells // 2 :] = 1  # equal again, from the middle on
    for matches in (best_matches(ones, ones, late, late), paired_best_matches(ones, ones, late, late)):
        assert (matches.partner_s == cells // 2).all()
        assert (matches.partner_r == cells // 2).all()
        assert (matches.value_s == 1).all()


def test_nothing_to_compare() -> None:
    problem = case((2, 3, 4, 5))
    none = best_matches(problem.prob[:0], problem.gal, None, None, problem.bias)
    assert [tuple(x.shape) for x in none] == [(0, 3, 4)] * 2 + [(0, 3, 5)] * 2
    assert paired_best_matches(problem.prob[:0], problem.gal[:0]).value_r.shape == (0, 1, 5)


def test_a_damaged_cell_is_not_hidden() -> None:
    problem = case((2, 2, 12, 12))
    problem.prob[1, :, 7] = torch.nan
    for matches in (best_matches(*problem), paired_best_matches(*problem)):
        assert matches.value_s[1].isnan().any(-1).all()
        assert matches.value_s[0].isfinite().all()


def test_too_many_cells() -> None:
    with pytest.raises(ValueError, match="at most 256"):
        best_matches(torch.ones(1, 1, 257), torch.ones(1, 1, 4))


def test_both_implementations_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: a value is read where the partner is, and partners are the first of the best."""
    for dtype in (torch.float32, torch.bfloat16):  # rounded to bfloat16, many are equal
        for shape in GRIDS:
            problem = case(shape, channels=16)
            ours = best_matches(*problem, dtype)
            with monkeypatch.context() as without:
                without.setattr(native, "library", lambda: None)
                for mine, theirs in zip(ours, best_matches(*problem, dtype), strict=True):
                    assert torch.equal(mine, theirs)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if native.library() is None:
        pytest.skip("no compiler, or not this implementation's turn")
    fresh = native.library.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fresh() is not None
    assert [path.suffix for path in (tmp_path / "oaml").iterdir()] == [".so"]
    (tmp_path / "broken.cpp").write_text("no C++")
    for sources, path in (
        ([tmp_path / "broken.cpp"], os.environ["PATH"]),
        ([*native.SOURCES, tmp_path / "missing.cpp"], os.environ["PATH"]),
        (native.SOURCES, str(tmp_path)),
    ):
        monkeypatch.setattr(native, "SOURCES", sources)
        monkeypatch.setenv("PATH", path)
        assert fresh() is None
        assert len(list((tmp_path / "oaml").iterdir())) == 1
    monkeypatch.undo()
    monkeypatch.setenv("OAML_NATIVE", "0")
    assert fresh() is None


# --- gradients


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("visible", ["some", "no maps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_the_plain_formulation(
    shape: tuple[int, int, int, int], visible: str, dtype: torch.dtype
) -> None:
    problem = case(shape, dtype, visible=visible)
    assert problem.bias is not None
    leaves = [x.requires_grad_() for x in (problem.prob, problem.gal, problem.bias)]
    gradients = []
    for matches in (best_matches(*problem), plain(problem)):
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (torch.randn(x.shape, generator=generator, dtype=dtype) * x.square()).sum()
            for x in (matches.value_s, matches.value_r)
        )
        assert isinstance(loss, Tensor)
        gradients.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*gradients, strict=True):
        close = (1e-4 if dtype == torch.float32 else 1e-12) * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=close)


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias: bool) -> None:
    problem = case((2, 3, 4, 3), torch.float64, bias=bias)
    leaves = [x for x in (problem.prob, problem.gal, problem.bias) if x is not None]

    def values(prob: Tensor, gal: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        matches = best_matches(prob, gal, problem.log_p, problem.log_g, bias)
        return matches.value_s, matches.value_r

    assert torch.autograd.gradcheck(values, [x.requires_grad_() for x in leaves])


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_of_the_matcher(method: Method) -> None:
    matcher = QAConv(3, 2, 3, method, position_bias=method == "normalized").double().eval()
    generator = torch.Generator().manual_seed(1)
    random: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    p, g = torch.randn((2, 3, 2, 3), **random), torch.randn((3, 3, 2, 3), **random)
    v_p, v_g = torch.rand((2, 1, 2, 3), **random), torch.rand((3, 1, 2, 3), **random)
    assert torch.autograd.gradcheck(matcher, [x.requires_grad_() for x in (p, g, v_p, v_g)])


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_against_itself(method: Method) -> None:
    """One tensor on both sides gets what two equal ones get together."""
    matcher = QAConv(3, 2, 3, method).double().eval()
    x = torch.randn((4, 3, 2, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, two, three = (x.clone().requires_grad_() for _ in range(3))
    weight = torch.arange(16, dtype=torch.float64).view(4, 4)
    (matcher(one, one) * weight).sum().backward()
    (matcher(two, three) * weight).sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    assert three.grad is not None
    torch.testing.assert_close(one.grad, two.grad + three.grad)


def test_preferences_get_no_gradient() -> None:
    problem = case((2, 3, 6, 5))
    assert problem.log_p is not None
    problem.prob.requires_grad_()
    problem.log_p.requires_grad_()
    best_matches(*problem).value_s.sum().backward()
    assert problem.prob.grad is not None
    assert problem.log_p.grad is None


def test_what_is_remembered_grows_with_cells_and_not_with_their_square() -> None:
    problem = case((20, 20, 196, 196))
    problem.prob.requires_grad_()
    saved: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        best_matches(*problem)
    partners = 2 * 20 * 20 * 196
    maps = problem.prob.numel() + problem.gal.numel()
    assert sum(x.numel() for x in saved) == partners + maps
    assert sum(x.numel() * x.element_size() for x in saved) == partners + 4 * maps
