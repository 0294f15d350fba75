"""The one error that bad input raises, and what its messages have in common."""

import shlex
from collections.abc import Sequence

EXTRAS = {
    "tensorboard": "train",
    "lancedb": "gallery",
    "pyarrow": "gallery",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "pillow_heif": "heif",
    "webdataset": "webdataset",
    "braceexpand": "webdataset",
}
"""Package -> the extra that brings it; all others come without one."""


class OamlError(Exception):
    """Bad input: a single line that names the file or value, what is wrong with it and what to do.

    The command line prints it and exits with 1; everything else that escapes is a defect of the program.
    """


def command(*words: object) -> str:
    """A command line to copy, such as `oaml enroll people --gallery 'my staff'`, of its words after `oaml`."""
    return shlex.join(["oaml", *map(str, words)])


def few(names: Sequence[str], most: int = 5) -> str:
    """`a, b and 3 more`."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def missing_package(package: str) -> OamlError:
    """The error where a package is not installed, which is named as it is imported."""
    wanted = f"'oaml[{EXTRAS[package]}]'" if package in EXTRAS else "oaml"
    return OamlError(f"needs the package {package}, which is not installed; pip install {wanted}")
