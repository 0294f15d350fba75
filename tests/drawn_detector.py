"""A detector for tests: an ONNX file as OpenCV reads YuNet's, whose weights are drawn and not learned.

It finds faces that `mark` has given dots of pure colour: green eyes, a blue nose, red corners of the mouth. Every cell takes the
means of each colour around it, and landmarks and box follow from these. It is sure where all dots of one face and none of another
are near and the face stands upright, to 25 degrees or so; so it doesn't see a face on its side, as YuNet sees one badly.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from oaml.photographs.align import STANDARD_LANDMARKS

STRIDES = (8, 16, 32)
WINDOW = 24  # a side of what a cell sees, in quarters of its stride
_EYES, _NOSE, _MOUTH = (
    STANDARD_LANDMARKS[:2].mean(0),
    STANDARD_LANDMARKS[2],
    STANDARD_LANDMARKS[3:].mean(0),
)
_LENGTH = float(np.linalg.norm(_MOUTH - _EYES))
_RADIUS = 5
_HALF_EYES, _HALF_MOUTH = (
    np.linalg.norm(STANDARD_LANDMARKS[i] - STANDARD_LANDMARKS[i - 1]) / 2 / _LENGTH for i in (1, 4)
)
_DOT = (_RADIUS / _LENGTH) ** 2 / 2
_SPREAD = np.array([_HALF_EYES**2 + _DOT, _DOT, _HALF_MOUTH**2 + _DOT])
"""Variance of each colour, in squares of the distance from eyes to mouth."""


def mark(face: np.ndarray) -> np.ndarray:
    """An aligned face, uint8 RGB [112,112,3], with the dots that the detector sees."""
    marked = face.copy()
    colours = ((0, 255, 0), (0, 255, 0), (0, 0, 255), (255, 0, 0), (255, 0, 0))
    for (x, y), colour in zip(STANDARD_LANDMARKS, colours, strict=True):
        centre = round(x * 16), round(y * 16)
        cv2.circle(marked, centre, _RADIUS * 16, colour, -1, cv2.LINE_AA, shift=4)
    return marked


def write(path: Path) -> Path:
    """Write the detector and return its path."""
    graph = _Graph()
    # BGR -> how green, blue and red: a pure colour beyond what lips or a meadow have
    colours = np.array([[-1.0, 1, -1], [1, -1, -1], [-1, -1, 1]])
    dots = graph.add("Relu", graph.linear("input", colours, [-130.0] * 3))
    for stride in STRIDES:
        _cells(graph, dots, stride)
    path.write_bytes(graph.model([f"{name}_{s}" for name in ("cls", "obj", "bbox", "kps") for s in STRIDES]))
    return path


def _cells(graph: _Graph, dots: str, stride: int) -> None:
    """What all cells of one stride say. Lengths are in strides, places from the first pixel of a cell on."""
    side = stride // 4
    small = graph.add("AveragePool", dots, kernel_shape=[side] * 2, strides=[side] * 2)
    place = (np.arange(WINDOW) - WINDOW / 2 + 2.5) / 4 - 0.5 / stride
    x, y = np.meshgrid(place, place)
    sums, masses = np.zeros((9, 3, WINDOW, WINDOW)), np.zeros((9, 3, WINDOW, WINDOW))
    for row, what in enumerate((x, y, x**2 + y**2)):
        for colour in range(3):
            sums[3 * row + colour, colour], masses[3 * row + colour, colour] = what, 1
    around = {"kernel_shape": [WINDOW] * 2, "strides": [4, 4], "pads": [WINDOW // 2 - 2] * 4}
    total = graph.conv(small, sums, np.zeros(9), **around)
    mass = graph.conv(small, masses, np.full(9, 1e-3), **around)
    means = graph.add("Div", total, mass)

    ex, nx, mx, ey, ny, my = np.eye(6, 9)  # of eyes, nose, mouth
    down = np.stack([mx - ex, my - ey])
    right = np.stack([down[1], -down[0]])
    eyes, mouth = np.stack([ex, ey]), np.stack([mx, my])
    marks = [
        *(eyes - _HALF_EYES * right, eyes + _HALF_EYES * right, np.stack([nx, ny])),
        *(mouth - _HALF_MOUTH * right, mouth + _HALF_MOUTH * right),
    ]
    graph.out(f"kps_{stride}", graph.linear(means, np.concatenate(marks)))

    vector = graph.linear(means, down)
    square = graph.linear(graph.add("Mul", vector, vector), np.ones((3, 2)), [1e-4] * 3)
    ratio = np.log(112 / _LENGTH)
    size = graph.linear(graph.add("Log", square), np.array([[0.5, 0, 0]] * 2), [ratio, ratio])
    graph.out(f"bbox_{stride}", graph.add("Concat", graph.linear(means, (eyes + mouth) / 2), size, axis=1))

    minus = graph.linear(graph.add("Mul", means, means), -np.tile(np.eye(3, 3), 2) @ np.eye(6, 9))
    spread = graph.add("Div", graph.add("Add", minus, graph.linear(means, np.eye(3, 9, 6))), square)
    one = graph.linear(mass, np.eye(3, 9))  # two dots of an eye, one nose, two corners
    uneven = graph.add("Div", graph.linear(one, np.array([[1.0, -2, 0], [0, 0, 0], [0, -2, 1]])), one)
    wrong = [graph.add("Abs", x) for x in (graph.linear(spread, np.eye(3), list(-_SPREAD)), uneven)]
    upright = graph.add("Div", graph.linear(vector, np.array([[0.0, 1]] * 3)), graph.add("Sqrt", square))
    all_signs = graph.add("Concat", *wrong, upright, axis=1)
    for name in ("cls", "obj"):  # the score is the root of their product, clipped to [0,1]
        graph.out(
            f"{name}_{stride}",
            graph.linear(all_signs, np.array([[-8.0] * 3 + [-2] * 3 + [6, 0, 0]]), [-4.75]),
        )


class _Graph:
    """Nodes and weights as ONNX's protobuf, of which a few fields are enough (onnx.proto3 numbers them)."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.count = 0

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: int | list[int]) -> str:
        """A node; returns the name of its output."""
        self.count += 1
        output = output or f"n{self.count}"
        fields = [_field(1, name) for name in inputs] + [_field(2, output), _field(4, kind)]
        for name, value in attributes.items():
            values = (
                _field(8, *value) + _field(20, 7)
                if isinstance(value, list)
                else _field(3, value) + _field(20, 2)
            )
            fields.append(_field(5, _field(1, name) + values))
        self.parts.append(_field(1, b"".join(fields)))
        return output

    def weights(self, values: np.ndarray, kind: type[np.generic] = np.float32) -> str:
        """A constant; returns its name."""
        self.count += 1
        number = 1 if kind is np.float32 else 7
        data = np.ascontiguousarray(values, kind).tobytes()
        name = f"w{self.count}"
        self.parts.append(
            _field(5, _field(1, *values.shape) + _field(2, number) + _field(8, name) + _field(9, data))
        )
        return name

    def conv(self, x: str, weight: np.ndarray, bias: np.ndarray, **attributes: list[int]) -> str:
        """A convolution."""
        return self.add("Conv", x, self.weights(weight), self.weights(bias), output="", **attributes)

    def linear(self, x: str, weight: np.ndarray, bias: list[float] | None = None) -> str:
        """The same matrix [outputs, inputs] in every cell."""
        added = np.zeros(len(weight)) if bias is None else np.array(bias)
        return self.conv(x, weight[:, :, None, None], added, kernel_shape=[1, 1])

    def out(self, name: str, x: str) -> None:
        """An output of the network, [1, cells, channels]."""
        channels = {"kps": 10, "bbox": 4}.get(name.split("_")[0], 1)
        last = self.add("Transpose", x, perm=[0, 2, 3, 1])
        self.add("Reshape", last, self.weights(np.array([1, -1, channels]), np.int64), output=name)

    def model(self, outputs: list[str]) -> bytes:
        """The file."""

        def value(name: str, *shape: int) -> bytes:
            tensor = _field(1, 1) + _field(2, b"".join(_field(1, _field(1, n)) for n in shape))
            return _field(1, name) + _field(2, _field(1, tensor))

        ends = [_field(2, "drawn"), _field(11, value("input", 1, 3, 320, 320))]
        ends += [_field(12, value(name)) for name in outputs]
        return (
            _field(1, 7) + _field(7, b"".join(self.parts + ends)) + _field(8, _field(1, "") + _field(2, 11))
        )


def _field(number: int, *values: int | str | bytes) -> bytes:
    """One field of a protobuf message, repeated for every value: numbers as varints, the rest with its length before it."""
    coded = b""
    for value in values:
        if isinstance(value, int):
            coded += _varint(number << 3) + _varint(value % 2**64)
        else:
            data = value.encode() if isinstance(value, str) else value
            coded += _varint(number << 3 | 2) + _varint(len(data)) + data
    return coded


def _varint(value: int) -> bytes:
    coded = bytearray()
    while value > 127:
        coded.append(value % 128 | 128)
        value //= 128
    return bytes([*coded, value])
