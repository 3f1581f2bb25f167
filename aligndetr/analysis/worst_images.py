"""Pictures of an evaluation's images, the worst first."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligndetr.evaluation.matching import Matches, match_boxes
from aligndetr.evaluation.operating_point import best_f1, panoptic_quality
from aligndetr.inference.drawing import put_side_by_side
from aligndetr.utils.files import atomic_path

from .evaluations import Evaluation
from .image_pictures import draw_image


@dataclass(frozen=True)
class JudgedImage:
    """An image at one score threshold and IoU 0.5.

    Attributes:
        number: in `Evaluation.file_names`.
        quality: sum of the true positives' IoU / (TP + FP / 2 + FN / 2), in [0, 1]: F1 with each
            true positive weighted by its IoU, see `panoptic_quality`.
        true, false, missed: TP, FP and FN. Detections in crowd regions are neither.
    """

    number: int
    quality: float
    true: int
    false: int
    missed: int


def judge_images(matches: Matches, score: float) -> list[JudgedImage]:
    """From the lowest quality to the highest; equal ones with most mistakes first.

    Images without objects and without a detection of at least `score` are left out.
    """
    counted = matches.scores >= score
    true, false = matches.is_true[0] & counted, matches.is_false[0] & counted

    def count(images: np.ndarray) -> np.ndarray:
        return np.bincount(images, minlength=matches.num_images)

    hits, wrong = count(matches.images[true]), count(matches.images[false])
    missed = count(matches.object_images) - hits
    quality = panoptic_quality(matches, score)
    order = np.lexsort((-(wrong + missed), quality))
    return [
        JudgedImage(int(i), float(quality[i]), int(hits[i]), int(wrong[i]), int(missed[i]))
        for i in order
        if not np.isnan(quality[i])
    ]


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
        ValueError: the results are not of this data set, the images are not named, a score outside
            [0, 1], or a count below 1.
        OSError: an image cannot be read, or the folder not written.
    """
    if evaluation.image_root is None:
        raise ValueError("the folder of the images is not known; give it by --images")
    if count < 1 or not (score is None or 0 <= score <= 1):
        raise ValueError(f"count (={count}) must be at least 1 and score (={score}) in [0, 1]")
    evaluation = of_data_set(evaluation)
    matches = match_boxes(evaluation.truth, evaluation.results)
    if score is None:
        score = best_f1(matches).score
        score = 0.0 if np.isnan(score) else score  # nothing was found: all detections are wrong
    written = []
    for place, judged in enumerate(judge_images(matches, score)[:count], start=1):
        name = Path(evaluation.file_names[judged.number])
        picture = put_side_by_side(
            [draw_image(evaluation, matches, judged.number, score, edge)],
            [
                f"{name.name}   quality {judged.quality:.3f}   "
                f"{judged.true} right, {judged.false} wrong, {judged.missed} missed"
            ],
        )
        path = Path(folder) / f"{place:04}_{name.stem}.png"
        with atomic_path(path) as temporary:
            picture.save(temporary)
        written.append((path, judged))
    return score, written


def of_data_set(evaluation: Evaluation) -> Evaluation:
    """With the ids of the data set, also where `aligndetr predict` has written the results.

    It knows neither: an image goes by its path, which ends in the `file_name` of the ground truth,
    and a class by its number in the order of the category ids.

    Raises:
        ValueError: there is no such image or class.
    """
    results, truth = evaluation.results, evaluation.truth
    ids = {result["image_id"] for result in results} - truth.number_of.keys()
    if not ids or not all(isinstance(image_id, str) for image_id in ids):
        return evaluation  # what is wrong with other ids is said where they are looked up
    id_of_number = {number: image_id for image_id, number in truth.number_of.items()}
    id_of_name = {name: id_of_number[i] for i, name in enumerate(evaluation.file_names)}
    id_of_path = {path: _find(path, id_of_name) for path in ids}
    return dataclasses.replace(
        evaluation,
        results=[
            {
                **result,
                "image_id": id_of_path[result["image_id"]],
                "category_id": _category(result["category_id"], truth.category_ids),
            }
            for result in results
        ],
    )


def _find(path: str, id_of_name: dict[str, Any]) -> Any:
    parts = Path(path).parts
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name in id_of_name:
            return id_of_name[name]
    raise ValueError(
        f"the results have image {path!r}, whose name no image of the ground truth has; they must "
        "be of one data set"
    )


def _category(class_id: int, category_ids: Sequence[int]) -> int:
    if not 0 <= class_id < len(category_ids):
        raise ValueError(
            f"the results have class {class_id}, but the ground truth has {len(category_ids)} "
            "classes; they must be of one data set"
        )
    return category_ids[class_id]
