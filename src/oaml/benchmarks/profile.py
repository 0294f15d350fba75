"""Where the time goes: the operators that take the most of a training step, of scoring and of `oaml embed`'s network.

Profiled on one thread: the profiler does not see other threads, and shares are then those of work and not of waiting. The compiled
loops of `oaml.kernels.native` are no operators of torch: the time between operators is theirs and Python's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from oaml.data import DataConfig
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.support.files import FACE_SIZE
from oaml.template import Templates
from oaml.templates.embed import FACES_A_PASS, FastExtractor
from oaml.train_val import OcclusionFace, TrainConfig

LARGEST = 8  # operators listed
REST = "compiled loops and Python"


def run(images: int = 64, faces: int = 1000) -> dict[str, object]:
    """Milliseconds of a call, and the share of each operator in it.

    Args:
        images: of each of the two streams of the training step, four a person.
        faces: on either side of the scoring.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        return {
            f"training step, {images} + {images} images": top(training_step(images)),
            f"scoring, {faces} x {faces} faces": top(scoring(faces)),
            f"embedding, {FACES_A_PASS} images": top(embedding()),
        }
    finally:
        torch.set_num_threads(before)


def top(call: Callable[[], object]) -> dict[str, float]:
    """The operators that take the largest shares of a call, each without those that it calls."""
    call()  # what is loaded and allocated once
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    taken = time.perf_counter() - start
    seconds = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
    seconds[REST] = max(0.0, taken - sum(seconds.values()))
    largest = sorted(seconds, key=lambda name: -seconds[name])[:LARGEST]
    return {"milliseconds": 1e3 * taken} | {name: seconds[name] / taken for name in largest}


def training_step(images: int) -> Callable[[], object]:
    """A step as `oaml train` takes it, but for its optimiser: augmentation, both streams, all terms, backward."""
    net = NetConfig("mobilefacenet", 128)
    config = TrainConfig(Path(), DataConfig(drawn_people=2), net=net)
    module = OcclusionFace(config, Model(ModelConfig(net)), max(1, images // 4)).train()

    def stream() -> dict[str, torch.Tensor]:
        pixels = torch.randint(0, 256, (images, 3, FACE_SIZE, FACE_SIZE), dtype=torch.uint8)
        mask = (torch.rand(images, 1, FACE_SIZE, FACE_SIZE) < 0.7).float()
        return {"image": pixels, "mask": mask, "label": torch.arange(images) // 4}

    batch = {"recognition": stream(), "occlusion": stream()}

    def step() -> None:
        _, terms = module.terms(batch)
        torch.stack(list(terms.values())).sum().backward()
        module.zero_grad()

    return step


def scoring(faces: int) -> Callable[[], object]:
    """Every face with every other by all scores."""
    model = Model(ModelConfig(NetConfig("mobilefacenet", 128))).eval()

    def random_faces() -> Templates:
        local = torch.nn.functional.normalize(torch.randn(faces, 128, 7, 7), dim=1)
        embedding = torch.nn.functional.normalize(torch.randn(faces, 128), dim=1)
        visibility, cells = torch.rand(faces, 1, 7, 7), torch.randn(faces, 49, 128)
        return Templates(embedding, torch.ones(faces), visibility, local, cells)

    probes, gallery = random_faces(), random_faces()
    return lambda: model.compare_all(probes, gallery)


def embedding() -> Callable[[], object]:
    """A batch of `oaml embed`, from pixels to int8 templates."""
    net = NetConfig("mobilefacenet", 128, occlusion_stage=3, occlusion_context=True, branch="stage")
    extractor = FastExtractor(Model(ModelConfig(net)).eval(), bfloat16=False)
    pixels = np.random.default_rng(0).integers(0, 256, (FACES_A_PASS, FACE_SIZE, FACE_SIZE, 3), np.uint8)
    return lambda: extractor(pixels)
