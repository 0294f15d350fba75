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
from oaml.kernels.best_matches import BestMatches, best_matches, pair_best_matches, paired_best_matches
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
    """What `best_matches` is given."""

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


def similarities(given: Case) -> Tensor:
    """[P,G,R,S]."""
    found = torch.einsum("pcs,gcr->pgrs", given.prob, given.gal)
    return found if given.bias is None else found + given.bias


def loops(given: Case) -> BestMatches:
    """The definition, cell by cell, on float64."""
    double = Case(*(None if x is None else x.double() for x in given))  # type: ignore[arg-type]
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


def plain(given: Case) -> BestMatches:
    """One large tensor and two maxima; what training and scoring did before."""
    S = similarities(given)
    judged_s = S if given.log_g is None else S + given.log_g[None, :, :, None]
    judged_r = S if given.log_p is None else S + given.log_p[:, None, None]
    of_s, of_r = judged_s.argmax(2), judged_r.argmax(3)
    return BestMatches(
        S.gather(2, of_s[:, :, None]).squeeze(2), of_s, S.gather(3, of_r[..., None]).squeeze(3), of_r
    )


def assert_same(found: BestMatches, expected: BestMatches, tolerance: float) -> None:
    for value, wanted in ((found.value_s, expected.value_s), (found.value_r, expected.value_r)):
        torch.testing.assert_close(value.double(), wanted.double(), rtol=0, atol=tolerance)
    for partner, wanted in ((found.partner_s, expected.partner_s), (found.partner_r, expected.partner_r)):
        assert partner.dtype == torch.uint8
        assert torch.equal(partner.long(), wanted.long())


def row_by_row(given: Case) -> tuple[Case, int]:
    n = min(len(given.prob), len(given.gal))
    return Case(*(x if x is None or i == 4 else x[:n] for i, x in enumerate(given))), n  # type: ignore[arg-type]


# --- values and partners


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("visible", ["some", "all", "nothing", "no maps"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_loops_over_cells(
    shape: tuple[int, int, int, int], visible: str, bias: bool, dtype: torch.dtype
) -> None:
    given = case(shape, dtype, visible=visible, bias=bias)
    expected, tolerance = loops(given), 1e-6 if dtype == torch.float32 else 1e-14
    found = best_matches(*given)
    assert found.value_s.dtype == dtype
    assert_same(found, expected, tolerance)
    pairs, n = row_by_row(given)
    diagonal = BestMatches(*(torch.stack([x[i, i] for i in range(n)])[:, None] for x in expected))
    assert_same(paired_best_matches(*pairs), diagonal, tolerance)
    first, second = (torch.arange(3) % len(faces) for faces in (given.prob, given.gal))
    some = BestMatches(*(x[first, second][:, None] for x in expected))
    for order in (slice(None), torch.tensor([2, 0, 0, 1])):
        found = pair_best_matches(*given)(first[order], second[order])
        assert_same(found, BestMatches(*(x[order] for x in some)), tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_keeps_three_digits(bias: bool) -> None:
    """Values within 2^-7 of the exact ones (maps and result round to 8 bits each), partners that are as good within that."""
    given = case((9, 5, 49, 49), bias=bias, channels=128)
    found, exact, S = best_matches(*given, torch.bfloat16), best_matches(*given), similarities(given)
    assert found.value_s.dtype == found.value_r.dtype == torch.float32
    assert given.log_g is not None
    assert given.log_p is not None
    for judged, value, partner, best, dim in (
        (S + given.log_g[None, :, :, None], found.value_s, found.partner_s, exact.partner_s, 2),
        (S + given.log_p[:, None, None], found.value_r, found.partner_r, exact.partner_r, 3),
    ):
        place, best = partner.long().unsqueeze(dim), best.long().unsqueeze(dim)
        torch.testing.assert_close(value, S.gather(dim, place).squeeze(dim), rtol=0, atol=2**-7)
        torch.testing.assert_close(judged.gather(dim, place), judged.gather(dim, best), rtol=0, atol=2**-6)


@pytest.mark.parametrize("cells", [1, 49, 196])
def test_of_equals_the_first_wins(cells: int) -> None:
    ones = torch.ones(3, 1, cells)
    found = best_matches(ones, ones)
    assert not found.partner_s.any()
    assert not found.partner_r.any()
    late = torch.zeros(3, cells)
    late[:, cells // 2 :] = 1  # equal again, from the middle on
    for won in (best_matches(ones, ones, late, late), paired_best_matches(ones, ones, late, late)):
        assert (won.partner_s == cells // 2).all()
        assert (won.partner_r == cells // 2).all()
        assert (won.value_s == 1).all()


def test_nothing_to_compare() -> None:
    given = case((2, 3, 4, 5))
    none = best_matches(given.prob[:0], given.gal, None, None, given.bias)
    assert [tuple(x.shape) for x in none] == [(0, 3, 4)] * 2 + [(0, 3, 5)] * 2
    assert paired_best_matches(given.prob[:0], given.gal[:0]).value_r.shape == (0, 1, 5)


def test_a_damaged_cell_is_not_hidden() -> None:
    given = case((2, 2, 12, 12))
    given.prob[1, :, 7] = torch.nan
    for found in (best_matches(*given), paired_best_matches(*given)):
        assert found.value_s[1].isnan().any(-1).all()
        assert found.value_s[0].isfinite().all()


def test_too_many_cells() -> None:
    with pytest.raises(ValueError, match="at most 256"):
        best_matches(torch.ones(1, 1, 257), torch.ones(1, 1, 4))


def test_both_implementations_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: a value is read where the partner is, and partners are the first of the best."""
    for dtype in (torch.float32, torch.bfloat16):  # rounded to bfloat16, many are equal
        for shape in GRIDS:
            given = case(shape, channels=16)
            ours = best_matches(*given, dtype)
            with monkeypatch.context() as without:
                without.setattr(native, "library", lambda: None)
                for mine, theirs in zip(ours, best_matches(*given, dtype), strict=True):
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
    given = case(shape, dtype, visible=visible)
    assert given.bias is not None
    leaves = [x.requires_grad_() for x in (given.prob, given.gal, given.bias)]
    gradients = []
    for found in (best_matches(*given), plain(given)):
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (torch.randn(x.shape, generator=generator, dtype=dtype) * x.square()).sum()
            for x in (found.value_s, found.value_r)
        )
        assert isinstance(loss, Tensor)
        gradients.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*gradients, strict=True):
        close = (1e-4 if dtype == torch.float32 else 1e-12) * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=close)


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias: bool) -> None:
    given = case((2, 3, 4, 3), torch.float64, bias=bias)
    leaves = [x for x in (given.prob, given.gal, given.bias) if x is not None]

    def values(prob: Tensor, gal: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        won = best_matches(prob, gal, given.log_p, given.log_g, bias)
        return won.value_s, won.value_r

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
    given = case((2, 3, 6, 5))
    assert given.log_p is not None
    given.prob.requires_grad_()
    given.log_p.requires_grad_()
    best_matches(*given).value_s.sum().backward()
    assert given.prob.grad is not None
    assert given.log_p.grad is None


def test_what_is_remembered_grows_with_cells_and_not_with_their_square() -> None:
    given = case((20, 20, 196, 196))
    given.prob.requires_grad_()
    saved: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        best_matches(*given)
    partners = 2 * 20 * 20 * 196
    maps = given.prob.numel() + given.gal.numel()
    assert sum(x.numel() for x in saved) == partners + maps
    assert sum(x.numel() * x.element_size() for x in saved) == partners + 4 * maps
