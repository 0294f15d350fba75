"""The starter model of the package, from published weights and faces: `python studies/starter/make.py --data ../shared/data`.

Three steps, each resumed where it stopped: a student learns from the teacher (`distil.py`), `oaml adapt` makes it see occluders,
and the model is measured as it will be shipped, in half precision, on people that no step saw. OUT/shipped then holds the model
folder with its card; `--ship` also puts it into the package. `--recalibrate` trains nothing: it fits corrections and thresholds
of the model in the package anew and leaves what makes templates as it is, so that galleries stay of use.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from datetime import date
from pathlib import Path

import numpy as np
import torch
from distil import distil
from safetensors.torch import load_file, save_file

from oaml.adaptation.adapt import adapt
from oaml.adaptation.held_out import ALL_TOGETHER, OCCLUDER_GROUPS, UNOCCLUDED, HeldOut, scores, tars
from oaml.adaptation.thresholds import calibrate
from oaml.datasets.people import PeopleFolder, hashed_names, split_name
from oaml.inference import STARTER
from oaml.main import keep_freed_memory
from oaml.model import Model, ModelConfig
from oaml.occluders import KINDS, load_mask_pictures
from oaml.support.files import write_file, write_folder
from oaml.support.metrics import kfold_accuracy

sys.path.append(str(Path(__file__).parents[1]))
from mfr2 import real_masks, stored_table
from mfr2 import scored as scored_masks
from people import reported

TEACHER = "mobilefacenet_casia_bubbliiiing.pth"
SHOWN = ["niqab", "mask", "sunglasses", "patch"]
LICENCE = "research use only: the weights are Apache-2.0, the teacher's (MIT) were trained on CASIA-WebFace, a research set"
CARD = """---
license: other
library_name: oaml
tags: [face-recognition, occlusion, research-only]
---
# OAML starter

A small model to begin with: it is in the package, so that the first answer needs no download. For real work adapt a published
network that was trained on millions of faces (`oaml download`, `oaml adapt`; see the README): this one is weaker, on unoccluded
faces above all.

**What it is.** A MobileFaceNet of {parameters:,} parameters with an occlusion head, QAConv, a joint embedding (the
visibility-masked embedding of what both faces show) and thresholds, for aligned RGB faces of 112x112. {size:.1f} MB in half
precision.

**How it was made.** By `python studies/starter/make.py`, seed 0: {steps}. The
student started from random numbers and learned the maps and the embedding of one teacher, for occluded faces those of the same
face without its occluder, on {people}. `oaml adapt` then trained the rest on the same people,
occluders {occluders}.

**Thresholds** ({thresholds}) were fitted by
`python studies/starter/make.py --recalibrate`, on {fitted}.
`studies/README.md` (impostors.py) has what they let through where little is seen of both faces.

| from | what | licence |
| --- | --- | --- |
| teacher | MobileFaceNet of github.com/bubbliiiing/arcface-pytorch, trained on CASIA-WebFace | MIT; CASIA-WebFace is for research |
| faces | part of Labeled Faces in the Wild | for research |
| result | these weights | research use |

**Meant for** trying the software, teaching and tests. **Not meant for** deciding anything about people. The faces are those of
public figures, mostly men, mostly from Europe and America, of the years 2002 to 2004: expect more errors for everybody else. No
figures by age, sex or origin have been measured.

## Figures

On {report:,} people of LFW that no step saw ({date}); one unoccluded gallery face each against {probes} probes, drawn occluders in
a style and with mask pictures that no training saw. The model as shipped, mirrored faces averaged, the cosine too. Accuracy of
unoccluded pairs, {probes} genuine and {probes} impostor ones, ten folds: **{accuracy:.3f}** (teacher {teacher:.3f}).

TAR at FAR 1e-2 / 1e-3:

{table}

MFR2, real masks, TAR at FAR 1e-2:

{mfr2}

What the thresholds of `config.json` accept of these pairs by the fused score; in brackets 95 % by person, of no false accepts up
to 3 divided by the pairs:

{stored}

Mean error of the visibility map: {errors}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/starter"))
    parser.add_argument("--alone", type=int, default=500, help="steps in which blocks learn alone")
    parser.add_argument("--together", type=int, default=800, help="steps in which they learn together")
    parser.add_argument("--adapt_steps", type=int, default=700)
    parser.add_argument(
        "--recalibrate", action="store_true", help="the model in the package, with new thresholds"
    )
    parser.add_argument("--ship", action="store_true", help="put the model into the package")
    given = parser.parse_args()
    keep_freed_memory()
    teacher, faces, out = given.data / "weights" / TEACHER, given.data / "lfw", given.out
    out.mkdir(parents=True, exist_ok=True)

    if given.recalibrate:
        if not (out / "adapted").exists():
            recalibrate(faces, out / "adapted")
    else:
        make(teacher, faces, out, given)
    steps = f"{given.alone} + {given.together} steps of 64 faces and {given.adapt_steps} + {given.adapt_steps} of `oaml adapt`"
    shipped = ship(out / "adapted", out / "shipped")
    measured = measure(shipped, Model.from_published(teacher), given.data)
    card = CARD.format(
        parameters=sum(p.numel() for p in shipped.parameters()),
        size=(out / "shipped" / "model.safetensors").stat().st_size / 1e6,
        steps=steps,
        people=shipped.config.training["people"],
        occluders=shipped.config.training["covers"],
        fitted=shipped.config.training["thresholds_fitted_on"],
        thresholds=", ".join(f"{value:.2f} at {far}" for far, value in shipped.config.thresholds.items()),
        date=date.today(),
        **measured,
    )
    write_file(out / "shipped" / "README.md", lambda path: path.write_text(card, encoding="utf-8"))
    print(card)
    if given.ship:
        write_folder(STARTER, lambda folder: shutil.copytree(out / "shipped", folder, dirs_exist_ok=True))


def make(teacher: Path, faces: Path, out: Path, given: argparse.Namespace) -> None:
    """Student and adapted model, OUT/student and OUT/adapted, where they aren't there yet."""
    student = distil(teacher, faces, out, given.alone, given.together)
    model = Model(ModelConfig(net=student.config, preprocessing=student.preprocessing))
    model.net.backbone.load_state_dict(student.backbone.state_dict())
    model.eval().save(out / "student")
    if not (out / "adapted").exists():
        adapt(
            backbone=out / "student", people=faces, out=out / "adapted", use="train", licence=LICENCE,
            occlusion_steps=given.adapt_steps, steps=given.adapt_steps,
        )  # fmt: skip


def recalibrate(faces: Path, out: Path) -> None:
    """The model in the package with corrections and thresholds fitted anew, as a model folder."""
    model = Model.load(STARTER)
    held_out = PeopleFolder(faces, lambda name: split_name(name) == "calibrate")
    calibrate(model, HeldOut(model, held_out, KINDS, 0, "a", everybody=True, groups=OCCLUDER_GROUPS))
    trained = PeopleFolder(faces, lambda name: split_name(name) == "train")
    model.config.training.update(use="train", people_hashed=hashed_names([*trained.people, *held_out.people]))
    model.save(out)


def ship(adapted: Path, out: Path) -> Model:
    """The model as it is shipped: matrices in half precision, no paths of the machine that made it. Reads it back."""
    model = Model.load(adapted)
    training = model.config.training
    training["backbone"] = f"student of {TEACHER}"
    training["people"] = training["people"].rpartition(" of ")[0] + " of LFW"
    training["adapted"] = training["adapted"].replace(
        "last stage, heads and matchers", "occlusion head, last stage, matchers"
    )
    model.save(out)
    weights = load_file(out / "model.safetensors")
    halved = {name: x.half() if x.is_floating_point() and x.dim() > 1 else x for name, x in weights.items()}
    write_file(out / "model.safetensors", lambda path: save_file(halved, path))
    return Model.load(out)


def measure(model: Model, teacher: Model, data: Path) -> dict[str, object]:
    """Everything that the card states, on the people kept for a report."""
    report = PeopleFolder(data / "lfw", reported)
    pictures = load_mask_pictures(data / "mask_templates")
    faces = HeldOut(model, report, SHOWN, 0, "b", pictures)
    scored, same, errors = scores(model, faces)
    table = tars(scored, same)
    columns = [UNOCCLUDED, *SHOWN, ALL_TOGETHER]
    lines = ["| score | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name in ("cosine", "qaconv_visibility", "joint", "fused"):
        lines.append(
            f"| {name} | "
            + " | ".join(" / ".join(f"{v:.3f}" for v in table[c][name].values()) for c in columns)
            + " |"
        )
    teacher.config.flip = True
    taught = HeldOut(teacher, report, [], 0, "b")
    return {
        "report": len(report.people),
        "probes": len(faces.probes),
        "accuracy": accuracy(faces.templates(model, UNOCCLUDED).embedding, faces),
        "teacher": accuracy(taught.templates(teacher, UNOCCLUDED).embedding, taught),
        "table": "\n".join(lines),
        "mfr2": real_masks_table(model, data / "mfr2"),
        "stored": stored_table(model, {"as published": scored_masks(model, data / "mfr2")}),
        "errors": ", ".join(f"{name} {error:.3f}" for name, error in errors.items()),
    }


def accuracy(embedding: torch.Tensor, faces: HeldOut) -> float:
    """Of the plain cosine on unoccluded pairs: every probe with its own gallery face and with that of another person."""
    rng = np.random.default_rng(0)
    gallery, probes = faces.gallery.numpy(), faces.probes.numpy()
    own = faces.person.numpy()[probes]
    other = (own + rng.integers(1, len(gallery), len(own))) % len(gallery)
    order = rng.permutation(2 * len(own))
    a = embedding[np.concatenate([probes, probes])[order]].double()
    b = embedding[gallery[np.concatenate([own, other])[order]]].double()
    same = (np.arange(2 * len(own)) < len(own))[order]
    return float(kfold_accuracy((a - b).square().sum(1).numpy(), same).accuracy.mean())


def real_masks_table(model: Model, folder: Path) -> str:
    """TAR at FAR 1e-2 on MFR2 as a table."""
    found = real_masks(model, folder)
    classes = ["all pairs" if name == "all" else name for name in found["fused"]]
    lines = ["| score | " + " | ".join(classes) + " |", "| --- " * (len(classes) + 1) + "|"]
    for name in ("cosine", "joint", "fused"):
        lines.append(f"| {name} | " + " | ".join(f"{tar:.3f}" for tar in found[name].values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
