"""Benchmarks and studies measure the product by its public names alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "src/oaml/benchmarks").rglob("*.py"), *(ROOT / "studies").rglob("*.py")])
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in OF_NAMED_TUPLES


def private_names(source: str) -> Iterator[str]:
    """Private names that a file takes from elsewhere; methods that it defines and asks `self` for are its own."""
    nodes = list(ast.walk(ast.parse(source)))
    own = {f"self.{node.name}" for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if any(map(private, alias.name.split("."))))
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from filter(private, names)
        elif isinstance(node, ast.Attribute) and private(node.attr) and ast.unparse(node) not in own:
            yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_of_the_product(path: Path) -> None:
    assert list(private_names(path.read_text(encoding="utf-8"))) == []


def test_private_names_are_seen() -> None:
    source = "from oaml.photographs.detect import _mean, Face\nimport oaml._x\ngallery._store.add(self._made, case._asdict())\n"
    source += "def _made(self): self._made(), self._theirs\n"
    assert sorted(private_names(source)) == ["_mean", "gallery._store", "oaml._x", "self._theirs"]
    assert len(FILES) > 15
