"""What a report holds. `report.json` is `Report`, field by field; `docs/report.md` describes it to its readers.

Keys that are no fields: a *condition* is `unoccluded` (the image as it is), a kind of drawn occluder, or `all` (all of these as one
list under one threshold); a *score* is one of `oaml.template.COLUMNS`; a *class* of pairs is one of `PAIR_CLASSES`. Shares and
rates lie in 0 to 1.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from oaml.support.metrics import Interval

if TYPE_CHECKING:
    from oaml.model import ModelConfig

SCHEMA = 1
"""Rises with every change of a field's name, place or meaning; a new field alone doesn't raise it."""
UNOCCLUDED, ALL_CONDITIONS = "unoccluded", "all"
NONE_OCCLUDED, ONE_OCCLUDED = "none-occluded", "one-occluded"
BOTH_OCCLUDED, SAME_OCCLUDER = "both-occluded", "same-occluder"
PAIR_CLASSES = {
    NONE_OCCLUDED: "neither occluded",
    ONE_OCCLUDED: "one occluded",
    BOTH_OCCLUDED: "both, own occluders",
    SAME_OCCLUDER: "both, same occluder",
}
"""Classes of pairs, with their names for people."""

Side = Literal["a", "b", "both"]
Edges = tuple[float, float]
"""Of a bin: it holds its lower edge, the last one also its upper edge."""


@dataclass(frozen=True)
class Estimate:
    """A measured rate."""

    value: float
    interval: Interval | None
    """Of 95 %, by resampling people; None without resamples."""


@dataclass(frozen=True)
class OperatingPoint:
    """What a score accepts at a stated FAR."""

    tar: Estimate
    threshold: float
    """A pair is accepted when its score is at least this; infinite where nothing can be accepted."""


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy over 10 consecutive folds, each at the threshold that is best on the other nine."""

    mean: float
    std: float
    accuracy: list[float]
    threshold: list[float]
    """Of the cosine a squared distance of unit embeddings, otherwise a score."""


@dataclass(frozen=True)
class Measures:
    """All measures of one score on one list of pairs."""

    genuine_pairs: int
    impostor_pairs: int
    tar_at_far: dict[float, OperatingPoint | None]
    """Stated FAR -> what is accepted; None where the impostor pairs are too few for it."""
    auc: Estimate
    eer: Estimate
    kfold: FoldAccuracy | None = None
    """Only with the protocol lfw, by single condition."""


@dataclass(frozen=True)
class Verification:
    """The pairs of the list, occluded on the side that was asked for."""

    genuine_pairs: int
    impostor_pairs: int
    people: int
    false_accepts_needed: int
    """A FAR is stated where the impostor pairs let at least so many through at it."""
    conditions: dict[str, dict[str, Measures]]
    """Condition -> score -> measures, each at thresholds of its own."""


@dataclass(frozen=True)
class FrozenRow:
    """What one threshold that stays as it is accepts of one class of pairs."""

    pair_class: str
    bin: Edges | None
    """Of the occluded share; None for the whole class."""
    impostor_pairs: int
    expected_false_accepts: float
    far: Estimate | None
    """None where too few false accepts are expected."""
    ratio: float | None
    """Measured FAR divided by the stated one."""
    genuine_pairs: int
    tar: Estimate | None
    """None without genuine pairs."""


@dataclass(frozen=True)
class FrozenScore:
    """One score at one threshold."""

    threshold: float | None
    """None where the unoccluded impostor pairs are too few to fit it."""
    source: Literal["model", "unoccluded pairs of this list"]
    rows: list[FrozenRow]


@dataclass(frozen=True)
class FrozenThreshold:
    """FAR and TAR by class and occluded share at one threshold for all."""

    far: float
    expected_needed: int
    genuine_pairs_needed: int
    impostor_pairs_needed: int
    scores: dict[str, FrozenScore]


@dataclass(frozen=True)
class StoredRow:
    """What a threshold of the model's own accepts of one set of pairs."""

    occluders: Literal["photographed", "drawn"]
    """Whether the faces are as photographed, or under drawn occluders of all kinds."""
    pair_class: str | None
    """None for the whole list as photographed."""
    impostor_pairs: int
    false_accepts: int
    far: Estimate | None
    """None without impostor pairs; an interval of no false accepts ends at 3 divided by the pairs."""
    genuine_pairs: int
    genuine_accepts: int
    tar: Estimate | None
    """None without genuine pairs."""


@dataclass(frozen=True)
class StoredThreshold:
    """A threshold of the fused score from the model's config, on this list."""

    far: float
    """The rate that it is stored for."""
    threshold: float
    rows: list[StoredRow]


@dataclass(frozen=True)
class ClassMeasures:
    """All measures by class of pairs."""

    impostor_pairs_at_most: int
    """In a class that `side` doesn't ask for."""
    shared_occluders: int
    """Of each kind, for pairs under the same occluder."""
    classes: dict[str, dict[str, dict[str, Measures]]]
    """Class -> condition -> score -> measures, each at thresholds of its own."""


@dataclass(frozen=True)
class RobustnessPoint:
    """Genuine pairs in one bin of occluded share."""

    bin: Edges | None
    """None for the unoccluded pairs."""
    occluded_share: float
    """Mean over the pairs."""
    genuine_pairs: int
    sufficient: bool
    tar: dict[str, Estimate]
    """By score."""


@dataclass(frozen=True)
class Robustness:
    """TAR by occluded share, each score at the threshold that the unoccluded pairs give it."""

    far: float
    thresholds: dict[str, float]
    """By score; empty where the impostor pairs are too few."""
    genuine_pairs_needed: int
    impostor_pairs_needed: int
    edges: list[float]
    """Of the bins."""
    unoccluded: RobustnessPoint | None
    """None without thresholds."""
    kinds: dict[str, list[RobustnessPoint]]
    """By kind; a bin without any pair is left out."""


@dataclass(frozen=True)
class Control:
    """How well something that must not say who somebody is tells genuine from impostor pairs; chance is an AUC of 0.5."""

    auc: Estimate
    at_chance: bool | None
    """Whether the interval holds 0.5."""


@dataclass(frozen=True)
class Controls:
    """Of pairs with both faces occluded, each by its own occluder."""

    map_similarity: Control
    """Of the predicted maps alone."""
    occluder_similarity: Control
    """Of the drawn occluders' pixels alone."""


@dataclass(frozen=True)
class TailRow:
    """The highest scores of impostor pairs in one bin of what both faces show."""

    bin: Edges
    impostor_pairs: int
    score: float | None
    """The quantile; None where the pairs are too few for it."""


@dataclass(frozen=True)
class Tail:
    """High scores of impostor pairs by the area that both faces show."""

    rows: list[TailRow]
    rises_as_the_area_shrinks: bool | None
    """None where fewer than two bins have a score."""


@dataclass(frozen=True)
class Shortcuts:
    """Whether occluders alone, or how little is visible, say who somebody is."""

    controls: dict[str, Controls]
    """By kind."""
    tail_quantile: float
    tail_score: str
    tails: dict[str, Tail]
    """For pairs with their own occluders or none, and for those under the same one."""


@dataclass(frozen=True)
class ExamplePair:
    """A pair of the picture of best and worst pairs."""

    path_a: str
    path_b: str
    condition_a: str
    condition_b: str
    score: float
    """The fused one."""


@dataclass(frozen=True)
class OpenSetPoint:
    """A threshold of the fused score from the model's config, on a gallery and strangers."""

    far: float
    """The rate for a pair that it is stored for; a stranger meets as many pairs as the gallery has images."""
    threshold: float
    found: int
    """Probes whose person ranks first and reaches it."""
    false_alarms: int
    """Strangers who reach it with anybody."""


@dataclass(frozen=True)
class BaselineSearch:
    """What a published baseline finds, see `IdentificationResult`."""

    rank1: Estimate
    r_precision: Estimate
    map_at_r: Estimate


@dataclass(frozen=True)
class IdentificationResult:
    """Probes looked up in a gallery that holds the person of each."""

    gallery: int
    probes: int
    people: int
    rank1: dict[str, dict[str, Estimate]]
    """Condition -> score -> share of the probes whose person ranks first (P@1)."""
    rank: dict[str, dict[str, dict[int, float]]]
    """Condition -> score -> K -> share of the probes whose person is among the first K; equal scores count against the probe."""
    r_precision: dict[str, dict[str, Estimate]]
    """Of the first R gallery images, the share that is of the probe's person, who has R images in all."""
    map_at_r: dict[str, dict[str, Estimate]]
    """Mean average precision over the first R (Musgrave et al., A Metric Learning Reality Check, ECCV 2020)."""
    strangers: int
    """Probes whose person isn't in the gallery; without them the rest is empty."""
    tpir_at_fpir: dict[str, dict[str, dict[float, float | None]]]
    """Condition -> score -> share of strangers that reach a threshold -> share of the probes that rank first and reach it; None
    where strangers are too few."""
    stored: dict[str, list[OpenSetPoint]]
    """Condition -> what the model's own thresholds do."""
    baselines: dict[str, dict[str, BaselineSearch]]
    """Condition -> baseline -> what it finds; empty where they weren't asked for."""


@dataclass(frozen=True)
class Alike:
    """Two names that are probably one person's, with the most similar of their images that were compared."""

    person_a: str
    person_b: str
    path_a: str | None = None
    """None where their spelling alone says it."""
    path_b: str | None = None
    score: float | None = None
    """The fused one."""
    same_photograph: bool = False
    """Both images have the same embedding."""
    same_spelling: bool = False
    """The names are the same but for case, accents, spaces and punctuation."""


@dataclass(frozen=True)
class Overlap:
    """People who are probably in the set under two names, or took part in training; the figures count them all the same."""

    far: float
    threshold: float | None
    """Of the fused score; None of a model with too few thresholds: then only one photograph under two names is found."""
    threshold_stored: bool
    """Otherwise it lies on the line through the last two stored ones, over the logarithm of the rate."""
    images: int
    """That were looked at."""
    images_left_out: int
    """Of a larger set, by chance."""
    within: list[Alike]
    training_images: int = 0
    """Of the training people, that were looked at."""
    training_images_left_out: int = 0
    training: list[Alike] | None = None
    """person_a is of the set, person_b a training person; None without their folder."""


@dataclass(frozen=True)
class TemplateRates:
    """Identification of templates in one gallery, or the mean over several."""

    probes: int
    """Templates whose person is in the gallery."""
    strangers: int
    """Templates whose person isn't."""
    rank: dict[int, float | None]
    """K -> share of the probes whose person is among the first K; equal scores count against the probe."""
    tpir_at_fpir: dict[float, float | None]
    """Share of strangers that reach a threshold -> share of the probes that rank first and reach it; None where strangers are too
    few."""


@dataclass(frozen=True)
class TemplateSet:
    """Templates of many images: verified, and identified in galleries of different people."""

    images: int
    templates: int
    genuine_pairs: int
    impostor_pairs: int
    verification: dict[str, dict[float, float | None]]
    """Score -> FAR -> TAR; None where the impostor pairs are too few for it. Empty without a list of pairs."""
    identification: dict[str, dict[str, TemplateRates]]
    """Gallery -> score -> rates; empty without lists of 1:N."""
    identification_mean: dict[str, TemplateRates]
    """Score -> mean over the galleries."""


@dataclass(frozen=True)
class MapQuality:
    """What the network takes for visible, over all cells."""

    images: int
    visible: float
    true_visible: float | None
    """By the drawn masks; None where nothing was drawn."""
    error: float | None
    """Mean absolute difference of the two."""
    miou: float | None
    """Mean over shown and hidden cells of intersection / union, maps and masks cut at .5."""


@dataclass(frozen=True)
class DrawnOccluders:
    """What was drawn onto the images."""

    kinds: list[str]
    side: Side
    style: Literal["a", "b"]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole report; sections that there is nothing for are None or empty."""

    schema: int = SCHEMA
    oaml: str
    """Version of the package."""
    model: str
    """As it was given."""
    config: ModelConfig
    """The model's config.json."""
    arguments: dict[str, str | float | None]
    """Option of `oaml evaluate` -> value."""
    occluders: DrawnOccluders
    notes: list[str] = field(default_factory=list)
    maps: dict[str, MapQuality]
    """By condition."""
    verification: Verification | None = None
    baselines: dict[str, dict[str, Measures]] | None = None
    """Condition -> baseline -> measures of the same pairs; None where they weren't asked for."""
    groups: dict[str, dict[str, Measures]] | None = None
    """Group of pairs, by a published set's own labels -> score -> measures, each at thresholds of its own; None without labels."""
    frozen_threshold: FrozenThreshold | None = None
    stored_thresholds: list[StoredThreshold] = field(default_factory=list)
    pair_classes: ClassMeasures | None = None
    robustness: Robustness | None = None
    shortcuts: Shortcuts | None = None
    examples: dict[str, dict[str, list[ExamplePair]]] = field(default_factory=dict)
    """Condition -> what the pairs are -> pairs."""
    identification: IdentificationResult | None = None
    template_set: TemplateSet | None = None
    """Of IJB-B, IJB-C and IJB-S."""
    template_set_occluded: dict[str, TemplateSet] = field(default_factory=dict)
    """Kind of occluder -> the same under drawn ones."""
    overlap: Overlap | None = None

    def json(self) -> str:
        """The content of report.json; a number that is not finite becomes null."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
