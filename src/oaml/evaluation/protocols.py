"""The lists that say what is compared: pairs, and gallery and probes; and the fixed split of people.

A pairs file is CSV (UTF-8) with the columns `path_a,path_b,same` and, where it says which photographs show an occluded face,
`occluded_a,occluded_b`; an identification file has `path,person,role`. Paths are relative to the folder of images, or those
that a file of `oaml embed` holds. Further columns and empty lines are ignored.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import compress
from pathlib import Path

import numpy as np

from oaml.datasets.people import person_of
from oaml.datasets.sources import ByName, is_source
from oaml.errors import OamlError, few
from oaml.support.folders import find
from oaml.support.formats import READABLE
from oaml.support.names import person_name, shortened
from oaml.support.rows import rows


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, in the order of their file."""

    path_a: list[str]
    """As written in the file: relative to the folder of images."""
    path_b: list[str]
    same: list[bool | None]
    """True for a genuine pair, False for an impostor pair; None where the file doesn't say."""
    occluded: list[int] = field(default_factory=list)
    """How many of the two photographs show an occluded face, 0 to 2; empty where the file doesn't say."""
    owner: dict[str, str] = field(default_factory=dict)
    """Path -> person, where that isn't the image's folder."""
    group: list[str] = field(default_factory=list)
    """What the two images show by a published set's own labels; empty where it has none."""

    def __len__(self) -> int:
        return len(self.path_a)

    def person_of(self, path: str) -> str:
        """Whose face an image shows, as far as the list says."""
        return self.owner.get(path) or person_of(path)


@dataclass(frozen=True)
class Identification:
    """A gallery, probes whose person has at least one gallery image, and strangers, who have none."""

    gallery: list[str]
    gallery_person: list[str]
    probes: list[str]
    probe_person: list[str]
    strangers: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.gallery) + len(self.probes) + len(self.strangers)


@dataclass(frozen=True)
class Listed:
    """What a published set compares."""

    images: Path
    """The folder that paths are relative to, or a .bin file."""
    pairs: Pairs | None = None
    identification: Identification | None = None


def found(root: Path, path: str) -> str | None:
    """The path below a folder of an image, which a list may name without its suffix, or with that of the original."""
    if (root / path).is_file():
        return path
    stem, dot, suffix = path.rpartition(".")
    stem = stem if dot and f".{suffix.lower()}" in READABLE else path
    return next((stem + s for s in READABLE if (root / (stem + s)).is_file()), None)


def need_all(missing: Sequence[str], images: Path, named_in: Path) -> None:
    """Raise OamlError where a published set's list names images that aren't there: all are counted, the first ten named."""
    if missing:
        raise OamlError(
            f"{named_in}: {len(missing):,} images that it names are missing in {images}: {few(missing, 10)}; complete the set, or "
            "write a list of those that are there"
        )


def read_pairs(file: str | Path, images: str | Path | ByName, *, need_same: bool = True) -> Pairs:
    """Read a pairs file and make sure that all images exist, so that nothing fails after minutes of work.

    Args:
        file: CSV with the columns path_a, path_b and same (1 or 0), and optionally occluded_a and occluded_b (1 or 0).
        images: folder that the paths are relative to, another source of pictures, or a file of `oaml embed`.
        need_same: without it the column `same`, or single values of it, may be left out.

    Raises:
        OamlError: missing or unreadable file, missing or repeated column, empty file, wrong number of values,
            a `same` or `occluded_a` that is neither 1 nor 0, or a missing image; with file, line number and remedy.
    """
    file = Path(file)
    pairs = Pairs([], [], [])
    used: dict[str, int] = {}
    columns, shown = ("path_a", "path_b", "same"), ("occluded_a", "occluded_b")
    for line, row in rows(file, columns if need_same else columns[:2], columns, shown):
        a, b, same = row["path_a"], row["path_b"], row.get("same", "")
        for column, path in (("path_a", a), ("path_b", b)):
            _filled(file, line, column, path)
            used.setdefault(path, line)
        if same not in ("1", "0") and (need_same or same):
            raise OamlError(
                f"{file}, line {line}: same is {same!r}; write 1 for one person (a genuine pair) and 0 for two (an impostor pair)"
            )
        pairs.path_a.append(a)
        pairs.path_b.append(b)
        pairs.same.append({"1": True, "0": False}.get(same))
        if given := [row[name] for name in shown if name in row]:
            if len(given) == 1 or not {*given} <= {"0", "1"}:
                raise OamlError(
                    f"{file}, line {line}: occluded_a and occluded_b are {', '.join(map(repr, given))}; write both as 1 where the "
                    "photograph shows an occluded face and 0 where it doesn't, or leave both columns out"
                )
            pairs.occluded.append(sum(map(int, given)))
    if not len(pairs):
        raise OamlError(f"{file}: holds no pairs below its header; write one line for each pair")
    _need_images(file, images, used)
    return pairs


def read_identification(file: str | Path, images: str | Path | ByName) -> Identification:
    """Read a gallery and the probes to look up in it, and make sure that every image exists.

    Args:
        file: CSV with the columns path, person and role (`gallery`, `probe`, or `stranger` for a probe who isn't in the gallery).
        images: folder that the paths are relative to, another source of pictures, or a file of `oaml embed`.

    Raises:
        OamlError: as `read_pairs`; also another role, an image listed twice (it would find itself), no
            gallery, no probe, a probe whose person is not in the gallery, or a stranger who is.
    """
    file = Path(file)
    columns = ("path", "person", "role")
    listed = Identification([], [], [], [])
    used: dict[str, int] = {}
    probe_lines: list[int] = []
    stranger_lines: list[tuple[int, str]] = []
    for line, row in rows(file, columns, columns):
        path, person, role = row["path"], person_name(row["person"]), row["role"]
        _filled(file, line, "path", path)
        _filled(file, line, "person", person)
        if path in used:
            raise OamlError(
                f"{file}, line {line}: {path} is already listed in line {used[path]}; list it once"
            )
        used[path] = line
        if role == "gallery":
            listed.gallery.append(path)
            listed.gallery_person.append(person)
        elif role == "probe":
            listed.probes.append(path)
            listed.probe_person.append(person)
            probe_lines.append(line)
        elif role == "stranger":
            listed.strangers.append(path)
            stranger_lines.append((line, person))
        else:
            raise OamlError(f"{file}, line {line}: role is {role!r}; write gallery, probe or stranger")
    for role, paths in (("gallery", listed.gallery), ("probe", listed.probes)):
        if not paths:
            raise OamlError(f"{file}: holds no image with role {role}; it needs some of both roles")
    known = set(listed.gallery_person)
    for line, person in zip(probe_lines, listed.probe_person, strict=True):
        if person not in known:
            raise OamlError(
                f"{file}, line {line}: {person} has no image with role gallery; add one, remove the probe, or write stranger"
            )
    for line, person in stranger_lines:
        if person in known:
            raise OamlError(f"{file}, line {line}: {person} is in the gallery and no stranger; write probe")
    _need_images(file, images, used)
    return listed


def without(pairs: Pairs, names: Container[str]) -> Pairs:
    """The pairs that show none of these images."""
    kept = [a not in names and b not in names for a, b in zip(pairs.path_a, pairs.path_b, strict=True)]
    columns = {field.name: getattr(pairs, field.name) for field in fields(pairs)}
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    return replace(pairs, **{name: list(compress(values, kept)) for name, values in lists.items()})


def identified_without(known: Identification, names: Container[str]) -> Identification:
    """The images that are none of these; a probe stays while its person has a gallery image."""
    gallery = [i for i, path in enumerate(known.gallery) if path not in names]
    people = {known.gallery_person[i] for i in gallery}
    probes = [
        i for i, path in enumerate(known.probes) if path not in names and known.probe_person[i] in people
    ]
    return Identification(
        gallery=[known.gallery[i] for i in gallery],
        gallery_person=[known.gallery_person[i] for i in gallery],
        probes=[known.probes[i] for i in probes],
        probe_person=[known.probe_person[i] for i in probes],
        strangers=[path for path in known.strangers if path not in names],
    )


def labels(pairs: Pairs) -> np.ndarray:
    """`same` of all pairs as bool [N]; for pairs read with `need_same`."""
    return np.array(pairs.same, dtype=bool)


def _filled(file: Path, line: int, column: str, value: str) -> None:
    if not value:
        raise OamlError(f"{file}, line {line}: {column} is empty; fill it in or remove the line")


def _need_images(file: Path, images: str | Path | ByName, used: dict[str, int]) -> None:
    missing: list[tuple[str, int]] = []
    if not isinstance(images, ByName) and not is_source(images):
        from oaml.templates.file import load, places

        held = places(load(images).paths)
        absent = (path for path in used if path not in held and person_name(path) not in held)
        missing = [(f"{path}: not in {images}", used[path]) for path in absent]
        remedy = "embed it too, remove the line, or write the paths that the file holds"
    else:
        source = images if isinstance(images, ByName) else ByName(images)
        remedy = "add it, remove the line, or check the folder of images"
        for path, line in used.items():
            if source.pictures is None:
                if reason := _absent(source.source, path):
                    missing.append((f"{shortened(str(source.source / path))}: {reason}", line))
            elif path not in source:
                remedy = "remove the line, or write the names that it holds"
                missing.append((f"{path}: not in {source.source}", line))
    if missing:
        what, line = missing[0]
        rest = [path.partition(": ")[0] for path, _ in missing[1:]]
        others = f" ({len(rest):,} more are missing: {few(rest, 9)})" if rest else ""
        raise OamlError(f"{what}, named in {file}, line {line}{others}; {remedy}")


def _absent(images: Path, path: str) -> str | None:
    """Why there is no image of this path; None where there is one."""
    try:
        return None if find(images, path).is_file() else "is no file"
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        return "no such image" if absent else f"can't be read ({error.strerror})"
