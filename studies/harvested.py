"""Harvest real occluders: `python studies/harvested.py --data ../shared/data --aligned masked_faces --out runs/occluders`.

From CelebAMask-HQ, whose parsing maps say what hides a face, come hats, dark glasses and hair that falls over the face; from
photographs of people with masks, aligned before (`oaml align masked_photographs --refine --out masked_faces`), what a model says is
hidden.
Both go into one folder for `--occluders_from`, with a sheet beside it (`OUT.png`) of all occluders on people of LFW who report.

Of CelebAMask-HQ these are not taken, though `celebamask.py` calls them covered: clear glasses, behind which the eyes of their owner
would go along, and hairs of a pixel or two, which a mask of 112x112 breaks into dots.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from celebamask import EYEGLASSES, HAIR, HAT, visibility
from people import reported
from PIL import Image

from oaml.inference import load_model
from oaml.occluders import load_harvested
from oaml.occluders.harvested import Found, part_of, save_harvested
from oaml.occluders.sheet import MOST, draw_sheet
from oaml.photographs.harvest import from_masks, from_predictions, need_occluders
from oaml.support.files import read_image
from oaml.support.folders import LeftOut, list_images, say_left_out

SKIN = 1
KINDS = {HAIR: "hair", EYEGLASSES: "glasses", HAT: "hat"}
DARK = 0.4
"""Glasses count as dark when they have at most so much of the brightness of the skin."""
LEAST_PART = 300
"""Pixels of the smallest part of an occluder: fewer are a lock of hair that hangs from nothing."""


def occluders_of(image: np.ndarray, parsing: np.ndarray) -> np.ndarray:
    """Face and class map [112,112] -> mask uint8 [112,112], 255 where it shows or where what hides it can't be worn by another."""
    grey = image.mean(2)
    glasses, skin = parsing == EYEGLASSES, parsing == SKIN
    if glasses.any() and skin.any() and grey[glasses].mean() > DARK * grey[skin].mean():
        parsing = np.where(glasses, SKIN, parsing)
    hidden = (visibility(parsing) == 0).astype(np.uint8)
    hidden = cv2.morphologyEx(hidden, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, parts, facts, _ = cv2.connectedComponentsWithStats(hidden)
    large = facts[:, cv2.CC_STAT_AREA] >= LEAST_PART
    large[0] = False
    return np.where(large[np.asarray(parts, int)], 0, 255).astype(np.uint8)


def _kind(hidden: np.ndarray) -> str:
    """What hides most of a face, by the classes of the pixels that are hidden."""
    return max(KINDS.items(), key=lambda kind: (hidden == kind[0]).sum())[1]


def from_celebamask(source: Path) -> tuple[list[Found], list[LeftOut]]:
    """Occluders of CelebAMask-HQ: `images/` and `parsing/`."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS.values():
            for name in ("images", "masks"):
                (Path(folder) / name / kind).mkdir(parents=True)
        for path in list_images(source / "images"):
            image = read_image(path)
            parsing = np.asarray(Image.open(source / "parsing" / f"{path.stem}.png"))
            mask = occluders_of(image, parsing)
            file = f"{_kind(parsing[mask == 0])}/{path.stem}.png"
            Image.fromarray(image).save(Path(folder) / "images" / file)
            Image.fromarray(mask).save(Path(folder) / "masks" / file)
        return from_masks(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--aligned", type=Path, required=True, help="faces of masked_photographs, aligned")
    parser.add_argument("--model", default="starter", help="the model that predicts what masks hide")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    harvests = (
        from_celebamask(arguments.data / "celebamask"),
        from_predictions(arguments.aligned, load_model(arguments.model)),
    )
    found: list[Found] = []
    for harvest in harvests:
        need_occluders(arguments.data, harvest)
        found += [one if one.visibility == "mask" else one._replace(kind="mask") for one in harvest[0]]
        say_left_out(harvest[1])
    save_harvested(found, arguments.out)
    people = [person for person in sorted((arguments.data / "lfw").iterdir()) if reported(person.name)]
    faces = [read_image(list_images(person)[0]) for person in people[:MOST]]
    draw_sheet(arguments.out.with_suffix(".png"), load_harvested(arguments.out).cutouts(), faces)
    table = Counter((one.kind, part_of(one.photograph)) for one in found)
    for (kind, part), count in sorted(table.items()):
        hidden = [f.cutout.hidden for f in found if (f.kind, part_of(f.photograph)) == (kind, part)]
        quartiles = " / ".join(f"{share:.2f}" for share in np.quantile(hidden, (0.25, 0.5, 0.75)))
        print(f"{kind}, to {part} on: {count} occluders, hidden share {quartiles} (quartiles)")


if __name__ == "__main__":
    main()
