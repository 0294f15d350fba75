"""How good a picture is, before it is compared: `python studies/quality.py MODEL --data ../shared/data`.

Pictures of LFW's people with two photographs or more, as they are, occluded, blurred, small and dark, each compared with another
photograph of the same person as it is. The weights of `oaml.recognition.quality` are fitted on the people of the calibration split,
so that their logistic function is the chance of acceptance at the model's threshold of FAR 1e-3. The tables are about the people
kept for a report, occluded in another style: of all comparisons those are discarded whose picture is worst by one measure or
another, and the share of wrong rejections among the rest is stated (Grother and Tabassi, PAMI 2007).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from people import counts
from report_people import asked

from oaml.adaptation.thresholds import typical
from oaml.datasets.people import PeopleFolder, Split, split_name
from oaml.inference import extract
from oaml.model import Model
from oaml.occluders import KINDS, Occluder, load_mask_pictures
from oaml.photographs.align import STANDARD_LANDMARKS
from oaml.photographs.looks import Face
from oaml.recognition.quality import BASE, OF_NETWORK, PARTS, lacks
from oaml.support.files import FACE_SIZE

PEOPLE = 52
"""Of either split, with two photographs each."""
DISCARDED = (0.0, 0.1, 0.2, 0.3, 0.5)
DECAY = 1e-3
"""Weight of the squares of the weights."""


class Compared(NamedTuple):
    """Comparisons of a picture with another photograph, [N] each."""

    kind: np.ndarray
    lacking: np.ndarray
    """[N,parts], in the order of `PARTS`."""
    norm: np.ndarray
    accepted: np.ndarray


def main() -> None:
    model, data = asked(__doc__)
    fitting = compared(model, data, "calibrate", {})
    weight, base = fitted(fitting)
    print(f"fitted: {base:.2f}; {', '.join(f'{n} {w:.2f}' for n, w in zip(PARTS, weight, strict=True))}")
    report = compared(model, data, "report", model.config.typical)
    shipped = BASE - report.lacking @ np.array([part.weight for part in PARTS.values()])
    own = len(PARTS) - len(OF_NETWORK)
    measures = {
        "quality as shipped": shipped,
        "quality as fitted": base - report.lacking @ weight,
        "without the network's two parts": -report.lacking[:, :own] @ weight[:own],
        "length of the embedding": report.norm,
        "share that shows": -report.lacking[:, 0],
    }
    print(f"| discarded first | {' | '.join(f'{share:.0%}' for share in DISCARDED)} |")
    print("| --- " * (len(DISCARDED) + 1) + "|")
    for name, values in measures.items():
        ordered = ~report.accepted[np.argsort(values, kind="stable")]
        cells = [f"{ordered[int(share * len(ordered)) :].mean():.3f}" for share in DISCARDED]
        print(f"| {name} | {' | '.join(cells)} |")
    print("| pictures | comparisons | wrongly rejected | said by the quality |\n| --- | --- | --- | --- |")
    for kind in dict.fromkeys(report.kind.tolist()):
        rows = report.kind == kind
        said = 1 - (1 / (1 + np.exp(-shipped[rows]))).mean()
        print(f"| {kind} | {rows.sum()} | {1 - report.accepted[rows].mean():.3f} | {said:.3f} |")


def compared(model: Model, data: Path, split: Split, reference: dict[str, float]) -> Compared:
    """Every picture of some people with another photograph of its person; `reference` is `typical` of these where it is empty."""
    people = PeopleFolder(data / "lfw", lambda name: split_name(name) == split and counts(name))
    several = np.flatnonzero(np.bincount(people.labels) > 1)[:PEOPLE]
    rows = [row for person in several for row in np.flatnonzero(people.labels == person)[:2].tolist()]
    judged = split == "report"
    pictures = load_mask_pictures(data / "mask_templates") if judged else []
    occluder = Occluder(0, "b" if judged else "a", pictures, retexture_share=0.0 if judged else 0.5)
    plain = extract(model, [people.image(row) for row in rows], len(rows))
    reference = reference or typical(plain)
    threshold = model.config.thresholds["0.001"]
    found: list[tuple[str, list[float], float, bool]] = []
    for number, row in enumerate(rows):
        changed = list(changes(people.image(row), people.names[row], number, occluder))
        faces = extract(model, [crop for _, crop, _ in changed], len(changed))
        other = plain[number ^ 1 : (number ^ 1) + 1]  # the person's other photograph
        scores = model.compare_all(faces, other)["fused"][:, 0].tolist()
        for i, (kind, crop, scale) in enumerate(changed):
            face = Face(np.zeros(4), STANDARD_LANDMARKS * scale, 1.0)
            missing = lacks(crop, faces[i : i + 1], face, reference)
            found.append((kind, list(missing.values()), float(faces.norm[i]), scores[i] >= threshold))
    return Compared(*(np.array(column) for column in zip(*found, strict=True)))


def changes(
    face: np.ndarray, name: str, number: int, occluder: Occluder
) -> Iterator[tuple[str, np.ndarray, float]]:
    """A face as it is and spoiled: what was done, the crop, and the scale at which it was photographed."""
    rng = np.random.default_rng([1, number])
    yield "as they are", face, 1.0
    for low, high in ((0.8, 1.5), (1.5, 2.6)):
        yield "blurred", cv2.GaussianBlur(face, (0, 0), rng.uniform(low, high)), 1.0
    for low, high in ((22, 36), (36, 60)):
        yield "small", *shrunk(face, int(rng.integers(low, high)))
    for low, high in ((0.12, 0.25), (0.25, 0.5)):
        yield "dark", np.rint(face * rng.uniform(low, high)).astype(np.uint8), 1.0
    occluded = [occluder(face, kind, name).image for kind in KINDS]
    for kind, crop in zip(KINDS, occluded, strict=True):
        yield kind, crop, 1.0
    a, b, c = (occluded[(number + turn) % len(KINDS)] for turn in range(3))
    yield "occluded, blurred", cv2.GaussianBlur(a, (0, 0), rng.uniform(0.8, 2.2)), 1.0
    yield "occluded, dark", np.rint(b * rng.uniform(0.15, 0.5)).astype(np.uint8), 1.0
    yield "occluded, small", *shrunk(c, int(rng.integers(28, 56)))


def shrunk(face: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """A face as if its photograph had shown it so many pixels large, and the scale."""
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (FACE_SIZE, FACE_SIZE)), np.uint8), side / FACE_SIZE


def fitted(found: Compared) -> tuple[np.ndarray, float]:
    """Weights of the parts, at least 0, and the logit of a picture that lacks nothing: logistic regression."""
    lacking, accepted = torch.from_numpy(found.lacking), torch.from_numpy(found.accepted).double()
    weight = torch.zeros(lacking.shape[1], dtype=torch.float64, requires_grad=True)
    base = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([weight, base], lr=0.05)
    for _ in range(1500):
        loss = F.binary_cross_entropy_with_logits(base - lacking @ weight, accepted)
        loss = loss + DECAY * weight.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            weight.clamp_min_(0)
    return weight.detach().numpy(), base.item()


if __name__ == "__main__":
    main()
