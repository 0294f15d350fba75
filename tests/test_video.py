"""Videos: what is whole, what broke off, what is none, and which side is up."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import says
from oaml.main import main
from oaml.photographs.containers import mp4_duration, stated_end
from oaml.photographs.video import is_video, read_frames
from oaml.support.files import read_photograph
from oaml.support.formats import VIDEO_SUFFIXES

WIDTH, HEIGHT, FRAMES = 176, 144, 20
CODES = {
    ".avi": "MJPG", ".wmv": "WMV2", ".asf": "WMV2", ".flv": "FLV1", ".3gp": "H263", ".3g2": "H263", ".webm": "VP80",
    ".mpg": "PIM1", ".mpeg": "PIM1", ".vob": "MPG2",
}  # fmt: skip


def read(path: str | Path, every: int = 1) -> list[np.ndarray]:
    return [frame for _, frame in read_frames(path, every)]


def written(path: Path, frames: int = FRAMES) -> Path:
    """Frames that are red on the left and get greener, as OpenCV writes them in the format of the suffix."""
    code = cv2.VideoWriter.fourcc(*CODES.get(path.suffix, "mp4v"))
    video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 25, (WIDTH, HEIGHT))
    if not video.isOpened():
        pytest.skip(f"this OpenCV writes no {path.suffix}")
    for number in range(frames):
        frame = np.full((HEIGHT, WIDTH, 3), (20, 6 * number, 30), np.uint8)
        frame[:, : WIDTH // 2, 2] = 220
        video.write(frame)
    video.release()
    return path


def element(name: str, content: bytes, size: bytes | None = None) -> bytes:
    """Of EBML: its name in hexadecimal, its size in eight bytes, what it holds."""
    return bytes.fromhex(name) + (size or (len(content) | 1 << 56).to_bytes(8, "big")) + content


def matroska(path: Path, times: list[int], duration: float, live: bool = False) -> Path:
    """A video of JPEGs that are shown at these milliseconds; a live one doesn't know how long it will get."""

    def number(value: int) -> bytes:
        return value.to_bytes(8, "big")

    kind = path.suffix.removeprefix(".").replace("mkv", "matroska").encode()
    head = (
        element("4286", number(1))
        + element("42F7", number(1))
        + element("42F2", number(4))
        + element("42F3", number(8))
    )
    head += element("4282", kind) + element("4287", number(4)) + element("4285", number(2))
    picture = element("E0", element("B0", number(WIDTH)) + element("BA", number(HEIGHT)))
    track = (
        element("D7", number(1))
        + element("73C5", number(1))
        + element("83", number(1))
        + element("86", b"V_MJPEG")
    )
    track = element("1654AE6B", element("AE", track + element("23E383", number(33_333_333)) + picture))
    info = element("2AD7B1", number(1_000_000)) + element("4489", struct.pack(">d", duration))
    body = element("1549A966", info + element("4D80", b"-") + element("5741", b"-")) + track
    for place, time in enumerate(times):
        frame = cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), (30, 40, 4 * place % 256), np.uint8))[
            1
        ].tobytes()
        body += element("1F43B675", element("E7", number(time)) + element("A3", b"\x81\0\0\x80" + frame))
    path.write_bytes(
        element("1A45DFA3", head) + element("18538067", body, b"\x01" + b"\xff" * 7 if live else None)
    )
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
@pytest.mark.parametrize("kind", ["constant", "a pause", "a still end", "live"])
def test_a_recording_that_paused_is_whole(tmp_path: Path, kind: str, suffix: str) -> None:
    times = [33 * number for number in range(60)]
    duration = 52_000.0 if kind != "constant" else 1_980.0
    if kind == "a pause":
        times[30:] = [time + 50_000 for time in times[30:]]
    path = matroska(tmp_path / f"a{suffix}", times, duration, live=kind == "live")
    frames = read(path)
    assert len(frames) == 60
    assert abs(int(frames[59][5, 5, 0]) - 4 * 59) < 8
    assert len(read(path, every=7)) == 9


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_suffix_is_a_video_and_read(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}")
    assert is_video(path)
    assert is_video(Path(f"A{suffix.upper()}"))
    frames = read(path)
    assert len(frames) == FRAMES
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert frames[0][70, 20, 0] > frames[0][70, 150, 0] + 100  # red on the left
    assert len(read(path, every=3)) == 7
    plain = path.rename(tmp_path / "plain")
    assert is_video(plain)  # by what it holds
    assert len(read(plain)) == FRAMES


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_copy_that_broke_off_is_damaged(tmp_path: Path, suffix: str, share: float) -> None:
    path = written(tmp_path / f"a{suffix}")
    content = path.read_bytes()
    with path.open("rb") as file:
        assert stated_end(file) == len(content)
    path.write_bytes(content[: int(share * len(content))])
    says(lambda: read(path), path, "is damaged", "copy it again")


def test_lost_frames_of_a_file_that_counts_them(tmp_path: Path) -> None:
    path = written(tmp_path / "a.avi", 40)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : -900] = bytes(len(content[len(content) // 3 : -900]))
    path.write_bytes(content)
    says(lambda: read(path), path, "is damaged", "of 40 frames")


def patched(path: Path, box: bytes, offset: int, *values: int) -> None:
    """Other numbers of 32 bits behind the name of a box of MP4."""
    content = bytearray(path.read_bytes())
    struct.pack_into(f">{len(values)}i", content, content.find(box) + 4 + offset, *values)
    path.write_bytes(content)


def test_a_trimmed_video_is_whole(tmp_path: Path) -> None:
    """Telephones trim without copying: the file holds all frames and shows a tenth."""
    path = written(tmp_path / "a.mp4", 40)
    with path.open("rb") as file:
        assert mp4_duration(file) == pytest.approx(1.6)
    patched(path, b"elst", 8, 160)
    patched(path, b"mvhd", 16, 160)
    patched(path, b"tkhd", 20, 160)
    assert len(read(path)) == 4


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_telephones_that_were_turned(tmp_path: Path, turn: int) -> None:
    path = written(tmp_path / "a.mp4")
    one, none = 1 << 16, 0
    a, b, c, d = {
        0: (one, none, none, one), 90: (none, one, -one, none), 180: (-one, none, none, -one), 270: (none, -one, one, none),
    }[turn]  # fmt: skip
    patched(path, b"tkhd", 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    frame = read(path)[0]
    assert frame.shape == ((HEIGHT, WIDTH, 3) if turn in (0, 180) else (WIDTH, HEIGHT, 3))
    sides = {0: frame[:, 0], 90: frame[0], 180: frame[:, -1], 270: frame[-1]}
    assert all(
        (side[:, 0].mean() > 150) == (where == turn) or where % 180 != turn % 180
        for where, side in sides.items()
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"no video", "it is text"),
        (b"<!doctype html><p>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (bytes(9000), "zeros"),
        (b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08free", "it has no index"),
        (b"\x1a\x45\xdf\xa3" + bytes(range(200)), "is no video that OpenCV reads"),
        (bytes(range(256)) * 20, "is no video that OpenCV reads"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "clip_001.avi"])
def test_what_is_no_video_gets_one_line(
    tmp_path: Path, name: str, content: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    says(lambda: read(path), path, reason)
    assert capfd.readouterr() == ("", "")  # OpenCV and FFmpeg print nothing of their own


def test_sound_alone_and_no_frames(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16_000))
    path = (tmp_path / "sound.wav").rename(tmp_path / "sound.mp4")
    says(lambda: read(path), path, "is no video that OpenCV reads", "it is sound")
    path = matroska(tmp_path / "none.mkv", [], 1_000)
    says(lambda: read(path), path, "is no video that OpenCV reads", "sound alone")


def test_ffmpeg_prints_nothing_about_damage(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 40)
    content = bytearray(path.read_bytes())
    place = content.find(b"mdat")
    content[place + 3_000 : place + 9_000] = bytes(6_000)
    path.write_bytes(content)
    code = (
        "import sys\nfrom oaml.photographs.video import read_frames\n"
        "from oaml.errors import OamlError\n"
        "try:\n    list(read_frames(sys.argv[1]))\nexcept OamlError as error:\n    print(error)"
    )
    own = {name: value for name, value in os.environ.items() if name != "OPENCV_FFMPEG_LOGLEVEL"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=own)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "address",
    ["rtsp://me:secret@camera/1", "rtsp:/me:secret@camera/1.mp4", "http://camera/live.mp4", "HTTPS://host/a.webm", "udp://@:1234"],
)  # fmt: skip
def test_addresses_get_an_answer_about_addresses(address: str) -> None:
    reading = read if is_video(Path(address)) else read_photograph
    message = says(lambda: reading(Path(address)), "is an address", "ffmpeg -i ADDRESS")
    assert "secret" not in message
    assert "://" in message
    says(
        lambda: read_photograph("https://me:secret@host/a.jpg"),
        "https://host/a.jpg: is an address",
        "download it first",
    )


def test_search_says_what_to_do_about_a_camera(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    says(lambda: list(read_frames(tmp_path / "none.mp4")), "no such video")
    for value in (None, 3, b"abc", [tmp_path]):
        says(lambda value=value: read(value), "a video is given by its path")  # type: ignore[arg-type]
    for every in (0, -1, 1.5, "2", None):
        says(lambda every=every: read(tmp_path, every), "every")  # type: ignore[arg-type]
    path = written(tmp_path / "a.mp4")
    assert main(["verify", str(path), str(path)]) == 1
    assert "it is a video" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a:b.mp4", "ä ö.mp4", "100%d.mp4", "-i.mp4", "a?b#c.mp4"])
def test_names_that_ffmpeg_would_read_otherwise(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("plain.mp4")).rename(name)
    assert len(read(name)) == FRAMES


def test_a_name_that_would_end_the_process(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))
    written(tmp_path / "a.mp4").rename(path)
    says(lambda: read(path), r"\udcff.mp4", "rename it").encode()


def test_animations_are_pictures(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 30), (200 - 60 * number, 20, 20)) for number in range(3)]
    for suffix in (".gif", ".webp", ".png", ".avif"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
        assert not is_video(tmp_path / f"a{suffix}")
    assert not is_video(tmp_path / "none.jpg")
