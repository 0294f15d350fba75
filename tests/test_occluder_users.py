"""Everything that covers faces by name: it draws what it always drew, and the same wherever the folder of faces lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oaml.adaptation.cache import CachePlan, FeatureCache
from oaml.adaptation.held_out import SHARED_OCCLUDER, HeldOut
from oaml.data import DataConfig, OcclusionStream, RecognitionStream
from oaml.datasets.drawn import draw_face
from oaml.datasets.people import DrawnFolder, PeopleFolder
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import KINDS, Occluder, load_mask_pictures
from oaml.occluders.command import occlude_folder
from oaml.train_val import TrainConfig, Validation

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parent / "golden" / "occluders.npz"
GREY = np.full((112, 112, 3), 180, np.uint8)
PEOPLE = DrawnFolder(4, 2)
Faces = Iterable[tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rgba = np.zeros((200, 300, 4), np.uint8)
    rgba[40:180, 50:250] = (200, 30, 30, 255)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(rgba).save(tmp_path / "pictures" / "red.png")
    return tmp_path / "pictures"


def small() -> Model:
    torch.manual_seed(0)
    net = NetConfig(architecture="ir_mini", embedding_size=16, occlusion_stage=3, branch="stage")
    return Model(ModelConfig(net=net)).eval()


def of_cache(people: PeopleFolder | DrawnFolder, folder: Path) -> FeatureCache:
    return FeatureCache(folder, small(), people, CachePlan.make(people, list(KINDS), 7, 3), [])


def of_held_out(held_out: HeldOut) -> Faces:
    shared = [SHARED_OCCLUDER.format(kind) for kind in KINDS] if held_out.group is not None else []
    for condition in (*KINDS, *shared):
        yield from zip(held_out._faces(condition), held_out.true[condition], strict=True)


def cached(_: Path, folder: Path) -> Faces:
    cache = of_cache(PEOPLE, folder)
    return (cache.face(i) for i in range(len(cache.plan.rows)))


def held_out_for_fitting(_: Path, __: Path) -> Faces:
    return of_held_out(HeldOut(small(), PEOPLE, KINDS, 5, "a", everybody=True, groups=2))


def held_out_for_judging(pictures: Path, _: Path) -> Faces:
    return of_held_out(HeldOut(small(), PEOPLE, KINDS, 5, "b", load_mask_pictures(pictures)))


def evaluated(pictures: Path, _: Path) -> Faces:
    occluder = Occluder(3, "b", load_mask_pictures(pictures))  # what `evaluate` measures with
    return (occluder(GREY, kind, name) for kind in KINDS for name in ("Ann/1.jpg", "shared cover 3"))


def samples(items: Iterable[dict]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return ((item["image"].permute(1, 2, 0).numpy(), item["mask"][0].numpy()) for item in items)


def recognition(pictures: Path, _: Path) -> Faces:
    stream = RecognitionStream(PEOPLE, DataConfig(drawn_people=4, mask_pictures=pictures))
    return samples(stream[i % 8, i] for i in range(32))


def occlusion(pictures: Path, _: Path) -> Faces:
    stream = OcclusionStream(PEOPLE, DataConfig(drawn_people=4, mask_pictures=pictures))
    return samples(stream[i % 16, i] for i in range(32))


def validated(_: Path, out: Path) -> Faces:
    return samples(Validation(PEOPLE, TrainConfig(data=DataConfig(drawn_people=4), out=out)).items)


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("cache", cached),
        ("held out a", held_out_for_fitting),
        ("held out b", held_out_for_judging),
        ("evaluate", evaluated),
        ("recognition", recognition),
        ("occlusion", occlusion),
        ("validation", validated),
    ],
)
def test_chance_is_used_up_as_it_always_was(
    name: str, draw: Callable[[Path, Path], Faces], pictures: Path, tmp_path: Path
) -> None:
    """Means of 7x7 cells: other random numbers move them, the last bit of another processor's sine does not."""
    faces = [
        np.concatenate([image, np.rint(mask * 255)[..., None]], axis=2)
        for image, mask in draw(pictures, tmp_path)
    ]
    means = np.stack(faces).reshape(len(faces), 7, 16, 7, 16, 4).mean((2, 4))
    with np.load(GOLDEN) as golden:
        assert np.abs(means - golden[name]).max() <= 0.6


def test_occluders_do_not_depend_on_where_the_folder_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for person in range(2):
        for shot in range(2):
            path = tmp_path / "here" / "faces" / f"p{person}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_face(person, shot)).save(path)
    (tmp_path / "elsewhere").mkdir()
    seen = []
    for directory, faces in (
        ("here", Path("faces")),
        ("here", Path("./faces/../faces")),
        ("elsewhere", Path("../here/faces")),
        ("elsewhere", tmp_path / "here" / "faces"),
    ):
        monkeypatch.chdir(tmp_path / directory)
        people = PeopleFolder(faces)
        assert people.names == ["p0/0.png", "p0/1.png", "p1/0.png", "p1/1.png"]
        cache = of_cache(people, tmp_path / "cache")
        assert (
            cache.name(0) == f"{faces / 'p0' / '0.png'} (unoccluded)"
        )  # messages name the file as it can be opened
        rows = [part.tobytes() for i in range(len(cache.plan.rows)) for part in cache.face(i)]
        fitting = HeldOut(cache.model, people, KINDS, 5, "a", everybody=True, groups=2)
        held_out = [part.tobytes() for face in of_held_out(fitting) for part in face]
        out = tmp_path / f"out{len(seen)}"
        occlude_folder(faces, kind="scarf", out=out)
        written = [path.read_bytes() for path in sorted(out.rglob("*.png"))]
        assert len(written) == 8
        seen.append((cache.key(), cache.plan, rows, held_out, written))
    assert all(one == seen[0] for one in seen)
