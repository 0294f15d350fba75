"""MegaFace's feature files: bytes as the devkit reads them, a run that goes on, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_matrix_in_opencvs_layout_for_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["Ann/Ann_1.png", "Ann/Ann_2.png", "Bela/b.png"]
    for number, name in enumerate(names):
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_face(number, 0)).save(tmp_path / "faces" / name)
    small_model().save(tmp_path / "model")
    small_model(seed=1).save(tmp_path / "other")
    out = tmp_path / "features"
    words = ["--images", str(tmp_path / "faces"), "--out", str(out), "--format", "megaface"]
    assert main(["embed", str(tmp_path / "model"), *words]) == 0
    assert f"3 faces of 16 numbers each in {out}/" in capsys.readouterr().out
    pictures = (
        torch.from_numpy(np.stack([draw_face(i, 0) for i in range(3)])).permute(0, 3, 1, 2).float() / 255
    )
    wanted = small_model().extract(pictures).embedding.numpy()
    first = {}
    for name, embedding in zip(names, wanted, strict=True):
        content = (out / f"{name}_oaml.bin").read_bytes()
        assert struct.unpack("<4i", content[:16]) == (16, 1, 4, 5)
        np.testing.assert_allclose(np.frombuffer(content[16:], "<f4"), embedding, atol=1e-6)
        first[name] = content
    (out / "Ann" / "Ann_2.png_oaml.bin").write_bytes(first[names[1]][:30])  # cut off by a failing machine
    kept = (out / "Bela" / "b.png_oaml.bin").stat().st_mtime_ns
    assert main(["embed", str(tmp_path / "model"), *words]) == 0
    assert (out / "Ann" / "Ann_2.png_oaml.bin").read_bytes() == first[names[1]]
    assert (out / "Bela" / "b.png_oaml.bin").stat().st_mtime_ns == kept
    capsys.readouterr()
    assert main(["embed", str(tmp_path / "other"), *words]) == 1
    assert "holds features of another model or suffix" in capsys.readouterr().err
    words[3] = str(tmp_path / "faces")
    assert main(["embed", str(tmp_path / "model"), *words]) == 1
    assert "holds other files" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "model"), *words, "--precision", "bfloat16"]) == 1
    assert "--precision is of a file of templates" in capsys.readouterr().err
