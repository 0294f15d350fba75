"""A picture of harvested occluders, by themselves and worn: what was cut out has to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from oaml.occluders.api import occluder_rng
from oaml.occluders.cutout import Cutout, lay
from oaml.support.files import FACE_SIZE, write_file

MOST = 60
"""Occluders that a sheet shows: evenly chosen, where there are more."""
BLOCKS = 6
"""Occluders in a row."""
GAP = 4


def draw_sheet(path: Path, cutouts: Sequence[Cutout], faces: Sequence[np.ndarray], seed: int = 0) -> None:
    """Write a PNG: each occluder on grey squares and, to its right, on a face.

    Args:
        cutouts: one at least.
        faces: aligned, uint8 RGB [112,112,3], one at least; each is used in turn.
        seed: of how they are worn.
    """
    chosen = np.unique(np.linspace(0, len(cutouts) - 1, min(MOST, len(cutouts))).round().astype(int))
    blocks = []
    for place, number in enumerate(chosen):
        cutout, face = cutouts[number], faces[place % len(faces)]
        worn = lay(face, cutout, occluder_rng(seed, "sheet", str(number))).image
        block = np.hstack([_on_squares(cutout), worn])
        blocks.append(np.pad(block, ((0, GAP), (0, GAP), (0, 0)), constant_values=255))
    blank = np.full_like(blocks[0], 255)
    columns = min(BLOCKS, len(blocks))
    blocks += [blank] * (-len(blocks) % columns)
    rows = [np.hstack(blocks[start : start + columns]) for start in range(0, len(blocks), columns)]
    data = cv2.imencode(".png", np.vstack(rows)[..., ::-1])[1].tobytes()
    write_file(path, lambda temporary: temporary.write_bytes(data))


def _on_squares(cutout: Cutout) -> np.ndarray:
    """An occluder on the squares that stand for transparency."""
    y, x = np.mgrid[:FACE_SIZE, :FACE_SIZE] // 8
    squares = np.where((x + y) % 2, 150.0, 190.0)[..., None]
    alpha = cutout.rgba[..., 3:] / 255
    return np.rint(cutout.rgba[..., :3] * alpha + squares * (1 - alpha)).astype(np.uint8)
