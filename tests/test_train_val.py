"""Training: where gradients go, what a step sees, resuming, two processes, faults."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from oaml.data import DataConfig
from oaml.errors import OamlError
from oaml.files import write_file
from oaml.head import HeadConfig
from oaml.losses import NonFiniteLoss
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.qaconv import QAConvConfig
from oaml.train_val import OcclusionFace, OptimiserConfig, TrainConfig, train


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


def batch_of(images: int = 4, covered: int = 2, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def stream(count: int) -> dict[str, Any]:
        return {
            "image": torch.rand(count, 3, 112, 112, generator=generator),
            "mask": (torch.rand(count, 1, 112, 112, generator=generator) > 0.5).float(),
            "path": [f"file_{i}.png" for i in range(count)],
        }

    recognition = {**stream(images), "label": torch.arange(images) // 2}
    return (
        {"recognition": recognition, "occlusion": stream(covered)}
        if covered
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


def test_visibility_is_detached_in_the_matching_loss(tmp_path: Path) -> None:
    module = module_of(tmp_path)
    _, terms = module.terms(batch_of())
    head = list(module.model.net.occlusion_head.parameters())
    assert all(gradient(terms["qaconv"], p) == 0 for p in head)
    assert all(gradient(terms["ada"], p) == 0 for p in head)
    assert all(gradient(terms["occlusion"], p) > 0 for p in head)


def test_occlusion_gradient_reaches_the_backbone_only_when_shared(tmp_path: Path) -> None:
    for setting, reaches in (("shared", True), ("head", False)):
        module = module_of(tmp_path, occlusion_gradient=setting)
        _, terms = module.terms(batch_of())
        assert (gradient(terms["occlusion"], first_convolution(module)) > 0) == reaches


def test_every_parameter_is_trained(tmp_path: Path) -> None:
    module = module_of(tmp_path)
    _, terms = module.terms(batch_of())
    sum(terms.values(), torch.tensor(0.0)).backward()
    untouched = [n for n, p in module.named_parameters() if p.grad is None]
    assert untouched == []


def test_a_batch_without_masks_trains_everything_but_the_head(tmp_path: Path) -> None:
    module = module_of(tmp_path)
    _, terms = module.terms(batch_of(covered=0))
    assert float(terms["occlusion"].detach()) == 0
    sum(terms.values(), torch.tensor(0.0)).backward()
    assert all(p.grad is not None for p in module.parameters())  # connected: two processes stay in step
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
    wanted = {f"{kind}/{term}" for kind in ("loss", "gradient") for term in ("ada", "qaconv", "occlusion")}
    measures = ("tar_cosine", "tar_qaconv", "tar_qaconv_visibility", "map_error_bare", "map_error_covered")
    assert (wanted | {"loss/total"} | {f"val/{m}" for m in measures}) <= set(header)
    picture = np.asarray(Image.open(config.out / "pictures" / "maps_0000002.png"))
    assert picture.std() > 10  # something is drawn
    assert list((config.out / "logs").glob("events*"))  # TensorBoard


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
    print(f"RANK {{self.global_rank}} {{total!r}} {{float(self.latest[0].mean())!r}} {{len(self.latest[0])}}", flush=True)
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
    lines = [line[line.index("RANK") :].split() for line in done.stdout.splitlines() if "RANK" in line]
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(line[1] for line in lines) == ["0", "1"]
    assert lines[0][2] == lines[1][2]  # the same parameters
    assert lines[0][3] != lines[1][3]  # from different images
    assert sorted(line[4] for line in lines) == ["4", "6"]  # one of them without masks
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["training"]["steps"] == 3
