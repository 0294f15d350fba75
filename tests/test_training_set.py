"""A training set with faults: found before the first step, or when a picture is met, by the same line wherever it was read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oaml.data import DataConfig, PKSampler, RecognitionStream, loader
from oaml.datasets.check import check_pictures
from oaml.datasets.drawn import draw_face
from oaml.datasets.masked import MaskedFolder
from oaml.datasets.people import DrawnFolder, PeopleFolder
from oaml.errors import OamlError
from oaml.main import main
from oaml.support.files import read_image

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Four people with three images."""
    for person in range(4):
        for shot in range(3):
            write(tmp_path / "people" / f"p{person}" / f"{shot}.png", draw_face(person, shot))
    return tmp_path / "people"


def damage(path: Path, how: str) -> Path:
    whole = path.read_bytes()
    if how == "size":
        return write(path, np.zeros((90, 100, 3), np.uint8))
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "text": b"no image", "truncated": whole[: len(whole) // 2]}[how])
    return path


def message(call: Any, *arguments: Any, **options: Any) -> str | None:
    """The line that a call is refused with."""
    try:
        call(*arguments, **options)
    except OamlError as error:
        line = str(error)
    else:
        return None
    assert "\n" not in line
    return line


# --- the check


@pytest.mark.parametrize("how", ["empty", "text", "truncated", "size", "gone"])
def test_one_fault_is_named_as_reading_names_it(how: str, people: Path) -> None:
    faces = [PeopleFolder(people)]
    assert check_pictures(faces, [], [], "full", show=False) is None
    path = damage(people / "p2" / "1.png", how)
    told = message(read_image, path)
    assert told is not None
    assert str(path) in told
    assert message(check_pictures, faces, [], [], "full", show=False) == told
    # without decoding, what lies further on in the file is not seen
    assert message(check_pictures, faces, [], [], "fast", show=False) == (
        None if how == "truncated" else told
    )
    assert message(check_pictures, faces, [], [], "off", show=False) is None
    if how == "size":
        faces = [PeopleFolder(people, resize=True)]
        assert message(check_pictures, faces, [], [], "full", resize=True, show=False) is None
        assert message(check_pictures, faces, [], [], "fast", resize=True, show=False) is None


def test_all_faults_are_counted_and_ten_are_named(people: Path) -> None:
    faces = PeopleFolder(people).paths
    for path in faces[:3]:
        damage(path, "empty")
    for path in faces[3:12]:
        damage(path, "size")
    line = message(check_pictures, [PeopleFolder(people)], [faces[0]] * 600, [], "fast", show=False)
    assert line is not None
    assert line.startswith("612 of 612 images can't be used: ")
    assert line.endswith(" and 602 more; mend or remove them")
    assert [path for path in faces if f"{path}: " in line] == faces[:10]
    assert line.count("is not a readable image") == 3
    assert line.count("is 100x90") == 7


def test_masks_are_looked_at_with_their_images(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "images" / f"{name}.png", draw_face(0, 0))
        write(tmp_path / "masks" / f"{name}.png", np.full((50, 50), 255, np.uint8))
    folder = MaskedFolder(tmp_path)
    for how in ("fast", "full"):
        check_pictures([], [], [folder], how, show=False)
    write(tmp_path / "masks" / "a.png", np.zeros((50, 60), np.uint8))  # of another crop
    damage(tmp_path / "images" / "c.png", "empty")
    for how, count in (("fast", 2), ("full", 3)):
        write(tmp_path / "masks" / "b.png", draw_face(0, 0)[:50, :50])  # no mask: only its pixels tell
        line = message(check_pictures, [], [], [folder], how, show=False)
        assert line is not None
        assert line.startswith(f"{count} of 4 images can't be used: ")
        assert f"{tmp_path / 'masks' / 'a.png'}: is 60x50, the proportions differ" in line
        assert f"{tmp_path / 'images' / 'c.png'}: " in line
        assert (f"{tmp_path / 'masks' / 'b.png'}: is a colour image" in line) == (how == "full")


def test_a_fast_look_decodes_nothing_that_seems_right(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = PeopleFolder(people)
    read: list[int] = []
    monkeypatch.setattr(PeopleFolder, "image", lambda self, i: read.append(i))
    check_pictures([faces], [], [], "fast", show=False)
    assert read == []
    damage(faces.paths[5], "size")
    check_pictures([faces], [], [], "fast", show=False)
    assert read == [5]
    check_pictures([faces, DrawnFolder(3, 2)], [], [], "full", show=False)
    assert sorted(read[1:]) == list(range(12))


# --- a fault that is met while training


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_tells_what_its_dataset_tells(people: Path, workers: int) -> None:
    path = damage(people / "p1" / "0.png", "truncated")
    told = message(read_image, path)
    faces = PeopleFolder(people)
    config = DataConfig(people=people, cover_probability=0)
    batches = loader(RecognitionStream(faces, config), PKSampler(faces.labels, 4, 3), workers)
    with pytest.raises(OamlError) as caught:  # all twelve images
        next(iter(batches))
    assert str(caught.value) == told


def words(people: Path, out: Path, *more: object) -> list[str]:
    """`oaml train` for a few steps on one core."""
    call = ["train", "--out", out, "--data.people", people, "--data.identities", 2, "--data.images", 2]
    call += ["--data.occlusion_batch", 2, "--data.workers", 0, "--net.architecture", "ir_mini"]
    call += ["--net.embedding_size", 16, "--validate_every", 0, "--picture_every", 0, "--accelerator", "cpu"]
    return [str(word) for word in [*call, "--checkpoint_every", 1, "--steps", 60, *more]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_one_line_and_the_same(
    people: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = damage(people / "p1" / "0.png", "truncated")
    assert main(words(people, tmp_path / "run", "--data.workers", workers)) == 1
    captured = capfd.readouterr()
    assert f"oaml train: {message(read_image, path)}\n" in captured.err
    assert "Traceback" not in captured.out + captured.err
    assert captured.out.endswith("\n")  # the bar ends its line, so that the error has one to itself


@pytest.mark.parametrize(
    ("flags", "told"), [([], True), (["--check", "full"], True), (["--check", "off"], False)]
)
def test_a_training_looks_before_its_first_step(
    people: Path, tmp_path: Path, flags: list[str], told: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    for shot in range(3):
        damage(people / "p1" / f"{shot}.png", "size")
    assert main(words(people, tmp_path / "run", *flags)) == 1
    said = capfd.readouterr().err
    assert ("3 of 12 images can't be used" in said) == told
    assert (tmp_path / "run").exists() != told  # nothing has begun


def test_the_people_who_validate_are_looked_at_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for person in range(20):
        for shot in range(2):
            write(tmp_path / "people" / f"p{person}" / f"{shot}.png", draw_face(person, shot))
    config = DataConfig(people=tmp_path / "people", use="train")
    path = damage(config.load_people("calibrate").paths[-1], "size")  # type: ignore[union-attr]
    call = words(tmp_path / "people", tmp_path / "run", "--data.use", "train", "--validate_every", 1)
    assert main(call) == 1
    assert f"{path}: is 100x90" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_reader_that_is_killed_is_one_line(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    parent = os.getpid()

    def killed(self: RecognitionStream, item: Any) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr(RecognitionStream, "__getitem__", killed)
    assert main(words(people, tmp_path / "run", "--data.workers", 1)) == 1
    said = capfd.readouterr().err
    told = "training stopped: a process that reads images was killed, .*lower and train again\n"
    assert re.search(f"oaml train: {tmp_path / 'run'}: {told}", said)
    assert "Traceback" not in said


def test_control_c_reaches_the_readers_and_is_one_line(people: Path, tmp_path: Path) -> None:
    """As a terminal sends it: to all processes of the command."""
    script = "import sys\nfrom oaml.main import main\nsys.exit(main())"
    call = [sys.executable, "-c", script, *words(people, tmp_path / "run", "--data.workers", 2)]
    call[call.index("--steps") + 1] = "100000"
    with subprocess.Popen(
        call, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as run:
        end = time.monotonic() + 90
        while time.monotonic() < end and not (tmp_path / "run" / "checkpoint.ckpt").exists():
            assert run.poll() is None
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.splitlines()[-1].startswith("oaml train: interrupted; the last checkpoint is kept")
    assert "Traceback" not in said


# --- pairs that are not complete


def test_a_training_uses_the_pairs_and_says_how_many_were_left_out(
    people: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    niqab = tmp_path / "niqab"
    for name in "abc":
        write(niqab / "kept_faces" / f"{name}.png", draw_face(0, 0))
        write(niqab / "masks" / f"{name}_mask.png", np.full((112, 112), 255, np.uint8))
    (niqab / "masks" / "a_mask.png").unlink()
    (niqab / "kept_faces" / "c.png").unlink()
    call = words(people, tmp_path / "run", "--data.masks", niqab, "--steps", 1)
    assert main(call) == 1
    said = capfd.readouterr().err
    assert f"{niqab / 'kept_faces' / 'a.png'}: image without a mask" in said
    assert "--data.unlabelled skip" in said
    assert main([*call, "--data.unlabelled", "skip"]) == 0
    assert f"{niqab}: 1 image without a mask and 1 mask without an image left out\n" in capfd.readouterr().err


def test_a_training_names_what_it_leaves_out_of_a_folder_of_people(
    people: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = sorted(path for path in people.iterdir() if path.is_dir())
    image = sorted(first.iterdir())[0]
    (second / "copy.png").write_bytes(image.read_bytes())
    for name in ("._x.png", "notes.txt"):
        (first / name).write_bytes(b"no image")
    (people / "nobody").symlink_to("nowhere")
    assert main(words(people, tmp_path / "run", "--check", "full", "--steps", 1)) == 0
    said = capfd.readouterr().err
    assert f"left out: {first / 'notes.txt'}: is no picture" in said
    assert f"left out: {people / 'nobody'}: is a link to nothing" in said
    assert "._x.png" not in said
    assert f"note: {image}: is the same file as {second / 'copy.png'}" in said
