"""A file of int8 templates: one safetensors file with the faces' paths and the id of the model that made them.

Any reader of safetensors can open it. For N faces, embeddings of E numbers and C channels on h x w matched cells it holds
`embedding` int8 [N,E], `embedding_scale` float32 [N], `norm` float32 [N], `visibility` uint8 [N,1,h,w], `local` int8 [N,C,h,w],
`local_scale` float32 [N,h,w], `contributions` int8 [N,49,E], `contributions_scale` float32 [N,49], the fields of
`oaml.templates.quantised.QuantisedTemplates`, and `paths`, the UTF-8 bytes of a JSON list. The metadata name the format, the
model by its id and its name, the paths by their digest, and a SHA-256 of all of it. `docs/templates.md` says it in full.

Nobody but its owner may read it. It can be written in pieces and continued after a kill, in constant memory: until it is complete
it is called FILE.partial, has its final header and size, and eight more bytes at its end that count the faces written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oaml.errors import OamlError
from oaml.support.files import make_folder, need_utf8, sync, write_file
from oaml.support.names import person_name
from oaml.templates.quantised import QuantisedTemplates

if TYPE_CHECKING:
    from oaml.model import Model
    from oaml.template import Templates

FILE_FORMAT = "oaml templates 1"
DTYPES = {torch.float32: "F32", torch.int8: "I8", torch.uint8: "U8"}
"""Type of a tensor -> its name in safetensors."""
COUNTER_BYTES = 8  # of the counter at the end of a partial file
FACES_A_READ = 1000  # faces made float32 at a time
SEAL, UNSEALED = b'"sha256":"', b"0" * 64  # in the header: the digest of the file with zeros in its place


def model_id(model: Model) -> str:
    """16 hexadecimal digits, the same for models that make the same templates.

    Thresholds and the weights that only compare templates may change: what is stored stays of use, and the id stays the same.
    """
    config = model.config
    digest = hashlib.sha256(f"{config.net} {config.qaconv} {config.preprocessing} {config.flip}".encode())
    for name, values in sorted(model.state_dict().items()):
        if name.startswith(("net.", "matcher.adapter.")):
            digest.update(name.encode())
            digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TemplateFile:
    """What a file holds."""

    path: Path
    templates: QuantisedTemplates
    """Mapped from the file: read when used."""
    paths: list[str]
    """Of the images, one a face."""
    model: str
    """Id of the model, see `model_id`."""
    model_name: str
    """What the model was called when the file was written."""

    def need_model(self, model: Model) -> None:
        """Raise OamlError when another model made these templates: numbers of two models can't be compared."""
        if model_id(model) != self.model:
            raise OamlError(
                f"{self.path}: holds templates of another model ({self.model_name}, {self.model}), this one is "
                f"{model_id(model)}; embed the images with this model: oaml embed MODEL --images DIR --out FILE"
            )

    def part(self, rows: slice) -> QuantisedTemplates:
        """Faces that follow each other, through a mapping of their own: of a large file no more stays in memory than is used."""
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            names = [name for name in file.keys() if name != "paths"]  # noqa: SIM118
            return QuantisedTemplates.from_stored({name: file.get_slice(name)[rows] for name in names})

    def faces(self, model: Model, paths: Sequence[str]) -> Templates:
        """The templates of the listed images in float32, in this order; large fields lie in temporary files.

        Args:
            paths: one or more of the file's; another one is a KeyError.

        Raises:
            OamlError: another model made the file, or there is no room.
        """
        from oaml.inference import gathered

        self.need_model(model)
        place = places(self.paths)
        rows = torch.tensor([place.get(path, place.get(person_name(path), -1)) for path in paths])
        if (rows < 0).any():
            raise KeyError(paths[int((rows < 0).nonzero()[0])])
        return gathered((self.templates[part].dequantised() for part in rows.split(FACES_A_READ)), len(rows))


def places(paths: Sequence[str]) -> dict[str, int]:
    """Path -> its row, as it is written and with composed letters."""
    return {person_name(path): row for row, path in enumerate(paths)} | {
        p: row for row, p in enumerate(paths)
    }


def save(
    path: str | Path, templates: QuantisedTemplates, paths: list[str], model: str, model_name: str = ""
) -> Path:
    """Write templates that are in memory. After a failure no part of the file is there.

    Args:
        paths: of the images, one a face.
        model: id of the model, see `model_id`.
        model_name: what people call it, for messages.

    Raises:
        OamlError: the file can't be written.
    """
    layout = Layout(templates, paths, {"model": model, "model_name": model_name})

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(layout.header)
            layout.write(file.fileno(), 0, templates)
        _seal(temporary, layout)

    return write_file(path, write, private=True)


def load(path: str | Path) -> TemplateFile:
    """Read a file that `save` or `oaml embed` wrote.

    Raises:
        OamlError: missing, damaged, or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    need_utf8(path)
    if not path.is_file():
        begun = _partial(path).is_file()
        raise OamlError(
            f"{path}: no such file; "
            + ("it was begun, run the same `oaml embed` again to finish it" if begun else _REMEDY)
        )
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("format") != FILE_FORMAT:
                raise OamlError(f"{path}: is no file of templates of this version; {_REMEDY}")
            if "sha256" in facts and facts["sha256"] != _digest(
                path, path.stat().st_size
            ):  # files of older versions have none
                raise ValueError("its bytes aren't those that were written")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        paths = json.loads(bytes(tensors.pop("paths").numpy()))
        templates = QuantisedTemplates.from_stored(tensors)
        counts = {len(paths), *(len(values) for values in tensors.values())}
        if len(counts) > 1:
            raise ValueError(f"{sorted(counts)} faces")
        return TemplateFile(path, templates, paths, facts["model"], facts["model_name"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise OamlError(f"{path}: is damaged ({' '.join(str(error).split())}); {_REMEDY}") from error


_REMEDY = "write one with oaml embed MODEL --images DIR --out FILE"


class Layout:
    """Header of a file for one face a path, and where in the file every field begins.

    Args:
        like: templates of any number of faces, for the shapes of the fields.
        facts: strings for the metadata in the header.
    """

    def __init__(self, like: QuantisedTemplates, paths: list[str], facts: dict[str, str]) -> None:
        self.paths = torch.frombuffer(bytearray(json.dumps(paths).encode()), dtype=torch.uint8)
        self.count = len(paths)
        listed = hashlib.sha256(self.paths.numpy().tobytes()).hexdigest()[:16]
        entries: dict[str, Any] = {"__metadata__": {"format": FILE_FORMAT, "paths": listed, **facts}}
        entries["__metadata__"]["sha256"] = UNSEALED.decode()
        self.places: dict[str, tuple[int, int]] = {}  # where a field begins, and bytes of a face
        end = 0

        def add(name: str, tensor: Tensor, shape: list[int]) -> None:
            nonlocal end
            size = tensor.element_size() * torch.Size(shape).numel()
            entries[name] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": shape,
                "data_offsets": [end, end + size],
            }
            self.places[name] = end, size // self.count
            end += size

        for name, tensor in sorted(
            like.stored().items(), key=lambda pair: -pair[1].element_size()
        ):  # keeps floats aligned
            add(name, tensor, [self.count, *tensor.shape[1:]])
        add("paths", self.paths, [len(self.paths)])
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end

    def write(self, file: int, start: int, part: QuantisedTemplates) -> None:
        """Write faces from number `start` on into an open file, and with the first ones the paths."""
        for name, values in part.stored().items():
            begin, size = self.places[name]
            data = values.cpu().contiguous().numpy().tobytes()
            _write_all(file, data, len(self.header) + begin + start * size)
        if start == 0:
            begin, _ = self.places["paths"]
            _write_all(file, self.paths.numpy().tobytes(), len(self.header) + begin)


class PartialFile:
    """A file of templates that is written face by face in their order, and continued where it stopped.

    Args:
        path: the file to be; FILE.partial lies beside it until `finish`.
        layout: of all faces. A partial file that is there must have the same header.

    Raises:
        OamlError: the file was begun with another model or other images or options; no room for it.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.partial = _partial(path)
        if self.partial.is_file():
            self._check_same()
        else:
            self._begin()
        self._file = os.open(self.partial, os.O_RDWR)
        tail = os.pread(self._file, COUNTER_BYTES, layout.size)
        self.done = int.from_bytes(tail, "little")
        """Faces that have been written."""

    def write(self, part: QuantisedTemplates) -> None:
        """The next faces; on the disk when this returns."""
        try:
            self.layout.write(self._file, self.done, part)
            os.fsync(self._file)  # before the counter: it must not count what a failing machine lost
            self.done += len(part)
            _write_all(self._file, self.done.to_bytes(COUNTER_BYTES, "little"), self.layout.size)
        except OSError as error:
            raise OamlError(f"{self.partial}: could not be written ({error.strerror}); free space") from error

    def finish(self) -> None:
        """Rename the complete file to its final name."""
        if self.done != self.layout.count:
            raise ValueError(f"{self.done} faces written, expected {self.layout.count}")
        _seal(self.partial, self.layout)
        os.ftruncate(self._file, self.layout.size)
        os.fsync(self._file)
        self.close()
        os.replace(self.partial, self.path)
        sync(self.path.parent)

    def close(self) -> None:
        """Leave the partial file, to be continued another time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _begin(self) -> None:
        size = self.layout.size + COUNTER_BYTES
        try:
            make_folder(self.path.parent)
        except OSError as error:
            raise OamlError(f"{self.path}: could not be written ({error.strerror})") from error
        free = shutil.disk_usage(self.path.parent).free
        if free < size * 1.02:
            raise OamlError(
                f"{self.path}: takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free space or choose another place"
            )

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(self.layout.header)
                file.truncate(size)

        write_file(self.partial, write, private=True)

    def _check_same(self) -> None:
        if self.partial.stat().st_size in (
            self.layout.size,
            self.layout.size + COUNTER_BYTES,
        ):  # or all but renamed
            with self.partial.open("rb") as file:
                if _unsealed(file.read(len(self.layout.header))) == self.layout.header:
                    return
        begun, now = _facts_in(self.partial), _facts(self.layout.header)
        other = [
            name.replace("_", " ") for name in now if name != "sha256" and begun.get(name) != now[name]
        ] or ["size"]
        raise OamlError(
            f"{self.partial}: was begun for something else (differs in: {', '.join(other)}); run what began it to finish it, or "
            "delete it to begin anew"
        )


def _unsealed(header: bytes) -> bytes:
    """A header with zeros in the place of the digest; as it is where there is none."""
    start = header.find(SEAL) + len(SEAL)
    return header if start < len(SEAL) else header[:start] + UNSEALED + header[start + len(UNSEALED) :]


def _seal(path: Path, layout: Layout) -> None:
    """Put the digest of a complete file into its header."""
    with path.open("r+b") as file:
        file.seek(layout.header.index(SEAL) + len(SEAL))
        file.write(_digest(path, layout.size).encode())


def _digest(path: Path, size: int) -> str:
    """SHA-256 of so many bytes of a file, without the digest in its header."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = file.read(8)
        digest.update(length + _unsealed(file.read(min(int.from_bytes(length, "little"), size))))
        while part := file.read(min(1 << 20, size - file.tell())):
            digest.update(part)
    return digest.hexdigest()


def _partial(path: Path) -> Path:
    """What a file is called until it is complete."""
    return path.with_name(path.name + ".partial")


def _facts_in(path: Path) -> dict[str, str]:
    """The strings in the header of a file; none where there is no header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return _facts(length.to_bytes(8, "little") + file.read(min(length, 10**7)))
    except (OSError, ValueError, KeyError):
        return {}


def _facts(header: bytes) -> dict[str, str]:
    return json.loads(header[8:])["__metadata__"]


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:  # a write may stop short, at two gigabytes at the latest
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
