"""Which module imports which: read from the source, imports inside functions and for types alone included."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from oaml.main import COMMANDS

SOURCE = Path(__file__).parents[1] / "src"
DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"


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


def room_of(module: str) -> str:
    """The folder or the file below the package that a module is in."""
    return module.split(".")[1]


def drawing(heading: str) -> list[str]:
    """Lines of the block of docs/architecture.md below a heading."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return text.partition(f"## {heading}\n")[2].split("```")[1].strip("\n").splitlines()


def floors() -> dict[str, int]:
    """Room -> its floor, as drawn."""
    lines = [line.split() for line in drawing("The floors")]
    return {room: int(number) for _, number, *rooms in lines for room in rooms}


def way() -> list[tuple[str, str]]:
    """Asking and asked module, as drawn."""
    above: dict[int, str] = {}
    arrows = []
    for line in drawing("The way of an image"):
        depth = re.match(r"[\s│├└─]*", line)
        assert depth is not None
        module = line[depth.end() :].split()[0]
        above[depth.end()] = f"oaml.{module}"
        if depth.end():
            arrows.append((above[depth.end() - 3], f"oaml.{module}"))
    return arrows


def test_imports_run_downwards() -> None:
    floor = floors()
    rooms = {room_of(module) for module in imports() if module != "oaml"}
    assert rooms == set(floor)
    climbing = [
        f"{module} imports {target}"
        for module, targets in imports().items()
        for target in targets
        if module != "oaml" and floor[room_of(module)] < floor[room_of(target)]
    ]
    assert climbing == []


def test_no_circle_is_left() -> None:
    """Neither among modules nor, on one floor, among rooms."""
    modules = {name: targets for name, targets in imports().items() if name != "oaml"}
    rooms: dict[str, set[str]] = {room_of(name): set() for name in modules}
    for name, targets in modules.items():
        rooms[room_of(name)] |= {room_of(target) for target in targets} - {room_of(name)}
    for graph in (modules, rooms):
        TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_way_of_an_image_is_drawn_as_it_is() -> None:
    drawn = way()
    assert len(drawn) > 20
    assert [arrow for arrow in drawn if arrow[1] not in imports()[arrow[0]]] == []


@pytest.mark.parametrize("command", ["verify", "enroll", "search", "gallery", "embed", "align", "adapt"])
def test_what_runs_needs_nothing_that_measures(command: str) -> None:
    module = COMMANDS[command].function.partition(":")[0]
    reached = reached_from(module)
    assert "oaml.inference" in reached
    assert not {name for name in reached if name.startswith("oaml.evaluation")}
