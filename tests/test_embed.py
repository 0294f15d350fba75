"""`oaml embed`: the numbers of the plain path, the same file after a kill, and nothing continued that has changed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.main import main
from oaml.model import Model, ModelConfig
from oaml.net import Architecture, NetConfig
from oaml.qaconv import QAConvConfig
from oaml.template import Templates
from oaml.templates.embed import FACES_A_PASS, FastExtractor, embed
from oaml.templates.file import load, model_id
from oaml.templates.folded import folded

pytestmark = pytest.mark.usefixtures("one_thread")
FACES = 2 * FACES_A_PASS + 5


def model_of(architecture: Architecture = "ir_mini", **options: object) -> Model:
    """A model whose normalisations do something."""
    torch.manual_seed(0)
    net = NetConfig(architecture, 32, occlusion_stage=3, branch="stage", occlusion_context=True)
    model = Model(ModelConfig(net, QAConvConfig(adapter=16), **options)).eval()  # type: ignore[arg-type]
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.1)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_of().save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    for i in range(FACES):
        path = folder / f"person_{i // 4}" / f"{i % 4}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_face(i // 4, i % 4)).save(path)
    return folder


def pixels(folder: Path) -> torch.Tensor:
    images = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def furthest(a: Templates, b: Templates) -> float:
    """Largest difference of any number, as a share of the largest number of its field."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


@pytest.mark.parametrize("architecture", ["ir_mini", "iresnet18", "mobilefacenet", "mobilefacenet_relu6"])
def test_folding_changes_nothing_but_last_digits(architecture: Architecture) -> None:
    model = model_of(architecture)
    images = torch.rand(2, 3, 112, 112)
    before = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    fast = folded(model)
    assert furthest(fast.extract(images), model.extract(images)) < 1e-4
    assert sum(isinstance(part, nn.BatchNorm2d) for part in fast.modules()) < before / 2
    assert sum(isinstance(part, nn.BatchNorm2d) for part in model.modules()) == before


@pytest.mark.parametrize("flip", [False, True])
def test_the_numbers_of_the_plain_path(flip: bool, model: Path, faces: Path, tmp_path: Path) -> None:
    loaded = Model.load(model)
    loaded.config.flip = flip
    path = loaded.save(tmp_path / "m")
    out = tmp_path / "faces.safetensors"
    assert main(["embed", str(path), "--images", str(faces), "--out", str(out)]) == 0
    stored = load(out)
    assert stored.paths == [p.relative_to(faces).as_posix() for p in sorted(faces.rglob("*.png"))]
    stored.need_model(loaded)
    assert stored.model == model_id(loaded)
    expected = loaded.extract(pixels(faces))
    numbers = stored.templates.dequantised()
    assert furthest(replace(numbers, local=expected.local), expected) < 0.01
    assert float((numbers.embedding * expected.embedding).sum(1).min()) > 0.9998
    assert float((numbers.local * expected.local).sum(1).min()) > 0.999
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces", "faces.safetensors", "m"]


def test_bfloat16_is_close(faces: Path) -> None:
    model, images = model_of(), pixels(faces)[:8]
    numbers = FastExtractor(model, True)((images * 255).byte().permute(0, 2, 3, 1).numpy()).dequantised()
    assert float((numbers.embedding * model.extract(images).embedding).sum(1).min()) > 0.998


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    model: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    embed(str(model), images=faces, out=whole)
    last = sorted(faces.rglob("*.png"))[-1]
    code = (  # a run that never gets past the last image
        "import sys, pathlib, time\n"
        "from oaml.templates import embed as e\n"
        "e.PASSES_A_WRITE = 1\n"
        "read = e.read_image\n"
        "def slow(path, **options):\n"
        f"    if str(path) == {str(last)!r}: time.sleep(600)\n"
        "    return read(path, **options)\n"
        "e.read_image = slow\n"
        "e.embed(sys.argv[1], images=pathlib.Path(sys.argv[2]), out=pathlib.Path(sys.argv[3]))\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(model), str(faces), str(out)])
    partial = tmp_path / "out.partial"
    end = time.monotonic() + 60
    while time.monotonic() < end and not (partial.exists() and partial.read_bytes()[-8:] != bytes(8)):
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    done = int.from_bytes(partial.read_bytes()[-8:], "little")
    assert 0 < done < FACES
    assert not out.exists()
    capsys.readouterr()
    embed(str(model), images=faces, out=out)
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize("change", ["model", "image", "one more", "option"])
def test_what_has_changed_is_not_continued(
    change: str, model: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted(faces.rglob("*.png"))[0]
    last = sorted(faces.rglob("*.png"))[-1]
    kept = last.read_bytes()
    last.write_text("no image")
    out = tmp_path / "out"
    arguments = ["--images", str(faces), "--out", str(out)]
    assert main(["embed", str(model), *arguments]) == 1
    assert str(last) in capsys.readouterr().err
    partial = (tmp_path / "out.partial").read_bytes()
    named, used = "images", model
    if change == "model":
        torch.manual_seed(1)
        used, named = Model(Model.load(model).config).eval().save(tmp_path / "other"), "model"
    elif change == "image":
        os.utime(first, ns=(1, 1))
    elif change == "one more":
        first.with_name("more.png").write_bytes(kept)
    else:
        arguments += ["--resize", "--precision", "bfloat16"]
        named = "precision, resize"
    assert main(["embed", str(used), *arguments]) == 1
    error = capsys.readouterr().err
    assert f"{out}.partial: " in error
    assert named in error
    assert "delete it" in error
    assert (tmp_path / "out.partial").read_bytes() == partial


def test_bad_calls(model: Path, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(OamlError, match="is a folder; name a file"):
        embed(str(model), images=faces, out=tmp_path)
    with pytest.raises(OamlError, match="no such folder"):
        embed(str(model), images=tmp_path / "gone", out=tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
