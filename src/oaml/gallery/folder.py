"""What has to change for a gallery to hold what a folder holds: images are known by their content, whatever they are called.

The folder too: one that was moved, to another disk as well, is where it was enrolled from once nothing is left there and it holds
at least half of it. Nothing is gone that merely can't be seen now: what lies at a link to nothing, in a folder that is empty or
can't be read, or in an image that can't be read.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oaml.datasets.people import read_people, same_files
from oaml.errors import OamlError, few
from oaml.support.folders import LeftOut
from oaml.support.images import Content
from oaml.support.names import printable, restored, storable

MOST_GONE = 0.1
"""Share of a folder's people or images that may be gone without a question."""


class Entry(NamedTuple):
    """Whose an enrolled image is, and where it is from."""

    person: str
    image: str
    """SHA-256 of the image file."""
    source: str
    """Path of the image (`storable`); empty where it has none."""
    folder: str
    """The folder that `Gallery.enroll_folder` found it in; empty where it came alone."""

    @property
    def key(self) -> tuple[str, str]:
        """What makes it another image: person and content."""
        return self.person, self.image

    def moved(self, folder: str) -> Entry:
        """The same where the folder that it came from has moved as a whole."""
        inside = self.source.removeprefix(self.folder)
        return self if inside == self.source else self._replace(source=folder + inside, folder=folder)


class Listed(NamedTuple):
    """What a folder holds."""

    entries: list[Entry]
    """Each content once a person."""
    left_out: list[LeftOut]
    notes: list[str]
    """What may be a mistake and is taken as it is, a line each."""


@dataclass(frozen=True)
class FolderChanges:
    """What an enrolment of a folder has to do."""

    new: list[Entry]
    moved: list[tuple[Entry, Entry]]
    """Of the same content and another person or path: as enrolled, and as found."""
    gone: list[Entry]
    """Came from this folder and are no longer there."""
    kept: int
    unseen: list[Entry] = field(default_factory=list)
    """Came from this folder and can't be seen in it now; they stay."""
    earlier: list[str] = field(default_factory=list)
    """Paths that the folder had before."""
    before: list[Entry] = field(default_factory=list)
    """All that came from this folder."""
    lost: dict[str, list[Entry]] = field(default_factory=dict)
    """Of other folders from which nothing is left where it was: some of it is in this one, and this is what isn't."""

    def warning(self) -> str | None:
        """What is to be removed, where that is more than `MOST_GONE` of what came from the folder."""
        gone = [entry.person for entry in self.gone]
        left = {*self.before} - {*self.gone} | {entry for _, entry in self.moved}
        people = sorted(set(gone) - {entry.person for entry in left})
        everybody = {entry.person for entry in self.before}
        if len(gone) <= MOST_GONE * len(self.before) and len(people) <= MOST_GONE * len(everybody):
            return None
        named = f" ({few([printable(person) for person in people])})" if people else ""
        return (
            f"{len(people)} of {len(everybody)} people{named} and {len(gone)} of {len(self.before)} images that came from it are "
            "no longer there and will be removed from the gallery"
        )

    def notes(self, unseen: Sequence[Entry]) -> list[str]:
        """What stays enrolled and isn't there, a line each.

        Args:
            unseen: of this folder, where what lies there can't be seen now.
        """
        said = []
        if unseen:
            people = sorted({printable(entry.person) for entry in unseen})
            said.append(
                f"{len(unseen)} enrolled images of {few(people)} can't be seen now and stay; remove what is left out to remove them"
            )
        for folder, entries in self.lost.items():
            people = sorted({printable(entry.person) for entry in entries})
            said.append(
                f"{len(entries)} images of {few(people)} were enrolled from {restored(folder)}, where nothing is left, and stay"
            )
        return said


def listed(folder: Path) -> Listed:
    """The images of a folder, `FOLDER/NAME/*.jpg`; and what is left out.

    Raises:
        OamlError: no such folder, or no people in it.
    """
    entries: dict[tuple[str, str], Entry] = {}
    found = read_people(folder)
    left_out, copies = found.left_out, []
    for person, path in found.images:
        try:
            entry = Entry(person, digest(path), storable(str(path)), storable(str(folder)))
        except OamlError as error:
            left_out.append(LeftOut(path, str(error).removeprefix(f"{path}: ")))
            continue
        copies.append((person, str(path), entry.image))
        entries.setdefault(entry.key, entry)
    return Listed(list(entries.values()), left_out, found.notes + same_files(copies))


def changes(
    wanted: Iterable[Entry], enrolled: Iterable[Entry], folder: str, left_out: Collection[LeftOut] = ()
) -> FolderChanges:
    """Compare what a folder holds with what is enrolled.

    Args:
        wanted, left_out: from `listed`.
        enrolled: all of the gallery.
        folder: only what came from it can be gone.
    """
    present = {entry.key: entry for entry in wanted}
    known = {entry.key: entry for entry in enrolled}
    before, earlier, lost = _came_from(folder, known.values(), {entry.image for entry in present.values()})
    missing = {entry.key: entry for entry in before if entry.key not in present}
    by_content: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for key, entry in missing.items():
        by_content[entry.image].append(key)
    ours = {entry.key for entry in before}
    new: list[Entry] = []
    moved: list[tuple[Entry, Entry]] = []
    for key, entry in present.items():
        old = known.get(key)
        if old is None and by_content[entry.image]:
            moved.append((missing.pop(by_content[entry.image].pop()), entry))
        elif old is None:
            new.append(entry)
        elif key in ours and (old.source, old.folder) != (entry.source, entry.folder):
            moved.append((old, entry))
    gone, unseen = split_unseen(missing.values(), folder, left_out)
    kept = len(present) - len(new) - len(moved)
    return FolderChanges(new, moved, gone, kept, unseen, earlier, before, lost)


def split_unseen(
    missing: Iterable[Entry], folder: str, left_out: Collection[LeftOut]
) -> tuple[list[Entry], list[Entry]]:
    """What of a folder is gone, and what lies where something was left out, and so may be there still."""
    hidden = {storable(str(line.path)) for line in left_out}
    gone: list[Entry] = []
    unseen: list[Entry] = []
    for entry in missing:
        path = Path(entry.moved(folder).source)
        covered = hidden.intersection(map(str, (path, *path.parents)))
        (unseen if covered else gone).append(entry)
    return gone, unseen


def _came_from(
    folder: str, enrolled: Iterable[Entry], held: Collection[str]
) -> tuple[list[Entry], list[str], dict[str, list[Entry]]]:
    """What was enrolled from a folder, the paths that it had before, and what else is `FolderChanges.lost`.

    Args:
        held: digests of the images that are in the folder now.
    """
    by_folder: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in enrolled:
        by_folder[entry.folder].append(entry)
    by_folder.pop("", None)
    ours, earlier, lost = by_folder.pop(folder, []), [], {}
    for other, entries in by_folder.items():
        absent = [entry for entry in entries if not os.path.lexists(restored(entry.source))]
        here = [entry for entry in absent if entry.image in held]
        emptied = len(absent) == len(entries)
        if _same(other, folder) or (emptied and 2 * len(here) >= len(entries)):
            ours, earlier = ours + entries, [*earlier, other]
            continue
        ours = ours + here
        if emptied and here:
            lost[other] = [entry for entry in entries if entry.image not in held]
    return ours, earlier, lost


def _same(a: str, b: str) -> bool:
    """Whether two paths lead to one folder: where capital letters don't count, or through a mount."""
    try:
        return os.path.samefile(restored(a), restored(b))
    except OSError:
        return False


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
