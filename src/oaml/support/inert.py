"""Pickles of bytes, lists, tuples and booleans, read without unpickling: nothing in them is ever called or imported.

A pickle is a program for a small stack machine. This is that machine without the instructions that reach outside of it: those that
build an object hand back a stand-in, and only where it stands for bytes that pickles write in a roundabout way. These are the
`encode` of a text to latin-1, by which protocols 0 to 2 of Python 3 write bytes, and NumPy's booleans and one-dimensional arrays of
bytes, which OpenCV's encoder returns. Anything else is refused by its name.

Memory is bounded by the file: every length is checked against it before anything is read, places of the memo are keys of a
dictionary, and bytes that are made of text may not be longer together than the file.

Source: the comments of CPython's `pickletools.py`, which define the instructions.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from dataclasses import dataclass
from typing import Any

ENCODE = "_codecs encode"
EMPTY_BYTES = ("__builtin__ bytes", "builtins bytes")
NUMPY = tuple(f"numpy{core}.multiarray" for core in (".core", "._core"))
SCALARS = tuple(f"{module} scalar" for module in NUMPY)
ARRAYS = tuple(f"{module} _reconstruct" for module in NUMPY)
BUFFERS = tuple(f"numpy{core}.numeric _frombuffer" for core in (".core", "._core"))
KNOWN = {ENCODE, *EMPTY_BYTES, *SCALARS, *ARRAYS, *BUFFERS, "numpy ndarray", "numpy dtype"}
MARK = object()


class Refused(ValueError):
    """What a pickle holds that is not read, or how it is damaged."""


@dataclass(frozen=True)
class Name:
    """What a pickle would import."""

    text: str


@dataclass(frozen=True)
class Kind:
    """Of NumPy's numbers: `b1` or `u1`."""

    code: str


@dataclass
class Array:
    """One of NumPy's arrays of bytes."""

    content: bytes | None = None
    """None until they come, after the array itself."""


class Machine:
    """Runs one pickle.

    Args:
        data: the pickle, whole.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def run(self) -> object:
        """What it holds: bytes, bool, text, whole numbers, None, `Array`, and lists and tuples of these, which may share parts
        or hold themselves: look no deeper into them than is expected.

        Raises:
            Refused: it holds anything else, or is damaged.
        """
        try:
            while self.at < len(self.data):
                code = self.take(1)
                if code == b".":
                    if len(self.stack) != 1:
                        raise Refused("it ends with more or less than one value")
                    return self.stack[0]
                self.step(code)
        except Refused:
            raise
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise Refused(f"it is damaged at byte {self.at}") from error
        raise Refused("it is cut off")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count < 0 or count > len(self.data) - self.at:
            raise Refused(f"it states {count} bytes at byte {self.at} and has {len(self.data) - self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> int:
        """The next number, in a format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        """The bytes up to the end of the line."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise Refused("it is cut off")
        return self.take(end + 1 - self.at)[:-1]

    def pop(self) -> Any:
        """The value on top."""
        value = self.stack.pop()
        if value is MARK:
            raise IndexError
        return value

    def above_mark(self) -> list[Any]:
        """All values above the latest mark, which goes with them."""
        place = len(self.stack) - 1
        while self.stack[place] is not MARK:
            place -= 1
            if place < 0:
                raise IndexError
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def step(self, code: bytes) -> None:
        """One instruction."""
        push = self.stack.append
        match code:
            case b"\x80":  # PROTO
                if self.number("<B") > 5:
                    raise Refused("it is of a protocol above 5")
            case b"\x95":  # FRAME
                self.take(8)
            case b"(":
                push(MARK)
            case b"]":
                push([])
            case b")":
                push(())
            case b"l":
                push(self.above_mark())
            case b"t":
                push(tuple(self.above_mark()))
            case b"\x85" | b"\x86" | b"\x87":
                count = code[0] - 0x84
                push(tuple(reversed([self.pop() for _ in range(count)])))
            case b"a":
                value = self.pop()
                self._list().append(value)
            case b"e":
                values = self.above_mark()
                self._list().extend(values)
            case b"p":
                self.memo[int(self.line())] = self.stack[-1]
            case b"q":
                self.memo[self.number("<B")] = self.stack[-1]
            case b"r":
                self.memo[self.number("<I")] = self.stack[-1]
            case b"\x94":
                self.memo[len(self.memo)] = self.stack[-1]
            case b"g":
                push(self.memo[int(self.line())])
            case b"h":
                push(self.memo[self.number("<B")])
            case b"j":
                push(self.memo[self.number("<I")])
            case b"R":
                arguments, called = self.pop(), self.pop()
                push(self._made(called, arguments))
            case b"b":
                state, built = self.pop(), self.stack[-1]
                self._build(built, state)
            case b"c":
                module, name = self.line(), self.line()
                push(self._name(module.decode(), name.decode()))
            case b"\x93":
                name, module = self.pop(), self.pop()
                push(self._name(module, name))
            case _:
                push(self._value(code))

    def _value(self, code: bytes) -> object:
        """The value that an instruction holds itself."""
        match code:
            case b"N":
                return None
            case b"\x88":
                return True
            case b"\x89":
                return False
            case b"I":
                text = self.line()
                return {b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else _integer(text)
            case b"L":
                return _integer(self.line().removesuffix(b"L"))
            case b"K":
                return self.number("<B")
            case b"M":
                return self.number("<H")
            case b"J":
                return self.number("<i")
            case b"\x8a":
                return int.from_bytes(self.take(self.number("<B")), "little", signed=True)
            case b"U" | b"C":
                return self.take(self.number("<B"))
            case b"T":
                return self.take(self.number("<i"))
            case b"B":
                return self.take(self.number("<I"))
            case b"\x8e" | b"\x96":
                return self.take(self.number("<Q"))
            case b"S":
                return _quoted(self.line())
            case b"V":
                return self.line().decode("raw-unicode-escape")
            case b"\x8c":
                return self.take(self.number("<B")).decode("utf-8", "surrogatepass")
            case b"X":
                return self.take(self.number("<I")).decode("utf-8", "surrogatepass")
            case b"\x8d":
                return self.take(self.number("<Q")).decode("utf-8", "surrogatepass")
            case _:
                raise Refused(f"it holds something else than bytes, lists and booleans (byte {self.at - 1})")

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise TypeError
        return self.stack[-1]

    def _name(self, module: str, name: str) -> Name:
        text = f"{module} {name}"
        if text not in KNOWN:
            raise Refused(
                f"it would run or build {'.'.join(text.split())[:80]!r}, which no list of pictures needs"
            )
        return Name(text)

    def _made(self, called: object, arguments: tuple[Any, ...]) -> object:
        """The stand-in of what a call would return."""
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise TypeError
        if called.text == ENCODE:
            text, encoding = arguments
            if encoding not in ("latin1", "latin-1", b"latin1"):
                raise Refused(f"it encodes text as {encoding!r:.40}, and not to latin1")
            self.encoded += len(text)
            if self.encoded > len(self.data):
                raise Refused("its text would become more bytes than it has")
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise Refused("it holds text that is no bytes") from None
        if called.text in EMPTY_BYTES and not arguments:
            return b""
        if called.text == "numpy dtype" and _text(arguments[0]) in ("b1", "u1", "|b1", "|u1"):
            return Kind(_text(arguments[0])[-2:])
        if called.text in SCALARS and arguments[0] == Kind("b1") and arguments[1] in (b"\0", b"\1"):
            return arguments[1] == b"\1"
        if called.text in ARRAYS and arguments[0] == Name("numpy ndarray"):
            return Array()
        if called.text in BUFFERS:
            content, kind, shape, _ = arguments
            return _row(content, kind, shape)
        raise Refused(
            f"it would call {'.'.join(called.text.split())} in another way than bytes and booleans need"
        )

    def _build(self, built: object, state: tuple[Any, ...]) -> None:
        """Put bytes into the stand-in of an array; what the state of a kind says is known."""
        if isinstance(built, Array) and built.content is None:
            _, shape, kind, _, content = state
            built.content = _row(content, kind, shape).content
        elif not isinstance(built, Kind):
            raise Refused("it builds something else than bytes and booleans")


def _row(content: object, kind: object, shape: tuple[int, ...]) -> Array:
    flat = len(shape) == 1 or (len(shape) == 2 and 1 in shape)
    if not (kind == Kind("u1") and flat and max(shape) == len(_bytes(content))):
        raise Refused("it holds an array that is no row of bytes")
    return Array(_bytes(content))


def _integer(text: bytes) -> int:
    if not text.strip().lstrip(b"-").isdigit() or len(text) > 20:
        raise Refused("it holds a number that is none")
    return int(text)


def _quoted(text: bytes) -> bytes:
    if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
        raise Refused("it holds a string without quotes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that mean nothing
            return codecs.escape_decode(text[1:-1])[0]  # type: ignore[attr-defined]
    except ValueError:
        raise Refused("it holds a string with a wrong escape") from None


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)[:8]


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise Refused("it holds an array without bytes")
    return value
