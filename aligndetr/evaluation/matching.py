"""Which detection finds which object, as COCO's evaluation decides it, kept for later questions.

pycocotools turns its matches into precision at once. What is asked here (which errors, on which
images, how sure is a difference) needs the matches themselves.

Shapes: D detections and G objects of all images, M objects of one image, T IoU thresholds.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .box_ap import COCO_MAX_DETECTIONS, GroundTruth
from .objects import ImageObjects, objects_by_image

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Matches:
    """Detections from the highest score to the lowest, and what they were matched to.

    Images and classes are numbers: of `GroundTruth.number_of`, and in the order of the category
    ids. Boxes are XYWH in pixels.
    """

    num_images: int
    num_classes: int
    images: np.ndarray
    """(D,)"""
    classes: np.ndarray
    """(D,)"""
    scores: np.ndarray
    """(D,)"""
    boxes: np.ndarray
    """(D, 4)"""
    found: np.ndarray
    """(T, D): which object, counted over all images, a detection finds; -1: none."""
    ignored: np.ndarray
    """(T, D) bools: finds none but lies in a crowd region, so it counts neither way."""
    same_iou: np.ndarray
    """(D,): the highest IoU with an object of its class, found by another or not; 0: none."""
    same_object: np.ndarray
    """(D,): which; -1: none"""
    other_iou: np.ndarray
    """(D,): the highest IoU with an object of another class."""
    other_object: np.ndarray
    """(D,)"""
    object_images: np.ndarray
    """(G,) rising; crowd regions left out"""
    object_classes: np.ndarray
    """(G,)"""
    object_boxes: np.ndarray
    """(G, 4)"""

    @functools.cached_property
    def is_true(self) -> np.ndarray:
        """(T, D)"""
        return self.found >= 0

    @functools.cached_property
    def is_false(self) -> np.ndarray:
        """(T, D)"""
        return ~self.is_true & ~self.ignored

    def is_found(self, threshold: int = 0) -> np.ndarray:
        """(G,): objects that a detection finds at `IOU_THRESHOLDS[threshold]`."""
        found = np.zeros(len(self.object_images), dtype=bool)
        found[self.found[threshold][self.is_true[threshold]]] = True
        return found

    def objects_per_class(self) -> np.ndarray:
        """(K,)"""
        return np.bincount(self.object_classes, minlength=self.num_classes)


def match_boxes(
    truth: GroundTruth,
    results: Sequence[dict[str, Any]],
    max_detections: int = COCO_MAX_DETECTIONS,
) -> Matches:
    """Match detections to objects at each of `IOU_THRESHOLDS`.

    From the highest score on, a detection takes the free object of its class and image that it
    overlaps most, if their IoU reaches the threshold.

    Args:
        results: in COCO's format (image_id, category_id, bbox in XYWH pixels, score), not
            changed. Any order: equal scores of an image keep it.
        max_detections: of one image and class, the highest scores only.

    Raises:
        ValueError: an image or category that `truth` does not have.
    """
    objects = objects_by_image(truth)
    images, classes, scores, boxes = _as_arrays(truth, results)
    order = np.lexsort((-scores, images))
    images, classes, scores, boxes = (a[order] for a in (images, classes, scores, boxes))
    kept = _rank_in_class(images, classes, len(truth.category_ids)) < max_detections
    images, classes, scores, boxes = (a[kept] for a in (images, classes, scores, boxes))

    parts = []
    offsets = np.cumsum([0, *(len(o.classes) for o in objects)])
    starts = np.searchsorted(images, np.arange(len(objects) + 1))
    for here, offset, start, end in zip(objects, offsets, starts[:-1], starts[1:]):
        if end > start:
            parts.append(_match_image(boxes[start:end], classes[start:end], here, offset))
    empty = _match_image(boxes[:0], classes[:0], _no_objects(), 0)
    matched = [np.concatenate(part, axis=-1) for part in zip(empty, *parts)]
    ranking = np.argsort(-scores, kind="stable")
    return Matches(
        len(objects),
        len(truth.category_ids),
        *(a[ranking] for a in (images, classes, scores, boxes)),
        *(a[..., ranking] for a in matched),
        object_images=np.repeat(np.arange(len(objects)), [len(o.classes) for o in objects]),
        object_classes=np.concatenate([_no_objects().classes, *(o.classes for o in objects)]),
        object_boxes=np.concatenate([_no_objects().boxes, *(o.boxes for o in objects)]),
    )


def _as_arrays(truth: GroundTruth, results: Sequence[dict]) -> Iterator[np.ndarray]:
    truth.numbers({result["image_id"] for result in results})
    label_of = {category_id: label for label, category_id in enumerate(truth.category_ids)}
    unknown = {result["category_id"] for result in results} - label_of.keys()
    if unknown:
        raise ValueError(
            f"the results have category {min(unknown, key=str)!r}, but the ground truth has "
            f"{truth.category_ids[:10]}; they must be of one data set"
        )
    yield np.array([truth.number_of[result["image_id"]] for result in results], dtype=int)
    yield np.array([label_of[result["category_id"]] for result in results], dtype=int)
    yield np.array([result["score"] for result in results], dtype=float)
    yield np.array([result["bbox"] for result in results], dtype=float).reshape(-1, 4)


def _rank_in_class(images: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """(D,): how many detections of the same image and class come before one."""
    groups = images * num_classes + classes
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(groups)))
    ranks = np.empty(len(groups), dtype=int)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, lengths)
    return ranks


def _no_objects() -> ImageObjects:
    none, no_box = np.zeros(0, dtype=int), np.zeros((0, 4))
    return ImageObjects(no_box, none, none.astype(float), none.astype(bool), no_box, none)


def _match_image(
    boxes: np.ndarray, classes: np.ndarray, objects: ImageObjects, offset: int
) -> tuple[np.ndarray, ...]:
    """`found` to `other_object` of one image; its objects are numbered from `offset`."""
    iou = objects.iou(boxes)
    same = objects.same_class(classes)
    same_iou, same_object = _highest(iou * same, offset)
    other_iou, other_object = _highest(iou * ~same, offset)
    found = np.full((len(IOU_THRESHOLDS), len(boxes)), -1)
    for threshold, row in zip(IOU_THRESHOLDS, found):
        for detection, index in _match(iou * same, same_iou, threshold):
            if objects.countable[index]:
                row[detection] = offset + index
    cover = objects.crowd_cover(boxes, classes)
    ignored = (found < 0) & (cover >= IOU_THRESHOLDS[:, None])
    return found, ignored, same_iou, same_object, other_iou, other_object


def _match(iou: np.ndarray, highest: np.ndarray, threshold: float) -> Iterator[tuple[int, int]]:
    """(detection, object) in the order of the detections."""
    iou = iou.copy()
    last = iou.shape[1] - 1
    for detection in np.flatnonzero(highest >= threshold):
        index = last - iou[detection, ::-1].argmax()  # of equal ones COCO takes the last
        if iou[detection, index] >= threshold:
            iou[:, index] = -1.0
            yield int(detection), int(index)


def _highest(iou: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """(D,) highest of each row of (D, M) and where it is, counted from `offset`; 0 and -1."""
    if not iou.shape[1]:
        return np.zeros(len(iou)), np.full(len(iou), -1)
    index = iou.argmax(axis=1)
    highest = iou[np.arange(len(iou)), index]
    return highest, np.where(highest > 0, index + offset, -1)
