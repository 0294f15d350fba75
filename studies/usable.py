"""What is refused as no usable face: `python studies/usable.py --data ../shared/data --pictures FOLDER [--ship]`.

Fits the weights of `oaml.photographs.usable` and measures what they refuse. FOLDER holds pictures without people, as those of
Debian's tuxpaint-stamps-default do (animals, objects and drawings, in folders of these names). Everything is split in two: the
weights are fitted on people of LFW that may train (`split_name`) and on half of all other people and pictures, by the hash of their
names, under drawn occluders of style a; the table is about the other half, people kept for a report and occluders of style b.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import nonfaces
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from oaml.datasets.drawn import DrawnPeople
from oaml.datasets.people import PeopleFolder, split_name, split_of
from oaml.errors import OamlError
from oaml.inference import as_input
from oaml.occluders import KINDS, Occluder, load_mask_pictures
from oaml.photographs.refine import load_refiner
from oaml.photographs.subjects import find_subjects, load_detector
from oaml.photographs.usable import LEAST_USABLE, USABLE_WEIGHTS, refiner_map
from oaml.support.files import FACE_SIZE, read_image, write_file
from oaml.support.folders import list_images

Class = tuple[str, bool]
"""Name, and whether it is faces."""
Half = dict[Class, list[np.ndarray]]
IMAGES = 600
"""Of LFW, in either half."""
DECAY, FACES = 1e-3, 3.0
"""Weight of the squares of the normalised weights; how much all faces count beside all other crops."""
STAMPS = {"animals": "animals", "symbols": "drawings"}
CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {}
"""What becomes of a face before anybody sees it, and leaves it usable."""


def _change(function: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> None:
    CHANGES[function.__name__] = function


@_change
def small(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = int(rng.integers(38, 64))  # 38 are 12 pixels between the eyes, the least
    shrunk = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    smooth = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
    return cv2.resize(shrunk, (FACE_SIZE, FACE_SIZE), interpolation=smooth)


@_change
def blurred(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(face, (0, 0), rng.uniform(1, 2.5))


@_change
def dark(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rint(face * rng.uniform(0.25, 0.6)).astype(np.uint8)


@_change
def compressed(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    coded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(12, 40))])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


@_change
def noisy(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (face + rng.normal(0, rng.uniform(5, 20), face.shape)).clip(0, 255).astype(np.uint8)


@_change
def grey(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)


@_change
def shifted(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale, turn, (x, y) = np.exp(rng.normal(0, 0.08)), np.degrees(rng.normal(0, 0.08)), rng.normal(0, 4, 2)
    place = cv2.getRotationMatrix2D((55.5, 55.5), turn, scale) + np.array([(0, 0, x), (0, 0, y)])
    border = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REPLICATE
    return cv2.warpAffine(face, place, (FACE_SIZE, FACE_SIZE), borderMode=border)


def faces_of_lfw(half: Half, data: Path, report: bool) -> None:
    """Faces bare, occluded and changed, and the same of which nothing is left."""
    people = PeopleFolder(data / "lfw", lambda name: split_name(name) == ("report" if report else "train"))
    pictures = load_mask_pictures(data / "mask_templates") if report else []
    style = "b" if report else "a"
    drawn, other = Occluder(0, style), Occluder(1, style, retexture_share=1.0)
    chosen = np.random.default_rng(0).permutation(len(people))[:IMAGES]
    for count, i in enumerate(chosen.tolist()):
        face, name, rng = people.image(i), people.names[i], np.random.default_rng([report, i])
        change = list(CHANGES.values())[count % len(CHANGES)]
        put(half, "unoccluded", True, face)
        put(half, f"unoccluded {change.__name__}", True, change(face, rng))
        for number, kind in enumerate(KINDS):
            occluded = drawn(face, kind, name).image
            put(half, kind, True, occluded)
            if count % 3 == number % 3:
                put(half, f"{kind}, another material", True, other(face, kind, name).image)
                change = list(CHANGES.values())[int(rng.integers(len(CHANGES)))]
                put(half, f"occluded {change.__name__}", True, change(occluded, rng))
        if pictures:
            put(half, "mask picture", True, Occluder(0, style, pictures)(face, "mask", name).image)
        black, exact = count % 2 == 0, report or count % 2 == 0
        put(half, "all hidden", False, nonfaces.all_hidden(face, rng, black))
        put(half, "all hidden but 12 rows", False, nonfaces.all_but_rows(face, rng, black))
        put(half, "4 % of the brightness", False, nonfaces.dim(face, rng, 0.04 if exact else None))
        put(half, "4x4 pixels", False, nonfaces.coarse(face, rng, 4 if exact else None))


def other_faces(half: Half, data: Path, report: bool) -> None:
    """Real masks, real hats and glasses, photographs as a detector cuts them out, drawn people."""
    for path in list_images(data / "mfr2"):
        if split_of(path.parent.name) % 2 == report:
            put(half, "real masks (MFR2)", True, read_image(path))
    for path in list_images(data / "celebamask" / "images"):
        if split_of(path.name) % 2 == report:
            put(half, "CelebAMask-HQ", True, read_image(path, resize=True))
    detector = load_detector(data / "weights" / "yunet_n_320_320.onnx")
    for path in list_images(data / "masked_photographs"):
        if split_of(path.name) % 4 != report:  # some will do: looking for faces takes most of the time
            continue
        try:
            subjects = find_subjects(path, detector)
        except OamlError:  # no face found, or too small a one
            continue
        for subject in subjects[:5]:
            put(half, "masked photographs", True, subject.crop)
        boxes = [subject.face.box for subject in subjects if subject.face is not None]
        for part in beside(subjects[0].photograph, boxes, np.random.default_rng(split_of(path.name))):
            put(half, "photographs beside their faces", False, part)
    drawn = DrawnPeople(150, 2, seed=int(report))
    occluder = Occluder(int(report), "b" if report else "a")
    for i, name in enumerate(drawn.names):
        face = drawn[i][0]
        put(half, "drawn people", True, face)
        for kind in KINDS if not report else KINDS[i % 6 : i % 6 + 1]:
            put(half, "drawn people, occluded", True, occluder(face, kind, name).image)


def beside(photograph: np.ndarray, boxes: list[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Up to three squares of a photograph that are well away from all faces."""
    height, width = photograph.shape[:2]
    found = 0
    for _ in range(12):
        side = int(rng.uniform(40, max(41, min(height, width) / 2)))
        if side >= min(height, width) or found == 3:
            return
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        away = (
            x + side < left - 0.4 * wide
            or x > left + 1.4 * wide
            or y + side < top - 0.4 * high
            or y > top + 1.4 * high
            for left, top, wide, high in boxes
        )
        if all(away):
            found += 1
            part = photograph[y : y + side, x : x + side]
            smooth = cv2.INTER_AREA if side > FACE_SIZE else cv2.INTER_LINEAR
            yield cv2.resize(part, (FACE_SIZE, FACE_SIZE), interpolation=smooth)


def no_faces(half: Half, pictures: Path, report: bool) -> None:
    """Squares, walls, noise, text, and pieces of pictures without people."""
    rng = np.random.default_rng([9, report])
    for name, draw in (
        ("squares", nonfaces.square),
        ("walls", nonfaces.wall),
        ("noise", nonfaces.noise),
        ("text", nonfaces.text),
    ):
        for _ in range(400):
            put(half, name, False, draw(rng))
    for path in sorted(pictures.rglob("*.png")):
        parts = path.relative_to(pictures).parts
        if split_of(path.name) % 2 != report or parts[0] == "people" or "faces" in parts:
            continue
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if picture is None or picture.ndim != 3 or min(picture.shape[:2]) < 48 or picture.dtype != np.uint8:
            continue
        picture = picture[..., [2, 1, 0, *range(3, picture.shape[2])]]
        drawn = {"cartoon", "flags", "roadsigns"} & set(parts)
        kind = "drawings" if drawn else STAMPS.get(parts[0], "objects")
        for _ in range(4 if kind == "animals" else 2):
            whole = rng.random() < 0.5
            put(half, kind, False, nonfaces.piece(nonfaces.squared(picture) if whole else picture, rng))


def put(half: Half, name: str, face: bool, crop: np.ndarray) -> None:
    half.setdefault((name, face), []).append(crop)


@torch.inference_mode()
def features(crops: list[np.ndarray]) -> torch.Tensor:
    """float64 [N,1176]."""
    network = load_refiner()
    return torch.cat(
        [refiner_map(network, as_input(crops[i : i + 64])) for i in range(0, len(crops), 64)]
    ).double()


def collect(data: Path, pictures: Path, report: bool) -> dict[Class, torch.Tensor]:
    half: Half = {}
    faces_of_lfw(half, data, report)
    other_faces(half, data, report)
    no_faces(half, pictures, report)
    return {kind: features(crops) for kind, crops in half.items()}


def fit(classes: dict[Class, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [1,1176] and bias [1] of a logistic function; a class counts by the root of its number of crops."""
    x = torch.cat(list(classes.values()))
    face = torch.cat([torch.full((len(v),), float(is_face)) for (_, is_face), v in classes.items()]).double()
    weight = torch.cat([torch.full((len(v),), len(v) ** -0.5) for v in classes.values()]).double()
    weight = torch.where(
        face == 1, FACES * weight / weight[face == 1].sum(), weight / weight[face == 0].sum()
    )
    mean, deviation = x.mean(0), x.std(0) + 1e-3
    x = (x - mean) / deviation
    learned = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([learned], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logit = x @ learned[:-1] + learned[-1]
        value = (weight * F.binary_cross_entropy_with_logits(logit, face, reduction="none")).sum()
        value = value + DECAY * learned[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        raw = learned[:-1] / deviation
        return raw[None].float(), (learned[-1:] - raw @ mean).float()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--ship", action="store_true", help="put the weights into the package")
    given = parser.parse_args()
    weight, bias = fit(collect(given.data, given.pictures, report=False))
    if given.ship:
        write_file(USABLE_WEIGHTS, lambda path: save_file({"weight": weight, "bias": bias}, path))
    refused = {
        kind: (F.linear(x.float(), weight, bias).sigmoid()[:, 0] < LEAST_USABLE)
        for kind, x in collect(given.data, given.pictures, report=True).items()
    }
    for is_face in (True, False):
        print(f"\n| {'faces' if is_face else 'no usable face'} | crops | refused |\n| --- | --- | --- |")
        some = {name: values for (name, face), values in refused.items() if face == is_face}
        real = [values for name, values in some.items() if not name.startswith("drawn people")]
        for name, values in [
            *some.items(),
            ("**all, without drawn people**" if is_face else "**all**", torch.cat(real)),
        ]:
            print(f"| {name} | {len(values):,} | {100 * values.double().mean():.2f} % |")


if __name__ == "__main__":
    main()
