"""What one change of a large gallery costs: seconds of an enrolment, a renaming and a deletion among many random faces.

    .venv/bin/python script/stress/changes.py [--faces 1000000] [--keep FOLDER] [--times 5]

A million faces take 15 GB on the disk: 2,000 random ones under ever new names, since no change compares them. A gallery that FOLDER
holds already is used as it is. Each change is one call of `oaml.Gallery` and ends when it is on the disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import torch

from oaml.datasets.drawn import draw_face
from oaml.gallery import Gallery
from oaml.gallery.folder import Entry
from oaml.gallery.gallery import create
from oaml.gallery.rows import Packing, table
from oaml.gallery.store import ROWS, Store
from oaml.inference import extract
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.recognition.recognise import Recogniser
from oaml.template import Templates
from oaml.templates.file import model_id
from oaml.templates.quantised import QuantisedTemplates

MADE = 2000


def fill(place: Path, model: Model, count: int) -> None:
    """A gallery of so many random faces, one a person."""
    like = extract(model, [draw_face(0, 0)], 1)
    random = {f.name: torch.randn(MADE, *getattr(like, f.name).shape[1:]) for f in fields(Templates)}
    random["visibility"], random["norm"] = random["visibility"].sigmoid(), random["norm"].abs()
    faces = QuantisedTemplates.of(Templates(**random))
    packing, store = Packing.of(faces), Store(place)
    create(store, packing, model_id(model), "benchmark")
    for start in range(
        0, count, ROWS
    ):  # as many as a file of the gallery holds: nothing is put together later
        end = min(start + ROWS, count)
        rows = []
        for first in range(start, end, MADE):
            entries = [
                Entry(f"person {i:08d}", f"{i:064x}", "", "") for i in range(first, min(first + MADE, end))
            ]
            rows.append(table(entries, faces[: len(entries)], [None] * len(entries), packing))
        store.add(pa.concat_tables(rows))
    store.tidy()


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="folder of the gallery; by default a temporary one")
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Model(ModelConfig(NetConfig("mobilefacenet", 128))).eval()
    with tempfile.TemporaryDirectory() as folder:
        place = given.keep or Path(folder) / "gallery"
        if not place.exists():
            begun = time.perf_counter()
            fill(place, model, given.faces)
            print(f"filled in {time.perf_counter() - begun:.0f} s")
        gallery = Gallery(place, Recogniser(model, None, "benchmark"))
        print(f"{Store(place).count():,} faces", flush=True)
        faces = [draw_face(1, shot) for shot in range(given.times)]
        calls = {
            "enrolment": lambda shot: gallery.enroll("Ann", faces[shot]),
            "renaming": lambda shot: gallery.rename("Ann", "Ben"),
            "deletion": lambda shot: gallery.delete("Ben"),
        }
        spent: dict[str, list[str]] = {name: [] for name in calls}
        for shot in range(given.times):
            for name, call in calls.items():
                begun, busy = time.perf_counter(), time.process_time()
                call(shot)
                spent[name].append(
                    f"{time.perf_counter() - begun:.2f} ({time.process_time() - busy:.2f} of the processor)"
                )
        for name, seconds in spent.items():
            print(f"{name}, seconds: {', '.join(seconds)}")


if __name__ == "__main__":
    main()
