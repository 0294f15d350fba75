"""Published test sets as they lie on a disk: where their lists and images are, and what is compared.

`oaml evaluate MODEL --protocol NAME --data DIR` reads a set by its own files, so that no list has to be rewritten. `SETS` is the
table of them; `oaml evaluate --list` prints it. Faces have to be aligned to 112x112 (`oaml align DIR --out ALIGNED` keeps the
layout); lists and labels are read from the same folder.

Four spellings of a line are known, and told apart by their content (words are separated by tabs where there are any):

| line | pair | sets |
| --- | --- | --- |
| `Ann 1 2`, `Ann 1 Bela 3` | numbers of images, `Ann/Ann_0001.jpg`; a genuine and an impostor pair | LFW, XQLFW, MFR2 |
| `a.jpg b.jpg 1` | paths, 1 for a genuine pair | MLFW |
| `1 a.jpg b.jpg` | the same, `*_ann.txt` | AgeDB-30 and others as aligned folders |
| `a.jpg 1`, and the next line `b.jpg 1` | two lines a pair, 0 for an impostor pair | CALFW, CPLFW |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from oaml.datasets.bin_pairs import BinPairs
from oaml.errors import OamlError, few
from oaml.evaluation.galleries import deepface_emd, tinyface
from oaml.evaluation.protocols import Identification, Listed, Pairs, found, need_all
from oaml.support.folders import read_folder
from oaml.support.names import is_system

IMPOSTORS_A_PROBE = 10
"""Of sets that have no list of pairs: each probe is compared with the people that follow its own in the alphabet."""


@dataclass(frozen=True)
class TestSet:
    """One published set."""

    title: str
    layout: str
    """What lies below the folder."""
    marks: tuple[str, ...]
    """Files and folders by which it is recognised, one of each word separated by `|`."""
    read: Callable[[Path], Listed] | None
    """None for templates of many images, which `oaml.evaluation.ijb` reads."""
    folds: bool = True
    """Whether accuracy over ten folds is part of the protocol."""


def read_set(name: str, data: str | Path) -> Listed | None:
    """The pairs, probes and images of a published set; None for one of templates.

    Args:
        name: a key of `SETS`.
        data: its folder.

    Raises:
        OamlError: no such folder, a list that is missing or can't be read (with its line), or images that are missing (all counted,
            ten named). Where the folder looks like another set, it says which.
    """
    data = Path(data)
    if data.suffix == ".bin" and data.is_file():
        if not SETS[name].folds:
            raise OamlError(
                f"{data}: {name} is no set of pairs, as a .bin file is; expected {SETS[name].layout}"
            )
        a, b, same = BinPairs(data).pairs()
        return Listed(data, Pairs(a, b, list(same)))
    if name == "deepface-emd" and data.is_file():
        return deepface_emd(data)
    if not data.is_dir():
        raise OamlError(f"{data}: no such folder; {name} is expected as {SETS[name].layout}")
    absent = _absent(name, data)
    if name == "lfw" and not _absent("mfr2", data):  # whose list is written alike
        absent = ["list of LFW"]
    if absent:
        alike = [other for other in SETS if other != name and not _absent(other, data)]
        most = max((len(SETS[other].marks) for other in alike), default=0)
        alike = [other for other in alike if len(SETS[other].marks) == most]
        hint = f"; it looks like {' or '.join(alike)}" if alike else ""
        raise OamlError(
            f"{data}: no {' and no '.join(absent)}, which {SETS[name].title} has{hint}; expected {SETS[name].layout}"
        )
    read = SETS[name].read
    return None if read is None else read(data)


def _absent(name: str, data: Path) -> list[str]:
    """The marks of a set that a folder lacks."""
    return [
        mark
        for mark in SETS[name].marks
        if not any(next(data.glob(pattern), None) for pattern in mark.split("|"))
    ]


# --- lists of pairs ---


def _list_of(*patterns: str, numbered: bool | None = None) -> Callable[[Path], Listed]:
    """Reads the first file that one of the patterns finds; `numbered`: whether it names images by numbers, if that is known."""

    def read(data: Path) -> Listed:
        file = next(found for pattern in patterns for found in sorted(data.glob(pattern)))
        return Listed(*_from_lines(file, data, numbered))

    return read


def _from_lines(file: Path, data: Path, numbered: bool | None = None) -> tuple[Path, Pairs]:
    """The folder of the images, and the pairs."""
    named = [*_lines(file)]
    if not named:
        raise OamlError(f"{file}: holds no pairs")
    if numbered is not None and named[0][0].numbered is not numbered and not file.name.endswith("_ann.txt"):
        has = "`Ann 1 2`, as LFW and MFR2 have them" if named[0][0].numbered else "paths, as MLFW has them"
        raise OamlError(f"{file}: its lines are {has}; choose that --protocol")
    root = _root(data, named[0][0], file)
    pairs = Pairs([], [], [])
    missing: dict[str, None] = {}
    for *sides, same in named:
        paths = [found(root, side.path) for side in sides]
        missing |= dict.fromkeys(str(side) for side, path in zip(sides, paths, strict=True) if path is None)
        if None not in paths:
            pairs.path_a.append(str(paths[0]))
            pairs.path_b.append(str(paths[1]))
            pairs.same.append(same)
            for side, path in zip(sides, paths, strict=True):
                pairs.owner[str(path)] = side.person
    need_all([*missing], root, file)
    return root, in_folds(pairs)


@dataclass(frozen=True)
class _Image:
    """An image as a list names it."""

    path: str
    person: str
    numbered: bool = False
    """By the number of the image, so that the path lacks its suffix."""

    def __str__(self) -> str:
        return self.path


def _numbered(person: str, number: str) -> _Image:
    return _Image(f"{person}/{person}_{int(number):04d}", person, numbered=True)


def _named(path: str) -> _Image:
    """By a path; its person is the folder, or in a flat folder the name up to its last number: `Ann_Lee_0001.jpg` is Ann_Lee."""
    path = path.replace("\\", "/").removeprefix("./")
    *folders, name = path.split("/")
    stem = name.rpartition(".")[0] or name
    return _Image(path, folders[-1] if len(folders) > 1 else stem.rstrip("0123456789_-") or stem)


def _lines(file: Path) -> Iterator[tuple[_Image, _Image, bool]]:
    """The pairs of a list, whichever of the four spellings it has."""
    first: tuple[str, str] | None = None  # of a pair that goes over two lines
    for number, words in _words(file):
        wrong = OamlError(
            f"{file}, line {number}: {' '.join(words)[:100]!r} is no pair; known are `Ann 1 2`, `Ann 1 Bela 3`, `a.jpg b.jpg 1`, "
            "`1 a.jpg b.jpg`, and `a.jpg 1` with `b.jpg 1` in the next line"
        )
        numbers = [word.isdecimal() for word in words]
        if number == 1 and all(numbers) and len(words) <= 2:
            continue  # of folds and of pairs in each
        if len(words) == 2 and not numbers[0] and words[1].lstrip("-").isdecimal():
            if first is None:
                first = words[0], words[1]
                continue
            if first[1] != words[1]:
                raise wrong
            yield _named(first[0]), _named(words[0]), words[1] not in ("0", "-1")
            first = None
        elif first is not None:
            raise wrong
        elif len(words) == 3 and numbers[1:] == [True, True] and not numbers[0]:
            yield _numbered(words[0], words[1]), _numbered(words[0], words[2]), True
        elif len(words) == 4 and numbers[1] and numbers[3]:
            yield _numbered(words[0], words[1]), _numbered(words[2], words[3]), words[0] == words[2]
        elif len(words) == 3 and words[2] in ("0", "1", "-1"):
            yield _named(words[0]), _named(words[1]), words[2] == "1"
        elif len(words) == 3 and words[0] in ("0", "1", "-1"):
            yield _named(words[1]), _named(words[2]), words[0] == "1"
        else:
            raise wrong
    if first is not None:
        raise OamlError(f"{file}: ends in the middle of a pair, after {first[0]}")


def _words(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and words of every line that isn't empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OamlError(f"{file}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise OamlError(f"{file}: can't be read ({error.strerror or error})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            separator = "\t" if "\t" in line.strip() else "," if "," in line else None
            yield number, [word.strip() for word in line.strip().split(separator) if word.strip()]


def _root(data: Path, image: _Image, file: Path) -> Path:
    """The folder, at most two levels below `data`, in which an image is found."""
    folders = [data, *sorted(f for pattern in ("*/", "*/*/") for f in data.glob(pattern) if f.is_dir())]
    for folder in folders:
        if found(folder, image.path) is not None:
            return folder
    raise OamlError(
        f"{file}: names {image.path}, which is in no folder of {data}; put the images beside the list, or align them there with "
        "`oaml align`"
    )


def in_folds(pairs: Pairs, folds: int = 10) -> Pairs:
    """The pairs in an order in which ten consecutive folds hold equal shares of genuine and of impostor pairs.

    A list that is written fold by fold, as LFW's is, stays as it is but for the order within its folds; in one that is not, as
    CALFW's, a fold would otherwise hold one class alone.
    """
    order: list[int] = []
    classes = [[i for i, same in enumerate(pairs.same) if same is wanted] for wanted in (True, False)]
    for fold in range(folds):
        for rows in classes:
            order += rows[fold * len(rows) // folds : (fold + 1) * len(rows) // folds]
    return replace(
        pairs, **{name: [getattr(pairs, name)[i] for i in order] for name in ("path_a", "path_b", "same")}
    )


# --- sets with a layout of their own ---


def _cfp(data: Path) -> Listed:
    """CFP's frontal-profile pairs (Sengupta et al., Frontal to Profile Face Verification in the Wild, WACV 2016)."""
    protocol = data / "Protocol"
    images = [{}, {}]
    for side, name in zip(images, ("F", "P"), strict=True):
        for number, words in _words(protocol / f"Pair_list_{name}.txt"):
            if len(words) != 2:
                raise OamlError(f"{protocol}/Pair_list_{name}.txt, line {number}: is no `NUMBER PATH`")
            side[words[0]] = words[1].replace("\\", "/").removeprefix("../")
    pairs = Pairs([], [], [])
    for fold in range(1, 11):
        for name, same in (("same", True), ("diff", False)):
            file = protocol / "Split" / "FP" / f"{fold:02d}" / f"{name}.txt"
            for number, words in _words(file):
                if len(words) != 2 or words[0] not in images[0] or words[1] not in images[1]:
                    raise OamlError(
                        f"{file}, line {number}: {','.join(words)[:100]!r} are no numbers of a frontal and a profile image"
                    )
                pairs.path_a.append(images[0][words[0]])
                pairs.path_b.append(images[1][words[1]])
                pairs.same.append(same)
                for path in (pairs.path_a[-1], pairs.path_b[-1]):
                    pairs.owner[path] = path.split("/")[-3]
    used = dict.fromkeys([*pairs.path_a, *pairs.path_b])
    need_all([path for path in used if not (data / path).is_file()], data, protocol)
    return Listed(data, in_folds(pairs))


def _mfr2(data: Path) -> Listed:
    """MFR2's 848 pairs, in groups by the labels of their images (Anwar and Raychowdhury, Masked Face Recognition for Secure
    Authentication, 2020)."""
    images, pairs = _from_lines(next(data.glob("pairs.txt"), data / "mfr2_official_pairs.txt"), data)
    labels = data / "mfr2_labels.txt"
    if not labels.is_file():
        return Listed(images, pairs)
    kind: dict[str, str] = {}
    for number, words in _words(labels):
        if len(words) != 3 or not words[1].isdecimal():
            raise OamlError(f"{labels}, line {number}: is no `NAME, NUMBER, KIND OF MASK`")
        kind[_numbered(words[0], words[1]).path] = words[2]
    unlabelled = {path for path in (*pairs.path_a, *pairs.path_b) if path.rpartition(".")[0] not in kind}
    if unlabelled:
        raise OamlError(f"{labels}: says nothing of {few(sorted(unlabelled), 10)}; complete the set")

    def masks(path: str) -> int:
        return not kind[path.rpartition(".")[0]].startswith("no")

    occluded = [masks(a) + masks(b) for a, b in zip(pairs.path_a, pairs.path_b, strict=True)]
    names = ("unmasked-unmasked", "masked-unmasked", "masked-masked")
    return Listed(images, replace(pairs, occluded=occluded, group=[names[count] for count in occluded]))


def _rmfrd(data: Path) -> Listed:
    """RMFRD's masked images against unmasked ones (Wang et al., Masked Face Recognition Dataset and Application, 2020)."""
    return _by_folders(data, ("AFDB_face_dataset", ["AFDB_masked_face_dataset"]))


def _rof(data: Path) -> Listed:
    """ROF's images without occlusion, with masks and with sunglasses against ones without (Erakin et al., On Recognizing Occluded
    Faces in the Wild, BIOSIG 2021)."""
    return _by_folders(data, ("neutral", ["neutral", "masked", "sunglasses"]))


def _by_folders(data: Path, folders: tuple[str, list[str]]) -> Listed:
    """GALLERY/PERSON/IMAGE against PROBES/PERSON/IMAGE of several folders, which are the groups.

    The first gallery image of a person is enrolled, and each probe is compared with its own person and with `IMPOSTORS_A_PROBE`
    others.
    """
    enrolled, probes_of = folders
    gallery = {
        person.name: images[0] for person in _below(data / enrolled) if (images := read_folder(person).images)
    }
    people = sorted(gallery)
    pairs = Pairs([], [], [])
    known = Identification(
        [gallery[person].relative_to(data).as_posix() for person in people], people, [], []
    )
    for folder in probes_of:
        for person in _below(data / folder):
            if person.name not in gallery:
                continue
            place = people.index(person.name)
            others = [
                people[(place + step) % len(people)]
                for step in range(1, min(IMPOSTORS_A_PROBE, len(people) - 1) + 1)
            ]
            for image in read_folder(person).images:
                if image == gallery[person.name]:
                    continue
                probe = image.relative_to(data).as_posix()
                known.probes.append(probe)
                known.probe_person.append(person.name)
                for other in (person.name, *others):
                    enrolled_image = gallery[other].relative_to(data).as_posix()
                    pairs.path_a.append(enrolled_image)
                    pairs.path_b.append(probe)
                    pairs.same.append(other == person.name)
                    pairs.group.append(folder)
                    pairs.occluded.append(int(folder != enrolled))
                    pairs.owner.update({enrolled_image: other, probe: person.name})
    if not len(known.probes):
        raise OamlError(
            f"{data}: nobody in {', '.join(probes_of)} has an image in {enrolled} too; folders of one person have the same name"
        )
    return Listed(data, pairs, known)


def _below(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_system(path.name))


def listing() -> str:
    """The table of `oaml evaluate --list`."""
    width = max(map(len, SETS))
    lines = [
        line
        for name, known in SETS.items()
        for line in (f"{name:<{width}}  {known.title}", f"{'':<{width}}    DIR/ {known.layout}")
    ]
    return "\n".join(
        [*lines, "", "example: oaml evaluate runs/adapted --protocol mfr2 --data mfr2/ --out report"]
    )


SETS: dict[str, TestSet] = {
    "lfw": TestSet(
        "LFW, view 2", "pairs.txt with lines `Ann 1 2` and `Ann 1 Bela 3`, or lfw_ann.txt; images */Ann/Ann_0001.jpg",
        ("pairs.txt|*/pairs.txt|lfw_ann.txt",), _list_of("pairs.txt", "*/pairs.txt", "lfw_ann.txt", numbered=True),
    ),
    "cfp-fp": TestSet(
        "CFP, frontal-profile",
        "Protocol/{Pair_list_F.txt,Pair_list_P.txt,Split/FP/01/same.txt...}; Data/Images/001/frontal/01.jpg",
        ("Protocol/Pair_list_F.txt", "Protocol/Pair_list_P.txt", "Protocol/Split/FP"), _cfp,
    ),
    "agedb-30": TestSet(
        "AgeDB, 30 years apart", "agedb_30_ann.txt with lines `1 a.jpg b.jpg`; images beside it or in a folder",
        ("*agedb*ann.txt|*AgeDB*pairs*.txt",), _list_of("*agedb*ann.txt", "*AgeDB*pairs*.txt"),
    ),
    "calfw": TestSet(
        "CALFW, ages apart", "pairs_CALFW.txt (two lines a pair) or calfw_ann.txt; images in a folder such as `aligned images`",
        ("pairs_CALFW.txt|calfw_ann.txt",), _list_of("pairs_CALFW.txt", "calfw_ann.txt"),
    ),
    "cplfw": TestSet(
        "CPLFW, poses apart", "pairs_CPLFW.txt (two lines a pair) or cplfw_ann.txt; images in a folder such as `aligned images`",
        ("pairs_CPLFW.txt|cplfw_ann.txt",), _list_of("pairs_CPLFW.txt", "cplfw_ann.txt"),
    ),
    "xqlfw": TestSet(
        "XQLFW, unlike quality", "xqlfw_pairs.txt; images xqlfw_aligned_112/Ann/Ann_0001.jpg",
        ("xqlfw_pairs.txt",), _list_of("xqlfw_pairs.txt"),
    ),
    "mlfw": TestSet(
        "MLFW, LFW with masks drawn on", "pairs.txt with lines `a.jpg b.jpg 1`; images aligned/a.jpg",
        ("pairs.txt", "aligned|origin"), _list_of("pairs.txt", numbered=False),
    ),
    "mfr2": TestSet(
        "MFR2, real masks", "pairs.txt (848 lines), mfr2_labels.txt with lines `Ann, 1, cloth`; images Ann/Ann_0001.png",
        ("pairs.txt|mfr2_official_pairs.txt", "mfr2_labels.txt|mfr2_official_pairs.txt|mfr2"), _mfr2,
    ),
    "rmfrd": TestSet(
        "RMFRD, real masks", "AFDB_face_dataset/PERSON/*.jpg and AFDB_masked_face_dataset/PERSON/*.jpg",
        ("AFDB_face_dataset", "AFDB_masked_face_dataset"), _rmfrd, folds=False,
    ),
    "rof": TestSet(
        "ROF, real masks and sunglasses", "neutral/PERSON/*.jpg, masked/PERSON/*.jpg and sunglasses/PERSON/*.jpg",
        ("neutral", "masked", "sunglasses"), _rof, folds=False,
    ),
    "tinyface": TestSet(
        "TinyFace, small faces among distractors",
        "Testing_Set/{Gallery_Match,Gallery_Distractor,Probe}/*.jpg and {gallery_match,probe}_img_ID_pairs.mat; aligned folders "
        "may lie elsewhere in DIR",
        ("Gallery_Match|*/Gallery_Match|*/*/Gallery_Match",), tinyface, folds=False,
    ),
    "deepface-emd": TestSet(
        "DeepFace-EMD's lists, masked, glasses, cropped",
        "a list of the gallery, such as lfw_128.txt, and one of probes, lfw_128_mask.txt, with lines `IMAGE,PERSON`; or DIR is "
        "the latter",
        ("*_mask*.txt|*_glass*.txt|*_crop*.txt",), deepface_emd, folds=False,
    ),
    "ijbb": TestSet(
        "IJB-B, templates, 1:1 and 1:N", "meta/ijbb_*.txt and .csv as InsightFace's evaluation has them; images loose_crop/*.jpg",
        ("meta/ijbb_face_tid_mid.txt",), None, folds=False,
    ),
    "ijbc": TestSet(
        "IJB-C, templates, 1:1 and 1:N", "meta/ijbc_*.txt and .csv as InsightFace's evaluation has them; images loose_crop/*.jpg",
        ("meta/ijbc_face_tid_mid.txt",), None, folds=False,
    ),
    "ijbs": TestSet(
        "IJB-S, surveillance to surveillance, 1:N",
        "cs6_metadata.csv, cs6_surveillance_to_surveillance_probe.csv, galleries/cs6_surveillance_to_surveillance_{g1,g2}.csv; "
        "crops SUBJECT/videos_VIDEO_FRAME.jpg",
        ("cs6_metadata.csv",), None, folds=False,
    ),
}  # fmt: skip
"""Name, as `--protocol` takes it -> the set."""
