"""Predicting whole folders and videos: which files, and what to do with a broken one."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .detections import Detections
from .images import ImageError
from .outputs import Origin, open_output
from .predictor import Predictor
from .videos import INPUT_SUFFIXES, Video, VideoError, is_camera, is_video


def find_inputs(inputs: Iterable[str]) -> list[str]:
    """The images, videos and cameras that names, patterns, folders and numbers stand for.

    Args:
        inputs: names of files, taken as they are; patterns (`photos/**/*.jpg`); folders, of which
            all files are taken that have the suffix of an image or a video, not those of folders
            in them; numbers of cameras, from 0.

    Returns:
        In the order of `inputs`, sorted within each, each once.

    Raises:
        FileNotFoundError: one of `inputs` stands for no file.
    """
    found: dict[str, None] = {}
    for given in inputs:
        files = _expand(os.path.expanduser(given))
        if not files:
            raise FileNotFoundError(
                f"{given!r} is no file, no folder with images or videos, and no pattern"
            )
        found |= dict.fromkeys(files)
    return list(found)


def _expand(given: str) -> list[str]:
    if os.path.isdir(given):
        suffixes = {*Image.registered_extensions(), *INPUT_SUFFIXES}
        return sorted(str(p) for p in Path(given).iterdir() if p.suffix.lower() in suffixes)
    if os.path.isfile(given) or is_camera(given):
        return [given]
    return sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))


def predict_files(
    predictor: Predictor,
    files: Sequence[str],
    output: str | os.PathLike,
    score_threshold: float = 0.3,
    batch_size: int = 1,
    tile: int | None = None,
    report: Callable[[str], None] = tqdm.write,
) -> list[str]:
    """Predict files and write what was found; a bar shows the progress on a terminal.

    A file or frame that cannot be used is reported, and the rest goes on.

    Args:
        files: images, videos and numbers of cameras, as of `find_inputs`.
        output: by its suffix: `.json`, COCO's results with file names for image ids (`name#3` for
            frame 3 of a video, with the keys `file_name` and `frame` besides); `.csv`, a line per
            detection; `.mp4` or `.avi`, the annotated video of a single one; none, a folder for
            annotated images and videos under the names of `files` (a number is added where two
            have the same; videos become .mp4). Each file appears complete or not at all.
        score_threshold, batch_size, tile: as of `Predictor`.
        report: called with a line for each file or frame that was left out.

    Returns:
        The files left out or damaged.

    Raises:
        ValueError: another suffix, or pictures would overwrite `files`.
        OSError: `output` cannot be written.
        KeyboardInterrupt: Ctrl-C; `output` then holds what was found until then.
    """
    broken: dict[str, None] = {}

    def leave_out(file: str, error: Exception) -> None:
        report(f"left out: {error}")
        broken[file] = None

    def predict(images: Iterable, on_error: Callable | None = None) -> Iterator[Detections]:
        return predictor.stream(images, score_threshold, batch_size, tile, on_error)

    interrupt = None
    with open_output(Path(output), files) as write:
        try:
            for are_videos, group in groupby(files, is_video):
                if are_videos:
                    found = (pair for file in group for pair in _of_video(file, predict, leave_out))
                else:
                    found = _of_images(list(group), predict, leave_out)
                for detections, origin in found:
                    write(detections, origin)
        except KeyboardInterrupt as error:  # ends the block as usual, which keeps what is written
            interrupt = error
    if interrupt is not None:
        raise interrupt
    return list(broken)


Predict = Callable[..., Iterator[Detections]]
LeaveOut = Callable[[str, Exception], None]


def _of_images(
    files: Sequence[str], predict: Predict, leave_out: LeaveOut
) -> Iterator[tuple[Detections, Origin]]:
    for found in predict(tqdm(files, unit="image", disable=None), leave_out):
        assert found.file_name is not None, "files were predicted"
        yield found, Origin(found.file_name)


def _of_video(
    file: str, predict: Predict, leave_out: LeaveOut
) -> Iterator[tuple[Detections, Origin]]:
    numbers: deque[int] = deque()  # of the frames that went in and did not come out yet

    def images(video: Video) -> Iterator[np.ndarray]:
        frames = video.frames(lambda error: leave_out(file, error))
        name = os.path.basename(file)
        for image, number in tqdm(frames, name, total=video.num_frames, unit="image", disable=None):
            numbers.append(number)
            yield image

    try:
        with Video(file) as video:
            for found in predict(images(video)):
                yield found, Origin(file, numbers.popleft(), video.fps)
    except (FileNotFoundError, ImageError, VideoError) as error:
        leave_out(file, error)
