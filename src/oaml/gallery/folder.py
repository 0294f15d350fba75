"""What has to change for a gallery to hold what a folder holds: images are known by their content, whatever they are called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oaml.errors import OamlError
from oaml.support.files import list_images
from oaml.support.images import Content


class Entry(NamedTuple):
    """Whose an enrolled image is, and where it is from."""

    person: str
    image: str
    """SHA-256 of the image file."""
    source: str
    """Path of the image; empty where it has none."""
    folder: str
    """The folder that `Gallery.enroll_folder` found it in; empty where it came alone."""

    @property
    def key(self) -> tuple[str, str]:
        """What makes it another image: person and content."""
        return self.person, self.image


@dataclass(frozen=True)
class FolderChanges:
    """What an enrolment of a folder has to do."""

    new: list[Entry]
    moved: list[tuple[Entry, Entry]]
    """Of the same content and another person or path: as enrolled, and as found."""
    gone: list[Entry]
    """Came from this folder and are no longer there."""
    kept: int


def listed(folder: Path) -> tuple[list[Entry], list[str]]:
    """The images of a folder, `FOLDER/NAME/*.jpg`, each content once a person; and why others don't count.

    Raises:
        OamlError: no such folder, or no people in it.
    """
    entries: dict[tuple[str, str], Entry] = {}
    left_out = []
    for path in list_images(folder):
        inside = path.relative_to(folder).parts
        if len(inside) < 2:
            left_out.append(f"{path}: lies in no person's folder; move it to {folder}/NAME/{path.name}")
            continue
        entry = Entry(inside[0], digest(path), str(path), str(folder))
        entries.setdefault(entry.key, entry)
    if not entries:
        raise OamlError(f"{folder}: no people in it; expected {folder}/NAME/*.jpg, a folder for every person")
    return list(entries.values()), left_out


def changes(wanted: Iterable[Entry], enrolled: Iterable[Entry], folder: str) -> FolderChanges:
    """Compare what a folder holds with what is enrolled.

    Args:
        wanted: from `listed`.
        enrolled: all of the gallery.
        folder: only what came from it can be gone.
    """
    known = {entry.key: entry for entry in enrolled}
    present = {entry.key: entry for entry in wanted}
    gone = {key: entry for key, entry in known.items() if entry.folder == folder and key not in present}
    by_content = {entry.image: key for key, entry in gone.items()}
    new: list[Entry] = []
    moved: list[tuple[Entry, Entry]] = []
    for key, entry in present.items():
        old = known.get(key)
        if old is None and entry.image in by_content:
            moved.append((gone.pop(by_content.pop(entry.image)), entry))
        elif old is None:
            new.append(entry)
        elif old.folder == folder and old.source != entry.source:
            moved.append((old, entry))
    return FolderChanges(new, moved, list(gone.values()), len(present) - len(new) - len(moved))


def digest(image: Content) -> str:
    """SHA-256 of an image's file, or of its pixels where it has none.

    Raises:
        OamlError: no such file, or an unreadable one.
    """
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, np.ndarray):
        return hashlib.sha256(f"{image.shape} {image.dtype}".encode() + image.tobytes()).hexdigest()
    if isinstance(image, str | os.PathLike):
        try:
            return hashlib.sha256(Path(image).read_bytes()).hexdigest()
        except OSError as error:
            raise OamlError(f"{image}: can't be read ({error.strerror}); check the path") from error
    return hashlib.sha256(f"{image.size} {image.mode}".encode() + image.tobytes()).hexdigest()
