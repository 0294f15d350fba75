"""Int8 templates: how far numbers move, what they take, and the file they are kept in."""

from __future__ import annotations

import contextlib
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from oaml.errors import OamlError
from oaml.joint import Joint
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.qaconv import QAConvConfig
from oaml.template import Templates
from oaml.templates.file import Layout, PartialFile, load, model_id, save
from oaml.templates.quantised import QuantisedTemplates

pytestmark = pytest.mark.usefixtures("one_thread")


def random_faces(count: int, size: int = 128, channels: int = 128, seed: int = 0) -> Templates:
    """Templates like those of a network: unit vectors, and cells of very different strength."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Templates(
        embedding=F.normalize(normal(count, size), dim=1),
        norm=10 * torch.rand(count, generator=generator),
        visibility=torch.rand(count, 1, 7, 7, generator=generator),
        local=F.normalize(normal(count, channels, 7, 7), dim=1),
        cell_embeddings=normal(count, 49, size) * (normal(count, 49, 1) / 2).exp(),
    )


def equal(a: QuantisedTemplates, b: QuantisedTemplates) -> bool:
    return all(
        torch.equal(getattr(a, f.name), getattr(b, f.name))
        and getattr(a, f.name).dtype == getattr(b, f.name).dtype
        for f in fields(a)
    )


def test_numbers_move_by_half_a_step() -> None:
    faces = random_faces(20)
    small = QuantisedTemplates.of(faces)
    back = small.dequantised()
    half = small.cell_embeddings_scale[..., None] / 2
    assert float((half * 254 / faces.cell_embeddings.abs().amax(2, keepdim=True)).max()) < 1.1
    moved = (back.cell_embeddings - faces.cell_embeddings).abs()
    assert bool((moved <= half + half.amax(1, keepdim=True) + 1e-6).all())
    assert bool((moved[:, 0] <= half[:, 0] * 1.001).all())
    moved = (back.cell_embeddings.sum(1) - faces.cell_embeddings.sum(1)).abs()
    assert bool((moved <= half[:, -1] + 1e-4).all()), "the sum moves by the last cell's half step"
    assert float((back.visibility - faces.visibility).abs().max()) <= 1 / 510 + 1e-6
    assert torch.equal(back.norm, faces.norm)
    for vectors, expected in ((back.embedding, faces.embedding), (back.local, faces.local)):
        torch.testing.assert_close(vectors.norm(dim=1), expected.norm(dim=1))
        assert float((vectors * expected).sum(1).min()) > 0.9998
    assert all(getattr(back, f.name).dtype == torch.float32 for f in fields(back))


def test_zeros_stay_zeros() -> None:
    faces = random_faces(2)._each(lambda x: x * 0)
    back = QuantisedTemplates.of(faces).dequantised()
    assert all(not getattr(back, f.name).any() for f in fields(back))


@pytest.mark.parametrize(
    ("size", "channels", "expected"), [(128, 128, 13_121), (512, 128, 32_321), (512, 512, 51_137)]
)
def test_bytes_per_face(size: int, channels: int, expected: int, tmp_path: Path) -> None:
    faces = QuantisedTemplates.of(random_faces(40, size, channels))
    assert faces.bytes_per_face == expected
    path = save(tmp_path / "faces.safetensors", faces, [""] * 40, "m")
    assert 0 <= path.stat().st_size - 40 * expected < 2000


def test_rows_and_join() -> None:
    faces = QuantisedTemplates.of(random_faces(5))
    assert len(faces) == 5
    assert len(faces[:0]) == faces[:0].bytes_per_face == 0
    assert equal(QuantisedTemplates.join([faces[:2], faces[2:]]), faces)
    chosen = faces[torch.tensor([4, 0])]
    assert torch.equal(
        chosen.cell_embeddings, torch.stack([faces.cell_embeddings[4], faces.cell_embeddings[0]])
    )


# --- the file


PATHS = ["ann/1.jpg", "ben/ü 2.png", 'c"\n3.jpg']


def test_file(tmp_path: Path) -> None:
    faces = QuantisedTemplates.of(random_faces(3))
    path = save(tmp_path / "new" / "faces.safetensors", faces, PATHS, "0123", "runs/adapted")
    stored = load(path)
    assert equal(stored.templates, faces)
    assert (stored.paths, stored.model, stored.model_name) == (PATHS, "0123", "runs/adapted")
    assert load_file(path).keys() == {*faces.stored(), "paths"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_one_changed_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a", QuantisedTemplates.of(random_faces(3)), PATHS, "0123")
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(OamlError, match=f"{path}: is (damaged|no file of templates)"):
            load(path)
    older = bytearray(whole)
    older[whole.index(b'"sha256"') : whole.index(b'"sha256"') + 8] = b'"other!"'
    path.write_bytes(older)
    assert equal(
        load(path).templates, QuantisedTemplates.of(random_faces(3))
    )  # as written before there were digests


def test_a_file_that_was_all_but_renamed_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = QuantisedTemplates.of(random_faces(3))
    whole = save(tmp_path / "whole", faces, PATHS, "0123").read_bytes()
    layout = Layout(faces[:1], PATHS, {"model": "0123", "model_name": ""})
    for step in ("ftruncate", "replace"):
        piece = PartialFile(tmp_path / "pieces", layout)
        piece.write(faces[piece.done :]) if piece.done < 3 else None
        with monkeypatch.context() as patch:
            patch.setattr(os, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                piece.finish()
    piece = PartialFile(tmp_path / "pieces", layout)
    piece.write(faces[piece.done :])
    piece.finish()
    assert (tmp_path / "pieces").read_bytes() == whole


def test_a_file_in_pieces_has_the_same_bytes(tmp_path: Path) -> None:
    faces = QuantisedTemplates.of(random_faces(3))
    whole = save(tmp_path / "whole", faces, PATHS, "0123").read_bytes()
    layout = Layout(faces[:1], PATHS, {"model": "0123", "model_name": ""})
    piece = PartialFile(tmp_path / "pieces", layout)
    piece.write(faces[:2])
    piece.close()
    assert not (tmp_path / "pieces").exists()
    with pytest.raises(OamlError, match="run the same `oaml embed` again"):
        load(tmp_path / "pieces")
    piece = PartialFile(tmp_path / "pieces", layout)
    assert piece.done == 2
    with pytest.raises(ValueError, match="2 faces"):
        piece.finish()
    piece.write(faces[2:])
    piece.finish()
    assert (tmp_path / "pieces").read_bytes() == whole
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}  # they are faces


class Killed(BaseException):
    """The process ends here."""


def test_the_counter_counts_only_what_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any write, or cut off from power: the file goes on with what it counts and ends the same."""
    faces = QuantisedTemplates.of(random_faces(3))
    whole = save(tmp_path / "whole", faces, PATHS, "0123").read_bytes()
    layout = Layout(faces[:1], PATHS, {"model": "0123", "model_name": ""})
    pwrite, fsync = os.pwrite, os.fsync
    steps: list[str] = []
    end = -1

    def recorded_write(file: int, data: Any, offset: int) -> int:
        if len(steps) == end:
            raise Killed
        steps.append("counter" if offset >= layout.size else "faces")
        return pwrite(file, data, offset)

    def recorded_sync(file: int) -> None:
        if len(steps) == end:
            raise Killed
        steps.append("sync")
        fsync(file)

    with monkeypatch.context() as patch:
        piece = PartialFile(tmp_path / "once", layout)
        patch.setattr("os.pwrite", recorded_write)
        patch.setattr("os.fsync", recorded_sync)
        piece.write(faces[:2])
        piece.close()
    one_write = list(steps)
    assert one_write.count("counter") == 1
    counter = one_write.index("counter")
    assert "faces" in one_write[:counter]
    assert one_write[counter - 1] == "sync"
    assert "faces" not in one_write[counter:]
    for end in range(len(one_write) + 1):
        out = tmp_path / str(end)
        piece = PartialFile(out, layout)
        steps.clear()
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr("os.pwrite", recorded_write)
            patch.setattr("os.fsync", recorded_sync)
            piece.write(faces[:2])
        piece.close()
        again = PartialFile(out, layout)
        assert again.done == (2 if "counter" in steps else 0)
        again.write(faces[again.done :])
        again.finish()
        assert out.read_bytes() == whole


def test_another_model_does_not_continue_a_file(tmp_path: Path) -> None:
    faces = QuantisedTemplates.of(random_faces(3))
    PartialFile(tmp_path / "a", Layout(faces, PATHS, {"model": "0123"})).close()
    for other in (Layout(faces, PATHS, {"model": "4567"}), Layout(faces, PATHS[::-1], {"model": "0123"})):
        with pytest.raises(OamlError, match=r"a\.partial: .*differs in: (model|paths)\).* delete it"):
            PartialFile(tmp_path / "a", other)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "other tensors", "too few"])
def test_wrong_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "faces.safetensors"
    faces = QuantisedTemplates.of(random_faces(3))
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no templates")
    elif kind == "cut":
        content = save(path, faces, PATHS, "0123").read_bytes()
        path.write_bytes(content[:-5000])
    elif kind == "other tensors":
        save_file({"embedding": torch.zeros(3, 4)}, path)
    elif kind == "too few":
        save(path, faces, PATHS, "0123")
        content = load_file(path)
        save_file(
            {**content, "norm": content["norm"][:2].clone()},
            path,
            {"format": "oaml templates 1", "model": "", "model_name": ""},
        )
    with pytest.raises(OamlError, match=r"faces\.safetensors: .*oaml embed") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_templates_of_another_model_are_refused(tmp_path: Path) -> None:
    config = ModelConfig(NetConfig("ir_mini", 16), QAConvConfig(adapter=8))
    torch.manual_seed(0)
    one, other = Model(config).eval(), Model(config).eval()
    faces = QuantisedTemplates.of(one.extract(torch.rand(1, 3, 112, 112)))
    path = save(tmp_path / "faces", faces, ["a.jpg"], model_id(one), "runs/one")
    load(path).need_model(one)
    one.config.thresholds["0.01"] = 1.0
    load(path).need_model(one)
    with pytest.raises(OamlError, match=r"another model \(runs/one"):
        load(path).need_model(other)
    one.config.flip = True
    with pytest.raises(OamlError, match="another model"):
        load(path).need_model(one)


# --- the joint embedding of int8


@pytest.mark.parametrize("grid", [7, 14])
@pytest.mark.parametrize("shown", ["some", "all", "nothing"])
@pytest.mark.parametrize(("probes", "gallery"), [(1, 1), (3, 7), (67, 1027)])
def test_joint_of_int8_against_float(probes: int, gallery: int, shown: str, grid: int) -> None:
    size = 24 if probes > 3 else 128  # a step is a larger share of a shorter vector: the bound grows
    a, b = random_faces(probes, size, 4, 0), random_faces(gallery, size, 4, 1)
    generator = torch.Generator().manual_seed(2)
    v_a, v_b = (torch.rand(n, 1, grid, grid, generator=generator) for n in (probes, gallery))
    if shown == "all":
        v_a, v_b = torch.ones_like(v_a), torch.ones_like(v_b)
    elif shown == "nothing":
        v_b = torch.zeros_like(v_b)
    joint, small = Joint(), QuantisedTemplates.of(replace(b, visibility=v_b)).dequantised()
    expected = joint.match(a.cell_embeddings, b.cell_embeddings, v_a, v_b)
    compared = joint.match(a.cell_embeddings, small.cell_embeddings, v_a, small.visibility)
    assert compared.cosine.shape == (probes, gallery)
    bound = 2e-3 if size == 128 else 8e-3
    assert float((compared.cosine - expected.cosine).abs().max()) < bound
    assert float((compared.unseen - expected.unseen).abs().max()) < 2e-3
    if shown == "nothing":
        assert not compared.cosine.any()
        assert bool((compared.unseen == 1).all())
