"""The network that moves the crop of a covered face: `python studies/refiner.py --data ../shared/data --out runs/refiner`.

People of LFW that may train (`split_name`), bare and under covers of style a in any material, are laid into a scene, and looked at
through a crop that is off by what a detector is off by. Nothing else may tell where the face lies: covers are moved, turned and
scaled against the face that wears them, and the scene begins at a random place inside the picture with a soft edge. A killed run
goes on from its checkpoint. `--ship` puts the weights into the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from oaml.datasets.people import PeopleFolder, split_name
from oaml.main import keep_freed_memory
from oaml.occluders import KINDS, occlude, retexture
from oaml.photographs.align import as_matrix
from oaml.photographs.refine import WEIGHTS, Refiner, matrices
from oaml.support.files import FACE_SIZE, read_image, write_file
from oaml.support.progress import progress

BATCH, RATE = 64, 3e-3
COVERS = 3  # of every picture, beside it bare
SCENE = 2 * FACE_SIZE
CHECKPOINT = 250  # steps
CORNERS = torch.tensor([(0.0, 0), (FACE_SIZE - 1, 0), (0, FACE_SIZE - 1), (FACE_SIZE - 1, FACE_SIZE - 1)])


def wear(face: np.ndarray, rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """A face under a cover that does not sit where the template has it: only the face itself says where that lies."""
    kinds = list(KINDS) if rng.random() < 0.6 else ["niqab", "mask"]
    kind = kinds[int(rng.integers(len(kinds)))]
    turn = np.exp(rng.normal(0, 0.06) + 1j * np.deg2rad(rng.normal(0, 4)))
    centre = (FACE_SIZE - 1) / 2 * (1 + 1j)
    shift = centre - turn * centre + complex(*rng.normal(0, 4, 2))
    place = as_matrix(turn, shift)
    size = face.shape[:2]
    there = cv2.warpAffine(face, place, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    covered = occlude(there, kind, rng)
    if rng.random() < 0.4:
        covered = retexture(there, covered, rng, [others[int(i)] for i in rng.integers(0, len(others), 2)])
    back = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    image, mask = (
        cv2.warpAffine(x, place, size, flags=back, borderMode=cv2.BORDER_REPLICATE)
        for x in (covered.image, covered.mask.astype(np.float32))
    )
    return np.rint(face * mask[..., None] + image * (1 - mask[..., None])).astype(np.uint8)


def faces_of(folder: Path) -> Tensor:
    """uint8 RGB [N,112,112,3]: everybody who may train, bare and covered."""
    people = PeopleFolder(folder, lambda name: split_name(name) == "train")
    bare = [read_image(path) for path in people.paths]
    rng = np.random.default_rng(0)
    found: list[np.ndarray] = []
    with progress("covers", len(bare)) as advance:
        for face in bare:
            found += [face, *(wear(face, rng, bare) for _ in range(COVERS))]
            advance(1)
    return torch.from_numpy(np.stack(found))


def views(faces: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Crops that are off, [N,3,112,112] in [0,1], and what would put each right, [N,4]; the same for the same step."""
    rng = torch.Generator().manual_seed(step)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=rng)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng)

    def some() -> Tensor:
        rows = torch.randint(len(faces), (BATCH,), generator=rng)
        return faces[rows].permute(0, 3, 1, 2).float() / 255

    face, other = some(), some()
    face = torch.where(uniform(BATCH, 1, 1, 1) < 0.5, face.flip(3), face)
    # the scene is another picture, in most cases blurred
    small, roll = (int(torch.randint(4, high, (1,), generator=rng)) for high in (40, FACE_SIZE))
    blurred = F.interpolate(
        F.interpolate(other, (small, small), mode="area"), (SCENE, SCENE), mode="bilinear"
    )
    sharp = F.interpolate(other.roll((roll, roll), (2, 3)), (SCENE, SCENE), mode="bilinear")
    scene = torch.where(uniform(BATCH, 1, 1, 1) < 0.6, blurred, sharp)
    low, high = 14 * uniform(BATCH, 2, 1) - 2, FACE_SIZE + 1 - 14 * uniform(BATCH, 2, 1)
    soft = 1 + 6 * uniform(BATCH, 1, 1)
    along = torch.arange(float(FACE_SIZE))
    edge = ((along - low) / soft).clamp(0, 1) * ((high - along) / soft).clamp(0, 1)
    alpha = edge[:, 1, None, :, None] * edge[:, 0, None, None, :]
    middle = slice(FACE_SIZE // 2, FACE_SIZE // 2 + FACE_SIZE)
    scene[:, :, middle, middle] = scene[:, :, middle, middle] * (1 - alpha) + face * alpha

    # a third is off by little, as a second correction finds it
    wide = (uniform(BATCH) < 0.7).float()
    scale = torch.exp(normal(BATCH) * (0.06 + 0.09 * wide))
    turn = normal(BATCH) * (0.05 + 0.10 * wide)
    shift = normal(BATCH, 2) * (3 + 6 * wide)[:, None] / (FACE_SIZE / 2)
    truth = torch.cat([torch.stack([scale * turn.cos() - 1, scale * turn.sin()], 1), shift], 1)
    y, x = torch.meshgrid(along, along, indexing="ij")
    place = matrices(truth)
    points = torch.stack([x, y], 2).view(1, -1, 2) @ place[:, :, :2].transpose(1, 2) + place[:, None, :, 2]
    grid = ((points + FACE_SIZE / 2 + 0.5) / SCENE * 2 - 1).view(BATCH, FACE_SIZE, FACE_SIZE, 2)
    seen = F.grid_sample(scene, grid, padding_mode="border", align_corners=False)

    # photographs differ in resolution, light, colour and noise
    if float(uniform(1)) < 0.5:
        small = int(torch.randint(36, 100, (1,), generator=rng))
        seen = F.interpolate(
            F.interpolate(seen, (small, small), mode="area"), (FACE_SIZE,) * 2, mode="bilinear"
        )
    seen = seen * (0.6 + 0.8 * uniform(BATCH, 1, 1, 1)) + 0.3 * (uniform(BATCH, 1, 1, 1) - 0.5)
    seen = (seen * (0.85 + 0.3 * uniform(BATCH, 3, 1, 1))).clamp(0, 1) ** (
        0.7 + 0.7 * uniform(BATCH, 1, 1, 1)
    )
    seen = seen + 0.03 * uniform(BATCH, 1, 1, 1) * normal(*seen.shape)
    return seen.clamp(0, 1).contiguous(memory_format=torch.channels_last), truth


def off(said: Tensor, truth: Tensor) -> Tensor:
    """[N]: mean distance, in pixels, of the corners of the crop from where they should lie."""
    wrong = matrices(said) - matrices(truth)
    return (CORNERS @ wrong[:, :, :2].transpose(1, 2) + wrong[:, None, :, 2]).norm(dim=2).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/refiner"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--ship", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()
    given.out.mkdir(parents=True, exist_ok=True)
    faces = faces_of(given.data / "lfw")
    torch.manual_seed(0)
    network = Refiner()
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, given.steps, pct_start=0.1)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
    checkpoint, done = given.out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        done = state["done"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    before = after = 0.0
    with progress("refiner", given.steps, done) as advance:
        for step in range(done, given.steps):
            seen, truth = views(faces, step)
            errors = off(network(seen), truth)
            optimiser.zero_grad()
            (errors.mean() / (FACE_SIZE / 2)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            advance(1)
            before, after = (
                before + float(off(torch.zeros_like(truth), truth).mean()),
                after + float(errors.detach().mean()),
            )
            if (step + 1) % CHECKPOINT == 0 or step + 1 == given.steps:
                count = step % CHECKPOINT + 1
                with (given.out / "log.txt").open("a") as log:
                    print(f"{step + 1}: {after / count:.2f} pixels off, of {before / count:.2f}", file=log)
                before = after = 0.0
                state = {"done": step + 1, **{name: part.state_dict() for name, part in parts.items()}}
                write_file(checkpoint, lambda path, state=state: torch.save(state, path))
    halved = {
        name: (x.half() if x.is_floating_point() and x.dim() > 1 else x).contiguous()
        for name, x in network.state_dict().items()
    }
    for place in [given.out / WEIGHTS.name, *([WEIGHTS] if given.ship else [])]:
        write_file(place, lambda path: save_file(halved, path))
    print((given.out / "log.txt").read_text(encoding="utf-8").splitlines()[-1])


if __name__ == "__main__":
    main()
