"""What `oaml verify` and `oaml search` print to a terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from oaml.recognition.decision import Answer, Threshold, VerifyAnswer, told_apart
from oaml.support.names import printable

if TYPE_CHECKING:
    from rich.console import Console


def print_decision(console: Console, answer: Answer, title: str) -> None:
    """A title, as the person that was recognised, in the colour of the decision; and the reason for it."""
    from rich.text import Text

    positive, negative = ("same person", "known person"), ("different people", "unknown person")
    colour = (
        "green" if answer.decision in positive else "magenta" if answer.decision in negative else "yellow"
    )
    console.print(Text(printable(title), style=f"bold {colour}"))
    console.print(Text(printable(answer.reason + (f": {answer.remedy}" if answer.remedy else ""))))


def print_pair(console: Console, answer: VerifyAnswer, a: str, b: str, draw: Path | None) -> None:
    """The answer for two faces, called a and b, with all of its numbers, and where the picture of it is."""
    from rich.table import Table
    from rich.text import Text

    print_decision(console, answer, answer.decision)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: str, meaning: str) -> None:
        # as Text: a file name with brackets is no style
        table.add_row(Text(name), Text(value), Text(printable(meaning)))

    row("", "", "")
    score, threshold, where_from = f"{answer.score:.3f}", "none", ""
    if answer.limit is not None:
        score, threshold = told_apart(answer.score, answer.limit.value)
        where_from = origin(answer.limit)
    row("score", score, "fused: what decides; larger = more similar")
    row("threshold", threshold, where_from)
    row("", "", "")
    row("first face", f"{100 * answer.visible_a:.0f} %", f"shows of {a}; quality {answer.quality_a}")
    row("second face", f"{100 * answer.visible_b:.0f} %", f"shows of {b}; quality {answer.quality_b}")
    row("both", f"{100 * answer.visible_both:.0f} %", "of the face shows in both, in the same places")
    row("", "", "")
    row("joint", f"{answer.joint:.3f}", "part of the score: what both show, compared as a whole")
    row("qaconv", f"{answer.qaconv:.3f}", "part of the score: cell by cell, best matches")
    row("cosine", f"{answer.cosine:.3f}", "of the network alone, occluders too, to compare (-1 to 1)")
    console.print(table)
    if draw is not None:
        console.print(Text(f"\npicture: {printable(str(draw))}"), soft_wrap=True)


def print_all(console: Console, answers: list[VerifyAnswer], faces_b: int) -> None:
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


def origin(threshold: Threshold) -> str:
    """Where a threshold comes from and what it stands for."""
    if threshold.far is None:
        return "your own; how many impostor pairs reach it is not known"
    fitted_on = threshold.fitted_on or "data that the model doesn't state"
    behind, sure = threshold.evidence, ""
    if behind is not None:
        sure = (
            f"; measured {behind.far:.2g}, 95 % by person {behind.far_low:.2g} to {behind.far_high:.2g}, "
            f"on {behind.pairs:,} pairs of {behind.people:,} people"
        )
    return f"reached by {_odds(threshold.far)} impostor pairs (FAR {threshold.far:g}{sure}); fitted on {fitted_on}"


def _odds(far: float) -> str:
    """0.001 -> "1 in 1,000"."""
    one_in = 1 / far
    if math.isclose(one_in, round(one_in), rel_tol=1e-6):
        return f"1 in {round(one_in):,}"
    return f"{100 * far:g} % of"
