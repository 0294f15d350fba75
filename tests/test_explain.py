"""Why a pair scored as it did: the parts add up to the scores, and the picture shows them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from conftest import with_statistics
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import occlude
from oaml.qaconv import QAConvConfig
from oaml.recognition.explain import LINES, Explanation, Match, explain_pair, strongest
from oaml.recognition.picture import draw_pair
from oaml.support.maps import GREEN, PINK

SIDE = 448
LEFT, RIGHT, UPPER, LOWER = 30, 598, 110, 642  # where the faces are in the picture


pytestmark = pytest.mark.usefixtures("one_thread")


def small(method: Any = "normalized", **net: Any) -> Model:
    """A model with random weights and statistics."""
    torch.manual_seed(0)
    made = NetConfig(**{"architecture": "ir_mini", "embedding_size": 16, **net})
    model = Model(ModelConfig(made, QAConvConfig(method, adapter=8)))
    return with_statistics(model)


@pytest.fixture(scope="module")
def faces() -> tuple[np.ndarray, np.ndarray]:
    return draw_face(1, 0), occlude(draw_face(1, 1), "mask", np.random.default_rng(0)).image


def flat(value: float = 0.5) -> np.ndarray:
    """A face of one colour, which is easy to find again."""
    return np.full((112, 112, 3), (255 * value, 128 * value, 64 * value), np.float64).astype(np.uint8)


def plain(**changes: Any) -> Explanation:
    """Both faces show, and nothing speaks for or against."""
    ones, zeros = np.ones((7, 7)), np.zeros((7, 7))
    return replace(Explanation(ones, ones, ones, zeros, 0.0, 12.0, (7, 7), []), **changes)


def drawn(path: Path, explanation: Explanation, a: np.ndarray | None = None, **options: Any) -> np.ndarray:
    """The picture as float RGB in [0,1]."""
    face = flat() if a is None else a
    draw_pair(path, face, face, explanation, **{"title": "A title", **options})
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture[..., ::-1] / 255.0


def face_of(picture: np.ndarray, x: int, y: int) -> np.ndarray:
    return picture[y : y + SIDE, x : x + SIDE]


# --- the parts


@torch.inference_mode()
@pytest.mark.parametrize(
    "net", [{"stage": 4}, {"stage": 3}, {"occlusion_stage": 3}, {"occlusion_stage": 3, "branch": "stage"}]
)
def test_the_parts_add_up(net: dict[str, Any], faces: tuple[np.ndarray, np.ndarray]) -> None:
    model = small(**net)
    explanation = explain_pair(model, *faces)
    a, b = (model.extract(torch.from_numpy(f).permute(2, 0, 1)[None].float() / 255) for f in faces)
    joint = model.joint.compare_pairs(a.cell_embeddings, b.cell_embeddings, a.visibility, b.visibility)
    assert explanation.share.shape == explanation.both.shape == (7, 7)
    assert explanation.share.sum() == pytest.approx(joint.cosine.item(), abs=1e-5)
    assert explanation.cosine == pytest.approx(joint.cosine.item(), abs=1e-5)
    assert explanation.both.mean() == pytest.approx(1 - joint.unseen.item(), abs=1e-6)
    fine = (14, 14) if "stage" not in net or net["stage"] == 3 else (7, 7)
    assert explanation.visible_a.shape == explanation.visible_b.shape == fine
    assert explanation.visible_a.mean() == pytest.approx(a.visible().item(), abs=1e-6)
    assert explanation.grid == model.net.grid

    # the mean of correlations that QAConv scores, up to its 0.001 in the denominator
    assert sum(match.weight for match in explanation.matches) == pytest.approx(1, abs=2e-3)
    local = sum(match.strength for match in explanation.matches)
    qaconv = model.matcher.match_pairs(a.local, b.local, a.visibility, b.visibility, prepared=True).item()
    k0, k1, k2, k3 = model.matcher.confidence.tolist()
    c = torch.nn.functional.softplus(model.matcher.cell_weight)
    shared = (c * a.visibility.flatten() * b.visibility.flatten()).sum() / c.sum()
    u = 1 - shared.item()
    scale = model.matcher.log_scale.exp().item()
    assert scale * local * (1 + k1 * u) + k0 + k2 * u + k3 * u**2 == pytest.approx(qaconv, abs=1e-4)


def test_symmetric_in_the_two_faces(faces: tuple[np.ndarray, np.ndarray]) -> None:
    model = small(occlusion_stage=3)
    forth, back = explain_pair(model, *faces), explain_pair(model, *faces[::-1])
    np.testing.assert_allclose(forth.share, back.share, atol=1e-6)
    np.testing.assert_allclose(forth.both, back.both, atol=1e-6)
    assert np.array_equal(forth.visible_a, back.visible_b)
    assert {(m.cell_a, m.cell_b) for m in forth.matches} == {(m.cell_b, m.cell_a) for m in back.matches}
    assert [m.strength for m in forth.matches] == pytest.approx([m.strength for m in back.matches], abs=1e-6)


@pytest.mark.parametrize("method", ["normalized", "scaling", "none"])
@pytest.mark.parametrize("stage", [3, 4])
def test_matches(method: str, stage: int, faces: tuple[np.ndarray, np.ndarray]) -> None:
    model = small(method, stage=stage)
    all_matches = explain_pair(model, *faces).matches
    cells = model.net.grid[0]
    assert len({(m.cell_a, m.cell_b) for m in all_matches}) == len(all_matches)
    assert all(0 <= place < cells for m in all_matches for place in (*m.cell_a, *m.cell_b))
    assert {m.cell_a for m in all_matches} == {m.cell_b for m in all_matches} == set(np.ndindex(cells, cells))
    strengths = [m.strength for m in all_matches]
    assert strengths == sorted(strengths, reverse=True)
    assert cells**2 <= len(all_matches) <= 2 * cells**2


def test_a_face_with_itself(faces: tuple[np.ndarray, np.ndarray]) -> None:
    model = small()
    with torch.no_grad():
        bias = model.net.occlusion_head.conv2.bias
        assert bias is not None
        assert model.matcher.offset_bias is not None
        bias.add_(30)  # everything shows
        model.matcher.offset_bias.zero_()
    explanation = explain_pair(model, faces[0], faces[0])
    assert explanation.cosine == pytest.approx(1, abs=1e-5)
    assert len(explanation.matches) == 49
    assert all(match.cell_a == match.cell_b for match in explanation.matches)
    assert sum(match.strength for match in explanation.matches) == pytest.approx(1, abs=2e-3)


def test_cosine_that_a_threshold_takes(faces: tuple[np.ndarray, np.ndarray]) -> None:
    model = small()
    explanation = explain_pair(model, *faces)
    needed = explanation.needed(score=1.5, threshold=3.5)
    assert needed is not None
    unseen = torch.tensor([1 - explanation.both.mean(), 1 - explanation.both.mean()]).float()
    before, after = model.joint.logit(torch.tensor([explanation.cosine, needed]), unseen).tolist()
    assert after - before == pytest.approx(2, abs=1e-4)
    assert explanation.needed(1.5, 1.5) == explanation.cosine
    assert replace(explanation, slope=0.0).needed(1.5, 3.5) is None
    assert replace(explanation, slope=-1.0).needed(1.5, 3.5) is None


def test_strongest() -> None:
    matches = [Match((0, 0), (i % 7, i // 7), 0.02, 0.02 - 0.001 * i) for i in range(30)]
    assert strongest(plain(matches=matches)) == matches[:LINES]
    assert strongest(plain(matches=matches), 3) == matches[:3]
    assert (
        strongest(plain(matches=matches[18:])) == matches[18:20]
    )  # nothing that adds nothing, or speaks against
    assert strongest(plain()) == []


# --- the picture


def test_a_face_that_shows_keeps_its_pixels(tmp_path: Path, faces: tuple[np.ndarray, np.ndarray]) -> None:
    picture = drawn(tmp_path / "a.png", plain(), faces[0])
    expected = cv2.resize(faces[0], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) / 255.0
    for x in (LEFT, RIGHT):
        assert np.abs(face_of(picture, x, UPPER) - expected).max() < 0.01
    lower = face_of(picture, LEFT, LOWER)
    assert np.ptp(lower, axis=2).max() < 0.01, (
        "the lower faces are grey, so that green and pink mean something"
    )
    assert np.corrcoef(lower.mean(2).ravel(), expected.mean(2).ravel())[0, 1] > 0.95


@pytest.mark.parametrize("cells", [7, 14])
def test_what_is_occluded_is_pale_and_hatched(cells: int, tmp_path: Path) -> None:
    visible = np.ones((cells, cells))
    visible[cells // 2 + cells % 2 :] = 0
    both = np.ones((7, 7))
    both[4:] = 0
    picture = drawn(tmp_path / "a.png", plain(visible_a=visible, both=both))
    edge = SIDE * (cells // 2 + cells % 2) // cells
    for x, y in ((LEFT, UPPER), (LEFT, LOWER), (RIGHT, LOWER)):
        face = face_of(picture, x, y)
        shown, hidden = face[: edge - 2], face[edge + 2 :]
        assert shown.std(axis=(0, 1)).max() < 0.01
        assert hidden.std(axis=(0, 1)).min() > 0.05  # lines
        assert np.ptp(hidden, axis=2).max() < 0.4 * np.ptp(flat()[0, 0] / 255.0)  # hardly any colour
    assert face_of(picture, RIGHT, UPPER).std(axis=(0, 1)).max() < 0.01, "the other face shows whole"


def test_green_speaks_for_and_pink_against(tmp_path: Path) -> None:
    share = np.zeros((7, 7))
    share[:, :3], share[:, 4:] = 0.03, -0.03
    picture = drawn(tmp_path / "a.png", plain(share=share, cosine=0.0))
    for x in (LEFT, RIGHT):
        face = face_of(picture, x, LOWER)
        middle = face[:, 3 * 64 + 4 : 4 * 64 - 4].mean((0, 1))
        assert np.ptp(middle) < 0.01  # neither
        for column, colour in ((1, GREEN), (5, PINK)):
            patch = np.median(face[:, column * 64 + 4 : (column + 1) * 64 - 4], axis=(0, 1))
            towards = np.array(to_rgb(colour)) - middle
            cosine = (patch - middle) @ towards / np.linalg.norm(patch - middle) / np.linalg.norm(towards)
            assert cosine > 0.99
    # above, faces keep their own colours: no green may be mistaken for a share
    assert face_of(picture, LEFT, UPPER).std(axis=(0, 1)).max() < 0.01


def test_weak_shares_stay_pale(tmp_path: Path) -> None:
    """The scale is the same for every pair: impostor pairs must not look as if much spoke for them."""
    saturation = []
    for size in (0.002, 0.02, 0.05):
        face = face_of(drawn(tmp_path / "a.png", plain(share=np.full((7, 7), size))), LEFT, LOWER)
        saturation.append(float(np.ptp(np.median(face, axis=(0, 1)))))
    assert saturation[0] < 0.03
    assert 4 * saturation[0] < saturation[1] < saturation[2]


@pytest.mark.parametrize("grid", [(7, 7), (14, 14)])
def test_lines_between_matched_cells(grid: tuple[int, int], tmp_path: Path) -> None:
    unlined = drawn(tmp_path / "a.png", plain(grid=grid))
    last = grid[0] - 1
    matches = [Match((0, 0), (last, last), 0.3, 0.2), Match((last, 0), (last, last), 0.1, 0.05)]
    lined = drawn(tmp_path / "b.png", plain(grid=grid, matches=matches))
    changed = np.abs(lined - unlined).max(2) > 0.05
    step = SIDE // grid[0]
    for x, y, expected in (
        (LEFT, UPPER, True),  # top left cell of A
        (LEFT, UPPER + last * step, True),
        (RIGHT + last * step, UPPER + last * step, True),
        (RIGHT, UPPER, False),
        (LEFT + last * step, UPPER + last * step, True),  # a line passes
    ):
        assert changed[y : y + step, x : x + step].any() == expected
    for x in (LEFT, RIGHT):
        assert not face_of(changed, x, LOWER).any()


def test_every_kind_of_pair_can_be_drawn(tmp_path: Path, faces: tuple[np.ndarray, np.ndarray]) -> None:
    nothing = np.zeros((7, 7))
    crowd = [Match((3, 3), (3, 3), 0.1, 0.1)] * 12
    for number, (explanation, needed) in enumerate(
        [
            (plain(both=nothing, visible_a=nothing, visible_b=np.zeros((14, 14))), None),
            (plain(share=np.full((7, 7), 1 / 49), cosine=1.0, matches=crowd), 0.4),
            (plain(share=np.full((7, 7), -1 / 49), cosine=-1.0), 1.4),
            (plain(share=np.eye(7) / 7, cosine=1.0), -1.4),
            (explain_pair(small(stage=3), *faces), 0.0),
        ]
    ):
        drawn(tmp_path / f"{number}.png", explanation, needed=needed)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
    "name", ["$a_{b$.png", "x" * 200, "[bold]a", "\u5f20.png", "a\udcff.png", "", "a\nb"]
)
@pytest.mark.filterwarnings("error")
def test_any_file_name_can_be_shown(name: str, tmp_path: Path) -> None:
    drawn(tmp_path / "a.png", plain(), names=(name, name))


def test_the_same_pair_gives_the_same_bytes(tmp_path: Path, faces: tuple[np.ndarray, np.ndarray]) -> None:
    model = small()
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in files:
        draw_pair(path, *faces, explain_pair(model, *faces), title="Same person", names=("a", "b"))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_whole_or_not_at_all_and_no_global_state(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OamlError, match="could not be written"):
        draw_pair(tmp_path / "file" / "a.png", flat(), flat(), plain(), title="x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
