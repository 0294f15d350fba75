"""`oaml score`: one line of scores a pair, no judgement."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from oaml.datasets.sources import ByName, is_source
from oaml.errors import OamlError
from oaml.evaluation.protocols import Pairs, read_pairs
from oaml.inference import BATCH_SIZE, extract, load_model, score_pairs
from oaml.support.files import write_file


def score(
    model: str,
    *,
    images: Path,
    out: Path,
    pairs: Path | None = None,
    resize: bool = False,
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
) -> None:
    """Write one line of scores for each pair, in the order of the pairs file.

    The CSV has the columns path_a, path_b, same (copied; empty where it isn't stated), cosine (of the
    embeddings), qaconv (logit with predicted visibility), joint (logit of the joint embedding, which is masked
    by the visibility of both faces), fused (all together, calibrated: the score to decide by), visible_a and
    visible_b (mean predicted visibility). All numbers are finite, and those of a pair depend on no other line,
    on no order and not on `same`.

    Example:
        oaml score runs/first/best --images faces --pairs pairs.csv --out scores.csv

    Args:
        model: a model folder (config.json + model.safetensors).
        images: folder that the paths in the pairs file are relative to; or a CSV manifest, a .rec file or tar shards that hold
            pictures of these names (`docs/data.md`); or a .bin verification set, which brings its own pairs; or a file of
            `oaml embed` by the model that holds these paths, so that a large set is embedded once. Its rounding to int8 moves
            a fused score by .005 on average and by .04 at most.
        out: CSV to write.
        pairs: CSV with the columns path_a, path_b and by choice same (1 or 0).
        resize: scale images of another size instead of refusing them.
        batch_size: faces read at a time; on a GPU also faces a pass, and another size may change the last
            digits.
        device: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        OamlError: a bad model, pairs file or image (named). Nothing is written then.
    """
    images, out = Path(images), Path(out)
    if out.is_dir():
        raise OamlError(f"{out}: is a folder; name a file to write")
    source = ByName(images) if is_source(images) else images
    own_pairs = source.pairs() if isinstance(source, ByName) else None
    if pairs is not None:
        listed = read_pairs(pairs, source, need_same=False)
    elif own_pairs is not None:
        listed = Pairs(*own_pairs[:2], list(own_pairs[2]))
    else:
        raise OamlError(
            f"{images}: brings no pairs, as a .bin verification set does; name a list of them with --pairs"
        )
    loaded = load_model(model, device, batch_size)
    names = sorted({*listed.path_a, *listed.path_b})
    place = {path: i for i, path in enumerate(names)}
    if isinstance(source, Path):
        from oaml.templates.file import load

        faces = load(images).faces(loaded, names)
    else:
        faces = extract(
            loaded,
            (source.image(path, resize) for path in names),
            len(names),
            batch_size=batch_size,
            label="reading faces",
        )
    a, b = (np.array([place[path] for path in side]) for side in (listed.path_a, listed.path_b))
    scores = score_pairs(
        loaded,
        faces,
        a,
        faces,
        b,
        plain=False,
        name=lambda i: f"{listed.path_a[i]} and {listed.path_b[i]}",
        label="comparing",
    )
    visible = faces.visible().numpy()

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(
                ["path_a", "path_b", "same", "cosine", "qaconv", "joint", "fused", "visible_a", "visible_b"]
            )
            for i, same in enumerate(listed.same):
                numbers = [values[i] for values in scores.values()] + [visible[a[i]], visible[b[i]]]
                writer.writerow(
                    [
                        listed.path_a[i],
                        listed.path_b[i],
                        "" if same is None else int(same),
                        *(f"{value:.8f}" for value in numbers),
                    ]
                )

    write_file(out, write)
