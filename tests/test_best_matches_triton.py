"""The Triton kernels against the plain formulation, run in Triton's interpreter and compiled for cards that need not be here."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: the GPU kernels are not tested")

from oaml.kernels import best_matches_triton

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    """Call a function in a process that interprets Triton: the choice is made once a process, when triton is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            yield lambda function, *arguments: pool.submit(function, *arguments).result()


def maps(faces: int, channels: int, cells: int, seed: int) -> Tensor:
    return F.normalize(
        torch.randn(faces, channels, cells, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def log_visibility(faces: int, cells: int, kind: str, seed: int) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "random":
        visible = torch.rand(faces, cells, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    else:
        visible = torch.full((faces, cells), float(kind == "visible"))
    return 0.3 * visible.clamp_min(1e-3).log()


def plain(
    prob: Tensor, gal: Tensor, log_p: Tensor | None, log_g: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    similarity = torch.einsum("pcs,gcr->pgrs", prob, gal)
    if bias is not None:
        similarity = similarity + bias
    for_s = similarity if log_g is None else similarity + log_g[None, :, :, None]
    for_r = similarity if log_p is None else similarity + log_p[:, None, None, :]
    partner_s, partner_r = for_s.argmax(2), for_r.argmax(3)
    value_s = similarity.gather(2, partner_s[:, :, None]).squeeze(2)
    value_r = similarity.gather(3, partner_r[..., None]).squeeze(3)
    return value_s, partner_s, value_r, partner_r


def through_best_matches(arguments: tuple[Tensor | None, ...], on_gpu: bool) -> list[Tensor]:
    """Values and gradients of `best_matches` itself, told that it is on a GPU or not."""
    from oaml.kernels import best_matches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_matches, "_on_gpu", lambda maps, dtype: on_gpu)
        leaves = [
            x.clone().requires_grad_() if i in (0, 1, 4) else x
            for i, x in enumerate(arguments)
            if x is not None
        ]
        prob, gal, log_p, log_g, bias = leaves
        matches = best_matches.best_matches(prob, gal, log_p, log_g, bias)
        weight = torch.arange(matches.value_s.numel()).view_as(matches.value_s) / matches.value_s.numel()
        (matches.value_s * weight).sum().backward()
        gradients = [x.grad for x in (leaves[0], leaves[1], leaves[4])]
        assert all(x is not None for x in gradients)
        return [x.detach() for x in (*matches, *gradients) if x is not None]


def problem(
    p: int, g: int, c: int, s: int, r: int, visibility: str = "random", bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    offsets = 0.2 * torch.randn(r, s, generator=torch.Generator().manual_seed(5))
    return (
        maps(p, c, s, 1),
        maps(g, c, r, 2),
        log_visibility(p, s, visibility, 3),
        log_visibility(g, r, visibility, 4),
        offsets if bias else None,
    )


SIZES = {  # P, G, C, S, R
    "7x7": (3, 2, 32, 49, 49),
    "3x5": (1, 3, 20, 15, 15),
    "one cell": (2, 2, 3, 1, 1),
    "14x14": (2, 1, 20, 196, 196),
    "different grids": (2, 3, 33, 20, 70),
    "more probes than a group": (19, 2, 5, 6, 6),
}


@pytest.mark.parametrize(
    ("visibility", "bias"),
    [("random", True), ("random", False), ("visible", True), ("occluded", True), ("none", False)],
)
@pytest.mark.parametrize("size", SIZES)
def test_forward(interpreted: Run, size: str, visibility: str, bias: bool) -> None:
    arguments = problem(*SIZES[size], visibility, bias)
    outputs = interpreted(best_matches_triton.forward, *arguments)
    for x, expected in zip(outputs, plain(*arguments), strict=True):
        torch.testing.assert_close(x, expected.to(x.dtype), rtol=0, atol=1e-5)
    assert [x.dtype for x in outputs] == [torch.float32, torch.uint8] * 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_backward(interpreted: Run, size: str, bias: bool) -> None:
    prob, gal, log_p, log_g, offsets = problem(*SIZES[size], bias=bias)
    inputs = [x.requires_grad_() for x in (prob, gal, offsets) if x is not None]
    value_s, partner_s, value_r, partner_r = plain(prob, gal, log_p, log_g, offsets)
    generator = torch.Generator().manual_seed(6)
    of_s, of_r = (torch.randn(x.shape, generator=generator) for x in (value_s, value_r))
    expected = torch.autograd.grad([value_s, value_r], inputs, [of_s, of_r])
    gradients = interpreted(
        best_matches_triton.backward,
        *(prob.detach(), gal.detach(), partner_s.byte(), partner_r.byte(), of_s, of_r, bias),
    )
    assert (gradients[2] is None) == (not bias)
    for x, y in zip((x for x in gradients if x is not None), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_gradients_of_many_pairs(interpreted: Run) -> None:
    """More pairs than partial sums of the bias, and gradients that are views, as autograd makes them."""
    prob, gal, *_ = problem(13, 11, 4, 6, 6)
    offsets = torch.zeros(6, 6, requires_grad=True)
    value_s, partner_s, value_r, partner_r = plain(prob, gal, None, None, offsets)
    (expected,) = torch.autograd.grad(value_s.sum() + 2 * value_r.sum(), [offsets])
    one = torch.ones(1, 1, 1)
    arguments = (
        prob,
        gal,
        partner_s.byte(),
        partner_r.byte(),
        one.expand(13, 11, 6),
        (2 * one).expand(13, 11, 6),
    )
    *_, of_bias = interpreted(best_matches_triton.backward, *arguments, True)
    torch.testing.assert_close(of_bias, expected)
    again = interpreted(best_matches_triton.backward, *arguments, True)
    assert torch.equal(again[2], of_bias)


@pytest.mark.parametrize("cells", [15, 196])
def test_among_equals_the_lowest_index_wins(interpreted: Run, cells: int) -> None:
    same = torch.zeros(2, 4, cells)
    same[:, 0] = 1
    value_s, partner_s, value_r, partner_r = interpreted(
        best_matches_triton.forward, same, same, None, None, None
    )
    assert (value_s == 1).all()
    assert (value_r == 1).all()
    assert not partner_s.any()
    assert not partner_r.any()
    twice = torch.eye(cells).repeat(1, 2).view(1, cells, 2, cells)[..., : cells // 2].reshape(1, cells, -1)
    outputs = interpreted(best_matches_triton.forward, twice, twice, None, None, None)
    first = (torch.arange(twice.shape[2]) % (cells // 2)).byte()
    assert torch.equal(outputs[1][0, 0], first)
    assert torch.equal(outputs[3][0, 0], first)


def test_a_cell_that_is_not_a_number_is_seen(interpreted: Run) -> None:
    prob, gal, log_p, log_g, bias = problem(3, 2, 8, 15, 15)
    prob[1, :, 7] = float("nan")
    prob[2] = float("nan")
    outputs = interpreted(best_matches_triton.forward, prob, gal, log_p, log_g, bias)
    for x, expected in zip(outputs, plain(prob, gal, log_p, log_g, bias), strict=True):
        torch.testing.assert_close(x, expected.to(x.dtype), rtol=0, atol=1e-5, equal_nan=True)
    assert (outputs[3][1] == 7).all()


def test_no_face(interpreted: Run) -> None:
    prob, gal, _, log_g, bias = problem(2, 3, 4, 6, 6)
    value_s, _, _, partner_r = interpreted(best_matches_triton.forward, prob[:0], gal, None, log_g, bias)
    assert value_s.shape == (0, 3, 6)
    assert partner_r.shape == (0, 3, 6)
    none = torch.zeros(2, 0, 6)
    gradients = interpreted(
        best_matches_triton.backward, prob, gal[:0], none.byte(), none.byte(), none, none, True
    )
    assert torch.equal(gradients[0], torch.zeros_like(prob))
    assert gradients[1].shape == (0, 4, 6)
    assert torch.equal(gradients[2], torch.zeros(6, 6))


def test_too_many_cells() -> None:
    with pytest.raises(ValueError, match="at most 256"):
        best_matches_triton.forward(torch.zeros(1, 2, 289), torch.zeros(1, 2, 289), None, None, None)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("size", "optional", "precision"),
    [("7x7", True, "ieee"), ("14x14", True, "ieee"), ("3x5", False, "ieee"), ("7x7", True, "tf32x3")],
)
def test_kernels_compile(
    capability: int,
    size: str,
    optional: bool,
    precision: best_matches_triton.DotPrecision,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The interpreter accepts what the compiler refuses, and compiling needs no card."""
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled: list[Any] = []

    def compile_only(kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
        signature: dict[str, str] = {}
        for name, x in zip(kernel.arg_names, (*arguments, *constants.values()), strict=True):
            if isinstance(x, Tensor):
                signature[name] = {torch.float32: "*fp32", torch.uint8: "*u8"}[x.dtype]
            elif name in constants or x is None or x == 1:  # as a launch does it
                signature[name], constants[name] = "constexpr", x
            else:
                signature[name] = "i32"
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {"num_warps": best_matches_triton.WARPS, "num_stages": 2}
        compiled.append(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))

    monkeypatch.setattr(best_matches_triton, "_launch", compile_only)
    inputs = problem(*SIZES[size], "random" if optional else "none", optional)
    value_s, partner_s, value_r, partner_r = best_matches_triton.forward(*inputs, precision)
    best_matches_triton.backward(
        inputs[0], inputs[1], partner_s, partner_r, value_s, value_r, True, precision
    )
    assert len(compiled) == 4
    for kernel in compiled:
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= 48 * 1024  # what every card has


def test_best_matches_use_the_kernels_on_a_gpu(interpreted: Run) -> None:
    arguments = problem(3, 4, 20, 15, 15)
    on_gpu, on_cpu = (interpreted(through_best_matches, arguments, flag) for flag in (True, False))
    assert len(on_gpu) == len(on_cpu) == 7
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
