"""Transformers that leave out what an occluder hides, and 12x12 cells from masks to answers."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.gallery.rows import pattern_vectors, probe_vectors
from oaml.model import Model, ModelConfig
from oaml.net import BACKBONES, Net, NetConfig
from oaml.qaconv import QAConvConfig
from oaml.visibility import TOKENS, cell_visibility, mask_to_cells, shared_visibility
from oaml.vit import SHOWN_FROM, ViT, ViTSize, as_map, as_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
MINI = ViTSize(32, 6)


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """`vit_t` is a small transformer here."""
    monkeypatch.setitem(BACKBONES, "vit_t", lambda config: ViT(MINI, config.embedding_size))


def seeded(module: Any) -> Any:
    """Eval mode, with weights and statistics that nothing is equal under by chance."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point() and ("backbone" in name or "branch" in name or value.ndim != 1):
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return module.eval()


def transformer() -> Any:
    torch.manual_seed(0)
    return seeded(ViT(MINI, 16))


def net(branch: Literal["none", "stage"] = "stage") -> Any:
    torch.manual_seed(0)
    return seeded(Net(NetConfig("vit_t", 16, occlusion_stage=3, occlusion_context=True, branch=branch)))


def stage3(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, MINI.width, *TOKENS, generator=torch.Generator().manual_seed(seed))


def maps(count: int = 2, seed: int = 2) -> Tensor:
    return torch.rand(count, 1, *TOKENS, generator=torch.Generator().manual_seed(seed))


def written_out(backbone: Any, tokens: Tensor, kept: list[int]) -> Tensor:
    """The later blocks on the listed tokens of one face, as the published network computes them; [144,D]."""
    x = tokens[kept]
    for block in list(backbone.blocks)[backbone.first :]:
        y = block.norm1(x)
        q, k, v = (part.view(len(x), 8, -1).transpose(0, 1) for part in block.attn.qkv(y).chunk(3, 1))
        weight = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)
        x = x + block.attn.proj((weight @ v).transpose(0, 1).flatten(1))
        x = x + block.mlp.fc2(block.mlp.fc1(block.norm2(x)).clamp(0, 6))
    whole = backbone.mask_token[0].repeat(len(tokens), 1)
    whole[kept] = backbone.norm(x)
    return whole


@torch.no_grad()
def test_the_visible_tokens_alone_are_computed() -> None:
    backbone, features, visibility = transformer(), stage3(), maps()
    occluded = as_tokens(backbone.forward_occluded(features, visibility))
    for face in range(2):
        kept = (visibility[face].flatten() >= SHOWN_FROM).nonzero()[:, 0].tolist()
        assert 20 < len(kept) < 124
        expected = written_out(backbone, as_tokens(features)[face], kept)
        torch.testing.assert_close(occluded[face], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_nothing_occluded_is_the_whole_network() -> None:
    backbone, features = transformer(), stage3()
    whole = backbone.forward_stage4(features)
    torch.testing.assert_close(backbone.forward_occluded(features, torch.ones(2, 1, *TOKENS)), whole)
    every = written_out(backbone, as_tokens(features)[0], list(range(144)))
    torch.testing.assert_close(as_tokens(whole)[0], every, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_an_occluded_region_contains_changes_no_number() -> None:
    made, visibility = net(), maps()
    features = stage3()
    hidden = visibility < SHOWN_FROM
    other = torch.where(hidden, 1000 * stage3(seed=5), features)
    for a, b in zip(made.matched(features, visibility), made.matched(other, visibility), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(made.backbone.forward_stage4(features), made.backbone.forward_stage4(other))
    mask_token = made.output.mask_token[0, 0]
    assert torch.equal(
        as_tokens(made.matched(features, visibility))[hidden.flatten(1)],
        mask_token.expand(int(hidden.sum()), -1),
    )


@torch.no_grad()
def test_a_batch_equals_one_at_a_time() -> None:
    made, features = net(), stage3(5)
    visibility = maps(5)
    visibility[1], visibility[2] = 1, 0  # all of a face, and nothing
    visibility[3, :, 6:] = 0
    together = made.matched(features, visibility)
    assert bool(together.isfinite().all())
    for face in range(5):
        alone = made.matched(features[face : face + 1], visibility[face : face + 1])
        torch.testing.assert_close(together[face : face + 1], alone, rtol=1e-4, atol=1e-5)
    nothing = made.matched(features[2:3], visibility[2:3])
    assert torch.equal(as_tokens(nothing)[0], made.output.mask_token[0].expand(144, -1))


@torch.no_grad()
def test_the_cells_add_up() -> None:
    backbone, features = transformer(), stage3()
    cells = backbone.cells(features)
    embedding, norm = backbone.forward_head(features)
    assert cells.shape == (2, 144, 16)
    torch.testing.assert_close(cells.sum(1), embedding * norm, rtol=1e-4, atol=1e-4)
    changed = features.clone()
    changed[:, :, 3, 4] += 1
    difference = (backbone.cells(changed) - cells).abs().sum(2)
    assert (difference > 1e-3).nonzero()[:, 1].tolist() == [3 * 12 + 4] * 2


@torch.no_grad()
def test_left_out_tokens_count_as_hidden() -> None:
    """Two mask tokens are equal whoever they belong to: compared, they would make strangers alike."""
    made = net()
    made.occlusion_head.conv2.weight.mul_(3)
    out = made(torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(3)))
    assert 0 < int((out.fine < SHOWN_FROM).sum()) < out.fine.numel()
    assert torch.equal(out.visibility, out.fine * (out.fine >= SHOWN_FROM))
    assert out.visibility.shape == (2, 1, 12, 12)
    assert torch.equal(out.features, out.stage4)
    plain = net(branch="none")
    assert torch.equal(plain.usable(out.fine), out.fine)


def test_in_training_a_tenth_of_the_tokens_is_left_out() -> None:
    backbone = transformer().train()
    torch.manual_seed(0)
    tokens = as_tokens(backbone.forward_stage4(stage3(3)))
    masked = (tokens == backbone.mask_token).all(2)
    assert masked.sum(1).tolist() == [15, 15, 15]
    assert not torch.equal(masked[0], masked[1])
    tokens[..., 0].sum().backward()
    assert backbone.mask_token.grad is not None
    assert bool(backbone.mask_token.grad.any())


def test_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    made = net(branch="none").train()
    out = made(torch.randn(3, 3, 112, 112))
    loss = (out.embedding * torch.randn(3, 16)).sum() + out.norm.sum() + out.visibility.square().sum()
    loss.backward()
    without = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@torch.no_grad()
def test_a_copy_without_the_front_is_the_same_last_stage() -> None:
    whole, features = transformer(), stage3()
    back = whole.without_front()
    assert torch.equal(back.forward_stage4(features), whole.forward_stage4(features))
    assert torch.equal(back.forward_head(features)[0], whole.forward_head(features)[0])
    output = whole.without_front(stage4=False)
    assert torch.equal(output.cells(features), whole.cells(features))
    assert not list(output.blocks)
    assert as_map(as_tokens(features)).equal(features)


def test_under_autocast() -> None:
    made = net()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = made(torch.rand(2, 3, 112, 112))
    assert out.embedding.dtype == out.visibility.dtype == torch.float32
    assert bool(out.features.isfinite().all())


def test_a_token_sees_nine_pixels() -> None:
    """The last four rows and columns belong to no token, of an image as of a mask."""
    backbone = transformer()
    x = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 108:], changed[..., 108:] = 0, 0
    with torch.no_grad():
        assert torch.equal(backbone.forward_stage3(x), backbone.forward_stage3(changed))
    mask = torch.ones(1, 1, 112, 112)
    mask[:, :, 9:18, 27:36] = 0
    mask[:, :, :, 108:] = 0
    cells = mask_to_cells(mask, TOKENS)
    assert (cells == 0).nonzero().tolist() == [[0, 0, 1, 3]]
    assert int((cells == 1).sum()) == 143
    assert mask_to_cells(torch.ones(1, 1, 256, 256), TOKENS).eq(1).all()


def test_visibility_on_tokens() -> None:
    a, b = maps(), maps(seed=3)
    assert torch.equal(cell_visibility(a), a.flatten(1))
    torch.testing.assert_close(shared_visibility(a, b), (a * b).double().flatten(1).mean(1))


@torch.no_grad()
def test_a_model_compares_and_explains_on_tokens() -> None:
    torch.manual_seed(0)
    config = NetConfig("vit_t", 16, occlusion_stage=3, branch="stage")
    model = seeded(Model(ModelConfig(config, QAConvConfig(adapter=8), flip=True)))
    images = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    templates = model.extract(images)
    assert templates.cell_embeddings.shape == (3, 144, 16)
    assert templates.local.shape == (3, 8, 12, 12)
    everybody = model.compare_all(templates, templates)
    by_row = model.compare(templates[:2], templates[1:])
    for name, values in by_row.items():
        torch.testing.assert_close(values, everybody[name].diagonal(1).to(values.dtype), rtol=1e-4, atol=1e-4)
    assert bool(torch.stack([x.double() for x in everybody.values()]).isfinite().all())

    v_a, v_b = templates.visibility[0], templates.visibility[1]
    joint = model.joint.explain(templates.cell_embeddings[0], templates.cell_embeddings[1], v_a, v_b)
    assert joint.share.shape == TOKENS
    weight = (v_a * v_b).view(144, 1)
    sums = [(templates.cell_embeddings[i] * weight).sum(0) for i in (0, 1)]
    assert joint.cosine == pytest.approx(float(F.cosine_similarity(*sums, dim=0)), abs=1e-5)

    vectors = pattern_vectors(templates)
    raw = (templates.cell_embeddings * templates.visibility.flatten(1)[..., None]).sum(1)
    torch.testing.assert_close(vectors["all"], F.normalize(raw, dim=1))
    assert not torch.equal(vectors["eyes"], vectors["all"])
    assert probe_vectors(templates)[1].shape == (3, 16)
