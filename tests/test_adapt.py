"""The cache of features, and `oaml adapt` from a checkpoint to a model folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from oaml.adaptation import adapt, cache, held_out, thresholds
from oaml.adaptation.cache import NO_OCCLUDER, CachePlan, FeatureCache
from oaml.adaptation.held_out import HeldOut
from oaml.datasets.drawn import draw_face
from oaml.datasets.masked import MaskedFolder
from oaml.datasets.people import PeopleFolder, split_name
from oaml.errors import OamlError
from oaml.losses import balanced_matching_loss
from oaml.main import main
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import occlude
from oaml.support.lock import alone
from oaml.visibility import mask_to_cells

KINDS = ["mask", "niqab"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn people, every third with one image only; three or more of each split have several."""
    folder = tmp_path_factory.mktemp("people")
    for i in range(24):
        for shot in range(1 if i % 3 == 2 else 2):
            path = folder / f"p{i:02d}" / f"{shot}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(draw_face(i, shot, 0)).save(path)
    several = [p.name for p in folder.iterdir() if len(list(p.iterdir())) > 1]
    assert sum(split_name(name) == "calibrate" for name in several) >= 2
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with statistics of its own, as a model folder."""
    torch.manual_seed(0)
    model = Model(ModelConfig(net=NetConfig(architecture="ir_mini", embedding_size=32), licence="test"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 2)
    return model.save(tmp_path_factory.mktemp("weights") / "backbone")


def cached(folder: Path, backbone: Path, people: Path, masks: Path | None = None) -> FeatureCache:
    trained = PeopleFolder(people, lambda name: split_name(name) == "train")
    sources = [] if masks is None else [MaskedFolder(masks)]
    return FeatureCache(folder, adapt.start(backbone), trained, CachePlan.make(trained, KINDS, 2, 0), sources)


# --- the cache


def test_rows_hold_what_their_names_say(tmp_path: Path, backbone: Path, people: Path) -> None:
    built = cached(tmp_path / "cache", backbone, people)
    built.build(show=False)
    plan, images = built.plan, built.people
    several = np.bincount(images.labels)[images.labels] > 1
    for image in range(len(images)):  # two views, each unoccluded and under two occluders, or one
        mine = [row for row in plan.rows if row.image == image]
        for view in (0, 1):
            kinds = [row.kind for row in mine if row.view == view]
            assert kinds.count(NO_OCCLUDER) == 1
            assert len(kinds) == (3 if several[image] else 2)
    for index in (0, 1, 4, 7, len(plan.rows) - 1):
        face, mask = built.face(index)
        features, visibility = built.rows(np.array([index]))
        expected = cache.stage3(built.model, [face]).astype(np.float32)
        stored = features.permute(0, 2, 3, 1).numpy()
        # a row was computed among others, and possibly in bfloat16: up to 3 % of the largest number
        assert np.abs(stored - expected).max() < 0.03 * np.abs(expected).max()
        aligned = mask_to_cells(torch.from_numpy(mask)[None, None], (14, 14))
        assert (visibility - aligned).abs().max() <= 0.5 / 255 + 1e-6
    plain = next(i for i, row in enumerate(plan.rows) if row.kind == NO_OCCLUDER and row.view == 0)
    assert np.array_equal(built.face(plain)[0], images.image(plan.rows[plain].image))
    # occluders leave the visible pixels of their own view alone unless relit, and the view is one for all of its occluders
    occluded = next(i for i, row in enumerate(plan.rows) if row.kind != NO_OCCLUDER and row.view == 1)
    assert not np.array_equal(built.face(occluded)[0], built.face(plain)[0])
    assert np.array_equal(built.face(occluded)[0], built.face(occluded)[0])


def test_a_killed_build_goes_on_and_ends_the_same(
    tmp_path: Path, backbone: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CHUNK", 16)
    monkeypatch.setattr(cache, "computes_in_bfloat16", lambda _: False)
    whole = cached(tmp_path / "whole", backbone, people)
    whole.build(show=False)

    real, calls = cache.stage3, []

    def killed(model: Model, images: list[np.ndarray], bfloat16: bool = False) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, images, bfloat16)

    monkeypatch.setattr(cache, "stage3", killed)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "cut", backbone, people).build(show=False)
    assert json.loads((tmp_path / "cut" / "state.json").read_text())["done"] == 32
    calls[:] = [0] * 10
    again = cached(tmp_path / "cut", backbone, people)
    again.build(show=False)
    assert sum(calls[10:]) == again.count - 32  # only the rest
    for name in ("features.npy", "visibility.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls[:] = [0] * 10
    cached(tmp_path / "cut", backbone, people).build(show=False)
    assert calls == [0] * 10


def test_a_stale_cache_is_made_anew(tmp_path: Path, backbone: Path, people: Path) -> None:
    own = shutil.copytree(people, tmp_path / "people")
    first = cached(tmp_path / "cache", backbone, own)
    first.build(show=False)
    before, key = np.array(first.features), first.key()
    changed = cached(tmp_path / "cache", backbone, own)
    assert changed.key() == key
    with torch.no_grad():
        next(changed.model.net.backbone.parameters()).mul_(1.5)
    assert changed.key() != key
    changed.build(show=False)
    assert np.abs(np.array(changed.features) - before).max() > 0
    # another image under the old name
    path = first.people.files[0]
    Image.fromarray(draw_face(99, 0, 0)).save(path)
    assert cached(tmp_path / "cache", backbone, own).key() not in (key, changed.key())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, backbone: Path, people: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "notes.txt").write_text("mine")
    with pytest.raises(OamlError, match="precious: is no cache and not empty"):
        cached(tmp_path / "precious", backbone, people).build(show=False)
    assert (tmp_path / "precious" / "notes.txt").read_text() == "mine"


def test_no_room_is_found_out_first(
    tmp_path: Path, backbone: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OamlError, match=r"cache takes .* GB and 0.0 GB are free"):
        cached(tmp_path / "cache", backbone, people).build(show=False)
    assert not (tmp_path / "cache").exists()


def test_pairs_show_one_person_and_keep_to_their_view(tmp_path: Path, backbone: Path, people: Path) -> None:
    built = cached(tmp_path / "cache", backbone, people)
    sampler = adapt.PairSampler(built, seed=0)
    rows, originals = sampler.batch(8)
    plan, labels = built.plan.rows, built.people.labels
    pairs = len(rows) // 2
    person = labels[[plan[row].image for row in rows]]
    assert (person[:pairs] == person[pairs:]).all()
    assert len(set(person[:pairs])) == pairs
    for row, original in zip(rows, originals, strict=True):
        assert plan[original].kind == NO_OCCLUDER
        assert plan[original][:2] == plan[row][:2]
    for a, b in zip(rows[:pairs], rows[pairs:], strict=True):  # never one view twice
        assert plan[a][:2] != plan[b][:2]


# --- the command


def run(people: Path, backbone: Path, out: Path, *more: str) -> int:
    return main(
        [
            *("adapt", "--backbone", str(backbone), "--people", str(people), "--out", str(out)),
            *("--occluders_per_view", "2", "--occlusion_steps", "3", "--steps", "2", "--device", "cpu"),
            *more,
        ]
    )


@dataclass
class Used:
    """Which people `adapt` used for what, and in which style they were occluded."""

    trained: set[str] = field(default_factory=set)
    calibrated: tuple[set[str], str] = (set(), "")
    judged: tuple[set[str], str] = (set(), "")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Used:
    """Filled in by the next run."""
    seen = Used()

    class Cache(FeatureCache):
        def build(self, show: bool = True) -> None:
            seen.trained = {self.people.people[self.people.labels[row.image]] for row in self.plan.rows}
            super().build(show)

    def calibrated(model: Model, faces: HeldOut) -> None:
        seen.calibrated = set(faces.people.people), faces.occluder.style
        thresholds.calibrate(model, faces)

    def judged(model: Model, faces: HeldOut) -> Any:
        seen.judged = set(faces.people.people), faces.occluder.style
        return held_out.scores(model, faces)

    monkeypatch.setattr(adapt, "FeatureCache", Cache)
    monkeypatch.setattr(adapt, "calibrate", calibrated)
    monkeypatch.setattr(adapt, "scores", judged)
    return seen


@pytest.mark.parametrize(("last_stage", "use"), [(True, "all"), (False, "train")])
@pytest.mark.filterwarnings("ignore:.*impostor pairs are held out")
def test_adapt(
    tmp_path: Path,
    backbone: Path,
    people: Path,
    last_stage: bool,
    use: str,
    used: Used,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--last_stage", str(last_stage).lower(), "--use", use]
    assert run(people, backbone, tmp_path / "model", *options) == 0
    split = {person.name: split_name(person.name) for person in people.iterdir()}
    may_train = ("train", "report") if use == "all" else ("train",)
    kept = {person for person, name in split.items() if name == "calibrate"}
    assert used.trained == {person for person, name in split.items() if name in may_train}
    assert used.calibrated == (kept, "a")
    assert used.judged == (kept, "b")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.cache"}
    shown = capsys.readouterr().out
    for word in ("cosine", "fused", "unoccluded", "niqab", "all, one threshold"):
        assert word in shown
    model, checkpoint = Model.load(tmp_path / "model"), Model.load(backbone)
    for (
        name,
        values,
    ) in checkpoint.net.backbone.state_dict().items():  # the checkpoint's own network is untouched
        assert torch.equal(values, model.net.backbone.state_dict()[name])
    fresh = adapt.start(backbone, last_stage)
    trained = dict(model.named_parameters())
    moved = {name for name, p in fresh.named_parameters() if not torch.equal(p, trained[name])}
    for part in ("net.occlusion_head.", "matcher.", "joint.log_scale"):
        assert any(name.startswith(part) for name in moved)
    assert any(name.startswith("net.branch.output_layer") for name in moved)
    assert any(name.startswith("net.branch.body") for name in moved) == last_stage
    assert model.config.net.branch == ("stage" if last_stage else "output")
    training = model.config.training
    assert "drawn" in training["covers"]
    assert "niqab" in training["covers"]
    images = sum(len(list((people / person).iterdir())) for person in used.trained)
    assert training["people"] == f"{len(used.trained)} people with {images} images of {people.name}"
    faces = torch.rand(2, 3, 112, 112)
    with torch.inference_mode():
        same = (model(faces).embedding - checkpoint(faces).embedding).abs().max()
    assert same < 1e-5


def test_every_trained_part_gets_a_gradient(
    tmp_path: Path, backbone: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = cached(tmp_path / "cache", backbone, people)
    built.build(show=False)
    model = built.model
    seen: dict[str, float] = {}

    def look(optimiser: torch.optim.Optimizer, terms: dict[str, torch.Tensor], *_: object) -> None:
        torch.stack(list(terms.values())).sum().backward()
        seen.update({n: float(p.grad.abs().sum()) for n, p in model.named_parameters() if p.grad is not None})
        assert set(terms) == {"joint", "qaconv", "fused", "gallery", "distillation", "embedding"}

    monkeypatch.setattr(adapt, "_step", look)
    visibility = np.array(built.visibility[: len(built.plan.rows)])
    adapt.train_matchers(model, built, visibility, adapt.Schedule(1, 8, 1e-3), 0)
    for name, _ in model.named_parameters():
        if name.startswith(("net.branch.", "matcher.", "joint.")) and "num_batches" not in name:
            assert seen.get(name, 0) > 0, name
    assert not any(name.startswith(("net.backbone.", "net.occlusion_head.")) for name in seen)


def test_real_masks_join_in(tmp_path: Path, backbone: Path, people: Path) -> None:
    for i in range(3):
        image, mask = occlude(draw_face(60 + i, 0, 0), "hand", np.random.default_rng(i))
        for folder, picture in (("images", image), ("masks", np.rint(mask * 255).astype(np.uint8))):
            (tmp_path / "masks" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "masks" / folder / f"{i}.png")
    built = cached(tmp_path / "cache", backbone, people, tmp_path / "masks")
    built.build(show=False)
    assert built.count == len(built.plan.rows) + 6
    source = MaskedFolder(tmp_path / "masks")
    for i in range(6):
        image, mask = source.pair(i // 2)
        face, visible = built.face(len(built.plan.rows) + i)
        assert np.array_equal(face, image[:, ::-1] if i % 2 else image)
        assert np.array_equal(visible, mask[:, ::-1] if i % 2 else mask)
    assert built.name(built.count - 1).endswith("2.png")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--occluders_per_view", "0"], ["--occluders_per_view: 0"]),
        (["--seed", "-1"], ["--seed: -1"]),
        (["--device", "nowhere"], ["nowhere", "cpu"]),
    ],
)
def test_bad_options(
    tmp_path: Path,
    backbone: Path,
    people: Path,
    more: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(people, backbone, tmp_path / "model", *more) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in words)
    assert not (tmp_path / "model").exists()


def test_too_few_people(
    tmp_path: Path, backbone: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    for person in sorted(people.iterdir())[:3]:
        shutil.copytree(person, few / person.name)
    assert run(few, backbone, tmp_path / "model") == 1
    assert "at least 2 are needed" in capsys.readouterr().err
    assert run(tmp_path / "missing", backbone, tmp_path / "model") == 1
    assert "missing" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_kept(
    tmp_path: Path, backbone: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("x")
    assert run(people, backbone, tmp_path / "mine") == 1
    assert "mine" in capsys.readouterr().err
    assert (tmp_path / "mine" / "a.txt").read_text() == "x"


@pytest.mark.filterwarnings("ignore:.*impostor pairs are held out")
def test_pairs_are_used_and_what_is_left_out_is_said(
    tmp_path: Path, backbone: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        image, mask = occlude(draw_face(60 + i, 0, 0), "hand", np.random.default_rng(i))
        for folder, picture in (("images", image), ("masks", np.rint(mask * 255).astype(np.uint8))):
            (tmp_path / "masks" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "masks" / folder / f"{i}.png")
    (tmp_path / "masks" / "masks" / "1.png").unlink()
    words = ["--masks", str(tmp_path / "masks")]
    assert run(people, backbone, tmp_path / "model", *words) == 1
    assert "images/1.png: image without a mask" in (said := capsys.readouterr().err)
    assert "--unlabelled skip" in said
    assert run(people, backbone, tmp_path / "model", *words, "--unlabelled", "skip") == 0
    assert f"{tmp_path / 'masks'}: 1 image without a mask left out\n" in capsys.readouterr().err


def test_a_second_call_on_one_model_or_cache_is_refused(
    tmp_path: Path, backbone: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for held, words in ((".model.lock", []), (".kept.lock", ["--cache", str(tmp_path / "kept")])):
        with alone(tmp_path / held, "never said"):
            assert run(people, backbone, tmp_path / "model", *words) == 1
        assert f"{held[1:-5]}: another oaml adapt writes to it; wait for its end" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_a_bad_picture_of_somebody_held_out_is_found_before_the_work(
    tmp_path: Path, backbone: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copytree(people, tmp_path / "people")
    person = next(p for p in sorted(own.iterdir()) if split_name(p.name) == "calibrate")
    bad = person / "0.png"
    bad.write_bytes(bad.read_bytes()[:5000])
    assert run(own, backbone, tmp_path / "model") == 1
    assert f"oaml adapt: {bad}: is not a readable image" in capsys.readouterr().err
    assert not (tmp_path / "model.cache").exists()


def test_impostors_of_the_gallery_are_other_people_unoccluded(
    tmp_path: Path, backbone: Path, people: Path
) -> None:
    built = cached(tmp_path / "cache", backbone, people)
    sampler = adapt.PairSampler(built, 0)
    present = {0, 1}
    rows = sampler.impostors(present, 3)
    assert len(rows) == 3
    owners = [int(built.people.labels[built.plan.rows[row].image]) for row in rows]
    assert len({*owners} | present) == 5
    assert all(built.plan.rows[row].kind == NO_OCCLUDER for row in rows)
    assert len(sampler.impostors(present, 10_000)) == len(built.people.people) - 2


def test_gallery_loss_against_a_loop_over_pairs(backbone: Path) -> None:
    model = adapt.start(backbone)
    generator = torch.Generator().manual_seed(0)
    owners = [3, 8, 3, 8]
    cells = torch.randn(4, 49, 32, generator=generator, requires_grad=True)
    known = torch.randn(6, 49, 32, generator=generator)
    seen = torch.rand(4, 1, 7, 7, generator=generator)
    loss = adapt._gallery_loss(model, cells, seen, known, owners)
    logits, same = torch.full((4, 6), -30.0), torch.zeros(4, 6, dtype=torch.bool)
    for i in range(4):
        for j in range(6):
            if i == j:
                continue
            compared = model.joint.compare_pairs(
                cells[i : i + 1], known[j : j + 1], seen[i : i + 1], torch.ones(1, 1, 7, 7)
            )
            logits[i, j] = model.joint.logit(compared.cosine, compared.unseen)[0]
            same[i, j] = j < 4 and owners[i] == owners[j]
    assert same.sum() == 4
    torch.testing.assert_close(loss, balanced_matching_loss(logits, same))
    loss.backward()
    assert cells.grad is not None
    assert (cells.grad.abs().sum((1, 2)) > 0).all()
