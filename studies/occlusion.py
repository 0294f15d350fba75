"""What the gain on occluded faces comes from: each part taken away, with its controls.

`python studies/occlusion.py --data ../shared/data --out runs/occlusion [--steps 300] [--seeds 0] [--arms frozen,stage,...]`

One cache of the training people's features serves all arms (`oaml adapt` makes the same one). An arm trains what it names for
`--steps` steps and is judged on the report people (never trained on, nor used to fit anything) under occluders of style b and mask
pictures that no training saw, one unoccluded gallery face a person; and on MFR2 (real masks). Results go to OUT/results.json after
every arm, and an arm that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mfr2 import real_masks
from people import reported

from oaml.adaptation.adapt import Schedule, predict_visibility, start, train_matchers, train_occlusion_head
from oaml.adaptation.cache import CachePlan, FeatureCache
from oaml.adaptation.held_out import ALL_TOGETHER, UNOCCLUDED, HeldOut, scores, tars
from oaml.datasets.people import PeopleFolder, split_name
from oaml.main import keep_freed_memory
from oaml.model import Model
from oaml.occluders import KINDS, load_mask_pictures
from oaml.qaconv import METHODS
from oaml.support.files import write_file
from oaml.template import Templates
from oaml.visibility import CELLS, mask_to_cells

KINDS_SHOWN = ["niqab", "mask", "sunglasses", "patch"]
ARMS = ("stage", "ones", "output", "none", "scaling", "fine", "without_sunglasses")
Results = dict[str, dict[str, dict[str, float]]]


def train_arm(
    arm: str, weights: Path, cache: FeatureCache, head: dict, steps: int, seed: int
) -> tuple[Model, str]:
    """The model of one arm, and which visibility it is judged with: predicted, or ones."""
    model = start(weights, last_stage=arm != "output", flip=True)
    if arm in METHODS or arm == "fine":
        model.config.qaconv.method = arm if arm in METHODS else "normalized"  # type: ignore[assignment]
        model.config.net.stage = 3 if arm == "fine" else 4
        again = Model(model.config)
        again.load_state_dict(
            {k: v for k, v in model.state_dict().items() if not k.startswith("matcher.")}, strict=False
        )
        model = again.eval()
    model.net.occlusion_head.load_state_dict(head)
    visibility = predict_visibility(model, cache)
    if arm == "ones":  # the same training on the same faces, without being told where they are occluded
        visibility[:] = 255
    train_matchers(model, cache, visibility, Schedule(steps, 96, 1e-3), seed)
    return model, "ones" if arm == "ones" else "predicted"


class Told(Model):
    """A model that is told the visibility instead of predicting it: ones, for the control."""

    @torch.inference_mode()
    def templates(self, stage3: torch.Tensor) -> Templates:
        """As `Model.templates`, every cell visible."""
        ones = stage3.new_ones(len(stage3), 1, 14, 14)
        embedding, norm = self.net.backbone.forward_head(self.net.backbone.forward_stage4(stage3))
        stage4 = self.net.matched(stage3, ones)
        return Templates(
            embedding, norm[:, 0], F.avg_pool2d(ones, 2), self.matcher.prepare(stage4),
            self.net.output.cells(stage4),
        )  # fmt: skip


def judge(model: Model, faces: HeldOut, mfr2: Path) -> Results:
    """TAR of every score and condition, and of MFR2 by pair class."""
    scored, same, errors = scores(model, faces)
    table = tars(scored, same)
    for condition, error in errors.items():
        table[condition]["map error"] = {"mean": error}
    table["MFR2"] = real_masks(model, mfr2)
    return table


def baselines(model: Model, faces: HeldOut) -> Results:
    """What needs no training: upper half of the face, own V, true V, all with the untrained output layer."""
    unoccluded = faces.templates(model, UNOCCLUDED)
    gallery = unoccluded[faces.gallery]
    same = (faces.person[faces.probes, None] == faces.person[faces.gallery]).numpy()
    upper = torch.zeros(CELLS)
    upper[: CELLS * 4 // 7] = 1
    scored: dict[str, dict[str, np.ndarray]] = {}
    for condition in (UNOCCLUDED, *faces.kinds):
        probes = unoccluded[faces.probes] if condition == UNOCCLUDED else faces.templates(model, condition)
        own_p = (probes.cell_embeddings * probes.visibility.flatten(1)[..., None]).sum(1)
        own_g = (gallery.cell_embeddings * gallery.visibility.flatten(1)[..., None]).sum(1)
        half = [F.normalize((t.cell_embeddings * upper[:, None]).sum(1), dim=1) for t in (probes, gallery)]
        scored[condition] = {
            "cosine of the upper half": (half[0] @ half[1].T).numpy(),
            "own V": (F.normalize(own_p, dim=1) @ F.normalize(own_g, dim=1).T).numpy(),
            "joint, predicted V": model.joint.match(
                probes.cell_embeddings, gallery.cell_embeddings, probes.visibility, gallery.visibility
            ).cosine.numpy(),
        }
        if condition != UNOCCLUDED:
            true = mask_to_cells(torch.from_numpy(faces.true[condition])[:, None], (7, 7))
            exact = replace(probes, visibility=true)
            scored[condition]["joint, true V"] = model.joint.match(
                exact.cell_embeddings,
                gallery.cell_embeddings,
                exact.visibility,
                torch.ones_like(gallery.visibility),
            ).cosine.numpy()
        else:
            scored[condition]["joint, true V"] = (probes.embedding @ gallery.embedding.T).numpy()
    return tars(scored, same)


def markdown(results: dict[str, Results]) -> str:
    """All results as one table: TAR at FAR 1e-2 / 1e-3."""
    columns = [UNOCCLUDED, *KINDS_SHOWN, ALL_TOGETHER]
    lines = ["| arm | score | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 2) + "|"]
    for arm, table in results.items():
        for score in table[UNOCCLUDED]:
            if score == "map error":
                continue
            cells = [
                " / ".join(f"{v:.3f}" for v in table[c][score].values()) if c in table else ""
                for c in columns
            ]
            lines.append(f"| {arm} | {score} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| arm | score | all pairs | masked-masked | masked-unmasked | unmasked-unmasked |",
        "| --- " * 6 + "|",
    ]
    for arm, table in results.items():
        for score, values in table.get("MFR2", {}).items():
            lines.append(f"| {arm} | {score} | " + " | ".join(f"{v:.3f}" for v in values.values()) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/occlusion"))
    parser.add_argument("--cache", type=Path, help="of `oaml adapt --use train`; OUT/cache by default")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--occlusion_steps", type=int, default=700)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--arms", default=",".join(ARMS))
    given = parser.parse_args()
    keep_freed_memory()
    weights = given.data / "weights" / "mobilefacenet_casia_bubbliiiing.pth"
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.json"
    results: dict[str, Results] = json.loads(file.read_text()) if file.exists() else {}

    people = PeopleFolder(given.data / "lfw", lambda name: split_name(name) == "train")
    report = PeopleFolder(given.data / "lfw", reported)
    model = start(weights, flip=True)
    cache = FeatureCache(
        given.cache or given.out / "cache", model, people, CachePlan.make(people, list(KINDS), 6, 0), []
    )
    cache.build()
    faces = HeldOut(model, report, KINDS_SHOWN, 0, "b", load_mask_pictures(given.data / "mask_templates"))

    def keep(name: str, table: Results) -> None:
        results[name] = table
        write_file(file, lambda temporary: temporary.write_text(json.dumps(results, indent=1)))
        write_file(given.out / "table.md", lambda temporary: temporary.write_text(markdown(results)))
        print(markdown({name: table}), flush=True)

    for seed in map(int, given.seeds.split(",")):
        torch.manual_seed(seed)
        saved = given.out / f"head_{seed}.pt"
        head_model = start(weights)
        if not saved.exists():
            train_occlusion_head(head_model, cache, Schedule(given.occlusion_steps, 128, 2e-3), seed)
            torch.save(head_model.net.occlusion_head.state_dict(), saved)
        head = torch.load(saved, weights_only=True)
        if "untrained" not in results:
            model.net.occlusion_head.load_state_dict(head)
            keep("untrained", baselines(model, faces))
        for arm in given.arms.split(","):
            name = f"{arm}, seed {seed}"
            if name in results:
                continue
            chosen = cache
            if arm == "without_sunglasses":  # the occlusion head too has never seen any
                kinds = [kind for kind in KINDS if kind != "sunglasses"]
                chosen = FeatureCache(
                    given.out / "cache_without_sunglasses",
                    model,
                    people,
                    CachePlan.make(people, kinds, 6, 0),
                    [],
                )
                chosen.build()
                other = start(weights)
                train_occlusion_head(other, chosen, Schedule(given.occlusion_steps, 128, 2e-3), seed)
                trained, judged_with = train_arm(
                    arm, weights, chosen, other.net.occlusion_head.state_dict(), given.steps, seed
                )
            else:
                trained, judged_with = train_arm(arm, weights, chosen, head, given.steps, seed)
            if judged_with == "ones":
                control = Told(trained.config)
                control.load_state_dict(trained.state_dict())
                trained = control.eval()
            keep(name, judge(trained, faces, given.data / "mfr2"))


if __name__ == "__main__":
    main()
