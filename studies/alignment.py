"""Are covered faces found, do they lie where the bare face of the same photograph lies, and what is that worth?

`python studies/alignment.py --data ../shared/data --model runs/adapted`

Photographs with a known face: an aligned face of LFW (people that train nothing), covered in style b, scaled to 40 to 150 % and
turned by up to 20 degrees, laid on a blurred background of 320 x 240 pixels. A face counts as found where its box shares 30 % with
the true one. The error of an alignment is the mean distance, in pixels of the 112x112 face, of its four corners from where they
lie for the bare photograph, and from where they lie in the crop that was laid there.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from people import reported

from oaml.inference import extract
from oaml.model import Model
from oaml.occluders import KINDS, Occluder, load_mask_pictures
from oaml.photographs.align import similarity, warp
from oaml.photographs.detect import Detector, Face, group_looks, mean_face, shared_area, turned_back
from oaml.photographs.refine import refined
from oaml.photographs.subjects import trust
from oaml.support.files import FACE_SIZE, read_image
from oaml.support.folders import list_images

WIDTH, HEIGHT = 320, 240
CORNERS = np.array([(0, 0), (111, 0), (0, 111), (111, 111)], np.float64)
SIZES = (320, 480, 640)
SETS = ((320,), (640,), (320, 640), (320, 480, 640))
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.9)
ORDER = ("bare", "niqab", *(kind for kind in KINDS if kind != "niqab"))
JUDGED = ("niqab", "mask", "sunglasses")  # whose recognition is measured
FLOORS = (0.1, 0.3)
MISPLACED = 35  # pixels of 112 by which the corners of a crop are off at most that shows the face more or less upright


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


def placed(rng: np.random.Generator, most: float = 20) -> np.ndarray:
    """Crop to photograph, turned by so many degrees at most."""
    scale, turn = np.exp(rng.uniform(np.log(0.4), np.log(1.5))), np.deg2rad(rng.uniform(-most, most))
    a = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    room = np.maximum((np.array([WIDTH, HEIGHT]) - FACE_SIZE * scale) / 2, 0)
    centre = np.array([WIDTH, HEIGHT]) / 2 + rng.uniform(-1, 1, 2) * room
    return np.column_stack([a, centre - a @ (55.5, 55.5)])


def true_box(place: np.ndarray) -> np.ndarray:
    """Where the network's box lies on an aligned face."""
    points = moved(place, np.array([(25.0, 18.0), (87.0, 18.0), (25.0, 108.0), (87.0, 108.0)]))
    low, high = points.min(0), points.max(0)
    return np.concatenate([low, high - low])


def displacement(a: np.ndarray, b: np.ndarray) -> float:
    """How far a, photograph to template, moves the corners of b."""
    return float(
        np.linalg.norm(moved(a, moved(cv2.invertAffineTransform(b), CORNERS)) - CORNERS, axis=1).mean()
    )


def table(head: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--detector", type=Path, help="a YuNet file")
    parser.add_argument("--count", type=int, default=80, help="photographs a kind")
    given = parser.parse_args()
    file = given.detector or given.data / "weights" / "yunet_n_320_320.onnx"
    model = Model.load(given.model).eval()
    occluder = Occluder(1, "b", load_mask_pictures(given.data / "mask_templates"))
    people = [p for p in sorted((given.data / "lfw").iterdir()) if reported(p.name)]
    images = [list_images(p) for p in people]
    images = sorted(images, key=lambda of_one: len(of_one) < 2)[: given.count]  # pairs first
    crops = [read_image(of_one[0]) for of_one in images]
    rng = np.random.default_rng(0)
    places = [placed(rng) for _ in crops]

    scenes: dict[str, list[np.ndarray]] = {}
    covered: dict[str, list[np.ndarray]] = {"bare": crops}
    for kind in ORDER:
        if kind != "bare":
            names = [of_one[0].name for of_one in images]
            covered[kind] = [occluder(c, kind, n).image for c, n in zip(crops, names, strict=True)]
        scenes[kind] = [photograph(c, crops[i - 1], places[i]) for i, c in enumerate(covered[kind])]
    detectors = {size: Detector(file, min(THRESHOLDS), (size,)) for size in SIZES}
    looks = {
        (kind, size): [detector.looks(scene, 0) for scene in scenes[kind]]
        for kind in ORDER
        for size, detector in detectors.items()
    }

    def seen(kind: str, sizes: tuple[int, ...], i: int) -> list[list[Face]]:
        """Looks grouped by face."""
        return group_looks([face for size in sizes for face in looks[kind, size][i]])

    def is_right(group: list[Face], i: int) -> bool:
        return shared_area(mean_face(group).box, true_box(places[i])) > 0.3

    rows = []
    for sizes, threshold in product(SETS, THRESHOLDS):
        rates, wrong = [], 0
        for kind in ORDER:
            found = 0
            for i in range(len(crops)):
                right = [is_right(g, i) for g in seen(kind, sizes, i) if g[0].score >= threshold]
                found += any(right)
                wrong += right.count(False)
            rates.append(f"{found / len(crops):.2f}")
        name = " + ".join(map(str, sizes))
        rows.append([name, f"{threshold}", *rates, f"{wrong / len(crops) / len(ORDER):.3f}"])
    table(["sizes", "threshold", *ORDER, "false faces a photograph"], rows)

    whole, rows = Detector(file), []
    for kind in ("bare", *JUDGED):
        right = np.zeros((3, len(crops)))
        for i, crop in enumerate(covered[kind]):
            place = placed(np.random.default_rng(i), 45)
            scene = photograph(crop, crops[i - 1], place)
            for quarters in range(3):
                found = whole.find(np.ascontiguousarray(np.rot90(scene, quarters)))
                lies = [
                    similarity(turned_back(face, WIDTH, HEIGHT, quarters).landmarks) for face in found[:1]
                ]
                right[quarters, i] = any(
                    displacement(m, cv2.invertAffineTransform(place)) < MISPLACED for m in lies
                )
        rows.append([kind, *(f"{share:.2f}" for share in right.mean(1))])
    table(["kind", "upright", "on its side", "upside down"], rows)

    again = detectors[SIZES[0]]
    names = [
        "surest look",
        "mean of looks",
        "looked at again",
        *(f"by visibility, floor {f}" for f in FLOORS),
        "looked at again, refined",
        "by visibility, refined",
    ]
    base: dict[int, list[np.ndarray]] = {}
    rows, aligned = [], {}
    for kind in ORDER:
        errors, off = [], []
        for i, scene in enumerate(scenes[kind]):
            group = next((g for g in seen(kind, SIZES, i) if is_right(g, i)), None)
            if group is None or (kind != "bare" and i not in base):
                continue
            whole = mean_face(group + again.look_again(scene, mean_face(group))).landmarks
            made = [similarity(x) for x in (group[0].landmarks, mean_face(group).landmarks, whole)]
            weights = trust(warp(scene, made[-1]), made[-1], whole, model)
            made += [similarity(whole, np.maximum(weights, floor)) for floor in FLOORS]
            made += [refined(scene, made[2]), refined(scene, made[3])]
            if kind == "bare":
                base[i] = made[:3] + made[2:3] * len(FLOORS) + made[-2:]
            errors.append([displacement(m, b) for m, b in zip(made, base[i], strict=True)])
            off.append([displacement(m, cv2.invertAffineTransform(places[i])) for m in made])
            aligned[kind, i] = [warp(scene, m) for m in made]
        cells = [
            f"{e:.1f} ({m:.1f}) / {o:.1f}"
            for e, m, o in zip(np.mean(errors, 0), np.median(errors, 0), np.mean(off, 0), strict=True)
        ]
        rows.append([kind, str(len(errors)), *cells])
    table(["kind", "photographs", *names], rows)

    paired = [i for i, of_one in enumerate(images) if len(of_one) > 1]
    gallery = extract(model, [read_image(images[i][1]) for i in paired], len(paired))
    rows = []
    for kind in ("bare", *JUDGED):
        kept = [k for k, i in enumerate(paired) if (kind, i) in aligned]
        row = [kind, str(len(kept))]
        for column in range(-1, len(names)):
            faces = [
                covered[kind][paired[k]] if column < 0 else aligned[kind, paired[k]][column] for k in kept
            ]
            score = model.compare_all(extract(model, faces, len(faces)), gallery)["fused"].numpy()
            same = np.zeros(score.shape, bool)
            same[np.arange(len(kept)), kept] = True
            row.append(f"{(score[same] > np.quantile(score[~same], 0.99)).mean():.2f}")
        rows.append(row)
    table(["kind", "people", "the crop itself", *names], rows)


if __name__ == "__main__":
    main()
