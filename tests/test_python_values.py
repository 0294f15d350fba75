"""What programs give the Python API in place of an image, a list, a name, a number or a path: taken, or refused in one line."""

from __future__ import annotations

import base64
import io
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import oaml
from conftest import TwoFaces, small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.inference import as_input
from oaml.recognition.recognise import Recogniser
from oaml.support.files import read_photograph
from oaml.support.images import name_of, several

pytestmark = pytest.mark.usefixtures("one_thread")
FACE = draw_face(1, 0)


@pytest.fixture(scope="module")
def made() -> Recogniser:
    return Recogniser(small_model(1.0, thresholds={"0.001": 9.5}), TwoFaces())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def content() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(FACE).save(buffer, "PNG")
    return buffer.getvalue()


def says(call: Callable[[], object], *parts: str) -> str:
    with pytest.raises(OamlError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message
    return message


class Stream:
    """A source that can be read once, as that of a download."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, size: int = -1) -> bytes:
        content, self.content = self.content, b""
        return content


WAYS = {
    "bytes": lambda content: content,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "BytesIO": io.BytesIO,
    "BytesIO at its end": lambda content: at_end(io.BytesIO(), content),
    "temporary file": lambda content: at_end(tempfile.TemporaryFile(), content),  # noqa: SIM115
    "spooled file": lambda content: at_end(tempfile.SpooledTemporaryFile(), content),  # noqa: SIM115
    "stream": Stream,
    "array": lambda _: FACE,
    "array of Fortran order": lambda _: np.asfortranarray(FACE),
    "array that is read only": lambda _: read_only(FACE),
    "view": lambda _: np.repeat(FACE, 2, axis=1)[:, ::2],
    "Pillow's": lambda _: Image.fromarray(FACE),
    "Pillow's, not read yet": lambda content: Image.open(io.BytesIO(content)),
    "Pillow's RGBA": lambda _: Image.fromarray(FACE).convert("RGBA"),
}


def at_end(file: Any, content: bytes) -> Any:
    file.write(content)
    return file


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_image(way: str, content: bytes, made: Recogniser, tmp_path: Path) -> None:
    given = WAYS[way](content)
    image = read_photograph(given)
    np.testing.assert_array_equal(image, FACE)
    assert image.flags.c_contiguous
    expected = made.represent(FACE).embedding
    given = WAYS[way](content)
    assert torch.equal(made.represent(given).embedding, expected)
    assert torch.equal(made.represent([WAYS[way](content)]).embedding, expected)
    if way != "stream":  # can be read once
        assert torch.equal(made.represent(given).embedding, expected)


def test_open_files_and_their_names(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with open(tmp_path / "a.png", "rb") as file:
        np.testing.assert_array_equal(read_photograph(file), FACE)
        assert name_of(file) == str(tmp_path / "a.png")
    says(lambda: read_photograph(file), "a.png: can't be read", "closed")
    with open(tmp_path / "a.png", encoding="latin-1") as text:
        says(lambda: read_photograph(text), "a.png: is a file opened as text", "'rb'")  # type: ignore[arg-type]
    with open(tmp_path / "b.png", "wb") as written:
        says(lambda: read_photograph(written), "b.png: can't be read")
    says(lambda: read_photograph(io.StringIO("x")), "opened as text")  # type: ignore[arg-type]
    says(lambda: read_photograph(io.BytesIO()), "the image: is not a readable image (it is empty)")


def shown_faces() -> Iterator[np.ndarray]:
    yield from (FACE, draw_face(2, 0))


@pytest.mark.parametrize("kind", ["list", "tuple", "generator", "map", "deque", "values", "iterator"])
def test_any_iterable_of_images(kind: str, made: Recogniser) -> None:
    faces = list(shown_faces())
    given: Any = {
        "list": faces, "tuple": tuple(faces), "generator": shown_faces(), "map": map(np.copy, faces), "deque": deque(faces),
        "values": dict(enumerate(faces)).values(), "iterator": iter(faces),
    }[kind]  # fmt: skip
    assert torch.equal(made.represent(given).embedding, made.represent(faces).embedding)
    assert [p.name for p in several({Path("a"), Path("b")}) if p.name == "a"] == ["a"]


@pytest.mark.parametrize("empty", [[], (), set(), iter(())])
def test_no_images_at_all(empty: Any, made: Recogniser) -> None:
    says(lambda: made.represent(empty), "no images; give one at least")


TENSOR = torch.zeros(3, 112, 112)
WRONG: list[tuple[Any, str]] = [
    (None, "None"), (3, "int"), (2.5, "float"), (True, "bool"), (object(), "object"), ({"a": 1}, "dict"), (len, "builtin"),
    (TENSOR, "permute(1, 2, 0)"), (TENSOR[None], "permute"), (torch.zeros(112, 112, 3, dtype=torch.uint8), "torch.Tensor"),
    (np.float32(3), "float32"), (Image, "module"), (range, "type"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "reason"), WRONG, ids=lambda v: type(v).__name__)
def test_what_is_no_image_is_refused_everywhere(value: Any, reason: str, made: Recogniser) -> None:
    calls = [made.represent, made.detect, made.subjects, made.align, lambda v: made.represent([FACE, v])]
    calls += [lambda v: made.verify(v, FACE), lambda v: made.verify(FACE, v), lambda v: made.verify_all(v, v)]
    for call in calls:
        says(lambda call=call: call(value), "no image", reason)


@pytest.mark.parametrize("value", [[FACE], (FACE,), {1, 2}, [], iter([FACE])])
def test_one_image_is_not_several(value: Any, made: Recogniser) -> None:
    for call in (made.detect, made.align, lambda v: made.verify(v, FACE)):
        says(lambda call=call: call(value), "no image")
    if isinstance(value, list | tuple | set):
        says(lambda: made.detect(value), "give one image, not several")  # type: ignore[arg-type]


FLOAT = FACE / 255.0
ARRAYS: list[tuple[np.ndarray, str]] = [
    (FACE[..., 0], "np.dstack([image] * 3)"),
    (FACE[..., :1], "image.repeat(3, axis=2)"),
    (np.dstack([FACE, FACE[..., 0]]), "image[..., :3]"),
    (FACE.transpose(2, 0, 1), "image.transpose(1, 2, 0)"),
    (FACE[None], "list(images)"),
    (FLOAT, "(image * 255).round().clip(0, 255).astype(np.uint8)"),
    (FLOAT.astype(np.float16), "(image * 255).round()"),
    (FACE.astype(np.float32), "(image).round()"),
    (np.full_like(FLOAT, np.nan), "NaN"),
    (FACE.astype(np.uint16) * 257, "image // 257"),
    (FACE.astype(np.int64), "image.clip(0, 255)"),
    (FACE > 99, "image.astype(np.uint8) * 255"),
    (np.zeros((0, 0, 3), np.uint8), "empty"),
    (np.zeros((112, 0, 3), np.uint8), "empty"),
    (np.zeros(5, np.uint8), "[5]"),
    (np.array(None), "object"),
    (np.array(["a.jpg"]), "<U5"),
    (np.zeros((4, 4, 2), np.uint8), "[4, 4, 2]"),
    (FLOAT + 1j, "complex"),
]


@pytest.mark.parametrize(("array", "remedy"), ARRAYS, ids=[remedy for _, remedy in ARRAYS])
def test_other_arrays_are_refused_and_the_remedy_works(
    array: np.ndarray, remedy: str, made: Recogniser
) -> None:
    for call in (made.represent, made.align, lambda value: made.verify(FACE, value)):
        message = says(lambda call=call: call(array), str(array.dtype), str(list(array.shape)), remedy)
    expression = message.rpartition("convert it: ")[2].rpartition("times: ")[2].rpartition("last: ")[2]
    expression = (
        expression.partition(", or ")[0].partition(", if ")[0].removeprefix("leave out the alpha channel: ")
    )
    expression = expression.rpartition("in RGB order; ")[2].removeprefix("leave out the alpha channel: ")
    if expression.startswith(("np.", "image", "(image")):
        converted = eval(expression, {"np": np, "image": array})
        assert read_photograph(converted).shape == FACE.shape
        if array.ndim == 3 and array.shape[2] == 3 and array.dtype != bool:
            np.testing.assert_allclose(read_photograph(converted), FACE, atol=1)


def test_pictures_of_pillow_that_cant_be_read(content: bytes, made: Recogniser) -> None:
    closed = Image.open(io.BytesIO(content))
    closed.close()
    cut = Image.open(io.BytesIO(content[: len(content) // 2]))
    for picture in (closed, cut):
        says(lambda picture=picture: made.represent(picture), "is not a readable image")
    for mode in ("F", "I"):
        says(lambda mode=mode: made.represent(Image.fromarray(FACE).convert("L").convert(mode)), "not known")
    says(lambda: made.represent(Image.new("RGB", (0, 5))), "is empty, 0x5 pixels")


# --- text that is no path


def test_text_that_is_no_path_is_never_printed_whole(content: bytes, made: Recogniser) -> None:
    coded = base64.b64encode(content * 20).decode()
    message = says(lambda: made.represent(f"data:image/png;base64,{coded}"), "is a data URI", "b64decode")
    assert len(message) < 250
    assert len(says(lambda: made.represent(coded), "base64")) < 250
    assert len(says(lambda: made.represent(coded[:1_000]), "is no path")) < 250
    assert len(says(lambda: made.represent("x" * 5_000), "is no path")) < 250
    says(lambda: made.represent("a\nb.jpg"), r"a\nb.jpg: no such image")
    says(lambda: made.represent("\0"), r"\x00")
    says(lambda: made.represent(""), "")
    says(lambda: made.represent("file:///home/a.jpg"), "give the path alone")


def test_a_long_path_that_exists_is_named_whole(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 120) / ("b" * 120) / ("c" * 120)
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"no")
    says(lambda: read_photograph(folder / "a.png"), str(folder / "a.png"))


# --- numbers and paths


def test_numbers_are_numbers(made: Recogniser) -> None:
    for value in ("0.001", None, [0.001], b"1"):
        if value is not None:
            says(lambda v=value: made.verify(FACE, FACE, threshold=v), "threshold: ", "is no score")  # type: ignore[arg-type]
        says(lambda v=value: made.verify(FACE, FACE, far=v), "far: ")  # type: ignore[arg-type]
    says(lambda: made.verify(FACE, FACE, threshold=float("nan")), "threshold")
    threshold = made.verify(FACE, FACE, threshold=np.float32(2)).threshold  # type: ignore[arg-type]
    assert threshold == 2


def test_crops_are_aligned_faces(made: Recogniser) -> None:
    assert len(made.templates(np.stack([FACE, FACE]))) == 2  # type: ignore[arg-type]
    for crops in ([FACE[:50]], [FACE / 255], [FACE, FACE[:, :9]], FACE, [None], [torch.zeros(3, 112, 112)]):
        says(lambda crops=crops: made.templates(crops), "an aligned face is uint8 [112, 112, 3]")  # type: ignore[arg-type]
        says(lambda crops=crops: as_input(crops), "Recogniser.align")  # type: ignore[arg-type]
    says(lambda: made.templates([]), "no faces")


@pytest.mark.parametrize("value", [3, b"model", ["a"], "", TENSOR])
def test_paths_are_paths(value: Any, tmp_path: Path) -> None:
    if not isinstance(value, str):
        says(lambda: oaml.load(value), "model: ", "no path")
        says(lambda: oaml.load(detector=value), "detector: ", "no path")
    else:
        says(lambda: oaml.load(value), "model: the path is empty")


# --- galleries


@pytest.fixture
def gallery(made: Recogniser, tmp_path: Path) -> oaml.Gallery:
    pytest.importorskip("lancedb")
    return oaml.Gallery(tmp_path / "g", made)


@pytest.mark.parametrize("way", WAYS)
def test_images_of_every_kind_are_enrolled(way: str, content: bytes, gallery: oaml.Gallery) -> None:
    assert gallery.enroll("Ann", (x for x in [WAYS[way](content)])).added == 1
    (answer,) = gallery.search(WAYS[way](content))
    assert answer.candidates[0].person == "Ann"


def test_the_same_bytes_are_enrolled_once(gallery: oaml.Gallery, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with open(tmp_path / "a.png", "rb") as file:
        changed = gallery.enroll("Ann", {tmp_path / "a.png", file, content, io.BytesIO(content)})  # type: ignore[arg-type]
    assert changed.added == 1


def test_values_that_a_gallery_refuses(
    gallery: oaml.Gallery, made: Recogniser, tmp_path: Path, content: bytes
) -> None:
    cut = Image.open(io.BytesIO(content[: len(content) // 2]))
    for value, reason in [*WRONG, *ARRAYS, (cut, "not a readable image")]:
        for given in (value, [FACE, value]):
            says(lambda given=given: gallery.enroll("Ann", given), reason)  # type: ignore[arg-type]
    says(gallery.people, "")  # there is none yet: nothing was enrolled
    gallery.enroll("Ann", FACE)
    for value, reason in [*WRONG, *ARRAYS, ([FACE], "not several")]:
        says(lambda v=value: gallery.search(v), reason)  # type: ignore[arg-type]
    for name in (None, 3, b"Ann", ["Ann"], ("Ann", "Bo"), {"Ann"}, Path("Ann"), 2.5, {"a": 1}):
        for call in (
            lambda n=name: gallery.enroll(n, FACE),  # type: ignore[arg-type]
            lambda n=name: gallery.delete(n),  # type: ignore[arg-type]
            lambda n=name: gallery.delete("Ann", n),  # type: ignore[arg-type]
            lambda n=name: gallery.rename(n, "Bo"),  # type: ignore[arg-type]
            lambda n=name: gallery.rename("Ann", n),  # type: ignore[arg-type]
        ):
            says(call, "no name of a person", type(name).__name__)
    says(gallery.delete, "no names; give one at least")
    says(lambda: gallery.delete("Nobody"), "nobody of that name")
    says(lambda: gallery.delete("x" * 10_000), "nobody of that name")
    says(lambda: gallery.delete(["Ann"]), "delete(*names)")  # type: ignore[arg-type]
    for top in (0, -1, 2.5, "5", None, [1]):
        says(lambda top=top: gallery.search(FACE, top=top), "top")  # type: ignore[arg-type]
    assert len(gallery.search(FACE, top=np.int64(1))[0].candidates) == 1  # type: ignore[arg-type]
    for path in (None, 3, b"g", ["g"], ""):
        says(lambda path=path: gallery.enroll_folder(path), "folder: ")  # type: ignore[arg-type]
        says(lambda path=path: gallery.export(path), "file: ")  # type: ignore[arg-type]
        says(lambda path=path: gallery.import_(path), "file: ")  # type: ignore[arg-type]
        says(lambda path=path: gallery.repair(path), "file: ")  # type: ignore[arg-type]
        says(lambda path=path: oaml.Gallery(path), "gallery: ")  # type: ignore[arg-type]
    for video in (None, 3, b"v", [FACE], FACE):
        says(lambda video=video: gallery.search_video(video), "a video is given by its path")  # type: ignore[arg-type]
    says(lambda: oaml.Gallery(tmp_path / "g", "starter"), "oaml.load(MODEL)")  # type: ignore[arg-type]
    assert [(person.name, person.faces) for person in gallery.people()] == [("Ann", 1)]
