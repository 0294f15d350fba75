"""IJB-B, IJB-C and IJB-S: templates of many images, verified (1:1) and identified (1:N), each score beside the plain pooling.

The sets: Whitelam et al., IARPA Janus Benchmark-B Face Dataset, CVPRW 2017; Maze et al., IARPA Janus Benchmark-C, ICB 2018; Kalka
et al., IJB-S, BTAS 2018. Their lists are read by `oaml.evaluation.template_lists`.

Plain pooling: the mean within a medium, the sum over media, of unit embeddings or of those with their norm, weighted by the
detector's score or not. Ours, by visibility, is `oaml.template.pooled`.

Every stage can be killed: embedded faces and scored pairs are kept in OUT and the same command goes on with them. Memory holds the
templates, not the images' faces: those lie in files of int8 templates, one for each kind of occluder.

1:N has two galleries of different people. A probe whose person is in the other one is an impostor there. Each gallery is measured
by itself and the two are averaged: joining them would make another, larger gallery, without impostors. (Of IJB-S closed sets are
published for the joined galleries; `G1 and G2` is that.)

Shapes: F faces, T templates, N pairs, P probes, G gallery templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.errors import OamlError
from oaml.evaluation.results import UNOCCLUDED, Side, TemplateRates, TemplateSet
from oaml.evaluation.template_lists import Lists, People
from oaml.support import metrics
from oaml.support.progress import progress
from oaml.template import COLUMNS, Templates, pooled

if TYPE_CHECKING:
    from oaml.kernels import Precision
    from oaml.model import Model
    from oaml.occluders import Occluder
    from oaml.templates.file import TemplateFile

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FPIRS = (1e-2, 1e-1)
RANKS = (1, 5, 10)
PLAIN = ("plain", "plain, norm", "plain, detector", "plain, norm and detector")
"""Cosines of plain pooling: of unit embeddings or with their norm, without and with the detector's score."""
PAIRS_A_WRITE = 1 << 17
TEMPLATES_A_TIME = 64
"""Whose faces are in memory in float32: some thousands."""
PROBES_A_TIME = 64
Change = Callable[[np.ndarray, str], np.ndarray]
"""Aligned face, name of the image -> what is embedded instead."""


@dataclass(frozen=True)
class Pooled:
    """The templates of a set, under one kind of occluder or none."""

    plain: dict[str, np.ndarray]
    """Way of pooling -> embeddings, float32 [T,E] of unit length: those of `PLAIN`, and `upper half` where that is asked for."""
    ours: Templates
    """Pooled by visibility."""


class Measured:
    """Measures one set with one model, condition by condition.

    Args:
        lists: of the set.
        stem: of the files that are kept.
        out: folder for them.
        refine: move each crop to where the face lies beneath its occluder.
        baselines: pool embeddings of the upper half of the face, too (`oaml.evaluation.baselines`).
        precision: of the network, and of QAConv's correlations in 1:N; see `oaml embed`.
    """

    def __init__(
        self,
        model: Model,
        lists: Lists,
        stem: str,
        out: Path,
        refine: bool = False,
        baselines: bool = False,
        precision: Precision = "float32",
    ) -> None:
        self.model, self.lists, self.out, self.refine, self.baselines = model, lists, out, refine, baselines
        self.stem = f"{stem}{'-refined' * refine}{'-bfloat16' * (precision == 'bfloat16')}"
        self.precision: Precision = precision

    def all(self, kinds: Sequence[str], side: Side, occluder: Occluder) -> dict[str, TemplateSet]:
        """Condition -> measures: unoccluded, and by kind of occluder.

        Args:
            side: which template of a pair is made of occluded images; of 1:N a is the gallery and b the probe.
            occluder: what draws; an occluder depends on its seed, the kind and the image's name.

        Raises:
            OamlError: an image can't be read, or no room for the files.
        """
        unoccluded = self.pooled(self.stem, None)
        sets = {UNOCCLUDED: self.compared(unoccluded, unoccluded, self.stem)}
        for kind in kinds:
            stem = f"{self.stem}-{kind}-{_tag(occluder)}"
            occluded = self.pooled(stem, lambda face, name, kind=kind: occluder(face, kind, name).image)
            a, b = (occluded if side in (name, "both") else unoccluded for name in "ab")
            sets[kind] = self.compared(a, b, f"{stem}-{side}")
        return sets

    def pooled(self, stem: str, change: Change | None) -> Pooled:
        """The templates of faces that are changed before they are embedded; in files of this stem."""
        faces = self._embedded(stem, change)
        plain, ours = _templates(faces, self.lists)
        if self.baselines:
            from oaml.evaluation.baselines import UPPER_HALF, upper_half

            def upper(face: np.ndarray, name: str) -> np.ndarray:
                return upper_half(face if change is None else change(face, name))

            halves = self._embedded(f"{stem}-upper", upper)
            plain[UPPER_HALF] = _templates(halves, self.lists)[0]["plain"]
        return Pooled(plain, ours)

    def _embedded(self, stem: str, change: Change | None) -> TemplateFile:
        file = self.out / f"{stem}.safetensors"
        return _embedded(self.model, self.lists, file, self.refine, change, self.precision)

    def compared(self, a: Pooled, b: Pooled, stem: str) -> TemplateSet:
        """All scores of the pairs, and of the probes with the galleries; a is the first of a pair and the gallery."""
        lists = self.lists
        verification = {}
        if len(lists.pairs):
            order = np.lexsort(
                lists.pairs.T[::-1]
            )  # the pairs of one template follow each other: that is faster
            pairs, same = lists.pairs[order], lists.same[order]
            scores = _scored(self.model, pairs, a, b, self.out / f"{stem}.scores")
            verification = {
                score: _verified(np.asarray(scores[:, column]), same)
                for column, score in enumerate((*a.plain, *COLUMNS))
            }
        by_gallery = {
            name: _identified(self.model, lists.probes, gallery, a, b, self.precision)
            for name, gallery in lists.galleries.items()
            if lists.probes is not None
        }
        mean = _mean(list(by_gallery.values()))
        if by_gallery and not len(lists.pairs) and lists.probes is not None:  # IJB-S
            both = tuple(np.concatenate(side) for side in zip(*lists.galleries.values(), strict=True))
            by_gallery["G1 and G2"] = _identified(
                self.model, lists.probes, (both[0], both[1]), a, b, self.precision
            )
        return TemplateSet(
            images=len(lists.names),
            templates=len(lists.ids),
            genuine_pairs=int(lists.same.sum()),
            impostor_pairs=int((~lists.same).sum()),
            verification=verification,
            identification=by_gallery,
            identification_mean=mean,
        )


def _tag(occluder: Occluder) -> str:
    """Another one for other occluders, so that a file of theirs isn't taken for one of these."""
    harvested = "" if occluder.harvested is None else occluder.harvested.digest
    digest = hashlib.sha256(f"{occluder.seed} {occluder.style} {harvested}".encode())
    for picture in occluder.mask_pictures:
        digest.update(picture.tobytes())
    return digest.hexdigest()[:8]


# --- faces and templates ---


def _embedded(
    model: Model, lists: Lists, file: Path, refine: bool, change: Change | None, precision: Precision
) -> TemplateFile:
    """Templates of all faces, in the order of the list, in a file; what is there already is not computed again."""
    from oaml.photographs.align import similarity, warp
    from oaml.support.files import read_image, read_photograph
    from oaml.templates.embed import FastExtractor
    from oaml.templates.file import load, model_id

    names = [f"{i} {name}" for i, name in enumerate(lists.names)]  # an image may belong to several templates
    digest = hashlib.sha256("\n".join(names).encode())
    if lists.landmarks is not None:
        digest.update(lists.landmarks.tobytes())
    if file.is_file():
        held = load(file)
        held.need_model(model)
        if held.paths == names:
            return held
        raise OamlError(f"{file}: holds faces of other lists; delete it, or name another --out")

    def cut(face: int) -> np.ndarray:
        path = lists.images / lists.names[face]
        if lists.landmarks is None:
            return read_image(path)
        photograph = read_photograph(path)
        matrix = similarity(lists.landmarks[face])
        if refine:
            from oaml.photographs.refine import refined

            matrix = refined(photograph, matrix)
        return warp(photograph, matrix)

    def read(face: int) -> np.ndarray:
        return cut(face) if change is None else change(cut(face), lists.names[face])

    facts = {"model": model_id(model), "model_name": file.stem, "images": digest.hexdigest()[:16]}
    FastExtractor(model, precision == "bfloat16").write(file, names, facts, read)
    return load(file)


def _templates(faces: TemplateFile, lists: Lists) -> tuple[dict[str, np.ndarray], Templates]:
    """Plain pooled embeddings, float32 [T,E] of unit length each, and templates pooled by visibility."""
    import torch

    from oaml.inference import gathered

    count = len(lists.ids)
    starts = np.searchsorted(lists.template, np.arange(count + 1))
    plain: list[np.ndarray] = []

    def parts() -> Iterator[Templates]:
        with progress("pooling templates", count) as advance:
            for first in range(0, count, TEMPLATES_A_TIME):
                last = min(first + TEMPLATES_A_TIME, count)
                rows = slice(int(starts[first]), int(starts[last]))
                some = faces.part(rows).dequantised()
                owner = lists.template[rows] - first
                plain.append(
                    plain_pooling(
                        some.embedding.numpy(),
                        some.norm.numpy(),
                        lists.detector[rows],
                        owner,
                        lists.medium[rows],
                    )
                )
                yield pooled(some, torch.from_numpy(owner))
                advance(last - first)

    templates = gathered(parts(), count, channels_last=True)
    return dict(zip(PLAIN, np.concatenate(plain, 1), strict=True)), templates


def plain_pooling(
    embedding: np.ndarray, norm: np.ndarray, detector: np.ndarray, template: np.ndarray, medium: np.ndarray
) -> np.ndarray:
    """The mean within a medium, the sum over the media of a template, scaled to unit length.

    Args:
        embedding: [F,E] of unit length; norm, detector: [F]; template, medium: int [F], templates from 0 on, all with a face.

    Returns:
        float32 [4,T,E], in the order of `PLAIN`.
    """
    groups, of_face = np.unique(np.stack([template, medium], 1), axis=0, return_inverse=True)
    count = np.bincount(of_face)[:, None]
    results = []
    for weight in (np.ones_like(norm), norm, detector, norm * detector):
        media = np.zeros((len(groups), embedding.shape[1]))
        np.add.at(media, of_face, embedding * weight[:, None])
        summed = np.zeros((template.max() + 1, embedding.shape[1]))
        np.add.at(summed, groups[:, 0], media / count)
        results.append(summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-12))
    return np.array(results, np.float32)


# --- 1:1 ---


def _scored(model: Model, pairs: np.ndarray, a: Pooled, b: Pooled, file: Path) -> np.ndarray:
    """Every score of every pair, float32 [N,S] in a file that grows by blocks, so that a killed run goes on.

    Columns: ways of plain pooling, then those of `oaml.template.COLUMNS`.
    """
    from oaml.inference import score_listed
    from oaml.templates.file import model_id

    stamp = hashlib.sha256(model_id(model).encode() + pairs.tobytes())
    for side in (a, b):
        for name, way in side.plain.items():
            stamp.update(name.encode() + way.tobytes())
        stamp.update(side.ours.visibility.numpy().tobytes())
    stamp.update(repr([model.fusion.state_dict(), model.joint.state_dict()]).encode())
    header, row = stamp.digest(), 4 * (len(a.plain) + len(COLUMNS))
    if not file.is_file() or file.open("rb").read(len(header)) != header:
        file.write_bytes(header)
    with file.open("r+b") as opened:
        done = (file.stat().st_size - len(header)) // row
        opened.truncate(len(header) + done * row)
        opened.seek(0, 2)
        with progress("scoring pairs", len(pairs), done) as advance:
            for start in range(done, len(pairs), PAIRS_A_WRITE):
                left, right = pairs[start : start + PAIRS_A_WRITE].T.astype(np.int64)
                by_score = score_listed(model, a.ours, left, b.ours, right)
                columns = [
                    np.einsum("ij,ij->i", way[left], b.plain[name][right]) for name, way in a.plain.items()
                ]
                columns += [by_score[score] for score in COLUMNS]
                opened.write(np.stack(columns, 1).astype(np.float32).tobytes())
                advance(len(left))
    return np.memmap(file, np.float32, "r", len(header), (len(pairs), row // 4))


def _verified(scores: np.ndarray, same: np.ndarray) -> dict[float, float | None]:
    impostors = int((~same).sum())
    points = metrics.tars_at_fars(scores, same, FARS)
    return {
        far: point.tar if metrics.enough_negatives(impostors, far) else None
        for far, point in zip(FARS, points, strict=True)
    }


# --- 1:N ---


def _identified(
    model: Model, looked_up: People, enrolled: People, a: Pooled, b: Pooled, precision: Precision
) -> dict[str, TemplateRates]:
    """One gallery, of templates a: where the person of each probe, of templates b, ranks, and what strangers reach."""
    from oaml.inference import score_all

    (probes, owner), (gallery, people) = looked_up, enrolled
    names = (*a.plain, *COLUMNS)
    known = np.isin(owner, people)
    rank = {score: np.zeros(len(probes), np.int64) for score in names}
    best = {score: np.zeros(len(probes)) for score in names}
    with progress("searching a gallery", len(probes)) as advance:
        for start in range(0, len(probes), PROBES_A_TIME):
            rows = slice(start, start + PROBES_A_TIME)
            by_score = score_all(model, b.ours, probes[rows], a.ours, gallery, precision=precision)
            by_score |= {name: b.plain[name][probes[rows]] @ way[gallery].T for name, way in a.plain.items()}
            own = owner[rows, None] == people
            for score, values in by_score.items():
                mate = np.where(own, values, -np.inf).max(1, keepdims=True)
                rank[score][rows] = 1 + ((values >= mate) & ~own).sum(1)
                best[score][rows] = values.max(1)
            advance(len(probes[rows]))
    return {
        score: TemplateRates(
            probes=int(known.sum()),
            strangers=int((~known).sum()),
            rank={k: float((rank[score][known] <= k).mean()) if known.any() else None for k in RANKS},
            tpir_at_fpir={
                fpir: metrics.tpir_at_fpir(
                    best[score][known], rank[score][known] == 1, best[score][~known], fpir
                )
                for fpir in FPIRS
            },
        )
        for score in names
    }


def _mean(galleries: list[dict[str, TemplateRates]]) -> dict[str, TemplateRates]:
    """The mean over the galleries; a rate that one of them lacks is None."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known and len(known) == len(values) else None

    return {
        score: TemplateRates(
            probes=sum(rates[score].probes for rates in galleries),
            strangers=sum(rates[score].strangers for rates in galleries),
            rank={k: mean([rates[score].rank[k] for rates in galleries]) for k in RANKS},
            tpir_at_fpir={f: mean([rates[score].tpir_at_fpir[f] for rates in galleries]) for f in FPIRS},
        )
        for score in (galleries[0] if galleries else ())
    }
