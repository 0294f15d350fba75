"""Which module imports which: read from the source, imports inside functions and for types alone included."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

from oaml.main import COMMANDS

SOURCE = Path(__file__).parents[1] / "src"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of the product that it imports."""
    trees = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    graph: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                # a name that is imported may be a module itself
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in trees else node.module for target in targets]
            else:
                continue
            graph[name] |= {target for target in targets if target in trees and target not in (name, "oaml")}
    return graph


def reached_from(module: str) -> set[str]:
    """All that a module imports, directly or not."""
    reached, todo = set[str](), [module]
    while todo:
        for target in imports()[todo.pop()] - reached:
            reached.add(target)
            todo.append(target)
    return reached


@pytest.mark.parametrize("command", ["embed", "align"])
def test_what_runs_needs_nothing_that_measures(command: str) -> None:
    module = COMMANDS[command].function.partition(":")[0]
    reached = reached_from(module)
    assert "oaml.inference" in reached
    assert not {name for name in reached if name.startswith("oaml.evaluation")}
