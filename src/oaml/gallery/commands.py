"""`oaml enroll`, `oaml search` and `oaml gallery`: a gallery on the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaml.errors import OamlError, command, few
from oaml.support.folders import say_left_out
from oaml.support.names import printable

if TYPE_CHECKING:
    from oaml.gallery.answers import Duplicates, Enrolled, EnrolledImage, Person, SearchAnswer
    from oaml.gallery.gallery import Gallery
    from oaml.recognition.decision import Threshold
    from oaml.recognition.tracks import Track

SHOWN = 100
"""Pairs of duplicates listed on the terminal."""


def enroll(
    folder: Path,
    *,
    gallery: str,
    name: str | None = None,
    model: str | None = None,
    thumbnails: bool = False,
    yes: bool = False,
    strict: bool = False,
    json: bool = False,
    aligned: bool | None = None,
    detector: Path | None = None,
    device: str = "auto",
) -> None:
    """Make a gallery hold the people of a folder, `FOLDER/NAME/*.jpg`, one person on each photograph; or add one picture.

    Run again, it picks up only what changed, by the content of the files: new images are added, those no longer there are removed
    for good, moved and renamed ones are kept. The folder may have moved too. Before more than a tenth of its people or images is
    removed, it says whom and asks. What can't be seen now (an empty folder, a link to nothing, what can't be read) stays. An
    interrupted run is continued by running it again. What is left out is listed at the end, and who has no usable picture.

    With `--name` a single picture is added to a person, who may be new, and nothing is removed.

    Example:
        oaml enroll people/ --gallery staff
        oaml enroll ann.jpg --name Ann --gallery staff

    Args:
        folder: a folder for every person; with `--name` one picture.
        gallery: folder of the gallery, or an address such as s3://bucket/staff; made where there is none.
        name: the person on the one picture that is given.
        model: a model folder; by default the starter model.
        thumbnails: also keep the aligned faces of new images, so that `oaml search --draw` needs no photographs.
        yes: remove what is no longer in the folder without a question, however much it is.
        strict: fail, after everything else is enrolled, where a person has no usable picture.
        json: print one JSON object to stdout and nothing else.
        aligned: images of 112x112 are aligned faces (`--not-aligned`: photographs); by default they are looked at.
        detector: a YuNet file; by default the one of `oaml download yunet`.
        device: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        OamlError: no such folder, not one image that can be enrolled, a gallery of another model, or much to remove without
            `--yes` and nobody to ask; with `strict` a person without a usable picture; one picture without a name, or a name for
            a folder.
    """
    from oaml.gallery.gallery import Gallery
    from oaml.recognition.recognise import load

    folder = Path(folder)
    if name is None and folder.is_file():
        raise OamlError(f"{folder}: is one picture; say who it is with --name, or give a folder")
    if name is not None and folder.is_dir():
        raise OamlError(f"{folder}: is a folder, and --name is for one picture; leave it out")
    opened = Gallery(gallery, load(model, detector, device))
    given = {"--gallery": gallery, "--model": model, "--detector": detector}
    options = [word for flag, value in given.items() if value is not None for word in (flag, value)]
    if aligned is not None:
        options.append("--aligned" if aligned else "--not-aligned")
    again = command("enroll", folder, *options, *(["--thumbnails"] if thumbnails else []), "--yes")
    if name is not None:
        changed = opened.enroll(name, folder, thumbnails, aligned)
    else:
        changed = opened.enroll_folder(
            folder, thumbnails, aligned=aligned, confirm=lambda warning: _may_remove(warning, yes, again)
        )
    _print_enrolled(opened, gallery, changed, json)
    if changed.without:
        count = len(changed.without)
        line = (
            f"{folder}: no usable picture of {count} {'person' if count == 1 else 'people'}, who can't be known: "
            f"{few([printable(person) for person in changed.without], 20)}; add other pictures of them"
        )
        if strict:
            raise OamlError(line)
        print(f"note: {line}", file=sys.stderr)


def _print_enrolled(opened: Gallery, gallery: str, changed: Enrolled, json: bool) -> None:
    if json:
        people = [person.to_dict() for person in opened.people()]
        print(dumps({"gallery": gallery, **changed.to_dict(), "people": people}, indent=2))
        return
    say_left_out(changed.left_out)
    for line in changed.notes + changed.poor:
        print(f"note: {printable(line)}", file=sys.stderr)
    print(
        f"{printable(gallery)}: {changed.added} images added, {changed.removed} removed, {changed.moved} moved, "
        f"{changed.kept} kept, {len(changed.left_out)} left out; {len(opened.people())} people"
    )


def _may_remove(warning: str, yes: bool, again: str) -> bool:
    """Say what will be removed, and ask whether to go on where that wasn't said before."""
    if not yes and not sys.stdin.isatty():
        raise OamlError(f"{warning}; nothing was changed. If that is meant: {again}")
    print(printable(warning), file=sys.stderr)
    if yes:
        return True
    print("go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def search(
    image: Path,
    *,
    gallery: str,
    model: str | None = None,
    top: int = 5,
    far: float = 0.001,
    threshold: float | None = None,
    every: int = 1,
    draw: Path | None = None,
    json: bool = False,
    aligned: bool | None = None,
    detector: Path | None = None,
    device: str = "auto",
) -> None:
    """Say who is on a photograph or in a video: for every face the most similar people of a gallery, and a decision.

    The decision is that of `oaml verify` for the best of them, at the model's threshold for the false-accept rate `far`. A face
    that reaches it with nobody enrolled is an unknown person; one that shows too little is not decided, nor is a crop that shows no
    usable face. The larger the gallery, the more often a stranger passes for somebody in it: how often is said too.

    Example:
        oaml search visitor.jpg --gallery staff --draw why.png

    Args:
        image: a photograph, a face aligned to 112x112, a video, or a folder of frames in the order of their names.
        gallery: made by `oaml enroll`.
        model: the model folder that the gallery was enrolled with; by default the starter model.
        top: people to name for each face.
        far: share of impostor pairs that may pass; one of those that the model has thresholds for.
        threshold: decide at this fused score instead; any finite number.
        every: look at every n-th frame of a video only.
        draw: PNG to write of the largest face, or the first one of a video, beside the most similar person.
        json: print one JSON object to stdout and nothing else.
        aligned: an image of 112x112 is an aligned face (`--not-aligned`: a photograph); by default it is looked at.
        detector: a YuNet file; by default the one of `oaml download yunet`.
        device: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        OamlError: no gallery or one of another model, a bad image, rate, threshold or name for the picture.
    """
    from oaml.gallery.gallery import Gallery
    from oaml.photographs.video import is_video
    from oaml.recognition.picture import need_free_name
    from oaml.recognition.recognise import load

    if draw is not None:
        draw = Path(draw)
        need_free_name(draw, (Path(image),))
    opened = Gallery(gallery, load(model, detector, device))
    tracks: list[Track] = []
    if is_video(image):
        followed = opened.search_video(image, top, far, threshold, every)
        tracks, answers = [track for track, _ in followed], [answer for _, answer in followed]
    else:
        answers = opened.search(Path(image), top, far, threshold, aligned)
    undrawn = None
    if draw is not None:
        undrawn = _draw(opened, Path(image).name, answers[0], draw)
    if json:
        facts: dict[str, Any] = {"image": str(image), "gallery": gallery, "people": answers[0].people}
        faces = [answer.to_dict() for answer in answers]
        for face, track in zip(faces, tracks, strict=False):
            face["track"] = track.to_dict()
        facts["faces"] = faces
        facts |= {"picture": str(draw) if draw and not undrawn else None, "no_picture": undrawn}
        print(dumps(facts, indent=2, allow_nan=False))
        return
    _print(answers, tracks)
    if draw is not None:
        print(f"\nno picture: {undrawn}" if undrawn else f"\npicture: {printable(str(draw))}")


def gallery(
    path: str,
    *,
    list: bool = False,
    delete: list[str] = [],  # noqa: B006  (read as the default of a flag; never changed)
    rename: list[str] = [],  # noqa: B006
    export: Path | None = None,
    restore: Path | None = None,
    check: bool = False,
    duplicates: bool = False,
    far: float = 0.0001,
    model: str | None = None,
    json: bool = False,
    device: str = "auto",
) -> None:
    """List who is enrolled, with the quality of their pictures; or delete or rename people, export the gallery, add what was
    exported, or find duplicates.

    Only `--duplicates` needs a model. It compares everybody with everybody by what all their images show, changes nothing, and
    names the people that are probably enrolled twice, the most similar first. Pairs that show too little in common are left out.

    Example:
        oaml gallery staff --rename Ann "Ann Lee"

    Args:
        path: folder or address of the gallery.
        list: name every picture too, with its quality and what is wrong with it.
        delete: people to remove. Afterwards no file of the gallery holds anything of their faces; exports and backups do.
        rename: a name and the new one. Rename the folder that `oaml enroll` reads too, or it will bring the old name back.
        export: FILE.safetensors to write, and FILE.json beside it.
        restore: FILE.safetensors of an export, to be added; the gallery is made where there is none.
        check: read everything and name the people who are damaged; with `--restore`, put what the export holds in their place.
        duplicates: name the people that are probably enrolled twice.
        far: share of impostor pairs (of two people) that may be named; one of those that the model has thresholds for.
        model: the model folder that the gallery was enrolled with, for duplicates; by default the starter model.
        json: print one JSON object to stdout and nothing else.
        device: cpu, cuda, or auto for a GPU where there is one; for duplicates.

    Raises:
        OamlError: no gallery, nobody of a name, a file that is no export or of another model, no threshold for the rate, or more
            than one thing to do.
    """
    from oaml.gallery.gallery import Gallery

    asked = [
        name
        for name, value in _options(list, delete, rename, export, restore, check and not restore, duplicates)
        if value
    ]
    if len(asked) > 1:
        raise OamlError(f"{' and '.join(asked)}: one thing at a time; run the command twice")
    if rename and len(rename) != 2:
        raise OamlError(f"--rename: takes a name and the new one, not {len(rename)}; quote names with spaces")
    if not duplicates:  # only they need a model
        for flag, given in (
            ("--far", far != 0.0001),
            ("--model", model is not None),
            ("--device", device != "auto"),
        ):
            if given:
                raise OamlError(f"{flag}: is for --duplicates alone; add that or leave it out")
    if duplicates:
        from oaml.recognition.recognise import load

        named = Gallery(path, load(model, device=device)).duplicates(far)
        if json:
            print(dumps({"gallery": path, **named.to_dict()}, indent=2))
        else:
            _print_duplicates(path, named)
        return
    opened = Gallery(path)
    done: dict[str, Any] = {}
    folders = opened.kept_in_folders(*delete, *rename[:1])  # asked before they are gone
    if delete:
        done["deleted"] = opened.delete(*delete)
    elif rename:
        opened.rename(*rename)
        done["renamed"] = rename
    elif export is not None:
        done["exported"] = str(opened.export(export))
    elif check and restore is not None:
        repaired = opened.repair(restore)
        done["removed"], done["restored"] = repaired.removed, repaired.added
    elif check:
        _check(path, opened)
    elif restore is not None:
        done["restored"] = opened.import_(restore).added
    people = opened.people()
    if json:
        if list:
            done["images"] = [image.to_dict() for image in opened.images()]
        print(dumps({"gallery": path, **done, "people": [person.to_dict() for person in people]}, indent=2))
    else:
        _print_people(path, done, people)
        if list:
            _print_images(opened.images())
    for folder in folders:
        what = "remove their pictures" if delete else f"rename their folder to {printable(rename[1])}"
        back = "them" if delete else "the old name"
        print(
            f"note: {printable(folder)}: enrolled again, this folder will bring {back} back; {what} there too",
            file=sys.stderr,
        )
    if delete or rename:
        sys.stdout.flush()  # it is done; what follows makes searches of large galleries fast again
        opened.index()


def _check(path: str, opened: Gallery) -> None:
    damaged = opened.check()
    if damaged:
        print("\n".join(printable(name) for name in damaged))
        named = [*damaged[:3], *(["..."] if len(damaged) > 3 else [])]
        raise OamlError(
            f"{path}: {len(damaged)} of {len(opened.people())} people are damaged; "
            f"repair them from an export: {command('gallery', path, '--check', '--restore', 'FILE')}, or drop them: "
            f"{command('gallery', path, '--delete', *map(printable, named))}"
        )


def _options(*values: Any) -> list[tuple[str, Any]]:
    return list(
        zip(
            ("--list", "--delete", "--rename", "--export", "--restore", "--check", "--duplicates"),
            values,
            strict=True,
        )
    )


def _print_people(path: str, done: dict[str, Any], people: list[Person]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for what, value in done.items():
        said = " -> ".join(map(printable, value)) if isinstance(value, list) else printable(str(value))
        print(f"{what}: {said}{' images' if isinstance(value, int) else ''}")
    table = Table("person", title=Text(f"{printable(path)}: {len(people)} people"), title_justify="left")
    for column in ("images", "thumbnails", "quality"):
        table.add_column(column, justify="right")
    table.add_column("what is wrong with the worst")
    for person in people:
        quality, wrong = "-", ""
        if person.worst is not None and person.best is not None:
            low, high = f"{person.worst.value:.2f}", f"{person.best:.2f}"
            quality = low if low == high else f"{low} to {high}"
            wrong = ", ".join(person.worst.reasons)
        table.add_row(Text(printable(person.name)), str(person.faces), str(person.thumbnails), quality, wrong)
    Console(highlight=False).print(table)


def _print_images(images: Sequence[EnrolledImage]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("person", "picture", title="pictures", title_justify="left")
    table.add_column("quality", justify="right")
    table.add_column("what is wrong with it")
    for image in images:
        quality, wrong = "-", ""
        if image.quality is not None:
            quality, wrong = f"{image.quality.value:.2f}", ", ".join(image.quality.reasons)
        source = Text(printable(image.source or f"image {image.image[:12]}"), overflow="fold")
        table.add_row(Text(printable(image.person)), source, quality, wrong)
    Console(highlight=False).print(table)


def _print_duplicates(path: str, named: Duplicates) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from oaml.recognition.terminal import origin

    console = Console(highlight=False)
    if named.pairs:
        title = Text(
            f"{printable(path)}: {len(named.pairs)} pairs of {named.people} people are probably one person each"
        )
        table = Table("person", "person", title=title, title_justify="left")
        for column in ("score", "both show"):
            table.add_column(column, justify="right")
        for pair in named.pairs[:SHOWN]:
            people = (Text(printable(person)) for person in (pair.person_a, pair.person_b))
            table.add_row(*people, f"{pair.score:.3f}", f"{100 * pair.visible_both:.0f} %")
        console.print(table)
        if len(named.pairs) > SHOWN:
            print(f"and {len(named.pairs) - SHOWN:,} more; --json names all")
    else:
        print(f"{printable(path)}: nobody among {named.people} people is probably enrolled twice")
    console.print(Text(f"threshold {named.limit.value:.3f}: {origin(named.limit)}"))
    print(f"on average {named.impostors_expected:.2g} impostor pairs reach it among so many people")


def _draw(gallery: Gallery, name: str, answer: SearchAnswer, draw: Path) -> str | None:
    """Draw a face beside the best candidate; or say why not."""
    from oaml.recognition.explain import explain_pair
    from oaml.recognition.picture import draw_pair

    if not answer.candidates:
        return answer.decision if answer.decision == "no usable face" else "nobody is enrolled"
    best = answer.candidates[0]
    enrolled = gallery.picture(best)
    if enrolled is None:
        return (
            f"there is none of the enrolled face of {best.person}: no thumbnail was kept, and its photograph is gone or changed; "
            "enrol with --thumbnails"
        )
    assert gallery.recogniser is not None
    assert answer.crop is not None
    explanation = explain_pair(gallery.recogniser.model, answer.crop, enrolled)
    draw_pair(draw, answer.crop, enrolled, explanation, title=answer.sentence, names=(name, best.person))
    return None


def _print(answers: list[SearchAnswer], tracks: list[Track]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from oaml.recognition.terminal import origin, print_decision

    console = Console(highlight=False)
    for number, answer in enumerate(answers, 1):
        place = "" if answer.face is None else f" at {answer.face.box[0]:.0f}, {answer.face.box[1]:.0f}"
        if tracks:
            frames = tracks[number - 1].frames
            seen = f"seen in {len(frames)} frames from {frames[0]} to {frames[-1]}"
            console.print(Text(f"face {number} of {len(answers)}, {seen}"))
        elif len(answers) > 1:
            console.print(Text(f"face {number} of {len(answers)}{place}"))
        print_decision(console, answer, answer.person or answer.decision)
        if answer.quality is not None:
            console.print(Text(f"quality of the picture: {answer.quality}"))
        table = Table("person", box=None, padding=(0, 2))
        for column in ("score", "cosine", "both show", "images"):
            table.add_column(column, justify="right")
        for c in answer.candidates:
            numbers = f"{c.score:.3f}", f"{c.cosine:.3f}", f"{100 * c.visible_both:.0f} %", str(c.faces)
            table.add_row(Text(printable(c.person)), *numbers)
        console.print(table)
    first = answers[0]
    if first.limit is not None:
        console.print(Text(f"\nthreshold {first.limit.value:.3f}: {origin(first.limit)}"))
    if first.limit is not None and first.strangers_taken is not None:
        console.print(Text(_strangers(first.strangers_taken, first.people, first.limit)))


def _strangers(taken: float, people: int, limit: Threshold) -> str:
    """How many strangers are taken for somebody of a gallery."""
    from oaml.gallery.answers import strangers_taken

    said = f"{100 * taken:.2g} % of strangers would be taken for somebody here, among {people:,} people"
    if limit.evidence is None:
        return said
    low, high = (
        100 * strangers_taken(people, far) for far in (limit.evidence.far_low, limit.evidence.far_high)
    )
    return f"{said} ({low:.2g} to {high:.2g} % by the interval of the rate)"
