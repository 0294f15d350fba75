"""MFR2: photographs of people with and without a real mask, which nothing is ever trained on.

`python studies/mfr2.py MODEL --data ../shared/data`: the crops as they are, and as `oaml align --refine` moves them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report_people import asked

from oaml.adaptation.cache import stage3
from oaml.adaptation.held_out import templates_of
from oaml.inference import score_all
from oaml.model import Model
from oaml.photographs.refine import refined_crop
from oaml.support.files import read_image
from oaml.support.metrics import tar_at_far


def real_masks(
    model: Model, folder: Path, move: Callable[[np.ndarray], np.ndarray] = lambda crop: crop
) -> dict[str, dict[str, float]]:
    """TAR at FAR 1e-2 on MFR2: all pairs, masked-masked, masked-unmasked, unmasked-unmasked; of its crops after `move`."""
    with (folder.parent / "mfr2_images.csv").open() as file:
        masked = {row["path"]: row["mask_type"] != "no-mask" for row in csv.DictReader(file)}
    names = sorted(masked)
    images = [move(read_image(folder / name)) for name in names]
    sides = (images, [image[:, ::-1] for image in images]) if model.config.flip else (images,)
    faces = templates_of(model, [stage3(model, side) for side in sides])
    everybody = np.arange(len(faces))
    matrix = score_all(model, faces, everybody, faces, everybody)
    place = {name: i for i, name in enumerate(names)}
    with (folder.parent / "mfr2_pairs.csv").open() as file:
        rows = [(place[r["path_a"]], place[r["path_b"]], r["same"] == "1") for r in csv.DictReader(file)]
    a, b, same = (np.array(column) for column in zip(*rows, strict=True))
    mask = np.array([masked[name] for name in names])
    classes = {
        "all": np.ones(len(a), bool), "masked-masked": mask[a] & mask[b],
        "masked-unmasked": mask[a] ^ mask[b], "unmasked-unmasked": ~mask[a] & ~mask[b],
    }  # fmt: skip
    return {
        score: {
            name: tar_at_far(values[a, b][chosen], same[chosen], 1e-2).tar for name, chosen in classes.items()
        }
        for score, values in matrix.items()
    }


def main() -> None:
    model, data = asked(__doc__)
    as_is, moved = (real_masks(model, data / "mfr2", move) for move in (lambda crop: crop, refined_crop))
    print("| score, crops as they are / refined | " + " | ".join(as_is["fused"]) + " |")
    print("| --- " * (len(as_is["fused"]) + 1) + "|")
    for score, tars in as_is.items():
        cells = (f"{tar:.3f} / {moved[score][name]:.3f}" for name, tar in tars.items())
        print(f"| {score} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
