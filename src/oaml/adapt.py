"""`oaml adapt`: any checkpoint made occlusion-aware in minutes, on a CPU or a GPU.

The backbone up to stage 3 stays as it is, so that the features of every training image under several covers are computed once
(`cache.py`). On them are trained, in turn: the occlusion head; then QAConv, the joint embedding and a branch, a second last
stage whose input is hidden where the head sees a cover. The backbone's own last stage and with it the plain embedding never
change: bare faces are anchored to it, and the cosine that is reported beside everything is that of the checkpoint.
Thresholds are fitted on people that no training saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.cache import BARE, FeatureCache, Plan
from oaml.datasets.masked import MaskedFolder
from oaml.datasets.people import People, PeopleFolder, Split, split_name
from oaml.errors import OamlError
from oaml.evaluation.calibration import fit_offset, fit_thresholds
from oaml.evaluation.metrics import enough_negatives, tar_at_far
from oaml.evaluation.scoring import extract, score_all
from oaml.joint import CELLS, cell_visibility, contributions
from oaml.losses import align_mask, balanced_matching_loss, check_finite, distillation_loss, occlusion_loss
from oaml.model import Model
from oaml.net import NetConfig
from oaml.occluders import KINDS, Style, cover_rng, occlude, retexture
from oaml.template import COLUMNS, TITLES, Templates

if TYPE_CHECKING:
    from rich.console import Console


DISTILLATION = 2.0
"""Weight of the loss that keeps visible cells as the unchanged network has them, beside matching losses of about 2 to 4."""


@dataclass
class Stage:
    """How one part is trained."""

    steps: int
    batch: int
    lr: float
    """Highest learning rate; it rises over the first twentieth and falls as a cosine."""

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
    occluders: list[str] = list(KINDS),  # noqa: B006
    last_stage: bool = True,
    use: Literal["all", "train"] = "all",
    covers: int = 6,
    head_steps: int = 700,
    steps: int = 700,
    seed: int = 0,
    cache: Path | None = None,
    resize: bool = False,
    licence: str = "",
    device: str = "auto",
) -> Path:
    """Make a checkpoint occlusion-aware and write a model folder.

    Example:
        oaml adapt --backbone weights.pth --people faces/ --out runs/adapted

    Args:
        backbone: published weights (AdaFace, InsightFace iresnet, MobileFaceNet) or a model folder.
        people: a folder per person with aligned 112x112 faces.
        out: model folder to write.
        masks: folders of covered photographs with real masks (images/ + masks/, or kept_faces/ + masks/); half of what the
            occlusion head learns from. Without any it learns from drawn covers alone.
        occluders: kinds of cover to draw: niqab, mask, sunglasses, scarf, hand, patch.
        last_stage: train a second last stage for matching. Without it the backbone stays frozen whole.
        use: all keeps back only the people that thresholds and the final table need (1 of 10, by the hash of their name);
            train keeps back 2 of 10 more for a report of your own.
        covers: covers drawn on each of the two views of a training image (half as many for a person with one image).
        head_steps: training steps of the occlusion head.
        steps: training steps of matchers and last stage.
        seed: of everything random.
        cache: folder for the cached features, 50 kB a face for a MobileFaceNet; kept, and used again when weights, images and
            covers are the same. By default OUT.cache.
        resize: scale images of another size instead of refusing them.
        licence: of the model that results, written into config.json.
        device: cpu, cuda, or auto for a GPU where there is one.

    Returns:
        The model folder.

    Raises:
        OamlError: bad input, named; a loss that is not finite, with the step and the files. An older model stays then.
    """
    from rich.console import Console

    out = Path(out)
    _check(occluders, covers, head_steps, steps, seed, out)
    console = Console(stderr=True)
    sources = [MaskedFolder(folder, resize) for folder in masks]
    trained = PeopleFolder(people, lambda name: _trains(name, use), resize)
    held_out = PeopleFolder(people, lambda name: split_name(name) == "calibrate", resize)
    _check_people(people, trained, held_out)
    model = start(backbone, last_stage).to(_device(device))
    torch.manual_seed(seed)

    plan = Plan.make(trained, list(occluders), covers, seed)
    cached = FeatureCache(Path(cache or out.with_name(out.name + ".cache")), model, trained, plan, sources)
    console.print(
        f"{len(trained.people):,} people with {len(trained):,} images train, {len(held_out.people):,} people are held out; "
        f"{cached.count:,} faces to cache in {cached.folder}",
        markup=False,
        highlight=False,
    )
    cached.build()
    train_head(model, cached, Stage(head_steps, 128, 2e-3), seed)
    train_matchers(model, cached, predict_visibility(model, cached), Stage(steps, 96, 1e-3), seed)
    judged = HeldOut(model, held_out, list(occluders), seed)
    judged.calibrate()
    real = f"; real masks of {', '.join(map(str, masks))}" if masks else ""
    model.config.training.update(
        backbone=str(backbone),
        people=f"{len(trained.people)} people with {len(trained)} images of {people}",
        covers=f"drawn ({', '.join(occluders)}), style a in any material{real}",
        adapted=f"{'last stage, ' if last_stage else ''}heads and matchers, {head_steps} + {steps} steps, seed {seed}",
    )
    if licence:
        model.config.licence = licence
    judged.table(Console())
    model.cpu().save(out)
    console.print(f"written to {out}", markup=False, highlight=False)
    return out


# --- the parts ---


def start(backbone: Path, last_stage: bool = True) -> Model:
    """A model around a checkpoint, as `adapt` trains it: maps by stage 3, matching on 7x7 cells, by choice with a branch.

    Args:
        backbone: weights in any format of `oaml.weights`, or a model folder (of which the backbone is taken).
    """
    if Path(backbone).is_dir():
        given = Model.load(backbone)
    else:
        given = Model.from_backbone(backbone)
    config = given.config
    config.net = NetConfig(
        architecture=config.net.architecture,
        embedding_size=config.net.embedding_size,
        dropout=config.net.dropout,
        occlusion_stage=3,
        occlusion_context=True,
        branch=last_stage,
    )
    config.thresholds = {}
    model = Model(config)
    model.net.backbone.load_state_dict(given.net.backbone.state_dict())
    if model.net.branch is not None:
        model.net.branch = model.net.backbone.without_front()
    return model.eval()


class PairSampler:
    """Batches of pairs of rows: two images of one person (or one image twice, under two covers), every pair another person.

    Args:
        cache: built.
        people: labels of its images.
        bare: share of bare faces.
        single: share of the pairs from people with one image, where there are any.
    """

    def __init__(self, cache: FeatureCache, seed: int, bare: float = 0.3, single: float = 0.3) -> None:
        self.bare, self.single = bare, single
        self.rng = np.random.default_rng(seed)
        rows: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for index, row in enumerate(cache.plan.rows):
            rows.setdefault((row.image, row.view), ([], []))[row.kind != BARE].append(index)
        self.rows = rows
        """(image, view) -> its bare row, its covered rows."""
        images: dict[int, list[int]] = {}
        for image, person in enumerate(cache.people.labels):
            images.setdefault(int(person), []).append(image)
        self.several = [found for found in images.values() if len(found) > 1]
        self.alone = [found for found in images.values() if len(found) == 1]

    def batch(self, pairs: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the first faces and then of the second ones [2 * pairs], and the bare row of each one's view."""
        singles = min(len(self.alone), round(self.single * pairs))
        pairs = min(pairs - singles, len(self.several)) + singles
        people = [
            *(self.several[i] for i in self.rng.choice(len(self.several), pairs - singles, replace=False)),
            *(self.alone[i] for i in self.rng.choice(len(self.alone), singles, replace=False)),
        ]
        sides: tuple[list[int], list[int]] = ([], [])
        bare: tuple[list[int], list[int]] = ([], [])
        for images in people:
            if len(images) > 1:
                chosen = self.rng.choice(images, 2, replace=False)
                views = self.rng.integers(2, size=2)
            else:
                chosen, views = (images[0], images[0]), self.rng.permutation(2)
            for side, (image, view) in enumerate(zip(chosen, views, strict=True)):
                clean, covered = self.rows[int(image), int(view)]
                among = clean if self.rng.random() < self.bare else covered
                sides[side].append(among[self.rng.integers(len(among))])
                bare[side].append(clean[0])
        return np.array(sides[0] + sides[1]), np.array(bare[0] + bare[1])


def train_head(model: Model, cache: FeatureCache, stage: Stage, seed: int) -> None:
    """The occlusion head on the cached maps, drawn covers and real masks half and half where there are both."""
    head, device = model.net.occlusion_head, _where(model)
    rng = np.random.default_rng((seed, 1))
    drawn, real = np.arange(len(cache.plan.rows)), np.arange(len(cache.plan.rows), cache.count)
    optimiser = torch.optim.AdamW(head.parameters(), lr=stage.lr, weight_decay=0.01)
    head.train()
    for step in _steps("occlusion head", stage, optimiser):
        share = stage.batch // 2 if len(real) else 0
        rows = rng.choice(drawn, stage.batch - share)
        if share:
            rows = np.concatenate([rows, rng.choice(real, share)])
        features, mask = (x.to(device) for x in cache.rows(rows))
        loss = occlusion_loss(head(_channels_last(features)), mask)
        _step(optimiser, {"occlusion": loss}, step, cache, rows)
    head.eval()


@torch.inference_mode()
def predict_visibility(model: Model, cache: FeatureCache) -> np.ndarray:
    """What the head sees in every drawn row, uint8 [N,14,14]."""
    found = np.empty((len(cache.plan.rows), *cache.visibility.shape[1:]), np.uint8)
    for start in range(0, len(found), 256):
        rows = np.arange(start, min(start + 256, len(found)))
        features = _channels_last(cache.rows(rows)[0].to(_where(model)))
        seen = model.net.occlusion_head(features)[:, 0]
        found[rows] = (seen * 255).round().byte().cpu().numpy()
    return found


def train_matchers(
    model: Model, cache: FeatureCache, visibility: np.ndarray, stage: Stage, seed: int
) -> None:
    """Branch, QAConv and joint embedding on predicted visibility.

    Args:
        visibility: of `predict_visibility`.
    """
    net, device = model.net, _where(model)
    sampler = PairSampler(cache, seed)
    target = _targets(model, cache, sampler)
    optimiser = torch.optim.AdamW(_groups(model, stage.lr), weight_decay=0.01)
    rng = np.random.default_rng((seed, 2))
    if net.branch is not None:
        net.branch.requires_grad_(True)
    model.eval()  # the branch normalises as the checkpoint does, with running statistics
    model.matcher.train()
    for step in _steps("matching", stage, optimiser):
        rows, clean = sampler.batch(stage.batch)
        pairs = len(rows) // 2
        features = _channels_last(cache.rows(rows)[0].to(device))
        fine = torch.from_numpy(visibility[rows]).to(device).float()[:, None] / 255
        with torch.set_grad_enabled(net.branch is not None):
            stage4 = net.matched(features, fine)
        seen = F.avg_pool2d(fine, 2)
        cells = contributions(net.output, stage4)
        same = torch.eye(pairs, dtype=torch.bool, device=device)
        compared = model.joint.compare(cells[:pairs], cells[pairs:], seen[:pairs], seen[pairs:])
        joint = model.joint.logit(compared)
        terms = {"joint": balanced_matching_loss(joint, same)}
        # QAConv holds [pairs,pairs,49,49] numbers several times over: half of the pairs are a quarter of the work
        some = torch.from_numpy(rng.choice(pairs, max(2, pairs // 2), replace=False)).to(device)
        local = model.matcher(
            stage4[:pairs][some], stage4[pairs:][some], seen[:pairs][some], seen[pairs:][some]
        )
        terms["qaconv"] = balanced_matching_loss(local, same[some][:, some])
        terms["fused"] = balanced_matching_loss(joint[some][:, some] + local, same[some][:, some])
        if net.branch is not None:
            bare = torch.stack([target[int(row)] for row in clean]).to(device)
            terms["distillation"] = DISTILLATION * distillation_loss(cells, bare, seen.flatten(1))
        _step(optimiser, terms, step, cache, rows)
    model.eval()


def _targets(model: Model, cache: FeatureCache, sampler: PairSampler) -> dict[int, Tensor]:
    """Bare row -> what the unchanged backbone makes of its cells, float16 [49,E]."""
    found: dict[int, Tensor] = {}
    bare = [clean[0] for clean, _ in sampler.rows.values()]
    with torch.inference_mode():
        for start in range(0, len(bare), 256):
            rows = bare[start : start + 256]
            stage3 = _channels_last(cache.rows(np.array(rows))[0].to(_where(model)))
            cells = contributions(model.net.backbone, model.net.backbone.forward_stage4(stage3))
            found.update(zip(rows, cells.half().cpu(), strict=True))
    return found


def _groups(model: Model, lr: float) -> list[dict[str, object]]:
    """Scales, offsets and weights of cells learn ten times as fast and don't decay: they are few and start far away."""
    few = [model.joint.log_scale, model.joint.confidence]
    few += [p for name, p in model.matcher.named_parameters() if not name.startswith("adapter")]
    many = [p for name, p in model.matcher.named_parameters() if name.startswith("adapter")]
    if model.net.branch is not None:
        many += list(model.net.branch.parameters())
    return [{"params": many, "factor": 1.0}, {"params": few, "factor": 10.0, "weight_decay": 0.0}]


def _steps(label: str, stage: Stage, optimiser: torch.optim.Optimizer) -> Iterator[int]:
    """Steps with a progress bar on stderr; sets the learning rate of each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True)) as bar:
        for step in bar.track(range(stage.steps), description=label):
            for group in optimiser.param_groups:
                group["lr"] = stage.rate(step) * group.get("factor", 1.0)
            yield step


def _step(
    optimiser: torch.optim.Optimizer,
    terms: dict[str, Tensor],
    step: int,
    cache: FeatureCache,
    rows: np.ndarray,
) -> None:
    check_finite(terms, step, [cache.name(int(row)) for row in rows])
    optimiser.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 5.0)
    optimiser.step()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _where(model: Model) -> torch.device:
    return next(model.parameters()).device


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first_line = (str(error).splitlines() or ["unknown"])[0]
        raise OamlError(f"device {name!r}: can't be used ({first_line}); choose cpu or auto") from error


# --- people held out ---


class HeldOut:
    """People that no training saw: thresholds are fitted on them, and a table tells what came out.

    Thresholds and offset are fitted on covers of the trained style; the table is about covers of the other one.
    """

    def __init__(self, model: Model, people: People, kinds: list[str], seed: int) -> None:
        self.model, self.people, self.kinds, self.seed = model, people, kinds, seed
        self.person = torch.from_numpy(people.labels)
        first = np.unique(people.labels, return_index=True)[1]
        self.gallery = torch.from_numpy(first)
        self.probes = torch.from_numpy(np.setdiff1d(np.arange(len(people)), first))
        self.bare = extract(model, map(people.image, range(len(people))), len(people), label="held out, bare")

    def covered(self, kind: str, images: Tensor, style: Style) -> tuple[Templates, np.ndarray]:
        """Templates of some images under one kind of cover, and the true visibility on the matched cells, [N,1,h,w]."""
        masks: list[np.ndarray] = []

        def stream() -> Iterator[np.ndarray]:
            for i in images.tolist():
                rng = cover_rng(self.seed, f"held out {kind}", self.people.names[i])
                face = self.people.image(i)
                covered = occlude(face, kind, rng, style=style)
                if style == "a" and rng.random() < 0.5:
                    covered = retexture(face, covered, rng)
                masks.append(covered.mask)
                yield covered.image

        found = extract(self.model, stream(), len(images), label=f"held out, {kind}")
        return found, align_mask(torch.from_numpy(np.stack(masks))[:, None], self.model.net.grid).numpy()

    def calibrate(self) -> None:
        """Fit the offset of the fused score over the unseen share, then the thresholds on bare faces of different people."""
        model, everybody = self.model, torch.arange(len(self.people))
        model.fusion.offset.zero_()
        covered = [self.covered(kind, everybody, "a")[0] for kind in self.kinds]
        gallery = self.bare[self.gallery]
        pairs = []  # of different people: fused score and unseen share
        for probes in (self.bare, *covered):
            pairs.append(self._different(probes, self.person, gallery, self.person[self.gallery]))
        for a, b in zip(covered, covered[1:] + covered[:1], strict=True):
            alike = self.person[self.gallery]
            pairs.append(self._different(a[self.gallery], alike, b[self.gallery], alike))
        scores, unseen = (np.concatenate(values) for values in zip(*pairs, strict=True))
        model.fusion.offset.copy_(torch.from_numpy(fit_offset(scores, unseen)))
        scores, _ = self._different(self.bare, self.person, self.bare, self.person, once=True)
        model.config.thresholds = fit_thresholds(scores)
        model.config.training["thresholds_fitted_on"] = (
            f"{len(scores):,} pairs of bare faces of {len(self.people.people)} people held out"
        )

    def _different(
        self, a: Templates, person_a: Tensor, b: Templates, person_b: Tensor, once: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fused scores and unseen shares of all pairs of different people; `once`: without the mirrored ones."""
        different = person_a[:, None] != person_b
        different = different.triu(1) if once else different
        fused = score_all(self.model, a, np.arange(len(a)), b, np.arange(len(b)), plain=False)["fused"]
        unseen = 1 - cell_visibility(a.visibility) @ cell_visibility(b.visibility).T / CELLS
        return fused[different.numpy()], unseen[different].numpy()

    def table(self, console: Console) -> dict[str, dict[str, dict[str, float]]]:
        """Every score bare and under every kind, at thresholds of its own and at one for all -> condition -> score -> TAR.

        One bare face a person is the gallery, all other images are probes, covered in the style that was not trained.
        """
        gallery, alike = self.bare[self.gallery], self.person[self.probes, None] == self.person[self.gallery]
        found: dict[str, dict[str, np.ndarray]] = {}
        errors: dict[str, str] = {}
        for kind in ("bare", *self.kinds):
            if kind == "bare":
                probes = self.bare[self.probes]
                true = np.ones(tuple(probes.visibility.shape), np.float32)
            else:
                probes, true = self.covered(kind, self.probes, "b")
            errors[kind] = f"{np.abs(probes.visibility.numpy() - true).mean():.3f}"
            found[kind] = score_all(
                self.model, probes, np.arange(len(probes)), gallery, np.arange(len(gallery))
            )
        same = {kind: alike.numpy() for kind in found}
        found["all, one threshold"] = {
            score: np.concatenate([values[score] for values in found.values()]) for score in COLUMNS
        }
        same["all, one threshold"] = np.tile(alike.numpy(), (len(found) - 1, 1))
        return _print_table(console, found, same, errors, len(self.people.people))


def _print_table(
    console: Console,
    found: dict[str, dict[str, np.ndarray]],
    same: dict[str, np.ndarray],
    errors: dict[str, str],
    people: int,
) -> dict[str, dict[str, dict[str, float]]]:
    from rich.table import Table

    fars = [far for far in (1e-2, 1e-3) if enough_negatives(int((~same["bare"]).sum()), far)]
    table = Table("condition", "map error", *(TITLES[score] for score in COLUMNS))
    numbers: dict[str, dict[str, dict[str, float]]] = {}
    for condition, scores in found.items():
        numbers[condition] = {
            score: {f"{far:g}": tar_at_far(values.ravel(), same[condition].ravel(), far).tar for far in fars}
            for score, values in scores.items()
        }
        cells = (" / ".join(f"{tar:.3f}" for tar in numbers[condition][score].values()) for score in COLUMNS)
        table.add_row(condition, errors.get(condition, ""), *cells)
    console.print(
        f"{people} people held out: share of probes accepted (TAR) at FAR {' / '.join(f'{far:g}' for far in fars)}, "
        "covers of a style that was not trained, thresholds of each row",
        highlight=False,
    )
    console.print(table)
    return numbers


# --- input ---


def _trains(person: str, use: Literal["all", "train"]) -> bool:
    split: Split = split_name(person)
    return split == "train" or (use == "all" and split == "report")


def _check(occluders: list[str], covers: int, head_steps: int, steps: int, seed: int, out: Path) -> None:
    if not occluders:
        raise OamlError(f"--occluders: names no kind; choose among {', '.join(KINDS)}")
    for kind in occluders:
        if kind not in KINDS:
            raise OamlError(f"--occluders: no cover is called {kind!r}; choose among {', '.join(KINDS)}")
    for flag, value in (("covers", covers), ("head_steps", head_steps), ("steps", steps)):
        if value < 1:
            raise OamlError(f"--{flag}: {value} is not at least 1")
    if seed < 0:
        raise OamlError(f"--seed: {seed} is negative")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file())):
        raise OamlError(f"{out}: exists and is no model folder; choose another name")


def _check_people(folder: Path, trained: People, held_out: People) -> None:
    for people, what in (
        (trained, "train on"),
        (held_out, "hold out for thresholds (1 of 10, by the hash of their name)"),
    ):
        several = int((np.bincount(people.labels) > 1).sum())
        if several < 2:
            raise OamlError(
                f"{folder}: has {several} people with two images to {what}, at least 2 are needed; add people or images"
            )
