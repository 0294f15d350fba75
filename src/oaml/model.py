"""A model: network, matchers and preprocessing, in a folder of config.json + model.safetensors (or a hub repository)."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from oaml.card import card_text
from oaml.errors import OamlError, few
from oaml.joint import Compared, Fusion, Joint
from oaml.kernels import Precision
from oaml.kernels.best_matches import spread
from oaml.net import FaceOutput, Net, NetConfig
from oaml.qaconv import QAConv, QAConvConfig
from oaml.support.files import write_folder
from oaml.template import Scores, Templates
from oaml.weights import Preprocessing, load_backbone, need_numbers

BLOCK_PROBES, BLOCK_GALLERY = 64, 512  # faces that a thread compares at a time in fused_above()
LISTED_PAIRS = 256  # that a thread compares at a time in compare_listed()
CONFIG_FORMAT = 5  # of config.json; raised when an older reader would misread it
READABLE = (3, CONFIG_FORMAT)  # 3 knows no traces of what was done to pictures


TYPE_NAMES = {bool: "true or false", int: "whole number", str: "text"}


@dataclass(frozen=True)
class Evidence:
    """What stands behind a threshold: what it accepts of the impostor pairs that it was fitted on."""

    pairs: int
    people: int
    far: float
    """Share of these pairs that reach it; smaller than stated where it was raised for pairs of occluded faces."""
    far_low: float
    far_high: float
    """95 % by person."""

    def __post_init__(self) -> None:
        if not (self.pairs > 0 < self.people and 0 <= self.far_low <= self.far <= self.far_high <= 1):
            raise ValueError(f"evidence of a threshold that can't be: {self}")


@dataclass
class ModelConfig:
    """Everything that has to be known to build and feed a model; config.json is this, field by field."""

    net: NetConfig = field(default_factory=NetConfig)
    qaconv: QAConvConfig = field(default_factory=QAConvConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    training: dict[str, Any] = field(default_factory=dict)
    """What the weights were trained on and how: data, steps, source of the backbone."""
    flip: bool = False
    """Average every face with its mirror image, the plain embedding as well: twice the work, for templates with less noise."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Thresholds at stated false-accept rates; empty until they have been fitted."""
    evidence: dict[str, Evidence] = field(default_factory=dict)
    """Rate -> what stands behind its threshold; models of older versions have none."""
    pooling: float = 0.0
    """What the fused score of a pair loses for the images that either template was pooled of, times the `pooled_share` of both."""
    typical: dict[str, float] = field(default_factory=dict)
    """Medians over unoccluded faces, `norm` of the embedding and `agreement` of the cells, which a picture's quality is seen
    against (`oaml.recognition.quality`); empty until they have been measured."""
    licence: str = "unstated"


class Model(nn.Module, ModelHubMixin):
    """Network, occlusion head and matchers. Takes RGB in [0,1], and reorders the channels itself for weights that want BGR.

    Two faces are compared by QAConv, by the joint embedding (the embedding masked by the visibility of both, `oaml.joint`) and by
    the plain cosine; `fused` is all three together. An extractor and a pairwise matcher in the sense of `oaml.template`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.net = Net(config.net)
        # convolutions are faster with channels last: 1.4 times a training step, 2.2 times a pass on a CPU
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        qa = config.qaconv
        self.matcher = QAConv(
            self.net.channels,
            *self.net.grid,
            qa.method,
            qa.adapter,
            qa.position_bias and qa.method == "normalized",
        )
        self.joint = Joint()
        self.fusion = Fusion(config.net.embedding_size)
        self.register_buffer(
            "mean", torch.tensor(config.preprocessing.mean).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(config.preprocessing.std).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def need_eval(self) -> None:
        """Raise RuntimeError in training mode: batch normalisation would let a face depend on the others of its batch."""
        if self.training:
            raise RuntimeError("the model is in training mode; call .eval() first")

    def preprocess(self, images: Tensor) -> Tensor:
        """RGB [B,3,112,112] in [0,1] -> network input in the order, mean and deviation that belong to the weights."""
        if self.config.preprocessing.channels == "BGR":
            images = images.flip(1)
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor, detach_occlusion: bool = False) -> FaceOutput:
        """RGB images [B,3,112,112] in [0,1] -> embedding [B,E], norm [B,1], visibility [B,1,h,w], features [B,C,h,w]."""
        return self.net(self.preprocess(images), detach_occlusion)

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Templates:
        """RGB [N,3,112,112] in [0,1] -> N templates on the model's device. The model must be in eval mode."""
        self.need_eval()
        return self.read(images)

    def read(self, images: Tensor) -> Templates:
        """`extract` in any mode of gradients, as `oaml export` traces it."""
        if not self.config.flip:
            return self._templates(self.net.backbone.forward_stage3(self.preprocess(images)))
        # one pass for both sides: the weights are fetched once
        sides = self.preprocess(torch.cat([images, images.flip(3)]))
        faces = self._templates(self.net.backbone.forward_stage3(sides))
        count = images.shape[0]  # len() would fix it in an export
        return faces[:count].with_mirrored(faces[count:])

    @torch.inference_mode()
    def templates(self, stage3: Tensor) -> Templates:
        """Maps after stage 3 [N,C3,14,14] -> N templates: the part of `extract` after stage 3, without mirror images."""
        return self._templates(stage3)

    def _templates(self, stage3: Tensor) -> Templates:
        face = self.net.forward_from(stage3)
        return Templates(
            embedding=face.embedding,
            norm=face.norm[:, 0],
            visibility=face.visibility,
            local=self.matcher.prepare(face.features),
            cell_embeddings=self.cell_embeddings(face),
        )

    def cell_embeddings(self, face: FaceOutput) -> Tensor:
        """What each cell of B faces adds to the (joint) embedding, float32 [B,49,E]."""
        return self.net.output.cells(face.stage4)

    @torch.inference_mode()
    def compare(self, a: Templates, b: Templates, plain: bool = False) -> Scores:
        """Face i of a with face i of b.

        Args:
            plain: also score QAConv as if every cell showed the face.

        Returns:
            [N] each: `cosine` of the plain embeddings in [-1,1], `qaconv` if `plain`, and the logits `qaconv_visibility`, `joint`
            and `fused`.
        """
        scores = {"cosine": (a.embedding.double() * b.embedding.double()).sum(1)}
        if plain:
            scores["qaconv"] = self.matcher.match_pairs(a.local, b.local, prepared=True)
        local = self.matcher.match_pairs(a.local, b.local, a.visibility, b.visibility, prepared=True)
        compared = self.joint.compare_pairs(a.cell_embeddings, b.cell_embeddings, a.visibility, b.visibility)
        traces = (self.fusion.traces_of(x.embedding) for x in (a, b))
        return self._together(scores, local, compared, torch.mul(*traces).sum(1))

    @torch.inference_mode()
    def compare_all(
        self, probes: Templates, gallery: Templates, plain: bool = False, precision: Precision = "float32"
    ) -> Scores:
        """Every probe with every gallery face -> [P,G] each; see `compare`, and `QAConv.match` for the precision."""
        scores = {"cosine": probes.embedding.double() @ gallery.embedding.double().T}
        if plain:
            scores["qaconv"] = self.matcher.match(
                probes.local, gallery.local, prepared=True, precision=precision
            )
        local = self.matcher.match(
            probes.local,
            gallery.local,
            probes.visibility,
            gallery.visibility,
            prepared=True,
            precision=precision,
        )
        compared = self.joint.match(
            probes.cell_embeddings, gallery.cell_embeddings, probes.visibility, gallery.visibility
        )
        return self._together(scores, local, compared, self._alike(probes, gallery))

    @torch.inference_mode()
    def compare_listed(
        self, a: Templates, b: Templates, pairs: tuple[Tensor, Tensor], plain: bool = False
    ) -> Scores:
        """Face `pairs[0][i]` of a with face `pairs[1][i]` of b, int64 [N] each -> [N] each, as `compare` gives them.

        Nothing of the faces is copied but a few hundred per-cell embeddings at a time, where local maps are channels last in
        memory; see `QAConv.match_listed`.
        """
        scores: Scores = {}
        if plain:
            scores["qaconv"] = self.matcher.match_listed(a.local, b.local, pairs, prepared=True)
        local = self.matcher.match_listed(a.local, b.local, pairs, a.visibility, b.visibility, prepared=True)
        traces = self.fusion.traces_of(a.embedding), self.fusion.traces_of(b.embedding)

        def one_block(rows: tuple[Tensor, Tensor, Tensor]) -> Scores:
            first, second, score = rows
            compared = self.joint.compare_pairs(
                a.cell_embeddings[first], b.cell_embeddings[second], a.visibility[first], b.visibility[second]
            )
            cosine = (a.embedding[first].double() * b.embedding[second].double()).sum(1)
            alike = (traces[0][first] * traces[1][second]).sum(1)
            return self._together({"cosine": cosine}, score, compared, alike)

        blocks = zip(*(rows.split(LISTED_PAIRS) for rows in (*pairs, local)), strict=True)
        parts = spread(one_block, blocks, local.device)
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {"cosine": joined.pop("cosine"), **scores, **joined}

    @torch.inference_mode()
    def fused_above(self, probes: Templates, gallery: Templates, threshold: float) -> Tensor:
        """The fused score of every pair that reaches a threshold; of all others an undefined score below it. [P,G].

        QAConv, most of the work, is computed only where it can change the decision: where the rest of the score is at most
        `fusion.lift` below the threshold. That was fitted on people held out; a model without it computes QAConv for all pairs.
        """
        fused = probes.norm.new_empty(len(probes), len(gallery))

        def one_block(corner: tuple[int, int]) -> None:
            p = slice(corner[0], corner[0] + BLOCK_PROBES)
            g = slice(corner[1], corner[1] + BLOCK_GALLERY)
            fused[p, g] = self._fused_above(probes[p], gallery[g], threshold)

        corners = product(range(0, len(probes), BLOCK_PROBES), range(0, len(gallery), BLOCK_GALLERY))
        spread(one_block, corners, fused.device)
        return fused

    def _fused_above(self, probes: Templates, gallery: Templates, threshold: float) -> Tensor:
        compared = self.joint.match(
            probes.cell_embeddings, gallery.cell_embeddings, probes.visibility, gallery.visibility
        )
        cosine = probes.embedding @ gallery.embedding.T
        joint = self.joint.logit(compared.cosine, compared.unseen)
        fused = self.fusion.without_qaconv(joint, cosine, compared, self._alike(probes, gallery))
        p, g = (fused >= threshold - self.fusion.lift).nonzero(as_tuple=True)

        local = self.matcher.match_listed(
            probes.local, gallery.local, (p, g), probes.visibility, gallery.visibility, prepared=True
        )
        fused[p, g] += self.fusion.qaconv_weight * local
        return fused

    def _alike(self, probes: Templates, gallery: Templates) -> Tensor:
        """Traces that every probe has in common with every gallery face, [P,G]."""
        return self.fusion.traces_of(probes.embedding) @ self.fusion.traces_of(gallery.embedding).T

    def _together(self, scores: Scores, local: Tensor, compared: Compared, alike: Tensor) -> Scores:
        joint = self.joint.logit(compared.cosine, compared.unseen)
        fused = self.fusion(joint, local, scores["cosine"].float(), compared, alike)
        return {**scores, "qaconv_visibility": local, "joint": joint, "fused": fused}

    @classmethod
    def from_published(cls, path: str | Path, ema: bool = False) -> Model:
        """Published weights as a model in eval mode that compares faces before anything has been trained.

        Its occlusion head, unless the file has one, sees no occluder, and QAConv has no part in the fused score, which then orders
        pairs as the cosine does. `config.training` names in `untrained` what that is of: `oaml adapt` and `oaml train` begin it
        anew. Equal files give equal models.

        Args:
            path: see `oaml.weights.load_backbone`.
            ema: take the averaged weights of a checkpoint that holds both.

        Raises:
            OamlError: the file is missing, unreadable or of no known family.
        """
        loaded = load_backbone(path, ema=ema)
        training = {"backbone": loaded.source, "untrained": ["matchers"], "set_aside": loaded.set_aside}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = cls(ModelConfig(net=loaded.config, preprocessing=loaded.preprocessing, training=training))
        model.net.backbone.load_state_dict(loaded.backbone.state_dict())
        head = model.net.occlusion_head
        if loaded.occlusion_head is not None:
            head.load_state_dict(loaded.occlusion_head)
        else:
            training["untrained"].insert(0, "occlusion head")
            head.see_everything()
        with torch.no_grad():
            model.fusion.qaconv_weight.zero_()
        return model.eval()

    @classmethod
    def open(cls, path: str | Path) -> Model:
        """A model folder, or published weights: a file, or a folder of CVLface. In eval mode on the CPU.

        Raises:
            OamlError: neither, damaged, or of an unknown network.
        """
        path = Path(path)
        if path.is_file() and path.name == "model.safetensors" and is_model_folder(path.parent):
            path = path.parent  # else what is trained beside the backbone would be left out
        if not path.is_file() and not is_published_folder(path):
            return cls.load(path)
        model = cls.from_published(path)
        if model.config.training["set_aside"]:
            print(f"{path}: set aside: {'; '.join(model.config.training['set_aside'])}", file=sys.stderr)
        return model

    def save(self, folder: str | Path) -> Path:
        """Write the model folder; an older model there is replaced only when the new one is complete.

        Raises:
            OamlError: the disk is full, or the folder exists and holds something else.
        """
        return write_folder(folder, self._save_pretrained)

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        import oaml

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        try:
            save_file(state, save_directory / "model.safetensors", {"sha256": _digest(state)})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        config = {"format": CONFIG_FORMAT, "oaml": oaml.__version__, **asdict(self.config)}
        (save_directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README.md that `push_to_hub` and `save_pretrained` write."""
        return ModelCard(card_text(asdict(self.config)))

    @classmethod
    def load(cls, folder: str | Path) -> Model:
        """Read a model folder, in eval mode on the CPU. Nothing is downloaded; `from_pretrained` reads a hub repository.

        Raises:
            OamlError: folder or file missing, damaged, or of another network.
        """
        from safetensors import SafetensorError, safe_open

        folder = Path(folder)
        weights = folder / "model.safetensors"
        for needed in (folder, folder / "config.json", weights):
            if not needed.exists():
                raise OamlError(
                    f"{needed}: no such {'folder' if needed == folder else 'file'}; a model is a folder with config.json and "
                    "model.safetensors, as `oaml train`, `oaml adapt` and `oaml import` write it, or a file of published weights"
                )
        config = _read_config(folder / "config.json")
        try:
            with safe_open(weights, "pt") as file:
                written = (file.metadata() or {}).get("sha256")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise OamlError(f"{weights}: is damaged ({error}); train or copy the model again") from error
        if written is not None and written != _digest(state):  # models of older versions have none
            raise OamlError(
                f"{weights}: is damaged (its numbers aren't those that were written); train or copy the model again"
            )
        with torch.device(
            "meta"
        ):  # names and shapes alone: what config.json says must not take memory before it is compared
            expected = cls(config).state_dict()
        for name in ("fusion.traces", "fusion.trace_floor"):  # models of format 3 have none
            state.setdefault(name, torch.zeros(expected[name].shape))
        state.setdefault("fusion.cosine_fade", torch.ones(()))
        missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
        misshapen = {
            name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape
        }
        if missing or unknown or misshapen:
            raise OamlError(
                f"{weights}: does not belong to config.json beside it; missing: {_named(missing)}; unknown: {_named(unknown)}; "
                f"of another shape: {_named(misshapen)}"
            )
        need_numbers(weights, state, infinite=["fusion.lift"])  # infinite until it has been fitted
        model = cls(config)
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> Model:
        if Path(model_id).is_dir():
            return cls.load(model_id)
        from huggingface_hub import snapshot_download

        return cls.load(
            snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=["config.json", "model.safetensors"],
            )
        )


def pooled_share(images: Tensor) -> Tensor:
    """How much of its chance a template of so many pooled images has lost: 0 of one image, 1/2 of two, towards 1."""
    return 1 - 1 / images.double()


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has a description as `Model.save` writes it."""
    return "format" in _described(folder)


def is_published_folder(folder: Path) -> bool:
    """Whether a folder is laid out as CVLface publishes weights, on a hub or elsewhere."""
    described = _described(folder)
    weights = folder / "pretrained_model" / "model.pt", folder / "model.safetensors"
    return weights[0].is_file() or (weights[1].is_file() and bool(described) and "format" not in described)


def _described(folder: Path) -> dict[str, Any]:
    """What config.json says, where there is one that can be read."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_config(path: Path) -> ModelConfig:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("format") not in READABLE:
            raise OamlError(
                f"{path}: another format of model folder; use the version of OAML that wrote it ({raw.get('oaml')})"
            )
        raw.pop("oaml", None)
        parts = {"net": NetConfig, "qaconv": QAConvConfig, "preprocessing": Preprocessing}
        unknown = raw.keys() - {f.name for f in fields(ModelConfig)}
        if unknown:
            raise OamlError(f"{path}: unknown keys {_named(unknown)}")
        for group, values in (("", raw), *((f"{name}.", raw.get(name, {})) for name in parts)):
            kinds = get_type_hints(parts[group[:-1]] if group else ModelConfig)
            for name, value in values.items():
                wanted = kinds.get(name)
                # JSON has no other types, and Python counts any text as true and true as a number
                if wanted in (bool, int, str) and type(value) is not wanted:
                    raise OamlError(f"{path}: {group}{name} is {value!r}, no {TYPE_NAMES[wanted]}; mend it")
        behind = {far: Evidence(**values) for far, values in raw.pop("evidence", {}).items()}
        return ModelConfig(
            **{name: parts[name](**value) if name in parts else value for name, value in raw.items()},
            evidence=behind,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OamlError(
            f"{path}: is no model description ({error!r}); copy the model folder again"
        ) from error


def _digest(state: dict[str, Tensor]) -> str:
    """SHA-256 of some tensors with their names."""
    digest = hashlib.sha256()
    for name, values in sorted(state.items()):
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _named(names: set[str]) -> str:
    return few(sorted(names)) or "none"
