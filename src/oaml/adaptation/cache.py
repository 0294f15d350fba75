"""Features of the training images under many occluders, computed once and kept in memory-mapped files.

A cache is a folder: `features.npy` float16 [N,14,14,C] (the map after stage 3), `visibility.npy` uint8 [N,14,14] (255 where the
face shows) and `state.json` with the key of what it was made of and how many rows are done. Of a transformer the map is the
tokens after its first blocks, [N,12,12,C]. Rows are written in order, and the random numbers of a row depend on its own name alone:
a build that was killed goes on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from oaml.datasets.masked import MaskedFolder
from oaml.datasets.people import People
from oaml.errors import OamlError
from oaml.inference import as_input
from oaml.model import Model
from oaml.occluders import Harvested, Occluder, occluder_rng
from oaml.support.files import FACE_SIZE, write_file
from oaml.support.progress import progress
from oaml.visibility import mask_to_cells

VERSION = 1  # of what rows mean; raised when old caches would mislead
CHUNK = 256  # rows that are computed and written at a time
PASS = 32  # images a pass of the network
NO_OCCLUDER = -1
"""`Row.kind` of an unoccluded face."""


class Row(NamedTuple):
    """One face to cache."""

    image: int
    """Index into the people's images."""
    view: int
    """0: the photograph as it is. 1: mirrored, slightly moved and relit."""
    kind: int
    """Index into the kinds of the plan, or NO_OCCLUDER."""
    number: int
    """Tells apart several occluders of one kind on one view."""


@dataclass(frozen=True)
class CachePlan:
    """Which rows there are; depends on the people, the kinds and the number of occluders alone."""

    rows: list[Row]
    kinds: list[str]
    seed: int

    @classmethod
    def make(cls, people: People, kinds: list[str], occluders_per_view: int, seed: int) -> CachePlan:
        """Two views of every image, each unoccluded and under so many occluders; half as many for a person with one image."""
        counts = np.bincount(people.labels)
        rows = []
        for image, person in enumerate(people.labels):
            number = occluders_per_view if counts[person] > 1 else (occluders_per_view + 1) // 2
            for view in (0, 1):
                rows.append(Row(image, view, NO_OCCLUDER, 0))
                # every kind in turn, each view in an order of its own
                order = occluder_rng(seed, "order", f"{people.names[image]}/{view}").permutation(len(kinds))
                rows += [Row(image, view, int(order[i % len(kinds)]), i // len(kinds)) for i in range(number)]
        return cls(rows, kinds, seed)


class FeatureCache:
    """Rows of features and visibility, built or continued by `build`.

    Args:
        folder: where the files are; it is made, and emptied when it belongs to other weights or data.
        model: its backbone up to stage 3 makes the features.
        people: images by index.
        plan: the rows.
        masked: photographs with real masks, appended after the plan's rows (two views each).
        harvested: for the plan's kind of this name.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        people: People,
        plan: CachePlan,
        masked: list[MaskedFolder],
        harvested: Harvested | None = None,
    ) -> None:
        self.folder, self.model, self.people, self.plan = folder, model, people, plan
        self.bfloat16 = computes_in_bfloat16(model.device)
        self.extra = [(source, i, view) for source in masked for i in range(len(source)) for view in (0, 1)]
        self.count = len(plan.rows) + len(self.extra)
        step = max(1, len(people) // 150)
        self._latest: tuple[tuple[int, int], np.ndarray] | None = None
        photographs = [people.image(i) for i in range(0, len(people), step)]
        self.occluder = Occluder(plan.seed, retexture_share=0.5, photographs=photographs, harvested=harvested)

    def key(self) -> str:
        """What the rows depend on: weights, images, masks, plan, precision, and the version of this file."""
        digest = hashlib.sha256(f"{VERSION} {self.plan.seed} {self.plan.kinds} {self.bfloat16}".encode())
        digest.update(np.array(self.plan.rows, np.int64).tobytes())
        for name, values in sorted(self.model.net.backbone.state_dict().items()):
            digest.update(name.encode())
            digest.update(values.detach().cpu().contiguous().numpy().tobytes())
        digest.update(repr(self.model.config.preprocessing).encode())
        for i, name in enumerate(self.people.names):
            digest.update(name.encode())
            digest.update(self.people.image(i).tobytes())
        for source, i, _ in self.extra[::2]:
            image, mask = source.pair(i)
            digest.update(image.tobytes() + mask.tobytes())
        if self.occluder.harvested is not None:
            digest.update(self.occluder.harvested.digest.encode())
        return digest.hexdigest()

    def build(self, show: bool = True) -> None:
        """Compute what is missing. A cache of other weights or data is made anew.

        Raises:
            OamlError: an image can't be read, or there is no room on the disk (found out before the work).
        """
        key = self.key()
        done = self._done(key)
        grid = self.model.net.backbone.grids[3]
        shape = (self.count, *grid, self.model.net.backbone.channels[3])
        features = self._open("features.npy", np.float16, shape, fresh=done == 0)
        visibility = self._open("visibility.npy", np.uint8, shape[:3], fresh=done == 0)
        with progress("faces under occluders" if show else None, self.count, done) as advance:
            for start in range(done, self.count, CHUNK):
                stop = min(start + CHUNK, self.count)
                images, masks = zip(*(self.face(i) for i in range(start, stop)), strict=True)
                features[start:stop] = stage3(self.model, images, self.bfloat16)
                aligned = mask_to_cells(torch.from_numpy(np.stack(masks))[:, None], grid)[:, 0]
                visibility[start:stop] = np.rint(aligned.numpy() * 255).astype(np.uint8)
                features.flush()
                visibility.flush()
                self._note(key, stop)
                advance(stop - start)
        self.features = np.load(self.folder / "features.npy", mmap_mode="r")
        self.visibility = np.load(self.folder / "visibility.npy")

    def _done(self, key: str) -> int:
        """Rows that are there already; 0, and an empty folder, where the cache was made of something else."""
        state = self.folder / "state.json"
        if state.is_file():
            try:
                stored = json.loads(state.read_text(encoding="utf-8"))
                if stored["key"] == key:
                    return int(stored["done"])
            except (ValueError, KeyError, TypeError):
                pass  # as good as none: it is made anew
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise OamlError(f"{self.folder}: is no cache and not empty; name another folder")
        if self.folder.exists():
            print(
                f"{self.folder}: was made of other weights, data or settings; it is made anew",
                file=sys.stderr,
            )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        backbone = self.model.net.backbone
        size = self.count * math.prod(backbone.grids[3]) * (2 * backbone.channels[3] + 1)
        free = shutil.disk_usage(self.folder).free
        if free < size * 1.02:
            self.folder.rmdir()
            raise OamlError(
                f"{self.folder}: the cache takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free space, "
                "draw fewer with --occluders_per_view, or name another folder with --cache"
            )
        self._note(key, 0)
        return 0

    def _note(self, key: str, done: int) -> None:
        content = json.dumps({"key": key, "done": done, "rows": self.count}) + "\n"
        write_file(self.folder / "state.json", lambda temporary: temporary.write_text(content))

    def _open(self, name: str, dtype: type, shape: tuple[int, ...], fresh: bool) -> np.memmap:
        return np.lib.format.open_memmap(
            self.folder / name, "w+" if fresh else "r+", dtype, None if not fresh else shape
        )

    def face(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image of a row, uint8 RGB [112,112,3], and its visibility, float32 [112,112]."""
        if index >= len(self.plan.rows):
            source, i, view = self.extra[index - len(self.plan.rows)]
            image, mask = source.pair(i)
            return (image[:, ::-1].copy(), mask[:, ::-1].copy()) if view else (image, mask)
        row = self.plan.rows[index]
        name = f"{self.people.names[row.image]}/{row.view}"
        image = self._view(row.image, row.view, name)
        if row.kind == NO_OCCLUDER:
            return image, np.ones((FACE_SIZE, FACE_SIZE), np.float32)
        kind = self.plan.kinds[row.kind]
        rng = occluder_rng(self.plan.seed, f"{kind} {row.number}", name)
        occluded = self.occluder.draw(image, kind, rng)
        return (_relit(occluded.image, rng) if rng.random() < 0.3 else occluded.image), occluded.mask

    def _view(self, index: int, view: int, name: str) -> np.ndarray:
        """The image that all occluders of this view are drawn on; rows come view by view, so that the latest one is kept."""
        if self._latest is None or self._latest[0] != (index, view):
            image = self.people.image(index)
            if view:
                rng = occluder_rng(self.plan.seed, "view", name)
                image = _relit(_moved(image[:, ::-1], rng), rng)
            self._latest = (index, view), image
        return self._latest[1]

    def name(self, index: int) -> str:
        """What to call a row in a message: its file, and its occluder."""
        if index >= len(self.plan.rows):
            source, i, _ = self.extra[index - len(self.plan.rows)]
            return source.files[i]
        row = self.plan.rows[index]
        return f"{self.people.files[row.image]} ({'unoccluded' if row.kind == NO_OCCLUDER else self.plan.kinds[row.kind]})"

    def rows(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features float32 [B,C,14,14] (channels last) and true visibility [B,1,14,14] of some rows."""
        return as_maps(self.features[index]), torch.from_numpy(self.visibility[index]).float()[:, None] / 255


def as_maps(stored: np.ndarray) -> Tensor:
    """Stored maps [N,14,14,C] -> float32 [N,C,14,14], channels last as the network wants them."""
    return torch.from_numpy(np.ascontiguousarray(stored)).permute(0, 3, 1, 2).float()


def _moved(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As an aligner that is a little off would cut it: 2 degrees, 3 % and 1.5 pixels (standard deviations)."""
    matrix = cv2.getRotationMatrix2D((56, 64), rng.normal(0, 2), 1 + rng.normal(0, 0.03))
    matrix[:, 2] += rng.normal(0, 1.5, 2)
    return cv2.warpAffine(
        np.ascontiguousarray(image), matrix, (FACE_SIZE, FACE_SIZE), borderMode=cv2.BORDER_REPLICATE
    )


def _relit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other contrast, brightness, tint and sharpness."""
    x = image.astype(np.float32)
    if rng.random() < 0.7:
        x = (x - 128) * rng.uniform(0.75, 1.25) + 128 + rng.uniform(-25, 25)
    if rng.random() < 0.3:
        x *= rng.uniform(0.9, 1.1, 3)
    x = np.clip(x, 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.3)) if rng.random() < 0.2 else x


@torch.inference_mode()
def stage3(model: Model, images: Sequence[np.ndarray] | np.ndarray, bfloat16: bool = False) -> np.ndarray:
    """uint8 RGB [112,112,3] each -> map after stage 3, float16 [N,14,14,C]."""
    model.need_eval()
    parts = []
    for start in range(0, len(images), PASS):
        faces = as_input(images[start : start + PASS], model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
            features = model.net.backbone.forward_stage3(model.preprocess(faces))
        parts.append(features.permute(0, 2, 3, 1).half().cpu())
    return torch.cat(parts).numpy()


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, with which the backbone takes about half the time.

    Read off the hardware and not measured: equal commands on one machine must make equal caches.
    """
    if device.type != "cpu":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
