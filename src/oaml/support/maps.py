"""Drawn maps, and what all figures share. A figure is written whole or not at all, and matplotlib's global state is left alone.

Colours are those of Okabe & Ito (2008), which people with any kind of colour vision can tell apart. Maps use `cividis`,
whose lightness grows with the value: bright = the face shows, dark = occluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oaml.support.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
GREY = "#595959"
MAP_STYLE: dict[str, Any] = {"cmap": "cividis", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
"""Arguments of `imshow` for maps."""

MapRow = tuple[np.ndarray, "np.ndarray | None", np.ndarray]
"""Image, true map or None, predicted map; see `draw_map_sheet`."""


def draw_map_sheet(
    path: str | Path, rows: Sequence[MapRow], *, title: str = "", names: Sequence[str] | None = None
) -> Path:
    """Write faces beside their maps: image, true map, predicted map, and the image darkened where that says occluded.

    Args:
        path: PNG to write.
        rows: (image, true map, predicted map) each. Image: RGB [H,W,3], uint8 or float in [0,1]. Maps: [h,w]
            of any size in [0,1], 1 where the face shows; the true one None where it isn't known.
        title: of the whole figure.
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
    # square and all equal, which automatic layouts don't keep beside a colour bar.
    blocks = 1 if len(rows) <= 4 else 2
    height = math.ceil(len(rows) / blocks)
    titles = ("image", "true map", "predicted map", "what counts")
    cell, gap, top, side = 1.05, 0.08, 0.75, 0.2 if names is None else 0.95
    block_width = side + 4 * (cell + gap) + 0.1
    size = (blocks * block_width + 1.0, top + height * (cell + gap) + 0.1)
    figure = Figure(figsize=size)

    def place(x: float, y: float, width: float, height: float) -> Axes:
        """Axes at x from the left and y from the top."""
        return figure.add_axes((x / size[0], 1 - (y + height) / size[1], width / size[0], height / size[1]))

    for index, (image, true, predicted) in enumerate(rows):
        block, row = divmod(index, height)
        left, down = block * block_width + side, top + row * (cell + gap)
        cells = [place(left + k * (cell + gap), down, cell, cell) for k in range(4)]
        face = image / 255.0 if image.dtype == np.uint8 else np.clip(image, 0, 1)
        cells[0].imshow(face)
        if true is None:
            cells[1].text(0.5, 0.5, "not known", ha="center", va="center", color=GREY, fontsize=8)
            cells[1].set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        else:
            cells[1].imshow(true, **MAP_STYLE)
        cells[2].imshow(predicted, **MAP_STYLE)
        cells[3].imshow(_darkened(face, predicted))
        for axes in cells:
            axes.axis("off")
        if row == 0:
            for axes, column in zip(cells, titles, strict=True):
                axes.set_title(column, fontsize=9)
        if names is not None:
            cells[0].text(
                -0.06, 0.5, names[index], transform=cells[0].transAxes, ha="right", va="center", fontsize=8
            )
    scale = ScalarMappable(Normalize(0, 1), "cividis")
    bar = figure.colorbar(
        scale, cax=place(size[0] - 0.9, top, 0.15, min(size[1] - top - 0.2, 3.2)), ticks=[0, 0.5, 1]
    )
    bar.ax.set_yticklabels(["0 occluded", "0.5", "1 visible"], fontsize=8)
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / size[1], va="top")
    return save_figure(figure, path)


def _darkened(face: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """The face, darkened where the map says occluded, cell by cell without smoothing."""
    rows, columns = (
        np.minimum(np.arange(size) * cells // size, cells - 1)
        for size, cells in zip(face.shape[:2], visibility.shape, strict=True)
    )
    return face * visibility[rows][:, columns, None]


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    return write_file(path, lambda temporary: figure.savefig(temporary, dpi=130, facecolor="white"))
