"""Files and folders that are written whole or not at all, and images read with errors that name the file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

from oaml.errors import OamlError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Image: TypeAlias = Union[str, os.PathLike[str], bytes, np.ndarray, "PILImage"]
"""An image: its path, the bytes of its file, uint8 [H,W,3] in RGB order, or one of Pillow's."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FACE_SIZE = 112
MOST_PIXELS = 100_000_000
"""Of an image; decoded it takes three bytes for each. What a small file says of its size is asked before anything is decoded."""


def sync(path: str | Path) -> None:
    """Return when a file's bytes, or the names in a folder, are on the disk and a power cut can't take them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it that are missing, on the disk; one that is there is left as it is."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode, exist_ok=True)
        sync(folder.parent)


def write_file(path: str | Path, write: Callable[[Path], object], private: bool = False) -> Path:
    """Call `write(temporary)` and rename the result to `path`; on any failure nothing is left behind.

    It is on the disk when this returns; a power cut before leaves what was there.

    Args:
        path: folders above it are made.
        write: fills the file.
        private: nobody but its owner may read it.

    Raises OamlError when the disk is full or the folder can't be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        make_folder(path.parent)
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600 if private else 0o666))
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise OamlError(
            f"{path}: could not be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        with suppress(OSError):  # there is none, or no such folder
            temporary.unlink()
    return path


def write_folder(folder: str | Path, write: Callable[[Path], object]) -> Path:
    """Like `write_file` for a whole folder: the old one, if any, stays until the new one is complete and on the disk.

    Only a folder that this library wrote (it holds a config.json) or an empty one is replaced; another one is refused.
    """
    folder = Path(folder)
    check_model_folder(folder)
    temporary = None
    try:
        make_folder(folder.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        os.chmod(temporary, 0o755)
        write(temporary)
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        if folder.exists():
            old = temporary.with_name(temporary.name + ".old")
            os.rename(folder, old)
            try:
                os.rename(temporary, folder)
            except OSError:
                os.rename(old, folder)
                raise
            sync(folder.parent)  # before the old one goes
            shutil.rmtree(old, ignore_errors=True)  # the new one is in place: no reason to fail
        else:
            os.rename(temporary, folder)
        sync(folder.parent)
    except OSError as error:
        raise OamlError(
            f"{folder}: could not be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_model_folder(folder: Path) -> None:
    """Raise OamlError where `write_folder` would refuse to write: to be asked before the work."""
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").is_file())
    ):
        raise OamlError(f"{folder}: exists and is no model folder; choose another name")


def list_images(folder: str | Path) -> list[Path]:
    """All image files below `folder`, sorted. Raises OamlError when the folder is missing or holds none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise OamlError(f"{folder}: no such folder")
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not images:
        raise OamlError(f"{folder}: no images in it (looked for {', '.join(IMAGE_SUFFIXES)})")
    return images


def check_empty(out: Path) -> None:
    """Raise OamlError where a folder to be filled holds something already, or is no folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OamlError(f"{out}: exists and is not an empty folder; choose another name")


def png_names(folder: Path, paths: list[Path]) -> dict[Path, Path]:
    """Names (relative to the folder) under which images below it are written again as PNG -> the image.

    Raises OamlError when two would be written under one name.
    """
    names: dict[Path, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix(".png")
        if name in names:
            raise OamlError(
                f"{path}: would be written under the same name as {names[name]}; rename one of them"
            )
        names[name] = path
    return names


def read_image(path: str | Path, *, resize: bool = False) -> np.ndarray:
    """Read one aligned face as RGB uint8 [112,112,3].

    Grey images are repeated over three channels (of 16 bits the upper 8 are used), and an alpha channel is
    dropped only where it is fully opaque: a transparent pixel has no colour, so guessing one would invent a face.

    Args:
        resize: resample an image of another size (area) instead of refusing it.

    Raises:
        OamlError: missing, unreadable, transparent or not 112x112.
    """
    image = _as_rgb(_decode(Path(path)), path)
    if image.shape[:2] != (FACE_SIZE, FACE_SIZE):
        if not resize:
            raise OamlError(
                f"{path}: is {image.shape[1]}x{image.shape[0]}, an aligned face is {FACE_SIZE}x{FACE_SIZE}; "
                "align it, or pass --resize to scale it"
            )
        import cv2

        image = cv2.resize(image, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def name_of(image: Image) -> str:
    """What an image is called in errors: its path, where it has one."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return getattr(image, "filename", "") or "the image"


def printable(text: str) -> str:
    """The text with bytes of no known character escaped, as a file name on Linux may hold them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_photograph(image: Image) -> np.ndarray:
    """Read a photograph of any size, turned upright as its EXIF entry says, as RGB uint8 [H,W,3].

    Grey, 16-bit and transparent images are treated as by `read_image`. An array is taken as it is: uint8 [H,W,3] in RGB order
    (what OpenCV reads is BGR: `image[..., ::-1]`).

    Raises:
        OamlError: missing, unreadable or transparent, or an array of another kind.
    """
    name = name_of(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise OamlError(
                f"{name}: is {image.dtype} {list(image.shape)}, an image is uint8 [height, width, 3] in RGB order; convert it"
            )
        return np.ascontiguousarray(image)
    return np.ascontiguousarray(_as_rgb(_decode(image, upright=True), name))


def _as_rgb(image: np.ndarray, path: str | Path) -> np.ndarray:
    """What `_decode` gives, as uint8 [H,W,3]."""
    if image.dtype == np.float32:
        raise OamlError(
            f"{path}: holds floating-point numbers, whose black and white are not known; save it with 8 or 16 bits"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.shape[2] == 4:
        if image[..., 3].min() < 255:
            raise OamlError(f"{path}: has transparent pixels; save it without an alpha channel")
        image = image[..., :3]
    return image


def read_mask(path: str | Path) -> np.ndarray:
    """Read a visibility mask, 8 or 16 bit or numbers from 0 to 1, as float32 [H,W] in [0,1] (1 = visible).

    Raises:
        OamlError: missing, unreadable, colour channels that differ (not a mask), or a number outside [0,1].
    """
    mask = _decode(Path(path))
    if mask.ndim == 3:
        colour = mask[..., :3]
        if (colour != colour[..., :1]).any():
            raise OamlError(f"{path}: is a colour image, a mask is grey (white where the face shows)")
        mask = colour[..., 0]
    if mask.dtype == np.float32:
        if not ((mask >= 0) & (mask <= 1)).all():
            raise OamlError(
                f"{path}: holds numbers outside 0 to 1; save it with 1 where the face shows and 0 elsewhere"
            )
        return mask
    return mask.astype(np.float32) / np.iinfo(mask.dtype).max


def _decode(image: str | os.PathLike[str] | bytes | PILImage, upright: bool = False) -> np.ndarray:
    """uint8, uint16 or (grey alone) float32 [H,W] or [H,W,3|4] in RGB order; `upright` obeys the orientation that EXIF states."""
    import PIL.Image

    name = name_of(image)
    try:
        if isinstance(image, str | os.PathLike | bytes):
            with PIL.Image.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
                return _pixels(opened, upright)
        return _pixels(image, upright)
    except FileNotFoundError:
        raise OamlError(f"{name}: no such image") from None
    except (OamlError, MemoryError):
        raise
    except PIL.Image.DecompressionBombError:
        raise OamlError(
            f"{name}: has more than {MOST_PIXELS / 1e6:.0f} megapixels; make it smaller"
        ) from None
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise OamlError(f"{name}: is not a readable image ({error}); replace or remove it") from error


def _pixels(opened: PILImage, upright: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    if opened.width * opened.height > MOST_PIXELS:
        raise Image.DecompressionBombError
    opened.load()
    if upright:
        opened = ImageOps.exif_transpose(opened)
    if opened.mode in ("I;16", "I;16B", "I;16L", "I"):
        return np.clip(np.asarray(opened), 0, 65535).astype(np.uint16)
    if opened.mode == "F":
        return np.array(opened, np.float32)
    if opened.mode == "1":
        opened = opened.convert("L")
    elif opened.mode in ("LA", "PA", "P"):
        opened = opened.convert("RGBA" if "transparency" in opened.info or "A" in opened.mode else "RGB")
    elif opened.mode not in ("L", "RGB", "RGBA"):
        opened = opened.convert("RGB")
    return np.array(opened)  # a copy: a view of the image could not be written to
