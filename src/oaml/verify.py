"""`oaml verify`: are two faces the same person? Decided by the fused score, and only where enough of both faces shows."""

from __future__ import annotations

import math
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from oaml.decision import Answer, Threshold, told_apart
from oaml.errors import OamlError
from oaml.explain import draw_pair, explain_pair, printable
from oaml.files import read_image
from oaml.photographs import Subject

if TYPE_CHECKING:
    from rich.console import Console

    from oaml.recognise import Recogniser


def verify(
    a: Path,
    b: Path,
    *,
    model: str | None = None,
    far: float = 0.001,
    threshold: float | None = None,
    draw: Path | None = None,
    json: bool = False,
    resize: bool = False,
    detector: Path | None = None,
    device: str = "auto",
) -> None:
    """Say whether two faces are the same person, why, and how sure the threshold makes it.

    Decides by the fused score: at the model's threshold for the false-accept rate `far`, or at your own. Where both faces show
    less than 5 % of the face in common the answer is "too little visible to decide", whatever the threshold. The plain cosine
    of the network stands beside the scores.

    A picture of 112x112 is an aligned face. In any other faces are found and aligned, which needs the detector of
    `oaml download yunet`. Several people in a photograph get an answer each; the first is that of the largest faces.

    Example:
        oaml verify a.jpg b.jpg --draw why.png

    Args:
        a: a photograph, or a face aligned to 112x112, in colour.
        b: the other one.
        model: a model folder, as `oaml adapt --out` and `oaml train --out` write it; by default the starter model.
        far: share of pairs of different people that may pass; one of those that the model has thresholds for.
        threshold: decide at this fused score instead; any finite number.
        draw: PNG to write of the first answer: what shows, what was matched, and what spoke for and against.
        json: print one JSON object to stdout and nothing else.
        resize: take pictures of another size for aligned faces and scale them.
        detector: a YuNet file; by default the one of `oaml download yunet`.
        device: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        OamlError: a bad image, model, rate, threshold or name for the picture (named). Nothing is printed or written then.
    """
    if threshold is not None:
        Threshold.of_user(threshold)
    if draw is not None:
        draw = Path(draw)
        need_free_name(draw, (Path(a), Path(b)))

    from oaml.recognise import load

    recogniser = load(model, detector, device)
    subjects_a, subjects_b = (_subjects(recogniser, Path(path), resize) for path in (a, b))
    answers = recogniser.verify_subjects(subjects_a, subjects_b, far, threshold)
    answer = answers[0]
    if draw is not None:
        assert answer.crops is not None
        first, second = answer.crops
        explanation = explain_pair(recogniser.model, first, second)
        decided = answer.decision in ("same person", "different people")
        needed = (
            explanation.needed(answer.score, answer.threshold)
            if decided and answer.threshold is not None
            else None
        )
        names = Path(a).name, Path(b).name
        draw_pair(draw, first, second, explanation, title=answer.sentence, needed=needed, names=names)
    if json:
        facts = {"a": str(a), "b": str(b), "model": recogniser.name, **answer.to_dict()}
        facts |= {"faces_a": subjects_a[0].faces, "faces_b": subjects_b[0].faces}
        facts |= {"others": [other.to_dict() for other in answers[1:]]}
        print(dumps({**facts, "picture": None if draw is None else str(draw)}, indent=2, allow_nan=False))
        return

    from rich.console import Console

    console = Console(highlight=False)
    _print(console, answer, _called(Path(a), subjects_a[0]), _called(Path(b), subjects_b[0]), draw)
    if len(answers) > 1:
        _print_all(console, answers, len(subjects_b))


def _subjects(recogniser: Recogniser, path: Path, resize: bool) -> list[Subject]:
    if resize:
        return [Subject(read_image(path, resize=True), None)]
    try:
        return recogniser.subjects(path)
    except OamlError as error:
        if recogniser.detector is None and "oaml download" in str(error):
            raise OamlError(f"{error}; --resize scales a face that is aligned already") from None
        raise


def _called(path: Path, subject: Subject) -> str:
    return str(path) if subject.faces == 1 else f"{path}: the largest of {subject.faces} faces"


def need_free_name(draw: Path, inputs: tuple[Path, ...]) -> None:
    """Refuse a name for a picture that would fail after the work, or overwrite a face."""
    if draw.suffix.lower() != ".png":
        raise OamlError(f"{draw}: the picture is a PNG; give a name that ends in .png")
    if draw.is_dir():
        raise OamlError(f"{draw}: is a folder; name a file to write")
    if any(draw.resolve() == path.resolve() for path in inputs):
        raise OamlError(f"{draw}: is one of the two faces; choose another name for the picture")


def _print(console: Console, answer: Answer, a: str, b: str, draw: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    colour = {"same person": "green", "different people": "magenta"}.get(answer.decision, "yellow")
    console.print(Text(answer.decision, style=f"bold {colour}"))
    console.print(Text(answer.reason + (f": {answer.remedy}" if answer.remedy else "")))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: str, meaning: str) -> None:
        # as Text: a file name with brackets is no style
        table.add_row(Text(name), Text(value), Text(printable(meaning)))

    row("", "", "")
    if answer.threshold is not None:
        shown, limit = told_apart(answer.score, answer.threshold)
        row("score", shown, "fused: what decides; larger = more alike")
        row("threshold", limit, origin(answer.far, answer.fitted_on))
    else:
        row("score", f"{answer.score:.3f}", "fused: what decides; larger = more alike")
        row("threshold", "none", "")
    row("", "", "")
    row("first face", f"{100 * answer.visible_a:.0f} %", f"shows of {a}")
    row("second face", f"{100 * answer.visible_b:.0f} %", f"shows of {b}")
    row("both", f"{100 * answer.visible_both:.0f} %", "of the face shows in both, in the same places")
    row("", "", "")
    row("joint", f"{answer.joint:.3f}", "part of the score: what both show, compared as a whole")
    row("qaconv", f"{answer.qaconv:.3f}", "part of the score: cell by cell, best matches")
    row("cosine", f"{answer.cosine:.3f}", "of the network alone, covers and all, to compare (-1 to 1)")
    console.print(table)
    if draw is not None:
        console.print(Text(f"\npicture: {printable(str(draw))}"), soft_wrap=True)


def _print_all(console: Console, answers: list[Answer], faces_b: int) -> None:
    """One line a pair of faces, numbered from the largest."""
    from rich.table import Table

    table = Table("first", "second", "answer", "score", "both show", title="\nall faces, the largest first")
    for number, answer in enumerate(answers):
        places = [
            "" if face is None else f" at {face.box[0]:.0f}, {face.box[1]:.0f}"
            for face in (answer.face_a, answer.face_b)
        ]
        table.add_row(
            f"{number // faces_b + 1}{places[0]}",
            f"{number % faces_b + 1}{places[1]}",
            answer.decision,
            f"{answer.score:.3f}",
            f"{100 * answer.visible_both:.0f} %",
        )
    console.print(table)


def origin(far: float | None, fitted_on: str | None) -> str:
    """Where a threshold comes from and what it stands for."""
    if far is None:
        return "your own; how many strangers it lets pass is not known"
    fitted_on = fitted_on or "data that the model doesn't state"
    return f"reached by {_odds(far)} pairs of different people (FAR {far:g}); fitted on {fitted_on}"


def _odds(far: float) -> str:
    """0.001 -> "1 in 1,000"."""
    one_in = 1 / far
    if math.isclose(one_in, round(one_in), rel_tol=1e-6):
        return f"1 in {round(one_in):,}"
    return f"{100 * far:g} % of"
