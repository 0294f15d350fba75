"""Reading whatever `torch.save` or safetensors wrote into tensors by name, without running what a pickle says.

A training checkpoint is a tree: weights below `state_dict`, `model` or `backbone`, beside optimisers, hyper-parameters and other
things. All its tensors are read under their whole path, such as `state_dict.module.conv1.weight`; which of them are a backbone's is
for `oaml.weights` to find out.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
import torch._utils as torch_utils
from torch import Tensor

from oaml.errors import OamlError

DEEPEST = 16
"""Levels of a checkpoint that are looked at; a pickle can hold a dictionary that contains itself."""
OF_MODULES = ("", "_modules", "_parameters", "_buffers")
"""Where a network that was pickled as a whole has its parts; they are no part of a parameter's name."""
REMEDY = "save the network's state_dict() with torch.save or as .safetensors"


@dataclass
class Tensors:
    """What a file holds."""

    by_name: dict[str, Tensor] = field(default_factory=dict)
    """The tensors, on the CPU, by their whole path with dots."""
    others: set[str] = field(default_factory=set)
    """Paths of what is no dense tensor with all its numbers: settings, stand-ins, sparse and quantised tensors."""


def read_tensors(path: str | Path) -> Tensors:
    """All tensors of a `.safetensors` file or of what `torch.save` wrote, told apart by their first bytes.

    Pickled objects other than tensors are never created: an inert stand-in takes the place of whatever the pickle names, so
    hyper-parameters of any class do no harm.

    Raises:
        OamlError: no such file, unreadable, TorchScript, or no tensors by name in it.
    """
    path = Path(path)
    content = _read_safetensors(path) if first_bytes(path)[8:9] == b"{" else _read_pickle(path)
    found = Tensors()
    _collect({"": content}, "", found, DEEPEST)
    found.others.discard("")
    if not found.by_name:
        named = sorted(found.others)[:1]
        what = f"its entry {named[0][:80]!r} is not a tensor by name; " if named else ""
        raise OamlError(f"{path}: is not a state dict of tensors by name; {what}{REMEDY}")
    return found


def first_bytes(path: Path) -> bytes:
    """The first 16 bytes of a file.

    Raises:
        OamlError: there is none, or it can't be read.
    """
    if not path.is_file():
        raise OamlError(f"{path}: no such file of weights")
    try:
        with path.open("rb") as opened:
            return opened.read(16)
    except OSError as error:
        raise unreadable(path, error) from error


def is_onnx(first: bytes) -> bool:
    """Whether a file that begins so is a protocol buffer whose first field is a small number: the version of ONNX's format."""
    return first[:1] == b"\x08" and first[1:2] < b"\x20"


def _collect(content: Mapping[Any, Any], prefix: str, found: Tensors, levels: int) -> None:
    for key, value in content.items():
        if isinstance(value, _StandIn) and value.content:
            value = value.content
        if isinstance(value, Mapping):
            if levels:
                _collect(value, prefix if key in OF_MODULES else f"{prefix}{key}.", found, levels - 1)
        elif isinstance(key, str):
            if isinstance(value, Tensor) and key.isprintable() and _is_plain(value):
                found.by_name[prefix + key] = value.detach()
            else:
                found.others.add("".join(c if c.isprintable() else "?" for c in prefix + key))


def _is_plain(value: Tensor) -> bool:
    """A dense tensor with content; a pickle can hold sparse, quantised and meta ones as well, and a number shown as many."""
    return (
        value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error


def _read_pickle(path: Path) -> object:
    if _is_torchscript(path):
        raise OamlError(
            f"{path}: is a TorchScript archive, which holds code; open it with torch.jit.load where you trust it and {REMEDY}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Hyper-parameters of an unknown class, most likely. What PyTorch reads by other means than the unpickler
        # below (tar archives) never gets here: it was refused with another error.
        pass
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise unreadable(path, error) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle)
    except Exception as error:
        raise unreadable(path, error) from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
    ):  # no archive, or a damaged one: the reader says what is wrong
        return False


def unreadable(path: Path, error: Exception) -> OamlError:
    """The error for a file that a reader gave up on."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return OamlError(f"{path}: is not a readable file of weights ({reason}); download or save it again")


class _StandIn:
    """Takes the place of whatever class or function a pickle names: does nothing, and keeps what a dictionary or object holds."""

    content: dict[object, object]

    def __new__(cls, *args: object, **kwargs: object) -> _StandIn:
        made = super().__new__(cls)
        made.content = {}
        return made

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if type(state) is dict:  # the attributes of an object: of a network, its parameters and modules
            self.content.update(state)

    def __setitem__(self, key: object, value: object) -> None:
        self.content[key] = value

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...


class _Rebuild(str):
    """A function of `torch._utils` by name. A pickle can set attributes of what it names; this has none."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Tensor:
        return getattr(torch_utils, self)(*args)


# The only names in a pickle that are looked up: what tensors are made of. PyTorch's reader makes storage types itself.
ALLOWED: dict[tuple[str, str], Any] = {("collections", "OrderedDict"): OrderedDict}
for _name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
    ALLOWED["torch._utils", _name] = _Rebuild(_name)


class _InertUnpickler(pickle.Unpickler):
    """Looks names up in `ALLOWED` and nowhere else: nothing else that a file names is imported or called."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return ALLOWED.get((module_name, global_name), _StandIn)


class _InertPickle:
    """The part of the module `pickle` that `torch.load` uses of its `pickle_module`."""

    Unpickler = _InertUnpickler

    @staticmethod
    def load(file: IO[bytes], **options: Any) -> Any:
        return _InertUnpickler(file, **options).load()
