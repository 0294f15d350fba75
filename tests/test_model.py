"""Model folders: bit for bit there and back, never half written, and refused with a reason."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard, RepoUrl
from torch import Tensor

from conftest import with_statistics
from oaml import net as nets
from oaml.errors import OamlError
from oaml.model import CONFIG_FORMAT, Model, ModelConfig
from oaml.net import NetConfig
from oaml.qaconv import QAConvConfig
from oaml.template import COLUMNS
from oaml.templates.file import model_id
from oaml.weights import Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")


def small(seed: int = 0, **net: Any) -> Model:
    """A model with random weights and statistics."""
    torch.manual_seed(seed)
    model = Model(
        ModelConfig(
            net=NetConfig(**{"architecture": "ir_mini", "embedding_size": 16, **net}),
            qaconv=QAConvConfig(adapter=8),
            preprocessing=Preprocessing("BGR", (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)),
            training={"steps": 12, "data": ["faces", "masks"]},
            thresholds={"0.001": 1.25},
            licence="CC0-1.0",
        )
    )
    return with_statistics(model)


def images(count: int = 2) -> Tensor:
    return torch.rand((count, 3, 112, 112), generator=torch.Generator().manual_seed(1))


def assert_same(ours: Model, theirs: Model) -> None:
    assert ours.config == theirs.config
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) and value.dtype == b[name].dtype for name, value in a.items())
    with torch.no_grad():
        for x, y in zip(ours(images()), theirs(images()), strict=True):
            assert torch.equal(x, y)


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(OamlError) as caught:
        Model.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def model() -> Model:
    return small()


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    return model.save(tmp_path / "model")


# --- there and back


@pytest.mark.parametrize(
    "net", [{"stage": 3}, {"stage": 4}, {"occlusion_stage": 3}, {"occlusion_stage": 3, "branch": "stage"}]
)
def test_round_trip(tmp_path: Path, net: dict[str, Any]) -> None:
    original = small(**net)
    assert original.save(tmp_path / "runs" / "model") == tmp_path / "runs" / "model"
    loaded = Model.load(tmp_path / "runs" / "model")
    assert not loaded.training
    assert_same(loaded, original)
    assert sorted(os.listdir(tmp_path / "runs")) == ["model"]
    assert sorted(os.listdir(tmp_path / "runs" / "model")) == ["config.json", "model.safetensors"]
    again = loaded.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / "runs" / "model" / name).read_bytes()


def test_a_repository_of_the_hub_comes_back_with_its_card(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stands for the hub: what is pushed there is what comes from there."""
    hub = tmp_path / "hub"

    def upload(self: object, *, repo_id: str, folder_path: Path, **_: object) -> str:
        shutil.copytree(folder_path, hub / repo_id)
        return repo_id

    def snapshot(repo_id: str, **_: object) -> str:
        return str(hub / repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, repo_id, **__: RepoUrl(repo_id))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download",
        lambda *, repo_id, filename, **_: str(hub / repo_id / filename),
    )
    model.config.licence, model.config.thresholds = "for research", {"0.01": 1.25, "0.001": 2.5}
    model.config.training = {"people": "10 people", "people_hashed": ["ab", "cd"], "odd": "a | b\nc"}
    model.push_to_hub("somebody/faces")
    assert_same(Model.from_pretrained("somebody/faces"), model)
    card = (hub / "somebody" / "faces" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(card).data.to_dict()["library_name"] == "oaml"
    for stated in ("Licence: for research", "| 0.001 | 2.500 |", "| people | 10 people |", "a \\| b c"):
        assert stated in card
    assert "| people hashed | 2 entries |" in card


def test_hub_interface_reads_and_writes_the_same_folder(model: Model, folder: Path, tmp_path: Path) -> None:
    loaded = Model.from_pretrained(str(folder))
    assert not loaded.training
    assert_same(loaded, model)
    model.save_pretrained(tmp_path / "hub")
    assert_same(Model.load(tmp_path / "hub"), model)


def test_every_score_comes_back(model: Model, folder: Path) -> None:
    state = model.state_dict()
    assert {name for name in state if name.startswith(("joint.", "fusion."))} == {
        "joint.log_scale", "joint.confidence", "fusion.qaconv_weight", "fusion.cosine_weight", "fusion.offset",
        "fusion.overlap", "fusion.traces", "fusion.trace_floor", "fusion.cosine_fade", "fusion.lift",
    }  # fmt: skip
    loaded = Model.load(folder)
    a, b = images().split(1)
    ours = model.compare(model.extract(a), model.extract(b), plain=True)
    theirs = loaded.compare(loaded.extract(a), loaded.extract(b), plain=True)
    assert tuple(ours) == COLUMNS
    assert all(torch.equal(ours[name], theirs[name]) for name in COLUMNS)


def test_matcher_ignores_the_position_bias_of_other_methods() -> None:
    for method in ("none", "scaling"):
        config = ModelConfig(NetConfig("ir_mini", 16), QAConvConfig(method, 0, position_bias=True))
        assert "matcher.offset_bias" not in Model(config).state_dict()


# --- preprocessing


def test_preprocessing_by_channel() -> None:
    rgb = images()
    fed = small().preprocess(rgb)
    for channel, (source, mean, std) in enumerate([(2, 0.5, 0.5), (1, 0.4, 0.25), (0, 0.3, 0.2)]):
        torch.testing.assert_close(fed[:, channel], (rgb[:, source] - mean) / std)


def test_bgr_is_rgb_with_flipped_channels(model: Model, folder: Path) -> None:
    edit_config(folder, preprocessing={"channels": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]})
    rgb = Model.load(folder)
    with torch.no_grad():
        bgr_output, rgb_output = model(images()), rgb(images().flip(1))
        assert all(torch.equal(a, b) for a, b in zip(bgr_output, rgb_output, strict=True))
        assert not torch.equal(bgr_output.embedding, rgb(images()).embedding)


# --- nothing half written


def test_full_disk_keeps_the_old_model(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: Any, path: Path, facts: dict[str, str]) -> None:
        Path(path).write_bytes(b"the first half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OamlError, match="No space left") as caught:
            small(seed=1).save(target)
        assert str(target) in str(caught.value)
    assert os.listdir(tmp_path) == ["model"]
    assert_same(Model.load(folder), model)


def test_full_disk_as_the_format_reports_it(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: Any, path: Path, facts: dict[str, str]) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OamlError, match="No space left"):
        model.save(tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_a_newer_model_replaces_the_older(folder: Path, tmp_path: Path) -> None:
    newer = small(seed=1)
    newer.save(folder)
    assert_same(Model.load(folder), newer)
    assert os.listdir(tmp_path) == ["model"]


def test_other_folders_are_not_replaced(model: Model, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.jpg").write_text("x")
    with pytest.raises(OamlError, match="no model folder"):
        model.save(tmp_path / "faces")
    assert os.listdir(tmp_path) == ["faces"]
    assert os.listdir(tmp_path / "faces") == ["a.jpg"]


# --- refused folders


def test_missing_parts(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "gone", "no such folder")
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(tmp_path / name)
        refused(folder, name, "no such file")


def test_one_changed_bit_of_the_weights_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for place in (begin, (begin + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(folder, "model.safetensors", "damaged")
    safetensors.torch.save_file(safetensors.torch.load(whole), path)  # as older versions wrote it
    Model.load(folder)


def test_a_model_of_format_3_has_no_traces_and_scores_as_it_did(folder: Path) -> None:
    new = Model.load(folder)
    new.fusion.traces.zero_()
    new.fusion.trace_floor.zero_()
    path = folder / "model.safetensors"
    state = safetensors.torch.load(path.read_bytes())
    del state["fusion.traces"], state["fusion.trace_floor"]
    safetensors.torch.save_file(state, path)
    edit_config(folder, format=3)
    old = Model.load(folder)
    assert not old.fusion.traces.any()
    with torch.inference_mode():
        a, b = new.extract(images(4)[:2]), new.extract(images(4)[2:])
        assert torch.equal(old.compare(a, b)["fused"], new.compare(a, b)["fused"])
    assert model_id(old) == model_id(new)


def test_traces_change_no_template_and_count_against_a_pair_only(folder: Path) -> None:
    plain, traced = Model.load(folder), Model.load(folder)
    plain.fusion.traces.zero_()
    plain.fusion.trace_floor.zero_()
    torch.nn.init.normal_(traced.fusion.traces)
    traced.fusion.trace_floor.fill_(0.1)
    assert model_id(plain) == model_id(traced)  # galleries stay of use
    with torch.inference_mode():
        a, b = plain.extract(images(4)[:2]), plain.extract(images(4)[2:])
        before, after = plain.compare_all(a, b)["fused"], traced.compare_all(a, b)["fused"]
        one, other = ((x.embedding @ traced.fusion.traces.T - 0.1).clamp_min(0) for x in (a, b))
        torch.testing.assert_close(before - after, one @ other.T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(traced.compare(a, b)["fused"], after.diagonal(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_damaged_weights(folder: Path, kind: str) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no weights at all"}[kind]
    )
    refused(folder, "model.safetensors", "damaged")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"format": 3, "net": {"architecture": "ir_7"}}',
        '{"format": 3, "net": {"colour": 3}}',
        '{"format": 3, "net": 5}',
        '{"format": 3, "net": {"embedding_size": "many"}}',
        '{"format": 3, "preprocessing": {"mean": [0.5]}}',
        '{"format": 3, "qaconv": {"method": "both"}}',
        "\udcff",
    ],
)
def test_damaged_description(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, "config.json")


def test_description_of_other_versions(folder: Path) -> None:
    edit_config(folder, format=99, oaml="7.0")
    refused(folder, "config.json", "format", "7.0")
    for earlier in (1, 2):  # before the joint embedding; before the calibration of overlapping occluders
        edit_config(folder, format=earlier)
        refused(folder, "config.json", "format")
    edit_config(folder, format=CONFIG_FORMAT, colour=3)
    refused(folder, "config.json", "unknown", "colour")


@pytest.mark.parametrize(
    "changes",
    [
        {"net": {"architecture": "ir_18", "embedding_size": 16}},
        {"net": {"architecture": "ir_mini", "embedding_size": 32}},  # the same names, another shape
        {"qaconv": {"method": "none", "adapter": 8}},
    ],
)
def test_weights_of_another_description(folder: Path, changes: dict[str, Any]) -> None:
    edit_config(folder, **changes)
    refused(folder, "model.safetensors", "does not belong to config.json")


def test_missing_and_unknown_weights_are_listed(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state["intruder"] = state.pop("matcher.log_scale")
    safetensors.torch.save_file(state, path)
    refused(folder, "missing: matcher.log_scale", "unknown: intruder")
    state["matcher.log_scale"] = state.pop("intruder")
    for name in ("joint.confidence", "fusion.offset", "fusion.overlap"):
        safetensors.torch.save_file({key: value for key, value in state.items() if key != name}, path)
        refused(folder, f"missing: {name}", "unknown: none")


def test_damaged_branch_description(folder: Path) -> None:
    edit_config(folder, net={"architecture": "ir_mini", "embedding_size": 16, "branch": "stage"})
    refused(folder, "config.json", "branch", "occlusion_stage 3")
    net = {"architecture": "ir_mini", "embedding_size": 16, "branch": "stage", "occlusion_stage": 3}
    edit_config(folder, net=net)
    refused(folder, "model.safetensors", "does not belong to config.json", "net.branch")


# --- extractor and matcher


@pytest.mark.parametrize(
    ("net", "grid"), [({"stage": 4}, 7), ({"stage": 3}, 14), ({"occlusion_stage": 3, "branch": "stage"}, 7)]
)
def test_extract(net: dict[str, Any], grid: int) -> None:
    model = small(**net)
    faces = model.extract(images(3))
    with torch.no_grad():
        face = model(images(3))
    assert len(faces) == 3
    assert torch.equal(faces.embedding, face.embedding)
    assert torch.equal(faces.norm, face.norm[:, 0])
    assert torch.equal(faces.visibility, face.visibility)
    assert faces.visibility.shape == (3, 1, grid, grid)
    assert faces.local.shape == (3, 8, grid, grid)
    torch.testing.assert_close(faces.local.norm(dim=1), torch.ones(3, grid, grid))
    assert faces.cell_embeddings.shape == (3, 49, 16)
    if "branch" in net:  # the branch's own output layer, which differs from the backbone's here
        assert model.net.branch is not None
        with torch.no_grad():
            embedding, norm = model.net.branch.forward_head(face.stage4)
    else:
        embedding, norm = faces.embedding, faces.norm[:, None]
    error = faces.cell_embeddings.sum(1) - embedding * norm
    assert error.abs().max() <= 1e-5 * faces.cell_embeddings.abs().sum(1).max()


def test_extract_with_flip_is_the_mean_of_a_face_and_its_mirror_image() -> None:
    model = small()
    plain, mirrored = model.extract(images(2)), model.extract(images(2).flip(3))
    model.config.flip = True
    both = model.extract(images(2))
    raw = plain.embedding * plain.norm[:, None] + mirrored.embedding * mirrored.norm[:, None]
    torch.testing.assert_close(both.embedding, raw / raw.norm(dim=1, keepdim=True))
    torch.testing.assert_close(both.norm, raw.norm(dim=1) / 2)
    assert torch.equal(both.local, plain.local)
    assert not torch.allclose(both.embedding, plain.embedding)
    for face, y, x in product(range(2), range(7), range(7)):
        cells = plain.cell_embeddings[face, 7 * y + x], mirrored.cell_embeddings[face, 7 * y + 6 - x]
        torch.testing.assert_close(both.cell_embeddings[face, 7 * y + x], (cells[0] + cells[1]) / 2)
        shown = plain.visibility[face, 0, y, x], mirrored.visibility[face, 0, y, 6 - x]
        torch.testing.assert_close(both.visibility[face, 0, y, x], (shown[0] + shown[1]) / 2)
    total = both.cell_embeddings.sum(1)
    torch.testing.assert_close(total, both.embedding * both.norm[:, None], rtol=1e-4, atol=1e-4)


def test_extract_needs_eval_mode() -> None:
    with pytest.raises(RuntimeError, match=r"\.eval\(\)"):
        small().train().extract(images())


def test_row_by_row_is_the_diagonal_of_all_against_all(model: Model) -> None:
    a, b = model.extract(images(4)[:2]), model.extract(images(4)[2:])
    pairs, everything = model.compare(a, b, plain=True), model.compare_all(a, b, plain=True)
    assert tuple(pairs) == tuple(everything) == COLUMNS
    for name in COLUMNS:
        assert everything[name].shape == (2, 2)
        torch.testing.assert_close(everything[name].diagonal(), pairs[name], rtol=1e-5, atol=1e-5)
        turned = model.compare_all(b, a, plain=True)[name].T
        torch.testing.assert_close(everything[name], turned, rtol=1e-4, atol=1e-4)
    assert "qaconv" not in model.compare(a, b)
    assert "qaconv" not in model.compare_all(a, b)


@torch.inference_mode()
def test_local_cells_where_they_can_change_the_decision(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(model)
    probes, gallery = model.extract(images(9)[:4]), model.extract(images(9)[4:])
    fused = model.compare_all(probes, gallery)["fused"]
    rest = fused - model.fusion.qaconv_weight * model.compare_all(probes, gallery)["qaconv_visibility"]
    assert model.fusion.lift.isinf()  # not fitted yet: nothing is left out
    torch.testing.assert_close(model.fused_above(probes, gallery, 1e6), fused, rtol=1e-5, atol=1e-5)
    compared = []
    inner = model.matcher.match_listed

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        compared.append(len(args[2][0]))
        return inner(*args, **kwargs)

    monkeypatch.setattr(model.matcher, "match_listed", counted)
    monkeypatch.setattr("oaml.qaconv.PAIRS_AT_A_TIME", 3)
    threshold = float(fused.median())
    model.fusion.lift.fill_(0.2)
    above = model.fused_above(probes, gallery, threshold)
    near = rest >= threshold - 0.2
    assert 0 < near.sum() < near.numel()
    assert compared == [near.sum()]
    torch.testing.assert_close(above[near], fused[near], rtol=1e-5, atol=1e-5)
    assert (above[~near] < threshold).all()
    assert (model.fused_above(probes, gallery, 1e6) < 1e6).all()  # nobody comes near


@torch.inference_mode()
def test_fused_is_put_together_from_the_others(model: Model) -> None:
    a, b = model.extract(images(4)[:2]), model.extract(images(4)[2:])
    scores = model.compare(a, b)
    compared = model.joint.compare_pairs(a.cell_embeddings, b.cell_embeddings, a.visibility, b.visibility)
    torch.testing.assert_close(scores["joint"], model.joint.logit(compared.cosine, compared.unseen))
    alike = (model.fusion.traces_of(a.embedding) * model.fusion.traces_of(b.embedding)).sum(1)
    fused = model.fusion(
        scores["joint"], scores["qaconv_visibility"], scores["cosine"].float(), compared, alike
    )
    torch.testing.assert_close(scores["fused"], fused)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("flip",), "no", "flip is 'no', no true or false"),
        (("flip",), 1, "flip is 1, no true or false"),
        (("net", "embedding_size"), True, "net.embedding_size is True, no whole number"),
        (("net", "embedding_size"), 10**6, "embedding_size: 1000000 is not between 1 and 8,192"),
        (("net", "occlusion_context"), "false", "net.occlusion_context is 'false', no true or false"),
        (("licence",), None, "licence is None, no text"),
    ],
)
def test_a_setting_of_another_type_is_named(
    tmp_path: Path, key: tuple[str, ...], value: Any, message: str
) -> None:
    folder = Model(ModelConfig(net=NetConfig(architecture="ir_mini", embedding_size=16))).save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    place = config
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(OamlError, match=re.escape(message)):
        Model.load(folder)


def test_a_config_of_another_size_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Model(ModelConfig(net=NetConfig(architecture="ir_mini", embedding_size=16))).save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["net"]["embedding_size"] = 8192
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    places: list[str] = []
    build = nets.build_backbone
    monkeypatch.setattr(
        "oaml.net.build_backbone", lambda c: places.append(str(torch.get_default_device())) or build(c)
    )
    with pytest.raises(OamlError, match=r"of another shape: .*output_layer"):
        Model.load(folder)
    assert places == ["meta"]


def test_a_model_of_no_numbers_is_refused(tmp_path: Path) -> None:
    model = Model(ModelConfig(net=NetConfig(architecture="ir_mini", embedding_size=16)))
    Model.load(model.save(tmp_path / "good"))  # its lift is infinite, for it has not been fitted
    with torch.no_grad():
        model.joint.log_scale.fill_(torch.nan)
    with pytest.raises(
        OamlError, match=r"model.safetensors: joint.log_scale holds 1 numbers that are not finite"
    ):
        Model.load(model.save(tmp_path / "bad"))
