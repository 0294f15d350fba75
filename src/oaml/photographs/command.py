"""`oaml align`: a folder of photographs to a folder of aligned faces."""

from __future__ import annotations

from pathlib import Path

from oaml.errors import OamlError
from oaml.photographs.subjects import find_subjects, load_detector
from oaml.support.files import check_empty, png_names, write_file
from oaml.support.folders import need_images, read_folder, say_left_out
from oaml.support.names import printable


def align_folder(
    folder: Path,
    *,
    out: Path,
    detector: Path | None = None,
    all: bool = False,
    refine: bool = False,
    aligned: bool | None = None,
) -> None:
    """Cut the faces out of a folder of photographs, aligned to 112x112.

    `FOLDER/PERSON/NAME.jpg` becomes `OUT/PERSON/NAME.png`: the largest face, or with `all` every face, the second as
    `NAME_2.png`. Images of 112x112 are taken as they are, but for `refine`, unless a face is found in them that lies elsewhere than
    an aligned one does. Files without a face that can be used are listed at the end.

    Example:
        oaml align photographs --out faces

    Args:
        folder: photographs in any depth of folders.
        out: a new or an empty folder.
        detector: a YuNet file; by default the one of `oaml download yunet`.
        all: write every face of a photograph.
        refine: move images of 112x112 too. Whoever aligned them guessed the landmarks beneath masks and veils.
        aligned: images of 112x112 are aligned faces (`--not-aligned`: photographs); by default they are looked at.

    Raises:
        OamlError: an `out` that holds files, a bad detector, two photographs that would be written under one name, or
            not a single face.
    """
    from rich.console import Console
    from rich.progress import track

    folder, out = Path(folder), Path(out)
    check_empty(out)
    found = need_images(folder, read_folder(folder))
    paths = found.images
    names = png_names(folder, paths)
    finder = load_detector(detector)
    if finder is None:
        for path in paths:  # before anything is written
            find_subjects(path, None, aligned)

    from PIL import Image

    from oaml.photographs.refine import refined_crop  # torch, once all has been checked

    written, unused = 0, []
    for name, path in track(names.items(), "aligning", console=Console(stderr=True), total=len(names)):
        try:
            subjects = find_subjects(path, finder, aligned)
        except OamlError as error:
            unused.append(str(error))
            continue
        for number, subject in enumerate(subjects if all else subjects[:1], 1):
            target = name if number == 1 else name.with_name(f"{name.stem}_{number}.png")
            if number > 1 and target in names:
                raise OamlError(
                    f"{path}: its face {number} would be written under the name of {names[target]}; rename one of them"
                )
            crop = subject.crop
            face = refined_crop(crop) if refine and subject.face is None else crop
            write_file(out / target, Image.fromarray(face).save)
            written += 1
    say_left_out([*found.left_out, *unused])
    if not written:
        raise OamlError(
            f"{folder}: no face in any of {len(paths)} photographs; choose sharper or closer ones"
        )
    left_out = len(found.left_out) + len(unused)
    print(
        f"{printable(str(out))}: {written} faces of {len(paths) - len(unused)} photographs, {left_out} left out"
    )
