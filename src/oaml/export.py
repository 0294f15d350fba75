"""`oaml export`: the network of a model for other engines, and its matchers as a small file for `oaml.matching`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from oaml.errors import OamlError
from oaml.matching import FORMAT, OUTPUTS
from oaml.support.files import FACE_SIZE, write_file

if TYPE_CHECKING:
    import numpy as np
    import torch

    from oaml.model import Model

Format = Literal["onnx", "torch-export"]
OPSET = 18
"""Of the ONNX file; ONNX Runtime reads it since 1.14."""
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


def export(model: str, *, out: Path, format: Format = "onnx") -> None:
    """Write a model's network for ONNX Runtime or torch.export, and its matchers and thresholds for numpy beside it.

    The network takes `images`, RGB float32 [N,3,112,112] in [0,1], any number at a time; colour order, mean, deviation and the
    mirror image are inside. Its outputs are `embedding` [N,E], `norm` [N], `visibility` [N,1,h,w], `cell_embeddings` [N,K,E] and
    `local` [N,C,h,w]. `oaml.matching` compares them.

    Args:
        model: model folder, or `starter` for the one in the package.
        out: file to write, .onnx or .pt2; the matchers go into a file of the same name that ends in .npz.
        format: onnx, or torch-export for a file that `torch.export.load` reads.

    Raises:
        OamlError: a bad model, a file name that doesn't fit the format, or a package is missing.
    """
    import numpy as np

    from oaml.inference import load_model

    out = Path(out)
    if out.suffix != SUFFIXES[format]:
        raise OamlError(f"{out}: a file of format {format} ends in {SUFFIXES[format]}")
    loaded = load_model(model, "cpu")
    program = traced(loaded)
    numbers = matchers(loaded)
    if format == "onnx":
        data = _onnx(program, str(numbers["model"]), model)
        write_file(out, lambda path: path.write_bytes(data))
    else:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # about weights that share memory; they are saved once
            write_file(out, lambda path: torch.export.save(program, path))
    beside = out.with_suffix(".npz")

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **numbers)  # pyright: ignore[reportArgumentType]

    write_file(beside, save)
    print(f"{out}: {', '.join(OUTPUTS)} of `images`, RGB [N,3,{FACE_SIZE},{FACE_SIZE}] in [0,1]")
    print(f"{beside}: matchers and thresholds, for oaml.matching.Matcher")


def traced(model: Model) -> torch.export.ExportedProgram:
    """The graph of a model in eval mode: images [N,3,112,112] -> `OUTPUTS`, for any N."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            faces = self.model.read(images)
            return tuple(getattr(faces, name) for name in OUTPUTS)

    model.need_eval()
    example = torch.zeros(2, 3, FACE_SIZE, FACE_SIZE)
    with torch.no_grad():
        return torch.export.export(
            Network().eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )


def _onnx(program: torch.export.ExportedProgram, model_id: str, name: str) -> bytes:
    """The graph as an ONNX file, with its opset and the model's name and id as metadata."""
    import onnx
    import onnxscript  # noqa: F401  # torch needs it, and this names it where it is missing
    import torch

    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)  # it lists operators of torchvision that are not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=list(OUTPUTS),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        loud.setLevel(level)
    assert exported is not None
    proto = exported.model_proto
    for value in (*proto.graph.input, *proto.graph.output):  # torch numbers the free dimension
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:]  # shapes of what lies between, by the old name
    onnx.helper.set_model_props(proto, {"oaml.model": model_id, "oaml.name": name, "oaml.opset": str(OPSET)})
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def matchers(model: Model) -> dict[str, np.ndarray]:
    """The numbers that `oaml.matching.Matcher` compares with: float64 arrays, and texts."""
    import numpy as np
    import torch

    from oaml.recognition.decision import LEAST_SHARED
    from oaml.templates.file import model_id

    with torch.inference_mode():
        faces = model.extract(torch.zeros(1, 3, FACE_SIZE, FACE_SIZE))
        values: dict[str, torch.Tensor] = {
            "joint.log_scale": model.joint.log_scale,
            "joint.confidence": model.joint.confidence,
            "fusion.qaconv_weight": model.fusion.qaconv_weight,
            "fusion.cosine_weight": model.fusion.cosine_weight,
            "fusion.cosine_fade": model.fusion.cosine_fade,
            "fusion.offset": model.fusion.offset,
            "fusion.overlap": model.fusion.overlap,
            "fusion.traces": model.fusion.traces,
            "fusion.trace_floor": model.fusion.trace_floor,
        }
        qaconv = model.matcher
        if qaconv.method == "normalized":
            bias = qaconv.bias()
            values["qaconv.log_scale"] = qaconv.log_scale
            values["qaconv.confidence"] = qaconv.confidence
            values["qaconv.cell_weight"] = torch.nn.functional.softplus(qaconv.cell_weight)
            values["qaconv.bias"] = torch.zeros(()) if bias is None else bias
        else:
            values["qaconv.fc"], values["qaconv.fc_bias"] = qaconv.fc.weight[0], qaconv.fc.bias[0]
            values["qaconv.bn"], values["qaconv.logit_bn"] = _affine(qaconv.bn), _affine(qaconv.logit_bn)
    shapes = [list(getattr(faces, name).shape[1:]) for name in OUTPUTS]
    thresholds = sorted((float(far), value) for far, value in model.config.thresholds.items())
    return {
        "format": np.array(FORMAT),
        "model": np.array(model_id(model)),
        "method": np.array(qaconv.method),
        "shapes": np.array([shape + [0] * (3 - len(shape)) for shape in shapes]),
        "fars": np.array([far for far, _ in thresholds]),
        "thresholds": np.array([value for _, value in thresholds]),
        "least_visible_both": np.array(LEAST_SHARED),
        **{name: value.detach().double().cpu().numpy() for name, value in values.items()},
    }


def _affine(norm: torch.nn.BatchNorm1d) -> torch.Tensor:
    """Batch normalisation of one channel by its running statistics, as [scale, shift]."""
    import torch

    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return torch.cat([scale, norm.bias - norm.running_mean * scale])
