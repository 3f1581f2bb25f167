"""The detections of one evaluation together with the ground truth, from files."""

import dataclasses
import json
import math
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from aligndetr.data.checks import (
    FIELDS,
    check_box,
    check_categories,
    check_entry,
    check_lists,
    describe,
    repeated_id_error,
)
from aligndetr.data.errors import DatasetError
from aligndetr.evaluation.box_ap import COCO_MAX_DETECTIONS, GroundTruth, limit_on_detections

RESULTS_FILE = "coco_instances_results.json"
RESULT_KEYS = {"image_id", "category_id", "bbox", "score"}


@dataclass(frozen=True)
class Evaluation:
    """What a detector found in a data set, and what is there."""

    name: str
    truth: GroundTruth
    class_names: list[str]
    """In the order of the category ids."""
    file_names: list[str]
    """Of the images, by their number in `truth`; relative to `image_root`."""
    image_root: Path | None
    """None where the images are not at hand."""
    results: list[dict[str, Any]]
    """In COCO's format, in any order."""
    max_detections: int = COCO_MAX_DETECTIONS
    """Of an image and class: those of the highest scores count."""


def read_evaluation(
    name: str,
    results_file: str | os.PathLike,
    ground_truth: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    max_detections: int = COCO_MAX_DETECTIONS,
) -> Evaluation:
    """Read COCO's results, or what `aligndetr predict` writes, and the annotations.

    Args:
        name: for titles.
        results_file: a list of detections.
        ground_truth: a COCO json.
        image_root: the folder that `file_name` in it starts from, for pictures.
        max_detections: of an image and class that count, see `max_detections_of`.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be, or there is nothing to compare.
    """
    results = _read_json(results_file)
    if not isinstance(results, list) or not all(
        isinstance(result, dict) and result.keys() >= RESULT_KEYS for result in results
    ):
        raise ValueError(
            f"{os.fspath(results_file)!r} must hold a list of detections, each with "
            f"{', '.join(sorted(RESULT_KEYS))} (COCO's format of results)"
        )
    if not results:
        raise ValueError(f"{os.fspath(results_file)!r} holds no detection to evaluate")
    for position, result in enumerate(results):
        _check_result(result, position, results_file)
    content = _read_json(ground_truth)
    _check_ground_truth(content, Path(ground_truth))
    truth = GroundTruth.from_content(content, source=str(ground_truth))
    categories = {category["id"]: category["name"] for category in content["categories"]}
    files = {truth.number_of[image["id"]]: image["file_name"] for image in content["images"]}
    evaluation = Evaluation(
        name=name,
        truth=truth,
        class_names=[categories[category_id] for category_id in truth.category_ids],
        file_names=[files[number] for number in range(len(files))],
        image_root=None if image_root is None else Path(image_root),
        results=results,
        max_detections=max_detections,
    )
    return of_data_set(evaluation)


def data_of_config(cfg: DictConfig) -> tuple[str, str | None]:
    """The json and the image folder that a config evaluates with.

    Raises:
        ValueError: the config or its data set names none.
    """
    try:
        name = instantiate(cfg.dataloader.evaluator.dataset_name)
    except AttributeError as error:
        raise ValueError(
            "the config has no `dataloader.evaluator.dataset_name`, so the ground truth is not "
            "known; give it by --ground-truth"
        ) from error
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "json_file"):
        raise ValueError(f"data set {name!r} has no json; give the ground truth: --ground-truth")
    return PathManager.get_local_path(metadata.json_file), metadata.get("image_root")


def max_detections_of(cfg: DictConfig) -> int:
    """How many detections of an image and class a config's evaluator counts.

    Raises:
        ValueError: so few that there is no recall at 10 of them.
    """
    return limit_on_detections(OmegaConf.select(cfg, "dataloader.evaluator.max_dets_per_image"))


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


def _check_result(result: dict[str, Any], position: int, path: str | os.PathLike) -> None:
    expected = {
        "image_id": ("a number or a text", isinstance(result["image_id"], (int, str))),
        "category_id": ("a whole number", isinstance(result["category_id"], int)),
        "bbox": (
            "four finite numbers [x, y, width, height] in pixels",
            isinstance(result["bbox"], list)
            and len(result["bbox"]) == 4
            and all(map(_is_finite, result["bbox"])),
        ),
        "score": ("a finite number", _is_finite(result["score"])),
    }
    for key, (description, is_met) in expected.items():
        if not is_met:
            raise ValueError(
                f"detection [{position}] of {os.fspath(path)!r} has {key} "
                f"{reprlib.repr(result[key])}; expected {description}"
            )


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _check_ground_truth(content: Any, path: Path) -> None:
    """As a data set is checked before a training; sizes and files of images are not looked at.

    Raises:
        DatasetError: it cannot be evaluated with.
    """
    if not isinstance(content, dict):
        raise DatasetError(
            f"{str(path)!r} holds a {type(content).__name__}, as results do; the ground truth is a "
            f"COCO json with {', '.join(FIELDS)}"
        )
    lists = {key: len(value) for key, value in content.items() if isinstance(value, list)}
    check_lists(lists, content, path)
    for key in FIELDS:
        ids = set()
        for position, entry in enumerate(content[key]):
            check_entry(entry, key, position, path)
            # Nothing here goes by an annotation's id.
            if entry["id"] in ids and key != "annotations":
                raise repeated_id_error(entry["id"], key, path)
            ids.add(entry["id"])
    first_uses: dict[int, str] = {}
    for annotation in content["annotations"]:
        check_box(annotation, path)
        where = describe(annotation["id"], annotation["image_id"])
        first_uses.setdefault(annotation["category_id"], where)
    check_categories(first_uses, (category["id"] for category in content["categories"]), path)


def _read_json(path: str | os.PathLike) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} is not json: {error}") from error
