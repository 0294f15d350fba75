"""Masks on cells, and the one share of the face that two faces both show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oaml.datasets.drawn import draw_face
from oaml.evaluation import conditions
from oaml.evaluation.protocols import read_pairs
from oaml.evaluation.results import UNOCCLUDED
from oaml.main import main
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import Occluder
from oaml.visibility import cell_visibility, on_grid, shared_visibility, unseen_and_overlap


def maps(count: int, side: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [7, 14])
def test_the_share_is_a_loop_over_the_cells_of_the_joint_embedding(side: int) -> None:
    a, b = maps(3, side, 0), maps(3, side, 1)
    step = side // 7
    for row, share in enumerate(shared_visibility(a, b).tolist()):
        total = 0.0
        for y in range(7):
            for x in range(7):
                cells = [
                    float(side_map[row, 0, y * step : (y + 1) * step, x * step : (x + 1) * step].mean())
                    for side_map in (a, b)
                ]
                total += cells[0] * cells[1]
        assert share == pytest.approx(total / 49, rel=1e-6)


def test_one_face_against_many_and_all_against_all_say_the_same() -> None:
    a, b = maps(2, 14, 0), maps(5, 14, 1)
    unseen, overlap = unseen_and_overlap(cell_visibility(a), cell_visibility(b))
    for row in range(2):
        shares = shared_visibility(a[row : row + 1], b)
        torch.testing.assert_close(1 - unseen[row].double(), shares, rtol=0, atol=1e-6)
        hidden = shared_visibility(1 - a[row : row + 1], 1 - b)
        torch.testing.assert_close(overlap[row].double(), hidden / (1 - shares), rtol=0, atol=1e-5)


def test_a_grid_of_half_the_cells_holds_their_means() -> None:
    fine = maps(2, 14, 0)
    assert on_grid(fine, (14, 14)) is fine
    assert float(on_grid(fine, (7, 7))[1, 0, 2, 3]) == pytest.approx(float(fine[1, 0, 4:6, 6:8].mean()))


def test_verify_search_and_evaluate_state_one_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With maps of stage 3, whose cells are finer than those of the joint embedding."""
    torch.manual_seed(0)
    net = NetConfig(architecture="ir_mini", embedding_size=32, stage=3)
    model = str(Model(ModelConfig(net=net)).eval().save(tmp_path / "model"))
    for person in (1, 2):
        (tmp_path / f"people/{person}").mkdir(parents=True)
        Image.fromarray(draw_face(person, 0)).save(tmp_path / f"people/{person}/0.png")
    a, b = (str(tmp_path / f"people/{person}/0.png") for person in (1, 2))
    gallery = str(tmp_path / "gallery")

    assert main(["verify", a, b, "--model", model, "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)["visible_both"]
    assert main(["enroll", str(tmp_path / "people"), "--gallery", gallery, "--model", model]) == 0
    capsys.readouterr()
    assert main(["search", a, "--gallery", gallery, "--model", model, "--json"]) == 0
    candidates = json.loads(capsys.readouterr().out)["faces"][0]["candidates"]
    searched = {candidate["person"]: candidate["visible_both"] for candidate in candidates}["2"]

    (tmp_path / "pairs.csv").write_text("path_a,path_b,same\n1/0.png,2/0.png,0\n")
    faces = conditions.MeasuredFaces(Model.load(model), tmp_path / "people", False, 32, Occluder(0, "b"))
    pairs = read_pairs(tmp_path / "pairs.csv", tmp_path / "people")
    evaluated = conditions.measure(faces, pairs, None, [], "b", 0).asked[UNOCCLUDED].visible_both

    assert verified == evaluated[0]
    assert 0.1 < verified < 0.9
    np.testing.assert_allclose(searched, verified, atol=1 / 255)  # a gallery keeps a byte a cell
