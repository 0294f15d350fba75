"""The tables of a report, made from the content of report.json, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from oaml.evaluation.conditions import PAIR_CLASSES
from oaml.template import TITLES

if TYPE_CHECKING:
    from rich.console import Console

SHORT = ("scores", "identification", "frozen")
"""Tables that the terminal shows; the others are in the page."""
LACKING = "insufficient data"


class Table(NamedTuple):
    """One table; all cells are text."""

    key: str
    """Where it belongs in the page."""
    title: str
    header: list[str]
    rows: list[list[str]]


def all_tables(report: dict[str, Any]) -> list[Table]:
    """Everything that there is to tabulate in a report."""
    return [table for make in _MAKERS for table in make(report)]


def show(console: Console, chosen: Iterable[Table]) -> None:
    """Print tables; an interval goes below its number, or they would be wider than a terminal."""
    from rich.table import Table as Grid
    from rich.text import Text

    for table in chosen:
        rows = [[cell.replace(" (", "\n(") for cell in row] for row in table.rows]
        grid, last = Grid(), ""
        for place, name in enumerate(table.header):
            lines = [line for row in rows for line in row[place].split("\n")]
            # no wider than its cells: a long heading goes over several lines
            grid.add_column(name, max_width=max(map(len, [*lines, *name.split()])))
        for row in rows:
            if last and row[0] != last:
                grid.add_section()
            cells = ["" if row[0] == last else row[0], *row[1:]]
            grid.add_row(*map(Text, cells))
            last = row[0]
        console.print(table.title, markup=False, highlight=False)
        console.print(grid)


def markdown(table: Table) -> str:
    """A table that also reads well as plain text."""
    rows = [[" ".join(cell.split("\n")).replace("|", "\\|") for cell in row] for row in table.rows]
    widths = [max(len(row[i]) for row in [table.header, *rows]) for i in range(len(table.header))]
    lines = [table.header, ["-" * width for width in widths], *rows]
    padded = (
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
    return f"{table.title}\n\n" + "\n".join(padded) + "\n"


def condition_name(condition: str) -> str:
    """A condition for people."""
    return "all, one threshold" if condition == "all" else condition


def _verification(report: dict[str, Any]) -> Iterator[Table]:
    if "verification" not in report:
        return
    found = report["verification"]
    every = [numbers for by_score in found["conditions"].values() for numbers in by_score.values()]
    fars = [far for far in every[0]["tar_at_far"] if any(numbers["tar_at_far"][far] for numbers in every)]
    measures: dict[str, Callable[[dict[str, Any]], str]] = {
        f"TAR@FAR {short_far(far)}": lambda numbers, far=far: _tar(numbers, far) for far in fars
    }
    measures["AUC"] = lambda numbers: _value(numbers["auc"], numbers["auc_interval"])
    measures["EER"] = lambda numbers: _value(numbers["eer"], numbers["eer_interval"])
    shown = [name for name in measures if name.startswith("TAR")] or ["AUC"]
    if "kfold" in every[0]:
        measures["10-fold accuracy"] = _folds
        shown.append("10-fold accuracy")
    title = (
        f"{found['same_pairs']:,} pairs of one person, {found['different_pairs']:,} of two, {found['people']:,} people; "
        "bare = as photographed; brackets: 95 % intervals by person. Every condition has thresholds of its own."
    )
    for far in every[0]["tar_at_far"]:
        if far not in fars:
            needed = round(found["false_accepts_needed"] / float(far))
            title += f" FAR {short_far(far)}: {LACKING}, needs {needed:,} pairs of two people."
    rows = [
        [name, condition_name(condition), *(measures[name](by_score[score]) for score in TITLES)]
        for name in shown
        for condition, by_score in found["conditions"].items()
    ]
    yield Table("scores", title, ["measure", "condition", *TITLES.values()], rows)
    rows = [
        [condition_name(condition), TITLES[score], *(measure(numbers) for measure in measures.values())]
        for condition, by_score in found["conditions"].items()
        for score, numbers in by_score.items()
    ]
    yield Table("verification", "All measures of the same pairs", ["condition", "score", *measures], rows)


def _identification(report: dict[str, Any]) -> Iterator[Table]:
    if "identification" not in report:
        return
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
    yield Table("identification", title, ["condition", "score", "rank-1"], rows)


def _frozen(report: dict[str, Any]) -> Iterator[Table]:
    if "frozen_threshold" not in report:
        return
    found = report["frozen_threshold"]
    far = short_far(found["far"])
    title = f"One threshold, frozen, at FAR {far}."
    rows = []
    for score, numbers in found["scores"].items():
        if not numbers["rows"]:
            needed = found["different_pairs_needed"]
            title += f" {TITLES[score]}: insufficient data, needs {needed:,} pairs of two people."
            continue
        title += f" {TITLES[score]}: {_limit(numbers['threshold'])}, " + (
            "the model's own, fitted on bare faces of other people."
            if numbers["source"] == "model"
            else "fitted on the bare pairs of two people of this list, so their FAR is met by construction."
        )
        for row in numbers["rows"]:
            enough = row["far"] is not None
            few = row["same_pairs"] < found["same_pairs_needed"]
            rows.append(
                [
                    TITLES[score],
                    PAIR_CLASSES[row["class"]],
                    "" if row["class"] == "bare-bare" else _percent(row["covered"]),
                    f"{row['different_pairs']:,}",
                    f"{row['expected_false_accepts']:,.1f}",
                    short_far(row["far"], 1) if enough else LACKING,
                    _ratio(row, found["far"]) if enough else "",
                    f"{row['same_pairs']:,}",
                    "" if row["tar"] is None else _value(row["tar"], row["tar_interval"]) + "*" * few,
                ]
            )
    if any(LACKING in row for row in rows):
        title += f" FAR: {LACKING} where fewer than {found['expected_needed']} false accepts are expected."
    if any(row[-1].endswith("*") for row in rows):
        title += f" * fewer than {found['same_pairs_needed']} pairs of one person."
    header = ["score", "faces", "covered", "pairs of two", "false accepts expected", "FAR", f"times {far}"]
    yield Table("frozen", title, [*header, "pairs of one", "TAR"], rows)


def _classes(report: dict[str, Any]) -> Iterator[Table]:
    if "pair_classes" not in report:
        return
    found = [
        (PAIR_CLASSES[name], "all kinds" if kind == "all" else kind, by_score)
        for name, by_kind in report["pair_classes"]["classes"].items()
        for kind, by_score in by_kind.items()
    ]
    measured = any(by_score["fused"]["tar_at_far"]["0.01"] for _, _, by_score in found)

    def counts(numbers: dict[str, Any]) -> list[str]:
        return [f"{numbers['same_pairs']:,}", f"{numbers['different_pairs']:,}"]

    def area(numbers: dict[str, Any]) -> str:
        return _value(numbers["auc"], numbers["auc_interval"])

    rows = [
        [
            faces,
            kind,
            *counts(by_score["fused"]),
            *(_tar(by_score[s], "0.01") if measured else area(by_score[s]) for s in TITLES),
        ]
        for faces, kind, by_score in found
    ]
    title = (
        f"{'TAR at FAR 1e-2' if measured else 'AUC'} by class of pairs. Every row has thresholds of its own; how many strangers a "
        "fixed threshold lets in, above all those under the same cover, is in the table of the frozen threshold. (The same cover "
        "on two images of one person makes these more alike as well: that TAR is no achievement.)"
    )
    yield Table("classes", title, ["faces", "cover", "pairs of one", "pairs of two", *TITLES.values()], rows)
    rows = [
        [faces, kind, TITLES[s], *(_tar(numbers, far) for far in ("0.01", "0.001")), area(numbers)]
        for faces, kind, by_score in found
        for s, numbers in by_score.items()
    ]
    header = ["faces", "cover", "score", "TAR@FAR 1e-2", "TAR@FAR 1e-3", "AUC"]
    yield Table("classes, all", "All measures by class of pairs", header, rows)


def _robustness(report: dict[str, Any]) -> Iterator[Table]:
    found = report.get("robustness")
    if not found or found["bare"] is None:
        return
    points = [("bare", "0 %", found["bare"])]
    for kind, bins in found["kinds"].items():
        name = "all kinds" if kind == "all" else kind
        points += [(name, _percent(point["covered"]), point) for point in bins]
    rows = [
        [
            name,
            covered,
            f"{point['same_pairs']:,}" + "*" * (not point["sufficient"]),
            *(_value(point["scores"][score]["tar"], point["scores"][score]["interval"]) for score in TITLES),
        ]
        for name, covered, point in points
    ]
    title = (
        f"TAR by covered share, at the bare threshold of FAR {short_far(found['far'])}; "
        f"* fewer than {found['same_pairs_needed']} pairs"
    )
    yield Table("robustness", title, ["cover", "covered", "pairs of one", *TITLES.values()], rows)


def _shortcuts(report: dict[str, Any]) -> Iterator[Table]:
    if "shortcuts" not in report:
        return
    found = report["shortcuts"]
    names = {"maps_alike": "predicted maps alone", "covers_alike": "pixels of the drawn covers alone"}
    verdicts = {True: "yes", False: "no", None: "not known without intervals"}
    rows = [
        [
            "all kinds" if kind == "all" else kind,
            names[name],
            _value(numbers["auc"], numbers["interval"]),
            verdicts[numbers["at_chance"]],
        ]
        for kind, controls in found["controls"].items()
        for name, numbers in controls.items()
    ]
    title = "Controls: how well covers alone tell one person from two (AUC; .5 is chance), both faces covered"
    yield Table("shortcuts", title, ["cover", "what is compared", "AUC", "chance within the interval"], rows)
    rows = [
        [
            name,
            _percent(row["visible"]),
            f"{row['different_pairs']:,}",
            LACKING if row["score"] is None else f"{row['score']:.2f}",
        ]
        for name, tail in found["tail"]["areas"].items()
        for row in tail["rows"]
    ]
    title = "Fused scores of two people: the value that 1 in 1,000 exceeds, by the area that both faces show"
    yield Table("tail", title, ["covers", "both show", "pairs of two", "99.9th percentile"], rows)


def _maps(report: dict[str, Any]) -> Iterator[Table]:
    rows = []
    for condition, numbers in report["maps"].items():
        values = [numbers[key] for key in ("visible", "true_visible", "error")]
        rows.append(
            [condition, f"{numbers['images']:,}", *("not known" if v is None else f"{v:.3f}" for v in values)]
        )
    title = "Visibility maps: mean over all cells, and mean absolute error against the drawn masks"
    header = ["condition", "images", "predicted visible", "truly visible", "mean absolute error"]
    yield Table("maps", title, header, rows)


def _examples(report: dict[str, Any]) -> Iterator[Table]:
    rows = [
        [condition, group, f"{pair['score']:.2f}", pair["path_a"], pair["path_b"]]
        for condition, groups in report.get("examples", {}).items()
        for group, found in groups.items()
        for pair in found
    ]
    if rows:
        header = ["condition", "pairs", "fused score", "first image", "second image"]
        yield Table("examples", "The pairs of the picture", header, rows)


_MAKERS = (
    _verification,
    _identification,
    _frozen,
    _classes,
    _robustness,
    _shortcuts,
    _maps,
    _examples,
)


def _folds(numbers: dict[str, Any]) -> str:
    folds = numbers.get("kfold")
    return f"{folds['mean']:.3f} ±{folds['std']:.3f}" if folds else ""


def _tar(numbers: dict[str, Any], far: str) -> str:
    point = numbers["tar_at_far"][far]
    return _value(point["tar"], point["interval"]) if point else LACKING


def _value(value: float, interval: list[float] | None) -> str:
    return short_number(value) + (
        f" ({short_number(interval[0])}-{short_number(interval[1])})" if interval else ""
    )


def short_number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _ratio(row: dict[str, Any], far: float) -> str:
    """How many times the stated FAR was measured, with its interval."""
    interval = row["far_interval"]
    return f"{row['ratio']:.2f}" + (f" ({interval[0] / far:.2f}-{interval[1] / far:.2f})" if interval else "")


def _limit(threshold: float | None) -> str:
    return "accepts nothing" if threshold is None else f"score >= {threshold:.3f}"


def _percent(edges: list[float] | None) -> str:
    if edges is None:
        return "any"
    low, high = (round(100 * edge) for edge in edges)
    return f"{low}-{high} %" if high < 100 else f"over {low} %"


def short_far(far: str | float, digits: int = 0) -> str:
    """0.01 -> 1e-2."""
    return f"{float(far):.{digits}e}".replace("e-0", "e-") if float(far) else "0"
