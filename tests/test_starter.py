"""The model that comes with the package: small, described, without traces of where it was made, and ready to answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import oaml
from oaml.datasets.drawn import draw_face
from oaml.inference import STARTER
from oaml.main import main
from oaml.model import Model

pytestmark = pytest.mark.usefixtures("one_thread")
CARD = (STARTER / "README.md").read_text(encoding="utf-8")


def test_it_is_small_and_described() -> None:
    assert sum(path.stat().st_size for path in STARTER.iterdir()) < 6e6
    for part in (
        "MS-Celeb-1M",
        "CelebAMask-HQ",
        "research",
        "Labeled Faces in the Wild",
        "MFR2",
        "studies/starter/make.py",
        "Not meant for",
    ):
        assert part in CARD
    said = re.search(r"\*\*(\.?[\d.]+)\*\* \(teacher", CARD)
    assert said is not None
    assert 0.95 <= float(said.group(1)) <= 1


def test_its_description_tells_nothing_of_the_place_it_was_made_in() -> None:
    config = json.loads((STARTER / "config.json").read_text())
    for text in (CARD, json.dumps({**config["training"], "licence": config["licence"]})):
        assert "/tmp" not in text
        assert "shared" not in text.replace("--data ../shared/data", "")
    assert "research" in config["licence"]
    assert {"0.01", "0.001"} <= config["thresholds"].keys()


def test_matrices_are_stored_in_half_precision_and_used_in_single() -> None:
    stored = load_file(STARTER / "model.safetensors")
    model = Model.load(STARTER)
    for name, values in model.state_dict().items():
        if values.is_floating_point():
            assert values.dtype == torch.float32
            assert values.isfinite().all()
            if name in stored:  # older files lack corrections that are 0
                assert stored[name].dtype == (torch.float16 if values.dim() > 1 else torch.float32)
    assert len(stored) > 100


def test_it_answers_without_detector_or_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OAML_HOME", str(tmp_path))  # no detector there
    answer = oaml.load().verify(draw_face(1, 0), draw_face(1, 0))
    assert answer.decision == "same person"
    assert answer.cosine == pytest.approx(1, abs=1e-4)
    assert answer.fitted_on is not None
    assert main(["verify", str(STARTER / "README.md"), "b.png"]) == 1


def test_the_wheel_holds_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(root),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("config.json", "model.safetensors", "README.md"):
        assert f"oaml/starter/{name}" in names
    for name in (
        "photographs/refiner/model.safetensors",
        "photographs/refiner/usable.safetensors",
        "kernels/best_matches.cpp",
        "kernels/joint.cpp",
        "py.typed",
    ):
        assert f"oaml/{name}" in names
