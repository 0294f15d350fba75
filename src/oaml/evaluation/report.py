"""`oaml evaluate`: all scores side by side on the same images, bare and covered; table, numbers, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oaml import __version__
from oaml.errors import OamlError
from oaml.evaluation import metrics
from oaml.evaluation.protocols import (
    Identification,
    Pairs,
    labels,
    person_of,
    read_identification,
    read_pairs,
)
from oaml.evaluation.scoring import BATCH_SIZE, extract, load_model, score_all, score_pairs
from oaml.files import read_image, write_file
from oaml.template import Templates

if TYPE_CHECKING:
    from oaml.model import Model
    from oaml.occluders import Covered

BARE = "bare"
ALL = "all"
TITLES = {
    "cosine": "cosine",
    "qaconv": "QAConv",
    "qaconv_visibility": "QAConv + visibility",
    "joint": "joint embedding",
    "fused": "fused",
}
"""Scores in the order of the table, with their names for people."""
PROBE_BLOCK = 128

Scores = dict[str, dict[str, np.ndarray]]
"""Condition -> score -> [N]."""


def evaluate(
    model: str,
    *,
    images: Path,
    out: Path,
    pairs: Path | None = None,
    identification: Path | None = None,
    occlude: str | None = None,
    side: Literal["a", "b", "both"] = "b",
    seed: int = 0,
    style: Literal["a", "b"] = "b",
    templates: Path | None = None,
    protocol: Literal["pairs", "lfw"] = "pairs",
    resize: bool = False,
    batch_size: int = BATCH_SIZE,
    bootstrap: int = 200,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a model on people it was not trained on, bare and under drawn covers.

    Writes OUT/report.json (all numbers), OUT/table.md, OUT/maps.png and, with pairs, OUT/roc.png and
    OUT/scores.png; prints the table. The same images are measured bare and under every kind asked for. A
    cover depends on the seed, the kind and the image's path alone, as in `oaml occlude`. An interval in
    brackets covers 95 % of what other people would give (see `oaml.evaluation.metrics.summarise`); a person
    is a folder of images.

    Example:
        oaml evaluate runs/first/best --images faces --pairs pairs.csv --out report --occlude niqab,mask

    Args:
        model: a model folder (config.json + model.safetensors).
        images: folder that the paths in the lists are relative to.
        out: folder for the results; files of these names are replaced.
        pairs: CSV with the columns path_a, path_b and same (1 or 0).
        identification: CSV with the columns path, person and role (gallery or probe), for rank-1.
        occlude: kinds of cover, separated by commas, or all.
        side: which image of a pair is covered. In identification a is the gallery and b the probe.
        seed: of covers and intervals.
        style: family of covers. The default, b, shares no texture and no outline with a, which is for
            training.
        templates: folder of mask pictures with alpha, for the kind mask.
        protocol: lfw adds the accuracy over 10 consecutive folds of the list.
        resize: scale images of another size instead of refusing them.
        batch_size: faces read at a time; on a GPU also faces a pass.
        bootstrap: resamples for the intervals; 0 leaves them out.
        device: cpu, cuda, or auto for a GPU where there is one.

    Returns:
        The content of report.json.

    Raises:
        OamlError: a wrong option, list, image or model. Nothing is written then.
    """
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in locals().items()}
    images, out = Path(images), Path(out)
    kinds = _kinds(occlude)
    _check(out, pairs, identification, protocol, templates, kinds, seed, bootstrap)
    listed = None if pairs is None else read_pairs(pairs, images)
    known = None if identification is None else read_identification(identification, images)
    if listed is not None:
        _check_pairs(Path(pairs or ""), listed, protocol)
    cover = _coverer(seed, style, templates)
    loaded = load_model(model, device, batch_size)

    measured = _Faces(loaded, images, resize, batch_size, cover)
    sides = _sides(listed, known)
    scores: Scores = {}
    hits: Scores = {}
    for condition in (BARE, *kinds):
        covered = (
            set().union(*(sides[name] for name in ("ab" if side == "both" else side))) if kinds else set()
        )
        measured.measure(condition, sides["a"] | sides["b"] if condition == BARE else covered)
        if listed is not None:
            scores[condition] = _score(loaded, measured, listed, condition, side)
        if known is not None:
            hits[condition] = _identify(loaded, measured, known, condition, side)

    report: dict[str, Any] = {
        "oaml": __version__,
        "model": {"name": str(model), **asdict(loaded.config)},
        "arguments": arguments,
        "notes": [],
        "maps": measured.maps,
    }
    if listed is not None:
        report["verification"] = _verification(scores, listed, protocol, bootstrap, seed)
        report["notes"] += _notes(listed)
    if known is not None:
        report["identification"] = _identification(hits, known, bootstrap, seed)
    report = _plain(report)
    _write(report, out, scores, listed, measured, side)
    return report


# --- options ---


def _kinds(occlude: str | None) -> list[str]:
    from oaml.occluders import KINDS

    if occlude is None:
        return []
    kinds = list(KINDS) if occlude == "all" else list(dict.fromkeys(k.strip() for k in occlude.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise OamlError(f"no cover is called {kind!r}; choose among {', '.join(KINDS)}, or all")
    return kinds


def _check(
    out: Path,
    pairs: Path | None,
    identification: Path | None,
    protocol: str,
    templates: Path | None,
    kinds: list[str],
    seed: int,
    bootstrap: int,
) -> None:
    if pairs is None and identification is None:
        raise OamlError("nothing to measure: give --pairs or --identification, or both")
    if protocol == "lfw" and pairs is None:
        raise OamlError("protocol lfw is about pairs; give --pairs")
    if templates is not None and "mask" not in kinds:
        raise OamlError("templates are pictures of masks; add mask to --occlude or leave them out")
    if seed < 0 or bootstrap < 0:
        raise OamlError(f"seed and bootstrap start at 0, these are {seed} and {bootstrap}")
    if out.exists() and not out.is_dir():
        raise OamlError(f"{out}: is a file; name a folder for the results")


def _check_pairs(file: Path, pairs: Pairs, protocol: str) -> None:
    same = labels(pairs)
    if same.all() or not same.any():
        lacking = "different people (same = 0)" if same.all() else "one person (same = 1)"
        raise OamlError(f"{file}: holds no pair of {lacking}; measuring needs pairs of both classes")
    if protocol == "lfw" and len(pairs) < 10:
        raise OamlError(f"{file}: holds {len(pairs)} pairs; protocol lfw needs at least 10, one a fold")


def _coverer(seed: int, style: Literal["a", "b"], templates: Path | None) -> Callable[..., Covered]:
    from oaml.occluders import cover_rng, load_templates, occlude

    pictures = [] if templates is None else load_templates(templates)

    def cover(image: np.ndarray, kind: str, path: str) -> Covered:
        rng = cover_rng(seed, kind, Path(path).as_posix())
        return occlude(image, kind, rng, pictures, style=style)

    return cover


def _sides(pairs: Pairs | None, known: Identification | None) -> dict[str, set[str]]:
    """The images on side a (and in the gallery) and on side b (and among the probes)."""
    a, b = set(), set()
    if pairs is not None:
        a.update(pairs.path_a)
        b.update(pairs.path_b)
    if known is not None:
        a.update(known.gallery)
        b.update(known.probes)
    return {"a": a, "b": b}


# --- measuring ---


@dataclass
class _Covering:
    """The features of some images under one condition."""

    faces: Templates
    place: dict[str, int]


class _Faces:
    """Features of the bare images and of those under the latest cover; never of more, to bound memory."""

    def __init__(
        self, model: Model, images: Path, resize: bool, batch_size: int, cover: Callable[..., Covered]
    ) -> None:
        self.model, self.images, self.resize, self.batch_size = model, images, resize, batch_size
        self.cover = cover
        self.bare: _Covering | None = None
        self.latest: _Covering | None = None
        self.maps: dict[str, dict[str, Any]] = {}
        """Condition -> how visible faces were and how far off the maps are; goes into the report."""
        self.examples: dict[str, dict[str, np.ndarray]] = {}
        """Condition -> path -> predicted map [h,w], for the sheet of maps."""

    def read(self, path: str, condition: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Image uint8 [112,112,3] and its true mask [112,112] where a cover was drawn."""
        image = read_image(self.images / path, resize=self.resize)
        return (image, None) if condition == BARE else self.cover(image, condition, path)

    def measure(self, condition: str, paths: set[str]) -> None:
        """Extract the features of the images under the condition and judge their maps."""
        names = sorted(paths)
        true: list[np.ndarray] = []

        def stream() -> Iterator[np.ndarray]:
            for path in names:
                image, mask = self.read(path, condition)
                if mask is not None:
                    assert self.bare is not None  # measured first
                    true.append(_area_average(mask, tuple(self.bare.faces.visibility.shape[2:])))
                yield image

        faces = extract(
            self.model, stream(), len(names), batch_size=self.batch_size, label=f"faces, {condition}"
        )
        self.latest = _Covering(faces, {path: i for i, path in enumerate(names)})
        if condition == BARE:
            self.bare = self.latest
        found: dict[str, Any] = {"images": len(names), "visible": float(faces.visible().mean())}
        # Nothing is known about what covers a photograph; only what was drawn has a true map.
        found["true_visible"] = float(np.mean(true)) if true else None
        found["error"] = (
            float(np.abs(faces.visibility[:, 0].numpy() - np.array(true)).mean()) if true else None
        )
        self.maps[condition] = found
        some = np.unique(np.linspace(0, len(names) - 1, min(8, len(names))).astype(int))
        self.examples[condition] = {names[i]: faces.visibility[i, 0].numpy().copy() for i in some}

    def side(self, paths: list[str], covered: bool) -> tuple[Templates, np.ndarray]:
        """The features that hold these images, bare or under the latest cover, and their places in them."""
        chosen = self.latest if covered else self.bare
        assert chosen is not None
        return chosen.faces, np.array([chosen.place[path] for path in paths])


def _area_average(mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Mask [H,W] -> mean of each cell, float32 [h,w]; H and W are multiples of h and w."""
    height, width = grid
    return mask.reshape(height, mask.shape[0] // height, width, mask.shape[1] // width).mean((1, 3))


def _score(model: Model, faces: _Faces, pairs: Pairs, condition: str, side: str) -> dict[str, np.ndarray]:
    covered = condition != BARE
    return score_pairs(
        model,
        *faces.side(pairs.path_a, covered and side in ("a", "both")),
        *faces.side(pairs.path_b, covered and side in ("b", "both")),
        name=lambda i: f"{pairs.path_a[i]} and {pairs.path_b[i]} ({condition})",
        label=f"pairs, {condition}",
    )


def _identify(
    model: Model, faces: _Faces, known: Identification, condition: str, side: str
) -> dict[str, np.ndarray]:
    """Which probes each score finds, bool [P]; in blocks, so that the scores of all never stand in memory."""
    covered = condition != BARE
    gallery, index_g = faces.side(known.gallery, covered and side in ("a", "both"))
    probes, index_p = faces.side(known.probes, covered and side in ("b", "both"))
    people_g, people_p = np.array(known.gallery_person), np.array(known.probe_person)
    hits: dict[str, list[np.ndarray]] = {score: [] for score in TITLES}
    for start in range(0, len(index_p), PROBE_BLOCK):
        part = slice(start, start + PROBE_BLOCK)
        found = score_all(
            model,
            probes,
            index_p[part],
            gallery,
            index_g,
            name=lambda i, start=start: f"{known.probes[start + i]} ({condition})",
        )
        for score, values in found.items():
            hits[score].append(metrics.rank1_hits(values, people_p[part], people_g))
    return {score: np.concatenate(parts) for score, parts in hits.items()}


# --- numbers ---


def _verification(scores: Scores, pairs: Pairs, protocol: str, bootstrap: int, seed: int) -> dict[str, Any]:
    same = labels(pairs)
    people = [np.array([person_of(path) for path in side]) for side in (pairs.path_a, pairs.path_b)]
    conditions: dict[str, Any] = {}
    for condition, by_score in _with_all(scores).items():
        times = len(next(iter(by_score.values()))) // len(same)
        conditions[condition] = {}
        for score, values in by_score.items():
            summary = metrics.summarise(
                values,
                np.tile(same, times),
                np.tile(people[0], times),
                np.tile(people[1], times),
                resamples=bootstrap,
                seed=seed,
                repeats=times,
            )
            numbers = _numbers(summary)
            if protocol == "lfw" and condition != ALL:
                numbers["kfold"] = _kfold(score, values, same)
            conditions[condition][score] = numbers
    return {
        "same_pairs": int(same.sum()),
        "different_pairs": int((~same).sum()),
        "people": len(np.unique(np.concatenate(people))),
        "false_accepts_needed": metrics.MIN_FALSE_ACCEPTS,
        "conditions": conditions,
    }


def _with_all(scores: Scores) -> Scores:
    """Adds all conditions, bare included, as one list: what a single threshold for everybody achieves."""
    if len(scores) == 1:
        return scores
    return {**scores, ALL: {score: np.concatenate([by[score] for by in scores.values()]) for score in TITLES}}


def _numbers(summary: metrics.Summary) -> dict[str, Any]:
    tar: dict[str, Any] = {}
    for far, point in summary.tar.items():
        interval = summary.tar_interval[far]
        tar[f"{far:g}"] = point and {
            "tar": point.tar,
            "threshold": point.threshold,
            "interval": interval and list(interval),
        }
    return {
        "same_pairs": summary.same_pairs,
        "different_pairs": summary.different_pairs,
        "tar_at_far": tar,
        "auc": summary.auc,
        "auc_interval": summary.auc_interval and list(summary.auc_interval),
        "eer": summary.eer,
        "eer_interval": summary.eer_interval and list(summary.eer_interval),
    }


def _kfold(score: str, values: np.ndarray, same: np.ndarray) -> dict[str, Any]:
    if score == "cosine":
        folds = metrics.kfold_accuracy(2 - 2 * values, same)  # squared distance of unit embeddings
    else:
        # A logit has no agreed grid of thresholds: every value that occurs is one.
        distances = -values
        folds = metrics.kfold_accuracy(distances, same, thresholds=np.append(np.unique(distances), np.inf))
    return {
        "mean": float(folds.accuracy.mean()),
        "std": float(folds.accuracy.std()),
        "accuracy": folds.accuracy.tolist(),
        "threshold": (folds.threshold if score == "cosine" else -folds.threshold).tolist(),
    }


def _identification(hits: Scores, known: Identification, bootstrap: int, seed: int) -> dict[str, Any]:
    people = np.array(known.probe_person)
    conditions: dict[str, Any] = {}
    for condition, by_score in hits.items():
        conditions[condition] = {}
        for score, found in by_score.items():
            interval = metrics.bootstrap_mean(found, people, bootstrap, seed)
            conditions[condition][score] = {
                "rank1": float(found.mean()),
                "interval": interval and list(interval),
            }
    return {
        "gallery": len(known.gallery),
        "probes": len(known.probes),
        "people": len(set(known.gallery_person)),
        "conditions": conditions,
    }


def _notes(pairs: Pairs) -> list[str]:
    within = [person_of(a) == person_of(b) for a, b in zip(pairs.path_a, pairs.path_b, strict=True)]
    odd = int((np.array(within) != labels(pairs)).sum())
    if not odd:
        return []
    return [
        f"{odd} of {len(pairs)} pairs disagree with the folders (one person in two of them, or two in one); "
        "the intervals take each folder for one person"
    ]


def _plain(value: Any) -> Any:
    """What JSON can hold: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


# --- results ---


def _write(
    report: dict[str, Any],
    out: Path,
    scores: Scores,
    pairs: Pairs | None,
    faces: _Faces,
    side: str,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from oaml import drawing

    text = [f"# {report['model']['name']}\n"]
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no width, and 80 would cut numbers
    for title, header, rows in _tables(report):
        table = Table(*header)
        last = ""
        for row in rows:
            if last and row[0] != last:
                table.add_section()
            # the interval goes below its number, or the table is wider than a terminal
            table.add_row(
                "" if row[0] == last else row[0], row[1], *(c.replace(" (", "\n(") for c in row[2:])
            )
            last = row[0]
        console.print(title, markup=False, highlight=False)
        console.print(table)
        text += [title + "\n", _markdown(header, rows)]
    for note in report["notes"]:
        console.print(f"note: {note}", style="yellow", markup=False)
        text.append(f"Note: {note}\n")

    covered = {"a": "first image", "b": "second image", "both": "both images"}[side]
    if pairs is not None:
        same = labels(pairs)
        drawn = {
            _name(condition): {TITLES[score]: values for score, values in by_score.items()}
            for condition, by_score in _with_all(scores).items()
        }
        counts = f"{same.sum():,} pairs of one person, {(~same).sum():,} of two"
        if len(scores) > 1:
            counts += f"; {covered} covered"
        everything = {
            condition: {
                score: (values, np.tile(same, len(values) // len(same))) for score, values in by.items()
            }
            for condition, by in drawn.items()
        }
        curves = {
            c: {score: metrics.roc(*pair) for score, pair in by.items()} for c, by in everything.items()
        }
        drawing.draw_roc(out / "roc.png", curves, title=f"Who is accepted, by score\n{counts}")
        drawing.draw_histograms(out / "scores.png", everything, title=f"Scores of pairs: {counts}")
    _draw_maps(out / "maps.png", faces)
    write_file(out / "table.md", lambda temporary: temporary.write_text("\n".join(text), encoding="utf-8"))
    content = json.dumps(report, indent=2, allow_nan=False) + "\n"
    write_file(out / "report.json", lambda temporary: temporary.write_text(content, encoding="utf-8"))
    console.print(f"written to {out}", markup=False, highlight=False)


def _draw_maps(path: Path, faces: _Faces) -> None:
    from oaml.drawing import draw_map_sheet

    each = max(2, 8 // len(faces.examples))
    rows, names = [], []
    for number, (condition, examples) in enumerate(faces.examples.items()):
        # other faces for every condition: more people are seen
        for name in list(np.roll(list(examples), -number * each))[:each]:
            image, mask = faces.read(name, condition)
            predicted = examples[name]
            true = None if mask is None else _area_average(mask, predicted.shape)
            rows.append((image, true, predicted))
            names.append(condition)
    draw_map_sheet(path, rows, title="What the network takes for visible", names=names)


def _name(condition: str) -> str:
    return "all, one threshold" if condition == ALL else condition


def _tables(report: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of everything there is to tabulate."""
    if "verification" in report:
        found = report["verification"]
        every = [numbers for by_score in found["conditions"].values() for numbers in by_score.values()]
        fars = [far for far in every[0]["tar_at_far"] if any(numbers["tar_at_far"][far] for numbers in every)]
        folded = "kfold" in every[0]
        rows = []
        for condition, by_score in found["conditions"].items():
            for score, numbers in by_score.items():
                points = [numbers["tar_at_far"][far] for far in fars]
                folds = numbers.get("kfold")
                rows.append(
                    [
                        _name(condition),
                        TITLES[score],
                        *(_value(p["tar"], p["interval"]) if p else "insufficient data" for p in points),
                        _value(numbers["auc"], numbers["auc_interval"]),
                        _value(numbers["eer"], numbers["eer_interval"]),
                        *([f"{folds['mean']:.3f} ±{folds['std']:.3f}" if folds else ""] if folded else []),
                    ]
                )
        names = [f"TAR@FAR {_short(far)}" for far in fars]
        header = ["condition", "score", *names, "AUC", "EER", *(["10-fold accuracy"] if folded else [])]
        title = (
            f"Verification: {found['same_pairs']:,} pairs of one person, {found['different_pairs']:,} "
            f"of two, {found['people']:,} people; bare = as photographed; brackets: 95 % intervals by person."
        )
        for far in every[0]["tar_at_far"]:
            if far not in fars:
                needed = round(found["false_accepts_needed"] / float(far))
                title += f" FAR {_short(far)}: insufficient data, needs {needed:,} pairs of two people."
        yield title, header, rows
    if "identification" in report:
        found = report["identification"]
        rows = [
            [condition, TITLES[score], _value(numbers["rank1"], numbers["interval"])]
            for condition, by_score in found["conditions"].items()
            for score, numbers in by_score.items()
        ]
        title = (
            f"Identification: {found['probes']:,} probes in a gallery of {found['gallery']:,} images of "
            f"{found['people']:,} people"
        )
        yield title, ["condition", "score", "rank-1"], rows
    rows = []
    for condition, numbers in report["maps"].items():
        values = [numbers[key] for key in ("visible", "true_visible", "error")]
        rows.append(
            [condition, f"{numbers['images']:,}", *("not known" if v is None else f"{v:.3f}" for v in values)]
        )
    title = "Visibility maps: mean over all cells, and mean absolute error against the drawn masks"
    yield title, ["condition", "images", "predicted visible", "truly visible", "mean absolute error"], rows


def _value(value: float, interval: list[float] | None) -> str:
    return _number(value) + (f" ({_number(interval[0])}-{_number(interval[1])})" if interval else "")


def _number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _short(far: str) -> str:
    """0.01 -> 1e-2."""
    return f"{float(far):.0e}".replace("e-0", "e-")


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table that also reads well as plain text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = (
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
    return "\n".join(padded) + "\n"
