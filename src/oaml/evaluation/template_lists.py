"""What the lists of IJB-B, IJB-C and IJB-S say: which faces make up a template, and which templates are compared.

IJB-B and IJB-C as InsightFace's evaluation has them (github.com/deepinsight/insightface, recognition/_evaluation_/ijb):

```
meta/ijbc_face_tid_mid.txt           IMAGE TEMPLATE MEDIUM
meta/ijbc_template_pair_label.txt    TEMPLATE TEMPLATE 1 or 0
meta/ijbc_name_5pts_score.txt        IMAGE x1 y1 ... x5 y5 SCORE
meta/ijbc_1N_gallery_G1.csv          TEMPLATE_ID,SUBJECT_ID,...    and G2, and ijbc_1N_probe_mixed.csv; without them no 1:N
loose_crop/IMAGE
```

IJB-S, surveillance to surveillance (Kalka et al., IJB-S: IARPA Janus Surveillance Video Benchmark, BTAS 2018), with the set's own
lists and with crops named as in the evaluation of PFE and AdaFace (Shi and Jain, Probabilistic Face Embeddings, ICCV 2019):

```
cs6_metadata.csv                                       SUBJECT,FILE,...    all faces of all videos and stills
cs6_surveillance_to_surveillance_probe.csv             FILE                videos/4012.mp4
galleries/cs6_surveillance_to_surveillance_g1.csv      ...,SUBJECT,FILE    and g2
SUBJECT/videos_4012_FRAME.jpg                          aligned to 112x112; below a folder or beside the lists
```

The faces of one subject in one video are a template.

Shapes: F faces, T templates, N pairs, G gallery templates, P probes.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oaml.errors import OamlError, few
from oaml.evaluation.protocols import need_all
from oaml.support.folders import list_images

People = tuple[np.ndarray, np.ndarray]
"""Templates, as places among `Lists.ids`, and their people; int [G] each."""


@dataclass(frozen=True)
class Lists:
    """What the set's files say; all checked. Faces come by template, so that those of a template follow each other."""

    images: Path
    names: list[str]
    """Of each face, its image below `images`, [F]."""
    template: np.ndarray
    """int [F], place of its template among `ids`; ascending."""
    medium: np.ndarray
    """int [F]."""
    ids: np.ndarray
    """[T], the set's names of templates, ascending."""
    landmarks: np.ndarray | None
    """float32 [F,5,2], pixels of the image; None where the images are aligned."""
    detector: np.ndarray
    """float32 [F], the detector's score."""
    pairs: np.ndarray
    """int32 [N,2], places among `ids`."""
    same: np.ndarray
    """bool [N]."""
    galleries: dict[str, People]
    """Empty without lists of 1:N."""
    probes: People | None


def read_lists(name: str, data: Path) -> Lists:
    """Read and check all files of ijbb, ijbc or ijbs; see the module for the layouts.

    Raises:
        OamlError: a list or an image is missing or wrong.
    """
    return _surveillance(data) if name == "ijbs" else _mixed(name, data)


def _mixed(name: str, data: Path) -> Lists:
    meta, images = data / "meta", data / "loose_crop"
    for needed in (meta, images):
        if not needed.is_dir():
            raise OamlError(
                f"{needed}: no such folder; {name} is expected as meta/{name}_*.txt and loose_crop/*.jpg"
            )
    listed_in = meta / f"{name}_face_tid_mid.txt"
    names, faces = _named(listed_in, 2, np.int64)
    point_names, points = _named(meta / f"{name}_name_5pts_score.txt", 11, np.float32)
    pairs_file = meta / f"{name}_template_pair_label.txt"
    pairs = _numbers(pairs_file, 3, np.int64)
    place = {image: i for i, image in enumerate(point_names)}
    if lacking := [image for image in names if image not in place]:
        raise OamlError(
            f"{meta}/{name}_name_5pts_score.txt: lacks {len(lacking):,} images of {name}_face_tid_mid.txt: {few(lacking, 10)}"
        )
    there = {entry.name for entry in os.scandir(images)}  # one call instead of one a picture
    need_all([image for image in names if not _there(image, there, images)], images, listed_in)
    numbers = points[[place[image] for image in names]]
    ids, template = np.unique(faces[:, 0], return_inverse=True)
    galleries = {
        gallery: _people(meta / f"{name}_1N_gallery_{gallery}.csv", ids)
        for gallery in ("G1", "G2")
        if (meta / f"{name}_1N_gallery_{gallery}.csv").is_file()
    }
    order = np.argsort(template, kind="stable")
    return Lists(
        images,
        [names[i] for i in order],
        template[order],
        faces[order, 1],
        ids,
        numbers[order, :10].reshape(-1, 5, 2),
        numbers[order, 10],
        np.stack([_places(side, ids, pairs_file) for side in pairs[:, :2].T], 1).astype(np.int32),
        pairs[:, 2] == 1,
        galleries,
        _people(meta / f"{name}_1N_probe_mixed.csv", ids) if galleries else None,
    )


def _there(image: str, names: set[str], images: Path) -> bool:
    return image in names or ("/" in image and (images / image).is_file())


def _named(file: Path, columns: int, kind: type) -> tuple[list[str], np.ndarray]:
    """A list of names, and of `columns` numbers after each [N,columns]."""
    numbers = _numbers(file, columns, kind, first=1)
    with file.open(encoding="utf-8") as opened:
        return [line.split(maxsplit=1)[0] for line in opened if line.strip()], numbers


def _numbers(file: Path, columns: int, kind: type, first: int = 0) -> np.ndarray:
    """The numbers of every line after `first` names, [N,columns]; millions of lines are never held as text."""
    try:
        if not file.stat().st_size:
            raise OamlError(f"{file}: is empty")
        numbers = np.loadtxt(
            file, kind, comments=None, usecols=range(first, first + columns), ndmin=2, encoding="utf-8"
        )
    except FileNotFoundError:
        raise OamlError(f"{file}: no such file; the set comes with it") from None
    except OSError as error:
        raise OamlError(f"{file}: can't be read ({error.strerror or error})") from None
    except ValueError as error:
        raise OamlError(_wrong_line(file, columns, first) or f"{file}: can't be read ({error})") from None
    return numbers


def _wrong_line(file: Path, columns: int, first: int) -> str | None:
    """What is wrong with the first line that isn't `first` names and then numbers."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        for number, line in enumerate(opened, 1):
            words = line.split()
            numbers = [word.lstrip("-").replace(".", "", 1) for word in words[first:]]
            if words and (len(numbers) < columns or not all(word.isdecimal() for word in numbers)):
                what = f"a name and {columns} numbers" if first else f"{columns} numbers"
                return f"{file}, line {number}: {' '.join(words)[:100]!r} is not {what}"
    return None


def _people(file: Path, ids: np.ndarray) -> People:
    """Each template once."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        rows = [[int(word) for word in line.split(",")[:2]] for line in lines[1:] if line.strip()]
    except FileNotFoundError:
        raise OamlError(f"{file}: no such file; 1:N needs the probes beside the galleries") from None
    except (OSError, ValueError) as error:
        raise OamlError(f"{file}: is no list of TEMPLATE_ID,SUBJECT_ID ({error})") from None
    listed = np.unique(np.array(rows, np.int64), axis=0)
    return _places(listed[:, 0], ids, file), listed[:, 1]


def _places(listed: np.ndarray, ids: np.ndarray, file: Path) -> np.ndarray:
    places = np.searchsorted(ids, listed).clip(max=len(ids) - 1)
    if (wrong := listed[ids[places] != listed]).size:
        unknown = [str(number) for number in np.unique(wrong)]
        raise OamlError(f"{file}: names {len(unknown):,} templates that have no image: {few(unknown, 10)}")
    return places


# --- IJB-S ---

VIDEO = tuple[int, str]
"""Subject, and file of the video: a template."""


def _surveillance(data: Path) -> Lists:
    """See the module. Of a video without a crop of a listed subject no template can be made; that is an error."""
    listed = set(_videos(data / "cs6_metadata.csv", 0))
    galleries = {
        name: sorted(set(_videos(data / f"galleries/cs6_surveillance_to_surveillance_{name.lower()}.csv", 1)))
        for name in ("G1", "G2")
    }
    probe_file = data / "cs6_surveillance_to_surveillance_probe.csv"
    wanted = {row[0] for row in _rows(probe_file, 1)}
    enrolled = {video for gallery in galleries.values() for video in gallery}
    probes = sorted(video for video in listed if video[1] in wanted and video not in enrolled)
    names: dict[VIDEO, list[str]] = {}
    for path in list_images(data):
        inside = path.relative_to(data)
        subject, stem = inside.parent.name, inside.stem.split("_")
        if subject.isdecimal() and stem[0] == "videos" and len(stem) > 2:
            names.setdefault((int(subject), stem[1]), []).append(inside.as_posix())
    used = sorted(enrolled | set(probes))
    crops = [names.get((subject, Path(video).stem), []) for subject, video in used]
    lacking = [
        f"{subject}/videos_{Path(video).stem}_*" for (subject, video), some in zip(used, crops, strict=True)
        if not some
    ]  # fmt: skip
    need_all(lacking, data, data / "cs6_metadata.csv")
    if not probes:
        raise OamlError(f"{probe_file}: names no video of cs6_metadata.csv that isn't in a gallery")
    place = {video: i for i, video in enumerate(used)}

    def people(videos: Iterable[VIDEO]) -> People:
        chosen = [(place[video], video[0]) for video in videos]
        return tuple(np.array(chosen, np.int64).reshape(-1, 2).T)  # pyright: ignore[reportReturnType]

    template = np.repeat(np.arange(len(used)), [len(some) for some in crops])
    return Lists(
        data,
        [name for some in crops for name in some],
        template,
        np.arange(len(template)),  # every frame for itself: the published evaluation takes the mean of them
        np.array([f"{subject} {video}" for subject, video in used]),
        None,
        np.ones(len(template), np.float32),
        np.empty((0, 2), np.int32),
        np.empty(0, bool),
        {name: people(videos) for name, videos in galleries.items()},
        people(probes),
    )


def _videos(file: Path, column: int) -> list[VIDEO]:
    """Subject and video of every row; stills are passed over."""
    found: list[VIDEO] = []
    for number, row in enumerate(_rows(file, column + 2), 2):
        if not row[column].strip().isdecimal():
            raise OamlError(f"{file}, line {number}: {','.join(row)[:100]!r} has no number of a subject")
        if row[column + 1].startswith("videos"):
            found.append((int(row[column]), row[column + 1].strip()))
    if not found:
        raise OamlError(f"{file}: names no video, as videos/4012.mp4")
    return found


def _rows(file: Path, columns: int) -> list[list[str]]:
    """The rows below the header."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [row for row in csv.reader(opened) if row][1:]
    except FileNotFoundError:
        raise OamlError(f"{file}: no such file; the set comes with it") from None
    except (OSError, ValueError, csv.Error) as error:
        raise OamlError(f"{file}: can't be read ({error})") from None
    for number, row in enumerate(rows, 2):
        if len(row) < columns:
            raise OamlError(f"{file}, line {number}: {','.join(row)[:100]!r} has fewer than {columns} values")
    return rows
