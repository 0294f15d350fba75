"""What a report looks like: tables for the terminal, for Markdown and for one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
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


def tables(report: dict[str, Any]) -> list[Table]:
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


# --- tables ---


def _verification(report: dict[str, Any]) -> Iterator[Table]:
    if "verification" not in report:
        return
    found = report["verification"]
    every = [numbers for by_score in found["conditions"].values() for numbers in by_score.values()]
    fars = [far for far in every[0]["tar_at_far"] if any(numbers["tar_at_far"][far] for numbers in every)]
    measures: dict[str, Callable[[dict[str, Any]], str]] = {
        f"TAR@FAR {_short(far)}": lambda numbers, far=far: _tar(numbers, far) for far in fars
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
            title += f" FAR {_short(far)}: {LACKING}, needs {needed:,} pairs of two people."
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
    far = _short(found["far"])
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
                    _short(row["far"], 1) if enough else LACKING,
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
        f"TAR by covered share, at the bare threshold of FAR {_short(found['far'])}; "
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
    return _number(value) + (f" ({_number(interval[0])}-{_number(interval[1])})" if interval else "")


def _number(value: float) -> str:
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


def _short(far: str | float, digits: int = 0) -> str:
    """0.01 -> 1e-2."""
    return f"{float(far):.{digits}e}".replace("e-0", "e-") if float(far) else "0"


# --- the page ---


_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#595959;--paper:#fff;--line:#d5d5d5;--zebra:#f4f6f8;--link:#0060a0}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--soft:#a8a8a8;--paper:#16181a;--line:#3a3d40;--zebra:#1f2326;--link:#7cc4f5}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:75rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}h2{font-size:1.2rem;margin:2.2rem 0 .5rem}
.lead{font-size:1.1rem}.said{color:var(--soft);font-size:.9rem;margin:.8rem 0 .3rem}a{color:var(--link)}
p,li{max-width:48rem}nav a{margin-right:.9rem;white-space:nowrap}
.wide{overflow-x:auto;margin:0 0 1rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:nth-child(even){background:var(--zebra)}td{white-space:nowrap}td.path{white-space:normal;overflow-wrap:anywhere}
tr.new td{border-top:2px solid var(--soft)}
figure{margin:.8rem 0}img{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px}
@media screen and (max-width:45rem){figure.large img{max-width:none;width:60rem}}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem}summary{cursor:pointer;color:var(--link)}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--paper:#fff;--line:#bbb;--zebra:#fff}nav{display:none}
body{max-width:none;padding:0;font-size:10pt}table{font-size:7pt}th,td{padding:.1rem .25rem}.wide{overflow:visible}
figure,tr{break-inside:avoid}h2{break-after:avoid}}
"""

_ALT = {
    "roc.png": "ROC curves of all scores, one panel a condition",
    "robustness.png": "share of pairs of one person accepted against covered share, one panel a kind of cover",
    "scores.png": "histograms of the scores of one person and of two, a row a condition, a column a score",
    "pairs.png": "faces of the best and worst pairs beside their predicted visibility maps",
    "maps.png": "faces beside their drawn and predicted visibility maps",
}


def html(report: dict[str, Any], pictures: Mapping[str, Path]) -> str:
    """The whole report as one page without any outside resource.

    Args:
        report: the content of report.json.
        pictures: name -> PNG; those not given are left out.
    """
    by_key = {table.key: _table(table) for table in tables(report)}
    images = {name: _figure(name, path.read_bytes()) for name, path in pictures.items()}
    sections = [
        section
        for section in _sections(report)
        if any(part in by_key or part in images or part.startswith("<") for part in section.parts)
    ]
    body = []
    for number, section in enumerate(sections):
        parts = [
            by_key.get(part, images.get(part, part if part.startswith("<") else "")) for part in section.parts
        ]
        folded = [by_key[key] for key in section.folded if key in by_key]
        body.append(f'<section id="s{number}"><h2>{escape(section.title)}</h2>{"".join(parts)}')
        if folded:
            body.append(f"<details><summary>The numbers</summary>{''.join(folded)}</details>")
        body.append("</section>")
    links = " ".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    name = escape(report["model"]["name"])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Evaluation of {name}</title><style>{_STYLE}</style></head>\n<body><h1>Evaluation of {name}</h1>"
        f'<p class="lead">{escape(headline(report))}</p><nav>{links}</nav>\n'
        + "\n".join(body)
        + "</body></html>\n"
    )


class _Section(NamedTuple):
    title: str
    parts: list[str]
    """Keys of tables, names of pictures, and HTML, which starts with <."""
    folded: tuple[str, ...] = ()
    """Keys of tables that are shown on demand."""


def _sections(report: dict[str, Any]) -> list[_Section]:
    """What the page shows, in order; a section without a table, picture or text is left out."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    model = dict(report["model"])
    facts = [("trained on", model.pop("training")), ("thresholds", model.pop("thresholds"))]
    facts += [("licence", model.pop("licence")), *model.items()]
    settings = Table(
        "", "oaml evaluate", ["argument", "value"], [[k, str(v)] for k, v in report["arguments"].items()]
    )
    described = Table(
        "",
        f"config.json of the model; oaml {report['oaml']}",
        ["key", "value"],
        [[k, _text(v)] for k, v in facts],
    )
    return [
        _Section("What was measured", [_list(_measured(report))]),
        _Section("Scores by cover", ["scores", "roc.png"], ("verification",)),
        _Section("Identification", ["identification"]),
        _Section("One threshold, frozen", ["frozen"]),
        _Section("Pair classes", ["classes"], ("classes, all",)),
        _Section("How much may be covered", ["robustness.png", *_list_if(_robust(report))], ("robustness",)),
        _Section("Distributions", ["scores.png"]),
        _Section("Best and worst pairs", ["pairs.png"], ("examples",)),
        _Section("Visibility maps", ["maps", "maps.png"]),
        _Section("Shortcuts", ["shortcuts", *_list_if(_tails(report)), "tail"]),
        _Section("Notes", [f"<ul>{notes}</ul>"] if notes else []),
        _Section("Arguments and model", [_table(settings), _table(described)]),
    ]


def headline(report: dict[str, Any]) -> str:
    """What the fused score does, bare and under the hardest cover, beside the plain cosine."""
    if "verification" not in report:
        found = report["identification"]["conditions"]
        each = [
            f"{by['fused']['rank1']:.0%} {c} (cosine {by['cosine']['rank1']:.0%})" for c, by in found.items()
        ]
        return f"Probes found first in the gallery by the fused score: {', '.join(each)}."
    found = report["verification"]["conditions"]
    point = found["bare"]["fused"]["tar_at_far"]["0.01"]

    def both(condition: str) -> str:
        fused, cosine = (found[condition][score] for score in ("fused", "cosine"))
        if point is None:
            return f"{_number(fused['auc'])} (plain cosine {_number(cosine['auc'])})"
        return "{:.0%} (plain cosine {:.0%})".format(
            *(s["tar_at_far"]["0.01"]["tar"] for s in (fused, cosine))
        )

    what = (
        "AUC of the fused score"
        if point is None
        else "Pairs of one person that the fused score accepts at FAR 1e-2"
    )
    hardest = min(report["kinds"], key=lambda kind: found[kind]["fused"]["auc"], default=None)
    text = f"{what}: {both('bare')} bare" + (
        f", {both(hardest)} under the hardest cover, {hardest}." if hardest else "."
    )
    rows = report["frozen_threshold"]["scores"]["fused"]["rows"]
    times = [
        f"{row['ratio']:.1f} ({PAIR_CLASSES[row['class']]})"
        for row in rows
        if row["covered"] is None and row["ratio"] is not None
    ]
    if times:
        text += f" Strangers that one frozen threshold of FAR 1e-3 lets in, as a multiple of 1e-3: {', '.join(times)}."
    return text


def _measured(report: dict[str, Any]) -> list[str]:
    given = report["arguments"]
    side = {"a": "first image", "b": "second image", "both": "both images"}[given["side"]]
    lines = []
    if "verification" in report:
        found = report["verification"]
        lines.append(
            f"{found['same_pairs']:,} pairs of one person and {found['different_pairs']:,} of two, from {found['people']:,} "
            f"people (folders) and {report['maps']['bare']['images']:,} images."
        )
    if report["kinds"]:
        lines.append(
            f"Each bare, and with drawn covers: {', '.join(report['kinds'])} (style {given['style']}, seed {given['seed']}), "
            f"on the {side} of a pair unless a table says otherwise. Drawn covers are no photographs of covered people."
        )
    if "pair_classes" in report:
        found = report["pair_classes"]
        groups, limit = found["shared_covers"], found["different_pairs_at_most"]
        lines.append(
            "Pairs are also measured with one and with both images covered, each with its own cover and with the same: "
            + (
                "everybody wears one cover of each kind"
                if groups == 1
                else f"people are put into {groups} groups by their names, "
                "a group wears one cover of each kind, and pairs within a group count"
            )
            + f". For these conditions at most {limit:,} pairs of two people are taken, at random; all pairs of one person stay."
        )
    lines += [
        "Score: higher = more alike. FAR: share of the pairs of two people that are accepted. TAR: share of the pairs of one "
        "person that are accepted. Brackets: what 95 of 100 other draws of people would give.",
        "cosine knows nothing of covers; QAConv compares single cells; QAConv + visibility weighs them by what is visible; the "
        "joint embedding compares what both faces show; fused is all together, the score to decide by.",
    ]
    return lines


def _robust(report: dict[str, Any]) -> list[str]:
    found = report.get("robustness")
    if not found:
        return []
    far = _short(found["far"])
    if found["bare"] is None:
        needed = found["different_pairs_needed"]
        return [f"Insufficient data: a threshold at FAR {far} needs {needed:,} pairs of two people."]
    return [
        f"Every score keeps the threshold that accepts {found['far']:.0%} of the bare pairs of two people of this list.",
        f"Hollow and faint: fewer than {found['same_pairs_needed']} pairs of one person in the bin; without any it is left out.",
        "A threshold that accepts more of one person may accept more strangers too: read this beside the frozen threshold's FAR.",
    ]


def _tails(report: dict[str, Any]) -> list[str]:
    if "shortcuts" not in report:
        return []
    words = {
        True: "rises as the area shrinks: little in common looks alike, and a fixed threshold accepts more strangers there",
        False: "does not rise as the area shrinks",
        None: "can't be compared between areas: insufficient data",
    }
    return [
        "Covers are drawn without regard to people, so their pixels must say no more than chance; a predicted map may also tell "
        "a little of the face. Of many intervals, 1 in 20 misses.",
        *(
            f"{name.capitalize()}: the highest fused score in 1,000 pairs of two people "
            f"{words[tail['rises_as_the_area_shrinks']]}."
            for name, tail in report["shortcuts"]["tail"]["areas"].items()
        ),
    ]


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _list_if(lines: list[str]) -> list[str]:
    return [_list(lines)] if lines else []


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    wordy = {"first image", "second image", "value"}
    rows, last = [], ""
    for row in table.rows:
        mark = (
            ' class="new"'
            if last and row[0] != last and len({r[0] for r in table.rows}) < len(table.rows)
            else ""
        )
        cells = "".join(
            f'<td class="path">{escape(cell)}</td>' if name in wordy else f"<td>{escape(cell)}</td>"
            for name, cell in zip(table.header, row, strict=True)
        )
        rows.append(f"<tr{mark}>{cells}</tr>")
        last = row[0]
    return (
        f'<p class="said">{escape(table.title)}</p><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<figure class="wide large"><img alt="{escape(_ALT[name])}" src="data:image/png;base64,{data}"></figure>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
