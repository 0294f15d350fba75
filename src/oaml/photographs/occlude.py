"""`oaml occlude`: occluders laid on a folder of faces, or cut out of photographs of people who wear them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import NoReturn

from oaml.datasets.drawn import draw_face
from oaml.datasets.masked import Unlabelled
from oaml.occluders.canvas import Style
from oaml.occluders.command import occlude_folder
from oaml.occluders.harvested import load_harvested, part_of, save_harvested
from oaml.occluders.sheet import MOST, draw_sheet
from oaml.support.files import check_empty, read_image
from oaml.support.folders import list_images, say_left_out
from oaml.support.names import printable


def occlude(
    folder: Path | None = None,
    /,
    *,
    out: Path,
    kind: str | None = None,
    seed: int = 0,
    style: Style = "a",
    mask_pictures: Path | None = None,
    occluders_from: Path | None = None,
    resize: bool = False,
    harvest: Path | None = None,
    predict: bool = False,
    model: str = "starter",
    unlabelled: Unlabelled = "fail",
    sheet: Path | None = None,
) -> None:
    """Cover every image below a folder and write the occluded images with their exact masks; or cut occluders out of photographs.

    With a folder, `OUT/images/NAME.png` is the occluded face, `OUT/masks/NAME.png` its mask (grey, 255 where the face shows);
    NAME is the path below `folder` without its suffix. An occluder depends on the seed, the kind and the image's path below
    `folder`, not on the other images.

    With --harvest, OUT holds what hides the faces of the photographs: RGBA pictures and `occluders.json`, for --occluders_from of
    `occlude`, `adapt`, `train` and `evaluate`. Occluders of 7 in 10 photographs are for style a, to train on, those of the others
    for style b, to judge on, by the hash of the photograph's name. `docs/data.md` says more.

    Example:
        oaml occlude faces --kind niqab --out faces_niqab --seed 1

    Args:
        folder: aligned faces, 112x112, in any depth of folders; with --harvest those that --sheet shows the occluders on (by
            default drawn faces).
        out: a new or an empty folder.
        kind: niqab, mask, sunglasses, scarf, hand or patch; or harvested, with --occluders_from.
        seed: another seed, other occluders.
        style: a or b, two disjoint families of occluders: tune on one, judge on the other.
        mask_pictures: folder of mask pictures with alpha, for kind mask.
        occluders_from: folder of occluders that --harvest wrote, for kind harvested.
        resize: scale images of another size instead of refusing them.
        harvest: photographs of occluded people, aligned, with masks: images/ + masks/, or kept_faces/ + masks/.
        predict: the photographs (a folder of images then) have no masks; let a model say what is hidden. Crops without a usable
            face, and those whose occluder has no clear outline, are left out and named.
        model: the model that predicts: a model folder, or starter for the one in the package.
        unlabelled: refuse images without a mask and masks without an image (fail), or use the others (skip).
        sheet: PNG to write, with harvested occluders by themselves and on faces. Look at it.

    Raises:
        OamlError: a wrong option, an `out` that holds files, an unreadable image (named), two images that would be written under
            one name, or photographs that give no occluder.
    """
    if harvest is None:
        if folder is None or kind is None:
            _wrong_call("name a folder of faces and --kind, or photographs with --harvest")
        if predict or sheet is not None:
            _wrong_call(f"{'--predict' if predict else '--sheet'} goes with --harvest")
        occlude_folder(
            folder,
            kind=kind,
            out=out,
            seed=seed,
            style=style,
            mask_pictures=mask_pictures,
            occluders_from=occluders_from,
            resize=resize,
        )
        return
    if kind is not None or occluders_from is not None or mask_pictures is not None:
        _wrong_call("--harvest makes occluders; leave --kind, --occluders_from and --mask_pictures out")
    check_empty(out)
    faces = [draw_face(person, 0) for person in range(MOST)]
    if folder is not None:
        faces = [read_image(path, resize=resize) for path in list_images(folder)[:MOST]]
    from oaml.inference import load_model
    from oaml.photographs.harvest import from_masks, from_predictions, need_occluders

    harvested = (
        from_predictions(harvest, load_model(model), resize)
        if predict
        else from_masks(harvest, resize, unlabelled)
    )
    need_occluders(harvest, harvested)
    found, left_out = harvested
    say_left_out(left_out)
    save_harvested(found, out)
    if sheet is not None:
        draw_sheet(sheet, load_harvested(out).cutouts(), faces, seed)
    parts = Counter(part_of(one.photograph) for one in found)
    print(
        f"{printable(str(out))}: {len(found)} occluder{'s' * (len(found) > 1)}, {parts['train']} to train on (style a) and "
        f"{parts['judge']} to judge on (style b); {len(left_out)} left out"
    )
    if not parts["train"] or not parts["judge"]:
        print(
            "note: one of the two parts is empty; harvest more photographs before you use both",
            file=sys.stderr,
        )


def _wrong_call(message: str) -> NoReturn:
    print(f"oaml occlude: {message} (oaml occlude --help says more)", file=sys.stderr)
    sys.exit(2)
