"""One picture of a pair of faces that says why it scored as it did (`oaml.recognition.explain`).

Colours are those of `oaml.support.maps`: green speaks for the same person, pink against, and a sign says the same in every number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.errors import OamlError
from oaml.recognition.explain import Explanation, strongest
from oaml.support.files import FACE_SIZE, write_file
from oaml.support.maps import BLUE, GREEN, PINK
from oaml.support.names import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS = 5
"""Cells whose share a picture states."""

_SIDE = 4 * FACE_SIZE  # pixels of a face in the picture
_DPI = 100


def need_free_name(draw: Path, inputs: tuple[Path, ...]) -> None:
    """Refuse a name for a picture that would fail after the work, or overwrite a face."""
    if draw.suffix.lower() != ".png":
        raise OamlError(f"{draw}: the picture is a PNG; give a name that ends in .png")
    if draw.is_dir():
        raise OamlError(f"{draw}: is a folder; name a file to write")
    if any(draw.resolve() == path.resolve() for path in inputs):
        raise OamlError(f"{draw}: is one of the two faces; choose another name for the picture")


def draw_pair(
    path: str | Path,
    image_a: np.ndarray,
    image_b: np.ndarray,
    explanation: Explanation,
    *,
    title: str,
    needed: float | None = None,
    names: Sequence[str] = ("A", "B"),
) -> Path:
    """Write one picture that says by colours and in plain words why the pair scored as it did.

    Above, both faces, greyed and hatched where something occludes them, with lines between the parts that QAConv found most
    similar. Below, the same faces with each cell's share of the joint cosine.

    Args:
        path: PNG to write, whole or not at all.
        image_a, image_b: the faces, uint8 RGB [112,112,3].
        explanation: from `explain_pair` with these faces.
        title: score and decision in words.
        needed: joint cosine that a decision for the same person takes (`Explanation.needed`); None: not said.
        names: what to call the two faces.

    Raises:
        OamlError: the file can't be written.
    """
    from matplotlib.figure import Figure

    left, gap, words, right, top, between, bottom = 30, 120, 36, 412, 110, 84, 26
    size = (left + 2 * _SIDE + gap + words + right, top + 2 * _SIDE + between + bottom)
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI)

    def place(x: float, y: float, width: float, height: float) -> Axes:
        """Axes by pixels, x from the left and y from the top."""
        axes = figure.add_axes((x / size[0], 1 - (y + height) / size[1], width / size[0], height / size[1]))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        return axes

    # one sheet in pixels for everything that isn't a photograph, so that lines can run from face to face
    sheet = place(0, 0, *size)
    columns = (left, left + _SIDE + gap)
    rows = (top, top + _SIDE + between)
    shown = (explanation.visible_a, explanation.visible_b)
    for x, image, visible, name in zip(columns, (image_a, image_b), shown, names, strict=True):
        large = _enlarged(image)
        both = explanation.both
        for y, picture in (
            (rows[0], _occluded(large, visible)),
            (rows[1], _coloured(large, explanation.share, both)),
        ):
            place(x, y, _SIDE, _SIDE).imshow(picture, extent=(0, _SIDE, _SIDE, 0), interpolation="none")
        _say(sheet, x + _SIDE / 2, rows[0] - 10, _short(name), 12, "bottom", "center")
        _say(
            sheet, x + _SIDE / 2, rows[0] + _SIDE + 12,
            f"shows {_percent(visible.mean())} of the face", 12, "top", "center",
        )  # fmt: skip
    over = place(0, 0, *size)  # after the faces, so that it lies on them
    _draw_matches(over, explanation, columns, rows[0])
    for x in columns:
        _draw_numbers(over, 100 * explanation.share, x, rows[1])

    _say(sheet, left, 22, title, 17, weight="bold")
    _legend_of_matches(sheet, explanation, columns[1] + _SIDE + words, rows[0])
    _legend_of_shares(sheet, explanation, needed, columns[1] + _SIDE + words, rows[1])
    return _save(figure, path)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """uint8 [112,112,3] -> float64 [448,448,3] in [0,1]."""
    import cv2

    large = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
    return large.astype(np.float64) / 255


def _on_pixels(cells: np.ndarray) -> np.ndarray:
    """[h,w] -> [448,448]; cells stay visible as cells."""
    from oaml.visibility import TOKENS

    # a transformer's cells of 9 pixels leave out the last 4 of 112, which the last cells are drawn on too
    side = 9 * _SIDE // 112 if cells.shape == TOKENS else _SIDE // cells.shape[0]
    cell = np.minimum(np.arange(_SIDE) // side, len(cells) - 1)
    return cells[cell[:, None], cell]


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat((picture @ (0.299, 0.587, 0.114))[..., None], 3, axis=2)


def _hatched(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Diagonal lines where `hidden` [448,448] is true."""
    y, x = np.indices(hidden.shape)
    line = hidden & ((x + y) % 14 < 2)
    return np.where(line[..., None], 0.35 * picture + 0.65 * 0.2, picture)


def _occluded(picture: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The face, pale and grey where the map says occluded; hatched where more is occluded than shows."""
    seen = _on_pixels(visible)
    pale = 0.5 * _grey(picture) + 0.5 * 0.86
    return _hatched(picture * seen[..., None] + pale * (1 - seen[..., None]), seen < 0.5)


def _coloured(picture: np.ndarray, share: np.ndarray, both: np.ndarray) -> np.ndarray:
    """The face without its colours, under green and pink by share; pale and hatched where not both faces show.

    The scale is the same for all pairs that show as much: full colour is 2.5 times what a cell adds on average when an
    image is compared with itself. Impostor pairs stay pale, whatever their strongest cell is.
    """
    from matplotlib.colors import to_rgb

    seen = _on_pixels(both)[..., None]
    base = 0.85 * _grey(picture) + 0.1
    base = base * seen + (0.4 * base + 0.6 * 0.88) * (1 - seen)
    full = 2.5 / max(float(both.sum()), 1e-9)
    relative = _on_pixels((share / full).clip(-1, 1))[..., None]
    colour = np.where(relative > 0, np.array(to_rgb(GREEN)), np.array(to_rgb(PINK)))
    amount = 0.75 * np.abs(relative)
    return _hatched(base * (1 - amount) + colour * amount, seen[..., 0] < 0.5)


def _draw_matches(axes: Axes, explanation: Explanation, columns: Sequence[float], top: float) -> None:
    from matplotlib.patches import FancyArrowPatch

    chosen = strongest(explanation)
    if not chosen:
        return
    cells = [match.cell_a for match in chosen], [match.cell_b for match in chosen]
    ends = [_spread(of_one_face, explanation.grid) for of_one_face in cells]
    size = min(17.0, 0.62 * _SIDE / max(explanation.grid))
    for number in range(len(chosen), 0, -1):  # the strongest on top
        start, end = (
            (x + places[number - 1][0], top + places[number - 1][1])
            for x, places in zip(columns, ends, strict=True)
        )
        thick = 1 + 4 * chosen[number - 1].strength / chosen[0].strength
        # bent by different amounts: matches of one row would lie on one line
        bend = f"arc3,rad={0.03 * ((number % 5) - 2):.2f}"
        for colour, width, alpha in (("white", thick + 2, 0.45), (BLUE, thick, 0.7)):
            axes.add_patch(
                FancyArrowPatch(
                    start, end, connectionstyle=bend, arrowstyle="-", color=colour, linewidth=width, alpha=alpha,
                    shrinkA=0, shrinkB=0,
                )
            )  # fmt: skip
        for x, y in (start, end):
            axes.plot(x, y, "o", markersize=size, color=BLUE, markeredgecolor="white", markeredgewidth=1.5)
            _say(axes, x, y, str(number), 0.6 * size, "center", "center", "white", "bold")


def _spread(cells: Sequence[tuple[int, int]], grid: tuple[int, int]) -> list[tuple[float, float]]:
    """Where to put the end of each match on a face, in pixels: the cell's middle, or round it where several end there."""
    height, width = (_SIDE / count for count in grid)
    places = []
    for index, cell in enumerate(cells):
        together = [other for other, same in enumerate(cells) if same == cell]
        turn = 2 * np.pi * together.index(index) / len(together)
        far = 0 if len(together) == 1 else 0.21 if len(together) < 4 else 0.36
        places.append(
            (
                (cell[1] + 0.5 + far * float(np.cos(turn))) * width,
                (cell[0] + 0.5 + far * float(np.sin(turn))) * height,
            )
        )
    return places


def _draw_numbers(axes: Axes, percent: np.ndarray, left: float, top: float) -> None:
    from matplotlib.patheffects import withStroke

    cell = _SIDE / percent.shape[0]
    for place in np.argsort(-np.abs(percent), axis=None, kind="stable")[:NUMBERS]:
        row, column = divmod(int(place), percent.shape[1])
        value = percent[row, column]
        if abs(value) < 0.05:
            continue
        text = _say(
            axes, left + (column + 0.5) * cell, top + (row + 0.5) * cell, _signed(value), 14,
            "center", "center", "black", "bold",
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _signed(value: float) -> str:
    """A number of percent in four characters, with its sign."""
    return f"{value:+.0f}" if abs(value) >= 9.95 else f"{value:+.1f}"


def _legend_of_matches(sheet: Axes, explanation: Explanation, x: float, y: float) -> None:
    from matplotlib.patches import Rectangle

    y = _heading(sheet, x, y, "What shows, and what is similar")
    sheet.add_patch(
        Rectangle((x, y + 2), 30, 20, facecolor="#C8C8C8", edgecolor="#404040", hatch="////", linewidth=0)
    )
    y = _say_lines(
        sheet, x + 44, y, "grey and hatched: occluded, as far as", "the network can tell. It doesn't count."
    )
    both = _percent(explanation.both.mean())
    y = _say_lines(sheet, x, y + 10, f"Both faces show {both} of the face in the", "same places.")
    count = len(strongest(explanation))
    if not count:
        _say_lines(sheet, x, y + 10, "No part of one face was found", "in the other.")
        return
    sheet.plot([x + 2, x + 30], [y + 24, y + 24], color=BLUE, linewidth=4, alpha=0.8)
    y = _say_lines(
        sheet, x + 44, y + 10, "lines: parts of the two faces that were", "found most similar. Same number: same",
        "pair; 1 counts most, thick counts more.",
    )  # fmt: skip
    total = len(explanation.matches)
    _say_lines(sheet, x, y + 10, f"Shown: the strongest {count} of {total}.")


def _legend_of_shares(
    sheet: Axes, explanation: Explanation, needed: float | None, x: float, y: float
) -> None:
    from matplotlib.colors import to_rgb

    y = _heading(sheet, x, y, "What speaks for and against")
    strips = np.linspace(-1, 1, 256)[None, :, None]
    colour = np.where(strips > 0, np.array(to_rgb(GREEN)), np.array(to_rgb(PINK)))
    amount = 0.9 * np.abs(strips)
    bar = 0.92 * (1 - amount) + colour * amount
    sheet.imshow(bar, extent=(x, x + 300, y + 22, y + 4), aspect="auto", interpolation="bilinear")
    _say(sheet, x, y + 26, "against (-)", 11)
    _say(sheet, x + 300, y + 26, "for (+)", 11, "top", "right")
    y = _say_lines(
        sheet, x, y + 58, "Each square compares the same place of", "both faces, so both show the same colours.",
    )  # fmt: skip
    if np.abs(explanation.share).max() < 5e-4:
        _say_lines(sheet, x, y + 10, "Here nothing counts: too little shows", "in both faces.")
        return
    y = _say_lines(
        sheet, x, y + 10, "Numbers: what the strongest squares add,", "in percent. Hatched: occluded in at least",
        "one face, adds little or nothing.",
    )  # fmt: skip
    plus, total = round(100 * float(explanation.share.clip(0).sum())), round(100 * explanation.cosine)
    y = _say_lines(
        sheet, x, y + 10, f"All for +{plus} %, all against -{plus - total} %: together",
        f"what both show is {total} % similar.",
        "(100 %: same image. Near 0 %: two people.)",
    )  # fmt: skip
    if needed is not None:
        takes = (
            "no similarity would do"
            if needed > 1
            else "any would do"
            if needed < -1
            else f"it takes {100 * needed:.0f} %"
        )
        _say(sheet, x, y + 10, f'For "same person" {takes}.', 12, weight="bold")


def _heading(axes: Axes, x: float, y: float, text: str) -> float:
    _say(axes, x, y, text, 14, weight="bold")
    return y + 36


def _say_lines(axes: Axes, x: float, y: float, *lines: str) -> float:
    """Write lines of a legend; returns where the next one goes."""
    for line in lines:
        _say(axes, x, y, line, 12)
        y += 23
    return y


def _say(
    axes: Axes, x: float, y: float, text: str, size: float, vertical: str = "top", horizontal: str = "left",
    colour: str = "#202020", weight: str = "normal",
):  # fmt: skip
    # parse_math: a file name with dollar signs is no formula
    return axes.text(
        x, y, text, fontsize=size, va=vertical, ha=horizontal, color=colour, weight=weight, parse_math=False
    )


def _short(name: str, most: int = 44) -> str:
    """A name that fits over a face; what can't be shown is escaped."""
    name = printable(name)
    return name if len(name) <= most else "..." + name[3 - most :]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _save(figure: Figure, path: str | Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            # a name in letters that the font lacks becomes boxes; nobody needs to be told
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(temporary, dpi=_DPI, facecolor="white")

    return write_file(path, write)
