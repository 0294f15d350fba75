"""IJB-C at its size: how long `oaml evaluate --protocol ijbc` takes, phase by phase, and how much memory.

`python studies/ijb_size.py MODEL --data ../shared/data/lfw --work /tmp/ijbc --scale 1`

The set is made of repeated pictures: every face of DATA (a folder per person, aligned) lies in a larger picture, as a loose crop
does, and these are linked under as many names as IJB-C has images. Lists are shuffled. Numbers of images, templates, pairs, gallery
and probe templates are those of IJB-C times the scale. A run that was killed goes on; then the times are those of the rest, and
it is said so.

Rates are by processor time, so that other work on the machine moves them less; cores of one's own are faster still. A gallery below
full size is searched in too small blocks to tell its rate: that is then measured by repeated templates and used instead.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from oaml.evaluation import ijb, report, template_lists
from oaml.inference import load_model, score_all
from oaml.kernels import Precision
from oaml.photographs.align import STANDARD_LANDMARKS
from oaml.support.files import read_image
from oaml.support.progress import progress
from oaml.templates.embed import FastExtractor

IMAGES, TEMPLATES, GENUINE, IMPOSTOR = 469_375, 23_124, 19_557, 15_638_932
GALLERIES, PROBES = {"G1": 1_772, "G2": 1_759}, 19_593
SIDE, LEFT, TOP = 180, 34, 40
"""A loose crop, and where the aligned face lies in it."""


@dataclass
class Phase:
    """What was done of one kind of work, and what it took."""

    count: int = 0
    """Of what the phase works on."""
    whole: int = 1
    """Of these at IJB-C's full size."""
    wall: float = 0
    processor: float = 0
    memory: float = 0
    """The most that the process held meanwhile, bytes; without pages of files, which the system takes back when it needs them."""


def build(data: Path, work: Path, scale: float) -> None:
    """Write the set; what is there already stays."""
    done = work / f"complete-{scale}"
    if done.exists():
        return
    rng = np.random.default_rng(0)
    meta, crops = work / "meta", work / "loose_crop"
    for folder in (meta, crops, work / "pictures"):
        folder.mkdir(parents=True, exist_ok=True)
    people = [folder for folder in sorted(data.iterdir()) if folder.is_dir()]
    sources: list[list[Path]] = []
    with progress("loose crops", len(people)) as advance:
        for person, folder in enumerate(people):
            sources.append([])
            for number, file in enumerate(sorted(folder.glob("*.*g"))):
                larger = np.zeros((SIDE, SIDE, 3), np.uint8)
                larger[TOP : TOP + 112, LEFT : LEFT + 112] = read_image(file, resize=True)
                sources[-1].append(work / "pictures" / f"{person}_{number}.jpg")
                Image.fromarray(larger).save(sources[-1][-1], quality=95)
            advance(1)
    images, templates = max(40, round(IMAGES * scale)), max(20, round(TEMPLATES * scale))
    owner = rng.integers(0, min(len(people), max(4, templates // 6)), templates)
    of_image = np.concatenate([np.arange(templates), rng.integers(0, templates, images - templates)])
    rng.shuffle(of_image)
    points = " ".join(f"{x:.3f}" for x in (STANDARD_LANDMARKS + np.array([LEFT, TOP])).ravel())
    with (
        (meta / "ijbc_face_tid_mid.txt").open("w") as faces,
        (meta / "ijbc_name_5pts_score.txt").open("w") as scores,
        progress("links", images) as advance,
    ):
        for i, template in enumerate(of_image.tolist()):
            files = sources[owner[template]]
            link = crops / f"{i}.jpg"
            if not link.exists():
                os.link(files[i % len(files)], link)
            faces.write(f"{i}.jpg {template} {1_000_000 + template * 50 + i % 5}\n")
            scores.write(f"{i}.jpg {points} {rng.uniform(0.5, 1):.3f}\n")
            if i % 1000 == 0:
                advance(1000)
    _write_pairs(meta / "ijbc_template_pair_label.txt", owner, rng, scale)
    order = rng.permutation(templates)
    start = 0
    for name, size in {**{f"gallery_{g}": n for g, n in GALLERIES.items()}, "probe_mixed": PROBES}.items():
        chosen = order[start : start + max(3, round(size * scale))]
        start += len(chosen)
        rows = "".join(f"{t},{owner[t]}\n" for t in chosen.tolist())
        (meta / f"ijbc_1N_{name}.csv").write_text(f"TEMPLATE_ID,SUBJECT_ID\n{rows}")
    done.touch()


def _write_pairs(file: Path, owner: np.ndarray, rng: np.random.Generator, scale: float) -> None:
    """Genuine and impostor pairs in a random order."""
    by_person = [np.flatnonzero(owner == person) for person in np.unique(owner)]
    several = [rows for rows in by_person if len(rows) > 1]
    genuine = np.array(
        [
            rng.choice(several[i], 2, replace=False)
            for i in rng.integers(0, len(several), round(GENUINE * scale) + 1)
        ]
    )
    impostor = rng.integers(0, len(owner), (round(IMPOSTOR * scale), 2))
    impostor = impostor[owner[impostor[:, 0]] != owner[impostor[:, 1]]]
    rows = np.concatenate([genuine, impostor])
    labelled = np.column_stack([rows, np.arange(len(rows)) < len(genuine)])
    with file.open("w") as opened, progress("pairs", len(rows)) as advance:
        for part in np.array_split(labelled[rng.permutation(len(rows))], max(1, len(rows) // 100_000)):
            opened.write("".join(f"{a} {b} {s}\n" for a, b, s in part.tolist()))
            advance(len(part))


# --- measuring ---


class Watch:
    """Times phases of the product by wrapping its functions, and looks at the memory meanwhile."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self.file_pages = 0.0
        self.now: list[str] = []
        threading.Thread(target=self.look, daemon=True).start()

    def look(self) -> None:
        while True:
            held = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            anonymous, of_files = (float(held[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
            self.file_pages = max(self.file_pages, of_files)
            for name in self.now[-1:]:
                self.phases[name].memory = max(self.phases[name].memory, anonymous)
            time.sleep(0.1)

    def wrap(self, owner: Any, name: str, phase: str, count: Callable[..., int], whole: int) -> None:
        """Time a function in all threads."""
        inner = getattr(owner, name)

        def timed(*words: Any, **named: Any) -> Any:
            part = self.phases.setdefault(phase, Phase(0, whole))
            self.now.append(phase)
            wall, processor = time.perf_counter(), time.process_time()
            try:
                return inner(*words, **named)
            finally:
                self.now.remove(phase)
                part.wall += time.perf_counter() - wall
                part.processor += time.process_time() - processor
                part.count += count(*words, **named)

        setattr(owner, name, timed)

    def wrap_threads(self, owner: Any, name: str, phase: str, count: Callable[..., int], whole: int) -> None:
        """Time a function that runs in several threads at once: by their own processor time."""
        inner, lock = getattr(owner, name), threading.Lock()
        self.phases[phase] = Phase(0, whole)

        def timed(*words: Any, **named: Any) -> Any:
            processor = time.thread_time()
            result = inner(*words, **named)
            with lock:
                self.phases[phase].processor += time.thread_time() - processor
                self.phases[phase].count += count(*words, **named)
            return result

        setattr(owner, name, timed)


def watched() -> Watch:
    """The phases of the command."""
    import oaml.photographs.align as align
    import oaml.support.files as files

    watch = Watch()
    pairs = GENUINE + IMPOSTOR
    searched = sum(GALLERIES.values()) * PROBES
    watch.wrap(template_lists, "read_lists", "lists", lambda *_: 1, 1)
    watch.wrap_threads(files, "read_photograph", "  of that, reading", lambda *_: 1, IMAGES)
    watch.wrap_threads(align, "warp", "  of that, aligning", lambda *_, **__: 1, IMAGES)
    watch.wrap_threads(
        FastExtractor, "__call__", "  of that, the network", lambda _, images: len(images), IMAGES
    )
    watch.wrap(ijb, "_embedded", "embedding", lambda _, lists, *__: len(lists.names), IMAGES)
    watch.wrap(ijb, "_templates", "pooling", lambda _, lists: len(lists.names), IMAGES)
    watch.wrap(ijb, "_scored", "scores of 1:1", lambda _, pairs, *__: len(pairs), pairs)
    watch.wrap(ijb, "_verified", "rates of 1:1", lambda scores, _: len(scores), pairs * 9)
    watch.wrap(
        ijb, "_identified", "1:N", lambda _, probes, gallery, *__: len(probes[0]) * len(gallery[0]), searched
    )
    return watch


def table(watch: Watch, scale: float, cores: int) -> Iterator[str]:
    """What was measured, and what it makes of the whole set."""
    yield f"| phase | done | wall s | processor s | a second and core | peak memory | all of IJB-C, min on {cores} cores |"
    yield "| --- " * 7 + "|"
    total = 0.0
    for name, part in watch.phases.items():
        if not part.count:
            continue
        factor = part.whole / part.count if part.whole > 1 else 1 / scale
        minutes = (
            part.processor * factor / 60 / (cores if name not in ("lists", "pooling", "rates of 1:1") else 1)
        )
        total += 0 if name.startswith(" ") else minutes
        rate = "" if part.whole == 1 else f"{part.count / max(part.processor, 1e-9):,.0f}"
        wall, memory = (
            f"{part.wall:.1f}" if part.wall else "",
            f"{part.memory / 1e9:.2f} GB" if part.memory else "",
        )
        done, processor = f"{part.count:,}", f"{part.processor:.1f}"
        if "full size" in name:  # measured apart
            done = processor = ""
        yield f"| {name} | {done} | {wall} | {processor} | {rate} | {memory} | {minutes:.1f} |"
    yield f"| all | | | | | pages of files: {watch.file_pages / 1e9:.2f} GB | {total:.0f} |"


def search_rate(model: str, precision: Precision) -> float:
    """Pairs a second and core of 1:N, by a gallery of full size made of a few templates."""
    loaded = load_model(model, "cpu")
    faces = loaded.extract(torch.rand(8, 3, 112, 112))
    probes, gallery = np.arange(ijb.PROBES_A_TIME) % 8, np.arange(GALLERIES["G1"]) % 8
    with threads(1):
        before = time.process_time()
        for _ in range(2):
            score_all(loaded, faces, probes, faces, gallery, precision=precision)
        return 2 * len(probes) * len(gallery) / (time.process_time() - before)


def ir_101(cores: int) -> str:
    """What the network of an IR-101 takes, by a dozen faces of random weights."""
    from oaml.model import Model, ModelConfig
    from oaml.net import NetConfig
    from oaml.qaconv import QAConvConfig

    model = Model(ModelConfig(NetConfig("ir_101", 512), QAConvConfig(adapter=128))).eval()
    extractor, faces = FastExtractor(model, bfloat16=False), np.zeros((4, 112, 112, 3), np.uint8)
    extractor(faces)
    before = time.process_time()
    for _ in range(3):
        extractor(faces)
    seconds = (time.process_time() - before) / 12
    return (
        f"IR-101: {1 / seconds:.1f} faces a second and core, {IMAGES * seconds / 3600 / cores:.1f} hours on {cores} cores for the "
        "network of all images (float32, no mirror images)"
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=0.01)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    words = parser.parse_args()
    folder = words.work / f"{words.scale:g}"
    build(words.data, folder, words.scale)
    out = folder / f"out-{words.precision}"
    begun = any(out.glob("ijbc*"))
    watch = watched()
    with threads(words.cores):
        before = time.perf_counter()
        report.evaluate(
            words.model, protocol="ijbc", data=folder, out=out, precision=words.precision, bootstrap=0
        )
        taken = time.perf_counter() - before
    search = watch.phases["1:N"]
    if words.scale < 1:
        processor = search.whole / search_rate(words.model, words.precision)
        watch.phases["1:N, a gallery of full size"] = Phase(search.whole, search.whole, 0, processor)
        del watch.phases["1:N"]
    print(
        f"\nscale {words.scale:g}, {words.precision}, {taken / 60:.1f} minutes"
        + ", the rest of a run, so that the last column is too small" * begun
        + "\n"
    )
    print("\n".join(table(watch, words.scale, words.cores)))
    print("\n" + ir_101(words.cores))


if __name__ == "__main__":
    main()
