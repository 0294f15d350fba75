"""People that no training saw: thresholds are fitted on their faces, and a table of accept rates is measured on them.

The maps after stage 3 do not depend on what `adapt` trains, so they are computed once and several models can be judged on them.
Thresholds and corrections are fitted on occluders of style a, in any material; the table is measured on occluders of style b.
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

UNOCCLUDED, ALL_TOGETHER = "unoccluded", "all, one threshold"
SHARED_OCCLUDER = "{}, one occluder"
"""Condition in which all people of a group wear the very same occluder of a kind."""
OCCLUDER_GROUPS = 8
"""Groups of people in that condition, and so occluders of each kind."""
BLOCK = 128  # faces a pass of the network

Table = dict[str, dict[str, dict[str, float]]]
"""Condition -> score -> FAR as text -> TAR."""


class HeldOut:
    """Faces of people held out, unoccluded and under every kind of occluder, as maps after stage 3.

    Args:
        model: its backbone up to stage 3 is used, and whether it looks at mirrored faces.
        people: nobody that was trained on.
        kinds: of occluders.
        seed: of occluders.
        style: a, half of them in another material, for fitting; b for judging.
        mask_pictures: pictures for the kind mask (`occluders.load_mask_pictures`).
        everybody: occlude all images; otherwise all but the first one of each person, which is the gallery.
        groups: also draw every kind with one occluder for each of so many groups of people: `SHARED_OCCLUDER.format(kind)`.
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
        probes = np.arange(len(people)) if everybody else np.setdiff1d(np.arange(len(people)), first)
        self.probes = torch.from_numpy(probes)
        self.true = {UNOCCLUDED: np.ones((len(people), FACE_SIZE, FACE_SIZE), np.float32)}
        """Condition -> drawn visibility, float32 [N,112,112]: of all images unoccluded, of the probes under occluders."""
        self._maps: dict[str, list[np.ndarray]] = {}
        shared = [SHARED_OCCLUDER.format(kind) for kind in kinds] if groups else []
        for condition in (UNOCCLUDED, *kinds, *shared):
            faces = self._faces(condition)
            self._maps[condition] = [stage3(model, faces)]
            if model.config.flip:
                self._maps[condition].append(stage3(model, [face[:, ::-1] for face in faces]))

    def _faces(self, condition: str) -> list[np.ndarray]:
        """uint8 RGB [112,112,3]: all images unoccluded, or the probes under an occluder."""
        if condition == UNOCCLUDED:
            return [self.people.image(i) for i in range(len(self.people))]
        faces, masks = [], []
        shared = condition not in self.kinds
        kind = next(kind for kind in self.kinds if condition in (kind, SHARED_OCCLUDER.format(kind)))
        for i in self.probes.tolist():
            wearer = f"group {self.group[i]}" if shared and self.group is not None else self.people.names[i]
            rng = occluder_rng(self.occluder.seed, f"held out {kind}", wearer)
            occluded = self.occluder.draw(self.people.image(i), kind, rng)
            faces.append(occluded.image)
            masks.append(occluded.mask)
        self.true[condition] = np.stack(masks)
        return faces

    def templates(self, model: Model, condition: str) -> Templates:
        """Templates of all unoccluded images or of all occluded probes."""
        return templates_of(model, self._maps[condition])

    def map_error(self, probes: Templates, condition: str, rows: Tensor | None = None) -> float:
        """Mean absolute error of the predicted visibility on the matched cells; `rows` of the condition, or all of them."""
        true = self.true[condition] if rows is None else self.true[condition][rows.numpy()]
        grid = (probes.visibility.shape[2], probes.visibility.shape[3])
        aligned = mask_to_cells(torch.from_numpy(true)[:, None], grid)
        return float((probes.visibility - aligned).abs().mean())


def templates_of(model: Model, sides: Sequence[np.ndarray]) -> Templates:
    """Templates from stored maps after stage 3, [N,14,14,C]: of the faces and, where there are two, of their mirror images."""
    faces = [
        Templates.join(
            [
                model.templates(as_maps(maps[start : start + BLOCK]).to(model.device)).to("cpu")
                for start in range(0, len(maps), BLOCK)
            ]
        )
        for maps in sides
    ]
    return faces[0].with_mirrored(faces[1]) if len(faces) == 2 else faces[0]


def calibrate(model: Model, faces: HeldOut) -> None:
    """Fit the corrections of the fused score and its thresholds on impostor pairs of people held out; all go into the model.

    1. The offset by unseen share: on unoccluded faces against unoccluded and occluded ones.
    2. The factor for overlapping occluders: on pairs of two occluded faces, under different kinds, under one kind, and under the
       very same occluder. Each of the three asks for a factor, and the largest is taken.
    3. The thresholds: on pairs of two unoccluded faces.
    4. How far below a threshold QAConv still matters (`fit_lift`): on the pairs of the first step.

    With fewer pairs than the offset needs there is a warning, and offset and factor stay zero.

    Args:
        faces: all images occluded in style a, with groups.
    """
    model.fusion.offset.zero_()
    model.fusion.overlap.zero_()
    model.fusion.lift.fill_(torch.inf)
    unoccluded = faces.templates(model, UNOCCLUDED)
    first, person = faces.gallery, faces.person
    gallery, owner = unoccluded[first], person[faces.probes]
    pairs_unoccluded = _impostor_pairs(model, unoccluded, person, gallery, person[first])
    occluded = [faces.templates(model, kind) for kind in faces.kinds]
    pairs_occluded = [_impostor_pairs(model, probes, owner, gallery, person[first]) for probes in occluded]
    pairs = _joined([pairs_unoccluded, *pairs_occluded])
    if len(pairs.fused) >= PAIRS_NEEDED:
        model.fusion.offset.copy_(torch.from_numpy(fit_offset(pairs.fused, pairs.unseen)))
        _calibrate_overlap(model, faces, occluded, pairs_unoccluded)
    else:
        warnings.warn(
            f"{len(pairs.fused):,} impostor pairs are held out and {PAIRS_NEEDED:,} are needed: the fused score is not "
            "calibrated over the occluded share; give more people",
            stacklevel=2,
        )
    fused = _impostor_pairs(model, unoccluded, person, unoccluded, person, once=True).fused
    model.config.thresholds = fit_thresholds(fused)
    model.config.training["thresholds_fitted_on"] = (
        f"{len(fused):,} impostor pairs of unoccluded faces of {len(faces.people.people)} people held out"
    )
    if model.config.thresholds:
        correction = model.fusion.offset_at(torch.from_numpy(pairs.unseen)).numpy()
        correction += model.fusion.overlap.item() * pairs.overlap * np.maximum(pairs.cosine, 0)
        lift = fit_lift(pairs.fused - correction, pairs.local, model.config.thresholds.values())
        model.fusion.lift.fill_(lift)


def _calibrate_overlap(model: Model, faces: HeldOut, occluded: list[Templates], unoccluded: _Pairs) -> None:
    """Fit the factor for overlapping occluders. The model has its offset already, `unoccluded` was scored before it had."""
    calibrated = unoccluded.fused - model.fusion.offset_at(torch.from_numpy(unoccluded.unseen)).numpy()
    threshold = np.quantile(calibrated, 1 - ANCHOR_FAR)
    half = torch.arange(0, len(faces.probes), 2)
    owner = faces.person[faces.probes][half]
    halves = [probes[half] for probes in occluded]
    shifted = halves[1:] + halves[:1]
    two_kinds = [_impostor_pairs(model, a, owner, b, owner) for a, b in zip(halves, shifted, strict=True)]
    one_kind = [_impostor_pairs(model, a, owner, a, owner, once=True) for a in halves]
    one_occluder = []
    if faces.group is not None:
        group = torch.from_numpy(faces.group)[faces.probes]
        for kind in faces.kinds:
            same, parts = faces.templates(model, SHARED_OCCLUDER.format(kind)), []
            for number in group.unique():
                rows = (group == number).nonzero()[:, 0]
                owner = faces.person[faces.probes][rows]
                parts.append(_impostor_pairs(model, same[rows], owner, same[rows], owner, once=True))
            one_occluder.append(_joined(parts))
    factors = [0.0]
    for by_kind in (two_kinds, one_kind, one_occluder):  # within each of the three all kinds weigh the same
        weight = [np.full(len(pairs.fused), 1 / len(pairs.fused)) for pairs in by_kind if len(pairs.fused)]
        if weight:
            fused, cosine, _, overlap, _ = _joined(by_kind)
            factors.append(fit_overlap(fused - threshold, overlap, cosine, np.concatenate(weight)))
    model.fusion.overlap.fill_(max(factors))


class _Pairs(NamedTuple):
    """Impostor pairs, [N] each."""

    fused: np.ndarray
    cosine: np.ndarray
    unseen: np.ndarray
    overlap: np.ndarray
    local: np.ndarray
    """What QAConv adds to the fused score."""


def _joined(parts: list[_Pairs]) -> _Pairs:
    return _Pairs(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _impostor_pairs(
    model: Model, a: Templates, person_a: Tensor, b: Templates, person_b: Tensor, once: bool = False
) -> _Pairs:
    """All impostor pairs of a face of a and one of b; `once`: a and b are the same faces, and (i, j) makes (j, i) needless."""
    different = person_a[:, None] != person_b
    different = (different.triu(1) if once else different).numpy()
    by_score = score_all(model, a, np.arange(len(a)), b, np.arange(len(b)), plain=False)
    hidden = model.joint.hidden(a.visibility, b.visibility)
    local = by_score["qaconv_visibility"] * model.fusion.qaconv_weight.item()
    values = (by_score["fused"], by_score["cosine"], *(x.numpy() for x in hidden), local)
    return _Pairs(*(x[different].astype(np.float32) for x in values))


def scores(
    model: Model, faces: HeldOut
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray, dict[str, float]]:
    """One unoccluded gallery face of each person against all probes.

    Returns:
        Condition -> score -> [probes, people]; whether each pair is genuine; condition -> map error.
    """
    unoccluded = faces.templates(model, UNOCCLUDED)
    gallery = unoccluded[faces.gallery]
    scored: dict[str, dict[str, np.ndarray]] = {}
    errors: dict[str, float] = {}
    for condition in (UNOCCLUDED, *faces.kinds):
        rows = faces.probes if condition == UNOCCLUDED else None
        probes = faces.templates(model, condition) if rows is None else unoccluded[rows]
        errors[condition] = faces.map_error(probes, condition, rows)
        scored[condition] = score_all(model, probes, np.arange(len(probes)), gallery, np.arange(len(gallery)))
    return scored, (faces.person[faces.probes, None] == faces.person[faces.gallery]).numpy(), errors


def tars(
    scored: dict[str, dict[str, np.ndarray]], same: np.ndarray, fars: Iterable[float] = (1e-2, 1e-3)
) -> Table:
    """Share of probes accepted, each condition at thresholds of its own, and all conditions together at one.

    False-accept rates that the pairs are too few for are left out.
    """
    fars = [far for far in fars if enough_negatives(int((~same).sum()), far)]
    together = {
        score: np.concatenate([values[score] for values in scored.values()])
        for score in next(iter(scored.values()))
    }
    table: Table = {}
    for condition, by_score in {**scored, ALL_TOGETHER: together}.items():
        genuine = np.tile(same, (len(scored), 1)) if condition == ALL_TOGETHER else same
        table[condition] = {
            score: {f"{far:g}": tar_at_far(values.ravel(), genuine.ravel(), far).tar for far in fars}
            for score, values in by_score.items()
        }
    return table


def show(console: Console, table: Table, errors: dict[str, float], people: int) -> None:
    """Print a table of `tars`, with the map errors."""
    from rich.table import Table as Rich

    fars = list(table[UNOCCLUDED]["cosine"])
    console.print(
        f"{people} people held out, on whom the thresholds were fitted too: share of probes accepted (TAR) at FAR "
        f"{' / '.join(fars)}, occluders of a style that was not trained, thresholds of each row"
        if fars
        else "insufficient data: too few impostor pairs are held out to state a TAR",
        highlight=False,
    )
    shown = Rich("condition", "map error", *(TITLES[score] for score in COLUMNS))
    for condition, by_score in table.items():
        cells = (" / ".join(f"{tar:.3f}" for tar in by_score[score].values()) for score in COLUMNS)
        shown.add_row(condition, f"{errors[condition]:.3f}" if condition in errors else "", *cells)
    console.print(shown)
