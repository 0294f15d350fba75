"""`oaml evaluate`: all scores side by side on the same images, bare and covered; a page, tables, numbers, pictures."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oaml import __version__
from oaml.errors import OamlError
from oaml.evaluation import conditions, metrics, page
from oaml.evaluation.conditions import BARE, DIFFERENT_LIMIT, PAIR_CLASSES, Faces, Measured
from oaml.evaluation.protocols import Pairs, labels, person_of, read_identification, read_pairs
from oaml.evaluation.summary import CURVE_FAR, Numbers, identification_numbers, with_all
from oaml.evaluation.tables import SHORT, all_tables, condition_name, markdown, show
from oaml.files import write_file
from oaml.inference import BATCH_SIZE, load_model
from oaml.template import COLUMNS, TITLES

if TYPE_CHECKING:
    from oaml.drawing import SharePoint


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

    Writes OUT/report.html (everything, in one file), OUT/report.json (all numbers), OUT/table.md, OUT/maps.png and, with
    pairs, OUT/roc.png, OUT/scores.png, OUT/pairs.png and OUT/robustness.png; prints the main tables. The same images are
    measured bare and under every kind asked for. A cover depends on the seed, the kind and the image's path alone, as in
    `oaml occlude`. Whatever side is asked for, pairs are also measured with one and with both images covered, each with
    its own cover and with the same one (see `oaml.evaluation.conditions`); of long lists a fixed random part. An interval
    in brackets covers 95 % of what other people would give (see `oaml.evaluation.metrics.summarise`); a person is a folder
    of images.

    Example:
        oaml evaluate runs/first/best --images faces --pairs pairs.csv --out report --occlude niqab,mask

    Args:
        model: a model folder (config.json + model.safetensors).
        images: folder that the paths in the lists are relative to.
        out: folder for the results; files of these names are replaced, a picture that lacks data is removed.
        pairs: CSV with the columns path_a, path_b and same (1 or 0).
        identification: CSV with the columns path, person and role (gallery or probe), for rank-1.
        occlude: kinds of cover, separated by commas, or all.
        side: which image of a pair is covered. In identification a is the gallery and b the probe.
        seed: of covers and intervals.
        style: family of covers. b shares no texture and no outline with a, which is for
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
    cover = conditions.coverer(seed, style, templates)
    loaded = load_model(model, device, batch_size)
    faces = Faces(loaded, images, resize, batch_size, cover)
    measured = conditions.measure(faces, listed, known, kinds, side, seed)

    report: dict[str, Any] = {
        "oaml": __version__,
        "model": {"name": str(model), **asdict(loaded.config)},
        "arguments": arguments,
        "kinds": kinds,
        "notes": [],
        "maps": faces.maps,
    }
    if listed is not None:
        numbers = Numbers(listed, measured, bootstrap, seed)
        report["verification"] = numbers.verification(protocol)
        report["frozen_threshold"] = numbers.frozen(loaded.config.thresholds)
        if kinds:
            report["pair_classes"] = numbers.pair_classes(report["verification"])
            report["robustness"] = numbers.robustness()
            report["shortcuts"] = numbers.shortcuts()
        report["examples"] = numbers.examples(report["verification"])
        report["notes"] += _notes(listed, measured)
    if known is not None:
        report["identification"] = identification_numbers(measured, known, bootstrap, seed)
    report = _plain(report)
    _write(report, out, measured, listed)
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


def _notes(pairs: Pairs, measured: Measured) -> list[str]:
    notes = []
    within = [person_of(a) == person_of(b) for a, b in zip(pairs.path_a, pairs.path_b, strict=True)]
    odd = int((np.array(within) != labels(pairs)).sum())
    if odd:
        notes.append(
            f"{odd} of {len(pairs)} pairs disagree with the folders (one person in two of them, or two in one); "
            "the intervals take each folder for one person"
        )
    for name, by_kind in measured.classes.items():
        counts = {int((~labels(pairs)[t.rows]).sum()) for t in by_kind.values()}
        if counts == {DIFFERENT_LIMIT} and (~labels(pairs)).sum() > DIFFERENT_LIMIT:
            notes.append(
                f"{PAIR_CLASSES[name]}: a random {DIFFERENT_LIMIT:,} of the pairs of two people (seeded), "
                "all pairs of one person"
            )
    return notes


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


def _write(report: dict[str, Any], out: Path, measured: Measured, pairs: Pairs | None) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no width, and 80 would cut numbers
    tables = all_tables(report)
    show(console, [table for table in tables if table.key in SHORT])
    for note in report["notes"]:
        console.print(f"note: {note}", style="yellow", markup=False)
    text = [f"# {report['model']['name']}\n", *map(markdown, tables)]
    text += [f"Note: {note}\n" for note in report["notes"]]

    pictures = _draw(report, out, measured, pairs)
    _write_text(out / "table.md", "\n".join(text))
    _write_text(out / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    written = _write_text(out / "report.html", page.html(report, pictures))
    console.print(f"the page: {written}", markup=False, highlight=False, soft_wrap=True)


def _write_text(path: Path, text: str) -> Path:
    return write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _draw(report: dict[str, Any], out: Path, measured: Measured, pairs: Pairs | None) -> dict[str, Path]:
    """Write all pictures that there is something for; one of an earlier run that isn't drawn again is removed."""
    from oaml import drawing

    names = ("roc.png", "scores.png", "robustness.png", "pairs.png", "maps.png")
    drawn = {"maps.png": _draw_maps(out / "maps.png", measured.faces)}
    if pairs is not None:
        same = labels(pairs)
        by_condition = {
            condition_name(condition): {
                TITLES[score]: (
                    np.concatenate([t.scores[score] for t in chosen]),
                    np.tile(same, len(chosen)),
                )
                for score in COLUMNS
            }
            for condition, chosen in with_all(measured.asked).items()
        }
        covered = {"a": "first image", "b": "second image", "both": "both images"}[
            report["arguments"]["side"]
        ]
        counts = f"{same.sum():,} pairs of one person, {(~same).sum():,} of two"
        counts += f"; {covered} covered" * (len(measured.asked) > 1)
        curves = {c: {s: metrics.roc(*pair) for s, pair in by.items()} for c, by in by_condition.items()}
        drawn["roc.png"] = drawing.draw_roc(
            out / "roc.png", curves, title=f"Who is accepted, by score\n{counts}"
        )
        lines = _lines(report)
        drawn["scores.png"] = drawing.draw_histograms(
            out / "scores.png",
            by_condition,
            title=f"Scores of pairs: {counts}" + "\ndashed: one threshold for all conditions" * bool(lines),
            thresholds=lines,
        )
        drawn["pairs.png"] = _draw_pairs(out / "pairs.png", report, measured)
        panels = _panels(report)
        if panels:
            drawn["robustness.png"] = drawing.draw_robustness(
                out / "robustness.png",
                panels,
                title=f"Who is accepted by how much is covered, at the bare threshold of FAR 1e-2\n{counts}; "
                f"hollow: fewer than {metrics.MIN_SAME_PAIRS} pairs",
                edges=metrics.COVERED_SHARES,
            )
    for name in names:
        if name not in drawn:
            (out / name).unlink(missing_ok=True)
    return {name: drawn[name] for name in names if name in drawn}


def _lines(report: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """The threshold of each score that the histograms show: the model's own, or that of the bare pairs."""
    lines = {}
    for score, numbers in report["verification"]["conditions"][BARE].items():
        point = numbers["tar_at_far"][f"{CURVE_FAR:g}"]
        if point and point["threshold"] is not None:
            lines[TITLES[score]] = (point["threshold"], "FAR 1e-2, bare")
    own = report["frozen_threshold"]["scores"]["fused"]
    if own["source"] == "model":
        lines[TITLES["fused"]] = (own["threshold"], "FAR 1e-3, model's own")
    return lines


def _panels(report: dict[str, Any]) -> dict[str, dict[str, list[SharePoint]]]:
    """The robustness curves as they are drawn; each starts at the bare pairs."""
    found = report.get("robustness")
    if not found or found["bare"] is None:
        return {}
    from oaml.drawing import SharePoint

    return {
        "all kinds" if kind == "all" else kind: {
            title: [
                SharePoint(p["share"], p["scores"][s]["tar"], p["scores"][s]["interval"], p["sufficient"])
                for p in (found["bare"], *points)
            ]
            for s, title in TITLES.items()
        }
        for kind, points in found["kinds"].items()
    }


def _draw_pairs(path: Path, report: dict[str, Any], measured: Measured) -> Path:
    from oaml.drawing import PairRow, draw_pair_sheet

    def face(path: str, condition: str) -> np.ndarray:
        bare, covered = measured.faces.read(path, condition)
        return bare if covered is None else covered.image

    blocks = {
        condition if condition == BARE else f"{condition} (the hardest cover)": {
            group: [
                PairRow(
                    face(pair.path_a, pair.condition_a),
                    pair.map_a,
                    face(pair.path_b, pair.condition_b),
                    pair.map_b,
                    f"fused {pair.score:.2f}\n{_brief(pair.path_a)}\n{_brief(pair.path_b)}",
                )
                for pair in found
            ]
            for group, found in measured.asked[condition].examples.items()
        }
        for condition in report["examples"]
    }
    title = "Best and worst pairs: either face and its predicted map (bright = visible, dark = covered)"
    return draw_pair_sheet(path, blocks, title=title)


def _brief(path: str, length: int = 34) -> str:
    """The end of a path, without characters that can't be printed."""
    shown = "".join(c if c.isprintable() else "?" for c in path)
    return shown if len(shown) <= length else "..." + shown[3 - length :]


def _draw_maps(path: Path, faces: Faces) -> Path:
    from oaml.drawing import draw_map_sheet

    each = max(2, 8 // len(faces.examples))
    rows, names = [], []
    for number, (condition, examples) in enumerate(faces.examples.items()):
        # other faces for every condition: more people are seen
        for name in list(np.roll(list(examples), -number * each))[:each]:
            image, covered = faces.read(name, condition)
            predicted = examples[name]
            true = None if covered is None else conditions.on_cells(covered.mask, predicted.shape)
            rows.append((image if covered is None else covered.image, true, predicted))
            names.append(condition)
    return draw_map_sheet(path, rows, title="What the network takes for visible", names=names)
