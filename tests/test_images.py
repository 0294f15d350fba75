"""The one reader of images: which side is up, depth, colours, size and format, whatever the file is called."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, features

from conftest import says, small_model
from oaml.datasets.drawn import draw_face
from oaml.datasets.masked import MaskedFolder
from oaml.datasets.people import PeopleFolder
from oaml.errors import OamlError
from oaml.evaluation.conditions import MeasuredFaces
from oaml.main import main
from oaml.occluders import load_mask_pictures
from oaml.recognition.recognise import Recogniser
from oaml.support.files import READABLE, read_image, read_mask, read_photograph
from oaml.support.folders import list_images
from oaml.support.images import read_cutout
from oaml.support.pixels import ENOUGH_PIXELS, MOST_PIXELS
from oaml.templates.file import load

pytestmark = pytest.mark.usefixtures("one_thread")
ORIENTATIONS = range(1, 9)
RNG = np.random.default_rng(3)
SCENE = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
RAMP = np.linspace(0, 255, 24 * 16).astype(np.uint8).reshape(16, 24)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """By the words of the standard (Exif 2.3, tag 274): at which side of the scene the first row and the first column are."""
    rows, columns = [
        ("top", "left"), ("top", "right"), ("bottom", "right"), ("bottom", "left"),
        ("left", "top"), ("right", "top"), ("right", "bottom"), ("left", "bottom"),
    ][orientation - 1]  # fmt: skip
    height, width = stored.shape[:2]
    scene = np.zeros((height, width) if rows in ("top", "bottom") else (width, height), stored.dtype)
    scene = np.zeros((*scene.shape, *stored.shape[2:]), stored.dtype)
    for row in range(height):
        for column in range(width):
            place = {"top": 0, "left": 0, "bottom": scene.shape[0] - 1, "right": scene.shape[1] - 1}
            y, x = -1, -1
            for side, step in ((rows, row), (columns, column)):
                if side in ("top", "bottom"):
                    y = abs(place[side] - step)
                else:
                    x = abs(place[side] - step)
            scene[y, x] = stored[row, column]
    return scene


def lying(scene: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores of a scene; `upright` of it gives the scene."""
    numbers = np.arange(scene.shape[0] * scene.shape[1])
    shape = scene.shape[:2] if orientation < 5 else scene.shape[1::-1]
    moved = upright(numbers.reshape(shape), orientation)
    stored = np.empty_like(scene.reshape(len(numbers), -1))
    stored[moved.ravel()] = scene.reshape(len(numbers), -1)
    return stored.reshape(*shape, *scene.shape[2:])


def save(path: Path, pixels: np.ndarray, orientation: int = 1, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, **options)  # type: ignore[arg-type]
    return path


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(path: Path, values: np.ndarray, *chunks: bytes) -> Path:
    """A PNG of 16 bits, grey, with alpha or colour, with chunks before its pixels."""
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values[0, 0].size]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + rest)
    return path


def tiff(path: Path, values: np.ndarray, **tags: int | float) -> Path:
    """An uncompressed TIFF of integers or floats of any depth; tags by number, as `t341=4095`."""
    height, width = values.shape[:2]
    channels = values[0, 0].size
    bits = tags.pop("bits", values.itemsize * 8)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    if bits == 12:  # two numbers in three bytes, as baseline TIFF packs them
        a, b = values.ravel()[::2].astype(int), values.ravel()[1::2].astype(int)
        content = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    entries = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 2 if channels == 3 else 1,
        273: 0,
        277: channels,
    }
    entries |= {278: height, 279: len(content), 339: kind, **{int(name[1:]): v for name, v in tags.items()}}
    place = 8 + 2 + 12 * len(entries) + 4
    more, table = b"", b""
    for tag, value in sorted(entries.items()):
        if isinstance(value, float):
            one, code = struct.pack("<f", value), 11
        else:
            one, code = (
                struct.pack("<I" if tag in (256, 257, 273, 278, 279) or value > 65535 else "<H", value),
                0,
            )
            code = 4 if len(one) == 4 else 3
        if channels == 3 and tag in (258, 339, 340, 341):
            table += struct.pack("<HHII", tag, code, 3, place + len(more))
            more += one * 3
        else:
            table += struct.pack("<HHI", tag, code, 1) + one.ljust(4, b"\0")
    table = table.replace(
        struct.pack("<HHII", 273, 4, 1, 0), struct.pack("<HHII", 273, 4, 1, place + len(more))
    )
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + more + content)
    return path


# --- which side is up


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg", ".avif"])
def test_photographs_are_turned(tmp_path: Path, suffix: str, orientation: int) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    scene = np.kron(SCENE, np.ones((16, 16, 1), np.uint8))
    options = {
        ".webp": {"lossless": True},
        ".jpg": {"quality": 100, "subsampling": 0},
        ".avif": {"quality": 95},
    }
    path = save(tmp_path / f"a{suffix}", lying(scene, orientation), orientation, **options.get(suffix, {}))
    read = read_photograph(path)
    assert read.shape == scene.shape
    assert np.abs(read.astype(int) - scene).mean() < (6 if suffix in (".jpg", ".avif") else 1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_cutouts_and_deep_pictures_are_turned(tmp_path: Path, orientation: int) -> None:
    mask = np.arange(54, dtype=np.uint8).reshape(6, 9) * 4
    np.testing.assert_allclose(
        read_mask(save(tmp_path / "m.png", lying(mask, orientation), orientation)), mask / 255
    )
    cutout = np.dstack([SCENE, mask])
    read = read_cutout(save(tmp_path / "c.png", lying(cutout, orientation), orientation))
    np.testing.assert_array_equal(read, cutout)
    deep = SCENE.astype(np.uint16) * 257
    for pixels, expected in ((deep, SCENE), (deep[..., 0], SCENE[..., :1].repeat(3, 2))):
        stored = lying(pixels, orientation)
        np.testing.assert_array_equal(
            read_photograph(tiff(tmp_path / "d.tif", stored, t274=orientation)), expected
        )
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = png(tmp_path / "d.png", stored, chunk(b"eXIf", exif.tobytes()[6:]))
        np.testing.assert_array_equal(read_photograph(path), expected)


def test_a_damaged_or_wrong_orientation_turns_nothing(tmp_path: Path) -> None:
    for orientation in (0, 9, 65535):
        np.testing.assert_array_equal(read_photograph(save(tmp_path / "a.png", SCENE, orientation)), SCENE)
    for content in (b"", b"no EXIF", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12"):
        Image.fromarray(SCENE).save(tmp_path / "b.png", exif=content)
        np.testing.assert_array_equal(read_photograph(tmp_path / "b.png"), SCENE)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face eight times, `turned/P/1.png` to `8.png`, which look the same in any viewer; and a model, `m`."""
    root = tmp_path_factory.mktemp("turned")
    for orientation in ORIENTATIONS:
        face = draw_face(1, 0)
        save(root / "turned" / "P" / f"{orientation}.png", lying(face, orientation), orientation)
        save(root / "masked" / "images" / f"{orientation}.png", lying(face, orientation), orientation)
        save(root / "masked" / "masks" / f"{orientation}.png", lying(face[..., 0], orientation), orientation)
    small_model(thresholds={"0.001": 7.0}).save(root / "m")
    pairs = [f"P/1.png,P/{orientation}.png,1" for orientation in ORIENTATIONS]
    (root / "pairs.csv").write_text("\n".join(["path_a,path_b,same", *pairs]))
    return root


def test_every_way_into_the_commands_turns_images(turned: Path, tmp_path: Path) -> None:
    face, folder, model = draw_face(1, 0), turned / "turned", str(turned / "m")
    files = list_images(folder)
    assert len(files) == 8
    for path in files:
        for resize in (False, True):
            np.testing.assert_array_equal(read_image(path, resize=resize), face)
    people = PeopleFolder(folder)  # adapt and train
    masked = MaskedFolder(turned / "masked")  # --masks
    measured = MeasuredFaces(
        small_model(), folder, False, 4, lambda *_: pytest.fail("drew an occluder")
    )  # evaluate
    for number in range(8):
        np.testing.assert_array_equal(people.image(number), face)
        image, mask = masked.pair(number)
        np.testing.assert_array_equal(image, face)
        np.testing.assert_allclose(mask, face[..., 0] / 255, rtol=1e-6)
        np.testing.assert_array_equal(measured.read(f"P/{number + 1}.png", "unoccluded")[0], face)
    templates = Recogniser(small_model()).represent(files)  # verify, enroll, search
    assert (templates.embedding == templates.embedding[0]).all()

    assert main(["embed", model, "--images", str(folder), "--out", str(tmp_path / "e.safetensors")]) == 0
    embedded = load(tmp_path / "e.safetensors").templates
    assert (embedded.embedding == embedded.embedding[0]).all()
    scores = tmp_path / "s.csv"
    pairs = str(turned / "pairs.csv")
    assert main(["score", model, "--images", str(folder), "--pairs", pairs, "--out", str(scores)]) == 0
    lines = [line.partition(".png,1,")[2].partition(",")[2] for line in scores.read_text().splitlines()[1:]]
    assert len(lines) == 8
    assert len(set(lines)) == 1
    assert main(["occlude", str(folder), "--kind", "patch", "--out", str(tmp_path / "o")]) == 0
    written = [tmp_path / "o" / kind / "P" / f"{o}.png" for kind in ("images", "masks") for o in ORIENTATIONS]
    shown = [
        (read_image(image), read_mask(mask)) for image, mask in zip(written[:8], written[8:], strict=True)
    ]
    assert all((image[mask == 1] == face[mask == 1]).all() for image, mask in shown)
    assert main(["align", str(folder), "--out", str(tmp_path / "a")]) == 0
    for orientation in ORIENTATIONS:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a/P" / f"{orientation}.png")), face)


def test_pictures_of_masks_are_turned_and_named(tmp_path: Path) -> None:
    cutout = np.dstack([np.kron(SCENE, np.ones((4, 4, 1), np.uint8)), np.full((24, 36), 255, np.uint8)])
    cutout[:8, :, 3] = 0
    for orientation in ORIENTATIONS:
        save(tmp_path / "p" / f"{orientation}.png", lying(cutout, orientation), orientation)
    for picture in load_mask_pictures(tmp_path / "p"):
        np.testing.assert_array_equal(picture, cutout[8:])
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "a.png").write_bytes(b"<html>no</html>")
    says(lambda: load_mask_pictures(tmp_path / "q"), tmp_path / "q" / "a.png", "it is a web page")
    save(tmp_path / "q" / "a.png", SCENE)
    says(lambda: load_mask_pictures(tmp_path / "q"), "no transparent pixels")


# --- depth


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15, 16])
def test_the_range_that_a_file_states_is_used(tmp_path: Path, bits: int, colour: bool) -> None:
    white = 2**bits - 1
    values = np.rint(RAMP / 255 * white).astype(np.uint16)
    if colour:
        values = np.dstack([values, values // 2, values])
    expected = RAMP.astype(int)[..., None] // ((1, 2, 1) if colour else (1, 1, 1))
    files = [
        tiff(tmp_path / "s.tif", values, t341=white),
        tiff(tmp_path / "m.tif", values, t281=white),
        png(tmp_path / "a.png", values, chunk(b"sBIT", bytes([bits] * (3 if colour else 1)))),
    ]
    letter = "P6" if colour else "P5"
    (tmp_path / "a.ppm").write_bytes(f"{letter} 24 16 {white}\n".encode() + values.astype(">u2").tobytes())
    for path in (*files, tmp_path / "a.ppm"):
        assert np.abs(read_photograph(path) - expected).max() <= 1, path
        if not colour:
            np.testing.assert_allclose(read_mask(path), values / white, atol=1e-4)


def test_packed_bits_inverted_grey_and_signs(tmp_path: Path) -> None:
    values = np.rint(RAMP / 255 * 4095).astype(np.uint16)
    assert (
        np.abs(read_photograph(tiff(tmp_path / "p.tif", values, bits=12))[..., 0].astype(int) - RAMP).max()
        <= 1
    )
    inverted = tiff(tmp_path / "i.tif", 65535 - RAMP.astype(np.uint16) * 257, t262=0)
    np.testing.assert_array_equal(read_photograph(inverted)[..., 1], RAMP)
    signed = (RAMP.astype(np.int32) - 100).astype(np.int16)
    says(lambda: read_photograph(tiff(tmp_path / "n.tif", signed)), tmp_path / "n.tif", "not known")


@pytest.mark.parametrize("kind", [np.uint32, np.int32, np.float32])
def test_long_numbers_have_a_range_or_are_refused(tmp_path: Path, kind: type[np.generic]) -> None:
    values = (RAMP * 3.0).astype(kind)
    top = float(values.max()) if kind is np.float32 else int(values.max())
    says(
        lambda: read_photograph(tiff(tmp_path / "a.tif", values)),
        tmp_path / "a.tif",
        "black and white are not known",
    )
    read = read_photograph(tiff(tmp_path / "b.tif", values, t341=top))
    np.testing.assert_array_equal(read[..., 2], RAMP)
    says(
        lambda: read_photograph(tiff(tmp_path / "c.tif", values, t341=type(top)(9))),
        "0 to 765",
        "states 0 to 9",
    )
    assert read_mask(tmp_path / "b.tif").max() == 1


@pytest.mark.parametrize("most", [1, 255, 1023, 4095, 16383])
@pytest.mark.parametrize("shape", [(), (3,), (2,), (4,)])
def test_bits_of_unknown_range_are_refused(tmp_path: Path, most: int, shape: tuple[int, ...]) -> None:
    values = np.zeros((20, 30, *shape), np.uint16)
    values[3, 4] = most
    files = [png(tmp_path / "a.png", values)]
    if shape in ((), (3,)):
        files.append(tiff(tmp_path / "a.tif", values))
    for path in files:
        message = says(
            lambda path=path: read_photograph(path), path, f"brightest value is {most}", "with 8 bits"
        )
        assert f"value * 255 / {max(most, 255)}" in message
    if not shape:
        says(lambda: read_mask(files[0]), files[0], "doesn't say what white is")


@pytest.mark.parametrize("shape", [(), (3,)])
def test_sixteen_bits_that_are_used_are_divided_by_257(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = RNG.integers(0, 30_000, (20, 30, *shape)).astype(np.uint16)
    values[0, 0] = 30_000
    expected = np.rint(values / 257) if shape else np.rint(values / 257)[..., None]
    for path in (png(tmp_path / "a.png", values), tiff(tmp_path / "a.tif", values)):
        assert np.abs(read_photograph(path) - expected).max() <= (1 if shape else 0)
    black = png(tmp_path / "b.png", values * 0)  # black, whatever its range
    assert not read_photograph(black).any()


def test_jpeg_2000_of_twelve_bits(tmp_path: Path) -> None:
    """Its depth is in its header: a lossless file of 16 bits becomes one of 12 with the middle of the range moved."""
    values = np.rint(RAMP / 255 * 4095).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values + 32768 - 2048).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    content = bytearray(buffer.getvalue())
    place = content.find(b"\xff\x51") + 4 + 36  # SIZ: Ssiz of the first component
    assert content[place] == 15
    content[place] = 11
    (tmp_path / "a.j2k").write_bytes(content)
    assert np.abs(read_photograph(tmp_path / "a.j2k")[..., 0].astype(int) - RAMP).max() <= 1


def test_masks_of_zeros_and_ones_in_8_bits_are_no_masks(tmp_path: Path) -> None:
    Image.fromarray((RAMP > 99).astype(np.uint8)).save(tmp_path / "a.png")
    says(lambda: read_mask(tmp_path / "a.png"), tmp_path / "a.png", "0 and 1", "255")
    Image.fromarray(RAMP > 300).save(tmp_path / "b.png")
    assert not read_mask(tmp_path / "b.png").any()


# --- colours


@pytest.mark.parametrize(
    "kind",
    [
        "1.png",
        "L.jpg",
        "LA.png",
        "P.gif",
        "P.png",
        "RGBA.webp",
        "RGBA.png",
        "CMYK.jpg",
        "CMYK.tif",
        "YCbCr.tif",
        "LAB.tif",
        "RGBX.tif",
        "RGB.jp2",
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, kind: str) -> None:
    mode, _, suffix = kind.partition(".")
    scene = np.zeros((32, 48, 3), np.uint8)
    scene[8:24, 10:] = 255 if mode in ("1", "L", "LA") else (200, 40, 30)
    picture = Image.fromarray(scene)
    if mode == "LAB":
        picture = ImageCms.profileToProfile(
            picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        picture = picture.convert("L").convert(mode) if mode == "LA" else picture.convert(mode)
    assert picture is not None
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    picture.save(tmp_path / f"a.{suffix}", **options)
    for source in (tmp_path / f"a.{suffix}", picture):  # from a file, and Pillow's own
        assert np.abs(read_photograph(source).astype(int) - scene).mean() < (8 if mode == "P" else 4)


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "PA", "La", "RGBa"])
def test_transparency_is_refused_and_an_opaque_alpha_dropped(tmp_path: Path, mode: str) -> None:
    cutout = np.dstack([SCENE[..., :1].repeat(3, 2), np.full((6, 9), 255, np.uint8)])
    opaque = Image.fromarray(cutout)
    if mode == "P":
        opaque = opaque.convert("RGB").quantize(54)
        opaque.save(tmp_path / "a.png")
        opaque.save(tmp_path / "b.png", transparency=0)
        assert read_photograph(tmp_path / "a.png").shape == (6, 9, 3)
        says(lambda: read_photograph(tmp_path / "b.png"), tmp_path / "b.png", "transparent")
        return
    picture = opaque.convert("L").convert(mode.upper() if mode in ("LA", "La") else "RGBA")
    for alpha, clear in ((255, False), (254, True)):
        picture.putalpha(alpha)
        given = picture if mode in ("LA", "RGBA") else picture.convert(mode)
        if clear:
            says(partial(read_photograph, given), "transparent")
        else:
            assert read_photograph(given).shape == (6, 9, 3)


def profile(path: Path, red: float, gamma: float) -> bytes:
    """A matrix profile that lcms writes: sRGB's with another tone curve and red, enough to be told from it."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(content[128:132], "big")
    for tag in range(count):
        name, place, _ = struct.unpack(">4sII", content[132 + 12 * tag : 144 + 12 * tag])
        if name == b"rXYZ":
            struct.pack_into(">i", content, place + 8, int(red * 65536))
        if name in (b"desc", b"cprt"):
            content[place + 12 : place + 16] = content[place + 12 : place + 16]
    text = "sRGB".encode("utf-16-be")
    while text in content:
        content[content.find(text) : content.find(text) + 8] = "Odd ".encode("utf-16-be")
    return bytes(content)


def test_profiles_are_converted_to_srgb(tmp_path: Path) -> None:
    flat = np.full((20, 30, 3), (200, 90, 60), np.uint8)
    odd = profile(tmp_path, 0.6, 1.0)
    own = ImageCms.ImageCmsProfile(io.BytesIO(odd))
    wanted = ImageCms.profileToProfile(
        Image.fromarray(flat), own, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert np.abs(np.asarray(wanted).astype(int) - flat).max() > 10
    for suffix, tolerance in ((".png", 0), (".tif", 0), (".jpg", 4)):
        Image.fromarray(flat).save(tmp_path / f"a{suffix}", icc_profile=odd)
        read = read_photograph(tmp_path / f"a{suffix}")
        assert np.abs(read.astype(int) - np.asarray(wanted)).max() <= tolerance
    deep = chunk(b"iCCP", b"odd\0\0" + zlib.compress(odd))
    read = read_photograph(png(tmp_path / "d.png", flat.astype(np.uint16) * 257, deep))
    np.testing.assert_array_equal(read, np.asarray(wanted))
    rgba = Image.fromarray(np.dstack([flat, np.full((20, 30), 255, np.uint8)]))
    rgba.save(tmp_path / "r.png", icc_profile=odd)
    np.testing.assert_array_equal(read_photograph(tmp_path / "r.png"), np.asarray(wanted))


@pytest.mark.parametrize("kind", ["sRGB", "of another mode", "damaged"])
def test_other_profiles_change_nothing(tmp_path: Path, kind: str) -> None:
    odd = profile(tmp_path, 0.6, 1.0)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    given = {
        "sRGB": srgb,
        "damaged": odd[:200] + bytes(50),
        "of another mode": odd[:16] + b"GRAY" + odd[20:],
    }[kind]
    Image.fromarray(SCENE).save(tmp_path / "a.png", icc_profile=given)
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png"), SCENE)
    Image.fromarray(SCENE[..., 0]).save(tmp_path / "m.png", icc_profile=given)
    np.testing.assert_allclose(read_mask(tmp_path / "m.png"), SCENE[..., 0] / 255, rtol=1e-6)


def test_raw_files_of_cameras_and_odd_tiffs(tmp_path: Path) -> None:
    grey = np.full((20, 30), 99, np.uint8)
    for tags in ({"t254": 1}, {"t50706": 1}):
        says(
            lambda tags=tags: read_photograph(tiff(tmp_path / "a.dng", grey, **tags)),
            "raw file",
            "develop it",
        )
    colours = np.dstack([grey] * 3).astype(np.float32)
    says(
        lambda: read_photograph(tiff(tmp_path / "a.tif", colours)),
        "a TIFF of a form that is not read",
        "8 bits",
    )


# --- formats


@pytest.mark.parametrize("suffix", READABLE)
def test_every_suffix_is_listed_and_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    face = draw_face(1, 0)
    form = {".mpo": "MPO", ".hif": "HEIF", ".apng": "PNG", ".jfif": "JPEG", ".jpe": "JPEG", ".pfm": None}.get(
        suffix, ""
    )
    picture = Image.fromarray(face)
    if suffix in (".heic", ".heif", ".hif"):
        pytest.importorskip("pillow_heif").register_heif_opener()
        form = "HEIF"
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    if suffix in (".j2c", ".jpc"):
        picture.save(path, "JPEG2000", no_jp2=True)
    elif suffix == ".pgm":
        picture.convert("L").save(path)
    elif suffix == ".pbm":
        picture.convert("1").save(path)
    elif suffix == ".pfm":
        picture.convert("F").save(path)
        says(lambda: read_image(path), path, "floating-point")
        return
    elif suffix == ".ico":
        picture.save(path, sizes=[(112, 112)])
    elif form:
        picture.save(path, form)
    else:
        picture.save(path)
    assert list_images(tmp_path) == [path]
    read = read_photograph(path)
    assert read.shape == face.shape
    if suffix == ".pbm":
        assert set(np.unique(read)) == {0, 255}
        return
    wanted = face if suffix != ".pgm" else np.asarray(picture.convert("L"))[..., None]
    assert np.abs(read.astype(int) - wanted).mean() < 12


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM", "TGA"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a", "a.txt"])
def test_a_suffix_may_lie(tmp_path: Path, name: str, form: str) -> None:
    Image.fromarray(draw_face(1, 0)).save(tmp_path / name, form)
    assert np.abs(read_image(tmp_path / name).astype(int) - draw_face(1, 0)).mean() < 12


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_several_pictures_the_first_counts(tmp_path: Path, suffix: str) -> None:
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    first, *others = [Image.new("RGB", (40, 30), colour) for colour in colours]
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others)
    assert np.abs(read_photograph(tmp_path / f"a{suffix}").astype(int) - colours[0]).max() < 12


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        ("Grüße, das ist ein Text".encode(), "it is text"),
        (("ü" * 4000).encode(), "it is text"),
        (b"%PDF-1.7\n\x80\x81", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"8BPS\0\x01" + bytes(60), "Photoshop"),
        (b"PK\x03\x04" + bytes(60), "ZIP"),
        (bytes(5000), "zeros"),
        (b"\0\0\0\x20ftypisom" + bytes(60), "it is a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(60), "it is a video"),
        (b"RIFF\0\0\0\0AVI LIST", "it is a video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "it is sound"),
        (b"\x93NUMPY\x01\0" + bytes(60), "numpy.load"),
        (b"\0\0\0\x20ftypcrx " + bytes(range(200, 256)), "damaged"),
        (bytes(range(128, 256)) * 9, "damaged"),
    ],
)
def test_what_is_no_picture_is_said(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_image, read_photograph, read_mask, read_cutout):
        says(partial(read, path), path, "is not a readable image", reason)
    says(lambda: read_photograph(content), "the image: ", reason)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "PPM"])
def test_a_truncated_picture_is_named(tmp_path: Path, form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    noise = RNG.integers(0, 256, (80, 90, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form)
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
        if form == "JPEG2000" and share > 0.4:  # made to be cut off, between its layers
            with suppress(OamlError):
                assert read_photograph(tmp_path / "a.jpg").shape == noise.shape
        else:
            says(lambda: read_photograph(tmp_path / "a.jpg"), tmp_path / "a.jpg", "is not a readable image")


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    says(lambda: read_photograph(tmp_path), tmp_path, "it is a folder")
    os.mkfifo(tmp_path / "pipe.jpg")
    says(lambda: read_photograph(tmp_path / "pipe.jpg"), "pipe.jpg", "a pipe")  # and is not waited for
    says(lambda: read_photograph("/dev/zero"), "/dev/zero", "a device")
    says(lambda: read_photograph(tmp_path / "none.jpg"), "no such image")
    says(lambda: read_photograph("a\0b.jpg"), r"a\x00b.jpg")


def test_heic_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pillow_heif"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {name: how for name, how in Image.OPEN.items() if name != "HEIF"})
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    message = says(lambda: read_photograph(tmp_path / "a.heic"), tmp_path / "a.heic", "HEIC")
    assert "pip install 'oaml[heif]'" in message


def test_heic_is_turned_and_read(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    scene = np.kron(SCENE, np.ones((16, 16, 1), np.uint8))
    for orientation in ORIENTATIONS:
        path, exif = tmp_path / "a.heic", Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(lying(scene, orientation)).save(path, exif=exif.tobytes(), quality=95)
        read = read_photograph(path)
        assert read.shape == scene.shape
        assert np.abs(read.astype(int) - scene).mean() < 12


# --- size


def large_jpeg(path: Path, width: int, strips: int) -> Path:
    """A JPEG of many equal strips of 8 pixels, a face's colours in each, written without holding it."""
    strip = np.tile(np.arange(width) // 64 % 200, (8, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([strip, strip // 2, 255 - strip])).save(
        buffer, "JPEG", subsampling=0, restart_marker_rows=1
    )
    content = buffer.getvalue()
    frame, scan = content.find(b"\xff\xc0"), content.find(b"\xff\xda")
    begin = scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big")
    head = bytearray(content[:begin])
    struct.pack_into(">H", head, frame + 5, 8 * strips)
    rows = (content[begin:-2] + bytes([0xFF, 0xD0 + row % 8]) for row in range(strips - 1))
    path.write_bytes(bytes(head) + b"".join(rows) + content[begin:-2] + b"\xff\xd9")
    return path


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is asked of /proc")
def test_a_large_jpeg_is_read_smaller_in_bounded_time_and_memory(tmp_path: Path) -> None:
    path = large_jpeg(tmp_path / "large.jpg", 16_320, 1_530)
    code = (
        "import sys, time, numpy as np\n"
        "from oaml.support.files import read_photograph\n"
        "import cv2, PIL.Image\n"
        "most = lambda: int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
        "before, start = most(), time.process_time()\n"
        "image = read_photograph(sys.argv[1])\n"
        "print(*image.shape, *image[100, 1000], time.process_time() - start, (most() - before) / 1e3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    height, width, _, red, green, blue, seconds, megabytes = map(float, done.stdout.split())
    assert (height, width) == (12_240 / 4, 16_320 / 4)
    place = 4_000 // 64 % 200
    assert np.abs(np.array([red, green, blue]) - (place, place // 2, 255 - place)).max() < 8
    assert seconds < 20
    assert 30 < megabytes < 200  # of 600 for all pixels
    assert not done.stderr


@pytest.mark.parametrize(("megapixels", "parts"), [(10, 1), (47, 1), (49, 2)])
def test_large_pictures_keep_enough_pixels(tmp_path: Path, megapixels: int, parts: int) -> None:
    height, width = 5_000, megapixels * 200
    Image.new("L", (width, height), 77).save(tmp_path / "a.png", compress_level=1)
    read = read_photograph(tmp_path / "a.png")
    assert read.shape == (height // parts, width // parts, 3)
    assert parts == 1 or read.shape[0] * read.shape[1] >= ENOUGH_PIXELS
    assert (read == 77).all()


def header_of(path: Path, width: int, height: int) -> Path:
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )
    return path


def test_what_is_too_large_is_to_be_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("was decoded"))
    for width, height in ((10_001, 10_001), (20_000, 10_000), (60_000, 60_000)):
        message = says(
            lambda w=width, h=height: read_photograph(header_of(tmp_path / "a.png", w, h)), "make it smaller"
        )
        assert f"{width}x{height} pixels" in message
        assert f"{MOST_PIXELS / 1e6:.0f} megapixels" in message
        picture = Image.new("L", (1, 1))
        monkeypatch.setattr(picture, "_size", (width, height))
        says(lambda picture=picture: read_photograph(picture), "make it smaller")


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (1, 40_000), (40_000, 2)])
def test_narrow_pictures(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png"), pixels)
    assert read_image(tmp_path / "a.png", resize=True).shape == (112, 112, 3)


# --- in use


def test_many_threads_read_the_same(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    png(tmp_path / "b.png", SCENE.astype(np.uint16) * 257)
    wrong: list[int] = []

    def read() -> None:
        for _ in range(20):
            for name in ("a.png", "b.png"):
                if not np.array_equal(read_photograph(tmp_path / name), SCENE):
                    wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_module_of_the_source_decodes_images() -> None:
    """Another reader would turn, scale and colour in another way."""
    source = Path(__file__).parents[1] / "src"
    decoders = re.compile(r"Image\.open\(|\bimread\(|\bimdecode\(|Pillow\.open\(")
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if decoders.search(path.read_text(encoding="utf-8"))
    }
    assert found == {
        "oaml/support/images.py",  # for the size that a file states
        "oaml/support/pixels.py",
        "oaml/adaptation/extremes.py",
        "oaml/datasets/drawn.py",
    }  # the last two what they have just encoded


def test_opencv_and_the_reader_agree(tmp_path: Path) -> None:
    """Bytes of another encoder."""
    for suffix in (".png", ".bmp", ".tif", ".ppm", ".webp"):
        options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
        assert cv2.imwrite(str(tmp_path / f"a{suffix}"), SCENE[..., ::-1], options)
        np.testing.assert_array_equal(read_photograph(tmp_path / f"a{suffix}"), SCENE)
