"""The command line: one table of commands, heavy imports inside commands.

Exit codes: 0 success, 1 bad input (one line says what is wrong and what to do), 2 a wrong call.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from oaml import __version__
from oaml.errors import OamlError, missing_package
from oaml.support.names import printable, shortened

if TYPE_CHECKING:
    from oaml.support.arguments import Parser


@dataclass(frozen=True)
class Command:
    """Where a command lives and what `oaml --help` says of it."""

    function: str
    summary: str
    example: str
    listing: str = ""
    """Function that makes the text of `oaml COMMAND --list`, where there is something to list."""


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
        "oaml.adaptation.adapt:adapt",
        "make any checkpoint occlusion-aware in minutes, on a CPU",
        "oaml adapt --backbone weights.pth --people faces/ --out runs/adapted",
    ),
    "calibrate": Command(
        "oaml.adaptation.command:calibrate_people",
        "fit a model's thresholds anew to your own faces, and say how far the stored ones were off",
        "oaml calibrate runs/adapted --people faces/ --out runs/calibrated",
    ),
    "evaluate": Command(
        "oaml.evaluation.report:evaluate",
        "all scores side by side on the same pairs, unoccluded and occluded: table, report.json, pictures",
        "oaml evaluate runs/first/best --images faces/ --pairs pairs.csv --out report --occlude all",
        "oaml.evaluation.official:listing",
    ),
    "score": Command(
        "oaml.evaluation.scoring:score",
        "scores of pairs of images as CSV: cosine, QAConv, joint (visibility-masked) embedding, and all fused",
        "oaml score runs/first/best --images faces/ --pairs pairs.csv --out scores.csv",
    ),
    "verify": Command(
        "oaml.recognition.verify:verify",
        "are two faces the same person? Decision, score, threshold, and how much of the face both show",
        "oaml verify a.jpg b.jpg --model runs/adapted --draw why.png",
    ),
    "enroll": Command(
        "oaml.gallery.commands:enroll",
        "bring a gallery up to date with a folder of people; only what changed is computed",
        "oaml enroll people/ --gallery staff",
    ),
    "search": Command(
        "oaml.gallery.commands:search",
        "who is in a photograph or a video? The most similar people of a gallery for every face, and a decision",
        "oaml search visitor.jpg --gallery staff --draw why.png",
    ),
    "gallery": Command(
        "oaml.gallery.commands:gallery",
        "list, rename, delete, export and restore the people of a gallery; find those who are enrolled twice",
        "oaml gallery staff --delete Ann",
    ),
    "embed": Command(
        "oaml.templates.embed:embed",
        "turn a folder of faces into one file of int8 templates, as fast as the machine allows",
        "oaml embed runs/adapted --images faces/ --out faces.safetensors",
    ),
    "export": Command(
        "oaml.export:export",
        "write the network for ONNX Runtime or torch.export, and its matchers for numpy",
        "oaml export runs/adapted --out model.onnx",
    ),
    "align": Command(
        "oaml.photographs.command:align_folder",
        "cut the faces out of photographs, aligned to 112x112",
        "oaml align photographs/ --out faces",
    ),
    "import": Command(
        "oaml.imported:import_weights",
        "published weights of AdaFace, InsightFace, CVLface or LVFace into a model folder",
        "oaml import checkpoint.pt --out runs/imported",
    ),
    "download": Command(
        "oaml.support.download:download",
        "fetch a published file, once and checked: the face detector, a backbone",
        "oaml download yunet",
    ),
    "occlude": Command(
        "oaml.photographs.occlude:occlude",
        "lay a niqab, mask, sunglasses, scarf, hand or patch on faces, with exact masks; or cut occluders out of photographs",
        "oaml occlude faces/ --kind niqab --out occluded --seed 1",
    ),
    "benchmark": Command(
        "oaml.benchmarks:benchmark",
        "measure how much faster a part is than a named baseline, on this machine",
        "oaml benchmark joint",
    ),
}
RENAMED = {
    "train": {"--data.templates": "--data.mask_pictures"},
    "adapt": {"--head_steps": "--occlusion_steps", "--covers": "--occluders_per_view"},
    "evaluate": {"--templates": "--mask_pictures"},
    "occlude": {"--templates": "--mask_pictures"},
}
"""Command -> old flag -> new flag. The old one works for one release and says so; of `train` it is a key of the YAML file too."""


KEPT = {
    "train": "the last checkpoint is kept, and --resume goes on from it",
    "adapt": "the cached features are kept, and the same command goes on with them",
    "embed": "the faces embedded so far are kept, and the same command goes on with them",
    "enroll": "the faces enrolled so far are kept, and the same command goes on with them",
    "gallery": "a change that had begun is finished by the next command on it",
    "align": "the faces written so far are kept",
    "occlude": "the faces written so far are kept",
    "download": "what has come so far is kept, and the same command goes on with it",
}
"""Command -> what an interruption leaves; the others leave nothing."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM. No KeyboardInterrupt, which the trainer takes for an order to leave with 1."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number


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
        warnings.filterwarnings("ignore", module="PIL")  # what is wrong with an image is said in one line
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        arguments = sys.argv[1:]
    if isinstance(
        sys.stdout, TextIOWrapper
    ):  # a terminal or pipe of fewer characters: the others are escaped
        sys.stdout.reconfigure(errors="backslashreplace")
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
        print(f"oaml {name}: {printable(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:  # of a file or folder that can't be used; without a name it is a defect
        if error.filename is None:
            raise
        place = printable(shortened(os.fsdecode(error.filename)))
        print(f"oaml {name}: {place}: {error.strerror}; choose another place or name", file=sys.stderr)
        return 1
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package == "oaml" or not package:
            raise
        print(f"oaml {name}: {missing_package(package)}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"oaml {name}: interrupted; {KEPT.get(name, 'nothing was written')}", file=sys.stderr)
        return 128 + (stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT)
    except SystemExit as stop:  # of the argument parser
        return stop.code if isinstance(stop.code, int) else 2
    return 0


def _interrupt(number: int, _: object) -> None:
    raise Interrupted(number)


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
    if arguments == ["--list"] and COMMANDS[name].listing:
        module, _, attribute = COMMANDS[name].listing.partition(":")
        print(getattr(importlib.import_module(module), attribute)())
        return
    parser, function = parser_of(name)
    parsed = parser.parse_args(arguments)
    if name == "train":
        try:
            values = vars(parser.instantiate(parsed))
            values.pop("config")
            config = importlib.import_module("oaml.train_val").TrainConfig(**values)
        except ValueError as error:  # a combination that only the whole configuration can judge
            parser.error(str(error))
        function(config)
        return
    values = vars(parser.instantiate(parsed))
    # first of all: a call copies its keywords before it reads a generator
    positional = [values.pop(argument) for argument in parser.positional]
    function(*positional, **values)


def parser_of(name: str) -> tuple[Parser, Any]:
    """The argument parser of a command and its function."""
    from oaml.support.arguments import Parser

    command = COMMANDS[name]
    module, _, attribute = command.function.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    source = importlib.import_module(module).TrainConfig if name == "train" else function
    return Parser.of(
        f"oaml {name}", source, command.summary, command.example, RENAMED.get(name, {})
    ), function


if __name__ == "__main__":
    sys.exit(main())
