"""The files of a Lance table: which of them count, and that they are on the disk before any older one goes.

Lance never syncs: after a power cut the files of the last seconds may be there with nothing in them. A manifest makes a version,
and names every file of it. So a table is in one of two states:

- It has one version. All of it is on the disk, and a file that it doesn't name is what somebody left who was killed.
- It has several. The oldest is on the disk; who wrote the others came to no end.

`settle` makes the newest version the only one, `roll_back` the oldest. Neither looks at a clock.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from oaml.support.files import sync
from oaml.support.names import is_system

VERSIONS, HINT = "_versions", "latest_version_hint.json"
KINDS = ("data", "_deletions", "_indices", "_transactions", VERSIONS)
"""Folders of a table; whatever else there might be is left alone."""


def versions(table: Path) -> list[Path]:
    """The manifests, the newest first."""
    return sorted(_listed(table / VERSIONS, "*.manifest"), key=_age)


def unsettled(table: Path) -> bool:
    """Whether somebody writes to the table, or came to no end."""
    return len(versions(table)) > 1 or _unmade(table)


def settle(table: Path, data_files: int) -> None:
    """Make the newest version the only one, once it is on the disk, and remove what it doesn't name. Only the owner may read it.

    Args:
        table: folder of the table.
        data_files: how many the newest version has: nothing is removed where the manifest names others.

    Raises:
        OSError: the disk is full, gone or can't be written; then nothing older is gone.
        ValueError: files of the newest version are missing, or its manifest is damaged.
    """
    newest, *older = versions(table)
    kept = _files(table, newest)
    found = sum(path.parent.name == "data" for path in kept)
    if found != data_files:
        raise ValueError(f"{newest.name} has {data_files} files of data, and {found} of these are there")
    new = sorted(kept - _files(table, older[-1])) if older else []
    folders = [table.parent, table, *(path for path in sorted(table.rglob("*")) if path.is_dir())]
    for path in (*folders, *kept):
        os.chmod(path, 0o700 if path.is_dir() else 0o600)
    if new:
        _sync_all((*new, *folders))
    for manifest in older[:-1]:
        manifest.unlink()
    if older:
        sync(table / VERSIONS)  # the oldest is what a power cut goes back to: it goes last
        older[-1].unlink()
        sync(table / VERSIONS)
    _sweep(table, kept)


def make_durable(table: Path) -> None:
    """Bring a new table to the disk."""
    _sync_all((*table.rglob("*"), table, table.parent))


def roll_back(table: Path) -> bool:
    """Make the oldest version the only one; returns whether anything of the table was taken back.

    Raises:
        OSError: the folder can't be written.
    """
    if _unmade(table):
        shutil.rmtree(table)
        sync(table.parent)
        return True
    newer = versions(table)[:-1]
    for manifest in newer:
        manifest.unlink()
    if newer:
        (table / VERSIONS / HINT).unlink(missing_ok=True)
        sync(table / VERSIONS)
    return bool(newer)


def _age(manifest: Path) -> int:
    number = int(manifest.stem)
    return number if number >= 2**63 else 2**64 - 1 - number  # older tables count upwards


def _unmade(table: Path) -> bool:
    """Whether a power cut or a kill came before there was a first version; nobody was enrolled then."""
    found = versions(table)
    if len(found) > 1 or any(_listed(table / "data", "*.lance")):
        return False
    return not found or not found[0].read_bytes().endswith(b"LANC")


def _files(table: Path, manifest: Path) -> set[Path]:
    """Those of one version: their names, or the numbers in their names, are in the manifest as they are."""
    text = manifest.read_bytes()
    kept = {manifest, *(table / VERSIONS).glob(HINT)}
    for path in (path for kind in ("data", "_transactions") for path in _listed(table / kind, "*")):
        if path.name.encode() in text:
            kept.add(path)
    for path in _listed(table / "_deletions", "*.arrow"):  # FRAGMENT-VERSION-NUMBER.arrow
        if _varint(int(path.stem.rsplit("-", 1)[1])) in text:
            kept.add(path)
    for folder in _listed(table / "_indices", "*-*"):
        if uuid.UUID(folder.name).bytes in text:
            kept.update(path for path in folder.rglob("*") if path.is_file())
    return kept


def _listed(folder: Path, pattern: str) -> list[Path]:
    """The files of a kind, without those that a system puts beside them, such as `._1.manifest`."""
    return [path for path in folder.glob(pattern) if not is_system(path.name)]


def _varint(number: int) -> bytes:
    """As protobuf writes a number."""
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def _sweep(table: Path, kept: set[Path]) -> None:
    """Remove every file that isn't kept, and empty folders of indices."""
    changed: set[Path] = set()
    for path in [path for kind in KINDS for path in (table / kind).rglob("*") if not path.is_dir()]:
        if path not in kept:
            path.unlink()
            changed.add(path.parent)
    for folder in [*(table / "_indices").glob("*")]:
        if not any(folder.iterdir()):
            folder.rmdir()
            changed.discard(folder)
            changed.add(folder.parent)
    _sync_all(sorted(changed))


def _sync_all(paths: Iterable[Path]) -> None:
    for path in paths:
        sync(path)
