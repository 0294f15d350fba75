"""Are strangers told apart when little is seen of both? `python studies/impostors.py MODEL [MODEL ...] --data ../shared/data`.

On people kept for a report, none of whom took part in any fit. Impostor pairs of one photograph each of `--people` of them, both
occluded in style b or both treated in the same extreme way, of other sizes than the model's calibration was fitted on
(`oaml.adaptation.extremes`) or of kinds that it doesn't know: how many of those that `oaml verify` decides (both crops usable,
enough shown by both) are accepted at the model's thresholds. And what it costs: genuine pairs accepted at the same thresholds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from people import reported

from oaml.datasets.people import PeopleFolder, group_of
from oaml.inference import extract, load_model, score_all
from oaml.model import Model
from oaml.occluders import KINDS, Occluder, occluder_rng
from oaml.photographs.usable import LEAST_USABLE, usable_each
from oaml.support.files import FACE_SIZE, write_file
from oaml.template import LEAST_SHARED, Templates
from oaml.templates.file import model_id
from oaml.visibility import cell_visibility

FARS = ("0.01", "0.001")
GROUPS = 4
"""Groups of people who wear one and the same occluder."""
Way = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Faces = tuple[Templates, np.ndarray]
"""Templates, and whether each crop is usable."""
SIZES: dict[
    str, tuple[Callable[[np.ndarray, float, np.random.Generator], np.ndarray], tuple[float, ...]]
] = {}
"""Way -> what it does, with every size that is tried."""
Y, X = np.mgrid[:FACE_SIZE, :FACE_SIZE]


def _way(*sizes: float) -> Callable[[Callable[[np.ndarray, float, np.random.Generator], np.ndarray]], None]:
    def add(function: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]) -> None:
        SIZES[function.__name__.replace("_", " ")] = function, sizes

    return add


def _where(face: np.ndarray, shown: np.ndarray, value: float | np.ndarray = 0.0) -> np.ndarray:
    return np.where(shown[..., None], face, value).astype(np.uint8)


def _square(side: float) -> np.ndarray:
    return (np.maximum(abs(Y - 55.5), abs(X - 55.5)) < side / 2) & (side > 0)


@_way(45, 58, 70, 80, 89, 97, 112)
def black_square(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _where(face, ~_square(size))


@_way(60, 84)
def brown_square(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _where(face, ~_square(size), np.array((110, 80, 60)))


@_way(76)
def square_of_noise(face: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    return _where(face, ~_square(size), rng.uniform(0, 255, face.shape))


@_way(44, 56)
def upper_rows(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _where(face, size > Y)


@_way(12, 24, 46)
def lower_rows(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _where(face, FACE_SIZE - size <= Y)


@_way(44, 56)
def right_side(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _where(face, FACE_SIZE - size <= X)


@_way(18, 26)
def eyes_alone(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _where(face, abs(Y - 51) < size / 2)


@_way(26, 38)
def through_a_hole(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _where(face, np.hypot(Y - 60, X - 55.5) < size)


@_way(7, 14)
def stripes(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _where(face, Y // size % 2 == 1)


@_way(0.04, 0.08, 0.13, 0.19, 0.26)
def brightness(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return np.rint(face * size).astype(np.uint8)


@_way(0.1, 0.18, 0.3)
def contrast(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return np.rint((face - 128.0) * size + 128).astype(np.uint8)


@_way(0.7, 0.85)
def fog(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return np.rint(face * (1 - size) + 235 * size).astype(np.uint8)


@_way(2.5, 5)
def glare(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return (face * size).clip(0, 255).astype(np.uint8)


@_way(2, 3)
def few_colours(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return (np.rint(face / 255 * (size - 1)) / (size - 1) * 255).astype(np.uint8)


@_way(0)
def grey_negative(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return 255 - np.repeat(face.mean(2, keepdims=True), 3, 2).astype(np.uint8)


@_way(0, 2)
def one_colour(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return face * (np.arange(3) == size).astype(np.uint8)


@_way(4, 8, 10, 12, 16, 20, 28)
def pixels(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _reduced(face, int(size), cv2.INTER_CUBIC)


@_way(8, 11, 16, 22, 32)
def mosaic(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return _reduced(face, int(size), cv2.INTER_NEAREST)


def _reduced(face: np.ndarray, side: int, smooth: int) -> np.ndarray:
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (FACE_SIZE, FACE_SIZE), interpolation=smooth), np.uint8)


@_way(2.6, 3.4, 5)
def blur(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(face, (0, 0), size), np.uint8)


@_way(13, 21, 29)
def motion(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return np.asarray(cv2.filter2D(face, -1, np.eye(int(size)) / size), np.uint8)


@_way(15, 25, 36, 60)
def noise(face: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    return (face + rng.normal(0, size, face.shape)).clip(0, 255).astype(np.uint8)


@_way(0.1, 0.3)
def salt_and_pepper(face: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    return _where(face, rng.random(face.shape[:2]) >= size, 255 * rng.integers(0, 2, (*face.shape[:2], 1)))


@_way(1, 3, 6)
def jpeg_quality(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    coded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, int(size)])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


@_way(90, 180, 270)
def turned(face: np.ndarray, size: float, _: np.random.Generator) -> np.ndarray:
    return np.rot90(face, int(size) // 90).copy()


class Study:
    """Crops of people kept for a report, embedded once for models that make the same templates."""

    def __init__(self, data: Path, count: int, cache: Path | None) -> None:
        self.people = PeopleFolder(data / "lfw", reported)
        images: dict[int, list[int]] = {}
        for image, person in enumerate(self.people.labels.tolist()):
            images.setdefault(person, []).append(image)
        self.one = [found[0] for found in images.values()][:count]
        """An image each of different people."""
        self.two = np.array([found[:2] for found in images.values() if len(found) > 1])
        """Two images each of different people."""
        self.occluder = Occluder(0, "b")
        self.cache = cache
        self.known: dict[tuple[str, str], Faces] = {}

    def faces(self, model: Model, name: str, crops: Callable[[], list[np.ndarray]]) -> Faces:
        key = model_id(model), name
        if key not in self.known:
            file = (
                None
                if self.cache is None
                else self.cache / f"{len(self.one)}-{'-'.join(key)}.pt".replace(" ", "_")
            )
            if file is not None and file.exists():
                fields, sure = torch.load(file, weights_only=True)
                self.known[key] = Templates(**fields), sure.numpy()
                return self.known[key]
            some = crops()
            self.known[key] = extract(model, some, len(some)), np.array(usable_each(some)) >= LEAST_USABLE
            if file is not None:
                fields, sure = vars(self.known[key][0]), torch.from_numpy(self.known[key][1])
                write_file(file, lambda path: torch.save((fields, sure), path))
        return self.known[key]

    def treated(self, model: Model, name: str, way: Way) -> Faces:
        return self.faces(
            model,
            name,
            lambda: [way(self.people.image(i), np.random.default_rng([1, i])) for i in self.one],
        )

    def occluded(self, model: Model, kind: str, images: np.ndarray | list[int], name: str) -> Faces:
        def crops() -> list[np.ndarray]:
            faces = [(self.people.image(int(i)), self.people.names[int(i)]) for i in images]
            if kind == "unoccluded":
                return [face for face, _ in faces]
            if name == "one occluder":
                return [
                    self.occluder.draw(
                        face, kind, occluder_rng(1, kind, f"group {group_of(path, GROUPS)}")
                    ).image
                    for face, path in faces
                ]
            return [self.occluder(face, kind, path).image for face, path in faces]

        return self.faces(model, f"{name} {kind}", crops)

    def impostors(self, model: Model) -> dict[str, np.ndarray]:
        """Class -> fused scores of the impostor pairs that are decided."""
        found = {}
        kinds = ("unoccluded", *KINDS)
        for kind in kinds:
            faces = self.occluded(model, kind, self.one, "one image")
            found[f"both {kind}"] = decided(model, faces, faces, once=True)
        for kind, other in zip(KINDS, (*KINDS[1:], KINDS[0]), strict=True):
            a, b = (self.occluded(model, x, self.one, "one image") for x in (kind, other))
            found[f"{kind}, {other}"] = decided(model, a, b)
        for kind in KINDS:
            faces = self.occluded(model, kind, self.one, "one occluder")
            group = np.array([group_of(self.people.names[i], GROUPS) for i in self.one])
            found[f"one {kind} for many"] = decided(model, faces, faces, once=True, group=group)
        for name, (function, sizes) in SIZES.items():
            for size in sizes:
                title = f"{name} {size:g}" if len(sizes) > 1 else name
                faces = self.treated(model, title, lambda face, rng, f=function, s=size: f(face, s, rng))
                found[title] = decided(model, faces, faces, once=True)
        return found

    def genuine(self, model: Model) -> dict[str, np.ndarray]:
        """Class -> fused scores of genuine pairs, -inf where nothing is decided."""
        found = {}
        kinds = ("unoccluded", *KINDS)
        for a, b in [("unoccluded", kind) for kind in kinds] + [(kind, kind) for kind in KINDS]:
            x = self.occluded(model, a, self.two[:, 0], "first of two")
            y = self.occluded(model, b, self.two[:, 1], "second of two")
            rows = np.arange(len(self.two))
            scores, shown = score(model, x, y)
            kept = shown[rows, rows]
            found[f"{a}, {b}"] = np.where(kept, scores[rows, rows], -np.inf)
        return found


def score(model: Model, a: Faces, b: Faces) -> tuple[np.ndarray, np.ndarray]:
    """Fused scores [P,G], and which pairs are decided."""
    scores = score_all(model, a[0], np.arange(len(a[0])), b[0], np.arange(len(b[0])), plain=False)["fused"]
    cells = [cell_visibility(x.visibility.double()) for x, _ in (a, b)]
    shown = (cells[0] @ cells[1].T / cells[0].shape[1]).numpy() >= LEAST_SHARED
    return scores, shown & a[1][:, None] & b[1]


def decided(
    model: Model, a: Faces, b: Faces, once: bool = False, group: np.ndarray | None = None
) -> np.ndarray:
    """Fused scores of the decided pairs of different people; row i is one person on both sides."""
    scores, shown = score(model, a, b)
    shown &= np.triu(shown, 1) if once else ~np.eye(len(shown), dtype=bool)
    if group is not None:
        shown &= group[:, None] == group
    return scores[shown]


def percent(accepted: int, of: int) -> str:
    return f"{100 * accepted / of:.2f} % ({accepted:,})" if of else "-"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--people", type=int, default=250)
    parser.add_argument("--cache", type=Path, help="folder of templates, to go on after an interruption")
    given = parser.parse_args()
    if given.cache is not None:
        given.cache.mkdir(parents=True, exist_ok=True)
    study, models = Study(given.data, given.people, given.cache), [load_model(name) for name in given.models]
    thresholds = [[model.config.thresholds[far] for far in FARS] for model in models]
    for name, values in zip(given.models, thresholds, strict=True):
        print(f"{name}: thresholds of {' and '.join(FARS)} are {' and '.join(f'{x:.2f}' for x in values)}")
    heads = " | ".join(f"{name} at {far}" for name in given.models for far in FARS)
    bar = " | ---" * (len(models) * len(FARS))

    print(f"\n| impostor pairs | decided | {heads} |\n| --- | ---{bar} |")
    found = [study.impostors(model) for model in models]
    for kind in found[0]:
        cells = [
            percent(int((by_class[kind] >= threshold).sum()), len(by_class[kind]))
            for by_class, values in zip(found, thresholds, strict=True)
            for threshold in values
        ]
        print(f"| {kind} | {len(found[0][kind]):,} | {' | '.join(cells)} |", flush=True)
    print(f"\n| genuine pairs | pairs | {heads} |\n| --- | ---{bar} |")
    found = [study.genuine(model) for model in models]
    for kind in found[0]:
        cells = [
            f"{(by_class[kind] >= threshold).mean():.3f}"
            for by_class, values in zip(found, thresholds, strict=True)
            for threshold in values
        ]
        print(f"| {kind} | {len(found[0][kind]):,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
