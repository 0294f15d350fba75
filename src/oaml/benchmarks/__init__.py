"""`oaml benchmark`: how much faster a part is than a named baseline, measured side by side on one machine.

Each benchmark is a module with `run(**options) -> dict[str, object]`: names and values that JSON can hold, ratios above 1 where the
product is the faster one. It is imported when it is asked for. Compare ratios between machines rather than seconds.
"""

from __future__ import annotations

import importlib
import json as to_json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

from oaml.errors import OamlError

BenchmarkName = Literal[
    "qaconv",
    "qaconv-training",
    "joint",
    "embed",
    "search",
    "photograph",
    "records",
    "startup",
    "cuda",
    "profile",
]
BENCHMARKS: dict[BenchmarkName, str] = {
    "qaconv": "oaml.benchmarks.qaconv",
    "qaconv-training": "oaml.benchmarks.qaconv_training",
    "joint": "oaml.benchmarks.joint",
    "embed": "oaml.benchmarks.embed",
    "search": "oaml.benchmarks.search",
    "photograph": "oaml.benchmarks.photograph",
    "records": "oaml.benchmarks.records",
    "startup": "oaml.benchmarks.startup",
    "cuda": "oaml.benchmarks.cuda",
    "profile": "oaml.benchmarks.profile",
}
"""Name -> the module that runs it."""
OPTIONS: dict[str, set[str]] = {
    "search": {"faces", "model", "templates", "keep"},
    "photograph": {"data", "detector"},
}
"""Name -> the options that it has."""


def benchmark(
    name: BenchmarkName,
    *,
    faces: int | None = None,
    model: str | None = None,
    templates: Path | None = None,
    keep: Path | None = None,
    data: Path | None = None,
    detector: Path | None = None,
    json: bool = False,
) -> None:
    """Measure one part against its named baseline, in less than two minutes (but for a large `--faces`) and without a data set.

    Let nothing else run on the machine meanwhile: it would change the result.

    Example:
        oaml benchmark joint

    Args:
        name: what to measure.
        faces: in the gallery of `search`, 10,000 by default; a million take 30 GB of disk meanwhile, in TMPDIR or `keep`.
        model: a model folder for `search`; random weights by default.
        templates: faces of that model for `search`, a file of `oaml embed`; random ones by default.
        keep: folder to keep the gallery of `search` in; a gallery that is there is searched as it is.
        data: folder of photographs for `photograph`, beside those that it makes.
        detector: a YuNet file for `photograph`; by default the one of `oaml download yunet`.
        json: print one JSON object to stdout and nothing else.

    Raises:
        OamlError: an option that the benchmark doesn't have; the machine lacks what the benchmark needs, such as a GPU.
    """
    all_options = {
        "faces": faces,
        "model": model,
        "templates": templates,
        "keep": keep,
        "data": data,
        "detector": detector,
    }
    options = {key: value for key, value in all_options.items() if value is not None}
    for key in options:
        if key not in OPTIONS.get(name, ()):
            who = next(benchmark for benchmark, known in OPTIONS.items() if key in known)
            raise OamlError(f"--{key}: only oaml benchmark {who} has it; leave it out")
    with redirect_stdout(sys.stderr):  # what libraries print meanwhile is no part of the result
        values: dict[str, object] = importlib.import_module(BENCHMARKS[name]).run(**options)
    if json:
        print(to_json.dumps({"benchmark": name, **values}, indent=2, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("name", title=f"oaml benchmark {name}", title_justify="left")
    table.add_column("value", justify="right")
    for key, value in _flat(values):
        table.add_row(Text(key), Text(f"{value:,.4g}" if isinstance(value, float) else str(value)))
    Console(highlight=False).print(table)


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Rows of a table: values in nested lists and mappings under their path, such as `cases 0 ratio`."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inside:
            yield from _flat(part, f"{name} {key}".strip())
    else:
        yield name, value
