"""The plots of a report. Every function writes one PNG, whole or not at all, and keeps no global state.

The lines of scores differ in their dashes as well as in their colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oaml.evaluation.results import Robustness
from oaml.evaluation.tables import kind_name
from oaml.support.maps import BLUE, GREEN, GREY, MAP_STYLE, ORANGE, PINK, SKY, save_figure
from oaml.support.metrics import Roc, roc
from oaml.template import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (SKY, (0, (5, 1, 1, 1, 1, 1))))


def draw_roc(
    path: str | Path, curves: Mapping[str, Mapping[str, Roc]], *, title: str, least_far: float = 1e-4
) -> Path:
    """Write ROC curves, one panel for every condition and one line for every score.

    Args:
        path: PNG to write.
        curves: condition -> score -> curve, as `metrics.roc` gives it.
        title: of the whole picture.
        least_far: left end of the logarithmic FAR axis. A curve starts where it has one false accept: left of
            that nothing is measured.
    """
    figure, panels = _panels(
        len(curves), title, "impostor pairs accepted (FAR)", "genuine pairs accepted (TAR)"
    )
    for axes, (condition, lines) in zip(panels, curves.items(), strict=True):
        for (score, curve), (colour, dashes) in zip(lines.items(), cycle(LINES), strict=False):
            far, tar, _ = curve
            seen = far > 0
            axes.step(
                far[seen], tar[seen], where="post", color=colour, linestyle=dashes, label=score, linewidth=1.8
            )
        axes.set(xscale="log", xlim=(least_far, 1), ylim=(0, 1.01), title=condition)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    if curves:
        _legend(figure, panels[0])
    return save_figure(figure, path)


def draw_histograms(
    path: str | Path,
    scores: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    title: str,
    bins: int = 40,
    thresholds: Mapping[str, tuple[float, str]] | None = None,
) -> Path:
    """Write histograms of the scores of genuine and impostor pairs: a row a condition, a column a score.

    Each histogram is scaled to its own number of pairs. Columns share their axis, so that one can see whether
    one threshold serves all conditions; it is the dashed line. Of a score without one, the line is the condition's
    own threshold with the fewest errors.

    Args:
        path: PNG to write.
        scores: condition -> score name -> (scores [N], same bool [N]).
        title: of the whole picture.
        bins: bars across the range of a column.
        thresholds: score name -> (threshold, label), one for all conditions.
    """
    from matplotlib.figure import Figure

    names = list(next(iter(scores.values())))
    figure = Figure(figsize=(1 + 3.1 * len(names), 1.1 + 1.55 * len(scores)), layout="constrained")
    grid = figure.subplots(len(scores), len(names), squeeze=False, sharex="col")
    for column, name in enumerate(names):
        everything = np.concatenate([by_name[name][0] for by_name in scores.values()])
        low, high = float(everything.min()), float(everything.max())
        edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
        for row, (condition, by_name) in enumerate(scores.items()):
            axes: Axes = grid[row, column]
            values, same = by_name[name]
            for chosen, colour, hatch, label in (
                (~same, ORANGE, "", "impostor pairs"),
                (same, BLUE, "////", "genuine pairs"),
            ):
                if chosen.any():
                    share = np.histogram(values[chosen], edges)[0] / chosen.sum()
                    axes.stairs(share, edges, fill=True, color=colour, alpha=0.35, label=label)
                    axes.stairs(share, edges, color=colour, linewidth=1.4, hatch=hatch)
            if name in (thresholds or {}):
                _mark(axes, *(thresholds or {})[name], low, high)
            elif same.any() and not same.all():
                _mark(axes, _balanced_threshold(values, same), "fewest errors", low, high)
            axes.set_ylim(0, axes.get_ylim()[1] * 1.15)  # room for the label of the line
            axes.set_yticks([])
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(labelsize=8)
            if row == 0:
                axes.set_title(name, fontsize=10)
            if column == 0:
                axes.set_ylabel(condition, rotation=0, ha="right", va="center", fontsize=10)
        grid[-1, column].set_xlabel("score (larger = more similar)", fontsize=9)
    figure.suptitle(title, fontsize=11)
    _legend(figure, grid[0, 0])
    return save_figure(figure, path)


def _mark(axes: Axes, threshold: float, label: str, low: float, high: float) -> None:
    """A dashed line with its label beside it, on the side that has more room."""
    axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
    left = threshold > (low + high) / 2
    axes.annotate(
        label,
        (threshold, 1),
        (-3 if left else 3, -1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        fontsize=6.5,
        color="0.15",
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
    )


def draw_robustness(path: str | Path, robustness: Robustness, *, title: str) -> Path:
    """Write TAR against occluded share, one panel a kind of occluder and one line a score that starts at the unoccluded pairs.

    Points of few pairs are hollow and their lines faint.

    Args:
        path: PNG to write.
        robustness: with thresholds; its edges are drawn as thin lines.
        title: of the whole picture.
    """
    panels = {
        kind: [*([robustness.unoccluded] if robustness.unoccluded else []), *points]
        for kind, points in robustness.kinds.items()
    }
    figure, drawn = _panels(
        len(panels), title, "occluded share of the face, %", "genuine pairs accepted (TAR)"
    )
    highest = [
        max(tar.value, tar.interval.high) if tar.interval and point.sufficient else tar.value
        for points in panels.values()
        for point in points
        for tar in point.tar.values()
    ]
    top = min(1.01, 1.1 * max(highest, default=1) + 0.01)
    for axes, (kind, points) in zip(drawn, panels.items(), strict=True):
        for place, (score, name) in enumerate(TITLES.items()):
            colour, dashes = LINES[place]
            # beside each other, so that bars of equal shares don't hide each other
            aside = 0.9 * (place - (len(TITLES) - 1) / 2)
            x = [100 * point.occluded_share + aside for point in points]
            y = [point.tar[score].value for point in points]
            shade = [1.0 if point.sufficient else 0.4 for point in points]
            axes.plot([], [], color=colour, linestyle=dashes, marker="o", markersize=4, label=name)
            for k, point in enumerate(points):
                if k:
                    ends = slice(k - 1, k + 1)
                    faintest = min(shade[ends])
                    axes.plot(x[ends], y[ends], color=colour, linestyle=dashes, linewidth=1.6, alpha=faintest)
                interval = point.tar[score].interval
                if interval is not None:
                    axes.plot([x[k]] * 2, interval, color=colour, linewidth=1, alpha=0.6 * shade[k])
                inside = colour if point.sufficient else "white"
                axes.plot(
                    x[k], y[k], "o", markersize=4.5, color=colour, markerfacecolor=inside, alpha=shade[k]
                )
        for edge in robustness.edges:
            axes.axvline(100 * edge, color="0.92", linewidth=0.8, zorder=0)
        axes.set(xlim=(-4, 104), ylim=(0, top), title=kind_name(kind))
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
    if panels:
        _legend(figure, drawn[0])
    return save_figure(figure, path)


class PairRow(NamedTuple):
    """Two faces that were compared."""

    image_a: np.ndarray
    """RGB uint8 [H,W,3]."""
    map_a: np.ndarray
    """Predicted visibility [h,w] in [0,1]."""
    image_b: np.ndarray
    map_b: np.ndarray
    caption: str
    """A few short lines."""


def draw_pair_sheet(
    path: str | Path, blocks: Mapping[str, Mapping[str, Sequence[PairRow]]], *, title: str = ""
) -> Path:
    """Write pairs of faces, each beside its predicted map; blocks side by side, groups below each other.

    Args:
        path: PNG to write.
        blocks: heading of a block -> heading of a group -> pairs.
        title: of the whole picture.

    Raises:
        ValueError: no pair.
    """
    import warnings

    from matplotlib.figure import Figure

    if not any(rows for groups in blocks.values() for rows in groups.values()):
        raise ValueError("no pairs: a sheet needs at least one")
    cell, gap, top, head, words = 0.95, 0.06, 0.95, 0.36, 2.15  # inches
    width = 4 * (cell + gap) + words
    height = max(
        sum(head + len(rows) * (cell + gap) for rows in groups.values()) for groups in blocks.values()
    )
    size = (0.2 + len(blocks) * width, top + height + 0.1)
    figure = Figure(figsize=size)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        # names of files hold any character: a dollar is no formula
        figure.text(x / size[0], 1 - y / size[1], text, parse_math=False, va="top", **style)

    for number, (block, groups) in enumerate(blocks.items()):
        left, down = 0.15 + number * width, top
        write(left, top - 0.3, block, fontsize=11, fontweight="bold")
        for group, rows in groups.items():
            write(left, down + 0.1, group, fontsize=9.5)
            down += head
            for row in rows:
                for k, picture in enumerate((row.image_a, row.map_a, row.image_b, row.map_b)):
                    x = left + k * (cell + gap)
                    box = (x / size[0], 1 - (down + cell) / size[1], cell / size[0], cell / size[1])
                    axes = figure.add_axes(box)
                    axes.imshow(picture, **(MAP_STYLE if picture.ndim == 2 else {}))
                    axes.axis("off")
                write(left + 4 * (cell + gap) + 0.05, down + 0.05, row.caption, fontsize=7.5, linespacing=1.4)
                down += cell + gap
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / size[1], va="top")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        return save_figure(figure, path)


def _panels(count: int, title: str, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = 3 if count == 5 else min(4, max(1, count))
    rows = math.ceil(count / columns)
    width = max(8.4, 0.6 + 3.4 * columns)  # title and legend are wider than one panel
    figure = Figure(figsize=(width, 1.1 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for number, axes in enumerate(grid.flat):
        if number >= count:
            axes.remove()
            continue
        if number % columns == 0:
            axes.set_ylabel(y_label)
        if number + columns >= count:
            axes.set_xlabel(x_label)
            axes.tick_params(labelbottom=True)
    figure.suptitle(title, fontsize=12)
    return figure, list(grid.flat[:count])


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)


def _balanced_threshold(values: np.ndarray, same: np.ndarray) -> float:
    """Where the two error rates add up to the least."""
    far, tar, threshold = roc(values, same)
    return float(threshold[1:][np.argmax((tar - far)[1:])])
