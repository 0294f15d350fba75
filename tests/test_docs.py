"""The README's code runs, its commands parse, and versions agree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from oaml import __version__
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
