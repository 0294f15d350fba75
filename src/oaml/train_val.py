"""Training: AdaFace + QAConv + occlusion MSE from two streams, one forward pass a step, validated on occluded faces.

`oaml train --config FILE` reads a TrainConfig. Time is counted in optimiser steps. Every random choice is a function of
(seed, step, process), so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import errno
import logging
import math
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from oaml.data import (
    Augment,
    DataConfig,
    GraphSampler,
    MixSampler,
    OcclusionStream,
    PKSampler,
    RecognitionStream,
    loader,
    sample,
)
from oaml.datasets.check import Check, check_pictures
from oaml.datasets.people import People, PeopleFolder, hashed_names
from oaml.errors import OamlError, few
from oaml.head import HeadConfig, build_head
from oaml.inference import as_input
from oaml.losses import (
    LossWeights,
    balanced_matching_loss,
    check_finite,
    combine,
    hard_triplet_loss,
    occlusion_loss,
    pairwise_matching_loss,
    same_person,
)
from oaml.model import Model, ModelConfig
from oaml.net import FaceOutput, NetConfig
from oaml.occluders import occlude
from oaml.qaconv import QAConvConfig
from oaml.resume import Settings, check_fits, compare, read_checkpoint
from oaml.support.files import FACE_SIZE, read_photograph, sync, write_file
from oaml.support.folders import say_left_out
from oaml.support.lock import alone
from oaml.support.metrics import auc, tar_at_far
from oaml.support.names import printable
from oaml.template import Templates
from oaml.visibility import mask_to_cells
from oaml.weights import Preprocessing

CHECKPOINT = "checkpoint.ckpt"


@dataclass
class OptimiserConfig:
    """Optimiser and schedule."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """sgd (momentum 0.9) or adamw."""
    lr: float = 0.1
    """Peak learning rate."""
    backbone_lr: float = 1.0
    """Factor on the learning rate of the backbone; below 1 when it starts from published weights."""
    weight_decay: float = 5e-4
    """Not applied to biases, norms and single numbers."""
    warmup: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["step", "cosine"] = "step"
    """step: a tenth at every milestone. cosine: to zero at the last step."""
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75, 0.9])
    """Where the step schedule drops, as shares of the run."""
    clip: float = 5.0
    """Largest norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.backbone_lr < 0 or self.weight_decay < 0 or self.clip < 0 or self.warmup < 0:
            raise ValueError(
                "optimiser: lr must be positive; backbone_lr, weight_decay, clip and warmup 0 or more"
            )
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError(f"optimiser.milestones: {self.milestones} are shares of the run, in (0, 1)")

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate at `step` of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "cosine":
            return 0.5 * (
                1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1, steps - self.warmup)))
            )
        return 0.1 ** sum(step >= share * steps for share in self.milestones)


@dataclass
class TrainConfig:
    """Everything that `oaml train` does."""

    out: Path
    """Folder for the models (best/, last/), logs/, pictures/ and the checkpoint to resume from."""
    data: DataConfig
    backbone: Path | None = None
    """Published weights, or a model folder (whose matchers and occlusion head are kept), to start from; `net` is then theirs and
    not used, but for `net.stage` with published weights."""
    net: NetConfig = field(default_factory=NetConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """What the network is fed; published weights bring their own."""
    qaconv: QAConvConfig = field(default_factory=QAConvConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    matching_loss: Literal["balanced", "pairwise"] = "balanced"
    """balanced: genuine, impostor and hard impostor pairs weigh the same. pairwise: as published for QAConv (pairwise
    cross-entropy + hard triplet)."""
    occlusion_gradient: Literal["shared", "head"] = "shared"
    """shared: the occlusion loss trains the backbone too. head: only the occlusion head."""
    freeze_front: bool = False
    """Keep the backbone up to stage 3 as it is, its norms too, and train only what follows."""
    recognition_masks: bool = False
    """Let drawn occluders of the recognition stream train the occlusion head as well."""
    augment: bool = True
    """Flip, move, colour and blur images (their masks move with them)."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    steps: int = 100_000
    """Optimiser steps."""
    accumulate: int = 1
    """Batches whose gradients are added up before an optimiser step."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Mixed precision; heads, losses and matching stay in float32."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto is a GPU where there is one."""
    devices: int = 1
    """Processes; above 1 they train data-parallel (DDP)."""
    seed: int = 0
    """Of everything random."""
    validate_every: int = 1000
    """Steps between validations on occluded faces of the calibration people; 0 does not validate."""
    validation_people: int = 200
    """Most people in a validation."""
    picture_every: int = 1000
    """Steps between map pictures (image, true map, predicted map); 0 draws none."""
    gradient_every: int = 100
    """Steps between logs of every term's gradient norm at the feature map; 0 logs none."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between log lines."""
    resume: bool = False
    """Continue from the checkpoint in `out`. Steps, learning rate and schedule, weight decay, clipping, intervals, workers and
    accelerator may be others, and folders may have moved; other settings are refused."""
    check: Check = "fast"
    """Look at all pictures before the first step. fast: that they are there, and of what size. full: decode every one. off: go on
    until the first that can't be used is met."""
    licence: str = "unstated"
    """Licence of the resulting weights, stored with them."""
    dry_run: bool = False
    """Do the first step, print its losses, and write nothing."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "devices", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        for name in ("validate_every", "picture_every", "gradient_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; 0 switches it off")


class OcclusionFace(L.LightningModule):
    """The multi-task training step.

    Batches are {"recognition": {image, mask, path, label}, "occlusion": {image, mask, path}}; the second may be missing.
    """

    def __init__(
        self, config: TrainConfig, model: Model, classnum: int, sampler: PKSampler | None = None
    ) -> None:
        super().__init__()
        self.config, self.model, self.sampler = config, model, sampler
        # calibrated after a training, not by its terms: DDP stops at a parameter that no term reaches
        model.fusion.requires_grad_(False)
        if config.freeze_front:
            for parameter in model.net.backbone.front_parameters():
                parameter.requires_grad_(False)
        self.head = build_head(config.head, model.config.net.embedding_size, classnum)
        self.augment = Augment() if config.augment else None
        self.batches_done = 0
        self.best = -math.inf
        self.latest: tuple[Tensor, Tensor, Tensor] | None = None  # for the map pictures
        self.validation: Validation | None = None
        self.people_hashed: list[str] = []
        self.harvested = ""

    def training_step(self, batch: Mapping[str, Mapping[str, Any]], batch_idx: int) -> Tensor:
        """One batch -> total loss. Seeds the process first, so that augmentation and dropout belong to the step."""
        torch.manual_seed(hash((self.config.seed, self.batches_done, self.global_rank)) % 2**63)
        output, terms = self.terms(batch)
        files = [path for stream in batch.values() for path in stream["path"]]
        check_finite(terms, self.global_step, lambda: files)
        weights = asdict(self.config.weights)
        total = combine(terms, weights)
        every = self.config.gradient_every
        if every and self.global_step % every == 0:
            for name, term in terms.items():
                gradient = torch.autograd.grad(
                    weights[name] * term, output.features, retain_graph=True, allow_unused=True
                )[0]
                norm = 0.0 if gradient is None else float(gradient.norm())
                self.log(f"gradient/{name}", norm, rank_zero_only=True)
        self.log_dict({f"loss/{name}": term.detach() for name, term in terms.items()}, rank_zero_only=True)
        self.log("loss/total", total.detach(), prog_bar=True, rank_zero_only=True)
        self.batches_done += 1
        return total

    def terms(self, batch: Mapping[str, Mapping[str, Any]]) -> tuple[FaceOutput, dict[str, Tensor]]:
        """Both streams in one forward pass -> output of all images, loss terms before their weights."""
        recognition, occlusion = batch["recognition"], batch.get("occlusion")
        streams = [recognition] if occlusion is None else [recognition, occlusion]
        images = torch.cat([stream["image"] for stream in streams])
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        masks = torch.cat([stream["mask"] for stream in streams]).float()
        if self.augment is not None:
            images, masks = self.augment(images, masks)
        output = self.see(images)
        count = len(recognition["label"])
        label, features = recognition["label"], output.features[:count]
        visibility = output.visibility[
            :count
        ].detach()  # a map tells what shows, not what would please the matcher
        logits = self.head(output.embedding[:count], output.norm[:count], label)
        scores = self.model.matcher(features, features, visibility, visibility)
        cells = self.model.cell_embeddings(output)[:count]
        joint = self.model.joint(cells, cells, visibility, visibility)
        labelled = torch.arange(len(images), device=images.device) >= (
            0 if self.config.recognition_masks else count
        )
        self.latest = (images.detach(), masks, output.visibility.detach())
        terms = {
            "ada": F.cross_entropy(logits, label),
            "qaconv": self.matching_loss(scores, same_person(label, label)),
            "occlusion": occlusion_loss(output.fine, masks, labelled),
            "joint": self.matching_loss(joint, same_person(label, label)),
        }
        return output, terms

    def see(self, images: Tensor) -> FaceOutput:
        """Images [B,3,112,112] in [0,1] -> what the network says about them, with the gradients that are configured."""
        detach = self.config.occlusion_gradient == "head"
        if not self.config.freeze_front:
            return self.model(images, detach_occlusion=detach)
        backbone = self.model.net.backbone
        training = backbone.training
        with torch.no_grad():
            stage3 = backbone.eval().forward_stage3(self.model.preprocess(images))
        backbone.train(training)
        return self.model.net.forward_from(stage3, detach)

    def matching_loss(self, scores: Tensor, same: Tensor) -> Tensor:
        """Scores [B,B] of a batch against itself, same [B,B] -> scalar."""
        if self.config.matching_loss == "pairwise":
            return (
                pairwise_matching_loss(scores, same) / len(scores) + hard_triplet_loss(scores, same)
            ).mean()
        itself = torch.eye(len(same), dtype=torch.bool, device=same.device)  # teaches nothing
        return balanced_matching_loss(scores.masked_fill(itself, -math.inf), same & ~itself)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of the backbone and others, with and without weight decay: `params`, their peak `lr` and `weight_decay`."""
        optimiser = self.config.optimiser
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            key = (name.startswith("model.net.backbone."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": group,
                "lr": optimiser.lr * (optimiser.backbone_lr if of_backbone else 1.0),
                "weight_decay": optimiser.weight_decay if decays else 0.0,
            }
            for (of_backbone, decays), group in groups.items()
        ]

    def configure_optimizers(self) -> Any:
        optimiser, parameters = self.config.optimiser, self.parameter_groups()
        if optimiser.kind == "sgd":
            stepper: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=optimiser.lr, momentum=0.9)
        else:
            stepper = torch.optim.AdamW(parameters, lr=optimiser.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            stepper, lambda step: optimiser.factor(step, self.config.steps)
        )
        return {"optimizer": stepper, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        assert self.validation is not None
        self.validation.add(self.model.extract(batch["image"].float() / 255), batch["mask"])

    def on_validation_epoch_end(self) -> None:
        assert self.validation is not None
        results = self.validation.finish(self.model)
        if self.trainer.sanity_checking:
            return
        self.log_dict({f"val/{name}": value for name, value in results.items()}, rank_zero_only=True)
        score = results["tar_qaconv_visibility"]
        if score > self.best:
            self.best = score
            if self.global_rank == 0:
                self.save(self.config.out / "best", results)

    def save(self, folder: Path, results: Mapping[str, float] | None = None) -> None:
        """Write the model folder with what it was trained on and its last validation."""
        config = self.config
        self.model.config.training |= {
            "steps": self.global_step,
            "people": str(config.data.people or f"{config.data.drawn_people} drawn people"),
            "people_used": config.data.use,
            "people_hashed": self.people_hashed,
            "masks": [str(folder) for folder in config.data.masks] or "drawn",
            "kinds": config.data.all_kinds,
            **({"harvested": self.harvested} if self.harvested else {}),
            **({"validation": {k: round(v, 4) for k, v in results.items()}} if results else {}),
        }
        self.model.config.licence = config.licence
        self.model.save(folder)

    def need_finite_weights(self) -> None:
        """Raise OamlError where a step left weights that are not finite: its loss may have been, and the next one's is not."""
        infinite = "model.fusion.lift"  # until it has been fitted
        bad = [name for name, x in self.state_dict().items() if name != infinite and not x.isfinite().all()]
        if bad:
            raise OamlError(
                f"step {self.global_step}: {few(bad, 3)}: not finite; nothing of this step is kept; lower optimiser.lr and go on "
                "from the last checkpoint, if there is one, with --resume"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_done"], checkpoint["best"] = self.batches_done, self.best
        if isinstance(self.sampler, GraphSampler):
            checkpoint["graph"] = [(step, torch.from_numpy(table)) for step, table in self.sampler.tables]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_done, self.best = checkpoint["batches_done"], checkpoint["best"]
        if isinstance(self.sampler, GraphSampler):  # a run of an older version may have had another sampler
            self.sampler.tables = [(step, table.numpy()) for step, table in checkpoint.get("graph", [])]
        # the learning rate is that of the configuration, whatever it was when the checkpoint was written
        (optimiser,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
        factor = self.config.optimiser.factor(schedule["last_epoch"], self.config.steps)
        groups = self.parameter_groups()
        schedule["base_lrs"] = [group["lr"] for group in groups]
        for stored, group in zip(optimiser["param_groups"], groups, strict=True):
            stored |= {
                "initial_lr": group["lr"],
                "lr": group["lr"] * factor,
                "weight_decay": group["weight_decay"],
            }


class Validation:
    """Occluded probes against unoccluded faces of people who are not trained on: the whole matrix, one gallery face a person."""

    def __init__(self, people: People, config: TrainConfig) -> None:
        several = [np.flatnonzero(people.labels == label) for label in range(len(people.people))]
        several = [images for images in several if len(images) >= 2][: config.validation_people]
        if len(several) < 2:
            raise OamlError(
                f"{len(several)} validation people have two images; add people, or set validate_every to 0"
            )
        kinds = config.data.all_kinds or ["mask"]
        harvested = config.data.load_harvested()
        self.items: list[dict[str, Any]] = []
        for i, images in enumerate(several):
            unoccluded, probe = people.image(int(images[0])), people.image(int(images[1]))
            rng = np.random.default_rng([config.seed, i])
            occluded = occlude(probe, kinds[i % len(kinds)], rng, harvested=harvested)
            ones = np.ones((FACE_SIZE, FACE_SIZE), np.float32)
            for image, mask in ((unoccluded, ones), occluded):
                self.items.append(sample(image, mask, people.files[int(images[0])]))
        self.outputs: list[tuple[Templates, Tensor]] = []

    def loader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(cast(Any, self.items), batch_size=32)

    def add(self, faces: Templates, mask: Tensor) -> None:
        self.outputs.append((faces.to("cpu"), mask.cpu()))

    def finish(self, model: Model) -> dict[str, float]:
        """Measures of all scores, and the maps' mean absolute error on unoccluded gallery faces and on occluded probes."""
        faces = Templates.join([templates for templates, _ in self.outputs])
        mask = torch.cat([masks for _, masks in self.outputs])
        self.outputs.clear()
        gallery, probe = slice(0, None, 2), slice(1, None, 2)
        scores = model.compare_all(faces[probe].to(model.device), faces[gallery].to(model.device), plain=True)
        same = np.eye(len(mask[probe]), dtype=bool).ravel()
        results: dict[str, float] = {}
        for name, matrix in scores.items():
            values = matrix.cpu().numpy().ravel()
            if not np.isfinite(values).all():
                raise OamlError(
                    f"validation: the score {name} is not finite; the run has diverged, lower optimiser.lr"
                )
            results[f"tar_{name}"] = tar_at_far(values, same, 1e-2).tar
            results[f"auc_{name}"] = auc(values, same)
        error = (faces.visibility - mask_to_cells(mask, model.net.grid)).abs().flatten(1).mean(1)
        results["map_error_unoccluded"] = float(error[gallery].mean())
        results["map_error_occluded"] = float(error[probe].mean())
        return results


class Streams(L.LightningDataModule):
    """The two streams, from the step that the module has reached on."""

    def __init__(self, config: TrainConfig, people: People, sampler: PKSampler) -> None:
        super().__init__()
        self.config, self.people, self.sampler = config, people, sampler
        self.recognition = RecognitionStream(people, config.data)
        self.occlusion = OcclusionStream(people, config.data) if config.data.occlusion_batch else None

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        module = cast(OcclusionFace, self.trainer.lightning_module)
        data, rank, start = self.config.data, self.trainer.global_rank, module.batches_done
        self.sampler.rank, self.sampler.start = rank, start
        loaders = {"recognition": loader(self.recognition, self.sampler, data.workers)}
        if self.occlusion is not None:
            mix = MixSampler(
                self.occlusion.groups,
                self.occlusion.shares,
                data.occlusion_batch,
                self.config.seed,
                start,
                rank,
            )
            loaders["occlusion"] = loader(self.occlusion, mix, min(1, data.workers))
        return loaders

    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        validation = cast(OcclusionFace, self.trainer.lightning_module).validation
        return validation.loader() if validation is not None else []


class Keeper(Callback):
    """Checkpoints, map pictures and the graph of nearest identities, each every so many steps."""

    def __init__(self, config: TrainConfig, people: People) -> None:
        self.config, self.people, self.step = config, people, -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        module = cast(OcclusionFace, pl_module)
        if isinstance(module.sampler, GraphSampler) and not module.sampler.tables:
            self._graph(module, module.batches_done)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:  # gradients still accumulate
            return
        self.step, module, config = trainer.global_step, cast(OcclusionFace, pl_module), self.config
        if isinstance(module.sampler, GraphSampler) and self.step % config.data.graph_every == 0:
            self._graph(
                module, module.batches_done + 2 * config.data.workers + 4
            )  # past what is already read ahead
        if config.picture_every and self.step % config.picture_every == 0 and trainer.is_global_zero:
            self._picture(trainer, module)
        if self.step % config.checkpoint_every == 0 or self.step == config.steps:
            module.need_finite_weights()
            save_checkpoint(trainer, config.out / CHECKPOINT)

    @torch.no_grad()
    def _graph(self, module: OcclusionFace, first_step: int) -> None:
        """One image an identity through the network; every process computes the same table."""
        assert isinstance(module.sampler, GraphSampler)
        training = module.model.training
        module.model.eval()
        rng = np.random.default_rng([self.config.seed, module.batches_done])
        chosen = [int(rng.choice(members)) for members in module.sampler.members]
        embeddings = []
        for start in range(0, len(chosen), 64):
            batch = as_input([self.people.image(i) for i in chosen[start : start + 64]], module.device)
            embeddings.append(module.model(batch).embedding.float().cpu())
        module.sampler.update(first_step, torch.cat(embeddings).numpy())
        module.model.train(training)

    def _picture(self, trainer: L.Trainer, module: OcclusionFace) -> None:
        from oaml.support.maps import draw_map_sheet

        assert module.latest is not None
        images, masks, maps = (part.float().cpu() for part in module.latest)
        last = range(len(images))[-8:]  # of the occlusion stream
        rows = [(images[i].permute(1, 2, 0).numpy(), masks[i, 0].numpy(), maps[i, 0].numpy()) for i in last]
        path = self.config.out / "pictures" / f"maps_{self.step:07d}.png"
        draw_map_sheet(path, rows, title=f"Visibility maps at step {self.step}")
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                cast(Any, logger).experiment.add_image(
                    "maps", read_photograph(path), self.step, dataformats="HWC"
                )


class ProgressBar(TQDMProgressBar):
    """Lightning's, which ends its line before an error is printed."""

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        with suppress(TypeError):  # there is none yet
            self.train_progress_bar.close()


def save_checkpoint(trainer: L.Trainer, path: Path) -> None:
    """Write everything that resuming needs; the old checkpoint stays until the new one is complete."""
    if trainer.world_size > 1:  # every process takes part, the first one writes
        temporary = path.with_name(".checkpoint.tmp.ckpt")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    else:
        write_file(path, trainer.save_checkpoint)


def build_model(config: TrainConfig) -> Model:
    """The untrained or published model that the configuration starts from."""
    if config.backbone is None:
        return Model(ModelConfig(net=config.net, qaconv=config.qaconv, preprocessing=config.preprocessing))
    model = Model.open(config.backbone)
    untrained = model.config.training.pop("untrained", [])
    if untrained:  # of published weights: what is to be trained begins as of a new model
        model.config.qaconv = config.qaconv
        if "occlusion head" in untrained:
            model.config.net.stage = config.net.stage
        fresh = Model(model.config)
        fresh.net.backbone.load_state_dict(model.net.backbone.state_dict())
        if "occlusion head" not in untrained:
            fresh.net.occlusion_head.load_state_dict(model.net.occlusion_head.state_dict())
        return fresh
    model.config.thresholds = {}  # they don't survive the training
    model.config.training.pop("thresholds_fitted_on", None)
    model.fusion.uncorrected()
    return model.train()


def train(config: TrainConfig) -> Path:
    """Train as configured and return the folder of the last model.

    Raises:
        OamlError: bad input, named; settings that don't go with the training to be resumed; another training in the same folder; a
            non-finite loss, with step, term and files; a disk that is full.
    """
    if config.dry_run:
        return rehearse(config)
    if config.resume and not (config.out / CHECKPOINT).exists():
        raise OamlError(f"{config.out / CHECKPOINT}: nothing to resume from; train without --resume")
    # of several processes that train together the first one holds the lock
    first = config.devices == 1 or getattr(rank_zero_only, "rank", 0) == 0
    busy = f"{config.out}: another training writes to it; wait for its end, or choose another --out"
    with alone(config.out / ".lock", busy) if first else nullcontext():
        return _train(config, first)


def _train(config: TrainConfig, first: bool) -> Path:
    checkpoint = config.out / CHECKPOINT
    if not config.resume and checkpoint.exists():
        raise OamlError(
            f"{config.out}: holds a training already; pass --resume to continue it, or choose another --out"
        )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(config.seed)
    people = config.data.load_people("train")
    sampler_class = GraphSampler if config.data.sampler == "graph" else PKSampler
    sampler = sampler_class(people.labels, config.data.identities, config.data.images, config.seed)
    module = OcclusionFace(config, build_model(config), len(people.people), sampler)
    module.people_hashed = hashed_names(people.people)
    streams = Streams(config, people, sampler)
    if streams.recognition.harvested is not None:
        module.harvested = streams.recognition.harvested.described()
    validated = (
        config.data.load_people("calibrate") if config.validate_every and config.data.use == "train" else None
    )
    trainer = _trainer(config, people, validates=validated is not None)
    counts = np.bincount(people.labels).tolist()
    settings = Settings.of(config, dict(zip(people.people, counts, strict=True)))
    if first and config.resume:
        _check_resumed(config, settings, module)
    if first:
        _check_data(config, streams, validated)
    if validated is not None:
        module.validation = Validation(validated, config)
    if first:
        settings.write(config.out)
    with warnings.catch_warnings():
        # resuming inside the one endless epoch is what the samplers are made for
        warnings.filterwarnings("ignore", ".*mid-epoch.*")
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*sync_dist.*")
        warnings.filterwarnings("ignore", ".*treespec.*")
        try:
            trainer.fit(module, streams, ckpt_path=checkpoint if config.resume else None, weights_only=True)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise _stopped(config, str(error), "free space" if full else "mend that") from error
        except RuntimeError as error:  # raised wherever the training was when the process ended
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = "a process that reads images was killed, as for want of memory"
            raise _stopped(config, reason, "set --data.workers lower") from error
    if trainer.is_global_zero:
        module.save(config.out / "last")
    return config.out / "last"


def rehearse(config: TrainConfig) -> Path:
    """Do the first training step without writing anything, and print its losses: data, model and memory are found out to do."""
    torch.manual_seed(config.seed)
    people = config.data.load_people("train")
    sampler_class = GraphSampler if config.data.sampler == "graph" else PKSampler
    sampler = sampler_class(people.labels, config.data.identities, config.data.images, config.seed)
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    module = OcclusionFace(config, build_model(config), len(people.people), sampler).train()
    module.to("cuda" if gpu else "cpu")
    streams = Streams(config, people, sampler)
    batch = {"recognition": next(iter(loader(streams.recognition, sampler, 0)))}
    if streams.occlusion is not None:
        shares, count = streams.occlusion.shares, config.data.occlusion_batch
        mix = MixSampler(streams.occlusion.groups, shares, count, config.seed, 0, 0)
        batch["occlusion"] = next(iter(loader(streams.occlusion, mix, 0)))
    for stream in batch.values():
        stream.update({k: x.to(module.device) for k, x in stream.items() if isinstance(x, Tensor)})
    terms = module.terms(batch)[1]
    files = [path for stream in batch.values() for path in stream["path"]]
    check_finite(terms, 0, lambda: files)
    combine(terms, asdict(config.weights)).backward()
    named = ", ".join(f"{name} {float(term.detach()):.3g}" for name, term in terms.items())
    print(
        f"{len(people.people):,} people with {len(people):,} images; first step of {config.steps:,}: {named}"
    )
    print(f"nothing was written; train without --dry_run into {config.out}")
    return config.out


def _stopped(config: TrainConfig, reason: str, remedy: str) -> OamlError:
    again = "continue with --resume" if (config.out / CHECKPOINT).exists() else "train again"
    return OamlError(f"{config.out}: training stopped: {reason}; {remedy} and {again}")


def _check_resumed(config: TrainConfig, now: Settings, module: OcclusionFace) -> None:
    """Say which settings apply from here on; raise OamlError where one can't, or the checkpoint can't be used."""
    before, path = Settings.read(config.out), config.out / CHECKPOINT
    changes = [] if before is None else compare(before, now, config.out)
    checkpoint = read_checkpoint(path)
    done = checkpoint["global_step"]
    if config.steps < done:
        raise OamlError(
            f"{config.out}: steps is {config.steps:,} and {done:,} are done; give --steps {done} or more"
        )
    stepper = module.configure_optimizers()["optimizer"]
    check_fits(path, checkpoint, module.state_dict(), stepper.state_dict()["param_groups"])
    if before is None:
        _say(f"{config.out}: has no settings.json to compare with; goes on with those given now")
    if changes:
        _say(f"{config.out}: goes on after step {done:,}; from here on {', '.join(changes)}")


def _check_data(config: TrainConfig, streams: Streams, validated: People | None) -> None:
    """Say what is left out; raise OamlError where pictures can't be used."""
    masked, clean = (
        (streams.occlusion.masked, streams.occlusion.clean) if streams.occlusion is not None else ([], [])
    )
    for folder in masked:
        if folder.left_out:
            _say(folder.left_out)
    if isinstance(streams.people, PeopleFolder):
        say_left_out(streams.people.left_out)
        notes = streams.people.notes + (streams.people.same_files() if config.check == "full" else [])
        for line in notes:
            _say(f"note: {line}")
    people = [streams.people] if validated is None else [streams.people, validated]
    check_pictures(people, clean, masked, config.check, config.data.resize)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _trainer(config: TrainConfig, people: People, validates: bool) -> L.Trainer:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*not supported on CPU.*")  # refused below
            trainer = L.Trainer(
                accelerator=config.accelerator,
                devices=config.devices,
                strategy="ddp" if config.devices > 1 else "auto",
                precision=config.precision,
                max_epochs=-1,
                max_steps=config.steps,
                accumulate_grad_batches=config.accumulate,
                gradient_clip_val=config.optimiser.clip or None,
                val_check_interval=config.validate_every * config.accumulate if validates else None,
                check_val_every_n_epoch=None if validates else 1,
                limit_val_batches=None if validates else 0,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                log_every_n_steps=config.log_every,
                logger=_loggers(config),
                callbacks=[Keeper(config, people), ProgressBar(refresh_rate=config.log_every)],
            )
    except MisconfigurationException as error:  # no such accelerator, or fewer devices than asked for
        reason = str(error).strip().splitlines()[0]
        raise OamlError(
            f"--accelerator {config.accelerator}, --devices {config.devices}: can't be used here ({reason}); choose auto or cpu"
        ) from error
    if trainer.precision != config.precision:  # Lightning takes another one, with a warning
        raise OamlError(
            f"--precision {config.precision}: this device would compute in {trainer.precision}; choose that, or 32-true"
        )
    return trainer


def _loggers(config: TrainConfig) -> list[Logger]:
    from importlib.util import find_spec

    run = "logs_resumed" if config.resume else "logs"
    number = len(list(config.out.glob(run + "*"))) if config.resume else 0
    name = f"{run}_{number}" if number else run
    loggers: list[Logger] = [CSVLogger(config.out, name=name, version="")]
    if find_spec("tensorboard") is not None:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(config.out, name=name, version=""))
    return loggers
