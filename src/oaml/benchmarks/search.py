"""Searching a gallery of many people: how long it takes, and what a search loses against comparing with everybody.

A search takes the nearest vectors as candidates and orders them by the fused score. No data set of a million people is at hand,
so people are made of a few real faces (or, without a file of templates, of random ones): a person is the mean of all faces plus
half the sum of four faces' deviations from it, which keeps the spread and the correlations of the numbers. Another image of a
person has .7 of their deviation and .71 of a stranger's, so that it is about as similar as two photographs are. An occluded image
shows the person in the cells that a niqab, a mask or sunglasses leave, and a third person in the others; its visibility is right
to within .1. What occluders do to real faces is in `studies/README.md`.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oaml.errors import OamlError
from oaml.gallery.folder import Entry
from oaml.gallery.gallery import CANDIDATES, Gallery, create
from oaml.gallery.rows import PATTERNS, Packing, probe_vectors, table
from oaml.gallery.store import INDEXED_FROM, Store
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.recognition.recognise import Recogniser
from oaml.support.files import FACE_SIZE
from oaml.template import Templates
from oaml.templates.file import load, model_id
from oaml.templates.quantised import QuantisedTemplates
from oaml.visibility import GRID

PARENTS, SIMILARITY = 4, 0.7
SOURCES = 512  # real or random faces that people are made of
FACES_AT_A_TIME = 2000  # made and written
SEARCHES = 200  # timed
MAX_COMPARED = 20_000_000  # pairs compared by the fused score, to find the best of everybody
UNOCCLUDED = "unoccluded"
VISIBLE_CELLS = {UNOCCLUDED: "all", "niqab": "eyes", "mask": "upper", "sunglasses": "around"}
"""Occluder -> which of `PATTERNS` it leaves visible."""


def run(
    faces: int = 10_000,
    model: str | None = None,
    templates: Path | None = None,
    keep: Path | None = None,
) -> dict[str, object]:
    """Milliseconds of a search, how often its candidates and its first name are right, and the size of the gallery.

    Args:
        faces: people enrolled, one face each.
        model: a model folder; by default random weights.
        templates: a file of `oaml embed` by the model; by default random numbers.
        keep: folder of the gallery, used as it is where it holds as many faces of the model; by default a temporary one.
    """
    torch.manual_seed(0)
    if model is None:
        loaded = Model(ModelConfig(NetConfig("mobilefacenet", 128))).eval()
    else:
        loaded = Model.load(model)
    people = _People(loaded, templates)
    recogniser = Recogniser(loaded, None, "benchmark")
    with tempfile.TemporaryDirectory(prefix="oaml-search-") as temporary:
        place = Path(keep or f"{temporary}/gallery")
        written = {} if place.exists() else _write(Store(place), loaded, people, faces)
        return {**written, **_measure(Gallery(place, recogniser), Store(place), people, faces)}


def _write(store: Store, model: Model, people: _People, count: int) -> dict[str, object]:
    seconds = 0.0
    for start in range(0, count, FACES_AT_A_TIME):
        numbers = range(start, min(start + FACES_AT_A_TIME, count))
        made = QuantisedTemplates.of(people.enrolled(numbers))
        entries = [Entry(f"person {i:08d}", f"{i:064x}", "", "") for i in numbers]
        packing = Packing.of(made)
        begun = time.perf_counter()
        if start == 0:
            create(store, packing, model_id(model), "benchmark")
        store.add(table(entries, made, [None] * len(entries), packing))
        seconds += time.perf_counter() - begun
    begun = time.perf_counter()
    store.tidy()
    tidied = time.perf_counter() - begun
    return {"written_faces_per_second": count / seconds, "tidied_seconds": tidied}


def _measure(gallery: Gallery, store: Store, people: _People, count: int) -> dict[str, object]:
    held = store.count()
    if held != count:
        raise OamlError(f"{gallery.path}: holds {held:,} faces instead of {count:,}; name a new folder")
    files = [path for path in Path(gallery.path).rglob("*") if path.is_file()]
    for path in files:  # searches begin with everything on the disk
        _forget(path)

    rng = np.random.default_rng(1)
    asked = rng.integers(0, count, SEARCHES)
    probes = {kind: people.probes(asked, kind) for kind in VISIBLE_CELLS}
    spent, worked = [], []
    for i in range(SEARCHES):  # of all kinds in turn
        probe = list(probes.values())[i % len(probes)][i : i + 1]
        begun, busy = time.perf_counter(), time.process_time()
        gallery.candidates(probe)
        spent.append(1e3 * (time.perf_counter() - begun))
        worked.append(1e3 * (time.process_time() - busy))
    judged = min(SEARCHES // 2, max(5, MAX_COMPARED // count // len(probes)))
    shares = {
        kind: _judge(gallery, store, people.model, faces[:judged], asked[:judged])
        for kind, faces in probes.items()
    }
    return {
        "faces": count,
        "index": count >= INDEXED_FROM,
        "threads": torch.get_num_threads(),
        "gigabytes": sum(path.stat().st_size for path in files) / 1e9,
        "first_ms": spent[: len(probes)],  # the first of each kind reads an index of its own
        "p50_ms": float(np.percentile(spent, 50)),
        "p99_ms": float(np.percentile(spent, 99)),  # of all searches, with the first ones
        "p99_later_ms": float(np.percentile(spent[len(probes) :], 99)),
        "processor_p50_ms": float(np.percentile(worked, 50)),  # of all threads: less on a machine of its own
        "probes_judged": judged,
        "kinds": shares,
    }


def _judge(
    gallery: Gallery, store: Store, model: Model, probes: Templates, truth: np.ndarray
) -> dict[str, float]:
    """Shares of probes: whose person is among the candidates, and is named first by the search and by comparing with everybody."""
    packing = Packing.from_list(store.facts["packing"])
    columns, vectors = probe_vectors(probes)
    count = len(probes)
    near = [
        [int(x, 16) for x in store.nearest(c, v.numpy(), CANDIDATES, ["image"])["image"].to_pylist()]
        for c, v in zip(columns, vectors, strict=True)
    ]
    recall = np.zeros(count)
    for column in set(columns):
        rows = store.rows([column, "image"])
        number = np.array([int(x, 16) for x in rows["image"].to_pylist()])
        kept = np.frombuffer(rows[column].combine_chunks().values.buffers()[1], np.float16)
        matrix = torch.from_numpy(kept.reshape(len(number), -1).copy())
        for i in (i for i, name in enumerate(columns) if name == column):
            scores = torch.cat([part.float() @ vectors[i] for part in matrix.split(100_000)])
            exact = number[scores.topk(min(CANDIDATES, len(number))).indices.numpy()]
            recall[i] = len(set(exact) & set(near[i])) / len(exact)

    best, who = torch.full((count,), -torch.inf), torch.zeros(count, dtype=torch.long)
    for batch in store.batches(["image", "template"], FACES_AT_A_TIME):
        number = torch.tensor([int(x, 16) for x in batch["image"].to_pylist()])
        faces = packing.unpack_column(batch["template"]).dequantised()
        top, row = model.compare_all(probes, faces)["fused"].max(1)
        who = torch.where(top > best, number[row], who)
        best = torch.maximum(best, top)
    everybody = who.numpy()
    named = [int(gallery.candidates(probes[i : i + 1])[0].image, 16) for i in range(count)]
    return {
        "recall_of_nearest_vectors": float(recall.mean()),
        "person_among_candidates": float(np.mean([t in n for t, n in zip(truth, near, strict=True)])),
        "best_of_everybody_among_candidates": float(
            np.mean([t in n for t, n in zip(everybody, near, strict=True)])
        ),
        "person_named_first": float(np.mean(np.array(named) == truth)),
        "person_named_first_by_everybody": float(np.mean(everybody == truth)),
    }


class _People:
    """Makes people by number: the same number is the same person."""

    def __init__(self, model: Model, file: Path | None) -> None:
        self.model = model
        if file is not None:
            stored = load(file)
            stored.need_model(model)
            source = stored.templates[: min(len(stored.paths), SOURCES)].dequantised()
            if len(source) < 50:
                raise OamlError(f"{file}: {len(source)} faces are too few to make people of; give 50 or more")
        else:
            like = model.extract(torch.zeros(1, 3, FACE_SIZE, FACE_SIZE))
            cell_embeddings = torch.randn(SOURCES, *like.cell_embeddings.shape[1:])
            raw = cell_embeddings.sum(1)
            local = F.normalize(torch.randn(SOURCES, *like.local.shape[1:]), dim=1)
            shown = torch.ones(SOURCES, *like.visibility.shape[1:])
            source = Templates(F.normalize(raw, dim=1), raw.norm(dim=1), shown, local, cell_embeddings)
        raw = source.embedding * source.norm[:, None]
        self.shapes = [raw[:1].shape, source.local[:1].shape, source.cell_embeddings[:1].shape]
        flat = [x.flatten(1) for x in (raw, source.local, source.cell_embeddings)]
        self.mean = torch.cat([x.mean(0) for x in flat])
        self.faces = torch.cat(flat, 1) - self.mean
        self.grid = source.visibility.shape[2:]

    def enrolled(self, numbers: range) -> Templates:
        """The image of each that is in the gallery."""
        return self._templates(self._deviations(np.array(numbers)), torch.ones(len(numbers), 1, *self.grid))

    def probes(self, numbers: np.ndarray, kind: str) -> Templates:
        """Another image of each, with an occluder of this kind."""
        rest = (1 - SIMILARITY**2) ** 0.5
        made = SIMILARITY * self._deviations(numbers) + rest * self._deviations(numbers + 10**9)
        if kind == UNOCCLUDED:
            return self._templates(made, torch.ones(len(numbers), 1, *self.grid))
        generator = torch.Generator().manual_seed(2)
        shown = PATTERNS[VISIBLE_CELLS[kind]].view(1, 1, *GRID).repeat(len(numbers), 1, 1, 1)
        face, occluder = (
            self._templates(x, torch.ones(len(numbers), 1, *self.grid))
            for x in (made, self._deviations(numbers + 2 * 10**9))
        )
        cells = shown.flatten(1)[..., None]
        on_map = F.interpolate(shown, self.grid)
        cell_embeddings = face.cell_embeddings * cells + occluder.cell_embeddings * (1 - cells)
        raw_face, raw_occluder = (x.embedding * x.norm[:, None] for x in (face, occluder))
        raw = shown.mean() * raw_face + (1 - shown.mean()) * raw_occluder
        noise = 0.1 * torch.rand(on_map.shape, generator=generator)
        return Templates(
            embedding=F.normalize(raw, dim=1),
            norm=raw.norm(dim=1),
            visibility=(on_map - noise).abs(),
            local=face.local * on_map + occluder.local * (1 - on_map),
            cell_embeddings=cell_embeddings,
        )

    def _deviations(self, numbers: np.ndarray) -> Tensor:
        """Deviations of these people from the mean face, all fields in one row: [N,...]."""
        rows = np.stack(
            [np.random.default_rng(int(n)).integers(0, len(self.faces), PARENTS) for n in numbers]
        )
        scale = PARENTS**-0.5
        return scale * sum((self.faces[rows[:, i]] for i in range(1, PARENTS)), self.faces[rows[:, 0]])

    def _templates(self, made: Tensor, visibility: Tensor) -> Templates:
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        raw, local, cell_embeddings = (
            x.reshape(-1, *shape[1:])
            for x, shape in zip((made + self.mean).split(sizes, 1), self.shapes, strict=True)
        )
        norm = raw.norm(dim=1)
        return Templates(
            F.normalize(raw, dim=1), norm, visibility, F.normalize(local, dim=1), cell_embeddings
        )


def _forget(path: Path) -> None:
    """Drop a file from the page cache of the system, where that is possible."""
    if hasattr(os, "posix_fadvise"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
