"""Occluders: the mask tells the truth, a seed draws the same, a folder is covered wholly or not at all."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oaml.errors import OamlError
from oaml.occluders import (
    KINDS,
    STYLES,
    Occluder,
    Style,
    load_mask_pictures,
    occlude,
    occluder_rng,
    retexture,
)
from oaml.occluders.canvas import curve
from oaml.occluders.command import occlude_folder
from oaml.support.files import read_image, read_mask

# Smallest and largest share of the crop that one occluder may take, and the range of the mean over many.
SHARES = {
    "niqab": (0.35, 0.95, 0.6, 0.85),
    "mask": (0.18, 0.48, 0.25, 0.4),
    "sunglasses": (0.07, 0.28, 0.1, 0.22),
    "scarf": (0.15, 0.85, 0.3, 0.6),
    "hand": (0.03, 0.48, 0.14, 0.32),
    "patch": (0.03, 0.47, 0.1, 0.34),
}
BLACK, GREY, WHITE = (np.full((112, 112, 3), value, np.uint8) for value in (0, 180, 255))
GOLDEN = Path(__file__).parent / "golden" / "occluders.npz"


def face(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    for index, name in enumerate(["ann/1.png", "ann/2.png", "bob/deep/3.png", "4.png"]):
        path = tmp_path / "people" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(face(index)).save(path)
    return tmp_path / "people"


@pytest.fixture
def mask_pictures(tmp_path: Path) -> Path:
    rgba = np.zeros((200, 300, 4), np.uint8)
    rgba[..., :3] = (0, 255, 0)  # a colour that must not show: it lies under transparent pixels
    rgba[40:180, 50:250] = (200, 30, 30, 255)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(rgba).save(folder / "red.png")
    return folder


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_image_is_face_times_mask_plus_occluder(kind: str, style: Style, seed: int) -> None:
    own = face(seed % 7)
    before = own.copy()
    image, mask = occlude(own, kind, np.random.default_rng(seed), style=style)
    assert image.dtype == np.uint8
    assert image.shape == (112, 112, 3)
    assert mask.dtype == np.float32
    assert mask.shape == (112, 112)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert (own == before).all()
    low, high, *_ = SHARES[kind]
    assert low <= 1 - mask.mean() <= high
    # Visible: the face's own pixels, bit for bit.
    assert (image[mask == 1] == own[mask == 1]).all()
    # Hidden: two opposite faces under one occluder differ by what the mask lets through, to a rounding each.
    dark = occlude(BLACK, kind, np.random.default_rng(seed), style=style)
    light = occlude(WHITE, kind, np.random.default_rng(seed), style=style)
    assert (dark.mask == mask).all()
    through = light.image.astype(int) - dark.image
    assert np.abs(through - 255 * mask[..., None]).max() <= 1
    assert (image[mask == 0] == dark.image[mask == 0]).all()
    blended = own * mask[..., None] + dark.image
    assert np.abs(image - blended).max() <= 1.001


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_occluders_vary_and_have_soft_edges(kind: str, style: Style) -> None:
    masks = np.stack([occlude(BLACK, kind, np.random.default_rng(s), style=style).mask for s in range(40)])
    *_, low, high = SHARES[kind]
    assert low <= 1 - masks.mean() <= high
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    assert (1 - masks.mean(axis=(1, 2))).std() > 0.01
    soft = ((masks > 0) & (masks < 1)).mean(axis=(1, 2))
    assert soft.min() > 0
    steps = masks * 255
    assert np.allclose(steps, np.rint(steps), atol=1e-4)  # 8 bits hold the mask exactly


def test_what_kinds_hide() -> None:
    eyes, mouth = np.s_[49:54, 34:43], np.s_[89:96, 46:66]
    cases = [(kind, mouth, eyes) for kind in ("niqab", "mask", "scarf")] + [("sunglasses", eyes, mouth)]
    for style in STYLES:
        for seed in range(15):
            for kind, hidden, shown in cases:
                mask = occlude(BLACK, kind, np.random.default_rng(seed), style=style).mask
                assert mask[hidden].mean() < 0.25
                assert mask[shown].mean() > 0.75


def test_styles_draw_differently() -> None:
    for kind in KINDS:
        one, two = (occlude(BLACK, kind, np.random.default_rng(3), style=style).image for style in STYLES)
        assert (one != two).any()


def test_a_seed_draws_what_it_always_drew() -> None:
    """One picture a kind and style. To the bit on processors of the last ten years; the sine of others may round another way."""
    with np.load(GOLDEN) as golden:
        for kind in KINDS:
            for style in STYLES:
                image, mask = occlude(GREY, kind, np.random.default_rng(7), style=style)
                ours = np.concatenate([image, np.rint(mask * 255).astype(np.uint8)[..., None]], axis=2)
                difference = np.abs(ours.astype(int) - golden[f"{kind} {style}"])
                assert difference.max() <= 1
                assert (difference > 0).sum() <= 10


def test_materials_are_what_they_always_were() -> None:
    """24 materials, each family among them, as means of 7x7 cells."""
    photograph = np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8)
    niqab = occlude(GREY, "niqab", np.random.default_rng(7))
    varied = [retexture(GREY, niqab, np.random.default_rng(seed), [photograph]) for seed in range(24)]
    assert all((one.mask == niqab.mask).all() for one in varied)
    with np.load(GOLDEN) as golden:
        means = np.stack([one.image for one in varied]).reshape(24, 7, 16, 7, 16, 3).mean((2, 4))
        assert np.abs(means - golden["retexture"][..., :3]).max() <= 0.6


def test_an_occluder_has_one_look_for_each_name(mask_pictures: Path) -> None:
    occluder = Occluder(4, "b", load_mask_pictures(mask_pictures))
    for kind in ("mask", "niqab"):
        image, mask = occluder(GREY, kind, "Ann/1.jpg")
        by_hand = occlude(GREY, kind, occluder_rng(4, kind, "Ann/1.jpg"), occluder.mask_pictures, style="b")
        assert (image == by_hand.image).all()
        assert (mask == by_hand.mask).all()
        assert (image == occluder(GREY, kind, "./Ann//1.jpg").image).all()
        assert (image != occluder(GREY, kind, "Ann/2.jpg").image).any()
        assert (image != Occluder(5, "b", occluder.mask_pictures)(GREY, kind, "Ann/1.jpg").image).any()
    assert occluder_rng(4, "mask", "a").random() != occluder_rng(4, "niqab", "a").random()


def test_a_share_of_occluders_gets_another_material() -> None:
    plain, varied = Occluder(), Occluder(retexture_share=0.5)
    names = [f"{i}.png" for i in range(40)]
    pairs = [(plain(GREY, "mask", name), varied(GREY, "mask", name)) for name in names]
    assert all((one.mask == other.mask).all() for one, other in pairs)
    assert 12 <= sum((one.image != other.image).any() for one, other in pairs) <= 28


def test_same_seed_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from oaml.occluders import KINDS, STYLES, occlude\n"
        "digest, face = hashlib.sha256(), np.full((112, 112, 3), 90, np.uint8)\n"
        "for kind in KINDS:\n"
        "    for style in STYLES:\n"
        "        got = occlude(face, kind, np.random.default_rng(5), style=style)\n"
        "        digest.update(got.image.tobytes() + got.mask.tobytes())\n"
        "print(digest.hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    digest = hashlib.sha256()
    for kind in KINDS:
        for style in STYLES:
            got = occlude(np.full((112, 112, 3), 90, np.uint8), kind, np.random.default_rng(5), style=style)
            digest.update(got.image.tobytes() + got.mask.tobytes())
    assert digest.hexdigest() == other


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((112, 112, 3), np.float32),
        np.zeros((112, 112), np.uint8),
        np.zeros((96, 112, 3), np.uint8),
        None,
    ],
)
def test_wrong_faces_are_refused(image: np.ndarray) -> None:
    with pytest.raises(OamlError, match="uint8"):
        occlude(image, "niqab", np.random.default_rng(0))


def test_unknown_kind_and_style_are_refused_with_the_choice() -> None:
    with pytest.raises(
        OamlError, match=r"no occluder is called 'beard'; .*niqab, mask, sunglasses, scarf, hand, patch"
    ):
        occlude(BLACK, "beard", np.random.default_rng(0))
    with pytest.raises(OamlError, match="a, b"):
        occlude(BLACK, "niqab", np.random.default_rng(0), style="c")  # pyright: ignore[reportArgumentType]


def test_picture_is_fitted_over_the_lower_face(mask_pictures: Path) -> None:
    pictures = load_mask_pictures(mask_pictures)
    assert [picture.shape for picture in pictures] == [(140, 200, 4)]
    seen = set()
    for seed in range(10):
        image, mask = occlude(WHITE, "mask", np.random.default_rng(seed), pictures)
        assert (image[mask == 1] == 255).all()
        assert mask[88:97, 46:66].max() == 0
        assert mask[:45].min() == 1
        red, green = image[90, 56, 0].astype(int), image[90, 56, 1].astype(int)
        assert red > 3 * green
        # No green fringe: the colour under transparent pixels stays out of it.
        hidden = mask < 1
        assert (image[hidden][:, 1] <= np.maximum(image[hidden][:, 0], 255 * mask[hidden] + 40)).all()
        seen.add(mask.tobytes())
    assert len(seen) == 10
    assert occlude(WHITE, "niqab", np.random.default_rng(0), pictures).mask.mean() < 0.6  # masks only


def test_picture_arrays_are_checked() -> None:
    for wrong in (
        np.zeros((20, 20, 3), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.ones((9, 9, 4), np.float32),
    ):
        with pytest.raises(OamlError, match="RGBA"):
            occlude(WHITE, "mask", np.random.default_rng(0), [wrong])


def test_bad_folders_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(OamlError, match="no such folder"):
        load_mask_pictures(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OamlError, match="no images"):
        load_mask_pictures(tmp_path / "empty")
    for name, picture, words in (
        ("opaque.png", Image.new("RGB", (30, 20)), "no transparent pixels"),
        ("solid.png", Image.new("RGBA", (30, 20), (1, 2, 3, 255)), "no transparent pixels"),
        ("clear.png", Image.new("RGBA", (30, 20), (1, 2, 3, 0)), "transparent everywhere"),
    ):
        folder = tmp_path / name.removesuffix(".png")
        folder.mkdir()
        picture.save(folder / name)
        with pytest.raises(OamlError, match=f"{name}: .*{words}"):
            load_mask_pictures(folder)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(OamlError, match=r"torn\.png"):
        load_mask_pictures(tmp_path / "broken")


def test_folder_layout_and_exact_masks(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    occlude_folder(people, kind="scarf", out=out, seed=3)
    for part in ("images", "masks"):
        found = sorted(p.relative_to(out / part).as_posix() for p in (out / part).rglob("*") if p.is_file())
        assert found == ["4.png", "ann/1.png", "ann/2.png", "bob/deep/3.png"]
    shown = []
    for name in ("4.png", "ann/1.png", "ann/2.png", "bob/deep/3.png"):
        own, image, mask = (
            read_image(people / name),
            read_image(out / "images" / name),
            read_mask(out / "masks" / name),
        )
        assert Image.open(out / "masks" / name).mode == "L"
        assert (image[mask == 1] == own[mask == 1]).all()
        assert (image[mask < 0.9] != own[mask < 0.9]).any()
        shown.append(mask.tobytes())
    assert len(set(shown)) == 4


def test_an_occluder_does_not_depend_on_the_other_files(people: Path, tmp_path: Path) -> None:
    occlude_folder(people, kind="hand", out=tmp_path / "all", seed=1)
    (people / "4.png").unlink()
    (people / "ann" / "1.png").unlink()
    Image.fromarray(face(9)).save(people / "aaa.png")
    occlude_folder(people, kind="hand", out=tmp_path / "some", seed=1)
    occlude_folder(people, kind="hand", out=tmp_path / "other", seed=2)
    for part in ("images", "masks"):
        first, again, other = (tmp_path / o / part / "ann/2.png" for o in ("all", "some", "other"))
        assert first.read_bytes() == again.read_bytes()
        assert first.read_bytes() != other.read_bytes()


def test_full_output_folder_is_refused(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    occlude_folder(people, kind="patch", out=out)  # empty is fine
    with pytest.raises(OamlError, match="not an empty folder"):
        occlude_folder(people, kind="patch", out=out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OamlError, match="not an empty folder"):
        occlude_folder(people, kind="patch", out=tmp_path / "file")


def test_corrupt_image_stops_before_anything_is_written(people: Path, tmp_path: Path) -> None:
    (people / "zed.jpg").write_bytes(b"not a picture")
    with pytest.raises(OamlError, match=r"zed\.jpg"):
        occlude_folder(people, kind="mask", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_sizes_need_resize(people: Path, tmp_path: Path) -> None:
    Image.new("RGB", (160, 160), (90, 80, 70)).save(people / "big.png")
    with pytest.raises(OamlError, match=r"big\.png.*--resize"):
        occlude_folder(people, kind="mask", out=tmp_path / "out")
    occlude_folder(people, kind="mask", out=tmp_path / "out", resize=True)
    assert read_image(tmp_path / "out" / "images" / "big.png").shape == (112, 112, 3)


def test_two_images_of_one_name_are_refused(people: Path, tmp_path: Path) -> None:
    Image.fromarray(face(5)).save(people / "ann" / "1.bmp")
    with pytest.raises(OamlError, match="same name"):
        occlude_folder(people, kind="mask", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_options_are_refused(people: Path, mask_pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OamlError, match="sunglasses"):
        occlude_folder(people, kind="hat", out=out)
    with pytest.raises(OamlError, match="no style"):
        occlude_folder(people, kind="mask", out=out, style="z")  # pyright: ignore[reportArgumentType]
    with pytest.raises(OamlError, match="--mask_pictures: only kind mask"):
        occlude_folder(people, kind="niqab", out=out, mask_pictures=mask_pictures)
    assert not out.exists()
    occlude_folder(people, kind="mask", out=out, mask_pictures=mask_pictures)
    assert read_mask(out / "masks" / "4.png")[92, 56] == 0


def test_curve_goes_through_its_points() -> None:
    points = np.array([(0, 0), (4, 1), (5, 5), (-1, 4)], np.float64)
    assert np.allclose(curve(points, steps=5)[::5], points)
    line = curve(points, closed=False, steps=5)
    assert len(line) == 16
    assert np.allclose(line[::5], points)
