"""`oaml benchmark`: the table of benchmarks, and how results are shown. What they measure is not tested: machines differ."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from oaml.benchmarks import BENCHMARKS, BenchmarkName
from oaml.errors import OamlError
from oaml.main import main


def measured(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """Let `oaml benchmark joint` find these values."""

    def run() -> dict[str, object]:
        print("what a library says on the way")
        return values

    monkeypatch.setitem(sys.modules, BENCHMARKS["joint"], SimpleNamespace(run=run))  # type: ignore[arg-type]


def test_every_name_has_a_module_and_every_module_a_name() -> None:
    assert set(BENCHMARKS) == set(get_args(BenchmarkName))
    assert all(module == f"oaml.benchmarks.{name.replace('-', '_')}" for name, module in BENCHMARKS.items())


def test_json_is_one_object_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, speedup=3.25, faces=1000, baseline="a plain loop")
    assert main(["benchmark", "joint", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {
        "benchmark": "joint",
        "speedup": 3.25,
        "faces": 1000,
        "baseline": "a plain loop",
    }
    assert "on the way" in shown.err


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured(monkeypatch, speedup=3.25, baseline="a [plain] loop", cases=[{"ratio": 7.5}])
    assert main(["benchmark", "joint"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("speedup", "3.25", "a [plain] loop", "cases 0 ratio", "7.5"))
    assert "on the way" not in shown


def test_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "coffee"]) == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in BENCHMARKS)


def test_a_machine_without_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> dict[str, object]:
        raise OamlError("no GPU here")

    monkeypatch.setitem(sys.modules, BENCHMARKS["cuda"], SimpleNamespace(run=run))  # type: ignore[arg-type]
    assert main(["benchmark", "cuda", "--json"]) == 1
    assert capsys.readouterr().out == ""


def test_an_option_of_another_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "joint", "--faces", "5"]) == 1
    assert "--faces: only oaml benchmark search has it" in capsys.readouterr().err
    assert main(["benchmark", "search", "--data", "folder"]) == 1
    assert "--data: only oaml benchmark photograph has it" in capsys.readouterr().err
