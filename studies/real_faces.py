"""QAConv and its visibility maps beside the cosine, on real faces.

`python studies/real_faces.py --data ../shared/data --out runs/real`

Trains configs/finetune.yaml from mobilefacenet_casia_bubbliiiing.pth on the training people of LFW with an occlusion stream of
CelebAMask-HQ masks (studies/celebamask.py) and drawn covers of style a; reports on people of LFW that took no part, covered in
style b and with mask pictures that no training saw, and on MFR2 (real masks). All commands are printed as they run.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from celebamask import convert
from people import reported


def matrix_pairs(images: Path, out: Path) -> tuple[int, int]:
    """One bare gallery face a report person against every other image of report people -> pairs CSV, (gallery, probes)."""
    people = {
        p.name: sorted(p.iterdir()) for p in sorted(images.iterdir()) if p.is_dir() and reported(p.name)
    }
    gallery = {name: files[0] for name, files in people.items()}
    probes = [(name, file) for name, files in people.items() for file in files[1:]]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path_a", "path_b", "same"])
        for person, face in gallery.items():
            for name, probe in probes:
                writer.writerow([face.relative_to(images), probe.relative_to(images), int(person == name)])
    return len(gallery), len(probes)


def run(*command: object) -> None:
    """Run one command of the product, shown first."""
    words = [str(word) for word in command]
    print("$ oaml", *words, flush=True)
    subprocess.run([sys.executable, "-m", "oaml.main", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    data, out = given.data, given.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "celebamask").exists():
        print("CelebAMask-HQ: {} covered, {} bare".format(*convert(data / "celebamask", out / "celebamask")))
    if not (out / "model" / "last").exists():
        resume = (out / "model" / "checkpoint.ckpt").exists()
        run(
            "train", "--config", Path(__file__).parents[1] / "configs" / "finetune.yaml",
            "--backbone", data / "weights" / "mobilefacenet_casia_bubbliiiing.pth",
            "--data.people", data / "lfw", "--data.masks", f"[{out / 'celebamask' / 'covered'}]",
            "--data.clean", f"[{out / 'celebamask' / 'bare'}]", "--steps", given.steps, "--out", out / "model",
            "--resume", str(resume).lower(), "--licence", "MIT weights, research data",
        )  # fmt: skip
    print(
        "LFW report people: {} gallery faces, {} probes".format(
            *matrix_pairs(data / "lfw", out / "lfw_pairs.csv")
        )
    )
    model = out / "model" / "last"
    run(
        "evaluate", model, "--images", data / "lfw", "--pairs", out / "lfw_pairs.csv", "--out", out / "lfw",
        "--occlude", "niqab,mask,sunglasses,patch", "--style", "b", "--mask_pictures", data / "mask_templates",
    )  # fmt: skip
    run(
        "evaluate",
        model,
        "--images",
        data / "mfr2",
        "--pairs",
        data / "mfr2_pairs.csv",
        "--out",
        out / "mfr2",
    )


if __name__ == "__main__":
    main()
