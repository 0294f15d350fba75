"""Are covered faces found, and do they lie where the bare face of the same photograph lies?

`python studies/alignment.py --data ../shared/data --model runs/adapted`

Photographs with a known face: an aligned face of LFW (people that train nothing), covered in style b, scaled to 40 to 150 % and
turned by up to 20 degrees, laid on a blurred background of 320 x 240 pixels. A face counts as found where its box shares 30 % with
the true one. The error of an alignment is the mean distance, in pixels of the 112x112 face, of its four corners from where the
bare version of the same photograph has them (for bare faces: from where the crop has them).
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from oaml.align import TEMPLATE, similarity, trust, warp
from oaml.datasets.people import split_name
from oaml.detect import Detector, Face, _shared
from oaml.files import FACE_SIZE, list_images, read_image
from oaml.model import Model
from oaml.occluders import KINDS, cover_rng, load_templates, occlude

WIDTH, HEIGHT = 320, 240
CORNERS = np.array([(0, 0), (111, 0), (0, 111), (111, 111)], np.float64)
SIDES = ((320,), (640,), (160, 320), (320, 640), (160, 320, 640))
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9)


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def photograph(crop: np.ndarray, background: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The crop laid on the blurred background by the similarity `place`, its edge blended over four pixels."""
    scene = cv2.GaussianBlur(cv2.resize(background, (WIDTH, HEIGHT)), (0, 0), 25)
    alpha = np.zeros((FACE_SIZE, FACE_SIZE), np.float32)
    alpha[2:-2, 2:-2] = 1
    alpha = cv2.warpAffine(cv2.blur(alpha, (5, 5)), place, (WIDTH, HEIGHT))[..., None]
    scale = np.hypot(*place[:, 0])
    source = cv2.GaussianBlur(crop, (0, 0), 0.4 / scale) if scale < 0.8 else crop
    laid = cv2.warpAffine(source, place, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
    return np.rint(laid * alpha + scene * (1 - alpha)).astype(np.uint8)


def placed(rng: np.random.Generator) -> np.ndarray:
    scale, turn = np.exp(rng.uniform(np.log(0.4), np.log(1.5))), np.deg2rad(rng.uniform(-20, 20))
    a = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    room = np.array([WIDTH, HEIGHT]) / 2 + rng.uniform(-1, 1, 2) * np.maximum(
        (np.array([WIDTH, HEIGHT]) - 112 * scale) / 2, 0
    )
    return np.column_stack([a, room - a @ (55.5, 55.5)])


def true_box(place: np.ndarray) -> np.ndarray:
    """Where the network's boxes lie on an aligned face, measured on bare ones."""
    points = moved(place, np.array([(25.0, 18.0), (87.0, 18.0), (25.0, 108.0), (87.0, 108.0)]))
    low, high = points.min(0), points.max(0)
    return np.concatenate([low, high - low])


def displacement(a: np.ndarray, b: np.ndarray) -> float:
    """a, b: photograph to template. Mean distance of the corners of b's crop under a."""
    back = cv2.invertAffineTransform(b)
    return float(np.linalg.norm(moved(a, moved(back, CORNERS)) - CORNERS, axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--detector", type=Path)
    parser.add_argument("--count", type=int, default=200)
    given = parser.parse_args()
    detector_file = given.detector or given.data / "weights" / "yunet_n_320_320.onnx"
    model = Model.load(given.model).eval()
    templates = load_templates(given.data / "mask_templates")
    people = sorted(p for p in (given.data / "lfw").iterdir() if split_name(p.name) == "report")
    paths = [list_images(p)[0] for p in people][: given.count]
    crops = [read_image(path) for path in paths]
    rng = np.random.default_rng(0)
    places = [placed(rng) for _ in paths]
    kinds = ("niqab", *(kind for kind in KINDS if kind != "niqab"), "bare")
    scenes: dict[str, list[np.ndarray]] = {}
    for kind in kinds:
        scenes[kind] = []
        for i, path in enumerate(paths):
            crop = crops[i]
            if kind != "bare":
                crop = occlude(crop, kind, cover_rng(1, kind, path.name), templates, style="b").image
            scenes[kind].append(photograph(crop, crops[i - 1], places[i]))
    found: dict[tuple[str, tuple[int, ...]], list[list[Face]]] = {}
    for sides in SIDES:
        detector = Detector(detector_file, min(THRESHOLDS), sides)
        for kind in kinds:
            found[kind, sides] = [detector._turned(scene, 0) for scene in scenes[kind]]

    def right(kind: str, sides: tuple[int, ...], i: int, threshold: float = 0) -> list[Face]:
        faces = [f for f in found[kind, sides][i] if _shared(f.box, true_box(places[i])) > 0.3]
        return [f for f in faces if f.score >= threshold]

    print("\n| sizes | threshold |", " | ".join(kinds), "| false faces a photograph |")
    print("| --- " * (len(kinds) + 3) + "|")
    for sides, threshold in product(SIDES, THRESHOLDS):
        rates = [np.mean([bool(right(k, sides, i, threshold)) for i in range(len(paths))]) for k in kinds]
        wrong = [
            sum(f.score >= threshold for f in found[k, sides][i]) - len(right(k, sides, i, threshold))
            for k in kinds
            for i in range(len(paths))
        ]
        print(
            f"| {'+'.join(map(str, sides))} | {threshold} |",
            " | ".join(f"{r:.3f}" for r in rates),
            f"| {np.mean(wrong):.4f} |",
        )

    sides = SIDES[-1]
    print("\nalignment, sizes", sides)
    print(
        "| kind | photographs | all five alike | weighted: floor .05 | .2 | .5 | landmarks: eyes | nose | mouth |"
    )
    for kind in kinds:
        rows = []
        for i in range(len(paths)):
            faces, bare = right(kind, sides, i), right("bare", sides, i)
            if not faces or not bare:
                continue
            best, other = (max(x, key=lambda f: f.score) for x in (faces, bare))
            truth = similarity(other.landmarks) if kind != "bare" else cv2.invertAffineTransform(places[i])
            plain = similarity(best.landmarks)
            weights = trust(warp(scenes[kind][i], plain), plain, best.landmarks, model)
            errors = [displacement(plain, truth)]
            errors += [
                displacement(similarity(best.landmarks, np.maximum(weights, low)), truth)
                for low in (0.05, 0.2, 0.5)
            ]
            target = moved(truth, other.landmarks) if kind != "bare" else TEMPLATE
            off = np.linalg.norm(moved(truth, best.landmarks) - target, axis=1)
            rows.append([*errors, off[:2].mean(), off[2], off[3:].mean(), *weights])
        mean = np.mean(rows, 0)
        print(
            f"| {kind} | {len(rows)} |",
            " | ".join(f"{x:.2f}" for x in mean[:7]),
            "| weights",
            " ".join(f"{x:.2f}" for x in mean[7:]),
        )


if __name__ == "__main__":
    main()
