"""Faces bare and under drawn covers, and the scores of their pairs: everything that `oaml evaluate` measures.

Pairs of one list are measured in classes, since what is hard differs between them:

| class | faces |
| --- | --- |
| bare-bare | as photographed |
| bare-covered | one of the two covered |
| covered-covered | both covered, each with a cover of its own |
| same-cover | both under one and the same cover: the same texture and outline on two faces |

The last is the dangerous one: a system that compares covers accepts strangers there. To get it, people are put into groups by
the hash of their name, everybody in a group wears one cover of each kind, and pairs within a group are measured. All pairs of
one person stay; of two people about one in `groups` does.

A cover depends on the seed, its kind and a name alone (`occluders.cover_rng`): the path of the image for a cover of its own,
the number of the group for a shared one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oaml.evaluation import metrics
from oaml.evaluation.protocols import Identification, Pairs, labels, person_of
from oaml.files import read_image
from oaml.inference import extract, score_all, score_pairs
from oaml.template import COLUMNS, Templates

if TYPE_CHECKING:
    from oaml.model import Model
    from oaml.occluders import Occluded as Covered

BARE = "bare"
PAIR_CLASSES = {
    "bare-bare": "both bare",
    "bare-covered": "one covered",
    "covered-covered": "both, own covers",
    "same-cover": "both, same cover",
}
"""Classes of pairs, with their names for people."""
DIFFERENT_LIMIT = 50_000
"""Pairs of two people measured in a class that wasn't asked for by `side`; a fixed random part of a longer list."""
GROUPS = 8
"""Shared covers of each kind at most; fewer where the list is short, so that enough pairs of two people share one."""
GROUP_PAIRS = 10_000
EXAMPLES = 3
PIXELS = 28
"""Drawn covers are compared on this grid, so that those of thousands of faces fit into memory."""
PROBE_BLOCK = 128
PAIR_BLOCK = 4096

Side = Literal["a", "b", "both"]
Cover = Callable[[np.ndarray, str, str], "Covered"]
"""Face, kind, name -> the covered face."""


@dataclass(frozen=True)
class Example:
    """One pair worth looking at."""

    path_a: str
    path_b: str
    condition_a: str
    """bare, or the kind that covers it."""
    condition_b: str
    score: float
    """The fused one."""
    map_a: np.ndarray
    """Predicted visibility [h,w] in [0,1]."""
    map_b: np.ndarray


@dataclass(frozen=True)
class Trials:
    """Pairs measured under one kind of cover, or bare."""

    rows: np.ndarray
    """int [N], places of the pairs in their list."""
    scores: dict[str, np.ndarray]
    """Score -> float64 [N]."""
    share: np.ndarray
    """[N] in [0,1], how much of the more covered face is covered: 1 - the mean of its drawn mask."""
    visible: np.ndarray
    """[N] in [0,1], share of the face that both show, see `oaml.visibility.shared_visibility`."""
    maps_alike: np.ndarray
    """[N], minus the mean absolute difference of the two predicted maps."""
    covers_alike: np.ndarray | None
    """[N], minus the mean absolute difference of the drawn covers' pixels in [0,1], 0 where the face shows; None where
    not both are covered."""
    examples: dict[str, list[Example]]
    """Group -> pairs of the highest and the lowest fused scores."""


@dataclass(frozen=True)
class Pool:
    """Pairs of one or several conditions as one list; all [N]."""

    same: np.ndarray
    a: np.ndarray
    """Number of the person in the first image."""
    b: np.ndarray
    share: np.ndarray
    visible: np.ndarray
    scores: dict[str, np.ndarray]

    @classmethod
    def of(cls, trials: list[Trials], same: np.ndarray, a: np.ndarray, b: np.ndarray) -> Pool:
        """The conditions one after the other; same, a and b are those of the whole list."""
        rows = np.concatenate([t.rows for t in trials])
        share, visible = (np.concatenate([getattr(t, name) for t in trials]) for name in ("share", "visible"))
        scores = {score: np.concatenate([t.scores[score] for t in trials]) for score in COLUMNS}
        return cls(same[rows], a[rows], b[rows], share, visible, scores)

    def part(self, chosen: np.ndarray) -> Pool:
        """Some of the pairs."""
        scores = {score: values[chosen] for score, values in self.scores.items()}
        rest = (self.share[chosen], self.visible[chosen], scores)
        return Pool(self.same[chosen], self.a[chosen], self.b[chosen], *rest)


@dataclass
class Measured:
    """All that was measured."""

    faces: Faces
    classes: dict[str, dict[str, Trials]] = field(default_factory=dict)
    """Class -> kind of cover (`bare` where there is none) -> pairs; in the order of `PAIR_CLASSES`."""
    asked: dict[str, Trials] = field(default_factory=dict)
    """`bare` or kind -> all pairs of the list, covered on the side that was asked for."""
    hits: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """`bare` or kind -> score -> which probes were found, bool [P]."""
    groups: int = 0
    """How many covers of each kind were shared."""


@dataclass
class _Set:
    """The features of some images under one condition."""

    faces: Templates
    place: dict[str, int]
    share: np.ndarray
    """[n], how much of each image is covered."""
    covers: np.ndarray | None
    """uint8 [n,28,28,3], the drawn covers alone."""


class Faces:
    """Features of the bare images and of those under the latest covers; never of more, to bound memory."""

    def __init__(self, model: Model, images: Path, resize: bool, batch_size: int, cover: Cover) -> None:
        self.model, self.images, self.resize, self.batch_size = model, images, resize, batch_size
        self.cover = cover
        self.bare: _Set | None = None
        self.latest: _Set | None = None
        self.maps: dict[str, dict[str, Any]] = {}
        """Condition -> how visible faces were and how far off the maps are; goes into the report."""
        self.examples: dict[str, dict[str, np.ndarray]] = {}
        """Condition -> path -> predicted map [h,w], for the sheet of maps."""

    def read(self, path: str, condition: str, shared: str | None = None) -> tuple[np.ndarray, Covered | None]:
        """Bare image uint8 [112,112,3], and the covered one where a cover is drawn.

        Args:
            shared: name of the cover, where it isn't the image's own.
        """
        image = read_image(self.images / path, resize=self.resize)
        return image, None if condition == BARE else self.cover(image, condition, shared or path)

    def measure(self, condition: str, paths: set[str], shared: Callable[[str], str] | None = None) -> None:
        """Extract the features of the images under the condition and, but for shared covers, judge their maps.

        Args:
            shared: path -> name of the cover; by default every image has its own.
        """
        names = sorted(paths)
        true: list[np.ndarray] = []
        share = np.zeros(len(names))
        covers = None if condition == BARE else np.zeros((len(names), PIXELS, PIXELS, 3), np.uint8)

        def stream() -> Iterator[np.ndarray]:
            for i, path in enumerate(names):
                image, covered = self.read(path, condition, shared and shared(path))
                if covered is not None:
                    assert self.bare is not None  # measured first
                    assert covers is not None
                    true.append(on_cells(covered.mask, tuple(self.bare.faces.visibility.shape[2:])))
                    share[i] = covered_share(covered.mask)
                    covers[i] = _cover_alone(image, covered)
                yield image if covered is None else covered.image

        label = f"faces, {condition}" + (" (shared covers)" if shared else "")
        faces = extract(self.model, stream(), len(names), batch_size=self.batch_size, label=label)
        self.latest = _Set(faces, {path: i for i, path in enumerate(names)}, share, covers)
        if condition == BARE:
            self.bare = self.latest
        if shared:
            return
        found: dict[str, Any] = {"images": len(names), "visible": float(faces.visible().mean())}
        # Nothing is known about what covers a photograph; only what was drawn has a true map.
        found["true_visible"] = float(np.mean(true)) if true else None
        found["error"] = (
            float(np.abs(faces.visibility[:, 0].numpy() - np.array(true)).mean()) if true else None
        )
        self.maps[condition] = found
        some = np.unique(np.linspace(0, len(names) - 1, min(8, len(names))).astype(int))
        self.examples[condition] = {names[i]: faces.visibility[i, 0].numpy().copy() for i in some}

    def side(self, paths: list[str], covered: bool) -> tuple[_Set, np.ndarray]:
        """The features that hold these images, bare or under the latest covers, and their places in them."""
        chosen = self.latest if covered else self.bare
        assert chosen is not None
        return chosen, np.array([chosen.place[path] for path in paths])


def coverer(seed: int, style: Literal["a", "b"], mask_pictures: Path | None) -> Cover:
    """What draws the occluders.

    Raises:
        OamlError: `mask_pictures` is no folder of mask pictures.
    """
    from oaml.occluders import Occluder, load_mask_pictures

    return Occluder(seed, style, [] if mask_pictures is None else load_mask_pictures(mask_pictures))


def measure(
    faces: Faces,
    pairs: Pairs | None,
    known: Identification | None,
    kinds: list[str],
    side: Side,
    seed: int,
) -> Measured:
    """Measure everything, one kind of cover after the other.

    Args:
        faces: where features come from; nothing is measured yet.
        pairs: the list, with `same` known of all.
        known: gallery and probes.
        kinds: kinds of cover.
        side: which image of a pair is covered; in identification a is the gallery and b the probe.
        seed: of the choice of pairs where there are more than `DIFFERENT_LIMIT`.

    Raises:
        OamlError: an unreadable image, or a score that is not finite.
    """
    found = Measured(faces)
    listed = set() if pairs is None else {*pairs.path_a, *pairs.path_b}
    sides = {"a": set(known.gallery if known else ()), "b": set(known.probes if known else ())}
    faces.measure(BARE, listed | sides["a"] | sides["b"])
    if pairs is not None:
        everything = np.arange(len(pairs))
        found.asked[BARE] = _trials(faces, pairs, everything, BARE, side)
        found.classes = {name: {} for name in (PAIR_CLASSES if kinds else ["bare-bare"])}
        found.classes["bare-bare"][BARE] = found.asked[BARE]
        found.groups = int(np.clip((~labels(pairs)).sum() // GROUP_PAIRS, 1, GROUPS)) if kinds else 0
    if known is not None:
        found.hits[BARE] = _identify(faces, known, BARE, side)
    for kind in kinds:
        faces.measure(kind, listed | set().union(*(sides[s] for s in ("ab" if side == "both" else side))))
        if known is not None:
            found.hits[kind] = _identify(faces, known, kind, side)
        if pairs is not None:
            _classes(found, faces, pairs, kind, side, seed)
    return found


def _classes(found: Measured, faces: Faces, pairs: Pairs, kind: str, side: Side, seed: int) -> None:
    """Measure the three classes that have covers of one kind; the latest features are those under their own covers."""
    same, everything = labels(pairs), np.arange(len(pairs))
    one: Side = "b" if side == "both" else side
    asked: tuple[tuple[str, Side], ...] = (("bare-covered", one), ("covered-covered", "both"))
    for name, covered in asked:
        rows = everything if covered == side else limited(everything, same, seed)
        found.classes[name][kind] = _trials(faces, pairs, rows, kind, covered)
        if covered == side:
            found.asked[kind] = found.classes[name][kind]

    group = {path: group_of(path, found.groups) for path in {*pairs.path_a, *pairs.path_b}}
    alike = [group[a] == group[b] for a, b in zip(pairs.path_a, pairs.path_b, strict=True)]
    rows = limited(np.flatnonzero(alike), same, seed)
    if len(rows):
        used = {paths[i] for paths in (pairs.path_a, pairs.path_b) for i in rows}
        faces.measure(kind, used, lambda path: f"shared cover {group[path]}")
        found.classes["same-cover"][kind] = _trials(faces, pairs, rows, kind, "both")


def group_of(path: str, groups: int) -> int:
    """Number of the shared cover that the person of an image wears, 0 to groups - 1."""
    return int.from_bytes(hashlib.sha256(person_of(path).encode()).digest()[:8], "big") % groups


def limited(rows: np.ndarray, same: np.ndarray, seed: int, limit: int = DIFFERENT_LIMIT) -> np.ndarray:
    """All pairs of one person and at most `limit` of two, always the same ones for a seed.

    Args:
        rows: int [N], places in the list to choose from, ascending.
        same: bool [M], of the whole list.

    Returns:
        int, ascending.
    """
    different = rows[~same[rows]]
    if len(different) <= limit:
        return rows
    chosen = np.random.default_rng([seed, limit]).choice(different, limit, replace=False)
    return np.sort(np.concatenate([rows[same[rows]], chosen]))


def covered_share(mask: np.ndarray) -> float:
    """Mask [H,W], 1 where the face shows -> share of the face that is covered, 0 to 1."""
    return float(np.clip(1 - mask.mean(dtype=np.float64), 0, 1))


def on_cells(mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Mask [H,W] -> the share of each cell that shows, float32 [h,w]."""
    import torch

    from oaml.visibility import mask_to_cells

    return mask_to_cells(torch.from_numpy(mask)[None, None], (grid[0], grid[1]))[0, 0].numpy()


def _cover_alone(face: np.ndarray, covered: Covered) -> np.ndarray:
    """What the cover adds to the picture, uint8 [28,28,3]: its colour where it hides the face, 0 elsewhere."""
    alone = covered.image - face * covered.mask[..., None]
    cell = alone.shape[0] // PIXELS
    return np.rint(alone.reshape(PIXELS, cell, PIXELS, cell, 3).mean((1, 3)).clip(0, 255)).astype(np.uint8)


def _trials(faces: Faces, pairs: Pairs, rows: np.ndarray, kind: str, side: Side) -> Trials:
    """Score the pairs at these places of the list, covered on `side` by the latest covers (bare: on neither)."""
    paths = [[paths[i] for i in rows] for paths in (pairs.path_a, pairs.path_b)]
    covered = [kind != BARE and side in (name, "both") for name in "ab"]
    (a, index_a), (b, index_b) = (faces.side(*chosen) for chosen in zip(paths, covered, strict=True))
    what = kind + (" on both" if all(covered) else "")
    scores = score_pairs(
        faces.model,
        a.faces,
        index_a,
        b.faces,
        index_b,
        name=lambda i: f"{paths[0][i]} and {paths[1][i]} ({what})",
        label=f"pairs, {what}",
    )
    from oaml.visibility import shared_visibility

    visible_a, visible_b = a.faces.visibility, b.faces.visibility
    map_a, map_b = visible_a.numpy()[:, 0], visible_b.numpy()[:, 0]

    def by_block(value: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        parts = [slice(start, start + PAIR_BLOCK) for start in range(0, len(rows), PAIR_BLOCK)]
        return np.concatenate([value(index_a[part], index_b[part]) for part in parts])

    covers = None
    if a.covers is not None and b.covers is not None:
        one, other = a.covers, b.covers
        covers = by_block(lambda i, j: -np.abs(one[i].astype(np.int16) - other[j]).mean((1, 2, 3)) / 255)
    condition_a, condition_b = (kind if c else BARE for c in covered)
    fused, same = scores["fused"], labels(pairs)[rows]
    examples = {}
    for group, chosen, order in (
        ("one person, lowest scores", same, fused),
        ("one person, highest scores", same, -fused),
        ("two people, highest scores", ~same, -fused),
        ("two people, lowest scores", ~same, fused),
    ):
        examples[group] = [
            Example(
                paths[0][i],
                paths[1][i],
                condition_a,
                condition_b,
                float(fused[i]),
                map_a[index_a[i]].copy(),
                map_b[index_b[i]].copy(),
            )
            for i in _first(np.flatnonzero(chosen), order, *paths)
        ]
    return Trials(
        rows,
        scores,
        np.maximum(a.share[index_a], b.share[index_b]),
        by_block(lambda i, j: shared_visibility(visible_a[i], visible_b[j]).numpy()),
        by_block(lambda i, j: -np.abs(map_a[i] - map_b[j]).mean((1, 2), dtype=np.float64)),
        covers,
        examples,
    )


def _first(rows: np.ndarray, order: np.ndarray, path_a: list[str], path_b: list[str]) -> list[int]:
    """The first few pairs in the order, no person twice where others are near: one odd face would fill the sheet."""
    ranked = [int(i) for i in rows[np.argsort(order[rows], kind="stable")[:1000]]]
    chosen: list[int] = []
    seen: set[str] = set()
    for i in ranked:
        people = {person_of(path_a[i]), person_of(path_b[i])}
        if len(chosen) < EXAMPLES and not people & seen:
            chosen.append(i)
            seen |= people
    return chosen


def _identify(faces: Faces, known: Identification, kind: str, side: Side) -> dict[str, np.ndarray]:
    """Which probes each score finds, bool [P]; in blocks, so that the scores of all never stand in memory."""
    covered = kind != BARE
    gallery, index_g = faces.side(known.gallery, covered and side in ("a", "both"))
    probes, index_p = faces.side(known.probes, covered and side in ("b", "both"))
    people_g, people_p = np.array(known.gallery_person), np.array(known.probe_person)
    hits: dict[str, list[np.ndarray]] = {score: [] for score in COLUMNS}
    for start in range(0, len(index_p), PROBE_BLOCK):
        part = slice(start, start + PROBE_BLOCK)
        found = score_all(
            faces.model,
            probes.faces,
            index_p[part],
            gallery.faces,
            index_g,
            name=lambda i, start=start: f"{known.probes[start + i]} ({kind})",
        )
        for score, values in found.items():
            hits[score].append(metrics.rank1_hits(values, people_p[part], people_g))
    return {score: np.concatenate(parts) for score, parts in hits.items()}
