"""A gallery: people enrolled with a few images each, and who a face is.

A search takes two steps. The first finds the faces nearest to a probe by one vector each, in a LanceDB table (`store.py`,
`rows.py`). The second reads the templates of these alone and ranks their people by the fused score.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from io import BytesIO
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from oaml.errors import OamlError, command
from oaml.gallery.answers import Candidate, Duplicates, Enrolled, EnrolledImage, Person, SearchAnswer, judge
from oaml.gallery.digests import DIGESTED
from oaml.gallery.digests import digest as name_digest
from oaml.gallery.folder import Entry, FolderChanges, changes, digest, listed, split_unseen
from oaml.gallery.store import Store, quoted
from oaml.recognition.decision import Threshold
from oaml.recognition.quality import Quality
from oaml.support.files import Image, name_of
from oaml.support.folders import LeftOut
from oaml.support.images import Content, content_of, path_of, several, shown
from oaml.support.names import person_name, printable, restored, storable
from oaml.support.progress import progress

if TYPE_CHECKING:
    from oaml.gallery.export import Exported
    from oaml.gallery.rows import Packing
    from oaml.photographs.looks import Face
    from oaml.photographs.subjects import Subject
    from oaml.recognition.recognise import Recogniser
    from oaml.recognition.tracks import Track
    from oaml.template import Templates

T = TypeVar("T")
GALLERY_FORMAT = 1
CANDIDATES = 100
"""Faces that the first step hands to the second."""
BATCH = 64
"""Images embedded and written at a time: what an interrupted enrolment loses at most."""
LONGEST_NAME = 255
"""Bytes of a person's name, as of a folder's."""
CHANGED = 500
"""Rows named in one statement."""
ALONE = 0.5
"""A photograph to enrol shows one person: any other face is smaller than this share of the largest, eye to eye."""


class Gallery:
    """People and their faces, on a disk or in object storage. One process writes at a time (not ensured in object storage).

    Args:
        path: a folder, or an address such as `s3://bucket/gallery`. It is made by the first enrolment.
        recogniser: from `oaml.load()`; None for what needs none: `people`, `rename`, `delete`, `export`, `import_`.

    Raises:
        OamlError: lancedb is not installed; the path holds something else or something damaged; another model made the gallery.
    """

    def __init__(self, path: str | Path, recogniser: Recogniser | None = None) -> None:
        path_of(path, "gallery")
        if recogniser is not None and not hasattr(recogniser, "model"):
            raise OamlError(
                f"{path}: a gallery is given a model as oaml.load(MODEL), not as {type(recogniser).__name__}"
            )
        self.path, self.recogniser = str(path), recogniser
        self._store = Store(path)
        if self._store and self._store.facts.get("format") != GALLERY_FORMAT:
            raise OamlError(
                f"{path}: is a gallery of another version of OAML; export it with that version and import it into a new one"
            )
        self._count: tuple[int, int] | None = None
        if self._store and recogniser is not None:
            self._need_model()

    # --- enrolling

    def enroll(
        self,
        person: str,
        images: Image | Iterable[Image],
        thumbnails: bool = False,
        aligned: bool | None = None,
    ) -> Enrolled:
        """Add images of one person; those that are enrolled already, by content, are kept as they are.

        Args:
            person: their name; new or known.
            images: one image or any iterable of them, with one person on each.
            thumbnails: also keep the aligned face as a picture, to be drawn.
            aligned: whether the images are aligned faces or photographs; None looks, at those of 112x112.

        Returns:
            What changed.

        Raises:
            OamlError: no images; an unreadable one, one without a usable face or with several faces. Nothing is enrolled then.
        """
        person = _need_name(person)
        contents = [content_of(image) for image in several(images)]
        if not contents:
            raise OamlError(f"{person}: no images; give one at least")
        wanted: dict[str, Content] = {}
        for image in contents:
            wanted.setdefault(digest(image), image)
        with self._store.writing():
            known = {entry.image for entry in self._entries(f"person = {quoted(person)}")}
            new = {digest: image for digest, image in wanted.items() if digest not in known}
            entries = [Entry(person, digest, _source(image), "") for digest, image in new.items()]
            subjects = [self._subject(image, aligned) for image in new.values()]
            poor: list[str] = []
            if subjects:
                poor = self._add(entries, subjects, thumbnails)
                self._store.tidy()
        return Enrolled(added=len(new), kept=len(wanted) - len(new), poor=poor)

    def enroll_folder(
        self,
        folder: str | Path,
        thumbnails: bool = False,
        label: str | None = "enrolling",
        aligned: bool | None = None,
        confirm: Callable[[str], bool] | None = None,
    ) -> Enrolled:
        """Make the gallery hold what a folder holds, `FOLDER/NAME/*.jpg`, by content.

        New images are added and those no longer there removed, if this folder brought them; moved and renamed ones are kept without
        being embedded again. A folder that was moved is known by what it holds. What can't be seen now (a link to nothing, an empty
        folder, what can't be read) stays enrolled. An interrupted run is continued by running it again.

        Args:
            folder: a folder for every person.
            thumbnails: also keep the aligned faces of new images as pictures, to be drawn.
            label: of the progress bar on stderr; None shows none.
            aligned: as for `enroll`.
            confirm: asked before more than a tenth of the people or images that came from the folder is removed, with a line that
                names them; where it says no, nothing is changed. None removes them.

        Raises:
            OamlError: no such folder, no images in it, or not one that can be enrolled; `confirm` said no.
        """
        folder = Path(_real(path_of(folder, "folder")))
        found, place = listed(folder), storable(str(folder))
        left_out, failed = [str(line) for line in found.left_out], list(found.left_out)
        with self._store.writing():
            todo = changes(found.entries, self._entries(), place, found.left_out)
            warning = None if confirm is None else todo.warning()
            if confirm is not None and warning is not None and not confirm(f"{folder}: {warning}"):
                raise OamlError(f"{folder}: nothing was changed")
            self._move(todo, place)
            added, poor = 0, list[str]()
            with progress(label, len(found.entries), len(found.entries) - len(todo.new)) as advance:
                for start in range(0, len(todo.new), BATCH):
                    entries, subjects = [], []
                    for entry in todo.new[start : start + BATCH]:
                        source = Path(restored(entry.source))
                        try:
                            subjects.append(self._subject(source, aligned))
                            entries.append(entry)
                        except OamlError as error:
                            left_out.append(str(error))
                            failed.append(LeftOut(source, str(error)))
                        advance(1)
                    if subjects:
                        poor += self._add(entries, subjects, thumbnails)
                    added += len(subjects)
            gone, unseen = split_unseen((*todo.gone, *todo.unseen), place, failed)
            for part in _parts(gone):
                self._store.change(_among(part))
            if not self._store or not self._store.count():
                raise OamlError(f"{folder}: not one image could be enrolled; the first: {left_out[0]}")
            if added or todo.moved or gone:
                self._store.tidy(slow=True)
            enrolled = {entry.person for entry in self._entries()} if failed else set[str]()
            without = sorted({entry.person for entry in todo.new} - enrolled) if failed else []
        notes = [*found.notes, *todo.notes(unseen)]
        return Enrolled(added, len(gone), len(todo.moved), todo.kept, left_out, notes, poor, without)

    def _move(self, todo: FolderChanges, folder: str) -> None:
        """Say of enrolled images where they are now, and under which name."""
        for earlier in todo.earlier:  # all that lies in it at once
            inside = f"concat({quoted(folder)}, substr(source, {len(earlier) + 1}))"
            where = f"folder = {quoted(earlier)} and starts_with(source, {quoted(earlier)})"
            self._store.change(where, {"source": inside, "folder": quoted(folder)})
        moved = [
            (old, entry)
            for old, entry in todo.moved
            if (old.moved(folder) if old.folder in todo.earlier else old) != entry
        ]
        for part in _parts(moved):
            # Statements have no CASE, so all is looked up in one text; no real path and no folder's name holds two slashes.
            # By the old and the new key, since nothing says whether a statement sees a column that it changes.
            words = [
                word
                for old, entry in part
                for key in (old, entry)
                for word in (_key(key), entry.source, entry.person, name_digest(entry.person).hex())
            ]
            known = f"//{'//'.join(words)}//"
            found = f"split_part({quoted(known)}, concat('//', image, person, '//'), 2)"
            source, person, digested = (f"split_part({found}, '//', {place})" for place in (1, 2, 3))
            values = {"source": source, "folder": quoted(folder), "person": person}
            if DIGESTED["person"] in self._store.columns:
                values[DIGESTED["person"]] = f"decode({digested}, 'hex')"
            self._store.change(_among([old for old, _ in part]), values)

    def _subject(self, image: Image, aligned: bool | None) -> Subject:
        """The one person on an image."""
        from oaml.photographs.usable import LEAST_USABLE, USABLE_REMEDY, no_usable_face

        subjects = self._need_recogniser().subjects(image, aligned)
        largest, *others = (s.face.eyes if s.face is not None else 1.0 for s in subjects)
        clear = [eyes for eyes, subject in zip(others, subjects[1:], strict=True) if subject.certain]
        several = 1 + sum(eyes >= ALONE * largest for eyes in clear)
        if several > 1:
            raise OamlError(
                f"{name_of(image)}: shows {several} faces, and whose it is can't be told; crop the picture to this person"
            )
        if subjects[0].usable < LEAST_USABLE:
            raise OamlError(f"{name_of(image)}: {no_usable_face(subjects[0].usable)}; {USABLE_REMEDY}")
        return subjects[0]

    def _add(self, entries: Sequence[Entry], subjects: Sequence[Subject], thumbnails: bool) -> list[str]:
        """Write faces; returns a line for each picture that is poor."""
        from oaml.gallery.rows import Packing, table
        from oaml.recognition.quality import POOR
        from oaml.templates.quantised import QuantisedTemplates

        recogniser = self._need_recogniser()
        crops = [subject.crop for subject in subjects]
        templates = recogniser.templates(crops)
        qualities = recogniser.qualities(crops, templates, [subject.face for subject in subjects])
        faces = QuantisedTemplates.of(templates)
        if not self._store:
            packing = Packing.of(faces)
            create(self._store, packing, self._model, recogniser.name)
        pictures = [_jpeg(crop) for crop in crops] if thumbnails else [None] * len(crops)
        self._store.add(table(entries, faces, pictures, self._packing, qualities))
        return [
            f"{restored(entry.source) or entry.person}: enrolled, though its quality is {quality}; a better picture is known again "
            "more often"
            for entry, quality in zip(entries, qualities, strict=True)
            if quality.value < POOR
        ]

    # --- searching

    def search(
        self,
        image: Image,
        top: int = 5,
        far: float = 1e-3,
        threshold: float | None = None,
        aligned: bool | None = None,
    ) -> list[SearchAnswer]:
        """Who is on a photograph: an answer for every face, the largest first.

        Args:
            image: a photograph, or a face that is aligned.
            top: people to name for each face.
            far: share of impostor pairs that may pass; one of those that the model has thresholds for.
            threshold: decide at this fused score instead; any finite number.
            aligned: whether the image is an aligned face or a photograph; None looks, where it is 112x112.

        Raises:
            OamlError: no gallery yet; a bad image, rate or threshold; no face.
        """
        limit = self._asked(top, far, threshold)
        recogniser = self._need_recogniser()
        subjects = recogniser.subjects(image, aligned)
        crops = [subject.crop for subject in subjects]
        probes = recogniser.templates(crops)
        faces = [subject.face for subject in subjects]
        qualities, people = recogniser.qualities(crops, probes, faces), self._people()
        return [
            self._judge(probes[i : i + 1], face, crops[i], qualities[i], limit, people, top)
            for i, face in enumerate(faces)
        ]

    def search_video(
        self,
        video: str | Path,
        top: int = 5,
        far: float = 1e-3,
        threshold: float | None = None,
        every: int = 1,
    ) -> list[tuple[Track, SearchAnswer]]:
        """Who is in a video or a folder of frames: every face that was followed through it, with an answer by all its frames.

        Args:
            video: see `Recogniser.tracks`, as for `every`.
            top, far, threshold: as for `search`.

        Raises:
            OamlError: as `search`; a bad video, or one without a face.
        """
        limit = self._asked(top, far, threshold)
        tracks = self._need_recogniser().tracks(video, every)
        if not tracks:
            raise OamlError(f"{video}: no usable face found in any frame; use sharper or closer images")
        people = self._people()
        return [
            (t, self._judge(t.template, t.faces[-1], t.crop, t.quality, limit, people, top)) for t in tracks
        ]

    def _asked(self, top: int, far: float, threshold: float | None) -> Threshold | None:
        """The threshold to judge by, before any work."""
        if not isinstance(top, Integral) or top < 1:
            raise OamlError(f"top: {top!r:.100} people; give a whole number, 1 or more")
        recogniser = self._need_recogniser()
        _ = self._store.table  # there must be one
        return recogniser.threshold(far, threshold)

    def _judge(
        self,
        probe: Templates,
        face: Face | None,
        crop: np.ndarray,
        quality: Quality | None,
        limit: Threshold | None,
        people: int,
        top: int,
    ) -> SearchAnswer:
        from oaml.photographs.usable import LEAST_USABLE, usable

        sure = usable(crop)
        candidates = self.candidates(probe) if sure >= LEAST_USABLE else []
        return judge(candidates, limit, people, float(probe.visible()[0]), face, top, crop, sure, quality)

    def candidates(self, probe: Templates, count: int = CANDIDATES) -> list[Candidate]:
        """The people most similar to one face, best first; see `oaml.gallery.search.candidates`."""
        from oaml.gallery.search import candidates

        return candidates(self._store, self._packing, self._need_recogniser().model, probe, count)

    # --- the people

    def people(self) -> list[Person]:
        """Who is enrolled, by name.

        Raises:
            OamlError: no gallery yet.
        """
        pictured = self._store.rows(["person"], "thumbnail is not null")["person"].to_pylist()
        thumbnails, qualities = Counter(pictured), defaultdict[str, list[Quality | None]](list)
        for image in self.images():
            qualities[image.person].append(image.quality)
        people = []
        for name, known in sorted(qualities.items()):
            ranked = sorted((q for q in known if q is not None), key=lambda quality: quality.value)
            best, worst = (ranked[-1].value, ranked[0]) if ranked else (None, None)
            people.append(Person(name, len(known), thumbnails[name], best, worst))
        return people

    def images(self) -> list[EnrolledImage]:
        """What is enrolled, by person and path, with the quality of each picture.

        Raises:
            OamlError: no gallery yet.
        """
        graded = [name for name in ("quality", "reasons") if name in self._store.columns]
        return sorted(
            (
                EnrolledImage(
                    row["person"],
                    restored(row["source"]),
                    row["image"],
                    Quality.stored(row.get("quality"), row.get("reasons")),
                )
                for row in self._store.rows(["person", "source", "image", *graded]).to_pylist()
            ),
            key=lambda image: (image.person, image.source, image.image),
        )

    def duplicates(self, far: float = 1e-4, label: str | None = "comparing pairs") -> Duplicates:
        """Who is probably enrolled twice, under two names. Nothing is changed.

        Args:
            far: share of impostor pairs (of two people) that may be named; one of those that the model has thresholds for.
            label: of the progress bar on stderr; None shows none.

        Raises:
            OamlError: no gallery yet, or no threshold for the rate.
        """
        from oaml.gallery.duplicates import duplicates

        _ = self._store.table  # there must be one
        recogniser = self._need_recogniser()
        limit = recogniser.threshold(far)
        if limit is None:
            raise OamlError(
                f"{recogniser.name}: has no thresholds, and who is enrolled twice is decided by one; "
                "fit them with oaml calibrate MODEL --people FACES --out NEW, whose templates are the same"
            )
        people, pairs = duplicates(self._store, self._packing, recogniser.model, limit.value, label)
        count = people * (people - 1) // 2
        return Duplicates(pairs, limit, people, count * far)

    def rename(self, old: str, new: str) -> None:
        """Call a person by another name.

        Raises:
            OamlError: nobody of the old name, or somebody of the new one.
        """
        _need_str(old)
        new = _need_name(new)
        with self._store.writing():
            old = self._known(old)
            if self._store.count(f"person = {quoted(new)}"):
                raise OamlError(f"{new}: is enrolled already; delete one of the two or choose another name")
            self._store.change(f"person = {quoted(old)}", self._named(new))

    def delete(self, *people: str) -> int:
        """Remove people; returns how many faces they had.

        When this returns, no file of the gallery holds anything of their templates, vectors or thumbnails. An interrupted deletion
        is finished by whoever opens the gallery next. Exports and backups are not reached. All files that hold a face of theirs are
        written anew, up to 4,096 faces each, and the indices are dropped: in a gallery of more than 100,000 faces searches take
        longer until `index`.

        Raises:
            OamlError: no names, or nobody of one of them; nobody is deleted then.
        """
        for person in people:
            _need_str(person, "; several are given one after the other: delete(*names)")
        if not people:
            raise OamlError("delete: no names; give one at least")
        with self._store.writing():
            return self._store.change(_in([self._known(person) for person in people]))

    def kept_in_folders(self, *people: str) -> list[str]:
        """Folders whose files of these people are still there: enrolled again, they bring them back under the name they have there.

        Raises:
            OamlError: nobody of one of the names.
        """
        known = [self._known(person) for person in people]
        entries = self._entries(_in(known)) if known else ()
        there = {e.folder for e in entries if e.folder and Path(restored(e.source)).exists()}
        return sorted(restored(folder) for folder in there)

    def index(self) -> None:
        """Build what makes searches fast in a gallery of more than 100,000 faces. Folders and imports do it by themselves.

        Raises:
            OamlError: no gallery yet, another process writes to it, or no room.
        """
        with self._store.writing():
            self._store.tidy(slow=True)

    def picture(self, candidate: Candidate) -> np.ndarray | None:
        """The enrolled face of a candidate, uint8 RGB [112,112,3]: its thumbnail, or cut from its file where that is unchanged.

        None where there is neither.
        """
        where = _where(candidate.person, candidate.image)
        rows = self._store.rows(["source", "thumbnail"], where).to_pylist()
        if not rows:
            return None
        if rows[0]["thumbnail"] is not None:
            from oaml.support.files import read_photograph

            return read_photograph(rows[0]["thumbnail"])
        source = Path(restored(rows[0]["source"]))
        try:
            if not rows[0]["source"] or digest(source) != candidate.image:
                return None
        except OamlError:  # gone, or it can't be read
            return None
        recogniser = self._need_recogniser()
        return recogniser.subjects(source)[0].crop

    def export(self, file: str | Path) -> Path:
        """Write everything to FILE.safetensors (a file of templates as `oaml embed` writes it) and FILE.json beside it.

        Raises:
            OamlError: no gallery yet; another suffix; no room; another process writes to the gallery.
        """
        from oaml.gallery.export import write

        with self._store.writing():  # names and templates are read one after the other
            return write(self._store, self._packing, path_of(file, "file"))

    def import_(self, file: str | Path) -> Enrolled:
        """Add all faces of an export, bit for bit; those that are enrolled already are kept.

        Raises:
            OamlError: no such file, a damaged one, or one of another model than the gallery's.
        """
        from oaml.gallery.export import read

        exported = read(path_of(file, "file"))
        with self._store.writing():
            if not self._store:
                create(self._store, exported.packing, exported.templates.model, exported.templates.model_name)
            self._need_same_model(file, exported)
            added = self._add_exported(exported, {entry.key for entry in self._entries()})
        return Enrolled(added=added, kept=len(exported.templates.paths) - added)

    def check(self, label: str | None = "reading faces") -> list[str]:
        """Read everything; returns the names of people with a face that can't be read or isn't what was written.

        Names, templates and thumbnails are checked by their digests (galleries of older versions have none), vectors by templates.

        Raises:
            OamlError: no gallery yet, or so much is damaged that the names can't be read: import an export into a new gallery.
        """
        from oaml.gallery.check import damaged_people

        return damaged_people(self._store, self._packing, label)

    def repair(self, file: str | Path) -> Enrolled:
        """Put what an export holds in the place of damaged people: removed are their faces, added those of the export.

        Raises:
            OamlError: as `check` and `import_`.
        """
        from oaml.gallery.export import read

        exported = read(path_of(file, "file"))
        with self._store.writing():
            self._need_same_model(file, exported)
            people = set(self.check(label=None))
            if not people:
                return Enrolled(kept=self._store.count())
            images = {entry.image for entry in self._entries(_in(people))}
            removed = self._store.change(_in(people))
            others = {f["person"] for f in exported.faces if f["image"] in images} | people
            known = {(f["person"], f["image"]) for f in exported.faces if f["person"] not in others}
            added = self._add_exported(exported, known | {entry.key for entry in self._entries()})
        return Enrolled(added=added, removed=removed, kept=self._store.count() - added)

    def _need_same_model(self, file: str | Path, exported: Exported) -> None:
        if exported.templates.model != self._store.facts["model"]:
            raise OamlError(
                f"{file}: holds faces of another model ({exported.templates.model_name}, {exported.templates.model}) than "
                f"{self.path}; import it into a new gallery"
            )

    def _add_exported(self, exported: Exported, known: set[tuple[str, str]]) -> int:
        added = 0
        for rows in exported.tables(known):
            self._store.add(rows)
            added += len(rows)
        self._store.tidy(slow=True)
        return added

    # --- what all of it needs

    @cached_property
    def _model(self) -> str:
        from oaml.templates.file import model_id

        return model_id(self._need_recogniser().model)

    @cached_property
    def _packing(self) -> Packing:
        from oaml.gallery.rows import Packing

        return Packing.from_list(self._store.facts["packing"])

    def _need_recogniser(self) -> Recogniser:
        if self.recogniser is None:
            raise OamlError(
                f"{self.path}: this needs a model; give the gallery one: Gallery(path, oaml.load(MODEL))"
            )
        return self.recogniser

    def _need_model(self) -> None:
        facts = self._store.facts
        if facts["model"] == self._model:
            return
        folders = sorted({restored(e.folder) for e in self._entries() if e.folder}) or ["FOLDER"]
        name = self._need_recogniser().name
        named = [] if name == "starter" else ["--model", name]
        again = f"{self.path.rstrip('/')}-{self._model[:8]}"
        commands = " && ".join(command("enroll", folder, "--gallery", again, *named) for folder in folders)
        raise OamlError(
            f"{self.path}: was enrolled with another model ({facts['model_name']}, {facts['model']}), this one is "
            f"{self._model}; their numbers can't be compared, so enrol again with this one: {commands}"
        )

    def _named(self, person: str) -> dict[str, str]:
        """What to change for faces to be of a person: columns and SQL."""
        digests = {DIGESTED["person"]: f"X'{name_digest(person).hex()}'"}
        return {"person": quoted(person), **{c: v for c, v in digests.items() if c in self._store.columns}}

    def _known(self, name: str) -> str:
        """What a person is called in the gallery who is asked for by this name, or by the way it is printed."""
        _ = self._store.table  # there must be one
        wanted = person_name(name)
        if self._store.count(f"person = {quoted(wanted)}"):
            return wanted
        names = [person.name for person in self.people()]
        for person in names:  # older galleries have names in decomposed letters
            if person_name(person) == wanted or printable(person) == wanted:
                return person
        like = [printable(person) for person in difflib.get_close_matches(name, names, 3)]
        hint = f"did you mean {' or '.join(like)}?" if like else f"{command('gallery', self.path)} lists all"
        raise OamlError(f"{shown(name)}: nobody of that name is enrolled in {self.path}; {hint}")

    def _entries(self, where: str | None = None) -> Iterator[Entry]:
        """Of the faces enrolled; none where there is no gallery yet."""
        if self._store:
            for row in self._store.rows(Entry._fields, where).to_pylist():
                yield Entry(**row)

    def _people(self) -> int:
        version = self._store.version
        if self._count is None or self._count[0] != version:
            names = self._store.rows(["person"])["person"]
            self._count = version, len(names.unique())
        return self._count[1]


def create(store: Store, packing: Packing, model: str, model_name: str) -> None:
    """Make an empty gallery for templates of one model, given by id and name."""
    from oaml.gallery.rows import schema

    facts = {"model": model, "model_name": model_name, "packing": packing.to_list()}
    store.create(schema(packing), {"format": GALLERY_FORMAT, **facts})


def _need_str(name: Any, remedy: str = "") -> None:
    if not isinstance(name, str):
        raise OamlError(
            f"{name!r:.100}: is of type {type(name).__name__} and no name of a person; give a str{remedy}"
        )


def _need_name(name: Any) -> str:
    """The name as it is kept; OamlError where a person can't be called so."""
    _need_str(name)
    kept = person_name(name)
    if not kept or not kept.isprintable():
        raise OamlError(f"{shown(repr(name))}: is no name of a person; give one of printable characters")
    if len(kept.encode()) > LONGEST_NAME:
        raise OamlError(
            f"{kept[:20]}...: is no name of a person but {len(kept.encode())} bytes long; give one of {LONGEST_NAME} at most"
        )
    return kept


def _in(people: Iterable[str]) -> str:
    return f"person in ({', '.join(map(quoted, people))})"


def _among(entries: Iterable[Entry]) -> str:
    """Which rows are of some entries: flat, since a condition of thousands of parts would be nested too deep."""
    keys = ", ".join(quoted(_key(entry)) for entry in entries)
    return f"concat(image, person) in ({keys})"


def _key(entry: Entry) -> str:
    return entry.image + entry.person


def _parts(listed: Sequence[T]) -> Iterator[Sequence[T]]:
    """So many at a time as one statement takes."""
    return (listed[start : start + CHANGED] for start in range(0, len(listed), CHANGED))


def _where(person: str, image: str) -> str:
    return f"(person = {quoted(person)} and image = {quoted(image)})"


def _source(image: Image) -> str:
    return storable(_real(image)) if isinstance(image, str | os.PathLike) else ""


def _real(path: str | os.PathLike[str]) -> str:
    """A path without links, of which there is one only: POSIX lets two slashes at the beginning stand."""
    return os.path.sep + os.path.realpath(path).lstrip("/") if os.path.sep == "/" else os.path.realpath(path)


def _jpeg(crop: np.ndarray) -> bytes:
    from PIL import Image as Pillow

    held = BytesIO()
    Pillow.fromarray(crop).save(held, "JPEG", quality=95)
    return held.getvalue()
