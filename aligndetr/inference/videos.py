"""Frames of video files and cameras, and annotated pictures as a video, by OpenCV."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from aligndetr.utils.files import atomic_path

# What is wrong with a file is said in our own words; read when OpenCV loads FFmpeg.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

INPUT_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
"""By the suffix of the file to write: what the OpenCV of PyPI can encode everywhere."""

FALLBACK_FPS = 25.0
"""Where a camera does not say its own."""

MAX_DAMAGED = 25
"""As many frames in a row that cannot be decoded are the end of the video."""


class VideoError(ValueError):
    """A video or camera cannot be used. The message names it and what is wrong."""


class Frame(NamedTuple):
    """One picture of a video.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        number: from 0, as in the file; damaged frames count.
    """

    image: np.ndarray
    number: int


def is_camera(name: str) -> bool:
    """A number, unless there is such a file."""
    return name.isdecimal() and not os.path.exists(name)


def is_video(name: str) -> bool:
    """A camera's number, or the name of a video file."""
    return is_camera(name) or Path(name).suffix.lower() in INPUT_SUFFIXES


class Video:
    """An opened video file or camera; to be closed, or used in a `with` block.

    Args:
        name: of a file, or the number of a camera, from 0.

    Attributes:
        fps: frames per second.
        num_frames: as the file says, which may be an estimate; None where nothing says it.

    Raises:
        FileNotFoundError: no such file.
        VideoError: not a video that OpenCV can decode, or no such camera.
    """

    def __init__(self, name: str):
        self.name = name
        self._is_camera = is_camera(name)
        if not self._is_camera and not os.path.isfile(name):
            raise FileNotFoundError(f"video {name!r} does not exist")
        with _quiet():
            self._capture = cv2.VideoCapture(int(name) if self._is_camera else name)
        if not self._capture.isOpened():
            raise VideoError(
                f"camera {name} cannot be opened; is it connected, free and yours to use?"
                if self._is_camera
                else f"{name!r} is not a video that OpenCV can decode; is it complete?"
            )
        if self._is_camera:  # the newest frame, not those that piled up meanwhile
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else FALLBACK_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_frames = int(count) if not self._is_camera and count > 0 else None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def frames(self, on_damage: Callable[[VideoError], None]) -> Iterator[Frame]:
        """The frames in their order; a camera's have no end.

        Args:
            on_damage: called where frames are missing, and the rest goes on.
        """
        number = num_damaged = 0
        while num_damaged < MAX_DAMAGED:
            there, image = self._capture.read()
            if not there:
                num_damaged += 1
                continue
            if num_damaged:
                number += num_damaged
                on_damage(self._missing(number - num_damaged, number - 1))
                num_damaged = 0
            yield Frame(np.ascontiguousarray(image[:, :, ::-1]), number)
            number += 1
        if self._is_camera:
            on_damage(VideoError(f"camera {self.name} gives no more frames, after {number}"))
        # The count is an estimate in some formats, so a few frames less are no damage.
        elif number == 0 or number < 0.98 * (self.num_frames or 0) - 1:
            on_damage(
                VideoError(
                    f"{self.name!r} ends after {number} frames of the {self.num_frames} that it "
                    "should have; is it complete?"
                )
            )

    def _missing(self, first: int, last: int) -> VideoError:
        which = f"frame {first}" if first == last else f"frames {first} to {last}"
        return VideoError(f"{which} of {self.name!r} cannot be decoded")


@contextmanager
def open_video_output(
    path: str | os.PathLike, fps: float, size: tuple[int, int]
) -> Iterator[Callable[[Image.Image], None]]:
    """Gives a function that adds a picture to a new video; complete or not at all.

    Pictures of another size are resized. An odd width or height loses its last column or row,
    since the codecs know even ones only.

    Args:
        path: ends in .mp4 or .avi.
        size: (width, height) of the pictures.

    Raises:
        OSError: it cannot be written.
    """
    fourcc = cv2.VideoWriter.fourcc(*CODECS[Path(path).suffix.lower()])
    with atomic_path(path) as temporary:
        with _quiet():
            writer = cv2.VideoWriter(str(temporary), fourcc, fps, size)
        if not writer.isOpened():
            raise OSError(f"{str(path)!r} cannot be written as a video of {size[0]} x {size[1]}")
        num_written = 0

        def write(picture: Image.Image) -> None:
            nonlocal num_written
            picture = picture if picture.size == size else picture.resize(size)
            writer.write(np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]))
            num_written += 1

        try:
            yield write
        finally:
            writer.release()
        # OpenCV says nothing about a full disk.
        with _quiet():
            num_kept = cv2.VideoCapture(str(temporary)).get(cv2.CAP_PROP_FRAME_COUNT)
        if num_kept < num_written:
            raise OSError(f"{str(path)!r} cannot be written as a whole; is the disk full?")


@contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV's own warnings add nothing to our errors."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
