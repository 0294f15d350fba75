"""The faces that the student learns from: with names or without, but nobody who is kept for thresholds or for a report."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from oaml.datasets.people import PeopleFolder, split_name
from oaml.inference import extract
from oaml.model import Model
from oaml.photographs.command import align_folder
from oaml.support.files import read_image
from oaml.support.folders import list_images

ALIKE = 0.45
"""Cosine of the teacher's plain embeddings from which a face without a name is taken for somebody who is kept. About one stranger
in ten thousand reaches it, so that of thousands kept a few faces are left out for nothing."""


def learned_from(data: Path, out: Path, teacher: Model, detector: Path) -> list[np.ndarray]:
    """uint8 RGB [112,112,3] each: people of LFW that train, CelebAMask-HQ, and faces found in photographs of masked people.

    Args:
        data: `lfw`, `celebamask`, `masked_photographs`, and `mfr2`, of which nothing is learned.
        out: OUT/masked_faces holds the faces found, once they were.
        teacher: by its plain embeddings people who are kept are known again.
    """
    people = PeopleFolder(data / "lfw")
    trained = [split_name(name) == "train" for name in people.people]
    named, kept = [], []
    for i, person in enumerate(people.labels):
        (named if trained[person] else kept).append(people.image(i))
    masked = PeopleFolder(data / "mfr2")
    kept += [masked.image(i) for i in range(len(masked))]
    if not (out / "masked_faces").exists():
        align_folder(data / "masked_photographs", out=out / "masked_faces", detector=detector, refine=True)
    folders = data / "celebamask" / "images", out / "masked_faces"
    unnamed = [read_image(path) for folder in folders for path in list_images(folder)]
    known, new = (extract(teacher, faces, len(faces)).embedding for faces in (kept, unnamed))
    alike = (torch.cat([part @ known.T for part in new.split(256)]) >= ALIKE).any(1).tolist()
    print(
        f"{sum(alike)} of {len(unnamed)} faces without names are like somebody who is kept", file=sys.stderr
    )
    return named + [face for face, known in zip(unnamed, alike, strict=True) if not known]
