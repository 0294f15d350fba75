"""The margin heads against published numbers and by their promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.head import AdaFace, ArcFace, CosFace, HeadConfig, build_head

GOLDEN = Path(__file__).parent / "golden"
FILES = ("adaface_head.npz", "adaface_head_ema.npz")


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    wanted = expected.numpy()
    np.testing.assert_allclose(
        actual.detach().numpy(), wanted, rtol=1e-4, atol=1e-5 * float(np.abs(wanted).max())
    )


def batch(count: int = 6, size: int = 8, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn((count, size), generator=generator) * 8
    norms = raw.norm(dim=1, keepdim=True)
    return raw / norms, norms, torch.arange(count) % classes


@pytest.mark.parametrize("name", FILES)
def test_adaface_takes_the_published_two_steps(name: str) -> None:
    arrays = golden(name)
    size, classes = arrays["kernel"].shape
    numbers = {key: float(arrays[key]) for key in ("m", "h", "s", "t_alpha")}
    head = AdaFace(size, classes, **numbers).train()
    head.kernel.data.copy_(arrays["kernel"])
    for step in range(2):
        embedding = arrays[f"embedding_{step}"].requires_grad_()
        label = arrays[f"label_{step}"]
        logits = head(embedding, arrays[f"norm_{step}"], label)
        loss = F.cross_entropy(logits, label)
        loss.backward()
        assert embedding.grad is not None
        assert_close(logits, arrays[f"logits_{step}"])
        assert float(loss.detach()) == pytest.approx(float(arrays[f"loss_{step}"]), rel=1e-5)
        assert_close(embedding.grad, arrays[f"grad_embedding_{step}"])
        assert_close(head.batch_mean, arrays[f"batch_mean_{step}"])
        assert_close(head.batch_std, arrays[f"batch_std_{step}"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("kind", "margin"), [(ArcFace, 0.5), (CosFace, 0.4)])
def test_published_arcface_and_cosface(name: str, kind: type[ArcFace | CosFace], margin: float) -> None:
    arrays = golden(name)
    head = kind(*arrays["kernel"].shape, m=margin, s=64.0)
    head.kernel.data.copy_(arrays["kernel"])
    logits = head(arrays["embedding_0"], arrays["norm_0"], arrays["label_0"])
    assert_close(logits, arrays[f"{kind.__name__.lower()}_logits_0"])


def test_adaface_on_paper() -> None:
    """One image at a time by the formula: angle moved by -m q at the own class, then m + m q off."""
    head = AdaFace(8, 5, m=0.4, h=0.333, s=64.0).eval()
    head.batch_mean.fill_(20)
    head.batch_std.fill_(6)
    embeddings, norms, label = batch()
    norms[0], norms[1] = 500.0, 1e-9  # beyond the clip on both sides
    logits = head(embeddings, norms, label)
    centres = head.kernel.detach()
    for i in range(len(label)):
        norm = min(max(float(norms[i]), 0.001), 100.0)
        q = min(max((norm - 20) / (6 + 0.001) * 0.333, -1.0), 1.0)
        for k in range(5):
            centre = centres[:, k] / centres[:, k].norm()
            cosine = float(embeddings[i] @ centre)
            if k == label[i]:
                cosine = math.cos(math.acos(cosine) - 0.4 * q) - (0.4 + 0.4 * q)
            assert float(logits[i, k].detach()) == pytest.approx(64 * cosine, abs=1e-3)


def test_better_images_get_a_harder_margin() -> None:
    """Above the mean norm the own class is pushed down more, near the centre; that is AdaFace's point."""
    torch.manual_seed(0)
    head = AdaFace(8, 5).eval()
    head.batch_mean.fill_(20)
    head.batch_std.fill_(5)
    embedding = F.normalize(head.kernel.detach()[:, :1].T + 0.2, dim=1).repeat(3, 1)
    norms, label = torch.tensor([[10.0], [20.0], [30.0]]), torch.zeros(3, dtype=torch.long)
    own = head(embedding, norms, label)[:, 0].detach()
    plain = 64 * head.cosine(embedding)[:, 0].detach()
    assert float(own[1]) == pytest.approx(float(plain[1]) - 64 * 0.4, abs=1e-3)
    assert own[2] < own[1] < own[0]


def test_evaluation_keeps_the_statistics() -> None:
    head = AdaFace(8, 5, t_alpha=0.5).eval()
    embeddings, norms, label = batch()
    first = head(embeddings, norms, label)
    assert (float(head.batch_mean), float(head.batch_std)) == (20, 100)
    assert torch.equal(first, head(embeddings, norms, label))
    head.train()(embeddings, norms, label)
    assert float(head.batch_mean) == pytest.approx((20 + float(norms.mean())) / 2)
    assert float(head.batch_std) == pytest.approx((100 + float(norms.std())) / 2)


@pytest.mark.parametrize("t_alpha", [0.01, 1.0])
def test_a_single_image(t_alpha: float) -> None:
    head = AdaFace(8, 5, t_alpha=t_alpha).train()
    embeddings, norms, label = batch(1)
    embeddings.requires_grad_()
    logits = head(embeddings, norms, label)
    F.cross_entropy(logits, label).backward()
    assert embeddings.grad is not None
    for x in (logits, embeddings.grad, head.batch_mean, head.batch_std):
        assert torch.isfinite(x).all()
    assert float(head.batch_std) == 100  # one image has no deviation


@pytest.mark.parametrize("kind", ["adaface", "arcface", "cosface"])
def test_finite_at_the_class_centre_and_opposite(kind: Any) -> None:
    """acos has no slope at +-1: embeddings that lie on a centre must not stop the training."""
    head = build_head(HeadConfig(kind=kind), 8, 5).train()
    centre = F.normalize(head.kernel.detach()[:, 0], dim=0)
    embeddings = torch.stack([centre, -centre]).requires_grad_()
    logits = head(embeddings, torch.tensor([[15.0], [25.0]]), torch.tensor([0, 0]))
    F.cross_entropy(logits, torch.tensor([0, 0])).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(logits).all()
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("kind", ["adaface", "arcface", "cosface"])
def test_autocast_computes_in_float32(kind: Any) -> None:
    head = build_head(HeadConfig(kind=kind), 8, 5).eval()
    embeddings, norms, label = batch()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(embeddings, norms, label)
        coarse = head(embeddings.bfloat16(), norms.bfloat16(), label)
    assert mixed.dtype == coarse.dtype == torch.float32
    assert torch.equal(mixed, head(embeddings, norms, label))
    assert torch.isfinite(coarse).all()


@pytest.mark.parametrize("kind", ["adaface", "arcface", "cosface"])
def test_gradients(kind: Any) -> None:
    head = build_head(HeadConfig(kind=kind), 8, 5).train()
    embeddings, norms, label = batch()
    embeddings, norms = embeddings.requires_grad_(), norms.requires_grad_()
    F.cross_entropy(head(embeddings, norms, label), label).backward()
    assert head.kernel.grad is not None
    assert embeddings.grad is not None
    assert (head.kernel.grad.abs().sum(0) > 0).all()  # every class centre
    assert (embeddings.grad.abs().sum(1) > 0).all()
    assert norms.grad is None  # quality is judged, not trained


@pytest.mark.parametrize(("kind", "made"), [("adaface", AdaFace), ("arcface", ArcFace), ("cosface", CosFace)])
def test_built_as_configured(kind: Any, made: type) -> None:
    head = build_head(HeadConfig(kind=kind, m=0.3, s=30.0, h=0.2, t_alpha=0.1), 8, 5)
    assert type(head) is made
    assert (head.m, head.s, tuple(head.kernel.shape)) == (0.3, 30.0, (8, 5))
    if isinstance(head, AdaFace):
        assert (head.h, head.t_alpha) == (0.2, 0.1)
    torch.testing.assert_close(head.kernel.norm(dim=0), torch.ones(5))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"kind": "softmax"}, "kind"),
        ({"t_alpha": 0}, "t_alpha"),
        ({"t_alpha": 1.5}, "t_alpha"),
        ({"s": 0}, "s"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^head\.{name}:"):
        HeadConfig(**wrong)
