"""What one training step sees: recognition images and occlusion images, drawn from two streams, augmented with their masks.

Every choice is a function of (seed, step, process): samplers carry no state, so that a run resumed at a step sees what
the uninterrupted one saw.
"""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from oaml.datasets.masked import MaskedFolder, Unlabelled
from oaml.datasets.people import DrawnFolder, People, Split, split_name
from oaml.datasets.sources import people_from
from oaml.errors import OamlError
from oaml.occluders import (
    HARVESTED,
    KINDS,
    Harvested,
    Occluded,
    load_harvested,
    load_mask_pictures,
    occlude,
)
from oaml.support.files import FACE_SIZE, read_image
from oaml.support.folders import list_images

Item = tuple[int, int]  # index into a dataset, seed of its random choices


@dataclass
class DataConfig:
    """The two streams of a training step."""

    people: Path | None = None
    """Folder per person with aligned 112x112 faces; or a CSV manifest, a .rec file or tar shards (docs/data.md)."""
    drawn_people: int = 0
    """Draw this many people instead of reading a folder (a test pattern)."""
    drawn_shots: int = 20
    """Images of every drawn person."""
    use: Literal["all", "train"] = "all"
    """all: every person trains. train: only the training split (by the hash of the person's name, 7 of 10)
    trains, one of 10 validates, two of 10 are left for the report."""
    resize: bool = False
    """Scale images that are not 112x112 instead of refusing them."""
    skip_damaged: bool = False
    """Read every image of people once beforehand, and leave out and name those that can't be read."""
    identities: int = 16
    """Identities in a recognition batch (P)."""
    images: int = 4
    """Images of every identity in a recognition batch (K)."""
    sampler: Literal["pk", "graph"] = "pk"
    """pk: identities at random. graph: an identity with its nearest ones (they are looked up again every
    graph_every steps)."""
    graph_every: int = 1000
    """Steps between look-ups of the nearest identities (sampler graph)."""
    cover_probability: float = 0.5
    """Share of recognition images that get a drawn occluder."""
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    """Drawn occluders in use."""
    mask_pictures: Path | None = None
    """Folder of RGBA pictures of masks, used for the kind `mask` beside the drawn ones."""
    occluders_from: Path | None = None
    """Folder of occluders cut out of photographs (`oaml occlude --harvest`): one more kind beside the drawn ones."""
    masks: list[Path] = field(default_factory=list)
    """Folders of occluded faces with masks (images/ + masks/, or kept_faces/ + masks/)."""
    unlabelled: Unlabelled = "fail"
    """In these folders, refuse images without a mask and masks without an image (fail), or use the others and say how many were
    left out (skip)."""
    clean: list[Path] = field(default_factory=list)
    """Folders of unoccluded faces, used with masks of ones; empty: the recognition images serve."""
    occlusion_batch: int = 16
    """Images of the occlusion stream in a step; 0 switches it off."""
    clean_share: float = 0.2
    """Share of unoccluded faces in the occlusion stream."""
    drawn_share: float = 0.0
    """Share of the occluded faces of the occlusion stream that are drawn on recognition images; 1 if there are no masks."""
    workers: int = 2
    """Processes that read images."""

    def __post_init__(self) -> None:
        if (self.people is None) == (self.drawn_people == 0):
            raise ValueError("data.people or data.drawn_people: give one of the two")
        for name in ("cover_probability", "clean_share", "drawn_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name}: {getattr(self, name)} is not in [0, 1]")
        if self.identities < 2 or self.images < 2:
            raise ValueError("data.identities and data.images: a batch needs at least 2 people with 2 images")
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"data.kinds: unknown {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
        drawn = self.drawn_share if self.masks else 1 - self.clean_share
        if not self.all_kinds and (self.cover_probability or (self.occlusion_batch and drawn)):
            raise ValueError(
                "data.kinds: empty; to draw nothing, set cover_probability and drawn_share to 0 "
                "and give masks (or set occlusion_batch to 0)"
            )

    @property
    def all_kinds(self) -> list[str]:
        """Kinds of occluder in use: the drawn ones and, where there is a folder of them, harvested ones."""
        return [*self.kinds, *([] if self.occluders_from is None else [HARVESTED])]

    def load_harvested(self) -> Harvested | None:
        """The harvested occluders, where there are any. Raises OamlError where none of them may be trained on."""
        if self.occluders_from is None:
            return None
        harvested = load_harvested(self.occluders_from)
        harvested.of("a")
        return harvested

    def load_people(self, split: Split) -> People:
        """The people of a split; with `use: all` the training split is everybody."""
        keep: Callable[[str], bool] | None = lambda name: split_name(name) == split  # noqa: E731
        if split == "train" and self.use == "all":
            keep = None
        if self.people is not None:
            return people_from(self.people, keep, self.resize, self.skip_damaged)
        return DrawnFolder(self.drawn_people, self.drawn_shots, use=keep)


class RecognitionStream(Dataset[dict[str, Any]]):
    """Images of people, each under a drawn occluder with `cover_probability`."""

    def __init__(self, people: People, config: DataConfig) -> None:
        self.people = people
        self.cover_probability, self.kinds = config.cover_probability, config.all_kinds
        self.mask_pictures = load_mask_pictures(config.mask_pictures) if config.mask_pictures else []
        self.harvested = config.load_harvested()

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        index, seed = item
        rng = np.random.default_rng(seed)
        image, mask = self.people.image(index), np.ones((FACE_SIZE, FACE_SIZE), np.float32)
        if rng.random() < self.cover_probability:
            image, mask = _occlude(image, self.kinds, rng, self.mask_pictures, self.harvested)
        return sample(image, mask, self.people.files[index], label=int(self.people.labels[index]))


class OcclusionStream(Dataset[dict[str, Any]]):
    """Occluded faces with real masks, faces with drawn occluders, unoccluded faces with masks of ones: three groups,
    one after the other, which MixSampler draws from by their shares."""

    def __init__(self, people: People, config: DataConfig) -> None:
        self.people, self.kinds = people, config.all_kinds
        self.mask_pictures = load_mask_pictures(config.mask_pictures) if config.mask_pictures else []
        self.harvested = config.load_harvested()
        self.masked = [MaskedFolder(folder, config.resize, config.unlabelled) for folder in config.masks]
        self.clean = [path for folder in config.clean for path in list_images(folder)]
        self.resize = config.resize
        sizes = [sum(map(len, self.masked)), len(people), len(self.clean) or len(people)]
        ends = np.cumsum([0, *sizes])
        self.groups = [range(ends[i], ends[i + 1]) for i in range(3)]
        occluded, drawn = 1 - config.clean_share, config.drawn_share if self.masked else 1.0
        self.shares = [occluded * (1 - drawn), occluded * drawn, config.clean_share]

    def __len__(self) -> int:
        return self.groups[-1].stop

    def __getitem__(self, item: Item) -> dict[str, Any]:
        index, seed = item
        if index < self.groups[0].stop:
            for folder in self.masked:
                if index < len(folder):
                    return sample(*folder.pair(index), folder.files[index])
                index -= len(folder)
        if index < self.groups[1].stop:
            person = index - self.groups[1].start
            rng = np.random.default_rng(seed)
            image = self.people.image(person)
            occluded = _occlude(image, self.kinds, rng, self.mask_pictures, self.harvested)
            return sample(*occluded, self.people.files[person])
        index -= self.groups[2].start
        ones = np.ones((FACE_SIZE, FACE_SIZE), np.float32)
        if self.clean:
            return sample(read_image(self.clean[index], resize=self.resize), ones, str(self.clean[index]))
        return sample(self.people.image(index), ones, self.people.files[index])


def _occlude(
    image: np.ndarray,
    kinds: Sequence[str],
    rng: np.random.Generator,
    mask_pictures: Sequence[np.ndarray],
    harvested: Harvested | None,
) -> Occluded:
    kind = kinds[int(rng.integers(len(kinds)))]
    # a user's pictures of masks stand beside the drawn masks, half and half
    pictures = mask_pictures if kind == "mask" and rng.random() < 0.5 else ()
    return occlude(image, kind, rng, pictures, harvested=harvested)


def sample(image: np.ndarray, mask: np.ndarray, path: str, **more: int) -> dict[str, Any]:
    """RGB uint8 [112,112,3] and its mask float32 [112,112], as a loader collects them into batches."""
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1),
        "mask": torch.from_numpy(np.ascontiguousarray(mask))[None],
        "path": path,
        **more,
    }


class PKSampler(Sampler[list[Item]]):
    """P identities x K images a batch, for steps start, start+1, ... without end.

    A quarter of the identities come from people with a single image, if there are any: they are classes and
    negatives. The others have at least two; images repeat only where a person has fewer than K.

    Args:
        labels: identity of every image [N].
        identities, images: P and K.
        seed, start, rank: batches are a function of (seed, step, rank).

    Raises:
        OamlError: fewer than two people have two images.
    """

    def __init__(
        self, labels: np.ndarray, identities: int, images: int, seed: int = 0, start: int = 0, rank: int = 0
    ) -> None:
        self.members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
        self.several = np.array([i for i, m in enumerate(self.members) if len(m) >= 2], dtype=int)
        self.single = np.array([i for i, m in enumerate(self.members) if len(m) == 1], dtype=int)
        if len(self.several) < 2:
            raise OamlError(
                f"{len(self.several)} of {len(self.members)} people have two images; training needs two people with two "
                "images each, add images"
            )
        self.identities, self.images = identities, images
        self.wanted = identities - (identities // 4 if len(self.single) else 0)  # of those with two images
        self.seed, self.start, self.rank = seed, start, rank

    def __iter__(self) -> Iterator[list[Item]]:
        return map(self.batch, itertools.count(self.start))

    def batch(self, step: int) -> list[Item]:
        """(image, seed) of one step."""
        rng = np.random.default_rng([self.seed, step, self.rank])
        return self._items(self.choose(rng, step), rng)

    def choose(self, rng: np.random.Generator, step: int) -> np.ndarray:
        """The P identities of a step that have at least two images, fewer if there are fewer."""
        return rng.choice(self.several, min(self.wanted, len(self.several)), replace=False)

    def _items(self, chosen: np.ndarray, rng: np.random.Generator) -> list[Item]:
        picked: list[int] = []
        for identity in chosen:
            members = self.members[identity]
            distinct = rng.permutation(members)[: self.images]
            picked += [*distinct, *rng.choice(members, self.images - len(distinct))]
        rest = (self.identities - len(chosen)) * self.images
        if len(self.single):
            alone = rng.choice(self.single, min(rest, len(self.single)), replace=False)
            picked += [self.members[i][0] for i in alone]
        return [
            (int(index), int(seed))
            for index, seed in zip(picked, rng.integers(2**62, size=len(picked)), strict=True)
        ]


class GraphSampler(PKSampler):
    """PK batches of an identity and its nearest ones, so that negatives are hard (Liao & Shao, CVPR 2022).

    `tables` lists (first step, nearest identities [I, n]); a step uses the last table that has begun. Until the first one,
    identities are drawn at random. A new table begins some steps after it was made, because loaders read ahead.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tables: list[tuple[int, np.ndarray]] = []

    def update(self, first_step: int, embeddings: np.ndarray) -> None:
        """Add the table made from one unit embedding an identity [I,E]; only the last two are kept."""
        similarity = embeddings @ embeddings.T
        np.fill_diagonal(similarity, -np.inf)
        similarity[:, self.single] = -np.inf  # only people with two images give positives
        wanted = min(self.identities - 1, len(self.several) - 1)
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :wanted]
        self.tables = [*self.tables, (first_step, nearest)][-2:]

    def choose(self, rng: np.random.Generator, step: int) -> np.ndarray:
        begun = [table for first, table in self.tables if first <= step]
        if not begun:
            return super().choose(rng, step)
        identity = rng.choice(self.several)
        return np.concatenate([[identity], begun[-1][identity][: self.wanted - 1]])


class MixSampler(Sampler[list[Item]]):
    """Batches from several groups of a dataset, each by its share; a share of a batch that is no whole number of images is
    rounded at random, so that the mean over steps is exact."""

    def __init__(
        self,
        groups: Sequence[range],
        shares: Sequence[float],
        size: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
    ) -> None:
        self.groups, self.bounds = groups, np.cumsum(shares)
        if abs(self.bounds[-1] - 1) > 1e-6:
            raise ValueError(f"shares {list(shares)} do not sum to 1")
        if any(share > 0 and len(group) == 0 for group, share in zip(groups, shares, strict=True)):
            raise ValueError("a group with a share is empty")
        self.size, self.seed, self.start, self.rank = size, seed, start, rank

    def __iter__(self) -> Iterator[list[Item]]:
        return map(self.batch, itertools.count(self.start))

    def batch(self, step: int) -> list[Item]:
        """(image, seed) of one step."""
        rng = np.random.default_rng([self.seed, step, self.rank, 1])
        # systematic sampling: one random offset, then equal steps through the shares
        group_of = np.searchsorted(
            self.bounds, (np.arange(self.size) + rng.random()) / self.size, side="right"
        )
        items = []
        for g in group_of:
            group = self.groups[min(int(g), len(self.groups) - 1)]
            items.append((int(rng.integers(group.start, group.stop)), int(rng.integers(2**62))))
        return items


class Batches(DataLoader[dict[str, Any]]):
    """A loader whose OamlError is that of its dataset, also where another process read the images."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, OamlError):
                raise batch
            yield batch


class _Told(Dataset[Any]):
    """A dataset that gives its OamlError as an item: raised in another process, it would arrive as a traceback."""

    def __init__(self, dataset: Dataset[dict[str, Any]]) -> None:
        self.dataset = dataset

    def __getitem__(self, item: Item) -> Any:
        try:
            return self.dataset[item]  # type: ignore[index]
        except OamlError as error:
            return error


def _collate(items: list[Any]) -> Any:
    """A batch, or the first error among its items."""
    return next((item for item in items if isinstance(item, OamlError)), None) or default_collate(items)


def loader(dataset: Dataset[dict[str, Any]], sampler: Sampler[list[Item]], workers: int) -> Batches:
    """Batches {image uint8 [B,3,112,112], mask float [B,1,112,112], path list, label [B]} without end."""
    return Batches(
        _Told(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_begin,
        collate_fn=_collate,
    )


def _told_of(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say nothing where the first process went away while it fetched an image."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _begin(_: int) -> None:
    """What a process that reads images does first."""
    import cv2

    # Ctrl-C reaches it too, and the first process ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _told_of

    cv2.setNumThreads(0)  # workers are the parallelism
    torch.set_num_threads(1)


class Augment:
    """Random flip, small affine, colour, blur and resolution loss; the mask moves with its image (kornia)."""

    def __init__(self) -> None:
        import kornia.augmentation as K
        from kornia.constants import DataKey, Resample

        self.run = K.AugmentationSequential(
            K.RandomHorizontalFlip(p=0.5),
            K.RandomAffine(5.0, translate=(0.03, 0.03), scale=(0.95, 1.05), padding_mode="border", p=0.5),
            K.ColorJiggle(0.2, 0.2, 0.2, 0.02, p=0.5),
            K.RandomGaussianBlur((5, 5), (0.3, 1.5), p=0.1),
            data_keys=[DataKey.INPUT, DataKey.MASK],
            extra_args={DataKey.MASK: {"resample": Resample.BILINEAR, "align_corners": False}},
        )

    def __call__(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """RGB [B,3,112,112] in [0,1] and visibility [B,1,112,112] -> the same, moved together; random by torch's generator."""
        images, masks = self.run(images, masks)
        return images.clamp(0, 1), masks.clamp(0, 1)
