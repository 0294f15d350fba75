"""A real video with occluders painted on every frame: is the face followed as one track, and is its person known among others?

`python studies/videos.py VIDEO --others ../shared/data/lfw --detector yunet.onnx [--model MODEL]`

The video shows one person. Its first frame is enrolled unoccluded, with a face each of other people; then the video itself and the
same with a mask, a niqab or sunglasses on every frame are searched.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

import oaml
from oaml.photographs.looks import Face
from oaml.photographs.video import read_frames
from oaml.support.folders import list_images

OTHERS = 300
SCALE = 2  # the footage at hand is small


def painted(frame: np.ndarray, face: Face, kind: str) -> np.ndarray:
    """A frame with a flat occluder over a face, uint8 RGB."""
    left, right, nose = np.asarray(face.landmarks)[:3]
    along = right - left  # an eye distance to the face's left
    up = np.array([along[1], -along[0]])
    eyes = (left + right) / 2
    frame = frame.copy()

    def fill(corners: list[np.ndarray], colour: tuple[int, int, int]) -> None:
        cv2.fillPoly(frame, [np.array(corners).round().astype(np.int32)], colour)

    if kind == "mask":
        top = [nose + x * along + y * up for x, y in ((-0.85, 0.25), (0, 0.3), (0.85, 0.25))]
        fill(
            [*top, *(nose + x * along + y * up for x, y in ((0.7, -0.9), (0, -1.35), (-0.7, -0.9)))],
            (120, 170, 200),
        )
    elif kind == "niqab":
        for low, high, half in ((-2.2, -0.35, 1.3), (0.35, 1.3, 1.1)):
            corners = ((-half, low), (half, low), (1.1, high), (-1.1, high))
            fill([eyes + x * along + y * up for x, y in corners], (25, 25, 30))
    elif kind == "sunglasses":
        size = float(np.hypot(*along))
        turn = float(np.degrees(np.arctan2(along[1], along[0])))
        for eye in (left, right):
            cv2.ellipse(
                frame, ((float(eye[0]), float(eye[1])), (0.8 * size, 0.55 * size), turn), (15, 15, 15), -1
            )
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("--others", type=Path, required=True, help="folder of people, a folder each")
    parser.add_argument("--detector", type=Path, default=None)
    parser.add_argument("--model", default=None)
    parser.add_argument("--every", type=int, default=4)
    arguments = parser.parse_args()
    model = oaml.load(arguments.model, arguments.detector)
    frames = [
        (number, cv2.resize(frame, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC))
        for number, frame in read_frames(arguments.video, arguments.every)
    ]
    places = [model.detect(frame)[0] for _, frame in frames]
    with tempfile.TemporaryDirectory() as folder:
        gallery = oaml.Gallery(f"{folder}/gallery", model)
        gallery.enroll("the person of the video", frames[0][1])
        for person in sorted(path for path in arguments.others.iterdir() if path.is_dir())[:OTHERS]:
            gallery.enroll(person.name, list_images(person)[0])
        print(f"{len(frames)} frames, {len(gallery.people()) - 1} others")
        print("| video | tracks | frames of each | shows | answer | score of the person | of the next |")
        print("| --- " * 7 + "|")
        for kind in ("unoccluded", "mask", "niqab", "sunglasses"):
            video = Path(folder) / kind
            video.mkdir()
            for (number, frame), place in zip(frames, places, strict=True):
                occluded = painted(frame, place, kind)
                cv2.imwrite(str(video / f"{number:05d}.png"), np.ascontiguousarray(occluded[..., ::-1]))
            answers = gallery.search_video(video, top=OTHERS)
            lengths = " + ".join(str(len(track.frames)) for track, _ in answers)
            track, answer = answers[0]
            scores = {candidate.person: candidate.score for candidate in answer.candidates}
            own = scores.pop("the person of the video")
            shows = float(track.template.visible()[0])
            print(
                f"| {kind} | {len(answers)} | {lengths} | {shows:.2f} | {answer.person or answer.decision} "
                f"| {own:.2f} | {max(scores.values()):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
