"""Images as people give them, read by one reader for all commands and the Python API, with errors that name what was given."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from io import BytesIO, TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np

from oaml.errors import OamlError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Image: TypeAlias = Union[
    str, os.PathLike[str], bytes, bytearray, memoryview, BinaryIO, BytesIO, np.ndarray, "PILImage"
]
"""An image: its path, the bytes of its file, the file opened in binary mode, uint8 [H,W,3] in RGB order, or one of Pillow's."""

Content: TypeAlias = Union[str, os.PathLike[str], bytes, np.ndarray, "PILImage"]
"""An image that can be read again and again."""

FACE_SIZE = 112
WAYS = "give a path, the bytes of a file, a file opened with 'rb', a uint8 array [height, width, 3] in RGB order or Pillow's image"
_ADDRESS = re.compile(
    r"(https?|ftps?|sftp|rts?ps?|rtmps?|srt|udp|tcp|mms|file|s3|gs|az):/{1,2}([^/@]*@)?", re.IGNORECASE
)
"""The beginning of an address, with whatever password it holds; `Path` makes two strokes one."""
_LONGEST_NAME = 300


def read_image(path: str | Path, *, resize: bool = False, data: bytes | None = None) -> np.ndarray:
    """Read one aligned face as RGB uint8 [112,112,3], as `read_photograph` reads.

    Args:
        resize: resample an image of another size (area) instead of refusing it.
        data: the bytes of the image's file, where it lies within another one; the path only names it then.

    Raises:
        OamlError: missing, unreadable, transparent or not 112x112.
    """
    image = read_photograph(Path(path)) if data is None else _colours(_decode(data, path), path)
    if image.shape[:2] != (FACE_SIZE, FACE_SIZE):
        if not resize:
            raise OamlError(
                f"{path}: is {image.shape[1]}x{image.shape[0]}, an aligned face is {FACE_SIZE}x{FACE_SIZE}; "
                "align it, or pass --resize to scale it"
            )
        import cv2

        image = cv2.resize(image, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def read_photograph(image: Image) -> np.ndarray:
    """Read a photograph of any size, turned upright as its EXIF entry says, as RGB uint8 [H,W,3].

    Of 48 megapixels or more it is read at a half, a quarter or an eighth of its size (`oaml.support.pixels`). Grey is repeated over
    three channels, colours are those of sRGB, and of an animation the first picture counts. An alpha channel is dropped only where
    it is fully opaque: a transparent pixel has no colour, so guessing one would invent a face. An array is taken as it is: uint8
    [H,W,3] in RGB order (what OpenCV reads is BGR: `image[..., ::-1]`).

    Raises:
        OamlError: missing, unreadable, transparent, too large, of unknown black and white, or no image at all.
    """
    content = content_of(image)
    if isinstance(content, np.ndarray):
        return np.ascontiguousarray(content)
    return _colours(_decode(content, image), image)


def _colours(pixels: np.ndarray, image: Image) -> np.ndarray:
    """What `_decode` gives, as RGB uint8 [H,W,3]."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] == 4:
        if pixels[..., 3].min() < 255:
            raise OamlError(f"{name_of(image)}: has transparent pixels; save it without an alpha channel")
        pixels = pixels[..., :3]
    return np.ascontiguousarray(pixels)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a visibility mask, 8 or 16 bit or numbers from 0 to 1, as float32 [H,W] in [0,1] (1 = visible), upright as its image.

    Raises:
        OamlError: missing, unreadable, colour channels that differ (not a mask), or numbers whose white is not known.
    """
    mask = _decode(path, path, numbers=True)
    if mask.ndim == 3:
        colour = mask[..., :3]
        if (colour != colour[..., :1]).any():
            raise OamlError(f"{path}: is a colour image, a mask is grey (white where the face shows)")
        mask = np.ascontiguousarray(colour[..., 0])
    if mask.dtype == np.float32:
        return mask
    if mask.max() == 1:
        raise OamlError(
            f"{path}: holds 0 and 1 in 8 bits, nearly black; save it with 255 where the face shows"
        )
    return mask.astype(np.float32) / 255


def read_cutout(path: str | Path) -> np.ndarray:
    """Read a picture that may be transparent, upright, as RGBA uint8 [H,W,4].

    Raises:
        OamlError: missing or unreadable.
    """
    pixels = _decode(path, path)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    return pixels if pixels.shape[2] == 4 else np.concatenate([pixels, opaque], axis=2)


# --- what was given


def content_of(image: Any) -> Content:
    """An image as something that can be read twice: open files and other buffers become bytes.

    Raises:
        OamlError: it is no image, or an array or picture of another kind.
    """
    if isinstance(image, str | os.PathLike):
        if not isinstance(os.fspath(image), str):
            raise OamlError(f"{name_of(image)}: is a path of bytes; use os.fsdecode")
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    name = name_of(image)
    if isinstance(image, np.ndarray):
        _check_array(name, image)
        return image
    if callable(getattr(image, "read", None)):
        return _content(name, image)
    if callable(getattr(image, "getbands", None)):
        _pillow(name, image)
        return image
    raise OamlError(f"{name}: is {_kind(image)}; {_remedy(image)}")


def several(images: Any) -> list[Any]:
    """What is given as one image or as any iterable of images, as a list. What is no image is left for `content_of` to refuse."""
    single = (str, bytes, bytearray, memoryview, np.ndarray, Mapping)
    if isinstance(images, single) or hasattr(images, "read") or hasattr(images, "detach"):
        return [images]
    return list(images) if isinstance(images, Iterable) else [images]


def name_of(image: Any) -> str:
    """What an image is called in errors, in one line: its path, where it has one."""
    if isinstance(image, str | os.PathLike):
        return shown(os.fsdecode(image))
    name = getattr(image, "filename", "") or getattr(image, "name", "")
    return shown(name) if isinstance(name, str) and name else "the image"


def shown(text: str) -> str:
    """A path or other text of a user for a message of one line: cut where it is no path, and without the password of an address."""
    text = re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)
    text = re.sub(rf"^{_ADDRESS.pattern}", r"\1://", text, flags=re.IGNORECASE)
    if text.lower().startswith("data:") or (len(text) > _LONGEST_NAME and not _exists(text)):
        return f"{text[:100]}..." if len(text) > 100 else text
    return text


def missing(path: str | os.PathLike[str], what: str = "image") -> OamlError:
    """The error for a file that is not there: an address, the content of a file in place of its name, or a wrong name."""
    text, name = os.fspath(path), name_of(path)
    if text.lower().startswith("data:"):
        return OamlError(f"{name}: is a data URI; give base64.b64decode of what follows the comma, as bytes")
    if found := _ADDRESS.match(text):
        scheme = found[1].lower()
        if scheme == "file":
            return OamlError(f"{name}: is an address; give the path alone")
        if scheme in ("http", "https", "ftp") and what == "image":
            return OamlError(f"{name}: is an address, and only files are read; download it first")
        return OamlError(
            f"{name}: is an address, and only files are read; record some of it first: ffmpeg -i ADDRESS -t 60 video.mp4"
        )
    if len(text) > _LONGEST_NAME:
        return OamlError(
            f"{name}: is no path of {'an' if what == 'image' else 'a'} {what}; what is base64 is decoded by base64.b64decode"
        )
    return OamlError(f"{name}: no such {what}")


def path_of(value: Any, what: str) -> Path:
    """What is given as a path. Raises OamlError, which calls it `what`, where it is none or empty."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise OamlError(
            f"{what}: {_kind(value).removesuffix(' and no image')} and no path; give a str or pathlib.Path"
        )
    if not os.fspath(value):
        raise OamlError(f"{what}: the path is empty; give one")
    return Path(value)


def _exists(text: str) -> bool:
    try:
        return os.path.lexists(text)
    except ValueError:  # a zero byte
        return False


def _content(name: str, file: Any) -> bytes:
    if isinstance(file, TextIOBase):
        raise OamlError(f"{name}: is a file opened as text; open it with mode 'rb'")
    try:
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError) as error:  # a closed file raises the latter
        raise OamlError(f"{name}: can't be read ({error}); give a file that is open for reading") from error
    if not isinstance(content, bytes | bytearray):
        raise OamlError(f"{name}: gives {type(content).__name__} and no bytes; open it with mode 'rb'")
    return bytes(content)


def _check_array(name: str, image: np.ndarray) -> None:
    """Raise OamlError unless an array is uint8 [H,W,3], and say how to make it so."""
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return
    remedy = "convert it"
    if not image.size:
        remedy = "it is empty: was the file read?"
    elif image.ndim == 4:
        remedy = "it is a batch: give list(images)"
    elif image.dtype.kind == "f" and not np.isfinite(image).all():
        remedy = "it holds NaN or infinite numbers"
    elif image.dtype.kind == "f":
        scale = " * 255" if image.max() <= 1 else ""
        remedy = f"convert it: (image{scale}).round().clip(0, 255).astype(np.uint8)"
    elif image.dtype == np.uint16:
        remedy = "convert it: (image // 257).astype(np.uint8), if 65535 is white"
    elif image.dtype == bool:
        remedy = "convert it: image.astype(np.uint8) * 255"
    elif image.dtype.kind in "iu" and image.dtype != np.uint8:
        remedy = "convert it: image.clip(0, 255).astype(np.uint8), if 255 is white"
    elif image.ndim == 2:
        remedy = "grey is given three times: np.dstack([image] * 3)"
    elif image.ndim == 3 and image.shape[2] == 1:
        remedy = "grey is given three times: image.repeat(3, axis=2)"
    elif image.ndim == 3 and image.shape[2] == 4:
        remedy = "leave out the alpha channel: image[..., :3], or image[..., 2::-1] of BGRA"
    elif image.ndim == 3 and image.shape[0] in (1, 3):
        remedy = "channels come last: image.transpose(1, 2, 0)"
    raise OamlError(
        f"{name}: is {image.dtype} {list(image.shape)}, an image is uint8 [height, width, 3] in RGB order; {remedy}"
    )


def _kind(value: Any) -> str:
    if value is None:
        return "None and no image"
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    return f"of type {module}{kind.__name__} and no image"


def _remedy(value: Any) -> str:
    if type(value).__module__.partition(".")[0] == "torch":
        return (
            "convert it: tensor.permute(1, 2, 0).cpu().numpy(), times 255 and as uint8 if it is from 0 to 1"
        )
    if isinstance(value, list | tuple | set | frozenset):
        return "give one image, not several"
    return WAYS


def _pillow(name: str, image: PILImage) -> None:
    """Raise OamlError unless a picture of Pillow can be read, which its first use may still have to do."""
    from oaml.support.pixels import need_size

    if not image.width or not image.height:
        raise OamlError(f"{name}: is empty, {image.width}x{image.height} pixels; replace or remove it")
    try:
        need_size(image)
        image.load()
    except OamlError as error:
        raise OamlError(f"{name}: {error}") from None
    except Exception as error:  # as in `_decode`
        raise OamlError(
            f"{name}: is not a readable image ({shown(str(error))}); replace or remove it"
        ) from error


# --- the one reader


def _decode(image: Content, given: Image, numbers: bool = False) -> np.ndarray:
    """As `oaml.support.pixels.decode`, with errors that name what was given."""
    from oaml.support.formats import identify
    from oaml.support.pixels import decode

    try:
        if isinstance(image, str | os.PathLike):
            mode = os.stat(image).st_mode
            if not stat.S_ISREG(mode):
                kind = "folder" if stat.S_ISDIR(mode) else "device or a pipe"
                raise OamlError(f"is not a readable image (it is a {kind}); give a file")
            with open(image, "rb") as file:
                return decode(identify(file), file, numbers)
        if isinstance(image, bytes):
            return decode(identify(file := BytesIO(image)), file, numbers)
        assert not isinstance(image, np.ndarray)
        return decode(image, None, numbers)
    except FileNotFoundError:
        raise missing(os.fspath(given)) from None  # type: ignore[arg-type]
    except OamlError as error:
        raise OamlError(f"{name_of(given)}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        if isinstance(image, str | os.PathLike) and len(os.fspath(image)) > _LONGEST_NAME:
            raise missing(image) from None
        reason = getattr(error, "strerror", None) or shown(str(error)) or type(error).__name__
        raise OamlError(
            f"{name_of(given)}: is not a readable image ({reason}); replace or remove it"
        ) from error


def stated_size(path: str | Path | BinaryIO) -> tuple[int, int] | None:
    """Width and height that the beginning of a file states; None where nothing is stated, for reading it gives the reason."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            return opened.size
    except Exception:  # as in `_decode`
        return None
