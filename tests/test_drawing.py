"""Pictures: they exist, show what they are given, and leave no trace of themselves elsewhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from oaml.evaluation import plots
from oaml.evaluation.results import Estimate, Robustness, RobustnessPoint
from oaml.support import maps as drawing
from oaml.support.metrics import Interval, roc
from oaml.template import TITLES

RNG = np.random.default_rng(0)


def _scores(shift: float) -> tuple[np.ndarray, np.ndarray]:
    same = np.arange(400) < 100
    return RNG.normal(size=400) + shift * same, same


def _read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture[..., ::-1].astype(int)


def _has(picture: np.ndarray, colour: str) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(picture - rgb).max(-1) <= 2).sum() > 100)


@pytest.mark.parametrize("conditions", [1, 5])
def test_roc(tmp_path: Path, conditions: int) -> None:
    curves = {
        f"condition {k}": {name: roc(*_scores(2 + j)) for j, name in enumerate(("cosine", "QAConv"))}
        for k in range(conditions)
    }
    picture = _read(plots.draw_roc(tmp_path / "deep" / "roc.png", curves, title="Curves"))
    assert _has(picture, drawing.BLUE)
    assert _has(picture, drawing.ORANGE)
    assert not _has(picture, drawing.GREEN)


def test_histograms(tmp_path: Path) -> None:
    scores = {name: {"cosine": _scores(2), "QAConv": _scores(3)} for name in ("unoccluded", "niqab")}
    picture = _read(plots.draw_histograms(tmp_path / "h.png", scores, title="Scores"))
    assert _has(picture, drawing.BLUE)
    assert _has(picture, drawing.ORANGE)
    constant = {"unoccluded": {"cosine": (np.zeros(10), np.arange(10) < 5)}}
    plots.draw_histograms(tmp_path / "constant.png", constant, title="All equal")


def test_histograms_show_the_threshold_they_are_given(tmp_path: Path) -> None:
    scores = {name: {"cosine": _scores(2), "QAConv": _scores(3)} for name in ("unoccluded", "niqab")}
    drawn = [
        _read(plots.draw_histograms(tmp_path / f"{i}.png", scores, title="Scores", thresholds=thresholds))
        for i, thresholds in enumerate(
            ({"cosine": (2.0, "FAR 1e-2")}, {"cosine": (-1.0, "FAR 1e-2")}, {"cosine": (2.0, "of the model")})
        )
    ]
    middle = drawn[0].shape[1] // 2 + 40  # the second column has a line of its own in all three
    for other in drawn[1:]:
        assert (drawn[0][:, : middle - 80] != other[:, : middle - 80]).any()
        np.testing.assert_array_equal(drawn[0][:, middle:], other[:, middle:])


def _robustness(kinds: int, *enough: bool) -> Robustness:
    points = [
        RobustnessPoint(
            (0, 1), 0.2 + 0.3 * i, 40, e, dict.fromkeys(TITLES, Estimate(0.9 - 0.2 * i, Interval(0.5, 0.95)))
        )
        for i, e in enumerate(enough)
    ]
    return Robustness(1e-2, {}, 30, 1000, [0, 0.5, 1], None, {f"kind {k}": points for k in range(kinds)})


def _solid(picture: np.ndarray, colour: str) -> int:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture - rgb).max(-1) <= 2).sum())


@pytest.mark.parametrize("kinds", [1, 7])
def test_robustness(tmp_path: Path, kinds: int) -> None:
    def picture(name: str, *enough: bool) -> np.ndarray:
        return _read(plots.draw_robustness(tmp_path / name, _robustness(kinds, *enough), title="Curves"))

    sure, unsure = picture("sure.png", True, True), picture("unsure.png", False, False)
    assert _solid(sure, drawing.BLUE) > _solid(unsure, drawing.BLUE) + 100 * kinds  # hollow and faint
    assert _solid(unsure, drawing.BLUE) > 0  # of the legend
    assert _has(sure, drawing.ORANGE)
    alone = RobustnessPoint(None, 0.5, 40, True, dict.fromkeys(TITLES, Estimate(0.0, None)))
    nothing = replace(_robustness(0), kinds={"kind": [], "other": [alone]})
    assert plots.draw_robustness(tmp_path / "none.png", nothing, title="No points").exists()


def test_pair_sheet(tmp_path: Path) -> None:
    red, green = (np.full((112, 112, 3), c, np.uint8) for c in ((255, 0, 0), (0, 255, 0)))
    row = plots.PairRow(red, np.ones((7, 7)), green, np.zeros((7, 7)), "score 1.00\n$x^{.png\n<b>顔</b>")
    blocks = {
        "unoccluded": {"highest": [row, row], "lowest": [row]},
        "niqab": {"highest": [row], "lowest": []},
    }
    picture = _read(plots.draw_pair_sheet(tmp_path / "p.png", blocks, title="Pairs"))
    for colour in ("#FF0000", "#00FF00", "#FDE737", "#00224D"):
        assert _has(picture, colour), colour
    one = _read(plots.draw_pair_sheet(tmp_path / "one.png", {"unoccluded": {"highest": [row]}}))
    assert one.shape[0] < picture.shape[0]
    assert one.shape[1] < picture.shape[1]
    with pytest.raises(ValueError, match="at least one"):
        plots.draw_pair_sheet(tmp_path / "none.png", {"unoccluded": {"highest": []}})
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(("count", "kind"), [(2, "bytes"), (5, "floats")])
def test_map_sheet(tmp_path: Path, count: int, kind: str) -> None:
    image = np.zeros((112, 112, 3), np.uint8)
    image[..., 0] = 255
    face = image if kind == "bytes" else image / np.float32(255)
    true = np.ones((112, 112), np.float32)
    true[56:] = 0
    rows = [(face, true if i % 2 == 0 else None, np.full((7, 7), 0.5)) for i in range(count)]
    picture = _read(drawing.draw_map_sheet(tmp_path / "m.png", rows, title="Maps", names=["x"] * count))
    for colour in ("#FF0000", "#7F0000", "#FDE737", "#00224D"):  # face, half of it, visible, occluded
        assert _has(picture, colour), colour
    without = drawing.draw_map_sheet(tmp_path / "n.png", rows)
    assert without.exists()


def test_a_sheet_needs_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        drawing.draw_map_sheet(tmp_path / "m.png", [])
    row = (np.zeros((8, 8, 3)), None, np.ones((7, 7)))
    with pytest.raises(ValueError, match="1 rows and 2 names"):
        drawing.draw_map_sheet(tmp_path / "m.png", [row], names=["a", "b"])
    assert not list(tmp_path.iterdir())


def test_no_global_state(tmp_path: Path) -> None:
    plots.draw_roc(tmp_path / "roc.png", {"unoccluded": {"cosine": roc(*_scores(2))}}, title="One")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
    assert [path.name for path in tmp_path.iterdir()] == ["roc.png"]
