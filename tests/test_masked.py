"""Occluded faces with masks: layouts, names, depths and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oaml.datasets.masked import MaskedFolder, fit_mask
from oaml.errors import OamlError

RNG = np.random.default_rng(0)


def saved(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def face(path: Path, level: int = 100, size: int = 112) -> Path:
    return saved(path, np.full((size, size, 3), level, np.uint8))


def half(size: int = 112, dtype: type[np.generic] = np.uint8) -> np.ndarray:
    """Upper half visible."""
    mask = np.zeros((size, size), dtype)
    mask[: size // 2] = 1 if dtype is np.bool_ else np.iinfo(dtype).max  # type: ignore[type-var]
    return mask


def error_of(root: Path) -> str:
    with pytest.raises(OamlError) as caught:
        MaskedFolder(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("layout", ["images", "kept_faces"])
def test_both_layouts(tmp_path: Path, layout: str) -> None:
    ending = "_mask" if layout == "kept_faces" else ""
    for number, name in enumerate(("b", "a", "sub/a")):
        face(tmp_path / layout / f"{name}.jpg", 50 * number)
        saved(tmp_path / "masks" / f"{name}{ending}.png", np.full((112, 112), 100 * number, np.uint8))
    folder = MaskedFolder(tmp_path)
    assert len(folder) == 3
    assert folder.files == [str(tmp_path / layout / f"{name}.jpg") for name in ("a", "b", "sub/a")]
    for index, number in enumerate((1, 0, 2)):  # every image with its own mask
        image, mask = folder.pair(index)
        assert abs(int(image[0, 0, 0]) - 50 * number) <= 2
        assert (mask == np.float32(100 * number / 255)).all()


def test_mixed_suffixes_and_endings(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.webp", "d_mask.png"):
        face(tmp_path / "kept_faces" / name)
    for name in ("a_mask.png", "b_mask.tif", "c.bmp", "d_mask_mask.png"):  # one without the ending
        saved(tmp_path / "masks" / name, half())
    assert [path.name for path in MaskedFolder(tmp_path).mask_paths] == [
        "a_mask.png",
        "b_mask.tif",
        "c.bmp",
        "d_mask_mask.png",
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.bool_])
@pytest.mark.parametrize("size", [112, 56, 224, 7])
def test_binary_masks_of_any_depth_and_size(tmp_path: Path, dtype: type[np.generic], size: int) -> None:
    face(tmp_path / "images" / "a.png")
    saved(tmp_path / "masks" / "a.png", half(size, dtype))
    image, mask = MaskedFolder(tmp_path).pair(0)
    assert (image.shape, image.dtype) == ((112, 112, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((112, 112), np.float32)
    edge = 112 * (size // 2) // size
    assert (mask[:edge] == 1).all()
    assert (mask[edge:] == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_continuous_masks(tmp_path: Path, dtype: type[np.unsignedinteger]) -> None:
    face(tmp_path / "images" / "a.png")
    top = np.iinfo(dtype).max
    pixels = RNG.integers(0, top, (112, 112), dtype=dtype, endpoint=True)  # type: ignore[arg-type]
    saved(tmp_path / "masks" / "a.png", pixels)
    np.testing.assert_allclose(MaskedFolder(tmp_path).pair(0)[1], pixels / top, rtol=1e-6)


def test_fitting_keeps_what_shows() -> None:
    mask = RNG.random((224, 224), dtype=np.float32)
    np.testing.assert_allclose(
        fit_mask(mask, 112), mask.reshape(112, 2, 112, 2).mean((1, 3)), rtol=1e-5, atol=1e-6
    )
    # halving is the same by area and bilinear, further down it is not
    large = RNG.random((448, 448), dtype=np.float32)
    for size in (336, 448):
        times = size // 112
        expected = large[:size, :size].reshape(112, times, 112, times).mean((1, 3))
        np.testing.assert_allclose(fit_mask(large[:size, :size], 112), expected, rtol=1e-5, atol=1e-6)
    small = mask[:56, :56]
    assert np.array_equal(fit_mask(small, 112), np.kron(small, np.ones((2, 2), np.float32)))
    for size in (100, 150):
        fitted = fit_mask(mask[:size, :size], 112)
        assert fitted.shape == (112, 112)
        assert 0 <= fitted.min() <= fitted.max() <= 1
        assert fitted.mean() == pytest.approx(float(mask[:size, :size].mean()), abs=0.01)


def test_mask_of_another_crop(tmp_path: Path) -> None:
    image = face(tmp_path / "images" / "a.png")
    mask = saved(tmp_path / "masks" / "a.png", np.zeros((100, 120), np.uint8))
    with pytest.raises(OamlError) as caught:
        MaskedFolder(tmp_path).pair(0)
    assert all(part in str(caught.value) for part in (str(mask), str(image), "120x100"))


def test_colour_mask_and_broken_image(tmp_path: Path) -> None:
    image = tmp_path / "images" / "a.png"
    face(image)
    mask = saved(tmp_path / "masks" / "a.png", RNG.integers(0, 255, (112, 112, 3), dtype=np.uint8))
    with pytest.raises(OamlError, match="colour") as caught:
        MaskedFolder(tmp_path).pair(0)
    assert str(mask) in str(caught.value)
    image.write_text("no image")
    with pytest.raises(OamlError, match="readable") as caught:
        MaskedFolder(tmp_path).pair(0)
    assert str(image) in str(caught.value)


def test_image_of_another_size(tmp_path: Path) -> None:
    face(tmp_path / "images" / "a.png", size=224)
    saved(tmp_path / "masks" / "a.png", half(224))
    with pytest.raises(OamlError, match="224x224"):
        MaskedFolder(tmp_path).pair(0)
    image, mask = MaskedFolder(tmp_path, resize=True).pair(0)
    assert image.shape[:2] == mask.shape == (112, 112)
    assert np.array_equal(mask, half().astype(np.float32) / 255)


@pytest.mark.parametrize(("layout", "ending"), [("images", ""), ("kept_faces", "_mask")])
def test_lonely_images_and_masks_are_named(tmp_path: Path, layout: str, ending: str) -> None:
    for name in ("a", "b", "c"):
        face(tmp_path / layout / f"{name}.png")
    saved(tmp_path / "masks" / f"a{ending}.png", half())
    message = error_of(tmp_path)
    assert str(tmp_path / layout / "b.png") in message
    assert "image without a mask" in message
    assert "1 more" in message
    for name in ("b", "c", "d"):
        saved(tmp_path / "masks" / f"{name}{ending}.png", half())
    message = error_of(tmp_path)
    assert str(tmp_path / "masks" / f"d{ending}.png") in message
    assert "mask without an image" in message
    assert "more" not in message


def test_lonely_images_and_masks_can_be_left_out(tmp_path: Path) -> None:
    for name, level in (("a", 10), ("b", 20), ("c", 30), ("sub/d", 40)):
        face(tmp_path / "kept_faces" / f"{name}.png", level)
    for name in ("b", "sub/d"):
        saved(tmp_path / "masks" / f"{name}_mask.png", half())
    folder = MaskedFolder(tmp_path, unlabelled="skip")
    assert folder.left_out == f"{tmp_path}: 2 images without a mask left out"
    assert [int(folder.pair(i)[0][0, 0, 0]) for i in range(len(folder))] == [20, 40]
    assert [path.name for path in folder.mask_paths] == ["b_mask.png", "d_mask.png"]
    assert len(folder.files) == 2
    saved(tmp_path / "masks" / "e_mask.png", half())
    assert MaskedFolder(tmp_path, unlabelled="skip").left_out == (
        f"{tmp_path}: 2 images without a mask and 1 mask without an image left out"
    )
    for name in ("a", "c"):
        saved(tmp_path / "masks" / f"{name}_mask.png", half())
    (tmp_path / "masks" / "e_mask.png").unlink()
    for unlabelled in ("skip", "fail"):
        folder = MaskedFolder(tmp_path, unlabelled=unlabelled)
        assert len(folder) == 4
        assert folder.left_out == ""


@pytest.mark.parametrize("layout", ["images", "kept_faces"])
def test_a_folder_without_any_pair_is_refused_either_way(tmp_path: Path, layout: str) -> None:
    face(tmp_path / layout / "a.png")
    saved(tmp_path / "masks" / "b.png", half())
    for unlabelled in ("skip", "fail"):
        with pytest.raises(OamlError, match=str(tmp_path)):
            MaskedFolder(tmp_path, unlabelled=unlabelled)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    face(tmp_path / "images" / "a.png")
    face(tmp_path / "images" / "a.jpg")
    saved(tmp_path / "masks" / "a.png", half())
    message = error_of(tmp_path)
    assert "a.png" in message
    assert "a.jpg" in message


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    assert str(tmp_path / "gone") in error_of(tmp_path / "gone")
    (tmp_path / "images").mkdir()
    assert "masks: no such folder" in error_of(tmp_path)
    (tmp_path / "masks").mkdir()
    assert f"{tmp_path / 'images'}: no images" in error_of(tmp_path)
    face(tmp_path / "images" / "a.png")
    assert f"{tmp_path / 'masks'}: no images" in error_of(tmp_path)
