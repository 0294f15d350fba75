"""Turn CelebAMask-HQ parsing maps into visibility masks: `python studies/celebamask.py SOURCE OUT`.

What counts as covered, and why: hats (14) and eyeglasses (3, lens and frame: the eye behind is tinted, mirrored or crossed by
the frame) cover; hair (13) covers where it lies inside the convex hull of the facial parts, and is part of the person's
looks outside of it. Everything else, background included, is visible: a mask says what something hides, not what is face,
so that a bare face has a mask of ones.

SOURCE holds images/ and parsing/. OUT receives covered/images + covered/masks (at least 2 % covered), and bare/ (the rest).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from oaml.support.files import read_image, write_file
from oaml.support.folders import list_images

EYEGLASSES, HAIR, HAT = 3, 13, 14
FACE = [1, 2, 4, 5, 6, 7, 10, 11, 12]  # skin, nose, eyes, brows, mouth, lips: without ears


def visibility(parsing: np.ndarray) -> np.ndarray:
    """Class map uint8 [H,W] -> mask uint8 [H,W], 255 where the face shows."""
    covered = np.isin(parsing, [EYEGLASSES, HAT])
    points = np.argwhere(np.isin(parsing, FACE))[:, ::-1]
    if len(points):
        hull = np.zeros_like(parsing)
        cv2.fillConvexPoly(hull, cv2.convexHull(points.astype(np.int32)), 1)
        covered |= (hull == 1) & (parsing == HAIR)
    return np.where(covered, 0, 255).astype(np.uint8)


def convert(source: Path, out: Path) -> tuple[int, int]:
    """Write the two folders; returns the numbers of covered and bare faces."""
    counts = [0, 0]
    for path in list_images(source / "images"):
        image = read_image(path)
        mask = visibility(np.asarray(Image.open(source / "parsing" / f"{path.stem}.png")))
        bare = bool((mask == 0).mean() < 0.02)
        folder = out / "bare" if bare else out / "covered" / "images"
        if not bare:
            write_file(out / "covered" / "masks" / f"{path.stem}.png", Image.fromarray(mask).save)
        write_file(folder / f"{path.stem}.png", Image.fromarray(image).save)
        counts[bare] += 1
    return counts[0], counts[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print("{} covered, {} bare".format(*convert(arguments.source, arguments.out)))
