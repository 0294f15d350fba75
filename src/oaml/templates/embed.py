"""`oaml embed`: turn a folder of aligned faces into one file of int8 templates, with every core busy and in constant memory.

Threads decode images ahead. On a CPU every core then takes batches of its own on one thread, which is faster than all cores on one
batch. Batch normalisation is folded into the convolutions. Faces are written in their order, so that a run that was killed goes on
where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from oaml.datasets.sources import left_out_of, pictures_from
from oaml.errors import OamlError
from oaml.inference import as_input, load_model
from oaml.kernels import Precision
from oaml.kernels.threads import one_thread_each
from oaml.support.files import FACE_SIZE, need_utf8, read_image
from oaml.support.names import printable, readable
from oaml.support.progress import progress

if TYPE_CHECKING:
    from oaml.model import Model
    from oaml.templates.quantised import QuantisedTemplates

Image: TypeAlias = Any
"""What a caller's `read` takes: a path, or a place in a source."""

FACES_A_PASS = 16
READERS = 2  # threads that decode images
PASSES_A_WRITE = 16  # a write waits for the disk


def embed(
    model: str,
    *,
    images: Path,
    out: Path,
    precision: Precision = "float32",
    resize: bool = False,
    skip_damaged: bool = False,
    format: Literal["templates", "megaface"] = "templates",
    suffix: str = "oaml",
    device: str = "auto",
) -> None:
    """Write the templates of all images of a folder, or another source, into one safetensors file, 13 KB a face, with their paths.

    Until it is complete the file is called OUT.partial. The same command goes on with it after a kill; it refuses where the model,
    an option, or the name, size or date of any image has changed. Templates differ from those of `Model.extract` by the rounding
    to int8 alone (cosine of the embeddings above .9998). With bfloat16, on a machine that has instructions for it, it takes a bit
    more than half the time, and that cosine is above .999: the TAR of the fused score hardly changes, that of the plain cosine by
    half a point on occluded faces. `oaml score` and `oaml evaluate` take the file in place of the images; `docs/templates.md` says
    what it holds.

    Example:
        oaml embed runs/adapted --images faces/ --out faces.safetensors

    Args:
        model: a model folder, as `oaml adapt`, `oaml train` and `oaml import` write it, or published weights.
        images: folder of aligned faces; all images below it, sorted. Or a CSV manifest, a .rec file, tar shards or a .bin set
            (`docs/data.md`); paths are then the pictures' names there.
        out: file to write; an old one is replaced when the new one is complete.
        precision: of the network: float32 or bfloat16.
        resize: scale images of another size instead of refusing them.
        skip_damaged: read every image once beforehand, and leave out and name those that can't be read.
        format: templates, or megaface for a folder OUT with a file of the embedding alone for each image, IMAGE_SUFFIX.bin, which
            MegaFace's devkit reads.
        suffix: of these files, as the devkit is told.
        device: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        OamlError: a bad model or image (named), a file begun with another model or other images, or no room for it.
    """
    out, images = Path(out), Path(images)
    if out.is_dir() and format == "templates":
        raise OamlError(f"{out}: is a folder; name a file to write")
    if format == "megaface" and precision != "float32":
        raise OamlError("--precision is of a file of templates; leave it out for MegaFace's features")
    need_utf8(out)
    pictures = pictures_from(images, skip_damaged)
    left_out = set(left_out_of(pictures)) if skip_damaged else set[int]()
    places = [i for i in range(len(pictures.names)) if i not in left_out]
    if not places:
        raise OamlError(f"{images}: every picture in it is damaged; give another source")
    paths = [readable(pictures.names[i]) for i in places]
    stamp = hashlib.sha256(os.fsencode(f"{pictures.stamp()}{sorted(left_out) or ''}")).hexdigest()[:16]

    from oaml.templates.file import model_id

    loaded = load_model(model, device)
    if format == "megaface":
        from oaml.templates.features import write_features

        size = write_features(loaded, paths, lambda row: pictures.image(places[row], resize), out, suffix)
        print(f"{len(places):,} faces of {size} numbers each in {printable(str(out))}/")
        return
    facts = {
        "model": model_id(loaded),
        "model_name": readable(str(model)),
        "precision": precision,
        "resize": str(resize).lower(),
        "images": stamp,
    }
    extractor = FastExtractor(loaded, precision == "bfloat16")
    size = extractor.write(out, paths, facts, lambda row: pictures.image(places[row], resize))
    print(f"{len(places):,} faces of {size:,} bytes in {printable(str(out))}")


class FastExtractor:
    """Images to int8 templates as fast as the machine allows.

    Args:
        model: in eval mode, on any device.
        bfloat16: let the network compute in it.
        batch: faces a pass; the same on every machine, so that a template doesn't depend on the number of cores.
    """

    def __init__(self, model: Model, bfloat16: bool, batch: int = FACES_A_PASS) -> None:
        from oaml.templates.folded import folded

        self.model, self.bfloat16, self.batch = folded(model), bfloat16, batch
        self.device = model.device

    def __call__(self, images: np.ndarray) -> QuantisedTemplates:
        """uint8 RGB [N,112,112,3] -> N templates, on the CPU; one pass of the network."""
        import torch

        from oaml.templates.quantised import QuantisedTemplates

        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16),
        ):
            faces = self.model.extract(as_input(images, self.device))
            return QuantisedTemplates.of(faces.to("cpu"))

    def all(
        self, images: Sequence[Image], read: Callable[[Image], np.ndarray] = read_image
    ) -> Iterator[QuantisedTemplates]:
        """Templates of many images in their order, some hundreds at a time.

        Args:
            images: whatever `read` takes.
            read: image -> uint8 RGB [112,112,3].

        Raises:
            OamlError: an image can't be read. Up to some hundreds of templates before it are lost.
        """
        import torch

        from oaml.templates.quantised import QuantisedTemplates

        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        groups = (images[i : i + self.batch] for i in range(0, len(images), self.batch))
        passes: list[QuantisedTemplates] = []
        for faces in _pipeline(
            groups, lambda group: np.stack([read(image) for image in group]), self, workers
        ):
            passes.append(faces)
            if len(passes) == PASSES_A_WRITE:
                yield QuantisedTemplates.join(passes)
                passes = []
        if passes:
            yield QuantisedTemplates.join(passes)

    def write(
        self, out: Path, names: list[str], facts: dict[str, str], read: Callable[[int], np.ndarray]
    ) -> int:
        """Write the templates of all faces into a file; one that was begun for the same is gone on with.

        Args:
            out: the file to be.
            names: of the faces.
            facts: what must be the same to go on, see `oaml.templates.file.Layout`.
            read: number of a face -> uint8 RGB [112,112,3].

        Returns:
            bytes a face.

        Raises:
            OamlError: from `read`; the file was begun for something else, or no room for it.
        """
        from oaml.templates.file import Layout, PartialFile

        like = self(np.zeros((1, FACE_SIZE, FACE_SIZE, 3), np.uint8))
        file = PartialFile(out, Layout(like, names, facts))
        try:
            with progress("embedding faces", len(names), file.done) as advance:
                for faces in self.all(range(file.done, len(names)), read):
                    file.write(faces)
                    advance(len(faces))
            file.finish()
        finally:
            file.close()
        return like.bytes_per_face


def _pipeline(
    groups: Iterable[Sequence[Image]],
    read: Callable[[Sequence[Image]], np.ndarray],
    work: Callable[[np.ndarray], QuantisedTemplates],
    workers: int,
) -> Iterator[QuantisedTemplates]:
    """`work(read(group))` of every group in order. Reading runs ahead of work and work ahead of the caller, by a bounded number."""
    waiting: deque[Future[QuantisedTemplates]] = deque()
    with one_thread_each(READERS) as readers, one_thread_each(workers) as pool:
        for group in groups:
            pixels = readers.submit(read, group)
            waiting.append(pool.submit(lambda pixels=pixels: work(pixels.result())))
            if len(waiting) > 2 * workers + READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
