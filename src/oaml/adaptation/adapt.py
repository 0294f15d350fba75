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
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.adaptation.cache import BARE, CachePlan, FeatureCache
from oaml.adaptation.held_out import GROUPS, HeldOut, calibrate, scores, show, tars
from oaml.datasets.masked import MaskedFolder
from oaml.datasets.people import PeopleFolder, Split, split_name
from oaml.errors import OamlError
from oaml.inference import to_device
from oaml.losses import balanced_matching_loss, check_finite, distillation_loss, occlusion_loss
from oaml.model import Model
from oaml.net import NetConfig
from oaml.occluders import KINDS
from oaml.support.files import check_model_folder
from oaml.support.progress import progress
from oaml.visibility import GRID, on_grid

DISTILLATION = 2.0
"""Weight of the loss that keeps visible cells as the unchanged network has them, beside matching losses of about 2 to 4."""
EMBEDDING = 4.0
"""Weight of the loss that draws what shows of a face towards the unchanged embedding of the same face without its cover."""
MORE = {"niqab": 2.0}
"""Kinds that are drawn into a batch more often than others: what leaves least of a face is learned last."""
QACONV = 0.25
"""Weight of QAConv's logit in the fused score: it sees other things than the joint embedding, but less. Chosen with COSINE on the
people of the calibration split."""
COSINE = 6.0
"""Weight of the unchanged embedding's cosine in the fused score, times the share that both faces show; joint logits have scales of
12 to 15."""
STRANGERS = 320
"""Bare faces of other people that every training face is compared with beside its batch, as in a gallery: the unchanged network's,
so that they cost one product of matrices. Of the few that come near are the errors at small false-accept rates."""
NEVER = -30.0
"""Logit of a pair that a loss shall not see."""
BRANCH_RATE = 0.3
"""Learning rate of the branch beside the matchers': it starts from weights that are good already."""


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
    flip: bool = True,
    use: Literal["all", "train"] = "all",
    covers: int = 6,
    occlusion_steps: int = 700,
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
        last_stage: train a second last stage for matching. Without it only a second output layer is trained: faster, and
            the maps stay those of the checkpoint.
        flip: average every face with its mirror image from here on, the plain embedding as well.
        use: all keeps back only the people that thresholds and the final table need (1 of 10, by the hash of their name);
            train keeps back 2 of 10 more for a report of your own.
        covers: covers drawn on each of the two views of a training image (half as many for a person with one image).
        occlusion_steps: training steps of the occlusion head.
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
    _check(occluders, covers, occlusion_steps, steps, seed, out)
    console = Console(stderr=True)
    sources = [MaskedFolder(folder, resize) for folder in masks]
    _check_people(people, use)
    trained = PeopleFolder(people, lambda name: _trains(name, use), resize)
    held_out = PeopleFolder(people, lambda name: split_name(name) == "calibrate", resize)
    model = to_device(start(backbone, last_stage, flip), device)
    torch.manual_seed(seed)

    plan = CachePlan.make(trained, list(occluders), covers, seed)
    cached = FeatureCache(Path(cache or out.with_name(out.name + ".cache")), model, trained, plan, sources)
    console.print(
        f"{len(trained.people):,} people with {len(trained):,} images train, {len(held_out.people):,} people are held out; "
        f"{cached.count:,} faces to cache in {cached.folder}",
        markup=False,
        highlight=False,
    )
    cached.build()
    train_head(model, cached, Stage(occlusion_steps, 128, 2e-3), seed)
    train_matchers(model, cached, predict_visibility(model, cached), Stage(steps, 96, 1e-3), seed)
    console.print("fitting thresholds on the people held out", highlight=False)
    calibrate(model, HeldOut(model, held_out, occluders, seed, "a", everybody=True, groups=GROUPS))
    real = f"; real masks of {', '.join(map(str, masks))}" if masks else ""
    model.config.training.update(
        backbone=str(backbone),
        people=f"{len(trained.people)} people with {len(trained)} images of {people}",
        covers=f"drawn ({', '.join(occluders)}), style a in any material{real}",
        adapted=f"{'last stage, ' if last_stage else ''}heads and matchers, {occlusion_steps} + {steps} steps, seed {seed}",
    )
    if licence:
        model.config.licence = licence
    judged = HeldOut(model, held_out, occluders, seed, "b")
    found, same, errors = scores(model, judged)
    printed = Console()
    show(
        printed if printed.is_terminal else Console(width=120),
        tars(found, same),
        errors,
        len(held_out.people),
    )
    model.cpu().save(out)
    console.print(f"written to {out}", markup=False, highlight=False)
    return out


# --- the parts ---


def start(backbone: Path, last_stage: bool = True, flip: bool = False) -> Model:
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
        branch="stage" if last_stage else "output",
    )
    config.thresholds, config.flip = {}, flip
    model = Model(config)
    model.net.backbone.load_state_dict(given.net.backbone.state_dict())
    if model.net.branch is not None:
        model.net.branch = model.net.backbone.without_front(last_stage)
    with torch.no_grad():
        model.fusion.qaconv_weight.fill_(QACONV)
        model.fusion.cosine_weight.fill_(COSINE)
    return model.eval()


class PairSampler:
    """Batches of pairs of rows: two images of one person (or one image twice, under two covers), every pair another person.

    Args:
        cache: its plan and people; the features needn't be there.
        seed: of the choice.
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
        self.bare_rows: dict[int, list[int]] = {}
        """Person -> bare rows of all views."""
        for (image, _), (clean, _) in rows.items():
            self.bare_rows.setdefault(int(cache.people.labels[image]), []).extend(clean)
        self.weight = np.array(
            [
                1.0 if row.kind == BARE else MORE.get(cache.plan.kinds[row.kind], 1.0)
                for row in cache.plan.rows
            ]
        )
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
                if self.rng.random() < self.bare:
                    sides[side].append(clean[0])
                else:
                    weight = self.weight[covered]
                    sides[side].append(self.rng.choice(covered, p=weight / weight.sum()))
                bare[side].append(clean[0])
        return np.array(sides[0] + sides[1]), np.array(bare[0] + bare[1])

    def strangers(self, present: set[int], count: int) -> list[int]:
        """One bare row each of at most `count` people who are not `present` (numbers of people)."""
        others = [p for p in self.rng.permutation(list(self.bare_rows)).tolist() if p not in present]
        return [int(self.rng.choice(self.bare_rows[p])) for p in others[:count]]


def train_head(model: Model, cache: FeatureCache, stage: Stage, seed: int) -> None:
    """The occlusion head on the cached maps, drawn covers and real masks half and half where there are both."""
    head, device = model.net.occlusion_head, model.device
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
        loss = occlusion_loss(head(features), mask)
        _step(optimiser, {"occlusion": loss}, step, cache, rows)
    head.eval()


@torch.inference_mode()
def predict_visibility(model: Model, cache: FeatureCache) -> np.ndarray:
    """What the head sees in every drawn row, uint8 [N,14,14]."""
    found = np.empty((len(cache.plan.rows), *cache.visibility.shape[1:]), np.uint8)
    for start in range(0, len(found), 256):
        rows = np.arange(start, min(start + 256, len(found)))
        features = cache.rows(rows)[0].to(model.device)
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
    net, device = model.net, model.device
    assert net.branch is not None
    sampler = PairSampler(cache, seed)
    target = _targets(model, cache, sampler)
    optimiser = torch.optim.AdamW(_groups(model, stage.lr), weight_decay=0.01)
    rng = np.random.default_rng((seed, 2))
    model.eval()  # the branch normalises as the checkpoint does, with running statistics
    model.matcher.train()
    for step in _steps("matching", stage, optimiser):
        rows, clean = sampler.batch(stage.batch)
        pairs = len(rows) // 2
        stage3 = cache.rows(rows)[0].to(device)
        fine = torch.from_numpy(visibility[rows]).to(device).float()[:, None] / 255
        with torch.set_grad_enabled(net.config.branch == "stage"):
            stage4 = net.matched(stage3, fine)
        cells, seen = net.branch.cells(stage4), on_grid(fine, GRID)
        same = torch.eye(pairs, dtype=torch.bool, device=device)
        compared = model.joint.compare(cells[:pairs], cells[pairs:], seen[:pairs], seen[pairs:])
        joint = model.joint.logit(compared.cosine, compared.unseen)
        terms = {"joint": balanced_matching_loss(joint, same)}
        # QAConv is most of a step: half of the pairs are a quarter of its work
        some = torch.from_numpy(rng.choice(pairs, max(2, pairs // 2), replace=False)).to(device)
        features, shown = (stage4, seen) if net.config.stage == 4 else (stage3, fine)
        (a, b), (a_occ, b_occ) = ((x[some], x[pairs + some]) for x in (features, shown))
        local = model.matcher(a, b, a_occ, b_occ)
        terms["qaconv"] = balanced_matching_loss(local, same[some][:, some])
        terms["fused"] = balanced_matching_loss(joint[some][:, some] + QACONV * local, same[some][:, some])
        bare = torch.stack([target[int(row)] for row in clean]).to(device).float()
        owners = [int(cache.people.labels[cache.plan.rows[row].image]) for row in clean]
        others = sampler.strangers(set(owners), STRANGERS)
        known = torch.cat([bare, *(target[row].to(device).float()[None] for row in others)])
        terms["gallery"] = _gallery_loss(model, cells, seen, known, owners)
        terms["distillation"] = DISTILLATION * distillation_loss(cells, bare, seen.flatten(1))
        shown_sum = (cells * seen.flatten(1)[..., None]).sum(1)
        terms["embedding"] = EMBEDDING * (1 - F.cosine_similarity(shown_sum, bare.sum(1))).mean()
        _step(optimiser, terms, step, cache, rows)
    model.eval()


def _gallery_loss(model: Model, cells: Tensor, seen: Tensor, known: Tensor, owners: list[int]) -> Tensor:
    """Every face of a batch of pairs against the bare faces of the batch and of strangers, with the joint embedding.

    Args:
        cells: [B,49,E]; seen: [B,1,7,7].
        known: [G,49,E] of the unchanged network, without gradient: first those of the B faces, then strangers'.
        owners: the person of each of the B faces.
    """
    weight = seen.flatten(1)
    mine = (cells * weight[..., None]).sum(1)
    with torch.no_grad():  # what each face shows, of every known one: [B,G,E]
        theirs = (weight @ known.transpose(0, 1).flatten(1)).view(len(mine), len(known), -1)
        theirs = F.normalize(theirs, dim=2)
    cosine = (F.normalize(mine, dim=1)[:, None] * theirs).sum(2)
    unseen = (1 - weight.mean(1, keepdim=True)).expand_as(cosine)
    person = torch.tensor(owners, device=cells.device)
    same = torch.zeros(cosine.shape, dtype=torch.bool, device=cells.device)
    same[:, : len(person)] = person[:, None] == person
    own = torch.eye(*same.shape, dtype=torch.bool, device=same.device)
    # its own photograph without the cover is no test: it counts neither way
    logit = model.joint.logit(cosine, unseen).masked_fill(own, NEVER)
    return balanced_matching_loss(logit, same & ~own)


def _targets(model: Model, cache: FeatureCache, sampler: PairSampler) -> dict[int, Tensor]:
    """Bare row -> what the unchanged backbone makes of its cells, float16 [49,E]."""
    found: dict[int, Tensor] = {}
    bare = [clean[0] for clean, _ in sampler.rows.values()]
    with torch.inference_mode():
        for start in range(0, len(bare), 256):
            rows = bare[start : start + 256]
            stage3 = cache.rows(np.array(rows))[0].to(model.device)
            cells = model.net.backbone.cells(model.net.backbone.forward_stage4(stage3))
            found.update(zip(rows, cells.half().cpu(), strict=True))
    return found


def _groups(model: Model, lr: float) -> list[dict[str, object]]:
    """Scales, offsets and weights of cells learn ten times as fast and don't decay: they are few and start far away."""
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


def _steps(label: str, stage: Stage, optimiser: torch.optim.Optimizer) -> Iterator[int]:
    """Steps with a progress bar; sets the learning rate of each."""
    with progress(label, stage.steps) as advance:
        for step in range(stage.steps):
            for group in optimiser.param_groups:
                group["lr"] = stage.rate(step) * group.get("factor", 1.0)
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


def _trains(person: str, use: Literal["all", "train"]) -> bool:
    split: Split = split_name(person)
    return split == "train" or (use == "all" and split == "report")


def _check(occluders: list[str], covers: int, occlusion_steps: int, steps: int, seed: int, out: Path) -> None:
    if not occluders:
        raise OamlError(f"--occluders: names no kind; choose among {', '.join(KINDS)}")
    for kind in occluders:
        if kind not in KINDS:
            raise OamlError(f"--occluders: no occluder is called {kind!r}; choose among {', '.join(KINDS)}")
    for flag, value in (("covers", covers), ("occlusion_steps", occlusion_steps), ("steps", steps)):
        if value < 1:
            raise OamlError(f"--{flag}: {value} is not at least 1")
    if seed < 0:
        raise OamlError(f"--seed: {seed} is negative")
    check_model_folder(out)


def _check_people(folder: Path, use: Literal["all", "train"]) -> None:
    everybody = PeopleFolder(folder)
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
                f"{folder}: has {len(people)} people with two images to {what}, at least 2 are needed; add people or images"
            )
