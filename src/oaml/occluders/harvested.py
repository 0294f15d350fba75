"""A folder of occluders that were cut out of photographs: `oaml occlude --harvest` writes it, `--occluders_from` reads it.

`occluders.json` lists them, `cutouts/00000.png` and so on are RGBA pictures of 112x112 on the template of aligned faces. The
photographs are divided by the hash of their names, as people are: what is fitted, in style a, wears occluders of one part, and what
is judged, in style b, those of the other, so that nothing is judged on an occluder that it has seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from oaml.errors import OamlError
from oaml.occluders.canvas import Style
from oaml.occluders.cutout import Cutout, Light
from oaml.support.files import FACE_SIZE, check_empty, write_folder
from oaml.support.images import read_cutout
from oaml.support.names import readable

HARVESTED = "harvested"
"""The kind of occluder that comes from such a folder."""
MANIFEST = "occluders.json"
FORMAT = 1
Part = Literal["train", "judge"]
PARTS: dict[Style, Part] = {"a": "train", "b": "judge"}
"""Style that is asked for -> the part of the photographs whose occluders are worn."""


def part_of(photograph: str) -> Part:
    """7 of 10 photographs give occluders to train on, 3 to judge on: SHA-1 of the name modulo 10, as people are divided."""
    return "train" if int(hashlib.sha1(photograph.encode()).hexdigest(), 16) % 10 < 7 else "judge"


class Found(NamedTuple):
    """An occluder and where it comes from."""

    cutout: Cutout
    source: str
    """The aligned face that it was cut out of, as a path below its folder."""
    photograph: str
    """What the part depends on: the same for all faces of one photograph."""
    kind: str
    """As the folder that the image lies in calls it; empty where it lies in none."""
    visibility: Literal["mask", "predicted"]
    """Where the outline comes from."""


@dataclass(frozen=True)
class Harvested:
    """The occluders of a folder."""

    folder: Path
    digest: str
    """SHA-256 of all its files."""
    parts: dict[Part, list[Cutout]]

    def of(self, style: Style) -> list[Cutout]:
        """The occluders that a style wears.

        Raises:
            OamlError: there are none.
        """
        part = PARTS[style]
        if not self.parts[part]:
            raise OamlError(
                f"{self.folder}: holds no occluder to {part} on, which style {style} wears; harvest more photographs"
            )
        return self.parts[part]

    def cutouts(self) -> list[Cutout]:
        """All of them."""
        return [cutout for part in PARTS.values() for cutout in self.parts[part]]

    def described(self) -> str:
        """For the config of a model: how many there are, of which folder, with the beginning of their digest."""
        train, judge = (len(self.parts[part]) for part in PARTS.values())
        return f"{train} of {train + judge} occluders of {readable(self.folder.resolve().name)}, sha256 {self.digest[:12]}"


def save_harvested(found: Sequence[Found], out: Path) -> None:
    """Write a folder of occluders, whole or not at all.

    Raises:
        OamlError: nothing to write, `out` holds something already, or there is no room.
    """
    check_empty(out)
    if not found:
        raise OamlError(f"{out}: nothing to write, for no occluder was found")

    def write(folder: Path) -> None:
        (folder / "cutouts").mkdir()
        listed = []
        for number, one in enumerate(found):
            file = f"cutouts/{number:05d}.png"
            picture = cv2.imencode(".png", cv2.cvtColor(one.cutout.rgba, cv2.COLOR_RGBA2BGRA))[1]
            (folder / file).write_bytes(picture.tobytes())
            light = one.cutout.light
            listed.append(
                {
                    "file": file,
                    "source": one.source,
                    "kind": one.kind,
                    "visibility": one.visibility,
                    "hidden": round(one.cutout.hidden, 4),
                    "part": part_of(one.photograph),
                    "light": None if light is None else [*light.mean, light.contrast],
                }
            )
        text = json.dumps({"format": FORMAT, "occluders": listed}, indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")

    write_folder(out, write)


def load_harvested(folder: str | Path) -> Harvested:
    """Read a folder of occluders.

    Raises:
        OamlError: no such folder, another layout, or a picture that is missing or of another kind.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise OamlError(
            f"{folder}: is no folder of occluders (it has no {MANIFEST}); make one with oaml occlude --harvest"
        )
    try:
        content = path.read_bytes()
        stored = json.loads(content)
        if stored["format"] != FORMAT:
            raise OamlError(
                f"{path}: has format {stored['format']}, and {FORMAT} is read here; harvest the photographs again"
            )
        listed = [_entry(entry) for entry in stored["occluders"]]
    except (ValueError, KeyError, TypeError) as error:
        raise OamlError(f"{path}: is damaged ({error!r}); harvest the photographs again") from error
    digest = hashlib.sha256(content)
    parts: dict[Part, list[Cutout]] = {"train": [], "judge": []}
    for file, part, light in listed:
        rgba = read_cutout(folder / file)
        if rgba.shape != (FACE_SIZE, FACE_SIZE, 4):
            raise OamlError(
                f"{folder / file}: is {rgba.shape[1]}x{rgba.shape[0]}, an occluder is {FACE_SIZE}x{FACE_SIZE}; harvest again"
            )
        digest.update(rgba.tobytes())
        parts[part].append(Cutout(rgba, light))
    if not listed:
        raise OamlError(f"{path}: lists no occluder; harvest the photographs again")
    return Harvested(folder, digest.hexdigest(), parts)


def _entry(entry: dict[str, Any]) -> tuple[str, Part, Light | None]:
    """File, part and light of an entry of the manifest. Raises ValueError, KeyError or TypeError where it is none."""
    file, part, light = entry["file"], entry["part"], entry["light"]
    if part not in PARTS.values() or Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError(f"{file}, {part}")
    if light is None:
        return file, part, None
    red, green, blue, contrast = (float(value) for value in light)
    if not np.isfinite([red, green, blue, contrast]).all():
        raise ValueError(f"light of {file}")
    return file, part, Light((red, green, blue), contrast)
