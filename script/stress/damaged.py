"""Damaged files of every kind that is read: each is refused by one line that names it, or read.

    .venv/bin/python script/stress/damaged.py [--seconds 300] [--seed 0] [--keep FOLDER]

A good file of each kind (images, models, templates, published weights, lists, settings) is changed at places of chance: bits
flipped, bytes overwritten, cut off, doubled, or numbers made huge. Reading it has to return or to raise `OamlError` of one line
with the file's name, within ten seconds, and to take less than half a gigabyte of memory; four gigabytes may be asked for, since a
number in a file can make a buffer that is never filled.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.evaluation.protocols import read_identification, read_pairs
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.support.files import read_image
from oaml.templates import file as template_file
from oaml.templates.embed import embed
from oaml.weights import load_backbone

SECONDS, ADDRESSES, RESIDENT = 10, 4 << 30, 1 << 29


def kinds(folder: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Good files, and what reads each."""
    torch.manual_seed(0)
    model = Model(ModelConfig(net=NetConfig(architecture="ir_mini", embedding_size=32))).eval()
    saved = model.save(folder / "model")
    faces = folder / "faces"
    for person in range(3):
        (faces / f"p{person}").mkdir(parents=True)
        Image.fromarray(draw_face(person, 0)).save(faces / f"p{person}" / "a.png")
    face = Image.fromarray(draw_face(1, 0))
    found: dict[str, tuple[Path, Callable[[], object]]] = {}
    for suffix in ("png", "jpg", "bmp", "tiff", "webp"):
        path = folder / f"face.{suffix}"
        face.save(path)
        found[suffix] = (path, lambda path=path: read_image(path))
    embed(str(saved), images=faces, out=folder / "t.safetensors")
    torch.save(model.net.backbone.state_dict(), folder / "weights.pth")
    (folder / "pairs.csv").write_text("path_a,path_b,same\np0/a.png,p1/a.png,0\np1/a.png,p1/a.png,1\n")
    (folder / "roles.csv").write_text("path,person,role\np0/a.png,A,gallery\np1/a.png,A,probe\n")
    return {
        **found,
        "config.json": (saved / "config.json", lambda: Model.load(saved)),
        "model.safetensors": (saved / "model.safetensors", lambda: Model.load(saved)),
        "templates": (folder / "t.safetensors", lambda: template_file.load(folder / "t.safetensors")),
        "published weights": (folder / "weights.pth", lambda: load_backbone(folder / "weights.pth")),
        "pairs": (folder / "pairs.csv", lambda: read_pairs(folder / "pairs.csv", faces)),
        "roles": (folder / "roles.csv", lambda: read_identification(folder / "roles.csv", faces)),
    }


def changed(data: bytes, chance: random.Random) -> bytes:
    """The same with damage of one kind."""
    new = bytearray(data)
    at = chance.randrange(len(new)) if chance.random() < 0.5 else chance.randrange(min(200, len(new)))
    kind = chance.randrange(6)
    if kind == 0:
        for _ in range(chance.choice([1, 1, 4, 32])):
            new[chance.randrange(len(new))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        size = chance.choice([1, 4, 8, 64])
        new[at : at + size] = chance.randbytes(size)
    elif kind == 2:
        del new[at:]
    elif kind == 3:
        new[at:at] = new[: chance.choice([1, 16, 400])]
    elif kind == 4:
        size = chance.choice([1, 2, 4, 8])
        new[at : at + size] = chance.choice([b"\xff", b"\x00", b"\x7f"]) * size
    else:  # numbers that are written as text
        digits = [i for i, byte in enumerate(new) if 48 <= byte < 58] or [at]
        at = chance.choice(digits)
        new[at : at + 1] = chance.choice([b"-1", b"999999999999", b"1e400", b"NaN", b"null", b'"x"', b"0"])
    return bytes(new)


def late(*_: object) -> None:
    """The alarm."""
    raise TimeoutError(f"{SECONDS} seconds have passed")


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(read: Callable[[], object], path: Path) -> tuple[str, str]:
    """Whether a file was read, refused, or what must not happen, with the error."""
    signal.alarm(SECONDS)
    try:
        read()
        return "read", ""
    except OamlError as error:
        named = str(path) in str(error) or str(path.parent) in str(error)
        return ("refused" if named and "\n" not in str(error) else "wrong"), repr(error)
    except Exception as error:
        return "wrong", repr(error)
    finally:
        signal.alarm(0)


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("."),
        help="folder for files that were not refused as they should be",
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow tells of much
    signal.signal(signal.SIGALRM, late)
    bad, total = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        files = kinds(Path(folder))
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + ADDRESSES, resource.RLIM_INFINITY))
        most = peak() + RESIDENT
        for kind, (path, read) in files.items():
            whole, chance = path.read_bytes(), random.Random(f"{given.seed} {kind}")
            read()
            seen, end = Counter[str](), time.monotonic() + given.seconds / len(files)
            while time.monotonic() < end:
                path.write_bytes(damaged := changed(whole, chance))
                found, wrong = outcome(read, path)
                if peak() > most:
                    most, found, wrong = peak() + RESIDENT, "wrong", f"{peak() >> 20} MB of memory"
                seen[found] += 1
                if found == "wrong" and seen["wrong"] <= 3:
                    kept = given.keep / f"damaged-{seen['wrong']}-{path.name}"
                    kept.write_bytes(damaged)
                    print(f"{kind}: {wrong} ({kept.resolve()})", flush=True)
            path.write_bytes(whole)
            print(
                f"{kind}: {seen['read']} read, {seen['refused']} refused, {seen['wrong']} wrong", flush=True
            )
            bad, total = bad + seen["wrong"], total + seen
    print(f"{total.total()} damaged files: {total['refused']} refused, {bad} wrong")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
