"""Are occluded faces found, do they lie where the unoccluded face of the same photograph lies, and what is that worth?

`python studies/alignment.py --data ../shared/data --model runs/adapted`

Photographs with a known face: an aligned face of LFW (people that train nothing), occluded in style b, scaled to 40 to 150 % and
turned by up to 20 degrees, laid on a blurred background of 320 x 240 pixels. Three ways to find it: `Detector.find`, every look
there is, and one plain look. A face counts as found where its box shares 30 % with the true one. The error of an alignment is the
mean distance, in pixels of the 112x112 face, of its four corners from where they lie for the unoccluded photograph, and from where
they lie in the crop that was laid there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from people import reported

from oaml.inference import extract
from oaml.model import Model
from oaml.occluders import KINDS, Occluder, load_mask_pictures
from oaml.photographs.align import similarity, warp
from oaml.photographs.detect import Detector
from oaml.photographs.looks import Face, shared_area
from oaml.photographs.refine import refined
from oaml.photographs.subjects import is_aligned, large_enough
from oaml.support.files import FACE_SIZE, read_image
from oaml.support.folders import list_images

WIDTH, HEIGHT = 320, 240
CORNERS = np.array([(0, 0), (111, 0), (0, 111), (111, 111)], np.float64)
ORDER = ("bare", "niqab", *(kind for kind in KINDS if kind != "niqab"))
JUDGED = ("niqab", "mask", "sunglasses")  # whose recognition is measured
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
    detector = Detector(given.detector or given.data / "weights" / "yunet_n_320_320.onnx")
    model = Model.load(given.model).eval()
    occluder = Occluder(1, "b", load_mask_pictures(given.data / "mask_templates"))
    people = [p for p in sorted((given.data / "lfw").iterdir()) if reported(p.name)]
    images = [list_images(p) for p in people]
    images = sorted(images, key=lambda of_one: len(of_one) < 2)[: given.count]  # pairs first
    crops = [read_image(of_one[0]) for of_one in images]
    rng = np.random.default_rng(0)
    places = [placed(rng) for _ in crops]
    covered: dict[str, list[np.ndarray]] = {"bare": crops}
    for kind in ORDER[1:]:
        names = [of_one[0].name for of_one in images]
        covered[kind] = [occluder(c, kind, n).image for c, n in zip(crops, names, strict=True)]
    scenes = {
        kind: [photograph(c, crops[i - 1], places[i]) for i, c in enumerate(covered[kind])] for kind in ORDER
    }

    rows = []
    for kind in ORDER:
        taken = sum(not is_aligned(crop, detector) for crop in covered[kind])
        rows.append([kind, str(len(crops)), str(taken)])
    table(["aligned faces", "images", "taken for photographs"], rows)

    ways: dict[str, Callable[[np.ndarray], list[Face]]] = {
        "find": detector.find,
        "every look": detector.thorough,
        "one plain look": lambda scene: sorted(detector.look(scene), key=lambda face: -face.score),
    }
    rows = []
    base: dict[tuple[str, int], np.ndarray] = {}
    aligned: dict[tuple[str, str, int], np.ndarray] = {}
    for kind in ORDER:
        for way, find in ways.items():
            found, leads, wrong, begun = 0, 0, 0, 0.0
            errors, off = [], []
            for i, scene in enumerate(scenes[kind]):
                start = time.process_time()
                faces = find(scene)
                begun += time.process_time() - start
                faces = [subject.face for subject in large_enough(scene, faces) if subject.face is not None]
                right = [shared_area(face.box, true_box(places[i])) > 0.3 for face in faces]
                wrong += right.count(False)
                leads += right[:1] == [True]
                if not any(right):
                    continue
                found += 1
                matrix = refined(scene, similarity(faces[right.index(True)].landmarks))
                if kind == "bare":
                    base[way, i] = matrix
                if (way, i) in base:
                    errors.append(displacement(matrix, base[way, i]))
                off.append(displacement(matrix, cv2.invertAffineTransform(places[i])))
                aligned[way, kind, i] = warp(scene, matrix)
            count = len(crops)
            error = (
                f"{np.mean(errors):.1f} ({np.median(errors):.1f}) / {np.mean(off):.1f} ({np.median(off):.1f})"
            )
            shares = [f"{value / count:.3f}" for value in (found, leads, wrong)]
            rows.append([kind, way, *shares, error, f"{1e3 * begun / count:.0f}"])
    table(["kind", "way", "found", "comes first", "false faces a photograph", "error", "ms"], rows)

    paired = [i for i, of_one in enumerate(images) if len(of_one) > 1]
    gallery = extract(model, [read_image(images[i][1]) for i in paired], len(paired))
    rows = []
    for kind in ("bare", *JUDGED):
        row = [kind]
        for way in ("the crop itself", *ways):
            kept = [i for i in paired if way == "the crop itself" or (way, kind, i) in aligned]
            faces = [covered[kind][i] if way == "the crop itself" else aligned[way, kind, i] for i in kept]
            score = model.compare_all(extract(model, faces, len(faces)), gallery)["fused"].numpy()
            same = np.array([[i == j for j in paired] for i in kept])
            accepted = (score[same] > np.quantile(score[~same], 0.99)).sum()
            row.append(f"{accepted / len(paired):.3f}")
        rows.append(row)
    table(["kind", "the crop itself", *ways], rows)

    rows = []
    for kind in ("bare", *JUDGED):
        right = np.zeros((3, len(crops)))
        for i, crop in enumerate(covered[kind]):
            place = placed(np.random.default_rng(i), 45)
            scene = photograph(crop, crops[i - 1], place)
            for quarters in range(3):
                found = detector.find(np.ascontiguousarray(np.rot90(scene, quarters)))[:1]
                lies = [similarity(face.turned_back(WIDTH, HEIGHT, quarters).landmarks) for face in found]
                right[quarters, i] = any(
                    displacement(m, cv2.invertAffineTransform(place)) < MISPLACED for m in lies
                )
        rows.append([kind, *(f"{share:.2f}" for share in right.mean(1))])
    table(["kind", "upright", "on its side", "upside down"], rows)


if __name__ == "__main__":
    main()
