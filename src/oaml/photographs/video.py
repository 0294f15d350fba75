"""The frames of a video, or of a folder of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oaml.errors import OamlError
from oaml.support.files import list_images, read_photograph

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")

Frame = tuple[int, np.ndarray]
"""Number, and uint8 RGB [H,W,3]."""


def is_video(path: str | Path) -> bool:
    """Whether a path is a folder of frames or a video, by its name."""
    return Path(path).is_dir() or Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: str | Path, every: int = 1) -> Iterator[Frame]:
    """Every n-th frame of a video, or of a folder of images in the order of their names.

    Raises:
        OamlError: no such file or folder, none that can be read, or a video that breaks off before its end.
    """
    path = Path(path)
    if every < 1:
        raise OamlError(f"every: {every} is not at least 1")
    if path.is_dir():
        for number, file in list(enumerate(list_images(path)))[::every]:
            yield number, read_photograph(file)
        return
    if not path.is_file():
        raise OamlError(f"{path}: no such video")
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        number = 0
        while video.grab():
            if number % every == 0:
                read, frame = video.retrieve()
                if not read:
                    break
                yield number, np.ascontiguousarray(frame[..., ::-1])
            number += 1
        if number == 0:
            raise OamlError(
                f"{path}: is no video that OpenCV reads; convert it to MP4 or to a folder of frames"
            )
        promised = video.get(cv2.CAP_PROP_FRAME_COUNT)
        if number < 0.9 * promised:
            raise OamlError(
                f"{path}: is damaged: {number} of {promised:.0f} frames could be read; copy it again"
            )
    finally:
        video.release()
