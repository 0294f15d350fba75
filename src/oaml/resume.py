"""Going on with a training: whether its settings are still those it began with, and whether its checkpoint is whole.

`OUT/settings.json` holds every setting, the people trained on and the digest of the weights that it started from. When a training
goes on, a setting that differs either applies from there on (`FREE`, and folders that have moved) or is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oaml import __version__
from oaml.errors import OamlError, few
from oaml.support.files import write_file
from oaml.support.names import printable
from oaml.weights import need_numbers

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FREE = frozenset(
    {
        "out",
        "resume",
        "check",
        "dry_run",
        "data.resize",
        "data.skip_damaged",
        "data.unlabelled",
        "data.workers",
        "steps",
        "optimiser.lr",
        "optimiser.backbone_lr",
        "optimiser.weight_decay",
        "optimiser.warmup",
        "optimiser.schedule",
        "optimiser.milestones",
        "optimiser.clip",
        "accelerator",
        "validate_every",
        "picture_every",
        "gradient_every",
        "checkpoint_every",
        "log_every",
        "licence",
    }
)
"""Settings that may be others when a training goes on, and then apply from there on."""
PLACES = frozenset(
    {"backbone", "data.people", "data.masks", "data.clean", "data.mask_pictures", "data.occluders_from"}
)
"""Settings that say where something lies. It may have moved; there must be as many, the same people and the same first weights."""
REMEDY = "train into another --out"


@dataclass(frozen=True)
class Settings:
    """What a training was asked to do, as settings.json keeps it."""

    values: dict[str, Any]
    """Setting, those of nested groups as `data.people` -> its value, as JSON has it."""
    people: dict[str, int]
    """Person trained on -> number of images, in the order of the classes."""
    first_weights: str | None
    """SHA-256 of the file of weights that it started from."""

    @classmethod
    def of(cls, config: DataclassInstance, people: dict[str, int]) -> Settings:
        """Those of a configuration, whose `backbone` is a file of weights, a model folder or None."""
        values = flatten(asdict(config))
        backbone = values["backbone"]
        return cls(values, people, None if backbone is None else _digest(Path(backbone)))

    @classmethod
    def read(cls, out: Path) -> Settings | None:
        """Those of the training in a folder; None where an older version left none.

        Raises:
            OamlError: the file is damaged.
        """
        path = out / "settings.json"
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            found = cls(dict(stored["settings"]), dict(stored["people"]), stored["first_weights"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise OamlError(
                f"{path}: is damaged ({error}); remove it to go on without comparing settings"
            ) from error
        return found

    def write(self, out: Path) -> None:
        """Keep them in a folder, in place of those that are there."""
        content = {
            "oaml": __version__,
            "settings": self.values,
            "first_weights": self.first_weights,
            "people": self.people,
        }
        text = json.dumps(content, indent=1) + "\n"
        write_file(out / "settings.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def changed_from(self, before: Settings) -> tuple[list[str], list[str]]:
        """What differs and is refused, and what differs and applies, each as `seed was 0 and is 1`.

        A setting that an older version did not have is not compared.
        """
        refused, applied = [], []
        for name, value in self.values.items():
            old = before.values.get(name, value)
            if old == value or name in ("out", "resume", "check"):
                continue
            change = f"{name} was {_shown(old)} and is {_shown(value)}"
            moved = name in PLACES and _count(old) == _count(value)
            if name == "backbone" and moved:
                moved = self.first_weights == before.first_weights
                change += "" if moved else ", which holds other weights"
            (applied if moved or name in FREE else refused).append(change)
        if list(before.people) != list(self.people):
            refused.append(_other_people(before.people, self.people))
        elif (old := sum(before.people.values())) != (now := sum(self.people.values())):
            applied.append(f"the people had {old:,} images and have {now:,}")
        return refused, applied


def compare(before: Settings, now: Settings, out: Path) -> list[str]:
    """What applies from here on, each as `steps was 100 and is 200`.

    Raises:
        OamlError: something differs that can't.
    """
    refused, applied = now.changed_from(before)
    if refused:
        line = f"{out}: can't go on with other settings: {few(refused, 10)}; give the old ones, or {REMEDY}"
        raise OamlError(printable(line))
    return applied


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, `data.people` for `people` in `data`, with the types of JSON."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _plain(value)
    return flat


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `oaml train` wrote into a checkpoint, checked against its own checksums; tensors stay on the disk until they are used.

    Raises:
        OamlError: it is truncated, damaged or something else, or holds numbers that are not finite.
    """
    remedy = f"{REMEDY}, for which a model in best/ or last/ beside it can be the --backbone"
    try:
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{record} has another checksum")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise OamlError(f"{path}: is truncated or damaged ({reason}); {remedy}") from error
    except pickle.UnpicklingError:
        content = None
    wanted = {"state_dict", "optimizer_states", "lr_schedulers", "global_step", "batches_done", "best"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise OamlError(f"{path}: is no checkpoint of oaml train; {REMEDY}")
    need_numbers(path, content["state_dict"], infinite=["model.fusion.lift"])  # until it has been fitted
    for optimiser in content["optimizer_states"]:
        for number, entries in optimiser["state"].items():
            moments = {
                f"{name} of parameter {number}": x for name, x in entries.items() if isinstance(x, Tensor)
            }
            need_numbers(path, moments)
    return content


def check_fits(
    path: Path, checkpoint: Mapping[str, Any], state: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Raise OamlError where a checkpoint belongs to another network, other people or another optimiser.

    Settings tell this first; where an older version left none, this is what there is.

    Args:
        path: what messages call the checkpoint.
        checkpoint: as `read_checkpoint` gives it.
        state: of the network that is to go on.
        groups: of its optimiser, as its state_dict has them.
    """
    stored = checkpoint["state_dict"]
    faults = [f"has no {name}" for name in state if name not in stored]
    faults += [f"has {name}, which is unknown" for name in stored if name not in state]
    for name in (name for name in state if name in stored and state[name].shape != stored[name].shape):
        if name == "head.kernel":
            faults.append(f"knows {stored[name].shape[1]} people, {state[name].shape[1]} train now")
        else:
            faults.append(f"has {name} {list(stored[name].shape)} instead of {list(state[name].shape)}")
    if not faults:
        kept = [group for optimiser in checkpoint["optimizer_states"] for group in optimiser["param_groups"]]
        if [(group.keys(), len(group["params"])) for group in kept] != [
            (group.keys(), len(group["params"])) for group in groups
        ]:
            faults.append("was made by another optimiser")
    if faults:
        raise OamlError(
            f"{path}: {few(faults, 3)}; give the settings that the training began with, or {REMEDY}"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(x) for x in value] if isinstance(value, list | tuple) else value


def _count(place: str | list[str] | None) -> int:
    return len(place) if isinstance(place, list) else int(place is not None)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _other_people(before: dict[str, int], now: dict[str, int]) -> str:
    new, gone = ([name for name in a if name not in b] for a, b in ((now, before), (before, now)))
    named = [f"{what}: {few(names, 3)}" for what, names in (("new", new), ("gone", gone)) if names]
    return (
        f"{len(before):,} people trained and {len(now):,} do now ({', '.join(named) or 'in another order'})"
    )


def _digest(backbone: Path) -> str:
    """SHA-256 of a file of weights, or of the files of a model folder with their names."""
    digest = hashlib.sha256()
    for path in sorted(backbone.iterdir()) if backbone.is_dir() else [backbone]:
        if path.is_file():
            digest.update(b"" if path == backbone else path.name.encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return digest.hexdigest()
