"""Images a second of `oaml embed` against a plain loop: read one image, `Model.extract` of it, the next one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import torch

from oaml.adaptation.cache import computes_in_bfloat16
from oaml.datasets.drawn import draw_face
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.support.files import read_image
from oaml.template import Templates
from oaml.templates.embed import FACES_A_PASS, FastExtractor
from oaml.templates.quantised import QuantisedTemplates

IMAGES = 128
ROUNDS = 4


def run() -> dict[str, object]:
    """Images a second of every way, ratios to the plain loop, and how close the embeddings are.

    The network is a MobileFaceNet with a last stage for matching (`branch: stage`), as `oaml adapt` makes it. Its weights are
    random, which doesn't change how long it takes.
    """
    torch.manual_seed(0)
    net = NetConfig("mobilefacenet", 128, occlusion_stage=3, occlusion_context=True, branch="stage")
    model = Model(ModelConfig(net)).eval()
    bfloat16 = computes_in_bfloat16(model.device)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:03d}.jpg" for i in range(IMAGES)]
        for i, path in enumerate(paths):
            cv2.imwrite(str(path), draw_face(i // 4, i % 4)[..., ::-1])
        ways: dict[str, Callable[[], Templates]] = {
            "plain loop": partial(_plain, model, paths, 1),
            f"batches of {FACES_A_PASS}": partial(_plain, model, paths, FACES_A_PASS),
            "float32": partial(_fast, FastExtractor(model, False), paths),
        }
        if bfloat16:
            ways["bfloat16"] = partial(_fast, FastExtractor(model, True), paths)
        seconds = dict.fromkeys(ways, float("inf"))
        templates: dict[str, Templates] = {}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                start = time.perf_counter()
                templates[name] = way()
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    plain = templates["plain loop"].embedding
    return {
        "images": IMAGES,
        "threads": torch.get_num_threads(),
        "default": "float32",
        "images_per_second": {name: IMAGES / value for name, value in seconds.items()},
        "speedup_over_plain": {name: seconds["plain loop"] / value for name, value in seconds.items()},
        "least_cosine_to_plain": {
            name: float((faces.embedding * plain).sum(1).min()) for name, faces in templates.items()
        },
    }


def _plain(model: Model, paths: list[Path], batch: int) -> Templates:
    parts = []
    for start in range(0, len(paths), batch):
        images = [torch.from_numpy(read_image(path)) for path in paths[start : start + batch]]
        parts.append(model.extract(torch.stack(images).permute(0, 3, 1, 2).float() / 255))
    return Templates.join(parts)


def _fast(extractor: FastExtractor, paths: list[Path]) -> Templates:
    return QuantisedTemplates.join(list(extractor.all(paths))).dequantised()
