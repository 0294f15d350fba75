"""`oaml adapt`: any checkpoint made occlusion-aware in minutes, on a CPU or a GPU.

The backbone up to stage 3 stays as it is, so that the features of every training image under several occluders are computed
once (`cache.py`). On these features are trained, in turn: the occlusion head; then QAConv, the joint embedding (the
visibility-masked embedding, `oaml.joint`) and a branch, which is a copy of the last stage whose input is zero where the occlusion
head sees an occluder. The backbone's own last stage never changes, and neither does the plain embedding: the branch is held to it
where a face shows, and the cosine that is reported beside all other scores is that of the checkpoint.
Thresholds are fitted on people that no training saw.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.adaptation.cache import NO_OCCLUDER, CachePlan, FeatureCache
from oaml.adaptation.held_out import OCCLUDER_GROUPS, HeldOut, scores, show, tars
from oaml.adaptation.thresholds import calibrate
from oaml.datasets.check import check_pictures
from oaml.datasets.masked import MaskedFolder, Unlabelled
from oaml.datasets.people import People, PeopleFolder, Split, hashed_names, split_name
from oaml.datasets.sources import people_from
from oaml.errors import OamlError
from oaml.inference import to_device
from oaml.losses import balanced_matching_loss, check_finite, distillation_loss, occlusion_loss
from oaml.model import Model
from oaml.net import NetConfig
from oaml.occluders import HARVESTED, KINDS, STYLES, Harvested, load_harvested
from oaml.support.files import check_model_folder
from oaml.support.folders import say_left_out
from oaml.support.lock import alone
from oaml.support.names import printable, readable
from oaml.support.progress import progress
from oaml.visibility import on_grid

DISTILLATION_WEIGHT = 2.0
"""Weight of the loss that holds each visible cell of a face to the per-cell embedding that the checkpoint gives for the image
without its occluder. The matching losses beside it are about 2 to 4."""
EMBEDDING_WEIGHT = 4.0
"""Weight of the loss 1 - cosine, of the sum of a face's visible cells and the checkpoint's embedding of the image without its
occluder."""
UNOCCLUDED_SHARE = 0.3
"""Of the faces of a batch of pairs."""
SINGLE_SHARE = 0.3
"""Of the pairs of a batch: those of people with one image, where there are so many."""
KIND_WEIGHTS = {"niqab": 2.0}
"""How often a kind of occluder is drawn into a batch, 1 for all others: a niqab leaves least of a face and is learned last."""
QACONV_WEIGHT = 0.25
"""Weight of QAConv's logit in the fused score, beside 1 for the joint embedding's: it errs on other pairs, but more often. Chosen
with COSINE_WEIGHT on the people of the calibration split."""
COSINE_WEIGHT = 6.0
"""Weight in the fused score of the plain embeddings' cosine times the share of the face that both show. A joint logit is a cosine
times 12 to 15."""
GALLERY_IMPOSTORS = 320
"""Unoccluded faces of other people that every face of a batch is compared with, as if it searched a gallery. Their embeddings are
the checkpoint's and never change, so that all these pairs cost one matrix product. The few impostors with a high score are those
that make the errors at small false-accept rates."""
IGNORED_LOGIT = -30.0
"""Logit put in the place of a pair that shall not count: as an impostor pair it adds nothing to the loss, nor to its gradient."""
BRANCH_RATE = 0.3
"""Learning rate of the branch, as a factor on that of the matchers: it starts as a copy of trained weights."""


@dataclass
class Schedule:
    """How long and how fast one part is trained."""

    steps: int
    batch: int
    """Faces in a step of the occlusion head, pairs in one of the matchers."""
    lr: float
    """Highest learning rate: reached after a twentieth of the steps, then falling along a cosine."""

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        warm = min(1.0, (step + 1) / max(1, self.steps // 20))
        return self.lr * warm * (0.505 + 0.495 * math.cos(math.pi * step / self.steps))


def adapt(
    *,
    backbone: Path,
    people: Path,
    out: Path,
    masks: list[Path] = [],  # noqa: B006  (read as the default of a flag; never changed)
    unlabelled: Unlabelled = "fail",
    occluders: list[str] = list(KINDS),  # noqa: B006
    occluders_from: Path | None = None,
    last_stage: bool = True,
    flip: bool = True,
    use: Literal["all", "train"] = "all",
    occluders_per_view: int = 6,
    occlusion_steps: int = 700,
    steps: int = 700,
    seed: int = 0,
    cache: Path | None = None,
    resize: bool = False,
    skip_damaged: bool = False,
    licence: str = "",
    device: str = "auto",
) -> Path:
    """Make a checkpoint occlusion-aware and write a model folder.

    Example:
        oaml adapt --backbone weights.pth --people faces/ --out runs/adapted

    Args:
        backbone: published weights, as `oaml import` takes them, or a model folder.
        people: a folder per person with aligned 112x112 faces; or a CSV manifest, a .rec file or tar shards (`docs/data.md`).
        out: model folder to write.
        masks: folders of photographs of occluded faces with real masks (images/ + masks/, or kept_faces/ + masks/); half of
            what the occlusion head learns from. Without any it learns from drawn occluders alone.
        unlabelled: in these folders, refuse images without a mask and masks without an image (fail), or use the others and say how
            many were left out (skip).
        occluders: kinds of occluder to draw: niqab, mask, sunglasses, scarf, hand, patch; or none, with --occluders_from.
        occluders_from: folder of occluders that `oaml occlude --harvest` cut out of photographs: one more kind, worn beside the
            drawn ones. Those of one part of the photographs are trained on, the table at the end is measured on those of the other.
        last_stage: train a copy of the last stage for matching. Without it only a copy of the output layer is trained: faster,
            and the feature maps stay those of the checkpoint.
        flip: average every face with its mirror image from here on, the plain embedding as well.
        use: all keeps back only the people that thresholds and the final table need (1 of 10, by the hash of their name);
            train keeps back 2 of 10 more for a report of your own.
        occluders_per_view: occluded copies to draw of a training image, and as many of its mirror image; half as many for a
            person with one image.
        occlusion_steps: training steps of the occlusion head.
        steps: training steps of matchers and last stage.
        seed: of everything random.
        cache: folder for the cached features, 50 kB a face for a MobileFaceNet; kept, and used again when weights, images and
            occluders are the same. By default OUT.cache.
        resize: scale images of another size instead of refusing them.
        skip_damaged: read every image of people once beforehand, and leave out and name those that can't be read.
        licence: of the model that results, written into config.json.
        device: cpu, cuda, or auto for a GPU where there is one.

    Returns:
        The model folder.

    Raises:
        OamlError: bad input, named; a loss that is not finite, with the step and the files; another `oaml adapt` that writes to the
            same model or cache. An older model stays then.
    """
    from rich.console import Console

    out = Path(out)
    kept = Path(cache or out.with_name(out.name + ".cache"))
    counts = {"occluders_per_view": occluders_per_view, "occlusion_steps": occlusion_steps, "steps": steps}
    drawn = [] if occluders == ["none"] else list(occluders)
    harvested = None if occluders_from is None else load_harvested(occluders_from)
    kinds = drawn + ([] if harvested is None else [HARVESTED])
    _check(drawn, counts, seed, out, harvested)
    console = Console(stderr=True)
    sources = [MaskedFolder(folder, resize, unlabelled) for folder in masks]
    for source in sources:
        if source.left_out:
            console.print(printable(source.left_out), markup=False, highlight=False, soft_wrap=True)
    everybody = people_from(people, None, resize, skip_damaged)
    _check_people(people, everybody, use)
    trained = everybody.part(lambda name: _trains(name, use))
    held_out = everybody.part(lambda name: split_name(name) == "calibrate")
    check_pictures([trained, held_out], [], sources, "full", resize)  # those held out are read last
    torch.manual_seed(seed)  # before the model is made: occlusion head and matchers start at random
    model = to_device(start(backbone, last_stage, flip), device)
    with _alone(out), _alone(kept):
        plan = CachePlan.make(trained, kinds, occluders_per_view, seed)
        cached = FeatureCache(kept, model, trained, plan, sources, harvested)
        console.print(
            f"{len(trained.people):,} people with {len(trained):,} images train, {len(held_out.people):,} people are held out; "
            f"{cached.count:,} faces to cache in {cached.folder}",
            markup=False,
            highlight=False,
        )
        cached.build()
        train_occlusion_head(model, cached, Schedule(occlusion_steps, 128, 2e-3), seed)
        train_matchers(model, cached, predict_visibility(model, cached), Schedule(steps, 96, 1e-3), seed)
        console.print("fitting thresholds on the people held out", highlight=False)
        fitted = HeldOut(
            model, held_out, kinds, seed, "a", everybody=True, groups=OCCLUDER_GROUPS, harvested=harvested
        )
        calibrate(model, fitted)
        # names and not paths: equal commands give equal files, wherever they are run
        real = f"; real masks of {', '.join(map(_name, masks))}" if masks else ""
        model.config.training.update(
            backbone=_name(backbone),
            people=f"{len(trained.people)} people with {len(trained)} images of {_name(people)}",
            covers=_worn(drawn, harvested) + real,
            use=use,
            people_hashed=hashed_names([*trained.people, *held_out.people]),
            adapted=f"occlusion head, {'last stage, ' if last_stage else ''}matchers, "
            f"{occlusion_steps} + {steps} steps, seed {seed}",
        )
        if licence:
            model.config.licence = licence
        scored, same, map_errors = scores(
            model, HeldOut(model, held_out, kinds, seed, "b", harvested=harvested)
        )
        printed = Console()
        show(
            printed if printed.is_terminal else Console(width=120),
            tars(scored, same),
            map_errors,
            len(held_out.people),
        )
        model.cpu().save(out)
        console.print(f"written to {printable(str(out))}", markup=False, highlight=False)
        return out


# --- the parts ---


def start(backbone: Path, last_stage: bool = True, flip: bool = False) -> Model:
    """An untrained model around a checkpoint, as `adapt` trains it: visibility maps from stage 3, matching on 7x7 cells, a branch.

    Args:
        backbone: weights in any format of `oaml.weights`, or a model folder (of which the backbone is taken).
        last_stage: the branch is a copy of the last stage and of the output layer; otherwise of the output layer alone.
        flip: average every face with its mirror image.
    """
    checkpoint = Model.open(backbone)
    config = checkpoint.config
    config.training.pop("untrained", None)
    config.net = NetConfig(
        architecture=config.net.architecture,
        embedding_size=config.net.embedding_size,
        dropout=config.net.dropout,
        occlusion_stage=3,
        occlusion_context=True,
        branch="stage" if last_stage else "output",
    )
    config.thresholds, config.flip = {}, flip
    model = Model(config)
    model.net.backbone.load_state_dict(checkpoint.net.backbone.state_dict())
    if model.net.branch is not None:
        model.net.branch = model.net.backbone.without_front(last_stage)
    with torch.no_grad():
        model.fusion.qaconv_weight.fill_(QACONV_WEIGHT)
        model.fusion.cosine_weight.fill_(COSINE_WEIGHT)
    return model.eval()


class PairSampler:
    """Batches of genuine pairs of rows, each of another person: two images, or the two views of the only image.

    Args:
        cache: its plan and people; the features needn't be there.
        seed: of the choice.
    """

    def __init__(self, cache: FeatureCache, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        rows: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for index, row in enumerate(cache.plan.rows):
            rows.setdefault((row.image, row.view), ([], []))[row.kind != NO_OCCLUDER].append(index)
        self.rows = rows
        """(image, view) -> its unoccluded row (a list of one), its occluded rows."""
        self.unoccluded_rows: dict[int, list[int]] = {}
        """Person -> unoccluded rows of all views."""
        for (image, _), (unoccluded, _) in rows.items():
            self.unoccluded_rows.setdefault(int(cache.people.labels[image]), []).extend(unoccluded)
        self.weight = np.array(
            [
                1.0 if row.kind == NO_OCCLUDER else KIND_WEIGHTS.get(cache.plan.kinds[row.kind], 1.0)
                for row in cache.plan.rows
            ]
        )
        """How often a row is drawn among the occluded rows of its view."""
        images_of: dict[int, list[int]] = {}
        for image, person in enumerate(cache.people.labels):
            images_of.setdefault(int(person), []).append(image)
        self.several = [images for images in images_of.values() if len(images) > 1]
        self.alone = [images for images in images_of.values() if len(images) == 1]

    def batch(self, pairs: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the first faces and then of the second ones [2 * pairs], and the unoccluded row of each one's view."""
        singles = min(len(self.alone), round(SINGLE_SHARE * pairs))
        pairs = min(pairs - singles, len(self.several)) + singles
        people = [
            *(self.several[i] for i in self.rng.choice(len(self.several), pairs - singles, replace=False)),
            *(self.alone[i] for i in self.rng.choice(len(self.alone), singles, replace=False)),
        ]
        sides: tuple[list[int], list[int]] = ([], [])
        originals: tuple[list[int], list[int]] = ([], [])
        for images in people:
            if len(images) > 1:
                chosen = self.rng.choice(images, 2, replace=False)
                views = self.rng.integers(2, size=2)
            else:
                chosen, views = (images[0], images[0]), self.rng.permutation(2)
            for side, (image, view) in enumerate(zip(chosen, views, strict=True)):
                (unoccluded,), occluded = self.rows[int(image), int(view)]
                if self.rng.random() < UNOCCLUDED_SHARE:
                    sides[side].append(unoccluded)
                else:
                    weight = self.weight[occluded]
                    sides[side].append(self.rng.choice(occluded, p=weight / weight.sum()))
                originals[side].append(unoccluded)
        return np.array(sides[0] + sides[1]), np.array(originals[0] + originals[1])

    def impostors(self, present: set[int], count: int) -> list[int]:
        """One unoccluded row each of at most `count` people who are not `present` (numbers of people)."""
        others = [p for p in self.rng.permutation(list(self.unoccluded_rows)).tolist() if p not in present]
        return [int(self.rng.choice(self.unoccluded_rows[p])) for p in others[:count]]


def train_occlusion_head(model: Model, cache: FeatureCache, schedule: Schedule, seed: int) -> None:
    """The occlusion head on the cached maps; drawn occluders and real masks half and half where there are both."""
    head, device = model.net.occlusion_head, model.device
    rng = np.random.default_rng((seed, 1))
    drawn, real = np.arange(len(cache.plan.rows)), np.arange(len(cache.plan.rows), cache.count)
    optimiser = torch.optim.AdamW(head.parameters(), lr=schedule.lr, weight_decay=0.01)
    head.train()
    for step in _steps("occlusion head", schedule, optimiser):
        count = schedule.batch // 2 if len(real) else 0
        rows = rng.choice(drawn, schedule.batch - count)
        if count:
            rows = np.concatenate([rows, rng.choice(real, count)])
        features, mask = (x.to(device) for x in cache.rows(rows))
        loss = occlusion_loss(head(features), mask)
        _step(optimiser, {"occlusion": loss}, step, cache, rows)
    head.eval()


@torch.inference_mode()
def predict_visibility(model: Model, cache: FeatureCache) -> np.ndarray:
    """The maps of the occlusion head for all rows with people, uint8 [N,14,14]: 255 where the face shows."""
    predicted = np.empty((len(cache.plan.rows), *cache.visibility.shape[1:]), np.uint8)
    for start in range(0, len(predicted), 256):
        rows = np.arange(start, min(start + 256, len(predicted)))
        features = cache.rows(rows)[0].to(model.device)
        maps = model.net.occlusion_head(features)[:, 0]
        predicted[rows] = (maps * 255).round().byte().cpu().numpy()
    return predicted


def train_matchers(
    model: Model, cache: FeatureCache, visibility: np.ndarray, schedule: Schedule, seed: int
) -> None:
    """Branch, QAConv and joint embedding together.

    Args:
        visibility: uint8 [N,14,14] of all rows with people, as `predict_visibility` gives it.
    """
    net, device = model.net, model.device
    assert net.branch is not None
    sampler = PairSampler(cache, seed)
    target = _targets(model, cache, sampler)
    optimiser = torch.optim.AdamW(_parameter_groups(model, schedule.lr), weight_decay=0.01)
    rng = np.random.default_rng((seed, 2))
    model.eval()  # the branch normalises as the checkpoint does, with running statistics
    model.matcher.train()
    for step in _steps("matching", schedule, optimiser):
        rows, originals = sampler.batch(schedule.batch)
        pairs = len(rows) // 2
        stage3 = cache.rows(rows)[0].to(device)
        fine = torch.from_numpy(visibility[rows]).to(device).float()[:, None] / 255
        with torch.set_grad_enabled(net.config.branch == "stage"):
            stage4 = net.matched(stage3, fine)
        fine = net.usable(fine)
        cells, seen = net.branch.cells(stage4), on_grid(fine, net.backbone.grids[4])
        same = torch.eye(pairs, dtype=torch.bool, device=device)
        compared = model.joint.compare(cells[:pairs], cells[pairs:], seen[:pairs], seen[pairs:])
        joint = model.joint.logit(compared.cosine, compared.unseen)
        terms = {"joint": balanced_matching_loss(joint, same)}
        # QAConv is most of a step: half of the pairs are a quarter of its work
        half = torch.from_numpy(rng.choice(pairs, max(2, pairs // 2), replace=False)).to(device)
        features, shown = (stage4, seen) if net.config.stage == 4 else (stage3, fine)
        (a, b), (a_occ, b_occ) = ((x[half], x[pairs + half]) for x in (features, shown))
        local = model.matcher(a, b, a_occ, b_occ)
        terms["qaconv"] = balanced_matching_loss(local, same[half][:, half])
        fused = joint[half][:, half] + QACONV_WEIGHT * local
        terms["fused"] = balanced_matching_loss(fused, same[half][:, half])
        unoccluded = torch.stack([target[int(row)] for row in originals]).to(device).float()
        owners = [int(cache.people.labels[cache.plan.rows[row].image]) for row in originals]
        impostors = sampler.impostors(set(owners), GALLERY_IMPOSTORS)
        gallery = torch.cat([unoccluded, *(target[row].to(device).float()[None] for row in impostors)])
        terms["gallery"] = _gallery_loss(model, cells, seen, gallery, owners)
        terms["distillation"] = DISTILLATION_WEIGHT * distillation_loss(cells, unoccluded, seen.flatten(1))
        visible_sum = (cells * seen.flatten(1)[..., None]).sum(1)
        cosine = F.cosine_similarity(visible_sum, unoccluded.sum(1))
        terms["embedding"] = EMBEDDING_WEIGHT * (1 - cosine).mean()
        _step(optimiser, terms, step, cache, rows)
    model.eval()


def _gallery_loss(model: Model, cells: Tensor, seen: Tensor, gallery: Tensor, owners: list[int]) -> Tensor:
    """Matching loss of the joint embedding: the faces of a batch as probes, against a gallery of unoccluded faces.

    Args:
        cells: per-cell embeddings of the B probes, [B,49,E]; seen: their visibility, [B,1,7,7].
        gallery: the checkpoint's per-cell embeddings of G unoccluded faces, [G,49,E], without gradient: first those of the same B
            images, then those of other people.
        owners: the person of each of the B faces.
    """
    weight = seen.flatten(1)
    probes = (cells * weight[..., None]).sum(1)
    with torch.no_grad():  # every gallery face by the cells that the probe shows: [B,G,E]
        masked = (weight @ gallery.transpose(0, 1).flatten(1)).view(len(probes), len(gallery), -1)
        masked = F.normalize(masked, dim=2)
    cosine = (F.normalize(probes, dim=1)[:, None] * masked).sum(2)
    unseen = (1 - weight.mean(1, keepdim=True)).expand_as(cosine)
    person = torch.tensor(owners, device=cells.device)
    same = torch.zeros(cosine.shape, dtype=torch.bool, device=cells.device)
    same[:, : len(person)] = person[:, None] == person
    own = torch.eye(*same.shape, dtype=torch.bool, device=same.device)
    # the very same image without the occluder is too easy: the pair counts neither as genuine nor as impostor
    logit = model.joint.logit(cosine, unseen).masked_fill(own, IGNORED_LOGIT)
    return balanced_matching_loss(logit, same & ~own)


def _targets(model: Model, cache: FeatureCache, sampler: PairSampler) -> dict[int, Tensor]:
    """Unoccluded row -> the checkpoint's per-cell embeddings of it, float16 [49,E]."""
    targets: dict[int, Tensor] = {}
    unoccluded = [row for (row,), _ in sampler.rows.values()]
    with torch.inference_mode():
        for start in range(0, len(unoccluded), 256):
            rows = unoccluded[start : start + 256]
            stage3 = cache.rows(np.array(rows))[0].to(model.device)
            cells = model.net.backbone.cells(model.net.backbone.forward_stage4(stage3))
            targets.update(zip(rows, cells.half().cpu(), strict=True))
    return targets


def _parameter_groups(model: Model, lr: float) -> list[dict[str, object]]:
    """Scales, offsets and weights of cells learn ten times as fast and don't decay: they are few and start far from their end."""
    few = [model.joint.log_scale, model.joint.confidence]
    few += [p for name, p in model.matcher.named_parameters() if not name.startswith("adapter")]
    many = [p for name, p in model.matcher.named_parameters() if name.startswith("adapter")]
    assert model.net.branch is not None
    branch = list(model.net.branch.parameters())
    return [
        {"params": branch, "factor": BRANCH_RATE},
        {"params": many, "factor": 1.0},
        {"params": few, "factor": 10.0, "weight_decay": 0.0},
    ]


def _steps(label: str, schedule: Schedule, optimiser: torch.optim.Optimizer) -> Iterator[int]:
    """Steps with a progress bar; sets the learning rate of each."""
    with progress(label, schedule.steps) as advance:
        for step in range(schedule.steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step) * group.get("factor", 1.0)
            yield step
            advance(1)


def _step(
    optimiser: torch.optim.Optimizer,
    terms: dict[str, Tensor],
    step: int,
    cache: FeatureCache,
    rows: np.ndarray,
) -> None:
    check_finite(terms, step, lambda: [cache.name(int(row)) for row in rows])
    optimiser.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 5.0)
    optimiser.step()


# --- input ---


def _name(path: Path) -> str:
    return readable(Path(path).resolve().name)


def _worn(drawn: list[str], harvested: Harvested | None) -> str:
    """For the config: which occluders were trained on."""
    parts = [f"drawn ({', '.join(drawn)}), style a in any material"] if drawn else []
    return "; ".join(parts + ([f"harvested ({harvested.described()})"] if harvested else []))


def _trains(person: str, use: Literal["all", "train"]) -> bool:
    split: Split = split_name(person)
    return split == "train" or (use == "all" and split == "report")


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Keep other calls away from a folder, by a lock beside it, for as long as it lasts."""
    busy = f"{folder}: another oaml adapt writes to it; wait for its end, or choose another --out and --cache"
    return alone(folder.with_name(f".{folder.name}.lock"), busy)


def _check(
    occluders: list[str], counts: dict[str, int], seed: int, out: Path, harvested: Harvested | None
) -> None:
    if not occluders and harvested is None:
        raise OamlError(
            f"--occluders: names no kind; choose among {', '.join(KINDS)}, or give a folder with --occluders_from"
        )
    if harvested is not None:
        for style in STYLES:
            harvested.of(style)  # raises where a part is empty
    for kind in occluders:
        if kind not in KINDS:
            raise OamlError(f"--occluders: no occluder is called {kind!r}; choose among {', '.join(KINDS)}")
    for flag, value in counts.items():
        if value < 1:
            raise OamlError(f"--{flag}: {value} is not at least 1")
    if seed < 0:
        raise OamlError(f"--seed: {seed} is negative")
    check_model_folder(out)


def _check_people(source: Path, everybody: People, use: Literal["all", "train"]) -> None:
    if isinstance(everybody, PeopleFolder):
        say_left_out(everybody.left_out)
        for line in everybody.notes + everybody.same_files():
            print(f"note: {printable(line)}", file=sys.stderr)
    several = [
        person
        for person, count in zip(everybody.people, np.bincount(everybody.labels), strict=True)
        if count > 1
    ]
    trained = [person for person in several if _trains(person, use)]
    held_out = [person for person in several if split_name(person) == "calibrate"]
    for people, what in (
        (trained, "train on"),
        (held_out, "hold out for thresholds (1 of 10, by the hash of their name)"),
    ):
        if len(people) < 2:
            raise OamlError(
                f"{source}: has {len(people)} people with two images to {what}, at least 2 are needed; add people or images"
            )
