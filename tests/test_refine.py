"""The crop of a face is moved to where the face lies, from wherever landmarks put it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oaml.datasets.drawn import draw_face
from oaml.main import main
from oaml.occluders import occlude
from oaml.photographs import refine
from oaml.photographs.align import as_matrix, warp
from oaml.photographs.refine import Refiner, load_refiner, matrices, refined, refined_crop

pytestmark = pytest.mark.usefixtures("one_thread")
CORNERS = np.array([(0, 0), (111, 0), (0, 111), (111, 111)])
CENTRE = 55.5 * (1 + 1j)


def scene(face: np.ndarray) -> np.ndarray:
    """A face in the middle of grey."""
    photograph = np.full((240, 240, 3), 120, np.uint8)
    photograph[64:176, 64:176] = face
    return photograph


def off(scale: float, turn: float, x: float, y: float) -> np.ndarray:
    """From the scene to a crop that is off by so much."""
    a = scale * np.exp(1j * np.deg2rad(turn))
    return as_matrix(a, CENTRE - a * (CENTRE + 64 * (1 + 1j)) + complex(x, y))


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of the corners of two crops, in pixels of the scene."""
    first, second = ((CORNERS - m[:, 2]) @ np.linalg.inv(m[:, :2]).T for m in (a, b))
    return float(np.linalg.norm(first - second, axis=1).mean())


def test_a_correction_is_a_similarity_about_the_centre() -> None:
    said = torch.tensor([[0.0, 0, 0, 0], [0.1, -0.2, 0.25, -0.5]])
    same, moved = matrices(said).numpy().astype(np.float64)
    np.testing.assert_allclose(same, np.eye(2, 3), atol=1e-5)
    for corner in CORNERS:
        there = complex(1.1, -0.2) * (complex(*corner) - CENTRE) + CENTRE + complex(0.25, -0.5) * 56
        np.testing.assert_allclose(moved[:, :2] @ corner + moved[:, 2], (there.real, there.imag), atol=1e-4)


def test_an_untrained_network_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "load_refiner", lambda: Refiner().eval())
    matrix = off(1.1, 5, 3, -4)
    np.testing.assert_allclose(refined(scene(draw_face(1, 0)), matrix), matrix, atol=1e-9)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = Refiner()
    torch.nn.init.normal_(network.head[-1].weight)  # type: ignore[arg-type]
    network(torch.rand(2, 3, 112, 112)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("kind", ["unoccluded", "mask", "niqab", "sunglasses"])
def test_crops_from_different_places_come_together(kind: str) -> None:
    """Whatever the landmarks said. Drawn faces are none of those that the network has learned from."""
    before, after = [], []
    for person in range(4):
        face = draw_face(person, 0)
        if kind != "unoccluded":
            face = occlude(face, kind, np.random.default_rng(person), style="b").image
        photograph = scene(face)
        places = [off(1, 0, 0, 0), off(1.12, 7, 6, -5), off(0.9, -6, -5, 7)]
        moved = [refined(photograph, place) for place in places]
        before += [apart(places[0], place) for place in places[1:]]
        after += [apart(moved[0], place) for place in moved[1:]]
    assert np.mean(after) < 0.5 * np.mean(before)


def test_mirrored_faces_move_the_same_way() -> None:
    photograph, matrix = scene(draw_face(2, 0)), off(1.1, 5, 3, -4)
    flip = np.diag([-1.0, 1.0])
    other = np.column_stack(
        [flip @ matrix[:, :2] @ flip, flip @ (matrix[:, :2] @ (239, 0) + matrix[:, 2]) + (111, 0)]
    )
    same = warp(photograph[:, ::-1].copy(), other)[:, ::-1].astype(int) - warp(photograph, matrix)
    assert np.abs(same).mean() < 0.1
    moved, mirrored = refined(photograph, matrix), refined(photograph[:, ::-1].copy(), other)
    expected = np.column_stack(
        [flip @ moved[:, :2] @ flip, flip @ (moved[:, :2] @ (239, 0) + moved[:, 2]) + (111, 0)]
    )
    assert apart(mirrored, expected) < 0.5


def test_there_is_no_black_beyond_an_aligned_face() -> None:
    assert refined_crop(np.full((112, 112, 3), 200, np.uint8)).min() == 200


def test_aligned_images_are_moved_where_asked(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    face = draw_face(1, 0)
    Image.fromarray(face).save(tmp_path / "in" / "a.png")
    assert main(["align", str(tmp_path / "in"), "--out", str(tmp_path / "as_is")]) == 0
    assert main(["align", str(tmp_path / "in"), "--out", str(tmp_path / "moved"), "--refine"]) == 0
    np.testing.assert_array_equal(Image.open(tmp_path / "as_is/a.png"), face)
    moved = np.asarray(Image.open(tmp_path / "moved/a.png"))
    np.testing.assert_array_equal(moved, refined_crop(face))
    assert not np.array_equal(moved, face)


def test_the_network_of_the_package() -> None:
    network = load_refiner()
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) < 250_000
    assert network(torch.rand(2, 3, 112, 112)).shape == (2, 4)
