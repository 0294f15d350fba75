"""Pictures of results. Every function writes one PNG, whole or not at all, and keeps no global state.

Colours are those of Okabe & Ito (2008), which people with any kind of colour vision can tell apart, and lines
differ in their dashes too. Maps use `cividis`, which grows in lightness: bright = the face shows, dark =
covered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oaml.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from oaml.evaluation.metrics import Roc

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (SKY, (0, (5, 1, 1, 1, 1, 1))))
GREY = "#595959"

MapRow = tuple[np.ndarray, "np.ndarray | None", np.ndarray]
"""Image, true map or None, predicted map; see `draw_map_sheet`."""


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
    figure, panels = _panels(len(curves), title)
    for number, (axes, (condition, lines)) in enumerate(zip(panels, curves.items(), strict=True)):
        for (score, curve), (colour, dashes) in zip(lines.items(), _styles(len(lines)), strict=True):
            far, tar, _ = curve
            seen = far > 0
            axes.step(
                far[seen], tar[seen], where="post", color=colour, linestyle=dashes, label=score, linewidth=1.8
            )
        axes.set(xscale="log", xlim=(least_far, 1), ylim=(0, 1.01), title=condition)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        if number % _columns(len(curves)) == 0:
            axes.set_ylabel("same person accepted (TAR)")
        if number + _columns(len(curves)) >= len(curves):
            axes.set_xlabel("different people accepted (FAR)")
            axes.tick_params(labelbottom=True)
    if curves:
        _legend(figure, panels[0])
    return _save(figure, path)


def draw_histograms(
    path: str | Path,
    scores: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    title: str,
    bins: int = 40,
    thresholds: Mapping[str, tuple[float, str]] | None = None,
) -> Path:
    """Write histograms of same-person and different-person scores: a row a condition, a column a score.

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
                (~same, ORANGE, "", "different people"),
                (same, BLUE, "////", "same person"),
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
        grid[-1, column].set_xlabel("score (larger = more alike)", fontsize=9)
    figure.suptitle(title, fontsize=11)
    _legend(figure, grid[0, 0])
    return _save(figure, path)


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


def draw_map_sheet(
    path: str | Path, rows: Sequence[MapRow], *, title: str = "", names: Sequence[str] | None = None
) -> Path:
    """Write faces beside their maps: image, true map, predicted map, and what that lets count.

    Args:
        path: PNG to write.
        rows: (image, true map, predicted map) each. Image: RGB [H,W,3], uint8 or float in [0,1]. Maps: [h,w]
            of any size in [0,1], 1 where the face shows; the true one None where it isn't known.
        title: of the whole picture.
        names: one short label a row.

    Raises:
        ValueError: no rows, or names that aren't as many.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if not rows or (names is not None and len(names) != len(rows)):
        raise ValueError(
            f"{len(rows)} rows and {len(names or [])} names: needs at least one row, as many names"
        )
    # Side by side in two blocks, so that the sheet fits a screen. Laid out by hand, in inches: cells are
    # square and all alike, which automatic layouts don't keep beside a colour bar.
    blocks = 1 if len(rows) <= 4 else 2
    height = math.ceil(len(rows) / blocks)
    heads = ("image", "true map", "predicted map", "what counts")
    cell, gap, top, side = 1.05, 0.08, 0.75, 0.2 if names is None else 0.95
    block_width = side + 4 * (cell + gap) + 0.1
    size = (blocks * block_width + 1.0, top + height * (cell + gap) + 0.1)
    figure = Figure(figsize=size)

    def place(x: float, y: float, wide: float, high: float) -> Axes:
        """Axes at x from the left and y from the top."""
        return figure.add_axes((x / size[0], 1 - (y + high) / size[1], wide / size[0], high / size[1]))

    colours = {"cmap": "cividis", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    for index, (image, true, predicted) in enumerate(rows):
        block, row = divmod(index, height)
        left, down = block * block_width + side, top + row * (cell + gap)
        cells = [place(left + k * (cell + gap), down, cell, cell) for k in range(4)]
        picture = image / 255.0 if image.dtype == np.uint8 else np.clip(image, 0, 1)
        cells[0].imshow(picture)
        if true is None:
            cells[1].text(0.5, 0.5, "not known", ha="center", va="center", color=GREY, fontsize=8)
            cells[1].set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        else:
            cells[1].imshow(true, **colours)
        cells[2].imshow(predicted, **colours)
        cells[3].imshow(_faded(picture, predicted))
        for axes in cells:
            axes.axis("off")
        if row == 0:
            for axes, head in zip(cells, heads, strict=True):
                axes.set_title(head, fontsize=9)
        if names is not None:
            cells[0].text(
                -0.06, 0.5, names[index], transform=cells[0].transAxes, ha="right", va="center", fontsize=8
            )
    scale = ScalarMappable(Normalize(0, 1), "cividis")
    bar = figure.colorbar(
        scale, cax=place(size[0] - 0.9, top, 0.15, min(size[1] - top - 0.2, 3.2)), ticks=[0, 0.5, 1]
    )
    bar.ax.set_yticklabels(["0 covered", "0.5", "1 visible"], fontsize=8)
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / size[1], va="top")
    return _save(figure, path)


class SharePoint(NamedTuple):
    """Pairs of one person in one bin of covered share."""

    share: float
    """Mean covered share of the pairs, 0 to 1."""
    tar: float
    """Share of the pairs that are accepted, 0 to 1."""
    interval: tuple[float, float] | None
    """Of the TAR; None draws no bar."""
    enough: bool
    """Whether the pairs suffice; otherwise the point is hollow and its line faint."""


def draw_robustness(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Sequence[SharePoint]]],
    *,
    title: str,
    edges: Sequence[float] = (),
) -> Path:
    """Write TAR against covered share, one panel a kind of cover and one line a score.

    Args:
        path: PNG to write.
        panels: kind -> score -> points by rising share.
        title: of the whole picture.
        edges: of the bins, 0 to 1; drawn as thin lines.
    """
    figure, drawn = _panels(len(panels), title)
    columns = _columns(len(panels))
    points = [p for lines in panels.values() for ps in lines.values() for p in ps]
    highest = [max([p.tar, *(p.interval or ())]) if p.enough else p.tar for p in points]
    top = min(1.01, 1.1 * max(highest, default=1) + 0.01)
    for number, (axes, (kind, lines)) in enumerate(zip(drawn, panels.items(), strict=True)):
        styles = _styles(len(lines))
        for place, ((score, line), (colour, dashes)) in enumerate(zip(lines.items(), styles, strict=True)):
            # beside each other, so that bars of equal shares don't hide each other
            x = [100 * p.share + 0.9 * (place - (len(lines) - 1) / 2) for p in line]
            axes.plot([], [], color=colour, linestyle=dashes, marker="o", markersize=4, label=score)
            for k, point in enumerate(line):
                faint = 1.0 if point.enough else 0.4
                if k:
                    joined = min(faint, 1.0 if line[k - 1].enough else 0.4)
                    ends = (x[k - 1 : k + 1], [line[k - 1].tar, point.tar])
                    axes.plot(*ends, color=colour, linestyle=dashes, linewidth=1.6, alpha=joined)
                if point.interval is not None:
                    axes.plot([x[k]] * 2, point.interval, color=colour, linewidth=1, alpha=0.6 * faint)
                inside = colour if point.enough else "white"
                axes.plot(
                    x[k], point.tar, "o", markersize=4.5, color=colour, markerfacecolor=inside, alpha=faint
                )
        for edge in edges:
            axes.axvline(100 * edge, color="0.92", linewidth=0.8, zorder=0)
        axes.set(xlim=(-4, 104), ylim=(0, top), title=kind)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        if number % columns == 0:
            axes.set_ylabel("same person accepted (TAR)")
        if number + columns >= len(panels):
            axes.set_xlabel("covered share of the face, %")
            axes.tick_params(labelbottom=True)
    if panels:
        _legend(figure, drawn[0])
    return _save(figure, path)


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
    wide = 4 * (cell + gap) + words
    tall = max(sum(head + len(rows) * (cell + gap) for rows in groups.values()) for groups in blocks.values())
    size = (0.2 + len(blocks) * wide, top + tall + 0.1)
    figure = Figure(figsize=size)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        # names of files hold any character: a dollar is no formula
        figure.text(x / size[0], 1 - y / size[1], text, parse_math=False, va="top", **style)

    colours = {"cmap": "cividis", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    for number, (block, groups) in enumerate(blocks.items()):
        left, down = 0.15 + number * wide, top
        write(left, top - 0.3, block, fontsize=11, fontweight="bold")
        for group, rows in groups.items():
            write(left, down + 0.1, group, fontsize=9.5)
            down += head
            for row in rows:
                for k, picture in enumerate((row.image_a, row.map_a, row.image_b, row.map_b)):
                    x = left + k * (cell + gap)
                    box = (x / size[0], 1 - (down + cell) / size[1], cell / size[0], cell / size[1])
                    axes = figure.add_axes(box)
                    axes.imshow(picture, **(colours if picture.ndim == 2 else {}))
                    axes.axis("off")
                write(left + 4 * (cell + gap) + 0.05, down + 0.05, row.caption, fontsize=7.5, linespacing=1.4)
                down += cell + gap
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / size[1], va="top")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        return _save(figure, path)


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = _columns(count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(0.6 + 3.4 * columns, 1.1 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[count:]:
        axes.remove()
    figure.suptitle(title, fontsize=12)
    return figure, list(grid.flat[:count])


def _columns(count: int) -> int:
    return min(4, max(1, count)) if count != 5 else 3


def _styles(count: int) -> list[tuple[str, object]]:
    return [LINES[i % len(LINES)] for i in range(count)]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)


def _balanced_threshold(values: np.ndarray, same: np.ndarray) -> float:
    """Where the two error rates add up to the least."""
    from oaml.evaluation.metrics import roc

    far, tar, threshold = roc(values, same)
    return float(threshold[1:][np.argmax((tar - far)[1:])])


def _faded(picture: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """The picture, darkened where the map says covered; cells stay visible as cells."""
    rows, columns = (
        np.minimum(np.arange(size) * cells // size, cells - 1)
        for size, cells in zip(picture.shape[:2], visibility.shape, strict=True)
    )
    return picture * visibility[rows][:, columns, None]


def _save(figure: Figure, path: str | Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    return write_file(path, lambda temporary: figure.savefig(temporary, dpi=130, facecolor="white"))
