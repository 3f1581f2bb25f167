"""Checks of a COCO json, its images and its classes, made before a training depends on them.

What would end in a wrong result or in an error hours later raises a `DatasetError`. Boxes that
training can do without are counted and named in the log instead (`find_unusable_boxes`).
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FIELDS = {
    "images": {
        "id": (int, str),
        "file_name": (str,),
        "width": (int, float),
        "height": (int, float),
    },
    "annotations": {
        "id": (int, str),
        "image_id": (int, str),
        "category_id": (int,),
        "bbox": (list,),
    },
    "categories": {"id": (int,), "name": (str,)},
}
"""The lists of a COCO json; for their entries, the fields we read and the types they may have."""

TOLERANCE = 0.1
"""Pixels a box may stand out of its image unreported: jsons round to one or two decimals."""

MAX_EXAMPLES = 5
"""How many of the entries at fault a message names."""


class DatasetError(ValueError):
    """A data set that cannot be used as it is. The message names the thing and the remedy."""


def read_coco_json(json_file: str | os.PathLike) -> dict[str, Any]:
    """The content of a COCO json that has passed every check made without looking at images.

    Raises:
        DatasetError: the file is missing, is not JSON, lacks a list or a field, is empty, repeats
            an id, or has an annotation whose category or box makes no sense.
    """
    try:
        with open(json_file, "rb") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise DatasetError(f"annotation file {str(json_file)!r} does not exist") from None
    except (ValueError, RecursionError) as error:  # ValueError: bad syntax, or not text at all
        raise DatasetError(
            f"{str(json_file)!r} is not JSON ({error}); expected a COCO annotation file"
        ) from error
    _check_structure(content, json_file)
    _check_annotations(content, json_file)
    return content


def _check_structure(content: Any, json_file: str | os.PathLike) -> None:
    """Raise unless the three lists are there, filled, and their entries have fields and own ids."""
    if not isinstance(content, dict):
        raise DatasetError(
            f"{str(json_file)!r} is not a COCO json: it holds a {type(content).__name__}, "
            f"expected an object with {list(FIELDS)}"
        )
    missing = [key for key in FIELDS if not isinstance(content.get(key), list)]
    if missing:
        raise DatasetError(
            f"{str(json_file)!r} is not a COCO json: no list {missing} in it, only "
            f"{sorted(content)[:10]}; expected {list(FIELDS)}"
        )
    for key in ("images", "categories"):
        if not content[key]:
            raise DatasetError(f"{str(json_file)!r} holds no {key}; was it written to the end?")
    for key, fields in FIELDS.items():
        seen = set()
        for position, entry in enumerate(content[key]):
            _check_entry(entry, fields, f"{key}[{position}] of {str(json_file)!r}")
            if entry["id"] in seen:
                raise DatasetError(
                    f"id {entry['id']!r} stands twice in {key} of {str(json_file)!r}; "
                    "ids must be unique, number them anew"
                )
            seen.add(entry["id"])


def _check_entry(entry: Any, fields: dict[str, tuple[type, ...]], where: str) -> None:
    """Raise unless `entry` is an object whose `fields` are there and have one of their types."""
    if not isinstance(entry, dict):
        raise DatasetError(f"{where} is {entry!r}; expected an object with {list(fields)}")
    for field, types in fields.items():
        if field not in entry:
            raise DatasetError(
                f"{where} (id {entry.get('id')!r}) lacks {field!r}; expected {list(fields)}"
            )
        if not isinstance(entry[field], types):
            raise DatasetError(
                f"{where} (id {entry.get('id')!r}) has {field}={entry[field]!r}; "
                f"expected {' or '.join(t.__name__ for t in types)}"
            )


def _check_annotations(content: dict[str, Any], json_file: str | os.PathLike) -> None:
    """Raise for a category nobody defined and for a box that is not four finite numbers."""
    category_ids = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        where = _describe(annotation)
        if annotation["category_id"] not in category_ids:
            raise DatasetError(
                f"{where} in {str(json_file)!r} has category_id {annotation['category_id']}, which "
                f"is not in categories (ids {_shorten(sorted(category_ids))}); add the category "
                "or correct the id"
            )
        box = annotation["bbox"]
        if len(box) != 4 or not all(isinstance(v, Real) and math.isfinite(v) for v in box):
            raise DatasetError(
                f"{where} in {str(json_file)!r} has bbox {box}; expected four finite numbers "
                "[x, y, width, height] in pixels"
            )


def find_unusable_boxes(content: dict[str, Any], json_file: str | os.PathLike) -> set[int | str]:
    """Ids of the annotations that training leaves out; the log says which and why.

    Left out are boxes of non-positive size, boxes that do not touch their image, and annotations
    of images that the json does not list. Boxes that stand out of their image are only reported:
    the mapper clips them.
    """
    images = {image["id"]: image for image in content["images"]}
    orphans, empty, outside, clipped = [], [], [], []
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            orphans.append(annotation)
            continue
        x, y, width, height = annotation["bbox"]
        if width <= 0 or height <= 0:
            empty.append(annotation)
        elif x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
            outside.append(annotation)
        elif (
            min(x, y) < -TOLERANCE
            or x + width > image["width"] + TOLERANCE
            or y + height > image["height"] + TOLERANCE
        ):
            clipped.append(annotation)
    for problem, annotations in (
        ("belong to no image of the file; training drops them", orphans),
        ("have a width or height that is not positive; training drops them", empty),
        ("lie outside their image; training drops them", outside),
        ("stand out of their image; training clips them", clipped),
    ):
        if annotations:
            examples = [f"{_describe(a)} (bbox {a['bbox']})" for a in annotations]
            logger.warning(
                "%d of %d boxes in %r %s: %s",
                len(annotations),
                len(content["annotations"]),
                str(json_file),
                problem,
                _shorten(examples),
            )
    return {annotation["id"] for annotation in (*orphans, *empty, *outside)}


def check_images_exist(images: Sequence[dict[str, Any]], image_root: str | os.PathLike) -> None:
    """Raise a `DatasetError` that counts and names the image files that are not there.

    Each folder is listed once instead of asking for every file, which on a network file system
    takes a second instead of many minutes.

    Args:
        images: the `images` of a COCO json.
        image_root: the folder that their `file_name` starts from.
    """
    files_in: dict[Path, set[str]] = {}
    missing = []
    for image in images:
        path = Path(image_root, image["file_name"])
        if path.parent not in files_in:
            files_in[path.parent] = _list_folder(path.parent)
        if path.name not in files_in[path.parent]:
            missing.append(f"{image['file_name']!r} (image id {image['id']})")
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(images)} image files are not in {str(image_root)!r}: "
            f"{_shorten(missing)}. Restore them, or give the folder that `file_name` in the json "
            "starts from (dataset.train_images, dataset.val_images)."
        )


def check_num_classes(num_classes: int, names: Sequence[str]) -> None:
    """Raise a `DatasetError` unless the model's number of classes is the data set's."""
    if num_classes != len(names):
        raise DatasetError(
            f"model.num_classes is {num_classes}, but the data set has {len(names)} classes "
            f"({_shorten(names)}); set model.num_classes={len(names)}"
        )


def check_same_classes(train_names: Sequence[str], val_names: Sequence[str]) -> None:
    """Raise a `DatasetError` unless train and val list the same classes in the same order.

    Otherwise class i of the model would be one thing in training and another in evaluation.
    """
    if list(train_names) != list(val_names):
        raise DatasetError(
            f"the train json has the classes {_shorten(train_names, 20)}, the val json "
            f"{_shorten(val_names, 20)}; give both the same `categories`"
        )


def _list_folder(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _describe(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation['id']} of image {annotation['image_id']}"


def _shorten(items: Sequence[Any], limit: int = MAX_EXAMPLES) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}, and {len(items) - limit} more"
