"""A gallery in two files that need no database: templates as `oaml embed` writes them, and whose they are in JSON beside it."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaml.errors import OamlError
from oaml.gallery.folder import Entry
from oaml.gallery.rows import Packing, table
from oaml.gallery.store import Store
from oaml.recognition.quality import Quality
from oaml.support.files import write_file
from oaml.templates.file import Layout, PartialFile, TemplateFile, load

if TYPE_CHECKING:
    import pyarrow as pa

EXPORT_FORMAT = "oaml gallery 1"
BATCH = 1000  # faces read or written at a time
GRADED = ("quality", "reasons")
"""What exports of older versions have not."""


def write(store: Store, packing: Packing, file: Path) -> Path:
    """Write FILE.safetensors and FILE.json; returns the former.

    Raises:
        OamlError: another suffix, an empty gallery, or no room.
    """
    _need_suffix(file)
    facts = store.facts
    faces: list[dict[str, Any]] = []
    graded = [name for name in GRADED if name in store.columns]  # galleries of older versions have none
    for batch in store.batches([*Entry._fields, "thumbnail", *graded], BATCH):
        for row in batch.to_pylist():
            picture = row["thumbnail"]
            faces.append({**row, "thumbnail": None if picture is None else b64encode(picture).decode()})
    if not faces:
        raise OamlError(f"{store.place}: nobody is enrolled, so there is nothing to export")
    paths = [_path(face) for face in faces]
    header = {"model": facts["model"], "model_name": facts["model_name"]}

    def write_templates(temporary: Path) -> None:
        out: PartialFile | None = None
        for batch in store.batches(["template"], BATCH):
            part = packing.unpack_column(batch["template"])
            out = out or PartialFile(temporary, Layout(part, paths, header))
            out.write(part)
        assert out is not None
        out.finish()

    write_file(file, write_templates, private=True)
    text = json.dumps({"format": EXPORT_FORMAT, **header, "sha256": _digest(faces), "faces": faces}, indent=1)
    write_file(file.with_suffix(".json"), lambda at: at.write_text(text, encoding="utf-8"), private=True)
    return file


@dataclass(frozen=True)
class Exported:
    """What an export holds."""

    templates: TemplateFile
    faces: list[dict[str, Any]]
    packing: Packing

    def tables(self, known: set[tuple[str, str]]) -> Iterator[pa.Table]:
        """Rows for a gallery, without those known already by person and image."""
        import torch

        new = [i for i, face in enumerate(self.faces) if (face["person"], face["image"]) not in known]
        for start in range(0, len(new), BATCH):
            rows = new[start : start + BATCH]
            faces = [self.faces[i] for i in rows]
            entries = [Entry(*(face[name] for name in Entry._fields)) for face in faces]
            pictures = [None if f["thumbnail"] is None else b64decode(f["thumbnail"]) for f in faces]
            grades = [Quality.stored(*(face.get(name) for name in GRADED)) for face in faces]
            yield table(entries, self.templates.templates[torch.tensor(rows)], pictures, self.packing, grades)


def read(file: Path) -> Exported:
    """What `write` wrote.

    Raises:
        OamlError: missing, damaged, or two files that don't belong together.
    """
    _need_suffix(file)
    templates, listed = load(file), file.with_suffix(".json")
    try:
        said = json.loads(listed.read_text(encoding="utf-8"))
        faces = said["faces"]
        same = said["format"] == EXPORT_FORMAT and templates.paths == [_path(face) for face in faces]
        changed = (
            said.get("sha256", digest := _digest(faces)) != digest
        )  # exports of older versions have none
        complete = all(set(face) - {*GRADED} == {*Entry._fields, "thumbnail"} for face in faces)
    except FileNotFoundError:
        raise OamlError(
            f"{listed}: no such file; it belongs beside {file}, export the gallery again"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OamlError(f"{listed}: is damaged ({error!r}); export the gallery again") from error
    if not (same and complete):
        raise OamlError(f"{listed}: does not belong to {file} beside it; export the gallery again")
    if changed:
        raise OamlError(f"{listed}: is damaged (other faces than were written); export the gallery again")
    return Exported(templates, faces, Packing.of(templates.templates[:1]))


def _digest(faces: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(faces, sort_keys=True).encode()).hexdigest()


def _path(face: dict[str, Any]) -> str:
    """What the file of templates calls a face."""
    return f"{face['person']}/{face['image']}"


def _need_suffix(file: Path) -> None:
    if file.suffix != ".safetensors":
        raise OamlError(f"{file}: an export is a file such as gallery.safetensors; give a name that ends so")
