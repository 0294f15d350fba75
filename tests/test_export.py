"""`oaml export` and `oaml.matching`: the network in other engines, and its templates compared with numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import with_statistics
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.export import matchers
from oaml.main import main
from oaml.matching import OUTPUTS, Matcher
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import occlude
from oaml.qaconv import METHODS, Method, QAConvConfig
from oaml.template import Templates
from oaml.templates.file import model_id

pytestmark = pytest.mark.usefixtures("one_thread")


def faces(count: int = 3) -> np.ndarray:
    """RGB float32 [2*count,3,112,112] in [0,1]: drawn people, unoccluded and in masks."""
    images = [draw_face(person, 0) for person in range(count)]
    images += [occlude(image, "mask", np.random.default_rng(0)).image for image in images]
    return (np.stack(images).transpose(0, 3, 1, 2) / 255).astype(np.float32)


def named(templates: Templates) -> dict[str, np.ndarray]:
    return {name: getattr(templates, name).numpy() for name in OUTPUTS}


def model_of(method: Method = "normalized", stage: int = 4, flip: bool = True) -> Model:
    """Random weights in every part that scores: nothing is left at the value that makes it vanish."""
    torch.manual_seed(1)
    net = NetConfig("ir_mini", 16, stage=stage, occlusion_stage=3)  # type: ignore[arg-type]
    config = ModelConfig(net, QAConvConfig(method, 8), flip=flip, thresholds={"0.01": 1.5, "0.001": 2.5})
    model = with_statistics(Model(config))
    with torch.no_grad():
        for module in (model.matcher, model.joint, model.fusion):
            for name, value in [*module.named_parameters(), *module.named_buffers()]:
                if value.dtype.is_floating_point and "running" not in name and name != "lift":
                    value.add_(torch.rand_like(value) * 0.3)
    return model.eval()


def saved_matchers(model: Model, folder: Path) -> Matcher:
    with (folder / "model.npz").open("wb") as file:
        np.savez(file, **matchers(model))  # pyright: ignore[reportArgumentType]
    return Matcher(folder / "model.npz")


@pytest.mark.parametrize("stage", [3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_numpy_scores_as_the_model_does(method: Method, stage: int, tmp_path: Path) -> None:
    model = model_of(method, stage)
    templates = model.extract(torch.from_numpy(faces()))
    wanted = model.compare_all(templates[:4], templates)
    got = saved_matchers(model, tmp_path).compare(named(templates[:4]), named(templates))
    for name, title in (("fused",) * 2, ("joint",) * 2, ("qaconv", "qaconv_visibility"), ("cosine",) * 2):
        np.testing.assert_allclose(getattr(got, name), wanted[title], atol=2e-4, rtol=2e-4)
    shared = model.joint.hidden(templates.visibility[:4], templates.visibility)[0]
    np.testing.assert_allclose(got.visible_both, 1 - shared, atol=1e-6)


def test_onnx_gives_the_same_templates_for_any_number_of_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = model_of()
    model.save(tmp_path / "model")
    out = tmp_path / "model.onnx"
    assert main(["export", str(tmp_path / "model"), "--out", str(out)]) == 0
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images"]
    assert [value.name for value in session.get_outputs()] == list(OUTPUTS)
    assert session.get_inputs()[0].shape == ["batch", 3, 112, 112]
    properties = session.get_modelmeta().custom_metadata_map
    assert properties == {
        "oaml.model": model_id(model),
        "oaml.name": str(tmp_path / "model"),
        "oaml.opset": "18",
    }
    for count in (1, 5):
        images = faces()[:count]
        got = dict(zip(OUTPUTS, session.run(None, {"images": images}), strict=True))
        for name, wanted in named(model.extract(torch.from_numpy(images))).items():
            np.testing.assert_allclose(got[name], wanted, atol=1e-4)
    document = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    said: dict[str, np.ndarray] = {}
    exec(document.partition("```python\n")[2].partition("```")[0], said)
    assert said["same"].shape == said["decided"].shape == (3, 3)
    matcher = Matcher(out.with_suffix(".npz"))
    assert matcher.model == model_id(model)
    assert matcher.thresholds == {0.01: 1.5, 0.001: 2.5}
    templates = model.extract(torch.from_numpy(images))
    fused = matcher.compare(got, got).fused
    np.testing.assert_allclose(fused, model.compare_all(templates, templates)["fused"], atol=1e-3)


def test_torch_export_gives_the_same_templates(tmp_path: Path) -> None:
    model = model_of(flip=False)
    model.save(tmp_path / "model")
    out = tmp_path / "model.pt2"
    assert main(["export", str(tmp_path / "model"), "--format", "torch-export", "--out", str(out)]) == 0
    images = torch.from_numpy(faces())
    got = torch.export.load(out).module()(images)
    for name, value, wanted in zip(OUTPUTS, got, named(model.extract(images)).values(), strict=True):
        np.testing.assert_allclose(value.detach(), wanted, atol=1e-4, err_msg=name)


def test_matching_imports_numpy_alone() -> None:
    code = "import sys, oaml.matching; print([m for m in ('torch', 'PIL', 'cv2', 'safetensors') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of()
    matcher = saved_matchers(model, tmp_path)
    good = named(model.extract(torch.from_numpy(faces(1))))
    with pytest.raises(OamlError, match=r"without norm, local; name the outputs"):
        matcher.compare(good, {name: good[name] for name in ("embedding", "visibility", "cell_embeddings")})
    with pytest.raises(OamlError, match=r"embedding is \[2, 8\], this model's is \[2, 16\]"):
        matcher.compare(good, {**good, "embedding": good["embedding"][:, :8]})
    with pytest.raises(OamlError, match="no such file; `oaml export"):
        Matcher(tmp_path / "none.npz")
    for content in (b"", b"PK\3\4 not a zip", json.dumps({}).encode()):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(OamlError, match=r"bad\.npz"):
            Matcher(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(OamlError, match="holds no matchers"):
        Matcher(tmp_path / "other.npz")
    np.savez(tmp_path / "hostile.npz", format=np.array([print], dtype=object))
    with pytest.raises(OamlError, match=r"hostile\.npz: can't be read"):
        Matcher(tmp_path / "hostile.npz")
    assert main(["export", "starter", "--out", str(tmp_path / "model.bin")]) == 1
    assert "ends in .onnx" in capsys.readouterr().err
    assert not (tmp_path / "model.bin").exists()
