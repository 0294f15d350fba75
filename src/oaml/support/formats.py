"""Which files are pictures: found out by what they hold, whatever they are called, and what a file is instead that is none."""

from __future__ import annotations

import struct
from contextlib import suppress
from os import SEEK_END
from typing import TYPE_CHECKING, BinaryIO

from oaml.errors import OamlError, missing_package

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    "WEBP",
    "TIFF",
    "JPEG2000",
    "AVIF",
    "HEIF",
    "DIB",
    "QOI",
    "ICO",
    "PCX",
    "TGA",
)
"""What is read, by Pillow's names, those with the weakest signatures last. Pillow knows more: documents and drawings (EPS runs
Ghostscript), scientific data, and textures. None of these is what a camera or a website gives."""

READABLE = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".heic", ".heif", ".hif"),
    *(".tif", ".tiff", ".bmp", ".dib", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".ico", ".pcx", ".tga"),
)  # fmt: skip
"""Suffixes, in small letters, of the files that are looked for in folders of images."""

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob", ".ogv"),
)  # fmt: skip
"""Suffixes, in small letters, of the files that are taken for videos."""

HEAD = 4096
"""Bytes at the beginning of a file that say what it is."""

_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1")
_COPY = "copy or download it again"
_CONVERT = "save it as JPEG or PNG"
_MAGIC = (
    (b"version https://git-lfs", "it is a pointer of Git LFS in the place of the image", "fetch the image with git lfs pull"),
    (b"%PDF", "it is a PDF document", _CONVERT),
    (b"%!PS", "it is a PostScript document", _CONVERT),
    (b"\xc5\xd0\xd3\xc6", "it is a PostScript document", _CONVERT),
    (b"8BPS", "it is a Photoshop document", _CONVERT),
    (b"\xff\x0a", "it is JPEG XL, which is not read", _CONVERT),
    (b"\0\0\0\x0cJXL ", "it is JPEG XL, which is not read", _CONVERT),
    (b"FUJIFILMCCD-RAW", "it is a camera's raw file", "develop it and save it as JPEG"),
    (b"IIU\0", "it is a camera's raw file", "develop it and save it as JPEG"),
    (b"IIRO", "it is a camera's raw file", "develop it and save it as JPEG"),
    (b"II*\0", "it is a TIFF of a form that is not read, or damaged", "save it as RGB or grey with 8 bits"),
    (b"MM\0*", "it is a TIFF of a form that is not read, or damaged", "save it as RGB or grey with 8 bits"),
    (b"PK\x03\x04", "it is a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "it is a gzip archive", "unpack it"),
    (b"\x93NUMPY", "it is an array of NumPy", "load it with numpy.load and give the array"),
)  # fmt: skip
"""Beginning of a file, what it is, and what to do about it."""


def identify(file: BinaryIO) -> ImageFile:
    """A picture whose pixels are not yet read.

    Pillow's own `open` judges a picture by its size before it is known at which size it will be decoded, so its plugins are asked
    here one after the other, as it does.

    Args:
        file: can be sought in, and stays open until the pixels are read.

    Raises:
        OamlError: no picture, without the file's name.
        OSError, ValueError, ...: whatever a plugin raises over a damaged one.
    """
    from PIL import Image

    file.seek(0)
    head = file.read(HEAD)
    if _is_heif(head):
        _need_heif()
    Image.preinit()  # the usual formats; `init` takes as long again
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        if name not in Image.OPEN:
            continue
        plugin, accepts = Image.OPEN[name]
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # these mean: not mine
            # a plugin whose decoder is missing answers with a sentence
            if accepts is None or accepts(head[:16]) is True:
                file.seek(0)
                return plugin(file, "")
    file.seek(0, SEEK_END)
    reason, remedy = what_it_is(head, file.tell())
    raise OamlError(f"is not a readable image ({reason}); {remedy}")


def what_it_is(head: bytes, size: int) -> tuple[str, str]:
    """What a file is that is no picture, and what to do about it.

    Args:
        head: its first bytes.
        size: of the file, in bytes.
    """
    if not size:
        return "it is empty", _COPY
    for magic, reason, remedy in _MAGIC:
        if head.startswith(magic):
            return reason, remedy
    if head[8:12] == b"WAVE" or head.startswith((b"ID3", b"fLaC")):
        return "it is sound", "give a picture or a video"
    if head[4:12] == b"ftypavif":
        return "this Pillow reads no AVIF", "pip install --upgrade Pillow, or save it as JPEG or PNG"
    if is_video(head):
        return "it is a video", "give a picture; `oaml search` takes videos too"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "it is a web page", "download the image itself"
    if start.startswith((b"<svg", b"<!doctype svg")) or (start.startswith(b"<?xml") and b"<svg" in start):
        return "it is a drawing, SVG", _CONVERT
    if not head.strip(b"\0"):
        return "it begins with nothing but zeros", _COPY
    if _is_text(head):
        return "it is text", "give an image, by its path or as the bytes of its file"
    return "it is of no format that is read, or damaged", "replace or remove it"


def is_video(head: bytes) -> bool:
    """Whether a file is a video by its first bytes; those of MP4, QuickTime, Matroska, AVI, ASF, FLV, MPEG and Ogg are known."""
    boxes = (b"ftyp", b"moov", b"mdat", b"wide", b"skip", b"free")
    still = (*_HEIF, b"avif", b"avis", b"crx ")
    return (
        (head[4:8] in boxes and not (head[4:8] == b"ftyp" and head[8:12] in still))
        or head.startswith((b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"FLV\x01", b"OggS"))
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
        or head.startswith((b"\0\0\x01\xba", b"\0\0\x01\xb3"))
        or (len(head) > 376 and head[0] == head[188] == head[376] == 0x47)  # packets of a transport stream
        or (len(head) > 388 and head[4] == head[196] == head[388] == 0x47)  # with a time before each
    )


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF and b"avif" not in head[8:32]


def _need_heif() -> None:
    from PIL import Image

    if "HEIF" in Image.OPEN:
        return
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found]
    except ImportError:
        raise OamlError(f"is a HEIC image, and reading one {missing_package('pillow_heif')}") from None
    register_heif_opener()


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # a letter may be cut in two where the head ends
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter.isspace() for letter in text)
