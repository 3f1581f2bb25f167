"""Checks of a COCO json, its images and its classes, made before a training depends on them.

What would end in a wrong result or in an error hours later raises a `DatasetError`. Boxes that
training can do without are counted and named in the log instead (`classify_boxes`). The json may
be larger than the memory: what looks at it takes one entry, or one block of entries, at a time.
"""

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DatasetError
from .image_paths import ImageFolder, check_file_name

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

MAX_SHOWN = 200
"""Characters of a value at fault that a message shows."""

MAX_SIDE = 1 << 31
"""Pixels; a number beyond is no length, and may be too large for floating point."""

NUMBERS = ("iscrowd", "ignore", "area")
"""What an annotation may lack, but which must be a number where it is there."""

MAX_EXAMPLES = 5
"""How many of the entries at fault a message names."""


def check_lists(lists: Mapping[str, int], keys: Iterable[str], json_file: Path) -> None:
    """Raise unless the three lists of a COCO json are there and hold what they must.

    Args:
        lists: the lists found, with their lengths.
        keys: all keys of the json, for the message.
    """
    missing = [key for key in FIELDS if key not in lists]
    if missing:
        raise DatasetError(
            f"{str(json_file)!r} is not a COCO json: no list {missing} in it, only "
            f"{sorted(keys)[:10]}; expected {list(FIELDS)}"
        )
    for key in ("images", "categories"):
        if not lists[key]:
            raise DatasetError(f"{str(json_file)!r} holds no {key}; was it written to the end?")


def check_entry(entry: Any, key: str, position: int, json_file: Path) -> None:
    """Raise unless an entry of the list `key` has the `FIELDS`, each with one of its types."""
    fields = FIELDS[key]
    if not isinstance(entry, dict):
        raise DatasetError(
            f"{key}[{position}] of {str(json_file)!r} is {_shown(entry)}; expected an "
            f"object with "
            f"{list(fields)}"
        )
    for field, types in fields.items():
        if field not in entry:
            raise DatasetError(
                f"{key}[{position}] of {str(json_file)!r} (id {entry.get('id')!r}) lacks "
                f"{field!r}; expected {list(fields)}"
            )
        if not isinstance(entry[field], types):
            raise DatasetError(
                f"{key}[{position}] of {str(json_file)!r} (id {entry.get('id')!r}) has "
                f"{field}={_shown(entry[field])}; expected {' or '.join(t.__name__ for t in types)}"
            )


def check_image(image: dict[str, Any], json_file: Path) -> None:
    """Raise for an image whose width or height is no length in pixels, or that has no file."""
    check_file_name(image["file_name"])
    for side in ("width", "height"):
        if not 0 < image[side] < MAX_SIDE:
            raise DatasetError(
                f"image {image['id']!r} ({image['file_name']!r}) in {str(json_file)!r} has "
                f"{side}={_shown(image[side])}; write the size of the file in pixels"
            )


def check_box(annotation: dict[str, Any], json_file: Path) -> None:
    """Raise for a box that is not four finite numbers, or one of the `NUMBERS` that is none."""
    box = annotation["bbox"]
    if not (len(box) == 4 and all(map(_is_finite, box)) and bool not in map(type, box)):
        raise DatasetError(
            f"{describe(annotation['id'], annotation['image_id'])} in {str(json_file)!r} has bbox "
            f"{_shown(box)}; expected four finite numbers [x, y, width, height] in pixels"
        )
    for key in NUMBERS:
        if key in annotation and not _is_finite(annotation[key]):
            raise DatasetError(
                f"{describe(annotation['id'], annotation['image_id'])} in {str(json_file)!r} has "
                f"{key}={_shown(annotation[key])}; write a number, or leave {key!r} out"
            )


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def check_categories(
    first_uses: Mapping[int, str], category_ids: Iterable[int], json_file: Path
) -> None:
    """Raise for a category that annotations have and nobody defined.

    Args:
        first_uses: for each category id, the description of an annotation that has it.
        category_ids: those that the json lists.
    """
    known = set(category_ids)
    for category_id, where in first_uses.items():
        if category_id not in known:
            raise DatasetError(
                f"{where} in {str(json_file)!r} has category_id {category_id}, which is not in "
                f"categories (ids {_shorten(sorted(known))}); add the category or correct the id"
            )


def repeated_id_error(entry_id: int | str, key: str, json_file: Path) -> DatasetError:
    """The error for an id that two entries of the list `key` have."""
    return DatasetError(
        f"id {entry_id!r} stands twice in {key} of {str(json_file)!r}; ids must be unique, number "
        "them anew"
    )


BOX_PROBLEMS = (
    "belong to no image of the file; they cannot be trained on",
    "have a width or height that is not positive; they cannot be trained on",
    "lie outside their image, or its size in the json is wrong; they cannot be trained on",
    "stand out of their image; training clips them",
)
NUM_DROPPED = 3
"""The first of the `BOX_PROBLEMS` cost the box; clipping is the mapper's work."""


def classify_boxes(boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """What is wrong with each box, if anything.

    Args:
        boxes: (N, 4) float64, [x, y, width, height] in pixels.
        image_sizes: (N, 2) float64, width and height of each box's image; NaN where the json does
            not list the image.

    Returns:
        (N,) indices of `BOX_PROBLEMS`, the first that holds; its length for a sound box.
    """
    left_top, size = boxes[:, :2], boxes[:, 2:]
    right_bottom = left_top + size
    conditions = [
        np.isnan(image_sizes).any(1),
        (size <= 0).any(1),
        ((left_top >= image_sizes) | (right_bottom <= 0)).any(1),
        ((left_top < -TOLERANCE) | (right_bottom > image_sizes + TOLERANCE)).any(1),
    ]
    return np.select(conditions, range(len(BOX_PROBLEMS)), default=len(BOX_PROBLEMS))


def log_box_problems(
    counts: Sequence[int], examples: Sequence[Sequence[str]], num_boxes: int, json_file: Path
) -> None:
    """Warn of the boxes that `classify_boxes` objects to; see `tell_box_problems`."""
    for text in tell_box_problems(counts, examples, num_boxes, json_file):
        logger.warning("%s", text)


def tell_box_problems(
    counts: Sequence[int], examples: Sequence[Sequence[str]], num_boxes: int, json_file: Path
) -> list[str]:
    """How many boxes have which problem and which they are, a line for each problem there is.

    Args:
        counts: how many boxes have each of the `BOX_PROBLEMS`.
        examples: descriptions of the first of them.
    """
    return [
        f"{count} of {num_boxes} boxes in {str(json_file)!r} {problem}: "
        f"{_shorten(described, count=count)}"
        for problem, count, described in zip(BOX_PROBLEMS, counts, examples, strict=True)
        if count
    ]


def check_images_exist(images: Iterable[dict[str, Any]], image_root: str | os.PathLike) -> None:
    """Raise a `DatasetError` that counts and names the image files that are not there.

    Args:
        images: dicts with `file_name` and `id`.
        image_root: the folder that their `file_name` starts from.

    Raises:
        DatasetError: also for the first that leads out of `image_root` (see `ImageFolder`).
    """
    folder = ImageFolder(image_root)
    count, num_missing, examples = 0, 0, []
    for image in images:
        count += 1
        if not folder.has(image["file_name"]):
            num_missing += 1
            if num_missing <= MAX_EXAMPLES:
                examples.append(f"{image['file_name']!r} (image id {image['id']})")
    if num_missing:
        raise DatasetError(
            f"{num_missing} of {count} image files are not in {str(image_root)!r}: "
            f"{_shorten(examples, count=num_missing)}. Restore them, or give the folder that "
            "`file_name` in the json starts from (dataset.train_images, dataset.val_images)."
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


def describe(annotation_id: int | str, image_id: int | str) -> str:
    """An annotation as messages name it; an id that is text in quotation marks."""
    return f"annotation {annotation_id!r} of image {image_id!r}"


def _shown(value: Any) -> str:
    """As Python writes it, but no longer than a line: what is wrong may be of any size."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _shorten(items: Sequence[Any], limit: int = MAX_EXAMPLES, count: int | None = None) -> str:
    """The first `limit` items and the number of others; `count` if `items` are not all of them."""
    count = len(items) if count is None else count
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if count <= limit else f"{shown}, and {count - limit} more"
