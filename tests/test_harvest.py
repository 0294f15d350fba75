"""Occluders cut out of photographs: what is cut out, how it is worn, which photographs are judged on, and who takes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import says, write_drawn_pairs
from oaml.adaptation.cache import CachePlan, FeatureCache
from oaml.data import DataConfig, OcclusionStream, RecognitionStream
from oaml.datasets.drawn import draw_face
from oaml.datasets.people import DrawnFolder, split_name
from oaml.evaluation import report
from oaml.inference import load_model
from oaml.main import main
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import HARVESTED, KINDS, Occluder, load_harvested, occlude, occluder_rng
from oaml.occluders.cutout import Cutout, Light, cut_out, lay, light_of, relit
from oaml.occluders.harvested import Found, part_of, save_harvested
from oaml.occluders.outline import outline
from oaml.photographs import harvest

pytestmark = pytest.mark.usefixtures("one_thread")

RED, BLUE = (200, 40, 40), (20, 40, 180)
GREY = np.full((112, 112, 3), 120, np.uint8)


class Still:
    """A generator of no chance: nothing is mirrored or moved."""

    def random(self) -> float:
        return 0.9

    def normal(self, mean: float, _: float, count: int | None = None) -> Any:
        return mean if count is None else np.full(count, float(mean))


def cloth(softness: float = 2.0) -> np.ndarray:
    """Visibility of a face whose lower part is hidden, float32 [112,112] in steps of 1/255, with a soft edge."""
    seen = np.ones((112, 112), np.float32)
    seen[62:, 14:98] = 0
    return np.rint(cv2.GaussianBlur(seen, (0, 0), softness) * 255).astype(np.float32) / 255


def dressed(seen: np.ndarray, face: tuple | np.ndarray = RED, worn: tuple = BLUE) -> np.ndarray:
    """A face of one colour under cloth of another, mixed where the mask is."""
    mixed = np.array(face) * seen[..., None] + np.array(worn) * (1 - seen[..., None])
    return np.rint(mixed).astype(np.uint8)


def write_masked(folder: Path, names: list[str], seen: np.ndarray | None = None) -> Path:
    """A folder of images and masks; each face has spots of its own and each cloth a blue, 60 + its number."""
    seen = cloth() if seen is None else seen
    for number, name in enumerate(names):
        spots = np.kron(np.random.default_rng(number).uniform(0, 255, (28, 28, 3)), np.ones((4, 4, 1)))
        for kind, pixels in (
            ("images", dressed(seen, spots, (0, 20, 60 + number))),
            ("masks", np.rint(seen * 255).astype(np.uint8)),
        ):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def occluders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Harvested by the command from 20 photographs."""
    here = tmp_path_factory.mktemp("harvest")
    masked = write_masked(here / "masked", [f"niqab/n{i}" for i in range(20)])
    assert main(["occlude", "--harvest", str(masked), "--out", str(here / "occluders")]) == 0
    return here / "occluders"


# --- what is cut out


def test_opacity_is_exactly_what_the_mask_hides() -> None:
    seen = np.random.default_rng(0).integers(0, 256, (112, 112)).astype(np.float32) / 255
    found = cut_out(dressed(seen), seen)
    assert np.array_equal(found.rgba[..., 3], 255 - np.rint(seen * 255))
    assert found.hidden == pytest.approx(1 - seen.mean(), abs=1e-5)


def test_a_mask_of_two_values_gets_a_soft_edge_in_its_place() -> None:
    seen = np.ones((112, 112), np.float32)
    seen[60:] = 0
    alpha = cut_out(dressed(seen), seen).rgba[..., 3] / 255
    assert (alpha[:57] == 0).all()
    assert (alpha[63:] == 1).all()
    assert 0.1 < alpha[59, 50] < 0.5 < alpha[60, 50] < 0.9
    assert alpha.mean() == pytest.approx((1 - seen).mean(), abs=1e-3)


def test_nothing_of_the_face_goes_along() -> None:
    """A red face under blue cloth, mixed at the soft edge: no pixel of the cut-out is redder than the cloth."""
    seen = cloth()
    found = cut_out(dressed(seen), seen)
    assert np.abs(found.rgba[..., :3].astype(int) - BLUE).max() <= 6
    black = lay(np.zeros((112, 112, 3), np.uint8), Cutout(found.rgba, None), np.random.default_rng(1)).image
    assert black[..., 0].max() <= 26  # red of the cloth is 20


def test_what_is_too_narrow_to_have_an_inside_keeps_its_colour() -> None:
    seen = cloth()
    seen[40:42, 20:90] = 0  # a strap, two pixels wide
    image = dressed(seen)
    image[40:42, 20:90] = (0, 250, 0)
    found = cut_out(image, seen)
    assert (found.rgba[40:42, 21:89] == (0, 250, 0, 255)).all()


def test_the_outline_follows_the_colours_where_the_map_is_coarse() -> None:
    yy, xx = np.mgrid[:112, :112]
    hidden = ((xx - 56) / 37) ** 2 + ((yy - 90) / 27) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 6, (112, 112, 3))
    image = np.where(hidden[..., None], BLUE, (210, 160, 130)) + noise
    image = np.clip(image, 0, 255).astype(np.uint8)
    coarse = 1 - hidden.reshape(14, 8, 14, 8).mean((1, 3))
    mask, agreement = outline(image, coarse)
    found = mask == 0
    assert (found & hidden).sum() / (found | hidden).sum() > 0.96
    assert agreement > 0.85
    assert outline(image, np.ones((14, 14)))[0].min() == 1  # nothing is predicted, nothing is found
    assert np.array_equal(outline(image, coarse)[0], mask)


def test_skin_within_a_strap_is_not_cut_out() -> None:
    hidden = np.zeros((112, 112), bool)
    hidden[60:100, 20:92] = True
    loop = np.zeros_like(hidden)
    loop[68:88, 78:90] = True
    noise = np.random.default_rng(0).normal(0, 3, (112, 112, 3))
    image = np.where((hidden & ~loop)[..., None], BLUE, (210, 160, 130)) + noise
    mask, _ = outline(
        np.clip(image, 0, 255).astype(np.uint8), 1.0 - hidden.reshape(14, 8, 14, 8).mean((1, 3))
    )
    assert mask[72:84, 81:87].min() == 1
    assert mask[64:96, 30:70].max() == 0


# --- how it is worn


@pytest.mark.parametrize("seen", [cloth(), cloth(8.0)])
def test_the_mask_is_one_less_the_opacity(seen: np.ndarray) -> None:
    face, found = draw_face(3, 0), cut_out(dressed(seen), seen)
    worn = lay(face, found, Still())  # type: ignore[arg-type]
    assert np.array_equal(np.rint(worn.mask * 255), 255 - found.rgba[..., 3].astype(int))
    assert np.array_equal(worn.image[worn.mask == 1], face[worn.mask == 1])
    colour = relit(
        found.rgba[..., :3].astype(np.float32), 1 - worn.mask, found.light, light_of(face, worn.mask)
    ).clip(0, 255)
    expected = face * worn.mask[..., None] + colour * (1 - worn.mask[..., None])
    assert np.abs(worn.image - expected).max() <= 0.51


def test_moved_occluders_keep_the_rule_and_vary(occluders: Path) -> None:
    harvested = load_harvested(occluders)
    face = draw_face(1, 0)
    masks = []
    for name in ("Ann/1", "Ann/2", "Bela/1"):
        worn = Occluder(0, harvested=harvested)(face, HARVESTED, name)
        again = Occluder(0, harvested=harvested)(face, HARVESTED, name)
        other = Occluder(0, harvested=harvested)(draw_face(2, 1), HARVESTED, name)
        assert worn.image.tobytes() == again.image.tobytes()
        assert np.array_equal(worn.mask, other.mask)  # the mask does not depend on the face
        assert np.array_equal(worn.image[worn.mask == 1], face[worn.mask == 1])
        assert np.array_equal(np.rint(worn.mask * 255) / np.float32(255), worn.mask)
        masks.append(worn.mask)
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
    assert Occluder(1, harvested=harvested)(face, HARVESTED, "Ann/1").mask.tobytes() != masks[0].tobytes()


def test_what_reaches_the_edge_of_the_crop_still_does_when_moved() -> None:
    seen = np.ones((112, 112), np.float32)
    seen[50:] = 0
    found = cut_out(dressed(seen), seen)
    for number in range(20):
        worn = lay(GREY, found, occluder_rng(0, HARVESTED, str(number)))
        assert (worn.mask[75:] == 0).all()


def test_light_follows_the_face_half_of_the_way() -> None:
    """By hand: (192 + 8) / (92 + 8) = 2, of which the square root; the contrasts are equal."""
    colour, alpha = np.full((112, 112, 3), 100, np.float32), np.ones((112, 112), np.float32)
    dark, bright = Light((92, 92, 92), 30), Light((192, 192, 192), 30)
    assert np.allclose(relit(colour, alpha, dark, bright), 100 * 2**0.5, atol=0.01)
    assert np.allclose(relit(colour, alpha, bright, dark), 100 / 2**0.5, atol=0.01)
    assert np.allclose(relit(colour, alpha, dark, dark), 100, atol=1e-3)
    assert np.array_equal(relit(colour, alpha, None, bright), colour)
    # twice as red, at the same brightness: (200, 50, 50) + 8 against 100 + 8 in each, the fourth root
    red = relit(colour, alpha, Light((100, 100, 100), 30), Light((200, 50, 50), 30))[0, 0]
    assert red == pytest.approx([100 * (208 / 108) ** 0.25, *[100 * (58 / 108) ** 0.25] * 2], abs=0.01)
    folds = np.where(np.arange(112)[:, None, None] % 2, 110, 90) * np.ones((112, 112, 3), np.float32)
    harder = relit(folds, alpha, Light((92, 92, 92), 20), Light((92, 92, 92), 44))  # (44 + 4) / (20 + 4) = 2
    assert np.ptp(harder) == pytest.approx(20 * 1.4, abs=0.1)  # no more than 1.4, for the root is 1.414
    white = relit(colour + 130, alpha, dark, bright)
    assert white.max() < 240  # folds of white cloth don't drown in white


def test_an_occluder_is_brighter_on_a_brighter_face() -> None:
    found = cut_out(dressed(cloth(), worn=(90, 90, 90)), cloth())
    inside = np.s_[80:108, 30:80]
    levels = [
        lay(np.full((112, 112, 3), level, np.uint8), found, np.random.default_rng(5)).image[inside].mean()
        for level in (20, 70, 120, 200)
    ]
    assert levels == sorted(levels)
    assert levels[-1] > 1.4 * levels[0]


# --- which photographs


def test_no_photograph_is_both_trained_and_judged_on(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(40)] + ["n0_2", "n1_2", "m_7"]
    masked = write_masked(tmp_path / "masked", names)
    found, left_out = harvest.from_masks(masked)
    assert len(found) == 43
    assert left_out == []
    save_harvested(found, tmp_path / "occluders")
    harvested = load_harvested(tmp_path / "occluders")
    blues = {part: {int(c.rgba[90, 50, 2]) for c in harvested.parts[part]} for part in harvested.parts}
    assert len(blues["train"]) + len(blues["judge"]) == 43
    assert not blues["train"] & blues["judge"]
    assert 8 <= len(blues["judge"]) <= 18  # 3 of 10
    # the second face of a photograph goes with the first, as `oaml align --all` names it; a number of another photograph doesn't
    photographs = {one.source: one.photograph for one in found}
    assert photographs["n0_2.png"] == photographs["n0.png"] == "n0"
    assert photographs["m_7.png"] == "m_7"
    # what is worn in a style is of its part, whatever the rng
    for style, part in (("a", "train"), ("b", "judge")):
        occluder = Occluder(0, style, harvested=harvested)  # type: ignore[arg-type]
        for number in range(60):
            drawn = occluder.draw(GREY, HARVESTED, np.random.default_rng(number))
            spots = drawn.image[drawn.mask == 0].mean(0)
            assert spots[2] > 1.5 * spots[0]
        assert harvested.of(style) is harvested.parts[part]  # type: ignore[arg-type, index]


def test_the_part_depends_on_the_name_alone(tmp_path: Path) -> None:
    few, many = (
        harvest.from_masks(write_masked(tmp_path / str(count), [f"n{i}" for i in range(count)]))[0]
        for count in (3, 12)
    )
    parts = [{one.source: part_of(one.photograph) for one in found} for found in (few, many)]
    assert parts[0].items() <= parts[1].items()
    assert {part_of(f"n{i}") for i in range(20)} == {"train", "judge"}


def test_copies_of_a_photograph_count_once(tmp_path: Path) -> None:
    """Another light, another compression, mirrored, a little moved: under names of either part they would be judged on as well."""
    masked = write_masked(tmp_path / "masked", ["a0", "a1", "a2"])
    image, mask = (np.asarray(Image.open(masked / kind / "a1.png")) for kind in ("images", "masks"))
    moved = np.roll(image, 1, 1)
    copies = {"b": image // 2 + 30, "c": image[:, ::-1], "d": moved}
    for name, copy in copies.items():
        Image.fromarray(copy).save(masked / "images" / f"{name}.jpg", quality=70)
        Image.fromarray(mask).save(masked / "masks" / f"{name}.png")
    found, left_out = harvest.from_masks(masked)
    assert [one.source for one in found] == ["a0.png", "a1.png", "a2.png"]
    assert [(line.path.name, line.reason) for line in left_out] == [
        (f"{name}.jpg", harvest.COPY) for name in copies
    ]


def test_a_part_without_occluders_is_an_error_where_it_is_worn(tmp_path: Path) -> None:
    name = next(f"n{i}" for i in range(99) if part_of(f"n{i}") == "train")
    found, _ = harvest.from_masks(write_masked(tmp_path / "masked", [name]))
    save_harvested(found, tmp_path / "occluders")
    harvested = load_harvested(tmp_path / "occluders")
    assert harvested.of("a")
    says(lambda: harvested.of("b"), tmp_path / "occluders", "judge", "style b", "harvest more")


# --- the command


def test_the_folder_holds_what_its_list_says(occluders: Path) -> None:
    listed = json.loads((occluders / "occluders.json").read_text())["occluders"]
    assert len(listed) == 20
    for entry in listed:
        rgba = np.asarray(Image.open(occluders / entry["file"]))
        assert rgba.shape == (112, 112, 4)
        assert entry["hidden"] == pytest.approx(rgba[..., 3].mean() / 255, abs=1e-4)
        assert entry["kind"] == "niqab"
        assert entry["visibility"] == "mask"
        assert entry["part"] == part_of(entry["source"].removesuffix(".png"))
        assert len(entry["light"]) == 4
    assert {entry["source"] for entry in listed} == {f"niqab/n{i}.png" for i in range(20)}


def test_the_published_layout_and_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masked = write_masked(tmp_path / "masked", [f"n{i}" for i in range(8)])
    (masked / "images").rename(masked / "kept_faces")
    for path in list((masked / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    Image.fromarray(np.full((112, 112), 255, np.uint8)).save(masked / "masks" / "n0_mask.png")
    out, sheet = tmp_path / "occluders", tmp_path / "sheet.png"
    assert main(["occlude", "--harvest", str(masked), "--out", str(out), "--sheet", str(sheet)]) == 0
    shown = capsys.readouterr()
    assert "7 occluders" in shown.out
    assert "1 left out" in shown.out
    assert "n0.png: too little of it is hidden" in shown.err
    assert np.asarray(Image.open(sheet)).shape == (2 * 116, 6 * 228, 3)


def test_faces_wear_them_by_the_command(tmp_path: Path, occluders: Path) -> None:
    (tmp_path / "faces").mkdir()
    for i in range(3):
        Image.fromarray(draw_face(i, 0)).save(tmp_path / "faces" / f"{i}.png")
    call = ["occlude", str(tmp_path / "faces"), "--kind", "harvested", "--occluders_from", str(occluders)]
    for out in ("one", "two"):
        assert main([*call, "--style", "b", "--out", str(tmp_path / out)]) == 0
    harvested = load_harvested(occluders)
    for i in range(3):
        image, mask = (np.asarray(Image.open(tmp_path / "one" / k / f"{i}.png")) for k in ("images", "masks"))
        assert image.tobytes() == np.asarray(Image.open(tmp_path / "two" / "images" / f"{i}.png")).tobytes()
        expected = occlude(
            draw_face(i, 0), HARVESTED, occluder_rng(0, HARVESTED, f"{i}.png"), style="b", harvested=harvested
        )
        assert np.array_equal(image, expected.image)
        assert np.array_equal(mask, np.rint(expected.mask * 255))


def test_what_cannot_be_used_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Predicted: an occluder, none, everything, no face, and a map that is sure of nothing."""
    seen = np.kron(np.where(np.arange(14)[:, None] < 8, 1.0, 0.0) * np.ones((14, 14)), np.ones((8, 8)))
    folder = tmp_path / "faces"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 3, (112, 112, 3))
    face = np.clip(dressed(seen, (210, 160, 130)) + noise, 0, 255).astype(np.uint8)
    maps = {
        "mask": seen[::8, ::8],
        "none": np.ones((14, 14)),
        "all": np.zeros((14, 14)),
        "wall": seen[::8, ::8],
    }
    maps["vague"] = np.where(np.arange(14)[:, None] < 7, 0.4, 1.0) * np.ones((14, 14))
    pixels = {}
    for number, name in enumerate(maps):
        pixels[name] = face.copy()
        pixels[name][0, 0] = number  # to know them by
        Image.fromarray(pixels[name]).save(folder / f"{name}.png")
    known = list(maps)
    monkeypatch.setattr(harvest, "predicted", lambda _, image: maps[known[image[0, 0, 0]]])
    monkeypatch.setattr(harvest, "usable", lambda image: 0.1 if known[image[0, 0, 0]] == "wall" else 0.9)
    out = tmp_path / "out"
    assert main(["occlude", "--harvest", str(folder), "--predict", "--out", str(out)]) == 0
    listed = json.loads((out / "occluders.json").read_text())["occluders"]
    assert [(entry["source"], entry["visibility"], entry["kind"]) for entry in listed] == [
        ("mask.png", "predicted", "")
    ]
    shown = capsys.readouterr()
    assert "1 occluder, " in shown.out
    assert "4 left out" in shown.out
    for line in (
        "none.png: too little of it is hidden",
        "all.png: too much of it is hidden",
        "wall.png: shows no usable face",
        "vague.png: the outline of its occluder is not clear",
    ):
        assert line in shown.err
    assert "one of the two parts is empty" in shown.err


def test_a_prediction_looks_at_both_sides() -> None:
    worn = occlude(draw_face(1, 0), "mask", np.random.default_rng(1)).image
    model = load_model("starter", "cpu")
    found = harvest.predicted(model, worn)
    mirrored = harvest.predicted(model, np.ascontiguousarray(worn[:, ::-1]))
    assert found.shape == (14, 14)
    assert 0 <= found.min() <= found.max() <= 1
    assert np.allclose(found, mirrored[:, ::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("prepare", "options", "parts"),
    [
        (lambda f: f.mkdir(), [], ("images", "no such folder")),
        (lambda f: f.mkdir(), ["--predict"], ("no images in it",)),
        (
            lambda f: write_masked(f, ["a"], np.ones((112, 112), np.float32)),
            [],
            ("gives no occluder", "a.png"),
        ),
        (lambda f: tall_mask(write_masked(f, ["a"])), [], ("a.png", "100x112", "same crop")),
    ],
)
def test_bad_photographs(
    prepare: Callable[[Path], object],
    options: list[str],
    parts: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(tmp_path / "photographs")
    out = tmp_path / "out"
    assert main(["occlude", "--harvest", str(tmp_path / "photographs"), "--out", str(out), *options]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(part in line for part in parts), line
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


def tall_mask(folder: Path) -> None:
    Image.fromarray(np.zeros((112, 100), np.uint8)).save(folder / "masks" / "a.png")


@pytest.mark.parametrize(
    "call",
    [
        ["--out", "o"],
        ["faces", "--out", "o"],
        ["faces", "--kind", "niqab", "--predict", "--out", "o"],
        ["faces", "--kind", "niqab", "--sheet", "s.png", "--out", "o"],
        ["--harvest", "x", "--kind", "niqab", "--out", "o"],
    ],
)
def test_wrong_calls(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["occlude", *call]) == 2
    assert capsys.readouterr().err.startswith("oaml occlude: ")
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masked = write_masked(tmp_path / "masked", ["a"])
    assert main(["occlude", "--harvest", str(masked), "--out", str(masked)]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert (masked / "masks" / "a.png").is_file()


def spoil(folder: Path, change: Callable[[dict], object]) -> None:
    listed = json.loads((folder / "occluders.json").read_text())
    change(listed)
    (folder / "occluders.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: (f / "occluders.json").unlink(), ("no folder of occluders", "oaml occlude --harvest")),
        (lambda f: (f / "occluders.json").write_text("{"), ("occluders.json", "is damaged")),
        (lambda f: spoil(f, lambda c: c.update(format=2)), ("format 2", "again")),
        (lambda f: spoil(f, lambda c: c["occluders"][0].update(part="both")), ("is damaged",)),
        (lambda f: spoil(f, lambda c: c["occluders"][0].update(file="../x.png")), ("is damaged",)),
        (lambda f: spoil(f, lambda c: c["occluders"][0].pop("light")), ("is damaged",)),
        (lambda f: spoil(f, lambda c: c.update(occluders=[])), ("lists no occluder",)),
        (lambda f: (f / "cutouts" / "00003.png").unlink(), ("00003.png", "no such image")),
        (lambda f: Image.new("RGBA", (50, 112)).save(f / "cutouts" / "00003.png"), ("00003.png", "50x112")),
    ],
)
def test_bad_folders_of_occluders(
    damage: Callable[[Path], object], parts: tuple[str, ...], occluders: Path, tmp_path: Path
) -> None:
    shutil.copytree(occluders, tmp_path / "o")
    damage(tmp_path / "o")
    says(lambda: load_harvested(tmp_path / "o"), *parts)


def test_the_kind_needs_its_folder(occluders: Path) -> None:
    rng = np.random.default_rng(0)
    says(lambda: occlude(GREY, HARVESTED, rng), HARVESTED, "--occluders_from")
    assert HARVESTED not in KINDS


def test_drawn_occluders_are_what_they_were(occluders: Path) -> None:
    harvested = load_harvested(occluders)
    for kind in KINDS:
        alone = Occluder(2, retexture_share=0.5)(GREY, kind, "Ann/1")
        beside = Occluder(2, retexture_share=0.5, harvested=harvested)(GREY, kind, "Ann/1")
        assert alone.image.tobytes() == beside.image.tobytes()


# --- who takes them


def small() -> Model:
    net = NetConfig(architecture="ir_mini", embedding_size=16, occlusion_stage=3, branch="stage")
    return Model(ModelConfig(net=net)).eval()


def test_a_cache_knows_its_occluders(tmp_path: Path, occluders: Path) -> None:
    people = DrawnFolder(4, 2)
    plan = CachePlan.make(people, [HARVESTED], 2, 0)
    shutil.copytree(occluders, tmp_path / "copy")
    shutil.copytree(occluders, tmp_path / "other")
    (tmp_path / "other" / "cutouts" / "00004.png").write_bytes(
        (tmp_path / "other" / "cutouts" / "00005.png").read_bytes()
    )
    model = small()
    keys = [
        FeatureCache(tmp_path / "c", model, people, plan, [], load_harvested(folder)).key()
        for folder in (occluders, tmp_path / "copy", tmp_path / "other")
    ]
    assert keys[0] == keys[1] != keys[2]
    cached = FeatureCache(tmp_path / "c", model, people, plan, [], load_harvested(occluders))
    row = next(i for i, row in enumerate(plan.rows) if row.kind == 0)
    assert cached.face(row)[1].mean() < 0.9
    assert HARVESTED in cached.name(row)


def test_streams_wear_them(occluders: Path) -> None:
    config = DataConfig(drawn_people=4, kinds=[], occluders_from=occluders, cover_probability=1.0)
    assert config.all_kinds == [HARVESTED]
    people = DrawnFolder(4, 2)
    for stream in (RecognitionStream(people, config), OcclusionStream(people, config)):
        masks = [stream[i % 8, i]["mask"] for i in range(8)]
        assert all(0.3 < float(mask.mean()) < 0.8 for mask in masks)
    with pytest.raises(ValueError, match="kinds"):
        DataConfig(drawn_people=4, kinds=[])


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    names = [f"p{i}" for i in range(99)]
    chosen = [n for n in names if split_name(n) == "calibrate"][:2] + [
        n for n in names if split_name(n) == "train"
    ][:4]
    for number, name in enumerate(chosen):
        (folder / name).mkdir()
        for shot in range(2):
            Image.fromarray(draw_face(number, shot)).save(folder / name / f"{shot}.png")
    return folder


@pytest.mark.filterwarnings("ignore:.*impostor pairs are held out")
@pytest.mark.parametrize("drawn", [["none"], ["mask"]])
def test_adapt(drawn: list[str], people: Path, occluders: Path, tmp_path: Path) -> None:
    backbone = small().save(tmp_path / "backbone")
    words = (
        f"adapt --backbone {backbone} --people {people} --out {tmp_path / 'out'} --occluders_from {occluders}"
    )
    few = "--no-last_stage --occluders_per_view 2 --occlusion_steps 1 --steps 1 --device cpu"
    assert main([*words.split(), *few.split(), "--occluders", *drawn]) == 0
    covers = Model.load(tmp_path / "out").config.training["covers"]
    digest = load_harvested(occluders).digest[:12]
    assert f"occluders of occluders, sha256 {digest}" in covers
    assert ("drawn (mask), style a" in covers) == (drawn == ["mask"])


def test_adapt_needs_some_occluder(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"adapt --backbone {tmp_path} --people {people} --out {tmp_path / 'out'} --occluders none"
    assert main(words.split()) == 1
    assert "--occluders_from" in capsys.readouterr().err


def test_train(people: Path, occluders: Path, tmp_path: Path) -> None:
    few = (
        "--net.architecture ir_mini --net.embedding_size 16 --qaconv.adapter 8 --steps 1 --data.identities 2 --data.images 2 "
        "--data.occlusion_batch 2 --data.workers 0 --precision 32-true --validate_every 1 --picture_every 0 --accelerator cpu"
    )
    words = f"train --data.people {people} --data.use train --data.occluders_from {occluders} --out {tmp_path / 'out'}"
    assert main([*words.split(), *few.split()]) == 0
    training = Model.load(tmp_path / "out" / "last").config.training
    assert training["kinds"] == [*KINDS, HARVESTED]
    assert training["harvested"] == load_harvested(occluders).described()


def test_evaluate(occluders: Path, tmp_path: Path) -> None:
    write_drawn_pairs(tmp_path, 4, 2)
    small().save(tmp_path / "model")
    options: dict[str, Any] = {
        "images": tmp_path / "faces",
        "pairs": tmp_path / "pairs.csv",
        "bootstrap": 0,
        "occluders_from": occluders,
    }
    measured = report.evaluate(str(tmp_path / "model"), out=tmp_path / "report", occlude=HARVESTED, **options)
    assert measured.occluders.kinds == [HARVESTED]
    assert measured.verification is not None
    assert HARVESTED in measured.verification.conditions
    assert "cut out of such photographs" in (tmp_path / "report" / "report.html").read_text()
    model, out = str(tmp_path / "model"), tmp_path / "none"
    says(lambda: report.evaluate(model, out=out, occlude="mask", **options), occluders, "add harvested")
    del options["occluders_from"]
    says(lambda: report.evaluate(model, out=out, occlude=HARVESTED, **options), "--occluders_from")


def test_all_kinds_are_one_more_with_a_folder(occluders: Path) -> None:
    assert report._kinds("all", occluders) == [*KINDS, HARVESTED]
    assert report._kinds("all", None) == list(KINDS)


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    none: list[Found] = []
    says(lambda: save_harvested(none, tmp_path / "o"), "no occluder")
    assert not (tmp_path / "o").exists()
