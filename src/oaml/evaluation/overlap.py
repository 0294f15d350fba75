"""People who are probably in a set under two names, or took part in training: by their nearest embeddings, and by spelling.

Every image is compared with the images under other names whose embeddings are nearest. Two names are probably one person's where
the fused score reaches the threshold of a false-accept rate of 1e-6, or where the embeddings are those of one photograph.
Look-alikes reach it too, so this is a list for somebody to look at, and no figure changes by it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.datasets.people import People, hashed_names, person_of
from oaml.datasets.sources import people_from
from oaml.errors import OamlError
from oaml.evaluation.results import Alike, Overlap
from oaml.inference import extract, score_pairs
from oaml.support.progress import progress

if TYPE_CHECKING:
    from oaml.evaluation.conditions import MeasuredFaces
    from oaml.evaluation.protocols import Identification, Pairs
    from oaml.model import Model
    from oaml.template import Templates

FAR = 1e-6
NEAREST = 3
"""Images under other names that every image is compared with."""
LIMIT = 20_000
"""Images of a set that are looked at; a random part of a larger one."""
BLOCK = 512
"""Images at a time: 40 MB of cosines with a set of that size."""
SAME_PHOTOGRAPH = 1e-5
"""Greatest difference of two unit embeddings of one photograph, number by number; on a CPU there is none."""

Names = tuple[str, str]


@dataclass(frozen=True)
class Faces:
    """A set of faces: whose they are, and of which images."""

    templates: Templates
    people: list[str]
    paths: list[str]

    def __getitem__(self, rows: np.ndarray) -> Faces:
        import torch

        people, paths = ([values[i] for i in rows] for values in (self.people, self.paths))
        return Faces(self.templates[torch.from_numpy(rows)], people, paths)


def took_part(trained: set[str], pairs: Pairs | None, known: Identification | None) -> list[str]:
    """A warning of people that the model was trained or calibrated on; `trained` holds their hashed names."""
    people = set() if pairs is None else {pairs.person_of(path) for path in (*pairs.path_a, *pairs.path_b)}
    people |= set() if known is None else {person_of(path) for path in (*known.gallery, *known.probes)}
    seen = sum(hashed_names([person])[0] in trained for person in people)
    return (
        [
            f"{seen} of {len(people)} people took part in the model's training or calibration, by the names of their folders; "
            "leave them out, for the figures on them are too good"
        ]
        if seen
        else []
    )


def training_people(folder: Path, trained: set[str], resize: bool) -> People:
    """The people of a folder; of a model that keeps hashed names, those of them alone.

    Args:
        folder: a folder for each person.
        trained: hashed names; empty where the model keeps none.
        resize: as in `PeopleFolder`.

    Raises:
        OamlError: no people in the folder, or none of those that the model was trained on.
    """
    people = people_from(folder, resize=resize)
    took_part = [name for name in people.people if hashed_names([name])[0] in trained]
    if trained and not took_part:
        raise OamlError(
            f"{folder}: none of its people took part in the model's training, by the names of their folders; name the folder "
            "that it was trained on, or leave --trained_on out"
        )
    return people.part({*took_part}.__contains__) if trained else people


def of_measured(
    faces: MeasuredFaces,
    pairs: Pairs | None,
    known: Identification | None,
    training: People | None,
    seed: int,
) -> Overlap:
    """Look among the images that were measured, without drawn occluders; see `find_overlap`."""
    assert faces.unoccluded is not None  # all are measured
    paths = list(faces.unoccluded.place)
    people = {path: person_of(path) if pairs is None else pairs.person_of(path) for path in paths}
    if known is not None:
        people |= dict(zip(known.gallery, known.gallery_person, strict=True))
        people |= dict(zip(known.probes, known.probe_person, strict=True))
    listed = [] if pairs is None else zip(pairs.path_a, pairs.path_b, pairs.same, strict=True)
    one_person = [(people[a], people[b]) for a, b, same in listed if same]
    everybody = Faces(faces.unoccluded.templates, [people[path] for path in paths], paths)
    return find_overlap(faces.model, everybody, one_person, training, batch_size=faces.batch_size, seed=seed)


def notes(overlap: Overlap) -> list[str]:
    """A warning of people under two names, and of those who probably took part in training."""
    said = []
    for found, what, advice in (
        (overlap.within, "probably one person under two names", "look at them, and take one name out"),
        (overlap.training, "probably training people too", "look at them, and leave them out"),
    ):
        if found:
            shown = ", ".join(f"{pair.person_a} and {pair.person_b}" for pair in found[:5])
            rest = f" and {len(found) - 5:,} more, all in report.json" if len(found) > 5 else ""
            said.append(f"{what}: {shown}{rest}; {advice}, for all figures count them")
    for count, left_out, what in (
        (overlap.images, overlap.images_left_out, ""),
        (overlap.training_images, overlap.training_images_left_out, "training "),
    ):
        if left_out:
            said.append(
                f"people under two names were looked for among {count:,} {what}images, by chance; {left_out:,} were left out"
            )
    return said


def find_overlap(
    model: Model,
    faces: Faces,
    one_person: Iterable[Names] = (),
    trained_on: People | None = None,
    *,
    batch_size: int = BLOCK,
    seed: int = 0,
) -> Overlap:
    """Look for names that are probably one person's.

    Args:
        model: in eval mode, on any device.
        faces: the evaluated set without drawn occluders.
        one_person: pairs of names that the lists say are one person's.
        trained_on: people that the model was trained on.
        batch_size: as in `extract`.
        seed: of the choice among more images than `LIMIT`.

    Raises:
        OamlError: an unreadable image of the training people.
    """
    given, rows = len(faces.paths), _some(len(faces.paths), seed)
    if len(rows) < given:
        faces = faces[rows]
    threshold, stored = threshold_at(model.config.thresholds, FAR)
    alike = _spelled_alike(faces.people, faces.people)
    pairs = {names: pair for names, pair in alike.items() if names[0] < names[1]}
    with progress("people under two names", len(faces.paths)) as advance:
        for block in _blocks(np.arange(len(faces.paths))):
            found = _alike(model, faces[block], faces, threshold)
            _add(pairs, (pair if pair.person_a < pair.person_b else _turned(pair) for pair in found))
            advance(len(block))
    known = {tuple(sorted(names)) for names in one_person}
    overlap = Overlap(
        far=FAR,
        threshold=threshold,
        threshold_stored=stored,
        images=len(faces.paths),
        images_left_out=given - len(faces.paths),
        within=_listed(pair for names, pair in pairs.items() if names not in known),
    )
    if trained_on is None:
        return overlap
    rows = _some(len(trained_on), seed)
    pairs = _spelled_alike(faces.people, trained_on.people, same=True)
    with progress("training people", len(rows)) as advance:
        for block in _blocks(rows):
            images = (trained_on.image(int(i)) for i in block)
            trained = Faces(
                extract(model, images, len(block), batch_size=batch_size),
                [trained_on.people[trained_on.labels[i]] for i in block],
                [trained_on.names[int(i)] for i in block],
            )
            _add(pairs, (_turned(pair) for pair in _alike(model, trained, faces, threshold)))
            advance(len(block))
    return replace(
        overlap,
        training_images=len(rows),
        training_images_left_out=len(trained_on) - len(rows),
        training=_listed(pairs.values()),
    )


def threshold_at(thresholds: dict[str, float], far: float) -> tuple[float | None, bool]:
    """A model's threshold at a small rate and whether it is a stored one; None of a model with too few thresholds.

    Where there are larger rates alone, the line through the last two, over the logarithm of the rate, goes on. High scores of
    impostor pairs become rare faster than on a line, so fewer reach it than the rate says.
    """
    known = sorted((float(rate), float(value)) for rate, value in thresholds.items())
    known = [(rate, value) for rate, value in known if math.isfinite(value)]
    for rate, value in known:
        if math.isclose(rate, far, rel_tol=1e-6):
            return value, True
    if len(known) < 2:
        return None, False
    (small, high), (large, low) = known[:2]
    return high + (high - low) * math.log(small / far) / math.log(large / small), False


def _some(count: int, seed: int) -> np.ndarray:
    """Which of so many images are looked at, ascending."""
    if count <= LIMIT:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, LIMIT, replace=False))


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _alike(model: Model, some: Faces, faces: Faces, threshold: float | None) -> Iterator[Alike]:
    """Pairs of an image of `some` and one of those nearest to it under other names that are probably one person's."""
    import torch

    cosine = some.templates.embedding @ faces.templates.embedding.T
    names = {name: code for code, name in enumerate({*some.people, *faces.people})}
    whose, others = (torch.tensor([names[name] for name in f.people]) for f in (some, faces))
    cosine[whose[:, None] == others] = -torch.inf
    nearest = cosine.topk(min(NEAREST, len(others)), 1)
    i, place = nearest.values.isfinite().nonzero(as_tuple=True)
    j = nearest.indices[i, place]
    if not len(i):
        return
    apart = (some.templates.embedding[i] - faces.templates.embedding[j]).abs().amax(1)
    scores = score_pairs(model, some.templates, i.numpy(), faces.templates, j.numpy(), plain=False)["fused"]
    for a, b, score, difference in zip(i.tolist(), j.tolist(), scores.tolist(), apart.tolist(), strict=True):
        same = difference <= SAME_PHOTOGRAPH
        if same or (threshold is not None and score >= threshold):
            yield Alike(some.people[a], faces.people[b], some.paths[a], faces.paths[b], score, same)


def _turned(pair: Alike) -> Alike:
    return replace(
        pair, person_a=pair.person_b, person_b=pair.person_a, path_a=pair.path_b, path_b=pair.path_a
    )


def _spelled_alike(people: Iterable[str], others: Iterable[str], same: bool = False) -> dict[Names, Alike]:
    """Names that differ in nothing but case, accents, spaces and punctuation; with `same` in nothing at all, too."""
    by_letters: dict[str, set[str]] = {}
    for name in {*others}:
        by_letters.setdefault(_letters(name), set()).add(name)
    return {
        (name, other): Alike(name, other, same_spelling=True)
        for name in {*people}
        for other in by_letters.get(_letters(name), ())
        if any(map(str.isalpha, name)) and (same or name != other)  # numbers are given to anybody
    }


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", name).casefold()))


def _add(pairs: dict[Names, Alike], more: Iterable[Alike]) -> None:
    """Keep the most similar two images of two names."""
    for pair in more:
        names = (pair.person_a, pair.person_b)
        before = pairs.get(names)
        if before is None or before.score is None or (pair.score or 0) > before.score:
            pairs[names] = replace(pair, same_spelling=before is not None and before.same_spelling)


def _listed(pairs: Iterable[Alike]) -> list[Alike]:
    """The most similar first; those that only their names speak for last."""
    return sorted(
        pairs,
        key=lambda pair: (math.inf if pair.score is None else -pair.score, pair.person_a, pair.person_b),
    )
