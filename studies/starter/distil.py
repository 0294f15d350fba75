"""A small network taught by an adapted one, from random numbers: block by block, then whole, on a CPU.

The student has its teacher's shape and none of the numbers of its backbone. First every block learns alone what the teacher's block
makes of the teacher's maps (FitNets, Romero et al., 2015, at every block at once: each is a small regression, so it takes minutes).
Then everything works together, and everything is taught: the maps after every block, the plain embedding, visibility, the branch's
per-cell embeddings and the local maps of QAConv. Occluded faces are taught what the teacher sees of the same face without its
occluder, on the cells that show. A picture is seldom seen twice: it is moved, relit, mirrored, and mixed with another (Beyer et
al., 2022: a good teacher is patient and consistent). Nothing here needs names: any face will do.

Shapes: B faces; R = 49 cells; E embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oaml.losses import distillation_loss
from oaml.model import Model
from oaml.net import MobileFaceNet, Net
from oaml.occluders import KINDS, Occluder
from oaml.support.files import write_file
from oaml.support.progress import progress
from oaml.visibility import mask_to_cells, on_grid

ALONE_BATCH, TOGETHER_BATCH = 24, 32
ALONE_RATE, TOGETHER_RATE = 2e-2, 4e-3
MIXED = 0.3
"""Share of pictures that are a mixture of two while the blocks learn alone."""
OCCLUDED = 0.6
"""Share of occluded pictures while they learn together."""
KIND_WEIGHTS = {"niqab": 2.0}
"""How often a kind is drawn, 1 for all others."""
EMBEDDING_WEIGHT, CELLS_WEIGHT, LOCAL_WEIGHT, VISIBILITY_WEIGHT = 8.0, 1.0, 1.0, 10.0
"""Of the terms beside the mean error of the maps."""
SETTLED = 0.85
"""Share of the steps together after which normalisation uses running statistics, as it will when the network is used."""
CHECKPOINT = 100  # steps


def blocks(network: MobileFaceNet) -> list[nn.Module]:
    """The network as a chain: stem, 15 blocks, the last convolution, the output layer up to the raw embedding [B,E]."""
    return [
        nn.Sequential(network.stem, network.stem_depthwise, network.stem_pointwise),
        *network.blocks,
        network.last,
        nn.Sequential(network.pool, network.output, nn.Flatten(), network.output_bn),
    ]


def maps(chain: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """x and what every block makes of it, one after the other."""
    found = [x]
    for block in chain:
        found.append(block(found[-1]))
    return found


@torch.no_grad()
def set_scale(student: Sequence[nn.Module], targets: list[Tensor]) -> None:
    """Let the last normalisation of every block start with the mean and deviation that its output is to have.

    Otherwise the first hundreds of steps go into finding them: after 300 a block was wrong by 3.7 variances instead of 0.4.
    """
    for block, x, y in zip(student, targets, targets[1:], strict=False):
        added = (y - x if getattr(block, "residual", False) else y).transpose(0, 1).flatten(1)
        last = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)][-1]
        last.weight.copy_(added.std(1))
        last.bias.copy_(added.mean(1))


def alone(student: Sequence[nn.Module], targets: list[Tensor]) -> Tensor:
    """Mean over blocks of the squared error, in variances of what the teacher's block adds. Blocks get no gradient of others."""
    errors = []
    for block, x, y in zip(student, targets, targets[1:], strict=False):
        added = y - x if getattr(block, "residual", False) else y
        errors.append(F.mse_loss(block(x), y) / added.var())
    return torch.stack(errors).mean()


class Lesson(NamedTuple):
    """What the teacher sees in B unoccluded faces."""

    maps: list[Tensor]
    """The input, the map after every block, the raw embedding [B,E]."""
    visibility: Tensor
    """[B,1,14,14]."""
    cells: Tensor
    """The branch's per-cell embeddings [B,R,E]."""
    local: Tensor
    """[B,C,7,7], unit length in every cell."""


@torch.no_grad()
def lesson(teacher: Model, chain: Sequence[nn.Module], x: Tensor) -> Lesson:
    """The lesson of input x [B,3,112,112]."""
    net = teacher.net
    assert net.branch is not None
    with torch.autocast("cpu", torch.bfloat16):
        found = [y.float() for y in maps(chain, x)]
    stage3 = found[1 + net.backbone.stage3_blocks]  # type: ignore[operator]
    fine = net.occlusion_head(stage3)
    stage4 = net.matched(stage3, fine)
    return Lesson(found, fine, net.branch.cells(stage4), teacher.matcher.prepare(stage4))


def together(student: Model, chain: Sequence[nn.Module], x: Tensor, taught: Lesson, mask: Tensor) -> Tensor:
    """Squared errors of the maps where the face shows, and those of everything that is made of them.

    Args:
        x: input of the student, some faces occluded.
        taught: about the same faces unoccluded.
        mask: [B,1,112,112], 1 where the face shows.
    """
    net = student.net
    assert net.branch is not None
    errors, found = [], [x]
    for block, y in zip(chain, taught.maps[1:], strict=True):
        found.append(block(found[-1]))
        if y.dim() == 4:
            shown = mask_to_cells(mask, (y.shape[2], y.shape[3]))
            errors.append((shown * (found[-1] - y).square()).mean() / (y.var() * shown.mean()))
    terms = [
        torch.stack(errors).mean(),
        EMBEDDING_WEIGHT * (1 - F.cosine_similarity(found[-1], taught.maps[-1])).mean(),
    ]
    stage3 = found[1 + net.backbone.stage3_blocks]  # type: ignore[operator]
    fine = net.occlusion_head(stage3)
    target = taught.visibility * mask_to_cells(mask, (fine.shape[2], fine.shape[3]))
    terms.append(VISIBILITY_WEIGHT * F.mse_loss(fine, target))
    stage4 = net.matched(stage3, fine)
    cells, seen = net.branch.cells(stage4), on_grid(target, net.backbone.grids[4])
    weight = seen.flatten(1)
    terms.append(CELLS_WEIGHT * distillation_loss(cells, taught.cells, weight))
    ours, theirs = ((a * weight[..., None]).sum(1) for a in (cells, taught.cells))
    terms.append(EMBEDDING_WEIGHT * (1 - F.cosine_similarity(ours, theirs)).mean())
    alike = (student.matcher.prepare(stage4) * taught.local).sum(1, keepdim=True)
    terms.append(LOCAL_WEIGHT * (seen * (1 - alike)).sum() / seen.sum())
    return torch.stack(terms).sum()


@dataclass
class Pictures:
    """Endless batches of faces, each time different."""

    images: list[np.ndarray]
    """uint8 RGB [112,112,3] each."""
    seed: int

    def __post_init__(self) -> None:
        self.occluder = Occluder(
            retexture_share=0.5, photographs=self.images[:: len(self.images) // 150 or 1]
        )
        weights = np.array([KIND_WEIGHTS.get(kind, 1.0) for kind in KINDS])
        self.weights = weights / weights.sum()

    def batch(self, step: int, count: int, occluded: float, mixed: float) -> tuple[Tensor, Tensor, Tensor]:
        """Seen [B,3,112,112] in [0,1], the same unoccluded, masks [B,1,112,112]; the same ones for the same step."""
        rng = np.random.default_rng((self.seed, step))
        seen, unoccluded, masks = [], [], []
        for index in rng.choice(len(self.images), count, replace=False):
            image = _varied(self.images[index], rng)
            if rng.random() < mixed:
                share = rng.uniform(0.3, 0.7)
                other = _varied(self.images[rng.integers(len(self.images))], rng)
                image = (share * image + (1 - share) * other).astype(np.uint8)
            shown, mask = image, np.ones(image.shape[:2], np.float32)
            if rng.random() < occluded:
                shown, mask = self.occluder.draw(image, KINDS[rng.choice(len(KINDS), p=self.weights)], rng)
            seen.append(shown)
            unoccluded.append(image)
            masks.append(mask)
        faces = [torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).float() / 255 for x in (seen, unoccluded)]
        return faces[0], faces[1], torch.from_numpy(np.stack(masks))[:, None]


def _varied(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrored or not, turned, scaled, shifted, in other light."""
    matrix = cv2.getRotationMatrix2D((56, 64), rng.normal(0, 5), math.exp(rng.normal(0, 0.06)))
    matrix[:, 2] += rng.normal(0, 3, 2)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    moved = cv2.warpAffine(np.ascontiguousarray(image), matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
    x = (moved.astype(np.float32) - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-25, 25)
    return np.clip(x * rng.uniform(0.92, 1.08, 3), 0, 255).astype(np.uint8)


def beginner(teacher: Model, seed: int) -> Model:
    """A model of the teacher's shape: a new backbone, and what `oaml adapt` made of random numbers: occlusion head and matchers."""
    torch.manual_seed(seed)
    student = Model(deepcopy(teacher.config))
    for name in ("matcher", "joint", "fusion"):
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
    student.net.occlusion_head.load_state_dict(teacher.net.occlusion_head.state_dict())
    return student


def distil(
    teacher: Model, images: list[np.ndarray], out: Path, alone_steps: int, together_steps: int, seed: int = 0
) -> Model:
    """Train the student; goes on from OUT/checkpoint.pt where a run stopped.

    Args:
        teacher: adapted, with branch `stage`.
        images: uint8 RGB [112,112,3] each.

    Returns:
        The student in eval mode.
    """
    student, pictures = beginner(teacher, seed), Pictures(images, seed)
    network, guide = student.net.backbone, teacher.eval().net.backbone
    assert isinstance(network, MobileFaceNet)
    assert isinstance(guide, MobileFaceNet)
    chain, guiding = blocks(network), blocks(guide)
    total, file = alone_steps + together_steps, out / "checkpoint.pt"
    state = torch.load(file, weights_only=True) if file.exists() else None
    done = state["done"] if state else 0
    if state:
        student.load_state_dict(state["student"])
    else:
        _, unoccluded, _ = pictures.batch(0, ALONE_BATCH, 0, 0)
        with torch.no_grad():
            set_scale(chain, maps(guiding, student.preprocess(unoccluded)))
    optimiser = _optimiser(student, alone_phase=done < alone_steps)
    if state:
        optimiser.load_state_dict(state["optimiser"])
    with progress("student", total, done) as advance:
        for step in range(done, total):
            first = step < alone_steps
            if step == alone_steps:
                _branch_off(student.net)
                optimiser = _optimiser(student, alone_phase=False)
            place = step / alone_steps if first else (step - alone_steps) / together_steps
            highest = ALONE_RATE if first else TOGETHER_RATE
            for group in optimiser.param_groups:
                group["lr"] = highest * min(1, (step + 1) / 50) * (0.505 + 0.495 * math.cos(math.pi * place))
            student.net.train(first or place < SETTLED)
            student.matcher.eval()  # trained already: it keeps its statistics
            if first:
                seen, _, _ = pictures.batch(step, ALONE_BATCH, 0.2, MIXED)
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    targets = [y.float() for y in maps(guiding, student.preprocess(seen))]
                loss = alone(chain, targets)
            else:
                seen, unoccluded, mask = pictures.batch(step, TOGETHER_BATCH, OCCLUDED, 0.1)
                taught = lesson(teacher, guiding, student.preprocess(unoccluded))
                loss = together(student, chain, student.preprocess(seen), taught, mask)
            if not loss.isfinite():
                raise SystemExit(f"step {step}: the loss is {loss}")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 1.0)
            optimiser.step()
            advance(1)
            last = step in (alone_steps - 1, total - 1)
            if step % 25 == 0 or last:
                with (out / "log.txt").open("a") as log:
                    print(f"{step + 1} {'alone' if first else 'together'} loss {loss:.4f}", file=log)
            if ((step + 1) % CHECKPOINT == 0 and step + 1 != alone_steps) or step == total - 1:
                state = {
                    "done": step + 1,
                    "student": student.state_dict(),
                    "optimiser": optimiser.state_dict(),
                }
                write_file(file, lambda path, state=state: torch.save(state, path))
    return student.eval()


def _optimiser(student: Model, alone_phase: bool) -> torch.optim.Optimizer:
    """Of the backbone alone, then of everything but what tells scores apart."""
    parts = [student.net.backbone] if alone_phase else [student.net, student.matcher.adapter]
    return torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=1.0, weight_decay=0.0)  # type: ignore[union-attr]


def _branch_off(net: Net) -> None:
    """Let the branch begin as a copy of the last stage, as the teacher's did."""
    assert net.branch is not None
    net.branch.load_state_dict(net.backbone.without_front(net.config.branch == "stage").state_dict())
