"""Batches as functions of (seed, step, process), the two streams, and images that move with their masks."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from oaml.data import (
    Augment,
    DataConfig,
    GraphSampler,
    Item,
    MixSampler,
    OcclusionStream,
    PKSampler,
    RecognitionStream,
    loader,
)
from oaml.datasets.people import DrawnFolder, PeopleFolder, split_name
from oaml.errors import OamlError
from oaml.occluders import KINDS

LABELS = np.repeat(np.arange(12), [5, 1, 4, 1, 2, 3, 1, 6, 1, 4, 4, 1])  # 1, 3, 6, 8 and 11 have one image
SINGLE = {1, 3, 6, 8, 11}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def people() -> DrawnFolder:
    return DrawnFolder(3, 2)


def config(**more: Any) -> DataConfig:
    return DataConfig(**{"drawn_people": 3, "drawn_shots": 2, "workers": 0, **more})


def saved(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def niqab_folder(root: Path, levels: list[int]) -> Path:
    """Occluded faces of one grey level each; the mask says the level too."""
    for level in levels:
        saved(root / "images" / f"{level}.png", np.full((112, 112, 3), level, np.uint8))
        saved(root / "masks" / f"{level}.png", np.full((112, 112), level, np.uint8))
    return root


def same_sample(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k] for k in a
    )


# --- PK batches


def test_a_batch_holds_people_with_their_images() -> None:
    sampler = PKSampler(LABELS, identities=8, images=3, seed=1)
    for step in range(30):
        picked = [index for index, _ in sampler.batch(step)]
        count = Counter(LABELS[picked].tolist())
        several = {label: n for label, n in count.items() if label not in SINGLE}
        assert len(several) == 6  # a quarter of the eight is left to people with one image
        assert all(n == 3 for n in several.values())
        assert {n for label, n in count.items() if label in SINGLE} == {1}
        assert sum(label in SINGLE for label in count) == 5  # 2 x 3 places, five such people
        for label in several:
            own = [index for index in picked if LABELS[index] == label]
            assert len(set(own)) == min(
                3, np.count_nonzero(label == LABELS)
            )  # repeated only where it must be


def test_everybody_with_two_images_and_no_singles() -> None:
    labels = np.repeat(np.arange(6), 4)
    sampler = PKSampler(labels, identities=4, images=3)
    seen: Counter[int] = Counter()
    for step in range(200):
        items = sampler.batch(step)
        assert len(items) == 12
        assert sorted(Counter(labels[[index for index, _ in items]]).values()) == [3] * 4
        seen.update(labels[[index for index, _ in items]].tolist())
    assert all(n / 2400 == pytest.approx(1 / 6, abs=0.03) for n in seen.values())
    assert len({seed for _, seed in sampler.batch(0)}) == 12  # every image has random choices of its own


def test_fewer_people_than_asked_for() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2])
    items = PKSampler(labels, identities=8, images=2).batch(0)
    assert Counter(labels[[index for index, _ in items]].tolist()) == {0: 2, 1: 2, 2: 1}


@pytest.mark.parametrize("sampler_class", [PKSampler, GraphSampler])
def test_batches_are_functions_of_seed_step_and_rank(sampler_class: type[PKSampler]) -> None:
    def batches(start: int = 0, count: int = 6, **more: int) -> list[list[Item]]:
        return list(islice(sampler_class(LABELS, 4, 2, start=start, **more), count))

    plain = batches()
    assert plain == batches()
    assert plain[4:] == batches(start=4, count=2)  # resumed
    everything = [batches(seed=seed, rank=rank) for seed in (0, 1) for rank in (0, 1)]
    assert everything[0] == plain
    assert len({str(b) for run in everything for b in run}) == 24  # all differ


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1, 2], [0, 0, 0]])
def test_too_few_people_with_two_images(labels: list[int]) -> None:
    with pytest.raises(OamlError, match="two people with two") as caught:
        PKSampler(np.array(labels), 4, 2)
    assert "\n" not in str(caught.value)


# --- graph


def test_graph_batches_are_the_nearest_people() -> None:
    angle = (
        np.array([0, 10, 1, 11, 2, 50, 12, 51, 13, 52, 53, 54]) * np.pi / 90
    )  # by angle: {0,2,4} and {5,7,9,10}
    embeddings = np.stack([np.cos(angle), np.sin(angle)], 1)
    sampler = GraphSampler(LABELS, identities=4, images=2)
    before = [sampler.batch(step) for step in range(3)]
    sampler.update(3, embeddings)
    assert [sampler.batch(step) for step in range(3)] == before  # not begun: at random as ever
    several = [label for label in range(12) if label not in SINGLE]
    centres = set()
    for step in range(3, 60):
        chosen = sampler.choose(np.random.default_rng(step), step).tolist()
        assert len(chosen) == len(set(chosen)) == 3  # and a quarter for singles
        first = chosen[0]
        others = sorted(
            (label for label in several if label != first),
            key=lambda b: -float(embeddings[b] @ embeddings[first]),
        )
        assert set(chosen[1:]) == set(others[:2])
        centres.add(first)
        labels = Counter(LABELS[[index for index, _ in sampler.batch(step)]].tolist())
        assert all(labels[label] in ((1,) if label in SINGLE else (2,)) for label in labels)
    assert centres == set(several)


def test_a_step_uses_the_last_table_that_has_begun() -> None:
    labels = np.repeat(np.arange(4), 2)
    near = np.eye(4)[[0, 0, 1, 1]] + 1e-3 * np.eye(4)  # 0-1, 2-3
    far = np.eye(4)[[0, 1, 0, 1]] + 1e-3 * np.eye(4)  # 0-2, 1-3
    sampler = GraphSampler(labels, identities=2, images=2)
    sampler.update(5, near)
    sampler.update(10, far)
    for step, pairs in (
        (5, [{0, 1}, {2, 3}]),
        (9, [{0, 1}, {2, 3}]),
        (10, [{0, 2}, {1, 3}]),
        (30, [{0, 2}, {1, 3}]),
    ):
        assert {labels[index] for index, _ in sampler.batch(step)} in pairs


# --- mix


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.0, 0.8, 0.2), (0.8, 0.0, 0.2), (0.33, 0.67, 0.0)])
@pytest.mark.parametrize("size", [16, 7])
def test_mean_shares_are_exact(shares: tuple[float, ...], size: int) -> None:
    groups = [range(0, 10), range(10, 15), range(15, 40)]
    sampler = MixSampler(groups, shares, size)
    total: Counter[int] = Counter()
    steps = 400
    for step in range(steps):
        items = sampler.batch(step)
        assert len(items) == size
        count = Counter(next(g for g, group in enumerate(groups) if index in group) for index, _ in items)
        for g, share in enumerate(
            shares
        ):  # every batch holds its share, up to the one that is no whole image
            assert size * share - 1 < count[g] < size * share + 1
        total.update(count)
    for g, share in enumerate(shares):
        assert total[g] / steps / size == pytest.approx(share, abs=0.12 / size)  # 5 sigma of a rounding
        assert share or not total[g]


def test_mix_is_a_function_of_seed_step_and_rank() -> None:
    def batches(start: int = 0, count: int = 5, **more: int) -> list[list[Item]]:
        groups = [range(0, 9), range(9, 99)]
        return list(islice(MixSampler(groups, (0.8, 0.2), 8, start=start, **more), count))

    plain = batches()
    assert plain == batches()
    assert plain[3:] == batches(start=3, count=2)
    everything = [batches(seed=seed, rank=rank) for seed in (0, 1) for rank in (0, 1)]
    assert len({str(b) for run in everything for b in run}) == 20


def test_wrong_shares() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        MixSampler([range(3), range(3, 6)], (0.5, 0.4), 8)
    with pytest.raises(ValueError, match="empty"):
        MixSampler([range(0), range(0, 6)], (0.5, 0.5), 8)


# --- streams


def test_recognition_images_follow_their_seed(people: DrawnFolder) -> None:
    stream = RecognitionStream(people, config(cover_probability=0.5))
    assert len(stream) == 6
    samples = [stream[3, seed] for seed in range(40)]
    assert all(same_sample(samples[seed], stream[3, seed]) for seed in range(0, 40, 7))
    occluded = sum(float(sample["mask"].min()) < 1 for sample in samples)
    assert 8 <= occluded <= 32
    for sample in samples[:10]:
        assert (sample["image"].shape, sample["image"].dtype) == ((3, 112, 112), torch.uint8)
        assert (sample["mask"].shape, sample["mask"].dtype) == ((1, 112, 112), torch.float32)
        assert (sample["label"], sample["path"]) == (1, people.names[3])
        image = torch.from_numpy(people.image(3)).permute(2, 0, 1)
        visible = sample["mask"][0] == 1
        assert torch.equal(
            sample["image"][:, visible], image[:, visible]
        )  # the face shows where the mask says so


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_cover_probability(people: DrawnFolder, probability: float) -> None:
    stream = RecognitionStream(people, config(cover_probability=probability))
    for seed in range(12):
        sample = stream[seed % 6, seed]
        image = torch.from_numpy(people.image(seed % 6)).permute(2, 0, 1)
        if probability:
            assert float(sample["mask"].mean()) < 1
            assert not torch.equal(sample["image"], image)
        else:
            assert (sample["mask"] == 1).all()
            assert torch.equal(sample["image"], image)


def test_occlusion_stream_has_three_groups(people: DrawnFolder, tmp_path: Path) -> None:
    folders = [niqab_folder(tmp_path / "first", [10, 20]), niqab_folder(tmp_path / "second", [30, 40, 50])]
    for level in (200, 210):
        saved(tmp_path / "clean" / f"{level}.png", np.full((112, 112, 3), level, np.uint8))
    stream = OcclusionStream(
        people, config(masks=folders, clean=[tmp_path / "clean"], clean_share=0.2, drawn_share=0.25)
    )
    assert [(g.start, g.stop) for g in stream.groups] == [(0, 5), (5, 11), (11, 13)]
    assert len(stream) == 13
    assert stream.shares == pytest.approx([0.6, 0.2, 0.2])
    for index, level in enumerate((10, 20, 30, 40, 50)):  # real masks, each with its image
        sample = stream[index, 0]
        assert (sample["image"] == level).all()
        assert torch.allclose(sample["mask"], torch.tensor(level / 255))
        assert sample["path"].endswith(f"{level}.png")
    for index in range(5, 11):  # occluders drawn on recognition images
        sample = stream[index, 7]
        assert sample["path"] == people.names[index - 5]
        assert float(sample["mask"].mean()) < 1
        assert same_sample(sample, stream[index, 7])
        assert not same_sample(sample, stream[index, 8])
    for index, level in ((11, 200), (12, 210)):  # unoccluded faces
        assert (stream[index, 0]["image"] == level).all()
        assert (stream[index, 0]["mask"] == 1).all()


def test_occlusion_stream_without_files(people: DrawnFolder) -> None:
    """All occluders are drawn, and the recognition images are the unoccluded faces."""
    stream = OcclusionStream(people, config(drawn_share=0.0, clean_share=0.25))
    assert [len(group) for group in stream.groups] == [0, 6, 6]
    assert stream.shares == pytest.approx([0, 0.75, 0.25])
    sample = stream[8, 0]
    assert torch.equal(sample["image"], torch.from_numpy(people.image(2)).permute(2, 0, 1))
    assert (sample["mask"] == 1).all()
    sampler = MixSampler(stream.groups, stream.shares, 8)
    assert all(0 <= index < 12 for step in range(20) for index, _ in sampler.batch(step))


def test_mask_pictures_stand_beside_drawn_masks(people: DrawnFolder, tmp_path: Path) -> None:
    """A user's pictures of masks stand beside the drawn ones; only their colour is this green."""
    picture = np.zeros((60, 80, 4), np.uint8)
    picture[10:50, 10:70] = 0, 255, 0, 255
    saved(tmp_path / "pictures" / "green.png", picture)
    stream = RecognitionStream(
        people, config(cover_probability=1.0, kinds=["mask"], mask_pictures=tmp_path / "pictures")
    )
    green = 0
    for seed in range(16):
        r, g, b = stream[0, seed]["image"].int()
        green += int(((g > r + 120) & (g > b + 120)).sum()) > 100
    assert 2 <= green <= 14


def test_batches_of_a_loader(people: DrawnFolder) -> None:
    stream = RecognitionStream(people, config())
    sampler = PKSampler(people.labels, 3, 2, seed=4)
    first, second = islice(loader(stream, sampler, workers=0), 2)
    for step, batch in enumerate((first, second)):
        items = sampler.batch(step)
        assert (batch["image"].shape, batch["image"].dtype) == ((6, 3, 112, 112), torch.uint8)
        assert (batch["mask"].shape, batch["mask"].dtype) == ((6, 1, 112, 112), torch.float32)
        assert batch["label"].tolist() == [people.labels[index] for index, _ in items]
        assert list(batch["path"]) == [people.names[index] for index, _ in items]
        assert torch.equal(batch["image"][2], stream[items[2]]["image"])


# --- augmentation


def picture(count: int) -> Tensor:
    """Smooth grey images [B,1,112,112] within [0.4, 0.6], symmetric under no flip, shift or turn."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 112), torch.linspace(0, 1, 112), indexing="ij")
    shift = torch.arange(count).view(-1, 1, 1) * 0.3
    waves = torch.sin(9 * x + 4 * y + shift) + torch.sin(13 * y * x + 2 * x + shift) + 2 * x
    return 0.5 + 0.025 * waves[:, None].clamp(-4, 4)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """[B,...] x [B,...] -> [B]; 1 where one is the other times something plus something."""
    a, b = a.flatten(1), b.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def test_image_and_mask_move_together() -> None:
    """Image and mask hold the same picture; colour may change the image's levels, but nothing its place."""
    augment = Augment()
    count, exact, flipped, moved = 0, 0, 0, 0
    original = picture(8)
    for seed in range(6):
        torch.manual_seed(seed)
        images, masks = augment(original.expand(-1, 3, -1, -1).clone(), original.clone())
        assert images.shape == (8, 3, 112, 112)
        assert masks.shape == (8, 1, 112, 112)
        together = correlation(images.mean(1), masks)
        assert together.min() > 0.9999
        # the same up to the bit is reached only where neither colour nor blur changed the image
        exact += int((images - masks).abs().flatten(1).amax(1).lt(1e-5).sum())
        mirrored, straight = correlation(masks, original.flip(3)), correlation(masks, original)
        flipped += int((mirrored > straight).sum())
        moved += int((torch.maximum(mirrored, straight) < 0.99999).sum())
        count += 8
        # the check itself sees a shift by a pixel
        assert correlation(images.mean(1).roll(1, -1), masks).max() < 0.9999
    assert 0.25 * count < exact < 0.7 * count
    assert 0.3 * count < flipped < 0.7 * count
    assert 0.3 * count < moved < 0.7 * count


def test_augmented_values() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((8, 3, 112, 112), generator=generator)
    images[0], images[1] = 0, 1
    masks = (torch.rand((8, 1, 112, 112), generator=generator) > 0.5).float()
    masks[2:4] = 1
    augment = Augment()
    for seed in range(2):
        torch.manual_seed(seed)
        out_images, out_masks = augment(images, masks)
        for x in (out_images, out_masks):
            assert x.dtype == torch.float32
            assert 0 <= float(x.min()) <= float(x.max()) <= 1
        assert (
            out_masks[2:4] > 1 - 1e-5
        ).all()  # an unoccluded face stays so: no border comes in as occluded
        assert not torch.equal(out_images, images)


def test_augmentation_is_reproducible() -> None:
    images, masks = torch.rand(3, 3, 112, 112), torch.rand(3, 1, 112, 112)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(Augment()(images, masks))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])


# --- settings


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"drawn_people": 0}, "data.people or data.drawn_people"),
        ({"people": Path("faces")}, "data.people or data.drawn_people"),
        ({"cover_probability": 1.1}, "data.cover_probability"),
        ({"clean_share": -0.1}, "data.clean_share"),
        ({"drawn_share": float("nan")}, "data.drawn_share"),
        ({"identities": 1}, "data.identities"),
        ({"images": 1}, "data.images"),
        ({"kinds": ["niqab", "wig"]}, "wig"),
        ({"kinds": []}, "data.kinds"),
        ({"kinds": [], "cover_probability": 0.0, "drawn_share": 0.5}, "data.kinds"),
        # without folders of masks, the occluders of the occlusion stream are drawn
        ({"kinds": [], "cover_probability": 0.0}, "data.kinds"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"(^|\W){named}\b"):
        config(**wrong)


def test_settings_that_draw_nothing() -> None:
    assert config(kinds=[], cover_probability=0.0, masks=[Path("niqab")]).kinds == []
    assert config(kinds=[], cover_probability=0.0, occlusion_batch=0).kinds == []
    assert config(kinds=[], cover_probability=0.0, clean_share=1.0).kinds == []
    assert config().kinds == list(KINDS)


def test_people_of_a_split(tmp_path: Path) -> None:
    names = [f"person {i}" for i in range(12)]
    for name in names:
        saved(tmp_path / name / "1.png", np.zeros((112, 112, 3), np.uint8))
    by_split = {
        split: [n for n in sorted(names) if split_name(n) == split] for split in ("train", "calibrate")
    }
    assert all(by_split.values())
    everybody = DataConfig(people=tmp_path).load_people("train")
    assert isinstance(everybody, PeopleFolder)
    assert everybody.people == sorted(names)
    part = DataConfig(people=tmp_path, use="train")
    assert part.load_people("train").people == by_split["train"]
    assert part.load_people("calibrate").people == by_split["calibrate"]
    drawn = config(drawn_people=20, use="train").load_people("train").people
    assert drawn == [n for n in (f"drawn_{i:04d}" for i in range(20)) if split_name(n) == "train"]
