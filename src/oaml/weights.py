"""Reading published weights into the networks of `oaml.net`: recognised by what they hold, and strictly.

Names of files say nothing, and neither does what a trainer put around and before the names of the parameters (`state_dict`,
`module.`, `_orig_mod.` and so on): a family of `oaml.families` is recognised by a parameter that it alone has, wherever that lies,
and what precedes its name there precedes the names of all others. What lies beside the backbone is set aside and named. Inside it
nothing may be missing, unknown or of another shape.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from oaml.checkpoint import Tensors, first_bytes, is_onnx, read_tensors
from oaml.errors import OamlError, few
from oaml.families import FAMILIES, Family, Preprocessing
from oaml.net import MOST_NUMBERS, Architecture, Backbone, NetConfig, OcclusionHead, build_backbone

AVERAGES = {"ema", "swa", "averaged", "shadow"}
"""Words that trainers put before the names of averaged weights."""


@dataclass
class LoadedBackbone:
    """A backbone in eval mode with published weights, and what has to be known to use it."""

    backbone: Backbone
    config: NetConfig
    preprocessing: Preprocessing
    source: str
    """File name and family, for the description of a model."""
    occlusion_head: dict[str, Tensor] | None = None
    """Weights of the occlusion head that the file has beside the backbone, and `config.stage` is the map that it reads."""
    set_aside: list[str] = field(default_factory=list)
    """What else there is, such as `head (3 tensors)`; it is not used."""


def load_backbone(
    path: str | Path,
    architecture: str | None = None,
    preprocessing: Preprocessing | None = None,
    ema: bool = False,
) -> LoadedBackbone:
    """Read published weights into a backbone.

    Args:
        path: what `torch.save` or safetensors wrote: a state dict, or a checkpoint that holds one anywhere. A published folder
            (CVLface's, or a copy of a hub repository). Or an ONNX file.
        architecture: what the file has to hold; by default whatever the parameters say.
        preprocessing: replaces the one that the published weights of this family were trained with, and that of a `model.yaml`.
        ema: take the averaged weights (EMA) of a checkpoint that holds both.

    Raises:
        OamlError: no such file, unreadable, not weights of a known family, or a missing, unknown or misshapen
            parameter.
    """
    path = Path(path)
    file = find_weights(path)
    if is_onnx(first_bytes(file)):
        return _from_onnx(path, file, architecture, preprocessing)
    found = read_tensors(file)
    family, prefix = _recognise(path, found, ema)
    weights = {key.removeprefix(prefix): x for key, x in found.by_name.items() if key.startswith(prefix)}
    network = architecture or family.nearest(weights)
    if network not in family.sizes:
        raise OamlError(
            f"{path}: holds {family.title} weights, not {network}; name another file or architecture"
        )
    incomplete = f"{path}: is not a complete {network} ({family.title})"
    _need_tensors(path, found, [prefix + family.embedding])
    size = _embedding_size(incomplete, prefix, family.embedding, weights)
    config = NetConfig(cast(Architecture, network), size, dropout=family.dropout)
    ours = parameters(config)
    theirs = family.published(network, ours)
    inside = {name.partition(".")[0] for name in theirs.values()}
    expected = set(theirs.values())
    _need_tensors(path, found, [prefix + name for name in theirs.values()])
    missing = [prefix + name for name in theirs.values() if name not in weights and not counts(name)]
    unknown = [prefix + name for name in weights if name not in expected and name.partition(".")[0] in inside]
    misshapen = [
        f"{prefix}{name} {list(weights[name].shape)} instead of {list(ours[key].shape)}"
        for key, name in theirs.items()
        if name in weights and not _fits(weights[name], ours[key])
    ]
    faults = [("missing", missing), ("unknown", unknown), ("of another shape", misshapen)]
    if any(names for _, names in faults):
        listed = "; ".join(f"{what}: {few(names)}" for what, names in faults if names)
        raise OamlError(f"{incomplete}; {listed}; use the published file")
    chosen = {
        key: weights[name].view(ours[key].shape) if name in weights else torch.tensor(0)
        for key, name in theirs.items()
    }
    backbone = filled(path, config, chosen)
    head = _occlusion_head(path, backbone, weights)
    if head is not None:
        config.stage = 4 if head["conv1.weight"].shape[1] == backbone.channels[4] else 3
    used = {prefix + name for name in expected}
    aside = [
        name
        for name in found.by_name
        if name not in used and not (head is not None and name.startswith(f"{prefix}occlusion_head."))
    ]
    return LoadedBackbone(
        backbone,
        config,
        preprocessing or _stated(file, family.preprocessing),
        f"{path.name} ({family.title})",
        head,
        _groups(prefix, aside),
    )


def _from_onnx(
    path: Path, file: Path, architecture: str | None, preprocessing: Preprocessing | None
) -> LoadedBackbone:
    from oaml.onnx_weights import read_onnx

    backbone, config = read_onnx(file)
    if architecture not in (None, config.architecture):
        raise OamlError(
            f"{path}: holds {config.architecture}, not {architecture}; name another file or architecture"
        )
    family = next(family for family in FAMILIES if config.architecture in family.sizes)
    feed = preprocessing or _stated(file, family.preprocessing)
    return LoadedBackbone(backbone, config, feed, f"{path.name} ({family.title}, ONNX)")


def _need_tensors(path: Path, found: Tensors, names: Iterable[str]) -> None:
    for name in names:
        if name in found.others:
            raise OamlError(f"{path}: entry {name!r} is not a tensor by name; use the published file")


def parameters(config: NetConfig) -> dict[str, Tensor]:
    """Our parameters and buffers, shapes alone: a file must not have memory allocated by what it says of itself."""
    with torch.device("meta"):
        return build_backbone(config).state_dict()


def filled(path: Path, config: NetConfig, weights: Mapping[str, Tensor]) -> Backbone:
    """A backbone in eval mode with these weights, in float32, after they were found to be finite numbers.

    Raises:
        OamlError: they aren't.
    """
    need_numbers(path, weights)
    exact = {key: x if counts(key) else _single(x) for key, x in weights.items()}
    need_numbers(path, exact)  # of float64 some may be too large now
    backbone = build_backbone(config).eval()
    backbone.load_state_dict(exact)
    return backbone


def _single(x: Tensor) -> Tensor:
    """In float32. Numbers below its normal range become 0: a published IR-101 has 200,000 of them, which processors multiply a
    hundred times slower, and no embedding changes by more than 1e-7."""
    x = x.float()
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, 0, x)


def counts(name: str) -> bool:
    """Whether a parameter is the counter of a batch normalisation, which inference doesn't read and some files leave out."""
    return name.endswith("num_batches_tracked")


def _fits(theirs: Tensor, ours: Tensor) -> bool:
    """The same shape; a linear layer serves as a 1x1 convolution."""
    return theirs.shape == ours.shape or (*theirs.shape, 1, 1) == tuple(ours.shape)


def need_numbers(path: str | Path, state: Mapping[str, Tensor], infinite: Collection[str] = ()) -> None:
    """Raise OamlError for weights that are no real numbers, or not finite.

    Args:
        infinite: names that may hold infinity.
    """
    for name, values in state.items():
        counter = name.endswith("num_batches_tracked")
        if not (values.is_floating_point() or counter):
            raise OamlError(
                f"{path}: {name} holds {values.dtype}, weights are floating-point numbers; save the network unquantised"
            )
        bad = values.isnan() if name in infinite else ~values.isfinite()
        if bad.any():
            raise OamlError(
                f"{path}: {name} holds {int(bad.sum())} numbers that are not finite; its training diverged or the file is damaged, "
                "use another one"
            )


def find_weights(path: Path) -> Path:
    """The file of weights in a published folder; a file is its own.

    Raises:
        OamlError: the folder holds none.
    """
    if not path.is_dir():
        return path
    known = ("pretrained_model/model.pt", "model.safetensors", "model.pt", "pytorch_model.bin")
    for name in known:
        if (path / name).is_file():
            return path / name
    raise OamlError(f"{path}: is a folder without {', '.join(known)}; name the file of weights in it")


def _stated(file: Path, family: Preprocessing) -> Preprocessing:
    """The family's preprocessing with the colour order that a file beside the weights states: a `model.yaml` or `config.json` of
    CVLface, or what `oaml download` writes.

    Raises:
        OamlError: it states something else, or can't be read.
    """
    from yaml import YAMLError, safe_load

    for beside in (f"{file.name}.yaml", "model.yaml", "pretrained_model/model.yaml", "config.json"):
        stating = file.parent / beside
        if not stating.is_file():
            continue
        try:
            text = stating.read_text(encoding="utf-8")
            content = json.loads(text) if stating.suffix == ".json" else safe_load(text)
        except (OSError, ValueError, YAMLError, RecursionError) as error:
            raise OamlError(
                f"{stating}: can't be read ({type(error).__name__}), and it states the colour order of the weights; copy it again"
            ) from error
        for part in (content, content.get("conf") if isinstance(content, dict) else None):
            if isinstance(part, dict) and "color_space" in part:
                if part["color_space"] not in ("RGB", "BGR"):
                    raise OamlError(
                        f"{stating}: color_space is {str(part['color_space'])[:40]!r}, neither RGB nor BGR; copy it again"
                    )
                return Preprocessing(part["color_space"], family.mean, family.std)
    return family


def _recognise(path: Path, found: Tensors, ema: bool) -> tuple[Family, str]:
    """The family of the backbone that is asked for, and what precedes the names of its parameters."""
    places = [
        (family, name.removesuffix(family.sign))
        for family in FAMILIES
        for name in found.by_name
        if name == family.sign or name.endswith(f".{family.sign}")
    ]
    if not places:
        raise _nothing(path, list(found.by_name))
    averaged = [place for place in places if _is_average(place[1])]
    if ema and not averaged:
        raise OamlError(f"{path}: holds no averaged weights (EMA); leave out --ema")
    plain = [place for place in places if place not in averaged]
    chosen = averaged if ema or not plain else plain
    if len(chosen) > 1:
        named = ", ".join(repr(prefix) for _, prefix in chosen)
        raise OamlError(
            f"{path}: holds {len(chosen)} backbones, whose parameters begin with {named}; save the one that you want alone"
        )
    return chosen[0]


def _is_average(prefix: str) -> bool:
    return not AVERAGES.isdisjoint(re.split(r"[._-]", prefix.lower()))


def _nothing(path: Path, names: list[str]) -> OamlError:
    """The error for weights of no known family: what the architecture with most names in common lacks and doesn't know."""
    suffixes = {name[place:] for name in names for place in _starts(name)}

    def expected(family: Family, architecture: str) -> list[str]:
        ours = parameters(NetConfig(cast(Architecture, architecture)))
        return [name for name in family.published(architecture, ours).values() if not counts(name)]

    def shared(family: Family, architecture: str) -> float:
        theirs = expected(family, architecture)
        return sum(name in suffixes for name in theirs) / len(theirs)

    family = max(FAMILIES, key=lambda family: shared(family, next(iter(family.sizes))))
    nearest = max(family.sizes, key=lambda architecture: shared(family, architecture))
    theirs = dict.fromkeys(expected(family, nearest))
    missing = [name for name in theirs if name not in suffixes]
    unexpected = [name for name in names if not any(name[place:] in theirs for place in _starts(name))]
    known = ", ".join(family.title for family in FAMILIES)
    return OamlError(
        f"{path}: holds no known backbone; nearest is {nearest} ({family.title}); missing: {few(missing)}; "
        f"unexpected: {few(unexpected)}; recognised are {known}"
    )


def _starts(name: str) -> list[int]:
    """Where the parts of a dotted name begin."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _embedding_size(incomplete: str, prefix: str, name: str, weights: Mapping[str, Tensor]) -> int:
    size = weights[name].shape[:1] if name in weights else ()
    if not size or size[0] < 1:
        raise OamlError(f"{incomplete}; missing: {prefix}{name}; use the published file")
    if size[0] > MOST_NUMBERS:
        raise OamlError(f"{incomplete}; an embedding of {size[0]:,} numbers; use the published file")
    return size[0]


def _occlusion_head(
    path: Path, backbone: Backbone, weights: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """The occlusion head beside a backbone, under our names; None where there is none that reads a map of this backbone."""
    begin = "occlusion_head."
    found = {
        key.removeprefix(begin).replace("bn1.", "bn."): x
        for key, x in weights.items()
        if key.startswith(begin)
    }
    for channels in backbone.channels.values():
        with torch.device("meta"):
            expected = OcclusionHead(channels).state_dict()
        if "bn.num_batches_tracked" not in found:
            found["bn.num_batches_tracked"] = torch.tensor(0)
        if {key: x.shape for key, x in found.items()} == {key: x.shape for key, x in expected.items()}:
            need_numbers(path, found)
            return {key: x if counts(key) else _single(x) for key, x in found.items()}
    return None


def _groups(prefix: str, names: Iterable[str]) -> list[str]:
    """Tensors beside the backbone, by the part of their name that first differs from its prefix: `head (3 tensors)`."""
    own = prefix.split(".")[:-1]
    groups: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        same = 0
        while same < min(len(own), len(parts) - 1) and own[same] == parts[same]:
            same += 1
        groups[".".join(parts[: same + 1])] += 1
    return [f"{name} ({count} tensor{'s' if count > 1 else ''})" for name, count in groups.items()]
