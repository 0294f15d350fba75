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
from oaml.support.files import write_file
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
    """None where nobody states it for this address, or only one who is not its publisher."""
    what: str
    commercial: Literal["yes", "no", "unclear"]
    """Whether the weights may be used commercially, as far as their publisher and that of their training data say."""
    citation: str
    colours: str | None = None
    """Order of the colours of CVLface's weights, which their repository states in another file."""


ARCFACE = "Deng et al., ArcFace, CVPR 2019, https://arxiv.org/abs/1801.07698"
ADAFACE = "Kim et al., AdaFace, CVPR 2022, https://arxiv.org/abs/2204.00964"
MOBILEFACENETS = "Chen et al., MobileFaceNets, CCBR 2018, https://arxiv.org/abs/1804.07573"
LVFACE = "You et al., LVFace, ICCV 2025, https://arxiv.org/abs/2501.13420"
INSIGHTFACE_LICENCE = "InsightFace's models: non-commercial research only"
CVLFACE_LICENCE = "MIT, and that of the training data (WebFace260M: non-commercial research only)"
LVFACE_LICENCE = "MIT for the code; the models for non-commercial research only"

DownloadName = Literal[
    "yunet",
    "mobilefacenet-ms1m",
    "mobilefacenet-casia",
    "w600k-mbf",
    "w600k-r50",
    "adaface-ir18-webface4m",
    "adaface-ir50-webface4m",
    "adaface-ir101-webface12m",
    "lvface-t",
    "lvface-b",
]
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
        "yes",
        "Wu et al., YuNet, Machine Intelligence Research 2023, https://doi.org/10.1007/s11633-023-1423-y",
    ),
    "mobilefacenet-ms1m": Download(
        "https://github.com/foamliu/MobileFaceNet/releases/download/v1.0/mobilefacenet.pt",
        "v1.0",
        "Apache-2.0; trained on MS-Celeb-1M",
        "mobilefacenet_ms1m_foamliu.pt",
        "90a00ba1d8b0b688af3deb731ed53dca582e6106805d1bc3cfdef55f570493f4",
        "a small backbone for `oaml adapt`, 128 numbers a face (4 MB)",
        "unclear",
        MOBILEFACENETS,
    ),
    "mobilefacenet-casia": Download(
        "https://github.com/bubbliiiing/arcface-pytorch/releases/download/v1.0/arcface_mobilefacenet.pth",
        "v1.0",
        "MIT; trained on CASIA-WebFace",
        "mobilefacenet_casia_bubbliiiing.pth",
        None,
        "a small backbone for `oaml adapt`, 128 numbers a face (4 MB)",
        "unclear",
        MOBILEFACENETS,
    ),
    "w600k-mbf": Download(
        "https://huggingface.co/immich-app/buffalo_s/resolve/"
        "0ff1751885575e62e084dff70549ce24a11fa5dc/recognition/model.onnx",
        "0ff1751885575e62e084dff70549ce24a11fa5dc",
        INSIGHTFACE_LICENCE,
        "w600k_mbf.onnx",
        "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
        "InsightFace's MobileFaceNet of buffalo_s, 512 numbers a face (14 MB)",
        "no",
        ARCFACE,
    ),
    "w600k-r50": Download(
        "https://huggingface.co/immich-app/buffalo_l/resolve/"
        "d09715916a0778919a770c343533641e250b8699/recognition/model.onnx",
        "d09715916a0778919a770c343533641e250b8699",
        INSIGHTFACE_LICENCE,
        "w600k_r50.onnx",
        "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
        "InsightFace's iresnet50 of buffalo_l, 512 numbers a face (174 MB)",
        "no",
        ARCFACE,
    ),
    "adaface-ir18-webface4m": Download(
        "https://huggingface.co/minchul/cvlface_adaface_ir18_webface4m/resolve/"
        "0dd53f188fa27968b0a1326970ebf4aeb37ce2ca/model.safetensors",
        "0dd53f188fa27968b0a1326970ebf4aeb37ce2ca",
        CVLFACE_LICENCE,
        "cvlface_adaface_ir18_webface4m.safetensors",
        None,
        "AdaFace IR-18, 512 numbers a face (97 MB)",
        "no",
        ADAFACE,
        "RGB",
    ),
    "adaface-ir50-webface4m": Download(
        "https://huggingface.co/minchul/cvlface_adaface_ir50_webface4m/resolve/"
        "fe7718c6dc8af1b9946e0de778167c1695dd8814/model.safetensors",
        "fe7718c6dc8af1b9946e0de778167c1695dd8814",
        CVLFACE_LICENCE,
        "cvlface_adaface_ir50_webface4m.safetensors",
        None,
        "AdaFace IR-50, 512 numbers a face (175 MB)",
        "no",
        ADAFACE,
        "RGB",
    ),
    "adaface-ir101-webface12m": Download(
        "https://huggingface.co/minchul/cvlface_adaface_ir101_webface12m/resolve/"
        "54f602a0737bd1ee4a4e7e9fd089a485f397fefd/pretrained_model/model.pt",
        "54f602a0737bd1ee4a4e7e9fd089a485f397fefd",
        CVLFACE_LICENCE,
        "cvlface_adaface_ir101_webface12m.pt",
        "e312d79222d28027f146ed495e182e48fe0dddf404cdbbdabcccdbdd07cc3758",
        "AdaFace IR-101, 512 numbers a face (261 MB)",
        "no",
        ADAFACE,
        "RGB",
    ),
    "lvface-t": Download(
        "https://huggingface.co/bytedance-research/LVFace/resolve/"
        "b12702ab1f5c721748e054a66dc90e1edd1f0724/LVFace-T_Glint360K/LVFace-T_Glint360K.pt",
        "b12702ab1f5c721748e054a66dc90e1edd1f0724",
        LVFACE_LICENCE,
        "LVFace-T_Glint360K.pt",
        None,
        "LVFace's transformer vit_t, 512 numbers a face",
        "no",
        LVFACE,
    ),
    "lvface-b": Download(
        "https://huggingface.co/bytedance-research/LVFace/resolve/"
        "b12702ab1f5c721748e054a66dc90e1edd1f0724/LVFace-B_Glint360K/LVFace-B_Glint360K.pt",
        "b12702ab1f5c721748e054a66dc90e1edd1f0724",
        LVFACE_LICENCE,
        "LVFace-B_Glint360K.pt",
        None,
        "LVFace's transformer vit_b, 512 numbers a face",
        "no",
        LVFACE,
    ),
}


def home() -> Path:
    """The folder of downloads: OAML_HOME, or ~/.cache/oaml."""
    return Path(os.environ.get("OAML_HOME") or Path.home() / ".cache" / "oaml")


def place(name: DownloadName) -> Path:
    """Where a download lies, or will lie."""
    return home() / DOWNLOADS[name].file


def download(
    name: DownloadName | None = None,
    /,
    *,
    list: bool = False,
    out: Path | None = None,
    sha256: str | None = None,
) -> None:
    """Fetch a published file and keep it where the other commands look for it.

    A download that broke off goes on where it stopped. A file gets its final name only after its SHA-256 was compared.

    Example:
        oaml download yunet

    Args:
        name: one of the files that --list prints.
        list: print all files with their licences, whether commercial use is allowed, whom to cite, and where they come from.
        out: the file to write, or a folder for it; by default a file in ~/.cache/oaml, or in the folder OAML_HOME.
        sha256: 64 hexadecimal digits that the file must have. Needed where the table of downloads has none.

    Raises:
        OamlError: no SHA-256 to compare with, another file than stated, no answer, or no space. No file has the final name
            then.
    """
    if list:
        print(table())
        return
    if name is None:
        print(
            f"oaml download: name one of {', '.join(DOWNLOADS)} (oaml download --list says more)",
            file=sys.stderr,
        )
        sys.exit(2)
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
    else:
        fetch(entry.address, path, digest, label=name if sys.stderr.isatty() else None)
        print(f"{path}: {entry.what}; licence: {entry.licence}")
    if entry.colours is not None:  # `oaml.weights` reads it there
        stated = f"color_space: {entry.colours}\n"
        write_file(path.with_name(f"{path.name}.yaml"), lambda temporary: temporary.write_text(stated))


def table() -> str:
    """What there is to download, for people."""
    width = max(map(len, DOWNLOADS))
    lines = [f"{'name':<{width}}  commercial use  licence"]
    lines += [
        f"{name:<{width}}  {entry.commercial:<14}  {entry.licence}" for name, entry in DOWNLOADS.items()
    ]
    for name, entry in DOWNLOADS.items():
        digest = entry.sha256 or "none that is known; needs --sha256"
        lines += ["", f"{name}: {entry.what}", f"  cite: {entry.citation}", f"  from: {entry.address}"]
        lines += [f"  SHA-256: {digest}"]
    return "\n".join(lines)


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
