"""The frames of a video, or of a folder of images."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oaml.errors import OamlError
from oaml.photographs.containers import is_mp4, mp4_duration, stated_end
from oaml.support.files import read_photograph
from oaml.support.folders import list_images
from oaml.support.formats import HEAD, VIDEO_SUFFIXES, what_it_is
from oaml.support.formats import is_video as begins_as_video
from oaml.support.images import missing, name_of
from oaml.support.names import printable

if TYPE_CHECKING:
    from cv2 import VideoCapture

ENOUGH = 0.9
"""Of the frames that a file states, and of its duration: with less of both it is damaged."""

Frame = tuple[int, np.ndarray]
"""Number, and uint8 RGB [H,W,3]."""


def is_video(path: str | Path) -> bool:
    """Whether a path is a folder of frames or a video, by its name or by what it holds. GIF and WebP are pictures."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return begins_as_video(file.read(HEAD))
    except (OSError, ValueError):  # the reader of images will say what is wrong
        return False


def read_frames(path: str | Path, every: int = 1) -> Iterator[Frame]:
    """Every n-th frame of a video, or of a folder of images in the order of their names.

    Frames are turned upright as the video says. They are numbered as they come, whatever the time between them.

    Raises:
        OamlError: no such file or folder, none that can be read, or a video that breaks off before its end.
    """
    if not isinstance(path, str | os.PathLike):
        raise OamlError(
            f"a video is given by its path, and this is of type {type(path).__name__}; write it to a file first"
        )
    path = Path(path)
    try:
        every = operator.index(every)
    except TypeError:
        raise OamlError(f"every: {every!r} is no whole number; give 1 or more") from None
    if every < 1:
        raise OamlError(f"every: {every} is not at least 1")
    if path.is_dir():
        for number, file in list(enumerate(list_images(path)))[::every]:
            yield number, read_photograph(file)
        return
    with _opened(path) as video:
        number, seconds = 0, 0.0
        while video.grab():
            seconds = _seconds(video)
            if number % every == 0:
                read, frame = video.retrieve()
                if not read:
                    break
                yield number, np.ascontiguousarray(frame[..., ::-1])
            number += 1
        if number == 0:
            raise _unreadable(path)
        _check_whole(path, video, number, seconds)


@contextmanager
def _opened(path: Path) -> Iterator[VideoCapture]:
    if not path.is_file():
        raise missing(path, "video")
    if not os.access(path, os.R_OK):
        raise OamlError(f"{name_of(path)}: can't be read; check its permissions")
    os.environ.setdefault(
        "OPENCV_FFMPEG_LOGLEVEL", "-8"
    )  # read once; what FFmpeg would print is said in one line here
    import cv2

    name = str(path.absolute())  # FFmpeg takes what stands before a colon for a protocol
    if not name.isascii() and name.encode("utf-8", "replace").decode() != name:  # it ends the process
        raise OamlError(f"{printable(name_of(path))}: OpenCV takes names of known letters alone; rename it")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        video = cv2.VideoCapture(name)
    finally:
        cv2.utils.logging.setLogLevel(level)
    try:
        yield video
    finally:
        video.release()


def _seconds(video: VideoCapture) -> float:
    import cv2

    return video.get(cv2.CAP_PROP_POS_MSEC) / 1000


def _check_whole(path: Path, video: VideoCapture, number: int, seconds: float) -> None:
    """Raise OamlError where a file ends before it says, or where frames that it counts couldn't be read."""
    import cv2

    with path.open("rb") as file:
        size, end = file.seek(0, 2), stated_end(file)
        if end is not None and end > size:
            raise OamlError(
                f"{name_of(path)}: is damaged: it breaks off after {size:,} of {end:,} bytes, {number} frames; copy it again"
            )
        file.seek(0)
        avi = file.read(4) == b"RIFF"
        mp4 = is_mp4(file)
        shown = mp4_duration(file) if mp4 else None
    if not (mp4 or avi):  # no others count their frames
        return
    stated, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
    duration = min(stated / rate if rate > 0 else 0.0, shown or float("inf"))
    if number < ENOUGH * stated and seconds + 1 / max(rate, 1) < ENOUGH * duration:
        raise OamlError(
            f"{name_of(path)}: is damaged: {number} of {stated:.0f} frames could be read; copy it again"
        )


def _unreadable(path: Path) -> OamlError:
    name = name_of(path)
    with path.open("rb") as file:
        head, size = file.read(HEAD), file.seek(0, 2)
        end, mp4 = stated_end(file), is_mp4(file)
        index = mp4 and mp4_duration(file) is not None
    if not size:
        return OamlError(f"{name}: is empty; copy it again")
    if end is not None and end > size:
        return OamlError(f"{name}: is damaged: it breaks off after {size:,} of {end:,} bytes; copy it again")
    if mp4 and not index:
        return OamlError(
            f"{name}: is damaged: it has no index, so that its recording or its copy broke off; copy it again"
        )
    reason = "it may hold sound alone" if begins_as_video(head) else what_it_is(head, size)[0]
    return OamlError(
        f"{name}: is no video that OpenCV reads ({reason}); convert it to MP4 or to a folder of frames"
    )
