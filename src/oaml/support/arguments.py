"""The arguments of a command, read from a typed signature: what it takes, what its help says, and the errors of a wrong call.

jsonargparse parses; this module makes flags work as users expect of command lines. A switch takes no value, a list takes words up
to the next flag, and help and errors name `PATH` and `INT` instead of types of Python.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from argparse import SUPPRESS, Action, HelpFormatter
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, cast, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, get_loader, set_parsing_settings
from yaml import YAMLError

from oaml.support.names import printable, restored, storable

PLACEHOLDERS = {Path: "PATH", int: "INT", float: "FLOAT", str: "TEXT", bool: "true or false"}


class Help(HelpFormatter):
    """Paragraphs stay paragraphs, an example stays one line to copy, and an argument is called what its metavar says."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(
            part if part.startswith("example:") else fill(part, width, indent) for part in text.split("\n\n")
        )

    def _format_action_invocation(self, action: Action) -> str:
        return str(action.metavar or super()._format_action_invocation(action))


class Parser(ArgumentParser):
    """Reads the words of one command."""

    types: dict[str, Any]
    """Argument, such as `far` or `data.people` -> its type."""
    positional: list[str]
    """Arguments that are written without a flag, in their order."""
    renamed: dict[str, str]
    """Old flag -> the one that it is now."""

    @classmethod
    def of(cls, command: str, source: Any, summary: str, example: str, renamed: dict[str, str]) -> Parser:
        """The parser of a command.

        Args:
            command: as the user writes it, `oaml verify`.
            source: a function with a docstring that describes every parameter; those that may be passed by position and have no
                default, or can only be passed so, are arguments without a flag. Or a dataclass of settings, which a YAML file may
                hold too; those of nested dataclasses are flags such as `--data.people`.
            summary: the beginning of the help of a dataclass; that of a function begins with its docstring.
            example: a call that works.
            renamed: old flag -> new flag.
        """
        parser = cls(prog=command, epilog=f"example: {example}", formatter_class=Help, allow_abbrev=False)
        parser.types, parser.positional, parser.renamed = _types(source), [], renamed
        if is_dataclass(source):
            set_parsing_settings(docstring_parse_attribute_docstrings=True)
            parser.description = f"{summary[0].upper()}{summary[1:]}."
            parser.types["config"] = Path
            text = "YAML file with any of the options below, which go over it; --no-NAME unsets a switch, --NAME+ adds to a list"
            parser.add_argument("--config", action="config", help=text)
            parser.add_class_arguments(cast(type, source), as_group=False)
        else:
            docs = docstring_parser.parse(source.__doc__ or "")
            parser.description = docs.description
            helps = {parameter.arg_name: parameter.description for parameter in docs.params}
            for p in inspect.signature(source).parameters.values():
                if p.kind is p.POSITIONAL_ONLY or (
                    p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
                ):
                    parser.positional.append(p.name)
                    may_miss = {} if p.default is p.empty else {"nargs": "?", "default": p.default}
                    parser.add_argument(p.name, type=parser.types[p.name], help=helps.get(p.name), **may_miss)
            parser.add_function_arguments(source, as_group=False, skip={*parser.positional})
        parser._describe()
        return parser

    def _describe(self) -> None:
        """Put the type and the default of each argument into the help, and the required arguments into the usage line."""
        usage = [self.prog, *self.positional]
        for action in self._actions:
            if "--print_config" in action.option_strings:
                action.metavar, action.help = "--print_config", "print all options as YAML and exit"
            if action.dest not in self.types:
                continue
            kind = self.types[action.dest]
            if action.dest in self.positional:
                action.metavar = action.dest
                if get_origin(kind) is Literal:
                    action.metavar += f" {_placeholder(kind, action.dest)}"
            elif kind is bool:
                other = {True: f", --no-{action.dest}", None: f", --not-{action.dest}"}
                action.metavar = f"--{action.dest}" + other.get(action.default, "")
            else:
                action.metavar = f"--{action.dest} {_placeholder(kind, action.dest)}"
            if is_dataclass(kind):
                action.help = "YAML file with these options alone"
            note = _default(action)
            if action.required and action.option_strings:
                note = " (required)"
                usage.append(action.metavar)
            action.help = f"{action.help or ''}{note}".replace("%", "%%").strip()
        for group in self._action_groups:
            group.title = (group.title or "").partition(". ")[0]
        self.usage = " ".join([*usage, "[options]"])

    def parse_args(self, args: Any = None, *rest: Any, **named: Any) -> Any:
        words = sys.argv[1:] if args is None else args
        readable = [storable(word) for word in words]
        parsed = super().parse_args(self._plain(readable), *rest, **named)
        if readable != words:  # a path of bytes that are no UTF-8, which the parser can't read
            for name, value in parsed.items():
                parsed[name] = [_restored(v) for v in value] if isinstance(value, list) else _restored(value)
        return parsed

    def parse_path(self, path: Any, *rest: Any, **named: Any) -> Any:
        try:
            return super().parse_path(path, *rest, **named)
        except UnicodeDecodeError as error:
            self.error(f"{path}: is no UTF-8 text ({error.reason}); save it as UTF-8")

    def parse_string(self, content: str, *rest: Any, **named: Any) -> Any:
        """Parse the text of a YAML file, in which keys that were renamed may have their old names."""
        try:
            settings = get_loader("yaml")(content)
        except YAMLError as error:
            self.error(f"{named.get('path') or '--config'}: is no YAML: {error}")
        for old, new in self.renamed.items():
            *groups, key = old[2:].split(".")
            section, present = settings, new[2:].rpartition(".")[2]
            for group in groups:
                section = section.get(group) if isinstance(section, dict) else None
            if isinstance(section, dict) and key in section:
                self._say_renamed(old[2:], new[2:], present in section)
                section[present] = section.pop(key)
                content = json.dumps(settings)
        return super().parse_string(content, *rest, **named)

    def _plain(self, words: list[str]) -> list[str]:
        """The same words as jsonargparse takes them: new names for renamed flags, and the values of switches and lists after `=`.

        `--json` becomes `--json=true`, `--no-flip` and `--not-flip` become `--flip=false`, and `--kinds niqab mask`
        `--kinds=["niqab", "mask"]`: all words up to the next flag. One word that is a list already, as `[niqab, mask]`, stays.
        """
        plain: list[str] = []
        rest = list(words)
        flags = {word.partition("=")[0] for word in words}
        while rest:
            flag, equals, value = rest.pop(0).partition("=")
            if flag in self.renamed:
                self._say_renamed(flag, self.renamed[flag], self.renamed[flag] in flags)
                flag = self.renamed[flag]
            kind = self._type_of(flag.removesuffix("+"))  # with a plus the words are added to the default
            if kind is bool and not equals:
                follows = rest and rest[0].lower() in ("true", "false")
                plain.append(f"{flag}={rest.pop(0) if follows else 'true'}")
            elif get_origin(kind) is list:
                items = [value] if value else []
                while rest and not rest[0].startswith("-"):
                    items.append(rest.pop(0))
                if not items:
                    self.error(f"{flag}: names nothing; give one or more, such as {flag} A B")
                if len(items) > 1 or not re.fullmatch(r"\[.*\]", items[0], re.DOTALL):
                    text = get_args(kind)[0] in (str, Path)  # a number must not become text
                    items = ["[" + ", ".join(json.dumps(word) if text else word for word in items) + "]"]
                plain.append(f"{flag}={items[0]}")
            elif not equals and self._type_of(re.sub("^--not?[-_]", "--", flag)) is bool:
                plain.append(re.sub("^--not?[-_]", "--", flag) + "=false")
            else:
                plain.append(flag + equals + value)
        return plain

    def _type_of(self, flag: str) -> Any:
        return self.types.get(flag[2:]) if flag.startswith("--") else None

    def _say_renamed(self, old: str, new: str, both: bool) -> None:
        if both:
            self.error(f"{old} is the old name of {new}; give one of the two")
        print(f"{self.prog}: {old} is now {new}; the old name goes with the next release", file=sys.stderr)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with 2 after a line that names the argument, what it takes, and the value that it got."""
        message = " ".join(message.split())
        if wrong := re.match(r'Parser key "([^"]+)": (.*)', message):
            argument, what = wrong.groups()
            value = re.search(r"(?:Got|Given) value: (.*)", what)
            if value and argument in self.types:
                what = f"takes {_placeholder(self.types[argument], argument)}, not {value[1]}"
            message = f"{self._named(argument)}: {what}"
        elif absent := re.match("argument --(.*): expected one argument", message):
            message = f"--{absent[1]}: takes {_placeholder(self.types[absent[1]], absent[1])}"
        elif missing := re.match("the following arguments are required: (.*)", message):
            message = "missing: " + ", ".join(map(self._named, missing[1].split(", ")))
        print(
            f"usage: {self.usage}\nerror: {printable(restored(message))} ({self.prog} --help says more)",
            file=sys.stderr,
        )
        sys.exit(2)

    def _named(self, argument: str) -> str:
        return argument if argument in self.positional else f"--{argument}"


def _restored(value: Any) -> Any:
    return type(value)(restored(str(value))) if isinstance(value, str | Path) else value


def _types(of: Any, prefix: str = "") -> dict[str, Any]:
    """Arguments of a function or dataclass, those of nested dataclasses included -> type, without the None of a default."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(of).items():
        if name == "return":
            continue
        if NoneType in get_args(kind):
            kind = next(part for part in get_args(kind) if part is not NoneType)
        types[prefix + name] = kind
        if is_dataclass(kind):
            types |= _types(kind, f"{prefix}{name}.")
    return types


def _placeholder(kind: Any, argument: str) -> str:
    """The placeholder of a value of this type in the help, such as PATH."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is list:
        return f"{_placeholder(get_args(kind)[0], argument)} ..."
    if get_origin(kind) is tuple:
        return "[" + ",".join(_placeholder(part, argument) for part in get_args(kind)) + "]"
    if is_dataclass(kind) or argument == "model":  # a folder, handed on as text
        return "PATH"
    return PLACEHOLDERS[kind]


def _default(action: Action) -> str:
    """` (default: VALUE)` for the help; nothing for an argument without a default or with one that means nothing, such as False."""
    default = action.default
    if not action.option_strings or default is None or default is False or default in ("", [], SUPPRESS):
        return ""
    if isinstance(default, list):
        default = " ".join(map(str, default))
    elif isinstance(default, tuple):
        default = list(default)
    return f" (default: --{action.dest})" if default is True else f" (default: {default})"
