"""Several images of a person in a gallery: one pooled template against the largest or the mean score of the images one by one.

`python studies/pooling.py MODEL --data ../shared/data`

The report people of LFW with three images or more are asked about, those with two are only in the gallery. Everybody is enrolled
with their first two images, the second unoccluded or under an occluder; all others are probes, unoccluded and under occluders of
style b.
"""

from __future__ import annotations

import numpy as np
import torch
from report_people import asked_for

from oaml.adaptation.held_out import UNOCCLUDED
from oaml.support.metrics import tar_at_far
from oaml.template import Templates, pooled

KINDS = ["niqab", "mask", "sunglasses"]
FARS = (1e-2, 1e-3)


@torch.inference_mode()
def main() -> None:
    model, held = asked_for(__doc__, KINDS, everybody=True)
    people = held.people
    faces = {kind: held.templates(model, kind) for kind in (UNOCCLUDED, *KINDS)}

    images = [np.flatnonzero(people.labels == person) for person in np.unique(people.labels)]
    enrolled = sorted((rows for rows in images if len(rows) > 1), key=len, reverse=True)
    probes = torch.from_numpy(np.concatenate([rows[2:] for rows in enrolled]))
    same = (torch.from_numpy(people.labels)[probes, None] == torch.from_numpy(
        people.labels[[rows[0] for rows in enrolled]])).numpy()  # fmt: skip
    print(f"{len(probes)} probes of each kind, {len(enrolled)} people enrolled")
    print(f"| enrolled | score | {' | '.join(faces)} | all, one threshold | FAR at the model's 0.001 |")
    print("| --- " * (len(faces) + 4) + "|")
    for second in faces:
        pairs = [
            Templates.join([faces[UNOCCLUDED][rows[0] : rows[0] + 1], faces[second][rows[1] : rows[1] + 1]])
            for rows in enrolled
        ]
        apart, together = Templates.join(pairs), Templates.join([pooled(pair) for pair in pairs])
        found: dict[str, list[torch.Tensor]] = {}
        for kind in faces:
            asked = faces[kind][probes]
            one_by_one = model.compare_all(asked, apart)["fused"].view(len(probes), -1, 2)
            ways = {
                "first image alone": one_by_one[..., 0],
                "largest": one_by_one.amax(2),
                "mean": one_by_one.mean(2),
                "pooled": model.compare_all(asked, together)["fused"]
                - model.config.pooling / 2,  # of two images
            }
            for way, scores in ways.items():
                found.setdefault(way, []).append(scores)
        for way, parts in found.items():
            cells = [_tars(scores, same) for scores in parts]
            cells.append(_tars(torch.cat(parts), np.tile(same, (len(parts), 1))))
            impostors = torch.cat(parts).numpy()[~np.tile(same, (len(parts), 1))]
            far = (impostors >= model.config.thresholds["0.001"]).mean()
            print(f"| {UNOCCLUDED} + {second} | {way} | {' | '.join(cells)} | {far:.1e} |", flush=True)


def _tars(scores: torch.Tensor, same: np.ndarray) -> str:
    values = scores.double().numpy().ravel()
    return " / ".join(f"{tar_at_far(values, same.ravel(), far).tar:.3f}" for far in FARS)


if __name__ == "__main__":
    main()
