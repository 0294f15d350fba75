"""Going on with a training: every setting applies or is refused by name, and a checkpoint is whole or refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.main import main
from oaml.model import Model
from oaml.resume import FREE, PLACES, Settings, compare, flatten
from oaml.support.lock import alone
from oaml.train_val import OcclusionFace, OptimiserConfig, TrainConfig, train
from test_train_val import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a training, to be copied."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train(configured(out))
    return out


def configured(out: Path, **changes: Any) -> TrainConfig:
    return tiny(out, **({"steps": 2, "checkpoint_every": 1} | changes))


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(config: TrainConfig) -> str:
    """The line of a training that does not go on; it leaves everything as it was."""
    before = contents(config.out)
    config.resume = True
    with pytest.raises(OamlError) as caught:
        train(config)
    assert contents(config.out) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- settings


def types_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Setting -> its type."""
    types: dict[str, Any] = {}
    for name, part in get_type_hints(kind).items():
        types |= types_of(part, f"{prefix}{name}.") if is_dataclass(part) else {prefix + name: part}
    return types


TYPES = types_of(TrainConfig)


def another(value: Any, kind: Any) -> Any:
    """A value of a setting that differs."""
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    if type(None) in get_args(kind):
        return another(value, next(part for part in get_args(kind) if part is not type(None)))
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value[:-1], 0.25)
    if isinstance(value, list):
        return value[:-1] or [Path("elsewhere")]
    if kind is Path:
        return Path("elsewhere")
    return value + "x" if kind is str else value + 1 if kind is int else value / 2 if value else 0.5


def changed(config: TrainConfig, name: str, value: Any) -> TrainConfig:
    """The configuration with one setting changed; combinations are not judged."""
    *groups, last = name.split(".")
    part: Any = config
    for group in groups:
        part = getattr(part, group)
    setattr(part, last, value)
    return config


def value_of(config: TrainConfig, name: str) -> Any:
    part: Any = config
    for group in name.split("."):
        part = getattr(part, group)
    return part


def shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def test_all_settings_are_known() -> None:
    assert TYPES.keys() == flatten(asdict(configured(Path("run")))).keys()
    assert TYPES.keys() >= FREE | PLACES


@pytest.mark.parametrize("name", sorted(TYPES.keys() - FREE - PLACES))
def test_a_setting_that_makes_another_training_is_refused_by_name(name: str, run: Path) -> None:
    config = configured(run)
    old, new = value_of(config, name), another(value_of(config, name), TYPES[name])
    line = refusal(changed(config, name, new))
    assert f"{name} was {shown(old)} and is {shown(new)}" in line
    assert str(run) in line


@pytest.mark.parametrize("name", sorted(FREE - {"out", "resume", "check"}))
def test_a_setting_that_may_change_is_said(name: str) -> None:
    config = configured(Path("run"))
    before = Settings.of(config, {"ann": 2})
    old, new = value_of(config, name), another(value_of(config, name), TYPES[name])
    now = Settings.of(changed(config, name, new), {"ann": 2})
    assert compare(before, now, config.out) == [f"{name} was {shown(old)} and is {shown(new)}"]


def test_several_settings_are_one_line(run: Path) -> None:
    line = refusal(configured(run, seed=1, precision="bf16-mixed", data={"cover_probability": 0.25}))
    assert "seed was 0 and is 1" in line
    assert "precision was 32-true and is bf16-mixed" in line
    assert "data.cover_probability was 0.5 and is 0.25" in line


def used(config: TrainConfig) -> dict[str, list[float]]:
    """What the first step after the checkpoint was taken with: of the groups of parameters `lr` and `weight_decay`, and `clip`."""
    found: dict[str, list[float]] = {}
    with pytest.MonkeyPatch.context() as patch:

        def look(self: OcclusionFace, optimizer: torch.optim.Optimizer) -> None:
            for name in ("lr", "weight_decay"):
                found.setdefault(name, [group[name] for group in optimizer.param_groups])
            found.setdefault("clip", [cast(float, self.trainer.gradient_clip_val)])

        patch.setattr(OcclusionFace, "on_before_optimizer_step", look)
        config.resume = True
        train(config)
    return found


USUAL: dict[str, Any] = {
    "kind": "adamw",
    "lr": 1e-3,
    "milestones": [0.5],
}  # a tenth from the third of four steps on
OTHERS: dict[str, tuple[dict[str, Any], str, Callable[[float], float]]] = {
    "lr": ({"lr": 4e-3}, "lr", lambda lr: lr * 4),
    "warmup": ({"warmup": 12}, "lr", lambda lr: lr * 10 / 4),  # the third step of twelve
    "schedule": ({"schedule": "cosine"}, "lr", lambda lr: lr * 10 / 2),  # half of four steps
    "milestones": ({"milestones": [0.9]}, "lr", lambda lr: lr * 10),
    "weight_decay": ({"weight_decay": 0.25}, "weight_decay", lambda decay: 0.25 if decay else 0),
    "clip": ({"clip": 0.5}, "clip", lambda _: 0.5),
}


@pytest.fixture(scope="module")
def usual(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """What the third step is taken with where no setting is another one."""
    out = shutil.copytree(begun, tmp_path_factory.mktemp("usual") / "run")
    return used(configured(out, steps=4, optimiser=OptimiserConfig(**USUAL)))


@pytest.mark.parametrize("name", OTHERS)
def test_another_optimiser_setting_is_what_the_next_step_is_taken_with(
    name: str, run: Path, usual: dict[str, list[float]]
) -> None:
    changes, measure, expected = OTHERS[name]
    found = used(configured(run, steps=4, optimiser=OptimiserConfig(**(USUAL | changes))))
    assert found[measure] == pytest.approx([expected(x) for x in usual[measure]], rel=1e-6)
    assert {k: v for k, v in found.items() if k != measure} == {
        k: v for k, v in usual.items() if k != measure
    }


def test_another_rate_of_the_backbone(run: Path) -> None:
    found = used(
        configured(run, steps=3, optimiser=OptimiserConfig("adamw", 1e-3, backbone_lr=0.5, milestones=[]))
    )
    assert sorted(set(found["lr"])) == pytest.approx([5e-4, 1e-3])


def test_intervals_that_change_are_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(run, steps=4, picture_every=2, validate_every=2, checkpoint_every=3, log_every=2)
    config.resume = True
    train(config)
    assert [p.name for p in (run / "pictures").iterdir()] == ["maps_0000004.png"]
    assert Model.load(run / "best").config.training["steps"] == 4
    assert Model.load(run / "last").config.training["steps"] == 4
    said = capsys.readouterr().err
    assert "goes on after step 2" in said
    for change in ("steps was 2 and is 4", "validate_every was 0 and is 2", "picture_every was 0 and is 2"):
        assert change in said
    assert json.loads((run / "settings.json").read_text())["settings"]["validate_every"] == 2


def test_fewer_steps_than_are_done(run: Path) -> None:
    assert refusal(configured(run, steps=1)).endswith("steps is 1 and 2 are done; give --steps 2 or more")
    config = configured(run, steps=2)
    config.resume = True
    train(config)  # as many: nothing is left to do


def test_no_training_begins_by_changing_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(run)
    config.resume = True
    train(config)
    assert "goes on" not in capsys.readouterr().err


# --- what the settings point to


def write_people(folder: Path, *names: str, shots: int = 2) -> Path:
    for number, name in enumerate(names):
        for shot in range(shots):
            path = folder / name / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_face(number, shot)).save(path)
    return folder


def of_people(folder: Path, out: Path, **changes: Any) -> TrainConfig:
    config = configured(out, **changes)
    config.data.people, config.data.drawn_people, config.data.use = folder, 0, "all"
    return config


def test_people_are_the_same_wherever_they_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = write_people(tmp_path / "people", "ann", "bob", "cleo")
    out = tmp_path / "run"
    train(of_people(people, out))
    moved = people.rename(tmp_path / "moved")
    (moved / "cleo" / "1.png").unlink()
    config = of_people(moved, out, steps=3)
    config.resume = True
    train(config)
    said = capsys.readouterr().err
    assert f"data.people was {people} and is {moved}" in said
    assert "the people had 6 images and have 5" in said

    write_people(moved, "ann", "zoe")
    line = refusal(of_people(moved, out, steps=4))
    assert "3 people trained and 4 do now (new: zoe)" in line
    shutil.rmtree(moved / "bob")
    line = refusal(of_people(moved, out, steps=4))
    assert "3 people trained and 3 do now (new: zoe, gone: bob)" in line


def test_people_in_another_order_are_other_classes(tmp_path: Path) -> None:
    config = configured(tmp_path)
    before, now = (Settings.of(config, dict.fromkeys(names, 2)) for names in (("a", "b"), ("b", "a")))
    with pytest.raises(OamlError, match="2 people trained and 2 do now \\(in another order\\)"):
        compare(before, now, tmp_path)


def test_folders_may_move_but_not_come_or_go(tmp_path: Path) -> None:
    def settings(*masks: str) -> Settings:
        return Settings.of(configured(tmp_path, data={"masks": [Path(m) for m in masks]}), {"ann": 2})

    assert compare(settings("a"), settings("b"), tmp_path) == ["data.masks was [a] and is [b]"]
    for before, now in ((["a"], []), ([], ["a"]), (["a"], ["a", "b"])):
        with pytest.raises(OamlError, match=r"data.masks was \["):
            compare(settings(*before), settings(*now), tmp_path)


def test_the_first_weights_are_the_same_wherever_they_lie(begun: Path, tmp_path: Path) -> None:
    for name in ("first", "moved"):
        shutil.copytree(begun / "last", tmp_path / name)
    other = Model.load(begun / "last")
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    other.save(tmp_path / "other")
    out = tmp_path / "run"
    train(configured(out, backbone=tmp_path / "first"))
    line = refusal(configured(out, steps=3, backbone=tmp_path / "other"))
    assert f"backbone was {tmp_path / 'first'} and is {tmp_path / 'other'}, which holds other weights" in line
    assert "backbone was" in refusal(configured(out, steps=3))  # none at all
    config = configured(out, steps=3, backbone=tmp_path / "moved")
    config.resume = True
    train(config)


# --- folders of older versions, and damaged ones


def test_a_run_without_settings_goes_on_where_it_fits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "settings.json").unlink()
    config = configured(run, steps=3)
    config.resume = True
    train(config)
    assert f"{run}: has no settings.json to compare with" in capsys.readouterr().err
    assert json.loads((run / "settings.json").read_text())["settings"]["steps"] == 3


def test_a_run_without_settings_is_judged_by_its_checkpoint(run: Path) -> None:
    (run / "settings.json").unlink()
    sgd = OptimiserConfig("sgd", 1e-3)
    assert "was made by another optimiser" in refusal(configured(run, steps=3, optimiser=sgd))
    config = configured(run, steps=3)
    config.data.drawn_people = 30
    assert "people, " in (line := refusal(config))
    assert "checkpoint.ckpt: knows" in line
    config = configured(run, steps=3)
    config.head.kind = "arcface"
    assert "head.batch_mean" in refusal(config)
    config = configured(run, steps=3)
    config.net.embedding_size = 24
    assert "[24" not in (line := refusal(config)).partition("instead of")[0]
    assert "instead of" in line


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": 1, "people": {}, "first_weights": null}'])
def test_damaged_settings_are_named(content: str, run: Path) -> None:
    (run / "settings.json").write_text(content)
    assert refusal(configured(run)).startswith(f"{run / 'settings.json'}: is damaged (")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_called_so(share: float, run: Path) -> None:
    path = run / "checkpoint.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert refusal(configured(run)).startswith(f"{path}: is truncated or damaged (")


def test_one_bit_of_a_checkpoint(run: Path) -> None:
    path = run / "checkpoint.ckpt"
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole) // 10, len(whole) * 9 // 10, 5):  # in the numbers
        whole[place] ^= 1
        path.write_bytes(whole)
        assert "is truncated or damaged" in refusal(configured(run))
        whole[place] ^= 1


@pytest.mark.parametrize("where", ["state_dict", "optimizer_states"])
def test_a_checkpoint_with_numbers_that_are_not_finite(where: str, run: Path) -> None:
    path = run / "checkpoint.ckpt"
    stored = torch.load(path, weights_only=True)
    if where == "state_dict":
        stored[where]["head.kernel"][0, 0] = torch.nan
        name = "head.kernel"
    else:
        stored[where][0]["state"][0]["exp_avg"][0] = torch.inf
        name = "exp_avg of parameter 0"
    torch.save(stored, path)
    assert re.match(f"{path}: {name} holds [0-9]+ numbers that are not finite", refusal(configured(run)))


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"a": torch.zeros(2)}, [1, 2], Path("x")])
def test_something_else_in_the_place_of_a_checkpoint(content: Any, run: Path) -> None:
    torch.save(content, run / "checkpoint.ckpt")
    assert "checkpoint.ckpt: is no checkpoint of oaml train; " in refusal(configured(run))


def test_weights_that_a_step_made_infinite_are_not_kept(tmp_path: Path) -> None:
    config = configured(tmp_path / "run", optimiser=OptimiserConfig("sgd", 1e38, clip=0.0))
    with pytest.raises(OamlError, match=r"step 1: .*: not finite; .* lower optimiser.lr"):
        train(config)
    assert not (tmp_path / "run" / "checkpoint.ckpt").exists()
    assert not (tmp_path / "run" / "last").exists()


# --- one training a folder


def test_a_second_training_in_one_folder_is_refused(run: Path, tmp_path: Path) -> None:
    with alone(run / ".lock", "never said"):
        for resume in (False, True):
            before = contents(run)
            config = configured(run, steps=3)
            config.resume = resume
            with pytest.raises(OamlError, match=f"{run}: another training writes to it; wait for its end"):
                train(config)
            assert contents(run) == before
    config.resume = True
    train(config)
    assert not (run / ".lock").exists()


def test_a_folder_is_held_from_the_first_step_to_the_last(tmp_path: Path) -> None:
    def refused(self: OcclusionFace) -> None:
        steps.append(self.global_step)
        with pytest.raises(OamlError, match="another training writes to it"):
            train(configured(tmp_path / "run"))

    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OcclusionFace, "on_train_end", refused)
        train(configured(tmp_path / "run"))
    assert steps == [2]


def test_what_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    code = main(
        [
            "train",
            "--out",
            str(tmp_path / "runs" / "a"),
            "--data.people",
            str(tmp_path / "none"),
            "--steps",
            "1",
        ]
    )
    assert code == 1
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--accelerator", "gpu"], "--accelerator gpu, --devices 1: can't be used here"),
        (
            ["--accelerator", "cpu", "--precision", "16-mixed"],
            "--precision 16-mixed: this device would compute in bf16-mixed",
        ),
    ],
)
def test_what_this_machine_has_not(
    flags: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "--out",
        str(tmp_path / "run"),
        "--data.drawn_people",
        "8",
        "--net.architecture",
        "ir_mini",
    ]
    assert main([*words, *flags]) == 1
    captured = capfd.readouterr()
    assert captured.err.startswith(f"oaml train: {said}")
    assert (captured.out + captured.err).count("\n") == 1
    assert not (tmp_path / "run").exists()
