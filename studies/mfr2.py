"""MFR2: photographs of people with and without a real mask, which nothing is ever trained on."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from oaml.cache import stage3
from oaml.evaluation.heldout import templates_of
from oaml.evaluation.metrics import tar_at_far
from oaml.evaluation.scoring import score_all
from oaml.files import read_image
from oaml.model import Model


def real_masks(model: Model, folder: Path) -> dict[str, dict[str, float]]:
    """TAR at FAR 1e-2 on MFR2: all pairs, masked-masked, masked-bare, bare-bare."""
    with (folder.parent / "mfr2_images.csv").open() as file:
        masked = {row["path"]: row["mask_type"] != "no-mask" for row in csv.DictReader(file)}
    names = sorted(masked)
    images = [read_image(folder / name) for name in names]
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
        "masked-bare": mask[a] ^ mask[b], "bare-bare": ~mask[a] & ~mask[b],
    }  # fmt: skip
    return {
        score: {
            name: tar_at_far(values[a, b][chosen], same[chosen], 1e-2).tar for name, chosen in classes.items()
        }
        for score, values in matrix.items()
    }
