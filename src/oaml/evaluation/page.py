"""The page of a report: report.html with all tables and pictures in one file that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from oaml.evaluation.results import PAIR_CLASSES, UNOCCLUDED, Report
from oaml.evaluation.tables import Table, all_tables, short_far, short_number
from oaml.occluders import HARVESTED

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

SIDES = {"a": "first image", "b": "second image", "both": "both images"}
"""Sides of a pair, with their names for people."""
_ALT = {
    "roc.png": "ROC curves of all scores, one panel a condition",
    "robustness.png": "share of genuine pairs accepted against occluded share, one panel a kind of occluder",
    "scores.png": "histograms of the scores of genuine and impostor pairs, a row a condition, a column a score",
    "pairs.png": "faces of the best and worst pairs beside their predicted visibility maps",
    "maps.png": "faces beside their drawn and predicted visibility maps",
}


def html(report: Report, pictures: Mapping[str, Path]) -> str:
    """The whole report as one page without any outside resource.

    Args:
        report: all numbers.
        pictures: name -> PNG; those not given are left out.
    """
    by_key = {table.key: _table(table) for table in all_tables(report)}
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
    name = escape(report.model)
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


def _sections(report: Report) -> list[_Section]:
    """What the page shows, in order; a section without a table, picture or text is left out."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    config = asdict(report.config)
    first = {"trained on": config.pop("training"), "thresholds": config.pop("thresholds")}
    first["licence"] = config.pop("licence")
    settings = [[name, str(value)] for name, value in report.arguments.items()]
    described = [[name, _text(value)] for name, value in (first | config).items()]
    return [
        _Section("What was measured", [_list(_measured(report))]),
        _Section("Templates of many images", [t.key for t in all_tables(report) if t.key.startswith("1:")]),
        _Section("Scores by occluder", ["scores", "baselines", "groups", "roc.png"], ("verification",)),
        _Section("Identification", ["identification", "baselines, found", "open set", "open set, stored"]),
        _Section("The model's own thresholds", ["stored"]),
        _Section("One threshold, frozen", ["frozen"]),
        _Section("Pair classes", ["classes"], ("classes, all",)),
        _Section("How much may be occluded", ["robustness.png", *_list_if(_robust(report))], ("robustness",)),
        _Section("Distributions", ["scores.png"]),
        _Section("Best and worst pairs", ["pairs.png"], ("examples",)),
        _Section("Visibility maps", ["maps", "maps.png"]),
        _Section("Shortcuts", ["shortcuts", *_list_if(_tails(report)), "tail"]),
        _Section("People under two names", ["overlap"]),
        _Section("Notes", [f"<ul>{notes}</ul>"] if notes else []),
        _Section(
            "Arguments and model",
            [
                _table(Table("", "oaml evaluate", ["argument", "value"], settings)),
                _table(
                    Table("", f"config.json of the model; oaml {report.oaml}", ["key", "value"], described)
                ),
            ],
        ),
    ]


def headline(report: Report) -> str:
    """What the fused score does, unoccluded and under the hardest occluder, beside the plain cosine."""
    if report.template_set is not None:
        stated = {
            far: tar
            for far, tar in report.template_set.verification.get("fused", {}).items()
            if tar is not None
        }
        each = [
            f"{tar:.1%} at FAR {short_far(far)} (plain pooling {report.template_set.verification['plain'][far]:.1%})"
            for far, tar in stated.items()
        ]
        return (
            f"Genuine pairs of templates that the fused score accepts: {', '.join(each) or 'too few pairs'}."
        )
    if report.verification is None:
        each = [
            f"{by['fused'].value:.0%} {condition} (cosine {by['cosine'].value:.0%})"
            for condition, by in (report.identification.rank1 if report.identification else {}).items()
        ]
        return f"Probes found first in the gallery by the fused score: {', '.join(each)}."
    conditions = report.verification.conditions
    stated = conditions[UNOCCLUDED]["fused"].tar_at_far[1e-2] is not None

    def both(condition: str) -> str:
        fused, cosine = (conditions[condition][score] for score in ("fused", "cosine"))
        points = [measures.tar_at_far[1e-2] for measures in (fused, cosine)]
        if None in points:
            return f"{short_number(fused.auc.value)} (plain cosine {short_number(cosine.auc.value)})"
        return "{:.0%} (plain cosine {:.0%})".format(*(point.tar.value for point in points if point))

    what = "Genuine pairs that the fused score accepts at FAR 1e-2" if stated else "AUC of the fused score"
    hardest = min(report.occluders.kinds, key=lambda kind: conditions[kind]["fused"].auc.value, default=None)
    text = f"{what}: {both(UNOCCLUDED)} unoccluded" + (
        f", {both(hardest)} under the hardest occluder, {hardest}." if hardest else "."
    )
    times = [
        f"{row.ratio:.1f} ({PAIR_CLASSES[row.pair_class]})"
        for row in (report.frozen_threshold.scores["fused"].rows if report.frozen_threshold else ())
        if row.bin is None and row.ratio is not None
    ]
    if times:
        text += f" Impostor pairs that one frozen threshold of FAR 1e-3 accepts, as a multiple of 1e-3: {', '.join(times)}."
    return text


def _measured(report: Report) -> list[str]:
    drawn, pairs, classes = report.occluders, report.verification, report.pair_classes
    lines = []
    if pairs is not None:
        lines.append(
            f"{pairs.genuine_pairs:,} genuine pairs (of one person) and {pairs.impostor_pairs:,} impostor pairs (of two), from "
            f"{pairs.people:,} people (folders) and {report.maps[UNOCCLUDED].images:,} images."
        )
    if drawn.kinds:
        lines.append(
            f"Each unoccluded, and with drawn occluders: {', '.join(drawn.kinds)} (style {drawn.style}, seed {drawn.seed}), on the "
            f"{SIDES[drawn.side]} of a pair unless a table says otherwise. Drawn occluders are no photographs of occluded people"
            + ("; harvested ones are cut out of such photographs." if HARVESTED in drawn.kinds else ".")
        )
    if classes is not None:
        lines.append(
            "Pairs are also measured with one and with both images occluded, each by its own occluder and by the same: "
            + (
                "everybody wears one occluder of each kind"
                if classes.shared_occluders == 1
                else f"people are put into {classes.shared_occluders} groups by their names, "
                "a group wears one occluder of each kind, and pairs within a group count"
            )
            + f". For these conditions at most {classes.impostor_pairs_at_most:,} impostor pairs are taken, at random; all genuine "
            "pairs stay."
        )
    lines += [
        "Score: higher = more similar. FAR: share of the impostor pairs that are accepted. TAR: share of the genuine pairs that "
        "are accepted. Brackets: what 95 of 100 other draws of people would give.",
        "cosine knows nothing of occluders; QAConv compares single cells; QAConv + visibility weighs them by what is visible; the "
        "joint embedding (masked by visibility) compares what both faces show; fused is all together, the score to decide by.",
    ]
    return lines


def _robust(report: Report) -> list[str]:
    section = report.robustness
    if section is None:
        return []
    if section.unoccluded is None:
        far, needed = short_far(section.far), section.impostor_pairs_needed
        return [f"Insufficient data: a threshold at FAR {far} needs {needed:,} impostor pairs."]
    return [
        f"Every score keeps the threshold that accepts {section.far:.0%} of the unoccluded impostor pairs of this list.",
        f"Hollow and faint: fewer than {section.genuine_pairs_needed} genuine pairs in the bin; without any it is left out.",
        "A threshold that accepts more genuine pairs may accept more impostor pairs too: read this beside the frozen threshold's "
        "FAR.",
    ]


def _tails(report: Report) -> list[str]:
    if report.shortcuts is None:
        return []
    words = {
        True: "rises as the area shrinks: little in common looks similar, and a fixed threshold accepts more impostor pairs there",
        False: "does not rise as the area shrinks",
        None: "can't be compared between areas: insufficient data",
    }
    return [
        "Occluders are drawn without regard to people, so their pixels must say no more than chance; a predicted map may also tell "
        "a little of the face. Of many intervals, 1 in 20 misses.",
        *(
            f"{name.capitalize()}: the highest fused score in 1,000 impostor pairs {words[tail.rises_as_the_area_shrinks]}."
            for name, tail in report.shortcuts.tails.items()
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
