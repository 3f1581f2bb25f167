"""What was found in many images and videos, as pictures, videos, COCO's results or a table."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image

from aligndetr.utils.files import atomic_path

from .detections import Detections
from .videos import CODECS, is_camera, is_video, open_video_output

CSV_COLUMNS = ("file_name", "frame", "xmin", "ymin", "xmax", "ymax", "score", "class_id", "name")


class Origin(NamedTuple):
    """Where something was found.

    Attributes:
        file: the image, the video or the number of a camera.
        frame: its number in the video, from 0; None for an image.
        fps: of the video.
    """

    file: str
    frame: int | None = None
    fps: float | None = None


Write: TypeAlias = Callable[[Detections, Origin], None]


@contextmanager
def open_output(path: Path, files: Sequence[str]) -> Iterator[Write]:
    """Gives a function that writes what was found in one image or frame.

    Args:
        path: `.json`, `.csv`, `.mp4` or `.avi` (for one video), or a folder for pictures and
            videos. Files appear when the block ends without an error.
        files: all that may be written about.

    Raises:
        ValueError: another suffix, not one video, or `files` would be overwritten.
        OSError: `path` cannot be written.
    """
    try:
        with _writer(path, files) as write:
            yield write
    except OSError as error:
        if str(path) in str(error):  # said by whoever wrote
            raise
        raise OSError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _writer(path: Path, files: Sequence[str]) -> AbstractContextManager[Write]:
    suffix = path.suffix.lower()
    if suffix in CODECS:
        if len(files) != 1 or not is_video(files[0]):
            raise ValueError(
                f"{str(path)!r} can hold one annotated video; give one video or camera as input, "
                "or a folder as output"
            )
        if not is_camera(files[0]) and path.resolve() == Path(files[0]).resolve():
            raise ValueError(f"the annotated video would overwrite {files[0]!r}; give another name")
        return _picture_writer({files[0]: path})
    if suffix == ".json":
        return _json_writer(path)
    if suffix == ".csv":
        return _csv_writer(path)
    if suffix:
        raise ValueError(
            f"output {str(path)!r} must end in .json, .csv, or for a video in "
            f"{' or '.join(CODECS)}; or be a folder"
        )
    if any(Path(f).resolve().parent == path.resolve() for f in files if not is_camera(f)):
        raise ValueError(
            f"annotated images would overwrite those in {str(path)!r}; give another folder"
        )
    names = _different_names(files)
    return _picture_writer({file: path / name for file, name in zip(files, names, strict=True)})


@contextmanager
def _json_writer(path: Path) -> Iterator[Write]:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = ""

        def write(found: Detections, origin: Origin) -> None:
            nonlocal separator
            if origin.frame is None:
                results = found.to_coco(origin.file)
            else:
                place = {"file_name": origin.file, "frame": origin.frame}
                results = [r | place for r in found.to_coco(f"{origin.file}#{origin.frame}")]
            for result in results:  # none is kept: a camera may run for days
                file.write(separator + json.dumps(result))
                separator = ", "

        file.write("[")
        yield write
        file.write("]")


@contextmanager
def _csv_writer(path: Path) -> Iterator[Write]:
    with (
        atomic_path(path) as temporary,
        # The name of a file may be other than UTF-8, and is then written as it is.
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)

        def write(found: Detections, origin: Origin) -> None:
            writer.writerows(
                (origin.file, origin.frame, *box, score, class_id, name)
                for box, score, class_id, name in found
            )

        yield write


@contextmanager
def _picture_writer(paths: Mapping[str, Path]) -> Iterator[Write]:
    for folder in {path.parent for path in paths.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as video:  # the one that is being written
        current: dict[str, Callable[[Image.Image], None]] = {}

        def write(found: Detections, origin: Origin) -> None:
            if origin.frame is None:
                found.save(paths[origin.file])
                return
            picture = found.plot()
            if origin.file not in current:
                assert origin.fps is not None, "a video has one"
                video.close()
                current.clear()
                opened = open_video_output(paths[origin.file], origin.fps, picture.size)
                current[origin.file] = video.enter_context(opened)
            current[origin.file](picture)

        yield write


def _different_names(files: Sequence[str]) -> Iterator[str]:
    """The last parts of the paths; `_2` and so on are added to names that were there before."""
    taken: set[str] = set()
    for file in files:
        stem, suffix = os.path.splitext(os.path.basename(file))
        if is_video(file):
            stem, suffix = f"camera_{stem}" if is_camera(file) else stem, ".mp4"
        elif Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
            suffix = ".png"
        name, number = stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name)
        yield name
