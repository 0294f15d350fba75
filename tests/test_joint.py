"""The joint embedding: an exact split into cells, a cosine of what both show, and a fusion that one can read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oaml.joint import KNOTS, Compared, Fusion, Joint
from oaml.kernels import native
from oaml.net import BACKBONES, IR, Backbone, IResNet, MobileFaceNet, NetConfig, build_backbone
from oaml.visibility import CELLS, GRID, cell_visibility
from oaml.vit import ViT

E = 12
LARGE = ("iresnet200", "vit_s", "vit_b", "vit_l")
"""The output layers of others of their kind in more numbers."""
FRONT = (
    "patch_embed",
    "norm",
    "input_layer",
    "body",
    "conv1",
    "bn1",
    "prelu",
    "layer1",
    "layer2",
    "layer3",
    "layer4",
)
FRONT_MOBILE = ("stem", "stem_depthwise", "stem_pointwise", "blocks", "last")


pytestmark = pytest.mark.usefixtures("one_thread")


def output_layer(architecture: str, dtype: torch.dtype = torch.float32) -> Backbone:
    """A backbone in train mode whose output layer alone exists, with statistics and weights that hide no term."""
    with torch.device("meta"):  # the front of the deep ones is large and not needed
        backbone = build_backbone(NetConfig(architecture, embedding_size=E))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for name, part in backbone.named_children():
        if name in FRONT or name in FRONT_MOBILE:
            continue
        part.to_empty(device="cpu").to(dtype)
        for key, value in part.state_dict().items():
            if key.endswith("num_batches_tracked"):
                value.zero_()
            elif key.endswith("running_var"):
                value.uniform_(0.3, 3, generator=generator)
            else:
                value.normal_(0.2, 0.5, generator=generator)
    return backbone


def raw_embedding(backbone: Backbone, features: Tensor) -> Tensor:
    """What `forward_head` normalises, in the precision of the features."""
    if isinstance(backbone, IR):
        return backbone.output_layer(features)
    if isinstance(backbone, IResNet):
        return backbone.features(backbone.fc(backbone.dropout(backbone.bn2(features)).flatten(1)))
    if isinstance(backbone, ViT):
        return backbone.feature(features.flatten(2).transpose(1, 2).flatten(1))
    assert isinstance(backbone, MobileFaceNet)
    return backbone.output_bn(backbone.output(backbone.pool(features)).flatten(1))


def random_faces(count: int, grid: int = 7, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Per-cell embeddings [B,49,E] and visibility [B,1,grid,grid] with some cells fully occluded and some fully visible."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn((count, CELLS, E), generator=generator, dtype=torch.float64) + 0.3
    v = (torch.rand((count, 1, grid, grid), generator=generator, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)
    return a.to(dtype), v.to(dtype)


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """Every parameter and buffer moved away from its start, where several terms vanish."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        value.add_(torch.randn(value.shape, generator=generator) * 0.3)
    return module


# --- the split of the output layer


@pytest.mark.parametrize("architecture", [name for name in BACKBONES if name not in LARGE])
@pytest.mark.parametrize("training", [False, True])
def test_the_cells_add_up_to_the_embedding(architecture: str, training: bool) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        backbone = output_layer(architecture, dtype).eval()
        grid = backbone.grids[4]
        features = torch.randn(3, backbone.channels[4], *grid, generator=torch.Generator().manual_seed(1))
        features = features.to(dtype)
        with torch.no_grad():
            expected = raw_embedding(backbone, features)
            cells = backbone.train(training).cells(features)
        assert cells.shape == (3, grid[0] * grid[1], E)
        assert cells.dtype == dtype
        error = (cells.sum(1) - expected).abs().max()
        assert error <= tolerance * cells.abs().sum(1).max()
        if dtype == torch.float32:
            embedding, norm = backbone.eval().forward_head(features)
            torch.testing.assert_close(cells.sum(1), embedding * norm, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["ir_mini", "iresnet18", "mobilefacenet", "mobilefacenet_relu6"])
def test_a_cell_knows_its_own_features_and_its_share_of_the_constant(architecture: str) -> None:
    backbone = output_layer(architecture, torch.float64).eval()
    channels = backbone.channels[4]
    features = torch.randn(2, channels, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros(1, channels, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        empty = backbone.cells(nothing)[0]
        constant = raw_embedding(backbone, nothing)[0]
        cells = backbone.cells(features)
        for cell in (0, 17, 48):
            alone = torch.zeros_like(features)
            alone.view(2, channels, 49)[..., cell] = features.view(2, channels, 49)[..., cell]
            expected = raw_embedding(backbone, alone) - constant
            torch.testing.assert_close(cells[:, cell] - empty[cell], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(empty.sum(0), constant, rtol=1e-9, atol=1e-9)
    assert constant.abs().max() > 0.1
    if architecture.startswith("mobile"):  # one constant for all cells: evenly spread means equal
        torch.testing.assert_close(empty, (constant / CELLS).expand(CELLS, E), rtol=1e-9, atol=1e-9)


def test_per_cell_embeddings_stay_in_full_precision_under_autocast() -> None:
    backbone = output_layer("ir_mini").eval()
    features = torch.randn(2, backbone.channels[4], 7, 7)
    with torch.no_grad():
        expected = backbone.cells(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(backbone.cells(features), expected)
        half = backbone.cells(features.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, backbone.cells(features.bfloat16().float()))


def test_an_output_layer_without_a_known_split_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="no known split"):
        Backbone().cells(torch.zeros(1, 4, 7, 7))


@pytest.mark.parametrize("architecture", ["ir_mini", "iresnet18", "mobilefacenet"])
def test_gradient_reaches_the_features_and_the_output_layer(architecture: str) -> None:
    backbone = output_layer(architecture)
    features = torch.randn(2, backbone.channels[4], 7, 7, requires_grad=True)
    weights = torch.randn(2, 49, E)
    (backbone.cells(features) * weights).sum().backward()
    assert features.grad is not None
    assert bool((features.grad.abs().sum(1) > 0).all())
    without = [
        name
        for name, parameter in backbone.named_parameters()
        if not parameter.is_meta and (parameter.grad is None or not bool(parameter.grad.abs().sum() > 0))
    ]
    assert not without


# --- what both show


def naive(a: Tensor, b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[float, float]:
    """Cosine and unseen share of one pair, cell by cell: A [R,E] twice, visibility [1,h,w] twice."""
    left, right, shared = np.zeros(E), np.zeros(E), 0.0
    step = v_a.shape[-1] // 7
    for y in range(7):
        for x in range(7):
            patch = np.s_[0, y * step : (y + 1) * step, x * step : (x + 1) * step]
            weight = float(v_a.double().numpy()[patch].mean()) * float(v_b.double().numpy()[patch].mean())
            left += weight * a[y * 7 + x].double().numpy()
            right += weight * b[y * 7 + x].double().numpy()
            shared += weight
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / max(lengths, 1e-6), 1 - shared / 49


@pytest.mark.parametrize("grid", [7, 14])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 4e-3)]
)
def test_against_a_loop_over_cells(grid: int, dtype: torch.dtype, tolerance: float) -> None:
    a, v_a = random_faces(3, grid, 0, dtype)
    b, v_b = random_faces(4, grid, 1, dtype)
    compared = Joint().compare(a, b, v_a, v_b)
    assert compared.cosine.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for p in range(3):
        for g in range(4):
            cosine, unseen = naive(a[p], b[g], v_a[p], v_b[g])
            assert compared.cosine[p, g].item() == pytest.approx(cosine, abs=tolerance)
            assert compared.unseen[p, g].item() == pytest.approx(unseen, abs=tolerance)


@pytest.mark.parametrize("grid", [7, 14])
def test_all_visible_is_the_ordinary_cosine(grid: int) -> None:
    backbone = output_layer("ir_mini").eval()
    f = torch.randn(5, backbone.channels[4], 7, 7, generator=torch.Generator().manual_seed(1))
    whole = torch.ones(5, 1, grid, grid)
    with torch.no_grad():
        embedding, _ = backbone.forward_head(f)
        cells = backbone.cells(f)
        compared = Joint().compare(cells, cells, whole, whole)
    torch.testing.assert_close(compared.cosine, embedding @ embedding.T, rtol=0, atol=2e-5)
    assert bool((compared.unseen.abs() < 1e-6).all())


def test_symmetric() -> None:
    (a, v_a), (b, v_b) = random_faces(3, 14, 0), random_faces(5, 14, 1)
    joint = randomised(Joint())
    forth, back = joint.compare(a, b, v_a, v_b), joint.compare(b, a, v_b, v_a)
    for x, y in zip(forth, back, strict=True):
        torch.testing.assert_close(x, y.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(joint(a, b, v_a, v_b), joint(b, a, v_b, v_a).T, rtol=0, atol=1e-4)


def test_nothing_visible_in_common() -> None:
    a, _ = random_faces(2, seed=0)
    a.requires_grad_()
    upper, lower, none = (torch.zeros(2, 1, 7, 7) for _ in range(3))
    upper[:, :, :3], lower[:, :, 3:] = 1, 1
    joint = randomised(Joint())
    for v_a, v_b in ((upper, lower), (none, none), (none, torch.ones(2, 1, 7, 7))):
        for compared in (joint.compare(a, a, v_a, v_b), joint.compare_pairs(a, a, v_a, v_b)):
            assert bool((compared.cosine == 0).all())
            assert bool((compared.unseen == 1).all())
            logit = joint.logit(compared.cosine, compared.unseen)
            k0, _, k2, k3 = joint.confidence.tolist()
            torch.testing.assert_close(logit, torch.full_like(logit, k0 + k2 + k3))
    # a pair like this in a batch must not spoil the gradient of the others
    joint(a, a, upper, lower).sum().backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())


def test_what_is_occluded_in_either_face_does_not_count() -> None:
    (a, v_a), (b, v_b) = random_faces(2, seed=0), random_faces(2, seed=1)
    v_a[:, :, :2], v_b[:, :, 5:] = 0, 0
    before = Joint().compare_pairs(a, b, v_a, v_b)
    for rows in (slice(0, 14), slice(35, 49)):
        a[:, rows] += 7
        b[:, rows] -= 5
    for x, y in zip(before, Joint().compare_pairs(a, b, v_a, v_b), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(("p", "g"), [(1, 1), (1, 13), (6, 12), (7, 5), (97, 101)])
@pytest.mark.parametrize("size", [16, 48, 64, 80, 128])
def test_compiled_cosine(p: int, g: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(p + g + size)
    a, b = (torch.randn((n, CELLS, size), generator=generator) for n in (p, g))
    v_a, v_b = (torch.rand((n, 1, 14, 14), generator=generator) for n in (p, g))
    v_a[0] = 0
    if not native.multiplies(a):
        pytest.skip("no compiler here, or no wide vectors")
    compared = Joint().match(a, b, v_a, v_b)
    with monkeypatch.context() as without:
        without.setattr(native, "library", lambda: None)
        for x, y in zip(compared, Joint().match(a, b, v_a, v_b), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
    assert (compared.cosine[0] == 0).all()
    # a pair's number depends on no other pair
    assert torch.equal(Joint().match(a[-1:], b, v_a[-1:], v_b).cosine, compared.cosine[-1:])
    assert torch.equal(Joint().match(a, b[-1:], v_a, v_b[-1:]).cosine, compared.cosine[:, -1:])


def test_match_in_tiny_chunks() -> None:
    (a, v_a), (b, v_b) = random_faces(7, 14, 0), random_faces(5, 14, 1)
    joint = Joint()
    whole = joint.compare(a, b, v_a, v_b)
    for chunk in (1, 2 * 4 * E * 4, 2 * 4 * E * 9, 2**20):  # blocks of 1, 2, 3 and everything
        for x, y in zip(joint.match(a, b, v_a, v_b, chunk_bytes=chunk), whole, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_pairs_are_the_diagonal() -> None:
    (a, v_a), (b, v_b) = random_faces(6, 14, 0), random_faces(6, 14, 1)
    pairs = Joint().compare_pairs(a, b, v_a, v_b)
    for x, y in zip(Joint().compare(a, b, v_a, v_b), pairs, strict=True):
        torch.testing.assert_close(x.diagonal(), y, rtol=0, atol=1e-6)


def test_cells_of_14_are_averaged_two_by_two() -> None:
    v = torch.rand(3, 1, 14, 14)
    expected = torch.stack([v[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0).flatten(1)
    torch.testing.assert_close(cell_visibility(v), expected)
    coarse = torch.rand(3, 1, 7, 7)
    assert torch.equal(cell_visibility(coarse), coarse.flatten(1))


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 1, 7, 14), (2, 3, 7, 7), (2, 7, 7), (2, 49)])
def test_other_visibility_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"visibility is .* expected \[B,1,7,7\]"):
        cell_visibility(torch.ones(shape))
    with pytest.raises(ValueError, match="visibility is"):
        Joint().compare(torch.ones(2, 49, E), torch.ones(2, 49, E), torch.ones(2, 1, 7, 7), torch.ones(shape))


@pytest.mark.parametrize("shape", [(2, 48, E), (2, 196, E), (3, 49, E), (49, E), (2, 49)])
def test_other_per_cell_embeddings_are_refused(shape: tuple[int, ...]) -> None:
    good, whole = torch.ones(2, 49, E), torch.ones(2, 1, 7, 7)
    joint = Joint()
    for call in (joint.compare, joint.compare_pairs, joint.match):
        for a, b in ((torch.ones(shape), good), (good, torch.ones(shape))):
            with pytest.raises(ValueError):  # noqa: PT011 - which check speaks first is no matter
                call(a, b, whole, whole)


def test_faces_that_do_not_belong_together_are_refused() -> None:
    whole = torch.ones(2, 1, 7, 7)
    joint = Joint()
    for call in (joint.compare, joint.compare_pairs, joint.match):
        with pytest.raises(ValueError, match=f"{E}.*{E + 1}"):
            call(torch.ones(2, 49, E), torch.ones(2, 49, E + 1), whole, whole)
    with pytest.raises(ValueError, match="row by row"):
        joint.compare_pairs(torch.ones(2, 49, E), torch.ones(1, 49, E), whole, whole[:1])


def test_autocast_changes_nothing() -> None:
    (a, v_a), (b, v_b) = random_faces(3, 14, 0), random_faces(3, 14, 1)
    joint = randomised(Joint())
    expected = joint(a, b, v_a, v_b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = joint(a, b, v_a, v_b)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


def test_logit_by_hand() -> None:
    joint = randomised(Joint())
    k0, k1, k2, k3 = joint.confidence.tolist()
    cosine, unseen = torch.tensor([0.3, -0.8, 0.0]), torch.tensor([0.0, 0.5, 1.0])
    for got, c, u in zip(joint.logit(cosine, unseen).tolist(), cosine, unseen, strict=True):
        c, u = float(c), float(u)
        expected = np.exp(joint.log_scale.item()) * c * (1 + k1 * u) + k0 + k2 * u + k3 * u**2
        assert got == pytest.approx(expected, rel=1e-5)


def test_overlap_by_hand() -> None:
    a, _ = random_faces(3)
    upper, lower, none = torch.ones(1, 7, 7), torch.ones(1, 7, 7), torch.zeros(1, 7, 7)
    upper[:, 4:], lower[:, :2] = 0, 0  # 21 and 14 cells hidden
    left, right = torch.stack([upper, upper, none]), torch.stack([upper, lower, torch.ones(1, 7, 7)])
    compared = Joint().compare_pairs(a, a, left, right)
    torch.testing.assert_close(compared.overlap, torch.tensor([1.0, 0.0, 0.0]))
    half = torch.full((1, 1, 7, 7), 0.5)
    compared = Joint().compare_pairs(a[:1], a[:1], half, half)
    assert compared.overlap.item() == pytest.approx(0.25 / 0.75)
    spot = torch.ones(1, 1, 7, 7)
    spot[0, 0, 3, 3] = 0.5  # unseen 0.75/49, which is less than a twentieth
    compared = Joint().compare_pairs(a[:1], a[:1], spot, spot)
    assert compared.overlap.item() == pytest.approx(0.25 / 49 / 0.05)
    whole = torch.ones(1, 1, 7, 7)
    assert Joint().compare_pairs(a[:1], a[:1], whole, whole).overlap.item() == 0


def test_what_is_hidden_is_told_from_visibility_alone() -> None:
    (a, v_a), (b, v_b) = random_faces(6, 14, 0), random_faces(5, 14, 1)
    compared = Joint().compare(a, b, v_a, v_b)
    for x, y in zip(Joint().hidden(v_a, v_b), (compared.unseen, compared.overlap), strict=True):
        assert torch.equal(x, y)


# --- which cell added what


@pytest.mark.parametrize("grid", [7, 14])
def test_shares_add_up_to_the_cosine_and_are_symmetric(grid: int) -> None:
    (a, v_a), (b, v_b) = random_faces(4, grid, 0), random_faces(4, grid, 1)
    joint = Joint()
    compared = joint.compare_pairs(a, b, v_a, v_b)
    for i in range(4):
        shares = joint.explain(a[i], b[i], v_a[i], v_b[i])
        assert shares.share.shape == shares.weight.shape == GRID
        assert shares.share.sum().item() == pytest.approx(compared.cosine[i].item(), abs=1e-5)
        assert shares.cosine == pytest.approx(compared.cosine[i].item(), abs=1e-5)
        assert 1 - shares.weight.mean().item() == pytest.approx(compared.unseen[i].item(), abs=1e-6)
        back = joint.explain(b[i], a[i], v_b[i], v_a[i])
        torch.testing.assert_close(shares.share, back.share, rtol=0, atol=1e-6)
        torch.testing.assert_close(shares.weight, back.weight)
        assert bool((shares.share[shares.weight == 0] == 0).all())
    same = joint.explain(a[0], a[0], v_a[0], v_a[0])
    assert same.cosine == pytest.approx(1, abs=1e-5)


def test_shares_where_nothing_is_visible_in_common() -> None:
    a, _ = random_faces(1)
    shares = Joint().explain(a[0], a[0], torch.zeros(1, 7, 7), torch.ones(1, 7, 7))
    assert shares.cosine == 0
    assert not shares.share.any()
    assert not shares.weight.any()


# --- training


def test_every_parameter_of_joint_and_fusion_gets_a_gradient() -> None:
    (a, v_a), (b, v_b) = random_faces(4, 7, 0), random_faces(4, 7, 1)
    a.requires_grad_()
    joint, fusion = Joint(), Fusion(a.shape[2])
    compared = joint.compare(a, b, v_a, v_b)
    logit = joint.logit(compared.cosine, compared.unseen)
    cosine = F.normalize(a.sum(1), dim=1) @ F.normalize(b.sum(1), dim=1).T
    fused = fusion(logit, torch.randn(4, 4), cosine, compared, torch.zeros(4, 4))
    F.binary_cross_entropy_with_logits(fused, torch.eye(4)).backward()
    for module in (joint, fusion):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).all()), name
    assert a.grad is not None
    assert bool((a.grad.abs().sum((1, 2)) > 0).all())


# --- fusion


def test_a_fresh_joint_says_nothing_of_how_much_shows() -> None:
    cosine = torch.tensor([-0.2, 0.0, 0.3, 1.0])
    for unseen in (0.0, 0.4, 1.0):
        logit = Joint().logit(cosine, torch.full((4,), unseen)).detach()
        torch.testing.assert_close(logit, np.exp(2.5) * cosine - 6)


def test_a_fresh_fusion_is_the_sum_of_the_logits() -> None:
    joint, local, cosine, unseen, overlap = torch.rand(5, 5)
    fusion = Fusion(8)
    alike = fusion.traces_of(torch.randn(5, 8)).sum(1)
    assert torch.equal(fusion(joint, local, cosine, Compared(cosine, unseen, overlap), alike), joint + local)


@torch.inference_mode()
def test_fusion_by_hand() -> None:
    fusion = randomised(Fusion(8))
    joint, local, cosine, unseen, overlap = torch.rand(5, 3, 5)
    cosine = 2 * cosine - 1
    a, b = F.normalize(torch.randn(3, 8), dim=1), F.normalize(torch.randn(5, 8), dim=1)
    alike = fusion.traces_of(a) @ fusion.traces_of(b).T
    compared = Compared(torch.rand(3, 5), unseen, overlap)  # its own cosine is in the logit already
    fused = fusion(joint, local, cosine, compared, alike)
    knots = np.linspace(0, 1, KNOTS)
    for i, j in np.ndindex(3, 5):
        offset = np.interp(float(unseen[i, j]), knots, fusion.offset.double().numpy())
        expected = float(joint[i, j] + fusion.qaconv_weight * local[i, j]) - offset
        expected += float(fusion.cosine_weight * (1 - fusion.cosine_fade * unseen[i, j]) * cosine[i, j])
        if cosine[i, j] > 0:
            expected -= float(fusion.overlap * overlap[i, j] * cosine[i, j])
        for trace, floor in zip(fusion.traces, fusion.trace_floor, strict=True):
            expected -= max(0.0, float(trace @ a[i] - floor)) * max(0.0, float(trace @ b[j] - floor))
        assert fused[i, j].item() == pytest.approx(expected, abs=1e-5)


def test_offset_against_numpy() -> None:
    fusion = randomised(Fusion(8))
    unseen = torch.cat([torch.linspace(-0.2, 1.2, 101), torch.linspace(0, 1, KNOTS)]).double()
    expected = np.interp(unseen.numpy(), np.linspace(0, 1, KNOTS), fusion.offset.double().numpy())
    np.testing.assert_allclose(fusion.offset_at(unseen).numpy(), expected, atol=1e-6)
    square = torch.rand(3, 4)
    assert fusion.offset_at(square).shape == (3, 4)
    assert fusion.offset_at(torch.ones(())).item() == fusion.offset[-1].item()
    assert fusion.offset_at(torch.zeros(())).item() == fusion.offset[0].item()
