"""Equal commands give equal bytes: `oaml adapt` with a seed, however its folders are spelled, and after a kill."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from oaml.adaptation import cache
from oaml.datasets.drawn import draw_face
from oaml.main import main
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn people and a backbone."""
    folder = tmp_path_factory.mktemp("repeatable")
    for person in range(24):
        for shot in range(2):
            path = folder / "faces" / f"p{person:02d}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_face(person, shot)).save(path)
    torch.manual_seed(5)
    Model(ModelConfig(net=NetConfig(architecture="ir_mini", embedding_size=16))).eval().save(
        folder / "backbone"
    )
    return folder


def adapted(out: Path, people: str, backbone: str, *options: str) -> dict[str, str]:
    """Digests of the files of a model and of its cache."""
    torch.rand(len(out.name))  # what the process did before must not matter
    call = [
        "adapt",
        "--backbone",
        backbone,
        "--people",
        people,
        "--out",
        str(out),
        "--occluders_per_view",
        "2",
    ]
    assert main([*call, "--occlusion_steps", "3", "--steps", "3", *options]) == 0
    files = [out / "config.json", out / "model.safetensors"]
    folder = Path(options[-1] if "--cache" in options else f"{out}.cache")
    files += [folder / name for name in ("features.npy", "visibility.npy", "state.json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_commands_give_equal_bytes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    first = adapted(work / "a", "faces", "backbone", "--seed", "3")
    again = adapted(work / "bb", str(work / "faces"), str(work / "backbone"), "--seed", "3")
    assert again == first
    other = adapted(work / "ccc", "faces", "backbone", "--seed", "4")
    assert other["model.safetensors"] != first["model.safetensors"]


def test_a_changed_setting_makes_a_new_cache_and_says_so(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the precision that another machine computes in."""
    keys = []
    for bfloat16 in (False, False, True):
        monkeypatch.setattr(cache, "computes_in_bfloat16", lambda _, now=bfloat16: now)
        options = ["--cache", str(work / "shared")]
        adapted(work / "d", str(work / "faces"), str(work / "backbone"), *options)
        keys.append(json.loads((work / "shared" / "state.json").read_text(encoding="utf-8"))["key"])
        said = (
            "shared: was made of other weights, data or settings; it is made anew" in capsys.readouterr().err
        )
        assert said == bfloat16
    assert keys[0] == keys[1] != keys[2]
