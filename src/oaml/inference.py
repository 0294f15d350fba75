"""From images to scores: every face goes through the network once, every pair through the matcher.

The numbers of a face and of a pair depend on nothing but their own images. Matrix kernels may add in another
order in each row of a batch (measured: with most batch sizes an embedding's last digit changes with its
row), and then a face's numbers would depend on the faces beside it. So on a CPU every face has a pass of its
own, each on one thread and as many at a time as there are cores, which is no slower and makes the numbers
independent of the number of cores as well. Elsewhere all batches have one size. Pairs are compared in blocks
of one size; the last is filled up with repetitions that are thrown away.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oaml.errors import OamlError
from oaml.kernels.threads import one_thread_each
from oaml.support.files import FACE_SIZE
from oaml.support.progress import progress
from oaml.template import COLUMNS, Templates

if TYPE_CHECKING:
    import torch

    from oaml.kernels import Precision
    from oaml.model import Model

STARTER = Path(__file__).parent / "starter"
"""The model in the package, which every command knows by the name of its folder."""
BATCH_SIZE = 32
PAIR_CHUNK = 64
MEMORY_BYTES = 1 << 30
"""Feature maps larger than this are kept in a temporary file instead of in memory."""


def load_model(model: str, device: str = "auto", batch_size: int = BATCH_SIZE) -> Model:
    """The model on its device, in eval mode; checks the options that every command shares.

    Args:
        model: a model folder, or published weights as `oaml.weights` reads them; `starter` is the model in the package, unless
            there is a folder of that name.

    Raises:
        OamlError: no such model or device, or a batch size below 1.
    """
    if batch_size < 1:
        raise OamlError(f"batch_size: {batch_size} is not at least 1")
    from oaml.model import Model

    folder = STARTER if model == "starter" and not Path(model).exists() else model
    return to_device(Model.open(folder), device)


def to_device(model: Model, device: str) -> Model:
    """The model on cpu or cuda; `auto` is a GPU where there is one.

    Raises:
        OamlError: no such device.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        first_line = (str(error).splitlines() or ["unknown"])[0]
        raise OamlError(f"device {device!r}: can't be used ({first_line}); choose cpu or auto") from error


def as_input(faces: Sequence[np.ndarray] | np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Aligned faces, uint8 RGB [112,112,3] each -> what `Model` takes, float32 [N,3,112,112] in [0,1].

    Raises:
        OamlError: another kind of array, which the network would take without a word.
    """
    import torch

    for face in faces:
        if getattr(face, "dtype", None) != np.uint8 or np.shape(face) != (FACE_SIZE, FACE_SIZE, 3):
            raise OamlError(
                f"an aligned face is uint8 [{FACE_SIZE}, {FACE_SIZE}, 3] in RGB order, and this is "
                f"{getattr(face, 'dtype', type(face).__name__)} {list(np.shape(face))}; cut it out with Recogniser.align"
            )
    return torch.from_numpy(np.stack(list(faces))).to(device).permute(0, 3, 1, 2).float() / 255


def extract(
    model: Model,
    images: Iterable[np.ndarray],
    count: int,
    *,
    batch_size: int = BATCH_SIZE,
    label: str | None = None,
) -> Templates:
    """Run the network over faces, in float32.

    Args:
        model: in eval mode, on any device.
        images: uint8 RGB [112,112,3]; a generator is read batch by batch, so images needn't fit into memory.
        count: number of images.
        batch_size: faces read at a time; on a GPU also faces a pass, and another size may change the last
            digits.
        label: shown with a progress bar on stderr; None shows none.

    Raises:
        OamlError: from reading the images.
        ValueError: no images, or not as many as `count`.
        RuntimeError: the model is in training mode, as for all functions here.
    """

    if count < 1 or batch_size < 1:
        raise ValueError(f"{count} images in batches of {batch_size}: both must be at least 1")
    device = model.device
    rows = 1 if device.type == "cpu" else batch_size

    def one_pass(batch: list[np.ndarray]) -> Templates:
        faces = model.extract(as_input(batch + batch[-1:] * (rows - len(batch)), device))
        return faces[: len(batch)].to("cpu")

    def passes() -> Iterator[Templates]:
        source = iter(images)
        while group := list(islice(source, max(batch_size, rows))):
            yield from run(one_pass, [group[i : i + rows] for i in range(0, len(group), rows)])
            advance(len(group))

    with progress(label, count) as advance, _workers(device.type) as run:
        faces = gathered(passes(), count)
    if len(faces) != count:
        raise ValueError(f"{len(faces)} images, expected {count}")
    return faces


def gathered(parts: Iterable[Templates], count: int, channels_last: bool = False) -> Templates:
    """Templates that come in parts as one set, float32 on the CPU; large fields lie in temporary files.

    Args:
        parts: one after another; only one is held besides the set.
        count: faces that memory is reserved for; there may be fewer.
        channels_last: lay local maps out so that `score_listed` needs no copies of them.

    Raises:
        OamlError: no room for the file.
        ValueError: no parts, or more faces than `count`.
    """
    import torch

    fields_so_far: dict[str, torch.Tensor] = {}
    done = 0
    for part in parts:
        if done + len(part) > count:
            raise ValueError(f"more than {count} faces")
        for field in fields(part):
            values = getattr(part, field.name)
            if field.name not in fields_so_far:
                if channels_last and field.name == "local":
                    channels, height, width = values.shape[1:]
                    empty = torch.from_numpy(_empty((count, height, width, channels))).permute(0, 3, 1, 2)
                else:
                    empty = torch.from_numpy(_empty((count, *values.shape[1:])))
                fields_so_far[field.name] = empty
            fields_so_far[field.name][done : done + len(part)] = values
        done += len(part)
    if not fields_so_far:
        raise ValueError("no faces")
    return Templates(**fields_so_far)[:done]


def score_pairs(
    model: Model,
    faces_a: Templates,
    index_a: np.ndarray,
    faces_b: Templates,
    index_b: np.ndarray,
    *,
    plain: bool = True,
    chunk: int = PAIR_CHUNK,
    name: Callable[[int], str] = "pair {}".format,
    label: str | None = None,
) -> dict[str, np.ndarray]:
    """Score face `index_a[i]` of one set against face `index_b[i]` of another (or of the same) set.

    Args:
        faces_a, faces_b: from `extract` with this model.
        index_a, index_b: int [N].
        plain: also score without visibility, as if every cell showed the face.
        chunk: pairs compared at a time; bounds the memory.
        name: what to call pair i in an error.
        label: as in `extract`.

    Returns:
        float64 [N] each, in the order of `oaml.template.COLUMNS`: `cosine` of the embeddings in [-1,1], `qaconv` (logit, all
        cells count) unless `plain` is False, and the logits by predicted visibility `qaconv_visibility`, `joint` (of the joint,
        that is visibility-masked, embedding) and `fused`.

    Raises:
        OamlError: a score is NaN or infinite; names the pair.
    """
    import torch

    count = len(index_a)
    if len(index_b) != count:
        raise ValueError(f"{count} and {len(index_b)} faces: pairs need as many on either side")
    device = model.device
    scores = {column: np.empty(count) for column in COLUMNS if plain or column != "qaconv"}

    def one_block(start: int) -> None:
        kept = min(chunk, count - start)
        # filled up with the last pair, for the reason that the module gives
        rows = np.minimum(np.arange(start, start + chunk), count - 1)
        a = faces_a[torch.from_numpy(index_a[rows])].to(device)
        b = faces_b[torch.from_numpy(index_b[rows])].to(device)
        for column, values in model.compare(a, b, plain).items():
            scores[column][start : start + kept] = values[:kept].cpu().numpy()

    starts = range(0, count, chunk)
    with progress(label, count) as advance, _workers(device.type) as run:
        for start, _ in zip(starts, run(one_block, starts), strict=True):
            advance(min(chunk, count - start))
    for column, values in scores.items():
        _need_finite(column, values, name)
    return scores


def score_listed(
    model: Model, faces_a: Templates, index_a: np.ndarray, faces_b: Templates, index_b: np.ndarray
) -> dict[str, np.ndarray]:
    """`score_pairs` for many pairs of few faces; on a CPU two to three times as fast where those of one face follow each other.

    Args:
        faces_a, faces_b: from `gathered` with `channels_last`.
        index_a, index_b: int64 [N].

    Returns, raises: as `score_pairs`.
    """
    import torch

    if model.device.type != "cpu":
        return score_pairs(model, faces_a, index_a, faces_b, index_b)
    pairs = torch.from_numpy(index_a), torch.from_numpy(index_b)
    values = model.compare_listed(faces_a, faces_b, pairs, plain=True)
    scores = {column: values[column].double().numpy() for column in COLUMNS}
    for column, some in scores.items():
        _need_finite(column, some, "pair {}".format)
    return scores


def score_all(
    model: Model,
    probes: Templates,
    index_p: np.ndarray,
    gallery: Templates,
    index_g: np.ndarray,
    *,
    plain: bool = True,
    precision: Precision = "float32",
    chunk: int = 128,
    name: Callable[[int], str] = "probe {}".format,
) -> dict[str, np.ndarray]:
    """Score every probe against every gallery face; for more probes than a few hundred call it in blocks.

    Args:
        probes, gallery: from `extract` with this model.
        index_p, index_g: int [P] and [G], which of their faces take part.
        plain: as in `score_pairs`.
        precision: of QAConv's correlations, see `QAConv.match`.
        chunk: gallery faces compared at a time.
        name: what to call probe i in an error.

    Returns:
        [P,G] each, as `score_pairs` gives them.

    Raises:
        OamlError: a score is NaN or infinite; names the probe.
    """
    import torch

    device = model.device
    left = probes[torch.from_numpy(index_p)].to(device)

    def one_block(start: int) -> dict[str, np.ndarray]:
        right = gallery[torch.from_numpy(index_g[start : start + chunk])].to(device)
        scores = model.compare_all(left, right, plain, precision)
        return {name: values.cpu().numpy() for name, values in scores.items()}

    with _workers(device.type) as run:
        blocks = list(run(one_block, range(0, len(index_g), chunk)))
    scores = {column: np.concatenate([block[column] for block in blocks], 1) for column in blocks[0]}
    for column, values in scores.items():
        _need_finite(column, values.sum(1), name)
    return scores


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised float32; in an unnamed temporary file, which the system removes, where it is large."""
    size = math.prod(shape) * 4
    if size <= MEMORY_BYTES:
        return np.empty(shape, np.float32)
    # Asked beforehand: a full disk doesn't fail a write to mapped memory, it ends the process.
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < size:
        raise OamlError(
            f"{folder}: no room for {size / 1e9:.1f} GB of feature maps; free space or set TMPDIR elsewhere"
        )
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def _need_finite(column: str, values: np.ndarray, name: Callable[[int], str]) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise OamlError(
            f"{name(int(bad[0]))}: the score {column} is not finite ({values[bad[0]]}); "
            "the model's weights are damaged or its training diverged; use another one"
        )


@contextmanager
def _workers(device: str) -> Iterator[Callable[..., Iterable[Any]]]:
    """An ordered `map` without gradients, in real float32; on a CPU in parallel, each call on one thread."""
    import torch

    def without_gradients(function: Callable[[Any], Any], item: Any) -> Any:
        with torch.inference_mode():  # holds for one thread only
            return function(item)

    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        call = partial(without_gradients, function)
        return map(call, items) if device != "cpu" else pool.map(call, items)

    # On a GPU convolutions are otherwise rounded to 10 bits and may use another algorithm on every run.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with exact, one_thread_each(torch.get_num_threads()) as pool:
        yield run
