"""What of a gallery is damaged: everything is read and compared with its digests, and the vectors with the templates."""

from __future__ import annotations

import numpy as np
import torch

from oaml.errors import OamlError
from oaml.gallery.rows import Packing, column_names, pattern_vectors
from oaml.gallery.store import Store, quoted
from oaml.support.files import read_photograph
from oaml.support.progress import progress

READ = 100
"""People read at a time."""
ROUNDING = 2e-3
"""A number of a unit vector differs by less between machines, and after it was rounded to 16 bits."""


@torch.inference_mode()
def damaged_people(store: Store, packing: Packing, label: str | None) -> list[str]:
    """Names of people with a face that can't be read or isn't what was written.

    Raises:
        OamlError: no gallery yet, or not even the names can be read.
    """
    names = sorted(set(store.rows(["person"])["person"].to_pylist()))
    found: list[str] = []
    with progress(label, len(names)) as advance:
        for start in range(0, len(names), READ):
            part = names[start : start + READ]
            if not _whole(store, packing, part):
                found += [name for name in part if not _whole(store, packing, [name])]
            advance(len(part))
    return found


def _whole(store: Store, packing: Packing, people: list[str]) -> bool:
    try:
        rows = store.rows(store.columns, f"person in ({', '.join(map(quoted, people))})")
        for picture in rows["thumbnail"].drop_null().to_pylist():
            read_photograph(picture)
    except OamlError:
        return False
    faces = packing.unpack_column(rows["template"]).dequantised()
    vectors = pattern_vectors(faces).values()
    pairs = [
        (np.array(rows[name].to_pylist(), np.float32), vector.numpy())
        for name, vector in zip(column_names(), vectors, strict=True)
    ]
    return all(np.allclose(kept, vector, rtol=0, atol=ROUNDING) for kept, vector in pairs)
