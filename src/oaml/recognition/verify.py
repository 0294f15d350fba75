"""`oaml verify`: are two faces the same person? Decided by the fused score, and only where enough of both faces shows."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from oaml.errors import OamlError
from oaml.photographs.subjects import Subject
from oaml.recognition.decision import Threshold
from oaml.recognition.explain import explain_pair
from oaml.recognition.picture import draw_pair, need_free_name
from oaml.recognition.terminal import print_all, print_pair
from oaml.support.files import read_image

if TYPE_CHECKING:
    from oaml.recognition.recognise import Recogniser


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
    aligned: bool | None = None,
    detector: Path | None = None,
    device: str = "auto",
) -> None:
    """Say whether two faces are the same person, why, and how sure the threshold makes it.

    Decides by the fused score: at the model's threshold for the false-accept rate `far`, or at your own. Where both faces show
    less than 5 % of the face in common the answer is "too little visible to decide", and where an image shows nothing of a face
    that can be compared it is "no usable face", whatever the threshold. The plain cosine of the network stands beside the scores.

    An image of 112x112 is an aligned face, unless a face is found in it that lies elsewhere than an aligned one does. In any other
    faces are found and aligned, which needs the detector of `oaml download yunet`. Several people in a photograph get an answer
    each; the first is that of the largest faces.

    Example:
        oaml verify a.jpg b.jpg --draw why.png

    Args:
        a: a photograph, or a face aligned to 112x112, in colour.
        b: the other one.
        model: a model folder, as `oaml adapt` and `oaml train` write it, or published weights; by default the starter model.
        far: share of impostor pairs that may pass; one of those that the model has thresholds for.
        threshold: decide at this fused score instead; any finite number.
        draw: PNG to write of the first answer: what shows, what was matched, and what spoke for and against.
        json: print one JSON object to stdout and nothing else.
        resize: take images of another size for aligned faces and scale them.
        aligned: images of 112x112 are aligned faces (`--not-aligned`: photographs); by default they are looked at.
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

    from oaml.recognition.recognise import load

    recogniser = load(model, detector, device)
    subjects_a, subjects_b = (_subjects(recogniser, Path(path), resize, aligned) for path in (a, b))
    answers = recogniser.verify_subjects(subjects_a, subjects_b, far, threshold)
    answer = answers[0]
    if draw is not None:
        first, second = answer.crops
        explanation = explain_pair(recogniser.model, first, second)
        decided = answer.decision in ("same person", "different people")
        needed = explanation.needed(answer.score, answer.limit.value) if decided and answer.limit else None
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
    print_pair(console, answer, _called(Path(a), subjects_a[0]), _called(Path(b), subjects_b[0]), draw)
    if len(answers) > 1:
        print_all(console, answers, len(subjects_b))


def _subjects(recogniser: Recogniser, path: Path, resize: bool, aligned: bool | None) -> list[Subject]:
    if resize:
        return [Subject(read_image(path, resize=True), None)]
    try:
        return recogniser.subjects(path, aligned)
    except OamlError as error:
        if recogniser.detector is None and "oaml download" in str(error):
            raise OamlError(f"{error}; --resize scales a face that is aligned already") from None
        raise


def _called(path: Path, subject: Subject) -> str:
    return str(path) if subject.faces == 1 else f"{path}: the largest of {subject.faces} faces"
