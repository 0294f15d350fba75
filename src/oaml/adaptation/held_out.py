"""People that no training saw: on their faces thresholds are fitted and a table tells what a training gave.

The maps after stage 3 do not depend on what `adapt` trains, so they are computed once and several models can be judged on them.
Thresholds and offset are fitted on covers of style a, in any material; the table is about covers of style b.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oaml.adaptation.cache import as_maps, stage3
from oaml.adaptation.calibration import (
    ANCHOR_FAR,
    PAIRS_NEEDED,
    fit_lift,
    fit_offset,
    fit_overlap,
    fit_thresholds,
)
from oaml.datasets.people import People, group_of
from oaml.inference import score_all
from oaml.model import Model
from oaml.occluders import Occluder, Style, occluder_rng
from oaml.support.files import FACE_SIZE
from oaml.support.metrics import enough_negatives, tar_at_far
from oaml.template import COLUMNS, TITLES, Templates
from oaml.visibility import mask_to_cells

if TYPE_CHECKING:
    from rich.console import Console

BARE, ALL = "bare", "all, one threshold"
SHARED = "{}, one cover"
"""Condition in which a group of people wear the very same cover of a kind."""
GROUPS = 8
BLOCK = 128  # faces a pass

Table = dict[str, dict[str, dict[str, float]]]
"""Condition -> score -> FAR as text -> TAR."""


class HeldOut:
    """Faces of people held out, bare and under every kind of cover, as maps after stage 3.

    Args:
        model: its backbone up to stage 3 is used, and whether it looks at mirrored faces.
        people: nobody that was trained on.
        kinds: of occluders.
        seed: of occluders.
        style: a, half of them in another material, for fitting; b for judging.
        mask_pictures: pictures for the kind mask (`occluders.load_mask_pictures`).
        everybody: cover all images; otherwise all but the first one of each person, which is the gallery.
        groups: also dress everybody in the cover of one of so many groups of people: the condition `SHARED.format(kind)`.
    """

    def __init__(
        self,
        model: Model,
        people: People,
        kinds: Sequence[str],
        seed: int,
        style: Style,
        mask_pictures: Sequence[np.ndarray] = (),
        everybody: bool = False,
        groups: int = 0,
    ) -> None:
        self.people, self.kinds = people, list(kinds)
        self.group = np.array([group_of(name, groups) for name in people.names]) if groups else None
        self.occluder = Occluder(seed, style, mask_pictures, retexture_share=0.5 if style == "a" else 0.0)
        self.person = torch.from_numpy(people.labels)
        first = np.unique(people.labels, return_index=True)[1]
        self.gallery = torch.from_numpy(first)
        others = np.arange(len(people)) if everybody else np.setdiff1d(np.arange(len(people)), first)
        self.probes = torch.from_numpy(others)
        self.true: dict[str, np.ndarray] = {BARE: np.ones((len(people), FACE_SIZE, FACE_SIZE), np.float32)}
        self._maps: dict[str, list[np.ndarray]] = {}
        for condition in (BARE, *kinds, *([SHARED.format(kind) for kind in kinds] if groups else [])):
            faces = self._faces(condition)
            self._maps[condition] = [stage3(model, faces)]
            if model.config.flip:
                self._maps[condition].append(stage3(model, [face[:, ::-1] for face in faces]))

    def _faces(self, condition: str) -> list[np.ndarray]:
        """uint8 RGB [112,112,3]: all images unoccluded, or the probes under an occluder."""
        if condition == BARE:
            return [self.people.image(i) for i in range(len(self.people))]
        faces, masks = [], []
        shared = condition not in self.kinds
        kind = next(kind for kind in self.kinds if condition in (kind, SHARED.format(kind)))
        for i in self.probes.tolist():
            wearer = f"group {self.group[i]}" if shared and self.group is not None else self.people.names[i]
            rng = occluder_rng(self.occluder.seed, f"held out {kind}", wearer)
            occluded = self.occluder.draw(self.people.image(i), kind, rng)
            faces.append(occluded.image)
            masks.append(occluded.mask)
        self.true[condition] = np.stack(masks)
        return faces

    def templates(self, model: Model, condition: str) -> Templates:
        """Templates of all bare images or of all covered probes."""
        return templates_of(model, self._maps[condition])

    def map_error(self, probes: Templates, condition: str, rows: Tensor | None = None) -> float:
        """Mean absolute error of the predicted visibility on the matched cells."""
        true = self.true[condition] if rows is None else self.true[condition][rows.numpy()]
        grid = (probes.visibility.shape[2], probes.visibility.shape[3])
        aligned = mask_to_cells(torch.from_numpy(true)[:, None], grid)
        return float((probes.visibility - aligned).abs().mean())


def templates_of(model: Model, sides: Sequence[np.ndarray]) -> Templates:
    """Templates from stored maps after stage 3, [N,14,14,C]: of the faces and, where there are two, of their mirror images."""
    found = [
        Templates.join(
            [
                model.templates(as_maps(maps[start : start + BLOCK]).to(model.device)).to("cpu")
                for start in range(0, len(maps), BLOCK)
            ]
        )
        for maps in sides
    ]
    return found[0].with_mirrored(found[1]) if len(found) == 2 else found[0]


def calibrate(model: Model, faces: HeldOut) -> None:
    """Fit what is taken off the fused score, then the thresholds on bare faces of different people; all go into the model.

    The offset over the unseen share is fitted on bare faces against bare and covered ones, what overlapping covers add on
    pairs of covered faces: of two kinds, of one kind and under the very same cover, by the strictest of these. With fewer
    pairs than an offset needs there is a warning, and both stay zero.

    Args:
        faces: covered in style a, everybody, with groups.
    """
    model.fusion.offset.zero_()
    model.fusion.overlap.zero_()
    model.fusion.lift.fill_(torch.inf)
    bare = faces.templates(model, BARE)
    first, person = faces.gallery, faces.person
    gallery, owner = bare[first], person[faces.probes]
    found = [_different(model, bare, person, gallery, person[first])]
    covered = [faces.templates(model, kind) for kind in faces.kinds]
    found += [_different(model, c, owner, gallery, person[first]) for c in covered]
    pairs = _joined(found)
    fused, unseen = pairs.fused, pairs.unseen
    if len(fused) >= PAIRS_NEEDED:
        model.fusion.offset.copy_(torch.from_numpy(fit_offset(fused, unseen)))
        _calibrate_overlap(model, faces, covered, found[0])
    else:
        warnings.warn(
            f"{len(fused):,} pairs of different people are held out and {PAIRS_NEEDED:,} are needed: the fused score is not "
            "calibrated over the covered share; give more people",
            stacklevel=2,
        )
    fused = _different(model, bare, person, bare, person, once=True).fused
    model.config.thresholds = fit_thresholds(fused)
    model.config.training["thresholds_fitted_on"] = (
        f"{len(fused):,} pairs of bare faces of {len(faces.people.people)} people held out"
    )
    if model.config.thresholds:
        taken = model.fusion.offset_at(torch.from_numpy(pairs.unseen)).numpy()
        taken += model.fusion.overlap.item() * pairs.overlap * np.maximum(pairs.cosine, 0)
        model.fusion.lift.fill_(fit_lift(pairs.fused - taken, pairs.local, model.config.thresholds.values()))


def _calibrate_overlap(model: Model, faces: HeldOut, covered: list[Templates], bare: _Pairs) -> None:
    """Fit what is taken off where covers overlap; the offset is there, `bare` was scored before it."""
    calibrated = bare.fused - model.fusion.offset_at(torch.from_numpy(bare.unseen)).numpy()
    threshold = np.quantile(calibrated, 1 - ANCHOR_FAR)
    some = torch.arange(0, len(faces.probes), 2)
    owner = faces.person[faces.probes][some]
    ways: list[list[_Pairs]] = [[], [], []]
    for own, other in zip(covered, covered[1:] + covered[:1], strict=True):
        ways[0].append(_different(model, own[some], owner, other[some], owner))
        ways[1].append(_different(model, own[some], owner, own[some], owner, once=True))
    if faces.group is not None:
        group = torch.from_numpy(faces.group)[faces.probes]
        for kind in faces.kinds:
            same, parts = faces.templates(model, SHARED.format(kind)), []
            for number in group.unique():
                rows = (group == number).nonzero()[:, 0]
                owner = faces.person[faces.probes][rows]
                parts.append(_different(model, same[rows], owner, same[rows], owner, once=True))
            ways[2].append(_joined(parts))
    needed = [0.0]
    for kinds in ways:
        weight = [np.full(len(pairs.fused), 1 / len(pairs.fused)) for pairs in kinds if len(pairs.fused)]
        if weight:
            fused, cosine, _, overlap, _ = _joined(kinds)
            needed.append(fit_overlap(fused - threshold, overlap, cosine, np.concatenate(weight)))
    model.fusion.overlap.fill_(max(needed))


class _Pairs(NamedTuple):
    """Pairs of different people, [N] each."""

    fused: np.ndarray
    cosine: np.ndarray
    unseen: np.ndarray
    overlap: np.ndarray
    local: np.ndarray
    """What QAConv adds to the fused score."""


def _joined(parts: list[_Pairs]) -> _Pairs:
    return _Pairs(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _different(
    model: Model, a: Templates, person_a: Tensor, b: Templates, person_b: Tensor, once: bool = False
) -> _Pairs:
    """All pairs of different people; `once`: without the mirrored ones."""
    different = person_a[:, None] != person_b
    different = (different.triu(1) if once else different).numpy()
    found = score_all(model, a, np.arange(len(a)), b, np.arange(len(b)), plain=False)
    hidden = model.joint.hidden(a.visibility, b.visibility)
    local = found["qaconv_visibility"] * model.fusion.qaconv_weight.item()
    values = (found["fused"], found["cosine"], *(x.numpy() for x in hidden), local)
    return _Pairs(*(x[different].astype(np.float32) for x in values))


def scores(
    model: Model, faces: HeldOut
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray, dict[str, float]]:
    """One bare face a person against all other images.

    Returns:
        Condition -> score -> [probes, people]; whether each pair is one person; condition -> map error.
    """
    bare = faces.templates(model, BARE)
    gallery = bare[faces.gallery]
    found: dict[str, dict[str, np.ndarray]] = {}
    errors: dict[str, float] = {}
    for condition in (BARE, *faces.kinds):
        rows = faces.probes if condition == BARE else None
        probes = bare[faces.probes] if condition == BARE else faces.templates(model, condition)
        errors[condition] = faces.map_error(probes, condition, rows)
        found[condition] = score_all(model, probes, np.arange(len(probes)), gallery, np.arange(len(gallery)))
    return found, (faces.person[faces.probes, None] == faces.person[faces.gallery]).numpy(), errors


def tars(
    found: dict[str, dict[str, np.ndarray]], same: np.ndarray, fars: Iterable[float] = (1e-2, 1e-3)
) -> Table:
    """Share of probes accepted, each condition at thresholds of its own, and all conditions together at one.

    False-accept rates that the pairs are too few for are left out.
    """
    fars = [far for far in fars if enough_negatives(int((~same).sum()), far)]
    together = {
        score: np.concatenate([values[score] for values in found.values()])
        for score in next(iter(found.values()))
    }
    table: Table = {}
    for condition, by_score in {**found, ALL: together}.items():
        alike = np.tile(same, (len(found), 1)) if condition == ALL else same
        table[condition] = {
            score: {f"{far:g}": tar_at_far(values.ravel(), alike.ravel(), far).tar for far in fars}
            for score, values in by_score.items()
        }
    return table


def show(console: Console, table: Table, errors: dict[str, float], people: int) -> None:
    """Print a table of `tars`, with the map errors."""
    from rich.table import Table as Rich

    fars = list(table[BARE]["cosine"])
    console.print(
        f"{people} people held out: share of probes accepted (TAR) at FAR {' / '.join(fars)}, covers of a style that was not "
        "trained, thresholds of each row"
        if fars
        else "insufficient data: too few pairs of different people are held out to state a TAR",
        highlight=False,
    )
    shown = Rich("condition", "map error", *(TITLES[score] for score in COLUMNS))
    for condition, by_score in table.items():
        cells = (" / ".join(f"{tar:.3f}" for tar in by_score[score].values()) for score in COLUMNS)
        shown.add_row(condition, f"{errors[condition]:.3f}" if condition in errors else "", *cells)
    console.print(shown)
