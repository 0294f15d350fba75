"""A small backbone taught by a published one, from nothing: block by block, then whole, on a CPU.

The student has its teacher's shape and none of its numbers. First every block learns alone what the teacher's block makes of the
teacher's maps (FitNets, Romero et al., 2015, at every block at once: each is a small regression, so it takes minutes). Then the
blocks work together: all maps, and the embedding, of the teacher are the target, for covered faces those of the same face without
its cover, on the cells that show. A picture is seldom seen twice: it is moved, relit, mirrored, and mixed with another (Beyer et
al., 2022: a good teacher is patient and consistent).
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oaml.datasets.people import PeopleFolder, split_name
from oaml.net import MobileFaceNet, build_backbone
from oaml.occluders import KINDS, Occluder
from oaml.support.files import write_file
from oaml.support.progress import progress
from oaml.visibility import mask_to_cells
from oaml.weights import LoadedBackbone, load_backbone

BATCH = 64
ALONE_RATE, TOGETHER_RATE = 2e-2, 4e-3
MIXED = 0.3
"""Share of pictures that are a mixture of two while the blocks learn alone."""
COVERED = 0.5
"""Share of covered pictures while they learn together."""
CHECKPOINT = 100  # steps


def blocks(network: MobileFaceNet) -> list[nn.Module]:
    """The network as a chain: stem, 15 blocks, the last convolution, the output layer up to the raw embedding [B,E]."""
    return [
        nn.Sequential(network.stem, network.stem_depthwise, network.stem_pointwise),
        *network.blocks,
        network.last,
        nn.Sequential(network.pool, network.output, nn.Flatten(), network.output_bn),
    ]


@torch.no_grad()
def maps(chain: list[nn.Module], x: Tensor) -> list[Tensor]:
    """x and what every block makes of it, one after the other."""
    found = [x]
    for block in chain:
        found.append(block(found[-1]))
    return found


@torch.no_grad()
def set_scale(student: list[nn.Module], targets: list[Tensor]) -> None:
    """Let the last normalisation of every block start with the mean and deviation that its output is to have.

    Otherwise the first hundreds of steps go into finding them: after 300 a block was wrong by 3.7 variances instead of 0.4.
    """
    for block, x, y in zip(student, targets, targets[1:], strict=False):
        added = (y - x if getattr(block, "residual", False) else y).transpose(0, 1).flatten(1)
        last = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)][-1]
        last.weight.copy_(added.std(1))
        last.bias.copy_(added.mean(1))


def alone(student: list[nn.Module], targets: list[Tensor]) -> Tensor:
    """Mean over blocks of the squared error, in variances of what the teacher's block adds. Blocks get no gradient of others."""
    errors = []
    for block, x, y in zip(student, targets, targets[1:], strict=False):
        added = y - x if getattr(block, "residual", False) else y
        errors.append(F.mse_loss(block(x), y) / added.var())
    return torch.stack(errors).mean()


def together(student: list[nn.Module], x: Tensor, targets: list[Tensor], mask: Tensor) -> Tensor:
    """Squared errors of the maps where the face shows, and 1 - cosine of the embeddings, eight times.

    Args:
        x: input of the student, some faces covered.
        targets: the teacher's maps of the same faces bare.
        mask: [B,1,112,112], 1 where the face shows.
    """
    errors = []
    for block, y in zip(student, targets[1:], strict=True):
        x = block(x)
        if x.dim() == 4:
            shown = mask_to_cells(mask, (x.shape[2], x.shape[3]))
            errors.append((shown * (x - y).square()).mean() / (y.var() * shown.mean()))
    return torch.stack(errors).mean() + 8 * (1 - F.cosine_similarity(x, targets[-1])).mean()


class Pictures:
    """Endless batches of faces of the people that train, each time different.

    Args:
        folder: a folder per person.
        seed: of everything random.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        people = PeopleFolder(folder, lambda name: split_name(name) == "train")
        self.images = [people.image(i) for i in range(len(people))]
        self.seed = seed
        self.occluder = Occluder(retexture_share=0.5)

    def batch(self, step: int, covered: float, mixed: float) -> tuple[Tensor, Tensor, Tensor]:
        """Seen [B,3,112,112] in [0,1], the same without covers, masks [B,1,112,112]; the same ones for the same step."""
        rng = np.random.default_rng((self.seed, step))
        seen, bare, masks = [], [], []
        for index in rng.choice(len(self.images), BATCH, replace=False):
            image = _varied(self.images[index], rng)
            if rng.random() < mixed:
                share, other = (
                    rng.uniform(0.3, 0.7),
                    _varied(self.images[rng.integers(len(self.images))], rng),
                )
                image = (share * image + (1 - share) * other).astype(np.uint8)
            shown, mask = image, np.ones(image.shape[:2], np.float32)
            if rng.random() < covered:
                shown, mask = self.occluder.draw(image, KINDS[rng.integers(len(KINDS))], rng)
            seen.append(shown)
            bare.append(image)
            masks.append(mask)
        faces = (torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).float() / 255 for x in (seen, bare))
        return next(faces), next(faces), torch.from_numpy(np.stack(masks))[:, None]


def _varied(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrored or not, turned, scaled, shifted, in other light."""
    matrix = cv2.getRotationMatrix2D((56, 64), rng.normal(0, 5), math.exp(rng.normal(0, 0.06)))
    matrix[:, 2] += rng.normal(0, 3, 2)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    moved = cv2.warpAffine(np.ascontiguousarray(image), matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
    x = (moved.astype(np.float32) - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-25, 25)
    return np.clip(x * rng.uniform(0.92, 1.08, 3), 0, 255).astype(np.uint8)


def distil(
    teacher: Path, people: Path, out: Path, alone_steps: int, together_steps: int, seed: int = 0
) -> LoadedBackbone:
    """Train the student; goes on from OUT/checkpoint.pt where a run stopped.

    Returns:
        The student in eval mode, described as its teacher is.
    """
    loaded = load_backbone(teacher)
    assert isinstance(loaded.backbone, MobileFaceNet)
    torch.manual_seed(seed)
    network = build_backbone(loaded.config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(network, MobileFaceNet)
    guide = blocks(loaded.backbone.to(memory_format=torch.channels_last).eval())  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.0)
    pictures = Pictures(people, seed)
    mean = torch.tensor(loaded.preprocessing.mean).view(1, 3, 1, 1)
    std = torch.tensor(loaded.preprocessing.std).view(1, 3, 1, 1)
    total, file = alone_steps + together_steps, out / "checkpoint.pt"
    done = 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        done = state["done"]
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])

    @torch.no_grad()
    def taught(x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [y.float() for y in maps(guide, x)]

    chain = blocks(network)
    if done == 0:
        _, bare, _ = pictures.batch(0, 0, 0)
        set_scale(chain, taught((bare - mean) / std))
    with progress("student", total, done) as advance:
        for step in range(done, total):
            first = step < alone_steps
            place = step / alone_steps if first else (step - alone_steps) / together_steps
            highest = ALONE_RATE if first else TOGETHER_RATE
            optimiser.param_groups[0]["lr"] = highest * min(1, (step + 1) / 50) * _cosine(place)
            # the last steps with the statistics that the network will be used with
            network.train(first or place < 0.85)
            seen, bare, mask = pictures.batch(step, 0.2 if first else COVERED, MIXED if first else 0.1)
            seen, bare = (
                ((x - mean) / std).contiguous(memory_format=torch.channels_last) for x in (seen, bare)
            )
            targets = taught(seen if first else bare)
            loss = alone(chain, targets) if first else together(chain, seen, targets, mask)
            if not loss.isfinite():
                raise SystemExit(f"step {step}: the loss is {loss}")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            advance(1)
            last = step == total - 1
            if step % 25 == 0 or last:
                with (out / "log.txt").open("a") as log:
                    print(f"{step + 1} {'alone' if first else 'together'} loss {loss:.4f}", file=log)
            if (step + 1) % CHECKPOINT == 0 or last:
                state = {
                    "done": step + 1, "network": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                }  # fmt: skip
                write_file(file, lambda path, state=state: torch.save(state, path))
    return LoadedBackbone(network.eval(), loaded.config, loaded.preprocessing, f"student of {teacher.name}")


def _cosine(place: float) -> float:
    return 0.505 + 0.495 * math.cos(math.pi * place)
