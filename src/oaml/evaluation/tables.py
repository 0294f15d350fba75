"""The tables of a report, for the terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from oaml.evaluation.results import (
    ALL_CONDITIONS,
    NONE_OCCLUDED,
    PAIR_CLASSES,
    UNOCCLUDED,
    Edges,
    Estimate,
    Measures,
    OperatingPoint,
    Report,
    TemplateSet,
)
from oaml.template import TITLES

if TYPE_CHECKING:
    from rich.console import Console

SHORT = (
    *("1:1", "1:N G1", "1:N G2", "1:N G1 and G2", "1:N mean"),
    *(
        "scores",
        "baselines",
        "groups",
        "identification",
        "baselines, found",
        "open set",
        "open set, stored",
        "stored",
        "frozen",
    ),
)
"""Tables that the terminal shows; the others are in the page."""
LACKING = "insufficient data"


class Table(NamedTuple):
    """One table; all cells are text."""

    key: str
    """Where it belongs in the page."""
    title: str
    header: list[str]
    rows: list[list[str]]


def shown(table: Table) -> bool:
    """Whether the terminal shows it."""
    return table.key.partition(",")[0] in SHORT or table.key in SHORT


def all_tables(report: Report) -> list[Table]:
    """Everything that there is to tabulate in a report."""
    return [table for make in _MAKERS for table in make(report)]


def headline(report: Report) -> str | None:
    """The whole report in a sentence: who is accepted by the fused score, and by the plain cosine of the same network on the same
    pairs, each at a threshold of its own for every condition. None without pairs enough for FAR 1e-2."""
    section = report.verification
    if section is None:
        return None
    parts = []
    for condition, by_score in section.conditions.items():
        fused, cosine = (by_score[score].tar_at_far.get(1e-2) for score in ("fused", "cosine"))
        if fused is None or cosine is None:
            return None
        parts.append(f"{condition_name(condition)} {_percent_of(fused)} ({_percent_of(cosine)})")
    return (
        "Of genuine pairs are accepted at FAR 1e-2 by the fused score, in brackets by the plain cosine of the same network: "
        f"{'; '.join(parts)}."
    )


def _percent_of(point: OperatingPoint) -> str:
    return f"{100 * point.tar.value:.0f} %"


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
    return "all, one threshold" if condition == ALL_CONDITIONS else condition


def kind_name(kind: str) -> str:
    """A kind of occluder for people."""
    return "all kinds" if kind == ALL_CONDITIONS else kind


def _verification(report: Report) -> Iterator[Table]:
    section = report.verification
    if section is None:
        return
    every = [measures for by_score in section.conditions.values() for measures in by_score.values()]
    fars = [far for far in every[0].tar_at_far if any(measures.tar_at_far[far] for measures in every)]
    columns: dict[str, Callable[[Measures], str]] = {
        f"TAR@FAR {short_far(far)}": lambda measures, far=far: _tar(measures, far) for far in fars
    }
    shown = list(columns) or ["AUC", "EER"]
    columns["AUC"] = lambda measures: _value(measures.auc)
    columns["EER"] = lambda measures: _value(measures.eer)
    if every[0].kfold is not None:
        columns["10-fold accuracy"] = _folds
        shown.append("10-fold accuracy")
    title = (
        f"{section.genuine_pairs:,} genuine and {section.impostor_pairs:,} impostor pairs of {section.people:,} people; "
        "unoccluded = as photographed; brackets: 95 % intervals by person. Every condition has thresholds of its own."
    )
    for far in every[0].tar_at_far:
        if far not in fars:
            needed = round(section.false_accepts_needed / far)
            title += f" FAR {short_far(far)}: {LACKING}, needs {needed:,} impostor pairs."
    rows = [
        [name, condition_name(condition), *(columns[name](by_score[score]) for score in TITLES)]
        for name in shown
        for condition, by_score in section.conditions.items()
    ]
    yield Table("scores", title, ["measure", "condition", *TITLES.values()], rows)
    rows = [
        [condition_name(condition), TITLES[score], *(column(measures) for column in columns.values())]
        for condition, by_score in section.conditions.items()
        for score, measures in by_score.items()
    ]
    yield Table("verification", "All measures of the same pairs", ["condition", "score", *columns], rows)


def _baselines(report: Report) -> Iterator[Table]:
    """The published baselines beside the plain cosine and the fused score."""
    if report.baselines is not None and report.verification is not None:
        rows = []
        for condition, by_name in report.baselines.items():
            ours = report.verification.conditions[condition]
            for name, measures in {**by_name, **{TITLES[s]: ours[s] for s in ("cosine", "fused")}}.items():
                tars = [_tar(measures, far) for far in (1e-2, 1e-3)]
                rows.append(
                    [condition_name(condition), name, *tars, _value(measures.auc), _value(measures.eer)]
                )
        header = ["condition", "score", "TAR@FAR 1e-2", "TAR@FAR 1e-3", "AUC", "EER"]
        yield Table("baselines", "Published baselines with the same network, same pairs", header, rows)
    section = report.identification
    if section is None or not section.baselines:
        return
    rows = []
    for condition, by_name in section.baselines.items():
        for name, found in by_name.items():
            rows.append([condition, name, *map(_value, (found.rank1, found.r_precision, found.map_at_r))])
        for score in ("cosine", "fused"):
            rates = (section.rank1, section.r_precision, section.map_at_r)
            rows.append([condition, TITLES[score], *(_value(rate[condition][score]) for rate in rates)])
    header = ["condition", "score", "rank-1", "R-precision", "MAP@R"]
    yield Table("baselines, found", "Published baselines with the same network, same probes", header, rows)


def _groups(report: Report) -> Iterator[Table]:
    if report.groups is None:
        return
    every = [measures for by_score in report.groups.values() for measures in by_score.values()]
    fars = [far for far in every[0].tar_at_far if any(m.tar_at_far[far] for m in every)] if every else []
    rows = [
        [
            group,
            TITLES[score],
            f"{measures.genuine_pairs:,}",
            f"{measures.impostor_pairs:,}",
            *(_tar(measures, far) for far in fars),
            _value(measures.auc),
            _value(measures.eer),
        ]
        for group, by_score in report.groups.items()
        for score, measures in by_score.items()
    ]
    title = (
        "By what the two photographs show, as the set's own labels say; every row has thresholds of its own"
    )
    header = [
        "photographs",
        "score",
        "genuine pairs",
        "impostor pairs",
        *(f"TAR@FAR {short_far(far)}" for far in fars),
    ]
    yield Table("groups", title, [*header, "AUC", "EER"], rows)


def _identification(report: Report) -> Iterator[Table]:
    section = report.identification
    if section is None:
        return
    rows = [
        [
            condition,
            TITLES[score],
            *(
                _value(rates[condition][score])
                for rates in (section.rank1, section.r_precision, section.map_at_r)
            ),
            *map(short_number, section.rank[condition][score].values()),
        ]
        for condition, by_score in section.rank1.items()
        for score in by_score
    ]
    title = (
        f"Identification: {section.probes:,} probes in a gallery of {section.gallery:,} images of "
        f"{section.people:,} people"
    )
    ranks = [f"rank {k}" for k in section.rank[UNOCCLUDED]["fused"]]
    header = ["condition", "score", "rank-1", "R-precision", "MAP@R", *ranks]
    yield Table("identification", title, header, rows)
    if not section.strangers:
        return
    rows = [
        [condition, TITLES[score], *(LACKING if v is None else short_number(v) for v in rates.values())]
        for condition, by_score in section.tpir_at_fpir.items()
        for score, rates in by_score.items()
    ]
    fpirs = next(iter(section.tpir_at_fpir[UNOCCLUDED].values()))
    title = (
        f"Open set: the same probes, and {section.strangers:,} strangers. TPIR: share of the probes whose person ranks first with "
        "at least the threshold that a share FPIR of the strangers reaches."
    )
    header = ["condition", "score", *(f"TPIR@FPIR {short_far(fpir)}" for fpir in fpirs)]
    yield Table("open set", title, header, rows)
    rows = [
        [
            condition,
            short_far(point.far),
            f"{point.threshold:.3f}",
            f"{point.found:,} of {section.probes:,}",
            f"{point.false_alarms:,} of {section.strangers:,}",
        ]
        for condition, points in section.stored.items()
        for point in points
    ]
    if rows:
        title = "The model's own thresholds, fused score: a stranger meets every image of the gallery, each at the stated FAR"
        header = ["condition", "stated FAR", "threshold", "probes found", "strangers named"]
        yield Table("open set, stored", title, header, rows)


def _stored(report: Report) -> Iterator[Table]:
    names = {"photographed": "as photographed", "drawn": "drawn occluders"}
    rows = [
        [
            short_far(stored.far),
            names[row.occluders] + (f", {PAIR_CLASSES[row.pair_class]}" if row.pair_class else ""),
            f"{row.false_accepts:,} of {row.impostor_pairs:,}",
            "" if row.far is None else _rate(row.far),
            f"{row.genuine_accepts:,} of {row.genuine_pairs:,}",
            "" if row.tar is None else _value(row.tar),
        ]
        for stored in report.stored_thresholds
        for row in stored.rows
    ]
    if rows:
        limits = ", ".join(f"{s.threshold:.3f} for FAR {short_far(s.far)}" for s in report.stored_thresholds)
        title = (
            f"What the model's own thresholds accept of this list, by the fused score alone: {limits}. "
            f"Brackets: 95 % by person; of no false accepts up to 3 divided by the pairs."
        )
        header = ["stated FAR", "faces", "impostor pairs accepted", "FAR", "genuine pairs accepted", "TAR"]
        yield Table("stored", title, header, rows)


def _frozen(report: Report) -> Iterator[Table]:
    section = report.frozen_threshold
    if section is None:
        return
    far = short_far(section.far)
    title = f"One threshold, frozen, at FAR {far}."
    rows = []
    for score, frozen in section.scores.items():
        if frozen.threshold is None:
            title += f" {TITLES[score]}: {LACKING}, needs {section.impostor_pairs_needed:,} impostor pairs."
            continue
        limit = f"score >= {frozen.threshold:.3f}" if isfinite(frozen.threshold) else "accepts nothing"
        title += f" {TITLES[score]}: {limit}, " + (
            "the model's own, fitted on unoccluded faces of other people."
            if frozen.source == "model"
            else "fitted on the unoccluded impostor pairs of this list, so their FAR is met by construction."
        )
        for row in frozen.rows:
            few = row.genuine_pairs < section.genuine_pairs_needed
            ratio = ""
            if row.far is not None:
                ratio = f"{row.ratio:.2f}"
                if row.far.interval:
                    ratio += " ({:.2f}-{:.2f})".format(*(end / section.far for end in row.far.interval))
            rows.append(
                [
                    TITLES[score],
                    PAIR_CLASSES[row.pair_class],
                    "" if row.pair_class == NONE_OCCLUDED else _percent(row.bin),
                    f"{row.impostor_pairs:,}",
                    f"{row.expected_false_accepts:,.1f}",
                    LACKING if row.far is None else short_far(row.far.value, 1),
                    ratio,
                    f"{row.genuine_pairs:,}",
                    "" if row.tar is None else _value(row.tar) + "*" * few,
                ]
            )
    if any(LACKING in row for row in rows):
        title += f" FAR: {LACKING} where fewer than {section.expected_needed} false accepts are expected."
    if any(row[-1].endswith("*") for row in rows):
        title += f" * fewer than {section.genuine_pairs_needed} genuine pairs."
    header = ["score", "faces", "occluded share", "impostor pairs", "false accepts expected", "FAR"]
    yield Table("frozen", title, [*header, f"times {far}", "genuine pairs", "TAR"], rows)


def _classes(report: Report) -> Iterator[Table]:
    section = report.pair_classes
    if section is None:
        return
    conditions = [
        (PAIR_CLASSES[name], kind_name(kind), by_score)
        for name, by_kind in section.classes.items()
        for kind, by_score in by_kind.items()
    ]
    measured = any(by_score["fused"].tar_at_far[1e-2] for *_, by_score in conditions)
    rows = [
        [
            faces,
            kind,
            f"{by_score['fused'].genuine_pairs:,}",
            f"{by_score['fused'].impostor_pairs:,}",
            *(_tar(by_score[s], 1e-2) if measured else _value(by_score[s].auc) for s in TITLES),
        ]
        for faces, kind, by_score in conditions
    ]
    title = (
        f"{'TAR at FAR 1e-2' if measured else 'AUC'} by class of pairs. Every row has thresholds of its own; how many impostor "
        "pairs a fixed threshold accepts, above all those under the same occluder, is in the table of the frozen threshold. (The "
        "same occluder on two images of one person makes these more similar as well: that TAR is no achievement.)"
    )
    header = ["faces", "occluder", "genuine pairs", "impostor pairs", *TITLES.values()]
    yield Table("classes", title, header, rows)
    rows = [
        [faces, kind, TITLES[s], *(_tar(measures, far) for far in (1e-2, 1e-3)), _value(measures.auc)]
        for faces, kind, by_score in conditions
        for s, measures in by_score.items()
    ]
    header = ["faces", "occluder", "score", "TAR@FAR 1e-2", "TAR@FAR 1e-3", "AUC"]
    yield Table("classes, all", "All measures by class of pairs", header, rows)


def _robustness(report: Report) -> Iterator[Table]:
    section = report.robustness
    if section is None or section.unoccluded is None:
        return
    points = [(UNOCCLUDED, section.unoccluded)]
    points += [(kind_name(kind), point) for kind, bins in section.kinds.items() for point in bins]
    rows = [
        [
            name,
            "0 %" if point.bin is None else _percent(point.bin),
            f"{point.genuine_pairs:,}" + "*" * (not point.sufficient),
            *(_value(point.tar[score]) for score in TITLES),
        ]
        for name, point in points
    ]
    title = (
        f"TAR by occluded share, at the unoccluded threshold of FAR {short_far(section.far)}; "
        f"* fewer than {section.genuine_pairs_needed} pairs"
    )
    header = ["occluder", "occluded share", "genuine pairs", *TITLES.values()]
    yield Table("robustness", title, header, rows)


def _shortcuts(report: Report) -> Iterator[Table]:
    section = report.shortcuts
    if section is None:
        return
    verdicts = {True: "yes", False: "no", None: "not known without intervals"}
    rows = [
        [kind_name(kind), name, _value(control.auc), verdicts[control.at_chance]]
        for kind, controls in section.controls.items()
        for name, control in (
            ("predicted maps alone", controls.map_similarity),
            ("pixels of the drawn occluders alone", controls.occluder_similarity),
        )
    ]
    title = "Controls: how well occluders alone tell genuine from impostor pairs (AUC; .5 is chance), both faces occluded"
    header = ["occluder", "what is compared", "AUC", "chance within the interval"]
    yield Table("shortcuts", title, header, rows)
    rows = [
        [
            name,
            _percent(row.bin),
            f"{row.impostor_pairs:,}",
            LACKING if row.score is None else f"{row.score:.2f}",
        ]
        for name, tail in section.tails.items()
        for row in tail.rows
    ]
    title = (
        "Fused scores of impostor pairs: the value that 1 in 1,000 exceeds, by the area that both faces show"
    )
    yield Table("tail", title, ["occluders", "both show", "impostor pairs", "99.9th percentile"], rows)


def _maps(report: Report) -> Iterator[Table]:
    if not report.maps:
        return
    rows = [
        [
            condition,
            f"{maps.images:,}",
            *(
                "not known" if value is None else f"{value:.3f}"
                for value in (maps.visible, maps.true_visible, maps.error, maps.miou)
            ),
        ]
        for condition, maps in report.maps.items()
    ]
    title = "Visibility maps: mean over all cells, and mean absolute error against the drawn masks"
    header = ["condition", "images", "predicted visible", "truly visible", "mean absolute error", "mIoU"]
    yield Table("maps", title, header, rows)


def _examples(report: Report) -> Iterator[Table]:
    rows = [
        [condition, group, f"{pair.score:.2f}", pair.path_a, pair.path_b]
        for condition, groups in report.examples.items()
        for group, pairs in groups.items()
        for pair in pairs
    ]
    if rows:
        header = ["condition", "pairs", "fused score", "first image", "second image"]
        yield Table("examples", "The pairs of the picture", header, rows)


def _overlap(report: Report) -> Iterator[Table]:
    section = report.overlap
    if section is None:
        return
    rows = [
        [
            where,
            pair.person_a,
            pair.person_b,
            "" if pair.score is None else f"{pair.score:.2f}",
            "; ".join(
                why
                for why, is_so in (
                    ("one photograph", pair.same_photograph),
                    ("alike", pair.score is not None and not pair.same_photograph),
                    ("names", pair.same_spelling),
                )
                if is_so
            ),
            pair.path_a or "",
            pair.path_b or "",
        ]
        for where, found in (("in the set", section.within), ("in training", section.training or []))
        for pair in found
    ]
    if rows:
        title = "Probably one person under two names; the figures count them all the same."
        if section.threshold is not None:
            title += (
                f" Alike: a fused score of at least {section.threshold:.2f}, "
                + ("stored" if section.threshold_stored else "on the line through the model's thresholds")
                + f" for FAR {short_far(section.far)}."
            )
        header = ["where", "name", "other name", "fused score", "why", "first image", "second image"]
        yield Table("overlap", title, header, rows)


def _template_set(report: Report) -> Iterator[Table]:
    if report.template_set is None:
        return
    for condition, section in {UNOCCLUDED: report.template_set, **report.template_set_occluded}.items():
        yield from _templates(section, condition, _side_words(report))


def _side_words(report: Report) -> str:
    return {"a": "a (1:N: the gallery)", "b": "b (1:N: the probes)", "both": "both"}[report.occluders.side]


def _templates(section: TemplateSet, condition: str, side: str) -> Iterator[Table]:
    under = "" if condition == UNOCCLUDED else f"{condition} on side {side}: "
    key = "" if condition == UNOCCLUDED else f", {condition}"
    first = next(iter(section.verification.values()), {})
    rows = [
        [TITLES.get(score, score), *(LACKING if tar is None else short_number(tar) for tar in tars.values())]
        for score, tars in section.verification.items()
    ]
    title = (
        f"{under}1:1, {section.templates:,} templates of {section.images:,} images, {section.genuine_pairs:,} genuine and "
        f"{section.impostor_pairs:,} impostor pairs: TAR at FAR. Plain: cosine of embeddings pooled by medium; the others are of "
        "templates pooled by visibility."
    )
    if rows:
        yield Table(f"1:1{key}", title, ["score", *map(short_far, first)], rows)
    for name, by_score in {**section.identification, "mean": section.identification_mean}.items():
        if not by_score:
            continue
        one = next(iter(by_score.values()))
        rows = [
            [
                TITLES.get(score, score),
                *(
                    LACKING if value is None else short_number(value)
                    for value in (*rates.rank.values(), *rates.tpir_at_fpir.values())
                ),
            ]
            for score, rates in by_score.items()
        ]
        which = "mean over the galleries" if name == "mean" else f"gallery {name}"
        header = ["score", *(f"rank {k}" for k in one.rank)]
        header += [f"TPIR@FPIR {short_far(fpir)}" for fpir in one.tpir_at_fpir]
        title = (
            f"{under}1:N, {which}: {one.probes:,} probes whose person is in it, {one.strangers:,} strangers"
        )
        yield Table(f"1:N {name}{key}", title, header, rows)


_MAKERS = (
    _template_set,
    _verification,
    _baselines,
    _groups,
    _identification,
    _stored,
    _frozen,
    _classes,
    _robustness,
    _shortcuts,
    _maps,
    _examples,
    _overlap,
)


def _folds(measures: Measures) -> str:
    folds = measures.kfold
    return f"{folds.mean:.3f} ±{folds.std:.3f}" if folds else ""


def _tar(measures: Measures, far: float) -> str:
    point = measures.tar_at_far[far]
    return _value(point.tar) if point else LACKING


def _value(estimate: Estimate) -> str:
    ends = "-".join(map(short_number, estimate.interval or ()))
    return short_number(estimate.value) + (f" ({ends})" if ends else "")


def _rate(estimate: Estimate) -> str:
    """A small rate: 2.0e-2 (1.1e-2-3.4e-2)."""
    ends = " to ".join(short_far(end, 1) for end in estimate.interval or ())
    return short_far(estimate.value, 1) + (f" ({ends})" if ends else "")


def short_number(value: float) -> str:
    """0.5 -> .500."""
    return f"{value:.3f}".removeprefix("0")


def _percent(edges: Edges | None) -> str:
    if edges is None:
        return "any"
    low, high = (round(100 * edge) for edge in edges)
    return f"{low}-{high} %" if high < 100 else f"over {low} %"


def short_far(far: float, digits: int = 0) -> str:
    """0.01 -> 1e-2."""
    return f"{far:.{digits}e}".replace("e-0", "e-") if far else "0"
