"""The matcher against published numbers, against loops written from the formulas, and by its promises."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from oaml.kernels.best_matches import BestMatches
from oaml.qaconv import METHODS, Method, QAConv, QAConvConfig, apply_occlusion_weight

GOLDEN = Path(__file__).parent / "golden"
FILES = ("qaconv_0.npz", "qaconv_1.npz", "qaconv_2.npz")


pytestmark = pytest.mark.usefixtures("one_thread")


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def published_matcher(arrays: dict[str, Tensor], method: Method = "none") -> QAConv:
    _, channels, height, width = arrays["prob"].shape
    matcher = QAConv(channels, height, width, method)
    state = {"bn.num_batches_tracked": torch.tensor(0), "logit_bn.num_batches_tracked": torch.tensor(0)}
    for module in ("bn", "fc", "logit_bn"):
        for field in ("weight", "bias", "running_mean", "running_var"):
            if f"{module}_{field}" in arrays:
                state[f"{module}.{field}"] = arrays[f"{module}_{field}"]
    matcher.load_state_dict(state)
    return matcher


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-4) -> None:
    wanted = expected.detach().double().numpy()
    atol = 1e-1 * rtol * float(np.abs(wanted).max())
    np.testing.assert_allclose(actual.detach().double().numpy(), wanted, rtol=rtol, atol=atol)


def matcher_of(
    method: Method,
    grid: tuple[int, int] = (3, 4),
    channels: int = 6,
    adapter: int = 0,
    bias: bool | None = None,
    seed: int = 0,
) -> QAConv:
    """A matcher in eval mode whose every parameter and statistic differs from its start."""
    generator = torch.Generator().manual_seed(seed)
    matcher = QAConv(
        channels, *grid, method, adapter, position_bias=method == "normalized" if bias is None else bias
    )
    for name, value in (*matcher.named_parameters(), *matcher.named_buffers()):
        if not value.dtype.is_floating_point:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.data.copy_(0.5 + noise.abs())
        elif name == "adapter.0.weight":
            value.data.copy_(noise)
        elif name == "offset_bias":
            value.data.copy_(0.3 * noise)
        elif name == "confidence":
            value.data.copy_(torch.tensor([-2.0, -0.4, -0.7, 0.2]))
        else:
            value.data.add_(0.4 * noise)
    return matcher.eval()


def faces(count: int, matcher: QAConv, seed: int) -> tuple[Tensor, Tensor]:
    """Features [B,C,h,w], not normalised, and visibility [B,1,h,w] in [0,1] with exact zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    grid = (matcher.height, matcher.width)
    features = torch.randn((count, matcher.num_features, *grid), generator=generator)
    visibility = (1.6 * torch.rand((count, 1, *grid), generator=generator) - 0.3).clamp(0, 1)
    return features, visibility


def same_except_method(matcher: QAConv, method: Method) -> QAConv:
    other = QAConv(
        matcher.num_features,
        matcher.height,
        matcher.width,
        method,
        matcher.adapter[0].out_channels if matcher.adapter else 0,  # type: ignore[arg-type]
    )
    other.load_state_dict(matcher.state_dict())
    return other.eval()


def number(tensor: Any) -> float:
    return float(tensor.detach())


def slow_score(matcher: QAConv, face_p: Tensor, face_g: Tensor, v_p: Tensor, v_g: Tensor) -> float:
    """One pair, cell by cell in Python floats, straight from section 5 of the specification."""
    height, width = matcher.height, matcher.width
    cells = height * width

    def unit_cells(face: Tensor) -> list[list[float]]:
        columns = face.double().flatten(1)
        if matcher.adapter is not None:
            layers: Any = matcher.adapter
            conv, bn = layers
            columns = conv.weight.detach().double()[:, :, 0, 0] @ columns
            mean, var = bn.running_mean.double(), bn.running_var.double()
            gain, shift = bn.weight.detach().double(), bn.bias.detach().double()
            columns = (columns - mean[:, None]) / (var[:, None] + bn.eps).sqrt() * gain[:, None] + shift[
                :, None
            ]
        rows: list[list[float]] = columns.T.tolist()
        return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]

    f_p, f_g = unit_cells(face_p), unit_cells(face_g)
    vis_p: list[float] = v_p.double().flatten().tolist()
    vis_g: list[float] = v_g.double().flatten().tolist()
    S = [
        [sum(a * b for a, b in zip(f_g[r], f_p[s], strict=True)) for s in range(cells)] for r in range(cells)
    ]

    if matcher.method == "normalized":
        B: Any = matcher.offset_bias
        if B is not None:
            for r in range(cells):
                for s in range(cells):
                    dy, dx = s // width - r // width, s % width - r % width
                    there = number(B[dy + height - 1, dx + width - 1])
                    back = number(B[-dy + height - 1, -dx + width - 1])
                    S[r][s] += (there + back) / 2
        c = [math.log1p(math.exp(x)) for x in matcher.cell_weight.tolist()]

        def best(values: list[float], visible: list[float]) -> int:
            judged = [x + 0.3 * math.log(max(v, 1e-3)) for x, v in zip(values, visible, strict=True)]
            return judged.index(max(judged))

        above, below = 0.0, 1e-3
        for r in range(cells):
            s = best(S[r], vis_p)
            w = c[r] * vis_g[r] * vis_p[s]
            above, below = above + w * S[r][s], below + w
        for s in range(cells):
            r = best([S[i][s] for i in range(cells)], vis_g)
            w = c[s] * vis_p[s] * vis_g[r]
            above, below = above + w * S[r][s], below + w
        u = 1 - sum(c[i] * vis_p[i] * vis_g[i] for i in range(cells)) / sum(c)
        u = min(1.0, max(0.0, u))
        k0, k1, k2, k3 = matcher.confidence.tolist()
        return math.exp(number(matcher.log_scale)) * (above / below) * (1 + k1 * u) + k0 + k2 * u + k3 * u * u

    if matcher.method == "scaling":
        S = [[S[r][s] * vis_g[r] * vis_p[s] for s in range(cells)] for r in range(cells)]

    def batch_norm(x: float, bn: Any) -> float:
        scaled = (x - number(bn.running_mean)) / math.sqrt(number(bn.running_var) + bn.eps)
        return scaled * number(bn.weight) + number(bn.bias)

    total = 0.0
    for side in ([max(S[r][s] for r in range(cells)) for s in range(cells)], [max(row) for row in S]):
        for value, weight in zip(side, matcher.fc.weight[0].tolist(), strict=True):
            total += batch_norm(value, matcher.bn) * weight
        total += number(matcher.fc.bias)
    return batch_norm(total, matcher.logit_bn)


def slow_scores(matcher: QAConv, p: Tensor, g: Tensor, v_p: Tensor, v_g: Tensor) -> Tensor:
    rows = [
        [slow_score(matcher, a, b, va, vb) for b, vb in zip(g, v_g, strict=True)]
        for a, va in zip(p, v_p, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


VARIANTS: list[tuple[Method, int, bool]] = [
    ("none", 0, False),
    ("none", 5, False),
    ("scaling", 0, False),
    ("scaling", 5, False),
    ("normalized", 0, False),
    ("normalized", 0, True),
    ("normalized", 5, True),
]


# --- published numbers


@pytest.mark.parametrize("name", FILES)
def test_published_scores(name: str) -> None:
    arrays = golden(name)
    matcher = published_matcher(arrays).eval()
    with torch.no_grad():
        assert_close(matcher(arrays["prob"], arrays["gal"]), arrays["eval_score"])
        assert_close(matcher.match(arrays["prob"], arrays["gal"]), arrays["eval_score"])
        assert_close(matcher.train()(arrays["prob"], arrays["gal"]), arrays["train_score"])


@pytest.mark.parametrize("name", FILES)
def test_published_scaling_score(name: str) -> None:
    arrays = golden(name)
    matcher = published_matcher(arrays, "scaling").eval()
    scores = matcher(arrays["prob"], arrays["gal"], arrays["visibility_prob"], arrays["visibility_gal"])
    assert_close(scores, arrays["eval_score_scaling"])


@pytest.mark.parametrize("name", FILES)
def test_published_gradients(name: str) -> None:
    arrays = golden(name)
    prob, gal = arrays["prob"].requires_grad_(), arrays["gal"].requires_grad_()
    scores = published_matcher(arrays).eval()._compute_similarity_batch(prob, gal)
    (scores * arrays["upstream"]).sum().backward()
    assert prob.grad is not None
    assert gal.grad is not None
    assert_close(prob.grad, arrays["grad_prob"])
    assert_close(gal.grad, arrays["grad_gal"])


# --- loops written from the formulas


@pytest.mark.parametrize(("method", "adapter", "bias"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_loops_over_cells(method: Method, adapter: int, bias: bool, dtype: torch.dtype) -> None:
    matcher = matcher_of(method, adapter=adapter, bias=bias)
    (p, v_p), (g, v_g) = faces(2, matcher, 1), faces(3, matcher, 2)
    p, g, v_p, v_g = p.to(dtype), g.to(dtype), v_p.to(dtype), v_g.to(dtype)
    if dtype == torch.float64:
        matcher = matcher.double()
    with torch.no_grad():
        scores = matcher(p, g, v_p, v_g)
    # features of 16 bits are compared in 32: what was lost by storing them is lost in the loops too
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(scores, slow_scores(matcher, p, g, v_p, v_g), rtol=1e-9 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_changes_nothing(method: Method) -> None:
    matcher = matcher_of(method, adapter=5)
    (p, v_p), (g, v_g) = faces(2, matcher, 1), faces(3, matcher, 2)
    with torch.no_grad():
        plain = matcher(p, g, v_p, v_g)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = matcher(p, g, v_p, v_g)
    assert torch.equal(plain, mixed)


# --- properties


@settings(max_examples=8, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    grid=st.sampled_from([(1, 1), (2, 3), (5, 2)]),
    seed=st.integers(0, 2**31),
    masked=st.booleans(),
)
def test_score_is_symmetric(
    variant: tuple[Method, int, bool], grid: tuple[int, int], seed: int, masked: bool
) -> None:
    method, adapter, bias = variant
    matcher = matcher_of(method, grid, adapter=adapter, bias=bias, seed=seed % 1000).double()
    (a, v_a), (b, v_b) = faces(3, matcher, seed), faces(2, matcher, seed + 1)
    a, b = a.double(), b.double()
    there = matcher.match(a, b, v_a if masked else None, v_b if masked else None)
    back = matcher.match(b, a, v_b if masked else None, v_a if masked else None)
    torch.testing.assert_close(there, back.T, rtol=1e-10, atol=1e-10)


def test_scaling_the_features_is_scaling_the_correlation() -> None:
    scaling = matcher_of("scaling", (5, 4))
    none = same_except_method(scaling, "none")
    (p, v_p), (g, v_g) = faces(3, scaling, 1), faces(4, scaling, 2)
    with torch.no_grad():
        p, g = scaling.prepare(p), scaling.prepare(g)
        similarity = torch.einsum("pcs,gcr->pgrs", p.flatten(2), g.flatten(2))
        weighted = apply_occlusion_weight(similarity, v_p, v_g, "scaling")
        for i, j, r, s in [
            (0, 0, 0, 0),
            (2, 3, 19, 7),
            (1, 2, 5, 18),
        ]:  # the product of both cells, at a few places
            expected = similarity[i, j, r, s] * v_g[j].flatten()[r] * v_p[i].flatten()[s]
            assert weighted[i, j, r, s] == pytest.approx(float(expected), abs=1e-7)
        of_features = torch.einsum("pcs,gcr->pgrs", (p * v_p).flatten(2), (g * v_g).flatten(2))
        torch.testing.assert_close(of_features, weighted)
        scores = scaling._compute_similarity_batch(p, g, v_p, v_g)
        best = BestMatches(weighted.amax(2), torch.empty(0), weighted.amax(3), torch.empty(0))
        torch.testing.assert_close(scores, none.logits(best, torch.empty(0), torch.empty(0)))


def test_selection_weights_of_normalized() -> None:
    similarity = torch.zeros(1, 1, 2, 2)
    visible_p, visible_g = torch.tensor([[[[1.0, 0.5]]]]), torch.tensor([[[[0.0, 1.0]]]])
    selection = apply_occlusion_weight(similarity, visible_p, visible_g, "normalized")[0, 0]
    floor, half = 0.3 * math.log(1e-3), 0.3 * math.log(0.5)
    torch.testing.assert_close(selection, torch.tensor([[floor, floor + half], [0.0, half]]))
    assert apply_occlusion_weight(similarity, visible_p, visible_g, "none") is similarity


@pytest.mark.parametrize("method", METHODS)
def test_all_visible_is_the_same_as_no_maps(method: Method) -> None:
    matcher = matcher_of(method, adapter=5)
    (p, v_p), (g, v_g) = faces(2, matcher, 1), faces(3, matcher, 2)
    ones_p, ones_g = torch.ones_like(v_p), torch.ones_like(v_g)
    assert torch.equal(matcher.match(p, g, ones_p, ones_g), matcher.match(p, g))
    assert torch.equal(matcher.match(p, g, ones_p, v_g), matcher.match(p, g, None, v_g))


def test_scaling_with_all_visible_is_none() -> None:
    scaling = matcher_of("scaling", adapter=5)
    none = same_except_method(scaling, "none")
    (p, v_p), (g, v_g) = faces(2, scaling, 1), faces(3, scaling, 2)
    assert torch.equal(scaling.match(p, g, torch.ones_like(v_p), torch.ones_like(v_g)), none.match(p, g))
    assert torch.equal(none.match(p, g, v_p, v_g), none.match(p, g))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("who", ["probe", "gallery", "both"])
def test_a_face_that_shows_nothing(method: Method, who: str) -> None:
    matcher = matcher_of(method)
    p, v_p = faces(2, matcher, 1)
    g, v_g = faces(2, matcher, 2)
    v_p = torch.zeros_like(v_p) if who != "gallery" else v_p
    v_g = torch.zeros_like(v_g) if who != "probe" else v_g
    p, v_p, v_g = p.requires_grad_(), v_p.requires_grad_(), v_g.requires_grad_()
    scores = matcher(p, g, v_p, v_g)
    scores.sum().backward()
    for x in (scores, p.grad, v_p.grad, v_g.grad, *(q.grad for q in matcher.parameters())):
        assert x is None or torch.isfinite(x).all()
    if method == "normalized":
        k0, _, k2, k3 = matcher.confidence.tolist()
        torch.testing.assert_close(scores, torch.full((2, 2), k0 + k2 + k3))
        assert (scores < matcher.match(p.detach(), p.detach()).diagonal().min()).all()
    if method == "scaling":  # the constant that zeros give
        zeros = torch.zeros(1, 1, 12)
        constant = matcher.logits(BestMatches(zeros, zeros, zeros, zeros), zeros, zeros)
        torch.testing.assert_close(scores, constant.expand(2, 2))


def test_faces_that_show_different_halves() -> None:
    matcher = QAConv(6, 4, 4, "normalized", position_bias=True).eval()
    face, _ = faces(1, matcher, 1)
    left = torch.zeros(1, 1, 4, 4)
    left[..., :2] = 1
    apart = matcher.match(face, face, left, 1 - left)
    assert torch.isfinite(apart).all()
    assert_close(apart, slow_scores(matcher, face, face, left, 1 - left))
    assert apart < matcher.match(face, face)


def test_what_lies_under_an_occluder_does_not_matter_to_normalized() -> None:
    """0.3 log(0.001) = -2.07 outweighs any difference of correlations: no occluded cell is a partner."""
    matcher, none = matcher_of("normalized", (4, 4), bias=False), matcher_of("none", (4, 4))
    (p, _), (g, _) = faces(3, matcher, 1), faces(2, matcher, 2)
    visible = torch.ones(3, 1, 4, 4)
    visible[..., 2:, :] = 0
    other = torch.where(visible > 0, p, g[:1])  # even the other person's own cells
    torch.testing.assert_close(matcher.match(p, g, visible), matcher.match(other, g, visible))
    assert (none.match(p, g) - none.match(other, g)).abs().max() > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("masked", [True, False])
def test_chunks_equal_the_whole(method: Method, masked: bool) -> None:
    matcher = matcher_of(method, adapter=5)
    (p, v_p), (g, v_g) = faces(7, matcher, 1), faces(11, matcher, 2)
    maps = (v_p, v_g) if masked else (None, None)
    with torch.no_grad():
        whole = matcher(p, g, *maps)
    per_pair = 12 * 12 * 4
    for chunk in (4 * per_pair, 10 * per_pair, 30 * per_pair, 10**9):
        torch.testing.assert_close(matcher.match(p, g, *maps, chunk_bytes=chunk), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(matcher.match(p[:2], g[:2], chunk_bytes=1), matcher.match(p[:2], g[:2]))
    with torch.no_grad():
        ready = matcher.match(matcher.prepare(p), matcher.prepare(g), *maps, prepared=True)
    torch.testing.assert_close(ready, whole, rtol=1e-5, atol=1e-5)
    assert matcher.match(p[:0], g, v_p[:0], v_g).shape == (0, 11)
    assert matcher.match(p, g[:0]).shape == (7, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("masked", [True, False])
def test_pairs_are_the_diagonal(method: Method, masked: bool) -> None:
    matcher = matcher_of(method, adapter=5)
    (a, v_a), (b, v_b) = faces(7, matcher, 1), faces(7, matcher, 2)
    maps = (v_a, v_b) if masked else (None, None)
    diagonal = matcher.match(a, b, *maps).diagonal()
    for chunk in (1, 3 * 576, 10**9):
        scores = matcher.match_pairs(a, b, *maps, chunk_bytes=chunk)
        torch.testing.assert_close(scores, diagonal, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        ready = matcher.match_pairs(matcher.prepare(a), matcher.prepare(b), *maps, prepared=True)
    torch.testing.assert_close(ready, diagonal, rtol=1e-5, atol=1e-5)
    assert matcher.match_pairs(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_listed_pairs(
    method: Method, masked: bool, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = matcher_of(method, adapter=5)
    (p, v_p), (g, v_g) = faces(7, matcher, 1), faces(9, matcher, 2)
    if channels_last:
        p, g = (x.contiguous(memory_format=torch.channels_last) for x in (p, g))
    maps = (v_p, v_g) if masked else (None, None)
    everything = matcher.match(p, g, *maps)
    which = torch.tensor([1, 1, 4, 0, 6, 4]), torch.tensor([8, 2, 2, 5, 0, 3])  # some faces take no part
    monkeypatch.setattr("oaml.qaconv.PAIRS_AT_A_TIME", 4)
    torch.testing.assert_close(
        matcher.match_listed(p, g, which, *maps), everything[which], rtol=1e-5, atol=1e-5
    )
    with torch.no_grad():
        ready = matcher.match_listed(matcher.prepare(p), matcher.prepare(g), which, *maps, prepared=True)
    torch.testing.assert_close(ready, everything[which], rtol=1e-5, atol=1e-5)
    assert matcher.match_listed(p, g, (which[0][:0], which[1][:0])).shape == (0,)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else [made]:
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return made


@pytest.mark.parametrize("method", METHODS)
def test_memory_stays_bounded(method: Method) -> None:
    matcher = QAConv(4, 7, 7, method).eval()
    features, visibility = faces(300, matcher, 1)
    maps = (features[:40], features, visibility[:40], visibility)
    with Largest() as largest:
        scores = matcher.match(*maps, chunk_bytes=2**20)
        pairs = matcher.match_pairs(features, features, visibility, visibility, chunk_bytes=2**20)
    assert scores.shape == (40, 300)
    assert pairs.shape == (300,)
    assert largest.bytes <= 2**20  # all correlations at once would be 115 MB


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_scores(method: Method) -> None:
    """Rounding to 8 bits moves a score by less than a hundredth of what people differ by."""
    matcher = matcher_of(method, (7, 7), channels=64, bias=False)
    (p, v_p), (g, v_g) = faces(9, matcher, 1), faces(11, matcher, 2)
    exact = matcher.match(p, g, v_p, v_g)
    rough = matcher.match(p, g, v_p, v_g, precision="bfloat16")
    same = matcher.match(p, p, v_p, v_p).diagonal().mean() - exact.mean()
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 1e-2 * same.abs()
    with pytest.raises(ValueError, match="neither float32 nor bfloat16"):
        matcher.match(p, g, precision="float16")  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
def test_explained_weights_add_up_to_the_score(bias: bool) -> None:
    matcher = matcher_of("normalized", adapter=5, bias=bias)
    (p, v_p), (g, v_g) = faces(1, matcher, 3), faces(1, matcher, 4)
    matches = matcher.explain(p[0], g[0], v_p[0], v_g[0])
    local = (matches.weight_probe * matches.similarity_probe).sum() + (
        matches.weight_gallery * matches.similarity_gallery
    ).sum()
    assert float(matches.weight_probe.sum() + matches.weight_gallery.sum()) == pytest.approx(1, abs=1e-3)
    c = torch.log1p(matcher.cell_weight.exp())
    u = 1 - (c * v_p.flatten() * v_g.flatten()).sum() / c.sum()
    k0, k1, k2, k3 = matcher.confidence
    score = matcher.log_scale.exp() * local * (1 + k1 * u) + k0 + k2 * u + k3 * u**2
    assert matches.score == pytest.approx(number(score), rel=1e-4)
    assert matches.score == pytest.approx(number(matcher.match(p, g, v_p, v_g)), rel=1e-5)
    assert matches.score == pytest.approx(slow_score(matcher, p[0], g[0], v_p[0], v_g[0]), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_explained_partners_are_the_best(method: Method) -> None:
    matcher = matcher_of(method, (3, 3), bias=False)
    (p, v_p), (g, v_g) = faces(1, matcher, 3), faces(1, matcher, 4)
    matches = matcher.explain(p[0], g[0], v_p[0], v_g[0])
    unit_p = (p / p.norm(dim=1, keepdim=True)).flatten(2)[0]
    unit_g = (g / g.norm(dim=1, keepdim=True)).flatten(2)[0]
    vis_p, vis_g = v_p.flatten().tolist(), v_g.flatten().tolist()
    for mine, other, vis_mine, vis_other, partner, similarity in (
        (unit_p, unit_g, vis_p, vis_g, matches.partner_probe, matches.similarity_probe),
        (unit_g, unit_p, vis_g, vis_p, matches.partner_gallery, matches.similarity_gallery),
    ):
        assert partner.shape == similarity.shape == (3, 3)
        for i in range(9):
            used, judged = [], []
            for j in range(9):
                x = float(mine[:, i] @ other[:, j])
                x *= vis_mine[i] * vis_other[j] if method == "scaling" else 1
                used.append(x)
                judged.append(x + 0.3 * math.log(max(vis_other[j], 1e-3)) if method == "normalized" else x)
            best = max(judged)
            at = int(partner.flatten()[i])
            assert judged[at] == pytest.approx(best, abs=1e-6)
            assert float(similarity.flatten()[i]) == pytest.approx(used[at], abs=1e-6)
    if method != "normalized":
        assert torch.equal(matches.weight_probe.flatten(), matcher.fc.weight[0])
        assert torch.equal(matches.weight_gallery.flatten(), matcher.fc.weight[0])


def test_a_moved_face_is_found_where_it_went() -> None:
    matcher = QAConv(12, 3, 4, "normalized").eval()
    face = torch.eye(12).view(12, 3, 4)  # every cell has a direction of its own
    cell = torch.arange(12).view(3, 4)
    matches = matcher.explain(face, face.roll(1, dims=2))  # the gallery face is shifted to the right
    assert torch.equal(matches.partner_probe, cell.roll(-1, dims=1))
    assert torch.equal(matches.partner_gallery, cell.roll(1, dims=1))
    assert torch.allclose(matches.similarity_probe, torch.ones(3, 4))
    assert torch.allclose(matches.weight_probe, torch.full((3, 4), 1 / 24), atol=1e-4)


# --- gradients


@pytest.mark.parametrize(("method", "adapter", "bias"), VARIANTS)
def test_everything_gets_a_gradient(method: Method, adapter: int, bias: bool) -> None:
    matcher = matcher_of(method, adapter=adapter, bias=bias).train()
    (p, v_p), (g, v_g) = faces(3, matcher, 1), faces(4, matcher, 2)
    p, g = p.requires_grad_(), g.requires_grad_()
    matcher(p, g, v_p, v_g).square().sum().backward()
    for name, x in (("probe", p), ("gallery", g), *matcher.named_parameters()):
        assert x.grad is not None, name
        assert torch.isfinite(x.grad).all(), name
        assert x.grad.abs().sum() > 0, name


@pytest.mark.parametrize("method", ["scaling", "normalized"])
def test_gradient_reaches_visibility_unless_detached(method: Method) -> None:
    matcher = matcher_of(method)
    (p, v_p), (g, v_g) = faces(3, matcher, 1), faces(4, matcher, 2)
    v_p, v_g = v_p.requires_grad_(), v_g.requires_grad_()
    matcher(p.requires_grad_(), g, v_p, v_g).square().sum().backward()
    assert v_p.grad is not None
    assert v_g.grad is not None
    assert v_p.grad.abs().sum() > 0
    assert v_g.grad.abs().sum() > 0
    v_p.grad = v_g.grad = None
    matcher(p, g, v_p.detach(), v_g.detach()).square().sum().backward()
    assert v_p.grad is None
    assert v_g.grad is None


def test_a_batch_against_itself() -> None:
    """One batch on both sides is adapted once, so that its statistics count once."""
    once, twice = matcher_of("normalized", adapter=5).train(), matcher_of("normalized", adapter=5).train()
    p, v = faces(4, once, 1)
    torch.testing.assert_close(once(p, p, v, v), twice(p, p.clone(), v, v))
    assert once.adapter is not None
    assert twice.adapter is not None
    assert int(once.adapter[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    assert int(twice.adapter[1].num_batches_tracked) == 2  # type: ignore[arg-type]


# --- wrong calls


@pytest.mark.parametrize("method", METHODS)
def test_wrong_shapes(method: Method) -> None:
    matcher = matcher_of(method)
    (p, v_p), (g, v_g) = faces(3, matcher, 1), faces(4, matcher, 2)
    for wrong in (p[:, :5], p[..., :3], p.transpose(2, 3), p[0]):
        with pytest.raises(ValueError, match="features are"):
            matcher(wrong, g)
        with pytest.raises(ValueError, match="features are"):
            matcher.match(g, wrong)
    for wrong in (v_p[:, 0], v_p[:2], v_p.expand(-1, 2, -1, -1), v_p[..., :3], v_p.transpose(2, 3)):
        with pytest.raises(ValueError, match="visibility"):
            matcher(p, g, wrong, v_g)
        with pytest.raises(ValueError, match="visibility"):
            matcher.match(g, p, v_g, wrong)
        with pytest.raises(ValueError, match="visibility"):
            matcher.match_pairs(p, g[:3], wrong, v_g[:3])
    with pytest.raises(ValueError, match="3 faces against 4"):
        matcher.match_pairs(p, g)


def test_matching_needs_eval_mode() -> None:
    matcher = matcher_of("none").train()
    p, _ = faces(2, matcher, 1)
    for call in (
        lambda: matcher.match(p, p),
        lambda: matcher.match_pairs(p, p),
        lambda: matcher.match_listed(p, p, (torch.tensor([0]), torch.tensor([1]))),
        lambda: matcher.explain(p[0], p[0]),
    ):
        with pytest.raises(RuntimeError, match="eval"):
            call()


def test_a_fresh_matcher_says_nothing_of_how_much_shows() -> None:
    """Maps of one and the same cell: the mean similarity is 1 whatever is weighed, and the logit exp(2.5) - 6."""
    matcher = QAConv(6, 3, 4, "normalized", 0, position_bias=False).eval()
    face = torch.ones(1, 6, 3, 4)
    for shown in (torch.ones(1, 1, 3, 4), torch.linspace(0.2, 1, 12).view(1, 1, 3, 4)):
        score = float(matcher.match_pairs(face, face, shown, shown)[0])
        assert score == pytest.approx(np.exp(2.5) - 6, abs=0.01)


def test_settings_by_default() -> None:
    """Published models were trained with them."""
    assert asdict(QAConvConfig()) == {"method": "normalized", "adapter": 128, "position_bias": True}


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="normalised"):
        QAConv(4, 2, 2, "normalised")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="position_bias"):
        QAConv(4, 2, 2, "scaling", position_bias=True)
    with pytest.raises(ValueError, match=r"qaconv\.method"):
        QAConvConfig(method="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"qaconv\.adapter"):
        QAConvConfig(adapter=-1)
