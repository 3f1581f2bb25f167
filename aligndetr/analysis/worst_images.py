"""Pictures of an evaluation's images, the worst first."""

import os
from pathlib import Path

import numpy as np

from aligndetr.evaluation.matching import match_boxes
from aligndetr.evaluation.operating_point import best_f1
from aligndetr.inference.drawing import put_side_by_side
from aligndetr.utils.files import atomic_path

from .evaluations import Evaluation
from .image_pictures import draw_image
from .judged_images import JudgedImage, judge_images


def write_worst_images(
    evaluation: Evaluation,
    folder: str | os.PathLike,
    score: float | None = None,
    count: int = 20,
    edge: int = 640,
) -> tuple[float, list[tuple[Path, JudgedImage]]]:
    """Draw the worst images of an evaluation, ground truth left and detections right.

    Args:
        folder: for a file per image; names begin with the place, the worst is 0001.
        score: of the detections that count; None: where F1 over all images is highest.
        count: of images, at most.
        edge: pixels of the longer edge of each picture.

    Returns:
        The score, and of each picture the file and what it shows.

    Raises:
        ValueError: the images are not named, a score outside [0, 1], or a count below 1.
        OSError: an image cannot be read, or the folder not written.
    """
    if evaluation.image_root is None:
        raise ValueError("the folder of the images is not known; give it by --images")
    if count < 1 or not (score is None or 0 <= score <= 1):
        raise ValueError(f"count (={count}) must be at least 1 and score (={score}) in [0, 1]")
    matches = match_boxes(evaluation.truth, evaluation.results, evaluation.max_detections)
    if score is None:
        score = best_f1(matches).score
        score = 0.0 if np.isnan(score) else score  # nothing was found: all detections are wrong
    written = []
    for place, judged in enumerate(judge_images(matches, score)[:count], start=1):
        name = Path(evaluation.file_names[judged.number])
        picture = put_side_by_side(
            [draw_image(evaluation, matches, judged.number, score, edge)],
            [f"{name.name}   {judged.caption}"],
        )
        path = Path(folder) / f"{place:04}_{name.stem}.png"
        with atomic_path(path) as temporary:
            picture.save(temporary)
        written.append((path, judged))
    return score, written
