"""Faces unoccluded and under drawn occluders, and the scores of their pairs: everything that `oaml evaluate` measures.

Pairs of one list are measured in classes, since what is hard differs between them:

| class | faces |
| --- | --- |
| none-occluded | as photographed |
| one-occluded | one of the two occluded |
| both-occluded | both occluded, each by an occluder of its own |
| same-occluder | both under one and the same occluder: the same texture and outline on two faces |

The last is the dangerous one: a system that compares occluders accepts impostor pairs there. To get it, people are put into
groups by the hash of their name, everybody in a group wears one occluder of each kind, and pairs within a group are measured. All
genuine pairs stay; of the impostor pairs one in as many as there are groups does.

An occluder depends on the seed, its kind and a name alone (`occluders.Occluder`): the path of the image for an occluder of
its own, the number of the group for a shared one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.datasets.people import group_of, person_of
from oaml.datasets.sources import ByName, is_source
from oaml.evaluation.protocols import Identification, Pairs, labels
from oaml.evaluation.results import (
    BOTH_OCCLUDED,
    NONE_OCCLUDED,
    ONE_OCCLUDED,
    PAIR_CLASSES,
    SAME_OCCLUDER,
    UNOCCLUDED,
    ExamplePair,
    MapQuality,
    Side,
)
from oaml.inference import extract, score_all, score_pairs
from oaml.support import metrics
from oaml.template import COLUMNS, Templates

if TYPE_CHECKING:
    from oaml.evaluation.baselines import BaselineFaces
    from oaml.kernels import Precision
    from oaml.model import Model
    from oaml.occluders import Occluded

IMPOSTOR_LIMIT = 50_000
"""Impostor pairs measured in a class that wasn't asked for by `side`; a fixed random part of a longer list."""
SHARED_OCCLUDERS = 8
"""Of each kind at most; fewer where the list is short, so that enough impostor pairs share one."""
IMPOSTORS_PER_SHARED = 10_000
EXAMPLES = 3
PIXELS = 28
"""Drawn occluders are compared on this grid, so that those of thousands of faces fit into memory."""
PROBE_BLOCK = 128
PAIR_BLOCK = 4096

Occlude = Callable[[np.ndarray, str, str], "Occluded"]
"""Face, kind, name -> the occluded face."""


@dataclass(frozen=True)
class Example:
    """One pair worth looking at, with its predicted visibility [h,w] in [0,1]."""

    pair: ExamplePair
    map_a: np.ndarray
    map_b: np.ndarray


@dataclass(frozen=True)
class Trials:
    """Pairs measured under one kind of occluder, or unoccluded."""

    rows: np.ndarray
    """int [N], places of the pairs in their list."""
    scores: dict[str, np.ndarray]
    """Score -> float64 [N]."""
    occluded_share: np.ndarray
    """[N] in [0,1], of the more occluded face: 1 - the mean of its drawn mask."""
    visible_both: np.ndarray
    """[N] in [0,1], share of the face that both show, see `oaml.visibility.shared_visibility`."""
    map_similarity: np.ndarray
    """[N], minus the mean absolute difference of the two predicted maps."""
    occluder_similarity: np.ndarray | None
    """[N], minus the mean absolute difference of the drawn occluders' pixels in [0,1], 0 where the face shows; None where
    not both are occluded."""
    examples: dict[str, list[Example]]
    """Group -> pairs of the highest and the lowest fused scores."""


@dataclass(frozen=True)
class Pool:
    """Pairs of one or several conditions as one list; all [N]."""

    same: np.ndarray
    a: np.ndarray
    """Number of the person in the first image."""
    b: np.ndarray
    occluded_share: np.ndarray
    visible_both: np.ndarray
    scores: dict[str, np.ndarray]

    @classmethod
    def of(cls, trials: list[Trials], same: np.ndarray, a: np.ndarray, b: np.ndarray) -> Pool:
        """The conditions one after the other; same, a and b are those of the whole list."""
        rows = np.concatenate([t.rows for t in trials])
        occluded, visible = (
            np.concatenate([getattr(t, name) for t in trials]) for name in ("occluded_share", "visible_both")
        )
        scores = {score: np.concatenate([t.scores[score] for t in trials]) for score in COLUMNS}
        return cls(same[rows], a[rows], b[rows], occluded, visible, scores)

    def part(self, chosen: np.ndarray) -> Pool:
        """Some of the pairs."""
        scores = {score: values[chosen] for score, values in self.scores.items()}
        rest = (self.occluded_share[chosen], self.visible_both[chosen], scores)
        return Pool(self.same[chosen], self.a[chosen], self.b[chosen], *rest)


@dataclass(frozen=True)
class Retrieved:
    """What looking up every probe and every stranger gives."""

    measures: np.ndarray
    """[P,3], see `metrics.retrieval`."""
    rank: np.ndarray
    """int [P], see `metrics.own_ranks`."""
    best: np.ndarray
    """[P], the highest score in the gallery."""
    strangers: np.ndarray
    """[S], the highest score of each stranger."""


@dataclass
class Measured:
    """All that was measured."""

    faces: MeasuredFaces
    classes: dict[str, dict[str, Trials]] = field(default_factory=dict)
    """Class -> condition -> pairs; in the order of `PAIR_CLASSES`."""
    asked: dict[str, Trials] = field(default_factory=dict)
    """Condition -> all pairs of the list, occluded on the side that was asked for."""
    retrieved: dict[str, dict[str, Retrieved]] = field(default_factory=dict)
    """Condition -> score -> what searches give."""
    shared_occluders: int = 0
    """How many occluders of each kind were shared."""
    baseline_pairs: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Condition -> baseline -> scores of all pairs of the list, as `asked`."""
    baseline_searches: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Condition -> baseline -> [P,3], see `metrics.retrieval`."""


@dataclass
class _Features:
    """The features of some images under one condition."""

    templates: Templates
    place: dict[str, int]
    occluded_share: np.ndarray
    """[n]."""
    occluders: np.ndarray | None
    """uint8 [n,28,28,3], the drawn occluders alone."""
    baselines: BaselineFaces | None
    """What the baselines compare, where they were asked for."""


class MeasuredFaces:
    """Features of the unoccluded images and of those under the latest occluders; never of more, to bound memory."""

    def __init__(
        self,
        model: Model,
        images: Path | ByName,
        resize: bool,
        batch_size: int,
        occlude: Occlude,
        baselines: bool = False,
    ) -> None:
        self.model, self.resize, self.batch_size = model, resize, batch_size
        self.images = ByName(images) if isinstance(images, Path) and is_source(images) else images
        """Pictures; or a file of templates, as its path."""
        self.occlude = occlude
        self.baselines = baselines
        self.unoccluded: _Features | None = None
        self.latest: _Features | None = None
        self.maps: dict[str, MapQuality] = {}
        self.examples: dict[str, dict[str, np.ndarray]] = {}
        """Condition -> path -> predicted map [h,w], for the sheet of maps."""

    def read(
        self, path: str, condition: str, shared: str | None = None
    ) -> tuple[np.ndarray, Occluded | None]:
        """The image as it is, uint8 [112,112,3], and the occluded one where an occluder is drawn.

        Args:
            shared: name of the occluder, where it isn't the image's own.
        """
        assert isinstance(self.images, ByName)
        image = self.images.image(path, self.resize)
        return image, None if condition == UNOCCLUDED else self.occlude(image, condition, shared or path)

    def measure(self, condition: str, paths: set[str], shared: Callable[[str], str] | None = None) -> None:
        """Extract the features of the images under the condition and, but for shared occluders, judge their maps.

        Args:
            shared: path -> name of the occluder; by default every image has its own.
        """
        names = sorted(paths)
        true: list[np.ndarray] = []
        share = np.zeros(len(names))
        drawn = None if condition == UNOCCLUDED else np.zeros((len(names), PIXELS, PIXELS, 3), np.uint8)

        def stream() -> Iterator[np.ndarray]:
            for i, path in enumerate(names):
                image, occluded = self.read(path, condition, shared and shared(path))
                if occluded is not None:
                    assert self.unoccluded is not None  # measured first
                    assert drawn is not None
                    grid = tuple(self.unoccluded.templates.visibility.shape[2:])
                    true.append(on_cells(occluded.mask, grid))
                    share[i] = occluded_share(occluded.mask)
                    drawn[i] = _occluder_alone(image, occluded)
                yield image if occluded is None else occluded.image

        label = f"faces, {condition}" + (" (shared occluders)" if shared else "")
        if isinstance(self.images, Path):  # templates of unoccluded images
            from oaml.templates.file import load

            templates = load(self.images).faces(self.model, names)
        else:
            templates = extract(self.model, stream(), len(names), batch_size=self.batch_size, label=label)
        compared = None
        if self.baselines and not shared:
            from oaml.evaluation.baselines import read_faces

            again = (self.read(path, condition) for path in names)
            compared = read_faces(
                self.model, (plain if other is None else other.image for plain, other in again)
            )
        self.latest = _Features(templates, {path: i for i, path in enumerate(names)}, share, drawn, compared)
        if condition == UNOCCLUDED:
            self.unoccluded = self.latest
        if shared:
            return
        maps = templates.visibility[:, 0].numpy()
        # Nothing is known about what covers a photograph; only what was drawn has a true map.
        self.maps[condition] = MapQuality(
            images=len(names),
            visible=float(templates.visible().mean()),
            true_visible=float(np.mean(true)) if true else None,
            error=float(np.abs(maps - np.array(true)).mean()) if true else None,
            miou=metrics.mean_iou(maps >= 0.5, np.array(true) >= 0.5) if true else None,
        )
        chosen = np.unique(np.linspace(0, len(names) - 1, min(8, len(names))).astype(int))
        self.examples[condition] = {names[i]: maps[i].copy() for i in chosen}

    def side(self, paths: list[str], occluded: bool) -> tuple[_Features, np.ndarray]:
        """The features that hold these images, unoccluded or under the latest occluders, and their places in them."""
        chosen = self.latest if occluded else self.unoccluded
        assert chosen is not None
        return chosen, np.array([chosen.place[path] for path in paths])


def measure(
    faces: MeasuredFaces,
    pairs: Pairs | None,
    known: Identification | None,
    kinds: list[str],
    side: Side,
    seed: int,
    precision: Precision = "float32",
) -> Measured:
    """Measure everything, one kind of occluder after the other.

    Args:
        faces: where features come from; nothing is measured yet.
        pairs: the list, with `same` known of all.
        known: gallery and probes.
        kinds: kinds of occluder.
        side: which image of a pair is occluded; in identification a is the gallery and b the probe.
        seed: of the choice of pairs where there are more than `IMPOSTOR_LIMIT`.
        precision: of QAConv's correlations in identification.

    Raises:
        OamlError: an unreadable image, or a score that is not finite.
    """
    measured = Measured(faces)
    listed = set() if pairs is None else {*pairs.path_a, *pairs.path_b}
    sides = {
        "a": set(known.gallery if known else ()),
        "b": set((*known.probes, *known.strangers) if known else ()),
    }
    faces.measure(UNOCCLUDED, listed | sides["a"] | sides["b"])
    if pairs is not None:
        everything = np.arange(len(pairs))
        measured.asked[UNOCCLUDED] = _trials(faces, pairs, everything, UNOCCLUDED, side)
        measured.classes = {name: {} for name in (PAIR_CLASSES if kinds else [NONE_OCCLUDED])}
        measured.classes[NONE_OCCLUDED][UNOCCLUDED] = measured.asked[UNOCCLUDED]
        impostors = (~labels(pairs)).sum()
        if kinds:
            measured.shared_occluders = int(np.clip(impostors // IMPOSTORS_PER_SHARED, 1, SHARED_OCCLUDERS))
        if faces.baselines:
            measured.baseline_pairs[UNOCCLUDED] = _baseline_pairs(faces, pairs, UNOCCLUDED, side)
    if known is not None:
        measured.retrieved[UNOCCLUDED] = _identify(faces, known, UNOCCLUDED, side, precision)
    if known is not None and faces.baselines:
        measured.baseline_searches[UNOCCLUDED] = _baseline_searches(faces, known, UNOCCLUDED, side)
    for kind in kinds:
        faces.measure(kind, listed | set().union(*(sides[s] for s in ("ab" if side == "both" else side))))
        if known is not None and faces.baselines:
            measured.baseline_searches[kind] = _baseline_searches(faces, known, kind, side)
        if pairs is not None and faces.baselines:
            measured.baseline_pairs[kind] = _baseline_pairs(faces, pairs, kind, side)
        if known is not None:
            measured.retrieved[kind] = _identify(faces, known, kind, side, precision)
        if pairs is not None:
            _classes(measured, faces, pairs, kind, side, seed)
    return measured


def _classes(
    measured: Measured, faces: MeasuredFaces, pairs: Pairs, kind: str, side: Side, seed: int
) -> None:
    """Measure the three classes that have occluders of one kind; the latest features are those under their own occluders."""
    same, everything = labels(pairs), np.arange(len(pairs))
    one: Side = "b" if side == "both" else side
    asked: tuple[tuple[str, Side], ...] = ((ONE_OCCLUDED, one), (BOTH_OCCLUDED, "both"))
    for name, occluded in asked:
        rows = everything if occluded == side else limited(everything, same, seed)
        measured.classes[name][kind] = _trials(faces, pairs, rows, kind, occluded)
        if occluded == side:
            measured.asked[kind] = measured.classes[name][kind]

    group = {
        path: group_of(pairs.owner.get(path, path), measured.shared_occluders)
        for path in {*pairs.path_a, *pairs.path_b}
    }
    together = [group[a] == group[b] for a, b in zip(pairs.path_a, pairs.path_b, strict=True)]
    rows = limited(np.flatnonzero(together), same, seed)
    if len(rows):
        used = {paths[i] for paths in (pairs.path_a, pairs.path_b) for i in rows}
        # the name decides what is drawn
        faces.measure(kind, used, lambda path: f"shared cover {group[path]}")
        measured.classes[SAME_OCCLUDER][kind] = _trials(faces, pairs, rows, kind, "both")


def limited(rows: np.ndarray, same: np.ndarray, seed: int, limit: int = IMPOSTOR_LIMIT) -> np.ndarray:
    """All genuine pairs and at most `limit` impostor pairs, always the same ones for a seed.

    Args:
        rows: int [N], places in the list to choose from, ascending.
        same: bool [M], of the whole list.

    Returns:
        int, ascending.
    """
    impostors = rows[~same[rows]]
    if len(impostors) <= limit:
        return rows
    chosen = np.random.default_rng([seed, limit]).choice(impostors, limit, replace=False)
    return np.sort(np.concatenate([rows[same[rows]], chosen]))


def occluded_share(mask: np.ndarray) -> float:
    """Mask [H,W], 1 where the face shows -> share of the face that is occluded, 0 to 1."""
    return float(np.clip(1 - mask.mean(dtype=np.float64), 0, 1))


def on_cells(mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Mask [H,W] -> the share of each cell that shows, float32 [h,w]."""
    import torch

    from oaml.visibility import mask_to_cells

    return mask_to_cells(torch.from_numpy(mask)[None, None], (grid[0], grid[1]))[0, 0].numpy()


def _occluder_alone(face: np.ndarray, occluded: Occluded) -> np.ndarray:
    """What the occluder adds to the image, uint8 [28,28,3]: its colour where it hides the face, 0 elsewhere."""
    alone = occluded.image - face * occluded.mask[..., None]
    cell = alone.shape[0] // PIXELS
    return np.rint(alone.reshape(PIXELS, cell, PIXELS, cell, 3).mean((1, 3)).clip(0, 255)).astype(np.uint8)


def _trials(faces: MeasuredFaces, pairs: Pairs, rows: np.ndarray, kind: str, side: Side) -> Trials:
    """Score the pairs at these places of the list, occluded on `side` by the latest occluders (on neither if unoccluded)."""
    from oaml.visibility import shared_visibility

    paths = [[paths[i] for i in rows] for paths in (pairs.path_a, pairs.path_b)]
    occluded = [kind != UNOCCLUDED and side in (name, "both") for name in "ab"]
    (a, index_a), (b, index_b) = (faces.side(*chosen) for chosen in zip(paths, occluded, strict=True))
    what = kind + (" on both" if all(occluded) else "")
    scores = score_pairs(
        faces.model,
        a.templates,
        index_a,
        b.templates,
        index_b,
        name=lambda i: f"{paths[0][i]} and {paths[1][i]} ({what})",
        label=f"pairs, {what}",
    )
    visibility_a, visibility_b = a.templates.visibility, b.templates.visibility
    map_a, map_b = visibility_a.numpy()[:, 0], visibility_b.numpy()[:, 0]

    def by_block(value: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        parts = [slice(start, start + PAIR_BLOCK) for start in range(0, len(rows), PAIR_BLOCK)]
        return np.concatenate([value(index_a[part], index_b[part]) for part in parts])

    occluders = None
    if a.occluders is not None and b.occluders is not None:
        one, other = a.occluders, b.occluders
        occluders = by_block(lambda i, j: -np.abs(one[i].astype(np.int16) - other[j]).mean((1, 2, 3)) / 255)
    condition_a, condition_b = (kind if is_occluded else UNOCCLUDED for is_occluded in occluded)
    fused, same = scores["fused"], labels(pairs)[rows]
    examples = {
        group: [
            Example(
                ExamplePair(paths[0][i], paths[1][i], condition_a, condition_b, float(fused[i])),
                map_a[index_a[i]].copy(),
                map_b[index_b[i]].copy(),
            )
            for i in _first(np.flatnonzero(chosen), order, *paths)
        ]
        for group, chosen, order in (
            ("genuine, lowest scores", same, fused),
            ("genuine, highest scores", same, -fused),
            ("impostor, highest scores", ~same, -fused),
            ("impostor, lowest scores", ~same, fused),
        )
    }
    return Trials(
        rows,
        scores,
        np.maximum(a.occluded_share[index_a], b.occluded_share[index_b]),
        by_block(lambda i, j: shared_visibility(visibility_a[i], visibility_b[j]).numpy()),
        by_block(lambda i, j: -np.abs(map_a[i] - map_b[j]).mean((1, 2), dtype=np.float64)),
        occluders,
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


def _identify(
    faces: MeasuredFaces, known: Identification, kind: str, side: Side, precision: Precision
) -> dict[str, Retrieved]:
    """What searches give by each score; in blocks, so that the scores of all never stand in memory."""
    occluded = kind != UNOCCLUDED
    gallery, index_g = faces.side(known.gallery, occluded and side in ("a", "both"))
    looked_up = [*known.probes, *known.strangers]
    probes, index_p = faces.side(looked_up, occluded and side in ("b", "both"))
    people_g, people_p = np.array(known.gallery_person), np.array(known.probe_person)
    measures: dict[str, list[np.ndarray]] = {score: [] for score in COLUMNS}
    ranks: dict[str, list[np.ndarray]] = {score: [] for score in COLUMNS}
    best: dict[str, list[np.ndarray]] = {score: [] for score in COLUMNS}
    for start in range(0, len(index_p), PROBE_BLOCK):
        part = slice(start, start + PROBE_BLOCK)
        scores = score_all(
            faces.model,
            probes.templates,
            index_p[part],
            gallery.templates,
            index_g,
            precision=precision,
            name=lambda i, start=start: f"{looked_up[start + i]} ({kind})",
        )
        own = people_p[part]  # of strangers there is none
        for score, values in scores.items():
            best[score].append(values.max(1))
            if len(own):
                measures[score].append(metrics.retrieval(values[: len(own)], own, people_g))
                ranks[score].append(metrics.own_ranks(values[: len(own)], own, people_g))
    count = len(known.probes)
    return {
        score: Retrieved(
            np.concatenate(measures[score]),
            np.concatenate(ranks[score]),
            np.concatenate(best[score])[:count],
            np.concatenate(best[score])[count:],
        )
        for score in COLUMNS
    }


def _baseline_pairs(faces: MeasuredFaces, pairs: Pairs, kind: str, side: Side) -> dict[str, np.ndarray]:
    """The baselines' scores of all pairs, [N] each."""
    from oaml.evaluation.baselines import pair_scores

    occluded = [kind != UNOCCLUDED and side in (name, "both") for name in "ab"]
    (a, index_a), (b, index_b) = (
        faces.side(paths, which) for paths, which in zip((pairs.path_a, pairs.path_b), occluded, strict=True)
    )
    assert a.baselines is not None
    assert b.baselines is not None
    return pair_scores(a.baselines[index_a], b.baselines[index_b])


def _baseline_searches(
    faces: MeasuredFaces, known: Identification, kind: str, side: Side
) -> dict[str, np.ndarray]:
    """What searches give by each baseline, [P,3]."""
    from oaml.evaluation.baselines import search_scores

    occluded = kind != UNOCCLUDED
    gallery, index_g = faces.side(known.gallery, occluded and side in ("a", "both"))
    probes, index_p = faces.side(known.probes, occluded and side in ("b", "both"))
    assert gallery.baselines is not None
    assert probes.baselines is not None
    enrolled = gallery.baselines[index_g]
    people_g, people_p = np.array(known.gallery_person), np.array(known.probe_person)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(index_p), PROBE_BLOCK):
        part = slice(start, start + PROBE_BLOCK)
        for name, scores in search_scores(probes.baselines[index_p[part]], enrolled).items():
            parts.setdefault(name, []).append(metrics.retrieval(scores, people_p[part], people_g))
    return {name: np.concatenate(values) for name, values in parts.items()}
