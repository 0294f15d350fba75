"""A folder of images as every command reads it: links are followed, and what can't be taken is named with the reason."""

from __future__ import annotations

import os
import stat
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from errno import ENOENT
from pathlib import Path
from typing import NamedTuple

from oaml.errors import OamlError, few
from oaml.support.formats import READABLE, VIDEO_SUFFIXES
from oaml.support.names import is_system, is_unfinished, person_name, printable

PICTURE_SUFFIXES = frozenset(
    (
        *(
            ".jxl",
            ".psd",
            ".svg",
            ".exr",
            ".hdr",
            ".eps",
            ".raw",
            ".dng",
            ".cr2",
            ".cr3",
            ".nef",
            ".arw",
            ".orf",
        ),
        *(".rw2", ".raf", ".pef", ".srw"),
    )
)
"""Of pictures that are not among `READABLE`."""


class LeftOut(NamedTuple):
    """What was found and is not taken."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Reading(NamedTuple):
    """What a folder holds."""

    images: list[Path]
    """Sorted."""
    left_out: list[LeftOut]
    """Sorted; without what the system or an editor put there."""


def read_folder(folder: str | Path) -> Reading:
    """All images below a folder, by their names.

    Links to files and folders are followed; a folder that is reached twice is read once, and where it lies itself rather than
    through a link. Files and folders of the system, such as `._x.jpg`, `.Trash-1000` or `@eaDir`, are passed over silently.

    Raises:
        OamlError: no such folder, or it can't be read.
    """
    folder = Path(folder)
    images: list[Path] = []
    left_out: list[LeftOut] = []
    entered: dict[tuple[int, int], Path] = {}
    real, linked = deque([folder]), deque[Path]()
    try:
        above = {_identity(parent) for parent in Path(os.path.realpath(folder)).parents}
    except OSError:
        above = set()
    while real or linked:
        place = real.popleft() if real else linked.popleft()
        try:
            identity = _identity(place)
            if identity in above or identity in entered:
                where = "a folder that holds it" if identity in above else entered[identity]
                left_out.append(LeftOut(place, f"is a link to {where}, which is not read twice"))
                continue
            entries = [entry for entry in sorted(os.scandir(place), key=_name) if not is_system(entry.name)]
        except OSError as error:
            if place == folder:
                raise _unreadable(folder, error) from error
            left_out.append(LeftOut(place, _why(place, error)))
            continue
        entered[identity] = place
        if not entries and place != folder:
            left_out.append(LeftOut(place, "is an empty folder"))
        for entry in entries:
            path = place / entry.name
            try:
                kind = entry.stat().st_mode
            except OSError as error:
                left_out.append(LeftOut(path, _why(path, error)))
                continue
            reason = _reason(entry.name, kind)
            if reason is not None:
                left_out.append(LeftOut(path, reason))
            elif stat.S_ISDIR(kind):
                (linked if entry.is_symlink() else real).append(path)
            else:
                images.append(path)
    return Reading(sorted(images), sorted(left_out))


def list_images(folder: str | Path) -> list[Path]:
    """All images below a folder, sorted. Raises OamlError when the folder is missing or holds none."""
    return need_images(folder, read_folder(folder)).images


def need_images(folder: str | Path, reading: Reading) -> Reading:
    """The same reading; raises OamlError where it holds no image."""
    if not reading.images:
        raise OamlError(
            f"{folder}: no images in it (looked for {few(READABLE, 6)})"
            + (f"; left out: {summarised(reading.left_out)[0]}" if reading.left_out else "")
        )
    return reading


def summarised(left_out: Iterable[LeftOut | str]) -> list[str]:
    """A line for each of them, or one for all of the same reason where these are many."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for line in left_out:
        path, _, reason = str(line).partition(": ")
        by_reason[reason].append(path)
    return [
        f"{name}: {reason}"
        for reason, paths in by_reason.items()
        for name in (paths if len(paths) <= SHOWN else [few(paths, SHOWN - 1)])
    ]


SHOWN = 5
"""Lines with the same reason."""


def say_left_out(left_out: Sequence[LeftOut | str]) -> None:
    """Name on stderr what was left out."""
    for line in summarised(left_out):
        print(f"left out: {printable(line)}", file=sys.stderr)


def find(folder: Path, inside: str) -> Path:
    """The file below a folder that a list names: as it is written there or, where there is none, under a name that is the same.

    Letters may be composed in the list and decomposed on the disk, and bytes that are no UTF-8 escaped.

    Raises:
        OSError: there is no such file, or no file can have such a name.
    """
    path = folder / inside
    try:
        os.stat(path)
    except ValueError as error:  # a character that no path has
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), inside) from error
    except FileNotFoundError:
        path = folder
        for part in Path(inside).parts:
            if not (path / part).exists():
                same = [name for name in sorted(os.listdir(path)) if person_name(name) == person_name(part)]
                part = same[0] if same else part
            path /= part
        os.stat(path)
    return path


def _identity(path: Path) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _reason(name: str, kind: int) -> str | None:
    """Why a file or folder isn't taken, by its name and its `st_mode`; None where it is."""
    if is_unfinished(name):
        return "is an editor's copy, or not complete"
    if stat.S_ISDIR(kind):
        return None
    suffix = Path(name).suffix.lower()
    if not stat.S_ISREG(kind):
        return "is no file but a pipe, a socket or a device"
    if suffix in READABLE:
        return None
    if suffix in PICTURE_SUFFIXES:
        return f"{suffix} is not read here; convert it to JPEG or PNG"
    if suffix in VIDEO_SUFFIXES:
        return f"is a video ({suffix})"
    return f"is no picture, by its name ({suffix or 'without a suffix'})"


def _why(path: Path, error: OSError) -> str:
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return "is a link to nothing; mend or remove it"
    return f"can't be read ({error.strerror or error})"


def _unreadable(folder: Path, error: OSError) -> OamlError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return OamlError(f"{folder}: no such folder")
    return OamlError(
        f"{folder}: can't be read ({error.strerror or error}); check the path and its permissions"
    )
