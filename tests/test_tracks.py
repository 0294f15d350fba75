"""Faces of a video: one track each, by place and looks, and what its frames show together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.model import Model
from oaml.photographs.align import STANDARD_LANDMARKS
from oaml.photographs.looks import Face
from oaml.photographs.video import Frame, is_video, read_frames
from oaml.recognition.quality import Quality
from oaml.recognition.recognise import Recogniser
from oaml.recognition.tracks import FACES_POOLED, FRAMES_AWAY, FacesOfFrame, Track, _assign, find_tracks
from oaml.template import Templates, pooled

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, HEIGHT = 480, 130
GOOD = Quality(0.9)


class Prompted:
    """A detector that knows where the faces of the next frame are."""

    def __init__(self) -> None:
        self.places: list[list[int]] = []

    def find(self, photograph: np.ndarray) -> list[Face]:
        """Faces of 112 pixels, the left one first."""
        return [
            Face(np.array([x, 5.0, 112, 112]), STANDARD_LANDMARKS + np.array((x, 5)), 0.9)
            for x in self.places.pop(0)
        ]

    def look(self, picture: np.ndarray) -> list[Face]:
        """None: what is 112x112 is an aligned face."""
        return []

    def follow(self, photograph: np.ndarray, faces: Sequence[Face]) -> None:
        """Nothing is followed."""


@pytest.fixture(scope="module")
def model() -> Model:
    """Random weights with a threshold between what a face has with itself and with another person."""
    made = small_model()
    faces = Recogniser(made).represent([draw_face(p, 0) for p in (1, 2, 3)])
    fused = made.compare_all(faces, faces)["fused"]
    own, other = fused.diag().min(), (fused - 1e6 * torch.eye(3)).max()
    assert own > other + 1
    made.config.thresholds = {"0.001": float((own + other) / 2)}
    return made


def tracks_of(recogniser: Recogniser, frames: Iterable[Frame]) -> list[Track]:
    """As `Recogniser.tracks`, of frames at hand."""
    threshold = recogniser.threshold(1e-3)
    assert threshold is not None
    faces = ((number, recogniser.faces_of_frame(frame)) for number, frame in frames)
    return find_tracks(recogniser.model, threshold.value, faces)


def follow(model: Model, scenes: list[dict[int, np.ndarray]]) -> list[list[tuple[int, int]]]:
    """Tracks of frames that show faces at some places, as (frame, place)."""
    detector = Prompted()
    frames: list[Frame] = []
    for number, scene in enumerate(scenes):
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        for x, face in scene.items():
            image[5:117, x : x + 112] = face
        frames.append((number, image))
        detector.places.append(list(scene))
    tracks = tracks_of(Recogniser(model, detector), frames)  # type: ignore[arg-type]
    return [
        [(n, int(f.box[0])) for n, f in zip(t.frames, t.faces, strict=True) if f is not None] for t in tracks
    ]


def test_two_people_who_pass_each_other(model: Model) -> None:
    a, b = draw_face(1, 0), draw_face(2, 0)
    scenes = [{40 * i: a, 320 - 40 * i: b} for i in range(9) if abs(320 - 80 * i) >= 112]
    tracks = follow(model, scenes)
    assert len(tracks) == 2
    left, right = ([x for _, x in track] for track in tracks)
    assert left == sorted(left)
    assert right == sorted(right, reverse=True)


def test_another_person_in_the_same_place_is_another_track(model: Model) -> None:
    scenes = [{100: draw_face(1, 0)}] * 2 + [{100: draw_face(2, 0)}] * 2
    assert follow(model, scenes) == [[(0, 100), (1, 100)], [(2, 100), (3, 100)]]


def test_a_face_goes_on_where_it_looks_like_an_earlier_frame(model: Model) -> None:
    """The frame before is of no use, as when a head has turned."""
    a, other = draw_face(1, 0), draw_face(2, 0)
    recogniser = Recogniser(model)
    track = Track()
    for number, face in enumerate((a, other)):
        track.add(number, None, face, recogniser.templates([face]), GOOD)
    again = recogniser.templates([a])
    limit = recogniser.threshold(1e-3)
    assert limit is not None
    assert float(model.compare(again, track.latest)["fused"]) < limit.value
    face = draw_face(1, 0)
    assert _assign(model, limit.value, [track], FacesOfFrame([None], [face], again, [GOOD])) == {0: 0}
    third = recogniser.templates([draw_face(3, 0)])
    assert _assign(model, limit.value, [track], FacesOfFrame([None], [face], third, [GOOD])) == {}


@pytest.mark.parametrize(
    ("last", "together", "earlier", "here", "elsewhere"),
    [
        (2.0, 0.0, 0.0, True, True),
        (0.0, 2.0, 0.0, True, True),
        (0.0, 0.0, 2.0, True, False),
        (0.0, 0.0, 0.0, False, False),
        (1.0, 0.0, 0.0, True, True),  # just the threshold
    ],
)
def test_in_its_old_place_a_face_may_look_like_any_frame_elsewhere_like_the_last_or_all(
    last: float, together: float, earlier: float, here: bool, elsewhere: bool, model: Model
) -> None:
    a = draw_face(1, 0)
    recogniser = Recogniser(model)
    template = recogniser.templates([a])
    place, other = (Face(np.array([x, 5.0, 112, 112]), STANDARD_LANDMARKS, 0.9) for x in (0, 300))
    track = Track()
    for number in range(2):
        track.add(number, place, a, template, GOOD)
    scores = torch.tensor([[last, together, earlier, 0.0]])
    matcher = cast(Model, SimpleNamespace(device="cpu", compare_all=lambda *_: {"fused": scores}))
    for where, joins in ((place, here), (other, elsewhere)):
        assert _assign(matcher, 1.0, [track], FacesOfFrame([where], [a], template, [GOOD])) == (
            {0: 0} if joins else {}
        )


@pytest.mark.parametrize(("moved", "joins"), [(0, True), (50, True), (55, True), (80, False), (90, False)])
def test_how_far_a_face_may_move_within_its_old_place(moved: int, joins: bool, model: Model) -> None:
    """Boxes of 112 pixels share .38 of their area after 50 of them, .34 after 55, .17 after 80 and .11 after 90."""
    face = draw_face(1, 0)
    template = Recogniser(model).templates([face])
    was, now = (Face(np.array([x, 5.0, 112, 112]), STANDARD_LANDMARKS, 0.9) for x in (100, 100 + moved))
    track = Track()
    track.add(0, was, face, template, GOOD)
    scores = torch.tensor([[0.0, 0.0, 2.0]])  # it looks like an earlier frame alone
    matcher = cast(Model, SimpleNamespace(device="cpu", compare_all=lambda *_: {"fused": scores}))
    assert _assign(matcher, 1.0, [track], FacesOfFrame([now], [face], template, [GOOD])) == (
        {0: 0} if joins else {}
    )


def test_a_track_says_where_its_face_was_first_and_last(model: Model) -> None:
    face = draw_face(1, 0)
    template = Recogniser(model).templates([face])
    places = [Face(np.array([x, 5.0, 112, 112]), STANDARD_LANDMARKS, 0.9) for x in (10.0, 20.0, 30.0)]
    track = Track()
    for number, place in enumerate(places):
        track.add(4 + number, place, face, template, GOOD)
    said = track.to_dict()
    assert (said["first_frame"], said["last_frame"], said["frames"]) == (4, 6, 3)
    assert (said["first_face"], said["last_face"]) == (places[0].to_dict(), places[2].to_dict())


def test_who_comes_back_in_time_goes_on_with_the_track(model: Model) -> None:
    a, empty = {0: draw_face(1, 0)}, {}
    back = {300: draw_face(1, 0)}
    assert len(follow(model, [a, *[empty] * (FRAMES_AWAY - 1), back])) == 1
    assert len(follow(model, [a, *[empty] * FRAMES_AWAY, back])) == 2


def test_no_two_faces_of_a_frame_share_a_track(model: Model) -> None:
    a = draw_face(1, 0)
    tracks = follow(model, [{0: a}, {0: a, 200: a}, {0: a, 200: a}])
    assert sorted(tracks) == [[(0, 0), (1, 0), (2, 0)], [(1, 200), (2, 200)]]


def test_a_track_shows_what_its_frames_show_together(model: Model) -> None:
    face = draw_face(1, 0)
    recogniser = Recogniser(model)
    (track,) = tracks_of(recogniser, enumerate([face, face, face]))  # aligned faces need no detector
    alone = recogniser.represent(face)
    assert torch.allclose(track.template.embedding, alone.embedding, atol=1e-5)
    assert torch.allclose(track.template.cell_embeddings, alone.cell_embeddings, atol=1e-5)
    assert np.array_equal(track.crop, face)
    said = json.loads(json.dumps(track.to_dict()))
    assert (said["first_frame"], said["last_frame"], said["frames"]) == (0, 2, 3)


@pytest.mark.parametrize("order", ["best first", "best last", "mixed"])
def test_a_track_keeps_the_faces_of_the_best_quality(order: str) -> None:
    count = FACES_POOLED + 6
    generator = torch.Generator().manual_seed(0)
    faces = Templates(
        embedding=torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1),
        norm=torch.rand(count, generator=generator),
        visibility=torch.rand(count, 1, 7, 7, generator=generator)
        * torch.rand(count, 1, 1, 1, generator=generator),
        local=torch.randn(count, 4, 7, 7, generator=generator),
        cell_embeddings=torch.randn(count, 49, 8, generator=generator),
    )
    worth = torch.rand(count, generator=generator).tolist()
    ranked = sorted(range(count), key=lambda i: -worth[i])
    rows = {"best first": ranked, "best last": ranked[::-1], "mixed": list(range(count))}[order]
    track = Track()
    for number, row in enumerate(rows):
        picture = np.full((112, 112, 3), row, np.uint8)
        track.add(number, None, picture, faces[row : row + 1], Quality(worth[row], ("dark",)))
    assert (track.crop == ranked[0]).all()
    assert track.quality == Quality(worth[ranked[0]], ("dark",))
    assert torch.equal(track.latest.norm, faces.norm[rows[-1:]])
    best = pooled(faces[torch.tensor(ranked[:FACES_POOLED])])
    torch.testing.assert_close(track.template.embedding, best.embedding)
    torch.testing.assert_close(track.template.norm, best.norm)
    torch.testing.assert_close(track.template.visibility, best.visibility)
    torch.testing.assert_close(track.template.cell_embeddings, best.cell_embeddings)


def test_videos_and_folders_give_the_same_frames(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    video = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (112, 112))
    for i in range(7):
        face = np.full((112, 112, 3), (200, 30 * i, 20), np.uint8)
        Image.fromarray(face).save(folder / f"{i}.png")
        video.write(np.ascontiguousarray(face[..., ::-1]))
    video.release()
    assert is_video(folder)
    assert is_video(tmp_path / "video.avi")
    assert not is_video(folder / "0.png")
    for every in (1, 3):
        from_video, from_folder = (list(read_frames(p, every)) for p in (tmp_path / "video.avi", folder))
        assert [n for n, _ in from_video] == [n for n, _ in from_folder] == list(range(0, 7, every))
        for (_, a), (_, b) in zip(from_video, from_folder, strict=True):
            assert np.abs(a.astype(int) - b).max() < 12  # red stays red


def test_bad_videos_are_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(OamlError, match=r"nothing\.mp4: no such video"):
        list(read_frames(tmp_path / "nothing.mp4"))
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(OamlError, match=r"bad\.mp4: is no video"):
        list(read_frames(tmp_path / "bad.mp4"))
    with pytest.raises(OamlError, match="every: 0"):
        list(read_frames(tmp_path / "bad.mp4", 0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OamlError, match="no images"):
        Recogniser(model).tracks(tmp_path / "empty")
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "empty" / "a.png")
    with pytest.raises(OamlError, match="oaml download yunet"):
        Recogniser(model).tracks(tmp_path / "empty")
    unfitted = small_model()
    with pytest.raises(OamlError, match="no thresholds"):
        Recogniser(unfitted, name="unfitted").tracks(tmp_path / "empty")
