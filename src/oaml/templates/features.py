"""Embeddings as MegaFace's devkit reads them: a file for each image, a matrix in OpenCV's layout.

`IMAGE_SUFFIX.bin`, below a folder as the image lies below its own, holds four little-endian int32, rows (E), columns (1), bytes of
a row (4) and OpenCV's type of float32 (5), and then E float32: the embedding, of unit length. (Kemelmacher-Shlizerman et al., The
MegaFace Benchmark, CVPR 2016; layout as in InsightFace's gen_megaface.py.)
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.errors import OamlError
from oaml.inference import extract
from oaml.support.files import make_folder, write_file
from oaml.support.progress import progress

if TYPE_CHECKING:
    from oaml.model import Model

FLOAT32 = 5  # CV_32F
AT_A_TIME = 256
NOTE = "oaml.json"
"""Beside the features: which model made them, so that two models' features don't mix."""


def write_features(
    model: Model, names: Sequence[str], read: Callable[[int], np.ndarray], out: Path, suffix: str
) -> int:
    """Write a feature file for each image; those that are there stay, so that a killed run goes on.

    Args:
        names: paths of the images below their folder.
        read: number of an image -> uint8 RGB [112,112,3].
        out: folder for the features.
        suffix: what the devkit's options call the algorithm.

    Returns:
        numbers in an embedding.

    Raises:
        OamlError: from `read`; the folder holds features of another model, or can't be written.
    """
    from oaml.templates.file import model_id

    size = model.config.net.embedding_size
    facts = {"model": model_id(model), "suffix": suffix}
    note = out / NOTE
    try:
        if note.is_file():
            if json.loads(note.read_text(encoding="utf-8")) != facts:
                raise OamlError(f"{out}: holds features of another model or suffix; name another --out")
        elif out.is_dir() and any(out.iterdir()):
            raise OamlError(f"{out}: holds other files; name a new folder with --out")
        else:
            write_file(note, lambda path: path.write_text(json.dumps(facts) + "\n", encoding="utf-8"))
        files = [out / f"{name}_{suffix}.bin" for name in names]
        length = 16 + 4 * size
        rest = [i for i, file in enumerate(files) if not file.is_file() or file.stat().st_size != length]
        with progress("embedding faces", len(names), len(names) - len(rest)) as advance:
            for start in range(0, len(rest), AT_A_TIME):
                part = rest[start : start + AT_A_TIME]
                faces = extract(model, (read(i) for i in part), len(part))
                for i, embedding in zip(part, faces.embedding.numpy(), strict=True):
                    _write(files[i], embedding)
                advance(len(part))
    except (OSError, ValueError) as error:
        raise OamlError(
            f"{out}: could not be written ({error}); free space or choose another place"
        ) from error
    return size


def _write(file: Path, embedding: np.ndarray) -> None:
    """Renamed when it is complete; a million files are not waited for one by one, and a short one is written again."""
    make_folder(file.parent)
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(
        struct.pack("<4i", len(embedding), 1, 4, FLOAT32) + embedding.astype("<f4").tobytes()
    )
    os.replace(temporary, file)
