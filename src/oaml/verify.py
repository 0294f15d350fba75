"""`oaml verify`: are two faces the same person? Decided by the fused score, and only where enough of both faces shows."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from oaml.errors import OamlError
from oaml.explain import draw_pair, explain_pair, printable
from oaml.files import read_image
from oaml.photographs import Subject, find_subjects, load_detector

if TYPE_CHECKING:
    from oaml.model import Model, ModelConfig

Decision = Literal["same person", "different people", "too little visible to decide", "no threshold"]

LEAST_SHARED = 0.05
"""Share of the face that both must show for a decision; a twentieth is about half an eye region, 2.5 of 49 cells.

Below it a score says little more than that little shows, and no threshold was fitted on such pairs.
"""

REMEDY = "fit thresholds with `oaml adapt --backbone MODEL --people FACES --out NEW`, or give one of your own with --threshold"


@dataclass(frozen=True)
class Threshold:
    """Where the line is drawn between the same person and different people."""

    value: float
    """A pair counts as the same person from this fused score on."""
    far: float | None = None
    """Share of pairs of different people that reach it; None for a threshold of the user's own."""
    fitted_on: str | None = None
    """What it was fitted on, in words; None where nobody states it."""


@dataclass(frozen=True)
class Answer:
    """What is said of two faces. Scores are larger for more alike faces; shares of a face are in [0,1]."""

    decision: Decision
    reason: str
    """One clause that gives the numbers behind the decision."""
    score: float
    """The fused score, which decides."""
    threshold: float | None
    threshold_from: Literal["model", "user"] | None
    far: float | None
    fitted_on: str | None
    joint: float
    qaconv: float
    cosine: float
    """Of the whole embeddings, as if nothing were covered: the network's plain score, to compare."""
    visible_a: float
    visible_b: float
    visible_both: float
    """Share of the face that both show in the same places."""
    least_visible_both: float = LEAST_SHARED
    """Below this nothing is decided."""

    @property
    def remedy(self) -> str | None:
        """What to do about an answer that is no decision."""
        if self.decision == "no threshold":
            return REMEDY
        if self.decision == "too little visible to decide":
            return "take a picture on which more of the face shows"
        return None

    @property
    def sentence(self) -> str:
        """Decision, reason and what both show, for a title."""
        said = f"{self.decision[0].upper()}{self.decision[1:]}: {self.reason}"
        if self.decision == "too little visible to decide":  # the reason says it already
            return said
        return f"{said}; both show {100 * self.visible_both:.0f} % of the face"


def fitted_threshold(config: ModelConfig, far: float, source: str = "config.json") -> Threshold | None:
    """The threshold of the fused score that a model has for a false-accept rate; None for a model without any.

    Args:
        far: share of pairs of different people that may pass, above 0 and below 1.
        source: the model's name in errors.

    Raises:
        OamlError: no rate; a model with thresholds, but not for this one; thresholds that are no numbers.
    """
    if not 0 < far < 1:
        raise OamlError(
            f"far: {far:g} is no share of pairs; give a number above 0 and below 1, such as 0.001"
        )
    try:
        stored = {float(key): float(value) for key, value in config.thresholds.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise OamlError(
            f"{source}: thresholds in config.json are damaged ({error}); copy the model again"
        ) from error
    if not stored:
        return None
    for known, value in stored.items():
        if math.isclose(known, far, rel_tol=1e-6):
            if not math.isfinite(value):
                raise OamlError(
                    f"{source}: its threshold at FAR {far:g} is {value}: too few pairs when it was fitted; choose another --far"
                )
            fitted_on = config.training.get("thresholds_fitted_on")
            return Threshold(value, far, None if fitted_on is None else str(fitted_on))
    known = ", ".join(f"{rate:g}" for rate in sorted(stored, reverse=True))
    raise OamlError(f"{source}: no threshold at FAR {far:g}; it has {known}: choose one with --far")


def decide(score: float, visible_both: float, threshold: float | None) -> tuple[Decision, str]:
    """Decision and the reason for it. Too little in common comes before any threshold, a user's own included."""
    if visible_both < LEAST_SHARED:
        return (
            "too little visible to decide",
            f"both show {100 * visible_both:.1f} % of the face, a decision needs {100 * LEAST_SHARED:g} %",
        )
    if threshold is None:
        return "no threshold", f"score {score:.3f}, and the model has none to judge it by"
    shown, limit = _told_apart(score, threshold)
    if score >= threshold:
        return "same person", f"score {shown} reaches the threshold {limit}"
    return "different people", f"score {shown} stays below the threshold {limit}"


def compare_faces(
    model: Model, image_a: np.ndarray, image_b: np.ndarray, threshold: Threshold | None
) -> Answer:
    """Score two aligned faces and decide.

    Args:
        model: in eval mode, on any device.
        image_a, image_b: uint8 RGB [112,112,3].
        threshold: None where there is none.

    Returns:
        The scores are those of `oaml score` for the pair, bit for bit, on a CPU.

    Raises:
        OamlError: a score is not finite.
    """
    from oaml.evaluation.scoring import extract, score_pairs
    from oaml.joint import cell_visibility

    faces = extract(model, [image_a, image_b], 2)
    scores = score_pairs(
        model, faces, np.array([0]), faces, np.array([1]), plain=False, name=lambda _: "the two faces"
    )
    by_name = {name: float(values[0]) for name, values in scores.items()}
    visible = [float(share) for share in faces.visible()]
    a, b = cell_visibility(faces.visibility.double())
    shown = float((a * b).mean())
    decision, reason = decide(by_name["fused"], shown, None if threshold is None else threshold.value)
    return Answer(
        decision=decision,
        reason=reason,
        score=by_name["fused"],
        threshold=None if threshold is None else threshold.value,
        threshold_from=None if threshold is None else "user" if threshold.far is None else "model",
        far=None if threshold is None else threshold.far,
        fitted_on=None if threshold is None else threshold.fitted_on,
        joint=by_name["joint"],
        qaconv=by_name["qaconv_visibility"],
        cosine=by_name["cosine"],
        visible_a=visible[0],
        visible_b=visible[1],
        visible_both=shown,
    )


def verify(
    a: Path,
    b: Path,
    *,
    model: str,
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

    A picture of 112x112 is an aligned face. In any other the largest face is found and aligned, which needs the detector of
    `oaml download yunet`.

    Example:
        oaml verify a.jpg b.jpg --model runs/adapted --draw why.png

    Args:
        a: a photograph, or a face aligned to 112x112, in colour.
        b: the other one.
        model: a model folder, as `oaml adapt --out` and `oaml train --out` write it.
        far: share of pairs of different people that may pass; one of those that the model has thresholds for.
        threshold: decide at this fused score instead; any finite number.
        draw: PNG to write: what shows, what was matched, and what spoke for and against.
        json: print one JSON object to stdout and nothing else.
        resize: take pictures of another size for aligned faces and scale them.
        detector: a YuNet file; by default the one of `oaml download yunet`.
        device: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        OamlError: a bad image, model, rate, threshold or name for the picture (named). Nothing is printed or written then.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise OamlError(f"threshold: {threshold} is no score; give a finite number")
    if draw is not None:
        draw = Path(draw)
        _need_free_name(draw, (Path(a), Path(b)))
    subjects = _subjects((Path(a), Path(b)), resize, detector)

    from oaml.evaluation.scoring import load_model

    loaded = load_model(model, device)
    images = [subject.crop(loaded) for subject in subjects]
    limit = fitted_threshold(loaded.config, far, model) if threshold is None else Threshold(threshold)
    answer = compare_faces(loaded, images[0], images[1], limit)
    if draw is not None:
        explanation = explain_pair(loaded, images[0], images[1])
        decided = answer.decision in ("same person", "different people")
        draw_pair(
            draw,
            images[0],
            images[1],
            explanation,
            title=answer.sentence,
            needed=explanation.needed(answer.score, limit.value) if limit and decided else None,
            names=(Path(a).name, Path(b).name),
        )
    if json:
        facts = {"a": str(a), "b": str(b), "model": str(model), **asdict(answer), "remedy": answer.remedy}
        facts |= {"faces_a": subjects[0].faces, "faces_b": subjects[1].faces}
        print(dumps({**facts, "picture": None if draw is None else str(draw)}, indent=2, allow_nan=False))
    else:
        _print(answer, _called(Path(a), subjects[0]), _called(Path(b), subjects[1]), draw)


def _subjects(paths: tuple[Path, Path], resize: bool, detector: Path | None) -> list[Subject]:
    """The largest face of either picture."""
    if resize:
        return [Subject(read_image(path, resize=True), None) for path in paths]
    finder = load_detector(detector)
    try:
        return [find_subjects(path, finder)[0] for path in paths]
    except OamlError as error:
        if finder is None and "oaml download" in str(error):
            raise OamlError(f"{error}; --resize scales a face that is aligned already") from None
        raise


def _called(path: Path, subject: Subject) -> str:
    return str(path) if subject.faces == 1 else f"{path}: the largest of {subject.faces} faces"


def _need_free_name(draw: Path, inputs: tuple[Path, ...]) -> None:
    """Refuse what would fail after the work, or overwrite a face."""
    if draw.suffix.lower() != ".png":
        raise OamlError(f"{draw}: the picture is a PNG; give a name that ends in .png")
    if draw.is_dir():
        raise OamlError(f"{draw}: is a folder; name a file to write")
    if any(draw.resolve() == path.resolve() for path in inputs):
        raise OamlError(f"{draw}: is one of the two faces; choose another name for the picture")


def _print(answer: Answer, a: str, b: str, draw: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
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
        shown, limit = _told_apart(answer.score, answer.threshold)
        row("score", shown, "fused: what decides; larger = more alike")
        row("threshold", limit, _origin(answer))
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


def _origin(answer: Answer) -> str:
    """Where a threshold comes from and what it stands for."""
    if answer.far is None:
        return "your own; how many strangers it lets pass is not known"
    fitted_on = answer.fitted_on or "data that the model doesn't state"
    return f"reached by {_odds(answer.far)} pairs of different people (FAR {answer.far:g}); fitted on {fitted_on}"


def _odds(far: float) -> str:
    """0.001 -> "1 in 1,000"."""
    one_in = 1 / far
    if math.isclose(one_in, round(one_in), rel_tol=1e-6):
        return f"1 in {round(one_in):,}"
    return f"{100 * far:g} % of"


def _told_apart(score: float, threshold: float) -> tuple[str, str]:
    """Both with as many digits as it takes to see which is larger, three at least."""
    digits = 3
    while score != threshold and digits < 17 and f"{score:.{digits}f}" == f"{threshold:.{digits}f}":
        digits += 1
    return f"{score:.{digits}f}", f"{threshold:.{digits}f}"
