"""`oaml download`: one table of published files, fetched once, checked, and kept where the other commands look for them.

No other command downloads anything. A file that was copied to the same place by hand serves as well.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Literal

from oaml.errors import OamlError
from oaml.support.progress import progress

CHUNK_BYTES = 1 << 16
TIMEOUT = 30.0
"""Seconds without an answer after which a server counts as gone."""


@dataclass(frozen=True)
class Download:
    """One published file."""

    address: str
    revision: str
    """Commit or release that `address` names: what it holds must not change."""
    licence: str
    file: str
    """Its name here."""
    sha256: str | None
    """None where nobody states it for this address."""
    what: str


DownloadName = Literal["yunet", "mobilefacenet-ms1m", "mobilefacenet-casia"]
DOWNLOADS: dict[DownloadName, Download] = {
    "yunet": Download(
        "https://huggingface.co/opencv/face_detection_yunet/resolve/"
        "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310/face_detection_yunet_2023mar.onnx",
        "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
        "MIT",
        "face_detection_yunet_2023mar.onnx",
        # as the OpenCV Zoo states it in its repository
        "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        "YuNet, the face detector that photographs need (233 kB)",
    ),
    "mobilefacenet-ms1m": Download(
        "https://github.com/foamliu/MobileFaceNet/releases/download/v1.0/mobilefacenet.pt",
        "v1.0",
        "Apache-2.0; trained on MS-Celeb-1M",
        "mobilefacenet_ms1m_foamliu.pt",
        "90a00ba1d8b0b688af3deb731ed53dca582e6106805d1bc3cfdef55f570493f4",
        "a small backbone for `oaml adapt`, 128 numbers a face (4 MB)",
    ),
    "mobilefacenet-casia": Download(
        "https://github.com/bubbliiiing/arcface-pytorch/releases/download/v1.0/arcface_mobilefacenet.pth",
        "v1.0",
        "MIT; trained on CASIA-WebFace",
        "mobilefacenet_casia_bubbliiiing.pth",
        None,
        "a small backbone for `oaml adapt`, 128 numbers a face (4 MB)",
    ),
}


def home() -> Path:
    """The folder of downloads: OAML_HOME, or ~/.cache/oaml."""
    return Path(os.environ.get("OAML_HOME") or Path.home() / ".cache" / "oaml")


def place(name: DownloadName) -> Path:
    """Where a download lies, or will lie."""
    return home() / DOWNLOADS[name].file


def download(name: DownloadName, *, out: Path | None = None, sha256: str | None = None) -> None:
    """Fetch a published file and keep it where the other commands look for it.

    A download that broke off goes on where it stopped. A file gets its final name only after its SHA-256 was compared.

    Example:
        oaml download yunet

    Args:
        name: yunet, mobilefacenet-ms1m or mobilefacenet-casia.
        out: the file to write, or a folder for it; by default a file in ~/.cache/oaml, or in the folder OAML_HOME.
        sha256: 64 hexadecimal digits that the file must have. Needed where the table of downloads has none.

    Raises:
        OamlError: no SHA-256 to compare with, another file than stated, no answer, or no space. No file has the final name
            then.
    """
    entry = DOWNLOADS[name]
    path = place(name) if out is None else Path(out)
    if path.is_dir():
        path = path / entry.file
    digest = entry.sha256 if sha256 is None else sha256.lower()
    if digest is None:
        raise OamlError(
            f"{name}: no published SHA-256 is known for {entry.address}; give the one that you trust with --sha256"
        )
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise OamlError(f"sha256: {sha256} is no SHA-256; give 64 hexadecimal digits")
    if path.is_file() and digest_of(path) == digest:
        print(f"{path}: is there already")
        return
    fetch(entry.address, path, digest, label=name if sys.stderr.isatty() else None)
    print(f"{path}: {entry.what}; licence: {entry.licence}")


def fetch(address: str, path: Path, sha256: str, *, label: str | None = None) -> None:
    """Download one file, going on with `PATH.part` where there is one.

    Args:
        address: http or https.
        path: the file to write; its folder is made.
        sha256: 64 lower-case hexadecimal digits.
        label: of the progress bar on stderr; None shows none.

    Raises:
        OamlError: no answer, an answer that breaks off (what came stays in `PATH.part`), another digest, or no space.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (part.is_file() and digest_of(part) == sha256):  # complete, but not renamed any more
            _receive(address, part, label)
        digest = digest_of(part)
        if digest != sha256:
            part.unlink()
            raise OamlError(
                f"{address}: is another file than promised (SHA-256 {digest}, expected {sha256}) and was removed; try again, or "
                f"get it elsewhere and copy it to {path}"
            )
        os.replace(part, path)
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise OamlError(
            f"{address}: no complete answer ({reason}); try again to go on, or, without a network, copy the file to {path}"
            + ("; a detector elsewhere is named with --detector FILE" if path.suffix == ".onnx" else "")
        ) from error
    except OSError as error:
        raise OamlError(
            f"{path}: could not be written ({error.strerror or error}); free space or name another place with --out"
        ) from error


def _receive(address: str, part: Path, label: str | None) -> None:
    """Append to `part` what is missing of it, or write it anew where the server sends the whole file."""
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "oaml"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:  # nothing lies beyond: the part is no part of this file
            raise
        part.unlink()
        return _receive(address, part, label)
    with answer:
        if answer.status != 206:
            done = 0
        length = answer.headers.get("Content-Length")
        whole = None if length is None else done + int(length)
        with part.open("ab" if done else "wb") as opened, progress(label, whole or 0, done) as advance:
            _copy(answer, opened.write, advance)
    if whole is not None and part.stat().st_size < whole:
        raise ConnectionError(f"it broke off after {part.stat().st_size:,} of {whole:,} bytes")


def _copy(answer: HTTPResponse, write: Callable[[bytes], object], advance: Callable[[int], object]) -> None:
    while chunk := answer.read(CHUNK_BYTES):
        write(chunk)
        advance(len(chunk))


def digest_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
