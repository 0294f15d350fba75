"""Files and folders that are written whole or not at all. `oaml.support.images` reads an image, `oaml.support.folders` a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from oaml.errors import OamlError
from oaml.support.formats import READABLE as READABLE
from oaml.support.images import FACE_SIZE as FACE_SIZE
from oaml.support.images import Image as Image
from oaml.support.images import name_of as name_of
from oaml.support.images import read_image as read_image
from oaml.support.images import read_mask as read_mask
from oaml.support.images import read_photograph as read_photograph
from oaml.support.names import is_system, readable, shortened


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
    temporary = path.with_name(f".{_beginning(path.stem)}.{os.getpid()}.tmp{path.suffix}")
    try:
        make_folder(path.parent)
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600 if private else 0o666))
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise OamlError(
            f"{shortened(str(path))}: could not be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        with suppress(OSError):  # there is none, or no such folder
            temporary.unlink()
    return path


def _beginning(name: str) -> str:
    """So much of a name that a few more characters make no longer one than a folder can hold."""
    return os.fsdecode(os.fsencode(name)[:160])


def write_folder(folder: str | Path, write: Callable[[Path], object]) -> Path:
    """Like `write_file` for a whole folder: the old one, if any, stays until the new one is complete and on the disk.

    Only a folder that this library wrote (it holds a config.json) or an empty one is replaced; another one is refused.
    """
    folder = Path(folder)
    check_model_folder(folder)
    temporary = None
    try:
        make_folder(folder.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{_beginning(folder.name)}.", dir=folder.parent))
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
            f"{shortened(str(folder))}: could not be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_model_folder(folder: Path) -> None:
    """Raise OamlError where `write_folder` would refuse to write: to be asked before the work."""
    if folder.exists() and (
        not folder.is_dir() or (not is_empty(folder) and not (folder / "config.json").is_file())
    ):
        raise OamlError(f"{folder}: exists and is no model folder; choose another name")


def need_utf8(path: str | Path) -> None:
    """Raise OamlError for a path that some libraries can't open, for it holds bytes that are no UTF-8."""
    if readable(str(path)) != str(path):
        raise OamlError(f"{path}: the path holds bytes that are no UTF-8; rename it or choose another place")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what the system put there, such as `.DS_Store`."""
    return all(is_system(path.name) for path in folder.iterdir())


def check_empty(out: Path) -> None:
    """Raise OamlError where a folder to be filled holds something already, or is no folder."""
    if out.exists() and (not out.is_dir() or not is_empty(out)):
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
