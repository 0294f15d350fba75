"""Searching a gallery of many people: how long it takes, and what the first stage loses against comparing with everybody.

No data set of a million people is at hand, so people are made of a few real faces (or, without a file of templates, of random
ones): a person is the mean of all faces plus what four of them add to it, halved, which keeps the spread and the relations between
numbers. Another picture of a person is .7 of what makes them and .71 of what makes somebody else, about as alike as two
photographs are. A covered picture shows the person in the cells that a niqab, a mask or sunglasses leave, and a third person in
the others; its map is right to within .1. What covers do on real faces is in `studies/README.md`.
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

PARENTS, ALIKE = 4, 0.7
SOURCES = 512  # real or random faces that people are made of
BLOCK = 2000  # faces made and written at a time
SEARCHES = 200  # timed
JUDGED = 20_000_000  # pairs compared by the fused score at most, to judge what a search found
KINDS = {"bare": "all", "niqab": "eyes", "mask": "upper", "sunglasses": "around"}


def run(
    faces: int = 10_000,
    model: str | None = None,
    templates: Path | None = None,
    keep: Path | None = None,
) -> dict[str, object]:
    """Milliseconds of a search, recall of its stages, and what the gallery takes.

    Args:
        faces: people enrolled, one face each.
        model: compares templates; by default random weights.
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
    for start in range(0, count, BLOCK):
        numbers = range(start, min(start + BLOCK, count))
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
    probes = {kind: people.probes(asked, kind) for kind in KINDS}
    spent, worked = [], []
    for i in range(SEARCHES):  # of all kinds in turn
        probe = list(probes.values())[i % len(KINDS)][i : i + 1]
        begun, busy = time.perf_counter(), time.process_time()
        gallery.candidates(probe)
        spent.append(1e3 * (time.perf_counter() - begun))
        worked.append(1e3 * (time.process_time() - busy))
    judged = min(SEARCHES // 2, max(5, JUDGED // count // len(KINDS)))
    found = {
        kind: _judge(gallery, store, people.model, probes[kind][:judged], asked[:judged]) for kind in KINDS
    }
    return {
        "faces": count,
        "index": count >= INDEXED_FROM,
        "threads": torch.get_num_threads(),
        "gigabytes": sum(path.stat().st_size for path in files) / 1e9,
        "first_ms": spent[: len(KINDS)],  # the first of each kind reads an index of its own
        "p50_ms": float(np.percentile(spent, 50)),
        "p99_ms": float(np.percentile(spent, 99)),  # of all searches, with the first ones
        "p99_later_ms": float(np.percentile(spent[len(KINDS) :], 99)),
        "processor_p50_ms": float(np.percentile(worked, 50)),  # of all threads: less on a machine of its own
        "probes_judged": judged,
        "kinds": found,
    }


def _judge(
    gallery: Gallery, store: Store, model: Model, probes: Templates, truth: np.ndarray
) -> dict[str, float]:
    """Shares of probes: what the first stage keeps, and who is named first by both stages and by comparing with everybody."""
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
    for batch in store.batches(["image", "template"], BLOCK):
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
    """People by number, each as often as asked for."""

    def __init__(self, model: Model, file: Path | None) -> None:
        self.model = model
        if file is not None:
            found = load(file)
            found.need_model(model)
            source = found.templates[: min(len(found.paths), SOURCES)].dequantised()
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
        """The picture of each that is in the gallery."""
        return self._templates(self._made(np.array(numbers)), torch.ones(len(numbers), 1, *self.grid))

    def probes(self, numbers: np.ndarray, kind: str) -> Templates:
        """Another picture of each, bare or covered."""
        rest = (1 - ALIKE**2) ** 0.5
        made = ALIKE * self._made(numbers) + rest * self._made(numbers + 10**9)
        if kind == "bare":
            return self._templates(made, torch.ones(len(numbers), 1, *self.grid))
        generator = torch.Generator().manual_seed(2)
        shown = PATTERNS[KINDS[kind]].view(1, 1, *GRID).repeat(len(numbers), 1, 1, 1)
        bare, cover = (
            self._templates(x, torch.ones(len(numbers), 1, *self.grid))
            for x in (made, self._made(numbers + 2 * 10**9))
        )
        cells = shown.flatten(1)[..., None]
        wide = F.interpolate(shown, self.grid)
        cell_embeddings = bare.cell_embeddings * cells + cover.cell_embeddings * (1 - cells)
        share = shown.mean()
        raw = (
            share * bare.embedding * bare.norm[:, None] + (1 - share) * cover.embedding * cover.norm[:, None]
        )
        noise = 0.1 * torch.rand(wide.shape, generator=generator)
        return Templates(
            embedding=F.normalize(raw, dim=1),
            norm=raw.norm(dim=1),
            visibility=(wide - noise).abs(),
            local=bare.local * wide + cover.local * (1 - wide),
            cell_embeddings=cell_embeddings,
        )

    def _made(self, numbers: np.ndarray) -> Tensor:
        """What makes these people, without the mean: flat, [N,...]."""
        rows = np.stack(
            [np.random.default_rng(int(n)).integers(0, len(self.faces), PARENTS) for n in numbers]
        )
        signs = PARENTS**-0.5
        return signs * sum((self.faces[rows[:, i]] for i in range(1, PARENTS)), self.faces[rows[:, 0]])

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
    """Take a file out of the memory of the system, where that is possible."""
    if hasattr(os, "posix_fadvise"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
