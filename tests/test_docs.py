"""The README's code runs, its commands parse, files and names in documents exist, and versions agree."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from pkgutil import resolve_name

import pytest

from oaml import __version__
from oaml.errors import EXTRAS
from oaml.main import COMMANDS, parser_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("oaml ")]


@pytest.mark.parametrize("line", commands() + [command.example for command in COMMANDS.values()])
def test_commands_of_the_readme_and_of_the_help_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, name, *arguments = shlex.split(line, comments=True)
    parser_of(name)[0].parse_args(arguments)


def strings(path: Path) -> list[str]:
    """What a file of code says, docstrings included, and the commands that it puts together with `command`."""
    said = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            said.append(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command":
            said += [f"oaml {word.value}" for word in node.args[:1] if isinstance(word, ast.Constant)]
    return said


def test_every_command_that_is_named_exists() -> None:
    stored = {"oaml templates 1", "oaml gallery 1"}  # formats of files
    code = [text for path in (ROOT / "src").rglob("*.py") for text in strings(path) if text not in stored]
    named = {name for text in code for name in re.findall(r"\boaml ([a-z]+)", text)}
    assert named >= set(COMMANDS) - {"benchmark"}
    assert named <= set(COMMANDS)
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("configs/*"), *ROOT.glob("src/oaml/*/*.md")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    assert set(re.findall(r"(?:`|^#? ?|: )oaml ([a-z]+)", text, re.MULTILINE)) <= set(COMMANDS)


def test_extras_are_those_of_the_package() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ("train", "gallery", "onnx", "webdataset"):
        packages = re.search(rf"^{extra} = \[(.*)\]", declared, re.MULTILINE)
        assert packages is not None
        for package in re.findall(r'"(\w+)', packages.group(1)):
            assert EXTRAS[package] == extra


def test_scripts_that_the_readme_names_exist() -> None:
    named = re.findall(r"^(script/\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert named
    assert all((ROOT / script).is_file() for script in named)


def test_changelog_version_and_package_agree() -> None:
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    declared = re.search(
        r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert latest is not None
    assert declared is not None
    assert latest.group(1) == declared.group(1) == __version__


DOCUMENTS = [
    "README.md", "OCCLUSION_LAYER_SPEC.md", "CHANGELOG.md", "docs/IMPLEMENTATION_PLAN.md", "docs/architecture.md", "docs/report.md",
    "docs/templates.md", "docs/data.md", "docs/inputs.md", "docs/weights.md", "benchmarks/README.md", "studies/README.md",
    "src/oaml/starter/README.md",
    "src/oaml/photographs/refiner/README.md",
]  # fmt: skip
CODE = [
    path
    for top in ("src", "studies", "tests")
    for kind in ("py", "cpp")
    for path in (ROOT / top).rglob(f"*.{kind}")
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_names_in_a_document_exist(document: str) -> None:
    """A file of code is named by its path below the package or the root, or by a name that no other file has."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for named in re.findall(r"[\w/]*\w\.(?:py|cpp)\b", text):
        exact = [path for path in (ROOT / "src" / "oaml" / named, ROOT / named) if path in CODE]
        assert exact or sum(path.name == named for path in CODE) == 1, named
    for named in re.findall(r"`((?:docs|studies|benchmarks|configs|src)/[\w/]+\.(?:md|yaml))`", text):
        assert (ROOT / named).is_file(), named
    if document != "CHANGELOG.md":  # which tells what names were
        for named in re.findall(r"`(oaml(?:\.\w+)+)", text):
            resolve_name(named)
