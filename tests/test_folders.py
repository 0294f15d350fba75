"""A folder is read in one way by every command: links, system files, names of any bytes; what isn't taken is named."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oaml.datasets.people import PeopleFolder, read_people, split_of
from oaml.errors import OamlError
from oaml.main import main, parser_of
from oaml.support.files import check_empty, write_file, write_folder
from oaml.support.folders import find, list_images, read_folder, summarised
from oaml.support.names import is_system, person_name, printable, restored, shortened, storable

LATIN = os.fsdecode(b"J\xfcrgen")
DECOMPOSED = unicodedata.normalize("NFD", "Jürgen")


def saved(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((112, 112, 3), level, np.uint8)).save(path)
    return path


def left_out(folder: Path) -> dict[str, str]:
    """Path below the folder -> reason."""
    return {line.path.relative_to(folder).as_posix(): line.reason for line in read_folder(folder).left_out}


SYSTEM = (
    "._1.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/1.png", ".Trash-1000/files/1.png",
    "@eaDir/1.png", "__MACOSX/Ann/1.png", "lost+found/1.png", "$RECYCLE.BIN/1.png", "#recycle/1.png", ".git/1.png",
    "System Volume Information/1.png", "Ann/.thumbnails/1.png", "Ann/THUMBS.DB", "Ann/@eaDir/1.png",
)  # fmt: skip


def test_what_the_system_puts_there_is_passed_over_silently(tmp_path: Path) -> None:
    image = saved(tmp_path / "Ann" / "1.png")
    for name in SYSTEM:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    assert read_folder(tmp_path) == ([image], [])
    assert PeopleFolder(tmp_path).people == ["Ann"]


@pytest.mark.parametrize(
    "name", ["1.png~", "1.png.part", "1.tmp", "1.png.crdownload", "~$1.png", "half.download/1.png"]
)
def test_what_is_not_complete_is_named_and_not_taken(tmp_path: Path, name: str) -> None:
    image = saved(tmp_path / "Ann" / "1.png")
    (tmp_path / "Ann" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "Ann" / name).write_bytes(b"half")
    assert read_folder(tmp_path).images == [image]
    assert [reason for reason in left_out(tmp_path).values() if "not complete" in reason]


def test_every_file_that_is_not_taken_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "Ann" / "1.png")
    for name in ("a.cr2", "b.psd", "notes.TXT", "scan.pdf", "none"):
        (tmp_path / "Ann" / name).write_bytes(b"x")
    (tmp_path / "Bob").mkdir()
    os.mkfifo(tmp_path / "Ann" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as opened:
        here = os.getcwd()
        os.chdir(tmp_path)
        opened.bind("s.png")
        os.chdir(here)
    reasons = left_out(tmp_path)
    assert reasons.keys() == {
        f"Ann/{n}" for n in ("a.cr2", "b.psd", "notes.TXT", "scan.pdf", "none", "pipe.png")
    } | {
        "Bob",
        "s.png",
    }
    assert "convert it" in reasons["Ann/b.psd"]
    assert "by its name (.txt)" in reasons["Ann/notes.TXT"]
    assert "without a suffix" in reasons["Ann/none"]
    assert "a pipe" in reasons["Ann/pipe.png"]
    assert "empty" in reasons["Bob"]


def test_many_of_one_reason_are_one_line() -> None:
    lines = [f"a/{n}.txt: is no picture" for n in range(7)] + ["a/x.pdf: is a pdf"]
    few, alone = summarised(lines)
    assert few == "a/0.txt, a/1.txt, a/2.txt, a/3.txt and 3 more: is no picture"
    assert alone == lines[-1]
    assert summarised(lines[:5]) == lines[:5]


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "people"
    real = saved(root / "Zoe" / "1.png")
    saved(tmp_path / "store" / "bob" / "1.png")
    (root / "Bob").symlink_to(tmp_path / "store" / "bob")
    saved(root / "Ann" / "1.png")
    (root / "Ann" / "2.png").symlink_to(tmp_path / "store" / "bob" / "1.png")
    (root / "Ann" / "again").symlink_to(root / "Zoe")  # read where it lies itself, though it comes later
    (root / "Ann" / "up").symlink_to(root)
    (root / "Ann" / "above").symlink_to(tmp_path)
    (root / "Ann" / "loop").symlink_to(root / "Ann" / "loop")
    (root / "Ann" / "3.png").symlink_to("nowhere.png")
    (root / "Cy").symlink_to("nowhere")
    found = [path.relative_to(root).as_posix() for path in read_folder(root).images]
    assert found == ["Ann/1.png", "Ann/2.png", "Bob/1.png", "Zoe/1.png"]
    assert real in read_folder(root).images
    reasons = left_out(root)
    assert reasons.keys() == {f"Ann/{name}" for name in ("again", "up", "above", "loop", "3.png")} | {"Cy"}
    assert "link to nothing" in reasons["Cy"]
    assert "link to nothing" in reasons["Ann/3.png"]
    assert "twice" in reasons["Ann/up"]
    assert PeopleFolder(root).names == found
    assert list_images(root) == read_folder(root).images


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "Ann" / "1.png")
    saved(tmp_path / "Bob" / "1.png")
    scan = os.scandir

    def refused(path: Path) -> object:
        if Path(path).name == "Bob":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert left_out(tmp_path) == {"Bob": "can't be read (Permission denied)"}
    with pytest.raises(OamlError, match="can't be read"):
        read_folder(tmp_path / "Bob")
    with pytest.raises(OamlError, match="no such folder"):
        read_folder(tmp_path / "none")


def test_images_in_no_folder_or_too_deep_are_named(tmp_path: Path) -> None:
    saved(tmp_path / "loose.png")
    saved(tmp_path / "Ann" / "1.png")
    saved(tmp_path / "Ann" / "deeper" / "2.png")
    people = PeopleFolder(tmp_path)
    assert people.names == ["Ann/1.png"]
    assert [line.path.name for line in people.left_out] == ["loose.png", "2.png"]
    assert [path.name for _, path in read_people(tmp_path).images] == ["1.png", "2.png"]


def test_names_that_look_the_same_are_one_person(tmp_path: Path) -> None:
    saved(tmp_path / "Jürgen" / "1.png")
    saved(tmp_path / DECOMPOSED / "2.png")
    saved(tmp_path / LATIN / "3.png")
    saved(tmp_path / "Ann " / "4.png")
    saved(tmp_path / "Ann" / "5.png")
    saved(tmp_path / "ann" / "6.png")
    people = PeopleFolder(tmp_path)
    assert people.people == ["Ann", "J\\udcfcrgen", "Jürgen", "ann"]
    assert np.bincount(people.labels).tolist() == [2, 1, 2, 1]
    assert [people.image(i).shape for i in range(6)] == [(112, 112, 3)] * 6
    notes = "\n".join(people.notes)
    assert "Ann: has 2 folders" in notes
    assert "Jürgen: has 2 folders" in notes
    assert "Ann, ann: differ only in capital letters" in notes
    assert split_of(DECOMPOSED) == split_of("Jürgen")
    "\n".join(people.names).encode()


def test_one_file_of_two_people_is_said(tmp_path: Path) -> None:
    saved(tmp_path / "Ann" / "1.png", 1)
    saved(tmp_path / "Ann" / "2.png", 2)
    saved(tmp_path / "Bob" / "1.png", 3)
    assert PeopleFolder(tmp_path).same_files() == []
    shutil.copy(tmp_path / "Ann" / "1.png", tmp_path / "Ann" / "copy.png")  # of one person
    assert PeopleFolder(tmp_path).same_files() == []
    shutil.copy(tmp_path / "Ann" / "2.png", tmp_path / "Bob" / "2.png")
    (line,) = PeopleFolder(tmp_path).same_files()
    assert f"{tmp_path}/Ann/2.png: is the same file as {tmp_path}/Bob/2.png" in line


def test_names_are_printed_on_one_line_and_seen() -> None:
    assert printable("Jürgen 張 🙂") == "Jürgen 張 🙂"
    assert printable("a\nb\x1b[31mc\u202ed\u00a0e\u200cf\udcfcg\x7f") == (
        "a\\nb\\x1b[31mc\\u202ed\\xa0e\\u200cf\\udcfcg\\x7f"
    )
    assert person_name(f" {DECOMPOSED} ") == "Jürgen"
    assert restored(storable(f"/a/{LATIN}/é")) == f"/a/{LATIN}/é"
    storable(LATIN).encode()
    assert shortened("a" * 299) == "a" * 299
    assert len(shortened("a" * 5000)) < 310
    assert not is_system("Ann")


def test_a_listed_image_is_found_by_a_name_that_is_the_same(tmp_path: Path) -> None:
    image = saved(tmp_path / DECOMPOSED / "é.png")
    assert find(tmp_path, "Jürgen/e\u0301.png").samefile(image)
    other = saved(tmp_path / LATIN / "1.png")
    assert find(tmp_path, "J\\udcfcrgen/1.png") == other
    for name in ("none.png", "a\0b", "x" * 300, "x/" * 3000):
        with pytest.raises(OSError):  # noqa: PT011
            find(tmp_path, name)


def test_arguments_hold_any_bytes() -> None:
    parsed = parser_of("enroll")[0].parse_args([LATIN, "--gallery", f"g{LATIN}"])
    assert (parsed.folder, parsed.gallery) == (Path(LATIN), f"g{LATIN}")
    parsed = parser_of("gallery")[0].parse_args(["g", "--delete", LATIN, "[bold]b"])
    assert parsed.delete == [LATIN, "[bold]b"]
    assert parser_of("gallery")[0].parse_args(["g", "--delete", "[bold]b"]).delete == ["[bold]b"]


LONG = ("x" * 300, "y/" * 3000)


@pytest.mark.parametrize("path", LONG)
@pytest.mark.parametrize(
    "command",
    ["enroll PATH --gallery g", "verify PATH PATH", "embed PATH --images PATH --out PATH", "align PATH --out PATH",
     "score PATH --images PATH --pairs PATH --out PATH", "gallery PATH", "occlude PATH --kind mask --out PATH",
     "adapt --backbone PATH --people PATH --out PATH", "train --data.people PATH --out PATH"],
)  # fmt: skip
def test_a_path_that_is_too_long_is_one_line(
    path: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([path if word == "PATH" else word for word in command.split()]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "too long" in captured.err or "is no path" in captured.err
    assert "Traceback" not in captured.err
    assert os.listdir(tmp_path) == []


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = "ü" * 120 + ".bin"  # 244 bytes
    write_file(tmp_path / name, lambda path: path.write_bytes(b"x"))
    write_folder(tmp_path / ("f" * 250), lambda folder: (folder / "config.json").write_text("{}"))
    assert sorted(os.listdir(tmp_path)) == ["f" * 250, name]


def test_a_folder_is_empty_whatever_the_system_left_in_it(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    check_empty(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(OamlError, match="not an empty folder"):
        check_empty(tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_few_characters_ends_no_command(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "張\n").mkdir()
    code = (
        "import sys; from oaml.main import main\n"
        "import oaml.templates.embed as module\n"
        "from oaml.support.names import printable\n"
        "module.embed.__globals__['need_utf8'] = lambda out: print(out)\n"
        f"sys.exit(main(['embed', 'm', '--images', {str(tmp_path / '張')!r} + chr(10), '--out', 'Jürgen張…']))"
    )
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"no images" in done.stderr
    said = done.stdout.decode(encoding)
    assert ("Jürgen張…" if encoding == "utf-8" else "rgen\\u5f35\\u2026") in said
