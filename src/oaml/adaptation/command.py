"""`oaml calibrate`: a model's thresholds, and where there are people enough its corrections, fitted anew to a user's own faces.

Thresholds are stated for impostor pairs like those that they were fitted on. Other people, cameras and crops have other pairs. What
is stored of a face doesn't depend on what is fitted here, so that galleries and files of templates stay of use.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from oaml.adaptation.calibration import FARS
from oaml.adaptation.evidence import evidence
from oaml.adaptation.held_out import OCCLUDER_GROUPS, HeldOut
from oaml.adaptation.thresholds import calibrate, thresholds_alone, unoccluded_scores
from oaml.datasets.check import check_pictures
from oaml.datasets.people import People, PeopleFolder, hashed_names
from oaml.datasets.pictures import below_person
from oaml.datasets.sources import people_from
from oaml.errors import OamlError
from oaml.inference import load_model
from oaml.occluders import KINDS
from oaml.support.files import check_model_folder
from oaml.support.folders import say_left_out
from oaml.support.metrics import MIN_FALSE_ACCEPTS, enough_negatives
from oaml.support.names import printable, readable

if TYPE_CHECKING:
    from rich.table import Table

    from oaml.model import Evidence, Model

MOST_IMAGES = 460
"""Images that are looked at, of as many people as possible: their 105,000 pairs are enough for a rate of 1e-4."""
PEOPLE_NEEDED = 100
"""People from which on corrections are fitted too: they rest on the highest scores, which a few people have of a few faces."""


def calibrate_people(
    model: str,
    *,
    people: Path,
    out: Path,
    seed: int = 0,
    resize: bool = False,
    skip_damaged: bool = False,
    device: str = "auto",
) -> Path:
    """Fit a model's thresholds to your own faces, say how far the stored ones were off, and write the model as a copy.

    First it says how many people and pairs there are and which false-accept rates they are enough for: ten impostor pairs must
    reach a threshold. From 100 people on the corrections of the fused score are fitted too, with occluders drawn on the faces;
    with fewer they stay, and thresholds alone are fitted. A rate that the pairs are too few for keeps its threshold with the
    corrections, and has none with new ones. Of more than 460 images as many people as possible are taken, each with as many
    images. It takes a minute or two on two cores.

    Give people whom nothing has trained on, as they come: 30 to 500 of them, one image each or more. What the model stores of a
    face stays the same: galleries and files of templates work with the copy.

    Example:
        oaml calibrate runs/adapted --people faces/ --out runs/calibrated

    Args:
        model: a model folder, or `starter` for the one in the package.
        people: a folder per person with aligned 112x112 faces; or a CSV manifest, a .rec file or tar shards (`docs/data.md`).
        out: model folder to write; it may be that of the model, which is replaced then.
        seed: of the occluders that are drawn.
        resize: scale images of another size instead of refusing them.
        skip_damaged: read every image once beforehand, and leave out and name those that can't be read.
        device: cpu, cuda, or auto for a GPU where there is one.

    Returns:
        The model folder.

    Raises:
        OamlError: bad input, named, or too few people for any rate. Nothing is written then.
    """
    from rich.console import Console

    out = Path(out)
    if seed < 0:
        raise OamlError(f"--seed: {seed} is negative")
    check_model_folder(out)
    loaded = load_model(model, device)
    everybody = people_from(people, None, resize, skip_damaged)
    if isinstance(everybody, PeopleFolder):
        say_left_out(everybody.left_out)
        for line in everybody.notes + everybody.same_files():
            print(f"note: {printable(line)}", file=sys.stderr)
    chosen = Chosen(everybody, spread(everybody.labels, MOST_IMAGES))
    console = Console(highlight=False)
    for line in what_there_is(everybody, chosen, loaded.config.training.get("people_hashed", [])):
        console.print(printable(line), markup=False, soft_wrap=True)
    pairs = impostor_count(chosen.labels)
    if not enough_negatives(pairs, FARS[0]):
        raise OamlError(
            f"{people}: its people give {pairs:,} impostor pairs, and {MIN_FALSE_ACCEPTS / FARS[0]:,.0f} are needed for a "
            f"threshold at FAR {FARS[0]:g}: with one image each 46 people; add some"
        )
    check_pictures([chosen], [], [], "full", resize)
    old = dict(loaded.config.thresholds)
    whole = fits_corrections(chosen)
    fitted = {f"{far:g}" for far in FARS if enough_negatives(pairs, far)}
    faces = HeldOut(loaded, chosen, KINDS, seed, "a", everybody=True, groups=OCCLUDER_GROUPS)
    was = stored_rates(loaded, faces)
    if whole:
        calibrate(loaded, faces)
    else:
        thresholds_alone(loaded, faces)
    name = readable(Path(people).resolve().name)
    loaded.config.training["thresholds_fitted_on"] += f", faces of {name}"
    loaded.config.training["calibrated"] = (
        f"{'thresholds and corrections' if whole else 'thresholds alone'}, on {len(chosen.people)} people with {len(chosen)} "
        f"images of {name}"
    )
    console.print(table_of(old, was, loaded.config.thresholds, fitted, loaded.config.evidence))
    loaded.cpu().save(out)
    console.print(f"written to {printable(str(out))}", markup=False, soft_wrap=True)
    return out


class Chosen:
    """Some images of people, as people of their own.

    Args:
        source: all of them.
        rows: which images, ascending.
    """

    def __init__(self, source: People, rows: np.ndarray) -> None:
        self.source, self.rows = source, [int(row) for row in rows]
        numbers, self.labels = np.unique(np.asarray(source.labels)[rows], return_inverse=True)
        self.people = [source.people[number] for number in numbers.tolist()]
        owners = [source.people[source.labels[row]] for row in self.rows]
        self.names = [
            below_person(source.names[row], who) for row, who in zip(self.rows, owners, strict=True)
        ]
        self.files = [source.files[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> np.ndarray:
        """RGB uint8 [112,112,3]; OamlError names what can't be read."""
        return self.source.image(self.rows[index])


def spread(labels: np.ndarray, most: int) -> np.ndarray:
    """At most so many images of as many people as there are, each with about as many; rows, ascending.

    Everybody's first image comes before anybody's second. Where not even the first ones fit, people are taken at even steps.

    Args:
        labels: number of the person in each image, [N].
    """
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    turn = np.empty(len(labels), int)  # which image of its person each is
    turn[order] = np.arange(len(labels)) - np.repeat(starts, np.diff(starts, append=len(labels)))
    ranked = np.argsort(turn, kind="stable")
    first = int((turn == 0).sum())
    if first > most:
        return np.sort(ranked[np.linspace(0, first - 1, most).round().astype(int)])
    return np.sort(ranked[:most])


def impostor_count(labels: np.ndarray) -> int:
    """Impostor pairs among some images."""
    counts = np.bincount(labels)
    return int((len(labels) ** 2 - (counts**2).sum()) // 2)


def fits_corrections(people: People) -> bool:
    """Whether people are enough for corrections: in number, and for the rate that these are fitted at."""
    return len(people.people) >= PEOPLE_NEEDED and enough_negatives(impostor_count(people.labels), 1e-3)


def what_there_is(everybody: People, chosen: People, trained: list[str]) -> list[str]:
    """Lines that say before the work what there is to fit on, and what can be fitted.

    Args:
        trained: hashed names of those who took part in the model's training.
    """
    pairs, counts = impostor_count(chosen.labels), np.bincount(chosen.labels)
    genuine = int((counts * (counts - 1) // 2).sum())
    lines = [
        f"{len(chosen.people):,} people with {len(chosen):,} images: {pairs:,} impostor pairs, {genuine:,} genuine ones"
        + (
            f" (of {len(everybody.people):,} people with {len(everybody):,} images)"
            if len(chosen) < len(everybody)
            else ""
        )
    ]
    enough = [f"{far:g}" for far in FARS if enough_negatives(pairs, far)]
    few = [
        f"{far:g} ({MIN_FALSE_ACCEPTS / far:,.0f} pairs)" for far in FARS if not enough_negatives(pairs, far)
    ]
    fitted, left = "thresholds alone", "thresholds there stay"
    if fits_corrections(chosen):
        fitted, left = (
            "thresholds and corrections",
            "no thresholds there, as those before were for other corrections",
        )
    lines.append(
        (f"to be fitted: {fitted}, at FAR {', '.join(enough)}" if enough else "nothing can be fitted")
        + (f"; too few for {', '.join(few)}: {left}" if few else "")
    )
    known = len({*hashed_names(chosen.people)} & {*trained})
    if known:
        lines.append(
            f"note: {known:,} of these people took part in the model's training, by their names; strangers score higher than they "
            "do, so that thresholds fitted on them let through too many"
        )
    return lines


@torch.inference_mode()
def stored_rates(model: Model, faces: HeldOut) -> dict[str, Evidence]:
    """What the stored thresholds accept of the impostor pairs of unoccluded faces."""
    return evidence(*unoccluded_scores(model, faces), model.config.thresholds)


def table_of(
    old: Mapping[str, float],
    was: Mapping[str, Evidence],
    new: Mapping[str, float],
    fitted: set[str],
    now: Mapping[str, Evidence],
) -> Table:
    """The new thresholds beside the stored ones, with what each lets through.

    Args:
        old, new: rate -> threshold.
        was, now: what they let through.
        fitted: rates of the new ones that were fitted.
    """
    from rich.table import Table

    table = Table(
        "FAR", title="impostor pairs of these people that pass (95 % by person)", title_justify="left"
    )
    for column in ("stored", "lets through", "times the rate", "new", "lets through"):
        table.add_column(column, justify="right")
    for far in sorted({*old, *new}, key=float, reverse=True):
        before = ["none", "", ""]
        if far in old:
            before = [f"{old[far]:.3f}", share(was[far]), f"{was[far].far / float(far):.2g}"]
        after = ["none" if far not in new else "stays", ""]
        if far in new and far in fitted:
            after = [f"{new[far]:.3f}", share(now[far])]
        table.add_row(far, *before, *after)
    return table


def share(found: Evidence) -> str:
    """A false-accept rate with its interval."""
    return f"{found.far:.2g} ({found.far_low:.2g} to {found.far_high:.2g})"
