"""Maps on real eyeglasses, hats and hair (CelebAMask-HQ), by a head taught with drawn occluders alone and with both.

`python studies/real_masks.py --data ../shared/data --cache CACHE --out runs/real_masks`

CACHE is that of `oaml adapt --use train`. Every second image of CelebAMask-HQ trains the second head (half of each batch), the
others judge both. What counts as occluded is said in `celebamask.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from celebamask import EYEGLASSES, HAT, visibility
from PIL import Image
from torch import Tensor

from oaml.adaptation.adapt import Schedule, start, train_occlusion_head
from oaml.adaptation.cache import CachePlan, FeatureCache, as_maps, stage3
from oaml.datasets.people import PeopleFolder, split_name
from oaml.main import keep_freed_memory
from oaml.model import Model
from oaml.occluders import KINDS
from oaml.support.files import read_image, write_file
from oaml.support.folders import list_images
from oaml.visibility import GRIDS, mask_to_cells


class WithReal(FeatureCache):
    """The rows of a cache, followed by photographs with real masks."""

    def add(self, maps: np.ndarray, masks: np.ndarray) -> None:
        """maps float16 [N,14,14,C]; masks float32 [N,14,14] in [0,1]."""
        self.maps, self.masks = maps, masks
        self.count = len(self.plan.rows) + len(maps)

    def name(self, index: int) -> str:
        """As `FeatureCache.name`."""
        return (
            super().name(index) if index < len(self.plan.rows) else f"real mask {index - len(self.plan.rows)}"
        )

    def rows(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `FeatureCache.rows`."""
        drawn, real = (
            index[index < len(self.plan.rows)],
            index[index >= len(self.plan.rows)] - len(self.plan.rows),
        )
        features, mask = super().rows(drawn)
        more = as_maps(self.maps[real])
        return torch.cat([features, more]), torch.cat([mask, torch.from_numpy(self.masks[real])[:, None]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real_masks"))
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    keep_freed_memory()
    weights = given.data / "weights" / "mobilefacenet_casia_bubbliiiing.pth"
    people = PeopleFolder(given.data / "lfw", lambda name: split_name(name) == "train")
    model = start(weights)
    cache = WithReal(given.cache, model, people, CachePlan.make(people, list(KINDS), 6, 0), [])
    cache.build()

    paths = list_images(given.data / "celebamask" / "images")
    parsing = [np.asarray(Image.open(p.parents[1] / "parsing" / f"{p.stem}.png")) for p in paths]
    masks = np.stack([visibility(classes) for classes in parsing]).astype(np.float32) / 255
    aligned = mask_to_cells(torch.from_numpy(masks)[:, None], GRIDS[3])[:, 0].numpy()
    maps = stage3(model, [read_image(path) for path in paths])
    teach = np.arange(len(paths)) % 2 == 0
    shares = {
        "eyeglasses": np.array([(c == EYEGLASSES).mean() for c in parsing]),
        "hat": np.array([(c == HAT).mean() for c in parsing]),
        "any occluder": 1 - masks.mean((1, 2)),
    }

    def judge(judged: Model) -> dict[str, dict[str, float]]:
        errors: dict[str, dict[str, float]] = {}
        with torch.inference_mode():
            x = as_maps(maps[~teach])
            seen = torch.nn.functional.avg_pool2d(judged.net.occlusion_head(x), 2)[:, 0].numpy()
        true = mask_to_cells(torch.from_numpy(masks[~teach])[:, None], GRIDS[4])[:, 0].numpy()
        error = np.abs(seen - true).mean((1, 2))
        for name, share in shares.items():
            chosen = share[~teach] > 0.02
            errors[name] = {"faces": int(chosen.sum()), "error": float(error[chosen].mean())}
            errors[name]["error if all were called visible"] = float((1 - true[chosen]).mean())
        unoccluded = shares["any occluder"][~teach] < 0.005
        errors["unoccluded"] = {"faces": int(unoccluded.sum()), "error": float(error[unoccluded].mean())}
        return errors

    results = {}
    for name in ("drawn occluders alone", "drawn and real"):
        torch.manual_seed(0)
        trained = start(weights)
        real = teach if name == "drawn and real" else np.zeros(len(paths), bool)
        cache.add(maps[real], aligned[real])
        train_occlusion_head(trained, cache, Schedule(given.steps, 128, 2e-3), 0)
        results[name] = judge(trained)
        print(name, json.dumps(results[name], indent=1), flush=True)
    write_file(
        given.out / "results.json", lambda temporary: temporary.write_text(json.dumps(results, indent=1))
    )


if __name__ == "__main__":
    main()
