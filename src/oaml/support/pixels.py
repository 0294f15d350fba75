"""The pixels of a picture as 8 bits of grey or sRGB: its size, depth, colours and the side that is up."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from oaml.errors import OamlError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MOST_PIXELS = 100_000_000
"""Of a picture that has to be decoded whole: three or four bytes for each."""
MOST_SCALED_PIXELS = 1_000_000_000
"""Of a JPEG, which is decoded row by row at a half, a quarter or an eighth of its size. A progressive one is held as a whole."""
ENOUGH_PIXELS = 12_000_000
"""A picture is halved as long as this many are left. A face that is lost by it has less than twice, four or eight times as many
pixels between its eyes as one that can be compared in a smaller picture."""
FULL_RANGE = 1 << 14
"""A brightest value of 16 bits below this says nothing about what white is: 10, 12 or 14 bits, or a dark picture."""


@dataclass(frozen=True)
class Stated:
    """What a file says of itself before its pixels are read."""

    orientation: int
    """As EXIF numbers it, 1 to 8; 1 is upright."""
    black_white: tuple[float, float] | None
    """The values of black and white, where the file tells; None where it doesn't, or they are those of 8 bits."""
    inverted: bool
    """A deep grey picture whose smallest value is white."""
    deep_colour: bool
    """Colours of 16 bits, of which Pillow keeps the upper 8."""
    bits: int | None
    """Significant bits of PNG, which says white only where the values were not stretched over 16 bits."""


def decode(picture: PILImage, file: BinaryIO | None = None, numbers: bool = False) -> np.ndarray:
    """uint8 [H,W] or [H,W,3|4] in RGB order, upright; float32 [H,W] of 0 to 1 where `numbers` are deeper than 8 bits.

    Args:
        picture: of Pillow, its pixels not read yet or read.
        file: where it is from; None for a picture that somebody else has opened, which is left as it is.
        numbers: a mask: no colours that a profile could change, and values that stay as exact as they are.

    Raises:
        OamlError: too large, or of a depth whose black and white are not known; without the name of the file.
    """
    halved = _halvings(picture.width * picture.height)
    need_size(picture, by_rows=file is not None)
    if file is not None and picture.format in ("JPEG", "MPO") and halved > 1:
        whole = picture.width
        picture.draft(None, (max(picture.width // halved, 1), max(picture.height // halved, 1)))
        halved //= max(1, round(whole / picture.width))
    stated = _stated(picture, file)
    profile = None if numbers else picture.info.get("icc_profile")
    if stated.deep_colour and file is not None:
        pixels = _shrunk(_deep_colours(file, stated), halved)
        if profile:
            from PIL import Image

            pixels = np.array(_in_srgb(Image.fromarray(pixels), profile))
        return np.ascontiguousarray(_upright(pixels, stated.orientation))
    picture.load()
    if picture.mode.startswith("I") or picture.mode == "F":
        pixels = _shrunk(_deep_greys(np.asarray(picture), picture, stated, numbers), halved)
        if not numbers:
            pixels = np.rint(pixels * 255).astype(np.uint8)
    else:
        pixels = np.array(_plain(picture, profile, halved))
    # asked again: Pillow turns a TIFF by itself
    return np.ascontiguousarray(_upright(pixels, _orientation(picture)))


# --- size


def _halvings(pixels: int) -> int:
    """1, 2, 4 or 8: a side divided by this leaves enough pixels."""
    return max(f for f in (1, 2, 4, 8) if f == 1 or pixels / f**2 >= ENOUGH_PIXELS)


def need_size(picture: PILImage, by_rows: bool = False) -> None:
    """Raise OamlError, without the name of the file, for a picture that is too large; `by_rows` if a JPEG can be decoded so."""
    by_rows = by_rows and picture.format in ("JPEG", "MPO") and not picture.info.get("progressive")
    most = MOST_SCALED_PIXELS if by_rows else MOST_PIXELS
    if picture.width * picture.height > most:
        raise OamlError(
            f"has more than {most // 1_000_000:,} megapixels; make it smaller "
            f"(it is {picture.width}x{picture.height} pixels)"
        )


def _shrunk(pixels: np.ndarray, halved: int) -> np.ndarray:
    if halved == 1:
        return pixels
    import cv2

    height, width = pixels.shape[:2]
    return cv2.resize(
        pixels, (max(width // halved, 1), max(height // halved, 1)), interpolation=cv2.INTER_AREA
    )


# --- depth


def _stated(picture: PILImage, file: BinaryIO | None) -> Stated:
    black_white, bits, inverted, deep_colour = None, None, False, False
    tags = getattr(picture, "tag_v2", None) if picture.format == "TIFF" else None
    if tags is not None:
        if _numbers(tags.get(254)) == [1.0] or 50706 in tags:  # NewSubfileType: a small copy; DNGVersion
            raise OamlError(
                "begins with a thumbnail, as a camera's raw file does; develop it and save it as JPEG"
            )
        each = _numbers(tags.get(258))  # BitsPerSample
        deep_colour = max(each, default=1) == 16 and picture.mode in ("RGB", "RGBA", "LA")
        inverted = tags.get(262) == 0  # PhotometricInterpretation: white is zero
        white = _numbers(tags.get(341)) or _numbers(tags.get(281))  # SMaxSampleValue, MaxSampleValue
        black = _numbers(tags.get(340)) or [0.0]  # SMinSampleValue
        if white and max(white) > min(black):
            black_white = min(black), max(white)
        elif each and 8 < each[0] < 16:
            black_white = 0.0, 2.0 ** each[0] - 1
        if deep_colour and file is not None:
            return Stated(1, black_white, inverted, True, None)  # OpenCV turns a TIFF by itself
    elif picture.format == "PNG" and file is not None:
        depth, bits = _png_bits(file)
        deep_colour = depth == 16 and picture.mode != "I" and not picture.mode.startswith("I;")
    elif picture.format == "JPEG2000" or (picture.format == "PPM" and picture.mode != "F"):
        black_white = 0.0, 65535.0  # Pillow stretches what the header states over 16 bits
    return Stated(_orientation(picture), black_white, inverted, deep_colour, bits)


def _numbers(value: object) -> list[float]:
    values = value if isinstance(value, tuple | list) else [value]
    return [float(v) for v in values if isinstance(v, int | float)]


def _png_bits(file: BinaryIO) -> tuple[int, int | None]:
    """Bits of a sample, and how many of them the chunk sBIT calls significant."""
    position = file.tell()
    try:
        file.seek(24)
        depth = file.read(1)[0]
        file.seek(33)  # after the signature and IHDR
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT":
                return depth, max(file.read(min(length, 4)), default=depth)
            file.seek(length + 4, 1)
        return depth, None
    finally:
        file.seek(position)


def _black_white(values: np.ndarray, stated: Stated) -> tuple[float, float]:
    """Of integers up to 16 bits. Raises OamlError where they can't be known."""
    brightest = int(values.max())
    if stated.black_white is not None:
        return stated.black_white
    if stated.bits is not None and brightest < 2**stated.bits:
        return 0.0, 2.0**stated.bits - 1
    if 0 < brightest < FULL_RANGE and stated.bits is None:
        bits = max(brightest.bit_length(), 8)
        raise OamlError(
            f"has 16 bits of which the brightest value is {brightest}, and doesn't say what white is; save it with 8 bits: "
            f"value * 255 / {2**bits - 1} if it holds {bits} bits, value / 257 if it is as dark as that"
        )
    return 0.0, 65535.0


def _deep_greys(values: np.ndarray, picture: PILImage, stated: Stated, numbers: bool) -> np.ndarray:
    """float32 [H,W] of 0 to 1, white is 1."""
    if picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM"):
        black, white = _black_white(values, stated) if picture.mode != "F" else (0.0, 0.0)
    else:
        black, white = stated.black_white or (0.0, 0.0)
    if white <= black:
        if picture.mode != "F":
            raise OamlError(
                "holds integers of more than 16 bits or with a sign, whose black and white are not known; save it with 8 bits"
            )
        if not numbers:
            raise OamlError(
                "holds floating-point numbers, whose black and white are not known; save it with 8 or 16 bits"
            )
        if not ((values >= 0) & (values <= 1)).all():
            raise OamlError(
                "holds numbers outside 0 to 1; save it with 1 where the face shows and 0 elsewhere"
            )
        return np.array(values, np.float32)
    if not (values.min() >= black and values.max() <= white):  # neither is a NaN
        raise OamlError(
            f"holds values from {values.min():g} to {values.max():g} and states {black:g} to {white:g}; save it with 8 bits"
        )
    grey = (values.astype(np.float32) - np.float32(black)) / np.float32(white - black)
    return 1 - grey if stated.inverted else grey


def _deep_colours(file: BinaryIO, stated: Stated) -> np.ndarray:
    """uint8 [H,W,3|4] in RGB order, from colours of 16 bits, as they lie in the file."""
    import cv2

    file.seek(0)
    content = np.frombuffer(file.read(), np.uint8)
    values = cv2.imdecode(content, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise OamlError("has colours of 16 bits in a form that is not read; save it with 8 bits")
    black, white = _black_white(values[..., :3], stated)
    scaled = np.empty(values.shape, np.uint8)
    for channel in range(values.shape[2]):
        low, high = (black, white) if channel < 3 else (0.0, 65535.0)
        scaled[..., channel if channel == 3 else 2 - channel] = cv2.convertScaleAbs(
            np.maximum(values[..., channel], np.uint16(low)),
            alpha=255 / (high - low),
            beta=-255 * low / (high - low),
        )
    return scaled


# --- colours


def _plain(picture: PILImage, profile: bytes | None, halved: int) -> PILImage:
    """Of mode L, RGB or RGBA, smaller by `halved`."""
    mode = picture.mode
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted.reduce(halved)
    if mode == "1":
        picture = picture.convert("L")
    elif mode in ("RGBa", "La"):
        picture = picture.convert(mode.upper()).convert("RGBA")
    elif mode in ("LA", "PA", "P"):
        clear = (
            mode != "P" or "transparency" in picture.info or getattr(picture.palette, "mode", "") == "RGBA"
        )
        picture = picture.convert("RGBA" if clear else "RGB")
    elif mode not in ("L", "RGB", "RGBA", "CMYK"):
        picture = picture.convert("RGB")
    if halved > 1:
        picture = picture.reduce(halved)
    if profile:
        picture = _in_srgb(picture, profile)
    return picture.convert("RGB") if picture.mode == "CMYK" else picture


def _in_srgb(picture: PILImage, profile: bytes) -> PILImage:
    """The colours that a profile means, as far as it is one of this picture's kind; a damaged one counts as none."""
    from PIL import ImageCms

    try:
        own: Any = ImageCms.ImageCmsProfile(BytesIO(profile))
        kind = own.profile.xcolor_space.strip()
        if {"L": "GRAY", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK"}[picture.mode] != kind:
            return picture
        if kind == "RGB" and "srgb" in ImageCms.getProfileDescription(own).lower():
            return picture
        colours = picture.convert("RGB") if picture.mode == "RGBA" else picture
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colours, own, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ImportError):
        return picture
    if converted is not None and picture.mode == "RGBA":
        converted.putalpha(picture.getchannel("A"))
    return picture if converted is None else converted


# --- which side is up


def _orientation(picture: PILImage) -> int:
    """As EXIF states it; damaged EXIF states none."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError):
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turned and mirrored as EXIF's eight orientations say (Exif 2.3, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
