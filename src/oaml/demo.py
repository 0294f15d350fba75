"""`oaml demo`: train what follows the starter's first three stages on drawn people, evaluate it on others of them, unoccluded and
occluded, and draw what it saw.

Then verify, enrol and search with the model that comes with the package.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from oaml.data import DataConfig
from oaml.datasets.drawn import DrawnPeople
from oaml.errors import OamlError, command, missing_package
from oaml.head import HeadConfig
from oaml.inference import STARTER
from oaml.losses import LossWeights
from oaml.main import main
from oaml.support.files import write_file
from oaml.train_val import OptimiserConfig, TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

PEOPLE, SHOTS = 300, 10  # to train on
UNSEEN, UNSEEN_SHOTS = 60, 4  # to evaluate on; numbered after the former
STEPS = 160
ENROLLED = ("Ann", "Bela", "Cleo", "Dan", "Emre")  # numbered after these
HELD_OUT = (
    150  # to fit thresholds on, an image each: 11,175 pairs, enough for FAR 1e-3; numbered after all others
)


def demo_config(out: Path, steps: int = STEPS, seed: int = 0) -> TrainConfig:
    """The training of the demo: two streams of drawn people, from the starter, whose first three stages stay as they are."""
    return TrainConfig(
        out=out,
        data=DataConfig(
            drawn_people=PEOPLE,
            drawn_shots=SHOTS,
            use="all",
            identities=16,
            images=3,
            occlusion_batch=12,
            workers=1,
        ),
        backbone=STARTER,
        freeze_front=True,
        head=HeadConfig(s=24.0, m=0.2),
        optimiser=OptimiserConfig(kind="adamw", lr=2e-3, weight_decay=0.02, warmup=10, schedule="cosine"),
        weights=LossWeights(occlusion=10.0),  # the map of drawn skin is learned in minutes
        augment=False,  # the drawn images of a person vary enough
        steps=steps,
        seed=seed,
        validate_every=0,
        picture_every=max(1, steps // 2),
        gradient_every=50,
        checkpoint_every=100,
        licence="research use only, as the starter that it began with; else trained on drawn people alone",
    )


def add_thresholds(folder: Path, people: int = HELD_OUT) -> None:
    """Fit thresholds on unoccluded drawn people who took no part, so that `oaml verify` can decide by the model, and store them."""
    import torch

    from oaml.adaptation.calibration import fit_thresholds
    from oaml.datasets.drawn import draw_face
    from oaml.inference import extract
    from oaml.model import Model

    model = Model.load(folder)
    first = PEOPLE + UNSEEN + len(ENROLLED)
    faces = extract(model, (draw_face(first + number, 0) for number in range(people)), people)
    above = torch.ones(people, people, dtype=torch.bool).triu(1)
    impostors = model.compare_all(faces, faces)["fused"][above]
    model.config.thresholds = fit_thresholds(impostors.numpy())
    model.config.training["thresholds_fitted_on"] = (
        f"{len(impostors):,} impostor pairs of unoccluded faces of {people} drawn people held out"
    )
    model.save(folder)


def write_unseen(folder: Path, people: int = UNSEEN, shots: int = UNSEEN_SHOTS) -> Path:
    """Write drawn people that the demo does not train on, and all pairs of a shot 0 and another shot -> pairs.csv."""
    from PIL import Image

    drawn = DrawnPeople(people, shots, first_person=PEOPLE)
    names = [f"{PEOPLE + i // shots:04d}/{i % shots}.png" for i in range(len(drawn))]
    for i, name in enumerate(names):
        write_file(folder / name, Image.fromarray(drawn[i][0]).save)
    rows = [
        (names[a * shots], names[b * shots + shot], int(a == b))
        for a in range(people)
        for b in range(people)
        for shot in range(1, shots)
    ]

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path_a", "path_b", "same"), *rows])

    return write_file(folder / "pairs.csv", write)


def write_people(folder: Path) -> Path:
    """Write two shots of five drawn people each below `folder`/people, and a third one of Cleo, with a mask -> the path of that."""
    import numpy as np
    from PIL import Image

    from oaml.datasets.drawn import draw_face
    from oaml.occluders import occlude

    for number, name in enumerate(ENROLLED):
        for shot in range(2):
            face = Image.fromarray(draw_face(PEOPLE + UNSEEN + number, shot))
            write_file(folder / "people" / name / f"{shot}.png", face.save)
    occluded = occlude(draw_face(PEOPLE + UNSEEN + 2, 2), "mask", np.random.default_rng(0))
    return write_file(folder / "visitor.png", Image.fromarray(occluded.image).save)


def meet(out: Path, console: Console) -> None:
    """Verify, enrol and search with the starter model, and print the commands that do it."""
    visitor = write_people(out)
    calls = [
        ["verify", f"{out}/people/{ENROLLED[2]}/0.png", str(visitor), "--draw", f"{out}/verify.png"],
        ["enroll", f"{out}/people", "--gallery", f"{out}/gallery"],
        ["search", str(visitor), "--gallery", f"{out}/gallery", "--draw", f"{out}/search.png"],
    ]
    if find_spec("lancedb") is None:
        console.print(f"a gallery {missing_package('lancedb')}; only verify is shown", markup=False)
        calls = calls[:1]
    for call in calls:
        console.print(f"\n$ {command(*call)}", markup=False, highlight=False, soft_wrap=True)
        if main(call) != 0:
            raise OamlError(f"{out}: oaml {call[0]} failed, as it says above")


def demo(*, out: Path = Path("out/demo"), steps: int = STEPS, seed: int = 0) -> None:
    """Train, evaluate and draw on drawn people (a test pattern: its figures say nothing about real faces), then verify, enrol and
    search five more of them with the model that comes with the package.

    Args:
        out: a new folder for the model, the report and the pictures.
        steps: training steps.
        seed: another seed, another run.
    """
    from rich.console import Console

    from oaml.evaluation.report import evaluate
    from oaml.train_val import train

    console = Console()
    if out.exists() and any(out.iterdir()):
        raise OamlError(f"{out}: is not empty; remove it or choose another --out")
    console.rule("1/4  training a small network on drawn people")
    model = train(demo_config(out / "training", steps, seed))
    add_thresholds(model)
    console.rule("2/4  drawing people it has not seen")
    pairs = write_unseen(out / "unseen")
    console.rule("3/4  evaluating it on them, unoccluded and occluded")
    evaluate(
        str(model),
        images=out / "unseen",
        pairs=pairs,
        out=out / "report",
        occlude="niqab,mask,sunglasses,patch",
        bootstrap=100,
    )
    console.rule("4/4  a visitor with a mask: verify, enrol and search with the starter model")
    meet(out, console)
    console.print(
        "\nDrawn people are a test pattern: compare the scores with each other, not with real faces."
    )
    report, pictures = out / "report", out / "training" / "pictures"
    console.print(
        f"model     {model}\n"
        f"report    {report / 'report.html'} (all tables and pictures in one page)\n"
        f"pictures  {report} (robustness.png, roc.png, scores.png, pairs.png, maps.png), {pictures},\n"
        f"          {out} (verify.png and search.png: what was compared, and why)",
        markup=False,
        highlight=False,
        soft_wrap=True,  # paths stay whole
    )
