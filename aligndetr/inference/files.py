"""Predicting whole folders: which files, what is written, and what to do with a broken one."""

import csv
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from aligndetr.utils.files import atomic_path

from .detections import Detections
from .predictor import Predictor

CSV_COLUMNS = ("file_name", "xmin", "ymin", "xmax", "ymax", "score", "class_id", "name")


def find_images(inputs: Iterable[str]) -> list[str]:
    """The files that names, patterns and folders stand for.

    Args:
        inputs: names of files, taken as they are; patterns (`photos/**/*.jpg`); folders, of which
            all files are taken that have the suffix of an image, not those of folders in them.

    Returns:
        In the order of `inputs`, sorted within each, each file once.

    Raises:
        FileNotFoundError: one of `inputs` stands for no file.
    """
    found: dict[str, None] = {}
    for given in inputs:
        files = _expand(os.path.expanduser(given))
        if not files:
            raise FileNotFoundError(f"{given!r} is no file, no folder with images, and no pattern")
        found |= dict.fromkeys(files)
    return list(found)


def _expand(given: str) -> list[str]:
    if os.path.isdir(given):
        suffixes = Image.registered_extensions()
        return sorted(str(p) for p in Path(given).iterdir() if p.suffix.lower() in suffixes)
    if os.path.isfile(given):
        return [given]
    return sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))


def predict_files(
    predictor: Predictor,
    files: Sequence[str],
    output: str | os.PathLike,
    score_threshold: float = 0.3,
    batch_size: int = 1,
    report: Callable[[str], None] = tqdm.write,
) -> list[str]:
    """Predict files and write what was found; a bar shows the progress on a terminal.

    A file that is no image is reported, and the rest goes on.

    Args:
        files: images.
        output: by its suffix: `.json`, COCO's results with file names for image ids; `.csv`, a
            line per detection; none, a folder for annotated images under the names of `files` (a
            number is added where two have the same). The first two appear complete or not at all.
        score_threshold, batch_size: as of `Predictor`.
        report: called with a line for each file that was left out.

    Returns:
        The files left out.

    Raises:
        ValueError: another suffix, or pictures would overwrite `files`.
        OSError: `output` cannot be written.
    """
    broken: list[str] = []

    def leave_out(file: str, error: Exception) -> None:
        report(f"left out: {error}")
        broken.append(file)

    with _open_output(Path(output), files) as write:
        progress = tqdm(files, unit="image", disable=None)
        for found in predictor.stream(progress, score_threshold, batch_size, on_error=leave_out):
            write(found)
    return broken


@contextmanager
def _open_output(path: Path, files: Sequence[str]) -> Iterator[Callable[[Detections], None]]:
    """Gives a function that writes what was found in one image."""
    writers = {".json": _json_writer, ".csv": _csv_writer, "": _picture_writer}
    if path.suffix.lower() not in writers:
        raise ValueError(f"output {str(path)!r} must end in .json or .csv, or be a folder")
    try:
        with writers[path.suffix.lower()](path, files) as write:
            yield write
    except OSError as error:
        if str(path) in str(error):  # said by whoever wrote
            raise
        raise OSError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


@contextmanager
def _json_writer(path: Path, _: Sequence[str]) -> Iterator[Callable[[Detections], None]]:
    results: list[dict] = []
    with atomic_path(path) as temporary:
        yield lambda found: results.extend(found.to_coco())
        temporary.write_text(json.dumps(results), encoding="utf-8")


@contextmanager
def _csv_writer(path: Path, _: Sequence[str]) -> Iterator[Callable[[Detections], None]]:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)

        def write(found: Detections) -> None:
            writer.writerows(
                (found.file_name, *box, score, class_id, name)
                for box, score, class_id, name in found
            )

        yield write


@contextmanager
def _picture_writer(folder: Path, files: Sequence[str]) -> Iterator[Callable[[Detections], None]]:
    if any(Path(file).resolve().parent == folder.resolve() for file in files):
        raise ValueError(
            f"annotated images would overwrite those in {str(folder)!r}; give another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    names = dict(zip(files, _different_names(files), strict=True))
    yield lambda found: found.save(folder / names[found.file_name])


def _different_names(files: Sequence[str]) -> Iterator[str]:
    """The last parts of the paths; `_2` and so on are added to names that were there before."""
    taken: set[str] = set()
    for path in map(Path, files):
        suffix = path.suffix
        if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
            suffix = ".png"
        name, number = path.stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{path.stem}_{number}{suffix}"
        taken.add(name)
        yield name
