"""Training: where gradients go, what a step sees, resuming, two processes, faults."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from oaml import train_val
from oaml.data import DataConfig
from oaml.datasets.people import People, split_name
from oaml.errors import OamlError
from oaml.head import HeadConfig
from oaml.losses import NonFiniteLoss
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.qaconv import QAConvConfig
from oaml.support.files import write_file
from oaml.template import COLUMNS
from oaml.train_val import OcclusionFace, OptimiserConfig, TrainConfig, build_model, train
from oaml.weights import Preprocessing

TERMS = ("ada", "qaconv", "occlusion", "joint")


def tiny(out: Path, **changes: Any) -> TrainConfig:
    """Two people a batch on drawn faces: seconds on one core."""
    data = DataConfig(
        drawn_people=20,
        drawn_shots=3,
        use="train",
        identities=2,
        images=2,
        occlusion_batch=2,
        workers=0,
        **changes.pop("data", {}),
    )
    settings: dict[str, Any] = {
        "net": NetConfig(architecture="ir_mini", embedding_size=16),
        "qaconv": QAConvConfig(adapter=8),
        "head": HeadConfig(s=16.0),
        "optimiser": OptimiserConfig(kind="adamw", lr=1e-3),
        "steps": 3,
        "validate_every": 0,
        "picture_every": 0,
        "gradient_every": 1,
        "log_every": 1,
        "accelerator": "cpu",
    }
    return TrainConfig(out=out, data=data, **(settings | changes))


def batch_of(images: int = 4, occluded: int = 2, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def stream(count: int) -> dict[str, Any]:
        return {
            "image": torch.rand(count, 3, 112, 112, generator=generator),
            "mask": (torch.rand(count, 1, 112, 112, generator=generator) > 0.5).float(),
            "path": [f"file_{i}.png" for i in range(count)],
        }

    recognition = {**stream(images), "label": torch.arange(images) // 2}
    return (
        {"recognition": recognition, "occlusion": stream(occluded)}
        if occluded
        else {"recognition": recognition}
    )


def module_of(tmp_path: Path, **changes: Any) -> OcclusionFace:
    torch.manual_seed(0)
    config = tiny(tmp_path, augment=False, **changes)
    return OcclusionFace(config, Model(ModelConfig(net=config.net, qaconv=config.qaconv)), classnum=3)


def first_convolution(module: OcclusionFace) -> Tensor:
    return next(m for m in module.model.net.backbone.modules() if isinstance(m, nn.Conv2d)).weight


def gradient(loss: Tensor, parameter: Tensor) -> float:
    found = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)[0]
    return 0.0 if found is None else float(found.abs().sum())


@pytest.mark.parametrize("stage", [3, 4])
@pytest.mark.parametrize("method", ["none", "scaling", "normalized"])
def test_recognition_and_matching_reach_the_first_convolution(
    tmp_path: Path, stage: Any, method: Any
) -> None:
    qaconv = QAConvConfig(method=method, adapter=8, position_bias=method == "normalized")
    net = NetConfig(architecture="ir_mini", embedding_size=16, stage=stage)
    module = module_of(tmp_path, qaconv=qaconv, net=net)
    _, terms = module.terms(batch_of())
    assert gradient(terms["ada"], first_convolution(module)) > 0
    assert gradient(terms["qaconv"], first_convolution(module)) > 0


def test_a_frozen_front_stays_and_what_follows_learns(tmp_path: Path) -> None:
    module = module_of(tmp_path, freeze_front=True).train()
    before = {name: x.clone() for name, x in module.model.state_dict().items()}
    optimiser = torch.optim.AdamW(module.parameters(), 1e-2)
    torch.stack(list(module.terms(batch_of())[1].values())).sum().backward()
    optimiser.step()
    after = module.model.state_dict()
    # the input layer and the blocks of the first three stages, one each in this network
    front = tuple(f"net.backbone.{part}." for part in ("input_layer", "body.0", "body.1", "body.2"))
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(front)} <= kept
    learned = ("net.backbone.body.3.", "net.backbone.output_layer.", "net.occlusion_head.", "matcher.")
    for part in learned:
        assert any(name.startswith(part) for name in before.keys() - kept), part


NETS: dict[str, dict[str, Any]] = {
    "stage 3": {"stage": 3},
    "stage 4": {"stage": 4},
    "maps of stage 3": {"occlusion_stage": 3, "occlusion_context": True},
    "output layer twice": {"branch": "output"},
    "last stage twice": {"occlusion_stage": 3, "occlusion_context": True, "branch": "stage"},
}


@pytest.fixture(params=NETS)
def module_of_net(request: pytest.FixtureRequest, tmp_path: Path) -> OcclusionFace:
    """A module of every kind of network."""
    net = NetConfig(architecture="ir_mini", embedding_size=16, **NETS[request.param])
    return module_of(tmp_path, net=net)


def test_the_joint_loss_reaches_the_first_convolution(module_of_net: OcclusionFace) -> None:
    _, terms = module_of_net.terms(batch_of())
    net = module_of_net.model.net
    assert gradient(terms["joint"], first_convolution(module_of_net)) > 0
    assert all(gradient(terms["joint"], p) > 0 for p in module_of_net.model.joint.parameters())
    matched = net.output  # what splits the embedding into cells: the branch, where there is one
    assert all(gradient(terms["joint"], p) > 0 for n, p in matched.named_parameters() if "output" in n)
    if net.branch is not None:
        assert all(gradient(terms["ada"], p) == 0 for p in net.branch.parameters())
    if net.config.branch == "stage":
        own = dict(net.backbone.named_parameters())
        last_block = [p for name, p in own.items() if name.startswith("body.3.")]
        assert last_block
        # the backbone's own last stage is for the embedding alone
        assert all(gradient(terms["joint"], p) == 0 for p in last_block)


def test_visibility_is_detached_in_the_matching_losses(module_of_net: OcclusionFace) -> None:
    _, terms = module_of_net.terms(batch_of())
    head = list(module_of_net.model.net.occlusion_head.parameters())
    for term in ("ada", "qaconv", "joint"):
        assert all(gradient(terms[term], p) == 0 for p in head), term
    assert all(gradient(terms["occlusion"], p) > 0 for p in head)


def test_the_joint_loss_is_that_of_what_both_faces_show(tmp_path: Path) -> None:
    module = module_of(tmp_path).eval()
    batch = batch_of()
    output, terms = module.terms(batch)
    label, (a, v) = batch["recognition"]["label"], (output.stage4[:4], output.visibility[:4, 0].flatten(1))
    linear = cast(nn.Module, module.model.net.backbone.output_layer)
    cells = []
    for r in range(49):  # a cell alone, less what no cell at all gives
        alone = torch.zeros_like(a).flatten(2)
        alone[:, :, r] = a.flatten(2)[:, :, r]
        nothing = linear(torch.zeros_like(a))
        cells.append(linear(alone.view_as(a)) - nothing + nothing / 49)
    scores = torch.zeros(4, 4)
    joint = module.model.joint
    k0, k1, k2, k3 = joint.confidence
    for p in range(4):
        for g in range(4):
            left, right = (sum(v[p, r] * v[g, r] * cells[r][i] for r in range(49)) for i in (p, g))
            unseen = 1 - (v[p] * v[g]).mean()
            cosine = torch.nn.functional.cosine_similarity(left, right, 0)  # type: ignore[arg-type]
            scores[p, g] = (
                joint.log_scale.exp() * cosine * (1 + k1 * unseen) + k0 + k2 * unseen + k3 * unseen**2
            )
    wanted = module.matching_loss(scores, label[:, None] == label)
    torch.testing.assert_close(terms["joint"], wanted, rtol=1e-3, atol=1e-3)


def test_occlusion_gradient_reaches_the_backbone_only_when_shared(tmp_path: Path) -> None:
    for setting, reaches in (("shared", True), ("head", False)):
        module = module_of(tmp_path, occlusion_gradient=setting)
        _, terms = module.terms(batch_of())
        assert (gradient(terms["occlusion"], first_convolution(module)) > 0) == reaches


def test_every_parameter_is_trained(module_of_net: OcclusionFace) -> None:
    _, terms = module_of_net.terms(batch_of())
    sum(terms.values(), torch.tensor(0.0)).backward()
    parameters = dict(module_of_net.named_parameters())
    # no term holds the fused score, and two processes would wait for a parameter without a gradient
    left = {n for n, p in parameters.items() if not p.requires_grad}
    assert left == {f"model.fusion.{n}" for n, _ in module_of_net.model.fusion.named_parameters()}
    assert [n for n, p in parameters.items() if p.requires_grad and p.grad is None] == []


def test_a_batch_without_masks_trains_everything_but_the_head(tmp_path: Path) -> None:
    module = module_of(tmp_path)
    _, terms = module.terms(batch_of(occluded=0))
    assert float(terms["occlusion"].detach()) == 0
    sum(terms.values(), torch.tensor(0.0)).backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)  # connected: two processes stay in step
    assert all(
        bool((p.grad == 0).all()) for p in module.model.net.occlusion_head.parameters() if p.grad is not None
    )
    assert first_convolution(module).grad is not None
    assert bool((first_convolution(module).grad != 0).any())  # type: ignore[union-attr]


def test_drawn_masks_of_the_recognition_stream_count_only_when_asked(tmp_path: Path) -> None:
    other = batch_of()
    other["recognition"]["mask"] = 1 - other["recognition"]["mask"]
    for asked in (False, True):
        batches = (batch_of(), other)
        modules = [module_of(tmp_path, recognition_masks=asked) for _ in batches]
        losses = [float(m.terms(b)[1]["occlusion"].detach()) for m, b in zip(modules, batches, strict=True)]
        assert (losses[0] != losses[1]) == asked


@pytest.mark.parametrize("loss", ["balanced", "pairwise"])
def test_matching_losses_fall_when_scores_are_right(tmp_path: Path, loss: Any) -> None:
    module = module_of(tmp_path, matching_loss=loss)
    same = torch.arange(6)[:, None] // 2 == torch.arange(6)[None] // 2
    right, wrong = torch.where(same, 9.0, -9.0), torch.where(same, -9.0, 9.0)
    assert float(module.matching_loss(right, same)) < 0.1 * float(module.matching_loss(wrong, same))


def test_nan_stops_the_training_and_names_step_term_and_files(tmp_path: Path) -> None:
    module = module_of(tmp_path)
    batch = batch_of()
    batch["occlusion"]["image"][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"step 0: loss term .*occlusion = nan.*file_0.png"):
        module.training_step(batch, 0)


def test_train_writes_models_logs_pictures_and_every_term(tmp_path: Path) -> None:
    config = tiny(
        tmp_path / "run", steps=4, validate_every=2, picture_every=2, checkpoint_every=2, accumulate=2
    )
    last = train(config)
    model = Model.load(last)
    assert model.config.training["steps"] == 4
    assert Model.load(config.out / "best").config.training["validation"]["tar_cosine"] >= 0
    with (config.out / "logs" / "metrics.csv").open() as file:
        header = next(csv.reader(file))
    wanted = {f"{kind}/{term}" for kind in ("loss", "gradient") for term in TERMS}
    measures = (*(f"tar_{score}" for score in COLUMNS), "map_error_unoccluded", "map_error_occluded")
    assert (wanted | {"loss/total"} | {f"val/{m}" for m in measures}) <= set(header)
    picture = np.asarray(Image.open(config.out / "pictures" / "maps_0000002.png"))
    assert picture.std() > 10  # something is drawn
    # where TensorBoard is installed; it is an extra
    assert bool(list((config.out / "logs").glob("events*"))) == (find_spec("tensorboard") is not None)


def test_nobody_is_trained_on_and_validated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: set[str] = set()
    validated: set[str] = set()

    class Recorded(train_val.Validation):
        def __init__(self, people: People, config: TrainConfig) -> None:
            validated.update(people.people)
            super().__init__(people, config)

    class Streams(train_val.Streams):
        def __init__(self, config: TrainConfig, people: People, sampler: Any) -> None:
            trained.update(people.people)
            super().__init__(config, people, sampler)

    monkeypatch.setattr(train_val, "Validation", Recorded)
    monkeypatch.setattr(train_val, "Streams", Streams)
    train(tiny(tmp_path / "run", steps=1, validate_every=1))
    people = [f"drawn_{i:04d}" for i in range(20)]
    assert trained == {name for name in people if split_name(name) == "train"}
    assert validated == {name for name in people if split_name(name) == "calibrate"}
    assert len(validated) >= 2


def test_a_training_starts_from_a_model_folder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    given = Model(
        ModelConfig(
            net=NetConfig("ir_mini", 24, occlusion_stage=3, occlusion_context=True, branch="stage"),
            qaconv=QAConvConfig(adapter=4),
            preprocessing=Preprocessing("BGR"),
            training={"backbone": "somebody's"},
            thresholds={"0.001": 0.5},
        )
    )
    for parameter in given.parameters():  # nothing is as it starts
        parameter.data.add_(0.01)
    given.fusion.offset.fill_(0.3)
    given.fusion.overlap.fill_(2.0)
    given.fusion.lift.fill_(0.5)
    given.save(tmp_path / "given")
    config = tiny(tmp_path / "run", backbone=tmp_path / "given", steps=1)
    model = build_model(config)
    state, found = given.state_dict(), model.state_dict()
    assert found.keys() == state.keys()
    changed = [name for name in state if not torch.equal(state[name], found[name])]
    assert sorted(changed) == [
        "fusion.lift",
        "fusion.offset",
        "fusion.overlap",
    ]  # heads, matchers and branch are kept
    assert not found["fusion.offset"].any()
    assert not found["fusion.overlap"]
    assert found["fusion.lift"].isinf()
    assert model.config.thresholds == {}
    assert (model.config.net, model.config.qaconv) == (given.config.net, given.config.qaconv)
    assert model.config.preprocessing == given.config.preprocessing
    assert model.training
    assert Model.load(tmp_path / "given").config.thresholds == {"0.001": 0.5}  # the folder stays

    last = Model.load(train(config))
    assert last.config.net == given.config.net
    assert last.config.thresholds == {}
    assert not last.fusion.offset.any()
    assert not last.fusion.overlap
    assert last.config.training["backbone"] == "somebody's"
    assert last.config.training["steps"] == 1
    after = last.state_dict()
    for part in ("net.backbone.", "net.branch.", "net.occlusion_head.", "matcher.", "joint."):
        # one small step away from what was given, which is far from any start
        names = [name for name in state if name.startswith(part) and name.endswith("weight")] or [
            "joint.log_scale"
        ]
        assert any(not torch.equal(state[name], after[name]) for name in names), part
        assert all(float((state[name] - after[name]).abs().max()) < 0.02 for name in names), part


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    with pytest.raises(OamlError, match=r"given/config.json: no such file"):
        train(tiny(tmp_path / "run", backbone=tmp_path / "given"))


def weights(folder: Path) -> dict[str, Tensor]:
    return Model.load(folder).state_dict()


@pytest.mark.parametrize("sampler", ["pk", "graph"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path: Path, sampler: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = {"sampler": sampler, "graph_every": 2}
        schedule = OptimiserConfig(kind="sgd", lr=0.01, schedule="cosine", warmup=2)
        common: dict[str, Any] = {"accumulate": 2, "checkpoint_every": 3, "optimiser": schedule}
        whole = train(tiny(tmp_path / "whole", steps=6, data=dict(data), **common))
        # stop at step 3 by a fault in the fourth step, as a kill would
        broken = tiny(tmp_path / "broken", steps=6, data=dict(data), **common)
        original = OcclusionFace.training_step

        def stops(self: OcclusionFace, batch: Any, batch_idx: int) -> Tensor:
            if self.global_step == 4:
                raise RuntimeError("killed")
            return original(self, batch, batch_idx)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OcclusionFace, "training_step", stops)
            with pytest.raises(RuntimeError, match="killed"):
                train(broken)
        broken.resume = True
        resumed = train(broken)
    finally:
        torch.set_num_threads(threads)
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []


def test_a_run_that_is_there_is_neither_overwritten_nor_invented(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=1, checkpoint_every=1)
    config.resume = True
    with pytest.raises(OamlError, match="nothing to resume"):
        train(config)
    config.resume = False
    train(config)
    with pytest.raises(OamlError, match="resume"):
        train(config)


def test_full_disk_at_a_checkpoint_is_one_clear_error_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning as L

    config = tiny(tmp_path / "run", steps=2, checkpoint_every=1)
    original = L.Trainer.save_checkpoint
    calls = []

    def full(self: L.Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(path)
        original(self, path, *args, **kwargs)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(L.Trainer, "save_checkpoint", full)
    with pytest.raises(OamlError, match="No space left"):
        train(config)
    assert (config.out / "checkpoint.ckpt").exists()
    assert [p.name for p in config.out.iterdir() if "tmp" in p.name] == []
    monkeypatch.undo()
    config.resume = True
    train(config)  # the first checkpoint is whole


def test_people_with_one_image_each_are_refused(tmp_path: Path) -> None:
    for i in range(3):
        image = Image.fromarray(np.full((112, 112, 3), 40 * i, np.uint8))
        write_file(tmp_path / "people" / str(i) / "a.png", image.save)
    config = tiny(tmp_path / "run")
    config.data = DataConfig(people=tmp_path / "people", workers=0)
    with pytest.raises(OamlError, match="two images"):
        train(config)


DDP = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_train_val import tiny
from oaml import train_val
from oaml.train_val import OcclusionFace, Streams, train

# the second process never gets masks
original = Streams.train_dataloader
def loaders(self):
    found = original(self)
    if self.trainer.global_rank == 1:
        found.pop("occlusion")
    return found
Streams.train_dataloader = loaders
finish = OcclusionFace.on_train_end
def report(self):
    total = sum(float(p.double().abs().sum()) for p in self.parameters())
    said = f"{{total!r}} {{float(self.latest[0].mean())!r}} {{len(self.latest[0])}}"
    Path({out!r} + f".rank{{self.global_rank}}").write_text(said)  # their lines on stdout may mix
OcclusionFace.on_train_end = report
if __name__ == "__main__":
    train(tiny(Path({out!r}), devices=2, steps=3))
"""


def test_two_processes_stay_in_step_when_one_has_no_masks(tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(DDP.format(tests=str(Path(__file__).parent), out=str(tmp_path / "run")))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (total_0, mean_0, faces_0), (total_1, mean_1, faces_1) = (
        (tmp_path / f"run.rank{rank}").read_text().split() for rank in (0, 1)
    )
    assert total_0 == total_1  # the same parameters
    assert mean_0 != mean_1  # from different images
    assert (faces_0, faces_1) == ("6", "4")  # the second without masks
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["training"]["steps"] == 3
