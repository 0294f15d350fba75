"""MFR2: photographs of people with and without a real mask, which nothing is ever trained on.

`python studies/mfr2.py MODEL --data ../shared/data [--half choose|report] [--everybody]`: TAR at a FAR of 1e-2, and what the
model's own thresholds accept, of the crops as they are and as `oaml align --refine` moves them.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from people import counts, half

from oaml.adaptation.cache import stage3
from oaml.adaptation.held_out import templates_of
from oaml.evaluation.tables import short_far
from oaml.inference import score_all
from oaml.main import keep_freed_memory
from oaml.model import Model
from oaml.photographs.refine import refined_crop
from oaml.support.files import read_image
from oaml.support.metrics import rates, tar_at_far

CLASSES = ("all", "masked-masked", "masked-unmasked", "unmasked-unmasked")


class Scored(NamedTuple):
    """Pairs of MFR2."""

    scores: dict[str, np.ndarray]
    """Score -> [N]."""
    same: np.ndarray
    people: np.ndarray
    """Whose images they are, [2,N]."""
    masks: np.ndarray
    """How many of the two wear one, [N]."""

    def of(self, name: str) -> np.ndarray:
        """Which pairs are of a class."""
        return np.ones(len(self.same), bool) if name == "all" else self.masks == 3 - CLASSES.index(name)


def scored(
    model: Model,
    folder: Path,
    move: Callable[[np.ndarray], np.ndarray] = lambda crop: crop,
    who: Callable[[str], bool] = counts,
) -> Scored:
    """All pairs of some of the people, of their crops after `move`."""
    with (folder.parent / "mfr2_images.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if who(row["identity"])]
    names = sorted(row["path"] for row in rows)
    wearing = {row["path"]: row["mask_type"] != "no-mask" for row in rows}
    images = [move(read_image(folder / name)) for name in names]
    sides = (images, [image[:, ::-1] for image in images]) if model.config.flip else (images,)
    faces = templates_of(model, [stage3(model, side) for side in sides])
    everybody = np.arange(len(faces))
    matrix = score_all(model, faces, everybody, faces, everybody)
    place = {name: i for i, name in enumerate(names)}
    with (folder.parent / "mfr2_pairs.csv").open() as file:
        pairs = [
            (place[r["path_a"]], place[r["path_b"]], r["same"] == "1")
            for r in csv.DictReader(file)
            if r["path_a"] in place and r["path_b"] in place
        ]
    a, b, same = (np.array(column) for column in zip(*pairs, strict=True))
    person = np.array([name.split("/")[0] for name in names])
    mask = np.array([wearing[name] for name in names])
    return Scored(
        {score: values[a, b] for score, values in matrix.items()},
        same,
        person[np.stack([a, b])],
        mask[a].astype(int) + mask[b],
    )


def real_masks(model: Model, folder: Path) -> dict[str, dict[str, float]]:
    """TAR at FAR 1e-2 of the people that figures are about: score -> class of pairs -> share."""
    return tars(scored(model, folder))


def tars(found: Scored) -> dict[str, dict[str, float]]:
    """TAR at FAR 1e-2: score -> class of pairs -> share."""
    return {
        score: {
            name: tar_at_far(values[chosen], found.same[chosen], 1e-2).tar
            for name in CLASSES
            for chosen in [found.of(name)]
        }
        for score, values in found.scores.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--half", choices=["choose", "report"], help="of the people; all by default")
    parser.add_argument("--everybody", action="store_true", help="with those who are in LFW too")
    given = parser.parse_args()
    keep_freed_memory()
    model = Model.load(given.model)

    def who(person: str) -> bool:
        return (given.everybody or counts(person)) and given.half in (None, half(person))

    moves: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "as they are": np.asarray,
        "refined": refined_crop,
    }
    found = {name: scored(model, given.data / "mfr2", move, who) for name, move in moves.items()}
    one = found["as they are"]
    counted = f"{len(np.unique(one.people))} people, {one.same.sum()} genuine and {(~one.same).sum()} impostor pairs"
    print(f"{counted}. TAR at FAR 1e-2, crops {' / '.join(moves)}:\n")
    print("| score | " + " | ".join(CLASSES) + " |\n" + "| --- " * (len(CLASSES) + 1) + "|")
    tables = [tars(pairs) for pairs in found.values()]
    for score in tables[0]:
        cells = (" / ".join(f"{table[score][name]:.3f}" for table in tables) for name in CLASSES)
        print(f"| {score} | " + " | ".join(cells) + " |")
    print("\n" + stored_table(model, found))


def stored_table(model: Model, found: dict[str, Scored]) -> str:
    """What the model's own thresholds accept, by class of pairs.

    Args:
        found: what the crops are -> their pairs.
    """
    lines = [
        "| stored for FAR | crops | pairs | impostor pairs accepted | FAR | genuine pairs accepted | TAR |"
    ]
    lines.append("| --- " * 7 + "|")
    for far, threshold in model.config.thresholds.items():
        for crops, pairs in found.items():
            for name in CLASSES:
                row = stored(pairs, pairs.of(name), threshold)
                lines.append(f"| {short_far(float(far))} | {crops} | {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def stored(pairs: Scored, chosen: np.ndarray, threshold: float) -> list[str]:
    """What a threshold accepts of some pairs by the fused score: impostor pairs, FAR with its interval, genuine pairs, TAR."""
    values, same = pairs.scores["fused"][chosen], pairs.same[chosen]
    found = rates(values, same, threshold, *pairs.people[:, chosen])
    assert found.far is not None
    assert found.tar is not None
    assert found.far_interval is not None
    high = found.far_interval.high if found.far else 3 / found.impostor_pairs  # the rule of three
    accepted = values >= threshold
    return [
        f"{(accepted & ~same).sum()} of {found.impostor_pairs}",
        f"{short_far(found.far, 1)} ({short_far(found.far_interval.low, 1)} to {short_far(high, 1)})",
        f"{(accepted & same).sum()} of {found.genuine_pairs}",
        f"{found.tar:.3f}",
    ]


if __name__ == "__main__":
    main()
