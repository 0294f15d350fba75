"""Published sets that look probes up in a gallery: TinyFace, and DeepFace-EMD's lists of occluded faces.

TinyFace (Cheng et al., Low-Resolution Face Recognition, ACCV 2018), 3,728 probes among 4,443 images of their people and 153,428
distractors, nobody's; measured by the share of probes whose person is among the first 1, 5, 10 and 20:

```
Testing_Set/Gallery_Match/*.jpg, Testing_Set/Gallery_Distractor/*.jpg, Testing_Set/Probe/*.jpg
Testing_Set/gallery_match_img_ID_pairs.mat    gallery_set: names, gallery_ids: numbers of people
Testing_Set/probe_img_ID_pairs.mat            probe_set, probe_ids
```

The three folders, aligned to 112x112, may lie beside the lists or in another folder below DIR, as those that AdaFace publishes
(`aligned_pad_0.1_pad_high/`).

DeepFace-EMD (Phan and Nguyen, CVPR 2022) lists a gallery, `lfw_128.txt`, and probes with masks, glasses or cropped to 70 %,
`lfw_128_mask.txt`, lines `lfw-align-128-masked/Ann/Ann_0001.jpg,0` with the number of the person. Every probe is looked up in the
whole gallery; P@1, R-precision and MAP@R are measured. Its repository has lists of LFW; any others may be written alike.
"""

from __future__ import annotations

from pathlib import Path

from oaml.errors import OamlError, few
from oaml.evaluation.protocols import Identification, Listed, found, need_all
from oaml.support.folders import list_images
from oaml.support.matlab import read_arrays

DISTRACTOR = "distractor"
FOLDERS = ("Gallery_Match", "Gallery_Distractor", "Probe")
KINDS = ("mask", "glass", "crop")


def tinyface(data: Path) -> Listed:
    """See the module.

    Raises:
        OamlError: a list, a folder or an image is missing, or a list is damaged.
    """
    root = next((folder for folder in _below(data) if all((folder / f).is_dir() for f in FOLDERS)), None)
    if root is None:
        raise OamlError(f"{data}: no folder in it holds {', '.join(FOLDERS)}; complete the set")
    gallery, people = _identities(data, root, "gallery_match_img_ID_pairs.mat", "gallery", FOLDERS[0])
    probes, owners = _identities(data, root, "probe_img_ID_pairs.mat", "probe", FOLDERS[2])
    if strange := [probe for probe, owner in zip(probes, owners, strict=True) if owner not in set(people)]:
        raise OamlError(
            f"{root}: {len(strange):,} probes show nobody in Gallery_Match: {few(strange, 10)}; complete the list"
        )
    others = [path.relative_to(root).as_posix() for path in list_images(root / FOLDERS[1])]
    everybody = [*people, *[DISTRACTOR] * len(others)]
    return Listed(root, identification=Identification([*gallery, *others], everybody, probes, owners))


def _identities(data: Path, root: Path, file: str, side: str, folder: str) -> tuple[list[str], list[str]]:
    """Images below the root and their people, by one of TinyFace's lists."""
    path = next((place / file for place in _below(data) if (place / file).is_file()), None)
    if path is None:
        raise OamlError(f"{data}: no {file} in it or two folders below; the set comes with it")
    arrays = read_arrays(path)
    names, numbers = arrays.get(f"{side}_set"), arrays.get(f"{side}_ids")
    if not isinstance(names, list) or numbers is None or len(names) != len(numbers) or not names:
        raise OamlError(f"{path}: holds no {side}_set of names and {side}_ids of as many numbers")
    paths = [found(root, f"{folder}/{name}") for name in names]
    need_all([name for name, there in zip(names, paths, strict=True) if there is None], root / folder, path)
    return [there for there in paths if there is not None], [str(int(number)) for number in numbers]


def _below(data: Path) -> list[Path]:
    """A folder and those at most two levels below it."""
    return [data, *sorted(f for pattern in ("*/", "*/*/") for f in data.glob(pattern) if f.is_dir())]


def deepface_emd(data: Path) -> Listed:
    """See the module.

    Args:
        data: a list of probes, or a folder with one of them, and with the list of its gallery.

    Raises:
        OamlError: no or several lists of probes, no list of the gallery, or an image is missing.
    """
    if data.is_dir():
        lists = [file for file in sorted(data.glob("*.txt")) if any(kind in file.stem for kind in KINDS)]
        if len(lists) != 1:
            raise OamlError(
                f"{data}: holds {len(lists)} lists of probes ({few([file.name for file in lists])}); name one of them with --data"
            )
        data = lists[0]
    galleries = [
        file for file in data.parent.glob("*.txt") if file != data and data.stem.startswith(f"{file.stem}_")
    ]
    if not galleries:
        raise OamlError(
            f"{data}: no list of its gallery beside it; that is called as this one up to the kind: lfw_128.txt for "
            "lfw_128_mask.txt"
        )
    listed_gallery = max(galleries, key=lambda file: len(file.stem))
    probes, owners = _lines(data)
    gallery, people = _lines(listed_gallery)
    root = _root(data, probes[0])
    for file, paths in ((data, probes), (listed_gallery, gallery)):
        need_all([path for path in dict.fromkeys(paths) if not (root / path).is_file()], root, file)
    if strange := sorted(set(owners) - set(people)):
        raise OamlError(
            f"{data}: the people {few(strange, 10)} are not in {listed_gallery.name}; complete it"
        )
    return Listed(root, identification=Identification(gallery, people, probes, owners))


def _lines(file: Path) -> tuple[list[str], list[str]]:
    """Images and people of a list."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OamlError(f"{file}: can't be read ({error})") from None
    images: list[str] = []
    people: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, comma, person = line.strip().rpartition(",")
        if not comma or not person.strip().isdecimal():
            raise OamlError(f"{file}, line {number}: {line.strip()[:100]!r} is no `IMAGE,NUMBER OF A PERSON`")
        images.append(image.strip().replace("\\", "/"))
        people.append(person.strip())
    if not images:
        raise OamlError(f"{file}: is empty")
    return images, people


def _root(file: Path, image: str) -> Path:
    """The folder that a list's paths are relative to: its own, one of the two above, or a folder in one of these."""
    folder = file.resolve().parent
    for above in (folder, *list(folder.parents)[:2]):
        for place in (above, *sorted(path for path in above.glob("*/") if path.is_dir())):
            if (place / image).is_file():
                return place
    raise OamlError(f"{file}: names {image}, which is in no folder beside or above it; put the images there")
