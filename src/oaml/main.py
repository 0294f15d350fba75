"""The command line: one table of commands, their arguments read from typed signatures, heavy imports inside commands.

Exit codes: 0 success, 1 bad input (one line says what is wrong and what to do), 2 a wrong call.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import sys
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from oaml import __version__
from oaml.errors import OamlError


@dataclass(frozen=True)
class Command:
    """Where a command lives and what `oaml --help` says of it."""

    function: str
    summary: str
    example: str


COMMANDS = {
    "demo": Command(
        "oaml.demo:demo",
        "train, evaluate and draw on drawn people, in minutes on a CPU",
        "oaml demo --out out/demo",
    ),
    "train": Command(
        "oaml.train_val:train",
        "train a network with its occlusion head and matcher",
        "oaml train --config configs/default.yaml --data.people faces/ --out runs/first",
    ),
    "adapt": Command(
        "oaml.adapt:adapt",
        "make any checkpoint occlusion-aware in minutes, on a CPU",
        "oaml adapt --backbone weights.pth --people faces/ --out runs/adapted",
    ),
    "evaluate": Command(
        "oaml.evaluation.report:evaluate",
        "all scores side by side on the same pairs, bare and covered: table, report.json, pictures",
        "oaml evaluate runs/first/best --images faces/ --pairs pairs.csv --out report --occlude all",
    ),
    "score": Command(
        "oaml.evaluation.scoring:score",
        "one line of scores a pair, no judgement",
        "oaml score runs/first/best --images faces/ --pairs pairs.csv --out scores.csv",
    ),
    "verify": Command(
        "oaml.verify:verify",
        "are two faces the same person? Decision, score, threshold, and how much of the face both show",
        "oaml verify a.jpg b.jpg --model runs/adapted --draw why.png",
    ),
    "enroll": Command(
        "oaml.gallery.commands:enroll",
        "make a gallery hold the people of a folder; again, and only what changed is done",
        "oaml enroll people/ --gallery staff",
    ),
    "search": Command(
        "oaml.gallery.commands:search",
        "who is on a photograph or in a film? The most alike people of a gallery for every face, and a decision",
        "oaml search visitor.jpg --gallery staff --draw why.png",
    ),
    "gallery": Command(
        "oaml.gallery.commands:gallery",
        "list, rename, delete, export and restore the people of a gallery",
        "oaml gallery staff --delete Ann",
    ),
    "embed": Command(
        "oaml.embed:embed",
        "a folder of faces to one file of int8 templates, as fast as the machine allows",
        "oaml embed runs/adapted --images faces/ --out faces.safetensors",
    ),
    "align": Command(
        "oaml.photographs:align_folder",
        "cut the faces out of photographs, aligned to 112x112",
        "oaml align photographs/ --out faces",
    ),
    "download": Command(
        "oaml.download:download",
        "fetch a published file, once and checked: the face detector, a backbone",
        "oaml download yunet",
    ),
    "occlude": Command(
        "oaml.occluders:occlude_folder",
        "cover faces with a drawn niqab, mask, sunglasses, scarf, hand or patch, with exact masks",
        "oaml occlude faces/ --kind niqab --out covered --seed 1",
    ),
    "benchmark": Command(
        "oaml.benchmarks:benchmark",
        "how much faster than a named baseline, measured on this machine",
        "oaml benchmark joint",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: by default those of the process, which is then taken to be the command line's own.
    """
    if arguments is None:
        # Threads that spin while they wait stall each other as soon as anything else runs on the machine: a forward pass of 32
        # faces took 2.9 s instead of 0.25 s on 2 cores beside another process. It is read when torch is imported, which no
        # command has done yet; a program that calls main() with arguments keeps its own environment.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        keep_freed_memory()
        arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"oaml {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"oaml: no command {name!r}; there are {', '.join(COMMANDS)} (oaml --help)", file=sys.stderr)
        return 2
    try:
        _run(name, arguments[1:])
    except OamlError as error:
        print(f"oaml {name}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "oaml" or not missing:
            raise
        print(f"oaml {name}: needs the package {missing}; pip install 'oaml[train]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"oaml {name}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # of the argument parser
        return stop.code if isinstance(stop.code, int) else 2
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"oaml {__version__}: occlusion-aware face recognition. Compares what both faces show.",
            "",
            "usage: oaml COMMAND [options]      oaml COMMAND --help",
            "",
            *lines,
            "",
            f"example: {COMMANDS['demo'].example}",
        ]
    )


def keep_freed_memory() -> None:
    """Let the process keep what its tensors give back, where the C library is glibc.

    Otherwise every large tensor is fetched from the system and returned to it, page by page: a training step of `adapt` spent a
    third of its time there and took twice as long.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _run(name: str, arguments: list[str]) -> None:
    parser, function, positional = parser_of(name)
    parsed = parser.parse_args(arguments)
    if name == "train":
        try:
            values = vars(parser.instantiate(parsed))
            values.pop("config")
            config = importlib.import_module("oaml.train_val").TrainConfig(**values)
        except ValueError as error:  # a combination that only the whole configuration can judge
            parser.error(str(error))
        else:
            function(config)
        return
    values = vars(parser.instantiate(parsed))
    given = [values.pop(p) for p in positional]  # a call copies its keywords before it reads a generator
    function(*given, **values)


def parser_of(name: str) -> tuple[Any, Any, list[str]]:
    """The argument parser of a command, its function, and the names of the arguments written without a flag."""
    from jsonargparse import ArgumentParser

    command = COMMANDS[name]
    module, _, attribute = command.function.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    switches = [] if name == "train" else _switches(function)
    options = importlib.import_module(module).TrainConfig if name == "train" else function
    lists = _lists(options)

    class Parser(ArgumentParser):
        def parse_args(self, args: Any = None, *rest: Any, **named: Any) -> Any:
            said = sys.argv[1:] if args is None else args
            try:
                said = _as_lists(said, lists)
            except ValueError as error:
                self.error(str(error))
            return super().parse_args(_with_values(said, switches), *rest, **named)

    parser = Parser(prog=f"oaml {name}", description=f"{command.summary}. Example: {command.example}")
    if name == "train":
        parser.add_argument("--config", action="config", help="YAML file with any of the options below")
        parser.add_class_arguments(options)
        _name_lists(parser, lists)
        return parser, function, []
    positional = [parameter.name for parameter in _positional(function)]
    for argument in positional:
        parser.add_argument(argument, type=_type(function, argument))
    parser.add_function_arguments(function, as_positional=False, skip=set(positional))
    _name_lists(parser, lists)
    return parser, function, positional


def _switches(function: Any) -> list[str]:
    """Flags of a command that are either true or false."""
    return [f"--{p}" for p in inspect.signature(function).parameters if _type(function, p) is bool]


def _lists(of: Any, prefix: str = "--") -> dict[str, Any]:
    """Flags that take a list, those of nested settings included -> type of its items."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(of).items():
        if name == "return":
            continue
        if get_origin(kind) is list:
            found[prefix + name] = get_args(kind)[0]
        elif is_dataclass(kind):
            found |= _lists(kind, f"{prefix}{name}.")
    return found


def _name_lists(parser: Any, lists: dict[str, Any]) -> None:
    """Let the help show what `_as_lists` reads."""
    for action in parser._actions:
        for flag in lists.keys() & set(action.option_strings):
            action.metavar = f"{flag.rpartition('.')[2].strip('-').upper()} ..."


def _as_lists(arguments: list[str], lists: dict[str, Any]) -> list[str]:
    """The same arguments with `--kinds niqab mask` said as `--kinds=["niqab", "mask"]`: all words up to the next flag.

    One word that is a list already, as `[niqab, mask]`, stays as it is.

    Raises:
        ValueError: a list flag without a word.
    """
    said: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, _, first = argument.partition("=")
        items = lists.get(flag.removesuffix("+"))  # with a plus the words are added to the default
        if items is None:
            said.append(argument)
            continue
        words = [first] if first else []
        while rest and not rest[0].startswith("-"):
            words.append(rest.pop(0))
        if not words:
            raise ValueError(f"{flag}: names nothing; give one or more, such as {flag} A B")
        if len(words) > 1 or not words[0].startswith("["):
            quoted = items in (str, Path)  # a number must not become text
            words = ["[" + ", ".join(json.dumps(word) if quoted else word for word in words) + "]"]
        said.append(f"{flag}={words[0]}")
    return said


def _with_values(arguments: list[str], switches: list[str]) -> list[str]:
    """The same arguments with `--json` said as `--json=true`, so that a switch may stand alone, and before a file name."""
    said = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        alone = argument in switches and following.lower() not in ("true", "false")
        said.append(f"{argument}=true" if alone else argument)
    return said


def _positional(function: Any) -> list[inspect.Parameter]:
    """The arguments written without a flag: those that a caller must give and may give by position."""
    return [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
    ]


def _type(function: Any, name: str) -> Any:
    return get_type_hints(function)[name]


if __name__ == "__main__":
    sys.exit(main())
