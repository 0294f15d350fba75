"""From a photograph's file to the template of its face, against every look there is and against one plain look; and video.

Photographs of 1400x1000 are made of drawn faces, unoccluded and under drawn occluders, and a folder of real ones may be named.
Processor time is of all threads; it says more than the clock where other work runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.occluders import occlude
from oaml.photographs.detect import Detector
from oaml.photographs.looks import Face, shared_area
from oaml.photographs.subjects import large_enough, load_detector
from oaml.recognition.recognise import Recogniser, load
from oaml.support.files import read_photograph
from oaml.support.folders import list_images

PHOTOGRAPHS = 6
"""Of each kind."""
KINDS = ("unoccluded", "mask", "niqab", "sunglasses")
WIDTH, HEIGHT = 1400, 1000
PLAIN = 640
"""Long side of the one plain look."""
FRAMES = 30
Find = Callable[[np.ndarray], list[Face]]
Place = tuple[float, float, float]
"""Left, top and side of an aligned face."""


def run(data: Path | None = None, detector: Path | None = None) -> dict[str, object]:
    """Seconds a photograph of every way and kind and where they go, the ratios, and frames a second of a video of two faces."""
    finder = load_detector(detector)
    if finder is None:
        raise OamlError(
            "the benchmark 'photograph' needs a detector; `oaml download yunet` gets one, --detector names one"
        )
    recogniser = Recogniser(load(device="cpu").model, finder, "starter")
    ways: dict[str, Find] = {
        "find": finder.find,
        "every look": finder.thorough,
        "one plain look": lambda photograph: _plain(finder, photograph),
    }
    kinds: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            made = [_photograph(Path(folder) / f"{kind}{i}.jpg", i, kind) for i in range(PHOTOGRAPHS)]
            kinds[kind] = _measure(recogniser, ways, [path for path, _ in made], [place for _, place in made])
        if data is not None:
            kinds[str(data)] = _measure(recogniser, ways, list_images(data), None)
    return {"threads": torch.get_num_threads(), "kinds": kinds, "video": _video(recogniser)}


def _plain(detector: Detector, photograph: np.ndarray) -> list[Face]:
    """One look at the photograph as large as detectors are commonly shown them."""
    scale = min(1.0, PLAIN / max(photograph.shape[:2]))
    picture = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    back = photograph.shape[1] / picture.shape[1], photograph.shape[0] / picture.shape[0]
    return [face.scaled(*back) for face in detector.look(picture)]


def _measure(
    recogniser: Recogniser, ways: dict[str, Find], paths: list[Path], places: list[Place] | None
) -> dict[str, object]:
    """All ways in turn on each photograph, so that other work on the machine slows them alike."""
    recogniser.templates([draw_face(0, 0)])  # what is loaded once
    spent = {name: {"read": 0.0, "find": 0.0, "crop": 0.0, "template": 0.0} for name in ways}
    clock, found = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for number, path in enumerate(paths):
        for name, find in ways.items():
            begun, parts = time.perf_counter(), [time.process_time()]
            photograph = read_photograph(path)
            parts.append(time.process_time())
            faces = find(photograph)
            parts.append(time.process_time())
            subjects = large_enough(photograph, faces)[:1]
            crops = [subject.crop for subject in subjects]
            parts.append(time.process_time())
            if crops:
                recogniser.templates(crops)
            parts.append(time.process_time())
            clock[name] += time.perf_counter() - begun
            for part, before, after in zip(spent[name], parts, parts[1:], strict=False):
                spent[name][part] += after - before
            leading = subjects[0].face if subjects else None
            found[name] += leading is not None and (places is None or _is_there(leading, places[number]))
    count = len(paths)
    ms = {name: {part: 1e3 * value / count for part, value in parts.items()} for name, parts in spent.items()}
    total = {name: sum(parts.values()) for name, parts in ms.items()}
    return {
        "photographs": count,
        "processor_ms": total,
        "clock_ms": {name: 1e3 * value / count for name, value in clock.items()},
        "processor_ms_of_parts": ms["find"],
        "times_faster_than_every_look": total["every look"] / total["find"],
        "times_one_plain_look": total["find"] / total["one plain look"],
        "faces_found_and_first": {name: value / count for name, value in found.items()},
    }


def _is_there(face: Face, place: Place) -> bool:
    left, top, side = place
    return (
        shared_area(face.box, np.array([left + 0.22 * side, top + 0.16 * side, 0.56 * side, 0.8 * side]))
        > 0.3
    )


def _photograph(path: Path, number: int, kind: str) -> tuple[Path, Place]:
    """Write a drawn face on a background of soft colours, and say where it is."""
    rng = np.random.default_rng([number])
    face = draw_face(number, 0)
    if kind != "unoccluded":
        face = occlude(face, kind, np.random.default_rng([number, 1]), style="b").image
    scene = _background(rng, WIDTH, HEIGHT)
    side = int(rng.integers(150, 450))
    left, top = int(rng.integers(0, WIDTH - side)), int(rng.integers(0, HEIGHT - side))
    scene[top : top + side, left : left + side] = cv2.resize(
        face, (side, side), interpolation=cv2.INTER_CUBIC
    )
    cv2.imwrite(str(path), scene[..., ::-1])
    return path, (left, top, side)


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """uint8 RGB [H,W,3]."""
    coarse = rng.uniform(40, 210, (12, 16, 3)).astype(np.float32)
    scene = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(scene + rng.normal(0, 6, scene.shape), 0, 255).astype(np.uint8)


def _video(recogniser: Recogniser) -> dict[str, float]:
    """A video of 640x480 in which two drawn faces move, followed from its frames to its tracks."""
    background = _background(np.random.default_rng(0), 640, 480)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "video.avi")
        video = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 15, (640, 480))
        for frame in range(FRAMES):
            scene = background.copy()
            for person, (x, y) in enumerate(((60 + 3 * frame, 120), (420 - 2 * frame, 200 + frame))):
                scene[y : y + 150, x : x + 150] = cv2.resize(draw_face(person, 0), (150, 150))
            video.write(np.ascontiguousarray(scene[..., ::-1]))
        video.release()
        begun, busy = time.perf_counter(), time.process_time()
        tracks = recogniser.tracks(path)
        seconds, worked = time.perf_counter() - begun, time.process_time() - busy
    return {
        "tracks": len(tracks),
        "frames_a_second": FRAMES / seconds,
        "processor_ms_a_frame": 1e3 * worked / FRAMES,
    }
