"""The Python API: `oaml.load()` gives a model with its detector, which takes images as they come.

Colour order, said once: arrays are RGB. An image of 112x112 pixels is a face that is aligned already, unless a detector finds its
face elsewhere than an aligned one has it; in any other one faces are found and aligned, which needs a detector. `aligned` decides
by hand. Scores: higher is more similar. Threads may share a recogniser.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.errors import OamlError
from oaml.photographs.detect import Detector
from oaml.photographs.looks import Face
from oaml.photographs.subjects import Subject, find_subjects, is_aligned, large_enough, load_detector
from oaml.recognition.decision import Threshold, VerifyAnswer, decide_pairs, fitted_threshold
from oaml.support.files import Image, name_of, read_photograph
from oaml.support.images import path_of, several

if TYPE_CHECKING:
    from oaml.model import Model
    from oaml.photographs.video import Frame
    from oaml.recognition.quality import Quality
    from oaml.recognition.tracks import FacesOfFrame, Track
    from oaml.template import Templates


def load(
    model: str | Path | None = None, detector: str | Path | None = None, device: str = "auto"
) -> Recogniser:
    """A model and a detector, ready for images.

    Args:
        model: a model folder, as `oaml adapt` writes it, or published weights; by default the starter model of the package.
        detector: a YuNet file; by default the one of `oaml download yunet`, or none: aligned faces need none.
        device: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        OamlError: no such model, detector or device.
    """
    from oaml.inference import load_model

    finder = load_detector(None if detector is None else path_of(detector, "detector"))
    if model is not None:
        path_of(model, "model")
    name = "starter" if model is None else str(model)
    return Recogniser(load_model(name, device), finder, name)


class Recogniser:
    """A model with its detector. Threads may share it.

    Args:
        model: in eval mode, on any device.
        detector: None for aligned faces alone.
        name: of the model in errors and answers.
    """

    def __init__(self, model: Model, detector: Detector | None = None, name: str = "the model") -> None:
        self.model, self.detector, self.name = model, detector, name

    def detect(self, image: Image) -> list[Face]:
        """All faces of an image with box, five landmarks and confidence, the largest and surest first; none is an empty list.

        Raises:
            OamlError: an unreadable image, or no detector.
        """
        if self.detector is None:
            raise OamlError(
                f"{name_of(image)}: finding faces needs a detector; `oaml download yunet` gets one, "
                "oaml.load(detector=FILE) names one"
            )
        return self.detector.find(read_photograph(image))

    def subjects(self, image: Image, aligned: bool | None = None) -> list[Subject]:
        """The faces of an image that are large enough to be compared, the largest and surest first; one at least.

        Args:
            image: a photograph or an aligned face.
            aligned: which of the two it is; None looks, where it is 112x112.

        Raises:
            OamlError: an unreadable image, no face, too small a face, or no detector for an image that is no aligned face.
        """
        return find_subjects(image, self.detector, aligned)

    def faces_of_frame(self, frame: np.ndarray, before: Sequence[Face] = ()) -> FacesOfFrame | None:
        """As `subjects`, of one frame of a video, uint8 RGB [H,W,3]; None where there is no usable face.

        Args:
            before: faces of the frame before; where all of them are seen again no others are looked for.
        """
        from oaml.photographs.usable import LEAST_USABLE
        from oaml.recognition.tracks import FacesOfFrame

        if is_aligned(frame, self.detector):
            subjects = [Subject(frame, None)]
        else:
            followed = self.detector.follow(frame, before) if self.detector and before else None
            subjects = large_enough(frame, followed or self.detect(frame))
        subjects = [subject for subject in subjects if subject.usable >= LEAST_USABLE]
        if not subjects:
            return None
        places, crops = [subject.face for subject in subjects], [subject.crop for subject in subjects]
        templates = self.templates(crops)
        return FacesOfFrame(places, crops, templates, self.qualities(crops, templates, places))

    def tracks(self, video: str | Path, every: int = 1) -> list[Track]:
        """The faces of a video or of a folder of frames, each followed through it; see `oaml.recognition.tracks`.

        Args:
            video: a file, or a folder of images in the order of their names.
            every: look at every n-th frame only.

        Raises:
            OamlError: a video or frame that can't be read; no detector; a model without thresholds.
        """
        from oaml.photographs.video import read_frames
        from oaml.recognition.tracks import SAME_TRACK_FAR, find_tracks

        threshold = self.threshold(SAME_TRACK_FAR)
        if threshold is None:
            raise OamlError(
                f"{self.name}: has no thresholds, without which faces can't be followed; fit them with `oaml calibrate`"
            )
        return find_tracks(self.model, threshold.value, self._faces(read_frames(video, every)))

    def _faces(self, frames: Iterable[Frame]) -> Iterator[tuple[int, FacesOfFrame | None]]:
        """The faces of every frame: those of the frame before followed, and all looked for in every n-th frame."""
        from oaml.recognition.tracks import LOOKED_FOR_EVERY

        before: list[Face] = []
        for count, (number, frame) in enumerate(frames):
            faces = self.faces_of_frame(frame, before if count % LOOKED_FOR_EVERY else ())
            before = [place for place in faces.places if place is not None] if faces else []
            yield number, faces

    def align(self, image: Image, aligned: bool | None = None) -> list[np.ndarray]:
        """The faces that `subjects` finds as aligned crops, uint8 RGB [112,112,3]."""
        return [subject.crop for subject in self.subjects(image, aligned)]

    def templates(self, crops: Sequence[np.ndarray]) -> Templates:
        """What is kept of aligned faces, on the CPU.

        Args:
            crops: one or more, uint8 RGB [112,112,3].

        Raises:
            OamlError: none, or an array of another kind.
        """
        from oaml.inference import extract

        if not len(crops):
            raise OamlError("templates: no faces; give one at least")
        return extract(self.model, crops, len(crops))

    def qualities(
        self, crops: Sequence[np.ndarray], templates: Templates, faces: Sequence[Face | None]
    ) -> list[Quality]:
        """How good each picture is, with reasons.

        Args:
            crops: aligned faces, uint8 RGB [112,112,3].
            templates: of them.
            faces: where each was found; None for one that came aligned.
        """
        from oaml.recognition.quality import quality_of

        typical = self.model.config.typical
        return [
            quality_of(crop, templates[i : i + 1], face, typical)
            for i, (crop, face) in enumerate(zip(crops, faces, strict=True))
        ]

    def represent(self, images: Image | Iterable[Image], aligned: bool | None = None) -> Templates:
        """Templates of the largest face of each image.

        Args:
            images: one image or any iterable of them, whose order the templates have; none may be without a face.
            aligned: as for `subjects`.

        Raises:
            OamlError: an empty list, or an image that `subjects` refuses.
        """
        listed = several(images)
        if not listed:
            raise OamlError("represent: no images; give one at least")
        return self.templates([self.subjects(image, aligned)[0].crop for image in listed])

    def threshold(self, far: float = 0.001, own: float | None = None) -> Threshold | None:
        """The threshold to decide by: the user's own or, without one, the model's at a false-accept rate.

        See `oaml.recognition.decision.fitted_threshold`.
        """
        if own is None:
            return fitted_threshold(self.model.config, far, self.name)
        return Threshold.of_user(
            float(own) if isinstance(own, Real) else own
        )  # numbers of NumPy are numbers too

    def verify(
        self,
        a: Image,
        b: Image,
        far: float = 0.001,
        threshold: float | None = None,
        aligned: bool | None = None,
    ) -> VerifyAnswer:
        """Are the largest faces of two images one person?

        Args:
            a, b: images.
            far: share of impostor pairs that may pass; one of those that the model has thresholds for.
            threshold: decide at this fused score instead, 0 included.
            aligned: as for `subjects`, of both images.

        Raises:
            OamlError: as `subjects`; a rate without a threshold, or a threshold that is no finite number.
        """
        first, second = (self.subjects(image, aligned)[:1] for image in (a, b))
        return self.verify_subjects(first, second, far, threshold)[0]

    def verify_all(
        self,
        a: Image,
        b: Image,
        far: float = 0.001,
        threshold: float | None = None,
        aligned: bool | None = None,
    ) -> list[VerifyAnswer]:
        """`verify` for every face of one image with every face of the other, the largest with the largest first."""
        first, second = (self.subjects(image, aligned) for image in (a, b))
        return self.verify_subjects(first, second, far, threshold)

    def verify_subjects(
        self, a: Sequence[Subject], b: Sequence[Subject], far: float = 0.001, threshold: float | None = None
    ) -> list[VerifyAnswer]:
        """`verify_all` for faces that were looked for before."""
        limit = self.threshold(far, threshold)
        crops = [subject.crop for subject in (*a, *b)]
        pairs = list(product(range(len(a)), range(len(a), len(a) + len(b))))
        faces = [subject.face for subject in (*a, *b)]
        return decide_pairs(self.model, crops, pairs, limit, faces)
