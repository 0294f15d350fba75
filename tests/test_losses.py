"""The loss terms against published numbers and loops written from their formulas."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oaml.errors import OamlError
from oaml.losses import (
    LossWeights,
    NonFiniteLoss,
    balanced_matching_loss,
    check_finite,
    combine,
    distillation_loss,
    hard_triplet_loss,
    occlusion_loss,
    pairwise_matching_loss,
    same_person,
)
from oaml.qaconv import QAConv
from oaml.visibility import mask_to_cells

GOLDEN = Path(__file__).parent / "golden"


def scores_and_same(seed: int = 0, people: int = 3, images: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(people).repeat_interleave(images)
    scores = torch.randn((len(label), len(label)), generator=generator) * 6
    return (scores + scores.T) / 2, same_person(label, label)


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def cross_entropy_of(score: float, same: bool) -> float:
    return softplus(-score) if same else softplus(score)


# --- matching


def test_published_matching_losses() -> None:
    with np.load(GOLDEN / "qaconv_losses.npz") as arrays:
        feature, label = torch.from_numpy(arrays["feature"]), torch.from_numpy(arrays["label"])
        matcher = QAConv(16, 7, 7).train()
        matcher.logit_bn.weight.data.fill_(float(arrays["logit_bn_weight"]))
        scores, same = matcher(feature, feature), same_person(label, label)
        for loss, name in (
            (pairwise_matching_loss(scores, same), "pairwise_loss"),
            (hard_triplet_loss(scores, same, float(arrays["triplet_margin"])), "triplet_loss"),
        ):
            wanted = arrays[name]
            np.testing.assert_allclose(
                loss.detach().numpy(), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max()
            )


def test_pairwise_loss_is_a_loop_over_pairs() -> None:
    scores, same = scores_and_same()
    scores, same = scores[:4], same[:4]  # probes and gallery need not be as many
    loss = pairwise_matching_loss(scores, same)
    for i in range(4):
        wanted = sum(cross_entropy_of(float(scores[i, j]), bool(same[i, j])) for j in range(9))
        assert float(loss[i]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("margin", [0.5, 16.0])
def test_triplet_loss_is_a_loop_over_rows(margin: float) -> None:
    scores, same = scores_and_same()
    loss = hard_triplet_loss(scores, same, margin)
    for i in range(9):
        positives = [float(scores[i, j]) for j in range(9) if same[i, j] and j != i]
        negatives = [float(scores[i, j]) for j in range(9) if not same[i, j]]
        assert float(loss[i]) == pytest.approx(max(0.0, max(negatives) - min(positives) + margin), rel=1e-5)


def test_triplet_rows_without_positive_or_negative() -> None:
    label = torch.tensor([0, 0, 1, 2])  # rows 2 and 3 have no positive but themselves
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = hard_triplet_loss(scores, same_person(label, label))
    loss.sum().backward()
    assert (loss[2:] == 0).all()
    assert (loss[:2] > 0).all()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[2:] == 0).all()
    alone = torch.zeros(3, dtype=torch.long)
    scores = torch.randn(3, 3).requires_grad_()
    loss = hard_triplet_loss(scores, same_person(alone, alone))
    loss.sum().backward()
    assert (loss == 0).all()
    assert scores.grad is not None
    assert (scores.grad == 0).all()


@pytest.mark.parametrize("hardest", [0.001, 0.05, 0.3, 1.0])
def test_balanced_loss_is_a_sum_of_plain_parts(hardest: float) -> None:
    scores, same = scores_and_same()
    scores += torch.randn(9, 9, generator=torch.Generator().manual_seed(1))  # no two are equal
    pairs = list(product(range(9), range(9)))
    positives = [softplus(-float(scores[i, j])) for i, j in pairs if same[i, j]]
    negatives = sorted((softplus(float(scores[i, j])) for i, j in pairs if not same[i, j]), reverse=True)
    top = negatives[: max(1, round(hardest * len(negatives)))]
    wanted = sum(positives) / len(positives) + sum(negatives) / len(negatives) + sum(top) / len(top)
    for flip in (False, True):
        lines = []
        for i in range(9):
            line = [(float(scores[j, i] if flip else scores[i, j]), bool(same[i, j])) for j in range(9)]
            whole = sum(math.exp(x) for x, _ in line)
            right = sum(math.exp(x) for x, own in line if own)
            lines.append(-math.log(right / whole))
        wanted += sum(lines) / len(lines) / 2
    assert float(balanced_matching_loss(scores, same, hardest)) == pytest.approx(wanted, rel=1e-5)


def test_balanced_loss_with_rows_without_positive() -> None:
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    same = torch.zeros(3, 4, dtype=torch.bool)
    same[0, 1] = True
    loss = balanced_matching_loss(scores, same)
    loss.backward()
    assert torch.isfinite(loss)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0, 1] < 0  # pulls the only positive up
    assert (scores.grad[~same] >= 0).all()


def test_matching_losses_compute_in_float32() -> None:
    scores, same = scores_and_same()
    half = scores.bfloat16()
    for loss in (pairwise_matching_loss, hard_triplet_loss, balanced_matching_loss):
        assert loss(half, same).dtype == torch.float32
        torch.testing.assert_close(loss(half, same), loss(half.float(), same))


def test_same_person() -> None:
    found = same_person(torch.tensor([3, 5]), torch.tensor([5, 3, 3]))
    assert found.tolist() == [[False, True, True], [True, False, False]]


# --- occlusion


@settings(max_examples=10, deadline=None)
@given(
    height=st.sampled_from([5, 7, 56, 100, 112]),
    width=st.sampled_from([7, 56, 100]),
    grid=st.sampled_from([(7, 7), (14, 14)]),
    seed=st.integers(0, 1000),
)
def test_occlusion_loss_of_any_mask_size(height: int, width: int, grid: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    visibility = torch.rand((3, 1, *grid), generator=generator)
    mask = torch.rand((3, 1, height, width), generator=generator)
    errors = []
    for i, y, x in product(range(3), range(grid[0]), range(grid[1])):
        # the pixels that a cell touches
        top, bottom = math.floor(y * height / grid[0]), math.ceil((y + 1) * height / grid[0])
        left, right = math.floor(x * width / grid[1]), math.ceil((x + 1) * width / grid[1])
        pixels = mask[i, 0, top:bottom, left:right].flatten().tolist()
        errors.append((float(visibility[i, 0, y, x]) - sum(pixels) / len(pixels)) ** 2)
    assert float(occlusion_loss(visibility, mask)) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@pytest.mark.parametrize("size", [112, 56, 100, 7, 5])
def test_occlusion_loss_of_uniform_masks(size: int) -> None:
    visibility = torch.full((2, 1, 7, 7), 0.75)
    assert float(occlusion_loss(visibility, torch.ones(2, 1, size, size))) == pytest.approx(1 / 16)
    assert float(occlusion_loss(visibility, torch.zeros(2, 1, size, size))) == pytest.approx(9 / 16)


def test_aligned_mask_is_the_mean_of_each_block() -> None:
    mask = (torch.rand(2, 1, 112, 112, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    for cells in (7, 14, 112):
        side = 112 // cells
        aligned = mask_to_cells(mask, (cells, cells))
        for y, x in [(0, 0), (cells - 1, 2), (3, cells - 1)]:
            block = mask[:, :, y * side : (y + 1) * side, x * side : (x + 1) * side]
            torch.testing.assert_close(aligned[..., y, x], block.mean((2, 3)))
        torch.testing.assert_close(aligned.mean(), mask.mean())
    half = torch.zeros(1, 1, 112, 112)
    half[..., :40] = 1  # 2.5 cells of 16 pixels
    assert mask_to_cells(half, (7, 7))[0, 0, 3].tolist() == [1, 1, 0.5, 0, 0, 0, 0]
    assert mask_to_cells(half > 0, (7, 7)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"\[B,1,H,W\]"):
        mask_to_cells(half[0], (7, 7))
    with pytest.raises(ValueError, match=r"\[B,1,H,W\]"):
        mask_to_cells(half.expand(1, 3, 112, 112), (7, 7))


def test_only_labelled_images_count() -> None:
    generator = torch.Generator().manual_seed(0)
    visibility = torch.rand((4, 1, 7, 7), generator=generator).requires_grad_()
    mask = torch.rand((4, 1, 112, 112), generator=generator)
    labelled = torch.tensor([True, False, True, False])
    loss = occlusion_loss(visibility, mask, labelled)
    torch.testing.assert_close(loss, occlusion_loss(visibility[labelled], mask[labelled]))
    changed = mask.clone()
    changed[~labelled] = 7.0
    assert torch.equal(loss, occlusion_loss(visibility, changed, labelled))
    loss.backward()
    assert visibility.grad is not None
    assert (visibility.grad[~labelled] == 0).all()
    assert (visibility.grad[labelled].abs().sum((1, 2, 3)) > 0).all()
    torch.testing.assert_close(
        occlusion_loss(visibility, mask, torch.ones(4, dtype=torch.bool)), occlusion_loss(visibility, mask)
    )


def test_no_labelled_image_is_a_connected_zero() -> None:
    logit = torch.randn(3, 1, 7, 7).requires_grad_()
    loss = occlusion_loss(logit.sigmoid(), torch.ones(3, 1, 112, 112), torch.zeros(3, dtype=torch.bool))
    assert loss.item() == 0
    assert loss.requires_grad
    loss.backward()
    assert logit.grad is not None
    assert (logit.grad == 0).all()


# --- distillation


def test_distillation_counts_cells_by_what_they_show() -> None:
    generator = torch.Generator().manual_seed(0)
    cells, target = (torch.randn(2, 5, 3, generator=generator) for _ in range(2))
    visibility = torch.rand(2, 5, generator=generator)
    visibility[0, 2] = 0
    error = length = 0.0
    for face, cell, number in product(range(2), range(5), range(3)):
        weight = float(visibility[face, cell])
        error += weight * float(cells[face, cell, number] - target[face, cell, number]) ** 2
        length += weight * float(target[face, cell, number]) ** 2
    found = distillation_loss(cells, target, visibility)
    assert found.item() == pytest.approx(error / length, rel=1e-5)
    cells[0, 2] = 1e3  # hidden: it may be anything
    torch.testing.assert_close(distillation_loss(cells, target, visibility), found)
    assert distillation_loss(cells, target, torch.zeros(2, 5)).item() == 0
    assert distillation_loss(target.half(), target.half(), visibility).item() == 0


# --- sum and guard


def test_combination() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    total = combine({"ada": a, "occlusion": b}, {"ada": 0.5, "qaconv": 9.0, "occlusion": 4.0})
    total.backward()
    assert (total.item(), a.grad, b.grad) == (13, 0.5, 4)
    with pytest.raises(KeyError):
        combine({"ada": a, "new": b}, {"ada": 1.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_guard_names_step_term_and_files(bad: float) -> None:
    terms = {"ada": torch.tensor(1.0), "qaconv": torch.tensor(bad), "occlusion": torch.tensor(0.0)}
    with pytest.raises(NonFiniteLoss) as caught:
        check_finite(terms, 1234, lambda: ["a/one.jpg", "b/two.jpg"])
    message = str(caught.value)
    assert isinstance(caught.value, OamlError)
    assert all(part in message for part in ("1234", "qaconv", str(bad), "a/one.jpg", "b/two.jpg"))
    assert "ada" not in message
    assert "\n" not in message
    terms["qaconv"] = torch.tensor(1e30)
    check_finite(terms, 1, list)


@pytest.mark.parametrize("name", ["ada", "qaconv", "occlusion", "joint"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_wrong_weights(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^weights\.{name}:"):
        LossWeights(**{name: value})


def test_every_term_has_a_voice_by_default() -> None:
    assert asdict(LossWeights()) == {"ada": 1, "qaconv": 1, "occlusion": 1, "joint": 1}
    assert LossWeights(joint=0).joint == 0  # switched off
