"""Images a second from a RecordIO file and from a tar shard against the same pictures in a folder per person, on one core."""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from oaml.datasets.drawn import draw_face
from oaml.datasets.people import PeopleFolder
from oaml.datasets.recordio import HEAD, LABELS, MAGIC
from oaml.datasets.records import RecordPictures
from oaml.datasets.shards import ShardPictures

DRAWN = 250
COPIES = 16
SHOTS = 20
ROUNDS = 4


def run() -> dict[str, object]:
    """Images a second of every source, decoded one after the other by one thread, and of their files' bytes alone.

    All hold the same pictures, JPEG files of drawn faces in several copies, and are asked for them at random. Seconds are those
    that the processor worked, so that other work on the machine counts little. The files are in the system's memory: what a disk
    adds is not measured, and it adds most to a folder, where every picture is a file to be found and opened.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        paths = _write_folder(root / "faces")
        _write_records(root / "train.rec", paths)
        folder, records = PeopleFolder(root / "faces"), RecordPictures(root / "train.rec")
        places = records.places
        bytes_of: dict[str, Callable[[int], object]] = {
            "folder": lambda i: folder.paths[i].read_bytes(),
            "records": lambda i: records.file.record(int(places[i])),
        }
        image_of: dict[str, Callable[[int], object]] = {"folder": folder.image, "records": records.image}
        if find_spec("webdataset") is not None:
            _write_shard(root / "faces.tar", paths)
            shard = ShardPictures(root / "faces.tar")
            bytes_of["shard"], image_of["shard"] = shard.content, shard.image
        order = np.random.default_rng(0).permutation(len(paths)).tolist()
        seconds = {
            what: dict.fromkeys(ways, float("inf"))
            for what, ways in (("decoded", image_of), ("bytes", bytes_of))
        }
        for _ in range(ROUNDS):
            for what, ways in (("decoded", image_of), ("bytes", bytes_of)):
                for name, way in ways.items():
                    start = time.process_time()
                    for i in order:
                        way(i)
                    seconds[what][name] = min(seconds[what][name], time.process_time() - start)
        return {
            "images": len(paths),
            "bytes_an_image": sum(path.stat().st_size for path in paths) // len(paths),
            "baseline": "the same pictures in a folder per person",
            "images_per_second": {
                what: {name: len(paths) / value for name, value in by.items()} for what, by in seconds.items()
            },
            "ratio_to_folder": {
                what: {name: by["folder"] / value for name, value in by.items()}
                for what, by in seconds.items()
            },
        }


def _write_folder(root: Path) -> list[Path]:
    """Drawn faces as JPEG, each in several copies, in folders that are called by numbers."""
    files = []
    for face in range(DRAWN):
        pixels = draw_face(face, 0)[..., ::-1]
        files.append(cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes())
    paths = []
    for i in range(DRAWN * COPIES):
        path = root / f"{i // SHOTS}" / f"{i + 1}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[i % DRAWN])
        paths.append(path)
    return paths


def _write_records(path: Path, pictures: list[Path]) -> None:
    """Records without a header, key and label of each picture, as im2rec packs them."""
    with path.open("wb") as file, path.with_suffix(".idx").open("w") as index:
        for picture in pictures:
            data = LABELS.pack(0, float(picture.parent.name), int(picture.stem), 0) + picture.read_bytes()
            assert MAGIC not in data  # it would have to be cut there
            index.write(f"{picture.stem}\t{file.tell()}\n")
            file.write(MAGIC + HEAD.pack(0, len(data))[4:] + data + bytes(-len(data) % 4))


def _write_shard(path: Path, pictures: list[Path]) -> None:
    """Samples NAME.jpg in the folder of their person."""
    with tarfile.open(path, "w") as tar:
        for picture in pictures:
            info = tarfile.TarInfo(f"{picture.parent.name}/{picture.name}")
            info.size = picture.stat().st_size
            tar.addfile(info, io.BytesIO(picture.read_bytes()))
