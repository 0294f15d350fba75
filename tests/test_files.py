"""Reading images and masks, and writing so that nothing is half written."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oaml.errors import OamlError
from oaml.support.files import read_image, read_mask, read_photograph, write_file, write_folder
from oaml.support.folders import list_images

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (112, 112, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (112, 112), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def one_line(caught: pytest.ExceptionInfo[OamlError], *parts: str | Path) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def full_disk(path: Path) -> None:
    path.write_text("the first half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# --- images


def test_colour_image(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "a.png", COLOUR))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable  # a tensor may share its memory
    assert np.array_equal(image, COLOUR)  # RGB order


def test_grey_image_is_repeated(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "a.png", GREY))
    assert image.shape == (112, 112, 3)
    assert all(np.array_equal(image[..., c], GREY) for c in range(3))


def test_grey_image_of_16_bits_becomes_8(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257  # 0..255 stretched over 0..65535
    for suffix in ("png", "tif"):
        image = read_image(saved(tmp_path / f"a.{suffix}", deep))
        assert image.dtype == np.uint8
        assert np.array_equal(image[..., 1], GREY)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr"])
def test_other_kinds_of_image_become_rgb(tmp_path: Path, mode: str) -> None:
    """Smooth images survive a palette or another colour space nearly unchanged."""
    black_and_white = np.zeros((112, 112, 3), np.uint8)
    black_and_white[20:70, 30:] = 255
    suffix = "png" if mode in ("1", "P") else "tif"
    image = read_image(saved(tmp_path / f"a.{suffix}", black_and_white, mode))
    assert image.shape == (112, 112, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - black_and_white).max() <= 2


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path) -> None:
    opaque = np.dstack([COLOUR, np.full((112, 112), 255, np.uint8)])
    assert np.array_equal(read_image(saved(tmp_path / "a.png", opaque)), COLOUR)
    grey_opaque = np.dstack([GREY, np.full((112, 112), 255, np.uint8)])
    assert np.array_equal(read_image(saved(tmp_path / "b.png", grey_opaque))[..., 2], GREY)
    opaque[5, 5, 3] = 254
    path = saved(tmp_path / "c.png", opaque)
    with pytest.raises(OamlError) as caught:
        read_image(path)
    one_line(caught, path, "transparent")
    with pytest.raises(OamlError):
        read_image(path, resize=True)


def test_another_size_only_when_asked(tmp_path: Path) -> None:
    large = np.repeat(np.repeat(COLOUR, 2, axis=0), 2, axis=1)
    path = saved(tmp_path / "a.png", large[:, :220])
    with pytest.raises(OamlError) as caught:
        read_image(path)
    one_line(caught, path, "220x224", "112x112", "--resize")
    assert read_image(path, resize=True).shape == (112, 112, 3)
    assert np.array_equal(
        read_image(saved(tmp_path / "b.png", large), resize=True), COLOUR
    )  # the area's mean
    assert read_image(saved(tmp_path / "c.png", GREY[:50, :50]), resize=True).shape == (112, 112, 3)


@pytest.mark.parametrize("kind", ["text", "empty", "truncated.jpg", "truncated.png", "folder"])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_unreadable_files(tmp_path: Path, kind: str, read: object) -> None:
    path = tmp_path / (kind if "." in kind else "a.png")
    if kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        whole = saved(tmp_path / f"whole{path.suffix}", COLOUR).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OamlError) as caught:
        read(path)  # type: ignore[operator]
    one_line(caught, path, "not a readable image")


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_missing_file(tmp_path: Path, read: object) -> None:
    with pytest.raises(OamlError) as caught:
        read(tmp_path / "gone.png")  # type: ignore[operator]
    one_line(caught, tmp_path / "gone.png", "no such image")


# --- masks


def test_masks_of_8_and_16_bits(tmp_path: Path) -> None:
    mask = read_mask(saved(tmp_path / "a.png", GREY))
    assert mask.dtype == np.float32
    np.testing.assert_allclose(mask, GREY / 255, rtol=1e-6)
    deep = RNG.integers(0, 65536, (56, 40), dtype=np.uint16)
    deep[0, :2] = 0, 65535
    mask = read_mask(saved(tmp_path / "b.png", deep))
    np.testing.assert_allclose(mask, deep / 65535, rtol=1e-6)
    assert (mask.min(), mask.max()) == (0, 1)


def test_binary_masks(tmp_path: Path) -> None:
    shows = GREY > 100
    for number, pixels in enumerate((shows, shows.astype(np.uint8) * 255, shows.astype(np.uint16) * 65535)):
        mask = read_mask(saved(tmp_path / f"{number}.png", pixels))
        assert np.array_equal(mask, shows.astype(np.float32))


def test_grey_masks_saved_as_colour(tmp_path: Path) -> None:
    rgb = np.dstack([GREY] * 3)
    for number, pixels in enumerate((rgb, np.dstack([rgb, np.full_like(GREY, 255)]))):
        np.testing.assert_allclose(
            read_mask(saved(tmp_path / f"{number}.png", pixels)), GREY / 255, rtol=1e-6
        )


def test_a_colour_image_is_no_mask(tmp_path: Path) -> None:
    pixels = np.dstack([GREY] * 3)
    pixels[3, 4, 2] ^= 1
    path = saved(tmp_path / "a.png", pixels)
    with pytest.raises(OamlError) as caught:
        read_mask(path)
    one_line(caught, path, "colour")


# --- folders of images


def test_images_below_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/deep/c.webp", "notes.txt", "sub/d.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == [tmp_path / "a.JPG", tmp_path / "b.png", tmp_path / "sub/deep/c.webp"]


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for folder, words in (
        (tmp_path, "no images"),
        (tmp_path / "gone", "no such folder"),
        (tmp_path / "notes.txt", "no such folder"),
    ):
        with pytest.raises(OamlError) as caught:
            list_images(folder)
        one_line(caught, folder, words)


# --- writing a file


def test_write_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    assert write_file(path, lambda p: p.write_text("one")) == path
    write_file(str(path), lambda p: p.write_text("two"))
    assert path.read_text() == "two"
    assert below(tmp_path) == ["new", "new/deep", "new/deep/a.txt"]


def test_writers_see_the_suffix(tmp_path: Path) -> None:
    write_file(tmp_path / "a.png", Image.fromarray(COLOUR).save)  # Pillow chooses the format by it
    assert np.array_equal(read_image(tmp_path / "a.png"), COLOUR)


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(OamlError) as caught:
        write_file(path, full_disk)
    one_line(caught, path, "No space left")
    assert below(tmp_path) == []
    path.write_text("old")
    with pytest.raises(OamlError):
        write_file(path, full_disk)
    assert path.read_text() == "old"
    assert below(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_writing_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted(path: Path) -> None:
        if path.is_dir():
            path = path / "part"
        path.write_text("the first half")
        raise error

    with pytest.raises(error):
        write_file(tmp_path / "a.txt", interrupted)
    with pytest.raises(error):
        write_folder(tmp_path / "folder", interrupted)
    assert below(tmp_path) == []


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for write, target in (
        (write_file, tmp_path / "file" / "a.txt"),
        (write_folder, tmp_path / "file" / "model"),
    ):
        with pytest.raises(OamlError) as caught:
            write(target, full_disk)
        one_line(caught, target, "could not be written")
    assert below(tmp_path) == ["file"]


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OamlError) as caught:
        write_file(tmp_path / "a.txt", lambda p: p.write_text("x"))
    one_line(caught, tmp_path / "a.txt")
    assert below(tmp_path) == ["a.txt"]


def test_what_is_private_is_so_from_its_first_byte(tmp_path: Path) -> None:
    modes: list[int] = []

    def write(temporary: Path) -> None:
        temporary.write_text("a face")
        modes.append(temporary.stat().st_mode & 0o777)

    path = write_file(tmp_path / "a", write, private=True)
    assert [*modes, path.stat().st_mode & 0o777] == [0o600, 0o600]
    assert write_file(tmp_path / "b", write).stat().st_mode & 0o077


# --- the order in which things get to the disk


def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is synced and renamed from now on, in this order."""
    done: list[tuple[str, Path]] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def fsync(descriptor: int) -> None:
        real["fsync"](descriptor)
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def renamed(name: str) -> Callable[[Path, Path], None]:
        def rename(source: Path, target: Path) -> None:
            real[name](source, target)
            done.append(("rename", Path(target)))

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, renamed(name))
    return done


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are asked of /proc")
def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = order(monkeypatch)
    path = write_file(tmp_path / "new" / "a.txt", lambda p: p.write_text("x"))
    made, content, name, folder = done
    assert made == ("sync", tmp_path)  # knows "new"
    assert content == ("sync", path.with_name(f".a.{os.getpid()}.tmp.txt"))
    assert (name, folder) == (("rename", path), ("sync", path.parent))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are asked of /proc")
def test_the_older_folder_goes_when_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    write_folder(folder, model_folder("old"))  # type: ignore[arg-type]
    done = order(monkeypatch)
    remove = shutil.rmtree

    def rmtree(path: Path, **named: Any) -> None:
        if path.exists():
            done.append(("remove", path))
        remove(path, **named)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    write_folder(folder, model_folder("new"))  # type: ignore[arg-type]
    renamed = done.index(("rename", folder))
    removed = next(i for i, (what, _) in enumerate(done) if what == "remove")
    new = done[renamed - 2][1]  # all of it before the renames
    synced = {path.name for what, path in done[: renamed - 1] if what == "sync"}
    assert {"config.json", "only_new", new.name} <= synced
    assert ("sync", tmp_path) in done[renamed:removed]
    assert done[-1] == ("sync", tmp_path)


# --- writing a folder


def model_folder(text: str, fails: bool = False) -> object:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text(text)
        (folder / f"only_{text}").touch()
        if fails:
            full_disk(folder / "weights")

    return write


def test_write_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    assert write_folder(folder, model_folder("one")) == folder  # type: ignore[arg-type]
    write_folder(str(folder), model_folder("two"))  # type: ignore[arg-type]
    assert below(tmp_path) == ["new", "new/model", "new/model/config.json", "new/model/only_two"]
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", model_folder("one"))  # type: ignore[arg-type]
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755  # others may read it


def test_full_disk_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(OamlError) as caught:
        write_folder(folder, model_folder("one", fails=True))  # type: ignore[arg-type]
    one_line(caught, folder, "No space left")
    assert below(tmp_path) == []
    write_folder(folder, model_folder("old"))  # type: ignore[arg-type]
    with pytest.raises(OamlError):
        write_folder(folder, model_folder("new", fails=True))  # type: ignore[arg-type]
    assert below(tmp_path) == ["model", "model/config.json", "model/only_old"]
    assert (folder / "config.json").read_text() == "old"


def test_failing_at_the_very_last_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    write_folder(folder, model_folder("old"))  # type: ignore[arg-type]
    plain = os.rename

    def rename(source: Path, target: Path) -> None:
        if target == folder and (source / "only_new").exists():
            raise OSError(errno.EIO, "the disk is gone")
        plain(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OamlError):
        write_folder(folder, model_folder("new"))  # type: ignore[arg-type]
    assert below(tmp_path) == ["model", "model/config.json", "model/only_old"]


def test_foreign_folders_are_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "a.jpg").touch()
    (tmp_path / "file").touch()
    for target in (folder, tmp_path / "file"):
        with pytest.raises(OamlError) as caught:
            write_folder(target, model_folder("one"))  # type: ignore[arg-type]
        one_line(caught, target, "no model folder")
    assert below(tmp_path) == ["file", "photographs", "photographs/a.jpg"]


def test_numbers_from_0_to_1_are_a_mask_and_no_image(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 112 * 112, dtype=np.float32).reshape(112, 112)
    Image.fromarray(values).save(tmp_path / "mask.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), values)
    with pytest.raises(OamlError, match=r"mask.tif: holds floating-point numbers.*8 or 16 bits"):
        read_image(tmp_path / "mask.tif")
    for wrong in (1.5, -0.1, np.nan):
        values[3, 4] = wrong
        Image.fromarray(values).save(tmp_path / "wrong.tif")
        with pytest.raises(OamlError, match=r"wrong.tif: holds numbers outside 0 to 1"):
            read_mask(tmp_path / "wrong.tif")


def test_a_large_image_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("was decoded"))
    for side in (10_100, 15_000):  # the latter Pillow itself refuses
        path = tmp_path / f"{side}.png"
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
            + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        )  # fmt: skip
        with pytest.raises(OamlError, match=r"png: has more than 100 megapixels; make it smaller"):
            read_photograph(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_image_is_named_whatever_its_decoder_raises(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((112, 112, 3), np.uint8)).save(tmp_path / "a.tif")
    whole = (tmp_path / "a.tif").read_bytes()
    rng = np.random.default_rng(0)
    named: list[bool] = []
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 4):
            content[place if rng.random() < 0.3 else place % 200] = rng.integers(256)
        content += bytes(rng.integers(0, 256, 3))
        (tmp_path / "b.tif").write_bytes(content)
        try:
            read_photograph(tmp_path / "b.tif")
        except OamlError as error:
            named.append("b.tif: " in str(error))
    assert len(named) > 30
    assert all(named)
