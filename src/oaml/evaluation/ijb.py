"""IJB-B and IJB-C: templates of many images, verified (1:1) and identified (1:N), each score beside the plain pooling.

Layout and 1:1 protocol are those of InsightFace's evaluation (github.com/deepinsight/insightface, recognition/_evaluation_/ijb).
The sets: Whitelam et al., IARPA Janus Benchmark-B Face Dataset, CVPRW 2017; Maze et al., IARPA Janus Benchmark-C, ICB 2018.

```
meta/ijbc_face_tid_mid.txt           IMAGE TEMPLATE MEDIUM
meta/ijbc_template_pair_label.txt    TEMPLATE TEMPLATE 1 or 0
meta/ijbc_name_5pts_score.txt        IMAGE x1 y1 ... x5 y5 SCORE
meta/ijbc_1N_gallery_G1.csv          TEMPLATE_ID,SUBJECT_ID,...    and G2, and ijbc_1N_probe_mixed.csv; without them no 1:N
loose_crop/IMAGE
```

Plain pooling: the mean within a medium, the sum over media, of unit embeddings or of those with their norm, weighted by the
detector's score or not. Ours, by visibility, is `oaml.template.pooled`.

Every stage can be killed: embedded faces and scored pairs are kept in OUT and the same command goes on with them. Memory holds the
templates, not the images' faces: those lie in a file of int8 templates.

1:N has two galleries of different people. A probe whose person is in the other one is an impostor there. Each gallery is measured
by itself and the two are averaged: joining them would make another, larger gallery, without impostors.

Shapes: F faces, T templates, N pairs, P probes, G gallery templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.errors import OamlError, few
from oaml.evaluation.results import TemplateRates, TemplateSet
from oaml.support import metrics
from oaml.support.progress import progress
from oaml.template import COLUMNS, Templates, pooled

if TYPE_CHECKING:
    from oaml.model import Model
    from oaml.templates.file import TemplateFile

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FPIRS = (1e-2, 1e-1)
RANKS = (1, 5, 10)
PLAIN = ("plain", "plain, norm", "plain, detector", "plain, norm and detector")
"""Cosines of plain pooling: of unit embeddings or with their norm, without and with the detector's score."""
SCORES = (*PLAIN, *COLUMNS)
PAIRS_A_WRITE = 1 << 16
TEMPLATES_A_TIME = 64
"""Whose faces are in memory in float32: some thousands."""
PROBES_A_TIME = 64


@dataclass(frozen=True)
class Lists:
    """What the set's files say; all checked."""

    images: Path
    names: list[str]
    """Of each face, its image below `images`, [F]."""
    template: np.ndarray
    """int [F], place of its template among `ids`."""
    medium: np.ndarray
    """int [F]."""
    ids: np.ndarray
    """int [T], the set's numbers of templates, ascending."""
    landmarks: np.ndarray
    """float32 [F,5,2], pixels of the image."""
    detector: np.ndarray
    """float32 [F], the detector's score."""
    pairs: np.ndarray
    """int32 [N,2], places among `ids`."""
    same: np.ndarray
    """bool [N]."""
    galleries: dict[str, tuple[np.ndarray, np.ndarray]]
    """Gallery -> templates and their people, int [G] each; empty without lists of 1:N."""
    probes: tuple[np.ndarray, np.ndarray] | None


def measure(model: Model, name: str, data: Path, out: Path, refine: bool) -> TemplateSet:
    """All scores of IJB-B or IJB-C.

    Args:
        name: ijbb or ijbc.
        data: the folder with meta/ and loose_crop/.
        out: where faces and scores are kept, to go on with.
        refine: move each crop to where the face lies beneath its occluder.

    Raises:
        OamlError: a list or an image is missing or wrong, or no room for the files.
    """
    lists = read_lists(name, data)
    faces = _embedded(model, lists, out / f"{name}{'-refined' * refine}.safetensors", refine)
    plain, ours = _templates(faces, lists, model)
    scores = _scored(model, lists, plain, ours, out / f"{name}{'-refined' * refine}.scores")
    verification = {
        score: _verified(np.asarray(scores[:, column]), lists.same) for column, score in enumerate(SCORES)
    }
    by_gallery = {
        gallery: _identified(model, lists, plain, ours, *listed)
        for gallery, listed in lists.galleries.items()
    }
    return TemplateSet(
        images=len(lists.names),
        templates=len(lists.ids),
        genuine_pairs=int(lists.same.sum()),
        impostor_pairs=int((~lists.same).sum()),
        verification=verification,
        identification=by_gallery,
        identification_mean=_mean(list(by_gallery.values())),
    )


# --- lists ---


def read_lists(name: str, data: Path) -> Lists:
    """Read and check all files of the set; see the module for the layout."""
    meta, images = data / "meta", data / "loose_crop"
    for needed in (meta, images):
        if not needed.is_dir():
            raise OamlError(
                f"{needed}: no such folder; {name} is expected as meta/{name}_*.txt and loose_crop/*.jpg"
            )
    faces = _table(meta / f"{name}_face_tid_mid.txt", 3)
    points = _table(meta / f"{name}_name_5pts_score.txt", 12)
    pairs = _table(meta / f"{name}_template_pair_label.txt", 3)
    place = {row[0]: i for i, row in enumerate(points)}
    if lacking := [row[0] for row in faces if row[0] not in place]:
        raise OamlError(
            f"{meta}/{name}_name_5pts_score.txt: lacks {len(lacking):,} images of {name}_face_tid_mid.txt: {few(lacking, 10)}"
        )
    if absent := [row[0] for row in faces if not (images / row[0]).is_file()]:
        raise OamlError(
            f"{images}: lacks {len(absent):,} of {len(faces):,} images: {few(absent, 10)}; complete the set"
        )
    where = np.array([place[row[0]] for row in faces])
    numbers = np.array([row[1:] for row in points], np.float32)[where]
    template, medium = np.array([row[1:] for row in faces], np.int64).T
    ids, of_face = np.unique(template, return_inverse=True)
    listed = np.array(pairs, np.int64)
    galleries = {
        gallery: _people(meta / f"{name}_1N_gallery_{gallery}.csv", ids)
        for gallery in ("G1", "G2")
        if (meta / f"{name}_1N_gallery_{gallery}.csv").is_file()
    }
    probes = _people(meta / f"{name}_1N_probe_mixed.csv", ids) if galleries else None
    return Lists(
        images,
        [row[0] for row in faces],
        of_face,
        medium,
        ids,
        numbers[:, :10].reshape(-1, 5, 2),
        numbers[:, 10],
        _places(listed[:, :2], ids, meta / f"{name}_template_pair_label.txt").astype(np.int32),
        listed[:, 2] == 1,
        galleries,
        probes,
    )


def _table(file: Path, columns: int) -> list[list[str]]:
    """The words of every line; all but the first are numbers."""
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise OamlError(f"{file}: no such file; the set comes with it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OamlError(f"{file}: can't be read ({error})") from None
    for number, row in enumerate(rows, 1):
        numbers = [word.lstrip("-").replace(".", "", 1) for word in row[1:]]
        if len(row) != columns or not all(word.isdecimal() for word in numbers):
            raise OamlError(
                f"{file}, line {number}: {' '.join(row)[:100]!r} are no name and {columns - 1} numbers"
            )
    if not rows:
        raise OamlError(f"{file}: is empty")
    return rows


def _people(file: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Templates, as places among `ids`, and their people; each template once."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        rows = [[int(word) for word in line.split(",")[:2]] for line in lines[1:] if line.strip()]
    except FileNotFoundError:
        raise OamlError(f"{file}: no such file; 1:N needs the probes beside the galleries") from None
    except (OSError, ValueError) as error:
        raise OamlError(f"{file}: is no list of TEMPLATE_ID,SUBJECT_ID ({error})") from None
    listed = np.unique(np.array(rows, np.int64), axis=0)
    return _places(listed[:, 0], ids, file), listed[:, 1]


def _places(listed: np.ndarray, ids: np.ndarray, file: Path) -> np.ndarray:
    places = np.searchsorted(ids, listed).clip(max=len(ids) - 1)
    if (wrong := listed[ids[places] != listed]).size:
        unknown = [str(number) for number in np.unique(wrong)]
        raise OamlError(f"{file}: names {len(unknown):,} templates that have no image: {few(unknown, 10)}")
    return places


# --- faces and templates ---


def _embedded(model: Model, lists: Lists, file: Path, refine: bool) -> TemplateFile:
    """Templates of all faces, in the order of the list, in a file; what is there already is not computed again."""
    from oaml.photographs.align import similarity, warp
    from oaml.support.files import read_photograph
    from oaml.templates.embed import FastExtractor
    from oaml.templates.file import load, model_id

    names = [f"{i} {name}" for i, name in enumerate(lists.names)]  # an image may belong to several templates
    stamp = hashlib.sha256("\n".join(names).encode() + lists.landmarks.tobytes()).hexdigest()[:16]
    if file.is_file():
        held = load(file)
        held.need_model(model)
        if held.paths == names:
            return held
        raise OamlError(f"{file}: holds faces of other lists; delete it, or name another --out")

    def read(face: int) -> np.ndarray:
        photograph = read_photograph(lists.images / lists.names[face])
        matrix = similarity(lists.landmarks[face])
        if refine:
            from oaml.photographs.refine import refined

            matrix = refined(photograph, matrix)
        return warp(photograph, matrix)

    facts = {"model": model_id(model), "model_name": file.stem, "images": stamp}
    FastExtractor(model, bfloat16=False).write(file, names, facts, read)
    return load(file)


def _templates(faces: TemplateFile, lists: Lists, model: Model) -> tuple[np.ndarray, Templates]:
    """Plain pooled embeddings, float32 [4,T,E] of unit length, and templates pooled by visibility."""
    import torch

    from oaml.inference import gathered

    order = np.argsort(lists.template, kind="stable")
    starts = np.searchsorted(lists.template[order], np.arange(len(lists.ids) + 1))
    plain: list[np.ndarray] = []

    def parts() -> Iterator[Templates]:
        with progress("pooling templates", len(lists.ids)) as advance:
            for first in range(0, len(lists.ids), TEMPLATES_A_TIME):
                last = min(first + TEMPLATES_A_TIME, len(lists.ids))
                rows = order[starts[first] : starts[last]]
                some = faces.templates[torch.from_numpy(np.sort(rows))].dequantised()
                some = some[torch.from_numpy(np.argsort(np.argsort(rows)))]
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

    templates = gathered(parts(), len(lists.ids))
    return np.concatenate(plain, 1), templates


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


def _scored(model: Model, lists: Lists, plain: np.ndarray, ours: Templates, file: Path) -> np.ndarray:
    """Every score of every pair, float32 [N,9] in a file that grows by blocks, so that a killed run goes on."""
    from oaml.inference import score_pairs
    from oaml.templates.file import model_id

    stamp = hashlib.sha256(model_id(model).encode() + lists.pairs.tobytes() + plain.tobytes()).digest()
    stamp += repr(model.fusion.state_dict()).encode() + repr(model.joint.state_dict()).encode()
    header = hashlib.sha256(stamp).digest()
    row = 4 * len(SCORES)
    if not file.is_file() or file.open("rb").read(len(header)) != header:
        file.write_bytes(header)
    with file.open("r+b") as opened:
        done = (file.stat().st_size - len(header)) // row
        opened.truncate(len(header) + done * row)
        opened.seek(0, 2)
        with progress("scoring pairs", len(lists.pairs), done) as advance:
            for start in range(done, len(lists.pairs), PAIRS_A_WRITE):
                a, b = lists.pairs[start : start + PAIRS_A_WRITE].T
                by_score = score_pairs(model, ours, a, ours, b)
                columns = [np.einsum("ij,ij->i", way[a], way[b]) for way in plain]
                columns += [by_score[score] for score in COLUMNS]
                opened.write(np.stack(columns, 1).astype(np.float32).tobytes())
                advance(len(a))
    return np.memmap(file, np.float32, "r", len(header), (len(lists.pairs), len(SCORES)))


def _verified(scores: np.ndarray, same: np.ndarray) -> dict[float, float | None]:
    impostors = int((~same).sum())
    points = metrics.tars_at_fars(scores, same, FARS)
    return {
        far: point.tar if metrics.enough_negatives(impostors, far) else None
        for far, point in zip(FARS, points, strict=True)
    }


# --- 1:N ---


def _identified(
    model: Model, lists: Lists, plain: np.ndarray, ours: Templates, gallery: np.ndarray, people: np.ndarray
) -> dict[str, TemplateRates]:
    """One gallery: where the person of each probe ranks, and what strangers reach."""
    from oaml.inference import score_all

    assert lists.probes is not None
    probes, owner = lists.probes
    known = np.isin(owner, people)
    rank = {score: np.zeros(len(probes), np.int64) for score in SCORES}
    best = {score: np.zeros(len(probes)) for score in SCORES}
    with progress("searching a gallery", len(probes)) as advance:
        for start in range(0, len(probes), PROBES_A_TIME):
            rows = slice(start, start + PROBES_A_TIME)
            by_score = score_all(model, ours, probes[rows], ours, gallery)
            by_score |= {
                name: way[probes[rows]] @ way[gallery].T for name, way in zip(PLAIN, plain, strict=True)
            }
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
            rank={k: float((rank[score][known] <= k).mean()) for k in RANKS},
            tpir_at_fpir={
                fpir: metrics.tpir_at_fpir(
                    best[score][known], rank[score][known] == 1, best[score][~known], fpir
                )
                for fpir in FPIRS
            },
        )
        for score in SCORES
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
        for score in (SCORES if galleries else ())
    }
