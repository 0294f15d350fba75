"""People that no training saw: thresholds are fitted on their faces, and a table of accept rates is measured on them.

The maps after stage 3 do not depend on what `adapt` trains, so they are computed once and several models can be judged on them.
Thresholds and corrections are fitted on occluders of style a, in any material (`adaptation.thresholds`); the table is measured on
occluders of style b.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from oaml.adaptation.cache import as_maps, stage3
from oaml.datasets.people import People, group_of
from oaml.inference import score_all
from oaml.model import Model
from oaml.occluders import Harvested, Occluder, Style, occluder_rng
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
        harvested: for the kind of this name, its part that belongs to the style.
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
        harvested: Harvested | None = None,
    ) -> None:
        self.people, self.kinds = people, list(kinds)
        self.group = np.array([group_of(name, groups) for name in people.names]) if groups else None
        share = 0.5 if style == "a" else 0.0
        self.occluder = Occluder(seed, style, mask_pictures, retexture_share=share, harvested=harvested)
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
        for i in map(int, self.probes):
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
