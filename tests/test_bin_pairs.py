"""`.bin` verification sets: what pickles of them hold in every protocol, and files that mean harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oaml.datasets.bin_pairs import BinPairs
from oaml.errors import OamlError


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((112, 112, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


IMAGES = [png(level) for level in (10, 20, 30, 40, 10, 50)]
SAME = [True, False, True]
LEVELS = [(10, 20), (30, 40), (10, 50)]


def python2(protocol: int) -> bytes:
    """The set as Python 2 pickles it: bytes are its strings."""
    out = io.BytesIO()
    if protocol == 2:
        out.write(b"\x80\x02")
    if protocol == 0:
        out.write(b"((lp0\n")
        for image in IMAGES:
            out.write(b"S" + repr(image)[1:].encode() + b"\np1\na")
        out.write(b"(lp2\n" + b"".join(b"I%02d\na" % same for same in SAME) + b"tp3\n.")
        return out.getvalue()
    out.write(b"(]q\x00(")
    for i, image in enumerate(IMAGES):
        out.write(b"T" + struct.pack("<i", len(image)) + image + b"r" + struct.pack("<I", 1000 + i))
    flags = {0: (b"I00\n", b"I01\n"), 1: (b"I00\n", b"I01\n"), 2: (b"\x89", b"\x88")}[protocol]
    out.write(b"e]q\x01(" + b"".join(flags[same] for same in SAME) + b"etq\x02.")
    return out.getvalue()


def array(image: bytes) -> np.ndarray:
    return np.frombuffer(image, np.uint8).copy()


FORMS: dict[str, bytes] = {
    **{f"Python 3, {p}": pickle.dumps((IMAGES, SAME), p) for p in range(6)},
    **{f"Python 2, {p}": python2(p) for p in range(3)},
    **{f"arrays, {p}": pickle.dumps(([array(image) for image in IMAGES], SAME), p) for p in range(6)},
    **{f"columns, {p}": pickle.dumps(([array(x)[:, None] for x in IMAGES], SAME), p) for p in (2, 4, 5)},
    **{f"NumPy's booleans, {p}": pickle.dumps((IMAGES, list(np.array(SAME))), p) for p in range(6)},
    "a list": pickle.dumps([IMAGES, SAME]),
    "tuples": pickle.dumps((tuple(IMAGES), tuple(SAME))),
    "angles between": pickle.dumps((IMAGES, ["-3", "5"] * 3, SAME)),
    "old NumPy": pickle.dumps(([array(x) for x in IMAGES], list(np.array(SAME))), 2).replace(
        b"numpy._core", b"numpy.core"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_protocol(form: str, tmp_path: Path) -> None:
    (tmp_path / "lfw.bin").write_bytes(FORMS[form])
    found = BinPairs(tmp_path / "lfw.bin")
    a, b, same = found.pairs()
    assert same == SAME
    place = {name: i for i, name in enumerate(found.names)}
    levels = [tuple(int(found.image(place[x])[0, 0, 0]) for x in pair) for pair in zip(a, b, strict=True)]
    assert levels == LEVELS
    assert len(found) == 5  # the first image comes twice
    owners = {x.partition("/")[0] for pair in (a[0], b[0], a[2], b[2]) for x in [pair]}
    assert len(owners) == 1  # connected by the image they share
    assert len(found.people) == 3
    assert [found.people[label] for label in found.labels] == [name.partition("/")[0] for name in found.names]
    assert found.files[0] == f"{tmp_path / 'lfw.bin'}, image 0"


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


MARK = Path("/tmp/oaml-was-run")
SHELL = f"touch {MARK}"
BOOLEANS = b"]q\x01(\x88e\x86."
HOSTILE: dict[str, bytes] = {
    **{f"os.system, {p}": pickle.dumps(([Call(os.system, SHELL)] * 2, [True]), p) for p in range(6)},
    "eval": pickle.dumps(([Call(eval, f"__import__('os').system({SHELL!r})")] * 2, [True])),
    "names of the stack": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "an attribute within": b"\x80\x04\x8c\x07_codecs\x8c\x0fencode.__self__\x93.",
    "INST": b"(S'" + SHELL.encode() + b"'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nU\x04true\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pname\n.",
    "BINPERSID": b"U\x01aQ.",
    "BUILD of a list": b"\x80\x02]}b.",
    "BUILD of a name": b"\x80\x02c_codecs\nencode\n}b.",
    "another encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
    "a call of bytes": b"\x80\x02cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "a call of what is no name": b"\x80\x02U\x01a)R.",
    "an array of objects": pickle.dumps(([np.array([None])] * 2, [True])),
    "an array of numbers": pickle.dumps(([np.zeros(3, np.float32)] * 2, [True])),
    "a huge array": pickle.dumps(([np.zeros((2, 3), np.uint8)] * 2, [True])),
    "a scalar": pickle.dumps(([b"", b""], [np.float64(1)])),
    **{
        f"a long {name}": b"\x80\x04" + code + length + b"abc"
        for name, code, length in (
            ("BINBYTES8", b"\x8e", b"\xff" * 7 + b"\x7f"),
            ("BINBYTES", b"B", b"\xff" * 4),
            ("BINUNICODE8", b"\x8d", b"\xff" * 8),
            ("BYTEARRAY8", b"\x96", b"\xff" * 7 + b"\x7f"),
            ("BINSTRING", b"T", b"\xff\xff\xff\x7f"),
            ("negative BINSTRING", b"T", b"\xff" * 4),
            ("LONG4", b"\x8b", b"\xff\xff\xff\x7f"),
            ("FRAME", b"\x95", b"\xff" * 8),
        )
    },
    "a long memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "text of much text": b"\x80\x02X\x10\x27\x00\x00"
    + b"a" * 10_000
    + b"q\x00X\x06\x00\x00\x00latin1q\x01c_codecs\nencode\nq\x02(" * 1
    + b"h\x02h\x00h\x01\x86R" * 5_000
    + b"l.",
    "lists in lists": b"]" * 30_000 + b"a" * 29_999 + b".",
    "tuples in tuples": b"(" * 30_000 + b"t" * 30_000 + b".",
    "doubling tuples": b")" + b"q\x00h\x00\x86" * 200 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "a huge number": b"L" + b"9" * 100_000 + b"L\n.",
    "no end": pickle.dumps((IMAGES, SAME))[:-1],
    "half": pickle.dumps((IMAGES, SAME))[:500],
    "an empty stack": b"\x80\x02e.",
    "nothing to get": b"\x80\x02h\x05.",
    "empty": b"",
    "an image": png(1),
    "text": b"just some text\n" * 9,
    "a dict": pickle.dumps({"bins": IMAGES}),
    "a set": pickle.dumps((IMAGES, {True})),
    "None": pickle.dumps(None),
    "numbers": pickle.dumps((IMAGES, [1, 0, 1])),
    "floats": pickle.dumps((IMAGES, [1.0, 0.0, 1.0])),
    "texts": pickle.dumps((["a"] * 6, SAME)),
    "too few images": pickle.dumps((IMAGES[:5], SAME)),
    "no images": pickle.dumps(([], [])),
    "one list": pickle.dumps((IMAGES,)),
    "protocol 9": b"\x80\x09].",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_foreign_files(name: str, tmp_path: Path) -> None:
    """One line, nothing run, no memory or time beyond what the file's own size explains."""
    path = tmp_path / "evil.bin"
    path.write_bytes(HOSTILE[name])
    MARK.unlink(missing_ok=True)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(OamlError) as caught:
        BinPairs(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300
    assert not MARK.exists()
    assert peak < 200_000 + 120 * len(HOSTILE[name])
    assert time.process_time() - start < 5


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_spoilt_bytes_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = FORMS[data.draw(st.sampled_from(sorted(FORMS)))]
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("spoilt") / "x.bin"
    path.write_bytes(content)
    with suppress(OamlError):
        BinPairs(path)


def test_a_missing_file_and_a_damaged_image(tmp_path: Path) -> None:
    with pytest.raises(OamlError, match="no such file"):
        BinPairs(tmp_path / "gone.bin")
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(([png(1), b"no image"], [False])))
    found = BinPairs(path)
    with pytest.raises(OamlError, match=r"x\.bin, image 1: is not a readable image"):
        found.image(1)
